"""What a call costs in memory does not grow with what it does not use: seen in what is copied and dropped, not in time."""

from __future__ import annotations

import math
import random
import warnings

import pytest

from agent_gantry_state import EvictionWarning, Gantry, Namespace
from agent_gantry_state.admin.memories import stored
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores import memory, slots
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import EMPTY, Change, Commit, Committed, Forget, Load, Moved, Snapshot
from agent_gantry_state.stores.whole import applied, chosen
from agent_gantry_state.testing import A, Clock, Talk, put

MANY = {f"k{i}": i for i in range(100)}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


@pytest.fixture
def talk(store):
    return Talk(bridge_to(store))


def by_key(talk, puts, deletes=(), **rest):
    """The change of a call that has loaded nothing else."""
    keys = (*puts, *deletes)
    (seen,) = talk.load(A, keys=(keys,))
    rest = {"loaded_owner": seen.owner, "born": seen.born, **rest}
    return Change(A, seen.head, puts, deletes, {key: seen.versions.get(key) for key in keys}, **rest)


def session(index):
    return Namespace("session", f"s{index}", "app")


# One key of many.


def test_commit_of_one_key_does_not_copy_the_others(store, talk):
    talk.write(A, **MANY)
    talk.send(by_key(talk, {"k1": put("a")}))
    values = store._slots[A].more.own.values

    talk.send(by_key(talk, {"k2": put("b")}))

    assert store._slots[A].more.own.values is values
    assert talk.content() == {**MANY, "k1": "a", "k2": "b"}


def test_tool_that_names_its_keys_does_not_copy_the_others(store):
    with Gantry(store=store, session="s") as gantry:
        gantry.with_memory(lambda memory: memory.update(MANY))()
        count = gantry.with_memory(keys=("k1",))(lambda memory: memory.update(k1=memory["k1"] + 1))
        count()
        (slot,) = store._slots.values()
        values = slot.more.own.values

        count()

        assert slot.more.own.values is values
        assert store.snapshot(slot.namespace).values == {**MANY, "k1": 3}


def test_load_of_a_few_keys_gives_them_in_their_order_without_looking_at_the_others(store, talk):
    talk.write(A, **MANY)
    talk.load(A, keys=(("k1", "k2"),))
    places = store._slots[A].snapshot.placed

    talk.send(by_key(talk, {"new": put(1)}))
    (some,) = talk.load(A, keys=(("new", "k7", "missing", "k3"),))

    assert store._slots[A].more.own.placed is places
    assert [*some.values] == ["k3", "k7", "new"]


@pytest.fixture
def gathered(monkeypatch):
    """How often somebody has asked a snapshot for the versions of all of its keys."""
    asked, versions = [], Snapshot.versions.fget

    def counted(snapshot):
        asked.append(snapshot)
        return versions(snapshot)

    monkeypatch.setattr(Snapshot, "versions", property(counted))
    return asked


def test_versions_are_gathered_once_for_a_memory_that_is_looked_at(gathered, talk):
    talk.write(A, **MANY)
    (whole,) = talk.load(A)
    del gathered[:]

    there = stored(A, whole, 0.0)

    assert {key.version for key in there.keys} == {whole.head.hex()}
    assert len(gathered) == 1


def test_versions_are_not_gathered_for_each_key_of_a_commit_that_came_second(gathered, store):
    with Gantry(store=store, session="s") as gantry:
        gantry.with_memory(lambda memory: memory.update(MANY))()
        other = gantry.with_memory(keys=("k1",))(lambda memory: memory.add("k1", 1))
        gantry.with_memory(keys=("k2",))(lambda memory: memory.add("k2", 1))()

        @gantry.with_memory
        def count(memory):
            for key in MANY:
                memory.add(key, 1)
            with gantry.independent():
                other()

        del gathered[:]
        count()

        with gantry.memory() as after:
            assert after == {**{key: value + 1 for key, value in MANY.items()}, "k1": 3, "k2": 4}
    assert len(gathered) < 10


def test_versions_are_not_gathered_for_each_key_that_a_body_wrote_before_a_private_call(gathered, store):
    with Gantry(store=store, session="s") as gantry:
        gantry.with_memory(lambda memory: memory.update(MANY))()
        private = gantry.with_memory(private=True, name="private")(lambda memory: memory.update(x=1))

        @gantry.with_memory
        def count(memory):
            for key in MANY:
                memory[key] += 1
            private()
            for key in MANY:
                memory[key] += 1

        del gathered[:]
        count()

        with gantry.memory() as after:
            assert after == {key: value + 2 for key, value in MANY.items()}
    assert len(gathered) < 20


def test_key_that_was_deleted_and_made_again_comes_last(talk):
    talk.write(A, **MANY)
    talk.load(A, keys=(("k1", "k2"),))

    talk.send(by_key(talk, {}, ["k1"]))
    talk.send(by_key(talk, {"k1": put("again")}))
    (some,) = talk.load(A, keys=(("k1", "k2", "k99"),))

    assert [*some.values] == ["k2", "k99", "k1"]


@pytest.mark.parametrize("change", [{"puts": {"k1": put("new"), "more": put([1])}}, {"puts": {}, "deletes": ["k1"]}])
def test_what_was_loaded_whole_never_changes(talk, change):
    talk.write(A, **MANY, log=put([0]))
    talk.send(by_key(talk, {"k0": put("first")}))
    (whole,) = talk.load(A)
    before = dict(whole.values), dict(whole.packed), dict(whole.versions)

    talk.send(by_key(talk, **change))
    talk.send(by_key(talk, {"k3": put("x", ttl=5), "log": put([1])}))

    assert (whole.values, whole.packed, whole.versions) == before
    assert (whole.expires_at, whole.slides) == ({}, {})


def test_names_that_were_loaded_never_change(talk):
    talk.write(A, **MANY)
    talk.send(by_key(talk, {"k0": put("first")}))
    (names,) = talk.load(A, keys=((),), names=True)

    talk.send(by_key(talk, {"more": put(1)}))

    assert [*names.versions] == [*MANY]


def test_commit_that_is_interrupted_between_two_keys_changes_nothing(store, talk, clock):
    talk.write(A, **MANY, log=put([0]))
    talk.send(by_key(talk, {"k0": put("first")}))
    change = by_key(talk, {"k1": put("a"), "log": put("b"), "new": put(1), "k2": put("c", ttl=5)}, ["k3"])

    def interrupted():
        raise KeyboardInterrupt

    before = talk.load(A, keys=((*MANY, "log", "new"),))[0]
    store.clock = interrupted
    with pytest.raises(KeyboardInterrupt):
        store.commit(talk.message(change))
    store.clock = clock

    after = talk.load(A, keys=((*MANY, "log", "new"),))[0]
    assert sorted(after.values.items(), key=repr) == sorted(before.values.items(), key=repr)
    assert (after.packed, after.versions, after.head) == (before.packed, before.versions, before.head)
    assert (after.expires_at, after.slides) == (before.expires_at, before.slides)


def test_snapshot_is_no_other_when_one_was_made_from_it():
    before = Snapshot({"a": 1, "b": 2, "c": 3}, {}, dict.fromkeys("abc", b"1"), b"1")
    places = dict(before.places())
    without = applied(Change(A, b"1", {}, ["a"], {}), before, b"2", float)
    applied(
        Change(A, b"2", {"a": put([]), "d": put(1, ttl=1), "e": put(1, ttl=1, slides=True)}, (), {}), without, b"3", float
    )
    applied(Change(A, b"1", {"d": put([]), "e": put(1, ttl=1)}, (), {}), before, b"3", float)

    for each, keys in ((before, ["a", "b", "c"]), (without, ["b", "c"]), (EMPTY, [])):
        assert [*each.values] == [*each.versions] == keys
        assert (each.packed, each.expires_at, each.slides) == ({}, {}, {})
    assert [before.places()[key] for key in "abc"] == [places[key] for key in "abc"]


def test_stale_commit_of_one_key_is_refused_with_that_key_only(talk):
    talk.write(A, **MANY)
    talk.send(by_key(talk, {"k0": put("first")}))
    stale = by_key(talk, {"k1": put("mine")})
    talk.send(by_key(talk, {"k1": put("theirs")}))

    answer = talk.send(stale)

    assert isinstance(answer, Moved)
    assert answer.snapshots[0].values == {"k1": "theirs"}


def test_calls_by_key_and_whole_calls_see_the_same(clock):
    """A long run against a store whose namespaces are copied by each commit."""
    ways = random.Random(8)
    talk, plain = (Talk(bridge_to(MemoryStore(clock=clock))) for _ in range(2))
    for each in (talk, plain):
        each.write(A, **MANY)
    for turn in range(600):
        keys = ways.sample([*MANY, "a", "b", "c"], 3)
        ttl = ways.choice([None, None, 30.0])
        puts = {key: put(ways.choice([turn, [turn]]), ttl=ttl) for key in keys[:2]}
        change = by_key(talk, puts, keys[2:], touch=ways.random() < 0.1)
        version = turn.to_bytes(8, "little")
        for each in (talk, plain):
            # Whole, so that the other one has nothing to go by key for.
            (seen,) = plain.load(A) if each is plain else (None,)
            if seen is not None:
                change = plain.change(A, puts, keys[2:], touch=change.touch)
            assert each.ask(Commit(b"", version, (change,))) == Committed()
        clock.now += ways.choice([0, 0, 7])
        wanted = tuple(ways.sample([*MANY, "a", "b", "c"], 9))
        some, same = talk.load(A, keys=(wanted,))[0], chosen(plain.load(A)[0], wanted, False)
        for name in ("values", "packed", "versions", "expires_at", "head"):
            assert getattr(some, name) == getattr(same, name)
        assert [*some.values] == [key for key in plain.content() if key in wanted]
        if ways.random() < 0.1:
            assert [*talk.content().items()] == [*plain.content().items()]


# What expires.


def test_what_expired_goes_some_at_a_time(store, talk, clock):
    for index in range(1000):
        talk.write(session(index), x=put(1, ttl=10))
    clock.now += 10

    talk.write(session("new"), x=1)

    assert 900 < len([*store._slots]) < 1001
    assert len(store) == 1


def test_what_expired_is_gone_when_as_much_is_new(store, talk, clock):
    for index in range(100):
        talk.write(session(index), x=put(1, ttl=10))
    clock.now += 10

    for index in range(100):
        talk.write(session(f"new {index}"), x=1)

    assert [*store._slots] == [session(f"new {index}") for index in range(100)]


@pytest.mark.parametrize("bound", [2, 20])
def test_live_namespaces_are_kept_while_others_expire_behind_many_that_were_used(clock, bound):
    store = MemoryStore(bound, clock)
    talk = Talk(bridge_to(store))
    for index in range(bound - 1):
        talk.commit(session(index), {"x": put(1, ttl=10, slides=True)}, touch=True)
    talk.write(session("over"), x=put(1, ttl=12))
    clock.now += 5
    for index in range(bound - 1):
        talk.send(talk.change(session(index), touch=True))
    clock.now += 7

    with warnings.catch_warnings():
        warnings.simplefilter("error", EvictionWarning)
        talk.write(session("new"), x=1)

    assert store.evictions == 0
    assert all(talk.content(session(index)) for index in range(bound - 1))


def test_uses_of_what_slides_leave_nothing_behind(store, talk, clock):
    for turn in range(5000):
        talk.send(talk.change(A, {"x": put(turn, ttl=100, slides=True)}, touch=True))
        clock.now += 1

    assert len(store._slots._queue) == 1
    assert talk.content() == {"x": 4999}


def test_what_was_used_before_its_time_goes_when_that_is_over(store, talk, clock):
    talk.commit(A, {"x": put(1, ttl=10, slides=True)}, touch=True)
    clock.now += 8
    talk.send(talk.change(A, touch=True))
    clock.now += 8
    talk.write(session(1), x=1)
    assert talk.content()
    clock.now += 8

    talk.write(session(2), x=1)

    assert [*store._slots] == [session(1), session(2)]


def test_forgotten_namespaces_leave_nothing_behind_however_long_they_had(store, talk):
    for index in range(5000):
        talk.write(session(index), x=put(1, ttl=1e9))
        store.forget(Forget((session(index),)))

    assert len(store._slots._queue) < 2500


def test_namespaces_that_come_and_go_do_not_add_up_while_they_wait_for_their_turn(clock):
    store = MemoryStore(10_000, clock)
    talk = Talk(bridge_to(store))
    for index in range(5000):
        talk.write(session(index), x=1)
        store.forget(Forget((session(index),)))

    assert len(store._slots._turns) < 2500


def test_slot_whose_turn_was_lost_is_evicted_all_the_same(clock):
    store = MemoryStore(2, clock)
    talk = Talk(bridge_to(store))
    talk.write(session(0), x=1)
    talk.write(session(1), x=1)
    store._slots._turns.clear()

    with pytest.warns(EvictionWarning):
        talk.write(session(2), x=1)

    assert [*store._slots] == [session(1), session(2)]


# What a million namespaces share.


def test_no_commit_changes_what_all_snapshots_share(talk, clock):
    writes = [{"k1": put("a", ttl=5)}, {"log": put([1])}, {"k2": put("b", ttl=7, slides=True)}, {"new": put(1)}]
    for namespace, content in ((A, MANY), (session(1), {"k1": 1}), (session(2), {})):
        talk.write(namespace, **content)
        for puts in writes:
            (seen,) = talk.load(namespace, keys=((*puts,),))
            checks = {key: seen.versions.get(key) for key in puts}
            rest = {"loaded_owner": seen.owner, "born": seen.born}
            assert type(talk.send(Change(namespace, seen.head, puts, (), checks, touch=True, **rest))) is Committed
            clock.now += 1
        talk.load(namespace)

    fresh = Snapshot({"x": 1}, {}, {"x": b"1"}, b"1")
    assert (fresh.expires_at, fresh.slides, fresh.touched, memory._NONE) == ({}, {}, 0.0, {})
    assert (EMPTY.values, EMPTY.packed, EMPTY.versions, slots._NO_MORE) == ({}, {}, {}, slots.More())


def test_keys_of_the_first_commit_have_its_version_until_they_are_written_again(talk):
    talk.write(A, x=1, y=2)
    (first,) = talk.load(A)

    talk.write(A, y=3, z=4)

    (second,) = talk.load(A)
    assert first.versions == dict.fromkeys("xy", first.head)
    assert second.versions == {"x": first.head, "y": second.head, "z": second.head}
    assert [second.version(key) for key in ("x", "z", "missing")] == [first.head, second.head, None]
    (part,) = talk.load(A, keys=(("x", "missing"),))
    assert part.versions == {"x": first.head}


def test_namespace_that_is_to_go_sooner_goes_sooner(store, talk, clock):
    talk.write(A, x=put(1, ttl=1000))
    talk.write(A, x=put(1, ttl=10))
    clock.now += 11

    talk.write(session(1), x=1)

    assert [*store._slots] == [session(1)]


def test_keys_that_are_over_are_left_out_once_and_not_by_each_load(store, talk, clock):
    talk.write(A, **{key: put(value, ttl=10 + value) for key, value in MANY.items()})
    clock.now += 50.5

    first, second = talk.load(A)[0], talk.load(A)[0]

    assert second is first
    assert [*first.values] == [f"k{i}" for i in range(41, 100)]
    clock.now += 1
    assert [*talk.load(A)[0].values] == [f"k{i}" for i in range(42, 100)]
    clock.now += math.inf
    assert talk.content() == {}


def test_load_asks_for_what_it_is_told(talk):
    talk.write(A, **MANY)

    loaded = talk.ask(Load((A, session(1)), (("k1",), None)))

    assert [dict(snapshot.values) for snapshot in loaded.snapshots] == [{"k1": 1}, {}]
