"""`Gantry.admin`: looking at memories, changing keys, erasing users, checking stores."""

from __future__ import annotations

import contextvars
import threading

import anyio
import pytest
import servers
from support import Blocking

from agent_gantry_state import (
    CorruptEntryError,
    Gantry,
    MemoryConflictError,
    MemoryErasedError,
    MemoryNotFoundError,
    MemoryTooLargeError,
    Namespace,
    NotListableError,
    Scope,
    StoreClosedError,
    StoreUnavailableError,
    UnstorableValueError,
)
from agent_gantry_state.admin import ABSENT, health
from agent_gantry_state.stores.memory import MemoryStore

pytestmark = pytest.mark.once

S1 = Namespace("session", "s1")
ADA = Namespace("user", "ada")


def write(gantry, scope, who, **values):
    def change():
        with gantry.memory(scope, **who) as memory:
            memory.update(values)

    contextvars.Context().run(change)


def fill(gantry):
    """Two users, a session of each and one of nobody, a conversation, a tool and what all share."""
    write(gantry, "user", {"user": "ada"}, lang="en")
    write(gantry, "user", {"user": "bob"}, lang="fr")
    write(gantry, "session", {"session": "s1", "user": "ada"}, n=1, files=["a"])
    write(gantry, "session", {"session": "s2", "user": "ada"}, n=2)
    write(gantry, "session", {"session": "s3", "user": "bob"}, n=3)
    write(gantry, "session", {"session": "s4"}, n=4)
    write(gantry, "conversation", {"conversation": "c1", "user": "ada"}, n=5)
    write(gantry, "tool", {"tool": "counter"}, n=6)
    write(gantry, "global", {}, n=7)


def names(listed):
    return sorted((each.namespace.scope, each.namespace.id, each.owner) for each in listed)


# Looking.


def test_list_gives_every_memory_with_its_owner(call):
    gantry, ask = call
    fill(gantry)

    assert names(ask("list")) == [
        ("conversation", "c1", None),
        ("global", "global", None),
        ("session", "s1", "ada"),
        ("session", "s2", "ada"),
        ("session", "s3", "bob"),
        ("session", "s4", ""),
        ("tool", "counter", None),
        ("user", "ada", None),
        ("user", "bob", None),
    ]


def test_list_gives_what_is_asked_for(gantry):
    fill(gantry)
    for options, found in (
        ({"scope": "user"}, ["ada", "bob"]),
        ({"owner": "ada"}, ["s1", "s2"]),
        ({"owner": ""}, ["s4"]),
        ({"scope": "user", "owner": "ada"}, []),
        ({"user": "ada"}, ["s1", "s2", "ada"]),
        ({"user": "ada", "scope": "session"}, ["s1", "s2"]),
        ({"user": "ada", "scope": "user"}, ["ada"]),
        ({"user": "eve"}, []),
        ({"scope": "tenant"}, []),
    ):
        assert [id for _, id, _ in names(gantry.admin.list(**options))] == found
        assert [id for _, id, _ in names(gantry.admin.all_apps.list(**options))] == found


def test_list_knows_its_app_only_and_all_apps_knows_all(place, new_gantry):
    one, two = new_gantry(place, app="one"), new_gantry(place, app="two")
    write(one, "user", {"user": "ada"}, n=1)
    write(two, "user", {"user": "ada"}, n=2)

    assert [each.namespace.app for each in one.admin.list()] == ["one"]
    assert sorted(each.namespace.app for each in one.admin.all_apps.list()) == ["one", "two"]
    assert sorted(each.namespace.app for each in one.admin.all_apps.list(user="ada")) == ["one", "two"]


def test_list_goes_through_pages(gantry, monkeypatch):
    monkeypatch.setattr("agent_gantry_state.admin.listing._PAGE", 2)
    fill(gantry)

    assert len(names(gantry.admin.list())) == 9
    assert len(names(gantry.admin.all_apps.list(user="ada"))) == 3


def test_list_finds_what_each_scope_has_in_a_store_of_its_own(new_gantry):
    apart = MemoryStore()
    gantry = new_gantry("memory://", scopes={"user": apart})
    fill(gantry)
    # Left over from before the scope had it.
    with Gantry(apart) as earlier:
        write(earlier, "session", {"session": "old", "user": "ada"}, n=1)

    assert len(names(gantry.admin.list())) == 9
    assert gantry.admin.show(ADA)["lang"] == "en"
    assert [each.namespace.id for each in gantry.admin.erase(user="ada").erased].count("old") == 1


def test_show_gives_keys_in_order_with_what_they_have_left(call):
    gantry, ask = call
    with gantry.memory("session", session="s1", user="ada") as memory:
        memory["b"] = (1, {2})
        memory.set("a", "text", ttl=600)
        memory["c"] = None

    shown = ask("show", S1)

    assert (shown.owner, [each.key for each in shown.keys]) == ("ada", ["b", "a", "c"])
    assert [each.value for each in shown.keys] == [(1, {2}), "text", None]
    assert [each.ttl is None for each in shown.keys] == [True, False, True]
    assert 500 < shown.keys[1].ttl <= 600
    assert shown["a"] == "text"
    assert shown.size == sum(each.size for each in shown.keys) + 3


def test_show_names_the_tool_of_a_compartment(gantry):
    @gantry.with_memory(scope="user", private=True, name="count:er")
    def count(memory):
        memory["n"] = 1

    with gantry.session("s1", user="ada"):
        count()

    (key,) = gantry.admin.show(ADA).keys
    assert (key.name, key.tool, key.key, key.value) == ("n", "count:er", "\x008:count:ern", 1)


def test_show_and_list_show_no_value_and_no_id_by_accident(gantry):
    write(gantry, "user", {"user": "ada-lovelace"}, secret="hunter2")

    shown = gantry.admin.show(Namespace("user", "ada-lovelace"))
    receipt = gantry.admin.erase(user="ada-lovelace", dry_run=True)

    assert "hunter2" not in repr(shown)
    assert "lovelace" not in repr(shown)
    assert "lovelace" not in repr(receipt)


@pytest.mark.parametrize("verb", ["show", "forget"])
def test_memory_that_is_not_there_is_said_to_be_so(call, verb):
    _, ask = call
    with pytest.raises(MemoryNotFoundError, match="there is no such session memory") as caught:
        ask(verb, S1)

    assert (caught.value.scope, caught.value.key, caught.value.committed) == ("session", None, False)


@pytest.mark.parametrize("verb", ["get", "delete"])
def test_key_that_is_not_there_is_said_to_be_so(call, verb):
    gantry, ask = call
    with pytest.raises(MemoryNotFoundError, match="no such session memory"):
        ask(verb, S1, "b")
    write(gantry, "session", {"session": "s1"}, a=1)

    with pytest.raises(MemoryNotFoundError, match="it has no key 'b'") as caught:
        ask(verb, S1, "b")

    assert caught.value.key == "b"


# One key.


def test_get_gives_value_version_and_time_left(call):
    gantry, ask = call
    with gantry.memory("session", session="s1") as memory:
        memory.set("a", [1, (2,)], ttl=60)
        memory["b"] = 1

    found = ask("get", S1, "a")

    assert found.value == [1, (2,)]
    assert 50 < found.ttl <= 60
    assert found.version == gantry.admin.show(S1).keys[0].version


def test_set_makes_a_memory_and_its_version_is_that_of_the_key(call):
    gantry, ask = call
    version = ask("set", S1, "a", {"b": (1,)})

    assert ask("get", S1, "a").version == version
    with gantry.memory("session", session="s1") as memory:
        assert memory == {"a": {"b": (1,)}}


def test_set_writes_to_a_session_whoever_owns_it_and_leaves_it_theirs(call):
    gantry, ask = call
    write(gantry, "session", {"session": "s1", "user": "ada"}, a=1, b=2)

    ask("set", S1, "a", 3)

    shown = gantry.admin.show(S1)
    assert (shown.owner, shown["a"], shown["b"]) == ("ada", 3, 2)


def test_set_compares_the_version(call):
    gantry, ask = call
    first = ask("set", S1, "a", 1, version=ABSENT)
    second = ask("set", S1, "a", 2, version=first)

    for version, problem in ((first, "was changed since"), (ABSENT, "is there already")):
        with pytest.raises(MemoryConflictError, match=problem) as caught:
            ask("set", S1, "a", 3, version=version)
        assert caught.value.by_scope == {"session": ("a",)}
    with pytest.raises(MemoryConflictError, match="is not there any more"):
        ask("set", S1, "b", 3, version=first)

    found = gantry.admin.get(S1, "a")
    assert (found.value, found.version) == (2, second)


def test_set_keeps_the_time_that_a_key_has_unless_told_otherwise(call):
    _, ask = call
    ask("set", S1, "a", 1, ttl=600)
    ask("set", S1, "a", 2)
    assert 500 < ask("get", S1, "a").ttl <= 600

    ask("set", S1, "a", 3, ttl=None)
    assert ask("get", S1, "a").ttl is None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((S1, "\0x", 1), UnstorableValueError),
        ((S1, 1, 1), UnstorableValueError),
        ((S1, "a", object()), UnstorableValueError),
        ((("session", "s1"), "a", 1), TypeError),
        ((Namespace("session", "s1", "other"), "a", 1), ValueError),
    ],
)
def test_set_refuses_what_cannot_be(new_gantry, arguments, error):
    gantry = new_gantry("memory://")
    with pytest.raises(error):
        gantry.admin.set(*arguments)
    assert list(gantry.admin.all_apps.list()) == []


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), 1e999])
def test_set_refuses_a_time_that_is_none(new_gantry, ttl):
    with pytest.raises(ValueError, match=r"admin\.set: ttl must be a positive"):
        new_gantry("memory://").admin.set(S1, "a", 1, ttl=ttl)


def test_set_goes_by_the_limits_of_the_scope(new_gantry):
    gantry = new_gantry("memory://", scopes={"session": Scope(max_bytes=100)})

    with pytest.raises(MemoryTooLargeError, match="max_bytes"):
        gantry.admin.set(S1, "a", "x" * 101)

    gantry.admin.set(S1, "a", "x" * 50)


def test_set_that_others_are_quicker_than_does_not_lose_their_keys(gantry):
    def add(name):
        for n in range(20):
            gantry.admin.set(S1, f"{name}{n}", n)

    threads = [threading.Thread(target=add, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(gantry.admin.show(S1).keys) == 40


@pytest.mark.parametrize("verb", ["set", "delete"])
def test_what_somebody_else_writes_in_between_is_found_by_its_version(new_gantry, verb):
    store = MemoryStore()
    gantry, commit = new_gantry(store), store.commit
    version = gantry.admin.set(S1, "a", 1)

    def commit_second(message):
        store.commit = commit
        gantry.admin.set(S1, "a", "theirs")
        return commit(message)

    store.commit = commit_second
    more = ("ours",) if verb == "set" else ()
    with Gantry(store) as other, pytest.raises(MemoryConflictError, match="was changed since"):
        getattr(other.admin, verb)(S1, "a", *more, version=version)

    assert gantry.admin.get(S1, "a").value == "theirs"


def test_delete_deletes_one_key_if_it_is_as_it_was(call):
    gantry, ask = call
    old = ask("set", S1, "a", 1)
    new = ask("set", S1, "a", 2)
    ask("set", S1, "b", 1)

    with pytest.raises(MemoryConflictError, match="was changed since"):
        ask("delete", S1, "a", version=old)
    ask("delete", S1, "a", version=new)

    assert [each.key for each in gantry.admin.show(S1).keys] == ["b"]


def test_forget_erases_for_good_what_a_call_has_loaded(gantry):
    write(gantry, "session", {"session": "s1"}, a=1)

    block = gantry.memory("session", session="s1")
    memory = block.__enter__()
    memory["a"] = 2
    gantry.admin.forget(S1)
    with pytest.raises(MemoryErasedError):
        block.__exit__(None, None, None)

    assert list(gantry.admin.list()) == []


# Erasing a user.


def test_erase_takes_everything_of_one_user_and_nothing_else(call):
    gantry, ask = call
    fill(gantry)

    receipt = ask("erase", user="ada")

    assert names(gantry.admin.list()) == [
        ("conversation", "c1", None),
        ("global", "global", None),
        ("session", "s3", "bob"),
        ("session", "s4", ""),
        ("tool", "counter", None),
        ("user", "bob", None),
    ]
    assert names(receipt.erased) == [("session", "s1", "ada"), ("session", "s2", "ada"), ("user", "ada", None)]
    assert {each.namespace.id: each.keys for each in receipt.erased} == {"s1": 2, "s2": 1, "ada": 1}
    assert (receipt.user, receipt.complete, receipt.dry_run) == ("ada", True, False)


def test_dry_run_tells_what_would_be_erased_and_erases_nothing(call):
    gantry, ask = call
    fill(gantry)

    receipt = ask("erase", user="ada", dry_run=True)

    assert len(receipt.erased) == 3
    assert (receipt.complete, receipt.dry_run) == (False, True)
    assert len(names(gantry.admin.list())) == 9


def test_erase_of_somebody_unknown_erases_nothing(call):
    gantry, ask = call
    fill(gantry)
    receipt = ask("erase", user="eve")
    assert (receipt.erased, receipt.complete) == ((), True)
    assert len(names(gantry.admin.list())) == 9


def test_erase_takes_owned_memories_of_every_scope(place, new_gantry):
    gantry = new_gantry(place, scopes={"conversation": Scope(owned=True)})
    fill(gantry)
    assert ("conversation", "c1", "ada") in names(gantry.admin.erase(user="ada").erased)


def test_erase_follows_the_resolvers_of_the_gantry(new_gantry):
    def by_hash(request):
        return Namespace("user", f"person {request.identity.user}") if request.scope == "user" else None

    gantry = new_gantry("memory://", resolvers=[by_hash])
    fill(gantry)

    assert "person ada" in [each.namespace.id for each in gantry.admin.erase(user="ada").erased]
    assert [each.namespace.id for each in gantry.admin.list("user")] == ["person bob"]


def test_erase_in_all_apps(place, new_gantry):
    one, two = new_gantry(place, app="one"), new_gantry(place, app="two")
    fill(one)
    fill(two)

    assert len(one.admin.erase(user="ada").erased) == 3
    assert len(one.admin.all_apps.erase(user="ada").erased) == 3
    assert len(names(two.admin.list())) == 6


def test_erase_finds_what_is_made_while_it_erases(new_gantry):
    store = MemoryStore()
    gantry = new_gantry(store)
    fill(gantry)
    forget, made = store.forget, []

    def forget_and_make(message):
        forget(message)
        if not made:
            made.append("s9")
            write(gantry, "session", {"session": "s9", "user": "ada"}, n=1)

    store.forget = forget_and_make
    with Gantry(store) as other:
        receipt = other.admin.erase(user="ada")

    assert "s9" in [each.namespace.id for each in receipt.erased]
    assert receipt.complete
    assert names(gantry.admin.list(owner="ada")) == []


def test_memory_that_cannot_be_read_is_erased_all_the_same(new_place, new_gantry, tmp_path):
    gantry = new_gantry(new_place("sqlite"))
    fill(gantry)
    damage_sqlite(tmp_path, b"files")

    receipt = gantry.admin.erase(user="ada")

    assert {each.namespace.id: each.keys for each in receipt.erased} == {"s1": None, "s2": 1, "ada": 1}
    assert names(gantry.admin.list(user="ada")) == []


def test_memory_of_which_nothing_can_be_read_is_erased_all_the_same(new_gantry):
    class Damaged(MemoryStore):
        def load(self, message):
            if message.namespaces[0] in self._slots:
                raise CorruptEntryError("a memory cannot be read")
            return super().load(message)

    store = Damaged()
    gantry = new_gantry(store)
    gantry.admin.set(ADA, "a", 1)

    receipt = gantry.admin.erase(user="ada")

    assert [(each.namespace.id, each.keys) for each in receipt.erased] == [("ada", None)]
    assert len(store) == 0


# Checking.


def damage_sqlite(tmp_path, key):
    """Flip a bit in the stored value of each key of that name."""
    import sqlite3

    for path in tmp_path.glob("*.db"):
        with sqlite3.connect(path) as connection:
            for record, digest in connection.execute("SELECT record, digest FROM entry WHERE key = ?", (key,)).fetchall():
                flipped = record[:-1] + bytes([record[-1] ^ 1])
                connection.execute("UPDATE entry SET record = ? WHERE digest = ? AND key = ?", (flipped, digest, key))
        connection.close()


def test_doctor_finds_a_store_in_good_health_and_leaves_nothing_in_it(call):
    gantry, ask = call
    fill(gantry)
    gantry.admin.set(S1, "soon", 1, ttl=600)

    (found,) = ask("doctor")

    assert found.problems == []
    assert found.healthy
    assert (found.round_trip, found.memories, found.keys, found.expiring, found.expired, found.corrupt) == (
        True,
        9,
        11,
        1,
        0,
        [],
    )
    assert abs(found.clock_skew) < 60
    names = {"SQLiteStore": "SQLite 3.", "RedisStore": "Redis 8.", "PostgreSQLStore": "PostgreSQL 1"}
    assert (found.server or "").startswith(names.get(found.store, ""))
    assert {"python", "agent-gantry-state", "ormsgpack"} <= found.versions.keys()
    assert len(list(gantry.admin.all_apps.list())) == 9


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_doctor_counts_what_is_expired_and_not_removed_yet(new_place, new_gantry, kind):
    now = [1000.0]
    gantry = new_gantry(new_place(kind))
    with gantry.override(clock=lambda: now[0]):
        for key, ttl in (("a", 5), ("b", 5), ("c", None)):
            gantry.admin.set(S1, key, 1, ttl=ttl)
        gantry.admin.set(ADA, "d", 1, ttl=5)
        now[0] = 2000.0

        (found,) = gantry.admin.doctor(write=False)

        assert (found.memories, found.keys, found.expiring, found.expired) == (1, 1, 0, 3)
        assert [each.key for each in gantry.admin.show(S1).keys] == ["c"]


@pytest.mark.parametrize("kind", ["redis", "postgresql"])
def test_doctor_counts_what_is_expired_on_a_server(new_place, new_gantry, kind):
    gantry = new_gantry(new_place(kind))
    gantry.admin.set(S1, "b", 1)
    # The last commit, for each removes what is expired.
    gantry.admin.set(S1, "a", 1, ttl=0.01)
    while True:
        try:
            gantry.admin.get(S1, "a")
        except MemoryNotFoundError:
            break

    (found,) = gantry.admin.doctor(write=False)

    assert (found.memories, found.keys, found.expired) == (1, 1, 1)


def test_doctor_names_each_key_that_cannot_be_read(new_place, new_gantry, tmp_path):
    gantry = new_gantry(new_place("sqlite"))
    fill(gantry)
    damage_sqlite(tmp_path, b"n")

    (found,) = gantry.admin.doctor()

    assert {(each.namespace.id, each.key) for each in found.corrupt} == {
        (id, "n") for id in ("s1", "s2", "s3", "s4", "c1", "counter", "global")
    }
    assert found.problems == ["7 of what is stored cannot be read"]
    assert found.memories == 9
    assert "bytes are damaged" in found.corrupt[0].problem


def test_doctor_counts_files_that_cannot_be_read(new_place, new_gantry, tmp_path):
    gantry = new_gantry(new_place("file"))
    fill(gantry)
    (path,) = tmp_path.rglob(Namespace("user", "ada", "default").digest.hex())
    path.write_bytes(path.read_bytes()[:-1])

    (found,) = gantry.admin.doctor()

    assert (found.memories, found.unlisted, found.healthy) == (8, 1, False)
    assert found.problems == ["1 of its memories are so damaged that they cannot be listed"]
    # What is loaded by its name is put aside, and the memory begins anew.
    gantry.admin.erase(user="ada")
    (found,) = gantry.admin.doctor()
    assert (found.unlisted, found.healthy) == (0, True)


def test_doctor_finds_a_store_that_does_not_keep_what_it_is_given(new_gantry):
    class Forgetful(MemoryStore):
        def load(self, message):
            loaded = super().load(message)
            for snapshot in loaded.snapshots:
                snapshot.packed.pop("tuple", None)
            return loaded

    (found,) = new_gantry(Forgetful()).admin.doctor()

    assert found.round_trip is False
    assert not found.healthy
    assert "did not come back as it was" in found.problems[0]


def test_doctor_tries_every_type_that_can_be_stored():
    from agent_gantry_state.codec import _ATOMS, _CONTAINERS, _PATH_KINDS

    assert {type(value) for value in health._EACH_TYPE.values()} >= (_ATOMS | _CONTAINERS) - _PATH_KINDS.keys()


def test_doctor_tells_what_is_wrong_with_a_store_that_is_not_there(new_gantry):
    gantry = new_gantry(f"redis://127.0.0.1:{servers.free_port()}")

    (found,) = gantry.admin.doctor()

    assert not found.healthy
    assert found.memories is None
    assert "Redis" in found.problems[0]


def test_doctor_writes_and_scans_only_if_it_may(new_gantry):
    store = MemoryStore()
    commits = []
    store.commit = commits.append
    gantry = new_gantry(store)

    (found,) = gantry.admin.doctor(write=False, scan=False)

    assert commits == []
    assert (found.round_trip, found.memories, found.healthy) == (None, None, True)


def test_doctor_looks_at_every_store_of_a_gantry(new_gantry):
    found = new_gantry("memory://", scopes={"user": "memory://?max_namespaces=7"}).admin.doctor()
    assert [each.store for each in found] == ["MemoryStore", "MemoryStore"]


# Stores that cannot, and those that are not there.


def test_store_that_cannot_list_says_so_in_a_typed_error_and_nothing_is_erased(new_gantry):
    gantry = new_gantry(servers.memcached().url, app="admin of memcached")
    fill(gantry)

    for ask in (gantry.admin.list, gantry.admin.export, gantry.admin.all_apps.list):
        with pytest.raises(NotListableError, match="memcached cannot tell what it holds"):
            list(ask())
    with pytest.raises(NotListableError):
        gantry.admin.erase(user="ada")

    assert gantry.admin.show(ADA)["lang"] == "en"
    (found,) = gantry.admin.doctor()
    assert (found.healthy, found.round_trip, found.memories) == (True, True, None)


def test_closed_gantry_says_so():
    gantry = Gantry()
    gantry.close()
    for ask in (lambda: list(gantry.admin.list()), lambda: gantry.admin.show(S1), lambda: gantry.admin.set(S1, "a", 1)):
        with pytest.raises(StoreClosedError):
            ask()


def test_error_of_a_store_comes_as_it_is(new_gantry):
    gantry = new_gantry(f"redis://127.0.0.1:{servers.free_port()}")
    with pytest.raises(StoreUnavailableError):
        list(gantry.admin.list())
    with pytest.raises(StoreUnavailableError) as caught:
        gantry.admin.set(S1, "a", 1)
    assert caught.value.committed is False


def test_listing_that_is_left_early_asks_no_further(new_gantry, monkeypatch):
    monkeypatch.setattr("agent_gantry_state.admin.listing._PAGE", 2)
    store = MemoryStore()
    asked, inner = [], store.list
    store.list = lambda message: asked.append(message) or inner(message)
    gantry = new_gantry(store)
    fill(gantry)

    next(gantry.admin.list())

    assert len(asked) == 1


@pytest.mark.anyio
async def test_change_that_was_sent_is_not_cut_by_a_cancellation(new_gantry):
    sent, go, order = threading.Event(), threading.Event(), []

    class Slow(Blocking):
        def commit(self, message, /):
            sent.set()
            go.wait(30)
            answer = super().commit(message)
            order.append("committed")
            return answer

    gantry = new_gantry(Slow())

    async def change():
        try:
            await gantry.admin.aset(S1, "a", 1)
        finally:
            order.append("left")

    async with anyio.create_task_group() as group:
        group.start_soon(change)
        await anyio.to_thread.run_sync(sent.wait, 30)
        group.cancel_scope.cancel()
        # Long after a caller that does not wait for the end has left.
        threading.Timer(0.2, go.set).start()

    assert order == ["committed", "left"]
    assert gantry.admin.get(S1, "a").value == 1
