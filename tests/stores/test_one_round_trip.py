"""What a call costs on the wire: one round trip to load and one to commit, and nothing that need not be said."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid

import psycopg
import pymemcache
import pytest
import redis
import servers
from wire import Wire

from agent_gantry_state import Gantry, NotAtomicError

NETWORK = {
    "redis-6.2": servers.redis_6,
    "redis-8.2": servers.redis_8,
    "valkey": servers.valkey,
    "postgresql": servers.postgresql,
    "pgbouncer": servers.pgbouncer,
    "memcached": servers.memcached,
}
TOGETHER = [*NETWORK.keys() - {"memcached"}]
APART = ["redis-cluster", "memcached"]


@pytest.fixture(scope="module", params=[*NETWORK, "redis-cluster"])
def wire(request):
    if request.param in NETWORK:
        with Wire(NETWORK[request.param]()) as wire:
            yield wire
    else:
        # Of this module's own, as its nodes are told to say that they are elsewhere.
        with servers.started_cluster() as cluster, Wire(cluster) as wire, Gantry(wire.url) as gantry:
            # So many that each server has run the scripts once, and knows them by their names.
            for n in range(50):
                with gantry.memory(session=f"s{n}") as memory:
                    memory["x"] = 1
            yield wire


class Sync:
    """Calls bodies as tools where there is no event loop.

    Attributes:
        loads: Round trips of the last call before its body.
        commits: Round trips of the last call after its body.
    """

    def __init__(self, wire, app):
        self.wire = wire
        self.app = app
        self.gantry = Gantry(wire.url, app=app, session="s1", user="ada")

    def call(self, body, *options):
        """Call *body* as a tool with a decorator for each of *options*; the round trips to load and to commit."""
        tool = self.tool(self.observed(body))
        for each in options or ({},):
            tool = self.gantry.with_memory(**each)(tool)
        self.wire.clear()
        self.after = 0
        try:
            self.run(tool)
        finally:
            self.commits = self.wire.trips - self.after
        return self.loads, self.commits

    def observed(self, body):
        @functools.wraps(body)
        def observed(*args, **kwargs):
            self.loads = self.wire.trips
            try:
                return body(*args, **kwargs)
            finally:
                self.after = self.wire.trips

        return observed

    def tool(self, body):
        return body

    def run(self, tool):
        tool()

    def close(self):
        self.gantry.close()


class OnLoop(Sync):
    """Calls them on one event loop of asyncio."""

    def __init__(self, wire, app):
        super().__init__(wire, app)
        self.loop = asyncio.new_event_loop()

    def tool(self, body):
        @functools.wraps(body)
        async def tool(*args, **kwargs):
            return body(*args, **kwargs)

        return tool

    def run(self, tool):
        self.loop.run_until_complete(tool())

    def close(self):
        self.loop.run_until_complete(self.gantry.aclose())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@pytest.fixture(params=[Sync, OnLoop], ids=["sync", "asyncio"])
def caller(request, wire):
    """Makes calls on a store that has been used: in the memory of the session is a key x."""
    caller = request.param(wire, uuid.uuid4().hex)

    def first(memory):
        memory["x"] = memory.get("x", 0) + 1

    for _ in range(3):
        caller.call(first)
    yield caller
    caller.close()


# The proxy.


def test_wire_counts_commands_and_round_trips_of_redis():
    with Wire(servers.redis_8()) as wire, redis.Redis(port=wire.ports[0]) as client:
        client.ping()
        wire.clear()

        client.set("x", b"\r\n$3\r\n" * 100_000)
        with client.pipeline(transaction=False) as pipeline:
            pipeline.get("x").time().execute()

    assert [(request.name, request.trip) for request in wire.requests] == [("SET", 1), ("GET", 2), ("TIME", 2)]
    assert (wire.trips, wire.connections) == (2, 0)
    assert wire.received > wire.sent - 100 > 500_000


def test_wire_counts_queries_and_round_trips_of_postgresql():
    with Wire(servers.postgresql()) as wire, psycopg.connect(wire.url, autocommit=True) as connection:
        wire.clear()

        connection.execute("select 1")
        connection.execute("select %s::int", [1])
        with connection.transaction():
            connection.execute("select 2")
        with connection.pipeline():
            connection.execute("select 3")
            connection.execute("select 4")

    names = [request.name for request in wire.requests]
    assert names[:5] == ["Q select 1", "PBDES select $1::int", "Q BEGIN", "Q select 2", "Q COMMIT"]
    assert names[5:] == ["PBDEPBDES select 3 select 4"]
    assert wire.trips == 6


def test_wire_counts_commands_of_memcached():
    with Wire(servers.memcached()) as wire, contextlib.closing(pymemcache.Client((servers.HOST, wire.ports[0]))) as client:
        client.set("x", b"\r\nset y 0 0 5\r\n", noreply=False)
        client.gets("x")
        client.raw_command("ms z 3 T9\r\nabc")

    assert [request.name for request in wire.requests] == ["set", "gets", "ms"]
    assert wire.trips == 3


# Calls.


def test_call_that_changes_one_key_loads_once_and_commits_once(caller):
    def body(memory):
        memory["x"] += 1

    assert caller.call(body) == (1, 1), caller.wire.requests
    assert sorted({request.trip for request in caller.wire.requests}) == [1, 2]


def test_first_call_for_a_memory_loads_once_and_commits_once(caller):
    def body(memory):
        memory["x"] = 1

    assert caller.call(body, {"scope": "global"}) == (1, 1), caller.wire.requests


def test_call_that_deletes_adds_and_lets_expire_commits_once(caller):
    def body(memory):
        del memory["x"]
        memory.add("n", 2)
        memory.set("y", [1], ttl=1000)

    assert caller.call(body) == (1, 1), caller.wire.requests


def test_call_that_only_reads_is_one_round_trip(caller):
    def body(memory):
        assert dict(memory) == {"x": 3} or memory["x"] == 1

    assert caller.call(body) == (1, 0), caller.wire.requests


def test_call_that_changed_nothing_writes_nothing(caller):
    def body(memory):
        memory["x"] = memory["x"]
        memory["y"] = [1]
        del memory["y"]

    assert caller.call(body) == (1, 0), caller.wire.requests


def test_call_that_fails_writes_nothing(caller):
    def body(memory):
        memory["x"] = 5
        raise LookupError

    with pytest.raises(LookupError):
        caller.call(body)

    assert caller.wire.trips == 1, caller.wire.requests


def test_call_with_two_memories_of_one_store_still_loads_once(caller):
    def body(memory, other):
        memory["x"] += other.get("x", 0) + 1

    options = {}, {"scope": "user", "into": "other"}
    caller.call(body, *options)
    loads, commits = caller.call(body, *options)
    # Of a cluster, one from each server that holds one of them.
    assert (loads, commits) in ((1, 1), (2, 1) if "cluster" in caller.wire.url else (1, 1)), caller.wire.requests


@pytest.mark.parametrize("wire", TOGETHER, indirect=True)
def test_call_that_changes_two_memories_of_one_store_commits_once(caller):
    def body(memory, other):
        memory["x"] = other["y"] = 7

    assert caller.call(body, {}, {"scope": "user", "into": "other"}) == (1, 1), caller.wire.requests


@pytest.mark.parametrize("wire", APART, indirect=True)
def test_call_that_changes_two_memories_where_they_cannot_be_written_together_sends_nothing(caller):
    def body(memory, other):
        memory["x"] = other["y"] = 7

    with pytest.raises(NotAtomicError):
        caller.call(body, {}, {"scope": "user", "into": "other"})

    assert caller.commits == 0, caller.wire.requests


def test_lost_race_costs_one_more_round_trip(caller):
    # Memcached's answer does not say how things stand, and is asked for it.
    extra = 2 if "memcached" in caller.wire.url else 1
    with Gantry(caller.wire.url, app=caller.app, session="s1", user="ada") as other:

        def body(memory):
            memory.add("x", 8)
            with other.independent(), other.memory() as theirs:
                theirs.add("x", 9)

        assert caller.call(body) == (1, 1 + extra), caller.wire.requests


def test_exclusive_call_asks_for_its_turn_and_gives_it_back(caller):
    def body(memory):
        memory.add("x", 8)

    # A server that has seen a script once runs it by its name.
    caller.call(body, {"exclusive": True})
    # Memcached looks whose a lease is before it ends it.
    back = 2 if "memcached" in caller.wire.url else 1
    assert caller.call(body, {"exclusive": True}) == (2, 1 + back), caller.wire.requests


@pytest.mark.parametrize("wire", ["redis-cluster", *TOGETHER], indirect=True)
def test_unchanged_memory_of_a_thousand_keys_is_not_sent_again(caller):
    def fill(memory):
        memory.update({f"key-{n}": f"value-{n}" for n in range(1000)})

    def read(memory):
        assert len(memory) == 1001

    def change(memory):
        memory["key-5"] = "changed"

    caller.call(fill)
    with Gantry(caller.wire.url, app=caller.app, session="s1", user="ada") as stranger, stranger.memory() as memory:
        assert len(memory) == 1001
    assert caller.wire.received > 25_000
    caller.call(read)
    sizes = []
    for body in (read, change, read, read):
        caller.call(body)
        sizes.append((caller.wire.sent, caller.wire.received))

    # Of some 30,000; memcached keeps a memory as one item.
    assert max(max(size) for size in sizes) < 4000, sizes
