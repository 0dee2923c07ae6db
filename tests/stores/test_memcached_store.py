"""MemcachedStore against real servers: the contract, and what it owes and refuses beyond that."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import itertools
import logging
import math
import os
import random
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import tracemalloc
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from guarded import guarded_memcached, running
from pymemcache.client.base import PooledClient
from servers import HOST, PASSWORD, free_port, memcached, started, stopped
from support import Before, Watched

from agent_gantry_state import (
    CorruptEntryError,
    Gantry,
    MemoryErasedError,
    MemoryTooLargeError,
    Namespace,
    NotAtomicError,
    ReadOnlyMemoryError,
    Scope,
    SessionOwnerError,
    StoreClosedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    StoreURLError,
)
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores import memcached as memcached_module
from agent_gantry_state.stores.memcached import MemcachedStore
from agent_gantry_state.stores.memcached_item import NO_TOKENS, dropped_until, has_token, with_token
from agent_gantry_state.stores.memcached_links import BlockingConnection
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_wire import LINE, VALUES, Garbled, Refused, get, read
from agent_gantry_state.stores.protocol import Change, Commit, Committed, Forget, Lease, Load, Moved, Release
from agent_gantry_state.stores.urls import open_store
from agent_gantry_state.testing import NOWHERE, A, B, StoreContract, Talk, put

_prefixes = itertools.count()


class ClockedStore(MemcachedStore):
    """A store whose time is that of a clock, while one is set. The servers then keep every item."""

    _set_clock = None

    @property
    def clock(self):
        return self._set_clock or self._server_clock

    @clock.setter
    def clock(self, clock):
        self._set_clock, self._last = clock, -math.inf

    def _server_clock(self):
        return next(iter(self._servers.values())).now()

    def _now(self, server):
        if self._set_clock is None:
            return super()._now(server)
        self._last = max(self._last, self._set_clock())
        return self._last

    def _exptime(self, until):
        return super()._exptime(until) if self._set_clock is None else 0


def fresh_prefix():
    return f"t{next(_prefixes)}:"


@pytest.fixture(scope="module", params=[1, 3], ids=["one server", "three servers"])
def servers(request):
    with started("memcached") as second, started("memcached") as third:
        yield [f"{server.host}:{server.port}" for server in (memcached(), second, third)[: request.param]]


class TestMemcachedContract(StoreContract):
    can_list = False
    commits_together = False

    @pytest.fixture
    def store(self, servers):
        return ClockedStore(servers, prefix=fresh_prefix())

    @pytest.fixture
    def resent(self):
        pytest.skip("memcached forgets with a memory who made it: whoever lost the answer says that it is not known")


class Wire:
    """Stands between clients and a server: counts what is sent in one piece, and can lose or shred replies."""

    def __init__(self, server):
        self.upstream = (server.host, server.port)
        self.requests = []
        self.connections = 0
        self.lose = threading.Event()
        #: The command of which the next reply is lost; None: whichever comes.
        self.lose_after = None
        self.shred = False
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            upstream = socket.create_connection(self.upstream)
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for pump in ((client, upstream, False), (upstream, client, True)):
                thread = threading.Thread(target=self._pump, args=pump, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source, target, replies):
        with source:
            try:
                while data := source.recv(1 << 20):
                    if not replies:
                        self.requests.append(data)
                        if self.lose_after is not None and data.startswith(self.lose_after):
                            self.lose_after = None
                            self.lose.set()
                    elif self.lose.is_set():
                        self.lose.clear()
                        break
                    for piece in [data[n : n + 1] for n in range(len(data))] if self.shred and replies else [data]:
                        target.sendall(piece)
            except OSError:
                pass
            for sock in (source, target):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()


@pytest.fixture
def server():
    return memcached()


@pytest.fixture
def wire(server):
    wire = Wire(server)
    yield wire
    wire.close()


@pytest.fixture
def opened():
    """Opens stores with a prefix of their own, and closes them."""
    made = []

    def open_(server, prefix=None, **options):
        names = f"{HOST}:{server}" if isinstance(server, int) else f"{server.host}:{server.port}"
        made.append(MemcachedStore(names, prefix=prefix or fresh_prefix(), **options))
        return made[-1]

    yield open_
    for store in made:
        store.close()


def talk_to(store):
    talk = Talk(bridge_to(store))
    # Two that talk to one server write other versions, as two calls do.
    talk._versions = itertools.count(random.getrandbits(60))
    return talk


def say(server, words, lines=1):
    """Say something to a server; the first lines of its answer."""
    with socket.create_connection((server.host, server.port), 5) as sock, sock.makefile("rb") as answers:
        sock.sendall(words + b"\r\n")
        return [answers.readline().rstrip() for _ in range(lines)]


def counts(server):
    with socket.create_connection((server.host, server.port), 5) as sock, sock.makefile("rb") as answers:
        sock.sendall(b"stats\r\n")
        words = [line.split() for line in iter(answers.readline, b"END\r\n")]
    return {word[1].decode(): int(word[2]) for word in words if len(word) > 2 and word[2].isdigit()}


# What is sent.


def test_call_loads_in_one_round_trip_and_commits_in_one(wire, opened):
    with Gantry(opened(wire.port), session="s") as gantry:

        @gantry.with_memory
        def count(memory):
            memory["n"] = memory.get("n", 0) + 1

        count()
        for _ in range(3):
            wire.requests.clear()
            count()
            assert [request.split(b" ")[0] for request in wire.requests] == [b"gets", b"cas"]
        assert wire.connections == 1


@pytest.mark.anyio
async def test_call_on_an_event_loop_loads_in_one_round_trip_and_commits_in_one(wire, opened):
    async with Gantry(opened(wire.port), session="s") as gantry:

        @gantry.with_memory
        async def count(memory):
            memory["n"] = memory.get("n", 0) + 1

        await count()
        wire.requests.clear()
        await count()

        assert [request.split(b" ")[0] for request in wire.requests] == [b"gets", b"cas"]


def test_new_memory_is_added_without_asking_again(wire, opened):
    talk = talk_to(opened(wire.port))
    talk.load()
    wire.requests.clear()

    talk.ask(Commit(b"t" * 16, b"v" * 8, (Change(A, None, {"x": put(1)}, (), {"x": None}),)))

    assert [request.split(b" ")[0] for request in wire.requests] == [b"add"]


def test_call_that_changes_nothing_sends_nothing_to_commit(wire, opened):
    with Gantry(opened(wire.port), session="s") as gantry:

        @gantry.with_memory
        def read(memory):
            return memory.get("x")

        with gantry.memory() as memory:
            memory["x"] = 1
        wire.requests.clear()

        assert read() == 1

        assert [request.split(b" ")[0] for request in wire.requests] == [b"gets"]


def test_several_memories_are_loaded_in_one_round_trip(wire, opened):
    talk = talk_to(opened(wire.port))
    talk.write(A, x=1)
    talk.write(B, y=2)
    wire.requests.clear()

    a, b, none = talk.load(A, B, NOWHERE)

    assert (a.value("x"), b.value("y"), none.head) == (1, 2, None)
    assert len(wire.requests) == 1


def test_time_is_asked_for_along_with_a_load_and_seldom(wire, opened):
    store = opened(wire.port)
    talk = talk_to(store)
    talk.load()
    (server,) = store._servers.values()
    least, most, asked = server._ahead
    wire.requests.clear()

    server._ahead = (least, most, asked - 100)
    talk.load()
    talk.load()

    assert [request.split(b"\r\n")[0] for request in wire.requests] == [b"stats", b"gets " + store._place(A).key]


def test_memory_that_has_not_changed_is_not_decoded_again(opened, server, monkeypatch):
    talk = talk_to(opened(server))
    talk.write(A, x=[1])
    (before,) = talk.load()
    monkeypatch.setattr(memcached_module, "read_item", lambda *_: pytest.fail("decoded"))

    (after,) = talk.load()

    assert after is before


# Several servers.


def test_server_of_a_memory_depends_on_their_names_alone():
    names = ["a:1", "b:2", "c", "[::1]:4", "/run/memcached.sock"]
    stores = [MemcachedStore(order) for order in (names, names[::-1], ["A:1", "b:2", "c:11211", "[::1]:4", names[4]])]
    places = [[store._place(Namespace("s", str(n))).server.name for n in range(500)] for store in stores]

    assert places[0] == places[1] == places[2]
    assert set(Counter(places[0])) == {"a:1", "b:2", "c:11211", "::1:4", "/run/memcached.sock"}
    assert all(60 < share < 140 for share in Counter(places[0]).values())


def test_server_that_is_added_takes_its_share_and_moves_no_other_memory():
    few, more = MemcachedStore(["a", "b", "c"]), MemcachedStore(["a", "b", "c", "d"])
    moved = 0
    for n in range(1000):
        before, after = (store._place(Namespace("s", str(n))).server.name for store in (few, more))
        assert after in (before, "d:11211")
        moved += after != before

    assert 200 < moved < 300


def test_server_that_is_down_is_an_error_and_no_other_takes_its_place():
    with started("memcached") as first, started("memcached") as second:
        store = MemcachedStore([f"{each.host}:{each.port}" for each in (first, second)])
        talk = talk_to(store)
        namespaces = [Namespace("session", str(n)) for n in range(20)]
        for namespace in namespaces:
            talk.write(namespace, x=1)
        at_second = [each for each in namespaces if store._place(each).server.port == second.port]
        second.kill()

        for namespace in namespaces:
            if namespace in at_second:
                with pytest.raises(StoreUnavailableError, match=str(second.port)) as caught:
                    talk.load(namespace)
                assert caught.value.committed is False
            else:
                assert talk.content(namespace) == {"x": 1}
        assert 0 < len(at_second) < 20
        store.close()


# What it refuses.


def test_call_that_changed_two_memories_is_refused_before_it_writes(opened, server):
    with Gantry(opened(server), session="s", user="u") as gantry:

        @gantry.with_memory(scope="user", into="mine")
        @gantry.with_memory(scope="session", into="ours")
        def tool(both, mine, ours):
            ours["x"] = 1
            if both:
                mine["x"] = 1
            return dict(ours), dict(mine)

        with pytest.raises(NotAtomicError) as caught:
            tool(True)

        assert set(caught.value.scopes) == {"session", "user"}
        assert caught.value.committed is False
        assert tool(False) == ({"x": 1}, {})


def test_write_that_depends_on_another_memory_is_refused(opened, server):
    talk = talk_to(opened(server))
    talk.write(B, x=1)

    with pytest.raises(NotAtomicError):
        talk.send(talk.change(A, {"x": put(1)}), talk.change(B, whole=True))

    assert talk.content(A) == {}


def test_memories_that_are_only_checked_can_be_several(opened, server):
    talk = talk_to(opened(server))
    talk.write(A, x=1)
    talk.write(B, x=1)
    both = (talk.change(A, whole=True), talk.change(B, whole=True))
    assert talk.send(*both) == Committed()
    talk.write(B, x=2)

    answer = talk.send(*both)

    assert isinstance(answer, Moved)
    assert [snapshot.value("x") for snapshot in answer.snapshots] == [1, 2]


def test_use_restarts_the_time_of_one_memory_when_another_is_written(opened, server):
    talk = talk_to(opened(server))
    talk.commit(B, {"y": put(1, ttl=100.0, slides=True)}, touch=True)
    (before,) = talk.load(B)

    assert talk.send(talk.change(B, touch=True), talk.change(A, {"x": put(1)})) == Committed()

    (after,) = talk.load(B)
    assert after.touched > before.touched
    assert talk.content(A) == {"x": 1}


def test_use_restarts_nothing_when_the_write_beside_it_has_moved(opened, server):
    talk = talk_to(opened(server))
    talk.commit(B, {"y": put(1, ttl=100.0, slides=True)}, touch=True)
    (before,) = talk.load(B)
    late = talk.change(A, {"x": put(1)})
    talk.write(A, x=2)

    answer = talk.send(talk.change(B, touch=True), late)

    assert isinstance(answer, Moved)
    assert [snapshot.head for snapshot in answer.snapshots] == [before.head, talk.load(A)[0].head]
    assert talk.load(B)[0].touched == before.touched


def test_list_says_that_it_cannot(opened, server):
    with pytest.raises(StoreError, match="cannot be listed") as caught:
        talk_to(opened(server)).page()
    assert caught.value.committed is False


def test_memory_above_the_item_limit_is_refused_before_anything_is_sent(opened, wire):
    talk = talk_to(opened(wire.port))
    talk.write(A, small="x", large="x" * 700_000)
    late = talk.change(A, {"other": put(1), "large": put("x" * 500_000), "new": put("y" * 600_000)})
    wire.requests.clear()

    with pytest.raises(MemoryTooLargeError, match="-I") as caught:
        talk.send(late)

    assert (caught.value.key, caught.value.limit, caught.value.committed) == ("new", 1 << 20, False)
    assert caught.value.size > 1_100_000
    assert wire.requests == []
    assert len(talk.content()["large"]) == 700_000


def test_what_this_process_knew_before_is_not_taken_for_what_is_there(opened, server):
    store = opened(server)
    talk = talk_to(store)
    talk.write(A, x=1)
    talk.load()
    before = store._kept.get(A)
    talk.write(A, x=2)
    mine = talk.change(A, {"x": put(3)})
    store._kept.keep(A, before, 0)

    assert talk.send(mine) == Committed()
    assert talk.content() == {"x": 3}


def test_store_keeps_about_as_much_as_it_says(opened, server):
    store = opened(server)
    talk = talk_to(store)
    talk.write(A, **{f"key-{n}": n for n in range(10_000)})
    talk.write(B, **{f"key-{n}": "x" * 1000 for n in range(500)})
    store._kept.clear()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    talk.load(A, B)
    took = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert took / 2 < store._kept.bytes < took * 2


def test_limit_of_the_server_holds_whatever_it_is(opened):
    with started("memcached", "-I", "2m") as server:
        talk = talk_to(opened(server))
        talk.write(A, x="y" * 2_000_000)
        assert len(talk.content()["x"]) == 2_000_000
        with pytest.raises(MemoryTooLargeError):
            talk.write(A, x="y" * 2_100_000)


def test_largest_memory_that_fits_is_kept_and_what_the_server_refuses_is_too_large(opened, server):
    store = opened(server)
    talk = talk_to(store)
    talk.write(A, x="y" * 900_000)
    talk.load()
    room = (1 << 20) - 64 - len(store._place(A).key) - len(store._kept.get(A).data) + 900_000
    talk.write(A, x="y" * room)
    assert len(talk.content()["x"]) == room
    with pytest.raises(MemoryTooLargeError):
        talk.write(A, x="y" * (room + 1))

    next(iter(store._servers.values())).max_item = None
    with pytest.raises(MemoryTooLargeError, match="-I"):
        talk.write(A, x="y" * (room + 64))
    assert len(talk.content()["x"]) == room


def test_server_without_room_says_that_nothing_was_written(opened):
    with started("memcached", "-M", "-m", "2") as server:
        talk = talk_to(opened(server))

        def fill():
            for n in range(200):
                talk.write(Namespace("s", str(n)), x="x" * 100_000)

        with pytest.raises(StoreError, match="no room") as caught:
            fill()

        assert caught.value.committed is False


# What memcached drops.


def test_server_that_was_restarted_is_reconnected_to(opened):
    with started("memcached") as server:
        with Gantry(opened(server), session="s") as gantry:

            @gantry.with_memory
            def count(memory):
                memory["n"] = memory.get("n", 0) + 1
                return memory["n"]

            assert (count(), count()) == (1, 2)
            server.restart()
            assert (count(), count()) == (1, 2)


@pytest.mark.parametrize("loss", ["restart", "flush", "delete"])
def test_call_whose_memory_was_dropped_meanwhile_brings_nothing_back(opened, loss):
    with started("memcached") as server:
        store = opened(server)
        with Gantry(store, session="s") as gantry:
            with gantry.memory() as memory:
                memory["x"] = 1

            @gantry.with_memory
            def tool(memory):
                memory["y"] = 2
                key = store._place(Namespace("session", "s", "default")).key
                if loss == "restart":
                    server.restart()
                else:
                    say(server, b"flush_all" if loss == "flush" else b"delete " + key)

            with pytest.raises(MemoryErasedError):
                tool()

            with gantry.memory() as memory:
                assert memory == {}


def test_change_of_an_earlier_life_of_the_server_is_not_taken_for_one_of_this(opened):
    with started("memcached") as server:
        store, other = opened(server, "same:"), opened(server, "same:")
        talk = talk_to(store)
        talk.write(A, x="old")
        late = talk.message(talk.change(A, {"x": put("late")}))
        unique = store._kept.get(A).change[0]
        server.restart()
        theirs = talk_to(other)
        while True:
            theirs.write(A, x="new")
            theirs.load(A)
            if other._kept.get(A).change[0] == unique:
                break

        answer = talk.ask(late)

        assert isinstance(answer, Moved)
        assert talk.content() == {"x": "new"}


def test_memory_that_was_evicted_begins_anew(opened):
    with started("memcached", "-m", "2", "-o", "no_lru_maintainer,no_lru_crawler") as server:
        store = opened(server)
        talk = talk_to(store)
        talk.write(A, x=1)
        talk.load()
        late = talk.change(A, {"y": put(1)})
        key, data = len(store._place(A).key), store._kept.get(A).data
        names = [str(n).zfill(key).encode() for n in range(30_000)]
        filling = b"".join(b"set %b 0 0 %d noreply\r\n%b\r\n" % (name, len(data), data) for name in names)
        say(server, filling + b"version")
        assert counts(server)["evictions"] > 0

        assert isinstance(talk.send(late), Moved)
        assert talk.load()[0].head is None


# What is not known.


def test_commit_whose_reply_was_lost_is_written_once(wire, opened):
    with Gantry(opened(wire.port), session="s") as gantry:

        @gantry.with_memory
        def note(n, memory):
            if n:
                wire.lose.set()
            memory.setdefault("log", []).append(n)

        for n in range(5):
            note(n)

        with gantry.memory() as memory:
            assert memory["log"] == [0, 1, 2, 3, 4]


def test_lost_reply_to_a_first_commit_is_written_once(wire, opened):
    with Gantry(opened(wire.port), session="s") as gantry:
        with gantry.memory() as memory:
            memory.add("n", 1)
            wire.lose.set()
        with gantry.memory() as memory:
            assert memory == {"n": 1}


def lost(talk, wire, changed):
    """Send a commit whose reply is lost; gives the message."""
    sent = talk.message(changed, token=b"t" * 16)
    wire.lose.set()
    with pytest.raises(StoreUnavailableError) as caught:
        talk.ask(sent)
    assert caught.value.committed is None
    return sent


def test_commit_of_unknown_outcome_is_known_again_as_long_as_its_token_stands(wire, opened, server):
    store = opened(wire.port, "same:")
    talk = talk_to(store)
    talk.write(A, x=0)
    sent = lost(talk, wire, talk.change(A, {"x": put(1)}))
    others = talk_to(opened(server, "same:"))
    for n in range(60):
        others.send(others.change(A, {"x": put(n)}), token=n.to_bytes(16, "big"))

    assert talk.ask(sent) == Committed()
    assert talk.content() == {"x": 59}


@pytest.mark.parametrize("loss", ["crowded out", "erased", "made anew"])
def test_commit_of_unknown_outcome_whose_token_is_gone_is_not_guessed_at(wire, opened, server, loss):
    talk = talk_to(opened(wire.port, f"{loss[0]}:"))
    talk.write(A, x=0)
    sent = lost(talk, wire, talk.change(A, {"x": put(1)}))
    others = talk_to(opened(server, f"{loss[0]}:"))
    if loss == "crowded out":
        for n in range(70):
            others.send(others.change(A, {"x": put(n)}), token=n.to_bytes(16, "big"))
    else:
        others.ask(Forget((A,)))
        if loss == "made anew":
            others.write(A, x=5)

    with pytest.raises(StoreError, match="not known") as caught:
        talk.ask(sent)

    assert caught.value.committed is None


@pytest.mark.parametrize("loss", ["crowded out", "erased", "made anew"])
@pytest.mark.parametrize("made", ["key", "memory"])
def test_lost_commit_that_made_what_is_gone_now_is_not_written_again(wire, opened, server, made, loss):
    talk = talk_to(opened(wire.port, prefix := fresh_prefix()))
    others = talk_to(opened(server, prefix))
    if made == "key":
        others.write(A, x=0)
    sent = lost(talk, wire, talk.change(A, {"k": put(1)}))
    assert others.content()["k"] == 1
    if loss == "crowded out":
        others.commit(A, deletes=("k",))
        for n in range(70):
            others.send(others.change(A, {"x": put(n)}), token=n.to_bytes(16, "big"))
    else:
        others.ask(Forget((A,)))
        if loss == "made anew":
            others.write(A, x=5)
    before = others.content()

    for _ in range(2):
        with pytest.raises(StoreError, match="not known") as caught:
            talk.ask(sent)
        assert caught.value.committed is None

    assert others.content() == before


def test_lost_commit_that_made_its_key_and_cannot_have_landed_is_written(wire, opened, server):
    talk = talk_to(opened(wire.port, prefix := fresh_prefix()))
    others = talk_to(opened(server, prefix))
    talk.write(A, x=0)
    late = talk.change(A, {"k": put(1)})
    others.write(A, y=5)
    sent = lost(talk, wire, late)
    assert "k" not in others.content()

    assert talk.ask(sent) == Committed()

    assert others.content() == {"x": 0, "y": 5, "k": 1}


def test_lost_commit_is_doubted_as_long_as_it_may_be_sent_again(wire, opened, server, monkeypatch):
    store = opened(wire.port, prefix := fresh_prefix())
    talk = talk_to(store)
    wire.lose_after = b"add"
    sent = replace(talk.message(talk.change(A, {"k": put(1)}), token=b"t" * 16), timeout=600.0)
    with pytest.raises(StoreUnavailableError):
        talk.ask(sent)
    later = time.monotonic() + 120
    monkeypatch.setattr(memcached_module.time, "monotonic", lambda: later)
    store._doubt(b"u" * 16, b"key", memcached_module._Doubt(0.0, None, math.inf))
    monkeypatch.undo()
    talk_to(opened(server, prefix)).ask(Forget((A,)))

    with pytest.raises(StoreError, match="not known"):
        talk.ask(sent)


def test_restarted_time_whose_reply_was_lost_puts_no_doubt_on_the_write(wire, opened, server):
    talk = talk_to(opened(wire.port, prefix := fresh_prefix()))
    talk.commit(B, {"y": put(1, ttl=100.0, slides=True)}, touch=True)
    both = talk.message(talk.change(A, {"x": put(1)}), talk.change(B, touch=True), token=b"t" * 16)
    wire.lose_after = b"cas"
    with pytest.raises(StoreUnavailableError) as caught:
        talk.ask(both)
    assert caught.value.committed is None
    talk_to(opened(server, prefix)).ask(Forget((B,)))

    assert talk.ask(both) == Committed()


def test_commit_of_unknown_outcome_that_cannot_have_landed_has_moved(wire, opened, server):
    talk = talk_to(opened(wire.port, "u:"))
    talk.write(A, x=0)
    others = talk_to(opened(server, "u:"))
    late = talk.change(A, {"x": put(1)})
    others.write(A, x=5)
    sent = lost(talk, wire, late)

    assert isinstance(talk.ask(sent), Moved)


def test_reading_again_that_fails_leaves_no_doubt(wire, opened, server):
    talk = talk_to(opened(wire.port, "r:"))
    talk.write(A, x=0)
    late = talk.message(talk.change(A, {"x": put(1)}), token=b"t" * 16)
    talk.bridge.store._kept.clear()
    wire.lose.set()

    with pytest.raises(StoreUnavailableError) as caught:
        talk.ask(late)

    assert caught.value.committed is False


def test_restarted_time_that_fails_after_the_write_leaves_doubt(wire, opened):
    store = opened(wire.port)
    talk = talk_to(store)
    talk.commit(B, {"y": put(1, ttl=100.0, slides=True)}, touch=True)
    both = talk.message(talk.change(A, {"x": put(1)}), talk.change(B, touch=True), token=b"t" * 16)
    store._kept.clear()
    wire.lose_after = b"gets"

    with pytest.raises(StoreUnavailableError) as caught:
        talk.ask(both)

    assert caught.value.committed is None
    assert talk.ask(both) == Committed()
    assert talk.content(A) == {"x": 1}


def assign(store, token=b"t" * 16, **values):
    """What a call by a caller that may block does first: load, and commit plain values to what was loaded."""
    base, _ = store.load_at_once(A)
    return store.commit_at_once(A, base, values, {}, token, 5.0, math.inf)


class WatchedStore(Watched, MemcachedStore):
    """A store of one's own."""


@pytest.mark.parametrize("kind", ["derived", "before"])
def test_store_of_ones_own_sees_every_load_and_commit(server, kind):
    plain, watched = (made(f"{server.host}:{server.port}", prefix=fresh_prefix()) for made in (MemcachedStore, WatchedStore))
    store = watched if kind == "derived" else Before(plain)
    with Gantry(store, session="s") as gantry:

        @gantry.with_memory
        def count(memory):
            memory["n"] = memory.get("n", 0) + 1

        for _ in range(3):
            count()
    plain.close()
    watched.close()

    assert store.asked == ["load", "commit"] * 3


def test_first_try_says_whether_it_has_written(wire, opened, server):
    store = opened(wire.port, prefix := fresh_prefix())
    others = talk_to(opened(server, prefix))
    others.write(A, x=0)

    assert assign(store, x=1, new=2)
    assert others.content() == {"x": 1, "new": 2}
    base, _ = store.load_at_once(A)
    others.write(A, x=5)
    wire.requests.clear()

    assert not store.commit_at_once(A, base, {"x": 6}, {}, b"u" * 16, 5.0, math.inf)
    # The number of what it has read is in no other request.
    assert not store.commit_at_once(A, base, {"x": 6}, {}, b"u" * 16, 5.0, math.inf)
    assert [request.split(b" ")[0] for request in wire.requests] == [b"cas"]
    assert others.content() == {"x": 5, "new": 2}


def test_first_try_that_fails_has_no_other_thread_bring_back_what_was_erased(opened, server, monkeypatch):
    store = opened(server, prefix := fresh_prefix())
    talk, others = talk_to(store), talk_to(opened(server, prefix))
    talk.write(A, x=0)
    base, _ = store.load_at_once(A)
    made, tries = memcached_module.applied, []

    def applied(*given):
        if not tries:
            # What other processes, and other threads of this one, do meanwhile.
            others.ask(Forget((A,), 5.0))
            tries.append(store.commit_at_once(A, base, {"x": 5}, {}, b"u" * 16, 5.0, math.inf))
        return made(*given)

    monkeypatch.setattr(memcached_module, "applied", applied)
    answer = talk.send(talk.change(A, {"x": put(1)}))

    assert tries == [False]
    assert isinstance(answer, Moved)
    assert others.load()[0].head is None


def test_first_try_whose_reply_was_lost_is_known_again_by_its_token(wire, opened, server):
    store = opened(wire.port, prefix := fresh_prefix())
    talk, others = talk_to(store), talk_to(opened(server, prefix))
    talk.write(A, x=0)
    late = talk.change(A, {"x": put(1)})
    wire.lose_after = b"cas"
    with pytest.raises(StoreUnavailableError) as caught:
        assign(store, x=1)
    assert caught.value.committed is None
    others.write(A, x=2)

    assert talk.ask(talk.message(late, token=b"t" * 16)) == Committed()
    assert others.content() == {"x": 2}


def test_first_try_whose_reply_was_lost_and_whose_token_is_gone_is_not_guessed_at(wire, opened, server):
    store = opened(wire.port, prefix := fresh_prefix())
    talk, others = talk_to(store), talk_to(opened(server, prefix))
    talk.write(A, x=0)
    late = talk.change(A, {"k": put(1)})
    wire.lose_after = b"cas"
    with pytest.raises(StoreUnavailableError):
        assign(store, k=1)
    others.commit(A, deletes=("k",))
    for n in range(70):
        others.send(others.change(A, {"x": put(n)}), token=n.to_bytes(16, "big"))

    with pytest.raises(StoreError, match="not known") as caught:
        talk.ask(talk.message(late, token=b"t" * 16))

    assert caught.value.committed is None
    assert others.content() == {"x": 69}


def test_load_of_a_call_whose_connection_is_lost_is_asked_once_more_and_no_more(wire, opened):
    store = opened(wire.port)
    talk_to(store).write(A, x=1)
    wire.lose.set()
    before = wire.connections

    assert store.load_at_once(A)[0].value("x") == 1
    assert wire.connections == before + 1

    class Always:
        def is_set(self):
            return True

        def clear(self):
            pass

    wire.lose = Always()
    with pytest.raises(StoreUnavailableError) as caught:
        store.load_at_once(A)
    assert caught.value.committed is False
    # On the one that was there, and on one that was made for this.
    assert wire.connections == before + 2


def test_call_sends_nothing_any_more_when_the_store_was_closed_in_it(wire, opened):
    store = opened(wire.port)
    with Gantry(store, session="s") as gantry:

        @gantry.with_memory
        def tool(closes, memory):
            memory["x"] = closes
            if closes:
                store.close()
                wire.requests.clear()

        tool(False)
        with pytest.raises(StoreClosedError) as caught:
            tool(True)
        assert caught.value.committed is False
        with pytest.raises(StoreClosedError):
            tool(True)

    assert wire.requests == []


def test_call_under_way_when_the_store_is_closed_is_told_so_and_leaves_no_connection(opened):
    with started("memcached") as server, concurrent.futures.ThreadPoolExecutor() as threads:
        store = opened(server)
        talk_to(store).write(A, x=0)
        base, _ = store.load_at_once(A)
        (pool,) = store._link._pools.values()
        connection = pool._idle[0]
        with stopped(server):
            write = threads.submit(store.commit_at_once, A, base, {"x": 1}, {}, b"t" * 16, 0.5, math.inf)
            while not connection.busy:
                time.sleep(0.001)
            store.close()
            with pytest.raises(StoreClosedError) as caught:
                write.result(10)

    assert caught.value.committed is None
    assert connection.sock.fileno() == -1
    assert not pool._idle


def test_first_write_of_a_scope_that_has_owners_now_binds_what_was_there(opened, server):
    prefix = fresh_prefix()
    with Gantry(opened(server, prefix)) as before, before.memory("conversation", conversation="c") as memory:
        memory["x"] = 1
    with Gantry(opened(server, prefix), scopes={"conversation": Scope(owned=True)}) as gantry:

        @gantry.with_memory(scope="conversation")
        def tool(memory):
            memory["x"] += 1
            return memory["x"]

        with gantry.session("s1", user="ada", conversation="c"):
            assert (tool(), tool()) == (2, 3)
        with gantry.session("s2", user="bob", conversation="c"), pytest.raises(SessionOwnerError):
            tool()


def test_plain_value_is_refused_where_a_decorator_or_a_scope_forbids_it(opened, server):
    with Gantry(opened(server), session="s", scopes={"session": Scope(max_value_bytes=20)}) as gantry:

        @gantry.with_memory
        def write(value, memory):
            memory["x"] = value

        @gantry.with_memory(read_only=True)
        def look(memory):
            memory["x"] = "other"

        write("small")
        with pytest.raises(ReadOnlyMemoryError):
            look()
        with pytest.raises(MemoryTooLargeError):
            write("x" * 30)

        with gantry.memory() as memory:
            assert memory == {"x": "small"}


def test_call_that_outgrows_an_item_is_refused_and_writes_nothing(opened):
    with started("memcached", "-I", "512k") as server:
        store = opened(server)
        with Gantry(store, session="s") as gantry:

            @gantry.with_memory
            def note(text, memory):
                memory.setdefault("log", []).append(text)

            note("x" * 100)
            for limit in (512 << 10, None):
                next(iter(store._servers.values())).max_item = limit
                with pytest.raises(MemoryTooLargeError, match="-I") as caught:
                    note("y" * 600_000)
                assert caught.value.committed is False

            with gantry.memory() as memory:
                assert memory == {"log": ["x" * 100]}


def test_token_is_found_only_where_one_begins():
    tokens = with_token(with_token(NO_TOKENS, b"a" * 16, 100.0), b"b" * 16, 101.0)

    assert has_token(tokens, b"a" * 16, 159.9)
    assert not has_token(tokens, b"a" * 16, 160.0)
    assert not has_token(tokens, tokens[9:25], 100.0)
    assert not has_token(with_token(tokens, b"c" * 16, 160.5), b"a" * 16, 100.0)
    assert dropped_until(tokens) == -math.inf


@pytest.fixture
def pair():
    """A connection and the other end of it."""
    with socket.create_server((HOST, 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        other, _ = listener.accept()
        with other:
            yield BlockingConnection(sock), other


def test_reply_that_comes_late_and_in_pieces_is_read(pair):
    connection, other = pair
    now = time.monotonic()
    for _ in range(2):
        answer = threading.Timer(0.1, other.sendall, [b"LA"])
        rest = threading.Timer(0.15, other.sendall, [b"TE\r\n"])
        answer.start()
        rest.start()
        assert connection.talk(b"x\r\n", (LINE,), now + 20, now) == [b"LATE"]
        answer.join()
        rest.join()
    assert other.recv(100) == b"x\r\n" * 2


@pytest.mark.parametrize("seconds", [0.01, 0.1])
def test_reply_is_waited_for_no_longer_than_it_may_take(pair, seconds):
    connection, _ = pair
    now = time.monotonic()

    with pytest.raises(TimeoutError):
        connection.talk(b"x\r\n", (LINE,), now + seconds, now)

    assert seconds <= time.monotonic() - now < seconds + 5


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("name", ["SIGALRM", "SIGPROF", "SIGUSR1", "SIGCHLD", "SIGWINCH"])
def test_signals_that_come_again_and_again_do_not_keep_a_socket_waiting(pair, name):
    connection, other = pair
    number, main, over = getattr(signal, name), threading.main_thread().ident, threading.Event()
    before = signal.signal(number, lambda *_: None)

    def ring():
        # As a profiler has it; in the end the wait is ended in any case, so that a failure is no standstill.
        until = time.monotonic() + 10
        while not over.wait(0.005):
            signal.pthread_kill(main, number)
            if time.monotonic() > until:
                other.sendall(b"LATE\r\n")
                return

    ringing = threading.Thread(target=ring)
    ringing.start()
    try:
        now = time.monotonic()
        with pytest.raises(TimeoutError):
            connection.talk(b"x\r\n", (LINE,), now + 0.1, now)
    finally:
        over.set()
        ringing.join()
        signal.signal(number, before)


def test_what_does_not_fit_into_a_socket_is_sent_in_order(pair):
    connection, other = pair
    payload = b"".join(number.to_bytes(4, "big") for number in range(4_000_000))

    def take():
        received = bytearray()
        while len(received) < len(payload):
            received += other.recv(1 << 20)
        other.sendall(b"STORED\r\n")
        return received

    with concurrent.futures.ThreadPoolExecutor() as threads:
        # Begun when a part of it is on its way, and no more fits.
        taken = threads.submit(lambda: time.sleep(0.1) or take())
        now = time.monotonic()
        assert connection.talk(payload, (LINE,), now + 60, now) == [b"STORED"]
        assert taken.result(60) == payload
        # It is as it was.
        assert connection.sock.gettimeout() == 0.0 or not hasattr(select, "poll")
        answer = threading.Timer(0.05, other.sendall, [b"LATE\r\n"])
        answer.start()
        assert connection.talk(b"x\r\n", (LINE,), now + 60, now) == [b"LATE"]
        answer.join()


def test_wait_that_is_longer_than_the_system_knows_is_no_error(pair):
    connection, other = pair
    other.sendall(b"STORED\r\n")

    assert connection.talk(b"x\r\n", (LINE,), math.inf, time.monotonic()) == [b"STORED"]


def test_server_that_does_not_answer_is_given_up_in_time():
    with started("memcached") as server:
        store = MemcachedStore(f"{server.host}:{server.port}", load_timeout=0.3, commit_timeout=0.3)
        talk = talk_to(store)
        talk.write(A, x=1)
        late = replace(talk.message(talk.change(A, {"x": put(2)}), token=b"t" * 16), timeout=0.3)
        with stopped(server):
            before = time.monotonic()
            with pytest.raises(StoreTimeoutError) as commit:
                talk.ask(late)
            with pytest.raises(StoreTimeoutError) as load:
                talk.loaded(A, timeout=0.3)
            with pytest.raises(StoreTimeoutError):
                anyio.run(talk.aask, Load((A,), timeout=0.3))
            assert time.monotonic() - before < 5

        assert (load.value.committed, commit.value.committed) == (False, None)
        assert talk.ask(late) == Committed()
        assert talk.content() == {"x": 2}
        store.close()


def test_nobody_listening_is_told_at_once_to_every_caller(opened):
    talk = talk_to(opened(free_port()))
    before = time.monotonic()
    message = Commit(b"t" * 16, b"v" * 8, (Change(A, None, {"x": put(1)}, (), {"x": None}),))

    for ask in (talk.ask, lambda sent: anyio.run(talk.aask, sent)):
        for sent in (Load((A,)), message, Forget((A,)), Lease(A, b"me", 5.0)):
            with pytest.raises(StoreUnavailableError) as caught:
                ask(sent)
            assert caught.value.committed is False
    assert time.monotonic() - before < 3


# Callers.


def test_three_event_loops_and_a_thread_share_one_gantry(opened, server):
    ready = threading.Barrier(4)
    with Gantry(opened(server), session="s") as gantry:

        @gantry.with_memory
        async def aadd(memory):
            memory.add("n", 1)

        @gantry.with_memory
        def add(memory):
            memory.add("n", 1)

        async def work():
            await anyio.to_thread.run_sync(ready.wait)
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(aadd)

        def plain():
            ready.wait()
            for _ in range(10):
                add()

        runs = [functools.partial(anyio.run, work, backend=each) for each in ("asyncio", "asyncio", "trio")]
        threads = [threading.Thread(target=each) for each in (*runs, plain)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        with gantry.memory() as memory:
            assert memory == {"n": 40}


def test_event_loop_that_was_never_finished_leaves_nothing_open(opened, server):
    store = opened(server)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.answer(Load((A,))))
    loop.close()

    store.close()
    gc.collect()


class Unwatching(asyncio.SelectorEventLoop):
    """A loop that watches no sockets for others, as that of Windows."""

    def add_reader(self, *args):
        raise NotImplementedError

    remove_reader = remove_writer = add_writer = add_reader


@pytest.mark.parametrize("big", [10, 800_000])
@pytest.mark.parametrize("kind", [asyncio.SelectorEventLoop, Unwatching])
def test_memory_of_any_size_is_kept_by_callers_on_any_event_loop(opened, server, kind, big):
    store = opened(server)
    gantry = Gantry(store, session="s1")

    @gantry.with_memory
    async def keep(memory):
        memory["big"] = "x" * big
        memory.add("n", 1)

    async def keep_several_times():
        for _ in range(3):
            await keep()
        await asyncio.gather(*[keep() for _ in range(3)])
        store._kept.clear()
        async with gantry.memory() as memory:
            kept = dict(memory)
        await store.aclose()
        return kept

    loop = kind()
    kept = loop.run_until_complete(keep_several_times())
    loop.close()

    assert kept == {"big": "x" * big, "n": 6}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_caller_gets_a_reply_to_another_ones_question(opened, backend):
    namespaces = [Namespace("session", str(n)) for n in range(8)]
    with started("memcached") as server:
        store = opened(server, max_connections=4)
        talk = talk_to(store)
        for n, namespace in enumerate(namespaces):
            talk.write(namespace, n=n)
        cut = []

        async def load(n, scope):
            with scope:
                (snapshot,) = (await talk.aask(Load((namespaces[n],)))).snapshots
                assert snapshot.value("n") == n
            if scope.cancelled_caught:
                cut.append(n)

        async def work():
            for turn in range(6):
                scopes = [anyio.CancelScope() for _ in namespaces]
                async with anyio.create_task_group() as group:
                    with stopped(server):
                        for n, scope in enumerate(scopes):
                            group.start_soon(load, n, scope)
                        await anyio.sleep(0.02)
                        for scope in scopes[turn % 2 :: 2]:
                            scope.cancel()
                        await anyio.sleep(0.01)

        anyio.run(work, backend=backend)
        assert cut
        for n, namespace in enumerate(namespaces):
            assert talk.content(namespace) == {"n": n}


def test_connection_on_which_something_unasked_comes_is_not_used_again(opened, wire, server):
    store = opened(wire.port)
    talk = talk_to(store)
    talk.write(A, x=1)
    (connection,) = store._link._pools[next(iter(store._servers.values()))]._idle
    connection.sock.sendall(b"gets nothing\r\n")
    connection.is_stale()
    while not connection.is_stale():
        time.sleep(0.001)

    assert talk.content() == {"x": 1}
    assert wire.connections == 2


@pytest.mark.anyio
async def test_callers_wait_for_a_connection_and_not_for_ever(anyio_backend):
    with started("memcached") as server:
        store = MemcachedStore(f"{server.host}:{server.port}", max_connections=2)
        talk = talk_to(store)
        async with anyio.create_task_group() as group:
            for n in range(30):
                group.start_soon(talk.aask, Load((Namespace("s", str(n)),)))
        assert counts(server)["total_connections"] <= 6

        late = []
        # On asyncio callers share connections, elsewhere each has one in its thread.
        held = 2 if anyio_backend == "trio" else 1

        async def load(timeout):
            try:
                await talk.aask(Load((A,), timeout=timeout))
            except StoreTimeoutError as error:
                late.append(str(error))

        with stopped(server):
            async with anyio.create_task_group() as group:
                for _ in range(held):
                    group.start_soon(load, 2.0)
                await anyio.sleep(0.5)
                group.start_soon(load, 0.3)
        assert sum("max_connections" in each for each in late) == (anyio_backend == "trio")
        assert len(late) == held + 1
        await talk.aask(Load((A,)))
        await store.aclose()


def test_processes_that_write_other_keys_of_one_memory_both_succeed(server):
    script = """
        import sys
        from agent_gantry_state import Gantry
        with Gantry(sys.argv[1], session="s") as gantry:
            @gantry.with_memory
            def note(n, memory):
                memory[f"{sys.argv[2]}{n}"] = n
                memory.add("all", 1)
            for n in range(100):
                note(n)
    """
    url = f"{server.url}?prefix={fresh_prefix()}"
    processes = [run_python(script, url, name) for name in ("a", "b")]
    for process in processes:
        assert process.wait(60) == 0

    with Gantry(url, session="s") as gantry, gantry.memory() as memory:
        assert memory["all"] == 200
        assert all(memory[f"{name}{n}"] == n for name in ("a", "b") for n in range(100))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")
def test_both_sides_of_a_fork_write_and_nothing_is_lost(server):
    script = """
        import asyncio, os, sys
        from agent_gantry_state import Gantry
        gantry = Gantry(sys.argv[1], session="s")
        @gantry.with_memory
        def note(who, n, memory):
            memory.setdefault("log", []).append([who, n])
        note("both", 0)
        child = os.fork()
        for n in range(30):
            note("parent" if child else "child", n)
        gantry.close()
        if child:
            assert os.waitpid(child, 0)[1] == 0
    """
    url = f"{server.url}?prefix={fresh_prefix()}"
    assert run_python(script, url).wait(60) == 0

    with Gantry(url, session="s") as gantry, gantry.memory() as memory:
        both = [["both", 0], *(["child", n] for n in range(30)), *(["parent", n] for n in range(30))]
        assert sorted(memory["log"]) == both


def run_python(script, *arguments):
    return subprocess.Popen([sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments])


# Time.


def expiry(server, store, namespace=A):
    """The seconds that memcached still keeps an item for, -1 for ever."""
    (line,) = say(server, b"mg " + store._place(namespace).key + b" t")
    return int(line.removeprefix(b"HD t"))


@pytest.mark.parametrize(
    ("ttl", "least", "most"), [(10.0, 10, 13), (40 * 86400.0, 40 * 86400, 40 * 86400 + 3), (1e9, -1, -1), (1e300, -1, -1)]
)
def test_memcached_frees_what_is_expired_and_not_sooner(opened, server, ttl, least, most):
    store = opened(server)
    talk = talk_to(store)
    talk.write(A, x=put(1, ttl=ttl))

    assert least <= expiry(server, store) <= most
    assert talk.content() == {"x": 1}
    talk.write(A, y=1)
    assert expiry(server, store) == -1
    talk.commit(A, {}, ("y",))
    assert least <= expiry(server, store) <= most


def test_key_expires_by_the_clock_of_the_server(opened, server):
    talk = talk_to(opened(server))
    before = time.monotonic()
    talk.write(A, x=put(1, ttl=0.5), y=1)
    assert talk.content() == {"x": 1, "y": 1}
    while "x" in talk.content():
        assert time.monotonic() < before + 10
        time.sleep(0.02)

    assert time.monotonic() - before >= 0.5


def test_call_sees_what_time_its_keys_have_left_and_none_that_is_over(server):
    store = ClockedStore(f"{server.host}:{server.port}", prefix=fresh_prefix())
    now = 1000.0
    store.clock = lambda: now
    with Gantry(store, session="s") as gantry:

        @gantry.with_memory
        def put_one(memory):
            memory.set("x", 1, ttl=10)
            memory["y"] = 2

        @gantry.with_memory
        def left(memory):
            return {key: memory.ttl(key) for key in memory}

        put_one()
        now += 4
        assert left() == {"x": 6.0, "y": None}
        now += 6
        assert left() == {"y": None}
    store.close()


def test_time_of_a_server_is_known_to_a_second_and_better_with_each_reading():
    server = Server("a")
    begin = time.monotonic()
    true = 1_800_000_000.25 - begin

    server.learn(said(begin + true), begin, begin + 0.01)
    first = server._ahead[1] - server._ahead[0]
    for n in range(1, 40):
        at = begin + n * 30.37
        server.learn(said(at + true), at, at + 0.001)

    assert first == pytest.approx(1.01)
    least, most, _ = server._ahead
    assert least <= true <= most
    assert most - least < 0.3


def test_time_goes_back_only_with_a_new_life_of_the_server():
    server = Server("a")
    begin = time.monotonic()
    server.learn(said(5000.5), begin, begin)
    before = server.now()
    # A server that was stopped says what it knew before.
    known = server._ahead
    server.learn(said(4990.5), begin, begin)
    assert server._ahead == known
    assert server.now() >= before

    server.learn(said(4000.5, pid=b"2"), begin, begin)
    assert 4000 <= server.now() <= 4002
    server.learn(said(6000.5, pid=b"2"), begin, begin)
    assert 6000 <= server.now() <= 6002


def said(now, pid=b"1"):
    return {b"time": b"%d" % int(now), b"pid": pid, b"uptime": b"%d" % int(now - 100)}


def test_lease_of_a_holder_that_is_gone_ends_by_itself(opened, server):
    store = opened(server)
    talk = talk_to(store)
    assert talk.ask(Lease(A, b"me", 1.0)) == 0.0
    (line,) = say(server, b"mg " + store._place(A).lease + b" t")
    assert 1 <= int(line.removeprefix(b"HD t")) <= 4
    left = talk.ask(Lease(A, b"you", 1.0))
    assert 0.0 < left <= 1.0
    time.sleep(left)

    assert talk.ask(Lease(A, b"you", 5.0)) == 0.0
    talk.ask(Release(A, b"me"))
    assert talk.ask(Lease(A, b"me", 5.0)) > 0.0


# What is stored.


@pytest.mark.parametrize("damage", ["other", "cut", "garbage", "empty", "newer", "layout", "token"])
def test_damaged_memory_is_reported_and_not_overwritten(opened, server, damage):
    store = opened(server)
    talk = talk_to(store)
    talk.write(B, x=1)
    talk.send(talk.change(A, {"x": put(1)}), token=b"t" * 16)
    talk.load(A, B)
    whole = store._kept.get(A).data
    data = {
        "other": store._kept.get(B).data,
        "cut": whole[:-1],
        "garbage": b"END\r\nVALUE x 0 1 1\r\n",
        "empty": b"",
        "newer": b"\xff\x00\x00\x00\x00" + zlib.crc32(b"\xff\x00\x00\x00\x00").to_bytes(4, "big"),
        "layout": b"\xff" + whole[1:],
        "token": whole[:30] + bytes([whole[30] ^ 1]) + whole[31:],
    }[damage]
    key = store._place(A).key
    assert say(server, b"set %b 0 0 %d\r\n%b" % (key, len(data), data)) == [b"STORED"]

    with pytest.raises(CorruptEntryError, match="newer" if damage == "newer" else "cannot be read"):
        talk.load(A)
    with pytest.raises(CorruptEntryError):
        talk.ask(Commit(b"u" * 16, b"v" * 8, (Change(A, b"head", {"x": put(2)}, (), {"x": b"head"}),)))

    assert say(server, b"get " + key)[0].endswith(b" %d" % len(data))
    talk.ask(Forget((A,)))
    assert talk.content() == {}


HOSTILE = b"END\r\nVALUE x 0 5 1\r\nSTORED\r\nERROR\r\n"


@pytest.mark.parametrize("backend", [None, "asyncio"])
def test_value_that_looks_like_a_reply_comes_back_however_it_is_cut(wire, opened, backend):
    talk = talk_to(opened(wire.port))
    wire.shred = True
    value = [HOSTILE, HOSTILE.decode() * 3]
    talk.write(A, x=value)
    message = Load((A,))
    talk.bridge.store._kept.clear()

    loaded = talk.ask(message) if backend is None else anyio.run(talk.aask, message, backend=backend)

    assert loaded.snapshots[0].value("x") == value


@pytest.mark.parametrize(
    "reply",
    [
        b"VALUE k 0 3 7\r\nabc--END\r\n",
        b"VALUE k 0 -3 7\r\nEND\r\n",
        b"VALUE k 0 3\r\nabc\r\nEND\r\n",
        b"STAT k 0 3 7\r\nEND\r\n",
        b"VALUE k 0 3 x\r\nabc\r\nEND\r\n",
        b"END\r\nEND\r\n",
        b"x" * 10_000,
    ],
)
def test_what_is_no_reply_is_refused(reply):
    with pytest.raises(Garbled):
        read((VALUES,), bytearray(), reply)


@pytest.mark.parametrize(
    "reply",
    [
        b"END\r\n",
        b"VALUE k 0 3 7\r\nabc\r\nEND\r\n",
        b"VALUE k 0 3 18446744073709551615\r\nabc\r\nEND\r\n",
        b"VALUE k 0 3 7\r\nabd\r\nEND\r\n",
        b"VALUE k 0 4 7\r\nabcd\r\nEND\r\n",
        b"VALUE k 1 3 7\r\nabc\r\nEND\r\n",
        b"VALUE kk 0 3 7\r\nabc\r\nEND\r\n",
        b"VALUE k 0 3 7\r\nabc\r\nVALUE l 0 0 8\r\n\r\nEND\r\n",
        b"VALUE k 0 3 7\r\nabc\r\nEN",
        b"VALUE k 0 3 7\r\nabc--END\r\n",
        b"VALUE k 0 3 x\r\nabc\r\nEND\r\n",
        b"VALUE k 0 3 \r\nabc\r\nEND\r\n",
        b"VALUE k 0 3 7 \r\nabc\r\nEND\r\n",
        b"VALUE k 0 3",
        b"SERVER_ERROR x\r\n",
    ],
)
@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("before", [b"", b"VALUE"])
def test_item_that_is_known_is_read_as_any_other(reply, kind, before):
    """Only that it need not be taken apart."""

    def heard(kind_of_reply):
        try:
            return kind_of_reply(kind(before + reply), len(before))
        except (Garbled, Refused) as error:
            return type(error)

    found = heard(VALUES)
    if isinstance(found, tuple):
        found = found[0].get(b"k"), found[1]

    known = b"abc"
    (knowing,) = get(_asked_lately(), b"k", known).kinds
    heard_so = heard(knowing)

    assert heard_so == found
    if (
        isinstance(found, tuple)
        and found[0] is not None
        and found[0][0] == known
        and b" 0 3 " in reply
        and b"l" not in reply
    ):
        assert heard_so[0][0] is known


def _asked_lately():
    server = Server("clock")
    server._ahead = (0.0, 1.0, time.monotonic())
    return server


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_reply_that_comes_in_pieces_is_read(size):
    reply = b"VALUE k 0 12 7\r\nEND\r\nVALUE k\r\nVALUE END 0 0 8\r\n\r\nEND\r\n"
    pieces = [reply[at : at + size] for at in range(0, len(reply), size)]
    buffer = bytearray()
    read_so_far = [read((VALUES,), buffer, piece) for piece in pieces]

    assert read_so_far[:-1] == [None] * (len(pieces) - 1)
    assert read_so_far[-1] == [{b"k": (b"END\r\nVALUE k", b"7"), b"END": (b"", b"8")}]


# How it is named and opened.


def test_url_names_servers_and_options(server):
    url = f"memcached://{HOST}:{server.port},other:1?prefix=p:&max_connections=3&load_timeout=1.5&connect_timeout=1"
    with Gantry(url) as gantry:
        store = gantry.store if hasattr(gantry, "store") else open_store(url)
        assert isinstance(store, MemcachedStore)
    store = open_store(url)
    assert [*store._servers] == [f"{HOST}:{server.port}", "other:1"]
    assert (store.load_timeout, store.connect_timeout, store._max_connections) == (1.5, 1.0, 3)
    assert [*open_store("memcached://a,B")._servers] == ["a:11211", "b:11211"]
    assert [*open_store("memcached://[::1]:5")._servers] == ["::1:5"]
    assert [*open_store("memcached:///run/m.sock")._servers] == ["/run/m.sock"]


@pytest.mark.parametrize(
    "url",
    [
        "memcached://",
        "memcached:///",
        "memcached://a/path",
        "memcached://a,",
        "memcached://a,a:11211",
        "memcached://a:0",
        "memcached://a:port",
        "memcached://a:65536",
        "memcached://user@a",
        "memcached://:open-sesame@a",
        "memcached://us%20er:open-sesame@a",
        "memcached://user:open-sesame@a:b:c",
        "memcached://a?prefix=a%20b",
        "memcached://a?prefix=%C3%A9",
        "memcached://a?max_connections=0",
        "memcached://a?max_connections=many",
        "memcached://a?load_timeout=0",
        "memcached://a?timeout=1",
        "memcached://a#x",
    ],
)
def test_url_that_cannot_be_meant_is_refused_without_showing_a_password(url):
    with pytest.raises(StoreURLError) as caught:
        open_store(url)
    assert "open-sesame" not in str(caught.value)
    if "?timeout" in url:
        assert "commit_timeout, connect_timeout, load_timeout, max_connections, prefix" in str(caught.value)


def test_store_takes_servers_or_a_client():
    for arguments in ({}, {"servers": "a", "client": PooledClient(("a", 1))}, {"client": object()}):
        with pytest.raises(TypeError, match="MemcachedStore"):
            MemcachedStore(**arguments)


def eventually(attempt):
    deadline = time.monotonic() + 10
    while True:
        try:
            return attempt()
        except StoreUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def guarded():
    """The address of a server that knows ada."""
    with guarded_memcached() as address:
        yield address


def test_user_with_the_password_is_let_in_and_no_other(guarded, caplog):
    caplog.set_level(logging.DEBUG)
    address = guarded
    with Gantry(f"memcached://ada:{PASSWORD}@{address}", session="s") as gantry:
        with gantry.memory() as memory:
            memory["x"] = 1

        async def read():
            async with gantry.memory() as memory:
                return dict(memory)

        assert anyio.run(read) == {"x": 1}
    for url in (f"memcached://ada:{PASSWORD}x@{address}", f"memcached://{address}"):
        with pytest.raises(StoreError, match="password") as caught, Gantry(url, session="s") as gantry, gantry.memory():
            pass
        shown = "".join(traceback.format_exception(caught.value)) + repr(open_store(url)) + caplog.text
        assert caught.value.committed is False
        assert PASSWORD not in shown


@contextlib.contextmanager
def answering(*answers):
    """The address of a server that gives each connection these answers, one to whatever comes, and closes it."""

    def serve():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                for answer in answers:
                    client.recv(1000)
                    client.sendall(answer)

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"{HOST}:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def variables(error):
    """What our own frames held when an error passed them, as something that reports errors may show it."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if Path(frame.f_code.co_filename).parent == Path(memcached_module.__file__).parent:
                yield from map(repr, frame.f_locals.values())
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("backend", [None, "asyncio"])
@pytest.mark.parametrize("end", ["refused", "closed"])
def test_password_is_in_no_variable_that_a_traceback_shows(guarded, end, backend):
    with answering(b"CLIENT_ERROR unauthenticated\r\n", b"") as closing:
        address = guarded if end == "refused" else closing
        store = MemcachedStore(address, user="eve", password=PASSWORD)
        talk = talk_to(store)

        with pytest.raises(StoreError) as caught:
            talk.load() if backend is None else anyio.run(talk.aask, Load((A,)), backend=backend)
        store.close()

    shown = [*variables(caught.value)]
    assert any("eve" in each or "redentials" in each for each in shown)
    assert PASSWORD not in "".join(shown)


@pytest.mark.parametrize("ask", ["talk", "loop", "client"])
def test_server_that_only_closes_is_asked_about(ask):
    with answering(b"") as address:
        host, port = address.split(":")
        client = PooledClient((host, int(port)), timeout=5, connect_timeout=5)
        with contextlib.closing(MemcachedStore(client=client) if ask == "client" else MemcachedStore(address)) as store:
            talk = talk_to(store)
            with pytest.raises(StoreUnavailableError, match="while it was greeted: is it a memcached") as caught:
                anyio.run(talk.aask, Load((A,))) if ask == "loop" else talk.load()

    assert caught.value.committed is False


def test_several_servers_in_one_text_are_refused():
    for servers in ("a,b", ["a:1,b:2"], "[::1]:5,b"):
        with pytest.raises(ValueError, match="list"):
            MemcachedStore(servers)
    assert [*MemcachedStore("/run/a,b.sock")._servers] == ["/run/a,b.sock"]


def test_password_is_not_given_to_a_server_that_asks_for_none(server):
    store = MemcachedStore(f"{HOST}:{server.port}", user="ada", password=PASSWORD)

    with pytest.raises(StoreError, match="asks for no password"):
        talk_to(store).load()

    assert say(server, b"get _") == [b"END"]
    store.close()


def test_client_of_the_user_is_used_by_all_callers_and_stays_open(server):
    client = PooledClient((server.host, server.port), timeout=5, connect_timeout=5)
    gantry = Gantry(MemcachedStore(client=client, prefix=fresh_prefix()), session="s")

    @gantry.with_memory
    def add(memory):
        memory.add("n", 1)

    @gantry.with_memory
    async def aadd(memory):
        memory.add("n", 1)

    add()
    anyio.run(aadd)
    with gantry.memory() as memory:
        assert memory == {"n": 2}
    before = counts(server)["total_connections"]
    gantry.close()

    assert client.set("mine", "x", noreply=False)
    assert client.get("mine") == b"x"
    assert counts(server)["total_connections"] <= before + 2
    client.close()


def test_connection_of_a_client_that_somebody_else_opened_is_not_used(server):
    client = PooledClient((server.host, server.port), timeout=5, connect_timeout=5)
    client.get("mine")
    (theirs,) = [each.sock.getsockname() for each in client.client_pool._free_objs]
    talk = talk_to(MemcachedStore(client=client, prefix=fresh_prefix()))

    talk.write(A, x=1)
    (ours,) = [each.sock.getsockname() for each in client.client_pool._free_objs]
    talk.load()

    assert ours != theirs
    assert [each.sock.getsockname() for each in client.client_pool._free_objs] == [ours]
    client.close()


def test_client_of_the_user_reconnects_after_a_restart():
    with started("memcached") as server:
        client = PooledClient((server.host, server.port), timeout=5, connect_timeout=5)
        talk = talk_to(MemcachedStore(client=client))
        talk.write(A, x=1)
        server.restart()
        assert talk.content() == {}
        server.kill()
        with pytest.raises(StoreUnavailableError):
            talk.load()
        client.close()


def test_server_on_one_address_of_its_name_is_found(server):
    store = MemcachedStore(f"localhost:{server.port}")
    assert talk_to(store).load()[0].head is None
    assert anyio.run(talk_to(store).aask, Load((A,))).snapshots[0].head is None
    store.close()


def test_server_on_a_socket_file_is_found():
    with running("-s", "{}/m.sock") as directory, Gantry(f"memcached://{directory}/m.sock", session="s") as gantry:

        def write():
            with gantry.memory() as memory:
                memory["x"] = 1

        async def read():
            async with gantry.memory() as memory:
                return dict(memory)

        eventually(write)
        assert anyio.run(read) == {"x": 1}
