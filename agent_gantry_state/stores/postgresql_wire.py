"""Values in PostgreSQL's binary format, as statements take them and rows give them back."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

__all__ = [
    "bytes_array",
    "float_array",
    "int_array",
    "no_bytes",
    "no_floats",
    "packed_float",
    "packed_int",
    "to_float",
    "to_int",
]

# An array: number of dimensions, whether there are nulls, type of the elements; of the dimension size and first index.
_HEAD: Final = struct.Struct("!iiIii").pack
_EMPTY: Final = struct.Struct("!iiI").pack
_SIZE: Final = struct.Struct("!i").pack
_NULL: Final = b"\xff\xff\xff\xff"
_BYTEA, _FLOAT8, _INT4 = 17, 701, 23
_FLOAT: Final = struct.Struct("!d")
_INT: Final = struct.Struct("!i")
_EIGHT, _FOUR = _SIZE(8), _SIZE(4)

packed_float: Final = _FLOAT.pack
packed_int: Final = _INT.pack


def to_float(stored: bytes) -> float:
    """Read a double precision."""
    return _FLOAT.unpack(stored)[0]  # type: ignore[no-any-return]


def to_int(stored: bytes) -> int:
    """Read an int or a bigint."""
    return int.from_bytes(stored, "big", signed=True)


def bytes_array(items: Sequence[bytes | None]) -> bytes:
    """A bytea[]."""
    if len(items) == 1 and (item := items[0]) is not None:
        return b"".join((_ONE, _SIZE(len(item)), item))
    parts = [_head(_BYTEA, len(items))]
    for item in items:
        if item is None:
            parts.append(_NULL)
        else:
            parts += (_SIZE(len(item)), item)
    return b"".join(parts)


def float_array(items: Sequence[float | None]) -> bytes:
    """A double precision[]."""
    values = [_NULL if item is None else _EIGHT + packed_float(item) for item in items]
    return b"".join((_head(_FLOAT8, len(items)), *values))


@lru_cache(maxsize=256)
def int_array(items: tuple[int, ...]) -> bytes:
    """An int[]."""
    return b"".join([_head(_INT4, len(items)), *[_FOUR + packed_int(item) for item in items]])


@lru_cache(maxsize=256)
def no_bytes(size: int) -> bytes:
    """A bytea[] of nulls."""
    return bytes_array([None] * size)


@lru_cache(maxsize=256)
def no_floats(size: int) -> bytes:
    """A double precision[] of nulls."""
    return float_array([None] * size)


def _head(kind: int, size: int) -> bytes:
    # That there may be nulls is no promise that there are.
    return _HEAD(1, 1, kind, size, 1) if size else _EMPTY(0, 0, kind)


_ONE: Final = _head(_BYTEA, 1)
