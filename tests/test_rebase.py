"""One namespace's change made again on what others committed: no store, no unit of work, only what was and what is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_gantry_state import MemoryConflictError, MemoryErasedError, Namespace, codec, merge
from agent_gantry_state.changes import changes_of, touches
from agent_gantry_state.memory import Terms, open_memory
from agent_gantry_state.rebase import Rebase, conflict, erased, is_erased
from agent_gantry_state.stores.protocol import EMPTY, KEEP, UNSHARED, Change, Snapshot

pytestmark = pytest.mark.once

NAMESPACE = Namespace("session", "s1", "app")


def snapshot(head=b"h0", expires_at=None, born=b"born", owner=None, slides=None, touched=0.0, /, **values):
    """A namespace as a store would have it; a key's version changes whenever its value does."""
    return Snapshot(
        {key: value if type(value) in codec.IMMUTABLE else None for key, value in values.items()},
        {key: codec.pack(value) for key, value in values.items() if type(value) not in codec.IMMUTABLE},
        {key: codec.pack(value) for key, value in values.items()},
        head,
        owner,
        expires_at or {},
        slides or {},
        touched,
        born,
    )


def rebase(base, ours, theirs, now=0.0, *, checked=(), whole=False, born=None, owner=None, **terms):
    """The rebase of what *ours*, a function, did to a memory of *base*, on *theirs*."""
    memory = open_memory(NAMESPACE, base, 0.0, Terms("session", **terms))
    ours(memory)
    changes = changes_of(memory)
    puts, deletes, _ = changes or ({}, [], {})
    checks = {key: base.versions.get(key) for key in (*checked, *puts, *deletes)}
    change = Change(NAMESPACE, base.head, puts, deletes, checks, whole, touches(memory), owner, base.owner, base.born)
    return Rebase(memory, changes, change, theirs, now, checked, born)


def values(change):
    return {key: codec.unpack(put.packed) for key, put in change.puts.items()}


def nothing(memory):
    return None


# Erased, or gone by itself.


@pytest.mark.parametrize(
    ("base", "current", "now", "born", "expected"),
    [
        (snapshot(a=1), EMPTY, 0.0, None, True),
        (snapshot(a=1), snapshot(b"h9", None, b"other"), 0.0, None, True),
        (snapshot(a=1), snapshot(b"h9", a=2), 0.0, None, False),
        (snapshot(b"h0", {"a": 10.0}, a=1), EMPTY, 9.9, None, True),
        (snapshot(b"h0", {"a": 10.0}, a=1), EMPTY, 10.0, None, False),
        (snapshot(b"h0", {"a": 10.0}, a=1, b=1), EMPTY, 10.0, None, True),
        (snapshot(b"h0", {}, b"born", None, {"a": 5.0}, 10.0, a=1), EMPTY, 15.0, None, False),
        (EMPTY, EMPTY, 0.0, None, False),
        (EMPTY, snapshot(a=1), 0.0, None, False),
        (EMPTY, EMPTY, 0.0, b"born", True),
        (EMPTY, snapshot(a=1), 0.0, b"born", False),
        (EMPTY, snapshot(a=1), 0.0, b"other", True),
    ],
)
def test_what_was_erased_is_told_from_what_expired(base, current, now, born, expected):
    assert is_erased(base, current, now, born) is expected


def test_a_change_of_what_was_erased_is_refused():
    made = rebase(snapshot(a=1), lambda memory: memory.update(a=2), EMPTY)

    with pytest.raises(MemoryErasedError, match="erased") as caught:
        made.run()

    assert caught.value.scope == "session"
    assert "s1" not in str(erased("session"))


@pytest.mark.parametrize("how", ["whole", "checked"])
def test_a_check_of_what_was_erased_is_refused(how):
    options: dict[str, Any] = {"whole": True} if how == "whole" else {"checked": ("a",)}

    with pytest.raises(MemoryErasedError):
        rebase(snapshot(a=1), nothing, EMPTY, **options).run()


def test_a_mere_use_of_what_was_erased_touches_nothing_more():
    base = snapshot(b"h0", {}, b"born", None, {"a": 100.0}, a=1)

    change = rebase(base, nothing, EMPTY, ttl=100.0, slides=True).run()

    assert (change.touch, change.puts, list(change.deletes)) == (False, {}, [])


# What is sent again.


def test_what_nobody_else_touched_is_sent_again_on_the_new_head():
    theirs = snapshot(b"h1", None, b"born", "ada", a=1, b=9)

    change = rebase(snapshot(a=1, b=1), lambda memory: memory.update(a=2), theirs, owner="ada").run()

    assert values(change) == {"a": 2}
    assert change.checks == {"a": codec.pack(1)}
    assert (change.head, change.loaded_owner, change.born, change.owner) == (b"h1", "ada", b"born", None)


def test_an_owner_is_still_to_be_written_where_there_is_none():
    change = rebase(EMPTY, lambda memory: memory.update(a=2), EMPTY, owner="ada").run()

    assert (change.owner, change.loaded_owner) == ("ada", None)


def test_what_expired_meanwhile_counts_as_unchanged():
    base = snapshot(b"h0", {"a": 10.0, "b": 10.0}, a=1, b=1)

    def ours(memory):
        memory["a"] = 2
        del memory["b"]

    change = rebase(base, ours, snapshot(b"h1", other=1), 10.0).run()

    assert values(change) == {"a": 2}
    assert change.checks == {"a": None, "b": None}


def test_what_was_deleted_before_its_time_is_a_conflict():
    made = rebase(snapshot(b"h0", {"a": 10.0}, a=1), lambda memory: memory.update(a=2), snapshot(b"h1"), 9.9)
    made.run()

    assert made.conflicts == ["a"]


def test_every_conflict_is_named_and_the_rest_is_merged():
    made = rebase(
        snapshot(a=1, b=1, log=[1]),
        lambda memory: (memory.update(a=2, b=2), memory["log"].append(2)),
        snapshot(b"h1", a=3, b=4, log=[1, 9]),
    )
    change = made.run()

    assert made.conflicts == ["a", "b"]
    assert values(change)["log"] == [1, 9, 2]


def test_a_key_of_which_theirs_is_kept_is_still_checked():
    change = rebase(snapshot(a="old"), lambda memory: memory.update(a="new"), snapshot(b"h1", a="new")).run()

    assert change.puts == {}
    assert change.checks == {"a": codec.pack("new")}


def test_a_deletion_by_both_leaves_nothing_to_do():
    change = rebase(snapshot(a=1, b=1), lambda memory: memory.pop("a"), snapshot(b"h1", b=1)).run()

    assert (change.puts, list(change.deletes), change.checks) == ({}, [], {"a": None})


def test_a_declared_merge_may_delete():
    change = rebase(
        snapshot(a=1),
        lambda memory: memory.update(a=2),
        snapshot(b"h1", a=3),
        merges={"a": lambda base, theirs, ours: merge.ABSENT},
    ).run()

    assert (change.puts, list(change.deletes)) == ({}, ["a"])


def test_a_declared_merge_that_fails_is_the_cause_of_a_conflict():
    error = ZeroDivisionError("a bug")

    def failing(base, theirs, ours):
        raise error

    made = rebase(snapshot(a=1), lambda memory: memory.update(a=2), snapshot(b"h1", a=3), merges={"a": failing})
    made.run()

    assert (made.conflicts, made.causes) == (["a"], [error])


def test_a_declared_merge_that_gives_what_cannot_be_stored_is_a_conflict():
    made = rebase(
        snapshot(a=1),
        lambda memory: memory.update(a=2),
        snapshot(b"h1", a=3),
        merges={"a": lambda base, theirs, ours: object()},
    )
    made.run()

    assert made.conflicts == ["a"]
    assert "memory['a']" in str(made.causes[0])


def test_a_declared_merge_is_not_asked_where_one_side_changed_nothing():
    asked = []

    def asking(base, theirs, ours):
        asked.append((base, theirs, ours))
        return ours

    change = rebase(
        snapshot(a=1), lambda memory: memory.set("a", 1, ttl=5), snapshot(b"h1", a=3), merges={"a": asking}
    ).run()

    assert asked == []
    assert values(change) == {"a": 3}
    assert change.puts["a"].ttl == 5


def test_additions_are_made_again_on_theirs_before_a_declared_merge():
    change = rebase(snapshot(n=1), lambda memory: memory.add("n", 4), snapshot(b"h1", n=10), merges={"n": merge.max}).run()

    assert values(change) == {"n": 14}


@pytest.mark.parametrize("theirs", ["text", True, [1]])
def test_addition_to_no_number_is_a_conflict_that_says_so(theirs):
    made = rebase(snapshot(n=1), lambda memory: memory.add("n", 4), snapshot(b"h1", n=theirs))
    made.run()

    assert made.conflicts == ["n"]
    assert type(theirs).__name__ in str(made.causes[0])


def test_a_time_to_live_of_its_own_is_written_though_the_value_is_theirs():
    change = rebase(snapshot(a=1), lambda memory: memory.set("a", 5, ttl=9), snapshot(b"h1", a=5)).run()

    assert values(change) == {"a": 5}
    assert (change.puts["a"].ttl, change.puts["a"].last) == (9, False)


def test_a_key_that_moved_keeps_its_place_and_the_time_that_theirs_has():
    def ours(memory):
        del memory["log"]
        memory["log"] = ["x", "ours"]

    change = rebase(snapshot(log=["x"]), ours, snapshot(b"h1", log=["x", "theirs"])).run()

    put = change.puts["log"]
    assert values(change) == {"log": ["x", "theirs", "ours"]}
    assert (put.last, put.value) == (False, UNSHARED)


def test_the_default_time_to_live_goes_with_what_was_merged():
    change = rebase(snapshot(log=[1]), lambda memory: memory["log"].append(2), snapshot(b"h1", log=[1, 3]), ttl=7.0).run()

    assert (change.puts["log"].ttl, change.puts["log"].slides) == (7.0, False)


def test_a_touch_makes_no_namespace_where_there_is_none():
    base = snapshot(b"h0", {}, b"born", None, {"a": 10.0}, 0.0, a=1)

    change = rebase(base, lambda memory: memory.pop("a"), EMPTY, 20.0, ttl=10.0, slides=True).run()

    assert change.touch is False


# Serializable.


def test_a_checked_key_that_moved_is_a_conflict_whatever_could_be_merged():
    made = rebase(
        snapshot(log=[1], b=1),
        lambda memory: (memory["log"].append(2), memory.update(b=2)),
        snapshot(b"h1", log=[1, 3], b=1),
        checked=("log",),
        merges={"log": merge.union},
    )
    change = made.run()

    assert made.conflicts == ["log"]
    assert values(change)["b"] == 2


def test_a_checked_key_that_expired_has_not_moved():
    made = rebase(snapshot(b"h0", {"a": 10.0}, a=1, b=1), nothing, snapshot(b"h1", b=1), 10.0, checked=("a",))
    made.run()

    assert made.conflicts == []


def test_a_checked_key_that_was_not_there_and_is_now_is_a_conflict():
    made = rebase(snapshot(b=1), nothing, snapshot(b"h1", a=1, b=1), checked=("a",))
    made.run()

    assert made.conflicts == ["a"]


@pytest.mark.parametrize(
    ("theirs", "now", "expected"),
    [
        (snapshot(a=1, b=1), 0.0, None),
        (snapshot(b"h1", a=2, b=1), 0.0, ["a"]),
        (snapshot(b"h1", a=1, b=1, phantom=1), 0.0, ["phantom"]),
        # Moved and moved back, or a key that was not told of: what moved is not known.
        (snapshot(b"h1", a=1, b=1), 0.0, []),
    ],
)
def test_a_whole_namespace_says_which_keys_moved(theirs, now, expected):
    made = rebase(snapshot(a=1, b=1), lambda memory: memory.update(a=5), theirs, now, whole=True)

    assert made.moved() == expected


def test_a_whole_namespace_that_expired_has_not_moved():
    made = rebase(snapshot(b"h0", {"a": 10.0}, a=1), lambda memory: memory.update(b=1), EMPTY, 10.0, whole=True)

    assert made.moved() is None


# What it says.


def test_a_conflict_says_where_and_what_to_do_and_shows_no_value():
    error = conflict({"session": ["a", "b"], "user": ["c"], "tool": []}, False)

    assert isinstance(error, MemoryConflictError)
    assert (error.by_scope, error.committed) == ({"session": ("a", "b"), "user": ("c",), "tool": ()}, False)
    assert "session memory: keys 'a', 'b'; user memory: key 'c'" in str(error)
    assert "merge={'a': ...}" in str(error)


def test_a_serializable_conflict_names_no_merge():
    assert "merge" not in str(conflict({"session": ["a"]}, True))
    assert "session memory was changed" in str(conflict({"session": []}, True))


def test_a_conflict_of_many_keys_names_some():
    error = conflict({"session": [f"k{i}" for i in range(20)]}, False)

    assert "'k7' and 12 more" in str(error)
    assert len(error.keys) == 20


def test_a_conflict_shortens_a_long_key():
    assert len(str(conflict({"session": ["x" * 5000]}, False))) < 1000


# Whatever the three sides are.

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "x"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner, max_size=3)),
    max_leaves=5,
)
SIDES = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def replaced_by(side):
    def ours(memory):
        for key in [key for key in memory if key not in side]:
            del memory[key]
        memory.update(side)

    return ours


@given(base=SIDES, theirs=SIDES, ours=SIDES)
def test_each_key_is_merged_by_itself(base, theirs, ours):
    made = rebase(snapshot(**base), replaced_by(ours), snapshot(b"h1", **theirs))
    change = made.run()

    for key in "abcd":
        before, there, here = (side.get(key, merge.ABSENT) for side in (base, theirs, ours))
        try:
            expected = merge.three_way(before, there, here)
        except merge.Conflict:
            assert key in made.conflicts
            continue
        assert key not in made.conflicts
        after = there
        if key in change.deletes:
            after = merge.ABSENT
        if key in change.puts:
            after = codec.unpack(change.puts[key].packed)
        assert (after is merge.ABSENT) == (expected is merge.ABSENT)
        assert after is merge.ABSENT or codec.pack(after) == codec.pack(expected)
    assert set(change.puts).isdisjoint(change.deletes)
    assert {*change.puts, *change.deletes} <= set(change.checks)
    assert all(change.checks[key] == (codec.pack(theirs[key]) if key in theirs else None) for key in change.checks)


@given(base=SIDES, first=SIDES, second=SIDES, ours=SIDES)
def test_a_second_rebase_is_the_same_as_if_there_had_been_no_first(base, first, second, ours):
    """It starts from the original base and the original ours, however often others were quicker."""
    once = rebase(snapshot(**base), replaced_by(ours), snapshot(b"h2", **second))
    direct = once.run()
    before = rebase(snapshot(**base), replaced_by(ours), snapshot(b"h1", **first))
    between = before.run()
    if before.conflicts:
        return
    again = Rebase(once_memory(base, ours), once.changes, between, snapshot(b"h2", **second), 0.0)
    twice = again.run()

    assert sorted(again.conflicts) == sorted(once.conflicts)
    if not once.conflicts:
        assert result(second, twice) == result(second, direct)


def once_memory(base, ours):
    memory = open_memory(NAMESPACE, snapshot(**base), 0.0, Terms("session"))
    replaced_by(ours)(memory)
    return memory


def result(theirs, change):
    after = {key: codec.pack(value) for key, value in theirs.items() if key not in change.deletes}
    return {**after, **{key: put.packed for key, put in change.puts.items()}}


def test_keep_is_kept_for_what_nobody_gave_a_time():
    change = rebase(snapshot(a=[1]), lambda memory: memory["a"].append(2), snapshot(b"h1", a=[1, 3])).run()

    assert change.puts["a"].ttl is KEEP
