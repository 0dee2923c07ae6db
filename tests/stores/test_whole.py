"""A namespace as bytes comes back as it was, or is refused: never half of it, never another error."""

from __future__ import annotations

import math
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent_gantry_state import CorruptEntryError, Namespace, StateError, codec
from agent_gantry_state.limits import size_of
from agent_gantry_state.stores.protocol import EMPTY, KEEP, Change, Put, Snapshot
from agent_gantry_state.stores.whole import Image, applied, assigned, chosen, is_moved, read_image, write_image
from agent_gantry_state.testing import HOSTILE_TEXTS, VALUES, put

pytestmark = pytest.mark.once

A = Namespace("session", "a", "app")

texts = st.text(st.characters(), max_size=8) | st.sampled_from(HOSTILE_TEXTS)
names = texts.filter(bool)
short = st.binary(min_size=1, max_size=16)
times = st.floats(0, 1e12)


@st.composite
def snapshots(draw):
    values, packed, versions, expires_at, slides = {}, {}, {}, {}, {}
    for key, value in draw(st.dictionaries(texts, st.sampled_from(VALUES), max_size=6)).items():
        values[key] = value
        if type(value) not in codec.IMMUTABLE:
            values[key], packed[key] = None, codec.pack(value)
        versions[key] = draw(short)
        if draw(st.booleans()):
            draw(st.sampled_from((expires_at, slides)))[key] = draw(times)
    head = draw(st.none() | short)
    owner = draw(st.none() | texts)
    return Snapshot(values, packed, versions, head, owner, expires_at, slides, draw(times), draw(st.none() | short))


namespaces = st.builds(Namespace, names, names, texts)
images = st.builds(Image, namespaces, snapshots(), st.dictionaries(st.binary(min_size=16, max_size=16), times, max_size=4))


def parts(image):
    """All that is in an image, such that equal means the same types, signs and order."""
    snapshot = image.snapshot
    fields = [getattr(snapshot, name) for name in Snapshot.__slots__]
    ordered = [list(each.items()) if isinstance(each, dict) else each for each in fields]
    return codec.pack([list(image.namespace), ordered, list(image.tokens.items())])


EXAMPLE = Image(
    A,
    Snapshot(
        {"x": 1, "list": None, "\ud800": "text"},
        {"list": codec.pack([1, 2])},
        {"x": b"1", "list": b"2", "\ud800": b"3"},
        b"head",
        "ada",
        {"x": 5.0},
        {"list": 7.0},
        3.0,
        b"born",
    ),
    {b"t" * 16: 60.0},
)
WRITTEN = write_image(EXAMPLE)


@given(images)
@settings(max_examples=300, deadline=None)
def test_image_comes_back_as_it_was_written(image):
    data = write_image(image)

    back = read_image(data, image.namespace)

    assert parts(back) == parts(image)
    assert type(back.namespace) is Namespace
    assert write_image(back) == data


@pytest.mark.parametrize("value", VALUES, ids=map(str, range(len(VALUES))))
def test_every_value_comes_back(value):
    snapshot = applied(Change(A, None, {"x": put(value)}, (), {"x": None}), EMPTY, b"v", lambda: 0.0)

    back = read_image(write_image(Image(A, snapshot, {}))).snapshot

    assert codec.pack(back.value("x")) == codec.pack(value)


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_hostile_texts_stay_what_they_are(text):
    snapshot = Snapshot({text: text}, {}, {text: b"v"}, b"h", text)
    image = Image(Namespace(text, text, text), snapshot, {})

    assert parts(read_image(write_image(image), image.namespace)) == parts(image)


def refused(data, namespace=A):
    with pytest.raises(CorruptEntryError) as caught:
        read_image(data, namespace)
    assert caught.value.__cause__ is None
    assert "ada" not in str(caught.value)
    return str(caught.value)


def test_every_flipped_bit_is_found():
    for at in range(len(WRITTEN)):
        for mask in (1, 2, 4, 8, 16, 32, 64, 128, 255):
            damaged = bytearray(WRITTEN)
            damaged[at] ^= mask
            refused(bytes(damaged))


def test_every_prefix_and_every_tail_is_refused():
    for size in range(len(WRITTEN)):
        refused(WRITTEN[:size])
        refused(WRITTEN[size + 1 :])
    refused(WRITTEN + b"\x00")
    refused(WRITTEN + WRITTEN)


@given(st.binary(max_size=64))
def test_bytes_of_somebody_else_are_refused(data):
    refused(data)


def test_newer_layout_is_refused_with_what_to_do():
    body = b"anything at all"
    assert "upgrade" in refused(b"\x02" + zlib.crc32(b"\x02" + body).to_bytes(4, "big") + body)


@pytest.mark.parametrize("layout", [b"\x00", b"\x02", b"\x03", b"\x81", b"\xff"])
def test_layout_that_is_damaged_is_taken_for_no_newer_one(layout):
    assert "upgrade" not in refused(layout + WRITTEN[1:])


@pytest.mark.parametrize(
    "other", [Namespace("session", "b", "app"), Namespace("user", "a", "app"), Namespace("session", "a")]
)
def test_image_of_another_namespace_is_refused(other):
    assert "another" in refused(WRITTEN, other)
    assert read_image(WRITTEN).namespace == A


# What has a right checksum and is wrong all the same.

FIELDS = (
    "namespace",
    "values",
    "packed",
    "versions",
    "head",
    "born",
    "owner",
    "expires_at",
    "slides",
    "touched",
    "tokens",
    "untils",
)
BODY = WRITTEN[5:]


def sealed(body):
    return b"\x01" + zlib.crc32(b"\x01" + body).to_bytes(4, "big") + body


def with_field(name, value):
    fields = codec.unpack(BODY)
    fields[FIELDS.index(name)] = value
    return sealed(codec.pack(fields))


def test_sealing_makes_what_write_image_makes():
    assert sealed(BODY) == WRITTEN
    assert parts(read_image(with_field("owner", "eve"))) != parts(EXAMPLE)


WRONG = [None, True, 0, -1.5, 2**70, "x", b"x", [], ["x"], [[b"x", 1.0]], {"": ()}, {"x": "x"}, {1: 2}, {"x": None}, (), {1}]
#: What may stand in a field of the example although it is not what stood there.
FITTING = {
    "head": (None, b"x"),
    "born": (None, b"x"),
    "owner": (None, "x"),
    "touched": (0, -1.5, 2**70),
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("value", WRONG, ids=repr)
def test_field_of_a_wrong_type_is_refused(name, value):
    data = with_field(name, value)

    if any(type(value) is type(good) and value == good for good in FITTING.get(name, ())):
        read_image(data, A)
    else:
        refused(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("values", {"x": [1], "list": None, "\ud800": "text"}),
        ("values", {"x": 1, "list": None}),
        ("values", {"x": 1, "list": None, "\ud800": "text", "more": 1}),
        ("packed", {"list": "text"}),
        ("packed", {"list": b"x", "nowhere": b"x"}),
        ("packed", {"x": b"x"}),
        ("slides", {"x": 1.0, "list": 7.0}),
        ("slides", {"list": 2**2000}),
        ("tokens", [b"t", b"u"]),
        ("untils", [60.0, 60.0]),
        ("untils", [float("nan")]),
        ("versions", {"x": b"1", "list": b"2"}),
        ("versions", {"x": b"1", "list": b"2", "\ud800": 3}),
        ("versions", {"x": b"1", "list": b"2", "y": b"3"}),
        ("expires_at", {"nowhere": 1.0}),
        ("expires_at", {"x": True}),
        ("expires_at", {"x": float("nan")}),
        ("slides", {"x": 1.0}),
        ("touched", float("nan")),
        ("namespace", ["session", "", "app"]),
        ("namespace", ["session", "a"]),
        ("namespace", ["session", "a", "app", "more"]),
        ("namespace", ["session", 1, "app"]),
    ],
)
def test_fields_that_do_not_go_together_are_refused(name, value):
    refused(with_field(name, value))


@pytest.mark.parametrize("count", [0, 11, 13])
def test_other_number_of_fields_is_refused(count):
    fields = codec.unpack(BODY)

    refused(sealed(codec.pack((fields + fields)[:count])))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_behind_a_right_checksum_raises_no_other_error(data):
    body = bytearray(BODY)
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    try:
        image = read_image(sealed(bytes(body)))
    except CorruptEntryError:
        return

    snapshot = image.snapshot
    snapshot.live(4.0)
    for key in snapshot.values:
        snapshot.deadline(key)
        try:
            snapshot.value(key)
        except StateError:
            continue
    write_image(image)


def test_container_whose_bytes_are_damaged_is_found_when_it_is_read():
    back = read_image(with_field("packed", {"list": b"\xc1"}), A)

    with pytest.raises(CorruptEntryError):
        back.snapshot.value("list")


# The other pure functions.


@given(snapshots(), st.lists(texts, max_size=3), st.booleans())
@settings(deadline=None)
def test_change_leaves_the_snapshot_before_it_alone(snapshot, keys, deletes):
    before = parts(Image(A, snapshot, {}))
    puts = {} if deletes else {key: put([1], ttl=5.0, slides=True) for key in keys}
    change = Change(A, snapshot.head, puts, keys if deletes else (), {})

    after = applied(change, snapshot, b"new", lambda: 10.0)

    assert parts(Image(A, snapshot, {})) == before
    assert set(after.values) == (set(snapshot.values) - set(keys) if deletes else {*snapshot.values, *keys})
    assert after.values.keys() == after.versions.keys()
    assert after.packed.keys() <= after.values.keys()
    assert {*after.expires_at, *after.slides} <= after.values.keys()


@given(snapshots(), st.dictionaries(texts, st.sampled_from(["text", 7, None, [1], {"a": 2}]), min_size=1, max_size=3))
@settings(deadline=None)
def test_values_that_are_assigned_make_what_a_change_would(snapshot, written):
    base = Snapshot(snapshot.values, snapshot.packed, snapshot.versions, b"h", snapshot.owner, born=b"b")
    before = parts(Image(A, base, {}))
    written = {key: value for key, value in written.items() if type(value) in (list, dict) or key not in base.packed}
    packed = {key: codec.pack(value) for key, value in written.items() if type(value) in (list, dict)}
    values = {key: None if key in packed else value for key, value in written.items()}

    after = assigned(base, values, packed, b"new", math.inf)

    change = Change(A, b"h", {key: put(value) for key, value in written.items()}, (), {})
    expected = applied(change, base, b"new" if written else b"h", lambda: 0.0)
    expected.head, expected.size = b"new", after.size
    assert parts(Image(A, after, {})) == parts(Image(A, expected, {}))
    assert after.size >= size_of(after)
    assert parts(Image(A, base, {})) == before


@pytest.mark.parametrize("packed", [{}, {"y": codec.pack(["x" * 5000])}])
def test_values_are_not_assigned_where_the_memory_might_be_too_large(packed):
    base = Snapshot({"x": "a" * 1000}, {}, {"x": b"1"}, b"h", born=b"h")
    values = {"x": "b", **dict.fromkeys(packed)}
    enough = 2 * (base.values["x"].__sizeof__() + "x".__sizeof__()) + 2000 * len(values) + sum(map(len, packed.values()))

    assert assigned(base, values, packed, b"new", enough) is not None
    assert assigned(base, values, packed, b"new", enough - 1) is None


ttls = st.sampled_from([KEEP, None, 1.0, 2.0, 5.0])
steps = st.tuples(
    st.dictionaries(st.sampled_from("abcd"), ttls, max_size=3), st.sets(st.sampled_from("abcd")), st.booleans()
)


@given(st.lists(steps, max_size=8), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
@example([({"a": 1.0}, set(), False), ({"b": 5.0}, set(), True)], 0.5, False)
def test_what_expires_is_known_after_any_changes(changes, seconds, in_place):
    """They are carried along from one commit to the next, not looked for among all keys."""
    snapshot, now = EMPTY, 100.0
    for number, (puts, deletes, slides) in enumerate(changes):
        now += seconds
        change = Change(
            A,
            snapshot.head,
            {key: put("x", ttl=ttl, slides=slides) for key, ttl in puts.items()},
            [*deletes],
            {},
            touch=slides,
        )
        before = snapshot.apart() if in_place else snapshot
        snapshot = applied(change, before, b"%d" % number, lambda: now, in_place=in_place)
        deadlines = [at for key in snapshot.values if (at := snapshot.deadline(key)) is not None]

        assert snapshot.first_expiry <= min(deadlines, default=math.inf)
        assert (snapshot.first_expiry == math.inf) is (not deadlines)
        assert snapshot.latest == max(deadlines, default=-math.inf)
        for then in (now, now + 1.0, now + 1.5, now + 5.0):
            left = [key for key in snapshot.values if (snapshot.deadline(key) or math.inf) > then]
            assert [*snapshot.live(then).values] == left
        assert snapshot.first_expiry <= min(deadlines, default=math.inf)


@given(snapshots(), st.lists(texts, max_size=3), st.booleans())
def test_chosen_keys_are_those_asked_for_and_tell_when_the_rest_ends(snapshot, keys, every_name):
    part = chosen(snapshot, tuple(keys), every_name)

    assert part.values.keys() == snapshot.values.keys() & set(keys)
    assert part.versions.keys() == (snapshot.versions.keys() if every_name else part.values.keys())
    assert part.last_expiry() == snapshot.last_expiry()
    assert all(part.deadline(key) == snapshot.deadline(key) for key in part.values)


def test_key_that_was_not_looked_at_may_move():
    there = Snapshot({"x": 1, "y": 1}, {}, {"x": b"1", "y": b"2"}, b"h2", born=b"b")

    def moved(**fields):
        terms = {"checks": {"x": b"1"}, "born": b"b", **fields}
        return is_moved(Change(A, b"h1", {"x": Put(2, None, ttl=KEEP)}, (), **terms), there)

    assert not moved()
    assert moved(checks={"x": b"0"})
    assert moved(checks={"z": b"0"})
    assert not moved(checks={"z": None})
    assert moved(whole=True)
    assert moved(born=b"other")
    assert moved(loaded_owner="ada")
