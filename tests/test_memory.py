"""The memory of a tool is a dict in everything, and what was done to it is what is stored."""

from __future__ import annotations

import copy
import json
import pickle
import unittest
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_gantry_state import Gantry, Memory, Scope, UnstorableValueError, codec
from agent_gantry_state.pytest_plugin import Clock
from agent_gantry_state.stores.memory import MemoryStore

try:
    from test import mapping_tests
except ImportError:
    mapping_tests = None


class CountingStore(MemoryStore):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commits = 0

    def commit(self, message):
        self.commits += 1
        return super().commit(message)


@pytest.fixture
def gantry():
    with Gantry(session="local") as made:
        yield made


def doing(gantry: Gantry, **options: Any) -> Any:
    """A tool that does to its memory what it is told, and returns what that gave."""

    @gantry.with_memory(name="do", **options)
    def do(action, memory: dict):
        return action(memory)

    return do


def stored(gantry: Gantry) -> dict[str, Any]:
    return doing(gantry)(dict)


# A dict.


if mapping_tests is None:

    @unittest.skip("this interpreter comes without the package `test`")
    class TestMappingProtocol(unittest.TestCase):
        def test_mapping_protocol(self):
            raise NotImplementedError

else:

    class TestMappingProtocol(mapping_tests.TestHashMappingProtocol):
        """CPython's own tests of a mapping. Where they construct or subclass the type, it is `Memory` itself."""

        type2test = Memory

        def setUp(self):
            self.gantry = Gantry()
            self.blocks = []
            self.addCleanup(self.gantry.close)

        def _empty_mapping(self):
            block = self.gantry.memory(session=f"s{len(self.blocks)}")
            self.blocks.append(block)
            memory = block.__enter__()
            self.addCleanup(block.__exit__, ValueError, None, None)
            return memory


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(0, 2), st.sampled_from([0.0, -0.0, 1.0, float("nan")]), st.text("ab", max_size=1)
)
values = scalars | st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("pq"), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(["a", "b", "c", "d"])
pairs = st.lists(st.tuples(names, values), max_size=3)


def nested_append(mapping: dict, key: str, value: Any) -> Any:
    mapping.setdefault(key, [])
    if isinstance(mapping[key], list):
        mapping[key].append(value)
    elif isinstance(mapping[key], dict):
        mapping[key].setdefault("deep", []).append(value)
    return None


def nested_reorder(mapping: dict, key: str) -> Any:
    inner = mapping.get(key)
    if isinstance(inner, dict) and inner:
        first = next(iter(inner))
        inner[first] = inner.pop(first)


def merge_in(mapping: dict, new: Any) -> Any:
    mapping |= new


def operation(function: Any, *arguments: Any) -> Any:
    return st.tuples(st.just(function), *arguments)


operations = st.one_of(
    operation(lambda d, k, v: d.__setitem__(k, v), names, values),
    operation(lambda d, k: d.__delitem__(k), names),
    operation(lambda d, k: d.pop(k), names),
    operation(lambda d, k, v: d.pop(k, v), names, values),
    operation(lambda d: d.popitem()),
    operation(lambda d, k: d.setdefault(k), names),
    operation(lambda d, k, v: d.setdefault(k, v), names, values),
    operation(lambda d, new: d.update(new), pairs),
    operation(lambda d, new: d.update(dict(new), e=1), pairs),
    operation(merge_in, pairs.map(dict)),
    operation(merge_in, pairs),
    operation(lambda d: d.clear()),
    operation(nested_append, names, values),
    operation(nested_reorder, names),
    operation(lambda d, k: d.get(k), names),
    operation(lambda d: (len(d), list(d), list(reversed(d)), "a" in d)),
)


def outcome(mapping: dict, step: Any) -> Any:
    function, *arguments = step
    try:
        return codec.pack(function(mapping, *copy.deepcopy(arguments)))
    except KeyError as error:
        return KeyError, error.args


@given(st.lists(st.lists(operations, max_size=6), max_size=5))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_calls_leave_what_the_same_calls_leave_in_a_dict_key_order_included(calls):
    reference: dict[str, Any] = {}
    with Gantry(session="local") as gantry:
        do = doing(gantry)
        for call in calls:
            expected = [outcome(reference, step) for step in call]

            got = do(lambda memory, call=call: [outcome(memory, step) for step in call])

            assert got == expected
            assert codec.pack(stored(gantry)) == codec.pack(reference)


def test_get_takes_its_default_by_name(gantry):
    assert doing(gantry)(lambda memory: (memory.get("a", default=1), memory.get("a", 2), memory.get("a"))) == (1, 2, None)


def test_whatever_takes_a_dict_takes_a_memory(gantry):
    do = doing(gantry)
    do(lambda memory: memory.update(b=[1, {"x": None}], a="text"))
    plain = {"b": [1, {"x": None}], "a": "text"}

    @do
    def _checked(memory):
        assert isinstance(memory, dict)
        assert memory == plain == {**memory} == dict(memory)
        assert json.dumps(memory) == json.dumps(plain)
        assert list((memory | {"c": 1}).items()) == [*plain.items(), ("c", 1)]
        assert list(({"c": 1} | memory).items()) == [("c", 1), *plain.items()]
        assert repr(memory) == repr(plain)
        assert list(reversed(memory)) == ["a", "b"]
        assert copy.deepcopy(memory) == pickle.loads(pickle.dumps(memory)) == memory.copy() == copy.copy(memory) == plain
        match memory:
            case {"a": found}:
                assert found == "text"


@pytest.mark.parametrize(
    "copied", [Memory.copy, copy.copy, copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory)), lambda m: m | {}]
)
def test_a_copy_belongs_to_no_call(gantry, copied):
    do = doing(gantry)
    do(lambda memory: memory.update(a=1, log=[1]))

    duplicate = do(copied)
    do(lambda memory: copied(memory).update(a=2, b=3))
    duplicate["a"] = 4

    assert stored(gantry) == {"a": 1, "log": [1]}


def test_a_deep_copy_shares_nothing_with_its_memory(gantry):
    do = doing(gantry)

    def copy_and_change(memory):
        memory["log"] = [1]
        copy.deepcopy(memory)["log"].append(2)

    do(copy_and_change)

    assert stored(gantry) == {"log": [1]}


def test_after_its_call_a_memory_is_an_ordinary_dict_and_stores_nothing(gantry):
    do = doing(gantry)

    def fill(memory):
        memory["log"] = [1]
        return memory

    kept = do(fill)
    kept["a"] = 1
    kept["log"].append(2)
    kept.add("n")
    kept.set("b", object(), ttl=5)
    kept.expire("a", 1)
    kept.pop("a")
    kept |= {"c": 3}

    assert stored(gantry) == {"log": [1]}
    assert list(kept) == ["log", "n", "b", "c"]


# In-place changes count, and no alias leaks.


def test_a_change_in_place_is_saved_at_any_depth(gantry):
    do = doing(gantry)
    do(lambda memory: memory.update(plan={"steps": [{"tags": {1}, "pair": ([0],)}]}))

    do(lambda memory: memory["plan"]["steps"][0]["tags"].add(2))
    do(lambda memory: memory["plan"]["steps"][0]["pair"][0].append(9))

    assert stored(gantry) == {"plan": {"steps": [{"tags": {1, 2}, "pair": ([0, 9],)}]}}


def test_what_one_call_holds_no_other_call_can_see_change(gantry):
    do = doing(gantry)
    mine = {"deep": [1]}
    do(lambda memory: memory.update(a=mine, b=mine))
    first, second = do(lambda memory: memory["a"]), do(lambda memory: memory["a"])

    mine["deep"].append("leak")
    first["deep"].append("leak")

    assert second == {"deep": [1]}
    assert stored(gantry) == {"a": {"deep": [1]}, "b": {"deep": [1]}}
    assert do(lambda memory: memory["a"] is memory["b"]) is False


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1, True),
        (0, False),
        (1, 1.0),
        (0.0, -0.0),
        ([1], [True]),
        ([1], (1,)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"in": {"a": 1, "b": 2}}, {"in": {"b": 2, "a": 1}}),
        ([0.0], [-0.0]),
        ([], None),
        (None, []),
        ({1}, frozenset({1})),
    ],
)
def test_values_that_are_equal_but_not_the_same_are_a_change(before, after):
    store = CountingStore()
    with Gantry(store, session="local") as gantry:
        do = doing(gantry)
        do(lambda memory: memory.update(k=before))

        do(lambda memory: memory.update(k=after))

        assert store.commits == 2
        assert (type(stored(gantry)["k"]), repr(stored(gantry)["k"])) == (type(after), repr(after))


def reassign(memory: Any) -> None:
    for key in list(memory):
        memory[key] = copy.deepcopy(memory[key])


def change_back(memory: Any) -> None:
    memory["log"].append(1)
    memory["log"].pop()
    memory["n"] += 1
    memory["n"] -= 1
    memory["new"] = 1
    del memory["new"]


@pytest.mark.parametrize(
    "action",
    [
        dict,
        reassign,
        change_back,
        lambda memory: memory.setdefault("n", 5),
        lambda memory: memory.update({}),
        lambda memory: memory.pop("missing", None),
        lambda memory: memory.add("n", 0),
        lambda memory: list(memory["log"]),
    ],
)
def test_a_call_that_changed_nothing_commits_nothing(action):
    store = CountingStore()
    with Gantry(store, session="local") as gantry:
        do = doing(gantry)
        do(lambda memory: memory.update(n=1, f=0.5, nan=float("nan"), text="t", log=[1, {"a": {2}}], none=None))
        assert store.commits == 1

        do(action)

        assert store.commits == 1


# Refusals.


def test_a_bad_value_refuses_the_whole_call_and_names_where_it_stands(gantry):
    do = doing(gantry)
    do(lambda memory: memory.update(a=1, log=[1]))

    def spoil(memory):
        memory["a"] = 2
        memory["log"].append(2)
        memory["plan"] = {"steps": [0, {"who": object()}]}
        memory["z"] = 1

    with pytest.raises(UnstorableValueError) as caught:
        do(spoil)

    assert caught.value.path == "memory['plan']['steps'][1]['who']"
    assert caught.value.path in str(caught.value)
    assert caught.value.committed is False
    assert stored(gantry) == {"a": 1, "log": [1]}


def test_a_value_spoilt_in_place_is_refused_too(gantry):
    do = doing(gantry)
    do(lambda memory: memory.update(log=[1]))

    with pytest.raises(UnstorableValueError) as caught:
        do(lambda memory: memory["log"].append(bytearray(b"x")))

    assert caught.value.path == "memory['log'][1]"
    assert stored(gantry) == {"log": [1]}


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), True, type("Text", (str,), {})("k")])
@pytest.mark.parametrize("write", [Memory.__setitem__, dict.__setitem__, lambda m, k, v: m.update({k: v})])
def test_a_key_that_is_no_str_refuses_the_whole_call(gantry, key, write):
    def spoil(memory):
        memory["a"] = 1
        write(memory, key, 2)

    with pytest.raises(UnstorableValueError, match="key"):
        doing(gantry)(spoil)

    assert stored(gantry) == {}


@pytest.mark.parametrize("key", ["", "\ud800", "a" * 10_000, "__class__", "a\0", "ключ"])
def test_any_str_is_a_key(gantry, key):
    doing(gantry)(lambda memory: memory.update({key: 1, key + "list": [1]}))

    assert stored(gantry) == {key: 1, key + "list": [1]}


# Behind the back.


@pytest.mark.parametrize("value", [1, [1]])
def test_a_new_key_written_behind_the_class_s_back_is_seen(gantry, value):
    do = doing(gantry)
    do(lambda memory: memory.update(a=1))

    do(lambda memory: dict.__setitem__(memory, "new", value))

    assert stored(gantry) == {"a": 1, "new": value}


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (lambda memory: dict.pop(memory, "a"), {"b": 2, "log": [1]}),
        (lambda memory: dict.pop(memory, "log"), {"a": 1, "b": 2}),
        (dict.clear, {}),
    ],
)
def test_a_key_deleted_behind_the_class_s_back_is_deleted(gantry, action, expected):
    do = doing(gantry)
    do(lambda memory: memory.update(a=1, b=2, log=[1]))

    do(action)

    assert stored(gantry) == expected


@pytest.mark.parametrize("key", ["b", "new"])
@pytest.mark.parametrize("gone", ["a", "b"])
@pytest.mark.parametrize("first", ["a", None])
def test_a_key_deleted_behind_the_class_s_back_is_deleted_by_a_call_that_writes_a_short_text(gantry, key, gone, first):
    do = doing(gantry)
    do(lambda memory: memory.update(a=first, b="b"))
    expected = {"a": first, "b": "b", key: "text"}
    if gone == key:
        # The body deletes what it has written.
        del expected[key]
    else:
        expected.pop(gone)

    def body(memory):
        memory[key] = "text"
        dict.__delitem__(memory, gone)

    do(body)

    assert stored(gantry) == expected


# Time to live.


@pytest.fixture
def clock(gantry):
    made = Clock(1000.0)
    with gantry.override(store="memory://", clock=made):
        yield made


def test_a_key_is_gone_from_its_time_on(gantry, clock):
    do = doing(gantry)
    do(lambda memory: (memory.set("a", [1], ttl=10), memory.update(b=1)))

    clock.now += 9.9
    assert stored(gantry) == {"a": [1], "b": 1}
    clock.now = 1010.0
    assert stored(gantry) == {"b": 1}
    assert do(lambda memory: "a" in memory) is False


def test_ttl_says_what_is_left(gantry, clock):
    do = doing(gantry)

    def write(memory):
        memory.set("a", 1, ttl=10)
        memory["b"] = 1
        return memory.ttl("a"), memory.ttl("b")

    assert do(write) == (10, None)
    clock.now += 4
    assert do(lambda memory: (memory.ttl("a"), memory.ttl("b"))) == (6, None)


@pytest.mark.parametrize(
    "call", [lambda m: m.ttl("missing"), lambda m: m.expire("missing", 1), lambda m: m.expire("missing", None)]
)
def test_a_missing_key_has_no_time(gantry, call):
    with pytest.raises(KeyError):
        doing(gantry)(call)


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan")])
def test_a_ttl_is_positive_and_finite(gantry, ttl):
    for call in (lambda memory: memory.set("a", 1, ttl=ttl), lambda memory: memory.expire("a", ttl)):
        with pytest.raises(ValueError, match="ttl"):
            doing(gantry)(lambda memory, call=call: (memory.setdefault("a", 1), call(memory)))
    assert stored(gantry) == {}


@pytest.mark.parametrize("ttl", ["10", True, object()])
def test_a_ttl_is_a_number(gantry, ttl):
    with pytest.raises(TypeError, match="ttl"):
        doing(gantry)(lambda memory: memory.set("a", 1, ttl=ttl))


def test_expire_gives_a_key_a_time_and_none_takes_it_away(gantry, clock):
    do = doing(gantry)
    do(lambda memory: memory.update(a=1, b=[1]))
    do(lambda memory: (memory.expire("a", 10), memory.expire("b", 10)))
    do(lambda memory: memory.expire("b", None))

    clock.now += 10

    assert stored(gantry) == {"b": [1]}


def test_a_write_without_a_default_keeps_the_deadline(gantry, clock):
    do = doing(gantry)
    do(lambda memory: (memory.set("a", 1, ttl=10), memory.set("n", 1, ttl=10), memory.set("log", [], ttl=10)))
    clock.now += 5
    do(lambda memory: (memory.update(a=2), memory.add("n"), memory["log"].append(1)))
    assert do(lambda memory: [memory.ttl(key) for key in memory]) == [5, 5, 5]

    clock.now += 5

    assert stored(gantry) == {}


def test_the_default_of_the_decorator_counts_from_each_write(gantry, clock):
    do = doing(gantry, ttl=10)
    do(lambda memory: memory.update(a=1, b=1, log=[]))
    clock.now += 6
    do(lambda memory: (memory.update(a=1), memory["log"].append(1)))
    clock.now += 4
    assert stored(gantry) == {"a": 1, "log": [1]}
    clock.now += 6
    assert stored(gantry) == {}


def test_the_default_of_the_scope_is_overruled_by_the_decorator_and_by_the_key():
    clock = Clock(1000.0)
    with (
        Gantry(session="local", scopes={"session": Scope(ttl=10)}) as gantry,
        gantry.override(store="memory://", clock=clock),
    ):
        doing(gantry)(lambda memory: (memory.update(scope=1), memory.set("key", 1, ttl=30), memory.set("ever", 1, ttl=None)))
        doing(gantry, ttl=20)(lambda memory: memory.update(decorator=1))
        doing(gantry, ttl=None)(lambda memory: memory.update(none=1))

        seen = []
        for now in (1009.0, 1010.0, 1020.0, 1030.0):
            clock.now = now
            seen.append(sorted(stored(gantry)))

    assert seen == [
        ["decorator", "ever", "key", "none", "scope"],
        ["decorator", "ever", "key", "none"],
        ["ever", "key", "none"],
        ["ever", "none"],
    ]


def test_a_sliding_time_starts_anew_with_each_use(gantry, clock):
    do = doing(gantry, ttl=10, sliding=True)
    do(lambda memory: (memory.update(a=1), memory.set("fixed", 1, ttl=15)))
    for _ in range(5):
        clock.now += 6
        do(len)
    assert stored(gantry) == {"a": 1}

    clock.now += 10

    assert stored(gantry) == {}


def test_a_use_is_written_down_only_when_a_tenth_of_the_time_has_gone():
    store, clock = CountingStore(), Clock(1000.0)
    with Gantry(store, session="local") as gantry, gantry.override(clock=clock):
        do = doing(gantry, ttl=10, sliding=True)
        do(lambda memory: memory.update(a=1))
        counts = []
        for _ in range(4):
            clock.now += 0.6
            do(len)
            counts.append(store.commits)

    assert counts == [1, 2, 2, 3]


def test_a_key_that_expired_between_load_and_commit_is_written_afresh(gantry, clock):
    do = doing(gantry)
    do(lambda memory: (memory.set("a", 1, ttl=10), memory.set("untouched", 1, ttl=10), memory.update(stays=1)))

    def slow(memory):
        memory["a"] += 1
        clock.now += 10

    do(slow)

    assert stored(gantry) == {"stays": 1, "a": 2}
    assert do(lambda memory: memory.ttl("a")) is None


def test_a_namespace_that_expired_between_load_and_commit_is_written_afresh(gantry, clock):
    do = doing(gantry)
    do(lambda memory: (memory.set("a", 1, ttl=10), memory.set("untouched", 1, ttl=10)))

    def slow(memory):
        memory["a"] += 1
        clock.now += 10

    do(slow)

    assert stored(gantry) == {"a": 2}


def test_set_without_a_time_is_an_assignment(gantry, clock):
    do = doing(gantry, ttl=10)
    do(lambda memory: (memory.set("a", 1), memory.set("b", 1, ttl=50), memory.set("c", 1, ttl=None)))
    clock.now += 5
    do(lambda memory: [memory.set(key, 2) for key in "abc"])

    with gantry.memory() as memory:
        assert {key: memory.ttl(key) for key in memory} == {"a": 10, "b": 10, "c": 10}

    plain = doing(gantry)
    clock.now += 5
    plain(lambda memory: (memory.set("a", 3), memory.set("d", 3)))
    with gantry.memory() as memory:
        assert (memory["a"], memory.ttl("a"), memory.ttl("d")) == (3, 5, None)


def test_a_key_that_was_deleted_forgets_its_time(gantry, clock):
    do = doing(gantry)
    do(lambda memory: memory.set("a", 1, ttl=10))
    do(lambda memory: memory.pop("a"))
    do(lambda memory: memory.update(a=2))

    clock.now += 10

    assert stored(gantry) == {"a": 2}


# add.


def test_add_returns_the_sum_that_the_call_sees(gantry):
    do = doing(gantry)

    assert do(lambda memory: (memory.add("n"), memory.add("n", 4), memory.add("n", -0.5))) == (1, 5, 4.5)
    assert stored(gantry) == {"n": 4.5}


@pytest.mark.parametrize("there", ["1", None, True, [1], {"a": 1}])
def test_add_to_what_is_no_number_is_a_type_error(gantry, there):
    do = doing(gantry)
    do(lambda memory: memory.update(n=there))

    with pytest.raises(TypeError, match=r"memory\.add"):
        do(lambda memory: memory.add("n", 1))
    with pytest.raises(TypeError, match=r"memory\.add"):
        do(lambda memory: memory.add("m", there))

    assert stored(gantry) == {"n": there}


def test_a_key_deleted_and_made_again_in_one_call_has_lost_its_deadline(gantry):
    do = doing(gantry)
    do(lambda memory: memory.set("k", 1, ttl=10))

    def remake(memory):
        del memory["k"]
        memory["k"] = 2

    do(remake)

    with gantry.memory() as memory:
        assert memory.ttl("k") is None
