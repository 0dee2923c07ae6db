"""A session key by key: what is loaded, what is written, and that it is the call's own unit of work."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from typing import Annotated

import anyio
import anyio.to_thread
import pytest
from support import STORES, Blocking, closing, commit, committed

from agent_gantry_state import (
    CallEndedError,
    DeclarationError,
    Gantry,
    InjectedArgumentError,
    MemoryConflictError,
    MemoryErasedError,
    MissingIdentityError,
    Scope,
    Session,
    SessionOwnerError,
    StoreClosedError,
    SyncSession,
    UnstorableValueError,
    merge,
)
from agent_gantry_state.stores.protocol import Commit, Load


@pytest.fixture(params=STORES)
def gantry(request):
    made = Gantry(STORES[request.param](), session="s")
    with closing(made):
        yield made


@pytest.fixture
def recording():
    return Blocking()


@pytest.fixture
def recorded(recording):
    with Gantry(recording, session="s") as made:
        yield made


def stored(gantry, scope="session", **who):
    return committed(gantry, scope, **(who or {"session": "s"}))


def interfere(gantry, *delete, scope="session", **values):
    commit(gantry, scope, {"session": "s", "user": None if scope == "session" else "ada"}, values, delete)


def erase(gantry):
    gantry.end_session("s")


# The operations, for sync and async tools.


def test_sync_session_gets_sets_deletes_adds_and_lists(gantry):
    @gantry.with_session
    def tool(session):
        assert type(session) is SyncSession
        assert (session.get("a"), session.get("a", 5), session.get("a", default=[])) == (None, 5, [])
        assert session.set("a", 1) is None
        session.set("b", {"deep": [1]})
        assert (session.get("a"), session.get("b"), session.get("a", 5)) == (1, {"deep": [1]}, 1)
        assert (session.add("n"), session.add("n", 2.5), session.add("n", n=-1)) == (1, 3.5, 2.5)
        assert session.keys() == ["a", "b", "n"]
        assert (session.delete("a"), session.delete("a"), session.delete("missing")) == (True, False, False)
        assert session.keys() == ["b", "n"]
        assert session.get("a", "gone") == "gone"
        session.set("a", None)
        assert session.get("a", "gone") is None
        return "done"

    assert tool() == "done"

    assert stored(gantry) == {"b": {"deep": [1]}, "n": 2.5, "a": None}
    assert list(stored(gantry)) == ["b", "n", "a"]


@pytest.mark.anyio
async def test_async_session_gets_sets_deletes_adds_and_lists(gantry):
    @gantry.with_session
    async def tool(session):
        assert type(session) is Session
        assert (await session.get("a"), await session.get("a", 5), await session.get("a", default=[])) == (None, 5, [])
        assert await session.set("a", 1) is None
        await session.set("b", {"deep": [1]})
        assert (await session.get("a"), await session.get("b"), await session.get("a", 5)) == (1, {"deep": [1]}, 1)
        assert (await session.add("n"), await session.add("n", 2.5), await session.add("n", n=-1)) == (1, 3.5, 2.5)
        assert await session.keys() == ["a", "b", "n"]
        assert (await session.delete("a"), await session.delete("a"), await session.delete("no")) == (True, False, False)
        assert await session.keys() == ["b", "n"]
        await session.set("a", None)
        assert await session.get("a", "gone") is None
        return "done"

    assert await tool() == "done"

    async with gantry.memory() as memory:
        assert memory == {"b": {"deep": [1]}, "n": 2.5, "a": None}
        assert list(memory) == ["b", "n", "a"]


def test_what_one_call_wrote_the_next_one_finds(gantry):
    @gantry.with_session
    def note(text, session):
        session.set("notes", [*session.get("notes", []), text])
        return session.get("notes")

    assert (note("a"), note(text="b")) == (["a"], ["a", "b"])


def test_change_inside_a_container_that_it_gave_is_kept(gantry):
    interfere(gantry, log=["a"], deep={"x": {"y": {1}}}, other=1)

    @gantry.with_session
    def tool(session):
        session.get("log").append("b")
        session.get("deep")["x"]["y"].add(2)
        assert session.get("log") == ["a", "b"]

    tool()

    assert stored(gantry) == {"log": ["a", "b"], "deep": {"x": {"y": {1, 2}}}, "other": 1}


def test_default_that_was_changed_is_not_stored(gantry):
    gantry.with_session(lambda session: session.get("log", []).append(1))()

    assert stored(gantry) == {}


def test_value_that_was_set_is_no_alias_of_what_others_hold(gantry):
    value = ["a"]

    @gantry.with_session
    def tool(session):
        session.set("log", value)
        value.append("b")

    tool()
    value.append("late")

    assert stored(gantry) == {"log": ["a", "b"]}


# All or nothing.


def change_everything(session):
    session.set("new", 1)
    session.set("a", 2)
    session.get("log").append("x")
    session.add("n", 5)
    session.delete("gone")


BEFORE = {"a": 1, "log": ["a"], "n": 1, "gone": 1}


@pytest.mark.parametrize("fails", ["raises", "unstorable"])
def test_failing_tool_changes_nothing(gantry, fails):
    interfere(gantry, **BEFORE)

    @gantry.with_session
    def tool(session):
        change_everything(session)
        if fails == "raises":
            raise ValueError("the body failed")
        session.set("bad", {"deep": [object()]})

    with pytest.raises(ValueError if fails == "raises" else UnstorableValueError) as caught:
        tool()

    assert stored(gantry) == BEFORE
    if fails == "unstorable":
        assert "['bad']['deep'][0]" in caught.value.path


@pytest.mark.anyio
async def test_failing_or_cancelled_async_tool_changes_nothing(gantry):
    await anyio.to_thread.run_sync(lambda: interfere(gantry, **BEFORE))

    @gantry.with_session
    async def tool(session, cancel):
        await session.set("new", 1)
        (await session.get("log")).append("x")
        await session.add("n", 5)
        await session.delete("gone")
        if cancel is None:
            raise ValueError("the body failed")
        cancel.cancel()
        await session.get("a")
        await anyio.sleep_forever()

    with pytest.raises(ValueError, match="body"):
        await tool(cancel=None)
    with anyio.CancelScope() as scope:
        await tool(cancel=scope)

    assert scope.cancelled_caught
    async with gantry.memory() as memory:
        assert memory == BEFORE


def test_nobody_sees_a_write_before_the_call_has_ended(gantry):
    interfere(gantry, **BEFORE)

    @gantry.with_session
    def tool(session):
        change_everything(session)
        assert stored(gantry) == BEFORE

    tool()

    assert stored(gantry) == {"a": 2, "log": ["a", "x"], "n": 6, "new": 1}


# Nothing is loaded that was not asked for.


def test_tool_that_asks_for_nothing_loads_and_commits_nothing(recorded, recording):
    assert recorded.with_session(lambda session: 5)() == 5

    assert recording.messages == []


def test_each_operation_loads_the_key_that_it_names_once(recorded, recording):
    interfere(recorded, **{f"k{i}": "x" * 1000 for i in range(10)})
    recording.messages.clear()

    @recorded.with_session
    def tool(session):
        session.get("k1")
        session.get("k1")
        session.set("k2", 1)
        session.get("k2")
        session.add("new", 1)
        session.add("new", 1)
        session.delete("k3")
        session.get("missing")
        session.get("missing")
        session.set("k1", 5)

    tool()

    assert recording.loaded_keys() == [((key,),) for key in ("k1", "k2", "new", "k3", "missing")]
    assert not any(message.names for message in recording.asked(Load))
    (commit,) = recording.asked(Commit)
    (change,) = commit.changes
    assert (set(change.puts), set(change.deletes)) == ({"k1", "k2", "new"}, {"k3"})
    assert set(change.checks) == {"k1", "k2", "new", "k3"}
    assert change.whole is False


def test_keys_loads_names_and_no_values(recorded, recording):
    interfere(recorded, a=[1], b=2)
    recording.messages.clear()

    @recorded.with_session
    def tool(session):
        names = session.keys()
        session.get("a")
        return names

    assert tool() == ["a", "b"]

    names, key = recording.asked(Load)[-2:]
    assert (names.keys, names.names) == (((),), True)
    assert (key.keys, key.names) == ((("a",),), False)
    assert all(message.keys != (None,) and message.keys is not None for message in recording.asked(Load))
    assert recording.asked(Commit) == []


def test_only_reading_commits_nothing(recorded, recording):
    interfere(recorded, **BEFORE)
    recording.messages.clear()

    @recorded.with_session
    def tool(session):
        session.set("a", 1)
        session.delete("missing")
        return session.get("log"), session.keys()

    assert tool() == (["a"], ["a", "log", "n", "gone"])
    assert recording.asked(Commit) == []


def test_each_get_reads_when_it_is_called_and_a_key_that_was_read_stays(gantry):
    interfere(gantry, a=1, b=1)

    @gantry.with_session
    def tool(session):
        first = session.get("a"), session.get("missing")
        interfere(gantry, a=2, b=2, missing=2)
        return first, session.get("b"), session.get("a"), session.get("missing")

    assert tool() == ((1, None), 2, 1, None)


# Names.


def test_keys_are_in_the_order_in_which_they_were_made_ours_last(gantry):
    interfere(gantry, z=1, y=2, x=3, w=4)

    @gantry.with_session
    def tool(session):
        session.set("new", 1)
        session.set("y", 5)
        session.delete("x")
        session.add("m", 1)
        session.delete("z")
        session.set("z", 1)
        return session.keys()

    told = tool()

    assert told == list(stored(gantry)) == ["y", "w", "new", "m", "z"]


def test_keys_shows_what_others_made_meanwhile_but_not_what_this_call_deleted(gantry):
    interfere(gantry, a=1, b=1)

    @gantry.with_session
    def tool(session):
        session.delete("a")
        session.set("ours", 1)
        before = session.keys()
        interfere(gantry, "b", theirs=1)
        return before, session.keys()

    assert tool() == (["b", "ours"], ["theirs", "ours"])
    assert stored(gantry) == {"theirs": 1, "ours": 1}


def test_keys_of_an_empty_session_is_a_list_of_ones_own(gantry):
    @gantry.with_session
    def tool(session):
        names = session.keys()
        names.append("junk")
        return session.keys()

    assert tool() == []
    assert stored(gantry) == {}


# Time to live.


def test_key_with_a_time_to_live_is_gone_when_it_is_over():
    now = [1000.0]
    scopes = {"session": Scope(ttl=50)}
    with Gantry(session="s", scopes=scopes) as gantry, gantry.override(clock=lambda: now[0]):

        @gantry.with_session
        def writes(session):
            session.set("short", 1, ttl=10)
            session.set("by position", 1, 20)
            session.set("usual", 1)
            session.set("for ever", 1, ttl=None)
            session.add("n", 1)

        @gantry.with_session
        def reads(session):
            names = session.keys()
            assert [key for key in ("short", "by position", "usual", "for ever", "n") if session.get(key)] == names
            return names

        writes()
        found = []
        for seconds in (9.9, 0.1, 10, 29.9, 0.1, 10_000):
            now[0] += seconds
            found.append(reads())

    everything = ["short", "by position", "usual", "for ever", "n"]
    assert found == [everything, everything[1:], everything[2:], everything[2:], ["for ever"], ["for ever"]]


def test_declared_time_to_live_holds_and_slides_with_each_use():
    now = [1000.0]
    with Gantry(session="s") as gantry, gantry.override(clock=lambda: now[0]):
        writes = gantry.with_session(ttl=10, sliding=True)(lambda session: session.set("a", 1))
        reads = gantry.with_session(ttl=10, sliding=True)(lambda session: session.get("a"))

        writes()
        found = []
        for seconds in (9, 9, 9, 10.1):
            now[0] += seconds
            found.append(reads())

    assert found == [1, 1, 1, None]


@pytest.mark.parametrize(
    ("ttl", "error"), [(0, ValueError), (-1, ValueError), (float("inf"), ValueError), ("60", TypeError)]
)
def test_impossible_time_to_live_is_refused_and_nothing_is_set(gantry, ttl, error):
    @gantry.with_session
    def tool(session):
        with pytest.raises(error, match="ttl must be"):
            session.set("a", 1, ttl=ttl)
        return session.get("a")

    assert tool() is None
    assert stored(gantry) == {}


# Others at the same time.


def test_parallel_adds_and_appends_are_merged(gantry):
    interfere(gantry, n=10, log=["base"])

    @gantry.with_session
    def tool(session):
        session.add("n", 5)
        session.add("fresh", 1)
        session.get("log").append("ours")
        interfere(gantry, n=11, log=["base", "theirs"], fresh=7, other=1)

    tool()

    assert stored(gantry) == {"n": 16, "log": ["base", "theirs", "ours"], "fresh": 8, "other": 1}


@pytest.mark.anyio
async def test_fifty_parallel_calls_lose_nothing(gantry):
    @gantry.with_session
    async def tool(item, session):
        log = await session.get("log")
        if log is None:
            await session.set("log", log := [])
        log.append(item)
        await anyio.sleep(0)
        await session.add("n", 1)

    async with anyio.create_task_group() as tasks:
        for item in range(50):
            tasks.start_soon(tool, item)

    async with gantry.memory() as memory:
        assert sorted(memory["log"]) == list(range(50))
        assert memory["n"] == 50


@pytest.mark.parametrize("ours", ["set", "delete"])
def test_key_that_both_assigned_is_a_conflict_that_names_it_and_writes_nothing(gantry, ours):
    interfere(gantry, plan="base", ok=1)

    @gantry.with_session
    def tool(session):
        session.set("ok", 2)
        if ours == "set":
            session.set("plan", "ours")
        else:
            session.delete("plan")
        interfere(gantry, plan="theirs")

    with pytest.raises(MemoryConflictError) as caught:
        tool()

    assert (caught.value.keys, caught.value.committed) == (("plan",), False)
    assert stored(gantry) == {"plan": "theirs", "ok": 1}


def test_key_that_was_only_read_may_change_meanwhile(gantry):
    interfere(gantry, read=1)

    @gantry.with_session
    def tool(session):
        session.set("copy", session.get("read"))
        interfere(gantry, read=2)

    tool()

    assert stored(gantry) == {"read": 2, "copy": 1}


def test_declared_merge_holds(gantry):
    @gantry.with_session(merge={"best": merge.max})
    def tool(session, score):
        session.set("best", score)
        interfere(gantry, best=5)

    tool(9)
    assert stored(gantry) == {"best": 9}
    tool(2)
    assert stored(gantry) == {"best": 5}


def test_conflict_that_is_retried_runs_the_body_again_in_a_session_of_its_own(gantry):
    sessions, plans = [], []

    @gantry.with_session(on_conflict="retry", retries=2)
    def tool(session):
        sessions.append(session)
        plans.append(session.get("plan"))
        session.set("plan", "ours")
        if len(plans) < 3:
            interfere(gantry, plan=f"theirs {len(plans)}")

    tool()

    assert plans == [None, "theirs 1", "theirs 2"]
    with pytest.raises(CallEndedError):
        sessions[0].get("plan")
    assert stored(gantry) == {"plan": "ours"}


def test_serializable_session_refuses_any_change_meanwhile(gantry):
    interfere(gantry, a=1)

    @gantry.with_session(isolation="serializable")
    def tool(session, meddle):
        session.set("copy", session.get("a"))
        if meddle:
            interfere(gantry, phantom=1)

    with pytest.raises(MemoryConflictError):
        tool(meddle=True)
    tool(meddle=False)

    assert stored(gantry) == {"a": 1, "phantom": 1, "copy": 1}


def test_exclusive_session_is_one_callers_at_a_time_and_still_loads_key_by_key(recorded, recording):
    interfere(recorded, **BEFORE)
    recording.messages.clear()

    @recorded.with_session(exclusive=True)
    def tool(session):
        return session.get("a")

    assert tool() == 1
    assert recording.loaded_keys() == [((),), (("a",),)]


# Erased, ended, not ours.


def test_session_that_was_erased_between_two_gets_is_an_error(gantry):
    interfere(gantry, a=1, b=2)

    @gantry.with_session
    def tool(session):
        assert session.get("a") == 1
        erase(gantry)
        return session.get("b")

    with pytest.raises(MemoryErasedError) as caught:
        tool()

    assert (caught.value.scope, caught.value.committed) == ("session", False)


def test_session_that_was_erased_and_made_anew_between_two_gets_is_an_error(gantry):
    interfere(gantry, a=1, b=2)

    @gantry.with_session
    def tool(session):
        assert session.get("a") == 1
        erase(gantry)
        interfere(gantry, b="another's")
        return session.get("b")

    with pytest.raises(MemoryErasedError):
        tool()

    assert stored(gantry) == {"b": "another's"}


@pytest.mark.parametrize("write", ["add", "set", "append"])
def test_erased_session_does_not_come_back_with_the_commit(gantry, write):
    interfere(gantry, n=1, log=[1])

    @gantry.with_session
    def tool(session):
        if write == "add":
            session.add("n", 1)
        elif write == "set":
            session.set("n", 1.5)
        else:
            session.get("log").append(2)
        erase(gantry)

    with pytest.raises(MemoryErasedError):
        tool()

    assert stored(gantry) == {}


def test_session_that_began_empty_takes_what_others_wrote_since(gantry):
    @gantry.with_session
    def tool(session):
        assert session.get("a") is None
        interfere(gantry, b=1)
        session.set("c", session.get("b"))

    tool()

    assert stored(gantry) == {"b": 1, "c": 1}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        lambda session: session.get("a"),
        lambda session: session.set("a", 2),
        lambda session: session.delete("a"),
        lambda session: session.keys(),
        lambda session: session.add("n"),
        lambda session: session.get("never seen"),
    ],
)
def test_session_is_of_no_use_after_its_call(gantry, use, fails):
    kept = []

    @gantry.with_session
    def tool(session):
        kept.append(session)
        session.set("a", 1)
        if fails:
            raise ValueError("the body failed")

    with contextlib.suppress(ValueError):
        tool()

    with pytest.raises(CallEndedError, match=r"session.*has ended.*gantry\.memory") as caught:
        use(kept[0])
    assert caught.value.committed is False
    assert stored(gantry) == ({} if fails else {"a": 1})


@pytest.mark.anyio
async def test_async_session_is_of_no_use_after_its_call(gantry):
    @gantry.with_session
    async def tool(session):
        await session.set("a", 1)
        return session

    session = await tool()

    for operation in (
        lambda: session.get("a"),
        lambda: session.set("a", 2),
        lambda: session.delete("a"),
        lambda: session.keys(),
        lambda: session.add("n"),
    ):
        with pytest.raises(CallEndedError):
            await operation()
    async with gantry.memory() as memory:
        assert memory == {"a": 1}


@pytest.mark.anyio
async def test_task_that_outlives_its_call_can_write_no_more(gantry):
    go_on, refused = anyio.Event(), []

    async def late(session):
        await go_on.wait()
        with pytest.raises(CallEndedError) as caught:
            await session.set("late", 1)
        refused.append(caught.value)

    async with anyio.create_task_group() as tasks:

        @gantry.with_session
        async def tool(session):
            await session.set("a", 1)
            tasks.start_soon(late, session)

        await tool()
        go_on.set()

    assert len(refused) == 1
    async with gantry.memory() as memory:
        assert memory == {"a": 1}


class Held(Blocking):
    """Answers a load when it may."""

    def __init__(self):
        super().__init__()
        self.asked_for, self.may_answer = threading.Event(), threading.Event()

    def load(self, message, /):
        if message.keys == (("late",),):
            self.asked_for.set()
            assert self.may_answer.wait(10)
        return super().load(message)


@pytest.mark.anyio
@pytest.mark.parametrize("use", ["get", "set", "add", "delete"])
async def test_operation_that_is_still_loading_when_its_call_ends_is_refused(use):
    store, refused = Held(), []

    async def late(session):
        with pytest.raises(CallEndedError) as caught:
            await getattr(session, use)("late", *([1] if use == "set" else []))
        refused.append(caught.value)

    async with Gantry(store, session="s") as gantry, anyio.create_task_group() as tasks:

        @gantry.with_session
        async def tool(session):
            tasks.start_soon(late, session)
            await anyio.to_thread.run_sync(store.asked_for.wait, 10)
            await session.set("a", 1)

        await tool()
        store.may_answer.set()

    assert len(refused) == 1
    with Gantry(store.inner) as gantry:
        assert stored(gantry) == {"a": 1}


def test_session_of_somebody_else_is_refused_at_each_operation(gantry):
    with gantry.session("hers", user="ada"):
        gantry.with_session(lambda session: session.set("a", 1))()

    @gantry.with_session
    def tool(session, operation):
        return operation(session)

    for who in ({}, {"user": "bob"}):
        for operation in (
            lambda session: session.get("a"),
            lambda session: session.keys(),
            lambda session: session.set("a", 2),
            lambda session: session.add("n"),
            lambda session: session.delete("a"),
        ):
            with gantry.session("hers", **who), pytest.raises(SessionOwnerError) as caught:
                tool(operation)
            assert caught.value.scope == "session"
    assert stored(gantry, session="hers", user="ada") == {"a": 1}


def test_session_binds_to_who_first_writes_and_not_to_who_reads(gantry):
    reads = gantry.with_session(lambda session: (session.get("a"), session.keys()))
    writes = gantry.with_session(lambda session: session.set("a", 1))

    with gantry.session("new", user="bob"):
        assert reads() == (None, [])
    with gantry.session("new", user="ada"):
        writes()
    with gantry.session("new", user="bob"), pytest.raises(SessionOwnerError):
        reads()


def test_no_known_session_is_an_error_before_the_body_runs():
    ran = []
    with Gantry() as gantry, pytest.raises(MissingIdentityError, match="no session"):
        gantry.with_session(lambda session: ran.append(1))()
    assert ran == []


def test_closed_gantry_refuses_an_operation():
    gantry = Gantry(session="s")

    @gantry.with_session
    def tool(session):
        session.set("a", 1)

    gantry.close()

    with pytest.raises(StoreClosedError):
        tool()


@pytest.mark.parametrize("key", [5, None, b"a", ("a",)])
def test_key_that_is_no_str_is_refused_without_asking_the_store(recorded, recording, key):
    @recorded.with_session
    def tool(session):
        for operation in (
            lambda: session.get(key),
            lambda: session.set(key, 1),
            lambda: session.delete(key),
            lambda: session.add(key),
        ):
            with pytest.raises(UnstorableValueError, match=r"keys are str.*str"):
                operation()

    tool()

    assert recording.messages == []


@pytest.mark.parametrize(("there", "n"), [("text", 1), (1, "1"), (True, 1), (1, True), ([1], 1), (None, 1)])
def test_add_to_what_is_no_number_is_refused_and_leaves_it(gantry, there, n):
    interfere(gantry, n=there)

    @gantry.with_session
    def tool(session):
        with pytest.raises(TypeError, match="add"):
            session.add("n", n)

    tool()

    assert stored(gantry) == {"n": there}


# Other scopes, and beside other decorators.


@pytest.mark.parametrize("scope", ["user", "global", "tool", "tenant"])
def test_session_object_gives_the_keys_of_any_scope(gantry, scope):
    @gantry.with_session(scope=scope, into="keys")
    def tool(keys):
        keys.set("x", 1)
        return keys.keys()

    with gantry.session("s", user="ada", tenant="acme"):
        assert tool() == ["x"]

    assert stored(gantry, scope, user="ada", tenant="acme", **({"tool": tool.__qualname__} if scope == "tool" else {})) == {
        "x": 1
    }
    assert stored(gantry) == {}


ORDERS = pytest.mark.parametrize("order", ["session above", "memory above"])


def both_ways(decorators, order, fn):
    for decorator in decorators if order == "memory above" else reversed(decorators):
        fn = decorator(fn)
    return fn


@ORDERS
def test_session_beside_a_memory_is_the_same_data(gantry, order):
    interfere(gantry, log=["a"], n=1)

    def tool(memory, session):
        assert session.get("log") is memory["log"]
        session.get("log").append("b")
        memory["by memory"] = 1
        session.set("by session", 1)
        assert (session.get("by memory"), memory["by session"]) == (1, 1)
        assert (memory.add("n", 1), session.add("n", 1)) == (2, 3)
        session.delete("by memory")
        assert "by memory" not in memory
        assert session.keys() == list(memory) == ["log", "n", "by session"]

    both_ways([gantry.with_session, gantry.with_memory], order, tool)()

    assert stored(gantry) == {"log": ["a", "b"], "n": 3, "by session": 1}


@ORDERS
def test_failing_tool_with_a_memory_and_a_session_changes_nothing(gantry, order):
    def tool(memory, session, preferences):
        session.set("a", 1)
        memory["b"] = preferences["c"] = 1
        raise ValueError("the body failed")

    tool = both_ways([gantry.with_session, gantry.with_memory], order, tool)
    tool = gantry.with_memory(scope="user", into="preferences")(tool)

    with gantry.session("s", user="ada"), pytest.raises(ValueError, match="body"):
        tool()

    assert stored(gantry) == stored(gantry, "user", user="ada") == {}


@ORDERS
def test_merges_of_both_declarations_hold(gantry, order):
    def tool(memory, session):
        session.set("by session", 5)
        memory["by memory"] = 5
        interfere(gantry, **{"by session": 3, "by memory": 3})

    decorators = [gantry.with_session(merge={"by session": merge.max}), gantry.with_memory(merge={"by memory": merge.max})]
    both_ways(decorators, order, tool)()

    assert stored(gantry) == {"by session": 5, "by memory": 5}


@ORDERS
def test_session_beside_a_memory_of_some_keys_may_write_the_others(gantry, order):
    interfere(gantry, cwd="/", other=1)

    def tool(memory, session):
        assert session.get("other") == 1
        session.set("other", 2)
        memory["cwd"] = "/home"

    both_ways([gantry.with_session, gantry.with_memory(keys=("cwd",))], order, tool)()

    assert stored(gantry) == {"cwd": "/home", "other": 2}


@ORDERS
def test_session_that_is_serializable_makes_the_memory_beside_it_so(gantry, order):
    interfere(gantry, a=1)

    def tool(memory, session):
        memory["copy"] = session.get("a")
        interfere(gantry, a=2)

    with pytest.raises(MemoryConflictError):
        both_ways([gantry.with_session(isolation="serializable"), gantry.with_memory], order, tool)()

    assert stored(gantry) == {"a": 2}


def test_two_sessions_of_one_scope_are_the_same_data(gantry):
    @gantry.with_session(into="one")
    @gantry.with_session(into="other")
    def tool(one, other):
        one.set("a", [])
        other.get("a").append(1)
        return one.get("a")

    assert tool() == [1]
    assert stored(gantry) == {"a": [1]}


def test_session_beside_a_context_is_the_same_data(gantry):
    @gantry.with_session
    @gantry.with_context
    def tool(ctx, session):
        session.set("a", [])
        ctx.memory["a"].append(1)
        return session.get("a")

    assert tool() == [1]
    assert stored(gantry) == {"a": [1]}


# Calls inside calls.


@pytest.mark.parametrize("outer_has", ["session", "memory", "nothing of it"])
def test_call_inside_sees_the_outer_ones_keys_and_is_undone_with_it(gantry, outer_has):
    interfere(gantry, log=["base"], other=1)

    @gantry.with_session
    def inner(session):
        session.get("log").append("inner")
        session.set("inner", session.get("outer"))
        return session.keys()

    def body(session, fail):
        if session is not None:
            session["outer"] = 1
            held = session["log"]
        names = inner()
        assert names[:2] == ["log", "other"]
        if session is not None:
            assert held == ["base", "inner"]
        if fail:
            raise ValueError("the outer one failed")

    class ByKey:
        def __init__(self, session):
            self.session = session

        def __setitem__(self, key, value):
            self.session.set(key, value)

        def __getitem__(self, key):
            return self.session.get(key)

    if outer_has == "session":
        outer = gantry.with_session(lambda session, fail: body(ByKey(session), fail))
    elif outer_has == "memory":
        outer = gantry.with_memory(lambda memory, fail: body(memory, fail))
    else:
        outer = gantry.with_memory(scope="global")(lambda memory, fail: body(None, fail))

    with pytest.raises(ValueError, match="outer"):
        outer(fail=True)
    assert stored(gantry) == {"log": ["base"], "other": 1}
    outer(fail=False)

    seen = {} if outer_has == "nothing of it" else {"outer": 1}
    assert stored(gantry) == {"log": ["base", "inner"], "other": 1, **seen, "inner": 1 if seen else None}


def test_failing_call_inside_undoes_its_own_keys_only(gantry):
    @gantry.with_session
    def inner(session):
        session.set("a", "inner")
        session.set("b", "inner")
        raise ValueError("the inner one failed")

    @gantry.with_session
    def outer(session):
        session.set("a", "outer")
        with pytest.raises(ValueError, match="inner"):
            inner()
        assert session.get("b") is None
        return session.keys()

    assert outer() == ["a"]
    assert stored(gantry) == {"a": "outer"}


def test_names_of_a_call_inside_are_those_that_the_outer_call_sees(recorded, recording):
    interfere(recorded, a=1, b=1, c=1)
    recording.messages.clear()
    inner = recorded.with_session(lambda session: session.keys())

    @recorded.with_session
    def outer(session):
        session.delete("a")
        session.set("new", 1)
        return inner(), session.keys()

    assert outer() == (["b", "c", "new"], ["b", "c", "new"])
    assert all(message.keys != (None,) and message.keys is not None for message in recording.asked(Load))


# Declaring it.


def test_session_is_hidden_from_whoever_looks_at_the_function(gantry):
    @gantry.with_session
    async def note(text: str, session: Session, limit: int = 3) -> str:
        """Note a text.

        Args:
            text: What.
            session: The hidden one.
        """
        return text

    assert str(inspect.signature(note)) == "(text: str, limit: int = 3) -> str"
    assert "session" not in note.__doc__
    assert "session" not in note.__annotations__


def test_caller_cannot_pass_it(gantry):
    ran = []
    tool = gantry.with_session(lambda session, **more: ran.append(1))

    with pytest.raises(InjectedArgumentError, match="'session'"):
        tool(session="mine")

    assert ran == []


async def async_wrong(session: SyncSession): ...


async def async_wrong_generator(session: Annotated[SyncSession, "doc"]):
    yield 1


def sync_wrong(session: Session): ...


def sync_wrong_optional(session: Session | None = None): ...


class Methods:
    def wrong(self, session: Session): ...

    def right(self, session: SyncSession):
        return session.add("n")

    @classmethod
    def of_class(cls, session):
        return session.add("n")

    @staticmethod
    def of_none(session):
        return session.add("n")

    def __call__(self, session):
        return session.add("n")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (async_wrong, "is an async function: annotate its parameter 'session' with Session, not with SyncSession"),
        (async_wrong_generator, "an async function.*with Session"),
        (sync_wrong, "is a sync function: annotate its parameter 'session' with SyncSession, not with Session"),
        (sync_wrong_optional, "a sync function.*with SyncSession"),
        (Methods().wrong, "a sync function.*with SyncSession"),
        (functools.partial(sync_wrong), "a sync function.*with SyncSession"),
        (lambda item: None, r"has no parameter 'session' for the session.*`session: SyncSession`.*with_session\(into="),
    ],
)
def test_wrong_flavour_is_refused_at_decoration_with_the_right_one(wrong, says):
    with Gantry() as gantry, pytest.raises(DeclarationError, match=says):
        gantry.with_session(wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Methods().right,
        lambda: Methods.of_class,
        lambda: Methods.of_none,
        lambda: Methods(),
        lambda: functools.partial(lambda n, session: session.add("n", n), 1),
    ],
)
def test_every_kind_of_callable_gets_a_session(gantry, make):
    tool = gantry.with_session(make())

    assert (tool(), tool()) == (1, 2)
    assert stored(gantry) == {"n": 2}


@pytest.mark.parametrize(
    "bad",
    [
        {"into": "a b"},
        {"ttl": 0},
        {"sliding": True},
        {"merge": {"n": 5}},
        {"isolation": "none"},
        {"exclusive": 1},
        {"on_conflict": "again"},
        {"retries": -1},
        {"keys": ("a",)},
        {"share": True},
    ],
)
def test_bad_declaration_is_refused_before_there_is_a_tool(bad):
    with (
        Gantry() as gantry,
        pytest.raises((DeclarationError, TypeError, ValueError), match=r"with_session|_decorate|keys|share"),
    ):
        gantry.with_session(**bad)


@pytest.mark.parametrize("option", [{"tll": 3}, {"name": "x"}, {"keys": ("a",)}])
def test_unknown_option_is_refused_by_the_name_of_the_decorator(gantry, option):
    (name,) = option
    with pytest.raises(TypeError, match=rf"with_session\(\) got an unexpected keyword argument '{name}'"):
        gantry.with_session(**option)


def test_session_shows_its_scope_and_no_id(gantry):
    with gantry.session("s3cr3t", user="ada"):
        shown = gantry.with_session(lambda session: repr(session))()

    assert "session" in shown
    assert "s3cr3t" not in shown
    assert "ada" not in shown
