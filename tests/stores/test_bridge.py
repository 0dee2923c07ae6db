"""The core knows no event loop: each kind of store behaves alike to each kind of caller."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import subprocess
import sys
import threading
import time

import anyio
import anyio.to_thread
import pytest

from agent_gantry_state import (
    Gantry,
    MemoryConflictError,
    Namespace,
    StoreClosedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    bridge,
)
from agent_gantry_state import hop as hops
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.hop import hop
from agent_gantry_state.steps import Pause
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Change, Commit, Forget, Lease, List, Load, Put, Release, WouldBlock

PORTAL = "agent-gantry-state-store"
NAMESPACE = Namespace("session", "local", "default")


class BlockingStore(MemoryStore):
    """Answers at once, but says that it may block."""

    inline = False


class LocalStore(MemoryStore):
    """Would block at every second attempt."""

    inline = False

    def __init__(self):
        super().__init__()
        self.attempts = 0

    def attempt(self, message, /):
        self.attempts += 1
        if self.attempts % 2:
            raise WouldBlock
        return getattr(self, type(message).__name__.lower())(message)


class AsyncStore:
    """A store made of coroutines, each of which awaits something first."""

    clock = None

    def __init__(self):
        self.inner = MemoryStore()
        self.loops = set()

    async def _wait(self, verb):
        self.loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0.001)

    async def load(self, message, /):
        await self._wait("load")
        return self.inner.load(message)

    async def commit(self, message, /):
        await self._wait("commit")
        return self.inner.commit(message)

    async def forget(self, message, /):
        await self._wait("forget")
        return self.inner.forget(message)

    async def list(self, message, /):
        await self._wait("list")
        return self.inner.list(message)

    async def lease(self, message, /):
        await self._wait("lease")
        return self.inner.lease(message)

    async def release(self, message, /):
        await self._wait("release")
        return self.inner.release(message)

    async def close(self):
        await self._wait("close")
        self.inner.close()


class NetworkStore(BlockingStore):
    """Blocks for some callers and is awaited by those on asyncio's event loops."""

    async def answer(self, message, /):
        await asyncio.sleep(0.001)
        return getattr(self, type(message).__name__.lower())(message)

    async def aclose(self):
        self.close()


STORES = {
    "memory": MemoryStore,
    "blocking": BlockingStore,
    "local": LocalStore,
    "network": NetworkStore,
    "async": AsyncStore,
}


@pytest.fixture
def opened():
    """Makes gantries whose bridges are closed after the test, also those of stores that the test owns."""
    bridges = []

    def make(store, **kwargs):
        gantry = Gantry(store, session="local", **kwargs)
        bridges.append((gantry, gantry._wiring.settings.bridge))
        return gantry

    yield make
    for gantry, its_bridge in bridges:
        gantry.close()
        its_bridge.close()


@pytest.fixture(params=STORES)
def gantry(request, opened):
    return opened(STORES[request.param]())


class Tools:
    """The same small tools, sync and async."""

    def __init__(self, gantry):
        def append(item, memory):
            memory.setdefault("log", []).append(item)

        def add(n, memory):
            return memory.add("n", n)

        def read(memory):
            return dict(memory)

        def failing(memory):
            memory.setdefault("log", []).append("failed")
            memory["x"] = "failed"
            raise RuntimeError("tool")

        def assign(value, memory, meanwhile=None):
            memory["x"] = value
            memory.setdefault("log", []).append(value)
            if meanwhile is not None:
                meanwhile()

        for fn in (append, add, read, failing, assign):
            setattr(self, fn.__name__, gantry.with_memory(fn))
            setattr(self, f"a{fn.__name__}", gantry.with_memory(as_async(fn)))


def as_async(fn):
    async def twin(*args, memory, **kwargs):
        await anyio.sleep(0)
        return fn(*args, memory=memory, **kwargs)

    return twin


def stranger(call):
    """Make a call in a thread that knows nothing of this one, and wait for it."""
    failures = []

    def run():
        try:
            call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures


async def _own_thread(call):
    return call()


async def _asyncio_worker(call):
    return await asyncio.to_thread(call)


WAYS = {
    "no loop": ("", lambda call: call()),
    "asyncio's own thread": ("", lambda call: anyio.run(_own_thread, call, backend="asyncio")),
    "trio's own thread": ("", lambda call: anyio.run(_own_thread, call, backend="trio")),
    "anyio worker under asyncio": ("", lambda call: anyio.run(anyio.to_thread.run_sync, call, backend="asyncio")),
    "anyio worker under trio": ("", lambda call: anyio.run(anyio.to_thread.run_sync, call, backend="trio")),
    "asyncio.to_thread": ("", lambda call: asyncio.run(_asyncio_worker(call))),
    "async under asyncio": ("a", lambda call: anyio.run(call, backend="asyncio")),
    "async under trio": ("a", lambda call: anyio.run(call, backend="trio")),
}


@pytest.fixture(params=WAYS)
def do(request, gantry):
    """Calls a tool of the gantry in one of the ways in which programs call one."""
    prefix, way = WAYS[request.param]
    tools = Tools(gantry)
    return lambda name, *args, **kwargs: way(lambda: getattr(tools, prefix + name)(*args, **kwargs))


# One suite, for each store and each caller.


def test_what_a_call_wrote_the_next_one_reads(do):
    assert do("read") == {}
    do("append", "a")
    do("append", "b")
    assert (do("add", 1), do("add", 2)) == (1, 3)

    assert do("read") == {"log": ["a", "b"], "n": 3}


def test_failing_tool_changes_nothing(do):
    do("append", "a")

    with pytest.raises(RuntimeError, match="tool"):
        do("failing")

    assert do("read") == {"log": ["a"]}


def test_both_callers_changes_are_merged(do):
    do("append", "base")

    do("assign", "ours", meanwhile=lambda: stranger(lambda: do("append", "theirs")))

    assert do("read") == {"log": ["base", "theirs", "ours"], "x": "ours"}


def test_conflict_of_two_callers_writes_nothing(do):
    do("assign", "base")

    with pytest.raises(MemoryConflictError) as caught:
        do("assign", "ours", meanwhile=lambda: stranger(lambda: do("assign", "theirs")))

    assert caught.value.keys == ("x",)
    assert caught.value.committed is False
    assert do("read") == {"x": "theirs", "log": ["base", "theirs"]}


def test_memory_block_is_for_every_caller(gantry):
    async def write(name):
        async with gantry.memory() as memory:
            memory[name] = True

    anyio.run(write, "asyncio", backend="asyncio")
    anyio.run(write, "trio", backend="trio")
    with gantry.memory() as memory:
        assert memory == {"asyncio": True, "trio": True}


# Many callers at once.


def test_threads_lose_nothing(gantry):
    tools = Tools(gantry)
    threads = [threading.Thread(target=lambda i=i: (tools.append(i), tools.add(1))) for i in range(32)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(tools.read()["log"]) == list(range(32))
    assert tools.read()["n"] == 32


@pytest.mark.anyio
async def test_tasks_lose_nothing(gantry):
    tools = Tools(gantry)

    async def both(i):
        await tools.aappend(i)
        await tools.aadd(1)

    async with anyio.create_task_group() as group:
        for i in range(32):
            group.start_soon(both, i)

    memory = await tools.aread()
    assert sorted(memory["log"]) == list(range(32))
    assert memory["n"] == 32


def test_three_event_loops_share_one_gantry(gantry):
    tools = Tools(gantry)
    ready = threading.Barrier(3)

    async def work():
        await anyio.to_thread.run_sync(ready.wait)
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(tools.aadd, 1)

    def loop(backend):
        anyio.run(work, backend=backend)

    threads = [threading.Thread(target=loop, args=(backend,)) for backend in ("asyncio", "asyncio", "trio")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert tools.read() == {"n": 15}


def test_async_store_runs_on_one_loop_whoever_calls(opened):
    store = AsyncStore()
    tools = Tools(opened(store))

    tools.add(1)
    asyncio.run(tools.aadd(1))
    anyio.run(tools.aadd, 1, backend="trio")

    assert tools.read() == {"n": 3}
    assert len(store.loops) == 1


@pytest.mark.anyio
async def test_waiting_for_an_async_or_blocking_store_leaves_the_loop_free(opened):
    for store in (Gated("blocking", "load"), Gated("async", "load")):
        tools = Tools(opened(store.store))
        async with anyio.create_task_group() as group:
            group.start_soon(tools.aadd, 1)
            # This line would never be reached if the call held the loop.
            await anyio.to_thread.run_sync(store.reached.wait, 10)
            store.gate.set()
        assert tools.read() == {"n": 1}


def test_memory_store_makes_no_thread_and_never_gives_the_loop_away():
    with Gantry(session="local") as gantry:

        @gantry.with_memory
        async def add(memory):
            return memory.add("n", 1)

        before = {*threading.enumerate()}
        with pytest.raises(StopIteration) as stop:
            add().send(None)

        assert stop.value.value == 1
        assert {*threading.enumerate()} <= before


# Cancellation.


class Gated:
    """A store that says when it has come to a message, and answers it when it is let."""

    def __init__(self, kind, verb):
        self.reached, self.gate = threading.Event(), threading.Event()
        gated = self

        if kind == "blocking":

            class Store(BlockingStore):
                def load(self, message, /):
                    gated.hold("load", verb)
                    return super().load(message)

                def commit(self, message, /):
                    gated.hold("commit", verb)
                    return super().commit(message)

        else:

            class Store(AsyncStore):
                async def _wait(self, which):
                    await asyncio.to_thread(gated.hold, which, verb)

        self.store = Store()

    def hold(self, which, verb):
        if which == verb and not self.reached.is_set():
            self.reached.set()
            assert self.gate.wait(10)


async def cancel_task(call, gated, uncut):
    task = asyncio.create_task(call())
    await asyncio.to_thread(gated.reached.wait, 10)
    task.cancel()
    await let_go_on(gated, uncut, task.done)
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancel_task_often(call, gated, uncut):
    task = asyncio.create_task(call())
    await asyncio.to_thread(gated.reached.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    await let_go_on(gated, uncut, task.done)
    with pytest.raises(asyncio.CancelledError):
        await task


async def wait_for(call, gated, uncut):
    waiting = asyncio.create_task(asyncio.wait_for(call(), 0.05))
    await asyncio.to_thread(gated.reached.wait, 10)
    if uncut:
        await asyncio.wait([waiting], timeout=0.15)
    await let_go_on(gated, uncut, waiting.done)
    with pytest.raises(asyncio.TimeoutError):
        await waiting


async def cancel_scope(call, gated, uncut):
    scope, ended = anyio.CancelScope(), anyio.Event()

    async def run():
        with scope:
            # A scope stays cancelled: a call that is past the point of no return may end well, the next one must not.
            while True:
                await call()
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.to_thread.run_sync(gated.reached.wait, 10)
        scope.cancel()
        await let_go_on(gated, uncut, ended.is_set)
    assert scope.cancelled_caught


async def let_go_on(gated, uncut, ended):
    """Let the store answer: after the caller was seen waiting for a commit, or after a load was given up."""
    with anyio.move_on_after(10):
        for _ in range(20):
            await anyio.sleep(0)
        while not uncut and not ended():
            await anyio.sleep(0.001)
    assert ended() is not uncut
    gated.gate.set()


CANCELS = {
    "task": ("asyncio", cancel_task),
    "task, often": ("asyncio", cancel_task_often),
    "wait_for": ("asyncio", wait_for),
    "scope on asyncio": ("asyncio", cancel_scope),
    "scope on trio": ("trio", cancel_scope),
}


@pytest.mark.parametrize("how", CANCELS)
@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_call_cancelled_while_it_loads_changes_nothing(opened, kind, how):
    gated = Gated(kind, "load")
    tools = Tools(opened(gated.store))
    backend, cancel = CANCELS[how]

    anyio.run(cancel, lambda: tools.aadd(1), gated, False, backend=backend)

    assert tools.read() == {}


@pytest.mark.parametrize("how", CANCELS)
@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_call_cancelled_while_it_commits_commits_and_is_cancelled(opened, kind, how):
    gated = Gated(kind, "commit")
    tools = Tools(opened(gated.store))
    backend, cancel = CANCELS[how]

    anyio.run(cancel, lambda: tools.aadd(1), gated, True, backend=backend)

    assert tools.read() == {"n": 1}


@pytest.mark.anyio
async def test_call_cancelled_in_its_body_changes_nothing(gantry):
    started = anyio.Event()

    @gantry.with_memory
    async def endless(memory):
        memory["x"] = 1
        started.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(endless)
        await started.wait()
        group.cancel_scope.cancel()

    async with gantry.memory() as memory:
        assert memory == {}


def test_caller_that_waits_for_a_commit_while_cancelled_leaves_the_loop_idle(opened):
    gated = Gated("async", "commit")
    tools = Tools(opened(gated.store))

    async def main():
        await anyio.to_thread.run_sync(tools.read)
        loop = asyncio.get_running_loop()
        with anyio.CancelScope() as scope:
            loop.call_later(0.02, scope.cancel)
            loop.call_later(0.25, gated.gate.set)
            await tools.aadd(1)

    before = time.thread_time()
    asyncio.run(main())

    assert time.thread_time() - before < 0.1
    assert tools.read() == {"n": 1}


def test_error_of_a_commit_does_not_replace_a_cancellation(opened):
    gated = Gated("async", "commit")
    tools = Tools(opened(gated.store))
    gated.store.inner.commit = None  # answering will fail

    asyncio.run(cancel_task(lambda: tools.aadd(1), gated, True))

    assert tools.read() == {}


# Deadlines.


class SilentStore(AsyncStore):
    """Never answers, but can be told to stop waiting."""

    async def _wait(self, verb):
        if verb != "close":
            await asyncio.sleep(3600)


class StuckStore(AsyncStore):
    """Holds its loop and hears nothing until it is let go."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()

    async def _wait(self, verb):
        if verb != "close":
            self.gate.wait(10)


def questions(timeout):
    """One message of each kind, and whether an unanswered one may have written something."""
    commit = Commit(b"t" * 16, b"v" * 8, (Change(NAMESPACE, None, {"x": Put(1)}, (), {"x": None}),), timeout=timeout)
    return {
        "load": (Load((NAMESPACE,), timeout=timeout), False),
        "commit": (commit, None),
        "forget": (Forget((NAMESPACE,), timeout=timeout), None),
        "list": (List(timeout=timeout), False),
        "lease": (Lease(NAMESPACE, b"me", 30.0, timeout=timeout), False),
        "release": (Release(NAMESPACE, b"me", timeout=timeout), False),
    }


QUESTIONS = questions(0.05)


def asking(message):
    return (yield message)


ASKERS = {
    "sync": lambda its_bridge, message: its_bridge.run(asking(message)),
    "asyncio": lambda its_bridge, message: anyio.run(its_bridge.arun, asking(message), backend="asyncio"),
    "trio": lambda its_bridge, message: anyio.run(its_bridge.arun, asking(message), backend="trio"),
    "asyncio, uncut": lambda its_bridge, message: anyio.run(its_bridge.arun_uncut, asking(message), backend="asyncio"),
    "trio, uncut": lambda its_bridge, message: anyio.run(its_bridge.arun_uncut, asking(message), backend="trio"),
}


@pytest.mark.parametrize("asker", ASKERS)
@pytest.mark.parametrize("question", ["load", "commit"])
@pytest.mark.parametrize("kind", [SilentStore, StuckStore])
def test_store_that_never_answers_is_a_timeout_within_the_bound(monkeypatch, kind, question, asker):
    monkeypatch.setattr(bridge, "GRACE", 0.05)
    store = kind()
    its_bridge = bridge.bridge_to(store)
    message, committed = QUESTIONS[question]

    began = time.monotonic()
    with pytest.raises(StoreTimeoutError, match=question) as caught:
        ASKERS[asker](its_bridge, message)
    took = time.monotonic() - began

    getattr(store, "gate", threading.Event()).set()
    its_bridge.close()
    assert caught.value.committed is committed
    assert isinstance(caught.value, TimeoutError)
    assert took < 1.0


@pytest.mark.parametrize("question", QUESTIONS)
def test_timeout_says_whether_something_may_have_been_written(question):
    its_bridge = bridge.bridge_to(SilentStore())
    message, committed = QUESTIONS[question]

    with pytest.raises(StoreTimeoutError) as caught:
        its_bridge.run(asking(message))

    its_bridge.close()
    assert caught.value.committed is committed


@pytest.mark.parametrize("asker", ASKERS)
@pytest.mark.parametrize("kind", STORES)
def test_every_message_gets_its_answer(kind, asker):
    its_bridge = bridge.bridge_to(STORES[kind]())

    answers = [ASKERS[asker](its_bridge, message) for message, _ in questions(4.0).values()]

    its_bridge.close()
    assert [type(answer).__name__ for answer in answers] == [
        "Loaded",
        "Committed",
        "NoneType",
        "Page",
        "float",
        "NoneType",
    ]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("kind", STORES)
def test_load_gets_its_thread_while_tools_hold_all_of_anyios(kind, backend):
    its_bridge = bridge.bridge_to(STORES[kind]())
    gate = threading.Event()

    async def main():
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, gate.wait)
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(5) as scope:
                await its_bridge.arun(asking(Load((NAMESPACE,))))
            gate.set()
        assert not scope.cancelled_caught

    anyio.run(main, backend=backend)
    its_bridge.close()


# A store's errors.


def broken(kind, verb, error):
    if kind == "async":

        class Store(AsyncStore):
            # A commit that ends in such an error is tried again for as long as this.
            commit_timeout = 0.2

            async def _wait(self, which):
                if which == verb:
                    raise error

        return Store()

    class Store(MemoryStore):
        commit_timeout = 0.2
        inline = kind == "memory"

        def load(self, message, /):
            if verb == "load":
                raise error
            return super().load(message)

        def commit(self, message, /):
            if verb == "commit":
                raise error
            return super().commit(message)

    return Store()


ERRORS = [
    StoreUnavailableError("down", committed=None),
    StoreTimeoutError("late", committed=False),
    TimeoutError("its own"),
    OSError("wire"),
    KeyError("bug"),
]


@pytest.mark.parametrize("way", ["no loop", "async under asyncio", "async under trio"])
@pytest.mark.parametrize("verb", ["load", "commit"])
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("error", ERRORS[:2] + ERRORS[3:], ids=lambda error: type(error).__name__)
def test_error_of_a_store_reaches_the_caller_unchanged(opened, kind, verb, way, error):
    gantry = opened(broken(kind, verb, error))
    prefix, call = WAYS[way]
    tool = getattr(Tools(gantry), f"{prefix}add")

    with pytest.raises(type(error)) as caught:
        call(lambda: tool(1))

    assert caught.value is error


@pytest.mark.parametrize("kind", STORES)
def test_body_does_not_run_when_its_memory_cannot_be_loaded(opened, kind):
    gantry = opened(broken(kind, "load", StoreUnavailableError("down")))
    ran = []

    @gantry.with_memory
    def tool(memory):
        ran.append(1)

    with pytest.raises(StoreError):
        tool()

    assert ran == []


# Closing.


def portals():
    return [thread for thread in threading.enumerate() if thread.name == PORTAL]


def test_close_stops_the_thread_of_an_async_store():
    before = len(portals())
    its_bridge = bridge.bridge_to(AsyncStore())
    its_bridge.run(asking(Load((NAMESPACE,))))
    assert len(portals()) == before + 1

    its_bridge.close()

    assert len(portals()) == before
    with pytest.raises(StoreClosedError):
        its_bridge.run(asking(Load((NAMESPACE,))))


@pytest.mark.anyio
async def test_aclose_stops_the_thread_of_an_async_store():
    before = len(portals())
    its_bridge = bridge.bridge_to(AsyncStore())
    await its_bridge.arun(asking(Load((NAMESPACE,))))

    await its_bridge.aclose()

    assert len(portals()) == before


def test_closing_a_gantry_stops_the_thread_and_leaves_a_store_that_it_was_handed_open(opened):
    before = len(portals())
    store = AsyncStore()
    first = opened(store)
    Tools(first).add(1)

    first.close()

    assert len(portals()) == before
    assert Tools(opened(store)).read() == {"n": 1}


@pytest.mark.anyio
async def test_aclosing_a_gantry_stops_the_thread_and_leaves_a_store_that_it_was_handed_open(opened):
    before = len(portals())
    store = AsyncStore()
    first = opened(store)
    await Tools(first).aadd(1)

    await first.aclose()

    assert len(portals()) == before
    assert await Tools(opened(store)).aread() == {"n": 1}


def test_override_with_an_async_store_leaves_no_thread_behind(opened):
    before = len(portals())
    gantry = opened(MemoryStore())
    tools = Tools(gantry)

    override = gantry.override(store=AsyncStore())
    with override:
        tools.add(1)

    assert len(portals()) == before
    assert tools.read() == {}


PROGRAM = """
import asyncio
from agent_gantry_state import Gantry
from agent_gantry_state.stores.memory import MemoryStore

class Store:
    clock = None
    inner = MemoryStore()

{methods}
gantry = Gantry(Store(), session="local")

@gantry.with_memory
def add(memory):
    return memory.add("n", 1)

print(add())
{end}
"""


@pytest.mark.parametrize("end", ["", "gantry.close()", "asyncio.run(gantry.aclose())"])
def test_program_with_an_async_store_ends(end):
    methods = "".join(
        f"    async def {verb}(self, *message):\n        return self.inner.{verb}(*message)\n"
        for verb in ("load", "commit", "forget", "list", "lease", "release", "close")
    )
    code = PROGRAM.format(methods=methods, end=end)

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A third party's package with a scheme for this file's async store; gives the stores that it opened."""
    info = tmp_path / "slow_store-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-store\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[agent_gantry_state.stores]\nslow = slow_store_of_a_test:open\n")
    (tmp_path / "slow_store_of_a_test.py").write_text(
        "stores = []\nmake = None\ndef open(url):\n    stores.append(make())\n    return stores[-1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_store_of_a_test as module

    class Store(AsyncStore):
        closed = 0

        async def close(self):
            await super().close()
            self.closed += 1

    module.make = Store
    yield module.stores
    del sys.modules["slow_store_of_a_test"]


def test_store_that_a_url_made_is_closed_once_with_its_gantry(registered):
    before = len(portals())
    gantry = Gantry("slow://", session="local")
    tools = Tools(gantry)
    assert tools.add(1) == 1

    gantry.close()
    gantry.close()

    assert registered[0].closed == 1
    assert len(portals()) == before
    with pytest.raises(StoreClosedError):
        tools.read()


def test_async_store_that_was_never_used_is_closed(registered):
    Gantry("slow://", session="local").close()

    assert registered[0].closed == 1


@pytest.mark.anyio
async def test_async_store_is_closed_by_a_sync_block_on_a_loops_own_thread(registered):
    with Gantry("slow://", session="local"):
        pass
    with Gantry("slow://", session="local") as gantry:
        Tools(gantry).add(1)

    assert [store.closed for store in registered] == [1, 1]


@pytest.mark.anyio
async def test_async_store_is_closed_by_an_async_block(registered):
    async with Gantry("slow://", session="local"):
        pass
    async with Gantry("slow://", session="local") as gantry:
        await Tools(gantry).aadd(1)

    assert [store.closed for store in registered] == [1, 1]


def test_store_of_an_override_by_url_is_closed_after_it(registered, opened):
    before = len(portals())
    gantry = opened(MemoryStore())

    with gantry.override(store="slow://"):
        Tools(gantry).add(1)

    assert registered[0].closed == 1
    assert len(portals()) == before


# What is no store.


@pytest.mark.parametrize("store", [object(), 5, None, {}])
def test_object_that_is_no_store_is_refused(store):
    with pytest.raises(TypeError, match=r"no store.*load, commit, forget, list, lease, release, close"):
        Gantry(store)


def test_incomplete_store_is_refused_with_what_it_lacks():
    class Incomplete(AsyncStore):
        forget = None
        lease = "no method"

    with pytest.raises(TypeError, match="Incomplete is no store: it has no method forget, lease "):
        Gantry(Incomplete())


def test_store_that_mixes_plain_and_async_methods_is_refused():
    class Mixed(AsyncStore):
        def commit(self, message, /):
            return self.inner.commit(message)

    assert inspect.iscoroutinefunction(Mixed().load)
    with pytest.raises(TypeError, match=r"Mixed is no store: .*all async or none.*commit"):
        Gantry(Mixed())


@pytest.mark.parametrize("asks", ["sync", "async"])
def test_request_that_is_in_flight_when_an_async_store_is_closed_is_told_so_at_once(asks):
    entered = threading.Event()

    class Slow(AsyncStore):
        async def commit(self, message, /):
            entered.set()
            await asyncio.sleep(60)

    its_bridge = bridge.bridge_to(Slow())
    message = Commit(b"t" * 16, b"v" * 8, (), 6.0)

    async def aask():
        await its_bridge.aperform(message)

    told = []

    def ask():
        try:
            its_bridge.perform(message) if asks == "sync" else asyncio.run(aask())
        except StoreClosedError as error:
            told.append(error.committed)

    thread = threading.Thread(target=ask)
    thread.start()
    assert entered.wait(5)
    its_bridge.close()
    thread.join(2)

    assert not thread.is_alive()
    assert told == [None]


def test_callers_that_are_closed_where_they_wait_for_a_thread_leave_room_for_others():
    inside, end = threading.Semaphore(0), threading.Event()

    def answer(message):
        inside.release()
        end.wait()

    async def main():
        calls = [asyncio.ensure_future(hop(answer, Load(()))) for _ in range(hops._WAITERS)]
        for _ in calls:
            while not inside.acquire(blocking=False):
                await asyncio.sleep(0.001)
        for call in calls:
            # A cancel scope of anyio says that it is left in another task.
            with contextlib.suppress(RuntimeError):
                call.get_coro().close()
        end.set()
        await asyncio.wait(calls)
        assert all(isinstance(call.exception(), RuntimeError) for call in calls)
        with anyio.fail_after(5):
            return await hop(lambda message: "answered", Load(()))

    assert asyncio.run(main()) == "answered"


@pytest.mark.anyio
async def test_steps_on_a_store_that_never_waits_are_not_cut_in_a_pause():
    bridge, ended = bridge_to(MemoryStore()), []

    def steps():
        yield Pause(0.01)
        ended.append(True)

    with anyio.CancelScope() as scope:
        # As soon as it waits.
        scope.cancel()
        await bridge.arun_uncut(steps())

    assert ended == [True]
