"""Owners, erasure, isolation and exclusive calls on the real agent-gantry."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from agent_gantry.schema.execution import ExecutionStatus
from executions import execute, remembered, run, unlimited
from support import wait_at_most

from agent_gantry_state import (
    AgentGantry,
    ExecutionContext,
    Gantry,
    Session,
    SessionOwnerError,
    SyncSession,
)
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.turns import turns_of

pytestmark = pytest.mark.anyio

#: Longer than anything here takes, in seconds.
PATIENCE = 8.0


@pytest.fixture
def patience(monkeypatch):
    """Sets how long a call waits for its turn."""
    return wait_at_most(monkeypatch, PATIENCE)


@pytest.fixture(params=["memory", "sqlite"])
async def gantry(request, tmp_path, patience):
    where = MemoryStore() if request.param == "memory" else f"sqlite:///{tmp_path}/state.db"
    async with AgentGantry(store=where, **unlimited()) as gantry:
        yield gantry


@pytest.fixture(params=["sync", "async"])
def register(request, gantry):
    """Registers a body as a tool, sync or async, under a name."""

    def register(body, name, **options):
        if request.param == "sync":

            def tool(memory):
                return body(memory)

        else:

            async def tool(memory):
                return body(memory)

        tool.__name__ = tool.__qualname__ = name
        tool.__doc__ = f"Do what {name} does."
        return gantry.register(gantry.with_memory(**options)(tool))

    return register


async def refused(gantry, name, error_type, **arguments):
    """The message of a call that ends with a memory error, at once and for good."""
    result = await execute(gantry, name, **arguments)
    assert (result.status, result.error_type) == (ExecutionStatus.FAILURE, error_type)
    assert result.attempt_number == 1
    return result.error


def waiting(gantry):
    return sum(map(len, turns_of(gantry._wiring.settings.bridge.store)._queues.values()))


async def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        await asyncio.sleep(0.001)


def health(gantry, name):
    (tool,) = [tool for tool in gantry.list_tools_sync() if tool.name == name]
    return tool.health


def add(memory):
    return memory.add("n")


def read(memory):
    return dict(memory)


# Owners.


async def test_session_of_another_user_is_refused_without_a_second_attempt(gantry, register):
    ran = []
    register(add, "add")
    register(lambda memory: ran.append(1), "look")
    async with gantry.session("the-session", user="ada-4711"):
        assert await run(gantry, "add") == 1

    words = set()
    for user in ("bob-0815", None):
        async with gantry.session("the-session", user=user):
            for name in ("add", "look"):
                words.add(await refused(gantry, name, "SessionOwnerError"))

    (said,) = words
    assert not [secret for secret in ("the-session", "ada-4711", "bob-0815") if secret in said]
    assert ran == []
    assert health(gantry, "look").consecutive_failures == 0
    assert await remembered(gantry, session="the-session", user="ada-4711") == {"n": 1}


async def test_two_users_who_race_for_a_new_session(gantry, register):
    def outrun(memory):
        memory["mine"] = 1
        with gantry.independent(), gantry.memory(session="s1", user="bob") as other:
            other["theirs"] = 1

    register(outrun, "outrun")
    async with gantry.session("s1", user="ada"):
        await refused(gantry, "outrun", "SessionOwnerError")
    assert await remembered(gantry, session="s1", user="bob") == {"theirs": 1}


async def test_adopting(gantry, register):
    register(add, "add")
    register(read, "look")
    async with gantry.session("s1"):
        assert await run(gantry, "add") == 1
    async with gantry.session("s1", user="ada"):
        await refused(gantry, "look", "SessionOwnerError")
    async with gantry.session("s1", user="ada", adopt=True):
        assert await run(gantry, "look") == {"n": 1}
        assert await run(gantry, "add") == 2
    async with gantry.session("s1"):
        await refused(gantry, "look", "SessionOwnerError")
    async with gantry.session("s1", user="bob", adopt=True):
        await refused(gantry, "add", "SessionOwnerError")
    async with gantry.session("s1", user="ada"):
        assert await run(gantry, "add") == 3


async def test_session_and_context_parameters_are_checked(gantry):
    @gantry.register(stateful=True)
    async def by_key(session: Session) -> None:
        """Look, key by key."""
        await session.set("x", 1)

    @gantry.register(stateful=True)
    def by_key_sync(session: SyncSession) -> None:
        """Look, key by key."""
        session.get("x")

    @gantry.register
    async def by_context(ctx: ExecutionContext) -> None:
        """Look at the context."""
        ctx.memory["x"] = 2

    async with gantry.session("s1", user="ada"):
        for name in ("by_key", "by_key_sync", "by_context"):
            await run(gantry, name)
    async with gantry.session("s1", user="bob"):
        for name in ("by_key", "by_key_sync", "by_context"):
            await refused(gantry, name, "SessionOwnerError")


async def test_plain_gantry_on_the_same_store_knows_the_owner(gantry, register):
    register(add, "add")
    async with gantry.session("s1", user="ada"):
        await run(gantry, "add")
    with Gantry(gantry._wiring.settings.bridge.store) as plain:
        with plain.memory(session="s1", user="ada") as memory:
            assert memory == {"n": 1}
        with plain.session("s1", user="bob"), pytest.raises(SessionOwnerError):
            plain.with_memory(read)()


# Erasure.


async def test_session_that_is_ended_stays_ended(gantry, register):
    def end(memory):
        memory.add("n")
        gantry.end_session("s1")

    register(add, "add")
    register(end, "end")
    async with gantry.session("s1", user="ada"):
        await run(gantry, "add")
        words = await refused(gantry, "end", "MemoryErasedError")
        assert "s1" not in words
        assert await remembered(gantry) == {}
        await run(gantry, "add")
    await gantry.aend_session("s1")
    async with gantry.session("s1", user="bob"):
        assert await run(gantry, "add") == 1


async def test_what_a_registered_tool_remembers_for_itself_can_be_forgotten(gantry, register):
    register(add, "add", scope="tool")
    assert [await run(gantry, "add") for _ in range(2)] == [1, 2]
    await gantry.aforget("tool", tool="default.add")
    assert await run(gantry, "add") == 1


# Isolation.


async def test_serializable_call_is_refused_without_a_second_attempt(gantry, register):
    runs = []

    def body(memory):
        runs.append(1)
        memory["y"] = memory.get("x")
        with gantry.independent(), gantry.memory(session="s1", user="ada") as other:
            other["x"] = len(runs)

    register(body, "refuse", isolation="serializable")
    register(body, "skew")
    async with gantry.session("s1", user="ada"):
        await refused(gantry, "refuse", "MemoryConflictError")
        assert (len(runs), await remembered(gantry)) == (1, {"x": 1})
        await run(gantry, "skew")
        assert await remembered(gantry) == {"x": 2, "y": 1}


async def test_write_to_a_key_that_is_not_named_is_refused(gantry, register):
    register(lambda memory: memory.update(x=1, y=1), "both", keys=("x",))
    async with gantry.session("s1", user="ada"):
        assert "'y'" in await refused(gantry, "both", "UndeclaredKeyError")
        assert await remembered(gantry) == {}


# Exclusive.


async def test_executions_take_turns(gantry, register):
    inside, most = [], []
    lock = threading.Lock()

    def body(memory):
        with lock:
            inside.append(1)
            most.append(len(inside))
        seen = memory.get("n", 0)
        time.sleep(0)
        memory["n"] = seen + 1
        with lock:
            inside.pop()

    register(body, "body", exclusive=True)
    async with gantry.session("s1", user="ada"):
        results = await asyncio.gather(*(execute(gantry, "body") for _ in range(20)))
        assert {result.status for result in results} == {ExecutionStatus.SUCCESS}
        assert (max(most), await remembered(gantry)) == (1, {"n": 20})


@pytest.fixture
async def gate(gantry):
    """An execution that has the session to itself until it is let go."""
    entered, may_end = asyncio.Event(), asyncio.Event()

    @gantry.register
    @gantry.with_memory(exclusive=True)
    async def hold(memory: dict) -> None:
        """Hold the session."""
        entered.set()
        await may_end.wait()
        memory["gate"] = True

    async with gantry.session("s1", user="ada"):
        task = asyncio.ensure_future(execute(gantry, "hold"))
        await entered.wait()

    async def end():
        may_end.set()
        assert (await task).status is ExecutionStatus.SUCCESS

    yield end
    await end()


async def test_executions_take_turns_in_the_order_of_their_calls(gantry, gate):
    order = []

    @gantry.register
    @gantry.with_memory(exclusive=True)
    async def note(n: int, memory: dict) -> None:
        """Note a number."""
        order.append(n)
        memory["n"] = n

    async with gantry.session("s1", user="ada"):
        tasks = []
        for n in range(5):
            tasks.append(asyncio.ensure_future(execute(gantry, "note", n=n)))
            await until(lambda n=n: waiting(gantry) == n + 2)
        await gate()
        await asyncio.gather(*tasks)
    assert order == list(range(5))


async def test_execution_whose_turn_does_not_come_is_refused_and_does_not_run(gantry, register, gate, patience):
    patience(0.05)
    ran = []
    register(lambda memory: ran.append(1), "late", exclusive=True)
    async with gantry.session("s1", user="ada"):
        assert "did not run" in await refused(gantry, "late", "ExclusiveTimeoutError")
    assert ran == []
    assert health(gantry, "late").consecutive_failures == 0


async def test_execution_that_times_out_while_it_waits_leaves_the_queue(gantry, register, gate):
    ran = []
    register(lambda memory: ran.append(1), "late", exclusive=True)
    async with gantry.session("s1", user="ada"):
        result = await execute(gantry, "late", timeout_ms=100, retry_count=0)
        assert result.status is ExecutionStatus.TIMEOUT
        await until(lambda: waiting(gantry) == 1)
        await gate()
        assert ran == []
        await run(gantry, "late")
        assert ran == [1]


async def test_execution_that_times_out_while_it_runs_gives_its_turn_back(gantry, register):
    """A sync body runs on in its thread; what it does then is refused, and nobody waits for it."""
    may_end = threading.Event()

    @gantry.register
    @gantry.with_memory(exclusive=True)
    def slow(memory: dict) -> None:
        """Take very long."""
        memory["slow"] = True
        may_end.wait(PATIENCE)

    register(add, "add", exclusive=True)
    async with gantry.session("s1", user="ada"):
        result = await execute(gantry, "slow", timeout_ms=100, retry_count=0)
        assert result.status is ExecutionStatus.TIMEOUT
        assert await run(gantry, "add") == 1
        may_end.set()
        assert await remembered(gantry) == {"n": 1}


async def test_tool_that_calls_another_shares_its_turn(gantry, register):
    register(add, "add", exclusive=True)

    @gantry.register
    @gantry.with_memory(exclusive=True)
    async def outer(memory: dict) -> int:
        """Call another tool."""
        memory["n"] = 10
        results = await asyncio.gather(*(execute(gantry, "add") for _ in range(3)))
        return max(result.result for result in results)

    async with gantry.session("s1", user="ada"):
        assert await run(gantry, "outer") == 13
        assert await remembered(gantry) == {"n": 13}
        assert await run(gantry, "add") == 14


async def test_generator_tool_that_is_exclusive(gantry):
    @gantry.register
    @gantry.with_memory(exclusive=True)
    async def count(memory: dict):
        """Count to three."""
        for _ in range(3):
            yield memory.add("n")

    @gantry.register
    @gantry.with_memory(exclusive=True)
    def count_sync(memory: dict):
        """Count to three."""
        for _ in range(3):
            yield memory.add("n")

    async with gantry.session("s1", user="ada"):
        assert await run(gantry, "count") == [1, 2, 3]
        assert await run(gantry, "count_sync") == [4, 5, 6]
        assert waiting(gantry) == 0
