"""What a memory adds to a tool that agent-gantry executes: the same tool with one and without, through the real engine.

Each kind of tool is executed in blocks that take turns, in an order that changes from round to round; what counts is the
ratio of two blocks of one round. `instructions.py` counts the instructions of the same calls. Both of agent-gantry's
limiters are off, or they would refuse what is measured.

    python benchmarks/execute.py
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
from collections.abc import Awaitable, Callable, Iterator
from itertools import repeat
from time import perf_counter_ns
from typing import Any

import agent_gantry
from agent_gantry import ToolCall
from agent_gantry.core.security import SecurityPolicy
from agent_gantry.schema.config import AgentGantryConfig, ExecutionConfig, RateLimitConfig
from agent_gantry.schema.execution import ExecutionStatus
from instructions import append, read, write

from agent_gantry_state import AgentGantry

SEED = {f"k{i}": f"v{i}" for i in range(10)}
UPSTREAM, WITHOUT, WITH = "agent-gantry", "no memory", "memory"


def unlimited() -> dict[str, Any]:
    return {
        "config": AgentGantryConfig(execution=ExecutionConfig(rate_limit=RateLimitConfig(enabled=False))),
        "security_policy": SecurityPolicy(max_requests_per_minute=0),
    }


def executions() -> Iterator[tuple[str, str, Callable[[], Awaitable[Any]]]]:
    """What is executed, which way, and how: by agent-gantry's own class, by ours without a memory, and with one."""
    for body in (read, write, append):
        content = {**SEED, "log": ["v"] * 10} if body is append else SEED
        for is_async in (True, False):
            name = f"{'async' if is_async else 'sync'} {body.__name__}"
            for way in (UPSTREAM, WITHOUT, WITH):
                yield name, way, executed(way, body, is_async, content)


def executed(way: str, body: Callable[[Any], Any], is_async: bool, content: dict[str, Any]) -> Callable[[], Awaitable[Any]]:
    async def abody(memory: dict[str, Any]) -> Any:
        return body(memory)

    def sbody(memory: dict[str, Any]) -> Any:
        return body(memory)

    fn: Any = abody if is_async else sbody
    if way == WITH:
        ours = AgentGantry(**unlimited(), session="s", user="u")
        ours.with_memory(lambda memory: memory.update(content))()
        gantry: Any = ours
        gantry.register(ours.with_memory(fn), name="tool")
    else:
        gantry = AgentGantry(**unlimited()) if way == WITHOUT else agent_gantry.AgentGantry(**unlimited())
        gantry.register(bare(fn, is_async, content.copy()), name="tool")
    call = ToolCall(tool_name="tool", arguments={})

    async def execute() -> None:
        result = await gantry.execute(call)
        assert result.status is ExecutionStatus.SUCCESS, result.error

    return execute


def bare(fn: Callable[[Any], Any], is_async: bool, content: dict[str, Any]) -> Callable[[], Any]:
    """The same tool with a dict of its own, which nobody keeps or copies."""

    async def of_coroutine() -> Any:
        return await fn(content)

    def of_function() -> Any:
        return fn(content)

    return of_coroutine if is_async else of_function


async def repeated(call: Callable[[], Awaitable[Any]], number: int) -> None:
    for _ in repeat(None, number):
        await call()


async def measure(rounds: int, number: int) -> dict[str, dict[str, list[float]]]:
    """Nanoseconds of a block, by what is executed and which way, one figure for each round."""
    blocks: dict[str, dict[str, Any]] = {}
    for name, way, call in executions():
        await repeated(call, 20)
        blocks.setdefault(name, {})[way] = call
    times: dict[str, dict[str, list[float]]] = {name: {way: [] for way in ways} for name, ways in blocks.items()}
    for round in range(rounds):
        for name, ways in blocks.items():
            order = list(ways)[:: -1 if round % 2 else 1]
            for way in [*order[round % 3 :], *order[: round % 3]]:
                gc.collect()
                gc.disable()
                start = perf_counter_ns()
                await repeated(ways[way], number)
                times[name][way].append(float(perf_counter_ns() - start))
                gc.enable()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description="What a memory adds to a tool that agent-gantry executes, as ratios.")
    parser.add_argument("--rounds", type=int, default=60, help="how often each has its turn (default: 60)")
    parser.add_argument("--calls", type=int, default=50, help="calls in a block (default: 50)")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    times = asyncio.run(measure(options.rounds, options.calls))
    print("With a memory, over the same tool without one: median (quartiles) of the rounds\n")
    print(f"{'':14}{'over our class':>24}{'over agent-gantry itself':>28}")
    for name, ways in times.items():
        cells = []
        for other in (WITHOUT, UPSTREAM):
            low, median, high = statistics.quantiles(
                [a / b for a, b in zip(ways[WITH], ways[other], strict=True)], n=4, method="inclusive"
            )
            cells.append(f"{median:.3f} ({low:.3f}-{high:.3f})")
        print(f"{name:14}{cells[0]:>24}{cells[1]:>28}")


if __name__ == "__main__":
    main()
