"""Ends a call at each of its suspensions in turn, and looks at what it left behind.

`every_step` runs a call again and again, with an identity of its own each time, and ends it at its 1st, 2nd, 3rd ...
suspension, until a run is over before its time. Suspensions of the tasks that the call makes count as well: the commit is
one. "Early" is as soon as it is suspended; "late" is when what it waits for is there, and it has not yet gone on.

On asyncio the coroutines of the call are stepped through by `_Stepped`, on trio an instrument does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import servers
import trio
from support import Blocking, Coroutines

from agent_gantry_state import Gantry
from agent_gantry_state.bridge import Local
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import WouldBlock

#: No call has that many suspensions.
MOST = 400
#: What a call may take that comes after one that was cancelled; nothing is in its way.
SOON = 5.0


@dataclass
class Run:
    """One call, ended at one of its suspensions.

    Attributes:
        session: Its session, which no other run has.
        token: What it writes.
        returned: Whether the body of the outermost tool has come to its end.
        fired: Whether it was ended.
        error: What it ended with.
    """

    session: str = field(default_factory=lambda: f"s{uuid.uuid4().hex}")
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    returned: bool = False
    fired: bool = False
    error: BaseException | None = None


@dataclass(frozen=True)
class Scenario:
    """A kind of call.

    Attributes:
        make: Makes the call on a gantry; what it gives is awaited with a run.
        full: What is stored of a run that landed, by scope.
        before: What is stored of one that did not.
        several: Whether it changes several memories in one step.
    """

    make: Callable[[Gantry, Gantry], Callable[[Run], Awaitable[None]]]
    full: Callable[[Run], dict[str, dict[str, Any]]]
    before: Callable[[Run], dict[str, dict[str, Any]]] = lambda run: {"session": {}, "user": {}}
    several: bool = False


def _one(gantry, stranger):
    @gantry.with_memory
    async def tool(run, memory):
        memory["a"] = run.token
        await anyio.lowlevel.checkpoint()
        memory.setdefault("list", []).append(run.token)
        memory.add("n", 1)
        run.returned = True

    return tool


def _several(gantry, stranger):
    @gantry.with_memory(scope="user", into="mine")
    @gantry.with_memory
    async def tool(run, memory, mine):
        memory["a"] = run.token
        await anyio.lowlevel.checkpoint()
        mine["a"] = run.token
        run.returned = True

    return tool


def _nested(gantry, stranger):
    @gantry.with_memory
    async def child(key, value, memory):
        await anyio.lowlevel.checkpoint()
        memory[key] = value

    @gantry.with_memory
    async def tool(run, memory):
        memory["a"] = run.token
        await child("b", run.token)
        async with anyio.create_task_group() as group:
            group.start_soon(child, "c", run.token)
            group.start_soon(child, "d", run.token)
        run.returned = True

    return tool


def _exclusive(gantry, stranger):
    @gantry.with_memory(exclusive=True)
    async def tool(run, memory):
        memory["a"] = run.token
        await anyio.lowlevel.checkpoint()
        run.returned = True

    return tool


def _waiting(gantry, stranger):
    """Waits for its turn behind another one, which ends by itself."""

    tool = _exclusive(gantry, stranger)

    async def call(run):
        there = anyio.Event()

        @gantry.with_memory(exclusive=True)
        async def holder(memory):
            there.set()
            for _ in range(3):
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            with uncounted():
                group.start_soon(holder)
            await there.wait()
            await tool(run)

    return call


def _session(gantry, stranger):
    @gantry.with_session
    async def tool(run, session):
        assert await session.get("a") is None
        await session.set("a", run.token)
        await session.add("n", 1)
        await anyio.lowlevel.checkpoint()
        await session.set("list", [run.token])
        run.returned = True

    return tool


def _retried(gantry, stranger):
    @gantry.with_memory(on_conflict="retry")
    async def tool(run, memory):
        await anyio.lowlevel.checkpoint()
        if "theirs" not in memory:
            write(stranger, run.session, {"theirs": True, "a": "theirs"})
        memory["a"] = run.token
        run.returned = "theirs" in memory

    return tool


def _merged(gantry, stranger):
    @gantry.with_memory
    async def tool(run, memory):
        write(stranger, run.session, {"list": ["theirs"]})
        memory.setdefault("list", []).append(run.token)
        await anyio.lowlevel.checkpoint()
        run.returned = True

    return tool


def _generated(gantry, stranger):
    @gantry.with_memory
    async def tool(run, memory):
        memory["a"] = run.token
        await anyio.lowlevel.checkpoint()
        yield 1
        memory["b"] = run.token
        run.returned = True

    async def call(run):
        steps = tool(run)
        async with contextlib.aclosing(steps):
            async for _ in steps:
                await anyio.lowlevel.checkpoint()

    return call


def _block(gantry, stranger):
    async def call(run):
        async with gantry.memory() as memory:
            memory["a"] = run.token
            await anyio.lowlevel.checkpoint()
            run.returned = True

    return call


def _full(**more):
    def full(run):
        there = {key: value(run) if callable(value) else value for key, value in more.items()}
        return {"session": {"a": run.token, **there}, "user": {}}

    return full


def _token(run):
    return run.token


SCENARIOS = {
    "one": Scenario(_one, _full(list=lambda run: [run.token], n=1)),
    "several": Scenario(_several, lambda run: {"session": {"a": run.token}, "user": {"a": run.token}}, several=True),
    "nested": Scenario(_nested, _full(b=_token, c=_token, d=_token)),
    "exclusive": Scenario(_exclusive, _full()),
    "waiting": Scenario(_waiting, _full()),
    "session": Scenario(_session, _full(n=1, list=lambda run: [run.token])),
    "retried": Scenario(_retried, _full(theirs=True)),
    "merged": Scenario(_merged, lambda run: {"session": {"list": ["theirs", run.token]}, "user": {}}),
    "generated": Scenario(_generated, _full(b=_token)),
    "block": Scenario(_block, _full()),
}
#: What a stranger writes in the body, and what is there without the call.
_STRANGERS = {"retried": {"theirs": True, "a": "theirs"}, "merged": {"list": ["theirs"]}}


def write(gantry: Gantry, session: str, put: dict[str, Any]) -> None:
    """Write as a stranger does, from a context that knows of no call."""

    def change():
        with gantry.memory(session=session, user=session) as memory:
            memory.update(put)

    contextvars.Context().run(change)


def content(gantry: Gantry, session: str) -> dict[str, dict[str, Any]]:
    """What is stored for a run: at one moment, for a commit that nobody waits for any more may just be landing."""

    @gantry.with_memory(scope="user", into="user")
    @gantry.with_memory(scope="session", into="session")
    def look(session, user):
        return {"session": dict(session), "user": dict(user)}

    def looked():
        with gantry.session(session, user=session):
            return look()

    return contextvars.Context().run(looked)


# Counting suspensions.

_COUNT: contextvars.ContextVar[_Count | None] = contextvars.ContextVar("count", default=None)


class _Count:
    """Counts suspensions up to the one at which *end* is called, with what the call waits for."""

    def __init__(self, at: int, end: Callable[[Any], object]) -> None:
        self.at, self.end, self.count = at, end, 0

    def suspended(self, awaited: Any) -> None:
        self.count += 1
        if self.count == self.at:
            self.end(awaited)


@contextlib.contextmanager
def uncounted():
    token = _COUNT.set(None)
    try:
        yield
    finally:
        _COUNT.reset(token)


class _Stepped:
    """Awaits a coroutine, and counts where it is suspended."""

    def __init__(self, coroutine: Any, count: _Count) -> None:
        self._coroutine, self._count = coroutine, count

    def __await__(self):
        step, given = self._coroutine.send, None
        while True:
            try:
                awaited = step(given)
            except StopIteration as stop:
                return stop.value
            self._count.suspended(awaited)
            try:
                step, given = self._coroutine.send, (yield awaited)
            except GeneratorExit:
                self._coroutine.close()
                raise
            except BaseException as error:
                step, given = self._coroutine.throw, error


async def _stepped(coroutine: Any, count: _Count) -> Any:
    return await _Stepped(coroutine, count)


def _task(loop, coroutine, **options):
    count = _COUNT.get()
    if count is None:
        return asyncio.Task(coroutine, loop=loop, **options)
    task = asyncio.Task(_stepped(coroutine, count), loop=loop, **options)
    # One that is cancelled before it has begun.
    task.add_done_callback(lambda _: coroutine.close())
    return task


# Ways to end a call, on asyncio.


def _at(when: str, awaited: Any, end: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    if when == "late" and awaited is not None:
        # Before that of the task that waits, for it was asked first.
        awaited.add_done_callback(lambda _: end())
    else:
        loop.call_soon(end)


async def by_cancel(call: Callable[[], Awaitable[None]], at: int, when: str, run: Run, times: int = 1) -> bool:
    """Cancel its task; *times* says how often in a row."""
    delivered: list[bool] = []

    def end() -> None:
        for _ in range(times):
            delivered.append(task.cancel())
            run.fired = True

    count = _Count(at, lambda awaited: _at(when, awaited, end))
    task = _start(call, count)
    await asyncio.wait([task])
    if any(delivered):
        assert task.cancelled(), f"a cancellation at suspension {at} was swallowed"
    else:
        task.result()
    return count.count >= at


def _start(call: Callable[[], Awaitable[None]], count: _Count) -> asyncio.Task[None]:
    token = _COUNT.set(count)
    try:
        return asyncio.get_running_loop().create_task(call())
    finally:
        _COUNT.reset(token)


async def by_two_cancels(call: Callable[[], Awaitable[None]], at: int, when: str, run: Run) -> bool:
    """Cancel its task twice in a row."""
    return await by_cancel(call, at, when, run, times=2)


async def by_cancels_in_turn(call: Callable[[], Awaitable[None]], at: int, when: str, run: Run) -> bool:
    """Cancel its task, and again in each of the next rounds of the loop."""
    delivered: list[bool] = []

    def end(rounds: int = 4) -> None:
        delivered.append(task.cancel())
        run.fired = True
        if rounds:
            asyncio.get_running_loop().call_soon(end, rounds - 1)

    count = _Count(at, lambda awaited: _at(when, awaited, end))
    task = _start(call, count)
    await asyncio.wait([task])
    assert task.cancelled() or not any(delivered), f"a cancellation at suspension {at} was swallowed"
    return count.count >= at


async def by_scope(call: Callable[[], Awaitable[None]], at: int, when: str, run: Run) -> bool:
    """Cancel an anyio scope around it."""
    ended = []

    async def within() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await call()
            ended.append(True)
        run.fired = bool(scope.cancel_called)
        # Past its last suspension a call ends as if nothing had been.
        assert scope.cancelled_caught is not bool(ended)

    scopes: list[anyio.CancelScope] = []
    count = _Count(at, lambda awaited: _at(when, awaited, lambda: scopes[0].cancel()))
    task = _start(within, count)
    await asyncio.wait([task])
    task.result()
    run.error = None if ended else asyncio.CancelledError()
    return count.count >= at


async def by_timeout(call: Callable[[], Awaitable[None]], at: int, when: str, run: Run) -> bool:
    """Let the time of an `asyncio.timeout` around it be over."""
    outcome = []

    async def within() -> None:
        try:
            async with asyncio.timeout(None) as timeout:
                timeouts.append(timeout)
                await call()
        except TimeoutError:
            outcome.append(asyncio.CancelledError())
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)

    def end() -> None:
        if not timeouts[0].expired() and not task.done():
            with contextlib.suppress(RuntimeError):  # it has ended
                timeouts[0].reschedule(asyncio.get_running_loop().time() - 1)
                run.fired = True

    timeouts: list[Any] = []
    count = _Count(at, lambda awaited: _at(when, awaited, end))
    task = _start(within, count)
    await asyncio.wait([task])
    task.result()
    run.error = outcome[0] if outcome else None
    return count.count >= at


async def by_end_of_loop(call: Callable[[], Awaitable[None]], at: int, when: str, run: Run) -> bool:
    """Cancel every task of it, as the end of `asyncio.run` does. It reaches into the commit."""

    def end() -> None:
        run.fired = True
        for each in asyncio.all_tasks() - others:
            each.cancel()

    others = asyncio.all_tasks()
    count = _Count(at, lambda awaited: _at(when, awaited, end))
    task = _start(call, count)
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is not None:
        raise task.exception()
    run.error = asyncio.CancelledError() if task.cancelled() else None
    await _settled(others)
    return count.count >= at


async def by_close(call: Callable[[], Awaitable[None]], at: int, when: str, run: Run) -> bool:
    """Close its coroutine where it is suspended, as the garbage collector does."""

    class Closed(BaseException):
        pass

    class Closing(_Stepped):
        def __await__(self):
            step, given = self._coroutine.send, None
            while True:
                try:
                    awaited = step(given)
                except StopIteration as stop:
                    return stop.value
                self._count.suspended(awaited)
                if run.fired:
                    if when == "late" and awaited is not None:
                        awaited._asyncio_future_blocking = False
                        yield from asyncio.wait([awaited]).__await__()
                    self._coroutine.close()
                    raise Closed
                try:
                    step, given = self._coroutine.send, (yield awaited)
                except BaseException as error:
                    step, given = self._coroutine.throw, error

    def end(awaited: Any) -> None:
        run.fired = True

    async def outermost() -> None:
        # Only the call itself is closed; what it has started goes on.
        await Closing(call(), count)

    others = asyncio.all_tasks()
    count = _Count(at, end)
    task = asyncio.get_running_loop().create_task(outermost())
    await asyncio.wait([task])
    if isinstance(task.exception(), Closed):
        run.error = asyncio.CancelledError()
    elif task.exception() is not None:
        raise task.exception()
    await _settled(others)
    return count.count >= at


async def by_wait_for(call: Callable[[], Awaitable[None]], at: int, when: str, run: Run) -> bool:
    """`asyncio.wait_for` with a time that ends in the middle of it."""
    try:
        await asyncio.wait_for(call(), 0.0001 * 1.15**at)
    except asyncio.TimeoutError:
        run.fired, run.error = True, asyncio.CancelledError()
        return True
    return False


async def _settled(others: set[asyncio.Task[Any]]) -> None:
    deadline = time.monotonic() + SOON
    while rest := asyncio.all_tasks() - others - {asyncio.current_task()}:
        assert time.monotonic() < deadline, "what was left of a call does not end"
        await asyncio.wait(rest, timeout=0.1)


WAYS: dict[str, Callable[..., Awaitable[bool]]] = {
    "cancel": by_cancel,
    "cancel twice": by_two_cancels,
    "cancel again and again": by_cancels_in_turn,
    "scope": by_scope,
    "end of loop": by_end_of_loop,
    "close": by_close,
    "wait_for": by_wait_for,
}
if sys.version_info >= (3, 11):
    WAYS["timeout"] = by_timeout


class _Instrument(trio.abc.Instrument):
    """Cancels a scope of trio at a suspension of the tasks inside it."""

    def __init__(self, at: int, when: str) -> None:
        self.at, self.when, self.count = at, when, 0
        self.scope: Any = None
        self._waits: Any = None

    def after_task_step(self, task: Any) -> None:
        if self._is_inside(task):
            self.count += 1
            if self.count == self.at:
                if self.when == "early":
                    self.scope.cancel()
                elif task._abort_func is None:
                    # What it waits for is there.
                    self.scope.cancel()
                else:
                    self._waits = task

    def task_scheduled(self, task: Any) -> None:
        if task is self._waits:
            self._waits = None
            self.scope.cancel()

    def _is_inside(self, task: Any) -> bool:
        if self.scope is None or task.coro.cr_frame is None:
            return False
        return task.context.get(_INSIDE) is self


_INSIDE: contextvars.ContextVar[Any] = contextvars.ContextVar("inside", default=None)


async def on_trio(call: Callable[[], Awaitable[None]], at: int, when: str, run: Run) -> bool:
    """Cancel a scope of trio around it."""
    instrument = _Instrument(at, when)
    trio.lowlevel.add_instrument(instrument)
    ended = []

    async def within() -> None:
        _INSIDE.set(instrument)
        with trio.CancelScope() as scope:
            instrument.scope = scope
            await call()
            ended.append(True)
        instrument.scope = None
        run.fired = scope.cancel_called
        assert scope.cancelled_caught is not bool(ended)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(within)
    finally:
        trio.lowlevel.remove_instrument(instrument)
    run.error = None if ended else asyncio.CancelledError()
    return instrument.count >= at


# The driver.


@dataclass
class Ended:
    """What `every_step` did.

    Attributes:
        runs: Calls.
        ended: Calls that were ended before their time.
        landed: Of these, those that had been committed.
    """

    runs: int = 0
    ended: int = 0
    landed: int = 0


async def every_step(
    name: str,
    way: Callable[..., Awaitable[bool]],
    when: str,
    gantry: Callable[[], Gantry],
    stranger: Gantry,
    cold: bool = False,
) -> Ended:
    """End a call at each suspension in turn, and look at what is stored, and whether the next call works.

    Args:
        name: Of the scenario.
        way: How to end it.
        when: "early" or "late".
        gantry: Makes a gantry on which the calls are made, which has one connection only.
        stranger: A gantry on the same place, as another process has it.
        cold: Whether each run has a gantry of its own, that is not yet connected.
    """
    scenario, done, neighbour = SCENARIOS[name], Ended(), Run()
    reaching = way is by_end_of_loop
    write(stranger, neighbour.session, {"me": neighbour.session})
    seen: list[tuple[Run, dict[str, Any]]] = []
    mine, missed = gantry(), 0
    if not cold:
        # Else the first step is one of connecting, and that of the first load is never come to.
        await _next_call_works(mine, stranger, neighbour, Run())
    for at in range(1, MOST):
        if cold and at > 1:
            mine.close()
            mine = gantry()
        run, call = Run(), scenario.make(mine, stranger)
        # Nobody else's, and not empty, so that a reply that is meant for another is seen to be.
        before = {key: dict(value) for key, value in scenario.before(run).items()}

        async def called(run=run, call=call, mine=mine) -> None:
            with mine.session(run.session, user=run.session):
                await call(run)
            run.error = None

        run.error = asyncio.CancelledError()
        more = await way(called, at, when, run)
        done.runs += 1
        done.ended += run.fired
        there, full = content(stranger, run.session), scenario.full(run)
        if way is by_close and run.returned:
            # What goes on may do so without a task that could be waited for.
            deadline = time.monotonic() + SOON
            while there != full and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
                there = content(stranger, run.session)
        landed = there == full
        before["session"] = _before(name, there)
        assert landed or there == before, f"{name}, {when} at {at}: half of a call is stored: {there}"
        if run.error is None:
            assert landed, f"{name}, {when} at {at}: the call ended well and is not stored: {there}"
        elif not run.returned:
            assert not landed, f"{name}, {when} at {at}: a call was ended in its body and is stored"
        elif not reaching:
            assert landed, f"{name}, {when} at {at}: a commit was cut"
        done.landed += landed and run.fired
        seen.append((run, there))
        await _next_call_works(mine, stranger, neighbour, run)
        # What a socket has there already is no suspension, so that it is not the same number each time.
        missed = 0 if more else missed + 1
        if missed == 2:
            break
    else:
        raise AssertionError(f"{name}: {MOST} suspensions")
    # What is stored is what was, for nothing lands after its caller was told, unless the commit itself was cut off.
    for run, there in seen:
        now = content(stranger, run.session)
        assert now["session"].pop("next") == run.token
        assert now in ((there, scenario.full(run)) if reaching else (there,))
    return done


def _before(name: str, there: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is there without the call: nothing, or what a stranger has written in its body."""
    strangers = _STRANGERS.get(name, {})
    return strangers if there["session"] == strangers else {}


async def _next_call_works(mine: Gantry, stranger: Gantry, neighbour: Run, run: Run) -> None:
    @mine.with_memory
    async def reads(memory):
        return memory.get("me")

    # A commit that was cut off on its way may land meanwhile.
    @mine.with_memory(exclusive=True, on_conflict="retry")
    async def marks(memory):
        memory["next"] = run.token

    began = time.monotonic()
    with mine.session(neighbour.session, user=neighbour.session):
        assert await reads() == neighbour.session, "a call was given the memory of another one"
    with mine.session(run.session, user=run.session):
        await marks()
    assert time.monotonic() - began < SOON, "the next call took too long"
    assert content(stranger, run.session)["session"].get("next") == run.token, "the next call lost what it wrote"


def run_on(
    backend: str, name: str, way: str, when: str, gantry: Callable[[], Gantry], stranger: Gantry, cold: bool = False
) -> Ended:
    """`every_step` on an event loop of its own."""

    async def main() -> Ended:
        if backend == "trio":
            return await every_step(name, on_trio, when, gantry, stranger, cold)
        loop = asyncio.get_running_loop()
        loop.set_task_factory(_task)
        # What a loop has to tell about what nobody has looked at.
        loop.set_exception_handler(lambda loop, context: told.append(context["message"]))
        done = await every_step(name, WAYS[way], when, gantry, stranger, cold)
        gc.collect()
        return done

    told: list[str] = []
    done = anyio.run(main, backend=backend)
    # Of a call that was closed nobody hears how its commit went on.
    assert way == "close" or not told, told
    return done


SERVERS = {"redis": servers.redis_8, "postgresql": servers.postgresql, "memcached": servers.memcached}
#: One connection, so that one which was lost or is taken for ever is missed.
ONE = "?max_connections=1&load_timeout=3&commit_timeout=3"


class Place:
    """A store, and the gantries on it: those whose calls are ended, and those of strangers.

    Args:
        name: Of the store.
        directory: Where it may keep files.
        stack: Closes the gantries.
    """

    def __init__(self, name: str, directory: Any, stack: contextlib.ExitStack) -> None:
        self.name, self._stack = name, stack
        self.where: Any
        if name in _HERE:
            self.where = _HERE[name]()
        elif name in ("file", "sqlite"):
            self.where = f"{name}:///{directory}/state"
        else:
            self.where = SERVERS[name]().url

    def gantry(self, options: str = "") -> Gantry:
        where = self.where + options if self.name in SERVERS else self.where
        gantry = Gantry(where, app="cancel")
        if isinstance(where, Coroutines):
            # The thread that it has got, though the store was handed in.
            self._stack.callback(gantry._wiring.settings.bridge.close)
        return self._stack.enter_context(gantry)

    def hurried(self, options: str = ONE) -> Gantry:
        """One whose calls are suspended wherever they can be, and which has one connection."""
        return always_blocked(self.gantry(options))


_HERE: dict[str, Callable[[], Any]] = {"memory": MemoryStore, "blocking": Blocking, "coroutines": Coroutines}
PLACES = (*_HERE, "file", "sqlite", *SERVERS)


def applies(name: str, scenario: str, way: str = "cancel") -> bool:
    """Whether store and Python can do it: a group of tasks cannot be closed, nor an asynchronous generator that runs."""
    if way == "close" and scenario in ("nested", "waiting", "generated"):
        return False
    return not (name in ("memcached", "redis-cluster") and SCENARIOS[scenario].several)


def always_blocked(gantry: Gantry) -> Gantry:
    """*gantry*, whose store of this machine is asked in a thread, as if another process held it at each moment."""
    bridge = gantry._wiring.settings.bridge
    if isinstance(bridge, Local):

        def attempt(message):
            raise WouldBlock

        bridge.attempt = attempt
    return gantry
