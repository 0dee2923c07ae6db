"""A connection to memcached, and what may go wrong on it.

What is said on a connection is a generator (`memcached_wire`), so that it is written once. A connection on which anything
was cut short, or on which something comes that nobody has asked for, is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import time
from typing import Any, Final

from agent_gantry_state.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_wire import (
    Disconnected,
    Garbled,
    ItemTooLargeError,
    Refused,
    Replies,
    Request,
)
from agent_gantry_state.stores.network import reason

__all__ = ["FAILURES", "Connection", "failed", "lost_number", "new_socket", "too_many"]

_CHUNK: Final = 65536


def lost_number(request: Request, life: object) -> Replies | None:
    """The reply to commands that name a change of another life of the server, in which nothing has that number."""
    if request.life is None or request.life == life:
        return None
    return Replies([b"EXISTS"] * len(request.kinds), life)


class Connection:
    """A socket, and in which life its server is.

    Args:
        sock: The socket.
        loop: The event loop that it belongs to, if to one.
    """

    __slots__ = ("_loop", "_poll", "busy", "expired", "life", "pid", "sent", "sock", "used")

    def __init__(self, sock: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.sock = sock
        self._loop = loop
        #: The process that opened it.
        self.pid = os.getpid()
        self.used = 0.0
        #: Whether a request is under way, or was left half-done.
        self.busy = False
        self.life: object = None
        #: Whether anything of the present request may have reached the server.
        self.sent = False
        #: Whether its time is over.
        self.expired = False
        self._poll: Any = None

    def is_usable(self) -> bool:
        """Whether nothing is in the middle of it, and nothing has come since the last reply."""
        return not self.busy and not self.expired and not self.is_stale()

    def is_stale(self) -> bool:
        """Whether anything has come since the last reply, be it only the end."""
        try:
            if not hasattr(select, "poll"):
                return bool(select.select([self.sock], [], [], 0)[0])
            if self._poll is None:
                self._poll = select.poll()
                self._poll.register(self.sock, select.POLLIN)
            return bool(self._poll.poll(0))
        except (OSError, ValueError):
            return True

    def io(self, deadline: float) -> Any:
        """Sends and receives for a caller that may block."""
        sock = self.sock

        def perform(step: bytes | None) -> bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            if step is None:
                return sock.recv(_CHUNK)  # type: ignore[no-any-return]
            self.sent = True
            sock.sendall(step)
            return b""

        return perform

    def aio(self) -> Any:
        """Sends and receives on the running event loop; `_expires` ends it in time."""
        loop, sock = asyncio.get_running_loop(), self.sock

        async def perform(step: bytes | None) -> bytes:
            try:
                if step is None:
                    return await loop.sock_recv(sock, _CHUNK)
                self.sent = True
                await loop.sock_sendall(sock, step)
            except GeneratorExit:
                # Closed, not cancelled: the loop would go on watching it, and take the next socket of its number for it.
                with contextlib.suppress(NotImplementedError):
                    loop.remove_reader(sock)
                    loop.remove_writer(sock)
                raise
            return b""

        return perform

    def expire(self) -> None:
        self.expired = True
        self.end()

    def end(self) -> None:
        """Let whoever waits for a reply find the connection closed."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it. No event loop may be watching it."""
        with contextlib.suppress(OSError):
            self.sock.close()

    def drop(self) -> None:
        """End it from any thread, without the help of its event loop."""
        if self.busy and self._loop is not None and not self._loop.is_closed():
            # The loop, should it run again, closes it: closed here, its number would go to another socket that the loop
            # then took for this one, and nobody would ever hear of the end.
            self.end()
        else:
            self.close()


#: What may go wrong on a connection.
FAILURES: Final = (Refused, Garbled, Disconnected, OSError)


def failed(error: Exception, server: Server, connection: Connection | None, deadline: float) -> StoreError:
    """An error of a socket, or of what came, as ours. *connection* is None while there is none."""
    if isinstance(error, Refused):
        return _refusal(error.line)
    committed = None if connection is not None and connection.sent else False
    late = isinstance(error, TimeoutError) or time.monotonic() >= deadline
    if late or (connection is not None and connection.expired):
        what = "did not answer" if connection is not None else "could not be reached"
        return StoreTimeoutError(f"memcached at {server.shown} {what} in time", committed=committed)
    if isinstance(error, Disconnected) and connection is None:
        return StoreUnavailableError(
            f"memcached at {server.shown} closed the connection while it was greeted: is it a memcached?",
            committed=committed,
        )
    if isinstance(error, Garbled):
        return StoreError(f"what answers at {server.shown} is no memcached: see the store's URL", committed=committed)
    what = "closed the connection" if connection is not None else "cannot be reached"
    why = f" ({reason(error)})" if isinstance(error, OSError) and error.strerror else ""
    see = "" if connection is not None else ": is it running, and is the store's URL right?"
    return StoreUnavailableError(f"memcached at {server.shown} {what}{why}{see}", committed=committed)


def _refusal(line: bytes) -> StoreError:
    words = line.decode("ascii", "replace")
    if line.startswith(b"SERVER_ERROR object too large"):
        return ItemTooLargeError("memcached keeps no item that large")
    if line.startswith(b"SERVER_ERROR out of memory"):
        return StoreError(
            f"memcached has no room for a memory, and nothing was written ({words}): give it more memory, -m",
            committed=False,
        )
    # What stands between us and the server may say so of a command that the server has carried out.
    committed = None if line.startswith(b"SERVER_ERROR") else False
    return StoreError(f"memcached refused what it was asked: {words[:100]}", committed=committed)


def too_many(server: Server) -> StoreTimeoutError:
    """The error where every connection was in use for all of the time."""
    return StoreTimeoutError(
        f"no connection to memcached at {server.shown} was free in time: raise max_connections", committed=False
    )


def new_socket(family: int) -> socket.socket:
    """A socket that sends at once what it is given."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    if family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
