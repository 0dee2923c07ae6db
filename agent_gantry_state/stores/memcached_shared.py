"""A connection to memcached that the callers on an event loop share.

What they ask in one turn of the loop is sent in one piece, and the replies are read in the order of the requests: to send
and to wake the server are most of what a request costs. A request lives without its caller: if that is cancelled, or its
time is over, the reply is read all the same and thrown away, so that none is ever taken for another one's. Nobody who comes
later asks on such a connection, for it may have gone silent; who has asked before still gets an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from agent_gantry_state.errors import StoreError
from agent_gantry_state.stores.memcached_connection import CHUNK, Connection, failed, outlived, replied
from agent_gantry_state.stores.memcached_wire import Disconnected, Garbled, Refused, Replies, Request, replies
from agent_gantry_state.stores.pool import Silence

__all__ = ["SharedConnection"]


class _Asked:
    """A request on its way.

    Attributes:
        request: The request.
        deadline: Until when somebody waits for the replies, on the monotonic clock.
        began: Since when.
        answer: Gets the replies, or an error.
    """

    __slots__ = ("answer", "began", "deadline", "request")

    def __init__(self, request: Request, deadline: float, began: float, answer: asyncio.Future[Replies]) -> None:
        self.request = request
        self.deadline = deadline
        self.began = began
        self.answer = answer


class SharedConnection(Connection):
    """A connection that the running event loop watches from its beginning to its end, also between two requests.

    To have a socket watched for each reply anew costs as much as to read it, and a transport of asyncio's makes room for 256
    KB each time that something comes, and cannot be closed after its loop.

    Args:
        sock: The socket.
        silence: Told of answers, and of requests that had none.
        parted: Called when it takes no more requests.
    """

    __slots__ = (
        "_buffer",
        "_context",
        "_is_flushing",
        "_is_reading",
        "_is_retired",
        "_is_watched",
        "_loop",
        "_many",
        "_parted",
        "_queue",
        "_rest",
        "_silence",
        "_tasks",
        "_timer",
        "_timer_at",
        "_under_way",
        "is_lost",
    )

    def __init__(self, sock: socket.socket, silence: Silence, parted: Callable[[SharedConnection], None]) -> None:
        super().__init__(sock)
        self._silence = silence
        self._parted = parted
        self._loop = asyncio.get_running_loop()
        #: Requests of which nothing was sent, those whose replies are to come, and what has come of the first one's.
        self._queue: deque[_Asked] = deque()
        self._under_way: deque[_Asked] = deque()
        self._buffer = bytearray()
        #: What is still to be sent of the last request under way; the queue waits for it.
        self._rest: memoryview | None = None
        self._is_flushing = False
        #: Whether several were sent at once last time: then the next one mostly does not come alone either.
        self._many = False
        #: What looks for requests whose time is over, and when: it may have been set for one that was answered since.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        #: Whether it takes no more requests, and ends with the last one under way.
        self._is_retired = False
        self.is_lost = False
        #: What sends and reads on a loop that watches no sockets.
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_reading = False
        # What the loop does for all of them is no matter of whoever was first, whose context would be kept for it.
        self._context = contextvars.Context()
        try:
            self._context.run(self._loop.add_reader, sock, self._read)
        except NotImplementedError:
            # The loop that Windows has.
            self._is_watched = False
        else:
            self._is_watched = True

    # What its link asks.

    def load(self) -> int:
        """How many requests have not been answered."""
        return len(self._under_way) + len(self._queue)

    def is_free(self) -> bool:
        """Whether a request would be answered soon: nothing large is under way before it, and the server is there."""
        if self._under_way or self._queue or self._rest is not None:
            return self._rest is None and not self._buffer
        if self.is_stale():
            # The loop has not looked at it yet.
            self._lose(Disconnected())
            return False
        return True

    def ask(self, request: Request, deadline: float) -> asyncio.Future[Replies]:
        """Have a request answered. What waits for it may be cancelled; a request that was not sent then is not."""
        answer: asyncio.Future[Replies] = self._loop.create_future()
        if request.life is not None and request.life != self.life:
            answer.set_result(outlived(request, self.life))
            return answer
        self.used = began = time.monotonic()
        asked = _Asked(request, deadline, began, answer)
        if deadline <= began:
            self._fail(asked, TimeoutError(), sent=False)
            return answer
        if deadline < self._timer_at:
            self._start_timer(deadline, began)
        queue = self._queue
        queue.append(asked)
        if self._is_flushing or self._rest is not None:
            # It goes with the others, or after that of which a part is still to be sent; that may be answered already.
            pass
        elif self._many or self._under_way or len(queue) > 1:
            self._is_flushing = True
            self._loop.call_soon(self._flush, context=self._context)
        else:
            self._send_queue()
        return answer

    def abandon(self, answer: asyncio.Future[Replies]) -> None:
        """Note that nobody waits any more for what `ask` gave."""
        # Of a loop that was closed over those who wait, nobody waits any more.
        with contextlib.suppress(RuntimeError):
            answer.cancel()
        if any(asked.answer is answer for asked in self._under_way):
            self.retire()
        else:
            self._end_if_over()

    def retire(self) -> None:
        """Take no more requests, and close when the last one is answered."""
        self._is_retired = True
        self._parted(self)
        self._end_if_over()

    # Sending.

    def _flush(self) -> None:
        self._is_flushing = False
        if self.is_lost:
            self._lose(Disconnected())
        elif self._rest is None:
            self._send_queue()

    def _send_queue(self) -> None:
        queue = self._queue
        if any(asked.answer.done() for asked in queue):
            # Nobody waits for it any more, and the server has not heard of it.
            queue = self._queue = deque([asked for asked in queue if not asked.answer.done()])
        self._many = len(queue) > 1
        if not queue:
            self._end_if_over()
            return
        payload = b"".join([asked.request.payload for asked in queue]) if self._many else queue[0].request.payload
        try:
            sent = self.sock.send(payload)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._lose(error)
            return
        if sent == len(payload):
            self._under_way.extend(queue)
            queue.clear()
        else:
            while sent > 0:
                asked = queue.popleft()
                self._under_way.append(asked)
                sent -= len(asked.request.payload)
            if not (sent or self._is_watched):
                # Such a loop tells nobody when there is room again: it has to be given something to send.
                self._under_way.append(queue.popleft())
                sent = -len(self._under_way[-1].request.payload)
            # The end of the last one's, of which so much is missing.
            self._rest = memoryview(self._under_way[-1].request.payload)[sent:] if sent else memoryview(b"")
            self._send_rest()
        if not (self._is_watched or self._is_reading):
            self._is_reading = True
            self._run(self._aread())

    def _send_rest(self) -> None:
        """Go on with what did not fit into the socket as soon as more does."""
        if self._is_watched:
            contextvars.Context().run(self._loop.add_writer, self.sock, self._write)
        else:
            self._run(self._awrite())

    def _write(self) -> None:
        rest = self._rest
        assert rest is not None  # noqa: S101 - else nobody watches
        try:
            rest = rest[self.sock.send(rest) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        self._rest = rest or None
        if self._rest is None:
            self._loop.remove_writer(self.sock)
            self._send_queue()

    async def _awrite(self) -> None:
        try:
            await self._loop.sock_sendall(self.sock, self._rest or b"")
        except OSError as error:
            self._lose(error)
        else:
            self._rest = None
            self._send_queue()

    # Reading.

    def _read(self) -> None:
        """What the loop does when something has come."""
        try:
            data = self.sock.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        self._take(data)

    async def _aread(self) -> None:
        try:
            while self._under_way and not self.is_lost:
                self._take(await self._loop.sock_recv(self.sock, CHUNK))
        except OSError as error:
            self._lose(error)
        except BaseException:
            self._lose(Disconnected())
            raise
        finally:
            self._is_reading = False

    def _take(self, data: bytes) -> None:
        """Hand out the replies that have come."""
        if not data:
            self._lose(Disconnected())
            return
        buffer, come = self._buffer, data
        if buffer:
            buffer += data
            come = buffer  # type: ignore[assignment]
        at, end, under_way = 0, len(come), self._under_way
        try:
            while at < end:
                if not under_way:
                    # Nobody asked: whatever it is, nobody else may take it for an answer.
                    raise Garbled  # noqa: TRY301
                asked = under_way[0]
                try:
                    found = replies(asked.request.kinds, come, at)
                except Refused as refused:
                    if len(asked.request.kinds) > 1 or not refused.line.startswith(b"SERVER_ERROR"):
                        # It may have understood something else than it was told.
                        raise
                    at = refused.end
                    under_way.popleft()
                    self._fail(asked, refused)
                    continue
                if found is None:
                    break
                answers, at = found
                if not asked.answer.done():
                    self._answer(asked, answers)
                under_way.popleft()
        except (Refused, Garbled) as error:
            self._lose(error)
            return
        except BaseException:
            # A signal perhaps: what has come is gone, and what comes next must not be taken for it.
            self._lose(Disconnected())
            raise
        if at:
            self._silence.count = 0
        if come is buffer:
            del buffer[:at]
        elif at < end:
            buffer += data[at:] if at else data
        if self._is_retired:
            self._end_if_over()

    def _answer(self, asked: _Asked, answers: list[Any]) -> None:
        try:
            asked.answer.set_result(replied(asked.request, answers, self.life, asked.began))
        except StoreError as error:
            # The server does not tell its time.
            asked.answer.set_exception(error)
            asked.answer.exception()

    # Ending.

    def _start_timer(self, deadline: float, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(deadline - now, self._look, context=self._context)
        self._timer_at = deadline

    def _look(self) -> None:
        """What the timer does. Nobody stops it when the connection is closed, as that may be done by another thread."""
        self._timer, self._timer_at = None, math.inf
        now, first = time.monotonic(), math.inf
        is_late = False
        for requests, sent in ((self._under_way, True), (self._queue, False)):
            for asked in requests:
                if asked.deadline <= now and not asked.answer.done():
                    self._fail(asked, TimeoutError(), sent)
                    is_late = True
                elif not asked.answer.done():
                    first = min(first, asked.deadline)
        if first < math.inf:
            self._start_timer(first, now)
        if is_late:
            # Whoever else waits for the server may still be answered, and nobody who comes now is to wait behind them.
            self.retire()

    def _end_if_over(self) -> None:
        if self._is_retired and all(asked.answer.done() for asked in (*self._under_way, *self._queue)):
            self.close()

    def _lose(self, error: Exception) -> None:
        """Tell everybody that it has ended, or that what came on it is to be believed no more."""
        if not self.is_lost:
            self.close()
        for asked in self._under_way:
            self._fail(asked, error)
            if isinstance(error, (Refused, Garbled)):
                # What came was for the first one.
                error = Disconnected()
        for asked in self._queue:
            self._fail(asked, error, sent=False)
        self._under_way.clear()
        self._queue.clear()

    def _fail(self, asked: _Asked, error: Exception, sent: bool = True) -> None:
        if not asked.answer.done():
            failure = failed(error, asked.request.server, asked.deadline, sent=sent)
            self._silence.note(failure, asked.began)
            asked.answer.set_exception(failure)
            # Where nobody is told, as whoever waited was closed, nobody is to complain of that.
            asked.answer.exception()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self.is_lost and not self._tasks:
            super().close()

    def end(self) -> None:
        """Let the loop find the connection closed."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it, on its event loop or after that was closed."""
        self.is_lost = True
        if self.pid != os.getpid():
            # It is a parent's, which goes on using it, and so is what watches it.
            return
        if self._is_watched and not self._loop.is_closed():
            self._loop.remove_reader(self.sock)
            if self._rest is not None:
                self._loop.remove_writer(self.sock)
        self._is_watched, self._rest = False, None
        self._parted(self)
        if self._tasks and not self._loop.is_closed():
            # The loop looks at it for them, and would take the next socket of its number for it.
            self.end()
        else:
            super().close()

    def drop(self) -> None:
        """End it from any thread, without the help of its event loop."""
        if self.pid != os.getpid() or self._loop.is_closed() or not (self._is_watched or self._tasks):
            self.close()
            return
        # The loop, should it run again, closes it: closed here, its number would go to another socket that the loop then
        # took for this one, and nobody would ever hear of the end.
        self.end()
        with contextlib.suppress(RuntimeError):  # it was closed just now
            self._loop.call_soon_threadsafe(self._lose, Disconnected())
