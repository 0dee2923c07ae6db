"""What the memory store puts to rest takes few bytes, and nobody can tell: not by what it reads, merges, lists or evicts."""

from __future__ import annotations

import contextvars
import gc
import math
import sys
import types
import warnings

import pytest
from interrupting import moments

from agent_gantry_state import EvictionWarning, Gantry, MemoryConflictError, Namespace
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores import slots
from agent_gantry_state.stores.memory import MemoryStore, Slot
from agent_gantry_state.stores.protocol import Commit, Committed, Forget, List
from agent_gantry_state.testing import A, B, Clock, StoreContract, Talk, put

#: Whatever is to be known of a snapshot, however it is kept.
FIELDS = ("values", "packed", "versions", "head", "born", "owner", "reserved", "plain", "first_expiry", "until")


def session(index):
    return Namespace("session", f"s{index}", "app")


def put_to_rest(store):
    """Everything that was not put to rest yet, as if many others had been used since."""
    with store._lock:
        while store._slots._ready:
            store._slots.rest()


def ready(store):
    """Namespaces in which a call finds a snapshot."""
    return [namespace for namespace, there in store._slots.items() if type(there) is Slot]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock, monkeypatch):
    monkeypatch.setattr(slots, "_READY", 0)
    return MemoryStore(clock=clock)


@pytest.fixture
def talk(store):
    return Talk(bridge_to(store))


class Resting(MemoryStore):
    """Puts everything to rest before it looks at a message."""

    def load(self, message, /):
        put_to_rest(self)
        return super().load(message)

    def commit(self, message, /):
        put_to_rest(self)
        return super().commit(message)


class TestRestingStore(StoreContract):
    @pytest.fixture
    def store(self, monkeypatch):
        monkeypatch.setattr(slots, "_READY", 0)
        return Resting()


# When.


def test_namespaces_that_were_not_used_lately_are_put_to_rest(store, talk, monkeypatch):
    monkeypatch.setattr(slots, "_READY", 10)
    talk.write(session(0), x=0)
    slot = store.slot(session(0))
    for index in range(1, 100):
        talk.write(session(index), x=index)
        talk.load(session(0))

    assert store._slots[session(0)] is slot
    assert len(ready(store)) <= 12
    assert [talk.content(session(index)) for index in range(100)] == [{"x": index} for index in range(100)]
    # They were woken one after the other, and each put another to rest.
    assert len(ready(store)) <= 12


def test_call_finds_what_it_wrote_before_its_session_was_put_to_rest(store):
    gantry = Gantry(store, session="s", user="ada")

    @gantry.with_memory
    def note(text, memory):
        memory.setdefault("log", []).append(text)
        memory["text"] = text
        return memory["log"]

    # The second and third time it knows where its session stands, the third time not any more.
    note("a")
    note("b")
    put_to_rest(store)
    assert ready(store) == []

    assert note("c") == ["a", "b", "c"]
    put_to_rest(store)
    with gantry.memory() as memory:
        assert memory == {"log": ["a", "b", "c"], "text": "c"}


# Nothing is lost.


@pytest.mark.parametrize(
    "writes",
    [
        [{"x": 1, "y": "text", "z": None}],
        [{"x": 1}, {"y": 2.5}, {"z": b"bytes"}],
        [{"x": put([1, {}]), "y": 1}, {"x": put([2])}, {"y": put({})}],
        [{"x": 1, "y": 2}, {"x": 3, "y": 4}],
        [{f"k{index}": index} for index in range(300)],
        # A compartment's.
        [{"\x00tool\x00x": 1, "y": 2}],
    ],
)
@pytest.mark.parametrize("deletes", [(), ("y",), ("x", "y", "z")])
def test_snapshot_comes_back_as_it_was(store, talk, monkeypatch, writes, deletes):
    monkeypatch.setattr(slots, "_MOST_VERSIONS", 1000)
    for values in writes:
        talk.write(A, **values)
    there = [key for key in deletes if key in talk.content(A)]
    if there:
        talk.commit(A, {}, there)
    (before,) = talk.load(A)

    put_to_rest(store)
    assert ready(store) == []
    (after,) = talk.load(A)

    assert after is not before
    assert [getattr(after, name) for name in FIELDS] == [getattr(before, name) for name in FIELDS]
    assert [*after.values] == [*after.versions] == [*before.values]
    assert after.size == math.inf


@pytest.mark.parametrize("user", [None, "ada"])
def test_owner_comes_back(store, user):
    gantry = Gantry(store)
    with gantry.session("s", user=user):
        gantry.with_memory(lambda memory: memory.update(x=1))()
    (namespace,) = store._slots
    before = store.snapshot(namespace).owner

    put_to_rest(store)

    assert store.list(List()).listed[0].owner == before == (user or "")
    assert ready(store) == []
    assert store.snapshot(namespace).owner == before


@pytest.mark.parametrize(
    "special",
    [
        {"x": put(1, ttl=100)},
        {"x": put(1, ttl=100, slides=True)},
        {"x": put(1), "y": put(2, ttl=5)},
    ],
)
def test_what_expires_is_not_put_to_rest(store, talk, clock, special):
    talk.send(talk.change(A, special))

    put_to_rest(store)

    assert ready(store) == [A]
    clock.now += 101
    assert talk.content(A) == ({"x": 1} if "y" in special else {})


def test_what_was_to_expire_and_no_longer_is_can_wait(store, talk, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(slots, "_READY", 100)
        talk.write(A, x=put(1, ttl=5))
        talk.write(A, x=put(1, ttl=None))

    put_to_rest(store)

    # The queue of what expires still has it.
    assert ready(store) == [A]
    assert talk.content(A) == {"x": 1}


def test_so_many_versions_are_not_put_in_a_row_that_somebody_would_have_to_wait(store, talk, monkeypatch):
    monkeypatch.setattr(slots, "_MOST_VERSIONS", 10)
    for namespace, keys in ((A, 10), (B, 11), (session("one commit"), 11)):
        talk.write(namespace, **{f"k{key}": key for key in range(keys)})
    for namespace in (A, B):
        talk.write(namespace, k1="new")

    put_to_rest(store)

    assert ready(store) == [B]


def test_commit_that_came_is_remembered_by_what_it_wrote(store, talk):
    commit = Commit(b"t" * 16, b"version1", (talk.change(A, {"x": put(1)}),))
    assert store.commit(commit) == Committed()
    talk.write(A, x=2)
    put_to_rest(store)

    assert store.commit(commit) == Committed()

    assert talk.content(A) == {"x": 2}


def test_version_of_another_length_comes_back(store, talk):
    for version in (b"1", b"a long version"):
        store.commit(Commit(b"", version, (talk.change(A, {version.decode(): put(1)}),)))
    (before,) = talk.load(A)

    put_to_rest(store)

    assert talk.load(A)[0].versions == before.versions == {"1": b"1", "a long version": b"a long version"}


# Nobody notices.


def test_call_during_which_its_session_is_put_to_rest_merges_and_conflicts_as_ever(store):
    gantry = Gantry(store, session="s")
    gantry.with_memory(lambda memory: memory.update(mine=0, theirs=0, both=0))()
    other = gantry.with_memory(lambda key, memory: memory.update({key: "other"}), name="other")

    @gantry.with_memory(name="long")
    def write(key, meanwhile, memory):
        memory[key] = "ours"
        put_to_rest(store)
        if meanwhile is not None:
            with gantry.independent():
                other(meanwhile)
            put_to_rest(store)

    for _ in range(2):
        # The second time it begins where it knows its session to stand.
        write("mine", None)
        write("mine", "theirs")
        with pytest.raises(MemoryConflictError) as raised:
            write("both", "both")
        assert raised.value.keys == ("both",)
        with gantry.memory() as memory:
            assert memory == {"mine": "ours", "theirs": "other", "both": "other"}
            memory.update(mine=0, theirs=0, both=0)


def test_place_that_was_found_just_before_it_was_given_up_is_asked_for(store, talk):
    talk.write(A, x=1)
    slot = store.slot(A)
    base = slot.snapshot
    put_to_rest(store)

    assert not store.put(slot, base, "x", "lost", None, b"version1", 1e6)
    assert not store.assign(slot, base.head, {"x": "lost"}, {}, b"version1")
    assert not store.assign_all([(slot, base.head, {"x": "lost"}, {}, 1e6)], b"version1")

    assert store.shown(slot).values == {"x": 1}
    assert talk.content(A) == {"x": 1}
    put_to_rest(store)
    store.forget(Forget((A,)))
    assert store.shown(slot).values == {}


def test_listing_wakes_nobody(store, talk):
    for index in range(5):
        talk.write(session(index), x=1)
    put_to_rest(store)

    page = store.list(List(limit=3))

    assert len(page.listed) == 3
    assert ready(store) == []


# The bound.


def test_idle_namespace_goes_before_one_that_was_used(clock, monkeypatch):
    monkeypatch.setattr(slots, "_READY", 1)
    store = MemoryStore(3, clock)
    talk = Talk(bridge_to(store))
    for index in range(3):
        talk.write(session(index), x=1)
        talk.load(session(0))

    with pytest.warns(EvictionWarning):
        talk.write(session(3), x=1)

    assert [*store._slots] == [session(0), session(2), session(3)]
    assert store.evictions == 1


def test_namespace_that_was_used_before_it_was_asked_whether_it_is_idle_has_its_second_chance(clock, monkeypatch):
    monkeypatch.setattr(slots, "_READY", 1)
    store = MemoryStore(2, clock)
    talk = Talk(bridge_to(store))
    talk.write(session(0), x=1)
    talk.load(session(0))
    talk.write(session(1), x=1)

    with pytest.warns(EvictionWarning):
        talk.write(session(2), x=1)

    assert [*store._slots] == [session(0), session(2)]


def test_namespace_that_was_used_before_it_was_put_to_rest_has_its_second_chance_and_no_third(clock, monkeypatch):
    monkeypatch.setattr(slots, "_READY", 0)
    store = MemoryStore(3, clock)
    talk = Talk(bridge_to(store))
    for index in range(3):
        talk.write(session(index), x=1)
        if index != 1:
            talk.load(session(index))
        put_to_rest(store)

    left = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvictionWarning)
        for index in range(3, 6):
            talk.write(session(index), x=1)
            left.append([namespace.id for namespace in store._slots])

    assert left == [["s0", "s2", "s3"], ["s2", "s3", "s4"], ["s2", "s4", "s5"]]
    assert store._slots._spared == {session(2)}


@pytest.mark.parametrize("way", ["woken", "forgotten", "closed"])
def test_second_chance_is_forgotten_with_what_it_was_given_for(clock, monkeypatch, way):
    monkeypatch.setattr(slots, "_READY", 0)
    store = MemoryStore(2, clock)
    talk = Talk(bridge_to(store))
    for index in range(2):
        talk.write(session(index), x=1)
        if index == 0:
            talk.load(session(0))
        put_to_rest(store)
    with pytest.warns(EvictionWarning):
        talk.write(session(2), x=1)
    assert store._slots._spared == {session(0)}

    if way == "woken":
        talk.load(session(0))
    elif way == "forgotten":
        store.forget(Forget((session(0),)))
    else:
        store.close()

    assert not store._slots._spared


def test_reading_keys_of_many_puts_others_to_rest(store, talk, monkeypatch):
    monkeypatch.setattr(slots, "_READY", 10)
    for index in range(100):
        talk.write(session(index), x=index, y=1)

    for index in range(100):
        talk.load(session(index), keys=[("x",)])

    assert len(ready(store)) <= 12


def test_keys_that_one_commit_wrote_share_their_version_when_they_are_woken(store, talk):
    talk.write(A, x=1, y=1, z=1)
    talk.write(A, z=2)
    put_to_rest(store)

    (snapshot,) = talk.load(A)

    assert snapshot.versions["x"] is snapshot.versions["y"]


def test_namespace_that_was_forgotten_and_made_again_has_its_turn_when_it_came_again(clock):
    store = MemoryStore(3, clock)
    talk = Talk(bridge_to(store))
    for index in (0, 0, 1, 2, 0):
        store.forget(Forget((session(index),)))
        talk.write(session(index), x=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvictionWarning)
        for index in (3, 4):
            talk.write(session(index), x=1)
        assert [*store._slots] == [session(0), session(3), session(4)]
        talk.write(session(5), x=1)

    assert [*store._slots] == [session(3), session(4), session(5)]


def test_what_is_forgotten_leaves_nothing_behind(store, talk):
    for index in range(5000):
        talk.write(session(index), x=1)
        store.forget(Forget((session(index),)))

    for each in (store._slots._ready, store._slots._turns, store._slots._dropped):
        assert len(each) < 2500


def test_closed_store_keeps_nothing(store, talk, monkeypatch):
    talk.write(A, x=1)
    put_to_rest(store)
    monkeypatch.setattr(slots, "_READY", 100)
    talk.write(B, x=1)
    assert ready(store) == [B]

    store.close()

    assert (len(store), talk.content(A), talk.content(B)) == (0, {}, {})
    assert not store._slots._ready


# Signals.


@pytest.mark.parametrize("act", ["rest", "wake"])
def test_nothing_is_lost_wherever_a_signal_comes(monkeypatch, act):
    def prepare():
        monkeypatch.setattr(slots, "_READY", 0)
        store = MemoryStore()
        gantry, stranger = Gantry(store, session="s"), Gantry(store, session="s")

        @gantry.with_memory
        def note(text, memory):
            before, memory["text"] = memory.get("text"), text
            return before

        read = stranger.with_memory(lambda memory: dict(memory), name="read")
        for text in ("first", "second", "third"):
            # From the second time on it knows where its session stands.
            note(text)
        if act == "wake":
            put_to_rest(store)

        def look(ended):
            # What a signal has left undone is not made good by the next that is put to rest.
            monkeypatch.setattr(slots, "_READY", 100)
            for before, text in (("third", "fourth"), ("fourth", "fifth")):
                assert note(text) == before
                assert read() == {"text": text}
            monkeypatch.setattr(slots, "_READY", 0)
            put_to_rest(store)
            assert read() == {"text": "fifth"}

        return (lambda: put_to_rest(store)) if act == "rest" else read, look

    moments(prepare)


def test_what_a_signals_handler_writes_meanwhile_is_not_lost():
    """It runs in the thread that holds the lock."""
    lost = []

    class Handled(slots.Slots):
        def __setitem__(self, namespace, there):
            if type(there) is tuple and not lost:
                lost.append(namespace)
                contextvars.Context().run(note, "handler")
            super().__setitem__(namespace, there)

    store = MemoryStore()
    gantry = Gantry(store, session="s")

    @gantry.with_memory
    def note(text, memory):
        memory["text"] = text

    # From the second time on it knows where its session stands.
    for text in ("first", "second", "third"):
        note(text)
    store._slots.__class__ = Handled
    with store._lock, pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "_READY", 0)
        while store._slots._ready:
            store._slots.rest()

    assert [namespace.id for namespace in lost] == ["s"]
    assert gantry.with_memory(lambda memory: memory["text"], name="read")() == "handler"


def test_turns_are_made_anew_at_once_or_not_at_all():
    def prepare():
        store = MemoryStore(5)
        talk = Talk(bridge_to(store))
        for index in range(4):
            talk.write(session(index), x=1)

        def look(ended):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EvictionWarning)
                for index in range(10, 15):
                    talk.write(session(index), x=1)
            assert [namespace.id for namespace in store._slots] == [f"s{index}" for index in range(10, 15)]

        return store._slots._renew_turns, look

    moments(prepare)


# How many bytes.


def bytes_of(kept):
    """What an object takes with all that it leads to, but for code."""
    found, seen = [kept], {id(kept)}
    for each in found:
        # A dict does not tell of its keys if all are str.
        for part in (*gc.get_referents(each), *(each if type(each) is dict else ())):
            if id(part) not in seen and not isinstance(part, (type, types.FunctionType, types.ModuleType)):
                seen.add(id(part))
                found.append(part)
    return sum(map(sys.getsizeof, found))


@pytest.mark.parametrize(("keys", "letters"), [(10, 100), (10, 10), (3, 20)])
@pytest.mark.parametrize("calls", ["one call", "a call for each key"])
def test_idle_session_takes_at_most_one_and_a_half_times_the_bytes_of_a_dict(monkeypatch, keys, letters, calls):
    monkeypatch.setattr(slots, "_READY", 20)
    store, plain, names = MemoryStore(), {}, [f"k{key}" for key in range(keys)]
    gantry = Gantry(store)
    fill = gantry.with_memory(lambda values, memory: memory.update(values))
    for index in range(2000):
        name = f"idle {index}"
        plain[name] = values = {name: f"{name}{index:0{letters - len(name)}}" for name in names}
        with gantry.session(name):
            for part in [values] if calls == "one call" else [{key: value} for key, value in values.items()]:
                fill(part)

    assert bytes_of(store._slots) < 1.5 * bytes_of(plain)
