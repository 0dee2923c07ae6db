"""The short way to call the common tool: one with a single memory, that is called by nobody's body.

It builds no unit of work unless the body called another tool or another call was quicker, and where the memory is in this
process no message unless the body changed something. What it leaves out against the ways in `call`: a second memory, a
second store, a resolver to ask, a rerun, a call around it, an owner to be refused; in each of these cases it hands the call
over to them. It repeats in few lines what stands elsewhere: a frame is what it saves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine
from contextvars import Token
from functools import partial
from math import inf
from typing import Any

from agent_gantry_state import codec
from agent_gantry_state.changes import CONTAINERS, FEW, pack_at, plain_changes
from agent_gantry_state.codec import IMMUTABLE
from agent_gantry_state.committing import new_token, new_version, spare_version
from agent_gantry_state.errors import MemoryConflictError, StoreError
from agent_gantry_state.injection.call import (
    GENERATORS,
    aabandon,
    abandon,
    acall,
    call,
    conflicted,
    finish_later,
    refuse_surplus,
    runner,
    warn_of_generator,
)
from agent_gantry_state.injection.plan import Plan
from agent_gantry_state.memory import Memory, Terms, open_memory
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.nesting import CURRENT, leave, unit_of
from agent_gantry_state.scopes import ATTEMPT, ENTERED, refuse_orphan
from agent_gantry_state.sending import send_timeout
from agent_gantry_state.stores.memory import Slot
from agent_gantry_state.stores.protocol import EMPTY, KEEP, Load, Loaded, Snapshot, WouldBlock
from agent_gantry_state.stores.slots import ASK
from agent_gantry_state.unit_of_work import NESTING, State, Tried, UnitOfWork, finish_far, finish_one, forked
from agent_gantry_state.wiring import Settings

__all__ = ["acaller", "caller"]

#: For a memory of which it is not known where it stands: a slot of no store.
_NOWHERE = Slot(Namespace("nowhere", "nothing"), EMPTY, object())
_OPEN, _CLOSING, _LANDED, _FAILED = State.OPEN, State.CLOSING, State.LANDED, State.FAILED


def caller(plan: Plan, fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a call of a tool, not bound to an instance, runs."""
    if plan.is_async:
        return acaller(plan, fn)
    if _is_common(plan):
        return _short_caller(plan, fn)
    run = runner(plan)

    def called(*args: Any, **kwargs: Any) -> Any:
        return run(plan, fn, 0, args, kwargs)

    return called


def acaller(
    plan: Plan,
    fn: Callable[..., Any],
    shift: int = 0,
    body: Callable[..., Coroutine[Any, Any, Any]] | None = None,
    landed: Callable[[Any], None] | None = None,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The function that calls a tool from an event loop; what it is given is that of `acall`."""
    if _is_common(plan):
        return _short_acaller(plan, fn, shift, body, landed)

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return await acall(plan, fn, shift, args, kwargs, body, landed)

    awaited.__qualname__ = plan.label
    return awaited


def _is_common(plan: Plan) -> bool:
    if len(plan.declarations) != 1 or plan.is_generator or plan.is_async_generator:
        return False
    declaration = plan.declarations[0]
    terms = declaration.terms
    if (
        declaration.kind != "memory"
        or declaration.is_view
        or terms.keys is not None
        or terms.serializable
        or terms.exclusive
    ):
        return False
    # There may be no identity for a scope that is nobody's.
    return not (terms.owned and plan.is_impersonal)


def _short_caller(plan: Plan, fn: Callable[..., Any]) -> Callable[..., Any]:
    into, index, slides = _place(plan)
    begin, wiring, get_entered = _beginner(plan), plan.wiring, ENTERED.get
    place, terms, impersonal = plan.key, plan.declarations[0].terms, plan.is_impersonal
    owned, new, update, set_item = terms.owned, dict.__new__, dict.update, dict.__setitem__
    ask, take = _asker(plan)
    get_current, set_current, reset, max_bytes = CURRENT.get, CURRENT.set, CURRENT.reset, _max_bytes(terms)

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
            and type(snapshot) is Snapshot
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
            if (single := settings.single) is not None:
                memory = ask(settings, identity, slot, True)
                if type(memory) is Load:
                    memory = take(memory, single.perform(memory), identity)
            if memory is None:
                return call(plan, fn, 0, args, kwargs)
        frame: list[Any] = [settings, identity, NESTING.process, memory, _OPEN]
        token: Token[Any] | None = None
        try:
            # In here, for a signal may come as soon as it is set.
            token = set_current(frame)
            if len(args) == index and not kwargs:
                result = fn(*args, memory)
            elif len(args) > index:
                result = fn(*args[:index], memory, *args[index:], **kwargs)
            else:
                kwargs[into] = memory
                result = fn(*args, **kwargs)
        except BaseException as error:
            if (unit := _fail_short(frame, token)) is not None:
                abandon(unit)
            refuse_surplus(plan, error, 0, args)
            raise
        try:
            try:
                reset(token)
            except ValueError:
                leave(token)
            if result is not None and (kind := type(result)) not in IMMUTABLE:
                if hasattr(kind, "__await__"):
                    kwargs.pop(into, None)
                    return finish_later(plan, fn, 0, args, kwargs, result, unit_of(frame))
                if kind in GENERATORS:
                    warn_of_generator(plan)
        except BaseException:
            if (unit := _failed(frame)) is not None:
                abandon(unit)
            raise
        base, frame[4] = memory._base, _CLOSING
        # A change needs a touched key, a container or another length; asking costs less than a unit of work.
        try:
            if (unit := frame[3]) is not memory:
                # It called others; its unit was made for them.
                try:
                    refuse_orphan()
                    unit.bridge.run(unit.finish())
                except BaseException:
                    abandon(unit)
                    raise
                return result
            if memory._touched or base.packed or slides or len(memory) != len(base.values):
                try:
                    _finish_short(plan, frame, memory, max_bytes, slot)
                except BaseException:
                    _end(frame, _FAILED)
                    raise
        except MemoryConflictError:
            if not plan.retries:
                raise
        else:
            # What `_end` does.
            frame[4] = _LANDED
            if frame[3] is memory:
                frame[3] = None
            elif frame[3] is not None:
                frame[3].end(_LANDED)
            return result
        kwargs.pop(into, None)
        settings.bridge.run(conflicted(settings.bridge))
        return call(plan, fn, 0, args, kwargs, 1)

    return called


def _short_acaller(
    plan: Plan,
    fn: Callable[..., Any],
    shift: int,
    body: Callable[..., Coroutine[Any, Any, Any]] | None,
    landed: Callable[[Any], None] | None,
) -> Callable[..., Coroutine[Any, Any, Any]]:
    into, index, slides = _place(plan)
    index -= shift
    run = fn if body is None else partial(body, fn)
    begin, wiring, get_entered = _beginner(plan), plan.wiring, ENTERED.get
    place, terms, impersonal = plan.key, plan.declarations[0].terms, plan.is_impersonal
    owned, new, update, set_item = terms.owned, dict.__new__, dict.update, dict.__setitem__
    ask, take = _asker(plan)
    get_current, set_current, reset, max_bytes = CURRENT.get, CURRENT.set, CURRENT.reset, _max_bytes(terms)

    async def called(*args: Any, **kwargs: Any) -> Any:
        if get_current() is not None or (kwargs and into in kwargs):
            return await acall(plan, fn, shift, args, kwargs, body, landed)
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
            and type(snapshot) is Snapshot
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
            if (single := settings.single) is not None:
                memory = ask(settings, identity, slot, False)
                if type(memory) is Load:
                    memory = take(memory, await single.ask_whole(memory), identity)
            if memory is None:
                return await acall(plan, fn, shift, args, kwargs, body, landed)
        frame: list[Any] = [settings, identity, NESTING.process, memory, _OPEN]
        token: Token[Any] | None = None
        try:
            # In here, for a signal may come as soon as it is set.
            token = set_current(frame)
            if len(args) == index and not kwargs:
                result = await run(*args, memory)
            elif len(args) > index:
                result = await run(*args[:index], memory, *args[index:], **kwargs)
            else:
                kwargs[into] = memory
                result = await run(*args, **kwargs)
        except BaseException as error:
            if (unit := _fail_short(frame, token)) is not None:
                await aabandon(unit, error)
            refuse_surplus(plan, error, shift, args)
            raise
        try:
            reset(token)
        except ValueError:
            leave(token)
        except BaseException:
            if (unit := _failed(frame)) is not None:
                await aabandon(unit)
            raise
        base, frame[4] = memory._base, _CLOSING
        # A change needs a touched key, a container or another length; asking costs less than a unit of work.
        try:
            if (unit := frame[3]) is not memory:
                try:
                    await _afinish_nesting(unit, None if landed is None else partial(landed, result))
                except BaseException as error:
                    # Once more, for a signal may have come before it had begun.
                    await aabandon(unit, error)
                    raise
                return result
            if memory._touched or base.packed or slides or len(memory) != len(base.values):
                try:
                    if settings.direct is None:
                        await _afinish_single(frame, memory, max_bytes, None if landed is None else partial(landed, result))
                    else:
                        _finish_short(plan, frame, memory, max_bytes, slot)
                except GeneratorExit:
                    # The commit goes on without this coroutine, and says itself what becomes of it.
                    raise
                except BaseException:
                    _end(frame, _FAILED)
                    raise
        except MemoryConflictError:
            if not plan.retries:
                raise
        else:
            # What `_end` does.
            frame[4] = _LANDED
            if frame[3] is memory:
                frame[3] = None
            elif frame[3] is not None:
                frame[3].end(_LANDED)
            if landed is not None:
                # Nobody can have been cancelled since: nothing was waited for.
                landed(result)
            return result
        kwargs.pop(into, None)
        await settings.bridge.arun(conflicted(settings.bridge))
        return await acall(plan, fn, shift, args, kwargs, body, landed, 1)

    # What Python names in its warning, where somebody has forgotten the await.
    called.__qualname__ = plan.label
    return called


def _fail_short(frame: list[Any], token: Token[Any] | None) -> UnitOfWork | None:
    """Leave the body of a call, and mark that as failed; its unit, to be abandoned, if one was made for calls inside."""
    if token is None:
        # A signal came as it was entered, by nobody's body.
        CURRENT.set(None)
    else:
        leave(token)
    return _failed(frame)


def _failed(frame: list[Any]) -> UnitOfWork | None:
    _end(frame, _FAILED)
    return unit if type(unit := frame[3]) is UnitOfWork else None


def _end(frame: list[Any], state: State) -> None:
    """Note what has become of a call. A unit that has committed it knows that; one that calls inside had made, does not."""
    # First the state, then the look for a unit: whoever makes one looks at the state again after that.
    if frame[4] is _LANDED:
        # Whatever has come between, it has been told that already.
        state = _LANDED
    frame[4] = state
    if type(frame[3]) is UnitOfWork:
        frame[3].end(state)
    else:
        # The context of a task that runs on must not keep the memory.
        frame[3] = None


async def _afinish_nesting(unit: UnitOfWork, landed: Callable[[], None] | None) -> None:
    """Commit a call that called others; its unit was made for them, or for a store that has to be waited for."""
    try:
        refuse_orphan()
        await unit.bridge.arun_uncut(unit.finish(landed))
    except BaseException as error:
        await aabandon(unit, error)
        raise


def _plain(memory: Memory) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """What a call wrote, if it is no more than plain values to what it had loaded; see `plain_changes`."""
    base = memory._base
    if not (base.plain and (base.first or base.later)) or (base.owner is None and memory._terms.owned):
        return None
    return plain_changes(memory)


def _assigned(bridge: Any, memory: Memory, max_bytes: float) -> bool:
    """Whether a store on this machine has committed a call as it was loaded, which wrote no more than plain values."""
    if bridge.attempt_values is None or (plain := _plain(memory)) is None:
        return False
    values, packed = plain
    return not values or bridge.attempt_values(memory._namespace, memory._base, values, packed, new_version(), max_bytes)


def _finish_single(frame: list[Any], memory: Memory, max_bytes: float) -> None:
    """`_finish_short` where the store is not this process."""
    bridge = frame[0].bridge
    if bridge.resendable:
        _finish_far(frame, memory, bridge, max_bytes)
    elif not _assigned(bridge, memory, max_bytes):
        finish_one(memory, frame[1], bridge, bridge.perform)


def _finish_far(frame: list[Any], memory: Memory, bridge: Any, max_bytes: float) -> None:
    """`finish_far`, first without a message, if it is plain values that were written."""
    tried = None
    if bridge.commit_at_once is not None and (plain := _plain(memory)) is not None:
        values, packed = plain
        if not values:
            return
        token, seconds = new_token(), bridge.commit_timeout
        deadline, timeout = time.monotonic() + seconds, send_timeout(seconds)
        try:
            answer = bridge.commit_at_once(memory._namespace, memory._base, values, packed, token, timeout, max_bytes)
        except StoreError as error:
            answer = error
        if answer is True:
            return
        # The keys alone: what a value is must stand in nothing that shows itself.
        tried = Tried(token, deadline, frozenset(values), answer)
    bridge.run(finish_far(memory, frame[1], bridge, partial(_end, frame), tried))


async def _afinish_single(frame: list[Any], memory: Memory, max_bytes: float, landed: Callable[[], None] | None) -> None:
    """`_finish_single`, for a caller on an event loop."""
    bridge = frame[0].bridge
    if frame[2] is not NESTING.process:
        raise forked()
    refuse_orphan()
    if bridge.resendable:

        def ended(state: State) -> None:
            _end(frame, state)
            if landed is not None and state is _LANDED:
                landed()

        await bridge.arun_uncut(finish_far(memory, frame[1], bridge, ended))
        return
    if _assigned(bridge, memory, max_bytes):
        return
    try:
        finish_one(memory, frame[1], bridge, bridge.attempt)
    except WouldBlock:
        pass
    else:
        return
    await _afinish_nesting(unit_of(frame), landed)


def _max_bytes(terms: Terms) -> float:
    """How large a memory may be for a plain write to be committed the short way: what is only read is refused elsewhere, and
    what expires is reckoned there."""
    return -1 if terms.read_only or terms.ttl is not KEEP else terms.limits.plain_bytes


def _finish_short(plan: Plan, frame: list[Any], memory: Memory, max_bytes: float, slot: Slot) -> None:
    if frame[2] is not NESTING.process:
        raise forked()
    if ATTEMPT.get() is not None:
        refuse_orphan()
    store = frame[0].direct
    if store is None:
        _finish_single(frame, memory, max_bytes)
        return
    if slot is _NOWHERE:
        # It was not known where the memory stands when the call began.
        slot = (plan.slots if plan.is_impersonal else frame[1].slots).get(plan.key, slot)
    base, touched = memory._base, memory._touched
    if (
        max_bytes > 0
        and base.head is not None
        and (base.first or base.later)
        and (base.owner is not None or not memory._terms.owned)
    ):
        # Else what a namespace begins with, and its owner, are written with its first key. What the rest does stands here
        # once more for the two usual calls.
        values, packed = base.values, base.packed
        if not packed and len(touched) == 1 and len(memory) == len(values) and memory._extra is None:
            # One assigned a short text to a key that was there.
            for key in touched:
                try:
                    value, old = memory[key], values[key]
                except KeyError:
                    break
                if type(value) is str and type(key) is str and len(value) <= FEW:
                    try:
                        version = spare_version()
                    except IndexError:
                        version = new_version()
                    if value == old or store.put(slot, base, key, value, None, version, max_bytes):
                        return
                break
        elif len(packed) == 1 and len(memory) == len(values) and memory._extra is None and type(base) is Snapshot:
            # The other one changed the only container.
            for key, before in packed.items():
                value = memory.get(key)
                if type(value) in CONTAINERS and (not touched or (len(touched) == 1 and key in touched)):
                    body = pack_at(value, key)
                    if body == before or store.put(slot, base, key, None, body, new_version(), max_bytes):
                        return
        changes = plain_changes(memory)
        if changes is not None:
            written, packed = changes
            if not written or store.assign(slot, base.head, written, packed, new_version(), max_bytes):
                return
    finish_one(memory, frame[1], frame[0].bridge, store.commit)


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
        if store is None or scope in settings.elsewhere:
            return None
        namespace = plan.locate(scope, settings, None if impersonal else identity)
        slot, snapshot = store.slot(namespace), EMPTY
        if slot is not None:
            snapshot = store.shown(slot)
        now = 0.0
        if timed := slides or snapshot.first_expiry != inf:
            now = store.now()
            snapshot = snapshot.live(now)
        if owned and snapshot.owner is not None and snapshot.owner != identity.owner:
            return None
        if slot is not None and not timed:
            # Where keys expire the next call has to ask the store as well.
            _slots(plan, identity)[plan.key] = slot
        return open_memory(namespace, snapshot, now, terms)

    return begin


def _asker(
    plan: Plan,
) -> tuple[Callable[[Settings, Any, Slot, bool], Load | Memory | None], Callable[[Load, Loaded, Any], Memory | None]]:
    """What to ask a store that has to be asked, if it has not the answer at hand and cannot be asked without a message by a
    caller that may block; and what to make of its answer: None if this is not for the short way."""
    terms, scope, impersonal = plan.declarations[0].terms, plan.declarations[0].scope, plan.is_impersonal
    slides, owned = terms.slides, terms.owned

    def ask(settings: Settings, identity: Any, slot: Slot, may_block: bool) -> Load | Memory | None:
        if slot.home is settings.home:
            namespace = slot.namespace
        else:
            namespace = plan.locate(scope, settings, None if impersonal else identity)
            # Says no more than that, of a store that has to be asked.
            _slots(plan, identity)[plan.key] = Slot(namespace, ASK, settings.home)
        bridge: Any = settings.bridge
        if may_block and bridge.load_at_once is not None:
            snapshot, now = bridge.load_at_once(namespace)
            if owned and snapshot.owner is not None and snapshot.owner != identity.owner:
                return None
            return open_memory(namespace, snapshot, now, terms)
        if bridge.attempt_whole is not None and not slides:
            snapshot = bridge.attempt_whole(namespace)
            if snapshot is not None and not (owned and snapshot.owner is not None and snapshot.owner != identity.owner):
                return open_memory(namespace, snapshot, 0.0, terms)
        return Load((namespace,), None, bridge.load_timeout)

    def take(load: Load, loaded: Loaded, identity: Any) -> Memory | None:
        (snapshot,) = loaded.snapshots
        if terms.owned and snapshot.owner is not None and snapshot.owner != identity.owner:
            return None
        return open_memory(load.namespaces[0], snapshot, loaded.now, terms)

    return ask, take
