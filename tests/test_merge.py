"""What two calls made of one value is merged where no side can lose, and is a conflict everywhere else."""

from __future__ import annotations

import copy
import decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_gantry_state import codec, merge
from agent_gantry_state.merge import ABSENT, Conflict, three_way

pytestmark = pytest.mark.once

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, -0.0, 1.0]) | st.text("ab", max_size=2)
keys = st.text("abcd", min_size=1, max_size=1)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3),
        st.sets(st.integers(0, 4), max_size=3),
        st.lists(inner, max_size=2).map(tuple),
    ),
    max_leaves=8,
)
sides = st.just(ABSENT) | values
lists = st.lists(values, max_size=3)
sets = st.sets(st.integers(0, 6))


def packed(value: Any) -> bytes | None:
    return None if value is ABSENT else codec.pack(value)


def merged_or_conflict(*three: Any) -> Any:
    try:
        return packed(three_way(*copy.deepcopy(three)))
    except Conflict:
        return Conflict


@given(sides, sides)
@quick
def test_a_side_that_changed_nothing_gives_way(base, changed):
    assert packed(three_way(base, changed, copy.deepcopy(base))) == packed(changed)
    assert packed(three_way(base, copy.deepcopy(base), changed)) == packed(changed)


@given(sides, sides, sides)
@settings(quick, max_examples=200)
def test_the_inputs_are_never_changed(base, theirs, ours):
    before = [packed(side) for side in (base, theirs, ours)]

    try:
        three_way(base, theirs, ours)
    except Conflict:
        pass

    assert [packed(side) for side in (base, theirs, ours)] == before


@given(sides, sides, sides)
@settings(quick, max_examples=200)
def test_whether_it_is_a_conflict_does_not_depend_on_who_came_first(base, theirs, ours):
    one, other = merged_or_conflict(base, theirs, ours), merged_or_conflict(base, ours, theirs)

    assert (one is Conflict) == (other is Conflict)


@given(
    st.dictionaries(keys, values, max_size=4),
    st.dictionaries(st.text("abxy", min_size=1, max_size=1), values, max_size=3),
    st.dictionaries(st.text("cdzw", min_size=1, max_size=1), values, max_size=3),
    st.sets(st.sampled_from("ab")),
    st.sets(st.sampled_from("cd")),
)
@settings(quick, max_examples=150)
def test_changes_to_different_keys_of_a_dict_commute(base, theirs, ours, their_deletes, our_deletes):
    there = {key: value for key, value in {**base, **theirs}.items() if key not in their_deletes}
    here = {key: value for key, value in {**base, **ours}.items() if key not in our_deletes}
    expected = {**base, **theirs, **ours}
    for key in their_deletes | our_deletes:
        expected.pop(key, None)

    one, other = three_way(base, there, here), three_way(base, here, there)

    for merged in (one, other):
        assert {key: packed(value) for key, value in merged.items()} == {k: packed(v) for k, v in expected.items()}


def test_our_new_keys_follow_theirs():
    merged = three_way({"a": 1, "b": 2}, {"b": 2, "t": 0, "a": 3}, {"z": 1, "b": 5, "y": 2, "a": 1})

    assert list(merged.items()) == [("b", 5), ("t", 0), ("a", 3), ("z", 1), ("y", 2)]


@given(sets, sets, sets)
@quick
def test_sets_take_the_additions_and_removals_of_both_and_commute(base, theirs, ours):
    expected = ((theirs | ours) - (base - theirs)) - (base - ours)
    for kind in (set, frozenset):
        assert three_way(kind(base), kind(theirs), kind(ours)) == kind(expected)
        assert three_way(kind(base), kind(ours), kind(theirs)) == kind(expected)
        assert type(three_way(kind(base), kind(theirs), kind(ours))) is kind


def test_members_of_sets_are_told_apart_by_more_than_equality():
    assert [repr(item) for item in three_way({1}, {True}, {1, 2})] in (["True", "2"], ["2", "True"])


@given(lists, lists, lists)
@quick
def test_lists_that_both_appended_to_become_theirs_then_ours(base, theirs, ours):
    merged = three_way(base, base + theirs, base + ours)

    assert packed(merged) == packed(base + theirs + ours)


@given(st.sampled_from([ABSENT, []]), lists, lists)
@quick
def test_lists_made_from_nothing_are_joined(base, theirs, ours):
    assert packed(three_way(base, theirs, ours)) == packed(theirs + ours)


@pytest.mark.parametrize("base", [ABSENT, [], ["x"]])
def test_two_equal_appends_are_two(base):
    before = [] if base is ABSENT else base

    assert three_way(base, [*before, "same"], [*before, "same"]) == [*before, "same", "same"]
    assert three_way({"in": [base or []]}, {"in": [base or []]}, {"in": [base or []]}) == {"in": [base or []]}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["b"], ["a", "b", "c"]),
        (["a", "b", "t"], ["a"]),
        (["x", "b"], ["a", "b", "o"]),
        (["a", "t", "b"], ["a", "b", "o"]),
        ([], []),
        (["a"], ["a"]),
    ],
)
def test_lists_changed_otherwise_than_at_the_end_conflict(theirs, ours):
    with pytest.raises(Conflict):
        three_way(["a", "b"], theirs, ours)


def test_a_list_item_that_changed_its_type_is_no_append():
    with pytest.raises(Conflict):
        three_way([1], [True, "theirs"], [1, "ours"])


@pytest.mark.parametrize("empty", [dict, set, frozenset, list])
def test_containers_that_both_made_are_merged_as_from_empty(empty):
    make = {
        dict: lambda key: {key: 1},
        set: lambda key: {key},
        frozenset: lambda key: frozenset(key),
        list: lambda key: [key],
    }[empty]

    merged = three_way(ABSENT, make("t"), make("o"))

    assert sorted(merged) == ["o", "t"]
    assert type(merged) is empty


@pytest.mark.parametrize("wrap", [lambda side: side, lambda side: _in_dict(side), lambda side: _in_dict(_in_dict(side))])
@pytest.mark.parametrize(
    ("base", "theirs", "ours"),
    [
        (1, ABSENT, 2),
        (1, 2, ABSENT),
        ([1], ABSENT, [1, 2]),
        ([1], [1, 2], ABSENT),
        ({"k": 1}, ABSENT, {"k": 1, "n": 2}),
        (1, 2, 3),
        (ABSENT, 1, 2),
        (ABSENT, 1, True),
        (0.5, 0.0, -0.0),
        ([1], {1}, [1, 2]),
        (ABSENT, {"a": 1}, ["a"]),
        ({"a": 1}, [1], [2]),
        ((1,), (1, 2), (1, 3)),
        (None, {"a": 1}, {"b": 1}),
    ],
)
def test_what_both_changed_otherwise_is_a_conflict_at_every_level(wrap, base, theirs, ours):
    with pytest.raises(Conflict):
        three_way(wrap(base), wrap(theirs), wrap(ours))


def _in_dict(side: Any) -> dict[str, Any]:
    return {"other": [0]} if side is ABSENT else {"other": [0], "k": side}


@pytest.mark.parametrize("value", [None, 1, "a", True, (1, 2), 1.5, b"x"])
@pytest.mark.parametrize("base", [ABSENT, "before"])
def test_the_same_new_scalar_from_both_is_no_conflict(base, value):
    assert three_way(base, value, value) == value
    assert three_way({"k": base} if base else {}, {"k": value}, {"k": value}) == {"k": value}


@pytest.mark.parametrize("wrap", [lambda side: side, lambda side: {"in": {"n": side}}], ids=["top", "nested"])
@pytest.mark.parametrize(("base", "value"), [(1, 2), (0, 1.0), (decimal.Decimal(1), decimal.Decimal(2))])
def test_the_same_number_in_place_of_another_is_a_conflict_as_both_may_have_counted(wrap, base, value):
    with pytest.raises(Conflict):
        three_way(wrap(base), wrap(value), wrap(value))


@pytest.mark.parametrize(("base", "theirs"), [(ABSENT, 1), (None, 1), ({}, {"n": 1}), ({"in": {}}, {"in": {"n": 1}})])
def test_the_same_first_number_is_a_conflict_for_a_call_that_can_run_again(base, theirs):
    assert three_way(base, theirs, theirs) == theirs

    with pytest.raises(Conflict):
        three_way(base, theirs, theirs, reruns=True)


def test_the_same_new_text_is_no_conflict_for_a_call_that_can_run_again():
    assert three_way("open", "done", "done", reruns=True) == "done"


def test_the_same_deletion_by_both_is_no_conflict():
    assert three_way(1, ABSENT, ABSENT) is ABSENT
    assert three_way({"a": 1, "b": 2}, {"b": 3}, {"b": 2}) == {"b": 3}


def test_reordering_a_dict_is_a_change():
    merged = three_way({"a": 1, "b": 2}, {"a": 1, "b": 2}, {"b": 2, "a": 1})

    assert list(merged) == ["b", "a"]


# Declared merges.


@pytest.mark.parametrize(
    ("function", "base", "theirs", "ours", "expected"),
    [
        (merge.add, 10, 12, 15, 17),
        (merge.add, 10, 12, 5, 7),
        (merge.add, ABSENT, 2, 3, 5),
        (merge.add, 10, ABSENT, 12, 2),
        (merge.add, 10, 12, ABSENT, 2),
        (merge.add, ABSENT, ABSENT, 3, 3),
        (merge.add, decimal.Decimal("1.5"), decimal.Decimal(2), decimal.Decimal("1.75"), decimal.Decimal("2.25")),
        (merge.max, 1, 5, 3, 5),
        (merge.max, 1, 3, 5, 5),
        (merge.max, ABSENT, 3, 5, 5),
        (merge.max, 9, ABSENT, 5, 5),
        (merge.max, 9, 5, ABSENT, 5),
        (merge.max, "a", "b", "c", "c"),
        (merge.min, 9, 5, 3, 3),
        (merge.min, 9, 3, 5, 3),
        (merge.min, 0, ABSENT, 5, 5),
        (merge.min, 0, 5, ABSENT, 5),
        (merge.longest, "", "abc", "ab", "abc"),
        (merge.longest, "", "ab", "abc", "abc"),
        (merge.longest, [], ["t"], ["o"], ["t"]),
        (merge.longest, [], ABSENT, ["o"], ["o"]),
        (merge.longest, [], ["t"], ABSENT, ["t"]),
        (merge.union, {1}, {2}, {3}, {2, 3}),
        (merge.union, ABSENT, frozenset({2}), frozenset({3}), frozenset({2, 3})),
        (merge.union, [1], [2, 1], [1, 3, True], [2, 1, 3, True]),
        (merge.union, {}, {"a": 1, "b": 1}, {"b": 2, "c": 2}, {"a": 1, "b": 2, "c": 2}),
        (merge.union, [1], ABSENT, [2], [2]),
        (merge.union, [1], [2], ABSENT, [2]),
        (merge.newest(3), [1, 2, 3], [2, 3, 4], [2, 3, 5], [3, 4, 5]),
        (merge.newest(3), [1, 2, 3], [2, 3, 1], [3, 2, 3], [1, 2, 3]),
        (merge.newest(3), [1, 1, 1], [1, 1, 1], [1, 1, True], [1, 1, True]),
        (merge.newest(9), [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 3, 4]),
        (merge.newest(2), [1], [7, 8], [5, 6], [5, 6]),
        (merge.newest(2), ABSENT, ["t"], ["o"], ["t", "o"]),
        (merge.newest(2), ["b"], ABSENT, ["b", "o"], ["o"]),
        (merge.ours, 1, 2, 3, 3),
        (merge.ours, 1, 2, ABSENT, ABSENT),
        (merge.ours, 1, ABSENT, 3, 3),
        (merge.ours, ABSENT, 2, 3, 3),
        (merge.theirs, 1, 2, 3, 2),
        (merge.theirs, 1, 2, ABSENT, 2),
        (merge.theirs, 1, ABSENT, 3, ABSENT),
        (merge.theirs, ABSENT, 2, 3, 2),
    ],
)
def test_a_declared_merge_keeps_what_it_says(function, base, theirs, ours, expected):
    before = [packed(side) for side in (base, theirs, ours)]

    merged = function(base, theirs, ours)

    assert packed(merged) == packed(expected)
    assert [packed(side) for side in (base, theirs, ours)] == before


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "3"])
def test_newest_keeps_at_least_one_item(count):
    with pytest.raises(ValueError, match="at least 1"):
        merge.newest(count)


@pytest.mark.parametrize("sides", [({}, [1], [2]), ([], "t", [2]), ([], [1], (2,))])
def test_newest_of_what_is_no_list_is_a_conflict(sides):
    with pytest.raises(merge.Conflict, match="lists"):
        merge.newest(3)(*sides)


@pytest.mark.parametrize(
    ("function", "theirs", "ours"),
    [
        (merge.add, "x", 1),
        (merge.add, 1, True),
        (merge.add, None, 1),
        (merge.union, [1], {1}),
        (merge.union, 1, 2),
        (merge.union, (1,), (2,)),
        (merge.conflict, 1, 2),
        (merge.conflict, 1, ABSENT),
        (merge.conflict, ABSENT, 1),
        (merge.conflict, [1], [1]),
    ],
)
def test_a_declared_merge_that_makes_no_sense_is_a_conflict(function, theirs, ours):
    with pytest.raises(Conflict):
        function(ABSENT, theirs, ours)


def test_absent_stays_itself_and_is_false():
    assert copy.deepcopy([ABSENT])[0] is ABSENT
    assert copy.copy(ABSENT) is ABSENT
    assert not ABSENT
    assert repr(ABSENT) == "ABSENT"


# Grafting.


@given(values, values)
@settings(quick, max_examples=200)
def test_a_grafted_value_equals_its_source_byte_for_byte(target, source):
    wanted = codec.pack(source)

    assert codec.pack(merge.graft(target, source)) == wanted
    assert codec.pack(source) == wanted


def test_containers_stay_the_same_objects_wherever_the_source_has_one_of_their_kind():
    target: dict[str, Any] = {"plan": {"steps": [["a"], {"b"}], "gone": 1}, "was_list": [1], "same": [0]}
    plan, steps, first, second, same = (
        target["plan"],
        target["plan"]["steps"],
        target["plan"]["steps"][0],
        target["plan"]["steps"][1],
        target["same"],
    )
    source = {"new": [9], "plan": {"steps": [["a", "z"], {"c"}, "more"]}, "was_list": {"x": 1}, "same": [0]}

    grafted = merge.graft(target, source)

    assert grafted is target
    assert codec.pack(target) == codec.pack(source)
    assert target["plan"] is plan
    assert plan["steps"] is steps
    assert (steps[0] is first, steps[1] is second, target["same"] is same) == (True, True, True)


def test_a_target_that_holds_one_container_twice_still_becomes_its_source():
    shared = ["base"]
    target = {"a": shared, "b": shared, "in": [shared, {"deep": shared}]}
    source = {"a": ["base", 1], "b": ["base", 2], "in": [["base", 3], {"deep": ["base", 4]}]}
    wanted = codec.pack(source)

    assert codec.pack(merge.graft(target, source)) == wanted


def test_a_source_that_holds_parts_of_the_target_is_grafted_whole():
    target: list[Any] = [["one"], ["two"]]
    source = [["three"], target[0]]
    wanted = codec.pack(source)

    assert codec.pack(merge.graft(target, source)) == wanted
