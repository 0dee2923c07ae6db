"""agent-gantry's A2A server, whose tools remember: the context of a task is its session.

pip install 'agent-gantry-state[a2a]'
Run it: python examples/frameworks/a2a_server.py
"""

from __future__ import annotations

import asyncio
import json
import logging

import httpx
from agent_gantry.servers.a2a_server import create_a2a_server

from agent_gantry_state import AgentGantry
from agent_gantry_state.integrations.a2a import A2AIdentity

CALLS = [("ada", "c1", "milk"), ("bob", "c2", "bread"), ("ada", "c1", "tea"), ("bob", "c1", "a look")]

gantry = AgentGantry()
TOKENS = {"token of ada": "ada", "token of bob": "bob"}


@gantry.register
@gantry.with_memory
async def note(item: str, memory: dict) -> str:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return ", ".join(memory["items"])


# On a port: gantry.serve_a2a("127.0.0.1", 8080, user=...).
app = A2AIdentity(create_a2a_server(gantry), user=lambda request: TOKENS.get(request.header("authorization") or ""))


async def send(client: httpx.AsyncClient, user: str, context: str, item: str) -> str:
    call = json.dumps({"tool_name": "note", "arguments": {"item": item}})
    message = {"role": "user", "contextId": context, "parts": [{"type": "text", "text": call}]}
    params = {"skill_id": "tool_execution", "messages": [message]}
    task = {"jsonrpc": "2.0", "id": 1, "method": "tasks/send", "params": params}
    answer = await client.post("/tasks/send", json=task, headers={"authorization": f"token of {user}"})
    return answer.json()["result"]["result"]["result"] or "refused"


async def main() -> None:
    logging.disable()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://agent") as client:
        for user, context, item in (
            ("ada", "c1", "milk"),
            ("bob", "c2", "bread"),
            ("ada", "c1", "tea"),
            ("bob", "c1", "a look"),
        ):
            print(f"{user}:", await send(client, user, context, item))
    await gantry.close()


if __name__ == "__main__":
    asyncio.run(main())
