"""A connection on which anything was interrupted is closed: nobody reads on it what was meant for somebody else."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import uuid

import pytest
from faults.faulty import SERVERS, open_gantry
from faults.proxy import Fault, Proxy

from agent_gantry_state import StoreError

TIMEOUT = 0.5
#: One connection for each kind of caller, which the next one would get as well.
ONE = f"?max_connections=1&load_timeout={TIMEOUT}&commit_timeout={TIMEOUT}"
#: Replies that do not come, of which only a part comes, and that come when nobody waits for them any more.
REPLIES = {
    "none": Fault("hole", "reply", 0),
    "half": Fault("hole", "reply", 3),
    "late": Fault("delay", "reply", seconds=0.2),
}


@pytest.fixture(params=SERVERS)
def proxy(request):
    with Proxy(SERVERS[request.param]()) as proxy:
        yield proxy


@pytest.fixture
def gantry(proxy):
    with open_gantry(proxy.url, ONE) as gantry:
        yield gantry


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


class Plain:
    """Calls of a thread."""

    def __init__(self, proxy, gantry):
        self.proxy, self.gantry = proxy, gantry

    def tool(self, body):
        return self.gantry.with_memory(scope="user")(body)

    def call(self, tool, who):
        with self.gantry.session(user=who):
            return tool(who)

    def cut(self, tool, who):
        """A call that a signal ends, as Ctrl-C does."""

        class Interruption(BaseException):
            pass

        def interrupt(number, frame):
            raise Interruption

        def send():
            if self.proxy.fired.wait(10):
                signal.pthread_kill(main, signal.SIGUSR1)

        main, sender = threading.main_thread().ident, threading.Thread(target=send)
        before = signal.signal(signal.SIGUSR1, interrupt)
        sender.start()
        try:
            with pytest.raises(Interruption):
                self.call(tool, who)
        finally:
            sender.join()
            signal.signal(signal.SIGUSR1, before)


class OnLoop(Plain):
    """Calls of tasks."""

    def __init__(self, proxy, gantry, loop):
        super().__init__(proxy, gantry)
        self.loop = loop

    def tool(self, body):
        async def abody(who, memory):
            return body(who, memory)

        return super().tool(abody)

    def call(self, tool, who):
        async def main():
            with self.gantry.session(user=who):
                return await tool(who)

        return self.loop.run_until_complete(main())

    def cut(self, tool, who):
        """A call that is cancelled."""

        async def main():
            with self.gantry.session(user=who):
                task = asyncio.ensure_future(tool(who))
            assert await asyncio.to_thread(self.proxy.fired.wait, 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        self.loop.run_until_complete(main())


@pytest.fixture(params=["sync", "async"])
def caller(request, proxy, gantry, loop):
    return Plain(proxy, gantry) if request.param == "sync" else OnLoop(proxy, gantry, loop)


def stamp(who, memory):
    assert memory.setdefault("who", who) == who
    return dict(memory)


def interrupt(caller, message, fault, how):
    """Interrupt a call of ann's; bob's, and hers, must find their own, and the connection must be closed."""
    proxy, tag = caller.proxy, uuid.uuid4().hex
    ann, bob = f"ann {tag}", f"bob {tag}"

    def body(who, memory):
        if message == "commit":
            proxy.arm(fault)
            memory["change"] = True
        return stamp(who, memory)

    tool, read = caller.tool(body), caller.tool(stamp)
    for who in (ann, bob):
        caller.call(read, who)
    (used,) = proxy.pairs
    if message == "load":
        proxy.arm(fault)

    how(tool, ann)

    assert used in proxy.struck
    # At once, and not when the next one wants it.
    proxy.wait_until(lambda: used not in proxy.pairs)
    proxy.lift()
    for who in (bob, ann, bob):
        assert caller.call(read, who)["who"] == who


@pytest.mark.parametrize(("message", "reply"), [("load", "half"), ("commit", "none")])
def test_connection_of_a_call_that_timed_out_is_closed(caller, message, reply):
    def times_out(tool, who):
        with pytest.raises(StoreError):
            caller.call(tool, who)

    interrupt(caller, message, REPLIES[reply], times_out)


@pytest.mark.parametrize(("message", "reply"), [("load", "late"), ("load", "half"), ("commit", "half")])
def test_connection_of_a_call_that_was_cut_off_is_closed(caller, message, reply):
    interrupt(caller, message, REPLIES[reply], caller.cut)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncio's word for a loop that was closed before that.
@pytest.mark.parametrize("message", ["load", "commit"])
def test_call_that_is_collected_after_its_loop_and_its_store_were_closed_waits_for_nothing(proxy, message):
    """What cannot be raised as a coroutine is collected would make this fail: pytest makes a warning of it."""
    gantry, loop = open_gantry(proxy.url, "?max_connections=1"), asyncio.new_event_loop()

    @gantry.with_memory(scope="user")
    async def tool(memory):
        if memory and message == "commit":
            proxy.arm(REPLIES["none"])
        memory["turns"] = memory.get("turns", 0) + 1

    async def begin():
        with gantry.session(user=uuid.uuid4().hex):
            await tool()
            if message == "load":
                proxy.arm(REPLIES["none"])
            calls.append(asyncio.ensure_future(tool()))
        assert await asyncio.to_thread(proxy.fired.wait, 10)

    calls = []
    loop.set_exception_handler(lambda loop, context: None)  # It says that a task was destroyed.
    loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    gantry.close()

    async def collect():
        gc.collect()

    calls.clear()
    del loop
    asyncio.run(collect())
    gc.collect()
