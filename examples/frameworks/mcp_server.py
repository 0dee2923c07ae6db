"""An MCP server whose tools remember, per chat and per user: agent-gantry's, and the one of the MCP SDK (2.x).

pip install 'agent-gantry-state[agent-gantry,mcp]'
Run it: python examples/frameworks/mcp_server.py
"""

from __future__ import annotations

import asyncio
import logging

from agent_gantry.servers.mcp_server import create_mcp_server
from mcp.client.client import Client
from mcp.server.mcpserver import MCPServer

from agent_gantry_state import AgentGantry
from agent_gantry_state.integrations.mcp import MCPIdentity, meta

gantry = AgentGantry()


@gantry.register
@gantry.with_memory
async def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


# Over HTTP: MCPIdentity(user=subject(), session=header("x-chat")), and await gantry.serve_mcp("http", identity=who).
who = MCPIdentity(user=meta("example.com/user"), session=meta("example.com/chat"))

of_agent_gantry = who.install(create_mcp_server(gantry, "static"))

of_the_sdk = MCPServer("notes")
of_the_sdk.add_tool(note)
who.install(of_the_sdk)


async def main() -> None:
    logging.disable()
    # Clients in this process; both servers have the same tool, and so the same memories.
    async with Client(of_agent_gantry.server) as one, Client(of_the_sdk) as other:
        print("shown:", *(await other.list_tools()).tools[0].input_schema["properties"])
        for client, user, chat, item in (
            (one, "ada", "c1", "milk"),
            (other, "bob", "c2", "bread"),
            (other, "ada", "c1", "tea"),
            (one, "bob", "c1", "a look"),
        ):
            about = {"example.com/user": user, "example.com/chat": chat}
            answer = await client.call_tool("note", {"item": item}, meta=about)
            print(f"{user}:", "refused" if answer.is_error else answer.content[0].text)
    await gantry.close()


if __name__ == "__main__":
    asyncio.run(main())
