"""Three-way merge of what two calls made of one value, and the merges that a tool can declare.

`base` is what both calls started from, `theirs` what the other one committed, `ours` what this one wants to commit;
`ABSENT` stands for a side that has no such key. Nothing is merged by guess: where both sides changed the same thing and
neither order would be right, it is a conflict.

    @gantry.with_memory(merge={"score": merge.max, "plan": merge.longest})
"""

from __future__ import annotations

import builtins
import decimal
from collections.abc import Callable
from typing import Any, Final, NoReturn

from agent_gantry_state import codec

__all__ = [
    "ABSENT",
    "Conflict",
    "Merge",
    "add",
    "conflict",
    "graft",
    "longest",
    "max",
    "min",
    "newest",
    "ours",
    "theirs",
    "three_way",
    "union",
]


class _Absent:
    """There is no such key on this side."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> bool:
        return False

    def __copy__(self) -> _Absent:
        return self

    def __deepcopy__(self, memo: Any) -> _Absent:
        return self

    def __reduce__(self) -> str:
        return "ABSENT"


ABSENT: Final = _Absent()

#: A merge takes base, theirs and ours, private copies each or `ABSENT`, and returns the value to keep, or `ABSENT`.
Merge = Callable[[Any, Any, Any], Any]


class Conflict(Exception):
    """Both sides changed the same thing. A declared merge may raise it, too."""


class Unfit(Conflict):
    """A conflict of values of the wrong kinds. Its words are ours, and hold no value."""


def three_way(base: Any, theirs: Any, ours: Any, reruns: bool = False) -> Any:
    """Merge what is safe to merge.

    Nested dicts merge key by key; lists that both sides only appended to become theirs followed by our additions, also
    from an absent or empty list; sets take the additions and removals of both. A side that changed nothing gives way. The
    same new value from both sides is no conflict, unless it is a list, for two equal additions are two, or a number that was
    another number before, for both may have counted.

    Args:
        base: What both sides started from.
        theirs: What the other one made of it.
        ours: What this one made of it.
        reruns: Whether this one can run again: then the same number where there was none before is a conflict as well.

    Returns:
        The merged value, made of parts of the three, or `ABSENT`.

    Raises:
        Conflict: Both sides changed it otherwise.
    """
    if _same(base, ours):
        return theirs
    if _same(base, theirs):
        return ours
    if theirs is ABSENT and ours is ABSENT:
        return ABSENT
    if theirs is ABSENT or ours is ABSENT:
        raise Conflict
    kind = type(ours)
    if kind is not type(theirs) or kind not in _CONTAINERS:
        if not _same(theirs, ours) or (is_number(ours) and (reruns or is_number(base))):
            raise Conflict
        return theirs
    if base is ABSENT:
        base = kind()
    elif type(base) is not kind:
        raise Conflict
    if kind is dict:
        return _merge_dict(base, theirs, ours, reruns)
    return _MERGERS[kind](base, theirs, ours)


def _merge_dict(base: dict[Any, Any], theirs: dict[Any, Any], ours: dict[Any, Any], reruns: bool) -> dict[Any, Any]:
    merged = {}
    for key, value in theirs.items():
        kept = three_way(base.get(key, ABSENT), value, ours.get(key, ABSENT), reruns)
        if kept is not ABSENT:
            merged[key] = kept
    for key, value in ours.items():
        if key not in theirs:
            kept = three_way(base.get(key, ABSENT), ABSENT, value, reruns)
            if kept is not ABSENT:
                merged[key] = kept
    return merged


def _merge_list(base: list[Any], theirs: list[Any], ours: list[Any]) -> list[Any]:
    length = len(base)
    if not (_same(base, theirs[:length]) and _same(base, ours[:length])):
        raise Conflict
    return theirs + ours[length:]


def _merge_set(base: set[Any], theirs: set[Any], ours: set[Any]) -> set[Any]:
    # By bytes: as members of a set, 1 and True are the same, and removing one for the other would go unnoticed.
    before, there, here = ({codec.pack(item): item for item in side} for side in (base, theirs, ours))
    kept = {packed: item for packed, item in there.items() if packed in here or packed not in before}
    kept |= {packed: item for packed, item in here.items() if packed not in before}
    return type(ours)(kept.values())


_MERGERS: dict[type, Merge] = {list: _merge_list, set: _merge_set, frozenset: _merge_set}
_CONTAINERS = frozenset({dict, *_MERGERS})


def _same(one: Any, other: Any) -> bool:
    if one is ABSENT or other is ABSENT:
        return one is other
    return codec.pack(one) == codec.pack(other)


def graft(target: Any, source: Any, is_copy: bool = False) -> Any:
    """Make *target* equal to *source* in place, so that variables that hold a part of it stay alive.

    Dicts, lists and sets of *target* are kept wherever *source* has one of the same type in the same place; anything else
    is taken from *source*.

    Args:
        target: What may be held.
        source: What it is to be like.
        is_copy: Whether nobody else has *source* or a part of it.

    Returns:
        *target* where it could be kept, else *source*.
    """
    # From a private copy: the source may hold parts of the target, which change on the way.
    return _graft(target, source if is_copy else codec.unpack(codec.pack(source)), set())


def _graft(target: Any, source: Any, used: set[int]) -> Any:
    kind = type(target)
    if kind is not type(source) or kind not in (dict, list, set) or id(target) in used:
        # A container that stands in the target twice can only become one of the two.
        return source
    used.add(id(target))
    if kind is dict:
        kept = {
            key: value if type(value) in codec.IMMUTABLE or key not in target else _graft(target[key], value, used)
            for key, value in source.items()
        }
        target.clear()
        target.update(kept)
    elif kind is list:
        # What is at the same index is the same thing, as far as anybody can tell.
        items = [
            new if type(new) in codec.IMMUTABLE else _graft(old, new, used) for old, new in zip(target, source, strict=False)
        ]
        target[:] = items + source[len(target) :]
    else:
        target.clear()
        target.update(source)
    return target


# Declared merges.


def add(base: Any, theirs: Any, ours: Any) -> Any:
    """Add both sides' differences to a number. An absent side counts as 0."""
    before, there, here = (0 if side is ABSENT else side for side in (base, theirs, ours))
    for side in (before, there, here):
        if not is_number(side):
            raise Unfit(f"merge.add needs numbers, not {type(side).__name__}")
    return there + (here - before)


def max(base: Any, theirs: Any, ours: Any) -> Any:
    """Keep the greater of both sides; an absent side gives way."""
    return _chosen(theirs, ours, builtins.max)


def min(base: Any, theirs: Any, ours: Any) -> Any:
    """Keep the smaller of both sides; an absent side gives way."""
    return _chosen(theirs, ours, builtins.min)


def longest(base: Any, theirs: Any, ours: Any) -> Any:
    """Keep the longer of both sides, theirs if they are equally long; an absent side gives way."""
    return _chosen(theirs, ours, lambda there, here: here if len(here) > len(there) else there)


def _chosen(theirs: Any, ours: Any, choose: Callable[[Any, Any], Any]) -> Any:
    if theirs is ABSENT or ours is ABSENT:
        return ours if theirs is ABSENT else theirs
    return choose(theirs, ours)


def union(base: Any, theirs: Any, ours: Any) -> Any:
    """Keep what is on either side: of sets, of lists (each item once, theirs first), of dicts (ours wins a key)."""
    if theirs is ABSENT or ours is ABSENT:
        return ours if theirs is ABSENT else theirs
    kind = type(ours)
    if kind is not type(theirs) or kind not in _CONTAINERS:
        raise Unfit("merge.union needs two sets, two lists or two dicts")
    if kind is dict:
        return {**theirs, **ours}
    return kind({codec.pack(item): item for item in (*theirs, *ours)}.values())


def newest(count: int) -> Merge:
    """Make a merge for lists that calls append to and cut at the beginning: theirs, then what ours appended, cut again.

    Args:
        count: How many items to keep.

    Raises:
        ValueError: *count* is not positive.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"merge.newest: count must be an int of at least 1, not {count!r}")

    def merge(base: Any, theirs: Any, ours: Any) -> Any:
        before, there, here = ([] if side is ABSENT else side for side in (base, theirs, ours))
        for side in (before, there, here):
            if type(side) is not list:
                raise Unfit(f"merge.newest needs lists, not {type(side).__name__}")
        return (there + here[_overlap(before, here) :])[-count:]

    return merge


def _overlap(before: list[Any], after: list[Any]) -> int:
    """With how many of the last items of *before* *after* begins: those that were there and were not cut."""
    old, new = [codec.pack(item) for item in before], [codec.pack(item) for item in after]
    longest_first = range(builtins.min(len(old), len(new)), 0, -1)
    return next((length for length in longest_first if old[-length:] == new[:length]), 0)


def ours(base: Any, theirs: Any, ours: Any) -> Any:
    """Keep what this call made of it: the last one wins."""
    return ours


def theirs(base: Any, theirs: Any, ours: Any) -> Any:
    """Keep what the other call made of it: the first one wins."""
    return theirs


def conflict(base: Any, theirs: Any, ours: Any) -> NoReturn:
    """Never merge, not even what would be safe."""
    raise Conflict


def is_number(value: Any) -> bool:
    """Whether `Memory.add` and `add` can work with *value*: int, float or Decimal, and no bool."""
    return type(value) in (int, float, decimal.Decimal)
