"""Connections to memcached for callers that may block: a pool of our own, and that of a client which the user made."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from agent_gantry_state import steps as _steps
from agent_gantry_state.steps import Wait
from agent_gantry_state.stores.memcached_connection import (
    CHUNK,
    FAILURES,
    Connection,
    failed,
    new_socket,
    outlived,
    replied,
    too_many,
)
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_wire import STATS, Credentials, Disconnected, Kind, Replies, Request, greeting, read
from agent_gantry_state.stores.pool import Pool

__all__ = ["BorrowingLink", "MemcachedLink"]


class BlockingConnection(Connection):
    """A connection for callers that may block, one request at a time. One on which anything was cut short is closed.

    Args:
        sock: The socket.
        polled: Whether it is made one that never waits by itself, see `TimedSocket`.
    """

    __slots__ = ("busy", "sent")

    def __init__(self, sock: Any, polled: bool = True) -> None:
        super().__init__(sock, polled)
        #: Whether a request is under way, or was left half-done.
        self.busy = False
        #: Whether anything of the present request may have reached the server.
        self.sent = False

    def is_usable(self) -> bool:
        """Whether nothing is in the middle of it, and nothing has come since the last reply."""
        return not self.busy and not self.is_stale()

    def talk(self, payload: bytes, kinds: tuple[Kind, ...], deadline: float, now: float) -> list[Any]:
        """Send commands *now* and read their replies.

        Raises:
            TimeoutError: Not all of them have come by *deadline*.
        """
        timed, buffer = self._timed, bytearray()
        if deadline <= now:
            raise TimeoutError
        self.sent = True
        timed.send(payload, deadline)
        while True:
            timed.wait(deadline)
            if (answers := read(kinds, buffer, self.sock.recv(CHUNK))) is not None:
                return answers


class MemcachedLink:
    """Connections of this process, any of which a thread may take.

    Args:
        servers: The servers.
        credentials: Who we are, for servers that ask.
        connect_timeout: Seconds that a connection may take.
        max_connections: To each server.
    """

    def __init__(
        self,
        servers: Iterable[Server],
        credentials: Credentials | None,
        connect_timeout: float,
        max_connections: int,
    ) -> None:
        self._pools = {
            server: Pool(
                partial(_connected, server, credentials, connect_timeout), max_connections, partial(too_many, server)
            )
            for server in servers
        }

    def ask(self, request: Any, deadline: float, /) -> Any:
        """Answer a `Request`, or wait."""
        if type(request) is not Request:
            return request.wait()
        return self._pools[request.server].use(asked, deadline, request, deadline)

    def close(self) -> None:
        """Close every connection that nobody uses; the others are closed after use."""
        for pool in self._pools.values():
            pool.close()


def _connected(
    server: Server, credentials: Credentials | None, connect_timeout: float, deadline: float
) -> BlockingConnection:
    until = min(deadline, time.monotonic() + connect_timeout)
    try:
        sock = _open(server, until)
        connection = BlockingConnection(sock)
        try:
            connection.life = _greeted(connection, server, credentials, until)
        except BaseException:
            connection.close()
            raise
    except FAILURES as error:
        raise failed(error, server, until, connected=False) from None
    return connection


def _greeted(connection: BlockingConnection, server: Server, credentials: Credentials | None, deadline: float) -> object:
    return _steps.run(
        greeting(server, credentials), lambda said: connection.talk(said[0], said[1], deadline, time.monotonic())
    )


def asked(connection: BlockingConnection, request: Request, deadline: float) -> Replies:
    """The replies to a request on a connection that is nobody else's."""
    if request.life is not None and request.life != connection.life:
        return outlived(request, connection.life)
    connection.sent, connection.busy = False, True
    try:
        answers = connection.talk(request.payload, request.kinds, deadline, connection.used)
    except FAILURES as error:
        raise failed(error, request.server, deadline, sent=connection.sent) from None
    connection.busy = False
    if request.kinds[0] is STATS:
        return replied(request, answers, connection.life, connection.used)
    return answers, connection.life


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
            connection.used = time.monotonic()
            replies = asked(connection, request, deadline)
            connection.sock.settimeout(client.timeout)
        except BaseException:
            self._pool.destroy(client)
            raise
        self._pool.release(client)
        return replies

    def _of(self, client: Any, deadline: float) -> BlockingConnection:
        known: BlockingConnection | None = getattr(client, "_agent_gantry_state", None)
        if known is not None and known.sock is client.sock and known.pid == os.getpid() and known.is_usable():
            return known
        try:
            # Also one that somebody else has opened: it may be that of a parent process, which goes on using it.
            client.close()
            self._connect(client)
            connection = BlockingConnection(client.sock, polled=False)
            connection.life = _greeted(connection, self._server, None, deadline)
        except FAILURES as error:
            raise failed(error, self._server, deadline, connected=False) from None
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
            if type(error).__name__ == "MemcacheUnexpectedCloseError":
                raise Disconnected from None
            raise ConnectionError(type(error).__name__) from None

    def close(self) -> None:
        """Nothing to close: the client is the user's."""
