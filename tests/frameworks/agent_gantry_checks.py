"""What must hold of `AgentGantry.serve_mcp`, whatever version of the MCP SDK it stands on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import warnings

import pytest
from mcp_kit import MODES, AgentGantryServer, connected, connected_by_sse, served
from scenario import remembered
from tools import make_agent_gantry_tools

from agent_gantry_state import StateWarning
from agent_gantry_state.integrations.mcp import MCPIdentity, handle, header

pytestmark = pytest.mark.anyio

WHO = {"user": header("x-user"), "session": header("x-session")}
ADA = {"x-user": "ada", "x-session": "s1"}


@contextlib.asynccontextmanager
async def serving_mcp(gantry, transport, **options):
    """`serve_mcp` on loopback, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = asyncio.create_task(gantry.serve_mcp(transport, "static", port=port, **options))
    while not running.done():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            await writer.wait_closed()
            break
        await asyncio.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("transport", ["http", "streamable_http", "sse"])
async def test_serve_mcp_knows_who_calls(transport):
    tools = make_agent_gantry_tools()
    connect = connected_by_sse if transport == "sse" else connected

    async with serving_mcp(tools.gantry, transport, identity=MCPIdentity(**WHO), log_level="error") as url:
        for user in ("ada", "bob"):
            async with connect(url, headers={"x-user": user, "x-session": f"of {user}"}) as caller:
                assert await caller.call("aboth", {"item": user}) == (f"{user} is number 1", False)

    for user in ("ada", "bob"):
        assert remembered(tools, session=f"of {user}", user=user) == {"items": [user]}


async def test_serve_mcp_over_http_without_a_declaration_knows_nobody():
    tools = make_agent_gantry_tools()
    # Whatever is entered around the server is not its callers'.
    with tools.gantry.session("around", user="around"):
        async with serving_mcp(tools.gantry, "http", log_level="error") as url, connected(url, headers=ADA) as caller:
            text, failed = await caller.call("anote", {"item": "x"})

    assert failed
    assert "MCPIdentity(session=...)" in text
    assert tools.ran == []


async def test_serve_mcp_of_a_gantry_with_a_session_warns():
    tools = make_agent_gantry_tools(session="local")
    with pytest.warns(StateWarning, match=r"serve_mcp: whoever can reach .* identity=MCPIdentity"):
        async with serving_mcp(tools.gantry, "http", log_level="error") as url, connected(url, headers=ADA) as caller:
            assert await caller.call("anote", {"item": "x"}) == ("x", False)

    with warnings.catch_warnings():
        warnings.simplefilter("error", StateWarning)
        identity = MCPIdentity(session="local")
        async with serving_mcp(tools.gantry, "http", identity=identity, log_level="error") as url:
            async with connected(url, headers=ADA) as caller:
                assert await caller.call("anote", {"item": "y"}) == ("x, y", False)


@pytest.mark.parametrize("identity", [None, MCPIdentity()], ids=["none", "given"])
async def test_serve_mcp_refuses_a_transport_that_there_is_not(identity):
    with pytest.raises(ValueError, match="carrier pigeon"):
        await make_agent_gantry_tools().gantry.serve_mcp("carrier pigeon", identity=identity)


@pytest.mark.parametrize("mode", MODES)
async def test_tools_that_are_run_by_a_tool(mode):
    server = AgentGantryServer("dynamic")

    @server.tools.gantry.register
    @server.tools.gantry.with_memory
    async def note_in(item: str, chat: str, memory: dict) -> str:
        """Note an item in a chat."""
        memory.setdefault("items", []).append(item)
        return ", ".join(memory["items"])

    async with served(server, MCPIdentity(user=header("x-user"), session=handle("chat"))) as url:
        async with connected(url, mode, {"x-user": "ada"}) as ada, connected(url, mode, {"x-user": "bob"}) as bob:
            for caller, item, chat, expected in ((ada, "x", "c1", "x"), (bob, "y", "c2", "y"), (ada, "z", "c1", "x, z")):
                call = {"tool_name": "note_in", "arguments": {"item": item, "chat": chat}}
                assert await caller.call("execute_tool", call) == (expected, False)
            call = {"tool_name": "note_in", "arguments": {"item": "!", "chat": "c1"}}
            text, failed = await bob.call("execute_tool", call)

    assert failed
    assert "this session belongs to another caller" in text
    assert remembered(server.tools, session="c1", user="ada") == {"items": ["x", "z"]}
