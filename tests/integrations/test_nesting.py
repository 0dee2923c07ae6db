"""Tools that call tools on the real agent-gantry: in the body itself, in its thread, and through the engine."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
from agent_gantry import ToolCall
from agent_gantry.schema.execution import BatchToolCall, ExecutionStatus
from executions import unlimited
from support import Blocking

from agent_gantry_state import AgentGantry, Gantry, MemoryConflictError, OrphanedCallError, nesting

pytestmark = pytest.mark.anyio

WAIT = 10


class Boom(Exception):
    """The error of a tool's own."""


@pytest.fixture(params=["short", "general", "plain"])
async def gantry(request):
    store = Blocking() if request.param == "plain" else "memory://"
    # A resolver of its own keeps a gantry off the short path.
    resolvers = [lambda _: None] if request.param == "general" else []
    async with AgentGantry(**unlimited(), session="local", user="ada", store=store, resolvers=resolvers) as gantry:
        yield gantry
    assert nesting.CURRENT.get() is None


def request(tool, /, timeout_ms=None, **arguments):
    settings = {} if timeout_ms is None else {"timeout_ms": timeout_ms}
    return ToolCall(tool_name=tool, arguments=arguments, retry_count=0, **settings)


async def run(gantry, tool, /, **arguments):
    result = await gantry.execute(request(tool, **arguments))
    assert result.status is ExecutionStatus.SUCCESS, result.error
    return result.result


async def remembered(gantry, scope="session"):
    """What is committed, asked from outside of every call."""
    with gantry.independent():
        async with gantry.memory(scope, session="local", user="ada") as memory:
            return dict(memory)


def log_tools(gantry):
    """The same small tools, sync and async, in the session's and in the user's memory."""

    def body(text, fail, memory):
        memory.setdefault("log", []).append(text)
        memory.add("n")
        if fail:
            raise Boom

    @gantry.register
    @gantry.with_memory
    async def note(text: str, memory: dict, fail: bool = False) -> str:
        """Note a text down."""
        body(text, fail, memory)
        return text

    @gantry.register
    @gantry.with_memory
    def note_sync(text: str, memory: dict, fail: bool = False) -> str:
        """Note a text down in a thread."""
        body(text, fail, memory)
        return text

    @gantry.register
    @gantry.with_memory(scope="user")
    async def note_user(text: str, memory: dict, fail: bool = False) -> str:
        """Note a text down for a user."""
        body(text, fail, memory)
        return text

    return note, note_sync, note_user


async def test_nested_execute_is_a_savepoint(gantry):
    log_tools(gantry)
    seen = []

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict, fail: bool = False) -> list:
        """Have others note things down."""
        memory["log"] = log = ["outer"]
        for tool in ("note", "note_sync", "note_user"):
            assert await run(gantry, tool, text=tool) == tool
            failed = await gantry.execute(request(tool, text="lost", fail=True))
            assert failed.status is ExecutionStatus.FAILURE
        assert memory["log"] is log
        seen.append((await remembered(gantry), await remembered(gantry, "user")))
        log.append("end")
        if fail:
            raise Boom
        return list(log)

    failed = await gantry.execute(request("outer", fail=True))
    assert failed.status is ExecutionStatus.FAILURE
    assert (await remembered(gantry), await remembered(gantry, "user")) == ({}, {})

    log = ["outer", "note", "note_sync", "end"]
    assert await run(gantry, "outer") == log
    assert seen == [({}, {})] * 2
    assert await remembered(gantry) == {"log": log, "n": 2}
    assert await remembered(gantry, "user") == {"log": ["note_user"], "n": 1}


async def test_direct_calls_in_a_body_are_savepoints(gantry):
    note, note_sync, _ = log_tools(gantry)

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> int:
        """Call others directly."""
        await note("a")
        note_sync("b")
        await asyncio.to_thread(note_sync, "c")
        for call in (lambda: note("lost", fail=True), lambda: asyncio.to_thread(note_sync, "lost", fail=True)):
            with pytest.raises(Boom):
                await call()
        assert await remembered(gantry) == {}
        return memory["n"]

    assert await run(gantry, "outer") == 3
    assert await remembered(gantry) == {"log": ["a", "b", "c"], "n": 3}


async def test_sync_tool_calls_sync_tool_in_its_thread(gantry):
    _, note_sync, _ = log_tools(gantry)
    threads = []

    @gantry.register
    @gantry.with_memory
    def outer(memory: dict, fail: bool = False) -> list:
        """Call another in this thread."""
        threads.append(threading.current_thread())
        memory["log"] = log = ["outer"]
        note_sync("a")
        with contextlib.suppress(Boom):
            note_sync("lost", fail=True)
        assert log == ["outer", "a"]
        if fail:
            raise Boom
        return list(memory["log"])

    assert (await gantry.execute(request("outer", fail=True))).status is ExecutionStatus.FAILURE
    assert await remembered(gantry) == {}
    assert await run(gantry, "outer") == ["outer", "a"]
    assert await remembered(gantry) == {"log": ["outer", "a"], "n": 1}
    assert threading.main_thread() not in threads


async def test_sync_tool_runs_the_engine_in_a_loop_of_its_own(gantry):
    log_tools(gantry)

    @gantry.register
    @gantry.with_memory
    def outer(memory: dict, fail: bool = False) -> list:
        """Have another loop run another tool."""
        memory["log"] = ["outer"]
        asyncio.run(run(gantry, "note", text="a"))
        if fail:
            raise Boom
        return list(memory["log"])

    assert (await gantry.execute(request("outer", fail=True))).status is ExecutionStatus.FAILURE
    assert await remembered(gantry) == {}
    assert await run(gantry, "outer") == ["outer", "a"]
    assert await remembered(gantry) == {"log": ["outer", "a"], "n": 1}


async def test_three_levels_through_the_engine(gantry):
    log_tools(gantry)

    @gantry.register
    @gantry.with_memory
    def middle(memory: dict, fail: bool) -> int:
        """Call the inner one."""
        memory["log"].append("middle")
        asyncio.run(run(gantry, "note_sync", text="inner"))
        if fail:
            raise Boom
        return memory["n"]

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> list:
        """Call the middle one."""
        memory["log"] = ["outer"]
        assert (await gantry.execute(request("middle", fail=True))).status is ExecutionStatus.FAILURE
        assert memory == {"log": ["outer"]}
        assert await run(gantry, "middle", fail=False) == 1
        return list(memory["log"])

    assert await run(gantry, "outer") == ["outer", "middle", "inner"]
    assert await remembered(gantry) == {"log": ["outer", "middle", "inner"], "n": 1}


@pytest.mark.parametrize("how", ["gather", "batch"])
async def test_parallel_children_merge(gantry, how):
    log_tools(gantry)

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> int:
        """Have many note things down at once."""
        memory["log"] = log = []
        calls = [request(("note", "note_sync")[i % 2], text=str(i)) for i in range(8)]
        if how == "gather":
            results = await asyncio.gather(*(gantry.execute(call) for call in calls))
        else:
            results = (await gantry.execute_batch(BatchToolCall(calls=calls))).results
        assert {result.status for result in results} == {ExecutionStatus.SUCCESS}
        assert memory["log"] is log
        return memory["n"]

    assert await run(gantry, "outer") == 8
    after = await remembered(gantry)
    assert sorted(after["log"]) == [str(i) for i in range(8)]
    assert after["n"] == 8


async def test_a_childs_conflict_is_final_for_the_child_only(gantry):
    begun, go = asyncio.Event(), asyncio.Event()

    @gantry.register
    @gantry.with_memory
    async def child(memory: dict) -> None:
        """Write what the parent writes, too."""
        memory["x"] = "child"
        begun.set()
        await go.wait()

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> str:
        """Overtake the child."""
        task = asyncio.create_task(gantry.execute(ToolCall(tool_name="child", arguments={}, retry_count=3)))
        await begun.wait()
        memory["x"] = "outer"
        go.set()
        result = await task
        assert (result.status, result.attempt_number) == (ExecutionStatus.FAILURE, 1)
        return result.error_type

    assert await run(gantry, "outer") == MemoryConflictError.__name__
    assert await remembered(gantry) == {"x": "outer"}


async def test_a_retried_child_counts_once(gantry):
    attempts = []

    @gantry.register
    @gantry.with_memory
    async def flaky(memory: dict) -> int:
        """Fail at first."""
        attempts.append(memory.add("n"))
        if len(attempts) < 3:
            raise Boom
        return memory["n"]

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> int:
        """Call what fails at first."""
        memory["n"] = 10
        result = await gantry.execute(ToolCall(tool_name="flaky", arguments={}, retry_count=3))
        assert (result.status, result.attempt_number) == (ExecutionStatus.SUCCESS, 3)
        return memory["n"]

    assert await run(gantry, "outer") == 11
    assert attempts == [11, 11, 11]
    assert await remembered(gantry) == {"n": 11}


async def test_a_retried_parent_does_not_double_its_children(gantry):
    log_tools(gantry)
    attempts = []

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> None:
        """Fail at first, after a child has succeeded."""
        await run(gantry, "note_sync", text="child")
        attempts.append(None)
        if len(attempts) < 3:
            raise Boom

    result = await gantry.execute(ToolCall(tool_name="outer", arguments={}, retry_count=3))

    assert (result.status, result.attempt_number) == (ExecutionStatus.SUCCESS, 3)
    assert await remembered(gantry) == {"log": ["child"], "n": 1}


@pytest.mark.parametrize("make_async", [True, False])
async def test_engine_timeout_of_the_child_only(gantry, make_async):
    go, ended = threading.Event(), threading.Event()

    if make_async:

        @gantry.register(name="slow")
        @gantry.with_memory
        async def slow(memory: dict) -> None:
            """Take too long."""
            memory["log"].append("lost")
            ended.set()
            await asyncio.Event().wait()
    else:

        @gantry.register(name="slow")
        @gantry.with_memory
        def slow(memory: dict) -> None:
            """Take too long in a thread."""
            memory["log"].append("lost")
            go.wait(WAIT)
            memory["log"].append("late")
            ended.set()

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> list:
        """Call what takes too long."""
        memory["log"] = ["outer"]
        result = await gantry.execute(request("slow", timeout_ms=100))
        assert result.status is ExecutionStatus.TIMEOUT
        go.set()
        assert await asyncio.to_thread(ended.wait, WAIT)
        memory["log"].append("end")
        return list(memory["log"])

    assert await run(gantry, "outer") == ["outer", "end"]
    assert await remembered(gantry) == {"log": ["outer", "end"]}


async def test_engine_timeout_of_the_parent_with_its_thread_still_calling_tools(gantry):
    _, note_sync, _ = log_tools(gantry)
    go, errors, ended = threading.Event(), [], threading.Event()

    @gantry.register
    @gantry.with_memory
    def outer(memory: dict) -> None:
        """Call others for too long."""
        note_sync("early")
        go.wait(WAIT)
        for call in (lambda: note_sync("late"), lambda: asyncio.run(gantry.execute(request("note", text="late")))):
            try:
                result = call()
            except OrphanedCallError as error:
                errors.append(type(error).__name__)
            else:
                errors.append(result.error_type)
        with gantry.independent(), contextlib.suppress(OrphanedCallError):
            # Its attempt was given up all the same.
            note_sync("late")
        ended.set()

    result = await gantry.execute(request("outer", timeout_ms=200))
    assert result.status is ExecutionStatus.TIMEOUT
    go.set()
    assert await asyncio.to_thread(ended.wait, WAIT)
    await asyncio.gather(*(asyncio.to_thread(int) for _ in range(64)))

    assert errors == ["OrphanedCallError"] * 2
    assert "early" not in str(await remembered(gantry))


async def test_a_child_in_flight_when_its_parent_times_out_is_an_orphan(gantry):
    begun, go, results = asyncio.Event(), asyncio.Event(), []

    @gantry.register
    @gantry.with_memory
    async def child(memory: dict) -> None:
        """Outlive the parent."""
        memory["child"] = 1
        begun.set()
        await go.wait()

    async def background():
        results.append(await gantry.execute(request("child")))

    tasks = []

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> None:
        """Take too long itself."""
        tasks.append(asyncio.create_task(background()))
        await begun.wait()
        await asyncio.Event().wait()

    assert (await gantry.execute(request("outer", timeout_ms=200))).status is ExecutionStatus.TIMEOUT
    go.set()
    await tasks[0]

    assert [(result.status, result.error_type) for result in results] == [(ExecutionStatus.FAILURE, "OrphanedCallError")]
    assert await remembered(gantry) == {}


@pytest.mark.parametrize("begins_late", [True, False])
async def test_a_background_child_goes_on_after_its_parent_has_landed(gantry, begins_late):
    log_tools(gantry)
    begun, go, tasks = asyncio.Event(), asyncio.Event(), []

    @gantry.register
    @gantry.with_memory
    async def child(memory: dict) -> None:
        """Outlive the parent."""
        begun.set()
        await go.wait()
        memory["log"].append("child")

    async def background():
        if begins_late:
            begun.set()
            await go.wait()
        await run(gantry, "child")

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> None:
        """Leave something running."""
        memory["log"] = ["outer"]
        tasks.append(asyncio.create_task(background()))
        await begun.wait()

    await run(gantry, "outer")
    assert await remembered(gantry) == {"log": ["outer"]}
    go.set()
    await tasks[0]

    assert await remembered(gantry) == {"log": ["outer", "child"]}


async def test_an_independent_child_survives(gantry):
    log_tools(gantry)

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> None:
        """Keep an audit of what fails."""
        memory["log"] = ["lost"]
        async with gantry.independent():
            await run(gantry, "note_sync", text="audit")
        raise Boom

    assert (await gantry.execute(request("outer"))).status is ExecutionStatus.FAILURE
    assert await remembered(gantry) == {"log": ["audit"], "n": 1}


async def test_a_generator_tool_drains_with_its_children(gantry):
    note, note_sync, _ = log_tools(gantry)

    @gantry.register
    @gantry.with_memory
    def numbers(memory: dict, fail: bool = False):
        """Give things out in a thread."""
        yield note_sync("a")
        yield note_sync("b")
        if fail:
            raise Boom

    @gantry.register
    @gantry.with_memory
    async def async_numbers(memory: dict, fail: bool = False):
        """Give things out."""
        yield await note("a")
        yield await note("b")
        if fail:
            raise Boom

    for tool in ("numbers", "async_numbers"):
        assert (await gantry.execute(request(tool, fail=True))).status is ExecutionStatus.FAILURE
        assert await remembered(gantry) == {}
    for tool in ("numbers", "async_numbers"):
        assert await run(gantry, tool) == ["a", "b"]
    assert await remembered(gantry) == {"log": ["a", "b"] * 2, "n": 4}


async def test_a_stateful_child_and_a_context_child(gantry):
    from agent_gantry_state import Session

    @gantry.register(stateful=True)
    async def by_key(session: Session) -> list:
        """Work key by key."""
        await session.add("n", 5)
        return [await session.get("n"), await session.get("log")]

    @gantry.register
    async def by_context(ctx) -> str:
        """Work with a context."""
        ctx.memory["log"].append("context")
        return ctx.tool

    @gantry.register
    @gantry.with_memory
    async def outer(memory: dict) -> list:
        """Call both."""
        memory["log"] = log = ["outer"]
        seen = await run(gantry, "by_key")
        await run(gantry, "by_context")
        assert log == ["outer", "context"]
        return seen

    assert await run(gantry, "outer") == [5, ["outer"]]
    assert await remembered(gantry) == {"log": ["outer", "context"], "n": 5}


async def test_another_gantrys_tool_nests_if_it_has_the_same_store(gantry):
    store = gantry._wiring.settings.bridge.store
    other = Gantry(store, session="local", user="ada")

    @other.with_memory
    def other_tool(memory):
        memory["other"] = memory["outer"]

    @gantry.register
    @gantry.with_memory
    def outer(memory: dict, fail: bool) -> dict:
        """Call a tool of another gantry."""
        memory["outer"] = 1
        other_tool()
        if fail:
            raise Boom
        return dict(memory)

    assert (await gantry.execute(request("outer", fail=True))).status is ExecutionStatus.FAILURE
    assert await remembered(gantry) == {}
    assert await run(gantry, "outer", fail=False) == {"outer": 1, "other": 1}


async def test_a_memory_block_around_executes_is_none_of_their_business(gantry):
    log_tools(gantry)

    with contextlib.suppress(Boom):
        async with gantry.memory() as memory:
            memory["lost"] = 1
            await run(gantry, "note", text="a")
            raise Boom
    async with gantry.memory():
        await run(gantry, "note_sync", text="b")

    assert await remembered(gantry) == {"log": ["a", "b"], "n": 2}
