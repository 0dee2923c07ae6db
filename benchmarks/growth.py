"""How the cost of a call grows: with keys, bytes, namespaces, callers, with tools inside tools, with what expires.

Everything along one axis is measured in one run, in blocks that take turns as in `call.py`. Each figure is a ratio within a
round to the first point of the same line: how many times as much as at the left end a call costs here. The tables have the
medians; the plots show them with both axes in powers of ten, where a cost that grows with use rises and one that does not is
level. What is counted is the time of the processor, which other programs on the machine disturb less; only where there is a
server it is the time that the caller waits.

    python benchmarks/growth.py                             # some minutes, and some 5 GB for a million namespaces
    python benchmarks/growth.py keys bytes                  # only these axes
    pip install -e . --group plots && python benchmarks/growth.py --plots docs/growth

Another axis is another function in `AXES`.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import importlib
import json
import platform
import statistics
import sys
import tempfile
import threading
import tracemalloc
import warnings
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Any

from agent_gantry_state import Gantry, Scope, SyncSession, merge
from agent_gantry_state.stores.memory import MemoryStore

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

#: The tools that load all keys.
WHOLE = ("read", "write")
UNLIMITED = {"session": Scope(max_bytes=None)}
#: Nanoseconds for each of so many calls.
Point = Callable[[int], float]


@dataclass(frozen=True)
class Axis:
    """What is measured along one axis.

    Attributes:
        label: What grows.
        lines: For each line its points; a line may have fewer than the others.
    """

    label: str
    lines: dict[str, dict[int, Point]]


@dataclass(frozen=True)
class Effort:
    """How much is measured: along the axis up to *largest*, in so many rounds of blocks of so many nanoseconds."""

    largest: float
    rounds: int
    block_ns: float

    def steps(self, *xs: int) -> list[int]:
        # Two at least, or there is no growth to be seen.
        return [x for x in xs if x <= self.largest or x in xs[:2]]


Build = Callable[[Effort, ExitStack], Axis]


def timed(
    call: Callable[[str], Any], session: Callable[[], Any] | None = None, clock: Callable[[], int] = process_time_ns
) -> Point:
    """The point of a sync call, with a session around the block."""

    def point(number: int) -> float:
        values = [f"value {next(_fresh)}" for _ in range(number)]
        with ExitStack() as stack:
            if session is not None:
                stack.enter_context(session())
            start = clock()
            for value in values:
                call(value)
            return (clock() - start) / number

    return point


_fresh = count()


# The tools.


def read(value: str, memory: dict[str, Any]) -> Any:
    return memory["k0"]


def write(value: str, memory: dict[str, Any]) -> None:
    memory["k0"] = value


def session_get(value: str, session: SyncSession) -> Any:
    return session.get("k0")


def session_set(value: str, session: SyncSession) -> None:
    session.set("k0", value)


def tools(gantry: Gantry) -> dict[str, Callable[[str], Any]]:
    """One for each way to read and to write one key."""
    return {
        "read": gantry.with_memory(read),
        "write": gantry.with_memory(write),
        "read, keys=": gantry.with_memory(keys=("k0",))(read),
        "write, keys=": gantry.with_memory(keys=("k0",))(write),
        "Session.get": gantry.with_session(session_get),
        "Session.set": gantry.with_session(session_set),
    }


def gantry_at(url: str, stack: ExitStack) -> Gantry:
    return stack.enter_context(Gantry(url, scopes=UNLIMITED))


def filled(gantry: Gantry, id: str, state: dict[str, Any]) -> Callable[[], Any]:
    """Put *state* there; enters the session."""
    with gantry.memory("session", session=id) as memory:
        memory.update(state)
    return functools.partial(gantry.session, id)


# The axes.


def keys_on(url: str, label: str, ways: Sequence[str] | None, *xs: int) -> Build:
    def build(effort: Effort, stack: ExitStack) -> Axis:
        gantry = gantry_at(url if "://" in url else place(url, stack), stack)
        clock = process_time_ns if url in ("memory://", "sqlite", "file") else perf_counter_ns
        lines: dict[str, dict[int, Point]] = {}
        called = {name: tool for name, tool in tools(gantry).items() if ways is None or name in ways}
        for size in effort.steps(*xs):
            state = {f"k{i}": f"v{i}" for i in range(size)}
            # Apart, for who loads a memory whole keeps what is in it, and goes on doing so when others write.
            whole, by_key = filled(gantry, f"whole-{size}", state), filled(gantry, f"by-key-{size}", state)
            for name, tool in called.items():
                lines.setdefault(name, {})[size] = timed(tool, whole if name in WHOLE else by_key, clock)
        return Axis(label, lines)

    return build


def place(name: str, stack: ExitStack) -> str:
    """The URL of a server of the test suite, or of a database in a new directory."""
    if name == "sqlite":
        return f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/growth.db"
    if name == "file":
        return f"file:///{stack.enter_context(tempfile.TemporaryDirectory())}/growth"
    url: str = stack.enter_context(importlib.import_module("servers").started(name)).url
    return url


def size_in_bytes(effort: Effort, stack: ExitStack) -> Axis:
    """Beside the key that is read or written stands one value, a str or a list of them, of so many bytes."""
    gantry = gantry_at("memory://", stack)
    lines: dict[str, dict[int, Point]] = {}
    for size in effort.steps(1_000, 10_000, 100_000, 1_000_000, 10_000_000):
        text = filled(gantry, f"text-{size}", {"k0": "v", "other": "x" * size})
        nested = filled(gantry, f"list-{size}", {"k0": "v", "other": ["x" * 98] * (size // 100)})
        called = tools(gantry)
        for name in called:
            lines.setdefault(f"{name}, beside a str", {})[size] = timed(called[name], text)
        for name in ("read", "write", "read, keys=", "write, keys="):
            lines.setdefault(f"{name}, beside a list", {})[size] = timed(called[name], nested)
    return Axis("bytes in memory", lines)


def namespaces(effort: Effort, stack: ExitStack) -> Axis:
    """One session is called while so many others are idle."""
    lines: dict[str, dict[int, Point]] = {}
    for size in effort.steps(1, 100, 10_000, 1_000_000):
        gantry = gantry_at(f"memory://?max_namespaces={2 * size + 100_000}", stack)
        populate(gantry, size)
        called, session = tools(gantry), filled(gantry, "busy", {f"k{i}": f"v{i}" for i in range(10)})
        for name in ("read", "write", "read, keys=", "write, keys="):
            lines.setdefault(name, {})[size] = timed(called[name], session)

        def opening(value: str, gantry: Gantry = gantry, tool: Callable[[str], Any] = called["write"]) -> None:
            with gantry.session(f"new {value}"):
                tool(value)

        lines.setdefault("first write of a new session", {})[size] = timed(opening)
    return Axis("idle namespaces in memory", lines)


def populate(gantry: Gantry, size: int, keys: int = 3, letters: int = 20, ttl: float | None = None, calls: int = 1) -> None:
    """Make so many sessions of so many keys, written by so many calls each."""
    names = key_names(keys)

    @gantry.with_memory(ttl=ttl)
    def fill(i: int, call: int, memory: dict[str, Any]) -> None:
        memory.update({name: f"{name}{i:0{letters - len(name)}}" for name in names[call::calls]})

    for i in range(size):
        with gantry.session(f"idle {i}"):
            for call in range(calls):
                fill(i, call)


def key_names(keys: int) -> list[str]:
    """The keys of all sessions: they stand in the code of a tool, and so are the same objects for each of them."""
    return [f"k{k}" for k in range(keys)]


def callers(effort: Effort, stack: ExitStack) -> Axis:
    """So many tasks of one event loop, each with a session of its own or all with one; the body waits for another turn."""
    gantry = gantry_at("memory://", stack)

    @gantry.with_memory
    async def own(value: str, memory: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        memory["k0"] = value

    @gantry.with_memory
    async def other_keys(value: str, memory: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        memory[f"k{int(value) % 256}"] = value

    @gantry.with_memory(merge={"n": merge.add})
    async def shared(value: str, memory: Any) -> None:
        await asyncio.sleep(0)
        memory.add("n", 1)

    async def alone(value: str) -> None:
        await asyncio.sleep(0)

    def point(work: Callable[[str], Awaitable[Any]], width: int, one: bool) -> Point:
        async def caller(index: int, number: int) -> None:
            with gantry.session("all" if one else f"caller {index}"):
                for turn in range(number):
                    await work(str(width * turn + index))

        async def block(number: int) -> float:
            start = process_time_ns()
            await asyncio.gather(*[caller(index, number) for index in range(width)])
            return (process_time_ns() - start) / number / width

        # At least a few turns each, else what is seen is how tasks are made.
        return lambda number: asyncio.run(block(max(4, number // width)))

    lines: dict[str, dict[int, Point]] = {}
    for width in effort.steps(1, 4, 16, 64, 256):
        lines.setdefault("a session each", {})[width] = point(own, width, False)
        lines.setdefault("one session, other keys", {})[width] = point(other_keys, width, True)
        lines.setdefault("one session, one counter", {})[width] = point(shared, width, True)
        lines.setdefault("a bare coroutine function", {})[width] = point(alone, width, False)
    return Axis("callers at once", lines)


def threads(effort: Effort, stack: ExitStack) -> Axis:
    """So many threads, each with a session of its own or all with one."""
    gantry = gantry_at("memory://", stack)
    tool = gantry.with_memory(write)

    @gantry.with_memory
    def shared(value: str, memory: Any) -> None:
        memory.add("n", 1)

    def point(work: Callable[[str], Any], width: int, one: bool) -> Point:
        def caller(index: int, number: int, ready: threading.Barrier) -> None:
            with gantry.session("all" if one else f"caller {index}"):
                ready.wait()
                for turn in range(number):
                    work(str(turn))

        def block(number: int) -> float:
            each, ready = max(20, number // width), threading.Barrier(width + 1)
            started = [threading.Thread(target=caller, args=(index, each, ready)) for index in range(width)]
            for thread in started:
                thread.start()
            ready.wait()
            start = process_time_ns()
            for thread in started:
                thread.join()
            return (process_time_ns() - start) / each / width

        return block

    lines: dict[str, dict[int, Point]] = {}
    for width in effort.steps(1, 4, 16, 64, 256):
        lines.setdefault("a session each", {})[width] = point(tool, width, False)
        lines.setdefault("one session, one counter", {})[width] = point(shared, width, True)
    return Axis("threads at once", lines)


def nesting(effort: Effort, stack: ExitStack) -> Axis:
    """Tools that call each other, so many deep; for one call of one of them."""
    gantry = gantry_at("memory://", stack)
    session = filled(gantry, "s", {f"k{i}": f"v{i}" for i in range(10)})

    @gantry.with_memory
    def reading(value: str, deep: int, memory: dict[str, Any]) -> Any:
        if deep > 1:
            reading(value, deep - 1)
        return memory["k0"]

    @gantry.with_memory
    def writing(value: str, deep: int, memory: dict[str, Any]) -> None:
        memory[f"k{deep % 10}"] = value
        if deep > 1:
            writing(value, deep - 1)

    def per_call(tool: Callable[[str, int], Any], deep: int) -> Point:
        whole = timed(lambda value: tool(value, deep), session)
        return lambda number: whole(max(1, number // deep)) / deep

    lines: dict[str, dict[int, Point]] = {}
    for deep in effort.steps(1, 2, 4, 8, 16, 32, 64):
        lines.setdefault("each reads", {})[deep] = per_call(reading, deep)
        lines.setdefault("each writes", {})[deep] = per_call(writing, deep)
    return Axis("tools inside each other", lines)


def siblings(effort: Effort, stack: ExitStack) -> Axis:
    """A tool that calls so many others, one after the other; for one of these calls."""
    gantry = gantry_at("memory://", stack)
    session = filled(gantry, "s", {f"k{i}": f"v{i}" for i in range(10)})
    reading, writing = gantry.with_memory(read), gantry.with_memory(write)

    def per_call(inner: Callable[[str], Any], many: int) -> Point:
        @gantry.with_memory
        def outer(value: str, memory: dict[str, Any]) -> None:
            for _ in range(many):
                inner(value)

        whole = timed(outer, session)
        return lambda number: whole(max(1, number // many)) / many

    lines: dict[str, dict[int, Point]] = {}
    for many in effort.steps(1, 10, 100, 1000):
        lines.setdefault("each reads", {})[many] = per_call(reading, many)
        lines.setdefault("each writes", {})[many] = per_call(writing, many)
    return Axis("calls inside one call", lines)


def stacked(effort: Effort, stack: ExitStack) -> Axis:
    """One function below so many decorators, each with a scope of its own; for one of the memories."""
    gantry = gantry_at("memory://", stack)
    lines: dict[str, dict[int, Point]] = {}
    for height in effort.steps(1, 2, 4, 8, 16):
        names = [f"m{i}" for i in range(height)]

        def reading(value: str, **memories: dict[str, Any]) -> None:
            for memory in memories.values():
                memory.get("k0")

        def writing(value: str, **memories: dict[str, Any]) -> None:
            for memory in memories.values():
                memory["k0"] = value

        def below(body: Callable[..., None], names: list[str] = names) -> Callable[[str], Any]:
            # A function has to declare what it is given.
            scope: dict[str, Any] = {"body": body}
            given = ", ".join(f"{name}={name}" for name in names)
            exec(f"def tool(value, {', '.join(names)}): body(value, {given})", scope)
            tool = scope["tool"]
            for name in names:
                tool = gantry.with_memory(scope=f"scope_{name}", into=name)(tool)
            called: Callable[[str], Any] = tool
            return called

        def session(names: list[str] = names) -> Any:
            return gantry.session("s", **{f"scope_{name}": "id" for name in names})

        def per_memory(point: Point, height: int = height) -> Point:
            return lambda number: point(max(1, number // height)) / height

        with session():
            below(writing)("v")
        lines.setdefault("reads each", {})[height] = per_memory(timed(below(reading), session))
        lines.setdefault("writes each", {})[height] = per_memory(timed(below(writing), session))
    return Axis("decorators on one function", lines)


def frames(effort: Effort, stack: ExitStack) -> Axis:
    """The same call, below so many frames of Python."""
    gantry = gantry_at("memory://", stack)
    session = filled(gantry, "s", {f"k{i}": f"v{i}" for i in range(10)})

    def below(deep: int, point: Point, number: int) -> float:
        return below(deep - 1, point, number) if deep else point(number)

    lines: dict[str, dict[int, Point]] = {}
    for deep in effort.steps(1, 10, 100, 800):
        for name in ("read", "write"):
            point = timed(tools(gantry)[name], session)
            lines.setdefault(name, {})[deep] = functools.partial(below, deep, point)
    return Axis("frames below the call", lines)


def depth(effort: Effort, stack: ExitStack) -> Axis:
    """A value of lists inside each other, so many deep, stands beside the key or is changed at its bottom."""
    gantry = gantry_at("memory://", stack)

    def changing(value: str, memory: dict[str, Any]) -> None:
        bottom = memory["nested"]
        while bottom[0] is not None:
            bottom = bottom[0]
        bottom[1] = value

    lines: dict[str, dict[int, Point]] = {}
    for deep in effort.steps(1, 10, 50, 150):
        value: list[Any] = [None, ""]
        for _ in range(deep - 1):
            value = [value, ""]
        session = filled(gantry, f"deep-{deep}", {"k0": "v", "nested": value})
        lines.setdefault("read", {})[deep] = timed(gantry.with_memory(read), session)
        lines.setdefault("change at the bottom", {})[deep] = timed(gantry.with_memory(changing), session)
        lines.setdefault("read, keys=", {})[deep] = timed(tools(gantry)["read, keys="], session)
    return Axis("depth of a value", lines)


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def expiring_keys(effort: Effort, stack: ExitStack) -> Axis:
    """So many keys that expire, each at a time of its own; none, or half of them, are over."""
    clock = Clock()
    store = MemoryStore(clock=clock)
    gantry = stack.enter_context(Gantry(store, scopes=UNLIMITED))
    lines: dict[str, dict[int, Point]] = {}
    for size in effort.steps(1, 10, 100, 1_000, 10_000):
        for name, ends in (("", 1e6), (", half are over", 0)):
            for way, tool in tools(gantry).items():
                if way not in ("read", "write", "read, keys=", "write, keys="):
                    continue
                # Apart, for a commit drops what is over.
                id = f"expiring-{size}{name}-{way}"
                with gantry.memory("session", session=id) as memory:
                    memory["k0"] = "v"
                    for i in range(1, size):
                        memory.set(f"k{i}", f"v{i}", ttl=ends + 1000 * (i % 2) + i / 1e6 + 1)
                lines.setdefault(way + name, {})[size] = timed(tool, functools.partial(gantry.session, id))
    clock.now += 500
    return Axis("keys that expire", lines)


def expired_namespaces(effort: Effort, stack: ExitStack) -> Axis:
    """The longest of 2,000 writes, of which one finds that so many namespaces have just expired."""

    def point(size: int) -> Point:
        def longest(_: int) -> float:
            clock = Clock()
            with Gantry(MemoryStore(2 * size + 100_000, clock)) as gantry:
                populate(gantry, size, keys=1, letters=8, ttl=60)
                tool = gantry.with_memory(write)
                worst = 0
                with gantry.session("busy"):
                    tool("first")
                    clock.now += 100
                    for turn in range(2_000):
                        start = process_time_ns()
                        with gantry.session(f"new {turn}"):
                            tool(str(turn))
                        worst = max(worst, process_time_ns() - start)
                return worst

        return longest

    return Axis("namespaces that expire at once", {"longest call": {n: point(n) for n in effort.steps(1, 1_000, 100_000)}})


AXES: dict[str, Build] = {
    "keys": keys_on("memory://", "keys in memory", None, 1, 10, 100, 1_000, 10_000),
    "keys-sqlite": keys_on("sqlite", "keys in SQLite", None, 10, 100, 1_000, 10_000),
    "keys-file": keys_on("file", "keys in a file", None, 10, 100, 1_000, 10_000),
    "keys-redis": keys_on("redis_8", "keys in Redis", None, 10, 100, 1_000, 10_000),
    "keys-postgresql": keys_on("postgresql", "keys in PostgreSQL", None, 10, 100, 1_000, 10_000),
    "keys-memcached": keys_on("memcached", "keys in Memcached", None, 10, 100, 1_000),
    "bytes": size_in_bytes,
    "namespaces": namespaces,
    "callers": callers,
    "threads": threads,
    "nesting": nesting,
    "siblings": siblings,
    "stacked": stacked,
    "frames": frames,
    "depth": depth,
    "expiring-keys": expiring_keys,
    "expired-namespaces": expired_namespaces,
}
#: What needs no server and little memory.
QUICK = [name for name in AXES if name not in ("keys-redis", "keys-postgresql", "keys-memcached")]


# Measuring.


def measured(axis: Axis, effort: Effort) -> dict[str, dict[int, float]]:
    """For each line and point, the median over the rounds of its time over that of the line's first point."""
    numbers: dict[tuple[str, int], int] = {}
    times: dict[tuple[str, int], list[float]] = {}
    points = {(name, x): point for name, line in axis.lines.items() for x, point in line.items()}
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for at, point in points.items():
            point(1)
            numbers[at] = max(1, min(2_000, int(effort.block_ns / point(1))))
            times[at] = []
        order = list(points)
        for turn in range(effort.rounds):
            for at in order if turn % 2 else order[::-1]:
                times[at].append(points[at](numbers[at]))
            order.append(order.pop(0))
            gc.enable()
            gc.collect(0)
            gc.disable()
    finally:
        gc.enable()
        gc.unfreeze()
    grown: dict[str, dict[int, float]] = {}
    for name, line in axis.lines.items():
        first = times[name, next(iter(line))]
        grown[name] = {
            x: statistics.median(ours / base for ours, base in zip(times[name, x], first, strict=True)) for x in line
        }
    return grown


def bytes_of_idle(size: int, keys: int, letters: int, calls: int) -> float:
    """What a namespace takes, over what the same takes as a dict in a dict."""

    def traced(make: Callable[[], Any]) -> float:
        gc.collect()
        tracemalloc.start()
        kept = make()
        gc.collect()
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del kept
        return taken / size

    def plain() -> Any:
        names = key_names(keys)
        return {f"idle {i}": {name: f"{name}{i:0{letters - len(name)}}" for name in names} for i in range(size)}

    def ours() -> Any:
        gantry = Gantry(f"memory://?max_namespaces={2 * size + 1}")
        populate(gantry, size, keys, letters, calls=calls)
        return gantry

    return traced(ours) / traced(plain)


# The answer.


def table(axis: Axis, grown: dict[str, dict[int, float]]) -> str:
    xs = sorted({x for line in grown.values() for x in line})
    width = max(map(len, (axis.label, *grown)))
    rows = [f"{axis.label:{width}}  " + "".join(f"{x:>11,}" for x in xs)]
    for name, line in grown.items():
        rows.append(f"{name:{width}}  " + "".join(f"{line[x]:11.2f}" if x in line else " " * 11 for x in xs))
    return "\n".join(rows)


def plot(name: str, axis: Axis, grown: dict[str, dict[int, float]], place: Path) -> None:
    try:
        import matplotlib as mpl
        from matplotlib import pyplot as plt
    except ImportError as error:
        sys.exit(f"{error}. Install what draws: pip install -e . --group plots (pip 25.1 or newer)")
    # Text as text, and nothing in the file that changes from run to run.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "path.simplify": True})
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    xs = sorted({x for line in grown.values() for x in line})
    axes.plot(xs, [x / xs[0] for x in xs], color="0.8", linewidth=1, zorder=0)
    for (label, line), marker in zip(grown.items(), "os^vDPX*<>h", strict=False):
        axes.plot(list(line), list(line.values()), marker=marker, markersize=3, linewidth=1, label=label)
    highest = max(value for line in grown.values() for value in line.values())
    axes.set(
        xscale="log", yscale="log", xlabel=axis.label, ylabel="times the call at the left", ylim=(0.5, max(10, 2 * highest))
    )
    axes.minorticks_off()
    axes.grid(visible=True, color="0.9", linewidth=0.5)
    axes.legend(fontsize=7, frameon=False)
    place.mkdir(parents=True, exist_ok=True)
    figure.savefig(place / f"{name}.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="How the cost of a call grows with use, as ratios.")
    parser.add_argument("axes", nargs="*", metavar="AXIS", help=f"of {', '.join(AXES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=30, help="how often each point has its turn (default: 30)")
    parser.add_argument("--largest", type=float, default=10_000_000, help="leave out what is larger on an axis")
    parser.add_argument("--quick", action="store_true", help="a few short rounds without servers, to see that it runs")
    parser.add_argument("--plots", type=Path, metavar="DIRECTORY", help="draw each axis there, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    options = parser.parse_args()
    if unknown := set(options.axes) - AXES.keys():
        parser.error(f"no axis {', '.join(sorted(unknown))}; there are {', '.join(AXES)}")
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    chosen = options.axes or (QUICK if options.quick else list(AXES))
    effort = Effort(100, 2, 1e5) if options.quick else Effort(options.largest, options.rounds, 2e6)
    warnings.simplefilter("ignore", ResourceWarning)
    facts = {"python": f"{platform.python_implementation()} {platform.python_version()}", "rounds": effort.rounds}
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    found: dict[str, Any] = {}
    for name in chosen:
        with ExitStack() as stack:
            axis = AXES[name](effort, stack)
            found[name] = grown = measured(axis, effort)
        print(f"\n{table(axis, grown)}", flush=True)
        if options.plots is not None:
            plot(name, axis, grown, options.plots)
    if not options.axes:
        size = int(min(100_000, effort.largest * 10))
        print(f"\nBytes of {size:,} idle namespaces, over a dict of dicts")
        for keys, letters, calls in ((10, 100, 1), (10, 100, 10), (10, 10, 1), (10, 10, 10), (3, 20, 1), (3, 20, 3)):
            what = f"{keys} keys of {letters} letters, written by {calls} calls"
            found[f"bytes, {what}"] = ratio = bytes_of_idle(size, keys, letters, calls)
            print(f"{what}: {ratio:.2f}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({**facts, "grown": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
