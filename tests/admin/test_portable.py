"""Values as JSON: every one comes back exactly, and nothing is taken for what it is not."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import pathlib
import struct
import sys
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_gantry_state import codec
from agent_gantry_state.admin.portable import NotPortableError, dumps, from_json, loads, to_json
from agent_gantry_state.errors import UnstorableValueError
from agent_gantry_state.testing import HOSTILE_TEXTS, VALUES

pytestmark = pytest.mark.once


def nested(depth, wrap):
    value = 1
    for _ in range(depth):
        value = wrap(value)
    return value


def round_trip(value):
    """What comes back, both as a store has it."""
    text = dumps(to_json(codec.unpack(codec.pack(value))))
    assert text.isascii()
    assert "\n" not in text
    return codec.pack(from_json(loads(text)))


HARD = {
    "surrogates that make a character": "\ud83d\ude00",
    "surrogate in a key": {"\ud83d": 1},
    "keys with a dollar": {"$tuple": [1], "b": 2},
    "empty key": {"": 1},
    "keys of other types": {1: "a", (2,): "b", None: "c", b"": 1, 1.5: 2},
    "NaN with a payload": struct.unpack(">d", bytes.fromhex("7ff8000000000001"))[0],
    "negative NaN": struct.unpack(">d", bytes.fromhex("fff8000000000000"))[0],
    "last plain int": 2**53 - 1,
    "first large int": -(2**53),
    "int of 5000 digits": 10**5000,
    "flat types in depth": nested(200, lambda value: [value]),
    "tuples in depth": nested(20, lambda value: (value,)),
    "set of sets": {frozenset({1, frozenset()}), frozenset()},
    "offset below a second": dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(microseconds=-1))),
    "path with a surrogate": pathlib.PurePosixPath("/a/\udc80"),
    "decimal with a payload": decimal.Decimal("-sNaN123"),
}


@pytest.mark.parametrize("value", [*VALUES, *HOSTILE_TEXTS])
def test_each_type_of_the_codec_comes_back_exactly(value):
    assert round_trip(value) == codec.pack(value)


@pytest.mark.parametrize("name", HARD)
def test_hard_values_come_back_exactly(name):
    assert round_trip(HARD[name]) == codec.pack(HARD[name])


_TEXT = st.text(st.characters(codec=None), max_size=5)
_HASHABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        _TEXT,
        st.binary(max_size=5),
        st.decimals(allow_nan=False),
        st.uuids(),
        st.dates(),
        st.times(timezones=st.none() | st.just(dt.timezone(dt.timedelta(hours=-7, seconds=1)))),
        st.datetimes(timezones=st.none() | st.just(dt.timezone(dt.timedelta(minutes=330)))),
        st.timedeltas(),
        st.sampled_from([pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:\\d")]),
    ),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=6,
)
_VALUES = st.recursive(
    _HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_TEXT, inner, max_size=3)
        | st.dictionaries(_HASHABLE, inner, max_size=3)
        | st.sets(_HASHABLE, max_size=3)
    ),
    max_leaves=10,
)


@given(_VALUES)
def test_any_value_comes_back_exactly(value):
    try:
        packed = codec.pack(value)
    except UnstorableValueError:
        return
    assert round_trip(value) == packed


@given(_VALUES)
def test_one_value_is_written_in_one_way(value):
    try:
        value = codec.unpack(codec.pack(value))
    except UnstorableValueError:
        return
    text = dumps(to_json(value))
    assert dumps(to_json(from_json(loads(text)))) == text


def test_plain_values_are_plain_json():
    value = {"a": [1, 1.5, True, None, "text"], "b": {"c": {}}}
    assert json.loads(dumps(to_json(value))) == value


def test_tags_stay_as_they_are():
    """The format: a change here is one that old exports do not survive."""
    values = {
        "bytes": b"\x00\xff",
        "tuple": (1,),
        "set": {2, 1},
        "frozenset": frozenset(),
        "dict": {1: 2},
        "str": "\ud800",
        "int": -(2**64),
        "float": float("-inf"),
        "datetime": dt.datetime(2026, 3, 29, 2, 30, fold=1, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        "naive": dt.datetime(2026, 3, 29),
        "date": dt.date(2026, 3, 29),
        "time": dt.time(2, 30),
        "timedelta": dt.timedelta(-1, 2, 3),
        "decimal": decimal.Decimal("1.10"),
        "uuid": uuid.UUID(int=1),
        "path": pathlib.PurePosixPath("a/b"),
    }

    assert {key: to_json(value) for key, value in values.items()} == {
        "bytes": {"$bytes": "AP8="},
        "tuple": {"$tuple": [1]},
        "set": {"$set": [1, 2]},
        "frozenset": {"$frozenset": []},
        "dict": {"$dict": [[1, 2]]},
        "str": {"$str": "7aCA"},
        "int": {"$int": "-0x10000000000000000"},
        "float": {"$float": "-inf"},
        "datetime": {"$datetime": ["2026-03-29T02:30:00", 7200000000, 1]},
        "naive": {"$datetime": ["2026-03-29T00:00:00", None, 0]},
        "date": {"$date": "2026-03-29"},
        "time": {"$time": ["02:30:00", None, 0]},
        "timedelta": {"$timedelta": [-1, 2, 3]},
        "decimal": {"$decimal": "1.10"},
        "uuid": {"$uuid": "00000000-0000-0000-0000-000000000001"},
        "path": {"$path": ["pure-posix", "a/b"]},
    }


def test_path_of_the_other_system_is_read_as_its_pure_kind():
    kind, other = ("windows", "pure-windows") if sys.platform != "win32" else ("posix", "pure-posix")
    assert from_json({"$path": [kind, "a"]}) == from_json({"$path": [other, "a"]})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no JSON"),
        ("[1,", "no JSON"),
        (b"\xff", "not UTF-8"),
        ("[" * 200_000, "nested too deeply"),
        ("NaN", "$float"),
        ("-Infinity", "$float"),
        ("1e999", "larger than a float"),
        ("1" * 5000, "$int"),
        ('{"a":1,"a":2}', "twice in one object"),
        ('{"$pickle":"gASVAA=="}', "$pickle is none of"),
        ('{"$tuple":[1],"a":2}', "has no other"),
        ('"\\ud800"', "$str"),
        ('{"\\ud800":1}', "$str"),
        ('[{"a":[{"$bytes":"?"}]}]', "at [0]['a'][0][$bytes]"),
        ('{"$bytes":1}', "not how such a value is written"),
        ('{"$bytes":"AA"}', "not how such a value is written"),
        ('{"$bytes":"AB=="}', "not how such a value is written"),
        ('{"$tuple":1}', "not how such a value is written"),
        ('{"$tuple":{"a":1}}', "not how such a value is written"),
        ('{"$set":[1,1]}', "an item is there twice"),
        ('{"$set":[1,true]}', "an item is there twice"),
        ('{"$set":[[1]]}', "not how such a value is written"),
        ('{"$dict":[[1,2],[1,3]]}', "a key is there twice"),
        ('{"$dict":[[1]]}', "not how such a value is written"),
        ('{"$dict":[[[],1]]}', "not how such a value is written"),
        ('{"$dict":["ab"]}', "not how such a value is written"),
        ('{"$dict":[{"$set":[1,2]}]}', "not how such a value is written"),
        ('{"$dict":[{"a":1,"b":2}]}', "not how such a value is written"),
        ('{"$timedelta":[true,0,0]}', "not how such a value is written"),
        ('{"$timedelta":[1.0,0,0]}', "not how such a value is written"),
        ('{"$datetime":["2026-03-29T00:00:00",0,false]}', "not how such a value is written"),
        ('{"$int":"0x1"}', "not how such a value is written"),
        ('{"$int":"99999999999999999999"}', "not how such a value is written"),
        ('{"$float":"1.5"}', "not how such a value is written"),
        ('{"$float":"3ff0000000000000"}', "not how such a value is written"),
        ('{"$str":"YQ=="}', "not how such a value is written"),
        ('{"$date":"20260329"}', "not how such a value is written"),
        ('{"$date":"2026-02-30"}', "not how such a value is written"),
        ('{"$datetime":["2026-03-29T00:00:00+02:00",null,0]}', "not how such a value is written"),
        ('{"$datetime":["2026-03-29T00:00:00",0.5,0]}', "not how such a value is written"),
        ('{"$time":["02:30:00",null,2]}', "not how such a value is written"),
        ('{"$timedelta":[9999999999,0,0]}', "not how such a value is written"),
        ('{"$timedelta":[0,90000,0]}', "not how such a value is written"),
        ('{"$decimal":" 1"}', "not how such a value is written"),
        ('{"$decimal":"one"}', "not how such a value is written"),
        ('{"$uuid":"{00000000-0000-0000-0000-000000000001}"}', "not how such a value is written"),
        ('{"$path":["pure-posix","a//b"]}', "not how such a value is written"),
        ('{"$path":["url","a"]}', "not how such a value is written"),
        ('{"$path":["posix","a",""]}', "not how such a value is written"),
        ('{"$packed":"kQ=="}', "not how such a value is written"),
        ('{"$packed":"AQE="}', "not how such a value is written"),
        ('{"$packed":"wcE="}', "not how such a value is written"),
    ],
)
def test_what_stands_for_no_value_is_refused_and_it_is_said_where(text, problem):
    with pytest.raises(NotPortableError) as caught:
        from_json(loads(text))

    assert problem in str(caught.value)
    assert caught.value.__cause__ is None
