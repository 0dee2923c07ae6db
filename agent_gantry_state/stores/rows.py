"""What stores have in common that keep a row for each key: texts as bytes, addresses, and records read many at once.

A record is stored behind a checksum of it and of its key, and an owner behind one of it, so that no damage makes another
value or another person of them. Each function that may find something damaged is told *where*, for the error.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final
from zlib import crc32

from agent_gantry_state import codec
from agent_gantry_state.compartments import known_as
from agent_gantry_state.errors import CorruptEntryError
from agent_gantry_state.namespace import Namespace

__all__ = ["corrupt", "namespace_of", "owned_by", "place", "sealed", "to_bytes", "to_owner", "to_text", "values_of"]

_FORMAT: Final = codec.FORMAT[0]
_SUM_BYTES: Final = 4
_pack = struct.Struct(">I").pack


def place(namespace: Namespace) -> tuple[bytes, bytes]:
    """The digest under which a namespace is filed, and its address."""
    # Long ids are not kept: a cache of them would be without bound.
    return _place(namespace) if len(namespace.id) + len(namespace.app) <= 512 else _placed(namespace)


def _placed(namespace: Namespace) -> tuple[bytes, bytes]:
    return namespace.digest, namespace.address


_place = lru_cache(maxsize=4096)(_placed)


# surrogatepass: whatever can be a str in Python can be an id.


def to_bytes(text: str) -> bytes:
    """A text as it is stored."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def to_text(stored: bytes, where: str) -> str:
    """A stored text.

    Raises:
        CorruptEntryError: It is none.
    """
    try:
        return stored.decode()
    except UnicodeDecodeError:
        pass
    try:
        return stored.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        pass
    # Out here, so that Python's error, which holds the bytes, is nowhere behind ours.
    raise CorruptEntryError(f"a name in {where} cannot be read: its bytes are damaged")


def owned_by(owner: str) -> bytes:
    """An owner as it is stored."""
    text = to_bytes(owner)
    return _sum(text) + text


def to_owner(stored: bytes | None, where: str) -> str | None:
    """A stored owner; None if there is none.

    Raises:
        CorruptEntryError: It is damaged.
    """
    if stored is None:
        return None
    text = stored[_SUM_BYTES:]
    if _sum(text) != stored[:_SUM_BYTES]:
        raise CorruptEntryError(f"the owner of a memory in {where} cannot be read: its bytes are damaged")
    return to_text(text, where)


def sealed(key: bytes | bytearray, record: bytes) -> bytes:
    """A record as it is stored, under a key's bytes."""
    # What `_sum` does.
    return _pack(crc32(record, crc32(key))) + record


def _sum(data: bytes, start: int = 0) -> bytes:
    return _pack(crc32(data, start))


def namespace_of(address: bytes, where: str) -> Namespace:
    """The namespace with that address.

    Raises:
        CorruptEntryError: There is none.
    """
    parts = []
    while address:
        size = int.from_bytes(address[:8], "big")
        parts.append(to_text(address[8 : 8 + size], where))
        address = address[8 + size :]
    try:
        app, scope, id = parts
        return Namespace(scope, id, app)
    except ValueError:
        raise CorruptEntryError(f"the address of a memory in {where} cannot be read: its bytes are damaged") from None


def values_of(names: Sequence[str], stored: Sequence[Any], where: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The `values` and `packed` of a `Snapshot`, from the names of keys and their records as they are stored.

    Raises:
        CorruptEntryError: A record is damaged, or of a newer format; its `path` names the key.
    """
    values: dict[str, Any] = {}
    packed: dict[str, bytes] = {}
    records = _records(names, stored, where)
    immutable = codec.IMMUTABLE
    for name, record, value in zip(names, records, _decoded(names, records, where), strict=True):
        if type(value) in immutable:
            values[name] = value
        else:
            values[name], packed[name] = None, record[1:]
    return values, packed


def _records(names: Sequence[str], stored: Sequence[Any], where: str) -> Sequence[bytes]:
    """What stands behind the checksums, which are compared all at once."""
    try:
        records = [each[_SUM_BYTES:] for each in stored]
        sums = map(crc32, records, map(crc32, [name.encode() for name in names]))
        if struct.pack(f">{len(records)}I", *sums) == b"".join([each[:_SUM_BYTES] for each in stored]):
            return records
    except (TypeError, UnicodeEncodeError):
        pass
    return [_record(name, each, where) for name, each in zip(names, stored, strict=True)]


def _record(name: str, stored: Any, where: str) -> bytes:
    if type(stored) is bytes:
        record = stored[_SUM_BYTES:]
        if _sum(record, crc32(to_bytes(name))) == stored[:_SUM_BYTES]:
            return record
    raise corrupt(name, where)


def _decoded(names: Sequence[str], records: Sequence[bytes], where: str) -> Sequence[Any]:
    """The values.

    The format byte happens to be MessagePack's number one, so that records behind each other are an array of ones and
    values: one call of the decoder does for all of them.
    """
    try:
        if not [record for record in records if record[0] != _FORMAT]:
            both = codec.unpack(b"".join((_array(2 * len(records) + 1), *records, codec.END)))
            # Bytes that are too few or too many would shift what comes behind them.
            if both[:-1:2] == [_FORMAT] * len(records) and codec.pack(both[-1]) == codec.END:
                return both[1:-1:2]  # type: ignore[no-any-return]
    except (CorruptEntryError, IndexError):
        pass
    values = []
    for name, record in zip(names, records, strict=True):
        try:
            values.append(codec.decode(record))
        except CorruptEntryError:
            raise corrupt(name, where) from None
    return values


def _array(length: int) -> bytes:
    """How MessagePack begins an array."""
    return b"\xdc" + length.to_bytes(2, "big") if length < 1 << 16 else b"\xdd" + length.to_bytes(4, "big")


def corrupt(key: str, where: str) -> CorruptEntryError:
    """The error of a key whose entry cannot be read."""
    shown = codec.shortened(repr(known_as(key)))
    return CorruptEntryError(
        f"key {shown} in {where} cannot be read: its bytes are damaged, or were written by a newer version of "
        "agent-gantry-state; they were left as they are. Upgrade the package, or forget this memory",
        path=f"memory[{shown}]",
    )
