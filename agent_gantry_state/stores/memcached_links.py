"""Connections to memcached for callers that may block: a pool of our own, and that of a client which the user made."""

from __future__ import annotations

import contextlib
import queue
import socket
import time
from collections.abc import Iterable
from typing import Any

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

__all__ = ["BorrowingLink", "MemcachedLink"]


class MemcachedLink:
    """Connections of this process, any of which a thread may take.

    Args:
        servers: The servers.
        credentials: Who we are, for servers that ask.
        connect_timeout: Seconds that a connection may take.
        max_connections: To each server.
    """

    def __init__(
        self, servers: Iterable[Server], credentials: Credentials, connect_timeout: float, max_connections: int
    ) -> None:
        self._credentials = credentials
        self._connect_timeout = connect_timeout
        self._idle: dict[Server, list[Connection]] = {server: [] for server in servers}
        # One of something for each connection that may be used; a semaphore would be many times as slow.
        self._free: dict[Server, queue.SimpleQueue[None]] = {server: queue.SimpleQueue() for server in self._idle}
        for free in self._free.values():
            for _ in range(max_connections):
                free.put(None)
        self._closed = False

    def ask(self, request: Any, deadline: float, /) -> Any:
        """Answer a `Request`, or wait."""
        if not isinstance(request, Request):
            assert isinstance(request, Wait)  # noqa: S101
            return request.wait()
        free = self._free[request.server]
        try:
            free.get(timeout=max(deadline - time.monotonic(), 0.0))
        except queue.Empty:
            raise too_many(request.server) from None
        try:
            connection = self._taken(request.server) or self._connected(request.server, deadline)
            try:
                replies = asked(connection, request, deadline)
            except BaseException:
                connection.close()
                raise
            self._idle[request.server].append(connection)
            if self._closed:
                self.close()
            return replies
        finally:
            free.put(None)

    def _taken(self, server: Server) -> Connection | None:
        idle = self._idle[server]
        while idle:
            try:
                connection = idle.pop()
            except IndexError:
                break
            if not connection.is_stale():
                return connection
            connection.close()
        return None

    def _connected(self, server: Server, deadline: float) -> Connection:
        until = min(deadline, time.monotonic() + self._connect_timeout)
        try:
            connection = Connection(_open(server, until))
            try:
                connection.life = _steps.run(greeting(server, self._credentials), connection.io(until))
            except BaseException:
                connection.close()
                raise
        except FAILURES as error:
            raise failed(error, server, None, until) from None
        return connection

    def close(self) -> None:
        """Close every connection that nobody uses; the others are closed after use."""
        self._closed = True
        for idle in self._idle.values():
            while idle:
                with contextlib.suppress(IndexError):
                    idle.pop().close()


def asked(connection: Connection, request: Request, deadline: float) -> Replies:
    lost = lost_number(request, connection.life)
    if lost is not None:
        return lost
    connection.sent = False
    try:
        answers: list[Any] = _steps.run(exchange(request), connection.io(deadline))
    except FAILURES as error:
        raise failed(error, request.server, connection, deadline) from None
    return Replies(answers, connection.life)


def _open(server: Server, until: float) -> socket.socket:
    if server.port is None:
        return _dialled(socket.AF_UNIX, server.host, until)
    error: OSError | None = None
    for family, _, _, _, address in socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM):
        try:
            return _dialled(family, address, until)
        except OSError as failed:
            # "localhost" is two addresses, of which the server may listen on the second one alone.
            error = failed
    raise error or OSError("no address")


def _dialled(family: int, address: Any, until: float) -> socket.socket:
    sock = new_socket(family)
    try:
        sock.settimeout(max(until - time.monotonic(), 0.001))
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


class BorrowingLink:
    """The connections of a `pymemcache.PooledClient` that the user made, whose own timeouts hold while it connects.

    Args:
        client: The client.
        server: What we know of its server.
    """

    def __init__(self, client: Any, server: Server) -> None:
        self._pool = client.client_pool
        self._server = server

    def ask(self, request: Any, deadline: float, /) -> Any:
        """Answer a `Request`, or wait."""
        if not isinstance(request, Request):
            assert isinstance(request, Wait)  # noqa: S101
            return request.wait()
        try:
            client = self._pool.get()
        except RuntimeError:
            raise too_many(self._server) from None
        try:
            connection = self._of(client, deadline)
            replies = asked(connection, request, deadline)
            connection.sock.settimeout(client.timeout)
        except BaseException:
            self._pool.destroy(client)
            raise
        self._pool.release(client)
        return replies

    def _of(self, client: Any, deadline: float) -> Connection:
        known: Connection | None = getattr(client, "_agent_gantry_state", None)
        if known is not None and known.sock is client.sock and not known.is_stale():
            return known
        try:
            if known is not None and known.sock is client.sock:
                client.close()
            if client.sock is None:
                self._connect(client)
            connection = Connection(client.sock)
            connection.life = _steps.run(greeting(self._server, None), connection.io(deadline))
        except FAILURES as error:
            raise failed(error, self._server, None, deadline) from None
        client._agent_gantry_state = connection
        return connection

    @staticmethod
    def _connect(client: Any) -> None:
        try:
            client.version()
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001
            # Its own kinds of errors; what they are does not matter, for nothing was asked yet.
            raise ConnectionError(type(error).__name__) from None

    def close(self) -> None:
        """Nothing to close: the client is the user's."""
