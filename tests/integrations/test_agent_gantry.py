"""Tools with a memory on the real agent-gantry."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from pathlib import Path

import agent_gantry
import anyio
import anyio.lowlevel
import pytest
from agent_gantry import ToolCall
from agent_gantry.core.executor import ArgumentReconstructionError, ExecutionEngine
from agent_gantry.core.registry import ToolRegistry
from agent_gantry.integrations.frameworks.base import ToolExecutionError, spec_from_tool
from agent_gantry.observability.console import NoopTelemetryAdapter
from agent_gantry.schema.execution import BatchToolCall, ExecutionStatus
from executions import call, definition, remembered, run, unlimited

from agent_gantry_state import (
    AgentGantry,
    DeclarationError,
    Gantry,
    Identity,
    MemoryConflictError,
    OrphanedCallError,
    StateError,
    StateWarning,
    StoreClosedError,
    current_identity,
)
from agent_gantry_state.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
async def gantry():
    async with AgentGantry(**unlimited(), session="local") as gantry:
        yield gantry


def counter(gantry, **options):
    @gantry.register
    @gantry.with_memory(**options)
    async def count(memory: dict) -> int:
        """Count the calls."""
        return memory.add("n", 1)

    return count


# What was asked for.


async def test_request_decorator_snippet_remembers():
    gantry = AgentGantry(**unlimited())

    @gantry.register
    @gantry.with_memory(scope="session")
    async def my_tool(arg: str, memory: dict) -> str:
        memory["key"] = "value"
        return memory.get("other_key", "")

    async with gantry.session("s1"):
        assert await run(gantry, "my_tool", arg="x") == ""
        assert await remembered(gantry) == {"key": "value"}
        async with gantry.memory() as memory:
            memory["other_key"] = "other"
        assert await run(gantry, "my_tool", arg="x") == "other"


async def test_request_read_and_summarise_pair_remembers(tmp_path):
    gantry = AgentGantry(**unlimited())
    (tmp_path / "notes.txt").write_text("Whales sing.")

    @gantry.register
    @gantry.with_memory(scope="session")
    async def read_file(filename: str, memory: dict) -> str:
        """Read a file and remember it."""
        content = Path(filename).read_text()
        memory["last_file"] = filename
        memory["file_content"] = content
        return content

    @gantry.register
    @gantry.with_memory(scope="session")
    async def summarize_last_file(memory: dict) -> str:
        """Summarize the last file that was read."""
        return f"{memory.get('last_file')}: {memory.get('file_content', default='')}"

    path = str(tmp_path / "notes.txt")
    async with gantry.session("s1", user="ada"):
        assert await run(gantry, "read_file", filename=path) == "Whales sing."
        assert await run(gantry, "summarize_last_file") == f"{path}: Whales sing."
    async with gantry.session("s2", user="ada"):
        assert await run(gantry, "summarize_last_file") == "None: "


@pytest.mark.parametrize("make_async", [True, False])
async def test_schema_and_description_are_without_the_memory(gantry, make_async):
    def sync_tool(filename: str, memory: dict, limit: int = 3) -> str:
        """Read a file.

        Args:
            filename: Which.
            memory: What is remembered.
            limit: How much.
        """
        return filename

    async def async_tool(filename: str, memory: dict, limit: int = 3) -> str:
        """Read a file.

        Args:
            filename: Which.
            memory: What is remembered.
            limit: How much.
        """
        return filename

    gantry.register(gantry.with_memory(async_tool if make_async else sync_tool), name="read")
    tool = definition(gantry, "read")

    assert list(tool.parameters_schema["properties"]) == ["filename", "limit"]
    assert tool.parameters_schema["required"] == ["filename"]
    assert "memory" not in json.dumps(tool.parameters_schema)
    assert "memory" not in tool.description
    assert "remembered" not in tool.description
    assert "filename: Which." in tool.description
    assert await run(gantry, "read", filename="a") == "a"


# A true subclass.


async def test_it_is_agent_gantrys_own_class():
    gantry = AgentGantry(**unlimited())

    assert isinstance(gantry, agent_gantry.AgentGantry)
    assert issubclass(AgentGantry, agent_gantry.AgentGantry)


async def test_quick_start_takes_our_arguments_too():
    store = MemoryStore()
    async with AgentGantry.quick_start(embedder="simple", store=store, session="local") as gantry:
        counter(gantry)

        assert type(gantry) is AgentGantry
        assert (await run(gantry, "count"), await run(gantry, "count")) == (1, 2)
        assert len(store) == 1


async def test_from_config_reads_a_file_and_takes_our_arguments(tmp_path):
    path = tmp_path / "gantry.yaml"
    path.write_text("execution:\n  max_retries: 1\n  rate_limit:\n    enabled: false\n")

    async with AgentGantry.from_config(str(path), session="local") as gantry:
        counter(gantry)

        assert type(gantry) is AgentGantry
        assert (await run(gantry, "count"), await run(gantry, "count")) == (1, 2)


MODULE = """
from agent_gantry_state import AgentGantry

tools = AgentGantry({arguments})

@tools.register
@tools.with_memory
async def note(text: str, memory: dict) -> list:
    '''Note a text down.'''
    memory.setdefault("notes", []).append(text)
    return memory["notes"]

@tools.register
@tools.with_memory
def note_sync(text: str, memory: dict) -> list:
    '''Note a text down, too.'''
    memory.setdefault("notes", []).append(text)
    return memory["notes"]

@tools.register
@tools.with_memory
def broken(memory: dict) -> None:
    '''Fail to remember.'''
    memory["notes"] = "broken"
    memory["x"] = object()
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Writes modules with tools; gives their names."""
    made = []

    def make(arguments=""):
        name = f"tools_of_a_test_{os.getpid()}_{len(made)}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(MODULE.format(arguments=arguments))
        made.append(name)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for name in made:
        sys.modules.pop(name, None)


async def test_from_modules_takes_tools_and_our_arguments(modules):
    name = modules()

    async with await AgentGantry.from_modules([name], **unlimited(), session="unused") as gantry:
        assert type(gantry) is AgentGantry
        async with gantry.session("s1"):
            assert await run(gantry, "note", text="a") == ["a"]
            assert await run(gantry, "note_sync", text="b") == ["a", "b"]


async def test_tools_remember_in_a_plain_agent_gantry(modules):
    name = modules('session="local"')
    plain = agent_gantry.AgentGantry(**unlimited())

    await plain.collect_tools_from_modules([name])

    assert await run(plain, "note", text="a") == ["a"]
    assert await run(plain, "note_sync", text="b") == ["a", "b"]
    with sys.modules[name].tools.session("other"):
        assert await run(plain, "note", text="c") == ["c"]


async def test_memory_error_is_final_in_a_plain_agent_gantry_too(modules):
    name = modules('session="local"')
    plain = agent_gantry.AgentGantry(**unlimited())
    await plain.collect_tools_from_modules([name])

    result = await plain.execute(call("broken"))

    assert (result.status, result.attempt_number) == (ExecutionStatus.FAILURE, 1)
    assert "memory['x']" in result.error
    assert definition(plain, "broken").health.consecutive_failures == 0


async def test_two_gantries_tools_share_an_entered_session(modules):
    one, two = modules(), modules()
    async with await AgentGantry.from_modules([one], **unlimited()) as gantry:
        counter(gantry)
        async with gantry.session("s1", user="ada"):
            assert await run(gantry, "note", text="a") == ["a"]
            assert await run(gantry, "count") == 1
            assert await run(gantry, "note_sync", text="b") == ["a", "b"]
        first = sys.modules[one].tools
        assert await remembered(first, session="s1", user="ada") == {"notes": ["a", "b"]}
    assert two not in sys.modules


async def test_tool_collected_from_a_plain_agent_gantry_runs_as_ours(tmp_path, monkeypatch):
    name = f"plain_tools_of_a_test_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text(
        "import agent_gantry\n"
        "from agent_gantry_state import Gantry\n"
        "tools, memories = agent_gantry.AgentGantry(), Gantry(session='local')\n"
        "@tools.register\n"
        "@memories.with_memory\n"
        "def spoil(memory: dict) -> None:\n"
        "    'Spoil the memory.'\n"
        "    memory['x'] = object()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    async with await AgentGantry.from_modules([name], **unlimited()) as gantry:
        assert inspect.iscoroutinefunction(gantry._registry.get_handler("default.spoil"))
        await assert_final(gantry, "spoil", "UnstorableValueError")
    del sys.modules[name]


async def test_cli_lists_the_tools_of_a_module(modules, tmp_path):
    name = modules('session="local"')
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "agent_gantry.cli.main", "list", "--module", name],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )

    assert done.returncode == 0, done.stderr
    assert "note_sync" in done.stdout
    assert "memory" not in done.stdout


async def test_mcp_server_of_the_cli_remembers(modules, tmp_path):
    pytest.importorskip("mcp")
    name = modules('session="local"')
    code = textwrap.dedent("""
        import anyio, json, sys
        from mcp import ClientSession, StdioServerParameters
        from mcp.client.stdio import stdio_client

        async def main():
            server = StdioServerParameters(
                command=sys.executable,
                args=["-m", "agent_gantry.cli.main", "serve-mcp", "--module", sys.argv[1], "--mode", "static"],
                env={"PYTHONPATH": sys.argv[2]},
            )
            async with stdio_client(server) as streams, ClientSession(*streams) as session:
                await session.initialize()
                listed = await session.list_tools()
                schemas = [tool.model_dump(mode="json", by_alias=True)["inputSchema"] for tool in listed.tools]
                names = [tool.name for tool in listed.tools]
                results = []
                for tool, arguments in (("note", {"text": "a"}), ("note_sync", {"text": "b"}), ("broken", {})):
                    result = await session.call_tool(next(n for n in names if n.split(".")[-1] == tool), arguments)
                    results.append(result.content[0].text)
                print(json.dumps([schemas, results]))

        anyio.run(main)
    """)

    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, name, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    schemas, results = json.loads(done.stdout)
    assert "memory" not in json.dumps(schemas)
    assert json.loads(results[1]) == ["a", "b"]
    assert "memory['x']" in results[2]


# All ways into a tool.


async def by_execute(gantry, name, arguments):
    result = await gantry.execute(call(name, **arguments))
    return result.result if result.status is ExecutionStatus.SUCCESS else result.error


async def by_batch(gantry, name, arguments, strategy="parallel"):
    batch = await gantry.execute_batch(BatchToolCall(calls=[call(name, **arguments)], execution_strategy=strategy))
    return batch.results[0].result if batch.successful_count else batch.results[0].error


async def by_sequential_batch(gantry, name, arguments):
    return await by_batch(gantry, name, arguments, "sequential")


async def by_tool_calls(gantry, name, arguments):
    message = {
        "role": "assistant",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}},
        ],
    }
    (reply,) = await gantry.execute_tool_calls({"choices": [{"message": message}]})
    return reply["content"].removeprefix("Error: ")


async def by_search(gantry, name, arguments):
    result = await gantry.search_and_execute(definition(gantry, name).description, arguments)
    return result.result if result.status is ExecutionStatus.SUCCESS else result.error


async def by_ainvoke(gantry, name, arguments):
    try:
        return await spec_from_tool(gantry, definition(gantry, name)).ainvoke(arguments)
    except ToolExecutionError as error:
        return str(error)


async def by_invoke(gantry, name, arguments):
    try:
        return await asyncio.to_thread(spec_from_tool(gantry, definition(gantry, name)).invoke, arguments)
    except ToolExecutionError as error:
        return str(error)


WAYS = [by_execute, by_batch, by_sequential_batch, by_tool_calls, by_search, by_ainvoke, by_invoke]


def note_and_spoil(gantry):
    ran = []

    @gantry.register
    @gantry.with_memory
    async def note(text: str, memory: dict) -> str:
        """Write a sentence into the notebook."""
        memory.setdefault("notes", []).append(text)
        return " ".join(memory["notes"])

    @gantry.register
    @gantry.with_memory
    def spoil(text: str, memory: dict) -> str:
        """Destroy everything by volcano eruption."""
        ran.append(text)
        memory["notes"] = []
        memory["spoilt"] = object()
        return text

    return ran


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_into_a_tool_remembers(gantry, way):
    note_and_spoil(gantry)

    async with gantry.session("s1", user="ada"):
        assert await way(gantry, "note", {"text": "a"}) == "a"
        assert await way(gantry, "note", {"text": "b"}) == "a b"

    assert await remembered(gantry, session="s1", user="ada") == {"notes": ["a", "b"]}
    assert await remembered(gantry) == {}


@pytest.mark.parametrize("way", WAYS)
async def test_memory_error_ends_the_call_at_once_every_way(gantry, way):
    ran = note_and_spoil(gantry)
    await run(gantry, "note", text="a")

    said = await way(gantry, "spoil", {"text": "secret"})

    assert "memory['spoilt'] holds a value of type object" in said
    assert "secret" not in said
    assert ran == ["secret"]
    assert await remembered(gantry) == {"notes": ["a"]}
    assert definition(gantry, "spoil").health.consecutive_failures == 0
    assert definition(gantry, "spoil").health.success_rate == 1.0


@pytest.mark.parametrize("make_async", [True, False])
@pytest.mark.parametrize("strategy", ["parallel", "adaptive"])
async def test_fifty_parallel_calls_lose_nothing(gantry, strategy, make_async):
    ran = []

    def body(item, memory):
        ran.append(item)
        memory.setdefault("log", []).append(item)
        return memory.add("n", 1)

    if make_async:

        @gantry.register
        @gantry.with_memory
        async def log(item: int, memory: dict) -> int:
            """Log an item."""
            await asyncio.sleep(0)
            return body(item, memory)

    else:

        @gantry.register
        @gantry.with_memory
        def log(item: int, memory: dict) -> int:
            """Log an item."""
            return body(item, memory)

    calls = [call("log", item=item) for item in range(50)]
    batch = await gantry.execute_batch(BatchToolCall(calls=calls, execution_strategy=strategy))

    memory = await remembered(gantry)
    assert (batch.successful_count, batch.failed_count) == (50, 0)
    assert sorted(memory["log"]) == sorted(ran) == list(range(50))
    assert memory["n"] == 50
    assert {result.attempt_number for result in batch.results} == {1}


# All or nothing.


@pytest.mark.parametrize("make_async", [True, False])
async def test_failing_tool_changes_nothing_however_often_it_is_run(gantry, make_async):
    ran = []

    def body(memory):
        ran.append(memory.add("n", 1))
        memory.setdefault("log", []).append("x")
        raise RuntimeError("tool")

    async def async_body(memory):
        body(memory)

    gantry.register(gantry.with_memory(async_body if make_async else body), name="fails")

    result = await gantry.execute(call("fails", retry_count=1))

    assert (result.status, result.error, result.error_type) == (ExecutionStatus.FAILURE, "tool", "RuntimeError")
    assert ran == [1, 1]
    assert await remembered(gantry) == {}
    assert definition(gantry, "fails").health.consecutive_failures == 1


async def test_attempt_that_succeeds_commits_its_own_changes_only(gantry):
    attempts = []

    @gantry.register
    @gantry.with_memory
    async def second_time(memory: dict) -> str:
        """Succeed when run again."""
        attempts.append(1)
        memory.setdefault("log", []).append(len(attempts))
        if len(attempts) == 1:
            raise RuntimeError("tool")
        return "ok"

    assert await run(gantry, "second_time", retry_count=1) == "ok"
    assert await remembered(gantry) == {"log": [2]}


async def test_async_tool_that_timed_out_changes_nothing(gantry):
    @gantry.register
    @gantry.with_memory
    async def endless(memory: dict) -> None:
        """Wait for ever."""
        memory["x"] = 1
        await asyncio.Event().wait()

    result = await gantry.execute(call("endless", timeout_ms=100, retry_count=0))

    assert result.status is ExecutionStatus.TIMEOUT
    assert await remembered(gantry) == {}


async def test_sync_tool_that_timed_out_never_commits(gantry):
    go_on, ended = threading.Event(), threading.Semaphore(0)

    @gantry.register
    @gantry.with_memory
    def slow(memory: dict) -> None:
        """Take too long."""
        memory["x"] = 1
        go_on.wait(10)
        memory.setdefault("log", []).append("late")
        ended.release()

    async with gantry.memory() as memory:
        memory["before"] = True

    result = await gantry.execute(call("slow", timeout_ms=200, retry_count=2))

    assert (result.status, result.attempt_number) == (ExecutionStatus.TIMEOUT, 3)
    assert await remembered(gantry) == {"before": True}
    go_on.set()
    for _ in range(3):
        assert await asyncio.to_thread(ended.acquire, timeout=10)
    await asyncio.sleep(0.05)  # what a thread could still do after its body's last line
    assert await remembered(gantry) == {"before": True}


@pytest.mark.parametrize("make_async", [True, False])
async def test_execute_cancelled_from_outside_changes_nothing(gantry, make_async):
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def body(memory):
        memory["x"] = 1
        started.set()
        go_on.wait(10)
        ended.set()

    async def async_body(memory):
        memory["x"] = 1
        started.set()
        await asyncio.Event().wait()

    gantry.register(gantry.with_memory(async_body if make_async else body), name="slow")
    task = asyncio.create_task(gantry.execute(call("slow")))
    await asyncio.to_thread(started.wait, 10)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    if not make_async:
        assert await asyncio.to_thread(ended.wait, 10)

    assert await remembered(gantry) == {}


class LateStore:
    """Commits at once, and says so only when it is let."""

    clock = None

    def __init__(self):
        self.inner = MemoryStore()
        self.commits = 0
        self.landed, self.answer = threading.Event(), threading.Event()
        self.closed = False

    async def load(self, message, /):
        return self.inner.load(message)

    async def commit(self, message, /):
        answer = self.inner.commit(message)
        self.commits += 1
        self.landed.set()
        await asyncio.to_thread(self.answer.wait, 10)
        return answer

    async def forget(self, message, /):
        self.inner.forget(message)

    async def list(self, message, /):
        return self.inner.list(message)

    async def lease(self, message, /):
        return self.inner.lease(message)

    async def release(self, message, /):
        self.inner.release(message)

    async def close(self):
        self.closed = True


@pytest.fixture
async def late():
    store = LateStore()
    gantry = AgentGantry(**unlimited(), store=store, session="local")
    bridge = gantry._wiring.settings.bridge
    yield gantry, store
    store.answer.set()
    await gantry.close()
    await bridge.aclose()


def counting(gantry, ran, make_async):
    def body(memory):
        ran.append(1)
        return f"result {memory.add('n', 1)}"

    async def async_body(memory):
        return body(memory)

    gantry.register(gantry.with_memory(async_body if make_async else body), name="count")


async def executed_past_its_time(gantry, store):
    """The result of a call whose commit has landed, but is answered only when the call has timed out."""
    task = asyncio.create_task(gantry.execute(call("count", timeout_ms=100, retry_count=2)))
    assert await asyncio.to_thread(store.landed.wait, 10)
    await asyncio.wait([task], timeout=0.2)  # past the time-out
    assert not task.done()

    store.answer.set()
    return await task


@pytest.mark.parametrize("make_async", [True, False])
async def test_retry_after_a_commit_that_landed_gets_its_result(late, make_async):
    gantry, store = late
    ran = []
    counting(gantry, ran, make_async)
    await gantry.ensure_synced()

    result = await executed_past_its_time(gantry, store)

    assert (result.status, result.result) == (ExecutionStatus.SUCCESS, "result 1")
    assert ran == [1]
    assert store.commits == 1
    assert await remembered(gantry) == {"n": 1}


class Spoilt(NoopTelemetryAdapter):
    """Raises when it is first told that a tool was well, after which the engine runs that again."""

    def __init__(self):
        self.told = 0

    async def record_health_change(self, tool_name, old_health, new_health):
        self.told += 1
        if self.told == 1:
            raise RuntimeError("telemetry")


def appending(gantry, ran, make_async):
    def body(text, memory):
        ran.append(text)
        memory.setdefault("log", []).append(text)
        return f"result {len(ran)}"

    async def async_body(text, memory):
        return body(text, memory)

    gantry.register(gantry.with_memory(async_body if make_async else body), name="append")


@pytest.mark.parametrize("make_async", [True, False])
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "calls-another"])
async def test_retry_of_a_call_that_landed_in_this_process_gets_its_result(make_async, inside):
    async with AgentGantry(**unlimited(), telemetry=Spoilt(), session="local") as gantry:
        ran = []
        appending(gantry, ran, make_async)
        if inside:

            @gantry.with_memory
            def inner(memory: dict) -> None:
                memory.add("inner", 1)

            @gantry.register(name="append")
            @gantry.with_memory
            def outer(text: str, memory: dict) -> str:
                """Have another one called."""
                inner()
                ran.append(text)
                memory.setdefault("log", []).append(text)
                return f"result {len(ran)}"

        result = await gantry.execute(call("append", text="a"))

        assert (result.status, result.result, result.attempt_number) == (ExecutionStatus.SUCCESS, "result 1", 2)
        assert ran == ["a"]
        assert await remembered(gantry) == {**({"inner": 1} if inside else {}), "log": ["a"]}


@pytest.mark.parametrize("make_async", [True, False])
async def test_retry_of_a_call_that_landed_when_it_ran_again_gets_its_result(make_async):
    async with AgentGantry(**unlimited(), telemetry=Spoilt(), session="local") as gantry:
        ran = []

        def body(memory):
            ran.append(1)
            if len(ran) == 1:
                with gantry.independent(), gantry.memory() as quicker:
                    quicker["n"] = "theirs"
            memory["n"] = len(ran)
            return len(ran)

        async def async_body(memory):
            return body(memory)

        gantry.register(gantry.with_memory(on_conflict="retry")(async_body if make_async else body), name="note")

        result = await gantry.execute(call("note"))

        assert (result.status, result.result, result.attempt_number) == (ExecutionStatus.SUCCESS, 2, 2)
        assert await remembered(gantry) == {"n": 2}


@pytest.mark.parametrize("make_async", [True, False])
async def test_retry_of_a_call_that_only_read_gets_its_result(make_async):
    async with AgentGantry(**unlimited(), telemetry=Spoilt(), session="local") as gantry:
        ran = []

        def body(memory):
            ran.append(1)
            return len(ran)

        async def async_body(memory):
            return body(memory)

        gantry.register(gantry.with_memory(async_body if make_async else body), name="look")

        assert await run(gantry, "look") == 1
        assert ran == [1]


@pytest.mark.parametrize("make_async", [True, False])
async def test_retry_of_a_call_whose_commit_failed_runs_the_body_again(make_async):
    ran, broken = [], []

    def clock():
        if len(ran) == 1 and not broken:
            broken.append(1)
            raise RuntimeError("clock")
        return 1000.0

    store = MemoryStore(clock=clock)
    async with AgentGantry(**unlimited(), store=store, session="local") as gantry:

        def body(memory):
            ran.append(1)
            memory["n"] = len(ran)
            return len(ran)

        async def async_body(memory):
            return body(memory)

        gantry.register(gantry.with_memory(ttl=60)(async_body if make_async else body), name="note")

        result = await gantry.execute(call("note"))

        assert (result.status, result.result, result.attempt_number) == (ExecutionStatus.SUCCESS, 2, 2)
        assert await remembered(gantry) == {"n": 2}


@pytest.mark.parametrize("make_async", [True, False])
async def test_retry_after_a_commit_of_nested_calls_that_landed_gets_its_result(late, make_async):
    gantry, store = late
    ran = []

    @gantry.with_memory
    def inner(memory: dict) -> None:
        memory.add("inner", 1)

    def body(memory):
        inner()
        ran.append(1)
        return f"result {memory.add('n', 1)}"

    async def async_body(memory):
        return body(memory)

    gantry.register(gantry.with_memory(async_body if make_async else body), name="count")
    await gantry.ensure_synced()

    result = await executed_past_its_time(gantry, store)

    assert (result.status, result.result) == (ExecutionStatus.SUCCESS, "result 1")
    assert (ran, store.commits) == ([1], 1)
    assert await remembered(gantry) == {"inner": 1, "n": 1}


class BrokenStore(LateStore):
    """Fails at its first commit, with an error of its own."""

    async def commit(self, message, /):
        self.commits += 1
        if self.commits == 1:
            raise RuntimeError("store")
        return self.inner.commit(message)


@pytest.mark.parametrize("make_async", [True, False])
async def test_retry_of_a_call_whose_store_failed_runs_the_body_again(make_async):
    gantry = AgentGantry(**unlimited(), store=BrokenStore(), session="local")
    bridge = gantry._wiring.settings.bridge
    ran = []

    def body(memory):
        ran.append(1)
        memory["n"] = len(ran)
        return len(ran)

    async def async_body(memory):
        return body(memory)

    gantry.register(gantry.with_memory(async_body if make_async else body), name="note")

    result = await gantry.execute(call("note"))

    assert (result.status, result.result, result.attempt_number) == (ExecutionStatus.SUCCESS, 2, 2)
    assert await remembered(gantry) == {"n": 2}
    await gantry.close()
    await bridge.aclose()


def counted(runs):
    def decorator(fn):
        @functools.wraps(fn)
        async def wrapper(*args, **kwargs):
            runs.append(1)
            return await fn(*args, **kwargs)

        return wrapper

    return decorator


@pytest.fixture
def module_of(monkeypatch):
    """Makes a module of a gantry's tools, that another may collect."""

    def make(tools):
        module = types.ModuleType("module_of_tools")
        module.tools = tools
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module.__name__

    return make


@pytest.mark.parametrize("make_async", [True, False])
async def test_retry_of_a_collected_tool_whose_commit_landed_gets_its_result(late, module_of, make_async):
    own, store = late
    ran = []
    counting(own, ran, make_async)

    async with await AgentGantry.from_modules([module_of(own)], **unlimited()) as gantry:
        result = await executed_past_its_time(gantry, store)

    assert (result.status, result.result) == (ExecutionStatus.SUCCESS, "result 1")
    assert (ran, store.commits) == ([1], 1)
    assert await remembered(own) == {"n": 1}


async def test_memory_error_of_a_collected_tool_is_final_and_named(gantry, module_of):
    runs = []

    @gantry.with_memory(scope="user")
    async def needs_a_user(memory) -> str:
        """Need somebody."""
        return "x"

    gantry.register(needs_a_user)
    gantry.register(counted(runs)(needs_a_user), name="wrapped")

    async with await AgentGantry.from_modules([module_of(gantry)], **unlimited()) as other:
        for name in ("needs_a_user", "wrapped"):
            result = await other.execute(call(name))
            assert (result.status, result.error_type) == (ExecutionStatus.FAILURE, "MissingIdentityError")
            assert result.attempt_number == 1
            assert definition(other, name).health.consecutive_failures == 0
    assert runs == [1]


async def test_two_calls_do_not_get_each_others_result(late):
    gantry, store = late
    store.answer.set()
    counter(gantry)

    assert [await run(gantry, "count") for _ in range(3)] == [1, 2, 3]


async def test_nested_call_keeps_a_record_of_its_own(late):
    gantry, store = late
    ran = []

    @gantry.register
    @gantry.with_memory(scope="user")
    async def inner(memory: dict) -> str:
        """Run inside of another."""
        ran.append("inner")
        memory["inner"] = True
        return "inner's"

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> str:
        """Run another."""
        ran.append("outer")
        memory["outer"] = True
        nested = await gantry.execute(call("inner"))
        return f"outer's with {nested.result}"

    store.answer.set()
    async with gantry.session("s1", user="ada"):
        assert await run(gantry, "outer") == "outer's with inner's"

    assert ran == ["outer", "inner"]
    assert await remembered(gantry, session="s1", user="ada") == {"outer": True}
    assert await remembered(gantry, "user", user="ada") == {"inner": True}


async def test_tool_called_directly_inside_another_is_no_retry_of_it(gantry):
    @gantry.register
    @gantry.with_memory(scope="global")
    async def inner(memory: dict) -> int:
        """Run inside of another."""
        return memory.add("n", 1)

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> list:
        """Run another twice."""
        memory["outer"] = True
        handler = gantry._registry.get_handler("default.inner")
        return [await inner(), await handler(), await handler()]

    assert await run(gantry, "outer") == [1, 2, 3]
    assert await remembered(gantry) == {"outer": True}


async def test_failing_nested_call_does_not_mark_the_outer_one(gantry):
    @gantry.register
    @gantry.with_memory(scope="user")
    async def inner(memory: dict) -> None:
        """Fail for want of a user."""

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> str:
        """Run another and fail for another reason."""
        nested = await gantry.execute(call("inner"))
        assert nested.error_type == "MissingIdentityError"
        raise RuntimeError("its own")

    result = await gantry.execute(call("outer", retry_count=0))

    assert (result.error, result.error_type) == ("its own", "RuntimeError")


# Memory errors are final, and not the tool's fault.


async def assert_final(gantry, name, error_type, **arguments):
    for _ in range(6):  # more than open the circuit breaker
        result = await gantry.execute(call(name, **arguments))
        assert (result.status, result.error_type) == (ExecutionStatus.FAILURE, error_type)
        assert result.attempt_number == 1
    health = definition(gantry, name).health
    assert health.total_calls == 0
    assert health.consecutive_failures == 0
    assert not health.circuit_breaker_open
    return result.error


async def test_conflict_is_final(gantry):
    ran = []

    @gantry.register
    @gantry.with_memory
    async def assign(memory: dict) -> None:
        """Assign what somebody else assigns, too."""
        ran.append(1)
        memory["plan"] = f"s3cr3t {len(ran)}"
        thread = threading.Thread(target=interfere, args=(f"th31rs {len(ran)}",))
        thread.start()
        thread.join()

    def interfere(value):
        with gantry.memory(session="sess10n-1", user="ada-l0velace") as memory:
            memory["plan"] = value

    async with gantry.session("sess10n-1", user="ada-l0velace"):
        error = await assert_final(gantry, "assign", "MemoryConflictError")

    assert len(ran) == 6
    assert "'plan'" in error
    assert "merge" in error
    assert all(text not in error for text in ("s3cr3t", "th31rs", "sess10n-1", "ada-l0velace"))
    assert len(error) < 400
    assert await remembered(gantry, session="sess10n-1", user="ada-l0velace") == {"plan": "th31rs 6"}


async def test_missing_identity_is_final_and_the_body_never_runs(gantry):
    ran = []

    @gantry.register
    @gantry.with_memory(scope="user")
    async def prefer(memory: dict) -> None:
        """Prefer something."""
        ran.append(1)

    async with gantry.session("sess10n-1"):
        error = await assert_final(gantry, "prefer", "MissingIdentityError")

    assert ran == []
    assert "no user is known" in error
    assert "sess10n-1" not in error


async def test_value_that_cannot_be_stored_is_final(gantry):
    ran = note_and_spoil(gantry)

    error = await assert_final(gantry, "spoil", "UnstorableValueError", text="s3cr3t")

    assert len(ran) == 6
    assert "memory['spoilt']" in error


async def test_closed_store_is_final_and_the_body_never_runs():
    gantry = AgentGantry(**unlimited(), session="local")
    ran = note_and_spoil(gantry)
    await gantry.close()

    error = await assert_final(gantry, "spoil", "StoreClosedError", text="x")

    assert ran == []
    assert "closed" in error


async def test_memory_passed_by_the_model_is_final(gantry):
    ran = []

    @gantry.register
    @gantry.with_memory
    async def anything(memory: dict, **options) -> dict:
        """Take any option."""
        ran.append(1)
        return dict(memory)

    error = await assert_final(gantry, "anything", "InjectedArgumentError", memory={"admin": "s3cr3t"})

    assert ran == []
    assert "'memory'" in error
    assert "s3cr3t" not in error
    assert await run(gantry, "anything", other=1) == {}


async def test_conflict_that_is_retried_runs_the_body_again(gantry):
    ran = []

    @gantry.register
    @gantry.with_memory(on_conflict="retry")
    async def assign(memory: dict) -> None:
        """Assign what somebody else assigned, too."""
        ran.append(memory.get("plan"))
        memory["plan"] = "ours"
        if len(ran) < 3:
            thread = threading.Thread(target=interfere, args=(f"theirs {len(ran)}",))
            thread.start()
            thread.join()

    def interfere(value):
        with gantry.memory(session="local") as memory:
            memory["plan"] = value

    await run(gantry, "assign")

    assert ran == [None, "theirs 1", "theirs 2"]
    assert await remembered(gantry) == {"plan": "ours"}


# The model cannot reach in.


async def test_model_cannot_pass_the_memory(gantry):
    counter(gantry)

    result = await gantry.execute(call("count", memory={"n": 100}))

    assert result.status is ExecutionStatus.FAILURE
    assert await remembered(gantry) == {}


@pytest.mark.parametrize("way", [by_execute, by_batch, by_tool_calls, by_ainvoke, by_invoke])
async def test_model_cannot_choose_whose_memory_it_is(gantry, way):
    @gantry.register
    @gantry.with_memory(scope="user", into="preferences")
    @gantry.with_memory
    async def write(
        user: str,
        session: str,
        session_id: str,
        scope: str,
        tenant: str,
        memory: dict,
        preferences: dict,
    ) -> str:
        """Write something."""
        memory["written"] = preferences["written"] = True
        return f"{user} {session} {session_id} {scope} {tenant}"

    chosen = {"user": "bob", "session": "s2", "session_id": "s2", "scope": "global", "tenant": "evil"}
    async with gantry.session("s1", user="ada", tenant="acme"):
        assert await way(gantry, "write", chosen) == "bob s2 s2 global evil"

    assert await remembered(gantry, session="s1", user="ada") == {"written": True}
    assert await remembered(gantry, "user", user="ada") == {"written": True}
    assert await remembered(gantry, session="s2") == {}
    assert await remembered(gantry, "user", user="bob") == {}
    assert await remembered(gantry, "global") == {}


# Decorators, methods, and what the user gets back.


@pytest.mark.filterwarnings("ignore:.*is registered without with_memory")
async def test_with_memory_above_register_is_refused_with_what_to_do(gantry):
    def tool(memory: dict) -> None:
        """Remember it."""

    with pytest.raises(DeclarationError, match="put with_memory below register"):
        gantry.with_memory(gantry.register(tool))


async def test_stacked_decorators_are_one_tool_and_one_commit(gantry):
    @gantry.register
    @gantry.with_memory(scope="user", into="preferences")
    @gantry.with_memory(scope="session")
    async def both(fail: bool, memory: dict, preferences: dict) -> None:
        """Write to both."""
        memory["x"] = 1
        preferences["x"] = object() if fail else 1

    async with gantry.session("s1", user="ada"):
        result = await gantry.execute(call("both", fail=True))
        assert result.error_type == "UnstorableValueError"
        assert await remembered(gantry) == {}

        await run(gantry, "both", fail=False)
        assert await remembered(gantry) == await remembered(gantry, "user") == {"x": 1}
    assert list(definition(gantry, "both").parameters_schema["properties"]) == ["fail"]


async def test_bound_methods_are_tools(gantry):
    class Notes:
        def __init__(self, prefix):
            self.prefix = prefix

        @gantry.with_memory
        async def note(self, text: str, memory: dict) -> list:
            """Note a text."""
            memory.setdefault("notes", []).append(self.prefix + text)
            return memory["notes"]

        @gantry.with_memory
        def note_sync(self, text: str, memory: dict) -> list:
            """Note a text."""
            memory.setdefault("notes", []).append(self.prefix + text)
            return memory["notes"]

    notes = Notes("> ")
    gantry.register(notes.note)
    gantry.register(notes.note_sync)

    assert await run(gantry, "note", text="a") == ["> a"]
    assert await run(gantry, "note_sync", text="b") == ["> a", "> b"]
    for name in ("note", "note_sync"):
        assert list(definition(gantry, name).parameters_schema["properties"]) == ["text"]


@pytest.mark.parametrize("make_async", [True, False])
async def test_handler_of_a_bound_method_takes_arguments_by_position(gantry, make_async):
    class Notes:
        def sync_note(self, memory: dict, text: str, more: str) -> list:
            """Note a text."""
            memory.setdefault("notes", []).append(text + more)
            return memory["notes"]

        async def async_note(self, memory: dict, text: str, more: str) -> list:
            """Note a text."""
            return self.sync_note(memory, text, more)

        tool = gantry.with_memory(async_note if make_async else sync_note)

    gantry.register(Notes().tool, name="note")
    handler = gantry._registry.get_handler("default.note")

    assert await handler("a", "b") == ["ab"]
    assert await handler("c", more="d") == ["ab", "cd"]
    assert await handler(text="e", more="f") == ["ab", "cd", "ef"]


@pytest.mark.parametrize("make_async", [True, False])
async def test_handler_leaves_the_context_as_it_was(gantry, make_async):
    appending(gantry, [], make_async)
    handler = gantry._registry.get_handler("default.append")
    before = dict(contextvars.copy_context())

    await handler(text="a")

    assert dict(contextvars.copy_context()) == before


async def test_sync_tool_that_was_registered_stays_sync_and_callable(gantry):
    @gantry.register
    @gantry.with_memory
    def count(memory: dict) -> int:
        """Count the calls."""
        return memory.add("n", 1)

    assert not inspect.iscoroutinefunction(count)
    assert (count(), await run(gantry, "count"), await asyncio.to_thread(count)) == (1, 2, 3)


async def test_sync_tool_runs_in_a_thread_and_leaves_the_loop_free(gantry):
    threads = []
    go_on = threading.Event()

    @gantry.register
    @gantry.with_memory
    def where(memory: dict) -> None:
        """Tell where it runs."""
        threads.append(threading.get_ident())
        assert go_on.wait(10)

    task = asyncio.create_task(gantry.execute(call("where")))
    while not threads:
        await asyncio.sleep(0.001)
    go_on.set()

    assert (await task).status is ExecutionStatus.SUCCESS
    assert threads != [threading.get_ident()]


async def test_arguments_are_rebuilt_into_the_types_that_the_tool_declares(gantry):
    @gantry.register
    @gantry.with_memory
    def tags(tags: set[str], memory: dict) -> str:
        """Keep tags."""
        memory["tags"] = memory.get("tags", set()) | tags
        return type(tags).__name__

    assert await run(gantry, "tags", tags=["a", "b"]) == "set"
    assert await remembered(gantry) == {"tags": {"a", "b"}}


async def test_tool_without_memory_is_left_alone(gantry):
    @gantry.register
    def double(n: int) -> int:
        """Double a number."""
        return 2 * n

    assert gantry._registry.get_handler("default.double") is double
    assert await run(gantry, "double", n=4) == 8


# Identity.


@pytest.mark.parametrize("make_async", [True, False])
async def test_identity_reaches_a_tool_through_a_frameworks_worker_thread(gantry, make_async):
    def body(memory):
        memory["here"] = True
        return current_identity()

    async def async_body(memory):
        return body(memory)

    gantry.register(gantry.with_memory(async_body if make_async else body), name="whoami")
    spec = spec_from_tool(gantry, definition(gantry, "whoami"))

    async def caller(session):
        async with gantry.session(session, user="ada"):
            return await asyncio.to_thread(spec.invoke, {})

    found = await asyncio.gather(*(caller(f"s{i}") for i in range(8)))

    assert found == [Identity(f"s{i}", "ada") for i in range(8)]
    for i in range(8):
        assert await remembered(gantry, session=f"s{i}", user="ada") == {"here": True}


async def test_sync_program_uses_the_framework_bridge(gantry):
    counter(gantry)
    spec = spec_from_tool(gantry, definition(gantry, "count"))
    found = []

    def program():
        with gantry.session("s1"):
            found.append([spec.invoke({}), spec.invoke({})])
        found.append(spec.invoke({}))

    thread = threading.Thread(target=program)
    thread.start()
    await asyncio.to_thread(thread.join)

    assert found == [[1, 2], 1]


async def test_session_is_unknown_where_nobody_said_so():
    async with AgentGantry(**unlimited()) as gantry:
        counter(gantry)

        result = await gantry.execute(call("count"))

        assert result.error_type == "MissingIdentityError"
        assert 'AgentGantry(session="local")' in result.error


async def test_sessions_at_once_keep_apart(gantry):
    counter(gantry)

    async def one(session, times):
        async with gantry.session(session):
            for _ in range(times):
                await run(gantry, "count")

    await asyncio.gather(*(one(f"s{i}", i) for i in range(1, 6)))

    for i in range(1, 6):
        assert await remembered(gantry, session=f"s{i}") == {"n": i}


# The tool's name is an address.


async def test_registered_name_is_the_address_of_a_tools_own_memory():
    store = MemoryStore()
    first = AgentGantry(**unlimited(), store=store)

    def define(gantry, fn_name="count", **register):
        async def count(memory: dict) -> int:
            """Count the calls."""
            return memory.add("n", 1)

        count.__name__ = count.__qualname__ = fn_name
        gantry.register(gantry.with_memory(scope="tool")(count), **register)

    define(first, name="counter", namespace="billing")
    assert await first.execute(ToolCall(tool_name="counter", namespace="billing", arguments={}))
    await first.close()

    second = AgentGantry(**unlimited(), store=store)
    define(second, "quite_another", name="counter", namespace="billing")
    define(second, "count", name="counter", namespace="shipping")

    assert await run(second, "billing.counter") == 2
    assert await run(second, "shipping.counter") == 1
    assert await remembered(second, "tool", tool="billing.counter") == {"n": 2}


async def test_declared_name_goes_before_the_registered_one():
    async with AgentGantry(**unlimited()) as gantry:
        counter(gantry, scope="tool", name="for ever")
        await run(gantry, "count")

        assert await remembered(gantry, "tool", tool="for ever") == {"n": 1}


async def test_name_of_a_tool_that_was_not_registered_is_its_qualified_name():
    async with AgentGantry(**unlimited()) as gantry:

        @gantry.with_memory(scope="tool")
        async def count(memory: dict) -> int:
            return memory.add("n", 1)

        await count()

        assert await remembered(gantry, "tool", tool=count.__qualname__) == {"n": 1}


async def test_two_tools_of_one_name_with_a_memory_of_their_own_are_refused():
    gantry = AgentGantry(**unlimited())
    counter(gantry, scope="tool", name="one")

    with pytest.raises(DeclarationError, match="two different tools"):

        @gantry.register
        @gantry.with_memory(scope="tool", name="one")
        async def other(memory: dict) -> None:
            """Be another tool."""


# Closing.


@pytest.mark.parametrize("close", ["close", "aclose"])
async def test_closing_twice_is_closing_once(close):
    gantry = AgentGantry(**unlimited(), session="local")
    count = counter(gantry)
    await run(gantry, "count")

    await getattr(gantry, close)()
    await getattr(gantry, close)()

    with pytest.raises(StoreClosedError):
        await count()


async def test_block_closes_the_gantry():
    async with AgentGantry(**unlimited(), session="local") as gantry:
        assert type(gantry) is AgentGantry
        count = counter(gantry)
        assert await count() == 1

    with pytest.raises(StoreClosedError):
        await count()


async def test_store_that_was_handed_in_stays_open():
    store = MemoryStore()
    async with AgentGantry(**unlimited(), store=store, session="local") as gantry:
        counter(gantry)
        await run(gantry, "count")

    with Gantry(store, session="local") as other, other.memory() as memory:
        assert memory == {"n": 1}


async def test_async_store_that_was_handed_in_stays_open(late):
    gantry, store = late
    store.answer.set()
    counter(gantry)
    await run(gantry, "count")

    await gantry.close()

    assert not store.closed


# What is private in agent-gantry and used here. When one of these fails, agent-gantry has moved.


async def test_agent_gantry_is_of_the_range_that_is_known_to_work():
    version = importlib.metadata.version("agent-gantry")
    required = importlib.metadata.requires("agent-gantry-state")

    assert version.startswith("0.20.")
    assert any(each.startswith("agent-gantry") and ">=0.20" in each and "<0.21" in each for each in required)


async def test_registry_has_what_is_used_of_it():
    upstream = agent_gantry.AgentGantry(**unlimited())

    assert type(upstream._registry) is ToolRegistry
    assert upstream._registry._handlers == {}
    assert upstream._executor._registry is upstream._registry
    assert upstream._sync_manager is not None
    assert list(inspect.signature(ToolRegistry.register_tool).parameters) == ["self", "tool", "handler"]
    assert list(inspect.signature(ToolRegistry.register_handler).parameters) == ["self", "key", "handler"]

    def handler():
        """Do nothing."""

    upstream.register(handler)
    assert upstream._registry._handlers == {"default.handler": handler}


async def test_engine_has_what_is_used_of_it():
    upstream = agent_gantry.AgentGantry(**unlimited())

    assert type(upstream._executor) is ExecutionEngine
    assert inspect.iscoroutinefunction(ExecutionEngine.execute)
    assert list(inspect.signature(ExecutionEngine.execute).parameters) == ["self", "call"]
    assert issubclass(ArgumentReconstructionError, Exception)


async def test_engine_runs_a_batch_through_its_own_execute():
    seen = []

    class Engine(ExecutionEngine):
        async def execute(self, call):
            seen.append(call.tool_name)
            return await super().execute(call)

    upstream = agent_gantry.AgentGantry(**unlimited())
    upstream._executor.__class__ = Engine

    @upstream.register
    def nothing() -> None:
        """Do nothing."""

    await upstream.execute(call("nothing"))
    await upstream.execute_batch(BatchToolCall(calls=[call("nothing")]))

    assert seen == ["nothing", "nothing"]


async def test_engine_takes_an_error_of_that_class_as_final():
    upstream = agent_gantry.AgentGantry(**unlimited())
    ran = []

    class Final(ArgumentReconstructionError):
        pass

    @upstream.register
    async def fails() -> None:
        """Fail in the end."""
        ran.append(1)
        raise Final("final")

    result = await upstream.execute(call("fails"))

    assert (result.status, result.error, ran) == (ExecutionStatus.FAILURE, "final", [1])
    assert definition(upstream, "fails").health.total_calls == 0


async def test_our_classes_are_in_place():
    gantry = AgentGantry(**unlimited())

    assert isinstance(gantry._registry, ToolRegistry)
    assert type(gantry._registry) is not ToolRegistry
    assert isinstance(gantry._executor, ExecutionEngine)
    assert type(gantry._executor) is not ExecutionEngine
    assert issubclass(MemoryConflictError, StateError)


async def test_registered_twin_looks_like_the_tool_and_is_async(gantry):
    @gantry.register
    @gantry.with_memory
    def tool(text: str, memory: dict) -> str:
        """Say something."""
        return text

    twin = gantry._registry.get_handler("default.tool")

    assert inspect.iscoroutinefunction(twin)
    assert str(inspect.signature(twin)) == str(inspect.signature(tool)) == "(text: str) -> str"
    assert (twin.__name__, twin.__doc__, twin.__module__) == ("tool", "Say something.", __name__)
    assert twin.__wrapped__ is tool


# A decorator of somebody's between register and with_memory.


def logged(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


async def test_wrapped_sync_tool_that_outlives_its_timeout_stores_nothing(gantry):
    release, ended = threading.Event(), threading.Semaphore(0)

    @gantry.register
    @logged
    @gantry.with_memory
    def slow(memory) -> str:
        """Wait, then write."""
        release.wait(10)
        memory["late"] = True
        return "done"

    @gantry.register
    @gantry.with_memory
    def outer(memory) -> str:
        """Call another tool directly, and outlive the timeout."""
        try:
            return slow()
        finally:
            ended.release()

    for tool in ("slow", "outer"):
        result = await gantry.execute(call(tool, timeout_ms=100, retry_count=1))
        assert result.status is ExecutionStatus.TIMEOUT

    release.set()
    for _ in range(2):
        assert await asyncio.to_thread(ended.acquire, timeout=10)
    # A call of its own after the threads that were given up have ended, on the same pool of threads.
    await asyncio.gather(*(asyncio.to_thread(int) for _ in range(64)))

    assert await remembered(gantry) == {}


async def test_wrapped_sync_tool_that_outlives_an_attempt_stores_nothing_though_the_next_one_succeeds(gantry):
    release, ended, tried = threading.Event(), threading.Event(), []

    @gantry.with_memory
    def note(text: str, memory: dict) -> None:
        memory.setdefault("notes", []).append(text)

    @gantry.register
    @logged
    @gantry.with_memory(scope="global")
    def slow(memory: dict) -> str:
        """Take too long, but only once."""
        tried.append(1)
        if len(tried) == 1:
            release.wait(10)
            try:
                with gantry.independent():
                    note("late")
            finally:
                ended.set()
        return "done"

    assert await run(gantry, "slow", timeout_ms=200, retry_count=1) == "done"
    release.set()
    assert await asyncio.to_thread(ended.wait, 10)

    assert await remembered(gantry) == {}


async def test_function_without_memory_that_outlives_its_call_has_nothing_written(gantry):
    release, ended, errors = threading.Event(), threading.Event(), []

    @gantry.with_memory
    def direct(memory) -> None:
        memory["late"] = True

    @gantry.register
    @gantry.with_memory
    def executed(memory) -> str:
        """Write something."""
        memory["late"] = True

    @gantry.register
    def plain() -> str:
        """Have others write, when it is too late."""
        release.wait(10)
        try:
            direct()
        except OrphanedCallError as error:
            errors.append(type(error).__name__)
        errors.append(asyncio.run(gantry.execute(call("executed"))).error_type)
        ended.set()

    result = await gantry.execute(call("plain", timeout_ms=100, retry_count=0))
    assert result.status is ExecutionStatus.TIMEOUT
    release.set()
    assert await asyncio.to_thread(ended.wait, 10)

    assert errors == ["OrphanedCallError"] * 2
    assert await remembered(gantry) == {}


async def test_function_without_memory_writes_in_the_background_after_it_has_succeeded(gantry):
    release, ended = threading.Event(), threading.Event()

    @gantry.with_memory
    def direct(memory) -> None:
        memory["late"] = True

    @gantry.register
    def plain() -> str:
        """Have another write, later."""

        def later():
            release.wait(10)
            direct()
            ended.set()

        threading.Thread(target=contextvars.copy_context().run, args=(later,)).start()
        return "done"

    assert await run(gantry, "plain") == "done"
    release.set()
    assert await asyncio.to_thread(ended.wait, 10)

    assert await remembered(gantry) == {"late": True}


@pytest.mark.parametrize("nested", [False, True])
async def test_memory_error_out_of_a_task_group_is_final(gantry, nested):
    runs = []

    @gantry.with_memory(scope="user")
    async def child(memory):
        memory["x"] = 1

    @gantry.register
    @gantry.with_memory
    async def parent(memory) -> None:
        """Call others at once."""
        runs.append(1)
        async with anyio.create_task_group() as group:
            group.start_soon(child)
            if nested:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(child)

    result = await gantry.execute(call("parent", retry_count=2))

    assert (result.status, result.error_type) == (ExecutionStatus.FAILURE, "MissingIdentityError")
    assert (result.attempt_number, runs) == (1, [1])
    assert definition(gantry, "parent").health.consecutive_failures == 0


async def test_memory_error_in_a_task_group_beside_an_error_of_the_tools_own_is_not_final(gantry):
    runs = []

    @gantry.with_memory(scope="user")
    async def child(memory):
        memory["x"] = 1

    @gantry.register
    @gantry.with_memory
    async def parent(memory) -> str:
        """Call others at once."""
        runs.append(1)
        if len(runs) == 2:
            return "ran again"

        async def fails():
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("the tool's own")

        async with anyio.create_task_group() as group:
            group.start_soon(fails)
            await anyio.lowlevel.checkpoint()
            group.start_soon(child)
        return "not reached"

    result = await gantry.execute(call("parent", retry_count=2))

    assert (result.status, result.result, runs) == (ExecutionStatus.SUCCESS, "ran again", [1, 1])


async def test_memory_error_of_a_wrapped_tool_is_final(gantry):
    runs = []

    @gantry.register
    @counted(runs)
    @gantry.with_memory(scope="user")
    async def needs_a_user(memory) -> str:
        """Need somebody."""
        return "x"

    result = await gantry.execute(call("needs_a_user"))

    assert (result.status, result.error_type) == (ExecutionStatus.FAILURE, "MissingIdentityError")
    assert len(runs) == 1
    assert (await gantry.get_tool("needs_a_user")).health.consecutive_failures == 0


async def test_wrapped_tool_shows_no_memory_and_remembers(gantry):
    @gantry.register
    @logged
    @gantry.with_memory
    def note(text: str, memory) -> int:
        """Take a note."""
        memory.setdefault("notes", []).append(text)
        return len(memory["notes"])

    await run(gantry, "note", text="a")

    assert await run(gantry, "note", text="b") == 2
    assert list((await gantry.get_tool("note")).parameters_schema["properties"]) == ["text"]


async def test_error_of_a_resolver_is_final_and_its_words_stay_here():
    asked = []

    def directory(request):
        asked.append(1)
        return {}[request.identity.user]

    async with AgentGantry(**unlimited(), resolvers=[directory]) as gantry:

        @gantry.register
        @gantry.with_memory
        async def tool(memory) -> str:
            """Do something."""
            return "x"

        async with gantry.session("s", user="ada-secret"):
            result = await gantry.execute(call("tool"))

    assert result.error_type == "ResolverError"
    assert "ada-secret" not in result.error
    assert len(asked) == 1


async def test_name_of_a_deleted_tool_is_free(gantry):
    def first(memory) -> int:
        """Count one more."""
        return memory.add("n", 1)

    def second(memory) -> int:
        """Count, otherwise."""
        return memory.add("n", 10)

    kept = gantry.with_memory(scope="tool")(first)
    gantry.register(kept, name="cnt")
    await gantry.delete_tool("cnt")

    gantry.register(gantry.with_memory(scope="tool")(second), name="cnt")

    assert await run(gantry, "cnt") == 10


async def test_name_of_a_deleted_tool_below_another_decorator_is_free(gantry):
    def first(memory) -> int:
        """Count one more."""
        return memory.add("n", 1)

    def second(memory) -> int:
        """Count, otherwise."""
        return memory.add("n", 10)

    kept = gantry.with_memory(scope="tool", name="cnt")(first)
    gantry.register(logged(kept), name="cnt")
    assert await run(gantry, "cnt") == 1
    await gantry.delete_tool("cnt")

    gantry.register(gantry.with_memory(scope="tool", name="cnt")(second), name="cnt")

    assert await run(gantry, "cnt") == 11


async def test_name_of_a_deleted_tool_that_another_gantry_collected_is_free(gantry, module_of):
    @gantry.register
    @gantry.with_memory(scope="tool", name="cnt")
    def first(memory) -> int:
        """Count one more."""
        return memory.add("n", 1)

    async with await AgentGantry.from_modules([module_of(gantry)], **unlimited()) as other:
        assert await run(other, "first") == 1
        await other.delete_tool("first")

    @gantry.register
    @gantry.with_memory(scope="tool", name="cnt")
    def second(memory) -> int:
        """Count, otherwise."""
        return memory.add("n", 10)

    assert await run(gantry, "second") == 11


def forgetful(memory: dict) -> int:
    """Count what is remembered."""
    return len(memory)


@pytest.mark.parametrize("stateful", [False, True], ids=["bare", "called"])
async def test_memory_without_with_memory_is_warned_of(gantry, stateful):
    with pytest.warns(StateWarning, match="forgetful is registered without with_memory.*put with_memory below register"):
        (gantry.register() if stateful else gantry.register)(forgetful)


async def test_parameter_of_that_name_and_another_kind_is_not_warned_of(gantry):
    def tool(memory: str) -> str:
        """Write a memoir."""
        return memory

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gantry.register(tool)
