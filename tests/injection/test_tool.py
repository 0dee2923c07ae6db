"""What `with_memory` makes of every kind of callable, and what others see of it."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import dataclasses
import functools
import inspect
import pickle
import pydoc
import sys
import types
import typing
import weakref
from typing import TYPE_CHECKING, Annotated, Any
from unittest import mock

import anyio
import pytest

from agent_gantry_state import (
    DeclarationError,
    Gantry,
    InjectedArgumentError,
    Memory,
    MemoryConflictError,
    StateError,
    StateWarning,
    Tool,
    merge,
)
from agent_gantry_state.injection.tool import BoundTool

if TYPE_CHECKING:
    from collections import OrderedDict as OnlyForCheckers
    from collections.abc import MutableMapping

module_gantry = Gantry(session="s")


@pytest.fixture
def gantry():
    with Gantry(session="s") as made:
        yield made


def stored(gantry, scope="session", **identity):
    block = contextvars.Context().run(gantry.memory, scope, **(identity or {"session": "s"}))
    with block as memory:
        return dict(memory)


def interfere(gantry, **values):
    """Commit as a stranger does, from a context that knows of no call."""

    def commit():
        with gantry.memory(session="s") as memory:
            memory.update(values)

    contextvars.Context().run(commit)


def remember(item, memory):
    memory.setdefault("items", []).append(item)
    if item == "fail":
        raise ValueError("the body failed")
    return len(memory["items"])


# Each shape makes a tool that takes one item, by position or as `item=`, and remembers it.


def plain(gantry):
    @gantry.with_memory
    def tool(item: str, memory: dict) -> int:
        return remember(item, memory)

    return tool


def called_with_parentheses(gantry):
    @gantry.with_memory()
    def tool(item: str, memory: dict) -> int:
        return remember(item, memory)

    return tool


def unannotated(gantry):
    @gantry.with_memory
    def tool(item, memory):
        return remember(item, memory)

    return tool


def memory_first(gantry):
    @gantry.with_memory
    def tool(memory: dict, item: str) -> int:
        return remember(item, memory)

    return tool


def memory_between(gantry):
    @gantry.with_memory
    def tool(item: str, memory: dict, more: str = "") -> int:
        return remember(item, memory)

    return tool


def keyword_only(gantry):
    @gantry.with_memory
    def tool(item: str, *, memory: dict) -> int:
        return remember(item, memory)

    return tool


def with_default(gantry):
    @gantry.with_memory
    def tool(item: str, memory: dict | None = None) -> int:
        return remember(item, memory)

    return tool


def annotated(gantry):
    @gantry.with_memory
    def tool(item: Annotated[str, "what to remember"], memory: Annotated[dict, "hidden"]) -> int:
        return remember(item, memory)

    return tool


def only_for_checkers(gantry):
    @gantry.with_memory
    def tool(item: str, memory: MutableMapping[str, Any]) -> int:
        return remember(item, memory)

    return tool


def another_parameter_only_for_checkers(gantry):
    @gantry.with_memory
    def tool(item: str, memory: dict, other: OnlyForCheckers[str, Any] | None = None) -> int:
        return remember(item, memory)

    return tool


def other_name(gantry):
    @gantry.with_memory(into="notes")
    def tool(item: str, notes: Memory) -> int:
        return remember(item, notes)

    return tool


def with_kwargs(gantry):
    @gantry.with_memory
    def tool(item: str, memory: dict, **more: Any) -> int:
        return remember(item, memory)

    return tool


def partial_by_position(gantry):
    def tool(prefix: str, item: str, memory: dict) -> int:
        assert prefix == "p"
        return remember(item, memory)

    return gantry.with_memory(functools.partial(tool, "p"))


def partial_by_keyword(gantry):
    def tool(item: str, memory: dict, suffix: str) -> int:
        assert suffix == "s"
        return remember(item, memory)

    return gantry.with_memory(functools.partial(tool, suffix="s"))


def partial_of_a_tool(gantry):
    @gantry.with_memory
    def tool(prefix: str, memory: dict, item: str) -> int:
        assert prefix == "p"
        return remember(item, memory)

    return functools.partial(tool, "p")


def callable_object(gantry):
    class Remember:
        def __call__(self, item: str, memory: dict) -> int:
            return remember(item, memory)

    return gantry.with_memory(Remember())


def bound_method_of_an_instance(gantry):
    class Remember:
        def run(self, item: str, memory: dict) -> int:
            assert isinstance(self, Remember)
            return remember(item, memory)

    return gantry.with_memory(Remember().run)


def _class(gantry):
    class Base:
        @gantry.with_memory
        def method(self, item: str, memory: dict) -> int:
            assert isinstance(self, Base)
            return remember(item, memory)

        @gantry.with_memory
        def memory_first(self, memory: dict, item: str) -> int:
            assert isinstance(self, Base)
            return remember(item, memory)

        @gantry.with_memory
        @classmethod
        def above_class(cls, item: str, memory: dict) -> int:
            assert issubclass(cls, Base)
            return remember(item, memory)

        @classmethod
        @gantry.with_memory
        def below_class(cls, memory: dict, item: str) -> int:
            assert issubclass(cls, Base)
            return remember(item, memory)

        @gantry.with_memory
        @staticmethod
        def above_static(item: str, memory: dict) -> int:
            return remember(item, memory)

        @staticmethod
        @gantry.with_memory
        def below_static(memory: dict, item: str) -> int:
            return remember(item, memory)

    class Derived(Base):
        pass

    return Base, Derived


def _member(name, *, of, instance):
    def shape(gantry):
        owner = _class(gantry)[of]
        return getattr(owner() if instance else owner, name)

    shape.__name__ = f"{name}-{'derived' if of else 'base'}-{'instance' if instance else 'class'}"
    return shape


def method_called_on_the_class(gantry):
    _, derived = _class(gantry)
    return functools.partial(derived.method, derived())


SHAPES = [
    plain,
    called_with_parentheses,
    unannotated,
    memory_first,
    memory_between,
    keyword_only,
    with_default,
    annotated,
    only_for_checkers,
    another_parameter_only_for_checkers,
    other_name,
    with_kwargs,
    partial_by_position,
    partial_by_keyword,
    partial_of_a_tool,
    callable_object,
    bound_method_of_an_instance,
    method_called_on_the_class,
    *[_member(name, of=of, instance=True) for name in ("method", "memory_first") for of in (0, 1)],
    *[
        _member(name, of=of, instance=instance)
        for name in ("above_class", "below_class", "above_static", "below_static")
        for of in (0, 1)
        for instance in (False, True)
    ],
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)


@shapes
def test_every_shape_remembers_by_position_and_by_name(gantry, shape):
    tool = shape(gantry)

    assert (tool("a"), tool(item="b")) == (1, 2)
    assert stored(gantry) == {"items": ["a", "b"]}


@shapes
def test_every_shape_changes_nothing_when_its_body_fails(gantry, shape):
    tool = shape(gantry)
    tool("a")

    with pytest.raises(ValueError, match="the body failed"):
        tool("fail")

    assert stored(gantry) == {"items": ["a"]}


@shapes
def test_no_shape_shows_its_memory(gantry, shape):
    tool = shape(gantry)

    for signature in (inspect.signature(tool), inspect.signature(tool, eval_str=True)):
        assert next(iter(signature.parameters)) == "item"
        assert not {"memory", "notes", "self", "cls"} & signature.parameters.keys()


@shapes
def test_no_shape_shows_its_memory_to_agent_gantry(gantry, shape):
    introspection = pytest.importorskip("agent_gantry.schema.introspection")

    schema = introspection.build_parameters_schema(shape(gantry))

    assert "item" in schema["properties"]
    assert schema["properties"]["item"]["type"] == "string"
    assert not {"memory", "notes", "self", "cls"} & schema["properties"].keys()
    assert schema["required"] == ["item"]


@shapes
def test_no_shape_takes_its_memory_from_the_caller(gantry, shape):
    into = "notes" if shape is other_name else "memory"

    with pytest.raises(InjectedArgumentError, match=repr(into)) as caught:
        shape(gantry)("a", **{into: {"items": ["evil"]}})

    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, StateError)
    assert caught.value.parameter == into
    assert caught.value.committed is False
    assert "evil" not in str(caught.value)
    assert stored(gantry) == {}


@shapes
def test_every_shape_on_several_memories_at_once(gantry, shape):
    # With a store that has to be asked by messages, a call takes the general way.
    asked = []

    def resolver(request):
        asked.append(request.scope)

    with gantry.override(resolvers=[resolver]):
        tool = shape(gantry)
        assert (tool("a"), tool(item="b")) == (1, 2)
        with pytest.raises(ValueError, match="the body failed"):
            tool("fail")

    assert asked == ["session"] * 3
    assert stored(gantry) == {"items": ["a", "b"]}


def test_positional_arguments_find_their_places_around_memory(gantry):
    @gantry.with_memory
    def tool(a, memory, b, c=3, *rest, d=4):
        assert type(memory) is Memory
        return a, b, c, rest, d

    assert tool(1, 2) == (1, 2, 3, (), 4)
    assert tool(1, b=2) == (1, 2, 3, (), 4)
    assert tool(b=2, a=1) == (1, 2, 3, (), 4)
    assert tool(1, 2, 5, 6, 7, d=8) == (1, 2, 5, (6, 7), 8)


def test_positional_only_arguments_beside_memory(gantry):
    @gantry.with_memory
    def tool(a, b=2, /, memory=None, c=3):
        assert type(memory) is Memory
        return a, b, c

    assert tool(1) == (1, 2, 3)
    assert tool(1, 5) == (1, 5, 3)
    assert tool(1, 5, 6) == (1, 5, 6)
    assert tool(1, c=6) == (1, 2, 6)


def test_args_and_kwargs_pass_through(gantry):
    @gantry.with_memory
    def tool(*args, memory, **kwargs):
        assert type(memory) is Memory
        return args, kwargs

    assert tool() == ((), {})
    assert tool(1, 2, memories=3) == ((1, 2), {"memories": 3})


def test_too_many_arguments_never_become_the_memory(gantry):
    @gantry.with_memory
    def tool(item, memory):
        memory["item"] = item

    with pytest.raises(TypeError, match="positional"):
        tool("a", {"item": "evil"})

    assert stored(gantry) == {}


def test_missing_arguments_are_a_type_error_of_the_function(gantry):
    with pytest.raises(TypeError, match="item"):
        plain(gantry)()


def test_two_memories_around_positional_arguments(gantry):
    @gantry.with_memory(scope="global", into="one")
    @gantry.with_memory(into="two")
    def tool(a, one, b, two, c=3, *rest):
        one["a"], two["b"] = a, b
        return a, b, c, rest

    assert tool(1, 2) == (1, 2, 3, ())
    assert tool(1, 2, 4, 5) == (1, 2, 4, (5,))
    assert tool(1, b=2, c=4) == (1, 2, 4, ())
    assert stored(gantry) == {"b": 2}
    assert stored(gantry, "global") == {"a": 1}


def test_two_memories_find_their_places_in_any_order_of_decorators(gantry):
    @gantry.with_memory(into="two")
    @gantry.with_memory(scope="global", into="one")
    def tool(a, one, b, two, c=3):
        one["a"], two["b"] = a, b
        return a, b, c

    assert tool(1, 2, 4) == (1, 2, 4)
    assert stored(gantry) == {"b": 2}
    assert stored(gantry, "global") == {"a": 1}


def test_memory_of_a_subclass_override_is_its_own(gantry):
    base, _ = _class(gantry)

    class Derived(base):
        @gantry.with_memory
        def method(self, item: str, memory: dict) -> int:
            memory["derived"] = True
            return super().method(item)

    assert Derived().method("a") == 1
    assert stored(gantry)["items"] == ["a"]


# Async tools, on asyncio and trio.


def async_plain(gantry):
    @gantry.with_memory
    async def tool(item: str, memory: dict) -> int:
        await anyio.lowlevel.checkpoint()
        return remember(item, memory)

    return tool


def async_memory_first(gantry):
    @gantry.with_memory
    async def tool(memory: dict, item: str) -> int:
        return remember(item, memory)

    return tool


def async_keyword_only(gantry):
    @gantry.with_memory
    async def tool(item: str, *, memory: dict) -> int:
        return remember(item, memory)

    return tool


def async_with_retries(gantry):
    @gantry.with_memory(on_conflict="retry")
    async def tool(item: str, memory: dict) -> int:
        return remember(item, memory)

    return tool


def async_partial(gantry):
    async def tool(prefix: str, item: str, memory: dict, suffix: str) -> int:
        assert (prefix, suffix) == ("p", "s")
        return remember(item, memory)

    return gantry.with_memory(functools.partial(tool, "p", suffix="s"))


def async_callable_object(gantry):
    class Remember:
        async def __call__(self, item: str, memory: dict) -> int:
            return remember(item, memory)

    return gantry.with_memory(Remember())


def wrapped_async(gantry):
    async def inner(item: str, memory: dict) -> int:
        await anyio.lowlevel.checkpoint()
        return remember(item, memory)

    @gantry.with_memory
    @functools.wraps(inner)
    def tool(*args, **kwargs):
        return inner(*args, **kwargs)

    return tool


def _async_class(gantry):
    class Base:
        @gantry.with_memory
        async def method(self, memory: dict, item: str) -> int:
            assert isinstance(self, Base)
            return remember(item, memory)

        @gantry.with_memory
        @classmethod
        async def above_class(cls, item: str, memory: dict) -> int:
            assert issubclass(cls, Base)
            return remember(item, memory)

        @classmethod
        @gantry.with_memory
        async def below_class(cls, item: str, memory: dict) -> int:
            assert issubclass(cls, Base)
            return remember(item, memory)

        @gantry.with_memory
        @staticmethod
        async def above_static(item: str, memory: dict) -> int:
            return remember(item, memory)

        @staticmethod
        @gantry.with_memory
        async def below_static(item: str, memory: dict) -> int:
            return remember(item, memory)

    class Derived(Base):
        pass

    return Derived


def _async_member(name, *, instance):
    def shape(gantry):
        owner = _async_class(gantry)
        return getattr(owner() if instance else owner, name)

    shape.__name__ = f"{name}-{'instance' if instance else 'class'}"
    return shape


ASYNC_SHAPES = [
    async_plain,
    async_memory_first,
    async_keyword_only,
    async_with_retries,
    async_partial,
    async_callable_object,
    wrapped_async,
    _async_member("method", instance=True),
    *[
        _async_member(name, instance=instance)
        for name in ("above_class", "below_class", "above_static", "below_static")
        for instance in (False, True)
    ],
]
async_shapes = pytest.mark.parametrize("shape", ASYNC_SHAPES, ids=lambda shape: shape.__name__)


@async_shapes
@pytest.mark.anyio
async def test_every_async_shape_remembers(gantry, shape):
    tool = shape(gantry)

    assert (await tool("a"), await tool(item="b")) == (1, 2)
    assert stored(gantry) == {"items": ["a", "b"]}


@async_shapes
@pytest.mark.anyio
async def test_every_async_shape_changes_nothing_when_its_body_fails(gantry, shape):
    tool = shape(gantry)
    await tool("a")

    with pytest.raises(ValueError, match="the body failed"):
        await tool("fail")

    assert stored(gantry) == {"items": ["a"]}


@async_shapes
@pytest.mark.anyio
async def test_every_async_shape_on_the_general_way(gantry, shape):
    with gantry.override(resolvers=[lambda request: None]):
        tool = shape(gantry)
        assert (await tool("a"), await tool(item="b")) == (1, 2)
        with pytest.raises(ValueError, match="the body failed"):
            await tool("fail")

    assert stored(gantry) == {"items": ["a", "b"]}


@async_shapes
@pytest.mark.anyio
async def test_no_async_shape_takes_or_shows_its_memory(gantry, shape):
    tool = shape(gantry)

    with pytest.raises(InjectedArgumentError, match="'memory'"):
        await tool("a", memory={})

    assert next(iter(inspect.signature(tool).parameters)) == "item"
    assert "memory" not in inspect.signature(tool).parameters


@pytest.mark.anyio
async def test_wrapped_async_commits_only_after_it_was_awaited(gantry):
    tool = wrapped_async(gantry)

    coroutine = tool("a")
    before = stored(gantry)
    result = await coroutine

    assert before == {}
    assert result == 1
    assert stored(gantry) == {"items": ["a"]}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_task_that_a_tool_returns_is_awaited_before_the_commit(gantry, anyio_backend):
    async def inner(memory):
        await asyncio.sleep(0)
        memory["n"] = 1
        return "done"

    tool = gantry.with_memory(lambda memory: asyncio.ensure_future(inner(memory)))

    assert await tool() == "done"
    assert stored(gantry) == {"n": 1}


@pytest.mark.anyio
async def test_wrapped_async_runs_again_after_a_conflict(gantry):
    async def inner(memory):
        runs.append(memory.get("n", 0))
        if len(runs) == 1:
            interfere(gantry, n=10)
        memory["n"] = runs[-1] + 1

    runs = []
    tool = gantry.with_memory(on_conflict="retry")(functools.wraps(inner)(lambda *args, **kwargs: inner(*args, **kwargs)))

    await tool()

    assert runs == [0, 10]
    assert stored(gantry) == {"n": 11}


@pytest.mark.anyio
async def test_parallel_calls_lose_nothing(gantry):
    @gantry.with_memory
    async def tool(item, memory):
        memory.setdefault("items", []).append(item)
        memory.add("n", 1)
        await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(tool, number)

    assert sorted(stored(gantry)["items"]) == list(range(50))
    assert stored(gantry)["n"] == 50


# Stacked decorators.


def test_stacked_decorators_commit_together_or_not_at_all(gantry):
    @gantry.with_memory(scope="global", into="shared")
    @gantry.with_memory(into="own", merge={"n": merge.conflict})
    def tool(value, own, shared):
        own["n"], shared["n"] = value, value
        if value == 2:
            interfere(gantry, n="other")

    tool(1)
    with pytest.raises(MemoryConflictError) as caught:
        tool(2)

    assert caught.value.by_scope == {"session": ("n",)}
    assert stored(gantry) == {"n": "other"}
    assert stored(gantry, "global") == {"n": 1}


def test_stacked_decorators_make_one_tool(gantry):
    def function(own, shared):
        pass

    tool = gantry.with_memory(scope="global", into="shared")(gantry.with_memory(into="own")(function))

    assert isinstance(tool, Tool)
    assert tool.__wrapped__ is function
    assert inspect.signature(tool) == inspect.Signature()


def test_two_parameters_of_one_namespace_get_the_same_object(gantry):
    @gantry.with_memory(into="one", merge={"a": merge.max})
    @gantry.with_memory(into="two")
    def tool(one, two):
        one["x"] = 1
        two["y"] = 2
        return one is two

    assert tool()
    assert stored(gantry) == {"x": 1, "y": 2}


def test_two_parameters_of_one_namespace_have_the_merges_of_both(gantry):
    @gantry.with_memory(into="one", merge={"a": merge.max})
    @gantry.with_memory(into="two", merge={"b": merge.min})
    def tool(one, two):
        one["a"] = two["b"] = 5
        interfere(gantry, a=9, b=1)

    tool()

    assert stored(gantry) == {"a": 9, "b": 1}


def test_two_scopes_that_a_resolver_joins_get_the_same_object(gantry):
    from agent_gantry_state import Namespace

    @gantry.with_memory(scope="user", into="one")
    @gantry.with_memory(into="two")
    def tool(one, two):
        one["x"] = 1
        return one is two

    with gantry.override(resolvers=[lambda request: Namespace("joined", "here")]):
        assert tool()


def test_two_scopes_of_one_id_get_different_objects(gantry):
    @gantry.with_memory(scope="user", into="one")
    @gantry.with_memory(into="two")
    def tool(one, two):
        one["x"] = 1
        return one is two

    with gantry.session("same", user="same"):
        assert not tool()
    assert stored(gantry, "user", user="same") == {"x": 1}
    assert stored(gantry, session="same") == {}


def test_stacked_decorators_around_classmethod_are_one_commit(gantry):
    class Owner:
        @gantry.with_memory(into="own", merge={"n": merge.conflict})
        @classmethod
        @gantry.with_memory(scope="global", into="shared")
        def tool(cls, own, shared):
            own["n"], shared["n"] = 1, 1
            interfere(gantry, n="other")

    with pytest.raises(MemoryConflictError):
        Owner.tool()

    assert stored(gantry, "global") == {}


def test_stacked_decorators_of_two_gantries_are_refused(gantry):
    with Gantry() as other, pytest.raises(DeclarationError, match="one gantry"):

        @other.with_memory(into="one")
        @gantry.with_memory(into="two")
        def tool(one, two):
            pass


def test_stacked_decorators_of_one_parameter_are_refused(gantry):
    with pytest.raises(DeclarationError, match=r"'memory'.*with_memory\(into="):

        @gantry.with_memory(scope="user")
        @gantry.with_memory
        def tool(memory):
            pass


# What others see.


def documented(item: str, memory: MutableMapping[str, Any], limit: int = 3) -> list[str]:
    """Remember an item.

    Args:
        item: What to remember.
        memory: Secret words.
        limit: How many to keep.
    """
    memory.setdefault("items", []).append(item)
    return memory["items"][-limit:]


module_tool = module_gantry.with_memory(documented)
documented_tool = module_tool


class Holder:
    @module_gantry.with_memory
    def method(self, item: str, memory: dict) -> str:
        return item

    @module_gantry.with_memory
    @staticmethod
    def static(item: str, memory: dict) -> str:
        return item

    @classmethod
    @module_gantry.with_memory
    def clsmethod(cls, item: str, memory: dict) -> str:
        return item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Holder)

    __hash__ = None


@module_gantry.with_memory
def by_reference(item: str, memory: dict) -> str:
    return item


@pytest.mark.anyio
async def test_function_made_of_what_is_found_in_a_tool_calls_the_tool():
    """FastMCP makes one to give it other annotations; of the body it would have the parameters, and no memory."""
    gantry = Gantry(session="local")

    @gantry.with_memory
    def plain(item: str, memory: dict, times: int = 2) -> list:
        memory["seen"] = item
        return [item] * times

    @gantry.with_memory
    async def awaited(item, memory, times=2):
        return [memory["seen"], item] * times

    @gantry.with_memory
    def generated(item, memory):
        yield memory["seen"]
        yield item

    @gantry.with_memory
    async def agenerated(item, memory):
        yield memory["seen"]
        yield item

    def remade(tool):
        code, scope, defaults, closure = tool.__code__, tool.__globals__, tool.__defaults__, tool.__closure__
        copy = types.FunctionType(code, scope, tool.__name__, defaults, closure)
        copy.__dict__.update(tool.__dict__)
        copy.__kwdefaults__ = tool.__kwdefaults__
        assert list(inspect.signature(copy).parameters) == [
            name for name in ("item", "times") if name in str(tool.__signature__)
        ]
        assert code.co_filename == __file__
        return copy

    assert remade(plain)("x") == ["x", "x"]
    assert remade(plain)(item="x", times=1) == ["x"]
    assert await remade(awaited)("y", 1) == ["x", "y"]
    assert list(remade(generated)("y")) == ["x", "y"]
    assert [item async for item in remade(agenerated)("y")] == ["x", "y"]


def test_tool_looks_like_its_function():
    assert module_tool.__wrapped__ is documented
    assert module_tool.__name__ == "documented"
    assert module_tool.__qualname__ == "documented"
    assert module_tool.__module__ == __name__
    assert callable(module_tool)
    assert inspect.isfunction(module_tool)
    assert module_tool.__defaults__ == (3,)


def test_signature_and_hints_are_without_memory():
    signature = inspect.signature(module_tool, eval_str=True)

    assert str(signature) == "(item: str, limit: int = 3) -> list[str]"
    assert typing.get_type_hints(module_tool, include_extras=True) == {"item": str, "limit": int, "return": list[str]}
    assert "memory" not in module_tool.__annotations__


def test_function_that_is_wrapped_around_a_tool_has_its_hints():
    @functools.wraps(module_tool)
    def around(*args, **kwargs):
        return module_tool(*args, **kwargs)

    assert typing.get_type_hints(around) == {"item": str, "limit": int, "return": list[str]}
    assert "memory" not in around.__annotations__


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations have formats from Python 3.14 on")
def test_hints_come_in_each_format(gantry):
    import annotationlib

    @gantry.with_memory
    def note(item: Missing, limit: int, memory: dict) -> list[str]:  # noqa: F821
        return [item][:limit]

    found = {format: annotationlib.get_annotations(note, format=format) for format in (1, 3, 4)}

    assert [each["limit"] for each in found.values()] == [int, int, "int"]
    assert [each["return"] for each in found.values()] == [list[str], list[str], "list[str]"]
    assert found[4]["item"] == "Missing"
    assert all("memory" not in each for each in found.values())
    with pytest.raises(NotImplementedError):
        note.__annotate__(annotationlib.Format.VALUE_WITH_FAKE_GLOBALS)


def test_hints_keep_what_annotated_says(gantry):
    tool = annotated(gantry)

    assert typing.get_type_hints(tool, include_extras=True) == {"item": Annotated[str, "what to remember"], "return": int}
    assert inspect.signature(tool).parameters["item"].annotation == Annotated[str, "what to remember"]


def test_hints_of_a_callable_object_are_those_of_its_call(gantry):
    @dataclasses.dataclass
    class Remember:
        item: list[int]

        def __call__(self, item: str, memory: dict) -> bool:
            return True

    tool = gantry.with_memory(Remember([1]))

    assert str(inspect.signature(tool)) == "(item: str) -> bool"
    assert typing.get_type_hints(tool, include_extras=True) == {"item": str, "return": bool}


def test_a_memory_whose_class_only_checkers_know_is_refused(gantry):
    with pytest.raises(DeclarationError, match=r"with_memory: the annotation 'OnlyForCheckers\[str, Any\]'.*import it"):

        @gantry.with_memory
        def tool(item: str, memory: OnlyForCheckers[str, Any]) -> int: ...


def test_hint_that_only_checkers_know_stays_a_string(gantry):
    parameters = inspect.signature(another_parameter_only_for_checkers(gantry)).parameters

    assert parameters["item"].annotation is str
    assert parameters["other"].annotation == "OnlyForCheckers[str, Any] | None"


@pytest.mark.parametrize("name", ["method", "clsmethod", "static"])
def test_bound_tool_looks_like_its_method(name):
    bound = getattr(Holder(), name)

    assert str(inspect.signature(bound)) == "(item: str) -> str"
    assert str(inspect.signature(bound, eval_str=True)) == "(item: str) -> str"
    assert typing.get_type_hints(bound, include_extras=True) == {"item": str, "return": str}
    assert bound.__name__ == name
    assert bound.__qualname__ == f"Holder.{name}"
    assert bound.__module__ == __name__


def test_method_on_its_class_shows_self_and_no_memory():
    assert list(inspect.signature(Holder.method).parameters) == ["self", "item"]
    assert list(inspect.signature(Holder.method.__func__).parameters) == ["self", "item"]


def test_docstring_is_without_memory():
    assert "Secret words" in documented.__doc__
    assert "Secret words" not in module_tool.__doc__
    assert "memory" not in inspect.getdoc(module_tool)
    assert "What to remember" in module_tool.__doc__
    assert "How many to keep" in module_tool.__doc__


def test_docstring_of_a_bound_tool_is_without_memory(gantry):
    class Owner:
        @gantry.with_memory
        def method(self, item, memory):
            """Do.

            Args:
                item: It.
                memory: Secret words.
            """

    assert "Secret words" not in Owner().method.__doc__
    assert "Secret words" not in inspect.getdoc(Owner.method)
    assert "item: It." in Owner().method.__doc__


def test_agent_gantry_makes_the_schema_of_the_function_without_memory():
    introspection = pytest.importorskip("agent_gantry.schema.introspection")

    schema = introspection.build_parameters_schema(module_tool)

    assert set(schema["properties"]) == {"item", "limit"}
    assert schema["required"] == ["item"]
    assert schema["properties"]["limit"]["type"] == "integer"
    assert schema["properties"]["item"]["description"] == "What to remember."
    assert "Secret" not in str(schema)


def test_iscoroutinefunction_tells_the_truth(gantry):
    asynchronous = [
        async_plain(gantry),
        async_memory_first(gantry),
        async_with_retries(gantry),
        async_partial(gantry),
        _async_class(gantry)().method,
        _async_class(gantry).method,
        _async_class(gantry).above_class,
        _async_class(gantry).below_class,
        _async_class(gantry).above_static,
        _async_class(gantry).below_static,
        async_callable_object(gantry).__call__,
    ]
    synchronous = [
        plain(gantry),
        wrapped_async(gantry),
        partial_by_keyword(gantry),
        callable_object(gantry),
        callable_object(gantry).__call__,
        _class(gantry)[0]().method,
        _class(gantry)[0].above_class,
    ]

    assert [inspect.iscoroutinefunction(tool) for tool in asynchronous] == [True] * len(asynchronous)
    assert [inspect.iscoroutinefunction(tool) for tool in synchronous] == [False] * len(synchronous)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_goes_by_reference(protocol):
    assert pickle.loads(pickle.dumps(by_reference, protocol)) is by_reference


@pytest.mark.parametrize("name", ["method", "static", "clsmethod"])
def test_pickle_of_what_a_class_holds_goes_by_reference(name):
    held = getattr(Holder, name)

    again = pickle.loads(pickle.dumps(held))

    assert again == held
    assert again.__qualname__ == f"Holder.{name}"


@pytest.mark.parametrize("name", ["method", "static", "clsmethod"])
def test_pickle_of_what_an_instance_holds_still_works(name):
    again = pickle.loads(pickle.dumps(getattr(Holder(), name)))

    assert again("a") == "a"


def test_copies_are_the_tool_itself():
    bound = Holder().method

    assert copy.copy(by_reference) is by_reference
    assert copy.deepcopy(by_reference) is by_reference
    assert copy.deepcopy([by_reference])[0] is by_reference
    assert copy.copy(bound) == bound
    assert copy.deepcopy(bound) == bound


def test_equality_and_hash_are_the_tools_own(gantry):
    def function(memory):
        pass

    one, other = gantry.with_memory(function), gantry.with_memory(function)

    assert one == one
    assert one != other
    assert one != function
    assert {one, other, one} == {one, other}
    assert len({one, other, function}) == 3
    assert {one: 1}[one] == 1


def test_bound_tools_are_equal_per_instance():
    # The instances are equal and not hashable; a method's tool goes by which instance it is.
    one, other = Holder(), Holder()

    assert one.method == one.method
    assert hash(one.method) == hash(one.method)
    assert one.method != other.method
    assert one.method != Holder.method
    assert Holder.method == Holder.method
    assert Holder.clsmethod == Holder.clsmethod
    assert len({one.method, one.method, other.method}) == 2


def test_tool_can_be_held_weakly(gantry):
    tool = plain(gantry)

    assert weakref.ref(tool)() is tool
    assert weakref.WeakKeyDictionary({tool: 1})[tool] == 1
    assert weakref.ref(Holder().method) is not None


def test_help_and_repr_work_and_show_no_memory():
    for tool in (module_tool, Holder().method, Holder.method, Holder.clsmethod):
        assert repr(tool)
        assert "memory" not in pydoc.render_doc(tool, renderer=pydoc.plaintext)
    assert "method" in pydoc.render_doc(Holder, renderer=pydoc.plaintext)
    assert "Secret words" not in pydoc.render_doc(module_tool)


def test_attributes_of_the_function_show_through(gantry):
    def function(memory):
        pass

    function.tags = ["a"]

    assert gantry.with_memory(function).tags == ["a"]


def test_tool_has_not_both_name_and_func(gantry):
    # agent-gantry takes such an object for another framework's tool, and calls its `func`.
    for shape in (plain, partial_by_position, callable_object):
        tool = shape(gantry)
        assert not (hasattr(tool, "name") and hasattr(tool, "func"))


def test_wrapped_takes_a_dict_from_a_test(gantry):
    memory = {}

    assert plain(gantry).__wrapped__("a", memory) == 1
    assert memory == {"items": ["a"]}
    assert stored(gantry) == {}


# What is refused.


def test_memory_by_name_is_refused_through_kwargs_and_by_partial(gantry):
    @gantry.with_memory
    def tool(memory, **more):
        memory["more"] = more

    for call in (functools.partial(tool, memory={}), lambda: tool(memory=None)):
        with pytest.raises(InjectedArgumentError, match="'memory'"):
            call()

    assert stored(gantry) == {}


def test_each_of_two_memories_is_refused_by_name(gantry):
    @gantry.with_memory(into="one")
    @gantry.with_memory(scope="global", into="two")
    def tool(one, two):
        pass

    for name in ("one", "two"):
        with pytest.raises(InjectedArgumentError) as caught:
            tool(**{name: {}})
        assert caught.value.parameter == name


def no_parameter(item):
    pass


def positional_only(item, memory, /):
    pass


def collects_positions(*memory):
    pass


def collects_names(**memory):
    pass


def generator(memory):
    yield 1


async def async_generator(memory):
    yield 1


class Class:
    def __init__(self, memory):
        pass

    def generator(self, memory):
        yield 1


class GeneratorObject:
    def __call__(self, memory):
        yield 1


class MadeTool:
    """As the objects that Strands' decorator makes: callable, and like their function to whoever inspects them."""

    tool_spec = {"inputSchema": {"json": {"properties": {"memory": {"type": "object"}}}}}

    def __init__(self, function):
        functools.update_wrapper(self, function)

    def __call__(self, *args, **kwargs):
        return self.__wrapped__(*args, **kwargs)


UNFIT = [
    (no_parameter, r"no_parameter has no parameter 'memory'.*item.*`memory: dict`.*with_memory\(into="),
    (positional_only, r"positional_only.*'memory' is positional-only.*behind the `/`"),
    (collects_positions, r"\*memory collects arguments.*add a parameter `memory: dict`"),
    (collects_names, r"\*\*memory collects arguments.*add a parameter `memory: dict`"),
    (Class, r"Class is a class.*decorate one of its methods"),
    (MadeTool(lambda memory: None), r"tool of a framework already.*decorator of the framework above @gantry.with_memory"),
    (5, r"only a function can be given a memory, not int"),
    ("session", r"only a function can be given a memory, not str"),
    (property(no_parameter), r"only a function can be given a memory, not property"),
]


@pytest.mark.parametrize(("unfit", "says"), UNFIT)
@pytest.mark.parametrize("called", [False, True])
def test_unfit_is_refused_at_decoration_with_what_to_do(gantry, unfit, says, called):
    decorator = gantry.with_memory() if called else gantry.with_memory

    with pytest.raises(DeclarationError, match=says) as caught:
        decorator(unfit)

    assert isinstance(caught.value, TypeError)


RERUN = [
    (generator, r"generator is a generator function"),
    (async_generator, r"async_generator is a generator function"),
    (functools.partial(generator), r"generator is a generator function"),
    (classmethod(generator), r"generator is a generator function"),
    (staticmethod(async_generator), r"async_generator is a generator function"),
    (Class.generator, r"Class.generator is a generator function"),
    (Class(None).generator, r"Class.generator is a generator function"),
    (GeneratorObject(), r"GeneratorObject is a generator function"),
]


@pytest.mark.parametrize(("generates", "says"), RERUN)
def test_generator_function_cannot_run_again_and_says_so_at_decoration(gantry, generates, says):
    with pytest.raises(DeclarationError, match=rf'{says}.*leave out on_conflict="retry".*collect the items in a list'):
        gantry.with_memory(on_conflict="retry")(generates)

    assert isinstance(gantry.with_memory(on_conflict="retry", retries=0)(generates), (Tool, BoundTool))


BAD = [
    ({"scope": ""}, "scope must not be empty.*session"),
    ({"scope": 5}, "scope must be a str, not int"),
    ({"scope": None}, "scope must be a str"),
    ({"into": ""}, "into must be the name of a parameter"),
    ({"into": "a b"}, "into must be the name of a parameter"),
    ({"into": None}, "into must be the name of a parameter"),
    ({"on_conflict": "again"}, '"raise" or "retry"'),
    ({"on_conflict": None}, '"raise" or "retry"'),
    ({"retries": -1}, "retries must be an int of at least 0"),
    ({"retries": 1.5}, "retries must be an int of at least 0"),
    ({"retries": True}, "retries must be an int of at least 0"),
    ({"ttl": 0}, "ttl must be a positive, finite number of seconds"),
    ({"ttl": -1}, "ttl must be a positive"),
    ({"ttl": float("inf")}, "ttl must be a positive"),
    ({"ttl": float("nan")}, "ttl must be a positive"),
    ({"ttl": "60"}, "ttl must be a number of seconds or None, not str"),
    ({"ttl": True}, "ttl must be a number of seconds or None, not bool"),
    ({"sliding": True}, "sliding=True needs a ttl"),
    ({"sliding": "no", "ttl": 5}, "with_memory: sliding must be True or False, not str"),
    ({"sliding": None, "ttl": 5}, "sliding must be True or False, not NoneType"),
    ({"name": 5}, "name must be a str"),
    ({"merge": {1: merge.add}}, "merge must map str keys to functions"),
    ({"merge": {"n": "add"}}, "merge must map str keys to functions; 'n' does not"),
    ({"merge": merge.longest}, "merge must map str keys to functions"),
    ({"merge": ["n"]}, "merge must map str keys to functions"),
    ({"merge": {"z": max}, "keys": ("a",)}, "with_memory: merge names 'z', which is none of keys"),
    ({"tll": 3}, r"with_memory\(\) got an unexpected keyword argument 'tll'"),
    ({"kind": "memory"}, r"with_memory\(\) got an unexpected keyword argument 'kind'"),
]


@pytest.mark.parametrize(("bad", "says"), BAD)
def test_bad_declaration_is_refused_before_there_is_a_tool(gantry, bad, says):
    with pytest.raises((DeclarationError, TypeError, ValueError), match=says):
        gantry.with_memory(**bad)


# Conflicts and failures.


def retried(gantry, runs, *, conflicts, **options):
    @gantry.with_memory(merge={"n": merge.conflict}, **options)
    def tool(memory):
        runs.append(memory.get("n"))
        if len(runs) <= conflicts:
            interfere(gantry, n=len(runs))
        memory["n"] = "ours"

    return tool


def async_retried(gantry, runs, *, conflicts, **options):
    @gantry.with_memory(merge={"n": merge.conflict}, **options)
    async def tool(memory):
        runs.append(memory.get("n"))
        if len(runs) <= conflicts:
            interfere(gantry, n=len(runs))
        memory["n"] = "ours"

    return tool


def test_conflict_is_raised_by_default_and_the_body_ran_once(gantry):
    runs = []

    with pytest.raises(MemoryConflictError) as caught:
        retried(gantry, runs, conflicts=1)()

    assert caught.value.keys == ("n",)
    assert caught.value.committed is False
    assert runs == [None]
    assert stored(gantry) == {"n": 1}


def test_retry_runs_the_body_again_on_what_is_there_then(gantry):
    runs = []

    retried(gantry, runs, conflicts=2, on_conflict="retry")()

    assert runs == [None, 1, 2]
    assert stored(gantry) == {"n": "ours"}


@pytest.mark.parametrize("retries", [0, 2])
def test_retry_stops_after_retries(gantry, retries):
    runs = []

    with pytest.raises(MemoryConflictError):
        retried(gantry, runs, conflicts=99, on_conflict="retry", retries=retries)()

    assert len(runs) == retries + 1
    assert stored(gantry) == {"n": len(runs)}


@pytest.mark.anyio
async def test_async_retry_runs_again_and_stops_after_retries(gantry):
    runs, more = [], []

    await async_retried(gantry, runs, conflicts=2, on_conflict="retry")()
    interfere(gantry, n=0)
    with pytest.raises(MemoryConflictError):
        await async_retried(gantry, more, conflicts=99, on_conflict="retry", retries=2)()

    assert runs == [None, 1, 2]
    assert len(more) == 3


@pytest.mark.parametrize(("args", "kwargs"), [((1, 2), {"c": 3}), ((), {"a": 1, "b": 2, "c": 3})], ids=["position", "name"])
@pytest.mark.parametrize("make_async", [False, True])
def test_retry_gives_each_run_the_same_arguments(gantry, make_async, args, kwargs):
    seen = []

    def body(a, memory, b, **more):
        seen.append((a, b, dict(more)))
        more.clear()
        if len(seen) == 1:
            interfere(gantry, n=1)
        memory["n"] = a

    async def async_body(a, memory, b, **more):
        body(a, memory, b, **more)

    tool = gantry.with_memory(merge={"n": merge.conflict}, on_conflict="retry")(async_body if make_async else body)

    if make_async:
        anyio.run(lambda: tool(*args, **kwargs))
    else:
        tool(*args, **kwargs)

    assert seen == [(1, 2, {"c": 3})] * 2


FAILURES = [ValueError("x"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), StopIteration(1), MemoryError()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("general", [False, True])
def test_exception_of_the_body_passes_through_and_nothing_is_written(gantry, failure, general):
    @gantry.with_memory(isolation="serializable" if general else "snapshot")
    def tool(memory):
        runs.append(1)
        memory["n"] = 1
        raise failure

    runs = []
    with pytest.raises(type(failure)) as caught:
        tool()

    assert caught.value is failure
    assert runs == [1]
    assert stored(gantry) == {}


def test_conflict_error_that_the_body_raises_itself_is_no_conflict_of_the_call(gantry):
    own = MemoryConflictError("mine", by_scope={"session": ("n",)})

    @gantry.with_memory(on_conflict="retry")
    def tool(memory):
        runs.append(1)
        raise own

    runs = []
    with pytest.raises(MemoryConflictError) as caught:
        tool()

    assert caught.value is own
    assert runs == [1]


@pytest.mark.parametrize("failure", [ValueError("x"), KeyError("y")], ids=lambda failure: type(failure).__name__)
@pytest.mark.anyio
async def test_exception_of_an_async_body_passes_through_and_nothing_is_written(gantry, failure):
    @gantry.with_memory
    async def tool(memory):
        memory["n"] = 1
        await anyio.lowlevel.checkpoint()
        raise failure

    with pytest.raises(type(failure)) as caught:
        await tool()

    assert caught.value is failure
    assert stored(gantry) == {}


@pytest.mark.parametrize("general", [False, True])
def test_keyboard_interrupt_in_an_async_body_changes_nothing(gantry, general):
    @gantry.with_memory(isolation="serializable" if general else "snapshot")
    async def tool(memory):
        memory["n"] = 1
        raise KeyboardInterrupt

    coroutine = tool()
    with pytest.raises(KeyboardInterrupt):
        coroutine.send(None)

    assert stored(gantry) == {}


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.anyio
async def test_cancelled_tool_changes_nothing(gantry, general):
    started = anyio.Event()

    @gantry.with_memory(isolation="serializable" if general else "snapshot")
    async def tool(memory):
        memory["n"] = 1
        started.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tool)
        await started.wait()
        tasks.cancel_scope.cancel()

    assert stored(gantry) == {}


@pytest.mark.anyio
async def test_timed_out_tool_changes_nothing(gantry):
    @gantry.with_memory
    async def tool(memory):
        memory["n"] = 1
        await anyio.sleep_forever()

    with anyio.move_on_after(0) as scope:
        await tool()

    assert scope.cancelled_caught
    assert stored(gantry) == {}


@pytest.mark.anyio
async def test_abandoned_coroutine_changes_nothing(gantry):
    @gantry.with_memory
    async def tool(memory):
        memory["n"] = 1
        await anyio.lowlevel.checkpoint()

    coroutine = tool()
    coroutine.close()

    assert stored(gantry) == {}


def test_memory_is_ordinary_after_its_call(gantry):
    @gantry.with_memory
    def tool(memory):
        memory["n"] = [1]
        return memory

    kept = tool()
    kept["m"] = 2
    kept["n"].append(3)

    assert stored(gantry) == {"n": [1]}


def test_docstring_of_a_tool_can_be_set():
    with Gantry(session="s") as gantry:
        tool = gantry.with_memory(lambda memory: None)

        tool.__doc__ = "Other words."

        assert inspect.getdoc(tool) == "Other words."


def test_tool_survives_being_patched():
    with Gantry(session="s") as gantry:
        tool = gantry.with_memory(lambda memory: memory.add("n", 1))
        with mock.patch.object(tool, "__call__", return_value="patched"):
            assert tool() == "patched"

        assert tool() == 1


def test_returned_generator_is_warned_about():
    def items(memory):
        memory["x"] = 1
        yield 1

    with Gantry(session="s") as gantry:
        tool = gantry.with_memory(lambda memory: items(memory))

        with pytest.warns(StateWarning, match="returned a generator"):
            tool()


# What a call begins with is kept for each caller.


def test_name_that_is_registered_later_holds_for_each_of_several_memories(gantry):
    @gantry.with_memory(scope="tool", into="own")
    @gantry.with_memory
    def tool(memory, own):
        return own.add("n")

    assert (tool(), tool()) == (1, 2)
    tool.plan.register("default.counter")
    assert (tool(), tool()) == (1, 2)


def test_identity_of_a_program_does_not_keep_what_tools_began_with_that_are_gone(gantry):
    def two(memory, more):
        memory["n"] = more["n"] = 1

    identity = gantry.identity()
    for _ in range(600):
        gantry.with_memory(gantry.with_memory(two, scope="global", into="more"))()

    assert len(identity.slots) < 300
