"""Every order in which the messages of a few calls can come to a store, and what each call has to come to in that order.

A unit of work is a generator of messages, so that a scheduler can choose whose message is answered next. A run is a row
of such choices; `explore` makes all of them, by going back to the last choice that had an alternative. Beside the store
there is a model of what the documentation says: values and deadlines in a dict, and the rules of merging, written anew.
After each step the store has to hold what the model holds, and each call has to end as the model says: landed, in
conflict over the keys that the model names, or refused because its memory was erased.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from isolation.model import Body, Ours, Plan, State, do, is_erased, planned

from agent_gantry_state import (
    MemoryConflictError,
    MemoryErasedError,
    Namespace,
    OrphanedCallError,
    StoreTimeoutError,
    codec,
)
from agent_gantry_state.holding import Want
from agent_gantry_state.memory import Terms
from agent_gantry_state.steps import Pause
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import UNSHARED, Change, Commit, Committed, Forget, Load, Moved, Put
from agent_gantry_state.unit_of_work import UnitOfWork

SESSION = Namespace("session", "s1", "app")
_START = 1_000.0

# Choosing.


class Chooser:
    """Makes the choices of one run: those that it is given, then always the first.

    Attributes:
        trail: What was chosen, and of how many.
    """

    def __init__(self, given: list[int] | None = None, rng: random.Random | None = None) -> None:
        self._given = given or []
        self._rng = rng
        self.trail: list[tuple[int, int]] = []

    def __call__(self, count: int) -> int:
        if count == 1:
            return 0
        at = len(self.trail)
        if self._rng is not None:
            choice = self._rng.randrange(count)
        else:
            choice = self._given[at] if at < len(self._given) else 0
        self.trail.append((choice, count))
        return choice


def explore(run: Callable[[Chooser], Any]) -> int:
    """Make every run there is; how many there were."""
    given: list[int] = []
    count = 0
    while True:
        chooser = Chooser(given)
        run(chooser)
        count += 1
        trail = chooser.trail
        while trail and trail[-1][0] + 1 == trail[-1][1]:
            trail.pop()
        if not trail:
            return count
        given = [choice for choice, _ in trail[:-1]] + [trail[-1][0] + 1]


# One run.


class KnowsTokens(MemoryStore):
    """A store whose answers may be lost: it knows a commit again also when what it wrote has been erased or has expired."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tokens: set[bytes] = set()

    def commit(self, message: Commit, /) -> Committed | Moved:
        if message.token in self.tokens:
            return Committed()
        answer = super().commit(message)
        if isinstance(answer, Committed) and message.token:
            self.tokens.add(message.token)
        return answer


class Mark:
    """A moment in a call at which others may come between, though it asks a store for nothing."""


class Actor:
    """Somebody whose next step can be taken."""

    name = ""
    done = False
    #: Whether it cannot go on before somebody else has taken a step.
    paused = False

    def is_ready(self) -> bool:
        return not self.done and not self.paused

    def step(self, world: World) -> None:
        raise NotImplementedError


class Event(Actor):
    """Something that happens at some moment."""

    def __init__(self, name: str, happen: Callable[[World], None]) -> None:
        self.name = name
        self._happen = happen

    def step(self, world: World) -> None:
        self.done = True
        self._happen(world)


def passes(seconds: float) -> Event:
    """Time goes by."""

    def happen(world: World) -> None:
        world.now += seconds
        world.state = world.state.live(world.now)

    return Event(f"{seconds:g} s", happen)


def is_forgotten() -> Event:
    """The namespace is erased."""

    def happen(world: World) -> None:
        world.store.forget(Forget((SESSION,)))
        world.state = State()
        world.erasures += 1

    return Event("forget", happen)


class Call(Actor):
    """A call that loads, runs its body and commits."""

    def __init__(self, name: str, body: Body) -> None:
        self.name = name
        self.body = body
        self.base = State()
        self.ours = Ours({})
        #: Whether its commit is done, whatever it has heard of that.
        self.landed = False
        self.outcome = ""
        #: What it is about to write.
        self.plan: Plan | None = None
        #: What it has to come to, according to the model.
        self.expected = "landed"
        #: What it may come to instead.
        self.also = ""
        #: Which write its commit was.
        self.number = 0
        self._steps: Any = None
        self._request: Any = None

    def step(self, world: World) -> None:
        if self._steps is None:
            self._steps = self._run(world)
            self._send(None, world)
            if self.done or isinstance(self._request, Mark):
                return
        request = self._request
        if isinstance(request, (Mark, Pause)):
            self._send(None, world)
            return
        try:
            answer = self._answer(request, world)
        except StoreTimeoutError as error:
            self._send(error, world)
        else:
            self._send(answer, world)

    def _run(self, world: World) -> Any:
        unit = UnitOfWork({SESSION: Want.of(Terms("session"), None)}, world.bridge)
        (memory,) = yield from unit.begin()
        loaded = {key: world.now + left for key in memory if (left := memory.ttl(key)) is not None}
        assert (list(memory.items()), loaded) == (list(self.base.values.items()), self.base.deadlines)
        self._follow(memory, self.body)
        yield from unit.finish()

    def planned(self, there: State, now: float) -> Plan:
        """What it is to write where it finds *there*."""
        return planned(self.base, self.ours, there, now, self.plan)

    def _follow(self, memory: Any, body: Body) -> None:
        for step in body:
            do(memory, step)
            self.ours.do(step)
        assert list(memory.items()) == list(self.ours.values.items())

    def _answer(self, request: Any, world: World) -> Any:
        if isinstance(request, Load):
            self.base = world.state.live(world.now)
            self.ours = Ours(copy.deepcopy(self.base.values))
            self.plan = None
            return world.store.load(request)
        assert isinstance(request, Commit)
        how = world.fault()
        if how in ("", "lost after"):
            answer = world.commit(self, request, unheard=bool(how))
            if not how:
                return answer
        elif how == "late":
            world.actors.append(Event(f"late {self.name}", lambda world: world.commit(self, request, unheard=True)))
        raise StoreTimeoutError("no answer came", committed=None)

    def _send(self, answer: Any, world: World) -> None:
        """Go on to the next request that a store has to answer, or to the end."""
        try:
            while True:
                if isinstance(answer, Exception):
                    self._request = self._steps.throw(answer)
                else:
                    self._request = self._steps.send(answer)
                if type(self._request) is not Pause:
                    # Whoever waits for the call around goes on when somebody else has done something.
                    self.paused = isinstance(self._request, Pause)
                    return
                answer = None
        except StopIteration:
            self.outcome = "landed"
        except MemoryErasedError:
            self.outcome = "erased"
        except OrphanedCallError:
            self.outcome = "orphaned"
        except MemoryConflictError as error:
            self.outcome = f"conflict {sorted(error.keys)}"
            self.outcome += "" if error.committed is False else " unknown"
        self.done = True
        world.judge(self)


class World:
    """One run: a store, the model beside it, and who acts.

    Args:
        start: What there is at first: values, and times to live.
        actors: Who acts.
        choose: Chooses whose turn it is, and what goes wrong.
        faults: How many answers may be lost.
        kinds: How: "lost before" the commit was carried out, "lost after", or "late": it is carried out at some later time.
    """

    def __init__(
        self,
        start: tuple[dict[str, Any], dict[str, float]],
        actors: list[Actor],
        choose: Chooser,
        faults: int = 0,
        kinds: tuple[str, ...] = ("lost before", "lost after"),
    ) -> None:
        self.now = _START
        self.store = self.make_store()
        self.state = State()
        self.actors = actors
        self.choose = choose
        self.faults = faults
        self.kinds = kinds
        self.number = 0
        self.erasures = 0
        self.log: list[str] = []
        self.bridge: Any = SimpleNamespace(
            resendable=faults > 0, store=self.store, load_timeout=4.0, commit_timeout=6.0, counters=None
        )
        self._begin(*start)

    def _begin(self, values: dict[str, Any], ttls: dict[str, float]) -> None:
        if not values:
            return
        puts = {
            key: Put(value, ttl=ttls.get(key)) if type(value) in codec.IMMUTABLE else Put(UNSHARED, codec.pack(value))
            for key, value in values.items()
        }
        change = Change(SESSION, None, puts, (), dict.fromkeys(puts))
        assert isinstance(self.store.commit(Commit(b"", b"start", (change,))), Committed)
        deadlines = {key: self.now + ttl for key, ttl in ttls.items()}
        self.state = State(values, deadlines, dict.fromkeys(values, -1), -1)

    def make_store(self) -> MemoryStore:
        return KnowsTokens(clock=lambda: self.now)

    def run(self) -> World:
        """Take steps until nobody can."""
        while ready := [actor for actor in self.actors if actor.is_ready()]:
            actor = ready[self.choose(len(ready))]
            self.log.append(actor.name)
            actor.step(self)
            for other in self.actors:
                # Not by one that waits itself, or two would go on for ever.
                if other is not actor and not actor.paused:
                    other.paused = False
            self.compare()
        assert all(actor.done for actor in self.actors)
        return self

    def fault(self) -> str:
        """What happens to a commit on its way; "" for nothing."""
        if not self.faults:
            return ""
        choice = self.choose(len(self.kinds) + 1)
        if not choice:
            return ""
        self.faults -= 1
        self.log.append(self.kinds[choice - 1])
        return self.kinds[choice - 1]

    def commit(self, call: Any, message: Commit, unheard: bool = False) -> Any:
        """Have the store carry a commit out, and the model."""
        self.number += 1
        there = self.state.live(self.now)
        answer = self.store.commit(message)
        if call.landed:
            # It has been carried out before.
            assert isinstance(answer, Committed)
            return answer
        plan = call.plan or call.planned(call.base, self.now)
        is_refused = is_erased(call.base, there, self.now)
        if isinstance(answer, Committed):
            assert not is_refused, "it was written over an erasure"
            assert plan.fits(there, self.now), "it was written over what had moved"
            self.state = plan.applied(call.ours, there, self.now, self.number)
            call.landed = True
            call.number = self.number
            call.expected = "landed"
        elif not unheard:
            call.plan = plan = call.planned(there, self.now)
            call.expected = "erased" if is_refused else f"conflict {sorted(plan.clashes)}" if plan.clashes else "landed"
        return answer

    def judge(self, call: Any) -> None:
        """Whether a call has come to what the model says."""
        assert call.outcome in (call.expected, call.also), f"{call.name}: {call.outcome}, not {call.expected}"

    def compare(self) -> None:
        """Whether the store holds what the model holds."""
        snapshot = self.store.load(Load((SESSION,))).snapshots[0]
        state = self.state.live(self.now)
        held = {key: snapshot.value(key) for key in snapshot.values}
        assert list(held.items()) == list(state.values.items()), f"{held}, not {state.values}"
        deadlines = {key: at for key in held if (at := snapshot.deadline(key)) is not None}
        assert deadlines == state.deadlines, f"{deadlines}, not {state.deadlines}"
