"""What stores do that keep each namespace as a whole: choose the keys asked for, find what has moved, apply a change.

Pure functions of snapshots, and how a whole namespace is written as one string of bytes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from agent_gantry_state import codec
from agent_gantry_state.compartments import FIRST_OPEN
from agent_gantry_state.errors import CorruptEntryError, StateError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.protocol import KEEP, SMALL_BYTES, UNSHARED, Change, Put, Snapshot

__all__ = [
    "Image",
    "applied",
    "assigned",
    "chosen",
    "damaged",
    "image_of",
    "is_moved",
    "is_newer",
    "read_image",
    "write_image",
]


def chosen(snapshot: Snapshot, keys: tuple[str, ...], names: bool) -> Snapshot:
    """The part of a snapshot that a load asks for; what that takes does not depend on how many other keys there are."""
    values, packed, later = snapshot.values, snapshot.packed, snapshot.later
    found = [key for key in dict.fromkeys(keys) if key in values]
    if len(found) > 1:
        found.sort(key=snapshot.places().__getitem__)

    def kept(mapping: dict[str, Any]) -> dict[str, Any]:
        return {key: mapping[key] for key in found if key in mapping}

    return Snapshot(
        {key: values[key] for key in found},
        kept(packed) if packed else {},
        snapshot.versions if names else kept(later) if later else {},
        snapshot.head,
        snapshot.owner,
        kept(snapshot.expires_at) if snapshot.expires_at else {},
        kept(snapshot.slides) if snapshot.slides else {},
        snapshot.touched,
        snapshot.born,
        snapshot.last_expiry(),
        snapshot.reserved and None,
        first=None if names else snapshot.first,
    )


def is_moved(change: Change, snapshot: Snapshot) -> bool:
    """Whether a namespace with another head than the one loaded stands in the way of a change."""
    if change.whole or change.loaded_owner != snapshot.owner or (change.head is not None and snapshot.born != change.born):
        return True
    return any(snapshot.version(key) != version for key, version in change.checks.items())


def applied(
    change: Change, snapshot: Snapshot, version: bytes, now: Callable[[], float], in_place: bool = False
) -> Snapshot:
    """The snapshot that follows *snapshot*.

    Args:
        change: What is done.
        snapshot: To what.
        version: That of the commit.
        now: Tells the time on the store's clock.
        in_place: Whether nobody else has *snapshot*, so that what follows may go on with its dicts instead of copying them.
    """
    values, later, packed = snapshot.values, snapshot.later, snapshot.packed
    expires_at, slides, places = snapshot.expires_at, snapshot.slides, snapshot.placed
    reserved: bool | None = snapshot.reserved
    early, late, is_known = snapshot.first_expiry, snapshot.latest, not snapshot.slides
    is_shared = False
    if not in_place:
        values, later = values.copy(), later.copy()
        is_shared = not (packed or expires_at or slides)
        if not is_shared:
            packed, expires_at, slides = packed.copy(), expires_at.copy(), slides.copy()
    elif not (expires_at or slides):
        expires_at, slides = {}, {}
    for key in change.deletes:
        if expires_at.get(key, -math.inf) >= late:
            is_known = False
        for mapping in (values, later) if is_shared else (values, later, packed, expires_at, slides):
            mapping.pop(key, None)
    touched = snapshot.touched
    if change.touch:
        touched = now()
    head = version if change.puts or change.deletes or change.owner is not None else snapshot.head
    for key, put in change.puts.items():
        if key < FIRST_OPEN:
            reserved = None
        if put.last:
            values.pop(key, None)
            later.pop(key, None)
        if places is not None and key not in values:
            # To what is there before, more names at its end make no difference; one that comes back does.
            places = None if key in places else places
            if places is not None:
                places[key] = len(places)
        if is_shared and (put.value is UNSHARED or put.ttl is not KEEP):
            # They are empty, and those of others.
            packed, expires_at, slides, is_shared = {}, {}, {}, False
        if put.value is UNSHARED:
            values[key] = None
            packed[key] = put.packed
        else:
            values[key] = put.value
            if packed:
                packed.pop(key, None)
        later[key] = version
        if put.ttl is not KEEP:
            before, deadline = expires_at.get(key), _expire(key, put, expires_at, slides, now)
            if deadline is not None:
                early, late = min(early, deadline), max(late, deadline)
            if before is not None and before >= late:
                # It was the last, and there may be several of them.
                is_known = deadline == late
    after = Snapshot(
        values,
        packed,
        later,
        head,
        snapshot.owner if change.owner is None else change.owner,
        expires_at,
        slides,
        touched,
        snapshot.born or head,
        None,
        reserved,
        change.size if snapshot.head == change.head else math.inf,
        snapshot.first,
        (early, late) if is_known and expires_at and not slides else None,
    )
    if places is not None and len(places) < 2 * len(values) + 64:
        after.placed = places
    return after


def assigned(
    base: Snapshot, values: dict[str, Any], packed: dict[str, bytes], version: bytes, max_bytes: float
) -> Snapshot | None:
    """The snapshot that follows *base*, in which nothing expires, when small values and containers are written.

    Args:
        base: What is there.
        values: The values, in the order of keys that are new; None for a container. None is written where one is.
        packed: The bytes of each container.
        version: That of the commit.
        max_bytes: How large it may be.

    Returns:
        None if it might be larger than that.
    """
    encoded, more = base.packed, SMALL_BYTES * len(values)
    if packed:
        for key, body in packed.items():
            more += len(body) - len(encoded.get(key, b""))
        encoded = encoded | packed
    size = base.size + more
    if size > max_bytes and (size := base.measure() + more) > max_bytes:
        return None
    later = base.later.copy()
    for key in values:
        later[key] = version
    return base.following(base.values | values, encoded, later, version, size)


def _expire(
    key: str, put: Put, expires_at: dict[str, float], slides: dict[str, float], now: Callable[[], float]
) -> float | None:
    """Set when a key expires, and give it if it does so at a fixed time."""
    expires_at.pop(key, None)
    slides.pop(key, None)
    if not isinstance(put.ttl, (int, float)):
        return None
    if put.slides:
        slides[key] = put.ttl
        return None
    expires_at[key] = deadline = now() + put.ttl
    return deadline


#: A byte for the layout of what follows, so that a reader refuses one that it does not know; then, in every layout, a
#: checksum of that byte and of what follows.
_LAYOUT: Final = b"\x01"
_CHECKSUM_BYTES = 4
_START: Final = zlib.crc32(_LAYOUT)


class Image(NamedTuple):
    """A namespace as it was written.

    Attributes:
        namespace: Its address.
        snapshot: What is in it, also what is expired.
        tokens: Of the commits that wrote it lately, each with the time until which it is kept.
    """

    namespace: Namespace
    snapshot: Snapshot
    tokens: Mapping[bytes, float]


def write_image(image: Image) -> bytes:
    """A namespace as bytes, which `read_image` reads."""
    # Not as a dict: keys that are no str take the encoder's long way, with everything beside them.
    return b"".join(image_of(image.namespace, image.snapshot, [*image.tokens], [*image.tokens.values()]))


_NONE: Final[list[Any]] = []


def image_of(
    namespace: Namespace, snapshot: Snapshot, tokens: list[bytes] = _NONE, untils: list[float] = _NONE
) -> tuple[bytes, bytes, bytes]:
    """What `write_image` makes, in pieces."""
    later = snapshot.later
    body = codec.repack(
        [
            [*namespace],
            snapshot.values,
            snapshot.packed,
            later if snapshot.first is None else snapshot.versions,
            snapshot.head,
            snapshot.born,
            snapshot.owner,
            snapshot.expires_at,
            snapshot.slides,
            snapshot.touched,
            tokens,
            untils,
        ]
    )
    return _LAYOUT, zlib.crc32(body, _START).to_bytes(_CHECKSUM_BYTES, "big"), body


def is_newer(data: bytes) -> bool:
    """Whether a newer version has written it: a layout that is damaged does not go with the checksum."""
    layout, checksum, body = _parted(data)
    return layout > _LAYOUT and zlib.crc32(body, zlib.crc32(layout)).to_bytes(_CHECKSUM_BYTES, "big") == checksum


def _parted(data: bytes) -> tuple[bytes, bytes, bytes]:
    return data[:1], data[1 : 1 + _CHECKSUM_BYTES], data[1 + _CHECKSUM_BYTES :]


def read_image(data: bytes, namespace: Namespace | None = None) -> Image:
    """Read what `write_image` wrote.

    Args:
        data: The bytes.
        namespace: Whose they have to be; None if whoever asks wants to know.

    Raises:
        CorruptEntryError: They are damaged, of a newer layout, or those of another namespace.
    """
    layout, checksum, body = _parted(data)
    if layout != _LAYOUT or zlib.crc32(body, _START).to_bytes(_CHECKSUM_BYTES, "big") != checksum:
        if is_newer(data):
            raise CorruptEntryError(
                f"a memory was written by a newer version of agent-gantry-state (layout {layout[0]}, this one knows "
                f"{_LAYOUT[0]}): upgrade the package; nothing was changed in it"
            )
        raise damaged()
    try:
        image = _image(*codec.unpack(body))
    except (StateError, TypeError, ValueError, ArithmeticError):
        raise damaged() from None
    if namespace is not None and image.namespace != namespace:
        raise CorruptEntryError("a memory cannot be read: what is stored in its place is another one's")
    return image


_TEXT: Final = frozenset({str})
_BYTES: Final = frozenset({bytes})
_TIMES: Final = frozenset({int, float})
_PLAIN: Final = frozenset(codec.IMMUTABLE)


def _image(
    address: Any,
    values: Any,
    packed: Any,
    versions: Any,
    head: Any,
    born: Any,
    owner: Any,
    expires_at: Any,
    slides: Any,
    touched: Any,
    tokens: Any,
    untils: Any,
) -> Image:
    """Put an image together of what was decoded, if each part is what `write_image` writes there.

    Raises:
        ValueError, TypeError: It is not.
    """
    whole = (
        type(address) is list
        and _is_mapping(values, _PLAIN)
        and _is_mapping(versions, _BYTES)
        and versions.keys() == values.keys()
        and (head is None or type(head) is bytes)
        and (born is None or type(born) is bytes)
        and (owner is None or type(owner) is str)
        and type(touched) in _TIMES
        # A NaN is less than nothing.
        and touched <= math.inf
        and (packed == {} or (_is_mapping(packed, _BYTES) and all(values.get(key, key) is None for key in packed)))
        and (expires_at == slides == {} or (_are_times(expires_at, values) and _are_times(slides, values)))
        and (tokens == untils == [] or (type(tokens) is list and type(untils) is list))
        and _BYTES.issuperset(map(type, tokens))
        and _TIMES.issuperset(map(type, untils))
        and all(until <= math.inf for until in untils)
    )
    if not whole or (expires_at and not slides.keys().isdisjoint(expires_at)):
        raise ValueError
    snapshot = Snapshot(values, packed, versions, head, owner, expires_at, slides, touched, born)
    return Image(Namespace(*address), snapshot, dict(zip(tokens, untils, strict=True)))


def _is_mapping(mapping: Any, kinds: frozenset[Any]) -> bool:
    return type(mapping) is dict and _TEXT.issuperset(map(type, mapping)) and kinds.issuperset(map(type, mapping.values()))


def _are_times(mapping: Any, values: dict[str, Any]) -> bool:
    return (
        _is_mapping(mapping, _TIMES)
        and mapping.keys() <= values.keys()
        and all(time <= math.inf for time in mapping.values())
    )


def damaged() -> CorruptEntryError:
    """The error of a memory whose bytes are not what was written."""
    return CorruptEntryError("a memory cannot be read: its bytes are damaged")
