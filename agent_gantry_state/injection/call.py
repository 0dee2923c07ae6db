"""The call of a tool: open its memories, run the body, commit.

There is one way for each kind of function: sync, async, generator and async generator. What they do is in the unit of work;
they are written out four times because a body is called in four ways, with an await or a yield in its middle.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextvars import Token
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from agent_gantry_state.codec import IMMUTABLE
from agent_gantry_state.errors import MemoryConflictError, StateWarning
from agent_gantry_state.injection.plan import Plan
from agent_gantry_state.nesting import CURRENT, leave
from agent_gantry_state.scopes import ENTERED, Entered, Identity, refuse_orphan
from agent_gantry_state.steps import Pause, Steps
from agent_gantry_state.unit_of_work import UnitOfWork
from agent_gantry_state.wiring import Settings

__all__ = [
    "GENERATORS",
    "aabandon",
    "abandon",
    "acall",
    "agenerate",
    "call",
    "conflicted",
    "finish_later",
    "generate",
    "refuse_surplus",
    "runner",
    "warn_of_generator",
]

GENERATORS = frozenset({GeneratorType, AsyncGeneratorType})
#: Longest pause before a body runs again after a conflict, in seconds, and the first one; each is drawn at random.
_LONGEST_PAUSE, _FIRST_PAUSE = 0.25, 0.005


def call(
    plan: Plan, fn: Callable[..., Any], shift: int, args: tuple[Any, ...], kwargs: dict[str, Any], attempt: int = 0
) -> Any:
    """Call a sync tool.

    Args:
        plan: The tool's.
        fn: The function itself, or a method bound to its instance.
        shift: 1 if *fn* is a bound method, else 0.
        args: What the caller passed by position.
        kwargs: What the caller passed by name.
        attempt: How often the body has run before.
    """
    if kwargs:
        plan.refuse(kwargs)
    while True:
        settings = plan.wiring.settings
        identity = settings.caller()
        opening = plan.opening(settings, identity)
        unit = plan.unit(opening, settings)
        around = CURRENT.get()
        try:
            settings.bridge.run(unit.start())
            named = kwargs.copy()
            placed = plan.place(args, named, plan.given(unit, opening, settings, identity), shift)
            token = CURRENT.set(unit)
            try:
                result = fn(*placed, **named)
            finally:
                leave(token)
            if type(result) not in IMMUTABLE and hasattr(type(result), "__await__"):
                return finish_later(plan, fn, shift, args, kwargs, result, unit, attempt)
            if type(result) in GENERATORS:
                warn_of_generator(plan)
            attempt += 1
            if _committed(plan, unit, attempt):
                return result
        except BaseException as error:
            _leave(unit, around, error)
            abandon(unit)
            refuse_surplus(plan, error, shift, args)
            raise
        abandon(unit)
        settings.bridge.run(_pause(attempt))


async def acall(
    plan: Plan,
    fn: Callable[..., Any],
    shift: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    body: Callable[..., Coroutine[Any, Any, Any]] | None = None,
    landed: Callable[[Any], None] | None = None,
    attempt: int = 0,
) -> Any:
    """Call a tool from an event loop.

    Args:
        plan: The tool's.
        fn: The function itself, or a method bound to its instance.
        shift: 1 if *fn* is a bound method, else 0.
        args: What the caller passed by position.
        kwargs: What the caller passed by name.
        body: Runs *fn*, which it is given before the arguments; without it *fn* is called and awaited.
        landed: Told the result when everything is committed, even if the caller is cancelled just then.
        attempt: How often the body has run before.
    """
    if kwargs:
        plan.refuse(kwargs)
    while True:
        settings = plan.wiring.settings
        identity = settings.caller()
        opening = plan.opening(settings, identity)
        unit = plan.unit(opening, settings)
        around = CURRENT.get()
        try:
            await settings.bridge.arun(unit.start())
            named = kwargs.copy()
            placed = plan.place(args, named, plan.given(unit, opening, settings, identity), shift)
            token = CURRENT.set(unit)
            try:
                result = await (fn(*placed, **named) if body is None else body(fn, *placed, **named))
            finally:
                leave(token)
            attempt += 1
            note = None if landed is None else partial(landed, result)
            if await _acommitted(plan, unit, attempt, unit.finish(note)):
                return result
        except BaseException as error:
            _leave(unit, around, error)
            await aabandon(unit, error)
            refuse_surplus(plan, error, shift, args)
            raise
        await aabandon(unit)
        await settings.bridge.arun(_pause(attempt))


def generate(
    plan: Plan, fn: Callable[..., Any], shift: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Generator[Any, Any, Any]:
    """Call a generator function: the unit of work spans the iteration, and is current only while the body runs."""
    if kwargs:
        plan.refuse(kwargs)
    plan.bind(shift, args, kwargs)
    return _generated(plan, fn, shift, args, kwargs, plan.wiring.settings.entered())


def _generated(
    plan: Plan,
    fn: Callable[..., Any],
    shift: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    entered: Entered | None,
) -> Generator[Any, Any, Any]:
    settings = plan.wiring.settings
    identity = settings.identity if entered is None else entered.identity
    opening = plan.opening(settings, identity)
    unit = plan.unit(opening, settings)
    inside = _Inside(unit, identity, settings, entered)
    try:
        settings.bridge.run(unit.start())
        named = kwargs.copy()
        placed = plan.place(args, named, plan.given(unit, opening, settings, identity), shift)
        body = fn(*placed, **named)
        step, given = body.send, None
        while True:
            try:
                with inside:
                    item = step(given)
            except StopIteration as stop:
                result = stop.value
                break
            try:
                step, given = body.send, (yield item)
            except GeneratorExit:
                with inside:
                    body.close()
                raise
            except BaseException as error:  # noqa: BLE001 - raised inside the body
                step, given = body.throw, error
        refuse_orphan()
        settings.bridge.run(unit.finish())
    except BaseException:
        inside.leave()
        abandon(unit)
        raise
    return result


def agenerate(
    plan: Plan, fn: Callable[..., Any], shift: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AsyncGenerator[Any, Any]:
    """Call an async generator function, as `generate` does."""
    if kwargs:
        plan.refuse(kwargs)
    plan.bind(shift, args, kwargs)
    return _agenerated(plan, fn, shift, args, kwargs, plan.wiring.settings.entered())


async def _agenerated(
    plan: Plan,
    fn: Callable[..., Any],
    shift: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    entered: Entered | None,
) -> AsyncGenerator[Any, Any]:
    settings = plan.wiring.settings
    identity = settings.identity if entered is None else entered.identity
    opening = plan.opening(settings, identity)
    unit = plan.unit(opening, settings)
    inside = _Inside(unit, identity, settings, entered)
    try:
        await settings.bridge.arun(unit.start())
        named = kwargs.copy()
        placed = plan.place(args, named, plan.given(unit, opening, settings, identity), shift)
        body = fn(*placed, **named)
        step, given = body.asend, None
        while True:
            try:
                with inside:
                    item = await step(given)
            except StopAsyncIteration:
                break
            try:
                step, given = body.asend, (yield item)
            except GeneratorExit:
                with inside:
                    await body.aclose()
                # Only here may one that is closed wait: elsewhere it is whoever awaits this that is being closed.
                await aabandon(unit)
                raise
            except BaseException as error:  # noqa: BLE001 - raised inside the body
                step, given = body.athrow, error
        refuse_orphan()
        await settings.bridge.arun_uncut(unit.finish())
    except BaseException as error:
        inside.leave()
        await aabandon(unit, error)
        raise


class _Inside:
    """Makes a unit current for a step of a generator, with the identity of whoever called the generator function.

    What the body itself enters in one step holds in the next.
    """

    __slots__ = ("_around", "_entered", "_frame", "_settings", "_tokens")
    _tokens: tuple[Token[Any], Token[Any]]

    def __init__(self, unit: UnitOfWork, identity: Identity | None, settings: Settings, entered: Entered | None) -> None:
        self._frame: Any = unit
        self._settings = settings
        #: What was current before the step.
        self._around: tuple[Any, Entered | None] | None = None
        # One of its own where a framework may say something else in each step.
        self._entered = Entered(identity or Identity()) if settings.frameworks else entered

    def __enter__(self) -> None:
        if self._settings.frameworks and self._entered is not None:
            self._entered.said = self._settings.said()
        self._around = CURRENT.get(), ENTERED.get()
        self._tokens = CURRENT.set(self._frame), ENTERED.set(self._entered)

    def __exit__(self, *exc: object) -> None:
        self._frame, self._entered = CURRENT.get(), ENTERED.get()
        for token in self._tokens:
            leave(token)
        self._around = None

    def leave(self) -> None:
        """Leave a step where a signal came as it was entered or left."""
        if self._around is not None:
            around, entered = self._around
            CURRENT.set(around)
            ENTERED.set(entered)


def _committed(plan: Plan, unit: UnitOfWork, attempt: int) -> bool:
    """Commit; False if the body is to run again because of a conflict."""
    refuse_orphan()
    try:
        unit.bridge.run(unit.finish())
    except MemoryConflictError:
        if attempt > plan.retries:
            raise
        _count_rerun(unit.bridge)
        return False
    return True


async def _acommitted(plan: Plan, unit: UnitOfWork, attempt: int, finish: Steps[None]) -> bool:
    """`_committed`, for a caller on an event loop."""
    refuse_orphan()
    try:
        await unit.bridge.arun_uncut(finish)
    except MemoryConflictError:
        if attempt > plan.retries:
            raise
        _count_rerun(unit.bridge)
        return False
    return True


def _count_rerun(bridge: Any) -> None:
    if bridge.counters is not None:
        bridge.counters.rerun()


def conflicted(bridge: Any) -> Steps[None]:
    """Wait until the body of a call runs again whose first commit was refused."""
    _count_rerun(bridge)
    yield from _pause(1)


def abandon(unit: UnitOfWork) -> None:
    """Discard what a call changed, and let others have what it had to itself."""
    unit.fail()
    if unit.has_to_release:
        unit.bridge.run(unit.release())


async def aabandon(unit: UnitOfWork, error: BaseException | None = None) -> None:
    """`abandon`, for a caller on an event loop."""
    unit.fail()
    if unit.has_to_release:
        if _is_closing(error):
            # A coroutine that is being closed must not wait.
            unit.drop()
        else:
            await unit.bridge.arun_uncut(unit.release())


def _is_closing(error: BaseException | None) -> bool:
    # A cancel scope of anyio, or one of its limiters, says instead that it is left in another task.
    while error is not None and not isinstance(error, GeneratorExit):
        error = error.__context__
    return error is not None


async def finish_later(
    plan: Plan,
    fn: Callable[..., Any],
    shift: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    awaitable: Awaitable[Any],
    unit: UnitOfWork,
    attempt: int = 0,
) -> Any:
    """Await what a function returned that is not declared `async def` but gives an awaitable, then commit."""
    around = CURRENT.get()
    try:
        token = CURRENT.set(unit)
        try:
            result = await awaitable
        finally:
            leave(token)
        attempt += 1
        if await _acommitted(plan, unit, attempt, unit.finish()):
            return result
    except BaseException as error:
        _leave(unit, around, error)
        await aabandon(unit, error)
        raise
    await aabandon(unit)
    await unit.bridge.arun(_pause(attempt))
    return await acall(plan, fn, shift, args, kwargs, _called_and_awaited, None, attempt)


def _leave(unit: UnitOfWork, around: Any, error: BaseException) -> None:
    """Leave the body of a call where a signal came as it was entered or left."""
    # One that is closed may be so in the context of a task that was begun inside.
    if CURRENT.get() is unit and not _is_closing(error):
        CURRENT.set(around)


async def _called_and_awaited(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return await fn(*args, **kwargs)


def refuse_surplus(plan: Plan, error: BaseException, shift: int, args: tuple[Any, ...]) -> None:
    """Refuse a surplus of arguments in words of our own, where it is what *error* says: that no body has been entered.

    Raises:
        TypeError: There is one.
    """
    if type(error) is TypeError and (here := error.__traceback__) is not None and here.tb_next is None:
        try:
            plan.refuse_surplus(shift, args)
        except TypeError as ours:
            raise ours from None


def warn_of_generator(plan: Plan) -> None:
    """Warn that a function which is no generator function gave a generator."""
    warnings.warn(
        f"{plan.label} returned a generator: what its body does to the memory comes after the commit and is lost. "
        "Make the function a generator function itself, or return a list",
        StateWarning,
        stacklevel=3,
    )


def _pause(attempt: int) -> Steps[None]:
    yield Pause(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)))  # noqa: S311 - jitter


def runner(plan: Plan) -> Callable[..., Any]:
    """The way to call a tool with this plan."""
    if plan.is_generator:
        return generate
    if plan.is_async_generator:
        return agenerate
    return acall if plan.is_async else call
