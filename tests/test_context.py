"""The context of a call: its session's memory, the memories of other scopes, and who calls which tool."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import pickle
import sys
import threading
from typing import Annotated, Any, Optional

import anyio
import anyio.to_thread
import pytest
from support import STORES, Blocking, closing, commit, committed

import agent_gantry_state
from agent_gantry_state import (
    CallEndedError,
    DeclarationError,
    ExecutionContext,
    Gantry,
    Identity,
    InjectedArgumentError,
    Memory,
    MemoryConflictError,
    MissingIdentityError,
    Scope,
    SessionOwnerError,
    StoreClosedError,
    SyncExecutionContext,
    Tool,
    UnstorableValueError,
    merge,
)
from agent_gantry_state.stores.protocol import Commit, Load


@pytest.fixture(params=STORES)
def store(request):
    return STORES[request.param]()


@pytest.fixture
def gantry(store):
    made = Gantry(store)
    with closing(made):
        yield made


@pytest.fixture
def recording():
    return Blocking()


@pytest.fixture
def recorded(recording):
    with Gantry(recording) as made:
        yield made


def stored(gantry, scope="session", **who):
    return committed(gantry, scope, **(who or {"session": "s1", "user": "ada"}))


def everything(gantry):
    return {
        "session": stored(gantry),
        "user": stored(gantry, "user", user="ada"),
        "tenant": stored(gantry, "tenant", tenant="acme"),
        "global": stored(gantry, "global"),
    }


NOTHING = {"session": {}, "user": {}, "tenant": {}, "global": {}}


def interfere(gantry, scope="session", /, **values):
    commit(gantry, scope, {"session": "s1", "user": "ada"}, values)


def ada(gantry):
    return gantry.session("s1", user="ada", tenant="acme")


# What it gives.


def test_sync_function_reads_and_writes_the_memory_of_its_session(gantry):
    @gantry.with_context
    def note(text, ctx):
        assert type(ctx) is SyncExecutionContext
        assert type(ctx.memory) is Memory
        ctx.memory.setdefault("notes", []).append(text)
        return list(ctx.memory.get("notes", default=[]))

    with ada(gantry):
        assert (note("a"), note(text="b")) == (["a"], ["a", "b"])
    with gantry.session("s2"):
        assert note("c") == ["c"]

    assert stored(gantry) == {"notes": ["a", "b"]}


@pytest.mark.anyio
async def test_async_function_reads_and_writes_the_memory_of_its_session(gantry):
    @gantry.with_context
    async def note(text, ctx):
        assert type(ctx) is ExecutionContext
        assert type(ctx.memory) is Memory
        ctx.memory.setdefault("notes", []).append(text)
        return list(ctx.memory.get("notes", default=[]))

    async with ada(gantry):
        assert (await note("a"), await note(text="b")) == (["a"], ["a", "b"])
    async with gantry.session("s2"):
        assert await note("c") == ["c"]

    async with ada(gantry), gantry.memory() as memory:
        assert memory == {"notes": ["a", "b"]}


def test_context_is_hidden_from_whoever_looks_at_the_function(gantry):
    @gantry.with_context
    def note(text: str, ctx: SyncExecutionContext, limit: int = 3) -> str:
        """Note a text.

        Args:
            text: What.
            ctx: The hidden one.
            limit: How much.
        """
        return text

    assert isinstance(note, Tool)
    assert str(inspect.signature(note)) == "(text: str, limit: int = 3) -> str"
    assert set(note.__annotations__) == {"text", "limit", "return"}
    assert "ctx" not in note.__doc__
    assert "hidden" not in note.__doc__
    assert "limit: How much." in note.__doc__


def test_parameter_of_another_name_gets_it(gantry):
    @gantry.with_context(into="run")
    def note(run, text, *, ctx="the caller's"):
        run.memory["text"] = text
        return ctx

    with ada(gantry):
        assert note("a") == "the caller's"
        assert note("b", ctx=5) == 5
    assert stored(gantry) == {"text": "b"}


@pytest.mark.parametrize("name", ["by_keyword", "with_default", "variadic"])
def test_context_goes_wherever_its_parameter_stands(gantry, name):
    def by_keyword(text, *, ctx):
        return text, (), ctx

    def with_default(text, ctx=None, *rest):
        return text, rest, ctx

    def variadic(text, *rest, ctx, **more):
        return text, rest, ctx

    tool = gantry.with_context({each.__name__: each for each in (by_keyword, with_default, variadic)}[name])

    with ada(gantry):
        text, rest, ctx = tool("a") if name == "by_keyword" else tool("a", 1, 2)

    assert (text, rest) == ("a", () if name == "by_keyword" else (1, 2))
    assert type(ctx) is SyncExecutionContext


@pytest.mark.parametrize("bad", ["by_keyword", "variadic"])
def test_caller_cannot_pass_it(gantry, bad):
    ran = []

    @gantry.with_context
    def by_keyword(text, ctx):
        ran.append(1)

    @gantry.with_context
    def variadic(text, ctx, **more):
        ran.append(1)

    with ada(gantry), pytest.raises(InjectedArgumentError, match="'ctx'") as caught:
        {"by_keyword": by_keyword, "variadic": variadic}[bad]("a", ctx="mine")

    assert (ran, caught.value.parameter) == ([], "ctx")


# Who calls what.


def test_context_tells_who_calls_and_which_tool_it_is(gantry):
    @gantry.with_context
    def who(ctx):
        return ctx.identity, ctx.tool, repr(ctx)

    with ada(gantry):
        identity, tool, shown = who()

    assert identity == Identity("s1", "ada", keys={"tenant": "acme"})
    assert tool == who.__qualname__
    assert not any(id in shown for id in ("s1", "ada", "acme"))


def test_tool_of_a_context_is_the_name_that_its_decorators_declare(gantry):
    @gantry.with_memory(scope="tool", name="notes")
    @gantry.with_context
    def who(ctx, memory):
        memory["asked"] = True
        return ctx.tool, dict(ctx.scope("tool"))

    assert who() == ("notes", {"asked": True})
    assert stored(gantry, "tool", tool="notes") == {"asked": True}


def test_context_of_an_unknown_caller_has_an_identity_in_which_nothing_is_known(gantry):
    assert gantry.with_context(lambda ctx: ctx.identity)() == Identity()


def test_identity_of_a_gantry_for_one_user_is_the_contexts(store):
    made = Gantry(store, session="local", user="me")
    with closing(made):
        assert made.with_context(lambda ctx: ctx.identity)() == Identity("local", "me")


def test_identity_in_a_context_is_the_callers_whatever_the_body_enters(gantry):
    @gantry.with_context
    def who(ctx):
        with gantry.session("s2", user="bob"):
            ctx.memory["x"] = ctx.scope("user")["x"] = 1
            return ctx.identity.session, ctx.identity.user

    with ada(gantry):
        assert who() == ("s1", "ada")
    assert everything(gantry) == {**NOTHING, "session": {"x": 1}, "user": {"x": 1}}


def test_no_known_session_is_an_error_only_where_the_memory_is_touched(gantry):
    seen = []

    @gantry.with_context
    def count(ctx, touch):
        seen.append(touch)
        ctx.scope("global")["touch"] = touch
        return ctx.memory if touch else ctx.scope("user").add("n", 1)

    with gantry.override(user="ada"):
        assert (count(touch=False), count(touch=False)) == (1, 2)
        with pytest.raises(MissingIdentityError, match="no session") as caught:
            count(touch=True)

    assert seen == [False, False, True]
    assert (caught.value.scope, caught.value.committed) == ("session", False)
    assert stored(gantry, "global") == {"touch": False}


@pytest.mark.anyio
async def test_no_known_session_is_an_error_only_where_an_async_tool_touches_the_memory(gantry):
    @gantry.with_context
    async def count(ctx, touch):
        (await ctx.scope("global"))["touch"] = touch
        return ctx.memory if touch else 1

    assert await count(touch=False) == 1
    with pytest.raises(MissingIdentityError, match="no session"):
        await count(touch=True)

    async with gantry.memory("global") as memory:
        assert memory == {"touch": False}


def test_scope_of_which_nothing_is_known_is_an_error_that_can_be_handled(gantry):
    @gantry.with_context
    def prefer(ctx):
        ctx.memory["tried"] = True
        with pytest.raises(MissingIdentityError, match="no user") as caught:
            ctx.scope("user")
        return caught.value.scope

    with gantry.session("s1"):
        assert prefer() == "user"
    assert stored(gantry, session="s1") == {"tried": True}


# Other scopes, in the same unit of work.


SCOPES = ["user", "tenant", "global"]


def spread(ctx, memories):
    for memory in (ctx.memory, *memories):
        memory.setdefault("log", []).append("x")


@pytest.mark.parametrize("fails", ["raises", "unstorable"])
def test_failing_function_changes_nothing_in_any_scope(gantry, fails):
    @gantry.with_context
    def writes(ctx):
        memories = [ctx.scope(scope) for scope in SCOPES]
        spread(ctx, memories)
        if fails == "raises":
            raise ValueError("the body failed")
        memories[-1]["bad"] = object()

    with ada(gantry), pytest.raises(ValueError if fails == "raises" else UnstorableValueError):
        writes()

    assert everything(gantry) == NOTHING


@pytest.mark.anyio
@pytest.mark.parametrize("fails", ["raises", "unstorable", "cancelled"])
async def test_failing_async_function_changes_nothing_in_any_scope(gantry, fails):
    raised = ValueError if fails == "raises" else UnstorableValueError

    @gantry.with_context
    async def writes(ctx):
        memories = [await ctx.scope(scope) for scope in SCOPES]
        spread(ctx, memories)
        if fails == "raises":
            raise ValueError("the body failed")
        if fails == "unstorable":
            memories[-1]["bad"] = object()
        else:
            scope.cancel()
            await anyio.sleep_forever()

    async with ada(gantry):
        with anyio.CancelScope() as scope, contextlib.ExitStack() as stack:
            if fails != "cancelled":
                stack.enter_context(pytest.raises(raised))
            await writes()

        assert scope.cancelled_caught is (fails == "cancelled")
        for scope_name in ("session", *SCOPES):
            async with gantry.memory(scope_name) as memory:
                assert memory == {}


def test_scopes_are_committed_in_one_step(recorded, recording):
    @recorded.with_context
    def writes(ctx):
        spread(ctx, [ctx.scope(scope) for scope in SCOPES])
        assert recording.asked(Commit) == []

    with ada(recorded):
        writes()

    assert recording.scopes_asked(Commit) == [("session", *SCOPES)]
    assert everything(recorded) == {scope: {"log": ["x"]} for scope in NOTHING}


def test_scope_is_loaded_when_it_is_asked_for_and_once(recorded, recording):
    @recorded.with_context
    def reads(ctx):
        assert recording.scopes_asked(Load) == [("session",)]
        first = ctx.scope("user")
        assert recording.scopes_asked(Load) == [("session",), ("user",)]
        assert ctx.scope("user") is first
        assert ctx.scope("session") is ctx.memory
        assert recording.scopes_asked(Load) == [("session",), ("user",)]

    with ada(recorded):
        reads()

    assert recording.asked(Commit) == []


@pytest.mark.anyio
async def test_tasks_that_ask_for_one_scope_at_once_get_one_memory(gantry):
    got = []

    @gantry.with_context
    async def counts(ctx):
        async def one(item):
            memory = await ctx.scope("user")
            got.append(memory)
            memory.setdefault("log", []).append(item)

        async with anyio.create_task_group() as tasks:
            for item in range(5):
                tasks.start_soon(one, item)

    async with ada(gantry):
        await counts()
        async with gantry.memory("user") as memory:
            assert sorted(memory["log"]) == list(range(5))

    assert len({id(memory) for memory in got}) == 1


def test_scope_merges_with_what_others_committed_meanwhile(gantry):
    @gantry.with_context
    def appends(ctx):
        user = ctx.scope("user")
        for memory in (ctx.memory, user):
            memory.setdefault("log", []).append("ours")
            memory.add("n", 2)
        interfere(gantry, log=["theirs"], n=1)
        interfere(gantry, "user", log=["theirs"], n=1)

    with ada(gantry):
        appends()

    assert everything(gantry) == {
        **NOTHING,
        "session": {"log": ["theirs", "ours"], "n": 3},
        "user": {"log": ["theirs", "ours"], "n": 3},
    }


def test_conflict_in_one_scope_writes_none(gantry):
    @gantry.with_context
    def assigns(ctx):
        ctx.memory["plan"] = ctx.scope("user")["plan"] = "ours"
        interfere(gantry, "user", plan="theirs")

    with ada(gantry), pytest.raises(MemoryConflictError) as caught:
        assigns()

    assert caught.value.by_scope == {"user": ("plan",)}
    assert everything(gantry) == {**NOTHING, "user": {"plan": "theirs"}}


def test_conflict_that_is_retried_runs_the_body_again_in_a_context_of_its_own(gantry):
    contexts, plans = [], []

    @gantry.with_context(on_conflict="retry", retries=2)
    def assigns(ctx):
        user = ctx.scope("user")
        contexts.append(ctx)
        plans.append(user.get("plan"))
        ctx.memory.add("runs", 1)
        if len(plans) < 3:
            interfere(gantry, "user", plan=f"theirs {len(plans)}")
        user["plan"] = "ours"

    with ada(gantry):
        assigns()

    assert plans == [None, "theirs 1", "theirs 2"]
    assert len({id(ctx) for ctx in contexts}) == 3
    assert everything(gantry) == {**NOTHING, "session": {"runs": 1}, "user": {"plan": "ours"}}


def test_declared_lifetimes_of_scopes_hold_for_a_contexts_memories():
    now = [1000.0]
    scopes = {"session": Scope(ttl=10), "user": Scope(ttl=20, sliding=True)}
    with Gantry(scopes=scopes) as gantry, gantry.override(clock=lambda: now[0]), ada(gantry):

        @gantry.with_context
        def writes(ctx):
            ctx.memory["k"] = ctx.scope("user")["k"] = ctx.scope("global")["k"] = 1

        @gantry.with_context
        def reads(ctx):
            return [dict(memory) for memory in (ctx.memory, ctx.scope("user"), ctx.scope("global"))]

        writes()
        now[0] += 9.9
        assert reads() == [{"k": 1}] * 3
        now[0] += 10.2
        assert reads() == [{}, {"k": 1}, {"k": 1}]
        now[0] += 20
        assert reads() == [{}, {}, {"k": 1}]


def test_scope_goes_through_the_resolvers_of_the_gantry():
    def by_team(request):
        return agent_gantry_state.Namespace("team", "red") if request.scope == "team" else None

    with Gantry(resolvers=[by_team]) as gantry:
        gantry.with_context(lambda ctx: ctx.scope("team").update(x=1))()

        assert stored(gantry, "team", session="any") == {"x": 1}


def test_closed_gantry_refuses_before_the_body_runs():
    gantry, ran = Gantry(), []
    tool = gantry.with_context(lambda ctx: ran.append(1))
    gantry.close()

    with ada(gantry), pytest.raises(StoreClosedError):
        tool()
    assert ran == []


# Owners.


def test_session_of_somebody_else_is_refused_and_the_body_never_runs(gantry):
    ran = []
    interfere(gantry, x=1)

    @gantry.with_context
    def looks(ctx):
        ran.append(dict(ctx.memory))

    for who in ({"user": "bob"}, {}):
        with gantry.session("s1", **who), pytest.raises(SessionOwnerError) as caught:
            looks()
        assert caught.value.scope == "session"
    assert ran == []


def test_owned_scope_of_somebody_else_is_refused_when_it_is_asked_for():
    with Gantry(scopes={"conversation": Scope(owned=True)}) as gantry:

        @gantry.with_context
        def writes(ctx):
            ctx.memory["x"] = 1
            ctx.scope("conversation").setdefault("log", []).append(ctx.identity.user)

        with gantry.session("s1", user="ada", conversation="c"):
            writes()
        with gantry.session("s2", user="bob", conversation="c"), pytest.raises(SessionOwnerError) as caught:
            writes()

        assert caught.value.scope == "conversation"
        assert stored(gantry, session="s2", user="bob") == {}
        assert stored(gantry, "conversation", user="ada", conversation="c") == {"log": ["ada"]}


# Beside other decorators.


@pytest.mark.parametrize("order", ["context above", "memory above"])
def test_context_beside_a_memory_is_the_same_memory(recorded, recording, order):
    decorators = [recorded.with_context, recorded.with_memory, recorded.with_memory(scope="user", into="preferences")]

    def both(item, ctx, memory, preferences):
        assert ctx.memory is memory
        assert ctx.scope("user") is preferences
        memory.setdefault("items", []).append(item)
        ctx.memory["items"].append(item.upper())
        preferences["last"] = item
        ctx.scope("global").add("n", 1)

    for decorator in decorators if order == "memory above" else reversed(decorators):
        both = decorator(both)
    assert str(inspect.signature(both)) == "(item)"

    with ada(recorded):
        both("a")

    assert everything(recorded) == {**NOTHING, "session": {"items": ["a", "A"]}, "user": {"last": "a"}, "global": {"n": 1}}
    (scopes,) = recording.scopes_asked(Commit)
    assert set(scopes) == {"session", "user", "global"}


@pytest.mark.parametrize("order", ["context above", "memory above"])
def test_merges_that_a_memory_beside_it_declares_hold_for_the_context(gantry, order):
    decorators = [gantry.with_context, gantry.with_memory(merge={"best": merge.max})]

    def best(ctx, memory):
        ctx.memory["best"] = 5
        interfere(gantry, best=3)

    for decorator in decorators if order == "memory above" else reversed(decorators):
        best = decorator(best)

    with ada(gantry):
        best()

    assert stored(gantry) == {"best": 5}


def test_two_contexts_for_one_parameter_are_refused(gantry):
    with pytest.raises(DeclarationError, match=r"two decorators inject parameter 'ctx'.*with_context\(into="):
        gantry.with_context(gantry.with_context(lambda ctx: None))


# Calls inside calls.


def test_context_of_a_call_inside_sees_the_outer_ones_writes_and_is_undone_with_it(gantry):
    @gantry.with_context
    def inner(ctx):
        ctx.scope("user").setdefault("log", []).append("inner")
        ctx.memory["seen"] = ctx.memory.get("outer")

    @gantry.with_context
    def outer(ctx, fail):
        ctx.memory["outer"] = 1
        inner()
        assert ctx.memory["seen"] == 1
        assert ctx.scope("user") == {"log": ["inner"]}
        ctx.scope("user")["log"].append("outer")
        if fail:
            raise ValueError("the outer one failed")

    with ada(gantry):
        with pytest.raises(ValueError, match="outer"):
            outer(fail=True)
        assert everything(gantry) == NOTHING
        outer(fail=False)

    assert everything(gantry) == {**NOTHING, "session": {"outer": 1, "seen": 1}, "user": {"log": ["inner", "outer"]}}


@pytest.mark.anyio
async def test_async_context_of_a_call_inside_is_undone_alone(gantry):
    @gantry.with_context
    async def inner(ctx):
        (await ctx.scope("user"))["x"] = "inner"
        ctx.memory["x"] = "inner"
        raise ValueError("the inner one failed")

    @gantry.with_context
    async def outer(ctx):
        ctx.memory["x"] = (await ctx.scope("user"))["x"] = "outer"
        with pytest.raises(ValueError, match="inner"):
            await inner()

    async with ada(gantry):
        await outer()
        for scope in ("session", "user"):
            async with gantry.memory(scope) as memory:
                assert memory == {"x": "outer"}


# After the call.


@pytest.mark.parametrize("fails", [False, True])
def test_ended_context_opens_no_scope_and_stores_nothing(gantry, fails):
    kept = []

    @gantry.with_context
    def keeps(ctx):
        kept.append(ctx)
        ctx.memory["x"] = ctx.scope("user")["x"] = 1
        if fails:
            raise ValueError("the body failed")

    with ada(gantry):
        with contextlib.suppress(ValueError):
            keeps()
        (ctx,) = kept
        for scope in ("user", "global", "session"):
            with pytest.raises(CallEndedError, match=r"context.*has ended") as caught:
                ctx.scope(scope)
            assert caught.value.committed is False
        ctx.memory["x"] = "late"

    x = {} if fails else {"x": 1}
    assert everything(gantry) == {**NOTHING, "session": x, "user": x}


@pytest.mark.anyio
async def test_ended_async_context_opens_no_scope(gantry):
    @gantry.with_context
    async def keeps(ctx):
        return ctx

    async with ada(gantry):
        ctx = await keeps()
        with pytest.raises(CallEndedError, match=r"gantry\.memory"):
            await ctx.scope("user")


class Held(Blocking):
    """Answers a load of the user's memory when it may."""

    def __init__(self):
        super().__init__()
        self.asked_for, self.may_answer = threading.Event(), threading.Event()

    def load(self, message, /):
        if message.namespaces[0].scope == "user":
            self.asked_for.set()
            assert self.may_answer.wait(10)
        return super().load(message)


@pytest.mark.anyio
async def test_scope_that_is_still_loading_when_its_call_ends_is_refused():
    store, refused = Held(), []

    async def late(ctx):
        with pytest.raises(CallEndedError) as caught:
            await ctx.scope("user")
        refused.append(caught.value)

    async with Gantry(store) as gantry, anyio.create_task_group() as tasks:

        @gantry.with_context
        async def tool(ctx):
            tasks.start_soon(late, ctx)
            await anyio.to_thread.run_sync(store.asked_for.wait, 10)
            ctx.memory["a"] = 1

        with ada(gantry):
            await tool()
        store.may_answer.set()

    assert len(refused) == 1
    with Gantry(store.inner) as gantry:
        assert (stored(gantry), stored(gantry, "user", user="ada")) == ({"a": 1}, {})


# Kinds of functions.


class Notes:
    def __init__(self, prefix="> "):
        self.prefix = prefix

    def method(self, text, ctx):
        ctx.memory["text"] = self.prefix + text
        return ctx.tool

    @classmethod
    def of_class(cls, text, ctx):
        ctx.memory["text"] = cls.__name__ + text
        return ctx.tool

    @staticmethod
    def of_none(text, ctx):
        ctx.memory["text"] = text
        return ctx.tool

    def __call__(self, text, ctx):
        return self.method(text, ctx)


def ends(text, ctx, end):
    ctx.memory["text"] = text + end


KINDS = {
    "bound method": (lambda: Notes().method, "> a"),
    "class method": (lambda: Notes.of_class, "Notesa"),
    "static method": (lambda: Notes.of_none, "a"),
    "partial": (lambda: functools.partial(Notes.method, Notes("- ")), "- a"),
    "partial by keyword": (
        lambda: functools.partial(lambda text, ctx, end: ctx.memory.update(text=text + end), end="."),
        "a.",
    ),
    "callable object": (lambda: Notes("* "), "* a"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_callable_gets_a_context(gantry, kind):
    make, expected = KINDS[kind]
    tool = gantry.with_context(make())

    assert "ctx" not in inspect.signature(tool).parameters
    with ada(gantry):
        tool("a")
        assert stored(gantry) == {"text": expected}
        tool(text="a")
        with pytest.raises(InjectedArgumentError):
            tool("a", ctx=None)


def test_methods_decorated_in_their_class_get_a_context(gantry):
    class Decorated:
        @gantry.with_context
        def method(self, text: str, ctx: SyncExecutionContext) -> Any:
            ctx.memory["text"] = text
            return self, ctx

        @classmethod
        @gantry.with_context
        def of_class(cls, ctx):
            return cls, ctx

        @gantry.with_context
        @staticmethod
        def of_none(ctx):
            return ctx

    one = Decorated()
    with ada(gantry):
        assert one.method("a")[0] is one
        assert Decorated.method(one, "b")[0] is one
        assert one.of_class()[0] is Decorated
        assert type(Decorated.of_none()) is SyncExecutionContext
    assert str(inspect.signature(one.method)) == "(text: str) -> Any"
    assert stored(gantry) == {"text": "b"}


def test_function_itself_can_be_handed_one_in_a_test(gantry):
    class Double:
        memory: dict[str, Any] = {}

    @gantry.with_context
    def note(text, ctx):
        ctx.memory["text"] = text

    note.__wrapped__("a", Double)

    assert Double.memory == {"text": "a"}


# Annotations: the flavour is the one that the function needs.


async def async_one(ctx: SyncExecutionContext): ...


async def async_optional(ctx: SyncExecutionContext | None = None): ...


async def async_annotated(ctx: Annotated[SyncExecutionContext, "doc"]): ...


async def async_generator(ctx: SyncExecutionContext):
    yield 1


def sync_one(ctx: ExecutionContext): ...


def sync_of_module(ctx: agent_gantry_state.ExecutionContext): ...


def sync_optional(ctx: Optional[ExecutionContext] = None): ...  # noqa: UP045


def sync_annotated(ctx: Annotated[ExecutionContext | None, "doc"]): ...


def sync_generator(ctx: ExecutionContext):
    yield 1


class Flavoured:
    def method(self, ctx: ExecutionContext): ...

    async def async_method(self, ctx: SyncExecutionContext): ...

    async def __call__(self, ctx: SyncExecutionContext): ...


WRONG = [
    (async_one, "is an async function: annotate its parameter 'ctx' with ExecutionContext, not with SyncExecutionContext"),
    (async_optional, "an async function.*with ExecutionContext"),
    (async_annotated, "an async function.*with ExecutionContext"),
    (async_generator, "an async function.*with ExecutionContext"),
    (functools.partial(async_one), "an async function.*with ExecutionContext"),
    (Flavoured().async_method, "an async function.*with ExecutionContext"),
    (Flavoured(), "an async function.*with ExecutionContext"),
    (sync_one, "is a sync function: annotate its parameter 'ctx' with SyncExecutionContext, not with ExecutionContext"),
    (sync_of_module, "a sync function.*with SyncExecutionContext"),
    (sync_optional, "a sync function.*with SyncExecutionContext"),
    (sync_annotated, "a sync function.*with SyncExecutionContext"),
    (sync_generator, "a sync function.*with SyncExecutionContext"),
    (Flavoured.method, "a sync function.*with SyncExecutionContext"),
    (staticmethod(sync_one), "a sync function.*with SyncExecutionContext"),
]


@pytest.mark.parametrize(("wrong", "says"), WRONG)
def test_wrong_flavour_is_refused_at_decoration_with_the_right_one(wrong, says):
    with Gantry() as gantry, pytest.raises(DeclarationError, match=says):
        gantry.with_context(wrong)


MODULE = """
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    import agent_gantry_state
    from agent_gantry_state import ExecutionContext, SyncExecutionContext

async def one(ctx: ExecutionContext): ...
async def optional(ctx: ExecutionContext | None = None): ...
async def of_module(ctx: agent_gantry_state.ExecutionContext): ...
async def generator(ctx: ExecutionContext):
    yield 1
def sync(ctx: SyncExecutionContext): ...
def sync_of_module(ctx: agent_gantry_state.SyncExecutionContext): ...
def sync_generator(ctx: SyncExecutionContext):
    yield 1

async def wrong(ctx: SyncExecutionContext): ...
async def wrong_of_module(ctx: agent_gantry_state.SyncExecutionContext): ...
def sync_wrong(ctx: ExecutionContext): ...
def sync_wrong_of_module(ctx: agent_gantry_state.ExecutionContext): ...
"""


@pytest.fixture
def only_for_checkers(tmp_path, monkeypatch):
    """A module that imports the classes for type checkers only."""
    name = f"contexts_of_a_test_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(name)
    del sys.modules[name]


@pytest.mark.parametrize("name", ["one", "optional", "of_module", "generator", "sync", "sync_of_module", "sync_generator"])
def test_annotation_that_only_type_checkers_can_resolve_is_no_hindrance(only_for_checkers, name):
    with Gantry() as gantry:
        tool = gantry.with_context(getattr(only_for_checkers, name))

        assert list(inspect.signature(tool).parameters) == []
        assert tool.__annotations__ == {}


@pytest.mark.parametrize("name", ["wrong", "wrong_of_module", "sync_wrong", "sync_wrong_of_module"])
def test_wrong_flavour_that_only_type_checkers_can_resolve_is_refused(only_for_checkers, name):
    with Gantry() as gantry, pytest.raises(DeclarationError, match=r"annotate its parameter 'ctx' with \w*ExecutionContext"):
        gantry.with_context(getattr(only_for_checkers, name))


UNFIT = [
    (lambda item: None, r"has no parameter 'ctx' for the context.*item.*`ctx: SyncExecutionContext`.*with_context\(into="),
    (lambda ctx, /: None, "'ctx' is positional-only"),
    (lambda *ctx: None, "collects arguments.*`ctx: SyncExecutionContext`"),
    (lambda **ctx: None, "collects arguments.*`ctx: SyncExecutionContext`"),
    (Notes, "Notes is a class"),
    (5, "only a function"),
]


@pytest.mark.parametrize(("unfit", "says"), UNFIT)
@pytest.mark.parametrize("called", [False, True])
def test_unfit_is_refused_at_decoration_with_what_to_do(unfit, says, called):
    with Gantry() as gantry, pytest.raises(DeclarationError, match=says):
        (gantry.with_context() if called else gantry.with_context)(unfit)


@pytest.mark.parametrize("bad", [{"into": "a b"}, {"on_conflict": "again"}, {"retries": -1}, {"into": None}])
def test_bad_declaration_is_refused_before_there_is_a_tool(bad):
    with Gantry() as gantry, pytest.raises(DeclarationError, match="with_context"):
        gantry.with_context(**bad)


@pytest.mark.anyio
async def test_sync_function_that_returns_an_awaitable_is_committed_when_that_is_done(gantry):
    @gantry.with_context
    def later(ctx):
        async def body():
            await anyio.sleep(0)
            ctx.memory["x"] = ctx.scope("user")["x"] = 1
            return "done"

        return body()

    async with ada(gantry):
        assert await later() == "done"
        for scope in ("session", "user"):
            async with gantry.memory(scope) as memory:
                assert memory == {"x": 1}


def test_tool_with_a_context_pickles_by_reference():
    assert pickle.loads(pickle.dumps(module_tool)) is module_tool


module_gantry = Gantry()


@module_gantry.with_context
def module_tool(ctx):
    return ctx
