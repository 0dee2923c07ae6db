from __future__ import annotations

import asyncio
import threading
import time

import pytest
from faults.faulty import SERVERS, open_gantry
from faults.proxy import Fault, Proxy

from agent_gantry_state import StateError, StoreUnavailableError
from agent_gantry_state.stores import pool

pytestmark = pytest.mark.once

SILENT = Fault("hole", "request", 0, times=None)
#: Seconds after an outage in which nobody may yet have tried again.
RESUMED = pool.LONGEST_PAUSE + 0.5


@pytest.fixture(params=SERVERS)
def proxy(request):
    with Proxy(SERVERS[request.param]()) as proxy:
        yield proxy


@pytest.fixture
def gantry(proxy):
    with open_gantry(proxy.url) as gantry:
        yield gantry


@pytest.fixture(params=["sync", "async"])
def call(request, gantry):
    """Calls a tool, and gives its error and how long it took."""

    def add(memory):
        memory.add("n", 1)

    async def aadd(memory):
        memory.add("n", 1)

    loop = asyncio.new_event_loop()
    tool = gantry.with_memory(add if request.param == "sync" else aadd)

    def call():
        began, error = time.monotonic(), None
        with gantry.session("outage", user="u"):
            try:
                if request.param == "sync":
                    tool()
                else:
                    loop.run_until_complete(tool())
            except StateError as raised:
                error = raised
        return error, time.monotonic() - began

    yield call
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def silence(proxy, call):
    proxy.arm(SILENT)
    for _ in range(pool.SILENT_REQUESTS):
        error, _ = call()
        assert error.transient


def test_calls_fail_at_once_when_a_server_stays_silent_and_work_again_soon_after(proxy, call):
    assert call()[0] is None
    silence(proxy, call)
    accepted = proxy.accepted

    waits = []
    for _ in range(100):
        error, took = call()
        assert error.transient
        assert error.committed is False
        waits.append(took)

    # One tries now and then; the others are told at once.
    tried = sum(took > 0.1 for took in waits)
    assert tried < 30
    assert proxy.accepted - accepted <= 2 * tried
    proxy.lift()
    deadline = time.monotonic() + RESUMED
    while (error := call()[0]) is not None:
        assert isinstance(error, StoreUnavailableError)
        assert time.monotonic() < deadline, "the server is back, and nobody tries"
        threading.Event().wait(0.01)


def test_server_that_refuses_is_asked_each_time_and_found_when_it_is_back(proxy, call):
    assert call()[0] is None
    proxy.arm(Fault("refuse"))
    for _ in range(2 * pool.SILENT_REQUESTS):
        assert call()[0].transient
    proxy.lift()

    assert call()[0] is None


def test_cancelled_calls_are_not_held_against_a_server(proxy, gantry):
    @gantry.with_memory
    async def tool(memory):
        return dict(memory)

    async def main():
        with gantry.session("s", user="u"):
            await tool()
            proxy.arm(SILENT)
            for _ in range(2 * pool.SILENT_REQUESTS):
                task = asyncio.ensure_future(tool())
                await asyncio.sleep(0.05)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            proxy.lift()
            assert await tool() == {}

    asyncio.run(main())


def test_caller_who_tries_again_and_again_does_not_keep_the_loop_from_asking(proxy, gantry):
    @gantry.with_memory
    async def tool(memory):
        return dict(memory)

    async def insistent():
        while True:
            try:
                return await tool()
            except StateError:
                continue

    async def main():
        with gantry.session("s", user="u"):
            await tool()
            proxy.arm(SILENT)
            for _ in range(2 * pool.SILENT_REQUESTS):
                with pytest.raises(StateError):
                    await tool()
            proxy.lift()
            return await asyncio.wait_for(asyncio.gather(insistent(), insistent()), 10)

    assert asyncio.run(main()) == [{}, {}]
