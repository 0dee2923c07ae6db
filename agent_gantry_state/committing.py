"""What a call changed, on its way into the stores: in one commit, or in one for each store where that was allowed.

Each part has a token of its own and is merged again on its own where others were quicker.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from agent_gantry_state.errors import (
    MemoryValidationError,
    NotAtomicError,
    PartialCommitError,
    StateError,
    StoreTimeoutError,
)
from agent_gantry_state.holding import Held, refuse_owner
from agent_gantry_state.limits import known, refuse_too_large
from agent_gantry_state.memory import Changes
from agent_gantry_state.notes import LOG, fields
from agent_gantry_state.rebase import Rebase, conflict
from agent_gantry_state.sending import sent
from agent_gantry_state.several import Several
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores.protocol import Change, Commit, Load, Loaded, Moved, Snapshot

__all__ = ["Part", "Parts", "new_token", "new_version", "spare_version"]

_random = random.Random()  # noqa: S311 - unique, not secret
_getrandbits = _random.getrandbits
#: Versions that nobody has yet: to draw them one by one costs several times as much.
_versions: list[bytes] = []
_DRAWN = 128
_split = struct.Struct("8s" * _DRAWN).unpack


#: A version that is drawn already, for whom a frame is much; it raises IndexError if there is none. One step, so that no two
#: threads get the same.
spare_version = _versions.pop


def new_version() -> bytes:
    """Random bytes for a commit's version."""
    while True:
        try:
            return spare_version()
        except IndexError:
            _versions.extend(_split(_getrandbits(64 * _DRAWN).to_bytes(8 * _DRAWN, "big")))


def new_token() -> bytes:
    """Random bytes that name a unit of work."""
    return _getrandbits(128).to_bytes(16, "big")


def _renew() -> None:
    """In a child process: one that went on with its parent's sequence would give two commits one version."""
    _versions.clear()
    _random.seed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


_CHECKS, _WRITES, _TOUCHES = range(3)


class Part:
    """What goes to one store in one commit.

    Args:
        bridge: The way to the store.
        made: What is held of each namespace, and what the call changed in it.
        pending: What is to become of each.
        sees_others: Whether any of it was loaded from a call around this one.
    """

    __slots__ = ("before", "bridge", "deadline", "is_new", "made", "pending", "sees_others", "token", "version")

    def __init__(
        self, bridge: Any, made: list[tuple[Held, Changes | None]], pending: list[Change], sees_others: bool = False
    ) -> None:
        self.bridge = bridge
        self.made = made
        self.pending = pending
        # Without an answer that can be lost, no commit is sent twice, and the store need not remember the unit.
        self.token = new_token() if bridge.resendable else b""
        self.version = b""
        #: What is there of each, as far as it is known.
        self.before = [held.memory._base.entire for held, _ in made]
        #: Whether nobody has looked yet what has become of it in the store.
        self.is_new = True
        #: Whether that is to be compared with what the call saw in one around it.
        self.sees_others = sees_others
        self.deadline: float = time.monotonic() + bridge.commit_timeout

    def start(self) -> None:
        """Begin to count the time that its commit may take."""
        self.deadline = time.monotonic() + self.bridge.commit_timeout

    def scopes(self, which: Callable[[Change], object]) -> list[str]:
        """Those of the memories whose change is one *which* says yes to."""
        both = zip(self.made, self.pending, strict=True)
        return [held.want.terms.scope for (held, _), change in both if which(change)]

    @property
    def rank(self) -> int:
        """When it goes: what only checks first, for that may be refused; then what writes; then what only touches."""
        if any(map(_writes, self.pending)):
            return _WRITES
        return _CHECKS if self.counts else _TOUCHES

    @property
    def counts(self) -> bool:
        """Whether it has to be of one moment with others: one that only touches conflicts with nothing."""
        return any(map(_counts, self.pending))

    def message(self) -> Commit:
        """The commit."""
        self.version = self.token[:8] or new_version()
        return Commit(self.token, self.version, tuple(self.pending), self.bridge.commit_timeout)

    def write(self, commit: Commit | None, refuse: Callable[[], object] | None = None) -> Steps[bool]:
        """Commit, merging where others were quicker; whether anything was left to write.

        Args:
            commit: What to send first.
            refuse: Raises if the call has come to nothing meanwhile.
        """
        while commit is not None:
            self.refuse_too_large()
            if self.token:
                answer = yield from sent(commit, self.deadline, again=True, counters=self.bridge.counters)
            else:
                answer = yield commit
            if not isinstance(answer, Moved):
                return True
            if refuse is not None:
                refuse()
            commit = self.settle(answer.snapshots, answer.now)
            self.count_merge()
        return False

    def count_merge(self) -> None:
        """Have it counted that this was merged with what others did."""
        if self.bridge.counters is not None:
            self.bridge.counters.merged([held.want.terms.scope for held, _ in self.made])

    def look(self) -> Steps[Commit | None]:
        """The commit on top of what is there now; None if that leaves nothing to write."""
        self.is_new, by_content, self.sees_others = False, self.sees_others, False
        loaded: Loaded = yield Load(
            tuple([change.namespace for change in self.pending]),
            None if by_content else tuple([None if change.whole else tuple(change.checks) for change in self.pending]),
            self.bridge.load_timeout,
        )
        return self.settle(loaded.snapshots, loaded.now, by_content)

    def compare(self) -> Steps[None]:
        """Compare what had to stay as it was with what is there now."""
        namespaces = tuple([change.namespace for change in self.pending])
        loaded: Loaded = yield Load(namespaces, ((),) * len(namespaces), self.bridge.load_timeout, names=True)
        self.settle(loaded.snapshots, loaded.now)

    def settle(self, snapshots: Sequence[Snapshot], now: float | Sequence[float], by_content: bool = False) -> Commit | None:
        """The next commit after others were quicker; None if theirs leaves nothing to write.

        Args:
            snapshots: What is there.
            now: Time on the store's clock; for each, if they are not of one store.
            by_content: Whether to compare values with those that were loaded, for a call that had loaded from another.
        """
        if time.monotonic() > self.deadline:
            raise StoreTimeoutError(
                f"other calls kept changing the same keys for {self.bridge.commit_timeout:g} s, so that nothing was "
                "written; try again, or spread what they write over more keys",
                committed=False,
            )
        for (held, _), snapshot in zip(self.made, snapshots, strict=True):
            refuse_owner(held.want, snapshot.owner)
        times = now if isinstance(now, Sequence) else [now] * len(snapshots)
        conflicts: dict[str, list[str]] = {}
        causes: list[BaseException] = []
        misfits: dict[str, list[str]] = {}
        problems: list[MemoryValidationError] = []
        pending = []
        strict = False
        for (held, changes), change, snapshot, moment in zip(self.made, self.pending, snapshots, times, strict=True):
            rebase = Rebase(
                held.memory,
                changes,
                change,
                snapshot,
                moment,
                checked=held.checked,
                born=held.committed_born(),
                contents=by_content and held.origin is not None,
                bases=held.bases,
            )
            rebased = rebase.run()
            if held.origin is not None and snapshot.born is not None and held.committed_born() is not None:
                # Seen to be what the call around committed to, whatever becomes of that one's keys.
                held.born = snapshot.born
            scope = held.want.terms.scope
            moved = rebase.moved() if held.whole else None
            if moved is not None and (not moved or (moved := held.guarded(moved))):
                strict = True
                conflicts.setdefault(scope, []).extend(moved)
            elif rebase.conflicts:
                strict = strict or not held.checked.isdisjoint(rebase.conflicts)
                conflicts.setdefault(scope, []).extend(rebase.conflicts)
                causes.extend(rebase.causes)
            pending.append(rebased)
            for view in held.views:
                if view.held is held and (unfit := view.unfit(rebased, snapshot)) is not None:
                    misfits.setdefault(scope, []).extend(unfit.fields or (*rebased.puts, *rebased.deletes))
                    problems.append(unfit)
        reruns = any(held.want.terms.reruns for held, _ in self.made)
        if misfits and not conflicts:
            raise conflict(misfits, False, problems[0].problem, reruns=reruns) from problems[0]
        if conflicts:
            cause = causes[0] if causes else None
            raise conflict(conflicts, strict, cause=cause, reruns=reruns) from cause
        self.pending = pending
        bases = [held.memory._base.entire for held, _ in self.made]
        self.before = [known(base, snapshot) for base, snapshot in zip(bases, snapshots, strict=True)]
        # What has nothing left to write goes along as long as something has, for its keys may move again.
        return self.message() if any(each.puts or each.deletes or each.touch for each in pending) else None

    def refuse_too_large(self) -> None:
        """Refuse what would make a memory larger than it may be; a call inside is looked at with the one around it.

        Raises:
            MemoryTooLargeError: It would.
        """
        for (held, _), change, before in zip(self.made, self.pending, self.before, strict=True):
            refuse_too_large(held.want.terms.limits, change, before)

    def split(self) -> list[Part]:
        """A part for each namespace."""
        both = zip(self.made, self.pending, strict=True)
        parts = [Part(self.bridge, [made], [change], self.sees_others) for made, change in both]
        for part, before in zip(parts, self.before, strict=True):
            part.is_new, part.before = self.is_new, [before]
        return parts

    def by_store(self, several: Several, order: Sequence[Any]) -> list[Part]:
        """A part for each store, as *order* has the namespaces; what it does not have comes last."""
        places = {namespace: index for index, namespace in reversed(list(enumerate(order)))}
        stores: dict[int, tuple[Any, list[Any]]] = {}
        for each in sorted(
            zip(self.made, self.pending, strict=True), key=lambda each: places.get(each[1].namespace, len(order))
        ):
            bridge = several.of(each[1].namespace)
            stores.setdefault(id(bridge), (bridge, []))[1].append(each)
        return [
            Part(bridge, [made for made, _ in both], [change for _, change in both], self.sees_others)
            for bridge, both in stores.values()
        ]


class Parts:
    """The commit of a call that may have to be made in parts.

    Attributes:
        parts: What is done.
        landed: What of it has written something.
    """

    def __init__(self, parts: Iterable[Part], partial: bool) -> None:
        self._waiting = list(parts)
        self._partial = partial
        self.parts: list[Part] = []
        self.landed: list[Part] = []

    def write(self, refuse: Callable[[], object] | None) -> Steps[None]:
        """Commit the parts one after the other, as *refuse* lets them as long as none has landed.

        Raises:
            NotAtomicError: They cannot be written in one step, and may not be in several.
            PartialCommitError: One failed after others had landed.
        """
        self._waiting.sort(key=_rank)
        if not self._partial:
            self._refuse_several()
        for part in self._waiting:
            part.refuse_too_large()
        while self._waiting:
            if not self.landed:
                yield from self._look()
                if not self._waiting:
                    return
            part = self._waiting.pop(0)
            part.start()
            wrote = False
            try:
                wrote = yield from part.write(part.message(), None if self.landed else refuse)
            except Exception as error:  # noqa: BLE001 - raised again, or said to be no harm
                if isinstance(error, NotAtomicError) and self._partial and len(part.pending) > 1:
                    self._waiting = sorted([*part.split(), *self._waiting], key=_rank)
                    continue
                self._fail(part, error)
            self.parts.append(part)
            if wrote and part.rank == _WRITES:
                self.landed.append(part)

    def _refuse_several(self) -> None:
        several = [part for part in self._waiting if part.counts]
        if len(several) < 2 or all(part.rank != _WRITES for part in several):
            return
        scopes = dict.fromkeys(scope for part in several for scope in part.scopes(_counts))
        what = "several" if sum(part.rank == _WRITES for part in several) > 1 else "one and had to find another as it was"
        raise NotAtomicError(
            f"memories of scopes {' and '.join(scopes)} are kept in different stores, which cannot be written in one step, "
            f"so that nothing was written: this call changed {what}. "
            "Make the gantry with partial_commits=True to have one written after the other, keep these scopes in one store, "
            "or change them by a tool for each",
            scopes=scopes,
        )

    def _look(self) -> Steps[None]:
        """Find what would be refused later, as long as nothing has landed."""
        is_later = False
        for part in list(self._waiting):
            writes = part.rank == _WRITES
            if part.is_new and (part.sees_others or (writes and is_later)):
                part.start()
                if (yield from part.look()) is None:
                    self._waiting.remove(part)
                    self.parts.append(part)
                else:
                    part.refuse_too_large()
            is_later = is_later or writes

    def _fail(self, part: Part, error: Exception) -> None:
        """Say what it means for the call that a part has failed."""
        if not self.landed:
            raise error
        if part.rank == _TOUCHES:
            LOG.warning(
                "%s memory: its time to live was to be restarted: %s",
                " and ".join(_scopes([part], _touches)),
                error,
                extra=fields("touch_failed", scope=",".join(_scopes([part], _touches)), error=type(error).__name__),
            )
            return
        landed, missing = _scopes(self.landed, _writes), _scopes([part, *self._waiting], _writes)
        unknown = _scopes([part], _writes) if not isinstance(error, StateError) or error.committed is None else ()
        surely = [scope for scope in missing if scope not in unknown]
        told = [f"{' and '.join(landed)} memory was written"]
        if surely:
            told.append(f"{' and '.join(surely)} memory was not")
        if unknown:
            told.append(f"whether {' and '.join(unknown)} memory was is not known")
        failed = " and ".join(_scopes([part], _counts))
        raise PartialCommitError(
            f"this call was committed in part: {', '.join(told)}, for the commit of {failed} memory ended with a "
            f"{type(error).__name__}. Look at what is there before the tool is called again, for what was written would be "
            "done twice",
            landed=landed,
            missing=missing,
            unknown=unknown,
        ) from error


def _rank(part: Part) -> int:
    return part.rank


def _writes(change: Change) -> bool:
    return bool(change.puts or change.deletes or change.owner is not None)


def _counts(change: Change) -> bool:
    return _writes(change) or change.whole or bool(change.checks)


def _touches(change: Change) -> bool:
    return change.touch


def _scopes(parts: Iterable[Part], which: Callable[[Change], object]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(scope for part in parts for scope in part.scopes(which)))
