"""One namespace's change, made again on top of what others committed.

The merge always starts from what the call had loaded and what it made of that, however often it is tried.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from agent_gantry_state import codec, merge
from agent_gantry_state.changes import pack_at
from agent_gantry_state.codec import shortened
from agent_gantry_state.compartments import all_known_as
from agent_gantry_state.errors import MemoryConflictError, MemoryErasedError, UnstorableValueError
from agent_gantry_state.memory import Changes, Memory
from agent_gantry_state.merge import ABSENT, Conflict, Unfit
from agent_gantry_state.stores.protocol import KEEP, UNSHARED, Change, Put, Snapshot

__all__ = ["Rebase", "conflict", "erased", "is_erased"]


def is_erased(base: Snapshot, current: Snapshot, now: float, born: bytes | None = None) -> bool:
    """Whether a namespace was erased after it had been loaded; one whose last key expired was not.

    Args:
        base: What was loaded.
        current: What is there now.
        now: Time on the store's clock.
        born: Head of the namespace's first commit, if a call around this one has committed to it since.
    """
    if base.head is None and born is None:
        return False
    if current.born == (born or base.born) or now >= base.last_expiry():
        return False
    # A commit that is still to be seen in it was not its first one, for a stranger's was quicker; it has lived on since.
    return born is None or born not in (current.head, *current.versions.values())


def erased(scope: str) -> MemoryErasedError:
    """The error of a call whose namespace was erased."""
    return MemoryErasedError(
        f"{scope} memory: it was erased after this call had loaded it, so that nothing was written; a new call starts from "
        "an empty one",
        scope=scope,
    )


class Rebase:
    """One namespace's change, made again on top of what others committed."""

    __slots__ = (
        "base",
        "bases",
        "born",
        "causes",
        "change",
        "changes",
        "checked",
        "conflicts",
        "contents",
        "current",
        "now",
        "terms",
        "versions",
    )

    def __init__(
        self,
        memory: Memory,
        changes: Changes | None,
        change: Change,
        current: Snapshot,
        now: float,
        checked: Collection[str] = (),
        born: bytes | None = None,
        contents: bool = False,
        bases: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        self.terms = memory._terms
        self.base = memory._base
        self.changes = changes
        self.change = change
        self.current = current
        self.now = now
        self.checked = checked
        self.born = born
        self.contents = contents
        self.bases = bases
        #: What is there now, to be compared with what was seen: versions, or for one that saw contents those.
        self.versions = _contents(current) if contents else current.versions
        self.conflicts: list[str] = []
        self.causes: list[BaseException] = []

    def run(self) -> Change:
        change, current = self.change, self.current
        is_use = self.changes is None and not change.whole and not self.checked
        if is_erased(self.base, current, self.now, self.born):
            if is_use:
                # A use that only restarts a time to live conflicts with nothing.
                return replace(change, touch=False)
            raise erased(self.terms.scope)
        puts, deletes = dict(change.puts), list(change.deletes)
        checks: dict[str, bytes | None] = {}
        for key, seen in change.checks.items():
            checks[key] = current.version(key)
            version = self.versions.get(key)
            if version == seen or (version is None and self._expired(key)):
                continue
            if key in self.checked:
                self.conflicts.append(key)
                continue
            if self.changes is None or not (key in self.changes[0] or key in self.changes[1]):
                # It is only to be known how it stands when the rest is written.
                continue
            try:
                merged = self._merge(key)
            except (Conflict, UnstorableValueError) as error:
                self.conflicts.append(key)
                if str(error):
                    self.causes.append(error)
                continue
            except Exception as error:  # noqa: BLE001
                # A declared merge failed: the conflict says which key, and this error is its cause.
                self.conflicts.append(key)
                self.causes.append(error)
                continue
            # A key of which theirs is kept is still checked: if it moves again, it is merged again.
            if key in deletes:
                deletes.remove(key)
            if isinstance(merged, Put):
                puts[key] = merged
            else:
                puts.pop(key, None)
                if merged is ABSENT:
                    deletes.append(key)
        if self.changes is not None and len(puts) > 1 and not puts.keys() <= change.puts.keys():
            # One that had been left to theirs is written after all: in its own place among the new ones.
            puts = {**{key: puts[key] for key in self.changes[0] if key in puts}, **puts}
        return Change(
            change.namespace,
            current.head,
            puts,
            deletes,
            checks,
            change.whole,
            change.touch and (current.head is not None or bool(puts)),
            None if change.owner == current.owner else change.owner,
            current.owner,
            current.born,
        )

    def moved(self) -> list[str] | None:
        """The keys that are not as they were loaded, as far as can be told, for a call that needs all as it was; None if
        nothing has moved."""
        head = self.current.head
        if not self.contents and (head == self.change.head or (head is None and self.base.last_expiry() <= self.now)):
            return None
        versions, there = self.base.versions, self.versions
        seen = {**{key: versions.get(key) for key in there}, **self.change.checks}
        if self.contents:
            seen |= versions
        keys = [key for key, version in seen.items() if there.get(key) != version and not self._went(key)]
        return keys if keys or not self.contents else None

    def _went(self, key: str) -> bool:
        return key not in self.versions and self._expired(key)

    def _expired(self, key: str) -> bool:
        """Whether a key that is gone went by itself; then it counts as unchanged."""
        deadline = self.base.deadline(key)
        return deadline is not None and deadline <= self.now

    def _merge(self, key: str) -> Put | Any:
        """What to write for a key that moved: a put, ABSENT to delete it, None to leave theirs."""
        assert self.changes is not None  # noqa: S101 - a change without changes checks nothing
        base = self._base_of(key)
        theirs = self.current.value(key) if key in self.current.values else ABSENT
        put = self.changes[0].get(key)
        ours = ABSENT if put is None else _value(put)
        if put is not None and key in self.changes[2]:
            merged: Any = _add(base if theirs is ABSENT and key in self.bases else theirs, self.changes[2][key])
        elif theirs is ABSENT and ours is ABSENT:
            return None
        elif key in self.terms.merges and not (_unchanged(base, ours) or _unchanged(base, theirs)):
            merged = self.terms.merges[key](base, theirs, ours)
        else:
            merged = merge.three_way(base, theirs, ours, self.terms.reruns)
        if merged is ABSENT:
            return ABSENT if theirs is not ABSENT else None
        packed = pack_at(merged, key)
        own_ttl = put is not None and put.ttl is not KEEP and not (put.last and put.ttl is None)
        if theirs is not ABSENT and packed == codec.pack(theirs) and not own_ttl:
            return None
        shared = merged if type(merged) in codec.IMMUTABLE else UNSHARED
        # A key that moved keeps the place that the other call gave it.
        ttl, slides = (self.terms.ttl, self.terms.slides) if put is None else (put.ttl, put.slides)
        return Put(shared, packed, ttl, slides, False)

    def _base_of(self, key: str) -> Any:
        """What the call made its value from, as a private copy."""
        if key in self.base.values:
            return self.base.value(key)
        return codec.unpack(self.bases[key]) if key in self.bases else ABSENT


def _contents(snapshot: Snapshot) -> dict[str, bytes]:
    packed = snapshot.packed
    return {key: packed[key] if key in packed else codec.pack(value) for key, value in snapshot.values.items()}


def _value(put: Put) -> Any:
    """The value of a put, as a private copy."""
    return codec.unpack(put.packed) if put.value is UNSHARED else put.value


def _unchanged(base: Any, side: Any) -> bool:
    return base is not ABSENT and side is not ABSENT and codec.pack(base) == codec.pack(side)


def _add(theirs: Any, n: Any) -> Any:
    current = 0 if theirs is ABSENT else theirs
    if not merge.is_number(current):
        raise Unfit(f"another call made it a {type(current).__name__}, which cannot be added to")
    return current + n


def conflict(
    by_scope: dict[str, list[str]],
    serializable: bool,
    unfit: str = "",
    cause: BaseException | None = None,
    reruns: bool = False,
) -> MemoryConflictError:
    """The error of a call that cannot commit.

    Args:
        by_scope: For each scope the keys that stand in the way, as far as they are known.
        serializable: Whether it was what the call read that had to stay as it was: then no merge would have helped.
        unfit: What is wrong where all could be merged, but not to something that the tool may see.
        cause: What came of merging one of the keys.
        reruns: Whether the body runs again after a conflict.
    """
    by_scope = {scope: all_known_as(keys) for scope, keys in by_scope.items()}
    known = {scope: keys for scope, keys in by_scope.items() if keys}
    where = "; ".join(f"{scope} memory: {_named(keys)}" for scope, keys in known.items())
    where = where or f"{' and '.join(by_scope)} memory"
    if unfit:
        return MemoryConflictError(
            f"{where}: what this call wrote does not go with what another one wrote meanwhile ({unfit}), so that nothing "
            f"was written. {_again(reruns)}.",
            by_scope=by_scope,
        )
    many = sum(map(len, known.values())) > 1
    told = (
        f"{where} {'were' if many else 'was'} changed by another call since this one read {'them' if many else 'it'}"
        f"{_why(cause, many)}, so that nothing was written. "
    )
    how = _again(reruns)
    if serializable:
        return MemoryConflictError(f"{told}{how}.", by_scope=by_scope)
    if cause is not None and not isinstance(cause, Conflict):
        told += "Mend that merge"
    else:
        key = shortened(repr(next(iter(known.values()))[0]))
        told += (
            f"Declare how to merge, with_memory(merge={{{key}: ...}}) with a function of agent_gantry_state.merge or one of "
            "your own"
        )
    told += f". {how}." if reruns else f", or {how[0].lower()}{how[1:]}."
    return MemoryConflictError(told, by_scope=by_scope)


def _again(reruns: bool) -> str:
    if reruns:
        return "It runs again no more often than retries= allows: raise that, or have fewer calls at once write to it"
    return 'Have the tool run again with on_conflict="retry"'


def _why(cause: BaseException | None, many: bool) -> str:
    """What came of merging, in brackets. A user's own words may hold a value, and are not repeated."""
    one = "of one of them" if many else "declared for it"
    if isinstance(cause, Unfit):
        return f" ({cause})"
    if isinstance(cause, UnstorableValueError):
        return f" (the merge {one} gave a value that cannot be stored)"
    if cause is None or isinstance(cause, Conflict):
        return ""
    return f" (the merge {one} failed with {type(cause).__name__})"


def _named(keys: list[str]) -> str:
    shown = ", ".join(shortened(repr(key)) for key in keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    return f"{'key' if len(keys) == 1 else 'keys'} {shown}"
