"""Layers: the session's choice, else the user's, else everybody's, else the default. One dict to the tool.

Run it: python examples/layers.py
"""

from __future__ import annotations

import asyncio
import json

from agent_gantry_state import AgentGantry, Memory

gantry = AgentGantry()


@gantry.register
@gantry.with_memory(scope=("session", "user", "global"), default={"size": "A4", "colour": "black"})
def print_page(memory: Memory) -> str:
    """Print a page."""
    return ", ".join(f"{key} {memory[key]} ({memory.origin(key) or 'default'})" for key in sorted(memory))


@gantry.register
@gantry.with_memory(scope=("session", "user", "global"))
def just_now(key: str, value: str, memory: Memory) -> str:
    """Set something for this session only."""
    memory[key] = value  # a write goes to the nearest
    return "done"


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
        async with gantry.session("s0", user="bob"):
            print(await ask(ScriptedModel([("print_page", {})], "{0}"), "Print it."))
        async with gantry.memory("global") as everybody, gantry.memory("user", user="ada") as ada:
            everybody.update(size="Letter", colour="black")
            ada["colour"] = "blue"
        async with gantry.session("s1", user="ada"):
            model = ScriptedModel(
                [("print_page", {})], [("just_now", {"key": "colour", "value": "red"})], [("print_page", {})], "{0}\n{2}"
            )
            print(await ask(model, "Print it, and once more in red."))
        async with gantry.session("s2", user="bob"):
            print(await ask(ScriptedModel([("print_page", {})], "{0}"), "Print it."))


asyncio.run(main())
