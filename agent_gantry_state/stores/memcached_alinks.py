"""Connections to memcached for the callers on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any, TypeVar

from agent_gantry_state import steps as _steps
from agent_gantry_state.steps import Wait
from agent_gantry_state.stores.memcached_connection import (
    FAILURES,
    Connection,
    Credentials,
    failed,
    lost_number,
    new_socket,
    too_many,
)
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_wire import Replies, Request, exchange, greeting

__all__ = ["AsyncMemcachedLink"]

T = TypeVar("T")


class AsyncMemcachedLink:
    """Connections of one event loop; its arguments are those of `MemcachedLink`."""

    def __init__(
        self, servers: Iterable[Server], credentials: Credentials, connect_timeout: float, max_connections: int
    ) -> None:
        self._credentials = credentials
        self._connect_timeout = connect_timeout
        self._pools = {server: _Pool(max_connections) for server in servers}
        # A loop that nobody closes tells nobody of its end.
        weakref.finalize(self, _close_idle, [*self._pools.values()])

    async def ask(self, request: Any, deadline: float, /) -> Any:
        """Answer a `Request`, or wait."""
        if not isinstance(request, Request):
            assert isinstance(request, Wait)  # noqa: S101
            return await request.await_()
        pool = self._pools[request.server]
        if not await pool.enter(deadline):
            raise too_many(request.server)
        try:
            connection = pool.taken() or await self._connected(request.server, deadline)
            pool.used.add(connection)
            try:
                lost = lost_number(request, connection.life)
                if lost is not None:
                    answers = lost.answers
                else:
                    connection.sent = False
                    try:
                        with _expires(connection, deadline):
                            answers = await _steps.arun(exchange(request), connection.aio())
                    except FAILURES as error:
                        raise failed(error, request.server, connection, deadline) from None
            except BaseException:
                connection.close()
                raise
            finally:
                pool.used.discard(connection)
            pool.give(connection)
            return Replies(answers, connection.life)
        finally:
            pool.leave()

    async def _connected(self, server: Server, deadline: float) -> Connection:
        until = min(deadline, time.monotonic() + self._connect_timeout)
        try:
            connection = Connection(await _aopen(server, until))
            try:
                with _expires(connection, until):
                    connection.life = await _steps.arun(greeting(server, self._credentials), connection.aio())
            except BaseException:
                connection.close()
                if connection.expired:
                    raise TimeoutError from None
                raise
        except FAILURES as error:
            raise failed(error, server, None, until) from None
        return connection

    async def close(self) -> None:
        """Close every connection; those that are in use end at once, and whoever uses them closes them."""
        for pool in self._pools.values():
            pool.close()

    def drop(self) -> None:
        """Close the sockets, which needs no event loop."""
        for pool in self._pools.values():
            pool.close()
            for connection in [*pool.used]:
                connection.close()


class _Pool:
    """The connections of one event loop to one server, at most *room* of them."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._idle: list[Connection] = []
        self._waiters: deque[asyncio.Future[bool]] = deque()
        self._closed = False
        self.used: set[Connection] = set()

    async def enter(self, deadline: float) -> bool:
        """Whether there was room for one more in time. Who comes in has to leave."""
        if self._room > 0:
            self._room -= 1
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.append(waiter)
        timer = loop.call_later(deadline - time.monotonic(), _answer, waiter, False)
        try:
            return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.leave()
            raise
        finally:
            timer.cancel()

    def leave(self) -> None:
        """Make room for the next one."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return
        self._room += 1

    def taken(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_stale():
                return connection
            connection.close()
        return None

    def give(self, connection: Connection) -> None:
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    def close_idle(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def close(self) -> None:
        self.close_idle()
        for connection in [*self.used]:
            connection.end()


def _close_idle(pools: list[_Pool]) -> None:
    for pool in pools:
        pool.close_idle()


def _answer(waiter: asyncio.Future[bool], answer: bool) -> None:
    if not waiter.done():
        waiter.set_result(answer)


@contextlib.contextmanager
def _expires(connection: Connection, deadline: float) -> Iterator[None]:
    """End a connection at the deadline. No task is cancelled: the event loop finds the connection closed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    timer = asyncio.get_running_loop().call_later(left, connection.expire)
    try:
        yield
    finally:
        timer.cancel()


async def _aopen(server: Server, until: float) -> socket.socket:
    if server.port is None:
        return await _adialled(socket.AF_UNIX, server.host, until)
    error: OSError | None = None
    loop = asyncio.get_running_loop()
    found = await _within(loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM), until)
    for family, _, _, _, address in found:
        try:
            return await _adialled(family, address, until)
        except OSError as failed:
            error = failed
    raise error or OSError("no address")


async def _adialled(family: int, address: Any, until: float) -> socket.socket:
    sock = new_socket(family)
    try:
        sock.setblocking(False)
        await _within(asyncio.get_running_loop().sock_connect(sock, address), until)
    except BaseException:
        sock.close()
        raise
    return sock


async def _within(awaitable: Awaitable[T], until: float) -> T:
    try:
        return await asyncio.wait_for(awaitable, max(until - time.monotonic(), 0.001))
    except asyncio.TimeoutError:
        raise TimeoutError from None
