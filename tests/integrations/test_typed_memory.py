"""Typed state of tools on the real agent-gantry."""

from __future__ import annotations

import dataclasses
import json

import anyio
import pytest
from agent_gantry.schema.execution import ExecutionStatus
from executions import call, definition, remembered, run, unlimited
from pydantic import BaseModel
from typing_extensions import TypedDict

from agent_gantry_state import AgentGantry

pytestmark = pytest.mark.anyio

SECRET = "hunter2"


@pytest.fixture
async def gantry():
    async with AgentGantry(**unlimited(), session="local") as gantry:
        yield gantry


class Prefs(BaseModel):
    volume: int = 3
    items: list[str] = []


@dataclasses.dataclass
class Basket:
    volume: int = 3
    items: list[str] = dataclasses.field(default_factory=list)


class Notes(TypedDict, total=False):
    volume: int
    items: list[str]


@pytest.mark.parametrize("cls", [Prefs, Basket, Notes])
@pytest.mark.parametrize("make_async", [True, False])
async def test_the_schema_hides_the_parameter_and_the_state_is_remembered(gantry, cls, make_async):
    def body(n, memory):
        if cls is Notes:
            memory["volume"] = memory.get("volume", 3) + n
            return memory["volume"]
        memory.volume += n
        return memory.volume

    async def louder(n: int, memory) -> int:
        return body(n, memory)

    def louder_sync(n: int, memory) -> int:
        return body(n, memory)

    fn = louder if make_async else louder_sync
    fn.__doc__ = "Make it louder.\n\nArgs:\n    n: By how much.\n    memory: What is remembered."
    fn.__annotations__["memory"] = cls
    gantry.register(gantry.with_memory(fn), name="louder")

    assert (await run(gantry, "louder", n=1), await run(gantry, "louder", n=2)) == (4, 6)

    tool = definition(gantry, "louder")
    assert list(tool.parameters_schema["properties"]) == ["n"]
    assert "memory" not in tool.description
    assert cls.__name__ not in json.dumps(tool.parameters_schema)


@pytest.mark.parametrize("where", ["stored", "left"])
async def test_what_does_not_fit_is_final_and_holds_no_value(gantry, where):
    runs = []

    @gantry.register
    @gantry.with_memory
    async def louder(memory: Prefs) -> None:
        """Make it louder."""
        runs.append(1)
        memory.volume = SECRET

    if where == "stored":
        async with gantry.memory() as memory:
            memory["volume"] = SECRET

    for _ in range(6):  # more than open the circuit breaker
        result = await gantry.execute(call("louder"))
        assert (result.status, result.error_type) == (ExecutionStatus.FAILURE, "MemoryValidationError")
        assert result.attempt_number == 1
        assert "session memory" in result.error
        assert "'volume'" in result.error
        assert SECRET not in result.model_dump_json()

    assert len(runs) == (0 if where == "stored" else 6)
    assert definition(gantry, "louder").health.total_calls == 0
    assert await remembered(gantry) == ({"volume": SECRET} if where == "stored" else {})


async def test_a_retry_begins_with_the_state_that_is_stored(gantry):
    attempts = []

    @gantry.register
    @gantry.with_memory
    async def note(memory: Prefs) -> list[str]:
        """Take a note."""
        attempts.append(1)
        memory.items.append(str(len(attempts)))
        if len(attempts) == 1:
            raise RuntimeError("once")
        return memory.items

    assert await run(gantry, "note") == ["2"]
    assert await remembered(gantry) == {"items": ["2"]}


async def test_a_call_that_times_out_changes_nothing(gantry):
    @gantry.register
    @gantry.with_memory
    async def note(memory: Basket) -> None:
        """Take a note."""
        memory.volume = 9
        await anyio.sleep_forever()

    result = await gantry.execute(call("note", timeout_ms=100, retry_count=0))

    assert result.status is ExecutionStatus.TIMEOUT
    assert await remembered(gantry) == {}
