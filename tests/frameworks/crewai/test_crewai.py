"""Whole runs of a crew of CrewAI, whose model is scripted.

CrewAI tells a tool of no session and no user, so that each run stands inside `gantry.session(...)`.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from agent_gantry.crewai import CrewAIAdapter
from crewai import Agent, BaseLLM, Crew, Task
from crewai.flow.flow import Flow, listen, start
from crewai.tools import tool
from pydantic import PrivateAttr
from scenario import CHECKS, adrive, assert_hidden, drive, remembered
from tools import make_tools
from ways import WAYS, give, run_page


class Scripted(BaseLLM):
    """Asks for the calls of its script, a turn for each list of them, and then says that it is done."""

    _turns: list[list[tuple[str, dict[str, Any]]]] = PrivateAttr(default_factory=list)
    _shown: list[Any] = PrivateAttr(default_factory=list)

    def __init__(self, *turns):
        super().__init__(model="scripted")
        self._turns, self._shown = list(turns), []

    def call(self, messages, tools=None, *args, **kwargs):
        self._shown.append(tools)
        calls = self._turns.pop(0) if self._turns else []
        if not calls:
            return "Thought: I am done.\nFinal Answer: Done."
        return [
            {"id": f"call{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
            for number, (name, given) in enumerate(calls)
        ]

    async def acall(self, *args, **kwargs):
        return self.call(*args, **kwargs)

    def supports_function_calling(self):
        return True

    def supports_stop_words(self):
        return False

    def get_context_window_size(self):
        return 8000


def crew_with(items, *turns, cache=False):
    agent = Agent(role="helper", goal="help", backstory="none", llm=Scripted(*turns), tools=items, cache=cache)
    return Crew(agents=[agent], tasks=[Task(description="Go on.", expected_output="none", agent=agent)])


@pytest.fixture(params=WAYS)
def given(request):
    return give(request.param, CrewAIAdapter, natively=tool)


def run_with(given):
    def run(session, user, calls):
        with given.tools.gantry.session(session, user=user):
            return crew_with(given.items, calls).kickoff()

    return run


def arun_with(given, method):
    async def run(session, user, calls):
        async with given.tools.gantry.session(session, user=user):
            return await getattr(crew_with(given.items, calls), method)()

    return run


@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", CHECKS)
def test_sync_run(check, given, a):
    drive(check, given.tools, run_with(given), a, **given.times(check, 40 if a else 200))


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("method", ["kickoff_async", "akickoff"])
@pytest.mark.parametrize("check", CHECKS)
async def test_async_run(check, method, given, a):
    await adrive(check, given.tools, arun_with(given, method), a, **given.times(check, 20))


@pytest.mark.parametrize("cache", [True, False])
def test_cache_of_an_agent_answers_without_running_the_tool_and_does_not_ask_who_calls(cache):
    """A trap that the page warns of: if CrewAI changes that, its warning can go."""
    made = make_tools()
    crew = crew_with([tool(made.by_name["note"])], *[[("note", {"item": "x"})]] * 2, cache=cache)

    with made.gantry.session("s1", user="ada"):
        crew.kickoff()
    crew.agents[0].llm._turns = [[("note", {"item": "x"})]]
    with made.gantry.session("s2", user="bob"):
        crew.kickoff()

    assert remembered(made, session="s1", user="ada") == {"items": ["x"] if cache else ["x", "x"]}
    assert remembered(made, session="s2", user="bob") == ({} if cache else {"items": ["x"]})


def test_a_flow_gives_its_own_id_to_its_crews():
    made = make_tools()

    class Shopping(Flow):
        @start()
        def first(self):
            with made.gantry.session(self.state["id"], user=self.state["user"]):
                crew_with([tool(made.by_name["note"])], [("note", {"item": "x"})]).kickoff()

        @listen(first)
        async def second(self):
            async with made.gantry.session(self.state["id"], user=self.state["user"]):
                await crew_with([tool(made.by_name["anote"])], [("anote", {"item": "y"})]).akickoff()

    Shopping().kickoff(inputs={"id": "s1", "user": "ada"})

    assert remembered(made, session="s1", user="ada") == {"items": ["x", "y"]}


def test_a_session_around_a_flow_reaches_its_crews():
    made = make_tools()

    class Shopping(Flow):
        @start()
        def first(self):
            crew_with([tool(made.by_name["note"])], [("note", {"item": "x"})]).kickoff()

    with made.gantry.session("s1", user="ada"):
        Shopping().kickoff()

    assert remembered(made, session="s1", user="ada") == {"items": ["x"]}


def test_model_is_shown_nothing_of_what_is_injected(given):
    crew = crew_with(given.items)

    crew.kickoff()

    shown = crew.agents[0].llm._shown
    assert sorted(each["function"]["name"] for each in shown[0]) == sorted(given.tools.by_name)
    assert_hidden(*shown)
    assert_hidden(*(item.description for item in given.items))


def test_without_a_session_nothing_is_stored():
    made = make_tools()

    crew_with([tool(made.by_name["note"])], [("note", {"item": "x"})]).kickoff()

    assert made.ran == []


def test_example(example):
    assert example("crewai_agent.py") == "1. milk\n2. milk, bread\n3. tea\n"


def test_page_runs():
    assert run_page("crewai.md")["agent"].cache is False
