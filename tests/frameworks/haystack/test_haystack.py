"""Whole runs of an agent of Haystack, whose model is scripted.

It knows of no session and no user, so that each run stands inside `gantry.session(...)`.
"""

from __future__ import annotations

import pytest
from agent_gantry.haystack import HaystackAdapter
from haystack import Pipeline, component
from haystack.components.agents import Agent
from haystack.dataclasses import ChatMessage, ToolCall
from haystack.tools import create_tool_from_function
from scenario import CHECKS, adrive, assert_hidden, drive, remembered
from tools import make_tools
from ways import WAYS, give, run_page

from agent_gantry_state import current_identity

GO_ON = [ChatMessage.from_user("Go on.")]


@component
class Scripted:
    """Asks for the calls of its script in one turn, and then says that it is done."""

    def __init__(self, script):
        self.script, self.shown = script, []

    @component.output_types(replies=list[ChatMessage])
    def run(self, messages: list[ChatMessage], tools: list | None = None, **kwargs):
        self.shown.extend(tools or ())
        calls, self.script = self.script, []
        asked = [ToolCall(tool_name=name, arguments=given, id=f"call{n}") for n, (name, given) in enumerate(calls)]
        return {"replies": [ChatMessage.from_assistant(None if asked else "Done.", tool_calls=asked)]}


def agent_with(items, calls):
    return Agent(chat_generator=Scripted(calls), tools=items)


@pytest.fixture(params=WAYS)
def given(request):
    return give(request.param, HaystackAdapter, natively=create_tool_from_function)


def run_with(given):
    def run(session, user, calls):
        with given.tools.gantry.session(session, user=user):
            return agent_with(given.items, calls).run(messages=GO_ON)

    return run


def arun_with(given):
    async def run(session, user, calls):
        async with given.tools.gantry.session(session, user=user):
            return await agent_with(given.items, calls).run_async(messages=GO_ON)

    return run


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", CHECKS)
async def test_async_run(check, given, a):
    await adrive(check, given.tools, arun_with(given), a, **given.times(check))


@pytest.mark.parametrize("check", CHECKS)
def test_sync_run(check, given):
    drive(check, given.tools, run_with(given), **given.times(check))


def test_agent_in_a_pipeline(given):
    pipeline = Pipeline()
    pipeline.add_component("helper", agent_with(given.items, [("note", {"item": "x"})]))

    with given.tools.gantry.session("s1", user="ada") as outer:
        pipeline.run({"helper": {"messages": GO_ON}})
        assert current_identity() is outer

    assert remembered(given.tools, session="s1", user="ada") == {"items": ["x"]}


def test_agent_as_a_tool_belongs_to_the_same_caller():
    made = make_tools()
    inner = agent_with([create_tool_from_function(made.by_name["note"])], [("note", {"item": "x"})])

    def helper(request: str) -> str:
        """Help."""
        return inner.run(messages=[ChatMessage.from_user(request)])["last_message"].text

    with made.gantry.session("s1", user="ada"):
        agent_with([create_tool_from_function(helper)], [("helper", {"request": "Go on."})]).run(messages=GO_ON)

    assert remembered(made, session="s1", user="ada") == {"items": ["x"]}


def test_model_is_shown_nothing_of_what_is_injected(given):
    agent = agent_with(given.items, [])

    agent.run(messages=GO_ON)

    shown = agent.chat_generator.shown
    assert sorted(tool.name for tool in shown) == sorted(given.tools.by_name)
    assert_hidden(*(tool.tool_spec for tool in shown))


def test_without_a_session_nothing_is_stored():
    made = make_tools()

    agent_with([create_tool_from_function(made.by_name["note"])], [("note", {"item": "x"})]).run(messages=GO_ON)

    assert made.ran == []


def test_example(example):
    assert example("haystack_agent.py") == "1. milk\n2. milk, bread\n3. tea\n"


def test_page_runs():
    assert run_page("haystack.md")["tools"][0].name == "note"
