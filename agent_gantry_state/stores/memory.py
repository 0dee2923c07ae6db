"""The default store: the memory of this process, bounded, with a time to live.

A namespace is kept as an immutable `Snapshot` that the next commit replaces, so that a load is one look-up and hands out
what is there without copying it. Nothing here waits or does I/O; one lock covers a commit.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from agent_gantry_state.errors import EvictionWarning, StoreClosedError, StoreURLError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.notes import FOUND, LOG, fields
from agent_gantry_state.stores.clock import Clocked
from agent_gantry_state.stores.options import count
from agent_gantry_state.stores.protocol import (
    EMPTY,
    SMALL_BYTES,
    Change,
    Commit,
    Committed,
    Forget,
    Lease,
    List,
    Listed,
    Load,
    Loaded,
    Moved,
    Page,
    Release,
    Snapshot,
)
from agent_gantry_state.stores.slots import ASK, Slot, Slots, owner_of
from agent_gantry_state.stores.urls import StoreURL
from agent_gantry_state.stores.whole import applied, assigned, chosen, is_moved

__all__ = ["MemoryStore", "Slot", "from_url"]
_peek, _new = Slots.__getitem__, object.__new__

#: Seconds for which a commit that landed is remembered, so that it can be sent again.
TOKEN_SECONDS = 60.0
#: A namespace with fewer keys than this is copied by a commit of some of them, too: that is quick.
_FEW_KEYS = 64

_COMMITTED = Committed()
#: The versions of keys that were all written by one commit.
_NONE: Final[dict[str, bytes]] = {}
#: What a namespace is said to take, if it takes less: a number that many share. It is counted when it comes to that.
_LEAST_SIZE: Final = 4096.0


class MemoryStore(Clocked):
    """Keeps memories in this process; they are gone when it ends.

    Args:
        max_namespaces: How many namespaces it holds. When it is full, one that was not used lately is dropped, with an
            `EvictionWarning`; `evictions` counts them.
        clock: Gives the time in seconds since the epoch, by which keys expire.

    Raises:
        ValueError: *max_namespaces* is not positive.
    """

    inline = True

    def __init__(self, max_namespaces: int = 100_000, clock: Callable[[], float] = time.time) -> None:
        if max_namespaces < 1:
            raise ValueError(f"MemoryStore: max_namespaces must be at least 1, not {max_namespaces}")
        self._lock = threading.RLock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        #: Stands for this store in its slots.
        self.home = object()
        super().__init__(clock)
        self._slots = Slots(max_namespaces)
        self._leases: dict[Namespace, tuple[bytes, float]] = {}
        #: How many namespaces were dropped because the store was full.
        self.evictions = 0
        self._closed = False

    def __len__(self) -> int:
        with self._lock:
            self._slots.sweep(self.now(), math.inf)
            return len(self._slots)

    def snapshot(self, namespace: Namespace) -> Snapshot:
        """The namespace as it stands: `load` for one namespace, without a message."""
        slot = self.slot(namespace)
        if slot is None:
            return EMPTY
        snapshot = self.shown(slot)
        if snapshot.first_expiry != math.inf:
            return snapshot.live(self.now())
        return snapshot

    def shown(self, slot: Slot) -> Snapshot:
        """What stands in a slot, also what is expired, for a call that loads it whole."""
        slot.used = True
        snapshot = slot.snapshot
        if snapshot is ASK:
            with self._lock:
                if slot.home is not self.home:
                    # It was put to rest since somebody has found it in the store.
                    return self.snapshot(slot.namespace)
                slot.special().by_key = False
                snapshot = self._shared(slot)
        return snapshot

    def _shared(self, slot: Slot) -> Snapshot:
        """What stands in a slot, for whoever may keep it. Needs the lock."""
        if (own := slot.more.own) is not None:
            slot.snapshot, slot.more.own = own, None
        return slot.snapshot

    def _chosen(self, namespace: Namespace, keys: tuple[str, ...], names: bool) -> Snapshot:
        """Some keys of a namespace. Needs the lock."""
        self._slots.rest()
        slot = self._slot(namespace)
        if slot is None:
            return EMPTY
        slot.used = slot.special().by_key = True
        own = slot.more.own
        there = self._shared(slot) if names or own is None else own
        return chosen(there if there.first_expiry == math.inf else there.live(self.now()), keys, names)

    def _there(self, change: Change) -> Snapshot:
        """What a change finds. Needs the lock."""
        slot = self._slot(change.namespace)
        if slot is None:
            return EMPTY
        slot.used = True
        there = slot.more.own or slot.snapshot
        return there if there.first_expiry == math.inf else there.live(self.now())

    def _slot(self, namespace: Namespace) -> Slot | None:
        """Needs the lock."""
        try:
            there = _peek(self._slots, namespace)
        except KeyError:
            return None
        return self._slots.wake(namespace, there, self.home) if isinstance(there, tuple) else there

    def load(self, message: Load, /) -> Loaded:
        """Answer a `Load`."""
        every = (None,) * len(message.namespaces)
        wanted = zip(message.namespaces, message.keys or every, strict=True)
        return Loaded(*self.snapshots(wanted, message.names))

    def snapshots(
        self, wanted: Iterable[tuple[Namespace, tuple[str, ...] | None]], names: bool = False
    ) -> tuple[tuple[Snapshot, ...], float]:
        """Namespaces as they stand at one moment, and the time: `load` without a message."""
        with self._lock:
            found = [
                self.snapshot(namespace) if keys is None else self._chosen(namespace, keys, names)
                for namespace, keys in wanted
            ]
            return tuple(found), self.now()

    def commit(self, message: Commit, /) -> Committed | Moved:
        """Answer a `Commit`."""
        token, changes = message.token, message.changes
        with self._lock:
            if self._closed:
                self._refuse_closed()
            if token and any(self._landed(token, change.namespace) for change in changes):
                return _COMMITTED
            if len(changes) == 1:
                # What the loops below do, for the usual commit.
                change, snapshot = changes[0], self._there(changes[0])
                if snapshot.head != change.head and is_moved(change, snapshot):
                    return self._moved(changes)
                self._write(change, snapshot, message.version, token)
            else:
                current = [self._there(change) for change in changes]
                for change, snapshot in zip(changes, current, strict=True):
                    if snapshot.head != change.head and is_moved(change, snapshot):
                        return self._moved(changes)
                self._write_all(changes, current, message.version, token)
            self._slots.rest()
        if self._slots.evicted:
            self._warn()
        return _COMMITTED

    def slot(self, namespace: Namespace) -> Slot | None:
        """Where the namespace stands, if it is there."""
        try:
            there = _peek(self._slots, namespace)
        except KeyError:
            return None
        if type(there) is Slot:
            return there
        with self._lock:
            self._slots.rest()
            return self._slot(namespace)

    def assign(
        self,
        slot: Slot,
        head: bytes | None,
        values: dict[str, Any],
        packed: dict[str, bytes],
        version: bytes,
        max_bytes: float = math.inf,
    ) -> bool:
        """Commit small plain values, and containers, to one namespace without a message, if it is as it was loaded, no key
        in it expires, and it surely becomes no larger than *max_bytes*.

        Args:
            slot: Where it stands.
            head: Its head as it was loaded.
            values: The values to write, by keys with small names; None for a container. None is written where one is.
            packed: The bytes of each container.
            version: The new head, and the version of each key written.
            max_bytes: How large the namespace may be.

        Returns:
            Whether it did; if not, nothing was done.
        """
        with self._lock:
            after = self._after(slot, head, values, packed, version, max_bytes)
            if after is None:
                return False
            slot.snapshot = after
        return True

    def assign_all(
        self, written: Sequence[tuple[Slot, bytes | None, dict[str, Any], dict[str, bytes], float]], version: bytes
    ) -> bool:
        """`assign` to several namespaces in one step.

        Args:
            written: What `assign` is given of each, without the version.
            version: The new head of each, and the version of each key written.
        """
        with self._lock:
            slots: list[Slot] = []
            before: list[Snapshot] = []
            after: list[Snapshot] = []
            for slot, head, values, packed, max_bytes in written:
                there = slot.snapshot
                if slot.more.by_key and len(there.values) > _FEW_KEYS:
                    # Who asks for some keys must not pay for copying all.
                    return False
                if (made := self._after(slot, head, values, packed, version, max_bytes)) is None:
                    return False
                slots.append(slot)
                before.append(there)
                after.append(made)
            try:
                for slot in slots:
                    slot.snapshot = after.pop(0)
            except BaseException:
                # A signal may come in between, and then nothing is written.
                for slot, there in zip(slots, before, strict=True):
                    slot.snapshot = there
                raise
        return True

    def _after(
        self,
        slot: Slot,
        head: bytes | None,
        values: dict[str, Any],
        packed: dict[str, bytes],
        version: bytes,
        max_bytes: float,
    ) -> Snapshot | None:
        """What `assign` puts in the place of what stands in a slot; None: it is not for that. Needs the lock."""
        if self._closed:
            self._refuse_closed()
        there = slot.snapshot
        if slot.home is not self.home or there.head != head or there.first_expiry != math.inf:
            return None
        made = assigned(there, values, packed, version, max_bytes)
        if made is not None and len(made.values) == len(there.values):
            made.placed = there.placed
        return made

    def put(
        self, slot: Slot, base: Snapshot, key: str, value: Any, packed: bytes | None, version: bytes, max_bytes: float
    ) -> bool:
        """`assign` for one key that is there, in a namespace without compartments: a short text in the place of what is no
        container, or a container in the place of another.

        Args:
            slot: Where it stands.
            base: As it was loaded.
            key: The key.
            value: The text.
            packed: The bytes of the container; None for a text.
            version: The new head, and the version of the key.
            max_bytes: How large the namespace may be.

        Returns:
            Whether it did; if not, nothing was done.
        """
        try:
            # Half of what `with` costs. In here, for a signal may come as soon as it is acquired.
            self._acquire()
            there = slot.snapshot
            # One that was dropped, by an eviction or as the store was closed, has another head: none.
            if type(there) is not Snapshot or (there is not base and there.head != base.head):
                return False
            later = there.later.copy()
            later[key] = version
            if packed is None:
                values, encoded, more = there.values.copy(), there.packed, SMALL_BYTES
                values[key] = value
            else:
                values, encoded = there.values, there.packed.copy()
                more = len(packed) - len(encoded[key])
                encoded[key] = packed
            size = there.size + more
            if size > max_bytes and (size := there.measure() + more) > max_bytes:
                return False
            # What `following` does.
            after: Snapshot = _new(Snapshot)
            after.values, after.packed, after.later, after.first = values, encoded, later, there.first
            after.head, after.owner, after.born, after.size, after.placed = version, there.owner, there.born, size, None
            slot.snapshot = after
            return True
        finally:
            try:  # noqa: SIM105 - a `with` is what this does without
                self._release()
            except RuntimeError:
                # A signal came while it was waited for, and so it is not ours.
                pass

    def forget(self, message: Forget, /) -> None:
        """Answer a `Forget`."""
        with self._lock:
            for namespace in message.namespaces:
                self._slots.discard(namespace)

    def list(self, message: List, /) -> Page:
        """Answer a `List`."""
        with self._lock:
            found = [
                listed
                for namespace in self._slots
                if (message.app is None or namespace.app == message.app)
                and (message.scope is None or namespace.scope == message.scope)
                and (message.after is None or namespace.digest > message.after)
                and (listed := self._listed(namespace)) is not None
                and (message.owner is None or listed.owner == message.owner)
            ]
        found.sort(key=lambda listed: listed.namespace.digest)
        page = tuple(found[: message.limit])
        return Page(page, page[-1].namespace.digest if len(found) > message.limit else None)

    def lease(self, message: Lease, /) -> float:
        """Answer a `Lease`."""
        with self._lock:
            now = self.now()
            holder, until = self._leases.get(message.namespace, (message.holder, now))
            if holder != message.holder and until > now:
                return until - now
            for namespace in [n for n, (_, until) in self._leases.items() if until <= now]:
                del self._leases[namespace]
            self._leases[message.namespace] = (message.holder, now + message.ttl)
        return 0.0

    def release(self, message: Release, /) -> None:
        """Answer a `Release`."""
        with self._lock:
            if self._leases.get(message.namespace, (b"", 0.0))[0] == message.holder:
                del self._leases[message.namespace]

    def close(self) -> None:
        """Drop everything, and refuse to write from now on."""
        with self._lock:
            self._closed = True
            self._slots.clear()
            self._leases.clear()

    def _listed(self, namespace: Namespace) -> Listed | None:
        """How a namespace is listed, if it is there. That is no use of it."""
        there = _peek(self._slots, namespace)
        if isinstance(there, tuple):
            return Listed(namespace, owner_of(there))
        used = there.used
        snapshot = self.snapshot(namespace)
        there.used = used
        return None if snapshot is EMPTY else Listed(namespace, snapshot.owner)

    def _refuse_closed(self) -> None:
        raise StoreClosedError("nothing was written: the memory store was closed while the call was running")

    def _warn(self) -> None:
        with self._lock:
            scopes, self._slots.evicted = self._slots.evicted, []
            self.evictions += len(scopes)
        if (found := FOUND.get()) is not None:
            found.evicted.extend(scopes)
        for scope in scopes:
            message = (
                f"the memory store is full: the state of a {scope} that was in use was dropped ({self.evictions} so "
                "far). Raise the bound, memory://?max_namespaces=..., give the scope a ttl, or use a store that keeps it"
            )
            LOG.warning(message, extra=fields("eviction", scope=scope))
            # Whoever turns warnings into errors must not see a call fail whose commit has landed.
            with contextlib.suppress(EvictionWarning):
                warnings.warn(message, EvictionWarning, stacklevel=3)

    def _landed(self, token: bytes, namespace: Namespace) -> bool:
        slot = self._slot(namespace)
        return slot is not None and token in slot.more.tokens

    def _moved(self, changes: Sequence[Change]) -> Moved:
        """Needs the lock."""
        found = []
        for change in changes:
            slot = self._slot(change.namespace)
            if slot is not None and slot.more.own is not None and not change.whole:
                # Of one that is too large to be loaded whole, no more than it takes.
                found.append(self._chosen(change.namespace, tuple(change.checks), False))
            else:
                found.append(self.snapshot(change.namespace))
        return Moved(tuple(found), self.now())

    def _write_all(self, changes: Sequence[Change], current: Sequence[Snapshot], version: bytes, token: bytes) -> None:
        """Write to several namespaces: to all of them or, if a signal comes in between, to none."""
        undo: list[Callable[[], None]] = []
        try:
            for change, snapshot in zip(changes, current, strict=True):
                undo.append(self._undoing(change))
                self._write(change, snapshot, version, token)
        except BaseException:
            for undone in reversed(undo):
                undone()
            raise

    def _undoing(self, change: Change) -> Callable[[], None]:
        """What makes a namespace as it is now, after a change of it was written."""
        slot = self._slot(change.namespace)
        if slot is None:
            return partial(self._slots.discard, change.namespace)
        more = slot.special()
        there = slot.snapshot, more.own, more.tokens, more.until
        restore = None if more.own is None else _restoring(more.own, change)

        def undo() -> None:
            if slot.home is not self.home:
                # Evicted by what came after it: one that is in no store must not get into this one again.
                return
            slot.snapshot, more.own, more.tokens, until = there
            if restore is not None:
                restore()
            if more.until != until:
                more.until = until
                self._slots.file(slot, self.now())

        return undo

    def _write(self, change: Change, snapshot: Snapshot, version: bytes, token: bytes) -> None:
        slot, special = self._slot(change.namespace), None
        if slot is not None and (slot.more.own is not None or (slot.more.by_key and len(snapshot.values) > _FEW_KEYS)):
            special = slot.special()
            if snapshot is not special.own:
                # Once; from then on it is changed in place, until somebody loads it whole.
                snapshot = snapshot.apart()
            after = self._applied_in_place(change, snapshot, version)
        else:
            after = applied(change, snapshot, version, self.now)
        if after.head is None:
            return
        if slot is None:
            if snapshot.head is None:
                # All of it was written just now; else it was evicted by what the same commit wrote before.
                after.later, after.first, after.size = _NONE, version, max(_LEAST_SIZE, after.size)
            slot = Slot(change.namespace, after, self.home)
            if after.first_expiry != math.inf:
                slot.special().until = after.last_expiry()
            self._slots.file(slot, self.now())
        else:
            # `ASK` first: whoever finds what is plain in the slot must not see it change. No call in between, at which a
            # signal might come: nothing at all would stand there.
            if special is not None:
                slot.snapshot, special.own = ASK, after
            else:
                slot.snapshot = after
            # By when the last key expires, not the first; it need not be asked where none expires, before or now.
            if after.first_expiry != math.inf or slot.more.until != math.inf:
                until = after.last_expiry()
                if until != slot.more.until:
                    slot.special().until = until
                    self._slots.file(slot, self.now())
        if token:
            now, more = self.now(), slot.special()
            more.tokens = {old: until for old, until in more.tokens.items() if until > now}
            more.tokens[token] = now + TOKEN_SECONDS

    def _applied_in_place(self, change: Change, snapshot: Snapshot, version: bytes) -> Snapshot:
        restore = _restoring(snapshot, change)
        try:
            return applied(change, snapshot, version, self.now, in_place=True)
        except BaseException:
            # A signal may come between any two keys.
            restore()
            raise


def _restoring(snapshot: Snapshot, change: Change) -> Callable[[], None]:
    """What takes back a change that was made in the dicts of a snapshot."""
    keys = (*change.puts, *change.deletes)
    dicts: list[dict[str, Any]] = [
        snapshot.values,
        snapshot.later,
        snapshot.packed,
        snapshot.expires_at,
        snapshot.slides,
    ]
    before: list[dict[str, Any]] = [{key: each[key] for key in keys if key in each} for each in dicts]

    def restore() -> None:
        for each, old in zip(dicts, before, strict=True):
            for key in keys:
                # What was not deleted keeps its place.
                if key not in old:
                    each.pop(key, None)
            each.update(old)

    return restore


def from_url(url: StoreURL) -> MemoryStore:
    """The store that a memory:// URL names."""
    if url.parts.netloc or url.parts.path:
        raise StoreURLError("memory:// takes no host and no path; each gantry has a memory of its own")
    return MemoryStore(**url.read({"max_namespaces": count}))
