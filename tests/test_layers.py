"""Layers: one memory over several scopes, of which the nearest is written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from agent_gantry_state import (
    DeclarationError,
    FurtherScopeError,
    Gantry,
    Memory,
    MemoryConflictError,
    MissingIdentityError,
    ReadOnlyMemoryError,
    SessionOwnerError,
    UndeclaredKeyError,
    merge,
)
from agent_gantry_state.pytest_plugin import Clock
from agent_gantry_state.stores.memory import MemoryStore

pytestmark = pytest.mark.once

LAYERS = ("session", "user", "global")


@pytest.fixture
def clock():
    return Clock(1000.0)


@pytest.fixture
def gantry(clock):
    with Gantry(MemoryStore(clock=clock)) as gantry, gantry.session("s1", user="ada"):
        yield gantry


def doing(gantry: Gantry, scope: Any = LAYERS, **options: Any) -> Callable[..., Any]:
    """A tool whose body is a function of its memory."""

    @gantry.with_memory(scope=scope, **options)
    def do(body: Callable[[Memory], Any], memory: Memory) -> Any:
        return body(memory)

    return do


def put(gantry: Gantry, scope: str, **values: Any) -> None:
    doing(gantry, scope)(lambda memory: memory.update(values))


def stored(gantry: Gantry, scope: str) -> dict[str, Any]:
    return doing(gantry, scope)(dict)


# Reading.


def test_reads_fall_through_to_the_next_scope_that_has_the_key(gantry):
    put(gantry, "global", a=1, b=1, c=1)
    put(gantry, "user", b=2, c=2)
    put(gantry, "session", c=3)

    seen = doing(gantry)(lambda memory: (dict(memory), [memory.origin(key) for key in "abc"], len(memory), list(memory)))

    assert seen == ({"a": 1, "b": 2, "c": 3}, ["global", "user", "session"], 3, ["a", "b", "c"])


def test_every_way_to_read_sees_all_layers(gantry):
    put(gantry, "global", a=[1])
    put(gantry, "session", b=2)

    def read(memory):
        assert memory["a"] == [1]
        assert memory.get("a") == [1]
        assert "a" in memory
        assert memory == {"a": [1], "b": 2}
        assert {**memory} == dict(memory.items()) == memory.copy() == {"a": [1], "b": 2}
        assert memory.setdefault("a", 9) == [1]
        assert memory | {"c": 3} == {"a": [1], "b": 2, "c": 3}
        assert list(reversed(memory)) == ["b", "a"]

    doing(gantry)(read)

    assert stored(gantry, "session") == {"b": 2}


def test_the_origin_of_a_missing_key_is_a_key_error(gantry):
    with pytest.raises(KeyError):
        doing(gantry)(lambda memory: memory.origin("nowhere"))


def test_the_origin_in_a_memory_without_layers_is_its_scope(gantry):
    put(gantry, "user", a=1)

    assert doing(gantry, "user")(lambda memory: memory.origin("a")) == "user"


def test_the_origin_of_what_was_just_assigned_is_the_nearest_scope(gantry):
    put(gantry, "user", a=1)

    def assign(memory):
        before = memory.origin("a")
        memory["a"] = 2
        return before, memory.origin("a")

    assert doing(gantry)(assign) == ("user", "session")


# Writing.


def change_by_item(memory):
    memory["a"] = 2


def change_by_or(memory):
    memory |= {"a": 2}


@pytest.mark.parametrize(
    "write",
    [
        change_by_item,
        change_by_or,
        lambda memory: memory.update(a=2),
        lambda memory: memory.set("a", 2),
        lambda memory: memory.add("a", 1),
        lambda memory: dict.__setitem__(memory, "a", 2) or dict.__setitem__(memory, "b", 3),
    ],
    ids=["item", "ior", "update", "set", "add", "behind"],
)
def test_a_write_goes_to_the_nearest_scope(gantry, write):
    put(gantry, "user", a=1)
    put(gantry, "global", a=0)

    doing(gantry)(write)

    assert stored(gantry, "session")["a"] == 2
    assert stored(gantry, "user") == {"a": 1}
    assert stored(gantry, "global") == {"a": 0}


def test_a_change_in_place_of_what_came_from_further_out_goes_to_the_nearest_scope(gantry):
    put(gantry, "user", plan={"steps": [1]})

    doing(gantry)(lambda memory: memory["plan"]["steps"].append(2))

    assert stored(gantry, "session") == {"plan": {"steps": [1, 2]}}
    assert stored(gantry, "user") == {"plan": {"steps": [1]}}


@pytest.mark.parametrize("ttl", [None, 60.0])
def test_assigning_the_value_that_was_seen_is_no_change(gantry, ttl):
    put(gantry, "user", a=1, b=[1])

    def same(memory):
        memory["a"] = 1
        memory["b"] = [1]

    doing(gantry, ttl=ttl)(same)

    assert stored(gantry, "session") == {}


def test_a_body_that_only_reads_writes_nothing(gantry):
    put(gantry, "user", a=1, b=[1])

    doing(gantry)(lambda memory: memory["b"])

    assert stored(gantry, "session") == {}


def test_what_a_tool_wrote_shadows_the_further_scope_from_then_on(gantry):
    put(gantry, "user", a=1)

    doing(gantry)(change_by_item)

    assert doing(gantry)(lambda memory: (memory["a"], memory.origin("a"))) == (2, "session")


def test_a_failing_body_changes_no_layer(gantry):
    put(gantry, "user", a=[1])

    def fail(memory):
        memory["a"].append(2)
        memory["b"] = 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        doing(gantry)(fail)

    assert (stored(gantry, "session"), stored(gantry, "user")) == ({}, {"a": [1]})


# Deleting.


def test_deleting_the_nearest_shows_the_next(gantry):
    put(gantry, "global", a=[0])
    put(gantry, "user", a=[1])
    put(gantry, "session", a=[2])

    def delete(memory):
        del memory["a"]
        return memory["a"], memory.origin("a")

    assert doing(gantry)(delete) == ([1], "user")
    assert stored(gantry, "session") == {}
    assert doing(gantry)(lambda memory: memory["a"]) == [1]


@pytest.mark.parametrize("other", [1, 2])
def test_pop_gives_the_nearest_value_and_shows_the_next(gantry, other):
    put(gantry, "user", a=other)
    put(gantry, "session", a=2)

    assert doing(gantry)(lambda memory: (memory.pop("a"), memory.get("a"))) == (2, other)
    assert stored(gantry, "session") == {}
    assert stored(gantry, "user") == {"a": other}


def test_a_change_in_place_of_what_a_deletion_showed_goes_to_the_nearest_scope(gantry):
    put(gantry, "user", a=[1])
    put(gantry, "session", a=[2])

    def delete(memory):
        del memory["a"]
        memory["a"].append(3)

    doing(gantry)(delete)

    assert stored(gantry, "session") == {"a": [1, 3]}
    assert stored(gantry, "user") == {"a": [1]}


def drop(memory):
    del memory["a"]


@pytest.mark.parametrize(
    "delete",
    [drop, lambda memory: memory.pop("a"), lambda memory: memory.popitem(), lambda memory: dict.clear(memory)],
    ids=["del", "pop", "popitem", "behind"],
)
def test_deleting_a_key_that_only_a_further_scope_holds_is_refused_at_commit(gantry, delete):
    put(gantry, "user", a=1)

    def both(memory):
        delete(memory)
        assert "a" not in memory
        memory["b"] = 2

    with pytest.raises(FurtherScopeError, match=r"'a'.*user") as caught:
        doing(gantry)(both)

    assert (caught.value.key, caught.value.scope, caught.value.committed) == ("a", "user", False)
    assert stored(gantry, "session") == {}
    assert stored(gantry, "user") == {"a": 1}


def test_deleting_twice_is_refused_for_the_further_scope(gantry):
    put(gantry, "user", a=1)
    put(gantry, "session", a=2)

    with pytest.raises(FurtherScopeError):
        doing(gantry)(lambda memory: (memory.pop("a"), memory.pop("a")))

    assert stored(gantry, "session") == {"a": 2}


def test_a_deletion_that_the_body_takes_back_is_none(gantry):
    put(gantry, "user", a=1)

    def replace(memory):
        memory["a"] = memory.pop("a") + 1

    doing(gantry)(replace)

    assert stored(gantry, "session") == {"a": 2}


def test_clear_empties_the_nearest_scope_and_shows_the_others(gantry):
    put(gantry, "user", a=1, b=1)
    put(gantry, "session", b=2, c=2)

    def clear(memory):
        memory.clear()
        return dict(memory)

    assert doing(gantry)(clear) == {"a": 1, "b": 1}
    assert stored(gantry, "session") == {}
    assert stored(gantry, "user") == {"a": 1, "b": 1}


def test_a_key_that_was_made_and_deleted_again_is_no_change(gantry):
    def both(memory):
        memory["a"] = 1
        del memory["a"]

    doing(gantry)(both)

    assert stored(gantry, "session") == {}


# Times to live.


def test_a_time_to_live_is_the_nearest_scope_s_own(gantry, clock):
    put(gantry, "user", a=1)

    doing(gantry)(lambda memory: memory.set("a", 2, ttl=60))

    assert doing(gantry)(lambda memory: (memory["a"], memory.ttl("a"))) == (2, 60)
    clock.now += 60
    assert doing(gantry)(lambda memory: (memory["a"], memory.ttl("a"), memory.origin("a"))) == (1, None, "user")


def test_expire_of_what_came_from_further_out_copies_it_to_the_nearest_scope(gantry, clock):
    put(gantry, "user", a=[1])

    doing(gantry)(lambda memory: memory.expire("a", 60))

    assert doing(gantry, "session")(lambda memory: (dict(memory), memory.ttl("a"))) == ({"a": [1]}, 60)
    assert doing(gantry, "user")(lambda memory: memory.ttl("a")) is None


def test_ttl_tells_what_the_scope_says_from_which_the_key_comes(gantry, clock):
    doing(gantry, "user")(lambda memory: memory.set("a", 1, ttl=60))
    clock.now += 10

    assert doing(gantry)(lambda memory: memory.ttl("a")) == 50


def test_the_decorator_s_ttl_is_for_what_is_written(gantry, clock):
    put(gantry, "user", a=1)

    doing(gantry, ttl=60)(change_by_item)

    assert doing(gantry, "session")(lambda memory: memory.ttl("a")) == 60


def test_reading_restarts_the_time_of_a_further_scope_that_slides(clock):
    from agent_gantry_state import Scope

    with Gantry(MemoryStore(clock=clock), scopes={"user": Scope(ttl=100, sliding=True)}) as gantry:
        with gantry.session("s1", user="ada"):
            put(gantry, "user", a=1)
            clock.now += 60
            doing(gantry)(lambda memory: memory["a"])
            clock.now += 60

            assert stored(gantry, "user") == {"a": 1}


# Counting and merging.


def test_add_starts_from_what_a_further_scope_holds(gantry):
    put(gantry, "user", n=5)

    assert doing(gantry)(lambda memory: memory.add("n", 2)) == 7
    assert stored(gantry, "session") == {"n": 7}


def meanwhile(gantry: Gantry, body: Callable[[Memory], Any], other: Callable[[], Any], **options: Any) -> None:
    """Run a tool over the layers during whose body another call commits."""

    def both(memory):
        body(memory)
        with gantry.independent():
            other()

    doing(gantry, **options)(both)


@pytest.mark.parametrize(
    ("theirs", "expected"), [(lambda memory: memory.add("n", 10), 11 + 5), (lambda memory: memory.set("n", 100), 101)]
)
def test_additions_of_parallel_calls_all_count(gantry, theirs, expected):
    put(gantry, "user", n=5)

    meanwhile(gantry, lambda memory: memory.add("n"), lambda: doing(gantry)(theirs))

    assert stored(gantry, "session") == {"n": expected}


def test_the_base_of_a_merge_is_the_value_that_was_read_wherever_from(gantry):
    put(gantry, "user", log=["a", "b"])

    meanwhile(
        gantry,
        lambda memory: memory["log"].append("mine"),
        lambda: doing(gantry)(lambda memory: memory["log"].append("theirs")),
    )

    assert stored(gantry, "session") == {"log": ["a", "b", "theirs", "mine"]}
    assert stored(gantry, "user") == {"log": ["a", "b"]}


def test_both_overriding_a_further_value_differently_is_a_conflict(gantry):
    put(gantry, "user", a=1)

    with pytest.raises(MemoryConflictError, match="session memory: key 'a'") as caught:
        meanwhile(gantry, lambda memory: memory.set("a", 2), lambda: put(gantry, "session", a=3))

    assert caught.value.by_scope == {"session": ("a",)}


def test_a_declared_merge_is_used_for_the_nearest_scope(gantry):
    put(gantry, "user", best=5)

    meanwhile(
        gantry,
        lambda memory: memory.set("best", 7),
        lambda: put(gantry, "session", best=9),
        merge={"best": merge.max},
    )

    assert stored(gantry, "session") == {"best": 9}


def test_a_change_of_a_further_scope_is_no_conflict(gantry):
    put(gantry, "user", a=1)

    meanwhile(gantry, lambda memory: memory.set("a", 2), lambda: put(gantry, "user", a=7))

    assert (stored(gantry, "session"), stored(gantry, "user")) == ({"a": 2}, {"a": 7})


@pytest.mark.parametrize("options", [{"isolation": "serializable"}, {"exclusive": True}])
def test_a_serializable_call_needs_all_layers_unchanged(gantry, options):
    put(gantry, "user", a=1)

    with pytest.raises(MemoryConflictError, match="user memory"):
        meanwhile(gantry, lambda memory: memory.set("b", memory["a"]), lambda: put(gantry, "user", a=7), **options)

    assert stored(gantry, "session") == {}


def test_a_conflict_runs_the_body_again_if_asked_for(gantry):
    put(gantry, "user", a=1)
    runs = []

    def body(memory):
        runs.append(dict(memory))
        memory["a"] += 1
        if len(runs) == 1:
            with gantry.independent():
                put(gantry, "session", a=10)

    doing(gantry, on_conflict="retry")(body)

    assert runs == [{"a": 1}, {"a": 10}]
    assert stored(gantry, "session") == {"a": 11}


# The rest of the decorator over layers.


def test_keys_hold_for_every_layer(gantry):
    put(gantry, "user", a=1, hidden=1)
    put(gantry, "session", b=2, hidden=2)
    do = doing(gantry, keys=("a", "b", "c"))

    assert do(dict) == {"a": 1, "b": 2}
    do(lambda memory: memory.update(a=3, c=4))

    assert stored(gantry, "session") == {"b": 2, "hidden": 2, "a": 3, "c": 4}
    with pytest.raises(UndeclaredKeyError, match="'hidden'"):
        do(lambda memory: memory.update(hidden=5))


def test_read_only_layers_refuse_a_write_and_name_the_key(gantry):
    put(gantry, "user", a=[1])

    with pytest.raises(ReadOnlyMemoryError, match=r"read-only.*'a'"):
        doing(gantry, read_only=True)(lambda memory: memory["a"].append(2))

    assert stored(gantry, "session") == {}


def test_a_default_is_seen_where_no_scope_holds_anything(gantry):
    do = doing(gantry, default={"a": 1, "b": [1]})

    assert do(lambda memory: (dict(memory), memory.origin("a"))) == ({"a": 1, "b": [1]}, None)
    assert stored(gantry, "session") == {}
    do(lambda memory: memory["b"].append(2))
    assert stored(gantry, "session") == {"a": 1, "b": [1, 2]}


def test_a_default_is_not_seen_where_a_further_scope_holds_something(gantry):
    put(gantry, "user", c=1)

    assert doing(gantry, default={"a": 1})(dict) == {"c": 1}


def test_one_unknown_identity_is_an_error_and_no_skipped_layer(clock):
    with Gantry() as gantry, gantry.session("s1"):
        with pytest.raises(MissingIdentityError, match="no user"):
            doing(gantry)(dict)


def test_a_layer_of_somebody_else_is_refused(gantry):
    put(gantry, "session", a=1)

    with gantry.session("s1", user="bob"), pytest.raises(SessionOwnerError):
        doing(gantry, ("user", "session"))(dict)


def test_reading_a_session_as_a_further_layer_does_not_bind_it(gantry):
    doing(gantry, ("user", "session"))(lambda memory: memory.set("a", 1))

    with gantry.session("s1", user="bob"):
        put(gantry, "session", b=2)


def test_a_single_scope_in_a_tuple_is_that_scope(gantry):
    put(gantry, "user", a=1)

    assert doing(gantry, ("user",))(dict) == {"a": 1}


@pytest.mark.parametrize(
    ("scope", "words"),
    [
        ((), "at least one"),
        (("session", "session"), "'session' twice"),
        (("session", ""), "not be empty"),
        (("session", 1), "must be a str, not int"),
        ({"session"}, "must be a str, not set"),
    ],
)
def test_layers_that_make_no_sense_are_refused_at_decoration(gantry, scope, words):
    with pytest.raises(DeclarationError, match=words):
        doing(gantry, scope)


def test_two_layers_in_one_namespace_are_one(clock):
    from agent_gantry_state import Namespace

    with Gantry(resolvers=[lambda request: Namespace("team", "red") if request.scope in ("a", "b") else None]) as gantry:
        doing(gantry, ("a", "b"))(lambda memory: memory.update(x=1))

        assert doing(gantry, ("b", "a"))(lambda memory: (dict(memory), memory.pop("x"), dict(memory))) == ({"x": 1}, 1, {})


# Layers in different stores.


def test_layers_may_be_kept_in_different_stores(tmp_path):
    with Gantry(scopes={"user": f"sqlite:///{tmp_path}/users.db"}) as gantry, gantry.session("s1", user="ada"):
        put(gantry, "user", log=[1])

        doing(gantry)(lambda memory: memory["log"].append(2))

        assert doing(gantry)(lambda memory: (dict(memory), memory.origin("log"))) == ({"log": [1, 2]}, "session")
        assert stored(gantry, "user") == {"log": [1]}
    with Gantry(scopes={"user": f"sqlite:///{tmp_path}/users.db"}) as again, again.session("s1", user="ada"):
        assert doing(again)(dict) == {"log": [1]}


@pytest.mark.parametrize("options", [{"isolation": "serializable"}, {"exclusive": True}])
def test_serializable_layers_in_two_stores_are_refused_at_decoration(options):
    with Gantry(scopes={"user": MemoryStore()}) as gantry:
        with pytest.raises(DeclarationError, match="'session' and 'user' are kept in different stores"):
            doing(gantry, **options)
        doing(gantry, ("session", "global"), **options)


# Beside other memories of the same call.


def both(gantry: Gantry, body: Callable[[Memory, Memory], Any], **options: Any) -> Any:
    @gantry.with_memory(scope="session", **options)
    @gantry.with_memory(scope=LAYERS, into="layers")
    def do(memory: Memory, layers: Memory) -> Any:
        return body(memory, layers)

    return do()


def test_a_scope_may_be_a_memory_and_a_layer_of_one_call(gantry):
    put(gantry, "user", a=1)

    both(gantry, lambda memory, layers: (memory.update(b=2), layers.update(a=3)))

    assert stored(gantry, "session") == {"b": 2, "a": 3}


def test_what_two_memories_of_a_call_write_to_one_scope_is_merged(gantry):
    put(gantry, "session", log=[0])

    both(gantry, lambda memory, layers: (memory["log"].append(1), layers["log"].append(2)))

    assert stored(gantry, "session") == {"log": [0, 1, 2]}


def test_what_two_memories_of_a_call_write_to_one_key_conflicts(gantry):
    with pytest.raises(MemoryConflictError, match="'a'"):
        both(gantry, lambda memory, layers: (memory.update(a=1), layers.update(a=2)))

    assert stored(gantry, "session") == {}


def test_a_read_only_memory_does_not_forbid_the_layers_to_write(gantry):
    both(gantry, lambda memory, layers: layers.update(a=1), read_only=True)

    assert stored(gantry, "session") == {"a": 1}
    with pytest.raises(ReadOnlyMemoryError):
        both(gantry, lambda memory, layers: memory.update(a=2), read_only=True)


# Nested calls.


def test_a_nested_call_sees_what_was_written_to_the_layers(gantry):
    put(gantry, "user", a=1)

    def outer(memory):
        memory["a"] = 2
        return stored(gantry, "session"), stored(gantry, "user")

    assert doing(gantry)(outer) == ({"a": 2}, {"a": 1})


@pytest.mark.parametrize("scope", ["session", "user", "global"])
def test_what_a_nested_call_writes_is_seen_in_the_layers_and_inside_their_containers(gantry, scope):
    put(gantry, scope, log=[1])

    def outer(memory):
        log = memory["log"]
        doing(gantry, scope)(lambda inner: (inner["log"].append(2), inner.update(new=1)))
        return log, memory["new"], memory.origin("new")

    assert doing(gantry)(outer) == ([1, 2], 1, scope)
    assert stored(gantry, scope) == {"log": [1, 2], "new": 1}


def test_layers_inside_layers_are_one_unit_of_work(gantry):
    put(gantry, "user", log=[1])

    def outer(memory):
        memory["log"].append(2)
        doing(gantry)(lambda inner: inner["log"].append(3))
        memory["log"].append(4)
        return list(memory["log"])

    assert doing(gantry)(outer) == [1, 2, 3, 4]
    assert (stored(gantry, "session"), stored(gantry, "user")) == ({"log": [1, 2, 3, 4]}, {"log": [1]})


def test_a_failing_nested_call_undoes_only_its_own(gantry):
    put(gantry, "user", a=1)

    def outer(memory):
        memory["b"] = 1

        def fail(inner):
            inner["a"] = 9
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            doing(gantry)(fail)
        return dict(memory)

    assert doing(gantry)(outer) == {"a": 1, "b": 1}
    assert stored(gantry, "session") == {"b": 1}


def test_a_deletion_of_a_further_key_stays_one_across_a_nested_call(gantry):
    put(gantry, "user", a=1)

    def outer(memory):
        del memory["a"]
        doing(gantry, "session")(lambda inner: inner.update(b=1))
        assert "a" not in memory

    with pytest.raises(FurtherScopeError):
        doing(gantry)(outer)

    assert stored(gantry, "session") == {}


def test_a_nested_merge_starts_from_what_the_further_scope_held(gantry):
    put(gantry, "user", log=[1])

    def outer(memory):
        doing(gantry)(lambda inner: inner["log"].append(2))
        with gantry.independent():
            doing(gantry)(lambda other: other["log"].append(3))

    doing(gantry, "session")(outer)

    assert stored(gantry, "session") == {"log": [1, 3, 2]}


# Async tools.


@pytest.mark.anyio
async def test_parallel_async_calls_over_layers_are_merged(gantry):
    put(gantry, "user", log=[0])
    ready = anyio.Event()

    @gantry.with_memory(scope=LAYERS)
    async def append(item: int, memory: dict) -> None:
        memory["log"].append(item)
        if item == 2:
            ready.set()
        await ready.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(append, 1)
        group.start_soon(append, 2)

    assert sorted(stored(gantry, "session")["log"]) == [0, 1, 2]
    assert stored(gantry, "user") == {"log": [0]}


@pytest.mark.anyio
async def test_a_cancelled_async_call_changes_no_layer(gantry):
    put(gantry, "user", log=[0])

    @gantry.with_memory(scope=LAYERS)
    async def append(memory: dict) -> None:
        memory["log"].append(1)
        await anyio.sleep_forever()

    with anyio.move_on_after(0.01):
        await append()

    assert (stored(gantry, "session"), stored(gantry, "user")) == ({}, {"log": [0]})
