"""MCP servers of every kind, and clients for them, the same way for mcp 1.x and 2.x: whichever is installed here."""

from __future__ import annotations

import contextlib
import json
from importlib.metadata import distributions, version

from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from serving import serving
from tools import make_agent_gantry_tools, make_tools

MAJOR = int(version("mcp").split(".")[0])

if MAJOR == 1:
    import httpx as http
    from mcp import ClientSession
    from mcp.shared.exceptions import McpError as ProtocolError
else:
    import httpx2 as http
    from mcp.client.client import Client
    from mcp.shared.exceptions import MCPError as ProtocolError  # noqa: F401 - for the checks

#: How a client speaks: mcp 2.x also as those before it, which have a session.
MODES = ["1.x"] if MAJOR == 1 else ["legacy", "auto"]


class AgentGantryServer:
    """agent-gantry's own."""

    def __init__(self, mode="static", **options):
        from agent_gantry.servers.mcp_server import create_mcp_server

        self.tools = make_agent_gantry_tools(**options)
        self.server = create_mcp_server(self.tools.gantry, mode)

    def add(self, function):
        self.tools.gantry.register(function)

    def app(self, stateless=False):
        return self.server.streamable_http_app(stateless=stateless)

    def sse_app(self):
        return self.server.sse_app()


class SDKServer:
    """The one of the SDK that takes functions: FastMCP in 1.x, MCPServer in 2.x."""

    def __init__(self, **options):
        self.tools = make_tools(**options)
        if MAJOR == 1:
            from mcp.server.fastmcp import FastMCP as Server
        else:
            from mcp.server.mcpserver import MCPServer as Server
        self.server = Server("tools")
        for function in self.tools.functions:
            self.add(function)

    def add(self, function):
        self.server.add_tool(function)

    def app(self, stateless=False):
        if MAJOR == 1:
            self.server.settings.stateless_http = stateless
            return self.server.streamable_http_app()
        return self.server.streamable_http_app(stateless_http=stateless)

    def sse_app(self):
        return self.server.sse_app()


class FastMCPServer:
    """FastMCP, the package of that name."""

    def __init__(self, **options):
        from fastmcp import FastMCP

        self.tools = make_tools(**options)
        self.server = FastMCP("tools")
        for function in self.tools.functions:
            self.add(function)

    def add(self, function):
        self.server.tool(function)

    def app(self, stateless=False):
        return self.server.http_app(stateless_http=stateless)

    def sse_app(self):
        return self.server.http_app(transport="sse")


INSTALLED = {distribution.name for distribution in distributions()}

if "fastmcp" in INSTALLED:
    SERVERS = {"FastMCP": FastMCPServer}
else:
    SERVERS = {"agent-gantry": AgentGantryServer, "SDK": SDKServer}


class Caller:
    """A client that is connected, whose HTTP headers may change from call to call."""

    def __init__(self, client, headers):
        self._client = client
        self.headers = headers

    async def call(self, name, arguments=None, meta=None):
        """The text that a tool answers with, and whether it is an error."""
        answer = await self._client.call_tool(name, arguments or {}, meta=meta)
        failed = answer.isError if MAJOR == 1 else answer.is_error
        return "".join(block.text for block in answer.content), failed

    async def shown(self):
        """All that a model is shown."""
        return [tool.model_dump(mode="json") for tool in (await self._client.list_tools()).tools]


@contextlib.asynccontextmanager
async def connected(url, mode=MODES[0], headers=None):
    """A client of a server over streamable HTTP."""
    async with http.AsyncClient(headers=headers or {}, timeout=30) as client, contextlib.AsyncExitStack() as stack:
        transport = streamable_http_client(f"{url}/mcp", http_client=client)
        if MAJOR == 1:
            read, write, *_ = await stack.enter_async_context(transport)
            session = await stack.enter_async_context(ClientSession(read, write))
            await session.initialize()
        else:
            session = await stack.enter_async_context(Client(transport, mode=mode))
        yield Caller(session, client.headers)


@contextlib.asynccontextmanager
async def connected_by_sse(url, headers):
    """A client over the transport before that."""
    async with contextlib.AsyncExitStack() as stack:
        transport = sse_client(f"{url}/sse", headers=headers)
        if MAJOR == 1:
            session = await stack.enter_async_context(ClientSession(*await stack.enter_async_context(transport)))
            await session.initialize()
        else:
            session = await stack.enter_async_context(Client(transport, mode="legacy"))
        yield Caller(session, headers)


@contextlib.asynccontextmanager
async def connected_here(server):
    """A client in this process."""
    server = getattr(server, "_mcp_server", getattr(server, "server", server))
    if MAJOR == 1:
        from mcp.shared.memory import create_connected_server_and_client_session

        async with create_connected_server_and_client_session(server) as session:
            yield Caller(session, {})
    else:
        async with Client(server) as client:
            yield Caller(client, {})


@contextlib.asynccontextmanager
async def served(server, who, *, stateless=False, around=lambda app: app):
    """A server over streamable HTTP; gives its URL."""
    if who is not None:
        who.install(server.server)
    async with serving(around(server.app(stateless))) as url:
        yield url


@contextlib.asynccontextmanager
async def connected_by_stdio(*command):
    """A client of a server that it starts itself."""
    from mcp.client.stdio import StdioServerParameters, stdio_client

    async with contextlib.AsyncExitStack() as stack:
        transport = stdio_client(StdioServerParameters(command=command[0], args=list(command[1:])))
        if MAJOR == 1:
            session = await stack.enter_async_context(ClientSession(*await stack.enter_async_context(transport)))
            await session.initialize()
        else:
            session = await stack.enter_async_context(Client(transport))
        yield Caller(session, {})


class SharedConnection:
    """One session of the protocol, as those before 2026-07-28 have it, that several clients send their requests in.

    So does a gateway that keeps one connection to a server for all whom it serves.
    """

    def __init__(self, url):
        self._url = f"{url}/mcp"
        self._session = {}
        self._number = 0

    async def open(self, client):
        about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        answer = await self._post(client, "initialize", about)
        assert answer.status_code == 200, answer.text
        self._session = {"mcp-session-id": answer.headers["mcp-session-id"], "mcp-protocol-version": "2025-06-18"}
        answer = await self._post(client, "notifications/initialized", None)
        assert answer.status_code == 202, answer.text

    async def call(self, client, name, arguments):
        """The text that a tool answers with, and whether it is an error."""
        answer = await self._post(client, "tools/call", {"name": name, "arguments": arguments})
        assert answer.status_code == 200, answer.text
        data = [line.removeprefix("data:") for line in answer.text.splitlines() if line.startswith("data:")]
        result = json.loads(next(each for each in data if "jsonrpc" in each))["result"]
        return result["content"][0]["text"], result.get("isError", False)

    async def _post(self, client, method, params):
        message = {"jsonrpc": "2.0", "method": method}
        if not method.startswith("notifications/"):
            self._number += 1
            message["id"] = self._number
        if params is not None:
            message["params"] = params
        accept = {"accept": "application/json, text/event-stream"}
        return await client.post(self._url, json=message, headers={**accept, **self._session})
