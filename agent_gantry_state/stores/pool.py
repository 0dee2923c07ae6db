"""Pools of connections, one request at a time on each: for callers that may block, and for those on one asyncio event loop.

The connection used last is used next. Waiting for one ends at the request's own deadline, a connection on which anything was
left half-done is closed, and when a server turns out to have gone away, so are those to it that nobody uses. When one has
stayed silent for some requests in a row, the next ones fail at once, but for one now and then that tries.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from agent_gantry_state.errors import StoreError, StoreUnavailableError

__all__ = ["LONGEST_PAUSE", "SILENT_REQUESTS", "AsyncPool", "Pool", "Silence"]

#: Seconds for which a connection that nobody uses is kept.
IDLE_SECONDS: Final = 600.0
#: Requests in a row that wait in vain before the next ones fail at once.
SILENT_REQUESTS: Final = 3
#: Seconds for which they do until one tries again, the first time and at most.
_FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0
#: Seconds that have to be waited in vain to count: who fails at once keeps nobody waiting.
_SILENCE: Final = 0.25


class Connection(Protocol):
    """What a pool has to know of a connection, to which there may be weak references."""

    #: Since when it is used, or when it was used last, on the monotonic clock; set by its pool.
    used: float

    def is_usable(self) -> bool:
        """Whether nothing was left half-done on it and its server is there, as far as can be told without asking."""
        ...

    def close(self) -> None:
        """Close it, also in the middle of a request."""
        ...


class AsyncConnection(Connection, Protocol):
    """A connection that belongs to an event loop."""

    def drop(self) -> None:
        """Close it without the help of the event loop, which may be closed."""
        ...


C = TypeVar("C", bound=Connection)
A = TypeVar("A", bound=AsyncConnection)
T = TypeVar("T")


class Silence:
    """Whether a server has stopped answering. Any thread may ask."""

    __slots__ = ("_again", "_lock", "count")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Requests in a row that waited in vain; set to 0 by whoever had an answer.
        self.count = 0
        #: When the next one may try, on the monotonic clock.
        self._again = 0.0

    def refuse(self) -> None:
        """Refuse to wait for a server that stays silent, after `SILENT_REQUESTS`, unless it is time to try again.

        Raises:
            StoreUnavailableError: It is not.
        """
        with self._lock:
            now = time.monotonic()
            if now < self._again:
                raise StoreUnavailableError(
                    "the store has stayed silent, so that it was not asked this time; it is asked again within a second",
                    committed=False,
                )
            pause = _FIRST_PAUSE * 2.0 ** min(self.count - SILENT_REQUESTS, 10)
            self._again = now + min(pause, LONGEST_PAUSE)

    async def arefuse(self) -> None:
        """`refuse`, for a caller on an event loop."""
        try:
            self.refuse()
        except StoreUnavailableError:
            # Whoever tries again and again lets others run meanwhile, those who ask the server among them.
            await asyncio.sleep(0)
            raise

    def note(self, error: BaseException, began: float) -> None:
        """Note how a request ended to which it gave no answer."""
        now = time.monotonic()
        # What is no error of ours is mostly a cancellation: nobody has waited for long enough to know.
        if isinstance(error, StoreError) and error.transient and now - began >= _SILENCE:
            with self._lock:
                self.count += 1
                # And from the beginning of the last try for longer: that may go on waiting when the silence is over.
                self._again = max(self._again, now + _FIRST_PAUSE)


class _Place:
    """Counts as a connection as long as that is being made."""


class Pool(Generic[C]):
    """Connections for callers that may block. Any thread may use it.

    A signal may end a caller anywhere, so what counts as open is what there is: a connection that is not in anybody's hands
    any more is none, whether it was given back or not.

    Args:
        connect: Makes one, by a deadline on the monotonic clock.
        limit: How many there may be at once.
        crowded: Makes the error of a caller for whom none came free in time.
    """

    def __init__(self, connect: Callable[[float], C], limit: int, crowded: Callable[[], StoreError]) -> None:
        self._connect, self._limit, self._crowded = connect, limit, crowded
        self._idle: deque[C] = deque()
        self._lock = threading.RLock()
        # It is the lock itself that is entered: a signal may come when a condition has just taken it.
        self._freed = threading.Condition(self._lock)
        self._open: weakref.WeakSet[C | _Place] = weakref.WeakSet()
        self._waiting = 0
        self._closed = False
        self._silence = Silence()

    def use(self, work: Callable[..., T], deadline: float, *also: Any) -> T:
        """What *work* makes of a connection that is nobody else's, which it is given before *also*.

        Raises:
            StoreError: None came free, or could be made, by *deadline*.
        """
        if self._silence.count >= SILENT_REQUESTS:
            self._silence.refuse()
        connection = self._take(deadline)
        began = connection.used = time.monotonic()
        try:
            result = work(connection, *also)
        except BaseException as error:
            self._give_after(connection, error, began)
            raise
        self._silence.count = 0
        self._give(connection)
        return result

    def close(self) -> None:
        """Close every connection that nobody uses; one that is in use is closed after that."""
        self._closed = True
        self._empty()

    def _take(self, deadline: float) -> C:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                if (place := self._make_room(deadline)) is not None:
                    break
                continue
            if connection.is_usable():
                return connection
            self._lose(connection)
        began = time.monotonic()
        try:
            connection = self._connect(deadline)
            with self._lock:
                self._open.add(connection)
                self._open.discard(place)
        except BaseException as error:
            self._silence.note(error, began)
            self._count_off(place)
            if isinstance(error, StoreUnavailableError):
                self._empty()
            raise
        return connection

    def _make_room(self, deadline: float) -> _Place | None:
        """Wait until there may be one more, for which there is a place from then on; None if one may be there that nobody
        uses."""
        with self._lock:
            # Counted before it is looked: whoever gives one back looks in the other order, so that none is overlooked.
            self._waiting += 1
            try:
                while not self._idle:
                    if len(self._open) < self._limit:
                        place = _Place()
                        self._open.add(place)
                        return place
                    if not self._freed.wait(max(deadline - time.monotonic(), 0.0)) and not self._idle:
                        raise self._crowded()
            finally:
                self._waiting -= 1
        return None

    def _give(self, connection: C) -> None:
        self._idle.append(connection)
        if self._closed:
            self._empty()
        if self._waiting:
            with self._lock:
                self._freed.notify()
        try:
            if self._idle[0].used < connection.used - IDLE_SECONDS:
                self._lose(self._idle.popleft())
        except IndexError:
            # Another thread has taken it.
            pass

    def _give_after(self, connection: C, error: BaseException, began: float) -> None:
        # What is no error of ours has come from anywhere, a signal perhaps.
        if isinstance(error, StoreError) and connection.is_usable():
            self._silence.count = 0
            self._give(connection)
            return
        self._silence.note(error, began)
        self._lose(connection)
        if isinstance(error, StoreUnavailableError):
            self._empty()

    def _lose(self, connection: C) -> None:
        try:
            connection.close()
        finally:
            self._count_off(connection)

    def _empty(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._lose(connection)

    def _count_off(self, gone: C | _Place) -> None:
        with self._lock:
            self._open.discard(gone)
            self._freed.notify()


class AsyncPool(Generic[A]):
    """Connections for the callers on one event loop, on which nothing of this is ever interrupted but its waits.

    Args:
        connect: Makes one, by a deadline on the monotonic clock.
        limit: How many there may be at once.
        crowded: Makes the error of a caller for whom none came free in time.
    """

    def __init__(self, connect: Callable[[float], Awaitable[A]], limit: int, crowded: Callable[[], StoreError]) -> None:
        self._connect, self._limit, self._crowded = connect, limit, crowded
        self._idle: deque[A] = deque()
        self._used: set[A] = set()
        self._connecting = 0
        self._waiters: deque[asyncio.Future[bool]] = deque()
        self._closed = False
        self._silence = Silence()

    async def use(self, work: Callable[..., Awaitable[T]], deadline: float, *also: Any) -> T:
        """As `Pool.use`."""
        if self._silence.count >= SILENT_REQUESTS:
            await self._silence.arefuse()
        connection = await self._take(deadline)
        began = time.monotonic()
        try:
            result = await work(connection, *also)
        except BaseException as error:
            # What is no error of ours is mostly a cancellation.
            again = isinstance(error, StoreError) and connection.is_usable()
            if again:
                self._silence.count = 0
            else:
                self._silence.note(error, began)
            self._give(connection, again)
            if not again and isinstance(error, StoreUnavailableError):
                self._empty()
            raise
        self._silence.count = 0
        self._give(connection, True)
        return result

    def close(self) -> None:
        """Close every connection that nobody uses; one that is in use is closed after that."""
        self._closed = True
        self._empty()

    def drop(self) -> None:
        """Close all without the help of the event loop."""
        self._closed = True
        for connection in (*self._idle, *self._used):
            connection.drop()
        self._idle.clear()
        self._used.clear()

    async def _take(self, deadline: float) -> A:
        while True:
            while self._idle:
                connection = self._idle.pop()
                if connection.is_usable():
                    self._used.add(connection)
                    return connection
                connection.close()
            if len(self._used) + self._connecting < self._limit:
                break
            await self._turn(deadline)
        self._connecting += 1
        began = time.monotonic()
        try:
            connection = await self._connect(deadline)
            self._used.add(connection)
        except BaseException as error:
            self._silence.note(error, began)
            if isinstance(error, StoreUnavailableError):
                self._empty()
            # One more may be made now, in its place.
            self._connecting -= 1
            self._wake()
            raise
        self._connecting -= 1
        return connection

    def _give(self, connection: A, again: bool) -> None:
        self._used.discard(connection)
        if again and not self._closed:
            connection.used = time.monotonic()
            self._idle.append(connection)
            if self._idle[0].used < connection.used - IDLE_SECONDS:
                self._idle.popleft().close()
        else:
            connection.close()
        self._wake()

    def _empty(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _turn(self, deadline: float) -> None:
        """Wait until there may be a connection."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._crowded()
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(left, _answer, waiter, False)
        self._waiters.append(waiter)
        try:
            in_time = await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                # It was woken for a connection that it will not take.
                self._wake()
            raise
        finally:
            timer.cancel()
        if not in_time:
            raise self._crowded()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                # Of a loop that was closed over those who wait, nobody waits any more.
                with contextlib.suppress(RuntimeError):
                    waiter.set_result(True)
                return


def _answer(waiter: asyncio.Future[bool], answer: bool) -> None:
    if not waiter.done():
        waiter.set_result(answer)
