"""`default=` and `default_factory=`: what a memory begins with where there is none yet."""

from __future__ import annotations

import pytest
from support import commit, committed

from agent_gantry_state import Gantry, MemoryConflictError, SyncSession, UnstorableValueError, merge
from agent_gantry_state.errors import DeclarationError

pytestmark = pytest.mark.once

BASE = {"lang": "en", "seen": ["start"], "n": 0}


@pytest.fixture
def gantry(new_gantry):
    return new_gantry(session="s1", user="ada")


def look(memory):
    return dict(memory)


def test_memory_that_is_not_there_begins_with_the_default(gantry, call):
    assert call(gantry, look, default=BASE) == BASE
    assert call(gantry, lambda memory: list(memory), default=BASE) == list(BASE)


def test_reading_it_writes_nothing(gantry, call):
    call(gantry, look, default=BASE)

    assert committed(gantry) == {}
    assert call(gantry, look) == {}


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (lambda memory: memory.update(lang="de"), {"lang": "de", "seen": ["start"], "n": 0}),
        (lambda memory: memory["seen"].append("x"), {"lang": "en", "seen": ["start", "x"], "n": 0}),
        (lambda memory: memory.add("n", 2), {"lang": "en", "seen": ["start"], "n": 2}),
        (lambda memory: memory.update(new=[1]), {"lang": "en", "seen": ["start"], "n": 0, "new": [1]}),
        (lambda memory: memory.pop("lang"), {"seen": ["start"], "n": 0}),
        (lambda memory: memory.clear(), {}),
    ],
)
def test_first_change_writes_the_rest_of_it_too(gantry, call, change, after):
    call(gantry, lambda memory: change(memory) and None, default=BASE)

    assert list(committed(gantry).items()) == list(after.items())
    # It was there before: what it would have begun with is no matter.
    assert call(gantry, look, default={"other": 1}) == after


def test_assigning_what_it_begins_with_is_no_change(gantry, call):
    call(gantry, lambda memory: memory.update(lang="en"), default=BASE)

    assert committed(gantry) == {}


def test_what_fails_leaves_nothing_of_it(gantry, call):
    def fail(memory):
        memory["lang"] = "de"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        call(gantry, fail, default=BASE)

    assert committed(gantry) == {}


def test_calls_never_share_a_container_of_it(gantry, call):
    default = {"seen": ["start"]}
    first = call(gantry, lambda memory: memory["seen"], default=default)
    first.append("mine")
    default["seen"].append("later")

    assert call(gantry, look, default=default) == {"seen": ["start", "later"]}


def test_default_is_read_when_the_tool_is_decorated(gantry):
    default = {"seen": ["start"]}

    @gantry.with_memory(default=default)
    def tool(memory):
        return dict(memory)

    default["seen"].append("later")

    assert tool() == {"seen": ["start"]}


def test_factory_is_asked_for_each_memory_that_is_not_there(gantry, call):
    made = []

    def factory():
        made.append(len(made))
        return {"n": made[-1]}

    assert [call(gantry, look, default_factory=factory) for _ in range(2)] == [{"n": 0}, {"n": 1}]

    call(gantry, lambda memory: memory.update(x=1), default_factory=factory)
    assert call(gantry, look, default_factory=factory) == {"n": 2, "x": 1}
    assert made == [0, 1, 2]


def test_two_calls_that_begin_with_it_merge_as_from_one_base(gantry, call):
    def change(memory):
        memory["seen"].append("ours")
        memory.add("n", 1)
        commit(gantry, "session", {}, {"lang": "en", "seen": ["start", "theirs"], "n": 5, "theirs": 1})

    call(gantry, change, default=BASE)

    assert committed(gantry) == {"lang": "en", "seen": ["start", "theirs", "ours"], "n": 6, "theirs": 1}


def test_what_another_made_of_a_key_that_this_call_left_alone_stays(gantry, call):
    def change(memory):
        memory["mine"] = 1
        commit(gantry, "session", {}, {"lang": "fr"})

    call(gantry, change, default=BASE)

    assert committed(gantry) == {"lang": "fr", "mine": 1, "seen": ["start"], "n": 0}


def test_key_of_it_that_both_changed_is_a_conflict(gantry, call):
    def change(memory):
        memory["lang"] = "de"
        commit(gantry, "session", {}, {"lang": "fr"})

    with pytest.raises(MemoryConflictError) as caught:
        call(gantry, change, default=BASE)

    assert caught.value.keys == ("lang",)
    assert committed(gantry) == {"lang": "fr"}


def test_declared_merge_gets_it_as_the_base(gantry, call):
    def change(memory):
        memory["n"] = 3
        commit(gantry, "session", {}, {"n": 10})

    call(gantry, change, default={"n": 1}, merge={"n": merge.add})

    assert committed(gantry) == {"n": 12}


def test_memory_that_was_erased_begins_with_it_again(gantry, call):
    call(gantry, lambda memory: memory.update(lang="de"), default=BASE)
    gantry.end_session("s1", user="ada")

    assert call(gantry, look, default=BASE) == BASE


def test_memory_without_keys_is_there(gantry, call):
    call(gantry, lambda memory: memory.update(x=1))
    call(gantry, lambda memory: memory.clear())

    assert call(gantry, look, default=BASE) == {}


def test_nested_call_begins_with_it_where_the_one_around_has_nothing(gantry):
    @gantry.with_memory(default=BASE)
    def inner(memory):
        seen = dict(memory)
        memory.add("n", 1)
        return seen

    @gantry.with_memory
    def outer(memory):
        assert memory == {}
        seen = inner()
        assert memory == {**BASE, "n": 1}
        assert inner() == {**BASE, "n": 1}
        return seen

    assert outer() == BASE
    assert committed(gantry) == {**BASE, "n": 2}


def test_nested_call_sees_what_the_one_around_began_with(gantry):
    @gantry.with_memory(default={"other": 1})
    def inner(memory):
        memory["inner"] = True
        return dict(memory)

    @gantry.with_memory(default=BASE)
    def outer(memory):
        return inner()

    assert outer() == {**BASE, "inner": True}
    assert committed(gantry) == {**BASE, "inner": True}


def test_session_beside_it_sees_the_same(gantry):
    @gantry.with_memory(default=BASE)
    @gantry.with_session
    def tool(memory, session: SyncSession):
        session.set("lang", "de")
        return session.get("n")

    assert tool() == 0
    assert committed(gantry) == {**BASE, "lang": "de"}


def test_default_expires_with_the_scope(gantry, call):
    call(gantry, lambda memory: memory.update(lang="de"), default=BASE, ttl=60)

    with gantry.memory() as memory:
        assert [round(memory.ttl(key), 0) for key in memory] == [60.0, 60.0, 60.0]


def test_only_the_declared_keys_can_be_in_it(gantry, call):
    assert call(gantry, look, keys=("lang",), default={"lang": "en"}) == {"lang": "en"}

    with pytest.raises(DeclarationError, match="default names 'n', which is none of keys"):
        gantry.with_memory(keys=("lang",), default={"n": 1})
    with pytest.raises(DeclarationError, match="default_factory names 'n', which is none of keys"):
        call(gantry, look, keys=("lang",), default_factory=lambda: {"n": 1})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"default": {}, "default_factory": dict}, "default or default_factory, not both"),
        ({"default": [1]}, "default must be a dict, not list"),
        ({"default_factory": {}}, "default_factory must be callable, not a dict"),
        ({"default": {1: 2}}, "key of type int"),
        ({"default": {"x": [object()]}}, r"memory\['x'\]\[0\]"),
    ],
)
def test_default_that_cannot_be_meant_is_refused_at_decoration(options, words):
    with Gantry(session="s1") as gantry, pytest.raises(DeclarationError, match=words):
        gantry.with_memory(**options)


def test_refusal_of_a_value_has_its_cause():
    with Gantry(session="s1") as gantry, pytest.raises(DeclarationError) as caught:
        gantry.with_memory(default={"x": object()})

    assert isinstance(caught.value.__cause__, UnstorableValueError)
