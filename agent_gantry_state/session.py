"""A session key by key: for state that is too large to load whole.

Each operation loads the key that it names and no other. What is changed is part of the same unit of work as everything else
that the call does: it is seen by the call at once, and by others when the call has committed. The operations are generators;
the two classes below are what async and sync tools see of them.
"""

from __future__ import annotations

from typing import Any

from agent_gantry_state.changes import refuse_reserved
from agent_gantry_state.codec import name_of
from agent_gantry_state.errors import CallEndedError, UnstorableValueError
from agent_gantry_state.holding import Want
from agent_gantry_state.memory import Memory
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores.protocol import KEEP, Ttl
from agent_gantry_state.unit_of_work import UnitOfWork

__all__ = ["Session", "SyncSession", "refuse_ended"]


def refuse_ended(unit: UnitOfWork, what: str) -> None:
    """Refuse to go on with a unit that is over.

    Raises:
        CallEndedError: It is.
    """
    if not unit.is_open:
        raise CallEndedError(
            f"this {what} belongs to a call that has ended, so that nothing was read or written; use it only while the tool "
            "runs, and outside a tool `with gantry.memory(...)`"
        )


class _Keys:
    """The keys of one namespace, for one call."""

    __slots__ = ("_namespace", "_unit", "_want")

    def __init__(self, unit: UnitOfWork, namespace: Namespace, want: Want) -> None:
        self._unit = unit
        self._namespace = namespace
        self._want = want

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of scope {self._namespace.scope!r}>"

    def _load(self, key: str) -> Steps[Memory]:
        refuse_ended(self._unit, "session")
        if type(key) is not str:
            name = name_of(type(key))
            raise UnstorableValueError(f"session keys are str, not {name}; use str(key)", path=f"session[<{name}>]")
        refuse_reserved(key)
        yield from self._unit.hold({self._namespace: self._want._replace(keys=(key,))})
        # The call may have ended while this was loaded.
        refuse_ended(self._unit, "session")
        held = self._unit.held[self._namespace]
        held.flush()
        return held.memory

    def _get(self, key: str, default: Any) -> Steps[Any]:
        memory = yield from self._load(key)
        return memory.get(key, default)

    def _set(self, key: str, value: Any, ttl: Ttl) -> Steps[None]:
        memory = yield from self._load(key)
        memory.set(key, value, ttl)
        self._unit.show()

    def _delete(self, key: str) -> Steps[bool]:
        memory = yield from self._load(key)
        there = key in memory
        memory.pop(key, None)
        self._unit.show()
        return there

    def _add(self, key: str, n: Any) -> Steps[Any]:
        memory = yield from self._load(key)
        total = memory.add(key, n)
        self._unit.show()
        return total

    def _names(self) -> Steps[list[str]]:
        refuse_ended(self._unit, "session")
        return (yield from self._unit.names(self._namespace, self._want._replace(keys=())))


class Session(_Keys):
    """A session, key by key, for an async tool.

    A parameter with this annotation gets one in a tool that is registered with ``stateful=True``, and in a function below
    `with_session`. All of its methods raise `CallEndedError` after the call that it was made for, `SessionOwnerError` if the
    session is somebody else's, `MemoryErasedError` if it was erased during the call, and `StoreError` if the store fails.
    """

    __slots__ = ()

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of *key*, or *default* if it is not there. A change inside a container that it gives is kept."""
        return await self._unit.bridge.arun(self._get(key, default))

    async def set(self, key: str, value: Any, ttl: Ttl = KEEP) -> None:
        """Set *key*.

        Args:
            key: The key.
            value: Its value.
            ttl: Seconds from the commit on; None: for ever; by default what the scope says.

        Raises:
            ValueError: *ttl* is not positive.
            TypeError: *ttl* is no number.
        """
        await self._unit.bridge.arun(self._set(key, value, ttl))

    async def delete(self, key: str) -> bool:
        """Delete *key*; whether it was there."""
        return await self._unit.bridge.arun(self._delete(key))  # type: ignore[no-any-return]

    async def keys(self) -> list[str]:
        """The keys that are there, in the order in which they were made; their values are not loaded."""
        return await self._unit.bridge.arun(self._names())  # type: ignore[no-any-return]

    async def add(self, key: str, n: Any = 1) -> Any:
        """Add to a number, also while other calls add to it, as `Memory.add` does; the sum as this call sees it.

        Raises:
            TypeError: *n*, or the value that is there, is no int, float or Decimal.
        """
        return await self._unit.bridge.arun(self._add(key, n))


class SyncSession(_Keys):
    """`Session` for a sync tool."""

    __slots__ = ()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of *key*, or *default* if it is not there. A change inside a container that it gives is kept."""
        return self._unit.bridge.run(self._get(key, default))

    def set(self, key: str, value: Any, ttl: Ttl = KEEP) -> None:
        """Set *key*; *ttl* as in `Session.set`."""
        self._unit.bridge.run(self._set(key, value, ttl))

    def delete(self, key: str) -> bool:
        """Delete *key*; whether it was there."""
        return self._unit.bridge.run(self._delete(key))  # type: ignore[no-any-return]

    def keys(self) -> list[str]:
        """The keys that are there, in the order in which they were made; their values are not loaded."""
        return self._unit.bridge.run(self._names())  # type: ignore[no-any-return]

    def add(self, key: str, n: Any = 1) -> Any:
        """Add to a number, as `Session.add` does."""
        return self._unit.bridge.run(self._add(key, n))
