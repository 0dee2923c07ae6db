"""A TCP proxy on loopback before a real server, which does harm by plan.

    with Proxy(servers.redis_8()) as proxy:
        gantry = Gantry(proxy.url)
        proxy.arm(Fault("cut", "reply", at=3))
        ...
        proxy.lift()

Offsets are counted on each connection, on each side, from when the fault was armed, so that a fault hits the same byte each
time. The proxy is one event loop in a thread of its own: what it does is one thing after the other.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from servers import HOST, Server

Side = Literal["request", "reply"]
Kind = Literal["cut", "hole", "half-open", "trickle", "delay", "refuse", "none"]

#: Seconds for one byte of a trickle.
TRICKLE = 0.005


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        kind: "cut": the connection ends; "hole": the rest is dropped, and so is all that follows on that connection;
            "half-open": the client is told that the server has ended, and what it sends still goes through; "trickle": a
            byte at a time; "delay": everything *seconds* later; "refuse": all connections end, and none can be made;
            "none": nothing, but bytes are counted.
        side: What of it: what the client sends, or what the server does.
        at: After how many bytes.
        how: How the connection ends: by a FIN, or a RST.
        times: How often; None: until it is lifted.
        seconds: Of a delay.
    """

    kind: Kind
    side: Side = "request"
    at: int = 0
    how: Literal["fin", "rst"] = "fin"
    times: int | None = 1
    seconds: float = 0.0


_NOTHING = Fault("none")


class Proxy:
    """Passes on what is said between clients and a server.

    Attributes:
        accepted: How many connections were made.
        passed: Bytes that went through since the last `arm`, by side.
        fired: Set when the fault has done its harm for the first time.
        pairs: The connections that there are.
        struck: Those of which something was cut off, held back or delayed since the last `arm`.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self.accepted = 0
        self.passed: Counter[Side] = Counter()
        self.fired = threading.Event()
        self.plan = (0, _NOTHING)
        self.left = 0
        self.pairs: set[_Pair] = set()
        self.struck: set[_Pair] = set()
        self._listening: socket.socket | None = None
        self._arriving: set[Any] = set()
        self.port = 0

    @property
    def url(self) -> str:
        """The server's URL with the port of this."""
        return self._server.url.replace(f":{self._server.port}", f":{self.port}")

    def __enter__(self) -> Proxy:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *exc: object) -> None:
        self._run(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    async def _listen(self) -> None:
        # asyncio's own server forgets to close whoever arrives just when it is closed.
        self._listening = listening = socket.create_server((HOST, self.port), backlog=100)
        listening.setblocking(False)
        self.port = listening.getsockname()[1]
        self.loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        self.accepted += 1
        arriving = self.loop.create_task(self.loop.connect_accepted_socket(lambda: _Client(_Pair(self)), connection))
        self._arriving.add(arriving)
        arriving.add_done_callback(self._arriving.discard)

    async def _end(self) -> None:
        if self._listening is not None:
            self.loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        if self._arriving:
            await asyncio.wait([*self._arriving])
        for pair in [*self.pairs]:
            pair.end("rst")
        await asyncio.sleep(0)

    def arm(self, fault: Fault) -> None:
        """From now on *fault* is in force, in place of the last one."""
        self.fired.clear()
        self.passed.clear()
        self.struck.clear()
        self.left = -1 if fault.times is None else fault.times
        self.plan = (self.plan[0] + 1, fault)
        if fault.kind == "refuse":
            self._run(self._end())
            self.fired.set()

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until something is true of the connections, which end soon after somebody has hung up."""
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline, "connections stay open"
            time.sleep(0.001)

    def lift(self) -> None:
        """Nothing goes wrong from now on."""
        refused = self.plan[1].kind == "refuse"
        self.plan = (self.plan[0] + 1, _NOTHING)
        if refused:
            self._run(self._listen())


class _Pair:
    """A client's connection, and that to the server which stands for it."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._epoch = -1
        self._counts: Counter[Side] = Counter()
        self._is_hole = self._is_half_open = self._ended = False
        self._early: list[bytes] = []
        self.ways: dict[Side, asyncio.Transport] = {}
        self._queues: dict[Side, _Slow] = {}
        proxy.pairs.add(self)

    async def connect(self) -> None:
        try:
            server = self._proxy._server
            await self._proxy.loop.create_connection(lambda: _Upstream(self), server.host, server.port)
        except OSError:
            self.end("rst")

    def up(self, transport: asyncio.Transport) -> None:
        self.ways["request"] = transport
        if self._ended:
            transport.abort()
        early, self._early = self._early, []
        for data in early:
            self.passing("request", data)

    def passing(self, side: Side, data: bytes) -> None:
        if side == "request" and "request" not in self.ways:
            self._early.append(data)
            return
        proxy = self._proxy
        epoch, fault = proxy.plan
        if epoch != self._epoch:
            self._epoch = epoch
            self._counts.clear()
        if self._is_hole or self._ended:
            return
        room = fault.at - self._counts[side]
        if fault.kind in ("cut", "hole", "half-open") and side == fault.side and proxy.left and 0 <= room <= len(data):
            proxy.left -= proxy.left > 0
            self._pass(side, data[:room], fault)
            proxy.struck.add(self)
            self._strike(fault)
            if self._is_half_open:
                self._pass(side, data[room:], fault)
            proxy.fired.set()
        else:
            if fault.kind in ("trickle", "delay"):
                proxy.struck.add(self)
                proxy.fired.set()
            self._pass(side, data, fault)

    def _pass(self, side: Side, data: bytes, fault: Fault) -> None:
        if not data or (side == "reply" and self._is_half_open):
            return
        self._counts[side] += len(data)
        self._proxy.passed[side] += len(data)
        queue = self._queues.get(side)
        if fault.kind not in ("trickle", "delay") and not queue:
            self.ways[side].write(data)
            return
        if queue is None:
            queue = self._queues[side] = _Slow(self, side)
        queue.put(data, fault)

    def _strike(self, fault: Fault) -> None:
        if fault.kind == "cut":
            self.end(fault.how)
        elif fault.kind == "hole":
            self._is_hole = True
        else:
            self._is_half_open = True
            self.ways["reply"].write_eof()

    def end(self, how: str) -> None:
        """Both ends of it."""
        self._ended = True
        self._proxy.pairs.discard(self)
        for transport in self.ways.values():
            if how == "rst":
                sock = transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            else:
                transport.close()

    def lost(self, side: Side) -> None:
        # Whoever hung up cannot be told of it through a hole.
        if side == "request" or not self._is_hole:
            self.end("fin")
        self._proxy.pairs.discard(self)


class _Slow:
    """Bytes that go on later, in order."""

    def __init__(self, pair: _Pair, side: Side) -> None:
        self._pair, self._side = pair, side
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._runs = False

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, data: bytes, fault: Fault) -> None:
        now = time.monotonic()
        if fault.kind == "trickle":
            self._waiting += [(TRICKLE, data[at : at + 1]) for at in range(len(data))]
        else:
            self._waiting.append((now + fault.seconds, data))
        self._next()

    def _next(self) -> None:
        if self._runs or not self._waiting:
            return
        when, _ = self._waiting[0]
        fault = self._pair._proxy.plan[1]
        if when == TRICKLE:
            seconds = TRICKLE if fault.kind == "trickle" else 0.0
        else:
            seconds = max(when - time.monotonic(), 0.0) if fault.kind == "delay" else 0.0
        self._runs = True
        self._pair._proxy.loop.call_later(seconds, self._go)

    def _go(self) -> None:
        self._runs = False
        _, data = self._waiting.popleft()
        if not self._pair._ended:
            self._pair.ways[self._side].write(data)
        self._next()


class _Half(asyncio.Protocol):
    side: Side

    def __init__(self, pair: _Pair) -> None:
        self.pair = pair

    def data_received(self, data: bytes) -> None:
        self.pair.passing(self.side, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.pair.lost(self.side)


class _Client(_Half):
    side: Side = "request"

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pair.ways["reply"] = transport
        self.connecting = asyncio.ensure_future(self.pair.connect())


class _Upstream(_Half):
    side: Side = "reply"

    def connection_made(self, transport: Any) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pair.up(transport)


def lasting(fault: Fault) -> bool:
    """Whether it goes on until it is lifted."""
    return fault.times is None or fault.kind in ("trickle", "delay", "refuse")


Answer = Callable[[], object]
