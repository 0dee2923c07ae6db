"""Whole runs of an agent of LlamaIndex, whose model is scripted.

Its tools can ask for a workflow's context and for nothing that is a session or a user, so that each run stands inside
`gantry.session(...)`.
"""

from __future__ import annotations

import pytest
from agent_gantry.llamaindex import LlamaIndexAdapter
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.tools import FunctionTool
from scenario import CHECKS, adrive, assert_hidden, remembered
from tools import make_tools
from ways import WAYS, give, run_page

from agent_gantry_state import current_identity


def scripted(calls):
    """A model that asks for *calls* in one turn, and then says that it is done."""

    def answer(messages, **kwargs):
        if any(message.role == MessageRole.TOOL for message in messages):
            return ChatMessage(role="assistant", blocks=[TextBlock(text="Done.")])
        asked = [
            ToolCallBlock(tool_call_id=f"call{number}", tool_name=name, tool_kwargs=given)
            for number, (name, given) in enumerate(calls)
        ]
        return ChatMessage(role="assistant", blocks=asked or [TextBlock(text="Done.")])

    return MockFunctionCallingLLM(response_generator=answer)


def agent_with(items, calls, streaming=False):
    return FunctionAgent(name="helper", description="helps", tools=items, llm=scripted(calls), streaming=streaming)


@pytest.fixture(params=WAYS)
def given(request):
    return give(request.param, LlamaIndexAdapter)


def run_with(given):
    async def run(session, user, calls):
        with given.tools.gantry.session(session, user=user):
            return await agent_with(given.items, calls).run(user_msg="Go on.")

    return run


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", CHECKS)
async def test_run(check, given, a):
    await adrive(check, given.tools, run_with(given), a, **given.times(check))


@pytest.mark.anyio
async def test_a_run_belongs_to_who_began_it_wherever_it_is_awaited(given):
    gantry = given.tools.gantry
    with gantry.session("s1", user="ada"):
        calls = [("note", {"item": "x"}), ("anote", {"item": "y"})]
        handler = agent_with(given.items, calls, streaming=True).run(user_msg="Go on.")
    with gantry.session("s2", user="bob") as outer:
        async for _ in handler.stream_events():
            assert current_identity() is outer
        await handler

    assert sorted(remembered(given.tools, session="s1", user="ada")["items"]) == ["x", "y"]
    assert remembered(given.tools, session="s2", user="bob") == {}


@pytest.mark.anyio
async def test_a_workflow_of_agents_keeps_who_calls(given):
    workflow = AgentWorkflow(agents=[agent_with(given.items, [("note", {"item": "x"})])], root_agent="helper")

    with given.tools.gantry.session("s1", user="ada"):
        await workflow.run(user_msg="Go on.")

    assert remembered(given.tools, session="s1", user="ada") == {"items": ["x"]}


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["note", "anote"])
async def test_tools_outside_of_an_agent(given, name):
    made = given.tools
    tool = FunctionTool.from_defaults(made.by_name[name]) if given.native else given.items[list(made.by_name).index(name)]

    with made.gantry.session("s1", user="ada"):
        await tool.acall(item="x")
        assert tool.call(item="y").content == "x, y"

    assert remembered(made, session="s1", user="ada") == {"items": ["x", "y"]}


def test_model_is_shown_nothing_of_what_is_injected(given):
    shown = agent_with(given.items, []).tools

    assert sorted(tool.metadata.name for tool in shown) == sorted(given.tools.by_name)
    assert_hidden(*(tool.metadata.to_openai_tool() for tool in shown))


@pytest.mark.anyio
async def test_without_a_session_nothing_is_stored():
    made = make_tools()

    await agent_with(made.functions, [("note", {"item": "x"})]).run(user_msg="Go on.")

    assert made.ran == []


def test_example(example):
    assert example("llama_index_agent.py") == "1. milk\n2. milk, bread\n3. tea\n"


def test_page_runs():
    assert run_page("llama_index.md")["agent"].name == "helper"
