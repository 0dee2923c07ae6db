"""Many users on one server: a Starlette app says whose request it is, and each has their own memory.

Run it: pip install httpx starlette && python examples/server.py
"""

from __future__ import annotations

import asyncio
import json

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from agent_gantry_state import AgentGantry, Memory

gantry = AgentGantry()  # with several workers: AgentGantry(store="redis://...")
USERS = {"token of ada": "ada", "token of bob": "bob"}


@gantry.register
@gantry.with_memory(scope="user", into="profile")
@gantry.with_memory
def remember(fact: str, memory: dict, profile: Memory) -> str:
    """Remember a fact."""
    memory.setdefault("facts", []).append(fact)
    count = profile.add("facts")  # requests of one user at once are all counted
    return f"{len(memory['facts'])} in this session, {count} in all"


class ScriptedModel:
    """Stands in for a language model: each turn is the tools that it calls, or its answer, where {0} is the first result."""

    def __init__(self, *turns: list[tuple[str, dict]] | str) -> None:
        self._turns = iter(turns)

    async def create(self, messages: list[dict], tools: list[dict]) -> dict:
        turn = next(self._turns)
        if isinstance(turn, str):
            results = [message["content"] for message in messages if message["role"] == "tool"]
            return {"choices": [{"message": {"role": "assistant", "content": turn.format(*results)}}]}
        calls = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for number, (name, arguments) in enumerate(turn)
        ]
        return {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": calls}}]}


async def ask(model: ScriptedModel, prompt: str) -> str:
    """An agent's loop: ask the model, run the tools that it calls, until it answers."""
    messages: list[dict] = [{"role": "user", "content": prompt}]
    tools = await gantry.retrieve_tools(prompt, limit=10)
    while True:
        response = await model.create(messages, tools)
        messages.append(response["choices"][0]["message"])
        results = await gantry.execute_tool_calls(response, retry_count=0)
        if not results:
            return messages[-1]["content"]
        messages.extend(results)


async def chat(request: Request) -> JSONResponse:
    """POST /chat/SESSION: who it is comes from what authenticates the request, never from what a model says."""
    user = USERS.get(request.headers.get("authorization", "").removeprefix("Bearer "))
    if user is None:
        return JSONResponse({"error": "who are you?"}, status_code=401)
    text = (await request.json())["text"]
    async with gantry.session(request.path_params["session"], user=user):
        answer = await ask(ScriptedModel([("remember", {"fact": text})], "{0}"), text)
    return JSONResponse({"answer": answer})


app = Starlette(routes=[Route("/chat/{session}", chat, methods=["POST"])])  # uvicorn examples.server:app


async def main() -> None:
    """Twenty requests at once, without a network."""
    async with gantry, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:

        async def say(user: str, session: str, text: str) -> str:
            headers = {"authorization": f"Bearer token of {user}"}
            return (await client.post(f"/chat/{session}", json={"text": text}, headers=headers)).text

        await asyncio.gather(*(say("ada", "a", f"fact {number}") for number in range(10)))
        await asyncio.gather(*(say("bob", "b", f"fact {number}") for number in range(10)))
        print(await say("ada", "a2", "a fact in another session"))
        print(await say("eve", "a", "let me in"))
        print(await say("bob", "a", "is this mine?"))


if __name__ == "__main__":
    asyncio.run(main())
