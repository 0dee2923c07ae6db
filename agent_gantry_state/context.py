"""What a tool may ask for instead of one memory: the context that it runs in."""

from __future__ import annotations

from collections.abc import Callable

from agent_gantry_state.holding import Want
from agent_gantry_state.memory import Memory, Terms
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import Identity
from agent_gantry_state.session import refuse_ended
from agent_gantry_state.steps import Steps
from agent_gantry_state.unit_of_work import UnitOfWork

__all__ = ["ExecutionContext", "SyncExecutionContext"]


class _Context:
    """One call, as its tool sees it."""

    __slots__ = ("_identity", "_locate", "_session", "_terms", "_tool", "_unit")

    def __init__(
        self,
        unit: UnitOfWork,
        tool: str,
        identity: Identity | None,
        session: Namespace | None,
        locate: Callable[[str], Namespace],
        terms: Callable[[str, Namespace], Terms],
    ) -> None:
        self._unit = unit
        self._tool = tool
        self._identity = identity
        self._session = session
        self._locate = locate
        self._terms = terms

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._tool}>"

    @property
    def memory(self) -> Memory:
        """The memory of the session.

        Raises:
            MissingIdentityError: No session is known here.
        """
        namespace = self._session or self._locate("session")
        return self._unit.held[namespace].seen()

    @property
    def identity(self) -> Identity:
        """What is known of the caller."""
        return self._identity or Identity()

    @property
    def tool(self) -> str:
        """Name of the tool."""
        return self._tool

    def _scope(self, scope: str) -> Steps[Memory]:
        refuse_ended(self._unit, "context")
        namespace = self._locate(scope)
        yield from self._unit.hold({namespace: Want.of(self._terms(scope, namespace), self._identity)})
        refuse_ended(self._unit, "context")
        return self._unit.held[namespace].seen()


class ExecutionContext(_Context):
    """The context of a call, for an async tool: the memory of its session, and of any other scope that it asks for.

    In a tool that is registered with `AgentGantry`, a parameter with this annotation gets one, as does one that is named
    ``ctx`` and has no annotation; in a plain function, below `with_context`. What is written to any of its memories is
    committed in one step when the tool succeeds.
    """

    __slots__ = ()

    async def scope(self, scope: str) -> Memory:
        """The memory of another scope, part of the same call.

        Raises:
            CallEndedError: The call has ended.
            MissingIdentityError: The scope depends on something that is not known of the caller.
            SessionOwnerError: The memory belongs to somebody else.
            StoreError: The store failed.
        """
        return await self._unit.bridge.arun(self._scope(scope))  # type: ignore[no-any-return]


class SyncExecutionContext(_Context):
    """`ExecutionContext` for a sync tool."""

    __slots__ = ()

    def scope(self, scope: str) -> Memory:
        """The memory of another scope, part of the same call; raises what `ExecutionContext.scope` does."""
        return self._unit.bridge.run(self._scope(scope))  # type: ignore[no-any-return]
