"""The memory store answers every message by the rules for all stores, and keeps to its bound."""

from __future__ import annotations

import asyncio
import signal
import threading
import warnings

import pytest

from agent_gantry_state import EvictionWarning, Gantry, MemoryTooLargeError, Namespace, Scope, StoreURLError
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.injection import short
from agent_gantry_state.nesting import CURRENT
from agent_gantry_state.stores import memory
from agent_gantry_state.stores.memory import MemoryStore, Slot
from agent_gantry_state.stores.protocol import Committed, Lease, List, Load
from agent_gantry_state.stores.whole import applied
from agent_gantry_state.testing import A, B, Clock, StoreContract, Talk, put


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self):
        return MemoryStore()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def write(store, namespace=A, **values):
    Talk(bridge_to(store)).write(namespace, **values)


def load(store, *namespaces):
    return Talk(bridge_to(store)).load(*namespaces)


def content(store, namespace=A):
    return Talk(bridge_to(store)).content(namespace)


# The bound.


def session(index):
    return Namespace("session", f"s{index}", "app")


def test_full_store_keeps_what_came_last(clock):
    store = MemoryStore(3, clock)
    for index in range(3):
        write(store, session(index), x=1)

    with pytest.warns(EvictionWarning):
        write(store, session(3), x=1)

    assert len(store) == 3
    assert content(store, session(3)) == {"x": 1}


def test_used_slot_gets_a_second_chance(clock):
    store = MemoryStore(4, clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvictionWarning)
        for index in range(5):
            write(store, session(index), x=1)
        for index in range(5, 25):
            load(store, session(1))
            write(store, session(index), x=1)

    assert content(store, session(1)) == {"x": 1}
    assert content(store, session(2)) == {}
    assert len(store) == 4


def test_eviction_of_live_state_warns_and_counts(clock):
    store = MemoryStore(2, clock)
    write(store, session(0), secret="s3cr3t")
    write(store, session(1), x=1)
    assert store.evictions == 0

    with pytest.warns(EvictionWarning, match="session") as caught:
        write(store, session(2), x=1)

    assert store.evictions == 1
    assert len(store) == 2
    assert all(text not in str(caught[0].message) for text in ("s0", "s3cr3t", "secret"))


def test_commit_has_landed_though_its_eviction_warning_is_an_error(clock):
    store = MemoryStore(1, clock)
    write(store, session(0), x=1)

    with warnings.catch_warnings():
        warnings.simplefilter("error", EvictionWarning)
        write(store, session(1), x=1)

    assert content(store, session(1)) == {"x": 1}
    assert store.evictions == 1


@pytest.mark.parametrize("bound", [2, 100])
@pytest.mark.parametrize("seconds", [100.0, 110.0, 124.9, 125.0, 1_000.0])
def test_expired_namespaces_are_dropped_before_live_ones_and_silently(clock, seconds, bound):
    store = MemoryStore(bound, clock)
    for index in range(bound - 1):
        write(store, session(index), x=1)
    write(store, session("expired"), x=put(1, ttl=100.0))
    clock.now += seconds

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(store, session("new"), x=1)

    assert store.evictions == 0
    assert content(store, session(0)) == {"x": 1}
    assert content(store, session("new")) == {"x": 1}


def test_bound_holds_while_namespaces_expire_and_come_back(clock):
    store = MemoryStore(10, clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvictionWarning)
        for index in range(200):
            write(store, session(index % 37), x=put(index, ttl=5.0 if index % 2 else None))
            clock.now += 1
            assert len(store) <= 10


@pytest.mark.parametrize("ttl", [None, 20])
def test_namespace_whose_first_key_expires_stays_for_the_keys_that_came_later(clock, ttl):
    store = MemoryStore(clock=clock)
    talk = Talk(bridge_to(store))
    talk.send(talk.change(A, {"code": put(1, ttl=5)}))
    talk.send(talk.change(A, {"name": put(2, ttl=ttl)}))

    clock.now += 6
    # Whatever is written has the store drop what is over.
    write(store, session(1), x=1)

    assert content(store) == {"name": 2}
    assert len(store) == 2


def test_namespace_that_was_to_expire_and_no_longer_is_stays(clock):
    store = MemoryStore(clock=clock)
    talk = Talk(bridge_to(store))
    talk.send(talk.change(A, {"code": put(1, ttl=5)}))
    talk.send(talk.change(A, {"code": put(1, ttl=None)}))

    clock.now += 6
    write(store, session(1), x=1)

    assert content(store) == {"code": 1}


def test_bound_must_be_positive():
    with pytest.raises(ValueError, match="max_namespaces"):
        MemoryStore(0)


def test_closed_store_is_empty(store):
    write(store, A, x=1)
    store.lease(Lease(A, b"me", 30.0))

    store.close()

    assert content(store) == {}
    assert store.lease(Lease(A, b"you", 30.0)) == 0.0


# Through a gantry.


def test_bound_in_the_url_holds_for_a_gantry():
    with Gantry("memory://?max_namespaces=2") as gantry:

        @gantry.with_memory
        def remember(memory):
            memory["x"] = 1

        for index in range(2):
            with gantry.session(f"s{index}"):
                remember()
        with gantry.session("s2"), pytest.warns(EvictionWarning):
            remember()

        left = 0
        for index in range(3):
            with gantry.memory(session=f"s{index}") as memory:
                left += len(memory)
        assert left == 2


@pytest.mark.parametrize(
    "url", ["memory://?max_namespaces=0", "memory://?max_namespaces=x", "memory://?max=1", "memory://host"]
)
def test_url_that_cannot_be_meant_is_refused(url):
    with pytest.raises(StoreURLError):
        Gantry(url)


def test_scope_with_a_ttl_expires_through_a_gantry(clock):
    with Gantry(scopes={"session": Scope(ttl=60)}) as gantry:

        @gantry.with_memory
        def count(memory):
            return memory.add("n", 1)

        with gantry.override(session="s1", clock=clock):
            assert (count(), count()) == (1, 2)
            clock.now += 60
            assert count() == 1


def test_namespace_in_use_is_not_dropped_for_new_ones_even_in_a_small_store():
    store = MemoryStore(max_namespaces=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvictionWarning)
        write(store, A, hot=1)
        for number in range(40):
            assert content(store)
            write(store, Namespace("session", str(number), "app"), x=1)

    assert content(store)


def test_listing_is_no_use(store):
    write(store, A, x=1)
    slot = store._slots[A]
    slot.used = False

    store.list(List())

    assert not slot.used


class Interruption(BaseException):
    """What a signal raises, wherever the program is."""


class Interrupted(Slot):
    """A slot in which a signal comes just before it is written."""

    __slots__ = ("_there",)

    @property
    def snapshot(self):
        return self._there

    @snapshot.setter
    def snapshot(self, snapshot):
        if hasattr(self, "_there"):
            raise Interruption
        self._there = snapshot


def test_values_that_are_assigned_to_several_namespaces_are_written_to_all_or_to_none():
    store = MemoryStore()
    talk = Talk(bridge_to(store))
    for namespace in (A, B):
        talk.write(namespace, n=1)
    one, other = store.slot(A), store.slot(B)
    written = [(slot, slot.snapshot.head, {"n": 2}, {}, 1000_000.0) for slot in (one, other)]
    broken = Interrupted(B, other.snapshot, store.home)

    with pytest.raises(Interruption):
        store.assign_all([written[0], (broken, *written[1][1:])], b"version1")
    assert (talk.content(A), talk.content(B)) == ({"n": 1}, {"n": 1})

    assert not store.assign_all([written[0], (other, b"another", *written[1][2:])], b"version2")
    assert (talk.content(A), talk.content(B)) == ({"n": 1}, {"n": 1})

    assert store.assign_all(written, b"version3")
    assert (talk.content(A), talk.content(B)) == ({"n": 2}, {"n": 2})


@pytest.mark.parametrize("there", ["absent", "present", "loaded by key"])
def test_commit_to_several_namespaces_that_is_interrupted_changes_none(there):
    """The clock stands for a signal: it is asked before the first namespace was written, and after."""
    old = {} if there == "absent" else {f"k{i}": i for i in range(100)}
    new, asked, at = {"k5": "new", "k7": [1], "added": 1}, 0, None

    def clock():
        nonlocal asked
        asked += 1
        if asked == at:
            raise Interruption
        return 1000.0

    outcomes = []
    for moment in range(1, 12):
        store = MemoryStore(clock=clock)
        talk = Talk(bridge_to(store))
        for namespace in (A, B):
            if old:
                talk.write(namespace, **old)
        puts = {key: put(value, ttl=5.0) for key, value in new.items()}
        message = talk.message(talk.change(A, puts), talk.change(B, puts))
        others = [talk.message(talk.change(namespace, {"k9": put(9)})) for namespace in (A, B)]
        if there == "loaded by key":
            # From here on commits change what is there in place.
            store.load(Load((A, B), (("k5",), ("k5",))))
            assert [store.commit(other) for other in others] == [Committed(), Committed()]
        asked, at = 0, moment
        try:
            store.commit(message)
        except Interruption:
            outcomes.append(False)
        else:
            outcomes.append(True)
        at = None
        assert [list(talk.content(each).items()) for each in (A, B)] == [
            list(({**old, **new} if outcomes[-1] else old).items())
        ] * 2

    assert outcomes[0] is False
    assert outcomes[-1] is True


def test_keys_of_what_is_evicted_by_its_own_commit_keep_their_versions(clock):
    store = MemoryStore(1, clock)
    talk = Talk(bridge_to(store))
    talk.write(A, x=1, y=2)
    (before,) = talk.load(A)
    changes = talk.change(B, {"x": put(1)}), talk.change(A, {"x": put(3)})

    with pytest.warns(EvictionWarning):
        talk.send(*changes)

    (after,) = talk.load(A)
    assert after.versions == {"x": after.head, "y": before.head}


def test_what_was_evicted_by_a_commit_that_is_interrupted_is_in_no_store_any_more(clock, monkeypatch):
    store = MemoryStore(1, clock)
    talk = Talk(bridge_to(store))
    talk.write(A, x=put(1, ttl=5))
    changes = [talk.change(namespace, {"x": put(2, ttl=50)}) for namespace in (A, B, session(1))]

    def interrupted(change, *rest):
        if change is changes[2]:
            raise Interruption
        return applied(change, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "applied", interrupted)
        with pytest.raises(Interruption):
            talk.send(*changes)

    assert [talk.content(namespace) for namespace in (A, B, session(1))] == [{}, {}, {}]
    for index in (2, 3):
        with pytest.warns(EvictionWarning):
            in_a_thread(lambda index=index: talk.write(session(index), x=1))
    assert [*store._slots] == [session(3)]


@pytest.mark.parametrize("is_async", [False, True])
def test_signal_as_soon_as_a_call_has_begun_leaves_no_call_around_the_next(store, monkeypatch, is_async):
    class Context:
        get, reset = CURRENT.get, CURRENT.reset

        @staticmethod
        def set(around):
            token = CURRENT.set(around)
            if signalled and around is not None:
                raise signalled.pop()
            return token

    signalled = []
    monkeypatch.setattr(short, "CURRENT", Context)
    gantry = Gantry(store, session="s")

    @gantry.with_memory
    def note(text, memory):
        memory["text"] = text

    @gantry.with_memory
    async def anote(text, memory):
        memory["text"] = text

    async def both():
        with pytest.raises(Interruption):
            await anote("second") if is_async else note("second")
        # In the same context, as what is typed next.
        note("third")

    note("first")
    signalled.append(Interruption())
    asyncio.run(both())

    assert remembered(gantry) == {"text": "third"}


def texts(store):
    """A tool that puts a short text in the place of another, which is the shortest way of a write."""
    gantry = Gantry(store, session="s")

    @gantry.with_memory
    def note(text, memory):
        memory["text"] = text

    note("first")
    # From now on it knows where the namespace stands.
    note("first")
    return gantry, note


def in_a_thread(fn, *args):
    thread = threading.Thread(target=fn, args=args, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def remembered(gantry):
    with gantry.memory(session="s") as memory:
        return dict(memory)


def test_signal_as_soon_as_a_write_has_the_lock_leaves_it_to_others(store, monkeypatch):
    gantry, note = texts(store)
    acquire = store._lock.acquire

    def interrupted():
        acquire()
        raise Interruption

    monkeypatch.setattr(store, "_acquire", interrupted)
    with pytest.raises(Interruption):
        note("second")
    monkeypatch.undo()

    assert remembered(gantry) == {"text": "first"}
    in_a_thread(note, "third")
    assert remembered(gantry) == {"text": "third"}


def test_signal_to_a_write_that_waits_for_the_lock_is_what_comes_of_it(store):
    gantry, note = texts(store)
    held, go_on, main = threading.Event(), threading.Event(), threading.get_ident()

    def holding():
        with store._lock:
            held.set()
            assert go_on.wait(10)

    def interrupt(*_):
        raise Interruption

    holder = threading.Thread(target=holding)
    holder.start()
    assert held.wait(10)
    before = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1))
    sender.start()
    try:
        with pytest.raises(Interruption) as raised:
            note("second")
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)
        go_on.set()
        holder.join()

    assert raised.value.__context__ is None
    in_a_thread(note, "third")
    assert remembered(gantry) == {"text": "third"}


def test_short_text_meets_the_limit_where_it_stands(store):
    gantry = Gantry(store, session="s", scopes={"session": Scope(max_bytes=300)})

    @gantry.with_memory
    def note(text, memory):
        memory["text"] = text

    for number in range(20):
        note(f"{number:100}")

    with pytest.raises(MemoryTooLargeError):
        note("\U0001f40b" * 100)
    assert remembered(gantry) == {"text": f"{19:100}"}


def test_long_text_is_weighed(store):
    gantry = Gantry(store, session="s", scopes={"session": Scope(max_bytes=20_000)})

    @gantry.with_memory
    def note(text, memory):
        memory["text"] = text

    note("short")

    with pytest.raises(MemoryTooLargeError):
        note("\U0001f40b" * 6_000)
    assert remembered(gantry) == {"text": "short"}


def test_short_text_is_put_in_the_place_of_what_was_loaded_only(store):
    gantry, note = texts(store)

    @gantry.with_memory(merge={"text": lambda base, ours, theirs: f"{base} {ours} {theirs}"})
    def merged(memory):
        in_a_thread(note, "theirs")
        memory["text"] = "ours"

    merged()

    assert set(remembered(gantry)["text"].split()) == {"first", "ours", "theirs"}


@pytest.mark.parametrize("how", ["decorator", "set", "expire"])
@pytest.mark.parametrize("second", ["second", ["second"]])
@pytest.mark.parametrize("is_same", [False, True])
def test_what_is_written_with_a_time_to_live_is_gone_after_it(store, clock, how, second, is_same):
    gantry, note = texts(store)
    note(second if is_same else ["first"] if type(second) is list else "first")

    @gantry.with_memory(ttl=10 if how == "decorator" else None)
    def expiring(text, memory):
        if how == "set":
            memory.set("text", text, ttl=10)
        else:
            memory["text"] = text
        if how == "expire":
            memory.expire("text", 10)

    expiring(second)
    assert remembered(gantry) == {"text": second}
    clock.now += 11

    assert remembered(gantry) == {}


def test_short_text_beside_a_key_that_expires_leaves_it_its_time(store, clock):
    gantry, note = texts(store)
    with gantry.memory(session="s") as memory:
        memory.set("code", "1234", ttl=10)

    note("second")
    assert remembered(gantry) == {"text": "second", "code": "1234"}
    clock.now += 11

    assert remembered(gantry) == {"text": "second"}


def test_short_text_in_what_is_nobodys_makes_it_its_writers(store):
    def note(memory):
        memory["text"] = memory.get("text", "") + "x"

    for gantry in (Gantry(store), Gantry(store, scopes={"team": Scope(owned=True)})):
        with gantry.session("s", user="ada", team="t"):
            gantry.with_memory(scope="team")(note)()

    assert store.snapshot(next(iter(store._slots))).owner == "ada"


def test_equal_text_is_no_write(store):
    gantry, note = texts(store)
    head = store.snapshot(next(iter(store._slots))).head

    note("first")

    assert store.snapshot(next(iter(store._slots))).head == head
    assert remembered(gantry) == {"text": "first"}
