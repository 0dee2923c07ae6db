"""Connections to memcached for the callers on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from agent_gantry_state import steps as _steps
from agent_gantry_state.steps import Wait
from agent_gantry_state.stores.memcached_connection import (
    FAILURES,
    Connection,
    failed,
    left,
    new_socket,
    outlived,
    too_many,
)
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_wire import (
    Credentials,
    Disconnected,
    Kind,
    Refused,
    Replies,
    Request,
    greeting,
    read,
)
from agent_gantry_state.stores.network import within
from agent_gantry_state.stores.pool import AsyncPool

__all__ = ["AsyncConnection", "AsyncMemcachedLink"]

#: Bytes that are taken from the socket at once.
_CHUNK: Final = 65536


class AsyncConnection(Connection):
    """A connection that the running event loop watches from its beginning to its end, also between two requests.

    To have a socket watched for each reply anew costs as much as to read it, and a transport of asyncio's makes room for 256
    KB each time that something comes, and cannot be closed after its loop.

    Args:
        sock: The socket.
    """

    __slots__ = ("_answer", "_buffer", "_deadline", "_is_watched", "_kinds", "_loop", "_timer", "_timer_at", "lost")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._loop = asyncio.get_running_loop()
        #: What has come of the replies that are waited for, and how they are read.
        self._buffer = bytearray()
        self._kinds: tuple[Kind, ...] = ()
        #: Gets the replies, or the error in place of them.
        self._answer: asyncio.Future[list[Any] | Exception] | None = None
        #: When its time is over, and the timer that ends it; that may be the one of an earlier request.
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        #: Whether it has ended.
        self.lost = False
        try:
            self._loop.add_reader(sock, self._read)
        except NotImplementedError:
            # The loop that Windows has.
            self._is_watched = False
        else:
            self._is_watched = True

    def is_usable(self) -> bool:
        """As `Connection.is_usable`: what has come and the loop has not looked at is found as well."""
        return not self.lost and super().is_usable()

    async def asked(self, request: Request, deadline: float, is_alone: bool) -> Replies:
        """The replies to a request on this connection, which is nobody else's; *is_alone*: as for `atalk`."""
        if request.life not in (None, self.life):
            return outlived(request, self.life)
        began = time.monotonic()
        self.sent, self.busy = False, True
        try:
            answers = await self.atalk(request.payload, request.kinds, deadline, is_alone)
        except FAILURES as error:
            raise failed(error, request.server, self, deadline) from None
        return self.replied(request, answers, began)

    async def atalk(self, payload: bytes, kinds: tuple[Kind, ...], deadline: float, is_alone: bool = False) -> list[Any]:
        """`talk`, on the event loop. No task is cancelled at the deadline: the connection ends, and who waits is told.

        *is_alone* says whether no other request is under way, so that nobody is kept waiting by a look for the reply.
        """
        self._watch(deadline)
        if self.lost:
            raise Disconnected
        self._kinds, self._buffer, self.sent = kinds, bytearray(), True
        if not self._is_watched:
            return await self._atalk_unwatched(payload)
        self._answer, sent = None, 0
        try:
            sent = self.sock.send(payload)
            if is_alone and sent == len(payload):
                # A server nearby has mostly answered by now. Where others run as well, they can do so meanwhile.
                replies = read(kinds, self._buffer, self.sock.recv(_CHUNK))
                if replies is not None:
                    return replies
        except BlockingIOError:
            pass
        self._answer = answer = self._loop.create_future()
        if sent < len(payload):
            await self._send(payload[sent:])
        answers: list[Any] | Exception = await answer
        if isinstance(answers, Exception):
            raise answers
        return answers

    async def _atalk_unwatched(self, payload: bytes) -> list[Any]:
        await self._send(payload)
        answers: list[Any] | None = None
        while answers is None:
            answers = read(self._kinds, self._buffer, await self._loop.sock_recv(self.sock, _CHUNK))
        return answers

    async def _send(self, payload: bytes) -> None:
        try:
            await self._loop.sock_sendall(self.sock, payload)
        except GeneratorExit:
            # Closed, not cancelled: the loop would go on watching it, and take the next socket of its number for it.
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_writer(self.sock)
            raise

    def _read(self) -> None:
        """What the loop does when something has come."""
        answer = self._answer
        try:
            data = self.sock.recv(_CHUNK)
            if answer is None or answer.done():
                # Nobody asked: whatever it is, nobody else may take it for an answer.
                self.close()
                return
            answers = read(self._kinds, self._buffer, data)
        except BlockingIOError:
            return
        except Refused as refused:
            # An answer as well.
            answer.set_result(refused)  # type: ignore[union-attr]
        except FAILURES as error:
            # Whoever waits closes it; it may still be sending.
            self._unwatch()
            self.end()
            if answer is not None and not answer.done():
                answer.set_result(error)
        else:
            if answers is not None:
                answer.set_result(answers)

    def _unwatch(self) -> None:
        self.lost = True
        if self._is_watched and not self._loop.is_closed():
            self._loop.remove_reader(self.sock)
        self._is_watched = False

    def _watch(self, deadline: float) -> None:
        """Have it ended at *deadline*, if it is busy then.

        A timer that goes off earlier is left to do it, for the next request mostly comes long before any goes off.
        """
        seconds = left(deadline)
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._start_timer(seconds)

    def _start_timer(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)
        self._timer_at = self._deadline

    def _look(self) -> None:
        """What the timer does. Nobody stops it when the connection is closed, as that may be done by another thread."""
        self._timer, self._timer_at = None, math.inf
        if self.busy:
            seconds = self._deadline - time.monotonic()
            if seconds > 0:
                self._start_timer(seconds)
            else:
                self.expired = True
                self.end()

    def end(self) -> None:
        """Let whoever waits for a reply find the connection closed."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it, on its event loop or after that was closed."""
        self._unwatch()
        super().close()

    def drop(self) -> None:
        """End it from any thread, without the help of its event loop."""
        if self.pid != os.getpid():
            # It is a parent's, which goes on using it.
            return
        if self._loop.is_closed() or not (self.busy or self._is_watched):
            self.close()
            return
        # The loop, should it run again, closes it: closed here, its number would go to another socket that the loop then
        # took for this one, and nobody would ever hear of the end.
        self.end()
        with contextlib.suppress(RuntimeError):  # it was closed just now
            self._loop.call_soon_threadsafe(self._close_idle)

    def _close_idle(self) -> None:
        if not self.busy:
            self.close()


class AsyncMemcachedLink:
    """Connections of one event loop; its arguments are those of `MemcachedLink`."""

    def __init__(
        self,
        servers: Iterable[Server],
        credentials: Credentials | None,
        connect_timeout: float,
        max_connections: int,
    ) -> None:
        self._pools = {
            server: AsyncPool(
                partial(_connected, server, credentials, connect_timeout), max_connections, partial(too_many, server)
            )
            for server in servers
        }
        # A loop that nobody closes tells nobody of its end.
        weakref.finalize(self, _drop, [*self._pools.values()])

    async def ask(self, request: Any, deadline: float, /) -> Any:
        """Answer a `Request`, or wait."""
        if not isinstance(request, Request):
            assert isinstance(request, Wait)  # noqa: S101
            return await request.await_()
        pool = self._pools[request.server]
        return await pool.use(lambda connection: connection.asked(request, deadline, pool.is_alone), deadline)

    async def close(self) -> None:
        """Close every connection that nobody uses; the others are closed after use."""
        for pool in self._pools.values():
            pool.close()

    def drop(self) -> None:
        """Part from the servers without the event loop."""
        _drop(self._pools.values())


def _drop(pools: Iterable[AsyncPool[AsyncConnection]]) -> None:
    for pool in pools:
        pool.drop()


async def _connected(
    server: Server, credentials: Credentials | None, connect_timeout: float, deadline: float
) -> AsyncConnection:
    until = min(deadline, time.monotonic() + connect_timeout)
    try:
        connection = AsyncConnection(await _aopen(server, until))
        try:
            # From now on it ends in time.
            connection.busy = True
            connection.life = await _steps.arun(
                greeting(server, credentials), lambda said: connection.atalk(said[0], said[1], until)
            )
            connection.busy = False
        except BaseException:
            connection.close()
            if connection.expired:
                raise TimeoutError from None
            raise
    except FAILURES as error:
        raise failed(error, server, None, until) from None
    return connection


async def _aopen(server: Server, until: float) -> socket.socket:
    if server.port is None:
        return await within(_adialled(socket.AF_UNIX, server.host), _left(until), socket.socket.close)
    error: OSError | None = None
    loop = asyncio.get_running_loop()
    found = await within(loop.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM), _left(until))
    for family, _, _, _, address in found:
        try:
            return await within(_adialled(family, address), _left(until), socket.socket.close)
        except OSError as failed:
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


def _left(until: float) -> float:
    return max(until - time.monotonic(), 0.001)
