"""What a store keeps of one memory, byte by byte: read from beside it, put in its place damaged, and put back.

`PLACES` has, by name, what opens a store of its own together with such a view of it. A part of what is stored is *sealed*
if a checksum or a comparison tells of any damage to it; of the others, the terms (versions, places, times of expiry), only
is said that they harm no value.
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import socket
import sqlite3
import struct
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import redis
import servers
from psycopg import sql

from agent_gantry_state import StateError
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores.file import FileStore
from agent_gantry_state.stores.memcached import MemcachedStore
from agent_gantry_state.stores.postgresql import PostgreSQLStore
from agent_gantry_state.stores.sqlite import SQLiteStore
from agent_gantry_state.stores.urls import open_store
from agent_gantry_state.testing import A, B, Talk, put

#: By part, its bytes. The name of a part begins with "sealed" or "terms".
Parts = dict[tuple[Any, ...], bytes]

X = ["text", {"a": (1, 2), "b": None}, -7]
CONTENT = {"x": X, "y": "s3cr3t", "z": 3.5}
OTHER = {"n": 1}


class Stored:
    """A store with two memories in it, of which one can be damaged.

    Attributes:
        by_key: Whether each key lies by itself, so that the others can be read when one is damaged.
    """

    by_key = True

    def open(self) -> Any:
        """A store that knows nothing of what is there."""
        raise NotImplementedError

    def parts(self) -> Parts:
        """What is stored of the memory."""
        raise NotImplementedError

    def put_back(self, parts: Parts) -> None:
        """Let that be stored."""
        raise NotImplementedError

    def close(self) -> None:
        """Whatever is open."""

    def kept_aside(self) -> list[bytes]:
        """What was put aside by who found it damaged."""
        return []

    def fill(self) -> None:
        with contextlib.closing(self.open()) as store:
            talk = Talk(bridge_to(store))
            talk.write(B, **OTHER)
            talk.commit(A, {"x": put(X), "y": put("s3cr3t"), "z": put(3.5, ttl=1e6)}, owner="ada")


class InFile(Stored):
    by_key = False

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = folder / "state"
        self.file = self.path / A.digest.hex()

    def open(self) -> FileStore:
        return FileStore(self.path, fsync=False)

    def parts(self) -> Parts:
        return {("sealed",): self.file.read_bytes()} if self.file.exists() else {}

    def put_back(self, parts: Parts) -> None:
        shutil.rmtree(self.path / "corrupt", ignore_errors=True)
        beside = self.path.with_name("new")
        beside.write_bytes(parts["sealed",])
        beside.rename(self.file)

    def kept_aside(self) -> list[bytes]:
        return [each.read_bytes() for each in self.path.glob("corrupt/*")]


class InMemcached(Stored):
    by_key = False

    def __init__(self) -> None:
        self.server, self.prefix = servers.memcached(), f"{uuid.uuid4().hex}:"
        self.peer = Peer(self.server.port)
        with contextlib.closing(self.open()) as store:
            self.key = store._place(A).key

    def open(self) -> MemcachedStore:
        return MemcachedStore(f"{servers.HOST}:{self.server.port}", prefix=self.prefix)

    def parts(self) -> Parts:
        return {("sealed",): self.peer.get(self.key)}

    def put_back(self, parts: Parts) -> None:
        self.peer.set(self.key, parts["sealed",])


class Peer:
    """Speaks to a memcached."""

    def __init__(self, port: int) -> None:
        self.port = port

    def _said(self, words: bytes, end: bytes) -> bytes:
        with socket.create_connection((servers.HOST, self.port), 5) as sock:
            sock.sendall(words)
            answer = b""
            while not answer.endswith(end):
                answer += sock.recv(65536)
        return answer

    def get(self, key: bytes) -> bytes:
        head, _, rest = self._said(b"get %b\r\n" % key, b"\r\nEND\r\n").partition(b"\r\n")
        return rest[: int(head.split()[3])]

    def set(self, key: bytes, data: bytes) -> None:
        assert self._said(b"set %b 0 0 %d\r\n%b\r\n" % (key, len(data), data), b"\r\n") == b"STORED\r\n"

    def flush(self) -> None:
        assert self._said(b"flush_all\r\n", b"\r\n") == b"OK\r\n"


class InRedis(Stored):
    #: Of a header what is told by a comparison or a checksum begins here; of a key's value, behind its terms.
    HEADER, META = 65, 25

    def __init__(self, server: Any) -> None:
        self.url, self.prefix = server.url, f"{uuid.uuid4().hex}:"
        self.admin = redis.Redis(port=server.port)
        with contextlib.closing(self.open()) as store:
            self.key = store._place(A).key

    def open(self) -> Any:
        return open_store(f"{self.url}?prefix={self.prefix}")

    def close(self) -> None:
        self.admin.close()

    def parts(self) -> Parts:
        parts: Parts = {}
        for field, value in sorted(self.admin.hgetall(self.key).items()):
            size = self.HEADER if field == b"h" else self.META
            parts["terms", field] = value[:size]
            parts["sealed", field] = value[size:]
            # The mark of a key cannot be another one: it would be the field of another kind.
            parts["sealed", field, "name"] = field[1:]
        return parts

    def put_back(self, parts: Parts) -> None:
        fields = {}
        for kind, field, *name in parts:
            if not name and kind == "terms":
                told = field if field == b"h" else field[:1] + parts["sealed", field, "name"]
                if told in fields:
                    raise ValueError("a hash has no two fields of one name")
                fields[told] = parts["terms", field] + parts["sealed", field]
        with self.admin.pipeline() as pipeline:
            pipeline.delete(self.key)
            pipeline.hset(self.key, mapping=fields)
            pipeline.execute()


#: Columns of a row that are told by a checksum or a comparison.
_SEALED = {"record", "owner", "address", "name", "key"}


class InRows(Stored):
    """What both databases have in common: rows, of which the columns are named."""

    def rows(self) -> dict[tuple[Any, ...], Any]:
        raise NotImplementedError

    def write(self, values: dict[tuple[Any, ...], Any]) -> None:
        raise NotImplementedError

    def parts(self) -> Parts:
        self.types: dict[tuple[Any, ...], type] = {}
        parts = {}
        for name, value in self.rows().items():
            kind = "sealed" if name[-1] in _SEALED else "terms"
            if value is not None:
                parts[(kind, *name)] = _as_bytes(value)
            self.types[(kind, *name)] = type(value)
        return parts

    def put_back(self, parts: Parts) -> None:
        self.write({name[1:]: _of_bytes(parts[name], kind) if name in parts else None for name, kind in self.types.items()})


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return struct.pack(">d" if isinstance(value, float) else ">q", value)


def _of_bytes(data: bytes, kind: type) -> Any:
    if kind is bytes:
        return data
    return struct.unpack(">d" if kind is float else ">q", data[:8].ljust(8, b"\0"))[0]


class InSQLite(InRows):
    _TELLS = ("digest", "app", "scope")

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = folder / "state.db"

    def open(self) -> SQLiteStore:
        return SQLiteStore(self.path)

    @contextlib.contextmanager
    def _raw(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as raw:
            raw.row_factory = sqlite3.Row
            raw.execute("PRAGMA synchronous = off")
            yield raw

    def rows(self) -> dict[tuple[Any, ...], Any]:
        with self._raw() as raw:
            rows = [dict(row) for row in raw.execute("SELECT * FROM entry WHERE digest = ? ORDER BY key", (A.digest,))]
        self.fixed = [{name: row.pop(name) for name in self._TELLS} for row in rows]
        for row, fixed in zip(rows, self.fixed):
            if row["key"] == 0:
                # The row of the namespace itself.
                fixed["key"] = row.pop("key")
        return {(at, name): value for at, row in enumerate(rows) for name, value in row.items()}

    def write(self, values: dict[tuple[Any, ...], Any]) -> None:
        rows = [dict(row) for row in self.fixed]
        for (at, name), value in values.items():
            rows[at][name] = value
        with self._raw() as raw:
            raw.execute("BEGIN")
            raw.execute("DELETE FROM entry WHERE digest = ?", (A.digest,))
            for row in rows:
                names = ", ".join(row)
                raw.execute(f"INSERT INTO entry ({names}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
            raw.execute("COMMIT")


class InPostgreSQL(InRows):
    _TELLS = ("digest", "app", "scope")

    def __init__(self) -> None:
        self.url, self.schema = servers.postgresql().url, f"s{uuid.uuid4().hex}"
        self.admin = psycopg.connect(self.url, autocommit=True, row_factory=psycopg.rows.dict_row)

    def close(self) -> None:
        self.admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self.schema)))
        self.admin.close()

    def open(self) -> PostgreSQLStore:
        return PostgreSQLStore(self.url, schema=self.schema)

    def _table(self, statement: str, table: str, *names: str) -> sql.Composed:
        names_ = sql.SQL(", ").join(map(sql.Identifier, names))
        marks = sql.SQL(", ").join(sql.Placeholder() * len(names))
        return sql.SQL(statement).format(table=sql.Identifier(self.schema, table), names=names_, marks=marks)

    def rows(self) -> dict[tuple[Any, ...], Any]:
        found = {}
        self.fixed = {}
        for table, order in (("namespace", "digest"), ("entry", "key")):
            query = self._table(f"SELECT * FROM {{table}} WHERE digest = %s ORDER BY {order}", table)
            for at, row in enumerate(self.admin.execute(query, (A.digest,)).fetchall()):
                self.fixed[table, at] = {name: row.pop(name) for name in self._TELLS if name in row}
                found.update({(table, at, name): value for name, value in row.items()})
        return found

    def write(self, values: dict[tuple[Any, ...], Any]) -> None:
        rows = {place: dict(row) for place, row in self.fixed.items()}
        for (table, at, name), value in values.items():
            rows[table, at][name] = value
        with self.admin.transaction():
            for table in ("namespace", "entry"):
                self.admin.execute(self._table("DELETE FROM {table} WHERE digest = %s", table), (A.digest,))
            for (table, _), row in rows.items():
                statement = self._table("INSERT INTO {table} ({names}) VALUES ({marks})", table, *row)
                self.admin.execute(statement, [*row.values()])


def flipped(data: bytes, bit: int) -> bytes:
    """*data* with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def damages(data: bytes, bits: Callable[[int], Iterator[int]], cuts: int) -> Iterator[bytes]:
    """*data* with one bit flipped, or cut off.

    Args:
        data: What is stored.
        bits: Of the number of a byte, which of its bits.
        cuts: How many lengths there are to be.
    """
    for index in range(len(data)):
        for bit in bits(index):
            yield flipped(data, 8 * index + bit)
    for length in range(0, len(data), max(len(data) // cuts, 1)):
        yield data[:length]


def seen(talk: Talk) -> tuple[dict[str, Any], str | None] | None:
    """What is read of the memory, and whose it is; None if that is refused by an error of ours."""
    try:
        (snapshot,) = talk.load(A)
        return {key: snapshot.value(key) for key in snapshot.values}, snapshot.owner
    except StateError as error:
        if "s3cr3t" in str(error):
            raise
        return None


def damage_everything(stored: Stored, bits: Callable[[int], Iterator[int]], cuts: int = 8) -> dict[str, int]:
    """Damage each byte of what is stored, and look each time what is read; how many damages there were."""
    counts = {"told": 0, "read": 0}
    with contextlib.ExitStack() as stack:
        stack.callback(stored.close)
        stored.fill()
        whole = stored.parts()
        store = stack.enter_context(contextlib.closing(stored.open()))
        for part, data in whole.items():
            for damaged in damages(data, bits, cuts):
                if damaged == data:
                    continue
                parts = {**whole, part: damaged}
                try:
                    stored.put_back(parts)
                except (psycopg.DatabaseError, sqlite3.Error, ValueError):
                    # The database itself does not take it.
                    continue
                there = stored.parts()
                if there == whole:
                    continue
                (store._images if isinstance(store, FileStore) else store._kept).clear()
                talk = Talk(bridge_to(store))
                found = seen(talk)
                words = f"{part}: {data!r} as {damaged!r} is read as {found!r}"
                counts["told" if found is None else "read"] += 1
                if found is not None:
                    content, owner = found
                    assert part[0] == "terms" or (content, owner) == (CONTENT, "ada"), words
                    assert repr({key: content[key] for key in CONTENT if key in content}) == repr(
                        {key: value for key, value in CONTENT.items() if key in content}
                    ), words
                    assert content.keys() <= CONTENT.keys(), words
                    assert owner in ("ada", None) if not content else owner == "ada", words
                assert talk.content(B) == OTHER, words
                assert stored.parts() == there or stored.kept_aside() == [damaged], words
                if stored.by_key and part[-1] == "record" and found is None and _is_of(part, whole, "x"):
                    (rest,) = talk.load(A, keys=(("y",),))
                    assert rest.value("y") == "s3cr3t", words
        stored.put_back(whole)
        with contextlib.closing(stored.open()) as again:
            assert seen(Talk(bridge_to(again))) == (CONTENT, "ada")
    return counts


def _is_of(part: tuple[Any, ...], whole: Parts, key: str) -> bool:
    return whole.get(("sealed", *part[1:-1], "key")) == key.encode()


PLACES: dict[str, Callable[[pathlib.Path], Stored]] = {
    "file": InFile,
    "sqlite": InSQLite,
    "redis_8": lambda _: InRedis(servers.redis_8()),
    "postgresql": lambda _: InPostgreSQL(),
    "memcached": lambda _: InMemcached(),
}
MORE_PLACES: dict[str, Callable[[pathlib.Path], Stored]] = {
    "redis_6": lambda _: InRedis(servers.redis_6()),
    "valkey": lambda _: InRedis(servers.valkey()),
}
