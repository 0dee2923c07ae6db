"""Writers and servers that are killed at any moment: nothing acknowledged is lost, and nothing is ever half there.

This file is also the program of the writers: a parent that connects to no store and forks one writer after the other, for a
process that starts afresh would take longer than everything that it is to be killed in.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import servers

from agent_gantry_state import Gantry, StoreError
from agent_gantry_state.stores.urls import open_store

pytestmark = pytest.mark.once

KILLS = 25
"""Of writers, on each store; `python -m tests.soak --only kills` goes on killing."""
SERVER_KILLS = 6
PATIENCE = 60.0


def written(n: int) -> dict[str, Any]:
    """What the writer's call number *n* leaves in each memory: of another length each time, so that a part would show."""
    return {"n": n, "text": str(n) * (n % 13 * 400), "list": [n] * (n % 7), "again": n}


def tools(gantry: Gantry, style: str) -> tuple[Any, Any]:
    """What a writer calls: one that says how far it is, and one that goes a step further and says the same."""

    def seen(memory: dict[str, Any]) -> int:
        return int(memory.get("n", 0))

    def step(memory: dict[str, Any], other: dict[str, Any]) -> int:
        n = seen(memory) + 1
        memory.update(written(n))
        other.update(written(n))
        return n

    async def aseen(memory: dict[str, Any]) -> int:
        return seen(memory)

    async def astep(memory: dict[str, Any], other: dict[str, Any]) -> int:
        return step(memory, other)

    both = gantry.with_memory(scope="user", into="other", on_conflict="retry")
    if style == "sync":
        return gantry.with_memory(seen), both(gantry.with_memory(step))
    return gantry.with_memory(aseen), both(gantry.with_memory(astep))


def say(word: str, n: int) -> None:
    # One write of one line, so that whatever is read was said whole.
    os.write(1, f"{word} {n}\n".encode())


def write_on(url: str, style: str) -> None:
    """Write for ever."""
    gantry = Gantry(url, session="s1", user="ada")
    seen, step = tools(gantry, style)

    async def on_loop() -> None:
        say("saw", await seen())
        while True:
            say("wrote", await step())

    if style == "asyncio":
        asyncio.run(on_loop())
    say("saw", seen())
    while True:
        say("wrote", step())


def main(url: str) -> None:
    """Fork a writer for each line that comes, and say when it is gone."""
    open_store(url).close()
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            try:
                say("started", os.getpid())
                write_on(url, line.strip())
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
            # The parent's program must not go on here.
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        say("gone", -status)


@contextlib.contextmanager
def writers(url):
    """The parent of writers."""
    command = [sys.executable, "-W", "error", str(pathlib.Path(__file__)), url]
    path = os.pathsep.join([str(pathlib.Path(servers.__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(PATIENCE)


def killed(process, style, when):
    """Let a writer work and kill it, *when* (steps, seconds) has been; the last number that it said, None if none."""

    def heard():
        word, _, number = process.stdout.readline().partition(" ")
        return word, int(number)

    process.stdin.write(f"{style}\n")
    process.stdin.flush()
    word, pid = heard()
    assert word == "started"
    steps, seconds = when
    last = None
    try:
        while steps:
            word, last = heard()
            assert word in ("saw", "wrote")
            steps -= 1
        time.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while True:
        word, number = heard()
        if word == "gone":
            assert number == -signal.SIGKILL
            return last
        last = number


def state(gantry):
    """How far the writers are, by a reader that finds nothing torn."""

    @gantry.with_memory(scope="user", into="other")
    @gantry.with_memory
    def mark(memory, other):
        memory.add("marks", 1)

    @gantry.with_memory(scope="user", into="other")
    @gantry.with_memory
    def read(memory, other):
        return dict(memory), dict(other)

    # A commit waits for what the server is still doing for the writer, which is then seen.
    mark()
    memory, other = read()
    del memory["marks"]
    n = memory.get("n", 0)
    assert memory == other == (written(n) if n else {})
    return n


@contextlib.contextmanager
def store(name, tmp_path):
    """The URL of a store of the test's own, that keeps all that it has acknowledged."""
    if name == "file":
        yield f"file:///{tmp_path}/state"
    elif name == "sqlite":
        yield f"sqlite:///{tmp_path}/state.db"
    else:
        with servers.started(name, appendonly=name != "postgresql") as server:
            yield server.url


STORES = ("file", "sqlite", "redis_8", "postgresql")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forked")
@pytest.mark.parametrize("name", STORES)
def test_killed_writer_loses_nothing_acknowledged_and_tears_nothing(name, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed: {seed}")
    known, beyond = kill_writers(name, tmp_path, random.Random(seed), KILLS)
    assert known >= KILLS // 2
    print(f"{known} steps; {beyond} kills between a commit and its acknowledgement")


def kill_writers(name, tmp_path, chance, kills):
    """Kill one writer after the other; how far they came, and how many died between a commit and its acknowledgement."""
    with store(name, tmp_path) as url, writers(url) as process, Gantry(url, session="s1", user="ada") as gantry:
        known = beyond = 0
        for kill in range(kills):
            # A third of them while they still connect or read.
            when = (chance.choice((0, 1, 1, 2, 3, 5)), chance.uniform(0, 0.008))
            said = killed(process, ("sync", "asyncio")[kill % 2], when)
            known = known if said is None else said
            there = state(gantry)
            assert there in (known, known + 1) or (said is None and there >= known)
            beyond += there != known
            known = there
    return known, beyond


class Load:
    """Threads that append to one list until they are told to stop, one of them on an event loop."""

    def __init__(self, gantry: Gantry) -> None:
        self.gantry = gantry
        self.acknowledged: list[list[Any]] = []
        self.failed: list[tuple[list[Any], bool | None]] = []
        self.stop = threading.Event()
        self.heard = threading.Condition()
        self.threads = ThreadPoolExecutor(2)
        self.work: list[Future[None]] = []

    def __enter__(self) -> Load:
        self.work = [self.threads.submit(self.sync), self.threads.submit(asyncio.run, self.on_loop())]
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.threads.shutdown()
        for each in self.work:
            each.result()

    def sync(self) -> None:
        @self.gantry.with_memory
        def append(item, memory):
            memory.setdefault("log", []).append(item)

        n = 0
        while not self.stop.is_set():
            n += 1
            with self.reported(["sync", n]):
                append(["sync", n])

    async def on_loop(self) -> None:
        @self.gantry.with_memory
        async def append(item, memory):
            memory.setdefault("log", []).append(item)

        n = 0
        while not self.stop.is_set():
            n += 1
            with self.reported(["asyncio", n]):
                await append(["asyncio", n])

    @contextlib.contextmanager
    def reported(self, item):
        try:
            yield
        except StoreError as error:
            self.failed.append((item, error.committed))
        else:
            with self.heard:
                self.acknowledged.append(item)
                self.heard.notify_all()

    def wait_for_more(self, count=5):
        """Wait until both threads have had more of their calls acknowledged, or one has come to an end."""
        with self.heard:
            begin = len(self.acknowledged)

            def enough():
                styles = [style for style, _ in self.acknowledged[begin:]]
                return min(map(styles.count, ("sync", "asyncio"))) >= count or any(each.done() for each in self.work)

            assert self.heard.wait_for(enough, PATIENCE)


@pytest.mark.parametrize("name", ["redis_6", "redis_8", "valkey", "postgresql"])
def test_killed_server_loses_nothing_acknowledged_and_is_connected_to_again(name):
    chance = random.Random()
    with servers.started(name, appendonly=name != "postgresql") as server:
        with Gantry(server.url, session="s1") as gantry, Load(gantry) as load:
            for _ in range(SERVER_KILLS):
                load.wait_for_more()
                time.sleep(chance.uniform(0, 0.01))
                server.kill()
                server.start()
            load.wait_for_more()

        with Gantry(server.url, session="s1") as gantry, gantry.memory() as memory:
            there = [tuple(item) for item in memory["log"]]
    acknowledged = {tuple(item) for item in load.acknowledged}
    assert len(set(there)) == len(there)
    assert acknowledged - set(there) == set()
    assert set(there) - acknowledged <= {tuple(item) for item, committed in load.failed if committed is None}
    for style in ("sync", "asyncio"):
        numbers = [n for who, n in there if who == style]
        assert numbers == sorted(numbers)


if __name__ == "__main__":
    main(sys.argv[1])
