"""The functions that every framework is given, decorated once and never changed for any of them.

Each exists as a sync and as an async function, the latter with an ``a`` in front of its name. They are plain functions with
`@gantry.with_memory`; `make_tools` decorates them for the gantry of a test, which may be one of agent-gantry's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from agent_gantry_state import Gantry, Memory, Tool

#: What the decorators inject: a model must never read one of these words.
INJECTED = ("memory", "profile")


class NoLuckError(Exception):
    """What the failing tool raises."""


@dataclass
class Tools:
    """The decorated functions.

    Attributes:
        gantry: Whose memories they have.
        by_name: The functions, sync and async.
        ran: Names of the functions whose bodies have run, in order. It is no memory: a check uses it to see that a tool was
            reached at all.
    """

    gantry: Any
    by_name: dict[str, Tool[..., Any]]
    ran: list[str] = field(default_factory=list)

    @property
    def functions(self) -> list[Tool[..., Any]]:
        return list(self.by_name.values())

    def named(self, *names: str) -> list[Tool[..., Any]]:
        return [self.by_name[name] for name in names]


def make_tools(gantry: Any = None, **options: Any) -> Tools:
    """The functions with memories of *gantry*; without one, of a plain `Gantry` that is made with *options*."""
    gantry = Gantry(**options) if gantry is None else gantry
    ran: list[str] = []

    @gantry.with_memory
    def note(item: str, memory: dict) -> str:
        """Note an item.

        Args:
            item: What to note.
            memory: What is remembered between calls.

        Returns:
            All that was noted so far.
        """
        ran.append("note")
        memory.setdefault("items", []).append(item)
        return ", ".join(memory["items"])

    @gantry.with_memory
    async def anote(item: str, memory: dict) -> str:
        """Note an item.

        Args:
            item: What to note.
            memory: What is remembered between calls.

        Returns:
            All that was noted so far.
        """
        ran.append("anote")
        memory.setdefault("items", []).append(item)
        return ", ".join(memory["items"])

    @gantry.with_memory
    def count(memory: Memory, by: int = 1) -> int:
        """Count one more, and say how many there are."""
        ran.append("count")
        return memory.add("n", by)

    @gantry.with_memory
    async def acount(memory: Memory, by: int = 1) -> int:
        """Count one more, and say how many there are."""
        ran.append("acount")
        return memory.add("n", by)

    @gantry.with_memory
    def fail(item: str, memory: dict) -> str:
        """Note an item, or not."""
        ran.append("fail")
        memory.setdefault("items", []).append(item)
        memory["failed"] = True
        raise NoLuckError("no luck today")

    @gantry.with_memory
    async def afail(item: str, memory: dict) -> str:
        """Note an item, or not."""
        ran.append("afail")
        memory.setdefault("items", []).append(item)
        memory["failed"] = True
        raise NoLuckError("no luck today")

    @gantry.with_memory(scope="user")
    def prefer(key: str, value: str, memory: dict) -> str:
        """Prefer something from now on."""
        ran.append("prefer")
        memory[key] = value
        return json.dumps(memory)

    @gantry.with_memory(scope="user")
    async def aprefer(key: str, value: str, memory: dict) -> str:
        """Prefer something from now on."""
        ran.append("aprefer")
        memory[key] = value
        return json.dumps(memory)

    @gantry.with_memory(scope="user", into="profile")
    @gantry.with_memory
    def both(item: str, memory: dict, profile: Memory) -> str:
        """Note an item here, and count it for the user."""
        ran.append("both")
        memory.setdefault("items", []).append(item)
        return f"{item} is number {profile.add('n', 1)}"

    @gantry.with_memory(scope="user", into="profile")
    @gantry.with_memory
    async def aboth(item: str, memory: dict, profile: Memory) -> str:
        """Note an item here, and count it for the user."""
        ran.append("aboth")
        memory.setdefault("items", []).append(item)
        return f"{item} is number {profile.add('n', 1)}"

    tools = (note, anote, count, acount, fail, afail, prefer, aprefer, both, aboth)
    return Tools(gantry, {tool.__name__: tool for tool in tools}, ran)


class Notes:
    """Notes of one person, whose method is a tool; `method_of` decorates it."""

    def __init__(self, author: str) -> None:
        self.author = author

    def sign(self, item: str, memory: dict) -> str:
        """Note an item, signed.

        Args:
            item: What to note.
            memory: What is remembered between calls.
        """
        memory.setdefault("items", []).append(f"{item}, {self.author}")
        return memory["items"][-1]


def method_of(gantry: Any, author: str = "ada") -> Any:
    """A bound method that is a tool."""
    return gantry.with_memory(Notes(author).sign)


def make_agent_gantry_tools(**options: Any) -> Tools:
    """The same functions, registered with our subclass of agent-gantry's class, for its adapters.

    Its limits on calls a minute and its retries are off: both are counted in calls, of which the checks make hundreds.
    """
    from agent_gantry.core.security import SecurityPolicy
    from agent_gantry.schema.config import AgentGantryConfig, ExecutionConfig, RateLimitConfig, TelemetryConfig

    from agent_gantry_state import AgentGantry

    execution = ExecutionConfig(max_retries=0, rate_limit=RateLimitConfig(enabled=False))
    gantry = AgentGantry(
        config=AgentGantryConfig(execution=execution, telemetry=TelemetryConfig(enabled=False)),
        security_policy=SecurityPolicy(max_requests_per_minute=0),
        **options,
    )
    tools = make_tools(gantry)
    for tool in tools.functions:
        gantry.register(tool)
    return tools
