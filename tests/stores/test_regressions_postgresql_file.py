"""Promises of the PostgreSQL and the file store that were once broken."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import servers
from psycopg.conninfo import make_conninfo

from agent_gantry_state import Namespace, StoreError, StoreUnavailableError, StoreURLError
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
from agent_gantry_state.stores.urls import open_store
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


def pids_of(watcher, name):
    # What a transaction has seen of these it sees until its end.
    watcher.rollback()
    return {pid for (pid,) in watcher.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (name,))}


def answered(store, message, way):
    return store.load(message) if way == "sync" else asyncio.run(store.answer(message))


@pytest.mark.parametrize("way", ["sync", "asyncio"])
def test_what_the_server_undoes_costs_no_connection(watcher, way):
    schema = fresh_schema()

    async def main(store):
        await asyncio.gather(*[store.answer(Load((A,))) for _ in range(3)])
        before = pids_of(watcher, schema)
        with pytest.raises(StoreUnavailableError, match="40001"):
            await store.answer(Commit(b"", b"version1", (change(A, EMPTY, {"k": put(1)}),)))
        await asyncio.gather(*[store.answer(Load((A,))) for _ in range(3)])
        return before, pids_of(watcher, schema)

    def plain(store):
        threads = [Started(lambda: store.load(Load((A,)))) for _ in range(3)]
        for thread in threads:
            thread.result()
        before = pids_of(watcher, schema)
        with pytest.raises(StoreUnavailableError, match="40001"):
            store.commit(Commit(b"", b"version1", (change(A, EMPTY, {"k": put(1)}),)))
        store.load(Load((A,)))
        return before, pids_of(watcher, schema)

    with closing(PostgreSQLStore(make_conninfo(servers.postgresql().url, application_name=schema), schema=schema)) as store:
        answered(store, Load((A,)), way)
        watcher.execute(
            f"CREATE OR REPLACE FUNCTION {schema}.lock_1(p_digest bytea) RETURNS void LANGUAGE plpgsql AS"
            " 'BEGIN RAISE EXCEPTION USING ERRCODE = ''40001''; END'"
        )
        watcher.commit()
        before, after = plain(store) if way == "sync" else asyncio.run(main(store))

    assert before
    assert after == before


def test_a_loop_that_stands_still_may_run_again_after_its_store_was_closed(holder):
    schema = fresh_schema()
    store = PostgreSQLStore(servers.postgresql().url, schema=schema)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.answer(Load((A,))))
    holder.execute(f"LOCK TABLE {schema}.namespace")
    waiting = loop.create_task(store.answer(Load((A,), timeout=30.0)))
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0.02))
    (connection,) = store._alinks[loop].link._pool._used
    number = connection.pgconn.socket

    store.close()

    # The loop watches that number: nobody else may get it.
    os.fstat(number)
    with socket.socket() as other:
        assert other.fileno() != number
    with pytest.raises(StoreError):
        loop.run_until_complete(asyncio.wait_for(waiting, 10))
    with pytest.raises(psycopg.OperationalError):
        connection.pgconn.socket.bit_length()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.mark.parametrize("way", ["sync", "asyncio"])
def test_nobody_waits_for_a_look_up_that_hangs(monkeypatch, way):
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: done.wait(60) and [])
    began = time.monotonic()
    try:
        with closing(PostgreSQLStore("postgresql://silent.example/postgres", connect_timeout=0.2)) as store:
            with pytest.raises(StoreUnavailableError, match="could not be resolved"):
                answered(store, Load((A,), timeout=0.3), way)

        assert time.monotonic() - began < 20
    finally:
        done.set()


@pytest.mark.parametrize("way", ["sync", "asyncio"])
def test_a_host_that_can_be_no_name_is_unavailable_at_once(way):
    began = time.monotonic()
    with closing(PostgreSQLStore(f"host={'a' * 70}.example", connect_timeout=60.0)) as store:
        with pytest.raises(StoreUnavailableError, match="could not be resolved"):
            answered(store, Load((A,), timeout=60.0), way)

    assert time.monotonic() - began < 30


def collected(error):
    """What tools that report errors collect: the variables of all frames, containers taken apart."""

    def shown(value, depth=0):
        if isinstance(value, Mapping) and depth < 6:
            return " ".join([shown(item, depth + 1) for pair in value.items() for item in pair])
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and depth < 6:
            return " ".join([shown(item, depth + 1) for item in value])
        return repr(value)

    found, traceback = [], error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        if Path(frame.f_code.co_filename).name.startswith(("postgresql", "pool")):
            found.append(frame.f_code.co_name)
            found += [shown(value) for value in frame.f_locals.values()]
        traceback = traceback.tb_next
    for other in (error.__cause__, error.__context__):
        found += [] if other is None else [collected(other)]
    return " ".join(found)


@pytest.mark.parametrize("way", ["sync", "asyncio"])
@pytest.mark.parametrize("host", [servers.HOST, "localhost"])
def test_variables_of_a_connection_that_fails_hold_no_password(way, host):
    url = servers.postgresql().password_url.replace(servers.PASSWORD, "sesame-1").replace(servers.HOST, host)
    with closing(open_store(f"{url}?sslpassword=sesame-2")) as store, pytest.raises(StoreError) as caught:
        answered(store, Load((A,)), way)

    shown = collected(caught.value)
    assert " connecting " in shown
    assert "sesame" not in shown


@pytest.mark.parametrize(
    "make",
    [
        lambda: open_store("postgresql://u:sesame-1@h/db?sslpassword=sesame-2&schema=a%24b"),
        lambda: open_store("postgresql://u:sesame-1%zz@h/db?sslpassword=sesame-2"),
        lambda: open_store("postgresql://u:sesame-1@h/db?sslpassword=sesame-2&load_timeout=0"),
        lambda: PostgreSQLStore("postgresql://u:sesame-1%zz@h/db"),
        lambda: PostgreSQLStore("host=h password=sesame-1", max_connections=0),
        lambda: PostgreSQLStore("host=h password=sesame-1", load_timeout=-1.0),
        lambda: PostgreSQLStore("host=h password=sesame-1", pool=object()),
    ],
)
def test_variables_of_a_store_that_cannot_be_made_hold_no_password(make):
    with pytest.raises((StoreURLError, ValueError, TypeError)) as caught:
        make()

    assert "sesame" not in collected(caught.value)


@pytest.mark.parametrize("password", ["postgres", "5432", "failed", servers.ROLE])
def test_a_password_that_is_a_word_of_the_error_is_not_told_by_it(password):
    url = servers.postgresql().password_url.replace(servers.PASSWORD, password)
    with closing(open_store(url)) as store, pytest.raises(StoreError) as caught:
        store.load(Load((A,)))

    assert str(caught.value) == (
        f'PostgreSQL: no connection: connection to server at "{servers.HOST}", port {servers.postgresql().port} failed: '
        f'FATAL: password authentication failed for user "{servers.ROLE}"'
    )


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("port=sesame", "invalid integer value"),
        ("sslmode=sesame", "invalid sslmode value"),
        ("service=sesame", "definition of service not found"),
    ],
)
def test_what_libpq_does_not_take_is_told_without_its_value(parameters, said):
    with closing(PostgreSQLStore(f"host={servers.HOST} {parameters}")) as store:
        with pytest.raises(StoreUnavailableError) as caught:
            store.load(Load((A,)))

    assert str(caught.value).startswith(f"PostgreSQL: no connection: {said}")
    assert "sesame" not in str(caught.value)


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
