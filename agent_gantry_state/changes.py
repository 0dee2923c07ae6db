"""What a call did to its memory, found when it ends: which keys it wrote, which it deleted, what it added to numbers.

Values are compared by their encoded bytes, never by `==`, for which 1, 1.0 and True are the same.
"""

from __future__ import annotations

from typing import Any, Final

from agent_gantry_state import codec
from agent_gantry_state.codec import shortened
from agent_gantry_state.compartments import FIRST_OPEN, is_reserved, known_as
from agent_gantry_state.errors import UnstorableValueError
from agent_gantry_state.memory import EXPIRY, Changes, Extra, Inherited, Memory, Terms, given_ttl
from agent_gantry_state.merge import ABSENT
from agent_gantry_state.stores.protocol import KEEP, SMALL_SIZE, UNSHARED, Put

__all__ = [
    "CONTAINERS",
    "FEW",
    "changes_of",
    "is_due",
    "pack_at",
    "plain_changes",
    "refuse_key",
    "refuse_reserved",
    "touches",
]

#: A sliding time to live is restarted only when this part of it has gone.
TOUCH_AFTER = 0.1
_IMMUTABLE = codec.IMMUTABLE
#: What is encoded as a whole.
CONTAINERS: Final = frozenset({dict, list, set, tuple, frozenset})
#: Those of which what is equal has the same bytes.
_EQUAL_IS_SAME = _IMMUTABLE - {float}
#: Letters that a str may have to be small, four bytes each.
FEW: Final = 100
_get = dict.get


def is_due(memory: Memory) -> bool:
    """Whether this use is to restart the time of the keys that slide, though it writes nothing."""
    base = memory._base
    return bool(base.slides) and touches(memory) and memory._now - base.touched > TOUCH_AFTER * min(base.slides.values())


def touches(memory: Memory) -> bool:
    """Whether a use of this memory restarts the time of the keys that slide."""
    return memory._terms.slides or (memory._extra is not None and memory._extra.touches)


#: Where there are no containers.
_NONE: Final[dict[str, bytes]] = {}


def plain_changes(memory: Memory) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """What the call wrote, where that is all that it can have done; None: ask `changes_of`.

    All means: no value that is not small but containers, no deadlines, nothing deleted, at most one key that is new. What it
    gives is what `changes_of` would, for a commit that finds the namespace as it was loaded.

    Returns:
        The values, None for a container, and the bytes of each container.

    Raises:
        UnstorableValueError: A value cannot be stored.
    """
    base = memory._base
    if memory._extra is not None or memory._terms.ttl is not KEEP:
        return None
    values, encoded, touched = base.values, base.packed, memory._touched
    if len(touched) == 1 and not encoded and len(memory) == len(values):
        # What the rest does, for the usual call: it assigned a short text to a key that was there.
        for key in touched:
            value, old = _get(memory, key), values.get(key)
            if type(value) is str and type(old) is str and type(key) is str and len(value) <= FEW:
                return ({} if value == old else {key: value}), _NONE
    plain: dict[str, Any] = {}
    packed = _NONE
    expected = known = len(values)
    for key in touched:
        if type(key) is not str:
            return None
        value, old = _get(memory, key, ABSENT), values.get(key, ABSENT)
        if old is ABSENT:
            if key < FIRST_OPEN or key.__sizeof__() > SMALL_SIZE:
                return None
            expected += 1
        kind = type(value)
        if kind in CONTAINERS:
            after = pack_at(value, key)
            if after != encoded.get(key):
                packed = packed or {}
                plain[key], packed[key] = None, after
            continue
        if kind not in _EQUAL_IS_SAME or (encoded and key in encoded):
            return None
        # A short str is small, whatever is in it, and to ask for its length costs less.
        if (kind is not str or len(value) > FEW) and value.__sizeof__() > SMALL_SIZE:
            return None
        if kind is type(old) and value == old:
            continue
        plain[key] = value
    if encoded and not memory._terms.bare:
        for key, before in encoded.items():
            if key in touched:
                continue
            value = _get(memory, key, ABSENT)
            if type(value) not in CONTAINERS:
                return None
            after = pack_at(value, key)
            if after != before:
                packed = packed or {}
                plain[key], packed[key] = None, after
    return (plain, packed) if len(memory) == expected <= known + 1 else None


def changes_of(memory: Memory) -> Changes | None:
    """What the call did to its memory; None if nothing.

    Raises:
        UnstorableValueError: A key or value cannot be stored.
    """
    base, terms, extra = memory._base, memory._terms, memory._extra
    values, packed = base.values, base.packed
    if not memory._touched and (not packed or terms.bare) and len(memory) == len(values):
        return None
    puts: dict[str, Put] = {}
    deletes: list[str] = []
    added: dict[str, Any] = {}
    expected = len(values)
    fresh = 0
    for key, delta in memory._touched.items():
        value, old = _get(memory, key, ABSENT), values.get(key, ABSENT)
        if type(key) is not str and (value is not ABSENT or old is not ABSENT):
            # It may be equal to one that is there, as a dict sees it, and another one for a store.
            refuse_key(key)
        if value is ABSENT:
            if old is not ABSENT:
                deletes.append(key)
                expected -= 1
            continue
        if old is ABSENT:
            expected += 1
        kind = type(value)
        if kind in _IMMUTABLE and kind is type(old) is not float and extra is None and key not in packed:
            # What `_put` does, for the usual change: of one of these types, what is equal has the same bytes.
            if value == old and terms.ttl is KEEP:
                continue
            put: Put | None = Put(value, None, terms.ttl, terms.slides)
        else:
            put = _put(memory, key, value, old, extra, terms, explicit=True)
        if put is None:
            continue
        puts[key] = put
        if delta is not None and delta is not EXPIRY and type(delta) is not Inherited:
            added[key] = delta
        fresh += old is ABSENT or put.last
    # What no body sees is changed by nobody who does not say so.
    for key, before in () if terms.bare else packed.items():
        if key in memory._touched:
            continue
        value = _get(memory, key, ABSENT)
        if value is ABSENT:
            deletes.append(key)
            expected -= 1
        elif type(value) in CONTAINERS:
            # What `_put` does, for a container that was not assigned: `extra` knows touched keys only.
            after = pack_at(value, key)
            if after != before:
                puts[key] = Put(UNSHARED, after, terms.ttl, terms.slides)
        elif (found := _put(memory, key, value, None, extra, terms, explicit=False)) is not None:
            puts[key] = found
    if len(memory) != expected:
        _find_hidden(memory, puts, deletes)
        fresh = len(puts)
    if values and not (base.first or base.later) and (puts or deletes) and (base.head is None or base.full is not None):
        _write_default(memory, puts, deletes)
        fresh = len(puts)
    if fresh > 1:
        puts = _ordered(memory, puts)
    return (puts, deletes, added) if puts or deletes else None


def _write_default(memory: Memory, puts: dict[str, Put], deletes: list[str]) -> None:
    """What the memory began with where there was no namespace is written with the first change of it."""
    base, terms = memory._base, memory._terms
    for key, value in base.values.items():
        if key not in puts and key not in deletes and base.version(key) is None:
            packed = base.packed.get(key)
            puts[key] = Put(value if packed is None else UNSHARED, packed, terms.ttl, terms.slides)


def _put(memory: Memory, key: str, value: Any, old: Any, extra: Extra | None, terms: Terms, *, explicit: bool) -> Put | None:
    """The put for a key that is in the memory, None if it is as it was loaded."""
    refuse_key(key)
    base = memory._base
    if not terms.bare and key not in base.values:
        # One that is there is somebody's compartment, which is about to be taken out of sight.
        refuse_reserved(key)
    kind = type(value)
    packed: bytes | None = None
    if kind in codec.IMMUTABLE:
        # Of one of these types and no float, what is equal has the same bytes.
        unchanged = kind is type(old) and key not in base.packed
        unchanged = unchanged and (value == old if kind is not float else codec.pack(value) == codec.pack(old))
        shared = value
    else:
        packed = pack_at(value, key)
        unchanged = packed == base.packed.get(key)
        shared = UNSHARED
    last = extra is not None and key in extra.removed and old is not ABSENT
    if extra is not None and (given := given_ttl(memory, key)) is not None:
        return Put(shared, packed, *given, last)
    inherited = memory._touched.get(key)
    if type(inherited) is Inherited:
        return None if unchanged and not last and inherited.ttl is KEEP else Put(shared, packed, *inherited, last)
    if unchanged and not last and (not explicit or terms.ttl is KEEP):
        # An assignment is a write even if it changes nothing, where a write starts the key's time anew.
        return None
    # A key that was deleted and made again has lost the deadline that it had.
    return Put(shared, packed, None if last and terms.ttl is KEEP else terms.ttl, terms.slides, last)


def refuse_key(key: Any) -> None:
    """Refuse a key that is no str.

    Raises:
        UnstorableValueError: It is none.
    """
    if type(key) is not str:
        name = codec.name_of(type(key))
        raise UnstorableValueError(
            f"memory has a key of type {name}, which cannot be stored; keys are str, so use str(key)",
            path=f"memory[<{name}>]",
        )


def refuse_reserved(key: str) -> None:
    """Refuse a key that would belong to a compartment.

    Raises:
        UnstorableValueError: It would.
    """
    if is_reserved(key):
        path = f"memory[{shortened(repr(key))}]"
        raise UnstorableValueError(
            f'{path} cannot be stored: keys that begin with "\\0" are reserved, so let it begin with something else',
            path=path,
        )


def _find_hidden(memory: Memory, puts: dict[str, Put], deletes: list[str]) -> None:
    """Find what was written or deleted behind the class's back: whatever is not the very object that was loaded."""
    base, touched = memory._base, memory._touched
    for key in {**base.values, **memory}:
        value, old = _get(memory, key, ABSENT), base.values.get(key, ABSENT)
        if key in touched or key in base.packed or value is old:
            continue
        if value is ABSENT:
            deletes.append(key)
        else:
            put = _put(memory, key, value, old, memory._extra, memory._terms, explicit=True)
            if put is not None:
                puts[key] = put


def pack_at(value: Any, key: str) -> bytes:
    """Encode the value of *key*; an error names where in the memory it stands.

    Raises:
        UnstorableValueError: With `path`.
    """
    try:
        return codec.pack(value)
    except UnstorableValueError as error:
        path = f"memory[{known_as(key)!r}]"
        codec.check(value, path)
        raise UnstorableValueError(f"{path}: {error}", path=path) from None


def _ordered(memory: Memory, puts: dict[str, Put]) -> dict[str, Put]:
    """Put new keys in the order that they have in the memory; they stand at its end."""
    # By their versions: what a memory begins with is new, though it was there to be seen.
    base = memory._base
    new = {key for key, put in puts.items() if put.last or base.version(key) is None}
    if len(new) < 2:
        return puts
    tail: list[str] = []
    for key in reversed(memory):
        if key in new:
            tail.append(key)
            if len(tail) == len(new):
                break
    ordered = {key: put for key, put in puts.items() if key not in new}
    ordered.update((key, puts[key]) for key in reversed(tail))
    return ordered
