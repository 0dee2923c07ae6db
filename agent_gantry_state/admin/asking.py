"""How what is asked of several stores gets there, for sync and async callers, and how a stream of findings comes back.

The steps of this package ask for `Ask`s, each of which goes to one store by its own bridge. Steps that find many things
yield each as a `Found` as soon as they have it, so that nothing is ever held as a whole.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio.to_thread

from agent_gantry_state import steps as _steps
from agent_gantry_state.bridge import Bridge
from agent_gantry_state.sending import sent
from agent_gantry_state.steps import Steps, Wait
from agent_gantry_state.stores.protocol import Commit, Forget, Message

__all__ = ["Asks", "Called", "Found", "Stream", "asked", "each", "each_async", "run", "run_async", "told"]

T = TypeVar("T")


class Ask(Wait):
    """Have steps run on the bridge of one store. What changes something is not cut."""

    def __init__(self, bridge: Bridge, steps: Steps[Any], whole: bool = False) -> None:
        self._bridge = bridge
        self._steps = steps
        self._whole = whole

    def wait(self) -> Any:
        return self._bridge.run(self._steps)

    async def await_(self) -> Any:
        return await (self._bridge.arun_uncut if self._whole else self._bridge.arun)(self._steps)


class Called(Wait):
    """Have a function that blocks give its answer."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    def wait(self) -> Any:
        return self._call()

    async def await_(self) -> Any:
        return await anyio.to_thread.run_sync(self._call, abandon_on_cancel=True)


@dataclass(slots=True)
class Found(Generic[T]):
    """One of the things that steps find."""

    value: T


#: Steps that only wait, and so run on no bridge.
Asks = Generator[Wait, Any, T]
Stream = Generator[Wait | Found[T], Any, None]


def _one(message: Message) -> Steps[Any]:
    return (yield message)


def asked(bridge: Bridge, message: Message) -> Ask:
    """A message that changes nothing."""
    return Ask(bridge, _one(message))


def told(bridge: Bridge, message: Commit | Forget) -> Ask:
    """A commit or an erasure, sent again where its answer is lost."""
    deadline = time.monotonic() + bridge.commit_timeout
    return Ask(bridge, sent(message, deadline, again=bridge.resendable, counters=bridge.counters), whole=True)


def run(steps: Asks[T]) -> T:
    """Run steps, for a caller that may block."""
    return _steps.run(steps, lambda request: request.wait())


async def run_async(steps: Asks[T]) -> T:
    """Run steps, for a caller on an event loop."""
    return await _steps.arun(steps, lambda request: request.await_())


def each(stream: Stream[T]) -> Iterator[T]:
    """What steps find, for a caller that may block."""
    request = next(stream, None)
    while request is not None:
        answer, failure = None, None
        if isinstance(request, Found):
            yield request.value
        else:
            try:
                answer = request.wait()
            except Exception as error:  # noqa: BLE001 - raised inside the steps
                failure = error
        request = _after(stream, answer, failure)


async def each_async(stream: Stream[T]) -> AsyncIterator[T]:
    """What steps find, for a caller on an event loop."""
    request = next(stream, None)
    while request is not None:
        answer, failure = None, None
        if isinstance(request, Found):
            yield request.value
        else:
            try:
                answer = await request.await_()
            except Exception as error:  # noqa: BLE001 - raised inside the steps
                failure = error
        request = _after(stream, answer, failure)


def _after(stream: Stream[T], answer: Any, failure: Exception | None) -> Wait | Found[T] | None:
    """What steps go on with; None when they have come to their end."""
    try:
        return stream.send(answer) if failure is None else stream.throw(failure)
    except StopIteration:
        return None
