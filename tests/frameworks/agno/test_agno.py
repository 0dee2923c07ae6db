"""Whole runs of an agent of Agno, whose model is scripted."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from agent_gantry.agno import AgnoAdapter
from agno.agent import Agent
from agno.models.base import Model
from agno.models.response import ModelResponse
from agno.team import Team
from scenario import CHECKS, adrive, assert_hidden, drive, remembered
from tools import make_tools
from ways import WAYS, give, run_page

from agent_gantry_state import current_identity
from agent_gantry_state.integrations.agno import identity_hook


@dataclass
class Scripted(Model):
    """Asks for the calls of its script in one turn, and then says that it is done."""

    id: str = "scripted"
    script: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)

    def invoke(self, *args, tools=None, **kwargs):
        self.shown.append(tools)
        calls, self.script = self.script, []
        asked = [
            {"id": f"call {number}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
            for number, (name, given) in enumerate(calls)
        ]
        return ModelResponse(role="assistant", content=None if asked else "Done.", tool_calls=asked)

    async def ainvoke(self, *args, **kwargs):
        return self.invoke(*args, **kwargs)

    def invoke_stream(self, *args, **kwargs):
        yield self.invoke(*args, **kwargs)

    async def ainvoke_stream(self, *args, **kwargs):
        yield self.invoke(*args, **kwargs)

    def _parse_provider_response(self, response, **kwargs):
        return response

    def _parse_provider_response_delta(self, response):
        return response


def agent_with(items, calls, gantry):
    """An agent; without a gantry it has no hook."""
    hooks = None if gantry is None else [identity_hook(gantry)]
    return Agent(model=Scripted(script=calls), tools=items, tool_hooks=hooks, telemetry=False)


@pytest.fixture(params=WAYS)
def given(request):
    return give(request.param, AgnoAdapter)


def run_with(items, gantry):
    """A sync run, which takes no async functions; what agent-gantry's adapter gives to it is sync."""
    items = [item for item in items if not inspect.iscoroutinefunction(item)]

    def run(session, user, calls):
        return agent_with(items, calls, gantry).run("Go on.", session_id=session, user_id=user)

    return run


def arun_with(items, gantry):
    async def run(session, user, calls):
        return await agent_with(items, calls, gantry).arun("Go on.", session_id=session, user_id=user)

    return run


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", CHECKS)
async def test_async_run(check, given, a):
    await adrive(check, given.tools, arun_with(given.items, given.tools.gantry), a, **given.times(check))


@pytest.mark.parametrize("check", CHECKS)
def test_sync_run(check, given):
    drive(check, given.tools, run_with(given.items, given.tools.gantry), **given.times(check))


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_that_is_kept_serves_every_user_for_himself(given, stream):
    agent = agent_with(given.items, [], given.tools.gantry)
    agent.tools = [item for item in agent.tools if not inspect.iscoroutinefunction(item)]
    for number, user in enumerate(["ada", "bob"] * 2):
        agent.model.script = [("both", {"item": f"{user} {number}"})]
        answer = agent.run("Go on.", session_id=f"of {user}", user_id=user, stream=stream)
        list(answer) if stream else None

    assert remembered(given.tools, session="of ada", user="ada") == {"items": ["ada 0", "ada 2"]}
    assert remembered(given.tools, session="of bob", user="bob") == {"items": ["bob 1", "bob 3"]}


@pytest.mark.anyio
async def test_streamed_async_run(given):
    agent = agent_with(given.items, [("anote", {"item": "x"}), ("note", {"item": "y"})], given.tools.gantry)

    async for _ in agent.arun("Go on.", session_id="s1", user_id="ada", stream=True):
        assert current_identity() is None

    assert sorted(remembered(given.tools, session="s1", user="ada")["items"]) == ["x", "y"]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_tool_that_is_a_generator_remembers(kind):
    made = make_tools()

    if kind == "sync":

        @made.gantry.with_memory
        def spell(word: str, memory: dict):
            """Spell a word."""
            for letter in word:
                memory.setdefault("letters", []).append(letter)
                yield letter
    else:

        @made.gantry.with_memory
        async def spell(word: str, memory: dict):
            """Spell a word."""
            for letter in word:
                memory.setdefault("letters", []).append(letter)
                yield letter

    await arun_with([spell], made.gantry)("s1", "ada", [("spell", {"word": "abc"})])

    assert remembered(made, session="s1", user="ada") == {"letters": ["a", "b", "c"]}


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_generator_that_calls_a_tool_calls_it_for_the_run(kind, stream):
    made = make_tools()

    def twice(item: str):
        """Note an item twice."""
        for _ in range(2):
            yield made.by_name["note"](item)

    async def atwice(item: str):
        """Note an item twice."""
        for _ in range(2):
            yield await made.by_name["anote"](item)

    fn = twice if kind == "sync" else atwice
    agent = agent_with([fn], [(fn.__name__, {"item": "x"})], made.gantry)
    with made.gantry.session("s2", user="eve"):
        answer = agent.arun("Go on.", session_id="s1", user_id="ada", stream=stream)
        if stream:
            async for _ in answer:
                pass
        else:
            await answer
        if kind == "sync":
            agent.model.script = [("twice", {"item": "y"})]
            answer = agent.run("Go on.", session_id="s1", user_id="ada", stream=stream)
            list(answer) if stream else None

    assert remembered(made, session="s1", user="ada") == {"items": ["x"] * 2 + ["y"] * 2 * (kind == "sync")}
    assert remembered(made, session="s2", user="eve") == {}


def test_members_of_a_team_share_its_session():
    made = make_tools()
    member = agent_with([made.by_name["note"]], [("note", {"item": "of the member"})], made.gantry)
    member.name, member.id = "Member", "member"
    calls = [("note", {"item": "of the team"}), ("delegate_task_to_member", {"member_id": "member", "task": "Go on."})]
    model = Scripted(script=calls)
    team = Team(
        members=[member], model=model, tools=[made.by_name["note"]], tool_hooks=[identity_hook(made.gantry)], telemetry=False
    )

    team.run("Go on.", session_id="s1", user_id="ada")

    assert made.ran == ["note", "note"]
    assert remembered(made, session="s1", user="ada") == {"items": ["of the team", "of the member"]}


def test_a_hook_further_in_can_change_nothing_of_who_calls():
    made = make_tools()
    seen = []

    def another(run_context, func, arguments):
        seen.append(current_identity())
        return func(**arguments)

    agent = agent_with([made.by_name["note"]], [("note", {"item": "x"})], made.gantry)
    agent.tool_hooks.append(another)
    agent.run("Go on.", session_id="s1", user_id="ada")

    assert [(each.session, each.user) for each in seen] == [("s1", "ada")]


@pytest.mark.anyio
async def test_model_is_shown_nothing_of_what_is_injected(given):
    agent = agent_with(given.items, [], given.tools.gantry)

    await agent.arun("Go on.", session_id="s1")

    assert sorted(tool["function"]["name"] for tool in agent.model.shown[0]) == sorted(given.tools.by_name)
    assert_hidden(*agent.model.shown)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["note", "anote", "fail", "afail"])
async def test_caller_of_a_run_keeps_its_own_identity(name):
    made = make_tools()

    with made.gantry.session("outer", user="eve") as outer:
        await arun_with(made.functions, made.gantry)("s1", "ada", [(name, {"item": "x"})])
        after = current_identity()

    assert made.ran == [name]
    assert after is outer


@pytest.mark.anyio
async def test_without_the_hook_a_session_around_the_run_reaches_the_tools(given):
    with given.tools.gantry.session("mine", user="ada"):
        await arun_with(given.items, None)("s1", "ada", [("note", {"item": "x"}), ("anote", {"item": "y"})])
        run_with(given.items, None)("s1", "ada", [("note", {"item": "z"})])

    assert sorted(remembered(given.tools, session="mine", user="ada")["items"]) == ["x", "y", "z"]


def test_without_hook_and_session_nothing_is_stored():
    made = make_tools()

    run_with(made.functions, None)("s1", "ada", [("note", {"item": "x"})])

    assert made.ran == []
    assert remembered(made, session="s1", user="ada") == {}


def test_example(example):
    assert example("agno_agent.py") == "1. milk\n2. milk, bread\n3. tea\n"


def test_page_runs():
    assert len(run_page("agno.md")["agent"].tool_hooks) == 1
