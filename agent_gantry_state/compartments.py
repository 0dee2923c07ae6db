"""Compartments: parts of a namespace that only one tool sees.

The keys of a compartment stand in the namespace beside the others, behind a prefix with which no other key may begin. So
what holds for the namespace (owner, erasure, limits, one atomic commit) holds for them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

__all__ = ["FIRST_OPEN", "RESERVED", "has_reserved", "is_reserved", "known_as", "prefix_of"]

#: The character with which the keys of compartments begin, and no others.
RESERVED: Final = "\0"
_STORED = re.compile(r"\0([0-9]{1,18}):")
#: No key from here on is one of them. (Below it is the empty key as well, which is none.)
FIRST_OPEN: Final = "\1"


def prefix_of(tool: str) -> str:
    """What the keys of a tool's compartment begin with. None is the beginning of another, for its length goes before it."""
    return f"{RESERVED}{len(tool)}:{tool}"


def is_reserved(key: str) -> bool:
    """Whether a key belongs to a compartment."""
    return key.startswith(RESERVED)


def has_reserved(keys: Collection[str]) -> bool:
    """Whether one of these keys belongs to a compartment."""
    # The smallest one is found in C.
    return bool(keys) and min(keys) < FIRST_OPEN and any(map(is_reserved, keys))


def known_as(key: str) -> str:
    """A key as the tool knows it that sees it; one that is damaged stays as it is."""
    found = _STORED.match(key)
    return key if found is None else key[found.end() + int(found[1]) :]


def all_known_as(keys: Iterable[str]) -> list[str]:
    """Keys as the tools know them that see them, each once."""
    return list(dict.fromkeys(map(known_as, keys)))
