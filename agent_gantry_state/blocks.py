"""The `with` blocks of a gantry: who calls, what holds meanwhile, a memory outside a tool, calls that stand on their own.

Each is for `with` and for `async with`, and may be left in another task or context than it was entered in.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from agent_gantry_state.errors import StateWarning
from agent_gantry_state.memory import Memory
from agent_gantry_state.nesting import CURRENT, Alone
from agent_gantry_state.scopes import ENTERED, Entered, Identity, refuse_orphan
from agent_gantry_state.unit_of_work import UnitOfWork
from agent_gantry_state.wiring import Layer, Wiring

__all__ = ["Independent", "MemoryBlock", "Override", "SessionBlock"]


class _Block:
    """A context manager that may be used with `with` and with `async with`; it does no I/O and so never waits."""

    __slots__ = ()

    # A signal, as Ctrl-C sends it, may come at any call in these: what is half entered, or half left, is left.

    def __enter__(self) -> Any:
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Any:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()


#: What a block of which nobody has used the `with` has been entered as.
_NEVER: list[Entered] = []


def _warn_of_no_with(call: str) -> None:
    """Warn that a block was made and thrown away, at the line where that happened: its caller's, mostly."""
    warnings.warn(
        f"gantry.{call}(...) does nothing by itself: write `with gantry.{call}(...):` (or `async with`) around the calls",
        StateWarning,
        stacklevel=3,
    )


def _holding(entered: list[Any], here: Any) -> Any:
    """The entry of a block that holds here; if none does, for it is another task that leaves, the last one made."""
    return here if here in entered else entered[-1]


def _leave(entered: list[Any], entry: Any) -> None:
    """Leave an entry of a block, which may have been done in part."""
    entry.leave()
    if entry in entered:
        entered.remove(entry)


class SessionBlock(_Block):
    """An identity that holds inside a `with` block. Gives the `Identity`."""

    __slots__ = ("_entered", "_identity", "_wiring")

    def __init__(self, identity: Identity, wiring: Wiring) -> None:
        self._entered: list[Entered] = _NEVER
        self._identity = identity
        self._wiring = wiring

    def __del__(self) -> None:
        # Without a session of its own, a call may go to that of the whole program.
        if self._entered is _NEVER:
            _warn_of_no_with("session")

    # Whoever opens a session for each call feels every frame here.

    def __enter__(self) -> Identity:
        settings = self._wiring.settings
        entered = Entered(self._identity, ENTERED.get(), settings.said() if settings.frameworks else None)
        try:
            # In here, for a signal may come as soon as it is set.
            ENTERED.set(entered)
            if self._entered is _NEVER:
                self._entered = [entered]
            else:
                self._entered.append(entered)
        except BaseException:
            _leave(self._entered, entered)
            raise
        return self._identity

    def __exit__(self, *exc: object) -> None:
        entered = self._entered
        entry = entered[-1]
        try:
            here = ENTERED.get()
            if here is not entry:
                entry = _holding(entered, here)
                _leave(entered, entry)
                return
            # What `_leave` does.
            entry.closed = True
            top = entry.outer
            while top is not None and top.closed:
                top = top.outer
            ENTERED.set(top)
            entered.pop()
        except BaseException:
            _leave(entered, entry)
            raise

    async def __aenter__(self) -> Identity:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()


class Override(_Block):
    """Other parts for a gantry inside a `with` block. Gives itself.

    Attributes:
        store: The store that holds inside the block.
    """

    def __init__(self, wiring: Wiring, layer: Layer, identity: Callable[[], Identity] | None):
        self._wiring = wiring
        self._layer = layer
        self._identity = identity
        self._layers: list[Layer] = []
        self._entered: list[Entered] = []
        self._used = False

    def __del__(self) -> None:
        if not self._used:
            _warn_of_no_with("override")

    @property
    def store(self) -> Any:
        return self._wiring.settings.bridge.store

    def __enter__(self) -> Override:
        self._used = True
        layer, entered = replace(self._layer), None
        try:
            self._wiring.push(layer)
            if self._identity is not None:
                # By the resolvers that hold inside: the identity is nearer than what these say where it is entered.
                entered = Entered(self._identity(), said=self._wiring.settings.said())
                self._entered.append(entered)
                entered.enter()
            self._layers.append(layer)
        except BaseException:
            self._undo(layer, entered)
            raise
        return self

    async def __aenter__(self) -> Override:
        return self.__enter__()

    def _exit(self) -> None:
        layer, entered = self._layers[-1], None
        try:
            if self._identity is not None:
                entered = self._entered[-1]
                entered = _holding(self._entered, ENTERED.get())
            self._undo(layer, entered)
        except BaseException:
            self._undo(layer, entered)
            raise

    def _undo(self, layer: Layer, entered: Entered | None) -> None:
        """Leave what may have been entered, or left, in part."""
        if entered is not None:
            _leave(self._entered, entered)
        self._wiring.remove(layer)
        if layer in self._layers:
            self._layers.remove(layer)

    def __exit__(self, *exc: object) -> None:
        self._exit()
        if self._layer.bridge is not None and not self._layers:
            self._layer.bridge.close()

    async def __aexit__(self, *exc: object) -> None:
        self._exit()
        if self._layer.bridge is not None and not self._layers:
            await self._layer.bridge.aclose()


class MemoryBlock:
    """A memory outside a tool: loaded when the `with` block begins, committed when it ends without an error.

    Inside the body of a tool it is a part of that call, as a call of another tool would be. Tools that are called in the
    block are calls of their own.
    """

    def __init__(self, open_unit: Callable[[], UnitOfWork]) -> None:
        self._open_unit = open_unit
        self._open: list[tuple[object, UnitOfWork]] = []
        self._used = False

    def __del__(self) -> None:
        if not self._used:
            _warn_of_no_with("memory")

    def _begin(self) -> UnitOfWork:
        self._used = True
        unit = self._open_unit()
        self._open.append((_here(), unit))
        return unit

    def _end(self) -> UnitOfWork:
        """The unit that is over: the last that was begun here; if none was, for another task leaves the block, the last."""
        here = _here()
        for entry in reversed(self._open):
            if entry[0] == here:
                break
        else:
            entry = self._open[-1]
        self._open.remove(entry)
        return entry[1]

    def __enter__(self) -> Memory:
        unit = self._begin()
        try:
            memory: Memory = unit.bridge.run(unit.begin())[0]
        except BaseException:
            self._end().fail()
            raise
        return memory

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        unit = self._end()
        if kind is None:
            refuse_orphan()
            unit.bridge.run(unit.finish())
        else:
            unit.fail()

    async def __aenter__(self) -> Memory:
        unit = self._begin()
        try:
            memory: Memory = (await unit.bridge.arun(unit.begin()))[0]
        except BaseException:
            self._end().fail()
            raise
        return memory

    async def __aexit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        unit = self._end()
        if kind is None:
            refuse_orphan()
            await unit.bridge.arun_uncut(unit.finish())
        else:
            unit.fail()


def _here() -> object:
    """Something that tells the task, or the thread, in which this is called from others."""
    import anyio

    try:
        return anyio.get_current_task().id
    except RuntimeError:
        return threading.get_ident()


class Independent(_Block):
    """A block in which calls are no part of the call in whose body it stands."""

    def __init__(self) -> None:
        self._entered: list[Alone] = []
        self._used = False

    def __del__(self) -> None:
        if not self._used:
            _warn_of_no_with("independent")

    def __enter__(self) -> None:
        self._used = True
        alone = Alone()
        try:
            alone.enter()
            self._entered.append(alone)
        except BaseException:
            _leave(self._entered, alone)
            raise

    def __exit__(self, *exc: object) -> None:
        alone = self._entered[-1]
        try:
            alone = _holding(self._entered, CURRENT.get())
            _leave(self._entered, alone)
        except BaseException:
            _leave(self._entered, alone)
            raise

    async def __aenter__(self) -> None:
        self.__enter__()
