"""One key of a memory looked at, set and deleted, by whoever administers the store: no owner is asked for."""

from __future__ import annotations

import time
from typing import Any, Final

from agent_gantry_state import codec
from agent_gantry_state.admin.asking import Asks
from agent_gantry_state.admin.memories import StoredKey, StoredMemory, erased, loaded, read, stored
from agent_gantry_state.admin.transfer import commit
from agent_gantry_state.bridge import Bridge
from agent_gantry_state.changes import pack_at, refuse_key, refuse_reserved
from agent_gantry_state.codec import shortened
from agent_gantry_state.compartments import known_as
from agent_gantry_state.errors import CorruptEntryError, MemoryConflictError, MemoryNotFoundError, StoreTimeoutError
from agent_gantry_state.limits import Limits, refuse_too_large
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.protocol import UNSHARED, Change, Committed, Put, Ttl

__all__ = ["ABSENT", "delete", "forget", "get", "set_value", "show"]

#: The version of a key that is not there.
ABSENT: Final = ""
_NO_LIMITS: Final = Limits(None)


def show(bridge: Bridge, namespace: Namespace) -> Asks[StoredMemory]:
    """A memory with all its keys."""
    memory = yield from read(bridge, namespace)
    if memory is None:
        raise _no_memory(namespace)
    return memory


def get(bridge: Bridge, namespace: Namespace, key: str) -> Asks[StoredKey]:
    """One key."""
    snapshot, now = yield from loaded(bridge, namespace, (key,))
    if snapshot.head is None:
        raise _no_memory(namespace)
    for each in stored(namespace, snapshot, now).keys:
        return each
    raise _no_key(namespace, key)


def set_value(
    bridge: Bridge, namespace: Namespace, key: str, value: Any, ttl: Ttl, version: str | None, limits: Limits
) -> Asks[str]:
    """Set one key; its version then."""
    refuse_key(key)
    refuse_reserved(key)
    packed = pack_at(value, key)
    immutable = type(value) in codec.IMMUTABLE
    deadline = time.monotonic() + bridge.commit_timeout
    # Of a memory that may be of any size, the rest need not be read, and may be damaged.
    keys = (key,) if limits == _NO_LIMITS else None
    while True:
        snapshot, _ = yield from loaded(bridge, namespace, keys)
        before = snapshot.version(key)
        _compare(namespace, key, version, before)
        put = Put(value if immutable else UNSHARED, packed, ttl)
        change = Change(
            namespace,
            snapshot.head,
            {key: put},
            [],
            {key: before},
            loaded_owner=snapshot.owner,
            born=snapshot.born,
        )
        refuse_too_large(limits, change, snapshot)
        answer, new = yield from commit(bridge, change)
        if isinstance(answer, Committed):
            return new.hex()
        _refuse_late(deadline, bridge)


def delete(bridge: Bridge, namespace: Namespace, key: str, version: str | None) -> Asks[None]:
    """Delete one key."""
    deadline = time.monotonic() + bridge.commit_timeout
    while True:
        snapshot, _ = yield from loaded(bridge, namespace, (key,))
        before = snapshot.version(key)
        _compare(namespace, key, version, before)
        if snapshot.head is None:
            raise _no_memory(namespace)
        if before is None:
            raise _no_key(namespace, key)
        change = Change(
            namespace,
            snapshot.head,
            {},
            [key],
            {key: before},
            loaded_owner=snapshot.owner,
            born=snapshot.born,
        )
        answer, _ = yield from commit(bridge, change)
        if isinstance(answer, Committed):
            return
        _refuse_late(deadline, bridge)


def forget(bridge: Bridge, namespace: Namespace) -> Asks[None]:
    """Erase a memory, also one that cannot be read."""
    try:
        snapshot, _ = yield from loaded(bridge, namespace, ())
        if snapshot.head is None:
            raise _no_memory(namespace)
    except CorruptEntryError:
        pass
    yield from erased(bridge, (namespace,))


def _no_memory(namespace: Namespace) -> MemoryNotFoundError:
    """The error for a memory that is not there."""
    return MemoryNotFoundError(
        f"there is no such {namespace.scope} memory in this app; list says which there are, also of other apps",
        scope=namespace.scope,
    )


def _no_key(namespace: Namespace, key: str) -> MemoryNotFoundError:
    return MemoryNotFoundError(
        f"{namespace.scope} memory: it has no key {shortened(repr(known_as(key)))}, or that is expired",
        scope=namespace.scope,
        key=key,
    )


def _compare(namespace: Namespace, key: str, expected: str | None, there: bytes | None) -> None:
    """Refuse to write what is not as it was seen."""
    if expected is None or expected == (ABSENT if there is None else there.hex()):
        return
    shown = shortened(repr(known_as(key)))
    if expected == ABSENT:
        problem = f"key {shown} is there already"
    elif there is None:
        problem = f"key {shown} is not there any more"
    else:
        problem = f"key {shown} was changed since"
    raise MemoryConflictError(
        f"{namespace.scope} memory: {problem}, so that nothing was written; get it again, and decide anew",
        by_scope={namespace.scope: [key]},
    )


def _refuse_late(deadline: float, bridge: Bridge) -> None:
    if time.monotonic() > deadline:
        raise StoreTimeoutError(
            f"others kept changing the same key for {bridge.commit_timeout:g} s, so that nothing was written; try again",
            committed=False,
        )
