"""The default store: the memory of this process, bounded, with a time to live.

A namespace is kept as an immutable `Snapshot` that the next commit replaces, so that a load is one look-up and hands out
what is there without copying it. Nothing here waits or does I/O; one lock covers a commit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import cachetools

from agent_gantry_state.errors import EvictionWarning, StoreClosedError, StoreURLError
from agent_gantry_state.namespace import Namespace
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
from agent_gantry_state.stores.urls import StoreURL
from agent_gantry_state.stores.whole import applied, chosen, is_moved

__all__ = ["MemoryStore", "Slot", "from_url"]

_log = logging.getLogger("agent_gantry_state")
_peek = cachetools.Cache.__getitem__

#: Seconds for which a commit that landed is remembered, so that it can be sent again.
TOKEN_SECONDS = 60.0
#: An eviction looks at this many namespaces in search of one that was not used since it was last looked at.
_CHANCES = 16


_COMMITTED = Committed()
_GONE = object()


class Slot:
    """A namespace's place in the cache.

    Attributes:
        namespace: Its address.
        home: Stands for the store that it is in, or for none once it was dropped. The call path holds on to slots and asks.
            (One whose last key expired may be in no store either; but of one with keys that expire it asks the store
            anyhow.) It is not the store itself, which a slot must not keep alive.
        snapshot: What stands there now.
        used: Whether it was used since an eviction came by.
    """

    __slots__ = ("home", "namespace", "registered", "snapshot", "tokens", "used")

    def __init__(self, namespace: Namespace, snapshot: Snapshot, home: object) -> None:
        self.namespace = namespace
        self.home = home
        self.snapshot = snapshot
        self.used = False
        # Until when the cache keeps it: when the last of its keys expires.
        self.registered = math.inf
        self.tokens: dict[bytes, float] = {}

    def drop(self) -> None:
        """Note that it is not in its store any more."""
        # In this order: whoever finds it in its store has seen what stood there.
        self.home = _GONE
        self.snapshot = EMPTY


class _Namespaces(cachetools.TLRUCache[Namespace, Slot]):
    """Slots by namespace. A look-up does not reorder them; an eviction gives a slot that was used a second chance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Scopes of the namespaces that were evicted and that nobody was told of yet.
        self.evicted: list[str] = []

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
        slot.drop()
        return namespace, slot


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
        #: Stands for this store in its slots.
        self.home = object()
        super().__init__(clock)
        self._slots = _Namespaces(max_namespaces, ttu=lambda _, slot, __: slot.registered, timer=self.now)
        self._leases: dict[Namespace, tuple[bytes, float]] = {}
        #: How many namespaces were dropped because the store was full.
        self.evictions = 0
        self._closed = False

    def __len__(self) -> int:
        with self._lock:
            return len(self._slots)

    def snapshot(self, namespace: Namespace) -> Snapshot:
        """The namespace as it stands: `load` for one namespace, without a message."""
        slot = self.slot(namespace)
        if slot is None:
            return EMPTY
        slot.used = True
        snapshot = slot.snapshot
        if snapshot.first_expiry != math.inf:
            return snapshot.live(self.now())
        return snapshot

    def _slot(self, namespace: Namespace) -> Slot | None:
        """Needs the lock."""
        try:
            return _peek(self._slots, namespace)
        except KeyError:
            return None

    def load(self, message: Load, /) -> Loaded:
        """Answer a `Load`."""
        with self._lock:
            snapshots = [self.snapshot(namespace) for namespace in message.namespaces]
            now = self.now()
        if message.keys is not None:
            snapshots = [
                snapshot if keys is None else chosen(snapshot, keys, message.names)
                for snapshot, keys in zip(snapshots, message.keys, strict=True)
            ]
        return Loaded(tuple(snapshots), now)

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
                change, snapshot = changes[0], self.snapshot(changes[0].namespace)
                if snapshot.head != change.head and is_moved(change, snapshot):
                    return Moved((snapshot,), self.now())
                self._write(change, snapshot, message.version, token)
            else:
                current = tuple([self.snapshot(change.namespace) for change in changes])
                for change, snapshot in zip(changes, current, strict=True):
                    if snapshot.head != change.head and is_moved(change, snapshot):
                        return Moved(current, self.now())
                for change, snapshot in zip(changes, current, strict=True):
                    self._write(change, snapshot, message.version, token)
        if self._slots.evicted:
            self._warn()
        return _COMMITTED

    def slot(self, namespace: Namespace) -> Slot | None:
        """Where the namespace stands, if it is there."""
        try:
            return _peek(self._slots, namespace)
        except KeyError:
            # Not there, or just being moved by an eviction that gives it a second chance: then it is back in a moment.
            with self._lock:
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
            if self._closed:
                self._refuse_closed()
            there = slot.snapshot
            if slot.home is not self.home or there.head != head or there.first_expiry != math.inf:
                return False
            more, encoded = SMALL_BYTES * len(values), there.packed
            if packed:
                for key, after in packed.items():
                    more += len(after) - len(encoded.get(key, b""))
                encoded = encoded | packed
            size = there.size + more
            if size > max_bytes:
                there.measure()
                size = there.size + more
                if size > max_bytes:
                    return False
            versions = there.versions.copy()
            for key in values:
                versions[key] = version
            slot.snapshot = there.following(there.values | values, encoded, versions, version, size)
        return True

    def forget(self, message: Forget, /) -> None:
        """Answer a `Forget`."""
        with self._lock:
            for namespace in message.namespaces:
                slot = self._slots.pop(namespace, None)
                if slot is not None:
                    slot.drop()

    def list(self, message: List, /) -> Page:
        """Answer a `List`."""
        with self._lock:
            found = [
                Listed(namespace, owner)
                for namespace in self._slots
                if (message.app is None or namespace.app == message.app)
                and (message.scope is None or namespace.scope == message.scope)
                and (message.after is None or namespace.digest > message.after)
                and (snapshot := self._glance(namespace)) is not EMPTY
                and ((owner := snapshot.owner) == message.owner or message.owner is None)
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
            for namespace in list(self._slots):
                _peek(self._slots, namespace).drop()
            self._slots.clear()
            self._leases.clear()

    def _glance(self, namespace: Namespace) -> Snapshot:
        """`snapshot` that does not count as a use."""
        used = _peek(self._slots, namespace).used
        snapshot = self.snapshot(namespace)
        _peek(self._slots, namespace).used = used
        return snapshot

    def _refuse_closed(self) -> None:
        raise StoreClosedError("nothing was written: the memory store was closed while the call was running")

    def _warn(self) -> None:
        with self._lock:
            scopes, self._slots.evicted = self._slots.evicted, []
            self.evictions += len(scopes)
        for scope in scopes:
            message = (
                f"the memory store is full: the state of a {scope} that was in use was dropped ({self.evictions} so "
                "far). Raise the bound, memory://?max_namespaces=..., give the scope a ttl, or use a store that keeps it"
            )
            _log.warning(message)
            # Whoever turns warnings into errors must not see a call fail whose commit has landed.
            with contextlib.suppress(EvictionWarning):
                warnings.warn(message, EvictionWarning, stacklevel=3)

    def _landed(self, token: bytes, namespace: Namespace) -> bool:
        slot = self._slot(namespace)
        return slot is not None and token in slot.tokens

    def _write(self, change: Change, snapshot: Snapshot, version: bytes, token: bytes) -> None:
        after = applied(change, snapshot, version, self.now)
        if after.head is None:
            return
        namespace = change.namespace
        slot = self._slot(namespace)
        if slot is None:
            slot = Slot(namespace, after, self.home)
            slot.registered = after.last_expiry()
            self._slots[namespace] = slot
        else:
            slot.snapshot = after
            # By when the last key expires, not the first; it need not be asked where none expires, before or now.
            if after.first_expiry != math.inf or slot.registered != math.inf:
                self._register(namespace, slot)
        if token:
            now = self.now()
            for old in [old for old, until in slot.tokens.items() if until <= now]:
                del slot.tokens[old]
            slot.tokens[token] = now + TOKEN_SECONDS

    def _register(self, namespace: Namespace, slot: Slot) -> None:
        """Have the cache keep a slot for as long as its snapshot needs it, and no longer."""
        until = slot.snapshot.last_expiry()
        if until != slot.registered:
            slot.registered = until
            self._slots[namespace] = slot


def from_url(url: StoreURL) -> MemoryStore:
    """The store that a memory:// URL names."""
    if url.parts.netloc or url.parts.path:
        raise StoreURLError("memory:// takes no host and no path; each gantry has a memory of its own")
    return MemoryStore(**url.read({"max_namespaces": count}))
