from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry, RunContext, UnexpectedModelBehavior
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.toolsets import FunctionToolset
from scenario import CHECKS, SHORT_CHECKS, adrive, assert_hidden, drive, remembered
from tools import make_agent_gantry_tools, make_tools, method_of

from agent_gantry_state import Identity, InjectedArgumentError, MissingIdentityError
from agent_gantry_state.integrations.pydantic_ai import IdentityCapability, IdentityToolset


@dataclass
class Caller:
    session_id: str | None
    user_id: str | None


def asked(messages: Any) -> list[Any] | None:
    """The calls that the user's message lists, if that is the last one."""
    parts = [part for part in messages[-1].parts if isinstance(part, UserPromptPart)]
    return json.loads(parts[0].content) if parts else None


def script(messages: Any, info: Any) -> ModelResponse:
    """Asks for the calls that the user's message lists, and is done when they have answered."""
    calls = asked(messages)
    if calls is None:
        return ModelResponse(parts=[TextPart(str(messages[-1].parts[-1].content))])
    return ModelResponse(parts=[ToolCallPart(name, arguments) for name, arguments in calls])


async def stream(messages: Any, info: Any) -> Any:
    calls = asked(messages)
    if calls is None:
        yield "done"
        return
    yield {
        number: DeltaToolCall(name, json.dumps(arguments), tool_call_id=f"call {number}")
        for number, (name, arguments) in enumerate(calls)
    }


def model():
    return FunctionModel(script, stream_function=stream)


def of_functions(tools):
    """The decorated functions, given to the agent as any others."""
    return Agent(model(), deps_type=Caller, tools=tools.functions, capabilities=[IdentityCapability(tools.gantry)])


def of_toolset(tools):
    toolset = IdentityToolset(FunctionToolset(tools.functions), tools.gantry)
    return Agent(model(), deps_type=Caller, toolsets=[toolset])


def of_methods(tools):
    """The decorated functions, registered by the agent's own decorator."""
    agent = Agent(model(), deps_type=Caller, capabilities=[IdentityCapability(tools.gantry)])
    for function in tools.functions:
        agent.tool_plain(function)
    return agent


def adapted(tools):
    from agent_gantry.integrations.frameworks.base import spec_from_tool
    from agent_gantry.pydantic_ai import PydanticAIAdapter

    return [PydanticAIAdapter.convert(spec_from_tool(tools.gantry, each)) for each in tools.gantry.list_tools_sync()]


def of_adapter(tools):
    """The same, through agent-gantry's adapter."""
    return Agent(model(), deps_type=Caller, tools=adapted(tools), capabilities=[IdentityCapability(tools.gantry)])


def of_live_adapter(tools):
    """The same, through the adapter that selects tools in every turn."""
    from agent_gantry.pydantic_ai import PydanticAIAdapter

    toolset = IdentityToolset(PydanticAIAdapter(tools.gantry).live(limit=20), tools.gantry)
    return Agent(model(), deps_type=Caller, toolsets=[toolset])


@pytest.fixture
def tools():
    return make_tools()


async def shown(agent):
    """The tools as the model sees them."""
    scripted = TestModel(call_tools=[])
    await agent.run("hello", model=scripted, deps=Caller("s1", "ada"))
    return scripted.last_model_request_parameters.function_tools


# A plain decorated function, registered as any other.


@pytest.mark.anyio
@pytest.mark.parametrize("make", [of_functions, of_toolset, of_methods])
async def test_memory_is_in_no_schema(tools, make):
    found = await shown(make(tools))

    assert {each.name for each in found} == set(tools.by_name)
    for each in found:
        assert_hidden(each.description, each.parameters_json_schema)
        assert each.parameters_json_schema["properties"]


@pytest.mark.anyio
@pytest.mark.parametrize("check", CHECKS)
async def test_agent(tools, check):
    agent = of_functions(tools)

    await adrive(check, tools, lambda s, u, calls: agent.run(json.dumps(calls), deps=Caller(s, u)))


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["a", ""])
@pytest.mark.parametrize("make", [of_toolset, of_methods])
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_other_ways_to_register(tools, check, make, a):
    agent = make(tools)

    await adrive(check, tools, lambda s, u, calls: agent.run(json.dumps(calls), deps=Caller(s, u)), a)


@pytest.mark.anyio
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_agent_streamed(tools, check):
    agent = of_functions(tools)

    async def run(session, user, calls):
        async with agent.run_stream(json.dumps(calls), deps=Caller(session, user)) as result:
            async for _ in result.stream_text():
                pass

    await adrive(check, tools, run)


@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", SHORT_CHECKS)
def test_agent_sync(tools, check, a):
    # Each thread has an agent, for the models and loops of one are its own.
    drive(check, tools, lambda s, u, calls: of_functions(tools).run_sync(json.dumps(calls), deps=Caller(s, u)), a)


@pytest.mark.anyio
async def test_method_is_a_tool(tools):
    method = method_of(tools.gantry)
    agent = Agent(model(), deps_type=Caller, tools=[method], capabilities=[IdentityCapability(tools.gantry)])

    await agent.run(json.dumps([("sign", {"item": "x"})]), deps=Caller("s1", "ada"))

    (seen,) = await shown(agent)
    assert_hidden(seen.description, seen.parameters_json_schema)
    assert seen.parameters_json_schema["properties"].keys() == {"item"}
    assert remembered(tools, session="s1", user="ada") == {"items": ["x, ada"]}


# Through agent-gantry's adapter.


@pytest.mark.anyio
@pytest.mark.parametrize("make", [of_adapter, of_live_adapter])
async def test_memory_is_in_no_schema_of_the_adapter(make):
    for each in await shown(make(make_agent_gantry_tools())):
        assert_hidden(each.description, each.parameters_json_schema)


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["a", ""])
@pytest.mark.parametrize("make", [of_adapter, of_live_adapter])
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_adapter(check, make, a):
    tools = make_agent_gantry_tools()
    agent = make(tools)

    await adrive(check, tools, lambda s, u, calls: agent.run(json.dumps(calls), deps=Caller(s, u)), a)


# Where the identity comes from.

NOTE = json.dumps([("anote", {"item": "x"})])


@pytest.mark.anyio
async def test_session_around_the_run_is_enough(tools):
    async with tools.gantry.session("s1", user="ada"):
        await Agent(model(), tools=tools.functions).run(NOTE)

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
@pytest.mark.parametrize("deps", [None, Caller(None, "ada")])
async def test_unknown_session_is_an_error(tools, deps):
    with pytest.raises(MissingIdentityError, match="no session is known here"):
        await of_functions(tools).run(NOTE, deps=deps)


@pytest.mark.anyio
async def test_user_of_the_dependencies_joins_the_session_around_the_run(tools):
    async with tools.gantry.session("s1"):
        await of_functions(tools).run(NOTE, deps=Caller(None, "ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
@pytest.mark.parametrize("deps", [{"thread": "s1", "login": "ada"}, SimpleNamespace(thread="s1", login="ada")])
async def test_dependencies_may_have_names_of_their_own(tools, deps):
    capability = IdentityCapability(tools.gantry, session="thread", user="login", keys={"tenant": "org"})

    await Agent(model(), tools=tools.functions, capabilities=[capability]).run(NOTE, deps=deps)

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
async def test_conversation_of_the_run_may_be_the_session(tools):
    capability = IdentityCapability(tools.gantry, session="conversation_id")
    agent = Agent(model(), tools=tools.functions, capabilities=[capability])

    await agent.run(NOTE, deps={"user_id": "ada"}, conversation_id="c1")
    first = await agent.run(NOTE, deps={"user_id": "ada"}, conversation_id="c1")
    await agent.run(NOTE, deps={"user_id": "ada"}, message_history=first.all_messages())

    assert remembered(tools, session="c1", user="ada") == {"items": ["x", "x", "x"]}


@pytest.mark.anyio
async def test_function_of_the_app_says_who_calls(tools):
    def who(ctx: RunContext[Any]) -> Identity | None:
        return Identity(ctx.deps.request["id"], ctx.deps.login)

    agent = Agent(model(), tools=tools.functions, capabilities=[IdentityCapability(tools.gantry, identity=who)])

    await agent.run(NOTE, deps=SimpleNamespace(request={"id": "s1"}, login="ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
async def test_agent_that_a_tool_runs_is_of_the_session_of_the_tool(tools):
    inner = Agent(model(), tools=tools.functions)

    async def ask() -> str:
        """Ask the inner agent."""
        return (await inner.run(NOTE)).output

    outer = Agent(model(), tools=[ask], capabilities=[IdentityCapability(tools.gantry)])
    await outer.run(json.dumps([("ask", {})]), deps=Caller("s1", "ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
async def test_nothing_of_the_identity_stays_behind(tools):
    await of_functions(tools).run(NOTE, deps=Caller("s1", "ada"))

    assert tools.gantry.identity() is None


# What a call is.


@pytest.mark.anyio
async def test_call_that_asks_the_model_to_try_again_changes_nothing(tools):
    tries = []

    @tools.gantry.with_memory
    async def pick(item: str, memory: dict) -> str:
        """Pick an item."""
        memory.setdefault("items", []).append(item)
        tries.append(item)
        if len(tries) == 1:
            raise ModelRetry("another one")
        return "picked"

    def again(messages: Any, info: Any) -> ModelResponse:
        done = len(tries) == 2
        return ModelResponse(parts=[TextPart("done") if done else ToolCallPart("pick", {"item": f"try {len(tries)}"})])

    agent = Agent(FunctionModel(again), tools=[pick], capabilities=[IdentityCapability(tools.gantry)])
    await agent.run("pick one", deps=Caller("s1", "ada"))

    assert tries == ["try 0", "try 1"]
    assert remembered(tools, session="s1", user="ada") == {"items": ["try 1"]}


@pytest.mark.anyio
async def test_cancelled_async_tool_changes_nothing(tools):
    begun = asyncio.Event()

    @tools.gantry.with_memory
    async def slow(memory: dict) -> str:
        """Take some time."""
        memory["slow"] = True
        begun.set()
        await asyncio.Event().wait()
        return "done"

    agent = Agent(model(), tools=[slow], capabilities=[IdentityCapability(tools.gantry)])
    run = asyncio.create_task(agent.run(json.dumps([("slow", {})]), deps=Caller("s1", "ada")))
    await asyncio.wait_for(begun.wait(), 20)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert remembered(tools, session="s1", user="ada") == {}


@pytest.mark.anyio
async def test_memory_that_the_model_passes_goes_nowhere(tools):
    @tools.gantry.with_memory
    async def keep(item: str, memory: dict, **more: Any) -> str:
        """Keep an item, and whatever else."""
        memory.setdefault("items", []).append(item)
        return f"kept, and {more}"

    agent = Agent(model(), tools=[*tools.functions, keep], capabilities=[IdentityCapability(tools.gantry)])
    forged, deps = {"items": ["forged"]}, Caller("s1", "ada")

    with pytest.raises(InjectedArgumentError):
        await agent.run(json.dumps([("keep", {"item": "x", "memory": forged})]), deps=deps)
    await agent.run(json.dumps([("keep", {"item": "y", "more": {"memory": forged}})]), deps=deps)
    with contextlib.suppress(UnexpectedModelBehavior):
        # The schema has no such parameter, and may refuse it.
        await agent.run(json.dumps([("anote", {"item": "z", "memory": forged})]), deps=deps)

    assert "forged" not in str(remembered(tools, session="s1", user="ada"))


def test_example(example):
    assert example("pydantic_ai_agent.py") == (
        "ada in s1: in the basket: tea; you had tea 1 times\n"
        "ada in s1: in the basket: tea, milk; you had milk 1 times\n"
        "ada in s2: in the basket: tea; you had tea 2 times\n"
        "bob in s3: in the basket: tea; you had tea 1 times\n"
    )
