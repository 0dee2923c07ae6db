"""A session belongs to whoever first committed to it; everybody else is refused, always in the same words."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import anyio
import pytest

from agent_gantry_state import (
    ExecutionContext,
    Gantry,
    MissingIdentityError,
    Namespace,
    Scope,
    Session,
    SessionOwnerError,
    SyncExecutionContext,
    SyncSession,
    UndeclaredKeyError,
)
from agent_gantry_state.stores.protocol import List

pytestmark = pytest.mark.once

NOBODY, ADA, BOB = {}, {"user": "ada-4711"}, {"user": "bob-0815"}
SESSION = "session-of-somebody"


@pytest.fixture
def gantry(new_gantry):
    return new_gantry()


def write(memory):
    memory["x"] = memory.get("x", 0) + 1
    return memory["x"]


def read(memory):
    return dict(memory)


def fail(memory):
    memory["x"] = 99
    raise RuntimeError("the tool's own")


def content(gantry, who, scope="session", session=SESSION):
    with gantry.memory(scope, session=session, **who) as memory:
        return dict(memory)


def owners(gantry):
    """Whom each namespace belongs to, as the store has it."""
    return {listed.namespace.id: listed.owner for listed in gantry._wiring.settings.bridge.store.list(List()).listed}


def refused(gantry, call, body, who, **options):
    with gantry.session(SESSION, **who), pytest.raises(SessionOwnerError) as caught:
        call(gantry, body, **options)
    assert caught.value.committed is False
    return str(caught.value)


# Who it belongs to.


@pytest.mark.parametrize(("first", "owner"), [(ADA, "ada-4711"), (NOBODY, "")])
def test_first_commit_binds(gantry, call, first, owner):
    with gantry.session(SESSION, **first):
        call(gantry, write)

        assert owners(gantry) == {SESSION: owner}
        assert call(gantry, write) == 2
    for other in (NOBODY, ADA, BOB):
        if other is not first:
            refused(gantry, call, write, other)
            refused(gantry, call, read, other)
    assert content(gantry, first) == {"x": 2}


@pytest.mark.parametrize("first", [ADA, NOBODY])
@pytest.mark.parametrize("body", [read, fail])
def test_call_that_writes_nothing_does_not_bind(gantry, call, body, first):
    with gantry.session(SESSION, **first):
        if body is fail:
            with pytest.raises(RuntimeError):
                call(gantry, body)
        else:
            call(gantry, body)

    assert owners(gantry) == {}
    with gantry.session(SESSION, **BOB):
        assert call(gantry, write) == 1


def test_touch_does_not_bind(new_gantry, call):
    """Not even what has no owner yet, for it was written before its scope was said to be owned."""
    before, gantry = new_gantry(), new_gantry(scopes={"desk": Scope(ttl=10.0, sliding=True, owned=True)})
    now = [1000.0]
    with before.override(clock=lambda: now[0]), gantry.override(clock=lambda: now[0]), gantry.session("s", desk="d", **ADA):
        call(before, write, scope="desk", ttl=10.0, sliding=True)
        now[0] += 5
        assert call(gantry, read, scope="desk") == {"x": 1}
        assert owners(gantry) == {"d": None}
        now[0] += 6
        with gantry.session("s", desk="d", **BOB):
            assert call(gantry, write, scope="desk") == 2
        assert owners(gantry) == {"d": "bob-0815"}


def test_touch_of_somebody_elses_session_is_refused(gantry, call):
    now = [1000.0]
    with gantry.override(clock=lambda: now[0]):
        with gantry.session(SESSION, **ADA):
            call(gantry, write, ttl=10.0, sliding=True)
        now[0] += 9
        refused(gantry, call, read, BOB, ttl=10.0, sliding=True)
        now[0] += 2
        with gantry.session(SESSION, **ADA):
            assert call(gantry, read) == {}


@pytest.mark.parametrize("first", [ADA, NOBODY])
def test_of_two_who_race_for_a_new_session_one_wins(gantry, call, first):
    second = BOB

    def outrun(memory):
        memory["mine"] = 1
        with gantry.independent(), gantry.session(SESSION, **second):
            gantry.with_memory(write)()

    refused(gantry, call, outrun, first)

    assert content(gantry, second) == {"x": 1}
    assert owners(gantry) == {SESSION: "bob-0815"}


def test_race_with_the_same_values_is_still_one(gantry, call):
    """Where both write the same there is nothing left to write, and the loser must hear of it all the same."""

    def outrun(memory):
        memory["x"] = 1
        with gantry.independent(), gantry.session(SESSION, **BOB):
            gantry.with_memory(write)()

    refused(gantry, call, outrun, ADA)


def test_same_user_twice_is_no_race(gantry, call):
    def outrun(memory):
        memory["mine"] = 1
        with gantry.independent():
            gantry.with_memory(write)()

    with gantry.session(SESSION, **ADA):
        call(gantry, outrun)
    assert content(gantry, ADA) == {"x": 1, "mine": 1}


def test_of_many_users_in_threads_one_wins(gantry):
    tool = gantry.with_memory(write)
    start = threading.Barrier(8)
    won, lost = [], []

    def work(user):
        start.wait()
        for _ in range(5):
            try:
                with gantry.session(SESSION, user=user):
                    tool()
                won.append(user)
            except SessionOwnerError:
                lost.append(user)

    threads = [threading.Thread(target=work, args=(f"user-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(set(won)), len(won), len(lost)) == (1, 5, 35)
    assert content(gantry, {"user": won[0]}) == {"x": 5}


def test_deleting_every_key_keeps_the_owner(gantry, call):
    with gantry.session(SESSION, **ADA):
        call(gantry, write)
        call(gantry, lambda memory: memory.clear())
        assert call(gantry, read) == {}
    refused(gantry, call, write, BOB)
    refused(gantry, call, read, NOBODY)


def test_fresh_gantry_knows_the_owner(new_gantry, call):
    with new_gantry().session(SESSION, **ADA):
        call(new_gantry(), write)
    refused(new_gantry(), call, write, BOB)
    refused(new_gantry(), call, read, NOBODY)
    with new_gantry().session(SESSION, **ADA):
        assert call(new_gantry(), write) == 2


def test_another_process_knows_the_owner(tmp_path, call):
    url = f"sqlite:///{tmp_path}/state.db"
    script = """
        import sys
        from agent_gantry_state import Gantry, SessionOwnerError
        gantry = Gantry(sys.argv[1])
        with gantry.session(sys.argv[2], user=sys.argv[3] or None):
            try:
                with gantry.memory() as memory:
                    memory["x"] = memory.get("x", 0) + 1
                    print("wrote")
            except SessionOwnerError as error:
                print(error)
        gantry.close()
    """

    def elsewhere(user=""):
        command = [sys.executable, "-c", textwrap.dedent(script), url, SESSION, user]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    assert elsewhere("ada-4711") == "wrote"
    with Gantry(url) as gantry:
        words = refused(gantry, call, write, BOB)
        with gantry.session(SESSION, **ADA):
            assert call(gantry, write) == 2
    assert (elsewhere(), elsewhere("bob-0815"), elsewhere("ada-4711")) == (words, words, "wrote")


def test_tools_of_other_scopes_do_not_ask_for_the_owner(gantry, call):
    with gantry.session(SESSION, **ADA):
        call(gantry, write)
    with gantry.session(SESSION, **BOB):
        for scope in ("user", "global", "tool"):
            call(gantry, write, scope=scope, name="somebody")
    with gantry.session(SESSION, **NOBODY):
        assert call(gantry, read, scope="global") == {"x": 1}


# The words.


def test_every_refusal_has_the_same_words_and_no_id(gantry, call):
    with gantry.session(SESSION, **ADA):
        call(gantry, write)
    words = [refused(gantry, call, body, who) for body in (write, read) for who in (BOB, NOBODY, {**BOB, "adopt": True})]
    with pytest.raises(SessionOwnerError) as caught:
        content(gantry, BOB)
    words.append(str(caught.value))
    gantry.end_session(SESSION)
    with gantry.session(SESSION, **NOBODY):
        call(gantry, write)
    words += [refused(gantry, call, body, BOB) for body in (write, read)]

    def outrun(memory):
        memory["mine"] = 1
        with gantry.independent(), gantry.session(SESSION, **BOB):
            gantry.with_memory(write)()

    gantry.end_session(SESSION)
    words.append(refused(gantry, call, outrun, ADA))

    assert len(set(words)) == 1
    for secret in (SESSION, "ada-4711", "bob-0815"):
        assert secret not in words[0]
        assert secret not in repr(caught.value)
    assert caught.value.scope == "session"


# Adopting.


def test_adopting_takes_over_nobodys_session_with_the_next_writing_commit(gantry, call):
    with gantry.session(SESSION, **NOBODY):
        call(gantry, write)
    with gantry.session(SESSION, **ADA, adopt=True):
        assert call(gantry, read) == {"x": 1}
        assert owners(gantry) == {SESSION: ""}
        assert call(gantry, write) == 2
        assert owners(gantry) == {SESSION: "ada-4711"}
        assert call(gantry, write) == 3
    refused(gantry, call, write, NOBODY)
    refused(gantry, call, write, BOB)
    refused(gantry, call, write, {**BOB, "adopt": True})
    with gantry.session(SESSION, **ADA):
        assert call(gantry, write) == 4


def test_adopting_a_new_session_and_ones_own_is_no_adoption(gantry, call):
    with gantry.session(SESSION, **ADA, adopt=True):
        assert call(gantry, write) == 1
        assert call(gantry, write) == 2
    assert owners(gantry) == {SESSION: "ada-4711"}


@pytest.mark.parametrize("body", [read, fail])
def test_call_that_writes_nothing_adopts_nothing(gantry, call, body):
    with gantry.session(SESSION, **NOBODY):
        call(gantry, write)
    with gantry.session(SESSION, **ADA, adopt=True):
        if body is fail:
            with pytest.raises(RuntimeError):
                call(gantry, body)
        else:
            call(gantry, body)
    with gantry.session(SESSION, **NOBODY):
        assert call(gantry, write) == 2


def test_touch_adopts_nothing(gantry, call):
    now = [1000.0]
    with gantry.override(clock=lambda: now[0]):
        with gantry.session(SESSION, **NOBODY):
            call(gantry, write, ttl=10.0, sliding=True)
        now[0] += 5
        with gantry.session(SESSION, **ADA, adopt=True):
            call(gantry, read, ttl=10.0, sliding=True)
        now[0] += 6
        with gantry.session(SESSION, **NOBODY):
            assert call(gantry, read) == {"x": 1}


def test_of_two_adopters_one_wins(gantry, call):
    with gantry.session(SESSION, **NOBODY):
        call(gantry, write)

    def outrun(memory):
        memory["mine"] = 1
        with gantry.independent(), gantry.session(SESSION, **BOB, adopt=True):
            gantry.with_memory(write)()

    refused(gantry, call, outrun, {**ADA, "adopt": True})

    assert content(gantry, BOB) == {"x": 2}


@pytest.mark.parametrize("first", ["nobody", "adopter"])
def test_adopter_and_nobody_at_once(gantry, call, first):
    with gantry.session(SESSION, **NOBODY):
        call(gantry, write)
    adopter = {**ADA, "adopt": True}
    one, other = (NOBODY, adopter) if first == "nobody" else (adopter, NOBODY)

    def outrun(memory):
        memory["mine"] = 1
        with gantry.independent(), gantry.session(SESSION, **one):
            gantry.with_memory(write)()

    if first == "nobody":
        with gantry.session(SESSION, **other):
            call(gantry, outrun)
        assert content(gantry, ADA) == {"x": 2, "mine": 1}
    else:
        refused(gantry, call, outrun, other)
        assert content(gantry, ADA) == {"x": 2}
    assert owners(gantry) == {SESSION: "ada-4711"}


def test_adopting_needs_a_user(gantry):
    with pytest.raises(ValueError, match="adopt"):
        gantry.session(SESSION, adopt=True)


def test_same_user_who_adopts_twice_at_once_loses_nothing(gantry, call):
    with gantry.session(SESSION, **NOBODY):
        call(gantry, write)

    def outrun(memory):
        memory["mine"] = 1
        with gantry.independent():
            gantry.with_memory(write)()

    with gantry.session(SESSION, **ADA, adopt=True):
        call(gantry, outrun)
    assert content(gantry, ADA) == {"x": 2, "mine": 1}


def test_other_ids_that_are_overridden_leave_the_adoption_alone(gantry, call):
    with gantry.session(SESSION, **NOBODY):
        call(gantry, write)
    with gantry.session(SESSION, **ADA, adopt=True), gantry.override(conversation="c"):
        assert call(gantry, write) == 2


# Other scopes.


@pytest.mark.parametrize("scope", ["conversation", "tenant", "global"])
def test_owned_scope_belongs_to_who_wrote_first(new_gantry, call, scope):
    gantry = new_gantry(scopes={scope: Scope(owned=True)})
    ids = {"conversation": "c1", "tenant": "t1"}
    with gantry.session("s1", **ids, **ADA):
        call(gantry, read, scope=scope)
    with gantry.session("s2", **ids, **BOB):
        call(gantry, write, scope=scope)
        assert call(gantry, write, scope=scope) == 2
    for other in (ADA, NOBODY):
        for body in (read, write):
            with gantry.session("s1", **ids, **other), pytest.raises(SessionOwnerError) as caught:
                call(gantry, body, scope=scope)
            assert caught.value.scope == scope
    assert list(owners(gantry).values()) == ["bob-0815"]


def test_owned_tool_scope_belongs_to_who_wrote_first(new_gantry):
    gantry = new_gantry(scopes={"tool": Scope(owned=True)})

    @gantry.with_memory(scope="tool")
    def tool(body, memory):
        return body(memory)

    with gantry.session("s1", **ADA):
        tool(read)
    with gantry.session("s2", **BOB):
        assert (tool(write), tool(write)) == (1, 2)
    for other in (ADA, NOBODY):
        for body in (read, write):
            with gantry.session("s1", **other), pytest.raises(SessionOwnerError):
                tool(body)
    for body in (read, write):
        with pytest.raises(SessionOwnerError):
            tool(body)


@pytest.mark.parametrize("scope", ["conversation", "tenant", "user", "global"])
def test_scope_that_is_not_owned_is_everybodys(gantry, call, scope):
    ids = {"conversation": "c1", "tenant": "t1"}
    for n, who in enumerate([ADA, ADA] if scope == "user" else [ADA, BOB, NOBODY]):
        with gantry.session("s1", **ids, **who):
            assert call(gantry, write, scope=scope) == n + 1
    assert set(owners(gantry).values()) == {None}


def test_owned_global_scope_of_a_caller_without_identity_is_nobodys(new_gantry, call):
    gantry = new_gantry(scopes={"global": Scope(owned=True)})
    call(gantry, write, scope="global")
    with gantry.session(SESSION, **ADA), pytest.raises(SessionOwnerError):
        call(gantry, read, scope="global")
    assert call(gantry, write, scope="global") == 2


def joining(request):
    """A resolver by which a conversation is remembered where its session is."""
    if request.scope == "conversation" and request.identity.session:
        return Namespace("session", request.identity.session)
    return None


@pytest.mark.parametrize("stacked", [False, True])
def test_owner_goes_by_the_namespace_whatever_scope_was_asked_for(stacked):
    with Gantry(resolvers=[joining]) as gantry:

        @gantry.with_memory(scope="conversation", into="desk")
        def tool(body, desk):
            return body(desk)

        if stacked:

            @gantry.with_memory(scope="conversation", into="desk")
            @gantry.with_memory
            def tool(body, memory, desk):
                assert memory is desk
                return body(desk)

        with gantry.session(SESSION, **ADA):
            tool(write)
        assert owners(gantry) == {SESSION: "ada-4711"}
        for who in (BOB, NOBODY):
            for body in (read, write):
                with gantry.session(SESSION, **who), pytest.raises(SessionOwnerError):
                    tool(body)
        with gantry.session(SESSION, **ADA):
            assert tool(read) == {"x": 1}


def test_owner_goes_by_the_namespace_for_blocks_contexts_and_sessions():
    with Gantry(resolvers=[joining]) as gantry:
        with gantry.session(SESSION, **ADA):
            gantry.with_memory(write)()

        @gantry.with_context
        def by_context(ctx: SyncExecutionContext):
            return dict(ctx.scope("conversation"))

        @gantry.with_session(scope="conversation")
        def by_session(session: SyncSession):
            return session.get("x")

        with gantry.session(SESSION, **BOB):
            for tool in (by_context, by_session):
                with pytest.raises(SessionOwnerError):
                    tool()
            with pytest.raises(SessionOwnerError), gantry.memory("conversation"):
                pass


# Several errors at once.


def test_identity_comes_before_the_owner(gantry):
    with gantry.session(SESSION, **ADA):
        gantry.with_memory(write)()

    @gantry.with_memory(scope="session")
    @gantry.with_memory(scope="tenant", into="more")
    def both(memory, more):
        memory["x"] = more["x"] = 1

    with gantry.session(SESSION, **BOB), pytest.raises(MissingIdentityError):
        both()


def test_owner_comes_before_erasure_conflict_and_undeclared_key(gantry, call):
    def replaced(memory):
        memory["x"] = 9
        gantry.end_session(SESSION)
        with gantry.independent(), gantry.session(SESSION, **BOB):
            gantry.with_memory(write)()

    with gantry.session(SESSION, **ADA):
        call(gantry, write)
    refused(gantry, call, replaced, ADA)
    assert content(gantry, BOB) == {"x": 1}

    gantry.end_session(SESSION)
    refused(gantry, call, replaced, ADA, isolation="serializable")
    refused(gantry, call, write, ADA, keys=("y",))

    with gantry.session(SESSION, **BOB), pytest.raises(UndeclaredKeyError):
        call(gantry, write, keys=("y",))


def test_owner_error_of_one_memory_keeps_the_other_from_being_written(gantry):
    @gantry.with_memory(scope="user", into="mine")
    @gantry.with_memory
    def both(mine, memory):
        mine["x"] = memory["x"] = 1
        with gantry.independent(), gantry.session(SESSION, **BOB):
            gantry.with_memory(write)()

    with gantry.session(SESSION, **ADA), pytest.raises(SessionOwnerError):
        both()

    assert content(gantry, ADA, "user") == {}


# Calls inside calls.


def test_nested_call_of_somebody_else_is_refused(gantry, call):
    def outer(memory):
        memory["mine"] = 1
        with gantry.session(SESSION, **BOB):
            for body in (write, read):
                with pytest.raises(SessionOwnerError):
                    gantry.with_memory(body)()

    with gantry.session(SESSION, **ADA):
        call(gantry, outer)
    assert content(gantry, ADA) == {"mine": 1}


def test_nested_calls_of_two_users_in_one_call_of_a_third_scope(gantry, call):
    def outer(memory):
        with gantry.session(SESSION, **ADA):
            gantry.with_memory(write)()
        with gantry.session(SESSION, **BOB), pytest.raises(SessionOwnerError):
            gantry.with_memory(write)()
        with gantry.session("other", **BOB):
            gantry.with_memory(write)()

    call(gantry, outer, scope="global")

    assert owners(gantry) == {SESSION: "ada-4711", "other": "bob-0815"}


def test_nested_call_that_only_reads_does_not_bind(gantry, call):
    def outer(memory):
        with gantry.session(SESSION, **ADA):
            assert gantry.with_memory(read)() == {}
        with gantry.session(SESSION, **BOB):
            gantry.with_memory(write)()

    call(gantry, outer, scope="global")
    assert owners(gantry) == {SESSION: "bob-0815"}


def test_nested_call_that_fails_neither_binds_nor_adopts(gantry, call):
    def outer(memory):
        memory["mine"] = 1
        with gantry.session(SESSION, **ADA, adopt=True), pytest.raises(RuntimeError):
            gantry.with_memory(fail)()

    with gantry.session(SESSION, **NOBODY):
        call(gantry, write)
        call(gantry, outer)
        call(gantry, write)
    assert content(gantry, NOBODY) == {"x": 2, "mine": 1}


def test_nested_call_adopts_with_the_outermost_commit(gantry, call):
    def outer(memory):
        with gantry.session(SESSION, **ADA, adopt=True):
            gantry.with_memory(write)()
        with gantry.independent(), gantry.session(SESSION, **NOBODY):
            assert gantry.with_memory(read)() == {"x": 1}
        with gantry.session(SESSION, **BOB, adopt=True), pytest.raises(SessionOwnerError):
            gantry.with_memory(read)()

    with gantry.session(SESSION, **NOBODY):
        call(gantry, write)
    call(gantry, outer, scope="global")
    assert owners(gantry) == {SESSION: "ada-4711"}
    assert content(gantry, ADA) == {"x": 2}


@pytest.mark.anyio
async def test_of_parallel_nested_calls_of_two_users_one_is_refused(gantry):
    ada_is_done, both_have_loaded, loaded = anyio.Event(), anyio.Event(), []
    refusals = []

    @gantry.with_memory
    async def inner(key, memory):
        loaded.append(key)
        if len(loaded) == 2:
            both_have_loaded.set()
        await both_have_loaded.wait()
        if key == "bob":
            await ada_is_done.wait()
        memory[key] = 1

    @gantry.with_memory(scope="global")
    async def outer(memory):
        async def as_ada():
            with gantry.session(SESSION, **ADA):
                await inner("ada")
            ada_is_done.set()

        async def as_bob():
            with gantry.session(SESSION, **BOB):
                try:
                    await inner("bob")
                except SessionOwnerError as error:
                    refusals.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(as_ada)
            group.start_soon(as_bob)

    await outer()

    assert content(gantry, ADA) == {"ada": 1}
    assert len(refusals) == 1


# Whoever else gets to a memory.


def test_memory_block_is_checked(gantry):
    with gantry.memory(session=SESSION, **ADA) as memory:
        memory["x"] = 1
    for who in (BOB, NOBODY):
        with pytest.raises(SessionOwnerError), gantry.memory(session=SESSION, **who):
            pytest.fail("it was opened")
    late = gantry.memory(session="new", **ADA)
    late.__enter__()["ada"] = 1
    with gantry.memory(session="new", **BOB) as memory:
        memory["bob"] = 1
    with pytest.raises(SessionOwnerError):
        late.__exit__(None, None, None)
    assert content(gantry, BOB, session="new") == {"bob": 1}


@pytest.mark.anyio
async def test_async_memory_block_is_checked(gantry):
    async with gantry.memory(session=SESSION, **ADA) as memory:
        memory["x"] = 1
    for who in (BOB, NOBODY):
        with pytest.raises(SessionOwnerError):
            async with gantry.memory(session=SESSION, **who):
                pytest.fail("it was opened")


def test_sync_session_object_is_checked(gantry):
    attempts = {
        "get": lambda session: session.get("x"),
        "set": lambda session: session.set("x", 5),
        "add": lambda session: session.add("x", 5),
        "delete": lambda session: session.delete("x"),
        "keys": lambda session: session.keys(),
    }

    @gantry.with_session
    def tool(what, session: SyncSession):
        return attempts[what](session)

    with gantry.session(SESSION, **ADA):
        tool("set")
    for who in (BOB, NOBODY):
        for what in attempts:
            with gantry.session(SESSION, **who), pytest.raises(SessionOwnerError):
                tool(what)
    assert content(gantry, ADA) == {"x": 5}


@pytest.mark.anyio
async def test_session_object_is_checked(gantry):
    @gantry.with_session
    async def tool(what, *args, session: Session):
        return await getattr(session, what)(*args)

    with gantry.session(SESSION, **ADA):
        await tool("set", "x", 5)
    for who in (BOB, NOBODY):
        for what, *args in (("get", "x"), ("set", "x", 1), ("add", "x"), ("delete", "x"), ("keys",)):
            with gantry.session(SESSION, **who), pytest.raises(SessionOwnerError):
                await tool(what, *args)
    assert content(gantry, ADA) == {"x": 5}


def test_sync_session_object_binds_with_its_commit_only(gantry):
    @gantry.with_session
    def tool(session: SyncSession):
        session.set("mine", 1)
        with gantry.independent(), gantry.session(SESSION, **BOB):
            gantry.with_memory(write)()

    with gantry.session(SESSION, **ADA), pytest.raises(SessionOwnerError):
        tool()
    assert owners(gantry) == {SESSION: "bob-0815"}


def test_sync_context_is_checked(new_gantry):
    gantry = new_gantry(scopes={"desk": Scope(owned=True)})

    @gantry.with_context
    def tool(scope, ctx: SyncExecutionContext):
        ctx.scope(scope)["x"] = 5

    for scope in ("session", "desk"):
        with gantry.session(SESSION, desk="d", **ADA):
            tool(scope)
    for who in (BOB, NOBODY):
        with gantry.session(SESSION, desk="e", **who), pytest.raises(SessionOwnerError):
            tool("desk")
        with gantry.session("other", desk="d", **who), pytest.raises(SessionOwnerError):
            tool("desk")


@pytest.mark.anyio
async def test_context_is_checked(new_gantry):
    gantry = new_gantry(scopes={"desk": Scope(owned=True)})

    @gantry.with_context
    async def tool(scope, ctx: ExecutionContext):
        (await ctx.scope(scope))["x"] = 5

    for scope in ("session", "desk"):
        with gantry.session(SESSION, desk="d", **ADA):
            await tool(scope)
    for who in (BOB, NOBODY):
        with gantry.session(SESSION, desk="e", **who), pytest.raises(SessionOwnerError):
            await tool("desk")
        with gantry.session("other", desk="d", **who), pytest.raises(SessionOwnerError):
            await tool("desk")
