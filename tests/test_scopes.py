"""Who shares a memory: identities, scopes, and the identity that holds in a context."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import hashlib
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_gantry_state import Gantry, Identity, MissingIdentityError, Namespace, Scope, current_identity
from agent_gantry_state.stores.memory import MemoryStore


@pytest.fixture
def gantry():
    with Gantry() as made:
        yield made


@pytest.fixture
def whoami(gantry):
    @gantry.with_memory
    def tool(memory):
        memory.setdefault("calls", []).append(current_identity().session)
        return memory["calls"]

    return tool


# Identity.


def test_unknown_is_none():
    nobody = Identity()

    assert (nobody.session, nobody.user, nobody.conversation, nobody.get("tenant")) == (None, None, None, None)
    assert dict(nobody.keys) == {}


def test_identity_states_all_that_is_known():
    identity = Identity("s1", "ada", None, {"tenant": "acme", "team": None})

    assert dict(identity.keys) == {"session": "s1", "user": "ada", "tenant": "acme"}
    assert identity.get("tenant") == "acme"
    assert identity.get("team") is None


def test_identity_is_compared_by_what_is_known():
    assert Identity("s1") == Identity(session="s1", user=None)
    assert hash(Identity("s1", keys={"a": "1"})) == hash(Identity("s1", keys={"a": "1", "b": None}))
    assert Identity("s1") != Identity(user="s1")
    assert Identity("s1") != Identity("S1")
    assert Identity("s1") != "s1"


def test_replace_changes_only_what_it_names():
    identity = Identity("s1", "ada", "c", {"tenant": "acme"})

    assert identity.replace(user="bob") == Identity("s1", "bob", "c", {"tenant": "acme"})
    assert identity.replace(user=None, team="red") == Identity("s1", None, "c", {"tenant": "acme", "team": "red"})
    assert identity.user == "ada"


def test_identity_cannot_be_changed():
    identity = Identity("s1")

    with pytest.raises(AttributeError):
        identity.session = "s2"
    with pytest.raises(TypeError):
        identity.keys["session"] = "s2"


@pytest.mark.parametrize("name", ["owner", "adopt", "namespaces", "slots", "_keys"])
def test_nobody_becomes_another_owner_by_changing_an_identity(name):
    identity = Identity("s1", "ada")
    before = getattr(identity, name)

    with pytest.raises(AttributeError, match="replace"):
        setattr(identity, name, "bob")
    assert getattr(identity, name) is before


def test_identity_keeps_no_store_alive(gantry):
    with gantry.session("s1", user="ada"):
        store = MemoryStore()
        other = Gantry(store)
        tool = other.with_memory(lambda memory: memory.add("n"))
        assert [tool(), tool()] == [1, 2]

        gone = weakref.ref(store)
        del store, other, tool
        gc.collect()

        assert gone() is None


@pytest.mark.parametrize("key", ["session", "user", "conversation"])
def test_empty_id_is_refused(key):
    with pytest.raises(ValueError, match=f"{key} must not be empty; leave it out"):
        Identity(**{key: ""})


@pytest.mark.parametrize("id", [5, b"s1", ["s1"], object(), True, 0, False])
def test_id_that_is_no_str_is_refused(id):
    with pytest.raises(TypeError, match=r"session must be a str, not .*; convert it with str\(\)"):
        Identity(id)
    with pytest.raises(TypeError, match="tenant must be a str"):
        Identity("s", keys={"tenant": id})


@pytest.mark.parametrize("key", ["tool", "global"])
def test_key_named_like_a_scope_that_is_nobodys_is_refused(gantry, key):
    with pytest.raises(ValueError, match=f"{key!r} is a scope of its own"):
        Identity(keys={key: "x"})
    with pytest.raises(ValueError, match=f"{key!r} is a scope of its own"):
        gantry.session("s", **{key: "x"})


def test_repr_of_an_identity_shows_no_id():
    identity = Identity("secret-session", "secret-user", keys={"tenant": "secret-tenant"})

    assert "secret" not in repr(identity)
    assert "secret" not in str(identity)
    assert "tenant" in repr(identity)
    assert repr(Identity())


# Namespaces: ids are opaque.

ODD_IDS = [
    "a/b",
    "../../etc/passwd",
    "a:b",
    "a\0b",
    "\0",
    " ",
    "a ",
    " a",
    "a",
    "A",
    "a\n",
    "a\t",
    "%61",
    "*",
    "'; DROP TABLE entries; --",
    "é",
    "e\u0301",
    "\u0430",
    "\uff41",
    "ß",
    "ss",
    "\u0131",
    "i",
    "\ud800",
    "\udc80",
    "\U0001f600",
    "\u202e",
    "\ufeff",
    "None",
    "session",
    "x" * 100_000,
    "x" * 99_999,
]


def test_odd_ids_are_each_a_namespace_of_their_own():
    assert len({Namespace("session", id, "app") for id in ODD_IDS}) == len(ODD_IDS)
    assert len({Namespace("session", id, "app").address for id in ODD_IDS}) == len(ODD_IDS)
    assert len({Namespace("session", id, "app").digest for id in ODD_IDS}) == len(ODD_IDS)


@pytest.mark.parametrize("key", ["session", "user", "tenant"])
def test_odd_ids_share_no_memory(gantry, key):
    for id in ODD_IDS:
        with gantry.memory(key, **{key: id}) as memory:
            assert memory == {}
            memory["id"] = id

    for id in ODD_IDS:
        with gantry.memory(key, **{key: id}) as memory:
            assert memory == {"id": id}


def test_id_of_a_str_enum_is_its_text(gantry):
    class Plan(str, Enum):
        FREE = "free"

    with gantry.memory("plan", plan=Plan.FREE) as memory:
        memory["n"] = 1
    with gantry.memory("plan", plan="free") as memory:
        assert memory == {"n": 1}


_PART = st.text(st.characters(codec=None) | st.sampled_from("ab\0:/"), max_size=6)
_ADDRESS = st.tuples(_PART, _PART.filter(bool), _PART.filter(bool))


@given(_ADDRESS, _ADDRESS)
def test_address_is_injective(one, other):
    (app, scope, id), (app2, scope2, id2) = one, other

    same = Namespace(scope, id, app).address == Namespace(scope2, id2, app2).address

    assert same == (one == other)
    assert (Namespace(scope, id, app) == Namespace(scope2, id2, app2)) == (one == other)


@given(st.text("ab\0\x01:/", min_size=3, max_size=12), st.data())
def test_no_shift_of_text_between_the_parts_gives_the_same_address(text, data):
    cuts = st.tuples(st.integers(0, len(text) - 2), st.integers(1, len(text) - 1)).filter(lambda cut: cut[0] < cut[1])
    (a, b), (c, d) = data.draw(cuts), data.draw(cuts)

    one = Namespace(text[a:b], text[b:], text[:a])
    other = Namespace(text[c:d], text[d:], text[:c])

    assert (one.address == other.address) == ((a, b) == (c, d))
    assert (one.digest == other.digest) == ((a, b) == (c, d))


def test_digest_is_the_sha256_of_the_address():
    namespace = Namespace("session", "s1", "app")

    assert namespace.digest == hashlib.sha256(namespace.address).digest()
    assert len(namespace.digest) == 32
    assert namespace.address == b"".join(len(p).to_bytes(8, "big") + p for p in (b"app", b"session", b"s1"))


def test_repr_of_a_namespace_shows_no_id():
    namespace = Namespace("session", "secret", "app")

    assert "secret" not in repr(namespace)
    assert "secret" not in f"{namespace} {namespace!s} {[namespace]}"
    assert "session" in repr(namespace)


def test_namespace_is_pickled_whole():
    namespace = Namespace("session", "s1", "app")

    assert pickle.loads(pickle.dumps(namespace)) == namespace


@pytest.mark.parametrize("parts", [("", "a"), ("a", "")])
def test_namespace_without_scope_or_id_is_refused(parts):
    with pytest.raises(ValueError, match="must not be empty"):
        Namespace(*parts)


@pytest.mark.parametrize("parts", [(5, "a"), ("a", 5), ("a", None), ("a", b"a"), ("a", "a", 5)])
def test_namespace_of_what_is_no_str_is_refused(parts):
    with pytest.raises(TypeError, match="must be a str, not"):
        Namespace(*parts)


# Scopes.


def test_scope_takes_a_time_to_live():
    assert Scope() == Scope(ttl=None, sliding=False)
    assert Scope(ttl=60, sliding=True).ttl == 60
    assert Scope(ttl=0.5).ttl == 0.5


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan"), -0.0])
def test_scope_refuses_a_time_to_live_that_is_not_positive_and_finite(ttl):
    with pytest.raises(ValueError, match="ttl must be a positive, finite number of seconds"):
        Scope(ttl=ttl)


@pytest.mark.parametrize("ttl", ["60", True, b"1", [1]])
def test_scope_refuses_a_time_to_live_that_is_no_number(ttl):
    with pytest.raises(TypeError, match="ttl must be a number of seconds or None"):
        Scope(ttl=ttl)


def test_sliding_without_a_time_to_live_is_refused():
    with pytest.raises(ValueError, match="sliding=True needs a ttl"):
        Scope(sliding=True)


def test_gantry_takes_only_scopes_as_scopes():
    with pytest.raises(TypeError, match=r"scopes\['session'\] must be a Scope\(...\), the URL of a store, or a store"):
        Gantry(scopes={"session": 60})


# The identity that holds in a context.


def test_session_gives_its_identity_and_takes_it_back(gantry):
    assert current_identity() is None
    with gantry.session("s1", user="ada", conversation="c", tenant="acme") as identity:
        assert identity == Identity("s1", "ada", "c", {"tenant": "acme"})
        assert current_identity() is identity
    assert current_identity() is None


def test_session_makes_ids_of_43_characters_that_never_repeat(gantry):
    made = []
    for _ in range(1000):
        with gantry.session() as identity:
            made.append(identity.session)

    assert {len(id) for id in made} == {43}
    assert len(set(made)) == 1000


def test_session_without_an_id_still_knows_its_user(gantry):
    with gantry.session(user="ada") as identity:
        assert identity.user == "ada"
        assert len(identity.session) == 43


def test_inner_session_states_the_whole_identity(gantry):
    with gantry.session("s1", user="ada", tenant="acme"):
        with gantry.session("s2"):
            assert current_identity() == Identity("s2")
        assert current_identity() == Identity("s1", "ada", None, {"tenant": "acme"})


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, asyncio.CancelledError])
def test_session_ends_when_its_body_raises(gantry, failure):
    with pytest.raises(failure), gantry.session("s1"):
        raise failure

    assert current_identity() is None


@pytest.mark.anyio
async def test_async_session_ends_when_its_body_raises(gantry):
    async def fail():
        async with gantry.session("s1") as identity:
            assert current_identity() is identity
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        await fail()

    assert current_identity() is None


def test_sessions_left_out_of_order_leave_nobody_behind(gantry):
    one, two, three = gantry.session("s1"), gantry.session("s2"), gantry.session("s3")
    for block in (one, two, three):
        block.__enter__()

    two.__exit__(None, None, None)
    assert current_identity().session == "s3"
    three.__exit__(None, None, None)
    assert current_identity().session == "s1"
    one.__exit__(None, None, None)
    assert current_identity() is None


def test_outer_session_left_first_is_not_come_back_to(gantry):
    outer, inner = gantry.session("s1"), gantry.session("s2")
    outer.__enter__()
    inner.__enter__()

    outer.__exit__(None, None, None)
    assert current_identity().session == "s2"
    inner.__exit__(None, None, None)
    assert current_identity() is None


def test_one_block_can_be_entered_again_and_nested(gantry):
    block = gantry.session("s1")

    for _ in range(2):
        with block, gantry.session("s2"):
            with block:
                assert current_identity().session == "s1"
            assert current_identity().session == "s2"
        assert current_identity() is None


def test_one_block_in_two_threads_leaves_neither_in_its_session(gantry):
    # What a context keeps after its block would be the session of the next call in that thread.
    block = gantry.session("s1")
    both_in, first_out = threading.Barrier(2), threading.Event()
    after = {}

    def run(name, wait, then):
        with block:
            both_in.wait(10)
            wait()
        after[name] = current_identity()
        then()

    threads = [
        threading.Thread(target=run, args=("first", lambda: None, first_out.set)),
        threading.Thread(target=run, args=("second", lambda: first_out.wait(10), lambda: None)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert after == {"first": None, "second": None}


@pytest.mark.anyio
async def test_session_can_be_left_in_another_task(gantry):
    block = gantry.session("s1")

    async def enter():
        await block.__aenter__()

    async def leave():
        await block.__aexit__(None, None, None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(enter)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)

    assert current_identity() is None


def test_session_of_a_generator_can_be_left_in_another_context(gantry):
    def fixture():
        with gantry.session("s1"):
            yield

    generator = fixture()
    contextvars.copy_context().run(next, generator)
    contextvars.Context().run(generator.close)

    assert current_identity() is None


@pytest.mark.anyio
async def test_background_task_keeps_the_identity_it_was_started_with(gantry, whoami):
    ended, seen = anyio.Event(), []

    async def background():
        await ended.wait()
        seen.extend(whoami())

    async with anyio.create_task_group() as tasks:
        async with gantry.session("s1"):
            tasks.start_soon(background)
        assert current_identity() is None
        with gantry.session("s2"):
            ended.set()
            await anyio.wait_all_tasks_blocked()

    assert seen == ["s1"]


def test_identity_reaches_worker_threads_and_no_bare_ones(gantry, whoami):
    async def main():
        with gantry.session("s1"):
            return await anyio.to_thread.run_sync(whoami), await asyncio.to_thread(whoami)

    assert asyncio.run(main()) == (["s1"], ["s1", "s1"])
    with gantry.session("s2"), ThreadPoolExecutor(1) as pool, pytest.raises(MissingIdentityError):
        pool.submit(whoami).result()


@pytest.mark.anyio
async def test_sibling_tasks_never_see_each_others_identity(gantry, whoami):
    seen = {}

    async def sibling(name):
        async with gantry.session(name):
            for turn in range(4):
                await anyio.lowlevel.checkpoint()
                assert current_identity().session == name
                seen[name] = whoami()
                if turn % 2:
                    async with gantry.session(f"{name} inside"):
                        await anyio.lowlevel.checkpoint()
                        assert current_identity().session == f"{name} inside"
        assert current_identity() is None

    async with anyio.create_task_group() as tasks:
        for number in range(200):
            tasks.start_soon(sibling, f"s{number}")

    assert seen == {f"s{number}": [f"s{number}"] * 4 for number in range(200)}


def test_threads_never_see_each_others_identity(gantry, whoami):
    barrier = threading.Barrier(8)

    def run(number):
        barrier.wait(10)
        results = []
        for turn in range(25):
            name = f"t{number}-{turn}"
            with gantry.session(name):
                results.append(whoami() == [name])
            results.append(current_identity() is None)
        return all(results)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [True] * 8


async def _leave_elsewhere(block):
    block.__exit__(None, None, None)


@pytest.mark.anyio
async def test_sessions_left_in_other_tasks_and_out_of_order_leave_none_behind():
    with Gantry() as gantry:
        first, second = gantry.session("A"), gantry.session("B")
        first.__enter__()
        second.__enter__()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_leave_elsewhere, second)

        first.__exit__(None, None, None)

        assert current_identity() is None


def test_identity_survives_pickle_and_deepcopy():
    identity = Identity("s", "ada", "c", {"tenant": "acme"})

    assert pickle.loads(pickle.dumps(identity)) == copy.deepcopy(identity) == identity
