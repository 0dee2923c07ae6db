"""What a user prefers holds in every session, and is nobody else's.

Run it: python examples/preferences.py
"""

from __future__ import annotations

import asyncio
import json

from agent_gantry_state import AgentGantry

gantry = AgentGantry()
GREETINGS = {"en": "Good morning", "it": "Buongiorno"}


@gantry.register
@gantry.with_memory(scope="user", into="prefs")
def prefer(key: str, value: str, prefs: dict) -> str:
    """Remember what the user prefers, such as their language."""
    prefs[key] = value
    return f"{key} is {value} from now on"


@gantry.register
@gantry.with_memory(scope="user", into="prefs", default={"language": "en"}, read_only=True)
def greet(name: str, prefs: dict) -> str:
    """Greet somebody in the language of the user."""
    return f"{GREETINGS[prefs['language']]}, {name}"


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


async def main() -> None:
    async with gantry:
        async with gantry.session("monday", user="ada"):
            print(await ask(ScriptedModel([("prefer", {"key": "language", "value": "it"})], "{0}"), "Speak Italian."))
        for user in ("ada", "bob"):
            async with gantry.session(f"tuesday {user}", user=user):
                print(await ask(ScriptedModel([("greet", {"name": user.title()})], "{0}"), "Hello!"))


asyncio.run(main())
