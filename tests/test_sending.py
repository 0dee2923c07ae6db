"""What changes a store is sent until an answer comes or the time is over, and the error covers all that was sent."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import anyio
import pytest
from shelf import A, ShelfServer, ShelfStore

from agent_gantry_state import (
    CorruptEntryError,
    Gantry,
    MemoryConflictError,
    StateError,
    StoreClosedError,
    StoreTimeoutError,
    StoreUnavailableError,
    sending,
)
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.memory import Terms, open_memory
from agent_gantry_state.sending import sent
from agent_gantry_state.steps import Pause
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Change, Commit, Committed, Forget, Moved, Put, Snapshot
from agent_gantry_state.unit_of_work import State, Tried, finish_far

MESSAGE = Commit(b"t" * 16, b"v" * 8, (Change(A, None, {"x": Put(1)}, (), {"x": None}),))


class Time:
    """A clock that goes by when somebody pauses or a send takes its time."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(sending, "time", clock)
    return clock


def down(committed=None):
    return StoreUnavailableError("down", committed=committed)


def late(committed=None):
    return StoreTimeoutError("late", committed=committed)


class Sends:
    """Drives `sent`, with outcomes that are answers or errors; one that is late takes all of its time."""

    def __init__(self, clock, outcomes, again=True, message=MESSAGE, seconds=6.0):
        self.clock = clock
        self.messages, self.pauses = [], []
        self.outcomes = iter(outcomes)
        self.steps = sent(message, clock.now + seconds, again)

    def run(self):
        request = next(self.steps)
        with contextlib.suppress(StopIteration):
            while True:
                if isinstance(request, Pause):
                    self.pauses.append(request.seconds)
                    self.clock.now += request.seconds
                    request = self.steps.send(None)
                    continue
                self.messages.append(request)
                outcome = next(self.outcomes)
                if isinstance(outcome, StoreTimeoutError):
                    self.clock.now += request.timeout
                if isinstance(outcome, Exception):
                    request = self.steps.throw(outcome)
                else:
                    self.steps.send(outcome)
        return outcome


@pytest.mark.parametrize("answer", [Committed(), Moved((), 0.0)])
@pytest.mark.parametrize("lost", [[], [down()], [late()], [down(False), late(), down()]])
def test_change_is_sent_until_there_is_an_answer(clock, lost, answer):
    sends = Sends(clock, [*lost, answer])

    assert sends.run() == answer

    assert len(sends.messages) == len(lost) + 1
    assert {(each.token, each.version) for each in sends.messages} == {(MESSAGE.token, MESSAGE.version)}


def test_pauses_grow_to_a_bound_and_are_jittered(clock):
    sends = Sends(clock, iter(lambda: down(), None))

    with pytest.raises(StoreUnavailableError):
        sends.run()

    assert 0.005 <= sends.pauses[0] <= 0.01
    assert all(0 < pause <= 0.25 for pause in sends.pauses)
    assert 24 <= len(sends.messages) <= 60
    assert clock.now < 106.001


def test_each_send_leaves_time_for_another(clock):
    sends = Sends(clock, iter(lambda: late(), None))

    with pytest.raises(StoreTimeoutError):
        sends.run()

    times = [message.timeout for message in sends.messages]
    assert times[0] == 3.0
    assert len(times) >= 4
    assert sum(times) + sum(sends.pauses) < 6.001
    assert all(timeout >= 1.0 for timeout in times[:-1])


@pytest.mark.parametrize(
    ("outcomes", "committed"),
    [
        ([down(False)], False),
        ([late(False), down(False)], False),
        ([down(None), down(False)], None),
        ([down(False), late(None), late(False)], None),
    ],
)
def test_error_says_what_is_known_of_all_sends(clock, outcomes, committed):
    last = type(outcomes[-1])
    fatal = StoreClosedError("closed", committed=False)
    sends = Sends(clock, [*outcomes, fatal])

    with pytest.raises(StoreClosedError) as caught:
        sends.run()

    assert caught.value is fatal
    assert caught.value.committed is committed
    assert issubclass(last, Exception)


def test_error_that_is_no_stores_is_not_surer_than_what_was_sent(clock):
    sends = Sends(clock, [down(None), CorruptEntryError("damaged")])

    with pytest.raises(CorruptEntryError) as caught:
        sends.run()

    assert caught.value.committed is None


def test_error_that_will_not_pass_is_not_sent_again(clock):
    sends = Sends(clock, [StoreClosedError("closed")])

    with pytest.raises(StoreClosedError):
        sends.run()

    assert len(sends.messages) == 1


def test_store_whose_answers_are_not_lost_is_sent_it_once_and_given_all_the_time(clock):
    sends = Sends(clock, [down(False)], again=False)

    with pytest.raises(StoreUnavailableError) as caught:
        sends.run()

    assert [message.timeout for message in sends.messages] == [6.0]
    assert caught.value.committed is False


def test_erasure_is_sent_again_too(clock):
    sends = Sends(clock, [down(), None], message=Forget((A,)))

    assert sends.run() is None

    assert len(sends.messages) == 2


def test_nothing_is_sent_again_when_the_time_is_over(clock):
    sends = Sends(clock, [late(), late()], seconds=0.5)

    with pytest.raises(StoreTimeoutError):
        sends.run()

    assert [message.timeout for message in sends.messages] == [0.5]


# Over a server that loses things.


@pytest.fixture
def server():
    server = ShelfServer()
    yield server
    server.stop()


@pytest.fixture(params=["sync", "asyncio", "trio", "threads under asyncio"])
def run(request):
    """Runs a sync or an async tool as its callers would."""

    def run(gantry, body):
        if request.param == "sync":
            return gantry.with_memory(body)()

        async def tool(memory):
            return body(memory)

        if request.param.startswith("threads"):
            gantry._wiring.settings.bridge.store.async_link = None
        return anyio.run(gantry.with_memory(tool), backend=request.param.split()[-1])

    return run


@pytest.fixture
def gantry(server, monkeypatch):
    monkeypatch.setattr(sending, "_SHORTEST", 0.1)
    store = ShelfStore(server, commit_timeout=0.6)
    yield Gantry(store, session="local")
    store.close()


def add(memory):
    memory.setdefault("log", []).append("x")
    return memory.add("n", 1)


def read(memory):
    return dict(memory)


@pytest.mark.parametrize("fault", ["cut before", "cut after", "lose", "ignore"])
def test_commit_whose_answer_is_lost_lands_once(server, gantry, run, fault):
    run(gantry, add)
    server.faults["swap"] = [fault]

    assert run(gantry, add) == 2

    assert run(gantry, read) == {"log": ["x", "x"], "n": 2}
    assert len(server.sent("swap")) == (2 if fault in ("cut after", "lose") else 3)


def test_commit_that_another_overtakes_after_its_answer_was_lost_is_merged_once(server, gantry, run):
    run(gantry, add)
    server.faults["swap"] = ["hold"]
    stranger = Gantry(ShelfStore(server), session="local")

    def overtake():
        server.held.acquire()
        stranger.with_memory(add)()
        server.let_go.set()

    thread = threading.Thread(target=overtake)
    thread.start()

    run(gantry, add)

    thread.join()
    stranger._wiring.settings.bridge.store.close()
    assert run(gantry, read) == {"log": ["x"] * 3, "n": 3}


def test_commit_that_others_overtook_is_sent_again_under_its_own_token(server):
    """So that, however many of its sends a server comes to in the end, it does one of them."""
    memory = open_memory(A, Snapshot({"x": 1}, {}, {"x": b"v1"}, b"h1", born=b"h1"), 0.0, Terms("session"))
    memory["y"] = 2
    theirs = Snapshot({"x": 3}, {}, {"x": b"v2"}, b"h2", born=b"h1")
    ends = []
    steps = finish_far(memory, None, bridge_to(ShelfStore(server)), ends.append)

    first = next(steps)
    second = steps.send(Moved((theirs,), 0.0))

    assert (first.changes[0].head, second.changes[0].head) == (b"h1", b"h2")
    assert first.token == second.token
    assert len(first.token) == 16
    assert not ends
    with pytest.raises(StopIteration):
        steps.send(Committed())
    assert ends == [State.LANDED]


def test_commit_that_a_store_has_tried_without_a_message_goes_on_with_what_is_left(server, clock):
    memory = open_memory(A, Snapshot({"x": 1}, {}, {"x": b"v1"}, b"h1", born=b"h1"), 0.0, Terms("session"))
    memory["y"] = 2
    ends = []
    tried = Tried(b"t" * 16, clock.now + 2.5, {"y"}, down(None))
    steps = finish_far(memory, None, bridge_to(ShelfStore(server)), ends.append, tried)

    pause = next(steps)
    clock.now += 1.0
    message = steps.send(None)

    assert type(pause) is Pause
    assert (message.token, message.version, message.timeout) == (b"t" * 16, b"t" * 8, 1.0)
    clock.now += 1.5
    with pytest.raises(StoreUnavailableError) as caught:
        steps.throw(down(False))
    # It may have landed when it was tried.
    assert caught.value.committed is None
    assert ends == [State.FAILED]


@pytest.mark.parametrize("now", [1, object()], ids=["undone", "refused"])
def test_what_was_tried_stays_unknown_when_the_memory_has_changed_since(server, now):
    memory = open_memory(A, Snapshot({"x": 1}, {}, {"x": b"v1"}, b"h1", born=b"h1"), 0.0, Terms("session"))
    memory["x"] = 2
    ends = []
    # A thread that the body has left behind.
    memory["x"] = now
    tried = Tried(b"t" * 16, time.monotonic() + 5.0, {"x"}, down(None))

    with pytest.raises(StateError) as caught:
        next(finish_far(memory, None, bridge_to(ShelfStore(server)), ends.append, tried))

    assert caught.value.committed is None
    assert ends == [State.FAILED]


@pytest.mark.parametrize("more", [False, True], ids=["what was tried", "more"])
def test_what_a_first_try_found_is_merged_with_unless_more_was_written_since(server, more):
    memory = open_memory(A, Snapshot({"x": 1, "z": 1}, {}, {}, b"h1", born=b"h1", first=b"h1"), 0.0, Terms("session"))
    memory["y"] = 2
    theirs = Snapshot({"x": 1, "z": 3}, {}, {"z": b"v2"}, b"h2", born=b"h1", first=b"h1")
    if more:
        # A thread that the body has left behind, of whose key it was not said what stands there.
        memory["z"] = 4
    tried = Tried(b"t" * 16, time.monotonic() + 5.0, {"y"}, Moved((theirs,), 0.0))

    message = next(finish_far(memory, None, bridge_to(ShelfStore(server)), lambda state: None, tried))

    assert (message.token, message.changes[0].head) == (b"t" * 16, b"h1" if more else b"h2")


def test_conflict_after_a_lost_request_is_no_unknown_outcome(server, gantry):
    server.faults["swap"] = ["cut before"]
    stranger = Gantry(ShelfStore(server), session="local")

    @stranger.with_memory
    def theirs(memory):
        memory["x"] = "theirs"

    @gantry.with_memory
    def ours(memory):
        memory["x"] = "ours"
        server.faults.clear()
        theirs()
        server.faults["swap"] = ["cut before"]

    with pytest.raises(MemoryConflictError) as caught:
        ours()

    stranger._wiring.settings.bridge.store.close()
    assert caught.value.committed is False


def test_commit_that_is_never_answered_is_unknown_within_its_time(server, gantry, run):
    server.faults["swap"] = ["ignore"] * 10

    with pytest.raises(StoreTimeoutError) as caught:
        run(gantry, add)

    assert caught.value.committed is None


def test_commit_that_was_never_sent_is_surely_not_written(server, gantry, run):
    def tool(memory):
        memory["x"] = 1
        server.stop()

    with pytest.raises(StoreUnavailableError) as caught:
        run(gantry, tool)

    assert caught.value.committed is False


def test_erasure_whose_answer_is_lost_is_done(server, gantry):
    gantry.with_memory(add)()
    server.faults["swap"] = ["cut after"]

    gantry.end_session("local")

    assert gantry.with_memory(read)() == {}


def test_commit_goes_on_being_sent_while_its_caller_is_cancelled(server, gantry):
    server.faults["swap"] = ["cut before", "hold", "cut after"]

    @gantry.with_memory
    async def tool(memory):
        return add(memory)

    async def main():
        task = asyncio.ensure_future(tool())
        await asyncio.to_thread(server.held.acquire)
        task.cancel()
        await asyncio.sleep(0)
        server.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())

    assert gantry.with_memory(read)() == {"log": ["x"], "n": 1}


# The times of each message are its store's.


class Plain(MemoryStore):
    inline = False
    load_timeout, commit_timeout = 1.25, 2.5

    def __init__(self):
        super().__init__()
        self.times = {}

    def _note(self, message):
        self.times[type(message).__name__] = message.timeout


def noting(verb):
    def method(self, message, /):
        self._note(message)
        return getattr(MemoryStore, verb)(self, message)

    return method


def awaiting(verb):
    async def method(self, message, /):
        return getattr(self.inner, verb)(message)

    return method


VERBS = ("load", "commit", "forget", "list", "lease", "release")
for _verb in VERBS:
    setattr(Plain, _verb, noting(_verb))


class Inline(Plain):
    inline = True


class Local(Plain):
    def attempt(self, message, /):
        return getattr(self, type(message).__name__.lower())(message)


class Network(Plain):
    async def answer(self, message, /):
        return getattr(self, type(message).__name__.lower())(message)

    async def aclose(self):
        self.close()


class Coroutines:
    clock = None
    load_timeout, commit_timeout = Plain.load_timeout, Plain.commit_timeout

    def __init__(self):
        self.inner = Plain()
        self.times = self.inner.times

    async def close(self):
        self.inner.close()


for _verb in VERBS:
    setattr(Coroutines, _verb, awaiting(_verb))


@pytest.mark.parametrize("way", ["sync", "asyncio"])
@pytest.mark.parametrize("kind", [Inline, Local, Plain, Network, Coroutines])
def test_messages_have_the_times_of_a_third_partys_store(kind, way):
    store = kind()
    gantry = Gantry(store, session="local")

    @gantry.with_memory(exclusive=True)
    def tool(memory):
        memory["x"] = 1

    @gantry.with_memory(exclusive=True)
    async def atool(memory):
        memory["x"] = 1

    if way == "sync":
        tool()
        gantry.end_session("local")
    else:

        async def main():
            await atool()
            await gantry.aend_session("local")

        asyncio.run(main())
    gantry._wiring.settings.bridge.close()

    # What can be sent again is given half of the time first.
    first = 1.25 if gantry._wiring.settings.bridge.resendable else 2.5
    given = {"Commit": first, "Forget": first}
    assert "Load" in store.times
    for verb, seconds in store.times.items():
        # Less what has gone by, which on a busy machine may be much.
        longest = given.pop(verb, 1.25)
        assert longest - 1.2 < seconds <= longest
    assert not given
