"""`private=True`: a compartment of a namespace that only one tool sees."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import sqlite3
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from agent_gantry_state import (
    AgentGantry,
    CorruptEntryError,
    DeclarationError,
    Gantry,
    Memory,
    MemoryConflictError,
    MemoryErasedError,
    ReadOnlyMemoryError,
    SessionOwnerError,
    SyncExecutionContext,
    SyncSession,
    UndeclaredKeyError,
    UnstorableValueError,
)
from agent_gantry_state.compartments import has_reserved, is_reserved, known_as, prefix_of
from agent_gantry_state.pytest_plugin import Clock
from agent_gantry_state.stores.memory import MemoryStore

pytestmark = pytest.mark.once

NUL_KEY = "\0" + "1:aprivate"


@pytest.fixture
def clock():
    return Clock(1000.0)


@pytest.fixture
def gantry(clock):
    with Gantry(MemoryStore(clock=clock)) as gantry, gantry.session("s1", user="ada"):
        yield gantry


def doing(
    gantry: Gantry, name: str = "mine", scope: Any = "session", private: bool = True, **options: Any
) -> Callable[..., Any]:
    @gantry.with_memory(scope=scope, private=private, name=name, **options)
    def do(body: Callable[[Memory], Any], memory: Memory) -> Any:
        return body(memory)

    def call(body: Callable[[Memory], Any]) -> Any:
        # Whatever has this name is to be the same tool.
        gantry._wiring._names.pop(name, None)
        return do(body)

    return call


def public(gantry: Gantry, scope: str = "session") -> Callable[..., Any]:
    return doing(gantry, "public", scope, private=False)


@pytest.mark.parametrize("value", [dt.date(2024, 2, 29), decimal.Decimal("1.5"), 1.5, (1,), b"x", [1]], ids=repr)
def test_whatever_a_compartment_holds_the_rest_of_the_memory_is_there(gantry, value):
    doing(gantry)(lambda memory: memory.update(a=value))

    public(gantry)(lambda memory: memory.update(b=value))

    assert public(gantry)(dict) == {"b": value}
    assert doing(gantry)(dict) == {"a": value}
    with gantry.memory() as memory:
        assert memory == {"b": value}


def test_each_tool_has_a_memory_of_its_own_in_one_session(gantry):
    one, two = doing(gantry, "one"), doing(gantry, "two")

    one(lambda memory: memory.update(a=1))
    two(lambda memory: memory.update(a=[2]))

    assert one(lambda memory: (dict(memory), memory.origin("a"))) == ({"a": 1}, "session")
    assert two(dict) == {"a": [2]}


def test_each_session_has_its_own(gantry):
    one = doing(gantry)
    one(lambda memory: memory.update(a=1))

    with gantry.session("s2", user="ada"):
        assert one(dict) == {}


def test_other_tools_do_not_see_it(gantry):
    public(gantry)(lambda memory: memory.update(b=2))
    doing(gantry)(lambda memory: memory.update(a=1))

    assert public(gantry)(lambda memory: (dict(memory), len(memory), "a" in memory)) == ({"b": 2}, 1, False)
    with gantry.memory() as memory:
        assert memory == {"b": 2}

    @gantry.with_context
    def context(ctx: SyncExecutionContext) -> Any:
        return dict(ctx.memory), dict(ctx.scope("session"))

    @gantry.with_session
    def keys(session: SyncSession) -> Any:
        return session.keys()

    @gantry.with_memory(scope=("user", "session"))
    def layers(memory: dict) -> Any:
        return dict(memory)

    assert context() == ({"b": 2}, {"b": 2})
    assert keys() == ["b"]
    assert layers() == {"b": 2}


@pytest.mark.parametrize("options", [{}, {"keys": ("secret", "more")}])
@pytest.mark.parametrize("order", [1, -1])
def test_keys_of_a_session_are_without_it_also_beside_it(gantry, options, order):
    public(gantry)(lambda memory: memory.update(a=1))

    @gantry.with_session
    def inner(session: SyncSession) -> Any:
        return session.keys()

    def body(own: Memory, session: SyncSession) -> Any:
        before = session.keys(), inner()
        own["secret"] = 1
        return *before, session.keys(), inner()

    for decorate in [gantry.with_session, gantry.with_memory(private=True, name="mine", into="own", **options)][::order]:
        body = decorate(body)

    for _ in range(2):
        assert body() == (["a"],) * 4


@pytest.mark.parametrize("scope", ["session", "user"])
def test_keys_of_a_session_are_without_it_in_a_call_that_has_one(gantry, scope):
    doing(gantry, "mine")(lambda memory: memory.update(secret=1))
    public(gantry)(lambda memory: memory.update(a=1))

    @gantry.with_session
    def inner(session: SyncSession) -> Any:
        return session.keys()

    def outer(memory: Memory) -> Any:
        before = inner()
        doing(gantry, "mine")(lambda own: own.update(more=2))
        return before, inner()

    assert public(gantry, scope)(outer) == (["a"], ["a"])


def test_other_tools_write_beside_it(gantry):
    doing(gantry)(lambda memory: memory.update(a=1))

    public(gantry)(lambda memory: memory.update(b=2, c=[3]))
    public(gantry)(lambda memory: (memory["c"].append(4), memory.pop("b")))

    assert public(gantry)(dict) == {"c": [3, 4]}
    assert doing(gantry)(dict) == {"a": 1}


def test_clear_of_the_session_leaves_it(gantry):
    doing(gantry)(lambda memory: memory.update(a=1))
    public(gantry)(lambda memory: memory.update(b=1))

    public(gantry)(lambda memory: memory.clear())

    assert (public(gantry)(dict), doing(gantry)(dict)) == ({}, {"a": 1})


def test_clear_of_a_compartment_leaves_the_rest(gantry):
    doing(gantry)(lambda memory: memory.update(a=1))
    public(gantry)(lambda memory: memory.update(b=1))

    doing(gantry)(lambda memory: memory.clear())

    assert (public(gantry)(dict), doing(gantry)(dict)) == ({"b": 1}, {})


@pytest.mark.parametrize("key", [NUL_KEY, "\0", "\0\0"])
def test_keys_of_compartments_cannot_be_reached_by_their_stored_names(gantry, key):
    doing(gantry, "a")(lambda memory: memory.update(private=1))

    @gantry.with_session
    def get(session: SyncSession) -> Any:
        return session.get(key)

    @gantry.with_session
    def set_(session: SyncSession) -> Any:
        session.set(key, 2)

    for reach in (get, set_, lambda: public(gantry)(lambda memory: memory.update({key: 2}))):
        with pytest.raises(UnstorableValueError, match="reserved"):
            reach()
    with pytest.raises(UnstorableValueError, match="reserved"):
        public(gantry)(lambda memory: dict.__setitem__(memory, key, 2))
    with pytest.raises(DeclarationError, match="reserved"):
        gantry.with_memory(keys=(key,))
    with pytest.raises(DeclarationError, match="reserved"):
        gantry.with_memory(default={key: 1})
    assert public(gantry)(lambda memory: memory.pop(key, None)) is None
    assert doing(gantry, "a")(dict) == {"private": 1}


def test_erasing_the_session_erases_it(gantry):
    doing(gantry)(lambda memory: memory.update(a=1))

    gantry.end_session("s1")

    assert doing(gantry)(dict) == {}


def test_a_call_whose_session_was_erased_brings_nothing_back(gantry):
    doing(gantry)(lambda memory: memory.update(a=1))

    def body(memory):
        memory["a"] = 2
        gantry.end_session("s1")

    with pytest.raises(MemoryErasedError):
        doing(gantry)(body)

    assert doing(gantry)(dict) == {}


def test_the_session_s_owner_holds_for_it(gantry):
    doing(gantry)(lambda memory: memory.update(a=1))

    with gantry.session("s1", user="bob"):
        for tool in (doing(gantry), public(gantry)):
            with pytest.raises(SessionOwnerError):
                tool(dict)


def test_parallel_calls_are_merged_and_conflicts_name_the_key_as_the_tool_knows_it(gantry):
    do = doing(gantry)
    do(lambda memory: memory.update(log=[0], plan="x"))

    def append(memory):
        memory["log"].append(1)
        with gantry.independent():
            do(lambda other: other["log"].append(2))

    do(append)
    assert do(dict) == {"log": [0, 2, 1], "plan": "x"}

    def conflict(memory):
        memory["plan"] = "y"
        with gantry.independent():
            do(lambda other: other.update(plan="z"))

    with pytest.raises(MemoryConflictError, match="session memory: key 'plan' was") as caught:
        do(conflict)
    assert caught.value.by_scope == {"session": ("plan",)}


def test_two_tools_compartments_do_not_conflict(gantry):
    def body(memory):
        memory["a"] = 1
        with gantry.independent():
            doing(gantry, "two")(lambda other: other.update(a=2))

    doing(gantry, "one")(body)

    assert (doing(gantry, "one")(dict), doing(gantry, "two")(dict)) == ({"a": 1}, {"a": 2})


def test_declared_merges_hold_in_it(gantry):
    from agent_gantry_state import merge

    do = doing(gantry, merge={"best": merge.max})

    def body(memory):
        memory["best"] = 5
        with gantry.independent():
            do(lambda other: other.update(best=9))

    do(body)

    assert do(dict) == {"best": 9}


def test_add_counts_all(gantry):
    do = doing(gantry)

    def body(memory):
        memory.add("n")
        with gantry.independent():
            do(lambda other: other.add("n", 10))

    do(body)

    assert do(dict) == {"n": 11}


def test_times_to_live_hold_in_it(gantry, clock):
    do = doing(gantry, ttl=60)
    do(lambda memory: (memory.update(a=1), memory.set("b", 2, ttl=10)))

    assert do(lambda memory: (memory.ttl("a"), memory.ttl("b"))) == (60, 10)
    clock.now += 10
    assert do(dict) == {"a": 1}
    clock.now += 50
    assert do(dict) == {}


def test_a_sliding_time_to_live_is_restarted_by_use(gantry, clock):
    do = doing(gantry, ttl=60, sliding=True)
    do(lambda memory: memory.update(a=1))
    for _ in range(3):
        clock.now += 50
        assert do(dict) == {"a": 1}


@pytest.mark.parametrize("view", [{"private": True, "name": "mine"}, {"private": False, "scope": ("session", "user")}])
def test_a_key_that_slides_says_what_it_has_left(gantry, clock, view):
    slides = doing(gantry, ttl=60, sliding=True, **view)
    slides(lambda memory: memory.update(a=1))
    clock.now += 50

    assert doing(gantry, **view)(lambda memory: memory.ttl("a")) == 10
    slides(dict)
    assert doing(gantry, **view)(lambda memory: memory.ttl("a")) == 60


def test_keys_read_only_and_default_hold_in_it(gantry):
    do = doing(gantry, keys=("a", "b"), default={"a": [1]})
    assert do(dict) == {"a": [1]}
    do(lambda memory: memory["a"].append(2))
    assert do(dict) == {"a": [1, 2]}
    with pytest.raises(UndeclaredKeyError, match="'c'"):
        do(lambda memory: memory.update(c=1))
    with pytest.raises(ReadOnlyMemoryError, match="'a'"):
        doing(gantry, read_only=True)(lambda memory: memory["a"].append(3))
    assert do(dict) == {"a": [1, 2]}


def test_a_default_is_what_the_compartment_begins_with_though_the_session_is_there(gantry):
    public(gantry)(lambda memory: memory.update(b=1))

    do = doing(gantry, default={"n": 5})

    assert do(lambda memory: memory.add("n")) == 6
    assert do(dict) == {"n": 6}


def test_a_memory_and_a_compartment_of_one_session_in_one_call(gantry):
    @gantry.with_memory
    @gantry.with_memory(private=True, into="own", name="t")
    def do(memory: Memory, own: Memory) -> Any:
        seen = dict(memory), dict(own)
        memory["n"] = memory.get("n", 0) + 1
        own["n"] = own.get("n", 0) + 10
        return seen

    do()

    assert do() == ({"n": 1}, {"n": 10})
    assert public(gantry)(dict) == {"n": 2}


def test_layers_of_compartments(gantry):
    doing(gantry, scope="user")(lambda memory: memory.update(a=1, b=1))
    public(gantry, "user")(lambda memory: memory.update(hidden=1))

    do = doing(gantry, scope=("session", "user"))

    assert do(lambda memory: (dict(memory), memory.origin("a"))) == ({"a": 1, "b": 1}, "user")
    do(lambda memory: memory.update(b=2))
    assert doing(gantry)(dict) == {"b": 2}
    assert doing(gantry, scope="user")(dict) == {"a": 1, "b": 1}
    assert public(gantry)(dict) == {}


def test_a_nested_call_of_another_tool_writes_its_own(gantry):
    def outer(memory):
        memory["a"] = 1
        doing(gantry, "two")(lambda inner: inner.update(a=[2]))
        doing(gantry, "two")(lambda inner: inner["a"].append(3))
        public(gantry)(lambda inner: inner.update(b=4))
        return dict(memory)

    assert doing(gantry, "one")(outer) == {"a": 1}
    assert doing(gantry, "one")(dict) == {"a": 1}
    assert doing(gantry, "two")(dict) == {"a": [2, 3]}
    assert public(gantry)(dict) == {"b": 4}


def test_a_nested_call_s_compartment_is_not_seen_by_the_call_around_it(gantry):
    def outer(memory):
        doing(gantry)(lambda inner: inner.update(a=1))
        memory["b"] = 2
        return dict(memory)

    assert public(gantry)(outer) == {"b": 2}
    assert public(gantry)(dict) == {"b": 2}
    assert doing(gantry)(dict) == {"a": 1}


def test_a_recursive_tool_shares_its_compartment_with_itself(gantry):
    @gantry.with_memory(private=True)
    def count(n: int, memory: Memory) -> int:
        memory.add("n")
        return count(n - 1) if n else memory["n"]

    assert count(3) == 4


def test_two_tools_of_one_name_cannot_both_have_one(gantry):
    @gantry.with_memory(private=True, name="same")
    def one(memory: dict) -> None: ...

    @gantry.with_memory(private=True, name="same")
    def other(memory: dict) -> None: ...

    one()
    with pytest.raises(DeclarationError, match="two different tools"):
        other()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_private_memory_under_agent_gantry_is_filed_by_the_registered_name():
    from agent_gantry import ToolCall

    async with AgentGantry(session="local") as agents:

        @agents.register(name="counter")
        @agents.with_memory(private=True)
        async def count(memory: dict) -> int:
            """Count the calls of this tool."""
            memory["n"] = memory.get("n", 0) + 1
            return memory["n"]

        results = [(await agents.execute(ToolCall(tool_name="counter", arguments={}))).result for _ in range(2)]
        assert results == [1, 2]
        assert await count() == 3


@pytest.mark.anyio
async def test_parallel_async_calls_of_one_tool_are_merged(gantry):
    @gantry.with_memory(private=True)
    async def count(memory: Memory) -> None:
        memory.add("n")
        await anyio.sleep(0)

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(count)

    @gantry.with_memory(private=True, name=count.plan.name)
    async def look(memory: dict) -> dict:
        return dict(memory)

    gantry._wiring.release(count.plan.name, count.plan.target)
    assert await look() == {"n": 20}


def test_callbacks_are_told_the_keys_as_the_tool_knows_them(clock):
    told = []
    with Gantry(on_commit=told.append, session="local") as gantry:
        doing(gantry)(lambda memory: memory.update(a=1))

    assert [(event.tool, event.scope, event.keys) for event in told] == [("mine", "session", ("a",))]


def test_damaged_entry_is_named_as_the_tool_knows_it(tmp_path):
    path = tmp_path / "state.db"
    with Gantry(f"sqlite:///{path}", session="s1") as gantry:
        tool = gantry.with_memory(private=True)(lambda memory: memory.update(k=1))
        tool()
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE entry SET record = ? WHERE length(key) > 1", (b"\x01\xc1",))

        with pytest.raises(CorruptEntryError) as caught:
            tool()

    assert caught.value.path == "memory['k']"
    assert str(caught.value).startswith("key 'k' in ")


def test_prefixes_are_never_the_beginning_of_another():
    names = ["", "a", "ab", "1:a", "2:ab", "a\0", "\0", "11", "1"]
    for one in names:
        for other in names:
            assert one == other or not (prefix_of(other) + "x").startswith(prefix_of(one))
        assert known_as(prefix_of(one) + "key") == "key"
        assert is_reserved(prefix_of(one))
    assert has_reserved(["a", prefix_of("t") + "k"])
    for damaged in ("\0", "\0x", "\0x:key", "\0-1:key", "\0:key", "\0" + "9" * 5000 + ":key"):
        assert known_as(damaged) == damaged
    assert not has_reserved(["", "a"])
    assert not has_reserved([])


SERIALIZABLE = [{"isolation": "serializable"}, {"exclusive": True}]


@pytest.mark.parametrize("options", SERIALIZABLE)
@pytest.mark.parametrize("nested", [False, True])
def test_a_serializable_call_does_not_conflict_with_compartments_that_it_does_not_see(gantry, options, nested):
    def body(memory):
        memory["a"] = len(memory)
        with gantry.independent():
            doing(gantry, "other")(lambda other: other.update(secret=1))

    def outer(memory):
        doing(gantry, "public", private=False, **options)(body)
        doing(gantry, "mine", **options)(body)

    outer({}) if not nested else public(gantry)(outer)

    assert public(gantry)(dict) == {"a": 0}
    assert doing(gantry)(dict) == {"a": 0}
    assert doing(gantry, "other")(dict) == {"secret": 1}


@pytest.mark.parametrize("options", SERIALIZABLE)
def test_a_serializable_call_conflicts_with_its_own_compartment(gantry, options):
    def body(memory):
        memory["a"] = len(memory)
        with gantry.independent():
            doing(gantry, "mine")(lambda other: other.update(b=1))

    with pytest.raises(MemoryConflictError, match="key 'b' was changed"):
        doing(gantry, "mine", **options)(body)

    assert doing(gantry)(dict) == {"b": 1}


def test_a_serializable_nested_call_does_not_conflict_with_a_sibling_s_compartment(gantry):
    def outer(memory):
        def body(inner):
            inner["a"] = 1
            doing(gantry, "other")(lambda other: other.update(secret=1))

        doing(gantry, "public", private=False, isolation="serializable")(body)

    public(gantry, "user")(outer)

    assert public(gantry)(dict) == {"a": 1}
