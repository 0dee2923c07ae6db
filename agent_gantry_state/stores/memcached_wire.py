"""What is said to a memcached, and how its replies are read: the text protocol, without a socket.

A request is what the store's logic yields; a link has it answered on a connection. Replies end where their lengths say, and
whatever does not fit closes the connection, so that no reply is ever taken for another one's.

There is no driver below: of those that there are for asyncio, one ends a reply wherever a value happens to hold its last
word, and one gives a connection back with a cancelled request's reply still to come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from agent_gantry_state.errors import StoreError
from agent_gantry_state.stores.memcached_server import Server

__all__ = [
    "LINE",
    "STATS",
    "VALUES",
    "Credentials",
    "Disconnected",
    "Garbled",
    "Item",
    "ItemTooLargeError",
    "Refused",
    "Replies",
    "Request",
    "Talk",
    "deletes",
    "get",
    "gets",
    "greeting",
    "read",
    "replies",
    "stores",
]

#: A kind of reply reads from a place in the bytes that have come: what it holds and where it ends, None if more is to come.
Kind = Callable[[Any, int], tuple[Any, int] | None]
#: A value that the server holds, and the number of its last change.
Item = tuple[bytes, bytes]
#: The replies to a request, and the life of the server in which they were given.
Replies = tuple[list[Any], object]
#: What is said on a connection: it yields commands and, as a tuple, the kinds of their replies, and is sent the replies.
Talk = Generator[Any, list[Any], Any]

#: A line of a reply is never longer.
_LONGEST_LINE: Final = 8192
_ERRORS: Final = (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")
_STATS: Final = b"stats\r\n"


class Credentials(NamedTuple):
    """Who we are, for servers that ask."""

    user: str
    password: str

    def __repr__(self) -> str:
        # Tracebacks may be shown with what was in the variables.
        return "<Credentials>"


class _Secret(bytes):
    """Bytes to send that nobody else is to see."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


class Disconnected(Exception):
    """The server has closed the connection."""


class Garbled(Exception):
    """What came is no reply to what was asked."""


class Refused(Exception):
    """The server answered with an error.

    Attributes:
        line: Its words.
        end: Where they end in the bytes that have come.
    """

    def __init__(self, line: bytes, end: int = 0) -> None:
        super().__init__()
        self.line = line
        self.end = end


class ItemTooLargeError(StoreError):
    """The server keeps no item that large."""


class Request:
    """Commands for one server, sent together.

    Attributes:
        server: Which.
        payload: The bytes of the commands.
        kinds: How the reply of each is read.
        life: The life of the server in which the number of a change was given out that the commands name; None: any. In
            another one the number means something else, and nothing is sent.
    """

    __slots__ = ("kinds", "life", "payload", "server")

    def __init__(self, server: Server, payload: bytes, kinds: tuple[Kind, ...], life: object = None) -> None:
        self.server = server
        self.payload = payload
        self.kinds = kinds
        self.life = life


def _line(data: bytes | bytearray, at: int) -> tuple[bytes, int] | None:
    end = data.find(b"\r\n", at)
    if end < 0:
        if len(data) - at > _LONGEST_LINE:
            raise Garbled
        return None
    line = bytes(data[at:end])
    if line.startswith(_ERRORS):
        raise Refused(line, end + 2)
    return line, end + 2


def _values(data: bytes | bytearray, at: int) -> tuple[dict[bytes, Item], int] | None:
    found: dict[bytes, Item] = {}
    while not data.startswith(b"END\r\n", at):
        if (read := _line(data, at)) is None:
            return None
        line, at = read
        try:
            word, key, _, size, unique = line.split(b" ")
            end = at + int(size)
        except ValueError:
            raise Garbled from None
        if word != b"VALUE" or not unique.isdigit() or end < at:
            raise Garbled
        if len(data) < end + 2:
            return None
        if not data.startswith(b"\r\n", end):
            raise Garbled
        found[key] = bytes(data[at:end]), unique
        at = end + 2
    return found, at + 5


def _item(key: bytes, known: bytes, data: bytes | bytearray, at: int) -> tuple[Item | None, int] | None:
    """The reply to a question for one item, which is not taken apart, nor copied, if it has the value that is known."""
    start = b"VALUE %b 0 %d " % (key, len(known))
    if data.startswith(start, at):
        first = at + len(start)
        end = data.find(b"\r\n", first)
        behind = end + 2 + len(known)
        if end > 0 and data.startswith(known, end + 2) and data.startswith(b"\r\nEND\r\n", behind):
            unique = bytes(data[first:end])
            if unique.isdigit():
                return (known, unique), behind + 7
    if (found := _values(data, at)) is None:
        return None
    return found[0].get(key), found[1]


def _stored(data: bytes | bytearray, at: int) -> tuple[bytes, int] | None:
    return (b"STORED", at + 8) if data.startswith(b"STORED\r\n", at) else _line(data, at)


def _stats(data: bytes | bytearray, at: int) -> tuple[dict[bytes, bytes], int] | None:
    found: dict[bytes, bytes] = {}
    while (read := _line(data, at)) is not None:
        line, at = read
        if line == b"END":
            return found, at
        word, _, rest = line.partition(b" ")
        if word != b"STAT":
            raise Garbled
        name, _, value = rest.partition(b" ")
        found[name] = value
    return None


LINE: Final[Kind] = _line
VALUES: Final[Kind] = _values
STATS: Final[Kind] = _stats
_STORED: Final = (_stored,)


def get(server: Server, key: bytes, known: bytes) -> Request:
    """Ask for one item, and for the time as `gets` does.

    Args:
        server: Which.
        key: Of what.
        known: The value that it may still have; the answer has this very object then. b"" if none is known.
    """
    kind = partial(_item, key, known)
    if server.is_due():
        return Request(server, _STATS + b"gets %b\r\n" % key, (STATS, kind))
    return Request(server, b"gets %b\r\n" % key, (kind,))


def gets(server: Server, keys: Iterable[bytes]) -> Request:
    """Ask for items; for the time too, where it was not asked for lately."""
    payload = b"gets %b\r\n" % b" ".join(keys)
    if server.is_due():
        return Request(server, _STATS + payload, (STATS, VALUES))
    return Request(server, payload, (VALUES,))


def stores(server: Server, key: bytes, data: bytes, exptime: int, unique: bytes | None, life: object) -> Request:
    """Replace the item that has the number *unique*; None: make one where there is none."""
    if unique is None:
        return Request(server, b"add %b 0 %d %d\r\n%b\r\n" % (key, exptime, len(data), data), _STORED)
    return Request(server, b"cas %b 0 %d %d %b\r\n%b\r\n" % (key, exptime, len(data), unique, data), _STORED, life)


def deletes(server: Server, keys: Sequence[bytes]) -> Request:
    """Delete items."""
    return Request(server, b"".join([b"delete " + key + b"\r\n" for key in keys]), (LINE,) * len(keys))


def replies(kinds: tuple[Kind, ...], data: bytes | bytearray, at: int) -> tuple[list[Any], int] | None:
    """The replies to commands, and where they end; None if more is to come.

    Args:
        kinds: How the reply of each is read.
        data: What has come.
        at: Where the first of them begins.

    Raises:
        Garbled: This is no reply to the commands.
        Refused: The server answered with an error.
    """
    answers = []
    for kind in kinds:
        if (found := kind(data, at)) is None:
            return None
        answers.append(found[0])
        at = found[1]
    return answers, at


def read(kinds: tuple[Kind, ...], buffer: bytearray, data: bytes) -> list[Any] | None:
    """The replies to commands after which nothing else is to come; None if more is to come of them.

    Args:
        kinds: How the reply of each is read.
        buffer: What has come before, to which *data* is added if that is not all.
        data: What has come now; nothing if the connection has ended.

    Raises:
        Disconnected: It has.
        Garbled: This is no reply to the commands, or more than that.
        Refused: The server answered with an error.
    """
    if not buffer and len(kinds) == 1 and (only := kinds[0](data, 0)) is not None and only[1] == len(data):
        # As it mostly comes.
        return [only[0]]
    if not data:
        raise Disconnected
    come: bytes | bytearray = data
    if buffer:
        buffer += data
        come = buffer
    if (found := replies(kinds, come, 0)) is None:
        if come is data:
            buffer += data
        return None
    if found[1] != len(come):
        raise Garbled
    return found[0]


def greeting(server: Server, credentials: Credentials | None) -> Talk:
    """What is said on a new connection: who we are, if the server wants to know, and who it is.

    Returns:
        The life of the server.

    Raises:
        StoreError: The server does not let us in.
    """
    if credentials is not None:
        yield from _log_in(credentials)
    sent = time.monotonic()
    try:
        stats, settings = yield _STATS + b"stats settings\r\n", (STATS, STATS)
    except Refused as refused:
        if refused.line.startswith(b"CLIENT_ERROR unauthenticated"):
            raise StoreError("memcached asks for a user and a password: memcached://user:password@host") from None
        raise
    return server.learn(stats, sent, time.monotonic(), settings)


def _log_in(credentials: Credentials) -> Talk:
    try:
        yield b"version\r\n", (LINE,)
    except Refused as refused:
        if not refused.line.startswith(b"CLIENT_ERROR unauthenticated"):
            raise
    else:
        # It would keep the password as an item that anybody can read.
        raise StoreError("memcached asks for no password: take it out of the store's URL, or start memcached with -Y")
    words = _Secret(" ".join(credentials).encode())
    try:
        (line,) = yield _Secret(b"set _ 0 0 %d\r\n%b\r\n" % (len(words), words)), (LINE,)
    except Refused:
        line = b""
    if line != b"STORED":
        raise StoreError("memcached does not know this user with this password")
