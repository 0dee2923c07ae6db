"""State with types: a plan that is validated when it is loaded and before it is committed.

Run it: python examples/typed_state.py
"""

from __future__ import annotations

import asyncio
import json

from pydantic import BaseModel, Field

from agent_gantry_state import AgentGantry

gantry = AgentGantry()


class Step(BaseModel):
    title: str
    done: bool = False


class Plan(BaseModel):
    steps: list[Step] = []
    hours: float = Field(default=0, ge=0)


@gantry.register
@gantry.with_memory
def add_step(title: str, hours: float, memory: Plan) -> str:
    """Add a step to the plan."""
    memory.steps.append(Step(title=title))
    memory.hours += hours
    return f"{len(memory.steps)} steps, {memory.hours:g} hours"


@gantry.register
@gantry.with_memory
def finish_step(number: int, memory: Plan) -> str:
    """Finish a step, by its number from 0 on."""
    memory.steps[number].done = True
    return memory.steps[number].title


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
            [("add_step", {"title": "read", "hours": 2.0})],
            [("add_step", {"title": "sleep", "hours": -9.0})],  # does not fit, and nothing of it is written
            [("finish_step", {"number": 0})],
            "{0}; finished: {2}",
        )
        print(await ask(model, "Plan my evening."))
        async with gantry.memory() as memory:
            print(memory)


asyncio.run(main())
