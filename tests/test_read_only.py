"""`read_only=True`: a write is an error that names the key, and nothing is written."""

from __future__ import annotations

import pytest
from support import committed

from agent_gantry_state import DeclarationError, ReadOnlyMemoryError, SyncExecutionContext

pytestmark = pytest.mark.once

START = {"lang": "en", "seen": ["start"]}


@pytest.fixture
def gantry(new_gantry):
    gantry = new_gantry(session="s1", user="ada")
    with gantry.memory() as memory:
        memory.update(START)
    return gantry


def look(memory):
    return dict(memory)


def test_read_only_memory_is_read(gantry, call):
    assert call(gantry, look, read_only=True) == START
    assert committed(gantry) == START


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("lang", lambda memory: memory.update(lang="de")),
        ("new", lambda memory: memory.setdefault("new", 1) and None),
        ("seen", lambda memory: memory["seen"].append("x")),
        ("lang", lambda memory: memory.pop("lang") and None),
        ("n", lambda memory: memory.add("n") and None),
        ("lang", lambda memory: memory.expire("lang", 5)),
    ],
)
def test_write_is_an_error_that_names_the_key_and_writes_nothing(gantry, call, key, change):
    with pytest.raises(ReadOnlyMemoryError, match="read-only") as caught:
        call(gantry, change, read_only=True)

    assert (caught.value.key, caught.value.scope, caught.value.committed) == (key, "session", False)
    assert repr(key) in str(caught.value)
    assert isinstance(caught.value, TypeError)
    assert committed(gantry) == START


def test_plain_write_is_an_error_also_where_other_tools_have_written(new_gantry, call):
    with new_gantry(session="s1") as gantry:
        for n in range(3):
            call(gantry, lambda memory, n=n: memory.update(n=n))

        with pytest.raises(ReadOnlyMemoryError):
            call(gantry, lambda memory: memory.update(n=99), read_only=True)

        assert committed(gantry) == {"n": 2}


def test_write_to_another_memory_of_the_call_is_not_written_either(gantry):
    @gantry.with_memory(scope="user", into="prefs")
    @gantry.with_memory(read_only=True)
    def tool(memory, prefs):
        prefs["x"] = 1
        memory["lang"] = "de"

    with pytest.raises(ReadOnlyMemoryError):
        tool()

    assert committed(gantry, "user") == {}


def test_other_memories_of_the_call_are_written(gantry):
    @gantry.with_memory(scope="user", into="prefs")
    @gantry.with_memory(read_only=True)
    def tool(memory, prefs):
        prefs["lang"] = memory["lang"]

    tool()

    assert committed(gantry, "user") == {"lang": "en"}
    assert committed(gantry) == START


def test_what_was_taken_back_is_no_write(gantry, call):
    def change(memory):
        memory["new"] = 1
        del memory["new"]
        memory["seen"].append("x")
        memory["seen"].pop()

    call(gantry, change, read_only=True)

    assert committed(gantry) == START


def test_memory_that_another_decorator_writes_may_be_written(gantry):
    @gantry.with_memory(into="mine")
    @gantry.with_memory(read_only=True)
    def tool(memory, mine):
        mine["lang"] = "de"
        return memory["lang"]

    assert tool() == "de"
    assert committed(gantry)["lang"] == "de"


def test_context_beside_it_may_write(gantry):
    @gantry.with_context
    @gantry.with_memory(read_only=True)
    def tool(memory, ctx: SyncExecutionContext):
        ctx.memory["lang"] = "de"
        return memory["lang"]

    assert tool() == "de"
    assert committed(gantry)["lang"] == "de"


def test_call_inside_writes_and_the_one_around_sees_it(gantry):
    @gantry.with_memory
    def inner(memory):
        memory["seen"].append("inner")
        memory["new"] = [1]
        del memory["lang"]

    @gantry.with_memory(read_only=True)
    def outer(memory):
        inner()
        return dict(memory)

    assert outer() == {"seen": ["start", "inner"], "new": [1]}
    assert committed(gantry) == {"seen": ["start", "inner"], "new": [1]}


@pytest.mark.parametrize("first", ["before", "after"])
def test_body_around_a_call_that_writes_may_not_write_itself(gantry, first):
    @gantry.with_memory
    def inner(memory):
        memory["new"] = [1]

    @gantry.with_memory(read_only=True)
    def outer(memory):
        if first == "before":
            memory["mine"] = 1
        inner()
        if first == "after":
            memory["mine"] = 1

    with pytest.raises(ReadOnlyMemoryError) as caught:
        outer()

    assert caught.value.key == "mine"
    assert committed(gantry) == START


def test_read_only_call_inside_one_that_writes_may_not_write(gantry):
    @gantry.with_memory(read_only=True)
    def inner(memory):
        assert memory["lang"] == "de"
        memory["seen"].append("inner")

    @gantry.with_memory
    def outer(memory):
        memory["lang"] = "de"
        with pytest.raises(ReadOnlyMemoryError):
            inner()

    outer()

    assert committed(gantry) == {**START, "lang": "de"}


def test_read_only_with_keys_sees_those_and_writes_none(gantry, call):
    assert call(gantry, look, read_only=True, keys=("lang",)) == {"lang": "en"}
    with pytest.raises(ReadOnlyMemoryError):
        call(gantry, lambda memory: memory.update(lang="de"), read_only=True, keys=("lang",))
    assert committed(gantry) == START


def test_read_only_with_a_default_writes_nothing(gantry, call):
    assert call(gantry, look, scope="user", read_only=True, default={"theme": "dark"}) == {"theme": "dark"}
    with pytest.raises(ReadOnlyMemoryError):
        call(gantry, lambda memory: memory.update(theme="light"), scope="user", read_only=True, default={"theme": "dark"})

    assert committed(gantry, "user") == {}


def test_read_only_is_a_bool(gantry):
    with pytest.raises(DeclarationError, match="read_only must be True or False, not str"):
        gantry.with_memory(read_only="yes")
