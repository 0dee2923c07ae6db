"""What the commands say: data on stdout, everything else on stderr, and how a failure becomes an exit code.

Texts come from people and models, and go to terminals: what cannot be printed is shown as JSON, and nothing is taken for
markup. No URL that was given is ever repeated, for it may hold a password.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from agent_gantry_state.admin.portable import dumps, to_json
from agent_gantry_state.errors import (
    MemoryConflictError,
    MemoryExistsError,
    MemoryNotFoundError,
    StateError,
    StoreURLError,
)

__all__ = [
    "CONFLICT",
    "FAILED",
    "NOT_FOUND",
    "USAGE",
    "error",
    "fail",
    "put",
    "put_json",
    "reporting",
    "say",
    "shown",
    "table",
    "told",
    "without_urls",
]

FAILED, USAGE, NOT_FOUND, CONFLICT = 1, 2, 3, 4
_CODES: Final[tuple[tuple[type[StateError], int], ...]] = (
    (MemoryNotFoundError, NOT_FOUND),
    (MemoryConflictError, CONFLICT),
    (MemoryExistsError, CONFLICT),
    (StoreURLError, USAGE),
)
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)\S+")
_USER: Final = re.compile(r"(://)\S*@")


def put(text: str) -> None:
    """Data."""
    typer.echo(text)


def put_json(**fields: Any) -> None:
    """Data, as one line of JSON."""
    put(dumps(fields))


def say(text: str) -> None:
    """Talk."""
    # No message of ours has a password in it; one of a driver must not be the first.
    typer.echo(_USER.sub(r"\1...@", text), err=True)


def error(text: str) -> None:
    """What went wrong."""
    say(f"error: {text}")


def fail(text: str, code: int = FAILED) -> NoReturn:
    """Say what went wrong, and end.

    Raises:
        typer.Exit: With *code*.
    """
    error(text)
    raise typer.Exit(code)


def without_urls(text: str) -> str:
    """*text* without what follows the scheme of a URL in it."""
    return _URL.sub(r"\1...", text)


def told(failure: OSError) -> str:
    """What the system says went wrong, and with which file."""
    where = "" if failure.filename is None else f": {shown(str(failure.filename))}"
    return f"{failure.strerror or type(failure).__name__}{where}"


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """Say what went wrong inside, and end with the exit code for it."""
    try:
        yield
    except StateError as failure:
        fail(str(failure), next((code for kind, code in _CODES if isinstance(failure, kind)), FAILED))
    except BrokenPipeError:
        raise
    except OSError as failure:
        fail(told(failure))


def shown(text: str) -> str:
    """A text as it is if that can be printed, else as JSON."""
    plain = text.isprintable() and text.strip() == text and text[:1] not in ('"', "{", "")
    return text if plain else dumps(to_json(text))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Data in columns: a table on a terminal, else lines with tabs."""
    if not sys.stdout.isatty():
        for row in rows:
            put("\t".join(row))
        return
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        drawn.add_column(title, overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))
    Console(highlight=False).print(drawn)
