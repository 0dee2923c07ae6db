"""The memory that a tool is handed: a real dict, filled before the call and looked at after it.

Reads are the dict's own, at its speed and for every C function that walks a dict. Writes go through methods that note which
keys they touched; a change inside a container needs no method, for containers are encoded again when the call ends. The one
thing not seen is a write made behind the class's back (`dict.__setitem__(memory, ...)`) that leaves the number of keys as
it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_gantry_state import codec
from agent_gantry_state.limits import UNDECLARED, Limits
from agent_gantry_state.merge import ABSENT, Merge, is_number
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import check_ttl
from agent_gantry_state.stores.protocol import EMPTY, KEEP, Put, Snapshot, Ttl

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "EXPIRY",
    "Changes",
    "Extra",
    "Inherited",
    "Memory",
    "Terms",
    "extra_of",
    "given_ttl",
    "open_memory",
    "timed_by",
    "ttl_of",
]

_Dict = dict[str, Any]
#: In `Memory._touched`, a key of which only the expiry was set; None is one that was assigned or deleted, and a number is
#: what was added to one.
EXPIRY = object()
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
        reruns: Whether the body runs again after a conflict, so that one harms nobody.
        read_only: Whether a write is an error.
        default: Makes what is found where there is no namespace; None: nothing is.
        bare: Whether no body sees the memory itself, so that it may hold the keys of compartments.
        limits: How large the namespace may be.
    """

    scope: str
    ttl: Ttl = KEEP
    slides: bool = False
    merges: Mapping[str, Merge] = field(default_factory=dict)
    keys: tuple[str, ...] | None = None
    serializable: bool = False
    exclusive: bool = False
    owned: bool = False
    reruns: bool = False
    read_only: bool = False
    default: Callable[[], Snapshot] | None = None
    bare: bool = False
    limits: Limits = UNDECLARED
    _nested: Terms | None = field(default=None, init=False, repr=False, compare=False)

    def for_nested(self) -> Terms:
        """These for the call around one, which holds the memory only for the one inside; made once."""
        if self._nested is None:
            object.__setattr__(self, "_nested", Terms(self.scope, limits=self.limits, bare=True))
        return self._nested  # type: ignore[return-value]

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
            reruns=self.reruns or other.reruns,
            read_only=self.read_only and other.read_only,
            default=self.default or other.default,
            bare=self.bare and other.bare,
        )


_UNBOUND = Terms("")


class Inherited(NamedTuple):
    """In `Memory._touched`, a key that a nested call assigned: the time to live that it has from there, and whether it
    slides. Writing to the key takes its place."""

    ttl: Ttl
    slides: bool


#: What a call did to one memory: keys that it wrote, in the order in which new ones go behind those that are there; keys
#: that it deleted, of those that were there; and for keys that it only added to, what it added.
Changes = tuple[dict[str, Put], list[str], dict[str, Any]]


class Extra:
    """What only some calls do to a memory.

    Attributes:
        removed: Keys that were deleted at some time.
        ttls: Times to live that were set, each with whether it slides.
        lent: Those keys of `ttls` that a nested call did not give their time by name: it is that of its decorator.
        touches: Whether a nested call restarts the time of the keys that slide.
    """

    __slots__ = ("lent", "removed", "touches", "ttls")

    def __init__(self) -> None:
        self.removed: set[str] = set()
        self.ttls: dict[str, tuple[Ttl, bool]] = {}
        self.lent: set[str] = set()
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
    _extra: Extra | None
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
        ttl = check_ttl("memory.set", ttl)  # type: ignore[arg-type]
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
        ttl = check_ttl("memory.expire", ttl)
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
        ttl, _ = ttl_of(self, key)
        if ttl is None or isinstance(ttl, (int, float)):
            return ttl
        deadline = self._base.deadline(key)
        return None if deadline is None else deadline - self._now

    def origin(self, key: str) -> str | None:
        """Which scope the value of *key* comes from: the one that would be written to, unless the memory is in layers.

        Returns:
            The name of the scope; None where it is what ``default=`` says and no scope holds it.

        Raises:
            KeyError: *key* is not in this memory.
        """
        if key not in self:
            raise KeyError(key)
        base = self._base
        if key in base.values and base.version(key) is None and key not in self._touched:
            return None
        return self._terms.scope

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
        if not (is_number(current) and is_number(n)):
            what, number = ("n", n) if is_number(current) else (f"memory[{codec.shortened(codec.shown(key))}]", current)
            raise TypeError(f"memory.add: {what} must be an int, a float or a Decimal, not {codec.name_of(type(number))}")
        total = current + n
        touched = self._touched
        before = touched.get(key, EXPIRY)
        if before is EXPIRY:
            touched[key] = n
        elif type(before) is Inherited:
            touched[key] = None
        elif before is not None:
            touched[key] = before + n
        _set(self, key, total)
        return total

    def _expire(self, key: str, ttl: float | None) -> None:
        self._touched.setdefault(key, EXPIRY)
        extra = extra_of(self)
        extra.ttls[key] = (ttl, False)
        extra.lent.discard(key)

    def _remove(self, key: str) -> None:
        self._touched[key] = None
        extra = extra_of(self)
        extra.removed.add(key)
        extra.ttls.pop(key, None)
        extra.lent.discard(key)


codec.store_as_dict(Memory, dict)


def timed_by(memory: Memory) -> Collection[str]:
    """The keys to which the call itself, or one inside it, gave a time to live by name."""
    extra = memory._extra
    return () if extra is None else extra.ttls.keys() - extra.lent


def extra_of(memory: Memory) -> Extra:
    """What only some calls do to a memory; made when it is first asked for."""
    extra = memory._extra
    if extra is None:
        extra = memory._extra = Extra()
    return extra


def given_ttl(memory: Memory, key: str) -> tuple[Ttl, bool] | None:
    """The time to live that somebody gave a key in the call, and whether it slides; None: nobody has."""
    extra = memory._extra
    if extra is None or key not in extra.ttls:
        return None
    if key in extra.lent and memory._terms.ttl is not KEEP and memory._touched.get(key, ABSENT) is None:
        # The body has written the key after the nested call whose decorator's time that was.
        return None
    return extra.ttls[key]


def ttl_of(memory: Memory, key: str) -> tuple[Ttl, bool]:
    """What the call makes of a key's time to live, and whether it slides; KEEP: what it was when it was loaded."""
    if (given := given_ttl(memory, key)) is not None:
        return given
    extra, touched = memory._extra, memory._touched.get(key, ABSENT)
    if type(touched) is Inherited:
        return touched
    if touched is not ABSENT and memory._terms.ttl is not KEEP:
        return memory._terms.ttl, memory._terms.slides
    return (None if extra is not None and key in extra.removed else KEEP), False


def open_memory(
    namespace: Namespace, snapshot: Snapshot, now: float, terms: Terms, kind: type[Memory] | None = None
) -> Memory:
    """Make the working copy of *snapshot* for one call, an instance of *kind*."""
    if snapshot.reserved and not terms.bare:
        snapshot = snapshot.opened()
    if terms.default is not None and not snapshot.values:
        # As if it had been loaded, though no key of it is there: so it is merged with what others make of the same.
        if snapshot.head is None:
            snapshot = terms.default()
        elif snapshot.full is not None or terms.keys is not None:
            # What others have in the namespace is nothing that the body sees.
            snapshot = snapshot.beginning_with(terms.default())
    memory: Memory = _new(kind or Memory)
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
