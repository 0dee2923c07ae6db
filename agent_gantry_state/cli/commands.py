"""The commands. Each opens a gantry on the store that its URL names, and asks `gantry.admin`."""

from __future__ import annotations

import contextlib
import enum
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer

from agent_gantry_state import __version__
from agent_gantry_state.admin import ABSENT, Admin, Health, Receipt, StoredKey, Transferred
from agent_gantry_state.admin.lines import memories_in
from agent_gantry_state.admin.portable import NotPortableError, dumps, from_json, loads, to_json
from agent_gantry_state.cli.speech import (
    FAILED,
    USAGE,
    error,
    fail,
    put,
    put_json,
    reporting,
    say,
    shown,
    table,
    told,
    without_urls,
)
from agent_gantry_state.errors import CorruptEntryError, StoreURLError
from agent_gantry_state.gantry import Gantry
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import Scope
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import KEEP, Listed

__all__ = ["app", "run"]

_PROGRAM: Final = "agent-gantry-state"
#: Not the letter of a drive.
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

app = typer.Typer(
    name=_PROGRAM,
    help="Look after the memories of agent tools: list, show, change, export, copy and erase them.",
    no_args_is_help=True,
    # Its traceback could show what a URL holds.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: Sequence[str]) -> int:
    """Run the command line.

    Returns:
        0 if all went well, 1 if it failed, 2 if it was called in a wrong way, 3 if something is not there, 4 if it is not
        as it was expected.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # What the shell has closed leads nowhere, and no file of a store gets its number.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        # Whatever an id or a value has in it, a terminal that cannot show it is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = _answered(arguments)
    try:
        sys.stdout.flush()
    except OSError as failure:
        # It was said already, unless all went well until here. Python would try once more at its end.
        if not code and not isinstance(failure, BrokenPipeError):
            error(told(failure))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or FAILED
    return code


def _answered(arguments: Sequence[str]) -> int:
    try:
        answer = app(list(arguments), prog_name=_PROGRAM, standalone_mode=False)
    except _UsageError as wrong:
        # In our words, for theirs repeat what was given, and that may be the URL of a store.
        error(f"{without_urls(wrong.format_message())}\nTry '{_PROGRAM} --help'.")
        return int(wrong.exit_code)
    except typer.Abort:
        say("aborted")
        return FAILED
    except BrokenPipeError:
        # Whoever read this has seen enough.
        return FAILED
    except OSError as failure:
        # What the store was asked for is done by now; there is no place for what is to be printed of it.
        error(told(failure))
        return FAILED
    return answer if isinstance(answer, int) else 0


# Of click, which typer has as a part or beside it, by its version: the base of all errors that are the caller's.
_UsageError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


# Options that many commands have.

_Store = Annotated[
    str,
    typer.Option(
        "--store",
        "-s",
        metavar="URL",
        envvar="AGENT_GANTRY_STATE_URL",
        help="Where the memories are: sqlite:///path, file:///path, redis://host, postgresql://host/db, ... A password is "
        "better given by the environment variable.",
        show_default=False,
    ),
]
_App = Annotated[str, typer.Option("--app", help="The app of the gantry that they are of.")]
_AllApps = Annotated[bool, typer.Option("--all-apps", help="Those of every app.")]
_ScopeName = Annotated[
    str, typer.Option("--scope", metavar="SCOPE", help="session, user, conversation, tool, global, or one of your own.")
]
_Id = Annotated[
    str | None,
    typer.Option("--id", metavar="ID", help="Of the session, the user, ...; not needed for global.", show_default=False),
]
_OnlyScope = Annotated[
    str | None, typer.Option("--scope", metavar="SCOPE", help="Only those of this scope.", show_default=False)
]
_Owner = Annotated[
    str | None,
    typer.Option(
        "--owner", metavar="USER", help='Only those that belong to this user, or with "" to nobody.', show_default=False
    ),
]
_User = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="USER",
        help="Only those of this user: its own memory, and all that belong to it.",
        show_default=False,
    ),
]
_Key = Annotated[str, typer.Argument(metavar="KEY", show_default=False)]
_Version = Annotated[
    str | None,
    typer.Option(
        "--if-version",
        metavar="VERSION",
        help="Only if the key still has the version that get has given.",
        show_default=False,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="One line of JSON for each result.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")]


class Existing(enum.Enum):
    """What becomes of a memory that is there already as another one."""

    refuse = "refuse"
    skip = "skip"
    replace = "replace"


_Existing = Annotated[
    Existing,
    typer.Option("--existing", help="What to do where another memory is there already. What is the same is left alone."),
]


# Looking.


@app.command("list")
def list_(
    store: _Store,
    app_name: _App = "default",
    all_apps: _AllApps = False,
    scope: _OnlyScope = None,
    owner: _Owner = None,
    user: _User = None,
    as_json: _Json = False,
) -> None:
    """List memories: app, scope, id and owner."""
    _check_user(user, owner)
    with _opened(store, app_name, all_apps) as admin:
        found = admin.list(scope, owner=owner, user=user)
        if as_json:
            for each in found:
                put_json(**_address(each.namespace), owner=_text(each.owner))
        else:
            table(("APP", "SCOPE", "ID", "OWNER"), map(_listed_row, found))


@app.command()
def show(
    store: _Store, scope: _ScopeName = "session", id: _Id = None, app_name: _App = "default", as_json: _Json = False
) -> None:
    """Show a memory with all its keys."""
    with _opened(store, app_name) as admin:
        memory = admin.show(_named(app_name, scope, id))
    if as_json:
        keys = [_key_fields(each) for each in memory.keys]
        put_json(**_address(memory.namespace), owner=_text(memory.owner), size=memory.size, keys=keys)
        return
    say(f"{_keys_shown(len(memory.keys))}, {memory.size} bytes, {_owner_shown(memory.owner)}")
    table(("KEY", "VALUE", "EXPIRES IN", "TOOL"), map(_key_row, memory.keys))


@app.command()
def get(
    store: _Store,
    key: _Key,
    scope: _ScopeName = "session",
    id: _Id = None,
    app_name: _App = "default",
    as_json: _Json = False,
) -> None:
    """Print the value of a key, as JSON."""
    with _opened(store, app_name) as admin:
        namespace = _named(app_name, scope, id)
        found = admin.get(namespace, key)
    if as_json:
        put_json(**_address(namespace), **_key_fields(found))
    else:
        put(dumps(to_json(found.value)))


# Changing.


@app.command("set")
def set_(
    store: _Store,
    key: _Key,
    value: Annotated[
        str,
        typer.Argument(
            metavar="VALUE", help='JSON, such as 1 or \'{"a": [true, "x"]}\'; - reads it from stdin.', show_default=False
        ),
    ],
    scope: _ScopeName = "session",
    id: _Id = None,
    app_name: _App = "default",
    is_text: Annotated[bool, typer.Option("--text", help="VALUE is no JSON but a text, as it is.")] = False,
    ttl: Annotated[
        float | None,
        typer.Option(
            "--ttl", metavar="SECONDS", help="Let it expire. By default it keeps the time it has.", show_default=False
        ),
    ] = None,
    no_ttl: Annotated[bool, typer.Option("--no-ttl", help="Let it not expire.")] = False,
    version: _Version = None,
    absent: Annotated[bool, typer.Option("--if-absent", help="Only if the key is not there.")] = False,
    as_json: _Json = False,
) -> None:
    """Set a key, and print its new version. Compares first with --if-version or --if-absent."""
    if ttl is not None and no_ttl:
        fail("--ttl and --no-ttl exclude each other", USAGE)
    if version is not None and absent:
        fail("--if-version and --if-absent exclude each other", USAGE)
    if ttl is not None and not 0 < ttl < float("inf"):
        fail("--ttl must be a positive number of seconds", USAGE)
    given = _value(_stdin_text() if value == "-" else value, is_text)
    # What limits the program has declared is not known here.
    limits = {scope: Scope(max_bytes=None)} if scope else {}
    with _opened(store, app_name, makes=True, scopes=limits) as admin:
        new = admin.set(
            _named(app_name, scope, id),
            key,
            given,
            ttl=None if no_ttl else KEEP if ttl is None else ttl,
            version=ABSENT if absent else version,
        )
    if as_json:
        put_json(version=new)
    else:
        put(new)


@app.command()
def delete(
    store: _Store,
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", show_default=False)] = None,
    scope: _ScopeName = "session",
    id: _Id = None,
    app_name: _App = "default",
    version: _Version = None,
    everything: Annotated[bool, typer.Option("--all", help="Erase the whole memory.")] = False,
    yes: _Yes = False,
) -> None:
    """Delete a key, or with --all the whole memory."""
    if everything == (key is not None):
        fail("name a KEY, or say --all for the whole memory", USAGE)
    if everything and version is not None:
        fail("--all and --if-version exclude each other", USAGE)
    with _opened(store, app_name) as admin:
        namespace = _named(app_name, scope, id)
        if key is not None:
            admin.delete(namespace, key, version=version)
        else:
            _confirm(f"Erase this {shown(scope)} memory with all its keys?", yes)
            admin.forget(namespace)


@app.command()
def erase(
    store: _Store,
    user: Annotated[str, typer.Option("--user", metavar="USER", help="Id of the user.", show_default=False)],
    app_name: _App = "default",
    all_apps: _AllApps = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be erased.")] = False,
    yes: _Yes = False,
    as_json: _Json = False,
) -> None:
    """Erase every memory of a user, sessions that belong to the user included, and print a receipt."""
    _check_user(user)
    with _opened(store, app_name, all_apps) as admin:
        if not dry_run:
            _confirm("Erase every memory of this user?", yes)
        receipt = admin.erase(user=user, dry_run=dry_run)
    _put_receipt(receipt, as_json)
    if not (receipt.complete or dry_run):
        fail("memories of this user are made as fast as they are erased: end its sessions, and erase again")


# Moving.


@app.command("export")
def export_(
    store: _Store,
    app_name: _App = "default",
    all_apps: _AllApps = False,
    scope: _OnlyScope = None,
    owner: _Owner = None,
    user: _User = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to this file, which only you can read, in place of stdout.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print memories as lines of JSON, which import reads."""
    _check_user(user, owner)
    _refuse_url(str(output or ""))
    damaged: list[Namespace] = []
    count = -2
    with _opened(store, app_name, all_apps) as admin, _written_to(output) as write:
        for line in admin.export(scope, owner=owner, user=user, on_corrupt=_damage_teller(damaged)):
            write(line)
            count += 1
    say(f"{_memories(count)} exported")
    _end_with(damaged)


@app.command("import")
def import_(
    store: _Store,
    file: Annotated[str, typer.Argument(metavar="FILE", help="What export has written; - reads stdin.", show_default=False)],
    existing: _Existing = Existing.refuse,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    as_json: _Json = False,
) -> None:
    """Write the memories of an export, each whole or not at all, into the app that each is of.

    A file is checked to its end before anything is written; of what comes by stdin, each line is when it comes.
    """
    _refuse_url(file)
    done = Transferred()
    with _opened(store, "", all_apps=True, makes=True) as admin, _read_from(file) as lines:
        if file != "-" and lines.seekable():
            for _ in memories_in(lines):
                pass
            lines.seek(0)
        try:
            done = admin.import_(
                lines, existing=existing.value, dry_run=dry_run, progress=lambda now, _: _remember(done, now)
            )
        except BaseException:
            if done.written and not dry_run:
                say(f"imported from the lines before: {_memories(done.written)}")
            raise
    _put_transferred(done, as_json, "would be imported" if dry_run else "imported")


@app.command()
def copy(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FROM-URL", envvar="AGENT_GANTRY_STATE_FROM_URL", show_default=False, help="The store to read."
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(metavar="TO-URL", envvar="AGENT_GANTRY_STATE_TO_URL", show_default=False, help="The store to write."),
    ],
    app_name: Annotated[str | None, typer.Option("--app", help="Only the memories of this app.", show_default=False)] = None,
    scope: _OnlyScope = None,
    owner: _Owner = None,
    existing: _Existing = Existing.refuse,
    as_json: _Json = False,
) -> None:
    """Copy memories from one store to another, with what they have left to live, and see that they are there."""
    damaged: list[Namespace] = []
    everything = app_name is None
    with (
        _opened(source, app_name or "", everything) as here,
        _opened(target, app_name or "", everything, makes=True) as there,
        _progress("copying") as progress,
    ):
        done = here.copy(
            there,
            scope,
            owner=owner,
            existing=existing.value,
            progress=progress,
            on_corrupt=_damage_teller(damaged),
        )
    _put_transferred(done, as_json, "copied")
    _end_with(damaged)


# Checking.


@app.command()
def doctor(
    store: _Store,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Write a memory of its own, and erase it again.")] = True,
    scan: Annotated[bool, typer.Option("--scan/--no-scan", help="Read all memories.")] = True,
    as_json: _Json = False,
) -> None:
    """Look whether a store does what it should: it answers, keeps every type, and can be read."""
    with _opened(store, "", all_apps=True) as admin:
        (health,) = admin.doctor(write=write, scan=scan)
    _put_health(health, as_json)
    if not health.healthy:
        raise typer.Exit(FAILED)


@app.command()
def schema(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The store that it is for: postgresql.", show_default=False)],
    name: Annotated[
        str | None,
        typer.Option(
            "--schema", metavar="NAME", help="The schema that holds them, by default agent_gantry_state.", show_default=False
        ),
    ] = None,
) -> None:
    """Print the SQL that makes the tables and functions of a store."""
    from agent_gantry_state.__main__ import print_schema

    if store != "postgresql":
        fail("only postgresql has a schema", USAGE)
    raise typer.Exit(print_schema(name))


@app.command()
def demo() -> None:
    """Show on the real agent-gantry what a tool with a memory does."""
    from agent_gantry_state.__main__ import run_demo

    raise typer.Exit(run_demo())


def _print_version(wanted: bool) -> None:
    if wanted:
        put(f"{_PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """Look after the memories of agent tools: list, show, change, export, copy and erase them.

    Data goes to stdout and all talk to stderr. Ends with 0: ok, 1: failed, 2: called in a wrong way, 3: not found, 4: not as
    it was expected.
    """


# Stores.


@contextlib.contextmanager
def _opened(
    url: str, app_name: str, all_apps: bool = False, makes: bool = False, scopes: dict[str, Scope] | None = None
) -> Iterator[Admin]:
    """What is done with a store inside, with errors that become exit codes.

    Args:
        url: Of the store.
        app_name: The app.
        all_apps: Whether all apps instead.
        makes: Whether a store in a file that is not there is made.
        scopes: As in a gantry.
    """
    with reporting(), Gantry(url, app=app_name, scopes=scopes) as gantry:
        admin = gantry.admin.all_apps if all_apps else gantry.admin
        (store,) = admin.stores
        if isinstance(store, MemoryStore):
            raise StoreURLError("memory:// is in the program that has it, and cannot be looked into from here")
        path = getattr(store, "path", None)
        if isinstance(path, Path) and not makes and not path.exists():
            fail(f"there is nothing at {shown(str(path))}: correct the URL of the store")
        yield admin


def _named(app_name: str, scope: str, id: str | None) -> Namespace:
    if id is None and scope == "global":
        id = "global"
    if not scope or not id:
        fail("--id is needed, and not empty: which session, user, ... it is", USAGE)
    return Namespace(scope, id, app_name)


def _check_user(user: str | None, owner: str | None = None) -> None:
    if user == "":
        fail("--user must not be empty", USAGE)
    if user is not None and owner is not None:
        fail("--user and --owner exclude each other", USAGE)


def _confirm(question: str, yes: bool) -> None:
    if not yes and sys.stdin.isatty():
        typer.confirm(question, abort=True, err=True)


# Values and files.


def _stdin_text() -> str:
    try:
        # Whatever the locale says: JSON is UTF-8, and a text is not to become another one.
        return io.TextIOWrapper(sys.stdin.buffer, "utf-8").read()
    except UnicodeDecodeError:
        fail("VALUE: it is not UTF-8", USAGE)


def _refuse_url(file: str) -> None:
    # It would be shown if it cannot be opened. A path has only one slash left of two.
    if _URL.match(file):
        fail("a file is needed where the URL of a store is; that goes with --store", USAGE)


def _value(text: str, is_text: bool) -> Any:
    if is_text:
        return text
    try:
        return from_json(loads(text))
    except NotPortableError as wrong:
        fail(f"VALUE: {wrong}. A text is written in quotes, or given with --text", USAGE)


@contextlib.contextmanager
def _written_to(output: Path | None) -> Iterator[Callable[[str], None]]:
    if output is None:
        yield put
        return
    # Nobody else may read it, and what was there before stays until this is whole. The name is new each time: what a killed
    # export has left behind is in nobody's way.
    handle, name = tempfile.mkstemp(".part", f"{output.name}.", output.parent)
    part = Path(name)
    try:
        with open(handle, "w", encoding="ascii") as file:  # noqa: PTH123
            yield lambda line: print(line, file=file)
        part.replace(output)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _read_from(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as lines:
        yield lines


def _remember(done: Transferred, now: Transferred) -> None:
    done.written = now.written


# What is printed.


def _address(namespace: Namespace) -> dict[str, Any]:
    return {"app": _text(namespace.app), "scope": _text(namespace.scope), "id": _text(namespace.id)}


def _text(text: str | None) -> Any:
    return None if text is None else to_json(text)


def _owner_shown(owner: str | None) -> str:
    return "no owner yet" if owner is None else f"owner {shown(owner)}" if owner else "owner nobody"


def _number(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _keys_shown(count: int | None) -> str:
    return "damaged" if count is None else _number(count, "key", "keys")


def _memories(count: int) -> str:
    return _number(count, "memory", "memories")


def _listed_row(each: Listed) -> tuple[str, ...]:
    owner = "-" if each.owner is None else shown(each.owner)
    return (shown(each.namespace.app), shown(each.namespace.scope), shown(each.namespace.id), owner)


def _key_fields(each: StoredKey) -> dict[str, Any]:
    return {
        "key": _text(each.name),
        "tool": _text(each.tool),
        "value": to_json(each.value),
        "version": each.version,
        "ttl": each.ttl,
        "slides": each.slides,
        "size": each.size,
    }


def _key_row(each: StoredKey) -> tuple[str, ...]:
    ttl = "" if each.ttl is None else f"{each.ttl:.0f} s"
    tool = "" if each.tool is None else shown(each.tool)
    return (shown(each.name), dumps(to_json(each.value)), ttl, tool)


def _put_receipt(receipt: Receipt, as_json: bool) -> None:
    if as_json:
        erased = [
            {**_address(each.namespace), "owner": _text(each.owner), "keys": each.keys, "size": each.size}
            for each in receipt.erased
        ]
        put_json(
            user=_text(receipt.user),
            dry_run=receipt.dry_run,
            complete=receipt.complete,
            at=receipt.at.isoformat(timespec="seconds"),
            erased=erased,
        )
        return
    rows = [
        (
            *_listed_row(Listed(each.namespace, each.owner)),
            _keys_shown(each.keys),
        )
        for each in receipt.erased
    ]
    table(("APP", "SCOPE", "ID", "OWNER", "KEYS"), rows)
    say(f"{'would be erased' if receipt.dry_run else 'erased'}: {_memories(len(receipt.erased))}")


def _put_transferred(done: Transferred, as_json: bool, what: str) -> None:
    counts = {
        "written": done.written,
        "unchanged": done.unchanged,
        "skipped": done.skipped,
        "expired": done.expired,
        "corrupt": done.corrupt,
    }
    if as_json:
        put_json(**counts)
    else:
        say(f"{what}: {_memories(done.written)}")
        table(("", ""), [(name, str(count)) for name, count in counts.items()])


def _put_health(health: Health, as_json: bool) -> None:
    corrupt = [
        {**_address(each.namespace), "key": _text(each.key), "problem": each.problem} for each in health.corrupt or ()
    ]
    fields = {
        "store": health.store,
        "server": health.server,
        "healthy": health.healthy,
        "problems": health.problems,
        "seconds": health.seconds,
        "clock_skew": health.clock_skew,
        "round_trip": health.round_trip,
        "memories": health.memories,
        "keys": health.keys,
        "size": health.size,
        "expiring": health.expiring,
        "expired": health.expired,
        "corrupt": None if health.corrupt is None else corrupt,
        "unlisted": health.unlisted,
        "versions": health.versions,
    }
    if as_json:
        put_json(**fields)
        return
    fields["corrupt"] = None if health.corrupt is None else len(health.corrupt)
    fields["versions"] = ", ".join(f"{name} {version}" for name, version in health.versions.items())
    del fields["problems"]
    table(("", ""), [(name.replace("_", " "), _plain(value)) for name, value in fields.items()])
    for problem in health.problems:
        error(problem)
    for each in health.corrupt or ():
        row = _listed_row(Listed(each.namespace, None))[:3]
        say(f"damaged: {' '.join(row)}{'' if each.key is None else f', key {shown(each.key)}'}")


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _damage_teller(damaged: list[Namespace]) -> Callable[[Namespace, CorruptEntryError], None]:
    def tell(namespace: Namespace, wrong: CorruptEntryError) -> None:
        damaged.append(namespace)
        row = _listed_row(Listed(namespace, None))[:3]
        error(f"{' '.join(row)}: {wrong}")

    return tell


def _end_with(damaged: Sequence[Namespace]) -> None:
    if damaged:
        fail(f"left out, for it cannot be read: {_memories(len(damaged))}")


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[Transferred, int | None], None] | None]:
    """A bar on stderr, if that is a terminal; then what tells it how far things are."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def tell(done: Transferred, total: int | None) -> None:
            bar.update(task, completed=done.memories, total=total)

        yield tell
