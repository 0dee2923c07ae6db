"""A FastAPI application whose tools remember, per chat and per user.

Who the user is says a token; which chat it is, a cookie. pip install 'agent-gantry-state[fastapi]' httpx
Run it: python examples/frameworks/fastapi_app.py
"""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI

from agent_gantry_state import Gantry, Identity
from agent_gantry_state.integrations.asgi import Connection, IdentityMiddleware

gantry = Gantry()
TOKENS = {"token of ada": "ada", "token of bob": "bob"}


@gantry.with_memory
async def note(item: str, memory: dict) -> list[str]:
    """Put an item on the list, and read the list."""
    memory.setdefault("items", []).append(item)
    return memory["items"]


def identify(connection: Connection) -> Identity | None:
    user = TOKENS.get(connection.header("authorization") or "")
    return user and Identity(session=connection.cookie("chat"), user=user)


app = FastAPI()
app.add_middleware(IdentityMiddleware, identify=identify)


@app.post("/items/{item}")
async def add(item: str) -> list[str]:
    # Where an agent would run, which calls the tool.
    return await note(item)


async def main() -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
        for user, chat, item in (("ada", "c1", "milk"), ("bob", "c2", "bread"), ("ada", "c1", "tea")):
            headers = {"authorization": f"token of {user}", "cookie": f"chat={chat}"}
            answer = await client.post(f"/items/{item}", headers=headers)
            print(f"{user}: {', '.join(answer.json())}")
    await gantry.aclose()


if __name__ == "__main__":
    asyncio.run(main())
