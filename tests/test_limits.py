"""How large a memory may be: a call that makes it larger is refused, is told why, and writes nothing."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from agent_gantry.schema.execution import ToolCall
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Blocking, committed

from agent_gantry_state import AgentGantry, Gantry, MemoryTooLargeError, Namespace, Scope, StateError, codec
from agent_gantry_state.limits import MAX_BYTES, Limits, known, size_of
from agent_gantry_state.memory import Memory
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import EMPTY, SMALL_BYTES, SMALL_SIZE, UNSHARED, Put, Snapshot

pytestmark = pytest.mark.once

LIMIT = 2000


@pytest.fixture
def limited(new_gantry):
    """Makes gantries with limits for sessions."""

    def make(**limits):
        return new_gantry(session="s1", user="ada", scopes={"session": Scope(**limits)})

    return make


def filling(key, size):
    """A change that makes *key* a str of which value and name take *size* bytes."""
    room = size - len(key)
    value = "x" * (room - (2 if room < 258 else 3))
    assert len(codec.pack(value)) == room
    return lambda memory: memory.update({key: value})


def entries(gantry, scope="session"):
    return size_of(Snapshot(committed(gantry, scope), {}, {}, b"h"))


# The promise.


def test_runaway_loop_is_refused_and_leaves_what_was_accepted_last(new_gantry, call):
    gantry = new_gantry(session="s1", user="ada")
    accepted = 0

    with pytest.raises(MemoryTooLargeError) as caught:  # noqa: PT012
        while accepted < 100:
            call(gantry, lambda memory: memory.setdefault("log", []).append("x" * 30_000))
            accepted += 1

    error = caught.value
    assert (error.key, error.scope, error.limit, error.counted, error.committed) == (
        "log",
        "session",
        900_000,
        "bytes",
        False,
    )
    assert MAX_BYTES < error.size < MAX_BYTES + 31_000
    assert committed(gantry) == {"log": ["x" * 30_000] * accepted}
    assert accepted == MAX_BYTES // 30_003


def test_runaway_loop_over_small_keys_is_refused_and_leaves_what_was_accepted_last(call):
    with Gantry(session="s1", user="ada", scopes={"session": Scope(max_bytes=5_000)}) as gantry:
        accepted = 0

        with pytest.raises(MemoryTooLargeError) as caught:  # noqa: PT012
            while accepted < 10_000:
                call(gantry, lambda memory: memory.update({f"k{accepted}": accepted}))
                accepted += 1

        assert caught.value.key == f"k{accepted}"
        assert committed(gantry) == {f"k{n}": n for n in range(accepted)}
        assert 5_000 - 10 < entries(gantry) <= 5_000 < caught.value.size


@pytest.mark.parametrize("entry", [lambda n: (f"k{n}", "x" * 10_000), lambda n: (f"{n}" * 10_000, 1)], ids=["value", "name"])
def test_few_large_keys_are_refused_as_many_small_ones_are(limited, call, entry):
    gantry = limited(max_bytes=50_000)
    call(gantry, lambda memory: memory.update(first=1))

    for n in range(4):
        call(gantry, lambda memory, n=n: memory.update([entry(n)]))
    with pytest.raises(MemoryTooLargeError):
        call(gantry, lambda memory: memory.update([entry(5)]))

    assert len(committed(gantry)) == 5


def test_error_says_what_where_and_what_to_do(limited, call):
    gantry = limited(max_bytes=LIMIT)

    def change(memory):
        memory["small"] = 1
        memory["large"] = ["x" * 3000]
        memory["other"] = "y" * 100

    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, change)

    assert caught.value.key == "large"
    assert caught.value.size == sum(
        len(key) + len(codec.pack(value)) for key, value in {"small": 1, "large": ["x" * 3000], "other": "y" * 100}.items()
    )
    for part in ("session memory", "'large'", str(caught.value.size), "2000", "nothing was written", "Scope(max_bytes=...)"):
        assert part in str(caught.value)
    assert "xxx" not in str(caught.value)
    assert isinstance(caught.value, StateError)
    assert not caught.value.transient
    assert committed(gantry) == {}


def test_memory_may_have_just_as_many_bytes_as_the_limit_says(limited, call):
    gantry = limited(max_bytes=LIMIT)

    call(gantry, filling("k", LIMIT))
    assert entries(gantry) == LIMIT
    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, filling("k", LIMIT + 1))

    assert (caught.value.size, entries(gantry)) == (LIMIT + 1, LIMIT)


def test_names_of_keys_count_as_utf_8(limited, call):
    gantry = limited(max_bytes=LIMIT)

    call(gantry, lambda memory: memory.update({"\U0001f600" * 499: 1}))
    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, lambda memory: memory.update({"\ud800": 1}))

    assert caught.value.size == LIMIT - 4 + 1 + 3 + 1


def test_keys_of_other_calls_count(limited, call):
    gantry = limited(max_bytes=LIMIT)
    call(gantry, filling("a", 1500))

    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, filling("b", 600))

    assert (caught.value.key, caught.value.size) == ("b", 2100)


def test_what_is_deleted_or_written_over_does_not_count(limited, call):
    gantry = limited(max_bytes=LIMIT)
    call(gantry, filling("a", 1500))
    call(gantry, filling("a", 1900))

    def move(memory):
        memory["b"] = memory.pop("a")

    for _ in range(3):
        call(gantry, move)
        call(gantry, lambda memory: memory.update(a=memory.pop("b")))

    assert entries(gantry) == 1900


def test_no_limit_is_none(limited, call):
    gantry = limited(max_bytes=None)

    call(gantry, lambda memory: memory.update(k="x" * 2_000_000, log=["x" * 2_000_000]))

    assert len(committed(gantry)["k"]) == 2_000_000


def test_each_scope_has_a_limit_of_its_own(new_gantry, call):
    gantry = new_gantry(session="s1", user="ada", scopes={"user": Scope(max_bytes=5000), "session": Scope(max_bytes=LIMIT)})

    call(gantry, filling("k", 4000), scope="user")
    with pytest.raises(MemoryTooLargeError):
        call(gantry, filling("k", 4000))
    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, filling("k", 5001), scope="user")

    assert (caught.value.scope, caught.value.limit) == ("user", 5000)
    assert "{'user': Scope(max_bytes=...)}" in str(caught.value)


def test_one_memory_too_large_keeps_the_others_from_being_written(new_gantry):
    gantry = new_gantry(session="s1", user="ada", scopes={"user": Scope(max_bytes=LIMIT)})

    @gantry.with_memory(scope="user", into="prefs")
    @gantry.with_memory
    def tool(memory, prefs):
        memory["x"] = 1
        prefs["y"] = "y" * LIMIT

    with pytest.raises(MemoryTooLargeError):
        tool()

    assert committed(gantry) == committed(gantry, "user") == {}


def test_limit_is_that_of_the_scope_to_which_a_resolver_leads(call):
    store = MemoryStore()

    def everybody(request):
        return Namespace("team", "all") if request.scope == "session" else None

    scopes = {"team": Scope(max_bytes=LIMIT), "session": Scope(max_bytes=100_000)}
    with Gantry(store, resolvers=[everybody], scopes=scopes, session="s1") as gantry:
        call(gantry, filling("k", LIMIT))
        with pytest.raises(MemoryTooLargeError) as caught:
            call(gantry, filling("k", LIMIT + 1))
        with pytest.raises(MemoryTooLargeError), gantry.memory() as memory:
            filling("k", LIMIT + 1)(memory)

    assert (caught.value.scope, caught.value.limit) == ("team", LIMIT)


# Getting smaller.


@pytest.fixture
def overfull(new_gantry):
    """A gantry with limits, of which a session was filled before there were any."""

    def make(memory, **limits):
        before = new_gantry(session="s1", user="ada", scopes={"session": Scope(max_bytes=None)})
        with before.memory() as there:
            there.update(memory)
        return new_gantry(session="s1", user="ada", scopes={"session": Scope(**limits)})

    return make


def test_memory_above_a_lowered_limit_may_shrink(overfull, call):
    gantry = overfull({"log": ["x" * 100] * 50, "doc": "y" * 3000, "n": 1}, max_bytes=LIMIT)

    call(gantry, lambda memory: memory["log"].pop() and None)
    call(gantry, lambda memory: memory.update(doc="y" * 2999))
    call(gantry, lambda memory: memory.pop("doc") and None)

    assert committed(gantry) == {"log": ["x" * 100] * 49, "n": 1}


def test_memory_above_a_lowered_limit_may_change_without_growing(overfull, call):
    gantry = overfull({"doc": "y" * 3000, "n": 1}, max_bytes=LIMIT)

    call(gantry, lambda memory: memory.update(n=2))
    call(gantry, lambda memory: memory.expire("n", 1000))
    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, lambda memory: memory.update(n=1000))

    assert caught.value.key == "n"
    assert committed(gantry) == {"doc": "y" * 3000, "n": 2}


def test_memory_above_a_lowered_limit_is_read(overfull, call):
    gantry = overfull({"doc": "y" * 3000}, max_bytes=LIMIT, max_keys=1, max_value_bytes=10)

    assert call(gantry, lambda memory: len(memory["doc"])) == 3000


def test_too_large_value_may_shrink_and_stay(overfull, call):
    gantry = overfull({"doc": ["y" * 3000], "n": 1}, max_value_bytes=1000)

    call(gantry, lambda memory: memory.update(n=2))
    call(gantry, lambda memory: memory.update(doc=["z" * 2000]))
    with pytest.raises(MemoryTooLargeError):
        call(gantry, lambda memory: memory.update(doc=["z" * 2001]))

    assert committed(gantry) == {"doc": ["z" * 2000], "n": 2}


def test_memory_with_too_many_keys_may_lose_and_exchange_some(overfull, call):
    gantry = overfull({f"k{n}": n for n in range(5)}, max_keys=3)

    def exchange(memory):
        del memory["k0"]
        memory["new"] = 1

    call(gantry, exchange)
    call(gantry, lambda memory: memory.update(k1="changed"))
    call(gantry, lambda memory: memory.pop("k2") and None)
    with pytest.raises(MemoryTooLargeError):
        call(gantry, lambda memory: memory.update(other=1))

    assert list(committed(gantry)) == ["k1", "k3", "k4", "new"]


# Keys and values.


def test_too_many_keys_are_refused_with_the_name_of_a_new_one(limited, call):
    gantry = limited(max_keys=3)
    call(gantry, lambda memory: memory.update(a=1, b=2, c=3))

    call(gantry, lambda memory: memory.update(a=2))
    with pytest.raises(MemoryTooLargeError, match=r"4 keys.*'d' is new.*Scope\(max_keys=\.\.\.\)") as caught:
        call(gantry, lambda memory: memory.update(a="x" * 100, d=4))

    error = caught.value
    assert (error.key, error.size, error.limit, error.counted, error.scope) == ("d", 4, 3, "keys", "session")
    assert committed(gantry) == {"a": 2, "b": 2, "c": 3}


def test_too_large_value_is_refused_with_its_key(limited, call):
    gantry = limited(max_value_bytes=100)
    call(gantry, lambda memory: memory.update(a="x" * 98, b=["x" * 97], **{"long name" * 50: 1}))

    for change, key in ((lambda memory: memory.update(c="x" * 99), "c"), (lambda memory: memory["b"].append(1), "b")):
        with pytest.raises(MemoryTooLargeError, match=r"one.*Scope\(max_value_bytes=\.\.\.\)") as caught:
            call(gantry, change)
        assert (caught.value.key, caught.value.size, caught.value.limit, caught.value.counted) == (key, 101, 100, "bytes")

    assert list(committed(gantry)) == ["a", "b", "long name" * 50]


@pytest.mark.parametrize("name", ["max_bytes", "max_keys", "max_value_bytes"])
@pytest.mark.parametrize(
    ("value", "error"), [(True, TypeError), (1.5, TypeError), ("9", TypeError), (0, ValueError), (-1, ValueError)]
)
def test_limit_that_is_none_is_refused_by_name(name, value, error):
    with pytest.raises(error, match=f"Scope: {name} must be"):
        Scope(**{name: value})


def test_limits_by_default_are_those_of_the_design():
    assert (Scope().max_bytes, Scope().max_keys, Scope().max_value_bytes) == (900_000, None, None)
    assert Scope().limits == Limits()


# What it begins with, and what of it is loaded.


def test_what_a_memory_begins_with_counts_when_it_is_written(limited, call):
    gantry = limited(max_bytes=LIMIT)
    default = {"doc": "x" * (LIMIT - 10)}

    assert call(gantry, lambda memory: len(memory), default=default) == 1
    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, lambda memory: memory.update(n="y" * 10), default=default)

    assert (caught.value.key, committed(gantry)) == ("doc", {})
    call(gantry, lambda memory: memory.update(doc="short"), default=default)
    assert committed(gantry) == {"doc": "short"}


def test_what_a_memory_begins_with_may_not_be_written_where_it_is_too_large(limited, call):
    gantry = limited(max_bytes=LIMIT)

    with pytest.raises(MemoryTooLargeError):
        call(gantry, lambda memory: memory.update(doc="x" * 2500), default={"doc": "x" * 3000})

    assert committed(gantry) == {}


def test_of_a_memory_that_is_loaded_in_part_that_part_counts(limited, call):
    gantry = limited(max_bytes=LIMIT)
    call(gantry, filling("a", 1500))

    call(gantry, filling("b", 1500), keys=("b",))
    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, filling("c", 501), keys=("b", "c"))
    with pytest.raises(MemoryTooLargeError):
        call(gantry, lambda memory: memory.update(c=1))

    assert caught.value.size == 2001
    call(gantry, filling("b", 100), keys=("b",))
    call(gantry, lambda memory: memory.update(c=1))
    assert list(committed(gantry)) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["sync", "asyncio", "trio"])
def test_session_key_by_key_is_refused_what_its_keys_may_not_have(limited, kind):
    from agent_gantry_state import Session, SyncSession

    gantry = limited(max_bytes=LIMIT, max_keys=2)
    with gantry.memory() as memory:
        memory["there"] = "x" * 1500

    @gantry.with_session
    async def put(values, session: Session):
        for key, value in values.items():
            await session.set(key, value)

    @gantry.with_session
    def sync_put(values, session: SyncSession):
        for key, value in values.items():
            session.set(key, value)

    def run(values):
        return sync_put(values) if kind == "sync" else anyio.run(put, values, backend=kind)

    run({"a": "x" * 1500})
    with pytest.raises(MemoryTooLargeError) as caught:
        run({"b": "x" * 1000, "c": "y" * 1001})
    assert caught.value.key == "c"
    with pytest.raises(MemoryTooLargeError) as caught:
        run({"b": 1, "c": 2, "d": 3})
    assert (caught.value.counted, caught.value.size) == ("keys", 3)

    assert list(committed(gantry)) == ["there", "a"]


# Calls that run at once, and calls inside calls.


def test_what_another_call_has_written_counts_after_the_merge(limited, call):
    gantry = limited(max_bytes=LIMIT)
    with gantry.memory() as memory:
        memory["log"] = []

    def change(memory):
        with gantry.independent(), gantry.memory() as other:
            other["log"].append("theirs" * 200)
        memory["log"].append("ours!!" * 200)

    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, change)

    assert caught.value.key == "log"
    assert LIMIT < caught.value.size < 2 * 1300
    assert committed(gantry) == {"log": ["theirs" * 200]}


def test_what_fits_after_the_merge_is_written(overfull, call):
    gantry = overfull({"log": [], "doc": "x" * 3000}, max_bytes=LIMIT)

    def change(memory):
        with gantry.independent(), gantry.memory() as other:
            other["doc"] = ""
            other["log"].append("theirs" * 100)
        memory["log"].append("ours!!" * 200)
        memory["doc"] = ""

    call(gantry, change)

    assert committed(gantry) == {"log": ["theirs" * 100, "ours!!" * 200], "doc": ""}


def test_call_inside_counts_when_the_one_around_it_is_committed(limited, call):
    gantry = limited(max_bytes=LIMIT)

    @gantry.with_memory
    def inner(key, size, memory):
        filling(key, size)(memory)

    def within(memory):
        inner("a", 1500)
        inner("b", 1500)
        del memory["a"]

    def beyond(memory):
        inner("c", 1500)
        memory["x"] = 1

    call(gantry, within)
    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, beyond)

    assert (caught.value.key, list(committed(gantry))) == ("c", ["b"])


def test_limit_holds_for_what_only_a_call_inside_uses(new_gantry, call):
    gantry = new_gantry(session="s1", user="ada", scopes={"user": Scope(max_bytes=LIMIT)})

    @gantry.with_memory(scope="user", into="prefs")
    def inner(prefs):
        filling("k", LIMIT + 1)(prefs)

    with pytest.raises(MemoryTooLargeError) as caught:
        call(gantry, lambda memory: memory.update(x=1) or inner())

    assert caught.value.scope == "user"
    assert committed(gantry) == committed(gantry, "user") == {}


def test_limit_holds_for_the_context_of_a_call(limited):
    from agent_gantry_state import SyncExecutionContext

    gantry = limited(max_bytes=LIMIT)

    @gantry.with_context
    def tool(ctx: SyncExecutionContext):
        filling("k", LIMIT + 1)(ctx.memory)

    with pytest.raises(MemoryTooLargeError):
        tool()

    assert committed(gantry) == {}


def test_refused_call_is_not_run_again(limited, call):
    gantry, runs = limited(max_bytes=LIMIT), []

    def change(memory):
        runs.append(1)
        filling("k", LIMIT + 1)(memory)

    with pytest.raises(MemoryTooLargeError):
        call(gantry, change, on_conflict="retry")

    assert len(runs) == 1


def test_refused_call_sends_nothing_to_the_store():
    store = Blocking()
    with Gantry(store, session="s1", scopes={"session": Scope(max_bytes=LIMIT)}) as gantry:
        with pytest.raises(MemoryTooLargeError), gantry.memory() as memory:
            filling("k", LIMIT + 1)(memory)

        assert [kind.__name__ for kind in store.kinds()] == ["Load"]


def test_expired_keys_do_not_count(call):
    now = [1000.0]
    with Gantry(MemoryStore(clock=lambda: now[0]), session="s1", scopes={"session": Scope(max_bytes=LIMIT)}) as gantry:
        call(gantry, lambda memory: memory.set("a", "x" * 1500, ttl=10))
        now[0] += 10

        call(gantry, filling("b", 1500))

        assert list(committed(gantry)) == ["b"]


def test_model_is_told_what_to_do():
    async def main():
        async with AgentGantry(scopes={"session": Scope(max_bytes=LIMIT)}) as gantry:

            @gantry.register
            @gantry.with_memory
            def note(text: str, memory: dict) -> None:
                """Note a text and keep it for later."""
                memory["note"] = text

            async with gantry.session("s1"):
                return await gantry.execute(ToolCall(tool_name="note", arguments={"text": "x" * LIMIT}))

    result = asyncio.run(main())

    assert result.status == "failure"
    assert "Store less or remove keys" in result.error


# Bounds: what is carried along so that nothing has to be counted.

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 4000).map(lambda bits: 1 << bits)
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=80)
    | st.text("\ud800\udfff\U0010ffff\uffff\xe9a", max_size=80)
    | st.binary(max_size=300)
    | st.sampled_from([f"{char}" * size for char in "aé\uffff\U0001f600\ud800" for size in (31, 32, 255, 256, 70_000)])
)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
names = st.text(st.characters(exclude_categories=()), max_size=40)


def put(value):
    if type(value) in codec.IMMUTABLE:
        return Put(value)
    return Put(UNSHARED, codec.pack(value))


def snapshot(entries):
    packed = {key: codec.pack(value) for key, value in entries.items() if type(value) not in codec.IMMUTABLE}
    return Snapshot({key: None if key in packed else value for key, value in entries.items()}, packed, {}, b"h")


@given(plain)
def test_bound_of_a_value_is_no_less_than_its_bytes(value):
    assert put(value).size >= len(codec.pack(value))


@given(names, plain)
def test_small_key_takes_no_more_than_is_reckoned_for_one(name, value):
    if name.__sizeof__() <= SMALL_SIZE >= value.__sizeof__():
        assert len(name.encode("utf-8", "surrogatepass")) + len(codec.pack(value)) <= SMALL_BYTES


@given(st.dictionaries(names, values, max_size=6))
def test_bound_of_a_memory_is_no_less_than_its_bytes(entries):
    there = snapshot(entries)
    there.measure()

    assert size_of(there) == sum(
        len(key.encode("utf-8", "surrogatepass")) + len(codec.pack(v)) for key, v in entries.items()
    )
    assert there.size >= size_of(there)


small_names = st.sampled_from(["a", "b", "\U0001f600" * 40, "c" * 300])
steps = st.lists(
    st.tuples(
        st.sampled_from(["set", "both", "delete", "move", "append", "ttl"]),
        small_names,
        st.integers(0, 40) | st.text("aé\U0001f600", max_size=600) | st.lists(st.integers(), max_size=300),
    ),
    max_size=25,
)


@settings(max_examples=300, deadline=None)
@given(steps, st.integers(1, 1500) | st.integers(1500, 6000))
def test_memory_is_refused_what_it_may_not_have_and_nothing_else(steps, limit):
    store = MemoryStore()
    with Gantry(store, session="s1", scopes={"session": Scope(max_bytes=limit)}) as gantry:

        @gantry.with_memory
        def change(what, key, value, memory):
            if what == "set":
                memory[key] = value
            elif what == "ttl":
                memory.set(key, value, ttl=1000)
            elif what == "both":
                memory.update({key: value, "n": 1})
            elif what == "delete":
                memory.pop(key, None)
            elif what == "move" and key in memory:
                memory["d"] = memory.pop(key)
            elif what == "append" and type(memory.get(key)) is list:
                memory[key].append(value)

        now: dict = {}
        for what, key, value in steps:
            after: dict = Memory(codec.unpack(codec.pack(now)))
            change.__wrapped__(what, key, codec.unpack(codec.pack(value)), memory=after)
            size, before = size_of(snapshot(after)), size_of(snapshot(now))
            if size > limit and size > before:
                with pytest.raises(MemoryTooLargeError) as caught:
                    change(what, key, value)
                assert (caught.value.size, caught.value.limit) == (size, limit)
            else:
                change(what, key, value)
                now = dict(after)
            assert committed(gantry) == now
            there = store.snapshot(Namespace("session", "s1", gantry._wiring.app))
            assert there.size >= size_of(there) or there is EMPTY


def test_bound_holds_for_what_others_wrote_and_for_what_was_not_loaded(call):
    store = MemoryStore()
    with Gantry(store, session="s1") as gantry:

        def is_bounded():
            there = store.snapshot(Namespace("session", "s1", gantry._wiring.app))
            return there.size >= size_of(there)

        call(gantry, lambda memory: memory.update(a=["x" * 1000]))
        call(gantry, lambda memory: memory.update(b=["x" * 1000]), keys=("b",))
        assert is_bounded()

        def change(memory):
            with gantry.independent(), gantry.memory() as other:
                other["c"] = ["x" * 5000]
            memory["a"] = 1

        call(gantry, change)
        assert is_bounded()
        assert list(committed(gantry)) == ["a", "b", "c"]


@pytest.mark.parametrize("partial", [False, True])
def test_what_was_not_loaded_counts_for_the_next_call_that_loads_all(call, partial):
    with Gantry(session="s1", scopes={"session": Scope(max_bytes=LIMIT)}, partial_commits=partial) as gantry:
        call(gantry, filling("a", 1500))
        call(gantry, filling("b", 100), keys=("b",))

        with pytest.raises(MemoryTooLargeError):
            call(gantry, filling("c", 500))

        assert list(committed(gantry)) == ["a", "b"]


def test_gantries_of_one_store_each_hold_to_their_own_limit(call):
    store = MemoryStore()
    with Gantry(store, session="s1") as wide, Gantry(store, session="s1", scopes={"session": Scope(max_bytes=50)}) as narrow:
        for n in range(3):
            call(wide, lambda memory, n=n: memory.update(a=n))

        with pytest.raises(MemoryTooLargeError):
            call(narrow, lambda memory: memory.update(b="x" * 50))

        assert list(committed(wide)) == ["a"]


def test_snapshot_of_some_keys_is_completed_with_what_was_loaded():
    base = Snapshot(
        {"a": 1, "log": None, "b": 2}, {"log": codec.pack([1])}, {"a": b"1", "log": b"1", "b": b"1"}, b"h", born=b"b"
    )
    part = Snapshot({"log": None}, {"log": codec.pack([1, 2])}, {"log": b"2"}, b"h2", born=b"b", until=float("inf"))
    whole = Snapshot({"log": 1}, {}, {"log": b"2"}, b"h2", born=b"b")

    there = known(base, part)

    assert ({key: there.value(key) for key in there.values}, there.until) == ({"a": 1, "log": [1, 2], "b": 2}, part.until)
    assert known(base, whole) is whole
    assert known(base, EMPTY) is EMPTY
