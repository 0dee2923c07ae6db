"""One store, sync and async callers: how a message gets to a store and its answer back.

A caller may stand on an event loop, in a worker thread or in a program without any loop, and the store may answer at once,
block, or be made of coroutines. Each kind of store has a bridge that serves all of these callers, and the code above asks a
bridge without knowing which it is. What is to be waited for that is no store's business waits by itself (`steps.Wait`).

What must not be cut short (a commit) is run with `arun_uncut`: it goes to its end whatever cancels the caller, and only
then does the cancellation go on. anyio's shield alone does not hold against `asyncio.wait_for`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import inspect
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from agent_gantry_state import steps as _steps
from agent_gantry_state.errors import StoreClosedError, StoreTimeoutError
from agent_gantry_state.notes import Counters
from agent_gantry_state.steps import Steps, Wait
from agent_gantry_state.stores.protocol import (
    COMMIT_SECONDS,
    LOAD_SECONDS,
    Commit,
    Forget,
    Lease,
    List,
    Load,
    Message,
    Moved,
    Release,
    WouldBlock,
)

__all__ = [
    "Bridge",
    "Closed",
    "HomeLoop",
    "Inline",
    "Local",
    "Network",
    "Runs",
    "Thread",
    "bridge_to",
    "in_asyncio",
    "on_event_loop",
    "run_until_blocked",
    "uncut",
]

T = TypeVar("T")

_VERBS: dict[type[Any], str] = {
    Load: "load",
    Commit: "commit",
    Forget: "forget",
    List: "list",
    Lease: "lease",
    Release: "release",
}

#: Seconds that a bridge gives a store beyond a message's own timeout before it stops waiting for an answer.
GRACE = 0.5
#: Seconds that a sync caller may keep an event loop waiting on whose thread it stands.
LOOP_SECONDS = 0.05


class Bridge(Protocol):
    """What the code above knows of a store."""

    store: Any
    #: Whether the store's answer to a commit can be lost, so that it may have to be sent again.
    resendable: bool
    #: Seconds that the store may take to answer a load, and a commit with all its resends.
    load_timeout: float
    commit_timeout: float
    #: Counts what happens; None: nobody does.
    counters: Counters | None

    def perform(self, request: Any) -> Any:
        """Have done what steps ask for, for a caller that may block."""
        ...

    async def aperform(self, request: Any) -> Any:
        """`perform`, for a caller on an event loop."""
        ...

    def ask_whole(self, request: Any) -> Awaitable[Any]:
        """`aperform` where a cancellation cuts it, except for a lease."""
        ...

    def attempt(self, request: Any) -> Any:
        """Have a message answered without waiting.

        Raises:
            WouldBlock: It would have to wait, and nothing of it was done.
        """
        ...

    def run(self, steps: Steps[T]) -> T:
        """Run steps for a caller that may block."""
        ...

    async def arun(self, steps: Steps[T]) -> T:
        """Run steps for a caller on an event loop; a cancellation ends them."""
        ...

    async def arun_uncut(self, steps: Steps[T]) -> T:
        """Run steps for a caller on an event loop to their end, and let a cancellation go on only then."""
        ...

    def close(self) -> None:
        """Give up what the bridge holds, and close the store if it is owned; for a caller that may block."""
        ...

    async def aclose(self) -> None:
        """`close`, for a caller on an event loop."""
        ...


def in_asyncio() -> bool:
    """Whether this thread is running an asyncio event loop.

    Asks the thread: asyncio.to_thread copies the context, so sniffio would report a loop that this thread does not run.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Runs:
    """How a bridge runs steps, whatever it does for what they ask for."""

    def run(self: Bridge, steps: Steps[T]) -> T:
        return _steps.run(steps, self.perform)

    async def arun(self: Bridge, steps: Steps[T]) -> T:
        return await _steps.arun(steps, self.ask_whole)

    async def arun_uncut(self: Bridge, steps: Steps[T]) -> T:
        # As far as nothing has to be waited for, nothing can be cut, and no task is needed to keep it whole.
        request, result = run_until_blocked(steps, self.attempt)
        if request is None:
            return result  # type: ignore[return-value]
        return await uncut(lambda: _steps.arun(steps, self.aperform, request))


class _Methods(Runs):
    """A store and its methods by kind of message. A store that is *owned* is closed with its bridge."""

    counters: Counters | None = None
    #: Commits what is written most without a message; see `SQLiteStore.attempt_values`.
    attempt_values: Callable[..., bool] | None = None
    #: Gives what is known to stand there, without a message; see `SQLiteStore.attempt_whole`.
    attempt_whole: Callable[..., Any] | None = None
    #: For callers that may block, load and commit without a message; see `MemcachedStore.load_at_once` and `commit_at_once`.
    load_at_once: Callable[..., Any] | None = None
    commit_at_once: Callable[..., bool | Moved] | None = None

    def __init__(self, store: Any, owned: bool = False) -> None:
        self.store = store
        self._owned = owned
        self.load_timeout: float = getattr(store, "load_timeout", LOAD_SECONDS)
        self.commit_timeout: float = getattr(store, "commit_timeout", COMMIT_SECONDS)
        self._answer: dict[type, Callable[[Any], Any]] = {kind: getattr(store, verb) for kind, verb in _VERBS.items()}

    async def aperform(self, request: Message | Wait) -> Any:
        raise NotImplementedError

    def attempt(self, request: Message) -> Any:
        raise WouldBlock

    async def ask_whole(self, request: Message | Wait) -> Any:
        return await (_lease(lambda: self.aperform(request)) if type(request) is Lease else self.aperform(request))


def _without_message(store: Any, name: str, verb: str) -> Callable[..., Any] | None:
    """The method *name* of a store, which does without a message what *verb* does with one.

    None if the store does that in its own way: who derives a class from a store, or stands before one, has every call come
    by the methods that he knows.
    """
    owner = next((each for each in type(store).__mro__ if name in vars(each)), None)
    if owner is None or getattr(getattr(store, verb), "__func__", None) is not getattr(owner, verb):
        return None
    return getattr(store, name)  # type: ignore[no-any-return]


class Inline(_Methods):
    """A store that never waits: called where the caller stands, sync or async, without a hop or an await."""

    resendable = False

    def perform(self, request: Message | Wait) -> Any:
        if isinstance(request, Wait):
            return request.wait()
        return self._answer[type(request)](request)

    async def aperform(self, request: Message | Wait) -> Any:
        if isinstance(request, Wait):
            return await request.await_()
        return self._answer[type(request)](request)

    # Nothing can cut what does not wait.
    ask_whole = aperform

    def attempt(self, request: Message) -> Any:
        return self._answer[type(request)](request)

    def close(self) -> None:
        if self._owned:
            self.store.close()

    async def aclose(self) -> None:
        self.close()


class Local(_Methods):
    """A store on this machine that seldom waits: called where the caller stands, and in a thread where it would block.

    A hop to a thread costs several times what the store does, so that on an event loop everything is attempted in place
    first.
    """

    # Whatever happens to the caller, the store's answer is there, or its error, which says what is known.
    resendable = False

    def __init__(self, store: Any, owned: bool = False) -> None:
        super().__init__(store, owned)
        # Without a frame in between.
        self.attempt = store.attempt  # type: ignore[method-assign]
        self.attempt_values = _without_message(store, "attempt_values", "attempt")
        self.attempt_whole = _without_message(store, "attempt_whole", "attempt")

    def perform(self, request: Message | Wait) -> Any:
        if isinstance(request, Wait):
            return request.wait()
        try:
            return self.attempt(request)
        except WouldBlock:
            pass
        if not on_event_loop() or request.timeout <= LOOP_SECONDS:
            return self._answer[type(request)](request)
        try:
            return self._answer[type(request)](replace(request, timeout=LOOP_SECONDS))
        except StoreTimeoutError as error:
            raise StoreTimeoutError(
                f"the store was busy for {LOOP_SECONDS:g} s, and no longer may a sync tool wait that is called on an event "
                "loop's own thread, for everything else waits with it: make the tool async, or call it in a thread "
                "(anyio.to_thread.run_sync)",
                committed=error.committed,
            ) from error

    async def aperform(self, request: Message | Wait) -> Any:
        if isinstance(request, Wait):
            return await request.await_()
        try:
            return self.attempt(request)
        except WouldBlock:
            start = functools.partial(_hop, self._answer[type(request)], request)
            return await (_lease(start) if type(request) is Lease else start())

    # It sees to leases itself, and only where they have to wait.
    ask_whole = aperform

    def close(self) -> None:
        if self._owned:
            self.store.close()

    async def aclose(self) -> None:
        await uncut(lambda: _in_thread(self.close))


class Thread(_Methods):
    """A store that blocks: called where a sync caller stands, and in a worker thread for a caller on an event loop."""

    resendable = True

    def perform(self, request: Message | Wait) -> Any:
        if isinstance(request, Wait):
            return request.wait()
        return self._answer[type(request)](request)

    async def aperform(self, request: Message | Wait) -> Any:
        if isinstance(request, Wait):
            return await request.await_()
        return await _hop(self._answer[type(request)], request)

    def close(self) -> None:
        if self._owned:
            self.store.close()

    async def aclose(self) -> None:
        await uncut(lambda: _in_thread(self.close))


class Network(Thread):
    """A store with a client for each kind of caller: one that blocks, and one for each asyncio event loop that meets it.

    On another event loop than asyncio's, callers go through a worker thread.
    """

    def __init__(self, store: Any, owned: bool = False) -> None:
        super().__init__(store, owned)
        self._errand_for: Callable[..., Any] | None = getattr(store, "errand_for", None)
        self.load_at_once = _without_message(store, "load_at_once", "load")
        self.commit_at_once = _without_message(store, "commit_at_once", "commit")

    async def aperform(self, request: Message | Wait) -> Any:
        if in_asyncio() and not isinstance(request, Wait):
            return await self.store.answer(request)
        return await super().aperform(request)

    async def arun_uncut(self, steps: Steps[T]) -> T:
        errand = None if self._errand_for is None or not in_asyncio() else self._errand_for(steps)
        if errand is None:
            return await super().arun_uncut(steps)
        cancelled = await _to_end(errand.is_over, errand.woken)
        if cancelled is not None:
            if errand.error is not None:
                cancelled.__context__ = errand.error
            raise cancelled
        return errand.result()  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        if self._owned and in_asyncio():
            await uncut(self.store.aclose)
        else:
            await super().aclose()


class HomeLoop(_Methods):
    """A store made of coroutines: they run on one event loop, in a thread that the bridge keeps for it.

    Clients of the asyncio world belong to the loop that they were made on, while one gantry meets many loops, trio, and
    callers without any. A loop of its own is the only place where such a store always works. Its thread is a daemon, so
    that a program which forgot to close its gantry ends all the same.
    """

    resendable = True

    def __init__(self, store: Any, owned: bool = False) -> None:
        super().__init__(store, owned)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def perform(self, request: Message | Wait) -> Any:
        if isinstance(request, Wait):
            return request.wait()
        future = self._send(request)
        try:
            return future.result(request.timeout + GRACE)
        except concurrent.futures.TimeoutError:
            if future.done():
                raise  # the store's own error
            future.cancel()
            raise _late(request) from None
        except concurrent.futures.CancelledError:
            raise _closed(request) from None

    async def aperform(self, request: Message | Wait) -> Any:
        if isinstance(request, Wait):
            return await request.await_()
        if not in_asyncio():
            return await _hop(self.perform, request)
        future = asyncio.wrap_future(self._send(request))
        done, _ = await asyncio.wait([future], timeout=request.timeout + GRACE)
        if not done:
            future.cancel()
            raise _late(request)
        if future.cancelled():
            raise _closed(request)
        return future.result()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._owned:
                self._start(self.store.close()).result()
            if self._loop is not None and self._thread is not None:
                # Who still waits for an answer is told at once, and not when his time is over.
                self._start(_cancel_others()).result()
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()

    async def aclose(self) -> None:
        await uncut(lambda: _in_thread(self.close))

    def _send(self, request: Message) -> concurrent.futures.Future[Any]:
        with self._lock:
            if self._closed:
                raise _closed()
            return self._start(self._ask(request))

    def _start(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Start a coroutine on the home loop, which is made when it is first needed. Needs the lock."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="agent-gantry-state-store", daemon=True)
            self._thread.start()
        # An empty context: with the caller's, anyio would take the library that the caller runs for this loop's.
        return contextvars.Context().run(asyncio.run_coroutine_threadsafe, coroutine, self._loop)

    async def _ask(self, request: Message) -> Any:
        import anyio

        try:
            with anyio.fail_after(request.timeout):
                return await self._answer[type(request)](request)
        except TimeoutError as error:
            if isinstance(error, StoreTimeoutError):
                raise
            raise _late(request) from None


class Closed(Runs):
    """Stands in for the bridge of a gantry that was closed."""

    store: Any = None
    resendable = False
    counters: Counters | None = None
    load_timeout = LOAD_SECONDS
    commit_timeout = COMMIT_SECONDS

    def perform(self, request: Any) -> Any:
        raise _closed()

    async def aperform(self, request: Any) -> Any:
        raise _closed()

    async def ask_whole(self, request: Any) -> Any:
        raise _closed()

    def attempt(self, request: Any) -> Any:
        raise _closed()

    def close(self) -> None:
        """Nothing is left to close."""

    async def aclose(self) -> None:
        """Nothing is left to close."""


def bridge_to(store: Any, owned: bool = False) -> Bridge:
    """The bridge for a store object, which is closed with the bridge if it is *owned*.

    Raises:
        TypeError: It has not a method for each message, or some are coroutines and some are not.
    """
    if isinstance(store, type):
        raise TypeError(f"{store.__name__} is a class: make a store of it, {store.__name__}(...)")
    methods = {verb: getattr(store, verb, None) for verb in (*_VERBS.values(), "close")}
    missing = [verb for verb, method in methods.items() if not callable(method)]
    if len(missing) == len(methods):
        url = "sqlite:///path or file:///path" if isinstance(store, os.PathLike) else "memory:// or sqlite:///state.db"
        raise TypeError(
            f"{type(store).__name__} is no store: name one by a URL, {url}, or give an object with the methods "
            f"{', '.join(methods)} (agent_gantry_state.stores.protocol.Store says what each answers)"
        )
    if missing:
        raise TypeError(
            f"{type(store).__name__} is no store: it has no method {', '.join(missing)} "
            "(agent_gantry_state.stores.protocol.Store says what each answers)"
        )
    coroutines = {verb for verb, method in methods.items() if inspect.iscoroutinefunction(method)}
    if not coroutines:
        if callable(getattr(store, "attempt", None)):
            return Local(store, owned)
        if inspect.iscoroutinefunction(getattr(store, "answer", None)):
            return Network(store, owned)
        return Inline(store, owned) if getattr(store, "inline", False) else Thread(store, owned)
    plain = sorted(methods.keys() - coroutines)
    if plain:
        raise TypeError(f"{type(store).__name__} is no store: make its methods all async or none; plain: {plain}")
    return HomeLoop(store, owned)


def _late(request: Message) -> StoreTimeoutError:
    committed = None if isinstance(request, (Commit, Forget)) else False
    return StoreTimeoutError(
        f"the store gave no answer to {_VERBS[type(request)]} within {request.timeout:g} s", committed=committed
    )


def _closed(request: Message | None = None) -> StoreClosedError:
    return StoreClosedError(
        "this gantry is closed: make a new one, or close it only when no tool is called any more",
        committed=None if isinstance(request, (Commit, Forget)) else False,
    )


# anyio is imported when it is used first: in a program without an event loop that is never.


def _hop(answer: Callable[[Any], Any], request: Message) -> Awaitable[Any]:
    from agent_gantry_state.hop import hop

    return hop(answer, request)


def _in_thread(fn: Callable[[], None]) -> Awaitable[None]:
    import anyio.to_thread

    return anyio.to_thread.run_sync(fn)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=GRACE)


def on_event_loop() -> bool:
    """Whether this thread is running an event loop, which stands still while it waits."""
    trio = sys.modules.get("trio")
    return in_asyncio() or (trio is not None and trio.lowlevel.in_trio_run())


def run_until_blocked(steps: Steps[T], attempt: Callable[[Any], Any]) -> tuple[Any, T | None]:
    """Run *steps* up to a request that has to be waited for, or to their result (and None)."""
    try:
        request = next(steps)
        while not isinstance(request, Wait):
            try:
                answer = attempt(request)
            except WouldBlock:
                break
            except BaseException as error:  # noqa: BLE001 - raised inside the steps
                request = steps.throw(error)
            else:
                request = steps.send(answer)
    except StopIteration as stop:
        return None, stop.value
    return request, None


async def _lease(start: Callable[[], Awaitable[Any]]) -> Any:
    """Ask for a lease to the end, as nobody would give back one that a cancelled caller is granted; then be cancelled."""
    import anyio.lowlevel

    left = await uncut(start)
    await anyio.lowlevel.checkpoint_if_cancelled()
    return left


async def uncut(start: Callable[[], Awaitable[T]]) -> T:
    """Await what *start* makes to its end, whatever cancels the caller, and let the cancellation go on only then."""
    if not in_asyncio():
        import anyio

        with anyio.CancelScope(shield=True):
            return await start()
    task: asyncio.Task[T] = asyncio.ensure_future(_as_coroutine(start))
    cancelled = await _to_end(task.done, lambda: _woken_by(task))
    if cancelled is not None:
        if not task.cancelled() and task.exception() is not None:
            cancelled.__context__ = task.exception()
        raise cancelled
    return task.result()


async def _to_end(is_over: Callable[[], bool], woken: Callable[[], asyncio.Future[None]]) -> asyncio.CancelledError | None:
    """Wait until something *is_over*, and is heard of by what *woken* gives, whatever cancels the caller; the cancellation
    that is to go on then. Where the caller is closed, it goes on by itself."""
    try:
        while not is_over():
            await woken()
    except asyncio.CancelledError as error:
        cancelled = error
    else:
        return None
    import anyio

    # anyio would cancel again and again while this waits.
    with anyio.CancelScope(shield=True):
        while not is_over():
            try:
                await woken()
            except asyncio.CancelledError as error:
                cancelled = error
    return cancelled


def _woken_by(task: asyncio.Task[Any]) -> asyncio.Future[None]:
    """A future that ends with a task, and may be cancelled without it: what `asyncio.shield` does with more around it."""
    woken: asyncio.Future[None] = task.get_loop().create_future()

    def wake(_: asyncio.Task[Any]) -> None:
        if not woken.done():
            woken.set_result(None)

    task.add_done_callback(wake)
    return woken


async def _as_coroutine(start: Callable[[], Awaitable[T]]) -> T:
    return await start()
