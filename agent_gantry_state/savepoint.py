"""What a nested call needs: the memory of the call around it is the store that it loads from and commits to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, cast

from agent_gantry_state import codec
from agent_gantry_state.changes import pack_at, refuse_key, refuse_reserved
from agent_gantry_state.compartments import has_reserved
from agent_gantry_state.memory import EXPIRY, Inherited, Memory, extra_of, given_ttl, ttl_of
from agent_gantry_state.merge import ABSENT, graft
from agent_gantry_state.stores.protocol import KEEP, UNSHARED, Change, Put, Snapshot, Ttl

__all__ = ["apply_changes", "extend_memory", "snapshot_of", "was_deleted"]

_set = dict.__setitem__
_TEXT = frozenset({str})


def snapshot_of(memory: Memory, keys: Iterable[str] | None = None, versions: bool = True) -> Snapshot:
    """The memory as it stands now, for a nested call to load. Each key's version is its content.

    Args:
        memory: The memory of the call around it, in whatever state that has left it.
        keys: Only these keys; None: all.
        versions: Whether the versions are needed; it costs less without.

    Raises:
        UnstorableValueError: It holds something that cannot be stored.
    """
    base = memory._base
    # All of it is looked at in C, and one by one only what is not as it mostly is.
    values: dict[str, Any] = dict(memory) if keys is None else {key: memory[key] for key in keys if key in memory}
    if not _TEXT.issuperset(map(type, values)):
        for key in values:
            refuse_key(key)
    reserved = has_reserved(values)
    if reserved and not memory._terms.bare:
        for key in values:
            if key not in base.values:
                refuse_reserved(key)
    packed: dict[str, bytes] = {}
    if not codec.IMMUTABLE.issuperset(map(type, values.values())):
        for key, value in values.items():
            if type(value) not in codec.IMMUTABLE:
                values[key], packed[key] = None, _packed(memory, key, value)
    expires_at: dict[str, float] = {}
    slides: dict[str, float] = {}
    timeless = memory._extra is None and memory._terms.ttl is KEEP and base.first_expiry == math.inf
    for key in () if timeless else values:
        ttl, _ = ttl_of(memory, key)
        if ttl is KEEP and key in base.slides:
            slides[key] = base.slides[key]
        elif (left := memory.ttl(key)) is not None:
            expires_at[key] = memory._now + left
    until = None
    if keys is not None or base.until is not None:
        until = math.inf if timeless and memory else _last_expiry(memory)
    # A dict for whoever reads, and nobody writes to what a snapshot says.
    contents = cast("dict[str, bytes]", _Contents(values, packed)) if versions else {}
    return Snapshot(
        values, packed, contents, base.head, base.owner, expires_at, slides, base.touched, base.born, until, reserved
    )


def content_of(memory: Memory, key: str) -> bytes | None:
    """The version of a key in `snapshot_of` the memory; None if it is not there."""
    value = memory.get(key, ABSENT)
    return None if value is ABSENT else _packed(memory, key, value)


def _packed(memory: Memory, key: str, value: Any) -> bytes:
    # What no body sees is changed by nobody who does not say so.
    known = memory._base.packed.get(key) if memory._terms.bare and key not in memory._touched else None
    return pack_at(value, key) if known is None else known


class _Contents(Mapping[str, bytes]):
    """The encoded values of a snapshot by key; each is encoded when somebody asks for it."""

    __slots__ = ("_packed", "_values")

    def __init__(self, values: dict[str, Any], packed: dict[str, bytes]) -> None:
        self._values = values
        self._packed = packed

    def __getitem__(self, key: str) -> bytes:
        return self._packed[key] if key in self._packed else codec.pack(self._values[key])

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _last_expiry(memory: Memory) -> float:
    """When the last key of the memory, and of what was not loaded of it, expires."""
    last = memory._base.until or 0.0
    for key in memory:
        left = memory.ttl(key)
        last = math.inf if left is None else max(last, memory._now + left)
    return last or math.inf


def extend_memory(memory: Memory, snapshot: Snapshot, known: Collection[str], fresh: Collection[str] | None) -> None:
    """Add keys to a memory of which only some had been loaded.

    Args:
        memory: The memory.
        snapshot: Its namespace as it stands now.
        known: The keys that had been loaded, whether they were there or not: they stay as they are.
        fresh: The keys to take from it; None: all, so that the memory is whole.
    """
    base = memory._base
    added = [key for key in snapshot.values if key not in known and (fresh is None or key in fresh)]

    def joined(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
        return {**ours, **{key: theirs[key] for key in added if key in theirs}}

    # Keys of two loads between which something was committed are no state that ever was: a head that none has says so.
    head = base.head if snapshot.head == base.head else b""
    memory._base = Snapshot(
        joined(base.values, snapshot.values),
        joined(base.packed, snapshot.packed),
        joined(base.versions, snapshot.versions),
        head,
        base.owner,
        joined(base.expires_at, snapshot.expires_at),
        joined(base.slides, snapshot.slides),
        max(base.touched, snapshot.touched),
        snapshot.born if base.head is None else base.born,
        None if fresh is None else snapshot.last_expiry(),
    )
    for key in added:
        if key not in memory:
            _set(memory, key, snapshot.value(key))
    if fresh is None:
        # Whole now: in the order in which the store has it, with what is new at the end.
        ordered = {key: memory[key] for key in snapshot.values if key in memory}
        ordered.update(memory)
        dict.clear(memory)
        dict.update(memory, ordered)


def apply_changes(
    memory: Memory,
    change: Change,
    added: Mapping[str, Any],
    timed: Collection[str] = (),
    bases: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Make the changes of a nested call in the memory of the call around it, inside the containers that are there.

    Args:
        memory: The memory of the call around it.
        change: What to write and to delete.
        added: For keys that the nested call only added to, what it added.
        timed: Keys to which the nested call itself gave a time to live.
        bases: For keys that the memory need not have, what they were where the nested call has them from.
    """
    for key in change.deletes:
        memory.pop(key, None)
    for key, put in change.puts.items():
        if put.last:
            memory.pop(key, None)
        ttl: tuple[Ttl, bool] = put.ttl, put.slides
        if put.ttl is KEEP and key in memory:
            # Without a time of its own it has the one that the call around gave it.
            ttl = ttl_of(memory, key)
        elif put.ttl is KEEP and was_deleted(memory, key):
            ttl = None, False
        assigned = False
        if key in added:
            if key not in memory and key in bases:
                _set(memory, key, codec.unpack(bases[key]))
            memory.add(key, added[key])
        elif key in memory and _is_put(memory[key], key, put):
            # Only its time is new: what the call around added to it stays an addition.
            memory._touched.setdefault(key, EXPIRY)
        else:
            value = put.value if put.value is not UNSHARED else codec.unpack(put.packed)
            memory[key] = graft(memory[key], value, is_copy=True) if key in memory else value
            assigned = True
        if ttl[0] is KEEP and memory._terms.ttl is KEEP:
            continue
        extra = extra_of(memory)
        if put.ttl is KEEP and given_ttl(memory, key) is not None:
            continue
        # Where the call around has a time of its own for what it writes, that holds for what it writes after this one.
        assigned = assigned or memory._touched.get(key, ABSENT) is None
        if assigned and key not in timed and memory._terms.ttl is not KEEP:
            extra.ttls.pop(key, None)
            memory._touched[key] = Inherited(*ttl)
        else:
            extra.ttls[key] = ttl
            if key in timed:
                extra.lent.discard(key)
            else:
                extra.lent.add(key)
    if change.touch:
        extra_of(memory).touches = True


def _is_put(value: Any, key: str, put: Put) -> bool:
    """Whether a value of the memory is what is to be put there."""
    if type(value) is type(put.value) in codec.IMMUTABLE and type(value) is not float:
        # Of one of these types, what is equal has the same bytes.
        return bool(value == put.value)
    return pack_at(value, key) == put.packed


def was_deleted(memory: Memory, key: str) -> bool:
    """Whether the call has deleted *key* at some time, though it may have made it again."""
    return memory._extra is not None and key in memory._extra.removed
