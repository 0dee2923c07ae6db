"""A unit of work is driven by sending it answers: no loop, no store but where two callers meet on one."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent_gantry_state import (
    Gantry,
    MemoryConflictError,
    MemoryErasedError,
    Namespace,
    StoreTimeoutError,
    UnstorableValueError,
    codec,
    merge,
    steps,
)
from agent_gantry_state.holding import Want
from agent_gantry_state.memory import Terms
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import (
    EMPTY,
    KEEP,
    UNSHARED,
    Commit,
    Committed,
    Forget,
    Load,
    Loaded,
    Moved,
    Put,
    Snapshot,
)
from agent_gantry_state.unit_of_work import UnitOfWork

SESSION = Namespace("session", "s1", "app")
USER = Namespace("user", "ada", "app")
#: All that a unit asks of a bridge: that answers can be lost on the way to its store, and which store that is.
BRIDGE: Any = SimpleNamespace(resendable=True, store=object(), load_timeout=4.0, commit_timeout=6.0, counters=None)


def snapshot(head: bytes | None = b"h0", expires_at: dict[str, float] | None = None, /, **values: Any) -> Snapshot:
    """A namespace as a store would have it; a key's version changes whenever its value does."""
    shared = {key: value if type(value) in codec.IMMUTABLE else None for key, value in values.items()}
    packed = {key: codec.pack(value) for key, value in values.items() if type(value) not in codec.IMMUTABLE}
    versions = {key: codec.pack(value) for key, value in values.items()}
    return Snapshot(shared, packed, versions, head, None, expires_at or {}, born=None if head is None else b"born")


def wanted(scope: str, **terms: Any) -> Want:
    return Want.of(Terms(scope, **terms), None)


def opened(base: Snapshot = EMPTY, now: float = 0.0, **terms: Any) -> tuple[UnitOfWork, Any]:
    unit = UnitOfWork({SESSION: wanted("session", **terms)}, BRIDGE)
    steps = unit.begin()
    assert next(steps) == Load((SESSION,))
    with pytest.raises(StopIteration) as stopped:
        steps.send(Loaded((base,), now))
    return unit, stopped.value.value[0]


def both_opened(session: Snapshot, user: Snapshot) -> tuple[UnitOfWork, Any]:
    unit = UnitOfWork({SESSION: wanted("session"), USER: wanted("user")}, BRIDGE)
    steps = unit.begin()
    assert next(steps) == Load((SESSION, USER))
    with pytest.raises(StopIteration) as stopped:
        steps.send(Loaded((session, user), 0.0))
    return unit, stopped.value.value


def written(commit: Commit) -> dict[str, Any]:
    return {key: codec.unpack(put.packed) for key, put in commit.changes[0].puts.items()}


def ended(steps: Any, answer: Any) -> bool:
    try:
        steps.send(answer)
    except StopIteration:
        return True
    return False


def test_begin_asks_for_every_namespace_at_once_and_hands_out_memories_in_order():
    unit = UnitOfWork({SESSION: wanted("session"), USER: wanted("user")}, BRIDGE)
    steps = unit.begin()

    assert next(steps) == Load((SESSION, USER))
    with pytest.raises(StopIteration) as stopped:
        steps.send(Loaded((snapshot(a=1), snapshot(b=[2])), 0.0))

    assert stopped.value.value == ({"a": 1}, {"b": [2]})


def test_a_call_that_changed_nothing_asks_for_nothing():
    unit, memory = opened(snapshot(a=1, b=[1, {"c": {2}}]))
    memory["a"] = 1
    memory["b"][1]["c"].add(2)
    memory.get("a")

    assert list(unit.finish()) == []


def test_a_commit_says_what_to_write_what_to_delete_and_what_was_seen():
    unit, memory = opened(snapshot(a=1, b=[1], c=3, d=4))
    memory["a"] = 2
    memory["b"].append(2)
    del memory["c"]
    memory["new"] = None

    commit = next(unit.finish())

    change = commit.changes[0]
    assert isinstance(commit, Commit)
    assert written(commit) == {"a": 2, "b": [1, 2], "new": None}
    assert change.puts["a"].value == 2
    assert change.puts["b"].value is UNSHARED
    assert list(change.deletes) == ["c"]
    assert change.checks == {"a": codec.pack(1), "b": codec.pack([1]), "c": codec.pack(3), "new": None}
    assert (change.namespace, change.head, change.whole, change.touch) == (SESSION, b"h0", False, False)
    assert (len(commit.token), len(commit.version)) == (16, 8)


def test_units_have_tokens_and_versions_of_their_own():
    commits = []
    for _ in range(100):
        unit, memory = opened()
        memory["a"] = 1
        commits.append(next(unit.finish()))

    assert len({commit.token for commit in commits}) == len({commit.version for commit in commits}) == 100


def test_the_unit_ends_when_it_is_committed():
    unit, memory = opened()
    memory["a"] = 1
    steps = unit.finish()
    next(steps)

    assert ended(steps, Committed())


def test_only_namespaces_that_were_changed_are_committed():
    unit, memories = both_opened(snapshot(a=1), snapshot(b=[2]))
    memories[1]["b"].append(3)

    assert [change.namespace for change in next(unit.finish()).changes] == [USER]


def test_every_retry_merges_from_the_original_base_and_the_original_ours():
    unit, memory = opened(snapshot(log=["base"], n=10))
    memory["log"].append("ours")
    memory.add("n", 5)
    steps = unit.finish()
    commit = next(steps)

    for theirs in (["t1"], ["t1", "t2"], [], ["t1", "t2", "t3"]):
        commit = steps.send(Moved((snapshot(str(theirs).encode(), log=["base", *theirs], n=10 + len(theirs)),), 0.0))
        expected = {"n": 15 + len(theirs)}
        expected["log"] = ["base", *theirs, "ours"]
        assert written(commit) == expected
        assert commit.changes[0].head == str(theirs).encode()
        assert commit.changes[0].checks == {"log": codec.pack(["base", *theirs]), "n": codec.pack(10 + len(theirs))}

    assert ended(steps, Committed())


def test_a_retry_has_the_token_of_its_unit():
    unit, memory = opened()
    memory["log"] = [1]
    steps = unit.finish()
    first = next(steps)
    second = steps.send(Moved((snapshot(log=[0]),), 0.0))

    assert first.token == second.token


def test_new_keys_keep_their_order_though_one_was_there_for_a_moment():
    unit, memory = opened()
    memory.update(x=9, n=3)
    steps = unit.finish()
    next(steps)
    steps.send(Moved((snapshot(b"h1", x=9),), 0.0))

    commit = steps.send(Moved((snapshot(b"h2"),), 0.0))

    assert list(written(commit).items()) == [("x", 9), ("n", 3)]


def test_a_key_that_nobody_else_changed_is_sent_again_as_it_is():
    unit, memory = opened(snapshot(a=1, b=1))
    memory["a"] = 2
    steps = unit.finish()
    next(steps)

    commit = steps.send(Moved((snapshot(b"h1", a=1, b=7),), 0.0))

    assert written(commit) == {"a": 2}
    assert commit.changes[0].head == b"h1"


def test_a_conflict_names_every_key_and_writes_nothing():
    unit, memory = opened(snapshot(a=1, b=1, ok=[1]))
    memory.update(a=2, b=2)
    memory["ok"].append(2)
    steps = unit.finish()
    next(steps)

    with pytest.raises(MemoryConflictError, match="merge") as caught:
        steps.send(Moved((snapshot(b"h1", a=3, b=4, ok=[1, 9]),), 0.0))

    error = caught.value
    assert (error.keys, error.by_scope, error.committed, error.transient) == (
        ("a", "b"),
        {"session": ("a", "b")},
        False,
        True,
    )


def test_a_conflict_in_two_namespaces_maps_each_scope_to_its_keys():
    unit, memories = both_opened(snapshot(z=1), snapshot(b=1))
    memories[0]["z"] = memories[1]["b"] = 2
    steps = unit.finish()
    next(steps)

    with pytest.raises(MemoryConflictError) as caught:
        steps.send(Moved((snapshot(z=3), snapshot(b=3)), 0.0))

    assert (caught.value.keys, caught.value.by_scope) == (("b", "z"), {"session": ("z",), "user": ("b",)})


def test_a_conflict_shows_no_value_and_no_id():
    unit, memory = opened(snapshot(a="base-value"))
    memory["a"] = "our-value"
    steps = unit.finish()
    next(steps)

    with pytest.raises(MemoryConflictError) as caught:
        steps.send(Moved((snapshot(a="their-value"),), 0.0))

    assert not any(text in str(caught.value) for text in ("-value", "s1"))


@pytest.mark.parametrize(("ours", "theirs"), [(None, {"a": 2}), ({"a": 2}, {}), ({"a": {"x": 1}}, {}), (None, {"a": [1]})])
def test_deleted_by_one_and_changed_by_the_other_is_a_conflict(ours, theirs):
    unit, memory = opened(snapshot(a=1))
    if ours is None:
        del memory["a"]
    else:
        memory.update(ours)
    steps = unit.finish()
    next(steps)

    with pytest.raises(MemoryConflictError):
        steps.send(Moved((snapshot(b"h1", **theirs),), 0.0))


@pytest.mark.parametrize("theirs", [{"a": "new"}, {}])
def test_the_same_change_by_both_leaves_nothing_to_write(theirs):
    unit, memory = opened(snapshot(a="old"))
    memory.clear()
    memory.update(theirs)
    steps = unit.finish()
    next(steps)

    assert ended(steps, Moved((snapshot(b"h1", **theirs),), 0.0))


def test_clear_deletes_the_keys_that_were_loaded():
    unit, memory = opened(snapshot(a=1, b=[1]))
    memory.clear()
    steps = unit.finish()
    assert sorted(next(steps).changes[0].deletes) == ["a", "b"]

    commit = steps.send(Moved((snapshot(b"h1", a=1, b=[1], c=1),), 0.0))

    assert sorted(commit.changes[0].deletes) == ["a", "b"]


# What was merged to theirs may move again.


@pytest.mark.parametrize(
    ("terms", "base", "ours", "first", "second", "expected"),
    [
        ({"merges": {"k": merge.max}}, {"k": 1}, 5, {"k": 7}, {"k": 3}, {"k": 5}),
        ({}, {}, {"x"}, {"k": {"x"}}, {"k": set()}, {"k": {"x"}}),
        ({}, {"k": "old"}, "new", {"k": "new"}, {"k": "old"}, {"k": "new"}),
    ],
)
def test_a_change_that_theirs_made_needless_is_merged_again_when_theirs_moves_on(terms, base, ours, first, second, expected):
    unit, memory = opened(snapshot(log=["base"], **base), **terms)
    memory["k"] = ours
    memory["log"].append("ours")
    steps = unit.finish()
    next(steps)
    steps.send(Moved((snapshot(b"h1", log=["base", "t1"], **first),), 0.0))

    commit = steps.send(Moved((snapshot(b"h2", log=["base", "t1", "t2"], **second),), 0.0))

    assert written(commit) == {"log": ["base", "t1", "t2", "ours"], **expected}


def test_a_key_that_both_set_alike_is_a_conflict_when_it_is_set_otherwise_before_the_commit():
    unit, memory = opened(snapshot(k="old", log=[]))
    memory["k"] = "new"
    memory["log"].append("ours")
    steps = unit.finish()
    next(steps)
    commit = steps.send(Moved((snapshot(b"h1", k="new", log=["t1"]),), 0.0))
    assert commit.changes[0].checks.get("k") == codec.pack("new")

    with pytest.raises(MemoryConflictError):
        steps.send(Moved((snapshot(b"h2", k="newer", log=["t1", "t2"]),), 0.0))


# Erased and expired.


@pytest.mark.parametrize("expires_at", [{}, {"a": 100.0}])
def test_a_namespace_that_was_erased_does_not_come_back(expires_at):
    unit, memory = opened(snapshot(b"h0", expires_at, a=1))
    memory["b"] = 2
    steps = unit.finish()
    next(steps)

    with pytest.raises(MemoryErasedError, match="erased") as caught:
        steps.send(Moved((EMPTY,), 50.0))

    assert (caught.value.scope, caught.value.committed) == ("session", False)


def test_a_namespace_of_which_everything_had_expired_was_not_erased():
    unit, memory = opened(snapshot(b"h0", {"a": 100.0, "b": 90.0}, a=1, b=2))
    memory["a"] = 2
    steps = unit.finish()
    next(steps)

    commit = steps.send(Moved((EMPTY,), 100.0))

    assert written(commit) == {"a": 2}
    assert commit.changes[0].checks == {"a": None}
    assert commit.changes[0].head is None


def test_a_key_that_expired_meanwhile_counts_as_unchanged():
    unit, memory = opened(snapshot(b"h0", {"a": 100.0, "b": 100.0}, a=1, b=1, n=0))
    memory["a"] = 2
    memory["n"] = 1
    steps = unit.finish()
    next(steps)

    commit = steps.send(Moved((snapshot(b"h1", n=0, other=1),), 100.0))

    assert written(commit) == {"a": 2, "n": 1}


def test_a_key_deleted_before_it_would_have_expired_was_deleted():
    unit, memory = opened(snapshot(b"h0", {"a": 100.0}, a=1, n=0))
    memory["a"] = 2
    steps = unit.finish()
    next(steps)

    with pytest.raises(MemoryConflictError):
        steps.send(Moved((snapshot(b"h1", n=0),), 99.9))


# add.


@pytest.mark.parametrize(("theirs", "expected"), [({"n": 13}, 18), ({}, 5), ({"n": 2.5}, 7.5)])
def test_add_is_made_again_on_what_is_there(theirs, expected):
    unit, memory = opened(snapshot(n=10))
    memory.add("n", 2)
    memory.add("n", 3)
    steps = unit.finish()
    assert written(next(steps)) == {"n": 15}

    assert written(steps.send(Moved((snapshot(b"h1", **theirs),), 0.0))) == {"n": expected}


@pytest.mark.parametrize("order", ["assign first", "add first", "delete first"])
def test_an_assignment_makes_an_add_an_assignment(order):
    unit, memory = opened(snapshot(n=10))
    if order == "add first":
        memory.add("n", 1)
        memory["n"] = 4
    elif order == "assign first":
        memory["n"] = 3
        memory.add("n", 1)
    else:
        del memory["n"]
        memory.add("n", 4)
    steps = unit.finish()
    assert written(next(steps)) == {"n": 4}

    with pytest.raises(MemoryConflictError):
        steps.send(Moved((snapshot(b"h1", n=11),), 0.0))


def test_add_to_what_became_no_number_is_a_conflict_that_says_why():
    unit, memory = opened(snapshot(n=10))
    memory.add("n", 2)
    steps = unit.finish()
    next(steps)

    with pytest.raises(MemoryConflictError) as caught:
        steps.send(Moved((snapshot(b"h1", n="eleven"),), 0.0))

    assert "str" in str(caught.value.__cause__)


# Declared merges.


def test_a_declared_merge_gets_base_theirs_and_ours_as_private_copies():
    seen = []

    def keep(base, theirs, ours):
        seen.append(copy.deepcopy((base, theirs, ours)))
        base.append("spoilt")
        ours.append("spoilt")
        return theirs if theirs is merge.ABSENT else [*theirs, "kept"]

    unit, memory = opened(snapshot(plan=["b"]), merges={"plan": keep})
    memory["plan"] = ["o"]
    steps = unit.finish()
    next(steps)

    assert written(steps.send(Moved((snapshot(b"h1", plan=["t"]),), 0.0))) == {"plan": ["t", "kept"]}
    assert written(steps.send(Moved((snapshot(b"h2", plan=["u"]),), 0.0))) == {"plan": ["u", "kept"]}
    assert ended(steps, Moved((snapshot(b"h3"),), 0.0))
    assert seen == [(["b"], ["t"], ["o"]), (["b"], ["u"], ["o"]), (["b"], merge.ABSENT, ["o"])]


def test_a_declared_merge_that_fails_is_a_conflict_with_its_error_as_the_cause():
    bug = ZeroDivisionError("bug in merge")

    def broken(base, theirs, ours):
        raise bug

    unit, memory = opened(snapshot(a=1), merges={"a": broken})
    memory["a"] = 2
    steps = unit.finish()
    next(steps)

    with pytest.raises(MemoryConflictError) as caught:
        steps.send(Moved((snapshot(a=3),), 0.0))

    assert caught.value.__cause__ is bug
    assert caught.value.keys == ("a",)


def test_a_declared_merge_that_returns_something_unstorable_is_a_conflict_that_says_so():
    unit, memory = opened(snapshot(a=1), merges={"a": lambda base, theirs, ours: [object()]})
    memory["a"] = 2
    steps = unit.finish()
    next(steps)

    with pytest.raises(MemoryConflictError) as caught:
        steps.send(Moved((snapshot(a=3),), 0.0))

    assert isinstance(caught.value.__cause__, UnstorableValueError)
    assert caught.value.__cause__.path == "memory['a'][0]"


def test_a_declared_merge_may_delete_the_key():
    unit, memory = opened(snapshot(a=1), merges={"a": lambda base, theirs, ours: merge.ABSENT})
    memory["a"] = 2
    steps = unit.finish()
    next(steps)

    commit = steps.send(Moved((snapshot(b"h1", a=3),), 0.0))

    assert (written(commit), list(commit.changes[0].deletes)) == ({}, ["a"])


def test_what_cannot_be_stored_is_refused_before_anything_is_sent():
    unit, memory = opened(snapshot(a=1))
    memory["a"] = 2
    memory["bad"] = {"deep": [object()]}

    with pytest.raises(UnstorableValueError) as caught:
        next(unit.finish())

    assert caught.value.path == "memory['bad']['deep'][0]"


def test_others_that_are_always_quicker_end_in_a_timeout_that_wrote_nothing(monkeypatch):
    monkeypatch.setattr(BRIDGE, "commit_timeout", -1.0)
    unit, memory = opened(snapshot(log=[]))
    memory["log"].append(1)
    steps = unit.finish()
    next(steps)

    with pytest.raises(StoreTimeoutError) as caught:
        steps.send(Moved((snapshot(b"h1", log=[0]),), 0.0))

    assert caught.value.committed is False


# Order.


def test_new_keys_are_sent_in_the_order_of_the_dict():
    unit, memory = opened(snapshot(a=1, b=2))
    memory["z"] = 1
    memory["y"] = [1]
    memory["a"] = 5
    del memory["z"]
    memory["x"] = 1
    memory["z"] = 2
    del memory["b"]
    memory["b"] = 2

    puts = next(unit.finish()).changes[0].puts

    assert [key for key in puts if key != "a"] == ["y", "x", "z", "b"]
    assert [key for key, put in puts.items() if put.last] == ["b"]


def stored_after(base: dict[str, Any], theirs: Any, ours: Any, **terms: Any) -> list[str]:
    """The order of the keys when ours was loaded before theirs was committed, and committed after."""
    store = MemoryStore()

    def unit() -> UnitOfWork:
        return UnitOfWork({SESSION: wanted("session", **terms)}, BRIDGE)

    def finish(one: UnitOfWork) -> None:
        steps.run(one.finish(), store.commit)

    def begin(one: UnitOfWork) -> Any:
        return steps.run(one.begin(), store.load)[0]

    first = unit()
    begin(first).update(base)
    finish(first)
    second, third = unit(), unit()
    ours(begin(second))
    theirs(begin(third))
    finish(third)
    finish(second)
    return list(begin(unit()))


def remade(memory: Any) -> None:
    memory["a"] = memory.pop("a")


def raise_score(memory: Any) -> None:
    memory["score"] += 1
    memory["z"] = 1


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (lambda memory: memory.update(t=1, s=1), lambda memory: memory.update(o=1, n=1), "a b c t s o n"),
        (lambda memory: memory.update(t=1), lambda memory: memory.update(a=9, c=9), "a b c t"),
        (lambda memory: memory.update(t=1), remade, "b c t a"),
        (lambda memory: memory.update(x=[1]), lambda memory: memory.update(n=1, x=[2], m=1), "a b c x n m"),
        (remade, lambda memory: memory.update(b=9, o=1), "b c a o"),
    ],
)
def test_after_a_merge_ours_follow_theirs(theirs, ours, expected):
    assert stored_after({"a": 1, "b": 2, "c": 3}, theirs, ours) == expected.split()


def test_a_key_that_a_merge_brings_back_keeps_its_place_among_ours():
    order = stored_after({"score": 1, "b": 2}, lambda memory: memory.pop("score"), raise_score, merges={"score": merge.ours})

    assert order == ["b", "score", "z"]


# Two callers on one namespace.


SCALARS = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, -0.0])
NAMES = st.sampled_from(["x", "y"])
ABSENT = object()


def exact(value: Any) -> Any:
    return type(value), repr(value)


class TwoCallers(RuleBasedStateMachine):
    """Two memories open at any time on one namespace, against a model that knows only what each was told."""

    def __init__(self) -> None:
        super().__init__()
        self.gantry = Gantry(session="local")
        self.blocks: dict[int, Any] = {}
        self.memories: dict[int, Any] = {}
        self.bases: dict[int, dict[str, Any]] = {}
        self.appended: dict[int, list[int]] = {}
        self.added: dict[int, int] = {}
        self.names: dict[int, set[str]] = {}
        self.log: list[int] = []
        self.total = 0
        self.scalars: dict[str, Any] = {}
        self.serial = 0

    def teardown(self) -> None:
        self.gantry.close()

    @rule(who=st.integers(0, 1))
    def begin(self, who: int) -> None:
        if who in self.blocks:
            return
        block = self.gantry.memory()
        memory = block.__enter__()
        self.blocks[who], self.memories[who] = block, memory
        self.bases[who] = {key: value for key, value in memory.items() if key in ("x", "y")}
        self.appended[who], self.added[who], self.names[who] = [], 0, set()

    @precondition(lambda self: self.blocks)
    @rule(who=st.integers(0, 1))
    def append(self, who: int) -> None:
        if who in self.blocks:
            self.serial += 1
            self.memories[who].setdefault("log", []).append(self.serial)
            self.appended[who].append(self.serial)

    @precondition(lambda self: self.blocks)
    @rule(who=st.integers(0, 1), n=st.integers(-2, 5))
    def add(self, who: int, n: int) -> None:
        if who in self.blocks:
            self.memories[who].add("n", n)
            self.added[who] += n

    @precondition(lambda self: self.blocks)
    @rule(who=st.integers(0, 1), name=NAMES, value=SCALARS)
    def assign(self, who: int, name: str, value: Any) -> None:
        if who in self.blocks:
            self.memories[who][name] = value

    @precondition(lambda self: self.blocks)
    @rule(who=st.integers(0, 1), name=NAMES)
    def delete(self, who: int, name: str) -> None:
        if who in self.blocks:
            self.memories[who].pop(name, None)

    @precondition(lambda self: self.blocks)
    @rule(who=st.integers(0, 1))
    def abandon(self, who: int) -> None:
        if who in self.blocks:
            del self.memories[who]
            self.blocks.pop(who).__exit__(ValueError, ValueError(), None)

    @precondition(lambda self: self.blocks)
    @rule(who=st.integers(0, 1))
    def finish(self, who: int) -> None:
        if who not in self.blocks:
            return
        block, memory, base = self.blocks.pop(who), self.memories.pop(who), self.bases[who]
        merged, conflicts = dict(self.scalars), []
        for name in ("x", "y"):
            before, there, here = (side.get(name, ABSENT) for side in (base, self.scalars, memory))
            counted = {type(before), type(here)} <= {int, float}
            # Of a number that both made the same of another one nobody can say that it is not a count of both.
            if exact(here) == exact(before) or (exact(here) == exact(there) and not counted):
                continue
            if exact(there) != exact(before):
                conflicts.append(name)
            elif here is ABSENT:
                merged.pop(name, None)
            else:
                merged[name] = here
        if conflicts:
            with pytest.raises(MemoryConflictError) as caught:
                block.__exit__(None, None, None)
            assert caught.value.keys == tuple(conflicts)
            return
        block.__exit__(None, None, None)
        self.log += self.appended[who]
        self.total += self.added[who]
        self.scalars = merged

    @invariant()
    def what_is_stored_is_what_was_acknowledged(self) -> None:
        block = self.gantry.memory()
        stored = dict(block.__enter__())
        block.__exit__(ValueError, ValueError(), None)
        assert stored.pop("log", []) == self.log
        assert stored.pop("n", 0) == self.total
        assert {name: exact(value) for name, value in stored.items()} == {
            name: exact(value) for name, value in self.scalars.items()
        }


TwoCallers.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestTwoCallers = TwoCallers.TestCase


def test_a_put_keeps_the_expiry_where_nothing_says_otherwise():
    unit, memory = opened(snapshot(a=1))
    memory["a"] = 2

    assert next(unit.finish()).changes[0].puts == {"a": Put(2, None, KEEP)}


def test_a_namespace_that_was_erased_and_made_anew_is_another_one():
    with Gantry(session="s") as gantry:
        with gantry.memory() as memory:
            memory["secret"] = "old"

        @gantry.with_memory
        def copies(memory):
            store = gantry._wiring.settings.bridge.store
            store.forget(Forget((memory._namespace,)))
            with gantry.independent(), gantry.memory() as anew:
                anew["fresh"] = 1
            memory["copy"] = memory["secret"]

        with pytest.raises(MemoryErasedError):
            copies()

        with gantry.memory() as memory:
            assert memory == {"fresh": 1}


def test_a_use_that_only_restarts_a_time_to_live_conflicts_with_nothing():
    unit, _ = opened(replaced(snapshot(b"h0", a=1), slides={"a": 100.0}), now=50.0, ttl=100.0, slides=True)
    steps = unit.finish()
    assert next(steps).changes[0].touch

    assert ended(steps, Moved((EMPTY,), 60.0))


def test_a_declared_merge_is_not_asked_where_theirs_changed_nothing():
    unit, memory = opened(snapshot(plan="long plan"), merges={"plan": merge.longest})
    memory["plan"] = "short"
    steps = unit.finish()
    next(steps)
    theirs = snapshot(b"h1", plan="long plan")
    theirs.versions["plan"] = b"written again"

    commit = steps.send(Moved((theirs,), 0.0))

    assert written(commit) == {"plan": "short"}


def replaced(base: Snapshot, slides: dict[str, float]) -> Snapshot:
    return Snapshot(base.values, base.packed, base.versions, base.head, base.owner, base.expires_at, slides, 0.0, base.born)
