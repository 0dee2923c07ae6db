"""pydantic-ai: session and user from the dependencies of a run, ``agent.run(..., deps=...)``.

    agent = Agent(model, deps_type=Caller, tools=[note], capabilities=[IdentityCapability(gantry)])
    await agent.run("hello", deps=Caller(session_id="s1", user_id="ada"))

`IdentityCapability` is for all tools of an agent, `IdentityToolset` for those of one toolset.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportIndexIssue=false
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent_gantry_state.gantry import Stateful
from agent_gantry_state.integrations.identities import entered, found
from agent_gantry_state.scopes import Identity

try:
    from pydantic_ai import RunContext
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset
except ImportError as error:
    raise ImportError(
        "IdentityCapability and IdentityToolset need pydantic-ai 2: pip install 'agent-gantry-state[pydantic-ai]'"
    ) from error

__all__ = ["IdentityCapability", "IdentityToolset"]


@dataclass
class IdentityToolset(WrapperToolset[Any]):
    """A toolset whose tools are called for whoever the run's dependencies name; they may be a mapping or an object.

    Args:
        wrapped: The toolset.
        gantry: Whose memories its tools have.
        session: Under which name the session's id is found in the dependencies, or else in the run's context:
            ``"conversation_id"`` makes pydantic-ai's conversation the session.
        user: Under which name the user's id is found.
        keys: Further identity keys, and under which names their ids are found: ``{"tenant": "tenant_id"}``.
        identity: Says instead who calls; None where that is unknown.
    """

    gantry: Stateful
    session: str = "session_id"
    user: str = "user_id"
    keys: Mapping[str, str] = field(default_factory=dict)
    identity: Callable[[RunContext[Any]], Identity | None] | None = None

    async def call_tool(self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]) -> Any:
        """Call a tool of the toolset, for whoever the run names."""
        names = {"session": self.session, "user": self.user, **self.keys}
        who = found(names, ctx.deps, ctx) if self.identity is None else self.identity(ctx)
        with entered(self.gantry, who):
            return await super().call_tool(name, tool_args, ctx, tool)


@dataclass
class IdentityCapability(AbstractCapability[Any]):
    """Calls all tools of an agent for whoever the run's dependencies name; takes what `IdentityToolset` takes."""

    gantry: Stateful
    session: str = "session_id"
    user: str = "user_id"
    keys: Mapping[str, str] = field(default_factory=dict)
    identity: Callable[[RunContext[Any]], Identity | None] | None = None

    def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
        """The toolset of the agent, wrapped."""
        return IdentityToolset(toolset, self.gantry, self.session, self.user, self.keys, self.identity)
