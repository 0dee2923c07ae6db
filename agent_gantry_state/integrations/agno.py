"""Who calls, for tools that Agno runs: the session and the user of the run.

A hook around each call of a tool, since Agno gives a tool's body no way to ask. It is one sync function for all runs: Agno
leaves out async hooks where a run is sync, and awaits what a sync hook returns where it is not.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from agent_gantry_state.blocks import SessionBlock
from agent_gantry_state.gantry import Stateful
from agent_gantry_state.integrations._held import awaited, iterated, stepped

try:
    from agno.run import RunContext
except ImportError as error:
    raise ImportError("agent_gantry_state.integrations.agno needs agno: pip install 'agent-gantry-state[agno]'") from error

__all__ = ["identity_hook"]


def identity_hook(gantry: Stateful) -> Callable[..., Any]:
    """A hook that lets tools know the session and the user of the run: ``Agent(..., tool_hooks=[identity_hook(gantry)])``.

    Agno's session is the scope ``session``, its user ``user``. That is the whole identity: a ``gantry.session(...)`` around
    the run does not hold for its tools.

    Args:
        gantry: A gantry of yours; what it is told of the caller, tools of every gantry know.
    """

    def hook(run_context: RunContext, func: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        block = gantry.session(run_context.session_id, user=run_context.user_id)
        with block:
            result = func(**arguments)
        if inspect.isgenerator(result):
            # Of its body nothing has run yet.
            return stepped(block, result)
        return _answered(block, result) if inspect.isawaitable(result) else result

    return hook


async def _answered(block: SessionBlock, result: Awaitable[Any]) -> Any:
    # It was called where the identity held, but runs only now.
    answer = await awaited(block, result)
    # Agno puts an async function around an async generator.
    return iterated(block, answer) if inspect.isasyncgen(answer) else answer
