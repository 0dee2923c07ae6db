"""Logic that waits for nothing: generators that yield what they need done and are sent the answer.

A unit of work is such a generator. The two loops below are the only code that has its requests performed, one for callers
that may block and one for callers on an event loop; which of them runs makes no difference to the logic.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from agent_gantry_state.stores.protocol import Message

__all__ = ["Pause", "Request", "Steps", "arun", "run"]

T = TypeVar("T")


@dataclass(slots=True)
class Pause:
    """Let *seconds* go by."""

    seconds: float


Request = Message | Pause
Steps = Generator[Request, Any, T]


def run(steps: Steps[T], perform: Callable[[Any], Any]) -> T:
    """Run *steps*, with *perform* doing what they ask for."""
    try:
        request = next(steps)
        while True:
            try:
                answer = perform(request)
            except BaseException as error:  # noqa: BLE001 - raised inside the steps
                request = steps.throw(error)
            else:
                request = steps.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def arun(steps: Steps[T], perform: Callable[[Any], Awaitable[Any]]) -> T:
    """Run *steps*, with *perform* doing what they ask for."""
    try:
        request = next(steps)
        while True:
            try:
                answer = await perform(request)
            except BaseException as error:  # noqa: BLE001 - raised inside the steps
                request = steps.throw(error)
            else:
                request = steps.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
