"""The facade: scopes at work, memory outside tools, override, closing, and stores by URL."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import anyio.to_thread
import pytest

from agent_gantry_state import (
    DeclarationError,
    Gantry,
    Identity,
    Memory,
    MissingIdentityError,
    Namespace,
    StoreClosedError,
    StoreURLError,
    UnstorableValueError,
    current_identity,
    merge,
)
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.urls import open_store


@pytest.fixture
def gantry():
    with Gantry() as made:
        yield made


def counter(gantry, **options):
    def count(memory):
        return memory.add("n", 1)

    return gantry.with_memory(**options)(count)


class OwnClockStore(MemoryStore):
    """A store that goes by its own clock, as servers do."""

    clock = None


class AsyncStore:
    """A store made of coroutines, which has to be asked by messages."""

    clock = None

    def __init__(self):
        self.inner = MemoryStore()
        self.closed = 0

    async def load(self, message, /):
        return self.inner.load(message)

    async def commit(self, message, /):
        return self.inner.commit(message)

    async def forget(self, message, /):
        return self.inner.forget(message)

    async def list(self, message, /):
        return self.inner.list(message)

    async def lease(self, message, /):
        return self.inner.lease(message)

    async def release(self, message, /):
        return self.inner.release(message)

    async def close(self):
        self.closed += 1


# Scopes at work.

KEYED = ["session", "conversation", "user", "tenant"]


def session_of(gantry, scope, id):
    return gantry.session(id) if scope == "session" else gantry.session("any", **{scope: id})


@pytest.mark.parametrize("scope", KEYED)
def test_scope_is_shared_by_who_has_its_id_and_by_nobody_else(gantry, scope):
    count, results = counter(gantry, scope=scope), []

    for id in ("a", "b", "a"):
        with session_of(gantry, scope, id):
            results.append(count())

    assert results == [1, 1, 2]


@pytest.mark.parametrize("scope", KEYED)
def test_scope_is_shared_by_all_tools(gantry, scope):
    one, other = counter(gantry, scope=scope), counter(gantry, scope=scope)

    with session_of(gantry, scope, "a"):
        assert (one(), other()) == (1, 2)


def test_global_scope_is_everybodys(gantry):
    one, other = counter(gantry, scope="global"), counter(gantry, scope="global")

    with gantry.session("a"):
        assert one() == 1
    assert other() == 2


def test_tool_scope_is_one_tools_whoever_calls(gantry):
    one, other = counter(gantry, scope="tool", name="one"), counter(gantry, scope="tool", name="other")

    with gantry.session("a"):
        assert (one(), other()) == (1, 1)
    with gantry.session("b"):
        assert (one(), other()) == (2, 2)


def test_scopes_are_apart_for_one_id(gantry):
    with gantry.session("x", user="x", conversation="x", tenant="x", team="global"):
        for scope in (*KEYED, "global", "tool", "team"):
            assert counter(gantry, scope=scope, name="global")() == 1


def test_each_tool_has_its_own_scope(gantry):
    @gantry.with_memory(scope="session")
    def basket(item, memory):
        return memory.setdefault("items", []).append(item) or len(memory["items"])

    @gantry.with_memory(scope="user")
    def prefer(word, memory):
        memory["word"] = word

    @gantry.with_memory(scope="global")
    def visits(memory):
        return memory.add("n", 1)

    with gantry.session("s1", user="ada"):
        prefer("french")
        assert (basket("a"), visits()) == (1, 1)
    with gantry.session("s2", user="ada"):
        assert (basket("b"), visits()) == (1, 2)

    with gantry.memory("user", user="ada") as memory:
        assert memory == {"word": "french"}
    with gantry.memory(session="s1", user="ada") as memory:
        assert memory == {"items": ["a"]}


def test_decorators_stack_on_one_tool(gantry):
    @gantry.with_memory(scope="user", into="preferences")
    @gantry.with_memory(scope="global", into="shared")
    @gantry.with_memory
    def tool(item, memory, preferences, shared):
        memory["item"], preferences["item"], shared["item"] = item, item, item
        if item == "fail":
            raise ValueError(item)

    with gantry.session("s1", user="ada"):
        tool("a")
        with pytest.raises(ValueError, match="fail"):
            tool("fail")
        for scope in ("session", "user", "global"):
            with gantry.memory(scope) as memory:
                assert memory == {"item": "a"}


@pytest.mark.parametrize("scope", KEYED)
def test_unknown_identity_is_an_error_before_the_body_runs(gantry, scope):
    ran = []
    tool = gantry.with_memory(scope=scope)(lambda memory: ran.append(1))

    with pytest.raises(MissingIdentityError, match=f"no {scope} is known here") as caught:
        tool()

    assert caught.value.scope == scope
    assert ran == []


def test_missing_key_of_an_open_session_is_an_error(gantry):
    with gantry.session("s1", user="ada"), pytest.raises(MissingIdentityError, match="no tenant"):
        counter(gantry, scope="tenant")()
    with gantry.session("s1"), pytest.raises(MissingIdentityError, match="no user"):
        counter(gantry, scope="user")()


def test_misspelt_scope_offers_the_near_name(gantry):
    with gantry.session("s1"), pytest.raises(MissingIdentityError, match="did you mean scope='session'"):
        counter(gantry, scope="sesion")()


@pytest.mark.anyio
async def test_async_tool_without_a_session_is_an_error(gantry):
    @gantry.with_memory
    async def tool(memory):
        raise AssertionError("the body ran")

    with pytest.raises(MissingIdentityError):
        await tool()


def test_single_user_program_says_so_once():
    with Gantry(session="local", user="me") as gantry:
        count = counter(gantry)
        assert (count(), count(), counter(gantry, scope="user")()) == (1, 2, 1)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(count).result() == 3
        with gantry.session("other"):
            assert count() == 1
            with pytest.raises(MissingIdentityError):
                counter(gantry, scope="user")()


def test_session_of_one_gantry_holds_for_another(gantry):
    with Gantry() as other, other.session("s1"):
        assert counter(gantry)() == 1


@pytest.mark.parametrize("bad", [{"session": ""}, {"user": ""}])
def test_gantry_refuses_an_empty_id(bad):
    with pytest.raises(ValueError, match="must not be empty"):
        Gantry(**bad)


@pytest.mark.parametrize("bad", [{"session": 5}, {"user": b"ada"}, {"app": 5}])
def test_gantry_refuses_what_is_no_str(bad):
    with pytest.raises(TypeError, match="must be a str"):
        Gantry(**bad)


# Names of tools.


def make(module, source="def search(memory):\n    return memory.add('n', 1)\n"):
    namespace = {"__name__": module}
    exec(source, namespace)
    return namespace["search"]


def test_two_tools_of_one_name_with_scope_tool_are_refused(gantry):
    one, other = make("one"), make("other")
    first = gantry.with_memory(scope="tool")(one)
    assert first() == 1

    with pytest.raises(DeclarationError, match=r"two different tools.*'search'.*with_memory\(name="):
        gantry.with_memory(scope="tool")(other)()

    assert gantry.with_memory(scope="tool", name="other")(other)() == 1
    assert first() == 2


def test_two_local_functions_of_one_name_with_scope_tool_are_refused(gantry):
    def build(step):
        def search(memory):
            return memory.add("n", step)

        return gantry.with_memory(scope="tool")(search)

    one, other = build(1), build(2)
    assert one() == 1
    with pytest.raises(DeclarationError, match="two different tools"):
        other()


def test_two_tools_that_declare_one_name_are_refused(gantry):
    def one(memory):
        pass

    def other(memory):
        pass

    tools = [gantry.with_memory(scope="tool", name="same")(function) for function in (one, other)]
    tools[0]()
    with pytest.raises(DeclarationError, match="'same'"):
        tools[1]()


def test_redefined_tool_keeps_its_memory(gantry):
    one = gantry.with_memory(scope="tool")(make("notebook"))
    assert one() == 1

    again = gantry.with_memory(scope="tool")(make("notebook"))

    assert again() == 2
    assert one() == 3


def test_tools_of_one_name_may_share_a_session(gantry):
    with gantry.session("s1"):
        assert [gantry.with_memory(make(module))() for module in ("one", "other")] == [1, 2]


def test_tool_of_the_same_name_on_another_gantry_is_no_matter(gantry):
    with Gantry() as other:
        assert gantry.with_memory(scope="tool")(make("one"))() == 1
        assert other.with_memory(scope="tool")(make("other"))() == 1


# Memory outside tools.


def test_memory_outside_a_tool_goes_by_the_identity_it_is_given(gantry):
    with gantry.memory("user", user="ada") as memory:
        assert type(memory) is Memory
        memory["n"] = 1

    with gantry.memory("user", user="ada") as memory:
        assert memory == {"n": 1}
    with gantry.memory("user", user="bob") as memory:
        assert memory == {}


def test_memory_outside_a_tool_goes_by_the_session_that_is_open(gantry):
    with gantry.session("s1", user="ada"):
        with gantry.memory() as memory:
            memory["n"] = 1
        with gantry.memory("user") as memory:
            assert memory == {}
    with gantry.memory(session="s1", user="ada") as memory:
        assert memory == {"n": 1}


def test_identity_given_to_memory_is_all_that_is_known(gantry):
    with gantry.session("s1", user="ada"):
        with pytest.raises(MissingIdentityError, match="no session"), gantry.memory(user="bob"):
            pass
        with pytest.raises(MissingIdentityError, match="no user"), gantry.memory("user", session="s1"):
            pass


def test_memory_without_any_identity_is_an_error_on_entering(gantry):
    block = gantry.memory()

    with pytest.raises(MissingIdentityError):
        block.__enter__()


def test_memory_of_a_tool_by_its_name(gantry):
    count = counter(gantry, scope="tool", name="count")
    count()

    with gantry.memory("tool", tool="count") as memory:
        assert memory == {"n": 1}
        memory["n"] = 10
    assert count() == 11
    with pytest.raises(MissingIdentityError, match="pass tool="), gantry.memory("tool"):
        pass


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_memory_block_left_by_an_error_commits_nothing(gantry, failure):
    def fill(memory):
        memory["n"] = 1
        raise failure

    with pytest.raises(failure), gantry.memory(session="s1") as memory:
        fill(memory)

    with gantry.memory(session="s1") as memory:
        assert memory == {}


def test_memory_block_that_cannot_be_stored_commits_nothing(gantry):
    with pytest.raises(UnstorableValueError), gantry.memory(session="s1") as memory:
        memory.update(fine=1, bad=object())

    with gantry.memory(session="s1") as memory:
        assert memory == {}


def test_abandoned_memory_block_commits_nothing(gantry):
    gantry.memory(session="s1").__enter__()["n"] = 1

    with gantry.memory(session="s1") as memory:
        assert memory == {}


def test_memory_block_can_be_used_again(gantry):
    block = gantry.memory(session="s1")

    for turn in range(3):
        with block as memory:
            assert memory.add("n", 1) == turn + 1


@pytest.mark.anyio
async def test_async_memory_block_commits_or_discards(gantry):
    async def fail():
        async with gantry.memory(session="s1") as memory:
            memory["n"] = 2
            raise ValueError("x")

    async with gantry.memory(session="s1") as memory:
        memory["n"] = 1
    with pytest.raises(ValueError, match="x"):
        await fail()
    with anyio.move_on_after(0):
        async with gantry.memory(session="s1") as memory:
            memory["n"] = 3
            await anyio.sleep_forever()

    async with gantry.memory(session="s1") as memory:
        assert memory == {"n": 1}


@pytest.mark.anyio
async def test_memory_block_can_be_left_in_another_task(gantry):
    block = gantry.memory(session="s1")

    async def enter():
        (await block.__aenter__())["n"] = 1

    async def leave():
        await block.__aexit__(None, None, None)

    for step in (enter, leave):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)

    with gantry.memory(session="s1") as memory:
        assert memory == {"n": 1}


@pytest.mark.anyio
@pytest.mark.parametrize("fails_first", [True, False])
async def test_one_memory_block_in_two_tasks_is_a_block_of_each(gantry, fails_first):
    block = gantry.memory(session="s1")
    inside, first_has_left = [anyio.Event(), anyio.Event()], anyio.Event()

    async def use(name, n, fails, is_first):
        with pytest.raises(LookupError) if fails else contextlib.nullcontext():
            async with block as memory:
                memory[name] = 1
                inside[n].set()
                for event in inside if is_first else (*inside, first_has_left):
                    await event.wait()
                if fails:
                    raise LookupError
        if is_first:
            first_has_left.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use, "good", 0, False, not fails_first)
        await inside[0].wait()
        tasks.start_soon(use, "bad", 1, True, fails_first)

    with gantry.memory(session="s1") as memory:
        assert memory == {"good": 1}


def test_one_memory_block_in_two_threads_is_a_block_of_each(gantry):
    block = gantry.memory(session="s1")
    inside, may_leave = threading.Event(), threading.Event()

    def good():
        with block as memory:
            memory["good"] = 1
            inside.set()
            assert may_leave.wait(10)

    thread = threading.Thread(target=good)
    thread.start()
    assert inside.wait(10)

    def bad():
        with block as memory:
            memory["bad"] = 1
            may_leave.set()
            thread.join()
            raise LookupError

    with pytest.raises(LookupError):
        bad()

    with gantry.memory(session="s1") as memory:
        assert memory == {"good": 1}


def test_parallel_memory_blocks_are_merged(gantry):
    with gantry.memory(session="s1") as one, gantry.memory(session="s1") as other:
        one.setdefault("items", []).append("one")
        other.setdefault("items", []).append("other")

    with gantry.memory(session="s1") as memory:
        assert sorted(memory["items"]) == ["one", "other"]


@pytest.mark.parametrize("scope", ["", 5, None])
def test_memory_refuses_what_is_no_scope(gantry, scope):
    with pytest.raises(DeclarationError, match="scope must"):
        gantry.memory(scope)


# Override.


def test_override_swaps_the_store_and_puts_it_back(gantry):
    count = counter(gantry, scope="global")
    count()

    with gantry.override(store="memory://") as override:
        assert isinstance(override.store, MemoryStore)
        assert (count(), count()) == (1, 2)

    assert count() == 2


def test_override_swaps_resolvers_and_puts_them_back():
    with Gantry(session="s", resolvers=[lambda request: Namespace("real", "x")]) as gantry:
        count = counter(gantry)
        count()

        with gantry.override(resolvers=[lambda request: Namespace("test", request.scope)]):
            assert (count(), count()) == (1, 2)
        with gantry.override(resolvers=[]):
            assert count() == 1

        assert count() == 2


def test_resolvers_that_are_swapped_are_asked_at_once_after_a_call():
    # The built-in answer of the first call is not to be kept.
    with Gantry(session="s") as gantry:
        counts = [counter(gantry, scope=scope, name=scope) for scope in ("session", "global", "tool")]
        for count in counts:
            count()
            with gantry.override(resolvers=[lambda request: Namespace("test", request.scope)]):
                assert count() == 1
            assert count() == 2


def test_override_of_the_session_states_the_whole_identity(gantry):
    with gantry.session("s1", user="ada", tenant="acme"):
        with gantry.override(session="s2", team="red"):
            assert current_identity() == Identity("s2", keys={"team": "red"})
        assert current_identity() == Identity("s1", "ada", None, {"tenant": "acme"})


def test_override_of_the_user_changes_the_user_only(gantry):
    with gantry.session("s1", user="ada", tenant="acme"):
        with gantry.override(user="bob"):
            assert current_identity() == Identity("s1", "bob", None, {"tenant": "acme"})
        assert current_identity().user == "ada"


def test_override_of_the_user_goes_by_the_gantrys_own_session():
    with Gantry(session="local") as gantry, gantry.override(user="ada"):
        assert current_identity() == Identity("local", "ada")


def test_override_of_the_user_goes_by_the_session_at_entering(gantry):
    override = gantry.override(user="bob")

    with gantry.session("s1"), override:
        assert current_identity() == Identity("s1", "bob")


def test_override_of_nothing_changes_nothing(gantry):
    count = counter(gantry)
    with gantry.session("s1"), gantry.override():
        assert current_identity() == Identity("s1")
        assert count() == 1


def test_overrides_nest(gantry):
    count = counter(gantry)

    with gantry.override(session="s1", store="memory://"):
        assert count() == 1
        with gantry.override(session="s2"):
            assert count() == 1
            with gantry.override(store="memory://"):
                assert count() == 1
            assert count() == 2
        assert count() == 2
    with pytest.raises(MissingIdentityError):
        count()


def test_one_override_can_be_entered_again_and_nested(gantry):
    override = gantry.override(session="s1", resolvers=[lambda request: None])
    seen = []

    def run():
        for _ in range(2):
            with override, override:
                seen.append(current_identity())
            seen.append(current_identity())

    contextvars.copy_context().run(run)

    assert seen == [Identity("s1"), None] * 2


def test_overrides_are_undone_in_any_order(gantry):
    count = counter(gantry, scope="global")
    assert count() == 1
    outer, inner = gantry.override(store="memory://"), gantry.override(store="memory://")
    outer.__enter__()
    inner.__enter__()
    assert [count() for _ in range(5)][-1] == 5

    outer.__exit__(None, None, None)
    assert count() == 6
    inner.__exit__(None, None, None)
    assert count() == 2


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, asyncio.CancelledError])
def test_override_is_undone_when_the_body_raises(gantry, failure):
    count = counter(gantry, scope="global")
    count()

    def fail():
        assert count() == 1
        raise failure

    with pytest.raises(failure), gantry.override(session="s", store="memory://", resolvers=[lambda request: None]):
        fail()

    assert count() == 2
    assert current_identity() is None


@pytest.mark.anyio
async def test_async_override_is_undone(gantry):
    count = counter(gantry, scope="global")

    async def fail():
        async with gantry.override(session="s1", store="memory://") as override:
            assert count() == 1
            assert override.store is not None
            assert current_identity().session == "s1"
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        await fail()

    assert count() == 1
    assert current_identity() is None


def test_override_of_the_store_holds_in_every_thread_and_its_identity_only_here(gantry):
    count, mine = counter(gantry, scope="global"), counter(gantry)
    count()

    with gantry.override(session="s1", store="memory://"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(count).result() == 1
        assert mine() == 1
        with pytest.raises(MissingIdentityError):
            pool.submit(mine).result()
        assert pool.submit(contextvars.copy_context().run, mine).result() == 2

    assert count() == 2


@pytest.mark.anyio
async def test_override_is_undone_from_another_task_and_thread(gantry):
    count = counter(gantry, scope="global")
    count()
    overrides = [gantry.override(session="s1", store="memory://") for _ in range(2)]

    async def enter():
        for override in overrides:
            override.__enter__()
        assert count() == 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
    assert count() == 2
    await anyio.to_thread.run_sync(overrides[0].__exit__, None, None, None)
    await overrides[1].__aexit__(None, None, None)

    assert count() == 2
    assert current_identity() is None


def test_unit_keeps_the_store_that_it_began_with(gantry):
    other = MemoryStore()
    override = gantry.override(store=other)

    @gantry.with_memory(scope="global")
    def tool(memory):
        override.__enter__()
        memory["n"] = 1

    tool()
    assert len(other) == 0
    override.__exit__(None, None, None)

    with gantry.memory("global") as memory:
        assert memory == {"n": 1}


@pytest.mark.anyio
async def test_async_unit_and_memory_block_keep_the_store_that_they_began_with(gantry):
    other = MemoryStore()
    override = gantry.override(store=other)

    @gantry.with_memory(scope="global", on_conflict="retry")
    async def tool(memory):
        await override.__aenter__()
        memory["n"] = 1

    async with gantry.memory("global") as memory:
        await tool()
        memory["m"] = 2
    assert len(other) == 0
    await override.__aexit__(None, None, None)

    with gantry.memory("global") as memory:
        assert memory == {"n": 1, "m": 2}


def test_override_of_the_clock_moves_time_and_gives_it_back(gantry):
    now = [1000.0]

    @gantry.with_memory(scope="global", ttl=60)
    def tool(memory):
        return memory.add("n", 1)

    with gantry.override(store="memory://", clock=lambda: now[0]):
        assert (tool(), tool()) == (1, 2)
        now[0] += 60
        assert tool() == 1


def test_override_of_the_clock_is_undone():
    store = MemoryStore(clock=lambda: 5.0)

    with Gantry(store) as gantry:
        with gantry.override(clock=lambda: 7.0):
            assert store.now() == 7.0
            with gantry.override(clock=lambda: 9.0):
                assert store.now() == 9.0
            assert store.now() == 7.0
        assert store.now() == 5.0


def test_store_object_of_an_override_gets_its_own_clock_back(gantry):
    store = MemoryStore(clock=lambda: 5.0)

    with gantry.override(store=store, clock=lambda: 7.0):
        assert store.now() == 7.0
    assert store.now() == 5.0
    with gantry.override(store=store):
        assert store.now() == 5.0


def test_override_of_one_gantry_leaves_the_clock_that_another_has_set():
    store = MemoryStore(clock=lambda: 5.0)
    one, other = Gantry(store), Gantry(store)

    with one.override(clock=lambda: 7.0):
        with other.override(session="s1"):
            assert store.now() == 7.0
        assert store.now() == 7.0
    assert store.now() == 5.0


@pytest.mark.parametrize("store", [OwnClockStore(), AsyncStore()], ids=["plain", "async"])
def test_clock_of_a_store_that_goes_by_its_own_is_refused(gantry, store):
    with Gantry(store) as other:
        override = other.override(session="s1", clock=lambda: 7.0)
        with pytest.raises(ValueError, match=r"override\(clock=...\): .*Store goes by its own clock.*store=\"memory://\""):
            override.__enter__()
        assert current_identity() is None
    override = gantry.override(store=store, clock=lambda: 7.0)
    with pytest.raises(ValueError, match="its own clock"):
        override.__enter__()
    with Gantry(store) as other, other.override(store="memory://", clock=lambda: 7.0) as override:
        assert override.store.now() == 7.0


def test_refused_override_leaves_everything_as_it_was(gantry):
    count = counter(gantry, scope="global")
    count()

    with pytest.raises(ValueError, match="clock"):
        gantry.override(store=OwnClockStore(), resolvers=[lambda request: 5], clock=lambda: 7.0).__enter__()

    assert count() == 2


@pytest.mark.parametrize("bad", [{"session": ""}, {"user": ""}, {"tenant": ""}])
def test_override_refuses_an_empty_id(gantry, bad):
    with pytest.raises(ValueError, match="must not be empty"):
        gantry.override(**bad).__enter__()

    assert current_identity() is None


def test_override_refuses_what_is_no_store(gantry):
    with pytest.raises(TypeError, match="dict is no store: name one by a URL"):
        gantry.override(store={"a": 1})
    with pytest.raises(StoreURLError):
        gantry.override(store="nowhere://")


def test_override_leaves_a_store_object_open_and_full(gantry):
    store = MemoryStore()
    count = counter(gantry, scope="global")

    for turn in (1, 2):
        with gantry.override(store=store):
            assert count() == turn


def test_parallel_overrides_of_identities_never_mix(gantry):
    count = counter(gantry)
    barrier = threading.Barrier(8)

    def run(number):
        barrier.wait(10)
        results = []
        for _ in range(20):
            with gantry.override(session=f"s{number}"):
                results.append(count())
        return results

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [list(range(1, 21))] * 8


# Closing.


def use_after_close(gantry, count):
    with pytest.raises(StoreClosedError) as caught:
        count()
    assert caught.value.committed is False
    with pytest.raises(StoreClosedError), gantry.memory(session="s"):
        pass


def test_tool_after_close_raises(gantry):
    made = Gantry(session="s")
    count = counter(made)
    count()

    made.close()
    made.close()

    use_after_close(made, count)


def test_with_closes():
    with Gantry(session="s") as gantry:
        count = counter(gantry)
        assert count() == 1

    use_after_close(gantry, count)


def test_with_closes_when_its_body_raises():
    with pytest.raises(ValueError, match="x"), Gantry(session="s") as gantry:
        raise ValueError("x")

    use_after_close(gantry, counter(gantry))


@pytest.mark.anyio
async def test_async_with_and_aclose_close():
    async with Gantry(session="s") as gantry:
        count = counter(gantry)
        acount = gantry.with_memory(_async_count)
        assert (count(), await acount()) == (1, 2)
    other = Gantry(session="s")
    await other.aclose()
    await other.aclose()

    use_after_close(gantry, count)
    use_after_close(other, counter(other))
    with pytest.raises(StoreClosedError):
        await acount()
    with pytest.raises(StoreClosedError):
        async with gantry.memory(session="s"):
            pass


async def _async_count(memory):
    return memory.add("n", 1)


def test_store_object_stays_open_when_its_gantry_closes():
    store = MemoryStore()
    with Gantry(store, session="s") as gantry:
        count = counter(gantry)
        count()

    use_after_close(gantry, count)
    with Gantry(store, session="s") as again:
        assert counter(again)() == 2


@pytest.mark.anyio
async def test_async_store_object_stays_open_when_its_gantry_closes():
    store = AsyncStore()
    async with Gantry(store, session="s") as gantry:
        assert await gantry.with_memory(_async_count)() == 1

    assert store.closed == 0


def test_override_after_close_does_not_open_it_again():
    gantry = Gantry(session="s")
    count = counter(gantry)
    gantry.close()

    with gantry.override(store="memory://"), pytest.raises(StoreClosedError):
        count()


def test_call_that_is_under_way_at_close_ends_with_what_is_known():
    store = MemoryStore()
    gantry = Gantry(store, session="s")

    @gantry.with_memory
    def tool(memory):
        memory["n"] = 1
        gantry.close()

    tool()

    with Gantry(store, session="s") as again, again.memory() as memory:
        assert memory == {"n": 1}


# Stores by URL.


def test_memory_url_makes_a_bounded_store():
    store = open_store("memory://?max_namespaces=2")

    assert isinstance(store, MemoryStore)
    assert open_store("memory://") is not open_store("memory://")
    assert isinstance(open_store("MEMORY://"), MemoryStore)


def test_each_gantry_has_a_memory_of_its_own():
    with Gantry(session="s") as one, Gantry(session="s") as other:
        assert (counter(one)(), counter(other)()) == (1, 1)


@pytest.mark.parametrize("scheme", ["memroy", "memori", "emory"])
def test_unknown_scheme_offers_the_near_name(scheme):
    with pytest.raises(StoreURLError, match=f"no store is known for {scheme}://; did you mean memory://"):
        open_store(f"{scheme}://")


def test_unknown_scheme_lists_those_known():
    with pytest.raises(StoreURLError, match=r"no store is known for zzz://; known: .*memory://"):
        open_store("zzz://user:secret@host/path")


def test_unknown_option_lists_those_known():
    with pytest.raises(
        StoreURLError, match=r"no option 'max_namespace'; did you mean max_namespaces\? It knows max_namespaces"
    ):
        open_store("memory://?max_namespace=5")


@pytest.mark.parametrize("value", ["", "many", "1.5", "0x10"])
def test_bad_value_of_an_option_is_named(value):
    with pytest.raises(StoreURLError, match="option 'max_namespaces' must be a whole number of at least 1"):
        open_store(f"memory://?max_namespaces={value}")


@pytest.mark.parametrize("value", ["0", "-1"])
def test_value_that_is_out_of_range_says_so(value):
    with pytest.raises(StoreURLError, match="a whole number of at least 1"):
        open_store(f"memory://?max_namespaces={value}")


def test_option_given_twice_is_refused():
    with pytest.raises(StoreURLError, match="each option can be given once"):
        open_store("memory://?max_namespaces=1&max_namespaces=2")


@pytest.mark.parametrize("url", ["memory://host", "memory:///path", "memory://user:secret@host"])
def test_memory_url_takes_no_host_and_no_path(url):
    with pytest.raises(StoreURLError, match="no host and no path") as caught:
        open_store(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "memory", "memory:", "://", "/tmp/memory", "memory://[", "memory://[x]:y"])
def test_malformed_url_is_a_store_url_error(url):
    with pytest.raises(StoreURLError) as caught:
        open_store(url)

    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("store", [None, 5, object(), {}])
def test_gantry_refuses_what_is_no_store(store):
    with pytest.raises(TypeError, match=r"is no store: name one by a URL.*methods load, commit"):
        Gantry(store)


def test_memory_block_merges_as_declared(gantry):
    with gantry.memory(session="s") as memory:
        memory["best"] = 1

    with gantry.memory(session="s", merge={"best": merge.max}) as ours:
        with gantry.memory(session="s") as theirs:
            theirs["best"] = 7
        ours["best"] = 5

    with gantry.memory(session="s") as memory:
        assert memory["best"] == 7


def test_one_memory_block_can_be_entered_again_inside_itself(gantry):
    block = gantry.memory(session="s")

    with block as outer:
        outer["log"] = ["outer"]
        with block as inner:
            inner["log"] = ["inner"]

    with gantry.memory(session="s") as memory:
        assert memory["log"] == ["inner", "outer"]


def test_call_in_flight_while_its_gantry_closes_is_an_error_and_no_false_success():
    gantry = Gantry(session="s")

    @gantry.with_memory
    def tool(memory):
        gantry.close()
        memory["x"] = 1

    with pytest.raises(StoreClosedError) as caught:
        tool()

    assert caught.value.committed is False


def test_objects_of_one_class_do_not_share_the_memory_of_a_tool(gantry):
    class Counter:
        def __call__(self, memory):
            return memory.add("n", 1)

    one, other = Counter(), Counter()
    gantry.with_memory(scope="tool")(one)()

    with pytest.raises(DeclarationError, match="named 'Counter'"):
        gantry.with_memory(scope="tool")(other)()
