"""Memory for agent tools: decorate a function, and it remembers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent_gantry_state import merge
from agent_gantry_state.context import ExecutionContext, SyncExecutionContext
from agent_gantry_state.errors import (
    AmbiguousIdentityError,
    CallEndedError,
    CodecError,
    CorruptEntryError,
    DeclarationError,
    EvictionWarning,
    ExclusiveTimeoutError,
    FurtherScopeError,
    ImportRefusedError,
    InjectedArgumentError,
    MemoryConflictError,
    MemoryErasedError,
    MemoryExistsError,
    MemoryNotFoundError,
    MemoryTooLargeError,
    MemoryValidationError,
    MissingDriverError,
    MissingIdentityError,
    NotAtomicError,
    NotListableError,
    OrphanedCallError,
    PartialCommitError,
    ReadOnlyMemoryError,
    ResolverError,
    SessionOwnerError,
    StateError,
    StateWarning,
    StoreClosedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    StoreURLError,
    UndeclaredKeyError,
    UnstorableValueError,
)
from agent_gantry_state.events import MemoryEvent
from agent_gantry_state.gantry import Gantry
from agent_gantry_state.memory import Memory
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.resolvers import IdentityResolver, Request, Resolver
from agent_gantry_state.scopes import Identity, Scope, current_identity
from agent_gantry_state.session import Session, SyncSession

if TYPE_CHECKING:
    from agent_gantry_state.injection.tool import Tool
    from agent_gantry_state.integrations.agent_gantry import AgentGantry

__all__ = [
    "AgentGantry",
    "AmbiguousIdentityError",
    "CallEndedError",
    "CodecError",
    "CorruptEntryError",
    "DeclarationError",
    "EvictionWarning",
    "ExclusiveTimeoutError",
    "ExecutionContext",
    "FurtherScopeError",
    "Gantry",
    "Identity",
    "IdentityResolver",
    "ImportRefusedError",
    "InjectedArgumentError",
    "Memory",
    "MemoryConflictError",
    "MemoryErasedError",
    "MemoryEvent",
    "MemoryExistsError",
    "MemoryNotFoundError",
    "MemoryTooLargeError",
    "MemoryValidationError",
    "MissingDriverError",
    "MissingIdentityError",
    "Namespace",
    "NotAtomicError",
    "NotListableError",
    "OrphanedCallError",
    "PartialCommitError",
    "ReadOnlyMemoryError",
    "Request",
    "Resolver",
    "ResolverError",
    "Scope",
    "Session",
    "SessionOwnerError",
    "StateError",
    "StateWarning",
    "StoreClosedError",
    "StoreError",
    "StoreTimeoutError",
    "StoreURLError",
    "StoreUnavailableError",
    "SyncExecutionContext",
    "SyncSession",
    "Tool",
    "UndeclaredKeyError",
    "UnstorableValueError",
    "__version__",
    "current_identity",
    "merge",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # agent-gantry is optional, and slow to import, and so is wrapt: they are, when their class is asked for.
    if name == "AgentGantry":
        from agent_gantry_state.integrations.agent_gantry import AgentGantry

        return AgentGantry
    if name == "Tool":
        from agent_gantry_state.injection.tool import Tool

        return Tool
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
