"""Which call's body runs here: a context variable, so that a call inside it finds it through tasks and threads."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any

from agent_gantry_state.holding import Want
from agent_gantry_state.memory import Memory
from agent_gantry_state.unit_of_work import NESTING, State, UnitOfWork, orphan

__all__ = ["CURRENT", "Alone", "leave", "unit_around", "unit_of"]

#: The call whose body runs in this context: its unit of work, or, for a call that was made the short way, a list of its
#: settings, its identity, what stands for the process that it was made in, its memory or the unit that was made of that, and
#: its state. None where no call is running.
CURRENT: ContextVar[Any] = ContextVar("agent_gantry_state_call", default=None)


class Alone:
    """Stands in `CURRENT` where calls are no part of the call around them.

    It is taken out by itself and not by a token, for it may be left in another task than it was entered in.
    """

    __slots__ = ("around", "closed")

    def __init__(self) -> None:
        self.around: Any = CURRENT.get()
        self.closed = False

    def enter(self) -> None:
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
    if frame is None or isinstance(frame, Alone):
        return None
    unit: UnitOfWork | None = unit_of(frame) if type(frame) is list else frame
    return unit if unit is None or unit.is_here else None


def unit_of(frame: list[Any]) -> Any:
    """The unit of a call that was made the short way, which is made for it now; None if it has landed without one.

    Raises:
        OrphanedCallError: The call has failed.
    """
    with NESTING.lock:
        settings, identity, process, there, state = frame
        if type(there) is UnitOfWork:
            return there
        unit = None
        if isinstance(there, Memory):
            # Whoever ends the call may be looking at its memory now: what becomes of it here must not be seen there.
            seen = there if state is State.OPEN else _twin(there)
            frame[3] = unit = UnitOfWork.of(seen, Want.of(there._terms, identity), settings.bridge, process)
            unit.sole = settings.sole
            # Only now: whoever ends the call says so first, and then looks for a unit.
            unit.state = state = frame[4]
        if state is State.FAILED:
            raise orphan()
        return None if state is State.LANDED else unit


def _twin(memory: Memory) -> Memory:
    """The memory of a call once more, with the same values."""
    twin = Memory.__new__(Memory)
    dict.update(twin, memory)
    for name in Memory.__slots__:
        setattr(twin, name, getattr(memory, name))
    twin._touched = dict(memory._touched)
    return twin


def leave(token: Token[Any]) -> None:
    """Leave the body of a call: what was current before it is so again."""
    try:
        token.var.reset(token)
    except ValueError:
        # A coroutine or generator that is closed in another context than it ran in has nothing to take back there.
        return
