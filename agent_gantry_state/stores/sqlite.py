"""Memories in one SQLite file, for the processes of one machine.

A namespace is a row that stands right before the rows of its keys, so that a commit mostly writes one page. A load asks
whether another process has written to the file since the snapshot was made which this one has, and if so whether the head is
still the same, and reads the namespace only if it is not. A commit is one transaction, which first tries what mostly holds:
that the head is still the one that was loaded. All that tells people apart is kept as bytes, exactly as it came.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard

from agent_gantry_state import codec
from agent_gantry_state.errors import StoreError, StoreURLError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.clock import Clocked
from agent_gantry_state.stores.kept import KEY_BYTES, Kept
from agent_gantry_state.stores.options import Option, check_timeouts, one_of, seconds
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
    Message,
    Moved,
    Page,
    Put,
    Release,
    Snapshot,
    Ttl,
    WouldBlock,
)
from agent_gantry_state.stores.rows import namespace_of, owned_by, place, sealed, to_bytes, to_owner, to_text, values_of
from agent_gantry_state.stores.sqlite_file import Execute, SQLiteFile
from agent_gantry_state.stores.urls import StoreURL
from agent_gantry_state.stores.whole import applied, assigned

__all__ = ["SQLiteStore", "from_url"]

#: Head, greatest position, first expiry and last touch of a namespace.
Mark = tuple[bytes, int, float | None, float]

#: Number of the layout below. A file with a greater one is refused.
LAYOUT: Final = 1
#: Seconds for which a commit that landed is remembered, so that it can be sent again.
TOKEN_SECONDS: Final = 60.0
#: After this many commits, up to `_SWEPT` of what is expired goes.
_SWEEP_EVERY, _SWEPT = 64, 128

# The row of a namespace itself is the one whose key is the number 0; those of its keys are bytes, and sort behind it. Its
# `version` is the head, its `position` the greatest one given out, its `slides` the time of the last touch, its `record`
# the address; none of its keys expires before its `expires_at`, NULL if none does, which may be too early. `born`, `owner`,
# `app` and `scope` are a namespace's only.
# The record comes last, so that nothing else has to be looked for behind a long one.
_SCHEMA: Final = (
    """CREATE TABLE entry (
        digest BLOB NOT NULL,
        key BLOB NOT NULL,
        version BLOB NOT NULL,
        position INTEGER NOT NULL,
        expires_at REAL,
        slides REAL,
        born BLOB,
        owner BLOB,
        app BLOB,
        scope BLOB,
        record BLOB NOT NULL,
        PRIMARY KEY (digest, key)
    ) WITHOUT ROWID""",
    "CREATE TABLE token (token BLOB NOT NULL PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE lease (digest BLOB NOT NULL PRIMARY KEY, holder BLOB NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX namespace ON entry (digest) WHERE key = 0",
    "CREATE INDEX namespace_owner ON entry (owner) WHERE owner IS NOT NULL",
    "CREATE INDEX namespace_first ON entry (expires_at) WHERE key = 0 AND expires_at IS NOT NULL",
    "CREATE INDEX token_until ON token (until)",
    "CREATE INDEX lease_until ON lease (until)",
)

# What changes whenever anything in a namespace does.
_MARK = "SELECT version, position, expires_at, slides FROM entry WHERE digest = ? AND key = 0"
_ROW = "SELECT key, version, position, expires_at, slides, record, born, owner FROM entry WHERE digest = ?"
# A namespace and its keys in one statement, so that they are of one moment.
_LOAD = _ROW + " ORDER BY key"
_HEADER = _ROW + " AND key = 0"
_ENTRY = _ROW + " AND key = ?"
_KEYS = "SELECT key, version, position, expires_at, slides FROM entry WHERE digest = ? AND key > 0"
_POSITION = itemgetter(2)
#: For errors.
_WHERE: Final = "the SQLite database"

# Of the namespace whose head is still the one that was loaded, and in which nothing is expired.
_TAKE_HEAD = """
    UPDATE entry SET version = ?, position = position + ?
    WHERE digest = ? AND key = 0 AND version = ? AND (expires_at IS NULL OR expires_at > ?)"""
# The same, where keys get a time to expire at, or the time of those that slide begins anew.
_TAKE_HEAD_AND_TIME = """
    UPDATE entry
    SET version = ?, position = position + ?, expires_at = min(coalesce(expires_at, ?), ?), slides = max(slides, ?)
    WHERE digest = ? AND key = 0 AND version = ? AND (expires_at IS NULL OR expires_at > ?) AND slides <= ?"""
_STATE = "SELECT version, position, slides, expires_at, born, owner FROM entry WHERE digest = ? AND key = 0"
_NEW = """
    INSERT INTO entry (version, position, slides, expires_at, born, owner, digest, app, scope, record, key)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)"""
_NEXT = """
    UPDATE entry SET version = ?, position = ?, slides = ?, expires_at = ?, owner = ? WHERE digest = ? AND key = 0"""
_FIRST = "UPDATE entry SET expires_at = ? WHERE digest = ? AND key = 0"
_TOUCH = "UPDATE entry SET slides = ?, expires_at = ? WHERE digest = ? AND key = 0"
_FORGET = "DELETE FROM entry WHERE digest = ?"

_DELETE = "DELETE FROM entry WHERE digest = ? AND key = ?"
# Of a put: with the position after those of its namespace that are taken, or with a given one; whether a key that is there
# moves there; and whether its expiry changes.
_INSERT = "INSERT INTO entry (digest, key, version, record, expires_at, slides, position) VALUES (?, ?, ?, ?, ?, ?, "
_AFTER = "(SELECT position FROM entry WHERE digest = ? AND key = 0) - ?)"
_GIVEN = "?)"
_UPDATE = " ON CONFLICT (digest, key) DO UPDATE SET version = excluded.version, record = excluded.record"
_MOVE = ", position = excluded.position"
_EXPIRY = ", expires_at = excluded.expires_at, slides = excluded.slides"
_PUT = {
    (after, move, expiry): _INSERT
    + (_AFTER if after else _GIVEN)
    + _UPDATE
    + (_MOVE if move else "")
    + (_EXPIRY if expiry else "")
    for after in (False, True)
    for move in (False, True)
    for expiry in (False, True)
}

# Of a put to a key that is there and keeps its place.
_REPLACE = {
    False: "UPDATE entry SET version = ?, record = ? WHERE digest = ? AND key = ?",
    True: "UPDATE entry SET version = ?, record = ?, expires_at = ?, slides = ? WHERE digest = ? AND key = ?",
}

# Puts a record in the place of another, in a namespace in which nothing expires, and gives that a new head. If it has not
# the old one any more, or there is no such key, nothing is done. A statement by itself, for there is much to each.
_ASSIGNED: Final = (
    "CREATE TEMP VIEW assignment AS SELECT version, record, version AS head, digest, key FROM entry",
    """CREATE TEMP TRIGGER assigned INSTEAD OF INSERT ON assignment BEGIN
        UPDATE entry SET version = NEW.version WHERE digest = NEW.digest AND key = 0 AND version = NEW.head;
        UPDATE entry SET version = NEW.version, record = NEW.record
            WHERE changes() AND digest = NEW.digest AND key = NEW.key;
        SELECT RAISE(ABORT, 'moved') WHERE NOT changes();
    END""",
)
_ASSIGN, _MORE = "INSERT INTO assignment VALUES (?, ?, ?, ?, ?)", ", (?, ?, ?, ?, ?)"
#: So many of them in one statement; more go in a transaction of several.
_AT_ONCE: Final = 16

# The time at which a key expires, as `Snapshot.deadline` has it; ? is when its namespace was last touched.
_PRUNE = "DELETE FROM entry WHERE digest = ? AND key > 0 AND coalesce(? + slides, expires_at) <= ?"
_LEFT = "SELECT count(*), min(coalesce(? + slides, expires_at)) FROM entry WHERE digest = ? AND key > 0"

_SEEN = "SELECT 1 FROM token WHERE token = ? AND until > ?"
_KEEP_TOKEN = "INSERT OR REPLACE INTO token (token, until) VALUES (?, ?)"  # noqa: S105
_SWEEP = (
    "DELETE FROM token WHERE token IN (SELECT token FROM token WHERE until <= ? LIMIT ?)",
    "DELETE FROM lease WHERE digest IN (SELECT digest FROM lease WHERE until <= ? LIMIT ?)",
)
_DUE = "SELECT digest FROM entry WHERE key = 0 AND expires_at <= ? LIMIT ?"

_LIST = """
    SELECT digest, record, owner FROM entry AS namespace
    WHERE key = 0 AND digest > ?
        AND (expires_at IS NULL OR expires_at > ?
            OR NOT EXISTS (SELECT 1 FROM entry WHERE entry.digest = namespace.digest AND entry.key > 0)
            OR EXISTS (
                SELECT 1 FROM entry WHERE entry.digest = namespace.digest AND entry.key > 0
                    AND coalesce(coalesce(namespace.slides + entry.slides, entry.expires_at) > ?, 1)
            ))"""
_OF = {"app": " AND app = ?", "scope": " AND scope = ?", "owner": " AND owner = ?"}
_IN_ORDER = " ORDER BY digest LIMIT ?"

#: How bytes are given to the driver: for all types but this, str, int and float it looks for an adapter first, which takes
#: longer than anything else that it does with them.
_blob = bytearray
#: Longer names are not kept: a cache of them would be without bound.
_SHORT: Final = 128


#: Of what was not read by the handle that knows it.
_NO_ERA: Final = -1
#: Bytes by which a namespace may grow before it is counted anew.
_UNCOUNTED: Final = 1024

_COMMITTED = Committed()
#: The same, where nothing had happened to the namespace since it was loaded.
_IN_PLACE = Committed()


def _name(key: str) -> bytearray:
    """A key as it is stored."""
    return _blob(to_bytes(key))


_short_name = lru_cache(maxsize=4096)(_name)


class _Known:
    """What this process knows of a namespace.

    Attributes:
        digest: Under which it is filed.
        state: Its mark, its snapshot as it was then, with what has expired since, and the era of the file in which that was
            so, `_NO_ERA` if that is not known; exchanged as one.
        size: About how large it is.
        counted: What of that is counted where it is kept.
    """

    __slots__ = ("counted", "digest", "size", "state")

    def __init__(self, digest: bytes | bytearray, state: tuple[Mark, Snapshot, int], size: int) -> None:
        self.digest = _blob(digest)
        self.state = state
        self.size = self.counted = size


class SQLiteStore(Clocked):
    """Keeps memories in a SQLite file, which the processes of one machine may share.

    Nothing is opened or made before it is first needed.

    Args:
        path: The file, relative to the directory of now; ":memory:" for a database of this store alone that is gone when it
            is closed. A file that is not there is made, readable by its owner only. Its directory is not.
        synchronous: What a power failure may take: "normal" the last commits, "full" nothing, at the price that each
            commit waits for the disk. A crash of the program takes nothing in either case, and what is left is always whole.
        clock: Gives the time in seconds since the epoch, by which keys expire.
        load_timeout: Seconds that a call may wait for other processes before it reads.
        commit_timeout: Seconds that it may wait for them before it writes.

    Raises:
        ValueError: *synchronous* is neither, a time is not positive, or the path is empty.
        StoreUnavailableError: Python's SQLite is older than 3.35.
    """

    inline = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        synchronous: Literal["normal", "full"] = "normal",
        clock: Callable[[], float] = time.time,
        load_timeout: float = LOAD_SECONDS,
        commit_timeout: float = COMMIT_SECONDS,
    ) -> None:
        check_timeouts(self, load_timeout=load_timeout, commit_timeout=commit_timeout)
        self.load_timeout, self.commit_timeout = load_timeout, commit_timeout
        if synchronous not in ("normal", "full"):
            raise ValueError("SQLiteStore: synchronous must be 'normal' or 'full'")
        path = os.fspath(path)
        if not path or "\0" in path:
            raise ValueError("SQLiteStore: path must be that of a file")
        where = None if path == ":memory:" else Path(os.path.abspath(path))  # noqa: PTH100 - with its symbolic links
        self._file = SQLiteFile(where, synchronous == "full", LAYOUT, _SCHEMA, _ASSIGNED)
        self._glance, self._read, self._write = self._file.glance, self._file.read, self._file.write
        super().__init__(clock)
        self._commits = 0
        self._kept: Kept[Namespace, _Known] = Kept()
        self._answers = {
            Load: self._load,
            Commit: self._commit,
            Forget: self._forget,
            List: self._list,
            Lease: self._lease,
            Release: self._release,
        }

    def server_version(self) -> str:
        """Which SQLite Python has."""
        return f"SQLite {sqlite3.sqlite_version}"

    @property
    def path(self) -> Path | None:
        """The file; None for a database in memory."""
        return self._file.path

    def __repr__(self) -> str:
        return f"<SQLiteStore {':memory:' if self._file.path is None else self._file.path.name}>"

    def load(self, message: Load, /) -> Loaded:
        """Answer a `Load`."""
        return self._load(message, time.monotonic() + message.timeout)

    def commit(self, message: Commit, /) -> Committed | Moved:
        """Answer a `Commit`."""
        return self._commit(message, time.monotonic() + message.timeout)

    def forget(self, message: Forget, /) -> None:
        """Answer a `Forget`."""
        self._forget(message, time.monotonic() + message.timeout)

    def list(self, message: List, /) -> Page:
        """Answer a `List`."""
        return self._list(message, time.monotonic() + message.timeout)

    def lease(self, message: Lease, /) -> float:
        """Answer a `Lease`."""
        return self._lease(message, time.monotonic() + message.timeout)

    def release(self, message: Release, /) -> None:
        """Answer a `Release`."""
        self._release(message, time.monotonic() + message.timeout)

    def attempt(self, message: Message, /) -> Any:
        """Answer a message without waiting for anybody, or for the disk to be in step.

        Raises:
            WouldBlock: It would have to wait.
        """
        return self._answers[type(message)](message, None)

    def close(self) -> None:
        """Close the file; a call that is at it comes to its end first."""
        self._file.close()
        self._kept.clear()

    def attempt_whole(self, namespace: Namespace) -> Snapshot | None:
        """A namespace of which none of the keys expires, if this process knows how it stands without reading it."""
        known = self._kept.get(namespace)
        if known is None:
            return None
        (_, _, first, _), snapshot, era = known.state
        if first is not None:
            return None
        try:
            return snapshot if self._glance(_era, None, None, True) == era else None
        except WouldBlock:
            return None

    def attempt_values(
        self,
        namespace: Namespace,
        base: Snapshot,
        values: dict[str, Any],
        packed: dict[str, bytes],
        version: bytes,
        max_bytes: float,
    ) -> bool:
        """Commit small plain values, and containers, to keys that are there, without a message and without waiting.

        Args:
            namespace: Whose they are.
            base: The namespace as it was loaded, whole; none of its keys expires.
            values: The values to write; None for a container. None is written where one is.
            packed: The bytes of each container.
            version: The new head, and the version of each key written.
            max_bytes: How large the namespace may be.

        Returns:
            Whether it did; if not, nothing was done: it is not as it was loaded, or somebody else writes.
        """
        known, count = self._kept.get(namespace), len(values)
        # When it is time to look for what is expired, the next commit does that in its transaction.
        if known is None or count > _AT_ONCE or not self._commits % _SWEEP_EVERY:
            return False
        (head, last, first, touched), snapshot, _ = known.state
        if snapshot is not base or first is not None:
            return False
        after = assigned(base, values, packed, version, max_bytes)
        if after is None:
            return False
        there, new, size = base.values, _blob(version), 0
        parameters: list[Any] = []
        seen: bytes | bytearray = _blob(head)
        for key, value in values.items():
            if key not in there:
                return False
            record = codec.FORMAT + (packed[key] if key in packed else codec.pack(value))
            name = _short_name(key) if len(key) <= _SHORT else _name(key)
            parameters += (new, _blob(sealed(name, record)), seen, known.digest, name)
            seen = new
            size += len(record)
        statement = _ASSIGN if count == 1 else _ASSIGN + _MORE * (count - 1)
        message = namespace, known, ((new, last, None, touched), after), size
        return self._file.attempt(statement, parameters, 1 + (size >> 12), self._go_on, message)

    def _go_on(self, message: Any) -> bool:
        """Know what was assigned."""
        known: _Known
        namespace, known, (mark, after), size = message
        self._commits += 1
        if known is not self._kept.get(namespace):
            return False
        known.state = mark, after, self._file.era
        known.size += size
        if known.size > known.counted + _UNCOUNTED:
            known.counted = known.size
            self._kept.keep(namespace, known, known.size)
        return True

    def _load(self, message: Load, deadline: float | None) -> Loaded:
        namespaces, keys = message.namespaces, message.keys
        known = len(namespaces) == 1 and (keys is None or keys[0] is None) and namespaces[0] in self._kept
        return self._glance(self._loaded, message, deadline, known)

    def _commit(self, message: Commit, deadline: float | None) -> Committed | Moved:
        return self._write(self._committed, message, deadline, self._follow)

    def _forget(self, message: Forget, deadline: float | None) -> None:
        self._write(_forgotten, message, deadline)
        for namespace in message.namespaces:
            self._kept.drop(namespace)

    def _list(self, message: List, deadline: float | None) -> Page:
        return self._read(self._listed, message, deadline)

    def _lease(self, message: Lease, deadline: float | None) -> float:
        return self._write(self._leased, message, deadline)

    def _release(self, message: Release, deadline: float | None) -> None:
        self._write(_released, message, deadline)

    # What is done with the file, by somebody who has a handle to it.

    def _loaded(self, execute: Execute, message: Load, era: int = _NO_ERA) -> Loaded:
        namespaces, keys = message.namespaces, message.keys
        if len(namespaces) == 1 and (keys is None or keys[0] is None):
            # A statement by itself is of one moment.
            snapshot = self._snapshot(execute, namespaces[0], era)
            return Loaded((snapshot.live(now := self.now()),), now)
        execute("BEGIN")
        # Before the first read, so that nothing in it is younger than the moment that is answered.
        now = self.now()
        snapshots = [
            # A look at the file would have been before this moment.
            self._snapshot(execute, namespace, _NO_ERA).live(now)
            if wanted is None
            else _chosen(execute, namespace, wanted, message.names, now)
            for namespace, wanted in zip(namespaces, keys or [None] * len(namespaces), strict=True)
        ]
        execute("COMMIT")
        return Loaded(tuple(snapshots), now)

    def _snapshot(self, execute: Execute, namespace: Namespace, era: int) -> Snapshot:
        """The namespace with all its keys, also those that are expired."""
        known = self._kept.get(namespace)
        if known is not None:
            mark, snapshot, known_in = known.state
            if known_in == era != _NO_ERA:
                return snapshot
            if execute(_MARK, (known.digest,)).fetchone() == mark:
                if era != _NO_ERA:
                    known.state = mark, snapshot, era
                return snapshot
        digest, address = place(namespace)
        rows = execute(_LOAD, (_blob(digest),)).fetchall()
        if not rows:
            self._kept.drop(namespace)
            return EMPTY
        header, *entries = rows
        entries.sort(key=_POSITION)
        snapshot = _made(header, entries, address, None)
        size = sum([len(row[0]) + len(row[5]) for row in entries]) + KEY_BYTES * len(entries)
        self._kept.keep(namespace, _Known(digest, (header[1:5], snapshot, era), size), size)
        return snapshot

    def _follow(self, message: Commit, answer: Committed | Moved) -> bool:
        """Keep what a namespace is after a change that landed, so that it need not be read again; whether that is done."""
        if answer is not _IN_PLACE:
            return False
        change, version = message.changes[0], message.version
        namespace, puts = change.namespace, change.puts
        known = self._kept.get(namespace)
        if known is None:
            return True
        ((head, last, first, touched), snapshot, _), size = known.state, known.size
        if head != change.head or first is not None or change.touch:
            return False
        for put in puts.values():
            if put.ttl is not KEEP and _is_time(put.ttl):
                # When the first of them expires is not told without reading.
                return False
            size += len(put.packed) + KEY_BYTES
        mark = version, last + len(puts), None, touched
        state = mark, applied(change, snapshot, version, self.now), self._file.era
        self._kept.keep(namespace, _Known(known.digest, state, size), size)
        return True

    def _committed(self, execute: Execute, message: Commit) -> tuple[Committed | Moved, int]:
        now, token, changes = self.now(), message.token, message.changes
        if token and execute(_SEEN, (token, now)).fetchone():
            return _COMMITTED, 0
        pages = 0
        if len(changes) == 1:
            pages = _overwrite(execute, changes[0], message.version, now)
        answer = _IN_PLACE if pages else _COMMITTED
        if not pages:
            states = [_state(execute, place(change.namespace)[0], now) for change in changes]
            for change, state in zip(changes, states, strict=True):
                if _head(state) != change.head and _moved(execute, change, state):
                    # What is expired was just deleted, so that it need not be looked for; the transaction is taken back.
                    return Moved(tuple([_as_it_stands(execute, change) for change in changes]), now), 0
            for change, state in zip(changes, states, strict=True):
                pages += _apply(execute, change, state, message.version, now)
        if token and pages:
            execute(_KEEP_TOKEN, (token, now + TOKEN_SECONDS))
            pages += 2
        if pages:
            pages += self._swept(execute)
        return answer, pages

    def _swept(self, execute: Execute) -> int:
        """Count a commit, after some of which what is expired goes; the pages that takes."""
        self._commits += 1
        if self._commits % _SWEEP_EVERY != 1:
            return 0
        pages = _sweep(execute, self.now())
        if pages:
            self._file.era += 1
        return pages

    def _listed(self, execute: Execute, message: List) -> Page:
        now = self.now()
        statement, parameters = _LIST, [message.after or b"", now, now]
        for name, text in (("app", message.app), ("scope", message.scope), ("owner", message.owner)):
            if text is not None:
                statement += _OF[name]
                parameters.append(owned_by(text) if name == "owner" else to_bytes(text))
        rows = execute(statement + _IN_ORDER, (*parameters, message.limit + 1)).fetchall()
        page = rows[: message.limit]
        listed = tuple([Listed(namespace_of(address, _WHERE), to_owner(owner, _WHERE)) for _, address, owner in page])
        return Page(listed, page[-1][0] if len(rows) > len(page) else None)

    def _leased(self, execute: Execute, message: Lease) -> tuple[float, int]:
        now, digest = self.now(), message.namespace.digest
        found = execute("SELECT holder, until FROM lease WHERE digest = ?", (digest,)).fetchone()
        if found is not None and found[0] != message.holder and found[1] > now:
            return found[1] - now, 0
        execute(
            "INSERT OR REPLACE INTO lease (digest, holder, until) VALUES (?, ?, ?)",
            (digest, message.holder, now + message.ttl),
        )
        return 0.0, 2


def _forgotten(execute: Execute, message: Forget) -> tuple[None, int]:
    pages = 0
    for namespace in message.namespaces:
        pages += execute(_FORGET, (namespace.digest,)).rowcount
    return None, pages


def _released(execute: Execute, message: Release) -> tuple[None, int]:
    parameters = (message.namespace.digest, message.holder)
    return None, execute("DELETE FROM lease WHERE digest = ? AND holder = ?", parameters).rowcount


# Reading.


def _era(_: Execute, __: Any, era: int = _NO_ERA) -> int | None:
    return None if era == _NO_ERA else era


def _chosen(execute: Execute, namespace: Namespace, wanted: Sequence[str], names: bool, now: float) -> Snapshot:
    """The namespace with those of its keys that are wanted and not expired."""
    there, address = place(namespace)
    digest = _blob(there)
    header = execute(_HEADER, (digest,)).fetchone()
    if header is None:
        return EMPTY
    first, touched = header[3:5]
    versions, until = None, math.inf
    if names or first is not None:
        # Some expire: they all have to be seen, for with the last of them the namespace is gone.
        every = execute(_KEYS, (digest,)).fetchall()
        left = [row for row in every if _is_live(row, touched, now)]
        if every and not left:
            return EMPTY
        until = max([_deadline(row, touched) for row in left], default=math.inf)
        left.sort(key=_POSITION)
        if names:
            versions = {to_text(row[0], _WHERE): row[1] for row in left}
    rows = []
    for key in dict.fromkeys(wanted):
        row = execute(_ENTRY, (digest, _name(key))).fetchone()
        if row is not None and _is_live(row, touched, now):
            rows.append(row)
    rows.sort(key=_POSITION)
    return _made(header, rows, address, versions, until)


def _is_live(row: Sequence[Any], touched: float, now: float) -> bool:
    return _deadline(row, touched) > now


def _deadline(row: Sequence[Any], touched: float) -> float:
    """When a key expires; infinite if it does not."""
    _, _, _, expires_at, slides, *_ = row
    if slides is not None:
        return float(touched + slides)
    return math.inf if expires_at is None else float(expires_at)


def _made(
    header: Any, rows: Sequence[Any], address: bytes, versions: dict[str, bytes] | None, until: float | None = None
) -> Snapshot:
    _, head, _, _, touched, there, born, owner = header
    if there != address:
        raise StoreError(
            "the SQLite database answered with the memory of another namespace: its file is damaged, or was changed by hand"
        )
    seen: dict[str, bytes] = {}
    expires: dict[str, float] = {}
    sliding: dict[str, float] = {}
    records: list[Any] = []
    for key, version, _, expires_at, slides, record, _, _ in rows:
        name = to_text(key, _WHERE)
        records.append(record)
        seen[name] = version
        if slides is not None:
            sliding[name] = slides
        elif expires_at is not None:
            expires[name] = expires_at
    values, packed = values_of([*seen], records, _WHERE)
    versions = seen if versions is None else versions
    return Snapshot(values, packed, versions, head, to_owner(owner, _WHERE), expires, sliding, touched, born, until)


# Writing, inside a transaction. Each gives how many pages it has written, roughly.


def _overwrite(execute: Execute, change: Change, version: bytes, now: float) -> int:
    """Write the usual change: of a namespace that is as it was loaded, and in which nothing has to go before.

    Gives 0, and has done nothing, where it is another one.
    """
    puts, touch, head = change.puts, change.touch, change.head
    if head is None or change.owner is not None or not (puts or change.deletes):
        return 0
    first, timed = math.inf, touch
    for put in puts.values():
        if put.ttl is not KEEP and _is_time(put.ttl):
            if put.slides and not touch:
                return 0
            timed = True
            first = min(first, now + put.ttl)
    digest, new, left = _blob(place(change.namespace)[0]), _blob(version), len(puts)
    parameters: tuple[Any, ...]
    if timed:
        due = None if first == math.inf else first
        parameters = (new, left, due, first, now if touch else -math.inf, digest, _blob(head), now, now)
        taken = execute(_TAKE_HEAD_AND_TIME, parameters)
    else:
        taken = execute(_TAKE_HEAD, (new, left, digest, _blob(head), now))
    if not taken.rowcount:
        return 0
    # Mostly the namespace and its keys are on one.
    pages = 1
    for key in change.deletes:
        execute(_DELETE, (digest, _name(key)))
    seen = change.checks
    for key, put in puts.items():
        left -= 1
        name = _name(key)
        record = _blob(sealed(name, put.record))
        pages += len(record) >> 12
        expiry: tuple[Any, ...] = () if put.ttl is KEEP else _expiry(put, now)
        if not put.last and seen.get(key) is not None:
            parameters = (new, record, *expiry, digest, name) if expiry else (new, record, digest, name)
            if execute(_REPLACE[bool(expiry)], parameters).rowcount:
                continue
        execute(_PUT[True, put.last, bool(expiry)], (digest, name, new, record, *(expiry or (None, None)), digest, left))
    return pages


def _is_time(ttl: Ttl) -> TypeGuard[float]:
    return ttl is not KEEP and ttl is not None


def _expiry(put: Put, now: float) -> tuple[float | None, float | None]:
    """What a put that does not keep them sets `expires_at` and `slides` to."""
    if not _is_time(put.ttl):
        return None, None
    ttl = float(put.ttl)
    return (None, ttl) if put.slides else (now + ttl, None)


def _state(execute: Execute, digest: bytes, now: float) -> Any:
    """What a namespace's row says, after what is expired in it was deleted; None if there is no such namespace."""
    state = execute(_STATE, (digest,)).fetchone()
    if state is None or state[3] is None or state[3] > now:
        return state
    return _pruned(execute, digest, state, now)


def _pruned(execute: Execute, digest: bytes, state: Any, now: float) -> Any:
    head, last, touched, _, born, owner = state
    gone = execute(_PRUNE, (digest, touched, now)).rowcount
    count, first = execute(_LEFT, (touched, digest)).fetchone()
    if gone and not count:
        execute(_FORGET, (digest,))
        return None
    execute(_FIRST, (first, digest))
    return head, last, touched, first, born, owner


def _head(state: Any) -> bytes | None:
    return None if state is None else state[0]


def _moved(execute: Execute, change: Change, state: Any) -> bool:
    """Whether a namespace with another head than the one loaded stands in the way of a change."""
    born, owner = (None, None) if state is None else state[4:]
    if change.whole or change.loaded_owner != to_owner(owner, _WHERE) or (change.head is not None and born != change.born):
        return True
    digest = place(change.namespace)[0]
    for key, version in change.checks.items():
        found = execute("SELECT version FROM entry WHERE digest = ? AND key = ?", (digest, to_bytes(key))).fetchone()
        if (None if found is None else found[0]) != version:
            return True
    return False


def _as_it_stands(execute: Execute, change: Change) -> Snapshot:
    return _chosen(execute, change.namespace, tuple(change.checks), change.whole, -math.inf)


def _apply(execute: Execute, change: Change, state: Any, version: bytes, now: float) -> int:
    namespace = change.namespace
    digest, address = place(namespace)
    writes = bool(change.puts or change.deletes or change.owner is not None)
    if state is None and not writes:
        return 0
    _, last, touched, first, born, owner = (version, 0, 0.0, None, version, None) if state is None else state
    if change.touch:
        back, touched = now < touched, now
        if back:
            # A clock that was set back: what slides ends earlier than thought.
            first = execute(_LEFT, (touched, digest)).fetchone()[1]
    if not writes:
        return _touch(execute, digest, touched, first) if change.touch else 0
    pages = 2
    for key in change.deletes:
        execute(_DELETE, (digest, to_bytes(key)))
    for key, put in change.puts.items():
        last += 1
        expires_at, slides = _expiry(put, now)
        deadline = expires_at if slides is None else touched + slides
        if deadline is not None:
            first = deadline if first is None else min(first, deadline)
        name = to_bytes(key)
        record = sealed(name, put.record)
        execute(_PUT[False, put.last, put.ttl is not KEEP], (digest, name, version, record, expires_at, slides, last))
        pages += len(record) >> 12
    owner = owner if change.owner is None else owned_by(change.owner)
    if state is None:
        app, scope = to_bytes(namespace.app), to_bytes(namespace.scope)
        execute(_NEW, (version, last, touched, first, born, owner, digest, app, scope, address))
    else:
        execute(_NEXT, (version, last, touched, first, owner, digest))
    return pages


def _touch(execute: Execute, digest: bytes, touched: float, first: float | None) -> int:
    return execute(_TOUCH, (touched, first, digest)).rowcount


def _sweep(execute: Execute, now: float) -> int:
    """Delete some of what is expired, so that what nobody comes back to does not stay for ever."""
    pages = sum([execute(statement, (now, _SWEPT)).rowcount for statement in _SWEEP])
    for (digest,) in execute(_DUE, (now, _SWEPT)).fetchall():
        _state(execute, digest, now)
        pages += 2
    return pages


def from_url(url: StoreURL) -> SQLiteStore:
    """The store that a sqlite:// URL names."""
    how = "write sqlite:///relative/path.db, sqlite:////absolute/path.db or sqlite:///:memory:"
    path = url.path("a file", how)
    if path.endswith("/"):
        raise StoreURLError(f"sqlite:// needs the path of a file: {how}")
    options: dict[str, Option[Any]] = {
        "synchronous": one_of("normal", "full"),
        "load_timeout": seconds,
        "commit_timeout": seconds,
    }
    return SQLiteStore(path, **url.read(options))
