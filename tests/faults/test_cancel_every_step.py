from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import uuid

import anyio
import pytest
from faults import cancelling
from faults.cancelling import SCENARIOS, WAYS, Place, run_on

from agent_gantry_state import MissingIdentityError, StateError, bridge, turns, unit_of_work
from agent_gantry_state.stores.pool import AsyncPool
from agent_gantry_state.stores.redis import RedisStore

NETWORK = ("redis", "postgresql", "memcached")
#: Kinds of stores, each by one of them: in place, in a thread, on a loop of its own, on this machine, over a network.
KINDS = ("memory", "coroutines", "sqlite", *NETWORK)
WHEN = ("early", "late")
FEW = ("several", "exclusive", "merged")


@pytest.fixture
def make_place(tmp_path):
    with contextlib.ExitStack() as stack:
        yield lambda name: Place(name, tmp_path, stack)


def end_everywhere(place, scenario, way="cancel", backend="asyncio", cold=False):
    for when in WHEN:
        done = run_on(backend, scenario, way, when, place.hurried, place.gantry(), cold)
        assert done.ended, "nothing was ended, so that nothing was tried"


def combinations(*axes):
    """What there is to try, without what a store or a way cannot do."""
    return [each for each in itertools.product(*axes) if cancelling.applies(*each)]


@pytest.mark.parametrize(("name", "scenario"), combinations(("coroutines", "redis", "memcached"), SCENARIOS))
def test_call_that_is_cancelled_at_any_step_is_whole_or_nothing(make_place, name, scenario):
    end_everywhere(make_place(name), scenario)


@pytest.mark.parametrize(("name", "scenario"), combinations(("memory", "blocking", "file", "sqlite", "postgresql"), FEW))
def test_call_that_is_cancelled_at_any_step_of_any_other_store_is_whole_or_nothing(make_place, name, scenario):
    end_everywhere(make_place(name), scenario)


@pytest.mark.parametrize(
    ("name", "scenario", "way"),
    [*combinations(("redis", "coroutines"), ("exclusive",), WAYS), ("memcached", "merged", "close")],
)
def test_call_that_is_ended_in_any_way_is_whole_or_nothing(make_place, name, scenario, way):
    end_everywhere(make_place(name), scenario, way)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *itertools.product(("redis", "memcached"), WAYS),
        *itertools.product(("postgresql",), ("cancel", "close", "end of loop")),
    ],
)
def test_call_that_is_ended_while_it_connects_leaves_a_pool_that_works(make_place, name, way):
    end_everywhere(make_place(name), "one", way, cold=True)


@pytest.mark.parametrize(("name", "scenario"), combinations(KINDS, ("several", "exclusive")))
def test_call_that_is_cancelled_at_any_step_on_trio_is_whole_or_nothing(make_place, name, scenario):
    end_everywhere(make_place(name), scenario, backend="trio")


class Stop(BaseException):
    """As a KeyboardInterrupt, which pytest would take for its own."""


@pytest.mark.anyio
@pytest.mark.parametrize("name", KINDS)
async def test_interrupt_in_a_body_is_raised_and_changes_nothing(make_place, name):
    place, who = make_place(name), uuid.uuid4().hex
    gantry, stranger = place.gantry(), place.gantry()

    @gantry.with_memory(exclusive=True)
    async def stopped(memory):
        memory["a"] = 1
        raise Stop

    @gantry.with_memory(exclusive=True)
    def stopped_sync(memory):
        memory["a"] = 1
        raise Stop

    @gantry.with_memory(exclusive=True)
    async def after(memory):
        return dict(memory)

    with gantry.session(who, user=who):
        with pytest.raises(Stop):
            await stopped()
        with anyio.fail_after(5):
            assert await after() == {}
        with pytest.raises(Stop):
            stopped_sync()
        with anyio.fail_after(5):
            assert await after() == {}
    assert cancelling.content(stranger, who) == {"session": {}, "user": {}}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", ["coroutines", "sqlite", *NETWORK])
def test_fifty_callers_of_whom_some_are_cancelled_see_only_what_is_theirs(make_place, name, backend):
    place = make_place(name)
    gantry, stranger = place.hurried("?max_connections=3"), place.gantry()
    chance = random.Random(f"{name} {backend}")
    landed, cut = ({f"{backend}-{n}": set() for n in range(50)} for _ in range(2))

    @gantry.with_memory
    async def stamp(who, turn, memory):
        assert memory.setdefault("who", who) == who
        await anyio.lowlevel.checkpoint()
        memory.setdefault("turns", []).append(turn)

    async def caller(who):
        for turn in range(4):
            with gantry.session(who, user=who), anyio.CancelScope() as scope:
                if chance.random() < 0.4:
                    scope.deadline = anyio.current_time() + chance.random() * 0.02
                await stamp(who, turn)
            (cut if scope.cancelled_caught else landed)[who].add(turn)

    async def main():
        async with anyio.create_task_group() as group:
            for who in landed:
                group.start_soon(caller, who)

    anyio.run(main, backend=backend)

    assert any(cut.values())
    for who in landed:
        there = cancelling.content(stranger, who)["session"]
        turns_there = there.get("turns", [])
        assert there.get("who", who) == who
        assert landed[who] <= set(turns_there) <= landed[who] | cut[who]
        assert len(turns_there) == len(set(turns_there))


@pytest.mark.parametrize("name", KINDS)
def test_thread_without_an_identity_gets_an_error_and_nobodys_memory(make_place, name):
    gantry = make_place(name).gantry()
    tool = gantry.with_memory(lambda memory: dict(memory))

    async def main():
        who = uuid.uuid4().hex
        with gantry.session(who, user=who):
            async with gantry.memory() as memory:
                memory["mine"] = True
            # run_in_executor passes no context on, as thread pools of other libraries do.
            return await asyncio.get_running_loop().run_in_executor(None, tool)

    with pytest.raises(MissingIdentityError):
        asyncio.run(main())


# That the driver notices.


async def cut_short(start):
    return await start()


async def swallowed(start):
    with contextlib.suppress(asyncio.CancelledError):
        return await _uncut(start)


_uncut = bridge.uncut


_load_whole = RedisStore._load_whole
_last = []


def loads_the_memory_of_the_last_one(self, namespace):
    loaded = yield from _load_whole(self, namespace)
    _last.append(loaded)
    return _last[-2] if len(_last) % 5 == 0 else loaded


async def keeps_what_was_interrupted(self, work, deadline, *also):
    connection = await self._take(deadline)
    result = await work(connection, *also)
    self._give(connection, True)
    return result


def keep_turns(monkeypatch):
    monkeypatch.setattr(turns.Turn, "leave", lambda self: None)
    for module in (turns, unit_of_work):
        monkeypatch.setattr(module, "EXCLUSIVE_SECONDS", 0.2)


def keep_leases(monkeypatch):
    monkeypatch.setattr(turns.Grant, "end", lambda self: iter(()))
    monkeypatch.setattr(turns, "LEASE_SECONDS", 2.0)


BUGS = {
    "commit that is cut": (
        lambda patch: patch.setattr(bridge, "uncut", cut_short),
        ("blocking", "one"),
        "a commit was cut",
    ),
    "cancellation that is swallowed": (
        lambda patch: patch.setattr(bridge, "uncut", swallowed),
        ("redis", "one"),
        "was swallowed",
    ),
    "memory of another one": (
        lambda patch: patch.setattr(RedisStore, "_load_whole", loads_the_memory_of_the_last_one),
        ("redis", "one"),
        "the memory of another one|belongs to another caller|lost what it wrote|half of a call",
    ),
    "connection that is never given back": (
        lambda patch: patch.setattr(AsyncPool, "use", keeps_what_was_interrupted),
        ("redis", "one"),
        "every connection to Redis was in use",
    ),
    "turn that is kept": (keep_turns, ("redis", "exclusive"), "had it to themselves"),
    "lease that is kept": (
        keep_leases,
        ("redis", "exclusive"),
        "took too long",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_driver_finds_a_planted_bug(make_place, monkeypatch, bug):
    plant, (name, scenario), found = BUGS[bug]
    place = make_place(name)
    plant(monkeypatch)
    monkeypatch.setattr(cancelling, "SOON", 1.0)

    with pytest.raises((AssertionError, StateError), match=found):
        end_everywhere(place, scenario)
