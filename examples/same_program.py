"""The same program on SQLite, on Redis, or wherever the URL says: what was remembered is there after a restart.

python examples/same_program.py sqlite:////tmp/state.db redis://localhost
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from agent_gantry_state import AgentGantry


def build(url: str) -> AgentGantry:
    """Only the URL tells one from another."""
    gantry = AgentGantry(store=url, app="examples/same_program")

    @gantry.register
    @gantry.with_memory
    def take_note(text: str, memory: dict) -> str:
        """Take a note."""
        memory.setdefault("notes", []).append(text)
        return f"noted: {text}"

    @gantry.register
    @gantry.with_memory
    def read_notes(memory: dict) -> str:
        """Read all notes out."""
        return " and ".join(memory["notes"])

    return gantry


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


async def ask(gantry: AgentGantry, model: ScriptedModel, prompt: str) -> str:
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


async def main(url: str) -> None:
    # Each `async with` is a program of its own: nothing but the store is common to both.
    async with build(url) as gantry, gantry.session("s1", user="ada"):
        model = ScriptedModel([("take_note", {"text": "milk"}), ("take_note", {"text": "tea"})], "{0}")
        await ask(gantry, model, "Note milk and tea.")
    async with build(url) as gantry, gantry.session("s1", user="ada"):
        notes = await ask(gantry, ScriptedModel([("read_notes", {})], "{0}"), "What do I need?")
        print(f"{urlsplit(url).scheme}: {' and '.join(sorted(notes.split(' and ')))}")
        await gantry.aend_session("s1")


with tempfile.TemporaryDirectory() as folder:
    for url in sys.argv[1:] or [f"sqlite:///{Path(folder, 'state.db')}"]:
        asyncio.run(main(url))
