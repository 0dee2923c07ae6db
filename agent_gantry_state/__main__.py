"""``python -m agent_gantry_state``: the demo on the real agent-gantry, and the SQL that a database is prepared with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from agent_gantry_state import __version__
from agent_gantry_state.errors import MissingDriverError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 if all went well, 1 if not; argparse itself ends with 2 on a usage error.
    """
    parser = argparse.ArgumentParser(prog="agent-gantry-state", description="Memory for agent tools.")
    parser.add_argument("--version", action="version", version=f"agent-gantry-state {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", help="show on the real agent-gantry what a tool with a memory does")
    schema = commands.add_parser("schema", help="print the SQL that makes the tables and functions of a store")
    schema.add_argument("store", choices=["postgresql"], help="the store that they are for")
    schema.add_argument("--schema", metavar="NAME", help="the schema that holds them (default: agent_gantry_state)")
    arguments = parser.parse_args(argv)
    return _demo() if arguments.command == "demo" else _schema(arguments.schema)


def _schema(name: str | None) -> int:
    try:
        from agent_gantry_state.stores.postgresql import SCHEMA, check_schema
        from agent_gantry_state.stores.postgresql_schema import schema_sql

        name = check_schema(SCHEMA if name is None else name)
    except (MissingDriverError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(schema_sql(name), end="")  # noqa: T201
    return 0


def _demo() -> int:
    try:
        import agent_gantry_state.integrations.agent_gantry  # noqa: F401 - says which extra is missing
    except ImportError as error:
        print(f"the demo runs on the real agent-gantry. {error}", file=sys.stderr)  # noqa: T201
        return 1
    from agent_gantry_state.demo import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
