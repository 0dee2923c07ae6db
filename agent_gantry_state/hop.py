"""Worker threads in which callers on an event loop have a store answer that blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from agent_gantry_state.stores.protocol import Message

__all__ = ["hop"]

#: Threads that callers on one event loop may be waiting in at once.
_WAITERS = 32

_limiters: RunVar[anyio.CapacityLimiter] = RunVar("agent_gantry_state_limiter")


async def hop(answer: Callable[[Any], Any], request: Message) -> Any:
    """Have a store answer in a thread, within the request's time, however many wait for a thread."""
    try:
        limiter = _limiters.get()
    except LookupError:
        # Not anyio's: tools may be holding all of its threads while they wait for this one's answer.
        limiter = anyio.CapacityLimiter(_WAITERS)
        _limiters.set(limiter)
    deadline = time.monotonic() + request.timeout

    def in_time() -> Any:
        left = deadline - time.monotonic()
        return answer(replace(request, timeout=max(left, 0.0)))

    return await anyio.to_thread.run_sync(in_time, abandon_on_cancel=True, limiter=limiter)
