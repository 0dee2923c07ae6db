"""Identity in threads and pools of a program's own: what is said where it is missing, and how a function takes it along."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import typing
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest

from agent_gantry_state import Gantry, Identity, Memory, MissingIdentityError


@pytest.fixture
def gantry():
    return Gantry()


@pytest.fixture
def note(gantry):
    @gantry.with_memory
    def note(item: str, memory: dict) -> int:
        """Note an item.

        Args:
            item: What to note.
            memory: What was noted before.
        """
        memory.setdefault("items", []).append(item)
        return len(memory["items"])

    return note


def in_a_thread(fn, *args):
    """What *fn* returns in a thread that was made with nothing but it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn, *args).result()


def items(gantry, **who):
    with gantry.memory(**(who or {"session": "s1"})) as memory:
        return memory.get("items")


# What is said where it is missing.


@pytest.mark.parametrize("scope", ["session", "user", "tenant"])
def test_error_in_a_bare_thread_names_the_ways_to_take_an_identity_along(gantry, scope):
    @gantry.with_memory(scope=scope)
    def tool(memory: dict) -> None:
        memory["x"] = 1

    with gantry.session("s1", user="ada", tenant="acme"), pytest.raises(MissingIdentityError) as caught:
        in_a_thread(tool)

    said = str(caught.value)
    assert "`with gantry.session(...):` in the thread" in said
    assert "`contextvars.copy_context().run`" in said
    assert "`gantry.bind(fn)`" in said


def test_error_in_the_main_thread_speaks_of_no_threads(gantry, note):
    assert threading.current_thread() is threading.main_thread()

    with pytest.raises(MissingIdentityError) as caught:
        note("a")

    assert "thread" not in str(caught.value)


def test_error_in_a_thread_that_knows_a_session_speaks_of_no_threads(gantry):
    @gantry.with_memory(scope="user")
    def tool(memory: dict) -> None:
        memory["x"] = 1

    def work():
        with gantry.session("s1"):
            tool()

    with pytest.raises(MissingIdentityError) as caught:
        in_a_thread(work)

    assert "thread" not in str(caught.value)


# What bind gives.


def test_bound_tool_has_its_identity_in_a_bare_thread(gantry, note):
    with gantry.session("s1", user="ada"):
        bound = gantry.bind(note)

    assert in_a_thread(bound, "a") == 1
    assert bound("b") == 2
    assert items(gantry, session="s1", user="ada") == ["a", "b"]


def test_bound_function_gives_the_tools_that_it_calls_an_identity(gantry, note):
    def work(first, *, second):
        note(first)
        return note(second)

    with gantry.session("s1"):
        bound = gantry.bind(work)

    assert in_a_thread(functools.partial(bound, second="b"), "a") == 2


def test_binding_is_nearer_than_what_was_entered_where_it_is_called(gantry, note):
    with gantry.session("s1"):
        bound = gantry.bind(note)

    with gantry.session("s2"):
        bound("a")
        note("b")

    assert items(gantry, session="s1") == ["a"]
    assert items(gantry, session="s2") == ["b"]


def test_session_inside_a_bound_function_is_nearer(gantry, note):
    def work():
        with gantry.session("inner"):
            note("a")
        note("b")

    with gantry.session("s1"):
        in_a_thread(gantry.bind(work))

    assert items(gantry, session="inner") == ["a"]
    assert items(gantry, session="s1") == ["b"]


def test_nothing_of_a_binding_stays_in_the_thread(gantry, note):
    with gantry.session("s1"):
        bound = gantry.bind(note)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(bound, "a").result() == 1
        with pytest.raises(MissingIdentityError):
            pool.submit(note, "b").result()


def test_nothing_of_a_binding_stays_when_the_function_fails(gantry, note):
    def work():
        raise LookupError

    with gantry.session("s1"):
        bound = gantry.bind(work)

    with pytest.raises(LookupError):
        bound()
    with pytest.raises(MissingIdentityError):
        note("a")


@pytest.mark.anyio
async def test_bound_async_tool_is_awaited_with_its_identity(gantry):
    @gantry.with_memory
    async def anote(item: str, memory: dict) -> int:
        await anyio.lowlevel.checkpoint()
        memory.setdefault("items", []).append(item)
        return len(memory["items"])

    async with gantry.session("s1"):
        bound = gantry.bind(anote)

    assert inspect.iscoroutinefunction(bound)
    assert await bound("a") == 1
    assert items(gantry) == ["a"]


def test_bound_async_function_runs_on_a_loop_of_another_thread(gantry, note):
    async def work():
        await asyncio.sleep(0)
        return note("a")

    with gantry.session("s1"):
        bound = gantry.bind(work)

    assert in_a_thread(lambda: asyncio.run(bound())) == 1


def test_function_that_gives_a_coroutine_takes_the_identity_along(gantry):
    @gantry.with_memory
    async def anote(item: str, memory: dict) -> int:
        memory.setdefault("items", []).append(item)
        return len(memory["items"])

    with gantry.session("s1"):
        bound = gantry.bind(lambda: anote("a"))

    assert asyncio.run(bound()) == 1


def test_bound_methods_of_every_kind(gantry):
    class Notes:
        def __init__(self):
            self.seen = []

        @gantry.with_memory
        def method(self, item: str, memory: dict) -> int:
            self.seen.append(item)
            return memory.setdefault("items", []).append(item) or len(memory["items"])

        @gantry.with_memory
        @classmethod
        def of_class(cls, item: str, memory: dict) -> int:
            return memory.setdefault("items", []).append(item) or len(memory["items"])

        @gantry.with_memory
        @staticmethod
        def of_nobody(item: str, memory: dict) -> int:
            return memory.setdefault("items", []).append(item) or len(memory["items"])

        def plain(self, item):
            return self.method(item)

        def __call__(self, item):
            return self.method(item)

    notes = Notes()
    ways = [notes.method, Notes.of_class, notes.of_class, Notes.of_nobody, notes.plain, notes]
    with gantry.session("s1"):
        bound = [gantry.bind(way) for way in ways]

    assert [in_a_thread(each, "x") for each in bound] == [1, 2, 3, 4, 5, 6]
    assert notes.seen == ["x", "x", "x"]


def test_bound_tool_looks_like_the_tool(gantry, note):
    with gantry.session("s1"):
        bound = gantry.bind(note)

    assert bound.__name__ == "note"
    assert str(inspect.signature(bound)) == "(item: str) -> int"
    assert typing.get_type_hints(bound) == {"item": str, "return": int}
    assert "memory" not in bound.__doc__


def test_bound_generator_tool_is_of_its_identity_wherever_it_is_iterated(gantry):
    @gantry.with_memory
    def each(memory: dict):
        memory["items"] = ["a"]
        yield "a"

    with gantry.session("s1"):
        bound = gantry.bind(each)

    assert in_a_thread(lambda: list(bound())) == ["a"]
    assert items(gantry) == ["a"]


def plain_generator():
    yield 1


async def plain_async_generator():
    yield 1


@pytest.mark.parametrize("fn", [plain_generator, plain_async_generator])
def test_generator_function_without_memory_is_refused(gantry, fn):
    with (
        gantry.session("s1"),
        pytest.raises(TypeError, match="is a generator function, whose body runs where it is iterated"),
    ):
        gantry.bind(fn)


def test_what_cannot_be_called_is_refused(gantry):
    with gantry.session("s1"), pytest.raises(TypeError, match="bind: a function is needed, not list"):
        gantry.bind([])


def test_binding_to_nobody_is_refused(gantry, note):
    with pytest.raises(MissingIdentityError, match="no identity is known here that a function could be bound to"):
        gantry.bind(note)


def test_default_identity_is_one_to_bind_to():
    gantry = Gantry(session="local")
    seen = gantry.with_context(lambda ctx: ctx.identity)

    assert in_a_thread(gantry.bind(seen)) == Identity("local")


# A call around it.


def test_bound_tool_in_another_thread_is_a_call_of_its_own(gantry):
    """It may run on when the tool that bound it has ended, and must then not be lost with it."""

    @gantry.with_memory
    def count(memory: Memory) -> int:
        return memory.add("n", 1)

    @gantry.with_memory
    def outer(memory: Memory) -> None:
        memory["from_outer"] = True
        assert in_a_thread(gantry.bind(count)) == 1
        raise LookupError

    with gantry.session("s1"), pytest.raises(LookupError):
        outer()

    with gantry.memory(session="s1") as memory:
        assert memory == {"n": 1}


def test_many_threads_and_identities_at_once(gantry):
    @gantry.with_memory(scope="user", into="own")
    @gantry.with_memory
    def note(item: str, memory: dict, own: Memory) -> None:
        memory.setdefault("items", []).append(item)
        own.add("n", 1)

    bound = {}
    for user in ("ada", "bob"):
        with gantry.session(f"of {user}", user=user):
            bound[user] = gantry.bind(note)

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(bound[user], f"{user} {number}") for number in range(100) for user in bound]
    for job in jobs:
        job.result()

    for user in bound:
        assert set(items(gantry, session=f"of {user}", user=user)) == {f"{user} {number}" for number in range(100)}
        with gantry.memory("user", user=user) as own:
            assert own == {"n": 100}
