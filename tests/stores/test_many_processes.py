"""Four processes call tools on one memory at once, two of them on an event loop: nothing is lost and nothing is doubled.

This file is also the program of those processes.
"""

from __future__ import annotations

import asyncio
import json
import pathlib
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from agent_gantry_state import Gantry, StateError

pytestmark = pytest.mark.once

SHARED = [
    "file",
    "sqlite",
    "redis-6.2",
    "redis-8.2",
    "valkey",
    "redis-cluster",
    "postgresql",
    "pgbouncer",
    "memcached",
]
STYLES = ("sync", "asyncio", "sync", "asyncio")
ROUNDS = 40
"""Of four calls each, so that a process makes 160."""
TURNS = 15
PATIENCE = 120


class Worker:
    """What one process does.

    Attributes:
        done: The calls that returned, by kind, in order.
        failed: The calls that did not, with what their errors say of the commit.
    """

    def __init__(self, gantry: Gantry, who: int) -> None:
        self.who = who
        self.done: dict[str, list[int]] = {"log": [], "added": [], "counted": [], "own": [], "turn": []}
        self.failed: list[tuple[str, int, bool | None, str]] = []

        def log(n: int, memory: Any) -> None:
            memory.setdefault("log", []).append([who, n])

        def added(n: int, memory: Any) -> None:
            memory.add("added", 1)

        def counted(n: int, memory: Any) -> None:
            memory["counted"] = memory.get("counted", 0) + 1

        def own(n: int, memory: Any) -> None:
            memory[f"own-{who}"] = n

        def turn(n: int, memory: Any) -> None:
            memory["turns"] = memory.get("turns", 0) + 1

        self.bodies = {
            "log": (log, gantry.with_memory()),
            "added": (added, gantry.with_memory()),
            # Two calls that make the same number of what they read have counted once, where nothing is declared.
            "counted": (
                counted,
                gantry.with_memory(on_conflict="retry", retries=1000),
            ),
            "own": (own, gantry.with_memory()),
            "turn": (turn, gantry.with_memory(exclusive=True)),
        }

    def work(self, kinds: list[str], rounds: int) -> None:
        tools = {kind: decorate(body) for kind, (body, decorate) in self.bodies.items()}
        for n in range(rounds):
            for kind in kinds:
                try:
                    tools[kind](n)
                except StateError as error:
                    self.fails(kind, n, error)
                else:
                    self.done[kind].append(n)

    async def awork(self, kinds: list[str], rounds: int) -> None:
        tools = {kind: decorate(_on_loop(body)) for kind, (body, decorate) in self.bodies.items()}

        async def call(kind: str, n: int) -> None:
            try:
                await tools[kind](n)
            except StateError as error:
                self.fails(kind, n, error)
            else:
                self.done[kind].append(n)

        for n in range(rounds):
            await asyncio.gather(*(call(kind, n) for kind in kinds))

    def fails(self, kind: str, n: int, error: StateError) -> None:
        self.failed.append((kind, n, error.committed, repr(error)))


def _on_loop(body: Any) -> Any:
    async def tool(n: int, memory: Any) -> None:
        body(n, memory)
        await asyncio.sleep(0)

    return tool


def main(url: str, app: str, who: int, style: str, kinds: list[str], rounds: int) -> None:
    gantry = Gantry(url, app=app, session="s1", user="ada")
    worker = Worker(gantry, who)

    def start() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    async def on_loop() -> None:
        async with gantry:
            async with gantry.memory("global"):
                start()
            await worker.awork(kinds, rounds)

    if style == "asyncio":
        asyncio.run(on_loop())
    else:
        with gantry:
            # Connected, so that all of them begin at once.
            with gantry.memory("global"):
                start()
            worker.work(kinds, rounds)
    print(json.dumps([worker.done, worker.failed]), flush=True)


def work_together(place, styles, kinds, rounds):
    """Let processes work at once; what each of them has done, and what has failed."""
    processes = []
    for who, style in enumerate(styles):
        arguments = json.dumps([place.where, place.app, who, style, kinds, rounds])
        command = [sys.executable, "-W", "error", str(pathlib.Path(__file__)), arguments]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [json.loads(process.communicate(timeout=PATIENCE)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [done for done, _ in results], [failure for _, failed in results for failure in failed]


def content(place):
    with place.gantry() as gantry, gantry.memory() as memory:
        return dict(memory)


def held(count, done, failed, kind):
    """Whether a counter is what the calls say: those that returned, and at most those of which nothing is known."""
    returned = sum(len(each[kind]) for each in done)
    unknown = sum(1 for failure in failed if failure[0] == kind and failure[2] is None)
    return returned <= count <= returned + unknown


@pytest.mark.parametrize("place", SHARED, indirect=True)
def test_four_processes_lose_nothing_and_double_nothing(place):
    done, failed = work_together(place, STYLES, ["log", "added", "counted", "own"], ROUNDS)

    memory = content(place)
    for who, mine in enumerate(done):
        entries = [n for writer, n in memory["log"] if writer == who]
        unknown = {n for kind, n, committed, _ in failed if kind == "log" and committed is None}
        assert Counter(entries).most_common(1)[0][1] == 1
        assert [n for n in entries if n in mine["log"]] == mine["log"]
        assert set(entries) - set(mine["log"]) <= unknown
        assert memory[f"own-{who}"] == mine["own"][-1] or failed
    assert held(memory["added"], done, failed, "added")
    assert held(memory["counted"], done, failed, "counted")
    assert set(memory) == {"log", "added", "counted", *(f"own-{who}" for who in range(len(STYLES)))}
    # Nothing here is out of reach, so that nothing has a reason to fail.
    assert failed == []


@pytest.mark.parametrize("place", SHARED, indirect=True)
def test_exclusive_calls_of_two_processes_are_counted_without_a_conflict(place):
    done, failed = work_together(place, ("sync", "asyncio"), ["turn"], TURNS)

    assert failed == []
    assert [len(each["turn"]) for each in done] == [TURNS, TURNS]
    assert content(place) == {"turns": 2 * TURNS}


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
