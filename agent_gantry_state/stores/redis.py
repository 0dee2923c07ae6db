"""Memories in Redis or Valkey, alone, behind a Sentinel or in a cluster.

A namespace is one hash. A load and a commit are one script each, for all namespaces of a call, so that each is one round
trip and one atomic step. A load of a large namespace says what this process still has of it, and gets it only if it has
changed; a small one is read as it is, which takes a server less than to run a script. Time is the server's. What lies where
stands in redis_layout.py, what is run in redis_scripts.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from agent_gantry_state import codec
from agent_gantry_state.errors import CorruptEntryError, NotAtomicError, StoreError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.notes import LOG, fields
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores import redis_scripts as scripts
from agent_gantry_state.stores.kept import KEY_BYTES, Kept
from agent_gantry_state.stores.network import CONNECT_SECONDS, TIMEOUTS, AsyncLink, Link, RemoteStore
from agent_gantry_state.stores.options import Option, count
from agent_gantry_state.stores.protocol import (
    COMMIT_SECONDS,
    EMPTY,
    KEEP,
    LOAD_SECONDS,
    Change,
    Commit,
    Committed,
    Forget,
    Lease,
    List,
    Listed,
    Load,
    Loaded,
    Moved,
    Page,
    Release,
    Snapshot,
)
from agent_gantry_state.stores.redis_address import Address, address_from
from agent_gantry_state.stores.redis_layout import (
    TAGS,
    VERSION_BYTES,
    Place,
    assigning,
    chosen,
    has_mark,
    index_of,
    listed,
    mark_of,
    moment,
    moment_of,
    owner_argument,
    place_of,
    text_argument,
    version_of,
    whole,
    written,
)
from agent_gantry_state.stores.redis_links import ALink
from agent_gantry_state.stores.redis_links import Link as OwnLink
from agent_gantry_state.stores.redis_routes import Direct, Route, slot_of
from agent_gantry_state.stores.redis_wire import Node, Refusal, Sent, refused
from agent_gantry_state.stores.rows import to_bytes
from agent_gantry_state.stores.urls import StoreURL
from agent_gantry_state.stores.whole import applied, assigned

__all__ = ["Address", "RedisStore", "from_url"]

PREFIX: Final = "agent-gantry-state:"
MAX_CONNECTIONS: Final = 50

#: Seconds for which a commit that landed is remembered, so that it can be sent again.
TOKEN_SECONDS: Final = 60.0
#: Part of `load_timeout` that one server has to say where another one is.
_SHARE: Final = 1 / 3
#: Namespaces that one script looks at for a `List`, as the server does nothing else meanwhile.
_LOOKED_AT = 1000
#: Memories that cannot be read of which a listing tells in the log.
_TOLD_OF: Final = 1000
#: Hash tags that a cluster is asked for at once.
_TAGS_AT_ONCE = 32

_COMMITTED: Final = Committed()
#: Of a namespace its mark, its snapshot as it was then, with what has expired since, and about how large it is.
_Known = tuple[bytes, Snapshot, int]
#: About how many bytes a namespace takes that is read as it is, without a script, though this process knows it.
_SMALL: Final = 4096


def _prefix(text: str) -> str:
    if "{" in text or "}" in text:
        raise ValueError
    return text


_PREFIX_OPTION: Final = Option(_prefix, "without braces, for those mark what a cluster keeps together")


class RedisStore(RemoteStore):
    """Keeps memories in Redis 6.2 or newer, or Valkey.

    Nothing is opened before it is first needed. How lasting a commit is, and what happens when memory runs out, is the
    server's configuration: see docs/stores/redis.md.

    Args:
        address: Where it is; with a client of your own, leave it out.
        client: Your own `redis.Redis` or `redis.cluster.RedisCluster`, which stays open. It serves every caller that
            *aclient* does not.
        aclient: Your own `redis.asyncio.Redis` or `redis.asyncio.cluster.RedisCluster`, which stays open. It belongs to
            the event loop that uses it first.
        prefix: What the names of all keys begin with.
        max_connections: At most so many connections to a server for callers that block, and for each event loop.
        connect_timeout: Seconds that a new connection may take, within the time of the message that needs it.
        load_timeout: Seconds that everything but a commit may take.
        commit_timeout: Seconds that a commit or an erasure may take, with all its resends.

    Raises:
        ValueError: A number is not positive, the prefix has a brace in it, or there is an address beside a client.
        TypeError: A client is of another kind.
        MissingDriverError: hiredis, or for a client redis, is not installed.
    """

    def __init__(
        self,
        address: Address | None = None,
        *,
        client: Any = None,
        aclient: Any = None,
        prefix: str = PREFIX,
        max_connections: int = MAX_CONNECTIONS,
        connect_timeout: float = CONNECT_SECONDS,
        load_timeout: float = LOAD_SECONDS,
        commit_timeout: float = COMMIT_SECONDS,
    ) -> None:
        if address is not None and not isinstance(address, Address):
            raise TypeError("RedisStore: address must be an Address; a client is given as client=, and a URL to the gantry")
        if max_connections < 1:
            raise ValueError("RedisStore: max_connections must be positive")
        if "{" in prefix or "}" in prefix:
            raise ValueError("RedisStore: a prefix may have no brace in it, for those mark what a cluster keeps together")
        self._prefix = prefix.encode()
        self._max_connections = max_connections
        self._client = self._aclient = None
        self._aclient_loop: asyncio.AbstractEventLoop | None = None
        if client is None and aclient is None:
            self._address = Address() if address is None else address
            self._route: Route = self._address.route(load_timeout * _SHARE)
            # In a cluster the server that tells the time may not be the one that has the namespace; and other people's
            # clients give what is read in forms of their own.
            self._is_plain = self._route.together
            self._node: Node | None = self._route.node if isinstance(self._route, Direct) else None
        else:
            if address is not None:
                raise ValueError("RedisStore: an address and a client exclude each other")
            # Only here, for it needs redis-py, and nothing else does.
            from agent_gantry_state.stores import redis_clients

            clusters = {redis_clients.is_cluster(each) for each in (client, aclient) if each is not None}
            if len(clusters) > 1:
                raise ValueError("RedisStore: client and aclient must be of the same server")
            self._route = Direct(None, together=not clusters.pop())
            self._is_plain, self._node = False, None
            self._client = None if client is None else redis_clients.link_to(client)
            self._aclient = None if aclient is None else redis_clients.alink_to(aclient)
        self._kept: Kept[Namespace, _Known] = Kept()
        #: Digests of the memories that listings have left out.
        self._left_out: set[bytes] = set()
        super().__init__(connect_timeout=connect_timeout, load_timeout=load_timeout, commit_timeout=commit_timeout)

    @property
    def left_out(self) -> int:
        """How many memories listings have left out so far, for they cannot be read; a thousand at most."""
        return len(self._left_out)

    def __repr__(self) -> str:
        return f"<RedisStore {self._prefix.decode()!r}>"

    # Links.

    def _connect(self) -> Link:
        if self._client is not None:
            return self._client
        if self._aclient is not None:
            raise StoreError(
                "this store was given a Redis client for asyncio only, and was used by a caller that is on no asyncio event "
                "loop: give it client= as well"
            )
        return OwnLink(self._address.access_of, self._max_connections, self.connect_timeout)

    def _aconnect(self) -> AsyncLink | None:
        if self._aclient is not None:
            loop = asyncio.get_running_loop()
            self._aclient_loop = self._aclient_loop or loop
            if self._aclient_loop is loop:
                return self._aclient
            if self._client is None:
                raise StoreError(
                    "this store was given a Redis client for asyncio, which belongs to the event loop that used it first, "
                    "and was used on another one: give it client= as well, or a URL in place of clients"
                )
        if self._client is not None:
            return None
        return ALink(self._address.access_of, self._max_connections, self.connect_timeout)

    # Asking.

    def _time(self) -> bytes:
        """The time to go by; empty for the server's."""
        return b"" if self.clock is None else repr(self.clock()).encode()

    def _place(self, namespace: Namespace) -> Place:
        return place_of(self._prefix, namespace)

    def _run(self, script: scripts.Script, calls: Sequence[tuple[int, Sequence[bytes], Sequence[Any]]]) -> Steps[list[Any]]:
        """What *script* answers to calls, each of them a tag, keys and arguments."""
        digest = script.digest
        replies = yield from self._route.send(
            [(tag, ("EVALSHA", digest, len(keys), *keys, *arguments)) for tag, keys, arguments in calls]
        )
        for index, reply in enumerate(replies):
            if isinstance(reply, Refusal) and reply.code == "NOSCRIPT":
                # The server was restarted, or its scripts flushed. It keeps what it is given in full.
                tag, keys, arguments = calls[index]
                command = ("EVAL", script.text, len(keys), *keys, *arguments)
                (replies[index],) = yield from self._route.send([(tag, command)])
            if isinstance(replies[index], Refusal):
                error = refused(replies[index])
                if len(calls) > 1 and script is scripts.FORGET:
                    # Of those beside it nothing is known.
                    error.committed = None
                raise error
        return replies

    def _grouped(self, places: Sequence[Place]) -> list[list[int]]:
        """The indexes of places that one command can be about."""
        if self._route.together or len(places) < 2:
            return [list(range(len(places)))]
        groups: dict[int, list[int]] = {}
        for index, place in enumerate(places):
            groups.setdefault(place.tag, []).append(index)
        return list(groups.values())

    # Load.

    def _load(self, message: Load) -> Steps[Loaded]:
        namespaces, names = message.namespaces, message.names
        if len(namespaces) == 1 and (message.keys is None or message.keys[0] is None):
            return (yield from self._load_whole(namespaces[0]))
        places = [self._place(namespace) for namespace in namespaces]
        keys = message.keys or (None,) * len(places)
        groups = self._grouped(places)
        given: dict[int, _Known] = {}
        calls = []
        for members in groups:
            arguments: list[Any] = [self._time(), b"1" if names else b""]
            for index in members:
                wanted = keys[index]
                if wanted is None:
                    kept = self._kept.get(namespaces[index])
                    if kept is not None:
                        given[index] = kept
                    arguments += (b"" if kept is None else kept[0], -1)
                else:
                    arguments += (b"", len(wanted), *_encoded(wanted))
            calls.append((_tag_of(places, members), [places[index].key for index in members], arguments))
        replies = yield from self._run(scripts.LOAD, calls)
        snapshots: list[Snapshot] = [EMPTY] * len(places)
        latest = 0.0
        for members, (stamp, *parts) in zip(groups, replies, strict=True):
            now = moment(stamp)
            latest = max(latest, now)
            for index, part in zip(members, parts, strict=True):
                wanted = keys[index]
                if wanted is None:
                    snapshots[index] = self._whole(namespaces[index], places[index], part, given.get(index)).live(now)
                elif part is not None:
                    snapshots[index] = chosen(part, places[index], wanted, names, now)
        return Loaded(tuple(snapshots), latest)

    def _load_whole(self, namespace: Namespace) -> Steps[Loaded]:
        place, kept = self._place(namespace), self._kept.get(namespace)
        if self._is_plain and (kept is None or kept[2] <= _SMALL):
            # The time first, so that nothing in it is younger than the moment that is answered.
            replies = yield from self._route.send([(place.tag, ("TIME",)), (place.tag, ("HGETALL", place.key))])
            snapshot, now = self._read(namespace, place, kept, replies)
            return Loaded((snapshot,), now)
        arguments = (self._time(), b"", b"" if kept is None else kept[0], -1)
        ((stamp, part),) = yield from self._run(scripts.LOAD, [(place.tag, (place.key,), arguments)])
        now = moment(stamp)
        return Loaded((self._whole(namespace, place, part, kept).live(now),), now)

    def _read(
        self, namespace: Namespace, place: Place, kept: _Known | None, replies: Sequence[Any]
    ) -> tuple[Snapshot, float]:
        """A namespace that was read without a script, and the time."""
        stamp, flat = replies
        if isinstance(flat, Refusal) or isinstance(stamp, Refusal):
            raise refused(flat if isinstance(flat, Refusal) else stamp)
        passed = self._time()
        now = float(passed) if passed else moment_of(stamp)
        if kept is not None and has_mark(flat, kept[0]):
            return kept[1].live(now), now
        return self._whole(namespace, place, flat or None, kept).live(now), now

    def _whole(self, namespace: Namespace, place: Place, part: Any, kept: _Known | None) -> Snapshot:
        if part is None:
            self._kept.drop(namespace)
            return EMPTY
        if isinstance(part, bytes):
            if kept is None or part != kept[0]:
                raise CorruptEntryError("Redis answered with the memory of another namespace")
            return kept[1]
        snapshot, size = whole(part, place)
        self._kept.keep(namespace, (mark_of(part), snapshot, size), size)
        return snapshot

    # What callers that may block mostly want of a single server, without messages and steps.

    def load_at_once(self, namespace: Namespace) -> tuple[Snapshot, float]:
        """Answer a `Load` of a whole namespace: the snapshot, and the time on the store's clock."""
        place, kept, node = self._place(namespace), self._kept.get(namespace), self._node
        deadline = time.monotonic() + self.load_timeout
        if node is None or (kept is not None and kept[2] > _SMALL):
            return self._loaded(namespace, deadline)
        try:
            return self._read(namespace, place, kept, self._exchanged(node, place.reading, 2, deadline))
        except StoreError as error:
            return self._loaded(namespace, deadline, error)

    def commit_at_once(
        self,
        namespace: Namespace,
        base: Snapshot,
        values: dict[str, Any],
        packed: dict[str, bytes],
        token: bytes,
        timeout: float,
        max_bytes: float,
    ) -> bool | Moved:
        """Commit small plain values, and containers, in a first try, without a message; see `MemcachedStore.commit_at_once`.

        Returns:
            Whether it did, or how the namespace stands if it has moved.
        """
        kept, node = self._kept.get(namespace), self._node
        if node is None or kept is None or kept[1] is not base:
            return False
        version = token[:VERSION_BYTES]
        after = assigned(base, values, packed, version, max_bytes)
        if after is None:
            return False
        place = self._place(namespace)
        payload = Sent(assigning(scripts.COMMIT.digest, place, token, self._time(), TOKEN_SECONDS, base, values, packed))
        try:
            (reply,) = self._exchanged(node, payload, 1, time.monotonic() + timeout)
            if isinstance(reply, Refusal):
                if reply.code == "NOSCRIPT":
                    return False
                raise refused(reply)
            in_place = _is_in_place(reply, version)
        except StoreError as error:
            self._judge(error, writes=True, last=True)
            raise
        if in_place is None:
            now = moment(reply[0])
            return Moved((EMPTY if not reply[1] else chosen(reply[1], place, values, False, now),), now)
        if in_place:
            mark, _, size = kept
            for key in values:
                # One small value in the place of another makes no difference.
                if key in packed:
                    size += len(packed[key]) - len(base.packed.get(key, b""))
                if key not in base.values:
                    size += len(key) + KEY_BYTES
            self._kept.keep(namespace, (version + mark[VERSION_BYTES:], after, size), size)
        return True

    def _exchanged(self, node: Node, payload: bytes, count: int, deadline: float) -> list[Any]:
        """What a server replies to commands, for a caller that may block."""
        link: Any = self._link or self._open()
        try:
            return link.exchange(node, payload, count, deadline)  # type: ignore[no-any-return]
        finally:
            if self._closed:
                # It may have been closed before this connected.
                link.close()

    # Commit.

    def _commit(self, message: Commit) -> Steps[Committed | Moved]:
        changes, token, version = message.changes, message.token, version_of(message.version)
        if not changes:
            return _COMMITTED
        places = [self._place(change.namespace) for change in changes]
        if len(places) > 1 and not self._route.together and len({slot_of(place.tag) for place in places}) > 1:
            scopes = dict.fromkeys(change.namespace.scope for change in changes)
            raise NotAtomicError(
                f"a Redis Cluster cannot write the memories of scopes {', '.join(map(repr, scopes))} in one step, for they "
                "lie in different slots; nothing was written. Change one of them per call, use one Redis, or make the "
                "gantry with partial_commits=True",
                scopes=scopes,
            )
        keys: list[bytes] = []
        arguments: list[Any] = [self._time(), version, b"1" if token else b"", TOKEN_SECONDS]
        for place, change in zip(places, changes, strict=True):
            keys += (place.key, place.listing)
            if token:
                keys.append(place.token(token))
            arguments += written(change, place.address)
        (reply,) = yield from self._run(scripts.COMMIT, [(places[0].tag, keys, arguments)])
        in_place = _is_in_place(reply, version)
        if in_place is not None:
            if in_place:
                for change in changes:
                    self._follow(change, version)
            return _COMMITTED
        now = moment(reply[0])
        snapshots = [
            EMPTY if part is None else chosen(part, place, change.checks, change.whole, now)
            for part, place, change in zip(reply[1:], places, changes, strict=True)
        ]
        return Moved(tuple(snapshots), now)

    def _follow(self, change: Change, version: bytes) -> None:
        """Keep what a namespace is after a change that landed, so that it need not be read again."""
        namespace, puts = change.namespace, change.puts
        kept = self._kept.get(namespace)
        if kept is None or not (puts or change.deletes or change.owner is not None):
            return
        mark, snapshot, size = kept
        if snapshot.head != change.head or change.touch or snapshot.expires_at or snapshot.slides:
            return
        for key, put in puts.items():
            if put.ttl is not KEEP and put.ttl is not None:
                # When it expires is the server's to say.
                return
            size += len(put.packed)
            if key in snapshot.packed:
                size -= len(snapshot.packed[key])
            elif key in snapshot.values:
                size -= len(codec.pack(snapshot.values[key]))
            else:
                size += len(key) + KEY_BYTES
        after = applied(change, snapshot, version, lambda: 0.0)
        self._kept.keep(namespace, (version + mark[len(version) :], after, size), size)

    # The rest.

    def _which_server(self, message: object) -> Steps[str]:
        (reply,) = yield from self._route.send([(0, ("INFO", "server"))])
        # A user may have no right to ask, and a client of somebody's own may have read it already.
        lines = reply.decode(errors="replace").splitlines() if isinstance(reply, bytes) else []
        said = dict(line.split(":", 1) for line in lines if ":" in line)
        # Valkey says for Redis which one it is as good as.
        for name, field in (("Valkey", "valkey_version"), ("Redis", "redis_version")):
            if field in said:
                return f"{name} {said[field]}"
        return ""

    def _forget(self, message: Forget) -> Steps[None]:
        places = [self._place(namespace) for namespace in message.namespaces]
        calls = []
        for members in self._grouped(places):
            keys = [key for index in members for key in (places[index].key, places[index].listing)]
            calls.append((_tag_of(places, members), keys, ()))
        yield from self._run(scripts.FORGET, calls)
        for namespace in message.namespaces:
            self._kept.drop(namespace)

    def _list(self, message: List) -> Steps[Page]:
        found: list[tuple[Listed, bytes]] = []
        after = b"" if message.after is None else message.after.hex().encode()
        asked = [text_argument(message.app), text_argument(message.scope), owner_argument(message.owner)]
        tag, wanted = message.after[0] if message.after else 0, message.limit + 1
        at_once = TAGS if self._route.together else _TAGS_AT_ONCE
        while tag < TAGS and len(found) < wanted:
            tags = range(tag, min(tag + at_once, TAGS))
            rest = [self._time(), after, wanted - len(found), _LOOKED_AT, *asked]
            groups = [tags] if self._route.together else [range(each, each + 1) for each in tags]
            calls = [(group[0], [index_of(self._prefix, each) for each in group], rest) for group in groups]
            tag = tags[-1] + 1
            for last, *items in (yield from self._run(scripts.LIST, calls)):
                found += self._readable(items)
                if last is not None:
                    # It has not come to the end of its indexes. What others found beyond it is looked for again.
                    after, tag = last, int(last[:2], 16)
                    break
        page = found[: message.limit]
        more = len(found) > len(page)
        return Page(tuple([each for each, _ in page]), bytes.fromhex(page[-1][1].decode()) if more and page else None)

    def _readable(self, items: Sequence[bytes]) -> list[tuple[Listed, bytes]]:
        """What a script has listed. One memory that is damaged does not hide the others."""
        found = []
        pairs = iter(items)
        for digest, raw in zip(pairs, pairs, strict=True):
            try:
                found.append((listed(raw, digest), digest))
            except CorruptEntryError as error:
                if digest not in self._left_out and len(self._left_out) < _TOLD_OF:
                    self._left_out.add(digest)
                    LOG.warning(
                        "a memory was left out of a listing (digest %s): %s",
                        digest.decode(),
                        error,
                        extra=fields("listing_incomplete"),
                    )
        return found

    def _lease(self, message: Lease) -> Steps[float]:
        place = self._place(message.namespace)
        arguments = [self._time(), message.holder, message.ttl]
        (reply,) = yield from self._run(scripts.LEASE, [(place.tag, [place.lease], arguments)])
        return 0.0 if reply is None else moment(reply)

    def _release(self, message: Release) -> Steps[None]:
        place = self._place(message.namespace)
        yield from self._run(scripts.RELEASE, [(place.tag, [place.lease], [b"", message.holder])])


def _is_in_place(reply: Any, version: bytes) -> bool | None:
    """Whether all was as it was loaded where a commit landed; None if it did not land.

    Raises:
        StoreError: The reply is none to this commit.
    """
    if not isinstance(reply, bytes):
        return None
    if reply[:-1] != version:
        raise StoreError("Redis answered a commit with what belongs to another one", committed=None)
    return reply[-1:] == b"1"


def _tag_of(places: Sequence[Place], members: Sequence[int]) -> int:
    return places[members[0]].tag if members else 0


def _encoded(keys: Iterable[str]) -> list[bytes]:
    return [to_bytes(key) for key in keys]


def from_url(url: StoreURL) -> RedisStore:
    """The store that a redis:// or valkey:// URL names, or one of its kin."""
    address, options = address_from(url, {**TIMEOUTS, "prefix": _PREFIX_OPTION, "max_connections": count})
    return RedisStore(address, **options)
