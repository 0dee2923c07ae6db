"""Scopes on real servers of their own, and calls that are committed in parts there."""

from __future__ import annotations

import contextlib
import os
import uuid

import anyio
import pytest
import servers

from agent_gantry_state import (
    Gantry,
    MemoryConflictError,
    NotAtomicError,
    PartialCommitError,
    Scope,
    StoreTimeoutError,
    StoreUnavailableError,
)
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.postgresql import PostgreSQLStore
from agent_gantry_state.stores.urls import open_store

pytestmark = pytest.mark.once

#: By name, the store of sessions and that of users.
PAIRS = {
    "redis and postgresql": lambda tmp_path: (servers.redis_8().url, servers.postgresql().url),
    "postgresql and redis": lambda tmp_path: (servers.postgresql().url, servers.redis_6().url),
    "memcached and valkey": lambda tmp_path: (servers.memcached().url, servers.valkey().url),
    "file and pgbouncer": lambda tmp_path: (f"file:///{tmp_path}/state", servers.pgbouncer().url),
    "memory and redis cluster": lambda tmp_path: ("memory://", servers.redis_cluster().url),
}


@pytest.fixture(params=["sync", "asyncio", "trio"])
def caller(request):
    """Runs a body, of session and user, as a tool."""

    def run(gantry, body, **options):
        async def abody(session, user):
            return body(session, user)

        tool = body if request.param == "sync" else abody
        for scope in ("user", "session"):
            tool = gantry.with_memory(scope=scope, into=scope, **options)(tool)
        return tool() if request.param == "sync" else anyio.run(tool, backend=request.param)

    return run


@pytest.fixture
def who():
    return {"app": uuid.uuid4().hex, "session": "s1", "user": "ada"}


@pytest.fixture(params=PAIRS)
def urls(request, tmp_path):
    return PAIRS[request.param](tmp_path)


def both(session, user):
    session["x"] = 1
    user["list"] = [*user.get("list", []), 2]


def test_scopes_live_on_servers_of_their_own(urls, caller, who):
    own = MemoryStore()
    with Gantry(own, scopes={"session": Scope(ttl=60, store=urls[0]), "user": urls[1]}, **who) as gantry:
        caller(gantry, lambda session, user: session.update(x=1))
        caller(gantry, lambda session, user: user.update(y=2))
        assert caller(gantry, lambda session, user: (dict(session), dict(user))) == ({"x": 1}, {"y": 2})
        assert len(own) == 0
        with pytest.raises(NotAtomicError) as caught:
            caller(gantry, both)
        assert caught.value.committed is False
        assert caller(gantry, lambda session, user: (dict(session), dict(user))) == ({"x": 1}, {"y": 2})

        gantry.forget("user", user="ada")
        assert caller(gantry, lambda session, user: (dict(session), dict(user))) == ({"x": 1}, {})


def test_call_is_committed_to_servers_of_their_own(urls, caller, who):
    scopes = {"session": urls[0], "user": urls[1]}
    with Gantry(scopes=scopes, partial_commits=True, **who) as gantry, Gantry(urls[1], **who) as other:

        def body(session, user):
            both(session, user)
            with other.independent(), other.memory("user") as memory:
                memory["list"] = [1]

        caller(gantry, body)

        assert caller(gantry, lambda session, user: (dict(session), dict(user))) == ({"x": 1}, {"list": [1, 2]})


@pytest.mark.parametrize("written", ["session", "user"])
def test_memory_on_another_server_that_had_to_stay_as_it_was_is_checked_first(urls, caller, who, written):
    scopes, read = {"session": urls[0], "user": urls[1]}, "user" if written == "session" else "session"
    with Gantry(MemoryStore(), scopes=scopes, partial_commits=True, **who) as gantry:

        def body(**memories):
            memories[written]["x"] = memories[read].get("n", 0)
            if not memories[read]:
                with gantry.independent(), gantry.memory(read) as memory:
                    memory["n"] = 1

        def tool(session, user):
            body(session=session, user=user)

        with pytest.raises(MemoryConflictError) as caught:
            caller(gantry, tool, isolation="serializable")
        assert caught.value.by_scope == {read: ("n",)}
        assert caller(gantry, lambda session, user: {"session": session, "user": user}[written]) == {}

        caller(gantry, tool, isolation="serializable")
        assert caller(gantry, lambda session, user: {"session": session, "user": user}[written]) == {"x": 1}


@pytest.mark.parametrize("server", ["redis_cluster", "memcached"])
def test_server_that_cannot_write_memories_together_writes_one_after_the_other(server, caller, who):
    with Gantry(getattr(servers, server)().url, partial_commits=True, **who) as gantry:

        @gantry.with_memory(scope="global", into="d")
        @gantry.with_memory(scope="tool", into="c")
        @gantry.with_memory(scope="user", into="b")
        @gantry.with_memory(scope="session", into="a")
        def tool(a, b, c, d):
            for memory in (a, b, c, d):
                memory.add("n", 1)
            return [memory["n"] for memory in (a, b, c, d)]

        assert tool() == [1, 1, 1, 1]
        assert tool() == [2, 2, 2, 2]
        caller(gantry, both, on_conflict="retry", isolation="serializable")
        assert caller(gantry, lambda session, user: (session["x"], user["list"])) == (1, [2])


@pytest.fixture(params=["redis_8", "postgresql", "memcached"])
def mortal(request):
    """A server that the test may kill."""
    with servers.started(request.param) as server:
        # The processes behind a PostgreSQL that is killed go on answering.
        server.end = server.stop if request.param == "postgresql" else server.kill
        yield server


class Deadly:
    """A store after whose commit something happens."""

    def __init__(self, then):
        self._store, self._then = open_store("memory://"), then
        self.inline, self.clock = True, None

    def __getattr__(self, name):
        return getattr(self._store, name)

    def load(self, message, /):
        return self._store.load(message)

    def commit(self, message, /):
        answer = self._store.commit(message)
        self._then()
        return answer

    def close(self):
        self._store.close()


def test_server_that_dies_after_another_was_written_leaves_an_error_that_says_so(mortal, caller, who):
    store = Deadly(mortal.end)
    url = f"{mortal.url}{'&' if '?' in mortal.url else '?'}commit_timeout=1&connect_timeout=0.3"
    with Gantry(store, scopes={"user": url}, partial_commits=True, **who) as gantry:
        caller(gantry, lambda session, user: user.update(list=[1]))

        with pytest.raises(PartialCommitError) as caught:
            caller(gantry, both)

        assert (caught.value.landed, caught.value.missing) == (("session",), ("user",))
        assert caught.value.committed is None
        # On a busy machine the second that it has is over before it has been looked for often enough.
        assert isinstance(caught.value.__cause__, (StoreUnavailableError, StoreTimeoutError))
        assert mortal.url not in str(caught.value)


def test_server_that_died_in_the_body_is_found_before_another_is_written(mortal, caller, who):
    written = []
    store = Deadly(lambda: written.append(1))
    url = f"{mortal.url}{'&' if '?' in mortal.url else '?'}load_timeout=1&connect_timeout=0.3"
    with Gantry(store, scopes={"user": url}, partial_commits=True, **who) as gantry:

        def body(session, user):
            both(session, user)
            mortal.end()

        with pytest.raises(StoreUnavailableError) as caught:
            caller(gantry, body)

        assert caught.value.committed is False
        assert written == []


def test_store_object_with_a_pool_of_its_own_stays_open(who):
    with contextlib.closing(open_store(servers.postgresql().url)) as store:
        assert isinstance(store, PostgreSQLStore)
        with Gantry(scopes={"user": store}, **who) as gantry, gantry.memory("user") as memory:
            memory["pid"] = os.getpid()
        with Gantry(store, **who) as gantry, gantry.memory("user") as memory:
            assert memory == {"pid": os.getpid()}
