"""The long forms of these tests, against every version of each server."""

from __future__ import annotations

import contextlib
import itertools
import random
import tempfile
import time
from collections.abc import Callable

import servers
from faults import cancelling
from faults.cancelling import PLACES, SCENARIOS, WAYS, Place, applies, run_on
from faults.faulty import SERVERS, Bytewise, crowd, open_gantry, storm, storm_faults
from faults.proxy import Fault, Proxy
from soak import seeds
from stores import test_killed_writers as killed_writers

_OTHERS = {"redis-6": servers.redis_6, "valkey": servers.valkey, "pgbouncer": servers.pgbouncer}
Report = Callable[[str, int], None]


def cancels(deadline: float, report: Report) -> None:
    """End calls of every kind in every way, at each step."""
    cancelling.SERVERS.update(_OTHERS, **{"redis-cluster": servers.redis_cluster})
    names = (*PLACES, *_OTHERS, "redis-cluster")
    everything = [
        (name, scenario, way, when, cold)
        for name, scenario, way, when in itertools.product(names, SCENARIOS, [*WAYS, "trio"], ["early", "late"])
        for cold in (False, True)
        if applies(name, scenario, way)
    ]
    for seed in seeds(deadline):
        for name, scenario, way, when, cold in random.Random(seed).sample(everything, 20):
            with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
                place = Place(name, directory, stack)
                backend, way = ("trio", "cancel") if way == "trio" else ("asyncio", way)
                done = run_on(backend, scenario, way, when, place.hurried, place.gantry(), cold)
            report("calls ended at a step", done.ended)
            report("of these, committed all the same", done.landed)
            if time.monotonic() > deadline:
                return


def faults(deadline: float, report: Report) -> None:
    """Every kind of fault under callers of all kinds, and commits cut at each byte."""
    everything = {**SERVERS, **_OTHERS}
    for seed in seeds(deadline):
        chance = random.Random(seed)
        name = chance.choice([*everything])
        two, server = name != "memcached", everything[name]()
        with Proxy(server) as proxy, open_gantry(server.url, "") as direct:
            for kind, fault in storm_faults(chance).items():
                with open_gantry(proxy.url) as gantry:
                    for what, count in storm(proxy, gantry, direct, fault(), chance, two).items():
                        report(f"in storms: {what}", count)
                report(f"storms: {kind}", 1)
                if time.monotonic() > deadline:
                    return
            _every_byte(proxy, direct, chance.random() < 0.5, two, deadline, report)


def crowds(deadline: float, report: Report) -> None:
    """Rounds of a thousand calls of a hundred users through one connection, on one server after the other."""
    for make in itertools.cycle([*SERVERS.values(), *_OTHERS.values()]):
        report("calls of a crowd through one connection", crowd(make()))
        report("crowds", 1)
        if time.monotonic() > deadline:
            return


def kills(deadline: float, report: Report) -> None:
    """Kill writers at random moments, on one store after the other."""
    names = itertools.cycle((*killed_writers.STORES, "redis_6", "valkey"))
    for seed, name in zip(seeds(deadline), names, strict=False):
        with tempfile.TemporaryDirectory() as directory:
            killed_writers.kill_writers(name, directory, random.Random(seed), 25)
        report(f"writers killed on {name}", 25)


def _every_byte(proxy: Proxy, direct, is_async: bool, first: bool, deadline: float, report: Report) -> None:
    with open_gantry(proxy.url) as gantry, contextlib.closing(Bytewise(proxy, gantry, direct, is_async, first)) as bytewise:
        bytewise.count()
        for side, how in itertools.product(("request", "reply"), ("fin", "rst")):
            for at in range(bytewise.length[side] + 1):
                error = bytewise.commit(Fault("cut", side, at, how))
                assert error is None, f"{side}, {how}, at {at}: {error!r}"
                report("commits cut at a byte", 1)
                if time.monotonic() > deadline:
                    return
