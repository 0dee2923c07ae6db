"""What the state of other agent frameworks does when calls run at once, fail or start anew. Tried, not quoted.

Each framework runs its own agent's loop with a scripted model, and keeps state as its documentation shows first: a list,
which a tool reads, waits, and writes with one more item. What comes of it is printed as a table; nothing is timed.

    pip install -e '.[agent-gantry]' 'google-adk[db]' langgraph langgraph-checkpoint-sqlite fastmcp
    pip install agno aiosqlite pydantic-ai-slim openai-agents
    python benchmarks/frameworks.py

Whoever is not installed is left out, and a line says so: strands-agents wants other versions of what they share, and is run
in an environment of its own. Another framework is another class with `@framework`.
"""

# Annotations stay what they are: the frameworks read those of tools whose types are known in a function only.
import argparse
import asyncio
import importlib.metadata
import json
import logging
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

#: The calls of one turn of the model: the name of a tool, and the item for it.
Calls = Sequence[tuple[str, str]]


class Meeting:
    """Has two tools wait for each other between reading and writing, if they are run at the same time at all."""

    def __init__(self) -> None:
        self.expected = 0

    def expect(self, count: int) -> None:
        self.expected, self._here, self._all = count, 0, asyncio.Event()

    async def wait(self) -> None:
        if self.expected < 2:
            return
        self._here += 1
        if self._here == self.expected:
            self._all.set()
        try:
            await asyncio.wait_for(self._all.wait(), 0.5)
        except asyncio.TimeoutError:
            self.expected = 0  # one after the other


class Framework:
    """A framework with an agent that has the tools `append`, `fail` and `read`.

    Attributes:
        package: The distribution whose version stands in the table.
        kept_as: What keeps the state, as its user writes it.
        seen: What `read` saw last; None if there was nothing.
    """

    package: ClassVar[str]
    kept_as: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meeting = Meeting()
        self.seen: list[str] | None = None

    async def open(self) -> None:
        """Make the agent; what was kept in the folder is to be found again."""

    async def close(self) -> None:
        """Let go of what `open` took."""

    async def run(self, session: str, user: str, calls: Calls) -> None:
        """One run of the agent, whose model makes these calls in one turn and then answers."""
        raise NotImplementedError


FRAMEWORKS: dict[str, Callable[[], type[Framework]]] = {}


def framework(name: str) -> Callable[[Callable[[], type[Framework]]], Callable[[], type[Framework]]]:
    def add(make: Callable[[], type[Framework]]) -> Callable[[], type[Framework]]:
        FRAMEWORKS[name] = make
        return make

    return add


class FailedError(Exception):
    """What the tool `fail` raises after it has changed the state."""


@framework("agent-gantry-state")
def ours() -> type[Framework]:
    from agent_gantry_state import AgentGantry

    class Ours(Framework):
        package, kept_as = "agent-gantry-state", "memory, sqlite://"

        async def open(self) -> None:
            self.gantry = gantry = AgentGantry(store=f"sqlite:///{self.folder}/state.db")

            @gantry.register
            @gantry.with_memory
            async def append(item: str, memory: dict) -> str:
                """Append an item."""
                log = memory.get("log", [])
                await self.meeting.wait()
                memory["log"] = [*log, item]
                return "done"

            @gantry.register
            @gantry.with_memory
            async def fail(item: str, memory: dict) -> str:
                """Append an item, and fail."""
                memory["log"].append(item)
                raise FailedError

            @gantry.register
            @gantry.with_memory
            async def read(item: str, memory: dict) -> str:
                """Read all items."""
                self.seen = memory.get("log")
                return "done"

        async def close(self) -> None:
            await self.gantry.close()

        async def run(self, session: str, user: str, calls: Calls) -> None:
            made = [
                {"id": f"{n} {i}", "type": "function", "function": {"name": n, "arguments": json.dumps({"item": i})}}
                for n, i in calls
            ]
            turn = {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": made}}]}
            async with self.gantry.session(session, user=user):
                results = await self.gantry.execute_tool_calls(turn, retry_count=0)
            refused = [each["content"] for each in results if "belongs to another caller" in each["content"]]
            if refused:
                raise PermissionError(refused[0])

    return Ours


@framework("google-adk")
def google_adk() -> type[Framework]:
    from google.adk.agents import Agent
    from google.adk.models import BaseLlm, LlmRequest, LlmResponse
    from google.adk.runners import Runner
    from google.adk.sessions import DatabaseSessionService
    from google.adk.tools.tool_context import ToolContext
    from google.genai import types

    class Script(BaseLlm):
        calls: list[Any]

        async def generate_content_async(self, llm_request: LlmRequest, stream: bool = False) -> AsyncIterator[LlmResponse]:
            parts = [types.Part(function_call=types.FunctionCall(name=n, args={"item": i})) for n, i in self.calls]
            self.calls = []
            yield LlmResponse(content=types.Content(role="model", parts=parts or [types.Part(text="done")]))

    class GoogleADK(Framework):
        package, kept_as = "google-adk", "tool_context.state, DatabaseSessionService"

        async def open(self) -> None:
            self.service = DatabaseSessionService(f"sqlite+aiosqlite:///{self.folder}/state.db")

        async def close(self) -> None:
            await self.service.db_engine.dispose()

        async def run(self, session: str, user: str, calls: Calls) -> None:
            async def append(item: str, tool_context: ToolContext) -> str:
                """Append an item."""
                log = tool_context.state.get("log", [])
                await self.meeting.wait()
                tool_context.state["log"] = [*log, item]
                return "done"

            async def fail(item: str, tool_context: ToolContext) -> str:
                """Append an item, and fail."""
                log = tool_context.state["log"]
                log.append(item)
                tool_context.state["log"] = log
                raise FailedError

            async def read(item: str, tool_context: ToolContext) -> str:
                """Read all items."""
                self.seen = tool_context.state.get("log")
                return "done"

            agent = Agent(name="agent", model=Script(model="script", calls=list(calls)), tools=[append, fail, read])
            runner = Runner(agent=agent, app_name="app", session_service=self.service)
            key = {"app_name": "app", "user_id": user, "session_id": session}
            if await self.service.get_session(**key) is None:
                await self.service.create_session(**key)
            message = types.Content(role="user", parts=[types.Part(text="go")])
            async for _ in runner.run_async(user_id=user, session_id=session, new_message=message):
                pass

    return GoogleADK


def langgraph(reducer: bool) -> type[Framework]:
    import operator

    from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
    from langchain_core.tools import tool
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
    from langgraph.graph import START, StateGraph
    from langgraph.graph.message import add_messages
    from langgraph.prebuilt import ToolNode, ToolRuntime
    from langgraph.types import Command
    from typing_extensions import TypedDict

    class Plain(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]
        log: list

    class Reduced(TypedDict):
        messages: Annotated[list[AnyMessage], add_messages]
        log: Annotated[list, operator.add]

    class LangGraph(Framework):
        package = "langgraph"
        kept_as = "Annotated[list, operator.add], SqliteSaver" if reducer else "state, SqliteSaver"

        async def open(self) -> None:
            self.around = AsyncSqliteSaver.from_conn_string(f"{self.folder}/state.db")
            saver = await self.around.__aenter__()

            @tool
            async def append(item: str, runtime: ToolRuntime) -> Command:
                """Append an item."""
                log = runtime.state.get("log") or []
                await self.meeting.wait()
                done = ToolMessage("done", tool_call_id=runtime.tool_call_id)
                return Command(update={"log": [item] if reducer else [*log, item], "messages": [done]})

            @tool
            async def fail(item: str, runtime: ToolRuntime) -> Command:
                """Append an item, and fail."""
                runtime.state["log"].append(item)
                raise FailedError

            @tool
            async def read(item: str, runtime: ToolRuntime) -> str:
                """Read all items."""
                self.seen = runtime.state.get("log") or None
                return "done"

            def model(state: Any) -> dict[str, Any]:
                return {}

            graph = StateGraph(Reduced if reducer else Plain)
            graph.add_node("model", model)
            graph.add_node("tools", ToolNode([append, fail, read], handle_tool_errors=True))
            graph.add_edge(START, "tools")
            graph.add_edge("tools", "model")
            self.graph = graph.compile(checkpointer=saver)

        async def close(self) -> None:
            await self.around.__aexit__(None, None, None)

        async def run(self, session: str, user: str, calls: Calls) -> None:
            made = [{"name": n, "args": {"item": i}, "id": f"{n} {i}"} for n, i in calls]
            config: Any = {"configurable": {"thread_id": session, "user_id": user}}
            await self.graph.ainvoke({"messages": [AIMessage(content="", tool_calls=made)]}, config)

    return LangGraph


@framework("LangGraph")
def langgraph_plain() -> type[Framework]:
    return langgraph(reducer=False)


@framework("LangGraph, a reducer")
def langgraph_reduced() -> type[Framework]:
    return langgraph(reducer=True)


@framework("FastMCP")
def fastmcp() -> type[Framework]:
    from fastmcp import Client, FastMCP
    from fastmcp.exceptions import ToolError
    from fastmcp.server.dependencies import get_session
    from fastmcp.server.sessions import SessionId, SessionProvider
    from key_value.aio.stores.filetree import FileTreeStore

    class Fast(Framework):
        package, kept_as = "fastmcp", "get_session(session_id), FileTreeStore"

        async def open(self) -> None:
            self.ids = self.folder / "ids.json"
            self.server = FastMCP("server", session_state_store=FileTreeStore(data_directory=self.folder / "state"))
            self.server.add_provider(SessionProvider())

            @self.server.tool
            async def append(item: str, session_id: SessionId) -> str:
                """Append an item."""
                session = await get_session(session_id)
                log = await session.get("log", [])
                await self.meeting.wait()
                await session.set("log", [*log, item])
                return "done"

            @self.server.tool
            async def fail(item: str, session_id: SessionId) -> str:
                """Append an item, and fail."""
                session = await get_session(session_id)
                await session.set("log", [*await session.get("log", []), item])
                raise FailedError

            @self.server.tool
            async def read(item: str, session_id: SessionId) -> str:
                """Read all items."""
                self.seen = await (await get_session(session_id)).get("log")
                return "done"

        async def run(self, session: str, user: str, calls: Calls) -> None:
            ids = json.loads(self.ids.read_text()) if self.ids.exists() else {}
            async with Client(self.server) as client:
                if session not in ids:
                    ids[session] = (await client.call_tool("create_session", {})).data
                    self.ids.write_text(json.dumps(ids))

                async def call(name: str, item: str) -> None:
                    try:
                        await client.call_tool(name, {"item": item, "session_id": ids[session]})
                    except ToolError:
                        if name != "fail":
                            raise

                await asyncio.gather(*(call(name, item) for name, item in calls))

    return Fast


@framework("Strands")
def strands() -> type[Framework]:
    from strands import Agent, ToolContext, tool
    from strands.models.model import Model
    from strands.session.file_session_manager import FileSessionManager

    class Script(Model):
        def __init__(self, calls: Calls) -> None:
            self.calls = list(calls)

        def update_config(self, **_: Any) -> None:
            pass

        def get_config(self) -> dict[str, Any]:
            return {}

        async def structured_output(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            yield {}

        async def stream(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
            calls, self.calls = self.calls, []
            yield {"messageStart": {"role": "assistant"}}
            for number, (name, item) in enumerate(calls):
                yield {"contentBlockStart": {"start": {"toolUse": {"name": name, "toolUseId": f"{name}{number}"}}}}
                yield {"contentBlockDelta": {"delta": {"toolUse": {"input": json.dumps({"item": item})}}}}
                yield {"contentBlockStop": {}}
            if not calls:
                yield {"contentBlockStart": {"start": {}}}
                yield {"contentBlockDelta": {"delta": {"text": "done"}}}
                yield {"contentBlockStop": {}}
            yield {"messageStop": {"stopReason": "tool_use" if calls else "end_turn"}}

    class Strands(Framework):
        package, kept_as = "strands-agents", "agent.state, FileSessionManager"

        async def run(self, session: str, user: str, calls: Calls) -> None:
            @tool(context=True)
            async def append(item: str, tool_context: ToolContext) -> str:
                """Append an item."""
                log = tool_context.agent.state.get("log") or []
                await self.meeting.wait()
                tool_context.agent.state.set("log", [*log, item])
                return "done"

            @tool(context=True)
            async def fail(item: str, tool_context: ToolContext) -> str:
                """Append an item, and fail."""
                tool_context.agent.state.set("log", [*tool_context.agent.state.get("log"), item])
                raise FailedError

            @tool(context=True)
            async def read(item: str, tool_context: ToolContext) -> str:
                """Read all items."""
                self.seen = tool_context.agent.state.get("log")
                return "done"

            manager = FileSessionManager(session_id=session, storage_dir=str(self.folder))
            tools = [append, fail, read]
            agent = Agent(model=Script(calls), tools=tools, session_manager=manager, agent_id="agent", callback_handler=None)
            await agent.invoke_async("go")

    return Strands


@framework("Agno")
def agno() -> type[Framework]:
    from agno.agent import Agent
    from agno.db.sqlite import SqliteDb
    from agno.models.base import Model
    from agno.models.response import ModelResponse
    from agno.run import RunContext

    class Script(Model):
        calls: list[Any]

        def __init__(self, calls: Calls) -> None:
            super().__init__(id="script")
            self.calls = list(calls)

        async def ainvoke(self, *_: Any, **__: Any) -> ModelResponse:
            calls, self.calls = self.calls, []
            made = [
                {"id": f"{n} {i}", "type": "function", "function": {"name": n, "arguments": json.dumps({"item": i})}}
                for n, i in calls
            ]
            return ModelResponse(role="assistant", content=None if made else "done", tool_calls=made)

        def invoke(self, *_: Any, **__: Any) -> ModelResponse:
            raise NotImplementedError

        invoke_stream = ainvoke_stream = _parse_provider_response = _parse_provider_response_delta = invoke  # type: ignore[assignment]

    class Agno(Framework):
        package, kept_as = "agno", "run_context.session_state, SqliteDb"

        async def open(self) -> None:
            self.db = SqliteDb(db_file=f"{self.folder}/state.db")

        async def run(self, session: str, user: str, calls: Calls) -> None:
            async def append(item: str, run_context: RunContext) -> str:
                """Append an item."""
                log = run_context.session_state.get("log", [])
                await self.meeting.wait()
                run_context.session_state["log"] = [*log, item]
                return "done"

            async def fail(item: str, run_context: RunContext) -> str:
                """Append an item, and fail."""
                run_context.session_state["log"].append(item)
                raise FailedError

            async def read(item: str, run_context: RunContext) -> str:
                """Read all items."""
                self.seen = run_context.session_state.get("log")
                return "done"

            agent = Agent(model=Script(calls), db=self.db, tools=[append, fail, read], telemetry=False)
            await agent.arun("go", session_id=session, user_id=user)

    return Agno


@framework("pydantic-ai")
def pydantic_ai() -> type[Framework]:
    from pydantic_ai import Agent, RunContext
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    class PydanticAI(Framework):
        package, kept_as = "pydantic-ai-slim", "deps: an object of the program"

        async def open(self) -> None:
            self.states: dict[str, dict[str, list[str]]] = {}

        async def run(self, session: str, user: str, calls: Calls) -> None:
            waiting = [ToolCallPart(name, {"item": item}) for name, item in calls]

            async def script(messages: Any, info: Any) -> ModelResponse:
                made, waiting[:] = list(waiting), []
                return ModelResponse(parts=made or [TextPart("done")])

            agent = Agent(FunctionModel(script), deps_type=dict)

            @agent.tool
            async def append(ctx: RunContext[dict], item: str) -> str:
                """Append an item."""
                log = ctx.deps.get("log", [])
                await self.meeting.wait()
                ctx.deps["log"] = [*log, item]
                return "done"

            @agent.tool
            async def fail(ctx: RunContext[dict], item: str) -> str:
                """Append an item, and fail."""
                ctx.deps["log"].append(item)
                raise FailedError

            @agent.tool
            async def read(ctx: RunContext[dict], item: str) -> str:
                """Read all items."""
                self.seen = ctx.deps.get("log")
                return "done"

            await agent.run("go", deps=self.states.setdefault(session, {}))

    return PydanticAI


@framework("OpenAI Agents")
def openai_agents() -> type[Framework]:
    from agents import Agent, RunContextWrapper, Runner, SQLiteSession, function_tool, set_tracing_disabled
    from agents.items import ModelResponse
    from agents.models.interface import Model
    from agents.usage import Usage
    from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

    set_tracing_disabled(True)

    class Script(Model):
        def __init__(self, calls: Calls) -> None:
            self.calls = list(calls)

        async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
            calls, self.calls = self.calls, []
            out: list[Any] = [
                ResponseFunctionToolCall(call_id=f"{n} {i}", name=n, arguments=json.dumps({"item": i}), type="function_call")
                for n, i in calls
            ]
            text = ResponseOutputText(text="done", type="output_text", annotations=[])
            answer = ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[text])
            return ModelResponse(output=out or [answer], usage=Usage(), response_id=None)

        def stream_response(self, *_: Any, **__: Any) -> Any:
            raise NotImplementedError

    class OpenAIAgents(Framework):
        package, kept_as = "openai-agents", "context: an object of the program; SQLiteSession keeps messages"

        async def open(self) -> None:
            self.states: dict[str, dict[str, list[str]]] = {}

        async def run(self, session: str, user: str, calls: Calls) -> None:
            @function_tool
            async def append(context: RunContextWrapper[dict], item: str) -> str:
                """Append an item."""
                log = context.context.get("log", [])
                await self.meeting.wait()
                context.context["log"] = [*log, item]
                return "done"

            @function_tool
            async def fail(context: RunContextWrapper[dict], item: str) -> str:
                """Append an item, and fail."""
                context.context["log"].append(item)
                raise FailedError

            @function_tool
            async def read(context: RunContextWrapper[dict], item: str) -> str:
                """Read all items."""
                self.seen = context.context.get("log")
                return "done"

            agent = Agent(name="agent", model=Script(calls), tools=[append, fail, read])
            state = self.states.setdefault(session, {})
            await Runner.run(agent, "go", context=state, session=SQLiteSession(session, f"{self.folder}/messages.db"))

    return OpenAIAgents


# What is tried.


async def quiet(run: Awaitable[None]) -> str | None:
    """Await a run; what it was refused with, if it was."""
    try:
        await run
    except Exception as error:  # noqa: BLE001 - it is what is reported
        return type(error).__name__
    return None


async def one_turn(framework: Framework) -> str:
    """Two calls in one turn of the model."""
    framework.meeting.expect(2)
    error = await quiet(framework.run("turn", "ada", [("append", "a"), ("append", "b")]))
    overlapped = framework.meeting.expected
    return await outcome(framework, "turn", error, overlapped)


async def two_runs(framework: Framework) -> str:
    """Two runs of one session at once, one call each."""
    await framework.run("runs", "ada", [("append", "first")])
    framework.meeting.expect(2)
    errors = await asyncio.gather(*(quiet(framework.run("runs", "ada", [("append", item)])) for item in "ab"))
    overlapped = framework.meeting.expected
    return await outcome(framework, "runs", next(filter(None, errors), None), overlapped)


async def outcome(framework: Framework, session: str, error: str | None, overlapped: int) -> str:
    framework.meeting.expect(0)
    framework.seen = None
    await framework.run(session, "ada", [("read", "")])
    items = set(framework.seen or ()) & {"a", "b"}
    if len(items) == 2:
        return "kept" if overlapped else "kept, in turn"
    return f"refused ({error})" if error else "LOST"


async def failed(framework: Framework) -> str:
    """A tool changes the state and raises; what does the next run see?"""
    await framework.run("failed", "ada", [("append", "first")])
    await quiet(framework.run("failed", "ada", [("fail", "wrong")]))
    await framework.run("failed", "ada", [("read", "")])
    return "undone" if framework.seen == ["first"] else "STAYS"


async def another_user(framework: Framework) -> str:
    """Another user comes with the id of a session that is not theirs."""
    await framework.run("private", "ada", [("append", "secret")])
    framework.seen = None
    error = await quiet(framework.run("private", "eve", [("read", "")]))
    if framework.seen:
        return "READ"
    return "refused" if error else "a session of their own"


async def restart(framework: Framework) -> str:
    """The program ends and begins again."""
    await framework.run("restart", "ada", [("append", "first")])
    await framework.close()
    framework.seen = None
    await framework.open()
    await framework.run("restart", "ada", [("read", "")])
    return "there" if framework.seen == ["first"] else "GONE"


TRIALS: dict[str, Callable[[Framework], Awaitable[str]]] = {
    "two calls in one turn": one_turn,
    "two runs at once": two_runs,
    "a tool that fails": failed,
    "another user": another_user,
    "a restart": restart,
}


async def tried(make: Callable[[], type[Framework]]) -> list[str]:
    kind = make()
    row = [importlib.metadata.version(kind.package), kind.kept_as]
    for trial in TRIALS.values():
        with tempfile.TemporaryDirectory() as folder:
            framework = kind(Path(folder))
            await framework.open()
            try:
                row.append(await asyncio.wait_for(trial(framework), 60))
            finally:
                await framework.close()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="frameworks to run (all)", metavar="NAME")
    names = parser.parse_args().names
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    print(f"| framework | version | state kept by | {' | '.join(TRIALS)} |")
    print(f"|{'---|' * (3 + len(TRIALS))}")
    for name, make in FRAMEWORKS.items():
        if names and name not in names:
            continue
        try:
            row = asyncio.run(tried(make))
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        print(f"| {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
