"""From a request to a namespace: the chain of resolvers, and what is said when none has an answer."""

from __future__ import annotations

import threading

import pytest

from agent_gantry_state import (
    Gantry,
    Identity,
    MissingIdentityError,
    Namespace,
    Request,
    ResolverError,
    Scope,
    StateError,
)
from agent_gantry_state.resolvers import resolve
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import List

ADA = Identity("s1", "ada", "c1", {"tenant": "acme"})


@pytest.mark.parametrize(
    ("scope", "id"),
    [
        ("tool", "search"),
        ("session", "s1"),
        ("conversation", "c1"),
        ("user", "ada"),
        ("global", "global"),
        ("tenant", "acme"),
    ],
)
def test_every_scope_has_its_namespace(scope, id):
    assert resolve(scope, "search", ADA, "app") == Namespace(scope, id, "app")


@pytest.mark.parametrize("scope", ["session", "conversation", "user", "tenant"])
@pytest.mark.parametrize("identity", [None, Identity(), Identity(keys={"other": "x"})])
def test_unknown_identity_is_an_error_and_never_a_wider_scope(scope, identity):
    with pytest.raises(MissingIdentityError) as caught:
        resolve(scope, "search", identity, "app")

    assert caught.value.scope == scope
    assert caught.value.committed is False
    assert isinstance(caught.value, StateError)


@pytest.mark.parametrize("missing", ["session", "conversation", "user", "tenant"])
def test_what_else_is_known_stands_in_for_nothing(missing):
    with pytest.raises(MissingIdentityError):
        resolve(missing, "search", ADA.replace(**{missing: None}), "app")


def test_missing_session_says_both_ways_to_give_one():
    with pytest.raises(MissingIdentityError) as caught:
        resolve("session", None, None, "app")

    said = str(caught.value)
    assert "no session is known here" in said
    assert "with gantry.session(" in said
    assert "async with" in said
    assert 'AgentGantry(session="local")' in said


@pytest.mark.parametrize(("scope", "once"), [("user", 'AgentGantry(user="...")'), ("tenant", "resolvers=[")])
def test_missing_identity_key_says_both_ways_to_give_it(scope, once):
    with pytest.raises(MissingIdentityError) as caught:
        resolve(scope, None, Identity("s1"), "app")

    said = str(caught.value)
    assert f"no {scope} is known here" in said
    assert f'with gantry.session(..., {scope}="..."' in said
    assert once in said


def test_tool_scope_outside_a_tool_says_how_to_name_one():
    with pytest.raises(MissingIdentityError, match=r"pass tool="):
        resolve("tool", None, ADA, "app")


@pytest.mark.parametrize(
    ("scope", "meant"), [("sesion", "session"), ("sessions", "session"), ("users", "user"), ("Global", "global")]
)
def test_misspelt_scope_is_offered_the_near_name(scope, meant):
    with pytest.raises(MissingIdentityError, match=f"did you mean scope='{meant}'"):
        resolve(scope, "search", ADA, "app")


def test_misspelt_custom_scope_is_offered_the_declared_name():
    with pytest.raises(MissingIdentityError, match="did you mean scope='tenant'"):
        resolve("tennant", None, None, "app", declared=["tenant"])
    with pytest.raises(MissingIdentityError, match="did you mean scope='tenant'"):
        resolve("tennant", None, ADA, "app")


def test_no_name_is_offered_where_the_scope_is_right():
    for scope, declared in (("user", ()), ("session", ()), ("users", ("users",)), ("zebra", ())):
        with pytest.raises(MissingIdentityError) as caught:
            resolve(scope, None, None, "app", declared=declared)
        assert "did you mean" not in str(caught.value)


def test_messages_hold_no_ids():
    secret = Identity("secret-s", None, "secret-c", {"tenant": "secret-t"})

    for scope in ("user", "sesion", "team"):
        with pytest.raises(MissingIdentityError) as caught:
            resolve(scope, "search", secret, "secret-app")
        assert "secret" not in str(caught.value)


# The chain.


def test_first_resolver_that_answers_wins():
    asked = []

    def silent(request):
        asked.append("silent")

    def answers(request):
        asked.append("answers")
        return Namespace("team", "red")

    def never(request):
        raise AssertionError("asked after another had answered")

    assert resolve("session", "t", ADA, "app", [silent, answers, never]) == Namespace("team", "red", "app")
    assert asked == ["silent", "answers"]


def test_none_falls_through_to_the_built_in_ones():
    assert resolve("session", "t", ADA, "app", [lambda request: None]) == Namespace("session", "s1", "app")


def test_resolver_is_asked_with_scope_tool_and_identity():
    asked = []

    resolve("tenant", "search", ADA, "app", [asked.append])
    with pytest.raises(MissingIdentityError):
        resolve("tenant", None, None, "app", [asked.append])

    assert asked == [Request("tenant", "search", ADA), Request("tenant", None, Identity())]


def test_gantry_puts_its_own_app_over_the_resolvers():
    assert resolve("session", "t", ADA, "mine", [lambda request: Namespace("x", "y", "theirs")]) == (
        Namespace("x", "y", "mine")
    )


@pytest.mark.parametrize("answer", ["s1", ("session", "s1"), ("session", "s1", "app"), 5, False, [], {}])
def test_answer_of_a_wrong_type_is_a_resolver_error(answer):
    def by_team(request):
        return answer

    with pytest.raises(
        ResolverError, match=r"by_team.*must answer scope 'session' with a Namespace\(.*or None, not"
    ) as caught:
        resolve("session", "t", ADA, "app", [by_team])

    assert isinstance(caught.value, TypeError)
    assert caught.value.scope == "session"
    assert "s1" not in str(caught.value)


def test_resolver_object_is_named_by_its_class():
    class ByTeam:
        def __call__(self, request):
            return 5

    with pytest.raises(ResolverError, match="ByTeam"):
        resolve("session", "t", ADA, "app", [ByTeam()])


def test_error_of_a_resolver_is_named_without_its_words():
    error = LookupError("no such user: ada")

    def fails(request):
        raise error

    with Gantry(session="s", resolvers=[fails]) as gantry:
        tool = gantry.with_memory(lambda memory: None)
        with pytest.raises(ResolverError, match="fails failed for scope 'session' with LookupError") as caught:
            tool()

    assert caught.value.__cause__ is error
    assert "ada" not in str(caught.value)


def test_gantry_refuses_a_resolver_that_cannot_be_called():
    with pytest.raises(TypeError, match="a resolver must be callable or have a method identify"):
        Gantry(resolvers=["session"])


# In a gantry.


def test_custom_resolver_decides_which_memory_a_tool_gets():
    teams = {"ada": "red", "bob": "red", "eve": "blue"}

    def by_team(request):
        if request.scope != "team":
            return None
        return Namespace("team", teams[request.identity.user])

    with Gantry(resolvers=[by_team]) as gantry:

        @gantry.with_memory(scope="team")
        def score(memory):
            return memory.add("n", 1)

        results = []
        for user in ("ada", "bob", "eve"):
            with gantry.session(user=user):
                results.append(score())

    assert results == [1, 2, 1]


def test_resolver_that_changes_its_answer_is_asked_at_each_call():
    answers = iter(["a", "b", "a"])

    with Gantry(session="s", resolvers=[lambda request: Namespace("x", next(answers))]) as gantry:

        @gantry.with_memory
        def count(memory):
            return memory.add("n", 1)

        assert [count(), count(), count()] == [1, 1, 2]


@pytest.mark.parametrize("scope", ["tool", "global"])
def test_resolver_may_answer_for_the_scopes_that_are_nobodys(scope):
    asked = []

    def resolver(request):
        asked.append(request.tool)
        return Namespace("mine", "x") if len(asked) == 2 else None

    with Gantry(resolvers=[resolver]) as gantry:

        @gantry.with_memory(scope=scope, name="search")
        def count(memory):
            return memory.add("n", 1)

        assert [count(), count(), count()] == [1, 1, 2]

    assert asked == ["search"] * 3


def test_memory_block_asks_the_resolvers():
    with Gantry(resolvers=[lambda request: Namespace("x", request.tool or "none")]) as gantry:
        with gantry.memory("anything", tool="search") as memory:
            memory["n"] = 1
        with gantry.memory("else", tool="search") as memory:
            assert memory == {"n": 1}
        with gantry.memory("else") as memory:
            assert memory == {}


def test_apps_are_apart_on_one_store():
    store = MemoryStore()
    one, other, again = (Gantry(store, app=app, session="s") for app in ("one", "other", "one"))

    def count(memory):
        return memory.add("n", 1)

    for scope in ("session", "global", "tool"):
        counts = [gantry.with_memory(scope=scope, name="count")(count) for gantry in (one, other, again)]
        assert [each() for each in counts] == [1, 1, 2]

    assert {listed.namespace.app for listed in store.list(List()).listed} == {"one", "other"}


def test_apps_are_apart_for_one_and_the_same_identity():
    store = MemoryStore()
    one, other = Gantry(store, app="one"), Gantry(store, app="other")
    tools = [gantry.with_memory(lambda memory: memory.add("n", 1)) for gantry in (one, other)]

    with one.session("s"):
        assert [tool() for tool in tools] == [1, 1]


def test_one_identity_resolves_alike_from_many_threads():
    with Gantry() as gantry:
        count = gantry.with_memory(lambda memory: memory.add("n", 1))
        identity = gantry.session("s", user="ada")

        def run():
            with gantry.session("s", user="ada"):
                for _ in range(20):
                    count()

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        with identity:
            assert count() == 161


def test_declared_scope_gives_its_time_to_live():
    now = [1000.0]
    with (
        Gantry(scopes={"tenant": Scope(ttl=60)}) as gantry,
        gantry.override(session="s", tenant="acme", clock=lambda: now[0]),
    ):
        count = gantry.with_memory(scope="tenant")(lambda memory: memory.add("n", 1))
        assert count() == 1
        now[0] += 59
        assert count() == 2
        now[0] += 60
        assert count() == 1
