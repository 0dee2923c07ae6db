"""Views: memories that a body is given in place of a namespace's own.

A view shows a compartment of a namespace, some of its keys, or several namespaces laid over each other. What is written to
it goes to the nearest namespace whenever somebody else is about to look there, merged as a stranger's changes would be; and
what others have written there meanwhile is shown in it, inside the containers that the body may hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, KeysView, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from agent_gantry_state import codec
from agent_gantry_state.changes import changes_of, is_due, pack_at, touches
from agent_gantry_state.codec import shortened
from agent_gantry_state.compartments import is_reserved
from agent_gantry_state.errors import (
    FurtherScopeError,
    MemoryValidationError,
    ReadOnlyMemoryError,
    UndeclaredKeyError,
    UnstorableValueError,
)
from agent_gantry_state.memory import Changes, Inherited, Memory, Terms, open_memory, timed_by
from agent_gantry_state.merge import graft
from agent_gantry_state.rebase import Rebase, conflict
from agent_gantry_state.savepoint import snapshot_of, was_deleted
from agent_gantry_state.stores.protocol import KEEP, Change, Snapshot

if TYPE_CHECKING:
    from agent_gantry_state.holding import Held

__all__ = ["Layered", "View", "end", "flush", "read_only", "undeclared"]

T = TypeVar("T")

#: In `Memory._touched`, a key that was deleted from the nearest scope, so that the next one's shows.
_REVEALED: Final = Inherited(KEEP, False)
#: Stands for the head, and for the version of every key, of what a view shows: it is compared by content.
_SEEN: Final = b"seen"
_set = dict.__setitem__
_MISSING: Final = object()


class _Below(NamedTuple):
    """What the scopes behind the nearest one hold for a key."""

    scope: str
    value: Any
    packed: bytes | None
    deadline: float | None

    def copy(self) -> Any:
        return self.value if self.packed is None else codec.unpack(self.packed)

    @property
    def content(self) -> bytes:
        return codec.pack(self.value) if self.packed is None else self.packed


class _Further:
    """What the scopes behind the nearest one hold, by key; looked up when somebody asks for a key.

    Args:
        layers: Those scopes, the furthest first, each with how it stands and the keys that are seen of it.
        prefix: What the stored keys begin with.
        now: Time on the clock of the nearest one's store.
    """

    __slots__ = ("_keys", "_now", "_prefix")

    def __init__(
        self, layers: Iterable[tuple[Held, Snapshot, Iterable[str]]] = (), prefix: str = "", now: float = 0.0
    ) -> None:
        self._keys: dict[str, tuple[Held, Snapshot]] = {}
        for held, snapshot, keys in layers:
            self._keys.update(dict.fromkeys(keys, (held, snapshot)))
        self._prefix = prefix
        self._now = now

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __bool__(self) -> bool:
        return bool(self._keys)

    def keys(self) -> KeysView[str]:
        return self._keys.keys()

    def __getitem__(self, key: str) -> _Below:
        held, snapshot = self._keys[key]
        stored = self._prefix + key
        deadline = snapshot.deadline(stored)
        if deadline is not None:
            # By the clock of the nearest one's store.
            deadline += self._now - held.memory._now
        return _Below(held.want.terms.scope, snapshot.values[stored], snapshot.packed.get(stored), deadline)


_NOTHING: Final = _Further()


class Layered(Memory):
    """A memory of several scopes: reads fall through to the next, writes go to the nearest."""

    __slots__ = ("_below", "_open")

    _below: _Further
    #: Whether its call goes on; after that it is an ordinary dict.
    _open: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._below = _NOTHING
        self._open = False

    def __delitem__(self, key: str) -> None:
        near = self._is_near(key)
        super().__delitem__(key)
        self._reveal(key, near)

    def pop(self, key: str, *default: Any) -> Any:
        """Delete *key* and return its value, or *default*; what a further scope holds for it shows then."""
        near = self._is_near(key)
        value = super().pop(key, *default)
        self._reveal(key, near)
        return value

    def popitem(self) -> tuple[str, Any]:
        """Delete the last key and return it with its value; what a further scope holds for it shows then."""
        key = next(reversed(self), _MISSING)
        near = key is not _MISSING and self._is_near(key)  # type: ignore[arg-type]
        item = super().popitem()
        self._reveal(item[0], near)
        return item

    def clear(self) -> None:
        """Delete the keys of the nearest scope; what further ones hold stays, and shows."""
        if not self._open:
            super().clear()
            return
        for key in [key for key in self if self._is_near(key)]:
            del self[key]

    def ttl(self, key: str) -> float | None:
        """Seconds that *key* has left in the scope from which it shows, as `Memory.ttl`."""
        if key not in self or not self._is_below(key):
            return super().ttl(key)
        deadline = self._below[key].deadline
        return None if deadline is None else deadline - self._now

    def origin(self, key: str) -> str | None:
        """Which scope the value of *key* comes from, as `Memory.origin`; one that was assigned comes from the nearest."""
        if key not in self or key not in self._below:
            return super().origin(key)
        return self._below[key].scope if self._is_below(key) else self._terms.scope

    def _is_below(self, key: str) -> bool:
        """Whether what shows is a further scope's."""
        touched = self._touched.get(key, _MISSING)
        if key not in self._below or (self._extra is not None and key in self._extra.ttls):
            return False
        if touched is not _REVEALED and (touched is not _MISSING or self._base.version(key) is not None):
            return False
        # A change in place is a write to the nearest, too.
        packed = self._below[key].packed
        return packed is None or _is_packed(self[key], packed)

    def _is_near(self, key: str) -> bool:
        return key in self and not self._is_below(key)

    def _reveal(self, key: str, near: bool) -> None:
        if near and self._open and key in self._below:
            _set(self, key, self._below[key].copy())
            self._touched[key] = _REVEALED


codec.store_as_dict(Layered, dict)


def _is_packed(value: Any, packed: bytes) -> bool:
    try:
        return codec.pack(value) == packed
    except UnstorableValueError:
        return False


class View:
    """What a body sees of namespaces that its unit of work holds.

    Args:
        layers: What is held of the namespaces, the nearest first: that is where writes go.
        terms: How the memory behaves.
        prefix: What the keys of its compartment begin with; "" for the keys that are in none.
        memory: A memory that a body has already, opened from the nearest namespace; None: one is made.
    """

    __slots__ = ("_cut", "_default", "_layers", "_prefix", "_undeclared", "_written", "memory", "terms")

    def __init__(self, layers: Sequence[Held], terms: Terms, prefix: str = "", memory: Memory | None = None) -> None:
        self._layers = tuple(layers)
        self._prefix = prefix
        self.terms = terms
        # Keys that were deleted though only a further scope holds them, and what was written against the terms: neither goes
        # on, but the body may yet take it back.
        self._cut: set[str] = set()
        self._undeclared: set[str] = set()
        self._written: Changes | None = None
        # What is shown where there is nothing else, until the body changes something.
        self._default: Snapshot | None = None
        near = self.held.memory
        assert near._namespace is not None  # noqa: S101 - a unit opens its memories with one
        if memory is None:
            kind = Layered if len(self._layers) > 1 else Memory
            # Nobody has seen what is held yet, so that it is as it was loaded.
            base, below = self._stand([held.memory._base for held in self._layers])
            memory = open_memory(near._namespace, base, near._now, terms, kind)
            self._default = None if memory._base is base else memory._base
            if isinstance(memory, Layered):
                memory._below, memory._open = below, True
        self.memory = memory

    @property
    def given(self) -> Any:
        """What the body gets."""
        return self.memory

    @property
    def held(self) -> Held:
        """Where its writes go."""
        return self._layers[0]

    def end(self) -> None:
        """The call has ended: what the body keeps is an ordinary dict."""
        if isinstance(self.memory, Layered):
            self.memory._open = False

    def begin_with_default(self) -> None:
        """Show what the memory begins with, if nothing is there that the body may see."""
        if self.terms.default is not None:
            self._default = self.terms.default()

    # From what is held to what is shown.

    def _key(self, stored: str) -> str | None:
        """A key as the body knows it; None: it does not see that one."""
        if self._prefix:
            if not stored.startswith(self._prefix):
                return None
            key = stored[len(self._prefix) :]
        elif is_reserved(stored):
            return None
        else:
            key = stored
        keys = self.terms.keys
        return key if keys is None or key in keys or key in self._undeclared else None

    def _seen(self, mapping: dict[str, T], reserved: bool) -> dict[str, T]:
        """What of a namespace's mapping by stored keys the body sees, by the keys as it knows them.

        *reserved* says whether some of the keys belong to compartments.
        """
        if not mapping:
            return mapping
        if prefix := self._prefix:
            begin = len(prefix)
            mapping = {stored[begin:]: value for stored, value in mapping.items() if stored.startswith(prefix)}
        elif reserved:
            mapping = {key: value for key, value in mapping.items() if not is_reserved(key)}
        keys = self.terms.keys
        if keys is None:
            return mapping
        return {key: value for key, value in mapping.items() if key in keys or key in self._undeclared}

    def _stand(self, snapshots: Sequence[Snapshot]) -> tuple[Snapshot, _Further]:
        """What there is to see, and for keys what further scopes hold. Snapshots are shared as far as they are the same."""
        near = snapshots[0]
        own = values = self._seen(near.values, near.reserved)
        packed = self._seen(near.packed, near.reserved)
        # One without the keys of compartments has their times all the same.
        hidden = near.reserved or near.full is not None
        below = _NOTHING
        if len(self._layers) > 1:
            own_packed, values, packed = packed, {}, {}
            further: list[tuple[Held, Snapshot, Iterable[str]]] = []
            for held, snapshot in zip(self._layers[:0:-1], snapshots[:0:-1], strict=True):
                there = self._seen(snapshot.values, snapshot.reserved)
                _lay_over(values, packed, there, self._seen(snapshot.packed, snapshot.reserved))
                further.append((held, snapshot, there))
            _lay_over(values, packed, own, own_packed)
            below = _Further(further, self._prefix, self.held.memory._now)
        if self._cut:
            # What no further scope holds any more has not to be deleted there.
            self._cut &= below.keys()
            self._cut.difference_update(own)
            for key in self._cut:
                values.pop(key, None)
                packed.pop(key, None)
        return (
            Snapshot(
                values,
                packed,
                dict.fromkeys(own, _SEEN),
                _SEEN if values else None,
                None,
                self._seen(near.expires_at, hidden),
                self._seen(near.slides, hidden),
                near.touched,
                near.born,
                None,
                False,
            ),
            below,
        )

    def show(self) -> None:
        """Show what is held now, inside the containers that are there. What the body has changed must have been flushed."""
        if self._written is not None:
            # That is nowhere but here.
            return
        memory = self.memory
        base, below = self._stand([snapshot_of(held.memory, versions=False) for held in self._layers])
        if self._default is not None and not base.values:
            base = self._default
        for key in list(memory):
            if key not in base.values:
                dict.pop(memory, key)
        for key in base.values:
            if key not in memory:
                _set(memory, key, base.value(key))
            elif not _is_content(memory[key], base, key):
                _set(memory, key, graft(memory[key], base.value(key), is_copy=True))
        memory._base = base
        memory._touched = {}
        memory._extra = None
        if isinstance(memory, Layered):
            memory._below = below

    # From what the body wrote to what is held.

    def flush(self) -> bool:
        """Bring what the body changed into what is held; whether there was anything.

        Raises:
            MemoryConflictError: Two memories of one body changed the same, and it cannot be merged.
            UnstorableValueError: It cannot be stored.
        """
        memory = self.memory
        changes = self._changes()
        if self.terms.read_only and changes is not None:
            self._written = changes
            return False
        self._written = None
        if changes is None and not is_due(memory):
            return False
        if changes is not None:
            self._default = None
        self._note_undeclared(changes)
        change = self._change(changes)
        base, prefix = memory._base, self._prefix
        # What the body took a value from that the namespace itself does not have: what a merge starts from.
        bases = {
            prefix + key: _content(base, key) for key in change.puts if key in base.values and base.version(key) is None
        }
        added = {} if changes is None else {prefix + key: n for key, n in changes[2].items()}
        timed = [prefix + key for key in timed_by(memory)]
        merges = {prefix + key: merge for key, merge in self.terms.merges.items()}
        change.puts = {prefix + key: put for key, put in change.puts.items()}
        change.deletes = [prefix + key for key in change.deletes]
        self.held.take_up(change, added, timed, merges, bases)
        return True

    def _changes(self) -> Changes | None:
        """What the body changed in the nearest namespace."""
        memory = self.memory
        changes = changes_of(memory)
        below = self._below()
        if changes is None or not (below or self._cut):
            return changes
        puts, deletes, added = changes
        near = memory._base.versions
        own = () if memory._extra is None else memory._extra.ttls
        for key in [*deletes]:
            if key not in near:
                deletes.remove(key)
            if key in below:
                self._cut.add(key)
        for key, put in [*puts.items()]:
            self._cut.discard(key)
            if key not in below or key in own or (key in near and not was_deleted(memory, key)):
                continue
            if put.packed == below[key].content:
                # As the further scope has it: what was seen, or shows again.
                del puts[key]
                added.pop(key, None)
                if key in near:
                    deletes.append(key)
            elif memory._touched.get(key) is _REVEALED:
                # It is written by this body, as what was never deleted would be.
                put.ttl, put.slides = self.terms.ttl, self.terms.slides
        return changes if puts or deletes else None

    def _change(self, changes: Changes | None) -> Change:
        """The body's changes, made again on top of what has been written to what is held since it was shown."""
        memory, prefix = self.memory, self._prefix
        base, namespace = memory._base, memory._namespace
        assert namespace is not None  # noqa: S101 - it was opened with one
        puts, deletes = ({}, []) if changes is None else changes[:2]
        checks = {key: None if base.version(key) is None else _content(base, key) for key in (*puts, *deletes)}
        change = Change(namespace, base.head, puts, deletes, checks, False, touches(memory))
        there = snapshot_of(self.held.memory, [prefix + key for key in checks])
        if prefix:
            there = _stripped(there, len(prefix))
        if all(there.version(key) == seen for key, seen in checks.items()):
            return change
        rebase = Rebase(memory, changes, change, there, memory._now, born=there.born)
        change = rebase.run()
        if rebase.conflicts:
            cause = rebase.causes[0] if rebase.causes else None
            raise conflict({self.terms.scope: rebase.conflicts}, False, cause=cause, reruns=self.terms.reruns) from cause
        return change

    # What the terms say against it.

    def _note_undeclared(self, changes: Changes | None) -> None:
        keys = self.terms.keys
        if changes is not None and keys is not None:
            self._undeclared.update(key for key in (*changes[0], *changes[1]) if key not in keys)

    def refuse(self, stored: Iterable[str]) -> None:
        """Refuse to commit what the body must not do; *stored* are the keys that the unit writes or deletes.

        Raises:
            FurtherScopeError: It deleted a key that only a further scope holds.
            ReadOnlyMemoryError: It wrote to a memory that is only to be read.
            UndeclaredKeyError: It wrote a key that the decorator does not name.
        """
        scope = self.terms.scope
        if self._written is not None:
            raise read_only(scope, self._written)
        for key in stored:
            # One that the body took back is no write.
            if self._undeclared and (known := self._key(key)) in self._undeclared:
                raise undeclared(scope, known)
        if self._cut:
            key = min(self._cut)
            holder = self._below()[key].scope
            raise FurtherScopeError(
                f"{scope} memory: key {shortened(repr(key))} was deleted, but it is the {holder} scope that holds it, "
                f"further out than this tool writes, so that nothing was written; delete it with scope={holder!r}, "
                "or assign another value, which then stands before it",
                key=key,
                scope=holder,
            )

    def watched(self, written: Collection[str]) -> Iterable[str]:
        """Stored keys of which the commit must know how they stand, beside those that it writes: where the body sees keys
        that depend on each other and the unit has *written* one of them."""
        return ()

    def unfit(self, change: Change, current: Snapshot) -> MemoryValidationError | None:
        """Why what the call wrote, merged with what others wrote, is nothing that the body may see; None: it may.

        Args:
            change: The merged change of the nearest namespace.
            current: How that stands now.
        """
        return None

    def _below(self) -> _Further:
        """What further scopes hold."""
        memory = self.memory
        return memory._below if isinstance(memory, Layered) else _NOTHING


def _stripped(snapshot: Snapshot, length: int) -> Snapshot:
    """What a snapshot says of values, by keys without so many of their letters."""

    def cut(mapping: Mapping[str, Any]) -> dict[str, Any]:
        return {key[length:]: value for key, value in mapping.items()}

    return Snapshot(
        cut(snapshot.values), cut(snapshot.packed), cut(snapshot.versions), snapshot.head, born=snapshot.born, reserved=False
    )


def _lay_over(values: dict[str, Any], packed: dict[str, bytes], own: dict[str, Any], own_packed: dict[str, bytes]) -> None:
    """Lay what a nearer scope has over what further ones have."""
    if packed:
        for key in [key for key in packed if key in own]:
            del packed[key]
    values.update(own)
    packed.update(own_packed)


def _content(snapshot: Snapshot, key: str) -> bytes:
    packed = snapshot.packed.get(key)
    return codec.pack(snapshot.values[key]) if packed is None else packed


def _is_content(value: Any, snapshot: Snapshot, key: str) -> bool:
    """Whether the value of a key is what a snapshot has for it."""
    packed = snapshot.packed.get(key)
    if packed is None and type(value) in codec.IMMUTABLE and value is snapshot.values[key]:
        return True
    return pack_at(value, key) == (codec.pack(snapshot.values[key]) if packed is None else packed)


def flush(views: Sequence[View], last: bool = False) -> None:
    """Bring what a body changed in its views into what its unit holds, and show it in all of them.

    Args:
        views: All of the unit's.
        last: Whether nothing needs to be shown, for nobody looks there any more.
    """
    flushed: list[View] = []
    try:
        flushed.extend(view for view in views if view.flush())
    except BaseException:
        # The body may go on, and what was taken up must not be taken up again.
        show(flushed)
        raise
    if flushed and not last:
        show(views)


def show(views: Sequence[View]) -> None:
    """Show in all views what is held now."""
    for view in views:
        view.show()


def end(views: list[View]) -> None:
    """Forget the views of a call that has ended."""
    while views:
        views.pop().end()


def read_only(scope: str, changes: Changes) -> ReadOnlyMemoryError:
    """The error of a call that wrote to a memory which is only to be read."""
    key = next(iter((*changes[0], *changes[1])))
    return ReadOnlyMemoryError(
        f"{scope} memory: it is read-only for this tool, which wrote key {shortened(repr(key))}, so that nothing was "
        "written; leave out read_only=True, or leave it as it is",
        key=key,
        scope=scope,
    )


def undeclared(scope: str, key: str) -> UndeclaredKeyError:
    """The error of a call that wrote a key which its decorator does not name."""
    return UndeclaredKeyError(
        f"{scope} memory: key {shortened(repr(key))} is not one of those that the tool says it uses, "
        "so that nothing was written; add it, with_memory(keys=(...))",
        key=key,
        scope=scope,
    )
