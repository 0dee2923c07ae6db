"""Values come back exactly as they went in, or are refused with the way to them; bytes can do nothing but be read."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import math
import pathlib
import random
import re
import subprocess
import sys
import textwrap
import uuid
from typing import Any, NamedTuple

import ormsgpack
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_gantry_state import CodecError, CorruptEntryError, Memory, UnstorableValueError, codec

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

offsets = st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23))
zones = st.none() | st.just(dt.timezone.utc) | offsets.map(dt.timezone)
folds = st.sampled_from([0, 1])
segments = st.text(st.characters(codec="utf-8", exclude_characters='/\\:*?"<>|\0'), min_size=1, max_size=6)

# Values that may be a key, or stand in a set.
hashable_atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**200), 2**200),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, -(2**64)]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324]),
    st.text(st.characters(exclude_categories=()), max_size=8),
    st.sampled_from(["", "\ud800", "a\udfff\0b", "\N{GRINNING FACE}"]),
    st.binary(max_size=8),
    st.builds(lambda when, fold: when.replace(fold=fold), st.datetimes(timezones=zones), folds),
    st.dates(),
    st.builds(lambda time, zone, fold: time.replace(tzinfo=zone, fold=fold), st.times(), zones, folds),
    st.timedeltas(),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.sampled_from([decimal.Decimal(text) for text in ("-0", "1.50", "1E+3", "Infinity", "NaN123")]),
    st.uuids(),
    st.lists(segments, max_size=3).map(lambda parts: pathlib.PurePosixPath(*parts)),
    st.lists(segments, max_size=3).map(lambda parts: pathlib.PureWindowsPath("C:/", *parts)),
    st.lists(segments, max_size=3).map(lambda parts: pathlib.Path("/", *parts)),
)
hashables = st.recursive(
    hashable_atoms,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    hashables | st.just(decimal.Decimal("sNaN")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
        st.sets(hashables, max_size=4),
    ),
    max_leaves=12,
)


def canonical(value: Any) -> Any:
    """Type and repr all the way down, the members of sets sorted: two values are equal here only if nothing differs."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [canonical(item) for item in value]
    if kind is dict:
        return kind, [(canonical(key), canonical(item)) for key, item in value.items()]
    if kind in (set, frozenset):
        return kind, sorted((canonical(item) for item in value), key=repr)
    if kind is dt.datetime:
        return kind, repr(value), value.fold
    return kind, repr(value)


@given(values)
@settings(quick, max_examples=300)
def test_every_listed_type_comes_back_exactly(value):
    assert canonical(codec.decode(codec.encode(value))) == canonical(value)


@given(hashables)
@quick
def test_every_listed_hashable_comes_back_as_a_key_and_in_a_set(value):
    decoded = codec.decode(codec.encode({"keys": {value: [value]}, "set": {value}, "frozen": frozenset([value])}))

    assert [canonical(key) for key in decoded["keys"]] == [canonical(value)]
    assert [canonical(item) for item in decoded["set"]] == [canonical(value)]
    assert [canonical(item) for item in decoded["frozen"]] == [canonical(value)]


@given(values)
@quick
def test_equal_values_give_equal_bytes(value):
    packed = codec.pack(value)

    assert codec.pack(codec.unpack(packed)) == packed


@given(st.lists(hashables, max_size=6, unique=True), st.randoms(use_true_random=False))
@quick
def test_the_bytes_of_a_set_do_not_depend_on_how_it_was_filled(items, shuffler):
    shuffled = list(items)
    shuffler.shuffle(shuffled)

    assert codec.pack(set(items)) == codec.pack(set(shuffled))
    assert codec.pack(frozenset(items)) == codec.pack(frozenset(shuffled))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0, False),
        (0.0, -0.0),
        ([1], [True]),
        ([1], (1,)),
        ({1}, {True}),
        ({1}, frozenset({1})),
        ({1: "a"}, {True: "a"}),
        ({1: "a"}, {"1": "a"}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: 1, 2: 2}, {2: 2, 1: 1}),
        ("a", b"a"),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        (dt.datetime(2024, 1, 1, fold=0), dt.datetime(2024, 1, 1, fold=1)),
        (dt.time(1, fold=0), dt.time(1, fold=1)),
        (dt.date(2024, 1, 1), dt.datetime(2024, 1, 1)),
        (pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")),
        (None, "None"),
    ],
)
def test_values_that_differ_in_anything_have_different_bytes(one, other):
    assert codec.pack(one) != codec.pack(other)
    assert codec.pack({"in": [one]}) != codec.pack({"in": [other]})


def test_a_memory_in_a_memory_is_stored_as_a_plain_dict():
    decoded = codec.decode(codec.encode({"inner": Memory(a=1, deep=[Memory(b={2})]), "\ud800": Memory()}))

    assert decoded == {"inner": {"a": 1, "deep": [{"b": {2}}]}, "\ud800": {}}
    assert type(decoded["inner"]) is type(decoded["inner"]["deep"][0]) is type(decoded["\ud800"]) is dict


def test_the_zone_of_a_datetime_comes_back_as_its_offset():
    zone = dt.timezone(dt.timedelta(hours=5, minutes=30, seconds=7, microseconds=9))
    when = dt.datetime(1, 2, 3, 4, 5, 6, 7, tzinfo=zone, fold=1)

    decoded = codec.decode(codec.encode(when))

    assert (decoded, decoded.utcoffset(), decoded.fold) == (when, when.utcoffset(), 1)


# Refusals.


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Mapping(dict):
    pass


class Sequence(list):
    pass


class Colour(enum.Enum):
    RED = "crimson"


class Level(enum.IntEnum):
    LOW = 1


class TextLevel(str, enum.Enum):
    LOW = "lowest"


class Point(NamedTuple):
    x: int


@dataclasses.dataclass
class Plan:
    step: int


class Model(pydantic.BaseModel):
    step: int


class Thing:
    pass


REFUSED = [
    pytest.param(lambda: bytearray(b"secret"), "bytes(value)", id="bytearray"),
    pytest.param(lambda: bytearray(), "bytes(value)", id="empty bytearray"),
    pytest.param(lambda: bytearray(70_000), "bytes(value)", id="long bytearray"),
    pytest.param(lambda: memoryview(b"secret"), "bytes(value)", id="memoryview"),
    pytest.param(lambda: Text("secret"), "str(value)", id="str subclass"),
    pytest.param(lambda: Number(424242), "int(value)", id="int subclass"),
    pytest.param(lambda: Mapping(secret="secret"), "dict(value)", id="dict subclass"),
    pytest.param(lambda: Sequence(["secret"]), "list(value)", id="list subclass"),
    pytest.param(lambda: Colour.RED, "value.value", id="Enum"),
    pytest.param(lambda: Level.LOW, "value.value", id="IntEnum"),
    pytest.param(lambda: TextLevel.LOW, "value.value", id="str Enum"),
    pytest.param(lambda: Point(424242), "_asdict()", id="namedtuple"),
    pytest.param(lambda: collections.OrderedDict(secret="secret"), "dict(value)", id="OrderedDict"),
    pytest.param(lambda: collections.deque(["secret"]), "list(value)", id="deque"),
    pytest.param(lambda: Plan(424242), "dataclasses.asdict(value), or annotate the memory's parameter", id="dataclass"),
    pytest.param(lambda: Model(step=424242), "model_dump(), or annotate the memory's parameter", id="pydantic model"),
    pytest.param(Thing, "convert it to None, bool, int", id="object"),
    pytest.param(lambda: (item for item in ["secret"]), "list(value)", id="generator"),
    pytest.param(lambda: Thing, "convert it to", id="class"),
    pytest.param(lambda: len, "convert it to", id="function"),
    pytest.param(lambda: 1j, "convert it to", id="complex"),
    pytest.param(lambda: ormsgpack.Ext(1, b"secret"), "convert it to", id="Ext"),
    *[
        pytest.param(lambda packed=packed: ormsgpack.Fragment(packed), "convert it to", id=f"Fragment of {packed!r}")
        for packed in (b"\x01", b"\xd4\x01\x90")
        if hasattr(ormsgpack, "Fragment")
    ],
]


@pytest.mark.parametrize(("make", "hint"), REFUSED)
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda value: value, ""),
        (lambda value: {"plan": {"steps": [0, 1, value]}}, "['plan']['steps'][2]"),
        (lambda value: {"plan": ("\ud800", [value])}, "['plan'][1][0]"),
        (lambda value: [{7: {"x": (value,)}}], "[0][7]['x'][0]"),
    ],
)
def test_what_would_not_come_back_is_refused_with_its_path_and_the_conversion(make, hint, wrap, path):
    with pytest.raises(UnstorableValueError) as caught:
        codec.encode(wrap(make()))

    assert caught.value.path == path
    assert hint in str(caught.value)
    assert path in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert caught.value.committed is False
    assert not re.search("secret|424242|crimson|lowest", str(caught.value))


@pytest.mark.skipif(not hasattr(ormsgpack, "Fragment"), reason="this version of ormsgpack has none")
@pytest.mark.parametrize(
    "before", ["", "from ormsgpack import Fragment as used, Ext", "import ormsgpack as m; kept = m.Fragment(b'\\x02')"]
)
def test_bytes_that_are_written_as_they_are_are_found_whoever_else_uses_them(before):
    script = f"""
        {before}
        from agent_gantry_state import UnstorableValueError, codec
        import ormsgpack

        for value in ([ormsgpack.Fragment(b"\\x01")], {{"a": [1, {{"b": ormsgpack.Fragment(b"\\x01")}}]}}):
            try:
                codec.pack(value)
            except UnstorableValueError:
                continue
            raise AssertionError
    """

    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_values_are_not_looked_through_where_no_such_bytes_are():
    script = """
        import sys
        from agent_gantry_state import codec

        looked = []
        sys.setprofile(lambda frame, event, argument: looked.append(frame.f_code.co_name))
        codec.pack({"a": [1, 2.5, "b"]})
        sys.setprofile(None)
        assert "pack" in looked
        assert "_is_known" not in looked
    """

    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


@pytest.mark.parametrize(
    "key", [Text("k"), Number(3), Colour.RED, Level.LOW, TextLevel.LOW, Point(1), memoryview(b"k"), Thing(), (1, Thing())]
)
def test_keys_and_members_of_sets_are_refused_like_values(key):
    for value in ({key: 1}, {"deep": [{key: 1}]}, {key}, [frozenset([key])]):
        with pytest.raises(UnstorableValueError):
            codec.encode(value)


class NoOffset(dt.tzinfo):
    def utcoffset(self, when):
        return None


class BrokenZone(dt.tzinfo):
    def utcoffset(self, when):
        raise ValueError("secret")


@pytest.mark.parametrize("zone", [NoOffset(), BrokenZone()])
@pytest.mark.parametrize("make", [lambda zone: dt.datetime(2024, 1, 1, tzinfo=zone), lambda zone: dt.time(1, tzinfo=zone)])
def test_a_time_whose_zone_gives_no_offset_is_refused_with_its_path(zone, make):
    with pytest.raises(UnstorableValueError) as caught:
        codec.encode({"when": [make(zone)]})

    assert caught.value.path == "['when'][0]"
    assert "secret" not in str(caught.value)


def test_cycles_are_refused_with_their_path():
    numbers: list[Any] = [1]
    numbers.append({"again": numbers})
    mapping: dict[Any, Any] = {}
    mapping["\ud800"] = (mapping,)
    memory = Memory()
    memory["self"] = [memory]

    for value, path in ((numbers, "[1]['again']"), (mapping, "['\\ud800'][0]"), (memory, "['self'][0]")):
        with pytest.raises(UnstorableValueError, match="contains itself") as caught:
            codec.encode(value)
        assert caught.value.path == path


def test_a_container_that_occurs_twice_is_no_cycle():
    shared = [1]

    assert codec.decode(codec.encode({"a": shared, "b": (shared, {2: shared})})) == {"a": [1], "b": ([1], {2: [1]})}


def nested(levels: int, wrap: Any, value: Any = 1) -> Any:
    for _ in range(levels):
        value = wrap(value)
    return value


WRAPS = [
    pytest.param(lambda value: [value], id="lists"),
    pytest.param(lambda value: {"a": value}, id="dicts"),
    pytest.param(lambda value: ["\ud800", value], id="lists with surrogates"),
    pytest.param(lambda value: (value,), id="tuples"),
    pytest.param(lambda value: {1: value}, id="dicts with int keys"),
    pytest.param(lambda value: [(value,)], id="tuples in lists"),
    pytest.param(Memory, id="memories"),
]


@pytest.mark.parametrize("wrap", WRAPS)
def test_whatever_depth_is_encoded_is_decoded_and_what_is_deeper_is_a_clear_error(wrap):
    if wrap is Memory:
        wrap = lambda value: Memory(a=value)  # noqa: E731
    taken = [0]
    for levels in (*range(1, 30), 100, 200, 400, 1000, 1020, 1023, 1024, 1025, 2000):
        try:
            record = codec.encode(nested(levels, wrap))
        except UnstorableValueError as error:
            assert "nested too deeply" in str(error)  # noqa: PT017
        else:
            taken.append(levels)
            assert codec.encode(codec.decode(record)) == record
    assert max(taken) >= 20
    assert taken == sorted(taken)


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}, lambda value: ["\ud800", value]])
def test_lists_and_dicts_two_hundred_deep_are_stored(wrap):
    value = nested(codec.MAX_DEPTH - 1, wrap, [])

    assert codec.encode(codec.decode(codec.encode(value))) == codec.encode(value)


# Objects that would do something if anybody touched them.


class Hostile:
    """Records every call that reaches it, and raises."""

    calls: list[str] = []

    def _called(self, name):
        Hostile.calls.append(name)
        raise RuntimeError("touched")

    def __getattr__(self, name):
        self._called(f"__getattr__ {name}")

    def __eq__(self, other):
        self._called("__eq__")

    def __hash__(self):
        return 7

    def __repr__(self):
        self._called("__repr__")

    __str__ = __repr__

    def __reduce_ex__(self, protocol):
        self._called("__reduce_ex__")

    def __reduce__(self):
        self._called("__reduce__")

    def __iter__(self):
        self._called("__iter__")

    def __len__(self):
        self._called("__len__")

    def __bool__(self):
        self._called("__bool__")

    def __getitem__(self, key):
        self._called("__getitem__")

    @property
    def __class__(self):
        self._called("__class__")

    @property
    def __dict__(self):
        self._called("__dict__")


class HostileText(str):
    def __eq__(self, other):
        Hostile.calls.append("str.__eq__")
        raise RuntimeError("touched")

    def __hash__(self):
        return 11

    def __repr__(self):
        Hostile.calls.append("str.__repr__")
        raise RuntimeError("touched")

    __str__ = encode = __repr__


class HostileDict(dict):
    def __iter__(self):
        Hostile.calls.append("dict.__iter__")
        raise RuntimeError("touched")

    keys = values = items = __len__ = __getitem__ = __iter__


class HostileZone(dt.datetime):
    def isoformat(self, *args):
        Hostile.calls.append("isoformat")
        raise RuntimeError("touched")

    utcoffset = isoformat


@pytest.mark.parametrize(
    "make", [Hostile, lambda: HostileText("secret"), lambda: HostileDict(a=1), lambda: HostileZone(1, 1, 1)]
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: value,
        lambda value: [value, "\ud800"],
        lambda value: {"a": (value,)},
        lambda value: {1: value},
        lambda value: b"\xc4" if value is None else [b"\xc4", {"a": value}],
    ],
)
def test_a_hostile_object_is_refused_without_being_touched(make, wrap):
    Hostile.calls.clear()
    value = wrap(make())

    with pytest.raises(UnstorableValueError):
        codec.encode(value)

    assert Hostile.calls == []


def test_a_hostile_key_is_refused_without_being_touched():
    for value in ({Hostile(): 1}, {HostileText("k"): 1}, {Hostile()}, [{HostileText("k")}], {(Hostile(),): 1}):
        Hostile.calls.clear()

        with pytest.raises(UnstorableValueError):
            codec.encode(value)

        assert Hostile.calls == []


SAMPLE: dict[Any, Any] = {
    "none": None,
    "numbers": [True, 1, 2**80, -(2**80), 1.5, math.nan, -0.0],
    "text": ["plain", "\ud800", b"bytes"],
    "sets": [{1, "a"}, frozenset({(1, 2)})],
    3: (dt.datetime(2024, 1, 2, 3, tzinfo=dt.timezone.utc, fold=1), dt.date(2024, 1, 2), dt.time(3, 4)),
    "others": [dt.timedelta(1, 2, 3), decimal.Decimal("1.50"), uuid.UUID(int=5), pathlib.PurePosixPath("/a/b")],
    "windows": [pathlib.PureWindowsPath("C:/a"), pathlib.Path("x")],
}


def test_decoding_imports_and_executes_nothing():
    program = f"""
        import sys
        from agent_gantry_state import CorruptEntryError, codec

        record = bytes.fromhex({codec.encode(SAMPLE).hex()!r})
        events = []
        sys.addaudithook(lambda event, args: events.append(event))
        codec.decode(record)
        for position in range(len(record)):
            try:
                codec.decode(record[:position] + bytes([record[position] ^ 1]) + record[position + 1:])
            except CorruptEntryError:
                pass
        harmful = [e for e in events if e.split(".")[0] in ("import", "exec", "compile", "pickle", "marshal", "open", "os",
                   "subprocess", "socket", "ctypes", "code", "function")]
        print(len(events), harmful)
        events.clear()
        import colorsys
        print("import" in events)
    """

    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )

    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, ran.stderr
    assert lines[0].endswith(" []")
    assert lines[1] == "True"  # the hook does see imports


# Stored records.


@pytest.mark.parametrize(
    "record", [b"", b"\x00\x01", b"\x02\x01", b"\xff", codec.pack({"a": 1}), codec.pack("\x01")[1:] + b"x"]
)
def test_a_record_without_our_format_byte_is_refused(record):
    if record[:1] == codec.FORMAT:
        record = b"\x00" + record
    with pytest.raises(CorruptEntryError):
        codec.decode(record)


def test_a_newer_format_says_to_upgrade():
    with pytest.raises(CorruptEntryError, match="upgrade"):
        codec.decode(bytes([codec.FORMAT[0] + 1]) + codec.pack(1))


def test_every_flipped_byte_gives_a_value_or_a_corrupt_entry():
    record = codec.encode(SAMPLE)
    refused = 0
    for position, byte in enumerate(record):
        for changed in {byte ^ (1 << bit) for bit in range(8)} | {0, 255}:
            try:
                codec.decode(record[:position] + bytes([changed]) + record[position + 1 :])
            except CorruptEntryError:
                refused += 1
    assert refused > 100


def test_every_truncated_record_is_a_corrupt_entry():
    record = codec.encode(SAMPLE)

    for length in range(len(record)):
        with pytest.raises(CorruptEntryError):
            codec.decode(record[:length])


@given(st.binary(max_size=60))
@settings(quick, max_examples=300)
def test_arbitrary_bytes_give_a_value_or_a_corrupt_entry(garbage):
    try:
        codec.decode(codec.FORMAT + garbage)
    except CorruptEntryError:
        return


def test_an_unknown_or_damaged_extension_gives_a_value_or_a_corrupt_entry():
    maker = random.Random(1)
    for code in (code for code in range(256) for _ in range(20)):
        data = maker.randbytes(maker.randrange(12))
        try:
            codec.decode(codec.FORMAT + bytes([0xC7, len(data), code]) + data)
        except CorruptEntryError:
            continue


def test_extensions_nested_without_end_are_a_corrupt_entry():
    packed = b"\x90"
    for _ in range(2_000):
        packed = b"\xc9" + len(packed).to_bytes(4, "big") + b"\x01" + packed

    with pytest.raises(CorruptEntryError):
        codec.decode(codec.FORMAT + packed)


@given(values)
@quick
def test_no_error_about_a_damaged_record_shows_what_is_in_it(value):
    record = codec.encode(["secret-value", value])
    for damaged in (record[:-1], record + b"x", b"\x09" + record, record.replace(b"secret", b"\xff\xfe\xfdret")):
        error = failure_of(damaged)
        assert error is None or "secret" not in str(error)
        assert error is None or (error.__cause__ is None and error.__suppress_context__) or error.__context__ is None


def failure_of(record: bytes) -> CodecError | None:
    try:
        codec.decode(record)
    except CodecError as error:
        return error
    return None


def test_long_keys_are_cut_in_the_message_and_whole_in_the_path():
    with pytest.raises(UnstorableValueError) as caught:
        codec.encode({"x" * 5000: {"y" * 5000: object()}})

    assert len(str(caught.value)) < 500
    assert caught.value.path == f"['{'x' * 5000}']['{'y' * 5000}']"


@pytest.mark.parametrize("microseconds", [1, -1, 999_999, 86_399_999_999, 0])
def test_an_offset_of_less_than_a_second_is_kept(microseconds):
    zone = dt.timezone(dt.timedelta(microseconds=microseconds))

    for value in (dt.datetime(2026, 1, 2, 3, tzinfo=zone), dt.time(3, tzinfo=zone, fold=1)):
        back = codec.decode(codec.encode(value))
        assert repr(back) == repr(value)


@pytest.mark.parametrize("value", [1, "abc", [1, 2], {"a": b"x"}, None])
@pytest.mark.parametrize("behind", [b"\x01", b"\x00", b"\xa4abcd", b"\xc1"], ids=repr)
def test_record_with_something_behind_its_value_is_damaged(value, behind):
    with pytest.raises(CorruptEntryError):
        codec.decode(codec.encode(value) + behind)


def test_record_whose_length_was_damaged_is_not_read_as_a_shorter_one():
    record = codec.encode("abc")
    assert record[1:2] == b"\xa3"

    with pytest.raises(CorruptEntryError):
        codec.decode(record[:1] + b"\xa2" + record[2:])
