"""The Redis store answers by the rules for all stores, on each server that it is for, and keeps its own promises."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import itertools
import logging
import math
import os
import random
import signal
import socket
import threading
import time
import traceback
import tracemalloc
import warnings

import anyio
import pytest
import redis
import redis.asyncio
from guarded import encrypted
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import PASSWORD, redis_6, redis_8, redis_cluster, redis_sentinel, started, started_cluster, valkey
from support import Before, Watched
from wire import Wire

from agent_gantry_state import (
    CorruptEntryError,
    Gantry,
    MemoryConflictError,
    Namespace,
    NotAtomicError,
    StoreClosedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    StoreURLError,
)
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Change, Commit, Committed, Forget, Lease, List, Load, Moved
from agent_gantry_state.stores.redis import RedisStore
from agent_gantry_state.stores.redis_layout import place_of
from agent_gantry_state.stores.redis_routes import ClusterRoute
from agent_gantry_state.stores.redis_wire import Node, Refusal, refused
from agent_gantry_state.stores.urls import open_store
from agent_gantry_state.testing import NOWHERE, A, B, Clock, StoreContract, Talk, put


class ClockedStore(RedisStore):
    """A store whose server goes by the clock that a test sets; like a server's, it does not go back by itself."""

    _clock = None
    _latest = -math.inf

    @property
    def clock(self):
        return self._clock or time.time

    @clock.setter
    def clock(self, clock):
        self._clock, self._latest = clock, -math.inf

    def _time(self):
        if self._clock is None:
            return b""
        self._latest = max(self._latest, self._clock())
        return repr(self._latest).encode()


def new_prefix():
    return f"test-{os.urandom(6).hex()}:"


def clocked(server):
    """A store with keys of its own on a shared server."""
    return ClockedStore(open_store(server.url)._address, prefix=new_prefix())


class TestRedis6(StoreContract):
    @pytest.fixture
    def store(self):
        return clocked(redis_6())


class TestRedis8(StoreContract):
    @pytest.fixture
    def store(self):
        return clocked(redis_8())


class TestValkey(StoreContract):
    @pytest.fixture
    def store(self):
        return clocked(valkey())


class TestCluster(StoreContract):
    commits_together = False

    @pytest.fixture
    def store(self):
        return clocked(redis_cluster())


class TestSentinel(StoreContract):
    @pytest.fixture
    def store(self):
        return clocked(redis_sentinel())


class TestClients(StoreContract):
    """Clients of the user's own, of which the sync one decodes what it reads."""

    @pytest.fixture
    def store(self):
        port = redis_8().port
        with redis.Redis(port=port, decode_responses=True) as client:
            yield RedisStore(client=client, prefix=new_prefix())
            assert client.ping()


class TestClusterClients(StoreContract):
    commits_together = False

    @pytest.fixture
    def store(self):
        with contextlib.closing(redis.RedisCluster("127.0.0.1", redis_cluster().port)) as client:
            yield RedisStore(client=client, prefix=new_prefix())
            assert client.ping()


@pytest.fixture(params=[redis_6, redis_8, valkey], ids=["redis-6.2", "redis-8.2", "valkey"])
def server(request):
    return request.param()


@pytest.fixture
def store(server):
    store = clocked(server)
    yield store
    store.close()


@pytest.fixture
def talk(store):
    return Talk(bridge_to(store))


@pytest.fixture
def admin(server):
    """Somebody who looks at the server from beside the store."""
    with redis.Redis(port=server.port) as client:
        yield client


@contextlib.contextmanager
def private(name="redis_8", *arguments, **options):
    """A server of the test's own, and somebody who has a look at it."""
    with started(name, *arguments, **options) as server, redis.Redis(port=server.port) as admin:
        yield server, admin


def hash_of(store, namespace=A):
    return store._place(namespace).key


def commit_of(values, namespace=A, token=b""):
    puts = {key: put(value) for key, value in values.items()}
    return Commit(token, os.urandom(8), (Change(namespace, None, puts, (), dict.fromkeys(puts)),))


# The usual commit has a way of its own; it and the general one do the same as the memory store, which has neither.


@pytest.mark.parametrize("seed", range(30))
def test_any_run_of_commits_leaves_what_the_memory_store_has(store, seed):
    rng = random.Random(seed)
    clock = Clock()
    store.clock = clock
    pair = [Talk(bridge_to(store)), Talk(bridge_to(MemoryStore(clock=clock)))]
    held = [[], []]
    keys = "abcdef"

    def terms():
        if rng.random() < (0.15 if seed % 2 else 0.0):
            return {"ttl": rng.choice([None, 5.0, 20.0]), "slides": rng.random() < 0.5, "last": rng.random() < 0.2}
        return {"last": rng.random() < 0.2}

    for _ in range(60):
        clock.now += rng.choice([0, 0, 0, 1, 4])
        puts = {key: put(rng.choice([rng.randrange(9), [rng.randrange(9)]]), **terms()) for key in rng.sample(keys, 2)}
        deletes = [key for key in rng.sample(keys, 2) if key not in puts] if rng.random() < 0.2 else []
        how = {"touch": rng.random() < 0.2, "whole": rng.random() < 0.1}
        if rng.random() < 0.05:
            how["owner"] = rng.choice(["", "ada"])
        if rng.random() < 0.15:
            puts = {}
        namespace, late = rng.choice([A, B]), rng.random() < 0.3
        # Whether the token of a commit that wrote nothing is kept is left to a store.
        token = rng.choice([b"", rng.randbytes(16)]) if puts or deletes else b""
        answers = []
        for talk, old in zip(pair, held, strict=True):
            message = talk.message(talk.change(namespace, puts, deletes, **how), token=token)
            old.append(message)
            answer = talk.ask(old.pop(0) if late else message)
            answers.append(answer if isinstance(answer, Committed) else [shown(each) for each in answer.snapshots])

        if all(isinstance(answer, Committed) for answer in answers):
            ours, theirs = ([shown(snapshot) for snapshot in talk.load(A, B, NOWHERE)] for talk in pair)
            assert ours == theirs
        else:
            assert [type(answer) for answer in answers] == [list, list]


def shown(snapshot):
    values = {key: snapshot.value(key) for key in snapshot.values}
    deadlines = {key: snapshot.deadline(key) for key in snapshot.values}
    return list(values.items()), snapshot.versions, snapshot.head, snapshot.born, snapshot.owner, deadlines


# What is read again only if it changed.


def test_unchanged_namespace_is_not_sent_again():
    with Wire(redis_8()) as wire, contextlib.closing(open_store(f"{wire.url}?prefix={new_prefix()}")) as store:
        talk = Talk(bridge_to(store))
        talk.write(A, x="x" * 50_000)
        (first,) = talk.load()
        wire.clear()

        (second,) = talk.load()

        assert second is first
        assert (wire.trips, wire.received < 200) == (1, True)


def test_change_of_another_process_is_seen(server):
    prefix = new_prefix()
    stores = [RedisStore(open_store(server.url)._address, prefix=prefix) for _ in range(2)]
    mine, other = (Talk(bridge_to(store)) for store in stores)
    other._versions = itertools.count(1000)
    mine.write(A, x=1, y=[1])
    mine.load()

    other.write(A, x=2)
    assert mine.content() == {"x": 2, "y": [1]}
    other.ask(Forget((A,)))
    assert mine.content() == {}
    other.write(A, x=2)
    assert mine.content() == {"x": 2}
    for store in stores:
        store.close()


def test_own_commits_are_known_without_reading(server):
    with Wire(server) as wire, contextlib.closing(open_store(f"{wire.url}?prefix={new_prefix()}")) as store:
        talk = Talk(bridge_to(store))
        talk.write(A, a=1, b="b" * 20_000, c=[1])
        talk.load()
        talk.write(A, a=2, d=4)
        talk.commit(A, {"c": put(5, last=True)}, ("a",))
        wire.clear()

        assert list(talk.content().items()) == [("b", "b" * 20_000), ("d", 4), ("c", 5)]
        assert wire.received < 200
        with contextlib.closing(open_store(f"{server.url}?prefix={store._prefix.decode()}")) as other:
            assert shown(Talk(bridge_to(other)).load()[0]) == shown(talk.load()[0])


# What Redis is left to tidy up.


def test_namespace_that_expires_as_a_whole_goes_by_itself(talk, store, admin):
    talk.write(A, x=put(1, ttl=100.0), y=put(1, ttl=50.0))
    assert 99_000 < admin.pttl(hash_of(store)) <= 100_000

    talk.write(A, z=1)
    assert admin.pttl(hash_of(store)) == -1

    talk.commit(A, {}, ("z",))
    assert 98_000 < admin.pttl(hash_of(store)) <= 100_000

    talk.commit(A, {"x": put(1, ttl=None)})
    assert admin.pttl(hash_of(store)) == -1


def test_namespace_in_which_a_key_stays_does_not_go_by_itself(talk, store, admin):
    talk.write(A, x=1)
    # Made, and written, in the usual way.
    talk.write(A, y=1)
    talk.write(A, y=2)
    talk.commit(A, deletes=("x",))
    talk.write(A, z=put(1, ttl=100.0))

    assert admin.pttl(hash_of(store)) == -1


def test_touch_moves_the_end_of_a_namespace(talk, store, admin):
    clock = store.clock = Clock()
    talk.commit(A, {"x": put(1, ttl=100.0, slides=True)}, touch=True)
    admin.pexpire(hash_of(store), 5_000)
    clock.now += 50

    talk.commit(A, touch=True)

    assert 99_000 < admin.pttl(hash_of(store)) <= 100_000


def test_namespace_is_gone_at_its_time_by_the_servers_clock(server):
    with contextlib.closing(open_store(f"{server.url}?prefix={new_prefix()}")) as store:
        talk = Talk(bridge_to(store))
        talk.write(A, x=put(1, ttl=0.05), y=1)
        talk.write(B, x=put(1, ttl=0.05))
        before = talk.loaded()

        deadline = time.monotonic() + 10
        while talk.content(B) and time.monotonic() < deadline:
            time.sleep(0.01)

        assert abs(before.now - time.time()) < 60
        assert (talk.content(A), talk.content(B)) == ({"y": 1}, {})
        assert talk.names() == [A]


def test_keys_that_expired_are_removed_by_the_next_commit(talk, store, admin):
    clock = store.clock = Clock()
    talk.write(A, x=put(1, ttl=10.0), y=1)
    clock.now += 10

    talk.write(A, y=2)

    assert set(admin.hkeys(hash_of(store))) == {b"h", b"ky"}


def test_listing_forgets_what_redis_let_go(talk, store, admin):
    talk.write(A, x=1)
    talk.write(B, x=1)
    admin.delete(hash_of(store, A))

    assert talk.names() == [B]
    assert admin.zcard(store._place(A).listing) == 0
    assert admin.zcard(store._place(B).listing) == 1


def test_everything_of_a_namespace_begins_with_the_prefix_and_tokens_end(talk, store, admin):
    talk.ask(talk.message(talk.change(A, {"x": put(1)}), token=b"t" * 16))
    talk.ask(Lease(A, b"me", 5.0))

    found = list(admin.scan_iter(match=f"{store._prefix.decode()}*", count=1000))

    assert len(found) == 4
    lasting = {hash_of(store), store._place(A).listing}
    assert {key for key in found if admin.pttl(key) < 0} == lasting
    assert all(0 < admin.pttl(key) <= 60_000 for key in found if key not in lasting)
    talk.ask(Forget((A,)))
    assert not admin.exists(*lasting)


def test_many_namespaces_are_listed_in_pages(talk, store):
    for index in range(1500):
        talk.ask(commit_of({"x": 1}, Namespace("session", f"s{index}", "app" if index % 500 else "rare")))
    seen, after = [], None
    while True:
        page = talk.page(limit=400, after=after)
        seen += [listed.namespace for listed in page.listed]
        after = page.after
        if after is None:
            break

    assert len(seen) == len(set(seen)) == 1500
    assert seen == sorted(seen, key=lambda namespace: namespace.digest)
    # More are looked at than one script may.
    assert {namespace.id for namespace in talk.names(app="rare")} == {"s0", "s500", "s1000"}


# Scripts.


def test_scripts_that_were_flushed_are_given_again(talk, admin):
    talk.write(A, x=1)
    admin.script_flush()

    assert talk.content() == {"x": 1}
    admin.script_flush()
    talk.write(A, x=2)

    assert talk.content() == {"x": 2}


def test_commit_of_a_thousand_keys_is_one_step(talk):
    values = {f"k{index}": put(index) for index in range(3000)}
    talk.commit(A, values)
    talk.commit(A, {key: put("new", ttl=100.0) for key in values})
    assert set(talk.content().values()) == {"new"}

    talk.commit(A, {"x": put(1)}, [*values])

    assert talk.content() == {"x": 1}


# Damage.


def test_hash_of_another_namespace_is_not_taken_for_ones_own(talk, store, admin):
    talk.write(A, x=1)
    talk.write(B, secret=1)
    admin.rename(hash_of(store, B), hash_of(store, A))

    for load in (Load((A,)), Load((A,), keys=(("x",),))):
        with pytest.raises(CorruptEntryError, match="another namespace"):
            talk.ask(load)


def test_newer_layout_is_refused_and_not_rewritten(talk, store, admin):
    talk.write(A, x=1)
    late = talk.message(talk.change(A, {"x": put(2)}))
    admin.hset(hash_of(store), "h", b"\x02 of the future")
    before = admin.hgetall(hash_of(store))

    for message in (late, Load((A,)), Load((A,), keys=(("x",),)), List()):
        with pytest.raises(CorruptEntryError, match=r"newer version .*layout 2, this one knows 1") as caught:
            talk.ask(message)
        assert caught.value.committed is False
    assert admin.hgetall(hash_of(store)) == before


@pytest.mark.parametrize("value", [b"", b"short", b"v" * 25, b"v" * 25 + b"\x01\xc1", b"v" * 25 + b"\x09\x01"])
def test_damaged_entry_is_named_and_left(talk, store, admin, value):
    talk.write(A, x=1, y=1)
    admin.hset(hash_of(store), "kx", value)
    store._kept.clear()

    with pytest.raises(CorruptEntryError, match="key 'x'"):
        talk.load()

    assert admin.hget(hash_of(store), "kx") == value


def cut(raw, how):
    """A header that is damaged."""
    return {"empty": b"", "short": raw[:20], "owner": raw[:66] + b"\x00\x01\x00\x00" + raw[70:], "layout": b"\0" + raw[1:]}[
        how
    ]


@pytest.mark.parametrize("how", ["empty", "short", "owner", "layout"])
def test_damaged_header_is_an_error_that_writes_nothing(talk, store, admin, how):
    talk.write(A, x=1)
    late = talk.message(talk.change(A, {"x": put(2)}, whole=True), token=b"t" * 16)
    admin.hset(hash_of(store), "h", cut(admin.hget(hash_of(store), "h"), how))
    store._kept.clear()
    before = admin.hgetall(hash_of(store))

    for message in (late, Load((A,)), Load((A,), keys=(("x",),)), commit_of({"x": 1}, token=b"u" * 16)):
        with pytest.raises(CorruptEntryError, match="bytes are damaged") as caught:
            talk.ask(message)
        assert caught.value.committed is False
    assert admin.hgetall(hash_of(store)) == before
    assert not list(admin.scan_iter(match=f"{hash_of(store).decode()}:*", count=1000))


@pytest.mark.parametrize("ways", [{}, {"ttl": 50.0}, {"touch": True}])
@pytest.mark.parametrize("deletes", [(), ("x",)])
def test_commit_on_a_damaged_entry_writes_nothing(talk, store, admin, ways, deletes):
    touch = ways.pop("touch", False) if ways else False
    talk.write(A, x=1, y=1)
    puts = {"y": put(2)} if deletes else {"x": put(2, **ways), "y": put(2)}
    message = talk.message(talk.change(A, puts, deletes, touch=touch), talk.change(B, {"z": put(1)}), token=b"t" * 16)
    alone = talk.message(talk.change(A, puts, deletes, touch=touch), token=b"t" * 16)
    admin.hset(hash_of(store), "kx", admin.hget(hash_of(store), "kx")[:12])
    before = admin.hgetall(hash_of(store))

    for each in (message, alone):
        with pytest.raises(CorruptEntryError, match="bytes are damaged") as caught:
            talk.ask(each)
        assert caught.value.committed is False
    assert admin.hgetall(hash_of(store)) == before
    assert not admin.exists(hash_of(store, B), store._place(B).listing)
    assert not list(admin.scan_iter(match=f"{hash_of(store).decode()}:*", count=1000))


@pytest.mark.parametrize("how", ["empty", "short", "owner", "layout", "address"])
def test_listing_leaves_out_what_is_damaged_and_says_so_once(talk, store, admin, caplog, how):
    talk.write(A, x=1)
    talk.write(B, x=1)
    raw = admin.hget(hash_of(store), "h")
    admin.hset(hash_of(store), "h", raw[:75] if how == "address" else cut(raw, how))

    for _ in range(2):
        assert talk.names() == [B]
        assert talk.names(app=B.app, scope=B.scope) == [B]
        assert [listed.namespace for listed in talk.page(limit=1).listed] == [B]

    assert [A.digest.hex() in record.getMessage() for record in caplog.records] == [True]
    assert admin.hlen(hash_of(store)) == 2
    talk.ask(Forget((A,)))
    assert not admin.exists(hash_of(store))


# What a new memory tidies up of the index.


def neighbours(store):
    """Two namespaces that stand next to each other in an index."""
    found = {}
    for index in range(2000):
        namespace = Namespace("session", f"n{index}", "app")
        found.setdefault(store._place(namespace).tag, []).append(namespace)
    pair = next(each for each in found.values() if len(each) >= 2)
    return sorted(pair[:2], key=lambda each: each.digest)


def test_memory_that_is_made_again_beside_its_neighbour_is_listed(talk, store, admin):
    one, other = neighbours(store)
    talk.write(other, x=1)
    admin.delete(hash_of(store, other))

    talk.send(talk.change(one, {"x": put(1)}), talk.change(other, {"x": put(2)}))

    assert set(talk.names()) == {one, other}


def test_tidying_up_does_not_make_a_full_server_write():
    for name in ("redis_6", "redis_8", "valkey"):
        with private(name) as (server, admin), contextlib.closing(open_store(server.url)) as store:
            talk = Talk(bridge_to(store))
            one, other = neighbours(store)
            talk.write(other, x=1)
            admin.delete(hash_of(store, other))
            admin.config_set("maxmemory", 1)

            with pytest.raises(StoreError, match="out of memory"):
                talk.send(talk.change(one, {"x": put(2)}))

            admin.config_set("maxmemory", 0)
            assert admin.zrange(store._place(one).listing, 0, -1) == [other.digest.hex().encode()]
            talk.write(one, x=1)
            assert admin.zrange(store._place(one).listing, 0, -1) == [one.digest.hex().encode()]


def test_what_of_a_neighbour_cannot_be_told_is_left(talk, store, admin):
    one, other = neighbours(store)
    talk.write(other, x=1)
    admin.delete(hash_of(store, other))
    admin.set(hash_of(store, other), "somebody's")

    talk.write(one, x=1)

    assert admin.zcard(store._place(one).listing) == 2


def test_long_ids_are_not_kept():
    tracemalloc.start()
    for index in range(200):
        place_of(b"p:", Namespace("session", f"{index}" + "x" * 100_000))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert kept < 2_000_000


# Restarts, and servers that do not answer.


def test_next_call_works_after_a_restart():
    with started("redis_8", appendonly=True) as server, Gantry(server.url, session="s") as gantry:
        with gantry.memory() as memory:
            memory["n"] = 1
        server.restart()
        with gantry.memory() as memory:
            assert memory["n"] == 1
            server.restart()
            memory["n"] = 2
        with gantry.memory() as memory:
            assert memory["n"] == 2

        async def later():
            async with gantry.memory() as memory:
                memory["n"] += 1
                await anyio.to_thread.run_sync(server.restart)
            await anyio.to_thread.run_sync(server.restart)
            async with gantry.memory() as memory:
                return memory["n"]

        assert asyncio.run(later()) == 3


@pytest.mark.anyio
async def test_server_that_is_not_there_is_an_error_that_says_so():
    with started("redis_8") as server:
        url = server.url
    store = open_store(f"{url}?load_timeout=5")
    talk = Talk(bridge_to(store))

    for ask in (talk.aask, sync(talk)):
        for message in (Load((A,)), commit_of({"x": 1})):
            with pytest.raises(StoreUnavailableError, match="no connection to Redis") as caught:
                await ask(message)
            assert (caught.value.committed, caught.value.transient) == (False, True)
    store.close()


def sync(talk):
    async def ask(message):
        return talk.ask(message)

    return ask


def test_name_that_no_host_can_have_is_an_error_that_says_so():
    store = open_store(f"redis://{'x' * 70}.example:1")
    for ask in (store.load, lambda message: asyncio.run(store.answer(message))):
        with pytest.raises(StoreUnavailableError, match="no connection to Redis"):
            ask(Load((A,)))
    store.close()


def test_address_that_never_answers_leaves_time_for_the_next_one(monkeypatch, server):
    with socket.socket() as deaf, contextlib.ExitStack() as stack:
        deaf.bind(("127.0.0.2", server.port))
        deaf.listen(0)
        for _ in range(4):
            # Its backlog is full after that.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, server.port)) for host in ("127.0.0.2", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        store = open_store(f"redis://several:{server.port}?connect_timeout=1&prefix={new_prefix()}")

        assert store.load(Load((A,))).snapshots[0].head is None
        store.close()


@contextlib.contextmanager
def paused(server):
    """The server does nothing for now."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_server_that_stands_still_is_waited_for_until_the_time_is_over(kind):
    with started("redis_8") as server, contextlib.closing(open_store(server.url)) as store:
        talk = Talk(bridge_to(store))
        ask = talk.aask if kind == "async" else sync(talk)
        await ask(commit_of({"x": 1}))
        begin = time.monotonic()

        with paused(server):
            with pytest.raises(StoreTimeoutError) as caught:
                await ask(Load((A,), timeout=0.1))
            assert caught.value.committed is False
            with pytest.raises(StoreTimeoutError) as caught:
                await ask(Commit(b"", os.urandom(8), commit_of({"y": 1}, B).changes, timeout=0.1))
            assert caught.value.committed is None

        assert time.monotonic() - begin < 5
        # What was sent too late is done, and its answer is nobody's.
        assert talk.content() == {"x": 1}
        assert (await ask(Load((B, A)))).snapshots[1].value("x") == 1


def test_host_that_never_answers_is_given_up_in_time():
    # A full backlog: what more comes is left without an answer.
    with socket.socket() as deaf, contextlib.ExitStack() as stack:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(deaf.getsockname())
        store = open_store(f"redis://127.0.0.1:{deaf.getsockname()[1]}?connect_timeout=0.2")
        begin = time.monotonic()

        for ask in (store.load, lambda message: asyncio.run(store.answer(message))):
            with pytest.raises(StoreTimeoutError):
                ask(Load((A,)))

        assert time.monotonic() - begin < 3
        store.close()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_wait_for_a_connection_has_an_end(kind):
    if kind == "async" and not in_asyncio():
        pytest.skip("trio comes in a thread")
    with started("redis_8") as server, contextlib.closing(open_store(f"{server.url}?max_connections=1")) as store:
        store.load(Load((A,)))

        async def ask(timeout):
            message = Load((A,), timeout=timeout)
            return await (store.answer(message) if kind == "async" else anyio.to_thread.run_sync(store.load, message))

        with paused(server):
            async with anyio.create_task_group() as group:
                group.start_soon(swallowed, ask, 1.0)
                await anyio.sleep(0.2)
                with pytest.raises(StoreTimeoutError, match="max_connections") as caught:
                    await ask(0.2)
                assert caught.value.committed is False
        await ask(5.0)


async def swallowed(ask, *args):
    with contextlib.suppress(StoreTimeoutError):
        await ask(*args)


def in_asyncio():
    try:
        return bool(asyncio.get_running_loop())
    except RuntimeError:
        return False


def test_few_connections_serve_many_callers(server):
    with contextlib.closing(open_store(f"{server.url}?max_connections=2&prefix={new_prefix()}")) as store:
        spaces = [Namespace("session", str(index), "app") for index in range(24)]
        for index, namespace in enumerate(spaces):
            store.commit(commit_of({"x": index}, namespace))

        async def everybody():
            return await asyncio.gather(*[store.answer(Load((namespace,))) for namespace in spaces])

        answers = asyncio.run(everybody())
        found = {}

        def read(index):
            found[index] = store.load(Load((spaces[index],))).snapshots[0].values["x"]

        threads = [threading.Thread(target=read, args=(index,)) for index in range(len(spaces))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [answer.snapshots[0].values["x"] for answer in answers] == list(range(24))
        assert found == {index: index for index in range(24)}


def test_cancelled_callers_leave_no_reply_to_others():
    async def main(store, admin, spaces):
        rng = random.Random(1)

        async def read(index):
            answer = await store.answer(Load((spaces[index],)))
            assert answer.snapshots[0].values == {"x": index}

        await read(0)
        for _ in range(30):
            tasks = [asyncio.ensure_future(read(index)) for index in range(len(spaces))]
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            cut = rng.sample(tasks, 3)
            for task in cut:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(end) for task, end in zip(tasks, ends, strict=True) if task not in cut} == {type(None)}
        admin.client_pause(200)
        task = asyncio.ensure_future(read(1))
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.gather(*[read(index) for index in range(len(spaces))])

    with private() as (server, admin), contextlib.closing(open_store(f"{server.url}?max_connections=4")) as store:
        spaces = [Namespace("session", str(index), "app") for index in range(8)]
        for index, namespace in enumerate(spaces):
            store.commit(commit_of({"x": index}, namespace))
        # Nothing is kept of them, so that each answer has the values in it.
        store._keep = lambda *_: None
        store._kept.clear()

        asyncio.run(main(store, admin, spaces))


def test_connection_of_a_cancelled_call_is_closed():
    async def main(store, admin):
        await store.answer(Load((A,)))
        (before,) = {client["id"] for client in admin.client_list()} - {str(admin.client_id())}
        admin.client_pause(200)
        task = asyncio.ensure_future(store.answer(Load((A,))))
        await asyncio.sleep(0.05)

        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        # The loop closes it in its next round; the server has not answered yet.
        await asyncio.sleep(0.01)
        assert before not in {client["id"] for client in admin.client_list()}

    with private() as (server, admin), contextlib.closing(open_store(f"{server.url}?max_connections=1")) as store:
        asyncio.run(main(store, admin))


# Callers.


def test_three_event_loops_and_threads_use_one_gantry(server):
    with Gantry(f"{server.url}?prefix={new_prefix()}", session="s") as gantry:

        @gantry.with_memory
        async def note(n, memory):
            memory.setdefault("log", []).append(n)

        async def several(first):
            await asyncio.gather(*[note(n) for n in range(first, first + 5)])

        def run(first):
            asyncio.run(several(first))

        threads = [threading.Thread(target=run, args=(first,)) for first in (0, 5, 10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(several(15))

        with gantry.memory() as memory:
            assert sorted(memory["log"]) == list(range(20))


def test_connections_are_closed_with_their_loop_and_with_the_store():
    with private() as (server, admin):
        store = open_store(server.url)
        store.load(Load((A,)))
        asyncio.run(store.answer(Load((A,))))
        loop = asyncio.new_event_loop()
        loop.run_until_complete(store.answer(Load((A,))))
        assert len(admin.client_list()) == 3
        loop.close()

        asyncio.run(store.answer(Load((A,))))
        assert seen_to_be(admin, 2)
        with warnings.catch_warnings():
            # asyncio's word for a loop that was closed before what was on it.
            warnings.simplefilter("ignore", ResourceWarning)
            del loop
            gc.collect()
        store.close()

        assert seen_to_be(admin, 1)
        with pytest.raises(StoreClosedError):
            store.load(Load((A,)))


def seen_to_be(admin, count):
    deadline = time.monotonic() + 5
    while len(admin.client_list()) != count and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(admin.client_list()) == count


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_child_opens_connections_of_its_own(server):
    with contextlib.closing(open_store(f"{server.url}?prefix={new_prefix()}")) as store:
        talk = Talk(bridge_to(store))
        talk.write(A, x=1)
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                for n in range(50):
                    talk.write(B, x=n)
                store.close()
                code = 0 if n == 49 else 1
            os._exit(code)
        for n in range(50):
            talk.write(A, x=n)
        _, status = os.waitpid(pid, 0)

        assert status == 0
        assert (talk.content(A), talk.content(B)) == ({"x": 49}, {"x": 49})


# Clients of the user's own.


@pytest.mark.parametrize("decodes", [False, True])
def test_clients_of_ones_own_serve_both_kinds_of_callers_and_stay_open(server, decodes):
    async def main(client):
        aclient = redis.asyncio.Redis(port=server.port, decode_responses=decodes)
        store = RedisStore(client=client, aclient=aclient, prefix=new_prefix())
        async with Gantry(store, session="s") as gantry:
            async with gantry.memory() as memory:
                memory["x"] = b"\xff"

            def blocks():
                with gantry.memory() as memory:
                    memory["y"] = [memory["x"]]

            await asyncio.to_thread(blocks)
            async with gantry.memory() as memory:
                assert memory == {"x": b"\xff", "y": [b"\xff"]}
            # Another loop's callers come through the sync client.
            assert await asyncio.to_thread(lambda: asyncio.run(store.answer(List(limit=1)))) == await store.answer(List())
        store.close()
        assert await aclient.ping()
        await aclient.aclose()

    with redis.Redis(port=server.port, decode_responses=decodes) as client:
        asyncio.run(main(client))
        assert client.ping()


def test_cluster_client_of_asyncio_stays_open():
    async def main():
        aclient = redis.asyncio.RedisCluster("127.0.0.1", redis_cluster().port)
        store = RedisStore(aclient=aclient, prefix=new_prefix())
        spaces = [Namespace("session", str(index), "app") for index in range(6)]
        for index, namespace in enumerate(spaces):
            assert await store.answer(commit_of({"x": index}, namespace)) == Committed()
        loaded = await store.answer(Load(tuple(spaces)))
        assert [snapshot.values["x"] for snapshot in loaded.snapshots] == list(range(6))
        await store.aclose()
        assert await aclient.ping()
        await aclient.aclose()

    asyncio.run(main())


def test_asyncio_client_alone_refuses_callers_that_it_cannot_serve(server):
    async def main():
        aclient = redis.asyncio.Redis(port=server.port)
        store = RedisStore(aclient=aclient, prefix=new_prefix())
        await store.answer(Load((A,)))
        with pytest.raises(StoreError, match="give it client= as well") as caught:
            await asyncio.to_thread(store.load, Load((A,)))
        assert (caught.value.committed, caught.value.transient) == (False, False)
        with pytest.raises(StoreError, match="belongs to the event loop"):
            await asyncio.to_thread(lambda: asyncio.run(store.answer(Load((A,)))))
        await store.answer(Load((A,)))
        await aclient.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_failures_of_ones_own_client_are_the_stores_errors(kind):
    async def main(server, admin, client):
        aclient = redis.asyncio.Redis(port=server.port, retry=AsyncRetry(NoBackoff(), 0))
        store = RedisStore(client=client, aclient=aclient)

        async def ask(message):
            return await (store.answer(message) if kind == "async" else asyncio.to_thread(store.load, message))

        await ask(Load((A,)))
        with paused(server):
            with pytest.raises(StoreTimeoutError):
                await ask(Load((A,), timeout=0.2))
        await ask(Load((A,)))
        admin.execute_command("SCRIPT", "FLUSH")
        await ask(Load((A,)))
        admin.set(hash_of(store), "somebody's")
        with pytest.raises(StoreError, match="somebody else's"):
            await ask(Load((A,)))
        await asyncio.to_thread(server.stop)
        with pytest.raises(StoreUnavailableError):
            await ask(Load((A,)))
        await aclient.aclose()

    with private() as (server, admin), redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as client:
        asyncio.run(main(server, admin, client))


def test_what_is_no_client_is_refused():
    client, aclient = redis.Redis(), redis.asyncio.Redis()
    for options in ({"client": aclient}, {"aclient": client}, {"client": "redis://"}, {"aclient": object()}):
        with pytest.raises(TypeError, match="RedisStore"):
            RedisStore(**options)
    with pytest.raises(ValueError, match="exclude each other"):
        RedisStore(open_store("redis://")._address, client=client)


# What Redis refuses.


def test_wrong_password_is_refused_and_shown_nowhere(caplog):
    caplog.set_level(logging.DEBUG)
    with started("redis_8", password=True) as server:
        good = open_store(server.url)
        assert good.commit(commit_of({"x": 1})) == Committed()
        wrong = open_store(server.url.replace(PASSWORD, "wr0ng-secret"))
        without = open_store(server.url.replace(f":{PASSWORD}@", ""))

        for store, words in ((wrong, "refused the user or the password"), (without, "asks for a password")):
            for ask in (store.load, store.commit, lambda message, store=store: asyncio.run(store.answer(message))):
                with pytest.raises(StoreError, match=words) as caught:
                    ask(commit_of({"x": 1}) if ask == store.commit else Load((A,)))
                assert (caught.value.committed, caught.value.transient) == (False, False)
                told = "".join(traceback.format_exception(caught.value))
                assert "wr0ng-secret" not in told
        for store in (good, wrong, without):
            shown = repr(store) + repr(store._address) + repr(vars(store))
            assert PASSWORD not in shown + caplog.text
            assert "wr0ng-secret" not in shown + caplog.text
            store.close()


def test_password_is_in_no_variable_of_a_frame_that_fails():
    """Tools that report errors show those."""
    with started("redis_8", password=True) as server:
        wrong = open_store(server.url.replace(PASSWORD, "wr0ng-secret"))
        for ask in (wrong.load, lambda message: asyncio.run(wrong.answer(message))):
            with pytest.raises(StoreError) as caught:
                ask(Load((A,)))
            frames = [frame for frame, _ in traceback.walk_tb(caught.tb) if "stores/" in frame.f_code.co_filename]
            assert any("redis_wire" in frame.f_code.co_filename for frame in frames)
            names = [
                name for frame in frames for name, value in frame.f_locals.items() if "wr0ng" in repr(value) + str(value)
            ]
            assert not [name for name in names if name not in ("server", "url")]
        wrong.close()


def test_minimal_rights_of_the_documentation_suffice():
    rights = [
        "~agent-gantry-state:*",
        *"-@all +eval +evalsha +time +get +set +del +hget +hset +hgetall +hdel +zadd +zrem +zrangebylex".split(),
        *"+pexpire +persist".split(),
    ]
    for name in ("redis_6", "redis_8", "valkey"):
        with private(name) as (server, admin):
            admin.acl_setuser("agent", enabled=True, passwords=["+pass"], reset=True)
            admin.execute_command("ACL", "SETUSER", "agent", *rights)
            store = open_store(f"redis://agent:pass@127.0.0.1:{server.port}")
            talk = Talk(bridge_to(store))
            talk.commit(A, {"x": put(1, ttl=100.0)}, touch=True)
            talk.write(A, y=1, z=put(1, ttl=50.0))
            talk.commit(A, {}, ("y",))
            sent = talk.message(talk.change(A, {"x": put(2)}), token=b"t" * 16)
            assert talk.ask(sent) == talk.ask(sent) == Committed()
            talk.ask(Lease(A, b"me", 5.0))
            assert talk.names() == [A]
            talk.ask(Forget((A,)))
            store.close()


def test_user_without_rights_is_told_so():
    for name in ("redis_6", "redis_8"):
        with private(name) as (server, admin):
            admin.execute_command("ACL", "SETUSER", "reader", "on", ">pass", "~*", "+@all", "-evalsha", "-eval")
            admin.execute_command("ACL", "SETUSER", "half", "on", ">pass", "~*", "+@all", "-hset")
            admin.execute_command("ACL", "SETUSER", "other", "on", ">pass", "~other:*", "+@all")

            for user, committed in (("reader", False), ("half", None), ("other", False)):
                store = open_store(f"redis://{user}:pass@127.0.0.1:{server.port}")
                with pytest.raises(StoreError, match="ACL") as caught:
                    store.commit(commit_of({"x": 1}))
                assert (type(caught.value), caught.value.committed) == (StoreError, committed)
                store.close()
            with contextlib.closing(open_store(server.url)) as store:
                assert store.load(Load((A,))).snapshots[0].head is None


def test_replica_that_cannot_write_is_told_apart():
    for name in ("redis_6", "redis_8", "valkey"):
        with private(name) as (server, admin), contextlib.closing(open_store(server.url)) as store:
            store.commit(commit_of({"x": 1}))
            with started("redis_8") as upstream:
                port = upstream.port
            admin.replicaof("127.0.0.1", port)

            with pytest.raises(StoreUnavailableError, match="replica") as caught:
                store.commit(commit_of({"x": 1}, B))
            assert caught.value.committed is False
            admin.replicaof("NO", "ONE")
            assert store.commit(commit_of({"x": 1}, B)) == Committed()


def test_server_without_memory_writes_nothing():
    for name in ("redis_6", "redis_8", "valkey"):
        with private(name) as (server, admin), contextlib.closing(open_store(server.url)) as store:
            talk = Talk(bridge_to(store))
            talk.write(A, x=1)
            mine, other = talk.change(A, {"x": put(2)}), talk.change(B, {"x": put(2)})
            admin.config_set("maxmemory", 1)

            for changes in ((mine,), (mine, other)):
                with pytest.raises(StoreError, match="out of memory") as caught:
                    talk.send(*changes, token=b"t" * 16)
                assert (caught.value.committed, caught.value.transient) == (False, False)
            assert talk.content() == {"x": 1}
            admin.config_set("maxmemory", 0)
            assert talk.send(mine, other, token=b"t" * 16) == Committed()


def test_key_of_somebody_else_is_an_error_that_writes_nothing(talk, store, admin):
    talk.write(A, x=1)
    admin.set(hash_of(store, B), "somebody's")
    both = Change(A, talk.load()[0].head, {"x": put(2)}, (), {"x": talk.load()[0].versions["x"]}, born=talk.load()[0].born)

    for message in (Load((B,)), Commit(b"t" * 16, os.urandom(8), (both, *commit_of({"y": 1}, B).changes))):
        with pytest.raises(StoreError, match="somebody else's") as caught:
            talk.ask(message)
        assert caught.value.committed is False
    assert talk.content() == {"x": 1}

    admin.delete(hash_of(store, B))
    admin.set(store._place(B).listing, "somebody's")
    with pytest.raises(StoreError, match="somebody else's"):
        talk.ask(Commit(b"t" * 16, os.urandom(8), (both, *commit_of({"y": 1}, B).changes)))
    assert (talk.content(A), talk.content(B)) == ({"x": 1}, {})


def test_server_that_is_busy_with_a_script_is_asked_later():
    with private() as (server, admin), contextlib.closing(open_store(server.url)) as store:
        admin.config_set("busy-reply-threshold", 1)
        store.commit(commit_of({"x": 1}))
        with redis.Redis(port=server.port) as other:
            busy = threading.Thread(target=lambda: contextlib.suppress(Exception).__enter__() or endless(other))
            busy.start()
            deadline = time.monotonic() + 10
            error = None
            while error is None and time.monotonic() < deadline:
                try:
                    store.commit(commit_of({"x": 1}, B))
                except StoreUnavailableError as caught:
                    error = caught
            admin.execute_command("SCRIPT", "KILL")
            busy.join()

        assert error is not None
        assert ("busy" in str(error), error.committed) == (True, False)
        assert isinstance(store.load(Load((A,))).snapshots[0].values["x"], int)


def endless(client):
    with contextlib.suppress(redis.ResponseError):
        client.eval("while true do end", 0)


@pytest.mark.parametrize(
    ("text", "kind", "committed"),
    [
        ("LOADING Redis is loading the dataset in memory", StoreUnavailableError, False),
        ("MASTERDOWN Link with MASTER is down", StoreUnavailableError, False),
        ("CLUSTERDOWN The cluster is down", StoreUnavailableError, False),
        ("NOREPLICAS Not enough good replicas to write.", StoreUnavailableError, False),
        ("MISCONF Redis is configured to save RDB snapshots", StoreError, False),
        ("ERR Error running script (call to f_a): @user_script:5: -OOM command not allowed", StoreError, False),
        ("ERR max number of clients reached", StoreUnavailableError, False),
        ("ERR something of tomorrow about 'a-secret'", StoreError, None),
    ],
)
def test_refusal_becomes_an_error_that_says_what_is_known(text, kind, committed):
    error = refused(Refusal(text))

    assert (type(error), error.committed) == (kind, committed)
    assert "a-secret" not in str(error)


# Answers that are lost.


def pump(source, sink):
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class Lossy:
    """A way to a server on which the replies to some requests get lost, each with its connection."""

    def __init__(self, port):
        self.port = port
        self.loses = self.lost = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client):
        with client, socket.create_connection(("127.0.0.1", self.port)) as server:
            threading.Thread(target=pump, args=(client, server), daemon=True).start()
            while reply := server.recv(1 << 20):
                if self.loses and b"NOSCRIPT" not in reply:
                    self.loses -= 1
                    self.lost += 1
                    break
                client.sendall(reply)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._listener.close()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_commit_whose_answer_is_lost_lands_once(server, kind):
    with contextlib.closing(Lossy(server.port)) as lossy:
        with Gantry(f"{lossy.url}?prefix={new_prefix()}", session="s") as gantry:

            @gantry.with_memory
            def note(memory):
                memory.setdefault("log", []).append(len(memory.get("log", [])))
                lossy.loses = 1

            @gantry.with_memory
            async def anote(memory):
                memory.setdefault("log", []).append(len(memory.get("log", [])))
                lossy.loses = 1

            for _ in range(3):
                note() if kind == "sync" else asyncio.run(anote())

            with gantry.memory() as memory:
                assert memory["log"] == [0, 1, 2]
        assert lossy.lost == 3


# Calls of callers that may block, which go without messages.


#: The memory of a gantry whose session is "s".
SESSION = Namespace("session", "s", "default")


class WatchedStore(Watched, RedisStore):
    """A store of one's own."""


@pytest.mark.parametrize("kind", ["derived", "before"])
def test_store_of_ones_own_sees_every_load_and_commit(kind):
    address, prefix = open_store(redis_8().url)._address, new_prefix()
    store = WatchedStore(address, prefix=prefix) if kind == "derived" else Before(RedisStore(address, prefix=prefix))
    with Gantry(store, session="s") as gantry:

        @gantry.with_memory
        def count(memory):
            memory["n"] = memory.get("n", 0) + 1

        for _ in range(3):
            count()
    store.close()

    assert store.asked == ["load", "commit"] * 3


def test_what_calls_have_written_is_known_as_it_stands_in_the_server(server):
    prefix, chance = new_prefix(), random.Random(7)
    stores = [RedisStore(open_store(server.url)._address, prefix=prefix) for _ in range(2)]
    store, other = stores
    with Gantry(store, session="s") as gantry, Gantry(MemoryStore(), session="s") as pattern:

        def change(memory, key, value):
            memory[key] = value

        both = [each.with_memory(change) for each in (gantry, pattern)]
        for turn in range(60):
            key = chance.choice(["a", "b", "ü", "", f"new {turn}", "\ud800"])
            value = chance.choice(
                [turn, float(turn), str(turn), None, [turn] * 3, {"x": [turn]}, "long " * 300, b"\r\n$3\r\n"]
            )
            for each in both:
                each(key=key, value=value)
            if not turn:
                # What is new goes with a message, and is known when it was read.
                store.load_at_once(SESSION)
            (_, kept, _) = store._kept.get(SESSION)

            assert shown(kept) == shown(other.load(Load((SESSION,))).snapshots[0])
            # A read that finds what is kept has nothing else to say.
            assert store.load_at_once(SESSION)[0] is kept
        with gantry.memory() as memory, pattern.memory() as wanted:
            assert list(memory.items()) == list(wanted.items())
    for each in stores:
        each.close()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_call_reads_what_is_small_as_it_is_however_often_it_was_written(server, kind):
    with Wire(server) as wire, Gantry(f"{wire.url}?prefix={new_prefix()}", session="s") as gantry:

        def change(memory, turn):
            memory["x"] = f"{turn} {'x' * 80}"
            memory["log"] = [turn, "x" * 80]

        write = gantry.with_memory(change)

        @gantry.with_memory
        async def awrite(memory, turn):
            change(memory, turn)

        async def awrites():
            for turn in range(100):
                await awrite(turn=turn)
            wire.clear()
            await awrite(turn=100)

        if kind == "async":
            asyncio.run(awrites())
        else:
            for turn in range(100):
                write(turn=turn)
            wire.clear()
            write(turn=100)

        assert [request.name for request in wire.requests] == ["TIME", "HGETALL", "EVALSHA"]
        assert wire.trips == 2


def test_call_that_meets_another_one_is_merged_in_one_trip_more(server):
    prefix = new_prefix()
    with Wire(server) as wire, contextlib.closing(open_store(f"{server.url}?prefix={prefix}")) as store:
        others = Talk(bridge_to(store))
        with Gantry(f"{wire.url}?prefix={prefix}", session="s") as gantry:

            @gantry.with_memory
            def write(memory, meets=None):
                memory.setdefault("log", []).append("mine")
                memory["x"] = 1
                if meets is not None:
                    others.write(SESSION, **meets)

            write()
            wire.clear()
            write(meets={"log": ["mine", "theirs"]})
            assert wire.trips == 3
            wire.clear()
            write(meets={"y": 1})
            assert wire.trips == 2
            wire.clear()
            with pytest.raises(MemoryConflictError) as caught:
                write(meets={"x": 2, "log": []})
            assert (wire.trips, caught.value.committed) == (2, False)
            with gantry.memory() as memory:
                assert memory == {"log": [], "x": 2, "y": 1}


def test_first_try_brings_nothing_back_that_was_erased(server):
    with contextlib.closing(RedisStore(open_store(server.url)._address, prefix=new_prefix())) as store:
        talk = Talk(bridge_to(store))
        talk.write(A, x=0)
        base, _ = store.load_at_once(A)
        # What another process and another thread of this one do meanwhile.
        with contextlib.closing(RedisStore(store._address, prefix=store._prefix.decode())) as other:
            other.forget(Forget((A,)))
        answer = store.commit_at_once(A, base, {"x": 5}, {}, b"t" * 16, 5.0, math.inf)
        assert (type(answer), answer.snapshots[0].head) == (Moved, None)
        assert talk.load()[0].head is None

        # Nobody has it in mind any more.
        assert store.commit_at_once(A, base, {"x": 5}, {}, b"u" * 16, 5.0, math.inf) is False
        assert talk.load()[0].head is None


def test_first_try_whose_reply_was_lost_is_known_again_by_its_token(server):
    with contextlib.closing(Lossy(server.port)) as lossy, contextlib.ExitStack() as stack:
        prefix = new_prefix()
        store, other = (
            stack.enter_context(contextlib.closing(open_store(f"{url}?prefix={prefix}"))) for url in (lossy.url, server.url)
        )
        talk, others = Talk(bridge_to(store)), Talk(bridge_to(other))
        others._versions = itertools.count(1000)
        talk.write(A, x=0)
        talk.write(A, x=0)
        late = talk.change(A, {"x": put(1)})
        base, _ = store.load_at_once(A)
        lossy.loses = 1
        with pytest.raises(StoreUnavailableError) as caught:
            store.commit_at_once(A, base, {"x": 1}, {}, b"t" * 16, 5.0, math.inf)
        assert caught.value.committed is None
        assert others.content() == {"x": 1}
        others.write(A, x=2)

        assert talk.ask(talk.message(late, token=b"t" * 16)) == Committed()
        assert others.content() == {"x": 2}


def test_load_of_a_call_whose_connection_is_lost_is_asked_once_more_and_no_more():
    with contextlib.closing(Lossy(redis_8().port)) as lossy:
        with contextlib.closing(open_store(f"{lossy.url}?prefix={new_prefix()}")) as store:
            Talk(bridge_to(store)).write(A, x=1)
            lossy.loses = 1
            assert store.load_at_once(A)[0].value("x") == 1
            assert lossy.lost == 1
            lossy.loses = 10
            with pytest.raises(StoreUnavailableError) as caught:
                store.load_at_once(A)
            assert (caught.value.committed, lossy.lost) == (False, 3)


def test_calls_on_a_server_that_has_forgotten_the_scripts_give_them_again(server, admin):
    with Gantry(f"{server.url}?prefix={new_prefix()}", session="s") as gantry:
        count = gantry.with_memory(lambda memory: memory.update(n=memory.get("n", 0) + 1) or memory["n"])
        for turn in range(1, 4):
            admin.script_flush()
            assert count() == turn


def test_call_sends_nothing_any_more_when_the_store_was_closed_in_it(server):
    with Wire(server) as wire, contextlib.closing(open_store(f"{wire.url}?prefix={new_prefix()}")) as store:
        with Gantry(store, session="s") as gantry:

            @gantry.with_memory
            def tool(closes, memory):
                memory["x"] = closes
                if closes:
                    store.close()
                    wire.clear()

            tool(False)
            with pytest.raises(StoreClosedError) as caught:
                tool(True)
            assert caught.value.committed is False
            with pytest.raises(StoreClosedError):
                tool(True)

        assert wire.requests == []


def test_call_under_way_when_the_store_is_closed_is_told_so_and_leaves_no_connection():
    with private() as (server, _), concurrent.futures.ThreadPoolExecutor() as threads:
        store = open_store(server.url)
        Talk(bridge_to(store)).write(A, x=0)
        base, _ = store.load_at_once(A)
        (pool,) = store._link._pools.values()
        wire = pool._idle[0]
        with paused(server):
            write = threads.submit(store.commit_at_once, A, base, {"x": 1}, {}, b"t" * 16, 0.5, math.inf)
            while wire.is_usable():
                time.sleep(0.001)
            store.close()
            with pytest.raises(StoreClosedError) as caught:
                write.result(10)

    assert caught.value.committed is None
    assert (wire._sock.fileno(), len(pool._idle)) == (-1, 0)


def ringing(number, until, over):
    """Send the main thread a signal again and again, as a profiler has it."""
    end = time.monotonic() + until
    while not over.wait(0.005) and time.monotonic() < end:
        signal.pthread_kill(threading.main_thread().ident, number)


@pytest.mark.parametrize("signals", [None, "SIGALRM", "SIGPROF", "SIGUSR1", "SIGCHLD"])
def test_calls_on_a_server_that_stands_still_are_given_up_in_time(signals):
    over = threading.Event()
    with private() as (server, _), contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(RedisStore(open_store(server.url)._address, load_timeout=0.3)))
        Talk(bridge_to(store)).write(A, x=0)
        base, _ = store.load_at_once(A)
        if signals is not None:
            number = getattr(signal, signals)
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: None))
            ring = threading.Thread(target=ringing, args=(number, 10, over))
            ring.start()
            stack.callback(ring.join)
            stack.callback(over.set)
        begin = time.monotonic()
        with paused(server):
            with pytest.raises(StoreTimeoutError) as load:
                store.load_at_once(A)
            with pytest.raises(StoreTimeoutError) as commit:
                store.commit_at_once(A, base, {"x": 1}, {}, b"t" * 16, 0.3, math.inf)
        assert time.monotonic() - begin < 5
        assert (load.value.committed, commit.value.committed) == (False, None)

        # What was sent too late is done, and its answer is nobody's.
        assert store.load_at_once(A)[0].value("x") == 1


def test_answer_that_comes_late_is_read(server, admin):
    with contextlib.closing(RedisStore(open_store(server.url)._address, prefix=new_prefix())) as store:
        Talk(bridge_to(store)).write(A, x=0)
        for turn in range(3):
            base, _ = store.load_at_once(A)
            admin.client_pause(100)
            assert store.commit_at_once(A, base, {"x": turn}, {}, turn.to_bytes(16, "big"), 5.0, math.inf) is True


# Clusters and Sentinels.


def test_url_of_another_kind_of_server_is_told_so():
    cluster, sentinel, alone = redis_cluster(), redis_sentinel(), redis_8()
    for url, message, words in (
        (f"redis://127.0.0.1:{cluster.port}", Load((A,)), r"use redis\+cluster://"),
        (f"redis://127.0.0.1:{cluster.port}", Load((A, B, NOWHERE)), r"use redis\+cluster://"),
        (f"redis://127.0.0.1:{sentinel.port}", Load((A,)), r"redis\+sentinel://"),
        (f"redis://127.0.0.1:{sentinel.port}/1", Load((A,)), r"redis\+sentinel://"),
        (f"redis+sentinel://127.0.0.1:{alone.port}/primary", Load((A,)), "is none: see redis://"),
    ):
        store = open_store(url)
        for ask in (store.load, lambda message, store=store: asyncio.run(store.answer(message))):
            with pytest.raises(StoreError, match=words) as caught:
                ask(message)
            assert (type(caught.value), caught.value.committed) == (StoreError, False)
        store.close()


def test_client_of_another_kind_of_server_is_told_so():
    # Which of the three servers the client asks is as good as any: at most one has the slot.
    told = []
    for node in redis_cluster().nodes:
        with redis.Redis(port=node.port) as client:
            store = RedisStore(client=client, prefix=new_prefix())
            with contextlib.suppress(CorruptEntryError):
                try:
                    store.load(Load((A,)))
                except StoreError as error:
                    told.append("RedisCluster" in str(error))
    assert told == [True, True]


def answered(steps, answers):
    """The requests that *steps* makes, for each of which there is an answer, an error or what makes one, and its result."""
    asked = []
    with contextlib.suppress(StopIteration):
        request = next(steps)
        for answer in answers:
            asked.append(request)
            request = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
        asked.append(request)
    return asked


SEEDS = tuple(Node(name, 1) for name in "abcd")
LATE = StoreTimeoutError("late")


def slots(*names):
    return [[[0, 16383, [name.encode(), 1]] for name in names[:1]]]


def test_who_answered_last_is_asked_first_and_who_did_not_last():
    route = ClusterRoute(SEEDS[:3], 0.5)
    command = [(0, ("PING",))]
    asked = answered(route.send(command), [LATE, slots("b"), ["PONG"]])
    assert [(request.node.host, request.within) for request in asked] == [("a", 0.5), ("b", 0.5), ("b", None)]
    route._nodes = {}
    asked = answered(route.send(command), [LATE, LATE, slots("b"), ["PONG"]])
    assert [request.node.host for request in asked] == ["b", "c", "a", "b"]


def test_every_server_is_asked_some_time_though_the_first_ones_stand_still():
    route = ClusterRoute(SEEDS, 0.5)
    first = []
    for _ in SEEDS:
        steps = route.send([(0, ("PING",))])
        with pytest.raises(StoreTimeoutError):
            first += answered(steps, [LATE] * 4)[:1]
        first.append(route._seeds._nodes[0])
    assert set(first) == set(SEEDS)


def test_server_that_left_a_cluster_is_not_asked_for_ever():
    route = ClusterRoute(SEEDS[:1], 0.5)
    for name in "bcd":
        route._nodes = {}
        answered(route.send([(0, ("PING",))]), [slots(name), ["PONG"]])
    assert [node.host for node in route._seeds._nodes] == ["a", "d"]


def test_slot_that_moves_while_all_is_forgotten_is_not_known_alone():
    route = ClusterRoute(SEEDS[:1], 0.5)
    steps = route.send([(0, ("PING",))])
    answered(steps, [slots("a")])
    route._nodes = {}
    request = steps.send([Refusal("MOVED 1 b:1")])
    assert (request.commands, route._nodes) == ([("CLUSTER", "SLOTS")], {})


def test_command_that_is_sent_in_a_circle_ends():
    route = ClusterRoute(SEEDS[:1], 0.5)
    steps = route.send([(0, ("PING",))])
    next(steps)
    steps.send(slots("a"))
    replies = None
    for _ in range(50):
        try:
            steps.send([Refusal("MOVED 1 a:1")])
        except StopIteration as end:
            (replies,) = end.value
            break
    assert "moving this memory" in str(refused(replies))


def spaces_apart(store, count=8):
    """Namespaces in as many slots."""
    found = {}
    for index in range(1000):
        namespace = Namespace("session", f"s{index}", "app")
        found.setdefault(store._place(namespace).tag, namespace)
    return [found[tag] for tag in list(found)[:count]]


def test_commit_to_several_slots_is_refused_before_it_writes():
    with contextlib.closing(open_store(f"{redis_cluster().url}?prefix={new_prefix()}")) as store:
        one, other, *_ = spaces_apart(store)
        both = (*commit_of({"x": 1}, one).changes, Change(other, None, {}, (), {}, whole=True))

        with pytest.raises(NotAtomicError) as caught:
            store.commit(Commit(b"t" * 16, os.urandom(8), both))

        assert (caught.value.committed, caught.value.scopes) == (False, ("session",))
        assert [snapshot.head for snapshot in store.load(Load((one, other))).snapshots] == [None, None]


def test_namespaces_of_one_slot_are_committed_together_in_a_cluster():
    with contextlib.closing(open_store(f"{redis_cluster().url}?prefix={new_prefix()}")) as store:
        one = Namespace("session", "a", "app")
        other = next(
            namespace
            for namespace in (Namespace("session", f"s{index}", "app") for index in range(5000))
            if store._place(namespace).tag == store._place(one).tag
        )

        answer = store.commit(
            Commit(b"t" * 16, os.urandom(8), (*commit_of({"x": 1}, one).changes, *commit_of({"x": 2}, other).changes))
        )

        assert answer == Committed()
        assert [snapshot.values for snapshot in store.load(Load((one, other))).snapshots] == [{"x": 1}, {"x": 2}]


def test_slot_that_moved_is_followed():
    with contextlib.closing(open_store(f"{redis_cluster().url}?prefix={new_prefix()}")) as store:
        spaces = spaces_apart(store)
        for index, namespace in enumerate(spaces):
            store.commit(commit_of({"x": index}, namespace))
        nodes = list(dict.fromkeys(store._route._nodes.values()))
        assert len(nodes) == 3
        # As it is after the slots were given to others.
        store._route._nodes = {tag: nodes[(nodes.index(node) + 1) % 3] for tag, node in store._route._nodes.items()}

        loaded = store.load(Load(tuple(spaces)))
        asyncio.run(store.answer(Load(tuple(spaces))))

        assert [snapshot.values["x"] for snapshot in loaded.snapshots] == list(range(len(spaces)))
        assert set(Talk(bridge_to(store)).names()) == set(spaces)


def test_slot_on_its_way_is_asked_for_where_it_goes():
    with started_cluster() as cluster, contextlib.closing(open_store(cluster.url)) as store:
        (namespace,) = spaces_apart(store, 1)
        talk = Talk(bridge_to(store))
        talk.write(namespace, x=1)
        source = store._route._nodes[store._place(namespace).tag]
        target = next(node for node in store._route._nodes.values() if node != source)
        with redis.Redis(port=source.port) as old, redis.Redis(port=target.port) as new:
            slot = old.execute_command("CLUSTER", "KEYSLOT", hash_of(store, namespace))
            ids = [client.execute_command("CLUSTER", "MYID") for client in (old, new)]
            new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            move(old, target.port, slot)
            try:
                talk.write(namespace, x=2)
                assert talk.content(namespace) == {"x": 2}
                assert asyncio.run(store.answer(Load((namespace,)))).snapshots[0].values == {"x": 2}
                # A cluster takes no key that is not there yet beside others, until the slot has arrived.
                with pytest.raises(StoreUnavailableError, match="moving") as caught:
                    talk.send(talk.change(namespace, {"x": put(3)}), token=b"t" * 16)
                assert caught.value.committed is False
            finally:
                for client in (new, old):
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
        # It has arrived.
        talk.send(talk.change(namespace, {"x": put(3)}), token=b"t" * 16)
        assert talk.content(namespace) == {"x": 3}
        assert store._route._nodes[store._place(namespace).tag] == target


def move(client, port, slot):
    keys = client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
    client.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)


def test_cluster_comes_back_after_a_server_was_away():
    with started_cluster() as cluster, contextlib.closing(open_store(cluster.url)) as store:
        spaces = spaces_apart(store)
        for namespace in spaces:
            store.commit(commit_of({"x": 1}, namespace))
        cluster.nodes[1].stop()
        with pytest.raises((StoreUnavailableError, StoreTimeoutError)) as caught:
            store.load(Load(tuple(spaces)))
        assert caught.value.committed is False

        cluster.start()

        def is_back():
            # Servers that are kept waiting for the machine take each other for gone once more.
            with contextlib.suppress(StoreUnavailableError, StoreTimeoutError):
                assert [each.values for each in store.load(Load(tuple(spaces))).snapshots] == [{"x": 1}] * len(spaces)
                return all(isinstance(store.commit(commit_of({"x": 1}, each)), (Committed, Moved)) for each in spaces)

        eventually(is_back)


def test_single_server_is_no_cluster(server):
    with contextlib.closing(open_store(server.url.replace("redis://", "redis+cluster://"))) as store:
        with pytest.raises(StoreError, match="in none"):
            store.load(Load((A,)))


def test_sentinel_gives_the_new_master_after_a_failover():
    with started("redis_8") as master, started("redis_8", "--replicaof", f"127.0.0.1 {master.port}") as replica:
        with started("redis_sentinel", upstream=master) as sentinel, contextlib.closing(open_store(sentinel.url)) as store:
            store.commit(commit_of({"x": 1}))
            ports = sentinel.port, master.port, replica.port
            with contextlib.ExitStack() as stack:
                watch, first, second = (stack.enter_context(redis.Redis(port=port)) for port in ports)
                eventually(lambda: watch.execute_command("SENTINEL", "REPLICAS", "primary"))
                eventually(lambda: second.info("replication")["master_link_status"] == "up")
                eventually(lambda: failed_over(watch))
                eventually(lambda: second.info("replication")["role"] == "master")
                # Until the Sentinel tells the old master, which takes a while, that takes writes that are lost.
                first.replicaof("127.0.0.1", replica.port)

                def is_written():
                    with contextlib.suppress(StoreUnavailableError, StoreTimeoutError):
                        return isinstance(store.commit(commit_of({"x": 2}, B)), (Committed, Moved))

                eventually(is_written)
                assert second.exists(hash_of(store, B))
            assert store.load(Load((A,))).snapshots[0].values == {"x": 1}


def failed_over(watch):
    try:
        return watch.execute_command("SENTINEL", "FAILOVER", "primary")
    except redis.ResponseError:
        return False


def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_sentinels_that_are_not_there_or_know_no_such_service_are_an_error():
    with contextlib.closing(open_store(f"redis+sentinel://127.0.0.1:{redis_sentinel().port}/other")) as store:
        with pytest.raises(StoreUnavailableError, match="Sentinel"):
            store.load(Load((A,)))
    with started("redis_8") as gone:
        port = gone.port
    url = f"redis+sentinel://127.0.0.1:{port},127.0.0.1:{redis_sentinel().port}/primary?prefix={new_prefix()}"
    with contextlib.closing(open_store(url)) as store:
        assert store.load(Load((A,))).snapshots[0].head is None


# Encryption.


@pytest.fixture
def encrypted_server(tmp_path):
    """The URL of a server that speaks TLS, and the file of its certificate."""
    with encrypted(redis_8().port, tmp_path) as (port, certificate):
        yield f"rediss://localhost:{port}?prefix={new_prefix()}", certificate


def test_encrypted_connections_check_who_is_there(encrypted_server):
    url, certificate = encrypted_server
    known = open_store(f"{url}&ssl_ca_certs={certificate}")
    assert known.commit(commit_of({"x": 1})) == Committed()
    assert asyncio.run(known.answer(Load((A,)))).snapshots[0].values == {"x": 1}
    unchecked = open_store(f"{url}&ssl_cert_reqs=none")
    assert unchecked.load(Load((A,))).snapshots[0].values == {"x": 1}
    elsewhere = open_store(f"{url.replace('localhost', '127.0.0.1')}&ssl_ca_certs={certificate}")

    for store in (open_store(url), elsewhere):
        for ask in (store.load, lambda message, store=store: asyncio.run(store.answer(message))):
            with pytest.raises(StoreError, match="ssl_ca_certs") as caught:
                ask(Load((A,)))
            assert (caught.value.committed, caught.value.transient) == (False, False)
    for store in (known, unchecked):
        store.close()


# URLs.


@pytest.mark.parametrize(
    ("url", "nodes", "access"),
    [
        ("redis://", [("localhost", 6379)], (None, None, 0)),
        ("valkey://host/3", [("host", 6379)], (None, None, 3)),
        ("redis://:p%40ss@host:7000/", [("host", 7000)], (None, "p@ss", 0)),
        ("redis://ada:a%3Ab@[::1]:7000", [("::1", 7000)], ("ada", "a:b", 0)),
        ("redis://[::1]", [("::1", 6379)], (None, None, 0)),
        ("redis+cluster://a:1,b:2,c", [("a", 1), ("b", 2), ("c", 6379)], (None, None, 0)),
        ("redis+sentinel://:p@a,b:2/service?db=4", [("a", 26379), ("b", 2)], (None, "p", 4)),
    ],
)
def test_url_says_where_and_who(url, nodes, access):
    store = open_store(url)

    address = store._address
    assert [(node.host, node.port) for node in address.nodes] == nodes
    assert (address.access.username, address.access.password, address.access.db) == access
    assert (address.cluster, address.service) == ("cluster" in url, "service" if "sentinel" in url else None)


def test_every_option_of_a_url_is_read():
    store = open_store("redis://?prefix=mine:&max_connections=7&connect_timeout=1&load_timeout=2.5&commit_timeout=3")

    assert (store._prefix, store._max_connections) == (b"mine:", 7)
    assert (store.connect_timeout, store.load_timeout, store.commit_timeout) == (1.0, 2.5, 3.0)
    watched = open_store("redis+sentinel://a/s?sentinel_username=u&sentinel_password=geheim")._address
    assert (watched.sentinel_access.username, watched.sentinel_access.password) == ("u", "geheim")
    assert "geheim" not in repr(watched)
    assert open_store("rediss://?ssl_check_hostname=no")._address.access.tls.check_hostname is False


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://?maxconnections=5", "no option 'maxconnections'; did you mean max_connections.*It knows .*prefix"),
        ("redis://?ssl_ca_certs=x", "no option 'ssl_ca_certs'"),
        ("redis://?max_connections=0", "'max_connections' must be a whole number"),
        ("redis://?load_timeout=-1", "'load_timeout' must be a positive number of seconds"),
        ("redis://?prefix={x}", "'prefix' must be without braces"),
        ("redis://host/name", "number of a database"),
        ("redis+cluster://host/1", "database 0 only"),
        ("redis://a,b", "takes one host"),
        ("redis://host:99999", "port"),
        ("redis://user@host", "needs a password"),
        ("redis+sentinel://host", "name of a service"),
        ("rediss://host?ssl_ca_certs=/nowhere", "cannot be read as a certificate"),
        ("rediss://host?ssl_cert_reqs=maybe", "'ssl_cert_reqs' must be one of required, none"),
    ],
)
def test_url_that_cannot_be_understood_is_refused(url, words):
    with pytest.raises(StoreURLError, match=words):
        open_store(url)


def test_numbers_of_databases_keep_memories_apart(server):
    prefix = new_prefix()
    first, second = (open_store(f"{server.url}/{db}?prefix={prefix}") for db in (0, 5))
    first.commit(commit_of({"x": 1}))

    assert second.load(Load((A,))).snapshots[0].head is None
    assert asyncio.run(second.answer(Load((A,)))).snapshots[0].head is None
    with contextlib.closing(open_store(f"{server.url}/9999")) as third, pytest.raises(StoreError, match="no database"):
        third.load(Load((A,)))
    first.close()
    second.close()
