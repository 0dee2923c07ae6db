from __future__ import annotations

import asyncio
import json
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, RunContextWrapper, Runner, WebSearchTool, function_tool, set_tracing_disabled
from agents.items import ModelResponse
from agents.models.interface import Model
from agents.usage import Usage
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)
from scenario import CHECKS, SHORT_CHECKS, adrive, assert_hidden, drive, remembered
from tools import make_agent_gantry_tools, make_tools, method_of

from agent_gantry_state import Identity
from agent_gantry_state.integrations.openai_agents import with_identity

set_tracing_disabled(True)


class Scripted(Model):
    """Asks for the calls that the user's message lists, and says what the last of them has answered."""

    def _output(self, input: Any) -> list[Any]:
        last = {"role": "user", "content": input} if isinstance(input, str) else input[-1]
        if last.get("role") == "user":
            return [
                ResponseFunctionToolCall(
                    type="function_call", call_id=uuid.uuid4().hex, name=name, arguments=json.dumps(arguments)
                )
                for name, arguments in json.loads(last["content"])
            ]
        text = ResponseOutputText(type="output_text", text=str(last.get("output")), annotations=[])
        return [ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[text])]

    async def get_response(self, system_instructions: Any, input: Any, *rest: Any, **options: Any) -> ModelResponse:
        return ModelResponse(output=self._output(input), usage=Usage(), response_id=None)

    async def stream_response(self, system_instructions: Any, input: Any, *rest: Any, **options: Any) -> Any:
        response = Response(
            id="r",
            created_at=0,
            model="scripted",
            object="response",
            output=self._output(input),
            tool_choice="auto",
            tools=[],
            parallel_tool_calls=True,
        )
        yield ResponseCompletedEvent(type="response.completed", response=response, sequence_number=0)


def agent_of(tools):
    return Agent(name="agent", model=Scripted(), tools=tools)


def native(tools):
    """The decorated functions, registered as any others."""
    return with_identity(tools.gantry, [function_tool(function) for function in tools.functions])


def adapted(tools):
    """The same, through agent-gantry's adapter."""
    from agent_gantry.integrations.frameworks.base import spec_from_tool
    from agent_gantry.openai_agents import OpenAIAgentsAdapter

    definitions = tools.gantry.list_tools_sync()
    converted = [OpenAIAgentsAdapter.convert(spec_from_tool(tools.gantry, definition)) for definition in definitions]
    return with_identity(tools.gantry, converted)


@pytest.fixture
def tools():
    return make_tools()


def context_of(session, user):
    return {"session_id": session, "user_id": user}


# A plain decorated function, registered as any other.


def test_memory_is_in_no_schema(tools):
    for tool in native(tools):
        assert_hidden(tool.description, tool.params_json_schema)
    assert native(tools)[0].params_json_schema["properties"].keys() == {"item"}


@pytest.mark.anyio
@pytest.mark.parametrize("check", CHECKS)
async def test_agent(tools, check):
    agent = agent_of(native(tools))

    await adrive(check, tools, lambda s, u, calls: Runner.run(agent, json.dumps(calls), context=context_of(s, u)))


@pytest.mark.anyio
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_agent_with_sync_tools(tools, check):
    agent = agent_of(native(tools))

    await adrive(check, tools, lambda s, u, calls: Runner.run(agent, json.dumps(calls), context=context_of(s, u)), "")


@pytest.mark.anyio
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_agent_streamed(tools, check):
    agent = agent_of(native(tools))

    async def run(session, user, calls):
        result = Runner.run_streamed(agent, json.dumps(calls), context=context_of(session, user))
        async for _ in result.stream_events():
            pass

    await adrive(check, tools, run)


def run_sync(agent):
    def run(session, user, calls):
        # A thread of its own has no loop of its own yet, which `run_sync` looks for.
        asyncio.set_event_loop(asyncio.new_event_loop())
        try:
            Runner.run_sync(agent, json.dumps(calls), context=context_of(session, user))
        finally:
            asyncio.get_event_loop().close()
            asyncio.set_event_loop(None)

    return run


@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", SHORT_CHECKS)
def test_agent_sync(tools, check, a):
    drive(check, tools, run_sync(agent_of(native(tools))), a)


@pytest.mark.anyio
async def test_method_is_a_tool(tools):
    (made,) = with_identity(tools.gantry, [function_tool(method_of(tools.gantry))])

    await Runner.run(agent_of([made]), json.dumps([("sign", {"item": "x"})]), context=context_of("s1", "ada"))

    assert_hidden(made.description, made.params_json_schema)
    assert made.params_json_schema["properties"].keys() == {"item"}
    assert remembered(tools, session="s1", user="ada") == {"items": ["x, ada"]}


# Through agent-gantry's adapter.


def test_memory_is_in_no_schema_of_the_adapter():
    for tool in adapted(make_agent_gantry_tools()):
        assert_hidden(tool.description, tool.params_json_schema)


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["a", ""])
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_adapter(check, a):
    tools = make_agent_gantry_tools()
    agent = agent_of(adapted(tools))

    await adrive(check, tools, lambda s, u, calls: Runner.run(agent, json.dumps(calls), context=context_of(s, u)), a)


@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", SHORT_CHECKS)
def test_adapter_sync(check, a):
    tools = make_agent_gantry_tools()

    drive(check, tools, run_sync(agent_of(adapted(tools))), a)


# Where the identity comes from.


async def noted(tools, agent, context, item="x"):
    return (await Runner.run(agent, json.dumps([("anote", {"item": item})]), context=context)).final_output


@pytest.mark.anyio
async def test_session_around_the_run_is_enough(tools):
    agent = agent_of([function_tool(function) for function in tools.functions])

    async with tools.gantry.session("s1", user="ada"):
        await noted(tools, agent, None)

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
@pytest.mark.parametrize("context", [None, {"user_id": "ada"}])
async def test_unknown_identity_is_an_error_where_errors_of_tools_are(tools, context):
    """The SDK gives the model a text of its own instead, unless a tool says otherwise."""
    note = tools.by_name["anote"]
    silent, loud = function_tool(note), function_tool(note, failure_error_function=None)

    answer = await noted(tools, agent_of(with_identity(tools.gantry, [silent])), context)

    assert "An error occurred" in answer
    with pytest.raises(Exception, match="no session is known here"):
        await noted(tools, agent_of(with_identity(tools.gantry, [loud])), context)
    assert tools.ran == []


@pytest.mark.anyio
async def test_user_of_the_context_joins_the_session_around_the_run(tools):
    async with tools.gantry.session("s1"):
        await noted(tools, agent_of(native(tools)), {"user_id": "ada"})

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
async def test_context_may_be_an_object_with_names_of_its_own(tools):
    made = with_identity(
        tools.gantry, [function_tool(tools.by_name["anote"])], session="thread", user="login", keys={"tenant": "org"}
    )

    await noted(tools, agent_of(made), SimpleNamespace(thread="s1", login="ada", org="acme"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
async def test_function_of_the_app_says_who_calls(tools):
    def who(wrapper: RunContextWrapper[Any]) -> Identity | None:
        return Identity(wrapper.context.request["id"], wrapper.context.login)

    agent = agent_of(with_identity(tools.gantry, [function_tool(tools.by_name["anote"])], identity=who))

    await noted(tools, agent, SimpleNamespace(request={"id": "s1"}, login="ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
async def test_agent_as_a_tool_and_handed_over_have_the_context_of_the_whole(tools):
    inner = agent_of(native(tools))
    made = with_identity(tools.gantry, [inner.as_tool("inner", "Ask the inner agent.")])
    outer = agent_of(made)

    asked = json.dumps([("anote", {"item": "x"})])
    await Runner.run(outer, json.dumps([("inner", {"input": asked})]), context=context_of("s1", "ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


def test_tools_that_are_no_functions_and_the_given_ones_stay_as_they_are(tools):
    search, function = WebSearchTool(), function_tool(tools.by_name["note"])
    invoke = function.on_invoke_tool

    same, other = with_identity(tools.gantry, [search, function])

    assert same is search
    assert function.on_invoke_tool is invoke
    assert other is not function
    assert (other.name, other.description, other.params_json_schema) == (
        function.name,
        function.description,
        function.params_json_schema,
    )


@pytest.mark.anyio
async def test_nothing_of_the_identity_stays_behind(tools):
    await noted(tools, agent_of(native(tools)), context_of("s1", "ada"))

    assert tools.gantry.identity() is None


# What a call is.


@pytest.mark.anyio
async def test_tool_that_times_out_changes_nothing(tools):
    @tools.gantry.with_memory
    async def slow(memory: dict) -> str:
        """Take some time."""
        memory["slow"] = True
        await asyncio.Event().wait()
        return "done"

    agent = agent_of(with_identity(tools.gantry, [function_tool(slow, timeout=0.05)]))

    result = await Runner.run(agent, json.dumps([("slow", {})]), context=context_of("s1", "ada"))

    assert "timed out" in result.final_output
    assert remembered(tools, session="s1", user="ada") == {}


@pytest.mark.anyio
@pytest.mark.parametrize("open_to_more", [False, True])
async def test_memory_that_the_model_passes_is_refused_or_dropped(tools, open_to_more):
    if open_to_more:

        @tools.gantry.with_memory
        async def anote(item: str, memory: dict, **more: Any) -> str:
            """Note an item, and whatever else."""
            memory.setdefault("items", []).append(item)
            return f"noted, and {more}"

        function = function_tool(anote, strict_mode=False)
    else:
        function = function_tool(tools.by_name["anote"])
    agent = agent_of(with_identity(tools.gantry, [function]))
    forged = {"items": ["forged"]}

    for arguments in ({"item": "x", "memory": forged}, {"item": "y", "more": {"memory": forged}}):
        await Runner.run(agent, json.dumps([("anote", arguments)]), context=context_of("s1", "ada"))

    assert "forged" not in remembered(tools, session="s1", user="ada").get("items", [])


def test_example(example):
    assert example("openai_agents_agent.py") == (
        "ada in s1: in the basket: tea; you had tea 1 times\n"
        "ada in s1: in the basket: tea, milk; you had milk 1 times\n"
        "ada in s2: in the basket: tea; you had tea 2 times\n"
        "bob in s3: in the basket: tea; you had tea 1 times\n"
    )
