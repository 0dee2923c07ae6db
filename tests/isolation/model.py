"""What the documentation says that calls come to, written anew: values and deadlines in a dict, and the rules of merging."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from agent_gantry_state import codec

GONE: Any = "there is no such key"

# What calls do. Each step is done to a real memory, and to a dict with notes beside it.

Step = tuple[Any, ...]
Body = tuple[Step, ...]


@dataclass
class Ours:
    """What one call makes of what it has loaded, according to the documentation."""

    values: dict[str, Any]
    added: dict[str, Any] = field(default_factory=dict)
    ttls: dict[str, float | None] = field(default_factory=dict)
    assigned: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)

    def do(self, step: Step) -> None:
        kind, key, *rest = step
        values = self.values
        if kind == "append":
            values.setdefault(key, []).append(rest[0])
        elif kind == "nest":
            values.setdefault(key, {})[rest[0]] = rest[1]
        elif kind == "include":
            values.setdefault(key, set()).add(rest[0])
        elif kind == "exclude":
            values.get(key, set()).discard(rest[0])
        elif kind == "put":
            self._write(key, rest[0])
        elif kind == "delete":
            if values.pop(key, GONE) is not GONE:
                self._write(key, GONE)
                self.removed.add(key)
                self.ttls.pop(key, None)
        elif kind == "double":
            self._write(key, values.get(key, 0) * 2)
        elif kind == "add":
            values[key] = values.get(key, 0) + rest[0]
            self.added[key] = self.added.get(key, 0) + rest[0]
        elif kind == "expire":
            if key in values:
                self.ttls[key] = rest[0]
        elif kind == "lend":
            self._write(key, rest[0])
            self.ttls[key] = rest[1]

    def _write(self, key: str, value: Any) -> None:
        self.assigned.add(key)
        if value is not GONE:
            self.values[key] = value


def do(memory: Any, step: Step) -> None:
    """Do a step to a memory, as a tool's body would."""
    kind, key, *rest = step
    if kind == "append":
        memory.setdefault(key, []).append(rest[0])
    elif kind == "nest":
        memory.setdefault(key, {})[rest[0]] = rest[1]
    elif kind == "include":
        memory.setdefault(key, set()).add(rest[0])
    elif kind == "exclude":
        memory.get(key, set()).discard(rest[0])
    elif kind == "put":
        memory[key] = rest[0]
    elif kind == "delete":
        memory.pop(key, None)
    elif kind == "double":
        memory[key] = memory.get(key, 0) * 2
    elif kind == "add":
        memory.add(key, rest[0])
    elif kind == "expire":
        if key in memory:
            memory.expire(key, rest[0])
    elif kind == "lend":
        memory.set(key, rest[0], ttl=rest[1])


# The rules.


class Clash(Exception):
    """Both sides changed a key, and there is no rule for that."""


def merged(base: Any, theirs: Any, ours: Any) -> Any:
    """What the documentation makes of a value that two calls may have changed."""
    if _same(ours, base):
        return theirs
    if _same(theirs, base) or (theirs is GONE and ours is GONE):
        return ours
    if GONE in (type(theirs), type(ours)) or theirs is GONE or ours is GONE:
        raise Clash
    if type(theirs) is not type(ours):
        raise Clash
    kind = type(ours)
    if kind not in (dict, list, set):
        if _same(theirs, ours) and not (kind is int and type(base) is int):
            return ours
        raise Clash
    if base is GONE:
        base = kind()
    if type(base) is not kind:
        raise Clash
    if kind is list:
        if theirs[: len(base)] != base or ours[: len(base)] != base:
            raise Clash
        return theirs + ours[len(base) :]
    if kind is set:
        return (theirs - (base - ours)) | (ours - base)
    result = {}
    for key in (*theirs, *(each for each in ours if each not in theirs)):
        value = merged(*(side.get(key, GONE) for side in (base, theirs, ours)))
        if value is not GONE:
            result[key] = value
    return result


def _same(one: Any, other: Any) -> bool:
    if one is GONE or other is GONE:
        return one is other
    return codec.pack(one) == codec.pack(other)


@dataclass(frozen=True)
class State:
    """What a namespace holds.

    Attributes:
        values: In order.
        deadlines: When those expire that do.
        writes: For each key, which write it has its value from.
        life: Which life of the namespace this is; 0: there is none.
    """

    values: dict[str, Any] = field(default_factory=dict)
    deadlines: dict[str, float] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    life: int = 0

    def live(self, now: float) -> State:
        """It without what has expired; with its last key a namespace is gone, unless that was deleted."""
        gone = {key for key, deadline in self.deadlines.items() if deadline <= now}
        if not gone:
            return self
        if len(gone) == len(self.values):
            return State()
        values, deadlines, writes = (
            {key: value for key, value in each.items() if key not in gone}
            for each in (self.values, self.deadlines, self.writes)
        )
        return State(values, deadlines, writes, self.life)

    def last_expiry(self) -> float:
        """When nothing of it is left."""
        if not self.values or len(self.deadlines) < len(self.values):
            return math.inf
        return max(self.deadlines.values())


def is_erased(base: State, there: State, now: float) -> bool:
    """Whether a call that has loaded *base* is to be refused, for that was erased meanwhile and has not expired."""
    return base.life not in (0, there.life) and now < base.last_expiry()


@dataclass(frozen=True)
class Plan:
    """What a call is about to write, over what it has last seen.

    Attributes:
        seen: What it has seen.
        puts: Values by key, each with whether it goes to the end.
        deletes: Keys.
        checks: Keys that must be as they were seen, or expired since.
        clashes: Keys for which there is no rule; then nothing is written.
    """

    seen: State
    puts: dict[str, tuple[Any, bool]]
    deletes: list[str]
    checks: list[str]
    clashes: list[str]

    def fits(self, there: State, now: float) -> bool:
        return all(
            self.seen.writes.get(key) == there.writes.get(key) or _has_expired(self.seen, there, key, now)
            for key in self.checks
        )

    def applied(self, ours: Ours, there: State, now: float, number: int) -> State:
        values, deadlines, writes = dict(there.values), dict(there.deadlines), dict(there.writes)
        for key in (*self.deletes, *(key for key, (_, is_last) in self.puts.items() if is_last)):
            for each in (values, deadlines, writes):
                each.pop(key, None)
        for key, (value, _) in self.puts.items():
            values[key], writes[key] = value, number
            if key in ours.ttls or key in ours.removed:
                deadlines.pop(key, None)
            if (ttl := ours.ttls.get(key)) is not None:
                deadlines[key] = now + ttl
        if not (self.puts or self.deletes):
            return there
        return State(values, deadlines, writes, there.life or number)


def planned(base: State, ours: Ours, there: State, now: float, before_that: Plan | None = None) -> Plan:
    """What a call that has loaded *base* is to write where it finds *there*."""
    puts, deletes, checks, clashes = {}, [], [], []
    for key in dict.fromkeys((*ours.values, *base.values)):
        before, theirs, mine = (side.get(key, GONE) for side in (base.values, there.values, ours.values))
        is_last = key in ours.removed and before is not GONE and mine is not GONE
        if _same(before, mine) and key not in ours.ttls and not is_last:
            continue
        checks.append(key)
        has_moved = base.writes.get(key) != there.writes.get(key)
        if has_moved and _has_expired(base, there, key, now):
            # It counts as unchanged, since it was loaded or since it was last merged.
            has_moved = False
            if before_that is not None:
                mine = before_that.puts.get(key, (GONE, False))[0]
                if mine is GONE and key not in before_that.deletes:
                    continue
        try:
            if not has_moved:
                value = mine
            elif key in ours.added and key not in ours.assigned:
                value = _sum(theirs, ours.added[key])
            else:
                value = merged(before, theirs, mine)
        except Clash:
            clashes.append(key)
            continue
        if has_moved and _same(value, theirs) and (key not in ours.ttls or value is GONE):
            continue
        if value is GONE:
            deletes.append(key)
        else:
            puts[key] = value, is_last and not has_moved
    return Plan(there, puts, deletes, checks, clashes)


def _has_expired(seen: State, there: State, key: str, now: float) -> bool:
    return key not in there.values and seen.deadlines.get(key, math.inf) <= now


def _sum(theirs: Any, n: int) -> int:
    if theirs is GONE:
        return n
    if type(theirs) is not int:
        raise Clash
    return theirs + n
