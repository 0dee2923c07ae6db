"""How many machine instructions a call takes: what to compare by where others use the machine and times say little.

valgrind counts them; it runs this file a second time, under callgrind, which writes a profile whenever the interpreter asks
for the stack size of threads: before and after the calls of each kind. The counts repeat to within a few in a hundred, and
are the same however busy the machine is. An instruction is not a time: a miss of the cache costs as much as many of them.

    python benchmarks/instructions.py --only private --only typed
"""

from __future__ import annotations

import _thread
import argparse
import asyncio
import gc
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import Any

from agent_gantry_state import Gantry

WARM, CALLS = 60, 300
VALUES = cycle([f"value {i}" for i in range(1000)])
SEED = {f"k{i}": f"v{i}" for i in range(10)}


@dataclass
class State:
    """What the typed call remembers."""

    k0: str = ""
    k1: str = ""
    k2: str = ""
    k3: str = ""
    n: int = 0
    log: list[str] = field(default_factory=list)


def read(memory: dict[str, Any]) -> Any:
    return memory["k3"]


def write(memory: dict[str, Any]) -> None:
    memory["k3"] = next(VALUES)


def append(memory: dict[str, Any]) -> None:
    log = memory.setdefault("log", [])
    log.append(next(VALUES))
    del log[:-10]


def typed_read(memory: State) -> Any:
    return memory.k3


def typed_write(memory: State) -> None:
    memory.k3 = next(VALUES)


def typed_append(memory: State) -> None:
    memory.log.append(next(VALUES))
    del memory.log[:-10]


WORK = {"read": (read, typed_read), "write": (write, typed_write), "append": (append, typed_append)}


def calls() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is measured, by name; each work on gantries of its own."""
    for name, (body, typed) in WORK.items():
        content = {**SEED, "log": ["v"] * 10} if name == "append" else SEED

        def gantry(content: dict[str, Any] = content) -> Gantry:
            made = Gantry(session="s", user="u")
            for scope in ("session", "user"):
                made.with_memory(scope=scope)(lambda memory: memory.update(content))()
            return made

        plain = content.copy()

        def bare(memory: dict[str, Any] = plain, body: Callable[[Any], Any] = body) -> Any:
            return body(memory)

        async def abare(memory: dict[str, Any] = plain, body: Callable[[Any], Any] = body) -> Any:
            return body(memory)

        yield f"no memory {name}", bare
        yield f"no memory, async {name}", abare
        ours = gantry()
        tool = ours.with_memory(body)
        yield f"plain {name}", tool

        def in_session(ours: Gantry = ours, tool: Callable[[], Any] = tool) -> None:
            with ours.session("s", user="u"):
                tool()

        yield f"plain, opens the session {name}", in_session

        async def abody(memory: dict[str, Any], body: Callable[[Any], Any] = body) -> Any:
            return body(memory)

        yield f"async {name}", ours.with_memory(abody)
        yield f"may run again {name}", gantry().with_memory(on_conflict="retry")(body)
        yield f"general path {name}", gantry().with_memory(isolation="serializable")(body)
        yield f"keys= {name}", gantry().with_memory(keys=("k3", "log"))(body)
        yield f"layers of two {name}", gantry().with_memory(scope=("session", "user"))(body)
        beside = gantry()

        def either(memory: dict[str, Any], fill: bool = False, body: Any = body, content: Any = content) -> Any:
            return memory.update(content) if fill else body(memory)

        private = beside.with_memory(private=True, name="private")(either)
        private(fill=True)
        yield f"private {name}", private
        yield f"plain, beside a compartment {name}", beside.with_memory(body)
        yield f"typed {name}", gantry().with_memory(typed)
        outer = gantry()
        inner = outer.with_memory(body)
        yield f"nested {name}", outer.with_memory(lambda memory, inner=inner: inner())
        deep = inner
        for _ in range(5):
            deep = outer.with_memory(lambda memory, inner=deep: inner())
        yield f"nested five deep {name}", deep
        yield f"nested, calls five {name}", outer.with_memory(lambda memory, inner=inner: [inner() for _ in range(5)])
        yield f"exclusive {name}", gantry().with_memory(exclusive=True)(body)
        pair = gantry()

        def two(memory: dict[str, Any], prefs: dict[str, Any], body: Any = body) -> Any:
            return body(memory), prefs["k1"]

        def both(memory: dict[str, Any], prefs: dict[str, Any], body: Any = body) -> Any:
            return body(memory), body(prefs)

        for label, function in (("stacked", two), ("stacked, both used", both)):
            yield f"{label} {name}", pair.with_memory(pair.with_memory(function, scope="user", into="prefs"))


def executed() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is executed by agent-gantry, if that is installed, with a memory and without."""
    try:
        from execute import executions
    except ImportError:
        return
    yield from ((f"executed, {way}, {name}", call) for name, way, call in executions())


def times(call: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> Callable[[int], None]:
    """Makes a number of calls, between two marks in the profile; those of a coroutine function on an event loop."""

    async def on_loop(number: int) -> None:
        _thread.stack_size()
        for _ in repeat(None, number):
            await call()
        _thread.stack_size()

    def make(number: int) -> None:
        _thread.stack_size()
        for _ in repeat(None, number):
            call()
        _thread.stack_size()

    return (lambda number: loop.run_until_complete(on_loop(number))) if inspect.iscoroutinefunction(call) else make


def child(names: list[str], labels: Path) -> None:
    with labels.open("w") as out:
        loop = asyncio.new_event_loop()
        for name, call in chain(calls(), executed()):
            if names and not any(part in name for part in names):
                continue
            out.write(f"{name}\n")
            make = times(call, loop)
            make(WARM)
            gc.collect()
            gc.disable()
            make(CALLS)
            gc.enable()


def main() -> None:
    parser = argparse.ArgumentParser(description="How many machine instructions a call takes.")
    parser.add_argument("--only", action="append", default=[], help="only calls with this in their name")
    parser.add_argument("--labels", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.labels is not None:
        child(options.only, options.labels)
        return
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise SystemExit("valgrind is not installed: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as directory:
        labels = Path(directory, "labels")
        command = [
            valgrind, "--tool=callgrind", "--dump-before=PyThread_get_stacksize", f"--callgrind-out-file={directory}/out",
            sys.executable, __file__, "--labels", str(labels), *(f"--only={name}" for name in options.only),
        ]  # fmt: skip
        # Sets and dicts in the same order in each run.
        environment = {**os.environ, "PYTHONHASHSEED": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
        dumps = sorted(Path(directory).glob("out.*"), key=lambda path: int(path.suffix[1:]))
        totals = [re.search(r"^(?:totals|summary): (\d+)", path.read_text(), re.MULTILINE) for path in dumps]
        # In between stand what came before the calls that warm up, these, and what came after them.
        counts = [int(found[1]) // CALLS for found in totals[3::4] if found is not None]
        for name, count in zip(labels.read_text().splitlines(), counts, strict=False):
            print(f"{count:9,}  {name}")


if __name__ == "__main__":
    main()
