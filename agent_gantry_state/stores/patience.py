"""Sockets that wait by themselves for a moment, for callers that may block.

With a timeout of Python's each send, and each recv, is two system calls more. Most replies come long before they are needed:
a socket waits for them by itself, and Python's timeout is for what takes longer.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

__all__ = ["PATIENCE", "is_patient", "is_timed"]

#: Seconds for which such a socket waits, and the same as it is told it.
PATIENCE: Final = 0.02
_TIMEVAL: Final = struct.pack("@ll", 0, 20_000)
#: What handles a signal, without making an enum of it; and those of timers, as far as the system has them.
_handler: Final[Callable[[int], object]] = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)
_TIMERS: Final = [int(getattr(signal, name)) for name in ("SIGALRM", "SIGPROF", "SIGVTALRM") if hasattr(signal, name)]
_UNHANDLED: Final = [int(signal.SIG_DFL)] * len(_TIMERS)


def is_timed() -> bool:
    """Whether signals may come again and again, as a profiler has them.

    Each has a socket that waits by itself wait anew, so that no time limit would be seen. Only handlers interrupt it.
    """
    return [*map(_handler, _TIMERS)] != _UNHANDLED


def is_patient(sock: socket.socket) -> bool:
    """Have a socket wait by itself for a while, and say whether it does."""
    try:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL)
            if sock.getsockopt(socket.SOL_SOCKET, option, len(_TIMEVAL)) != _TIMEVAL:
                return False
    except OSError:
        return False
    sock.settimeout(None)
    # What stands in for sockets where threads are green waits in its own way, and for as long as it likes.
    return os.get_blocking(sock.fileno())
