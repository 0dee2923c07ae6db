"""A connection that the callers on an event loop share: whose reply is whose, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import socket
import sys
import threading
import time
import weakref

import anyio
import pytest
from servers import HOST, started, stopped

from agent_gantry_state import (
    Gantry,
    Namespace,
    StoreClosedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.steps import Pause
from agent_gantry_state.stores.memcached import MemcachedStore
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_shared import SharedConnection
from agent_gantry_state.stores.memcached_wire import LINE, VALUES, Request, gets, stores
from agent_gantry_state.stores.pool import Silence
from agent_gantry_state.stores.protocol import Change, Commit, Load
from agent_gantry_state.testing import A, Talk, put

SERVER = Server("server")


class Unwatching(asyncio.SelectorEventLoop):
    """A loop that watches no sockets for others, as that of Windows."""

    def add_reader(self, *args):
        raise NotImplementedError

    remove_reader = remove_writer = add_writer = add_reader


class Shared:
    """A connection, and the other end of it."""

    def __init__(self):
        ours, self.server = socket.socketpair()
        ours.setblocking(False)
        self.server.settimeout(10)
        self.parted = []
        self.silence = Silence()
        self.connection = SharedConnection(ours, self.silence, self.parted.append)

    def ask(self, words=b"gets k", seconds=30.0, kinds=(VALUES,)):
        return self.connection.ask(Request(SERVER, words + b"\r\n", kinds), time.monotonic() + seconds)

    def reply(self, *values):
        self.server.sendall(b"".join([b"VALUE k 0 %d 7\r\n%b\r\nEND\r\n" % (len(value), value) for value in values]))

    async def received(self, size=1 << 20):
        """What the server has been sent, as soon as there is something."""
        return await asyncio.to_thread(self.server.recv, size)


def data(replies):
    ((found,), _) = replies
    return found[b"k"][0]


@pytest.fixture(params=[asyncio.SelectorEventLoop, Unwatching])
def on_loop(request):
    """Runs a test on a loop of each kind, with a connection, and sees that nothing of it stays open."""

    def run(test):
        async def main():
            it = Shared()
            with it.server:
                try:
                    await asyncio.wait_for(test(it), 20)
                finally:
                    it.connection.close()
            while it.connection._tasks:
                await asyncio.sleep(0)
            assert it.connection.sock.fileno() < 0

        loop = request.param()
        try:
            loop.run_until_complete(main())
        finally:
            loop.close()

    return run


def test_what_is_asked_in_one_turn_is_sent_at_once_and_answered_in_order(on_loop):
    async def test(it):
        first = it.ask(b"gets a")
        others = [it.ask(b"gets " + name) for name in (b"b", b"c", b"d")]
        # Nobody waits for others who does not have to.
        assert it.server.recv(100) == b"gets a\r\n"
        assert await it.received() == b"gets b\r\ngets c\r\ngets d\r\n"
        it.reply(b"1", b"2", b"3", b"4")
        assert [data(each) for each in await asyncio.gather(first, *others)] == [b"1", b"2", b"3", b"4"]

        alone = it.ask(b"gets e")
        assert await it.received() == b"gets e\r\n"
        it.reply(b"5")
        assert data(await alone) == b"5"

    on_loop(test)


def test_request_that_is_cancelled_before_it_is_sent_is_not_sent(on_loop):
    async def test(it):
        first, second, third = it.ask(b"gets a"), it.ask(b"gets b"), it.ask(b"gets c")
        second.cancel()
        await asyncio.sleep(0.01)
        assert it.server.recv(100) == b"gets a\r\ngets c\r\n"
        it.reply(b"1", b"3")
        assert [data(await first), data(await third)] == [b"1", b"3"]

    on_loop(test)


def test_reply_to_a_cancelled_request_is_nobodys(on_loop):
    async def test(it):
        first, second, third = it.ask(), it.ask(), it.ask()
        await asyncio.sleep(0.01)
        first.cancel()
        second.cancel()
        it.reply(b"1", b"2", b"3")
        assert data(await third) == b"3"
        later = it.ask()
        it.reply(b"4")
        assert data(await later) == b"4"

    on_loop(test)


@pytest.mark.parametrize("size", [1, 3, 17])
def test_replies_that_come_in_pieces_find_their_callers(on_loop, size):
    async def test(it):
        asked = [it.ask() for _ in range(4)]
        values = [b"END\r\n", b"", b"VALUE k 0 3 7\r\nabc\r\nEND\r\n", b"x" * 50]
        come = b"".join([b"VALUE k 0 %d 7\r\n%b\r\nEND\r\n" % (len(value), value) for value in values])
        for at in range(0, len(come), size):
            it.server.sendall(come[at : at + size])
            await asyncio.sleep(0)
        assert [data(each) for each in await asyncio.gather(*asked)] == values

    on_loop(test)


def test_request_that_is_late_takes_no_reply_from_those_behind_it(on_loop):
    async def test(it):
        late, behind = it.ask(seconds=0.05), it.ask()
        with pytest.raises(StoreTimeoutError, match="did not answer in time") as caught:
            await late
        assert caught.value.committed is None
        # Who comes now does not wait behind them.
        assert it.parted == [it.connection]
        assert not it.connection.is_lost
        it.reply(b"1", b"2")
        assert data(await behind) == b"2"
        # Nobody waits for anything on it any more.
        assert it.connection.is_lost

    on_loop(test)


def test_each_request_ends_at_its_own_deadline(on_loop):
    async def test(it):
        began = time.monotonic()
        it.ask(seconds=60.0)
        ends = [it.ask(seconds=seconds) for seconds in (0.2, 0.05, 0.1)]
        when = {}
        for seconds, each in zip((0.2, 0.05, 0.1), ends, strict=True):
            each.add_done_callback(lambda _, key=seconds: when.setdefault(key, time.monotonic() - began))
        done, _ = await asyncio.wait(ends, timeout=10)
        assert len(done) == 3
        assert [*when] == [0.05, 0.1, 0.2]
        assert all(seconds - 0.01 <= waited for seconds, waited in when.items())
        assert not it.connection.is_lost

    on_loop(test)


def test_request_after_an_answered_one_has_its_own_time(on_loop):
    async def test(it):
        soon = it.ask(seconds=0.1)
        it.reply(b"1")
        await soon
        later = it.ask(seconds=30.0)
        await asyncio.sleep(0.15)
        assert not later.done()
        it.reply(b"2")
        assert data(await later) == b"2"
        assert not it.parted

    on_loop(test)


def test_connection_whose_time_is_over_for_everybody_ends(on_loop):
    async def test(it):
        late = [it.ask(seconds=0.05) for _ in range(2)]
        assert [type(each) for each in await asyncio.gather(*late, return_exceptions=True)] == [StoreTimeoutError] * 2
        assert it.connection.is_lost

    on_loop(test)


def test_request_whose_time_is_over_is_never_sent(on_loop):
    async def test(it):
        with pytest.raises(StoreTimeoutError) as caught:
            await it.ask(b"gets a", seconds=-1.0)
        assert caught.value.committed is False
        it.ask(b"gets b")
        assert await it.received() == b"gets b\r\n"

    on_loop(test)


def test_end_of_the_connection_tells_everybody_what_is_known(on_loop):
    async def test(it):
        sent, cut = it.ask(b"set a 0 0 1\r\n1", kinds=(LINE,)), it.ask(b"gets a")
        await asyncio.sleep(0.01)
        unsent = it.ask(b"set b 0 0 1\r\n1", kinds=(LINE,))
        it.server.shutdown(socket.SHUT_RDWR)
        # Without a turn of the loop, in which what is queued would be sent.
        it.connection._read()
        told = await asyncio.gather(sent, cut, unsent, return_exceptions=True)
        assert [type(each) for each in told] == [StoreUnavailableError] * 3
        assert [each.committed for each in told] == [None, None, False]

    on_loop(test)


def test_what_was_sent_in_part_may_have_been_heard_and_what_waits_behind_it_has_not(on_loop):
    async def test(it):
        large, behind = it.ask(b"set a 0 0 9\r\n" + b"x" * 8_000_000, kinds=(LINE,)), it.ask(b"gets b")
        await asyncio.sleep(0.01)
        it.server.close()
        told = await asyncio.gather(large, behind, return_exceptions=True)
        assert [each.committed for each in told] == [None, False]

    on_loop(test)


def test_request_behind_a_large_one_that_is_not_heard_in_time_was_not_written(on_loop):
    async def test(it):
        large, behind = it.ask(b"x" * 8_000_000, seconds=0.1), it.ask(b"gets b", seconds=0.05)
        told = await asyncio.gather(large, behind, return_exceptions=True)
        assert [type(each) for each in told] == [StoreTimeoutError] * 2
        assert [each.committed for each in told] == [None, False]

    on_loop(test)


def test_what_does_not_fit_into_the_socket_is_sent_whole_and_what_is_behind_it_follows(on_loop):
    received = bytearray()
    payloads = [b"x" * 4_000_000, b"gets a", b"gets b", b"y" * 3_000_000, b"gets c"]
    size = sum(map(len, payloads)) + 2 * len(payloads)

    async def test(it):
        asked = [it.ask(payload) for payload in payloads]
        # It is sent on, though nobody waits for it.
        asked[0].cancel()

        def take():
            while len(received) < size and (piece := it.server.recv(1 << 20)):
                received.extend(piece)

        await asyncio.to_thread(take)
        it.reply(b"1", b"2", b"3", b"4", b"5")
        assert [data(each) for each in await asyncio.gather(*asked[1:])] == [b"2", b"3", b"4", b"5"]

    on_loop(test)

    assert bytes(received) == b"".join([payload + b"\r\n" for payload in payloads])


@pytest.mark.parametrize("words", [b"gets nothing\r\n", b"END\r\n", b""])
@pytest.mark.parametrize("asked_before", [False, True])
def test_what_comes_unasked_is_nobodys_answer(on_loop, words, asked_before):
    async def test(it):
        if asked_before:
            asked = it.ask()
            it.reply(b"1")
            await asked
        if words:
            it.server.sendall(words)
        else:
            it.server.close()
        # The loop has not looked at it yet.
        assert not it.connection.is_free()
        assert it.parted == [it.connection]
        assert it.connection.is_lost

    on_loop(test)


def test_what_comes_unasked_while_the_event_loop_runs_ends_the_connection():
    async def main():
        it = Shared()
        with it.server:
            it.server.sendall(b"END\r\n")
            with anyio.fail_after(30):
                while not it.connection.is_lost:
                    await asyncio.sleep(0)
            assert it.connection.sock.fileno() < 0

    asyncio.run(main())


@pytest.mark.parametrize("surplus", [b"END\r\n", b"what?\r\n"])
def test_surplus_behind_the_last_reply_ends_the_connection(on_loop, surplus):
    async def test(it):
        asked = it.ask()
        it.server.sendall(b"VALUE k 0 1 7\r\n1\r\nEND\r\n" + surplus)
        assert data(await asked) == b"1"
        assert it.connection.is_lost

    on_loop(test)


@pytest.mark.parametrize("words", [b"what?", b"ERROR", b"CLIENT_ERROR bad data chunk"])
def test_reply_that_is_none_leaves_no_reply_to_those_behind(on_loop, words):
    async def test(it):
        asked = [it.ask() for _ in range(3)]
        await asyncio.sleep(0.01)
        it.server.sendall(b"END\r\n" + words + b"\r\nVALUE k 0 1 7\r\n3\r\nEND\r\n")
        first, *others = await asyncio.gather(*asked, return_exceptions=True)
        assert first == ([{}], None)
        assert [type(each) for each in others] == [StoreError, StoreUnavailableError]
        assert it.connection.is_lost

    on_loop(test)


def test_refusal_of_one_request_is_no_matter_of_the_others(on_loop):
    async def test(it):
        asked = [it.ask(), it.ask(b"set a 0 0 1\r\n1", kinds=(LINE,)), it.ask()]
        await asyncio.sleep(0.01)
        it.server.sendall(b"END\r\nSERVER_ERROR out of memory storing object\r\n")
        it.reply(b"3")
        first, refused, third = await asyncio.gather(*asked, return_exceptions=True)
        assert first == ([{}], None)
        assert "no room" in str(refused)
        assert data(third) == b"3"
        assert not it.connection.is_lost

    on_loop(test)


def test_request_that_is_refused_before_all_of_it_was_sent_has_nothing_put_into_its_middle(on_loop):
    received = bytearray()
    large = b"set a 0 0 8000000\r\n" + b"x" * 8_000_000

    async def test(it):
        refused = it.ask(large, kinds=(LINE,))
        await asyncio.sleep(0.01)
        it.server.sendall(b"SERVER_ERROR out of memory storing object\r\n")
        with pytest.raises(StoreError, match="no room"):
            await refused
        # Another connection is taken, if there may be one.
        assert not it.connection.is_free()
        behind = [it.ask(b"gets b"), it.ask(b"gets c")]

        def take():
            while not received.endswith(b"gets c\r\n") and (piece := it.server.recv(1 << 20)):
                received.extend(piece)

        await asyncio.to_thread(take)
        it.reply(b"1", b"2")
        assert [data(each) for each in await asyncio.gather(*behind)] == [b"1", b"2"]

    on_loop(test)

    assert bytes(received) == large + b"\r\ngets b\r\ngets c\r\n"


def test_server_that_no_longer_tells_its_time_is_an_error_of_who_asked_for_it(on_loop):
    async def test(it):
        asked, other = it.connection.ask(gets(Server("clock"), [b"k"]), time.monotonic() + 30), it.ask()
        await asyncio.sleep(0.01)
        it.server.sendall(b"STAT pid 1\r\nEND\r\nEND\r\n")
        it.reply(b"1")
        with pytest.raises(StoreError, match="does not tell its time"):
            await asyncio.wait_for(asked, 5)
        assert data(await other) == b"1"

    on_loop(test)


def test_replies_that_were_lost_to_a_signal_leave_none_to_those_behind():
    signals = [KeyboardInterrupt()]

    def interrupted(data, at):
        if signals:
            raise signals.pop()
        return VALUES(data, at)

    async def main():
        it = Shared()
        with it.server:
            asked = [it.ask(), it.ask(kinds=(interrupted,)), it.ask()]
            await asyncio.sleep(0)
            it.reply(b"1", b"2")
            with pytest.raises(KeyboardInterrupt):
                it.connection._read()
            with contextlib.suppress(OSError):
                it.reply(b"3")
            first, *others = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
        assert data(first) == b"1"
        assert [(type(each), each.committed) for each in others] == [(StoreUnavailableError, None)] * 2
        assert it.connection.sock.fileno() < 0

    asyncio.run(main())


def test_full_socket_is_waited_for_on_a_loop_that_watches_none(on_loop, monkeypatch):
    async def test(it):
        begun = []
        run = SharedConnection._run
        monkeypatch.setattr(SharedConnection, "_run", lambda self, work: (begun.append(work), run(self, work)))
        full = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                full += it.connection.sock.send(b"x" * 1000)
        asked = [it.ask(b"gets a"), it.ask(b"gets b")]
        await asyncio.sleep(0.1)
        # One that sends and one that reads.
        assert len(begun) <= 2
        received = bytearray()

        def take():
            while len(received) < full + len(b"gets a\r\ngets b\r\n"):
                received.extend(it.server.recv(1 << 20))

        await asyncio.to_thread(take)
        assert received.endswith(b"xgets a\r\ngets b\r\n")
        it.reply(b"1", b"2")
        assert [data(each) for each in await asyncio.gather(*asked)] == [b"1", b"2"]

    on_loop(test)


@pytest.mark.parametrize("asked_before", [1, 3])
def test_who_asks_on_a_connection_that_has_just_ended_is_told(on_loop, asked_before):
    async def test(it):
        before = [it.ask() for _ in range(asked_before)]
        await asyncio.sleep(0.01)
        it.reply(*[b"1"] * asked_before)
        await asyncio.gather(*before)
        it.connection.close()
        for _ in range(2):
            with pytest.raises(StoreUnavailableError) as caught:
                await asyncio.wait_for(it.ask(), 5)
            assert caught.value.committed is False

    on_loop(test)


def test_change_of_another_life_is_not_sent(on_loop):
    async def test(it):
        it.connection.life = ("pid", 1)
        answer = it.connection.ask(stores(SERVER, b"k", b"1", 0, b"7", ("pid", 0)), time.monotonic() + 30)
        assert (await answer)[0] == [b"EXISTS"]
        it.ask(b"gets b")
        assert await it.received() == b"gets b\r\n"

    on_loop(test)


def test_time_of_the_server_is_counted_from_when_its_request_was_sent(on_loop):
    async def test(it):
        server = Server("clock")
        asked = it.connection.ask(gets(server, [b"k"]), time.monotonic() + 30)
        await asyncio.sleep(0.05)
        later = it.ask()
        it.server.sendall(b"STAT pid 1\r\nSTAT time 1000\r\nSTAT uptime 1\r\nEND\r\nEND\r\nEND\r\n")
        assert (await asked)[0] == [{}]
        await later
        least, most, _ = server._ahead
        # The second in which it said so, and how long that was under way.
        assert most - least >= 1.05

    on_loop(test)


def test_connection_that_is_to_end_is_not_kept_by_a_cancelled_request(on_loop):
    async def test(it):
        gone, waiting = it.ask(), it.ask()
        gone.cancel()
        await asyncio.sleep(0.01)
        it.connection.retire()
        assert not it.connection.is_lost
        waiting.cancel()
        it.connection.retire()
        assert it.connection.is_lost

    on_loop(test)


def test_connection_that_is_dropped_by_another_thread_tells_who_waits(on_loop):
    async def test(it):
        asked = it.ask()
        await asyncio.sleep(0.01)
        await asyncio.to_thread(it.connection.drop)
        with pytest.raises(StoreUnavailableError):
            await asked
        assert it.connection.is_lost

    on_loop(test)


@pytest.mark.parametrize("is_sent", [True, False])
def test_who_gives_up_takes_the_connection_from_those_who_come_later_and_from_nobody_else(on_loop, is_sent):
    async def test(it):
        first, given_up, third = it.ask(b"gets a"), it.ask(b"gets b"), it.ask(b"gets c")
        if is_sent:
            await asyncio.sleep(0.01)
        it.connection.abandon(given_up)
        assert (it.parted == [it.connection]) is is_sent
        await asyncio.sleep(0.01)
        assert (b"gets b" in it.server.recv(100)) is is_sent
        it.reply(*[b"1", b"2", b"3"] if is_sent else [b"1", b"3"])
        assert [data(await first), data(await third)] == [b"1", b"3"]
        assert it.connection.is_lost is is_sent

    on_loop(test)


def test_connection_that_is_to_end_does_so_when_the_last_who_waits_behind_something_large_gives_up(on_loop):
    async def test(it):
        large, behind = it.ask(b"x" * 8_000_000), it.ask(b"gets b")
        await asyncio.sleep(0.01)
        it.connection.abandon(large)
        assert not it.connection.is_lost
        it.connection.abandon(behind)
        assert it.connection.is_lost

    on_loop(test)


def test_who_gives_up_after_the_loop_was_closed_ends_the_connection():
    async def ask():
        it = Shared()
        answer = it.ask()
        # What has a task go on.
        answer.add_done_callback(lambda _: None)
        return it, answer

    loop = asyncio.new_event_loop()
    it, answer = loop.run_until_complete(ask())
    loop.close()
    with it.server:
        it.connection.abandon(answer)
    assert it.connection.sock.fileno() < 0


# The store.


def namespaces(count):
    return [Namespace("session", str(number)) for number in range(count)]


def connections(server):
    with socket.create_connection((server.host, server.port), 5) as sock, sock.makefile("rb") as answers:
        sock.sendall(b"stats\r\n")
        words = dict(line.split()[1:3] for line in iter(answers.readline, b"END\r\n"))
    # Without this one.
    return int(words[b"total_connections"]) - 1


def test_many_tasks_share_a_connection():
    with started("memcached") as server:
        before = connections(server) + 1
        store = MemcachedStore(f"{HOST}:{server.port}")

        async def main():
            async with Gantry(store) as gantry:

                @gantry.with_memory
                async def count(memory):
                    memory.add("n", 1)

                async def work(name):
                    async with gantry.session(name):
                        for _ in range(5):
                            await count()

                await asyncio.gather(*[work(str(number)) for number in range(32)])
                assert connections(server) - before == 1
                for number in range(32):
                    async with gantry.memory(session=str(number)) as memory:
                        assert memory == {"n": 5}
                await store.aclose()

        asyncio.run(main())


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_caller_that_is_ended_leaves_those_beside_it_their_answers(how):
    async def main(server):
        store = MemcachedStore(f"{HOST}:{server.port}")
        talk = Talk(bridge_to(store))
        for number, each in enumerate(namespaces(4)):
            change = Change(each, None, {"x": put(number)}, (), {"x": None})
            await talk.aask(Commit(bytes([number]) * 16, b"v" * 8, (change,)))
        made = connections(server)
        with stopped(server):
            ended = store.answer(Load((namespaces(4)[0],)))
            task = asyncio.ensure_future(ended) if how == "cancelled" else None
            if task is None:
                ended.send(None)
            others = [asyncio.ensure_future(talk.aask(Load((each,)))) for each in namespaces(4)[1:]]
            await asyncio.sleep(0.05)
            if task is None:
                ended.close()
            else:
                task.cancel()
            await asyncio.sleep(0)
            later = asyncio.ensure_future(talk.aask(Load((namespaces(4)[0],))))
            await asyncio.sleep(0.05)
        found = await asyncio.gather(*others, later)
        assert [each.snapshots[0].value("x") for each in found] == [1, 2, 3, 0]
        # Those, the one that asks, and the one that came later.
        assert connections(server) == made + 2
        await store.aclose()

    with started("memcached") as server:
        asyncio.run(main(server))


def test_commit_that_was_between_two_messages_when_the_store_was_closed_sends_no_more():
    def steps():
        yield Load((A,))
        yield Pause(0.2)
        yield Commit(b"t" * 16, b"v" * 8, (Change(A, None, {"x": put(1)}, (), {"x": None}),))

    async def main(server):
        store = MemcachedStore(f"{HOST}:{server.port}")
        bridge = bridge_to(store)
        await Talk(bridge).aask(Load((A,)))
        made = connections(server)
        committing = asyncio.ensure_future(bridge.arun_uncut(steps()))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(store.close)
        with pytest.raises(StoreClosedError) as caught:
            await committing
        assert caught.value.committed is False
        # This one.
        assert connections(server) == made + 1

    with started("memcached") as server:
        asyncio.run(main(server))


def test_context_of_who_came_first_is_not_kept_for_the_others():
    class Own:
        pass

    variable = contextvars.ContextVar("variable")

    async def main(server):
        async with Gantry(MemcachedStore(f"{HOST}:{server.port}")) as gantry:

            @gantry.with_memory
            async def count(memory):
                memory.add("n", 1)

            async def call():
                own = Own()
                variable.set(own)
                async with gantry.session("s"):
                    await count()
                return weakref.ref(own)

            own = await asyncio.ensure_future(call())
            # What woke this task has to end.
            await asyncio.sleep(0)
            gc.collect()
            assert own() is None

    with started("memcached") as server:
        asyncio.run(main(server))


@pytest.mark.parametrize("limit", [1, 32])
def test_something_large_holds_nobody_up_where_there_may_be_another_connection(limit):
    large = b"x" * 800_000
    with started("memcached") as server:
        before = connections(server) + 1
        store = MemcachedStore(f"{HOST}:{server.port}", max_connections=limit)
        talk = Talk(bridge_to(store))

        async def write(namespace):
            change = Change(namespace, None, {"x": put(large)}, (), {"x": None})
            await talk.aask(Commit(b"t" * 16, b"v" * 8, (change,)))

        async def main():
            await talk.aask(Load((A,)))
            with stopped(server):
                # They do not fit into the socket, and nobody takes them out.
                writing = [asyncio.ensure_future(write(each)) for each in namespaces(20)]
                await asyncio.sleep(0.1)
                reading = [asyncio.ensure_future(talk.aask(Load((A,)))) for _ in range(8)]
                await asyncio.sleep(0.1)
            await asyncio.gather(*writing, *reading)
            assert (connections(server) - before > 1) == (limit > 1)
            for each in namespaces(20):
                assert (await talk.aask(Load((each,)))).snapshots[0].value("x") == large
            await store.aclose()

        asyncio.run(main())


def test_failure_to_connect_is_told_to_all_who_wait_for_it():
    listener = socket.create_server((HOST, 0))
    accepted = []
    gate = threading.Event()

    def serve():
        # The connection is closed before it is greeted, once all wait for it.
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            accepted.append(client)
            gate.wait(10)
            client.close()

    thread = threading.Thread(target=serve)
    thread.start()
    store = MemcachedStore(f"{HOST}:{listener.getsockname()[1]}", load_timeout=10.0)

    async def main():
        asked = [asyncio.ensure_future(ask_once(store)) for _ in range(4)]
        await asyncio.sleep(0.05)
        gate.set()
        told = await asyncio.gather(*asked, return_exceptions=True)
        await store.aclose()
        return told

    with listener:
        told = asyncio.run(main())
        thread.join()

    assert [type(each) for each in told] == [StoreUnavailableError] * 4
    assert len({id(each) for each in told}) == 4
    assert len(accepted) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio itself takes no step of a task in a child")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_that_goes_on_in_the_loop_ends_its_calls_and_not_those_of_its_parent():
    async def main(server):
        store = MemcachedStore(f"{HOST}:{server.port}")
        await store.answer(Load((A,)))
        with stopped(server):
            asked, waiting = [asyncio.ensure_future(ask_once(store, seconds=each)) for each in (0.5, 5.0)]
            await asyncio.sleep(0.05)
            child = os.fork()
            if not child:
                waiting.cancel()
                try:
                    await asked
                except StoreTimeoutError:
                    os._exit(0)
                finally:
                    os._exit(1)
            _, status = await asyncio.to_thread(os.waitpid, child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        with pytest.raises(StoreTimeoutError):
            await asked
        assert (await waiting)[0] == [{}]
        await store.aclose()

    with started("memcached") as server:
        asyncio.run(main(server))


class Greeting:
    """Greets who connects as a memcached does, and then does as it is told."""

    def __init__(self, *, close, once=False):
        self.listener = socket.create_server((HOST, 0))
        self.name = f"{HOST}:{self.listener.getsockname()[1]}"
        self.clients = []
        self._thread = threading.Thread(target=self._serve, args=(close, once))
        self._thread.start()

    def _serve(self, close, once):
        stats = b"STAT pid 1\r\nSTAT time 1000\r\nSTAT uptime 1\r\nEND\r\n"
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.clients.append(client)
                while not client.recv(1000).endswith(b"settings\r\n"):
                    pass
                client.sendall(stats + b"END\r\n")
                if close:
                    client.close()
                if once:
                    self.listener.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join()
        for client in self.clients:
            client.close()


def test_connection_that_ends_as_soon_as_it_is_greeted_keeps_nobody_waiting():
    async def main(name):
        store = MemcachedStore(name)
        for _ in range(3):
            for message in (Load((A,)), Commit(b"t" * 16, b"v" * 8, (Change(A, None, {"x": put(1)}, (), {"x": None}),))):
                with pytest.raises(StoreUnavailableError):
                    await asyncio.wait_for(store.answer(message), 3)
                await asyncio.sleep(0.01)
                assert not links(store)._open
        await store.aclose()

    with Greeting(close=True) as server:
        asyncio.run(main(server.name))


def test_where_no_other_connection_can_be_made_the_one_there_is_takes_all():
    async def main(server):
        store = MemcachedStore(server.name, load_timeout=1.0)
        asked = [asyncio.ensure_future(ask_once(store, b"x" * 8_000_000))]
        await asyncio.sleep(0)
        while not (shared := links(store))._open:
            await asyncio.sleep(0.01)
        while server.listener.fileno() >= 0:
            await asyncio.sleep(0.01)
        asked.append(asyncio.ensure_future(ask_once(store)))
        while shared._connecting or shared._open[0].load() < 2:
            await asyncio.sleep(0.01)
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)
        await store.aclose()

    with Greeting(close=False, once=True) as server:
        asyncio.run(asyncio.wait_for(main(server), 20))


def test_connections_that_still_have_to_answer_count():
    async def main(server):
        store = MemcachedStore(server.name, max_connections=2)
        for number in range(2):
            given_up, waiting = [asyncio.ensure_future(ask_once(store, seconds=30.0)) for _ in range(2)]
            await asyncio.sleep(0)
            while len((shared := links(store))._open) != 1 or shared._open[0].load() < 2:
                await asyncio.sleep(0.01)
            given_up.cancel()
            await asyncio.wait([given_up])
            assert len(shared._retired) == number + 1
        with pytest.raises(StoreTimeoutError, match="max_connections"):
            await ask_once(store, seconds=0.1)
        later = asyncio.ensure_future(ask_once(store, seconds=30.0))
        await asyncio.sleep(0.05)
        assert len(server.clients) == 2
        server.clients[0].close()
        while len(server.clients) < 3:
            await asyncio.sleep(0.01)
        for each in (later, waiting):
            each.cancel()
        await asyncio.wait([later, waiting])
        await store.aclose()

    with Greeting(close=False) as server:
        asyncio.run(asyncio.wait_for(main(server), 20))


def links(store):
    """What the callers on this loop share."""
    (shared,) = store._alinks[asyncio.get_running_loop()].link._shared.values()
    return shared


async def ask_once(store, words=b"gets k", seconds=5.0):
    """Ask the store's link, for the store itself would try twice."""
    on_loop = store._alinks.get(asyncio.get_running_loop()) or await store._aopen()
    (server,) = store._servers.values()
    return await on_loop.link.ask(Request(server, words + b"\r\n", (VALUES,)), time.monotonic() + seconds)
