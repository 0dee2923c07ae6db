"""Pools of connections, one request at a time on each: for callers that may block, and for those on one asyncio event loop.

The connection used last is used next. Waiting for one ends at the request's own deadline, a connection on which anything was
left half-done is closed, and when a server turns out to have gone away, so are those to it that nobody uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Protocol, TypeVar

from agent_gantry_state.errors import StoreError, StoreUnavailableError

__all__ = ["AsyncPool", "Pool"]

#: Seconds for which a connection that nobody uses is kept.
IDLE_SECONDS: Final = 600.0


class Connection(Protocol):
    """What a pool has to know of a connection."""

    #: When it was last used, on the monotonic clock; set by its pool.
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


class Pool(Generic[C]):
    """Connections for callers that may block. Any thread may use it.

    Args:
        connect: Makes one, by a deadline on the monotonic clock.
        limit: How many there may be at once.
        crowded: Makes the error of a caller for whom none came free in time.
    """

    def __init__(self, connect: Callable[[float], C], limit: int, crowded: Callable[[], StoreError]) -> None:
        self._connect, self._limit, self._crowded = connect, limit, crowded
        self._idle: deque[C] = deque()
        self._freed = threading.Condition()
        self._open = self._waiting = 0
        self._closed = False

    def use(self, work: Callable[[C], T], deadline: float) -> T:
        """What *work* makes of a connection that is nobody else's.

        Raises:
            StoreError: None came free, or could be made, by *deadline*.
        """
        connection = self._take(deadline)
        try:
            result = work(connection)
        except BaseException as error:
            self._give_after(connection, error)
            raise
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
                if self._make_room(deadline):
                    break
                continue
            if connection.is_usable():
                return connection
            self._lose(connection)
        try:
            return self._connect(deadline)
        except BaseException as error:
            self._count_off()
            if isinstance(error, StoreUnavailableError):
                self._empty()
            raise

    def _make_room(self, deadline: float) -> bool:
        """Wait until there may be one more, which counts from then on; False if there may be one that nobody uses."""
        with self._freed:
            # Counted before it is looked: whoever gives one back looks in the other order, so that none is overlooked.
            self._waiting += 1
            try:
                while not self._idle:
                    if self._open < self._limit:
                        self._open += 1
                        return True
                    if not self._freed.wait(max(deadline - time.monotonic(), 0.0)) and not self._idle:
                        raise self._crowded()
            finally:
                self._waiting -= 1
        return False

    def _give(self, connection: C) -> None:
        connection.used = time.monotonic()
        self._idle.append(connection)
        if self._closed:
            self._empty()
        if self._waiting:
            with self._freed:
                self._freed.notify()
        try:
            if self._idle[0].used < connection.used - IDLE_SECONDS:
                self._lose(self._idle.popleft())
        except IndexError:
            # Another thread has taken it.
            pass

    def _give_after(self, connection: C, error: BaseException) -> None:
        # What is no error of ours has come from anywhere, a signal perhaps.
        if isinstance(error, StoreError) and connection.is_usable():
            self._give(connection)
            return
        self._lose(connection)
        if isinstance(error, StoreUnavailableError):
            self._empty()

    def _lose(self, connection: C) -> None:
        try:
            connection.close()
        finally:
            self._count_off()

    def _empty(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._lose(connection)

    def _count_off(self) -> None:
        with self._freed:
            self._open -= 1
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

    async def use(self, work: Callable[[A], Awaitable[T]], deadline: float) -> T:
        """As `Pool.use`."""
        connection = await self._take(deadline)
        try:
            result = await work(connection)
        except BaseException as error:
            # What is no error of ours is mostly a cancellation.
            again = isinstance(error, StoreError) and connection.is_usable()
            self._give(connection, again)
            if not again and isinstance(error, StoreUnavailableError):
                self._empty()
            raise
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
        try:
            connection = await self._connect(deadline)
            self._used.add(connection)
        except BaseException as error:
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
