"""The long forms: histories over all versions of all servers, and random interleavings, until the time is over."""

from __future__ import annotations

import contextlib
import pathlib
import random
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import servers
from isolation.calls import SHAPES, Job
from isolation.cases import random_order
from isolation.checker import MODES
from isolation.workers import Workers, history
from soak import seeds

from agent_gantry_state.stores.memory import MemoryStore

#: One version of each server, for every day; and all of them.
PLACES = ("memory", "file", "sqlite", "redis-8", "postgresql", "memcached")
ALL_PLACES = (*PLACES, "redis-6", "valkey", "redis-cluster", "pgbouncer", "sqlite-full", "file-fsync")
_SERVERS: dict[str, Callable[[], Any]] = {
    "redis-6": servers.redis_6,
    "redis-8": servers.redis_8,
    "valkey": servers.valkey,
    "redis-cluster": servers.redis_cluster,
    "postgresql": servers.postgresql,
    "pgbouncer": servers.pgbouncer,
    "memcached": servers.memcached,
}


@contextlib.contextmanager
def place_of(name: str, folder: pathlib.Path) -> Iterator[tuple[Any, str]]:
    """A store on which nothing of an app is yet: its URL, or of memory the store itself; and the app."""
    local = {
        "file": f"file:///{folder}/state",
        "file-fsync": f"file:///{folder}/synced?fsync=true",
        "sqlite": f"sqlite:///{folder}/state.db",
        "sqlite-full": f"sqlite:///{folder}/full.db?synchronous=full",
    }
    where = MemoryStore() if name == "memory" else local[name] if name in local else _SERVERS[name]().url
    yield where, uuid.uuid4().hex


def shapes_for(name: str) -> tuple[str, ...]:
    """The tools that can run there: some stores cannot write, or look at, several namespaces in one step."""
    return ("one", "glance", "session") if name in ("memcached", "redis-cluster") else (*SHAPES, "session")


def histories(deadline: float, report: Callable[[str, int], None]) -> None:
    """Histories in all modes on all stores."""
    workers = Workers(3)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for seed in seeds(deadline):
                rng = random.Random(seed)
                name, mode = rng.choice(ALL_PLACES), rng.choice((*MODES, "mixed"))
                with place_of(name, pathlib.Path(folder)) as (where, app):
                    calls = rng.randint(5, 15 if mode == "exclusive" else 60)
                    job = Job(mode, seed, shapes_for(name), calls, rng.randint(1, 3), rng.randint(1, 6))
                    txns, anomalies = history(where, app, job, None if name == "memory" else workers)
                assert not anomalies, f"{mode} on {name}: {anomalies[:5]}"
                report(f"histories on {name}", 1)
                report("calls in histories", len(txns))
                for txn in txns:
                    if txn.error:
                        report(f"calls that ended in {txn.error}", 1)
    finally:
        workers.close()


def orders(deadline: float, report: Callable[[str, int], None]) -> None:
    """Random orders of the messages of many calls."""
    for seed in seeds(deadline):
        rng = random.Random(seed)
        for _ in range(100):
            random_order(rng)
        report("random orders of messages", 100)
