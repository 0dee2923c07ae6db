"""Values and keys that are made to do harm: objects that note whoever touches them, and data that looks like ours."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import fractions
import io
import math
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import ormsgpack
from hypothesis import strategies as st

from agent_gantry_state.testing import HOSTILE_TEXTS, VALUES

#: What was called of the objects below.
touched: list[str] = []

_SPECIAL = (
    "__bool__ __bytes__ __contains__ __copy__ __deepcopy__ __dir__ __eq__ __float__ __format__ __ge__ __getattr__ "
    "__getitem__ __getstate__ __gt__ __index__ __int__ __iter__ __le__ __len__ __lt__ __ne__ __neg__ __next__ "
    "__radd__ __add__ __reduce__ __reduce_ex__ __repr__ __setstate__ __sizeof__ __str__ __sub__ __call__ "
    "_asdict encode decode isoformat items keys model_dump tolist tzinfo utcoffset values hex bit_length to_bytes"
).split()


def _noting(name: str) -> Callable[..., Any]:
    def touch(self: object, *args: object, **kwargs: object) -> Any:
        touched.append(name)
        raise RuntimeError(f"touched by {name}")

    return touch


class _Meta(type):
    """A class of classes that notes whoever asks one of its classes for more than its name."""

    def __getattr__(cls, name: str) -> Any:
        touched.append(f"type.{name}")
        raise RuntimeError("touched")

    __name__ = property(_noting("type.__name__"))  # type: ignore[assignment]
    __mro__ = property(_noting("type.__mro__"))  # type: ignore[assignment]
    __repr__ = __str__ = __len__ = __iter__ = __bool__ = _noting("type.__repr__")  # type: ignore[assignment]
    __instancecheck__ = __subclasscheck__ = __eq__ = _noting("type.__eq__")  # type: ignore[assignment]
    __hash__ = type.__hash__


def touchy(base: type, *, lies: type = str, meta: type | None = None) -> type:
    """A subclass of *base* whose every method tells that it was called; as a key it has the hash of "x"."""
    members: dict[str, Any] = {name: _noting(name) for name in _SPECIAL}
    members["__hash__"] = lambda self: hash("x")
    # Said to be something else: `isinstance` believes it, and `type` does not.
    members["__class__"] = property(lambda self: lies)
    return (meta or type(base))(f"Touchy{base.__name__.title()}", (base,), members)


class SameAs(str):
    """A text that is equal to "x" wherever it is compared, and writes itself as another."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other == "x"

    def __hash__(self) -> int:
        return hash("x")

    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        touched.append("encode")
        return b"somebody else"

    def __sizeof__(self) -> int:
        touched.append("__sizeof__")
        return -(10**9)


class Zone(dt.tzinfo):
    """A zone that has an offset only the first time it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def utcoffset(self, when: object) -> Any:
        self.asked += 1
        if self.asked > 1:
            raise ZeroDivisionError
        return dt.timedelta(0)

    def dst(self, when: object) -> None:
        return None


def _generator() -> Iterator[int]:
    yield 1


_BASES = (object, str, int, float, bytes, list, dict, tuple, set, frozenset, decimal.Decimal, dt.datetime, dt.date)
_ARGUMENTS: dict[type, tuple[Any, ...]] = {dt.datetime: (1, 1, 1), dt.date: (1, 1, 1), str: ("x",), int: (1,)}

#: What cannot be stored, made anew each time. Most of it can be told by nothing but its type.
REFUSED: dict[str, Callable[[], Any]] = {
    **{f"touchy {base.__name__}": lambda base=base: touchy(base)(*_ARGUMENTS.get(base, ())) for base in _BASES},
    "liar": lambda: touchy(object, lies=dict)(),
    "made by a hostile class": lambda: touchy(object, meta=_Meta)(),
    "text made by a hostile class": lambda: touchy(str, meta=_Meta)("x"),
    "hostile class": lambda: touchy(object, meta=_Meta),
    "text that is equal to another": lambda: SameAs("y"),
    "zone that forgets": lambda: dt.datetime(2024, 1, 1, tzinfo=Zone()),
    "time in a zone that forgets": lambda: dt.time(1, tzinfo=Zone()),
    "a tag of ours": lambda: ormsgpack.Ext(1, b"\x90"),
    "a tag of ours with rubbish": lambda: ormsgpack.Ext(9, b"\xff"),
    "a tag of nobody": lambda: ormsgpack.Ext(77, b""),
    **(
        {"bytes that are written as they are": lambda: ormsgpack.Fragment(b"\x01")} if hasattr(ormsgpack, "Fragment") else {}
    ),
    "generator": _generator,
    "lock": threading.Lock,
    "thread variables": threading.local,
    "module": lambda: sys,
    "error": lambda: ValueError("y"),
    "error in an error": lambda: ExceptionGroupLike(),
    "code": lambda: _generator.__code__,
    "frame": sys._getframe,
    "method": lambda: [].append,
    "property": lambda: property(),
    "ellipsis": lambda: ...,
    "not implemented": lambda: NotImplemented,
    "complex": lambda: complex(math.nan, 1),
    "fraction": lambda: fractions.Fraction(1, 3),
    "slice": lambda: slice(1),
    "range": lambda: range(10**18),
    "view of keys": lambda: {"x": 1}.keys(),
    "map": lambda: map(str, ()),
    "file in memory": io.BytesIO,
    "bytearray": bytearray,
    "memoryview": lambda: memoryview(b"y"),
    "mapping proxy": lambda: types.MappingProxyType({"x": 1}),
    "chain map": collections.ChainMap,
    "user dict": collections.UserDict,
    "user str": lambda: collections.UserString("x"),
    "subclass of bool's base": lambda: type("Flag", (int,), {})(1),
}


class ExceptionGroupLike(Exception):
    """An error that holds another one."""

    def __init__(self) -> None:
        super().__init__([ValueError("y")])
        self.__cause__ = KeyError("y")


def nested(depth: int, value: Any, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    """*value*, with as many containers around it."""
    for _ in range(depth):
        value = wrap(value)
    return value


#: Where in a value something can stand. Those of `HASHED` need a hash.
WRAPS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda value: value,
    "in a list": lambda value: [1, value],
    "in a dict": lambda value: {"a": value},
    "in a tuple": lambda value: (value,),
    "below a key that is no text": lambda value: {1: value},
    "below a number that is too long to be written": lambda value: {10**5000: value},
    "beside a lone surrogate": lambda value: ["\ud800", value],
    "beside bytes": lambda value: [b"\xc4", value],
    "far down": lambda value: nested(150, value),
}
HASHED: dict[str, Callable[[Any], Any]] = {
    "as a key": lambda value: {value: 1},
    "as a key among others": lambda value: {"a": 1, value: 1},
    "in a set": lambda value: {value},
    "in a tuple that is a key": lambda value: {(1, value): 1},
}


def refused(*, all: bool = False) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What has to be refused, named, and made anew when called: each in two places, or in all."""
    for index, (name, make) in enumerate(REFUSED.items()):
        wraps = [*WRAPS.items(), *(HASHED.items() if _has_hash(make) else ())]
        for at, (place, wrap) in enumerate(wraps):
            if all or (at - index * 2) % len(wraps) < 2:
                yield f"{name} {place}", lambda make=make, wrap=wrap: wrap(make())
    yield "too deep", lambda: nested(100_000, 1)
    yield "too deep a dict", lambda: nested(100_000, 1, lambda inner: {"a": inner})
    yield "too many tuples", lambda: nested(5000, 1, lambda inner: (inner,))
    yield "too many sets", lambda: nested(100, 1, lambda inner: frozenset({inner}))
    for name, around in (("list", lambda inner: [inner]), ("dict", lambda inner: {"a": inner}), ("tuple", lambda i: ([i],))):
        yield f"cycle of a {name}", lambda around=around: _cycle(around)


def _has_hash(make: Callable[[], Any]) -> bool:
    try:
        hash(make())
    except TypeError:
        return False
    return True


def _cycle(around: Callable[[Any], Any]) -> Any:
    inner: list[Any] = []
    inner.append(around(inner))
    return inner


#: Data that other codecs, or this one, would take for more than data.
LOOK_ALIKES: tuple[Any, ...] = (
    {"__type__": "set", "value": [1]},
    {"__class__": "os.system", "args": ["id"]},
    {"py/object": "os.system", "py/reduce": [{"py/type": "os.system"}, {"py/tuple": ["id"]}]},
    {"!!python/object/apply:os.system": ["id"]},
    {"$type": "System.Diagnostics.Process"},
    {"__proto__": {"x": 1}},
    b"\xd4\x01\x90",
    b"cos\nsystem\n(S'id'\ntR.",
    "\x00END",
    b"\xa4\x00END",
    [1, 1, 1],
    {"lc": 1, "type": "constructor", "id": ["os", "system"]},
)

#: Numbers and times at the ends of what there is.
EDGES: tuple[Any, ...] = (
    10**5000,
    -(2**63) - 1,
    2**64,
    5e-324,
    sys.float_info.max,
    -0.0,
    math.nan,
    decimal.Decimal("sNaN123"),
    decimal.Decimal("-NaN"),
    decimal.Decimal("-0E-99"),
    decimal.Decimal("1E+999999"),
    dt.datetime.max,
    dt.datetime.min,
    dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=23, minutes=59))),
    dt.datetime(9999, 12, 31, 23, 59, tzinfo=dt.timezone(-dt.timedelta(hours=23, minutes=59))),
    dt.time(0, tzinfo=dt.timezone(-dt.timedelta(microseconds=1))),
    dt.timedelta.max,
    dt.timedelta.min,
    uuid.UUID(int=2**128 - 1),
    {10**5000: [1]},
    nested(150, 1),
    nested(10, 1, lambda inner: (inner,)),
    {(): {}, (frozenset(),): [set()]},
    {math.inf: 1, 1: "a", "1": 2, None: 3, b"1": 4},
)

_SAMPLES = (*VALUES, *EDGES, *LOOK_ALIKES)
texts = st.text(st.characters(codec=None), max_size=8) | st.sampled_from(HOSTILE_TEXTS[:34])
_atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats()
    | texts
    | st.binary(max_size=8)
    # By their numbers, for some cannot be printed.
    | st.sampled_from(range(len(_SAMPLES))).map(_SAMPLES.__getitem__)
)
_keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary(max_size=3),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
#: Anything that comes back as it went in.
values = st.recursive(
    _atoms,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts, inner, max_size=4)
        | st.dictionaries(_keys, inner, max_size=3)
        | st.tuples(inner)
        | st.sets(_keys, max_size=3)
    ),
    max_leaves=8,
)
