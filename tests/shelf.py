"""A small server for tests: values by key, compared and swapped together; and a store that keeps namespaces on it.

The server is told which requests to hold back, to cut off before or after it carried them out, or to lose. It counts its
connections. A frame is four bytes of length and one value of the codec.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

from agent_gantry_state import Namespace, StoreTimeoutError, StoreUnavailableError, codec
from agent_gantry_state.stores.network import RemoteStore, hang_up
from agent_gantry_state.stores.protocol import EMPTY, Committed, Listed, Loaded, Moved, Page
from agent_gantry_state.stores.whole import Image, applied, chosen, is_moved, read_image, write_image

#: What is known of the write when a request got no answer.
WRITES = {"swap": None}


def frame(value):
    data = codec.pack(value)
    return len(data).to_bytes(4, "big") + data


class ShelfServer:
    """Serves on loopback until it is stopped; one thread for each connection."""

    def __init__(self):
        self.values = {}
        self.leases = {}
        self._clock, self._latest = time.time, 0.0
        #: What was asked, as (connection, command).
        self.asked = []
        #: By command, what to do with the next such requests: "hold" or "ignore" them, "cut before" or "cut after" they are
        #: carried out, "lose" the answer.
        self.faults = {}
        self.held = threading.Semaphore(0)
        self.let_go = threading.Event()
        self.accepted = 0
        self._open = set()
        self._changed = threading.Condition()
        self.port = 0
        self.start()

    @property
    def clock(self):
        return self._clock

    @clock.setter
    def clock(self, clock):
        self._clock, self._latest = clock, 0.0

    def now(self):
        self._latest = max(self._latest, self._clock())
        return self._latest

    def start(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self):
        """Break every connection and listen no more."""
        self.let_go.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        assert self.has(0)

    def has(self, connections, seconds=5):
        """Whether it has so many open connections, now or soon."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._open) == connections, seconds)

    def sent(self, command):
        return [connection for connection, name in self.asked if name == command]

    def _accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._changed:
                self.accepted += 1
                number = self.accepted
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection, number):
        try:
            with contextlib.suppress(OSError), connection.makefile("rb") as stream:
                while head := stream.read(4):
                    command, *arguments = codec.unpack(stream.read(int.from_bytes(head, "big")))
                    self.asked.append((number, command))
                    faults = self.faults.get(command)
                    fault = faults.pop(0) if faults else None
                    if fault == "hold":
                        self.held.release()
                        self.let_go.wait(10)
                    if fault == "ignore":
                        continue
                    if fault == "cut before":
                        return
                    with self._changed:
                        reply = getattr(self, f"_{command}")(*arguments)
                    if fault == "cut after":
                        return
                    if fault != "lose":
                        connection.sendall(frame(reply))
        finally:
            with self._changed:
                self._open.discard(connection)
                connection.close()
                self._changed.notify_all()

    def _get(self, keys):
        return [self.now(), [self.values.get(key) for key in keys]]

    def _swap(self, changes):
        """Replace each value by another if all are as expected; None stands for no value."""
        if any(self.values.get(key) != old for key, old, _ in changes):
            return False
        for key, _, new in changes:
            if new is None:
                self.values.pop(key, None)
            else:
                self.values[key] = new
        return True

    def _all(self):
        return [self.now(), [*self.values.values()]]

    def _lease(self, key, holder, ttl):
        now = self.now()
        other, until = self.leases.get(key, (holder, now))
        if other != holder and until > now:
            return until - now
        self.leases[key] = (holder, now + ttl)
        return 0.0

    def _release(self, key, holder):
        if self.leases.get(key, (b"", 0))[0] == holder:
            del self.leases[key]


def left(deadline):
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise StoreTimeoutError("the shelf had no time left", committed=False)
    return seconds


@contextlib.contextmanager
def errors_of_ours(progress):
    try:
        yield
    except (TimeoutError, asyncio.TimeoutError) as error:
        if isinstance(error, StoreTimeoutError):
            raise
        raise StoreTimeoutError("the shelf is late", committed=progress.committed) from None
    except (OSError, EOFError):
        raise StoreUnavailableError("the shelf cannot be reached", committed=progress.committed) from None


class Progress:
    committed = False


class ShelfLink:
    """Blocking sockets, which any number of threads share."""

    def __init__(self, store):
        self._store = store
        self._idle = []

    def ask(self, request, deadline):
        progress = Progress()
        with errors_of_ours(progress):
            connection = self._idle.pop() if self._idle else self._opened(deadline)
            try:
                connection.settimeout(left(deadline))
                progress.committed = WRITES.get(request[0], False)
                connection.sendall(frame(request))
                reply = codec.unpack(self._read(connection, int.from_bytes(self._read(connection, 4), "big")))
            except BaseException:
                connection.close()
                self.close()
                raise
        self._idle.append(connection)
        return reply

    def _opened(self, deadline):
        return socket.create_connection(
            ("127.0.0.1", self._store.server.port), timeout=min(self._store.connect_timeout, left(deadline))
        )

    def _read(self, connection, size):
        data = b""
        while len(data) < size:
            more = connection.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def close(self):
        while self._idle:
            self._idle.pop().close()


class AsyncShelfLink:
    """Streams of one event loop."""

    def __init__(self, store):
        self._store = store
        self._idle = []
        self._all = set()
        self._loop = asyncio.get_running_loop()

    async def ask(self, request, deadline):
        progress = Progress()
        with errors_of_ours(progress):
            reader, writer = self._idle.pop() if self._idle else await self._opened(deadline)
            try:
                progress.committed = WRITES.get(request[0], False)
                writer.write(frame(request))
                reply = codec.unpack(await asyncio.wait_for(self._read(reader), left(deadline)))
            except BaseException:
                self._all.discard(writer)
                writer.transport.abort()
                raise
        self._idle.append((reader, writer))
        return reply

    async def _opened(self, deadline):
        opening = asyncio.open_connection("127.0.0.1", self._store.server.port)
        reader, writer = await asyncio.wait_for(opening, min(self._store.connect_timeout, left(deadline)))
        self._all.add(writer)
        return reader, writer

    async def _read(self, reader):
        return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))

    async def close(self):
        for writer in self._all:
            writer.close()
        for writer in [*self._all]:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        self._all.clear()

    def drop(self):
        for writer in self._all:
            hang_up(writer.transport, self._loop)


class ShelfStore(RemoteStore):
    """Each namespace is an image on a `ShelfServer`."""

    link, async_link = ShelfLink, AsyncShelfLink

    def __init__(self, server, **timeouts):
        super().__init__(**timeouts)
        self.server = server

    @property
    def clock(self):
        return self.server.clock

    @clock.setter
    def clock(self, clock):
        self.server.clock = clock

    def _connect(self):
        return self.link(self)

    def _aconnect(self):
        return None if self.async_link is None else self.async_link(self)

    def _images(self, namespaces):
        now, found = yield ["get", [namespace.digest for namespace in namespaces]]
        images = []
        for namespace, data in zip(namespaces, found, strict=True):
            image = Image(namespace, EMPTY, {}) if data is None else read_image(data, namespace)
            images.append(image._replace(snapshot=image.snapshot.live(now)))
        return now, images, found

    def _load(self, message):
        now, images, _ = yield from self._images(message.namespaces)
        snapshots = [image.snapshot for image in images]
        for at, keys in enumerate(message.keys or ()):
            if keys is not None:
                snapshots[at] = chosen(snapshots[at], keys, message.names)
        return Loaded(tuple(snapshots), now)

    def _commit(self, message):
        while True:
            now, images, found = yield from self._images([change.namespace for change in message.changes])
            if any(message.token in image.tokens for image in images):
                return Committed()
            swaps = []
            for change, (namespace, snapshot, tokens), old in zip(message.changes, images, found, strict=True):
                if snapshot.head != change.head and is_moved(change, snapshot):
                    return Moved(tuple([image.snapshot for image in images]), now)
                after = applied(change, snapshot, message.version, lambda: now)
                if after.head is not None:
                    kept = {token: until for token, until in tokens.items() if until > now}
                    if message.token:
                        kept[message.token] = now + 60.0
                    swaps.append([namespace.digest, old, write_image(Image(namespace, after, kept))])
            if (yield ["swap", swaps]):
                return Committed()

    def _forget(self, message):
        while True:
            now, images, found = yield from self._images(message.namespaces)
            swaps = []
            for (namespace, _, tokens), old in zip(images, found, strict=True):
                # Commits that have landed are known for a while, for they may be sent again.
                kept = {token: until for token, until in tokens.items() if until > now}
                swaps.append([namespace.digest, old, write_image(Image(namespace, EMPTY, kept)) if kept else None])
            if (yield ["swap", swaps]):
                return

    def _list(self, message):
        now, found = yield ["all"]
        listed = []
        for namespace, snapshot, _ in map(read_image, found):
            live = snapshot.live(now)
            wanted = (message.app, message.scope, message.owner)
            has = (namespace.app, namespace.scope, live.owner)
            if live.head is not None and all(want in (None, it) for want, it in zip(wanted, has, strict=True)):
                listed.append(Listed(namespace, live.owner))
        listed.sort(key=lambda each: each.namespace.digest)
        listed = [each for each in listed if message.after is None or each.namespace.digest > message.after]
        page = tuple(listed[: message.limit])
        return Page(page, page[-1].namespace.digest if len(listed) > message.limit else None)

    def _lease(self, message):
        return (yield ["lease", message.namespace.digest, message.holder, message.ttl])

    def _release(self, message):
        yield ["release", message.namespace.digest, message.holder]


A = Namespace("session", "a", "app")
