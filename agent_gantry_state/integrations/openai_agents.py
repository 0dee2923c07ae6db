"""OpenAI Agents SDK: session and user from the context of a run, ``Runner.run(..., context=...)``.

    agent = Agent(name="a", tools=with_identity(gantry, [function_tool(note)]))
    await Runner.run(agent, "hello", context={"session_id": "s1", "user_id": "ada"})

The SDK gives its context to each tool call and keeps it nowhere else, and a hook that runs when a tool starts does not reach
the tool: so it is the tools' own call that is wrapped.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from agent_gantry_state.gantry import Stateful
from agent_gantry_state.integrations.identities import entered, found
from agent_gantry_state.scopes import Identity

try:
    from agents import FunctionTool, RunContextWrapper, Tool
except ImportError as error:
    raise ImportError(
        "with_identity needs the OpenAI Agents SDK: pip install 'agent-gantry-state[openai-agents]'"
    ) from error

__all__ = ["with_identity"]


def with_identity(
    gantry: Stateful,
    tools: Iterable[Tool],
    *,
    session: str = "session_id",
    user: str = "user_id",
    keys: Mapping[str, str] = MappingProxyType({}),
    identity: Callable[[RunContextWrapper[Any]], Identity | None] | None = None,
) -> list[Tool]:
    """The same tools, called for whoever the context of the run names. The context may be a mapping or an object.

    Args:
        gantry: Whose memories the tools have.
        tools: Function tools, also agents as tools and those of agent-gantry's adapter. Hosted tools stay as they are.
        session: Under which name the session's id is found in the context.
        user: Under which name the user's id is found.
        keys: Further identity keys, and under which names their ids are found: ``{"tenant": "tenant_id"}``.
        identity: Says instead who calls; None where that is unknown.
    """
    names = {"session": session, "user": user, **keys}

    def who(context: RunContextWrapper[Any]) -> Identity | None:
        return found(names, context.context) if identity is None else identity(context)

    def wrapped(tool: Tool) -> Tool:
        if not isinstance(tool, FunctionTool):
            return tool
        tool = copy.copy(tool)
        invoke = tool.on_invoke_tool

        async def invoke_for(context: Any, arguments: str) -> Any:
            with entered(gantry, who(context)):
                return await invoke(context, arguments)

        tool.on_invoke_tool = invoke_for
        return tool

    return [wrapped(tool) for tool in tools]
