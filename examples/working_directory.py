"""A working directory and an active file: "summarize it" needs no file name.

It reads whatever file the model names; a tool for others checks that the path is inside of a directory that is theirs.

Run it: python examples/working_directory.py
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from agent_gantry_state import AgentGantry

gantry = AgentGantry()


@gantry.register
@gantry.with_memory
def change_directory(path: str, memory: dict) -> str:
    """Change the working directory."""
    directory = Path(memory.get("cwd", "."), path).resolve()
    if not directory.is_dir():
        raise NotADirectoryError(f"{path} is no directory")
    memory["cwd"] = directory
    return f"now in {directory.name}"


@gantry.register
@gantry.with_memory
async def read_file(filename: str, memory: dict) -> str:
    """Read a file and remember it."""
    path = Path(memory.get("cwd", "."), filename)
    content = await asyncio.to_thread(path.read_text)
    memory["last_file"] = path
    memory["file_content"] = content
    return content


@gantry.register
@gantry.with_memory
async def summarize_last_file(memory: dict) -> str:
    """Summarize the last file that was read."""
    content = memory.get("file_content", default="")
    return f"{memory['last_file'].name}: {content.split('.')[0]}."


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
    with tempfile.TemporaryDirectory() as folder:
        whales = Path(folder, "whales")
        whales.mkdir()
        (whales / "notes.txt").write_text("Whales sing. The rest is detail.")
        async with gantry, gantry.session("s1", user="ada"):
            model = ScriptedModel(
                [("change_directory", {"path": str(whales)})],
                [("read_file", {"filename": "notes.txt"})],
                "I have read it.",
                [("change_directory", {"path": "dolphins"})],  # fails, so that the directory stays as it was
                [("summarize_last_file", {})],
                "{1}",
            )
            print(await ask(model, "Read notes.txt among the whales."))
            print(await ask(model, "Go on to the dolphins, and summarize it."))


asyncio.run(main())
