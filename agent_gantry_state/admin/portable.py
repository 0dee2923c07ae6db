"""Values as JSON and back, exactly: what stands in an export and on the command line.

What JSON has stands for itself: null, true, 1, 1.5, "text", a list, an object with text keys. Every other type is an object
with one key that begins with a dollar, such as {"$tuple": [1, 2]}; so a dict with a key that begins with one is written as
{"$dict": [[key, value], ...]}. The tags are part of the stored format: none is ever given another meaning.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import math
import pathlib
import struct
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn

from agent_gantry_state import codec
from agent_gantry_state.codec import shortened
from agent_gantry_state.errors import StateError

__all__ = ["NotPortableError", "dumps", "from_json", "loads", "to_json"]

#: Integers from here on are not written as numbers, for most readers of JSON would round them.
_LARGE: Final = 1 << 53
#: What is nested deeper than this is written as the bytes that a store has, for readers of JSON have limits of their own.
_DEEP: Final = 64
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_NAN: Final = struct.pack(">d", math.nan)

_PATHS: Final[dict[str, type[pathlib.PurePath]]] = {
    "pure-posix": pathlib.PurePosixPath,
    "pure-windows": pathlib.PureWindowsPath,
    "posix": pathlib.PosixPath,
    "windows": pathlib.WindowsPath,
}
_KINDS: Final = {kind: name for name, kind in _PATHS.items()}


class NotPortableError(ValueError):
    """JSON that stands for no value; it says where in it."""


# Writing.


def to_json(value: Any, depth: int = 0) -> Any:
    """A value that a store gave back, as what `json` writes."""
    kind = type(value)
    if kind is str:
        return value if _is_plain(value) else {"$str": _base64(value.encode("utf-8", "surrogatepass"))}
    if kind is bool or value is None:
        return value
    if kind is int:
        return value if -_LARGE < value < _LARGE else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": _not_finite(value)}
    atom = _ATOMS.get(kind)
    if atom is not None:
        tag, write = atom
        return {tag: write(value)}
    if depth >= _DEEP:
        return {"$packed": _base64(codec.repack(value))}
    depth += 1
    if kind is list:
        return [to_json(item, depth) for item in value]
    if kind is dict:
        if all(type(key) is str and key[:1] != "$" and _is_plain(key) for key in value):
            return {key: to_json(item, depth) for key, item in value.items()}
        return {"$dict": [[to_json(key, depth), to_json(item, depth)] for key, item in value.items()]}
    if kind is tuple:
        return {"$tuple": [to_json(item, depth) for item in value]}
    # In the order that the store has, so that one set is always written in one way.
    return {"$set" if kind is set else "$frozenset": [to_json(item, depth) for item in sorted(value, key=codec.repack)]}


def dumps(tree: Any) -> str:
    """JSON on one line, in ASCII: it shows on every terminal as what it is."""
    return json.dumps(tree, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def _is_plain(text: str) -> bool:
    # Two surrogates behind each other would be read as the one character that they make up elsewhere.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _not_finite(value: float) -> str:
    data = struct.pack(">d", value)
    return data.hex() if math.isnan(value) and data != _NAN else repr(value)


def _clock(value: dt.datetime | dt.time) -> list[Any]:
    offset = value.utcoffset()
    return [value.replace(tzinfo=None, fold=0).isoformat(), None if offset is None else offset // _MICROSECOND, value.fold]


def _path(value: pathlib.PurePath) -> list[str]:
    text = str(value)
    return [_KINDS[type(value)], *([text] if _is_plain(text) else ["", _base64(text.encode("utf-8", "surrogatepass"))])]


_ATOMS: Final[dict[type, tuple[str, Callable[[Any], Any]]]] = {
    bytes: ("$bytes", _base64),
    dt.datetime: ("$datetime", _clock),
    dt.date: ("$date", dt.date.isoformat),
    dt.time: ("$time", _clock),
    dt.timedelta: ("$timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    decimal.Decimal: ("$decimal", str),
    uuid.UUID: ("$uuid", str),
    **dict.fromkeys(_KINDS, ("$path", _path)),
}


# Reading. Whatever is not written as `to_json` writes it is refused, so that nothing is read as something else.


def loads(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        NotPortableError: It is none, has a key twice in one object, or a number that cannot be kept.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_float, parse_int=_parsed_int
        )
    except NotPortableError:
        raise
    except RecursionError:
        problem = "it is nested too deeply"
    except UnicodeDecodeError:
        problem = "it is not UTF-8"
    except json.JSONDecodeError as error:
        problem = f"it is no JSON: {error.msg} at column {error.colno}"
    # Out here, for Python's error has the text in it.
    raise NotPortableError(problem)


def from_json(tree: Any) -> Any:
    """The value that `to_json` has written.

    Raises:
        NotPortableError: It stands for none; the message says where.
    """
    try:
        return _value(tree, "")
    except RecursionError:
        pass
    raise NotPortableError("it is nested too deeply")


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = [*pairs]
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotPortableError("a key is there twice in one object")
    return found


def _no_number(text: str) -> NoReturn:
    raise NotPortableError(f'{text} is no JSON; write {{"$float": "nan"}}, "inf" or "-inf"')


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NotPortableError("a number is larger than a float can be")
    return value


def _parsed_int(text: str) -> int:
    if len(text) > 20:
        raise NotPortableError('a whole number is that long; write it in hexadecimal, {"$int": "0x..."}')
    return int(text)


def _value(tree: Any, path: str) -> Any:
    kind = type(tree)
    if kind is list:
        return [_value(item, f"{path}[{index}]") for index, item in enumerate(tree)]
    if kind is str:
        if not _is_plain(tree):
            _refuse(path, 'half of a character stands alone; write {"$str": "..."}')
        return tree
    if kind is not dict:
        return tree
    tag = next((key for key in tree if key[:1] == "$"), None)
    if tag is None:
        return {_value(key, path): _value(item, f"{path}[{shortened(repr(key))}]") for key, item in tree.items()}
    if len(tree) > 1:
        _refuse(path, 'an object with a key that begins with $ has no other; write {"$dict": [[key, value], ...]}')
    read = _TAGS.get(tag)
    if read is None:
        _refuse(path, f"{shortened(tag)} is none of {', '.join(_TAGS)}")
    inner = tree[tag]
    path = f"{path}[{tag}]"
    try:
        value = read(inner, path)
        # As texts, for True and 1.0 are equal to 1.
        exact = tag not in _LEAVES or dumps(to_json(value)) == dumps(tree) or _is_foreign(inner, value)
    except NotPortableError:
        raise
    except (StateError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError):
        value, exact = None, False
    if not exact:
        _refuse(path, "this is not how such a value is written")
    return value


def _refuse(path: str, problem: str) -> NoReturn:
    raise NotPortableError(f"at {path}: {problem}" if path else problem)


def _unbase64(text: str, path: str = "") -> bytes:
    return base64.b64decode(text.encode(), validate=True)


def _items(inner: Any, path: str) -> list[Any]:
    if type(inner) is not list:
        raise TypeError
    return [_value(item, f"{path}[{index}]") for index, item in enumerate(inner)]


def _set(kind: Callable[[Any], Any]) -> Callable[[Any, str], Any]:
    def read(inner: Any, path: str) -> Any:
        items = _items(inner, path)
        found = kind(items)
        if len(found) < len(items):
            _refuse(path, "an item is there twice")
        return found

    return read


def _dict(inner: Any, path: str) -> dict[Any, Any]:
    pairs = _items(inner, path)
    if any(type(pair) is not list for pair in pairs):
        raise TypeError
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse(path, "a key is there twice")
    return found


def _read_float(inner: str, path: str) -> float:
    return float(inner) if len(inner) < 16 else float(struct.unpack(">d", bytes.fromhex(inner))[0])


def _read_clock(kind: Any) -> Callable[[Any, str], Any]:
    def read(inner: Any, path: str) -> Any:
        text, offset, fold = inner
        zone = None if offset is None else dt.timezone(dt.timedelta(microseconds=offset))
        return kind.fromisoformat(text).replace(fold=fold, tzinfo=zone)

    return read


def _read_path(inner: Any, path: str) -> pathlib.PurePath:
    name, text, *rest = inner
    if rest:
        text = _unbase64(*rest).decode("utf-8", "surrogatepass")
    kind = _PATHS[name]
    try:
        return kind(text)
    except NotImplementedError:
        # A concrete path of the other operating system: its pure kind is the nearest that exists here, as for a store.
        return _PATHS[f"pure-{name}"](text)


def _is_foreign(inner: Any, value: Any) -> bool:
    """Whether this is a concrete path of the other operating system."""
    return isinstance(value, pathlib.PurePath) and [f"pure-{inner[0]}", *inner[1:]] == _path(value)


_TAGS: Final[dict[str, Callable[[Any, str], Any]]] = {
    "$bytes": _unbase64,
    "$datetime": _read_clock(dt.datetime),
    "$date": lambda inner, path: dt.date.fromisoformat(inner),
    "$time": _read_clock(dt.time),
    "$timedelta": lambda inner, path: dt.timedelta(*inner),
    "$decimal": lambda inner, path: decimal.Decimal(inner),
    "$uuid": lambda inner, path: uuid.UUID(inner),
    "$path": _read_path,
    "$int": lambda inner, path: int(inner, 16),
    "$float": _read_float,
    "$str": lambda inner, path: _unbase64(inner).decode("utf-8", "surrogatepass"),
    "$packed": lambda inner, path: codec.decode(codec.FORMAT + _unbase64(inner)),
    "$tuple": lambda inner, path: tuple(_items(inner, path)),
    "$set": _set(set),
    "$frozenset": _set(frozenset),
    "$dict": _dict,
}
#: Tags of which each value is written in one way only.
_LEAVES: Final = frozenset({*list(_TAGS)[: list(_TAGS).index("$packed")]})
