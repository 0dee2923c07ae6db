"""What goes over the wire between a store and its server: a proxy on loopback that counts it.

    with Wire(servers.redis_8()) as wire:
        store = open_store(wire.url)
        ...
        wire.clear()
        store.load(...)
        assert wire.trips == 1

Bytes go through as they come, and those of the client are read. A round trip begins with the first request after the server
has said something on that connection, so that a pipeline is one, however much is in it. What greets PostgreSQL is none.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from servers import HOST, Cluster, Server, node_says

_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
# Before these, a client of memcached says how many bytes follow the line.
_LENGTH_AT = {b"set": 4, b"add": 4, b"replace": 4, b"append": 4, b"prepend": 4, b"cas": 4, b"ms": 2}


@dataclass(frozen=True)
class Request:
    """One command, or of PostgreSQL the messages up to a Sync or a Query.

    Attributes:
        name: "HGETALL", "gets"; of PostgreSQL the letters of the messages and what they name: "PBDES select ...".
        connection: Number of the connection.
        trip: Number of the round trip.
    """

    name: str
    connection: int
    trip: int


class Wire:
    """Passes on what clients say to a server, and keeps a record of it. All numbers are since the last `clear`.

    Attributes:
        requests: What was asked, in order.
        trips: Round trips.
        connections: Connections that were opened.
        sent: Bytes from clients, those that open connections included.
        received: Bytes from the server.
    """

    def __init__(self, server: Server | Cluster) -> None:
        self._server = server
        self._nodes = server.nodes if isinstance(server, Cluster) else (server,)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._count = 0
        self.clear()

    @property
    def url(self) -> str:
        """The server's URL with the port of this."""
        return self._server.url.replace(f":{self._server.port}", f":{self.ports[0]}")

    def clear(self) -> None:
        with self._lock:
            self.requests: list[Request] = []
            self.trips = self.connections = self.sent = self.received = 0

    def __enter__(self) -> Wire:
        listeners = [socket.create_server((HOST, 0)) for _ in self._nodes]
        self.ports = [listener.getsockname()[1] for listener in listeners]
        for listener, node in zip(listeners, self._nodes, strict=True):
            self._open.add(listener)
            self._start(self._accept, listener, node)
        if isinstance(self._server, Cluster):
            self._announce()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            sockets = [*self._open]
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in sockets:
            sock.close()

    def _announce(self) -> None:
        # Clients of a cluster go where its nodes say that they are.
        for node, port in zip(self._nodes, self.ports, strict=True):
            assert node_says(node, "CONFIG", "SET", "cluster-announce-port", str(port)) == b"+OK"
        deadline = time.monotonic() + 30
        while not all(self._announced(node) for node in self._nodes):
            assert time.monotonic() < deadline, "the nodes of the cluster did not hear where the others are"
            time.sleep(0.02)

    def _announced(self, node: Server) -> bool:
        known = node_says(node, "CLUSTER", "NODES")
        ready = b"cluster_state:ok" in node_says(node, "CLUSTER", "INFO")
        return ready and all(f":{port}@".encode() in known for port in self.ports)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, node: Server) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                upstream = socket.create_connection((node.host, node.port))
            except OSError:
                client.close()
                continue
            for sock in (client, upstream):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._count += 1
                self.connections += 1
                self._open |= {client, upstream}
                connection = _Connection(self, self._count, _READERS[node.name])
            self._start(self._pump, client, upstream, connection.asked)
            self._start(self._pump, upstream, client, connection.answered)

    def _pump(self, source: socket.socket, target: socket.socket, note: Callable[[bytes], None]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                # Noted before it is passed on, so that it is there when the caller goes on.
                with self._lock:
                    note(data)
                target.sendall(data)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(source)
        source.close()


class _Connection:
    """The record of one connection. The wire's lock is held."""

    def __init__(self, wire: Wire, number: int, reader: Callable[[bytearray], _Names]) -> None:
        self.wire = wire
        self.number = number
        self.buffer = bytearray()
        self.read = reader(self.buffer)
        self.waits = False

    def asked(self, data: bytes) -> None:
        self.wire.sent += len(data)
        self.buffer += data
        for name in self.read:
            if name is None:
                break
            if not self.waits:
                self.waits = True
                self.wire.trips += 1
            self.wire.requests.append(Request(name, self.number, self.wire.trips))

    def answered(self, data: bytes) -> None:
        self.wire.received += len(data)
        self.waits = False


#: Names of the requests in what a client sent; None where the rest of one is still to come.
_Names = Iterator["str | None"]


def _bytes(buffer: bytearray, count: int) -> Generator[None, None, bytes]:
    while len(buffer) < count:
        yield None
    taken = bytes(buffer[:count])
    del buffer[:count]
    return taken


def _line(buffer: bytearray) -> Generator[None, None, bytes]:
    while (end := buffer.find(b"\r\n")) < 0:
        yield None
    return (yield from _bytes(buffer, end + 2))[:-2]


def _redis(buffer: bytearray) -> _Names:
    while True:
        head = yield from _line(buffer)
        words = []
        for _ in range(int(head[1:])):
            length = yield from _line(buffer)
            words.append((yield from _bytes(buffer, int(length[1:]) + 2))[:-2])
        yield words[0].decode().upper()


def _memcached(buffer: bytearray) -> _Names:
    while True:
        words = (yield from _line(buffer)).split()
        if words[0] in _LENGTH_AT:
            yield from _bytes(buffer, int(words[_LENGTH_AT[words[0]]]) + 2)
        yield words[0].decode()


def _postgresql(buffer: bytearray) -> _Names:
    while True:
        (length,) = struct.unpack("!i", (yield from _bytes(buffer, 4)))
        (code,) = struct.unpack("!i", (yield from _bytes(buffer, length - 4))[:4])
        if code not in (_SSL_REQUEST, _GSS_REQUEST):
            break
    letters, texts = "", []
    while code != _CANCEL_REQUEST:
        head = yield from _bytes(buffer, 5)
        kind = head[:1].decode()
        body = yield from _bytes(buffer, struct.unpack("!i", head[1:])[0] - 4)
        if kind == "p":
            continue
        letters += kind
        if kind == "P":
            # Name of the statement, then its text.
            texts.append(body.split(b"\0")[1].decode()[:60])
        elif kind == "Q":
            texts.append(body.rstrip(b"\0").decode()[:60])
        if kind in "SQX":
            if kind != "X":
                yield " ".join([letters, *texts])
            letters, texts = "", []


_READERS: dict[str, Callable[[bytearray], _Names]] = {
    "redis_6": _redis,
    "redis_8": _redis,
    "valkey": _redis,
    "postgresql": _postgresql,
    "pgbouncer": _postgresql,
    "memcached": _memcached,
}
