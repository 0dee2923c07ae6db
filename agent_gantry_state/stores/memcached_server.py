"""What is known of a memcached: its name, its time, how large its items may be, and in which of its lives it is.

The clock of a memcached has whole seconds. What it says bounds how far its time is ahead of this process's monotonic clock,
and further readings narrow that, mostly to some milliseconds after a while; the middle of the bounds is taken for its time.
"""

from __future__ import annotations

import math
import time
from typing import Final

from agent_gantry_state.errors import StoreError

__all__ = ["DEFAULT_PORT", "Server"]

DEFAULT_PORT: Final = 11211
#: Seconds after which the time is asked for again, along with a load.
_EVERY = 30.0
#: By which part the clocks of two machines may run apart.
_DRIFT = 0.0002


class Server:
    """One memcached. Any thread may use it, for what it holds is replaced as a whole.

    Args:
        name: ``host``, ``host:port``, ``[address]:port``, or the path of a socket.

    Raises:
        ValueError: The name is none of these.
    """

    def __init__(self, name: str) -> None:
        self.host, self.port = _address(name)
        #: As it is known to all processes that share it, so that they agree where a memory is.
        self.name = self.host if self.port is None else f"{self.host.lower()}:{self.port}"
        #: How it is called in messages, which tell no path of this machine.
        self.shown = f"socket {self.host.rpartition('/')[2]!r}" if self.port is None else self.name
        #: Tells a server that was restarted from itself before; None if it cannot be told.
        self.life: object = None
        #: Bytes that an item may have, with its key and what memcached adds; None if it is not known.
        self.max_item: int | None = None
        #: Seconds by which its clock is ahead of the monotonic one, at least and at most, and when that was asked.
        self._ahead = (-math.inf, math.inf, -math.inf)
        #: The middle of these, which is what is added to the monotonic clock; nothing is known before it was asked.
        self._middle = -math.inf
        self._latest = -math.inf

    def __repr__(self) -> str:
        return f"<Server {self.name}>"

    def is_due(self) -> bool:
        """Whether its time was not asked for lately."""
        return time.monotonic() - self._ahead[2] > _EVERY

    def now(self) -> float:
        """The time by its clock; it never goes back."""
        now = time.monotonic() + self._middle
        if now < self._latest:
            return self._latest
        self._latest = now
        return now

    def learn(
        self, stats: dict[bytes, bytes], sent: float, received: float, settings: dict[bytes, bytes] | None = None
    ) -> object:
        """Note what it says of itself, in answer to what was *sent* and *received* at these times.

        Returns:
            The life in which it said so.
        """
        try:
            seconds = int(stats[b"time"])
        except (KeyError, ValueError):
            raise StoreError("memcached does not tell its time: this store needs memcached 1.4 or later itself") from None
        life = None
        if b"pid" in stats and stats.get(b"uptime", b"").isdigit():
            life = (stats[b"pid"], seconds - int(stats[b"uptime"]))
        if settings is not None:
            size = settings.get(b"item_size_max", b"")
            self.max_item = int(size) if size.isdigit() else None
        least, most = seconds - received, seconds + 1 - sent
        old_least, old_most, asked = self._ahead
        if life != self.life or asked == -math.inf:
            self.life = life
            self._latest = -math.inf
        else:
            slack = (received - asked) * _DRIFT
            old_least, old_most = old_least - slack, old_most + slack
            if most < old_least:
                # It had been stopped, and has not looked at its own clock since.
                return life
            if least <= old_most:
                least, most = max(least, old_least), min(most, old_most)
        self._ahead = (least, most, received)
        self._middle = (least + most) / 2
        return life


def _address(name: str) -> tuple[str, int | None]:
    if name.startswith("/"):
        return name, None
    if name.startswith("["):
        host, bracket, port = name[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError("a server is named host, host:port or [address]:port")
        port = port[1:]
    else:
        host, _, port = name.partition(":")
    if "," in name:
        raise ValueError("several servers are given as a list, each as host, host:port or [address]:port")
    if not host or any(letter.isspace() or letter in "@/?#" for letter in host):
        raise ValueError("a server is named host, host:port or [address]:port")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("the port of a server is a number from 1 to 65535")
    return host, int(port) if port else DEFAULT_PORT
