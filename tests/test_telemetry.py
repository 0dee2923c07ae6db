"""Traces and metrics: what is reported, under which span, that it names nobody, and that who does not ask pays nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from executions import run as run_tool
from executions import unlimited
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from support import STORES, Blocking, Coroutines, closing, commit, committed

import agent_gantry_state
from agent_gantry_state import (
    AgentGantry,
    CorruptEntryError,
    Gantry,
    MemoryConflictError,
    MemoryTooLargeError,
    Namespace,
    PartialCommitError,
    ReadOnlyMemoryError,
    Scope,
    SessionOwnerError,
    StoreTimeoutError,
    StoreUnavailableError,
    UnstorableValueError,
    merge,
)
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Lease
from agent_gantry_state.telemetry import instrument, uninstrument

ROOT = Path(agent_gantry_state.__file__).parent


class Reported:
    """Providers that keep what they are told."""

    def __init__(self):
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers, self.meters = TracerProvider(), MeterProvider([self.reader])
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracers.get_tracer("caller")

    def of(self, gantry, **options):
        assert instrument(gantry, tracer_provider=self.tracers, meter_provider=self.meters, **options)
        return gantry

    def spans(self):
        return [span for span in self.exporter.get_finished_spans() if span.instrumentation_scope.name != "caller"]

    def names(self):
        return [span.name for span in self.spans()]

    def counts(self, name):
        """What a counter says, by its attributes."""
        data = self.reader.get_metrics_data()
        metrics = [] if data is None else [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
        return [
            (point.value, dict(point.attributes))
            for metric in metrics
            if metric.name == f"agent_gantry_state.{name}"
            for point in metric.data.data_points
        ]

    def everything(self):
        """All that was reported, as text."""
        data = self.reader.get_metrics_data()
        return "\n".join([*(span.to_json() for span in self.exporter.get_finished_spans()), data.to_json() if data else ""])


@pytest.fixture
def reported():
    return Reported()


@pytest.fixture(params=["sync", "asyncio", "trio"])
def run(request):
    """Runs a body as a tool."""

    def run(gantry, body, **options):
        if request.param == "sync":
            return gantry.with_memory(**options)(body)()

        async def tool(memory):
            return body(memory)

        return anyio.run(gantry.with_memory(**options)(tool), backend=request.param)

    return run


@pytest.fixture(params=[*STORES, "sqlite"])
def traced(request, reported, tmp_path):
    store = f"sqlite:///{tmp_path}/state.db" if request.param == "sqlite" else STORES[request.param]()
    gantry = Gantry(store, session="s1", user="ada")
    with closing(gantry):
        yield reported.of(gantry)


# Nobody pays who has not asked.


def test_gantry_stays_on_the_shortest_path_until_it_is_told_otherwise(reported, tmp_path):
    with Gantry(session="s1") as memory, Gantry(f"sqlite:///{tmp_path}/state.db", session="s1") as file:
        before = memory._wiring.settings, file._wiring.settings
        assert before[0].direct is not None
        assert before[1].single is not None

        for gantry in (memory, file):
            reported.of(gantry)
            assert gantry._wiring.settings.direct is gantry._wiring.settings.single is None
            uninstrument(gantry)

        assert memory._wiring.settings.direct is before[0].direct
        assert file._wiring.settings.single is before[1].single
        memory.with_memory(lambda memory: memory.update(x=1))()
    assert reported.spans() == []


def program(source):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, timeout=60, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_package_does_not_import_opentelemetry_by_itself():
    printed = program(
        "import sys\n"
        "from agent_gantry_state import Gantry\n"
        "with Gantry(session='s1') as gantry:\n"
        "    gantry.with_memory(lambda memory: memory.update(x=1))()\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'agent_gantry_state.telemetry'))])"
    )

    assert printed == "[]\n"


def test_without_the_package_nothing_happens_and_the_log_says_so():
    printed = program(
        "import logging, sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "logging.basicConfig(stream=sys.stdout, format='%(name)s: %(message)s')\n"
        "from agent_gantry_state import Gantry\n"
        "from agent_gantry_state.telemetry import instrument, uninstrument\n"
        "with Gantry(session='s1') as gantry:\n"
        "    print(instrument(gantry), gantry._wiring.settings.direct is not None)\n"
        "    print(gantry.with_memory(lambda memory: memory.add('n', 1))())\n"
        "    uninstrument(gantry)"
    )

    log, *rest = printed.splitlines()
    assert log.startswith("agent_gantry_state: ")
    assert "pip install agent-gantry-state[otel]" in log
    assert rest == ["False True", "1"]


def test_without_a_provider_calls_go_on_as_ever(run):
    with Gantry(session="s1") as gantry:
        assert instrument(gantry)

        assert run(gantry, lambda memory: memory.add("n", 1)) == 1
        assert committed(gantry) == {"n": 1}


@pytest.mark.parametrize(
    ("gantry", "options", "error", "message"),
    [
        ("memory://", {}, TypeError, "gantry must be a Gantry or an AgentGantry, not str"),
        (None, {"hash_ids": True}, TypeError, "hash_ids must be a secret text or bytes, or None, not bool"),
        (None, {"hash_ids": ""}, ValueError, "hash_ids must not be empty"),
    ],
)
def test_bad_arguments_are_refused(gantry, options, error, message):
    with Gantry() as made, pytest.raises(error, match=message):
        instrument(made if gantry is None else gantry, **options)


# Spans.


def test_load_and_commit_are_spans_under_the_callers(traced, reported, run):
    with reported.tracer.start_as_current_span("agent"):
        run(traced, lambda memory: memory.update(a="xy", b=[1, 2]))
        run(traced, lambda memory: memory.pop("b") and None)

    (around,) = [span for span in reported.exporter.get_finished_spans() if span.name == "agent"]
    spans = reported.spans()
    assert reported.names() == ["load session", "commit session"] * 2
    assert {span.parent.span_id for span in spans} == {around.context.span_id}
    system = spans[0].attributes["db.system.name"]
    assert system in ("memory", "Blocking", "Coroutines", "sqlite")
    assert {span.kind for span in spans} == {SpanKind.INTERNAL if system == "memory" else SpanKind.CLIENT}
    common = {"db.system.name": system, "agent_gantry_state.scope": "session"}
    load, write = {**common, "db.operation.name": "load"}, {**common, "db.operation.name": "commit"}
    write["agent_gantry_state.outcome"], load["agent_gantry_state.outcome"] = "committed", "loaded"
    # A name and a value of two letters and the byte before them; a list of two small numbers in three bytes.
    assert [dict(span.attributes) for span in spans] == [
        {**load, "agent_gantry_state.keys.loaded": 0, "agent_gantry_state.bytes": 0},
        {
            **write,
            "agent_gantry_state.keys.written": 2,
            "agent_gantry_state.keys.deleted": 0,
            "agent_gantry_state.bytes": 8,
        },
        {**load, "agent_gantry_state.keys.loaded": 2, "agent_gantry_state.bytes": 8},
        {
            **write,
            "agent_gantry_state.keys.written": 0,
            "agent_gantry_state.keys.deleted": 1,
            "agent_gantry_state.bytes": 0,
        },
    ]
    assert all(span.status.status_code is StatusCode.UNSET for span in spans)


class Instrumented(Blocking):
    """A store whose driver makes spans."""

    def __init__(self, tracer):
        super().__init__()
        self.tracer = tracer

    def load(self, message, /):
        with self.tracer.start_as_current_span("driver"):
            return super().load(message)

    def commit(self, message, /):
        with self.tracer.start_as_current_span("driver"):
            return super().commit(message)


def test_spans_of_a_driver_are_under_ours_and_the_tools_are_not(reported, run):
    def body(memory):
        memory["x"] = 1
        reported.tracer.start_span("body").end()

    with Gantry(Instrumented(reported.tracer), session="s1") as gantry:
        with reported.tracer.start_as_current_span("agent"):
            run(reported.of(gantry), body)

    spans = reported.exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans}
    under = [(span.name, span.parent and names[span.parent.span_id]) for span in spans]
    assert under == [
        ("driver", "load session"),
        ("load session", "agent"),
        ("body", "agent"),
        ("driver", "commit session"),
        ("commit session", "agent"),
        ("agent", None),
    ]


@pytest.mark.parametrize("kind", [Blocking, Coroutines])
@pytest.mark.parametrize(("verb", "committed"), [("load", False), ("commit", False), ("commit", None)])
def test_span_of_what_fails_says_so_by_type_and_never_by_text(reported, run, kind, verb, committed):
    error = StoreUnavailableError("secret-text", committed=committed)
    error.transient = False
    store = kind()

    def fail(message, /):
        raise error

    setattr(store if kind is Blocking else store.inner, verb, fail)
    gantry = reported.of(Gantry(store, session="s1"))
    with closing(gantry), pytest.raises(StoreUnavailableError):
        run(gantry, lambda memory: memory.update(x=1))

    last = reported.spans()[-1]
    assert reported.names() == (["load session"] if verb == "load" else ["load session", "commit session"])
    assert last.attributes["error.type"] == "StoreUnavailableError"
    assert last.attributes["agent_gantry_state.outcome"] == ("failed" if committed is False else "unknown")
    assert (last.status.status_code, last.status.description, last.events) == (StatusCode.ERROR, None, ())
    assert "secret-text" not in reported.everything()


def test_tool_that_fails_or_changes_nothing_has_a_load_alone(traced, reported, run):
    run(traced, lambda memory: dict(memory))
    with pytest.raises(ZeroDivisionError):
        run(traced, lambda memory: memory.update(x=1) or 1 / 0)

    assert reported.names() == ["load session"] * 2
    assert [span.status.status_code for span in reported.spans()] == [StatusCode.UNSET] * 2


def test_call_inside_another_one_asks_no_store(traced, reported):
    inner = traced.with_memory(lambda memory: memory.update(inner=1))

    @traced.with_memory
    def outer(memory):
        memory["outer"] = 1
        inner()

    outer()

    assert reported.names() == ["load session", "commit session"]
    assert committed(traced) == {"outer": 1, "inner": 1}


def test_memories_of_one_store_are_one_span_and_of_two_stores_two(reported):
    users = Blocking()
    with Gantry(session="s1", user="ada", scopes={"user": users}) as gantry:
        tool = gantry.with_memory(scope="user", into="prefs")(gantry.with_memory(lambda memory, prefs: prefs.update(x=1)))
        both = gantry.with_memory(scope="global", into="all")(gantry.with_memory(lambda memory, all: all.update(x=1)))
        reported.of(gantry)
        tool()
        both()

    assert [(span.name, span.attributes["db.system.name"]) for span in reported.spans()] == [
        ("load session", "memory"),
        ("load user", "Blocking"),
        ("commit user", "Blocking"),
        ("load global,session", "memory"),
        ("commit global", "memory"),
    ]
    assert [span.attributes.get("db.operation.batch.size") for span in reported.spans()] == [None, None, None, 2, None]


def test_erasure_and_what_an_operator_does_are_reported(traced, reported):
    commit(traced, "session", {}, {"x": 1})
    traced.forget("session", session="s1")

    (*_, last) = reported.spans()
    assert (last.name, last.attributes["agent_gantry_state.outcome"]) == ("forget session", "forgotten")


def test_store_of_an_override_is_reported_as_well(reported):
    with reported.of(Gantry(session="s1")) as gantry:
        with gantry.override(store=Blocking()):
            gantry.with_memory(lambda memory: memory.update(x=1))()

    assert [span.attributes["db.system.name"] for span in reported.spans()] == ["Blocking"] * 2


@pytest.mark.parametrize("kind", [Blocking, Coroutines])
def test_commit_of_a_cancelled_caller_is_not_cut(reported, kind):
    store, sent, go = kind(), asyncio.Event(), asyncio.Event()

    class Slow:
        """Lets the test cancel while the commit is on its way."""

        clock = None

        def __getattr__(self, name):
            return getattr(store, name)

    def slow(verb):
        async def answer(self, message, /):
            if verb == "commit":
                loop.call_soon_threadsafe(sent.set)
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go.wait(), loop))
            answered = getattr(store, verb)(message)
            return await answered if asyncio.iscoroutine(answered) else answered

        return answer

    for verb in ("load", "commit", "forget", "list", "lease", "release"):
        setattr(Slow, verb, slow(verb))

    async def close(self):
        pass

    Slow.close = close
    loop = None

    async def main():
        nonlocal loop
        loop = asyncio.get_running_loop()
        gantry = reported.of(Gantry(Slow(), session="s1"))

        @gantry.with_memory
        async def tool(memory):
            memory["x"] = 1

        task = asyncio.create_task(tool())
        await sent.wait()
        task.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with gantry.memory() as memory:
            assert dict(memory) == {"x": 1}
        await gantry._wiring.settings.bridge.aclose()
        await gantry.aclose()

    asyncio.run(main())

    outcomes = [span.attributes["agent_gantry_state.outcome"] for span in reported.spans()]
    assert outcomes == ["loaded", "committed", "loaded"]


def test_under_agent_gantry_the_callers_span_is_around_the_tools_own(reported):
    async def main():
        gantry = reported.of(AgentGantry(session="s1", **unlimited()))
        try:

            @gantry.register
            @gantry.with_memory
            async def note(memory: dict) -> str:
                """Note something in the memory of this session."""
                memory["x"] = 1
                return "noted"

            with reported.tracer.start_as_current_span("agent"):
                await run_tool(gantry, "note")
        finally:
            await gantry.close()

    asyncio.run(main())

    (around,) = [span for span in reported.exporter.get_finished_spans() if span.name == "agent"]
    assert [(span.name, span.parent.span_id) for span in reported.spans()] == [
        ("load session", around.context.span_id),
        ("commit session", around.context.span_id),
    ]


def test_exclusive_call_on_a_local_store_is_not_suspended(reported, tmp_path):
    running = []
    with reported.of(Gantry(f"sqlite:///{tmp_path}/state.db", session="s1")) as gantry:

        @gantry.with_memory(exclusive=True)
        async def tool(memory):
            running.append(True)
            await asyncio.sleep(0)

        async def main():
            coroutine = tool()
            coroutine.send(None)
            assert running
            coroutine.close()

        # What has been used before answers without a hop to a thread.
        gantry.with_memory(exclusive=True)(lambda memory: memory.get("x"))()
        asyncio.run(main())


def test_lease_of_an_exclusive_call_is_given_back(reported, run, tmp_path):
    with reported.of(Gantry(f"sqlite:///{tmp_path}/state.db", session="s1")) as gantry:
        run(gantry, lambda memory: memory.update(x=1), exclusive=True)

        lease = Lease(Namespace("session", "s1", "default"), b"somebody else", ttl=1.0)
        assert gantry._wiring.settings.bridge.perform(lease) == 0.0
    assert reported.names() == ["load session", "commit session"]


class Broken(SpanProcessor):
    def __init__(self, where):
        self.where = where

    def on_start(self, span, parent_context=None):
        if self.where == "start":
            raise RuntimeError("broken")

    def on_end(self, span):
        if self.where == "end":
            raise RuntimeError("broken")


@pytest.mark.parametrize("where", ["start", "end"])
def test_provider_that_raises_is_logged_and_changes_nothing(reported, run, caplog, where):
    reported.tracers.add_span_processor(Broken(where))
    with reported.of(Gantry(session="s1")) as gantry, caplog.at_level(logging.ERROR):
        run(gantry, lambda memory: memory.update(x=1))
        assert committed(gantry) == {"x": 1}

    assert {record.name for record in caplog.records} == {"agent_gantry_state"}
    assert {vars(record)["agent_gantry_state.event"] for record in caplog.records} == {"telemetry_failed"}


def test_counter_that_raises_is_logged_and_changes_nothing(reported, run, caplog):
    class Counting:
        def add(self, amount, attributes):
            raise RuntimeError("broken")

    class Meters(MeterProvider):
        def get_meter(self, *args, **options):
            meter = super().get_meter(*args, **options)
            meter.create_counter = lambda *args, **options: Counting()
            return meter

    with Gantry(session="s1") as gantry, caplog.at_level(logging.ERROR):
        instrument(gantry, tracer_provider=reported.tracers, meter_provider=Meters())
        run(gantry, quicker(gantry, {"x": 9}), merge={"x": merge.max})

        assert committed(gantry) == {"x": 9}
    assert {vars(record)["agent_gantry_state.event"] for record in caplog.records} == {"telemetry_failed"}


# Counters.


def quicker(gantry, theirs):
    """A body that a stranger is quicker than, the first time."""
    done = []

    def body(memory):
        memory["x"] = memory.get("x", 0) + 1
        if not done:
            done.append(True)
            commit(gantry, "session", {}, theirs)

    return body


def test_conflict_is_counted_and_a_merge_is_none(traced, reported, run):
    with pytest.raises(MemoryConflictError):
        run(traced, quicker(traced, {"x": 5}))
    assert reported.counts("conflicts") == [(1, {"agent_gantry_state.scope": "session"})]
    assert reported.counts("merges") == []
    assert reported.spans()[-1].attributes["agent_gantry_state.outcome"] == "moved"

    run(traced, quicker(traced, {"y": 5}))
    run(traced, quicker(traced, {"x": 9}), merge={"x": merge.max})

    assert committed(traced) == {"x": 9, "y": 5}
    assert reported.counts("conflicts") == [(1, {"agent_gantry_state.scope": "session"})]
    # Keys that nobody else writes need no merge where a store compares key by key.
    assert reported.counts("merges") == [(1, {"agent_gantry_state.scope": "session"})]
    assert reported.counts("retries") == []


def test_call_that_runs_again_is_counted(traced, reported, run):
    commit(traced, "session", {}, {"x": 1})

    run(traced, quicker(traced, {"x": 5}), on_conflict="retry")

    assert committed(traced) == {"x": 6}
    assert reported.counts("conflicts") == [(1, {"agent_gantry_state.scope": "session"})]
    assert reported.counts("retries") == [(1, {"agent_gantry_state.reason": "conflict"})]


@pytest.mark.anyio
@pytest.mark.parametrize(("declared", "counter"), [({}, "conflicts"), ({"x": merge.max}, "merges")])
async def test_calls_inside_that_meet_each_other_are_counted(reported, declared, counter):
    async with reported.of(Gantry(session="s1")) as gantry:
        begun = anyio.Event()

        @gantry.with_memory(merge=declared)
        async def slow(memory):
            memory["x"] = 1
            await begun.wait()

        @gantry.with_memory
        async def quick(memory):
            memory["x"] = 2

        @gantry.with_memory
        async def outer(memory):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(caught, slow)
                await anyio.wait_all_tasks_blocked()
                await quick()
                begun.set()

        async def caught(tool):
            with contextlib.suppress(MemoryConflictError):
                await tool()

        await outer()

        assert reported.counts(counter) == [(1, {"agent_gantry_state.scope": "session"})]
        assert reported.counts("merges" if counter == "conflicts" else "conflicts") == []
    assert reported.names() == ["load session", "commit session"]


@pytest.mark.parametrize("kind", [Blocking, Coroutines])
def test_commit_that_is_sent_again_is_counted(reported, run, kind):
    store, lost = kind(), []
    inner = store if kind is Blocking else store.inner
    answer = inner.commit

    def lose(message, /):
        answered = answer(message)
        if not lost:
            lost.append(True)
            raise StoreTimeoutError("no answer", committed=None)
        return answered

    inner.commit = lose
    gantry = reported.of(Gantry(store, session="s1"))
    with closing(gantry):
        run(gantry, lambda memory: memory.add("n", 1) and None)
        assert committed(gantry) == {"n": 1}

    assert reported.names()[:3] == ["load session", "commit session", "commit session"]
    assert [span.attributes["agent_gantry_state.outcome"] for span in reported.spans()][1:3] == ["unknown", "committed"]
    assert reported.counts("retries") == [
        (1, {"agent_gantry_state.reason": "unanswered", "error.type": "StoreTimeoutError"})
    ]


@pytest.mark.parametrize("all_of_it", [False, True])
@pytest.mark.parametrize("where", ["memory://", "sqlite", "file"])
def test_expired_keys_are_counted(reported, tmp_path, where, all_of_it):
    now = 1000.0
    url = where if where == "memory://" else f"{where}:///{tmp_path}/state"
    with reported.of(Gantry(url, session="s1")) as gantry, gantry.override(clock=lambda: now):
        tool = gantry.with_memory(lambda memory: dict(memory))

        @gantry.with_memory
        def write(memory):
            memory.set("a", 1, ttl=10)
            memory.set("b", [2], ttl=10)
            if not all_of_it:
                memory["stays"] = 3

        write()
        assert len(tool()) == (2 if all_of_it else 3)
        assert reported.counts("expired") == []
        now += 11

        assert tool() == ({} if all_of_it else {"stays": 3})

    system = "memory" if where == "memory://" else where
    assert reported.counts("expired") == [(2, {"db.system.name": system, "agent_gantry_state.scope": "session"})]


@pytest.mark.filterwarnings("ignore::agent_gantry_state.EvictionWarning")
@pytest.mark.parametrize("store", ["inline", "thread"])
def test_evicted_memory_is_counted_by_its_own_scope(reported, run, store):
    kept = MemoryStore(max_namespaces=1) if store == "inline" else Blocking(max_namespaces=1)
    with reported.of(Gantry(kept, session="s1", user="ada")) as gantry:
        run(gantry, lambda memory: memory.update(x=1), scope="user")
        assert reported.counts("evictions") == []
        run(gantry, lambda memory: memory.update(x=1))

    system = "memory" if store == "inline" else "Blocking"
    assert reported.counts("evictions") == [(1, {"db.system.name": system, "agent_gantry_state.scope": "user"})]


def test_entry_that_cannot_be_read_is_counted(reported, run, tmp_path):
    with reported.of(Gantry(f"sqlite:///{tmp_path}/state.db", session="s1")) as gantry:
        run(gantry, lambda memory: memory.update(x="secret-value"))
        with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as connection, connection:
            connection.execute("UPDATE entry SET record = x'01c1' WHERE key > 0")

        with Gantry(f"sqlite:///{tmp_path}/state.db", session="s1") as other, pytest.raises(CorruptEntryError):
            run(reported.of(other), lambda memory: dict(memory))

    assert reported.counts("corrupt") == [(1, {"db.system.name": "sqlite", "agent_gantry_state.scope": "session"})]
    assert reported.counts("refused") == []
    assert reported.spans()[-1].attributes["error.type"] == "CorruptEntryError"


def test_entry_that_a_commit_cannot_read_is_counted_once(reported, run, tmp_path):
    def body(memory):
        memory["x"] = 2
        with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as connection, connection:
            connection.execute("UPDATE entry SET record = x'01c1' WHERE key > 0")
            connection.execute("UPDATE entry SET version = x'0000000000000000'")

    with reported.of(Gantry(f"sqlite:///{tmp_path}/state.db", session="s1")) as gantry:
        run(gantry, lambda memory: memory.update(x=1))
        with pytest.raises(CorruptEntryError):
            run(gantry, body)

    assert reported.names()[-1] == "commit session"
    assert [count for count, _ in reported.counts("corrupt")] == [1]
    assert reported.counts("refused") == []


@pytest.mark.parametrize("operator", [False, True])
def test_erasure_that_is_sent_again_is_counted(reported, operator):
    class Losing(Blocking):
        """Loses its first answer to an erasure."""

        lost = False

        def forget(self, message, /):
            super().forget(message)
            if not self.lost:
                self.lost = True
                raise StoreTimeoutError("no answer", committed=None)

    with reported.of(Gantry(Losing(), session="s1")) as gantry:
        commit(gantry, "session", {}, {"x": 1})
        if operator:
            gantry.admin.forget(Namespace("session", "s1", "default"))
        else:
            gantry.forget("session", session="s1")

        assert committed(gantry) == {}
    assert [count for count, _ in reported.counts("retries")] == [1]


def test_call_inside_that_is_refused_what_the_one_around_it_has_is_counted(reported):
    with reported.of(Gantry(session="s1", user="ada")) as gantry:
        inner = gantry.with_memory(lambda memory: dict(memory))

        @gantry.with_memory
        def outer(memory):
            memory["x"] = 1
            with gantry.session("s1", user="eve"), pytest.raises(SessionOwnerError):
                inner()

        gantry.with_memory(lambda memory: memory.update(y=1))()
        outer()

    assert reported.counts("refused") == [(1, {"error.type": "SessionOwnerError"})]


def test_what_a_rule_refuses_is_counted_by_its_error(reported, run):
    with Gantry(session="s1", user="ada", scopes={"user": Scope(max_bytes=20)}) as gantry:
        reported.of(gantry)
        run(gantry, lambda memory: memory.update(x=1))
        for error, options, body in [
            (ReadOnlyMemoryError, {"read_only": True}, lambda memory: memory.update(x=2)),
            (UnstorableValueError, {}, lambda memory: memory.update(x=object())),
            (MemoryTooLargeError, {"scope": "user"}, lambda memory: memory.update(x="long" * 10)),
        ]:
            with pytest.raises(error):
                run(gantry, body, **options)
        with gantry.session("s1", user="eve"), pytest.raises(SessionOwnerError):
            run(gantry, lambda memory: dict(memory))

    refused = ["MemoryTooLargeError", "ReadOnlyMemoryError", "SessionOwnerError", "UnstorableValueError"]
    assert sorted(reported.counts("refused"), key=str) == [(1, {"error.type": name}) for name in refused]
    assert reported.counts("conflicts") == []


def test_conflict_of_a_commit_in_parts_is_counted(reported):
    class Late(Blocking):
        """Has somebody else be quicker, once it is told to."""

        quicker = None

        def commit(self, message, /):
            if self.quicker is not None:
                change, self.quicker = self.quicker, None
                change()
            return super().commit(message)

    users = Late()
    scopes = {"user": users}
    with reported.of(Gantry(session="s1", user="ada", scopes=scopes, partial_commits=True)) as gantry:

        @gantry.with_memory
        @gantry.with_memory(scope="user", into="prefs")
        def tool(memory, prefs):
            memory["x"] = prefs["x"] = 1
            users.quicker = lambda: commit(gantry, "user", {}, {"x": 2})

        with pytest.raises(PartialCommitError):
            tool()

    assert reported.counts("conflicts") == [(1, {"agent_gantry_state.scope": "user"})]


# Nobody and nothing is named.

SECRETS = {"key": "secret-key-71", "value": "secret-value-72", "session": "secret-session-73", "user": "secret-user-74"}


@pytest.mark.parametrize("hash_ids", [None, "pepper"])
@pytest.mark.parametrize("where", ["memory://", "sqlite", "file"])
def test_no_key_value_or_id_is_anywhere_in_what_is_reported(reported, run, caplog, tmp_path, where, hash_ids):
    caplog.set_level(logging.DEBUG)
    url = where if where == "memory://" else f"{where}:///{tmp_path}/state"
    key, value = SECRETS["key"], SECRETS["value"]
    with Gantry(url, app="secret-app-75", session=SECRETS["session"], user=SECRETS["user"]) as gantry:
        reported.of(gantry, hash_ids=hash_ids)
        run(gantry, lambda memory: memory.update({key: value, f"list {key}": [value]}))
        run(gantry, lambda memory: dict(memory), scope="user")
        with pytest.raises(MemoryConflictError):
            run(gantry, lambda memory: memory.update({key: 1}) or commit(gantry, "session", {}, {key: 2}))
        with pytest.raises(UnstorableValueError):
            run(gantry, lambda memory: memory.update({key: object()}))
        with pytest.raises(MemoryTooLargeError):
            run(gantry, lambda memory: memory.update({key: value * 100_000}))
        with gantry.session(SECRETS["session"], user="secret-eve"), pytest.raises(SessionOwnerError):
            run(gantry, lambda memory: dict(memory))
        gantry.forget("session", session=SECRETS["session"])

    told = reported.everything() + "\n".join(str(vars(record)) for record in caplog.records)
    assert len(reported.spans()) >= 8
    assert "secret" not in told
    for name in ("secret-app-75", *SECRETS.values()):
        for digest in (hashlib.sha256, hashlib.sha1, hashlib.md5):
            assert digest(name.encode()).hexdigest()[:16] not in told
    hashed = [span.attributes.get("agent_gantry_state.id.hash") for span in reported.spans()]
    assert all(each is None for each in hashed) if hash_ids is None else all(each is not None for each in hashed)


def test_hash_is_the_same_for_one_memory_and_another_with_another_secret():
    def hashes(secret, session):
        reported = Reported()
        with reported.of(Gantry(session=session), hash_ids=secret) as gantry:
            gantry.with_memory(lambda memory: memory.update(x=1))()
        return {span.attributes["agent_gantry_state.id.hash"] for span in reported.spans()}

    one = hashes("pepper", "s1")

    assert len(one) == 1
    assert re.fullmatch("[0-9a-f]{32}", *one)
    assert hashes(b"pepper", "s1") == one
    assert len(one | hashes("pepper", "s2") | hashes("salt", "s1")) == 3


# The log.


def test_every_record_of_the_log_has_its_event_and_the_page_says_which():
    text = {path.name: path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
    calls = [call for each in text.values() for call in re.split(r"\bLOG\.(?=\w+\()", each)[1:]]
    page = (ROOT.parent / "docs" / "telemetry.md").read_text(encoding="utf-8")

    # Within the call, which has no statement in it.
    pattern = re.compile(r'\w+\((?:(?!\n +\w+ = |\n +(?:raise|return|with|if)\b).)*?extra=fields\("(\w+)"', re.DOTALL)
    events = [pattern.match(call) for call in calls]
    assert all(events)
    assert {event[1] for event in events} == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert [name for name, each in text.items() if 'getLogger("agent_gantry_state' in each] == ["notes.py"]


def test_record_has_its_fields(caplog):
    with Gantry("memory://?max_namespaces=1", session="s1", user="ada") as gantry, caplog.at_level(logging.WARNING):
        gantry.with_memory(lambda memory: memory.update(x=1))()
        with pytest.warns(agent_gantry_state.EvictionWarning):
            gantry.with_memory(scope="user")(lambda memory: memory.update(x=1))()

    (record,) = caplog.records
    assert record.name == "agent_gantry_state"
    own = {name: value for name, value in vars(record).items() if name.startswith("agent_gantry_state.")}
    assert own == {"agent_gantry_state.event": "eviction", "agent_gantry_state.scope": "session"}
