"""What a unit of work holds: for each namespace the working copy, who may see it, and how much of it was loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from agent_gantry_state.changes import is_due, touches
from agent_gantry_state.compartments import has_reserved, is_reserved
from agent_gantry_state.errors import SessionOwnerError
from agent_gantry_state.memory import Changes, Memory, Terms, open_memory
from agent_gantry_state.merge import Merge
from agent_gantry_state.savepoint import apply_changes, content_of, snapshot_of
from agent_gantry_state.scopes import Identity
from agent_gantry_state.stores.protocol import Change
from agent_gantry_state.views import View, flush, read_only, undeclared

__all__ = ["Held", "Want", "change_of", "refuse_owner"]


_NONE: Final[frozenset[str]] = frozenset()


class Want(NamedTuple):
    """What a call wants of a namespace.

    Attributes:
        terms: How its memory behaves.
        owner: Who calls, for a namespace that has an owner: a user, "" for nobody; None: it has none.
        adopts: Whether the caller takes over what is nobody's.
        keys: Which keys to load; None: all.
        nested: Whether it is only wanted for a call inside.
        parts: Prefixes of the parts of the namespace that must be unchanged when the call commits; "" stands for all that
            belongs to no compartment.
        checked: Keys that must be.
    """

    terms: Terms
    owner: str | None = None
    adopts: bool = False
    keys: tuple[str, ...] | None = None
    nested: bool = False
    parts: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()

    @classmethod
    def of(cls, terms: Terms, identity: Identity | None, keys: tuple[str, ...] | None = None, prefix: str = "") -> Want:
        """What a caller wants of a namespace with these terms."""
        owner: str | None = None
        adopts = False
        if terms.owned:
            owner, adopts = ("", False) if identity is None else (identity.owner, identity.adopt)
        loaded = terms.keys if keys is None else keys
        if not (terms.serializable or terms.exclusive):
            return cls(terms, owner, adopts, loaded)
        parts, checked = ((prefix,), ()) if terms.keys is None else ((), terms.keys)
        return cls(terms, owner, adopts, loaded, False, parts, checked)

    def for_nested(self) -> Want:
        """The same for the call around it, which holds it only for the one inside."""
        return Want(self.terms.for_nested(), self.owner, self.adopts, self.keys, True)

    def beside(self, view: Want) -> Want:
        """This, of a memory that a body sees, in a call that has a view of the same namespace as well."""
        mine, both = self.terms, self.joined(view)
        return both._replace(terms=replace(mine, exclusive=both.terms.exclusive, reruns=both.terms.reruns))

    def joined(self, other: Want) -> Want:
        """This for a call that wants the same namespace twice."""
        both = self.keys is not None and other.keys is not None
        keys = tuple(dict.fromkeys((*(self.keys or ()), *(other.keys or ())))) if both else None
        owner = self.owner if self.owner is not None else other.owner
        return self._replace(
            terms=self.terms.joined(other.terms),
            keys=keys,
            owner=owner,
            adopts=self.adopts or other.adopts,
            parts=(*self.parts, *other.parts),
            checked=(*self.checked, *other.checked),
        )


class Held:
    """A namespace in a unit of work.

    Attributes:
        memory: The working copy.
        want: What the call wants of it.
        keys: The keys that were loaded, whether they were there or not; None: all.
        origin: Where the memory was loaded from the call around this one: what that one holds.
        parts: Prefixes of the parts of the namespace that must be unchanged when the unit commits.
        checked: Keys that must be.
        view: What the body sees of it, where that is not `memory` itself: of all that is there the keys that it named, or
            those that belong to no compartment.
        views: All views of the unit; shared with what else it holds.
        bases: For keys that the namespace does not have, the encoded value of a further scope, or of a default, from which
            the body made what it writes.
        born: Head of the namespace's first commit, as far as it is known after the unit has landed.
    """

    __slots__ = ("bases", "born", "checked", "keys", "memory", "origin", "parts", "view", "views", "want")

    def __init__(self, memory: Memory, want: Want, origin: Held | None = None, views: list[View] | None = None) -> None:
        self.memory = memory
        self.want = want
        self.keys = None if want.keys is None else set(want.keys)
        self.origin = origin
        self.parts: frozenset[str] = _NONE
        self.checked: frozenset[str] = _NONE
        self.keep(want)
        self.view: View | None = None
        self.views: list[View] = [] if views is None else views
        self.bases: dict[str, bytes] = {}
        self.born: bytes | None = None

    def keep(self, want: Want) -> None:
        """Have what *want* names unchanged when the unit commits."""
        if want.parts or want.checked:
            self.parts, self.checked = self.parts.union(want.parts), self.checked.union(want.checked)

    @property
    def whole(self) -> bool:
        """Whether the store has to say whether anything has changed."""
        return bool(self.parts)

    def guarded(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that belong to a part which must be unchanged."""
        parts = tuple(part for part in self.parts if part)
        return [key for key in keys if (key.startswith(parts) if is_reserved(key) else "" in self.parts)]

    def has(self, keys: tuple[str, ...] | None) -> bool:
        """Whether these keys are loaded; None: all."""
        return self.keys is None or (keys is not None and self.keys.issuperset(keys))

    @property
    def owner(self) -> str | None:
        """Whom the namespace belongs to, or will when this unit commits."""
        there, want = self.memory._base.owner, self.want
        return there if want.nested or not (there is None or want.adopts) else want.owner

    def committed_born(self) -> bytes | None:
        """Head of the namespace's first commit, if that was made by a call around this one."""
        return self.born or (None if self.origin is None else self.origin.committed_born())

    def open_to(self, want: Want) -> None:
        """Show the namespace to a body that asks for what a call inside, or a view, has used before."""
        self.want = want.beside(self.want)
        if has_reserved(self.memory):
            self.view = View((self,), self.want.terms)
            self.views.append(self.view)
            self.view.show()
        else:
            self.memory._terms = want.terms.joined(self.memory._terms)
            self.seen()

    def seen(self) -> Memory:
        """What a body that asks for the namespace gets."""
        if self.view is None and not self.memory._terms.bare and self._is_more():
            self.split()
        return self.memory if self.view is None else self.view.memory

    def _is_more(self) -> bool:
        """Whether there is more in the memory than such a body may see, or another view writes to it."""
        keys = self.want.terms.keys
        if keys is not None and (self.keys is None or not self.keys.issubset(keys)):
            return True
        if self.memory._base.reserved:
            return True
        return bool(self.views) and any(view.held is self for view in self.views)

    def make_entire(self) -> None:
        """Have the keys of compartments in the memory, for a call inside or a view that may look for them."""
        if self.memory._base.full is not None:
            self.split()

    def split(self) -> None:
        """Go on with a memory that may have all keys, of which the body goes on to see those that it may."""
        seen, terms = self.memory, self.want.terms
        assert seen._namespace is not None  # noqa: S101 - a unit opens its memories with one
        # How calls inside merge what they wrote holds on.
        unseen = Terms(terms.scope, merges=seen._terms.merges, reruns=terms.reruns, bare=True)
        self.memory = open_memory(seen._namespace, seen._base.entire, seen._now, unseen)
        self.view = View((self,), terms, memory=seen)
        if seen._base.full is not None and not seen._touched:
            # What is there may be nothing but compartments.
            self.view.begin_with_default()
        self.views.append(self.view)
        self.flush()
        self.view.show()

    def flush(self) -> None:
        """Bring what the body changed in its views into what its unit holds."""
        if self.views:
            flush(self.views)

    def expect(self, change: Change) -> None:
        """Make ready to take up what a call inside has changed."""
        if self.view is None and not self.memory._terms.bare and (self.want.terms.read_only or has_reserved(change.puts)):
            # It is not written by this one's body, and compartments are not seen by that.
            self.split()
        else:
            self.flush()

    def has_moved(self, inner: Held, change: Change) -> bool:
        """Whether a *change* cannot be taken up as it is, that a call inside made of what it had loaded from here."""
        memory = self.memory
        for key, seen in change.checks.items():
            if content_of(memory, key) != seen:
                return True
        if not change.whole:
            return False
        there, base = snapshot_of(memory), inner.memory._base
        seen_keys = inner.guarded({**base.versions, **there.versions})
        return any(there.version(key) != base.version(key) for key in seen_keys)

    def take_up(
        self,
        change: Change,
        added: Mapping[str, Any],
        timed: Collection[str],
        merges: Mapping[str, Merge],
        bases: Mapping[str, bytes],
    ) -> None:
        """Make the changes of another memory of the namespace in this one; what is shown has been flushed.

        Args:
            change: What to write and to delete.
            added: For keys that were only added to, what was added.
            timed: Keys that were given a time to live of their own.
            merges: How the other one merges keys.
            bases: What it made keys from that the namespace does not have.
        """
        memory = self.memory
        for key in change.deletes:
            self.bases.pop(key, None)
        for key, base in bases.items():
            if key not in memory._base.values:
                self.bases.setdefault(key, base)
        apply_changes(memory, change, added, timed, bases)
        if not merges.keys() <= memory._terms.merges.keys():
            memory._terms = replace(memory._terms, merges={**merges, **memory._terms.merges})

    def refuse(self, changes: Changes | None) -> None:
        """Refuse to commit if a body did what its decorator says it does not do.

        Raises:
            FurtherScopeError: It deleted a key that only a further scope holds.
            ReadOnlyMemoryError: It wrote to a memory that is only to be read.
            UndeclaredKeyError: It wrote a key that the decorator does not name.
        """
        written = () if changes is None else (*changes[0], *changes[1])
        for view in self.views:
            if view.held is self:
                view.refuse(written)
        terms = self.want.terms
        if self.view is not None or changes is None:
            return
        if terms.read_only:
            raise read_only(terms.scope, changes)
        if terms.keys is not None:
            for key in written:
                if key not in terms.keys:
                    raise undeclared(terms.scope, key)


def refuse_owner(want: Want, there: str | None) -> None:
    """Refuse a caller to whom a namespace does not belong.

    Raises:
        SessionOwnerError: In the same words whoever it belongs to and whoever asks.
    """
    if there is None or want.owner is None or there == want.owner or (there == "" and want.adopts):
        return
    scope = want.terms.scope
    raise SessionOwnerError(
        f"this {scope} belongs to another caller, so that nothing was read or written. Use the id of a {scope} of your own; "
        "a session that was begun before its user was known is taken over with gantry.session(..., user=..., adopt=True)",
        scope=scope,
    )


def change_of(
    memory: Memory, changes: Changes | None, owner: str | None = None, whole: bool = False, checked: Collection[str] = ()
) -> Change:
    """What a call did to a memory, for a store.

    Args:
        memory: The memory.
        changes: What changed in it; None: nothing.
        owner: Whom it belongs to if this is what first writes to it; None: to nobody.
        whole: Whether all of it must be as it was loaded.
        checked: Keys that must be.
    """
    namespace, base = memory._namespace, memory._base
    assert namespace is not None  # noqa: S101 - a unit opens its memories with one
    version = base.later.get if base.first is None else base.version
    checks = {key: version(key) for key in checked} if checked else {}
    if changes is None:
        return Change(namespace, base.head, {}, (), checks, whole, is_due(memory), None, base.owner, base.born)
    puts, deletes, _ = changes
    for key in puts:
        checks[key] = version(key)
    for key in deletes:
        checks[key] = version(key)
    # A commit that writes is what binds a namespace to its owner.
    owner = None if owner == base.owner else owner
    return Change(namespace, base.head, puts, deletes, checks, whole, touches(memory), owner, base.owner, base.born)
