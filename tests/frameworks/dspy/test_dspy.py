"""Whole runs of an agent of DSPy, whose model is scripted."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import dspy
import pytest
from agent_gantry.dspy import DSPyAdapter
from scenario import CHECKS, adrive, assert_hidden, drive, remembered
from tools import make_tools
from ways import WAYS, give, run_page

from agent_gantry_state import StateError
from agent_gantry_state.integrations.dspy import DSPyResolver


class Scripted(dspy.LM):
    """Asks for the calls of its script, one in each turn, and then says that it is done."""

    def __init__(self, script: list[tuple[str, dict[str, Any]]]):
        super().__init__("scripted/model", cache=False)
        self.script, self.shown = list(script), []

    def __call__(self, prompt=None, messages=None, **kwargs):
        self.shown.append(json.dumps(messages))
        name, given = self.script.pop(0) if self.script else ("finish", {})
        fields = {"next_thought": "Go on.", "next_tool_name": name, "next_tool_args": json.dumps(given)}
        fields |= {"reasoning": "Done.", "answer": "Done."}
        # The last step asks for an answer, the others for a call.
        parts = [
            f"[[ ## {each} ## ]]\n{said}" for each, said in fields.items() if f"[[ ## {each} ## ]]" in messages[0]["content"]
        ]
        return ["\n\n".join([*parts, "[[ ## completed ## ]]"])]

    async def acall(self, prompt=None, messages=None, **kwargs):
        return self(prompt, messages, **kwargs)


@pytest.fixture(params=WAYS)
def given(request):
    return give(request.param, DSPyAdapter, resolvers=[DSPyResolver()])


def context(calls, **settings):
    return dspy.context(lm=Scripted(calls), adapter=dspy.ChatAdapter(), allow_tool_async_sync_conversion=True, **settings)


def run_with(items):
    def run(session, user, calls):
        with context(calls, session_id=session, user_id=user):
            return dspy.ReAct("question -> answer", tools=items)(question="Go on.")

    return run


def arun_with(items):
    async def run(session, user, calls):
        with context(calls, session_id=session, user_id=user):
            return await dspy.ReAct("question -> answer", tools=items).acall(question="Go on.")

    return run


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", CHECKS)
async def test_async_run(check, given, a):
    await adrive(check, given.tools, arun_with(given.items), a, **given.times(check))


@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", CHECKS)
def test_sync_run(check, given, a):
    drive(check, given.tools, run_with(given.items), a, **given.times(check, 40))


def test_threads_of_dspy_parallel_know_who_calls(given):
    count = given.items[list(given.tools.by_name).index("count")]
    tool = count if isinstance(count, dspy.Tool) else dspy.Tool(count)

    class Counting(dspy.Module):
        def forward(self, by):
            return tool(by=by) if given.native else dspy.Prediction(n=1, answer=tool(by=by))

    with context([], session_id="s1", user_id="ada"):
        dspy.Parallel(num_threads=3, disable_progress_bar=True)([(Counting(), {"by": 1})] * 3)

    assert remembered(given.tools, session="s1", user="ada") == {"n": 3}


def test_a_session_around_dspy_parallel_does_not_reach_its_threads():
    """A trap that the page warns of: if DSPy changes that, its warning can go."""
    made = make_tools()

    def count(by):
        with contextlib.suppress(StateError):
            return made.by_name["count"](by)

    with made.gantry.session("s1", user="ada"):
        dspy.Parallel(num_threads=3, disable_progress_bar=True)([(count, {"by": 1})] * 3)

    assert made.ran == []


@pytest.mark.anyio
async def test_a_session_around_the_run_reaches_the_tools():
    made = make_tools()

    with made.gantry.session("s1", user="ada"), context([("note", {"item": "x"})]):
        dspy.ReAct("question -> answer", tools=made.functions)(question="Go on.")
    with made.gantry.session("s1", user="ada"), context([("note", {"item": "y"}), ("anote", {"item": "z"})]):
        await dspy.ReAct("question -> answer", tools=made.functions).acall(question="Go on.")

    assert remembered(made, session="s1", user="ada") == {"items": ["x", "y", "z"]}


def test_settings_can_have_other_names():
    made = make_tools(resolvers=[DSPyResolver(session_key="thread", user_key="customer")])

    with context([("both", {"item": "x"})], thread="s1", customer="ada", session_id="another"):
        dspy.ReAct("question -> answer", tools=[made.by_name["both"]])(question="Go on.")

    assert remembered(made, session="s1", user="ada") == {"items": ["x"]}
    assert remembered(made, "user", user="ada") == {"n": 1}


def test_model_is_shown_nothing_of_what_is_injected(given):
    model = Scripted([])
    with dspy.context(lm=model, adapter=dspy.ChatAdapter()):
        agent = dspy.ReAct("question -> answer", tools=given.items)
        agent(question="Go on.")

    assert all(name in model.shown[0] for name in given.tools.by_name)
    assert_hidden(*model.shown)
    assert_hidden(*(tool.format_as_litellm_function_call() for tool in agent.tools.values()))


def test_without_a_session_nothing_is_stored():
    made = make_tools()

    with context([("note", {"item": "x"})]):
        dspy.ReAct("question -> answer", tools=made.functions)(question="Go on.")

    assert made.ran == []


def test_example(example):
    assert example("dspy_agent.py") == "1. milk\n2. milk, bread\n3. tea\n"


def test_page_runs():
    assert "note" in run_page("dspy.md")["agent"].tools
