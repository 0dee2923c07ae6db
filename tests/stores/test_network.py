"""What `RemoteStore` does for every store behind a network, over a small server on loopback that can be told to fail."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
import warnings

import anyio
import anyio.to_thread
import pytest
from shelf import A, AsyncShelfLink, ShelfLink, ShelfServer, ShelfStore

from agent_gantry_state import Gantry, StoreClosedError, StoreError, StoreTimeoutError, StoreUnavailableError
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores.protocol import Change, Commit, Committed, Forget, Lease, List, Load, Release
from agent_gantry_state.testing import StoreContract, put


@pytest.fixture
def server():
    server = ShelfServer()
    yield server
    server.stop()


class TestShelf(StoreContract):
    """`RemoteStore` and the images of `whole.py` keep the store contract."""

    @pytest.fixture
    def store(self, server):
        return ShelfStore(server)


class TestShelfOfThreads(StoreContract):
    """The same for a store without a client for event loops."""

    @pytest.fixture
    def store(self, server):
        store = ShelfStore(server)
        store.async_link = None
        return store


@pytest.fixture
def store(server):
    store = ShelfStore(server)
    yield store
    store.close()


def commit(value=1, seen=None, timeout=6.0, token=b"t" * 16):
    return Commit(token, os.urandom(8), (Change(A, None, {"x": put(value)}, (), {"x": seen}),), timeout)


READS = {
    "load": Load((A,)),
    "list": List(),
    "lease": Lease(A, b"me", 30.0),
    "release": Release(A, b"me"),
}
#: What the shelf is asked for each.
COMMANDS = {"load": "get", "list": "all", "lease": "lease", "release": "release"}
WRITES = {"commit": commit(), "forget": Forget((A,))}


def ask_sync(store, message):
    return getattr(store, type(message).__name__.lower())(message)


def ask_asyncio(store, message):
    return asyncio.run(store.answer(message))


@pytest.fixture(params=[ask_sync, ask_asyncio])
def ask(request):
    return request.param


# What failed is asked again, or not.


@pytest.mark.parametrize("fault", ["cut before", "cut after"])
@pytest.mark.parametrize("question", READS)
def test_read_whose_connection_is_lost_is_asked_once_more(server, store, ask, question, fault):
    server.faults[COMMANDS[question]] = [fault]

    ask(store, READS[question])

    assert len(server.sent(COMMANDS[question])) == 2


@pytest.mark.parametrize("question", READS)
def test_read_that_fails_twice_says_that_nothing_was_written(server, store, ask, question, monkeypatch):
    # The link knows no reads from writes.
    monkeypatch.setattr("shelf.WRITES", dict.fromkeys(COMMANDS.values()))
    server.faults[COMMANDS[question]] = ["cut after"] * 3

    with pytest.raises(StoreUnavailableError) as caught:
        ask(store, READS[question])

    assert caught.value.committed is False
    assert len(server.sent(COMMANDS[question])) == 2


@pytest.mark.parametrize(("fault", "written"), [("cut before", False), ("cut after", True)])
def test_write_is_never_asked_again_by_the_store(server, store, ask, fault, written):
    server.faults["swap"] = [fault]

    with pytest.raises(StoreUnavailableError) as caught:
        ask(store, commit())

    assert caught.value.committed is None
    assert len(server.sent("swap")) == 1
    assert bool(server.values) is written


@pytest.mark.parametrize("question", WRITES)
def test_write_that_was_never_sent_says_so(server, store, ask, question):
    server.stop()

    with pytest.raises(StoreUnavailableError) as caught:
        ask(store, WRITES[question])

    assert caught.value.committed is False


def test_read_that_is_late_is_not_asked_again(server, store, ask):
    server.faults["get"] = ["lose", "lose"]

    with pytest.raises(StoreTimeoutError) as caught:
        ask(store, Load((A,), timeout=0.05))

    assert caught.value.committed is False
    assert len(server.sent("get")) == 1


def test_next_call_after_a_restart_of_the_server_works(server, store):
    async def main():
        await store.answer(commit(1))
        store.load(Load((A,)))
        server.stop()
        server.start()
        loaded = await store.answer(Load((A,)))
        assert store.load(Load((A,))).snapshots[0].values == loaded.snapshots[0].values == {"x": 1}

    asyncio.run(main())


# What was interrupted.


def test_connection_of_a_late_reply_is_never_used_again(server, store, ask):
    server.faults["get"] = ["hold"]
    with pytest.raises(StoreTimeoutError):
        ask(store, Load((A,), timeout=0.05))
    server.let_go.set()

    assert ask(store, commit()) == Committed()
    assert ask(store, List()).listed[0].namespace == A

    late, *others = [connection for connection, _ in server.asked]
    assert late not in others


def test_connection_of_a_cancelled_request_is_never_used_again(server, store):
    async def main():
        await store.answer(Load((A,)))
        server.faults["get"] = ["hold"]
        task = asyncio.ensure_future(store.answer(Load((A,))))
        await asyncio.to_thread(server.held.acquire)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        server.let_go.set()
        assert await store.answer(commit()) == Committed()
        assert (await store.answer(Load((A,)))).snapshots[0].values == {"x": 1}

    asyncio.run(main())

    late = server.sent("get")[1]
    assert [connection for connection, _ in server.asked].count(late) == 2


@pytest.mark.parametrize("when", ["it connects", "it waits"])
def test_task_that_is_cancelled_at_its_first_use_leaves_a_store_that_works(server, store, when):
    async def main():
        server.faults["get"] = ["hold"]
        task = asyncio.ensure_future(store.answer(Load((A,))))
        await asyncio.sleep(0)
        if when == "it waits":
            await asyncio.to_thread(server.held.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.faults.clear()
        server.let_go.set()
        await store.answer(Load((A,)))

    asyncio.run(main())

    assert store._alinks == {}
    assert server.has(0)


# Event loops.


def test_three_loops_in_a_row_leave_nothing_behind(server, store):
    for number in range(3):
        asyncio.run(store.answer(commit(number, token=os.urandom(16))))
        assert server.has(0)
        assert store._alinks == {}

    assert server.accepted == 3


def test_three_loops_at_once_have_connections_of_their_own(server, store):
    meeting = threading.Barrier(3)

    async def main():
        await store.answer(Load((A,)))
        meeting.wait(5)
        await store.answer(Load((A,)))
        meeting.wait(5)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert server.accepted == 3
    assert server.has(0)


def test_gantry_works_on_every_loop_and_without_one(server):
    gantry = Gantry(ShelfStore(server), session="local")

    @gantry.with_memory
    async def aadd(memory):
        return memory.add("n", 1)

    @gantry.with_memory
    def add(memory):
        return memory.add("n", 1)

    for expected in (1, 3, 5):
        assert asyncio.run(aadd()) == expected
        assert anyio.run(aadd, backend="trio") == expected + 1
    assert add() == 7

    store = gantry._wiring.settings.bridge.store
    gantry.close()
    assert server.has(1)  # the store was handed in
    store.close()
    assert server.has(0)


def test_loop_that_ended_without_a_word_is_cleared_away_by_the_next(server, store):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.answer(Load((A,))))
    with warnings.catch_warnings():
        # asyncio's own word on transports of a loop that was closed over their heads
        warnings.simplefilter("ignore", ResourceWarning)
        loop.close()

        async def main():
            await store.answer(Load((A,)))
            assert server.has(1)
            assert [*store._alinks] == [asyncio.get_running_loop()]

        asyncio.run(main())
        del loop
        gc.collect()

    assert server.has(0)


def test_loop_that_stands_still_is_closed_with_the_store(server, store):
    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.answer(Load((A,))))

    store.close()

    assert server.has(0)
    # It may run again, with sockets that have got the numbers of those that were closed.
    other = ShelfStore(server)
    loop.run_until_complete(other.answer(Load((A,))))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert server.has(0)


def test_tool_that_runs_while_its_loop_is_ending_works(server, store):
    answers = []

    async def late():
        try:
            yield
        finally:
            answers.append(await store.answer(Load((A,))))

    async def main():
        keep.append(late())
        await keep[0].__anext__()

    keep = []
    with warnings.catch_warnings():
        # asyncio's own word on transports of a loop that was closed over their heads
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(main())
        store.close()
        gc.collect()

    assert len(answers) == 1
    assert server.has(0)


def test_loops_come_and_go_in_many_threads(server, store):
    failures = []

    def run():
        try:
            for _ in range(10):
                asyncio.run(store.answer(Load((A,))))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert store._alinks == {}
    assert server.has(0)


# Closing.


def test_close_ends_the_connections_of_blocking_callers(server, store):
    store.load(Load((A,)))
    assert server.has(1)

    store.close()
    store.close()

    assert server.has(0)
    for message in [*READS.values(), *WRITES.values()]:
        with pytest.raises(StoreClosedError) as caught:
            ask_sync(store, message)
        assert caught.value.committed is False
        with pytest.raises(StoreClosedError):
            ask_asyncio(store, message)
    assert server.accepted == 1


def test_aclose_ends_the_connections_of_its_own_loop(server, store):
    async def main():
        await store.answer(Load((A,)))
        await store.aclose()
        await store.aclose()
        assert await anyio.to_thread.run_sync(server.has, 0)
        with pytest.raises(StoreClosedError):
            await store.answer(Load((A,)))

    asyncio.run(main())


def test_close_on_a_running_loops_own_thread_ends_its_connections(server, store):
    async def main():
        await store.answer(Load((A,)))
        began = time.monotonic()
        store.close()
        assert time.monotonic() - began < 1
        assert await anyio.to_thread.run_sync(server.has, 0)
        with pytest.raises(StoreClosedError):
            await store.answer(Load((A,)))
        # The loop goes on with sockets that have got the numbers of those that were closed.
        other = ShelfStore(server)
        await other.answer(Load((A,)))
        await other.aclose()

    asyncio.run(main())
    assert server.has(0)


def test_close_just_before_the_loop_ends_leaves_nothing_open(server, store):
    async def main():
        await store.answer(Load((A,)))
        store.close()

    asyncio.run(main())
    gc.collect()

    assert server.has(0)


@contextlib.contextmanager
def running(store):
    """A loop of another thread on which the store was used."""
    loop = asyncio.new_event_loop()

    def run():
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    asyncio.run_coroutine_threadsafe(store.answer(Load((A,))), loop).result(5)
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def test_close_reaches_a_loop_that_runs_in_another_thread(server, store):
    with running(store):
        store.close()

        assert server.has(0)


@pytest.mark.anyio
async def test_aclose_reaches_a_loop_that_runs_in_another_thread(server, store, anyio_backend):
    with running(store):
        await bridge_to(store, owned=True).aclose()

        assert await anyio.to_thread.run_sync(server.has, 0)


def test_close_does_not_wait_long_for_a_loop_that_is_blocked(server, store, monkeypatch):
    monkeypatch.setattr("agent_gantry_state.stores.network._CLOSE_SECONDS", 0.05)
    gate = threading.Event()
    with running(store) as loop:
        loop.call_soon_threadsafe(gate.wait)
        began = time.monotonic()

        store.close()

        assert time.monotonic() - began < 2
        gate.set()
    assert server.has(0)


@pytest.mark.parametrize("closing", ["close", "aclose"])
def test_requests_in_flight_are_told_that_the_store_is_closed(server, store, closing):
    async def main():
        server.faults["get"], server.faults["swap"] = ["hold"], ["hold"]
        load = asyncio.ensure_future(store.answer(Load((A,))))
        await asyncio.to_thread(server.held.acquire)
        write = asyncio.ensure_future(store.answer(commit()))
        await asyncio.to_thread(server.held.acquire)
        if closing == "close":
            store.close()
        else:
            await store.aclose()
        results = await asyncio.wait_for(asyncio.gather(load, write, return_exceptions=True), 2)
        assert [type(error) for error in results] == [StoreClosedError] * 2
        assert [error.committed for error in results] == [False, None]

    asyncio.run(main())
    server.let_go.set()
    assert server.has(0)


@pytest.mark.parametrize("number", range(5))
def test_close_in_a_race_with_first_uses_leaves_nothing_open(server, number):
    store = ShelfStore(server)
    start = threading.Barrier(5)
    failures = []

    def use(ask):
        start.wait()
        for _ in range(20):
            try:
                ask(store, Load((A,)))
            except StoreClosedError:
                pass
            except BaseException as error:
                failures.append(error)

    def close():
        start.wait()
        time.sleep(0.002 * number)
        store.close()

    threads = [threading.Thread(target=use, args=(ask,)) for ask in (ask_sync, ask_sync, ask_asyncio, ask_asyncio)]
    threads.append(threading.Thread(target=close))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert store._alinks == {}
    gc.collect()
    assert server.has(0)


class Broken(Exception):
    pass


class BrokenLink(ShelfLink):
    def close(self):
        super().close()
        raise Broken


class BrokenAsyncLink(AsyncShelfLink):
    async def close(self):
        raise Broken


class StuckAsyncLink(AsyncShelfLink):
    async def close(self):
        await asyncio.sleep(3600)


def test_link_that_cannot_be_closed_keeps_no_other_one_open(server):
    store = ShelfStore(server)
    store.link = BrokenLink
    store.load(Load((A,)))
    with running(store), contextlib.suppress(Broken):
        store.close()

        assert server.has(0)


@pytest.mark.parametrize("link", [BrokenAsyncLink, StuckAsyncLink])
def test_link_that_cannot_be_closed_does_not_keep_its_loop_from_ending(server, link, monkeypatch, caplog):
    monkeypatch.setattr("agent_gantry_state.stores.network._CLOSE_SECONDS", 0.05)
    store = ShelfStore(server)
    store.async_link = link

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(asyncio.wait_for(store.answer(Load((A,))), 5))
        assert server.has(0)
        gc.collect()

    assert "asynchronous generator" not in caplog.text
    assert store._alinks == {}


@pytest.mark.parametrize("link", [BrokenAsyncLink, StuckAsyncLink])
def test_aclose_goes_on_with_other_loops_where_one_cannot_be_closed(server, link, monkeypatch):
    monkeypatch.setattr("agent_gantry_state.stores.network._CLOSE_SECONDS", 0.05)
    store = ShelfStore(server)

    async def main():
        store.async_link = link
        await store.answer(Load((A,)))
        store.async_link = AsyncShelfLink
        with running(store):
            await asyncio.wait_for(store.aclose(), 5)
            assert await anyio.to_thread.run_sync(server.has, 0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        asyncio.run(main())
        gc.collect()


def test_gantry_that_made_its_store_closes_it(server):
    async def aclosed():
        bridge = bridge_to(ShelfStore(server), owned=True)
        await bridge.store.answer(Load((A,)))
        bridge.store.load(Load((A,)))
        await bridge.aclose()
        assert await anyio.to_thread.run_sync(server.has, 0)

    async def closed():
        bridge = bridge_to(ShelfStore(server), owned=True)
        await bridge.store.answer(Load((A,)))
        bridge.close()
        assert await anyio.to_thread.run_sync(server.has, 0)

    asyncio.run(aclosed())
    asyncio.run(closed())


# Waiting.


def test_load_gets_its_thread_while_tools_hold_all_of_anyios(server, store):
    store.async_link = None
    gate = threading.Event()

    async def main():
        anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, gate.wait)
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(5) as scope:
                await store.answer(Load((A,)))
            gate.set()
        assert not scope.cancelled_caught

    asyncio.run(main())


def test_store_without_a_client_for_loops_does_not_keep_them_waiting(server, store):
    store.async_link = None
    server.faults["get"] = ["hold"]

    async def main():
        task = asyncio.ensure_future(store.answer(Load((A,))))
        await asyncio.to_thread(server.held.acquire)
        assert not task.done()
        server.let_go.set()
        await task

    asyncio.run(main())


def test_times_are_those_of_the_store(server):
    store = ShelfStore(server, connect_timeout=0.5, load_timeout=1.5, commit_timeout=2.5)

    its_bridge = bridge_to(store)

    assert (its_bridge.load_timeout, its_bridge.commit_timeout) == (1.5, 2.5)


# Fork.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("loop_runs", [False, True])
def test_child_opens_connections_of_its_own_and_leaves_its_parents_alone(server, store, loop_runs):
    def child():
        store.load(Load((A,)))
        if not loop_runs:
            asyncio.run(store.answer(Load((A,))))
        store.close()

    def forked():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                child()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0

    async def main():
        await store.answer(commit())
        store.load(Load((A,)))
        forked()
        asked = len(server.asked)
        assert await store.answer(Load((A,))) is not None
        store.load(Load((A,)))
        assert {connection for connection, _ in server.asked[asked:]} == {1, 2}

    if loop_runs:
        asyncio.run(main())
    else:
        store.load(Load((A,)))
        forked()
        store.load(Load((A,)))
        assert server.sent("get")[-1] == 1
    assert server.accepted == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_that_goes_on_in_the_loop_does_not_end_its_parents_connections(server, store):
    closed = []

    class Link(AsyncShelfLink):
        async def close(self):
            closed.append(os.getpid())
            await super().close()

    store.async_link = Link
    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.answer(commit()))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            loop.run_until_complete(loop.shutdown_asyncgens())
            code = 0 if closed == [] else 2
        finally:
            os._exit(code)

    assert os.waitpid(pid, 0)[1] == 0
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert closed == [os.getpid()]


# Errors.


def test_error_shows_no_more_than_it_says(server, store, ask):
    server.stop()

    with pytest.raises(StoreError) as caught:
        ask(store, Load((A,)))

    assert str(server.port) not in str(caught.value)


@pytest.mark.parametrize("name", ["connect_timeout", "load_timeout", "commit_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), -float("inf")])
def test_time_that_is_not_positive_and_finite_is_refused(server, name, value):
    with pytest.raises(ValueError, match=f"ShelfStore: {name}"):
        ShelfStore(server, **{name: value})
