"""One tool, two memories: an order leaves the basket of the session and enters the history of the user, or neither.

Run it: python examples/stacked_scopes.py
"""

from __future__ import annotations

import asyncio
import json

from agent_gantry_state import AgentGantry

gantry = AgentGantry()


@gantry.register
@gantry.with_memory
def put_in_basket(item: str, memory: dict) -> str:
    """Put something in the basket."""
    memory.setdefault("basket", []).append(item)
    return f"{len(memory['basket'])} in the basket"


@gantry.register
@gantry.with_memory(scope="user", into="account")
@gantry.with_memory(scope="session", into="basket")
def check_out(card: str, account: dict, basket: dict) -> str:
    """Order what is in the basket."""
    items = basket.pop("basket")
    account.setdefault("orders", []).append(items)
    if card == "expired":
        raise ValueError("the card was refused")
    return f"ordered {' and '.join(items)}"


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
    async with gantry, gantry.session("s1", user="ada"):
        model = ScriptedModel(
            [("put_in_basket", {"item": "tea"})],
            [("put_in_basket", {"item": "milk"})],
            [("check_out", {"card": "expired"})],  # raises after it has changed both
            [("check_out", {"card": "valid"})],
            "{3}",
        )
        print(await ask(model, "Order tea and milk."))
        async with gantry.memory("user", user="ada") as account, gantry.memory() as basket:
            print(account["orders"], basket)


asyncio.run(main())
