"""Pools of connections that the store makes itself, one for each server, for callers that may block and for event loops."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from agent_gantry_state.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from agent_gantry_state.stores.redis_wire import Access, AWire, Node, Request, Wire, packed

__all__ = ["ALink", "Link"]

#: How to be let in by a server.
Accesses = Callable[[Node], Access]


class Link:
    """Connections for callers that may block. Any thread may use it.

    Args:
        access: How to be let in by a server.
        limit: At most so many connections to each.
        connect_timeout: Seconds that a new connection may take.
    """

    def __init__(self, access: Accesses, limit: int, connect_timeout: float) -> None:
        self._access, self._limit, self._connect_timeout = access, limit, connect_timeout
        self._pools: dict[Node | None, _Pool] = {}
        self._lock = threading.Lock()

    def ask(self, request: Request, deadline: float, /) -> list[Any]:
        """The server's replies."""
        pool = self._pools.get(request.node) or self._pool(request.node)
        payload = packed(request.commands)
        wire = pool.take(deadline)
        try:
            replies = wire.exchange(payload, len(request.commands), deadline)
        except BaseException as error:
            pool.lose(wire, isinstance(error, StoreUnavailableError))
            raise
        pool.give(wire)
        return replies

    def close(self) -> None:
        """Close every connection that nobody uses; one that is in use is closed after that."""
        with self._lock:
            for pool in self._pools.values():
                pool.close()

    def _pool(self, node: Node | None) -> _Pool:
        assert node is not None, "a request of our own links names a server"  # noqa: S101

        def connect(deadline: float) -> Wire:
            return Wire(node, self._access(node), min(deadline, time.monotonic() + self._connect_timeout))

        with self._lock:
            return self._pools.setdefault(node, _Pool(connect, self._limit))


class _Pool:
    """Connections to one server."""

    def __init__(self, connect: Callable[[float], Wire], limit: int) -> None:
        self._connect, self._limit = connect, limit
        self._idle: deque[Wire] = deque()
        self._freed = threading.Condition()
        self._open = self._waiting = 0
        self._closed = False

    def take(self, deadline: float) -> Wire:
        """A connection that is nobody else's."""
        try:
            return self._idle.pop()
        except IndexError:
            pass
        with self._freed:
            # Counted before it is looked: whoever gives one back looks in the other order, so that none is overlooked.
            self._waiting += 1
            try:
                while True:
                    if self._idle:
                        try:
                            return self._idle.pop()
                        except IndexError:
                            continue
                    if self._open < self._limit:
                        self._open += 1
                        break
                    if not self._freed.wait(max(deadline - time.monotonic(), 0.0)) and not self._idle:
                        raise _crowded()
            finally:
                self._waiting -= 1
        try:
            return self._connect(deadline)
        except BaseException:
            self._count_off()
            raise

    def give(self, wire: Wire) -> None:
        """Give one back that is in order."""
        self._idle.append(wire)
        if self._closed:
            self.close()
        if self._waiting:
            with self._freed:
                self._freed.notify()

    def lose(self, wire: Wire, all_others: bool) -> None:
        """Give one back that may not be used again; if its server has gone away, neither may those that are idle."""
        wire.close()
        self._count_off()
        if all_others:
            self._empty()

    def close(self) -> None:
        self._closed = True
        self._empty()

    def _empty(self) -> None:
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return
            self._count_off()

    def _count_off(self) -> None:
        with self._freed:
            self._open -= 1
            self._freed.notify()


class ALink:
    """Connections of the running event loop.

    Args:
        access: How to be let in by a server.
        limit: At most so many connections to each.
        connect_timeout: Seconds that a new connection may take.
    """

    def __init__(self, access: Accesses, limit: int, connect_timeout: float) -> None:
        self._access, self._limit, self._connect_timeout = access, limit, connect_timeout
        self._pools: dict[Node | None, _APool] = {}

    async def ask(self, request: Request, deadline: float, /) -> list[Any]:
        """The server's replies."""
        pool = self._pools.get(request.node) or self._pool(request.node)
        payload = packed(request.commands)
        wire = await pool.take(deadline)
        try:
            replies = await wire.exchange(payload, len(request.commands), deadline)
        except BaseException as error:
            pool.lose(wire, isinstance(error, StoreUnavailableError))
            raise
        pool.give(wire)
        return replies

    async def close(self) -> None:
        """Close every connection that nobody uses; one that is in use is closed after that."""
        for pool in self._pools.values():
            pool.close()
        # The event loop closes them in its next round.
        await asyncio.sleep(0)

    def drop(self) -> None:
        """Close the sockets without the event loop."""
        for pool in self._pools.values():
            pool.drop()

    def _pool(self, node: Node | None) -> _APool:
        assert node is not None, "a request of our own links names a server"  # noqa: S101

        async def connect(deadline: float) -> AWire:
            soon = min(deadline, time.monotonic() + self._connect_timeout)
            return await AWire.connected(node, self._access(node), soon)

        pool = self._pools[node] = _APool(connect, self._limit)
        return pool


class _APool:
    """Connections to one server. It belongs to an event loop, on which nothing of it is ever interrupted but its waits."""

    def __init__(self, connect: Callable[[float], Any], limit: int) -> None:
        self._connect, self._limit = connect, limit
        self._idle: list[AWire] = []
        self._used: set[AWire] = set()
        self._connecting = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    async def take(self, deadline: float) -> AWire:
        """A connection that is nobody else's."""
        while True:
            while self._idle:
                wire = self._idle.pop()
                if not wire.lost:
                    self._used.add(wire)
                    return wire
            if len(self._used) + self._connecting < self._limit:
                break
            await self._wait(deadline)
        self._connecting += 1
        try:
            made: AWire = await self._connect(deadline)
        except BaseException:
            self._connecting -= 1
            self._wake()
            raise
        self._connecting -= 1
        self._used.add(made)
        return made

    def give(self, wire: AWire) -> None:
        """Give one back that is in order."""
        self._used.discard(wire)
        if self._closed:
            wire.close()
        else:
            self._idle.append(wire)
        self._wake()

    def lose(self, wire: AWire, all_others: bool) -> None:
        """Give one back that may not be used again; if its server has gone away, neither may those that are idle."""
        wire.close()
        self._used.discard(wire)
        if all_others:
            self._empty()
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._empty()

    def drop(self) -> None:
        self._closed = True
        for wire in (*self._idle, *self._used):
            wire.drop()
        self._idle.clear()
        self._used.clear()

    def _empty(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def _wait(self, deadline: float) -> None:
        """Wait until there may be a connection."""
        loop = asyncio.get_running_loop()
        left = deadline - time.monotonic()
        if left <= 0:
            raise _crowded()
        waiter = loop.create_future()
        timer = loop.call_later(left, _end, waiter)
        self._waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was woken for a connection that it will not take.
                self._wake()
            raise
        finally:
            timer.cancel()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


def _end(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(_crowded())


def _crowded() -> StoreError:
    return StoreTimeoutError("every connection to Redis was in use until the time was over: set a greater max_connections")
