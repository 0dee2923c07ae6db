"""What a call of a tool costs, beside a bare function and beside the injection of other frameworks.

Everything is measured in one run, in blocks of about a millisecond. A round gives each candidate one block, and the order
changes from round to round, so that whatever slows the machine down meets all of them. What counts is a ratio within a
round; the table has the median of these ratios and the quartiles. Absolute times differ from machine to machine and from
minute to minute, and are given only as a note.

    pip install -e . --group bench      # pip 25.1 or newer
    python benchmarks/call.py

The peers inject an object and do no more: nothing is kept and nothing rolled back, as the last column says.
"""

# No `from __future__ import annotations`: the peers read annotations at run time, and these name local classes.

import argparse
import asyncio
import gc
import importlib.metadata
import json
import platform
import statistics
import sys
import timeit
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from math import inf
from pathlib import Path
from time import perf_counter_ns
from typing import Annotated, Any, NamedTuple

from agent_gantry_state import Gantry
from agent_gantry_state.memory import Memory, open_memory
from agent_gantry_state.nesting import CURRENT
from agent_gantry_state.scopes import ENTERED
from agent_gantry_state.stores.protocol import Snapshot

try:
    import dishka
    import fast_depends
    import wireup
    from dependency_injector import containers, providers, wiring
    from dishka.integrations.base import wrap_injection
except ImportError as error:
    sys.exit(f"{error}. Install what is measured against: pip install -e . --group bench (pip 25.1 or newer)")

PACKAGES = ("agent-gantry-state", "dependency-injector", "dishka", "fast-depends", "wireup")
#: What the writing candidates are called with, one after the other: never the string that is there.
VALUES = [f"value {i}" for i in range(1000)]
#: How many entries the list of the append keeps.
KEPT = 10

KINDS = ("plain", "closure", "ours", "singleton", "fresh")
NOTHING = "nothing kept, nothing rolled back"


@dataclass(frozen=True)
class Candidate:
    """One thing that is measured.

    Attributes:
        name: As it stands in the table.
        kind: One of `KINDS`.
        promise: What a caller may rely on.
        call: Takes one str; a coroutine function among the async candidates.
        around: Entered around a block and not measured.
    """

    name: str
    kind: str
    promise: str
    call: Callable[[str], Any]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext


class Spread(NamedTuple):
    """Quartiles of a ratio over all rounds."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


# The workloads, each as a user writes it, sync and async.


def read(value: str, memory: dict[str, Any]) -> Any:
    return memory["k3"]


def write(value: str, memory: dict[str, Any]) -> None:
    memory["k3"] = value


def append(value: str, memory: dict[str, Any]) -> None:
    log = memory.setdefault("log", [])
    log.append(value)
    del log[:-KEPT]


async def aread(value: str, memory: dict[str, Any]) -> Any:
    return memory["k3"]


async def awrite(value: str, memory: dict[str, Any]) -> None:
    memory["k3"] = value


async def aappend(value: str, memory: dict[str, Any]) -> None:
    log = memory.setdefault("log", [])
    log.append(value)
    del log[:-KEPT]


def workloads(is_async: bool) -> dict[str, Callable[..., Any]]:
    return {
        "read": aread if is_async else read,
        "write": awrite if is_async else write,
        "nested append": aappend if is_async else append,
    }


def scalars() -> dict[str, Any]:
    """What is in memory: ten strings."""
    return {f"k{i}": f"v{i}" for i in range(10)}


def with_containers() -> dict[str, Any]:
    """Ten keys, too, of which three hold containers."""
    return {**scalars(), "k7": ["v"] * KEPT, "k8": scalars(), "k9": {"a": ["b", {"c": "d"}]}}


# The candidates.


def plain(is_async: bool) -> Iterator[Candidate]:
    for name, fn in workloads(is_async).items():
        yield Candidate(f"plain function: {name}", "plain", "its caller's own dict, changed in place", plain_call(fn))


def plain_call(fn: Callable[..., Any]) -> Callable[[str], Any]:
    """A plain function of one argument, as the others are called, whose dict is there as its default."""
    return types.FunctionType(fn.__code__, globals(), fn.__name__, (scalars(),))


def closures(is_async: bool) -> Iterator[Candidate]:
    promise = "kept; a nested change stays on failure; parallel calls overwrite each other"
    for name, fn in workloads(is_async).items():
        yield Candidate(f"hand-written closure: {name}", "closure", promise, (aclosure if is_async else closure)(fn))


def closure(fn: Callable[..., Any]) -> Callable[[str], Any]:
    store = {"s": scalars()}

    def call(value: str) -> Any:
        memory = dict(store["s"])
        result = fn(value, memory)
        store["s"] = memory
        return result

    return call


def aclosure(fn: Callable[..., Any]) -> Callable[[str], Any]:
    store = {"s": scalars()}

    async def call(value: str) -> Any:
        memory = dict(store["s"])
        result = await fn(value, memory)
        store["s"] = memory
        return result

    return call


def ours(is_async: bool) -> Iterator[Candidate]:
    promise = "kept; all or nothing; private copy; no lost update"
    gantry, work = Gantry(), workloads(is_async)
    for name, fn in work.items():
        yield Candidate(f"memory: {name}", "ours", promise, gantry.with_memory(fn), opened(gantry, name, scalars()))
    around = opened(gantry, "containers", with_containers())
    yield Candidate("memory: read, 3 of 10 are containers", "ours", promise, gantry.with_memory(work["read"]), around)
    opening = (opening_acall if is_async else opening_call)(gantry, gantry.with_memory(work["nested append"]))
    seed(gantry, "opening", scalars())
    yield Candidate("memory: nested append, opens the session", "ours", promise, opening)


def seed(gantry: Gantry, session: str, content: dict[str, Any]) -> None:
    with gantry.memory("session", session=session) as memory:
        memory.update(content)


def opened(gantry: Gantry, session: str, content: dict[str, Any]) -> Callable[[], AbstractContextManager[Any]]:
    seed(gantry, session, content)
    return lambda: gantry.session(session)


def opening_call(gantry: Gantry, tool: Callable[..., Any]) -> Callable[[str], Any]:
    def call(value: str) -> Any:
        with gantry.session("opening"):
            return tool(value)

    return call


def opening_acall(gantry: Gantry, tool: Callable[..., Any]) -> Callable[[str], Any]:
    async def call(value: str) -> Any:
        with gantry.session("opening"):
            return await tool(value)

    return call


class Shared:
    """What the peers inject: one object for all."""


class Fresh:
    """What the peers inject: a new object for each call."""


def dependency_injector(is_async: bool) -> Iterator[Candidate]:
    class Container(containers.DeclarativeContainer):
        shared = providers.Singleton(Shared)
        fresh = providers.Factory(Fresh)

    module = types.ModuleType("wired")
    if is_async:

        @wiring.inject
        async def ashared(value: str, memory: Shared = wiring.Provide[Container.shared]) -> Shared:
            return memory

        @wiring.inject
        async def afresh(value: str, memory: Fresh = wiring.Provide[Container.fresh]) -> Fresh:
            return memory

        vars(module).update(shared=ashared, fresh=afresh)
    else:

        @wiring.inject
        def shared(value: str, memory: Shared = wiring.Provide[Container.shared]) -> Shared:
            return memory

        @wiring.inject
        def fresh(value: str, memory: Fresh = wiring.Provide[Container.fresh]) -> Fresh:
            return memory

        vars(module).update(shared=shared, fresh=fresh)
    Container().wire(modules=[module])
    yield Candidate("dependency-injector: Singleton", "singleton", f"one object for all; {NOTHING}", module.shared)
    yield Candidate("dependency-injector: Factory", "fresh", f"a new object; {NOTHING}", module.fresh)


def wireup_peer(is_async: bool) -> Iterator[Candidate]:
    injectables = [wireup.injectable(Shared), wireup.injectable(lifetime="transient")(Fresh)]
    if is_async:
        acontainer = wireup.create_async_container(injectables=injectables)

        @wireup.inject_from_container(acontainer)
        async def ashared(value: str, memory: wireup.Injected[Shared]) -> Shared:
            return memory

        @wireup.inject_from_container(acontainer)
        async def afresh(value: str, memory: wireup.Injected[Fresh]) -> Fresh:
            return memory

        calls: tuple[Any, Any] = (ashared, afresh)
    else:
        container = wireup.create_sync_container(injectables=injectables)

        @wireup.inject_from_container(container)
        def shared(value: str, memory: wireup.Injected[Shared]) -> Shared:
            return memory

        @wireup.inject_from_container(container)
        def fresh(value: str, memory: wireup.Injected[Fresh]) -> Fresh:
            return memory

        calls = (shared, fresh)
    yield Candidate("wireup: singleton", "singleton", f"one object for all; {NOTHING}", calls[0])
    yield Candidate("wireup: transient", "fresh", f"a new object; {NOTHING}", calls[1])


def dishka_peer(is_async: bool) -> Iterator[Candidate]:
    app, request = dishka.Provider(scope=dishka.Scope.APP), dishka.Provider(scope=dishka.Scope.REQUEST)
    app.provide(Shared)
    request.provide(Fresh)
    container = (dishka.make_async_container if is_async else dishka.make_container)(app, request)

    def injected(fn: Any, manage_scope: bool) -> Any:
        wrap: Any = wrap_injection
        return wrap(
            func=fn,
            container_getter=lambda args, kwargs: container,
            is_async=is_async,
            remove_depends=True,
            manage_scope=manage_scope,
        )

    def shared(value: str, memory: dishka.FromDishka[Shared]) -> Shared:
        return memory

    def fresh(value: str, memory: dishka.FromDishka[Fresh]) -> Fresh:
        return memory

    async def ashared(value: str, memory: dishka.FromDishka[Shared]) -> Shared:
        return memory

    async def afresh(value: str, memory: dishka.FromDishka[Fresh]) -> Fresh:
        return memory

    calls: tuple[Any, Any] = (ashared, afresh) if is_async else (shared, fresh)
    yield Candidate("dishka: app scope", "singleton", f"one object for all; {NOTHING}", injected(calls[0], False))
    promise = "a new object; what it gave is closed after the call, nothing kept"
    yield Candidate("dishka: request scope", "fresh", promise, injected(calls[1], True))


def fast_depends_peer(is_async: bool) -> Iterator[Candidate]:
    if is_async:

        async def make() -> Fresh:
            # Anything that is not async would be run in a thread.
            return Fresh()

        @fast_depends.inject
        async def acall(value: str, memory: Annotated[Any, fast_depends.Depends(make)]) -> Any:
            return memory

        call: Any = acall
    else:

        @fast_depends.inject
        def scall(value: str, memory: Annotated[Any, fast_depends.Depends(Fresh)]) -> Any:
            return memory

        call = scall
    promise = f"a new object, arguments validated; {NOTHING}"
    yield Candidate("fast-depends: Depends", "fresh", promise, call)


SOURCES = (plain, closures, ours, dependency_injector, wireup_peer, dishka_peer, fast_depends_peer)


def candidates(is_async: bool) -> list[Candidate]:
    return [candidate for source in SOURCES for candidate in source(is_async)]


# Measuring.

Timer = Callable[[Candidate, int], float]


@contextmanager
def without_gc() -> Iterator[None]:
    """No collection inside a block, as `timeit` has it: it would fall on whoever is next."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def arguments(number: int) -> Iterator[str]:
    return islice(cycle(VALUES), number)


def time_sync(candidate: Candidate, number: int) -> float:
    """Nanoseconds for each of *number* calls."""
    call = candidate.call
    with candidate.around(), without_gc():
        call(VALUES[-1])
        values = arguments(number)
        start = perf_counter_ns()
        for value in values:
            call(value)
        return (perf_counter_ns() - start) / number


async def time_async(candidate: Candidate, number: int) -> float:
    """Nanoseconds for each of *number* calls, awaited one after the other."""
    call = candidate.call
    with candidate.around(), without_gc():
        await call(VALUES[-1])
        values = arguments(number)
        start = perf_counter_ns()
        for value in values:
            await call(value)
        return (perf_counter_ns() - start) / number


@contextmanager
def timer(is_async: bool) -> Iterator[Timer]:
    """How to time a candidate; all async ones on one event loop."""
    if not is_async:
        yield time_sync
        return
    loop = asyncio.new_event_loop()
    try:
        yield lambda candidate, number: loop.run_until_complete(time_async(candidate, number))
    finally:
        loop.close()


def calls_per_block(time: Timer, candidate: Candidate, block_ns: float) -> int:
    time(candidate, 100)
    return max(10, int(block_ns / time(candidate, 200)))


def rotated(items: Sequence[Candidate], by: int) -> list[Candidate]:
    """Another order for each round; every other round backwards, so that nobody always follows the same one."""
    by %= len(items)
    order = [*items[by:], *items[:by]]
    return order[::-1] if by % 2 else order


def measure(items: Sequence[Candidate], is_async: bool, rounds: int, block_ns: float) -> dict[str, list[float]]:
    """Nanoseconds for a call, by candidate, one figure for each round."""
    times: dict[str, list[float]] = {candidate.name: [] for candidate in items}
    with timer(is_async) as time:
        numbers = {candidate.name: calls_per_block(time, candidate, block_ns) for candidate in items}
        for round in range(rounds):
            for candidate in rotated(items, round):
                times[candidate.name].append(time(candidate, numbers[candidate.name]))
            gc.collect()
    return times


# The answer.


class Group:
    """All candidates of one kind of call, sync or async, with their times."""

    def __init__(self, is_async: bool, rounds: int, block_ns: float, against: str) -> None:
        self.name = "async" if is_async else "sync"
        self.candidates = candidates(is_async)
        self.against = self._named(against)
        self.times = measure(self.candidates, is_async, rounds, block_ns)
        self.singleton = self._cheapest("singleton")
        self.fresh = self._cheapest("fresh")

    def _named(self, part: str) -> str:
        for candidate in self.candidates:
            if part in candidate.name:
                return candidate.name
        known = ", ".join(repr(candidate.name) for candidate in self.candidates)
        raise SystemExit(f"--against: no candidate has {part!r} in its name; there are {known}")

    def _cheapest(self, kind: str) -> str:
        names = [candidate.name for candidate in self.candidates if candidate.kind == kind]
        return min(names, key=lambda name: self.ratio(name, self.against).median)

    def ratio(self, name: str, to: str) -> Spread:
        ratios = [a / b for a, b in zip(self.times[name], self.times[to], strict=True)]
        return Spread(*statistics.quantiles(ratios, n=4, method="inclusive"))

    def headlines(self) -> Iterator[tuple[str, Spread]]:
        for workload in ("read", "write"):
            for what, peer in (("a singleton", self.singleton), ("a fresh object", self.fresh)):
                label = f"{workload} over the cheapest bare injection of {what} ({peer})"
                yield label, self.ratio(f"memory: {workload}", peer)

    def table(self) -> str:
        head = (self.name, f"over {self.against}", "singleton", "fresh", "what it promises")
        rows = [
            (c.name, str(self.ratio(c.name, self.against)), *self._over_peers(c.name), c.promise) for c in self.candidates
        ]
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(width) if 0 < i < 4 else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in (head, tuple("-" * width for width in widths), *rows)
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _over_peers(self, name: str) -> tuple[str, str]:
        return f"{self.ratio(name, self.singleton).median:.2f}", f"{self.ratio(name, self.fresh).median:.2f}"

    def note(self) -> str:
        nanoseconds = statistics.median(self.times[self.against])
        return f"{self.name}: {self.against} took {nanoseconds:.0f} ns here, the loop around it included"

    def as_dict(self) -> dict[str, Any]:
        return {
            "against": self.against,
            "against_ns": statistics.median(self.times[self.against]),
            "cheapest": {"singleton": self.singleton, "fresh": self.fresh},
            "candidates": [
                {
                    "name": candidate.name,
                    "kind": candidate.kind,
                    "promise": candidate.promise,
                    "over_against": self.ratio(candidate.name, self.against)._asdict(),
                    "over_singleton": self.ratio(candidate.name, self.singleton)._asdict(),
                    "over_fresh": self.ratio(candidate.name, self.fresh)._asdict(),
                }
                for candidate in self.candidates
            ],
            "headlines": {label: spread._asdict() for label, spread in self.headlines()},
        }


def about(rounds: int) -> dict[str, Any]:
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "rounds": rounds,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def compare(rounds: int, block_ns: float, against: str) -> dict[str, Any]:
    """Measure, print the tables, and return all of it."""
    facts = about(rounds)
    versions = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    print(f"{facts['python']}; {versions}; {rounds} rounds")
    print("Ratios: median (quartiles) over the rounds; singleton, fresh: over the cheapest peer's bare injection of one.\n")
    groups = [Group(is_async, rounds, block_ns, against) for is_async in (False, True)]
    for group in groups:
        print(group.table(), end="\n\n")
    for group in groups:
        for label, spread in group.headlines():
            print(f"{group.name} {label}: {spread}")
    print()
    for group in groups:
        print(group.note())
    return {**facts, **{group.name: group.as_dict() for group in groups}}


# Where the time of a read goes.


class Piece(NamedTuple):
    """A part of the call path, as a statement; an indented label is part of the piece above it."""

    label: str
    statement: str


PIECES = (
    Piece("a wrapper that takes any arguments and calls on", "wrapper('x')"),
    Piece("  of it the function itself", "fn('x', memory)"),
    Piece("is it called by another one's body?", "get_current() is not None"),
    Piece("settings and identity", "wiring.settings; get_entered().identity"),
    Piece("where the memory of that identity stands", "identity.slots[place]"),
    Piece(
        "may it be taken as it stands?",
        "slot.home is settings.home and type(slot.snapshot) is Snapshot and (not owned or snapshot.owner == identity.owner)",
    ),
    Piece("a memory with ten keys, and freeing it", "update(new(Memory), values)"),
    Piece("  of it a dict copy of ten keys", "values.copy()"),
    Piece(
        "its six fields",
        "memory._namespace, memory._base, memory._extra = namespace, snapshot, None; "
        "memory._terms, memory._now, memory._touched = terms, 0.0, {}",
    ),
    Piece(
        "what a call inside would find, set and taken back", "reset(set_current([settings, identity, None, memory, None]))"
    ),
    Piece("was anything changed?", "memory._touched or base.packed or len(memory) != len(base.values)"),
)


@contextmanager
def pieces_of_read() -> Iterator[dict[str, Any]]:
    """A tool and everything that a call of it uses, by the names that the statements have."""
    gantry = Gantry()
    tool = gantry.with_memory(read)
    seed(gantry, "s", scalars())
    with ExitStack() as stack:
        stack.enter_context(gantry.session("s"))
        tool("x")
        plan, entered = tool.plan, ENTERED.get()
        assert entered is not None
        settings, identity, terms = plan.wiring.settings, entered.identity, plan.declarations[0].terms
        slot = identity.slots[plan.key]
        snapshot = slot.snapshot
        memory = open_memory(slot.namespace, snapshot, 0.0, terms)
        yield {
            "tool": tool,
            "fn": read,
            "memory": memory,
            "wrapper": wrapping(read, memory),
            "wiring": plan.wiring,
            "settings": settings,
            "get_current": CURRENT.get,
            "set_current": CURRENT.set,
            "reset": CURRENT.reset,
            "get_entered": ENTERED.get,
            "identity": identity,
            "place": plan.key,
            "slot": slot,
            "owned": terms.owned,
            "namespace": slot.namespace,
            "snapshot": snapshot,
            "terms": terms,
            "values": snapshot.values,
            "base": snapshot,
            "new": dict.__new__,
            "update": dict.update,
            "Memory": Memory,
            "Snapshot": Snapshot,
        }


def wrapping(fn: Callable[..., Any], memory: Any) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        kwargs["memory"] = memory
        return fn(*args, **kwargs)

    return called


def fastest(statements: Sequence[str], names: dict[str, Any], rounds: int, number: int = 5000) -> dict[str, float]:
    """Nanoseconds for each statement at its best, all taking turns, less what an empty loop takes."""
    timers = {statement: timeit.Timer(statement, globals=names) for statement in ("pass", *statements)}
    best = dict.fromkeys(timers, inf)
    for _ in range(rounds):
        for statement, each in timers.items():
            best[statement] = min(best[statement], each.timeit(number) / number * 1e9)
    return {statement: ns - best["pass"] for statement, ns in best.items()}


def profile(rounds: int) -> None:
    with pieces_of_read() as names:
        best = fastest(["tool('x')", *(piece.statement for piece in PIECES)], names, rounds)
    whole = best["tool('x')"]
    print(f"Where a read of ten keys spends its time (sync, best of {rounds}; this machine, this minute):\n")
    for piece in PIECES:
        print(f"{best[piece.statement]:6.0f} ns {best[piece.statement] / whole:5.0%}  {piece.label:50}  {piece.statement}")
    counted = sum(best[piece.statement] for piece in PIECES if not piece.label.startswith("  "))
    print(f"{whole - counted:6.0f} ns {(whole - counted) / whole:5.0%}  everything else: frames and branches in between")
    print(f"{whole:6.0f} ns  100%  the whole call{'':36}  tool('x')")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a call of a tool costs, as ratios.")
    parser.add_argument("--rounds", type=int, default=400, help="how often each candidate has its turn (default: 400)")
    parser.add_argument("--quick", action="store_true", help="a few short rounds, to see that it runs")
    parser.add_argument("--against", default="plain function: read", help="name, or part of it, of the denominator")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    parser.add_argument("--profile", action="store_true", help="show where the time of a read goes, and nothing else")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    gc.collect()
    gc.freeze()
    if options.profile:
        profile(20 if options.quick else options.rounds)
        return
    rounds, block_ns = (min(options.rounds, 20), 2e5) if options.quick else (options.rounds, 1e6)
    result = compare(rounds, block_ns, options.against)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
