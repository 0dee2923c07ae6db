"""Connections to Redis servers: one request at a time on each, and none is used again after anything went wrong on it.

hiredis writes the commands and reads the replies. Between it and the socket there is nothing else, for the general way of a
client costs more than Redis does. One class is for callers that may block and one is a protocol of asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from agent_gantry_state.errors import (
    StateError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
)
from agent_gantry_state.stores.network import driver, hang_up, reason, within
from agent_gantry_state.stores.redis_layout import damaged, newer
from agent_gantry_state.stores.rows import to_bytes
from agent_gantry_state.stores.sockets import TimedSocket

with driver("redis"):
    import hiredis

__all__ = ["AWire", "Access", "Command", "Node", "Refusal", "Request", "Sent", "Wire", "packed", "refused", "unreachable"]

#: The words of a command.
Command = Sequence[bytes | str | int]

_BUFFER_BYTES: Final = 65536
_NOTHING: Final = object()


class Sent(bytes):
    """What is sent, which may be a password or somebody's data: tools that report errors show the variables of frames."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"

    __str__ = __repr__


class Node(NamedTuple):
    """A server.

    Attributes:
        host: Its name or address.
        port: Its port.
        watches: Whether it is a Sentinel, which has a password of its own.
    """

    host: str
    port: int
    watches: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """How a server lets one in.

    Attributes:
        username: Name of the ACL user; None for the default one.
        password: Its password, if it has one.
        db: Number of the database.
        tls: How to encrypt, None for not at all.
    """

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def greeting(self) -> tuple[Sent, int]:
        """What is said first on a connection, and how many replies there will be."""
        commands: list[Command] = []
        if self.password is not None:
            user = () if self.username is None else (to_bytes(self.username),)
            commands.append(("AUTH", *user, to_bytes(self.password)))
        if self.db:
            commands.append(("SELECT", self.db))
        return packed(commands), len(commands)


@dataclass(slots=True)
class Request:
    """Commands for one server. The answer is a list of replies, refusals among them.

    Attributes:
        node: The server; None is the one that there is.
        commands: What it is told.
        within: Seconds that it may take, within the time of the message; None for as many as that has.
    """

    node: Node | None
    commands: Sequence[Command] = field(repr=False)
    within: float | None = None


class _Garbled(EOFError):
    """What came is no reply of a Redis."""


class Refusal(Exception):
    """An error reply of a server. It is a reply like another one, until somebody makes an error of it."""

    @property
    def code(self) -> str:
        """Its first word, which says what is the matter."""
        return str(self).split(" ", 1)[0]


def packed(commands: Sequence[Command]) -> Sent:
    """Commands as they are sent."""
    if len(commands) == 1:
        return Sent(hiredis.pack_command(tuple(commands[0])))  # type: ignore[arg-type]
    return Sent(b"".join([hiredis.pack_command(tuple(command)) for command in commands]))  # type: ignore[arg-type]


class Wire:
    """A connection for callers that may block.

    Attributes:
        used: When it was last used, on the monotonic clock; set by its pool.
    """

    def __init__(self, node: Node, access: Access, deadline: float) -> None:
        self.used = 0.0
        self._busy = False
        if deadline <= time.monotonic():
            raise _late(False)
        sock = None
        try:
            sock = _dialled(node, deadline)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if access.tls is not None:
                sock.settimeout(max(deadline - time.monotonic(), 0.001))
                sock = access.tls.wrap_socket(sock, server_hostname=node.host)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, _NO_CONNECTION):
                raise unreachable(error, node) from None
            raise
        self._sock = sock
        self._timed = TimedSocket(sock, polled=access.tls is None)
        self._reader = hiredis.Reader(protocolError=_Garbled, replyError=Refusal, notEnoughData=_NOTHING)
        self._buffer = bytearray(_BUFFER_BYTES)
        greeting, count = access.greeting()
        if count:
            try:
                _welcomed(self.exchange(greeting, count, deadline))
            except BaseException:
                self.close()
                raise

    def is_usable(self) -> bool:
        """Whether nothing was left half-done on it."""
        return not self._busy

    def exchange(self, payload: bytes, count: int, deadline: float) -> list[Any]:
        """Send commands and read as many replies. After an error the connection has to be closed.

        Raises:
            StoreError: The connection broke, or the time was over.
        """
        sock, timed, reader, buffer, replies = self._sock, self._timed, self._reader, self._buffer, list[Any]()
        if deadline <= time.monotonic():
            raise _late(False)
        try:
            self._busy = True
            timed.send(payload, deadline)
            while len(replies) < count:
                timed.wait(deadline)
                size = sock.recv_into(buffer)
                if not size:
                    raise _gone(None)
                reader.feed(buffer, 0, size)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
                reply = reader.gets()
                while reply is not _NOTHING:
                    replies.append(reply)
                    reply = reader.gets()
            if len(replies) > count or reader.has_data():
                raise _gone(None)
        except (OSError, EOFError) as error:
            raise _broken(error) from None
        self._busy = False
        return replies

    def close(self) -> None:
        """Close the socket."""
        with contextlib.suppress(OSError):
            self._sock.close()


class AWire(asyncio.Protocol):
    """A connection of an asyncio event loop.

    Attributes:
        used: When it was last used, on the monotonic clock; set by its pool.
        lost: Whether it is closed.
    """

    def __init__(self) -> None:
        self.used = 0.0
        self.lost = self._busy = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(protocolError=_Garbled, replyError=Refusal, notEnoughData=_NOTHING)
        self._answer: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        self._count = 0

    @classmethod
    async def connected(cls, node: Node, access: Access, deadline: float) -> AWire:
        """A new connection, on which everything is ready.

        Raises:
            StoreError: There can be none.
        """
        loop = asyncio.get_running_loop()
        left = deadline - time.monotonic()
        if left <= 0:
            raise _late(False)
        made: list[AWire] = []

        def make() -> AWire:
            made.append(cls())
            return made[-1]

        host = node.host if access.tls is not None else None
        connecting = loop.create_connection(make, node.host, node.port, ssl=access.tls, server_hostname=host)
        try:
            await within(connecting, left, lambda made: made[1].close())
            greeting, count = access.greeting()
            if count:
                _welcomed(await made[-1].exchange(greeting, count, deadline))
        except BaseException as error:
            for wire in made:
                wire.close()
            if isinstance(error, _NO_CONNECTION) and not isinstance(error, StoreError):
                raise unreachable(error, node) from None
            raise
        return made[-1]

    def is_usable(self) -> bool:
        """Whether nothing was left half-done on it, and it is not lost."""
        return not self._busy and not self.lost

    async def exchange(self, payload: bytes, count: int, deadline: float) -> list[Any]:
        """Send commands and read as many replies. After an error, or when cancelled, the connection has to be closed.

        Raises:
            StoreError: The connection broke, or the time was over.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise _late(False)
        if self.lost or self._transport is None:
            raise _gone(False)
        self._count, self._replies, self._busy = count, [], True
        answer: asyncio.Future[list[Any]] = self._loop.create_future()
        self._answer = answer
        timer = self._loop.call_later(left, self._time_out)
        self._transport.write(payload)
        try:
            replies = await answer
        finally:
            timer.cancel()
            self._answer = None
        self._busy = False
        return replies

    def close(self) -> None:
        """Close the socket, without waiting for anything."""
        if self._loop.is_closed():
            # Whoever waited for a reply is collected only now.
            self.drop()
            return
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def drop(self) -> None:
        """End the connection from anywhere, without the help of the event loop, which may be closed."""
        self.lost = True
        if self._transport is not None:
            hang_up(self._transport, self._loop)

    def _time_out(self) -> None:
        self._fail(_late(None))

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        """Something was sent."""
        answer, reader, replies = self._answer, self._reader, self._replies
        if answer is None or answer.done():
            # Nobody asked: whatever it is, nobody else may take it for an answer.
            self.close()
            return
        try:
            reader.feed(data)
            reply = reader.gets()
            while reply is not _NOTHING:
                replies.append(reply)
                reply = reader.gets()
        except EOFError as error:
            self._fail(_broken(error))
            return
        if len(replies) >= self._count:
            if len(replies) > self._count or reader.has_data():
                self._fail(_gone(None))
            else:
                answer.set_result(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._fail(_gone(None))


def _dialled(node: Node, until: float) -> socket.socket:
    error: OSError | None = None
    found = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    for index, (family, kind, proto, _, address) in enumerate(found):
        left = until - time.monotonic()
        if left <= 0:
            break
        sock = None
        try:
            sock = socket.socket(family, kind, proto)
            # Behind an address that never answers there may be one that does.
            sock.settimeout(left / (len(found) - index))
            sock.connect(address)
        except BaseException as failed:
            if sock is not None:
                sock.close()
            if not isinstance(failed, OSError):
                raise
            error = failed
        else:
            return sock
    raise error or TimeoutError


def _welcomed(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, Refusal):
            error = refused(reply)
            error.committed = False
            raise error


# Errors. The texts are ours: a driver's may hold what was sent.

#: What comes of connecting; UnicodeError: of a name that can be no host's. In Python 3.10 asyncio has a timeout of its own.
_NO_CONNECTION: Final = (OSError, UnicodeError, asyncio.TimeoutError)


def _late(committed: bool | None) -> StoreTimeoutError:
    return StoreTimeoutError("Redis gave no answer in time", committed=committed)


def _gone(committed: bool | None) -> StoreUnavailableError:
    return StoreUnavailableError("the connection to Redis was lost", committed=committed)


def _broken(error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error
    if isinstance(error, _Garbled):
        return StoreError("what answers is no Redis: see the host and port of the store's URL", committed=None)
    return _late(None) if isinstance(error, (TimeoutError, asyncio.TimeoutError)) else _gone(None)


def unreachable(error: BaseException, node: Node) -> StoreError:
    """The error for a server to which there is no connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreError(
            f"the certificate of the Redis server at {node.host}:{node.port} was not accepted ({error.verify_message}): set "
            "ssl_ca_certs to the file of who signed it, and name the host as the certificate does"
        )
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return StoreTimeoutError(f"there was no connection to Redis at {node.host}:{node.port} in time")
    if isinstance(error, ssl.SSLError):
        # In OpenSSL's words it is a wrong version, or a record too long.
        why = f"it speaks no TLS ({error.reason or type(error).__name__}), for which redis:// stands in place of rediss://"
        return StoreUnavailableError(f"there is no connection to Redis at {node.host}:{node.port}: maybe {why}")
    return StoreUnavailableError(
        f"there is no connection to Redis at {node.host}:{node.port}: {reason(error)}. Is it running, and is the store's "
        "URL right?"
    )


_LATER: Final = "call again later"
_CLUSTER: Final = "this Redis is part of a cluster: use redis+cluster://, or a client that is a RedisCluster"
#: By the first word of a refusal, or a part of it, what the matter is. All of them come before anything was written.
_REFUSALS: Final[tuple[tuple[str, type[StoreError], str], ...]] = (
    ("LOADING", StoreUnavailableError, f"Redis is still reading its data from disk: {_LATER}"),
    ("BUSY", StoreUnavailableError, f"Redis is busy with a script of somebody: {_LATER}, or SCRIPT KILL it"),
    ("MASTERDOWN", StoreUnavailableError, f"this Redis is a replica that has lost its master: {_LATER}"),
    ("CLUSTERDOWN", StoreUnavailableError, f"the Redis Cluster is not whole: {_LATER}"),
    ("MOVED", StoreError, _CLUSTER),
    ("CROSSSLOT", StoreError, _CLUSTER),
    ("TRYAGAIN", StoreUnavailableError, f"the Redis Cluster is moving this memory: {_LATER}"),
    ("NOREPLICAS", StoreUnavailableError, f"Redis has fewer replicas than its min-replicas-to-write: {_LATER}"),
    ("READONLY", StoreUnavailableError, "this Redis is a replica, which cannot write: use the address of its master"),
    ("max number of clients", StoreUnavailableError, "Redis takes no more connections: see its maxclients"),
    ("OOM", StoreError, "Redis is out of memory, and its maxmemory-policy lets nothing go: see its maxmemory"),
    ("MISCONF", StoreError, "Redis refuses to write, as it cannot save its data to disk: see its log"),
    ("WRONGTYPE", StoreError, "a key in Redis is somebody else's: set another prefix"),
    ("WRONGPASS", StoreError, "Redis refused the user or the password"),
    ("NOAUTH", StoreError, "Redis asks for a password, and the store was given none"),
    # What somebody who has given none says may not be long.
    ("Protocol error: unauthenticated", StoreError, "Redis asks for a password, and the store was given none"),
    ("invalid password", StoreError, "Redis refused the user or the password"),
    ("AUTH <password> called without", StoreError, "a password was given, and Redis has none for this user"),
    ("DB index is out of range", StoreError, "Redis has no database of that number"),
    # Of a command that a script ran this is said in other words.
    (
        "ERR unknown command",
        StoreError,
        "this server knows no scripts; if it is a Sentinel: redis+sentinel://host:port/service",
    ),
    ("NOPERM", StoreError, "the ACL of Redis lets this user not do that: see what the store needs in its documentation"),
)
#: What the scripts raise, before anything was written.
_LAYOUT: Final = "MEMORY-LAYOUT "
_DAMAGED: Final = "MEMORY-DAMAGED"


def refused(refusal: Refusal) -> StateError:
    """The error for a refusal."""
    text = str(refusal)
    if _LAYOUT in text:
        return newer(text.split(_LAYOUT, 1)[1].split(" ", 1)[0].split(",", 1)[0])
    if _DAMAGED in text:
        return damaged("a memory")
    # Redis 6.2 puts the error of a command that a script ran behind words of its own.
    inside = text.startswith("ERR Error running script")
    for sign, kind, message in _REFUSALS:
        if text.startswith(sign) or ((inside or " " in sign) and sign in text):
            return kind(message, committed=False)
    if "can't run this command" in text or "ACL failure" in text or "can't access" in text:
        return StoreError(
            "the ACL of Redis lets this user not do what a script does: see what the store needs in its documentation",
            committed=None,
        )
    return StoreError(f"Redis refused a request ({refusal.code})", committed=None)
