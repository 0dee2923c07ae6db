"""The memory that a tool is handed: a real dict, filled before the call and looked at after it.

Reads are the dict's own, at its speed and for every C function that walks a dict. Writes go through methods that note which
keys they touched; a change inside a container needs no method, for containers are encoded again when the call ends. The one
thing not seen is a write made behind the class's back (`dict.__setitem__(memory, ...)`) that leaves the number of keys as
it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agent_gantry_state import codec
from agent_gantry_state.errors import UnstorableValueError
from agent_gantry_state.merge import ABSENT, Merge, is_number
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import check_ttl
from agent_gantry_state.stores.protocol import EMPTY, KEEP, UNSHARED, Put, Snapshot, Ttl

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Changes", "Memory", "Terms", "changes_of", "open_memory", "pack_at", "plain_changes"]

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
    """

    scope: str
    ttl: Ttl = KEEP
    slides: bool = False
    merges: Mapping[str, Merge] = field(default_factory=dict)


_UNBOUND = Terms("")


#: What a call did to one memory: keys that it wrote, in the order in which new ones go behind those that are there; keys
#: that it deleted, of those that were there; and for keys that it only added to, what it added.
Changes = tuple[dict[str, Put], list[str], dict[str, Any]]


class _Extra:
    """What only some calls do to a memory: keys that were deleted at some time, and times to live that were set."""

    __slots__ = ("removed", "ttls")

    def __init__(self) -> None:
        self.removed: set[str] = set()
        self.ttls: dict[str, float | None] = {}


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

    def set(self, key: str, value: Any, ttl: float | None) -> None:
        """Set *key* with a time to live of its own.

        Args:
            key: The key.
            value: Its value.
            ttl: Seconds from the commit on; None: for ever, whatever the scope says.

        Raises:
            ValueError: *ttl* is not positive.
            TypeError: *ttl* is no number.
        """
        check_ttl("memory.set", ttl)
        self[key] = value
        self._expire(key, ttl)

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
        if self._extra is not None and key in self._extra.ttls:
            return self._extra.ttls[key]
        if key in self._touched and isinstance(ttl := self._terms.ttl, float):
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
        elif before is not None:
            touched[key] = before + n
        _set(self, key, total)
        return total

    def _expire(self, key: str, ttl: float | None) -> None:
        self._touched.setdefault(key, _EXPIRY)
        if self._extra is None:
            self._extra = _Extra()
        self._extra.ttls[key] = ttl

    def _remove(self, key: str) -> None:
        self._touched[key] = None
        if self._extra is None:
            self._extra = _Extra()
        self._extra.removed.add(key)
        self._extra.ttls.pop(key, None)


codec.store_as_dict(Memory, dict)


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
        if delta is not None and delta is not _EXPIRY:
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
    if type(key) is not str:
        raise UnstorableValueError(
            f"memory has a key of type {type(key).__name__}, which cannot be stored; keys are str, so use str(key)",
            path=f"memory[<{type(key).__name__}>]",
        )
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
        return Put(shared, packed, extra.ttls[key], False, last)
    if unchanged and not last and (not explicit or terms.ttl is KEEP):
        # An assignment is a write even if it changes nothing, where a write starts the key's time anew.
        return None
    # A key that was deleted and made again has lost the deadline that it had.
    return Put(shared, packed, None if last and terms.ttl is KEEP else terms.ttl, terms.slides, last)


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
