"""Which call's body runs here: a context variable, so that a call inside it finds it through tasks and threads."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, Final

from agent_gantry_state.holding import Want
from agent_gantry_state.memory import Memory
from agent_gantry_state.unit_of_work import NESTING, UnitOfWork, orphan

__all__ = ["CURRENT", "FAILED", "Alone", "leave", "unit_around", "unit_of"]

#: The call whose body runs in this context: its unit of work, or, for a call that was made the short way, a list of its
#: settings, its identity and its memory. The list loses its last item when the body has ended; its first one becomes FAILED
#: if it raised. None where no call is running.
CURRENT: ContextVar[Any] = ContextVar("agent_gantry_state_call", default=None)
FAILED: Final = "failed"


class Alone:
    """Stands in `CURRENT` where calls are no part of the call around them.

    It is taken out by itself and not by a token, for it may be left in another task than it was entered in.
    """

    __slots__ = ("around", "closed")

    def __init__(self) -> None:
        self.around: Any = CURRENT.get()
        self.closed = False
        CURRENT.set(self)

    def leave(self) -> None:
        self.closed = True
        around: Any = self
        while isinstance(around, Alone) and around.closed:
            around = around.around
        # A task that was begun inside goes on standing alone.
        if CURRENT.get() is self:
            CURRENT.set(around)


def unit_around() -> UnitOfWork | None:
    """The unit of the call in whose body this context is; None if it is in none, in one that has landed, or in one of a
    process from which this one was forked meanwhile.

    Raises:
        OrphanedCallError: That call has failed.
    """
    frame: Any = CURRENT.get()
    if isinstance(frame, Alone):
        return None
    unit: UnitOfWork | None = unit_of(frame) if type(frame) is list else frame
    return unit if unit is None or unit.is_here else None


def unit_of(frame: list[Any]) -> Any:
    """The unit of a call that was made the short way, which is made for it now; None if its body has ended.

    Raises:
        OrphanedCallError: The call has failed.
    """
    with NESTING:
        settings, identity = frame[:2]
        if settings is FAILED:
            raise orphan()
        try:
            there = frame[2]
            if isinstance(there, Memory):
                # The list may lose it at this very moment; then the assignment fails, and the body has ended.
                frame[2] = there = UnitOfWork.of(there, Want.of(there._terms, identity), settings.bridge)
        except IndexError:
            if frame[0] is FAILED:
                raise orphan() from None
            return None
        return there


def leave(token: Token[Any]) -> None:
    """Leave the body of a call: what was current before it is so again."""
    try:
        token.var.reset(token)
    except ValueError:
        # A coroutine or generator that is closed in another context than it ran in has nothing to take back there.
        return
