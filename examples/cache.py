"""An expensive result is kept for five minutes, for everybody, and made once however many ask for it at the same time.

Run it: python examples/cache.py
"""

from __future__ import annotations

import asyncio
import json
import time

from agent_gantry_state import AgentGantry, Memory

gantry = AgentGantry()
fetched = []


async def fetch(city: str) -> str:
    """What takes long, and costs money."""
    fetched.append(city)
    await asyncio.sleep(0.01)
    return f"sunny in {city}"


@gantry.register
@gantry.with_memory(scope="global", exclusive=True)
async def weather(city: str, memory: Memory) -> str:
    """Tell the weather in a city."""
    if city not in memory:
        memory.set(city, await fetch(city), ttl=300)
    return memory[city]


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
        model = ScriptedModel([("weather", {"city": city}) for city in ("Rome", "Rome", "Oslo", "Rome")], "{0}, {2}")
        print(await ask(model, "How is the weather in Rome and in Oslo?"))
        print("fetched:", sorted(fetched))

        later = time.time() + 301
        with gantry.override(clock=lambda: later):  # so that nobody has to wait for five minutes
            await ask(ScriptedModel([("weather", {"city": "Rome"})], "{0}"), "And now?")
        print("fetched:", sorted(fetched))


asyncio.run(main())
