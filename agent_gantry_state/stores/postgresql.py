"""Memories in PostgreSQL, for any number of machines.

Each message is a call of one function in a schema of ours (postgresql_schema.py): one round trip and one transaction,
whoever stands between us and the server. A load names the heads of the snapshots that this process has, and is sent the
entries of those namespaces only that have changed. A commit first tries what mostly holds: that the head is still the one
that was loaded. The time is the server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from agent_gantry_state.errors import StoreError, StoreURLError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores.kept import KEY_BYTES, Kept
from agent_gantry_state.stores.network import CONNECT_SECONDS, TIMEOUTS, AsyncLink, Link, RemoteStore, driver
from agent_gantry_state.stores.options import count, flag, text
from agent_gantry_state.stores.postgresql_errors import MissingSchemaError
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
    Listed,
    Load,
    Loaded,
    Moved,
    Page,
    Release,
    Snapshot,
)
from agent_gantry_state.stores.rows import namespace_of, owned_by, place, to_bytes, to_owner
from agent_gantry_state.stores.urls import StoreURL
from agent_gantry_state.stores.whole import applied

with driver("postgresql"):
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    from agent_gantry_state.stores import postgresql_link as link
    from agent_gantry_state.stores import postgresql_rows as rows
    from agent_gantry_state.stores import postgresql_schema as schemas
    from agent_gantry_state.stores import postgresql_talk as talk
    from agent_gantry_state.stores import postgresql_wire as wire

__all__ = ["SCHEMA", "PostgreSQLStore", "check_schema", "from_url"]

SCHEMA: Final = "agent_gantry_state"
MAX_CONNECTIONS: Final = 16
#: After this many commits, up to `_SWEPT` of what is expired goes.
_SWEEP_EVERY, _SWEPT = 32, 64

#: What libpq may be told in a URL, and is told as it stands.
LIBPQ: Final = frozenset(
    {
        "application_name",
        "channel_binding",
        "dbname",
        "gssencmode",
        "gsslib",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "load_balance_hosts",
        "options",
        "passfile",
        "password",
        "port",
        "require_auth",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcertmode",
        "sslcompression",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "sslsni",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    }
)

_COMMITTED: Final = Committed()
_TRUE, _FALSE = b"\x01", b"\x00"


class PostgreSQLStore(RemoteStore):
    """Keeps memories in PostgreSQL 14 or newer, which any number of processes may share.

    Tables and functions are made in a schema of their own when they are first needed; who may not create them has
    ``python -m agent_gantry_state schema postgresql`` print the SQL.

    Args:
        conninfo: Where to connect: a postgresql:// URL or a connection string as libpq takes it; None with a pool.
        schema: The schema that holds the memories.
        synchronous_commit: False lets the server answer before a commit is on its disk: a crash of the server may take the
            last commits of somewhat more than half a second, and what is left is whole.
        prepare: Whether each connection prepares its statements once. Where that does not work, behind a pooler that gives
            each transaction another connection and knows nothing of it, the store notices and goes on without.
        max_connections: How many connections the callers that may block, and those of each event loop, have at most.
        pool: A `psycopg_pool.ConnectionPool` to be used by callers that may block; it stays open.
        apool: A `psycopg_pool.AsyncConnectionPool` to be used on the event loop that first meets it; it stays open.
        connect_timeout: Seconds that a new connection may take, within the time of the message that needs it.
        load_timeout: Seconds that everything but a commit may take.
        commit_timeout: Seconds that a commit or an erasure may take, with all its resends.

    Raises:
        ValueError: A value is out of range, *conninfo* cannot be read, or neither it nor a pool is given.
    """

    def __init__(
        self,
        conninfo: str | None = None,
        *,
        schema: str = SCHEMA,
        synchronous_commit: bool = True,
        prepare: bool = True,
        max_connections: int = MAX_CONNECTIONS,
        pool: Any = None,
        apool: Any = None,
        connect_timeout: float = CONNECT_SECONDS,
        load_timeout: float = LOAD_SECONDS,
        commit_timeout: float = COMMIT_SECONDS,
    ) -> None:
        self._schema = schema
        given, parameters = conninfo is not None, _parameters(conninfo or "")
        # What collects the variables of a traceback is to find no password.
        del conninfo
        if parameters is None:
            raise ValueError("PostgreSQLStore: conninfo is neither a postgresql:// URL nor a connection string")
        super().__init__(connect_timeout=connect_timeout, load_timeout=load_timeout, commit_timeout=commit_timeout)
        for name, handed, method in (("pool", pool, "getconn"), ("apool", apool, "getconn")):
            if handed is not None and not callable(getattr(handed, method, None)):
                kind = "ConnectionPool" if name == "pool" else "AsyncConnectionPool"
                raise TypeError(f"PostgreSQLStore: {name} must be a psycopg_pool.{kind}")
        if not given and pool is None and apool is None:
            raise ValueError("PostgreSQLStore needs to know where to connect: give conninfo, pool or apool")
        if max_connections < 1:
            raise ValueError("PostgreSQLStore: max_connections must be at least 1")
        self._server = talk.Server(parameters, self.connect_timeout, max_connections) if given else None
        check_schema(schema)
        self._pool, self._apool = pool, apool
        self._apool_loop: asyncio.AbstractEventLoop | None = None
        self._lazy = not synchronous_commit
        self._commits = 0
        self._latest = -math.inf
        #: By namespace its head and last touch, its snapshot as it was then (also what is expired), and its rough size.
        self._kept: Kept[Namespace, tuple[bytes, float, Snapshot, int]] = Kept()
        self._calls = {
            name: (text, types, b"agent_gantry_state_" + hashlib.sha256(text).hexdigest()[:24].encode() if prepare else b"")
            for name in schemas.FUNCTIONS
            for text, types in [schemas.call(schema, name)]
        }

    def __repr__(self) -> str:
        return f"<PostgreSQLStore schema={self._schema!r}>"

    def _connect(self) -> Link:
        if self._pool is not None:
            return link.Handed(self._pool)
        if self._server is None:
            raise StoreError(
                "PostgreSQLStore has a pool for one event loop only: give conninfo or pool= for callers elsewhere"
            )
        return link.Own(self._server)

    def _aconnect(self) -> AsyncLink | None:
        loop = asyncio.get_running_loop()
        if self._apool is not None and self._apool_loop in (None, loop):
            self._apool_loop = loop
            return link.HandedAsync(self._apool)
        # Windows' own event loop cannot wait for libpq's sockets.
        if self._server is None or (sys.platform == "win32" and isinstance(loop, asyncio.ProactorEventLoop)):
            return None
        return link.OwnAsync(self._server)

    # What is asked.

    def _ask(self, function: str, *values: bytes | None) -> Steps[Any]:
        text, types, name = self._calls[function]
        query = talk.Query(text, types, values, name)
        try:
            result = yield query  # type: ignore[misc]
        except MissingSchemaError:
            yield from self._install()
            result = yield query  # type: ignore[misc]
        return result

    def _install(self) -> Steps[None]:
        """Make the schema, or say why it cannot be used."""
        try:
            yield talk.Query(schemas.install(self._schema))  # type: ignore[misc]
        except StoreError as error:
            if error.transient:
                raise
            refused = error
        else:
            return
        try:
            result = yield talk.Query(schemas.layout_of(self._schema))  # type: ignore[misc]
        except StoreError:
            result = None
        if result is not None and result.ntuples and int(result.get_value(0, 0)) > schemas.LAYOUT:
            raise StoreError(
                f"PostgreSQL: schema {self._schema!r} is of a newer version of agent-gantry-state (layout "
                f"{int(result.get_value(0, 0))}, this one knows {schemas.LAYOUT}): upgrade the package; nothing was changed"
            )
        how = "" if self._schema == SCHEMA else f" --schema {self._schema}"
        raise StoreError(
            f"PostgreSQL: the tables of schema {self._schema!r} are not there, and this role could not make them. Have "
            f"somebody who may run what this prints: python -m agent_gantry_state schema postgresql{how} ({refused})"
        )

    def _which_server(self, message: object) -> Steps[str]:
        result = yield talk.Query(b"SHOW server_version")  # type: ignore[misc]
        return f"PostgreSQL {result.get_value(0, 0).decode(errors='replace')}"

    def _time(self) -> bytes | None:
        """The time by which the server is to go, None for its own."""
        return None if self.clock is None else wire.packed_float(self._not_before(self.clock()))

    def unaged(self) -> PostgreSQLStore:
        twin = super().unaged()
        twin._latest = -math.inf
        return twin

    def _not_before(self, now: float) -> float:
        """*now*, or the latest time that was seen: what was gone stays gone when a clock is set back."""
        if now < self._latest:
            return self._latest
        self._latest = now
        return now

    def _load(self, message: Load) -> Steps[Loaded]:
        namespaces = message.namespaces
        if not namespaces:
            return Loaded((), max(self._latest, 0.0))
        if message.keys is not None and any(keys is not None for keys in message.keys):
            return (yield from self._choose(message, message.keys))
        kept = [self._kept.get(namespace) for namespace in namespaces]
        result = yield from self._ask(
            "load_1",
            wire.bytes_array([place(namespace)[0] for namespace in namespaces]),
            wire.bytes_array([None if each is None else each[0] for each in kept]),
            wire.float_array([None if each is None else each[1] for each in kept]),
            self._time(),
        )
        get = result.get_value
        # Mostly one that is not there, or is the one that is kept.
        starts = [0, 1] if len(namespaces) == result.ntuples == 1 else rows.starts(result, len(namespaces))
        now = self._not_before(wire.to_float(get(0, rows.NOW)))
        snapshots = []
        for index, (namespace, known) in enumerate(zip(namespaces, kept, strict=True)):
            start, end = starts[index], starts[index + 1]
            head = get(start, rows.VERSION)
            if head is None:
                self._kept.drop(namespace)
                snapshots.append(EMPTY)
            elif known is not None and get(start, rows.RECORD) is None and head == known[0]:
                snapshots.append(known[2].live(now))
            else:
                snapshot, size = rows.made(result, start, end, namespace)
                self._keep(namespace, snapshot, size)
                snapshots.append(snapshot.live(now))
        return Loaded(tuple(snapshots), now)

    def _choose(self, message: Load, keys: Sequence[tuple[str, ...] | None]) -> Steps[Loaded]:
        wanted = [None if each is None else [rows.filed(key)[0] for key in dict.fromkeys(each)] for each in keys]
        result = yield from self._ask(
            "choose_1",
            wire.bytes_array([place(namespace)[0] for namespace in message.namespaces]),
            wire.bytes_array([key for each in wanted for key in each or ()]),
            wire.int_array(tuple([-1 if each is None else len(each) for each in wanted])),
            wire.int_array((int(message.names),) * len(wanted)),
            self._time(),
        )
        snapshots = rows.chosen(result, message.namespaces, [each is None for each in wanted])
        now = self._not_before(wire.to_float(result.get_value(0, rows.NOW)))
        return Loaded(tuple([snapshot.live(now) for snapshot in snapshots]), now)

    def _keep(self, namespace: Namespace, snapshot: Snapshot, size: int) -> None:
        if snapshot.head is None:
            self._kept.drop(namespace)
        else:
            self._kept.keep(namespace, (snapshot.head, snapshot.touched, snapshot, size), size)

    def _commit(self, message: Commit) -> Steps[Committed | Moved]:
        # All lock namespaces in this order, so that none waits for another that waits for it.
        changes = sorted(message.changes, key=_by_digest)
        if not changes:
            return _COMMITTED
        self._commits += 1
        result = yield from self._ask(
            "commit_1",
            self._time(),
            message.token,
            message.version,
            _TRUE if self._lazy else _FALSE,
            _lock_wait(message.timeout),
            wire.packed_int(_SWEPT if self._commits % _SWEEP_EVERY == 1 else 0),
            *rows.written(changes),
        )
        get = result.get_value
        now = wire.to_float(get(0, rows.NOW))
        done = wire.to_int(get(0, rows.PLACE))
        if done == 0:
            self._follow(changes[0], message.version, now)
        if done < 1:
            return _COMMITTED
        snapshots = rows.chosen(result, [change.namespace for change in changes], [False] * len(changes))
        there = {change.namespace: snapshot for change, snapshot in zip(changes, snapshots, strict=True)}
        return Moved(tuple([there[change.namespace] for change in message.changes]), self._not_before(now))

    def _follow(self, change: Change, version: bytes, now: float) -> None:
        """Keep what a namespace is after a change that landed, so that it need not be read again."""
        kept = self._kept.get(change.namespace)
        if kept is None or kept[0] != change.head:
            return
        _, _, snapshot, size = kept
        size += sum([len(put.packed) + KEY_BYTES for put in change.puts.values()])
        self._keep(change.namespace, applied(change, snapshot.live(now), version, lambda: now), size)

    def _forget(self, message: Forget) -> Steps[None]:
        digests = sorted({place(namespace)[0] for namespace in message.namespaces})
        yield from self._ask("forget_1", wire.bytes_array(digests), _lock_wait(message.timeout))
        for namespace in message.namespaces:
            self._kept.drop(namespace)

    def _list(self, message: List) -> Steps[Page]:
        wanted = [None if each is None else to_bytes(each) for each in (message.app, message.scope)]
        wanted.append(None if message.owner is None else owned_by(message.owner))
        limit = wire.packed_int(message.limit + 1)
        result = yield from self._ask("list_1", message.after or b"", *wanted, limit, self._time())
        get, count = result.get_value, min(result.ntuples, message.limit)
        listed = [Listed(namespace_of(get(row, 1), rows.WHERE), to_owner(get(row, 2), rows.WHERE)) for row in range(count)]
        return Page(tuple(listed), get(count - 1, 0) if result.ntuples > count > 0 else None)

    def _lease(self, message: Lease) -> Steps[float]:
        digest, ttl = place(message.namespace)[0], wire.packed_float(message.ttl)
        result = yield from self._ask("lease_1", digest, message.holder, ttl, self._time())
        return wire.to_float(result.get_value(0, 0))

    def _release(self, message: Release) -> Steps[None]:
        yield from self._ask("release_1", place(message.namespace)[0], message.holder)


def _lock_wait(timeout: float) -> bytes:
    """Milliseconds that the server may wait for a lock: less than the caller does, who then hears that nothing was done."""
    # 0 would be no limit.
    return wire.packed_int(min(max(math.ceil(timeout * 750), 1), 2**31 - 1))


def check_schema(name: str) -> str:
    """*name*, which is to be a schema's.

    Raises:
        ValueError: PostgreSQL would cut it off or refuse it, or it could end the text of a function.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= 63 or "\0" in name or "$" in name:
        raise ValueError("PostgreSQLStore: schema must be a name of 1 to 63 bytes, without $")
    return name


def _by_digest(change: Change) -> bytes:
    return change.namespace.digest


# The URL.


def _parameters(conninfo: str) -> talk.Parameters | None:
    """libpq's parameters in *conninfo*; None if it cannot be read: the driver's error shows what it was given."""
    with contextlib.suppress(psycopg.Error):
        return talk.Parameters({name: str(value) for name, value in conninfo_to_dict(conninfo).items()})
    return None


def from_url(url: StoreURL) -> PostgreSQLStore:
    """The store that a postgresql:// URL names."""
    known: dict[str, Callable[[str], Any]] = {
        **TIMEOUTS,
        "schema": text,
        "synchronous_commit": flag,
        "prepare": flag,
        "max_connections": count,
        **dict.fromkeys(LIBPQ, text),
    }
    options = url.read(known)
    given = talk.Parameters({name: options.pop(name) for name in [*options] if name in LIBPQ})
    parameters = _parameters(f"postgresql://{url.parts.netloc}{url.parts.path}")
    if parameters is None:
        raise StoreURLError(f"{url.parts.scheme}://: libpq cannot read its user, password, hosts or database")
    said = "libpq does not take one of its parameters"
    try:
        with contextlib.suppress(psycopg.Error):
            return PostgreSQLStore(parameters.having(**given.values).text(), **options)
    except ValueError as error:
        said = str(error)
    raise StoreURLError(f"{url.parts.scheme}://: {said}")
