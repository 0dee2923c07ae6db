"""One printer, and many who ask for it: calls take turns, in all threads, loops and processes.

Run it: python examples/exclusive.py
"""

from __future__ import annotations

import asyncio
import json

from agent_gantry_state import AgentGantry

gantry = AgentGantry()
printing = []
most_at_once = 0


@gantry.register
@gantry.with_memory(scope="global", into="printer", exclusive=True)
async def print_document(title: str, printer: dict) -> str:
    """Print a document on the only printer there is."""
    global most_at_once
    printing.append(title)
    most_at_once = max(most_at_once, len(printing))
    await asyncio.sleep(0.001)
    printing.remove(title)
    printer["pages"] = printer.get("pages", 0) + 1  # safe: nobody else has the memory now
    return f"{title} is page {printer['pages']}"


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
        users = [f"user {number}" for number in range(8)]  # agent-gantry runs at most 10 calls of a tool at once

        async def work(user: str) -> None:
            async with gantry.session(f"session of {user}", user=user):
                await ask(ScriptedModel([("print_document", {"title": user})], "{0}"), "Print it.")

        await asyncio.gather(*(work(user) for user in users))
        async with gantry.memory("global") as printer:
            print(f"{printer['pages']} pages, at most {most_at_once} at once")


asyncio.run(main())
