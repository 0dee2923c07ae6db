"""Values of typed state: what the codec stores of them, and how one becomes equal to another in place."""

from __future__ import annotations

import collections
import dataclasses
import enum
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agent_gantry_state import codec

__all__ = ["covers", "grafted", "plain", "set_fields"]

_LEAVES = codec.IMMUTABLE
# Past what a subclass makes of itself.
_BASES: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    bytes: lambda value: bytes(memoryview(value)),
    bytearray: lambda value: bytes(memoryview(value)),
}
_TEXTS = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Interface,
    ipaddress.IPv6Interface,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)


def plain(value: Any) -> Any:
    """*value* as the codec stores it, where pydantic makes it again of that.

    A bounded deque and a pattern with flags are left for the codec to refuse: they would come back without.
    """
    kind = type(value)
    if kind in _LEAVES:
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        if kind is dict and _LEAVES.issuperset(map(type, value)) and _LEAVES.issuperset(map(type, value.values())):
            return value
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list) or (isinstance(value, collections.deque) and value.maxlen is None):
        return [plain(item) for item in value]
    for container in (tuple, set, frozenset):
        if isinstance(value, container):
            return container(map(plain, value))
    for base, exact in _BASES.items():
        if isinstance(value, base):
            return exact(value)
    if isinstance(value, _TEXTS) or _is_url(kind):
        return str(value)
    if isinstance(value, re.Pattern) and re.compile(value.pattern) == value:
        return value.pattern
    return value


def _is_url(kind: type) -> bool:
    # By name, for a look at its module would import it; hosts and schemes of an URL are all text.
    return any(each.__module__ in ("pydantic.networks", "pydantic_core") for each in kind.__mro__) and hasattr(
        kind, "scheme"
    )


def covers(dumped: Any, stored: Any) -> bool:
    """Whether all that is stored, as far as the class knows it, came through unconverted."""
    kind = type(dumped)
    if kind is dict and type(stored) is dict:
        return all(covers(dumped[key], value) for key, value in stored.items() if key in dumped)
    if kind in (list, tuple) and type(stored) is kind:
        return len(dumped) == len(stored) and all(map(covers, dumped, stored))
    return codec.pack(dumped) == codec.pack(stored)


# In place.


def set_fields(state: Any, fresh: Any, fields: Iterable[str], chosen: frozenset[str] | None, seen: set[int]) -> None:
    """Set fields past what the class says on assignment: they have been validated, and a frozen one is no less stale."""
    for name in fields:
        if (chosen is None or name in chosen) and hasattr(fresh, name):
            new = getattr(fresh, name)
            value = grafted(getattr(state, name), new, seen) if hasattr(state, name) else new
            object.__setattr__(state, name, value)
    if not hasattr(state, "__pydantic_fields_set__"):
        return
    given: set[str] = state.__pydantic_fields_set__
    touched = set(type(fresh).model_fields) if chosen is None else set(chosen)
    given.difference_update(touched)
    given.update(touched & fresh.__pydantic_fields_set__)
    extra, ours = fresh.__pydantic_extra__, state.__pydantic_extra__
    if extra is None or ours is None:
        return
    for name in {*ours, *extra}:
        if chosen is None or name in chosen:
            if name in extra:
                ours[name] = grafted(ours[name], extra[name], seen) if name in ours else extra[name]
                given.add(name)
            else:
                del ours[name]
                given.discard(name)


def grafted(old: Any, new: Any, seen: set[int]) -> Any:
    """*old*, made equal to *new* in place where that can be, else *new*, so that variables which hold a part stay alive."""
    kind = type(old)
    if old is new or kind is not type(new) or id(old) in seen:
        return new
    if kind is dict:
        seen.add(id(old))
        kept = {key: grafted(old[key], value, seen) if key in old else value for key, value in new.items()}
        old.clear()
        old.update(kept)
    elif kind is list:
        seen.add(id(old))
        items = [grafted(one, other, seen) for one, other in zip(old, new, strict=False)]
        old[:] = items + new[len(old) :]
    elif kind is set:
        seen.add(id(old))
        kept_members = set(new)
        old.clear()
        old.update(kept_members)
    elif dataclasses.is_dataclass(kind) and not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        seen.add(id(old))
        set_fields(old, new, [field.name for field in dataclasses.fields(kind)], None, seen)
    elif hasattr(kind, "model_fields") and not kind.model_config.get("frozen"):
        seen.add(id(old))
        set_fields(old, new, kind.model_fields, None, seen)
    else:
        return new
    return old
