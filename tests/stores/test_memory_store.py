"""The memory store answers every message by the rules that stand in stores/protocol.py."""

from __future__ import annotations

import threading
import warnings

import pytest

from agent_gantry_state import EvictionWarning, Gantry, Namespace, Scope, StoreURLError, codec
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import (
    KEEP,
    UNSHARED,
    Change,
    Commit,
    Committed,
    Forget,
    Lease,
    List,
    Load,
    Moved,
    Put,
    Release,
)

A = Namespace("session", "a", "app")
B = Namespace("user", "b", "app")


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock=clock)


def put(value, **terms):
    if type(value) in codec.IMMUTABLE:
        return Put(value, None, **terms)
    return Put(UNSHARED, codec.pack(value), **terms)


def load(store, *namespaces, keys=None):
    return store.load(Load(namespaces or (A,), keys)).snapshots


def content(store, namespace=A):
    (snapshot,) = load(store, namespace)
    return {key: snapshot.value(key) for key in snapshot.values}


def change(store, namespace=A, puts=None, deletes=(), **rest):
    """What a unit sends that has just loaded the namespace."""
    (seen,) = load(store, namespace)
    puts = puts or {}
    checks = {key: seen.versions.get(key) for key in (*puts, *deletes)}
    return Change(namespace, seen.head, puts, deletes, checks, loaded_owner=seen.owner, born=seen.born, **rest)


_versions = iter(range(1, 1_000_000))


def message(*changes, token=b""):
    return Commit(token, next(_versions).to_bytes(8, "big"), changes)


def write(store, namespace=A, token=b"", **values):
    puts = {key: value if isinstance(value, Put) else put(value) for key, value in values.items()}
    assert store.commit(message(change(store, namespace, puts), token=token)) == Committed()


# Load.


def test_namespace_that_is_not_there_loads_empty(store, clock):
    loaded = store.load(Load((A,)))

    assert loaded.now == clock.now
    assert (loaded.snapshots[0].values, loaded.snapshots[0].head, loaded.snapshots[0].owner) == ({}, None, None)


def test_load_answers_several_namespaces_in_the_order_asked(store):
    write(store, A, x=1)
    write(store, B, y=[2])

    b, nothing, a = load(store, B, Namespace("session", "none", "app"), A)

    assert (list(a.values), list(b.values), dict(nothing.values)) == (["x"], ["y"], {})
    assert b.value("y") == [2]


def test_load_of_chosen_keys_gives_no_others(store):
    write(store, A, x=1, y=[2], z=put("3", ttl=10.0))
    write(store, B, x=1, y=2)

    a, b = load(store, A, B, keys=(("y", "z", "none"), None))

    assert list(a.values) == ["y", "z"]
    assert (set(a.versions), set(a.packed), set(a.expires_at)) == ({"y", "z"}, {"y"}, {"z"})
    assert a.head is not None
    assert list(b.values) == ["x", "y"]


def test_snapshot_that_was_handed_out_never_changes(store):
    write(store, A, x=[1], y=1)
    (before,) = load(store)

    write(store, A, x=[1, 2], z=3)
    store.commit(message(change(store, A, {}, ("y",))))

    assert list(before.values) == ["x", "y"]
    assert before.value("x") == [1]


def test_value_comes_out_as_a_private_copy(store):
    write(store, A, x={"deep": [1]})
    (snapshot,) = load(store)

    snapshot.value("x")["deep"].append(2)

    assert snapshot.value("x") == {"deep": [1]}


# Commit.


def test_commit_sets_head_and_versions_of_what_it_wrote(store):
    write(store, A, x=1, y=2)
    (first,) = load(store)

    write(store, A, y=3)
    (second,) = load(store)

    assert first.versions["x"] == second.versions["x"] == first.head
    assert second.versions["y"] == second.head != first.head


def test_commit_writes_deletes_and_keeps_the_order(store):
    write(store, A, a=1, b=2, c=3)

    write(store, A, b=20, d=4)
    store.commit(message(change(store, A, {"a": put(10, last=True)}, ("c",))))

    assert list(content(store).items()) == [("b", 20), ("d", 4), ("a", 10)]


def test_key_may_turn_from_container_to_scalar_and_back(store):
    write(store, A, x=[1])
    write(store, A, x=1)
    assert content(store) == {"x": 1}

    write(store, A, x=[2])

    assert content(store) == {"x": [2]}


def test_moved_key_answers_with_what_is_there_and_writes_nothing(store, clock):
    write(store, A, x=1, y=1)
    late = change(store, A, {"x": put(2), "new": put(1)}, ("y",))
    write(store, A, x=5)

    answer = store.commit(message(late))

    assert isinstance(answer, Moved)
    assert answer.now == clock.now
    assert answer.snapshots[0].value("x") == 5
    assert answer.snapshots[0].head == load(store)[0].head
    assert content(store) == {"x": 5, "y": 1}


def test_other_keys_of_a_namespace_may_move(store):
    write(store, A, x=1, y=1)
    mine = change(store, A, {"x": put(2)})
    write(store, A, y=5)

    assert store.commit(message(mine)) == Committed()
    assert content(store) == {"x": 2, "y": 5}


def test_key_made_by_both_has_moved(store):
    late = change(store, A, {"x": put(2)})
    write(store, A, x=1)

    assert isinstance(store.commit(message(late)), Moved)


def test_key_deleted_by_another_has_moved(store):
    write(store, A, x=1, y=1)
    late = change(store, A, {"x": put(2)})
    store.commit(message(change(store, A, {}, ("x",))))

    assert isinstance(store.commit(message(late)), Moved)
    assert content(store) == {"y": 1}


def test_key_deleted_and_made_again_alike_has_moved(store):
    write(store, A, x=1)
    late = change(store, A, {"x": put(2)})
    store.commit(message(change(store, A, {}, ("x",))))
    write(store, A, x=1)

    assert isinstance(store.commit(message(late)), Moved)


def test_all_changes_of_a_commit_are_written_or_none(store):
    write(store, A, x=1)
    write(store, B, x=1)
    fits = change(store, A, {"x": put(2)})
    moved = change(store, B, {"x": put(2)})
    write(store, B, x=5)

    answer = store.commit(message(fits, moved))

    assert isinstance(answer, Moved)
    assert [snapshot.value("x") for snapshot in answer.snapshots] == [1, 5]
    assert (content(store, A), content(store, B)) == ({"x": 1}, {"x": 5})


def test_several_namespaces_are_written_in_one_commit(store):
    assert store.commit(message(change(store, A, {"x": put(1)}), change(store, B, {"x": put([1])}))) == Committed()

    a, b = load(store, A, B)
    assert (a.value("x"), b.value("x")) == (1, [1])
    assert a.head == b.head


def test_whole_is_moved_by_any_commit(store):
    write(store, A, x=1, y=1)
    late = change(store, A, {"x": put(2)}, whole=True)
    write(store, A, y=5)

    assert isinstance(store.commit(message(late)), Moved)
    assert store.commit(message(change(store, A, {"x": put(2)}, whole=True))) == Committed()


def test_owner_stays_until_another_is_named(store):
    store.commit(message(change(store, A, {"x": put(1)}, owner="ada")))
    write(store, A, x=2)
    assert load(store)[0].owner == "ada"

    store.commit(message(change(store, A, {}, owner="")))

    assert load(store)[0].owner == ""


def test_other_owner_than_the_loaded_one_has_moved(store):
    write(store, A, x=1)
    late = change(store, A, {"y": put(1)})
    store.commit(message(change(store, A, {}, owner="ada")))

    answer = store.commit(message(late))

    assert isinstance(answer, Moved)
    assert answer.snapshots[0].owner == "ada"


# Tokens.


def test_commit_sent_again_is_committed_and_written_once(store):
    token = b"t" * 16
    sent = message(change(store, A, {"x": put(1)}), token=token)
    assert store.commit(sent) == Committed()
    head = load(store)[0].head

    assert store.commit(sent) == Committed()

    assert load(store)[0].head == head


def test_commit_sent_again_after_another_one_leaves_that_alone(store):
    token = b"t" * 16
    sent = message(change(store, A, {"x": put(1)}), token=token)
    store.commit(sent)
    write(store, A, x=2, token=b"u" * 16)

    assert store.commit(sent) == Committed()

    assert content(store) == {"x": 2}


def test_commit_that_had_moved_leaves_no_token(store):
    write(store, A, x=1)
    late = message(change(store, A, {"x": put(2)}), token=b"t" * 16)
    write(store, A, x=5)

    assert isinstance(store.commit(late), Moved)
    assert isinstance(store.commit(late), Moved)


def test_token_is_known_in_each_namespace_that_was_written(store):
    both = message(change(store, A, {"x": put(1)}), change(store, B, {"x": put(1)}), token=b"t" * 16)
    store.commit(both)
    write(store, A, x=2)
    write(store, B, x=2)

    for namespace in (A, B):
        again = message(Change(namespace, None, {"x": put(1)}, (), {"x": None}), token=b"t" * 16)
        assert store.commit(again) == Committed()
        assert content(store, namespace) == {"x": 2}


def test_token_is_kept_for_a_minute_and_then_forgotten(store, clock):
    sent = message(change(store, A, {"x": put(1)}), token=b"t" * 16)
    store.commit(sent)
    clock.now += 59.9
    write(store, A, x=2, token=b"u" * 16)
    assert store.commit(sent) == Committed()

    clock.now += 0.1
    write(store, A, x=3, token=b"v" * 16)

    assert isinstance(store.commit(sent), Moved)
    assert content(store) == {"x": 3}


# List and forget.


def names(page):
    return [listed.namespace for listed in page.listed]


def test_list_gives_what_there_is_ordered_by_digest(store):
    for index in range(20):
        write(store, Namespace("session", f"s{index}", "app"), x=1)

    listed = names(store.list(List()))

    assert len(listed) == 20
    assert listed == sorted(listed, key=lambda namespace: namespace.digest)


def test_list_tells_app_scope_and_owner_apart(store):
    other = Namespace("session", "a", "other")
    for namespace, owner in ((A, "ada"), (B, None), (other, "ada")):
        store.commit(message(change(store, namespace, {"x": put(1)}, owner=owner)))

    assert set(names(store.list(List()))) == {A, B, other}
    assert set(names(store.list(List(app="app")))) == {A, B}
    assert set(names(store.list(List(scope="session")))) == {A, other}
    assert set(names(store.list(List(owner="ada")))) == {A, other}
    assert names(store.list(List(app="app", scope="session", owner="ada"))) == [A]
    assert names(store.list(List(owner="bob"))) == []
    assert {listed.namespace: listed.owner for listed in store.list(List()).listed} == {A: "ada", B: None, other: "ada"}


@pytest.mark.parametrize(("count", "pages"), [(0, 1), (2, 1), (3, 1), (4, 2), (7, 3)])
def test_pages_hold_each_namespace_once(store, count, pages):
    for index in range(count):
        write(store, Namespace("session", f"s{index}", "app"), x=1)
    seen, after, asked = [], None, 0
    while True:
        page = store.list(List(limit=3, after=after))
        seen, after, asked = seen + names(page), page.after, asked + 1
        if after is None:
            break

    assert asked == pages
    assert seen == names(store.list(List()))
    assert len(seen) == count


def test_expired_namespace_is_not_listed(store, clock):
    write(store, A, x=put(1, ttl=10.0))
    write(store, B, x=put(1, ttl=10.0), y=1)

    clock.now += 10

    assert names(store.list(List())) == [B]


def test_forget_erases_whatever_is_there(store):
    write(store, A, x=1)
    write(store, B, x=1)

    store.forget(Forget((A, Namespace("session", "none", "app"))))

    assert (content(store, A), content(store, B)) == ({}, {"x": 1})
    assert names(store.list(List())) == [B]


def test_commit_of_what_was_forgotten_finds_another_head(store):
    write(store, A, x=1)
    late = change(store, A, {"y": put(2)})
    store.forget(Forget((A,)))

    answer = store.commit(message(late))

    assert isinstance(answer, Moved)
    assert answer.snapshots[0].head is None
    assert content(store) == {}


# Leases.


def test_lease_has_one_holder_who_can_renew_it(store, clock):
    assert store.lease(Lease(A, b"me", 30.0)) == 0.0
    clock.now += 10
    assert store.lease(Lease(A, b"you", 30.0)) == 20.0
    assert store.lease(Lease(B, b"you", 30.0)) == 0.0

    assert store.lease(Lease(A, b"me", 30.0)) == 0.0

    assert store.lease(Lease(A, b"you", 30.0)) == 30.0


def test_lease_ends_at_its_time(store, clock):
    store.lease(Lease(A, b"me", 30.0))

    clock.now += 30

    assert store.lease(Lease(A, b"you", 30.0)) == 0.0
    assert store.lease(Lease(A, b"me", 30.0)) == 30.0


def test_lease_is_given_back_by_its_holder_alone(store):
    store.lease(Lease(A, b"me", 30.0))

    store.release(Release(A, b"you"))
    assert store.lease(Lease(A, b"you", 30.0)) == 30.0

    store.release(Release(A, b"me"))
    store.release(Release(A, b"me"))
    assert store.lease(Lease(A, b"you", 30.0)) == 0.0


# Expiry.


def test_key_is_gone_at_its_time(store, clock):
    write(store, A, x=put(1, ttl=10.0), y=put([1], ttl=20.0), z=1)

    clock.now += 9.99
    assert list(content(store)) == ["x", "y", "z"]

    clock.now += 0.01
    assert list(content(store)) == ["y", "z"]

    clock.now += 10
    (snapshot,) = load(store)
    assert (list(snapshot.values), list(snapshot.versions), snapshot.packed) == (["z"], ["z"], {})


def test_keep_leaves_the_deadline_and_none_takes_it_away(store, clock):
    write(store, A, x=put(1, ttl=10.0), y=put(1, ttl=10.0), z=put(1, ttl=10.0))
    clock.now += 5

    write(store, A, x=put(2, ttl=KEEP), y=put(2, ttl=None), z=put(2, ttl=10.0))

    clock.now += 5
    assert content(store) == {"y": 2, "z": 2}
    clock.now += 5
    assert content(store) == {"y": 2}


def test_sliding_keys_live_from_the_last_touch(store, clock):
    store.commit(message(change(store, A, {"x": put(1, ttl=10.0, slides=True), "y": put(1, ttl=12.0)}, touch=True)))

    clock.now += 9
    assert store.commit(message(change(store, A, touch=True))) == Committed()

    clock.now += 9
    assert content(store) == {"x": 1}
    clock.now += 1
    assert content(store) == {}


def test_commit_without_a_touch_restarts_nothing(store, clock):
    store.commit(message(change(store, A, {"x": put(1, ttl=10.0, slides=True)}, touch=True)))
    clock.now += 9

    write(store, A, y=1)

    clock.now += 1
    assert content(store) == {"y": 1}


def test_touch_moves_no_key(store):
    store.commit(message(change(store, A, {"x": put(1, ttl=10.0, slides=True)}, touch=True)))
    mine = change(store, A, {"x": put(2, slides=True)})

    store.commit(message(change(store, A, touch=True)))

    assert store.commit(message(mine)) == Committed()


def test_key_that_expired_is_not_brought_back_by_a_commit_elsewhere(store, clock):
    write(store, A, x=put(1, ttl=10.0), y=1)
    clock.now += 10

    write(store, A, y=2)
    clock.now -= 10

    assert content(store) == {"y": 2}


def test_namespace_whose_last_key_expired_begins_anew(store, clock):
    store.commit(message(change(store, A, {"x": put(1, ttl=10.0)}, owner="ada")))
    clock.now += 10

    (snapshot,) = load(store)
    assert (snapshot.head, snapshot.owner) == (None, None)

    write(store, A, y=1)
    assert content(store) == {"y": 1}


@pytest.mark.parametrize("seconds", [10, 12, 13, 1_000])
def test_namespace_that_expired_can_be_written_again(store, clock, seconds):
    write(store, A, x=put(1, ttl=10.0))
    clock.now += seconds

    write(store, A, x=put(2, ttl=10.0))
    clock.now += 9
    assert content(store) == {"x": 2}
    write(store, A, y=3)
    clock.now += 1_000_000

    assert content(store) == {"y": 3}


def test_clock_set_back_brings_nothing_back(store, clock):
    write(store, A, x=put(1, ttl=10.0), y=1)
    clock.now += 10
    assert content(store) == {"y": 1}

    clock.now -= 5

    assert content(store) == {"y": 1}
    assert store.load(Load((A,))).now == clock.now + 5


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


def test_threads_that_add_lose_nothing():
    with Gantry(session="local") as gantry:

        @gantry.with_memory
        def count(memory):
            memory.add("n", 1)
            memory.setdefault("log", []).append(threading.get_ident())

        start = threading.Barrier(8)

        def work():
            start.wait()
            for _ in range(200):
                count()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        with gantry.memory() as memory:
            assert memory["n"] == 1600
            assert {memory["log"].count(each) for each in set(memory["log"])} == {200}
            assert len(memory["log"]) == 1600


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
