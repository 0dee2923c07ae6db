"""Who calls, for tools that Google's Agent Development Kit runs: its session's id, user and app.

A plugin, since the kit gives a tool's body no way to ask. It is told of each call of a tool, of every agent of a runner, in
the task in which the tool then runs or whose context the tool's task is given, so that the identity ends with the call and
never reaches the caller of the run. That also holds in the thread that the sync `Runner.run` starts without a context.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from agent_gantry_state.gantry import Stateful

try:
    from google.adk.plugins.base_plugin import BasePlugin
    from google.adk.tools.base_tool import BaseTool
    from google.adk.tools.tool_context import ToolContext
except ImportError as error:
    raise ImportError(
        "agent_gantry_state.integrations.google_adk needs google-adk: pip install 'agent-gantry-state[google-adk]'"
    ) from error

__all__ = ["IdentityPlugin"]


class IdentityPlugin(BasePlugin):
    """Lets tools know the session, the user and the app of the run: ``App(..., plugins=[IdentityPlugin(gantry)])``.

    The kit's session is the scope ``session``, its user ``user``, and its app ``app_name``. That is the whole identity: a
    ``gantry.session(...)`` around the run does not hold for its tools.

    Args:
        gantry: A gantry of yours; what it is told of the caller, tools of every gantry know.
        name: Name of the plugin among those of the app.
    """

    def __init__(self, gantry: Stateful, name: str = "agent_gantry_state") -> None:
        super().__init__(name)
        self._gantry = gantry

    async def before_tool_callback(self, *, tool: BaseTool, tool_args: dict[str, Any], tool_context: ToolContext) -> None:
        """Enter the identity for one call."""
        session = tool_context.session
        self._gantry.session(session.id, user=session.user_id, app_name=session.app_name).__enter__()
