"""What the modules of the frameworks share: ids found in a framework's own objects, and calls made for whoever they name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from uuid import UUID

from agent_gantry_state.gantry import Stateful
from agent_gantry_state.scopes import Identity

__all__ = ["entered", "found"]


def found(names: Mapping[str, str], *sources: Any) -> Identity | None:
    """The identity whose ids are found in *sources*.

    Args:
        names: For each identity key (``session``, ``user``, ...) the name under which its id is found.
        sources: Mappings, or objects with attributes, of which the first that has an id counts. A number or a UUID is taken
            as its text. None has nothing.

    Returns:
        The identity; None if no id is found.

    Raises:
        TypeError: An id is neither text nor a number nor a UUID.
        ValueError: An id is "".
    """
    ids = {key: _id(name, sources) for key, name in names.items()}
    return None if all(id is None for id in ids.values()) else Identity(keys=ids)


def entered(gantry: Stateful, identity: Identity | None) -> AbstractContextManager[Any]:
    """A block in which *identity*, as a framework says it, calls.

    One with a session is the whole identity. One without replaces what it names, and leaves the rest of what is known; None
    leaves everything.
    """
    if identity is None:
        return nullcontext()
    if identity.session is None:
        identity = (gantry.identity() or Identity()).replace(**identity.keys)
    return gantry.session(identity)


def _id(name: str, sources: tuple[Any, ...]) -> Any:
    for source in sources:
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        if value is not None:
            return str(value) if type(value) is int or isinstance(value, UUID) else value
    return None
