"""A workflow of several steps: what one tool finds is there for the next, and the model carries none of it.

Run it: python examples/workflow.py
"""

from __future__ import annotations

import asyncio
import json

from agent_gantry_state import AgentGantry

gantry = AgentGantry()
NOTES = {"whales": "Whales sing.", "squids": "Squids have three hearts.", "krill": "Krill glow."}


@gantry.register
@gantry.with_memory
def plan(topics: list[str], memory: dict) -> str:
    """Plan what to look up, topic by topic."""
    memory.update(open=sorted(topics), found=[])
    return f"{len(topics)} topics to look up"


@gantry.register
@gantry.with_memory
async def look_up(topic: str, memory: dict) -> str:
    """Look one topic up."""
    if topic not in NOTES:
        raise LookupError(f"nothing is known of {topic}")
    memory["found"].append(NOTES[topic])
    return "found"


@gantry.register
@gantry.with_memory
def write_report(memory: dict) -> str:
    """Write the report from all that was found."""
    memory["report"] = " ".join(sorted(memory["found"]))
    return memory["report"]


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
    model = ScriptedModel(
        [("plan", {"topics": ["whales", "squids", "krill"]})],
        # At once: each appends to the same list, and nothing is lost. The one that fails leaves nothing behind.
        [("look_up", {"topic": topic}) for topic in ("whales", "unicorns", "squids", "krill")],
        [("write_report", {})],
        "{0}. Report: {5}",
    )
    async with gantry, gantry.session("s1", user="ada"):
        print(await ask(model, "Write a report about the sea."))


asyncio.run(main())
