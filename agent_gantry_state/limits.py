"""How large a memory may be: what a commit would make of it, and the refusal where that is too much.

Sizes are asked for at every commit, so that first a bound is looked at that is carried along with a snapshot and costs
nothing to keep; only where that is too much is counted what there really is.
"""

from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Final

from agent_gantry_state import codec
from agent_gantry_state.codec import shortened
from agent_gantry_state.compartments import known_as
from agent_gantry_state.errors import MemoryTooLargeError
from agent_gantry_state.stores.protocol import EMPTY, Change, Snapshot

__all__ = ["MAX_BYTES", "UNDECLARED", "Limits", "known", "refuse_too_large", "size_of"]

#: Bytes that a memory may have where nothing else is said: less than any store takes.
MAX_BYTES: Final = 900_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What the memories of a scope may not grow beyond; None: there is no limit.

    Attributes:
        max_bytes: Names and encoded values of all keys of one memory together.
        max_keys: How many keys it has.
        max_value_bytes: The encoded value of one key.
        plain_bytes: How large a memory may be for a commit of which nothing else is looked at. With limits beside
            `max_bytes` that is never enough.
    """

    max_bytes: int | None = MAX_BYTES
    max_keys: int | None = None
    max_value_bytes: int | None = None
    plain_bytes: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_keys", "max_value_bytes"):
            _check(name, getattr(self, name))
        only = self.max_keys is None and self.max_value_bytes is None
        plain = -1 if not only else math.inf if self.max_bytes is None else self.max_bytes
        object.__setattr__(self, "plain_bytes", plain)


def _check(name: str, limit: object) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"Scope: {name} must be an int or None, not {type(limit).__name__}")
    if limit < 1:
        raise ValueError(f"Scope: {name} must be at least 1, not {limit}; None is no limit")


#: What holds where nothing is declared.
UNDECLARED: Final = Limits()


def known(base: Snapshot, current: Snapshot) -> Snapshot:
    """What is there now, as far as it is known: what a store does not tell is taken to be as it was loaded.

    Args:
        base: What was loaded.
        current: What the store answered to a commit; it may hold no more than the keys of which it was asked.
    """
    if current.until is None or current.head is None or current.born != base.born:
        return current
    rest = {key: value for key, value in base.values.items() if current.version(key) is None}
    packed = {key: value for key, value in base.packed.items() if key in rest}
    return Snapshot({**rest, **current.values}, {**packed, **current.packed}, {}, current.head, until=current.until)


def refuse_too_large(limits: Limits, change: Change, before: Snapshot) -> None:
    """Refuse a change that makes a memory too large. One that makes it no larger than it was is never refused.

    Args:
        limits: What holds for the memory.
        change: What is to be written.
        before: What is there, as far as it is known.

    Raises:
        MemoryTooLargeError: It does.
    """
    size, there = before.size, before.packed
    for key, put in change.puts.items():
        packed = put._packed
        if packed is None:
            size += 2 * (key.__sizeof__() + put.value.__sizeof__())
        elif key in there:
            size += len(packed) - len(there[key])
        else:
            size += 2 * key.__sizeof__() + len(packed)
    if size > limits.plain_bytes:
        size = _counted(limits, change, before)
    # What was not loaded takes bytes as well.
    change.size = size if before.until is None else math.inf


def _counted(limits: Limits, change: Change, before: Snapshot) -> float:
    """The bytes, looked at as closely as it takes to know whether the change is refused."""
    if before.head is None:
        # What a memory begins with is not there before it is written.
        before = EMPTY
    size = before.measure()
    for key, put in change.puts.items():
        size += 2 * key.__sizeof__() + put.size - len(before.packed.get(key, b""))
    if size > limits.plain_bytes and change.puts:
        size = _exact(limits, change, before)
    return size


def _exact(limits: Limits, change: Change, before: Snapshot) -> int:
    puts, there = change.puts, before.values
    # Now that it was counted, the next commits need not.
    before.size = size = size_of(before)
    grown, fresh = 0, [key for key in puts if key not in there]
    for key in change.deletes:
        if key in there:
            grown -= _name_size(key) + _value_size(before, key)
    for key, put in puts.items():
        old, new = _value_size(before, key) if key in there else -_name_size(key), len(put.packed)
        if limits.max_value_bytes is not None and new > limits.max_value_bytes and new > old:
            raise _value_too_large(change, key, new, limits.max_value_bytes)
        grown += new - old
    if limits.max_bytes is not None and grown > 0 and size + grown > limits.max_bytes:
        raise _too_large(change, size + grown, limits.max_bytes)
    if limits.max_keys is not None:
        more = len(fresh) - sum(key in there for key in change.deletes)
        if more > 0 and len(there) + more > limits.max_keys:
            raise _too_many(change, fresh[0], len(there) + more, limits.max_keys)
    return size + grown


def size_of(snapshot: Snapshot) -> int:
    """Bytes of the names and of the encoded values of all keys of a snapshot."""
    return sum([_name_size(key) + _value_size(snapshot, key) for key in snapshot.values])


def _name_size(key: str) -> int:
    return len(key) if key.isascii() else len(key.encode("utf-8", "surrogatepass"))


def _value_size(snapshot: Snapshot, key: str) -> int:
    packed: Sized | None = snapshot.packed.get(key)
    return len(codec.pack(snapshot.values[key]) if packed is None else packed)


def _too_large(change: Change, size: int, limit: int) -> MemoryTooLargeError:
    sizes = {key: _name_size(key) + len(put.packed) for key, put in change.puts.items()}
    key = max(sizes, key=sizes.__getitem__)
    return _refusal(
        change,
        key,
        size,
        limit,
        f"it would have {size} bytes, and {limit} are the limit, so that nothing was written; the largest key that the call "
        f"changed is {_shown(key)} ({sizes[key]} bytes). Store less or remove keys",
        "max_bytes",
    )


def _value_too_large(change: Change, key: str, size: int, limit: int) -> MemoryTooLargeError:
    return _refusal(
        change,
        key,
        size,
        limit,
        f"the value of key {_shown(key)} has {size} bytes, and {limit} are the limit for one, so that nothing was written. "
        "Store less in it, spread it over several keys",
        "max_value_bytes",
    )


def _too_many(change: Change, key: str, count: int, limit: int) -> MemoryTooLargeError:
    return _refusal(
        change,
        key,
        count,
        limit,
        f"it would have {count} keys, and {limit} are the limit, so that nothing was written; {_shown(key)} is new. Remove "
        "keys",
        "max_keys",
        "keys",
    )


def _refusal(
    change: Change, key: str, size: int, limit: int, told: str, setting: str, counted: str = "bytes"
) -> MemoryTooLargeError:
    scope = change.namespace.scope
    return MemoryTooLargeError(
        f"{scope} memory: {told}, or set another limit, scopes={{{scope!r}: Scope({setting}=...)}}",
        key=known_as(key),
        size=size,
        limit=limit,
        scope=scope,
        counted=counted,
    )


def _shown(key: str) -> str:
    return shortened(repr(known_as(key)))
