"""In whatever order the messages of calls come to a store: what lands is merged by the rules, or it is a typed refusal."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from isolation import interleave
from isolation.cases import BODIES, EVENTS, INSIDE, START, all_orders, calls, nested, random_order
from isolation.interleave import KnowsTokens

from agent_gantry_state import merge, rebase, unit_of_work
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import EMPTY, Committed

pytestmark = pytest.mark.once

FEW = ("append", "add", "put", "delete", "nest", "much")
pairs = itertools.combinations_with_replacement


@pytest.mark.parametrize("start", START)
def test_two_calls_land_by_the_rules_or_not_at_all_in_every_order(start):
    count = sum(all_orders(start, lambda names=names: calls(names)) for names in pairs(BODIES, 2))

    print(f"{count} interleavings")
    assert count > 100


@pytest.mark.parametrize("start", ["nothing", "much"])
def test_three_calls_land_by_the_rules_or_not_at_all_in_every_order(start):
    names = ("append", "add", "put", "delete") if start == "much" else ("append", "nest", "put")
    count = sum(all_orders(start, lambda names=names: calls(names)) for names in pairs(names, 3))

    print(f"{count} interleavings")
    assert count > 100


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("start", START)
def test_two_calls_and_time_or_an_erasure_in_every_order(start, event):
    names = ("append", "put", "expire", "lend", "delete what expires", "add to what expires")
    count = sum(all_orders(start, lambda names=names: [*calls(names), EVENTS[event]()]) for names in pairs(names, 2))

    print(f"{count} interleavings")
    assert count > 100


@pytest.mark.parametrize("kind", ["lost before", "lost after", "late"])
@pytest.mark.parametrize("start", START)
def test_two_calls_of_which_an_answer_is_lost_are_applied_once_in_every_order(start, kind):
    count = sum(all_orders(start, lambda names=names: calls(names), 1, (kind,)) for names in pairs(FEW, 2))

    print(f"{count} interleavings")
    assert count > 100


@pytest.mark.parametrize("event", EVENTS)
def test_lost_answers_and_time_or_an_erasure_bring_nothing_back(event):
    kinds = ("lost before", "lost after")
    count = sum(
        all_orders(start, lambda names=names: [*calls(names), EVENTS[event]()], 1, kinds)
        for start in ("nothing", "what expires")
        for names in pairs(("append", "lend"), 2)
    )

    print(f"{count} interleavings")
    assert count > 100


@pytest.mark.parametrize("end", ["nothing", "append", None])
def test_calls_inside_a_call_in_every_order(end):
    one_inside = [(start, (each,)) for start in ("nothing", "much") for each in INSIDE]
    count = sum(
        all_orders(start, lambda inner=inner: nested("append", end, inner, ()))
        for start, inner in (*one_inside, ("nothing", ("append", "append")), ("much", ("append", "put")))
    )

    print(f"{count} interleavings")
    assert count > 90


@pytest.mark.parametrize("start", ["nothing", "much"])
def test_call_inside_a_call_and_a_stranger_in_every_order(start):
    count = sum(
        all_orders(start, lambda inner=inner, stranger=stranger: nested("much", "nothing", [inner], [stranger]))
        for inner in FEW[:3]
        for stranger in FEW[:3]
    )

    print(f"{count} interleavings")
    assert count > 100


def random_orders(count):
    for seed in range(count):
        try:
            random_order(random.Random(seed))
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_many_calls_land_by_the_rules_or_not_at_all_in_random_orders():
    random_orders(800)


# It finds what is wrong.


class LosesTheCheck(KnowsTokens):
    def commit(self, message, /):
        for change in message.changes:
            there = self.snapshot(change.namespace)
            change.head, change.checks, change.born = there.head, {}, there.born
        return super().commit(message)


class WritesNothing(KnowsTokens):
    def commit(self, message, /):
        return Committed()


class KnowsNoToken(KnowsTokens):
    def commit(self, message, /):
        return super().commit(replace(message, token=b""))


def ours_first(base, theirs, ours):
    return theirs[: len(base)] + ours[len(base) :] + theirs[len(base) :]


PLANTED = {
    "a store that does not compare": lambda patch: patch.setattr(interleave, "KnowsTokens", LosesTheCheck),
    "a store that does not write": lambda patch: patch.setattr(interleave, "KnowsTokens", WritesNothing),
    "a store that knows no token": lambda patch: patch.setattr(interleave, "KnowsTokens", KnowsNoToken),
    "ours before theirs": lambda patch: patch.setitem(merge._MERGERS, list, ours_first),
    "a number that another one had changed is kept": lambda patch: patch.setattr(merge, "is_number", lambda value: False),
    "an erasure that nobody sees": lambda patch: patch.setattr(rebase, "is_erased", lambda *_: False),
    "an addition that is an assignment": lambda patch: patch.setattr(rebase, "_add", lambda theirs, n: n),
    "a call inside that sees nothing": lambda patch: patch.setattr(unit_of_work, "snapshot_of", lambda *_: EMPTY),
    "a failed call whose calls inside go on": lambda patch: patch.setattr(unit_of_work.UnitOfWork, "fail", lambda _: None),
    "deadlines that nobody keeps": lambda patch: patch.setattr(MemoryStore, "now", lambda _: 0.0),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_found(bug, monkeypatch):
    PLANTED[bug](monkeypatch)

    with pytest.raises((AssertionError, KeyError)):
        random_orders(500)
