"""What a store costs, beside its driver used bare.

A call loads a namespace and commits one key of it. The driver's part is its minimal equivalent: one read of the same keys
and one write that changes the value, with nothing checked. Both are measured in the same run, in blocks that take turns, as
in `call.py`; what counts is a ratio within a round, and the tables have the median of these ratios and the quartiles.

    pip install -e . --group bench      # pip 25.1 or newer
    python benchmarks/stores.py

"store" sends the two messages through the bridge, "tool" is a whole call of a tool that writes one key. "load, unknown" is
a load of what this process has not read before, or what another one has just changed. With 32 callers, each asyncio task has
a namespace of its own; the bare driver is the asyncio one where there is a server, with as many connections, and else does
the same work one after the other on the loop's thread. "tool, same sent" is the whole call over the driver that sends what
the store sends, made beforehand. Servers are those of the test suite.

On a machine that does other work, too, `--cpu` counts the time of the processor instead: of this process, and so not what
a server takes or the disk.

Another store is another function in `SUBJECTS`.
"""

# No `from __future__ import annotations`, as in `call.py`.

import argparse
import asyncio
import gc
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Any, NamedTuple

from call import VALUES, Spread, arguments, awrite, seed, without_gc, write

from agent_gantry_state import Gantry, Namespace, codec
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Change, Commit, Committed, Load, Message, Moved, Put, Snapshot
from agent_gantry_state.stores.sqlite import SQLiteStore
from agent_gantry_state.stores.urls import open_store

KEYS = (10, 100, 1000)
CALLERS = 32
Clock = Callable[[], int]
#: What is written.
KEY = "k3"


def state(size: int) -> dict[str, str]:
    """What is in each namespace."""
    return {f"k{i}": f"v{i}" for i in range(size)}


def ids() -> list[str]:
    return [f"s{i}" for i in range(CALLERS)]


class Bare(NamedTuple):
    """The driver by itself: what it reads and writes for one id."""

    read: Callable[[str], Any]
    write: Callable[[str, str], Any]


class AsyncBare(NamedTuple):
    """The same for callers on an event loop."""

    read: Callable[[str], Awaitable[Any]]
    write: Callable[[str, str], Awaitable[Any]]


@dataclass(frozen=True)
class Subject:
    """A store and its bare driver, both holding `state` for each of `ids`.

    Attributes:
        bare: The driver.
        url: A gantry's store, whose state is put there by the benchmark.
        store: Another one, to which messages are sent.
        forget: Has the store read anew what it may keep of what it has read.
        abare: Opens the driver for callers on an event loop; None if there is none of its own for them.
        asame: The same, but it sends what the store sends.
    """

    bare: Bare
    url: str
    store: Any
    forget: Callable[[], Any] | None = None
    abare: Callable[[], AbstractAsyncContextManager[AsyncBare]] | None = None
    asame: Callable[[], AbstractAsyncContextManager[AsyncBare]] | None = None


# The subjects.


@contextmanager
def memory(size: int) -> Iterator[Subject]:
    """Bare: a dict of dicts, copied by whoever reads it."""
    states = {id: state(size) for id in ids()}

    def put(id: str, value: str) -> None:
        states[id] = {**states[id], KEY: value}

    with closing(MemoryStore()) as store:
        yield Subject(Bare(lambda who: dict(states[who]), put), "memory://", store)


@contextmanager
def sqlite(size: int) -> Iterator[Subject]:
    """Bare: a row for each key, all rows of an id read, one updated and committed by itself; WAL, synchronous=NORMAL."""
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory())
        connection = stack.enter_context(closing(sqlite3.connect(f"{place}/bare.db", isolation_level=None)))
        execute = connection.cursor().execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=NORMAL")
        execute("CREATE TABLE state (id TEXT, key TEXT, value BLOB, PRIMARY KEY (id, key)) WITHOUT ROWID")
        rows = [(id, key, codec.pack(value)) for id in ids() for key, value in state(size).items()]
        execute("BEGIN")
        connection.executemany("INSERT INTO state VALUES (?, ?, ?)", rows)
        execute("COMMIT")
        packed = {value: codec.pack(value) for value in VALUES}
        store = stack.enter_context(closing(SQLiteStore(f"{place}/store.db")))
        yield Subject(
            Bare(
                lambda who: execute("SELECT key, value FROM state WHERE id = ?", (who,)).fetchall(),
                lambda who, value: execute("UPDATE state SET value = ? WHERE id = ? AND key = ?", (packed[value], who, KEY)),
            ),
            f"sqlite:///{place}/gantry.db",
            store,
            store._kept.clear,
        )


def fsynced(path: str, flags: int) -> None:
    file = os.open(path, flags)
    os.fsync(file)
    os.close(file)


@contextmanager
def file(size: int) -> Iterator[Subject]:
    """Bare: a file for each id, all of it read and written anew: a temporary file, fsync, rename, fsync of the directory."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (place / "bare").mkdir()

        def read(who: str) -> Any:
            return codec.unpack((place / "bare" / who).read_bytes())

        def put(who: str, value: str) -> None:
            whole = codec.pack({**read(who), KEY: value})
            replace_file(who, whole)

        def replace_file(who: str, whole: bytes) -> None:
            descriptor = os.open(f"{place}/bare/tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(descriptor, whole)
            os.fsync(descriptor)
            os.close(descriptor)
            Path(f"{place}/bare/tmp").rename(f"{place}/bare/{who}")
            fsynced(f"{place}/bare", os.O_RDONLY | os.O_DIRECTORY)

        for id in ids():
            replace_file(id, codec.pack(state(size)))
        store = stack.enter_context(closing(open_store(f"file:///{place}/store")))
        yield Subject(Bare(read, put), f"file:///{place}/gantry", store, store._images.clear)


@contextmanager
def redis(size: int) -> Iterator[Subject]:
    """Bare: a hash for each id; HGETALL and HSET by redis-py."""
    import redis as driver
    import redis.asyncio as asyncio_driver

    with ExitStack() as stack:
        server = stack.enter_context(started("redis_8"))
        client = stack.enter_context(driver.Redis.from_url(server.url))
        for id in ids():
            client.hset(id, mapping={key: codec.pack(value) for key, value in state(size).items()})
        packed = {value: codec.pack(value) for value in VALUES}

        @asynccontextmanager
        async def abare() -> AsyncIterator[AsyncBare]:
            pool = asyncio_driver.BlockingConnectionPool.from_url(server.url, max_connections=CALLERS)
            async with asyncio_driver.Redis.from_pool(pool) as aclient:
                yield AsyncBare(aclient.hgetall, lambda who, value: aclient.hset(who, KEY, packed[value]))

        @asynccontextmanager
        async def asame() -> AsyncIterator[AsyncBare]:
            with closing(open_store(server.url + "?prefix=same:")) as sender:
                turns = {id: cycle(sent(sender, id, size)) for id in ids()}
            pool = asyncio_driver.BlockingConnectionPool.from_url(server.url, max_connections=CALLERS)
            async with asyncio_driver.Redis.from_pool(pool) as aclient:

                async def send(who: str, *_: str) -> Any:
                    commands = next(turns[who]).commands
                    if len(commands) == 1:
                        reply = await aclient.execute_command(*commands[0])
                        # If the namespace had moved, a list would say how it stands.
                        assert type(reply) is bytes or type(reply[1]) is bytes
                        return
                    async with aclient.pipeline(transaction=False) as pipeline:
                        for command in commands:
                            pipeline.execute_command(*command)
                        await pipeline.execute()

                yield AsyncBare(send, send)

        store = stack.enter_context(closing(open_store(server.url + "?prefix=store:")))
        bare = Bare(client.hgetall, lambda who, value: client.hset(who, KEY, packed[value]))
        yield Subject(bare, server.url, store, store._kept.clear, abare, asame)


@contextmanager
def memcached(size: int) -> Iterator[Subject]:
    """Bare: an item for each id, read by `get` and written by `set`; pymemcache, and emcache on an event loop."""
    import emcache
    import pymemcache

    with ExitStack() as stack:
        server = stack.enter_context(started("memcached"))
        client = stack.enter_context(closing(pymemcache.Client((server.host, server.port), no_delay=True)))
        states = {value: codec.pack({**state(size), KEY: value}) for value in VALUES}

        def put(who: str, value: str) -> None:
            client.set(who, states[value], noreply=False)

        @asynccontextmanager
        async def abare() -> AsyncIterator[AsyncBare]:
            address = emcache.MemcachedHostAddress(server.host, server.port)
            aclient = await emcache.create_client([address], max_connections=CALLERS)
            try:
                yield AsyncBare(
                    lambda who: aclient.get(who.encode()), lambda who, value: aclient.set(who.encode(), states[value])
                )
            finally:
                await aclient.close()

        @asynccontextmanager
        async def asame() -> AsyncIterator[AsyncBare]:
            with closing(open_store(server.url + "?prefix=same:")) as sender:
                # The item is what the last of them replaces.
                payloads = {id: [each.payload for each in sent(sender, id, size)][-1] for id in ids()}
            address = emcache.MemcachedHostAddress(server.host, server.port)
            aclient = await emcache.create_client([address], max_connections=CALLERS)
            uniques: dict[str, Any] = {}
            keys = {id: payload.split(b" ", 2)[1] for id, payload in payloads.items()}
            data = {id: payload.partition(b"\r\n")[2][:-2] for id, payload in payloads.items()}

            async def gets(who: str) -> None:
                item = await aclient.gets(keys[who])
                assert item is not None
                uniques[who] = item.cas

            async def cas(who: str, _: str) -> None:
                await aclient.cas(keys[who], data[who], uniques[who])

            try:
                yield AsyncBare(gets, cas)
            finally:
                await aclient.close()

        for id in ids():
            put(id, VALUES[0])
        store = stack.enter_context(closing(open_store(server.url + "?prefix=store:")))
        bare = Bare(lambda who: codec.unpack(client.get(who)), put)
        yield Subject(bare, server.url, store, store._kept.clear, abare, asame)


class Encoded(NamedTuple):
    """What a statement takes: its type, by its number in PostgreSQL, and itself in binary."""

    type: int
    value: bytes | None


@contextmanager
def postgresql(size: int, synchronous_commit: str = "on") -> Iterator[Subject]:
    """Bare: a row for each key, all rows of an id read, one updated and committed by itself; psycopg, prepared."""
    import psycopg
    from psycopg.adapt import Dumper
    from psycopg.pq import Format
    from psycopg_pool import AsyncConnectionPool

    class EncodedDumper(Dumper):
        """What is encoded already goes to the server as it is."""

        format = Format.BINARY

        def get_key(self, obj: Encoded, format: Any) -> Any:
            return Encoded, obj.type

        def upgrade(self, obj: Encoded, format: Any) -> Dumper:
            made = EncodedDumper(Encoded)
            made.oid = obj.type
            return made

        def dump(self, obj: Encoded) -> bytes | None:
            return obj.value

    read_sql = "SELECT key, value FROM bare WHERE id = %s"
    write_sql = "UPDATE bare SET value = %s WHERE id = %s AND key = %s"
    with ExitStack() as stack:
        server = stack.enter_context(started("postgresql"))
        options = {"options": f"-c synchronous_commit={synchronous_commit}", "autocommit": True, "prepare_threshold": 0}
        connection = stack.enter_context(psycopg.connect(server.url, **options))
        connection.execute(
            "CREATE TABLE bare (id text, key text, value bytea, PRIMARY KEY (id, key)) WITH (fillfactor = 70)"
        )
        rows = [(id, key, codec.pack(value)) for id in ids() for key, value in state(size).items()]
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO bare VALUES (%s, %s, %s)", rows)
        connection.execute("VACUUM ANALYZE bare")
        packed = {value: codec.pack(value) for value in VALUES}

        def read(who: str) -> Any:
            return connection.execute(read_sql, (who,), binary=True).fetchall()

        def put(who: str, value: str) -> None:
            connection.execute(write_sql, (packed[value], who, KEY))

        @asynccontextmanager
        async def abare() -> AsyncIterator[AsyncBare]:
            async with AsyncConnectionPool(server.url, min_size=16, max_size=16, kwargs=options, open=False) as pool:

                async def aread(who: str) -> Any:
                    async with pool.connection() as connection:
                        return await (await connection.execute(read_sql, (who,), binary=True)).fetchall()

                async def aput(who: str, value: str) -> None:
                    async with pool.connection() as connection:
                        await connection.execute(write_sql, (packed[value], who, KEY))

                yield AsyncBare(aread, aput)

        @asynccontextmanager
        async def asame() -> AsyncIterator[AsyncBare]:
            with closing(open_store(f"{server.url}?schema=same")) as sender:
                turns = {id: cycle(sent(sender, id, size)) for id in ids()}

            async def configure(connection: Any) -> None:
                connection.adapters.register_dumper(Encoded, EncodedDumper)

            async with AsyncConnectionPool(
                server.url, min_size=16, max_size=16, kwargs=options, configure=configure, open=False
            ) as pool:

                async def send(who: str, *_: str) -> Any:
                    query = next(turns[who])
                    values = [Encoded(*each) for each in zip(query.types, query.values, strict=True)]
                    async with pool.connection() as connection:
                        cursor = await psycopg.AsyncRawCursor(connection).execute(query.text, values, binary=True)
                        # More than one row would say how the namespace stands that has moved.
                        (row,) = await cursor.fetchall()
                        return row

                yield AsyncBare(send, send)

        query = f"?max_connections=16&synchronous_commit={synchronous_commit}"
        store = stack.enter_context(closing(open_store(f"{server.url}{query}&schema=store")))
        yield Subject(Bare(read, put), server.url + query, store, store._kept.clear, abare, asame)


def postgresql_off(size: int) -> Any:
    """The same with synchronous_commit=off on both sides."""
    return postgresql(size, "off")


def started(name: str) -> Any:
    """A server of the test suite."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    try:
        import servers
    finally:
        del sys.path[0]
    return servers.started(name)


SUBJECTS = {
    "memory": memory,
    "sqlite": sqlite,
    "file": file,
    "redis": redis,
    "memcached": memcached,
    "postgresql": postgresql,
    "postgresql-off": postgresql_off,
}


# What is measured.


class Rounds:
    """Nanoseconds for one call in each round, ours and the bare driver's."""

    def __init__(self) -> None:
        self.ours: list[float] = []
        self.bare: list[float] = []

    def ratio(self) -> Spread:
        ratios = [a / b for a, b in zip(self.ours, self.bare, strict=True)]
        return Spread(*statistics.quantiles(ratios, n=4, method="inclusive"))


class Caller:
    """One who loads a namespace and changes a key of it, by messages."""

    def __init__(self, subject: Subject, id: str, size: int) -> None:
        self.namespace = Namespace("session", id, "bench")
        self.bridge = bridge_to(subject.store)
        puts = {key: Put(value) for key, value in state(size).items()}
        first = Change(self.namespace, None, puts, (), dict.fromkeys(puts))
        self.bridge.run(asking(Commit(b"", os.urandom(8), (first,))))
        self.load()

    def load(self, value: str = "") -> None:
        self.seen: Snapshot = self.bridge.run(asking(Load((self.namespace,)))).snapshots[0]

    def commit(self, value: str) -> None:
        self.check(self.bridge.run(asking(self.message(value))))

    def call(self, value: str) -> None:
        self.load()
        self.commit(value)

    async def acall(self, value: str) -> None:
        self.seen = (await self.bridge.arun(asking(Load((self.namespace,))))).snapshots[0]
        self.check(await self.bridge.arun_uncut(asking(self.message(value))))

    def message(self, value: str) -> Commit:
        seen = self.seen
        change = Change(self.namespace, seen.head, {KEY: Put(value)}, (), {KEY: seen.versions[KEY]}, born=seen.born)
        return Commit(b"", os.urandom(8), (change,))

    def check(self, answer: Committed | Moved) -> None:
        if type(answer) is not Committed:
            raise AssertionError("somebody else wrote to what only this caller knows")


def asking(message: Message) -> Steps[Any]:
    return (yield message)


def sent(store: Any, id: str, size: int) -> list[Any]:
    """What a store sends for loads and commits that take turns, as often as one likes: the last commit gives the namespace
    the version that the first one found. It sends no token with a commit, as a call does."""
    caller = Caller(Subject(Bare(print, print), "", store), id, size)
    ask, requests = store._link.ask, []
    versions = [bytes([8 + turn]) * 8 for turn in range(4)]
    caller.check(caller.bridge.run(asking(replace(caller.message(VALUES[0]), version=versions[0]))))

    def noting(request: Any, deadline: float) -> Any:
        requests.append(request)
        return ask(request, deadline)

    store._link.ask = noting
    for value, version in zip(VALUES[1:], [*versions[1:], versions[0]], strict=False):
        caller.load()
        caller.check(caller.bridge.run(asking(replace(caller.message(value), version=version))))
    # What the store sends of the next id is none of this one's.
    store._link.ask = ask
    return requests


class Pair(NamedTuple):
    """What takes turns: ours and the bare driver's; *prepare* runs before each call of ours and is not measured."""

    ours: Callable[[str], Any]
    bare: Callable[[str], Any]
    prepare: Callable[[], Any] | None = None


def pairs(subject: Subject, gantry: Gantry, size: int) -> dict[str, Pair]:
    """For one caller, sync."""
    caller, (read, put) = Caller(subject, "s0", size), (subject.bare.read, subject.bare.write)

    def bare(value: str) -> None:
        read("s0")
        put("s0", value)

    def load_bare(value: str) -> None:
        read("s0")

    def commit(value: str) -> None:
        caller.commit(value)

    found = {
        "store": Pair(caller.call, bare),
        "tool": Pair(gantry.with_memory(write), bare),
        "load": Pair(caller.load, load_bare),
        # What the commit before wrote has to be known, and is not measured.
        "commit": Pair(commit, lambda value: put("s0", value), caller.load),
    }
    if subject.forget is not None:
        found["load, unknown"] = Pair(caller.load, load_bare, subject.forget)
    return found


def timed(call: Callable[[str], Any], prepare: Callable[[], Any] | None, number: int, clock: Clock) -> float:
    """Nanoseconds for each of *number* calls."""
    values = list(arguments(number))
    with without_gc():
        if prepare is None:
            start = clock()
            for value in values:
                call(value)
            return (clock() - start) / number
        spent = 0
        for value in values:
            prepare()
            start = clock()
            call(value)
            spent += clock() - start
        return spent / number


def per_block(call: Callable[[str], Any], block_ns: float) -> int:
    return max(3, min(len(VALUES) - 1, int(block_ns / timed(call, None, 5, perf_counter_ns))))


def one_caller(subject: Subject, gantry: Gantry, size: int, rounds: int, block_ns: float, clock: Clock) -> dict[str, Rounds]:
    found: dict[str, Rounds] = {}
    with gantry.session("s0"):
        for name, (ours, bare, prepare) in pairs(subject, gantry, size).items():
            times = found[name] = Rounds()
            if prepare is not None:
                prepare()
            number = per_block(bare, block_ns)
            # One more that is thrown away: the first opens files and fills caches.
            for round in range(rounds + 1):
                turns = [(times.ours, ours, prepare), (times.bare, bare, None)]
                for into, call, before in turns if round % 2 else turns[::-1]:
                    into.append(timed(call, before, number, clock))
                gc.collect()
            del times.ours[0], times.bare[0]
    return found


def many_callers(
    subject: Subject, gantry: Gantry, size: int, rounds: int, block_ns: float, clock: Clock
) -> dict[str, Rounds]:
    callers = {id: Caller(subject, id, size) for id in ids()}
    read, put = subject.bare.read, subject.bare.write
    abare: AsyncBare | None = None
    asame: AsyncBare | None = None
    tool = gantry.with_memory(awrite)

    async def by_store(id: str, values: Sequence[str]) -> None:
        for value in values:
            await callers[id].acall(value)
            await asyncio.sleep(0)

    async def by_tool(id: str, values: Sequence[str]) -> None:
        with gantry.session(id):
            for value in values:
                await tool(value)
                await asyncio.sleep(0)

    async def by_driver(id: str, values: Sequence[str]) -> None:
        for value in values:
            if abare is None:
                read(id)
                put(id, value)
                await asyncio.sleep(0)
            else:
                await abare.read(id)
                await abare.write(id, value)

    async def by_same(id: str, values: Sequence[str]) -> None:
        assert asame is not None
        for value in values:
            await asame.read(id)
            await asame.write(id, value)

    async def block(work: Callable[[str, Sequence[str]], Any], number: int) -> float:
        values = list(arguments(number))
        with without_gc():
            start = clock()
            await asyncio.gather(*[work(id, values) for id in callers])
            return (clock() - start) / number / len(callers)

    async def measure() -> dict[str, Rounds]:
        nonlocal abare, asame
        async with AsyncExitStack() as stack:
            if subject.abare is not None:
                abare = await stack.enter_async_context(subject.abare())
            if subject.asame is not None:
                asame = await stack.enter_async_context(subject.asame())
            return await rounds_of_all()

    async def rounds_of_all() -> dict[str, Rounds]:
        found: dict[str, Rounds] = {}
        what = {"store": (by_store, by_driver), "tool": (by_tool, by_driver)}
        if asame is not None:
            what["tool, same sent"] = (by_tool, by_same)
        # Two at least: a block that writes what the one before has written changes nothing.
        number = max(2, min(len(VALUES) - 1, int(block_ns / await block(by_driver, 1) / len(callers))))
        for name, (work, floor) in what.items():
            times = found[name] = Rounds()
            for round in range(rounds + 1):
                turns = [(times.ours, work), (times.bare, floor)]
                for into, each in turns if round % 2 else turns[::-1]:
                    into.append(await block(each, number))
                gc.collect()
            del times.ours[0], times.bare[0]
        return found

    async def measured() -> dict[str, Rounds]:
        try:
            return await measure()
        finally:
            # What was opened for this event loop.
            if hasattr(subject.store, "aclose"):
                await subject.store.aclose()
            await gantry.aclose()

    return asyncio.run(measured())


# The answer.


def compare(stores: Sequence[str], sizes: Sequence[int], rounds: int, block_ns: float, clock: Clock) -> list[dict[str, Any]]:
    """Measure, print each line as it is there, and return all of it."""
    print(f"{'store':14} {'callers':>7} {'keys':>5}  {'what':15} {'over the bare driver':>22}  bare, here")
    lines = []
    for store in stores:
        for size in sizes:
            for callers, measure in ((1, one_caller), (CALLERS, many_callers)):
                with SUBJECTS[store](size) as subject, Gantry(subject.url) as gantry:
                    for id in ids():
                        seed(gantry, id, state(size))
                    for what, times in measure(subject, gantry, size, rounds, block_ns, clock).items():
                        ratio, ns = times.ratio(), statistics.median(times.bare)
                        print(f"{store:14} {callers:7} {size:5}  {what:15} {ratio!s:>22}  {ns / 1000:.1f} us", flush=True)
                        facts = {"store": store, "callers": callers, "keys": size, "what": what}
                        lines.append({**facts, "over_bare": ratio._asdict(), "bare_ns": ns})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="What a store costs beside its bare driver, as ratios.")
    parser.add_argument("stores", nargs="*", metavar="STORE", help=f"of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=100, help="how often each has its turn (default: 100)")
    parser.add_argument("--quick", action="store_true", help="a few short rounds, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    parser.add_argument("--keys", type=int, nargs="+", help=f"how many each namespace has (default: {KEYS})")
    parser.add_argument("--cpu", action="store_true", help="count the processor time of this process, not what passes")
    options = parser.parse_args()
    clock = process_time_ns if options.cpu else perf_counter_ns
    if unknown := set(options.stores) - SUBJECTS.keys():
        parser.error(f"no store {', '.join(sorted(unknown))}; there are {', '.join(SUBJECTS)}")
    if options.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    rounds, block_ns = (3, 2e5) if options.quick else (options.rounds, 2e6)
    facts = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "rounds": rounds,
        "time": "of the processor" if options.cpu else "passed",
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    gc.collect()
    gc.freeze()
    lines = compare(
        options.stores or list(SUBJECTS), options.keys or (KEYS[:2] if options.quick else KEYS), rounds, block_ns, clock
    )
    if options.json is not None:
        options.json.write_text(json.dumps({**facts, "lines": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
