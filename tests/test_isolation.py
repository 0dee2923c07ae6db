"""What a call may assume of what it read: nothing by default, everything with isolation="serializable"."""

from __future__ import annotations

import anyio
import pytest

from agent_gantry_state import DeclarationError, MemoryConflictError, Session, SyncSession, UndeclaredKeyError, merge
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Load

pytestmark = pytest.mark.once


@pytest.fixture
def gantry(new_gantry):
    with new_gantry() as gantry, gantry.session("s1", user="ada"):
        yield gantry


@pytest.fixture
def loads(gantry, monkeypatch):
    """The keys that each load asks for."""
    seen = []
    bridge = gantry._wiring.settings.bridge
    if isinstance(bridge.store, MemoryStore):
        # Which is asked without a message, too.
        snapshots = bridge.store.snapshots

        def asked(wanted, names=False):
            wanted = list(wanted)
            seen.append(tuple(keys for _, keys in wanted))
            return snapshots(wanted, names)

        monkeypatch.setattr(bridge.store, "snapshots", asked)
        return seen

    def watched(steps):
        answer = None
        try:
            while True:
                request = steps.send(answer)
                if isinstance(request, Load):
                    seen.append(request.keys)
                answer = yield request
        except StopIteration as stop:
            return stop.value

    run, arun = bridge.run, bridge.arun
    monkeypatch.setattr(bridge, "run", lambda steps: run(watched(steps)))
    monkeypatch.setattr(bridge, "arun", lambda steps: arun(watched(steps)))
    return seen


def meanwhile(gantry, scope="session", **values):
    """What another call commits in between; None deletes."""
    with gantry.independent(), gantry.memory(scope) as memory:
        for key, value in values.items():
            if value is None:
                memory.pop(key, None)
            else:
                memory[key] = value


def content(gantry, scope="session"):
    with gantry.memory(scope) as memory:
        return dict(memory)


def go_off_call(gantry, who, other):
    """The classic: a doctor may go off call while the other one is on."""

    def body(memory):
        if memory[other]:
            memory[who] = False
            # The other one has the same idea.
            with gantry.independent():
                if content(gantry)[who]:
                    meanwhile(gantry, **{other: False})

    return body


# Write skew.


def test_write_skew_is_possible_by_default(gantry, call):
    meanwhile(gantry, alice=True, bob=True)
    call(gantry, go_off_call(gantry, "alice", "bob"))
    assert content(gantry) == {"alice": False, "bob": False}


@pytest.mark.parametrize("keys", [None, ("alice", "bob")])
def test_write_skew_is_refused_when_serializable(gantry, call, keys):
    meanwhile(gantry, alice=True, bob=True)
    with pytest.raises(MemoryConflictError) as caught:
        call(gantry, go_off_call(gantry, "alice", "bob"), isolation="serializable", keys=keys)
    assert content(gantry) == {"alice": True, "bob": False}
    assert caught.value.committed is False
    assert caught.value.transient
    if keys:
        assert caught.value.keys == ("bob",)


@pytest.mark.parametrize("options", [{}, {"keys": ("alice", "bob")}])
def test_serializable_call_that_conflicts_can_run_again(gantry, call, options):
    runs = []

    def body(memory):
        runs.append(dict(memory))
        go_off_call(gantry, "alice", "bob")(memory)

    meanwhile(gantry, alice=True, bob=True)
    call(gantry, body, isolation="serializable", on_conflict="retry", **options)

    assert runs == [{"alice": True, "bob": True}, {"alice": True, "bob": False}]
    assert content(gantry) == {"alice": True, "bob": False}


@pytest.mark.parametrize(("first", "second"), [("snapshot", "snapshot"), ("serializable", "snapshot")])
@pytest.mark.parametrize("is_async", [True, False])
def test_write_skew_over_two_memories(gantry, first, second, is_async):
    """It reads the session and writes the user's memory, while another call does it the other way round."""

    def body(memory, mine):
        if memory["on"] and mine["on"]:
            mine["on"] = False
            meanwhile(gantry, on=False)

    async def tool(memory, mine):
        body(memory, mine)

    meanwhile(gantry, on=True)
    meanwhile(gantry, "user", on=True)
    decorated = gantry.with_memory(isolation=first)(
        gantry.with_memory(scope="user", into="mine", isolation=second)(tool if is_async else body)
    )
    run = (lambda: anyio.run(decorated)) if is_async else decorated

    if first == "snapshot":
        run()
        assert (content(gantry), content(gantry, "user")) == ({"on": False}, {"on": False})
        return
    with pytest.raises(MemoryConflictError) as caught:
        run()
    assert "session" in caught.value.by_scope
    assert "user" not in caught.value.by_scope
    assert (content(gantry), content(gantry, "user")) == ({"on": False}, {"on": True})


def test_only_the_memory_that_says_so_is_checked(gantry):
    """The session is serializable, the user's memory is not: what moves there is merged."""

    @gantry.with_memory(isolation="serializable")
    @gantry.with_memory(scope="user", into="mine")
    def tool(memory, mine):
        memory["x"] = mine.get("x")
        mine["y"] = 1
        meanwhile(gantry, "user", x=2)

    tool()
    assert content(gantry, "user") == {"x": 2, "y": 1}


def test_serializable_call_that_writes_nothing_is_not_checked(gantry, call):
    def body(memory):
        meanwhile(gantry, x=2)
        return memory["x"]

    meanwhile(gantry, x=1)
    assert call(gantry, body, isolation="serializable") == 1


def test_serializable_call_is_not_merged(gantry, call):
    """A merge would write the union of both, but what the call appended may depend on what it read."""

    def body(memory):
        memory["files"].append("mine")
        memory.add("n")
        meanwhile(gantry, files=["theirs"], n=5)

    meanwhile(gantry, files=[], n=0)
    with pytest.raises(MemoryConflictError) as caught:
        call(gantry, body, isolation="serializable", merge={"files": merge.union})
    assert caught.value.keys == ("files", "n")
    assert "on_conflict" in str(caught.value)
    assert content(gantry) == {"files": ["theirs"], "n": 5}


@pytest.mark.parametrize("options", [{}, {"keys": ("x", "y")}])
def test_same_value_written_again_is_a_change(gantry, call, options):
    """A, then B, then A again: the value says nothing, the version does."""

    def body(memory):
        memory["y"] = memory["x"]
        meanwhile(gantry, x=2)
        meanwhile(gantry, x=1)

    meanwhile(gantry, x=1)
    with pytest.raises(MemoryConflictError):
        call(gantry, body, isolation="serializable", **options)


def test_key_that_was_deleted_meanwhile_is_a_change(gantry, call):
    def body(memory):
        memory["y"] = memory["x"]
        meanwhile(gantry, x=None)

    for keys in (None, ("x", "y")):
        meanwhile(gantry, x=1)
        with pytest.raises(MemoryConflictError) as caught:
            call(gantry, body, isolation="serializable", keys=keys)
        assert caught.value.keys in (("x",), ())
        assert content(gantry) == {}


# Phantoms.


def phantom(gantry, key="ghost"):
    def body(memory):
        memory["count"] = len(memory)
        meanwhile(gantry, **{key: 1})

    return body


def test_phantom_is_let_through_by_default(gantry, call):
    meanwhile(gantry, x=1)
    call(gantry, phantom(gantry))
    assert content(gantry) == {"x": 1, "count": 1, "ghost": 1}


@pytest.mark.parametrize("filled", [True, False])
def test_phantom_is_refused_when_serializable(gantry, call, filled):
    if filled:
        meanwhile(gantry, x=1)
    with pytest.raises(MemoryConflictError):
        call(gantry, phantom(gantry), isolation="serializable")
    assert content(gantry) == {"x": 1, "ghost": 1} if filled else {"ghost": 1}


def test_phantom_that_keys_do_not_name_is_no_concern(gantry, call):
    meanwhile(gantry, x=1)
    call(gantry, phantom(gantry), isolation="serializable", keys=("x", "count"))
    assert content(gantry) == {"x": 1, "count": 1, "ghost": 1}


@pytest.mark.parametrize("filled", [True, False])
def test_phantom_that_keys_name_is_refused(gantry, call, filled):
    if filled:
        meanwhile(gantry, x=1)
    with pytest.raises(MemoryConflictError) as caught:
        call(gantry, phantom(gantry), isolation="serializable", keys=("x", "count", "ghost"))
    assert caught.value.keys == ("ghost",)
    assert content(gantry) == ({"x": 1, "ghost": 1} if filled else {"ghost": 1})


# What is no change.


@pytest.mark.parametrize("keys", [None, ("x", "y", "gone")])
def test_touch_of_another_call_is_no_change(gantry, call, keys):
    now = [1000.0]
    reader = gantry.with_memory(ttl=10.0, sliding=True)(lambda memory: dict(memory))

    def body(memory):
        memory["y"] = memory["x"]
        now[0] += 5
        with gantry.independent():
            reader()

    with gantry.override(clock=lambda: now[0]):
        gantry.with_memory(ttl=10.0, sliding=True)(lambda memory: memory.update(x=1))()
        call(gantry, body, isolation="serializable", keys=keys)
        assert content(gantry) == {"x": 1, "y": 1}
        now[0] += 6
        # The touch has counted.
        assert content(gantry) == {"x": 1, "y": 1}


@pytest.mark.parametrize("keys", [None, ("x", "y", "gone")])
@pytest.mark.parametrize("others", [True, False])
def test_expiry_is_no_change(gantry, call, keys, others):
    now = [1000.0]

    def body(memory):
        memory["y"] = memory["gone"]
        now[0] += 20

    with gantry.override(clock=lambda: now[0]):
        if others:
            meanwhile(gantry, x=1)
        gantry.with_memory(lambda memory: memory.set("gone", 5, 10.0))()
        call(gantry, body, isolation="serializable", keys=keys)
        assert content(gantry) == ({"x": 1, "y": 5} if others else {"y": 5})


@pytest.mark.parametrize("keys", [None, ("x", "y")])
def test_new_deadline_from_another_call_is_a_change(gantry, call, keys):
    def body(memory):
        memory["y"] = memory["x"]
        with gantry.independent(), gantry.memory() as other:
            other.expire("x", 60.0)

    meanwhile(gantry, x=1)
    with pytest.raises(MemoryConflictError):
        call(gantry, body, isolation="serializable", keys=keys)


def test_call_that_changes_nothing_meanwhile_is_no_change(gantry, call):
    def body(memory):
        memory["y"] = memory["x"]
        meanwhile(gantry, x=1)
        content(gantry)

    meanwhile(gantry, x=1)
    call(gantry, body, isolation="serializable")
    assert content(gantry) == {"x": 1, "y": 1}


# Calls inside calls.


@pytest.mark.parametrize("writes", [True, False])
def test_serializable_child_has_the_commit_of_the_outer_one_checked(gantry, call, writes):
    @gantry.with_memory(isolation="serializable")
    def child(memory):
        if writes:
            memory["y"] = memory["x"]
        return memory["x"]

    def outer(memory):
        memory["z"] = child()
        meanwhile(gantry, x=2)

    for scope in ("session", "user"):
        meanwhile(gantry, x=1)
        with pytest.raises(MemoryConflictError):
            call(gantry, outer, scope=scope)
        assert content(gantry) == {"x": 2}
        assert content(gantry, "user") == {}


def test_serializable_child_that_failed_has_nothing_checked(gantry, call):
    @gantry.with_memory(isolation="serializable")
    def child(memory):
        memory["y"] = 1
        raise RuntimeError("the tool's own")

    def outer(memory):
        with pytest.raises(RuntimeError):
            child()
        memory["z"] = 1
        meanwhile(gantry, x=2)

    meanwhile(gantry, x=1)
    call(gantry, outer)
    assert content(gantry) == {"x": 2, "z": 1}


def test_serializable_child_of_keys_has_only_those_checked(gantry, call):
    @gantry.with_memory(isolation="serializable", keys=("x",))
    def child(memory):
        return memory["x"]

    def outer(key):
        def body(memory):
            memory["z"] = f"{child()} and {key}"
            meanwhile(gantry, **{key: 2})

        return body

    meanwhile(gantry, x=1)
    call(gantry, outer("other"))
    with pytest.raises(MemoryConflictError) as caught:
        call(gantry, outer("x"))
    assert caught.value.keys == ("x",)
    assert content(gantry) == {"x": 2, "other": 2, "z": "1 and other"}


@pytest.mark.anyio
@pytest.mark.parametrize("isolation", ["snapshot", "serializable"])
async def test_write_skew_of_parallel_children(gantry, isolation):
    both_have_read, readers = anyio.Event(), []
    refused = []

    @gantry.with_memory(isolation=isolation)
    async def child(who, other, memory):
        if memory[other]:
            readers.append(who)
            if len(readers) == 2:
                both_have_read.set()
            await both_have_read.wait()
            memory[who] = False

    async def watched(who, other):
        try:
            await child(who, other)
        except MemoryConflictError as error:
            refused.append(error)

    @gantry.with_memory
    async def outer(memory):
        async with anyio.create_task_group() as group:
            group.start_soon(watched, "alice", "bob")
            group.start_soon(watched, "bob", "alice")

    meanwhile(gantry, alice=True, bob=True)
    await outer()

    assert len(refused) == (isolation == "serializable")
    assert sum(content(gantry).values()) == len(refused)


# Key by key.


def test_serializable_session_is_checked_as_a_whole(gantry):
    @gantry.with_session(isolation="serializable")
    def tool(key, session: SyncSession):
        session.set("y", session.get("x"))
        meanwhile(gantry, **{key: 2})

    meanwhile(gantry, x=1)
    for key in ("x", "phantom"):
        with pytest.raises(MemoryConflictError):
            tool(key)
    assert content(gantry) == {"x": 2, "phantom": 2}


@pytest.mark.anyio
async def test_serializable_session_sees_what_changed_between_two_gets(gantry):
    @gantry.with_session(isolation="serializable")
    async def tool(session: Session):
        alice = await session.get("alice")
        meanwhile(gantry, alice=2, bob=2)
        await session.set("sum", alice + await session.get("bob"))

    meanwhile(gantry, alice=1, bob=1)
    with pytest.raises(MemoryConflictError):
        await tool()
    assert content(gantry) == {"alice": 2, "bob": 2}


@pytest.mark.parametrize("keys", [("a", "b"), ("a", "absent"), ("absent", "b")])
def test_serializable_session_that_only_read_is_refused_if_it_changed_between_two_gets(gantry, keys):
    @gantry.with_session(isolation="serializable")
    def tool(session: SyncSession):
        first = session.get(keys[0])
        meanwhile(gantry, a=2, b=2)
        return first, session.get(keys[1])

    meanwhile(gantry, a=1, b=1)
    with pytest.raises(MemoryConflictError):
        tool()


def test_serializable_session_that_only_read_lands_if_nothing_changed_between_two_gets(gantry):
    @gantry.with_session(isolation="serializable")
    def tool(session: SyncSession):
        first = session.get("a")
        meanwhile(gantry, "user", a=2)
        return first, session.get("b")

    meanwhile(gantry, a=1, b=1)
    assert tool() == (1, 1)


# Memories that are loaded one after the other.


@pytest.mark.parametrize("kind", ["tool inside", "two sessions", "keys"])
def test_serializable_call_that_only_read_saw_its_memories_as_they_were_at_one_moment(gantry, kind):
    @gantry.with_memory(scope="user", into="mine", isolation="serializable", keys=("a",) if kind == "keys" else None)
    def inside(mine):
        return mine["a"]

    @gantry.with_memory(isolation="serializable", keys=("a",) if kind == "keys" else None)
    def outside(meet, memory):
        first = memory["a"]
        meet()
        return first, inside()

    @gantry.with_session(isolation="serializable")
    @gantry.with_session(scope="user", into="mine", isolation="serializable")
    def by_key(meet, session: SyncSession, mine: SyncSession):
        first = session.get("a")
        meet()
        return first, mine.get("a")

    @gantry.with_memory
    @gantry.with_memory(scope="user", into="mine")
    def both(value, memory, mine):
        memory["a"] = mine["a"] = value

    def meet():
        with gantry.independent():
            both(2)

    tool = by_key if kind == "two sessions" else outside
    both(1)
    with pytest.raises(MemoryConflictError):
        tool(meet)
    both(1)
    assert tool(lambda: None) == (1, 1)
    both(1)
    # What has moved before it was loaded is no matter.
    assert tool(lambda: meanwhile(gantry, "user", a=3)) == (1, 3)


# keys=.


def test_only_the_keys_that_are_named_are_loaded(gantry, call, loads):
    def body(memory):
        memory["x"] += 1
        return dict(memory)

    meanwhile(gantry, x=1, big="b" * 1000, y=3)
    loads.clear()
    assert call(gantry, body, keys=("x", "y", "absent")) == {"x": 2, "y": 3}
    assert loads == [(("x", "y", "absent"),)]
    assert content(gantry) == {"x": 2, "big": "b" * 1000, "y": 3}


@pytest.mark.parametrize(
    "change",
    [
        lambda memory: memory.update(big=1),
        lambda memory: memory.update(new=1),
        lambda memory: memory.setdefault("big", []).append(1),
        lambda memory: memory.add("new"),
        lambda memory: memory.set("big", 1, 5.0),
        lambda memory: dict.__setitem__(memory, "new", 1),
    ],
)
def test_write_to_a_key_that_is_not_named_writes_nothing(gantry, call, change):
    def body(memory):
        memory["x"] = 2
        change(memory)

    meanwhile(gantry, x=1, big=[])
    with pytest.raises(UndeclaredKeyError) as caught:
        call(gantry, body, keys=("x",))
    assert caught.value.key in str(caught.value)
    assert (caught.value.key in ("big", "new"), caught.value.scope, caught.value.committed) == (True, "session", False)
    assert content(gantry) == {"x": 1, "big": []}


def test_undeclared_key_that_was_taken_back_is_no_write(gantry, call):
    def body(memory):
        memory["scratch"] = 1
        del memory["scratch"]
        memory["x"] = 2

    meanwhile(gantry, x=1)
    call(gantry, body, keys=("x",))
    assert content(gantry) == {"x": 2}


def test_clear_deletes_the_named_keys_only(gantry, call):
    meanwhile(gantry, x=1, y=2)
    call(gantry, lambda memory: memory.clear(), keys=("x",))
    assert content(gantry) == {"y": 2}


def test_undeclared_key_in_one_memory_keeps_the_other_from_being_written(gantry):
    @gantry.with_memory(keys=("x",))
    @gantry.with_memory(scope="user", into="mine")
    def tool(memory, mine):
        mine["x"] = 1
        memory["y"] = 1

    with pytest.raises(UndeclaredKeyError):
        tool()
    assert (content(gantry), content(gantry, "user")) == ({}, {})


def test_keys_of_stacked_decorators_are_joined(gantry, loads):
    @gantry.with_memory(keys=("x", "y"))
    @gantry.with_memory(keys=("y", "z"), into="more")
    def tool(memory, more):
        assert memory is more
        memory["z"] = memory["x"]
        more["x"] = 5

    meanwhile(gantry, x=1, other=1)
    loads.clear()
    tool()
    assert [sorted(keys) for (keys,) in loads] == [["x", "y", "z"]]
    assert content(gantry) == {"x": 5, "other": 1, "z": 1}


def test_stacked_decorator_without_keys_takes_all(gantry):
    @gantry.with_memory(keys=("x",))
    @gantry.with_memory(into="more")
    def tool(memory, more):
        memory["y"] = more["other"]

    meanwhile(gantry, other=1)
    tool()
    assert content(gantry) == {"other": 1, "y": 1}


def test_stacked_serializable_decorator_has_its_keys_checked(gantry):
    """What one decorator wants unchanged stays so, whatever another one says of the same memory."""

    @gantry.with_memory(keys=("x",), isolation="serializable")
    @gantry.with_memory(keys=("y",), into="more")
    def tool(memory, more):
        more["y"] = memory["x"]
        meanwhile(gantry, x=2)

    meanwhile(gantry, x=1)
    with pytest.raises(MemoryConflictError) as caught:
        tool()
    assert caught.value.keys == ("x",)


def test_keys_keep_their_order_and_place(gantry, call):
    def body(memory):
        assert list(memory) == ["b", "c"]
        memory["b"] = memory["c"] = 2

    meanwhile(gantry, a=1, b=1, c=1)
    call(gantry, body, keys=("c", "b"))
    assert list(content(gantry)) == ["a", "b", "c"]


def test_other_keys_that_moved_are_no_conflict(gantry, call):
    def body(memory):
        memory["x"] += 1
        meanwhile(gantry, y=5, z=5)

    meanwhile(gantry, x=1, y=1)
    call(gantry, body, keys=("x",), isolation="serializable")
    assert content(gantry) == {"x": 2, "y": 5, "z": 5}


def test_child_may_write_keys_that_the_outer_one_does_not_name(gantry, call):
    child = gantry.with_memory(lambda memory: memory.update(y=1))

    def outer(memory):
        memory["x"] = 1
        child()
        assert "y" not in memory or memory["y"] == 1

    call(gantry, outer, keys=("x",))
    assert content(gantry) == {"x": 1, "y": 1}


def test_undeclared_key_of_a_child_leaves_the_outer_one_as_it_was(gantry, call):
    child = gantry.with_memory(keys=("y",))(lambda memory: memory.update(y=1, z=1))

    def outer(memory):
        memory["x"] = 1
        with pytest.raises(UndeclaredKeyError):
            child()

    call(gantry, outer)
    assert content(gantry) == {"x": 1}


@pytest.mark.parametrize("keys", ["cwd", b"cwd", (), (1,), ("a", None), 5])
def test_keys_must_be_names(gantry, keys):
    with pytest.raises(DeclarationError, match="keys"):
        gantry.with_memory(keys=keys)


@pytest.mark.parametrize("isolation", ["Serializable", "", None, True])
def test_isolation_must_be_known(gantry, isolation):
    with pytest.raises(DeclarationError, match="isolation"):
        gantry.with_memory(isolation=isolation)


# Counting by hand.


@pytest.mark.parametrize("first", [None, 1])
def test_call_that_runs_again_counts_by_hand_without_losing_one(gantry, call, first):
    if first is not None:
        meanwhile(gantry, n=first)
    runs = []

    def count(memory):
        memory["n"] = memory.get("n", 0) + 1
        if not runs:
            runs.append(1)
            with gantry.independent():
                meanwhile(gantry, n=memory["n"])

    call(gantry, count, on_conflict="retry")

    assert content(gantry)["n"] == (first or 0) + 2


def test_two_calls_that_count_by_hand_from_one_number_conflict(gantry, call):
    meanwhile(gantry, n=1)

    def count(memory):
        memory["n"] += 1
        with gantry.independent():
            meanwhile(gantry, n=2)

    with pytest.raises(MemoryConflictError):
        call(gantry, count)
