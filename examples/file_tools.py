"""Two tools of one session: the second knows which file the first one read.

Run it: python examples/file_tools.py
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from agent_gantry import ToolCall

from agent_gantry_state import AgentGantry

gantry = AgentGantry()


@gantry.register
@gantry.with_memory(scope="session")
async def read_file(filename: str, memory: dict) -> str:
    """Read a file and remember it."""
    content = await asyncio.to_thread(Path(filename).read_text)
    memory["last_file"] = filename
    memory["file_content"] = content
    return content


@gantry.register
@gantry.with_memory(scope="session")
async def summarize_last_file(memory: dict) -> str:
    """Summarize the last file that was read."""
    filename = memory.get("last_file")
    content = memory.get("file_content", default="")
    return f"Summary of {Path(filename).name}: {content.split('.')[0]}."


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "notes.txt")
        await asyncio.to_thread(path.write_text, "Whales sing. The rest is detail.")
        async with gantry, gantry.session("s1", user="ada"):
            await gantry.execute(ToolCall(tool_name="read_file", arguments={"filename": str(path)}))
            result = await gantry.execute(ToolCall(tool_name="summarize_last_file", arguments={}))
            print(result.result)


asyncio.run(main())
