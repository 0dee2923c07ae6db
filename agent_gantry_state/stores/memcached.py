"""Memories in memcached: fast, shared by processes and machines, and gone when the server says so.

A namespace is one item, and memcached changes an item only for who names the number of its last change. So a load is one
`gets`, and a commit works out what follows from what this process has read and sends it in one `cas`. If somebody else was
quicker it reads again: what stands in the way of the change is answered, and what does not is merged by trying again.

What memcached cannot do, this store does not pretend to: it lists nothing, writes one namespace at a time, and what the
server drops, to make room or because it ends, is gone.
"""

from __future__ import annotations

import base64
import hashlib
import math
import random
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from agent_gantry_state.codec import shortened
from agent_gantry_state.compartments import known_as
from agent_gantry_state.errors import (
    MemoryTooLargeError,
    NotAtomicError,
    NotListableError,
    StateError,
    StoreError,
    StoreTimeoutError,
    StoreURLError,
)
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.steps import Pause, Steps
from agent_gantry_state.stores.kept import KEY_BYTES, Kept
from agent_gantry_state.stores.memcached_alinks import AsyncMemcachedLink
from agent_gantry_state.stores.memcached_item import (
    NO_TOKENS,
    TOKEN_SECONDS,
    dropped_until,
    has_token,
    read_item,
    with_token,
    write_item,
)
from agent_gantry_state.stores.memcached_links import BorrowingLink, MemcachedLink
from agent_gantry_state.stores.memcached_server import Server
from agent_gantry_state.stores.memcached_wire import (
    Credentials,
    Item,
    ItemTooLargeError,
    Replies,
    Request,
    deletes,
    get,
    gets,
    stores,
)
from agent_gantry_state.stores.network import CONNECT_SECONDS, TIMEOUTS, AsyncLink, Link, RemoteStore
from agent_gantry_state.stores.options import count
from agent_gantry_state.stores.protocol import (
    COMMIT_SECONDS,
    EMPTY,
    LOAD_SECONDS,
    Change,
    Commit,
    Committed,
    Forget,
    Lease,
    List,
    Load,
    Loaded,
    Moved,
    Page,
    Release,
    Snapshot,
)
from agent_gantry_state.stores.urls import StoreURL
from agent_gantry_state.stores.whole import applied, assigned, chosen, is_moved

__all__ = ["MemcachedStore", "from_url"]

#: Bytes that memcached adds to an item.
_ITEM_BYTES: Final = 64
#: Seconds beyond the last expiry for which memcached keeps an item, for its clock has whole seconds.
_EXTRA_SECONDS: Final = 2
#: Seconds by which two processes may differ about a server's time.
_CLOCK_SECONDS: Final = 2.0
#: The last time that memcached understands.
_LAST_SECOND: Final = 2**31 - 1
#: Seconds between the tries of a commit: at first, and at most. A random part of each is taken.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05

_COMMITTED = Committed()


class _Place(NamedTuple):
    """Where a namespace and its lease are kept."""

    server: Server
    key: bytes
    lease: bytes


class _Kept:
    """A namespace as this process knows it.

    Attributes:
        place: Where it is kept.
        data: Its bytes; b"" where there is none.
        change: The number of the change that made it, and the life of the server in which the number holds; None if that
            is not known, or there is none. It is replaced as a whole, for several threads may have this.
    """

    __slots__ = ("change", "data", "place", "snapshot", "tokens")

    def __init__(
        self, place: _Place, data: bytes, snapshot: Snapshot, tokens: bytes, change: tuple[bytes, object] | None
    ) -> None:
        self.place = place
        self.data = data
        self.snapshot = snapshot
        self.tokens = tokens
        self.change = change


#: A lease's item, the life of the server, the holder, and until when.
_Leased = tuple[bytes | None, object, bytes, float]
_UNLEASED: _Leased = (None, None, b"", -math.inf)
_NOTHING = _Kept(_Place(Server("nowhere"), b"", b""), b"", EMPTY, NO_TOKENS, None)


class _Doubt(NamedTuple):
    """A try of a commit of which it is not known whether it landed.

    Attributes:
        since: The server's time before it was sent the first time.
        born: The version of the commit that made the memory which it wrote, or would have written.
        until: When nobody asks for it any more, on the monotonic clock.
    """

    since: float
    born: bytes | None
    until: float

    @classmethod
    def of(cls, since: float, after: Snapshot, timeout: float) -> _Doubt:
        """The doubt whether *after* was written, which had so many seconds."""
        return cls(since, after.born, time.monotonic() + max(timeout, TOKEN_SECONDS))


class MemcachedStore(RemoteStore):
    """Keeps memories in memcached 1.4 or later; `List` and atomic commits of several namespaces are beyond it.

    Args:
        servers: One or several: ``host``, ``host:port``, ``[address]:port``, or the path of a socket. Every process that is
            to share memories names them alike; their order does not matter. Adding one moves only the memories that it
            gets, which begin anew there.
        user: For servers that were started with an authentication file (``-Y``).
        password: Likewise.
        prefix: Stands before every key, to keep apart programs that share a server: at most 100 printable ASCII letters.
        client: A `pymemcache.PooledClient` of yours, for one server, instead of *servers*. It stays open. Callers on event
            loops use it in a thread.
        max_connections: To each server, for this process's threads together and for each event loop. The callers on a loop
            share one, as long as nothing large is under way on it.
        connect_timeout: Seconds that a new connection may take.
        load_timeout: Seconds that everything but a commit may take.
        commit_timeout: Seconds that a commit or an erasure may take, with all its resends.

    Raises:
        TypeError: Both *servers* and *client* are given, or neither, or *client* is no pool.
        ValueError: A value is out of its range.
    """

    def __init__(
        self,
        servers: str | Iterable[str] | None = None,
        *,
        user: str | None = None,
        password: str | None = None,
        prefix: str = "agent-gantry:",
        client: Any = None,
        max_connections: int = 32,
        connect_timeout: float = CONNECT_SECONDS,
        load_timeout: float = LOAD_SECONDS,
        commit_timeout: float = COMMIT_SECONDS,
    ) -> None:
        self._credentials = None if user is None or password is None else Credentials(user, password)
        half = (user is None) != (password is None)
        # What collects the variables of a traceback is to find no password.
        del password
        super().__init__(connect_timeout=connect_timeout, load_timeout=load_timeout, commit_timeout=commit_timeout)
        if (servers is None) == (client is None):
            raise TypeError("MemcachedStore: name the servers or give a client of yours, one of the two")
        if client is not None:
            if not hasattr(client, "client_pool") or not hasattr(client, "server"):
                raise TypeError("MemcachedStore: client must be a pymemcache.PooledClient")
            address = client.server
            servers = address if isinstance(address, str) else f"[{address[0]}]:{address[1]}"
        if half or (user is not None and (not user or " " in user)):
            raise ValueError("MemcachedStore: user and password go together, and a user has no space in the name")
        if len(prefix) > 100 or not (prefix.isascii() and prefix.isprintable()) or " " in prefix:
            raise ValueError("MemcachedStore: prefix must be at most 100 printable ASCII letters, without spaces")
        if max_connections < 1:
            raise ValueError(f"MemcachedStore: max_connections must be at least 1, not {max_connections}")
        names = [servers] if isinstance(servers, str) else [*(servers or ())]
        self._servers = {server.name: server for server in map(Server, names)}
        if not names or len(self._servers) < len(names):
            raise ValueError("MemcachedStore: each server is to be named once, and there must be one")
        self._prefix = prefix.encode()
        self._client = client
        self._max_connections = max_connections
        self._place_of = lru_cache(4096)(self._placed)
        self._kept: Kept[Namespace, _Kept] = Kept()
        # Commits of which it is not known whether they landed, by token and by the key of what they wrote.
        self._doubts: dict[tuple[bytes, bytes], _Doubt] = {}

    def __repr__(self) -> str:
        return f"<MemcachedStore {', '.join(self._servers)}>"

    # Links.

    def _connect(self) -> Link:
        if self._client is not None:
            return BorrowingLink(self._client, *self._servers.values())
        return MemcachedLink(self._servers.values(), self._credentials, self.connect_timeout, self._max_connections)

    def _aconnect(self) -> AsyncLink | None:
        if self._client is not None:
            return None
        return AsyncMemcachedLink(self._servers.values(), self._credentials, self.connect_timeout, self._max_connections)

    # Time and place.

    def _now(self, server: Server) -> float:
        """The time on a server's clock."""
        return server.now()

    def _is_timed(self, server: Server) -> bool:
        """Whether the time on a server's clock is known, as it is once it was asked for anything."""
        return self._now(server) > -math.inf

    def _exptime(self, until: float) -> int:
        """When memcached is to drop an item that is of no use from *until* on: seconds since the epoch, 0 for never."""
        if until + _EXTRA_SECONDS > _LAST_SECOND:
            return 0
        # Small numbers would be taken for seconds from now on.
        return math.ceil(until) + _EXTRA_SECONDS

    def _place(self, namespace: Namespace) -> _Place:
        known = self._kept.get(namespace)
        # Addresses may be long, and many: no other one is kept.
        return self._place_of(namespace.digest) if known is None else known.place

    def _placed(self, digest: bytes) -> _Place:
        # Not a ring of hashes: the highest of one per server gives each the same share, and needs no table.
        server = max(self._servers.values(), key=lambda each: hashlib.sha256(digest + each.name.encode()).digest())
        name = base64.urlsafe_b64encode(digest).rstrip(b"=")
        return _Place(server, self._prefix + b"m:" + name, self._prefix + b"l:" + name)

    def _by_server(self, namespaces: Sequence[Namespace]) -> dict[Server, dict[bytes, Namespace]]:
        found: dict[Server, dict[bytes, Namespace]] = {}
        for namespace in namespaces:
            place = self._place(namespace)
            found.setdefault(place.server, {})[place.key] = namespace
        return found

    # What this process knows.

    def _keep(self, namespace: Namespace, kept: _Kept) -> None:
        # Its bytes, and what they hold.
        self._kept.keep(namespace, kept, 2 * len(kept.data) + KEY_BYTES * len(kept.snapshot.values))

    def _read(self, namespaces: Sequence[Namespace]) -> Steps[dict[Namespace, _Kept]]:
        """What is there, and this process knows it from now on."""
        if len(namespaces) == 1:
            # As most calls have it.
            return {namespaces[0]: (yield from self._read_one(namespaces[0]))}
        found: dict[Namespace, _Kept] = {}
        for server, keys in self._by_server(namespaces).items():
            (items,), life = yield gets(server, keys)  # type: ignore[misc]
            for key, namespace in keys.items():
                known, place = self._kept.get(namespace), self._place(namespace)
                found[namespace] = self._note(namespace, place, known, items.get(key), life)
        return found

    def _read_one(self, namespace: Namespace) -> Steps[_Kept]:
        known, place = self._kept.get(namespace), self._place(namespace)
        (item,), life = yield get(place.server, place.key, b"" if known is None else known.data)  # type: ignore[misc]
        return self._note(namespace, place, known, item, life)

    def _note(self, namespace: Namespace, place: _Place, known: _Kept | None, item: Item | None, life: object) -> _Kept:
        """Know what was read, where this was *known* before."""
        if item is None:
            self._kept.drop(namespace)
            return _NOTHING
        data, unique = item
        if known is None or known.data != data:
            known = _Kept(place, data, *read_item(data, namespace), (unique, life))
            self._keep(namespace, known)
        else:
            known.change = unique, life
        return known

    # Loading.

    def _load(self, message: Load) -> Steps[Loaded]:
        if len(message.namespaces) == 1 and message.keys is None:
            # As most calls have it.
            (namespace,) = message.namespaces
            kept = yield from self._read_one(namespace)
            now = self._now(self._place(namespace).server)
            return Loaded((kept.snapshot.live(now),), now)
        found = yield from self._read(message.namespaces)
        # Each server has a clock of its own.
        times = {server: self._now(server) for server in {self._place(n).server for n in message.namespaces}}
        snapshots = [found[each].snapshot.live(times[self._place(each).server]) for each in message.namespaces]
        if message.keys is not None:
            snapshots = [
                snapshot if keys is None else chosen(snapshot, keys, message.names)
                for snapshot, keys in zip(snapshots, message.keys, strict=True)
            ]
        return Loaded(tuple(snapshots), max(times.values()))

    # What callers that may block mostly want, without messages and steps.

    def load_at_once(self, namespace: Namespace) -> tuple[Snapshot, float]:
        """Answer a `Load` of a whole namespace: the snapshot, and the time on the store's clock."""
        known = self._kept.get(namespace)
        place, data = (self._place(namespace), b"") if known is None else (known.place, known.data)
        deadline = time.monotonic() + self.load_timeout
        try:
            (item,), life = (self._link or self._open()).ask(get(place.server, place.key, data), deadline)
        except StoreError as error:
            return self._loaded(namespace, deadline, error)
        now = self._now(place.server)
        return self._note(namespace, place, known, item, life).snapshot.live(now), now

    def commit_at_once(
        self,
        namespace: Namespace,
        base: Snapshot,
        values: dict[str, Any],
        packed: dict[str, bytes],
        token: bytes,
        timeout: float,
        max_bytes: float,
    ) -> bool:
        """Commit small plain values, and containers, in a first try, without a message.

        Args:
            namespace: Whose they are.
            base: The namespace as it was loaded, whole; none of its keys expires.
            values: The values to write, in the order of keys that are new; None for a container.
            packed: The bytes of each container.
            token: That of the commit, which was not sent yet.
            timeout: Seconds.
            max_bytes: How large the namespace may be.

        Returns:
            Whether it did; if not, nothing was done: it is not as it was loaded, or not known.

        Raises:
            StoreError: The store failed. What is known of that, a `Commit` with the same token goes by.
        """
        known = self._kept.get(namespace)
        if known is None or known.snapshot is not base or (change := known.change) is None:
            return False
        after = assigned(base, values, packed, token[:8], max_bytes)
        if after is None:
            return False
        place, server = known.place, known.place.server
        now = self._now(server)
        tokens = with_token(known.tokens, token, now)
        data = write_item(namespace, after, tokens)
        if server.max_item is not None and _size(place, data) > server.max_item:
            return False
        request = stores(server, place.key, data, 0, *change)
        try:
            (answer,), _ = (self._link or self._open()).ask(request, time.monotonic() + timeout)
        except ItemTooLargeError:
            return False
        except StoreError as error:
            if error.committed is None:
                self._doubt(token, place.key, _Doubt.of(now, after, timeout))
            self._judge(error, writes=True, last=True)
            raise
        if answer != b"STORED":
            # It has another number by now: to try this one again would be in vain. What other threads have is left alone,
            # for one that is about to replace it would find no number, and make anew what was erased.
            if self._kept.get(namespace) is known:
                self._kept.drop(namespace)
            return False
        self._keep(namespace, _Kept(place, data, after, tokens, None))
        return True

    # Committing.

    def _commit(self, message: Commit) -> Steps[Committed | Moved]:
        if len(message.changes) == 1:
            return (yield from self._commit_one(message.changes[0], message)) or _COMMITTED
        written = [change for change in message.changes if _writes(change)]
        if written and len(several := [each for each in message.changes if _counts(each)]) > 1:
            raise NotAtomicError(
                "memcached writes one memory at a time, and nothing was written: this call "
                + ("changed several" if len(written) > 1 else "changed one and had to find another as it was")
                + f" ({', '.join(each.namespace.scope for each in several)}). Change one memory in a call, use a store "
                "that commits together, or make the gantry with partial_commits=True",
                scopes=[each.namespace.scope for each in several],
            )
        landed = False
        # What is only touched comes last: a call whose change has moved leaves nothing behind.
        for change in sorted(message.changes, key=_writes, reverse=True):
            try:
                moved = yield from self._commit_one(change, message)
            except StateError as error:
                if landed:
                    error.committed = None
                raise
            if moved is not None and _counts(change):
                return (yield from self._all_moved(message))
            landed = landed or _writes(change)
        return _COMMITTED

    def _all_moved(self, message: Commit) -> Steps[Moved]:
        """The answer where one of several has moved: how all of them stand."""
        found = yield from self._reread([each.namespace for each in message.changes])
        now = max(self._now(self._place(each).server) for each in found)
        return Moved(tuple([found[each.namespace].snapshot.live(now) for each in message.changes]), now)

    def _reread(self, namespaces: Sequence[Namespace]) -> Steps[dict[Namespace, _Kept]]:
        """`_read` for a commit, of which nothing is written by reading."""
        try:
            return (yield from self._read(namespaces))
        except StoreError as error:
            error.committed = False
            raise

    def _commit_one(self, change: Change, message: Commit) -> Steps[Moved | None]:
        """Do what one change says, or answer how its namespace stands if that is in the way."""
        namespace, token = change.namespace, message.token
        place = self._place(namespace)
        deadline, pause = time.monotonic() + message.timeout, _FIRST_PAUSE
        effect = _writes(change)
        doubt = self._doubts.get((token, place.key)) if effect else None
        if doubt is not None:
            # Only what is there now may tell.
            kept = None
        else:
            # What was loaded is mostly still there, and if it is not the server says so.
            kept = _NOTHING if change.head is None and self._is_timed(place.server) else self._kept.get(namespace)
        fresh = False
        while True:
            if kept is None or (kept.change is None and (change.head is not None and not fresh)):
                kept = (yield from self._reread((namespace,)))[namespace]
                fresh = True
            now = self._now(place.server)
            if token and has_token(kept.tokens, token, now):
                return None
            if doubt is not None:
                _refuse_doubtful(doubt, kept, now)
            there = kept.snapshot.live(now)
            if there.head != change.head and is_moved(change, there):
                if fresh:
                    return Moved((there,), now)
                kept = None
                continue
            if not effect and not (change.touch and there.slides):
                if fresh:
                    return None
                kept = None
                continue
            written = yield from self._write(place, change, message, kept, there, now)
            if written:
                return None
            if time.monotonic() + pause >= deadline:
                raise StoreTimeoutError(
                    f"other calls kept changing the same memory for {message.timeout:g} s, so that nothing was written; "
                    "try again, or spread what they write over more memories",
                    committed=False,
                )
            if fresh:
                yield Pause(random.uniform(0, pause))  # noqa: S311 - jitter
                pause = min(pause * 2, _LONGEST_PAUSE)
            kept, fresh = None, False

    def _write(
        self, place: _Place, change: Change, message: Commit, kept: _Kept, there: Snapshot, now: float
    ) -> Steps[bool]:
        """Replace what was read by what follows from it; False: it is not what is there."""
        namespace, server, token = change.namespace, place.server, message.token
        after = applied(change, there, message.version, lambda: now)
        tokens = with_token(kept.tokens, token, now) if token else kept.tokens
        data = write_item(namespace, after, tokens)
        size = _size(place, data)
        if server.max_item is not None and size > server.max_item:
            raise _too_large(change, after, size, server.max_item)
        exptime = self._exptime(after.last_expiry())
        unique, life = kept.change or (None, None)
        try:
            (answer,), _ = yield stores(server, place.key, data, exptime, unique, life)  # type: ignore[misc]
        except ItemTooLargeError:
            raise _too_large(change, after, size, server.max_item or size) from None
        except StoreError as error:
            if error.committed is None and token:
                self._doubt(token, place.key, _Doubt.of(now, after, message.timeout))
            raise
        if answer != b"STORED":
            return False
        self._keep(namespace, _Kept(place, data, after, tokens, None))
        return True

    def _doubt(self, token: bytes, key: bytes, doubt: _Doubt) -> None:
        now = time.monotonic()
        with self._lock:
            for old in [old for old, known in self._doubts.items() if known.until <= now]:
                del self._doubts[old]
            self._doubts.setdefault((token, key), doubt)

    # Erasing, listing, leases.

    def _forget(self, message: Forget) -> Steps[None]:
        for server, keys in self._by_server(message.namespaces).items():
            yield from _asked(deletes(server, [*keys]))
            for namespace in keys.values():
                self._kept.drop(namespace)

    def _list(self, message: List) -> Steps[Page]:
        raise NotListableError(
            "memcached cannot tell what it holds, so that memories in it cannot be listed: use another store"
        )
        yield

    def _lease(self, message: Lease) -> Steps[float]:
        place = self._place(message.namespace)
        unique, life, holder, until = _UNLEASED
        if not self._is_timed(place.server):
            unique, life, holder, until = yield from self._leased(place)
        while True:
            now = self._now(place.server)
            if holder != message.holder and until > now:
                return until - now
            until = now + message.ttl
            data = repr(until).encode() + b" " + message.holder
            (answer,), _ = yield from _asked(stores(place.server, place.lease, data, self._exptime(until), unique, life))
            if answer == b"STORED":
                return 0.0
            unique, life, holder, until = yield from self._leased(place)

    def _leased(self, place: _Place) -> Steps[_Leased]:
        """Who holds a lease: number and life of the item, holder, and until when."""
        (items,), life = yield from _asked(gets(place.server, [place.lease]))
        if place.lease not in items:
            return _UNLEASED
        data, unique = items[place.lease]
        until, _, holder = data.partition(b" ")
        try:
            return unique, life, holder, float(until)
        except ValueError:
            return unique, life, b"", -math.inf

    def _release(self, message: Release) -> Steps[None]:
        place = self._place(message.namespace)
        unique, life, holder, _ = yield from self._leased(place)
        if unique is not None and holder == message.holder:
            # To replace is the only way to name the change that is to be undone; it expires at once.
            yield from _asked(stores(place.server, place.lease, b"", -1, unique, life))


def _asked(request: Request) -> Steps[Replies]:
    replies: Replies = yield request  # type: ignore[misc]
    return replies


def _refuse_doubtful(doubt: _Doubt, kept: _Kept, now: float) -> None:
    """Refuse to guess of a commit that had no answer, and whose token is not there, whether it had landed.

    It surely had not if the memory is still the one that it would have written, and has all tokens from that time on.

    Raises:
        StoreError: It may have landed, and what would tell is gone.
    """
    if (
        # Where there is none, none is born.
        kept.snapshot.born != doubt.born
        or dropped_until(kept.tokens) >= doubt.since
        or now >= doubt.since + TOKEN_SECONDS - _CLOCK_SECONDS
    ):
        raise StoreError(
            "it is not known whether what the call changed was written: memcached did not answer, and what would tell is "
            "not there any more",
            committed=None,
        )


def _writes(change: Change) -> bool:
    return bool(change.puts or change.deletes or change.owner is not None)


def _counts(change: Change) -> bool:
    """Whether a change has to be of one moment with others: one that only touches conflicts with nothing."""
    return _writes(change) or change.whole or bool(change.checks)


def _size(place: _Place, data: bytes) -> int:
    """What an item takes of the room that memcached has for one."""
    return len(data) + len(place.key) + _ITEM_BYTES


def _too_large(change: Change, after: Snapshot, size: int, limit: int) -> MemoryTooLargeError:
    changed = {key: put.packed for key, put in change.puts.items()} or after.packed
    key = known_as(max(changed, key=lambda each: len(changed[each]), default=""))
    return MemoryTooLargeError(
        f"nothing was written: a {change.namespace.scope} memory of {size} bytes is more than memcached keeps in an item "
        f"({limit} bytes); the largest key that the call changed is {shortened(repr(key))}. Keep less in it, spread "
        "it over several memories, or start memcached with a higher limit, -I 4m",
        key=key,
        size=size,
        limit=limit,
        scope=change.namespace.scope,
    )


def from_url(url: StoreURL) -> MemcachedStore:
    """The store that a memcached:// URL names."""
    options = url.read({"prefix": str, "max_connections": count, **TIMEOUTS})
    people, at, hosts = url.parts.netloc.rpartition("@")
    path = unquote(url.parts.path)
    if url.parts.fragment or (hosts and path not in ("", "/")) or not (hosts or len(path) > 1):
        raise StoreURLError(
            "memcached:// takes hosts or the path of a socket: memcached://host:port,host:port, memcached:///path"
        )
    user, colon, password = people.partition(":")
    if at and not (user and colon):
        raise StoreURLError("memcached://: a user has a password, memcached://user:password@host")
    if at:
        options |= {"user": unquote(user), "password": unquote(password)}
    try:
        return MemcachedStore(hosts.split(",") if hosts else path, **options)
    except ValueError as error:
        raise StoreURLError(str(error)) from None
