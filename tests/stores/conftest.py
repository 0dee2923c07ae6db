"""Every store there is, by name, for the tests that hold for all of them.

A test that takes `place` runs on each; `pytest.mark.parametrize("place", [...], indirect=True)` chooses. Servers are shared,
so each test has an app of its own there.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import servers

from agent_gantry_state import Gantry
from agent_gantry_state.stores.memory import MemoryStore

_SERVERS: dict[str, Callable[[], servers.Server | servers.Cluster]] = {
    "redis-6.2": servers.redis_6,
    "redis-8.2": servers.redis_8,
    "valkey": servers.valkey,
    "redis-cluster": servers.redis_cluster,
    "postgresql": servers.postgresql,
    "pgbouncer": servers.pgbouncer,
    "memcached": servers.memcached,
}
_NAMES = ("memory", "file", "sqlite", *_SERVERS)


@dataclass(frozen=True)
class Place:
    """A store on which nothing of this app is yet.

    Attributes:
        name: As in the tests' ids.
        where: Its URL; of memory the store itself, so that more than one gantry can be on it.
        app: What keeps this test apart from others.
    """

    name: str
    where: Any
    app: str = field(default_factory=lambda: uuid.uuid4().hex)

    def gantry(self, **options: Any) -> Gantry:
        """A gantry on this store, of which the test takes care."""
        return Gantry(self.where, app=self.app, **{"session": "s1", "user": "ada", **options})


@pytest.fixture(params=_NAMES)
def place(request, tmp_path):
    if request.param == "memory":
        where = MemoryStore()
    elif request.param == "file":
        where = f"file:///{tmp_path}/state"
    elif request.param == "sqlite":
        where = f"sqlite:///{tmp_path}/state.db"
    else:
        where = _SERVERS[request.param]().url
    return Place(request.param, where)
