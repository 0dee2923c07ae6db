"""What PostgreSQL and libpq complain of, as errors of this package.

An error that the server has sent means that the statement was undone. Of a connection that broke while a statement was under
way nothing is known. Nothing that a statement carried is in a message: only the server's own words about itself.
"""

from __future__ import annotations

import re
from typing import Final

from agent_gantry_state.errors import StoreError, StoreTimeoutError, StoreUnavailableError

__all__ = ["MissingSchemaError", "crowded", "late", "lost", "no_connection", "refusal"]


class MissingSchemaError(StoreError):
    """The tables or functions are not there, or are those of another layout."""


#: By SQLSTATE, or its class, what has happened and what to do; the first that fits.
_MEANING: Final[dict[str, tuple[type[StoreError], str]]] = {
    "3F000": (MissingSchemaError, "the schema is not there"),
    "42P01": (MissingSchemaError, "a table is not there"),
    "42883": (MissingSchemaError, "a function is not there"),
    "42501": (StoreError, "this role lacks a right; docs/stores/postgresql.md lists what it needs"),
    "25006": (
        StoreUnavailableError,
        "the server only reads, as a standby does; see target_session_attrs",
    ),
    "53100": (StoreError, "the server's disk is full"),
    "53200": (StoreUnavailableError, "the server is out of memory"),
    "53300": (
        StoreUnavailableError,
        "the server has no connection left: lower max_connections, or use a pooler",
    ),
    "53": (StoreUnavailableError, "the server is short of something"),
    "55P03": (StoreTimeoutError, "others held the memory for too long"),
    "57014": (StoreTimeoutError, "the server cancelled the statement, as its statement_timeout or somebody told it to"),
    "57P": (StoreUnavailableError, "the server is shutting down, starting up, or has ended the connection"),
    "40": (StoreUnavailableError, "the server undid the transaction in favour of another one"),
    "23505": (StoreUnavailableError, "another transaction made the same memory at the same moment"),
    "08": (StoreUnavailableError, "the connection failed"),
    "28": (StoreError, "the server did not accept the user or the password"),
    "3D000": (StoreError, "there is no such database"),
}


def refusal(state: str, words: str, committed: bool | None = False) -> StoreError:
    """The error for what the server has refused.

    Args:
        state: Its SQLSTATE.
        words: The server's own message, of which only what it says of itself is passed on.
        committed: None if it came after the statement had succeeded.
    """
    for start, (kind, meaning) in _MEANING.items():
        if state.startswith(start):
            said = f": {words}" if start in ("42501", "28", "3D000") and words else ""
            return kind(f"PostgreSQL: {meaning} (SQLSTATE {state}{said})", committed=committed)
    return StoreError(f"PostgreSQL refused a statement (SQLSTATE {state})", committed=committed)


def lost(committed: bool | None) -> StoreUnavailableError:
    """The error for a connection that broke."""
    return StoreUnavailableError("PostgreSQL: the connection was lost before the answer came", committed=committed)


def late(seconds: float, committed: bool | None) -> StoreTimeoutError:
    """The error for a time limit that was over."""
    return StoreTimeoutError(f"PostgreSQL: the server gave no answer within {seconds:.3g} s", committed=committed)


def crowded(limit: int) -> StoreTimeoutError:
    """The error for a caller who got none of the connections."""
    return StoreTimeoutError(
        f"PostgreSQL: none of the {limit} connections got free in time: set a greater max_connections", committed=False
    )


_QUOTED: Final = re.compile(' *".*"')
#: The directory of a socket: a path of this machine.
_SOCKET: Final = re.compile('on socket "[^"]*/')


def no_connection(words: str) -> StoreError:
    """The error for a connection that could not be made, for which libpq gives no SQLSTATE."""
    said = " ".join(words.split())
    kind = StoreError if "authentication failed" in said or 'database "' in said else StoreUnavailableError
    if not said.startswith("connection to server"):
        # Of what it does not take libpq shows the value, which may be a piece of a password from a URL that was misread.
        said = _QUOTED.sub("", said).rstrip(" :")
    else:
        said = _SOCKET.sub(r'on socket "', said)
    return kind(f"PostgreSQL: no connection: {said or 'the server did not say why'}", committed=False)
