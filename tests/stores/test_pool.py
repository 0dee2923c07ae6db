from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest
from interrupting import moments

from agent_gantry_state import StoreError, StoreTimeoutError, StoreUnavailableError
from agent_gantry_state.stores import pool as pools
from agent_gantry_state.stores.pool import AsyncPool, Pool


class Wire:
    """A connection that says what became of it."""

    def __init__(self):
        self.used = 0.0
        self.usable = True
        self.closed = self.dropped = False

    def is_usable(self):
        return self.usable and not self.closed

    def close(self):
        self.closed = True

    def drop(self):
        self.dropped = self.closed = True


def crowded():
    return StoreTimeoutError("crowded")


def soon(seconds=5.0):
    return time.monotonic() + seconds


class Sync:
    """A pool for callers that block, with the interface of the tests."""

    def __init__(self, limit=2, connect=None):
        self.made = []
        self.connect = connect
        self.pool = Pool(self._make, limit, crowded)

    def _make(self, deadline):
        if self.connect is not None:
            self.connect(deadline)
        self.made.append(Wire())
        return self.made[-1]

    def use(self, work=lambda wire: wire, deadline=None):
        return self.pool.use(work, soon() if deadline is None else deadline)

    def during(self, wire_then):
        """Have *wire_then* run while a connection is in use; the connection."""

        def work(wire):
            wire_then()
            return wire

        return self.use(work)


class Async(Sync):
    """The same for one on an event loop, driven from outside of it."""

    def __init__(self, limit=2, connect=None):
        self.made = []
        self.connect = connect
        self.loop = asyncio.new_event_loop()
        self.pool = AsyncPool(self._amake, limit, crowded)

    async def _amake(self, deadline):
        return self._make(deadline)

    async def ause(self, work, deadline):
        async def awork(wire):
            return work(wire)

        return await self.pool.use(awork, deadline)

    def use(self, work=lambda wire: wire, deadline=None):
        coroutine = self.ause(work, soon() if deadline is None else deadline)
        return self.loop.run_until_complete(coroutine)


@pytest.fixture(params=[Sync, Async])
def made_pool(request):
    made = []

    def make(**options):
        made.append(request.param(**options))
        return made[-1]

    yield make
    for each in made:
        each.pool.close()
        if isinstance(each, Async):
            each.loop.close()


def failing(error):
    def work(wire):
        raise error

    return work


def test_connection_used_last_is_used_next(made_pool):
    it = made_pool()

    first, second, third = it.use(), it.use(), it.use()

    assert first is second is third
    assert len(it.made) == 1


def test_connection_that_is_not_usable_any_more_is_closed_and_another_is_made(made_pool):
    it = made_pool(limit=1)
    first = it.use()
    first.usable = False

    second = it.use()

    assert first.closed
    assert second is not first


def test_connection_on_which_the_server_refused_something_is_used_again(made_pool):
    it = made_pool(limit=1)
    with pytest.raises(StoreError):
        it.use(failing(StoreError("refused")))

    assert it.use() is it.made[0]


@pytest.mark.parametrize("error", [StoreError("torn"), KeyboardInterrupt(), ValueError(), asyncio.CancelledError()])
def test_connection_on_which_something_was_interrupted_is_closed(made_pool, error):
    it = made_pool(limit=1)

    def work(wire):
        wire.usable = not isinstance(error, StoreError)
        raise error

    with pytest.raises(type(error)):
        it.use(work)

    assert it.made[0].closed
    assert it.use() is it.made[1]


def test_server_that_has_gone_away_leaves_no_idle_connection(made_pool):
    it = made_pool(limit=2)
    if isinstance(it, Async):

        async def two():
            gate = asyncio.Event()

            async def work(wire):
                if len(it.made) == 2:
                    gate.set()
                await gate.wait()

            await asyncio.gather(it.pool.use(work, soon()), it.pool.use(work, soon()))

        it.loop.run_until_complete(two())
    else:
        it.during(it.use)
    assert len(it.made) == 2

    def lost(wire):
        wire.usable = False
        raise StoreUnavailableError("gone")

    with pytest.raises(StoreUnavailableError):
        it.use(lost)

    assert [wire.closed for wire in it.made] == [True, True]
    assert it.use() is it.made[2]


def test_refusal_that_will_pass_leaves_idle_connections_alone(made_pool):
    it = made_pool(limit=2)
    it.use()

    with pytest.raises(StoreUnavailableError):
        it.use(failing(StoreUnavailableError("a deadlock; the connection is in order")))

    assert it.use() is it.made[0]
    assert not it.made[0].closed


def test_connection_that_could_not_be_made_takes_no_room(made_pool):
    fails = [True]

    def connect(deadline):
        if fails:
            raise StoreUnavailableError("refused")

    it = made_pool(limit=1, connect=connect)
    for _ in range(3):
        with pytest.raises(StoreUnavailableError):
            it.use()

    fails.clear()

    assert it.use() is it.made[0]


def test_connection_is_made_by_the_deadline_of_who_needs_it(made_pool):
    seen = []
    it = made_pool(connect=seen.append)
    deadline = soon(3.0)

    it.use(deadline=deadline)

    assert seen == [deadline]


def test_connection_that_nobody_uses_for_long_is_closed(made_pool, monkeypatch):
    it = made_pool(limit=2)
    if isinstance(it, Async):
        it.pool._idle.extend([Wire(), Wire()])
        it.made = [*it.pool._idle]
    else:
        it.during(it.use)
    monkeypatch.setattr(pools, "IDLE_SECONDS", -1.0)
    it.made[0].used = it.made[1].used = time.monotonic() - 10

    it.use()

    assert [wire.closed for wire in it.made].count(True) >= 1


def test_closed_pool_keeps_nothing(made_pool):
    it = made_pool()
    idle = it.use()
    it.pool.close()
    assert idle.closed

    used = it.use(lambda wire: (wire, wire.closed))

    assert used[1] is False
    assert used[0].closed


# Waiting.


def test_thread_waits_for_a_connection_and_no_longer_than_its_time():
    it = Sync(limit=1)
    taken, done = threading.Event(), threading.Event()

    def work(wire):
        taken.set()
        done.wait(10)
        return wire

    holder = threading.Thread(target=it.use, args=(work,))
    holder.start()
    taken.wait(10)

    with pytest.raises(StoreTimeoutError, match="crowded"):
        it.use(deadline=soon(0.01))
    waiting = []
    waiter = threading.Thread(target=lambda: waiting.append(it.use()))
    waiter.start()
    done.set()
    holder.join()
    waiter.join(10)

    assert waiting == it.made
    assert len(it.made) == 1


def test_threads_never_share_a_connection_nor_exceed_the_limit():
    it = Sync(limit=3)
    in_use, most, shared = set(), [0], []

    def work(wire):
        if wire in in_use:
            shared.append(wire)
        in_use.add(wire)
        most[0] = max(most[0], len(in_use))
        time.sleep(0)
        in_use.discard(wire)
        if wire.used and hash(wire) % 7 == 0:
            raise StoreUnavailableError("now and then")

    def many():
        for _ in range(300):
            try:
                it.use(work)
            except StoreUnavailableError:
                pass

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert shared == []
    assert most[0] <= 3
    assert len(it.pool._open) == len(it.pool._idle) <= 3


def test_task_waits_for_a_connection_and_no_longer_than_its_time():
    async def main():
        it = Async.__new__(Async)
        it.made, it.connect = [], None
        it.pool = AsyncPool(it._amake, 1, crowded)
        gate = asyncio.Event()

        async def hold(wire):
            await gate.wait()
            return wire

        holder = asyncio.create_task(it.pool.use(hold, soon()))
        await asyncio.sleep(0)
        with pytest.raises(StoreTimeoutError, match="crowded"):
            await it.pool.use(hold, soon(0.01))
        waiters = [asyncio.create_task(it.pool.use(hold, soon())) for _ in range(3)]
        await asyncio.sleep(0)
        # One that gives up passes its turn on, also in the moment in which it has got it.
        waiters[0].cancel()
        gate.set()
        await holder
        waiters[1].cancel()

        assert await waiters[2] is it.made[0]
        await asyncio.gather(*waiters[:2], return_exceptions=True)
        assert (len(it.pool._idle), len(it.pool._used)) == (len(it.made), 0)

    asyncio.run(main())


def test_tasks_never_share_a_connection_nor_exceed_the_limit_and_cancelled_ones_leave_none_behind():
    async def main():
        it = Async.__new__(Async)
        it.made, it.connect = [], None
        it.pool = AsyncPool(it._amake, 3, crowded)
        in_use, most, shared = set(), [0], []

        async def work(wire):
            if wire in in_use or wire.closed:
                shared.append(wire)
            in_use.add(wire)
            most[0] = max(most[0], len(in_use))
            try:
                await asyncio.sleep(0)
            finally:
                in_use.discard(wire)

        tasks = [asyncio.create_task(it.pool.use(work, soon())) for _ in range(200)]
        for turn, task in enumerate(tasks):
            if turn % 3 == 0:
                await asyncio.sleep(0)
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert shared == []
        assert most[0] <= 3
        assert len(it.pool._idle) + it.pool._connecting + len(it.pool._used) <= 3
        assert not it.pool._used
        assert await it.pool.use(_itself, soon()) is not None

    async def _itself(wire):
        return wire

    asyncio.run(main())


def test_dropped_pool_has_closed_what_is_in_use_too():
    async def main():
        it = Async.__new__(Async)
        it.made, it.connect = [], None
        it.pool = AsyncPool(it._amake, 2, crowded)

        async def work(wire):
            it.pool.drop()
            return wire.dropped

        assert await it.pool.use(work, soon())
        assert not it.pool._used

    asyncio.run(main())


def unusable(it):
    it.use().usable = False
    it.use()


def refused(it):
    def work(wire):
        # An error of its own each time, which nothing but its traceback holds.
        raise StoreUnavailableError("gone")

    it.use()
    try:
        it.use(work)
    except StoreUnavailableError:
        pass


def full(it):
    def use(wire):
        try:
            it.use(deadline=0.0)
        except StoreTimeoutError:
            pass

    it.use(lambda wire: it.use(use))


@pytest.mark.parametrize("act", [Sync.use, unusable, refused, full])
def test_signal_wherever_it_comes_takes_no_connection_from_the_pool(act):
    def prepare():
        it = Sync(limit=2)

        def look(ended):
            it.made.clear()
            # Up to Python 3.10 frames that were traced are in a ring with their errors.
            gc.collect()
            # As many as there may be are there at once, without waiting for one.
            assert it.use(lambda one: it.use(lambda other: one is not other, deadline=0.0), deadline=0.0)

        return lambda: act(it), look

    moments(prepare)
