"""What was erased stays erased, whatever calls were under way."""

from __future__ import annotations

import anyio
import pytest

from agent_gantry_state import (
    ExecutionContext,
    Gantry,
    MemoryErasedError,
    MissingIdentityError,
    Namespace,
    Session,
    SessionOwnerError,
    SyncSession,
    merge,
)
from agent_gantry_state.stores.protocol import List

pytestmark = pytest.mark.once

START = {"n": 1, "files": ["a"], "plan": {"step": 1}, "gone": True}
WHO = {"user": "ada", "conversation": "c1", "tenant": "t1"}


@pytest.fixture
def gantry(new_gantry):
    with new_gantry() as gantry, gantry.session("s1", **WHO):
        yield gantry


def content(gantry, scope="session", **who):
    with gantry.memory(scope, **who) as memory:
        return dict(memory)


def fill(gantry, scope="session"):
    with gantry.memory(scope) as memory:
        memory.update(START)


def count(gantry):
    return len(gantry._wiring.settings.bridge.store.list(List()).listed)


def anew(gantry, **values):
    """What somebody else does in between."""
    with gantry.independent():
        gantry.end_session("s1")
        with gantry.memory() as memory:
            memory.update(values)


CHANGES = {
    "assign": lambda memory: memory.update(n=2),
    "assign to a new key": lambda memory: memory.update(fresh=2),
    "append": lambda memory: memory["files"].append("b"),
    "change nested": lambda memory: memory["plan"].update(step=2),
    "add": lambda memory: memory.add("n"),
    "add to a new key": lambda memory: memory.add("fresh"),
    "delete": lambda memory: memory.pop("gone"),
    "clear": lambda memory: memory.clear(),
    "expire": lambda memory: memory.expire("n", 60.0),
    "set with a ttl": lambda memory: memory.set("n", 2, 60.0),
    "rebuild": lambda memory: [memory.update(memory.copy()), memory.pop("n"), memory.update(n=1)],
}


# The verbs.


def test_end_session_erases_it_and_nothing_else(gantry):
    fill(gantry)
    fill(gantry, "user")
    with gantry.session("s2", **WHO):
        fill(gantry)

    gantry.end_session("s1")

    assert (content(gantry), count(gantry)) == ({}, 2)
    assert content(gantry, "user") == content(gantry, session="s2", user="ada") == START


@pytest.mark.anyio
async def test_aend_session_erases_it(gantry):
    fill(gantry)
    await gantry.aend_session("s1")
    assert (content(gantry), count(gantry)) == ({}, 0)


@pytest.mark.parametrize("scope", ["session", "user", "conversation", "tenant", "global"])
def test_forget_erases_a_memory_of_any_scope(gantry, scope):
    fill(gantry, scope)
    gantry.forget(scope)
    assert (content(gantry, scope), count(gantry)) == ({}, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("scope", ["session", "user", "conversation", "tenant", "global"])
async def test_aforget_erases_a_memory_of_any_scope(gantry, scope):
    fill(gantry, scope)
    await gantry.aforget(scope)
    assert (content(gantry, scope), count(gantry)) == ({}, 0)


@pytest.mark.anyio
async def test_forget_erases_what_a_tool_remembers_for_itself(gantry):
    @gantry.with_memory(scope="tool", name="counter")
    def tool(memory):
        return memory.add("n")

    assert (tool(), tool()) == (1, 2)
    gantry.forget("tool", tool="another")
    assert tool() == 3
    gantry.forget("tool", tool="counter")
    assert tool() == 1
    await gantry.aforget("tool", tool="counter")
    assert tool() == 1


def test_forget_takes_ids_that_are_stated(gantry):
    with gantry.memory("user", user="bob") as memory:
        memory["x"] = 1
    with gantry.memory("tenant", tenant="t2") as memory:
        memory["x"] = 1
    fill(gantry, "user")

    gantry.forget("user", user="bob")
    gantry.forget("tenant", tenant="t2")

    assert (content(gantry, "user"), count(gantry)) == (START, 1)


@pytest.mark.anyio
async def test_session_that_a_resolver_finds_by_another_key_is_ended_with_it():
    def by_tenant(request):
        tenant, session = request.identity.get("tenant"), request.identity.session
        return Namespace("session", f"{tenant}/{session}") if request.scope == "session" and tenant else None

    with Gantry(resolvers=[by_tenant]) as gantry:
        acme, other = {"session": "s1", "tenant": "acme"}, {"session": "s1", "tenant": "other"}
        gantry_ends = (
            lambda: gantry.end_session("s1", tenant="acme"),
            lambda: gantry.forget("session", session="s1", tenant="acme"),
            lambda: gantry.aend_session("s1", tenant="acme"),
            lambda: gantry.aforget("session", session="s1", tenant="acme"),
        )
        for end in gantry_ends:
            for who in (acme, other):
                with gantry.memory(**who) as memory:
                    memory["x"] = 1
            gantry.end_session("s1")
            assert content(gantry, **acme) == {"x": 1}

            done = end()
            if done is not None:
                await done

            assert (content(gantry, **acme), content(gantry, **other)) == ({}, {"x": 1})


def test_what_was_never_there_can_be_erased(gantry):
    gantry.end_session("never seen")
    gantry.forget("user")
    assert count(gantry) == 0


@pytest.mark.anyio
async def test_forget_needs_to_know_whose(gantry):
    with gantry.session("s1"), pytest.raises(MissingIdentityError):
        gantry.forget("user")
    with gantry.session("s1"), pytest.raises(MissingIdentityError):
        await gantry.aforget("tenant")
    with pytest.raises(MissingIdentityError):
        # What is stated is the whole identity.
        gantry.forget("conversation", user="ada")
    with pytest.raises(ValueError, match="empty"):
        gantry.end_session("")


@pytest.mark.parametrize("who", [{"user": "bob"}, {}])
def test_id_of_an_ended_session_is_free_for_anybody(gantry, call, who):
    fill(gantry)
    gantry.end_session("s1")
    with gantry.session("s1", **who):
        call(gantry, CHANGES["add"])
        assert content(gantry) == {"n": 1}
    with pytest.raises(SessionOwnerError):
        content(gantry)


def test_erasing_asks_for_no_owner(gantry):
    fill(gantry)
    with gantry.session("s1", user="bob"):
        gantry.end_session("s1")
    assert content(gantry) == {}


# Units in flight.


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_unit_in_flight_brings_nothing_back(gantry, call, change):
    def body(memory):
        change(memory)
        gantry.end_session("s1")

    fill(gantry)
    with pytest.raises(MemoryErasedError) as caught:
        call(gantry, body)

    assert (content(gantry), count(gantry)) == ({}, 0)
    assert caught.value.committed is False
    assert caught.value.scope == "session"
    assert "s1" not in str(caught.value)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("between", [{"other": 1}, START], ids=["other keys", "the same keys"])
def test_unit_in_flight_leaves_what_was_made_anew_alone(gantry, call, change, between):
    def body(memory):
        change(memory)
        anew(gantry, **between)

    fill(gantry)
    with pytest.raises(MemoryErasedError):
        call(gantry, body)
    assert content(gantry) == between


@pytest.mark.parametrize("merges", [merge.longest, lambda base, theirs, ours: ours, merge.add, merge.max])
@pytest.mark.parametrize("again", [True, False])
def test_merge_function_is_not_asked_about_what_was_erased(gantry, call, merges, again):
    asked = []

    def watched(base, theirs, ours):
        asked.append(ours)
        return merges(base, theirs, ours)

    def body(memory):
        memory["n"] = 5
        anew(gantry, **({"n": 7} if again else {}))

    fill(gantry)
    with pytest.raises(MemoryErasedError):
        call(gantry, body, merge={"n": watched})
    assert content(gantry) == ({"n": 7} if again else {})
    assert asked == []


def test_erased_twice_and_made_anew_is_still_erased(gantry, call):
    def body(memory):
        memory.add("n")
        anew(gantry, n=1)
        anew(gantry, n=1)

    fill(gantry)
    with pytest.raises(MemoryErasedError):
        call(gantry, body)
    assert content(gantry) == {"n": 1}


def test_touch_of_what_was_erased_is_let_go(gantry, call):
    now = [1000.0]

    def body(memory):
        now[0] += 5
        gantry.end_session("s1")

    with gantry.override(clock=lambda: now[0]):
        call(gantry, CHANGES["add to a new key"], ttl=10.0, sliding=True)
        call(gantry, body, ttl=10.0, sliding=True)
        assert count(gantry) == 0


def test_new_run_after_a_conflict_starts_from_nothing(gantry, call):
    seen = []

    def body(memory):
        seen.append(dict(memory))
        memory["n"] = memory.get("n", 0) + 10
        if len(seen) == 1:
            with gantry.independent(), gantry.memory() as other:
                other["n"] = 5
        if len(seen) == 2:
            gantry.end_session("s1")

    fill(gantry)
    with pytest.raises(MemoryErasedError):
        call(gantry, body, on_conflict="retry")
    assert (len(seen), content(gantry)) == (2, {})


def test_what_was_erased_is_not_begun_anew_by_another_run(gantry, call):
    """An end is an end: `on_conflict="retry"` is for conflicts."""
    seen = []

    def body(memory):
        seen.append(dict(memory))
        memory["n"] = memory.get("n", 0) + 10
        if len(seen) == 1:
            gantry.end_session("s1")

    fill(gantry)
    with pytest.raises(MemoryErasedError):
        call(gantry, body, on_conflict="retry")

    assert seen == [START]
    assert content(gantry) == {}


def test_exclusive_unit_brings_nothing_back(gantry, call):
    def body(memory):
        memory.add("n")
        gantry.end_session("s1")

    fill(gantry)
    for options in ({"exclusive": True}, {"isolation": "serializable"}, {"keys": ("n",)}):
        with pytest.raises(MemoryErasedError):
            call(gantry, body, **options)
        assert content(gantry) == {}
        fill(gantry)


@pytest.mark.parametrize("victim", ["session", "user"])
def test_of_two_memories_one_erased_neither_is_written(gantry, victim):
    @gantry.with_memory(scope="user", into="mine")
    @gantry.with_memory
    def both(mine, memory):
        mine.add("n")
        memory.add("n")
        with gantry.independent():
            gantry.forget(victim)

    fill(gantry)
    fill(gantry, "user")
    with pytest.raises(MemoryErasedError) as caught:
        both()

    assert caught.value.scope == victim
    assert content(gantry, victim) == {}
    assert content(gantry, "user" if victim == "session" else "session") == START


@pytest.mark.anyio
async def test_of_two_memories_one_erased_neither_is_written_async(gantry):
    @gantry.with_memory(scope="user", into="mine")
    @gantry.with_memory
    async def both(mine, memory):
        mine.add("n")
        memory.add("n")
        await gantry.aforget("session")

    fill(gantry)
    fill(gantry, "user")
    with pytest.raises(MemoryErasedError):
        await both()
    assert (content(gantry), content(gantry, "user")) == ({}, START)


# Calls inside calls.


def test_nested_call_brings_nothing_back(gantry, call):
    child = gantry.with_memory(CHANGES["append"])

    def outer(memory):
        child()
        gantry.end_session("s1")

    fill(gantry)
    for scope in ("session", "global"):
        with pytest.raises(MemoryErasedError):
            call(gantry, outer, scope=scope)
        assert content(gantry) == {}
        fill(gantry)


def test_nested_call_after_the_erasure_brings_nothing_back(gantry, call):
    child = gantry.with_memory(CHANGES["append"])

    def outer(memory):
        gantry.end_session("s1")
        child()

    fill(gantry)
    with pytest.raises(MemoryErasedError):
        call(gantry, outer)
    assert content(gantry) == {}


def test_nested_call_of_a_new_session_brings_nothing_back(gantry, call):
    """What the call around it had not loaded was erased before anybody of the two saw it."""
    child = gantry.with_memory(CHANGES["add"])

    def outer(memory):
        gantry.end_session("s1")
        child()

    fill(gantry)
    call(gantry, outer, scope="global")
    assert content(gantry) == {"n": 1}


async def outlive(gantry, between):
    """A call goes on after the one in which it was made has made the session; what *between* does comes before its end."""
    has_loaded, may_end = anyio.Event(), anyio.Event()
    outcome = []

    @gantry.with_memory
    async def child(memory):
        memory["files"].append("child")
        has_loaded.set()
        await may_end.wait()

    async def watched():
        try:
            await child()
            outcome.append("landed")
        except MemoryErasedError:
            outcome.append("refused")

    async with anyio.create_task_group() as group:

        @gantry.with_memory
        async def outer(memory):
            memory["files"] = ["outer"]
            group.start_soon(watched)
            await has_loaded.wait()

        await outer()
        between()
        may_end.set()
    return outcome[0]


@pytest.mark.anyio
async def test_call_that_outlives_its_outer_one_brings_nothing_back(gantry):
    assert await outlive(gantry, lambda: gantry.end_session("s1")) == "refused"
    assert content(gantry) == {}


@pytest.mark.anyio
async def test_call_that_outlives_its_outer_one_leaves_what_was_made_anew_alone(gantry):
    assert await outlive(gantry, lambda: anew(gantry, fresh=1)) == "refused"
    assert content(gantry) == {"fresh": 1}


@pytest.mark.anyio
@pytest.mark.parametrize("filled", [True, False])
async def test_call_that_outlives_its_outer_one_lands_where_nothing_was_erased(gantry, filled):
    if filled:
        fill(gantry)
    assert await outlive(gantry, lambda: None) == "landed"
    assert content(gantry)["files"] == ["outer", "child"]


def test_memory_block_brings_nothing_back(gantry):
    fill(gantry)
    block = gantry.memory()
    block.__enter__().add("n")
    gantry.end_session("s1")
    with pytest.raises(MemoryErasedError):
        block.__exit__(None, None, None)
    assert content(gantry) == {}


@pytest.mark.anyio
async def test_async_memory_block_brings_nothing_back(gantry):
    fill(gantry)
    block = gantry.memory()
    (await block.__aenter__()).add("n")
    await gantry.aend_session("s1")
    with pytest.raises(MemoryErasedError):
        await block.__aexit__(None, None, None)
    assert content(gantry) == {}


# Key by key.


OPERATIONS = {
    "get": lambda session: session.get("files"),
    "get what is not there": lambda session: session.get("fresh"),
    "set": lambda session: session.set("plan", 1),
    "add": lambda session: session.add("n"),
    "add to a new key": lambda session: session.add("fresh"),
    "delete": lambda session: session.delete("gone"),
}


@pytest.mark.parametrize("first", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("again", [True, False])
def test_sync_session_brings_nothing_back(gantry, first, again):
    @gantry.with_session
    def tool(session: SyncSession):
        session.get("n")
        first(session)
        session.set("mine", 1)
        anew(gantry, **({"n": 7} if again else {}))

    @gantry.with_session
    def goes_on(session: SyncSession):
        first(session)
        session.set("mine", 1)
        anew(gantry, **({"n": 7} if again else {}))
        session.get("another key")

    for each in (tool, goes_on):
        gantry.end_session("s1")
        fill(gantry)
        with pytest.raises(MemoryErasedError):
            each()
        assert content(gantry) == ({"n": 7} if again else {})


@pytest.mark.anyio
async def test_session_brings_nothing_back(gantry):
    @gantry.with_session
    async def tool(key, session: Session):
        await session.add("n")
        await gantry.aend_session("s1")
        await session.add(key)

    for key in ("n", "fresh"):
        fill(gantry)
        with pytest.raises(MemoryErasedError):
            await tool(key)
        assert content(gantry) == {}


@pytest.mark.anyio
async def test_context_brings_nothing_back(gantry):
    @gantry.with_context
    async def tool(ctx: ExecutionContext):
        ctx.memory.add("n")
        (await ctx.scope("user")).add("n")
        await gantry.aforget("user")

    fill(gantry)
    fill(gantry, "user")
    with pytest.raises(MemoryErasedError) as caught:
        await tool()
    assert caught.value.scope == "user"
    assert (content(gantry), content(gantry, "user")) == (START, {})


def test_generator_brings_nothing_back(gantry):
    @gantry.with_memory
    def tool(memory):
        memory.add("n")
        yield 1
        yield 2

    fill(gantry)
    steps = tool()
    assert next(steps) == 1
    gantry.end_session("s1")
    with pytest.raises(MemoryErasedError):
        list(steps)
    assert content(gantry) == {}


# What expires is not erased, and what was erased did not expire.


def test_what_expired_meanwhile_is_written_afresh(gantry, call):
    now = [1000.0]

    def body(memory):
        memory.add("n")
        now[0] += 20

    with gantry.override(clock=lambda: now[0]):
        call(gantry, CHANGES["add"], ttl=10.0)
        call(gantry, body, ttl=10.0)
        assert content(gantry) == {"n": 2}


def test_key_that_would_have_expired_does_not_hide_an_erasure(gantry, call):
    """A call that loads one key which expires sees as well as one that loads all that the memory was erased."""
    now = [1000.0]

    def body(memory):
        memory["short"] = [*memory["short"], 2]
        gantry.end_session("s1")
        now[0] += 20

    for options in ({}, {"keys": ("short",)}):
        with gantry.override(clock=lambda: now[0]):
            fill(gantry)
            call(gantry, lambda memory: memory.set("short", [1], 10.0))
            with pytest.raises(MemoryErasedError):
                call(gantry, body, **options)
            assert content(gantry) == {}
