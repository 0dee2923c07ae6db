"""Who calls, for tools that DSPy runs: the session and the user in its settings.

DSPy's own context carries settings of any name, and into the threads of `dspy.Parallel` and `dspy.Evaluate`, which are given
nothing else of the context of whoever began them.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

from agent_gantry_state.scopes import Identity

try:
    from dspy import settings
except ImportError as error:
    raise ImportError("agent_gantry_state.integrations.dspy needs dspy: pip install 'agent-gantry-state[dspy]'") from error

__all__ = ["DSPyResolver"]


class DSPyResolver:
    """Lets tools know who calls: ``Gantry(resolvers=[DSPyResolver()])``, and a run inside of
    ``dspy.context(session_id="s1", user_id="ada")``.

    A session that is named there is the whole identity; a user without a session takes the place of the user who is known.

    Args:
        session_key: The setting that holds the id of the session.
        user_key: The setting that holds the id of the user.
    """

    def __init__(self, session_key: str = "session_id", user_key: str = "user_id") -> None:
        self._session_key = session_key
        self._user_key = user_key

    def identify(self) -> Identity | None:
        """Who calls here, None if the settings do not say."""
        session, user = settings.get(self._session_key), settings.get(self._user_key)
        return None if session is None and user is None else Identity(session, user)
