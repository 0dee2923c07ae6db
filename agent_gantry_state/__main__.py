"""``python -m agent_gantry_state``, which is the command ``agent-gantry-state``.

The demo, and the SQL that a database is prepared with, need nothing but this package; the commands that look after a store
need the extra ``cli``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from agent_gantry_state import __version__
from agent_gantry_state.errors import MissingDriverError

__all__ = ["main", "print_schema", "run_demo"]

#: What the extra brings.
_MORE = ("list", "show", "get", "set", "delete", "erase", "export", "import", "copy", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 if all went well, 1 if it failed, 2 if it was called in a wrong way, 3 if something is not there, 4 if it is not
        as it was expected.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        from agent_gantry_state.cli import run
    except MissingDriverError as error:
        return _run_without(arguments, error)
    return run(arguments)


def _run_without(arguments: Sequence[str], missing: MissingDriverError) -> int:
    """`main` where the extra is not installed."""
    if arguments and arguments[0] in _MORE:
        print(missing, file=sys.stderr)  # noqa: T201
        return 1
    parser = argparse.ArgumentParser(
        prog="agent-gantry-state",
        description="Memory for agent tools.",
        epilog=f"The commands {', '.join(_MORE)} need the extra cli: pip install 'agent-gantry-state[cli]'",
    )
    parser.add_argument("--version", action="version", version=f"agent-gantry-state {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="show on the real agent-gantry what a tool with a memory does")
    schema = commands.add_parser("schema", help="print the SQL that makes the tables and functions of a store")
    schema.add_argument("store", choices=["postgresql"], help="the store that they are for")
    schema.add_argument("--schema", metavar="NAME", help="the schema that holds them (default: agent_gantry_state)")
    try:
        given = parser.parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return run_demo() if given.command == "demo" else print_schema(given.schema)


def print_schema(name: str | None) -> int:
    """Print the SQL of the PostgreSQL store's schema; 0, or 1 if there is none."""
    try:
        from agent_gantry_state.stores.postgresql import SCHEMA, check_schema
        from agent_gantry_state.stores.postgresql_schema import schema_sql

        name = check_schema(SCHEMA if name is None else name)
    except (MissingDriverError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(schema_sql(name), end="")  # noqa: T201
    return 0


def run_demo() -> int:
    """Run the demo; 0, or 1 if it cannot be run or a claim of it does not hold."""
    try:
        import agent_gantry_state.integrations.agent_gantry  # noqa: F401 - says which extra is missing
    except ImportError as error:
        print(f"the demo runs on the real agent-gantry. {error}", file=sys.stderr)  # noqa: T201
        return 1
    from agent_gantry_state.demo import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
