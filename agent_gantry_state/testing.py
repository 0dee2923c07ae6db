"""The rules of stores/protocol.py as tests, for whoever writes a store.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            return MyStore(tmp_path)

runs all of them on it, whether its methods are plain or coroutines: they ask through the bridge that a gantry would use, and
close the store afterwards. Needs pytest, and anyio's plugin for it, which comes with anyio.
"""

# ruff: noqa: S101 - these are tests

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import importlib.util
import itertools
import math
import pathlib
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import anyio
import pytest

from agent_gantry_state import codec
from agent_gantry_state.bridge import Bridge, bridge_to
from agent_gantry_state.errors import (
    MemoryConflictError,
    MemoryErasedError,
    MemoryTooLargeError,
    MemoryValidationError,
    StoreClosedError,
)
from agent_gantry_state.gantry import Gantry
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import Scope
from agent_gantry_state.session import SyncSession
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores.protocol import (
    KEEP,
    UNSHARED,
    Change,
    Commit,
    Committed,
    Forget,
    Lease,
    List,
    Load,
    Loaded,
    Message,
    Moved,
    Page,
    Put,
    Release,
    Snapshot,
)

__all__ = ["HOSTILE_TEXTS", "NOWHERE", "VALUES", "A", "B", "Clock", "StoreContract", "Talk", "put"]

A = Namespace("session", "a", "app")
B = Namespace("user", "b", "app")
#: A namespace that no test writes to.
NOWHERE = Namespace("session", "nowhere", "app")

#: A value of each type that comes back as it went in.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -(2**63),
    2**64,
    -(2**70),
    0.0,
    -0.0,
    1.5,
    math.inf,
    -math.inf,
    math.nan,
    "",
    "text",
    "\ud800 lone, \x00 and \U0001f600",
    b"",
    b"\x00\xff",
    [],
    [1, [2, [3]]],
    {},
    {"b": 1, "a": {"": None}},
    {1: "one", (2, 3): "pair", None: "none"},
    (),
    (1, ("two",)),
    set(),
    {1, "a", (2,)},
    frozenset({1}),
    dt.datetime(2024, 2, 29, 12, 30, 1, 999_999),  # noqa: DTZ001
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=dt.timezone(dt.timedelta(hours=2)), fold=1),
    dt.date(1, 1, 1),
    dt.time(23, 59, 59, 1),
    dt.timedelta(days=-1, microseconds=1),
    decimal.Decimal("1.10"),
    uuid.UUID(int=1),
    pathlib.PurePosixPath("/a/b"),
    pathlib.PureWindowsPath("C:/a"),
)

#: Ids and keys that a store must not read, fold, cut off, or take for one another.
HOSTILE_TEXTS: tuple[str, ...] = (
    "a",
    "A",
    "a ",
    " a",
    "a\x00",
    "a\x00b",
    "\x00",
    "é",
    "e\u0301",
    "\uff41",
    "\u0430",
    "ß",
    "ss",
    "\u212a",
    "K",
    "k",
    "\ud800",
    "\udfff",
    "\ud83d\ude00",
    "\U0001f600",
    "..",
    "../../etc/passwd",
    "/",
    "C:\\x",
    "a/b",
    "a:b",
    "a\r\nSET x y",
    "'; DROP TABLE entry; --",
    '"',
    "%",
    "_",
    "*",
    "{a}",
    "$(id)",
    "x" * 100_000,
    "x" * 99_999 + "y",
    "\u200b",
    "\ufeff",
    "-1",
    "1",
    "01",
    "null",
)


def _named(value: Any) -> str:
    # The same in every process, or the tests cannot be divided among several: a set has no order of its own.
    shown = sorted(value, key=repr) if isinstance(value, set) else value
    return f"{type(value).__name__}-{str(shown)[:9]!a}"


class Clock:
    """A clock that stands still until `now` is set."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def put(value: Any, **terms: Any) -> Put:
    """A put of *value* with the terms that `Put` takes."""
    if type(value) in codec.IMMUTABLE:
        return Put(value, None, **terms)
    return Put(UNSHARED, codec.pack(value), **terms)


def _run(body: Any, memory: Any) -> Any:
    return body(memory)


def _ask(message: Message) -> Steps[Any]:
    return (yield message)


class Talk:
    """Asks a store what the tests want to know, through its bridge."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self._versions = itertools.count(1)

    def ask(self, message: Message) -> Any:
        """The store's answer."""
        return self.bridge.run(_ask(message))

    async def aask(self, message: Message) -> Any:
        """The store's answer, asked from an event loop."""
        steps = _ask(message)
        return await (self.bridge.arun_uncut(steps) if isinstance(message, Commit) else self.bridge.arun(steps))

    def loaded(self, *namespaces: Namespace, **terms: Any) -> Loaded:
        """The answer to a `Load`, which has to be one."""
        loaded = self.ask(Load(namespaces or (A,), **terms))
        assert isinstance(loaded, Loaded)
        assert all(isinstance(snapshot, Snapshot) for snapshot in loaded.snapshots)
        return loaded

    def load(self, *namespaces: Namespace, **terms: Any) -> tuple[Snapshot, ...]:
        """Snapshots of namespaces."""
        return self.loaded(*namespaces, **terms).snapshots

    def content(self, namespace: Namespace = A) -> dict[str, Any]:
        """Keys and values of a namespace, in order."""
        (snapshot,) = self.load(namespace)
        return {key: snapshot.value(key) for key in snapshot.values}

    def change(
        self, namespace: Namespace = A, puts: Mapping[str, Put] | None = None, deletes: Sequence[str] = (), **rest: Any
    ) -> Change:
        """What a unit sends that has just loaded the namespace."""
        (seen,) = self.load(namespace)
        puts = dict(puts or {})
        checks = {key: seen.version(key) for key in (*puts, *deletes)}
        rest = {"loaded_owner": seen.owner, "born": seen.born, **rest}
        return Change(namespace, seen.head, puts, deletes, checks, **rest)

    def message(self, *changes: Change, token: bytes = b"") -> Commit:
        """A commit of changes."""
        return Commit(token, next(self._versions).to_bytes(8, "big"), changes)

    def send(self, *changes: Change, token: bytes = b"") -> Committed | Moved:
        """Commit changes; gives the answer."""
        answer = self.ask(self.message(*changes, token=token))
        assert isinstance(answer, (Committed, Moved))
        return answer

    def commit(
        self, namespace: Namespace = A, puts: Mapping[str, Put] | None = None, deletes: Sequence[str] = (), **rest: Any
    ) -> None:
        """Commit a change to what is there now."""
        assert self.send(self.change(namespace, puts, deletes, **rest)) == Committed()

    def write(self, namespace: Namespace = A, **values: Any) -> None:
        """Commit values, or puts, to a namespace."""
        self.commit(namespace, {key: value if isinstance(value, Put) else put(value) for key, value in values.items()})

    def page(self, **terms: Any) -> Page:
        """The answer to a `List`, which has to be a `Page`."""
        page = self.ask(List(**terms))
        assert isinstance(page, Page)
        return page

    def names(self, **terms: Any) -> list[Namespace]:
        """The namespaces of a page."""
        return [listed.namespace for listed in self.page(**terms).listed]


#: Bytes that a memory may have in the tests of limits.
LIMIT = 20_000


def _limited(store: Any, max_bytes: int = LIMIT) -> Gantry:
    """A gantry of which sessions may not become large."""
    return Gantry(store, session="limited", scopes={"session": Scope(max_bytes=max_bytes)})


def _content(gantry: Gantry) -> dict[str, Any]:
    with gantry.memory() as memory:
        return dict(memory)


@dataclasses.dataclass
class _Noted:
    numbers: list[int] = dataclasses.field(default_factory=list)
    name: str = ""
    at: dt.date | None = None


@dataclasses.dataclass
class _Span:
    low: int = 0
    high: int = 0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


class StoreContract:
    """What holds for every store. Inherit it and give a `store` fixture.

    A store whose `clock` is None goes by its own; the tests that have to set it are then skipped. What a store truly cannot
    do is said by setting a class attribute to False, which the store's documentation has to say as well.

    Attributes:
        can_list: Whether `List` is answered.
        commits_together: Whether changes of several namespaces are written in one step, and several loaded from one moment.
    """

    can_list = True
    commits_together = True

    @pytest.fixture
    def store(self) -> Any:
        """The store to be tested, fresh for each test."""
        raise NotImplementedError(f"{type(self).__name__} has to define a fixture 'store' that returns its store")

    @pytest.fixture
    def talk(self, store: Any) -> Iterator[Talk]:
        """Speaks with the store."""
        bridge = bridge_to(store, owned=True)
        yield Talk(bridge)
        bridge.close()

    @pytest.fixture
    def clock(self, store: Any) -> Clock:
        """The store's clock, which the test sets."""
        if getattr(store, "clock", None) is None:
            pytest.skip("the store goes by a clock of its own")
        clock = Clock()
        store.clock = clock
        return clock

    @pytest.fixture
    def several(self) -> None:
        """Asked for by tests of more than one namespace at once."""
        if not self.commits_together:
            pytest.skip("the store does not commit namespaces together")

    @pytest.fixture
    def resent(self, talk: Talk) -> None:
        """Asked for by tests of what only a commit can meet whose answer was lost."""
        if not talk.bridge.resendable:
            pytest.skip("no answer of the store can be lost, so that nothing is sent to it again")

    @pytest.fixture
    def lists(self) -> None:
        """Asked for by tests of `List`."""
        if not self.can_list:
            pytest.skip("the store does not list")

    @pytest.fixture(params=["asyncio", *(["trio"] if importlib.util.find_spec("trio") else [])])
    def anyio_backend(self, request: pytest.FixtureRequest) -> Any:
        """The event loops that there are."""
        return request.param

    # Load.

    def test_namespace_that_is_not_there_loads_empty(self, talk: Talk) -> None:
        (snapshot,) = talk.load()

        assert (snapshot.values, snapshot.packed, snapshot.versions) == ({}, {}, {})
        assert (snapshot.head, snapshot.owner, snapshot.born) == (None, None, None)

    def test_load_tells_the_time_of_the_clock(self, talk: Talk, clock: Clock) -> None:
        assert talk.loaded().now == clock.now

    def test_load_answers_several_namespaces_in_the_order_asked(self, talk: Talk) -> None:
        talk.write(A, x=1)
        talk.write(B, y=[2])

        b, nothing, a, again = talk.load(B, NOWHERE, A, B)

        assert [list(each.values) for each in (a, b, nothing, again)] == [["x"], ["y"], [], ["y"]]
        assert b.value("y") == [2]

    def test_load_of_chosen_keys_gives_no_others(self, talk: Talk) -> None:
        talk.write(A, x=1, y=[2], z=put("3", ttl=1000.0))
        talk.write(B, x=1, y=2)

        a, b, none = talk.load(A, B, NOWHERE, keys=(("z", "y", "none"), None, ("x",)))

        assert list(a.values) == ["y", "z"]
        assert (set(a.versions), set(a.packed), set(a.expires_at)) == ({"y", "z"}, {"y"}, {"z"})
        assert (a.head, a.born) == (talk.load(A)[0].head, talk.load(A)[0].born)
        assert list(b.values) == ["x", "y"]
        assert (none.values, none.head) == ({}, None)

    def test_names_give_every_key_in_order(self, talk: Talk) -> None:
        talk.write(A, x=1, y=[2], z=3)
        talk.write(A, x=put(5, last=True))
        (whole,) = talk.load(A)

        a, none = talk.load(A, NOWHERE, keys=(("y",), ()), names=True)
        (bare,) = talk.load(A, keys=((),), names=True)

        assert (list(a.values), list(a.versions.items())) == (["y"], list(whole.versions.items()))
        assert list(a.versions) == ["y", "z", "x"]
        assert (bare.values, list(bare.versions)) == ({}, ["y", "z", "x"])
        assert none.versions == {}

    def test_names_are_without_what_is_expired(self, talk: Talk, clock: Clock) -> None:
        talk.write(A, x=put(1, ttl=10.0), y=1)
        talk.write(B, x=put(1, ttl=10.0))
        clock.now += 10

        a, b = talk.load(A, B, keys=(("x",), ("x",)), names=True)

        assert (a.values, list(a.versions)) == ({}, ["y"])
        assert (b.versions, b.head) == ({}, None)

    def test_snapshot_that_was_handed_out_never_changes(self, talk: Talk) -> None:
        talk.write(A, x=[1], y=1)
        (before,) = talk.load()

        talk.write(A, x=[1, 2], z=3)
        talk.commit(A, {}, ("y",))

        assert list(before.values) == ["x", "y"]
        assert before.value("x") == [1]

    def test_value_comes_out_as_a_private_copy(self, talk: Talk) -> None:
        talk.write(A, x={"deep": [1]})
        (snapshot,) = talk.load()

        snapshot.value("x")["deep"].append(2)

        assert snapshot.value("x") == talk.content()["x"] == {"deep": [1]}

    # Values, keys and ids.

    @pytest.mark.parametrize("value", VALUES, ids=_named)
    def test_value_comes_back_as_it_went_in(self, talk: Talk, value: Any) -> None:
        talk.write(A, x=value, within=[value])

        content = talk.content()

        assert type(content["x"]) is type(value)
        assert codec.pack(content["x"]) == codec.pack(value)
        assert codec.pack(content["within"]) == codec.pack([value])

    def test_large_value_comes_back_as_it_went_in(self, talk: Talk) -> None:
        value = [bytes(range(256)) * 2500, "é" * 100_000]
        talk.write(A, x=value, y=1)

        assert talk.content() == {"x": value, "y": 1}
        talk.write(A, x="small")
        assert talk.content() == {"x": "small", "y": 1}

    def test_hostile_keys_stay_apart(self, talk: Talk) -> None:
        talk.commit(A, {key: put(index) for index, key in enumerate(("", *HOSTILE_TEXTS))})

        assert list(talk.content()) == ["", *HOSTILE_TEXTS]
        for key in HOSTILE_TEXTS:
            (one,) = talk.load(A, keys=((key,),))
            assert list(one.values) == [key]
        talk.commit(A, {}, HOSTILE_TEXTS)
        assert talk.content() == {"": 0}

    @pytest.mark.parametrize("part", ["id", "scope", "app"])
    def test_hostile_ids_stay_apart(self, talk: Talk, part: str) -> None:
        parts = {"id": "i", "scope": "s", "app": "a"}
        namespaces = [Namespace(**{**parts, part: text}) for text in HOSTILE_TEXTS]
        for index, namespace in enumerate(namespaces):
            talk.write(namespace, x=index)

        assert [talk.content(namespace) for namespace in namespaces] == [{"x": index} for index in range(len(namespaces))]
        if self.can_list:
            assert set(talk.names()) == set(namespaces)

    def test_parts_of_an_address_do_not_run_together(self, talk: Talk) -> None:
        namespaces = [
            Namespace("session", "b", "a"),
            Namespace("b", "session", "a"),
            Namespace("session", "ab", ""),
            Namespace("sessiona", "b", ""),
            Namespace("session", "b", "a:session"),
            Namespace("session:b", "b", "a"),
        ]
        for index, namespace in enumerate(namespaces):
            talk.write(namespace, x=index)

        assert [talk.content(namespace) for namespace in namespaces] == [{"x": index} for index in range(len(namespaces))]

    # Commit.

    def test_commit_sets_head_and_versions_of_what_it_wrote(self, talk: Talk) -> None:
        talk.write(A, x=1, y=2)
        (first,) = talk.load()

        talk.write(A, y=3)
        (second,) = talk.load()

        assert first.versions == {"x": first.head, "y": first.head}
        assert second.versions == {"x": first.head, "y": second.head}
        assert second.head != first.head

    def test_first_head_stays_as_the_birth(self, talk: Talk) -> None:
        talk.write(A, x=1)
        (first,) = talk.load()
        talk.write(A, x=2)
        (second,) = talk.load()

        assert first.born == second.born == first.head

    def test_commit_writes_deletes_and_keeps_the_order(self, talk: Talk) -> None:
        talk.write(A, a=1, b=2, c=3)

        talk.write(A, b=20, d=4)
        talk.commit(A, {"a": put(10, last=True)}, ("c",))
        talk.write(A, e=5)

        assert list(talk.content().items()) == [("b", 20), ("d", 4), ("a", 10), ("e", 5)]

    def test_keys_stay_in_the_order_in_which_they_were_made(self, talk: Talk) -> None:
        keys = [f"k{index * 7919 % 1000}" for index in range(1000)]
        talk.commit(A, {key: put(1) for key in keys[:500]})
        talk.commit(A, {key: put(2) for key in keys})

        assert list(talk.content()) == keys

    def test_several_keys_that_go_last_follow_each_other(self, talk: Talk) -> None:
        talk.write(A, a=1, b=2, c=3)

        talk.commit(A, {"c": put(4, last=True), "a": put(5, last=True), "new": put(6)})

        assert list(talk.content()) == ["b", "c", "a", "new"]

    def test_key_may_turn_from_container_to_scalar_and_back(self, talk: Talk) -> None:
        talk.write(A, x=[1])
        talk.write(A, x=1)
        assert talk.content() == {"x": 1}

        talk.write(A, x=[2])

        assert talk.content() == {"x": [2]}

    def test_namespace_whose_keys_were_all_deleted_is_still_there(self, talk: Talk) -> None:
        talk.commit(A, {"x": put(1)}, owner="ada")
        (before,) = talk.load()

        talk.commit(A, {}, ("x",))

        (after,) = talk.load()
        assert (after.values, after.owner, after.born) == ({}, "ada", before.born)
        assert after.head not in (None, before.head)

    def test_moved_key_answers_with_what_is_there_and_writes_nothing(self, talk: Talk) -> None:
        talk.write(A, x=1, y=1)
        late = talk.change(A, {"x": put(2), "new": put(1)}, ("y",))
        talk.write(A, x=5)

        answer = talk.send(late)

        assert isinstance(answer, Moved)
        (snapshot,) = answer.snapshots
        (there,) = talk.load()
        assert (snapshot.head, snapshot.born, snapshot.owner) == (there.head, there.born, there.owner)
        assert {key: snapshot.value(key) for key in ("x", "y")} == {"x": 5, "y": 1}
        assert (snapshot.versions["x"], snapshot.version("new")) == (there.versions["x"], None)
        assert talk.content() == {"x": 5, "y": 1}

    def test_moved_tells_the_time_of_the_clock(self, talk: Talk, clock: Clock) -> None:
        late = talk.change(A, {"x": put(2)})
        talk.write(A, x=1)
        clock.now += 3

        answer = talk.send(late)

        assert isinstance(answer, Moved)
        assert answer.now == clock.now

    def test_change_that_moved_can_be_sent_again_for_what_is_there(self, talk: Talk) -> None:
        late = talk.change(A, {"x": put(2)})
        talk.write(A, x=1)
        answer = talk.send(late)
        assert isinstance(answer, Moved)
        (there,) = answer.snapshots

        again = Change(
            A, there.head, {"x": put(3)}, (), {"x": there.versions["x"]}, loaded_owner=there.owner, born=there.born
        )

        assert talk.send(again) == Committed()
        assert talk.content() == {"x": 3}

    def test_other_keys_of_a_namespace_may_move(self, talk: Talk) -> None:
        talk.write(A, x=1, y=1)
        mine = talk.change(A, {"x": put(2)})
        talk.write(A, y=5)

        assert talk.send(mine) == Committed()
        assert talk.content() == {"x": 2, "y": 5}

    def test_key_made_by_both_has_moved(self, talk: Talk) -> None:
        late = talk.change(A, {"x": put(2)})
        talk.write(A, x=1)

        assert isinstance(talk.send(late), Moved)

    def test_key_deleted_by_another_has_moved(self, talk: Talk) -> None:
        talk.write(A, x=1, y=1)
        late = talk.change(A, {"x": put(2)})
        talk.commit(A, {}, ("x",))

        assert isinstance(talk.send(late), Moved)
        assert talk.content() == {"y": 1}

    def test_key_deleted_and_made_again_alike_has_moved(self, talk: Talk) -> None:
        talk.write(A, x=1)
        late = talk.change(A, {"x": put(2)})
        talk.commit(A, {}, ("x",))
        talk.write(A, x=1)

        assert isinstance(talk.send(late), Moved)

    def test_key_that_is_only_checked_may_not_have_moved(self, talk: Talk) -> None:
        talk.write(A, x=1, y=1)
        mine = talk.change(A, {"y": put(2)})
        mine.checks["x"] = talk.load()[0].versions["x"]
        assert talk.send(mine) == Committed()

        late = talk.change(A, {"y": put(3)})
        late.checks["x"] = talk.load()[0].versions["x"]
        talk.write(A, x=2)

        assert isinstance(talk.send(late), Moved)
        assert talk.content() == {"x": 2, "y": 2}

    def test_deleting_what_another_deleted_too_can_be_checked_away(self, talk: Talk) -> None:
        talk.write(A, x=1, y=1)
        (seen,) = talk.load()
        talk.commit(A, {}, ("x",))

        mine = Change(A, seen.head, {}, ("x",), {"x": None}, born=seen.born)

        assert talk.send(mine) == Committed()
        assert talk.content() == {"y": 1}

    def test_all_changes_of_a_commit_are_written_or_none(self, talk: Talk, several: None) -> None:
        talk.write(A, x=1)
        talk.write(B, x=1)
        fits = talk.change(A, {"x": put(2)})
        moved = talk.change(B, {"x": put(2)})
        talk.write(B, x=5)

        answer = talk.send(fits, moved)

        assert isinstance(answer, Moved)
        assert [snapshot.value("x") for snapshot in answer.snapshots] == [1, 5]
        assert (talk.content(A), talk.content(B)) == ({"x": 1}, {"x": 5})

    def test_several_namespaces_are_written_in_one_commit(self, talk: Talk, several: None) -> None:
        assert talk.send(talk.change(A, {"x": put(1)}), talk.change(B, {"x": put([1])})) == Committed()

        a, b = talk.load(A, B)
        assert (a.value("x"), b.value("x")) == (1, [1])
        assert a.head == b.head

    def test_nobody_sees_half_of_a_commit(self, talk: Talk, several: None) -> None:
        talk.send(talk.change(A, {"n": put(0), "m": put(0)}), talk.change(B, {"n": put(0)}))
        torn: list[Any] = []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                a, b = talk.load(A, B)
                if len({a.values["n"], a.values["m"], b.values["n"]}) > 1 or a.head != b.head:
                    torn.append((a.values, b.values))

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        try:
            for n in range(1, 101):
                assert talk.send(talk.change(A, {"n": put(n), "m": put(n)}), talk.change(B, {"n": put(n)})) == Committed()
        finally:
            done.set()
            for reader in readers:
                reader.join()

        assert torn == []
        assert talk.content(B) == {"n": 100}

    def test_whole_is_moved_by_any_commit(self, talk: Talk) -> None:
        talk.write(A, x=1, y=1)
        late = talk.change(A, {"x": put(2)}, whole=True)
        talk.write(A, y=5, new=1)

        answer = talk.send(late)
        assert isinstance(answer, Moved)
        assert answer.snapshots[0].versions == talk.load()[0].versions
        assert talk.send(talk.change(A, {"x": put(2)}, whole=True)) == Committed()

    def test_whole_is_moved_where_there_was_no_namespace(self, talk: Talk) -> None:
        late = talk.change(A, {"x": put(2)}, whole=True)
        talk.write(A, y=5)

        assert isinstance(talk.send(late), Moved)

    def test_pure_check_writes_nothing_and_finds_what_moved(self, talk: Talk) -> None:
        talk.write(A, x=1)
        (before,) = talk.load()
        whole = talk.change(A, whole=True)
        keys = Change(A, before.head, {}, (), {"x": before.versions["x"]}, born=before.born)

        assert talk.send(whole) == talk.send(keys) == Committed()
        assert talk.load()[0].head == before.head

        talk.write(A, x=2)
        assert isinstance(talk.send(whole), Moved)
        assert isinstance(talk.send(keys), Moved)

    def test_pure_check_goes_along_with_a_write(self, talk: Talk, several: None) -> None:
        talk.write(A, x=1)
        (before,) = talk.load()

        assert talk.send(talk.change(A, whole=True), talk.change(B, {"y": put(1)})) == Committed()
        late = (talk.change(A, whole=True), talk.change(B, {"y": put(2)}))
        assert talk.load()[0].head == before.head
        talk.write(A, x=2)

        assert isinstance(talk.send(*late), Moved)
        assert talk.content(B) == {"y": 1}

    def test_touch_and_check_make_no_namespace(self, talk: Talk) -> None:
        talk.commit(A, touch=True)
        talk.commit(B, whole=True)

        assert [snapshot.head for snapshot in talk.load(A, B)] == [None, None]
        if self.can_list:
            assert talk.names() == []

    # Owner and birth.

    def test_owner_stays_until_another_is_named(self, talk: Talk) -> None:
        talk.commit(A, {"x": put(1)}, owner="ada")
        talk.write(A, x=2)
        assert talk.load()[0].owner == "ada"

        talk.commit(A, owner="")

        assert talk.load()[0].owner == ""

    def test_naming_an_owner_makes_a_namespace_and_moves_its_head(self, talk: Talk) -> None:
        talk.commit(A, owner="ada")
        (first,) = talk.load()
        assert (first.owner, first.head is None) == ("ada", False)

        talk.commit(A, owner="bob")

        assert talk.load()[0].head != first.head

    @pytest.mark.parametrize("owner", HOSTILE_TEXTS[:24], ids=ascii)
    def test_owner_is_kept_exactly(self, talk: Talk, owner: str) -> None:
        talk.commit(A, {"x": put(1)}, owner=owner)

        assert talk.load()[0].owner == owner

    def test_other_owner_than_the_loaded_one_has_moved(self, talk: Talk) -> None:
        talk.write(A, x=1)
        late = talk.change(A, {"y": put(1)})
        talk.commit(A, owner="ada")

        answer = talk.send(late)

        assert isinstance(answer, Moved)
        assert answer.snapshots[0].owner == "ada"
        assert talk.content() == {"x": 1}

    def test_owner_given_by_both_has_moved(self, talk: Talk) -> None:
        late = talk.change(A, {"y": put(1)}, owner="bob")
        talk.commit(A, {"x": put(1)}, owner="ada")

        assert isinstance(talk.send(late), Moved)
        assert talk.load()[0].owner == "ada"

    def test_namespace_that_was_made_anew_has_moved(self, talk: Talk) -> None:
        talk.write(A, x=1)
        late = talk.change(A, {"y": put(1)})
        talk.ask(Forget((A,)))
        talk.write(A, z=1)

        answer = talk.send(late)

        assert isinstance(answer, Moved)
        assert answer.snapshots[0].born == answer.snapshots[0].head != late.born
        assert talk.content() == {"z": 1}

    # Tokens.

    def test_commit_sent_again_is_committed_and_written_once(self, talk: Talk) -> None:
        sent = talk.message(talk.change(A, {"x": put(1)}), token=b"t" * 16)
        assert talk.ask(sent) == Committed()
        (before,) = talk.load()

        assert talk.ask(sent) == Committed()

        assert talk.load()[0].head == before.head

    def test_commit_sent_again_after_another_one_leaves_that_alone(self, talk: Talk) -> None:
        sent = talk.message(talk.change(A, {"x": put(1)}), token=b"t" * 16)
        talk.ask(sent)
        talk.send(talk.change(A, {"x": put(2)}), token=b"u" * 16)

        assert talk.ask(sent) == Committed()

        assert talk.content() == {"x": 2}

    def test_commit_that_had_moved_leaves_no_token(self, talk: Talk) -> None:
        talk.write(A, x=1)
        late = talk.message(talk.change(A, {"x": put(2)}), token=b"t" * 16)
        talk.write(A, x=5)

        assert isinstance(talk.ask(late), Moved)
        assert isinstance(talk.ask(late), Moved)

    @pytest.mark.parametrize("anew", [False, True])
    def test_commit_sent_again_after_an_erasure_brings_nothing_back(self, talk: Talk, resent: None, anew: bool) -> None:
        sent = talk.message(talk.change(A, {"x": put(1)}), token=b"t" * 16)
        assert talk.ask(sent) == Committed()
        talk.ask(Forget((A,)))
        if anew:
            talk.write(A, z=1)

        assert talk.ask(sent) == Committed()

        assert talk.content() == ({"z": 1} if anew else {})

    def test_empty_token_is_not_kept(self, talk: Talk) -> None:
        sent = talk.message(talk.change(A, {"x": put(1)}), token=b"")
        talk.ask(sent)
        talk.write(A, x=2)

        assert isinstance(talk.ask(sent), Moved)

    def test_token_is_known_in_each_namespace_that_was_written(self, talk: Talk, several: None) -> None:
        both = talk.message(talk.change(A, {"x": put(1)}), talk.change(B, {"x": put(1)}), token=b"t" * 16)
        talk.ask(both)
        talk.write(A, x=2)
        talk.write(B, x=2)

        assert talk.ask(both) == Committed()
        for namespace in (A, B):
            again = talk.message(Change(namespace, None, {"x": put(1)}, (), {"x": None}), token=b"t" * 16)
            assert talk.ask(again) == Committed()
            assert talk.content(namespace) == {"x": 2}

    def test_token_is_found_behind_a_namespace_that_was_only_checked(self, talk: Talk, several: None) -> None:
        sent = talk.message(talk.change(NOWHERE, whole=True), talk.change(A, {"x": put(1)}), token=b"t" * 16)
        talk.ask(sent)
        talk.write(A, x=2)

        assert talk.ask(sent) == Committed()
        assert talk.content() == {"x": 2}

    def test_token_is_kept_for_a_minute_and_then_forgotten(self, talk: Talk, clock: Clock) -> None:
        sent = talk.message(talk.change(A, {"x": put(1)}), token=b"t" * 16)
        talk.ask(sent)
        clock.now += 59.9
        talk.send(talk.change(A, {"x": put(2)}), token=b"u" * 16)
        assert talk.ask(sent) == Committed()

        clock.now += 0.1
        talk.send(talk.change(A, {"x": put(3)}), token=b"v" * 16)

        assert isinstance(talk.ask(sent), Moved)
        assert talk.content() == {"x": 3}

    # List and forget.

    def test_list_gives_what_there_is_ordered_by_digest(self, talk: Talk, lists: None) -> None:
        namespaces = [Namespace("session", f"s{index}", "app") for index in range(20)]
        for namespace in namespaces:
            talk.write(namespace, x=1)

        assert talk.names() == sorted(namespaces, key=lambda namespace: namespace.digest)

    def test_list_tells_app_scope_and_owner_apart(self, talk: Talk, lists: None) -> None:
        other = Namespace("session", "a", "other")
        for namespace, owner in ((A, "ada"), (B, None), (other, "ada"), (Namespace("x", "y", "z"), "")):
            talk.commit(namespace, {"x": put(1)}, owner=owner)

        assert set(talk.names()) == {A, B, other, Namespace("x", "y", "z")}
        assert set(talk.names(app="app")) == {A, B}
        assert set(talk.names(scope="session")) == {A, other}
        assert set(talk.names(owner="ada")) == {A, other}
        assert talk.names(owner="") == [Namespace("x", "y", "z")]
        assert talk.names(app="app", scope="session", owner="ada") == [A]
        assert talk.names(owner="bob") == talk.names(owner="ADA") == talk.names(scope="sess") == []
        owners = {listed.namespace: listed.owner for listed in talk.page().listed}
        assert owners == {A: "ada", B: None, other: "ada", Namespace("x", "y", "z"): ""}

    @pytest.mark.parametrize(("count", "pages"), [(0, 1), (2, 1), (3, 1), (4, 2), (7, 3)])
    def test_pages_hold_each_namespace_once(self, talk: Talk, lists: None, count: int, pages: int) -> None:
        for index in range(count):
            talk.write(Namespace("session", f"s{index}", "app"), x=1)
        seen: list[Namespace] = []
        after, asked = None, 0
        while True:
            page = talk.page(limit=3, after=after)
            seen += [listed.namespace for listed in page.listed]
            after, asked = page.after, asked + 1
            if after is None:
                break

        assert asked == pages
        assert seen == talk.names()
        assert len(seen) == count

    def test_expired_namespace_is_not_listed(self, talk: Talk, clock: Clock, lists: None) -> None:
        talk.write(A, x=put(1, ttl=10.0))
        talk.write(B, x=put(1, ttl=10.0), y=1)
        talk.commit(NOWHERE, {"x": put(1, ttl=10.0, slides=True)}, touch=True)

        clock.now += 10
        assert talk.names() == [B]
        talk.commit(B, {}, ("y",))

        assert talk.names() == [B]

    def test_namespace_without_keys_is_listed(self, talk: Talk, clock: Clock, lists: None) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0)}, owner="ada")
        talk.commit(A, {}, ("x",))
        clock.now += 100

        assert talk.names() == [A]

    def test_forget_erases_whatever_is_there(self, talk: Talk) -> None:
        talk.commit(A, {"x": put(1)}, owner="ada")
        talk.write(B, x=1)

        talk.ask(Forget((A, NOWHERE)))

        assert (talk.content(A), talk.content(B)) == ({}, {"x": 1})
        assert (talk.load(A)[0].head, talk.load(A)[0].owner) == (None, None)
        if self.can_list:
            assert talk.names() == [B]

    def test_forget_takes_everything_with_it(self, talk: Talk) -> None:
        talk.commit(A, {"x": put(1, ttl=1000.0), "y": put([1])}, owner="ada")
        talk.ask(Forget((A,)))
        talk.ask(Forget((A,)))

        talk.write(A, x=2)

        (snapshot,) = talk.load()
        assert (dict(snapshot.values), snapshot.expires_at, snapshot.owner) == ({"x": 2}, {}, None)

    def test_commit_of_what_was_forgotten_finds_another_head(self, talk: Talk) -> None:
        talk.write(A, x=1)
        late = talk.change(A, {"y": put(2)})
        talk.ask(Forget((A,)))

        answer = talk.send(late)

        assert isinstance(answer, Moved)
        assert answer.snapshots[0].head is None
        assert talk.content() == {}

    # Leases.

    def test_lease_has_one_holder_who_can_renew_it(self, talk: Talk, clock: Clock) -> None:
        assert talk.ask(Lease(A, b"me", 30.0)) == 0.0
        clock.now += 10
        assert talk.ask(Lease(A, b"you", 30.0)) == 20.0
        assert talk.ask(Lease(B, b"you", 30.0)) == 0.0

        assert talk.ask(Lease(A, b"me", 30.0)) == 0.0

        assert talk.ask(Lease(A, b"you", 30.0)) == 30.0

    def test_lease_ends_at_its_time(self, talk: Talk, clock: Clock) -> None:
        talk.ask(Lease(A, b"me", 30.0))

        clock.now += 30

        assert talk.ask(Lease(A, b"you", 30.0)) == 0.0
        assert talk.ask(Lease(A, b"me", 30.0)) == 30.0

    def test_lease_is_given_back_by_its_holder_alone(self, talk: Talk) -> None:
        assert talk.ask(Lease(A, b"me", 30.0)) == 0.0

        talk.ask(Release(A, b"you"))
        assert 0.0 < talk.ask(Lease(A, b"you", 30.0)) <= 30.0

        talk.ask(Release(A, b"me"))
        talk.ask(Release(A, b"me"))
        assert talk.ask(Lease(A, b"you", 30.0)) == 0.0

    def test_lease_touches_no_memory(self, talk: Talk) -> None:
        talk.ask(Lease(A, b"me", 30.0))
        assert talk.load()[0].head is None
        talk.write(A, x=1)
        talk.ask(Forget((A,)))

        assert talk.ask(Lease(A, b"you", 30.0)) > 0.0

    # Expiry.

    def test_key_is_gone_at_its_time(self, talk: Talk, clock: Clock) -> None:
        talk.write(A, x=put(1, ttl=10.0), y=put([1], ttl=20.0), z=1)
        (snapshot,) = talk.load()
        assert snapshot.expires_at == {"x": clock.now + 10, "y": clock.now + 20}

        clock.now += 9.75
        assert list(talk.content()) == ["x", "y", "z"]

        clock.now += 0.25
        assert list(talk.content()) == ["y", "z"]
        assert list(talk.load(A, keys=(("x", "y"),))[0].values) == ["y"]

        clock.now += 10
        (snapshot,) = talk.load()
        assert (list(snapshot.values), list(snapshot.versions), snapshot.packed) == (["z"], ["z"], {})

    def test_keep_leaves_the_deadline_and_none_takes_it_away(self, talk: Talk, clock: Clock) -> None:
        talk.write(A, x=put(1, ttl=10.0), y=put(1, ttl=10.0), z=put(1, ttl=10.0))
        clock.now += 5

        talk.write(A, x=put(2, ttl=KEEP), y=put(2, ttl=None), z=put(2, ttl=10.0))

        clock.now += 5
        assert talk.content() == {"y": 2, "z": 2}
        clock.now += 5
        assert talk.content() == {"y": 2}

    def test_key_may_change_between_fixed_and_sliding(self, talk: Talk, clock: Clock) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0), "y": put(1, ttl=10.0, slides=True)}, touch=True)

        talk.commit(A, {"x": put(2, ttl=20.0, slides=True), "y": put(2, ttl=20.0)}, touch=True)

        (snapshot,) = talk.load()
        assert (snapshot.slides, snapshot.expires_at) == ({"x": 20.0}, {"y": clock.now + 20})

    def test_key_that_was_deleted_leaves_no_deadline(self, talk: Talk, clock: Clock) -> None:
        talk.write(A, x=put(1, ttl=10.0), y=1)
        talk.commit(A, {}, ("x",))
        talk.write(A, x=2)

        clock.now += 10

        assert talk.content() == {"y": 1, "x": 2}

    def test_sliding_keys_live_from_the_last_touch(self, talk: Talk, clock: Clock) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0, slides=True), "y": put(1, ttl=12.0)}, touch=True)
        (before,) = talk.load()
        assert (before.slides, before.touched) == ({"x": 10.0}, clock.now)

        clock.now += 9
        talk.commit(A, touch=True)

        (after,) = talk.load()
        assert (after.head, after.born, after.touched) == (before.head, before.born, clock.now)
        clock.now += 9
        assert talk.content() == {"x": 1}
        clock.now += 1
        assert talk.content() == {}

    def test_touch_goes_along_with_a_write(self, talk: Talk, clock: Clock) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0, slides=True)}, touch=True)
        clock.now += 9

        talk.commit(A, {"y": put(1)}, touch=True)

        clock.now += 9
        assert talk.content() == {"x": 1, "y": 1}

    def test_commit_without_a_touch_restarts_nothing(self, talk: Talk, clock: Clock) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0, slides=True)}, touch=True)
        clock.now += 9

        talk.write(A, y=1)

        clock.now += 1
        assert talk.content() == {"y": 1}

    def test_touch_moves_nothing(self, talk: Talk) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0, slides=True)}, touch=True)
        mine = talk.change(A, {"x": put(2, slides=True)}, whole=True)

        talk.commit(A, touch=True)

        assert talk.send(mine) == Committed()

    @pytest.mark.parametrize("ttl", [KEEP, None, 5000.0], ids=repr)
    def test_key_that_expired_meanwhile_counts_as_unchanged(self, talk: Talk, clock: Clock, ttl: Any) -> None:
        talk.write(A, x=put(1, ttl=10.0), y=1, z=put(1, ttl=10.0))
        mine = talk.change(A, {"x": put(2, ttl=ttl), "y": put(2)}, ("z",))
        clock.now += 12

        assert talk.send(mine) == Committed()

        assert list(talk.content().items()) == [("y", 2), ("x", 2)]
        clock.now += 1000
        assert talk.content() == {"y": 2, "x": 2}

    def test_key_that_expired_is_not_brought_back_by_a_commit_elsewhere(self, talk: Talk, clock: Clock) -> None:
        talk.write(A, x=put(1, ttl=10.0), y=1)
        clock.now += 10

        talk.write(A, y=2)
        clock.now -= 10

        assert talk.content() == {"y": 2}

    def test_namespace_whose_last_key_expired_begins_anew(self, talk: Talk, clock: Clock) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0)}, owner="ada")
        (before,) = talk.load()
        clock.now += 10

        (snapshot,) = talk.load()
        assert (snapshot.head, snapshot.owner, snapshot.born) == (None, None, None)

        talk.write(A, y=1)
        (after,) = talk.load()
        assert (dict(after.values), after.owner) == ({"y": 1}, None)
        assert after.born == after.head != before.born

    def test_commit_to_a_namespace_that_expired_as_a_whole_has_moved(self, talk: Talk, clock: Clock) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0)}, owner="ada")
        late = talk.change(A, {"y": put(1)})
        clock.now += 10

        answer = talk.send(late)

        assert isinstance(answer, Moved)
        assert (answer.snapshots[0].head, answer.snapshots[0].owner) == (None, None)
        assert talk.content() == {}

    def test_touch_comes_too_late_for_what_is_expired(self, talk: Talk, clock: Clock) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0, slides=True)}, touch=True)
        talk.commit(B, {"x": put(1, ttl=10.0, slides=True), "y": put(1)}, touch=True)
        clock.now += 10

        talk.commit(A, touch=True)
        talk.commit(B, touch=True)

        assert (talk.content(A), talk.content(B)) == ({}, {"y": 1})
        assert talk.load(A)[0].head is None

    @pytest.mark.parametrize("seconds", [10, 12, 13, 1_000])
    def test_namespace_that_expired_can_be_written_again(self, talk: Talk, clock: Clock, seconds: float) -> None:
        talk.write(A, x=put(1, ttl=10.0))
        clock.now += seconds

        talk.write(A, x=put(2, ttl=10.0))
        clock.now += 9
        assert talk.content() == {"x": 2}
        talk.write(A, y=3)
        clock.now += 1_000_000

        assert talk.content() == {"y": 3}

    @pytest.mark.parametrize("ttl", [None, 1_000.0])
    def test_key_that_lives_longer_outlives_one_that_was_alone(self, talk: Talk, clock: Clock, ttl: float | None) -> None:
        talk.write(A, x=put(1, ttl=10.0))
        talk.write(A, y=put(2, ttl=ttl))
        clock.now += 100

        # A store may take this for the time to clear away what is expired.
        talk.write(B, z=3)

        assert talk.content(A) == {"y": 2}

    def test_clock_set_back_brings_nothing_back(self, talk: Talk, clock: Clock) -> None:
        talk.write(A, x=put(1, ttl=10.0), y=1)
        clock.now += 10
        assert talk.content() == {"y": 1}

        clock.now -= 5

        assert talk.content() == {"y": 1}
        assert talk.loaded().now == clock.now + 5

    def test_other_clock_holds_from_when_it_is_set(self, talk: Talk, store: Any, clock: Clock) -> None:
        talk.commit(A, {"x": put(1, ttl=10.0), "y": put(1, ttl=10.0, slides=True)}, touch=True)

        store.clock = Clock(clock.now + 9)
        assert set(talk.content()) == {"x", "y"}
        store.clock = Clock(clock.now - 5)
        talk.commit(A, touch=True)
        assert talk.load()[0].touched == clock.now - 5

        store.clock = Clock(clock.now + 5)
        assert talk.content() == {"x": 1}
        talk.write(A, z=1)
        store.clock = Clock(clock.now)
        assert set(talk.content()) == {"x", "z"}

    # Callers.

    @pytest.mark.anyio
    async def test_callers_on_an_event_loop_get_the_same_answers(self, talk: Talk) -> None:
        loaded = await talk.aask(Load((A,)))
        assert loaded.snapshots[0].head is None
        sent = Commit(b"", b"version1", (Change(A, None, {"x": put([1])}, (), {"x": None}),))

        assert await talk.aask(sent) == Committed()
        assert isinstance(await talk.aask(sent), Moved)
        assert await talk.aask(Lease(A, b"me", 5.0)) == 0.0
        await talk.aask(Release(A, b"me"))
        (snapshot,) = (await talk.aask(Load((A,)))).snapshots
        assert (snapshot.value("x"), snapshot.head) == ([1], b"version1")
        await talk.aask(Forget((A,)))
        assert (await talk.aask(Load((A,)))).snapshots[0].head is None

    @pytest.mark.anyio
    async def test_many_callers_on_an_event_loop_lose_nothing(self, talk: Talk, store: Any) -> None:
        async with Gantry(store, session="local") as gantry:

            @gantry.with_memory
            async def note(n: int, memory: Any) -> None:
                memory.setdefault("log", []).append(n)
                memory.add("n", 1)
                await anyio.sleep(0)

            async with anyio.create_task_group() as group:
                for n in range(20):
                    group.start_soon(note, n)

            async with gantry.memory() as memory:
                assert (sorted(memory["log"]), memory["n"]) == (list(range(20)), 20)

    def test_threads_lose_nothing(self, talk: Talk, store: Any) -> None:
        with Gantry(store, session="local") as gantry:

            @gantry.with_memory
            def note(n: int, memory: Any) -> None:
                memory.setdefault("log", []).append(n)
                memory.add("n", 1)

            start = threading.Barrier(4)

            def work(first: int) -> None:
                start.wait()
                for n in range(first, first + 25):
                    note(n)

            threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 100, 25)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

            with gantry.memory() as memory:
                assert (sorted(memory["log"]), memory["n"]) == (list(range(100)), 100)

    def test_layers_compartments_and_typed_state_stand_beside_each_other(self, talk: Talk, store: Any) -> None:
        with Gantry(store, session="s", user="u") as gantry:

            @gantry.with_memory(into="mine", scope="user", private=True)
            @gantry.with_memory(scope=("user", "session"))
            def remember(n: int, memory: _Noted, mine: _Noted) -> tuple[list[int], str, dt.date | None]:
                before = mine.at
                memory.numbers.append(n)
                mine.at = dt.date(2024, 2, n)
                return memory.numbers, memory.name, before

            with gantry.memory() as memory:
                memory.update(numbers=[0], name="far", other=(1, {2}))

            assert remember(1) == ([0, 1], "far", None)
            assert remember(2) == ([0, 1, 2], "far", dt.date(2024, 2, 1))

            with gantry.memory("user") as memory:
                assert memory == {"numbers": [0, 1, 2]}
                memory["name"] = 5
            with pytest.raises(MemoryValidationError) as caught:
                remember(3)
            assert caught.value.fields == ("name",)
            with gantry.memory("user") as memory:
                assert memory == {"numbers": [0, 1, 2], "name": 5}
                del memory["name"]
            with gantry.memory() as memory:
                assert memory == {"numbers": [0], "name": "far", "other": (1, {2})}

    def test_fields_that_depend_on_each_other_are_checked_together(self, talk: Talk, store: Any) -> None:
        with Gantry(store, session="s") as gantry:

            @gantry.with_memory
            def widen(memory: _Span) -> None:
                memory.high += 10

            @gantry.with_memory
            def narrow(memory: _Span) -> None:
                memory.high -= 5

            @gantry.with_memory
            def raise_low(memory: _Span) -> None:
                memory.low += 8
                with gantry.independent():
                    narrow()

            widen()
            with pytest.raises(MemoryConflictError) as caught:
                raise_low()
            assert isinstance(caught.value.__cause__, MemoryValidationError)
            with gantry.memory() as memory:
                assert memory == {"high": 5}

    # Memories that show several namespaces, or a part of one.

    def test_layers_fall_through_and_the_nearest_is_written(self, talk: Talk, store: Any) -> None:
        with Gantry(store, session="local", user="ada") as gantry:
            layers = gantry.with_memory(scope=("session", "user", "global"))(_run)
            session, user = (gantry.with_memory(scope=scope)(_run) for scope in ("session", "user"))
            user(lambda memory: memory.update(a=1, log=["u"], n=5))
            session(lambda memory: memory.update(a=2, b=2))

            def change(memory: Any) -> Any:
                memory["log"].append("s")
                memory.add("n")
                del memory["a"]
                with gantry.independent():
                    layers(lambda other: (other["log"].append("t"), other.add("n", 10)))
                return memory["a"], memory.origin("a")

            assert layers(change) == (1, "user")
            assert list(layers(dict).items()) == [("a", 1), ("log", ["u", "t", "s"]), ("n", 16), ("b", 2)]
            assert session(dict) == {"b": 2, "log": ["u", "t", "s"], "n": 16}
            assert user(dict) == {"a": 1, "log": ["u"], "n": 5}

    def test_layers_are_read_from_one_moment(self, talk: Talk, store: Any, several: None) -> None:
        with Gantry(store, session="local", user="ada") as gantry:

            @gantry.with_memory(scope="user", into="user")
            @gantry.with_memory(scope="session", into="session")
            def raise_both(session: Any, user: Any) -> None:
                session["mine"] = user["theirs"] = session.get("mine", 0) + 1

            look = gantry.with_memory(scope=("session", "user"))(_run)
            raise_both()
            stop = threading.Event()

            def work() -> None:
                while not stop.is_set():
                    raise_both()

            thread = threading.Thread(target=work)
            thread.start()
            try:
                seen = [look(dict) for _ in range(30)]
            finally:
                stop.set()
                thread.join()

            assert all(each["mine"] == each["theirs"] for each in seen)

    def test_compartment_is_seen_by_its_tool_alone(self, talk: Talk, store: Any) -> None:
        with Gantry(store, session="local", user="ada") as gantry:
            one, two = (gantry.with_memory(private=True, name=name)(_run) for name in ("one", "on"))
            plain = gantry.with_memory(_run)
            some = gantry.with_memory(keys=("a", "", "ea"))(_run)
            layers = gantry.with_memory(scope=("user", "session"))(_run)

            @gantry.with_session
            def names(session: SyncSession) -> list[str]:
                return session.keys()

            assert plain(dict) == {}
            one(lambda memory: memory.update({"a": 1, "ea": [1], "": "mine"}))
            assert [plain(dict), some(dict), layers(dict), two(dict), names()] == [{}, {}, {}, {}, []]
            plain(lambda memory: memory.update({"": 0, "a": [2]}))
            two(lambda memory: memory.update(a=3))

            for _ in range(2):
                assert one(dict) == {"a": 1, "ea": [1], "": "mine"}
                assert two(dict) == {"a": 3}
                assert plain(dict) == some(dict) == layers(dict) == {"": 0, "a": [2]}
                assert names() == ["", "a"]
            plain(lambda memory: memory.clear())
            one(lambda memory: (memory["ea"].append(2), memory.pop("a")))
            assert (one(dict), two(dict), plain(dict), names()) == ({"ea": [1, 2], "": "mine"}, {"a": 3}, {}, [])

    def test_some_keys_of_a_compartment_are_loaded_and_written(self, talk: Talk, store: Any) -> None:
        with Gantry(store, session="local") as gantry:
            whole = gantry.with_memory(private=True, name="tool")(_run)
            some = gantry.with_memory(private=True, name="tool", keys=("a", "b"))(_run)
            plain = gantry.with_memory(_run)
            whole(lambda memory: memory.update(a=1, hidden=[1]))
            plain(lambda memory: memory.update(b="another"))

            assert some(dict) == {"a": 1}
            some(lambda memory: memory.update(a=2, b=[3]))

            assert whole(dict) == {"a": 2, "hidden": [1], "b": [3]}
            assert plain(dict) == {"b": "another"}

    def test_compartment_is_erased_with_its_namespace(self, talk: Talk, store: Any) -> None:
        with Gantry(store, session="local") as gantry:
            own = gantry.with_memory(private=True, name="tool")(_run)
            own(lambda memory: memory.update(a=1))

            gantry.end_session("local")

            assert own(dict) == {}

    @pytest.mark.parametrize("keys", [None, ("a",)])
    def test_default_is_seen_beside_compartments_and_brings_nothing_back(
        self, talk: Talk, store: Any, keys: tuple[str, ...] | None
    ) -> None:
        with Gantry(store, session="local") as gantry:
            own = gantry.with_memory(private=True, name="tool")(_run)
            plain = gantry.with_memory(default={"a": [1]}, keys=keys)(_run)

            def body(memory: dict[str, Any]) -> None:
                memory["a"].append(2)
                gantry.end_session("local")

            own(lambda memory: memory.update(mine=1))
            assert plain(dict) == {"a": [1]}
            with pytest.raises(MemoryErasedError):
                plain(body)
            assert (own(dict), plain(dict)) == ({}, {"a": [1]})

            own(lambda memory: memory.update(mine=1))
            plain(lambda memory: memory["a"].append(2))
            assert (own(dict), plain(dict)) == ({"mine": 1}, {"a": [1, 2]})

    def test_threads_lose_nothing_in_compartments_and_show_nothing_of_them(self, talk: Talk, store: Any) -> None:
        with Gantry(store, session="local") as gantry:
            own = gantry.with_memory(private=True, name="tool")(_run)
            plain = gantry.with_memory(_run)
            seen: list[set[str]] = []
            start = threading.Barrier(2)

            def work(do: Any, look: bool) -> None:
                start.wait()
                for n in range(25):
                    do(lambda memory: (memory.setdefault("log", []).append(n), memory.add("n")))  # noqa: B023 - used at once
                    if look:
                        seen.append(do(set))

            threads = [threading.Thread(target=work, args=args) for args in ((own, False), (plain, True))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

            assert own(dict) == plain(dict) == {"log": list(range(25)), "n": 25}
            assert seen == [{"log", "n"}] * 25

    # How large a memory may be: what is loaded and what has moved is counted, so that a store has to tell it.

    def test_runaway_loop_is_refused_and_leaves_what_was_accepted_last(self, talk: Talk, store: Any) -> None:
        with _limited(store) as gantry:

            @gantry.with_memory
            def note(memory: Any) -> None:
                memory.setdefault("log", []).append("x" * 1000)
                memory[f"k{len(memory)}"] = "y" * 1000

            accepted = 0
            with pytest.raises(MemoryTooLargeError) as caught:  # noqa: PT012
                while accepted < 100:
                    note()
                    accepted += 1

            error = caught.value
            assert (error.key, error.limit, error.committed) == ("log", LIMIT, False)
            assert accepted == LIMIT // 2010
            content = _content(gantry)
            assert (len(content["log"]), len(content)) == (accepted, accepted + 1)

    @pytest.mark.anyio
    async def test_runaway_loop_of_an_async_tool_is_refused(self, talk: Talk, store: Any) -> None:
        async with _limited(store) as gantry:

            @gantry.with_memory
            async def note(memory: Any) -> None:
                memory.setdefault("log", []).append("x" * 3000)

            accepted = 0
            with pytest.raises(MemoryTooLargeError) as caught:  # noqa: PT012
                while accepted < 100:
                    await note()
                    accepted += 1

            assert (caught.value.key, caught.value.limit, accepted) == ("log", LIMIT, LIMIT // 3003)
            async with gantry.memory() as memory:
                assert memory == {"log": ["x" * 3000] * accepted}

    def test_what_others_have_written_counts_after_the_merge(self, talk: Talk, store: Any) -> None:
        with _limited(store) as gantry:
            with gantry.memory() as memory:
                memory.update(log=[], other="x" * (LIMIT // 2))

            with pytest.raises(MemoryTooLargeError) as caught, gantry.memory() as ours:  # noqa: PT012
                with gantry.independent(), gantry.memory() as theirs:
                    theirs["log"].append("t" * (LIMIT // 3))
                ours["log"].append("o" * (LIMIT // 3))

            assert caught.value.key == "log"
            assert LIMIT < caught.value.size < LIMIT // 2 + LIMIT // 3 * 2 + 50
            assert _content(gantry) == {"log": ["t" * (LIMIT // 3)], "other": "x" * (LIMIT // 2)}

    def test_memory_above_its_limit_may_shrink(self, talk: Talk, store: Any) -> None:
        with _limited(store) as gantry:
            with _limited(store, 10 * LIMIT) as before, before.memory() as memory:
                memory.update(doc="x" * LIMIT, log=[1] * LIMIT, n=1)

            with gantry.memory() as memory:
                memory["log"].pop()
                memory["n"] = 2
            with pytest.raises(MemoryTooLargeError), gantry.memory() as memory:
                memory["log"].append(1000)
            with gantry.memory() as memory:
                del memory["doc"]

            assert _content(gantry) == {"log": [1] * (LIMIT - 1), "n": 2}

    # Close.

    def test_closed_store_refuses_to_write(self, talk: Talk) -> None:
        talk.write(A, x=1)
        late = talk.message(talk.change(A, {"x": put(2)}))

        talk.bridge.close()

        with pytest.raises(StoreClosedError) as caught:
            talk.ask(late)
        assert caught.value.committed is False

    def test_store_can_be_closed_twice_and_unused(self, talk: Talk) -> None:
        talk.bridge.close()
        talk.bridge.close()
