"""The places of the memory store: bounded, and given up some at a time when what is in them has expired."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import cachetools

from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.protocol import EMPTY, Snapshot

__all__ = ["ASK", "Slot", "Slots"]

#: An eviction looks at this many namespaces in search of one that was not used since it was last looked at.
_CHANCES: Final = 16
#: What is expired goes in portions of this many, so that no call waits until all of it is gone.
_SWEPT: Final = 8
#: So many entries of the queue may stand for nothing before it is made anew.
_STALE: Final = 1024

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
        home: Stands for the store that it is in, or for none once it was dropped. The call path holds on to slots and asks.
            (One whose last key expired may be in no store either; but of one with keys that expire it asks the store
            anyhow.) It is not the store itself, which a slot must not keep alive.
        snapshot: What stands there now, or `ASK`.
        used: Whether it was used since an eviction came by.
        more: The rest, to be read; `special` gives it to be changed.
    """

    __slots__ = ("home", "more", "namespace", "snapshot", "used")

    def __init__(self, namespace: Namespace, snapshot: Snapshot, home: object) -> None:
        self.namespace = namespace
        self.home = home
        self.snapshot = snapshot
        self.used = False
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


class Slots(cachetools.Cache[Namespace, Slot]):
    """Slots by namespace. An eviction takes them as they came, and gives one that was used a second chance.

    cachetools has a cache that expires, but that removes all that is over at once, with everybody waiting for it; and one
    that takes them in turn, but that keeps a dict beside its own for the turns.

    Args:
        max_slots: How many there may be.
    """

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots)
        #: Scopes of the namespaces that were evicted and that nobody was told of yet.
        self.evicted: list[str] = []
        #: In which turn they go. One that was dropped stands here until its turn comes, or too many do.
        self._turns: deque[Slot] = deque()
        # Each slot that expires stands here once, perhaps too early; the number is so that no two slots are compared.
        self._queue: list[tuple[float, int, Slot]] = []
        self._number = self._stale = 0

    def file(self, slot: Slot, now: float) -> None:
        """Put a slot in its place, and have it kept `until` its time. A new one is the last to go if there are too many."""
        new = slot.namespace not in self
        self.sweep(now, new=new)
        if new:
            self[slot.namespace] = slot
            self._turns.append(slot)
            if len(self._turns) > 2 * len(self) + _STALE:
                self._turns = deque([each for each in self._turns if each.home is not _GONE])
        if slot.more.until < slot.more.queued:
            self._enqueue(slot)

    def sweep(self, now: float, most: float = _SWEPT, new: bool = False) -> None:
        """Drop slots that are over, looking at no more of the queue than *most*, or than it takes for a *new* one."""
        queue = self._queue
        while queue and queue[0][0] <= now and (most > 0 or (new and len(self) >= self.maxsize)):
            most -= 1
            entry = queue[0]
            slot, more = entry[2], entry[2].more
            if slot.home is not _GONE and entry[0] == more.queued:
                if more.until <= now:
                    self._remove(slot)
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
        slot = self.get(namespace)
        if slot is not None:
            self._remove(slot)

    def popitem(self) -> tuple[Namespace, Slot]:
        chances, turns = _CHANCES, self._turns
        while True:
            if not turns:
                # A signal has come between a slot and its turn.
                turns.extend(self.values())
            slot = turns.popleft()
            if slot.home is _GONE:
                continue
            if not slot.used or chances <= 0:
                break
            chances -= 1
            slot.used = False
            turns.append(slot)
        self.evicted.append(slot.namespace.scope)
        self._remove(slot)
        return slot.namespace, slot

    def clear(self) -> None:
        # Up to cachetools 7.0 theirs is a loop of `popitem`.
        for slot in [*self.values()]:
            self._remove(slot)
        self._turns.clear()
        self._queue.clear()
        self._stale = 0

    def _enqueue(self, slot: Slot) -> None:
        more = slot.more
        self._number += 1
        heapq.heappush(self._queue, (more.until, self._number, slot))
        was_queued, more.queued = more.queued != math.inf, more.until
        if was_queued:
            self._leave()

    def _remove(self, slot: Slot) -> None:
        """Take a slot out."""
        try:
            slot.drop()
            del self[slot.namespace]
        except BaseException:
            # A signal came in between. Who holds on to the slot must not go on to write to it, nor may it be found here.
            slot.drop()
            self.pop(slot.namespace, None)
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
