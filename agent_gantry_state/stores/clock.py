"""The clock of a store that has no server to ask for the time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Clocked"]


class Clocked:
    """Base of a store that goes by a clock which can be set.

    Args:
        clock: Gives the time in seconds since the epoch, by which keys expire.
    """

    #: By kind of message the method that answers it, of a store that has one for those who wait and those who do not.
    _answers: dict[type[Any], Any] = {}  # noqa: RUF012 - never changed

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

    def unaged(self) -> Self:
        """This store as if no time had gone by, to look for what is expired and was not removed yet; only to be read."""
        twin = copy.copy(self)
        twin.clock = _long_ago
        twin._answers = {kind: getattr(twin, answer.__name__) for kind, answer in self._answers.items()}
        return twin

    def now(self) -> float:
        """The time in seconds since the epoch, by which keys expire; it stays when the clock is set back."""
        now = self._clock()
        if now < self._latest:
            return self._latest
        self._latest = now
        return now


def _long_ago() -> float:
    return 0.0
