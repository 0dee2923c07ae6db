"""Scopes that have a store of their own, and calls that change memories of several."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import anyio
import pytest
from executions import call, execute, unlimited
from support import Blocking, Coroutines, commit, committed

from agent_gantry_state import (
    AgentGantry,
    ExecutionContext,
    Gantry,
    MemoryConflictError,
    MemoryErasedError,
    MemoryEvent,
    MemoryTooLargeError,
    Namespace,
    NotAtomicError,
    PartialCommitError,
    Scope,
    Session,
    SessionOwnerError,
    StoreClosedError,
    StoreTimeoutError,
    StoreUnavailableError,
    StoreURLError,
    SyncSession,
    merge,
)
from agent_gantry_state.stores.file import FileStore
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Commit, Lease, Load, Release
from agent_gantry_state.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.once

WHO = {"session": "s1", "user": "ada"}


class Watched(Blocking):
    """A store that has something done before it commits, or after it has."""

    def __init__(self, inner=None, log=None):
        super().__init__()
        self.inner = MemoryStore() if inner is None else inner
        self.before = self.after = self.before_other = lambda: None
        self.log = log
        self.load_timeout, self.commit_timeout = 4.0, 6.0

    @property
    def clock(self):
        return self.inner.clock

    @clock.setter
    def clock(self, clock):
        self.inner.clock = clock

    def load(self, message, /):
        self.before_other()
        return super().load(message)

    def commit(self, message, /):
        self.messages.append(message)
        if self.log is not None:
            self.log.extend(change.namespace.scope for change in message.changes)
        self.before()
        answer = self.inner.commit(message)
        self.after()
        return answer

    def lease(self, message, /):
        self.before_other()
        self.messages.append(message)
        return super().lease(message)

    def release(self, message, /):
        self.before_other()
        self.messages.append(message)
        return super().release(message)


class WatchedInPlace(Watched):
    """One that never has to be waited for."""

    inline = True


def once(action):
    """Something that is done the first time only."""
    left = [action]

    def act():
        if left:
            left.pop()()

    return act


def fails(error=StoreUnavailableError, **facts):
    def fail():
        raise error("it is down", **facts)

    return fail


@pytest.fixture(params=["sync", "asyncio", "trio"])
def run(request):
    """Runs a body, of session and user, as a tool with a decorator for each scope, from the top down."""

    def run(gantry, body, scopes=("session", "user"), **options):
        tool = decorated(gantry, body, scopes, request.param != "sync", **options)
        return tool() if request.param == "sync" else anyio.run(tool, backend=request.param)

    run.name = request.param
    return run


def decorated(gantry, body, scopes=("session", "user"), is_async=False, **options):
    async def abody(session, user):
        return body(session, user)

    tool = abody if is_async else body
    for scope in reversed(scopes):
        tool = gantry.with_memory(scope=scope, into=scope, **options)(tool)
    return tool


def both(session, user):
    session["x"] = 1
    user["y"] = 2


#: Pairs of stores of different kinds: of the gantry, and of its users.
PAIRS = ["memory memory", "memory sqlite", "sqlite file", "file memory", "blocking coroutines", "coroutines sqlite"]


@pytest.fixture(params=PAIRS)
def pair(request, tmp_path):
    """Two stores."""
    with contextlib.ExitStack() as stack:

        def opened(kind, index):
            if kind in ("sqlite", "file"):
                cls = SQLiteStore if kind == "sqlite" else FileStore
                store = cls(tmp_path / f"{kind}{index}")
                stack.callback(store.close)
                return store
            return {"memory": MemoryStore, "blocking": Blocking, "coroutines": Coroutines}[kind]()

        yield [opened(kind, index) for index, kind in enumerate(request.param.split())]


@pytest.fixture
def apart(pair):
    """A gantry on two stores, whose users have the second one, and a function that says what is in each."""
    with contextlib.ExitStack() as stack:

        def make(**options):
            gantry = stack.enter_context(Gantry(pair[0], scopes={"user": pair[1]}, **WHO, **options))
            alone = [stack.enter_context(Gantry(store, **WHO)) for store in pair]
            return gantry, lambda: [(committed(each), committed(each, "user")) for each in alone]

        yield make


@pytest.fixture
def watched():
    """A gantry on two stores that are watched, with partial commits; its users have the second one."""
    with contextlib.ExitStack() as stack:

        def make(log=None, kinds=(Watched, Watched), partial=True, **options):
            stores = [kind(log=log) for kind in kinds]
            gantry = Gantry(stores[0], scopes={"user": stores[1]}, partial_commits=partial, **{**WHO, **options})
            return stack.enter_context(gantry), *stores

        yield make


# Which store.


def test_each_scope_is_kept_in_its_own_store(apart, run):
    gantry, there = apart()

    run(gantry, lambda session, user: session.update(x=1))
    run(gantry, lambda session, user: user.update(y=2))

    assert there() == [({"x": 1}, {}), ({}, {"y": 2})]
    assert run(gantry, lambda session, user: (dict(session), dict(user))) == ({"x": 1}, {"y": 2})


def test_scope_says_its_store_by_url_by_object_and_with_its_time_to_live(tmp_path):
    store, clock = MemoryStore(clock=lambda: 100.0), MemoryStore(clock=lambda: 7.0)
    scopes = {"user": f"sqlite:///{tmp_path}/state.db", "tenant": store, "team": Scope(ttl=60, store=clock)}

    with Gantry(scopes=scopes, session="s1") as gantry:
        for scope in ("session", "user", "tenant", "team"):
            with gantry.memory(scope, session="s1", user="u", tenant="t", team="m") as memory:
                memory["scope"] = scope
        with gantry.memory("team", team="m") as memory:
            assert memory.ttl("scope") == 60.0

    assert len(store) == len(clock) == 1
    with Gantry(f"sqlite:///{tmp_path}/state.db") as other, other.memory("user", user="u") as memory:
        assert memory == {"scope": "user"}


def test_store_is_that_of_the_scope_of_the_namespace_whatever_scope_was_asked_for(run):
    users, teams = MemoryStore(), MemoryStore()

    def resolver(request):
        return Namespace("user", "ada") if request.scope == "team" else None

    with Gantry(scopes={"user": users, "team": teams}, resolvers=[resolver], **WHO) as gantry:
        with gantry.memory("team") as memory:
            memory["x"] = 1
        assert run(gantry, lambda session, user: dict(user)) == {"x": 1}

    assert (len(users), len(teams)) == (1, 0)


@pytest.mark.parametrize("main", ["memory://", "the same"])
def test_scopes_with_one_url_share_a_store_and_are_committed_together(tmp_path, run, main):
    url = f"sqlite:///{tmp_path}/state.db"
    scopes = {"user": url} if main == "the same" else {"user": url, "session": Scope(store=url)}

    with Gantry(url if main == "the same" else main, scopes=scopes, **WHO) as gantry:
        run(gantry, both)
        assert (committed(gantry), committed(gantry, "user")) == ({"x": 1}, {"y": 2})


def test_scopes_with_one_store_object_are_committed_together(run):
    store = Watched()

    with Gantry(scopes={"user": store, "session": store}, **WHO) as gantry:
        run(gantry, both)

    assert store.scopes_asked(Commit) == [("session", "user")]


def test_scopes_of_one_store_have_one_key_for_it(tmp_path):
    store, url = MemoryStore(), f"sqlite:///{tmp_path}/state.db"
    scopes = {"user": url, "team": Scope(store=url), "tenant": store, "tool": "memory://"}

    with Gantry(scopes=scopes) as gantry, Gantry() as plain:
        key = gantry._wiring.store_key
        assert key("user") == key("team")
        assert key("session") == key("global") == key("tool")
        assert len({key("user"), key("tenant"), key("session")}) == 3
        assert plain._wiring.store_key("user") == plain._wiring.store_key("session")


def test_memory_blocks_and_erasure_find_the_store(apart):
    gantry, there = apart()
    for scope in ("session", "user"):
        with gantry.memory(scope, **WHO) as memory:
            memory["x"] = 1

    gantry.forget("user", user="ada")
    assert there() == [({"x": 1}, {}), ({}, {})]
    gantry.end_session("s1")
    assert there() == [({}, {}), ({}, {})]


@pytest.mark.anyio
async def test_async_memory_blocks_and_erasure_find_the_store(apart):
    gantry, there = apart()
    for scope in ("session", "user"):
        async with gantry.memory(scope, **WHO) as memory:
            memory["x"] = 1

    await gantry.aforget("user", user="ada")
    assert await anyio.to_thread.run_sync(there) == [({"x": 1}, {}), ({}, {})]
    await gantry.aend_session("s1")
    assert await anyio.to_thread.run_sync(there) == [({}, {}), ({}, {})]


def test_erased_memory_of_another_store_does_not_come_back(watched, run):
    gantry, first, _ = watched(partial=False)
    commit(gantry, "user", WHO, {"y": 0})

    def body(session, user):
        gantry.forget("user", user="ada")
        user["y"] = 5

    with pytest.raises(MemoryErasedError):
        run(gantry, body)

    assert committed(gantry, "user") == {}
    assert not first.asked(Commit)


def test_session_key_by_key_finds_its_store(apart):
    gantry, there = apart()

    @gantry.with_session(scope="user")
    def count(session: SyncSession) -> list[str]:
        session.add("n", 2)
        return session.keys()

    @gantry.with_session(scope="user")
    async def acount(session: Session) -> list[str]:
        await session.set("m", 1)
        return await session.keys()

    assert count() == ["n"]
    assert anyio.run(acount) == ["n", "m"]
    assert there() == [({}, {}), ({}, {"n": 2, "m": 1})]


def test_each_store_is_asked_once_for_all_that_is_loaded_from_it(watched, run):
    gantry, first, second = watched()

    run(gantry, lambda session, user: None)

    assert (first.scopes_asked(Load), second.scopes_asked(Load)) == ([("session",)], [("user",)])


def test_time_left_goes_by_the_clock_of_each_store(run):
    scopes = {"user": Scope(ttl=10, store=MemoryStore(clock=lambda: 5.0)), "session": Scope(ttl=10)}
    with Gantry(MemoryStore(clock=lambda: 9000.0), scopes=scopes, partial_commits=True, **WHO) as gantry:
        run(gantry, both)

        def body(session, user):
            tool = decorated(gantry, lambda session, user: (session.ttl("x"), user.ttl("y")))
            user["z"] = 1
            return session.ttl("x"), user.ttl("y"), *tool()

        assert run(gantry, body) == (10.0, 10.0, 10.0, 10.0)


def test_merges_go_by_the_clock_of_each_store(run):
    # By the other store's time the list would have expired long ago, and with it what the other call wrote.
    store = MemoryStore(clock=lambda: 5.0)
    scopes = {"user": Scope(ttl=10, store=store)}
    with Gantry(MemoryStore(clock=lambda: 9000.0), scopes=scopes, partial_commits=True, **WHO) as gantry:
        commit(gantry, "user", WHO, {"list": [0]})

        def body(session, user):
            session["x"] = 1
            user["list"].append(2)
            commit(gantry, "user", WHO, {"list": [0, 1]})

        run(gantry, body)

        assert committed(gantry, "user") == {"list": [0, 1, 2]}


@pytest.mark.anyio
async def test_nested_merges_go_by_the_clock_of_each_store():
    # By the other store's time the key would have expired, and need not have been deleted.
    scopes = {"user": Scope(ttl=10, store=MemoryStore(clock=lambda: 5.0))}
    with Gantry(MemoryStore(clock=lambda: 9000.0), scopes=scopes, partial_commits=True, **WHO) as gantry:
        commit(gantry, "user", WHO, {"k": 0, "other": 0})
        begun, over = anyio.Event(), anyio.Event()

        @gantry.with_memory(scope="session", into="session")
        @gantry.with_memory(scope="user", into="user")
        async def slow(user, session):
            user["k"] = session["x"] = 1
            begun.set()
            await over.wait()

        deletes = decorated(gantry, lambda session, user: user.pop("k"))

        @gantry.with_memory(scope="user", into="user")
        @gantry.with_memory(scope="session", into="session")
        async def outer(session, user):
            async with anyio.create_task_group() as group:
                group.start_soon(conflicting)
                await begun.wait()
                deletes()
                over.set()
            return dict(user)

        async def conflicting():
            with pytest.raises(MemoryConflictError):
                await slow()

        assert await outer() == {"other": 0}


# Without partial commits.


def test_call_that_changed_memories_of_two_stores_is_refused_before_it_writes(apart, run):
    gantry, there = apart()

    with pytest.raises(NotAtomicError) as caught:
        run(gantry, both)

    assert (caught.value.scopes, caught.value.committed, caught.value.transient) == (("session", "user"), False, False)
    for word in ("session and user", "partial_commits=True", "one store", "a tool for each"):
        assert word in str(caught.value)
    assert "ada" not in str(caught.value)
    assert there() == [({}, {}), ({}, {})]


def test_refused_call_sends_nothing(watched, run):
    gantry, first, second = watched(partial=False)

    with pytest.raises(NotAtomicError):
        run(gantry, both)

    assert (first.asked(Commit), second.asked(Commit)) == ([], [])


@pytest.mark.parametrize("options", [{"isolation": "serializable"}, {"exclusive": True}], ids=str)
def test_call_that_depends_on_a_memory_of_another_store_is_refused(apart, run, options):
    gantry, there = apart()

    with pytest.raises(NotAtomicError, match="had to find another as it was") as caught:
        run(gantry, lambda session, user: session.update(x=1), **options)

    assert set(caught.value.scopes) == {"session", "user"}
    assert there() == [({}, {}), ({}, {})]
    run(gantry, lambda session, user: None, **options)


def test_use_that_restarts_a_time_to_live_in_another_store_refuses_nothing(run):
    now = [0.0]
    sessions, users = (Watched(MemoryStore(clock=lambda: now[0])) for _ in range(2))
    scopes = {"user": Scope(ttl=100, sliding=True, store=users)}
    with Gantry(sessions, scopes=scopes, **WHO) as gantry:
        commit(gantry, "user", WHO, {"y": 1})
        now[0] = 60.0

        run(gantry, lambda session, user: session.update(x=1))

        now[0] = 120.0
        assert (committed(gantry), committed(gantry, "user")) == ({"x": 1}, {"y": 1})


def test_restart_that_fails_after_the_rest_has_landed_is_logged(run, caplog):
    now = [0.0]
    sessions, users = (Watched(MemoryStore(clock=lambda: now[0])) for _ in range(2))
    users.commit_timeout = 0.0
    scopes = {"user": Scope(ttl=100, sliding=True, store=users)}
    with Gantry(sessions, scopes=scopes, **WHO) as gantry:
        commit(gantry, "user", WHO, {"y": 1})
        now[0] = 60.0
        users.before = fails()

        with caplog.at_level(logging.WARNING, "agent_gantry_state"):
            run(gantry, lambda session, user: session.update(x=1), ("user", "session"))

        assert committed(gantry) == {"x": 1}
    assert "user memory: its time to live was to be restarted: it is down" in caplog.text


# With them.


def test_call_is_committed_to_both_stores(apart, run):
    gantry, there = apart(partial_commits=True)

    run(gantry, both)

    assert there() == [({"x": 1}, {}), ({}, {"y": 2})]


@pytest.mark.parametrize("scopes", [("session", "user"), ("user", "session")])
def test_parts_are_committed_in_the_order_of_the_decorators(watched, run, scopes):
    log = []
    gantry, *_ = watched(log)

    run(gantry, both, scopes)

    assert log == list(scopes)


def test_what_is_loaded_on_demand_is_committed_in_the_place_of_its_decorator(watched):
    log = []
    gantry, *_ = watched(log)

    @gantry.with_session(scope="user")
    @gantry.with_memory(scope="session")
    def tool(session, memory):
        memory["x"] = 1
        session.set("y", 2)

    tool()

    assert log == ["user", "session"]


def test_what_a_context_is_asked_for_is_committed_after_the_rest(watched):
    log = []
    gantry, *_ = watched(log)

    @gantry.with_context
    @gantry.with_memory(scope="session")
    async def tool(ctx: ExecutionContext, memory):
        (await ctx.scope("user"))["y"] = 2
        memory["x"] = 1

    anyio.run(tool)

    assert log == ["session", "user"]


def test_each_part_has_a_token_of_its_own(watched, run):
    gantry, first, second = watched()

    run(gantry, both)

    tokens = [commit.token for store in (first, second) for commit in store.asked(Commit)]
    assert [len(token) for token in tokens] == [16, 16]
    assert len(set(tokens)) == 2


def test_part_whose_answer_is_lost_is_sent_again_and_done_once(watched, run):
    gantry, first, second = watched()
    second.after = once(fails(committed=None))

    run(gantry, lambda session, user: (session.update(x=1), user.add("n", 1)))

    assert committed(gantry, "user") == {"n": 1}
    assert (len(first.asked(Commit)), len(second.asked(Commit))) == (1, 2)
    assert len({commit.token for commit in second.asked(Commit)}) == 1


def test_failure_after_a_part_has_landed_says_what_landed(watched, run):
    gantry, _, second = watched()
    second.before, second.commit_timeout = fails(), 0.05
    gantry._wiring.settings.bridge.elsewhere["user"].commit_timeout = 0.05

    with pytest.raises(PartialCommitError) as caught:
        run(gantry, both)

    error = caught.value
    assert (error.landed, error.missing, error.unknown) == (("session",), ("user",), ())
    assert (error.committed, error.transient) == (None, False)
    assert isinstance(error.__cause__, StoreUnavailableError)
    assert "session memory was written, user memory was not" in str(error)
    assert "ada" not in str(error)
    second.before = lambda: None
    assert (committed(gantry), committed(gantry, "user")) == ({"x": 1}, {})


def test_failure_names_only_what_was_to_be_written(watched):
    gantry, _, second = watched()
    gantry._wiring.settings.bridge.elsewhere["user"].commit_timeout = 0.05

    @gantry.with_memory(scope="session", into="a", isolation="serializable")
    @gantry.with_memory(scope="global", into="b")
    @gantry.with_memory(scope="user", into="c")
    def tool(a, b, c):
        b["x"] = c["x"] = 1
        second.before = fails()

    with pytest.raises(PartialCommitError) as caught:
        tool()

    assert (caught.value.landed, caught.value.missing) == (("global",), ("user",))


def test_failure_of_which_the_outcome_is_not_known_says_so(watched, run):
    gantry, _, second = watched()
    second.after = fails(StoreTimeoutError, committed=None)
    gantry._wiring.settings.bridge.elsewhere["user"].commit_timeout = 0.05

    with pytest.raises(PartialCommitError, match="whether user memory was is not known") as caught:
        run(gantry, both)

    assert (caught.value.landed, caught.value.missing, caught.value.unknown) == (("session",), ("user",), ("user",))


def test_error_of_a_store_that_is_none_of_ours_says_what_landed_too(watched, run):
    gantry, _, second = watched()

    def fail():
        raise RuntimeError("it is broken")

    second.before = fail

    with pytest.raises(PartialCommitError) as caught:
        run(gantry, both)

    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.unknown == ("user",)
    assert "broken" not in str(caught.value)


def test_failure_of_the_first_part_is_raised_as_it_is(watched, run):
    gantry, first, second = watched()
    first.before = fails()
    gantry._wiring.settings.bridge.main.commit_timeout = 0.05

    with pytest.raises(StoreUnavailableError, match="it is down") as caught:
        run(gantry, both)

    assert caught.value.committed is False
    assert second.asked(Commit) == []


def test_store_that_is_down_is_found_before_anything_is_written(watched, run):
    gantry, first, second = watched()

    def body(session, user):
        both(session, user)
        second.before_other = fails()

    with pytest.raises(StoreUnavailableError):
        run(gantry, body)

    assert first.asked(Commit) == []


def test_conflict_in_a_later_part_is_found_before_anything_is_written(watched, run):
    gantry, first, _ = watched()

    def body(session, user):
        both(session, user)
        commit(gantry, "user", WHO, {"y": 5})

    with pytest.raises(MemoryConflictError) as caught:
        run(gantry, body)

    assert caught.value.by_scope == {"user": ("y",)}
    assert first.asked(Commit) == []
    assert committed(gantry) == {}


def test_owner_of_a_memory_in_a_later_part_is_checked_before_anything_is_written(watched, run):
    gantry, first, second = watched()

    def body(session, user):
        both(session, user)
        commit(gantry, "session", {"session": "s1", "user": "eve"}, {"hers": 1})
        first.messages.clear()

    with pytest.raises(SessionOwnerError):
        run(gantry, body, ("user", "session"))

    assert (first.asked(Commit), second.asked(Commit)) == ([], [])


def test_memory_that_a_merge_makes_too_large_is_found_before_anything_is_written(run):
    first, second = Watched(), Watched()
    scopes = {"session": Scope(store=first), "user": Scope(store=second, max_bytes=150)}
    with Gantry(scopes=scopes, partial_commits=True, **WHO) as gantry:

        def body(session, user):
            session["x"] = 1
            user["log"] = ["x" * 100]
            commit(gantry, "user", WHO, {"log": ["y" * 100]})

        with pytest.raises(MemoryTooLargeError):
            run(gantry, body)

        assert first.asked(Commit) == []


def test_conflict_before_anything_is_written_has_the_body_run_again(watched, run):
    gantry, *_ = watched()
    runs = []

    def body(session, user):
        runs.append(dict(user))
        session["x"] = len(runs)
        if len(runs) == 1:
            user["y"] = 1
            commit(gantry, "user", WHO, {"y": 5})
        else:
            user["y"] += 1

    run(gantry, body, on_conflict="retry")

    assert runs == [{}, {"y": 5}]
    assert (committed(gantry), committed(gantry, "user")) == ({"x": 2}, {"y": 6})


def test_conflict_after_a_part_has_landed_does_not_have_the_body_run_again(watched, run):
    gantry, first, _ = watched()
    first.after = lambda: commit(gantry, "user", WHO, {"y": 5})
    runs = []

    def body(session, user):
        runs.append(1)
        both(session, user)

    with pytest.raises(PartialCommitError) as caught:
        run(gantry, body, on_conflict="retry")

    assert runs == [1]
    assert isinstance(caught.value.__cause__, MemoryConflictError)
    assert (caught.value.landed, caught.value.missing) == (("session",), ("user",))
    assert (committed(gantry), committed(gantry, "user")) == ({"x": 1}, {"y": 5})


@pytest.mark.parametrize("moment", ["in the body", "after the first part", "at the last moment"])
def test_each_part_is_merged_with_what_others_wrote(watched, run, moment):
    gantry, first, second = watched()

    def write():
        with Gantry(second.inner, **WHO) as other:
            commit(other, "user", WHO, {"list": ["theirs"]})

    if moment == "after the first part":
        first.after = once(write)
    elif moment == "at the last moment":
        second.before = once(write)

    def body(session, user):
        session["x"] = 1
        user["list"] = ["ours"]
        if moment == "in the body":
            write()

    run(gantry, body)

    assert committed(gantry, "user") == {"list": ["theirs", "ours"]}
    assert committed(gantry) == {"x": 1}


def test_declared_merge_holds_in_a_later_part(watched, run):
    gantry, first, _ = watched()
    first.after = once(lambda: commit(gantry, "user", WHO, {"y": 5}))

    run(gantry, both, merge={"y": merge.max, "x": merge.max})

    assert committed(gantry, "user") == {"y": 5}


def test_memory_that_must_be_as_it_was_is_checked_before_another_store_is_written(watched, run):
    gantry, first, second = watched()

    def body(session, user):
        session["x"] = 1
        if not user:
            commit(gantry, "user", WHO, {"y": 5})

    with pytest.raises(MemoryConflictError) as caught:
        run(gantry, body, isolation="serializable")
    run(gantry, body, isolation="serializable")

    assert caught.value.by_scope == {"user": ("y",)}
    assert [commit.changes[0].whole for commit in second.asked(Commit)[1:]] == [True, True]
    assert len(first.asked(Commit)) == 1


@pytest.mark.parametrize("failing", [False, True])
def test_observers_are_told_of_what_landed(watched, run, failing):
    told, conflicts = [], []
    gantry, first, _ = watched(on_commit=told.append, on_conflict=conflicts.append)
    if failing:
        first.after = once(lambda: write(gantry))

    def write(gantry):
        commit(gantry, "user", WHO, {"y": 5})
        told.clear()

    with pytest.raises(PartialCommitError) if failing else contextlib.nullcontext():
        run(gantry, both, name="tool")

    session, user = MemoryEvent("tool", "session", ("x",)), MemoryEvent("tool", "user", ("y",))
    assert told == ([session] if failing else [session, user])
    assert conflicts == ([user] if failing else [])


def test_generator_is_committed_in_parts(apart):
    gantry, there = apart(partial_commits=True)

    def body(session, user):
        session["x"] = 1
        yield 1
        user["y"] = 2

    assert list(decorated(gantry, body)()) == [1]
    assert there() == [({"x": 1}, {}), ({}, {"y": 2})]


class OneAtATime(Watched):
    """A store that writes one memory at a time."""

    def commit(self, message, /):
        if len(message.changes) > 1:
            self.messages.append(message)
            raise NotAtomicError("one at a time", scopes=[change.namespace.scope for change in message.changes])
        return super().commit(message)


def test_store_that_writes_one_memory_at_a_time_is_given_one_after_the_other(run):
    log = []
    store = OneAtATime(log=log)
    with Gantry(store, partial_commits=True, **WHO) as gantry:
        run(gantry, both, ("user", "session"))

        assert log == ["user", "session"]
        assert len({commit.token for commit in store.asked(Commit)}) == 3
        assert (committed(gantry), committed(gantry, "user")) == ({"x": 1}, {"y": 2})


@pytest.mark.parametrize("scopes", [{}, {"tenant": "memory://"}])
def test_store_that_writes_one_memory_at_a_time_refuses_without_partial_commits(run, scopes):
    with Gantry(OneAtATime(), scopes=scopes, **WHO) as gantry:
        with pytest.raises(NotAtomicError, match="one at a time"):
            run(gantry, both)
        assert (committed(gantry), committed(gantry, "user")) == ({}, {})


def test_failure_of_one_memory_after_another_in_one_store_says_what_landed(run):
    store = OneAtATime()
    with Gantry(store, partial_commits=True, **WHO) as gantry:
        store.after = lambda: setattr(store, "before", fails(StoreTimeoutError))
        gantry._wiring.settings.bridge.main.commit_timeout = 0.05

        with pytest.raises(PartialCommitError) as caught:
            run(gantry, both)

        assert (caught.value.landed, caught.value.missing) == (("session",), ("user",))


def test_one_memory_at_a_time_conflicts_before_anything_is_written(run):
    store = OneAtATime()
    with Gantry(store, partial_commits=True, **WHO) as gantry:

        def body(session, user):
            both(session, user)
            commit(gantry, "user", WHO, {"y": 5})

        with pytest.raises(MemoryConflictError):
            run(gantry, body)
        assert committed(gantry) == {}


def test_later_parts_are_committed_together_where_their_store_can(watched):
    log = []
    gantry, first, _ = watched(log)

    @gantry.with_memory(scope="session", into="a")
    @gantry.with_memory(scope="user", into="b")
    @gantry.with_memory(scope="global", into="c")
    def tool(a, b, c):
        a["x"] = b["x"] = c["x"] = 1

    tool()

    assert log == ["session", "global", "user"]
    assert first.scopes_asked(Commit) == [("session", "global")]


# Cancelled.


@pytest.mark.parametrize("kinds", [(Watched, Watched), (WatchedInPlace, Watched)], ids=["blocking", "in place"])
def test_cancelled_call_has_all_of_its_parts_written(watched, anyio_backend_name, kinds):
    sent, go = threading.Event(), threading.Event()
    gantry, _, second = watched(kinds=kinds)
    second.before = lambda: (sent.set(), go.wait(10))
    tool = decorated(gantry, both, is_async=True)

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(tool)
            await anyio.to_thread.run_sync(sent.wait)
            group.cancel_scope.cancel()
            go.set()

    anyio.run(main, backend=anyio_backend_name)

    assert (committed(gantry), committed(gantry, "user")) == ({"x": 1}, {"y": 2})


def test_cancelled_call_has_the_parts_written_that_were_not_sent_yet(watched, anyio_backend_name):
    sent, go = threading.Event(), threading.Event()
    gantry, first, _ = watched()
    first.before = lambda: (sent.set(), go.wait(10))
    tool = decorated(gantry, both, is_async=True)

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(tool)
            await anyio.to_thread.run_sync(sent.wait)
            group.cancel_scope.cancel()
            go.set()

    anyio.run(main, backend=anyio_backend_name)

    assert (committed(gantry), committed(gantry, "user")) == ({"x": 1}, {"y": 2})


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend_name(request):
    return request.param


# Inside one another.


@pytest.mark.parametrize("kinds", [(Watched, Watched), (WatchedInPlace, Watched), (MemoryStore, Watched)], ids=str)
@pytest.mark.parametrize("partial", [False, True])
def test_call_inside_is_a_part_of_the_call_around_it_whatever_store_it_uses(run, partial, kinds):
    stores = [kind() for kind in kinds]
    with Gantry(stores[0], scopes={"user": stores[1]}, partial_commits=partial, **WHO) as gantry:

        @gantry.with_memory(scope="user", into="user")
        def inner(user, fail=False):
            user["y"] = user.get("y", 0) + 1
            if fail:
                raise LookupError

        @gantry.with_memory(scope="user", into="user")
        async def ainner(user, fail=False):
            inner.__wrapped__(user, fail)

        @gantry.with_memory
        def outer(memory, fail):
            memory["x"] = 1
            inner()
            with contextlib.suppress(LookupError):
                inner(fail=True)
            inner()
            if fail:
                raise KeyError

        @gantry.with_memory
        async def aouter(memory, fail):
            memory["x"] = 1
            await ainner()
            with contextlib.suppress(LookupError):
                await ainner(fail=True)
            await ainner()
            if fail:
                raise KeyError

        def call(fail):
            return outer(fail=fail) if run.name == "sync" else anyio.run(lambda: aouter(fail=fail), backend=run.name)

        with pytest.raises(KeyError):
            call(True)
        assert stores[1].asked(Commit) == []
        with contextlib.nullcontext() if partial else pytest.raises(NotAtomicError):
            call(False)

        there = (committed(gantry), committed(gantry, "user"))
        assert there == (({"x": 1}, {"y": 2}) if partial else ({}, {}))


def test_call_around_that_changed_nothing_itself_commits_what_the_one_inside_did(run):
    users = Watched()
    with Gantry(scopes={"user": users}, **WHO) as gantry:
        inner = gantry.with_memory(scope="user", into="user")(lambda user: user.update(y=1))

        def body(session, user):
            inner()
            assert users.asked(Commit) == []

        run(gantry, body)

        assert committed(gantry, "user") == {"y": 1}


def test_calls_of_gantries_with_the_same_stores_are_one():
    sessions, users = MemoryStore(), MemoryStore()
    options = {"scopes": {"user": users}, "partial_commits": True, **WHO}
    with Gantry(sessions, **options) as one, Gantry(sessions, **options) as other:
        inner = decorated(other, both)

        @one.with_memory
        def outer(memory):
            inner()
            assert memory == {"x": 1}
            raise KeyError

        with pytest.raises(KeyError):
            outer()
        assert committed(one, "user") == {}


def test_call_of_a_gantry_with_other_stores_stands_on_its_own():
    sessions, users = MemoryStore(), MemoryStore()
    with Gantry(sessions, scopes={"user": users}, **WHO) as one, Gantry(sessions, **WHO) as other:
        inner = other.with_memory(lambda memory: memory.update(y=1))

        @one.with_memory
        def outer(memory):
            inner()
            raise KeyError

        with pytest.raises(KeyError):
            outer()
        assert committed(one) == {"y": 1}


@pytest.mark.anyio
async def test_parallel_calls_inside_are_committed_with_the_call_around_them(watched):
    gantry, *_ = watched()

    @gantry.with_memory(scope="user", into="user")
    async def inner(n, user):
        await anyio.sleep(0)
        user.add("n", n)
        user.setdefault("list", []).append(n)

    @gantry.with_memory
    async def outer(memory):
        memory["x"] = 1
        async with anyio.create_task_group() as group:
            for n in range(5):
                group.start_soon(inner, n)

    await outer()

    def there():
        return committed(gantry), committed(gantry, "user")

    session, user = await anyio.to_thread.run_sync(there)
    assert (session, user["n"], sorted(user["list"])) == ({"x": 1}, 10, [0, 1, 2, 3, 4])


@pytest.mark.anyio
async def test_call_that_outlives_the_one_around_it_commits_its_own_parts(watched):
    gantry, *_ = watched()
    commit(gantry, "user", WHO, {"list": []})
    begun, over = anyio.Event(), anyio.Event()

    @gantry.with_memory(scope="user", into="user")
    @gantry.with_memory(scope="session", into="session")
    async def inner(session, user):
        session["inner"] = 1
        user["list"].append("inner")
        begun.set()
        await over.wait()

    @gantry.with_memory(scope="user", into="user")
    @gantry.with_memory(scope="session", into="session")
    async def outer(group, session, user):
        session["outer"] = 1
        user["list"].append("outer")
        group.start_soon(inner)
        await begun.wait()

    async with anyio.create_task_group() as group:
        await outer(group)
        over.set()

    def there():
        return committed(gantry), committed(gantry, "user")

    assert await anyio.to_thread.run_sync(there) == ({"outer": 1, "inner": 1}, {"list": ["outer", "inner"]})


@pytest.mark.anyio
async def test_call_that_outlives_the_one_around_it_finds_what_it_saw_there_as_it_was(watched):
    gantry, *_ = watched()
    begun, over = anyio.Event(), anyio.Event()

    @gantry.with_memory(scope="user", into="user", isolation="serializable")
    @gantry.with_memory(scope="session", into="session", isolation="serializable")
    async def inner(session, user):
        begun.set()
        await over.wait()
        session["inner"] = user["inner"] = 1

    @gantry.with_memory(scope="user", into="user")
    @gantry.with_memory(scope="session", into="session")
    async def outer(group, session, user):
        session["outer"] = user["outer"] = 1
        group.start_soon(inner)
        await begun.wait()

    async with anyio.create_task_group() as group:
        await outer(group)
        over.set()

    def there():
        return committed(gantry), committed(gantry, "user")

    assert await anyio.to_thread.run_sync(there) == ({"outer": 1, "inner": 1}, {"outer": 1, "inner": 1})


@pytest.mark.anyio
@pytest.mark.parametrize("fails", [False, True])
async def test_async_call_on_the_short_way_keeps_no_loop_waiting_for_a_store_that_one_inside_used(fails):
    users, threads = Watched(), []
    users.before = users.before_other = lambda: threads.append(threading.get_ident())
    with Gantry(scopes={"user": users}, **WHO) as gantry:

        @gantry.with_memory(scope="user", into="user", exclusive=True)
        async def inner(user):
            user["y"] = 1

        @gantry.with_memory
        async def outer(memory):
            await inner()
            if fails:
                raise KeyError

        with pytest.raises(KeyError) if fails else contextlib.nullcontext():
            await outer()

        assert len(threads) == (3 if fails else 4)
        assert threading.get_ident() not in threads


# Turns.


def test_leases_are_asked_of_the_store_of_their_scope(watched, run):
    gantry, first, second = watched()

    run(gantry, lambda session, user: user.update(y=1), ("user", "session"), exclusive=True)

    for store, scope in ((first, "session"), (second, "user")):
        assert [message.namespace.scope for message in store.asked(Lease)] == [scope]
        # Not that of all stores together.
        assert store.asked(Lease)[0].timeout <= 4.0
        assert [message.namespace.scope for message in store.asked(Release)] == [scope]


@pytest.mark.anyio
async def test_exclusive_calls_of_a_scope_with_its_own_store_take_turns(apart):
    gantry, there = apart()

    @gantry.with_memory(scope="user", into="user", exclusive=True)
    async def count(user):
        n = user.get("n", 0)
        await anyio.sleep(0.001)
        user["n"] = n + 1

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(count)

    assert (await anyio.to_thread.run_sync(there))[1] == ({}, {"n": 5})


@pytest.mark.anyio
async def test_exclusive_calls_of_gantries_that_share_a_store_take_turns():
    users = MemoryStore()
    with Gantry(scopes={"user": users}, **WHO) as one, Gantry(users, **WHO) as other:

        async def count(user):
            n = user.get("n", 0)
            await anyio.sleep(0.001)
            user["n"] = n + 1

        async with anyio.create_task_group() as group:
            for gantry in (one, other) * 3:
                group.start_soon(gantry.with_memory(scope="user", into="user", exclusive=True, name="count")(count))

        assert committed(other, "user") == {"n": 6}


# Override.


def test_override_of_the_store_holds_for_every_scope_and_comes_back(apart, run):
    gantry, there = apart()

    with gantry.override(store="memory://"):
        run(gantry, both)
        assert run(gantry, lambda session, user: (dict(session), dict(user))) == ({"x": 1}, {"y": 2})

    assert there() == [({}, {}), ({}, {})]
    with pytest.raises(NotAtomicError):
        run(gantry, both)


def test_override_keeps_partial_commits(run):
    store = OneAtATime()
    with Gantry(partial_commits=True, **WHO) as gantry, gantry.override(store=store):
        run(gantry, both)
        assert committed(gantry, "user") == {"y": 2}


def test_call_keeps_the_stores_that_it_began_with(watched):
    gantry, *_ = watched()

    def body(session, user):
        with gantry.override(store="memory://"):
            both(session, user)
            decorated(gantry, lambda session, user: user.update(other=1))()

    decorated(gantry, body)()

    assert (committed(gantry), committed(gantry, "user")) == ({"x": 1}, {"y": 2})


def test_override_of_the_clock_sets_it_on_every_store_and_gives_it_back():
    clocks = [lambda: 5.0, lambda: 6.0]
    stores = [MemoryStore(clock=clock) for clock in clocks]
    with Gantry(stores[0], scopes={"user": stores[1]}, **WHO) as gantry:
        with gantry.override(clock=lambda: 7.0):
            assert [store.now() for store in stores] == [7.0, 7.0]
            with gantry.override(store="memory://"):
                assert [store.clock for store in stores] == clocks
            assert [store.now() for store in stores] == [7.0, 7.0]
        assert [store.clock for store in stores] == clocks


def test_override_of_the_clock_is_refused_where_a_store_goes_by_its_own():
    clock = lambda: 5.0  # noqa: E731
    store = MemoryStore(clock=clock)
    with Gantry(store, scopes={"user": Blocking()}, **WHO) as gantry:
        with pytest.raises(ValueError, match="Blocking goes by its own clock"), gantry.override(clock=lambda: 7.0):
            pass
        assert store.clock is clock
        with gantry.override(store="memory://", clock=lambda: 7.0) as override:
            assert override.store.now() == 7.0


# Opening and closing.


@pytest.mark.parametrize("how", ["close", "aclose"])
def test_stores_of_urls_are_closed_with_the_gantry_and_objects_stay_open(tmp_path, how):
    store = SQLiteStore(tmp_path / "kept.db")
    scopes = {"user": f"sqlite:///{tmp_path}/state.db", "tenant": store, "team": Scope(store="memory://")}
    gantry = Gantry(scopes=scopes, **WHO)
    made = gantry._wiring.settings.bridge
    tool = decorated(gantry, lambda session, user: user.update(y=1))
    tool()

    gantry.close() if how == "close" else anyio.run(gantry.aclose)

    with pytest.raises(StoreClosedError):
        tool()
    with pytest.raises(StoreClosedError):
        made.elsewhere["user"].store.load(Load((Namespace("user", "ada"),)))
    store.load(Load((Namespace("user", "ada"),)))
    store.close()


def test_stores_that_were_opened_are_closed_again_where_another_cannot_be(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(SQLiteStore, "close", lambda self: closed.append(self))
    scopes = {"user": f"sqlite:///{tmp_path}/b.db", "tenant": "nowhere://", "team": f"sqlite:///{tmp_path}/c.db"}

    with pytest.raises(StoreURLError, match=r"scopes\['tenant'\]: no store is known for nowhere://"):
        Gantry(f"sqlite:///{tmp_path}/a.db", scopes=scopes)

    assert len(closed) == 2


@pytest.mark.parametrize("how", ["close", "aclose"])
def test_store_that_cannot_be_closed_keeps_no_other_open(tmp_path, monkeypatch, how):
    closed = []

    def close(self):
        closed.append(self)
        raise OSError("no")

    gantry = Gantry(f"sqlite:///{tmp_path}/a.db", scopes={"user": f"sqlite:///{tmp_path}/b.db"})
    monkeypatch.setattr(SQLiteStore, "close", close)

    with pytest.raises(OSError, match="no"):
        gantry.close() if how == "close" else anyio.run(gantry.aclose)

    assert len(closed) == 2


@pytest.mark.parametrize("bad", [5, object(), MemoryStore, {"ttl": 60}], ids=["5", "object", "class", "dict"])
@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: Scope(store=bad)], ids=["itself", "in a Scope"])
def test_what_is_no_store_is_refused_by_the_name_of_its_scope(bad, wrap):
    with pytest.raises(TypeError, match=r"scopes\['user'\] must be a Scope\(...\), the URL of a store, or a store: "):
        Gantry(scopes={"user": wrap(bad)})


@pytest.mark.parametrize("bad", [1, None, "yes"])
def test_partial_commits_is_true_or_false(bad):
    with pytest.raises(TypeError, match="partial_commits must be True or False"):
        Gantry(partial_commits=bad)


def test_scope_does_not_show_its_store():
    assert "secret" not in repr(Scope(ttl=5, store="redis://me:secret@host"))
    assert hash(Scope(store=[])) == hash(Scope())


# The short way.


def test_scope_in_the_gantrys_own_memory_store_keeps_the_short_way():
    users = MemoryStore()
    with Gantry(scopes={"user": users}, **WHO) as gantry:
        tools = {}
        for scope in ("session", "user"):
            tools[scope] = gantry.with_memory(scope=scope)(lambda memory: memory.add("n", 1))
            assert [tools[scope]() for _ in range(3)] == [1, 2, 3]

        store = gantry._wiring.settings.direct
        assert store is not None
        assert (len(store), len(users)) == (1, 1)
        assert tools["session"].plan.key in gantry._wiring.settings.identity.slots
        assert tools["user"].plan.key not in gantry._wiring.settings.identity.slots


# Under agent-gantry.


@pytest.fixture
def agents():
    """An `AgentGantry` on two stores that are watched."""
    stores = Watched(), Watched()
    made = []

    def make(**options):
        made.append(AgentGantry(store=stores[0], scopes={"user": stores[1]}, **WHO, **unlimited(), **options))
        return made[-1], *stores

    yield make
    for gantry in made:
        asyncio.run(gantry.close())


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("failure", ["none", "refused", "in part"])
def test_agent_gantry_ends_a_call_that_was_committed_in_part(agents, is_async, failure):
    gantry, _, second = agents(partial_commits=failure != "refused")
    runs = []

    def body(session, user):
        runs.append(1)
        both(session, user)

    async def main():
        tool = decorated(gantry, body, is_async=is_async)
        gantry.register(tool, name="tool")
        if failure == "in part":
            second.before = fails(StoreTimeoutError)
            gantry._wiring.settings.bridge.elsewhere["user"].commit_timeout = 0.05
        return await execute(gantry, "tool")

    result = asyncio.run(main())

    second.before = lambda: None
    there = committed(gantry), committed(gantry, "user")
    assert runs == [1]
    expected = {
        "none": ("success", None, ({"x": 1}, {"y": 2})),
        "refused": ("failure", "NotAtomicError", ({}, {})),
        "in part": ("failure", "PartialCommitError", ({"x": 1}, {})),
    }
    assert (result.status.value, result.error_type, there) == expected[failure]


def test_call_that_timed_out_while_it_was_committed_in_part_does_not_run_again(agents):
    gantry, _, second = agents(partial_commits=True)
    runs, go = [], threading.Event()

    async def main():
        @gantry.register
        @gantry.with_memory(scope="session", into="session")
        @gantry.with_memory(scope="user", into="user")
        async def tool(session, user) -> None:
            """A tool that is tried twice."""
            runs.append(1)
            both(session, user)

        def late():
            go.wait(0.5)
            raise StoreTimeoutError("too late", committed=False)

        second.before = late
        gantry._wiring.settings.bridge.elsewhere["user"].commit_timeout = 0.1
        return await gantry.execute(call("tool", timeout_ms=200, retry_count=2))

    result = asyncio.run(main())

    assert runs == [1]
    assert result.status.value == "failure"
    assert result.error_type == "PartialCommitError"
