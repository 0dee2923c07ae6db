"""A value comes back exactly, from every store, or is refused with its key before anything is written."""

from __future__ import annotations

import functools
import uuid

import pytest
from hostile.soaks import check_round_trip
from hostile.values import SameAs, refused, touched, touchy, values
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from agent_gantry_state import (
    DeclarationError,
    MemoryConflictError,
    MemoryValidationError,
    StateError,
    SyncSession,
    UndeclaredKeyError,
    UnstorableValueError,
    codec,
)

#: Texts of 100,000 characters are what it says is unlikely to be useful.
pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore:Generating overly large repr")]
QUICK = settings(max_examples=30, deadline=None)


def seen(place, who, scope="user"):
    with place.reader.memory(scope, **{scope: who}) as memory:
        return {key: codec.pack(value) for key, value in memory.items()}


# Ways in which a tool can hand over a value.


def plainly(gantry, make):
    @gantry.with_memory(scope="user")
    def tool(memory):
        memory["x"] = 2
        memory["plan"] = make()

    tool()


def behind_the_class(gantry, make):
    @gantry.with_memory(scope="user")
    def tool(memory):
        dict.__setitem__(memory, "plan", make())

    tool()


def inside_what_is_there(gantry, make):
    @gantry.with_memory(scope="user")
    def tool(memory):
        memory["list"].append(make())

    tool()


def in_a_compartment(gantry, make):
    @gantry.with_memory(scope="user", private=True, name=uuid.uuid4().hex)
    def tool(memory):
        memory["plan"] = make()

    tool()


def in_layers(gantry, make):
    @gantry.with_memory(scope=("user", "global"))
    def tool(memory):
        memory["plan"] = make()

    tool()


def in_chosen_keys(gantry, make):
    @gantry.with_memory(scope="user", keys=("plan", "x"))
    def tool(memory):
        memory["plan"] = make()

    tool()


def in_a_call_inside(gantry, make):
    @gantry.with_memory(scope="user")
    def inner(memory):
        memory["plan"] = make()

    @gantry.with_memory(scope="user")
    def tool(memory):
        memory["x"] = 2
        inner()

    tool()


def key_by_key(gantry, make):
    @gantry.with_session(scope="user")
    def tool(session: SyncSession):
        session.set("x", 2)
        session.set("plan", make())

    tool()


def with_a_time(gantry, make):
    @gantry.with_memory(scope="user", ttl=60)
    def tool(memory):
        memory.set("plan", make(), ttl=5)

    tool()


def in_a_block(gantry, make):
    with gantry.memory("user") as memory:
        memory["plan"] = make()


WAYS = [
    plainly,
    behind_the_class,
    inside_what_is_there,
    in_a_compartment,
    in_layers,
    in_chosen_keys,
    in_a_call_inside,
    key_by_key,
    with_a_time,
    in_a_block,
]


def ended(act):
    """How it ended, without what a test's report would touch: the error's kind, words and facts."""
    touched.clear()
    try:
        act()
    except StateError as error:
        keys = getattr(error, "keys", None)
        ended = type(error), str(error), getattr(error, "path", None), error.committed, keys, tuple(touched)
    except BaseException as error:
        ended = type(error), "", "", None, (), tuple(touched)
    else:
        ended = None, "", "", None, (), tuple(touched)
    touched.clear()
    return ended


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_cannot_come_back_is_refused_with_its_key_untouched_and_before_any_write(all_places, way):
    at = "memory['list']" if way is inside_what_is_there else "memory['plan']"
    wrong = []
    # It is refused before a store is asked, so that one will do for most ways.
    for place in all_places if way is plainly else [all_places[2]]:
        who = uuid.uuid4().hex
        with place.another(user=who) as gantry:
            with gantry.memory("user") as memory:
                memory["x"], memory["list"] = 1, []
            before = seen(place, who)
            for name, make in refused():
                kind, words, path, committed, _, calls = ended(functools.partial(way, gantry, make))
                right = kind is UnstorableValueError and path.startswith(at) and at in words and len(words) < 1000
                if not right or committed is not False or calls:
                    wrong.append((place.name, name, kind, words, path, committed, calls))
            assert seen(place, who) == before
    assert wrong == []


def test_a_default_that_cannot_come_back_is_refused_where_it_is_declared(all_places):
    gantry, wrong = all_places[0].gantry, []
    for name, make in refused():
        kind, words, *_, calls = ended(lambda make=make: gantry.with_memory(scope="user", default={"plan": make()}))
        if kind is not DeclarationError or "memory['plan']" not in words or calls:
            wrong.append((name, kind, words, calls))
    assert wrong == []


def test_a_merge_that_makes_what_cannot_come_back_is_a_conflict_that_names_the_key(all_places):
    place, wrong = all_places[2], []
    who = uuid.uuid4().hex
    with place.another(user=who) as gantry:
        for name, make in refused():
            with gantry.memory("user") as memory:
                memory["x"] = name

            @gantry.with_memory(scope="user", merge={"x": lambda base, theirs, ours, make=make: make()})
            def tool(memory):
                memory["x"] = "ours"
                with place.reader.independent(), place.reader.memory("user", user=who) as other:
                    other["x"] = "theirs"

            kind, words, _, committed, keys, calls = ended(tool)
            if (kind, committed, keys, calls) != (MemoryConflictError, False, ("x",), ()):
                wrong.append((name, kind, words, keys, calls))
            assert seen(place, who) == {"x": codec.pack("theirs")}
    assert wrong == []


# Keys.


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(SameAs, "y"),
        functools.partial(Text, "x"),
        functools.partial(Text, "new"),
        lambda: touchy(object)(),
        lambda: touchy(int)(1),
        lambda: (1, "x"),
        lambda: 10**5000,
        lambda: b"x",
    ],
    ids=["equal to x", "x", "another", "object", "int", "tuple", "long number", "bytes"],
)
@pytest.mark.parametrize(
    "write",
    [
        lambda memory, key: memory.__setitem__(key, 2),
        lambda memory, key: memory.update({key: [2]}),
        lambda memory, key: memory.set(key, 2, ttl=5),
        lambda memory, key: memory.add(key, 1),
        lambda memory, key: memory.setdefault(key, 2) and memory.__setitem__(key, 3),
        lambda memory, key: dict.__setitem__(memory, key, 2) or memory.__setitem__("x", 3),
        lambda memory, key: (memory.__delitem__("x"), memory.__setitem__(key, 2)),
    ],
    ids=["assigned", "updated", "timed", "added", "by default", "behind the class", "after a deletion"],
)
def test_a_key_that_is_no_plain_text_is_refused_on_every_store_whatever_it_is_equal_to(all_places, make, write):
    refusals = []
    for place in all_places:
        for options in ({}, {"private": True, "name": "tool"}, {"scope": ("user", "global")}):
            who = uuid.uuid4().hex
            with place.another(user=who) as gantry:

                @gantry.with_memory(**{"scope": "user", **options})
                def tool(memory, act):
                    act(memory)

                tool(lambda memory: memory.update(x=1))
                before = seen(place, who)
                try:
                    touched.clear()
                    tool(lambda memory: write(memory, make()))
                except RuntimeError:
                    # Python's own dict compares keys whose hashes are the same.
                    assert touched == ["__eq__"]
                except UnstorableValueError as error:
                    refusals.append(str(error))
                    assert set(touched) <= {"__eq__"}
                else:
                    # What was written behind the class is found where it is another key, and else is none.
                    assert write.__code__.co_names[0] in ("dict", "__delitem__")
                    assert set(seen(place, who)) == set(before)
                    continue
                assert seen(place, who) == before
    assert all("key of type" in words for words in refusals)


@pytest.mark.parametrize("key", [SameAs("y"), 10**5000, b"x", None, touchy(object)()], ids=range(5))
@pytest.mark.parametrize("way", ["get", "set", "add", "delete"])
def test_a_session_asks_no_store_for_a_key_that_is_no_plain_text(all_places, key, way):
    for place in all_places:
        with place.another(user=uuid.uuid4().hex) as gantry, gantry.session("s-" + uuid.uuid4().hex):

            @gantry.with_session
            def tool(session: SyncSession):
                getattr(session, way)(key, *((1,) if way == "set" else ()))

            with pytest.raises(UnstorableValueError, match="session keys are str"):
                tool()


# Numbers.


class Seconds(float):
    def __add__(self, other):
        return 0.0

    __radd__ = __lt__ = __gt__ = __le__ = __ge__ = __float__ = __str__ = __repr__ = __add__


@pytest.mark.parametrize(
    "ttl", [10**400, -(10**400), float("nan"), Seconds("inf"), Seconds(-1), touchy(int)(0)], ids=range(6)
)
def test_a_time_that_is_none_is_refused_before_any_write(all_places, ttl):
    for place in all_places:
        who = uuid.uuid4().hex
        with place.another(user=who) as gantry, pytest.raises(ValueError, match="positive, finite"):
            gantry.with_memory(scope="user")(lambda memory: memory.set("x", 1, ttl=ttl))()
        assert seen(place, who) == {}


@pytest.mark.parametrize("ttl", [1e308, 10**300, Seconds(60), touchy(int)(60)], ids=["1e308", "int", "float's", "int's"])
def test_a_time_that_is_far_off_or_of_a_subclass_is_kept_on_every_store(all_places, ttl):
    for place in all_places:
        who = uuid.uuid4().hex
        with place.another(user=who) as gantry:
            gantry.with_memory(scope="user")(lambda memory: memory.set("x", 1, ttl=ttl))()
            gantry.with_memory(scope="user", ttl=ttl)(lambda memory: memory.update(y=[1]))()
        assert seen(place, who) == {"x": b"\x01", "y": b"\x91\x01"}


@pytest.mark.parametrize("n", [touchy(int)(1), touchy(object, lies=int)(), "1", True, None, [1], 1j], ids=range(7))
def test_what_is_no_plain_number_is_not_added(all_places, n, untouched):
    for place in all_places:
        who = uuid.uuid4().hex
        with place.another(user=who) as gantry, pytest.raises(TypeError, match=r"memory\.add: n must be"):
            gantry.with_memory(scope="user")(lambda memory: memory.add("x", n))()
        assert seen(place, who) == {}


# Typed memories.


class Harmless(BaseModel):
    model_config = {"arbitrary_types_allowed": True}
    x: int = 0
    plan: object = None


def test_a_typed_memory_refuses_what_cannot_come_back_with_a_typed_error(all_places):
    place = all_places[2]
    who = uuid.uuid4().hex
    with place.another(user=who) as gantry:

        @gantry.with_memory(scope="user")
        def tool(memory: Harmless, make):
            memory.x = 2
            memory.plan = make()

        tool(lambda: None)
        before = seen(place, who)
        taken, wrong = [], []
        for name, make in refused():
            kind, words, _, committed, *_ = ended(lambda make=make: tool(make))
            if kind is None:
                # What pydantic makes plain data of.
                taken.append(name)
                assert set(seen(place, who)) == {"x", "plan"}
                tool(lambda: None)
                before = seen(place, who)
            elif not issubclass(kind, StateError) or "plan" not in words or committed is not False:
                wrong.append((name, kind, words))
            assert seen(place, who) == before
        assert wrong == []
        assert len(taken) < len(list(refused())) / 2


class Declared(TypedDict, total=False):
    x: int


@pytest.mark.parametrize(
    "make", [lambda: 10**5000, lambda: SameAs("y"), lambda: touchy(object, meta=type)(), lambda: ("x",)]
)
def test_a_key_that_a_typed_memory_does_not_declare_is_refused_whatever_it_is(all_places, make):
    place = all_places[0]
    with place.another(user=uuid.uuid4().hex) as gantry:

        @gantry.with_memory(scope="user")
        def tool(memory: Declared):
            memory[make()] = 1

        with pytest.raises(UndeclaredKeyError) as caught:
            tool()
        assert len(str(caught.value)) < 300


def _fail(error):
    def fail(cls, value):
        if value != 0:
            raise error
        return value

    return fail


@pytest.mark.parametrize("error", [RuntimeError, RecursionError, MemoryError, ZeroDivisionError, KeyError, UnicodeError])
def test_a_validator_that_fails_with_anything_is_a_validation_error_before_any_write(all_places, error):
    class State(BaseModel):
        x: int = Field(default=0, validate_default=True)
        check = field_validator("x", mode="after")(_fail(error("marked")))

    for place in all_places:
        who = uuid.uuid4().hex
        with place.another(user=who) as gantry:

            @gantry.with_memory(scope="user")
            def tool(memory: State):
                memory.x = 5

            with pytest.raises(MemoryValidationError) as caught:
                tool()
            assert "marked" not in str(caught.value)
        assert seen(place, who) == {}


# What is fine.


@QUICK
@given(st.dictionaries(st.text(st.characters(codec=None), max_size=5).map(lambda key: "k" + key), values, max_size=4))
def test_every_value_comes_back_exactly_from_every_store(all_places, content):
    check_round_trip(all_places, content)
