"""Worker threads in which callers on an event loop have a store answer that blocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from agent_gantry_state.bridge import in_asyncio
from agent_gantry_state.stores.protocol import Message

__all__ = ["hop"]

#: Threads that callers on one event loop may be waiting in at once.
_WAITERS = 32

_limiters: RunVar[anyio.CapacityLimiter] = RunVar("agent_gantry_state_limiter")


class _Token:
    """A limiter for one errand on asyncio.

    A token of anyio's belongs to a task: a call that is closed in another one, as by the garbage collector, would keep it.
    """

    def __init__(self, limiter: anyio.CapacityLimiter) -> None:
        self._limiter = limiter

    async def __aenter__(self) -> None:
        await self._limiter.acquire_on_behalf_of(self)

    async def __aexit__(self, *exc: object) -> None:
        self._limiter.release_on_behalf_of(self)


async def hop(answer: Callable[[Any], Any], request: Message) -> Any:
    """Have a store answer in a thread, within the request's time, however many wait for a thread."""
    try:
        limiter = _limiters.get()
    except LookupError:
        # Not anyio's: tools may be holding all of its threads while they wait for this one's answer.
        limiter = anyio.CapacityLimiter(_WAITERS)
        _limiters.set(limiter)
    # Trio's belong to the errand already.
    token: Any = _Token(limiter) if in_asyncio() else limiter
    deadline = time.monotonic() + request.timeout

    def in_time() -> Any:
        left = deadline - time.monotonic()
        return answer(replace(request, timeout=max(left, 0.0)))

    return await anyio.to_thread.run_sync(in_time, abandon_on_cancel=True, limiter=token)
