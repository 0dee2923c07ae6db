"""Whether a store does what it should: it is reached, keeps every type of value, and what is in it can be read.

Only the round trip writes, and only to a memory of its own that nobody else looks for and that is gone afterwards.
"""

from __future__ import annotations

import datetime as dt
import decimal
import importlib.metadata
import math
import pathlib
import platform
import time
import uuid
from dataclasses import dataclass, field
from typing import Final

from agent_gantry_state import codec
from agent_gantry_state.admin.asking import Asks, Called, asked
from agent_gantry_state.admin.listing import Listing, Places, Wanted
from agent_gantry_state.admin.memories import StoredKey, StoredMemory, erased, loaded, stored
from agent_gantry_state.admin.transfer import commit
from agent_gantry_state.bridge import Bridge, bridge_to
from agent_gantry_state.compartments import known_as
from agent_gantry_state.errors import CorruptEntryError, NotListableError, StateError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import new_id
from agent_gantry_state.stores.protocol import Change, Committed, Load, Loaded, Moved

__all__ = ["Damage", "Health", "examined"]

#: Seconds after which the memory of a round trip is gone by itself, should this process be.
_SHORT: Final = 60.0
#: Of the memory of a round trip.
_APP: Final = "agent-gantry-state doctor"
#: A value of each type that comes back as it went in.
_EACH_TYPE: Final = {
    "none": None,
    "bool": True,
    "int": -(2**70),
    "float": math.pi,
    "str": "\u00e9\U0001f600\ud800",
    "bytes": bytes(range(256)),
    "list": [1, [2.5, "three"]],
    "tuple": (1, (2,)),
    "dict": {"a": 1, 2: "b", ("c",): None},
    "set": {1, "two", b"three"},
    "frozenset": frozenset({1.5}),
    "datetime": dt.datetime(2026, 3, 29, 2, 30, fold=1, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    "date": dt.date(2026, 3, 29),
    "time": dt.time(2, 30, 0, 1),
    "timedelta": dt.timedelta(days=-1, microseconds=1),
    "decimal": decimal.Decimal("1.10"),
    "uuid": uuid.UUID(int=2**127),
    "path": pathlib.PurePosixPath("a/b"),
}
#: What values and stores stand on; of those that are there.
_PACKAGES: Final = ("agent-gantry-state", "agent-gantry", "ormsgpack", "pydantic", "redis", "hiredis", "psycopg", "emcache")


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in a store that cannot be read.

    Attributes:
        namespace: The memory.
        key: The key of it; None if it is more than one key.
        problem: What is wrong.
    """

    namespace: Namespace
    key: str | None
    problem: str


@dataclass(slots=True)
class Health:
    """What was found of one store. What was not looked at, or cannot be, is None.

    Attributes:
        store: Name of its class.
        problems: What is wrong; nothing if all is well.
        server: What the server is, with its version.
        versions: Of Python and of the packages that stand behind it.
        seconds: What a load took.
        clock_skew: Seconds by which the store's clock is ahead of this machine's.
        round_trip: Whether a value of each type came back as it was written.
        memories: How many there are.
        keys: How many keys those have.
        size: Bytes of their names and values.
        expiring: How many of those keys have a time to live.
        expired: How many more are expired and not removed yet.
        corrupt: What cannot be read.
        unlisted: How many memories are so damaged that the store cannot even tell which they are.
    """

    store: str
    problems: list[str] = field(default_factory=list)
    server: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    clock_skew: float | None = None
    round_trip: bool | None = None
    memories: int | None = None
    keys: int | None = None
    size: int | None = None
    expiring: int | None = None
    expired: int | None = None
    corrupt: list[Damage] | None = None
    unlisted: int | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def examined(bridge: Bridge, app: str | None, write: bool, scan: bool) -> Asks[Health]:
    """Look at one store."""
    health = Health(type(bridge.store).__name__, versions=_versions())
    try:
        now = yield from _connect(bridge, health)
        if write:
            yield from _round_trip(bridge, health)
        if scan:
            yield from _scan(bridge, app, now, health)
    except NotListableError:
        # What it holds cannot be looked at, and that is what was to be expected of it.
        pass
    except StateError as error:
        health.problems.append(str(error))
    return health


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _connect(bridge: Bridge, health: Health) -> Asks[float]:
    """The time on the store's clock."""
    nowhere = Namespace("doctor", new_id(), _APP)
    message = Load((nowhere,), None, bridge.load_timeout)
    # The first one connects, and so takes longer.
    yield asked(bridge, message)
    before, start = time.time(), time.monotonic()
    answer: Loaded = yield asked(bridge, message)
    health.seconds = time.monotonic() - start
    health.clock_skew = answer.now - before - health.seconds / 2
    if (server_version := getattr(bridge.store, "server_version", None)) is not None:
        health.server = (yield Called(server_version)) or None
    return answer.now


def _round_trip(bridge: Bridge, health: Health) -> Asks[None]:
    keys = [StoredKey(key, codec.pack(value), ttl=_SHORT) for key, value in _EACH_TYPE.items()]
    memory = StoredMemory(Namespace("doctor", new_id(), _APP), "somebody", tuple(keys))
    change = Change(
        memory.namespace,
        None,
        {each.key: each.put() for each in keys},
        [],
        dict.fromkeys(_EACH_TYPE),
        owner=memory.owner,
    )
    try:
        answer: Committed | Moved
        answer, _ = yield from commit(bridge, change)
        snapshot, now = yield from loaded(bridge, memory.namespace)
        there = stored(memory.namespace, snapshot, now)
        health.round_trip = isinstance(answer, Committed) and not memory.differs(there, _SHORT)
    finally:
        yield from erased(bridge, (memory.namespace,))
    if health.round_trip:
        snapshot, _ = yield from loaded(bridge, memory.namespace)
        health.round_trip = snapshot.head is None
    if not health.round_trip:
        health.problems.append("what was written did not come back as it was, or could not be erased")


def _scan(bridge: Bridge, app: str | None, now: float, health: Health) -> Asks[None]:
    unaged = getattr(bridge.store, "unaged", None)
    old = bridge if unaged is None else bridge_to(unaged())
    listing = Listing(Places(old), Wanted(app))
    batch = yield from listing.more()
    memories = keys = size = expiring = expired = 0
    corrupt: list[Damage] = []
    while batch:
        for _, listed in batch:
            try:
                snapshot, _ = yield from loaded(old, listed.namespace)
            except CorruptEntryError as error:
                corrupt += yield from _damages(old, listed.namespace, error)
                memories += 1
                continue
            memory = stored(listed.namespace, snapshot, now)
            left = memory.at(now)
            expired += len(memory.keys) - len(left.keys)
            memories += bool(left.keys) or not memory.keys
            keys += len(left.keys)
            size += left.size
            expiring += sum(each.expires_at is not None for each in left.keys)
        batch = yield from listing.more()
    health.memories, health.keys, health.size = memories, keys, size
    health.expiring, health.corrupt = expiring, corrupt
    health.expired = None if unaged is None else expired
    health.unlisted = getattr(old.store, "left_out", None)
    if health.unlisted:
        health.problems.append(f"{health.unlisted} of its memories are so damaged that they cannot be listed")
    if corrupt:
        health.problems.append(f"{len(corrupt)} of what is stored cannot be read")


def _damages(bridge: Bridge, namespace: Namespace, error: CorruptEntryError) -> Asks[list[Damage]]:
    """Which keys of a memory that cannot be read are damaged; the memory, if that cannot be told."""
    damages = []
    try:
        answer: Loaded = yield asked(bridge, Load((namespace,), ((),), bridge.load_timeout, names=True))
        for key in answer.snapshots[0].versions:
            try:
                yield from loaded(bridge, namespace, (key,))
            except CorruptEntryError as of_key:
                damages.append(Damage(namespace, known_as(key), str(of_key)))
    except CorruptEntryError:
        pass
    return damages or [Damage(namespace, None, str(error))]
