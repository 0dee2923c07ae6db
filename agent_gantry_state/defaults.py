"""What a memory begins with where there is none yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent_gantry_state import codec
from agent_gantry_state.changes import pack_at, refuse_key, refuse_reserved
from agent_gantry_state.codec import shortened
from agent_gantry_state.errors import DeclarationError, UnstorableValueError
from agent_gantry_state.stores.protocol import Snapshot

__all__ = ["default_of"]


def default_of(
    where: str,
    default: Mapping[str, Any] | None,
    factory: Callable[[], Mapping[str, Any]] | None,
    keys: tuple[str, ...] | None,
    others: str = "none of keys",
) -> Callable[[], Snapshot] | None:
    """What `with_memory(default=, default_factory=)` declare: a function that gives it as if it had been loaded.

    Args:
        where: Name of the decorator, for errors.
        default: Keys and values.
        factory: Makes them.
        keys: The only keys of the memory; None: all.
        others: What a key is that is none of those, for errors.

    Raises:
        DeclarationError: Both are given, or it cannot be stored, or names a key that is none of *keys*.
    """
    if factory is not None:
        if default is not None:
            raise DeclarationError(f"{where}: give default or default_factory, not both")
        if not callable(factory):
            raise DeclarationError(f"{where}: default_factory must be callable, not a {type(factory).__name__}")
        make = factory
        return lambda: _snapshot(f"{where}: default_factory", make(), keys, others, "give")
    if default is None:
        return None
    snapshot = _snapshot(f"{where}: default", default, keys, others)
    return lambda: snapshot


def _snapshot(what: str, default: Any, keys: tuple[str, ...] | None, others: str, verb: str = "be") -> Snapshot:
    if not isinstance(default, Mapping):
        raise DeclarationError(f"{what} must {verb} a dict, not {type(default).__name__}")
    values: dict[str, Any] = {}
    packed: dict[str, bytes] = {}
    for key, value in default.items():
        try:
            refuse_key(key)
            refuse_reserved(key)
            encoded = pack_at(value, key)
        except UnstorableValueError as error:
            raise DeclarationError(f"{what}: {error}") from error
        if keys is not None and key not in keys:
            raise DeclarationError(f"{what} names {shortened(repr(key))}, which is {others}")
        if type(value) in codec.IMMUTABLE:
            values[key] = value
        else:
            values[key], packed[key] = None, encoded
    return Snapshot(values, packed, {}, None)
