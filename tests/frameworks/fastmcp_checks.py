"""What must hold of FastMCP, the package, besides what must hold of every server."""

from __future__ import annotations

import pytest
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError
from mcp_kit import FastMCPServer, connected, served
from scenario import remembered

from agent_gantry_state import MissingIdentityError
from agent_gantry_state.integrations.mcp import MCPIdentity, header

pytestmark = pytest.mark.anyio

BY_HEADERS = {"user": header("x-user"), "session": header("x-session")}


async def test_a_server_in_another_has_the_identity_of_the_outer_one():
    inner = FastMCPServer()
    outer = FastMCPServer()
    outer.server.mount(inner.server, "inner")
    async with served(outer, MCPIdentity(**BY_HEADERS)) as url:
        for user in ("ada", "bob"):
            async with connected(url, headers={"x-user": user, "x-session": f"of {user}"}) as caller:
                assert await caller.call("inner_aboth", {"item": user}) == (f"{user} is number 1", False)

    assert remembered(inner.tools, session="of ada", user="ada") == {"items": ["ada"]}


async def test_a_tool_that_calls_another_through_the_server():
    server = FastMCPServer()

    @server.server.tool
    async def twice(item: str) -> str:
        """Note an item twice, by another tool."""
        for _ in range(2):
            await server.server.call_tool("anote", {"item": item})
        return "done"

    async with served(server, MCPIdentity(**BY_HEADERS)) as url:
        for user in ("ada", "bob"):
            async with connected(url, headers={"x-user": user, "x-session": f"of {user}"}) as caller:
                assert await caller.call("twice", {"item": user}) == ("done", False)

    assert remembered(server.tools, session="of bob", user="bob") == {"items": ["bob", "bob"]}


async def test_a_call_in_the_process_is_made_by_whoever_is_entered_there():
    server = FastMCPServer()
    MCPIdentity(**BY_HEADERS).install(server.server)

    with server.tools.gantry.session("s1", user="ada"):
        await server.server.call_tool("anote", {"item": "x"})
    with pytest.raises(ToolError, match="no session is known here") as refused:
        await server.server.call_tool("anote", {"item": "y"})

    assert isinstance(refused.value.__cause__, MissingIdentityError)
    assert remembered(server.tools, session="s1", user="ada") == {"items": ["x"]}


async def test_decorated_below_the_servers_own_decorator():
    server = FastMCPServer()
    tools = FastMCP("more")

    @tools.tool
    @server.tools.gantry.with_memory
    def note_that(item: str, memory: dict) -> str:
        """Note an item."""
        memory.setdefault("items", []).append(item)
        return ", ".join(memory["items"])

    with server.tools.gantry.session("s1"):
        await tools.call_tool("note_that", {"item": "x"})

    assert remembered(server.tools, session="s1") == {"items": ["x"]}
