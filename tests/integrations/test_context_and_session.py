"""Tools that ask for a context or a session, and tools that generate, on the real agent-gantry."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import json
import os
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Optional

import agent_gantry
import anyio
import pytest
from agent_gantry.integrations.frameworks.base import spec_from_tool
from agent_gantry.schema.execution import BatchToolCall, ExecutionStatus
from agent_gantry.schema.tool import ToolDefinition
from executions import call, definition, remembered, run, unlimited
from support import Coroutines

import agent_gantry_state
from agent_gantry_state import (
    AgentGantry,
    CallEndedError,
    DeclarationError,
    ExecutionContext,
    Session,
    SyncExecutionContext,
    SyncSession,
    Tool,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "coroutines"])
async def gantry(request):
    store = "memory://" if request.param == "memory" else Coroutines()
    gantry = AgentGantry(**unlimited(), store=store, session="local", user="me")
    bridge = gantry._wiring.settings.bridge
    yield gantry
    await gantry.close()
    if request.param == "coroutines":
        await bridge.aclose()


async def fails(gantry, tool, error_type, /, **arguments):
    """A memory error: it is final, says what it is, and is not held against the tool."""
    result = await gantry.execute(call(tool, **arguments))
    assert (result.status, result.error_type, result.attempt_number) == (ExecutionStatus.FAILURE, error_type, 1)
    assert definition(gantry, tool).health.consecutive_failures == 0
    return result.error


async def everything(gantry):
    return {scope: await remembered(gantry, scope) for scope in ("session", "user", "global")}


NOTHING = {"session": {}, "user": {}, "global": {}}


def schema(gantry, name):
    return definition(gantry, name).parameters_schema


# What was asked for, to the letter.


def read_from_disk(filename):
    return Path(filename).read_text()


def generate_summary(content):
    return content.split(".")[0]


async def test_request_first_example_remembers_the_file(tmp_path):
    path = tmp_path / "whales.txt"
    path.write_text("Whales sing. At length.")
    gantry = AgentGantry(**unlimited())

    @gantry.register
    async def read_file(filename: str, ctx) -> str:
        """Read a file and remember it."""
        # Store in session memory
        content = read_from_disk(filename)
        ctx.memory["last_file"] = filename
        ctx.memory["file_content"] = content
        return content

    @gantry.register
    async def summarize_last_file(ctx) -> str:
        """Summarize the last file that was read."""
        # Access from session memory
        filename = ctx.memory.get("last_file")
        content = ctx.memory.get("file_content")
        return f"Summary of {filename}: {generate_summary(content)}"

    async with gantry.session("s1", user="ada"):
        assert await run(gantry, "read_file", filename=str(path)) == "Whales sing. At length."
        assert await run(gantry, "summarize_last_file") == f"Summary of {path}: Whales sing"
        assert await remembered(gantry) == {"last_file": str(path), "file_content": "Whales sing. At length."}
    async with gantry.session("s2", user="ada"):
        assert await remembered(gantry) == {}

    assert list(schema(gantry, "read_file")["properties"]) == schema(gantry, "read_file")["required"] == ["filename"]
    assert not schema(gantry, "summarize_last_file").get("properties")
    assert "ctx" not in json.dumps([schema(gantry, "read_file"), schema(gantry, "summarize_last_file")])
    assert definition(gantry, "read_file").description == "Read a file and remember it."
    await gantry.close()


async def test_request_option_one_context_parameter(gantry):
    @gantry.register
    async def my_tool(arg: str, ctx: ExecutionContext) -> str:
        """Do something."""
        ctx.memory["key"] = "value"
        return ctx.memory.get("other_key", default="")

    assert await run(gantry, "my_tool", arg="x") == ""
    assert await remembered(gantry) == {"key": "value"}
    assert list(schema(gantry, "my_tool")["properties"]) == ["arg"]


async def test_request_option_two_session_object(gantry):
    @gantry.register(stateful=True)
    async def my_tool(arg: str, session: Session) -> str:
        """Do something."""
        await session.set("key", "value")
        return await session.get("other_key")

    assert await run(gantry, "my_tool", arg="x") is None
    async with gantry.memory() as memory:
        memory["other_key"] = "other"
    assert await run(gantry, "my_tool", arg="x") == "other"
    assert await remembered(gantry) == {"key": "value", "other_key": "other"}
    assert list(schema(gantry, "my_tool")["properties"]) == ["arg"]


# Which parameters are meant.


async def unannotated(item: str, ctx) -> str:
    """Note an item down."""
    return note(item, ctx)


async def annotated(item: str, ctx: ExecutionContext) -> str:
    """Note an item down."""
    return note(item, ctx)


async def of_another_name(run: ExecutionContext, item: str) -> str:
    """Note an item down."""
    return note(item, run)


async def of_module(item: str, ctx: agent_gantry_state.ExecutionContext) -> str:
    """Note an item down."""
    return note(item, ctx)


async def with_extra(item: str, ctx: Annotated[ExecutionContext, "the hidden one"]) -> str:
    """Note an item down."""
    return note(item, ctx)


async def optional(item: str, ctx: ExecutionContext | None = None) -> str:
    """Note an item down."""
    return note(item, ctx)


async def old_optional(item: str, ctx: Optional[ExecutionContext] = None) -> str:  # noqa: UP045
    """Note an item down."""
    return note(item, ctx)


async def optional_with_extra(item: str, *, ctx: Annotated[Optional[ExecutionContext], "hidden"] = None) -> str:  # noqa: UP045
    """Note an item down."""
    return note(item, ctx)


async def quoted(item: str, ctx: "ExecutionContext") -> str:  # noqa: UP037
    """Note an item down."""
    return note(item, ctx)


def sync_unannotated(item: str, ctx) -> str:
    """Note an item down."""
    return note(item, ctx)


def sync_annotated(item: str, ctx: SyncExecutionContext) -> str:
    """Note an item down."""
    return note(item, ctx)


def sync_optional(item: str, ctx: SyncExecutionContext | None = None) -> str:
    """Note an item down."""
    return note(item, ctx)


def note(item, ctx):
    ctx.memory.setdefault("items", []).append(item)
    return type(ctx).__name__


NOTED = [
    unannotated,
    annotated,
    of_another_name,
    of_module,
    with_extra,
    optional,
    old_optional,
    optional_with_extra,
    quoted,
    sync_unannotated,
    sync_annotated,
    sync_optional,
]


@pytest.mark.parametrize("fn", NOTED)
async def test_context_however_it_is_asked_for(gantry, fn):
    tool = gantry.register(fn)

    expected = "ExecutionContext" if inspect.iscoroutinefunction(fn) else "SyncExecutionContext"
    assert await run(gantry, fn.__name__, item="a") == expected
    assert isinstance(tool, Tool)
    assert inspect.iscoroutinefunction(tool) is inspect.iscoroutinefunction(fn)
    assert (await tool(item="b") if inspect.iscoroutinefunction(fn) else await asyncio.to_thread(tool, "b")) == expected
    assert await remembered(gantry) == {"items": ["a", "b"]}
    assert list(schema(gantry, fn.__name__)["properties"]) == ["item"]
    assert "hidden" not in json.dumps(schema(gantry, fn.__name__))


async def session_annotated(item: str, session: Session) -> str:
    """Note an item down."""
    await session.set("item", item)
    return type(session).__name__


async def session_of_another_name(item: str, keys: Session | None = None) -> str:
    """Note an item down."""
    return await session_annotated(item, keys)


async def session_of_module(item: str, session: Annotated[agent_gantry_state.Session, "hidden"]) -> str:
    """Note an item down."""
    return await session_annotated(item, session)


def session_in_sync(item: str, session: SyncSession) -> str:
    """Note an item down."""
    session.set("item", item)
    return type(session).__name__


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize("fn", [session_annotated, session_of_another_name, session_of_module, session_in_sync])
async def test_session_however_it_is_asked_for(gantry, fn, stateful):
    gantry.register(stateful=stateful)(fn) if stateful else gantry.register(fn)

    expected = "Session" if inspect.iscoroutinefunction(fn) else "SyncSession"
    assert await run(gantry, fn.__name__, item="a") == expected
    assert await remembered(gantry) == {"item": "a"}
    assert list(schema(gantry, fn.__name__)["properties"]) == ["item"]


MODULE = """
from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Annotated, Literal, Optional, Union

from agent_gantry_state import AgentGantry

if TYPE_CHECKING:
    import agent_gantry_state
    import other_library
    from agent_gantry_state import ExecutionContext, Session, SyncExecutionContext, SyncSession

tools = AgentGantry(session="local")

@tools.register
async def note(item: str, ctx: ExecutionContext) -> list:
    '''Note an item down.'''
    ctx.memory.setdefault("items", []).append(item)
    return list(ctx.memory["items"])

@tools.register
def note_sync(item: str, ctx: SyncExecutionContext | None = None) -> list:
    '''Note it in sync.'''
    ctx.memory.setdefault("items", []).append(item)
    return list(ctx.memory["items"])

@tools.register(stateful=True)
async def keep(item: str, session: agent_gantry_state.Session) -> list:
    '''Keep an item.'''
    await session.set("items", [*await session.get("items", []), item])
    return await session.get("items")

@tools.register(stateful=True)
def keep_sync(item: str, session: SyncSession) -> list:
    '''Keep it in sync.'''
    session.set("items", [*session.get("items", []), item])
    return session.get("items")

@tools.register
def count(to: int, ctx) -> list:
    '''Count up to a number.'''
    for i in range(to):
        ctx.memory.setdefault("items", []).append(i)
        yield i

@tools.register
async def spoil(ctx) -> None:
    '''Spoil the memory.'''
    ctx.memory["bad"] = object()

# Each way to write an annotation that only type checkers can resolve.

async def optional(item: str, ctx: ExecutionContext | None = None): ...
async def union(item: str, ctx: Union[None, "ExecutionContext"] = None): ...
async def old_optional(item: str, ctx: Optional[ExecutionContext] = None): ...
async def old_optional_of_module(item: str, ctx: typing.Optional[agent_gantry_state.ExecutionContext] = None): ...
async def with_extra(item: str, ctx: Annotated[ExecutionContext, "hidden"]): ...
async def quoted(item: str, ctx: "ExecutionContext"): ...
async def session_optional(item: str, keys: Session | None = None): ...
async def session_with_extra(item: str, keys: Annotated[agent_gantry_state.Session, "hidden"]): ...
def sync_optional(item: str, ctx: None | SyncExecutionContext = None): ...
def sync_session_optional(item: str, keys: agent_gantry_state.SyncSession | None = None): ...

# Of other libraries.

async def other_session(session: other_library.Session): ...
async def other_optional(session: other_library.Session | None = None): ...
async def other_context(ctx: other_library.sub.ExecutionContext): ...
async def list_of_them(session: list[Session]): ...
async def text_about_it(session: Literal["Session"]): ...
async def other_name(session: MySession, ctx: ExecutionContextOfMine): ...
"""
ASKING = [
    "optional",
    "union",
    "old_optional",
    "old_optional_of_module",
    "with_extra",
    "quoted",
    "session_optional",
    "session_with_extra",
    "sync_optional",
    "sync_session_optional",
]
NOT_ASKING = ["other_session", "other_optional", "other_context", "list_of_them", "text_about_it", "other_name"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of tools that imports the classes for type checkers only."""
    name = f"stateful_tools_of_a_test_{os.getpid()}_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(name)
    del sys.modules[name]


NAMES = ["note", "note_sync", "keep", "keep_sync"]


async def test_annotations_that_only_type_checkers_can_resolve_are_no_hindrance(module):
    for expected, name in enumerate(NAMES, 1):
        assert len(await run(module.tools, name, item="a")) == expected
        assert list(schema(module.tools, name)["properties"]) == ["item"]


@pytest.mark.parametrize("name", ASKING)
async def test_annotation_that_only_type_checkers_can_resolve_may_be_written_in_any_way(module, name):
    fn = getattr(module, name)
    fn.__doc__ = "Note an item down."

    tool = module.tools.register(fn)

    assert list(inspect.signature(tool).parameters) == ["item"]
    assert list(schema(module.tools, name)["properties"]) == ["item"]


@pytest.mark.parametrize("name", NOT_ASKING)
async def test_class_of_that_name_in_another_library_is_not_ours(module, name):
    fn = getattr(module, name)
    fn.__doc__ = "Note an item down."

    assert module.tools.register(fn) is fn
    assert list(schema(module.tools, name)["properties"]) == list(inspect.signature(fn).parameters)


@pytest.mark.parametrize("plain", [True, False])
async def test_tools_are_collected_into_another_gantry(module, plain):
    gantry = agent_gantry.AgentGantry(**unlimited()) if plain else AgentGantry(**unlimited())
    await gantry.collect_tools_from_modules([module.__name__])

    for expected, name in enumerate(NAMES, 1):
        assert len(await run(gantry, name, item="a")) == expected
        assert list(schema(gantry, name)["properties"]) == ["item"]
    assert await run(gantry, "count", to=3) == [0, 1, 2]
    result = await gantry.execute(call("spoil"))

    assert (result.status, result.attempt_number) == (ExecutionStatus.FAILURE, 1)
    assert await remembered(module.tools) == {"items": ["a"] * 4 + [0, 1, 2]}


@pytest.mark.filterwarnings("ignore:.*is registered without with_memory")
async def test_parameters_of_that_name_with_another_annotation_are_the_models(gantry):
    @gantry.register
    async def theirs(ctx: str, session: str, session_id: str, context: int, memory: dict) -> list:
        """Say what was given."""
        return [ctx, session, session_id, context, memory]

    @gantry.register
    def unannotated_but_other_names(context, session, execution_context) -> list:
        """Say what was given."""
        return [context, session, execution_context]

    assert not isinstance(theirs, Tool)
    assert set(schema(gantry, "theirs")["properties"]) == {"ctx", "session", "session_id", "context", "memory"}
    assert await run(gantry, "theirs", ctx="c", session="s", session_id="i", context=1, memory={}) == ["c", "s", "i", 1, {}]
    assert set(schema(gantry, "unannotated_but_other_names")["properties"]) == {"context", "session", "execution_context"}


async def test_models_parameter_of_that_name_beside_the_injected_one(gantry):
    @gantry.register(stateful=True)
    async def both(ctx: str, session: str, run: ExecutionContext, keys: Session) -> str:
        """Write what was given."""
        run.memory[ctx] = session
        return await keys.get(ctx)

    assert set(schema(gantry, "both")["properties"]) == {"ctx", "session"}
    assert await run(gantry, "both", ctx="c", session="s2") == "s2"
    assert await remembered(gantry) == {"c": "s2"}


async def test_function_that_asks_for_nothing_is_left_alone(gantry):
    async def double(n: int) -> int:
        """Double a number."""
        return 2 * n

    assert gantry.register(double) is double
    assert gantry._registry.get_handler("default.double") is double


async def test_model_cannot_pass_what_is_injected(gantry):
    ran = []

    @gantry.register
    async def anything(ctx, keys: Session, **options: Any) -> None:
        """Take any option."""
        ran.append(options)

    for injected in ("ctx", "keys"):
        error = await fails(gantry, "anything", "InjectedArgumentError", **{injected: {"admin": "s3cr3t"}})
        assert f"'{injected}'" in error
        assert "s3cr3t" not in error
    assert ran == []


# What is refused at registration.


async def async_with_sync(ctx: SyncExecutionContext) -> None:
    """Ask for the wrong one."""


async def async_with_sync_session(session: SyncSession) -> None:
    """Ask for the wrong one."""


def sync_with_async(ctx: ExecutionContext) -> None:
    """Ask for the wrong one."""


def sync_with_async_session(session: Optional[Session] = None) -> None:  # noqa: UP045
    """Ask for the wrong one."""


def positional_only(ctx, /) -> None:
    """Ask where nothing can be injected."""


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (async_with_sync, "async function.*with ExecutionContext, not with SyncExecutionContext"),
        (async_with_sync_session, "async function.*with Session, not with SyncSession"),
        (sync_with_async, "sync function.*with SyncExecutionContext, not with ExecutionContext"),
        (sync_with_async_session, "sync function.*with SyncSession, not with Session"),
        (positional_only, "positional-only"),
    ],
)
@pytest.mark.parametrize("parentheses", [True, False])
async def test_what_cannot_be_given_is_refused_and_nothing_is_registered(gantry, fn, says, parentheses):
    with pytest.raises(DeclarationError, match=says):
        (gantry.register(stateful=True) if parentheses else gantry.register)(fn)

    assert gantry.list_tools_sync() == []


class FrameworkTool:
    """A tool object as frameworks have them."""

    def __init__(self, func, name="read"):
        self.func, self.name, self.description = func, name, "Read what a framework's tool reads."


async def read_with_context(item: str, ctx: ExecutionContext) -> list:
    """Read something."""
    ctx.memory.setdefault("items", []).append(item)
    return list(ctx.memory["items"])


def read_with_session(item: str, session: SyncSession) -> list:
    """Read something."""
    session.set("items", [*session.get("items", []), item])
    return session.get("items")


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("fn", [read_with_context, read_with_session])
async def test_function_inside_a_frameworks_tool_gets_what_it_asks_for(gantry, fn, stateful):
    tool = FrameworkTool(fn)

    assert gantry.register(tool, stateful=stateful) is tool

    assert list(schema(gantry, "read")["properties"]) == ["item"]
    assert await run(gantry, "read", item="a") == ["a"]
    assert await run(gantry, "read", item="b") == ["a", "b"]
    assert await remembered(gantry) == {"items": ["a", "b"]}


async def test_frameworks_tool_that_asks_for_nothing_is_registered_as_it_is(gantry):
    def plain(item: str) -> str:
        """Read something."""
        return item

    gantry.register(FrameworkTool(plain, "plain"))
    gantry.register(FrameworkTool(gantry.with_memory(lambda item, memory: [memory.add("n"), item][1]), "memory"))

    assert await run(gantry, "plain", item="a") == await run(gantry, "memory", item="a") == "a"
    assert await remembered(gantry) == {"n": 1}
    with pytest.raises(DeclarationError, match="stateful=True"):
        gantry.register(FrameworkTool(plain, "other"), stateful=True)


async def test_what_a_frameworks_tool_cannot_be_given_is_refused(gantry):
    with pytest.raises(DeclarationError, match=r"async function.*with Session, not with SyncSession"):
        gantry.register(FrameworkTool(async_with_sync_session))
    assert gantry.list_tools_sync() == []


async def test_stateful_tool_without_any_state_is_refused_with_what_to_do(gantry):
    def stateless(session: str) -> str:
        """Do nothing with it."""
        return session

    with pytest.raises(DeclarationError, match=r"stateless is registered with stateful=True.*session: Session.*with_memory"):
        gantry.register(stateful=True)(stateless)
    with pytest.raises(DeclarationError):
        gantry.register(stateless, stateful=True)

    assert gantry.list_tools_sync() == []


async def test_stateful_is_satisfied_by_each_way_to_have_state(gantry):
    @gantry.register(stateful=True)
    @gantry.with_memory
    async def by_memory(memory: dict) -> None:
        """Have a memory."""

    @gantry.register(stateful=True)
    async def by_context(ctx) -> None:
        """Have a context."""

    @gantry.register(stateful=True)
    @gantry.with_context(into="run")
    async def by_decorator(run) -> None:
        """Have a context by a decorator."""

    for name in ("by_memory", "by_context", "by_decorator"):
        await run(gantry, name)


async def test_arguments_of_register_are_passed_on(gantry):
    @gantry.register(name="reader", namespace="files", tags=["io"], stateful=True)
    async def read(ctx) -> str:
        """Tell its name."""
        ctx.memory["x"] = 1
        return ctx.tool

    tool = definition(gantry, "reader", "files")
    assert tool.tags == ["io"]
    assert await run(gantry, "files.reader") == "files.reader"


# All or nothing.


async def write_everywhere(ctx, session, how):
    memories = [ctx.memory, await ctx.scope("user"), await ctx.scope("global")]
    for memory in memories:
        memory.setdefault("log", []).append("x")
    await session.add("n", 1)
    await act(how, memories[-1])


async def act(how, memory):
    if how == "raises":
        raise RuntimeError("tool")
    if how == "unstorable":
        memory["bad"] = object()
    if how == "times out":
        await asyncio.Event().wait()


async def test_tool_that_succeeds_commits_every_scope(gantry):
    @gantry.register
    async def writes(ctx, session: Session) -> None:
        """Write everywhere."""
        await write_everywhere(ctx, session, "returns")

    await run(gantry, "writes")

    assert await everything(gantry) == {"session": {"log": ["x"], "n": 1}, "user": {"log": ["x"]}, "global": {"log": ["x"]}}


@pytest.mark.parametrize("how", ["raises", "unstorable", "times out"])
async def test_failing_tool_changes_nothing_in_any_scope_however_often_it_is_run(gantry, how):
    ran = []

    @gantry.register
    async def writes(ctx, session: Session) -> None:
        """Write everywhere."""
        ran.append(1)
        await write_everywhere(ctx, session, how)

    await gantry.ensure_synced()
    result = await gantry.execute(call("writes", retry_count=1, timeout_ms=300))

    status = ExecutionStatus.TIMEOUT if how == "times out" else ExecutionStatus.FAILURE
    assert result.status is status
    assert len(ran) == (1 if how == "unstorable" else 2)
    assert await everything(gantry) == NOTHING


@pytest.mark.parametrize("how", ["raises", "unstorable"])
async def test_failing_sync_tool_changes_nothing_in_any_scope(gantry, how):
    ran = []

    @gantry.register
    def writes(ctx, session: SyncSession) -> None:
        """Write everywhere."""
        ran.append(1)
        for memory in (ctx.memory, ctx.scope("user"), ctx.scope("global")):
            memory.setdefault("log", []).append("x")
        session.add("n", 1)
        if how == "raises":
            raise RuntimeError("tool")
        session.set("bad", object())

    result = await gantry.execute(call("writes", retry_count=1))

    assert result.status is ExecutionStatus.FAILURE
    assert len(ran) == (1 if how == "unstorable" else 2)
    assert await everything(gantry) == NOTHING


async def test_sync_tool_writes_every_scope_in_its_thread(gantry):
    threads = []

    @gantry.register
    def writes(ctx, session: SyncSession) -> int:
        """Write everywhere."""
        threads.append(threading.get_ident())
        for memory in (ctx.memory, ctx.scope("user"), ctx.scope("global")):
            memory.setdefault("log", []).append("x")
        return session.add("n", 1)

    assert [await run(gantry, "writes"), await run(gantry, "writes")] == [1, 2]

    log = ["x", "x"]
    assert threading.get_ident() not in threads
    assert await everything(gantry) == {"session": {"log": log, "n": 2}, "user": {"log": log}, "global": {"log": log}}


async def test_sync_tool_that_timed_out_can_use_its_context_and_session_no_more(gantry):
    go_on, ended, errors = threading.Event(), threading.Event(), []

    @gantry.register
    def slow(ctx, session: SyncSession) -> None:
        """Take too long."""
        session.set("x", 1)
        go_on.wait(10)
        for use in (lambda: ctx.scope("user"), lambda: session.set("late", 1), lambda: session.get("x"), session.keys):
            try:
                use()
            except CallEndedError as error:
                errors.append(error)
        ctx.memory["late"] = 1
        ended.set()

    await gantry.ensure_synced()
    result = await gantry.execute(call("slow", timeout_ms=200, retry_count=0))
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 10)

    assert result.status is ExecutionStatus.TIMEOUT
    assert len(errors) == 4
    assert await everything(gantry) == NOTHING


async def test_retry_that_succeeds_commits_its_own_changes_only(gantry):
    attempts = []

    @gantry.register
    async def second_time(ctx, session: Session) -> int:
        """Succeed when run again."""
        attempts.append(1)
        await session.add("n", len(attempts))
        (await ctx.scope("user")).setdefault("log", []).append(len(attempts))
        if len(attempts) == 1:
            raise RuntimeError("tool")
        return len(attempts)

    assert (await gantry.execute(call("second_time", retry_count=1))).result == 2
    assert await everything(gantry) == {"session": {"n": 2}, "user": {"log": [2]}, "global": {}}


async def test_fifty_parallel_calls_lose_nothing(gantry):
    @gantry.register(stateful=True)
    async def log(item: int, session: Session, ctx) -> None:
        """Log an item."""
        entries = await session.get("log")
        if entries is None:
            await session.set("log", entries := [])
        entries.append(item)
        (await ctx.scope("user")).add("n", 1)

    calls = [call("log", item=item) for item in range(50)]
    batch = await gantry.execute_batch(BatchToolCall(calls=calls, execution_strategy="parallel"))

    assert (batch.successful_count, batch.failed_count) == (50, 0)
    assert sorted((await remembered(gantry))["log"]) == list(range(50))
    assert await remembered(gantry, "user") == {"n": 50}


# Who calls.


async def test_context_tells_who_calls(gantry):
    @gantry.register
    async def who(ctx) -> list:
        """Tell who calls."""
        return [ctx.identity.session, ctx.identity.user, ctx.tool]

    assert await run(gantry, "who") == ["local", "me", "default.who"]
    async with gantry.session("s1", user="ada"):
        assert await run(gantry, "who") == ["s1", "ada", "default.who"]


async def test_no_known_session_is_an_error_only_where_the_memory_is_touched():
    ran = []
    async with AgentGantry(**unlimited()) as gantry:

        @gantry.register
        async def count(touch: bool, ctx) -> int:
            """Count the calls of all."""
            ran.append(touch)
            everybodys = await ctx.scope("global")
            return ctx.memory.add("n", 1) if touch else everybodys.add("n", 1)

        @gantry.register
        def count_sync(touch: bool, ctx) -> int:
            """Count the calls of all."""
            ran.append(touch)
            everybodys = ctx.scope("global")
            return ctx.memory.add("n", 1) if touch else everybodys.add("n", 1)

        for expected, name in enumerate(("count", "count_sync"), 1):
            assert await run(gantry, name, touch=False) == expected
            error = await fails(gantry, name, "MissingIdentityError", touch=True)
            assert "no session" in error
        assert ran == [False, True] * 2
        assert await remembered(gantry, "global") == {"n": 2}


async def test_session_tool_without_a_known_session_never_runs():
    ran = []
    async with AgentGantry(**unlimited()) as gantry:

        @gantry.register(stateful=True)
        async def keep(session: Session) -> None:
            """Keep something."""
            ran.append(1)

        assert "no session is known" in await fails(gantry, "keep", "MissingIdentityError")
    assert ran == []


async def test_session_of_somebody_else_is_refused_and_named_to_nobody(gantry):
    @gantry.register(stateful=True)
    async def keep(text: str, session: Session) -> None:
        """Keep a text."""
        await session.set("text", text)

    @gantry.register
    async def look(ctx) -> dict:
        """Look at the memory."""
        return dict(ctx.memory)

    async with gantry.session("sess10n", user="ada-l0velace"):
        await run(gantry, "keep", text="s3cr3t")
    async with gantry.session("sess10n", user="b0b"):
        errors = [
            await fails(gantry, "keep", "SessionOwnerError", text="b0b's"),
            await fails(gantry, "look", "SessionOwnerError"),
        ]

    assert errors[0] == errors[1]
    assert not any(text in errors[0] for text in ("sess10n", "l0velace", "b0b", "s3cr3t"))
    assert await remembered(gantry, session="sess10n", user="ada-l0velace") == {"text": "s3cr3t"}


# Every kind of callable, and every way into a tool.


class Notes:
    def __init__(self, prefix):
        self.prefix = prefix

    async def note(self, text: str, ctx) -> list:
        """Note a text."""
        ctx.memory.setdefault("notes", []).append(self.prefix + text)
        return list(ctx.memory["notes"])

    def note_sync(self, text: str, session: SyncSession) -> list:
        """Note a text in sync."""
        session.set("notes", [*session.get("notes", []), self.prefix + text])
        return session.get("notes")

    @classmethod
    async def note_of_class(cls, text: str, ctx: ExecutionContext) -> list:
        """Note a text of the class."""
        return await cls("class ").note(text, ctx)

    @staticmethod
    def note_static(text: str, ctx) -> list:
        """Note a text of nobody."""
        return Notes("static ").note_sync(text, Keys(ctx.memory))

    def count(self, to: int, ctx) -> list:
        """Count up to a number."""
        for i in range(to):
            ctx.memory.setdefault("notes", []).append(i)
            yield i


class Keys:
    def __init__(self, memory):
        self.get, self.set = memory.get, memory.__setitem__


async def test_methods_that_ask_are_tools(gantry):
    notes = Notes("> ")
    for method in (notes.note, notes.note_sync, Notes.note_of_class, Notes.note_static, notes.count):
        gantry.register(method)

    assert await run(gantry, "note", text="a") == ["> a"]
    assert await run(gantry, "note_sync", text="b") == ["> a", "> b"]
    assert (await run(gantry, "note_of_class", text="c"))[-1] == "class c"
    assert (await run(gantry, "note_static", text="d"))[-1] == "static d"
    assert await run(gantry, "count", to=2) == [0, 1]
    for name in ("note", "note_sync", "note_of_class", "note_static"):
        assert list(schema(gantry, name)["properties"]) == ["text"]
    assert await remembered(gantry) == {"notes": ["> a", "> b", "class c", "static d", 0, 1]}


async def test_partial_that_asks_is_a_tool(gantry):
    async def note(prefix: str, text: str, ctx) -> str:
        """Note a text."""
        ctx.memory["text"] = prefix + text
        return ctx.memory["text"]

    gantry.register(functools.partial(note, "> "), name="note")

    assert await run(gantry, "note", text="a") == "> a"
    assert "ctx" not in json.dumps(schema(gantry, "note"))


async def test_tool_that_is_added_by_its_definition_gets_its_context(gantry):
    async def note(text: str, ctx) -> str:
        """Note a text."""
        ctx.memory["text"] = text
        return ctx.tool

    properties = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    await gantry.add_tool(
        ToolDefinition(name="note", description="Note a text, whatever it is.", parameters_schema=properties), note
    )

    assert await run(gantry, "note", text="a") == "default.note"
    assert await remembered(gantry) == {"text": "a"}


@pytest.mark.parametrize("asks", ["ctx", "session", "ctx in sync", "session in sync"])
@pytest.mark.parametrize("way", ["execute", "batch", "tool calls", "ainvoke", "invoke"])
async def test_every_way_into_a_tool_gives_it(gantry, way, asks):
    async def ctx(text: str, ctx) -> str:
        """Write a sentence into the notebook."""
        ctx.memory.setdefault("notes", []).append(text)
        return " ".join(ctx.memory["notes"])

    async def session(text: str, session: Session) -> str:
        """Write a sentence into the notebook."""
        await session.set("notes", [*await session.get("notes", []), text])
        return " ".join(await session.get("notes"))

    def ctx_in_sync(text: str, ctx) -> str:
        """Write a sentence into the notebook."""
        ctx.memory.setdefault("notes", []).append(text)
        return " ".join(ctx.memory["notes"])

    def session_in_sync(text: str, session: SyncSession) -> str:
        """Write a sentence into the notebook."""
        session.set("notes", [*session.get("notes", []), text])
        return " ".join(session.get("notes"))

    tools = {"ctx": ctx, "session": session, "ctx in sync": ctx_in_sync, "session in sync": session_in_sync}
    gantry.register(tools[asks], name="note")

    async def note(text):
        if way == "execute":
            return await run(gantry, "note", text=text)
        if way == "batch":
            batch = await gantry.execute_batch(BatchToolCall(calls=[call("note", text=text)]))
            return batch.results[0].result
        if way == "tool calls":
            function = {"name": "note", "arguments": json.dumps({"text": text})}
            message = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function}]}
            (reply,) = await gantry.execute_tool_calls({"choices": [{"message": message}]})
            return reply["content"]
        spec = spec_from_tool(gantry, definition(gantry, "note"))
        if way == "ainvoke":
            return await spec.ainvoke({"text": text})
        return await asyncio.to_thread(spec.invoke, {"text": text})

    async with gantry.session("s1", user="ada"):
        assert [await note("a"), await note("b")] == ["a", "a b"]
        assert await remembered(gantry) == {"notes": ["a", "b"]}
    assert await remembered(gantry) == {}


# Beside a memory, and inside other calls.


async def test_context_and_session_beside_a_memory_are_one_commit(gantry):
    @gantry.register(stateful=True)
    @gantry.with_memory(scope="user", into="preferences")
    @gantry.with_memory
    async def both(fail: bool, ctx, session: Session, memory: dict, preferences: dict) -> list:
        """Write by every way."""
        assert ctx.memory is memory
        assert await ctx.scope("user") is preferences
        memory["log"] = ["memory"]
        (await session.get("log")).append("session")
        ctx.memory["log"].append("context")
        preferences["x"] = object() if fail else 1
        return list(memory["log"])

    assert list(schema(gantry, "both")["properties"]) == ["fail"]
    await fails(gantry, "both", "UnstorableValueError", fail=True)
    assert await everything(gantry) == NOTHING
    assert await run(gantry, "both", fail=False) == ["memory", "session", "context"]
    assert await everything(gantry) == {
        "session": {"log": ["memory", "session", "context"]},
        "user": {"x": 1},
        "global": {},
    }


async def test_tool_that_runs_another_is_undone_with_it(gantry):
    @gantry.register(stateful=True)
    async def inner(session: Session) -> int:
        """Run inside of another."""
        await session.set("seen", await session.get("outer"))
        return await session.add("n", 1)

    @gantry.register
    async def outer(fail: bool, ctx) -> int:
        """Run another twice."""
        ctx.memory["outer"] = 1
        for _ in range(2):
            result = await gantry.execute(call("inner"))
        assert ctx.memory["n"] == result.result == 2
        if fail:
            raise RuntimeError("its own")
        return result.result

    result = await gantry.execute(call("outer", retry_count=0, fail=True))
    assert result.error == "its own"
    assert await remembered(gantry) == {}
    assert await run(gantry, "outer", fail=False) == 2
    assert await remembered(gantry) == {"outer": 1, "seen": 1, "n": 2}


# Generators are drained into a list.


def up_to(memory, to, fail):
    for i in range(to):
        memory.setdefault("log", []).append(i)
        yield i
    if fail == "raises":
        raise RuntimeError("tool")
    if fail == "unstorable":
        memory["bad"] = object()


def by_memory(gantry):
    @gantry.register
    @gantry.with_memory
    def count(to: int, memory: dict, fail: str = "") -> list:
        """Count up to a number."""
        yield from up_to(memory, to, fail)

    return count


def by_memory_async(gantry):
    @gantry.register
    @gantry.with_memory
    async def count(to: int, memory: dict, fail: str = "") -> list:
        """Count up to a number."""
        for i in up_to(memory, to, fail):
            await asyncio.sleep(0)
            yield i

    return count


def by_context(gantry):
    @gantry.register
    def count(to: int, ctx, fail: str = "") -> list:
        """Count up to a number."""
        yield from up_to(ctx.memory, to, fail)

    return count


def by_context_async(gantry):
    @gantry.register
    async def count(to: int, ctx: ExecutionContext, fail: str = "") -> list:
        """Count up to a number."""
        for i in up_to(ctx.memory, to, fail):
            yield i

    return count


def by_session(gantry):
    @gantry.register(stateful=True)
    def count(to: int, session: SyncSession, fail: str = "") -> list:
        """Count up to a number."""
        memory: dict[str, Any] = {}
        for i in up_to(memory, to, fail):
            session.set("log", memory["log"])
            yield i
        session.set("bad", memory.get("bad"))
        session.delete("bad") if not fail else None

    return count


def by_session_async(gantry):
    @gantry.register(stateful=True)
    async def count(to: int, session: Session, fail: str = "") -> list:
        """Count up to a number."""
        memory: dict[str, Any] = {}
        for i in up_to(memory, to, fail):
            await session.set("log", memory["log"])
            yield i
        if fail:
            await session.set("bad", memory["bad"])

    return count


GENERATORS = pytest.mark.parametrize(
    "make", [by_memory, by_memory_async, by_context, by_context_async, by_session, by_session_async]
)


@GENERATORS
async def test_generator_is_drained_into_a_list(gantry, make):
    tool = make(gantry)

    assert await run(gantry, "count", to=3) == [0, 1, 2]
    assert await remembered(gantry) == {"log": [0, 1, 2]}
    assert set(schema(gantry, "count")["properties"]) == {"to", "fail"}
    assert await run(gantry, "count", to=0) == []
    assert inspect.isgeneratorfunction(tool) is not inspect.isasyncgenfunction(tool)


@GENERATORS
@pytest.mark.parametrize("how", ["raises", "unstorable"])
async def test_failing_drain_changes_nothing(gantry, make, how):
    make(gantry)

    result = await gantry.execute(call("count", to=3, fail=how, retry_count=1))

    assert result.status is ExecutionStatus.FAILURE
    assert (result.error_type, result.attempt_number) == (
        ("RuntimeError", 2) if how == "raises" else ("UnstorableValueError", 1)
    )
    assert await remembered(gantry) == {}


@GENERATORS
async def test_registered_generator_still_generates_for_whoever_calls_it(gantry, make):
    tool = make(gantry)

    if inspect.isasyncgenfunction(tool):
        assert [item async for item in tool(2)] == [0, 1]
    else:
        assert await asyncio.to_thread(lambda: list(tool(2))) == [0, 1]
    assert await remembered(gantry) == {"log": [0, 1]}


async def test_async_drain_that_timed_out_changes_nothing_and_its_body_cleans_up(gantry):
    ended = asyncio.Event()

    @gantry.register
    @gantry.with_memory
    async def endless(memory: dict) -> list:
        """Go on for ever."""
        try:
            memory["x"] = 1
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    await gantry.ensure_synced()
    result = await gantry.execute(call("endless", timeout_ms=200, retry_count=0))

    assert result.status is ExecutionStatus.TIMEOUT
    assert ended.is_set()
    assert await remembered(gantry) == {}


async def test_sync_drain_that_timed_out_never_commits(gantry):
    go_on, ended = threading.Event(), threading.Event()

    @gantry.register
    @gantry.with_memory
    def slow(memory: dict) -> list:
        """Take too long."""
        memory["x"] = 1
        yield 1
        go_on.wait(10)
        memory["late"] = 1
        yield 2
        ended.set()

    await gantry.ensure_synced()
    result = await gantry.execute(call("slow", timeout_ms=200, retry_count=0))
    go_on.set()
    assert await asyncio.to_thread(ended.wait, 10)
    await asyncio.sleep(0.05)  # what a thread could still do after its body's last line

    assert result.status is ExecutionStatus.TIMEOUT
    assert await remembered(gantry) == {}


async def test_tools_that_a_drained_generator_runs_are_a_part_of_it(gantry):
    @gantry.register(stateful=True)
    async def inner(session: Session) -> int:
        """Run inside of another."""
        return await session.add("n", 1)

    @gantry.register
    async def outer(fail: bool, ctx) -> list:
        """Run another in between."""
        for _ in range(2):
            yield (await gantry.execute(call("inner"))).result
        if fail:
            raise RuntimeError("its own")

    await gantry.execute(call("outer", fail=True, retry_count=0))
    assert await remembered(gantry) == {}
    assert await run(gantry, "outer", fail=False) == [1, 2]
    assert await remembered(gantry) == {"n": 2}


def passed_on(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("make_async", [True, False])
async def test_generator_below_another_decorator_is_drained_too(gantry, make_async):
    def count(to: int, memory: dict) -> list:
        """Count up to a number."""
        yield from up_to(memory, to, "")

    async def acount(to: int, memory: dict) -> list:
        """Count up to a number."""
        for i in up_to(memory, to, ""):
            yield i

    gantry.register(passed_on(gantry.with_memory(acount if make_async else count)), name="count")

    assert await run(gantry, "count", to=3) == [0, 1, 2]
    assert await remembered(gantry) == {"log": [0, 1, 2]}


async def test_drained_generator_is_no_list_of_items_that_may_still_change(gantry):
    @gantry.register
    @gantry.with_memory
    async def gives(memory: dict) -> list:
        """Give what it remembers."""
        memory["log"] = ["a"]
        yield memory["log"]
        memory["log"].append("b")
        await anyio.sleep(0)
        yield memory["log"]

    given = await run(gantry, "gives")
    given[0].append("late")

    assert await remembered(gantry) == {"log": ["a", "b"]}
