"""What a review of the stores behind a network found: each test names the promise that was broken."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
import tracemalloc
from dataclasses import replace

import pytest
import redis
from pymemcache.client.base import PooledClient
from servers import HOST, memcached, node_says, redis_8, started, started_cluster, stopped

from agent_gantry_state import Namespace, StoreError
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores.memcached import MemcachedStore, _Doubt
from agent_gantry_state.stores.protocol import Committed, Forget, Load
from agent_gantry_state.stores.redis import RedisStore
from agent_gantry_state.stores.redis_routes import slot_of
from agent_gantry_state.stores.urls import open_store
from agent_gantry_state.testing import A, B, Clock, Talk, put


class ClockedRedis(RedisStore):
    """Its server goes by the clock that a test sets."""

    def _time(self):
        return repr(self.clock()).encode()


def new_prefix():
    return f"review-{os.urandom(6).hex()}:"


@pytest.fixture
def redis_store():
    store = RedisStore(open_store(redis_8().url)._address, prefix=new_prefix())
    yield store
    store.close()


def in_slots_of(cluster, number):
    """A namespace whose slot belongs to one of the masters."""
    first, last = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
    names = (Namespace("session", str(n)) for n in range(1000))
    return next(each for each in names if first <= slot_of(each.digest[0]) <= last)


# Redis.


def test_expired_key_beside_a_lasting_one_is_no_erased_memory():
    store = ClockedRedis(open_store(redis_8().url)._address, prefix=new_prefix())
    store.clock = clock = Clock()
    talk = Talk(bridge_to(store))
    talk.write(A, stays=1, goes=1)
    late = talk.message(talk.change(A, {"goes": put(2)}))
    talk.write(A, goes=put(3, ttl=5.0))
    clock.now += 10

    answer = talk.ask(late)
    store.close()

    assert isinstance(answer, Committed) or answer.snapshots[0].head is not None


def test_memories_that_redis_let_go_leave_nothing_for_ever(redis_store):
    talk = Talk(bridge_to(redis_store))
    with redis.Redis(port=redis_8().port) as admin:
        for n in range(3000):
            talk.send(talk.change(Namespace("session", str(n)), {"x": put(1, ttl=0.001)}))
        left = sum(admin.zcard(key) for key in admin.scan_iter(f"{redis_store._prefix.decode()}*index"))

    assert left < 1500


def test_store_keeps_about_as_much_as_it_says(redis_store):
    talk = Talk(bridge_to(redis_store))
    names = [Namespace("session", str(n)) for n in range(4)]
    for name in names:
        talk.write(name, **{f"key-{n}": n for n in range(10_000)})
    redis_store._kept.clear()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for name in names:
        talk.load(name)
    took = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert took < 10 * redis_store._kept.bytes


def test_slots_that_were_served_by_nobody_are_found_when_they_are_again():
    with started_cluster("--cluster-require-full-coverage", "no") as cluster:
        here = in_slots_of(cluster, 0)
        slot = str(slot_of(here.digest[0]))
        for node in cluster.nodes:
            node_says(node, "CLUSTER", "DELSLOTS", slot)
        store = open_store(cluster.url)
        talk = Talk(bridge_to(store))
        with pytest.raises(StoreError):
            talk.load(here)
        node_says(cluster.nodes[0], "CLUSTER", "ADDSLOTS", slot)

        found = talk.load(here)
        store.close()

    assert found[0].head is None


def test_seed_that_is_in_no_cluster_any_more_does_not_hide_the_others():
    with started_cluster() as cluster, started("redis_8", "--cluster-enabled", "yes") as alone:
        store = open_store(f"redis+cluster://{HOST}:{alone.port},{HOST}:{cluster.port}")
        talk = Talk(bridge_to(store))
        try:
            talk.write(A, x=1)
        finally:
            store.close()


@pytest.mark.parametrize("number", [0, 1])
def test_server_of_a_cluster_that_stands_still_does_not_stop_the_others(number):
    with started_cluster("--cluster-require-full-coverage", "no") as cluster:
        stuck, other = in_slots_of(cluster, number), in_slots_of(cluster, 2)
        store = open_store(cluster.url + "?load_timeout=1&commit_timeout=1&connect_timeout=0.5")
        talk = Talk(bridge_to(store))
        talk.load(other)
        with stopped(cluster.nodes[number]):
            for _ in range(2):
                with pytest.raises(StoreError):
                    talk.load(stuck)
            try:
                found = talk.load(other)
            finally:
                store.close()

        assert found[0].head is None


def test_sentinel_that_stands_still_does_not_hide_the_others():
    with (
        started("redis_8") as master,
        started("redis_sentinel", upstream=master) as one,
        started("redis_sentinel", upstream=master) as two,
        stopped(one),
    ):
        store = open_store(f"redis+sentinel://{HOST}:{one.port},{HOST}:{two.port}/primary?load_timeout=1")
        try:
            Talk(bridge_to(store)).load(A)
        finally:
            store.close()


def test_connect_timeout_holds_for_a_host_of_several_addresses(monkeypatch):
    """docs/stores/redis.md, "Waits": all of it ends with the time of the message."""
    hosts = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in hosts]
        listeners[0].bind((hosts[0], 0))
        port = listeners[0].getsockname()[1]
        for host, listener in zip(hosts[1:], listeners[1:], strict=True):
            listener.bind((host, port))
        for host, listener in zip(hosts, listeners, strict=True):
            listener.listen(0)
            for _ in range(4):
                # Its backlog is full after that: nobody gets an answer.
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex((host, port))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        store = open_store(f"redis://several:{port}?connect_timeout=1")
        began = time.monotonic()
        with pytest.raises(StoreError):
            Talk(bridge_to(store)).ask(Load((A,), timeout=1.0))
        store.close()

    assert time.monotonic() - began < 2


@pytest.mark.parametrize("scheme", ["redis", "memcached"])
def test_loop_that_stood_still_while_the_store_was_closed_ends_its_requests_in_time(scheme):
    with started("redis_8" if scheme == "redis" else "memcached") as server:
        store = open_store(server.url)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(store.answer(Load((A,))))
        with stopped(server):
            asking = loop.create_task(store.answer(Load((B,), timeout=1.0)))
            loop.run_until_complete(asyncio.sleep(0.05))
            store.close()
            done, _ = loop.run_until_complete(asyncio.wait([asking], timeout=5))
            if not done:
                asking.cancel()
                loop.run_until_complete(asyncio.wait([asking], timeout=5))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    assert done
    assert isinstance(asking.exception(), StoreError)


def test_uvloop_that_stands_still_is_closed_with_the_store(caplog):
    uvloop = pytest.importorskip("uvloop")
    with started("redis_8") as server:
        store = open_store(server.url)
        loop = uvloop.new_event_loop()
        loop.run_until_complete(store.answer(Load((A,))))
        store.close()
        loop.run_until_complete(loop.shutdown_asyncgens())
        # Before the loop is closed: with a transport left open that does not end where warnings are errors.
        assert "could not be closed" not in caplog.text
        loop.close()


# memcached.


def test_child_does_not_use_its_parents_connections_of_a_client_of_the_user():
    server = memcached()
    client = PooledClient((HOST, server.port), timeout=4, connect_timeout=2)
    store = MemcachedStore(client=client, prefix=f"review-{os.urandom(6).hex()}:")
    Talk(bridge_to(store)).write(A, x=1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Talk(bridge_to(store)).load(A)
            used = {each.sock.getsockname()[1] for each in client.client_pool._free_objs}
            os.write(write, repr(used).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    used = os.read(read, 1000).decode()
    os.close(read)
    os.close(write)
    ours = {each.sock.getsockname()[1] for each in client.client_pool._free_objs}
    store.close()
    client.close()
    assert used
    assert used != repr(ours)


@pytest.mark.parametrize("loss", ["crowded out", "erased"])
def test_commit_of_unknown_outcome_that_made_its_key_is_not_guessed_at(loss):
    """docs/stores/memcached.md: crowded out or erased meanwhile, the error says so; nothing is written a second time."""
    server, prefix = memcached(), f"review-{os.urandom(6).hex()}:"
    other = MemcachedStore(f"{HOST}:{server.port}", prefix=prefix)
    late_store = MemcachedStore(f"{HOST}:{server.port}", prefix=prefix)
    talk, others = Talk(bridge_to(late_store)), Talk(bridge_to(other))
    if loss == "crowded out":
        others.write(A, x=0)
    late = talk.message(talk.change(A, {"k": put(1)}), token=b"t" * 16)
    late = replace(late, version=b"landed!!")
    assert talk.ask(late) == Committed()
    # As if the answer had been lost.
    place, made = late_store._place(A), late_store._kept.get(A).snapshot.born
    late_store._doubt(late.token, place.key, _Doubt(place.server.now(), made, math.inf))
    late_store._kept.clear()
    if loss == "crowded out":
        others.commit(A, deletes=("k",))
        for n in range(70):
            others.send(others.change(A, {"x": put(n)}), token=n.to_bytes(16, "big"))
    else:
        others.ask(Forget((A,)))

    with pytest.raises(StoreError, match="not known") as caught:
        talk.ask(late)

    assert caught.value.committed is None
    assert "k" not in others.content()
    other.close()
    late_store.close()
