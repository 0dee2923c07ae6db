"""``python -m agent_gantry_state demo``: what this package does, shown on the real agent-gantry."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from agent_gantry_state import __version__

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
    parser.parse_args(argv)
    try:
        import agent_gantry_state.integrations.agent_gantry  # noqa: F401 - says which extra is missing
    except ImportError as error:
        print(f"the demo runs on the real agent-gantry. {error}", file=sys.stderr)  # noqa: T201
        return 1
    from agent_gantry_state.demo import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
