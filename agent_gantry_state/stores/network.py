"""What the stores behind a network have in common: clients for each kind of caller, deadlines, reconnecting, closing.

A store's logic is a generator per message: it yields what its server is to be asked and is sent the reply. A link has such
requests answered; there is one for callers that may block, and one for each asyncio event loop, as its connections belong
to that loop. Which of them runs the logic makes no difference to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ctypes
import inspect
import os
import socket
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import anyio.to_thread
from typing_extensions import Self

from agent_gantry_state import steps as _steps
from agent_gantry_state.errors import MissingDriverError, StoreClosedError, StoreError, StoreUnavailableError
from agent_gantry_state.hop import hop
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.notes import LOG, fields
from agent_gantry_state.steps import Steps, Wait
from agent_gantry_state.stores.options import check_timeouts, seconds
from agent_gantry_state.stores.protocol import (
    COMMIT_SECONDS,
    LOAD_SECONDS,
    Commit,
    Committed,
    Forget,
    Lease,
    List,
    Load,
    Loaded,
    Message,
    Moved,
    Page,
    Release,
    Snapshot,
)

__all__ = ["CONNECT_SECONDS", "TIMEOUTS", "AsyncLink", "Errand", "Link", "RemoteStore", "driver", "hang_up", "within"]

T = TypeVar("T")

#: Seconds that a new connection may take.
CONNECT_SECONDS = 2.0
#: Seconds that closing waits for the clients of an event loop.
_CLOSE_SECONDS = 2.0

#: The options of a URL that each store behind a network knows, for `StoreURL.read`.
TIMEOUTS: dict[str, Callable[[str], Any]] = {
    "connect_timeout": seconds,
    "load_timeout": seconds,
    "commit_timeout": seconds,
}


class Link(Protocol):
    """A client for callers that may block. Any thread may use it."""

    def ask(self, request: Any, deadline: float, /) -> Any:
        """The server's reply to what a store's logic has yielded.

        Args:
            request: What the logic yielded.
            deadline: When to give up, on the monotonic clock; getting a connection is included.

        Raises:
            StoreError: The driver failed. `committed` is False if the request surely has not been carried out, and None
                otherwise; a connection on which anything was interrupted is closed, and idle ones to a server that
                has gone away are, too.
        """
        ...

    def close(self) -> None:
        """Close every connection, unless the client is the user's own."""
        ...


class AsyncLink(Protocol):
    """A client for the callers on one asyncio event loop.

    One whose requests live without their callers may have `start` as well: `ask` for who does not give up. A commit then
    needs no task.
    """

    def ask(self, request: Any, deadline: float, /) -> Awaitable[Any]:
        """As `Link.ask`. A request that is cancelled leaves no connection behind that could be used again."""
        ...

    async def close(self) -> None:
        """Close every connection, unless the client is the user's own."""
        ...

    def drop(self) -> None:
        """Part from the server without the help of the event loop, from any thread.

        The loop may be closed, stand still and run again later, or be running (`hang_up` is safe with each): a socket that
        it still watches must not be closed, for the next one gets its number.
        """
        ...


def hang_up(transport: asyncio.BaseTransport, loop: asyncio.AbstractEventLoop) -> None:
    """End the connection of a transport of *loop*, from any thread and whatever the loop is doing."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except TypeError:
                # uvloop tells the number of its socket, and lets nobody else touch it.
                with socket.socket(fileno=os.dup(sock.fileno())) as same:
                    same.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(transport.abort if isinstance(transport, asyncio.WriteTransport) else transport.close)


async def within(awaitable: Awaitable[T], seconds: float, discard: Callable[[T], object] = lambda _: None) -> T:
    """`asyncio.wait_for` that never swallows a cancellation, as that may up to Python 3.11.

    It is awaited in a task of its own: asyncio leaves a socket half watched whose coroutine is closed, not cancelled.

    Args:
        awaitable: What to wait for.
        seconds: For how long.
        discard: What is done with what it gives if nobody waits for it any more.

    Raises:
        TimeoutError: It took longer.
    """

    def end(task: asyncio.Future[T]) -> None:
        if not task.cancelled() and task.exception() is None:
            discard(task.result())

    task = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait([task], timeout=seconds)
    except BaseException:
        task.cancel()
        task.add_done_callback(end)
        raise
    if task.done():
        return task.result()
    task.cancel()
    task.add_done_callback(end)
    raise TimeoutError


def reason(error: BaseException) -> str:
    """Why there is no connection, in the same words whoever tried: asyncio writes its own, and leaves the reason out."""
    if type(error) in (OSError, ConnectionRefusedError, PermissionError, FileNotFoundError) and error.errno:  # type: ignore[attr-defined]
        return os.strerror(error.errno)  # type: ignore[attr-defined]
    return getattr(error, "strerror", None) or type(error).__name__


@contextlib.contextmanager
def driver(extra: str) -> Iterator[None]:
    """Imports of a driver, which comes with the extra of that name.

    Raises:
        MissingDriverError: It is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDriverError(
            f"the driver of the {extra} store is not installed: pip install 'agent-gantry-state[{extra}]'", extra=extra
        ) from error


@dataclass(frozen=True, slots=True)
class _WhichServer:
    """Ask what the server is: no message of the protocol, for only who checks a store wants to know."""

    timeout: float


class RemoteStore:
    """Base of the stores behind a network: a `NetworkStore` made of logic and two kinds of links.

    Args:
        connect_timeout: Seconds that a new connection may take, within the time of the message that needs it.
        load_timeout: Seconds that everything but a commit may take.
        commit_timeout: Seconds that a commit or an erasure may take, with all its resends.

    Raises:
        ValueError: A time is not positive.
    """

    inline = False
    clock: Callable[[], float] | None = None

    def __init__(
        self,
        *,
        connect_timeout: float = CONNECT_SECONDS,
        load_timeout: float = LOAD_SECONDS,
        commit_timeout: float = COMMIT_SECONDS,
    ) -> None:
        check_timeouts(self, connect_timeout=connect_timeout, load_timeout=load_timeout, commit_timeout=commit_timeout)
        self.connect_timeout = connect_timeout
        self.load_timeout = load_timeout
        self.commit_timeout = commit_timeout
        self._lock = threading.RLock()
        self._closed = False
        self._link: Link | None = None
        self._at_end: weakref.finalize[..., Any] | None = None
        self._alinks: dict[asyncio.AbstractEventLoop, _OnLoop] = {}
        self._logic: dict[type[Any], Callable[[Any], Steps[Any]]] = {
            Load: self._load,
            Commit: self._commit,
            Forget: self._forget,
            List: self._list,
            Lease: self._lease,
            Release: self._release,
            _WhichServer: self._which_server,
        }
        _stores.add(self)

    # What each store gives.

    def _connect(self) -> Link:
        """A client for callers that may block. It connects when it is asked, not before."""
        raise NotImplementedError

    def _aconnect(self) -> AsyncLink | None:
        """A client for the running event loop; None if its callers are to come in a thread."""
        raise NotImplementedError

    def server_version(self) -> str:
        """What the server says that it is, with its version; "" if it says nothing of it. For callers that may block.

        Raises:
            StoreError: The store failed.
        """
        return self._answered(_WhichServer(self.load_timeout))  # type: ignore[no-any-return]

    def _which_server(self, message: _WhichServer) -> Steps[str]:
        return ""
        yield

    def unaged(self) -> Self:
        """This store as if no time had gone by, to look for what is expired and was not removed yet; only to be read."""
        twin = copy.copy(self)
        twin.clock = _long_ago
        twin._logic = {kind: getattr(twin, logic.__name__) for kind, logic in self._logic.items()}
        return twin

    def _load(self, message: Load) -> Steps[Loaded]:
        raise NotImplementedError

    def _commit(self, message: Commit) -> Steps[Committed | Moved]:
        raise NotImplementedError

    def _forget(self, message: Forget) -> Steps[None]:
        raise NotImplementedError

    def _list(self, message: List) -> Steps[Page]:
        raise NotImplementedError

    def _lease(self, message: Lease) -> Steps[float]:
        raise NotImplementedError

    def _release(self, message: Release) -> Steps[None]:
        raise NotImplementedError

    # Callers that may block.

    def load(self, message: Load, /) -> Loaded:
        """Answer a `Load`."""
        return self._answered(message)  # type: ignore[no-any-return]

    def commit(self, message: Commit, /) -> Committed | Moved:
        """Answer a `Commit`."""
        return self._answered(message)  # type: ignore[no-any-return]

    def forget(self, message: Forget, /) -> None:
        """Answer a `Forget`."""
        self._answered(message)

    def list(self, message: List, /) -> Page:
        """Answer a `List`."""
        return self._answered(message)  # type: ignore[no-any-return]

    def lease(self, message: Lease, /) -> float:
        """Answer a `Lease`."""
        return self._answered(message)  # type: ignore[no-any-return]

    def release(self, message: Release, /) -> None:
        """Answer a `Release`."""
        self._answered(message)

    def _answered(self, message: Message | _WhichServer, deadline: float | None = None, last: bool = False) -> Any:
        """Answer a message, by *deadline* if some of its time is over; *last*: without asking once more."""
        until = time.monotonic() + message.timeout if deadline is None else deadline
        link = self._link or self._open()
        try:
            return _steps.run(self._answer(message, until, last), lambda request: link.ask(request, until))
        finally:
            if self._closed:
                # It may have been closed before this connected.
                _shut(link)

    def _loaded(self, namespace: Namespace, deadline: float, failed: StoreError | None = None) -> tuple[Snapshot, float]:
        """What a `Load` of a whole namespace answers, and when; by *deadline*.

        Args:
            namespace: Which.
            deadline: On the monotonic clock.
            failed: How the same has ended without a message. It is raised unless the store may be asked once more.
        """
        if failed is not None:
            self._judge(failed, writes=False, last=time.monotonic() >= deadline)
        loaded: Loaded = self._answered(Load((namespace,), None, self.load_timeout), deadline, last=failed is not None)
        return loaded.snapshots[0], loaded.now

    def _answer(self, message: Message | _WhichServer, deadline: float, last: bool = False) -> Steps[Any]:
        """The logic for a message, which is asked once more where that is safe, unless this is the *last* time."""
        # Steps that go on by themselves may have been between two messages when it was closed.
        self._refuse_closed()
        while True:
            try:
                return (yield from self._logic[type(message)](message))
            except StoreError as error:
                self._judge(error, isinstance(message, (Commit, Forget)), last or time.monotonic() >= deadline)
                last = True

    def _open(self) -> Link:
        with self._lock:
            self._refuse_closed()
            if self._link is None:
                self._link = self._connect()
                # Of a gantry that nobody closes, the sockets are closed when it is dropped, or the program ends.
                self._at_end = weakref.finalize(self, _shut, self._link)
            return self._link

    # Callers on an asyncio event loop.

    async def answer(self, message: Message, /) -> Any:
        """Answer a message on the running asyncio event loop."""
        deadline = time.monotonic() + message.timeout
        on_loop = self._alinks.get(asyncio.get_running_loop()) or await self._aopen()
        link = on_loop.link
        if link is None:
            return await hop(self._answered, message)
        waits = True
        try:
            return await _steps.arun(self._answer(message, deadline), lambda request: link.ask(request, deadline))
        except GeneratorExit:
            # A coroutine that is being closed must not wait.
            waits = False
            raise
        finally:
            if self._closed:
                if waits:
                    await _ashut(link)
                else:
                    _drop(link)

    def errand_for(self, steps: Steps[T]) -> Errand[T] | None:
        """Have *steps* go on by themselves; None if the clients of this event loop cannot, and nothing was begun."""
        on_loop = self._alinks.get(asyncio.get_running_loop())
        start = None if on_loop is None else getattr(on_loop.link, "start", None)
        return None if start is None else Errand(steps, self._answer, start)

    async def _aopen(self) -> _OnLoop:
        loop = asyncio.get_running_loop()
        with self._lock:
            self._refuse_closed()
            for other in [other for other in self._alinks if other.is_closed()]:
                self._alinks.pop(other).drop()
            on_loop = self._alinks[loop] = _OnLoop(self._aconnect(), self._forget_loop)
        await on_loop.start()
        return on_loop

    def _forget_loop(self, on_loop: _OnLoop) -> None:
        with self._lock:
            if self._alinks.get(on_loop.loop) is on_loop:
                del self._alinks[on_loop.loop]

    def _judge(self, error: StoreError, writes: bool, last: bool) -> None:
        """Raise an error with what is known, unless what failed is to be asked once more."""
        if not writes:
            error.committed = False
        if self._closed and not isinstance(error, StoreClosedError):
            raise _closed(error.committed) from None
        # A server that was restarted has left connections behind that look usable. A write is sent again by whoever sent it.
        if writes or last or not isinstance(error, StoreUnavailableError):
            raise error

    def _refuse_closed(self) -> None:
        if self._closed:
            raise _closed(False)

    # The end.

    def close(self) -> None:
        """Close what this store has opened, and refuse everything from now on."""
        for on_loop in self._end():
            on_loop.close()

    async def aclose(self) -> None:
        """`close`, for a caller on an event loop."""
        on_loops = self._end()
        try:
            for on_loop in on_loops:
                if on_loop.loop is asyncio.get_running_loop():
                    await on_loop.aclose()
                else:
                    await anyio.to_thread.run_sync(on_loop.close)
        finally:
            # What a cancellation has left.
            for on_loop in on_loops:
                on_loop.drop()

    def _end(self) -> Iterator[_OnLoop]:
        with self._lock:
            self._closed = True
            link, self._link = self._link, None
            on_loops = [*self._alinks.values()]
            self._alinks.clear()
        if self._at_end is not None:
            self._at_end.detach()
        if link is not None:
            _shut(link)
        return iter(on_loops)

    def _start_over(self) -> None:
        """What a child does after a fork: the connections are its parent's, and stay open for the parent."""
        if self._at_end is not None:
            self._at_end.detach()
        _keep_for_ever([self._link, *[on_loop.abandoned() for on_loop in self._alinks.values()]])
        self._link = None
        self._alinks.clear()
        self._lock = threading.RLock()


class Errand(Generic[T]):
    """Steps that go on by themselves on the running event loop: each reply has them ask for the next thing.

    So they come to their end whatever becomes of whoever waits for that, and no task is needed for it.

    Args:
        steps: The steps.
        answer: The logic of a store for a message, by a deadline.
        start: Has a request of that logic answered, by a deadline.
    """

    def __init__(
        self, steps: Steps[T], answer: Callable[[Any, float], Steps[Any]], start: Callable[[Any, float], Awaitable[Any]]
    ) -> None:
        self._steps = steps
        self._answer = answer
        self._start = start
        self._loop = asyncio.get_running_loop()
        #: The logic for the message that the steps have yielded, and its deadline.
        self._logic: Steps[Any] | None = None
        self._deadline = 0.0
        self._woken: asyncio.Future[None] | None = None
        self._is_over = False
        self._result: T | None = None
        #: What the steps have raised.
        self.error: BaseException | None = None
        self._go(None, None)

    def is_over(self) -> bool:
        """Whether the steps have come to their end."""
        return self._is_over

    def woken(self) -> asyncio.Future[None]:
        """A future that ends when they do. It takes the place of the one before."""
        self._woken = self._loop.create_future()
        return self._woken

    def result(self) -> T:
        """What the steps returned, or raised."""
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[return-value]

    def _heard(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            self._go(None, asyncio.CancelledError())
        elif (error := future.exception()) is not None:
            self._go(None, error)
        else:
            self._go(future.result(), None)

    def _go(self, answer: Any, error: BaseException | None) -> None:
        """Go on with an answer, or an error, to what was asked for last."""
        while True:
            logic = self._logic
            steps = self._steps if logic is None else logic
            try:
                request = steps.send(answer) if error is None else steps.throw(error)
            except BaseException as raised:  # noqa: BLE001 - raised inside the steps, or by `result`
                answer, error = (raised.value, None) if isinstance(raised, StopIteration) else (None, raised)
                if logic is None:
                    self._end(answer, error)
                    return
                self._logic = None
                continue
            if isinstance(request, Wait):
                asked: Awaitable[Any] = request.await_()
            elif logic is None:
                self._deadline = time.monotonic() + request.timeout
                self._logic, answer, error = self._answer(request, self._deadline), None, None
                continue
            else:
                asked = self._start(request, self._deadline)
            asyncio.ensure_future(asked).add_done_callback(self._heard)
            return

    def _end(self, result: Any, error: BaseException | None) -> None:
        self._is_over, self._result, self.error = True, result, error
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class _OnLoop:
    """The link of one event loop, which is closed when the loop ends."""

    def __init__(self, link: AsyncLink | None, forget: Callable[[_OnLoop], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.link = link
        self._forget = forget
        self._life = self._live()

    async def _live(self) -> AsyncGenerator[None, None]:
        # An event loop closes the asynchronous generators that were started on it before it ends; there is no other way
        # to hear of its end.
        try:
            yield
        finally:
            self._forget(self)
            if (link := self.abandoned()) is not None:
                await _ashut(link)

    async def start(self) -> None:
        # A loop that is about to end warns that it hears of this too late: then it is dropped like that of a closed loop.
        with contextlib.suppress(ResourceWarning):
            async for _ in self._life:
                break

    async def aclose(self) -> None:
        await self._life.aclose()

    def close(self) -> None:
        """`aclose` from anywhere."""
        if _is_here(self.loop):
            # It cannot be waited for here: it is done when the loop goes on.
            closing = self.loop.create_task(self.aclose())
            _closings.add(closing)
            closing.add_done_callback(_closings.discard)
            return
        if self.loop.is_running():
            coroutine = self.aclose()
            try:
                asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_CLOSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - of the loop, which may be ending or not come to it
                LOG.warning(
                    "a connection was cut off, for its event loop did not close it: %s",
                    type(error).__name__,
                    extra=fields("connection_cut", error=type(error).__name__),
                )
            else:
                return
            if not self.loop.is_running() and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()
        self.drop()

    def drop(self) -> None:
        if (link := self.abandoned()) is not None:
            _drop(link)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                # Until the loop has parted from the sockets, nobody may find what is around them unused and complain.
                self.loop.call_soon_threadsafe(lambda: link)

    def abandoned(self) -> AsyncLink | None:
        """The link, which is not this one's to close any more."""
        link, self.link = self.link, None
        return link


#: Closings that go on, for the loop itself would not keep them.
_closings: set[asyncio.Task[None]] = set()


def _shut(link: Link) -> None:
    try:
        link.close()
    except Exception as error:  # noqa: BLE001 - of any driver
        _log_close("a connection could not be closed in order: %s", error)


async def _ashut(link: AsyncLink) -> None:
    try:
        await within(link.close(), _CLOSE_SECONDS)
    except Exception as error:  # noqa: BLE001 - of any driver
        _log_close("a connection could not be closed in order: %s", error)
        _drop(link)
    except BaseException:
        _drop(link)
        raise


def _drop(link: AsyncLink) -> None:
    try:
        link.drop()
    except Exception as error:  # noqa: BLE001 - of any driver
        _log_close("a connection could not be closed: %s", error)


def _log_close(message: str, error: BaseException) -> None:
    LOG.warning(message, type(error).__name__, extra=fields("connection_not_closed", error=type(error).__name__))


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _long_ago() -> float:
    return 0.0


def _closed(committed: bool | None) -> StoreClosedError:
    return StoreClosedError(
        "the store is closed: make a new gantry, or close it only when no tool is called any more", committed=committed
    )


_stores: weakref.WeakSet[RemoteStore] = weakref.WeakSet()


def _start_all_over() -> None:
    for store in [*_stores]:
        store._start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_over)


def _keep_for_ever(something: Any) -> None:
    # Nothing else outlives the interpreter, which closes connections on its way out; some tell the server so.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(something))
