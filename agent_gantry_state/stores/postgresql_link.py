"""How PostgreSQL is asked: by callers that may block, and by those on one asyncio event loop.

Connections are our own, which are made when somebody asks, in his time and telling him why it fails, and need no thread or
task of their own, as those of psycopg's pools do; or those of a pool that a user has made.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from agent_gantry_state.errors import StoreUnavailableError
from agent_gantry_state.stores.network import driver
from agent_gantry_state.stores.pool import AsyncPool, Pool
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

__all__ = ["Handed", "HandedAsync", "Own", "OwnAsync"]


# For callers that may block.


class Own:
    """Connections of our own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pool = Pool(self._connect, server.limit, server.busy)

    def ask(self, query: Query, deadline: float, /) -> Any:
        return self._pool.use(lambda connection: _run(connection.asked(query), connection.pgconn.socket, deadline), deadline)

    def _connect(self, deadline: float) -> Connection:
        connecting = self._server.connecting(min(deadline, time.monotonic() + self._server.connect_timeout))
        try:
            request = next(connecting)
            while True:
                of, what, until = request
                request = connecting.send(_resolved(of, until) if isinstance(of, str) else is_ready(of, what, left(until)))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            connecting.close()

    def close(self) -> None:
        self._pool.close()


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
    answers: list[list[Any]] = []
    done = threading.Event()

    def found(answer: list[Any]) -> None:
        answers.append(answer)
        done.set()

    _resolve(host, found)
    return answers[0] if done.wait(left(deadline)) else []


def _resolve(host: str, found: Callable[[list[Any]], object]) -> None:
    """Pass what getaddrinfo says of *host* to *found*, in a thread: nothing bounds how long that takes, and nobody waits for
    that thread at the end of the program, or of its event loop, as he would for one of a pool.
    """

    def resolve() -> None:
        answer: list[Any] = []
        # That it cannot be a name at all is a ValueError.
        with contextlib.suppress(OSError, ValueError):
            answer = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        found(answer)

    threading.Thread(target=resolve, name="agent-gantry-state-resolve", daemon=True).start()


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


class OwnAsync:
    """Connections of our own, for the event loop on which this is made."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._pool = AsyncPool(self._connect, server.limit, server.busy)

    async def ask(self, query: Query, deadline: float, /) -> Any:
        return await self._pool.use(
            lambda connection: _wait_on_loop(connection.asked(query), connection.pgconn.socket, deadline), deadline
        )

    async def _connect(self, deadline: float) -> Connection:
        connecting = self._server.connecting(min(deadline, time.monotonic() + self._server.connect_timeout))
        try:
            request = next(connecting)
            while True:
                of, what, until = request
                request = connecting.send(
                    await (_resolved_on_loop(of, until) if isinstance(of, str) else _ready_on_loop(of, what, until))
                )
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            connecting.close()

    async def close(self) -> None:
        self._pool.close()

    def drop(self) -> None:
        self._pool.drop()


async def _resolved_on_loop(host: str, deadline: float) -> list[Any]:
    loop = asyncio.get_running_loop()
    answers: list[list[Any]] = []
    done: asyncio.Future[bool] = loop.create_future()

    def found(answer: list[Any]) -> None:
        answers.append(answer)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_set, done, True)

    _resolve(host, found)
    return answers[0] if await _in_time(done, deadline) else []


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
