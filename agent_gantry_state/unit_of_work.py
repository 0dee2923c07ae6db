"""What happens in a call: load, run, then commit or discard.

A unit of work opens the memories that a call needs from one snapshot, finds what the call changed in them, and commits all
of it in one step. Where another call was quicker it merges, always from what was loaded and what this call made of it, and
tries again. It is pure: it yields messages (`steps`) and is sent the answers.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from agent_gantry_state import codec, merge
from agent_gantry_state.codec import shortened
from agent_gantry_state.errors import MemoryConflictError, MemoryErasedError, StoreTimeoutError, UnstorableValueError
from agent_gantry_state.memory import Changes, Memory, Terms, changes_of, open_memory, pack_at
from agent_gantry_state.merge import ABSENT, Conflict
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores.protocol import (
    KEEP,
    UNSHARED,
    Change,
    Commit,
    Load,
    Loaded,
    Moved,
    Put,
    Snapshot,
)

__all__ = ["UnitOfWork"]

_random = random.Random()  # noqa: S311 - unique, not secret
if hasattr(os, "register_at_fork"):
    # A child that went on with its parent's sequence would give two commits one version.
    os.register_at_fork(after_in_child=_random.seed)
_getrandbits = _random.getrandbits
_new = object.__new__

#: Sends at most this long after what another call moved, in seconds, resends included.
COMMIT_SECONDS = 6.0
#: A sliding time to live is restarted only when this part of it has gone.
TOUCH_AFTER = 0.1


def new_version() -> bytes:
    """Random bytes for a commit's version."""
    return _getrandbits(64).to_bytes(8, "big")


class UnitOfWork:
    """One call's memories, from load to commit.

    Args:
        needs: The namespaces to load, each with how its memory behaves.
        resendable: Whether the answer to a commit can be lost, so that the store has to remember the unit.
    """

    __slots__ = ("_deadline", "_made", "_needs", "_pending", "_token", "memories")

    def __init__(self, needs: Mapping[Namespace, Terms], resendable: bool = True) -> None:
        self._needs = needs
        self._token = _getrandbits(128).to_bytes(16, "big") if resendable else b""
        self.memories: tuple[Memory, ...] = ()

    _made: list[tuple[Memory, Changes | None]]
    _pending: list[Change]

    @classmethod
    def of(cls, memory: Memory) -> UnitOfWork:
        """The unit of a memory that was opened without one, from a store that answers at once."""
        unit = _new(cls)
        unit._token = b""
        unit.memories = (memory,)
        return unit

    def begin(self) -> Steps[tuple[Memory, ...]]:
        """Load the memories, in the order in which they are needed."""
        loaded: Loaded = yield Load(tuple(self._needs))
        self.memories = tuple(
            open_memory(namespace, snapshot, loaded.now, terms)
            for (namespace, terms), snapshot in zip(self._needs.items(), loaded.snapshots, strict=True)
        )
        return self.memories

    def finish(self) -> Steps[None]:
        """Commit what the call changed, merging where others were quicker.

        Raises:
            MemoryConflictError: What both sides changed cannot be merged.
            MemoryErasedError: A namespace was erased after it had been loaded.
            StoreTimeoutError: Others were quicker for too long.
            UnstorableValueError: The call left something in a memory that cannot be stored.
        """
        commit = self.commit()
        if commit is None:
            return
        self._deadline = time.monotonic() + COMMIT_SECONDS
        while commit is not None:
            answer = yield commit
            if not isinstance(answer, Moved):
                return
            commit = self.settle(answer)

    def settle_with(self, answer: Moved, send: Callable[[Commit], Any]) -> None:
        """The rest of `finish` after others were quicker, for a store that answers at once."""
        self._deadline = time.monotonic() + COMMIT_SECONDS
        while (commit := self.settle(answer)) is not None:
            if not isinstance(answer := send(commit), Moved):
                return

    def commit(self) -> Commit | None:
        """The commit of what the call changed; None if there is nothing to commit."""
        self._pending = pending = []
        self._made = made = []
        for memory in self.memories:
            changes = changes_of(memory)
            if changes is not None or (memory._terms.slides and _is_due(memory)):
                made.append((memory, changes))
                pending.append(_change(memory, changes))
        return self._message() if pending else None

    def settle(self, moved: Moved) -> Commit | None:
        """The next commit after others were quicker; None if theirs leaves nothing to write."""
        if time.monotonic() > self._deadline:
            raise StoreTimeoutError(
                f"other calls kept changing the same keys for {COMMIT_SECONDS:g} s, so that nothing was written; "
                "try again, or spread what they write over more keys",
                committed=False,
            )
        conflicts: dict[str, list[str]] = {}
        causes: list[BaseException] = []
        pending = []
        for (memory, changes), change, snapshot in zip(self._made, self._pending, moved.snapshots, strict=True):
            rebase = _Rebase(memory, changes, change, snapshot, moved.now)
            rebased = rebase.run()
            if rebase.conflicts:
                conflicts.setdefault(memory._terms.scope, []).extend(rebase.conflicts)
                causes.extend(rebase.causes)
            pending.append(rebased)
        if conflicts:
            raise _conflict(conflicts) from (causes[0] if causes else None)
        self._pending = pending
        # What has nothing left to write goes along as long as something has, for its keys may move again.
        return self._message() if any(each.puts or each.deletes or each.touch for each in pending) else None

    def _message(self) -> Commit:
        return Commit(self._token, self._token[:8] or new_version(), tuple(self._pending))


def finish_one(memory: Memory, send: Callable[[Commit], Any]) -> None:
    """`UnitOfWork.finish` for one memory that was opened without a unit, from a store that answers at once."""
    changes = changes_of(memory)
    if changes is None and not (memory._terms.slides and _is_due(memory)):
        return
    change = _change(memory, changes)
    answer = send(Commit(b"", new_version(), (change,)))
    if isinstance(answer, Moved):
        unit = UnitOfWork.of(memory)
        unit._made, unit._pending = [(memory, changes)], [change]
        unit.settle_with(answer, send)


def _is_due(memory: Memory) -> bool:
    """Whether this use is to restart the time of the keys that slide, though it writes nothing."""
    base = memory._base
    return bool(base.slides) and memory._now - base.touched > TOUCH_AFTER * min(base.slides.values())


def _change(memory: Memory, changes: Changes | None) -> Change:
    namespace, base, slides = memory._namespace, memory._base, memory._terms.slides
    assert namespace is not None  # noqa: S101 - a unit opens its memories with one
    if changes is None:
        return Change(namespace, base.head, {}, (), {}, False, slides, None, base.owner, base.born)
    puts, deletes, _ = changes
    version = base.versions.get
    checks = {}
    for key in puts:
        checks[key] = version(key)
    for key in deletes:
        checks[key] = version(key)
    return Change(namespace, base.head, puts, deletes, checks, False, slides, None, base.owner, base.born)


class _Rebase:
    """One namespace's change, made again on top of what others committed."""

    __slots__ = ("base", "causes", "change", "changes", "conflicts", "current", "now", "terms")

    def __init__(self, memory: Memory, changes: Changes | None, change: Change, current: Snapshot, now: float) -> None:
        self.terms = memory._terms
        self.base = memory._base
        self.changes = changes
        self.change = change
        self.current = current
        self.now = now
        self.conflicts: list[str] = []
        self.causes: list[BaseException] = []

    def run(self) -> Change:
        base, change, current = self.base, self.change, self.current
        erased = base.head is not None and current.born != base.born and self.now < base.last_expiry()
        if self.changes is None and erased:
            # A use that only restarts a time to live conflicts with nothing.
            return replace(change, touch=False)
        if erased:
            raise MemoryErasedError(
                f"{self.terms.scope} memory: it was erased after this call had loaded it, so that nothing was written; "
                "a new call starts from an empty one",
                scope=self.terms.scope,
            )
        puts, deletes = dict(change.puts), list(change.deletes)
        checks: dict[str, bytes | None] = {}
        for key, seen in change.checks.items():
            checks[key] = version = current.versions.get(key)
            if version == seen or (version is None and self._expired(key)):
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
        return Change(
            change.namespace,
            current.head,
            puts,
            deletes,
            checks,
            change.whole,
            change.touch and (current.head is not None or bool(puts)),
            change.owner,
            current.owner,
            current.born,
        )

    def _expired(self, key: str) -> bool:
        """Whether a key that is gone went by itself; then it counts as unchanged."""
        deadline = self.base.deadline(key)
        return deadline is not None and deadline <= self.now

    def _merge(self, key: str) -> Put | Any:
        """What to write for a key that moved: a put, ABSENT to delete it, None to leave theirs."""
        assert self.changes is not None  # noqa: S101 - a change without changes checks nothing
        base = self.base.value(key) if key in self.base.values else ABSENT
        theirs = self.current.value(key) if key in self.current.values else ABSENT
        put = self.changes[0].get(key)
        ours = ABSENT if put is None else _value(put)
        if put is not None and key in self.changes[2]:
            merged: Any = _add(theirs, self.changes[2][key])
        elif theirs is ABSENT and ours is ABSENT:
            return None
        elif key in self.terms.merges and not (_unchanged(base, ours) or _unchanged(base, theirs)):
            merged = self.terms.merges[key](base, theirs, ours)
        else:
            merged = merge.three_way(base, theirs, ours)
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


def _value(put: Put) -> Any:
    """The value of a put, as a private copy."""
    return codec.unpack(put.packed) if put.value is UNSHARED else put.value


def _unchanged(base: Any, side: Any) -> bool:
    return base is not ABSENT and side is not ABSENT and codec.pack(base) == codec.pack(side)


def _add(theirs: Any, n: Any) -> Any:
    current = 0 if theirs is ABSENT else theirs
    if not merge.is_number(current):
        raise Conflict(f"another call made it a {type(current).__name__}, which cannot be added to")
    return current + n


def _conflict(by_scope: dict[str, list[str]]) -> MemoryConflictError:
    keys = next(iter(by_scope.values()))
    where = "; ".join(f"{scope} memory: {_named(keys)}" for scope, keys in by_scope.items())
    many = sum(map(len, by_scope.values())) > 1
    return MemoryConflictError(
        f"{where} {'were' if many else 'was'} changed by another call since this one read "
        f"{'them' if many else 'it'}, so that nothing was written. Declare how to merge, "
        f"with_memory(merge={{{shortened(repr(keys[0]))}: ...}}) with a function of agent_gantry_state.merge or your "
        'own, or have the tool run again with on_conflict="retry".',
        by_scope=by_scope,
    )


def _named(keys: list[str]) -> str:
    shown = ", ".join(shortened(repr(key)) for key in keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    return f"{'key' if len(keys) == 1 else 'keys'} {shown}"
