"""Pools of connections to PostgreSQL: one for callers that may block, and one for each asyncio event loop.

They connect when somebody asks, in his time and telling him why it fails, and need no thread or task of their own, as
psycopg's pools do. Those that a user has made are used as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from typing import Any, Final

from agent_gantry_state.errors import StoreError, StoreUnavailableError
from agent_gantry_state.stores.network import driver
from agent_gantry_state.stores.postgresql_errors import late
from agent_gantry_state.stores.postgresql_talk import (
    IDLE,
    READ,
    WRITE,
    Connection,
    Query,
    Server,
    Waits,
    exchange,
    is_ready,
    left,
)

with driver("postgresql"):
    import psycopg
    from psycopg import pq

__all__ = ["AsyncPool", "Handed", "HandedAsync", "Pool"]

#: Seconds for which a connection that nobody uses is kept.
_IDLE_SECONDS: Final = 600.0


class _Idle:
    """The connections that nobody uses, the latest used last."""

    def __init__(self) -> None:
        self._connections: deque[Connection] = deque()
        self.closed = False

    def take(self) -> Connection | None:
        while self._connections:
            try:
                connection = self._connections.pop()
            except IndexError:
                break
            if connection.is_usable():
                return connection
            connection.pgconn.finish()
        return None

    def put(self, connection: Connection) -> None:
        connection.used = time.monotonic()
        self._connections.append(connection)
        if self.closed:
            self.clear()
            return
        with contextlib.suppress(IndexError):  # another thread may take one at any moment
            if self._connections[0].used < connection.used - _IDLE_SECONDS:
                self._connections.popleft().pgconn.finish()

    def clear(self) -> None:
        while self._connections:
            with contextlib.suppress(IndexError):
                self._connections.pop().pgconn.finish()

    def close(self) -> None:
        self.closed = True
        self.clear()


# For callers that may block.


class Pool:
    """Connections for callers that may block; any thread may use it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._idle = _Idle()
        self._slots = threading.BoundedSemaphore(server.limit)

    def ask(self, query: Query, deadline: float, /) -> Any:
        seconds = left(deadline)
        if not self._slots.acquire(blocking=False) and not self._slots.acquire(timeout=left(deadline)):
            raise self._server.busy(seconds)
        try:
            connection = self._idle.take() or self._connect(deadline)
            try:
                result = _run(connection.asked(query), connection.pgconn.socket, deadline)
            except BaseException as error:
                if not isinstance(error, StoreError) or not connection.is_reusable():
                    connection.pgconn.finish()
                    if isinstance(error, StoreError) and error.transient:
                        self._idle.clear()
                else:
                    self._idle.put(connection)
                raise
            self._idle.put(connection)
            return result
        finally:
            self._slots.release()

    def _connect(self, deadline: float) -> Any:
        connecting = self._server.connecting(min(deadline, time.monotonic() + self._server.connect_timeout))
        try:
            request = next(connecting)
            while True:
                of, what, until = request
                request = connecting.send(_resolved(of, until) if isinstance(of, str) else is_ready(of, what, left(until)))
        except StopIteration as stop:
            return stop.value
        finally:
            connecting.close()

    def close(self) -> None:
        self._idle.close()


def _run(waits: Waits, fileno: int, deadline: float) -> Any:
    seconds = left(deadline)
    try:
        what = next(waits)
        while True:
            if not is_ready(fileno, what, left(deadline)):
                raise late(seconds, None)
            what = waits.send(None)
    except StopIteration as stop:
        return stop.value


def _resolved(host: str, deadline: float) -> list[Any]:
    """What getaddrinfo says of *host*, in a thread, for nothing else bounds how long that takes."""
    found: list[Any] = []
    done = threading.Event()

    def resolve() -> None:
        with contextlib.suppress(OSError):
            found.extend(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        done.set()

    threading.Thread(target=resolve, name="agent-gantry-state-resolve", daemon=True).start()
    return found if done.wait(left(deadline)) else []


class Handed:
    """A `psycopg_pool.ConnectionPool` that a user has made, and that stays open."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def ask(self, query: Query, deadline: float, /) -> Any:
        try:
            connection = self._pool.getconn(timeout=left(deadline))
        except psycopg.Error as error:
            raise _not_handed(error) from None
        try:
            return _run(exchange(_ours(connection), query, None), connection.pgconn.socket, deadline)
        except BaseException:
            if connection.pgconn.transaction_status != IDLE:
                connection.close()
            raise
        finally:
            self._pool.putconn(connection)

    def close(self) -> None:
        """Not ours to close."""


def _not_handed(error: psycopg.Error) -> StoreUnavailableError:
    return StoreUnavailableError(f"PostgreSQL: the pool gave no connection ({type(error).__name__})", committed=False)


def _ours(connection: Any) -> pq.abc.PGconn:
    pgconn: pq.abc.PGconn = connection.pgconn
    if pgconn.transaction_status != IDLE:
        raise StoreUnavailableError(
            "PostgreSQL: the pool gave a connection that is broken, or in the middle of a transaction", committed=False
        )
    return pgconn


# For callers on an asyncio event loop.


class AsyncPool:
    """Connections for the callers on the event loop on which it is made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._idle = _Idle()
        self._busy: set[Connection] = set()
        self._free = server.limit
        self._waiting: deque[asyncio.Future[bool]] = deque()

    async def ask(self, query: Query, deadline: float, /) -> Any:
        if self._free:
            self._free -= 1
        else:
            await self._turn(deadline)
        try:
            connection = self._idle.take() or await self._connect(deadline)
            pgconn = connection.pgconn
            self._busy.add(connection)
            try:
                result = await _wait_on_loop(connection.asked(query), pgconn.socket, deadline)
            except BaseException as error:
                if not isinstance(error, StoreError) or not connection.is_reusable():
                    pgconn.finish()
                    if isinstance(error, StoreError) and error.transient:
                        self._idle.clear()
                else:
                    self._idle.put(connection)
                raise
            finally:
                self._busy.discard(connection)
            self._idle.put(connection)
            return result
        finally:
            self._release()

    async def _turn(self, deadline: float) -> None:
        turn: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append(turn)
        seconds = left(deadline)
        try:
            if await _in_time(turn, deadline):
                return
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.result():
                self._release()
            raise
        raise self._server.busy(seconds)

    def _release(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(True)
                return
        self._free += 1

    async def _connect(self, deadline: float) -> Any:
        connecting = self._server.connecting(min(deadline, time.monotonic() + self._server.connect_timeout))
        try:
            request = next(connecting)
            while True:
                of, what, until = request
                request = connecting.send(
                    await (self._resolved(of, until) if isinstance(of, str) else _ready_on_loop(of, what, until))
                )
        except StopIteration as stop:
            return stop.value
        finally:
            connecting.close()

    async def _resolved(self, host: str, deadline: float) -> list[Any]:
        try:
            return await asyncio.wait_for(self._loop.getaddrinfo(host, None, type=socket.SOCK_STREAM), left(deadline))
        except (OSError, asyncio.TimeoutError):
            return []

    async def close(self) -> None:
        self._idle.close()

    def drop(self) -> None:
        self._idle.close()
        for connection in self._busy:
            connection.pgconn.finish()


class HandedAsync:
    """A `psycopg_pool.AsyncConnectionPool` that a user has made, on the event loop that it belongs to; it stays open."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def ask(self, query: Query, deadline: float, /) -> Any:
        try:
            connection = await self._pool.getconn(timeout=left(deadline))
        except psycopg.Error as error:
            raise _not_handed(error) from None
        try:
            return await _wait_on_loop(exchange(_ours(connection), query, None), connection.pgconn.socket, deadline)
        except BaseException:
            if connection.pgconn.transaction_status != IDLE:
                await connection.close()
            raise
        finally:
            await self._pool.putconn(connection)

    async def close(self) -> None:
        """Not ours to close."""

    def drop(self) -> None:
        """Not ours to close."""


async def _wait_on_loop(waits: Waits, fileno: int, deadline: float) -> Any:
    """Run an exchange on the running event loop."""
    seconds = left(deadline)
    try:
        what = next(waits)
        while True:
            if not await _ready_on_loop(fileno, what, deadline):
                raise late(seconds, None)
            what = waits.send(None)
    except StopIteration as stop:
        return stop.value


async def _ready_on_loop(fileno: int, what: int, deadline: float) -> bool:
    """Whether a socket gets ready in time."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()
    if what & READ:
        loop.add_reader(fileno, _set, ready, True)
    if what & WRITE:
        loop.add_writer(fileno, _set, ready, True)
    try:
        return await _in_time(ready, deadline)
    finally:
        if what & READ:
            loop.remove_reader(fileno)
        if what & WRITE:
            loop.remove_writer(fileno)


async def _in_time(future: asyncio.Future[bool], deadline: float) -> bool:
    """Wait for *future*; False if the deadline came first."""
    timer = future.get_loop().call_later(left(deadline), _set, future, False)
    try:
        return await future
    finally:
        timer.cancel()


def _set(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
