"""How a memory lies in Redis: the names of keys, and the bytes in them.

A namespace is a hash, `<prefix>{ab}<digest>`. The first byte of its digest is the hash tag, so that a cluster keeps it in
one slot with its tokens, its lease, and the sorted set `<prefix>{ab}index` of all digests that begin with that byte. The
field `h` of the hash is its header; the others are its keys, each behind a `k`.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from agent_gantry_state import codec
from agent_gantry_state.errors import CorruptEntryError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.kept import KEY_BYTES
from agent_gantry_state.stores.protocol import EMPTY, KEEP, Change, Listed, Put, Snapshot
from agent_gantry_state.stores.rows import corrupt, namespace_of, owned_by, sealed, to_bytes, to_owner, to_text, values_of

__all__ = [
    "TAGS",
    "VERSION_BYTES",
    "Place",
    "assigning",
    "chosen",
    "damaged",
    "has_mark",
    "index_of",
    "listed",
    "mark_of",
    "moment",
    "moment_of",
    "newer",
    "owner_argument",
    "place_of",
    "text_argument",
    "version_of",
    "whole",
    "written",
]

#: How many hash tags there are: one for each first byte of a digest.
TAGS: Final = 256

#: Number of the layout below; a greater one is refused.
LAYOUT: Final = 1
# Layout, head, last touch, birth, greatest position, a bound below the first expiry, bounds above the last fixed and the
# longest sliding one, how many keys never expire and how many do, whether there is an owner, and how long that is. The owner
# and the address follow.
_HEADER: Final = struct.Struct(">B8sd8sQdddIIBI")
# Version, position, kind of expiry (none, fixed, sliding) and its time or seconds. The record follows.
_ENTRY: Final = struct.Struct(">8sQBd")
_META: Final = _ENTRY.size
_entry = _ENTRY.unpack_from
_TIME: Final = struct.Struct(">d")
_FIXED, _SLIDING = 1, 2
#: Where head and last touch stand, which tell whether anything has changed.
_MARK: Final = slice(1, 17)
#: Bytes of a version.
VERSION_BYTES: Final = 8
#: By `whole` and `touch` of a change, what the script is told.
_FLAGS: Final = {(False, False): b"", (True, False): b"w", (False, True): b"t", (True, True): b"wt"}
#: Letters of an address above which it is not kept to be known again.
_LONG: Final = 512
#: For errors.
_WHERE: Final = "Redis"


class Place(NamedTuple):
    """Where a namespace is kept.

    Attributes:
        tag: First byte of its digest.
        key: Its hash.
        listing: The sorted set that lists it.
        lease: Where its lease is.
        address: What its header has to say.
        reading: The commands that read it and the time, packed.
        writing: How the keys that a commit needs are packed, up to its token.
    """

    tag: int
    key: bytes
    listing: bytes
    lease: bytes
    address: bytes
    reading: bytes
    writing: bytes

    def token(self, token: bytes) -> bytes:
        """Where the token of a commit is."""
        return b"%b:%b" % (self.key, token.hex().encode())


def place_of(prefix: bytes, namespace: Namespace) -> Place:
    """Where *namespace* is kept."""
    if len(namespace.id) + len(namespace.app) > _LONG:
        return _place_of(prefix, namespace)
    return _known_place_of(prefix, namespace)


def _place_of(prefix: bytes, namespace: Namespace) -> Place:
    address = namespace.address
    # Not asked of the namespace, for that keeps it: it may be a long one.
    digest = hashlib.sha256(address).digest()
    base = _base(prefix, digest[0])
    name = digest.hex().encode()
    key, listing = base + name, base + b"index"
    reading = b"*1\r\n$4\r\nTIME\r\n*2\r\n$7\r\nHGETALL\r\n$%d\r\n%b\r\n" % (len(key), key)
    writing = b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b:" % (len(key), key, len(listing), listing, len(key) + 33, key)
    return Place(digest[0], key, listing, base + b"lease:" + name, address, reading, writing)


_known_place_of = lru_cache(maxsize=4096)(_place_of)


def index_of(prefix: bytes, tag: int) -> bytes:
    """The sorted set of the digests that begin with *tag*."""
    return _base(prefix, tag) + b"index"


def _base(prefix: bytes, tag: int) -> bytes:
    return b"%s{%02x}" % (prefix, tag)


def version_of(message_version: bytes) -> bytes:
    """A version in the length that it has here."""
    if len(message_version) == VERSION_BYTES:
        return message_version
    return hashlib.sha256(message_version).digest()[:VERSION_BYTES]


# What is sent.


def written(change: Change, address: bytes) -> list[Any]:
    """A change as arguments of the commit script."""
    puts = change.puts
    arguments: list[Any] = [
        change.head or b"",
        change.born or b"",
        owner_argument(change.loaded_owner),
        owner_argument(change.owner),
        _FLAGS[change.whole, change.touch],
        b"" if change.head else address,
        len(change.checks),
        len(change.deletes),
        len(puts),
    ]
    for key, version in change.checks.items():
        arguments += (to_bytes(key), version or b"")
    if change.deletes:
        arguments += map(to_bytes, change.deletes)
    for key, put in puts.items():
        name = to_bytes(key)
        arguments += (name, _terms(put), sealed(name, put.record))
    return arguments


def assigning(
    digest: bytes,
    place: Place,
    token: bytes,
    time: bytes,
    kept: float,
    base: Snapshot,
    values: dict[str, Any],
    packed: dict[str, bytes],
) -> bytes:
    """The command that assigns values and containers to a namespace as it was loaded, in which nothing expires, packed.

    The arguments are those of the commit script, as `written` has them. To pack them one by one takes a fifth of a call.

    Args:
        digest: That of the script.
        place: Where the namespace is kept.
        token: That of the commit.
        time: The time to go by; empty for the server's.
        kept: Seconds for which the token is remembered.
        base: The namespace as it was loaded.
        values: The values, None for a container.
        packed: The bytes of each container.
    """
    checks, puts, count = [], [], b"%d" % len(values)
    for key, value in values.items():
        name, version = to_bytes(key), base.version(key) or b""
        record = sealed(name, codec.FORMAT + (packed[key] if key in packed else codec.pack(value)))
        checks.append(_CHECK % (len(name), name, len(version), version))
        puts.append(_PUT % (len(name), name, len(record), record))
    owner, seconds, size = owner_argument(base.owner), repr(kept).encode(), len(count)
    start = _ASSIGNING % (
        19 + 5 * len(values), len(digest), digest, place.writing, token.hex().encode(), len(time), time,
        token[:VERSION_BYTES], len(seconds), seconds, base.head, base.born, len(owner), owner, size, count, size, count,
    )  # fmt: skip
    return b"".join((start, *checks, *puts))


# Head, birth and version have eight bytes, and token keys end with the token.
_ASSIGNING: Final = (
    b"*%d\r\n$7\r\nEVALSHA\r\n$%d\r\n%b\r\n$1\r\n3\r\n%b%b\r\n$%d\r\n%b\r\n$8\r\n%b\r\n$1\r\n1\r\n$%d\r\n%b\r\n"
    b"$8\r\n%b\r\n$8\r\n%b\r\n$%d\r\n%b\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n$%d\r\n%b\r\n$1\r\n0\r\n$%d\r\n%b\r\n"
)
_CHECK: Final = b"$%d\r\n%b\r\n$%d\r\n%b\r\n"
_PUT: Final = b"$%d\r\n%b\r\n$2\r\nk-\r\n$%d\r\n%b\r\n"


def _terms(put: Put) -> bytes:
    ttl = put.ttl
    if ttl is KEEP:
        return b"kl" if put.last else b"k-"
    last = b"l" if put.last else b"-"
    if ttl is None:
        return b"n" + last
    return (b"s" if put.slides else b"f") + last + repr(float(ttl)).encode()  # type: ignore[arg-type]


def text_argument(text: str | None) -> bytes:
    """A text or nothing, as an argument of a script."""
    return b"" if text is None else b"=" + to_bytes(text)


def owner_argument(owner: str | None) -> bytes:
    """An owner or nobody, as an argument of a script."""
    return b"" if owner is None else b"=" + owned_by(owner)


# What comes back.


def moment_of(reply: Sequence[bytes]) -> float:
    """The time that Redis has told."""
    return int(reply[0]) + int(reply[1]) / 1_000_000


def moment(stamp: bytes) -> float:
    """A time that a script has stamped."""
    return float(_TIME.unpack(stamp)[0])


class _Header(NamedTuple):
    head: bytes
    touched: float
    born: bytes
    timed: int
    owner: str | None
    address: bytes


def _header(raw: bytes) -> _Header:
    if raw[:1] and raw[0] > LAYOUT:
        raise newer(raw[0])
    try:
        layout, head, touched, born, _, _, _, _, _, timed, owned, size = _HEADER.unpack_from(raw)
    except struct.error:
        raise damaged("a memory") from None
    end = _HEADER.size + size
    if layout != LAYOUT or len(raw) < end or owned != (size > 0):
        raise damaged("a memory")
    return _Header(head, touched, born, timed, to_owner(raw[_HEADER.size : end] or None, _WHERE), raw[end:])


def mark_of(flat: Sequence[bytes]) -> bytes:
    """The mark of what was read: as long as it stands, nothing has changed."""
    return flat[flat.index(b"h") + 1][_MARK]


def has_mark(flat: Sequence[bytes], mark: bytes) -> bool:
    """Whether that is the mark of what was read."""
    try:
        return mark_of(flat) == mark
    except (ValueError, IndexError):
        # It is damaged, and whoever reads it says so.
        return False


def whole(flat: Sequence[bytes], place: Place) -> tuple[Snapshot, int]:
    """A namespace with all its keys, also those that are expired, and about how many bytes it takes here.

    Raises:
        CorruptEntryError: It is another one's, damaged, or of a newer layout.
    """
    header, rows = _rows(flat, place)
    # The namespace itself is kept beside its address.
    size = sum(map(len, flat)) + KEY_BYTES * len(rows) + len(place.address)
    return _made(header, rows, None, None), size


def chosen(flat: Sequence[bytes], place: Place, wanted: Iterable[str], names: bool, now: float) -> Snapshot:
    """A namespace with those of its keys that are wanted and not expired.

    Raises:
        CorruptEntryError: It is another one's, damaged, or of a newer layout.
    """
    header, rows = _rows(flat, place)
    left = [row for row in rows if _deadline(row, header.touched) > now]
    if rows and not left and header.timed:
        return EMPTY
    until = max([_deadline(row, header.touched) for row in left], default=math.inf) if header.timed else math.inf
    versions = {row[0]: row[2] for row in left} if names else None
    keys = set(wanted)
    return _made(header, [row for row in left if row[0] in keys], versions, until)


def listed(raw: bytes, digest: bytes) -> Listed:
    """What the header of a namespace says of it.

    Raises:
        CorruptEntryError: It is another one's, damaged, or of a newer layout.
    """
    header = _header(raw)
    namespace = namespace_of(header.address, _WHERE)
    if namespace.digest.hex().encode() != digest:
        raise _mixed_up()
    return Listed(namespace, header.owner)


# Of a key: its name, position, version, kind of expiry, time, and record, which is empty where it was not asked for.
_Row = tuple[str, int, bytes, int, float, bytes]


def _rows(flat: Sequence[bytes], place: Place) -> tuple[_Header, list[_Row]]:
    raw = None
    rows: list[_Row] = []
    items = iter(flat)
    for field, value in zip(items, items, strict=True):
        if field == b"h":
            raw = value
            continue
        try:
            version, position, kind, time = _entry(value)
            rows.append((field[1:].decode(), position, version, kind, time, value[_META:]))
        except (UnicodeDecodeError, struct.error):
            rows.append(_row(field, value))
    if raw is None:
        raise damaged("a memory")
    header = _header(raw)
    if header.address != place.address:
        raise _mixed_up()
    rows.sort(key=_position)
    return header, rows


def _row(field: bytes, value: bytes) -> _Row:
    key = to_text(field[1:], _WHERE)
    try:
        version, position, kind, time = _entry(value)
    except struct.error:
        raise corrupt(key, _WHERE) from None
    return key, position, version, kind, time, value[_META:]


def _position(row: _Row) -> int:
    return row[1]


def _deadline(row: _Row, touched: float) -> float:
    kind, time = row[3], row[4]
    if kind == _SLIDING:
        return touched + time
    return time if kind == _FIXED else math.inf


def _made(header: _Header, rows: Sequence[_Row], versions: dict[str, bytes] | None, until: float | None) -> Snapshot:
    seen: dict[str, bytes] = {}
    expires: dict[str, float] = {}
    sliding: dict[str, float] = {}
    for key, _, version, kind, time, _ in rows:
        seen[key] = version
        if kind:
            (sliding if kind == _SLIDING else expires)[key] = time
    if len(seen) != len(rows):
        # A field that is none of ours can look like one that is.
        raise damaged("a memory")
    values, packed = values_of([*seen], [row[5] for row in rows], _WHERE)
    versions = seen if versions is None else versions
    return Snapshot(
        values, packed, versions, header.head, header.owner, expires, sliding, header.touched, header.born, until
    )


def newer(layout: object) -> CorruptEntryError:
    """The error for a memory whose layout is not known here."""
    return CorruptEntryError(
        f"a memory in Redis is damaged, or was written by a newer version of agent-gantry-state (layout {layout}, this one "
        f"knows {LAYOUT}): upgrade the package; nothing was changed in it"
    )


def damaged(what: str) -> CorruptEntryError:
    """The error for bytes that cannot be read."""
    return CorruptEntryError(f"{what} in Redis cannot be read: its bytes are damaged")


def _mixed_up() -> CorruptEntryError:
    return CorruptEntryError(
        "Redis answered with the memory of another namespace: its data is damaged, or was changed by hand"
    )
