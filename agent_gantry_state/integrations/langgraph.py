"""LangGraph and LangChain: thread and user from the config of the run in which a tool is called.

    gantry = Gantry(resolvers=[LangGraphResolver()])
    agent.invoke(messages, {"configurable": {"thread_id": "t1", "user_id": "ada"}})

The config of a run is in a context variable of LangChain's, which LangGraph sets for every node and tool, in its threads as
well.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from agent_gantry_state.integrations.identities import found
from agent_gantry_state.scopes import Identity

try:
    from langchain_core.runnables.config import var_child_runnable_config
    from langgraph.runtime import get_runtime
except ImportError as error:
    raise ImportError("LangGraphResolver needs LangGraph 1: pip install 'agent-gantry-state[langgraph]'") from error

__all__ = ["LangGraphResolver"]


class LangGraphResolver:
    """Says who calls, by the config of the LangGraph or LangChain run in which a tool is called.

    Each id is looked up in ``config["configurable"]``, and then, if it is not there, in the run's context (``context=``).

    Args:
        session: Under which name the session's id is found.
        user: Under which name the user's id is found. Behind LangGraph's server name the one that the server has
            authenticated, ``user="langgraph_auth_user_id"``: what else is in the config, a client may have sent.
        keys: Further identity keys, and under which names their ids are found: ``{"tenant": "tenant_id"}``.
    """

    def __init__(
        self, session: str = "thread_id", user: str = "user_id", keys: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._names = {"session": session, "user": user, **keys}

    def identify(self) -> Identity | None:
        """Who calls here; None outside of a run, or in one that names none of the ids.

        Raises:
            TypeError: An id is neither text nor a number nor a UUID.
            ValueError: An id is "".
        """
        config = var_child_runnable_config.get()
        if not config:
            return None
        return found(self._names, config.get("configurable"), getattr(get_runtime(), "context", None))
