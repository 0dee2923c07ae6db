"""Whole runs of an agent of Strands, whose model is scripted."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from agent_gantry.strands import StrandsAdapter
from scenario import CHECKS, adrive, assert_hidden, drive, remembered
from strands import Agent, tool
from strands.models.model import Model
from strands.tools.executors import ConcurrentToolExecutor, SequentialToolExecutor
from tools import make_tools
from ways import WAYS, give, run_page

from agent_gantry_state import DeclarationError, current_identity
from agent_gantry_state.integrations.strands import IdentityPlugin


class Scripted(Model):
    """Asks for the calls of its script in one turn, and then says that it is done."""

    def __init__(self, script: list[tuple[str, dict[str, Any]]]):
        self.script, self.shown = script, []

    def update_config(self, **kwargs): ...

    def get_config(self):
        return {}

    async def structured_output(self, *args, **kwargs):
        yield {}

    async def stream(self, messages, tool_specs=None, system_prompt=None, **kwargs):
        self.shown.append(tool_specs)
        calls, self.script = self.script, []
        yield {"messageStart": {"role": "assistant"}}
        for number, (name, given) in enumerate(calls):
            yield {"contentBlockStart": {"start": {"toolUse": {"name": name, "toolUseId": f"call{number}"}}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": json.dumps(given)}}}}
            yield {"contentBlockStop": {}}
        if not calls:
            yield {"contentBlockStart": {"start": {}}}
            yield {"contentBlockDelta": {"delta": {"text": "Done."}}}
            yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "tool_use" if calls else "end_turn"}}


def agent_with(items, calls, gantry, **options):
    """An agent; without a gantry it has no plugin."""
    plugins = [] if gantry is None else [IdentityPlugin(gantry)]
    return Agent(model=Scripted(calls), tools=items, plugins=plugins, callback_handler=None, **options)


def state(session, user):
    return {"session_id": session, "user_id": user}


@pytest.fixture(params=WAYS)
def given(request):
    return give(request.param, StrandsAdapter, natively=tool)


def run_with(items, gantry, **options):
    def run(session, user, calls):
        return agent_with(items, calls, gantry, **options)("Go on.", invocation_state=state(session, user))

    return run


def arun_with(items, gantry, **options):
    async def run(session, user, calls):
        agent = agent_with(items, calls, gantry, **options)
        return await agent.invoke_async("Go on.", invocation_state=state(session, user))

    return run


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("executor", [ConcurrentToolExecutor, SequentialToolExecutor])
@pytest.mark.parametrize("check", CHECKS)
async def test_async_run(check, executor, given, a):
    run = arun_with(given.items, given.tools.gantry, tool_executor=executor())

    await adrive(check, given.tools, run, a, **given.times(check, 200 if executor is ConcurrentToolExecutor else 40))


@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", CHECKS)
def test_sync_run(check, given, a):
    drive(check, given.tools, run_with(given.items, given.tools.gantry), a, **given.times(check, 40))


@pytest.mark.anyio
@pytest.mark.parametrize("executor", [ConcurrentToolExecutor, SequentialToolExecutor])
async def test_whoever_iterates_over_a_run_keeps_his_own_identity(executor):
    made = make_tools()
    inside, outside = [], []

    @tool
    async def spell(word: str):
        """Spell a word."""
        for letter in word:
            inside.append(current_identity())
            yield letter

    calls = [("spell", {"word": "ab"}), ("note", {"item": "x"}), ("afail", {"item": "y"})]
    agent = agent_with([spell, *map(tool, made.functions)], calls, made.gantry, tool_executor=executor())
    with made.gantry.session("outer", user="eve") as outer:
        async for _ in agent.stream_async("Go on.", invocation_state=state("s1", "ada")):
            outside.append(current_identity())

    assert made.ran == ["note", "afail"]
    assert [(each.session, each.user) for each in inside] == [("s1", "ada")] * 2
    assert len(outside) > 10
    assert all(each is outer for each in outside)


@pytest.mark.anyio
async def test_an_interrupt_leaves_nobody_behind():
    made = make_tools()
    seen = []

    @tool(context=True)
    @made.gantry.with_memory
    async def ask(tool_context, memory: dict) -> str:
        """Ask somebody."""
        memory["asked"] = memory.get("asked", 0) + 1
        return tool_context.interrupt("question", reason="May I?")

    agent = agent_with([ask], [("ask", {})], made.gantry, tool_executor=SequentialToolExecutor())
    with made.gantry.session("outer", user="eve") as outer:
        stopped = await agent.invoke_async("Go on.", invocation_state=state("s1", "ada"))
        seen.append(current_identity())
        answer = [{"interruptResponse": {"interruptId": stopped.interrupts[0].id, "response": "yes"}}]
        done = await agent.invoke_async(answer, invocation_state=state("s1", "ada"))
        seen.append(current_identity())

    assert (stopped.stop_reason, done.stop_reason) == ("interrupt", "end_turn")
    assert all(each is outer for each in seen)
    # The first time its body was left by an exception, and so has changed nothing.
    assert remembered(made, session="s1", user="ada") == {"asked": 1}


@pytest.mark.anyio
@pytest.mark.parametrize("known", ["here", "of the gantry"])
async def test_user_without_a_session_takes_the_place_of_the_user_who_is_known(known):
    made = make_tools(**({} if known == "here" else {"session": "s1", "user": "eve"}))
    agent = agent_with([tool(made.by_name["both"])], [("both", {"item": "x"})], made.gantry)

    with made.gantry.session("s1", user="eve") if known == "here" else contextlib.nullcontext():
        await agent.invoke_async("Go on.", invocation_state={"user_id": "ada"})

    assert remembered(made, "user", user="ada") == {"n": 1}
    assert remembered(made, session="s1", user="ada") == {"items": ["x"]}
    assert remembered(made, "user", user="eve") == {}


@pytest.mark.anyio
async def test_keys_of_the_state_can_be_named():
    made = make_tools()
    plugin = IdentityPlugin(made.gantry, session_key="thread", user_key="customer")
    agent = Agent(model=Scripted([("aboth", {"item": "x"})]), tools=[tool(made.by_name["aboth"])], plugins=[plugin])

    await agent.invoke_async("Go on.", invocation_state={"thread": "s1", "customer": "ada", "session_id": "another"})

    assert remembered(made, session="s1", user="ada") == {"items": ["x"]}
    assert remembered(made, "user", user="ada") == {"n": 1}


@pytest.mark.parametrize("session", [None, "mine"])
def test_arguments_of_a_direct_call_are_no_identity(session):
    made = make_tools()

    @tool
    @made.gantry.with_memory
    def visit(session_id: str, memory: dict) -> str:
        """Visit a session."""
        memory["visited"] = session_id
        return "visited"

    agent = agent_with([visit], [], made.gantry)
    if session is None:
        assert agent.tool.visit(session_id="of another")["status"] == "error"
    else:
        with made.gantry.session(session):
            assert agent.tool.visit(session_id="of another")["status"] == "success"
        assert remembered(made, session=session) == {"visited": "of another"}

    assert remembered(made, session="of another") == {}


@pytest.mark.anyio
async def test_model_is_shown_nothing_of_what_is_injected(given):
    agent = agent_with(given.items, [], given.tools.gantry)

    await agent.invoke_async("Go on.")

    assert sorted(each["name"] for each in agent.model.shown[0]) == sorted(given.tools.by_name)
    assert_hidden(*agent.model.shown)


@pytest.mark.anyio
async def test_without_the_plugin_a_session_around_the_run_reaches_the_tools(given):
    with given.tools.gantry.session("mine", user="ada"):
        await arun_with(given.items, None)("s1", "ada", [("note", {"item": "x"}), ("anote", {"item": "y"})])
        run_with(given.items, None)("s1", "ada", [("note", {"item": "z"})])

    assert sorted(remembered(given.tools, session="mine", user="ada")["items"]) == ["x", "y", "z"]


def test_without_plugin_and_session_nothing_is_stored():
    made = make_tools()

    run_with([tool(made.by_name["note"])], None)("s1", "ada", [("note", {"item": "x"})])

    assert made.ran == []
    assert remembered(made, session="s1", user="ada") == {}


def test_memory_above_the_decorator_of_strands_is_refused():
    made = make_tools()

    with pytest.raises(DeclarationError, match="put the decorator of the framework above"):

        @made.gantry.with_memory
        @tool
        def note(item: str, memory: dict) -> str:
            """Note an item."""


def test_example(example):
    assert example("strands_agent.py") == "1. milk\n2. milk, bread\n3. tea\n"


def test_page_runs():
    assert run_page("strands.md")["agent"].tool_names == ["note"]
