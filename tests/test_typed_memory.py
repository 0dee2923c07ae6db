"""Typed state in a call: a memory that its tool gets as an instance of a model, a dataclass or a TypedDict."""

from __future__ import annotations

import contextvars
import copy
import dataclasses
import functools
import sys
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import anyio
import pydantic.dataclasses
import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from support import commit, committed
from typing_extensions import TypedDict

from agent_gantry_state import (
    DeclarationError,
    FurtherScopeError,
    Gantry,
    Memory,
    MemoryConflictError,
    MemoryValidationError,
    ReadOnlyMemoryError,
    SyncExecutionContext,
    SyncSession,
    UndeclaredKeyError,
    UnstorableValueError,
    merge,
)
from agent_gantry_state.pytest_plugin import Clock
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.typed import shape_of

WHO = {"session": "s1", "user": "ada"}
SECRET = "hunter2"


@pytest.fixture
def clock():
    return Clock(1000.0)


class CountingStore(MemoryStore):
    commits = 0

    def commit(self, message, /):
        self.commits += 1
        return super().commit(message)


@pytest.fixture
def gantry(clock):
    with Gantry(CountingStore(clock=clock)) as gantry, gantry.session("s1", user="ada"):
        yield gantry


class Step(BaseModel):
    title: str = ""
    done: bool = False


class Prefs(BaseModel):
    volume: int = 3
    name: str = ""
    items: list[str] = []
    steps: list[Step] = []


@dataclasses.dataclass
class Basket:
    volume: int = 3
    name: str = ""
    items: list[str] = dataclasses.field(default_factory=list)
    steps: list[Step] = dataclasses.field(default_factory=list)


@pydantic.dataclasses.dataclass
class CheckedBasket:
    volume: int = 3
    name: str = ""
    items: list[str] = Field(default_factory=list)
    steps: list[Step] = Field(default_factory=list)


class Notes(TypedDict, total=False):
    volume: int
    name: str
    items: list[str]
    steps: list[Step]


class Span(BaseModel):
    low: int = 0
    high: int = 10

    @model_validator(mode="after")
    def ordered(self) -> Span:
        if self.low > self.high:
            raise ValueError(SECRET)
        return self


@dataclasses.dataclass
class WithPostInit:
    volume: int = 3

    def __post_init__(self) -> None:
        pass


class WithInit(BaseModel):
    volume: int = 3

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)


class WithInfo(BaseModel):
    volume: int = 3

    @field_validator("volume")
    @classmethod
    def told(cls, value: int, info: ValidationInfo) -> int:
        return value


KINDS = [Prefs, Basket, CheckedBasket, Notes, Annotated[Prefs, "said"], Prefs | None]
CLASSES = [Prefs, Basket, CheckedBasket]


def read(state: Any, field: str) -> Any:
    return state[field] if isinstance(state, dict) else getattr(state, field)


def write(state: Any, **fields: Any) -> None:
    for field, value in fields.items():
        if isinstance(state, dict):
            state[field] = value
        else:
            setattr(state, field, value)


def tool(gantry: Gantry, cls: Any = Prefs, *, name: str | None = None, **options: Any) -> Callable[..., Any]:
    """A tool whose body is a function of its state."""

    def do(body: Callable[[Any], Any], memory: Any) -> Any:
        return body(memory)

    do.__annotations__["memory"] = cls
    decorated = gantry.with_memory(name=name, **options)(do)

    def call(body: Callable[[Any], Any]) -> Any:
        try:
            return decorated(body)
        finally:
            if name is not None:
                # The next one of this name is to be the same tool.
                gantry._wiring.release(name, decorated.plan.target)

    return call


def elsewhere(call: Callable[..., Any], *args: Any) -> Any:
    """What a call gives that is no part of the one around it."""
    return contextvars.Context().run(call, *args)


def stored(gantry: Gantry, scope: str = "session") -> dict[str, Any]:
    return committed(gantry, scope, **WHO)


def put(gantry: Gantry, values: dict[str, Any], scope: str = "session", delete: Any = ()) -> None:
    commit(gantry, scope, WHO, values, delete)


def commits(gantry: Gantry) -> int:
    """How often something was written."""
    return gantry._wiring.settings.bridge.store.commits


# What a tool gets.


@pytest.mark.parametrize("cls", KINDS, ids=str)
def test_an_instance_is_given_and_what_is_changed_in_it_is_remembered(gantry, cls):
    do = tool(gantry, cls, scope="user")
    do(lambda state: write(state, volume=5, items=["a"]))

    seen = do(lambda state: (type(state), read(state, "volume"), read(state, "items")))

    expected = typing.get_args(cls)[0] if typing.get_args(cls) else cls
    assert seen == (dict if expected is Notes else expected, 5, ["a"])
    assert stored(gantry, "user") == {"volume": 5, "items": ["a"]}


@pytest.mark.parametrize("cls", CLASSES)
def test_a_change_in_place_is_found_at_any_depth(gantry, cls):
    do = tool(gantry, cls)
    do(lambda state: state.steps.append(Step(title="a")))

    def finish(state):
        state.steps[0].done = True

    do(finish)

    assert stored(gantry) == {"steps": [{"title": "a", "done": True}]}


@pytest.mark.parametrize("cls", KINDS, ids=str)
def test_reading_writes_nothing(gantry, cls):
    do = tool(gantry, cls)

    do(repr)
    do(copy.deepcopy)
    assert commits(gantry) == 0
    put(gantry, {"volume": "7", "steps": [{"title": "a"}]})
    before = commits(gantry)

    assert do(lambda state: read(state, "volume")) == 7

    assert commits(gantry) == before
    assert stored(gantry) == {"volume": "7", "steps": [{"title": "a"}]}


def test_a_change_writes_only_its_field(gantry):
    put(gantry, {"volume": "7"})

    tool(gantry)(lambda state: write(state, name="ada"))

    assert stored(gantry) == {"volume": "7", "name": "ada"}


def test_assigning_what_was_there_writes_nothing(gantry):
    put(gantry, {"volume": 7})
    before = commits(gantry)

    tool(gantry)(lambda state: write(state, volume=7, name=""))

    assert commits(gantry) == before


def test_a_change_that_is_taken_back_writes_nothing(gantry):
    put(gantry, {"volume": 7})
    before = commits(gantry)

    def there_and_back(state):
        state.volume = 9
        stored_inside = look(dict)
        state.volume = 7
        return stored_inside

    look = tool(gantry, dict)
    assert tool(gantry)(there_and_back) == {"volume": 9}

    assert commits(gantry) == before


@pytest.mark.parametrize("cls", [Prefs, Basket, Notes])
def test_stored_keys_that_the_class_does_not_know_are_kept(gantry, cls):
    put(gantry, {"other": [1], "volume": 1})

    tool(gantry, cls)(lambda state: write(state, volume=2))

    assert stored(gantry) == {"other": [1], "volume": 2}


def test_a_model_that_allows_extra_keys_sees_all_of_the_memory(gantry):
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        volume: int = 3

    put(gantry, {"other": [1], "gone": 1})

    def body(state):
        state.other.append(2)
        state.new = {"a": 1}
        del state.gone

    tool(gantry, Open)(body)

    assert stored(gantry) == {"other": [1, 2], "new": {"a": 1}}


def test_a_field_with_an_alias_is_stored_by_its_name(gantry):
    class Aliased(BaseModel):
        volume: int = Field(default=3, alias="vol")

    tool(gantry, Aliased)(lambda state: write(state, volume=5))

    assert stored(gantry) == {"volume": 5}
    assert tool(gantry, Aliased)(lambda state: state.volume) == 5


def test_a_key_that_is_deleted_from_a_typed_dict_is_deleted(gantry):
    put(gantry, {"volume": 7, "name": "ada"})

    tool(gantry, Notes)(lambda state: state.pop("volume"))

    assert stored(gantry) == {"name": "ada"}


def test_a_key_that_a_typed_dict_does_not_declare_is_refused(gantry):
    with pytest.raises(UndeclaredKeyError, match=r"'other'.*Notes does not declare it"):
        tool(gantry, Notes)(lambda state: write(state, volume=1, other=1))

    assert stored(gantry) == {}


def test_a_parameter_may_have_a_default_of_its_own(gantry):
    @gantry.with_memory
    def do(memory: Prefs = Prefs()) -> int:
        memory.volume += 1
        return memory.volume

    @gantry.with_memory
    def or_none(memory: Prefs | None = None) -> int:
        assert memory is not None
        memory.volume += 1
        return memory.volume

    assert (do(), do(), or_none()) == (4, 5, 6)


def test_an_instance_can_be_handed_in_by_a_test(gantry):
    @gantry.with_memory
    def do(n: int, memory: Prefs) -> int:
        memory.volume += n
        return memory.volume

    assert do.__wrapped__(2, Prefs(volume=1)) == 3
    assert stored(gantry) == {}


# How classes change over time.


def test_a_class_that_gains_a_field_loads_what_is_stored(gantry):
    class Before(BaseModel):
        volume: int = 3

    tool(gantry, Before)(lambda state: write(state, volume=5))

    assert tool(gantry)(lambda state: (state.volume, state.items)) == (5, [])


def test_what_a_class_has_lost_stays_stored(gantry):
    class After(BaseModel):
        name: str = ""

    tool(gantry)(lambda state: write(state, volume=5))

    tool(gantry, After)(lambda state: write(state, name="ada"))

    assert stored(gantry) == {"volume": 5, "name": "ada"}


@pytest.mark.parametrize("cls", KINDS, ids=str)
def test_a_stored_value_that_does_not_fit_is_an_error_that_names_field_and_scope_and_no_value(gantry, cls):
    put(gantry, {"volume": SECRET, "name": "ada"}, "user")
    ran = []

    with pytest.raises(MemoryValidationError, match=r"user memory: .*field 'volume'") as caught:
        tool(gantry, cls, scope="user")(ran.append)

    assert (caught.value.scope, caught.value.fields, caught.value.committed) == ("user", ("volume",), False)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert ran == []


# What is refused.


@pytest.mark.parametrize("cls", KINDS, ids=str)
def test_a_state_that_does_not_fit_is_refused_and_nothing_of_the_call_is_written(gantry, cls):
    with pytest.raises(MemoryValidationError, match=r"session memory: what this call left.*field 'volume'") as caught:
        tool(gantry, cls)(lambda state: write(state, volume=SECRET, name="ada"))

    assert caught.value.fields == ("volume",)
    assert SECRET not in str(caught.value)
    assert stored(gantry) == {}


def test_what_is_left_is_stored_as_what_it_means(gantry):
    tool(gantry)(lambda state: write(state, volume="5", steps=[{"title": "a"}]))

    assert stored(gantry) == {"volume": 5, "steps": [{"title": "a", "done": False}]}


def test_a_field_that_cannot_be_stored_is_refused_with_its_path(gantry):
    class Loose(BaseModel):
        bag: dict[str, Any] = {}

    with pytest.raises(UnstorableValueError) as caught:
        tool(gantry, Loose)(lambda state: write(state, bag={"a": [object()]}))

    assert caught.value.path == "memory['bag']['a'][0]"
    assert stored(gantry) == {}


@pytest.mark.parametrize("value", [Prefs(), Basket(), CheckedBasket()], ids=lambda value: type(value).__name__)
def test_a_model_in_a_plain_memory_is_refused_with_the_advice_to_annotate(gantry, value):
    @gantry.with_memory
    def do(memory: dict) -> None:
        memory["state"] = {"inner": value}

    with pytest.raises(UnstorableValueError, match=r"memory\['state'\]\['inner'\].*annotate"):
        do()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda state: object.__setattr__(state, "items", ["b"]), id="assigned"),
        pytest.param(lambda state: state.items.append("b"), id="in place"),
        pytest.param(lambda state: setattr(state.step, "title", "b"), id="in a part"),
    ],
)
@pytest.mark.parametrize("kind", ["model", "dataclass"])
def test_a_frozen_class_is_read_only_and_the_error_names_the_key(gantry, kind, change):
    class Model(BaseModel):
        model_config = ConfigDict(frozen=True)
        items: list[str] = ["a"]
        step: Step = Step()

    @dataclasses.dataclass(frozen=True)
    class Data:
        items: list[str] = dataclasses.field(default_factory=lambda: ["a"])
        step: Step = dataclasses.field(default_factory=Step)

    do = tool(gantry, Model if kind == "model" else Data)
    assert do(lambda state: state.items) == ["a"]

    with pytest.raises(ReadOnlyMemoryError, match="read-only") as caught:
        do(change)

    assert caught.value.key in ("items", "step")
    assert stored(gantry) == {}


def test_a_field_without_a_default_is_refused_at_decoration(gantry):
    class Needs(BaseModel):
        volume: int

    with pytest.raises(DeclarationError, match="give it a default"):
        tool(gantry, Needs)


# Where annotations are found.


def test_a_local_class_is_found_by_its_name(gantry):
    class Local(BaseModel):
        n: int = 1

    @gantry.with_memory
    def do(memory: Local) -> int:
        memory.n += 1
        return memory.n

    assert (do(), do()) == (2, 3)


def test_a_local_class_is_found_from_a_method_of_another_local_class(gantry):
    class Local(BaseModel):
        n: int = 1

    class Tools:
        step = 2

        @gantry.with_memory
        def do(self, memory: Local) -> int:
            memory.n += self.step
            return memory.n

        @classmethod
        @gantry.with_memory
        def of_class(cls, memory: Annotated[Local, "said"]) -> int:
            return memory.n + cls.step

        @staticmethod
        @gantry.with_memory
        def of_none(memory: Local) -> int:
            return memory.n

    assert (Tools().do(), Tools.of_class(), Tools.of_none()) == (3, 5, 3)


def test_a_local_class_is_found_below_a_decorator_of_somebody_else(gantry):
    class Local(BaseModel):
        n: int = 1

    # Its frames are of another module.
    space: dict[str, Any] = {"__name__": "other", "gantry": gantry, "functools": functools}
    exec("def remembering(fn):\n    return gantry.with_memory(fn)\n", space)

    @space["remembering"]
    def do(memory: Local) -> int:
        memory.n += 1
        return memory.n

    assert do() == 2


def test_a_class_that_is_local_to_somebody_elses_decorator_is_none(gantry):
    class Local(BaseModel):
        n: int = 1

    name = "test_a_class_that_is_local_to_somebody_elses_decorator_is_none"
    space: dict[str, Any] = {"__name__": "other", "gantry": gantry}
    exec(f"def {name}(fn):\n    Local = dict\n    return gantry.with_memory(fn)\n", space)

    @space[name]
    def do(memory: Local) -> int:
        return memory.n

    assert do() == 1


def test_a_class_of_the_class_around_goes_before_one_further_out(gantry):
    class Local(BaseModel):
        n: int = 1

    class Tools:
        class Local(BaseModel):
            n: int = 2

        @gantry.with_memory
        def do(self, memory: Local) -> int:
            return memory.n

    assert Tools().do() == 2
    assert Local().n == 1


def test_classes_are_found_where_a_tool_that_was_made_elsewhere_is_decorated(gantry):
    class OnlyHere(BaseModel):
        part: Part | None = None

    class Part(BaseModel):
        n: int = 1

    gantry.with_memory(of_a_class_found_elsewhere)(Part())

    assert stored(gantry) == {"part": {"n": 1}}
    assert OnlyHere().part is None


def of_a_class_found_elsewhere(part: Any, memory: OnlyHere) -> None:  # noqa: F821
    memory.part = part


def test_a_local_class_goes_before_one_of_the_module(gantry):
    class Prefs(BaseModel):
        local: int = 1

    @gantry.with_memory
    def do(memory: Prefs) -> int:
        return memory.local

    assert do() == 1


def test_a_class_of_the_module_goes_before_one_where_the_tool_is_decorated(gantry):
    class Prefs(BaseModel):
        local: int = 1

    assert type(gantry.with_memory(of_the_module)()).__module__ == __name__
    assert not hasattr(gantry.with_memory(of_the_module)(), "local")
    assert Prefs is not globals()["Prefs"]


def of_the_module(memory: Prefs) -> Prefs:
    return memory


def test_a_class_that_cannot_be_found_is_refused_at_decoration(gantry):
    with pytest.raises(DeclarationError, match=r"'Missing'.*cannot be found"):

        @gantry.with_memory
        def do(memory: Missing) -> None:  # noqa: F821
            pass


def test_partials_and_callable_objects_get_a_state(gantry):
    def add(n: int, memory: Prefs) -> int:
        memory.volume += n
        return memory.volume

    class Adds:
        def __call__(self, n: int, memory: Prefs) -> int:
            return add(n, memory)

    assert gantry.with_memory(functools.partial(add, 2))() == 5
    assert gantry.with_memory(Adds())(3) == 8


@pytest.mark.skipif(sys.version_info < (3, 12), reason="has no such syntax")
def test_a_generic_class_of_the_new_syntax_is_validated_by_its_argument(gantry):
    space: dict[str, Any] = {"BaseModel": BaseModel, "gantry": gantry, "__name__": "newer"}
    exec(
        "class Box[T](BaseModel):\n    items: list[T] = []\n"
        "@gantry.with_memory\ndef do(item, memory: Box[int]):\n    memory.items.append(item)\n",
        space,
    )
    space["do"](1)

    with pytest.raises(MemoryValidationError, match="'items'"):
        space["do"]("x")

    assert stored(gantry) == {"items": [1]}


# With what a decorator says.


def test_states_stack_with_memories_and_other_scopes_in_one_commit(gantry):
    @gantry.with_memory(into="basket", scope="user")
    @gantry.with_memory(into="plain", scope="global")
    @gantry.with_memory
    def do(fail: bool, memory: Prefs, plain: Memory, basket: Basket) -> None:
        memory.volume = 1
        plain["n"] = 2
        basket.volume = SECRET if fail else 3

    do(False)
    assert (stored(gantry), stored(gantry, "global"), stored(gantry, "user")) == ({"volume": 1}, {"n": 2}, {})
    put(gantry, {"n": 0}, "global")

    with pytest.raises(MemoryValidationError, match="user memory"):
        do(True)

    assert stored(gantry, "global") == {"n": 0}


def test_two_views_of_one_memory_see_what_the_other_wrote(gantry):
    look = tool(gantry, dict)

    @gantry.with_memory(into="notes")
    @gantry.with_memory(into="plain")
    @gantry.with_memory
    def do(memory: Prefs, plain: Memory, notes: Notes) -> Any:
        memory.items.append("a")
        items = memory.items
        inside = look(dict)
        plain["volume"] = 9
        notes["name"] = "ada"
        look(dict)
        assert memory.items is items
        return inside, memory.volume, memory.name, dict(plain), dict(notes)

    all_of_it = {"items": ["a"], "volume": 9, "name": "ada"}
    assert do() == ({"items": ["a"]}, 9, "ada", all_of_it, all_of_it)
    assert stored(gantry) == all_of_it


def test_two_views_that_write_the_same_field_differently_conflict(gantry):
    @gantry.with_memory(into="notes")
    @gantry.with_memory
    def do(memory: Prefs, notes: Notes) -> None:
        memory.name = "ada"
        notes["name"] = "bob"

    with pytest.raises(MemoryConflictError) as caught:
        do()

    assert caught.value.keys == ("name",)
    assert stored(gantry) == {}


@pytest.mark.parametrize("bad", ["first", "second"])
def test_what_one_view_wrote_is_counted_once_after_another_one_failed_to_be_brought_in(gantry, bad):
    look = tool(gantry, dict)

    @gantry.with_memory(into="basket")
    @gantry.with_memory
    def do(memory: Prefs, basket: Basket) -> None:
        memory.items.append("a")
        basket.items.append("b")
        for value in (SECRET, 5):
            (memory if bad == "first" else basket).volume = value
            try:
                look(dict)
            except MemoryValidationError:
                assert value == SECRET

    do()

    assert sorted(stored(gantry)["items"]) == ["a", "b"]


def test_layers_read_through_and_write_to_the_nearest(gantry):
    put(gantry, {"volume": 1, "items": ["a"]}, "user")
    put(gantry, {"name": "all"}, "global")
    do = tool(gantry, scope=("session", "user", "global"))

    def body(state):
        state.items.append("b")
        return state.volume, state.name

    assert do(body) == (1, "all")

    assert stored(gantry) == {"items": ["a", "b"]}
    assert stored(gantry, "user") == {"volume": 1, "items": ["a"]}


@pytest.mark.parametrize("near", [1, 2])
def test_deleting_from_a_typed_dict_shows_what_is_further_out_and_refuses_to_delete_that(gantry, near):
    put(gantry, {"volume": 1, "name": "far"}, "user")
    put(gantry, {"volume": near})
    look = tool(gantry, dict)
    do = tool(gantry, Notes, scope=("session", "user"))

    def body(state):
        del state["volume"]
        look(dict)
        return state["volume"]

    assert do(body) == 1
    assert stored(gantry) == {}
    with pytest.raises(FurtherScopeError) as caught:
        do(lambda state: state.pop("name"))
    assert (caught.value.key, caught.value.scope) == ("name", "user")


def test_an_error_in_layers_names_the_field_and_the_scope_that_holds_it(gantry):
    put(gantry, {"volume": SECRET}, "user")

    with pytest.raises(MemoryValidationError, match=r"^user memory: what is stored .*'volume'") as caught:
        tool(gantry, scope=("session", "user"))(repr)

    assert (caught.value.scope, caught.value.fields) == ("user", ("volume",))
    assert SECRET not in str(caught.value)


def test_an_error_of_several_layers_names_each_scope(gantry):
    put(gantry, {"volume": SECRET})
    put(gantry, {"name": 1}, "user")

    with pytest.raises(MemoryValidationError) as caught:
        tool(gantry, scope=("session", "user"))(repr)

    assert str(caught.value).startswith("session memory: what is stored does not fit Prefs: field 'volume': ")
    assert "; field 'name': Input should be a valid string (string_type), in the user memory;" in str(caught.value)
    assert caught.value.scope == "session"


def test_an_error_in_layers_names_the_scope_to_which_a_call_inside_wrote_garbage(gantry):
    further = tool(gantry, dict, scope="user")

    with pytest.raises(MemoryValidationError, match=r"^user memory: .*'volume'") as caught:
        tool(gantry, scope=("session", "user"))(lambda state: further(lambda memory: memory.update(volume=SECRET)))

    assert caught.value.scope == "user"


def test_an_error_in_layers_of_what_the_body_left_names_the_nearest_scope(gantry):
    put(gantry, {"volume": 1}, "user")

    with pytest.raises(MemoryValidationError, match=r"^session memory: what this call left") as caught:
        tool(gantry, scope=("session", "user"))(lambda state: write(state, volume=SECRET))

    assert caught.value.scope == "session"


@pytest.mark.parametrize("cls", [Prefs, Basket, Notes])
def test_a_private_state_is_seen_by_its_tool_alone(gantry, cls):
    mine, other = tool(gantry, cls, name="mine", private=True), tool(gantry, cls, name="other", private=True)

    mine(lambda state: write(state, volume=5))

    assert mine(lambda state: read(state, "volume")) == 5
    assert other(lambda state: dict(state) if cls is Notes else state.volume) == ({} if cls is Notes else 3)
    assert stored(gantry) == {}


def test_an_error_of_a_private_state_names_the_field_without_its_prefix(gantry):
    with pytest.raises(MemoryValidationError) as caught:
        tool(gantry, name="mine", private=True)(lambda state: write(state, volume=SECRET))

    assert caught.value.fields == ("volume",)
    assert "\0" not in str(caught.value)


def test_keys_must_name_every_field(gantry):
    put(gantry, {"volume": 1, "other": 1})
    do = tool(gantry, keys=("volume", "name", "items", "steps"))

    do(lambda state: write(state, volume=2))

    assert stored(gantry) == {"volume": 2, "other": 1}
    with pytest.raises(DeclarationError, match="keys leaves out 'items'"):
        tool(gantry, keys=("volume", "name", "steps"))


def test_a_read_only_state_refuses_a_change_and_names_the_key(gantry):
    do = tool(gantry, read_only=True)
    assert do(lambda state: state.volume) == 3

    with pytest.raises(ReadOnlyMemoryError) as caught:
        do(lambda state: state.items.append("a"))

    assert caught.value.key == "items"
    assert stored(gantry) == {}


@pytest.mark.parametrize(
    "options", [{"default": {"volume": 5}}, {"default_factory": lambda: {"volume": 5}}], ids=["default", "factory"]
)
def test_default_covers_fields_without_one(gantry, options):
    class Needs(BaseModel):
        volume: int
        name: str = ""

    do = tool(gantry, Needs, **options)

    assert do(lambda state: state.volume) == 5
    assert commits(gantry) == 0
    put(gantry, {"name": "ada"})
    assert do(lambda state: (state.volume, state.name)) == (5, "ada")


@pytest.mark.parametrize("cls", [Prefs, Basket, Notes])
def test_default_names_only_fields(gantry, cls):
    with pytest.raises(DeclarationError, match=f"default names 'volum', which is no field of {cls.__name__}"):
        tool(gantry, cls, default={"volum": 5})
    with pytest.raises(DeclarationError, match="default_factory names 'volum', which is no field of"):
        tool(gantry, cls, default_factory=lambda: {"volum": 5})(repr)

    assert stored(gantry) == {}


def test_default_may_name_any_key_of_a_class_that_takes_all(gantry):
    class Open(BaseModel, extra="allow"):
        volume: int = 3

    assert tool(gantry, Open, default={"other": 5})(lambda state: state.other) == 5


def test_deleting_what_a_memory_begins_with_shows_after_a_call_inside(gantry):
    look = tool(gantry, dict, scope="user")

    @gantry.with_memory(scope="user", into="other")
    @gantry.with_memory(default={"volume": 5, "name": "ada"})
    def do(memory: Notes, other: Notes) -> Any:
        del memory["name"]
        other["name"] = "bob"
        look(dict)
        return dict(memory)

    assert do() == {"volume": 5}
    assert stored(gantry) == {"volume": 5}


def test_deleting_all_that_a_memory_begins_with_shows_after_a_call_inside(gantry):
    look = tool(gantry, dict, scope="user")

    @gantry.with_memory(scope="user", into="other")
    @gantry.with_memory(default={"name": "ada"})
    def do(memory: Notes, other: Notes) -> Any:
        del memory["name"]
        other["name"] = "bob"
        look(dict)
        return dict(memory)

    assert do() == {}


def test_what_a_memory_begins_with_still_shows_after_a_call_inside(gantry):
    look = tool(gantry, dict, scope="global")

    @gantry.with_memory(scope="global", into="other")
    @gantry.with_memory(scope=("conversation", "user"), into="layers", default={"a": [1]})
    @gantry.with_memory(default={"volume": 5})
    def do(memory: Prefs, layers: Memory, other: Notes) -> Any:
        other["name"] = "ada"
        look(dict)
        return memory.volume, dict(layers)

    with gantry.session("s1", user="ada", conversation="c"):
        assert do() == (5, {"a": [1]})


def test_a_changed_field_gets_the_time_to_live_and_no_other_one(gantry, clock):
    put(gantry, {"name": "ada"})
    do = tool(gantry, ttl=10)

    do(lambda state: write(state, volume=5))
    clock.now += 11

    assert stored(gantry) == {"name": "ada"}
    assert do(lambda state: state.volume) == 3


def test_a_sliding_time_is_restarted_by_reading(gantry, clock):
    do = tool(gantry, ttl=10, sliding=True)
    do(lambda state: write(state, volume=5))

    for _ in range(3):
        clock.now += 8
        assert do(lambda state: state.volume) == 5


# Calls inside calls.


@pytest.mark.parametrize("cls", CLASSES)
def test_a_plain_tool_inside_sees_the_state_and_shows_in_it(gantry, cls):
    def change(memory):
        seen = copy.deepcopy(dict(memory))
        memory["items"].append("b")
        memory["volume"] = 9
        memory["steps"][0]["done"] = True
        return seen

    plain = tool(gantry, dict)

    def body(state):
        state.items.append("a")
        state.steps.append(Step(title="s"))
        items, step = state.items, state.steps[0]
        seen = plain(change)
        # What the body holds stays alive.
        assert items is state.items
        assert step is state.steps[0]
        assert (items, step.done, state.volume) == (["a", "b"], True, 9)
        items.append("c")
        return seen

    seen = tool(gantry, cls)(body)

    assert seen["items"] == ["a"]
    assert stored(gantry) == {"items": ["a", "b", "c"], "steps": [{"title": "s", "done": True}], "volume": 9}


@pytest.mark.parametrize("cls", KINDS, ids=str)
def test_a_typed_tool_inside_a_plain_one_sees_and_shows_what_is_written(gantry, cls):
    typed = tool(gantry, cls)

    def body(memory):
        memory["items"] = items = ["a"]
        typed(lambda state: (read(state, "items").append("b"), write(state, volume=9)))
        assert memory["items"] is items
        return dict(memory)

    assert tool(gantry, dict)(body) == {"items": ["a", "b"], "volume": 9}
    assert stored(gantry) == {"items": ["a", "b"], "volume": 9}


def test_a_typed_tool_inside_a_typed_one_of_another_class(gantry):
    inner = tool(gantry, Notes)

    def body(state):
        state.volume = 1
        inner(lambda notes: write(notes, volume=notes["volume"] + 1, name="ada"))
        return state.volume, state.name

    assert tool(gantry, Basket)(body) == (2, "ada")


def test_contexts_and_sessions_inside_see_what_the_state_holds(gantry):
    @gantry.with_session
    def by_key(session: SyncSession) -> Any:
        session.set("volume", session.get("volume") + 1)
        return session.get("name")

    @gantry.with_context
    def by_context(ctx: SyncExecutionContext) -> Any:
        ctx.memory["volume"] += 1
        return ctx.memory["name"]

    def body(state):
        state.volume, state.name = 1, "ada"
        return by_key(), by_context(), state.volume

    assert tool(gantry)(body) == ("ada", "ada", 3)


def test_a_call_inside_that_fails_undoes_its_own_and_no_more(gantry):
    inner = tool(gantry)

    def fail(state):
        state.items.append("lost")
        raise RuntimeError

    def body(state):
        state.items.append("kept")
        with pytest.raises(RuntimeError):
            inner(fail)
        return list(state.items)

    assert tool(gantry)(body) == ["kept"]
    assert stored(gantry) == {"items": ["kept"]}


def test_garbage_of_a_call_inside_is_refused_when_the_outer_one_commits(gantry):
    plain, ended = tool(gantry, dict), []

    def body(state):
        plain(lambda memory: memory.update(volume=SECRET, name="ada"))
        ended.append(state.volume)

    with pytest.raises(MemoryValidationError, match=r"written elsewhere in this call.*'volume'") as caught:
        tool(gantry)(body)

    assert ended == [3]
    assert SECRET not in str(caught.value)
    assert stored(gantry) == {}


def test_garbage_that_is_mended_before_the_end_is_forgotten_and_nothing_beside_it_is_lost(gantry):
    plain = tool(gantry, dict)

    def body(state):
        plain(lambda memory: memory.update(volume=SECRET, name="ada"))
        plain(lambda memory: memory.update(volume=7))
        return state.volume, state.name

    assert tool(gantry)(body) == (7, "ada")
    assert stored(gantry) == {"volume": 7, "name": "ada"}


def test_what_the_body_has_seen_or_written_itself_it_may_write_again(gantry):
    plain = tool(gantry, dict)

    def body(state):
        state.name = "one"
        plain(lambda memory: memory.update(items=["a"]))
        plain(lambda memory: memory.update(volume=SECRET))
        state.name = "between"
        plain(dict)
        state.name = "two"
        state.items.append("b")
        plain(lambda memory: memory.update(volume=7))
        return state.volume

    assert tool(gantry)(body) == 7
    assert stored(gantry) == {"name": "two", "items": ["a", "b"], "volume": 7}


@pytest.mark.parametrize(("scope", "shows"), [("session", 3), (("session", "user"), 9)])
@pytest.mark.parametrize("cls", [Prefs, Basket, Notes])
def test_what_a_call_inside_deleted_is_as_if_it_had_never_been(gantry, cls, scope, shows):
    put(gantry, {"volume": 9}, "user")
    put(gantry, {"volume": 5, "name": "ada"})

    def body(state):
        tool(gantry, dict)(lambda memory: memory.clear())
        return {**(state if cls is Notes else vars(state))}

    seen = tool(gantry, cls, scope=scope)(body)

    if cls is Notes and scope == "session":
        assert seen == {}
    else:
        assert (seen["volume"], seen.get("name", "")) == (shows, "")
    assert stored(gantry) == {}


def test_what_a_call_inside_wrote_keeps_the_time_that_it_has_there(gantry, clock):
    plain = tool(gantry, dict)

    def body(state):
        state.volume = 5
        plain(lambda memory: memory.update(name="ada"))

    tool(gantry, ttl=10)(body)
    clock.now += 11

    assert stored(gantry) == {"name": "ada"}


def test_what_the_body_has_not_seen_is_not_written_over(gantry):
    plain = tool(gantry, dict)

    def body(state):
        plain(lambda memory: memory.update(volume=SECRET, name="theirs"))
        state.name = "mine"
        plain(lambda memory: memory.update(volume=7))

    with pytest.raises(MemoryValidationError):
        tool(gantry)(body)

    assert stored(gantry) == {}


def test_a_serializer_that_fails_on_what_a_call_inside_wrote_leaves_that_call_whole(gantry):
    class Picky(BaseModel):
        volume: int = 3
        name: str = ""

        @field_serializer("volume")
        def dumped(self, value: int) -> int:
            if value == 13:
                raise RuntimeError(SECRET)
            return value

    plain = tool(gantry, dict)

    def body(state):
        plain(lambda memory: memory.update(volume=13, name="ada"))
        return state.name

    with pytest.raises(MemoryValidationError) as caught:
        tool(gantry, Picky)(body)

    assert SECRET not in str(caught.value)
    assert stored(gantry) == {}


def test_a_state_is_left_alone_by_a_call_that_stands_alone(gantry):
    plain = tool(gantry, dict)

    def body(state):
        state.volume = 1
        with gantry.independent():
            return plain(lambda memory: memory.update(name="ada"))

    tool(gantry)(body)

    assert stored(gantry) == {"volume": 1, "name": "ada"}


# Calls at once.


@pytest.mark.parametrize("cls", KINDS, ids=str)
def test_different_fields_and_appended_lists_are_merged(gantry, cls):
    put(gantry, {"items": ["a"]})
    do = tool(gantry, cls)

    def body(state):
        read(state, "items").append("mine")
        write(state, volume=1)
        elsewhere(do_as, gantry, cls, lambda other: (read(other, "items").append("theirs"), write(other, name="ada")))

    do(body)

    assert stored(gantry) == {"items": ["a", "theirs", "mine"], "volume": 1, "name": "ada"}


def do_as(gantry: Gantry, cls: Any, body: Callable[[Any], Any], **options: Any) -> Any:
    with gantry.session("s1", user="ada"):
        return tool(gantry, cls, **options)(body)


def test_the_same_field_changed_twice_conflicts_and_names_it(gantry):
    put(gantry, {"volume": 1})

    def body(state):
        state.volume = 2
        state.name = "ada"
        elsewhere(do_as, gantry, Prefs, lambda other: write(other, volume=3))

    with pytest.raises(MemoryConflictError) as caught:
        tool(gantry)(body)

    assert caught.value.by_scope == {"session": ("volume",)}
    assert stored(gantry) == {"volume": 3}


def test_a_field_is_merged_as_it_is_declared(gantry):
    def body(state):
        state.volume = 5
        elsewhere(do_as, gantry, Prefs, lambda other: write(other, volume=9))

    tool(gantry, merge={"volume": merge.max})(body)

    assert stored(gantry) == {"volume": 9}


@pytest.mark.parametrize("there", [{}, {"high": 11}], ids=["absent", "present"])
@pytest.mark.parametrize("private", [False, True])
def test_fields_that_fit_only_alone_conflict_and_nothing_is_written(gantry, there, private):
    do = tool(gantry, Span, **({"name": "mine", "private": True} if private else {}))
    do(lambda state: write(state, **there))

    def theirs():
        with gantry.session("s1", user="ada"):
            do(lambda other: write(other, high=2))

    def body(state):
        state.low = 5
        elsewhere(theirs)

    with pytest.raises(MemoryConflictError, match="does not go with what another one wrote meanwhile") as caught:
        do(body)

    assert caught.value.keys == ("low",)
    assert isinstance(caught.value.__cause__, MemoryValidationError)
    assert SECRET not in str(caught.value) + str(caught.value.__cause__)
    assert do(lambda state: (state.low, state.high)) == (0, 2)


def test_a_field_that_another_call_deleted_counts_with_its_default(gantry):
    put(gantry, {"high": 20})

    def body(state):
        state.low = 15
        elsewhere(put, gantry, {}, "session", ("high",))

    with pytest.raises(MemoryConflictError):
        tool(gantry, Span)(body)

    assert stored(gantry) == {}


def test_a_field_that_another_call_deleted_counts_as_a_further_scope_has_it(gantry):
    put(gantry, {"high": 20}, "user")
    put(gantry, {"high": 30})

    def body(state):
        state.low = 15
        elsewhere(put, gantry, {}, "session", ("high",))

    tool(gantry, Span, scope=("session", "user"))(body)

    assert stored(gantry) == {"low": 15}


def test_a_field_that_is_deleted_here_counts_as_a_further_scope_has_it(gantry):
    put(gantry, {"volume": 2}, "user")
    put(gantry, {"volume": 1})

    def body(state):
        del state["volume"]
        elsewhere(put, gantry, {"name": "ada"})

    tool(gantry, Annotated[Notes, AfterValidator(named_has_volume)], scope=("session", "user"))(body)

    assert stored(gantry) == {"name": "ada"}


def test_what_was_merged_further_out_need_not_fit_where_it_is_not_seen(gantry):
    class Short(BaseModel):
        items: Annotated[list[str], Field(max_length=2)] = []
        name: str = ""

    put(gantry, {"items": ["a"]}, "user")
    put(gantry, {"items": ["b"]})

    def body(state):
        state.name = "ada"
        tool(gantry, dict, scope="user")(lambda inner: inner["items"].append("mine"))
        elsewhere(lambda: do_as(gantry, dict, lambda other: other["items"].append("theirs"), scope="user"))

    tool(gantry, Short, scope=("session", "user"))(body)

    assert stored(gantry) == {"items": ["b"], "name": "ada"}
    assert stored(gantry, "user") == {"items": ["a", "theirs", "mine"]}


def test_what_a_further_scope_holds_may_change_meanwhile_and_is_not_asked_for(gantry):
    put(gantry, {"low": 1, "high": 20}, "user")
    before = commits(gantry)

    def body(state):
        state.low = 15
        tool(gantry, dict, scope="user")(lambda inner: inner.update(low=2))
        elsewhere(put, gantry, {"high": 5}, "user")

    tool(gantry, Span, scope=("session", "user"))(body)

    assert (stored(gantry), stored(gantry, "user")) == ({"low": 15}, {"low": 2, "high": 5})
    assert commits(gantry) == before + 2, "theirs and ours, once"


def named_has_volume(state: Notes) -> Notes:
    if "name" in state and "volume" not in state:
        raise ValueError(SECRET)
    return state


def test_a_key_that_is_deleted_here_and_needed_there_is_a_conflict(gantry):
    put(gantry, {"volume": 1})

    def body(state):
        del state["volume"]
        elsewhere(put, gantry, {"name": "ada"})

    with pytest.raises(MemoryConflictError) as caught:
        tool(gantry, Annotated[Notes, AfterValidator(named_has_volume)])(body)

    assert caught.value.keys == ("volume",)
    assert stored(gantry) == {"volume": 1, "name": "ada"}


def test_keys_that_a_class_takes_without_declaring_them_must_fit_as_well(gantry):
    class Open(BaseModel, extra="allow"):
        low: int = 0

        @model_validator(mode="after")
        def ordered(self) -> Open:
            if self.low > self.__pydantic_extra__.get("high", 10):
                raise ValueError(SECRET)
            return self

    put(gantry, {"high": 20})

    def body(state):
        state.low = 15
        elsewhere(put, gantry, {"high": 5})

    with pytest.raises(MemoryConflictError) as caught:
        tool(gantry, Open)(body)

    assert caught.value.keys == ("low",)
    assert stored(gantry) == {"high": 5}


def test_what_a_call_only_read_need_not_fit_what_others_make_of_it(gantry):
    @gantry.with_memory(into="plain")
    @gantry.with_memory
    def do(memory: Span, plain: Memory) -> None:
        plain.setdefault("log", []).append("mine")
        elsewhere(put, gantry, {"high": -1, "log": ["theirs"]})

    do()

    assert stored(gantry) == {"high": -1, "log": ["theirs", "mine"]}


def test_fields_that_fit_only_alone_conflict_between_calls_inside_one(gantry):
    outcomes = []

    def first(state):
        state.low = 5
        # Made inside the outer call, and beside this one.
        inside.run(tool(gantry, Span), lambda other: write(other, high=2))

    def body(memory):
        nonlocal inside
        inside = contextvars.copy_context()
        try:
            tool(gantry, Span)(first)
        except MemoryConflictError as error:
            outcomes.append(error.keys)

    inside: Any = None
    tool(gantry, dict)(body)

    assert outcomes == [("low",)]
    assert stored(gantry) == {"high": 2}


def test_a_merged_field_that_does_not_fit_is_a_conflict(gantry):
    class Short(BaseModel):
        items: Annotated[list[str], Field(max_length=2)] = []
        name: str = ""

    put(gantry, {"items": ["a"]})

    def body(state):
        state.items.append("mine")
        state.name = "ada"
        elsewhere(do_as, gantry, Short, lambda other: other.items.append("theirs"))

    with pytest.raises(MemoryConflictError) as caught:
        tool(gantry, Short)(body)

    assert caught.value.keys == ("items",)
    assert isinstance(caught.value.__cause__, MemoryValidationError)
    assert stored(gantry) == {"items": ["a", "theirs"]}


def test_retrying_sees_what_the_other_one_wrote(gantry):
    seen = []

    def body(state):
        seen.append(state.high)
        if len(seen) == 1:
            elsewhere(do_as, gantry, Span, lambda other: write(other, high=2))
        state.low = min(5, state.high)

    tool(gantry, Span, on_conflict="retry")(body)

    assert seen == [10, 2]
    assert stored(gantry) == {"high": 2, "low": 2}


def test_serializable_refuses_what_was_read_and_changed_meanwhile(gantry):
    def body(state):
        elsewhere(do_as, gantry, Prefs, lambda other: write(other, name="ada"))
        state.volume = 1

    with pytest.raises(MemoryConflictError):
        tool(gantry, isolation="serializable")(body)

    assert stored(gantry) == {"name": "ada"}


@pytest.mark.parametrize(
    ("hint", "joint"),
    [
        (Prefs, False),
        (Basket, False),
        (CheckedBasket, False),
        (Notes, False),
        (Span, True),
        (Annotated[Prefs, AfterValidator(lambda state: state)], True),
        (Annotated[Notes, AfterValidator(lambda state: state)], True),
        (WithPostInit, True),
        (WithInit, True),
        (WithInfo, True),
    ],
)
def test_only_a_class_whose_fields_depend_on_each_other_has_all_of_them_checked(hint, joint):
    shape = shape_of(hint, where="with_memory on f", scope="user")
    assert shape is not None
    assert shape.joint is joint


@pytest.mark.anyio
@pytest.mark.parametrize("cls", [Prefs, Basket, Notes])
async def test_parallel_calls_lose_nothing(gantry, cls):
    async def do(n: int, memory: Any) -> None:
        if cls is Notes:
            memory.setdefault("items", []).append(str(n))
        else:
            memory.items.append(str(n))
        await anyio.sleep(0)

    do.__annotations__["memory"] = cls
    remembering = gantry.with_memory(do)
    async with anyio.create_task_group() as group:
        for n in range(20):
            group.start_soon(remembering, n)

    assert sorted(stored(gantry)["items"]) == sorted(map(str, range(20)))


@pytest.mark.anyio
async def test_parallel_calls_inside_one_are_merged_into_its_state(gantry):
    @gantry.with_memory
    async def child(n: int, memory: Basket) -> None:
        await anyio.sleep(0)
        memory.items.append(str(n))

    @gantry.with_memory
    async def parent(memory: Prefs) -> list[str]:
        items = memory.items
        async with anyio.create_task_group() as group:
            for n in range(10):
                group.start_soon(child, n)
        assert items is memory.items
        return sorted(items)

    assert await parent() == sorted(map(str, range(10)))
    assert sorted(stored(gantry)["items"]) == sorted(map(str, range(10)))


@pytest.mark.anyio
async def test_exclusive_calls_take_turns(gantry):
    @gantry.with_memory(exclusive=True)
    async def do(memory: Prefs) -> None:
        volume = memory.volume
        await anyio.sleep(0)
        memory.volume = volume + 1

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(do)

    assert stored(gantry) == {"volume": 13}


# Calls that do not end well, and generators.


@pytest.mark.parametrize("cls", KINDS, ids=str)
def test_a_call_that_fails_changes_nothing(gantry, cls):
    def body(state):
        write(state, volume=5)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        tool(gantry, cls)(body)

    assert commits(gantry) == 0


@pytest.mark.anyio
async def test_a_cancelled_call_changes_nothing(gantry):
    @gantry.with_memory
    async def do(memory: Prefs) -> None:
        memory.volume = 5
        await anyio.sleep_forever()

    with anyio.move_on_after(0.01):
        await do()

    assert stored(gantry) == {}


def test_a_generator_commits_when_it_is_exhausted(gantry):
    @gantry.with_memory
    def count(memory: Prefs) -> Iterator[int]:
        for _ in range(2):
            memory.volume += 1
            yield memory.volume

    left = count()
    next(left)
    left.close()
    assert stored(gantry) == {}

    assert list(count()) == [4, 5]
    assert stored(gantry) == {"volume": 5}


@pytest.mark.anyio
async def test_an_async_generator_commits_when_it_is_exhausted(gantry):
    @gantry.with_memory
    async def count(memory: Basket) -> AsyncIterator[int]:
        for _ in range(2):
            memory.volume += 1
            yield memory.volume

    assert [n async for n in count()] == [4, 5]
    assert stored(gantry) == {"volume": 5}


@pytest.mark.anyio
async def test_an_async_tool_gets_a_state(gantry):
    @gantry.with_memory(scope="user")
    async def do(n: int, memory: Prefs) -> int:
        await anyio.sleep(0)
        memory.volume += n
        return memory.volume

    assert (await do(1), await do(2)) == (4, 6)
    assert stored(gantry, "user") == {"volume": 6}
