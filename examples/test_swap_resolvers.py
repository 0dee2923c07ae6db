"""Swapping resolvers in a test: in production a directory says who is in which team, in a test two lines do.

Run it: python -m pytest examples/test_swap_resolvers.py
"""

from __future__ import annotations

import json

import pytest

from agent_gantry_state import AgentGantry, Namespace, Request

# What the program has in a module of its own.


def team_of(user: str) -> str:
    raise ConnectionError("the directory of the company is not here")


def by_team(request: Request) -> Namespace | None:
    """Answers for the scope `team`, and leaves all others to the built-in resolvers."""
    user = request.identity.user
    return Namespace(scope="team", id=team_of(user)) if request.scope == "team" and user else None


gantry = AgentGantry(store="redis://production", resolvers=[by_team])


@gantry.register
@gantry.with_memory(scope="team", into="board")
def pin(text: str, board: dict) -> str:
    """Pin a note to the board of the team."""
    board.setdefault("notes", []).append(text)
    return " / ".join(board["notes"])


# What its tests have.


@pytest.fixture
def teams(memory_override):
    """Another store, another clock, and resolvers that know the teams of the test."""

    def resolver(request: Request) -> Namespace | None:
        return Namespace(scope="team", id={"ada": "red", "bob": "red", "eve": "blue"}[request.identity.user])

    return memory_override(gantry, resolvers=[resolver])


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


async def pinned_by(user: str, text: str) -> str:
    async with gantry.session(f"session of {user}", user=user):
        return await ask(ScriptedModel([("pin", {"text": text})], "{0}"), f"Pin {text}")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
@pytest.mark.usefixtures("teams")
async def test_a_team_shares_its_board():
    assert await pinned_by("ada", "lunch?") == "lunch?"
    assert await pinned_by("bob", "at noon") == "lunch? / at noon"


@pytest.mark.anyio
@pytest.mark.usefixtures("teams")
async def test_another_team_has_another_board():
    await pinned_by("ada", "lunch?")
    assert await pinned_by("eve", "breakfast?") == "breakfast?"
