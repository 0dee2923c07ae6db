"""The memory that a tool is handed: a real dict, filled before the call and looked at after it.

Reads are the dict's own, at its speed and for every C function that walks a dict. Writes go through methods that note which
keys they touched; a change inside a container needs no method, for containers are encoded again when the call ends. A write
made behind the class's back to a key that is there already (`dict.__setitem__(memory, ...)`) is the one thing not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_gantry_state import codec
from agent_gantry_state.errors import UnstorableValueError
from agent_gantry_state.merge import ABSENT, Merge, is_number
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import check_ttl
from agent_gantry_state.stores.protocol import EMPTY, KEEP, UNSHARED, Put, Snapshot, Ttl

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Changes", "Memory", "Terms", "changes_of", "may_have_changed", "open_memory", "pack_at"]

_Dict = dict[str, Any]
#: In `Memory._touched`, a key of which only the expiry was set; None is one that was assigned or deleted, and a number is
#: what was added to one.
_EXPIRY = object()
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


class Changes(NamedTuple):
    """What a call did to one memory.

    Attributes:
        puts: Keys that it wrote, in the order in which new ones go behind those that are there.
        deletes: Keys that it deleted, of those that were there.
        added: For keys that it only added to, what it added.
    """

    puts: dict[str, Put]
    deletes: list[str]
    added: dict[str, Any]


class Memory(dict[str, Any]):
    """What a tool remembers: a dict with str keys.

    Beyond a dict it has `set` and `expire` for keys with a time to live of their own, `ttl` to ask for it, and `add` for
    counters that several calls may raise at once. When its call has ended it is an ordinary dict: nothing that is written
    to it then is stored.
    """

    __slots__ = ("_base", "_namespace", "_now", "_removed", "_terms", "_touched", "_ttls")

    # What a unit of work sets when it opens a memory; the slots that only some calls use are set when first needed.
    _base: Snapshot
    _namespace: Namespace | None
    _now: float
    _terms: Terms
    _touched: dict[str, Any]
    _removed: set[str]
    _ttls: dict[str, float | None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._namespace = None
        self._base = EMPTY
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
        ttls: dict[str, float | None] = getattr(self, "_ttls", {})
        if key in ttls:
            return ttls[key]
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
        try:
            self._ttls[key] = ttl
        except AttributeError:
            self._ttls = {key: ttl}

    def _remove(self, key: str) -> None:
        self._touched[key] = None
        try:
            self._removed.add(key)
        except AttributeError:
            self._removed = {key}
        if hasattr(self, "_ttls"):
            self._ttls.pop(key, None)


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
    memory._terms = terms
    memory._now = now
    memory._touched = {}
    return memory


def may_have_changed(memory: Memory) -> bool:
    """Whether it is worth asking for `changes_of` a memory, or its use restarts a time to live."""
    base = memory._base
    return bool(memory._touched or base.packed or memory._terms.slides or len(memory) != len(base.values))


def changes_of(memory: Memory) -> Changes | None:
    """What the call did to its memory; None if nothing.

    Raises:
        UnstorableValueError: A key or value cannot be stored.
    """
    base, touched = memory._base, memory._touched
    ttls: Mapping[str, float | None] = getattr(memory, "_ttls", {})
    puts: dict[str, Put] = {}
    deletes: list[str] = []
    added: dict[str, Any] = {}
    for key in _candidates(memory, base, touched):
        value = _get(memory, key, ABSENT)
        if value is ABSENT:
            if key in base.values:
                deletes.append(key)
            continue
        put = _put(memory, key, value, ttls)
        if put is None:
            continue
        puts[key] = put
        delta = touched.get(key)
        if delta is not None and delta is not _EXPIRY:
            added[key] = delta
    if not puts and not deletes:
        return None
    return Changes(_ordered(memory, puts), deletes, added)


def _candidates(memory: Memory, base: Snapshot, touched: _Dict) -> Iterator[str]:
    """Keys that may have changed, each once."""
    yield from touched
    for key in base.packed:
        if key not in touched:
            yield key
    if len(memory) != len(base.values) + sum((key in memory) - (key in base.values) for key in touched):
        # Something was written behind the class's back; whatever is not the very same object is looked at.
        for key in {**base.values, **memory}:
            known = key in touched or key in base.packed
            if not known and _get(memory, key, ABSENT) is not base.values.get(key, ABSENT):
                yield key


def _put(memory: Memory, key: str, value: Any, ttls: Mapping[str, float | None]) -> Put | None:
    """The put for a key that is in the memory, None if it is as it was loaded."""
    base = memory._base
    if type(key) is not str:
        raise UnstorableValueError(
            f"memory has a key of type {type(key).__name__}, which cannot be stored; keys are str, so use str(key)",
            path=f"memory[<{type(key).__name__}>]",
        )
    packed: bytes | None = None
    old: Any = base.values.get(key, ABSENT)
    if type(value) in codec.IMMUTABLE:
        unchanged = value is old and key not in base.packed
        if not unchanged and type(value) is type(old) and key not in base.packed:
            packed = codec.pack(value)
            unchanged = packed == codec.pack(old)
        shared = value
    else:
        packed = pack_at(value, key)
        unchanged = packed == base.packed.get(key)
        shared = UNSHARED
    last = key in base.values and key in getattr(memory, "_removed", ())
    if key in ttls:
        return Put(shared, packed, ttls[key], False, last)
    if unchanged and not last and (key not in memory._touched or memory._terms.ttl is KEEP):
        # An assignment is a write even if it changes nothing, where a write starts the key's time anew.
        return None
    return Put(shared, packed, memory._terms.ttl, memory._terms.slides, last)


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
