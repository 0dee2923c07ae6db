"""Logic that waits for nothing: generators that yield what they need done and are sent the answer.

A unit of work is such a generator. The two loops below are the only code that has its requests performed, one for callers
that may block and one for callers on an event loop; which of them runs makes no difference to the logic.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from agent_gantry_state.stores.protocol import Message

__all__ = ["Pause", "Request", "Steps", "Wait", "arun", "run"]

T = TypeVar("T")


class Wait:
    """Something that steps wait for and that is no store's business. What the wait gives is the answer."""

    def wait(self) -> Any:
        """Wait, for a caller that may block."""
        raise NotImplementedError

    async def await_(self) -> Any:
        """Wait, for a caller on an event loop."""
        raise NotImplementedError


@dataclass(slots=True)
class Pause(Wait):
    """Let *seconds* go by."""

    seconds: float

    def wait(self) -> None:
        time.sleep(self.seconds)

    async def await_(self) -> None:
        import anyio

        await anyio.sleep(self.seconds)


Request = Message | Wait
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


async def arun(steps: Steps[T], perform: Callable[[Any], Awaitable[Any]], first: Request | None = None) -> T:
    """Run *steps*, with *perform* doing what they ask for; *first* is what they asked for, if they were started."""
    try:
        request = next(steps) if first is None else first
        while True:
            try:
                answer = await perform(request)
            except BaseException as error:  # noqa: BLE001 - raised inside the steps
                request = steps.throw(error)
            else:
                request = steps.send(answer)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
