"""Memories written as they were elsewhere: each in one commit, with all its keys in their order, their expiry and its owner.

What is there already is left alone unless it was said to be replaced, and what is the same is not written again, so that an
import or a copy that was cut off is simply made once more.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from agent_gantry_state.admin.asking import Asks, Found, Stream, told
from agent_gantry_state.admin.lines import first_line, last_line, line_of, memories_in
from agent_gantry_state.admin.listing import Listing, Places, Wanted
from agent_gantry_state.admin.memories import StoredMemory, loaded, read, stored
from agent_gantry_state.bridge import Bridge
from agent_gantry_state.errors import (
    CorruptEntryError,
    ImportRefusedError,
    MemoryConflictError,
    MemoryExistsError,
    StoreError,
)
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.protocol import Change, Commit, Committed, Moved, Snapshot

__all__ = ["Existing", "OnCorrupt", "Progress", "Transferred", "commit", "copied", "exported", "imported"]

Existing = Literal["refuse", "skip", "replace"]
#: Told of a memory that cannot be read and is left out.
OnCorrupt = Callable[[Namespace, CorruptEntryError], object]
#: Told after each memory what has become of all so far, and how many there are, or None where that is not known.
Progress = Callable[["Transferred", "int | None"], object]

#: Seconds by which an expiry may be another one after a copy: memcached has whole ones, and each step takes its time.
_TOLERANCE: Final = 2.0
#: How often a memory that others keep changing is looked at again.
_ATTEMPTS: Final = 20


@dataclass(slots=True)
class Transferred:
    """What has become of the memories of an export or a copy.

    Attributes:
        written: How many were written; would have been, where nothing is to be written.
        unchanged: How many were there already, the same.
        skipped: How many were there already as others, and left as they are.
        expired: How many had nothing in them any more: all of their keys are expired.
        corrupt: How many could not be read and were left out.
    """

    written: int = 0
    unchanged: int = 0
    skipped: int = 0
    expired: int = 0
    corrupt: int = 0

    @property
    def memories(self) -> int:
        """How many there were."""
        return self.written + self.unchanged + self.skipped + self.expired + self.corrupt

    def count(self, outcome: str) -> None:
        """Count one more of an outcome."""
        setattr(self, outcome, getattr(self, outcome) + 1)


def commit(bridge: Bridge, change: Change) -> Asks[tuple[Committed | Moved, bytes]]:
    """Commit one change; the answer, and the version that what it wrote has then."""
    token = os.urandom(16)
    message = Commit(token if bridge.resendable else b"", token[:8], (change,), bridge.commit_timeout)
    answer = yield told(bridge, message)
    return answer, message.version


def exported(places: Places, wanted: Wanted, on_corrupt: OnCorrupt | None) -> Stream[str]:
    """The lines of an export."""
    yield Found(first_line())
    listing, count = Listing(places, wanted), 0
    while batch := (yield from listing.more()):
        for bridge, each in batch:
            try:
                memory = yield from read(bridge, each.namespace)
            except CorruptEntryError as error:
                _tell(on_corrupt, each.namespace, error)
                continue
            if memory is not None:
                count += 1
                yield Found(line_of(memory))
    yield Found(last_line(count))


def imported(
    places: Places,
    app: str | None,
    lines: Iterable[str | bytes],
    existing: Existing,
    dry: bool,
    progress: Progress | None,
) -> Asks[Transferred]:
    """Write what is in the lines of an export."""
    done = Transferred()
    for number, memory in memories_in(lines):
        namespace = memory.namespace
        if app is not None and namespace.app != app:
            raise ImportRefusedError(
                f"line {number}: this memory is of another app than the gantry's, so that it was not imported; "
                "gantry.admin.all_apps imports it into the app that it is of",
                line=number,
            )
        outcome = yield from _restored(places.of(namespace), memory, existing, dry, number)
        done.count(outcome)
        if progress is not None:
            progress(done, None)
    return done


def copied(
    source: Places,
    wanted: Wanted,
    target: Places,
    existing: Existing,
    progress: Progress | None,
    on_corrupt: OnCorrupt | None,
) -> Asks[Transferred]:
    """Write what is in one store into another, and see that it is there."""
    done, total = Transferred(), 0
    if progress is not None:
        listing = Listing(source, wanted)
        while batch := (yield from listing.more()):
            total += len(batch)
        progress(done, total)
    listing = Listing(source, wanted)
    while batch := (yield from listing.more()):
        for bridge, each in batch:
            outcome = "corrupt"
            try:
                memory = yield from read(bridge, each.namespace)
            except CorruptEntryError as error:
                _tell(on_corrupt, each.namespace, error)
            else:
                if memory is None:
                    outcome = "expired"
                else:
                    outcome = yield from _restored(target.of(each.namespace), memory, existing, False, None)
            done.count(outcome)
            if progress is not None:
                progress(done, max(total, done.memories))
    return done


def _tell(on_corrupt: OnCorrupt | None, namespace: Namespace, error: CorruptEntryError) -> None:
    if on_corrupt is None:
        raise error
    on_corrupt(namespace, error)


def _restored(bridge: Bridge, memory: StoredMemory, existing: Existing, dry: bool, line: int | None) -> Asks[str]:
    """Write one memory; which of the numbers of `Transferred` it counts for."""
    namespace = memory.namespace
    for _ in range(_ATTEMPTS):
        snapshot, now = yield from loaded(bridge, namespace)
        # What comes from a line goes by the time that it says; what comes from a store has left what it had there.
        wanted = memory.at(now) if line is not None else memory
        if memory.keys and not wanted.keys:
            return "expired"
        if snapshot.head is not None:
            there = stored(namespace, snapshot, now)
            if not wanted.differs(there, _TOLERANCE):
                return "unchanged"
            if existing == "skip":
                return "skipped"
            if existing == "refuse":
                raise _there(
                    namespace, line, "another one is there already, and was left as it is; replace it, or skip this one"
                )
            if wanted.owner is None and there.owner is not None:
                raise _there(
                    namespace,
                    line,
                    "the one that is there belongs to somebody, and this one to nobody yet: erase it first",
                )
        elif not wanted.keys and wanted.owner is None:
            return "unchanged"
        if dry:
            return "written"
        answer, _ = yield from commit(bridge, _replacing(snapshot, wanted))
        if isinstance(answer, Committed):
            if line is None:
                yield from _verify(bridge, wanted)
            return "written"
    raise MemoryConflictError(
        f"{namespace.scope} memory: others kept changing it while it was to be replaced, so that nothing of it was written; "
        "try again",
        by_scope={namespace.scope: []},
    )


def _replacing(snapshot: Snapshot, wanted: StoredMemory) -> Change:
    """The change that makes *wanted* of what is there."""
    puts = {each.key: each.put() for each in wanted.keys}
    deletes = [key for key in snapshot.versions if key not in puts]
    return Change(
        wanted.namespace,
        snapshot.head,
        puts,
        deletes,
        {key: snapshot.version(key) for key in (*puts, *deletes)},
        whole=True,
        touch=any(put.slides for put in puts.values()),
        owner=wanted.owner if wanted.owner != snapshot.owner else None,
        loaded_owner=snapshot.owner,
        born=snapshot.born,
    )


def _verify(bridge: Bridge, wanted: StoredMemory) -> Asks[None]:
    """See that a memory is there as it was written.

    Raises:
        StoreError: It is not.
    """
    snapshot, now = yield from loaded(bridge, wanted.namespace)
    # What had so little left may be gone by now.
    short = {each.key for each in wanted.keys if _is_short(each.ttl)}
    if len(short) == len(wanted.keys) > 0:
        return
    there = _without(stored(wanted.namespace, snapshot, now), short)
    if _without(wanted, short).differs(there, _TOLERANCE):
        raise StoreError(
            f"{wanted.namespace.scope} memory: it was copied, but what is there now is something else: others changed it "
            "meanwhile, or the store lost it. Copy again",
            committed=None,
        )


def _without(memory: StoredMemory, keys: set[str]) -> StoredMemory:
    return replace(memory, keys=tuple([each for each in memory.keys if each.key not in keys]))


def _is_short(ttl: float | None) -> bool:
    return ttl is not None and ttl <= _TOLERANCE


def _there(namespace: Namespace, line: int | None, problem: str) -> MemoryExistsError:
    where = f"{namespace.scope} memory" if line is None else f"line {line}, {namespace.scope} memory"
    return MemoryExistsError(f"{where}: {problem}", scope=namespace.scope, line=line)
