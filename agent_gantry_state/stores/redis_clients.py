"""Clients of redis-py that the user made, as links: their connections are used, their replies stay bytes, they stay open."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

import anyio

from agent_gantry_state.errors import StoreError, StoreTimeoutError, StoreUnavailableError
from agent_gantry_state.stores.network import AsyncLink, Link, driver
from agent_gantry_state.stores.redis_wire import Refusal, Request, packed, refused

with driver("redis"):
    import redis
    import redis.asyncio
    import redis.asyncio.cluster
    import redis.cluster
    import redis.exceptions as failures

__all__ = ["alink_to", "is_cluster", "link_to"]

#: The first word of a refusal, which redis-py takes away, by the class that it makes of it; the narrowest first.
_CODES: Final = (
    (failures.NoScriptError, "NOSCRIPT"),
    (failures.OutOfMemoryError, "OOM"),
    (failures.BusyLoadingError, "LOADING"),
    (failures.ReadOnlyError, "READONLY"),
    (failures.NoPermissionError, "NOPERM"),
    (failures.AuthenticationError, "WRONGPASS"),
    (failures.MasterDownError, "MASTERDOWN"),
    (failures.ClusterDownError, "CLUSTERDOWN"),
    (failures.TryAgainError, "TRYAGAIN"),
    (failures.ClusterCrossSlotError, "CROSSSLOT"),
    (failures.MovedError, "MOVED"),
)


def is_cluster(client: Any) -> bool:
    """Whether a client is one of a cluster."""
    return isinstance(client, (redis.cluster.RedisCluster, redis.asyncio.cluster.RedisCluster))


def link_to(client: Any) -> Link:
    """A link made of a client for callers that may block.

    Raises:
        TypeError: It is none.
    """
    if isinstance(client, redis.cluster.RedisCluster):
        return _ClusterLink(client)
    if isinstance(client, redis.Redis):
        return _ClientLink(client)
    raise TypeError("RedisStore: client must be a redis.Redis or a redis.cluster.RedisCluster; aclient= is for asyncio's")


def alink_to(client: Any) -> AsyncLink:
    """A link made of an asyncio client.

    Raises:
        TypeError: It is none.
    """
    if isinstance(client, redis.asyncio.cluster.RedisCluster):
        return _ClusterALink(client)
    if isinstance(client, redis.asyncio.Redis):
        return _ClientALink(client)
    raise TypeError("RedisStore: aclient must be a redis.asyncio.Redis or a redis.asyncio.cluster.RedisCluster")


class _ClientLink:
    def __init__(self, client: redis.Redis) -> None:
        self._pool: Any = client.connection_pool

    def ask(self, request: Request, deadline: float, /) -> list[Any]:
        """The server's replies."""
        pool = self._pool
        try:
            connection = pool.get_connection()
        except Exception as error:  # noqa: BLE001
            raise _failed(error, False) from None
        try:
            sock = getattr(connection, "_sock", None)
            if sock is not None:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
            connection.send_packed_command([packed(request.commands)])
            replies = [_reply(connection) for _ in request.commands]
            if sock is not None:
                sock.settimeout(connection.socket_timeout)
        except Exception as error:  # noqa: BLE001
            connection.disconnect()
            raise _failed(error, None) from None
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)
        return replies

    def close(self) -> None:
        """Nothing: the client is the user's."""


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except failures.ResponseError as error:
        return _refusal(error)


class _ClientALink:
    def __init__(self, client: Any) -> None:
        self._pool: Any = client.connection_pool

    async def ask(self, request: Request, deadline: float, /) -> list[Any]:
        """The server's replies."""
        pool, sent = self._pool, False
        try:
            with anyio.fail_after(max(deadline - time.monotonic(), 0)):
                connection = await pool.get_connection()
                sent = True
                try:
                    await connection.send_packed_command([packed(request.commands)])
                    return [await _areply(connection) for _ in request.commands]
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    await pool.release(connection)
        except Exception as error:  # noqa: BLE001
            raise _failed(error, None if sent else False) from None

    async def close(self) -> None:
        """Nothing: the client is the user's."""

    def drop(self) -> None:
        """Nothing: the client is the user's."""


async def _areply(connection: Any) -> Any:
    try:
        return await connection.read_response(disable_decoding=True)
    except failures.ResponseError as error:
        return _refusal(error)


class _ClusterLink:
    def __init__(self, client: Any) -> None:
        self._client = client

    def ask(self, request: Request, deadline: float, /) -> list[Any]:
        """The servers' replies."""
        return [self._reply(command, deadline) for command in request.commands]

    def _reply(self, command: Any, deadline: float) -> Any:
        if time.monotonic() >= deadline:
            raise _failed(TimeoutError(), False)
        try:
            return self._client.execute_command(*command, NEVER_DECODE=True)
        except failures.ResponseError as error:
            return _refusal(error)
        except Exception as error:  # noqa: BLE001
            raise _failed(error, None) from None

    def close(self) -> None:
        """Nothing: the client is the user's."""


class _ClusterALink:
    def __init__(self, client: Any) -> None:
        self._client = client

    async def ask(self, request: Request, deadline: float, /) -> list[Any]:
        """The servers' replies."""
        try:
            with anyio.fail_after(max(deadline - time.monotonic(), 0)):
                return [await self._reply(command) for command in request.commands]
        except Exception as error:  # noqa: BLE001
            raise _failed(error, None) from None

    async def _reply(self, command: Any) -> Any:
        try:
            return await self._client.execute_command(*command, NEVER_DECODE=True)
        except failures.ResponseError as error:
            return _refusal(error)

    async def close(self) -> None:
        """Nothing: the client is the user's."""

    def drop(self) -> None:
        """Nothing: the client is the user's."""


def _refusal(error: Exception) -> Refusal:
    for kind, code in _CODES:
        if isinstance(error, kind):
            return Refusal(f"{code} {error}")
    return Refusal(str(error))


def _failed(error: Exception, committed: bool | None) -> Exception:
    if isinstance(error, StoreError):
        return error
    if isinstance(error, (failures.BusyLoadingError, failures.AuthenticationError)):
        made = refused(_refusal(error))
        made.committed = False
        return made
    if isinstance(error, (failures.TimeoutError, TimeoutError, asyncio.TimeoutError)):
        return StoreTimeoutError("Redis gave no answer in time", committed=committed)
    if isinstance(error, (failures.RedisError, failures.RedisClusterException, OSError)):
        return StoreUnavailableError(f"the Redis client failed: {type(error).__name__}", committed=committed)
    return error
