from __future__ import annotations

import asyncio
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool as langchain_tool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt
from scenario import CHECKS, SHORT_CHECKS, adrive, assert_hidden, drive, remembered
from tools import make_agent_gantry_tools, make_tools, method_of

from agent_gantry_state import MissingIdentityError, ResolverError, SyncExecutionContext
from agent_gantry_state.integrations.langgraph import LangGraphResolver


class Scripted(BaseChatModel):
    """Asks for the calls that the last human message lists, and is done when they have answered."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **options: Any) -> ChatResult:
        answer = AIMessage("done")
        if isinstance(messages[-1], HumanMessage):
            answer = asking(json.loads(messages[-1].content))
        return ChatResult(generations=[ChatGeneration(message=answer)])


def asking(calls):
    return AIMessage("", tool_calls=[{"name": name, "args": args, "id": uuid.uuid4().hex} for name, args in calls])


def config_of(session, user=None, **more):
    return {"configurable": {"thread_id": session, **({"user_id": user} if user else {}), **more}}


def agent_of(functions):
    return create_agent(Scripted(), functions, checkpointer=InMemorySaver())


def graph_of(functions):
    """A graph whose one node runs all calls of a turn, in threads of its own where it runs without an event loop."""
    builder = StateGraph(MessagesState)
    builder.add_node("tools", ToolNode(functions))
    builder.add_edge(START, "tools")
    builder.add_edge("tools", END)
    return builder.compile(checkpointer=InMemorySaver())


@pytest.fixture
def tools():
    return make_tools(resolvers=[LangGraphResolver()])


def messages_of(calls):
    return {"messages": [HumanMessage(json.dumps(calls))]}


# A plain decorated function, registered as any other.


def test_memory_is_in_no_schema(tools):
    made = [langchain_tool(function) for function in tools.functions]

    assert_hidden(*(convert_to_openai_tool(each) for each in made))
    assert_hidden(*(each.args_schema.model_json_schema() for each in made))
    assert made[0].args.keys() == {"item"}


@pytest.mark.parametrize("check", CHECKS)
def test_agent(tools, check):
    agent = agent_of(tools.functions)

    drive(check, tools, lambda session, user, calls: agent.invoke(messages_of(calls), config_of(session, user)))


@pytest.mark.anyio
@pytest.mark.parametrize("check", CHECKS)
async def test_agent_async(tools, check):
    agent = agent_of(tools.functions)

    await adrive(check, tools, lambda session, user, calls: agent.ainvoke(messages_of(calls), config_of(session, user)))


@pytest.mark.anyio
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_agent_async_with_sync_tools(tools, check):
    agent = agent_of(tools.functions)

    await adrive(check, tools, lambda session, user, calls: agent.ainvoke(messages_of(calls), config_of(session, user)), "")


@pytest.mark.anyio
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_agent_streaming(tools, check):
    agent = agent_of(tools.functions)

    async def run(session, user, calls):
        async for _ in agent.astream(messages_of(calls), config_of(session, user)):
            pass

    await adrive(check, tools, run)


@pytest.mark.parametrize("check", SHORT_CHECKS)
def test_tool_node(tools, check):
    graph = graph_of(tools.functions)

    drive(check, tools, lambda session, user, calls: graph.invoke({"messages": [asking(calls)]}, config_of(session, user)))


@pytest.mark.anyio
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_tool_node_async(tools, check):
    graph = graph_of(tools.functions)

    await adrive(
        check, tools, lambda session, user, calls: graph.ainvoke({"messages": [asking(calls)]}, config_of(session, user))
    )


def test_memory_that_the_model_passes_goes_nowhere(tools):
    """LangChain drops what is not in the schema."""
    langchain_tool(tools.by_name["note"]).invoke({"item": "x", "memory": {"items": ["forged"]}}, config_of("s1"))

    assert remembered(tools, session="s1") == {"items": ["x"]}


def test_method_is_a_tool(tools):
    made = langchain_tool(method_of(tools.gantry))

    agent_of([made]).invoke(messages_of([("sign", {"item": "x"})]), config_of("s1"))

    assert_hidden(convert_to_openai_tool(made))
    assert made.args.keys() == {"item"}
    assert remembered(tools, session="s1") == {"items": ["x, ada"]}


# Through agent-gantry's adapter.


@pytest.fixture
def adapted():
    from agent_gantry.integrations.frameworks.base import spec_from_tool
    from agent_gantry.langgraph import LangGraphAdapter

    tools = make_agent_gantry_tools(resolvers=[LangGraphResolver()])
    definitions = tools.gantry.list_tools_sync()
    return tools, [LangGraphAdapter.convert(spec_from_tool(tools.gantry, definition)) for definition in definitions]


def test_memory_is_in_no_schema_of_the_adapter(adapted):
    tools, functions = adapted

    assert {each.name for each in functions} == set(tools.by_name)
    assert_hidden(*map(convert_to_openai_tool, functions))


@pytest.mark.anyio
@pytest.mark.parametrize("a", ["a", ""])
@pytest.mark.parametrize("check", SHORT_CHECKS)
async def test_adapter(adapted, check, a):
    tools, functions = adapted
    agent = agent_of(functions)

    await adrive(check, tools, lambda session, user, calls: agent.ainvoke(messages_of(calls), config_of(session, user)), a)


@pytest.mark.parametrize("a", ["", "a"])
@pytest.mark.parametrize("check", SHORT_CHECKS)
def test_adapter_without_an_event_loop(adapted, check, a):
    """agent-gantry runs these on a loop in a thread of its own."""
    tools, functions = adapted
    agent = agent_of(functions)

    drive(check, tools, lambda session, user, calls: agent.invoke(messages_of(calls), config_of(session, user)), a)


@pytest.mark.anyio
async def test_agent_of_the_adapter_that_selects_tools_every_turn():
    from agent_gantry.langgraph import LangGraphAdapter

    tools = make_agent_gantry_tools(resolvers=[LangGraphResolver()])
    agent = await LangGraphAdapter(tools.gantry).areact_agent(Scripted(), limit=20, checkpointer=InMemorySaver())

    for item in ("x", "y"):
        await agent.ainvoke(messages_of([("anote", {"item": item})]), config_of("s1", "ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x", "y"]}


# Where the identity comes from.


def test_run_without_a_thread_knows_no_session(tools):
    agent = create_agent(Scripted(), tools.functions)

    with pytest.raises(MissingIdentityError, match="no session is known here"):
        agent.invoke(messages_of([("note", {"item": "x"})]))


def test_session_around_the_run_is_enough_without_a_thread(tools):
    agent = create_agent(Scripted(), tools.functions)

    with tools.gantry.session("s1", user="ada"):
        agent.invoke(messages_of([("both", {"item": "x"})]))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


def test_thread_of_the_run_is_nearer_than_a_session_around_it(tools):
    agent = agent_of(tools.functions)

    with tools.gantry.session("around", user="bob"):
        agent.invoke(messages_of([("both", {"item": "x"})]), config_of("s1", "ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}
    assert remembered(tools, session="around", user="bob") == {}


def test_session_entered_in_a_node_is_nearer_than_the_thread(tools):
    def node(state):
        with tools.gantry.session("inner"):
            tools.by_name["note"]("x")
        tools.by_name["note"]("y")
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    builder.compile().invoke({"messages": []}, config_of("s1"))

    assert remembered(tools, session="inner") == {"items": ["x"]}
    assert remembered(tools, session="s1") == {"items": ["y"]}


def test_agent_as_a_subgraph_has_the_thread_of_the_whole(tools):
    builder = StateGraph(MessagesState)
    builder.add_node("agent", create_agent(Scripted(), tools.functions))
    builder.add_edge(START, "agent")
    graph = builder.compile(checkpointer=InMemorySaver())

    for item in ("x", "y"):
        graph.invoke(messages_of([("both", {"item": item})]), config_of("s1", "ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x", "y"]}


@pytest.mark.anyio
async def test_agent_that_a_node_invokes_has_the_thread_of_the_node_or_its_own(tools):
    agent = agent_of(tools.functions)

    async def node(state):
        await agent.ainvoke(messages_of([("aboth", {"item": "same"})]))
        await agent.ainvoke(messages_of([("aboth", {"item": "own"})]), config_of("s2", "ada"))
        await tools.by_name["aboth"]("after")
        return {}

    builder = StateGraph(MessagesState)
    builder.add_node("node", node)
    builder.add_edge(START, "node")
    await builder.compile(checkpointer=InMemorySaver()).ainvoke({"messages": []}, config_of("s1", "ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["same", "after"]}
    assert remembered(tools, session="s2", user="ada") == {"items": ["own"]}


def test_tasks_of_the_functional_api(tools):
    @task
    def step(item):
        return tools.by_name["note"](item)

    @entrypoint(checkpointer=InMemorySaver())
    def work(items):
        return [each.result() for each in [step(item) for item in items]]

    work.invoke(["x", "y"], config_of("s1"))

    assert sorted(remembered(tools, session="s1")["items"]) == ["x", "y"]


def test_tool_of_langchain_alone(tools):
    made = langchain_tool(tools.by_name["both"])

    made.invoke({"item": "x"}, config_of("s1", "ada"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


@dataclass
class Context:
    user_id: str
    thread_id: str | None = None


@pytest.mark.parametrize("context", [Context("ada"), {"user_id": "ada"}])
def test_user_may_be_in_the_context_of_the_run(tools, context):
    agent = create_agent(Scripted(), tools.functions, checkpointer=InMemorySaver(), context_schema=Context)

    agent.invoke(messages_of([("both", {"item": "x"})]), config_of("s1"), context=context)

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


def test_config_comes_before_the_context(tools):
    agent = create_agent(Scripted(), tools.functions, checkpointer=InMemorySaver(), context_schema=Context)

    agent.invoke(messages_of([("both", {"item": "x"})]), config_of("s1", "ada"), context=Context("bob", "s2"))

    assert remembered(tools, session="s1", user="ada") == {"items": ["x"]}


def identity_of(config, **options):
    """What a tool is told of its caller in a run with this config."""
    tools = make_tools(resolvers=[LangGraphResolver(**options)])
    seen = []

    @tools.gantry.with_context
    def who(ctx: SyncExecutionContext) -> None:
        """Ask who calls."""
        seen.append(dict(ctx.identity.keys))

    langchain_tool(who).invoke({}, config)
    return seen[0]


def test_names_of_the_ids_are_free():
    found = identity_of(
        {"configurable": {"thread_id": "t", "assistant_id": "a", "langgraph_auth_user_id": "ada", "org": "acme"}},
        session="assistant_id",
        user="langgraph_auth_user_id",
        keys={"tenant": "org"},
    )

    assert found == {"session": "a", "user": "ada", "tenant": "acme"}


@pytest.mark.parametrize("id", [7, uuid.UUID(int=7), "7"])
def test_numbers_and_uuids_are_ids(id):
    assert identity_of(config_of(id)) == {"session": str(id)}


@pytest.mark.parametrize("id", [7.0, True, b"x", ["x"]])
def test_other_types_are_refused_without_naming_the_id(id):
    with pytest.raises(ResolverError, match=r"LangGraphResolver failed to say who calls, with TypeError$"):
        identity_of(config_of(id))


def test_example(example):
    assert example("langgraph_agent.py") == (
        "ada in t1: in the basket: tea; you had tea 1 times\n"
        "ada in t1: in the basket: tea, milk; you had milk 1 times\n"
        "ada in t2: in the basket: tea; you had tea 2 times\n"
        "bob in t3: in the basket: tea; you had tea 1 times\n"
    )


# What a call is.


def test_tool_that_interrupts_changes_nothing_until_it_is_resumed(tools):
    @tools.gantry.with_memory
    def pay(amount: int, memory: dict) -> str:
        """Pay an amount, after a human has agreed."""
        memory.setdefault("paid", []).append(amount)
        return interrupt("really?")

    agent = agent_of([pay])
    agent.invoke(messages_of([("pay", {"amount": 5})]), config_of("s1"))
    assert remembered(tools, session="s1") == {}

    agent.invoke(Command(resume="yes"), config_of("s1"))
    assert remembered(tools, session="s1") == {"paid": [5]}


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

    run = asyncio.create_task(agent_of([slow]).ainvoke(messages_of([("slow", {})]), config_of("s1")))
    await asyncio.wait_for(begun.wait(), 20)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run

    assert remembered(tools, session="s1") == {}


@pytest.mark.anyio
async def test_thread_of_a_cancelled_sync_tool_commits():
    """No promise, but what the docs say: LangChain does not tell the thread."""
    begun, go_on, committed = threading.Event(), threading.Event(), threading.Event()
    tools = make_tools(resolvers=[LangGraphResolver()], on_commit=lambda event: committed.set())

    @tools.gantry.with_memory
    def slow(memory: dict) -> str:
        """Take some time."""
        memory["slow"] = True
        begun.set()
        go_on.wait(20)
        return "done"

    run = asyncio.create_task(agent_of([slow]).ainvoke(messages_of([("slow", {})]), config_of("s1")))
    await asyncio.to_thread(begun.wait, 20)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    go_on.set()

    assert await asyncio.to_thread(committed.wait, 20)
    assert remembered(tools, session="s1") == {"slow": True}


def test_pool_inside_a_tool_takes_the_thread_along_when_bound(tools):
    note = tools.by_name["note"]

    @langchain_tool
    def spread() -> str:
        """Note from threads."""
        with ThreadPoolExecutor() as pool:
            for job in [pool.submit(tools.gantry.bind(note), item) for item in ("x", "y")]:
                job.result()
        return "done"

    agent_of([spread]).invoke(messages_of([("spread", {})]), config_of("s1"))

    assert sorted(remembered(tools, session="s1")["items"]) == ["x", "y"]
