"""Views: what several memories of one call, and calls inside it, make of each other."""

from __future__ import annotations

import contextvars
import gc
from types import SimpleNamespace
from typing import Any

import pytest

from agent_gantry_state import Gantry, MemoryErasedError, UnstorableValueError, merge
from agent_gantry_state.compartments import prefix_of
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.views import View

pytestmark = pytest.mark.once

LAYERS = ("session", "user", "global")


@pytest.fixture
def clock():
    return SimpleNamespace(now=1000.0)


@pytest.fixture
def gantry(clock):
    with Gantry(MemoryStore(clock=lambda: clock.now)) as gantry, gantry.session("s1", user="ada"):
        yield gantry


def run(body, memory):
    return body(memory)


def doing(gantry: Gantry, scope: Any = LAYERS, **options: Any) -> Any:
    """A tool whose body is a function of its memory."""
    return gantry.with_memory(scope=scope, **options)(run)


def private(gantry: Gantry, name: str = "mine", **options: Any) -> Any:
    return gantry.with_memory(private=True, name=name, **options)(run)


def put(gantry: Gantry, scope: str, **values: Any) -> None:
    doing(gantry, scope)(lambda memory: memory.update(values))


def stored(gantry: Gantry, scope: str = "session") -> dict[str, Any]:
    return doing(gantry, scope)(dict)


def both(gantry: Gantry, body: Any) -> None:
    @gantry.with_memory(scope="session")
    @gantry.with_memory(scope=LAYERS, into="layers")
    def do(memory, layers):
        body(memory, layers)

    do()


# When the call has ended.


def test_layers_of_a_call_that_has_ended_are_an_ordinary_dict(gantry):
    put(gantry, "user", a=1)
    put(gantry, "session", a=2)
    do = doing(gantry)

    one, two = do(lambda memory: memory), do(lambda memory: memory)
    del one["a"]
    two["b"] = 1
    two.clear()

    assert one == two == {}


def test_layers_of_a_call_that_failed_are_an_ordinary_dict(gantry):
    put(gantry, "user", a=1)
    put(gantry, "session", a=2)
    kept = []

    with pytest.raises(ZeroDivisionError):
        doing(gantry)(lambda memory: (kept.append(memory), 1 / 0))

    assert kept[0].pop("a") == 2
    assert kept[0] == {}


def test_dicts_that_are_made_with_the_class_of_layers_are_ordinary_ones(gantry):
    def body(memory):
        made = type(memory).fromkeys("ab", 1)
        del made["a"]
        assert (made, made.origin("b"), made.ttl("b")) == ({"b": 1}, "", None)
        made.clear()
        assert made == {}

    doing(gantry)(body)


def test_a_call_with_layers_leaves_nothing_for_the_garbage_collector(gantry):
    do = doing(gantry)
    do(dict)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            do(dict)
        assert not any(isinstance(each, View) for each in gc.get_objects())
    finally:
        gc.enable()


# What one view has written stays written once, whatever becomes of the next.


@pytest.mark.parametrize("nearer", [True, False])
def test_what_was_added_counts_once_though_a_nested_call_was_refused_for_another_memory(gantry, nearer):
    def body(memory, layers):
        one, other = (memory, layers) if nearer else (layers, memory)
        one.add("n")
        one["log"] = [1]
        other["bad"] = object()
        with pytest.raises(UnstorableValueError):
            stored(gantry)
        other["bad"] = 1

    both(gantry, body)

    assert stored(gantry) == {"n": 1, "log": [1], "bad": 1}


def test_the_merge_of_one_nested_call_holds_when_another_one_has_a_compartment(gantry):
    def body(memory):
        doing(gantry, "session", merge={"best": merge.max})(lambda inner: inner.update(best=5))
        private(gantry)(lambda inner: inner.update(x=1))
        with gantry.independent():
            put(gantry, "session", best=9)

    doing(gantry, "session")(body)

    assert stored(gantry) == {"best": 9}


def test_a_nested_call_is_taken_up_as_a_whole_or_not_at_all(gantry):
    @gantry.with_memory(scope="user", into="user")
    @gantry.with_memory(private=True, keys=("k",), name="k", into="own")
    def inner(user, own):
        user["x"] = own["k"] = 1

    def body(memory):
        memory["bad"] = object()
        with pytest.raises(UnstorableValueError):
            inner()
        del memory["bad"]

    doing(gantry, "session")(body)

    assert stored(gantry, "user") == {}


def test_adding_starts_from_what_a_further_scope_holds_now(gantry):
    put(gantry, "user", n=5)

    def body(memory):
        memory.add("n", 2)
        put(gantry, "user", n=10)
        del memory["n"]
        put(gantry, "user", other=1)
        return memory.add("n")

    assert doing(gantry)(body) == 11
    assert stored(gantry) == {"n": 11}


def test_a_nested_call_without_layers_adds_to_what_it_sees(gantry):
    put(gantry, "user", n=5)

    def body(memory):
        memory.add("n", 2)
        assert stored(gantry) == {"n": 7}
        del memory["n"]
        return doing(gantry, "session")(lambda inner: inner.add("n"))

    assert doing(gantry)(body) == 1
    assert stored(gantry) == {"n": 1}


# What a deletion has shown.


def test_what_a_deletion_showed_gets_the_decorator_s_time_to_live_when_it_is_changed(gantry):
    put(gantry, "user", a=[1])
    put(gantry, "session", a=[2])

    def body(memory):
        del memory["a"]
        memory["a"].append(3)

    doing(gantry, ttl=60)(body)

    assert doing(gantry, "session")(lambda memory: (dict(memory), memory.ttl("a"))) == ({"a": [1, 3]}, 60)


def test_a_time_to_live_for_what_a_deletion_showed_copies_it_to_the_nearest_scope(gantry):
    put(gantry, "user", a=1)
    put(gantry, "session", a=2)

    def body(memory):
        del memory["a"]
        memory.expire("a", 60)
        return memory.ttl("a"), memory.origin("a")

    assert doing(gantry)(body) == (60, "session")
    assert doing(gantry, "session")(lambda memory: (dict(memory), memory.ttl("a"))) == ({"a": 1}, 60)


def test_a_key_may_be_deleted_that_a_nested_call_deletes_further_out(gantry):
    put(gantry, "user", a=1)

    def body(memory):
        del memory["a"]
        memory["b"] = 1
        doing(gantry, "user")(lambda inner: inner.pop("a"))
        assert "a" not in memory

    doing(gantry)(body)

    assert (stored(gantry), stored(gantry, "user")) == ({"b": 1}, {})


@pytest.mark.parametrize("deleted", [lambda memory: memory.pop("a"), lambda memory: memory.popitem()])
def test_a_key_may_be_deleted_that_a_nested_call_writes_to_the_nearest_scope(gantry, deleted):
    put(gantry, "user", a=1)

    def body(memory):
        deleted(memory)
        put(gantry, "session", a=2)
        return dict(memory), memory.origin("a")

    assert doing(gantry)(body) == ({"a": 2}, "session")
    assert (stored(gantry), stored(gantry, "user")) == ({"a": 2}, {"a": 1})


@pytest.mark.parametrize("change", [lambda log: log.append(2), lambda log: log.append(object())])
def test_what_was_changed_in_place_is_the_nearest_scope_s_when_it_is_deleted(gantry, change):
    put(gantry, "user", log=[1])

    def body(memory):
        change(memory["log"])
        origin = memory.origin("log")
        del memory["log"]
        return origin, memory["log"], memory.origin("log")

    assert doing(gantry)(body) == ("session", [1], "user")
    assert stored(gantry) == {}


# What a memory begins with.


@pytest.mark.parametrize("of", [doing, private])
def test_a_default_stays_while_nested_calls_write_elsewhere(gantry, of):
    def body(memory):
        seen = memory["n"]
        private(gantry, "another", scope="conversation")(lambda inner: inner.update(x=1))
        seen.append(6)
        return dict(memory)

    with gantry.session("s1", user="ada", conversation="c"):
        assert of(gantry, default={"n": [5]})(body) == {"n": [5, 6]}
        assert of(gantry)(dict) == {"n": [5, 6]}


def test_a_default_that_was_deleted_does_not_come_back_in_the_call(gantry):
    def body(memory):
        del memory["n"]
        private(gantry, "another")(lambda inner: inner.update(x=1))
        return dict(memory)

    assert private(gantry, default={"n": 5})(body) == {}


def test_a_default_is_seen_beside_compartments(gantry):
    private(gantry)(lambda memory: memory.update(x=1))
    do = doing(gantry, "session", default={"n": 5, "m": [6]})

    assert do(dict) == {"n": 5, "m": [6]}
    assert stored(gantry) == {}
    do(lambda memory: memory.add("n"))
    assert stored(gantry) == {"n": 6, "m": [6]}


def test_a_call_that_began_with_a_default_beside_compartments_brings_nothing_back(gantry):
    private(gantry)(lambda memory: memory.update(x=1))

    def body(memory):
        memory["n"] = 6
        gantry.end_session("s1", user="ada")

    with pytest.raises(MemoryErasedError):
        doing(gantry, "session", default={"n": 5})(body)

    assert stored(gantry) == {}


@pytest.mark.parametrize("options", [{"isolation": "serializable"}, {"exclusive": True}])
def test_a_default_beside_compartments_is_written_by_a_call_that_needs_all_unchanged(gantry, options):
    private(gantry)(lambda memory: memory.update(x=1))
    do = doing(gantry, "session", default={"n": 5, "m": 6}, **options)

    do(lambda memory: memory.add("n"))

    assert stored(gantry) == {"n": 6, "m": 6}
    assert private(gantry)(dict) == {"x": 1}


def test_a_default_beside_compartments_restarts_the_time_of_those_that_slide(gantry, clock):
    private(gantry, ttl=60, sliding=True)(lambda memory: memory.update(x=1))
    clock.now += 50

    doing(gantry, "session", default={"n": 5}, ttl=60, sliding=True)(dict)

    clock.now += 50
    assert private(gantry)(dict) == {"x": 1}


@pytest.mark.parametrize("options", [{}, {"scope": ("session", "user")}, {"private": True}])
@pytest.mark.parametrize("beside", ["another key", "a compartment", "both"])
def test_a_default_of_chosen_keys_is_seen_whatever_others_have_written_beside_them(gantry, options, beside):
    if beside != "a compartment":
        doing(gantry, "session")(lambda memory: memory.update(other=1))
    if beside != "another key":
        private(gantry, "another")(lambda memory: memory.update(x=1))
    do = doing(gantry, **{"scope": "session", **options}, keys=("n", "m"), default={"n": 5, "m": [6]})

    assert do(dict) == {"n": 5, "m": [6]}
    do(lambda memory: memory.add("n"))
    assert do(dict) == {"n": 6, "m": [6]}
    if "private" not in options:
        assert stored(gantry) == {**({} if beside == "a compartment" else {"other": 1}), "n": 6, "m": [6]}


def test_a_default_of_chosen_keys_merges_as_from_one_base(gantry):
    doing(gantry, "session")(lambda memory: memory.update(other=1))
    do = doing(gantry, "session", keys=("n", "m"), default={"n": 5, "m": [6]})

    def beside():
        with gantry.session("s1", user="ada"):
            do(lambda memory: memory["m"].append("theirs"))

    def body(memory):
        memory["m"].append("ours")
        memory.add("n")
        contextvars.Context().run(beside)

    do(body)

    assert stored(gantry) == {"other": 1, "n": 6, "m": [6, "theirs", "ours"]}


@pytest.mark.parametrize("options", [{}, {"keys": ("n", "m")}])
def test_a_default_beside_compartments_that_was_changed_is_seen_by_calls_inside(gantry, options):
    private(gantry)(lambda memory: memory.update(x=1))
    do = doing(gantry, "session", default={"n": 5, "m": [6]}, **options)

    def body(memory):
        memory["m"].append(7)
        doing(gantry, "session")(lambda inner: inner.update(other=2, n=inner["n"] + 1))
        return dict(memory)

    assert do(body) == {"n": 6, "m": [6, 7], **({} if options else {"other": 2})}
    assert stored(gantry) == {"n": 6, "m": [6, 7], "other": 2}


# The names of compartments.


def test_a_call_cannot_put_something_into_the_compartment_of_one_inside(gantry):
    seen = []

    def body(memory):
        memory[prefix_of("mine") + "x"] = "forged"
        seen.append(private(gantry)(dict))

    with pytest.raises(UnstorableValueError, match="reserved"):
        doing(gantry, "session")(body)

    assert seen == []


def test_a_reserved_key_is_refused_whatever_follows_and_whatever_its_value(gantry):
    def body(memory):
        memory["\0"] = object()
        stored(gantry)

    with pytest.raises(UnstorableValueError, match="reserved"):
        doing(gantry, "session")(body)


def test_a_key_of_a_context_that_is_no_str_is_refused_when_the_call_ends(gantry):
    @gantry.with_context
    def do(ctx):
        ctx.memory["a"] = 1
        ctx.memory[1] = 2
        ctx.memory["b"] = 3

    with pytest.raises(UnstorableValueError, match="type int"):
        do()


def test_callbacks_are_told_a_key_once_that_is_in_a_compartment_as_well():
    told = []
    with Gantry(on_commit=told.append, session="local") as gantry:

        @gantry.with_memory
        @gantry.with_memory(private=True, into="own", name="t")
        def do(memory, own):
            memory["a"] = own["a"] = 1

        do()

    assert [event.keys for event in told] == [("a",)]


def test_a_compartment_that_appears_between_two_calls_is_not_seen(gantry):
    plain, own = doing(gantry, "session"), private(gantry)
    plain(lambda memory: memory.update(a=1))
    assert plain(dict) == {"a": 1}

    own(lambda memory: memory.update(b=2))

    assert plain(dict) == {"a": 1}
    plain(lambda memory: memory.update(a=3))
    assert (plain(dict), own(dict)) == ({"a": 3}, {"b": 2})


def test_a_context_asked_after_a_nested_call_does_not_give_its_compartment(gantry):
    @gantry.with_context
    def do(ctx):
        private(gantry, scope="user")(lambda inner: inner.update(b=2))
        memory = ctx.scope("user")
        memory["a"] = 1
        return dict(memory)

    assert do() == {"a": 1}
    assert private(gantry, scope="user")(dict) == {"b": 2}


# Beside a context and a session.


def test_a_context_s_memories_and_views_of_one_call_see_each_other_s_writes_in_nested_calls(gantry):
    @gantry.with_context
    @gantry.with_memory(scope=LAYERS)
    @gantry.with_memory(private=True, into="own", name="own")
    def do(ctx, memory, own):
        memory["a"] = 1
        own["a"] = 2
        session, user = ctx.memory, ctx.scope("user")
        session["b"] = 3
        user["c"] = 4
        assert (ctx.memory, ctx.scope("user")) == (session, user)
        assert stored(gantry) == {"a": 1, "b": 3}
        return dict(memory), dict(own), dict(session), dict(user)

    assert do() == ({"c": 4, "a": 1, "b": 3}, {"a": 2}, {"b": 3, "a": 1}, {"c": 4})
    assert (stored(gantry), stored(gantry, "user")) == ({"a": 1, "b": 3}, {"c": 4})


def test_a_session_and_views_of_one_call_see_each_other_s_writes(gantry):
    put(gantry, "session", log=[0])

    @gantry.with_session
    @gantry.with_memory(scope=LAYERS)
    @gantry.with_memory(private=True, into="own", name="own")
    def do(session, memory, own):
        memory["a"] = own["a"] = 1
        assert session.keys() == ["log", "a"]
        session.set("b", 3)
        assert memory["b"] == 3
        log = memory["log"]
        log.append(1)
        session.get("log").append(2)
        log.append(3)
        session.add("n", 2)
        assert memory.add("n", 3) == session.get("n") == 5
        assert session.delete("b")
        assert "b" not in memory

    do()

    assert stored(gantry) == {"log": [0, 1, 2, 3], "a": 1, "n": 5}
