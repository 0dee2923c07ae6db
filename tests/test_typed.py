"""Typed state: what annotations are taken, and what goes through load, dump, check and update."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import ipaddress
import pathlib
import re
import subprocess
import sys
import typing
import uuid
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Optional, TypeVar

import pydantic
import pydantic.dataclasses
import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, AliasChoices, AliasPath, BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import NotRequired, ReadOnly, Required, TypeAliasType, TypedDict

from agent_gantry_state import Memory, codec
from agent_gantry_state.errors import (
    DeclarationError,
    MemoryValidationError,
    StateError,
    UndeclaredKeyError,
    UnstorableValueError,
)
from agent_gantry_state.state_classes import hint_in
from agent_gantry_state.typed import shape_of

T = TypeVar("T")


def shape(hint, **options):
    found = shape_of(hint, where="with_memory on f", scope="user", **options)
    assert found is not None
    return found


def refusal(hint, **options):
    with pytest.raises(DeclarationError) as caught:
        shape_of(hint, where="with_memory on f", scope="user", **options)
    assert "with_memory on f" in str(caught.value)
    return str(caught.value)


def stored(values):
    """Values as a store gives them back."""
    return {key: codec.decode(codec.encode(value)) for key, value in values.items()}


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Step(BaseModel):
    title: str = ""
    done: bool = False


class Prefs(BaseModel):
    volume: int = 3
    name: str = "ada"
    steps: list[Step] = []


@dataclasses.dataclass
class Basket:
    items: list[str] = dataclasses.field(default_factory=list)
    total: int = 0


@pydantic.dataclasses.dataclass
class CheckedBasket:
    items: list[str] = Field(default_factory=list)
    total: int = Field(default=0, ge=0)


class Notes(TypedDict, total=False):
    items: list[str]
    total: int


class StdNotes(typing.TypedDict, total=False):
    items: Annotated[list[str], Field(max_length=3)]
    total: int


KINDS = [Basket, CheckedBasket, Notes, StdNotes]


# What may stand there.


class Readable(typing.Protocol):
    def get(self, key: str) -> Any: ...


@pytest.mark.parametrize(
    "hint",
    [
        inspect.Parameter.empty,
        dict,
        dict[str, Any],
        dict[str, int],
        typing.Dict[str, Any],  # noqa: UP006
        Mapping,
        Mapping[str, Any],
        MutableMapping[str, Any],
        Iterable[str],
        Memory,
        Any,
        object,
        T,
        Readable,
        Optional[dict],  # noqa: UP045
        dict | None,
        dict | Memory,
        Annotated[dict[str, Any], "said"],
        Annotated[Memory | None, "said"],
        TypeAliasType("Anything", dict[str, Any]),
        typing.NewType("Bag", dict),
        "Memory",
        "state.Memory",
        "dict[str, Unknown]",
        typing.ForwardRef("Memory"),
    ],
    ids=str,
)
def test_a_plain_annotation_leaves_a_plain_memory(hint):
    assert shape_of(hint, where="w", scope="user") is None


@pytest.mark.parametrize(
    "hint",
    [
        Prefs,
        Optional[Prefs],  # noqa: UP045
        Prefs | None,
        Annotated[Prefs, "said"],
        Annotated[Prefs | None, "said"],
        Annotated[Prefs, "said"] | None,
        TypeAliasType("Mine", Prefs),
        typing.NewType("Own", Prefs),
    ],
    ids=str,
)
def test_a_model_is_found_behind_optional_annotated_and_aliases(hint):
    state = shape(hint).load({"volume": 7})

    assert type(state) is Prefs
    assert state.volume == 7


def test_what_is_annotated_takes_part_in_the_validation():
    def louder(prefs):
        if prefs.volume < 1:
            raise ValueError("secret")
        return prefs

    found = shape(Annotated[Annotated[Prefs, AfterValidator(louder)], "said"] | None)

    assert found.load({}).volume == 3
    with pytest.raises(MemoryValidationError) as caught:
        found.load({"volume": 0})
    assert caught.value.fields == ()
    assert "secret" not in str(caught.value)


class Point(NamedTuple):
    x: int = 0


class Attrs:
    __attrs_attrs__ = ()


class Struct:
    __struct_fields__ = ()


class Root(pydantic.RootModel[list[int]]):
    pass


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "not as int"),
        (list[str], "not as list"),
        (collections.OrderedDict, "not as OrderedDict"),
        (Colour, "not as Colour"),
        (type(None), "not as NoneType"),
        (Prefs | Basket, "one pydantic model"),
        (Prefs | dict, "one pydantic model"),
        (Literal["a"], "not as Literal"),
        (Point, "a NamedTuple cannot be changed: make it a dataclass or a pydantic model"),
        (Attrs, "make it a dataclass or a pydantic model"),
        (Struct, "make it a dataclass or a pydantic model"),
        (Root, "use a BaseModel with fields"),
        ("Prefs", "define or import it above the tool"),
        ("list[", "define or import it above the tool"),
        (typing.ForwardRef("Prefs"), "define or import it above the tool"),
    ],
    ids=str,
)
def test_any_other_annotation_is_refused_and_told_what_may_stand_there(hint, words):
    assert words in refusal(hint)


def test_importing_the_package_does_not_import_pydantic():
    code = "import sys, agent_gantry_state, agent_gantry_state.typed; sys.exit('pydantic' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_annotation_is_found_among_local_names():
    class Local(BaseModel):
        n: int = 0

    assert hint_in("Local | None", locals(), globals()) == Local | None
    assert hint_in("Prefs", {}, globals()) is Prefs
    with pytest.raises(NameError):
        hint_in("Nowhere", locals(), globals())


def test_local_classes_may_refer_to_each_other():
    @dataclasses.dataclass
    class Inner:
        n: int = 0

    @dataclasses.dataclass
    class Outer:
        inners: list[Inner] = dataclasses.field(default_factory=list)

    assert shape(Outer, names=locals()).load({"inners": [{"n": 1}]}) == Outer([Inner(1)])
    assert "Inner" in refusal(Outer)


def test_a_field_that_nothing_can_validate_is_refused_at_decoration():
    @dataclasses.dataclass
    class Odd:
        thing: Point | Attrs | None = None

    assert "Odd cannot be validated" in refusal(Odd, names=locals())


# Defaults.


class NeedsModel(BaseModel):
    volume: int
    name: str | None = None


@dataclasses.dataclass(kw_only=True)
class NeedsDataclass:
    name: str | None = None
    volume: int


@pydantic.dataclasses.dataclass
class NeedsChecked:
    volume: int = Field(ge=0)
    name: str | None = None


class NeedsKey(TypedDict):
    volume: int
    name: NotRequired[str]


class NeedsMarkedKey(typing_extensions.TypedDict, total=False):
    volume: Required[Annotated[int, "said"]]
    name: str


class NeedsStdKey(typing.TypedDict):
    volume: int
    name: NotRequired[Annotated[str, "said"]]


NEEDY = [NeedsModel, NeedsDataclass, NeedsChecked, NeedsKey, NeedsMarkedKey, NeedsStdKey]


@pytest.mark.parametrize("cls", NEEDY)
def test_a_field_without_a_default_is_refused_and_told_to_give_it_one(cls):
    message = refusal(cls)

    assert "give it a default" in message
    assert "'volume'" in message
    assert cls.__name__ in message
    assert "with_memory(default={'volume': ...})" in message
    assert ("mark it NotRequired" in message) is typing_extensions.is_typeddict(cls)
    assert "name" not in message.replace(cls.__name__, "")
    assert refusal(cls, default={"name": "x"}) == message


@pytest.mark.parametrize("cls", NEEDY)
@pytest.mark.parametrize(
    "options", [{"default": {"volume": 5}}, {"default_factory": lambda: {"volume": 5}}], ids=["default", "factory"]
)
def test_the_decorators_default_stands_in_for_a_fields_own(cls, options):
    found = shape(cls, **options)

    assert found.dump(found.load({}))["volume"] == 5
    assert found.dump(found.load({"volume": 6}))["volume"] == 6
    assert found.validated({"name": "x"}) == {"volume": 5, "name": "x"}


def test_the_decorators_default_is_never_shared():
    class Needs(BaseModel):
        items: Any

    default = {"items": [[1]]}
    found = shape(Needs, default=default)

    found.load({}).items[0].append(2)

    assert found.load({}).items == [[1]]
    assert default == {"items": [[1]]}


def test_the_decorators_default_gives_way_to_a_default_of_the_class():
    assert shape(Prefs, default={"volume": 9}).load({}).volume == 3


def test_a_default_that_does_not_fit_is_refused_at_decoration():
    message = refusal(Prefs, default={"volume": "secret"})

    assert "default does not fit Prefs: field 'volume'" in message
    assert "secret" not in message


def test_a_default_factory_is_not_called_at_decoration():
    calls = []
    shape(NeedsModel, default_factory=lambda: calls.append(1) or {"volume": 1})

    assert calls == []


def test_a_default_factory_that_leaves_a_field_out_names_it():
    with pytest.raises(MemoryValidationError) as caught:
        shape(NeedsModel, default_factory=dict).load({})

    assert caught.value.fields == ("volume",)


@pytest.mark.parametrize("cls", [Prefs, Basket, CheckedBasket])
def test_mutable_defaults_are_not_shared_between_loads(cls):
    found = shape(cls)
    one = found.load({})
    (one.steps if cls is Prefs else one.items).append("x")

    other = found.load({})

    assert (other.steps if cls is Prefs else other.items) == []


# What cannot be stored is refused.


def test_what_is_no_stored_field_is_refused_or_left_alone():
    @dataclasses.dataclass
    class WithInitVar:
        seed: dataclasses.InitVar[int] = 0

    @dataclasses.dataclass
    class WithoutInit:
        total: int = dataclasses.field(init=False, default=0)

    @dataclasses.dataclass
    class WithClassVar:
        kind: ClassVar[str] = "x"
        n: int = 0

    class Excluding(BaseModel):
        secret: str = Field(exclude=True)

    @pydantic.dataclasses.dataclass
    class ExcludingDataclass:
        secret: str = Field(exclude=True)

    assert "'seed' of WithInitVar is an InitVar" in refusal(WithInitVar)
    assert "'total' of WithoutInit has init=False" in refusal(WithoutInit)
    assert shape(WithClassVar).fields == ("n",)
    assert "'secret' of Excluding has exclude=True, so that it is not stored: give it a default" in refusal(
        Excluding, default={"secret": "x"}
    )
    assert "'secret' of ExcludingDataclass has exclude=True" in refusal(ExcludingDataclass, default={"secret": "x"})


def test_private_computed_and_excluded_are_not_stored():
    class Rich(BaseModel):
        n: int = 1
        hidden: int = Field(default=5, exclude=True)
        _private: int = 7

        @pydantic.computed_field
        @property
        def double(self) -> int:
            return self.n * 2

    found = shape(Rich)
    state = found.load({"n": 3, "double": 9, "hidden": 8, "_private": 6})

    assert (state.n, state.double, state.hidden, state._private) == (3, 6, 5, 7)
    assert found.fields == ("n",)
    assert found.dump(state) == {"n": 3}


def test_keys_that_the_class_does_not_know_are_left_alone():
    class Strictest(BaseModel):
        model_config = ConfigDict(extra="forbid")
        n: int = 0

    for cls in (Strictest, Prefs, *KINDS):
        found = shape(cls)
        found.check({"other": object()})
        assert "other" not in found.dump(found.load({"other": 1}))


def test_a_model_that_allows_extra_keys_gets_and_stores_them():
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        n: int = 0

    found = shape(Open)
    state = found.load({"n": 1, "other": 2, "gone": 3})
    state.more = Colour.RED
    del state.gone

    assert state.other == 2
    assert found.dump(state) == {"n": 1, "other": 2, "more": "red"}


@pytest.mark.parametrize("cls", [Notes, StdNotes])
def test_a_key_that_a_typed_dict_does_not_declare_is_an_error(cls):
    found = shape(cls)

    with pytest.raises(UndeclaredKeyError) as caught:
        found.dump({"items": [], "oops": "secret"})

    assert (caught.value.key, caught.value.scope) == ("oops", "user")
    assert "secret" not in str(caught.value)
    assert "'oops'" in str(caught.value)


def test_a_typed_dict_holds_what_is_there_and_no_more():
    found = shape(Notes)
    state = found.load({"items": ["a"], "unknown": 1})

    assert state == {"items": ["a"]}
    assert type(state) is dict
    del state["items"]
    assert found.dump(state) == {}


def test_a_typed_dict_of_typing_keeps_what_its_keys_declare():
    with pytest.raises(MemoryValidationError) as caught:
        shape(StdNotes).load({"items": list("abcd")})

    assert caught.value.fields == ("items",)


# Names and aliases.


class Aliased(BaseModel):
    model_config = ConfigDict(alias_generator=str.upper, serialize_by_alias=True)
    a: int = Field(default=0, alias="aa")
    b: int = Field(default=0, validation_alias=AliasChoices("bb", AliasPath("cc", 0)), serialization_alias="dd")
    c: int = 0
    inner: InnerAliased = Field(default_factory=lambda: InnerAliased())


class InnerAliased(BaseModel):
    x: int = Field(default=0, alias="xx")


def test_fields_are_stored_by_their_names_whatever_their_aliases():
    found = shape(Aliased)
    values = {"a": 1, "b": 2, "c": 3, "inner": {"x": 4}}

    state = found.load(values)

    assert (state.a, state.b, state.c, state.inner.x) == (1, 2, 3, 4)
    assert found.dump(state) == values
    assert found.load({"aa": 1, "bb": 2, "C": 3}).model_dump(by_alias=False) == Aliased().model_dump(by_alias=False)


@pytest.mark.parametrize("field", ["a", "b", "c"])
def test_an_error_names_the_field_not_its_alias(field):
    with pytest.raises(MemoryValidationError) as caught:
        shape(Aliased).load({field: "secret"})

    assert caught.value.fields == (field,)


def test_an_error_of_an_aliased_field_that_is_missing_names_the_field():
    class Needs(BaseModel):
        n: int = Field(validation_alias=AliasChoices("nn", AliasPath("mm", 0)))

    with pytest.raises(MemoryValidationError) as caught:
        shape(Needs, default_factory=dict).load({})

    assert caught.value.fields == ("n",)


def test_an_init_that_would_lose_aliased_fields_is_refused():
    class Own(BaseModel):
        n: int = Field(default=0, alias="N")

        def __init__(self, **data):
            super().__init__(**data)

    class Fine(Own):
        model_config = ConfigDict(populate_by_name=True)

    assert "populate_by_name=True" in refusal(Own)
    assert shape(Fine).load({"n": 4}).n == 4


# Kinds of classes.


class Box(BaseModel, Generic[T]):
    content: T | None = None


@dataclasses.dataclass
class Crate(Generic[T]):
    content: T | None = None


class Bag(TypedDict, Generic[T], total=False):
    content: T


@pytest.mark.parametrize("cls", [Box[int], Crate[int], Bag[int]], ids=str)
def test_a_generic_class_validates_by_its_argument(cls):
    found = shape(cls)

    assert found.dump(found.load({"content": 1})) == {"content": 1}
    with pytest.raises(MemoryValidationError):
        found.load({"content": "x"})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_class_comes_back_as_it_was_stored(kind):
    found = shape(kind)
    values = {"items": ["a"], "total": 2}

    state = found.load(values)

    assert found.fields == ("items", "total")
    assert found.dump(state) == values
    assert found.load(found.dump(state)) == state
    assert isinstance(state, dict if typing_extensions.is_typeddict(kind) else kind)


@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("kw_only", [False, True])
def test_slots_keyword_only_and_inherited_fields_are_stored(slots, kw_only):
    @dataclasses.dataclass(slots=slots, kw_only=kw_only)
    class Base:
        a: int = 0

    @dataclasses.dataclass(slots=slots, kw_only=kw_only)
    class Derived(Base):
        b: int = 0
        ready: ClassVar[bool] = False

        def __post_init__(self):
            Derived.ready = True

    found = shape(Derived)

    assert found.dump(found.load({"a": 1, "b": 2})) == {"a": 1, "b": 2}
    assert Derived.ready
    found.update(state := found.load({}), {"a": 5})
    assert state.a == 5


def test_a_model_with_an_init_and_a_post_init_of_its_own_loads():
    seen = []

    class Own(BaseModel):
        n: int = 0

        def __init__(self, **data):
            seen.append("init")
            super().__init__(**data)

        def model_post_init(self, context):
            seen.append("post")

    assert shape(Own).load({"n": 4}).n == 4
    assert seen == ["init", "post"]


def test_a_strict_class_takes_what_it_dumped_and_converts_nothing():
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        n: int = 0
        colour: Colour = Colour.RED
        history: collections.deque[int] = Field(default_factory=collections.deque)
        basket: Basket = Field(default_factory=Basket)
        baskets: list[Basket] = []
        odd: Annotated[dict[str, int], BeforeValidator(lambda value: {} if value == "none" else value)] = {}

    found = shape(Strict)
    state = Strict(n=1, colour=Colour.BLUE, history=collections.deque([1]), basket=Basket(["a"]))

    assert found.load(stored(found.dump(state))) == state
    assert found.load({"colour": "red", "basket": {"total": 1}, "baskets": [{}]}).baskets == [Basket()]
    for wrong in (
        {"n": "1"},
        {"n": "1", "colour": "red"},
        {"n": True},
        {"colour": "red", "odd": "none"},
        {"history": ["1"]},
        {"colour": "green"},
    ):
        with pytest.raises(MemoryValidationError):
            found.load(wrong)


def test_frozen_classes_make_the_memory_read_only():
    class FrozenModel(BaseModel, frozen=True):
        n: int = 0

    class FrozenFields(BaseModel):
        n: int = Field(default=0, frozen=True)

    @dataclasses.dataclass(frozen=True)
    class FrozenDataclass:
        n: int = 0

    class Constant(TypedDict, total=False):
        n: ReadOnly[int]

    class Partly(TypedDict, total=False):
        n: ReadOnly[int]
        m: int

    assert [shape(each).frozen for each in (FrozenModel, FrozenFields, FrozenDataclass, Constant)] == [True] * 4
    assert [shape(each).frozen for each in (Prefs, Partly, *KINDS)] == [False] * 6
    found = shape(FrozenDataclass)
    found.update(state := found.load({}), {"n": 5})
    assert state.n == 5


# Every type of field, there and back.


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    tricks: list[str] = []


class Everything(BaseModel):
    count: int = 0
    ratio: float = 0.0
    on: bool = False
    text: str = ""
    raw: bytes = b""
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    when: dt.datetime | None = None
    day: dt.date | None = None
    clock: dt.time | None = None
    span: dt.timedelta = dt.timedelta(0)
    price: decimal.Decimal = decimal.Decimal(0)
    key: uuid.UUID | None = None
    path: pathlib.Path = pathlib.Path()
    pair: tuple[int, str] = (0, "")
    many: tuple[Colour, ...] = ()
    tags: set[str] = set()
    hues: frozenset[Colour] = frozenset()
    steps: list[Step] = []
    by_name: dict[str, Step] = {}
    by_hue: dict[Colour, int] = {}
    basket: Basket = Field(default_factory=Basket)
    notes: Notes = Field(default_factory=dict)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Field(default_factory=Cat)
    mode: Literal["a", 1] = "a"
    history: collections.deque[int] = Field(default_factory=collections.deque)
    address: ipaddress.IPv4Address | None = None
    link: pydantic.HttpUrl | None = None
    pattern: re.Pattern[str] | None = None
    point: Point = Point()
    counts: collections.Counter[str] = Field(default_factory=collections.Counter)
    groups: collections.defaultdict[str, list[int]] = Field(default_factory=lambda: collections.defaultdict(list))
    parsed: pydantic.Json[list[int]] = Field(default_factory=list)
    size: pydantic.ByteSize = pydantic.ByteSize(0)
    free: Any = None


TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
NUMBER = st.integers(-(2**40), 2**40)
COLOURS = st.sampled_from(Colour)
STEPS = st.builds(Step, title=TEXT, done=st.booleans())
EVERYTHING = st.builds(
    Everything,
    count=st.integers(),
    ratio=st.floats(allow_nan=False),
    on=st.booleans(),
    text=TEXT,
    raw=st.binary(max_size=5),
    colour=COLOURS,
    level=st.sampled_from(Level),
    when=st.none() | st.datetimes(timezones=st.none() | st.just(dt.timezone(dt.timedelta(hours=2)))),
    day=st.none() | st.dates(),
    clock=st.none() | st.times(),
    span=st.timedeltas(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    key=st.none() | st.uuids(),
    path=TEXT.filter(lambda text: "\0" not in text).map(pathlib.Path),
    pair=st.tuples(NUMBER, TEXT),
    many=st.lists(COLOURS, max_size=3).map(tuple),
    tags=st.sets(TEXT, max_size=3),
    hues=st.frozensets(COLOURS),
    steps=st.lists(STEPS, max_size=3),
    by_name=st.dictionaries(TEXT, STEPS, max_size=3),
    by_hue=st.dictionaries(COLOURS, NUMBER),
    basket=st.builds(Basket, st.lists(TEXT, max_size=2), NUMBER),
    notes=st.fixed_dictionaries({}, optional={"items": st.lists(TEXT, max_size=2), "total": NUMBER}),
    pet=st.builds(Cat, lives=NUMBER) | st.builds(Dog, tricks=st.lists(TEXT, max_size=2)),
    mode=st.sampled_from(["a", 1]),
    history=st.lists(NUMBER, max_size=3).map(collections.deque),
    address=st.none() | st.ip_addresses(v=4),
    link=st.sampled_from([None, "https://example.org/a?b=c"]),
    pattern=st.sampled_from([None, re.compile("a+")]),
    point=st.builds(Point, NUMBER),
    counts=st.dictionaries(TEXT, st.integers(1, 9), max_size=2).map(collections.Counter),
    groups=st.dictionaries(TEXT, st.lists(NUMBER, max_size=2), max_size=2),
    parsed=st.sampled_from(["[]", "[1,2]"]),
    size=st.integers(0, 2**40),
    free=st.recursive(st.none() | st.booleans() | NUMBER | TEXT, lambda inner: st.lists(inner, max_size=2), max_leaves=4),
)
EVERY = shape(Everything)


@given(EVERYTHING)
def test_every_type_of_field_comes_back_from_a_store_as_it_was(state):
    values = stored(EVERY.dump(state))

    again = EVERY.load(values)

    assert again == state
    assert [type(getattr(again, name)) for name in EVERY.fields] == [type(getattr(state, name)) for name in EVERY.fields]
    assert codec.encode(EVERY.dump(again)) == codec.encode(values)
    assert codec.encode(EVERY.validated(values)) == codec.encode(values)


def test_members_of_enums_are_stored_as_their_values_and_models_as_dicts():
    state = Everything(
        level=Level.HIGH, hues={Colour.RED}, by_hue={Colour.BLUE: 1}, steps=[Step()], free=[Step(), Level.LOW]
    )

    values = EVERY.dump(state)

    assert type(values["level"]) is int
    assert (values["colour"], values["hues"], values["by_hue"]) == ("red", {"red"}, {"blue": 1})
    assert values["steps"] == [{"title": "", "done": False}]
    assert values["free"] == [{"title": "", "done": False}, 1]


def test_a_subclass_is_stored_as_its_field_declares():
    class Special(Step):
        more: int = 1

    state = shape(Prefs).load({})
    state.steps.append(Special(title="x"))

    assert shape(Prefs).dump(state)["steps"] == [{"title": "x", "done": False}]


def test_a_secret_is_left_for_the_codec_to_refuse_and_never_shown():
    class Login(BaseModel):
        password: pydantic.SecretStr = pydantic.SecretStr("hunter2")

    values = shape(Login).dump(Login())

    with pytest.raises(UnstorableValueError) as caught:
        codec.encode(values)
    assert "SecretStr" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.path == "['password']"


BOUNDED = collections.deque([1], maxlen=2)
UNBOUND = pydantic.TypeAdapter(collections.deque[int]).dump_python(BOUNDED).maxlen is None


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        pytest.param("history", BOUNDED, "deque", marks=pytest.mark.skipif(UNBOUND, reason="pydantic takes the bound away")),
        ("pattern", re.compile("a", re.IGNORECASE), "Pattern"),
    ],
)
def test_what_would_come_back_without_a_part_of_it_is_left_for_the_codec_to_refuse(field, value, kind):
    values = EVERY.dump(Everything(**{field: value}))

    with pytest.raises(UnstorableValueError, match=f"of type {kind}"):
        codec.encode(values)


def test_what_a_subclass_makes_of_itself_is_not_what_is_stored():
    class Loud(str):
        def __str__(self):
            return "wrong"

    class Wrong(int):
        def __int__(self):
            return -1

    values = EVERY.dump(Everything(free=[Loud("a"), Wrong(1)]))

    assert values["free"] == ["a", 1]
    assert [type(each) for each in values["free"]] == [str, int]


def test_a_set_of_models_which_has_no_stored_form_names_its_field():
    class Member(BaseModel, frozen=True):
        n: int = 0

    class Club(BaseModel):
        members: set[Member] = set()

    with pytest.raises(MemoryValidationError) as caught:
        shape(Club, names=locals()).dump(Club(members={Member()}))

    assert caught.value.fields == ("members",)


# Serializers.


class Serialized(BaseModel):
    when: dt.datetime = dt.datetime(2020, 1, 1)
    tags: set[str] = set()

    @pydantic.field_serializer("when")
    def _when(self, value: dt.datetime) -> str:
        return value.isoformat()

    @pydantic.field_serializer("tags")
    def _tags(self, value: set[str]) -> list[str]:
        return sorted(value)


def test_what_a_field_serializer_gives_is_what_is_stored():
    found = shape(Serialized)
    state = Serialized(when=dt.datetime(2021, 2, 3), tags={"b", "a"})

    values = found.dump(state)

    assert values == {"when": "2021-02-03T00:00:00", "tags": ["a", "b"]}
    assert found.load(values) == state


def test_a_model_serializer_may_change_values_but_not_the_keys():
    def serializing(result):
        class Own(BaseModel):
            n: int = 1

            @pydantic.model_serializer
            def _all(self) -> Any:
                return result

        return shape(Own), Own()

    found, state = serializing({"n": 2})
    assert found.dump(state) == {"n": 2}
    for result, words in (("secret", "not a str"), ({"m": "secret"}, "'m', which is none of its fields")):
        found, state = serializing(result)
        with pytest.raises(UnstorableValueError) as caught:
            found.dump(state)
        assert words in str(caught.value)
        assert "secret" not in str(caught.value)


def test_a_serializer_that_fails_is_an_error_that_names_the_field():
    class Failing(BaseModel):
        fine: int = 0
        bad: int = 0

        @pydantic.field_serializer("bad")
        def _bad(self, value: int) -> int:
            raise RuntimeError("secret")

    with pytest.raises(MemoryValidationError) as caught:
        shape(Failing).dump(Failing())

    assert caught.value.fields == ("bad",)
    assert "secret" not in str(caught.value)
    assert caught.value.__context__ is None


# What a body may leave.


@pytest.mark.parametrize("cls", [Prefs, Basket, Notes])
@pytest.mark.parametrize("garbage", ["hunter2", object(), [object()]], ids=["text", "object", "list"])
def test_what_a_body_leaves_is_validated_before_it_is_stored(cls, garbage):
    found = shape(cls)
    state = found.load({})
    name = "volume" if cls is Prefs else "total"
    if cls is Notes:
        state[name] = garbage
    else:
        setattr(state, name, garbage)

    with pytest.raises(StateError) as caught:
        found.validated(found.dump(state))

    assert isinstance(caught.value, MemoryValidationError)
    assert caught.value.fields == (name,)
    assert "user memory" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_what_a_body_leaves_is_stored_as_what_it_means():
    found = shape(Prefs)
    state = found.load({})
    state.volume = "5"

    assert found.validated(found.dump(state))["volume"] == 5


def test_a_container_that_holds_itself_is_an_error_that_names_the_field():
    state = Everything()
    state.free = []
    state.free.append(state.free)

    with pytest.raises(UnstorableValueError) as caught:
        EVERY.dump(state)

    assert caught.value.path == "memory['free']"


def test_a_dump_shares_nothing_with_the_state():
    state = Everything(free={"a": [1]})
    values = EVERY.dump(state)

    state.free["a"].append(2)
    state.free["b"] = 3

    assert values["free"] == {"a": [1]}
    flat = Everything(free={"a": 1})
    values = EVERY.dump(flat)
    flat.free["b"] = 2
    assert values["free"] == {"a": 1}


def test_changes_in_place_are_seen_at_any_depth():
    for cls, change in (
        (Prefs, lambda state: setattr(state.steps[0], "done", True)),
        (Everything, lambda state: state.basket.items.append("x")),
        (Everything, lambda state: state.notes.setdefault("items", []).append("x")),
        (Everything, lambda state: state.by_name["a"].__setattr__("title", "new")),
    ):
        found = shape(cls)
        state = found.load({"steps": [{"title": "t"}], "by_name": {"a": {}}})
        before = codec.encode(found.dump(state))

        change(state)

        assert codec.encode(found.dump(state)) != before


# Errors.


class Checked(BaseModel):
    low: int = 0
    high: int = Field(default=10, le=100)
    by_name: dict[str, Step] = {}
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Field(default_factory=Cat)
    word: str = "a"
    link: pydantic.HttpUrl | None = None

    @pydantic.field_validator("word")
    @classmethod
    def _word(cls, value: str) -> str:
        if value == "hunter2":
            raise ValueError(f"not {value}")
        if value == "hunter2!":
            raise pydantic_custom(value)
        return value

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Checked:
        if self.low > self.high:
            raise ValueError(f"{self.low} is above hunter2")
        return self


def pydantic_custom(value):
    from pydantic_core import PydanticCustomError

    return PydanticCustomError("bad_word", "not {word}", {"word": value})


@pytest.mark.parametrize(
    ("values", "fields", "words"),
    [
        ({"high": "hunter2"}, ("high",), "field 'high': Input should be a valid integer"),
        ({"high": 987654}, ("high",), "field 'high': Input should be less than or equal to 100"),
        ({"high": 987654, "low": "hunter2"}, ("low", "high"), "field 'low'"),
        ({"by_name": {"a": {"done": "hunter2"}}}, ("by_name",), "field 'by_name' at ['a']['done']: "),
        ({"pet": {"kind": "hunter2"}}, ("pet",), "field 'pet': union_tag_invalid"),
        ({"word": "hunter2"}, ("word",), "field 'word': value_error"),
        ({"word": "hunter2!"}, ("word",), "field 'word': bad_word"),
        ({"link": "hunter2"}, ("link",), "field 'link': url_parsing"),
        ({"low": 987654}, (), "as a whole: value_error"),
    ],
    ids=str,
)
def test_a_validation_error_names_scope_and_field_and_holds_no_value(values, fields, words):
    found = shape(Checked)
    for attempt in (found.load, found.check, found.validated):
        with pytest.raises(MemoryValidationError) as caught:
            attempt(values)
        error = caught.value

        assert (error.scope, error.fields) == ("user", fields)
        assert str(error).startswith("user memory: ")
        assert "does not fit Checked" in str(error)
        assert words in str(error)
        assert not re.search("hunter2|987654", str(error) + repr(vars(error)))
        assert error.__cause__ is error.__context__ is None
        assert error.committed is False
        assert isinstance(error, ValueError)


def test_a_message_says_of_many_fields_how_many_there_are():
    with pytest.raises(MemoryValidationError) as caught:
        EVERY.load(dict.fromkeys(("count", "ratio", "on", "text", "raw"), object()))

    assert caught.value.fields == ("count", "ratio", "on", "text", "raw")
    assert "and 2 more" in str(caught.value)


def test_a_validator_with_a_bug_is_the_cause_of_the_error():
    class Buggy(BaseModel):
        n: int = 0

        @pydantic.field_validator("n")
        @classmethod
        def _n(cls, value: int) -> int:
            raise KeyError("hunter2")

    with pytest.raises(MemoryValidationError) as caught:
        shape(Buggy).load({"n": 1})

    assert isinstance(caught.value.__cause__, KeyError)
    assert "KeyError" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_merged_values_that_do_not_fit_together_are_refused():
    found = shape(Checked)
    found.check({"low": 5, "high": 6, "other": object()})

    with pytest.raises(MemoryValidationError, match="this call and another one wrote"):
        found.check({"low": 7, "high": 6})


# Update.


@pytest.mark.parametrize("cls", [Basket, CheckedBasket, Notes, StdNotes])
def test_what_others_wrote_comes_into_the_state_in_place(cls):
    found = shape(cls)
    state = found.load({"items": ["a"], "total": 1})
    items = state["items"] if isinstance(state, dict) else state.items

    found.update(state, {"items": ["a", "b"], "total": 2})

    assert found.dump(state) == {"items": ["a", "b"], "total": 2}
    assert (state["items"] if isinstance(state, dict) else state.items) is items


def test_parts_of_a_model_that_a_body_holds_stay_alive():
    found = shape(Everything)
    state = found.load({"steps": [{"title": "a"}], "by_name": {"x": {}}, "tags": {"t"}, "basket": {"items": ["i"]}})
    held = state.steps, state.steps[0], state.by_name["x"], state.tags, state.basket, state.basket.items

    found.update(
        state,
        {
            "steps": [{"title": "b"}, {}],
            "by_name": {"x": {"done": True}},
            "tags": {"t", "u"},
            "basket": {"items": ["i", "j"]},
        },
    )

    now = state.steps, state.steps[0], state.by_name["x"], state.tags, state.basket, state.basket.items
    assert all(one is other for one, other in zip(held, now, strict=True))
    assert (held[1].title, held[2].done, held[3], held[5]) == ("b", True, {"t", "u"}, ["i", "j"])


def test_only_the_named_fields_are_updated_and_absent_ones_get_their_default():
    found = shape(Prefs)
    state = found.load({"volume": 5, "name": "x"})

    found.update(state, {"volume": 6, "name": "y"}, ["volume"])
    assert (state.volume, state.name, state.model_fields_set) == (6, "x", {"volume", "name"})
    found.update(state, {"name": "y"}, ["volume"])
    assert (state.volume, state.model_fields_set) == (3, {"name"})

    notes = shape(Notes)
    kept = notes.load({"items": ["a"], "total": 1})
    notes.update(kept, {"items": ["b"]}, ["total"])
    assert kept == {"items": ["a"]}


def test_an_update_runs_no_assignment_rules_and_reaches_frozen_parts():
    class Part(BaseModel, frozen=True):
        n: int = 0

    @dataclasses.dataclass(frozen=True)
    class Piece:
        n: int = 0

    class Whole(BaseModel):
        model_config = ConfigDict(validate_assignment=True)
        piece: Piece = Piece()
        low: int = 0
        high: int = 1
        part: Part = Part()

        @pydantic.model_validator(mode="after")
        def _ordered(self) -> Whole:
            assert self.low < self.high
            return self

    found = shape(Whole, names=locals())
    state = found.load({})
    part, piece = state.part, state.piece

    found.update(state, {"low": 5, "high": 6, "part": {"n": 1}, "piece": {"n": 1}})

    assert (state.low, state.high) == (5, 6)
    assert (state.part.n, part.n, state.piece.n, piece.n) == (1, 0, 1, 0)


def test_a_part_that_stands_twice_becomes_two():
    found = shape(Prefs)
    step = Step(title="a")
    state = Prefs(steps=[step, step])

    found.update(state, {"steps": [{"title": "b"}, {"title": "c"}]})

    assert [each.title for each in state.steps] == ["b", "c"]


def test_extra_keys_are_updated_too():
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        n: int = 0

    found = shape(Open)
    state = found.load({"a": [1], "b": 2})
    held = state.a

    found.update(state, {"n": 1, "a": [1, 2], "c": 3})

    assert found.dump(state) == {"n": 1, "a": [1, 2], "c": 3}
    assert state.a is held


@given(EVERYTHING, EVERYTHING)
def test_an_updated_state_is_what_a_load_would_give(one, other):
    values = stored(EVERY.dump(other))

    EVERY.update(one, values)

    assert one == EVERY.load(values)
    assert codec.encode(EVERY.dump(one)) == codec.encode(values)
