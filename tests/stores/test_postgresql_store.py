"""The PostgreSQL store answers every message by the rules for all stores; and its connections, its schema, its errors."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import math
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import closing
from dataclasses import replace

import anyio
import psycopg
import psycopg_pool
import pytest
import servers
from psycopg import sql
from wire import Wire

from agent_gantry_state import (
    CorruptEntryError,
    Gantry,
    Namespace,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    StoreURLError,
)
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores.kept import KEY_BYTES
from agent_gantry_state.stores.postgresql import PostgreSQLStore
from agent_gantry_state.stores.protocol import Change, Commit, Committed, Forget, Lease, Load, Release
from agent_gantry_state.stores.urls import open_store
from agent_gantry_state.testing import A, B, Clock, StoreContract, Talk, put

_numbers = itertools.count()


def fresh_schema() -> str:
    return f"s{next(_numbers)}"


class TestPostgreSQLStore(StoreContract):
    @pytest.fixture
    def store(self):
        return PostgreSQLStore(servers.postgresql().url, schema=fresh_schema())


class TestBehindATransactionPooler(StoreContract):
    @pytest.fixture
    def store(self):
        return PostgreSQLStore(servers.pgbouncer().url, schema=fresh_schema())


class Shifted(PostgreSQLStore):
    """Tells the server what time it is, in place of the server's own clock."""

    _told = staticmethod(lambda: 1.0)

    @property
    def clock(self):
        return self._told

    @clock.setter
    def clock(self, clock):
        self._told, self._latest = clock, -math.inf


class TestOnAClockThatIsSet(StoreContract):
    @pytest.fixture
    def store(self):
        return Shifted(servers.postgresql().url, schema=fresh_schema())


# Links: what happens to connections.


def one(changes, token=b"", version=b"version1"):
    return Commit(token, version, tuple(changes))


class Proxy:
    """Passes bytes on between clients and a server, until it is told to fall silent; connections stay open then.

    Attributes:
        mute: Nothing is passed on any more, in either direction.
        deaf: What the server says is not passed on.
        accepted: Connections so far.
    """

    def __init__(self, server):
        self.mute, self.deaf, self.accepted = False, False, 0
        self._server = server
        self._sockets = []
        self._threads = []

    def __enter__(self):
        self._listener = socket.create_server((servers.HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.url = self._server.url.replace(f":{self._server.port}", f":{self.port}")
        self._start(self._accept)
        return self

    def __exit__(self, *exc):
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _start(self, target, *arguments):
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            upstream = socket.create_connection((self._server.host, self._server.port))
            self._sockets += [client, upstream]
            self._start(self._pump, client, upstream, False)
            self._start(self._pump, upstream, client, True)

    def _pump(self, source, target, answers):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not (self.mute or (answers and self.deaf)):
                    target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy():
    with Proxy(servers.postgresql()) as proxy:
        yield proxy


@pytest.fixture
def schema():
    """A schema of this test, dropped afterwards."""
    name = fresh_schema()
    yield name
    with psycopg.connect(servers.postgresql().url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


@pytest.fixture
def store(schema):
    store = PostgreSQLStore(servers.postgresql().url, schema=schema)
    yield store
    store.close()


@pytest.fixture
def talk(store):
    return Talk(bridge_to(store))


@pytest.fixture
def admin():
    with psycopg.connect(servers.postgresql().url, autocommit=True) as admin:
        yield admin


def backends(admin, name):
    """The server's processes for the connections of the application of that name."""
    found = admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (name,)).fetchall()
    return [pid for (pid,) in found]


@pytest.mark.parametrize("verb", ["load", "commit"])
def test_server_that_falls_silent_holds_nobody_beyond_the_deadline(proxy, schema, verb):
    change = Change(A, None, {"x": put(1)}, (), {"x": None})
    message = Load((A,), timeout=0.3) if verb == "load" else replace(one([change]), timeout=0.3)
    with closing(PostgreSQLStore(proxy.url, schema=schema)) as store:
        store.load(Load((A,)))
        proxy.mute = True

        began = time.monotonic()
        with pytest.raises(StoreTimeoutError) as caught:
            getattr(store, verb)(message)

        assert time.monotonic() - began < 3
        assert caught.value.committed is (False if verb == "load" else None)
        proxy.mute = False
        assert store.load(Load((A,))).snapshots[0].head is None


def test_server_that_falls_silent_holds_no_loop_beyond_the_deadline(proxy, schema):
    async def main():
        store = PostgreSQLStore(proxy.url, schema=schema)
        await store.answer(Load((A,)))
        proxy.mute = True
        with pytest.raises(StoreTimeoutError) as caught:
            await store.answer(replace(one([Change(A, None, {"x": put(1)}, (), {"x": None})]), timeout=0.3))
        assert caught.value.committed is None
        proxy.mute = False
        assert (await store.answer(Load((A,)))).snapshots[0].head is None
        await store.aclose()

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("way", ["sync", "asyncio"])
def test_host_that_takes_connections_but_says_nothing_is_given_up(way):
    with socket.create_server((servers.HOST, 0)) as silent:
        url = f"postgresql://u:hunter2@{servers.HOST}:{silent.getsockname()[1]}/db"
        store = PostgreSQLStore(url, connect_timeout=0.2)
        message = one([Change(A, None, {"x": put(1)}, (), {"x": None})])

        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="no answer in time") as caught:
            store.commit(message) if way == "sync" else asyncio.run(store.answer(message))

        assert time.monotonic() - began < 2
        assert caught.value.committed is False
        store.close()


def test_silent_first_host_leaves_time_for_the_second(schema):
    port = servers.postgresql().port
    with socket.create_server((servers.HOST, 0)) as silent:
        url = f"postgresql://postgres@{servers.HOST}:{silent.getsockname()[1]},{servers.HOST}:{port}/postgres"
        with closing(PostgreSQLStore(url, schema=schema, connect_timeout=1.0)) as store:
            assert store.load(Load((A,))).snapshots[0].head is None


def test_host_without_an_address_is_unavailable():
    store = PostgreSQLStore("postgresql://postgres@no-such-host.invalid/postgres")

    with pytest.raises(StoreUnavailableError, match="could not be resolved"):
        store.load(Load((A,)))
    with pytest.raises(StoreUnavailableError, match="could not be resolved"):
        asyncio.run(store.answer(Load((A,))))
    store.close()


def test_commit_whose_answer_was_lost_is_written_once(proxy, schema):
    with Gantry(f"{proxy.url}?schema={schema}&commit_timeout=8", session="s1") as gantry:

        @gantry.with_memory
        def note(memory):
            memory.setdefault("log", []).append(1)
            proxy.deaf = not memory.get("deaf", False)
            memory["deaf"] = True
            threading.Timer(0.5, setattr, (proxy, "deaf", False)).start()

        note()

        with gantry.memory() as memory:
            assert memory["log"] == [1]


@pytest.mark.parametrize("stop", ["restart", "kill"])
def test_next_call_after_a_restart_works(stop):
    with servers.started("postgresql") as server, Gantry(server.url, session="s1") as gantry:
        with gantry.memory() as memory:
            memory["x"] = 1
        if stop == "kill":
            server.kill()
            server.start()
        else:
            server.restart()

        with gantry.memory() as memory:
            memory["x"] += 1

        with gantry.memory() as memory:
            assert memory["x"] == 2


@pytest.mark.parametrize("way", ["sync", "asyncio"])
def test_terminated_connections_are_not_used_again(admin, schema, way):
    name = f"{schema}-{way}"
    store = PostgreSQLStore(f"{servers.postgresql().url}?application_name={name}", schema=schema)
    change = one([Change(A, None, {"x": put(1)}, (), {"x": None})])

    async def main():
        await store.answer(Load((A,)))
        for pid in backends(admin, name):
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        # A write is not sent again by the store: it must not go to a connection that is dead.
        return await store.answer(change)

    if way == "asyncio":
        assert asyncio.run(main()) == Committed()
    else:
        store.load(Load((A,)))
        for pid in backends(admin, name):
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        assert store.commit(change) == Committed()
    store.close()


def test_connections_are_bounded_and_waited_for(admin, schema):
    url = f"{servers.postgresql().url}?application_name={schema}"
    with closing(PostgreSQLStore(url, schema=schema, max_connections=2)) as store:
        talk = Talk(bridge_to(store))
        talk.write(A, x=1)
        with holding_the_row(schema, A):
            late = [Change(A, b"other", {"x": put(n)}, (), {"x": b"none"}) for n in range(2)]
            threads = [threading.Thread(target=lambda change=change: talk.send(change)) for change in late]
            for thread in threads:
                thread.start()
            wait_until(lambda: len(backends(admin, schema)) == 2 and waiting_for_locks(admin, schema) == 2)

            with pytest.raises(StoreTimeoutError, match="none of the 2 connections got free") as caught:
                store.load(Load((A,), timeout=0.1))

            assert caught.value.committed is False
        for thread in threads:
            thread.join()
        assert len(backends(admin, schema)) == 2


@contextlib.contextmanager
def holding_the_row(schema, namespace):
    """Lock the row of a namespace, as a transaction does that is slow."""
    with psycopg.connect(servers.postgresql().url) as other:
        statement = sql.SQL("SELECT FROM {} WHERE digest = %s FOR UPDATE").format(sql.Identifier(schema, "namespace"))
        other.execute(statement, (namespace.digest,))
        yield
        other.rollback()


def waiting_for_locks(admin, name):
    statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    return admin.execute(statement, (name,)).fetchone()[0]


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_commit_that_waits_too_long_for_a_lock_is_surely_undone(talk, schema):
    talk.write(A, x=1)
    change = talk.change(A, {"x": put(2)})
    with holding_the_row(schema, A), pytest.raises(StoreTimeoutError) as caught:
        talk.bridge.store.commit(Commit(b"", b"version9", (change,), timeout=2.0))

    assert caught.value.committed is False
    talk.send(talk.change(A, {"y": put(1)}))
    assert talk.content() == {"x": 1, "y": 1}


def test_cancelled_callers_never_get_the_replies_of_others(schema):
    async def main():
        store = PostgreSQLStore(f"{servers.postgresql().url}", schema=schema, max_connections=3)
        names = [Namespace("session", f"s{n}", "app") for n in range(20)]
        for n, namespace in enumerate(names):
            await store.answer(one([Change(namespace, None, {"n": put(n)}, (), {"n": None})]))
        store._kept.clear()
        wrong = []

        async def caller(n):
            for _ in range(20):
                store._kept.clear()
                task = asyncio.ensure_future(store.answer(Load((names[n],))))
                for _ in range(random.randrange(6)):
                    await asyncio.sleep(0)
                if random.random() < 0.5:
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    loaded = await task
                    if loaded.snapshots[0].values != {"n": n}:
                        wrong.append((n, loaded.snapshots[0].values))

        await asyncio.gather(*[caller(n) for n in range(20)])
        assert wrong == []
        await store.aclose()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_cancelled_caller_waits_for_no_server(proxy, schema):
    async def main():
        store = PostgreSQLStore(proxy.url, schema=schema)
        await store.answer(Load((A,)))
        proxy.mute = True
        task = asyncio.ensure_future(store.answer(Load((A,))))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1
        proxy.mute = False
        accepted = proxy.accepted
        await store.answer(Load((A,)))
        assert proxy.accepted == accepted + 1
        await store.aclose()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_three_loops_and_plain_callers_share_a_store(schema):
    with Gantry(f"{servers.postgresql().url}?schema={schema}", session="s1") as gantry:

        @gantry.with_memory
        async def note(n, memory):
            memory.setdefault("log", []).append(n)

        async def main(n):
            await asyncio.gather(*[note(n) for _ in range(3)])

        threads = [threading.Thread(target=lambda n=n: asyncio.run(main(n))) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(main(2))

        with gantry.memory() as memory:
            assert sorted(memory["log"]) == sorted([0, 1, 2] * 3)


def test_loop_that_ends_takes_its_connections_with_it(admin, schema):
    name = f"{schema}-loop"
    store = PostgreSQLStore(f"{servers.postgresql().url}?application_name={name}", schema=schema)

    asyncio.run(store.answer(Load((A,))))

    wait_until(lambda: backends(admin, name) == [])
    store.close()


def test_program_that_never_closes_ends_quietly(schema):
    code = (
        "import asyncio, sys\n"
        "from agent_gantry_state.stores.postgresql import PostgreSQLStore\n"
        "from agent_gantry_state.stores.protocol import Load\n"
        "from agent_gantry_state.testing import A\n"
        "store = PostgreSQLStore(sys.argv[1], schema=sys.argv[2])\n"
        "store.load(Load((A,)))\n"
        "asyncio.run(store.answer(Load((A,))))\n"
    )

    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code, servers.postgresql().url, schema],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_child_of_a_fork_opens_its_own_connections(admin, schema):
    name = f"{schema}-fork"
    url = servers.postgresql().url
    store = PostgreSQLStore(f"{url}?application_name={name}", schema=schema)
    store.load(Load((A,)))
    before = backends(admin, name)
    child = os.fork()
    if not child:
        status = 1
        try:
            store.load(Load((A,)))
            status = 0 if len(backends_seen_by(url, name)) == 2 else 2
        except BaseException:
            traceback.print_exc()
        os._exit(status)

    _, ended = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(ended) == 0
    assert store.load(Load((A,))).snapshots[0].head is None
    assert set(before) <= set(backends(admin, name))
    store.close()


def backends_seen_by(url, name):
    with psycopg.connect(url, autocommit=True) as admin:
        return backends(admin, name)


# What is said of statements.


def test_prepared_statements_are_given_up_where_a_pooler_does_not_know_them(schema):
    with servers.started("pgbouncer", "default_pool_size = 2", upstream=servers.postgresql()) as bouncer:
        with closing(PostgreSQLStore(bouncer.url, schema=schema)) as store:
            talk = Talk(bridge_to(store))
            talk.write(A, x=1)
            with psycopg.connect(bouncer.url) as other:
                # A transaction that holds on to the connection on which the store has prepared its statements.
                other.execute("SELECT 1")
                for n in range(3):
                    talk.write(A, x=n)
            talk.write(A, x=5)

            assert talk.content() == {"x": 5}


def test_prepare_can_be_turned_off(schema, admin):
    with closing(open_store(f"{servers.postgresql().url}?schema={schema}&prepare=false")) as store:
        assert {name for _, _, name in store._calls.values()} == {b""}
        talk = Talk(bridge_to(store))
        talk.write(A, x=1)
        assert talk.content() == {"x": 1}


def test_synchronous_commit_is_told_to_the_transaction_alone(schema, admin):
    with psycopg_pool.ConnectionPool(servers.postgresql().url, min_size=1, max_size=1, open=True) as pool:
        with closing(PostgreSQLStore(pool=pool, schema=schema, synchronous_commit=False)) as store:
            Talk(bridge_to(store)).write(A, x=1)
        with pool.connection() as connection:
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
            assert connection.execute("SHOW lock_timeout").fetchone() == ("0",)
            assert connection.execute("SHOW enable_seqscan").fetchone() == ("on",)


def test_threads_on_two_namespaces_in_opposite_orders_do_not_wait_for_each_other_for_ever(talk):
    talk.send(talk.change(A, {"n": put(0)}), talk.change(B, {"n": put(0)}))
    versions = itertools.count(1000)  # those of `talk` are smaller

    def work(*order):
        done = 0
        while done < 25:
            loaded = talk.load(*order)
            changes = [
                Change(
                    space,
                    snapshot.head,
                    {"n": put(snapshot.values["n"] + 1)},
                    (),
                    {"n": snapshot.versions["n"]},
                    born=snapshot.born,
                )
                for space, snapshot in zip(order, loaded, strict=True)
            ]
            # Straight to the store, for a deadlock is an error after which others send again.
            answer = talk.bridge.store.commit(Commit(b"", next(versions).to_bytes(8, "big"), tuple(changes)))
            done += answer == Committed()

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        works = [threads.submit(work, *order) for order in ((A, B), (B, A)) * 2]
    for each in works:
        each.result()

    assert (talk.content(A), talk.content(B)) == ({"n": 100}, {"n": 100})


def test_several_who_make_the_same_memory_at_once_make_one(schema, talk):
    talk.load(A)
    barrier = threading.Barrier(4)
    answers = []

    def make(n):
        change = Change(A, None, {f"k{n}": put(n)}, (), {f"k{n}": None}, whole=True)
        barrier.wait()
        answers.append(talk.bridge.store.commit(Commit(b"", bytes([n]) * 8, (change,))))

    threads = [threading.Thread(target=make, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers.count(Committed()) == 1
    assert len(talk.content()) == 1


def test_what_is_expired_is_swept_a_few_at_a_time_without_waiting(schema, admin):
    store = Shifted(servers.postgresql().url, schema=schema)
    store.clock = clock = Clock()
    talk = Talk(bridge_to(store))
    spaces = [Namespace("session", f"s{n}", "app") for n in range(10)]
    for n, space in enumerate(spaces):
        talk.send(talk.change(space, {"x": put(1, ttl=10.0)}), token=bytes([n]) * 16)
    talk.ask(Lease(A, b"me", 5.0))
    clock.now += 100

    with holding_the_row(schema, spaces[3]):
        for n in range(64):
            talk.write(B, x=n)

        assert {row[0] for row in rows_of(admin, schema, "namespace")} == {spaces[3].digest, B.digest}
    assert len(rows_of(admin, schema, "entry")) == 2
    assert (rows_of(admin, schema, "token"), rows_of(admin, schema, "lease")) == ([], [])
    store.close()


def rows_of(admin, schema, table):
    return admin.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(schema, table))).fetchall()


def test_long_keys_and_owners_need_no_index_that_holds_them(talk):
    long = [random.randbytes(40_000).hex() + str(n) for n in range(3)]
    talk.commit(A, {key: put(n) for n, key in enumerate(long)}, owner=long[0])

    assert talk.content() == {key: n for n, key in enumerate(long)}
    assert talk.names(owner=long[0]) == [A]
    talk.commit(A, {}, (long[1],))
    assert list(talk.load(A, keys=((long[2], long[1]),))[0].values) == [long[2]]


# What is kept.


def test_unchanged_namespace_is_sent_once(schema):
    with Wire(servers.postgresql()) as wire, closing(PostgreSQLStore(wire.url, schema=schema)) as store:
        talk = Talk(bridge_to(store))
        talk.write(A, x="y" * 20_000)
        store._kept.clear()
        talk.load(A)
        wire.clear()

        assert talk.content() == {"x": "y" * 20_000}

        assert wire.received < 2_000


def test_snapshot_follows_the_commits_of_this_process(schema):
    with Wire(servers.postgresql()) as wire, closing(PostgreSQLStore(wire.url, schema=schema)) as store:
        talk = Talk(bridge_to(store))
        talk.write(A, x="y" * 20_000, z=put(0, ttl=1000.0))
        talk.load(A)
        talk.commit(A, {"n": put(1, ttl=100.0), "z": put([1], ttl=50.0, slides=True)}, touch=True)
        wire.clear()
        (kept,) = talk.load(A)
        assert wire.received < 2_000

        store._kept.clear()
        (fresh,) = talk.load(A)

        for name in ("values", "packed", "versions", "head", "owner", "expires_at", "slides", "touched", "born"):
            assert getattr(kept, name) == getattr(fresh, name), name
        assert list(kept.values) == list(fresh.values)


def test_row_that_is_another_namespaces_is_no_leak(talk, schema, admin):
    talk.commit(A, {"x": put("secret")}, owner="ada")
    statement = sql.SQL("UPDATE {} SET digest = %s WHERE digest = %s")
    for table in ("namespace", "entry"):
        admin.execute(statement.format(sql.Identifier(schema, table)), (B.digest, A.digest))

    with pytest.raises(CorruptEntryError, match="another namespace"):
        talk.load(B)
    with pytest.raises(CorruptEntryError, match="another namespace"):
        talk.load(B, keys=(("x",),))


@pytest.mark.parametrize("record", [b"\x02\x01", b"\x01\xc1", b""])
def test_record_that_cannot_be_read_is_told_by_its_key(talk, schema, admin, record):
    talk.write(A, good=1, bad=[1])
    statement = sql.SQL("UPDATE {} SET record = %s, version = version WHERE key = 'bad'")
    admin.execute(statement.format(sql.Identifier(schema, "entry")), (record,))
    talk.bridge.store._kept.clear()

    with pytest.raises(CorruptEntryError, match="'bad'"):
        talk.load(A)

    assert list(talk.load(A, keys=(("good",),))[0].values) == ["good"]


# The schema.


def test_processes_that_make_the_schema_at_once_all_succeed(schema):
    code = (
        "import sys\n"
        "from agent_gantry_state import Gantry\n"
        "with Gantry(sys.argv[1], session='s1') as gantry, gantry.memory() as memory:\n"
        "    memory.add('n', 1)\n"
    )
    url = f"{servers.postgresql().url}?schema={schema}"
    processes = [subprocess.Popen([sys.executable, "-c", code, url], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")

    with Gantry(url, session="s1") as gantry, gantry.memory() as memory:
        assert memory["n"] == 4


def test_what_is_missing_of_the_schema_is_made_again(talk, schema, admin):
    talk.write(A, x=1)
    admin.execute(sql.SQL("DROP FUNCTION {}").format(sql.Identifier(schema, "load_1")))
    assert talk.content() == {"x": 1}
    admin.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(schema, "token")))
    talk.send(talk.change(A, {"x": put(2)}), token=b"t" * 16)

    admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))

    assert talk.content() == {}


def test_newer_layout_is_refused_and_left_alone(talk, schema, admin):
    talk.write(A, x=1)
    admin.execute(sql.SQL("UPDATE {} SET version = 2").format(sql.Identifier(schema, "layout")))
    admin.execute(sql.SQL("DROP FUNCTION {}").format(sql.Identifier(schema, "load_1")))

    with pytest.raises(StoreError, match=r"newer version of agent-gantry-state \(layout 2.*upgrade") as caught:
        talk.load(A)

    assert caught.value.committed is False
    assert rows_of(admin, schema, "layout") == [(2,)]
    assert len(rows_of(admin, schema, "entry")) == 1


@pytest.fixture
def limited(admin):
    """A role that may create nothing, and its URL."""
    name = f"limited_{os.getpid()}_{next(_numbers)}"
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name, servers.postgresql().url.replace("//postgres@", f"//{name}@")
    admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


def test_role_that_may_not_create_is_told_how_the_schema_is_made(limited, schema):
    with closing(PostgreSQLStore(limited[1], schema=schema)) as store:
        with pytest.raises(StoreError, match=f"python -m agent_gantry_state schema postgresql --schema {schema}") as caught:
            store.load(Load((A,)))

    assert (caught.value.committed, caught.value.transient) == (False, False)


def test_printed_sql_and_the_documented_rights_are_enough(limited, schema, admin):
    name, url = limited
    printed = subprocess.run(
        [sys.executable, "-m", "agent_gantry_state", "schema", "postgresql", "--schema", schema],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    admin.execute(printed.stdout)
    with closing(PostgreSQLStore(url, schema=schema)) as store:
        with pytest.raises(StoreError, match=r"lacks a right.*permission denied for schema") as caught:
            store.load(Load((A,)))
        assert caught.value.committed is False

        documented = (pathlib.Path(__file__).parents[2] / "docs/stores/postgresql.md").read_text()
        grants = re.search(r"```sql\n(GRANT .*?)```", documented, re.DOTALL).group(1)
        admin.execute(grants.replace("agent_gantry_state", schema).replace("app_role", name))

        talk = Talk(bridge_to(store))
        for n in range(33):
            talk.write(A, x=put(n, ttl=1000.0))
        talk.write(B, y=1)
        talk.commit(B, {}, ("y",))
        assert talk.ask(Lease(A, b"me", 5.0)) == 0.0
        talk.ask(Release(A, b"me"))
        assert set(talk.names()) == {A, B}
        talk.ask(Forget((A, B)))
        assert talk.content() == {}


def test_schema_of_any_name_works(admin):
    name = 'Odd "name"; --'
    with closing(PostgreSQLStore(servers.postgresql().url, schema=name)) as store:
        talk = Talk(bridge_to(store))
        talk.write(A, x=1)
        assert talk.content() == {"x": 1}
    admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


@pytest.mark.parametrize("name", ["", "a$b", "x" * 64, "a\0b", "\ud800"])
def test_schema_that_cannot_be_one_is_refused(name):
    with pytest.raises(ValueError, match="schema must be a name"):
        PostgreSQLStore("postgresql://localhost", schema=name)


# Errors.


def raising(admin, schema, body):
    """Make the function that commits do something else."""
    text = text_of_commit(admin, schema)
    admin.execute(re.sub(r"\$function\$.*\$function\$", lambda _: f"$function${body}$function$", text, flags=re.DOTALL))


def text_of_commit(admin, schema):
    statement = (
        "SELECT pg_get_functiondef(p.oid) FROM pg_proc p WHERE p.proname = 'commit_1' AND p.pronamespace = %s::regnamespace"
    )
    return admin.execute(statement, (schema,)).fetchone()[0]


@pytest.mark.parametrize(
    ("state", "kind", "transient"),
    [
        ("40001", StoreUnavailableError, True),
        ("40P01", StoreUnavailableError, True),
        ("53100", StoreError, False),
        ("53300", StoreUnavailableError, True),
        ("57P01", StoreUnavailableError, True),
        ("57014", StoreTimeoutError, True),
        ("55P03", StoreTimeoutError, True),
        ("25006", StoreUnavailableError, True),
        ("42501", StoreError, False),
        ("22012", StoreError, False),
    ],
)
def test_error_of_the_server_says_that_nothing_was_written(talk, schema, admin, state, kind, transient):
    talk.write(A, x=1)
    change = talk.change(A, {"x": put("hunter2")})
    raising(admin, schema, f"BEGIN RAISE EXCEPTION 'no hunter2' USING ERRCODE = '{state}'; END")

    with pytest.raises(StoreError, match=f"SQLSTATE {state}") as caught:
        talk.bridge.store.commit(Commit(b"t" * 16, b"version9", (change,)))

    assert (type(caught.value), caught.value.committed, caught.value.transient) == (kind, False, transient)
    assert state == "42501" or "hunter2" not in str(caught.value)
    # The connection is as it was before.
    assert talk.content() == {"x": 1}


def test_standby_that_only_reads_answers_loads(talk, schema, admin):
    talk.write(A, x=1)
    url = servers.postgresql().url + "?options=-c%20default_transaction_read_only%3Don"
    with closing(open_store(f"{url}&schema={schema}")) as store:
        reader = Talk(bridge_to(store))
        assert reader.content() == {"x": 1}
        assert reader.names() == [A]

        with pytest.raises(StoreUnavailableError, match="only reads") as caught:
            store.commit(one([reader.change(A, {"x": put(2)})]))

        assert caught.value.committed is False


def test_server_without_a_connection_left_is_unavailable():
    with servers.started("postgresql", "-c", "max_connections=4", "-c", "superuser_reserved_connections=0") as server:
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(closing(PostgreSQLStore(server.url)))
            taken, end = 0, time.monotonic() + 10
            while taken < 4:
                try:
                    stack.enter_context(psycopg.connect(server.url))
                    taken += 1
                except psycopg.OperationalError:
                    # The connection by which the server was found to be up may be about to end.
                    assert time.monotonic() < end
                    time.sleep(0.01)

            with pytest.raises(StoreUnavailableError, match=r"too many clients|remaining connection slots") as caught:
                store.commit(one([Change(A, None, {"x": put(1)}, (), {"x": None})]))

        assert caught.value.committed is False


@pytest.mark.parametrize("way", ["sync", "asyncio"])
def test_password_is_shown_nowhere(way, caplog):
    url = servers.postgresql().password_url.replace(servers.PASSWORD, "wrong-sesame")
    store = open_store(f"{url}?sslpassword=other-sesame")
    caplog.set_level("DEBUG")

    with pytest.raises(StoreError) as caught:
        store.load(Load((A,))) if way == "sync" else asyncio.run(store.answer(Load((A,))))

    shown = "".join(traceback.format_exception(caught.value)) + repr(store) + repr(vars(store)) + caplog.text
    assert "password authentication failed" in shown
    assert "sesame" not in shown
    store.close()


def test_role_with_a_password_is_let_in(schema, admin):
    admin.execute(sql.SQL("GRANT CREATE ON DATABASE postgres TO {}").format(sql.Identifier(servers.ROLE)))
    with closing(open_store(f"{servers.postgresql().password_url}?schema={schema}")) as store:
        assert store.load(Load((A,))).snapshots[0].head is None


# URLs and objects.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("colour=red", "has no option 'colour'; it knows application_name, .*sslmode.*"),
        ("prepare=maybe", "option 'prepare' must be on or off"),
        ("synchronous_commit=local", "option 'synchronous_commit' must be on or off"),
        ("max_connections=0", "must be a whole number of at least 1"),
        ("max_connections=many", "option 'max_connections' must be a whole number"),
        ("schema=a%24b", "schema must be a name"),
        ("load_timeout=0", "option 'load_timeout' must be a positive number of seconds"),
    ],
)
def test_url_that_is_wrong_is_refused(options, message):
    with pytest.raises(StoreURLError, match=message) as caught:
        open_store(f"postgresql://u:hunter2@localhost/db?{options}")

    assert "hunter2" not in str(caught.value)


def test_url_that_libpq_cannot_read_shows_no_password():
    with pytest.raises(StoreURLError) as caught:
        open_store("postgresql://u:hunter%zz2@localhost/db")

    assert "hunter" not in "".join(traceback.format_exception(caught.value)).replace("u:hunter%zz2@localhost", "", 1)


def test_parameters_of_libpq_are_passed_on():
    store = open_store("postgresql://ada:p%40ss@h1:5,h2:6/db?sslmode=require&application_name=me&target_session_attrs=any")

    assert store._server.parameters.values == {
        "user": "ada",
        "password": "p@ss",
        "host": "h1,h2",
        "port": "5,6",
        "dbname": "db",
        "sslmode": "require",
        "application_name": "me",
        "target_session_attrs": "any",
    }
    store.close()


def test_store_needs_to_know_where_to_connect():
    with pytest.raises(ValueError, match="give conninfo, pool or apool"):
        PostgreSQLStore()


def test_pool_of_the_user_is_used_and_stays_open(schema):
    with psycopg_pool.ConnectionPool(servers.postgresql().url, min_size=1, max_size=2, open=True) as pool:
        with Gantry(PostgreSQLStore(pool=pool, schema=schema), session="s1") as gantry:

            @gantry.with_memory
            def count(memory):
                memory.add("n", 1)

            @gantry.with_memory
            async def acount(memory):
                memory.add("n", 1)

            count()
            asyncio.run(acount())
            anyio.run(acount, backend="trio")
            with gantry.memory() as memory:
                assert memory["n"] == 3

        with pool.connection() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_async_pool_of_the_user_is_used_on_its_loop_and_stays_open(schema):
    async def main():
        url = servers.postgresql().url
        async with psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=2, open=False) as apool:
            store = PostgreSQLStore(url, apool=apool, schema=schema)
            await store.answer(one([Change(A, None, {"x": put(1)}, (), {"x": None})]))
            requests = apool.get_stats()["requests_num"]
            assert requests > 0
            await asyncio.to_thread(lambda: asyncio.run(store.answer(Load((A,)))))
            assert apool.get_stats()["requests_num"] == requests
            await store.aclose()
            async with apool.connection() as connection:
                assert await (await connection.execute("SELECT 1")).fetchone() == (1,)

    asyncio.run(main())


def test_callers_without_a_pool_of_theirs_are_told(schema):
    store = PostgreSQLStore(apool=psycopg_pool.AsyncConnectionPool(open=False), schema=schema)

    with pytest.raises(StoreError, match="give conninfo or pool="):
        store.load(Load((A,)))
    store.close()


def test_cancelled_or_late_request_gives_no_pool_a_connection_in_the_middle(proxy, schema):
    async def main():
        async with psycopg_pool.AsyncConnectionPool(proxy.url, min_size=1, max_size=1, open=False) as apool:
            store = PostgreSQLStore(apool=apool, schema=schema)
            await store.answer(Load((A,)))
            proxy.mute = True
            with pytest.raises(StoreTimeoutError):
                await store.answer(Load((A,), timeout=0.2))
            proxy.mute = False
            assert (await store.answer(Load((A,)))).snapshots[0].head is None
            await store.aclose()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_many_small_keys_count_for_what_is_kept_of_them(store):
    talk = Talk(bridge_to(store))
    talk.write(A, **{f"key-{n}": n for n in range(1_000)})
    store._kept.clear()

    talk.load(A)

    assert store._kept.bytes > 1_000 * KEY_BYTES
