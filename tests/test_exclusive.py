"""exclusive=True: one call after the other, in the order of the calls, whatever threads and event loops they come from."""

from __future__ import annotations

import asyncio
import threading
import time

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from support import Blocking, wait_at_most

from agent_gantry_state import (
    DeclarationError,
    ExclusiveTimeoutError,
    Gantry,
    MemoryConflictError,
    OrphanedCallError,
    Session,
    SessionOwnerError,
    SyncSession,
    turns,
)
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.turns import turns_of

#: Longer than anything here takes; what waits so long waits for ever.
PATIENCE = 4.0


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Sets how long a call waits for its turn. A lease that nobody gives back or renews lapses much sooner."""
    monkeypatch.setattr(turns, "LEASE_SECONDS", 0.5)
    return wait_at_most(monkeypatch, PATIENCE)


@pytest.fixture(params=["memory", "sqlite"])
def gantry(request, tmp_path):
    where = MemoryStore() if request.param == "memory" else f"sqlite:///{tmp_path}/state.db"
    with Gantry(where, session="s1", user="ada") as gantry:
        yield gantry
        assert not queues(gantry), "somebody still stands in a queue"


def queues(gantry):
    return turns_of(gantry._wiring.settings.bridge.store)._queues


def waiting(gantry):
    return sum(map(len, queues(gantry).values()))


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def content(gantry, scope="session", **who):
    with gantry.memory(scope, **who) as memory:
        return dict(memory)


class Gate:
    """A body that says when it runs and ends when it may; for any number of runs, in threads."""

    def __init__(self):
        self.entered, self.may_end = threading.Event(), threading.Event()
        self.thread = None

    def __call__(self, memory):
        self.entered.set()
        assert self.may_end.wait(PATIENCE)
        memory["gate"] = True

    def hold(self, gantry, **options):
        """Run it in a thread, up to its middle."""
        tool = gantry.with_memory(exclusive=True, **options)(self)
        self.thread = threading.Thread(target=tool)
        self.thread.start()
        assert self.entered.wait(PATIENCE)
        return self

    def end(self):
        self.may_end.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture
def held(gantry):
    """Another call has the session to itself until `end`."""
    gate = Gate().hold(gantry)
    yield gate
    gate.end()


class Watch:
    """Whether bodies overlap, and the order in which they ran."""

    def __init__(self):
        self.inside, self.most, self.order = 0, 0, []
        self.lock = threading.Lock()

    def __enter__(self):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *exc):
        with self.lock:
            self.inside -= 1


def is_free(gantry, **options):
    """Whether an exclusive call gets its turn."""
    ends = []

    def call():
        try:
            gantry.with_memory(exclusive=True, **options)(lambda memory: memory.add("free"))()
            ends.append(True)
        except ExclusiveTimeoutError:
            ends.append(False)

    # In a thread, which may wait.
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return ends[0]


# Order.


def test_threads_take_turns_in_the_order_of_their_calls(gantry, held):
    order, threads = [], []

    @gantry.with_memory(exclusive=True)
    def tool(n, memory):
        order.append(n)
        memory["last"] = n

    for n in range(8):
        threads.append(threading.Thread(target=tool, args=(n,)))
        threads[-1].start()
        until(lambda n=n: waiting(gantry) == n + 2)
    held.end()
    for thread in threads:
        thread.join()

    assert order == list(range(8))
    assert content(gantry)["last"] == 7


@pytest.mark.anyio
async def test_tasks_take_turns_in_the_order_of_their_calls(gantry, held):
    order = []

    @gantry.with_memory(exclusive=True)
    async def tool(n, memory):
        order.append(n)
        await anyio.sleep(0)
        memory["last"] = n

    async with anyio.create_task_group() as group:
        for n in range(8):
            group.start_soon(tool, n)
            while waiting(gantry) < n + 2:
                await anyio.sleep(0.001)
        await anyio.to_thread.run_sync(held.end)

    assert order == list(range(8))
    assert content(gantry)["last"] == 7


def test_loops_and_threads_take_turns_in_the_order_of_their_calls(gantry, held):
    order, threads = [], []

    @gantry.with_memory(exclusive=True)
    def sync_tool(n, memory):
        order.append(n)
        memory["last"] = n

    @gantry.with_memory(exclusive=True)
    async def async_tool(n, memory):
        order.append(n)
        await anyio.sleep(0)
        memory["last"] = n

    ways = [
        lambda n: sync_tool(n),
        lambda n: anyio.run(async_tool, n, backend="asyncio"),
        lambda n: anyio.run(async_tool, n, backend="trio"),
    ]
    for n in range(9):
        threads.append(threading.Thread(target=ways[n % 3], args=(n,)))
        threads[-1].start()
        until(lambda n=n: waiting(gantry) == n + 2)
    held.end()
    for thread in threads:
        thread.join()

    assert order == list(range(9))


def test_gantries_on_one_store_share_the_queue():
    store = MemoryStore()
    with Gantry(store, session="s1") as one, Gantry(store, session="s1") as other:
        gate = Gate().hold(one)
        late = Gate()
        thread = threading.Thread(target=other.with_memory(exclusive=True)(late))
        thread.start()
        until(lambda: waiting(one) == 2)
        assert not late.entered.is_set()
        late.may_end.set()
        gate.end()
        thread.join()


# One at a time.


def test_bodies_never_overlap_and_nothing_conflicts(gantry):
    """Threads and two loops read, wait and write; without a merge, a single overlap would be a conflict."""
    watch = Watch()

    @gantry.with_memory(exclusive=True)
    def sync_tool(memory):
        with watch:
            n = memory.get("n", 0)
            time.sleep(0)
            memory["n"] = n + 1

    @gantry.with_memory(exclusive=True)
    async def async_tool(memory):
        with watch:
            n = memory.get("n", 0)
            await anyio.sleep(0)
            memory["n"] = n + 1

    async def loop():
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(async_tool)

    threads = [threading.Thread(target=lambda: [sync_tool() for _ in range(10)]) for _ in range(2)]
    threads += [threading.Thread(target=lambda b=backend: anyio.run(loop, backend=b)) for backend in ("asyncio", "trio")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (content(gantry)["n"], watch.most) == (60, 1)


def test_other_namespaces_do_not_wait(gantry, held):
    for session in ("s2", "s3"):
        with gantry.session(session, user="ada"):
            assert gantry.with_memory(exclusive=True)(lambda memory: memory.add("n"))() == 1
    assert gantry.with_memory(exclusive=True, scope="user")(lambda memory: memory.add("n"))() == 1


def test_calls_that_are_not_exclusive_do_not_wait(gantry, held):
    assert gantry.with_memory(lambda memory: memory.get("gate"))() is None
    with gantry.memory() as memory:
        assert "gate" not in memory


def test_call_that_only_reads_waits_too(gantry):
    gate = Gate().hold(gantry)
    readers = []
    thread = threading.Thread(
        target=lambda: readers.append(gantry.with_memory(exclusive=True)(lambda memory: dict(memory))())
    )
    thread.start()
    until(lambda: waiting(gantry) == 2)
    gate.end()
    thread.join()
    assert readers == [{"gate": True}]


# Giving it back.


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_turn_is_given_back_when_the_tool_fails(gantry, error):
    @gantry.with_memory(exclusive=True)
    def tool(memory):
        memory["x"] = 1
        raise error

    for _ in range(2):
        with pytest.raises(error):
            tool()
    assert content(gantry) == {}
    assert is_free(gantry)


@pytest.mark.anyio
@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
async def test_turn_is_given_back_when_an_async_tool_fails(gantry, error):
    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        memory["x"] = 1
        raise error

    for _ in range(2):
        with pytest.raises(error):
            await tool()
    assert content(gantry) == {}


def test_turn_is_given_back_when_the_value_cannot_be_stored(gantry):
    with pytest.raises(TypeError):
        gantry.with_memory(exclusive=True)(lambda memory: memory.update(x=object()))()
    assert is_free(gantry)


def test_turn_is_given_back_when_the_session_is_somebody_elses(gantry):
    gantry.with_memory(lambda memory: memory.update(x=1))()
    with gantry.session("s1", user="bob"), pytest.raises(SessionOwnerError):
        gantry.with_memory(exclusive=True)(lambda memory: memory.update(x=1))()
    assert is_free(gantry)


@pytest.mark.anyio
async def test_queue_goes_on_when_one_who_waits_is_cancelled(gantry, held):
    order, scopes = [], []

    @gantry.with_memory(exclusive=True)
    async def tool(n, memory):
        order.append(n)
        memory[str(n)] = True

    async def call(n):
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await tool(n)

    async with anyio.create_task_group() as group:
        for n in range(4):
            group.start_soon(call, n)
            while waiting(gantry) < n + 2:
                await anyio.sleep(0.001)
        # The first in the queue and one in its middle.
        scopes[0].cancel()
        scopes[2].cancel()
        while waiting(gantry) > 3:
            await anyio.sleep(0.001)
        await anyio.to_thread.run_sync(held.end)

    assert order == [1, 3]
    assert content(gantry) == {"gate": True, "1": True, "3": True}


@pytest.mark.anyio
async def test_turn_is_given_back_when_the_tool_is_cancelled(gantry):
    running = anyio.Event()

    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        memory["x"] = 1
        running.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(tool)
        await running.wait()
        group.cancel_scope.cancel()

    assert content(gantry) == {}
    assert await anyio.to_thread.run_sync(is_free, gantry)


def test_turn_that_comes_at_the_moment_of_a_cancel_is_not_lost(gantry):
    """asyncio may cancel a task that has just been woken."""

    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        memory.add("n")

    async def main():
        gate = await asyncio.to_thread(Gate().hold, gantry)
        task = asyncio.ensure_future(tool())
        while waiting(gantry) < 2:
            await asyncio.sleep(0)
        # Without giving the loop a chance to run in between.
        gate.end()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert is_free(gantry)


def test_loop_that_ends_while_its_task_waits_is_no_hindrance(gantry, held):
    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        memory.add("n")

    async def main():
        task = asyncio.ensure_future(tool())
        while waiting(gantry) < 2:
            await asyncio.sleep(0)
        return task

    asyncio.run(main())
    assert waiting(gantry) == 1


def outrun(gantry, runs):
    """A body that a writer who does not queue gets ahead of, the first time."""

    def body(memory):
        runs.append(dict(memory))
        memory["mine"] = memory.get("theirs", 0) + 1
        if len(runs) == 1:
            with gantry.independent(), gantry.memory() as other:
                other["theirs"] = 5

    return body


def test_writer_that_does_not_queue_makes_an_exclusive_call_conflict(gantry):
    with pytest.raises(MemoryConflictError):
        gantry.with_memory(exclusive=True)(outrun(gantry, []))()
    assert content(gantry) == {"theirs": 5}
    assert is_free(gantry)


@pytest.mark.anyio
async def test_exclusive_call_that_conflicts_can_run_again(gantry):
    runs = []
    body = outrun(gantry, runs)

    @gantry.with_memory(exclusive=True, on_conflict="retry")
    async def tool(memory):
        body(memory)

    await tool()
    assert runs == [{}, {"theirs": 5}]
    assert content(gantry) == {"theirs": 5, "mine": 6}

    gantry.end_session("s1")
    gantry.with_memory(exclusive=True, on_conflict="retry")(outrun(gantry, []))()
    assert content(gantry) == {"theirs": 5, "mine": 6}


def test_body_runs_again_in_its_turn(gantry):
    """While it runs again nobody else is in."""
    watch, runs = Watch(), []

    @gantry.with_memory(exclusive=True, on_conflict="retry")
    def tool(memory):
        with watch:
            runs.append(1)
            memory.add("n")
            if len(runs) < 4:
                with gantry.independent(), gantry.memory() as other:
                    other.add("n")

    threads = [threading.Thread(target=tool) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (watch.most, content(gantry)["n"]) == (1, 6)


# Waiting in vain.


def test_call_whose_turn_does_not_come_is_refused_and_does_not_run(gantry, held, patience):
    patience(0.05)
    ran = []
    with pytest.raises(ExclusiveTimeoutError, match="did not run") as caught:
        gantry.with_memory(exclusive=True)(lambda memory: ran.append(1))()
    assert ran == []
    assert (caught.value.scope, caught.value.committed, caught.value.transient) == ("session", False, True)
    assert isinstance(caught.value, TimeoutError)
    assert "s1" not in str(caught.value)


@pytest.mark.anyio
async def test_async_call_whose_turn_does_not_come_is_refused_and_does_not_run(gantry, held, patience):
    patience(0.05)
    ran = []

    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        ran.append(1)

    with pytest.raises(ExclusiveTimeoutError, match="did not run"):
        await tool()
    assert ran == []


@pytest.mark.anyio
async def test_sync_call_that_would_block_a_loop_is_refused_at_once(gantry, held):
    ran = []
    tool = gantry.with_memory(exclusive=True)(lambda memory: ran.append(1))
    before = time.monotonic()
    with pytest.raises(ExclusiveTimeoutError, match="event loop"):
        tool()
    assert time.monotonic() - before < PATIENCE / 2
    assert ran == []
    # In a thread it waits like any other.
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, tool)
        while waiting(gantry) < 2:
            await anyio.sleep(0.001)
        await anyio.to_thread.run_sync(held.end)
    assert ran == [1]


@pytest.mark.anyio
async def test_sync_call_on_a_loop_runs_when_nobody_is_in_its_way(gantry):
    tool = gantry.with_memory(exclusive=True)(lambda memory: memory.add("n"))
    assert [tool(), tool()] == [1, 2]


# Calls inside calls.


def test_child_of_an_exclusive_call_does_not_wait_for_it(gantry):
    child = gantry.with_memory(exclusive=True)(lambda memory: memory.add("n"))

    @gantry.with_memory(exclusive=True)
    def outer(memory):
        memory["n"] = 10
        return child() + child()

    assert outer() == 23
    assert content(gantry) == {"n": 12}


@pytest.mark.anyio
async def test_child_of_an_async_exclusive_call_does_not_wait_for_it(gantry):
    @gantry.with_memory(exclusive=True)
    async def child(memory):
        return memory.add("n")

    @gantry.with_memory(exclusive=True)
    async def outer(memory):
        memory["n"] = 10
        return await child() + await child()

    assert await outer() == 23
    assert content(gantry) == {"n": 12}


@pytest.mark.anyio
@pytest.mark.parametrize("exclusive", [True, False])
async def test_siblings_take_turns(gantry, exclusive):
    watch, order = Watch(), []

    @gantry.with_memory(exclusive=True)
    async def child(n, memory):
        with watch:
            order.append(n)
            seen = memory.get("n", 0)
            await anyio.sleep(0)
            memory["n"] = seen + 1

    @gantry.with_memory(exclusive=exclusive)
    async def outer(memory):
        async with anyio.create_task_group() as group:
            for n in range(5):
                group.start_soon(child, n)
                await anyio.sleep(0)

    await outer()
    assert (watch.most, len(order), content(gantry)) == (1, 5, {"n": 5})


def test_siblings_in_threads_take_turns(gantry):
    watch = Watch()

    @gantry.with_memory(exclusive=True)
    def child(memory):
        with watch:
            memory["n"] = memory.get("n", 0) + 1

    @gantry.with_memory(scope="user")
    async def outer(memory):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(anyio.to_thread.run_sync, child)

    anyio.run(outer)
    assert (watch.most, content(gantry)) == (1, {"n": 5})


@pytest.mark.parametrize("scope", ["session", "user"])
@pytest.mark.parametrize("fails", [True, False])
def test_what_a_child_had_to_itself_is_held_until_the_outermost_commit(gantry, scope, fails):
    child = gantry.with_memory(exclusive=True)(lambda memory: memory.add("n"))
    order = []

    def late():
        try:
            gantry.with_memory(exclusive=True)(lambda memory: order.append(("late", dict(memory))))()
        except Exception as error:
            order.append(error)

    thread = threading.Thread(target=late)

    @gantry.with_memory(scope=scope)
    def outer(memory):
        memory["outer"] = child()
        thread.start()
        until(lambda: waiting(gantry) == 2)
        order.append("outer")
        if fails:
            raise RuntimeError("the tool's own")

    if fails:
        with pytest.raises(RuntimeError):
            outer()
    else:
        outer()
    thread.join()

    seen = {"n": 1, "outer": 1} if scope == "session" else {"n": 1}
    assert order == ["outer", ("late", {} if fails else seen)]


def test_child_that_fails_leaves_its_turn_with_the_outer_call(gantry):
    @gantry.with_memory(exclusive=True)
    def child(memory):
        memory["n"] = 1
        raise RuntimeError("the tool's own")

    @gantry.with_memory(scope="user")
    def outer(memory):
        for _ in range(2):
            with pytest.raises(RuntimeError):
                child()
        memory["x"] = 1

    outer()
    assert is_free(gantry)


def test_call_in_between_makes_the_outer_commit_conflict(gantry):
    """The outermost commit is as serializable as the exclusive call inside."""
    child = gantry.with_memory(exclusive=True)(lambda memory: memory.get("x"))

    @gantry.with_memory(scope="user")
    def outer(memory):
        memory["x"] = child()
        with gantry.independent(), gantry.memory() as other:
            other["x"] = 2

    with pytest.raises(MemoryConflictError):
        outer()
    assert content(gantry, "user") == {}
    assert is_free(gantry)


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["failed", "landed", "cancelled"])
async def test_child_that_still_waits_when_its_outer_call_ends_takes_no_turn_for_good(gantry, held, end):
    ends, is_waiting = [], anyio.Event()

    @gantry.with_memory(exclusive=True)
    async def child(memory):
        return memory.add("child")

    async def watched():
        try:
            ends.append(await child())
        except OrphanedCallError as error:
            ends.append(type(error))

    async with anyio.create_task_group() as group:

        @gantry.with_memory(scope="user")
        async def outer(memory):
            memory["x"] = 1
            group.start_soon(watched)
            while waiting(gantry) < 2:
                await anyio.sleep(0.001)
            is_waiting.set()
            if end == "failed":
                raise RuntimeError("the tool's own")
            if end == "cancelled":
                await anyio.sleep_forever()

        if end == "failed":
            with pytest.raises(RuntimeError):
                await outer()
        elif end == "landed":
            await outer()
        else:
            async with anyio.create_task_group() as inner:
                inner.start_soon(outer)
                await is_waiting.wait()
                inner.cancel_scope.cancel()
        await anyio.to_thread.run_sync(held.end)

    assert ends == ([1] if end == "landed" else [OrphanedCallError])
    assert await anyio.to_thread.run_sync(is_free, gantry)


@pytest.mark.anyio
async def test_sibling_that_waits_inside_goes_on_alone_when_the_outer_call_has_landed(gantry):
    may_end, first_is_in = anyio.Event(), anyio.Event()
    seen = []

    @gantry.with_memory(exclusive=True)
    async def child(n, memory):
        if n == 1:
            first_is_in.set()
            await may_end.wait()
        seen.append(memory.add("n"))

    async with anyio.create_task_group() as group:

        @gantry.with_memory(scope="user")
        async def outer(memory):
            memory["x"] = 1
            group.start_soon(child, 1)
            await first_is_in.wait()
            group.start_soon(child, 2)
            await anyio.sleep(0.01)

        await outer()
        may_end.set()

    assert seen == [1, 2]
    assert content(gantry) == {"n": 2}
    assert await anyio.to_thread.run_sync(is_free, gantry)


# Several at once.


def test_crossed_orders_do_not_deadlock(gantry):
    watch = Watch()

    def body(memory, mine):
        with watch:
            for each in (memory, mine):
                each["n"] = each.get("n", 0) + 1

    one = gantry.with_memory(exclusive=True)(gantry.with_memory(scope="user", into="mine", exclusive=True)(body))
    other = gantry.with_memory(scope="user", into="mine", exclusive=True)(
        gantry.with_memory(exclusive=True)(lambda memory, mine: body(memory, mine))
    )
    threads = [threading.Thread(target=lambda t=tool: [t() for _ in range(20)]) for tool in (one, other, one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (content(gantry)["n"], content(gantry, "user")["n"], watch.most) == (80, 80, 1)


def test_call_that_gets_only_one_of_two_turns_gives_it_back(gantry, patience):
    gate = Gate().hold(gantry)
    patience(0.05)
    both = gantry.with_memory(exclusive=True)(
        gantry.with_memory(scope="user", into="mine", exclusive=True)(lambda memory, mine: None)
    )
    with pytest.raises(ExclusiveTimeoutError):
        both()
    patience(PATIENCE)
    assert is_free(gantry, scope="user")
    gate.end()


def test_calls_that_wait_for_each_other_end_with_an_error(gantry, patience):
    """Nested exclusive calls in crossed orders cannot be seen coming; one of the two is refused in time."""
    patience(0.3)
    both_are_in = threading.Barrier(2)
    ends = []

    def nested(first, second):
        child = gantry.with_memory(exclusive=True, scope=second)(lambda memory: memory.add("n"))

        @gantry.with_memory(exclusive=True, scope=first)
        def outer(memory):
            both_are_in.wait(PATIENCE)
            memory.add("n")
            child()

        try:
            outer()
            ends.append("landed")
        except ExclusiveTimeoutError:
            ends.append("refused")

    threads = [threading.Thread(target=nested, args=pair) for pair in (("session", "user"), ("user", "session"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "refused" in ends
    assert content(gantry).get("n", 0) == content(gantry, "user").get("n", 0) == ends.count("landed")


# Generators.


def test_generator_holds_its_turn_until_it_is_exhausted(gantry):
    @gantry.with_memory(exclusive=True)
    def tool(memory):
        for n in range(3):
            memory["n"] = n
            yield n

    steps = tool()
    assert waiting(gantry) == 0
    assert next(steps) == 0
    late = Gate()
    thread = threading.Thread(target=gantry.with_memory(exclusive=True)(late))
    thread.start()
    until(lambda: waiting(gantry) == 2)
    assert not late.entered.is_set()
    late.may_end.set()
    assert list(steps) == [1, 2]
    thread.join()
    assert content(gantry) == {"n": 2, "gate": True}


@pytest.mark.parametrize("end", ["close", "throw", "forget"])
def test_generator_that_is_left_gives_its_turn_back(gantry, end):
    @gantry.with_memory(exclusive=True)
    def tool(memory):
        memory["x"] = 1
        yield 1
        yield 2

    steps = tool()
    next(steps)
    if end == "close":
        steps.close()
    elif end == "throw":
        with pytest.raises(RuntimeError):
            steps.throw(RuntimeError("the caller's own"))
    del steps

    assert is_free(gantry)
    assert content(gantry) == {"free": 1}


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["exhausted", "closed", "thrown"])
async def test_async_generator_gives_its_turn_back(gantry, end):
    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        memory["x"] = 1
        yield 1
        yield 2

    steps = tool()
    assert await steps.__anext__() == 1
    assert waiting(gantry) == 1
    if end == "exhausted":
        assert [item async for item in steps] == [2]
    elif end == "closed":
        await steps.aclose()
    else:
        with pytest.raises(RuntimeError):
            await steps.athrow(RuntimeError("the caller's own"))

    assert await anyio.to_thread.run_sync(is_free, gantry)
    assert content(gantry) == ({"x": 1, "free": 1} if end == "exhausted" else {"free": 1})


def test_coroutine_that_is_closed_gives_its_turn_back(gantry):
    running = []

    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        memory["x"] = 1
        running.append(True)
        await asyncio.sleep(0)

    async def main():
        coroutine = tool()
        coroutine.send(None)
        assert running
        coroutine.close()

    # What has been used before answers without a hop to a thread.
    gantry.with_memory(exclusive=True)(lambda memory: memory.pop("x", None))()
    asyncio.run(main())
    assert is_free(gantry)
    assert content(gantry) == {"free": 1}


def test_coroutine_that_is_closed_in_a_cancel_scope_gives_its_turn_back_and_waits_for_nothing():
    gantry = Gantry(Blocking(), session="s")

    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        memory["x"] = 1
        with anyio.fail_after(PATIENCE):
            running.set()
            await asyncio.get_running_loop().create_future()

    async def main():
        coroutine = tool()
        task = asyncio.ensure_future(coroutine)
        await running.wait()
        # In another task than entered the scope, which anyio refuses.
        with pytest.raises(RuntimeError, match="scope"):
            coroutine.close()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), RuntimeError)

    running = asyncio.Event()
    asyncio.run(main())
    assert is_free(gantry)
    assert content(gantry) == {"free": 1}


# Key by key.


def test_exclusive_session_takes_turns(gantry):
    watch = Watch()

    @gantry.with_session(exclusive=True)
    def tool(session: SyncSession):
        with watch:
            session.set("n", session.get("n", 0) + 1)

    threads = [threading.Thread(target=lambda: [tool() for _ in range(10)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (watch.most, content(gantry)) == (1, {"n": 30})


@pytest.mark.anyio
async def test_exclusive_async_session_takes_turns(gantry):
    watch = Watch()

    @gantry.with_session(exclusive=True)
    async def tool(session: Session):
        with watch:
            seen = await session.get("n", 0)
            await anyio.sleep(0)
            await session.set("n", seen + 1)

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(tool)
    assert (watch.most, content(gantry)) == (1, {"n": 10})


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("view", "turns"), [({"private": True, "name": "t"}, 1), ({"scope": ("session", "user")}, 2)])
def test_call_with_an_exclusive_view_beside_a_memory_that_is_not_has_its_turn(gantry, view, turns, order):
    def body(memory, own):
        assert len(queues(gantry)) == turns

    for decorate in [gantry.with_memory, gantry.with_memory(into="own", exclusive=True, **view)][::order]:
        body = decorate(body)

    body()


def test_exclusive_call_with_keys_waits_and_checks_those(gantry):
    @gantry.with_memory(exclusive=True, keys=("x",))
    def tool(key, memory):
        memory["x"] = f"while {key} changes"
        with gantry.independent(), gantry.memory() as other:
            other[key] = 5

    tool("y")
    assert content(gantry) == {"x": "while y changes", "y": 5}
    with pytest.raises(MemoryConflictError):
        tool("x")
    assert content(gantry) == {"x": 5, "y": 5}


@pytest.mark.parametrize("exclusive", [1, "yes", None])
def test_exclusive_is_a_bool(gantry, exclusive):
    with pytest.raises(DeclarationError, match="exclusive"):
        gantry.with_memory(exclusive=exclusive)
