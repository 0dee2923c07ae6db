import pytest
from agent_gantry_checks import *  # noqa: F403 - of agent-gantry's own
from mcp.server.lowlevel import Server
from mcp_checks import *  # noqa: F403 - what must hold of every server

from agent_gantry_state import DeclarationError
from agent_gantry_state.integrations.mcp import MCPIdentity


def test_a_server_without_tools_is_refused():
    """Of what is registered later the SDK 1.x tells nobody."""
    with pytest.raises(DeclarationError, match="runs no tools yet"):
        MCPIdentity().install(Server("tools"))
