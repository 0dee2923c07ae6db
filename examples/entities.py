"""What a conversation is about: "cancel it" finds the order that was spoken of, also in another process or on another day.

Run it: python examples/entities.py
"""

from __future__ import annotations

import asyncio
import json

from agent_gantry_state import AgentGantry, merge

gantry = AgentGantry()
ORDERS = {"A17": "a kettle", "B42": "a lamp"}


@gantry.register
@gantry.with_memory(scope="conversation", merge={"orders": merge.newest(5)})
def find_order(words: str, memory: dict) -> str:
    """Find an order by words of its description."""
    found = next(number for number, what in ORDERS.items() if words in what)
    memory["orders"] = [*memory.get("orders", []), found][-5:]
    return f"order {found}, {ORDERS[found]}"


@gantry.register
@gantry.with_memory(scope="conversation")
def cancel_order(memory: dict, number: str | None = None) -> str:
    """Cancel an order: that of a number, or the one that was spoken of last."""
    orders = memory.get("orders", [])
    number = number or (orders[-1] if orders else None)
    if number is None:
        return "Which order?"
    return f"order {number}, {ORDERS[number]}, is cancelled"


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
        async with gantry.session("s1", user="ada", conversation="c1"):
            model = ScriptedModel([("find_order", {"words": "kettle"}), ("find_order", {"words": "lamp"})], "{0}; {1}")
            print(await ask(model, "Where are my kettle and my lamp?"))
        # The next session, the same conversation.
        async with gantry.session("s2", user="ada", conversation="c1"):
            print(await ask(ScriptedModel([("cancel_order", {})], "{0}"), "Cancel it."))
        async with gantry.session("s3", user="bob", conversation="c2"):
            print(await ask(ScriptedModel([("cancel_order", {})], "{0}"), "Cancel it."))


asyncio.run(main())
