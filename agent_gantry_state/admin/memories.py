"""Memories as an administrator sees them: each key with its value as it is stored, its version and its expiry.

What `show` gives, an export writes and a copy carries is the same object, read from a store or from a line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Final

from agent_gantry_state import codec
from agent_gantry_state.admin.asking import Asks, asked, told
from agent_gantry_state.bridge import Bridge
from agent_gantry_state.compartments import known_as, prefix_of
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.protocol import UNSHARED, Forget, Load, Loaded, Put, Snapshot

__all__ = ["StoredKey", "StoredMemory", "erased", "loaded", "read", "stored"]

_COMPARTMENT: Final = re.compile(r"\0([0-9]{1,18}):", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One key of a memory.

    Attributes:
        key: Its name in the store. That of a key which belongs to a tool's own compartment begins with ``"\\0"``.
        packed: Its value, encoded; not shown, for it may be anything.
        version: What `set` and `delete` compare, in hexadecimal; "" for a key that was read from an export.
        expires_at: When it is gone, in seconds since the epoch by the store's clock; None: never.
        ttl: Seconds that it had left when it was read; None: it does not expire, or it was read from an export.
        slides: Seconds that each use of the memory gives it anew; None: its time does not slide.
    """

    key: str
    packed: bytes = field(repr=False)
    version: str = ""
    expires_at: float | None = None
    ttl: float | None = None
    slides: float | None = None

    @property
    def value(self) -> Any:
        """The value, decoded anew each time."""
        return codec.unpack(self.packed)

    @property
    def size(self) -> int:
        """Bytes of the encoded value."""
        return len(self.packed)

    @property
    def name(self) -> str:
        """The key as the tool knows it that sees it."""
        return known_as(self.key)

    @property
    def tool(self) -> str | None:
        """The tool whose compartment the key is in; None for one that every tool sees."""
        return _compartment_of(self.key)

    def put(self) -> Put:
        """The key as it is to be written."""
        value = self.value
        slides = self.slides is not None
        ttl = self.slides if slides else self.ttl
        return Put(value if type(value) in codec.IMMUTABLE else UNSHARED, self.packed, ttl, slides, last=True)


@dataclass(frozen=True, slots=True)
class StoredMemory:
    """One memory with all its keys.

    Attributes:
        namespace: Its address.
        owner: Whom it belongs to: a user, "" for nobody; None where that is not said.
        keys: Its keys, in their order.
    """

    namespace: Namespace
    owner: str | None
    keys: tuple[StoredKey, ...]

    def __getitem__(self, key: str) -> Any:
        """The value of *key*."""
        for each in self.keys:
            if each.key == key:
                return each.value
        raise KeyError(key)

    @property
    def size(self) -> int:
        """Bytes of the names and of the encoded values of all keys."""
        return sum([len(each.key.encode("utf-8", "surrogatepass")) + each.size for each in self.keys])

    def at(self, now: float) -> StoredMemory:
        """This memory with what its keys have left at *now*, and without those that are gone by then."""
        keys = [
            each if each.expires_at is None else replace(each, ttl=each.expires_at - now)
            for each in self.keys
            if each.expires_at is None or each.expires_at > now
        ]
        return replace(self, keys=tuple(keys))

    def differs(self, other: StoredMemory, tolerance: float) -> bool:
        """Whether *other* has anything else in it, in another order, of somebody else, or for another time.

        Args:
            other: What it is compared with.
            tolerance: Seconds by which an expiry may be another one.
        """
        if self.owner != other.owner or len(self.keys) != len(other.keys):
            return True
        for one, two in zip(self.keys, other.keys, strict=True):
            if (one.key, one.packed, one.slides) != (two.key, two.packed, two.slides):
                return True
            if one.slides is None and not _is_near(one.ttl, two.ttl, tolerance):
                return True
        return False


def _is_near(one: float | None, two: float | None, tolerance: float) -> bool:
    return one is two if one is None or two is None else abs(one - two) <= tolerance


def _compartment_of(key: str) -> str | None:
    """The tool to whose compartment a key belongs; None if it belongs to none."""
    match = _COMPARTMENT.match(key)
    if match is None:
        return None
    tool = key[match.end() : match.end() + int(match[1])]
    return tool if key.startswith(prefix_of(tool)) else None


def stored(namespace: Namespace, snapshot: Snapshot, now: float) -> StoredMemory:
    """A memory as a store has given it at *now*."""
    keys, versions = [], snapshot.versions
    for key, value in snapshot.values.items():
        packed = snapshot.packed.get(key)
        deadline = snapshot.deadline(key)
        keys.append(
            StoredKey(
                key,
                codec.pack(value) if packed is None else packed,
                versions[key].hex(),
                deadline,
                None if deadline is None else deadline - now,
                snapshot.slides.get(key),
            )
        )
    return StoredMemory(namespace, snapshot.owner, tuple(keys))


def loaded(bridge: Bridge, namespace: Namespace, keys: tuple[str, ...] | None = None) -> Asks[tuple[Snapshot, float]]:
    """A namespace, or some of its keys, and the time on the store's clock."""
    wanted = None if keys is None else (keys,)
    answer: Loaded = yield asked(bridge, Load((namespace,), wanted, bridge.load_timeout))
    return answer.snapshots[0], answer.now


def read(bridge: Bridge, namespace: Namespace) -> Asks[StoredMemory | None]:
    """A memory; None if there is none."""
    snapshot, now = yield from loaded(bridge, namespace)
    return None if snapshot.head is None else stored(namespace, snapshot, now)


def erased(bridge: Bridge, namespaces: tuple[Namespace, ...]) -> Asks[None]:
    """Erase memories of one store."""
    yield told(bridge, Forget(namespaces, bridge.commit_timeout))
