"""Waiting for a server on a socket, for callers that may block, by a deadline that holds whatever signals come meanwhile."""

from __future__ import annotations

import select
import time
from typing import Any, Final

__all__ = ["TimedSocket"]

#: Not on Windows.
_HAS_POLL: Final = hasattr(select, "poll")
#: The longest wait that the system can be asked for, in milliseconds.
_LONGEST: Final = 1e9


class TimedSocket:
    """A connected socket of ours, or of somebody who lent it.

    Python's own timeout asks the system before each send and each receipt whether it can be done, and to set it anew costs
    calls of the system as well. Mostly what is sent fits into a socket, and only what is received is waited for: three
    calls instead of six. A wait that a signal interrupts goes on with the time that is left.

    Args:
        sock: The socket.
        polled: Whether it is made one that never waits by itself, as ours are; one that encrypts may hold what the system
            does not know of, and of a lent one the owner expects that it waits.
    """

    __slots__ = ("_poll", "_polled", "sock")

    def __init__(self, sock: Any, polled: bool = True) -> None:
        self.sock = sock
        self._poll: Any = None
        self._polled = polled and _HAS_POLL
        if _HAS_POLL:
            poll = select.poll()
            poll.register(sock, select.POLLIN)
            self._poll = poll.poll
        if self._polled:
            sock.setblocking(False)

    def send(self, payload: bytes, deadline: float) -> None:
        """Send it, by *deadline* on the monotonic clock.

        Raises:
            OSError: The connection broke, or, a TimeoutError, the time was over.
        """
        sock, sent = self.sock, 0
        if self._polled:
            try:
                sent = sock.send(payload)
                if sent == len(payload):
                    return
            except BlockingIOError:
                pass
        sock.settimeout(_left(deadline))
        sock.sendall(memoryview(payload)[sent:])
        if self._polled:
            sock.setblocking(False)

    def wait(self, deadline: float) -> None:
        """Wait until something can be received, be it only the end, by *deadline* on the monotonic clock.

        Where it is the socket that waits, it is only told how long it may.

        Raises:
            TimeoutError: The time was over.
        """
        seconds = _left(deadline)
        if not self._polled:
            self.sock.settimeout(seconds)
        elif not self._poll(min(seconds * 1000, _LONGEST)):
            raise TimeoutError

    def is_readable(self) -> bool:
        """Whether anything has come that was not received, be it only the end."""
        try:
            if self._poll is None:
                return bool(select.select([self.sock], [], [], 0)[0])
            return bool(self._poll(0))
        except (OSError, ValueError):
            return True


def _left(deadline: float) -> float:
    """Seconds until *deadline*, on the monotonic clock.

    Raises:
        TimeoutError: It is over.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
