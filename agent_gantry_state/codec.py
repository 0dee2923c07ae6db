"""Values to bytes and back, exactly, without ever executing or importing anything.

The bytes are MessagePack written by one C call. What MessagePack would change in silence (tuples, sets, dates, big
integers, ...) is handed over by the encoder and written as an extension type with a code of ours; what cannot come back
as it went in is refused with the path of the offending value. Equal values give equal bytes (sets are sorted), so two
values are the same exactly when their bytes are: `1`, `True` and `1.0` differ, and so do `0.0` and `-0.0`.
"""

from __future__ import annotations

import builtins
import datetime as dt
import decimal
import enum
import pathlib
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

import ormsgpack

from agent_gantry_state.errors import CorruptEntryError, UnstorableValueError
from agent_gantry_state.wellformed import is_wellformed

__all__ = [
    "END",
    "FORMAT",
    "IMMUTABLE",
    "decode",
    "encode",
    "name_of",
    "pack",
    "repack",
    "shortened",
    "shown",
    "unpack",
]

#: First byte of every stored record; a reader refuses one that it does not know.
FORMAT = b"\x01"

#: Types whose instances are the same after a round trip and cannot be changed in place, so that they can be shared.
IMMUTABLE = frozenset({str, int, float, bool, type(None), bytes})

#: Whether the decoder may fail in memory over lengths that are damaged.
_CHECKED_FIRST: Final = tuple(map(int, ormsgpack.__version__.split(".")[:2])) < (1, 13)

#: What a reader puts behind records, encoded, to see that they end where they should.
END: Final = b"\xa4\x00END"
_END: Final = "\x00END"
_PAIR: Final = b"\x92"

#: Containers nested this deep are always stored. The C encoder has a limit of its own above it, but each of our
#: extensions starts it anew, so that their number is limited too, or a hostile value could exhaust the C stack.
MAX_DEPTH = 200
_MAX_EXTENSION_DEPTH = 24
#: Nobody looks for what else is wrong further down than this: the encoder has given up long before.
_FAR: Final = 5000

_OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_BIG_INT
)
_packb, _unpackb, _Ext = ormsgpack.packb, ormsgpack.unpackb, ormsgpack.Ext

# Wire codes of the extension types. They are part of the stored format: never reuse or renumber one.
_TUPLE, _SET, _FROZENSET, _INT, _DATETIME, _DATE, _TIME, _TIMEDELTA = range(1, 9)
_DECIMAL, _UUID, _PAIRS, _STR, _PATH = range(9, 14)

_PATH_KINDS: dict[type, str] = {
    pathlib.PurePosixPath: "pure-posix",
    pathlib.PureWindowsPath: "pure-windows",
    pathlib.PosixPath: "posix",
    pathlib.WindowsPath: "windows",
}
_PATH_TYPES = {kind: cls for cls, kind in _PATH_KINDS.items()}
_PURE = {"posix": pathlib.PurePosixPath, "windows": pathlib.PureWindowsPath}

_CONTAINERS = frozenset({dict, list, tuple, set, frozenset})
_TIMELESS = frozenset({*IMMUTABLE, dt.date, dt.timedelta, decimal.Decimal, uuid.UUID, *_PATH_KINDS})
_ATOMS = _TIMELESS | {dt.datetime, dt.time}

#: Types of this package that are stored as plain dicts, with the function that makes one.
_ALIASES: dict[type, Callable[[Any], dict[str, Any]]] = {}

_Default = Callable[[Any], Any]


class _TooDeep(TypeError):
    """Raised inside the C encoder; the public error is made afterwards."""


def pack(value: Any) -> bytes:
    """Encode *value* without the format byte.

    Raises:
        UnstorableValueError: The value, or something in it, would not come back as it went in.
    """
    try:
        packed = _packb(value, _DEFAULTS[0], _OPTIONS)
    except (TypeError, RecursionError):
        # A key that is no str, a lone surrogate, or something that cannot be carried: the walk tells which.
        check(value, "")
        try:
            return _tagged_pack(value, 0, 0)
        except (TypeError, RecursionError):
            raise _too_deep("") from None
    if type(value) not in IMMUTABLE and (_uses(_Fragment) > _AT_REST or _may_be_foreign(packed)) and not _is_known(value):
        check(value, "")
    return packed


# MessagePack writes what its `Fragment` holds as it is, whatever that says, and asks nobody. To look for one costs more than
# to encode; but each one that is anywhere in the program counts as a use of its class. `Ext` has as many uses where there
# is no instance of either.
_Fragment: Any = getattr(ormsgpack, "Fragment", _Ext)
_uses: Final = sys.getrefcount


def _uses_at_rest() -> int:
    if _Fragment is _Ext:
        # This version has none.
        return sys.maxsize
    at_rest, before = min(_uses(_Fragment), _uses(_Ext)), _uses(_Fragment)
    one = _Fragment(_packb(None))
    # Where threads run freely an instance is not counted: then it is always looked for.
    return at_rest if one is not None and _uses(_Fragment) > before else 0


_AT_REST: Final = _uses_at_rest()

#: For each byte 1 if it is such a header, else 0; and how many bytes are few.
_HEADERS: Final = bytes(0xC4 <= byte <= 0xC9 or 0xD4 <= byte <= 0xD8 for byte in range(256))
_FEW: Final = 200


def _may_be_foreign(packed: bytes) -> bool:
    """Whether the bytes are worth a look at what they were made of.

    MessagePack writes bytearray and memoryview as bytes, and its own class for extensions as one of ours, without asking.
    These are the headers of both; they also occur in text and numbers. (Asked for as numbers: `bytes in bytes` first raises
    and swallows an error, at five times the cost. A few bytes are quicker translated than looked through eleven times.)
    """
    if len(packed) < _FEW:
        return 1 in packed.translate(_HEADERS)
    return (
        0xC4 in packed
        or 0xC5 in packed
        or 0xC6 in packed
        or 0xC7 in packed
        or 0xC8 in packed
        or 0xC9 in packed
        or 0xD4 in packed
        or 0xD5 in packed
        or 0xD6 in packed
        or 0xD7 in packed
        or 0xD8 in packed
    )


def _is_known(value: Any) -> bool:
    """Whether a value that was encoded, in which there is no cycle, is made of nothing but what comes back as it was."""
    found = [value]
    for each in found:
        kind = type(each)
        if kind not in _CONTAINERS:
            return kind in _ATOMS
        items = each.values() if kind is dict else each
        if not _ATOMS.issuperset(map(type, items)):
            found += [item for item in items if type(item) not in _ATOMS]
    return True


def repack(value: Any) -> bytes:
    """`pack` for a value of which every part is known to come back as it went in, because it was packed before."""
    try:
        return _packb(value, _DEFAULTS[0], _OPTIONS)
    except (TypeError, RecursionError):
        # A key that is no str, or a lone surrogate.
        return _tagged_pack(value, 0, 0)


def unpack(packed: bytes) -> Any:
    """Decode what `pack` wrote.

    Raises:
        CorruptEntryError: These are no such bytes.
    """
    try:
        if _CHECKED_FIRST:
            _check_lengths(packed)
        return _unpackb(packed, ext_hook=_decode_extension)
    except CorruptEntryError:
        raise
    except Exception:  # noqa: BLE001, S110
        pass
    # Out here, so that the error of the decoder, which may carry the bytes that it stumbled over, is nowhere behind ours.
    raise _damaged()


def _check_lengths(packed: bytes) -> None:
    # Only where one of these bytes is, a length can be said that no memory is large enough for.
    if (0xDD in packed or 0xDF in packed) and not is_wellformed(packed):
        raise _damaged()


def _unpack_plain(packed: bytes) -> Any:
    """Decode what has no extensions in it."""
    if _CHECKED_FIRST:
        _check_lengths(packed)
    return _unpackb(packed)


def _damaged() -> CorruptEntryError:
    return CorruptEntryError("a stored entry cannot be read: its bytes are damaged")


def encode(value: Any) -> bytes:
    """Encode *value* as a record: the format byte, then its bytes.

    Raises:
        UnstorableValueError: The value, or something in it, would not come back as it went in.
    """
    return FORMAT + pack(value)


def decode(record: bytes) -> Any:
    """Decode a record that `encode` wrote.

    Raises:
        CorruptEntryError: The record is damaged or of a newer format.
    """
    # The decoder leaves alone what comes behind a value, as it does where a length was damaged: so that it has to be this.
    both = unpack(_PAIR + body(record) + END)
    if both[1] != _END:
        raise _damaged()
    return both[0]


def body(record: bytes) -> bytes:
    """The bytes of a record behind its format byte.

    Raises:
        CorruptEntryError: The record is empty or of a format that this version does not know.
    """
    if record[:1] != FORMAT:
        raise CorruptEntryError(
            "a stored entry is damaged or was written by a newer version of agent-gantry-state; "
            "upgrade the package to read it"
        )
    return record[1:]


def store_as_dict(kind: type, plain: Callable[[Any], dict[str, Any]]) -> None:
    """Let values of exactly *kind* be stored as the dict that *plain* makes of them."""
    _ALIASES[kind] = plain


# Encoding. Each extension is packed by a C call of its own, so that depth is counted by choosing the function that the
# next call gets: the C encoder has no other way to hand a number down.


def _default_at(depth: int) -> _Default:
    def default(value: Any) -> Any:
        encoder = _ENCODERS.get(type(value))
        if encoder is None:
            return _ALIASES[type(value)](value)  # a KeyError here ends the encoding: the walk says what is wrong
        if depth >= _MAX_EXTENSION_DEPTH:
            raise _TooDeep
        return encoder(value, depth + 1)

    return default


def _nested(value: Any, depth: int) -> bytes:
    return _packb(value, _DEFAULTS[depth], _OPTIONS)


def _encode_set(code: int) -> Callable[[Any, int], Any]:
    def encoder(value: Any, depth: int) -> Any:
        return _Ext(code, _packb(sorted([_nested(item, depth) for item in value]), None, _OPTIONS))

    return encoder


def _encode_int(value: int, depth: int) -> Any:
    return _Ext(_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _has_offset(value: dt.datetime | dt.time) -> bool:
    """Whether a time is naive or its zone gives an offset, so that it can be written down."""
    try:
        return value.tzinfo is None or value.utcoffset() is not None
    except Exception:  # noqa: BLE001 - a zone of somebody's own
        return False


def _encode_datetime(value: dt.datetime, depth: int) -> Any:
    if not _has_offset(value):
        raise TypeError
    return _Ext(_DATETIME, _encode_clock(value))


def _encode_time(value: dt.time, depth: int) -> Any:
    if not _has_offset(value):
        raise TypeError
    return _Ext(_TIME, _encode_clock(value))


def _encode_clock(value: dt.datetime | dt.time) -> bytes:
    # The offset on its own: fromisoformat takes one of less than a second for none.
    offset = value.utcoffset()
    microseconds = None if offset is None else offset // dt.timedelta(microseconds=1)
    return _packb([value.fold, value.replace(tzinfo=None).isoformat(), microseconds])


def _encode_path(value: pathlib.PurePath, depth: int) -> Any:
    return _Ext(_PATH, f"{_PATH_KINDS[type(value)]}\0{value}".encode("utf-8", "surrogatepass"))


_ENCODERS: dict[type, Callable[[Any, int], Any]] = {
    tuple: lambda value, depth: _Ext(_TUPLE, _nested(list(value), depth)),
    set: _encode_set(_SET),
    frozenset: _encode_set(_FROZENSET),
    int: _encode_int,
    dt.datetime: _encode_datetime,
    dt.date: lambda value, depth: _Ext(_DATE, value.isoformat().encode()),
    dt.time: _encode_time,
    dt.timedelta: lambda value, depth: _Ext(_TIMEDELTA, _packb([value.days, value.seconds, value.microseconds])),
    decimal.Decimal: lambda value, depth: _Ext(_DECIMAL, str(value).encode()),
    uuid.UUID: lambda value, depth: _Ext(_UUID, value.bytes),
    **dict.fromkeys(_PATH_KINDS, _encode_path),
}
_DEFAULTS: list[_Default] = [_default_at(depth) for depth in range(_MAX_EXTENSION_DEPTH + 1)]


def _tagged(value: Any, depth: int, level: int) -> Any:
    """Rewrite what the C encoder stops at (other keys than str, lone surrogates) as extensions, at any depth."""
    kind = type(value)
    if kind is str:
        return value if _is_utf8(value) else _Ext(_STR, value.encode("utf-8", "surrogatepass"))
    if kind in _ALIASES:
        value, kind = _ALIASES[kind](value), dict
    if kind not in _CONTAINERS:
        return value
    if level >= MAX_DEPTH:
        raise _TooDeep
    if kind is list:
        return [_tagged(item, depth, level + 1) for item in value]
    if kind is dict and all(type(key) is str and _is_utf8(key) for key in value):
        return {key: _tagged(item, depth, level + 1) for key, item in value.items()}
    if depth >= _MAX_EXTENSION_DEPTH:
        raise _TooDeep
    if kind is tuple:
        return _Ext(_TUPLE, _tagged_pack(list(value), depth + 1, level))
    if kind is dict:
        pairs = [
            [_tagged_pack(key, depth + 1, level + 1), _tagged_pack(item, depth + 1, level + 1)]
            for key, item in value.items()
        ]
        return _Ext(_PAIRS, _packb(pairs, None, _OPTIONS))
    items = sorted([_tagged_pack(item, depth + 1, level + 1) for item in value])
    return _Ext(_SET if kind is set else _FROZENSET, _packb(items, None, _OPTIONS))


def _tagged_pack(value: Any, depth: int, level: int) -> bytes:
    return _packb(_tagged(value, depth, level), _DEFAULTS[depth], _OPTIONS)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# Checking: a walk over the whole value, only made when the C encoder stopped or might have been too kind. It keeps its
# own stack, so that no depth that the encoder takes is too deep for it.


def check(value: Any, path: str) -> None:
    """Refuse what `pack` cannot carry, naming where under *path* it stands.

    Raises:
        UnstorableValueError: With `path`.
    """
    steps = [path]
    children = [_children(value, steps)]
    above = [id(value)]
    inside = {id(value)}
    while children:
        for step, child in children[-1]:
            steps.append(step)
            if id(child) in inside and type(child) not in _ATOMS:
                raise _refusal(steps, "a container that contains itself", "store it without the cycle")
            if len(children) > _FAR:
                raise _too_deep(path)
            children.append(_children(child, steps))
            above.append(id(child))
            inside.add(id(child))
            break
        else:
            children.pop()
            inside.discard(above.pop())
            steps.pop()


def _children(value: Any, steps: list[str]) -> Iterator[tuple[str, Any]]:
    """What is in *value* and worth a look; refuses *value* itself if it cannot be carried."""
    kind = type(value)
    if kind in _ATOMS:
        if kind in (dt.datetime, dt.time) and not _has_offset(value):
            raise _refusal(steps, f"a {name_of(kind)} whose tzinfo gives no offset", "give it a fixed offset")
        return iter(())
    if kind in _ALIASES:
        value, kind = _ALIASES[kind](value), dict
    if kind not in _CONTAINERS:
        raise _refusal(steps, f"a value of type {name_of(kind)}", _conversion(kind))
    if kind is dict:
        return _dict_children(value)
    # Most containers hold nothing but atoms: one look at the set of their types is enough.
    if _TIMELESS.issuperset(map(type, value)):
        return iter(())
    return ((f"[{index}]", item) for index, item in enumerate(value))


def _dict_children(value: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    if not _TIMELESS.issuperset(map(type, value)):
        for key in value:
            yield f"{{key of type {name_of(type(key))}}}", key
    if not _TIMELESS.issuperset(map(type, value.values())):
        for key, item in value.items():
            yield f"[{shown(key)}]", item


def _too_deep(path: str) -> UnstorableValueError:
    return UnstorableValueError(
        f"{path or 'the value'} is nested too deeply: store it flatter, with at most {MAX_DEPTH} levels of which at most "
        f"{_MAX_EXTENSION_DEPTH} are tuples, sets or dicts with keys other than str",
        path=path,
    )


def _refusal(steps: list[str], what: str, hint: str) -> UnstorableValueError:
    few = steps if len(steps) <= 12 else [*steps[:10], "...", steps[-1]]
    shown = "".join(map(shortened, few)) or "the value"
    return UnstorableValueError(f"{shown} holds {what}, which cannot be stored; {hint}", path="".join(few))


def shown(key: Any) -> str:
    """A key, or anything that was used as one, for an error: as it is written, if that can be hostile to nobody."""
    kind = type(key)
    if kind not in IMMUTABLE:
        return f"<{name_of(kind)}>"
    if kind is int and key.bit_length() > _LONGEST_INT:
        return f"<int of {key.bit_length()} bits>"
    return repr(key)


def name_of(kind: type) -> str:
    """The name of a type, without asking its metaclass, which may be anybody's."""
    name = _NAME(kind)
    if getattr(builtins, name, kind) is kind:
        return shortened(name)
    # numpy.bool is not the bool that may be stored.
    module = _MODULE(kind)
    return shortened(f"{module}.{name}" if type(module) is str else name)


def shortened(text: str) -> str:
    """*text*, cut in the middle if it is long: a key may be anything, and messages are read by people and models."""
    return text if len(text) <= 60 else f"{text[:40]}...{text[-10:]}"


#: Python writes out no int of more digits than a limit that can be set, and takes long for one that is long.
_LONGEST_INT: Final = 1024
_NAME: Final = vars(type)["__name__"].__get__
_MODULE: Final = vars(type)["__module__"].__get__
_MRO: Final = vars(type)["__mro__"].__get__
_MEMBERS: Final = vars(type)["__dict__"].__get__

_ANNOTATE: Final = "or annotate the memory's parameter with a model or dataclass that has it as a field"


def _conversion(kind: type) -> str:
    """What to write instead, for the types that people try. Looks at the type alone: the value may be hostile."""
    bases = _MRO(kind)
    members: set[str] = set().union(*map(_MEMBERS, bases))

    def extends(base: type) -> bool:
        # `in` would ask the metaclass.
        return any(each is base for each in bases)

    if kind is bytearray or kind is memoryview:
        return "convert it with bytes(value)"
    if "__await__" in members:
        return "await it, and store what it gives"
    if "to_pydatetime" in members:
        return "convert it with value.to_pydatetime()"
    if "readlines" in members:
        return "store what is in it, or its path"
    if extends(enum.Enum):
        return "store value.value"
    if extends(pathlib.PurePath):
        return "convert it with str(path)"
    if extends(tuple) and "_asdict" in members:
        return "convert it with value._asdict() or tuple(value)"
    if "model_dump" in members:
        return f"convert it with value.model_dump(), {_ANNOTATE}"
    if "__dataclass_fields__" in members:
        return f"convert it with dataclasses.asdict(value), {_ANNOTATE}"
    if "tolist" in members:
        return "convert it with value.tolist()"
    if {"to_dict", "iloc"} <= members:
        return "convert it with value.to_dict()"
    for base in (str, bytes, int, float, list, tuple, set, frozenset, decimal.Decimal, uuid.UUID):
        if extends(base):
            return f"convert it with {base.__name__}(value)"
    if {"keys", "__getitem__"} <= members:
        return "convert it with dict(value)"
    if "__iter__" in members:
        return "convert it with list(value)"
    return (
        "convert it to None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, datetime, date, time, "
        "timedelta, Decimal, UUID or a pathlib path"
    )


# Decoding.


def _decode_extension(code: int, data: Any) -> Any:
    decoder = _DECODERS.get(code)
    if decoder is None:
        raise CorruptEntryError(
            "a stored entry is damaged or was written by a newer version of agent-gantry-state; "
            "upgrade the package to read it"
        )
    return decoder(bytes(data))


def _nested_items(data: bytes) -> Iterator[Any]:
    return map(unpack, _unpack_plain(data))


def _decode_clock(kind: Any, data: bytes) -> Any:
    fold, text, microseconds = _unpack_plain(data)
    zone = None if microseconds is None else dt.timezone(dt.timedelta(microseconds=microseconds))
    return kind.fromisoformat(text).replace(fold=fold, tzinfo=zone)


def _decode_path(data: bytes) -> pathlib.PurePath:
    kind, _, text = data.decode("utf-8", "surrogatepass").partition("\0")
    try:
        return _PATH_TYPES[kind](text)  # type: ignore[no-any-return]
    except NotImplementedError:
        # A concrete path of the other operating system: its pure kind is the nearest that exists here.
        return _PURE[kind](text)


_DECODERS: dict[int, Callable[[bytes], Any]] = {
    _TUPLE: lambda data: tuple(unpack(data)),
    _SET: lambda data: set(_nested_items(data)),
    _FROZENSET: lambda data: frozenset(_nested_items(data)),
    _INT: lambda data: int.from_bytes(data, "big", signed=True),
    _DATETIME: lambda data: _decode_clock(dt.datetime, data),
    _DATE: lambda data: dt.date.fromisoformat(data.decode()),
    _TIME: lambda data: _decode_clock(dt.time, data),
    _TIMEDELTA: lambda data: dt.timedelta(*_unpack_plain(data)),
    _DECIMAL: lambda data: decimal.Decimal(data.decode()),
    _UUID: lambda data: uuid.UUID(bytes=data),
    _PAIRS: lambda data: {unpack(key): unpack(item) for key, item in _unpack_plain(data)},
    _STR: lambda data: data.decode("utf-8", "surrogatepass"),
    _PATH: _decode_path,
}
