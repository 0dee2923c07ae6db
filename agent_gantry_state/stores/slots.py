"""The places of the memory store: bounded, and given up some at a time when what is in them has expired.

A namespace that was not used for some time has no place in which a call could find its snapshot, but is put down in as few
bytes as can be, until somebody asks for it.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import cachetools

from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.protocol import EMPTY, Snapshot

__all__ = ["ASK", "Idle", "Slot", "Slots", "owner_of"]

#: An eviction looks at this many namespaces in search of one that was not used since it was last looked at.
_CHANCES: Final = 16
#: What is expired goes in portions of this many, so that no call waits until all of it is gone.
_SWEPT: Final = 8
#: So many entries of the queue may stand for nothing before it is made anew.
_STALE: Final = 1024

#: So many namespaces may be ready for a call before those that were not used lately are put to rest.
_READY: Final = 1000
#: One of more keys than this with versions of their own stays ready: nobody has to wait until these are in a row.
_MOST_VERSIONS: Final = 64
#: Bytes of a version, as calls draw it; and what says where in a row the head and the first one stand.
_VERSION: Final = 8
_PLACES: Final = struct.Struct(">HH")
#: Ends a row of one that was used since an eviction came by.
_USED: Final = b"u"

#: Stands in a slot of which the store has to be asked: it has no key, and yet is not plain.
ASK: Final = Snapshot({}, {}, {}, None, reserved=True)

_GONE: Final = object()


@dataclass(slots=True)
class More:
    """What is to be said of few slots.

    Attributes:
        own: Where the slot's `snapshot` is `ASK`, what stands there: a snapshot that nobody else has, so that a commit may
            go on with its dicts instead of copying them. Only for whoever holds the store's lock.
        by_key: Whether it was last loaded by somebody who asked for some keys only.
        until: Until when the store keeps it: when the last of its keys expires.
        queued: When the queue comes to it; infinite if it is not there.
        tokens: Of the commits that wrote it lately, until when each is remembered.
    """

    own: Snapshot | None = None
    by_key: bool = False
    until: float = math.inf
    queued: float = math.inf
    tokens: dict[bytes, float] = field(default_factory=dict)


#: Of most there is nothing; a million of them share it.
_NO_MORE: Final = More()


class Slot:
    """A namespace's place in the store.

    Attributes:
        namespace: Its address.
        home: Stands for the store that it is in, or for none once it was dropped or put to rest. The call path holds on to
            slots and asks. (One whose last key expired may be in no store either; but of one with keys that expire it asks
            the store anyhow.) It is not the store itself, which a slot must not keep alive.
        snapshot: What stands there now, or `ASK`.
        used: Whether it was used since somebody came by to put it to rest; None: not since then, but since an eviction did.
        more: The rest, to be read; `special` gives it to be changed.
    """

    __slots__ = ("home", "more", "namespace", "snapshot", "used")

    def __init__(self, namespace: Namespace, snapshot: Snapshot, home: object) -> None:
        self.namespace = namespace
        self.home = home
        self.snapshot = snapshot
        self.used: bool | None = False
        self.more = _NO_MORE

    def special(self) -> More:
        """What is to be said of this slot alone."""
        more = self.more
        if more is _NO_MORE:
            more = self.more = More()
        return more

    def drop(self) -> None:
        """Note that it is not in its store any more."""
        # In this order: whoever finds it in its store has seen what stood there.
        self.home = _GONE
        self.snapshot = EMPTY
        if self.more.own is not None:
            self.more.own = None


#: What stands in the place of a slot that was not used lately: its values, its versions in one row of bytes, its owner, and
#: the bytes of its containers if it has any. Plain tuples, for of a million of them each field of a class is felt.
Idle = tuple[Any, ...]


def at_rest(slot: Slot) -> Idle | None:
    """What stands for a slot; None: there is more to say of it."""
    more, snapshot = slot.more, slot.snapshot
    head, born, later, first = snapshot.head, snapshot.born, snapshot.later, snapshot.first
    if more.own is not None or more.queued != math.inf or more.tokens:
        return None
    if head is None or born is None or snapshot.first_expiry != math.inf:
        return None
    if not later and head == born == first:
        # All of it is what one commit wrote.
        versions: list[Any] = [head]
        row = head
    elif len(snapshot.values) > _MOST_VERSIONS:
        return None
    else:
        versions = [later.get(key, first) for key in snapshot.values]
        # They are among those of the keys, unless what they wrote was written again, or deleted.
        versions += {head, born}.difference(versions)
        row = b"".join([*versions, _PLACES.pack(versions.index(head), versions.index(born))])
    if {*map(len, versions)} != {_VERSION}:
        return None
    if slot.used is not False:
        row += _USED
    parts = snapshot.values, row, snapshot.owner
    return (*parts, snapshot.packed) if snapshot.packed else parts


def awake(idle: Idle) -> Snapshot:
    """The snapshot that something stands for."""
    values, row, owner, *rest = idle
    packed = rest[0] if rest else {}
    if _is_used(idle):
        row = row[:-1]
    if len(row) == _VERSION:
        return Snapshot(values, packed, {}, row, owner, born=row, first=row)
    end = len(row) - _PLACES.size
    # One object for all keys that one commit wrote.
    seen = dict[bytes, bytes]()
    versions = [seen.setdefault(each, each) for each in (row[at : at + _VERSION] for at in range(0, end, _VERSION))]
    head, born = _PLACES.unpack_from(row, end)
    return Snapshot(values, packed, dict(zip(values, versions, strict=False)), versions[head], owner, born=versions[born])


def _is_used(idle: Idle) -> bool:
    """Whether it was used since an eviction came by: all else in a row is of an even length."""
    return len(idle[1]) % 2 == 1


def owner_of(idle: Idle) -> str | None:
    """Who it belongs to."""
    owner: str | None = idle[2]
    return owner


class Slots(cachetools.Cache[Namespace, Slot | Idle]):
    """Slots by namespace, or what stands for them. An eviction takes them as they came, and gives one that was used a second
    chance.

    cachetools has a cache that expires, but that removes all that is over at once, with everybody waiting for it; and one
    that takes them in turn, but that keeps a dict beside its own for the turns.

    Args:
        max_slots: How many there may be.
    """

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots)
        #: Scopes of the namespaces that were evicted and that nobody was told of yet.
        self.evicted: list[str] = []
        #: In which turn they go. One that was dropped stands here until its turn comes, or too many do; how often, is noted.
        self._turns: deque[Namespace] = deque()
        self._dropped: dict[Namespace, int] = {}
        #: Those at rest that an eviction has given a second chance.
        self._spared: set[Namespace] = set()
        #: In which order it is asked whether they were used lately. One that was dropped stands here until then.
        self._ready: deque[Slot] = deque()
        # Each slot that expires stands here once, perhaps too early; the number is so that no two slots are compared.
        self._queue: list[tuple[float, int, Slot]] = []
        self._number = self._stale = 0

    def file(self, slot: Slot, now: float) -> None:
        """Put a slot in its place, and have it kept `until` its time. A new one is the last to go if there are too many."""
        new = slot.namespace not in self
        self.sweep(now, new=new)
        if new:
            self[slot.namespace] = slot
            self._turns.append(slot.namespace)
            self._ready.append(slot)
            if len(self._turns) > 2 * len(self) + _STALE:
                self._renew_turns()
        if slot.more.until < slot.more.queued:
            self._enqueue(slot)

    def wake(self, namespace: Namespace, idle: Idle, home: object) -> Slot:
        """Put a slot in the place of what stands for it."""
        slot = Slot(namespace, awake(idle), home)
        if _is_used(idle):
            slot.used = None
        self._spared.discard(namespace)
        self[namespace] = slot
        self._ready.append(slot)
        return slot

    def rest(self) -> None:
        """Put slots to rest that were not used lately, if there are many, looking at a few."""
        ready = self._ready
        for _ in range(min(_SWEPT, len(ready) - _READY)):
            slot = ready[0]
            before = slot.snapshot
            if slot.used:
                slot.used = None
                ready.append(slot)
            elif (idle := at_rest(slot)) is not None:
                self._retire(slot, before, idle)
            if ready and ready[0] is slot:
                ready.popleft()

    def _retire(self, slot: Slot, before: Snapshot, idle: Idle) -> None:
        try:
            self[slot.namespace] = idle
            # What handles a signal may have written to the slot, in this thread, which has the lock. No call in between.
            if slot.snapshot is before:
                slot.home, slot.snapshot = _GONE, ASK
        finally:
            if slot.home is not _GONE and self.get(slot.namespace) is idle:
                self[slot.namespace] = slot

    def sweep(self, now: float, most: float = _SWEPT, new: bool = False) -> None:
        """Drop slots that are over, looking at no more of the queue than *most*, or than it takes for a *new* one."""
        queue = self._queue
        while queue and queue[0][0] <= now and (most > 0 or (new and len(self) >= self.maxsize)):
            most -= 1
            entry = queue[0]
            slot, more = entry[2], entry[2].more
            if slot.home is not _GONE and entry[0] == more.queued:
                if more.until <= now:
                    self.discard(slot.namespace)
                elif more.until != math.inf:
                    self._enqueue(slot)
                else:
                    more.queued = math.inf
                    self._leave()
            # Only now that it stands for nothing: a signal may come at any call.
            if queue and queue[0] is entry:
                heapq.heappop(queue)
                self._stale -= 1

    def discard(self, namespace: Namespace) -> None:
        """Drop a namespace, if it is there."""
        if namespace in self:
            self._remove(namespace)
            self._dropped[namespace] = self._dropped.get(namespace, 0) + 1

    def popitem(self) -> tuple[Namespace, Slot | Idle]:
        chances = _CHANCES
        while True:
            if not self._turns:
                # A signal has come between a slot and its turn.
                self._renew_turns()
            turns = self._turns
            namespace = turns.popleft()
            if times := self._dropped.pop(namespace, 0):
                if times > 1:
                    self._dropped[namespace] = times - 1
                continue
            there = self.get(namespace)
            if there is None:
                continue
            if chances <= 0:
                break
            if isinstance(there, tuple):
                if not _is_used(there) or namespace in self._spared:
                    break
                self._spared.add(namespace)
            elif there.used is False:
                break
            else:
                there.used = False
            chances -= 1
            turns.append(namespace)
        self.evicted.append(namespace.scope)
        self._remove(namespace)
        return namespace, there

    def clear(self) -> None:
        # Up to cachetools 7.0 theirs is a loop of `popitem`.
        for namespace in [*self]:
            self._remove(namespace)
        self._turns.clear()
        self._dropped.clear()
        self._ready.clear()
        self._queue.clear()
        self._stale = 0

    def _renew_turns(self) -> None:
        turns, dropped = deque(self), dict[Namespace, int]()
        # No call in between, at which a signal might come.
        self._turns, self._dropped = turns, dropped

    def _enqueue(self, slot: Slot) -> None:
        more = slot.more
        self._number += 1
        heapq.heappush(self._queue, (more.until, self._number, slot))
        was_queued, more.queued = more.queued != math.inf, more.until
        if was_queued:
            self._leave()

    def _remove(self, namespace: Namespace) -> None:
        """Take out what is there."""
        slot = self[namespace]
        if isinstance(slot, tuple):
            self._spared.discard(namespace)
            del self[namespace]
            return
        try:
            slot.drop()
            del self[namespace]
        except BaseException:
            # A signal came in between. Who holds on to the slot must not go on to write to it, nor may it be found here.
            slot.drop()
            self.pop(namespace, None)
            raise
        if slot.more.queued != math.inf:
            self._leave()

    def _leave(self) -> None:
        """Note that an entry of the queue stands for nothing any more."""
        self._stale += 1
        if self._stale > max(_STALE, len(self._queue) // 2):
            self._queue[:] = [each for each in self._queue if each[2].home is not _GONE and each[0] == each[2].more.queued]
            heapq.heapify(self._queue)
            self._stale = 0
