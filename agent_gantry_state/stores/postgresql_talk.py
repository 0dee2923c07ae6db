"""What is said on one connection to PostgreSQL: how it is made, and how a statement is asked and answered.

The functions of libpq (psycopg.pq) that never wait, in generators that say what their socket has to be ready for: who runs
them waits as he likes, and as long as he likes. psycopg's own cursors would wait for a server that has gone silent for as
long as the network does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import select
import socket
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent_gantry_state.errors import StoreError
from agent_gantry_state.stores.network import driver
from agent_gantry_state.stores.postgresql_errors import crowded, lost, no_connection, refusal

with driver("postgresql"):
    import psycopg
    from psycopg import pq
    from psycopg.conninfo import make_conninfo

__all__ = [
    "IDLE",
    "READ",
    "WRITE",
    "Connection",
    "Parameters",
    "Query",
    "Server",
    "Waits",
    "exchange",
    "is_ready",
    "left",
]

#: What a socket has to be ready for: to be read, to be written, or either.
READ, WRITE = 1, 2
#: Steps that wait for a socket to be ready; a generator does not go on before it is.
Waits = Generator[int, None, Any]

#: How a connection stands on which nothing is under way.
IDLE: Final = pq.TransactionStatus.IDLE
_BINARY: Final = 1
_OK: Final = frozenset({pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.EMPTY_QUERY})
_BAD: Final = pq.ConnStatus.BAD
_POLL_OK, _POLL_READING, _POLL_FAILED = pq.PollingStatus.OK, pq.PollingStatus.READING, pq.PollingStatus.FAILED
_SYNC: Final = pq.ExecStatus.PIPELINE_SYNC
_PIPELINES: Final = pq.version() >= 140000
#: SQLSTATEs of a prepared statement that is not there, and of one that somebody else has prepared.
_ELSEWHERE: Final = frozenset({"26000", "42P05"})
_STATE, _WORDS = pq.DiagnosticField.SQLSTATE, pq.DiagnosticField.MESSAGE_PRIMARY


@dataclass(slots=True)
class Query:
    """A statement to be asked.

    Attributes:
        text: Itself. If it takes nothing it may be a script of several.
        types: The types of what it takes, by their numbers in PostgreSQL.
        values: What it takes, in binary.
        name: A name for the statement, under which a connection prepares it when it first asks it; b"" for none.
    """

    text: bytes
    types: tuple[int, ...] = ()
    values: tuple[bytes | None, ...] = ()
    name: bytes = b""


class Parameters:
    """libpq's. No mapping, and shown by nothing: what collects the variables of a traceback finds no password here."""

    __slots__ = ("values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = {name: value for name, value in values.items() if value}

    def __repr__(self) -> str:
        return "<Parameters>"

    def get(self, name: str) -> str:
        """One of them; "" if it is not there."""
        return self.values.get(name, "")

    def having(self, **others: str) -> Parameters:
        """These, with others in their place."""
        return Parameters({**self.values, **others})

    def text(self) -> str:
        """They as a connection string.

        Raises:
            psycopg.Error: libpq does not take them.
        """
        return make_conninfo(**self.values)


@dataclass(frozen=True)
class Server:
    """Where to connect.

    Attributes:
        parameters: libpq's.
        connect_timeout: Seconds that a connection may take.
        limit: How many connections there may be at once.
    """

    parameters: Parameters
    connect_timeout: float
    limit: int

    def hosts(self) -> list[Parameters]:
        """Parameters for each of the hosts, to be tried in this order."""
        names = self.parameters.get("host").split(",")
        ports = self.parameters.get("port").split(",")
        hosts = []
        for index, name in enumerate(names):
            port = ports[index] if len(ports) == len(names) else ports[0]
            hosts.append(self.parameters.having(host=name, port=port))
        if self.parameters.get("load_balance_hosts") == "random":
            random.shuffle(hosts)
        return hosts

    def connecting(self, deadline: float) -> Generator[Any, Any, Connection]:
        """Connect. Yields the name of a host, to be sent what getaddrinfo says of it, or a socket, what it has to be ready
        for and until when, to be sent whether it is.

        Raises:
            StoreUnavailableError: No host can be connected to.
        """
        failure = ""
        hosts = self.hosts()
        for index, host in enumerate(hosts):
            ways = [host]
            if not _is_address(host.get("host")) and not host.get("hostaddr"):
                until = time.monotonic() + left(deadline) / (len(hosts) - index)
                found = yield host.get("host"), 0, until
                ways = [host.having(hostaddr=str(address)) for address in dict.fromkeys([info[4][0] for info in found])]
                failure = failure if ways else "the name of the host could not be resolved"
            for number, way in enumerate(ways):
                # A host that is silent leaves time for the others.
                until = time.monotonic() + left(deadline) / (len(hosts) - index + len(ways) - number - 1)
                try:
                    return Connection((yield from _connecting(way, until)))
                except _FailedError as error:
                    failure = str(error)
                except psycopg.Error:
                    failure = "libpq does not take these parameters"
        raise no_connection(failure)

    def busy(self) -> StoreError:
        """The error for a connection that did not get free."""
        return crowded(self.limit)


def _connecting(parameters: Parameters, deadline: float) -> Generator[Any, bool, pq.abc.PGconn]:
    pgconn = pq.PGconn.connect_start(parameters.text().encode())
    made = False
    try:
        while not made:
            state = _POLL_FAILED if pgconn.status == _BAD else pgconn.connect_poll()
            if state == _POLL_FAILED:
                raise _FailedError(pgconn.get_error_message().strip())
            made = state == _POLL_OK
            if not made and not (yield pgconn.socket, READ if state == _POLL_READING else WRITE, deadline):
                raise _FailedError("no answer in time")
        pgconn.nonblocking = 1
        return pgconn
    finally:
        if not made:
            pgconn.finish()


class _FailedError(Exception):
    """A connection could not be made; says why."""


def exchange(pgconn: pq.abc.PGconn, query: Query, prepared: set[bytes] | None) -> Waits:
    """Ask *query*, and give the server's answer to it, or to the last statement of a script.

    Args:
        pgconn: The connection, on which nothing is under way.
        query: What to ask.
        prepared: Names of the statements that are prepared on it, to be added to; None if none are to be.

    Raises:
        StoreError: The server has refused it, or the connection is lost.
    """
    text, types, values, name = query.text, query.types, query.values, query.name
    binary = (_BINARY,) * len(values)
    known = prepared is not None and name in prepared
    piped = _PIPELINES and prepared is not None and name != b"" and not known
    try:
        if known:
            pgconn.send_query_prepared(name, values, binary, _BINARY)
        elif piped:
            # Prepared and asked in one round trip.
            pgconn.enter_pipeline_mode()
            pgconn.send_prepare(name, text, types)
            pgconn.send_query_prepared(name, values, binary, _BINARY)
            pgconn.pipeline_sync()
        elif types:
            pgconn.send_query_params(text, values, types, binary, _BINARY)
        else:
            pgconn.send_query(text)
    except psycopg.Error:
        raise lost(False) from None
    try:
        answer, refused, cut_off = yield from _answers(pgconn, piped)
    except psycopg.Error:
        raise lost(None) from None
    if refused is None and answer is not None:
        if piped and prepared is not None:
            prepared.add(name)
        return answer
    raw = None if refused is None else refused.error_field(_STATE)
    if refused is None or raw is None:
        raise lost(None)
    state = raw.decode("ascii", "replace")
    if prepared is not None and state in _ELSEWHERE and pgconn.status != _BAD:
        # A pooler that knows nothing of prepared statements gives each transaction another connection to the server.
        raise _NotPreparedError
    words = (refused.error_field(_WORDS) or b"").decode("utf-8", "replace")
    raise refusal(state, words, None if cut_off else False)


def _answers(pgconn: pq.abc.PGconn, piped: bool) -> Waits:
    """The last result of what was sent, the first error, and whether the connection broke after a result had come."""
    while pgconn.flush():
        # A server that sends meanwhile has to be heard, or both wait for ever.
        yield READ | WRITE
        pgconn.consume_input()
    answer = refused = None
    while True:
        while pgconn.is_busy():
            yield READ
            pgconn.consume_input()
        # Up to the very end: a statement is committed only after its rows have been sent.
        result = pgconn.get_result()
        if result is None:
            if pgconn.status == _BAD:
                return None, refused, answer is not None
            if not piped:
                return answer, refused, False
        elif result.status in _OK:
            answer = result
        elif result.status == _SYNC:
            pgconn.exit_pipeline_mode()
            return answer, refused, False
        elif refused is None:
            refused = result


class _NotPreparedError(Exception):
    """A prepared statement was on another connection; nothing was done."""


class Connection:
    """A connection of our own."""

    __slots__ = ("__weakref__", "pgconn", "prepared", "used")

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self.pgconn = pgconn
        self.prepared: set[bytes] | None = set()
        self.used = 0.0

    def asked(self, query: Query) -> Waits:
        """Ask *query*, prepared if that works."""
        if self.prepared is not None:
            try:
                return (yield from exchange(self.pgconn, query, self.prepared))
            except _NotPreparedError:
                self.prepared = None
        return (yield from exchange(self.pgconn, query, None))

    def is_usable(self) -> bool:
        """Whether nothing is under way, and nothing has come while it was idle; a server that goes away says so."""
        pgconn = self.pgconn
        try:
            if not is_ready(pgconn.socket, READ, 0.0):
                return self._is_idle()
            pgconn.consume_input()
            # What is left to come is of no statement: a notice, or the announcement of a changed setting.
            return self._is_idle() and not pgconn.is_busy() and not is_ready(pgconn.socket, READ, 0.0)
        except (psycopg.Error, OSError, ValueError):
            return False

    def _is_idle(self) -> bool:
        return self.pgconn.transaction_status == IDLE and self.pgconn.status != _BAD

    def close(self) -> None:
        """Close it, also in the middle of a statement."""
        self.pgconn.finish()

    def drop(self) -> None:
        """End it, and leave its socket open: an event loop that may run again may be watching it."""
        with (
            contextlib.suppress(psycopg.Error, OSError),
            socket.fromfd(self.pgconn.socket, socket.AF_INET, socket.SOCK_STREAM) as same,
        ):
            same.shutdown(socket.SHUT_RDWR)


if hasattr(select, "poll"):
    _EVENTS: Final = {READ: select.POLLIN, WRITE: select.POLLOUT, READ | WRITE: select.POLLIN | select.POLLOUT}

    def is_ready(fileno: int, what: int, seconds: float) -> bool:
        """Whether a socket gets ready within *seconds*."""
        poll = select.poll()
        poll.register(fileno, _EVENTS[what])
        # Rounded up: a wait that is cut to nothing would spin.
        return bool(poll.poll(min(-(-seconds * 1000 // 1), 2**31 - 1)))

else:

    def is_ready(fileno: int, what: int, seconds: float) -> bool:
        """Whether a socket gets ready within *seconds*."""
        readers = [fileno] if what & READ else []
        writers = [fileno] if what & WRITE else []
        return any(select.select(readers, writers, [], seconds))


def left(deadline: float) -> float:
    """Seconds until *deadline*; none if it is over."""
    return max(deadline - time.monotonic(), 0.0)


def _is_address(host: str) -> bool:
    """Whether nobody has to be asked where *host* is."""
    if not host or host.startswith(("/", "@")) or Path(host).is_absolute():
        return True
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
