"""The call of a tool: open its memories, run the body, commit.

There is one general way for sync callers and one for async ones, and beside each a short one for the common tool with a
single memory in this process, which builds no message and no unit of work unless the body changed something.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from math import inf
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from agent_gantry_state.codec import IMMUTABLE
from agent_gantry_state.errors import MemoryConflictError, StateWarning
from agent_gantry_state.injection.plan import Plan
from agent_gantry_state.memory import Memory, open_memory, plain_changes
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import ATTEMPT, ENTERED, IMPERSONAL_SCOPES, refuse_orphan
from agent_gantry_state.steps import Pause, Steps
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.unit_of_work import UnitOfWork, finish_one, new_version
from agent_gantry_state.wiring import Settings

__all__ = ["acall", "call", "caller"]

_GENERATORS = frozenset({GeneratorType, AsyncGeneratorType})
#: Longest pause before a body runs again after a conflict, in seconds, and the first one; each is drawn at random.
_LONGEST_PAUSE, _FIRST_PAUSE = 0.25, 0.005


def call(plan: Plan, fn: Callable[..., Any], shift: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a sync tool.

    Args:
        plan: The tool's.
        fn: The function itself, or a method bound to its instance.
        shift: 1 if *fn* is a bound method, else 0.
        args: What the caller passed by position.
        kwargs: What the caller passed by name.
    """
    plan.refuse(kwargs)
    attempt = 0
    while True:
        settings = plan.wiring.settings
        unit, which = plan.open(settings)
        memories = settings.bridge.run(unit.begin())
        named = dict(kwargs)
        result = fn(*plan.place(args, named, memories, which, shift), **named)
        if type(result) not in IMMUTABLE and hasattr(type(result), "__await__"):
            return _finish_later(plan, fn, shift, args, kwargs, result, unit, settings, attempt)
        if type(result) in _GENERATORS:
            _warn_of_generator(plan)
        refuse_orphan()
        try:
            settings.bridge.run(unit.finish())
        except MemoryConflictError:
            attempt += 1
            if attempt > plan.retries:
                raise
            settings.bridge.run(_pause(attempt))
        else:
            return result


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
    plan.refuse(kwargs)
    while True:
        settings = plan.wiring.settings
        unit, which = plan.open(settings)
        memories = await settings.bridge.arun(unit.begin())
        named = dict(kwargs)
        placed = plan.place(args, named, memories, which, shift)
        result = await (fn(*placed, **named) if body is None else body(fn, *placed, **named))
        attempt += 1
        if await _committed(plan, settings, attempt, _finish(unit, result, landed)):
            return result


async def _committed(plan: Plan, settings: Settings, attempt: int, finish: Steps[None]) -> bool:
    """Commit; False, after a pause, if the body is to run again because of a conflict."""
    refuse_orphan()
    try:
        await settings.bridge.arun_uncut(finish)
    except MemoryConflictError:
        if attempt > plan.retries:
            raise
    else:
        return True
    await settings.bridge.arun(_pause(attempt))
    return False


def _finish(unit: UnitOfWork, result: Any, landed: Callable[[Any], None] | None) -> Steps[None]:
    yield from unit.finish()
    if landed is not None:
        landed(result)


async def _finish_later(
    plan: Plan,
    fn: Callable[..., Any],
    shift: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    awaitable: Awaitable[Any],
    unit: UnitOfWork,
    settings: Settings,
    attempt: int = 0,
) -> Any:
    """Await what a function returned that is not declared `async def` but gives an awaitable, then commit."""
    result = await awaitable
    attempt += 1
    if await _committed(plan, settings, attempt, unit.finish()):
        return result
    return await acall(plan, fn, shift, args, kwargs, _called_and_awaited, None, attempt)


async def _called_and_awaited(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return await fn(*args, **kwargs)


def _warn_of_generator(plan: Plan) -> None:
    warnings.warn(
        f"{plan.label} returned a generator: what its body does to the memory comes after the commit and is lost. "
        "Return a list instead",
        StateWarning,
        stacklevel=3,
    )


def _pause(attempt: int) -> Steps[None]:
    yield Pause(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt)))  # noqa: S311 - jitter


def caller(plan: Plan, fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a call of a tool, not bound to an instance, runs."""
    if len(plan.declarations) == 1 and plan.retries == 0:
        return _short_acaller(plan, fn) if plan.is_async else _short_caller(plan, fn)
    if plan.is_async:

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await acall(plan, fn, 0, args, kwargs)

        return awaited

    def called(*args: Any, **kwargs: Any) -> Any:
        return call(plan, fn, 0, args, kwargs)

    return called


# The short way. What it leaves out against the general one: a second memory, another store, a resolver to ask, a rerun.


def _short_caller(plan: Plan, fn: Callable[..., Any]) -> Callable[..., Any]:
    into, index, slides = _place(plan)
    begin, wiring, get_entered = _beginner(plan), plan.wiring, ENTERED.get

    def called(*args: Any, **kwargs: Any) -> Any:
        settings = wiring.settings
        store = settings.direct
        if store is None or into in kwargs:
            return call(plan, fn, 0, args, kwargs)
        memory = begin(store, settings, get_entered())
        if len(args) == index and not kwargs:
            result = fn(*args, memory)
        elif len(args) > index:
            result = fn(*args[:index], memory, *args[index:], **kwargs)
        else:
            kwargs[into] = memory
            result = fn(*args, **kwargs)
        if type(result) not in IMMUTABLE and hasattr(type(result), "__await__"):
            kwargs.pop(into, None)
            return _finish_later(plan, fn, 0, args, kwargs, result, UnitOfWork.of(memory), settings)
        if type(result) in _GENERATORS:
            _warn_of_generator(plan)
        base = memory._base
        # A change needs a touched key, a container or another length; asking costs less than a unit of work.
        if memory._touched or base.packed or slides or len(memory) != len(base.values):
            _finish_short(memory, store)
        return result

    return called


def _short_acaller(plan: Plan, fn: Callable[..., Any]) -> Callable[..., Any]:
    into, index, slides = _place(plan)
    begin, wiring, get_entered = _beginner(plan), plan.wiring, ENTERED.get

    async def called(*args: Any, **kwargs: Any) -> Any:
        settings = wiring.settings
        store = settings.direct
        if store is None or into in kwargs:
            return await acall(plan, fn, 0, args, kwargs)
        memory = begin(store, settings, get_entered())
        if len(args) == index and not kwargs:
            result = await fn(*args, memory)
        elif len(args) > index:
            result = await fn(*args[:index], memory, *args[index:], **kwargs)
        else:
            kwargs[into] = memory
            result = await fn(*args, **kwargs)
        base = memory._base
        # A change needs a touched key, a container or another length; asking costs less than a unit of work.
        if memory._touched or base.packed or slides or len(memory) != len(base.values):
            _finish_short(memory, store)
        return result

    return called


def _finish_short(memory: Memory, store: MemoryStore) -> None:
    if ATTEMPT.get() is not None:
        refuse_orphan()
    plain, namespace = plain_changes(memory), memory._namespace
    assert namespace is not None  # noqa: S101 - it was opened with one
    if plain is None or (plain and not store.assign(namespace, memory._base.head, plain, new_version())):
        finish_one(memory, store.commit)


def _place(plan: Plan) -> tuple[str, int, bool]:
    into, index, _ = plan.places[0]
    return into, sys.maxsize if index is None else index, plan.declarations[0].terms.slides


def _beginner(plan: Plan) -> Callable[[MemoryStore, Settings, Any], Memory]:
    declaration = plan.declarations[0]
    terms, key = declaration.terms, (plan.wiring.app, declaration.scope)
    slides, impersonal = terms.slides, declaration.scope in IMPERSONAL_SCOPES

    def begin(store: MemoryStore, settings: Settings, entered: Any) -> Memory:
        identity: Any = settings.identity if entered is None else entered.identity
        try:
            namespace: Namespace = identity.namespaces[key]
        except (AttributeError, KeyError):
            namespace = plan.locate(declaration, settings, identity)
        snapshot = store.snapshot(namespace)
        now = store.now() if slides or snapshot.first_expiry != inf else 0.0
        return open_memory(namespace, snapshot, now, terms)

    def begin_impersonal(store: MemoryStore, settings: Settings, entered: Any) -> Memory:
        namespace = plan.locate(declaration, settings, None)
        snapshot = store.snapshot(namespace)
        now = store.now() if slides or snapshot.first_expiry != inf else 0.0
        return open_memory(namespace, snapshot, now, terms)

    return begin_impersonal if impersonal else begin
