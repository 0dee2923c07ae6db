"""Calls inside a call, in every order: the memory of the one around is what they load from and commit to.

The model of `interleave` for them: a call inside begins with what the one around has made of its memory so far, and is
merged into that by what values there are. When the one around has landed, it goes on from the store; when that has
failed, it is orphaned.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from isolation.interleave import SESSION, Call, Mark, World
from isolation.model import GONE, Body, Ours, Plan, State, planned

from agent_gantry_state import codec
from agent_gantry_state.holding import Want
from agent_gantry_state.memory import Terms
from agent_gantry_state.stores.protocol import Commit, Load
from agent_gantry_state.unit_of_work import UnitOfWork


class Outer(Call):
    """A call in which others are made.

    Args:
        name: For the log.
        body: What it does when it begins.
        end: What it does before it ends; None: it fails.
    """

    def __init__(self, name: str, body: Body, end: Body | None = ()) -> None:
        super().__init__(name, body)
        self.end = end
        #: "", then "open", "closing", and "landed" or "failed".
        self.phase = ""
        self.unit: Any = None

    def _run(self, world: World) -> Any:
        self.unit = UnitOfWork({SESSION: Want.of(Terms("session"), None)}, world.bridge)
        (memory,) = yield from self.unit.begin()
        self._follow(memory, self.body)
        self.phase = "open"
        yield Mark()
        # What calls inside have made is in it.
        assert list(memory.items()) == list(self.ours.values.items())
        if self.end is None:
            self.phase = "failed"
            self.unit.fail()
            self.expected = "landed"
            return
        self._follow(memory, self.end)
        self.phase = "closing"
        try:
            yield from self.unit.finish()
        except BaseException:
            self.phase = "failed"
            raise
        self.phase = "landed"

    def take_up(self, plan: Plan, ours: Ours) -> None:
        """Do what a call inside has done."""
        for key in plan.deletes:
            self.ours.do(("delete", key))
        for key, (value, _) in plan.puts.items():
            if key in ours.added and key not in ours.assigned:
                self.ours.do(("add", key, ours.added[key]))
            elif codec.pack(value) != _packed(self.ours.values.get(key, GONE)):
                self.ours.do(("put", key, copy.deepcopy(value)))


class Inner(Call):
    """A call inside another one."""

    def __init__(self, name: str, outer: Outer, body: Body) -> None:
        super().__init__(name, body)
        self.outer = outer
        #: Whether what it began with is from the call around it.
        self.within = False

    def is_ready(self) -> bool:
        return super().is_ready() and self.outer.phase != ""

    def _run(self, world: World) -> Any:
        unit = UnitOfWork({SESSION: Want.of(Terms("session"), None)}, world.bridge, self.outer.unit)
        phase = self.outer.phase
        self.within = phase in ("open", "closing")
        if self.within:
            self.base = State(copy.deepcopy(self.outer.ours.values))
            self.ours = Ours(copy.deepcopy(self.base.values))
        elif phase == "failed":
            self.expected = "orphaned"
        (memory,) = yield from unit.begin()
        assert list(memory.items()) == list(self.base.values.items())
        self._follow(memory, self.body)
        yield Mark()
        yield from unit.finish()

    def step(self, world: World) -> None:
        if self._request is not None and not isinstance(self._request, (Load, Commit)):
            self._hand_over()
        super().step(world)

    def _hand_over(self) -> None:
        phase = self.outer.phase
        if phase == "failed":
            self.expected = "orphaned"
        elif phase == "open":
            plan = self.planned(State(dict(self.outer.ours.values)), 0.0)
            if plan.clashes:
                self.expected = f"conflict {sorted(plan.clashes)}"
            else:
                self.outer.take_up(plan, self.ours)

    def planned(self, there: State, now: float) -> Plan:
        if not self.within:
            return super().planned(there, now)
        return replace(planned(_by_content(self.base), self.ours, _by_content(there), now, self.plan), seen=there)

    def _answer(self, request: Any, world: World) -> Any:
        if not (isinstance(request, Load) and self.within):
            return super()._answer(request, world)
        # It goes on from what is committed.
        there = world.state.live(world.now)
        if self.outer.base.life == 0 and self.outer.number not in (0, there.life, *there.writes.values()):
            # Nothing tells a memory that others have made first, and written over since, from one that was erased.
            self.also = "erased"
        self.plan = plan = self.planned(there, world.now)
        self.expected = f"conflict {sorted(plan.clashes)}" if plan.clashes else "landed"
        return world.store.load(request)


def _packed(value: Any) -> bytes:
    return b"" if value is GONE else codec.pack(value)


def _by_content(state: State) -> State:
    return replace(state, writes={key: codec.pack(value) for key, value in state.values.items()})
