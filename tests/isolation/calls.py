"""Calls of real tools, made in threads and tasks at once, and what each of them saw: what `checker` looks at.

A body follows a script: a list of steps, made of plain data. It is a generator, which one loop drives for sync tools and
one for async ones: it yields where others may come between, and the scripts of tools that it calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from isolation.checker import MODES, Txn

from agent_gantry_state import Gantry, Session, StateError, SyncSession, merge

LISTS = ("a", "b", "c")
SCOPES = {"session": "memory", "user": "mine"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "merge": {},
    "conflict": {"merge": dict.fromkeys(LISTS, merge.conflict)},
    "serializable": {"isolation": "serializable"},
    "exclusive": {"exclusive": True},
}
#: Which namespaces a tool writes to, and which it only looks at.
SHAPES = {
    "one": (("session",), ()),
    "other": (("user",), ()),
    "both": (("session", "user"), ()),
    "beside": (("session",), ("user",)),
    "look": ((), ("session", "user")),
    "glance": ((), ("session",)),
}


class Planned(Exception):
    """The script says that this call fails."""


@dataclass
class Run:
    """One run of a body, and of those that it called and that came to a good end."""

    ops: list[list[Any]] = field(default_factory=list)
    bodies: list[list[Any]] = field(default_factory=list)
    loose: bool = False


class Record:
    """What one outermost call did.

    Attributes:
        lost: Elements that were appended by runs whose changes do not.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost: list[tuple[str, str]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def element(self) -> str:
        return f"{self.name}.{next(self._numbers)}"

    def drop(self, run: Run | None) -> None:
        """*run* has come to nothing."""
        if run is not None:
            with self._lock:
                self.lost += [(where, element) for kind, where, element, *_ in run.ops if kind == "append"]


class Slot:
    """Where a tool leaves its run: the last one counts, for a body may run again after a conflict."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.run: Run | None = None

    def begin(self) -> Run:
        self.record.drop(self.run)
        self.run = Run()
        return self.run


def _body(script: list[list[Any]], slot: Slot, memories: dict[str, Any], mode: str) -> Generator[Any, Any, None]:
    run = slot.begin()
    begun = time.monotonic()
    for scope, memory in memories.items():
        there = sum(len(memory.get(key, ())) for key in LISTS)
        run.ops.append(["count", scope, memory.get("n", 0), there])
    for kind, *rest in script:
        if kind == "pause":
            yield None
        elif kind == "fail":
            raise Planned
        elif kind == "call":
            calls = rest[0]
            slots = [Slot(slot.record) for _ in calls]
            run.loose = run.loose or len(calls) > 1
            yield list(zip(calls, slots, strict=True))
        else:
            scope, key = rest
            memory, where = memories[scope], f"{scope}/{key}"
            run.ops.append(["read", where, list(memory.get(key, ()))])
            if kind == "append":
                element = slot.record.element()
                if len(run.ops) % 2:
                    memory.setdefault(key, []).append(element)
                else:
                    memory[key] = [*memory.get(key, ()), element]
                memory.add("n")
                run.ops.append(["append", where, element])
    if mode == "exclusive":
        # Of the outermost: those inside share its turn.
        run.bodies = [[scope, begun, time.monotonic()] for scope in memories]


def _take_in(run: Run, slot: Slot, ok: bool) -> None:
    """Add the run of a call inside to that of the one around it, or drop it."""
    if not ok:
        slot.record.drop(slot.run)
    elif slot.run is not None:
        run.ops += slot.run.ops
        run.loose = run.loose or slot.run.loose


class Tools:
    """The tools of one gantry, in every mode and shape, sync and async."""

    def __init__(self, gantry: Gantry) -> None:
        self.gantry = gantry
        self._made: dict[tuple[str, str, bool, bool], Callable[..., Any]] = {}
        self._lock = threading.Lock()

    def get(self, mode: str, shape: str, again: bool, is_async: bool) -> Callable[..., Any]:
        with self._lock:
            key = mode, shape, again, is_async
            if key not in self._made:
                self._made[key] = self._make(*key)
            return self._made[key]

    def _make(self, mode: str, shape: str, again: bool, is_async: bool) -> Callable[..., Any]:
        retry: dict[str, Any] = {"on_conflict": "retry", "retries": 3} if again else {}
        if shape == "session":
            keyed: Any = self._akeyed(mode) if is_async else self._keyed(mode)
            return self.gantry.with_session(**_OPTIONS[mode], **retry)(keyed)
        writes, looks = SHAPES[shape]

        def begin(script: list[list[Any]], slot: Slot, memory: Any, mine: Any) -> Generator[Any, Any, None]:
            there = {"session": memory, "user": mine}
            return _body(script, slot, {scope: there[scope] for scope in (*writes, *looks)}, mode)

        if is_async:

            async def tool(script, slot, memory=None, mine=None):
                await self._adrive(begin(script, slot, memory, mine), slot, mode)
        else:

            def tool(script, slot, memory=None, mine=None):
                self._drive(begin(script, slot, memory, mine), slot, mode)

        made: Any = tool
        for scope in (*writes, *looks):
            options = {**_OPTIONS[mode], **retry, "read_only": scope in looks}
            made = self.gantry.with_memory(scope=scope, into=SCOPES[scope], **options)(made)
        return made

    def _drive(self, steps: Generator[Any, Any, None], slot: Slot, mode: str) -> None:
        for calls in steps:
            for (shape, script), inner in calls or ():
                ok = False
                try:
                    self.get(mode, shape, False, False)(script, inner)
                    ok = True
                except (Planned, StateError):
                    pass
                finally:
                    _take_in(slot.run, inner, ok)
            # Long enough for others to commit in.
            time.sleep(0.0005)

    async def _adrive(self, steps: Generator[Any, Any, None], slot: Slot, mode: str) -> None:
        async def call(shape: str, script: list[list[Any]], inner: Slot) -> None:
            ok = False
            try:
                await self.get(mode, shape, False, True)(script, inner)
                ok = True
            except (Planned, StateError):
                pass
            finally:
                _take_in(slot.run, inner, ok)

        for calls in steps:
            await asyncio.gather(*(call(shape, script, inner) for (shape, script), inner in calls or ()))
            await asyncio.sleep(0)

    # Key by key. What reads at several moments has read one snapshot only if its commit says so.

    def _keyed(self, mode: str) -> Any:
        def tool(script, slot, session: SyncSession):
            run = slot.begin()
            for kind, *rest in script:
                if kind == "fail":
                    raise Planned
                there = session.get(rest[1], [])
                if (element := _noted(run, slot, kind, rest, there, mode)) is not None:
                    session.set(rest[1], [*there, element])
                    session.add("n")

        return tool

    def _akeyed(self, mode: str) -> Any:
        async def tool(script, slot, session: Session):
            run = slot.begin()
            for kind, *rest in script:
                if kind == "fail":
                    raise Planned
                there = await session.get(rest[1], [])
                if (element := _noted(run, slot, kind, rest, there, mode)) is not None:
                    await session.set(rest[1], [*there, element])
                    await session.add("n")

        return tool


def _noted(run: Run, slot: Slot, kind: str, rest: list[Any], there: list[str], mode: str) -> str | None:
    """Note what a session gave; the element to append to it, if that is what is to be done."""
    where = "/".join(rest)
    if mode in ("serializable", "exclusive"):
        run.ops.append(["read", where, list(there)])
    if kind != "append":
        return None
    element = slot.record.element()
    run.ops.append(["append", where, element])
    return element


# Scripts, and who follows them.


def script_for(rng: random.Random, shape: str, is_async: bool, free: bool = False, depth: int = 0) -> list[list[Any]]:
    """Something for a tool of this shape to do.

    Args:
        rng: Chooses.
        shape: One of SHAPES, or "session".
        is_async: Whether it can call several tools at once.
        free: Whether the tools that it calls may load what it has not, so that it reads at several moments.
        depth: How many tools are around it.
    """
    if shape == "session":
        steps = [[rng.choice(["read", "append"]), "session", rng.choice(LISTS)] for _ in range(rng.randint(1, 3))]
        return [*steps, ["fail"]] if rng.random() < 0.1 else steps
    writes, looks = SHAPES[shape]
    steps: list[list[Any]] = []
    for _ in range(rng.randint(1, 4)):
        chance = rng.random()
        if chance < (0.3 if free else 0.15) and depth < 2:
            fits = [each for each, (w, r) in SHAPES.items() if {*w} <= {*writes} and {*w, *r} <= {*writes, *looks}]
            # Of those that only look, what they call only looks, too, so that nothing but the looking is to be right.
            shapes = [each for each, (w, _) in SHAPES.items() if writes or not w] if free else fits
            count = rng.choice([1, 2, 3]) if is_async else 1
            inner = [rng.choice(shapes) for _ in range(count)]
            steps.append(["call", [[each, script_for(rng, each, is_async, free, depth + 1)] for each in inner]])
        elif chance < 0.6 and writes:
            steps.append(["append", rng.choice(writes), rng.choice(LISTS)])
        else:
            steps.append(["read", rng.choice((*writes, *looks)), rng.choice(LISTS)])
        if rng.random() < 0.4:
            steps.append(["pause"])
    if rng.random() < 0.15:
        steps.insert(rng.randint(0, len(steps)), ["fail"])
    return steps


@dataclass
class Job:
    """What one process is to do with one gantry.

    Attributes:
        mode: One of MODES, or "mixed".
        seed: Of the scripts.
        shapes: The tools to use.
        calls: How many calls each lane makes.
        threads: How many threads call sync tools.
        tasks: How many tasks there are on an event loop.
        hops: Whether one task in three calls sync tools, in threads of it.
    """

    mode: str
    seed: int
    shapes: tuple[str, ...] = (*SHAPES, "session")
    calls: int = 10
    threads: int = 2
    tasks: int = 3
    hops: bool = True


class Lanes:
    """Those who call tools of one gantry at once: threads, tasks, and tasks that call in threads."""

    def __init__(self, gantry: Gantry, job: Job, name: str) -> None:
        self.tools = Tools(gantry)
        self.job = job
        self.name = name
        self.txns: list[Txn] = []
        self.errors: list[BaseException] = []

    def run(self) -> list[Txn]:
        """Make all calls; what each did."""
        threads = [threading.Thread(target=self._guarded, args=(self._thread, lane)) for lane in range(self.job.threads)]
        if self.job.tasks:
            threads.append(threading.Thread(target=self._guarded, args=(self._loop, self.job.threads)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return self.txns

    def _guarded(self, work: Callable[[int], None], lane: int) -> None:
        try:
            work(lane)
        except BaseException as error:
            self.errors.append(error)

    def _thread(self, lane: int) -> None:
        for tool, *call in self._calls(lane, False):
            with self._noting(*call) as (script, slot):
                tool(script, slot)

    def _loop(self, lane: int) -> None:
        async def main() -> None:
            hopping = [self.job.hops and number % 3 == 1 for number in range(self.job.tasks)]
            await asyncio.gather(*(self._task(lane + number, not hops) for number, hops in enumerate(hopping)))

        asyncio.run(main())

    async def _task(self, lane: int, is_async: bool) -> None:
        for tool, *call in self._calls(lane, is_async):
            with self._noting(*call) as (script, slot):
                if is_async:
                    await tool(script, slot)
                else:
                    await asyncio.to_thread(tool, script, slot)

    def _calls(self, lane: int, is_async: bool) -> Iterator[tuple[Any, ...]]:
        rng = random.Random(f"{self.job.seed} {self.name} {lane}")
        for number in range(self.job.calls):
            mode = rng.choice(MODES) if self.job.mode == "mixed" else self.job.mode
            shape = rng.choice(self.job.shapes)
            tool = self.tools.get(mode, shape, rng.random() < 0.5, is_async)
            # Not exclusive ones, which could wait for each other.
            free = mode == "serializable" and "both" in self.job.shapes and rng.random() < 0.5
            txn = Txn(f"{self.name}.{lane}.{number}", mode, moments=free or shape == "session")
            yield tool, txn, script_for(rng, shape, is_async, free)

    @contextlib.contextmanager
    def _noting(self, txn: Txn, script: list[list[Any]]) -> Iterator[tuple[Any, Slot]]:
        slot = Slot(Record(txn.name))
        txn.start = time.monotonic()
        try:
            yield script, slot
        except Planned:
            txn.outcome = "failed"
        except StateError as error:
            txn.outcome = "unknown" if error.committed is None else "failed"
            txn.error = type(error).__name__
        txn.end = time.monotonic()
        run = slot.run or Run()
        txn.ops, txn.loose = run.ops, run.loose
        if txn.outcome == "ok":
            txn.bodies = run.bodies
        self.txns.append(txn)
        lost = slot.record.lost
        if lost:
            self.txns.append(Txn(f"{txn.name}.lost", txn.mode, "failed", [["append", *each] for each in lost], moments=True))


def content(gantry: Gantry) -> tuple[dict[str, list[str]], dict[str, int]]:
    """What is in the lists, and what the counters say."""
    final: dict[str, list[str]] = {}
    counters = {}
    for scope in SCOPES:
        with gantry.memory(scope) as memory:
            final.update({f"{scope}/{key}": list(memory.get(key, ())) for key in LISTS})
            counters[scope] = memory.get("n", 0)
    return final, counters
