"""What a unit of work holds: for each namespace the working copy, who may see it, and how much of it was loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from agent_gantry_state.changes import changes_of, is_due, touches
from agent_gantry_state.codec import shortened
from agent_gantry_state.errors import ReadOnlyMemoryError, SessionOwnerError, UndeclaredKeyError
from agent_gantry_state.memory import Changes, Memory, Terms, open_memory
from agent_gantry_state.savepoint import apply_changes, refresh
from agent_gantry_state.scopes import Identity
from agent_gantry_state.stores.protocol import Change

__all__ = ["Held", "Want", "change_of", "read_only", "refuse_owner"]


class Want(NamedTuple):
    """What a call wants of a namespace.

    Attributes:
        terms: How its memory behaves.
        owner: Who calls, for a namespace that has an owner: a user, "" for nobody; None: it has none.
        adopts: Whether the caller takes over what is nobody's.
        keys: Which keys to load; None: all.
        nested: Whether it is only wanted for a call inside.
    """

    terms: Terms
    owner: str | None = None
    adopts: bool = False
    keys: tuple[str, ...] | None = None
    nested: bool = False

    @classmethod
    def of(cls, terms: Terms, identity: Identity | None, keys: tuple[str, ...] | None = None) -> Want:
        """What a caller wants of a namespace with these terms."""
        keys = terms.keys if keys is None else keys
        if not terms.owned:
            return cls(terms, None, False, keys)
        return cls(terms, "", False, keys) if identity is None else cls(terms, identity.owner, identity.adopt, keys)

    def for_nested(self) -> Want:
        """The same for the call around it, which holds it only for the one inside."""
        return self._replace(terms=Terms(self.terms.scope, owned=self.terms.owned, limits=self.terms.limits), nested=True)

    def joined(self, other: Want) -> Want:
        """This for a call that wants the same namespace twice."""
        both = self.keys is not None and other.keys is not None
        keys = tuple(dict.fromkeys((*(self.keys or ()), *(other.keys or ())))) if both else None
        owner = self.owner if self.owner is not None else other.owner
        return self._replace(
            terms=self.terms.joined(other.terms), keys=keys, owner=owner, adopts=self.adopts or other.adopts
        )


class Held:
    """A namespace in a unit of work.

    Attributes:
        memory: The working copy.
        want: What the call wants of it.
        keys: The keys that were loaded, whether they were there or not; None: all.
        origin: Where the memory was loaded from the call around this one: what that one holds.
        whole: Whether the namespace must be unchanged when the unit commits.
        checked: Keys that must be.
        view: What the body of a call with ``keys=`` sees, when others have asked for more: then `memory` has all.
        born: Head of the namespace's first commit, as far as it is known after the unit has landed.
    """

    __slots__ = ("_undeclared", "_written", "born", "checked", "keys", "memory", "origin", "view", "want", "whole")

    def __init__(self, memory: Memory, want: Want, origin: Held | None = None) -> None:
        self.memory = memory
        self.want = want
        self.keys = None if want.keys is None else set(want.keys)
        self.origin = origin
        self.whole = False
        self.checked: set[str] = set()
        self.view: Memory | None = None
        self._undeclared: set[str] = set()
        self._written: Changes | None = None
        self.born: bytes | None = None

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

    def split(self) -> None:
        """Go on with a memory that may have all keys, of which the body goes on to see those that it named."""
        view = self.memory
        assert view._namespace is not None  # noqa: S101 - a unit opens its memories with one
        self.view = view
        self.memory = open_memory(view._namespace, view._base, view._now, self.want.for_nested().terms)
        self.flush()

    def flush(self) -> None:
        """Bring what the body changed in its view into the memory."""
        view = self.view
        if view is None:
            return
        changes = changes_of(view)
        if changes is None and not is_due(view):
            return
        if self.want.terms.read_only and changes is not None:
            # Nothing of it goes on: the call is refused when it ends, unless it has taken it back by then.
            self._written = changes
            return
        self._written = None
        self._note_undeclared(changes)
        self.apply(view, change_of(view, changes), changes)

    def apply(self, inner: Memory, change: Change, changes: Changes | None) -> None:
        """Make the changes of another memory of the namespace in this one, and show the body those that it may see."""
        if self.want.terms.read_only and self.view is None:
            # What a call inside writes is not written by this one's body.
            self.split()
        memory = self.memory
        apply_changes(memory, inner, change, {} if changes is None else changes[2])
        merges = inner._terms.merges
        if not merges.keys() <= memory._terms.merges.keys():
            memory._terms = replace(memory._terms, merges={**merges, **memory._terms.merges})
        if self.view is not None:
            # What it wrote beside its keys stays in sight: it may yet take it back.
            keys = self.want.terms.keys
            refresh(self.view, memory, (*(memory if keys is None else keys), *self._undeclared))

    def _refuse_written(self, changes: Changes | None) -> None:
        if changes is not None:
            raise read_only(self.want.terms.scope, changes)
        if self._written is not None:
            raise read_only(self.want.terms.scope, self._written)

    def _note_undeclared(self, changes: Changes | None) -> None:
        keys = self.want.terms.keys
        if changes is not None and keys is not None:
            self._undeclared.update(key for key in (*changes[0], *changes[1]) if key not in keys)

    def refuse_undeclared(self, changes: Changes | None) -> None:
        """Refuse to commit if the body wrote what the decorator says it does not write.

        Raises:
            ReadOnlyMemoryError: It wrote to a memory that is only to be read.
            UndeclaredKeyError: It wrote a key that the decorator does not name.
        """
        if self.want.terms.read_only:
            self._refuse_written(changes if self.view is None else None)
        if self.view is None:
            self._note_undeclared(changes)
        # One that the body took back is no write.
        undeclared = [key for key in (*changes[0], *changes[1]) if key in self._undeclared] if changes else []
        if undeclared:
            scope = self.want.terms.scope
            raise UndeclaredKeyError(
                f"{scope} memory: key {shortened(repr(undeclared[0]))} is not one of those that the tool says it uses, "
                "so that nothing was written; add it, with_memory(keys=(...))",
                key=undeclared[0],
                scope=scope,
            )


def read_only(scope: str, changes: Changes) -> ReadOnlyMemoryError:
    """The error of a call that wrote to a memory which is only to be read."""
    key = next(iter((*changes[0], *changes[1])))
    return ReadOnlyMemoryError(
        f"{scope} memory: it is read-only for this tool, which wrote key {shortened(repr(key))}, so that nothing was "
        "written; leave out read_only=True, or leave it as it is",
        key=key,
        scope=scope,
    )


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
    memory: Memory, changes: Changes | None, owner: str | None = None, whole: bool = False, checked: set[str] | None = None
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
    version = base.versions.get
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
