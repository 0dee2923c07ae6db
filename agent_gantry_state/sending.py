"""Messages that change a store: sent, and sent again where their answers were lost.

A reply that does not come leaves open whether the server did what it was asked. A commit carries a token by which the store
knows it again, and what is erased twice is erased once, so that both can be sent until an answer comes or the time is over.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace

from agent_gantry_state.errors import StateError, StoreError
from agent_gantry_state.notes import Counters
from agent_gantry_state.steps import Pause, Steps
from agent_gantry_state.stores.protocol import Commit, Committed, Forget, Moved

__all__ = ["send_timeout", "sent"]

#: Seconds between a send that failed and the next one: at first, and at most. A random part of each is taken.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.25
#: A send is given at least so many seconds, or what is left.
_SHORTEST = 1.0


def send_timeout(left: float) -> float:
    """Seconds that a send is given of those that are left: one whose answer is lost must leave time for another one."""
    half = left / 2
    return half if half > _SHORTEST else min(left, _SHORTEST)


def sent(
    message: Commit | Forget,
    deadline: float,
    again: bool,
    counters: Counters | None = None,
    failed: StoreError | None = None,
) -> Steps[Committed | Moved | None]:
    """Have a store do what *message* says, by *deadline* on the monotonic clock.

    Args:
        message: A commit or an erasure.
        deadline: When to give up.
        again: Whether to send it again while the store cannot be reached or does not answer.
        counters: Told each time that it does.
        failed: How it ended when it was sent for the first time, if that was done.

    Raises:
        StateError: The store failed; `committed` covers all that was sent.
    """
    committed: bool | None = False
    pause = _FIRST_PAUSE
    while True:
        left = max(deadline - time.monotonic(), 0.0)
        try:
            if failed is not None:
                error, failed = failed, None
                raise error
            answer: Committed | Moved | None = yield _within(message, send_timeout(left) if again else left)
        except StateError as error:
            committed = None if error.committed is None else committed
            error.committed = committed
            if not (again and isinstance(error, StoreError) and error.transient) or time.monotonic() + pause >= deadline:
                raise
            if counters is not None:
                counters.resent(error)
        else:
            return answer
        yield Pause(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
        pause = min(pause * 2, _LONGEST_PAUSE)


def _within(message: Commit | Forget, timeout: float) -> Commit | Forget:
    if type(message) is Commit:
        return Commit(message.token, message.version, message.changes, timeout)
    return replace(message, timeout=timeout)
