"""What the calls of `interleave` do, and what they find."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from isolation.inside import Inner, Outer
from isolation.interleave import Actor, Call, Chooser, World, explore, is_forgotten, passes
from isolation.model import Body

BODIES: dict[str, Body] = {
    "nothing": (),
    "append": (("append", "log", 1),),
    "append two": (("append", "log", 2), ("append", "log", 3)),
    "add": (("add", "n", 3),),
    "double": (("double", "n"),),
    "nest": (("nest", "d", "q", 1),),
    "nest over": (("nest", "d", "p", 2),),
    "include": (("include", "s", 2),),
    "exclude": (("exclude", "s", 1),),
    "put": (("put", "x", 9),),
    "put another": (("put", "x", 8),),
    "delete": (("delete", "x"),),
    "delete the list": (("delete", "log"),),
    "make again": (("delete", "x"), ("put", "x", 1)),
    "expire": (("expire", "x", 5.0),),
    "lend": (("lend", "t", 4, 5.0),),
    "put what expires": (("put", "t", 5),),
    "delete what expires": (("delete", "t"),),
    "add to what expires": (("add", "t", 1),),
    "much": (("append", "log", 7), ("add", "n", 1), ("nest", "d", "z", 0), ("put", "y", 1)),
}
#: Of calls inside others, whose memories have no deadlines here.
INSIDE = ("nothing", "append", "add", "double", "nest", "put", "delete", "much")
START: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "nothing": ({}, {}),
    "much": ({"log": [0], "n": 5, "d": {"p": 1}, "x": 1, "s": {1}, "t": 7}, {"t": 10.0}),
    "what expires": ({"t": 7}, {"t": 10.0}),
}
EVENTS: dict[str, Callable[[], Actor]] = {"time": lambda: passes(11.0), "erasure": is_forgotten}


def body(name: str, who: int) -> Body:
    """A body in which each call has elements of its own."""
    return tuple((*step[:2], step[2] + 10 * who) if step[0] == "append" else step for step in BODIES[name])


def calls(names: Iterable[str]) -> list[Actor]:
    return [Call(f"{name} ({who})", body(name, who)) for who, name in enumerate(names)]


def nested(outer: str, end: str | None, inner: Iterable[str], strangers: Iterable[str]) -> list[Actor]:
    """A call, others inside it, and strangers; *end* None: the one around fails."""
    around = Outer(f"around: {outer}", body(outer, 9), None if end is None else body(end, 8))
    within = [Inner(f"inside: {name} ({who})", around, body(name, who)) for who, name in enumerate(inner)]
    return [around, *within, *(Call(f"{name} ({who})", body(name, who + 5)) for who, name in enumerate(strangers))]


def all_orders(
    start: str, make: Callable[[], list[Actor]], faults: int = 0, kinds: tuple[str, ...] = ("lost after",)
) -> int:
    """Make every run of some actors; how many there were."""

    def run(choose: Chooser) -> None:
        _run(World(START[start], make(), choose, faults, kinds))

    return explore(run)


def random_order(rng: random.Random) -> None:
    """One order of more calls than all orders could be made of."""
    start = rng.choice([*START])
    if rng.random() < 0.5:
        outer, end = rng.choice(INSIDE), rng.choice([*INSIDE, None])
        start = "nothing" if start == "what expires" else start
        actors = nested(outer, end, rng.choices(INSIDE, k=rng.randint(1, 3)), rng.choices(INSIDE, k=rng.randint(0, 2)))
        faults = 0
    else:
        actors = calls(rng.choices([*BODIES], k=rng.randint(2, 6)))
        actors += [EVENTS[name]() for name in rng.choices([*EVENTS], k=rng.randint(0, 2))]
        faults = rng.randint(0, 3)
    _run(World(START[start], actors, Chooser(rng=rng), faults, ("lost before", "lost after")))


def _run(world: World) -> None:
    try:
        world.run()
    except AssertionError as error:
        raise AssertionError(f"{error}; in this order: {world.log}") from error
