"""Who calls, for tools that Strands runs: the session and the user in the invocation state.

A middleware around each call of a tool, and not a pair of hooks: an interrupt has no hook after it, and between two hooks
events go to whoever iterates over them, which a sequential executor does in the same context.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from agent_gantry_state.blocks import SessionBlock
from agent_gantry_state.gantry import Stateful
from agent_gantry_state.integrations._held import iterated
from agent_gantry_state.scopes import Identity

try:
    from strands.agent import Agent
    from strands.middleware import ExecuteToolContext, ExecuteToolStage
    from strands.plugins import Plugin
except ImportError as error:
    raise ImportError(
        "agent_gantry_state.integrations.strands needs strands-agents 1.62: pip install 'agent-gantry-state[strands]'"
    ) from error

__all__ = ["IdentityPlugin"]

Next = Callable[[ExecuteToolContext], AsyncGenerator[Any, None]]


class IdentityPlugin(Plugin):
    """Lets tools know who calls: ``Agent(..., plugins=[IdentityPlugin(gantry)])``.

    It is said with each invocation, ``agent("...", invocation_state={"session_id": "s1", "user_id": "ada"})``. A session
    that is named there is the whole identity, and a ``gantry.session(...)`` around the run does not hold for the tools; a
    user without a session takes the place of the user who is known. Where neither is named, what is known holds.

    Args:
        gantry: A gantry of yours; what it is told of the caller, tools of every gantry know.
        session_key: Where the id of the session is in the invocation state.
        user_key: Where the id of the user is.
    """

    name = "agent-gantry-state"

    def __init__(self, gantry: Stateful, session_key: str = "session_id", user_key: str = "user_id") -> None:
        super().__init__()
        self._gantry = gantry
        self._session_key = session_key
        self._user_key = user_key

    def init_agent(self, agent: Agent) -> None:
        """Stand around the tools of *agent*."""
        agent.add_middleware(ExecuteToolStage, self._around)

    async def _around(self, context: ExecuteToolContext, run: Next) -> AsyncGenerator[Any, None]:
        identity = self._identity(context.invocation_state)
        events = run(context)
        if identity is not None:
            events = iterated(SessionBlock(identity, self._gantry._wiring), events)
        async for event in events:
            yield event

    def _identity(self, state: Mapping[str, Any]) -> Identity | None:
        # Of a call by agent.tool.name(...), the state is what the tool is called with, which may come from a model.
        if "event_loop_cycle_id" not in state:
            return None
        session, user = state.get(self._session_key), state.get(self._user_key)
        if session is not None:
            return Identity(session, user)
        return None if user is None else (self._gantry._wiring.settings.caller() or Identity()).replace(user=user)
