from __future__ import annotations

import gc
import os

import anyio
import pytest
from hypothesis import HealthCheck, settings
from servers import shared_servers  # noqa: F401 - stops them when the session ends

from agent_gantry_state import Gantry
from agent_gantry_state.stores.memory import MemoryStore

# They need environments of their own, which tests/frameworks/run.py makes.
collect_ignore = ["frameworks"]

# Hypothesis makes tables of Unicode when it is first asked for text, which on a busy machine takes it longer than it allows.
settings.register_profile("untimed", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    # They wait for servers, disks and other processes about half of the time.
    return 2 * (os.cpu_count() or 1)


def pytest_collection_finish(session):
    # Thousands of collected tests live to the end; each gc.collect() in a test would look through all of them.
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture(params=["short", "general", "sqlite"])
def new_gantry(request, tmp_path):
    """Makes gantries on one place to store things, each by a path of its own."""
    store, made = MemoryStore(), []

    def make(**options):
        if request.param == "general":
            # A resolver of its own keeps a gantry off the short path.
            options["resolvers"] = [lambda _: None]
        where = f"sqlite:///{tmp_path}/state.db" if request.param == "sqlite" else store
        made.append(Gantry(where, **options))
        return made[-1]

    yield make
    for gantry in made:
        gantry.close()


@pytest.fixture(params=["sync", "asyncio", "trio"])
def call(request):
    """Runs a body as a tool, sync or on an event loop."""

    def call(gantry, body, **options):
        if request.param == "sync":
            return gantry.with_memory(**options)(body)()

        async def tool(memory):
            return body(memory)

        return anyio.run(gantry.with_memory(**options)(tool), backend=request.param)

    return call
