"""A connection to memcached, and what may go wrong on it.

What is said on a connection, and how it is read, is `memcached_wire`'s: here are only the waits, for callers that may block
and for those on an event loop. A connection on which anything was cut short, or on which something comes that nobody has
asked for, is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
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
    Kind,
    Refused,
    Replies,
    Request,
    read,
)
from agent_gantry_state.stores.network import reason

__all__ = ["FAILURES", "Connection", "failed", "new_socket", "outlived", "too_many"]

_CHUNK: Final = 65536
#: Not on Windows.
_HAS_POLL: Final = hasattr(select, "poll")


def outlived(request: Request, life: object) -> Replies:
    """The reply to commands that name a change of another life of the server, in which nothing has that number."""
    return Replies([b"EXISTS"] * len(request.kinds), life)


class Connection:
    """A socket, and in which life its server is.

    Args:
        sock: The socket.
        loop: The event loop that it belongs to, if to one.
    """

    __slots__ = (
        "_deadline",
        "_loop",
        "_poll",
        "_timer",
        "_timer_at",
        "busy",
        "expired",
        "life",
        "pid",
        "sent",
        "sock",
        "used",
    )

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
        if _HAS_POLL:
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)
        #: When its time is over, and the timer that ends it; that may be the one of an earlier request.
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def is_usable(self) -> bool:
        """Whether nothing is in the middle of it, and nothing has come since the last reply."""
        return not self.busy and not self.expired and not self.is_stale()

    def is_stale(self) -> bool:
        """Whether anything has come since the last reply, be it only the end."""
        try:
            if self._poll is None:
                return bool(select.select([self.sock], [], [], 0)[0])
            return bool(self._poll.poll(0))
        except (OSError, ValueError):
            return True

    def talk(self, payload: bytes, kinds: tuple[Kind, ...], deadline: float) -> list[Any]:
        """Send commands and read their replies, for a caller that may block.

        Raises:
            TimeoutError: Not all of them have come by *deadline*.
        """
        sock, buffer = self.sock, bytearray()
        sock.settimeout(_left(deadline))
        self.sent = True
        sock.sendall(payload)
        if len(payload) > _CHUNK:
            # What fits into a socket is sent at once; this may have taken its time.
            sock.settimeout(_left(deadline))
        while (answers := read(kinds, buffer, sock.recv(_CHUNK))) is None:
            sock.settimeout(_left(deadline))
        return answers

    async def atalk(self, payload: bytes, kinds: tuple[Kind, ...], deadline: float) -> list[Any]:
        """`talk`, on the event loop. No task is cancelled at the deadline: the loop finds the connection ended."""
        loop, sock, buffer = asyncio.get_running_loop(), self.sock, bytearray()
        self._watch(deadline)
        self.sent = True
        try:
            await loop.sock_sendall(sock, payload)
            while (answers := read(kinds, buffer, await loop.sock_recv(sock, _CHUNK))) is None:
                pass
        except GeneratorExit:
            # Closed, not cancelled: the loop would go on watching it, and take the next socket of its number for it.
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(sock)
                loop.remove_writer(sock)
            raise
        return answers

    def replied(self, request: Request, answers: list[Any], began: float) -> Replies:
        """The replies to a request, after which the connection is free again. What they tell of the time is noted.

        Args:
            request: What was asked.
            answers: What was answered.
            began: When it was sent, on the monotonic clock.
        """
        if request.kinds[0] is STATS:
            request.server.learn(answers.pop(0), began, time.monotonic())
        self.busy = False
        return Replies(answers, self.life)

    def _watch(self, deadline: float) -> None:
        """Have it ended at *deadline*, if it is busy then.

        A timer that goes off earlier is left to do it, for the next request mostly comes long before any goes off.
        """
        left = _left(deadline)
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._start_timer(left)

    def _start_timer(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)
        self._timer_at = self._deadline

    def _look(self) -> None:
        """What the timer does. Nobody stops it when the connection is closed, as that may be done by another thread."""
        self._timer, self._timer_at = None, math.inf
        if self.busy:
            left = self._deadline - time.monotonic()
            if left > 0:
                self._start_timer(left)
            else:
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


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


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
