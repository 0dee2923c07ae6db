"""The clock of a store that has no server to ask for the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

__all__ = ["Clocked"]


class Clocked:
    """Base of a store that goes by a clock which can be set.

    Args:
        clock: Gives the time in seconds since the epoch, by which keys expire.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._latest = -math.inf

    @property
    def clock(self) -> Callable[[], float]:
        """Gives the time in seconds since the epoch."""
        return self._clock

    @clock.setter
    def clock(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._latest = -math.inf

    def now(self) -> float:
        """The time in seconds since the epoch, by which keys expire; it stays when the clock is set back."""
        now = self._clock()
        if now < self._latest:
            return self._latest
        self._latest = now
        return now
