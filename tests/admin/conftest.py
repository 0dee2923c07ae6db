"""Stores that an operator looks after: what is in them is written by a gantry, as tools do it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import anyio
import pytest
import servers

from agent_gantry_state import Gantry
from agent_gantry_state.stores.memory import MemoryStore

KINDS = ["memory", "file", "sqlite", "redis", "postgresql"]


@pytest.fixture
def new_place(tmp_path):
    """Makes places of a kind to keep memories in, of which nobody else has the app: an URL, or a store."""
    made = iter(range(100))

    def make(kind):
        if kind == "memory":
            return MemoryStore()
        if kind == "redis":
            return f"{servers.redis_8().url}?prefix=test-{uuid.uuid4().hex}:"
        if kind == "postgresql":
            # To make a schema takes longer than most tests.
            url = f"{servers.postgresql().url}?schema=admin_{next(made)}"
            with Gantry(url) as earlier:
                for each in earlier.admin.all_apps.list():
                    earlier.admin.all_apps.forget(each.namespace)
            return url
        return f"file:///{tmp_path}/dir{next(made)}" if kind == "file" else f"sqlite:///{tmp_path}/state{next(made)}.db"

    return make


@pytest.fixture(params=KINDS)
def place(request, new_place):
    return new_place(request.param)


@pytest.fixture
def new_gantry():
    with ExitStack() as stack:
        yield lambda where, **options: stack.enter_context(Gantry(where, **options))


@pytest.fixture
def gantry(place, new_gantry):
    return new_gantry(place)


class Caller:
    """Calls a method of `admin` as a caller of one kind does, by its name without the ``a``."""

    def __init__(self, admin, backend):
        self._admin = admin
        self._backend = backend

    def __call__(self, name, *args, **options):
        if self._backend is None:
            answer = getattr(self._admin, name)(*args, **options)
            return list(answer) if isinstance(answer, Iterator) else answer

        async def call():
            answer = getattr(self._admin, f"a{name.rstrip('_')}")(*args, **options)
            return [each async for each in answer] if hasattr(answer, "__aiter__") else await answer

        return anyio.run(call, backend=self._backend)


#: Each kind of caller on each kind of store would be too many: each meets what is different for it.
_CALLS = [
    ("memory", None),
    ("memory", "trio"),
    ("file", "asyncio"),
    ("sqlite", None),
    ("sqlite", "trio"),
    ("redis", "asyncio"),
    ("postgresql", None),
    ("postgresql", "asyncio"),
]


@pytest.fixture(params=_CALLS, ids=[f"{kind}-{backend or 'sync'}" for kind, backend in _CALLS])
def call(request, new_place, new_gantry):
    """A gantry, and how its `admin` is called."""
    kind, backend = request.param
    gantry = new_gantry(new_place(kind))
    return gantry, Caller(gantry.admin, backend)
