"""What is noticed beside the answers: of that a gantry counts which was told to, and nobody else pays for it.

A unit of work finds what there is to count on its bridge, where usually there is nothing. A store does not know who asks it;
what it comes upon while it answers it leaves in `FOUND`, if whoever asked has put something there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, Final, Protocol

__all__ = ["FOUND", "LOG", "Counters", "Found", "fields"]

#: The one logger of this package.
LOG: Final = logging.getLogger("agent_gantry_state")


def fields(event: str, **more: str) -> dict[str, Any]:
    """What a record of `LOG` has beside its text: the name of what happened, and further fields of it."""
    return {f"agent_gantry_state.{name}": value for name, value in {"event": event, **more}.items()}


class Counters(Protocol):
    """Counts what happens to the calls of one gantry."""

    def merged(self, scopes: Iterable[str]) -> None:
        """Others were quicker, and what a call changed was merged with theirs."""
        ...

    def rerun(self) -> None:
        """A body is to run again after a conflict."""
        ...

    def resent(self, error: BaseException) -> None:
        """A commit or an erasure is sent again, for it ended with *error* or its answer did not come."""
        ...

    def failed(self, error: BaseException) -> None:
        """What a call wanted to load or to commit came to nothing."""
        ...


class Found:
    """What a store comes upon while it answers one message.

    Attributes:
        expired: How many keys it left out because their time was over.
        evicted: Scopes of the memories that it dropped because it was full.
    """

    __slots__ = ("evicted", "expired")

    def __init__(self) -> None:
        self.expired = 0
        self.evicted: list[str] = []


#: Where a store leaves what it comes upon; None: nobody wants to know.
FOUND: ContextVar[Found | None] = ContextVar("agent_gantry_state_found", default=None)
