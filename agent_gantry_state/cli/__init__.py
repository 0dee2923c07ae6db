"""The command line `agent-gantry-state`: `Gantry.admin` for a shell. Needs the extra ``cli``."""

from __future__ import annotations

import importlib.util

from agent_gantry_state.errors import MissingDriverError

for _name in ("typer", "rich"):
    if importlib.util.find_spec(_name) is None:
        raise MissingDriverError(
            f"this command needs {_name}, which is not installed: pip install 'agent-gantry-state[cli]'", extra="cli"
        )

from agent_gantry_state.cli.commands import app, run  # noqa: E402 - only where they can be imported

__all__ = ["app", "run"]
