"""Links of connections that the store makes itself, a pool for each server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from agent_gantry_state.errors import StoreError, StoreTimeoutError
from agent_gantry_state.stores.pool import AsyncPool, Pool
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
        self._pools: dict[Node | None, Pool[Wire]] = {}
        self._lock = threading.Lock()

    def ask(self, request: Request, deadline: float, /) -> list[Any]:
        """The server's replies."""
        until = deadline if request.within is None else min(deadline, time.monotonic() + request.within)
        return self.exchange(request.node, packed(request.commands), len(request.commands), until)

    def exchange(self, node: Node | None, payload: bytes, count: int, deadline: float) -> list[Any]:
        """What a server replies to commands that are packed already, so many of them."""
        pool = self._pools.get(node) or self._pool(node)
        return pool.use(Wire.exchange, deadline, payload, count, deadline)

    def close(self) -> None:
        """Close every connection that nobody uses; one that is in use is closed after that."""
        with self._lock:
            for pool in self._pools.values():
                pool.close()

    def _pool(self, node: Node | None) -> Pool[Wire]:
        assert node is not None, "a request of our own links names a server"  # noqa: S101

        def connect(deadline: float) -> Wire:
            return Wire(node, self._access(node), min(deadline, time.monotonic() + self._connect_timeout))

        with self._lock:
            return self._pools.setdefault(node, Pool(connect, self._limit, _crowded))


class ALink:
    """Connections of the running event loop.

    Args:
        access: How to be let in by a server.
        limit: At most so many connections to each.
        connect_timeout: Seconds that a new connection may take.
    """

    def __init__(self, access: Accesses, limit: int, connect_timeout: float) -> None:
        self._access, self._limit, self._connect_timeout = access, limit, connect_timeout
        self._pools: dict[Node | None, AsyncPool[AWire]] = {}

    async def ask(self, request: Request, deadline: float, /) -> list[Any]:
        """The server's replies."""
        pool = self._pools.get(request.node) or self._pool(request.node)
        payload, count = packed(request.commands), len(request.commands)
        until = deadline if request.within is None else min(deadline, time.monotonic() + request.within)
        return await pool.use(AWire.exchange, until, payload, count, until)

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

    def _pool(self, node: Node | None) -> AsyncPool[AWire]:
        assert node is not None, "a request of our own links names a server"  # noqa: S101

        async def connect(deadline: float) -> AWire:
            soon = min(deadline, time.monotonic() + self._connect_timeout)
            return await AWire.connected(node, self._access(node), soon)

        pool = self._pools[node] = AsyncPool(connect, self._limit, _crowded)
        return pool


def _crowded() -> StoreError:
    return StoreTimeoutError("every connection to Redis was in use until the time was over: set a greater max_connections")
