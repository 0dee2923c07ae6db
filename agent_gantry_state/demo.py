"""The demo: the request's own two tools on the real agent-gantry, and what they must not do."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
from agent_gantry import ToolCall, ToolResult
from agent_gantry.core.security import SecurityPolicy
from agent_gantry.schema.config import AgentGantryConfig, ExecutionConfig, RateLimitConfig
from agent_gantry.schema.execution import BatchToolCall

from agent_gantry_state.integrations.agent_gantry import AgentGantry
from agent_gantry_state.memory import Memory

__all__ = ["run"]

_TEXT = """\
The lighthouse keeper wrote down every ship that passed.
One winter the lamp failed, and he lit a fire on the rocks instead.
Forty years later, the captains still steered by where the fire had been.
"""


def _make_gantry() -> AgentGantry:
    # agent-gantry lets 60 calls a minute through, twice over; the demo makes more.
    return AgentGantry(
        config=AgentGantryConfig(execution=ExecutionConfig(rate_limit=RateLimitConfig(enabled=False), max_retries=1)),
        security_policy=SecurityPolicy(max_requests_per_minute=0),
    )


def _register_tools(gantry: AgentGantry) -> None:
    @gantry.register
    @gantry.with_memory(scope="session")
    async def read_file(filename: str, memory: dict[str, Any]) -> str:
        """Read a file and remember it."""
        content = await anyio.Path(filename).read_text()
        memory["last_file"] = filename
        memory["file_content"] = content
        return content

    @gantry.register
    @gantry.with_memory(scope="session")
    async def summarize_last_file(memory: Memory) -> str:
        """Summarize the last file that was read."""
        filename = memory.get("last_file")
        if filename is None:
            return "No file was read in this session."
        content = memory.get("file_content", default="")
        lines = content.splitlines()
        return f"{Path(filename).name}: {len(lines)} lines, {len(content.split())} words. It begins: {lines[0]!r}"

    @gantry.register
    @gantry.with_memory
    async def forgetful(memory: dict[str, Any]) -> str:
        """Change the memory, then fail."""
        memory["last_file"] = "nonsense.txt"
        raise RuntimeError("the disk is on fire")

    @gantry.register
    @gantry.with_memory
    async def take_note(number: int, memory: Memory) -> int:
        """Append a number to one list and add 1 to one counter, while others do the same."""
        memory.setdefault("notes", []).append(number)
        await asyncio.sleep(0.001)
        count: int = memory.add("count", 1)
        return count


class _Show:
    """Prints steps, with colours where a terminal shows them."""

    def __init__(self) -> None:
        colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._bold, self._dim, self._green, self._red, self._end = (
            ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m") if colours else ("",) * 5
        )
        self.failures = 0
        self._number = 0

    def step(self, title: str) -> None:
        self._number += 1
        print(f"\n{self._bold}{self._number}. {title}{self._end}")  # noqa: T201

    def end(self) -> None:
        said = f"{self.failures} claims did not hold." if self.failures else "All of it held."
        print(f"\n{self._bold}{said}{self._end}")  # noqa: T201

    def text(self, text: str) -> None:
        for line in text.splitlines():
            print(f"   {self._dim}{line}{self._end}")  # noqa: T201

    def call(self, name: str, arguments: dict[str, Any], session: str, result: ToolResult) -> None:
        shown = ", ".join(
            f"{key}={Path(value).name if isinstance(value, str) else value!r}" for key, value in arguments.items()
        )
        answer = str(result.result if result.error is None else f"{result.status.value}: {result.error}")
        first, *rest = answer.splitlines() or [""]
        print(f"   [{session}] {name}({shown})")  # noqa: T201
        print(f"      -> {first}{' ...' if rest else ''}")  # noqa: T201

    def check(self, claim: str, holds: bool) -> None:
        self.failures += not holds
        mark = f"{self._green}yes{self._end}" if holds else f"{self._red}NO{self._end}"
        print(f"   {claim}: {mark}")  # noqa: T201


async def _demo(show: _Show, folder: Path) -> None:
    path = folder / "lighthouse.txt"
    path.write_text(_TEXT)
    async with _make_gantry() as gantry:
        _register_tools(gantry)

        async def execute(session: str, name: str, **arguments: Any) -> ToolResult:
            async with gantry.session(session):
                result = await gantry.execute(ToolCall(tool_name=name, arguments=arguments))
            show.call(name, arguments, session, result)
            return result

        show.step("What the model sees: two tools, and no memory anywhere")
        seen = []
        for name in ("read_file", "summarize_last_file"):
            tool = await gantry.get_tool(name)
            assert tool is not None  # noqa: S101 - it was registered above
            seen.append({"name": tool.name, "description": tool.description, "parameters": tool.parameters_schema})
        show.text("\n".join(json.dumps(tool) for tool in seen))
        show.check("no `memory` in it", "memory" not in json.dumps(seen))

        show.step("One call reads a file, the next one knows which")
        await execute("ada", "read_file", filename=str(path))
        summary = await execute("ada", "summarize_last_file")
        show.check("summarised without being told the name", "lighthouse.txt: 3 lines" in str(summary.result))

        show.step("Another session sees nothing of it")
        other = await execute("bob", "summarize_last_file")
        show.check("nothing leaked", "No file" in str(other.result))

        show.step("A tool that fails changes nothing")
        await execute("ada", "forgetful")
        async with gantry.memory("session", session="ada") as memory:
            show.check("the last file is still lighthouse.txt", memory["last_file"] == str(path))

        show.step("50 calls at once, all on one list and one counter")
        async with gantry.session("ada"):
            calls = [ToolCall(tool_name="take_note", arguments={"number": number}) for number in range(50)]
            batch = await gantry.execute_batch(BatchToolCall(calls=calls))
        async with gantry.memory("session", session="ada") as memory:
            notes, count = memory["notes"], memory["count"]
        show.text(f"{batch.successful_count} succeeded, {batch.failed_count} failed; {len(notes)} notes, count = {count}")
        show.check("nothing was lost", sorted(notes) == list(range(50)) and count == 50)


def run() -> int:
    """Run the demo.

    Returns:
        0 if every claim held, else 1.
    """
    # agent-gantry logs the failure that step 4 makes on purpose.
    logging.getLogger("agent_gantry").setLevel(logging.CRITICAL)
    show = _Show()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_demo(show, Path(folder)))
    show.end()
    return 1 if show.failures else 0
