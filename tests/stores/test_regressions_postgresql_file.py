"""Promises of the PostgreSQL and the file store that were once broken."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import threading
import time
from contextlib import closing

import psycopg
import pytest
import servers
from psycopg.conninfo import make_conninfo

from agent_gantry_state import Namespace, StoreError
from agent_gantry_state.stores.file import FileStore
from agent_gantry_state.stores.postgresql import PostgreSQLStore
from agent_gantry_state.stores.protocol import (
    EMPTY,
    KEEP,
    Change,
    Commit,
    Committed,
    Forget,
    Load,
    Snapshot,
)
from agent_gantry_state.testing import A, B, put

_numbers = itertools.count()


def fresh_schema() -> str:
    return f"review{next(_numbers)}"


def snapshot_of(store, namespace) -> Snapshot:
    (snapshot,) = store.load(Load((namespace,))).snapshots
    return snapshot


def change(namespace, loaded, puts, **more) -> Change:
    checks = {key: loaded.versions.get(key) for key in puts}
    return Change(namespace, loaded.head, puts, (), checks, loaded_owner=loaded.owner, born=loaded.born, **more)


def commit(store, *changes, token=b"", timeout=6.0):
    return store.commit(Commit(token, os.urandom(16), changes, timeout))


class Started:
    """A call in a thread; `result` waits for its answer, or raises its error."""

    def __init__(self, call):
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self._answer, self._error = self._call(), None
        except BaseException as error:
            self._answer, self._error = None, error

    def result(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        return self._answer


def wait_for_blocked(connection, count):
    """Wait until so many backends of this database wait for a lock."""
    for _ in range(500):
        blocked = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchone()[0]
        connection.rollback()
        if blocked >= count:
            return
        time.sleep(0.01)
    raise AssertionError("nobody waits")


@pytest.fixture
def watcher():
    with closing(psycopg.connect(servers.postgresql().url)) as connection:
        yield connection


@pytest.fixture
def holder():
    with closing(psycopg.connect(servers.postgresql().url)) as connection:
        yield connection


def test_an_erasure_that_waits_for_a_commit_takes_all_of_it_or_nothing(watcher, holder):
    # Otherwise the entries go and the namespace stays, with its owner and its head: what a process has kept for that head
    # is given out as current, although it was erased.
    schema = fresh_schema()
    url = servers.postgresql().url
    with closing(PostgreSQLStore(url, schema=schema)) as one, closing(PostgreSQLStore(url, schema=schema)) as two:
        commit(one, change(A, snapshot_of(one, A), {"k": put("old", ttl=0.001)}))
        time.sleep(0.01)
        loaded = snapshot_of(one, A)
        token = os.urandom(16)
        # The commit comes to its last step, in which it waits for this one.
        holder.execute(f"INSERT INTO {schema}.token VALUES (%s, 0)", (token,))
        committing = Started(lambda: commit(one, change(A, loaded, {"k": put("new")}, owner="ada"), token=token))
        wait_for_blocked(watcher, 1)
        forgetting = Started(lambda: two.forget(Forget((A,))))
        wait_for_blocked(watcher, 2)

        holder.rollback()
        assert committing.result() == Committed()
        forgetting.result()

        found = snapshot_of(two, A)
        assert (found.head, found.owner, found.values) == (None, None, {})


def test_what_was_written_is_read_though_the_key_had_expired_and_was_swept():
    schema = fresh_schema()
    url = servers.postgresql().url
    with closing(PostgreSQLStore(url, schema=schema)) as one, closing(PostgreSQLStore(url, schema=schema)) as two:
        commit(one, change(A, snapshot_of(one, A), {"k": put("old", ttl=0.2), "j": put("stays")}))
        assert snapshot_of(one, A).values == {"k": "old", "j": "stays"}
        time.sleep(0.25)
        loaded = snapshot_of(one, A)
        for number in range(33):
            other = Namespace("session", f"other{number}", "app")
            commit(two, change(other, EMPTY, {"x": put(1)}))

        assert commit(one, change(A, loaded, {"k": put("new", ttl=KEEP)})) == Committed()

        assert snapshot_of(one, A).values == snapshot_of(two, A).values == {"j": "stays", "k": "new"}
        assert list(snapshot_of(one, A).values) == list(snapshot_of(two, A).values)


def test_a_key_that_expires_while_its_commit_waits_is_written_afresh(watcher, holder):
    schema = fresh_schema()
    with closing(PostgreSQLStore(servers.postgresql().url, schema=schema)) as store:
        commit(store, change(A, snapshot_of(store, A), {"k": put(1, ttl=1.0), "j": put(1)}))
        loaded = snapshot_of(store, A)
        assert "k" in loaded.values
        holder.execute(f"SELECT FROM {schema}.namespace FOR UPDATE")
        committing = Started(lambda: commit(store, change(A, loaded, {"k": put(2)})))
        wait_for_blocked(watcher, 1)
        time.sleep(1.1)

        holder.rollback()

        assert committing.result() == Committed()
        assert snapshot_of(store, A).values == {"j": 1, "k": 2}


def test_a_time_to_live_counts_from_the_commit_and_not_from_when_it_began_to_wait(watcher, holder):
    schema = fresh_schema()
    with closing(PostgreSQLStore(servers.postgresql().url, schema=schema)) as store:
        commit(store, change(A, snapshot_of(store, A), {"k": put(1)}))
        loaded = snapshot_of(store, A)
        holder.execute(f"SELECT FROM {schema}.namespace FOR UPDATE")
        committing = Started(lambda: commit(store, change(A, loaded, {"k": put(2, ttl=1.5)})))
        wait_for_blocked(watcher, 1)
        time.sleep(1.6)

        holder.rollback()

        assert committing.result() == Committed()
        assert snapshot_of(store, A).values == {"k": 2}


def test_serializable_units_do_not_skew_where_the_role_reads_repeatably(watcher, holder):
    # Each reads what the other makes; a snapshot that is older than the wait shows neither.
    schema = fresh_schema()
    conninfo = make_conninfo(servers.postgresql().url, options="-c default_transaction_isolation=repeatable\\ read")
    with closing(PostgreSQLStore(conninfo, schema=schema)) as one, closing(PostgreSQLStore(conninfo, schema=schema)) as two:
        one.load(Load((A, B)))
        token = os.urandom(16)
        holder.execute(f"INSERT INTO {schema}.token VALUES (%s, 0)", (token,))
        first = [change(A, EMPTY, {"x": put(1)}, whole=True), change(B, EMPTY, {}, whole=True)]
        second = [change(B, EMPTY, {"x": put(1)}, whole=True), change(A, EMPTY, {}, whole=True)]
        committing = Started(lambda: commit(one, *first, token=token))
        wait_for_blocked(watcher, 1)
        other = Started(lambda: commit(two, *second))
        wait_for_blocked(watcher, 2)

        holder.rollback()

        assert committing.result() == Committed()
        with contextlib.suppress(StoreError):
            assert other.result() != Committed()
        assert [len(each.values) for each in one.load(Load((A, B))).snapshots] == [1, 0]


def test_a_host_whose_name_is_not_found_leaves_time_for_the_next(monkeypatch):
    real, done = socket.getaddrinfo, threading.Event()

    def slow(host, *arguments, **options):
        if host == "silent.example":
            done.wait(20)
            raise socket.gaierror
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    server = servers.postgresql()
    url = f"postgresql://postgres@silent.example:{server.port},{server.host}:{server.port}/postgres"
    try:
        with closing(PostgreSQLStore(url, schema=fresh_schema())) as store:
            assert snapshot_of(store, A) is EMPTY
    finally:
        done.set()


@pytest.mark.parametrize("timeout", [0.0, 1e7])
def test_a_commit_with_any_time_limit_fails_typed_and_leaves_nobody_waiting(timeout, watcher, holder):
    schema = fresh_schema()
    with closing(PostgreSQLStore(servers.postgresql().url, schema=schema)) as store:
        commit(store, change(A, snapshot_of(store, A), {"k": put(1)}))
        loaded = snapshot_of(store, A)
        if timeout:
            assert commit(store, change(A, loaded, {"k": put(2)}), timeout=timeout) == Committed()
            return
        holder.execute(f"SELECT FROM {schema}.namespace FOR UPDATE")
        with pytest.raises(StoreError):
            commit(store, change(A, loaded, {"k": put(2)}), timeout=timeout)
        time.sleep(0.5)

        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        assert watcher.execute(query).fetchone() == (0,)


def test_a_directory_that_was_put_in_the_place_of_one_that_was_moved_away_is_used(tmp_path):
    # As docs/stores/file.md says; a backup is brought back like this. Otherwise commits are acknowledged that nobody else
    # will ever see.
    with closing(FileStore(tmp_path / "state")) as store:
        commit(store, change(A, EMPTY, {"k": put("backed up")}))
        shutil.copytree(tmp_path / "state", tmp_path / "backup")
        commit(store, change(A, snapshot_of(store, A), {"k": put("newer")}))
        (tmp_path / "state").rename(tmp_path / "old")
        (tmp_path / "backup").rename(tmp_path / "state")

        seen = snapshot_of(store, A)
        commit(store, change(A, seen, {"k": put("after")}))

        with closing(FileStore(tmp_path / "state")) as another:
            assert (seen.values, snapshot_of(another, A).values) == ({"k": "backed up"}, {"k": "after"})
