"""The stores of a gantry of which some scopes have their own: one bridge that knows which store a message is for.

A unit of work yields messages and need not say where they go, for each names its namespaces, and what a namespace's scope is
says which store has it. So one namespace is never in two stores, whatever scope a decorator had asked for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Any, TypeVar

from agent_gantry_state.bridge import Bridge, Runs
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.steps import Wait
from agent_gantry_state.stores.protocol import Commit, Forget, Lease, Load, Message, Release

__all__ = ["Several", "bridge_for", "same_stores"]

T = TypeVar("T")

_NAMESPACE: dict[type[Any], Callable[[Any], Namespace]] = {
    Load: lambda message: message.namespaces[0],
    Commit: lambda message: message.changes[0].namespace,
    Forget: lambda message: message.namespaces[0],
    Lease: lambda message: message.namespace,
    Release: lambda message: message.namespace,
}


class Several(Runs):
    """Bridges to the stores of one gantry, asked as one.

    Args:
        main: To the store of every scope that has none of its own.
        elsewhere: By scope, to the stores of the others.
        partial: Whether a call may be committed in parts, where that cannot be done in one step.
    """

    # Each part of a commit knows that of its own store.
    resendable = False

    def __init__(self, main: Bridge, elsewhere: Mapping[str, Bridge], partial: bool) -> None:
        self.main = main
        #: The store of every scope that has none of its own.
        self.store: Any = main.store
        self.elsewhere = {scope: bridge for scope, bridge in elsewhere.items() if bridge is not main}
        self.partial = partial
        self.counters = main.counters
        self.bridges = tuple({id(bridge): bridge for bridge in (main, *self.elsewhere.values())}.values())
        #: Where which scope is: equal for bridges that find all memories in the same places.
        self.places = {scope: id(bridge.store) for scope, bridge in self.elsewhere.items()}
        self.load_timeout: float = sum(bridge.load_timeout for bridge in self.bridges)
        self.commit_timeout: float = sum(bridge.commit_timeout for bridge in self.bridges)

    @property
    def stores(self) -> tuple[Any, ...]:
        """All stores."""
        return tuple([bridge.store for bridge in self.bridges])

    def of(self, namespace: Namespace) -> Bridge:
        """The bridge to the store in which a namespace is."""
        return self.elsewhere.get(namespace.scope, self.main)

    def _route(self, request: Message) -> Bridge:
        return self.of(_NAMESPACE[type(request)](request))

    def perform(self, request: Message | Wait) -> Any:
        return request.wait() if isinstance(request, Wait) else self._route(request).perform(request)

    async def aperform(self, request: Message | Wait) -> Any:
        return await (request.await_() if isinstance(request, Wait) else self._route(request).aperform(request))

    def ask_whole(self, request: Message | Wait) -> Awaitable[Any]:
        return request.await_() if isinstance(request, Wait) else self._route(request).ask_whole(request)

    def attempt(self, request: Message) -> Any:
        return self._route(request).attempt(request)

    def close(self) -> None:
        with ExitStack() as stack:
            for bridge in self.bridges:
                stack.callback(bridge.close)

    async def aclose(self) -> None:
        async with AsyncExitStack() as stack:
            for bridge in self.bridges:
                stack.push_async_callback(bridge.aclose)


def bridge_for(bridge: Bridge, namespace: Namespace) -> Bridge:
    """The bridge to the one store in which a namespace is."""
    return bridge.of(namespace) if isinstance(bridge, Several) else bridge


def same_stores(one: Bridge, other: Bridge) -> bool:
    """Whether whatever is found through one bridge is found in the same store through the other."""
    return one.store is other.store and _places(one) == _places(other)


def _places(bridge: Bridge) -> Mapping[str, int]:
    return bridge.places if isinstance(bridge, Several) else {}
