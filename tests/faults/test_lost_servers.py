"""A server that loses what it had, between a call's load and its commit: nothing old comes back, nothing is overwritten."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
import redis
from servers import started

from agent_gantry_state import Gantry, MemoryConflictError, MemoryErasedError
from agent_gantry_state.testing import Clock

pytestmark = pytest.mark.once


def write(gantry, **values):
    with gantry.memory() as memory:
        memory.update(values)


def write_beside(gantry, **values):
    """Write as somebody else would, also from inside a call."""
    with gantry.independent():
        write(gantry, **values)


def read(gantry):
    with gantry.memory() as memory:
        return dict(memory)


def in_mid_call(gantry, happens, key="n", value=-1, **options):
    """A call that has loaded what there is when something happens, and then writes."""

    @gantry.with_memory(**options)
    def tool(memory):
        assert memory
        happens()
        memory[key] = value

    tool()


@contextlib.contextmanager
def redis_server(**options):
    """A Redis that writes nothing down by itself."""
    with started("redis_8", "--save", "", **options) as server, Gantry(server.url, session="s") as gantry:
        yield server, gantry


def flush(server):
    with redis.Redis(port=server.port) as admin:
        admin.flushall()


def again(server):
    server.kill()
    server.start()


@pytest.mark.parametrize("loss", [flush, again], ids=["flushed", "killed"])
@pytest.mark.parametrize("key", ["n", "other"])
def test_call_whose_redis_forgot_everything_brings_nothing_back(loss, key):
    with redis_server() as (server, gantry):
        write(gantry, n=1)

        with pytest.raises(MemoryErasedError) as caught:
            in_mid_call(gantry, lambda: loss(server), key)

        assert caught.value.committed is False
        assert read(gantry) == {}
        write(gantry, n=2)
        assert read(gantry) == {"n": 2}


def test_call_whose_redis_forgot_and_was_written_to_anew_overwrites_nothing():
    with redis_server() as (server, gantry), Gantry(server.url, session="s") as other:
        write(gantry, n=1)

        def happens():
            flush(server)
            write(other, n=7)

        with pytest.raises(MemoryErasedError):
            in_mid_call(gantry, happens)

        assert read(gantry) == read(other) == {"n": 7}


def saved_and_killed(server):
    """As after a fail-over to a replica that was behind: gives what loses all that comes before it is called."""

    with redis.Redis(port=server.port) as admin:
        admin.save()
    return lambda: again(server)


@pytest.mark.parametrize("changes", ["n", "other"])
def test_call_that_read_what_a_fail_over_has_lost_is_refused_or_leaves_it_lost(changes):
    with redis_server() as (server, gantry):
        write(gantry, n=1)
        happens = saved_and_killed(server)
        write(gantry, n=2)
        assert read(gantry) == {"n": 2}

        if changes == "n":
            with pytest.raises(MemoryConflictError) as caught:
                in_mid_call(gantry, happens)
            assert caught.value.committed is False
            assert read(gantry) == {"n": 1}
        else:
            # Another key: the call is merged into what is left, and brings the lost one not back.
            in_mid_call(gantry, happens, "other")
            assert read(gantry) == {"n": 1, "other": -1}


def test_serializable_call_that_read_what_a_fail_over_has_lost_is_refused():
    with redis_server() as (server, gantry):
        write(gantry, n=1)
        happens = saved_and_killed(server)
        write(gantry, n=2)

        with pytest.raises(MemoryConflictError):
            in_mid_call(gantry, happens, "other", isolation="serializable")

        assert read(gantry) == {"n": 1}


def test_memory_that_a_fail_over_has_lost_as_a_whole_is_erased():
    with redis_server() as (server, gantry):
        with gantry.memory("session", session="first") as memory:
            memory["n"] = 1
        happens = saved_and_killed(server)
        write(gantry, n=2)

        with pytest.raises(MemoryErasedError):
            in_mid_call(gantry, happens)

        assert read(gantry) == {}


def test_call_over_a_restart_that_lost_nothing_is_committed_once():
    with redis_server(appendonly=True) as (server, gantry):
        write(gantry, log=[])

        @gantry.with_memory
        def tool(memory):
            again(server)
            memory["log"].append(1)

        tool()

        assert read(gantry) == {"log": [1]}


@pytest.fixture
def lazy():
    """A PostgreSQL that writes nothing down for ten seconds, and a gantry that does not ask it to."""
    with (
        started("postgresql", "-c", "wal_writer_delay=10000") as server,
        Gantry(f"{server.url}?synchronous_commit=off", session="s") as gantry,
    ):
        write(gantry, n=0, log=[])
        yield server, gantry


def test_crash_of_a_lazy_postgresql_takes_whole_commits_from_the_end_and_no_call_brings_one_back(lazy):
    server, gantry = lazy
    with psycopg.connect(server.url, autocommit=True) as admin:
        # What is there now is on the disk.
        admin.execute("CHECKPOINT")
    for n in range(1, 6):
        write(gantry, n=n, log=[n] * n)
    left = {}

    def happens():
        again(server)
        with Gantry(server.url, session="s") as other:
            left.update(read(other))

    with pytest.raises(MemoryConflictError):
        in_mid_call(gantry, happens)

    assert left["log"] == [left["n"]] * left["n"]
    assert left["n"] < 5, "nothing was lost, so that nothing was tried"
    assert read(gantry) == left


@pytest.mark.parametrize("stop", ["restart", "kill"])
def test_call_over_a_restart_of_postgresql_is_committed_once(stop):
    with started("postgresql") as server, Gantry(server.url, session="s") as gantry:
        write(gantry, log=[])

        @gantry.with_memory
        def tool(memory):
            again(server) if stop == "kill" else server.restart()
            memory["log"].append(1)

        tool()

        assert read(gantry) == {"log": [1]}


@pytest.mark.parametrize("name", ["memory", "file", "sqlite"])
def test_clock_that_jumps_back_brings_nothing_back_and_changes_no_version(name, tmp_path):
    url = {"memory": "memory://", "file": f"file:///{tmp_path}/state", "sqlite": f"sqlite:///{tmp_path}/state.db"}[name]
    clock = Clock()
    with Gantry(url, session="s") as gantry, gantry.override(clock=clock):
        with gantry.memory() as memory:
            memory.set("short", 1, ttl=10)
            memory["n"] = 1
        clock.now += 11
        assert read(gantry) == {"n": 1}

        clock.now -= 1000
        assert read(gantry) == {"n": 1}
        # A commit of before, one of then, and one that is late.
        with pytest.raises(MemoryConflictError):
            in_mid_call(gantry, lambda: write_beside(gantry, n=2))
        with gantry.memory() as memory:
            memory.set("new", 3, ttl=10)
        assert read(gantry) == {"n": 2, "new": 3}
        clock.now += 1000
        assert read(gantry) == {"n": 2, "new": 3}
        clock.now += 11
        assert read(gantry) == {"n": 2}
