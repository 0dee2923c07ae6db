"""Who calls, as a framework says it, beside what a program states itself."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context

import pytest

from agent_gantry_state import (
    Gantry,
    Identity,
    MissingIdentityError,
    Namespace,
    ResolverError,
    SessionOwnerError,
    SyncExecutionContext,
)
from agent_gantry_state.integrations.incoming import calling
from agent_gantry_state.stores.memory import MemoryStore

RUN: ContextVar[Identity | None] = ContextVar("run", default=None)


class Framework:
    """Knows who calls while it runs, as frameworks do: by a context variable of its own."""

    def identify(self) -> Identity | None:
        return RUN.get()


@contextmanager
def running(session=None, user=None, **keys):
    token = RUN.set(Identity(session, user, None, keys))
    try:
        yield
    finally:
        RUN.reset(token)


def gantry_in_a_framework(**options):
    gantry = Gantry(resolvers=[Framework()], **options)

    @gantry.with_memory
    def note(item: str, memory: dict) -> list[str]:
        memory.setdefault("items", []).append(item)
        return list(memory["items"])

    return gantry, note


def items(gantry, **who):
    with gantry.memory(**who) as memory:
        return memory.get("items")


def test_identity_comes_from_the_framework():
    _, note = gantry_in_a_framework()

    with running("s1"):
        note("a")
    with running("s2"):
        note("b")
    with running("s1"):
        assert note("c") == ["a", "c"]


def test_outside_of_a_run_the_identity_is_unknown():
    _, note = gantry_in_a_framework()

    with pytest.raises(MissingIdentityError):
        note("a")


def test_default_identity_holds_outside_of_a_run():
    gantry, note = gantry_in_a_framework(session="local")

    note("a")
    with running("s1"):
        note("b")

    assert items(gantry, session="local") == ["a"]
    assert items(gantry, session="s1") == ["b"]


def test_run_inside_a_session_is_nearer():
    gantry, note = gantry_in_a_framework()

    with gantry.session("outer"), running("s1"):
        note("a")

    assert items(gantry, session="s1") == ["a"]
    assert items(gantry, session="outer") is None


def test_session_inside_a_run_is_nearer():
    gantry, note = gantry_in_a_framework()

    with running("s1"):
        with gantry.session("inner"):
            note("a")
        note("b")

    assert items(gantry, session="inner") == ["a"]
    assert items(gantry, session="s1") == ["b"]


def test_request_to_a_server_inside_a_run_is_nearer_and_a_run_inside_the_request_is_nearest():
    gantry, note = gantry_in_a_framework()

    with running("s1", user="ada"):
        with calling(Identity("of the request", "bob")):
            note("a")
            with running("s2"):
                note("b")
            over = copy_context()
        note("c")
        with pytest.raises(MissingIdentityError):
            over.run(note, "d")

    assert items(gantry, session="of the request", user="bob") == ["a"]
    assert items(gantry, session="s2") == ["b"]
    assert items(gantry, session="s1", user="ada") == ["c"]


def test_run_inside_a_session_inside_a_run_is_nearest():
    gantry, note = gantry_in_a_framework()

    with running("s1"), gantry.session("inner"), running("s2"):
        note("a")

    assert items(gantry, session="s2") == ["a"]


def test_what_is_stated_for_one_memory_is_nearest_of_all():
    gantry, _ = gantry_in_a_framework()

    with running("s1"), gantry.memory(session="other") as memory:
        memory["items"] = ["x"]

    assert items(gantry, session="other") == ["x"]
    with running("s1"):
        assert items(gantry) is None


def test_override_inside_a_run_is_nearer():
    gantry, note = gantry_in_a_framework()

    with running("s1", "ada"), gantry.override(session="test"):
        note("a")
        assert items(gantry) == ["a"]

    assert items(gantry, session="test") == ["a"]


def test_override_of_the_user_keeps_the_session_of_the_run():
    gantry, note = gantry_in_a_framework()

    with running("s1", "ada"), gantry.override(user="bob"):
        note("a")

    assert items(gantry, session="s1", user="bob") == ["a"]


@pytest.mark.parametrize(
    ("stated", "session", "user"), [({"session": "test"}, "test", None), ({"user": "bob"}, "s1", "bob")]
)
def test_identity_of_an_override_is_nearer_than_what_its_resolvers_say(stated, session, user):
    gantry = Gantry()

    @gantry.with_memory
    def note(memory):
        memory["items"] = ["a"]

    with running("s1", "ada"), gantry.override(resolvers=[Framework()], **stated):
        note()

    assert items(gantry, session=session, user=user) == ["a"]


def test_override_whose_identity_is_refused_overrides_nothing():
    class Failing:
        def identify(self):
            raise OSError

    gantry = Gantry(session="s1")

    with pytest.raises(ResolverError), gantry.override(session="test", resolvers=[Failing()]):
        pass

    assert gantry.identity() == Identity("s1")


def test_override_of_the_resolvers_takes_the_framework_out():
    gantry, note = gantry_in_a_framework()

    with running("s1"), gantry.override(resolvers=[]), pytest.raises(MissingIdentityError):
        note("a")


def test_run_that_names_a_session_is_the_whole_identity():
    """Else a user who was left over around it would own the session."""
    gantry, note = gantry_in_a_framework()

    with gantry.session("outer", user="ada"), running("s1"):
        note("a")

    with pytest.raises(SessionOwnerError):
        items(gantry, session="s1", user="ada")
    assert items(gantry, session="s1") == ["a"]


def test_run_that_names_no_session_changes_what_it_names():
    gantry, note = gantry_in_a_framework()

    with gantry.session("outer", tenant="acme"), running(user="ada"):
        note("a")

    assert items(gantry, session="outer", user="ada") == ["a"]


def test_owner_is_bound_by_what_the_framework_says():
    gantry, note = gantry_in_a_framework()
    with running("s1", "ada"):
        note("a")

    with running("s1", "bob"), pytest.raises(SessionOwnerError):
        note("b")
    with running("s1"), pytest.raises(SessionOwnerError):
        note("b")

    assert items(gantry, session="s1", user="ada") == ["a"]


def test_owner_holds_for_a_program_without_the_framework():
    store = MemoryStore()
    _, note = gantry_in_a_framework(store=store)
    with running("s1", "ada"):
        note("a")

    with pytest.raises(SessionOwnerError):
        items(Gantry(store), session="s1", user="bob")


def test_context_of_a_call_knows_the_identity():
    gantry = Gantry(resolvers=[Framework()])

    @gantry.with_context
    def who(ctx: SyncExecutionContext) -> tuple[str | None, str | None, str | None]:
        ctx.scope("user")["seen"] = True
        return ctx.identity.session, ctx.identity.user, ctx.identity.get("tenant")

    with running("s1", "ada", tenant="acme"):
        assert who() == ("s1", "ada", "acme")


def test_resolver_of_namespaces_is_asked_with_the_identity_of_the_run():
    asked = []

    def by_team(request):
        asked.append(request.identity)
        return Namespace("team", "red") if request.scope == "team" else None

    gantry = Gantry(resolvers=[by_team, Framework()])

    @gantry.with_memory(scope="team")
    def score(memory: dict) -> None:
        memory["points"] = 1

    with running("s1", "ada"):
        score()

    assert asked == [Identity("s1", "ada")]


def test_resolver_may_be_of_both_kinds():
    class Both(Framework):
        def __call__(self, request):
            return Namespace("team", "red") if request.scope == "team" else None

    gantry = Gantry(resolvers=[Both()])

    @gantry.with_memory(scope="team", into="team")
    @gantry.with_memory
    def score(memory: dict, team: dict) -> None:
        memory["points"] = team["points"] = 1

    with running("s1"):
        score()

    with gantry.memory("team", session="any") as team:
        assert team == {"points": 1}


def test_first_framework_that_says_who_calls_wins():
    class Silent:
        def identify(self):
            return None

    class Other:
        def identify(self):
            return Identity("other")

    gantry = Gantry(resolvers=[Silent(), Framework(), Other()])

    @gantry.with_context
    def session(ctx: SyncExecutionContext) -> str | None:
        return ctx.identity.session

    assert session() == "other"
    with running("s1"):
        assert session() == "s1"


def test_generator_is_of_whoever_called_its_function():
    gantry, note = gantry_in_a_framework()

    @gantry.with_memory
    def each(memory: dict):
        memory["begun"] = True
        yield note("inside")
        memory["ended"] = True

    with running("s1"):
        generator = each()
    with running("s2"):
        assert list(generator) == [["inside"]]

    with gantry.memory(session="s1") as memory:
        assert memory == {"begun": True, "items": ["inside"], "ended": True}
    assert items(gantry, session="s2") is None


@pytest.mark.anyio
async def test_async_generator_is_of_whoever_called_its_function():
    gantry, note = gantry_in_a_framework()

    @gantry.with_memory
    async def each(memory: dict):
        memory["begun"] = True
        yield note("inside")

    with running("s1"):
        generator = each()
    assert [item async for item in generator] == [["inside"]]

    with gantry.memory(session="s1") as memory:
        assert memory == {"begun": True, "items": ["inside"]}


def test_identities_do_not_cross_between_threads_and_loops():
    gantry, note = gantry_in_a_framework()

    @gantry.with_memory
    async def anote(item: str, memory: dict) -> None:
        await asyncio.sleep(0)
        memory.setdefault("items", []).append(item)

    async def on_a_loop(user):
        async def one(number):
            with running(f"of {user}", user):
                await anote(f"{user} {number}")

        for number in range(25):
            await asyncio.gather(one(number), one(number))

    def in_a_thread(user):
        with running(f"of {user}", user):
            for number in range(50):
                note(f"{user} {number}")

    def on_a_loop_of_its_own(user):
        asyncio.run(on_a_loop(user))

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(in_a_thread, user) for user in ("ada", "bob", "cy")]
        jobs += [pool.submit(on_a_loop_of_its_own, user) for user in ("dee", "eve", "fay")]
    for job in jobs:
        job.result()

    for user in ("ada", "bob", "cy", "dee", "eve", "fay"):
        found = items(gantry, session=f"of {user}", user=user)
        assert len(found) == 50
        assert {item.split()[0] for item in found} == {user}


def test_copied_context_takes_the_run_along():
    gantry, note = gantry_in_a_framework()

    with running("s1"):
        thread = threading.Thread(target=copy_context().run, args=(note, "a"))
    thread.start()
    thread.join()

    assert items(gantry, session="s1") == ["a"]


def test_failing_framework_is_named_without_its_words():
    class Broken:
        def identify(self):
            raise LookupError("ada's own id")

    gantry = Gantry(resolvers=[Broken()])

    with pytest.raises(ResolverError, match=r"resolver Broken failed to say who calls, with LookupError$") as caught:
        gantry.with_memory(lambda memory: None)()

    assert caught.value.scope is None


def test_wrong_answer_of_a_framework_is_named_by_its_type():
    class Wrong:
        def identify(self):
            return "ada"

    with pytest.raises(ResolverError, match=r"Identity\(\.\.\.\) or None, not str"):
        Gantry(resolvers=[Wrong()]).with_memory(lambda memory: None)()


@pytest.mark.parametrize("give", [lambda it: Gantry(resolvers=[it]), lambda it: Gantry().override(resolvers=[it])])
def test_class_without_parentheses_is_refused(give):
    with pytest.raises(TypeError, match=r"pass Framework\(\), with parentheses"):
        give(Framework)


# What a gantry says itself, and takes as a whole.


def test_gantry_says_who_calls():
    gantry, _ = gantry_in_a_framework(user="default")

    assert gantry.identity() == Identity(user="default")
    with running("s1", "ada"):
        assert gantry.identity() == Identity("s1", "ada")
        with gantry.session("s2"):
            assert gantry.identity() == Identity("s2")
    assert Gantry().identity() is None


def test_session_takes_an_identity_as_it_is():
    gantry = Gantry()
    identity = Identity(user="ada", keys={"tenant": "acme"})

    with gantry.session(identity) as entered:
        assert entered is identity
        assert gantry.identity() is identity


@pytest.mark.parametrize("more", [{"user": "ada"}, {"conversation": "c"}, {"tenant": "t"}, {"adopt": True}])
def test_session_takes_nothing_beside_an_identity(more):
    with pytest.raises(TypeError, match="an Identity is the whole of it"):
        Gantry().session(Identity("s1", "ada"), **more)
