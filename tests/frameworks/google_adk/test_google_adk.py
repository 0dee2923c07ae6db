"""Whole runs of an agent of Google's Agent Development Kit, whose model is scripted."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import Any

import pytest
from agent_gantry.google_adk import GoogleADKAdapter
from agent_gantry.integrations.frameworks.base import ToolExecutionError
from google.adk.agents import Agent
from google.adk.apps import App
from google.adk.models import BaseLlm, LlmResponse
from google.adk.runners import InMemoryRunner
from google.adk.tools.agent_tool import AgentTool
from google.genai import types
from scenario import CHECKS, adrive, assert_hidden, drive, remembered
from tools import NoLuckError, make_tools
from ways import WAYS, give, run_page

from agent_gantry_state import MissingIdentityError, current_identity
from agent_gantry_state.integrations.google_adk import IdentityPlugin

MESSAGE = types.Content(role="user", parts=[types.Part(text="Go on.")])


class Scripted(BaseLlm):
    """Asks for the calls of its script in one turn, and then says that it is done."""

    script: list[tuple[str, dict[str, Any]]]
    shown: list[str] = []

    async def generate_content_async(self, llm_request, stream=False):
        self.shown.append(llm_request.config.model_dump_json(include={"tools"}, exclude_none=True))
        calls, self.script = self.script, []
        parts = [types.Part(function_call=types.FunctionCall(name=name, args=given)) for name, given in calls]
        yield LlmResponse(content=types.Content(role="model", parts=parts or [types.Part(text="Done.")]))


@pytest.fixture(params=WAYS)
def given(request):
    return give(request.param, GoogleADKAdapter)


async def begin(items, session, user, calls, gantry):
    """A runner with a session; without a gantry it has no plugin."""
    agent = Agent(name="helper", model=Scripted(model="scripted", script=calls), tools=items)
    plugins = [] if gantry is None else [IdentityPlugin(gantry)]
    runner = InMemoryRunner(app=App(name="shop", root_agent=agent, plugins=plugins))
    await runner.session_service.create_session(app_name="shop", user_id=user, session_id=session)
    return runner


def run_async_with(items, gantry):
    async def run(session, user, calls):
        runner = await begin(items, session, user, calls, gantry)
        events = runner.run_async(user_id=user, session_id=session, new_message=MESSAGE)
        with contextlib.suppress(ToolExecutionError):
            return [event async for event in events]

    return run


def run_sync_with(items, gantry):
    def run(session, user, calls):
        runner = asyncio.run(begin(items, session, user, calls, gantry))
        with contextlib.suppress(ToolExecutionError):
            return list(runner.run(user_id=user, session_id=session, new_message=MESSAGE))

    return run


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", CHECKS)
async def test_run_async(check, given, a):
    await adrive(check, given.tools, run_async_with(given.items, given.tools.gantry), a, **given.times(check))


# Some kits print the error of their thread, 2.7.1 for one, instead of raising it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", CHECKS)
def test_run_in_a_thread_of_the_kit(check, given, a):
    drive(check, given.tools, run_sync_with(given.items, given.tools.gantry), a, **given.times(check, 40))


@pytest.mark.anyio
async def test_model_is_shown_nothing_of_what_is_injected(given):
    runner = await begin(given.items, "s1", "ada", [], given.tools.gantry)

    async for _ in runner.run_async(user_id="ada", session_id="s1", new_message=MESSAGE):
        pass

    shown = runner.app.root_agent.model.shown
    assert all(f'"{name}"' in shown[0] for name in given.tools.by_name)
    assert_hidden(*shown)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["note", "anote", "fail", "afail"])
async def test_caller_of_a_run_keeps_its_own_identity(name):
    made = make_tools()
    seen = []
    with made.gantry.session("outer", user="eve") as outer:
        runner = await begin(made.functions, "s1", "ada", [(name, {"item": "x"})], made.gantry)
        with contextlib.suppress(NoLuckError):
            async for _ in runner.run_async(user_id="ada", session_id="s1", new_message=MESSAGE):
                seen.append(current_identity())
        seen.append(current_identity())

    assert made.ran == [name]
    assert all(each is outer for each in seen)


@pytest.mark.anyio
async def test_app_is_known():
    made = make_tools()

    @made.gantry.with_memory(scope="app_name")
    def visit(memory: dict) -> int:
        """Count the visits of all users of this app."""
        memory["n"] = memory.get("n", 0) + 1
        return memory["n"]

    await run_async_with([visit], made.gantry)("s1", "ada", [("visit", {})])
    await run_async_with([visit], made.gantry)("s2", "bob", [("visit", {})])

    assert remembered(made, "app_name", app_name="shop") == {"n": 2}


@pytest.mark.anyio
async def test_agent_as_a_tool_has_a_session_of_its_own_and_the_same_user():
    made = make_tools()
    calls = [("note", {"item": "x"}), ("prefer", {"key": "size", "value": "42"})]
    inner = Agent(name="inner", model=Scripted(model="scripted", script=calls), tools=made.functions)

    await run_async_with([AgentTool(inner)], made.gantry)("s1", "ada", [("inner", {"request": "do it"})])

    assert made.ran == ["note", "prefer"]
    assert remembered(made, session="s1", user="ada") == {}
    assert remembered(made, "user", user="ada") == {"size": "42"}


@pytest.mark.anyio
async def test_without_the_plugin_a_session_around_the_run_reaches_the_tools(given):
    run = run_async_with(given.items, None)

    with given.tools.gantry.session("mine", user="ada"):
        await run("s1", "ada", [("note", {"item": "x"}), ("anote", {"item": "y"})])

    assert sorted(remembered(given.tools, session="mine", user="ada")["items"]) == ["x", "y"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_without_the_plugin_the_thread_of_an_older_kit_knows_nobody():
    made = make_tools()
    keeps_context = "copy_context" in inspect.getsource(InMemoryRunner.run)

    with made.gantry.session("mine", user="ada"), contextlib.suppress(MissingIdentityError):
        run_sync_with(made.functions, None)("s1", "ada", [("note", {"item": "x"})])

    assert made.ran == (["note"] if keeps_context else [])
    assert remembered(made, session="s1", user="ada") == {}


def test_example(example):
    assert example("google_adk_agent.py") == "1. milk\n2. milk, bread\n3. tea\n"


def test_page_runs():
    assert run_page("google_adk.md")["app"].plugins[0].name == "agent_gantry_state"
