"""What a store is asked and what it answers: a small, frozen set of messages.

A unit of work never touches a store. It yields one of these messages, and a bridge has the store answer it. A store is
any object with a method per message, all plain (`Store`) or all async (`AsyncStore`); it inherits nothing. Every wait of
a store ends at the message's `timeout` (seconds), with a `StoreTimeoutError`. Those who ask set it from the store's
attributes `load_timeout` and `commit_timeout`, if it has them.

The rules that the conformance suite holds a store to stand with the messages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from agent_gantry_state import codec
from agent_gantry_state.compartments import has_reserved, is_reserved
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.notes import FOUND

__all__ = [
    "COMMIT_SECONDS",
    "EMPTY",
    "KEEP",
    "LOAD_SECONDS",
    "SMALL_BYTES",
    "SMALL_SIZE",
    "UNSHARED",
    "AsyncStore",
    "Change",
    "Commit",
    "Committed",
    "Entry",
    "Forget",
    "Lease",
    "List",
    "Listed",
    "Load",
    "Loaded",
    "LocalStore",
    "Message",
    "Moved",
    "NetworkStore",
    "Page",
    "Put",
    "Release",
    "Snapshot",
    "Store",
    "Ttl",
    "WouldBlock",
]


#: Seconds that a store may take to answer where nothing else is said: to a load, and to a commit with all its resends.
LOAD_SECONDS: Final = 4.0
COMMIT_SECONDS: Final = 6.0


class _Keep:
    """The expiry of a key stays as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "KEEP"


class _Unshared:
    """No shared value: the value is a container and travels as bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNSHARED"


KEEP: Final = _Keep()
UNSHARED: Final = _Unshared()

#: Seconds from the commit on; None takes an expiry away; KEEP leaves the one there is.
Ttl = float | None | _Keep


@dataclass(slots=True)
class Entry:
    """One key of a namespace, as a store keeps it.

    Attributes:
        record: Format byte and encoded value.
        version: Random bytes of the commit that wrote it; compared for equality only.
        position: Sorts the keys of a namespace; a new key's is greater than any there is.
        expires_at: Time on the store's clock (seconds since the epoch) from which on it is gone; None: never.
        slides: Instead of `expires_at`, seconds after the namespace's last touch.
    """

    record: bytes
    version: bytes
    position: int
    expires_at: float | None = None
    slides: float | None = None


#: What is not larger than this, as Python counts, is small.
SMALL_SIZE: Final = 500
#: More than a key takes of which name and value are small.
SMALL_BYTES: Final = 4 * SMALL_SIZE

_new = object.__new__


class Snapshot:
    """One namespace at one moment; never changed after it was made, so that it can be shared.

    Values that cannot be changed in place stand in `values` themselves, containers stand there as None and in `packed` as
    bytes (without the format byte): a working copy is then one C-level dict copy and a decode of each container.

    Of most there is no more to say than this. The others, in which something expires, or which are not the whole of their
    namespace, are of a class of their own: what it has in fields are constants here, for a commit of one key sets all
    fields anew, and a million snapshots are a million times the fields.

    Attributes:
        later: Versions, by keys: of all keys if `first` is None. Keys whose values were not asked for may be among them.
        first: The version of the keys in `values` that `later` does not name.
        born: The head of its first commit: a namespace that was erased and made anew is another one.
        size: At least as many bytes as it takes; infinite until somebody asks.
        placed: Its `places`, if somebody has asked for them; other keys may be among them.
        until: Of a snapshot of some keys only, when the last of all keys expires (infinite if never); else None.
        reserved: Whether some of its keys belong to compartments.
        plain: That none does, and that none expires.
        first_expiry: Until when surely no key expires; infinite if none does.
        latest: When the last of the keys expires that do; minus infinity if none does.
        full: What a snapshot without the keys of compartments, or with a default in their place, was made of.
        lived: What `live` has last made of it, and the time from which on that holds.
    """

    __slots__ = ("born", "first", "head", "later", "owner", "packed", "placed", "size", "values")

    expires_at: dict[str, float] = {}  # noqa: RUF012 - never changed
    slides: dict[str, float] = {}  # noqa: RUF012 - never changed
    touched: float = 0.0
    first_expiry: float = math.inf
    latest: float = -math.inf
    until: float | None = None
    reserved: bool = False
    plain: bool = True
    full: Snapshot | None = None
    lived: tuple[float, Snapshot] | None = None

    values: dict[str, Any]
    packed: dict[str, bytes]
    later: dict[str, bytes]
    first: bytes | None
    head: bytes | None
    owner: str | None
    born: bytes | None
    size: float
    placed: dict[str, int] | None

    def __new__(
        cls,
        values: dict[str, Any],
        packed: dict[str, bytes],
        versions: dict[str, bytes],
        head: bytes | None,
        owner: str | None = None,
        expires_at: dict[str, float] = {},  # noqa: B006 - never changed
        slides: dict[str, float] = {},  # noqa: B006 - never changed
        touched: float = 0.0,
        born: bytes | None = None,
        until: float | None = None,
        reserved: bool | None = None,
        size: float = math.inf,
        first: bytes | None = None,
        deadlines: tuple[float, float] | None = None,
    ) -> Snapshot:
        if reserved is None:
            reserved = has_reserved(values)
        made: Snapshot
        if reserved or touched or expires_at or slides or until is not None:
            made = _new(_Detailed)
            made.expires_at, made.slides, made.touched = expires_at, slides, touched
            made.until, made.reserved, made.full, made.lived = until, reserved, None, None
            if expires_at or slides:
                made.first_expiry, made.latest = deadlines or _deadlines(expires_at, slides, touched)
            else:
                made.first_expiry, made.latest = math.inf, -math.inf
            made.plain = not reserved and made.first_expiry == math.inf
        else:
            made = _new(Snapshot)
        made.values, made.packed, made.later, made.first = values, packed, versions, first
        made.head, made.owner, made.born, made.size, made.placed = head, owner, born, size, None
        return made

    @classmethod
    def of(
        cls,
        entries: Mapping[str, Entry],
        head: bytes | None,
        owner: str | None = None,
        touched: float = 0.0,
        born: bytes | None = None,
    ) -> Snapshot:
        """Make a snapshot of entries as a store keeps them.

        Raises:
            CorruptEntryError: A record is damaged or of a newer format.
        """
        values: dict[str, Any] = {}
        packed: dict[str, bytes] = {}
        for key, entry in sorted(entries.items(), key=lambda item: item[1].position):
            body = codec.body(entry.record)
            value = codec.unpack(body)
            if type(value) in codec.IMMUTABLE:
                values[key] = value
            else:
                values[key], packed[key] = None, body
        return cls(
            values,
            packed,
            {key: entry.version for key, entry in entries.items()},
            head,
            owner,
            {key: entry.expires_at for key, entry in entries.items() if entry.expires_at is not None},
            {key: entry.slides for key, entry in entries.items() if entry.slides is not None},
            touched,
            born,
        )

    def following(
        self, values: dict[str, Any], packed: dict[str, bytes], later: dict[str, bytes], head: bytes, size: float
    ) -> Snapshot:
        """What follows this snapshot, in which nothing expires, when values are written and nothing else changes."""
        after: Snapshot
        if type(self) is Snapshot:
            after = _new(Snapshot)
        else:
            after = _new(_Detailed)
            after.expires_at, after.slides, after.touched = self.expires_at, self.slides, self.touched
            after.first_expiry, after.latest = math.inf, -math.inf
            after.reserved, after.plain = self.reserved, self.plain
            after.until = after.full = after.lived = None
        after.values, after.packed, after.later, after.first = values, packed, later, self.first
        after.head, after.owner, after.born, after.size, after.placed = head, self.owner, self.born, size, None
        return after

    @property
    def versions(self) -> dict[str, bytes]:
        """The version of each key, in the order of the keys; where somebody has asked for names, of all there are."""
        later, first = self.later, self.first
        return later if first is None else {key: later.get(key, first) for key in self.values}

    def version(self, key: str) -> bytes | None:
        """The version of a key; None if it is not stored."""
        return self.later.get(key) or (self.first if key in self.values else None)

    def measure(self) -> float:
        """Set `size`, without encoding anything, and give it."""
        # Twice what Python needs for a str, a number, bytes or None is more than each takes when it is encoded.
        values, packed = self.values, self.packed
        plain = sum([key.__sizeof__() + value.__sizeof__() for key, value in values.items()])
        self.size = 2 * plain + sum(map(len, packed.values()))
        return self.size

    @property
    def entire(self) -> Snapshot:
        """This snapshot with the keys of compartments."""
        return self.full or self

    def opened(self) -> Snapshot:
        """This snapshot without the keys of compartments."""
        gone = {key for key in self.values if is_reserved(key)}
        # With the times of compartments: a use restarts those that slide, and they say when the namespace is gone.
        # With a time until which it holds, it has all fields.
        opened: Any = self._but(gone, self.expires_at, self.slides, self.last_expiry(), False)
        opened.full = self
        return opened  # type: ignore[no-any-return]

    def beginning_with(self, default: Snapshot) -> Snapshot:
        """This snapshot of a namespace of which a body sees nothing, as if it had the keys of *default*."""
        begun = self._detailed()
        begun.full = self.entire
        begun.values, begun.packed, begun.later, begun.first = default.values, default.packed, {}, None
        begun.size, begun.placed = math.inf, None
        return begun

    def _detailed(self) -> _Detailed:
        """The same once more, to be changed in any of its fields."""
        copied: _Detailed = _new(_Detailed)
        for name in (*Snapshot.__slots__, *_Detailed.__slots__):
            setattr(copied, name, getattr(self, name))
        copied.lived = None
        return copied

    def apart(self) -> Snapshot:
        """The same with dicts of its own."""
        apart = self._detailed()
        for name in ("values", "packed", "later", "expires_at", "slides"):
            setattr(apart, name, getattr(self, name).copy())
        return apart

    def places(self) -> dict[str, int]:
        """For each key a number that is greater than those of the keys before it."""
        places = self.placed
        if places is None:
            places = self.placed = dict(zip(self.values, range(len(self.values)), strict=False))
        return places

    def deadline(self, key: str) -> float | None:
        """Time on the store's clock at which *key* expires; None: never."""
        ttl = self.slides.get(key)
        return self.expires_at.get(key) if ttl is None else self.touched + ttl

    def last_expiry(self) -> float:
        """Time from which on nothing of the namespace is left; infinite if something stays."""
        if self.until is not None:
            return self.until
        if len(self.expires_at) + len(self.slides) < len(self.values) or not self.values:
            return math.inf
        return self.latest

    def value(self, key: str) -> Any:
        """The value of a key that is in `values`, decoded: a private copy if it is a container."""
        packed = self.packed.get(key)
        return self.values[key] if packed is None else codec.unpack(packed)

    def live(self, now: float) -> Snapshot:
        """This snapshot without the keys that are expired at *now*; nothing at all where the last one is."""
        if now < self.first_expiry:
            return self
        lived = self.lived
        if lived is not None and lived[0] <= now < lived[1].first_expiry:
            return lived[1]
        found = FOUND.get()
        if self.last_expiry() <= now:
            if found is not None:
                found.expired += len(self.values)
            return EMPTY
        gone = {key for key in (*self.expires_at, *self.slides) if (self.deadline(key) or math.inf) <= now}
        mine: Any = self  # In which something expires, so that it has all fields.
        if not gone:
            mine.first_expiry, mine.latest = _deadlines(self.expires_at, self.slides, self.touched)
            return self
        if found is not None:
            found.expired += len(gone)
        left = self._but(gone, _without(self.expires_at, gone), _without(self.slides, gone), self.until, self.reserved)
        mine.lived = now, left
        return left

    def _but(
        self, gone: set[str], expires_at: dict[str, float], slides: dict[str, float], until: float | None, reserved: bool
    ) -> Snapshot:
        """This snapshot without the keys *gone*, with what is given of when keys expire."""
        return Snapshot(
            _without(self.values, gone),
            _without(self.packed, gone),
            _without(self.later, gone),
            self.head,
            self.owner,
            expires_at,
            slides,
            self.touched,
            self.born,
            until,
            reserved,
            first=self.first,
        )


class _Detailed(Snapshot):
    """A snapshot in which a key expires, or that is not the whole of its namespace, or has the keys of compartments."""

    __slots__ = ("expires_at", "first_expiry", "full", "latest", "lived", "plain", "reserved", "slides", "touched", "until")


def _deadlines(expires_at: dict[str, float], slides: dict[str, float], touched: float) -> tuple[float, float]:
    """`Snapshot.first_expiry` and `Snapshot.latest`."""
    first, last = min(expires_at.values(), default=math.inf), max(expires_at.values(), default=-math.inf)
    if not slides:
        return first, last
    return min(first, touched + min(slides.values())), max(last, touched + max(slides.values()))


def _without(mapping: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


#: A namespace that is not there.
EMPTY: Final = Snapshot({}, {}, {}, None)


class Put:
    """A key to write.

    Attributes:
        value: The value itself if its type is in `codec.IMMUTABLE`, else UNSHARED.
        packed: Encoded value without the format byte; made when first asked for.
        ttl: Seconds from the commit on, None or KEEP. A key that is not there has nothing to keep.
        slides: Whether *ttl* counts from the namespace's last touch instead.
        last: Whether a key that is there moves to the end, for it was deleted and made again.
    """

    __slots__ = ("_packed", "last", "slides", "ttl", "value")

    def __init__(
        self, value: Any, packed: bytes | None = None, ttl: Ttl = KEEP, slides: bool = False, last: bool = False
    ) -> None:
        self.value = value
        self._packed = packed
        self.ttl = ttl
        self.slides = slides
        self.last = last

    @property
    def packed(self) -> bytes:
        if self._packed is None:
            self._packed = codec.pack(self.value)
        return self._packed

    @property
    def size(self) -> int:
        """At least as many bytes as `packed` has, without encoding anything."""
        return 2 * self.value.__sizeof__() if self._packed is None else len(self._packed)

    @property
    def record(self) -> bytes:
        """What a store writes: the format byte and the encoded value."""
        return codec.FORMAT + self.packed

    def __repr__(self) -> str:
        return f"Put(ttl={self.ttl!r}, slides={self.slides}, last={self.last})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not Put:
            return NotImplemented
        return (self.packed, self.ttl, self.slides, self.last) == (other.packed, other.ttl, other.slides, other.last)

    __hash__ = None  # type: ignore[assignment]


@dataclass(slots=True)
class Change:
    """What one commit does to one namespace.

    One that has no `puts`, no `deletes` and no `owner` only touches or only checks. It leaves the head as it is, for a touch
    conflicts with nothing, and makes no namespace where there is none.

    Attributes:
        namespace: Its address.
        head: The head that was loaded, None if there was no namespace. A store whose head is still this one has nothing
            else to check.
        puts: Keys to write. New ones follow each other, and what is there, in this order.
        deletes: Keys to delete.
        checks: For keys, the version that was seen, None if there was no such key. A key with another version has moved;
            one that expired meanwhile has not. Every key of `puts` and `deletes` is here; so are keys that the call
            changed but of which, after merging, nothing is left to write.
        whole: Whether any other head than `head` is a move: for serializable units.
        touch: Whether this use restarts the time of the keys that slide.
        owner: Who the namespace belongs to from now on: a user, "" for nobody; None leaves it as it is.
        loaded_owner: The owner that was loaded; another one is a move.
        born: The head of the namespace's first commit, as loaded; another one is a move, for the namespace was erased
            and made anew.
        size: At least as many bytes as the namespace has afterwards, if its head was still `head`; infinite: not known.
    """

    namespace: Namespace
    head: bytes | None
    puts: dict[str, Put]
    deletes: Sequence[str]
    checks: dict[str, bytes | None]
    whole: bool = False
    touch: bool = False
    owner: str | None = None
    loaded_owner: str | None = None
    born: bytes | None = None
    size: float = field(default=math.inf, compare=False)


@dataclass(slots=True)
class Load:
    """Read namespaces as they stand at one moment.

    Attributes:
        namespaces: Which.
        keys: For each namespace the keys that are wanted, None for all; None for all of all.
        timeout: Seconds.
        names: Whether `versions` of the snapshots holds every key that there is, in order, also those whose values were
            not asked for.
    """

    namespaces: tuple[Namespace, ...]
    keys: tuple[tuple[str, ...] | None, ...] | None = None
    timeout: float = LOAD_SECONDS
    names: bool = False


@dataclass(slots=True)
class Loaded:
    """Answer to `Load`: a snapshot for each namespace, without what is expired, and the time on the store's clock."""

    snapshots: tuple[Snapshot, ...]
    now: float


@dataclass(slots=True)
class Commit:
    """Write changes of one or more namespaces in one step, or nothing.

    Attributes:
        token: 16 random bytes that name the unit of work. A store keeps it for 60 s with each namespace that it wrote,
            in the same step, and answers a commit that it has seen with `Committed` without writing again. It keeps it also
            if the namespace is erased meanwhile, for the commit that made a namespace would make it once more: so a token
            is not kept in what an erasure removes. b"" where no answer can be lost; then it keeps none.
        version: Random bytes: the new head of each namespace, and the version of each key written.
        changes: One for each namespace.
        timeout: Seconds.
    """

    token: bytes
    version: bytes
    changes: tuple[Change, ...]
    timeout: float = COMMIT_SECONDS


@dataclass(slots=True)
class Committed:
    """Answer to `Commit`: everything is written."""


@dataclass(slots=True)
class Moved:
    """Answer to `Commit`: nothing is written, for something is not as it was loaded.

    Attributes:
        snapshots: For each change, how its namespace stands now. It may hold no more than the keys in `checks`; but for a
            change that is `whole`, its `versions` has every key that there is, so that what moved can be named.
        now: Time on the store's clock.
    """

    snapshots: tuple[Snapshot, ...]
    now: float


@dataclass(slots=True)
class Forget:
    """Erase namespaces, whatever is in them. A commit that loaded one of them before finds another head."""

    namespaces: tuple[Namespace, ...]
    timeout: float = COMMIT_SECONDS


@dataclass(slots=True)
class List:
    """Ask which namespaces there are.

    Attributes:
        app: Only of this app.
        scope: Only of this scope.
        owner: Only with this owner.
        after: Cursor of the page before; None for the first.
        limit: At most this many.
        timeout: Seconds.
    """

    app: str | None = None
    scope: str | None = None
    owner: str | None = None
    after: bytes | None = None
    limit: int = 1000
    timeout: float = LOAD_SECONDS


@dataclass(slots=True)
class Listed:
    """One namespace of a `Page`."""

    namespace: Namespace
    owner: str | None


@dataclass(slots=True)
class Page:
    """Answer to `List`, ordered by digest; `after` is the cursor of the next page, None if this was the last."""

    listed: tuple[Listed, ...]
    after: bytes | None


@dataclass(slots=True)
class Lease:
    """Ask to be the only holder of a namespace for *ttl* seconds, or renew a lease that is held.

    The answer is 0.0 if it is granted, else the seconds that the present holder's lease has left. It never waits.
    """

    namespace: Namespace
    holder: bytes
    ttl: float
    timeout: float = LOAD_SECONDS


@dataclass(slots=True)
class Release:
    """Give a lease back. One that is held by somebody else stays."""

    namespace: Namespace
    holder: bytes
    timeout: float = LOAD_SECONDS


Message = Load | Commit | Forget | List | Lease | Release


class Store(Protocol):
    """A store whose methods return their answers.

    `inline` says that no method ever waits or does I/O, so that it may be called on an event loop's own thread. `clock`
    is the function that gives the time, or None if the store goes by a clock of its own.
    """

    inline: bool
    clock: Callable[[], float] | None

    def load(self, message: Load, /) -> Loaded: ...
    def commit(self, message: Commit, /) -> Committed | Moved: ...
    def forget(self, message: Forget, /) -> None: ...
    def list(self, message: List, /) -> Page: ...
    def lease(self, message: Lease, /) -> float: ...
    def release(self, message: Release, /) -> None: ...
    def close(self) -> None: ...


class WouldBlock(Exception):
    """What was attempted would have had to wait, and nothing of it was done. No caller of a tool ever sees this."""


class LocalStore(Store, Protocol):
    """A store on this machine that mostly answers faster than a hop to a thread takes, but may have to wait now and then.

    On an event loop's thread a message is attempted, and goes to a worker thread only if that would have had to wait.
    """

    def attempt(self, message: Message, /) -> Any:
        """Answer a message without waiting for a lock, for another process or for a disk to be in step.

        Raises:
            WouldBlock: It would have to wait.
        """
        ...


class NetworkStore(Store, Protocol):
    """A store with a client for callers that may block and one for each asyncio event loop that meets it.

    The plain methods are for the first, `answer` is for the second. Callers on other event loops come in a thread.
    """

    async def answer(self, message: Message, /) -> Any:
        """Answer a message on the running asyncio event loop, with a client that belongs to it."""
        ...

    async def aclose(self) -> None:
        """`close`, for a caller on an event loop."""
        ...


class AsyncStore(Protocol):
    """A store whose methods are coroutines; they all run on one event loop that the bridge keeps for it."""

    clock: Callable[[], float] | None

    async def load(self, message: Load, /) -> Loaded: ...
    async def commit(self, message: Commit, /) -> Committed | Moved: ...
    async def forget(self, message: Forget, /) -> None: ...
    async def list(self, message: List, /) -> Page: ...
    async def lease(self, message: Lease, /) -> float: ...
    async def release(self, message: Release, /) -> None: ...
    async def close(self) -> None: ...
