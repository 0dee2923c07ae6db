"""What a call that changes one key costs in other libraries, and what each of them promises.

Everybody does the same work: get a state of ten keys of about 100 bytes, change one, persist. A round gives each candidate
one block, in an order that changes from round to round; what counts is the ratio within a round to the floor of the same
medium, which is the medium used bare. What becomes of two callers that both read before either wrote, of a change that was
not saved, and of what has expired is tried in the same run and not quoted.

    pip install -e . --group peers      # pip 25.1 or newer
    python benchmarks/peers.py

Whoever is not installed, or has no server, is left out, and a line says so. A server is one to throw away: everybody makes
keys and tables in it. Another candidate is another function with `@candidate`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextvars
import copy
import gc
import importlib.metadata
import json
import logging
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    closing,
    nullcontext,
)
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from call import VALUES, Spread, arguments, rotated, without_gc

from agent_gantry_state import Gantry
from agent_gantry_state.errors import MemoryConflictError, StateError
from agent_gantry_state.memory import Memory

#: Changes a state in place and says which key it changed.
Edit: TypeAlias = Callable[[Any], Awaitable[str]]

#: What is written in the timed calls.
KEY = "k3"
#: The length of a value.
LENGTH = 100
#: Seconds; no peer takes less. Memcached's clock and Django's ticket are whole seconds, so the wait is more than twice that.
TTL, WAIT = 1, 2.5


def state() -> dict[str, Any]:
    """What is in memory: ten strings."""
    return {f"k{i}": f"v{i}".ljust(LENGTH, ".") for i in range(10)}


def nested() -> dict[str, Any]:
    """The same for what is tried, with a list."""
    return {**state(), "log": ["first"]}


def assigning(key: str, value: str) -> Edit:
    async def edit(state: Any) -> str:
        state[key] = value
        return key

    return edit


def appending(value: str) -> Edit:
    async def edit(state: Any) -> str:
        log = state["log"]
        log.append(value)
        state["log"] = log
        return "log"

    return edit


# What a peer is.


class NoExpiryError(Exception):
    """Nothing in the API lets an entry expire."""


class Peer:
    """A store with a state for each id, as its user would write it.

    Attributes:
        refusal: What says that somebody else has written meanwhile.
    """

    refusal: tuple[type[Exception], ...] = ()

    def around(self, id: str) -> AbstractContextManager[Any]:
        """Entered around calls, and not measured."""
        return nullcontext()

    async def get(self, id: str) -> Any:
        raise NotImplementedError

    async def put(self, id: str, state: dict[str, Any]) -> None:
        raise NotImplementedError

    async def expiring(self, id: str, state: dict[str, Any]) -> None:
        """Put *state* there for `TTL` seconds."""
        raise NoExpiryError

    async def change(self, id: str, edit: Edit) -> None:
        """What is measured: get the state, change it, persist it."""
        state = await self.get(id)
        await edit(state)
        await self.put(id, state)


class Keyed(Peer):
    """One that can write a single key."""

    async def write(self, id: str, key: str, value: Any) -> None:
        raise NotImplementedError

    async def change(self, id: str, edit: Edit) -> None:
        state = await self.get(id)
        key = await edit(state)
        await self.write(id, key, state[key])


@dataclass(frozen=True)
class Place:
    """Where candidates may put what they keep: a folder, and for each server its URL, or why there is none."""

    folder: Path
    servers: dict[str, str | LeftOutError]

    def server(self, name: str) -> str:
        found = self.servers[name]
        if isinstance(found, LeftOutError):
            raise found
        return found


class LeftOutError(Exception):
    """A candidate cannot take part, and why."""


Open: TypeAlias = Callable[[Place], AbstractAsyncContextManager[Peer]]


class Candidate(NamedTuple):
    """A line of the table.

    Attributes:
        name: As it stands there.
        medium: What it is compared within.
        package: The distribution whose version stands there; empty for what Python brings.
        open: Gives the peer.
    """

    name: str
    medium: str
    package: str
    open: Open


CANDIDATES: list[Candidate] = []
FLOOR = "floor: "
OURS = "agent-gantry-state"


def candidate(name: str, medium: str, package: str) -> Callable[[Open], Open]:
    def add(open: Open) -> Open:
        CANDIDATES.append(Candidate(name, medium, package, open))
        return open

    return add


# The floors: a medium by itself, as one writes it by hand.


@candidate(f"{FLOOR}dict, deepcopy", "memory", "")
@asynccontextmanager
async def floor_memory(place: Place) -> AsyncIterator[Peer]:
    states: dict[str, dict[str, Any]] = {}

    class Dict(Peer):
        async def get(self, id: str) -> Any:
            return copy.deepcopy(states[id])

        async def put(self, id: str, state: dict[str, Any]) -> None:
            states[id] = state

    yield Dict()


@candidate(f"{FLOOR}sqlite3, row per key", "file", "")
@asynccontextmanager
async def floor_file(place: Place) -> AsyncIterator[Peer]:
    """WAL and synchronous=NORMAL, each statement committed by itself."""
    with closing(sqlite3.connect(place.folder / "floor.db", isolation_level=None)) as connection:
        execute = connection.cursor().execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=NORMAL")
        execute("CREATE TABLE state (id TEXT, key TEXT, value TEXT, PRIMARY KEY (id, key)) WITHOUT ROWID")

        class Rows(Keyed):
            async def get(self, id: str) -> Any:
                rows = execute("SELECT key, value FROM state WHERE id = ?", (id,))
                return {key: json.loads(value) for key, value in rows}

            async def put(self, id: str, state: dict[str, Any]) -> None:
                for key, value in state.items():
                    execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", (id, key, json.dumps(value)))

            async def write(self, id: str, key: str, value: Any) -> None:
                execute("UPDATE state SET value = ? WHERE id = ? AND key = ?", (json.dumps(value), id, key))

        yield Rows()


@candidate(f"{FLOOR}redis-py, hash", "redis", "redis")
@asynccontextmanager
async def floor_redis(place: Place) -> AsyncIterator[Peer]:
    from redis.asyncio import Redis

    async with Redis.from_url(place.server("redis")) as client:

        class Hash(Keyed):
            async def get(self, id: str) -> Any:
                found: dict[Any, Any] = await client.hgetall(id)
                return {key.decode(): json.loads(value) for key, value in found.items()}

            async def put(self, id: str, state: dict[str, Any]) -> None:
                await client.hset(id, mapping={key: json.dumps(value) for key, value in state.items()})

            async def write(self, id: str, key: str, value: Any) -> None:
                await client.hset(id, key, json.dumps(value))

            async def expiring(self, id: str, state: dict[str, Any]) -> None:
                await self.put(id, state)
                await client.expire(id, TTL)

        yield Hash()


@candidate(f"{FLOOR}psycopg, row per key", "postgresql", "psycopg")
@asynccontextmanager
async def floor_postgresql(place: Place) -> AsyncIterator[Peer]:
    """Each statement committed by itself."""
    from psycopg import AsyncConnection

    async with await AsyncConnection.connect(place.server("postgresql"), autocommit=True) as connection:
        await connection.execute("DROP TABLE IF EXISTS peers_floor")
        await connection.execute("CREATE TABLE peers_floor (id text, key text, value text, PRIMARY KEY (id, key))")

        class Rows(Keyed):
            async def get(self, id: str) -> Any:
                cursor = await connection.execute("SELECT key, value FROM peers_floor WHERE id = %s", (id,))
                return {key: json.loads(value) for key, value in await cursor.fetchall()}

            async def put(self, id: str, state: dict[str, Any]) -> None:
                for key, value in state.items():
                    row = (id, key, json.dumps(value))
                    await connection.execute("INSERT INTO peers_floor VALUES (%s, %s, %s)", row)

            async def write(self, id: str, key: str, value: Any) -> None:
                row = (json.dumps(value), id, key)
                await connection.execute("UPDATE peers_floor SET value = %s WHERE id = %s AND key = %s", row)

        yield Rows()


@candidate(f"{FLOOR}emcache, one item", "memcached", "emcache")
@asynccontextmanager
async def floor_memcached(place: Place) -> AsyncIterator[Peer]:
    import emcache

    client = await emcache.create_client([emcache.MemcachedHostAddress(*host_and_port(place.server("memcached")))])

    class Item(Peer):
        async def get(self, id: str) -> Any:
            item = await client.get(id.encode())
            return None if item is None else json.loads(item.value)

        async def put(self, id: str, state: dict[str, Any]) -> None:
            await client.set(id.encode(), json.dumps(state).encode())

        async def expiring(self, id: str, state: dict[str, Any]) -> None:
            await client.set(id.encode(), json.dumps(state).encode(), exptime=TTL)

    try:
        yield Item()
    finally:
        await client.close()


def host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 11211


# Ours.


async def changing(edit: Edit, memory: Memory) -> None:
    await edit(memory)


async def reading(memory: Memory) -> dict[str, Any]:
    return copy.deepcopy(dict(memory))


async def putting(state: dict[str, Any], ttl: float | None, memory: Memory) -> None:
    for key, value in state.items():
        memory.set(key, value, ttl=ttl)


class Ours(Peer):
    """A tool that writes one key; the session is open around the calls."""

    refusal = (MemoryConflictError,)

    def __init__(self, gantry: Gantry) -> None:
        with_memory = gantry.with_memory
        self.around, self.tool = gantry.session, with_memory(changing)  # type: ignore[method-assign]
        self._reading, self._putting = with_memory(reading), with_memory(putting)

    async def change(self, id: str, edit: Edit) -> None:
        await self.tool(edit)

    async def get(self, id: str) -> Any:
        return await self._reading()

    async def put(self, id: str, state: dict[str, Any]) -> None:
        await self._putting(state, None)

    async def expiring(self, id: str, state: dict[str, Any]) -> None:
        await self._putting(state, TTL)


def ours(scheme: str, medium: str, url: Callable[[Place], str]) -> None:
    @candidate(f"{OURS} {scheme}://", medium, OURS)
    @asynccontextmanager
    async def open(place: Place) -> AsyncIterator[Peer]:
        address = url(place)
        try:
            gantry = Gantry(address)
        except StateError as error:
            raise LeftOutError(str(error)) from error
        async with gantry:
            yield Ours(gantry)


ours("memory", "memory", lambda place: "memory://")
ours("sqlite", "file", lambda place: f"sqlite:///{place.folder}/gantry.db")
ours("file", "file", lambda place: f"file:///{place.folder}/gantry")
ours("redis", "redis", lambda place: place.server("redis"))
ours("postgresql", "postgresql", lambda place: place.server("postgresql"))
ours("memcached", "memcached", lambda place: place.server("memcached"))


# py-key-value: a state is one value.


class KeyValue(Peer):
    def __init__(self, store: Any) -> None:
        self._store = store

    async def get(self, id: str) -> Any:
        return await self._store.get(id, collection="state")

    async def put(self, id: str, state: dict[str, Any]) -> None:
        await self._store.put(id, state, collection="state")

    async def expiring(self, id: str, state: dict[str, Any]) -> None:
        await self._store.put(id, state, collection="state", ttl=TTL)


def py_key_value(kind: str, medium: str, make: Callable[[Place], Any]) -> None:
    @candidate(f"py-key-value {kind}", medium, "py-key-value-aio")
    @asynccontextmanager
    async def open(place: Place) -> AsyncIterator[Peer]:
        async with make(place) as store:
            yield KeyValue(store)


def key_value_memory(place: Place) -> Any:
    from key_value.aio.stores.memory import MemoryStore

    # It has nothing to close.
    return nullcontext(MemoryStore())


def key_value_disk(place: Place) -> Any:
    from key_value.aio.stores.disk import DiskStore

    return DiskStore(directory=place.folder / "key_value")


def key_value_redis(place: Place) -> Any:
    from key_value.aio.stores.redis import RedisStore

    return RedisStore(url=place.server("redis"))


def key_value_postgresql(place: Place) -> Any:
    from key_value.aio.stores.postgresql import PostgreSQLStore

    return PostgreSQLStore(url=place.server("postgresql"))


def key_value_memcached(place: Place) -> Any:
    from key_value.aio.stores.memcached import MemcachedStore

    host, port = host_and_port(place.server("memcached"))
    return MemcachedStore(host=host, port=port)


py_key_value("memory", "memory", key_value_memory)
py_key_value("disk", "file", key_value_disk)
py_key_value("redis", "redis", key_value_redis)
py_key_value("postgresql", "postgresql", key_value_postgresql)
py_key_value("memcached", "memcached", key_value_memcached)


# LangGraph: a state is one item.


class LangGraph(Peer):
    """A store asked without await."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def get(self, id: str) -> Any:
        item = self._store.get(("state",), id)
        return None if item is None else item.value

    async def put(self, id: str, state: dict[str, Any]) -> None:
        self._store.put(("state",), id, state)

    async def expiring(self, id: str, state: dict[str, Any]) -> None:
        self._store.put(("state",), id, state, ttl=TTL / 60)


class AsyncLangGraph(LangGraph):
    async def get(self, id: str) -> Any:
        item = await self._store.aget(("state",), id)
        return None if item is None else item.value

    async def put(self, id: str, state: dict[str, Any]) -> None:
        await self._store.aput(("state",), id, state)

    async def expiring(self, id: str, state: dict[str, Any]) -> None:
        await self._store.aput(("state",), id, state, ttl=TTL / 60)


@candidate("LangGraph InMemoryStore", "memory", "langgraph-checkpoint")
@asynccontextmanager
async def langgraph_memory(place: Place) -> AsyncIterator[Peer]:
    from langgraph.store.memory import InMemoryStore

    yield LangGraph(InMemoryStore())


@candidate("LangGraph SqliteStore", "file", "langgraph-checkpoint-sqlite")
@asynccontextmanager
async def langgraph_file(place: Place) -> AsyncIterator[Peer]:
    from langgraph.store.sqlite import SqliteStore

    with SqliteStore.from_conn_string(str(place.folder / "langgraph.db")) as store:
        store.setup()
        yield LangGraph(store)


@candidate("LangGraph AsyncPostgresStore", "postgresql", "langgraph-checkpoint-postgres")
@asynccontextmanager
async def langgraph_postgresql(place: Place) -> AsyncIterator[Peer]:
    from langgraph.store.postgres.aio import AsyncPostgresStore

    async with AsyncPostgresStore.from_conn_string(place.server("postgresql")) as store:
        await store.setup()
        yield AsyncLangGraph(store)


# google-adk: a state is what the events of a session add up to.


class ADK(Peer):
    """It asks for one event of the log only; the log grows with each call all the same."""

    def __init__(self, service: Any) -> None:
        from google.adk.errors._stale_session_error import StaleSessionError
        from google.adk.events import Event, EventActions
        from google.adk.sessions.base_session_service import GetSessionConfig

        self.refusal = (StaleSessionError,)
        self._service, self._event, self._actions = service, Event, EventActions
        self._config = GetSessionConfig(num_recent_events=1)

    async def _session(self, id: str) -> Any:
        return await self._service.get_session(app_name="peers", user_id="ada", session_id=id, config=self._config)

    async def get(self, id: str) -> Any:
        return (await self._session(id)).state

    async def put(self, id: str, state: dict[str, Any]) -> None:
        await self._service.create_session(app_name="peers", user_id="ada", session_id=id, state=state)

    async def change(self, id: str, edit: Edit) -> None:
        session = await self._session(id)
        key = await edit(session.state)
        actions = self._actions(state_delta={key: session.state[key]})
        await self._service.append_event(session, self._event(author="peers", actions=actions))


@candidate("google-adk InMemorySessionService", "memory", "google-adk")
@asynccontextmanager
async def adk_memory(place: Place) -> AsyncIterator[Peer]:
    from google.adk.sessions import InMemorySessionService

    yield ADK(InMemorySessionService())


@asynccontextmanager
async def adk_database(url: str) -> AsyncIterator[Peer]:
    from google.adk.sessions import DatabaseSessionService

    async with DatabaseSessionService(url) as service:
        yield ADK(service)


@candidate("google-adk DatabaseSessionService", "file", "google-adk")
def adk_file(place: Place) -> AbstractAsyncContextManager[Peer]:
    return adk_database(f"sqlite+aiosqlite:///{place.folder}/adk.db")


@candidate("google-adk DatabaseSessionService", "postgresql", "google-adk")
def adk_postgresql(place: Place) -> AbstractAsyncContextManager[Peer]:
    return adk_database(place.server("postgresql").replace("postgresql://", "postgresql+asyncpg://", 1))


# diskcache: a state is one pickled value.


@candidate("diskcache", "file", "diskcache")
@asynccontextmanager
async def disk_cache(place: Place) -> AsyncIterator[Peer]:
    import diskcache

    with diskcache.Cache(str(place.folder / "diskcache")) as cache:

        class Disk(Peer):
            async def get(self, id: str) -> Any:
                return cache.get(id)

            async def put(self, id: str, state: dict[str, Any]) -> None:
                cache.set(id, state)

            async def expiring(self, id: str, state: dict[str, Any]) -> None:
                cache.set(id, state, expire=TTL)

        yield Disk()


# litestar: a state is one value of bytes, here JSON.


class Litestar(Peer):
    def __init__(self, store: Any) -> None:
        self._store = store

    async def get(self, id: str) -> Any:
        value = await self._store.get(id)
        return None if value is None else json.loads(value)

    async def put(self, id: str, state: dict[str, Any]) -> None:
        await self._store.set(id, json.dumps(state))

    async def expiring(self, id: str, state: dict[str, Any]) -> None:
        await self._store.set(id, json.dumps(state), expires_in=TTL)


@candidate("litestar MemoryStore", "memory", "litestar")
@asynccontextmanager
async def litestar_memory(place: Place) -> AsyncIterator[Peer]:
    from litestar.stores.memory import MemoryStore

    yield Litestar(MemoryStore())


@candidate("litestar FileStore", "file", "litestar")
@asynccontextmanager
async def litestar_file(place: Place) -> AsyncIterator[Peer]:
    from litestar.stores.file import FileStore

    store = FileStore(place.folder / "litestar", create_directories=True)
    async with store:
        yield Litestar(store)


@candidate("litestar RedisStore", "redis", "litestar")
@asynccontextmanager
async def litestar_redis(place: Place) -> AsyncIterator[Peer]:
    from litestar.stores.redis import RedisStore
    from redis.asyncio import Redis

    async with Redis.from_url(place.server("redis")) as client:
        yield Litestar(RedisStore(redis=client))


# Django: a state is a session.


@candidate("django sessions, db", "file", "Django")
@asynccontextmanager
async def django_file(place: Place) -> AsyncIterator[Peer]:
    """By its sync API, on the thread of the loop; the async one adds a thread to each query."""
    import django
    from django.conf import settings
    from django.core.management import call_command
    from django.db import connections

    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(place.folder / "django.db")}
    key = os.urandom(32).hex()
    settings.configure(
        SECRET_KEY=key, INSTALLED_APPS=["django.contrib.sessions"], DATABASES={"default": database}, USE_TZ=True
    )
    django.setup()
    call_command("migrate", verbosity=0)
    from django.contrib.sessions.backends.db import SessionStore

    keys: dict[str, str] = {}

    class Session(Peer):
        async def get(self, id: str) -> Any:
            return dict(SessionStore(keys[id]).items())

        async def put(self, id: str, state: dict[str, Any]) -> None:
            keys[id] = self._new(state).session_key

        def _new(self, state: dict[str, Any]) -> Any:
            session = SessionStore()
            session.update(state)
            session.create()
            return session

        async def expiring(self, id: str, state: dict[str, Any]) -> None:
            session = self._new(state)
            session.set_expiry(TTL)
            session.save()
            keys[id] = session.session_key

        async def change(self, id: str, edit: Edit) -> None:
            session = SessionStore(keys[id])
            await edit(session)
            session.save()

    try:
        yield Session()
    finally:
        connections.close_all()


# What is tried.

#: The columns of the table, and what stands in them.
PROMISES = {
    "two keys": "two callers have read the same; each writes another key",
    "same key": "and both write the same key",
    "append": "and both append to the same list",
    "unsaved": "a nested change by a call that raises, seen by the next one: own or LEAK",
    "expired": "what has expired, when it is read",
}


class UnsavedError(Exception):
    """A call fails after it has changed its state."""


async def apart(peer: Peer, id: str, call: Callable[[], Awaitable[Any]]) -> Any:
    """Call as somebody else would: in a task that knows nothing of the calls around it."""

    async def whole() -> Any:
        with peer.around(id):
            return await call()

    return await contextvars.Context().run(asyncio.ensure_future, whole())


async def stale(peer: Peer, id: str, late: Edit, early: Edit) -> tuple[str, Any]:
    """Let the call of *early* happen as a whole between the load and the commit of the one of *late*.

    Returns:
        "refused", "one object" if *late* had before its eyes what *early* wrote, or "", and the state that is left.
    """
    await apart(peer, id, lambda: peer.put(id, nested()))
    outcome = ""

    async def edit(state: Any) -> str:
        nonlocal outcome
        before = json.dumps(dict(state.items()))
        await apart(peer, id, lambda: peer.change(id, early))
        if json.dumps(dict(state.items())) != before:
            outcome = "one object"
        return await late(state)

    try:
        await apart(peer, id, lambda: peer.change(id, edit))
    except peer.refusal:
        outcome = "refused"
    return outcome, await apart(peer, id, lambda: peer.get(id))


async def two_keys(peer: Peer, id: str) -> str:
    outcome, left = await stale(peer, id, assigning("k1", "late"), assigning("k2", "early"))
    return outcome or ("kept" if (left["k1"], left["k2"]) == ("late", "early") else "LOST")


async def same_key(peer: Peer, id: str) -> str:
    outcome, left = await stale(peer, id, assigning(KEY, "late"), assigning(KEY, "early"))
    if outcome == "refused":
        return outcome
    return "LOST" if left[KEY] in ("late", "early") else "merged"


async def append(peer: Peer, id: str) -> str:
    outcome, left = await stale(peer, id, appending("late"), appending("early"))
    return outcome or ("merged" if {"late", "early"} <= set(left["log"]) else "LOST")


async def unsaved(peer: Peer, id: str) -> str:
    await apart(peer, id, lambda: peer.put(id, nested()))

    async def edit(state: Any) -> str:
        state["log"].append("unsaved")
        raise UnsavedError

    try:
        await apart(peer, id, lambda: peer.change(id, edit))
    except UnsavedError:
        return "LEAK" if "unsaved" in (await apart(peer, id, lambda: peer.get(id)))["log"] else "own"
    raise AssertionError("a call that raised has returned")


async def expire(peer: Peer, id: str) -> str:
    """Put it there; whether it is gone is seen after the wait."""
    try:
        await apart(peer, id, lambda: peer.expiring(id, state()))
    except NoExpiryError:
        return "no ttl"
    except NotImplementedError:
        return "refused"
    if (await apart(peer, id, lambda: peer.get(id)))[KEY] != state()[KEY]:
        raise AssertionError("what is to expire was not written")
    return ""


async def expired(peer: Peer, id: str) -> str:
    left = await apart(peer, id, lambda: peer.get(id))
    return "STAYS" if left and KEY in left else "gone"


async def promises(peers: dict[Candidate, Peer], prefix: str) -> dict[Candidate, dict[str, str]]:
    found: dict[Candidate, dict[str, str]] = {}
    tries = {"two keys": two_keys, "same key": same_key, "append": append, "unsaved": unsaved, "expired": expire}
    for each, peer in peers.items():
        found[each] = {name: await call(peer, f"{prefix}-{call.__name__}") for name, call in tries.items()}
    await asyncio.sleep(WAIT)
    for each, peer in peers.items():
        found[each]["expired"] = found[each]["expired"] or await expired(peer, f"{prefix}-{expire.__name__}")
    return found


# What is measured.


async def timed(peer: Peer, id: str, number: int) -> float:
    """Nanoseconds for each of *number* calls."""
    edits = [assigning(KEY, value.ljust(LENGTH, ".")) for value in arguments(number)]
    with peer.around(id), without_gc():
        start = perf_counter_ns()
        for edit in edits:
            await peer.change(id, edit)
        return (perf_counter_ns() - start) / number


async def calibrated(peer: Peer, id: str, block_ns: float) -> int:
    """How many calls make a block, seen to write what they are given."""
    await apart(peer, id, lambda: peer.put(id, state()))
    ns = await timed(peer, id, 5)
    left = await apart(peer, id, lambda: peer.get(id))
    if dict(left) != {**state(), KEY: VALUES[4].ljust(LENGTH, ".")}:
        raise AssertionError("what was written is not what is there")
    return max(3, min(len(VALUES) - 1, int(block_ns / ns)))


async def measure(peers: dict[Candidate, Peer], id: str, rounds: int, block_ns: float) -> dict[Candidate, list[float]]:
    numbers = {each: await calibrated(peer, id, block_ns) for each, peer in peers.items()}
    times: dict[Candidate, list[float]] = {each: [] for each in peers}
    # One more that is thrown away: the first opens connections and fills caches.
    for round in range(rounds + 1):
        order: list[Any] = rotated(list(peers), round)  # type: ignore[arg-type]
        for each in order:
            times[each].append(await timed(peers[each], id, numbers[each]))
        gc.collect()
    return {each: spent[1:] for each, spent in times.items()}


# The answer.


async def opened(stack: AsyncExitStack, place: Place, media: Sequence[str]) -> tuple[dict[Candidate, Peer], list[str]]:
    """Those who can take part, and a line for each of the others."""
    peers: dict[Candidate, Peer] = {}
    left_out = []
    for each in CANDIDATES:
        if each.medium not in media:
            continue
        try:
            if each.package:
                importlib.metadata.version(each.package)
            peers[each] = await stack.enter_async_context(each.open(place))
        except ImportError as error:
            left_out.append(f"{each.name} ({each.medium}): not installed: {error}")
        except LeftOutError as reason:
            left_out.append(f"{each.name} ({each.medium}): {reason}")
    floors = {each.medium for each in peers if each.name.startswith(FLOOR)}
    left_out += [f"{each.name} ({each.medium}): its floor is left out" for each in peers if each.medium not in floors]
    return {each: peer for each, peer in peers.items() if each.medium in floors}, left_out


def ratio(times: Sequence[float], floor: Sequence[float]) -> Spread:
    ratios = [a / b for a, b in zip(times, floor, strict=True)]
    return Spread(*statistics.quantiles(ratios, n=4, method="inclusive"))


async def compare(place: Place, media: Sequence[str], rounds: int, block_ns: float) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        peers, left_out = await opened(stack, place, media)
        # What this run writes on a server that has been used before.
        prefix = f"peers-{os.urandom(6).hex()}"
        kept = await promises(peers, prefix)
        gc.collect()
        gc.freeze()
        times = await measure(peers, f"{prefix}-timed", rounds, block_ns)
    floors = {each.medium: each for each in peers if each.name.startswith(FLOOR)}
    lines = [
        {
            "medium": medium,
            "name": each.name,
            "version": importlib.metadata.version(each.package) if each.package else platform.python_version(),
            "over_floor": ratio(times[each], times[floor])._asdict(),
            "ns": statistics.median(times[each]),
            **kept[each],
        }
        for medium, floor in floors.items()
        for each in peers
        if each.medium == medium
    ]
    return {"lines": lines, "left_out": left_out}


def table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    head = ("medium", "get, change one of ten keys, persist", "version", "over the floor", *PROMISES)
    rows = [
        (
            line["medium"],
            line["name"],
            line["version"],
            str(Spread(**line["over_floor"])),
            *(line[name] for name in PROMISES),
        )
        for line in lines
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, tuple("-" * width for width in widths), *rows):
        cells = [cell.rjust(w) if i == 3 else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()


def show(result: dict[str, Any]) -> None:
    print("\n".join(table(result["lines"])), end="\n\n")
    for name, meaning in PROMISES.items():
        print(f"{name}: {meaning}")
    for line in result["lines"]:
        if line["name"].startswith(FLOOR):
            print(f"{line['name']} took {line['ns'] / 1000:.1f} us here")
    for reason in result["left_out"]:
        print(f"left out: {reason}")


MEDIA = tuple(dict.fromkeys(each.medium for each in CANDIDATES))
#: The server of the test suite that stands in for a URL that was not given.
SERVERS = {"redis": "redis_8", "postgresql": "postgresql", "memcached": "memcached"}


def started(stack: ExitStack, name: str) -> str | LeftOutError:
    """The URL of a server that is gone with *stack*."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    try:
        import pytest
        import servers
    except ImportError as error:
        return LeftOutError(f"no {name} server, and the test suite's cannot start: {error}")
    try:
        return str(stack.enter_context(servers.started(SERVERS[name])).url)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        return LeftOutError(f"no {name} server: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a call costs in other libraries, as ratios, and what they promise.")
    parser.add_argument("media", nargs="*", metavar="MEDIUM", help=f"of {', '.join(MEDIA)} (default: all)")
    parser.add_argument("--rounds", type=int, default=60, help="how often each candidate has its turn (default: 60)")
    parser.add_argument("--quick", action="store_true", help="a few short rounds, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    for name in SERVERS:
        parser.add_argument(f"--{name}", metavar="URL", help="a server to throw away (default: one of the test suite's)")
    options = parser.parse_args()
    media = options.media or MEDIA
    if unknown := set(media) - set(MEDIA):
        parser.error(f"no medium {', '.join(sorted(unknown))}; there are {', '.join(MEDIA)}")
    if options.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    # What the peers have to say about themselves.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rounds, block_ns = (3, 2e5) if options.quick else (options.rounds, 2e6)
    facts = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "rounds": rounds,
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {name: getattr(options, name) or started(stack, name) for name in SERVERS if name in media}
        result = asyncio.run(compare(Place(folder, servers), media, rounds, block_ns))
    show(result)
    if options.json is not None:
        options.json.write_text(json.dumps({**facts, **result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
