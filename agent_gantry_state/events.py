"""What a gantry tells those who want to know: that a call has committed, and that one was in conflict with another."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from agent_gantry_state.bridge import in_asyncio, on_event_loop
from agent_gantry_state.errors import MemoryConflictError
from agent_gantry_state.notes import LOG, fields
from agent_gantry_state.steps import Steps, Wait

__all__ = ["Callback", "MemoryEvent", "Observers", "observers_of"]


@dataclass(frozen=True, slots=True)
class MemoryEvent:
    """What happened to one memory.

    Attributes:
        tool: Name of the tool; None for a memory that was opened outside of one.
        scope: The memory's scope.
        keys: Names of the keys: those that the call wrote or deleted, or those in conflict as far as they are known.
    """

    tool: str | None
    scope: str
    keys: tuple[str, ...]


#: Told of an event; sync or async.
Callback = Callable[[MemoryEvent], Awaitable[None] | None]


class Observers(NamedTuple):
    """Who is told.

    Attributes:
        on_commit: When a call has committed, of each memory that it changed.
        on_conflict: When a call finds a conflict, also if it runs again after that.
    """

    on_commit: Callback | None
    on_conflict: Callback | None

    def committed(self, tool: str | None, changed: dict[str, list[str]]) -> Steps[None]:
        """Tell of a call that has landed; *changed* has the keys for each scope."""
        if self.on_commit is not None:
            for scope, keys in changed.items():
                yield _Telling("on_commit", self.on_commit, MemoryEvent(tool, scope, tuple(keys)))

    def conflicted(self, tool: str | None, error: MemoryConflictError) -> Steps[None]:
        """Tell of a conflict."""
        if self.on_conflict is not None:
            for scope, keys in error.by_scope.items():
                yield _Telling("on_conflict", self.on_conflict, MemoryEvent(tool, scope, tuple(keys)))


def observers_of(on_commit: Any, on_conflict: Any) -> Observers | None:
    """The callbacks that a gantry was given.

    Raises:
        TypeError: One is none.
    """
    for name, callback in (("on_commit", on_commit), ("on_conflict", on_conflict)):
        if callback is not None and not callable(callback):
            raise TypeError(f"{name} must be callable, not {type(callback).__name__}")
    return None if on_commit is None and on_conflict is None else Observers(on_commit, on_conflict)


class _Telling(Wait):
    """A callback that is called; one that raises is logged, and changes nothing."""

    def __init__(self, name: str, callback: Callback, event: MemoryEvent) -> None:
        self._name, self._callback, self._event = name, callback, event

    def wait(self) -> None:
        try:
            told = self._callback(self._event)
            if inspect.isawaitable(told):
                _awaited(told)
        except (Exception, asyncio.CancelledError):  # noqa: BLE001 - of anybody's callback
            self._log()

    async def await_(self) -> None:
        try:
            told = self._callback(self._event)
            if inspect.isawaitable(told):
                await told
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            self._log()
        except Exception:  # noqa: BLE001 - of anybody's callback
            self._log()

    def _log(self) -> None:
        LOG.exception(
            "%s raised; what it was told of has happened all the same", self._name, extra=fields("callback_failed")
        )


def _is_cancelled() -> bool:
    """Whether it is this task that is cancelled, and not something for which a callback waited; unknown before 3.11."""
    if not in_asyncio():
        return False
    cancelling = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is None or cancelling() > 0


def _awaited(told: Awaitable[None]) -> None:
    """Await what an async callback gave, for a caller without an event loop of its own to do that on."""

    async def whole() -> None:
        await told

    if not on_event_loop():
        asyncio.run(whole())
        return
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(whole())
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            failed.append(error)

    thread = threading.Thread(target=run, name="agent-gantry-state-callback")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
