"""The memory that a tool is handed: a real dict, filled before the call and looked at after it.

Reads are the dict's own, at its speed and for every C function that walks a dict. Writes go through methods that note which
keys they touched; a change inside a container needs no method, for containers are encoded again when the call ends. The one
thing not seen is a write made behind the class's back (`dict.__setitem__(memory, ...)`) that leaves the number of keys as
it was.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_gantry_state import codec
from agent_gantry_state.errors import UnstorableValueError
from agent_gantry_state.merge import ABSENT, Merge, graft, is_number
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import check_ttl
from agent_gantry_state.stores.protocol import EMPTY, KEEP, UNSHARED, Change, Put, Snapshot, Ttl

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Changes",
    "Memory",
    "Terms",
    "apply_changes",
    "changes_of",
    "extend_memory",
    "is_due",
    "open_memory",
    "pack_at",
    "plain_changes",
    "refresh",
    "snapshot_of",
    "touches",
    "was_deleted",
]

#: A sliding time to live is restarted only when this part of it has gone.
TOUCH_AFTER = 0.1

_Dict = dict[str, Any]
#: In `Memory._touched`, a key of which only the expiry was set; None is one that was assigned or deleted, and a number is
#: what was added to one.
_EXPIRY = object()
_IMMUTABLE = codec.IMMUTABLE
_CONTAINERS = frozenset({dict, list, set, tuple, frozenset})
#: Those of which what is equal has the same bytes.
_EQUAL_IS_SAME = _IMMUTABLE - {float}
_set, _get, _update, _new = dict.__setitem__, dict.get, dict.update, dict.__new__


@dataclass(frozen=True, slots=True)
class Terms:
    """How one memory behaves: what a decorator and its scope say about it.

    Attributes:
        scope: Name of the scope, for errors.
        ttl: Seconds that a key lives after it was written, or KEEP.
        slides: Whether each use restarts that time.
        merges: For a key, how to merge it.
        keys: The only keys to load and to write; None: all.
        serializable: Whether what was read must be unchanged when the call commits.
        exclusive: Whether calls wait for each other. They are serializable, too.
        owned: Whether the namespace belongs to whoever first wrote to it.
    """

    scope: str
    ttl: Ttl = KEEP
    slides: bool = False
    merges: Mapping[str, Merge] = field(default_factory=dict)
    keys: tuple[str, ...] | None = None
    serializable: bool = False
    exclusive: bool = False
    owned: bool = False

    def joined(self, other: Terms) -> Terms:
        """These terms for a memory that another declaration asks for as well."""
        both = self.keys is not None and other.keys is not None
        return replace(
            self,
            merges={**other.merges, **self.merges},
            keys=tuple(dict.fromkeys((*(self.keys or ()), *(other.keys or ())))) if both else None,
            serializable=self.serializable or other.serializable,
            exclusive=self.exclusive or other.exclusive,
            owned=self.owned or other.owned,
        )


_UNBOUND = Terms("")


class _Inherited(NamedTuple):
    """In `Memory._touched`, a key that a nested call assigned: the time to live that it has from there, and whether it
    slides. Writing to the key takes its place."""

    ttl: Ttl
    slides: bool


#: What a call did to one memory: keys that it wrote, in the order in which new ones go behind those that are there; keys
#: that it deleted, of those that were there; and for keys that it only added to, what it added.
Changes = tuple[dict[str, Put], list[str], dict[str, Any]]


class _Extra:
    """What only some calls do to a memory.

    Attributes:
        removed: Keys that were deleted at some time.
        ttls: Times to live that were set, each with whether it slides.
        touches: Whether a nested call restarts the time of the keys that slide.
    """

    __slots__ = ("removed", "touches", "ttls")

    def __init__(self) -> None:
        self.removed: set[str] = set()
        self.ttls: dict[str, tuple[Ttl, bool]] = {}
        self.touches = False


class Memory(dict[str, Any]):
    """What a tool remembers: a dict with str keys.

    Beyond a dict it has `set` and `expire` for keys with a time to live of their own, `ttl` to ask for it, and `add` for
    counters that several calls may raise at once. When its call has ended it is an ordinary dict: nothing that is written
    to it then is stored.
    """

    __slots__ = ("_base", "_extra", "_namespace", "_now", "_terms", "_touched")

    # What a unit of work sets when it opens a memory.
    _base: Snapshot
    _extra: _Extra | None
    _namespace: Namespace | None
    _now: float
    _terms: Terms
    _touched: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._namespace = None
        self._base = EMPTY
        self._extra = None
        self._terms = _UNBOUND
        self._now = 0.0
        self._touched = {}

    def __setitem__(self, key: str, value: Any) -> None:
        _set(self, key, value)
        self._touched[key] = None

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._remove(key)

    def __ior__(self, other: Any) -> Self:  # type: ignore[override, misc]
        self.update(other)
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Memory, (dict(self),)

    def get(self, key: str, default: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The value of *key*, or *default*, which may be passed by name."""
        return _get(self, key, default)

    def setdefault(self, key: str, default: Any = None, /) -> Any:
        """The value of *key*, which is set to *default* if it is not there."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Set keys from a mapping, from pairs, or by name."""
        new: _Dict = {}
        _update(new, *args, **kwargs)
        _update(self, new)
        self._touched.update(dict.fromkeys(new))

    def pop(self, key: str, *default: Any) -> Any:
        """Delete *key* and return its value, or *default* if it is not there."""
        there = key in self
        value = super().pop(key, *default)
        if there:
            self._remove(key)
        return value

    def popitem(self) -> tuple[str, Any]:
        """Delete the key that was made last and return it with its value."""
        key, value = super().popitem()
        self._remove(key)
        return key, value

    def clear(self) -> None:
        """Delete the keys that are in this memory; one that another call makes meanwhile stays."""
        for key in self:
            self._remove(key)
        super().clear()

    def copy(self) -> Memory:
        """A copy that belongs to no call."""
        return Memory(self)

    __copy__ = copy

    def set(self, key: str, value: Any, ttl: Ttl = KEEP) -> None:
        """Set *key*, with a time to live of its own.

        Args:
            key: The key.
            value: Its value.
            ttl: Seconds from the commit on; None: for ever, whatever the scope says. Without it this is an assignment.

        Raises:
            ValueError: *ttl* is not positive.
            TypeError: *ttl* is no number.
        """
        if ttl is KEEP:
            self[key] = value
            return
        check_ttl("memory.set", ttl)  # type: ignore[arg-type]
        self[key] = value
        self._expire(key, ttl)  # type: ignore[arg-type]

    def expire(self, key: str, ttl: float | None) -> None:
        """Let *key* expire.

        Args:
            key: A key of this memory.
            ttl: Seconds from the commit on; None: never.

        Raises:
            KeyError: *key* is not in this memory.
            ValueError: *ttl* is not positive.
            TypeError: *ttl* is no number.
        """
        check_ttl("memory.expire", ttl)
        if key not in self:
            raise KeyError(key)
        self._expire(key, ttl)

    def ttl(self, key: str) -> float | None:
        """Seconds that *key* has left, as of when the call began or, if the call wrote it, as of its commit.

        Returns:
            None if it does not expire.

        Raises:
            KeyError: *key* is not in this memory.
        """
        if key not in self:
            raise KeyError(key)
        ttl, _ = _ttl(self, key)
        if ttl is None or isinstance(ttl, (int, float)):
            return ttl
        deadline = self._base.deadline(key)
        return None if deadline is None else deadline - self._now

    def add(self, key: str, n: Any = 1) -> Any:
        """Add to a number, also while other calls add to it: all additions count.

        A key that is not there counts as 0. If the call assigns the key as well, the assignment stands with what was added
        to it, and is merged like any other.

        Args:
            key: The key.
            n: What to add, or to subtract if negative: int, float or Decimal.

        Returns:
            The sum, as this call sees it.

        Raises:
            TypeError: *n*, or the value that is there, is no such number.
        """
        current = _get(self, key, 0)
        for what, number in ((f"memory[{key!r}]", current), ("n", n)):
            if not is_number(number):
                raise TypeError(f"memory.add: {what} must be an int, a float or a Decimal, not {type(number).__name__}")
        total = current + n
        touched = self._touched
        before = touched.get(key, _EXPIRY)
        if before is _EXPIRY:
            touched[key] = n
        elif type(before) is _Inherited:
            touched[key] = None
        elif before is not None:
            touched[key] = before + n
        _set(self, key, total)
        return total

    def _expire(self, key: str, ttl: float | None) -> None:
        self._touched.setdefault(key, _EXPIRY)
        _extra(self).ttls[key] = (ttl, False)

    def _remove(self, key: str) -> None:
        self._touched[key] = None
        extra = _extra(self)
        extra.removed.add(key)
        extra.ttls.pop(key, None)


codec.store_as_dict(Memory, dict)


def _extra(memory: Memory) -> _Extra:
    extra = memory._extra
    if extra is None:
        extra = memory._extra = _Extra()
    return extra


def _ttl(memory: Memory, key: str) -> tuple[Ttl, bool]:
    """What the call makes of a key's time to live, and whether it slides; KEEP: what it was when it was loaded."""
    extra = memory._extra
    if extra is not None and key in extra.ttls:
        return extra.ttls[key]
    touched = memory._touched.get(key, ABSENT)
    if type(touched) is _Inherited:
        return touched
    if touched is not ABSENT and memory._terms.ttl is not KEEP:
        return memory._terms.ttl, memory._terms.slides
    return (None if extra is not None and key in extra.removed else KEEP), False


def open_memory(namespace: Namespace, snapshot: Snapshot, now: float, terms: Terms) -> Memory:
    """Make the working copy of *snapshot* for one call."""
    memory: Memory = _new(Memory)
    _update(memory, snapshot.values)
    if snapshot.packed:
        for key, packed in snapshot.packed.items():
            _set(memory, key, codec.unpack(packed))
    memory._namespace = namespace
    memory._base = snapshot
    memory._extra = None
    memory._terms = terms
    memory._now = now
    memory._touched = {}
    return memory


def is_due(memory: Memory) -> bool:
    """Whether this use is to restart the time of the keys that slide, though it writes nothing."""
    base = memory._base
    return touches(memory) and bool(base.slides) and memory._now - base.touched > TOUCH_AFTER * min(base.slides.values())


def touches(memory: Memory) -> bool:
    """Whether a use of this memory restarts the time of the keys that slide."""
    return memory._terms.slides or (memory._extra is not None and memory._extra.touches)


def refresh(memory: Memory, source: Memory, keys: Iterable[str]) -> None:
    """Show some keys of *source* in a memory that has nothing else and no changes of its own, inside its containers."""
    base = snapshot_of(source, keys)
    for key in list(memory):
        if key not in base.values:
            dict.pop(memory, key)
    for key in base.values:
        if memory._base.versions.get(key) != base.versions[key]:
            value = base.value(key)
            _set(memory, key, graft(memory[key], value) if key in memory else value)
    memory._base = base
    memory._touched = {}
    memory._extra = None


def was_deleted(memory: Memory, key: str) -> bool:
    """Whether the call has deleted *key* at some time, though it may have made it again."""
    return memory._extra is not None and key in memory._extra.removed


# What a nested call needs: the memory of the call around it is the store that it loads from and commits to.


def snapshot_of(memory: Memory, keys: Iterable[str] | None = None) -> Snapshot:
    """The memory as it stands now, for a nested call to load. Each key's version is its content.

    Args:
        memory: The memory of the call around it, in whatever state that has left it.
        keys: Only these keys; None: all.

    Raises:
        UnstorableValueError: It holds something that cannot be stored.
    """
    values: _Dict = {}
    packed: dict[str, bytes] = {}
    versions: dict[str, bytes] = {}
    expires_at: dict[str, float] = {}
    slides: dict[str, float] = {}
    base = memory._base
    for key in list(memory) if keys is None else [key for key in keys if key in memory]:
        value = memory[key]
        _refuse_key(key)
        versions[key] = encoded = pack_at(value, key)
        if type(value) in _IMMUTABLE:
            values[key] = value
        else:
            values[key], packed[key] = None, encoded
        ttl, _ = _ttl(memory, key)
        if ttl is KEEP and key in base.slides:
            slides[key] = base.slides[key]
        elif (left := memory.ttl(key)) is not None:
            expires_at[key] = memory._now + left
    until = None if keys is None and base.until is None else _last_expiry(memory)
    return Snapshot(values, packed, versions, base.head, base.owner, expires_at, slides, base.touched, base.born, until)


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
        _update(memory, ordered)


def apply_changes(memory: Memory, inner: Memory, change: Change, added: Mapping[str, Any]) -> None:
    """Make the changes of a nested call in the memory of the call around it, inside the containers that are there.

    Args:
        memory: The memory of the call around it.
        inner: That of the nested call.
        change: What to write and to delete.
        added: For keys that the nested call only added to, what it added.
    """
    own = {} if inner._extra is None else inner._extra.ttls
    for key in change.deletes:
        memory.pop(key, None)
    for key, put in change.puts.items():
        if put.last:
            memory.pop(key, None)
        # Without a time of its own it has the one that the call around gave it.
        ttl = (put.ttl, put.slides) if put.ttl is not KEEP else _ttl(memory, key)
        assigned = False
        if key in added:
            memory.add(key, added[key])
        elif key in memory and pack_at(memory[key], key) == put.packed:
            # Only its time is new: what the call around added to it stays an addition.
            memory._touched.setdefault(key, _EXPIRY)
        else:
            value = put.value if put.value is not UNSHARED else codec.unpack(put.packed)
            memory[key] = graft(memory[key], value) if key in memory else value
            assigned = True
        if ttl[0] is KEEP and memory._terms.ttl is KEEP:
            continue
        extra = _extra(memory)
        if put.ttl is KEEP and key in extra.ttls:
            continue
        # Where the call around has a time of its own for what it writes, that holds for what it writes after this one.
        if assigned and key not in own and memory._terms.ttl is not KEEP:
            extra.ttls.pop(key, None)
            memory._touched[key] = _Inherited(*ttl)
        else:
            extra.ttls[key] = ttl
    if change.touch:
        _extra(memory).touches = True


def plain_changes(memory: Memory) -> dict[str, Any] | None:
    """The values that the call assigned, where that is all that it can have done; None: ask `changes_of`.

    All means: no containers, no deadlines, nothing deleted, at most one key that is new. What it gives is what `changes_of`
    would, for a commit that finds the namespace as it was loaded.
    """
    base = memory._base
    if memory._extra is not None or base.packed or memory._terms.ttl is not KEEP:
        return None
    values, plain = base.values, {}
    expected = known = len(values)
    for key in memory._touched:
        value, old = _get(memory, key, ABSENT), values.get(key, ABSENT)
        kind = type(value)
        if kind not in _EQUAL_IS_SAME or type(key) is not str:
            return None
        if old is ABSENT:
            expected += 1
        elif kind is type(old) and value == old:
            continue
        plain[key] = value
    return plain if len(memory) == expected <= known + 1 else None


def changes_of(memory: Memory) -> Changes | None:
    """What the call did to its memory; None if nothing.

    Raises:
        UnstorableValueError: A key or value cannot be stored.
    """
    base, terms, extra = memory._base, memory._terms, memory._extra
    values, packed = base.values, base.packed
    puts: dict[str, Put] = {}
    deletes: list[str] = []
    added: dict[str, Any] = {}
    expected = len(values)
    fresh = 0
    for key, delta in memory._touched.items():
        value, old = _get(memory, key, ABSENT), values.get(key, ABSENT)
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
        if delta is not None and delta is not _EXPIRY and type(delta) is not _Inherited:
            added[key] = delta
        fresh += old is ABSENT or put.last
    for key, before in packed.items():
        if key in memory._touched:
            continue
        value = _get(memory, key, ABSENT)
        if value is ABSENT:
            deletes.append(key)
            expected -= 1
        elif type(value) in _CONTAINERS:
            # What `_put` does, for a container that was not assigned: `extra` knows touched keys only.
            after = pack_at(value, key)
            if after != before:
                puts[key] = Put(UNSHARED, after, terms.ttl, terms.slides)
        elif (found := _put(memory, key, value, None, extra, terms, explicit=False)) is not None:
            puts[key] = found
    if len(memory) != expected:
        _find_hidden(memory, puts, deletes)
        fresh = len(puts)
    if fresh > 1:
        puts = _ordered(memory, puts)
    return (puts, deletes, added) if puts or deletes else None


def _put(
    memory: Memory, key: str, value: Any, old: Any, extra: _Extra | None, terms: Terms, *, explicit: bool
) -> Put | None:
    """The put for a key that is in the memory, None if it is as it was loaded."""
    _refuse_key(key)
    base = memory._base
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
    if extra is not None and key in extra.ttls:
        ttl, slides = extra.ttls[key]
        return Put(shared, packed, ttl, slides, last)
    inherited = memory._touched.get(key)
    if type(inherited) is _Inherited:
        return None if unchanged and not last and inherited.ttl is KEEP else Put(shared, packed, *inherited, last)
    if unchanged and not last and (not explicit or terms.ttl is KEEP):
        # An assignment is a write even if it changes nothing, where a write starts the key's time anew.
        return None
    # A key that was deleted and made again has lost the deadline that it had.
    return Put(shared, packed, None if last and terms.ttl is KEEP else terms.ttl, terms.slides, last)


def _refuse_key(key: Any) -> None:
    if type(key) is not str:
        raise UnstorableValueError(
            f"memory has a key of type {type(key).__name__}, which cannot be stored; keys are str, so use str(key)",
            path=f"memory[<{type(key).__name__}>]",
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
        path = f"memory[{key!r}]"
        codec.check(value, path)
        raise UnstorableValueError(f"{path}: {error}", path=path) from None


def _ordered(memory: Memory, puts: dict[str, Put]) -> dict[str, Put]:
    """Put new keys in the order that they have in the memory; they stand at its end."""
    base = memory._base.values
    new = {key for key, put in puts.items() if put.last or key not in base}
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
