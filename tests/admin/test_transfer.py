"""Export, import and copy: what comes out goes in again as it was, each memory whole or not at all."""

from __future__ import annotations

import json

import pytest
import servers

from agent_gantry_state import (
    CorruptEntryError,
    Gantry,
    ImportRefusedError,
    MemoryExistsError,
    Namespace,
    NotListableError,
    SessionOwnerError,
    StoreError,
    codec,
)
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Commit
from agent_gantry_state.testing import HOSTILE_TEXTS, VALUES

pytestmark = pytest.mark.once

S1 = Namespace("session", "s1")
FIRST = '{"agent_gantry_state":"export","version":1}'


def memory_line(keys=(), scope="session", id="s1", owner=None, app="default", **more):
    return json.dumps({"app": app, "scope": scope, "id": id, "owner": owner, "keys": list(keys), **more})


def export_of(*lines):
    return [FIRST, *lines, json.dumps({"end": len(lines)})]


def content(gantry):
    """All that is in a store, as bytes, but for versions and times."""
    return {
        each.namespace: (
            memory.owner,
            [(key.key, key.packed, key.slides, key.ttl is None) for key in memory.keys],
        )
        for each in gantry.admin.all_apps.list()
        for memory in [gantry.admin.all_apps.show(each.namespace)]
    }


def fill(gantry):
    """Every type, hostile names, an order that is not the alphabet's, times of both kinds, owners, compartments."""
    with gantry.memory("session", session="s1", user="ada") as memory:
        for index, value in enumerate(VALUES):
            memory[f"value {index}"] = value
        memory["z"], memory["a"], memory["m"] = 1, 2, 3
        memory.set("short", "x", ttl=600)
    for index, text in enumerate(HOSTILE_TEXTS):
        if text:
            with gantry.memory("user", user=text) as memory:
                memory[text if text[0] != "\0" else f"x{text}"] = index
    with gantry.memory("session", session="of nobody") as memory:
        memory["n"] = 1

    @gantry.with_memory(scope="global", private=True, ttl=900, sliding=True, name="tool")
    def tool(memory):
        memory["inner"] = (1,)

    tool()


@pytest.fixture
def filled(place, new_gantry):
    gantry = new_gantry(place)
    fill(gantry)
    return gantry


# Export and import.


def test_everything_goes_out_and_comes_in_again_exactly(filled, new_gantry):
    lines = list(filled.admin.export())
    target = new_gantry("memory://")

    done = target.admin.import_(lines)

    assert content(target) == content(filled)
    assert (done.written, done.memories) == (len(lines) - 2, len(lines) - 2)


def test_everything_comes_into_each_store(place, new_gantry):
    source, target = new_gantry("memory://"), new_gantry(place)
    fill(source)

    target.admin.import_(source.admin.export())

    assert content(target) == content(source)
    with pytest.raises(SessionOwnerError), target.memory("session", session="s1", user="eve"):
        pass


def test_export_and_import_on_an_event_loop(call):
    gantry, ask = call
    with gantry.memory("session", session="s1", user="ada") as memory:
        memory["a"] = {1: (2,)}
    lines = ask("export")
    gantry.admin.forget(S1)

    done = ask("import_", lines)

    assert done.written == 1
    assert gantry.admin.show(S1)["a"] == {1: (2,)}


def test_export_stays_as_it_is(new_gantry):
    """The format: a change here is one that old exports do not survive."""
    gantry = new_gantry("memory://", app="shop")
    with gantry.override(clock=lambda: 1000.0):
        with gantry.memory("session", session="s1", user="ada") as memory:
            memory["a"] = (1, "x")
            memory.set("b", None, ttl=60)

        lines = list(gantry.admin.export())

    assert lines == [
        '{"agent_gantry_state":"export","version":1}',
        '{"app":"shop","scope":"session","id":"s1","owner":"ada","keys":'
        '[{"key":"a","value":{"$tuple":[1,"x"]}},{"key":"b","value":null,"expires_at":1060.0}]}',
        '{"end":1}',
    ]


def test_export_of_a_user_is_what_would_be_erased(new_gantry):
    gantry = new_gantry("memory://")
    fill(gantry)
    with gantry.memory("user", user="ada") as memory:
        memory["lang"] = "en"

    lines = [json.loads(line) for line in gantry.admin.export(user="ada")]

    assert sorted((each["scope"], each["id"]) for each in lines[1:-1]) == [("session", "s1"), ("user", "ada")]


def test_export_of_nothing_is_an_export(new_gantry):
    gantry = new_gantry("memory://")
    lines = list(gantry.admin.export())
    assert lines == [FIRST, '{"end":0}']
    assert gantry.admin.import_(lines).memories == 0


def test_times_are_those_of_the_export(new_gantry):
    now = [1000.0]
    gantry = new_gantry("memory://")
    keys = [
        {"key": "gone", "value": 1, "expires_at": 1010},
        {"key": "left", "value": 2, "expires_at": 1100.5},
        {"key": "slides", "value": 3, "expires_at": 1030, "slides": 50},
        {"key": "stays", "value": 4},
    ]
    now[0] = 1020.0
    with gantry.override(clock=lambda: now[0]):
        gantry.admin.import_(export_of(memory_line(keys)))

        shown = {each.key: (each.ttl, each.slides) for each in gantry.admin.show(S1).keys}

    assert shown == {"left": (80.5, None), "slides": (50.0, 50.0), "stays": (None, None)}


def test_memory_of_which_everything_is_expired_is_not_made(new_gantry):
    gantry = new_gantry("memory://")
    done = gantry.admin.import_(export_of(memory_line([{"key": "a", "value": 1, "expires_at": 1}], owner="ada")))
    assert (done.expired, done.written, list(gantry.admin.list())) == (1, 0, [])


def test_import_again_changes_nothing(filled):
    lines = list(filled.admin.export())
    before = filled.admin.show(S1)

    done = filled.admin.import_(lines)

    # Of what slides, each import begins the time anew; but it is the same memory.
    assert (done.written, done.unchanged) == (0, len(lines) - 2)
    assert [each.version for each in filled.admin.show(S1).keys] == [each.version for each in before.keys]


def test_another_memory_that_is_there_is_refused_skipped_or_replaced(call):
    gantry, ask = call
    with gantry.memory("session", session="s1", user="ada") as memory:
        memory["mine"], memory["n"] = 1, 1
        memory.set("soon", 1, ttl=600)
    lines = export_of(
        memory_line([{"key": "z", "value": 1}, {"key": "n", "value": 2}, {"key": "a", "value": 3}], owner="bob")
    )

    with pytest.raises(MemoryExistsError, match="line 2, session memory: another one is there already") as caught:
        ask("import_", lines)
    assert (caught.value.line, caught.value.scope, caught.value.committed) == (2, "session", False)
    assert ask("import_", lines, existing="skip").skipped == 1
    assert ask("import_", lines, existing="replace", dry_run=True).written == 1
    assert [each.key for each in gantry.admin.show(S1).keys] == ["mine", "n", "soon"]

    assert ask("import_", lines, existing="replace").written == 1

    shown = gantry.admin.show(S1)
    assert (shown.owner, [(each.key, each.value, each.ttl) for each in shown.keys]) == (
        "bob",
        [("z", 1, None), ("n", 2, None), ("a", 3, None)],
    )


def test_owner_is_not_taken_away(new_gantry):
    gantry = new_gantry("memory://")
    with gantry.memory("session", session="s1", user="ada") as memory:
        memory["a"] = 1
    with pytest.raises(MemoryExistsError, match="belongs to somebody"):
        gantry.admin.import_(export_of(memory_line([{"key": "a", "value": 1}])), existing="replace")
    assert gantry.admin.show(S1).owner == "ada"


def test_memory_that_others_change_while_it_is_imported_is_looked_at_again(new_gantry):
    store = MemoryStore()
    gantry = new_gantry(store)
    commit, met = store.commit, []

    def commit_second(message):
        if not met:
            met.append(1)
            gantry.admin.set(S1, "theirs", 1)
        return commit(message)

    store.commit = commit_second
    with Gantry(store) as other, pytest.raises(MemoryExistsError):
        other.admin.import_(export_of(memory_line([{"key": "a", "value": 1}])))

    assert [each.key for each in gantry.admin.show(S1).keys] == ["theirs"]


def test_each_memory_is_one_commit(new_gantry):
    store = MemoryStore()
    commits, commit = [], store.commit
    store.commit = lambda message: commits.append(message) or commit(message)
    keys = [{"key": f"k{n}", "value": n} for n in range(50)]

    new_gantry(store).admin.import_(export_of(memory_line(keys), memory_line(keys, id="s2")))

    assert [type(each) for each in commits] == [Commit, Commit]
    assert [len(each.changes[0].puts) for each in commits] == [50, 50]


def test_dry_run_writes_nothing(new_gantry):
    gantry = new_gantry("memory://")
    done = gantry.admin.import_(export_of(memory_line([{"key": "a", "value": 1}])), dry_run=True)
    assert (done.written, list(gantry.admin.list())) == (1, [])


def test_import_says_how_far_it_is(new_gantry):
    seen = []
    lines = export_of(*[memory_line([{"key": "a", "value": 1}], id=f"s{n}") for n in range(3)])
    new_gantry("memory://").admin.import_(lines, progress=lambda done, total: seen.append((done.memories, total)))
    assert seen == [(1, None), (2, None), (3, None)]


def test_import_keeps_apps_apart(new_gantry):
    gantry = new_gantry("memory://", app="shop")
    lines = export_of(memory_line([{"key": "a", "value": 1}], app="other"))

    with pytest.raises(ImportRefusedError, match=r"line 2: this memory is of another app.*admin\.all_apps"):
        gantry.admin.import_(lines)
    assert list(gantry.admin.all_apps.list()) == []

    gantry.admin.all_apps.import_(lines)
    assert [each.namespace.app for each in gantry.admin.all_apps.list()] == ["other"]


GOOD = memory_line([{"key": "a", "value": 1}], id="good")


def entry(**fields):
    return memory_line([{"key": "fine", "value": 1}, fields])


@pytest.mark.parametrize(
    ("lines", "line", "key", "problem"),
    [
        ([], 1, None, "it is empty"),
        (["", " "], 3, None, "it is empty"),
        ([GOOD], 1, None, "this is no export"),
        (["[]"], 1, None, "no JSON object"),
        (["\x80\x04K\x01."], 1, None, "no JSON"),
        (['{"agent_gantry_state":"export","version":2}'], 1, None, "newer version of agent-gantry-state (format 2"),
        (['{"agent_gantry_state":"export","version":true}'], 1, None, "this is no export"),
        (['{"agent_gantry_state":"export","version":0}'], 1, None, "an export begins with"),
        (['{"agent_gantry_state":"export","version":1,"x":1}'], 1, None, "an export begins with"),
        ([FIRST], 2, None, "cut off"),
        ([FIRST, GOOD], 3, None, "cut off"),
        ([FIRST, GOOD, '{"end":2}'], 3, None, "not whole"),
        ([FIRST, GOOD, '{"end":1,"x":1}'], 3, None, "not whole"),
        ([FIRST, GOOD, '{"end":1}', GOOD], 4, None, "something follows"),
        ([FIRST, GOOD, GOOD[:40]], 3, None, "no JSON"),
        ([FIRST, GOOD, "{}"], 3, None, "a memory has app, scope, id, owner, keys"),
        ([FIRST, GOOD, memory_line(more=1)], 3, None, "a memory has app, scope, id, owner, keys"),
        ([FIRST, GOOD, memory_line(id="")], 3, None, "must not be empty"),
        ([FIRST, GOOD, memory_line(scope=1)], 3, None, "scope must be a text"),
        ([FIRST, GOOD, memory_line(owner=["ada"])], 3, None, "owner must be a text"),
        ([FIRST, GOOD, memory_line(app={"$bytes": ""})], 3, None, "app must be a text"),
        ([FIRST, GOOD, memory_line().replace("[]", "{}")], 3, None, "keys must be a list"),
        ([FIRST, GOOD, memory_line([1])], 3, None, "keys[0] must be an object"),
        ([FIRST, GOOD, entry(key="a")], 3, None, "keys[1] must be an object"),
        ([FIRST, GOOD, entry(key="a", value=1, ttl=1)], 3, None, "keys[1] must be an object"),
        ([FIRST, GOOD, entry(key=1, value=1)], 3, None, "keys[1].key must be a text"),
        ([FIRST, GOOD, entry(key="fine", value=1)], 3, "fine", "it is there twice"),
        ([FIRST, GOOD, entry(key="a", value={"$x": 1})], 3, "a", "$x is none of"),
        ([FIRST, GOOD, entry(key="a", value=[{"$set": [[]]}])], 3, "a", "at [0][$set]"),
        ([FIRST, GOOD, entry(key="a", value=1, expires_at="soon")], 3, "a", "expires_at must be a number"),
        ([FIRST, GOOD, entry(key="a", value=1, expires_at=True)], 3, "a", "expires_at must be a number"),
        ([FIRST, GOOD, entry(key="a", value=1, slides=5)], 3, "a", "go with expires_at"),
        ([FIRST, GOOD, entry(key="a", value=1, expires_at=5, slides=0)], 3, "a", "slides must be positive"),
        ([FIRST, GOOD, entry(key="\0x", value=1)], 3, "\0x", "none"),
        ([FIRST, GOOD, entry(key="\x009:tool", value=1)], 3, "\x009:tool", "none"),
    ],
)
def test_what_is_no_export_is_refused_by_line_and_key_and_nothing_of_the_line_is_written(
    new_gantry, lines, line, key, problem
):
    gantry = new_gantry("memory://")

    with pytest.raises(ImportRefusedError) as caught:
        gantry.admin.import_(lines)

    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"line {line}")
    assert (caught.value.line, caught.value.key) == (line, key)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert [each.namespace.id for each in gantry.admin.list()] in ([], ["good"])
    if key is not None:
        assert f"key {key!r}" in str(caught.value)


@pytest.mark.parametrize(("begin", "end", "depth"), [('{"$tuple":[', "]}", 25), ("[", "]", 900), ('{"a":', "}", 5000)])
def test_value_that_is_too_deep_for_a_store_is_refused(new_gantry, begin, end, depth):
    value = begin * depth + "1" + end * depth
    line = memory_line([{"key": "a", "value": "HERE"}]).replace('"HERE"', value)
    with pytest.raises(ImportRefusedError, match=r"line 2.*nested too deeply"):
        new_gantry("memory://").admin.import_(export_of(line))


def test_lines_may_be_bytes_with_newlines_and_empty_ones_between(new_gantry):
    gantry = new_gantry("memory://")
    lines = [f"{line}\r\n".encode() for line in export_of(GOOD)]
    assert gantry.admin.import_([*lines[:1], b"\n", *lines[1:], b"\n"]).written == 1


def test_existing_has_to_be_one_of_three(new_gantry):
    admin = new_gantry("memory://").admin
    for ask in (lambda: admin.import_([], existing="keep"), lambda: admin.copy(admin, existing="")):
        with pytest.raises(ValueError, match='"refuse", "skip" or "replace"'):
            ask()


# Copy.


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_copy_carries_everything_from_and_to_each_store(place, new_place, new_gantry, kind):
    source, middle, target = new_gantry(place), new_gantry(new_place(kind)), new_gantry("memory://")
    fill(source)
    seen = []

    there = source.admin.copy(middle.admin, progress=lambda done, total: seen.append((done.memories, total)))
    back = middle.admin.copy(target.admin)

    assert content(target) == content(source)
    assert there.written == back.written == there.memories == len(content(source))
    assert seen == [(n, there.memories) for n in range(there.memories + 1)]
    assert 500 < {each.key: each.ttl for each in target.admin.show(S1).keys}["short"] <= 600


def test_copy_on_an_event_loop_and_again(call, new_gantry):
    gantry, ask = call
    for n in range(3):
        gantry.admin.set(Namespace("session", f"s{n}"), "n", n, ttl=600)
    target = new_gantry("memory://")

    first, second = ask("copy", target.admin), ask("copy", target.admin)

    assert (first.written, second.written, second.unchanged) == (3, 0, 3)


def test_copy_goes_by_what_is_left_and_not_by_the_clock(new_gantry):
    source, target = new_gantry("memory://"), new_gantry("memory://")
    with source.override(clock=lambda: 1000.0), target.override(clock=lambda: 5000.0):
        source.admin.set(S1, "a", 1, ttl=60)
        source.admin.copy(target.admin)
        assert target.admin.get(S1, "a").ttl == 60


def test_copy_of_some(new_gantry):
    source, target = new_gantry("memory://"), new_gantry("memory://")
    fill(source)
    source.admin.copy(target.admin, "session", owner="ada")
    assert [each.namespace for each in target.admin.all_apps.list()] == [Namespace("session", "s1", "default")]


def test_copy_leaves_another_memory_alone(new_gantry):
    source, target = new_gantry("memory://"), new_gantry("memory://")
    source.admin.set(S1, "a", 1)
    target.admin.set(S1, "a", 2)

    with pytest.raises(MemoryExistsError, match="session memory: another one is there already") as caught:
        source.admin.copy(target.admin)
    assert caught.value.line is None
    assert source.admin.copy(target.admin, existing="skip").skipped == 1
    assert target.admin.get(S1, "a").value == 2

    source.admin.copy(target.admin, existing="replace")
    assert target.admin.get(S1, "a").value == 1


@pytest.mark.parametrize("lost", ["value", "order", "owner", "key", "ttl"])
def test_copy_that_is_not_there_as_it_was_written_is_an_error(new_gantry, lost):
    class Lossy(MemoryStore):
        def commit(self, message):
            (change,) = message.changes
            if lost == "value":
                change.puts["a"].value = 2
            elif lost == "order":
                change.puts["a"] = change.puts.pop("a")
            elif lost == "owner":
                change.owner = None
            elif lost == "key":
                del change.puts["b"]
            else:
                change.puts["b"].ttl = 60
            return super().commit(message)

    source = new_gantry("memory://")
    with source.memory("session", session="s1", user="ada") as memory:
        memory["a"] = 1
        memory.set("b", 2, ttl=600)

    with pytest.raises(StoreError, match="what is there now is something else") as caught:
        source.admin.copy(new_gantry(Lossy()).admin)

    assert caught.value.committed is None


def test_memory_that_cannot_be_read_is_an_error_or_left_out_and_told(new_gantry):
    class Damaged(MemoryStore):
        def load(self, message):
            loaded = super().load(message)
            if loaded.snapshots[0].versions and message.namespaces[0] == Namespace("session", "s1", "default"):
                raise CorruptEntryError("key 'a' cannot be read")
            return loaded

    source, target, told = new_gantry(Damaged()), new_gantry("memory://"), []
    for id in ("s0", "s1", "s2"):
        source.admin.set(Namespace("session", id), "a", 1)

    for ask in (lambda: list(source.admin.export()), lambda: source.admin.copy(new_gantry("memory://").admin)):
        with pytest.raises(CorruptEntryError):
            ask()
    done = source.admin.copy(target.admin, on_corrupt=lambda namespace, error: told.append((namespace.id, str(error))))

    assert (done.written, done.corrupt, told) == (2, 1, [("s1", "key 'a' cannot be read")])
    lines = list(source.admin.export(on_corrupt=lambda namespace, error: told.append(namespace.id)))
    assert (lines[-1], told[-1]) == ('{"end":2}', "s1")


def test_copy_to_memcached_works_and_from_it_says_that_it_cannot(new_gantry):
    source, cache = new_gantry("memory://", app="copied"), new_gantry(servers.memcached().url, app="copied")
    with source.memory("session", session="s1", user="ada") as memory:
        memory["a"] = (1,)
        memory.set("b", 2, ttl=600)

    assert source.admin.copy(cache.admin).written == 1

    assert codec.pack(cache.admin.show(S1)["a"]) == codec.pack((1,))
    with pytest.raises(NotListableError):
        cache.admin.copy(source.admin)
