"""Connections to memcached for the callers on one event loop."""

from __future__ import annotations

import asyncio
import socket
import time
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

from agent_gantry_state import steps as _steps
from agent_gantry_state.steps import Wait
from agent_gantry_state.stores.memcached_connection import (
    FAILURES,
    Connection,
    failed,
    new_socket,
    outlived,
    too_many,
)
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_wire import Credentials, Replies, Request, greeting
from agent_gantry_state.stores.network import within
from agent_gantry_state.stores.pool import AsyncPool

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
        self._pools = {
            server: AsyncPool(
                partial(_connected, server, credentials, connect_timeout), max_connections, partial(too_many, server)
            )
            for server in servers
        }
        # A loop that nobody closes tells nobody of its end.
        weakref.finalize(self, _close, [*self._pools.values()])

    async def ask(self, request: Any, deadline: float, /) -> Any:
        """Answer a `Request`, or wait."""
        if not isinstance(request, Request):
            assert isinstance(request, Wait)  # noqa: S101
            return await request.await_()
        return await self._pools[request.server].use(lambda connection: _asked(connection, request, deadline), deadline)

    async def close(self) -> None:
        """Close every connection that nobody uses; the others are closed after use."""
        _close(self._pools.values())

    def drop(self) -> None:
        """Part from the servers without the event loop."""
        for pool in self._pools.values():
            pool.drop()


def _close(pools: Iterable[AsyncPool[Connection]]) -> None:
    for pool in pools:
        pool.close()


async def _asked(connection: Connection, request: Request, deadline: float) -> Replies:
    if request.life not in (None, connection.life):
        return outlived(request, connection.life)
    began = time.monotonic()
    connection.sent, connection.busy = False, True
    try:
        answers = await connection.atalk(request.payload, request.kinds, deadline)
    except FAILURES as error:
        raise failed(error, request.server, connection, deadline) from None
    return connection.replied(request, answers, began)


async def _connected(server: Server, credentials: Credentials | None, connect_timeout: float, deadline: float) -> Connection:
    until = min(deadline, time.monotonic() + connect_timeout)
    try:
        connection = Connection(await _aopen(server, until), asyncio.get_running_loop())
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
