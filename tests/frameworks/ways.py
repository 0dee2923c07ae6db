"""The two ways in which a framework gets the tools: as they are, and through agent-gantry's adapter for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_gantry.integrations.frameworks.base import spec_from_tool
from scenario import Check, two_users_never_cross
from tools import Tools, make_agent_gantry_tools, make_tools

WAYS = ("native", "adapter")


@dataclass
class Given:
    """The tools, and what an agent is given of them.

    Attributes:
        tools: The decorated functions.
        items: What goes into the agent's list of tools.
        native: Whether that is the functions themselves.
    """

    tools: Tools
    items: list[Any]
    native: bool

    def times(self, check: Check, most: int = 200) -> dict[str, int]:
        """How often to repeat a check that repeats; less often through the adapter, where the identity goes the same way."""
        return {"times": most if self.native else min(most, 40)} if check is two_users_never_cross else {}


def give(way: str, adapter: Any, natively: Callable[[Any], Any] = lambda function: function, **options: Any) -> Given:
    """The tools in one of two ways.

    Args:
        way: One of `WAYS`.
        adapter: agent-gantry's for the framework.
        natively: How a function is registered where the framework does not take it as it is.
        options: For the gantry.
    """
    if way == "native":
        tools = make_tools(**options)
        return Given(tools, [natively(function) for function in tools.functions], native=True)
    tools = make_agent_gantry_tools(**options)
    return Given(tools, asyncio.run(_converted(tools, adapter)), native=False)


async def _converted(tools: Tools, adapter: Any) -> list[Any]:
    registered = [await tools.gantry.get_tool(name) for name in tools.by_name]
    return [adapter.convert(spec_from_tool(tools.gantry, each)) for each in registered]


def run_page(name: str) -> dict[str, Any]:
    """Run what a page of docs/frameworks shows, from top to bottom; gives its names."""
    page = Path(__file__).parent.parent.parent / "docs" / "frameworks" / name
    namespace: dict[str, Any] = {"__name__": "__main__"}
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)
    return namespace
