"""A FastMCP server whose tools remember, per chat and per user.

pip install 'agent-gantry-state[fastmcp]'
Run it: python examples/frameworks/fastmcp_server.py
"""

from __future__ import annotations

import asyncio
import logging

from fastmcp import Client, FastMCP

from agent_gantry_state import Gantry
from agent_gantry_state.integrations.mcp import MCPIdentity, meta

CALLS = [("ada", "c1", "milk"), ("bob", "c2", "bread"), ("ada", "c1", "tea"), ("bob", "c1", "a look")]

gantry = Gantry()
server = FastMCP("notes")


@server.tool
@gantry.with_memory
async def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


# Over HTTP: MCPIdentity(user=subject(), session=header("x-chat")).
MCPIdentity(user=meta("example.com/user"), session=meta("example.com/chat")).install(server)


async def main() -> None:
    logging.disable()
    async with Client(server) as client:
        for user, chat, item in (
            ("ada", "c1", "milk"),
            ("bob", "c2", "bread"),
            ("ada", "c1", "tea"),
            ("bob", "c1", "a look"),
        ):
            about = {"example.com/user": user, "example.com/chat": chat}
            answer = await client.call_tool("note", {"item": item}, meta=about, raise_on_error=False)
            print(f"{user}:", "refused" if answer.is_error else answer.data)
    await gantry.aclose()


if __name__ == "__main__":
    asyncio.run(main())
