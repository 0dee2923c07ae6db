"""The queues and leases behind exclusive=True, and what comes of them between processes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from support import Coroutines, wait_at_most

from agent_gantry_state import ExclusiveTimeoutError, Gantry, Namespace, OrphanedCallError, turns
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.holding import Want
from agent_gantry_state.memory import Terms
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import EMPTY, Lease, Load, Loaded, Release
from agent_gantry_state.stores.sqlite import SQLiteStore
from agent_gantry_state.turns import Turn, Turns, turns_of
from agent_gantry_state.unit_of_work import UnitOfWork

A, B = Namespace("session", "a", "app"), Namespace("session", "b", "app")
#: Longer than anything here takes, in seconds.
PATIENCE = 20.0
LEASE = 0.5


# Queues.


def test_turns_come_in_the_order_in_which_they_were_asked_for():
    queue_of = Turns()
    asked = [queue_of.ask(A, 0.0) for _ in range(3)]
    assert [turn.granted.done() for turn in asked] == [True, False, False]
    asked[0].leave()
    assert [turn.granted.done() for turn in asked] == [True, True, False]
    asked[1].leave()
    assert asked[2].granted.done()


def test_who_gives_up_waiting_hands_no_turn_on():
    queue_of = Turns()
    first, second, third = (queue_of.ask(A, 0.0) for _ in range(3))
    second.leave()
    assert not third.granted.done()
    first.leave()
    assert third.granted.done()


def test_turn_that_is_left_twice_is_left_once():
    queue_of = Turns()
    first, second, third = (queue_of.ask(A, 0.0) for _ in range(3))
    first.leave()
    first.leave()
    assert second.granted.done()
    assert not third.granted.done()


@pytest.mark.parametrize("asked", [2, 3])
def test_place_of_a_call_that_is_gone_is_nobodys(asked):
    queue_of = Turns()
    *gone, last = (queue_of.ask(A, time.monotonic() + PATIENCE) for _ in range(asked))
    assert not last.granted.done()
    del gone

    last.wait()

    last.leave()
    assert queue_of.ask(A, 0.0).granted.done()


def test_turn_that_is_left_in_the_middle_of_asking_for_another_stops_nobody():
    """As by the garbage collector, which may close a call anywhere."""
    queue_of, asked = Turns(), []

    class Asked:
        leaving = None

        def __hash__(self):
            if self.leaving is not None:
                turn, self.leaving = self.leaving, None
                turn.leave()
            return 1

    place = Asked()
    first = queue_of.ask(place, 0.0)
    place.leaving = first
    thread = threading.Thread(target=lambda: asked.append(queue_of.ask(place, 0.0)), daemon=True)
    thread.start()
    thread.join(PATIENCE)

    (second,) = asked
    assert second.granted.done()


def test_namespaces_have_queues_of_their_own_that_go_when_they_are_empty():
    queue_of = Turns()
    asked = [queue_of.ask(namespace, 0.0) for namespace in (A, B)]
    assert all(turn.granted.done() for turn in asked)
    for turn in asked:
        turn.leave()
    assert queue_of._queues == {}


def test_queues_go_with_their_store():
    store = MemoryStore()
    gone = weakref.ref(turns_of(store))
    assert turns_of(store) is gone()
    assert turns_of(MemoryStore()) is not gone()
    del store
    gc.collect()
    assert gone() is None


def test_store_that_cannot_be_hashed_has_queues_too():
    class Unhashable:
        __hash__ = None

    store = Unhashable()
    assert turns_of(store) is turns_of(store)
    assert turns_of(store) is not turns_of(Unhashable())


# Leases.


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def patience(monkeypatch):
    """Sets how long a call of this process waits for its turn."""
    return wait_at_most(monkeypatch, PATIENCE)


@pytest.fixture
def gantry(url, monkeypatch, patience):
    monkeypatch.setattr(turns, "LEASE_SECONDS", LEASE)
    with Gantry(url, session="s1") as gantry:
        yield gantry


def renewers():
    return [thread for thread in threading.enumerate() if thread.name == "agent-gantry-state-leases"]


def test_nothing_renews_when_nothing_is_held(gantry):
    seen = []

    @gantry.with_memory(exclusive=True)
    def tool(memory):
        seen.extend(renewers())
        memory["x"] = 1

    for _ in range(3):
        seen.clear()
        tool()
        assert len(seen) == 1
        seen[0].join(PATIENCE)
        assert not seen[0].is_alive()
    assert renewers() == []


def test_memory_in_this_process_needs_no_lease():
    with Gantry(session="s1") as gantry:
        assert gantry.with_memory(exclusive=True)(lambda memory: renewers())() == []


def test_gantries_of_one_process_on_one_file_take_turns(url, gantry):
    """They have a store each, so that only the lease tells them of each other."""
    inside, most = [], []

    def body(memory):
        inside.append(1)
        most.append(len(inside))
        memory["n"] = memory.get("n", 0) + 1
        inside.pop()

    with Gantry(url, session="s1") as other:
        tools = [each.with_memory(exclusive=True)(lambda memory: body(memory)) for each in (gantry, other)]
        threads = [threading.Thread(target=lambda t=tool: [t() for _ in range(15)]) for tool in tools]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with gantry.memory() as memory:
        assert (memory["n"], max(most)) == (30, 1)


class Remote(MemoryStore):
    """A store that other processes may use too, for all that is known of it."""

    inline = False


class Reluctance:
    """Makes a store grant a lease only when it may."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked, self.may_grant, self.granted, self.given_back = (threading.Event() for _ in range(4))

    def lease(self, message, /):
        self.asked.set()
        assert self.may_grant.wait(PATIENCE)
        # Who gives it back too early shall do it now.
        self.given_back.wait(0.1)
        try:
            return super().lease(message)
        finally:
            self.granted.set()

    def release(self, message, /):
        super().release(message)
        self.given_back.set()

    def grant(self):
        self.may_grant.set()


class Reluctant(Reluctance, Remote):
    def leases(self):
        return len(self._leases)


class ReluctantCoroutines(Coroutines):
    """The same made of coroutines; it goes on to its end though nobody may be waiting for it any more."""

    def __init__(self):
        super().__init__(Reluctant())
        self.asked, self.granted = self.inner.asked, self.inner.granted
        self.grant, self.leases = self.inner.grant, self.inner.leases

    async def lease(self, message, /):
        return await asyncio.to_thread(self.inner.lease, message)


class ReluctantFile(Reluctance, SQLiteStore):
    """A file in which another program is just writing until a lease is to be granted."""

    def __init__(self, path):
        super().__init__(path)
        self._writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def block(self):
        self._writer.execute("BEGIN IMMEDIATE")

    def grant(self):
        self._writer.execute("ROLLBACK")
        super().grant()

    def leases(self):
        return self._writer.execute("SELECT count(*) FROM lease").fetchone()[0]

    def close(self):
        self._writer.close()
        super().close()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["blocking", "coroutines", "sqlite"])
async def test_call_that_is_cancelled_while_its_lease_is_granted_leaves_none_behind(kind, tmp_path, monkeypatch, patience):
    # One that stays behind would be in the way for longer than this test waits.
    monkeypatch.setattr(turns, "LEASE_SECONDS", 10 * PATIENCE)
    if kind == "sqlite":
        store = ReluctantFile(tmp_path / "state.db")
        with Gantry(store, session="s1") as gantry:
            gantry.with_memory(lambda memory: memory.add("made"))()
        store.block()
    else:
        store = Reluctant() if kind == "blocking" else ReluctantCoroutines()
    gantry, cancelled = Gantry(store, session="s1"), anyio.CancelScope()
    bridge = gantry._wiring.settings.bridge

    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        await anyio.lowlevel.checkpoint()
        return "ran"

    async def begin():
        with cancelled:
            await tool()
        assert cancelled.cancelled_caught

    async with anyio.create_task_group() as group:
        group.start_soon(begin)
        await anyio.to_thread.run_sync(store.asked.wait, PATIENCE)
        cancelled.cancel()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        store.grant()

    assert await anyio.to_thread.run_sync(store.granted.wait, PATIENCE)
    with anyio.fail_after(PATIENCE):
        while store.leases():
            await anyio.sleep(0.001)
        assert await tool() == "ran"
    assert turns_of(store)._queues == {}
    gantry.close()
    if kind != "coroutines":
        store.close()
    await bridge.aclose()


def answers_to(requests):
    """What a store answers to a unit that takes its turn: the lease is granted, nothing is there."""
    for request in requests:
        if isinstance(request, Lease):
            yield 0.0
        elif isinstance(request, Load):
            yield Loaded((EMPTY,) * len(request.namespaces), 0.0)
        else:
            yield request.wait() if isinstance(request, Turn) else None


@pytest.mark.parametrize("outer_fails", [False, True])
def test_no_turn_is_kept_wherever_the_wait_for_it_is_cancelled(outer_fails):
    """The outer call may fail while the lease is asked for, so that it is to be given back at once."""
    for steps_before in itertools.count():
        store = Remote()
        bridge = bridge_to(store)
        outer = UnitOfWork({}, bridge)
        steps = UnitOfWork({A: Want.of(Terms("session", exclusive=True), None)}, bridge, outer).begin()
        over = False
        try:
            request = next(steps)
            for _ in range(steps_before):
                if outer_fails and isinstance(request, Lease):
                    outer.fail()
                (answer,) = answers_to([request])
                request = steps.send(answer)
            with pytest.raises(KeyboardInterrupt):
                steps.throw(KeyboardInterrupt)
        except (StopIteration, OrphanedCallError):
            over = True
        outer.fail()
        outer.drop()

        assert turns_of(store)._queues == {}, f"after {steps_before} steps"
        if over:
            break
    assert steps_before >= 2


def test_no_turn_is_kept_when_giving_it_back_is_cancelled():
    store = Remote()
    unit = UnitOfWork({A: Want.of(Terms("session", exclusive=True), None)}, bridge_to(store))
    unit.bridge.run(unit.begin())
    assert turns_of(store)._queues != {}

    steps = unit.release()
    assert isinstance(next(steps), Release)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt)

    assert turns_of(store)._queues == {}


def test_store_that_hangs_keeps_no_lease_of_another_store_from_being_renewed(monkeypatch, patience):
    monkeypatch.setattr(turns, "LEASE_SECONDS", 0.2)
    over = threading.Event()

    class Asked(Remote):
        def __init__(self, hangs):
            super().__init__()
            self.hangs, self.holders, self.renewed = hangs, set(), threading.Event()

        def lease(self, message, /):
            if message.holder in self.holders:
                self.renewed.set()
                assert not self.hangs or over.wait(PATIENCE)
            self.holders.add(message.holder)
            return super().lease(message)

    def holds(store):
        with Gantry(store, session="s1") as gantry:
            gantry.with_memory(exclusive=True)(lambda memory: over.wait(PATIENCE))()

    stores = bad, good = Asked(True), Asked(False)
    threads = [threading.Thread(target=holds, args=(store,)) for store in stores]
    try:
        threads[0].start()
        assert bad.renewed.wait(PATIENCE)
        threads[1].start()
        assert good.renewed.wait(PATIENCE / 4)
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("is_async", [False, True])
def test_store_that_fails_to_take_a_lease_back_takes_nothing_from_the_call(is_async, caplog):
    class Failing(Remote):
        def release(self, message, /):
            raise OSError("it is down")

    with Gantry(Failing(), session="s1") as gantry:

        @gantry.with_memory(exclusive=True)
        def tool(memory):
            memory["x"] = 1
            return "ran"

        @gantry.with_memory(exclusive=True)
        async def async_tool(memory):
            memory["x"] = 1
            return "ran"

        assert (asyncio.run(async_tool()) if is_async else tool()) == "ran"
        assert content(gantry) == {"x": 1}
        assert turns_of(gantry._wiring.settings.bridge.store)._queues == {}
    (record,) = caplog.records
    assert (record.name, "it is down" in record.getMessage()) == ("agent_gantry_state", True)


# Between processes.

PREAMBLE = """
    import os, sys
    from agent_gantry_state import Gantry, StateError, turns

    url, turns.LEASE_SECONDS = sys.argv[1], float(sys.argv[2])
    gantry = Gantry(url, session="s1")

    def say(*words):
        print(*words, flush=True)

    def wait():
        sys.stdin.readline()
"""

HOLDER = """
    @gantry.with_memory(exclusive=True)
    def tool(memory):
        memory["holder"] = True
        say("inside")
        wait()

    try:
        tool()
        say("landed")
    except StateError as error:
        say(type(error).__name__, error.committed)
    gantry.close()
"""

COUNTER = """
    import asyncio

    @gantry.with_memory(exclusive=True)
    def sync_tool(memory):
        n = memory.get("n", 0)
        say("in")
        memory["n"] = n + 1

    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        n = memory.get("n", 0)
        await asyncio.sleep(0)
        memory["n"] = n + 1

    async def main():
        await asyncio.gather(*(tool() for _ in range(10)))

    say("ready")
    wait()
    try:
        for _ in range(10):
            sync_tool()
        asyncio.run(main())
        say("landed")
    except StateError as error:
        say(type(error).__name__, error)
    gantry.close()
"""


class Process:
    """A Python program that is talked to line by line."""

    def __init__(self, script, *args):
        source = textwrap.dedent(PREAMBLE) + textwrap.dedent(script)
        self.popen = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = queue.Queue()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.popen.stdout:
            self.said.put(line.strip())

    def hear(self):
        try:
            return self.said.get(timeout=PATIENCE)
        except queue.Empty:
            self.popen.kill()
            raise AssertionError(f"it says nothing: {self.popen.stderr.read()}") from None

    def go(self):
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def send(self, number):
        os.kill(self.popen.pid, number)

    def end(self):
        """Have it end; what it has said."""
        try:
            self.popen.wait(PATIENCE)
        finally:
            self.popen.kill()
            self.popen.wait()
            self.reader.join()
            self.popen.stdin.close()
            self.popen.stdout.close()
            self.popen.stderr.close()
        return list(self.said.queue)


@pytest.fixture
def start(url):
    started = []

    def start(script, lease=LEASE):
        started.append(Process(script, url, lease))
        return started[-1]

    yield start
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
        process.end()


def content(gantry):
    with gantry.memory() as memory:
        return dict(memory)


def test_processes_take_turns(gantry, start):
    """Read, let go, write: any overlap would be a conflict."""
    processes = [start(COUNTER, lease=10.0) for _ in range(3)]
    for process in processes:
        assert process.hear() == "ready"
    for process in processes:
        process.go()
    for process in processes:
        assert [process.hear() for _ in range(11)] == ["in"] * 10 + ["landed"]
        process.end()
    assert content(gantry) == {"n": 60}


def test_call_waits_for_one_of_another_process(gantry, start):
    holder = start(HOLDER)
    assert holder.hear() == "inside"
    seen = []
    tool = gantry.with_memory(exclusive=True)(lambda memory: seen.append(dict(memory)))
    thread = threading.Thread(target=tool)
    thread.start()
    holder.go()
    assert holder.hear() == "landed"
    thread.join(PATIENCE)
    assert seen == [{"holder": True}]


def test_lease_is_renewed_while_the_body_runs(gantry, start, patience):
    patience(LEASE * 4)
    holder = start(HOLDER)
    assert holder.hear() == "inside"
    ran = []
    with pytest.raises(ExclusiveTimeoutError, match="did not run"):
        gantry.with_memory(exclusive=True)(lambda memory: ran.append(1))()
    assert ran == []
    holder.go()
    assert holder.hear() == "landed"
    assert content(gantry) == {"holder": True}


def test_lease_that_nobody_has_any_more_is_not_renewed(gantry):
    bridge = gantry._wiring.settings.bridge

    def granted():
        return bridge.run(turns.leased(bridge, A, time.monotonic() + PATIENCE))

    # What a signal leaves of a call.
    assert granted() is not None

    bridge.run(turns.released(granted()))


def test_call_over_which_its_event_loop_was_closed_keeps_nobody_waiting(gantry):
    inside, end = threading.Event(), threading.Event()

    @gantry.with_memory(exclusive=True)
    async def forsaken(memory):
        inside.set()
        # The thread that anyio keeps for the next one has the task, so that it is not collected.
        await anyio.to_thread.run_sync(end.wait)

    async def begin():
        # As a program that forgets what it has begun does.
        task = asyncio.ensure_future(forsaken())
        while not inside.is_set():
            await asyncio.sleep(0.001)
        return weakref.ref(task)

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin())
    loop.close()
    end.set()

    gantry.with_memory(exclusive=True)(lambda memory: memory.update(x=1))()

    assert task() is not None
    assert content(gantry) == {"x": 1}


@pytest.mark.anyio
async def test_sync_call_that_would_block_a_loop_for_another_process_is_refused_at_once(gantry, start):
    holder = start(HOLDER)
    assert holder.hear() == "inside"
    before = time.monotonic()
    with pytest.raises(ExclusiveTimeoutError, match="event loop"):
        gantry.with_memory(exclusive=True)(lambda memory: None)()
    assert time.monotonic() - before < PATIENCE / 2
    holder.go()
    assert holder.hear() == "landed"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_holder_that_was_stopped_past_its_lease_writes_nothing(gantry, start):
    holder = start(HOLDER)
    assert holder.hear() == "inside"
    holder.send(signal.SIGSTOP)
    try:
        gantry.with_memory(exclusive=True)(lambda memory: memory.update(other=True))()
    finally:
        holder.send(signal.SIGCONT)
    holder.go()
    assert holder.hear() == "MemoryConflictError False"
    assert content(gantry) == {"other": True}


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_holder_that_was_stopped_is_refused_for_what_it_only_read(gantry, start):
    """Its write goes to another memory, and stands on what it read in the one that it had to itself."""
    holder = start("""
        @gantry.with_memory(exclusive=True)
        @gantry.with_memory(scope="global", into="common")
        def tool(memory, common):
            common["seen"] = memory.get("other", False)
            say("inside")
            wait()

        try:
            tool()
            say("landed")
        except StateError as error:
            say(type(error).__name__)
        gantry.close()
    """)
    assert holder.hear() == "inside"
    holder.send(signal.SIGSTOP)
    try:
        gantry.with_memory(exclusive=True)(lambda memory: memory.update(other=True))()
    finally:
        holder.send(signal.SIGCONT)
    holder.go()
    assert holder.hear() == "MemoryConflictError"
    with gantry.memory("global") as common:
        assert common == {}


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_holder_that_was_stopped_while_nobody_came_lands(gantry, start):
    holder = start(HOLDER)
    assert holder.hear() == "inside"
    holder.send(signal.SIGSTOP)
    seen = []
    # Somebody who had it meanwhile and changed nothing is no obstacle.
    gantry.with_memory(exclusive=True)(lambda memory: seen.append(dict(memory)))()
    holder.send(signal.SIGCONT)
    holder.go()
    assert holder.hear() == "landed"
    assert (seen, content(gantry)) == ([{}], {"holder": True})


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_next_gets_its_turn_when_the_holder_was_killed(gantry, start):
    holder = start(HOLDER)
    assert holder.hear() == "inside"
    holder.send(signal.SIGKILL)
    holder.end()
    assert gantry.with_memory(exclusive=True)(lambda memory: dict(memory))() == {}


def test_program_that_ends_with_a_call_under_way_ends(start, gantry):
    """The thread that renews keeps no program alive."""
    process = start("""
        import threading

        entered = threading.Event()

        @gantry.with_memory(exclusive=True)
        def tool(memory):
            entered.set()
            threading.Event().wait()

        threading.Thread(target=tool, daemon=True).start()
        entered.wait()
        say("inside")
    """)
    assert process.hear() == "inside"
    process.end()
    assert process.popen.returncode == 0
    assert gantry.with_memory(exclusive=True)(lambda memory: dict(memory))() == {}


# Forks.

FORK = """
    import threading

    gantry = Gantry(MEMORY or url, session="s1")
    entered, may_end = threading.Event(), threading.Event()

    @gantry.with_memory(exclusive=True)
    def holder(memory):
        memory["holder"] = True
        entered.set()
        may_end.wait()

    @gantry.with_memory(exclusive=True)
    def tool(memory):
        return sorted(memory)

    @gantry.with_memory(scope="global")
    def outer(memory):
        return tool()

    thread = threading.Thread(target=holder)
    thread.start()
    entered.wait()
    pid = os.fork()
    if pid == 0:
        say("child", tool(), outer())
        os._exit(0)
    if MEMORY:
        os.waitpid(pid, 0)
    may_end.set()
    thread.join()
    if not MEMORY:
        os.waitpid(pid, 0)
    say("parent", tool())
    gantry.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_child_is_not_kept_waiting_by_a_call_of_its_parent(start):
    """Whoever held the turn does not exist in the child."""
    process = start("MEMORY = 'memory://'" + textwrap.dedent(FORK))
    assert process.hear() == "child [] []"
    assert process.hear() == "parent ['holder']"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_child_waits_for_the_lease_of_its_parent(start):
    process = start("MEMORY = None" + textwrap.dedent(FORK))
    assert {process.hear(), process.hear()} == {"child ['holder'] ['holder']", "parent ['holder']"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork_at_the_moment_of_a_nested_call_leaves_the_child_free(start):
    """Whatever lock another thread has at a fork, nobody in the child would ever give it back."""
    process = start("""
        import threading
        from agent_gantry_state.unit_of_work import NESTING

        gantry = Gantry(session="s1")
        inner = gantry.with_memory(exclusive=True)(lambda memory: memory.add("n"))
        outer = gantry.with_memory(scope="global")(lambda memory: inner())
        locked, may_end = threading.Event(), threading.Event()

        def hold():
            with NESTING.lock, turns._LOCK:
                locked.set()
                may_end.wait()

        threading.Thread(target=hold).start()
        locked.wait()
        pid = os.fork()
        if pid == 0:
            threading.Timer(5, os._exit, (1,)).start()
            say("child", outer())
            os._exit(0)
        say("parent", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        may_end.set()
    """)
    assert process.end() == ["child 1", "parent 0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_child_renews_its_own_leases(start, gantry, patience):
    """The thread that renews in the parent is not there in the child."""
    process = start("""
        import threading

        entered, may_end = threading.Event(), threading.Event()

        @gantry.with_memory(scope="global", exclusive=True)
        def holder(memory):
            entered.set()
            may_end.wait()

        @gantry.with_memory(exclusive=True)
        def tool(memory):
            say("inside")
            wait()

        thread = threading.Thread(target=holder)
        thread.start()
        entered.wait()
        pid = os.fork()
        if pid == 0:
            tool()
            os._exit(0)
        os.waitpid(pid, 0)
        may_end.set()
        thread.join()
        say("done")
        gantry.close()
    """)
    assert process.hear() == "inside"
    patience(LEASE * 4)
    with pytest.raises(ExclusiveTimeoutError):
        gantry.with_memory(exclusive=True)(lambda memory: None)()
    process.go()
    assert process.hear() == "done"
