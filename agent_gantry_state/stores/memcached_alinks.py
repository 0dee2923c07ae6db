"""Connections to memcached for the callers on one event loop, who share them."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import socket
import time
import weakref
from collections.abc import Awaitable, Iterable
from typing import Any

from agent_gantry_state import steps as _steps
from agent_gantry_state.errors import StoreError
from agent_gantry_state.stores.memcached_connection import CHUNK, FAILURES, failed, new_socket, too_many
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_shared import SharedConnection
from agent_gantry_state.stores.memcached_wire import Credentials, Disconnected, Kind, Replies, Request, greeting, read
from agent_gantry_state.stores.network import within
from agent_gantry_state.stores.pool import IDLE_SECONDS, SILENT_REQUESTS, Silence

__all__ = ["AsyncMemcachedLink"]


class AsyncMemcachedLink:
    """Connections of one event loop; its arguments are those of `MemcachedLink`."""

    def __init__(
        self,
        servers: Iterable[Server],
        credentials: Credentials | None,
        connect_timeout: float,
        max_connections: int,
    ) -> None:
        self._shared = {server: _Shared(server, credentials, connect_timeout, max_connections) for server in servers}
        # A loop that nobody closes tells nobody of its end.
        weakref.finalize(self, _drop, [*self._shared.values()])

    def ask(self, request: Any, deadline: float, /) -> Awaitable[Any]:
        """Answer a `Request`, or wait."""
        if type(request) is not Request:
            return request.await_()  # type: ignore[no-any-return]
        return self._shared[request.server].ask(request, deadline)

    def start(self, request: Any, deadline: float, /) -> Awaitable[Any]:
        """`ask` for who does not give up, whatever cancels whoever has asked."""
        if type(request) is not Request:
            return request.await_()  # type: ignore[no-any-return]
        return self._shared[request.server].start(request, deadline)

    async def close(self) -> None:
        """Close every connection that nobody uses; the others are closed after use."""
        for shared in self._shared.values():
            shared.close()

    def drop(self) -> None:
        """Part from the servers without the event loop."""
        _drop(self._shared.values())


class _Shared:
    """The connections to one server.

    One carries everything, as long as nothing large is under way on it; then another one is opened.
    """

    def __init__(
        self, server: Server, credentials: Credentials | None, connect_timeout: float, max_connections: int
    ) -> None:
        self._server = server
        self._credentials = credentials
        self._connect_timeout = connect_timeout
        self._limit = max_connections
        #: Those that take requests, the one that is asked first in front; and those that end after what is under way.
        self._open: list[SharedConnection] = []
        self._retired: set[SharedConnection] = set()
        self._connecting = 0
        self._waiters: list[asyncio.Future[StoreError | None]] = []
        self._silence = Silence()
        self._closed = False

    async def ask(self, request: Request, deadline: float) -> Replies:
        """The replies to a request."""
        connection = None if self._silence.count >= SILENT_REQUESTS else self._free()
        if connection is None:
            connection = await self._any(deadline)
        answer = connection.ask(request, deadline)
        if self._closed:
            connection.retire()
        try:
            return await answer
        except (asyncio.CancelledError, GeneratorExit):
            connection.abandon(answer)
            raise

    def start(self, request: Request, deadline: float) -> Awaitable[Replies]:
        """`ask` for who does not give up: no coroutine, if a connection is there."""
        if self._silence.count >= SILENT_REQUESTS or (connection := self._free()) is None:
            return self.ask(request, deadline)
        return connection.ask(request, deadline)

    def _free(self) -> SharedConnection | None:
        """A connection that would answer soon; None if there is none."""
        if len(self._open) > 1:
            self._trim()
        for connection in self._open:
            if connection.is_free():
                return connection
        return None

    async def _any(self, deadline: float) -> SharedConnection:
        """A connection, which is made if there is none that would answer soon and may be another one."""
        if self._silence.count >= SILENT_REQUESTS:
            await self._silence.arefuse()
        while (connection := self._free()) is None:
            is_full = len(self._open) + len(self._retired) + self._connecting >= self._limit
            if is_full and self._open:
                return self._least()
            if not is_full and (self._open or not self._connecting):
                return await self._connect(deadline)
            await self._turn(deadline)
        return connection

    def _least(self) -> SharedConnection:
        return min(self._open, key=SharedConnection.load)

    async def _connect(self, deadline: float) -> SharedConnection:
        self._connecting += 1
        began = time.monotonic()
        try:
            connection = await self._connected(min(deadline, began + self._connect_timeout))
        except BaseException as error:
            self._connecting -= 1
            self._silence.note(error, began)
            if not isinstance(error, StoreError):
                self._wake(None)
                raise
            # One whose own time was over says nothing of the others'.
            self._wake(error if time.monotonic() < deadline else None)
            if self._open and not self._silence.count:
                return self._least()
            raise
        self._connecting -= 1
        self._wake(None)
        if connection.is_lost:
            raise failed(Disconnected(), self._server, deadline, sent=False)
        self._open.append(connection)
        return connection

    async def _connected(self, until: float) -> SharedConnection:
        left = max(until - time.monotonic(), 0.001)
        try:
            return await within(self._greeted(), left, SharedConnection.close)
        except FAILURES as error:
            raise failed(error, self._server, until, connected=False) from None

    async def _greeted(self) -> SharedConnection:
        sock = await _aopen(self._server)
        try:
            life = await _steps.arun(greeting(self._server, self._credentials), lambda said: _atalk(sock, *said))
            connection = SharedConnection(sock, self._silence, self._part)
        except BaseException:
            sock.close()
            raise
        connection.life = life
        return connection

    async def _turn(self, deadline: float) -> None:
        """Wait until the connection that is being made is there, or is not to be had, or until there may be another one."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[StoreError | None] = loop.create_future()
        late: StoreError = too_many(self._server)
        if self._connecting:
            late = failed(TimeoutError(), self._server, deadline, connected=False)
        timer = loop.call_later(max(deadline - time.monotonic(), 0.0), _answer, waiter, late)
        self._waiters.append(waiter)
        try:
            error = await waiter
        finally:
            timer.cancel()
        if error is not None:
            raise error

    def _wake(self, error: StoreError | None) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            # Of a loop that was closed over those who wait, nobody waits any more.
            with contextlib.suppress(RuntimeError):
                _answer(waiter, copy.copy(error))

    def _part(self, connection: SharedConnection) -> None:
        """Give no more requests to a connection; it may have ended."""
        if connection in self._open:
            self._open.remove(connection)
        if connection.is_lost:
            self._retired.discard(connection)
            self._wake(None)
        else:
            self._retired.add(connection)

    def _trim(self) -> None:
        """Close what was opened beside something large and is not needed any more."""
        last = self._open[-1]
        if last.used < time.monotonic() - IDLE_SECONDS and not last.load():
            last.close()

    def close(self) -> None:
        """Close every connection on which nothing is asked; the others are closed after that."""
        self._closed = True
        for connection in self._open[:]:
            connection.retire()

    def drop(self) -> None:
        """Close all without the help of the event loop."""
        self._closed = True
        for connection in (*self._open, *self._retired):
            connection.drop()


def _drop(several: Iterable[_Shared]) -> None:
    for shared in several:
        shared.drop()


def _answer(waiter: asyncio.Future[StoreError | None], answer: StoreError | None) -> None:
    if not waiter.done():
        waiter.set_result(answer)


async def _atalk(sock: socket.socket, payload: bytes, kinds: tuple[Kind, ...]) -> list[Any]:
    """What is answered on a connection that nobody shares yet."""
    loop, buffer = asyncio.get_running_loop(), bytearray()
    await loop.sock_sendall(sock, payload)
    while (answers := read(kinds, buffer, await loop.sock_recv(sock, CHUNK))) is None:
        pass
    return answers


async def _aopen(server: Server) -> socket.socket:
    if server.port is None:
        return await _adialled(socket.AF_UNIX, server.host)
    error: OSError | None = None
    loop = asyncio.get_running_loop()
    for family, _, _, _, address in await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM):
        try:
            return await _adialled(family, address)
        except OSError as failed:
            # "localhost" is two addresses, of which the server may listen on the second one alone.
            error = failed
    raise error or OSError("no address")


async def _adialled(family: int, address: Any) -> socket.socket:
    sock = new_socket(family)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
