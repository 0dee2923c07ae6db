"""`on_commit` and `on_conflict`: who wants to know is told, and can break nothing."""

from __future__ import annotations

import asyncio
import logging
import sys

import anyio
import pytest
from executions import call as tool_call
from executions import unlimited
from support import STORES, closing, commit, committed

from agent_gantry_state import AgentGantry, Gantry, MemoryConflictError, MemoryEvent


class Told:
    """Keeps what it is told."""

    def __init__(self, error=None):
        self.events = []
        self.error = error

    def __call__(self, event):
        self.events.append(event)
        if self.error is not None:
            raise self.error


class AsyncTold(Told):
    async def __call__(self, event):
        await asyncio.sleep(0)
        super().__call__(event)


@pytest.fixture(params=[Told, AsyncTold])
def kind(request):
    return request.param


@pytest.fixture(params=STORES)
def observed(request, kind):
    told = kind(), kind()
    gantry = Gantry(STORES[request.param](), session="s1", user="ada", on_commit=told[0], on_conflict=told[1])
    with closing(gantry):
        yield gantry, told[0], told[1]


@pytest.fixture(params=["sync", "asyncio"])
def run(request):
    """Runs a body as a tool named `tool`."""

    def run(gantry, body, **options):
        if request.param == "sync":
            return gantry.with_memory(name="tool", **options)(body)()

        async def tool(memory):
            return body(memory)

        return anyio.run(gantry.with_memory(name="tool", **options)(tool))

    return run


def test_commit_is_told_with_scope_tool_and_keys(observed, run):
    gantry, told, conflicts = observed

    run(gantry, lambda memory: memory.update(x=1, y=[2]))
    run(gantry, lambda memory: memory.pop("x") and None)

    assert told.events == [MemoryEvent("tool", "session", ("x", "y")), MemoryEvent("tool", "session", ("x",))]
    assert conflicts.events == []


def test_call_that_changes_nothing_or_fails_is_not_told(observed, run):
    gantry, told, _ = observed

    run(gantry, lambda memory: dict(memory))
    with pytest.raises(ZeroDivisionError):
        run(gantry, lambda memory: memory.update(x=1) or 1 / 0)

    assert told.events == []


def test_each_memory_of_a_call_is_told(observed):
    gantry, told, _ = observed

    @gantry.with_memory(scope="user", into="prefs")
    @gantry.with_memory(name="both")
    def tool(memory, prefs):
        memory["x"] = prefs["y"] = 1

    tool()

    assert sorted(told.events, key=lambda event: event.scope) == [
        MemoryEvent("both", "session", ("x",)),
        MemoryEvent("both", "user", ("y",)),
    ]


def test_it_is_told_when_it_can_be_seen_by_others(kind):
    seen = []

    def look(event):
        seen.append(committed(gantry))

    with Gantry(session="s1", on_commit=look) as gantry:
        gantry.with_memory(lambda memory: memory.update(x=1))()

    assert seen == [{"x": 1}]


def test_call_inside_is_told_with_the_one_around_it(observed):
    gantry, told, _ = observed

    @gantry.with_memory(name="inner")
    def inner(memory):
        memory["inner"] = 1

    @gantry.with_memory(name="outer")
    def outer(memory):
        memory["outer"] = 1
        inner()
        assert told.events == []

    outer()

    assert told.events == [MemoryEvent("outer", "session", ("outer", "inner"))]


def test_block_outside_of_a_tool_is_told_without_one(observed):
    gantry, told, _ = observed

    with gantry.memory() as memory:
        memory["x"] = 1

    assert told.events == [MemoryEvent(None, "session", ("x",))]


def test_conflict_is_told_with_its_keys(observed, run):
    gantry, _, conflicts = observed
    commit(gantry, "session", {}, {"x": "old"})

    def change(memory):
        memory["x"] = "ours"
        commit(gantry, "session", {}, {"x": "theirs"})

    with pytest.raises(MemoryConflictError):
        run(gantry, change)

    assert conflicts.events == [MemoryEvent("tool", "session", ("x",))]


def test_conflict_after_which_the_call_runs_again_is_told_as_well(observed, run):
    gantry, told, conflicts = observed
    commit(gantry, "session", {}, {"x": "old"})
    told.events.clear()

    def change(memory):
        if memory["x"] == "old":
            commit(gantry, "session", {}, {"x": "theirs"})
        memory["x"] += "+ours"

    run(gantry, change, on_conflict="retry")

    assert committed(gantry) == {"x": "theirs+ours"}
    assert conflicts.events == [MemoryEvent("tool", "session", ("x",))]
    assert told.events == [MemoryEvent(None, "session", ("x",)), MemoryEvent("tool", "session", ("x",))]


def test_callback_that_raises_is_logged_and_changes_nothing(kind, run, caplog):
    told = kind(error=RuntimeError("broken"))
    with Gantry(session="s1", on_commit=told, on_conflict=told) as gantry, caplog.at_level(logging.ERROR):
        assert run(gantry, lambda memory: memory.setdefault("x", 1)) == 1

        assert committed(gantry) == {"x": 1}
    assert len(told.events) == 1
    assert [record.name for record in caplog.records] == ["agent_gantry_state"]
    assert "on_commit raised" in caplog.text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="whether a task was cancelled itself is known from 3.11 on")
def test_callback_in_which_something_else_was_cancelled_is_logged_and_changes_nothing(kind, run, caplog):
    told = kind(error=asyncio.CancelledError())
    with Gantry(session="s1", on_commit=told) as gantry, caplog.at_level(logging.ERROR):
        assert run(gantry, lambda memory: memory.setdefault("x", 1)) == 1

        assert committed(gantry) == {"x": 1}
    assert "on_commit raised" in caplog.text


def test_task_that_is_cancelled_while_it_tells_is_cancelled():
    async def callback(event):
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    with Gantry(session="s1", on_commit=callback) as gantry:

        @gantry.with_memory
        async def note(memory):
            memory["x"] = 1

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(note())

        assert committed(gantry) == {"x": 1}


def test_sync_tool_on_a_loops_own_thread_has_an_async_callback_awaited(kind):
    told = AsyncTold()
    with Gantry(session="s1", on_commit=told) as gantry:
        tool = gantry.with_memory(lambda memory: memory.update(x=1))

        async def main():
            tool()
            assert len(told.events) == 1

        asyncio.run(main())


@pytest.mark.parametrize("name", ["on_commit", "on_conflict"])
def test_callback_that_cannot_be_called_is_refused(name):
    with pytest.raises(TypeError, match=f"{name} must be callable, not str"):
        Gantry(**{name: "print"})


def test_under_agent_gantry_the_tool_has_its_registered_name(kind):
    told = kind()

    async def main():
        gantry = AgentGantry(session="s1", on_commit=told, **unlimited())
        try:

            @gantry.register
            @gantry.with_memory
            async def note(memory: dict) -> str:
                """Note something in the memory of this session."""
                memory["x"] = 1
                return "noted"

            await gantry.execute(tool_call("note"))
        finally:
            await gantry.close()

    asyncio.run(main())

    assert [(event.scope, event.keys) for event in told.events] == [("session", ("x",))]
    assert told.events[0].tool.endswith("note")
