"""A connection to memcached, and what may go wrong on it.

What is said on a connection, and how it is read, is `memcached_wire`'s. A connection on which something comes that nobody
has asked for is closed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any, Final

from agent_gantry_state.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_wire import (
    STATS,
    Disconnected,
    Garbled,
    ItemTooLargeError,
    Refused,
    Replies,
    Request,
)
from agent_gantry_state.stores.network import reason
from agent_gantry_state.stores.sockets import TimedSocket

__all__ = ["CHUNK", "FAILURES", "Connection", "failed", "new_socket", "outlived", "replied", "too_many"]

#: Bytes that are taken from a socket at once.
CHUNK: Final = 65536


def outlived(request: Request, life: object) -> Replies:
    """The reply to commands that name a change of another life of the server, in which nothing has that number."""
    return [b"EXISTS"] * len(request.kinds), life


class Connection:
    """A socket, and in which life its server is.

    Args:
        sock: The socket.
        polled: Whether it is made one that never waits by itself, see `TimedSocket`.
    """

    __slots__ = ("__weakref__", "_timed", "life", "pid", "sock", "used")

    def __init__(self, sock: Any, polled: bool = False) -> None:
        self.sock = sock
        self._timed = TimedSocket(sock, polled)
        #: The process that opened it.
        self.pid = os.getpid()
        #: When it was used last, on the monotonic clock.
        self.used = 0.0
        self.life: object = None

    def is_stale(self) -> bool:
        """Whether anything has come since the last reply, be it only the end."""
        return self._timed.is_readable()

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self.sock.close()


def replied(request: Request, answers: list[Any], life: object, began: float) -> Replies:
    """What was answered to a request that was sent at *began* or later. What it tells of the time is noted."""
    if request.kinds[0] is STATS:
        request.server.learn(answers.pop(0), began, time.monotonic())
    return answers, life


#: What may go wrong on a connection.
FAILURES: Final = (Refused, Garbled, Disconnected, OSError)


def failed(error: Exception, server: Server, deadline: float, connected: bool = True, sent: bool = True) -> StoreError:
    """An error of a socket, or of what came, as ours.

    Args:
        error: The error.
        server: Whose.
        deadline: Until when the server had time.
        connected: Whether there was a connection.
        sent: Whether anything of the request may have reached the server.
    """
    if isinstance(error, Refused):
        return _refusal(error.line)
    committed = None if connected and sent else False
    if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
        what = "did not answer" if connected else "could not be reached"
        return StoreTimeoutError(f"memcached at {server.shown} {what} in time", committed=committed)
    if isinstance(error, Disconnected) and not connected:
        return StoreUnavailableError(
            f"memcached at {server.shown} closed the connection while it was greeted: is it a memcached?",
            committed=committed,
        )
    if isinstance(error, Garbled):
        return StoreError(f"what answers at {server.shown} is no memcached: see the store's URL", committed=committed)
    what = "closed the connection" if connected else "cannot be reached"
    why = f" ({reason(error)})" if isinstance(error, OSError) and error.strerror else ""
    see = "" if connected else ": is it running, and is the store's URL right?"
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
