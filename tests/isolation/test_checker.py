"""The checker finds what is wrong with a history: each anomaly written down by hand, and stores with a bug each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isolation.calls import Job, Lanes, content
from isolation.checker import MODES, Txn, check

from agent_gantry_state import Gantry, StoreTimeoutError
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Committed, Load, Loaded, Moved

pytestmark = pytest.mark.once

SNAPSHOTS = ("merge", "conflict")
STRICT = ("serializable", "exclusive")
ALL = (*SNAPSHOTS, *STRICT)


def read(where, elements=""):
    return ["read", where, elements.split()]


def append(where, element):
    return ["append", where, element]


def txn(name, *ops, **how):
    return Txn(name, ops=list(ops), **{"start": 0.0, "end": 100.0, **how})


def found(txns, mode="merge", counters=None, **final):
    """The names of the anomalies of a history in one mode."""
    calls = [replace(each, mode=mode) for each in txns]
    return {each.name for each in check(calls, {where: elements.split() for where, elements in final.items()}, counters)}


def at(start, end):
    return {"start": start, "end": end}


#: History by name: calls, what is there in the end, what it must be called, and in which modes; in the others it is good.
HISTORIES = {
    "two calls write two lists in opposite orders": (
        [txn("t", append("x", "t1"), append("y", "t2")), txn("u", append("x", "u1"), append("y", "u2"))],
        {"x": "t1 u1", "y": "u2 t2"},
        {"G0"},
        ALL,
    ),
    "two calls' appends to one list are mixed": (
        [txn("t", append("x", "t1"), append("x", "t2")), txn("u", append("x", "u1"))],
        {"x": "t1 u1 t2"},
        {"G0"},
        ALL,
    ),
    "an element of a failed call is read": (
        [txn("t", append("x", "t1"), outcome="failed"), txn("u", read("x", "t1"))],
        {"x": ""},
        {"G1a"},
        ALL,
    ),
    "an element of a failed call is there in the end": (
        [txn("t", append("x", "t1"), outcome="failed")],
        {"x": "t1"},
        {"G1a"},
        ALL,
    ),
    "half of what a call appended is read": (
        [txn("t", append("x", "t1"), append("x", "t2")), txn("u", read("x", "t1"))],
        {"x": "t1 t2"},
        {"G1b", "G-single"},
        ALL,
    ),
    "two calls read each other's elements": (
        [txn("t", append("x", "t1"), read("y", "u1")), txn("u", append("y", "u1"), read("x", "t1"))],
        {"x": "t1", "y": "u1"},
        {"G1c"},
        ALL,
    ),
    "a call sees another one in one list and not in the other": (
        [txn("t", append("x", "t1"), append("y", "t2")), txn("u", read("x", "t1"), read("y"))],
        {"x": "t1", "y": "t2"},
        {"G-single"},
        ALL,
    ),
    "a call that failed saw another one in one list and not in the other": (
        [txn("t", append("x", "t1"), append("y", "t2")), txn("u", read("x", "t1"), read("y"), outcome="failed")],
        {"x": "t1", "y": "t2"},
        {"G-single"},
        ALL,
    ),
    "two readers see two calls in opposite orders": (
        [
            txn("t", append("x", "t1")),
            txn("u", append("y", "u1")),
            txn("v", read("x", "t1"), read("y")),
            txn("w", read("x"), read("y", "u1")),
        ],
        {"x": "t1", "y": "u1"},
        {"G2"},
        ALL,
    ),
    "each of two calls reads the list that the other one appends to": (
        [txn("t", read("x"), append("y", "t1")), txn("u", read("y"), append("x", "u1"))],
        {"x": "u1", "y": "t1"},
        {"G2"},
        STRICT,
    ),
    "a call appends behind what it has not seen": (
        [txn("t", read("x"), append("x", "t1")), txn("u", read("x"), append("x", "u1"))],
        {"x": "t1 u1"},
        {"G-single", "lost update"},
        (*STRICT, "conflict"),
    ),
    "a call that has returned is not seen by one that begins later": (
        [txn("t", append("x", "t1"), **at(0, 1)), txn("u", read("x"), **at(2, 3))],
        {"x": "t1"},
        {"G-single-realtime"},
        ALL,
    ),
    "what has returned is not seen, by way of calls of other lists": (
        [
            txn("t", append("x", "t1"), **at(0, 1)),
            txn("u", append("y", "u1"), **at(2, 3)),
            txn("v", read("y", "u1"), read("x"), **at(0, 9)),
        ],
        {"x": "t1", "y": "u1"},
        {"G-single-realtime"},
        ALL,
    ),
    "a call is ordered before one that had returned when it began": (
        [txn("t", append("x", "t1"), **at(0, 1)), txn("u", append("x", "u1"), **at(2, 3))],
        {"x": "u1 t1"},
        {"G0-realtime"},
        ALL,
    ),
    "a call reads what another one appends only after it has returned": (
        [txn("t", read("x", "u1"), **at(0, 1)), txn("u", append("x", "u1"), **at(2, 3))],
        {"x": "u1"},
        {"G1c-realtime"},
        ALL,
    ),
    "an acknowledged element is gone": ([txn("t", append("x", "t1"))], {"x": ""}, {"lost"}, ALL),
    "an acknowledged element that was read is gone": (
        [txn("t", append("x", "t1")), txn("u", read("x", "t1"))],
        {"x": ""},
        {"torn"},
        ALL,
    ),
    "one of two elements of a call is gone": (
        [txn("t", append("x", "t1"), append("y", "t2"))],
        {"x": "t1", "y": ""},
        {"torn"},
        ALL,
    ),
    "half of a call whose outcome is not known is there": (
        [txn("t", append("x", "t1"), append("y", "t2"), outcome="unknown")],
        {"x": "t1", "y": ""},
        {"torn"},
        ALL,
    ),
    "an element is there twice": ([txn("t", append("x", "t1"))], {"x": "t1 t1"}, {"duplicate"}, ALL),
    "an element that nobody appended is there": ([], {"x": "t1"}, {"unknown element"}, ALL),
    "two reads are in two orders": (
        [txn("t", append("x", "t1")), txn("u", append("x", "u1")), txn("v", read("x", "u1"))],
        {"x": "t1 u1"},
        {"incompatible order"},
        ALL,
    ),
    "a call does not see its own element": (
        [txn("t", append("x", "t1"), read("x"))],
        {"x": "t1"},
        {"internal"},
        ALL,
    ),
    "a list changes between two reads of a call": (
        [txn("t", append("x", "t1")), txn("u", read("x"), read("x", "t1"))],
        {"x": "t1"},
        {"internal", "G-single"},
        ALL,
    ),
    "a counter misses an append that is there": (
        [txn("t", append("x/a", "t1"))],
        {"x/a": "t1", "counters": {"x": 0}},
        {"lost"},
        ALL,
    ),
    "an append was counted twice": (
        [txn("t", append("x/a", "t1"))],
        {"x/a": "t1", "counters": {"x": 2}},
        {"duplicate"},
        ALL,
    ),
    "a call sees a counter and a list of two moments": (
        [txn("t", ["count", "x", 1, 0])],
        {},
        {"torn"},
        ALL,
    ),
    "two calls have a namespace to themselves at once": (
        [txn("t", bodies=[["x", 1.0, 3.0]]), txn("u", bodies=[["x", 2.0, 4.0]])],
        {},
        {"overlap"},
        ALL,
    ),
    # What is good in all modes.
    "one after the other": (
        [
            txn("t", read("x"), append("x", "t1"), append("y", "t2"), **at(0, 1)),
            txn("u", read("x", "t1"), append("x", "u1"), read("x", "t1 u1"), **at(2, 3)),
            txn("v", read("x", "t1 u1"), read("y", "t2"), **at(4, 5)),
        ],
        {"x": "t1 u1", "y": "t2"},
        set(),
        (),
    ),
    "a call that takes long sees what was there when it began": (
        [txn("t", append("x", "t1"), **at(1, 2)), txn("u", read("x"), **at(0, 9))],
        {"x": "t1"},
        set(),
        (),
    ),
    "outcomes that are not known: one landed, one did not": (
        [txn("t", append("x", "t1"), outcome="unknown"), txn("u", append("x", "u1"), outcome="unknown")],
        {"x": "t1"},
        set(),
        (),
    ),
    "a call that failed saw what was there": (
        [txn("t", append("x", "t1")), txn("u", read("x", "t1"), append("x", "u1"), outcome="failed")],
        {"x": "t1"},
        set(),
        (),
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", HISTORIES)
def test_anomaly_is_found_and_named_in_the_modes_that_forbid_it(name, mode):
    txns, final, names, modes = HISTORIES[name]

    assert found(txns, mode, **final) == (names if mode in modes else set())


def test_each_call_of_a_mixed_history_is_held_to_its_own_mode():
    skewed = [txn("t", read("x"), append("y", "t1")), txn("u", read("y"), append("x", "u1"))]
    names = {}
    for modes in (("merge", "serializable"), ("serializable", "merge"), ("serializable", "exclusive")):
        calls = [replace(each, mode=mode) for each, mode in zip(skewed, modes, strict=True)]
        names[modes] = {each.name for each in check(calls, {"x": ["u1"], "y": ["t1"]})}

    assert names == {
        ("merge", "serializable"): set(),
        ("serializable", "merge"): set(),
        ("serializable", "exclusive"): {"G2"},
    }


def test_cycle_is_told_by_the_calls_that_are_on_it():
    skewed = [txn("t", read("x"), append("y", "t1")), txn("u", read("y"), append("x", "u1")), txn("v", append("x", "v1"))]
    (anomaly,) = check([replace(each, mode="serializable") for each in skewed], {"x": ["u1", "v1"], "y": ["t1"]})

    assert sorted(anomaly.told.split(" -> ")) == ["t rw", "u rw"]


WHERE = ("x/a", "x/b", "y/a")


@st.composite
def serial_histories(draw):
    """Calls one after the other, whose times overlap all the same, for a call is longer than its moment."""
    lists = {where: [] for where in WHERE}
    txns = []
    for number in range(draw(st.integers(1, 12))):
        moment = 10.0 * number
        start, end = moment - draw(st.floats(0, 50)), moment + draw(st.floats(0, 50))
        outcome = draw(st.sampled_from(["ok", "ok", "ok", "failed", "unknown"]))
        mine = {where: list(elements) for where, elements in lists.items()}
        ops = []
        for step in range(draw(st.integers(0, 5))):
            where = draw(st.sampled_from(WHERE))
            if draw(st.booleans()):
                mine[where].append(f"{number}.{step}")
                ops.append(append(where, f"{number}.{step}"))
            else:
                ops.append(["read", where, list(mine[where])])
        if outcome == "ok" or (outcome == "unknown" and draw(st.booleans())):
            lists = mine
        txns.append(Txn(str(number), draw(st.sampled_from(MODES)), outcome, ops, start, end))
    return draw(st.permutations(txns)), lists


@given(serial_histories())
def test_serial_history_is_good(history):
    txns, lists = history

    assert check(txns, lists, {ns: sum(len(lists[each]) for each in WHERE if each[0] == ns) for ns in "xy"}) == []


@given(serial_histories(), st.data())
def test_serial_history_with_one_element_missing_is_not(history, data):
    txns, lists = history
    ok = {element for each in txns if each.outcome == "ok" for _, element in each.appends()}
    there = [(where, element) for where in WHERE for element in lists[where] if element in ok]
    if not there:
        return
    where, element = data.draw(st.sampled_from(there))
    lists[where].remove(element)

    assert check(txns, lists) != []


# A store with a bug.


class Buggy(MemoryStore):
    """A store that does wrong what one of its methods says, each third time."""

    def __init__(self):
        super().__init__()
        self.turn = 0
        self.later = []

    def is_wrong(self):
        self.turn += 1
        return self.turn % 3 == 0

    def settle(self):
        later, self.later = self.later, []
        for message in later:
            super().commit(message)

    def load(self, message, /):
        self.settle()
        return super().load(message)

    def commit(self, message, /):
        self.settle()
        return super().commit(message)

    def forced(self, message):
        """A commit that is written whatever is there."""
        current = super().load(message_for(message)).snapshots
        changes = [
            replace(change, head=there.head, checks={}, whole=False, born=there.born, loaded_owner=there.owner)
            for change, there in zip(message.changes, current, strict=True)
        ]
        return super().commit(replace(message, changes=tuple(changes)))


def message_for(commit):
    return Load(tuple(change.namespace for change in commit.changes))


class LosesTheCheck(Buggy):
    def commit(self, message, /):
        return self.forced(message)


class ForgetsWhatWasRead(Buggy):
    """It checks what is written and not what was read."""

    def commit(self, message, /):
        changes = [
            replace(
                change,
                whole=False,
                checks={key: seen for key, seen in change.checks.items() if key in change.puts or key in change.deletes},
            )
            for change in message.changes
        ]
        return super().commit(replace(message, changes=tuple(changes)))


class Tears(Buggy):
    """It writes the first namespace of a commit now, and the others when it is next asked for something."""

    def commit(self, message, /):
        self.settle()
        if len(message.changes) < 2:
            return super().commit(message)
        current = MemoryStore.load(self, message_for(message))
        answer = super().commit(replace(message, changes=message.changes[:1]))
        if isinstance(answer, Moved):
            return Moved(current.snapshots, current.now)
        self.later.append(replace(message, changes=message.changes[1:]))
        return answer

    def settle(self):
        # One call later, so that one may come between.
        if self.later and self.is_wrong():
            super().settle()


class DropsAPart(Buggy):
    def commit(self, message, /):
        if len(message.changes) > 1 and self.is_wrong():
            if isinstance(super().commit(replace(message, changes=message.changes[:1])), Committed):
                return Committed()
            current = super().load(message_for(message))
            return Moved(current.snapshots, current.now)
        return super().commit(message)


class AnswersWhatWas(Buggy):
    """It loads what was there some commits ago."""

    def __init__(self):
        super().__init__()
        self.old = {}

    def load(self, message, /):
        answer = super().load(message)
        if self.is_wrong():
            return self.old.get(message.namespaces, answer)
        self.old[message.namespaces] = answer
        return answer


class MixesMoments(AnswersWhatWas):
    """It loads one namespace as it was, and the other as it is."""

    def load(self, message, /):
        if len(message.namespaces) < 2:
            return MemoryStore.load(self, message)
        now, then = MemoryStore.load(self, message), super().load(message)
        return Loaded((now.snapshots[0], *then.snapshots[1:]), now.now)


class AppliesTwice(Buggy):
    """It says that others were quicker, though it has written."""

    def commit(self, message, /):
        answer = super().commit(message)
        if isinstance(answer, Committed) and self.is_wrong():
            current = super().load(message_for(message))
            return Moved(current.snapshots, current.now)
        return answer


class WritesNothing(Buggy):
    def commit(self, message, /):
        return Committed() if self.is_wrong() else super().commit(message)


class FailsAfterwards(Buggy):
    """It says that surely nothing was written, and it was."""

    def commit(self, message, /):
        answer = super().commit(message)
        if isinstance(answer, Committed) and self.is_wrong():
            raise StoreTimeoutError("nothing was written", committed=False)
        return answer


class WritesLate(Buggy):
    """It has a commit done, in the end; whoever begins then does not see it yet."""

    def commit(self, message, /):
        if self.is_wrong():
            self.later.append(message)
            return Committed()
        return super().commit(message)

    def settle(self):
        if len(self.later) > 1:
            later, self.later = self.later, []
            for message in later:
                self.forced(message)


BUGS = {
    LosesTheCheck: {"lost", "torn", "incompatible order"},
    ForgetsWhatWasRead: {"G2", "G-single", "lost update"},
    Tears: {"G-single", "torn"},
    DropsAPart: {"lost", "torn"},
    AnswersWhatWas: {"G-single-realtime", "G-single"},
    MixesMoments: {"G-single", "G1c"},
    AppliesTwice: {"duplicate"},
    WritesNothing: {"lost"},
    FailsAfterwards: {"G1a"},
    WritesLate: {"G-single-realtime", "lost", "torn", "incompatible order"},
}


def histories_of(store, mode, count):
    """The anomalies in histories of tasks on one event loop, on stores of a class, one history after the other."""
    for seed in range(count):
        with Gantry(store(), session="s1", user="ada") as gantry:
            shapes = ("both", "beside", "other") if store is ForgetsWhatWasRead else Job.shapes
            job = Job(mode, seed, shapes, calls=8, threads=0, tasks=5, hops=False)
            txns = Lanes(gantry, job, "0").run()
            yield check(txns, *content(gantry))


@pytest.mark.parametrize("store", BUGS)
def test_bug_of_a_store_is_found(store):
    mode = "serializable" if store is ForgetsWhatWasRead else "merge"
    names = set()
    for anomalies in histories_of(store, mode, 60):
        names |= {each.name for each in anomalies}
        if names & BUGS[store]:
            break

    assert names & BUGS[store]


@pytest.mark.parametrize("mode", MODES)
def test_same_store_without_a_bug_is_good(mode):
    assert not any(histories_of(Buggy, mode, 12))
