"""The places of the memory store: bounded, and given up some at a time when what is in them has expired."""

from __future__ import annotations

import heapq
import math
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


class Slot:
    """A namespace's place in the store.

    Attributes:
        namespace: Its address.
        home: Stands for the store that it is in, or for none once it was dropped. The call path holds on to slots and asks.
            (One whose last key expired may be in no store either; but of one with keys that expire it asks the store
            anyhow.) It is not the store itself, which a slot must not keep alive.
        snapshot: What stands there now, or `ASK`.
        own: Where `snapshot` is `ASK`, what stands there: a snapshot that nobody else has, so that a commit may go on with
            its dicts instead of copying them. Only for whoever holds the store's lock.
        by_key: Whether it was last loaded by somebody who asked for some keys only.
        used: Whether it was used since an eviction came by.
        until: Until when the store keeps it: when the last of its keys expires.
        queued: When the queue comes to it; infinite if it is not there.
        tokens: Of the commits that wrote it lately, until when each is remembered; None as long as there were none.
    """

    __slots__ = ("by_key", "home", "namespace", "own", "queued", "snapshot", "tokens", "until", "used")

    def __init__(self, namespace: Namespace, snapshot: Snapshot, home: object) -> None:
        self.namespace = namespace
        self.home = home
        self.snapshot = snapshot
        self.own: Snapshot | None = None
        self.by_key = False
        self.used = False
        self.until = self.queued = math.inf
        self.tokens: dict[bytes, float] | None = None

    def drop(self) -> None:
        """Note that it is not in its store any more."""
        # In this order: whoever finds it in its store has seen what stood there.
        self.home = _GONE
        self.snapshot, self.own = EMPTY, None


class Slots(cachetools.FIFOCache[Namespace, Slot]):
    """Slots by namespace. A look-up does not reorder them; an eviction gives a slot that was used a second chance.

    cachetools has a cache that expires, but that removes all that is over at once, with everybody waiting for it.

    Args:
        max_slots: How many there may be.
    """

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots)
        #: Scopes of the namespaces that were evicted and that nobody was told of yet.
        self.evicted: list[str] = []
        # Each slot that expires stands here once, perhaps too early; the number is so that no two slots are compared.
        self._queue: list[tuple[float, int, Slot]] = []
        self._number = self._stale = 0

    def file(self, slot: Slot, now: float) -> None:
        """Put a slot in its place, as the last that goes if there are too many, and have it kept `until` its time."""
        self.sweep(now, new=slot.namespace not in self)
        self[slot.namespace] = slot
        if slot.until < slot.queued:
            self._enqueue(slot)

    def sweep(self, now: float, most: float = _SWEPT, new: bool = False) -> None:
        """Drop slots that are over, looking at no more of the queue than *most*, or than it takes for a *new* one."""
        queue = self._queue
        while queue and queue[0][0] <= now and (most > 0 or (new and len(self) >= self.maxsize)):
            most -= 1
            when, _, slot = heapq.heappop(queue)
            if slot.home is _GONE or when != slot.queued:
                self._stale -= 1
                continue
            slot.queued = math.inf
            if slot.until <= now:
                del self[slot.namespace]
                slot.drop()
            elif slot.until != math.inf:
                self._enqueue(slot)

    def discard(self, namespace: Namespace) -> None:
        """Drop a namespace, if it is there."""
        slot = self.pop(namespace, None)
        if slot is not None:
            self._drop(slot)

    def popitem(self) -> tuple[Namespace, Slot]:
        for _ in range(_CHANCES):
            namespace, slot = super().popitem()
            if not slot.used:
                break
            slot.used = False
            self[namespace] = slot
        else:
            namespace, slot = super().popitem()
        self.evicted.append(namespace.scope)
        self._drop(slot)
        return namespace, slot

    def clear(self) -> None:
        for slot in self.values():
            slot.drop()
        super().clear()
        self._queue.clear()
        self._stale = 0

    def _enqueue(self, slot: Slot) -> None:
        was_queued, slot.queued = slot.queued != math.inf, slot.until
        if was_queued:
            self._leave()
        self._number += 1
        heapq.heappush(self._queue, (slot.until, self._number, slot))

    def _drop(self, slot: Slot) -> None:
        slot.drop()
        if slot.queued != math.inf:
            self._leave()

    def _leave(self) -> None:
        """Note that an entry of the queue stands for nothing any more."""
        self._stale += 1
        if self._stale > max(_STALE, len(self._queue) // 2):
            self._queue[:] = [each for each in self._queue if each[2].home is not _GONE and each[0] == each[2].queued]
            heapq.heapify(self._queue)
            self._stale = 0
