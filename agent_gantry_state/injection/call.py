"""The call of a tool: open its memories, run the body, commit.

There is one general way for each kind of function: sync, async, generator and async generator. What they do is in the unit
of work; they are written out four times because a body is called in four ways, with an await or a yield in its middle.
Beside the first two is a short way for the common tool with a single memory in this process, which builds no message and no
unit of work unless the body changed something or called another tool. It repeats in few lines what is elsewhere: a frame is
what it saves.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextvars import Token
from math import inf
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from agent_gantry_state import codec
from agent_gantry_state.codec import IMMUTABLE
from agent_gantry_state.errors import MemoryConflictError, StateWarning
from agent_gantry_state.injection.plan import Opened, Plan
from agent_gantry_state.memory import Memory, open_memory, plain_changes
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.nesting import CURRENT, FAILED, leave, unit_of
from agent_gantry_state.scopes import ATTEMPT, ENTERED, Entered, refuse_orphan
from agent_gantry_state.steps import Pause, Steps
from agent_gantry_state.stores.memory import Slot
from agent_gantry_state.stores.protocol import EMPTY
from agent_gantry_state.unit_of_work import UnitOfWork, finish_one, new_version
from agent_gantry_state.wiring import Settings

__all__ = ["acall", "agenerate", "call", "caller", "generate", "runner"]

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
        opened = plan.open(settings, ENTERED.get())
        unit = opened.unit
        try:
            settings.bridge.run(unit.begin())
            placed, named = _placed(plan, opened, settings, args, kwargs, shift)
            token = CURRENT.set(unit)
            try:
                result = fn(*placed, **named)
            finally:
                leave(token)
            if type(result) not in IMMUTABLE and hasattr(type(result), "__await__"):
                return _finish_later(plan, fn, shift, args, kwargs, result, unit, attempt)
            if type(result) in _GENERATORS:
                _warn_of_generator(plan)
            attempt += 1
            if _committed(plan, unit, attempt):
                return result
        except BaseException:
            _abandon(unit)
            raise
        _abandon(unit)
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
    plan.refuse(kwargs)
    while True:
        settings = plan.wiring.settings
        opened = plan.open(settings, ENTERED.get())
        unit = opened.unit
        try:
            await settings.bridge.arun(unit.begin())
            placed, named = _placed(plan, opened, settings, args, kwargs, shift)
            token = CURRENT.set(unit)
            try:
                result = await (fn(*placed, **named) if body is None else body(fn, *placed, **named))
            finally:
                leave(token)
            attempt += 1
            if await _acommitted(plan, unit, attempt, _finish(unit, result, landed)):
                return result
        except BaseException as error:
            await _aabandon(unit, error)
            raise
        await _aabandon(unit)
        await settings.bridge.arun(_pause(attempt))


def generate(
    plan: Plan, fn: Callable[..., Any], shift: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Generator[Any, Any, Any]:
    """Call a generator function: the unit of work spans the iteration, and is current only while the body runs."""
    plan.refuse(kwargs)
    plan.bind(shift, args, kwargs)
    return _generated(plan, fn, shift, args, kwargs, ENTERED.get())


def _generated(
    plan: Plan,
    fn: Callable[..., Any],
    shift: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    entered: Entered | None,
) -> Generator[Any, Any, Any]:
    settings = plan.wiring.settings
    opened = plan.open(settings, entered)
    unit = opened.unit
    inside = _Inside(unit, entered)
    try:
        settings.bridge.run(unit.begin())
        placed, named = _placed(plan, opened, settings, args, kwargs, shift)
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
        _abandon(unit)
        raise
    return result


def agenerate(
    plan: Plan, fn: Callable[..., Any], shift: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> AsyncGenerator[Any, Any]:
    """Call an async generator function, as `generate` does."""
    plan.refuse(kwargs)
    plan.bind(shift, args, kwargs)
    return _agenerated(plan, fn, shift, args, kwargs, ENTERED.get())


async def _agenerated(
    plan: Plan,
    fn: Callable[..., Any],
    shift: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    entered: Entered | None,
) -> AsyncGenerator[Any, Any]:
    settings = plan.wiring.settings
    opened = plan.open(settings, entered)
    unit = opened.unit
    inside = _Inside(unit, entered)
    try:
        await settings.bridge.arun(unit.begin())
        placed, named = _placed(plan, opened, settings, args, kwargs, shift)
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
                raise
            except BaseException as error:  # noqa: BLE001 - raised inside the body
                step, given = body.athrow, error
        refuse_orphan()
        await settings.bridge.arun_uncut(unit.finish())
    except BaseException:
        await _aabandon(unit)
        raise


class _Inside:
    """Makes a unit current for a step of a generator, with the identity of whoever called the generator function.

    What the body itself enters in one step holds in the next.
    """

    __slots__ = ("_entered", "_frame", "_tokens")
    _tokens: tuple[Token[Any], Token[Any]]

    def __init__(self, unit: UnitOfWork, entered: Entered | None) -> None:
        self._frame: Any = unit
        self._entered = entered

    def __enter__(self) -> None:
        self._tokens = CURRENT.set(self._frame), ENTERED.set(self._entered)

    def __exit__(self, *exc: object) -> None:
        self._frame, self._entered = CURRENT.get(), ENTERED.get()
        for token in self._tokens:
            leave(token)


def _placed(
    plan: Plan, opened: Opened, settings: Settings, args: tuple[Any, ...], kwargs: dict[str, Any], shift: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for the function, with what is injected among them."""
    named = dict(kwargs)
    return plan.place(args, named, plan.given(opened, settings), shift), named


def _committed(plan: Plan, unit: UnitOfWork, attempt: int) -> bool:
    """Commit; False if the body is to run again because of a conflict."""
    refuse_orphan()
    try:
        unit.bridge.run(unit.finish())
    except MemoryConflictError:
        if attempt > plan.retries:
            raise
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
        return False
    return True


def _abandon(unit: UnitOfWork) -> None:
    unit.fail()
    if unit.has_to_release:
        unit.bridge.run(unit.release())


async def _aabandon(unit: UnitOfWork, error: BaseException | None = None) -> None:
    unit.fail()
    if unit.has_to_release:
        if isinstance(error, GeneratorExit):
            # A coroutine that is being closed must not wait.
            unit.drop()
        else:
            await unit.bridge.arun_uncut(unit.release())


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
    attempt: int = 0,
) -> Any:
    """Await what a function returned that is not declared `async def` but gives an awaitable, then commit."""
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
        await _aabandon(unit, error)
        raise
    await _aabandon(unit)
    await unit.bridge.arun(_pause(attempt))
    return await acall(plan, fn, shift, args, kwargs, _called_and_awaited, None, attempt)


async def _called_and_awaited(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return await fn(*args, **kwargs)


def _warn_of_generator(plan: Plan) -> None:
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


def caller(plan: Plan, fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a call of a tool, not bound to an instance, runs."""
    if _is_common(plan):
        return _short_acaller(plan, fn) if plan.is_async else _short_caller(plan, fn)
    run = runner(plan)
    if plan.is_async:

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return await acall(plan, fn, 0, args, kwargs)

        return awaited

    def called(*args: Any, **kwargs: Any) -> Any:
        return run(plan, fn, 0, args, kwargs)

    return called


#: For a memory of which it is not known where it stands: a slot of no store.
_NOWHERE = Slot(Namespace("nowhere", "nothing"), EMPTY, object())

# The short way. What it leaves out against the general one: a second memory, another store, a resolver to ask, a rerun,
# a call around it, an owner to be refused.


def _is_common(plan: Plan) -> bool:
    if len(plan.declarations) != 1 or plan.retries or plan.is_generator or plan.is_async_generator:
        return False
    declaration = plan.declarations[0]
    terms = declaration.terms
    if declaration.kind != "memory" or terms.keys is not None or terms.serializable or terms.exclusive:
        return False
    # There may be no identity for a scope that is nobody's.
    return not (terms.owned and plan.is_impersonal)


def _short_caller(plan: Plan, fn: Callable[..., Any]) -> Callable[..., Any]:
    into, index, slides = _place(plan)
    begin, wiring, get_entered = _beginner(plan), plan.wiring, ENTERED.get
    place, terms, impersonal = plan.key, plan.declarations[0].terms, plan.is_impersonal
    owned, new, update, set_item = terms.owned, dict.__new__, dict.update, dict.__setitem__
    get_current, set_current, reset = CURRENT.get, CURRENT.set, CURRENT.reset

    def called(*args: Any, **kwargs: Any) -> Any:
        if get_current() is not None or (kwargs and into in kwargs):
            return call(plan, fn, 0, args, kwargs)
        settings, entered = wiring.settings, get_entered()
        identity: Any = settings.identity if entered is None else entered.identity
        try:
            slot = (plan.slots if impersonal else identity.slots)[place]
        except (AttributeError, KeyError):
            slot = _NOWHERE
        # The snapshot first: if the slot is in the store after that, this is what stood there.
        snapshot = slot.snapshot
        if (
            slot.home is settings.home
            and snapshot.first_expiry == inf
            and not slides
            and (not owned or snapshot.owner == identity.owner)
        ):
            slot.used = True
            # What `open_memory` does: a frame more is felt here.
            memory: Any = new(Memory)
            update(memory, snapshot.values)
            if snapshot.packed:
                for key, packed in snapshot.packed.items():
                    set_item(memory, key, codec.unpack(packed))
            memory._namespace, memory._base, memory._extra = slot.namespace, snapshot, None
            memory._terms, memory._now, memory._touched = terms, 0.0, {}
        elif (memory := begin(settings, identity)) is None:
            return call(plan, fn, 0, args, kwargs)
        frame: list[Any] = [settings, identity, memory]
        token = set_current(frame)
        try:
            if len(args) == index and not kwargs:
                result = fn(*args, memory)
            elif len(args) > index:
                result = fn(*args[:index], memory, *args[index:], **kwargs)
            else:
                kwargs[into] = memory
                result = fn(*args, **kwargs)
        except BaseException:
            _fail_short(frame, token)
            raise
        try:
            reset(token)
        except ValueError:
            leave(token)
        if (kind := type(result)) not in IMMUTABLE:
            if hasattr(kind, "__await__"):
                kwargs.pop(into, None)
                return _finish_later(plan, fn, 0, args, kwargs, result, unit_of(frame))
            if kind in _GENERATORS:
                _warn_of_generator(plan)
        base, ended = memory._base, frame.pop()
        # A change needs a touched key, a container or another length; asking costs less than a unit of work.
        if ended is not memory:
            _finish_nesting(ended)
        elif memory._touched or base.packed or slides or len(memory) != len(base.values):
            try:
                _finish_short(plan, memory, identity, settings)
            except BaseException:
                frame[0] = FAILED
                raise
        return result

    return called


def _short_acaller(plan: Plan, fn: Callable[..., Any]) -> Callable[..., Any]:
    into, index, slides = _place(plan)
    begin, wiring, get_entered = _beginner(plan), plan.wiring, ENTERED.get
    place, terms, impersonal = plan.key, plan.declarations[0].terms, plan.is_impersonal
    owned, new, update, set_item = terms.owned, dict.__new__, dict.update, dict.__setitem__
    get_current, set_current, reset = CURRENT.get, CURRENT.set, CURRENT.reset

    async def called(*args: Any, **kwargs: Any) -> Any:
        if get_current() is not None or (kwargs and into in kwargs):
            return await acall(plan, fn, 0, args, kwargs)
        settings, entered = wiring.settings, get_entered()
        identity: Any = settings.identity if entered is None else entered.identity
        try:
            slot = (plan.slots if impersonal else identity.slots)[place]
        except (AttributeError, KeyError):
            slot = _NOWHERE
        # The snapshot first: if the slot is in the store after that, this is what stood there.
        snapshot = slot.snapshot
        if (
            slot.home is settings.home
            and snapshot.first_expiry == inf
            and not slides
            and (not owned or snapshot.owner == identity.owner)
        ):
            slot.used = True
            # What `open_memory` does: a frame more is felt here.
            memory: Any = new(Memory)
            update(memory, snapshot.values)
            if snapshot.packed:
                for key, packed in snapshot.packed.items():
                    set_item(memory, key, codec.unpack(packed))
            memory._namespace, memory._base, memory._extra = slot.namespace, snapshot, None
            memory._terms, memory._now, memory._touched = terms, 0.0, {}
        elif (memory := begin(settings, identity)) is None:
            return await acall(plan, fn, 0, args, kwargs)
        frame: list[Any] = [settings, identity, memory]
        token = set_current(frame)
        try:
            if len(args) == index and not kwargs:
                result = await fn(*args, memory)
            elif len(args) > index:
                result = await fn(*args[:index], memory, *args[index:], **kwargs)
            else:
                kwargs[into] = memory
                result = await fn(*args, **kwargs)
        except BaseException:
            _fail_short(frame, token)
            raise
        try:
            reset(token)
        except ValueError:
            leave(token)
        base, ended = memory._base, frame.pop()
        # A change needs a touched key, a container or another length; asking costs less than a unit of work.
        if ended is not memory:
            _finish_nesting(ended)
        elif memory._touched or base.packed or slides or len(memory) != len(base.values):
            try:
                _finish_short(plan, memory, identity, settings)
            except BaseException:
                frame[0] = FAILED
                raise
        return result

    return called


def _fail_short(frame: list[Any], token: Token[Any]) -> None:
    leave(token)
    # First the mark, then the end: whoever finds the list without its last item looks at the mark.
    frame[0] = FAILED
    ended = frame.pop()
    if isinstance(ended, UnitOfWork):
        _abandon(ended)


def _finish_nesting(unit: UnitOfWork) -> None:
    """Commit a call that called others; its unit was made for them."""
    try:
        refuse_orphan()
        unit.bridge.run(unit.finish())
    except BaseException:
        _abandon(unit)
        raise


def _finish_short(plan: Plan, memory: Memory, identity: Any, settings: Settings) -> None:
    if ATTEMPT.get() is not None:
        refuse_orphan()
    plain, base, store = plain_changes(memory), memory._base, settings.direct
    assert store is not None  # noqa: S101 - the memory came from it
    if plain is not None:
        if not plain:
            return
        is_bound = base.owner is not None or not memory._terms.owned
        slot = _slots(plan, identity).get(plan.key)
        if is_bound and slot is not None and store.assign(slot, base.head, plain, new_version()):
            return
    finish_one(memory, identity, settings.bridge, store.commit)


def _slots(plan: Plan, identity: Any) -> dict[Any, Any]:
    return plan.slots if plan.is_impersonal else identity.slots


def _place(plan: Plan) -> tuple[str, int, bool]:
    into, index, _ = plan.places[0]
    return into, sys.maxsize if index is None else index, plan.declarations[0].terms.slides


def _beginner(plan: Plan) -> Callable[[Settings, Any], Memory | None]:
    """Opens the memory of a call from the store; None if this is not for the short way."""
    declaration = plan.declarations[0]
    terms, scope = declaration.terms, declaration.scope
    slides, owned, impersonal = terms.slides, terms.owned, plan.is_impersonal

    def begin(settings: Settings, identity: Any) -> Memory | None:
        store = settings.direct
        if store is None:
            return None
        namespace = plan.locate(scope, settings, None if impersonal else identity)
        snapshot = store.snapshot(namespace)
        if owned and snapshot.owner is not None and snapshot.owner != identity.owner:
            return None
        slot = store.slot(namespace)
        if slot is not None:
            _slots(plan, identity)[plan.key] = slot
        now = store.now() if slides or snapshot.first_expiry != inf else 0.0
        return open_memory(namespace, snapshot, now, terms)

    return begin
