"""Generator tools: one unit of work from the first step to the last, current only while the body runs."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import gc
import inspect
import sys
import threading
from contextlib import aclosing

import anyio
import pytest
from support import STORES, Blocking, closing, commit, committed

from agent_gantry_state import (
    CallEndedError,
    Gantry,
    InjectedArgumentError,
    MemoryConflictError,
    MemoryErasedError,
    MissingIdentityError,
    OrphanedCallError,
    Session,
    SessionOwnerError,
    SyncSession,
    Tool,
    UnstorableValueError,
    current_identity,
)
from agent_gantry_state.stores.protocol import Commit, Load


@pytest.fixture(params=["memory", "blocking"])
def gantry(request):
    with Gantry(STORES[request.param](), session="s") as made:
        yield made


def stored(gantry, scope="session", **who):
    return committed(gantry, scope, **(who or {"session": "s"}))


def interfere(gantry, **values):
    commit(gantry, "session", {"session": "s"}, values)


def counts(gantry, **options):
    @gantry.with_memory(**options)
    def count(to, memory):
        for i in range(to):
            memory.setdefault("log", []).append(i)
            yield i
        return "result"

    return count


def acounts(gantry, **options):
    @gantry.with_memory(**options)
    async def count(to, memory):
        for i in range(to):
            memory.setdefault("log", []).append(i)
            yield i

    return count


def other_tool(gantry):
    @gantry.with_memory
    def other(memory):
        return memory.add("other", 1)

    return other


# The protocol of generators.


def test_sync_generator_gives_its_items_and_its_result(gantry):
    count = counts(gantry)

    def delegates():
        return (yield from count(3))

    generator = delegates()
    assert [next(generator) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(StopIteration) as stopped:
        next(generator)

    assert stopped.value.value == "result"
    assert stored(gantry) == {"log": [0, 1, 2]}


@pytest.mark.anyio
async def test_async_generator_gives_its_items(gantry):
    assert [item async for item in acounts(gantry)(3)] == [0, 1, 2]

    async with gantry.memory() as memory:
        assert memory == {"log": [0, 1, 2]}


def test_what_is_sent_and_thrown_arrives_in_the_body(gantry):
    @gantry.with_memory
    def echo(memory):
        received = yield "first"
        while received is not None:
            memory.setdefault("log", []).append(received)
            try:
                received = yield received
            except KeyError as error:
                memory["log"].append(f"thrown {error.args[0]}")
                received = yield "caught"
        return len(memory["log"])

    generator = echo()
    answers = [next(generator), generator.send("a"), generator.throw(KeyError("b")), generator.send("c")]
    with pytest.raises(StopIteration) as stopped:
        generator.send(None)

    assert answers == ["first", "a", "caught", "c"]
    assert stopped.value.value == 3
    assert stored(gantry) == {"log": ["a", "thrown b", "c"]}


@pytest.mark.anyio
async def test_what_is_sent_and_thrown_arrives_in_the_async_body(gantry):
    @gantry.with_memory
    async def echo(memory):
        received = yield "first"
        while received is not None:
            memory.setdefault("log", []).append(received)
            try:
                received = yield received
            except KeyError as error:
                memory["log"].append(f"thrown {error.args[0]}")
                received = yield "caught"

    async with aclosing(echo()) as generator:
        answers = [
            await generator.__anext__(),
            await generator.asend("a"),
            await generator.athrow(KeyError("b")),
            await generator.asend("c"),
        ]
        with pytest.raises(StopAsyncIteration):
            await generator.asend(None)

    assert answers == ["first", "a", "caught", "c"]
    async with gantry.memory() as memory:
        assert memory == {"log": ["a", "thrown b", "c"]}


def test_tool_is_taken_for_the_kind_of_generator_function_that_it_is(gantry):
    sync, asynchronous = counts(gantry), acounts(gantry)

    assert isinstance(sync, Tool)
    assert inspect.isgeneratorfunction(sync)
    assert not inspect.isasyncgenfunction(sync)
    assert not inspect.iscoroutinefunction(sync)
    assert inspect.isasyncgenfunction(asynchronous)
    assert not inspect.isgeneratorfunction(asynchronous)
    assert inspect.isgenerator(sync(1))
    assert inspect.isasyncgen(asynchronous(1))
    assert str(inspect.signature(sync)) == str(inspect.signature(asynchronous)) == "(to)"


class Methods:
    def __init__(self):
        self.prefix = "> "

    def method(self, item, memory):
        yield self.prefix + item
        memory["item"] = item

    @classmethod
    def of_class(cls, item, memory):
        yield cls.__name__ + item
        memory["item"] = item

    @staticmethod
    def of_none(item, memory):
        yield item
        memory["item"] = item

    def __call__(self, item, memory):
        yield from self.method(item, memory)

    async def async_method(self, item, memory):
        yield self.prefix + item
        memory["item"] = item


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Methods().method, "> a"),
        (lambda: Methods.of_class, "Methodsa"),
        (lambda: Methods.of_none, "a"),
        (lambda: Methods(), "> a"),
        (lambda: functools.partial(Methods.method, Methods()), "> a"),
    ],
)
def test_every_kind_of_callable_may_generate(gantry, make, expected):
    tool = gantry.with_memory(make())

    assert list(tool("a")) == list(tool(item="a")) == [expected]
    assert stored(gantry) == {"item": "a"}


def test_methods_decorated_in_their_class_generate(gantry):
    class Decorated:
        @gantry.with_memory
        def method(self, item, memory):
            yield self
            memory["item"] = item

        @classmethod
        @gantry.with_memory
        def of_class(cls, memory):
            yield cls

        @gantry.with_memory
        async def async_method(self, memory):
            yield self

    one = Decorated()

    assert list(one.method("a")) == list(Decorated.method(one, "a")) == [one]
    assert list(one.of_class()) == [Decorated]
    assert inspect.isgeneratorfunction(one.method)
    assert inspect.isasyncgenfunction(one.async_method)
    assert stored(gantry) == {"item": "a"}


@pytest.mark.anyio
async def test_async_methods_generate(gantry):
    for tool in (gantry.with_memory(Methods().async_method), gantry.with_memory(functools.partial(Methods().async_method))):
        assert [item async for item in tool("a")] == ["> a"]

    async with gantry.memory() as memory:
        assert memory == {"item": "a"}


def test_injected_argument_is_refused_at_the_call_and_not_at_the_first_step(gantry):
    ran = []

    @gantry.with_memory
    def sync(memory, **more):
        ran.append(1)
        yield

    @gantry.with_memory
    async def asynchronous(memory, **more):
        ran.append(1)
        yield

    for tool in (sync, asynchronous):
        with pytest.raises(InjectedArgumentError, match="'memory'"):
            tool(memory={})
    assert ran == []


def test_wrong_arguments_raise_what_the_function_itself_raises(gantry):
    with pytest.raises(TypeError, match="argument"):
        list(counts(gantry)(1, 2, 3))
    assert stored(gantry) == {}


@pytest.mark.parametrize("make", [counts, acounts])
def test_wrong_arguments_are_a_type_error_at_the_call(gantry, make):
    tool = make(gantry)
    for args, kwargs in [((), {}), ((1, 2, 3), {}), ((1,), {"unknown": 1})]:
        with pytest.raises(TypeError, match="argument"):
            tool(*args, **kwargs)
    assert stored(gantry) == {}


# When it loads, and when it commits.


def test_it_loads_at_its_first_step_and_commits_when_it_is_exhausted():
    recording = Blocking()
    with Gantry(recording, session="s") as gantry:
        generator = counts(gantry)(2)
        asked = [recording.kinds()]
        for _ in range(2):
            next(generator)
            asked.append(recording.kinds())
        assert list(generator) == []
        asked.append(recording.kinds())

    assert asked == [[], [Load], [Load], [Load, Commit]]


def test_generator_that_never_began_loads_and_writes_nothing():
    recording = Blocking()
    with Gantry(recording, session="s") as gantry:
        generator = counts(gantry)(2)
        generator.close()
        assert list(generator) == []

    assert recording.messages == []


def test_nothing_is_committed_before_it_is_exhausted(gantry):
    generator = counts(gantry)(2)

    seen = [(item, stored(gantry)) for item in generator]

    assert seen == [(0, {}), (1, {})]
    assert stored(gantry) == {"log": [0, 1]}


def test_memory_of_an_exhausted_generator_is_an_ordinary_dict(gantry):
    @gantry.with_memory
    def gives(memory):
        memory["a"] = 1
        yield memory

    (memory,) = gives()
    memory["late"] = 1

    assert stored(gantry) == {"a": 1}


def test_failing_generator_changes_nothing(gantry):
    @gantry.with_memory
    def fails(memory):
        memory["a"] = 1
        yield 1
        memory["b"] = 1
        raise KeyError("the body failed")

    generator = fails()
    assert next(generator) == 1
    with pytest.raises(KeyError, match="body"):
        next(generator)
    assert list(generator) == []

    assert stored(gantry) == {}


@pytest.mark.anyio
async def test_failing_async_generator_changes_nothing(gantry):
    @gantry.with_memory
    async def fails(memory):
        memory["a"] = 1
        yield 1
        raise KeyError("the body failed")

    with pytest.raises(KeyError, match="body"):
        async for _ in fails():
            pass

    async with gantry.memory() as memory:
        assert memory == {}


def test_error_that_is_thrown_in_and_not_caught_changes_nothing(gantry):
    generator = counts(gantry)(2)
    next(generator)

    with pytest.raises(KeyError, match="thrown"):
        generator.throw(KeyError("thrown"))

    assert stored(gantry) == {}


def test_closed_generator_changes_nothing_and_its_body_cleans_up(gantry):
    ended = []

    @gantry.with_memory
    def count(memory):
        try:
            memory["a"] = 1
            yield 1
            yield 2
        finally:
            memory["b"] = 1
            ended.append(current_identity())

    with gantry.session("s2"):
        generator = count()
    next(generator)
    generator.close()

    assert [identity.session for identity in ended] == ["s2"]
    assert stored(gantry, session="s2") == {}


def test_body_that_swallows_its_close_commits_nothing(gantry):
    @gantry.with_memory
    def stubborn(memory):
        memory["a"] = 1
        with contextlib.suppress(GeneratorExit):
            yield 1

    generator = stubborn()
    next(generator)
    generator.close()

    assert stored(gantry) == {}


def test_body_that_goes_on_when_it_is_closed_is_told_so(gantry):
    @gantry.with_memory
    def stubborn(memory):
        memory["a"] = 1
        try:
            yield 1
        except GeneratorExit:
            yield 2

    generator = stubborn()
    next(generator)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        generator.close()

    assert stored(gantry) == {}


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python closes no generator of which a step is awaited")
@pytest.mark.parametrize("store", ["blocking", "coroutines"])
def test_whoever_is_closed_while_it_awaits_a_step_waits_for_nothing(store):
    gantry = Gantry(STORES[store](), session="s")

    @gantry.with_memory(exclusive=True)
    async def stuck(memory):
        memory["a"] = 1
        begun.set()
        await asyncio.get_running_loop().create_future()
        yield

    @gantry.with_memory(exclusive=True)
    async def after(memory):
        return dict(memory)

    async def consume():
        async for _ in stuck():
            pass

    async def main():
        consumer = consume()
        task = asyncio.ensure_future(consumer)
        with anyio.fail_after(5):
            await begun.wait()
            consumer.close()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or isinstance(task.exception(), RuntimeError)
            assert await after() == {}

    begun = asyncio.Event()
    with closing(gantry):
        asyncio.run(main())


class Halting(Blocking):
    """Waits before it answers one kind of message."""

    def __init__(self, verb):
        super().__init__()
        self.verb, self.asked_for, self.may_answer = verb, threading.Event(), threading.Event()

    def halt(self, verb):
        if verb == self.verb:
            self.verb = None
            self.asked_for.set()
            assert self.may_answer.wait(10)

    def load(self, message, /):
        self.halt("load")
        return super().load(message)

    def commit(self, message, /):
        self.halt("commit")
        return super().commit(message)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python closes no generator of which a step is awaited")
@pytest.mark.parametrize("where", ["load", "commit", "end"])
def test_whoever_is_closed_while_it_awaits_the_begin_or_the_end_of_a_generator_waits_for_nothing(where):
    store = Halting(where)
    gantry = Gantry(store, session="s")

    @gantry.with_memory(exclusive=True)
    async def stuck(memory):
        memory["a"] = 1
        try:
            yield
        finally:
            if where == "end":
                store.asked_for.set()
                await asyncio.get_running_loop().create_future()

    @gantry.with_memory(exclusive=True)
    async def after(memory):
        return dict(memory)

    async def consume():
        items = stuck()
        async for _ in items:
            if where == "end":
                await items.aclose()

    async def main():
        consumer = consume()
        task = asyncio.ensure_future(consumer)
        with anyio.fail_after(5):
            assert await asyncio.to_thread(store.asked_for.wait, 5)
            # anyio says of a hop to a thread that it ends in another task.
            with pytest.raises(RuntimeError, match=r"borrower|scope") if where == "load" else contextlib.nullcontext():
                consumer.close()
            task.cancel()
            store.may_answer.set()
            await asyncio.wait([task])
            assert task.cancelled() or isinstance(task.exception(), RuntimeError)
            assert await after() == ({"a": 1} if where == "commit" else {})

    with closing(gantry):
        asyncio.run(main())


def test_loop_that_is_left_changes_nothing(gantry):
    for item in counts(gantry)(5):
        if item == 2:
            break

    gc.collect()
    assert stored(gantry) == {}


def test_discarded_generator_changes_nothing(gantry):
    generator = counts(gantry)(5)
    next(generator)

    del generator
    gc.collect()

    assert stored(gantry) == {}


@pytest.mark.anyio
async def test_closed_async_generator_changes_nothing_and_its_body_cleans_up(gantry):
    ended = []

    @gantry.with_memory
    async def count(memory):
        try:
            memory["a"] = 1
            yield 1
            yield 2
        finally:
            await anyio.sleep(0)
            memory["b"] = 1
            ended.append(current_identity().session)

    async with gantry.session("s2"):
        generator = count()
    await generator.__anext__()
    await generator.aclose()

    assert ended == ["s2"]
    async with gantry.memory(session="s2") as memory:
        assert memory == {}


def test_async_loop_that_is_left_changes_nothing(gantry):
    ended = []

    @gantry.with_memory
    async def count(memory):
        try:
            for i in range(5):
                memory["a"] = i
                yield i
        finally:
            ended.append(True)

    async def main():
        async for item in count():
            if item == 2:
                break
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(main())

    assert ended == [True]
    assert stored(gantry) == {}


def test_async_generator_that_the_loop_shuts_down_changes_nothing(gantry):
    kept = []

    async def main():
        kept.append(acounts(gantry)(5))
        await kept[0].__anext__()

    asyncio.run(main())

    assert stored(gantry) == {}


@pytest.mark.anyio
async def test_cancelled_async_generator_changes_nothing(gantry):
    @gantry.with_memory
    async def waits(memory):
        memory["a"] = 1
        yield 1
        scope.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        async with aclosing(waits()) as generator:
            async for _ in generator:
                pass

    assert scope.cancelled_caught
    async with gantry.memory() as memory:
        assert memory == {}


def test_value_that_cannot_be_stored_is_an_error_of_the_last_step(gantry):
    @gantry.with_memory
    def spoils(memory):
        memory["ok"] = 1
        yield 1
        memory["bad"] = object()

    generator = spoils()
    next(generator)
    with pytest.raises(UnstorableValueError):
        next(generator)

    assert stored(gantry) == {}


def test_two_generators_at_once_are_merged(gantry):
    one, other = counts(gantry)(3), counts(gantry)(3)

    assert list(zip(one, other, strict=True)) == [(0, 0), (1, 1), (2, 2)]
    assert stored(gantry) == {"log": [0, 1, 2, 0, 1, 2]}


def test_conflict_is_an_error_of_the_last_step(gantry):
    @gantry.with_memory
    def plans(memory):
        memory["plan"] = "ours"
        yield 1

    generator = plans()
    next(generator)
    interfere(gantry, plan="theirs")
    with pytest.raises(MemoryConflictError) as caught:
        next(generator)

    assert caught.value.keys == ("plan",)
    assert stored(gantry) == {"plan": "theirs"}


def test_session_that_was_erased_between_two_steps_does_not_come_back(gantry):
    interfere(gantry, n=1)

    @gantry.with_memory
    def adds(memory):
        memory.add("n", 1)
        yield 1

    generator = adds()
    next(generator)
    gantry.end_session("s")
    with pytest.raises(MemoryErasedError):
        next(generator)

    assert stored(gantry) == {}


# Identity.


def test_identity_is_that_of_the_call_wherever_it_is_iterated(gantry):
    seen = []

    @gantry.with_memory
    def who(memory):
        for i in range(3):
            seen.append(current_identity().session)
            memory["log"] = [*memory.get("log", []), i]
            yield i

    with gantry.session("hers", user="ada"):
        generator = who()
    with gantry.session("his", user="bob"):
        next(generator)
        assert current_identity().session == "his"
    next(generator)
    assert current_identity() is None
    with gantry.session("his", user="bob"):
        assert list(generator) == [2]
        assert current_identity().session == "his"

    assert seen == ["hers"] * 3
    assert stored(gantry, session="hers", user="ada") == {"log": [0, 1, 2]}
    assert stored(gantry, session="his", user="bob") == {}


@pytest.mark.anyio
async def test_identity_is_that_of_the_call_wherever_an_async_one_is_iterated(gantry):
    seen = []

    @gantry.with_memory
    async def who(memory):
        for i in range(3):
            await anyio.sleep(0)
            seen.append(current_identity().session)
            memory["log"] = [*memory.get("log", []), i]
            yield i

    async with gantry.session("hers", user="ada"):
        generator = who()
    async with gantry.session("his", user="bob"), aclosing(generator):
        async for _ in generator:
            assert current_identity().session == "his"
    assert current_identity() is None

    assert seen == ["hers"] * 3
    async with gantry.memory(session="hers", user="ada") as memory:
        assert memory == {"log": [0, 1, 2]}
    async with gantry.memory(session="his", user="bob") as memory:
        assert memory == {}


def test_session_that_the_body_enters_holds_for_it_beyond_a_step_and_not_for_the_consumer(gantry):
    other, seen = other_tool(gantry), []

    @gantry.with_memory(scope="global")
    def enters(memory):
        with gantry.session("inside"):
            seen.append(current_identity().session)
            yield 1
            seen.append(current_identity().session)
            other()
            yield 2
        seen.append(current_identity())

    for _ in enters():
        assert current_identity() is None

    assert seen == ["inside", "inside", None]
    assert stored(gantry, session="inside") == {"other": 1}
    assert stored(gantry) == {}


@pytest.mark.anyio
async def test_session_that_an_async_body_enters_holds_for_it_beyond_a_step(gantry):
    seen = []

    @gantry.with_memory(scope="global")
    async def enters(memory):
        async with gantry.session("inside"):
            yield 1
            seen.append(current_identity())
            yield 2

    async with aclosing(enters()) as generator:
        async for _ in generator:
            assert current_identity() is None

    assert [identity and identity.session for identity in seen] == ["inside"]


def test_missing_identity_is_an_error_of_the_first_step():
    ran = []
    with Gantry() as gantry:

        @gantry.with_memory
        def tool(memory):
            ran.append(1)
            yield

        generator = tool()
        with pytest.raises(MissingIdentityError, match="no session"):
            next(generator)
        assert list(generator) == []
    assert ran == []


def test_session_of_somebody_else_is_an_error_of_the_first_step(gantry):
    with gantry.session("hers", user="ada"):
        list(counts(gantry)(1))

    with gantry.session("hers", user="bob"), pytest.raises(SessionOwnerError):
        next(counts(gantry)(1))


# Not current between two steps.


def test_tool_that_the_consumer_calls_between_two_steps_is_no_part_of_it(gantry):
    other = other_tool(gantry)
    generator = counts(gantry)(3)

    next(generator)
    assert other() == 1
    assert stored(gantry) == {"other": 1}
    next(generator)
    with gantry.memory() as memory:
        assert memory == {"other": 1}
        memory["block"] = 1
    assert stored(gantry) == {"other": 1, "block": 1}
    generator.close()

    assert stored(gantry) == {"other": 1, "block": 1}


@pytest.mark.anyio
async def test_tool_that_an_async_consumer_calls_between_two_steps_is_no_part_of_it(gantry):
    @gantry.with_memory
    async def other(memory):
        return memory.add("other", 1)

    generator = acounts(gantry)(3)
    await generator.__anext__()
    assert await other() == 1
    async with gantry.memory() as memory:
        assert memory == {"other": 1}
    await generator.__anext__()
    assert await other() == 2
    await generator.aclose()

    async with gantry.memory() as memory:
        assert memory == {"other": 2}


def test_tool_that_the_body_calls_is_a_part_of_it(gantry):
    other = other_tool(gantry)

    @gantry.with_memory
    def calls(memory, fail):
        memory["n"] = 1
        assert other() == memory["other"]
        yield 1
        assert other() == memory["other"]
        yield 2
        if fail:
            raise KeyError("the body failed")

    seen = []
    with pytest.raises(KeyError):
        seen.extend(stored(gantry) for _ in calls(fail=True))
    assert seen == [{}, {}]
    assert stored(gantry) == {}

    assert list(calls(fail=False)) == [1, 2]
    assert stored(gantry) == {"n": 1, "other": 2}


@pytest.mark.anyio
async def test_tools_that_an_async_body_calls_are_a_part_of_it(gantry):
    @gantry.with_memory
    async def other(memory):
        await anyio.sleep(0)
        return memory.add("other", 1)

    @gantry.with_memory
    async def calls(memory):
        await other()
        yield 1
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(other)
        assert memory["other"] == 4
        yield 2

    async with aclosing(calls()) as generator:
        await generator.__anext__()
        await generator.__anext__()
    async with gantry.memory() as memory:
        assert memory == {}

    assert [item async for item in calls()] == [1, 2]
    async with gantry.memory() as memory:
        assert memory == {"other": 4}


def test_independent_block_of_the_body_holds_for_it_beyond_a_step(gantry):
    other = other_tool(gantry)

    @gantry.with_memory(scope="global")
    def calls(memory):
        with gantry.independent():
            other()
            yield 1
            other()
            yield 2
        raise KeyError("the body failed")

    seen = []
    with pytest.raises(KeyError):
        seen.extend(stored(gantry) for _ in calls())

    assert seen == [{"other": 1}, {"other": 2}]
    assert stored(gantry) == {"other": 2}


# Inside other calls.


def test_generator_that_a_tool_consumes_is_a_part_of_it(gantry):
    count = counts(gantry)

    @gantry.with_memory
    def outer(memory, fail):
        memory["log"] = ["outer"]
        held = memory["log"]
        generator = count(2)
        next(generator)
        assert memory["log"] == ["outer"]
        assert list(generator) == [1]
        assert memory["log"] is held
        assert held == ["outer", 0, 1]
        if fail:
            raise KeyError("the outer one failed")

    with pytest.raises(KeyError):
        outer(fail=True)
    assert stored(gantry) == {}
    outer(fail=False)

    assert stored(gantry) == {"log": ["outer", 0, 1]}


def test_generator_that_a_tool_leaves_undoes_its_own_only(gantry):
    count = counts(gantry)

    @gantry.with_memory
    def outer(memory):
        memory["outer"] = 1
        generator = count(2)
        next(generator)
        generator.close()

    outer()

    assert stored(gantry) == {"outer": 1}


@pytest.mark.parametrize("fails", [False, True])
def test_generator_that_outlives_the_tool_in_which_it_began(gantry, fails):
    count = counts(gantry)

    @gantry.with_memory
    def outer(memory):
        memory["log"] = ["outer"]
        generator = count(2)
        next(generator)
        kept.append(generator)
        if fails:
            raise KeyError("the outer one failed")

    kept = []
    with contextlib.suppress(KeyError):
        outer()

    if fails:
        with pytest.raises(OrphanedCallError):
            list(kept[0])
        assert stored(gantry) == {}
    else:
        assert list(kept[0]) == [1]
        assert stored(gantry) == {"log": ["outer", 0, 1]}


def test_generator_that_was_only_made_inside_a_tool_is_no_part_of_it(gantry):
    count = counts(gantry)

    @gantry.with_memory
    def outer(memory):
        memory["log"] = ["outer"]
        return [count(2)]

    (generator,) = outer()

    assert list(generator) == [0, 1]
    assert stored(gantry) == {"log": ["outer", 0, 1]}


def test_generator_inside_a_generator_is_a_part_of_it(gantry):
    count = counts(gantry)

    @gantry.with_memory
    def outer(memory):
        memory["log"] = ["outer"]
        result = yield from count(2)
        assert memory["log"] == ["outer", 0, 1]
        memory["result"] = result

    seen = [(item, stored(gantry)) for item in outer()]

    assert seen == [(0, {}), (1, {})]
    assert stored(gantry) == {"log": ["outer", 0, 1], "result": "result"}


# Wherever the steps are made.


def test_each_step_may_be_made_in_a_context_of_its_own(gantry):
    generator = counts(gantry)(3)

    items = [contextvars.copy_context().run(next, generator, None) for _ in range(4)]

    assert items == [0, 1, 2, None]
    assert stored(gantry) == {"log": [0, 1, 2]}


def test_each_step_may_be_made_in_a_thread_of_its_own(gantry):
    generator, items = counts(gantry)(3), []

    for _ in range(4):
        thread = threading.Thread(target=lambda: items.append(next(generator, None)))
        thread.start()
        thread.join()

    assert items == [0, 1, 2, None]
    assert stored(gantry) == {"log": [0, 1, 2]}


@pytest.mark.anyio
async def test_each_step_may_be_made_in_a_task_of_its_own(gantry):
    generator, items = acounts(gantry)(3), []

    async def step():
        items.append(await anext(generator, None))

    for _ in range(4):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)

    assert items == [0, 1, 2, None]
    async with gantry.memory() as memory:
        assert memory == {"log": [0, 1, 2]}


# With the other ways to ask for memory.


def test_generator_with_a_context_and_a_session_is_one_unit(gantry):
    @gantry.with_session
    @gantry.with_context
    def tool(session: SyncSession, ctx, fail):
        session.set("a", 1)
        yield ctx.memory.get("a")
        ctx.scope("user")["b"] = 2
        kept[:] = [session, ctx]
        yield session.keys()
        if fail:
            raise KeyError("the body failed")

    kept = []
    for fail in (True, False):
        with gantry.session("hers", user="ada"), contextlib.suppress(KeyError):
            assert list(tool(fail=fail)) == [1, ["a"]]
        assert stored(gantry, session="hers", user="ada") == ({} if fail else {"a": 1})
        assert stored(gantry, "user", user="ada") == ({} if fail else {"b": 2})
        with pytest.raises(CallEndedError):
            kept[0].get("a")
        with pytest.raises(CallEndedError):
            kept[1].scope("user")


@pytest.mark.anyio
async def test_async_generator_with_a_context_and_a_session_is_one_unit(gantry):
    @gantry.with_session
    @gantry.with_context
    async def tool(session: Session, ctx):
        await session.set("a", 1)
        yield ctx.memory.get("a")
        (await ctx.scope("user"))["b"] = 2
        yield await session.keys()

    async with gantry.session("hers", user="ada"):
        async with aclosing(tool()) as generator:
            assert await generator.__anext__() == 1
        async with gantry.memory() as memory:
            assert memory == {}
        assert [item async for item in tool()] == [1, ["a"]]
        async with gantry.memory() as memory, gantry.memory("user") as preferences:
            assert (memory, preferences) == ({"a": 1}, {"b": 2})


def test_session_may_be_used_between_two_steps_of_its_generator(gantry):
    @gantry.with_session
    def tool(session):
        yield session
        session.add("n", 1)

    for session in tool():
        session.set("n", 1)
        assert stored(gantry) == {}

    assert stored(gantry) == {"n": 2}


def test_exclusive_generator_gives_its_turn_back_however_it_ends(gantry):
    @gantry.with_memory(exclusive=True)
    def tool(memory, fail):
        memory.add("n", 1)
        yield 1
        if fail:
            raise KeyError("the body failed")

    with pytest.raises(KeyError):
        list(tool(fail=True))
    generator = tool(fail=False)
    next(generator)
    generator.close()

    assert list(tool(fail=False)) == [1]
    assert stored(gantry) == {"n": 1}
