"""Layers and compartments against a model: dicts in dicts, and calls one after the other.

Calls of tools of every kind are made up, with calls inside them that may fail. What each body sees at every step, what is
stored after each call, and which error there is, is compared with what plain dicts would say. Where calls run at once, no
item that was appended and nothing that was added may be lost.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Blocking

from agent_gantry_state import (
    FurtherScopeError,
    Gantry,
    MemoryConflictError,
    ReadOnlyMemoryError,
    StateError,
    UndeclaredKeyError,
)
from agent_gantry_state.pytest_plugin import Clock
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.once

KEYS = ("a", "b", "c", "d")
SOME = ("a", "b")
PEOPLE = (("s1", "ada"), ("s2", "ada"), ("s3", "bob"))
LAYERS = ("session", "user", "global")
TTL = 50.0
#: For each tool what its decorator says.
TOOLS: dict[str, dict[str, Any]] = {
    "session": {"scope": "session"},
    "user": {"scope": "user"},
    "global": {"scope": "global"},
    "layers": {"scope": LAYERS},
    "outer": {"scope": ("user", "global")},
    "two": {"scope": ["session", "global"]},
    "own": {"scope": "session", "private": True, "name": "own"},
    "own user": {"scope": "user", "private": True, "name": "own"},
    "own layers": {"scope": ("session", "user"), "private": True, "name": "own"},
    "other": {"scope": "session", "private": True, "name": "o"},
    "some": {"scope": "session", "keys": SOME},
    "some layers": {"scope": LAYERS, "keys": SOME},
    "some own": {"scope": "session", "private": True, "name": "own", "keys": SOME},
    "fixed": {"scope": "session", "ttl": TTL},
    "fixed layers": {"scope": LAYERS, "ttl": TTL},
    "fixed own": {"scope": "session", "private": True, "name": "own", "ttl": TTL},
    "read": {"scope": "session", "read_only": True},
    "read layers": {"scope": LAYERS, "read_only": True},
    "stacked": {"scope": LAYERS},
}
ABSENT = object()


class Failure(Exception):
    pass


def run(body, memory):
    return body(memory)


# The model.


class World:
    """What is stored: for each address keys, each with a value and a deadline."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.data: dict[Any, dict[str, tuple[Any, float | None]]] = {}

    def at(self, address: Any) -> dict[str, tuple[Any, float | None]]:
        return self.data.setdefault(address, {})

    def expire(self) -> None:
        for entries in self.data.values():
            for key, (_, deadline) in [*entries.items()]:
                if deadline is not None and deadline <= self.clock.now:
                    del entries[key]


class Shown:
    """What one memory of a body shows of the world."""

    def __init__(self, world: World, options: dict[str, Any], who: tuple[str, str]) -> None:
        scopes = options["scope"] if not isinstance(options["scope"], str) else (options["scope"],)
        ids = {"session": who[0], "user": who[1], "global": ""}
        part = options.get("name")
        self.world = world
        self.addresses = [(scope, ids[scope], part) for scope in scopes]
        self.ttl = options.get("ttl")
        self.keys = options.get("keys", KEYS)
        self.cut: set[str] = set()

    @property
    def near(self) -> dict[str, tuple[Any, float | None]]:
        return self.world.at(self.addresses[0])

    def below(self, key: str) -> tuple[Any, float | None] | None:
        for address in self.addresses[1:]:
            if key in self.world.at(address):
                return self.world.at(address)[key]
        return None

    def entry(self, key: str) -> tuple[Any, float | None] | None:
        if key in self.near:
            return self.near[key]
        return None if key in self.cut else self.below(key)

    def values(self) -> dict[str, Any]:
        return {key: entry[0] for key in self.keys if (entry := self.entry(key)) is not None}

    def write(self, key: str, value: Any, ttl: Any = ABSENT) -> None:
        before = self.near.get(key)
        ttl = ttl if ttl is not ABSENT or self.ttl is None else self.ttl
        if ttl is ABSENT:
            deadline = None if before is None else before[1]
        else:
            deadline = None if ttl is None else self.world.clock.now + ttl
        self.near[key] = (value, deadline)
        self.cut.discard(key)

    def delete(self, key: str) -> None:
        if key in self.near:
            del self.near[key]
        else:
            self.cut.add(key)

    def refresh(self) -> None:
        """Others have written: what they made stands, and what they deleted further out has not to be."""
        self.cut = {key for key in self.cut if key not in self.near and self.below(key) is not None}


# What bodies do.

_key = st.sampled_from(KEYS)
_who = st.sampled_from(PEOPLE)
_simple = st.one_of(
    st.tuples(st.sampled_from(("number", "list", "append", "add", "del", "pop", "same", "setdefault", "expire")), _key),
    st.tuples(st.sampled_from(("set_ttl", "set_ever")), _key),
    st.tuples(st.just("update"), st.tuples(_key, _key)),
    st.tuples(st.sampled_from(("popitem", "clear")), st.none()),
)
_end = st.sampled_from(("return", "return", "return", "raise", "write"))


def _call(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    op = _simple if inner.is_empty else st.one_of(_simple, _simple, _simple, st.tuples(st.just("call"), inner))
    ops = st.lists(op, max_size=5)
    return st.tuples(st.sampled_from(sorted(TOOLS)), st.none() | _who, ops, _end)


_calls = _call(_call(_call(st.nothing())))
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), _calls),
        st.tuples(st.just("call"), _calls),
        st.tuples(st.just("tick"), st.sampled_from((10.0, 49.0, 50.0))),
    ),
    min_size=1,
    max_size=6,
)


class Runner:
    """Has tools do what was made up, and the model as well."""

    def __init__(self, store: Any, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.world = World(clock)
        self.gantry = Gantry(store, **options)
        self.fresh = itertools.count(1)
        #: How many calls there are, one in the other, that give what they write a time to live.
        self.fixed = 0
        self.tools = {name: self.gantry.with_memory(**options)(run) for name, options in TOOLS.items() if name != "stacked"}

        @self.gantry.with_memory(**TOOLS["stacked"])
        @self.gantry.with_memory(private=True, name="stacked", into="own")
        def stacked(body, memory, own):
            return body(memory, own)

        self.tools["stacked"] = stacked

    def step(self, what: str, detail: Any) -> None:
        if what == "tick":
            self.clock.now += detail
            self.world.expire()
            return
        who = detail[1] or PEOPLE[0]
        with self.gantry.session(who[0], user=who[1]):
            self.call(detail, who)
        self.compare()

    def call(self, detail: Any, who: tuple[str, str]) -> None:
        """Make a call, in reality and in the model, and expect the same error."""
        name, _, ops, end = detail
        before = copy.deepcopy(self.world.data)
        expected: list[type[BaseException] | None] = [None]

        def body(memory: Any, own: Any = None) -> None:
            views = [(memory, Shown(self.world, TOOLS[name], who))]
            if own is not None:
                views.append((own, Shown(self.world, {"scope": "session", "name": "stacked"}, who)))
            self.agree(views)
            reads_only = "read_only" in TOOLS[name]
            for n, (what, argument) in enumerate(ops):
                if what == "call":
                    self.inner(argument, who, views)
                elif not reads_only:
                    getattr(self, f"do_{what}")(*views[n % len(views)], argument)
                self.agree(views)
            if end == "raise":
                expected[0] = Failure
                raise Failure
            if end == "write" and reads_only:
                memory["a"] = next(self.fresh)
                expected[0] = ReadOnlyMemoryError
            elif end == "write" and "keys" in TOOLS[name]:
                memory["hidden"] = next(self.fresh)
                expected[0] = UndeclaredKeyError
            elif any(shown.cut for _, shown in views):
                expected[0] = FurtherScopeError

        caught: BaseException | None = None
        self.fixed += "ttl" in TOOLS[name]
        try:
            self.tools[name](body)
        except (Failure, StateError) as error:
            caught = error
        finally:
            self.fixed -= "ttl" in TOOLS[name]
        assert (None if caught is None else type(caught)) is expected[0], repr(caught)
        if caught is not None:
            assert "\0" not in str(caught)
            self.world.data = before

    def inner(self, detail: Any, who: tuple[str, str], views: Any) -> None:
        kept = [(memory, key, value) for memory, _ in views for key, value in memory.items() if type(value) is list]
        other = detail[1]
        if other is None:
            self.call(detail, who)
        else:
            with self.gantry.session(other[0], user=other[1]):
                self.call(detail, other)
        for _, shown in views:
            shown.refresh()
        for memory, key, value in kept:
            if type(memory.get(key)) is list:
                assert memory[key] is value

    def agree(self, views: Any) -> None:
        for memory, shown in views:
            assert dict(memory) == shown.values()
            assert len(memory) == len(shown.values())

    def compare(self) -> None:
        """Whether everybody sees what the model says."""
        for who in PEOPLE:
            with self.gantry.session(who[0], user=who[1]):
                for name, options in TOOLS.items():
                    if name == "stacked":
                        continue
                    shown = Shown(self.world, options, who)
                    times = {key: shown.entry(key)[1] for key in shown.values()}  # type: ignore[index]
                    seen, left, order, origins = self.tools[name](
                        lambda memory: (
                            dict(memory),
                            {key: memory.ttl(key) for key in memory},
                            list(memory),
                            {key: memory.origin(key) for key in memory},
                        )
                    )
                    assert seen == shown.values()
                    assert left == {key: None if at is None else at - self.clock.now for key, at in times.items()}
                    for key, origin in origins.items():
                        assert key in self.world.at(next(each for each in shown.addresses if each[0] == origin))
                    if name == "layers":
                        expected: dict[str, None] = {}
                        for scope in reversed(LAYERS):
                            expected.update(dict.fromkeys(self.tools[scope](list)))
                        assert order == list(expected)

    # What a body may do, to a memory and to what the model shows of it.

    def do_number(self, memory: Any, shown: Shown, key: str) -> None:
        self._set(memory, shown, key, next(self.fresh) * 1_000_000)

    def do_list(self, memory: Any, shown: Shown, key: str) -> None:
        self._set(memory, shown, key, [next(self.fresh)])

    def _set(self, memory: Any, shown: Shown, key: str, value: Any) -> None:
        if key in shown.keys:
            memory[key] = copy.deepcopy(value)
            shown.write(key, value)

    def do_append(self, memory: Any, shown: Shown, key: str) -> None:
        value = shown.values().get(key)
        if type(value) is list:
            item = next(self.fresh)
            memory[key].append(item)
            shown.write(key, [*value, item])

    def do_setdefault(self, memory: Any, shown: Shown, key: str) -> None:
        if key in shown.keys and type(value := shown.values().get(key, [])) is list:
            item = next(self.fresh)
            memory.setdefault(key, []).append(item)
            shown.write(key, [*value, item])

    def do_add(self, memory: Any, shown: Shown, key: str) -> None:
        value = shown.values().get(key, 0)
        if self.fixed and shown.ttl is None:
            return
        if type(value) is list:
            with pytest.raises(TypeError):
                memory.add(key)
        elif key in shown.keys:
            n = next(self.fresh) / 1024
            assert memory.add(key, n) == value + n
            shown.write(key, value + n)

    def do_del(self, memory: Any, shown: Shown, key: str) -> None:
        if key in shown.values():
            del memory[key]
            shown.delete(key)
        else:
            with pytest.raises(KeyError):
                del memory[key]

    def do_pop(self, memory: Any, shown: Shown, key: str) -> None:
        there = key in shown.values()
        assert memory.pop(key, ABSENT) == shown.values().get(key, ABSENT)
        if there:
            shown.delete(key)

    def do_popitem(self, memory: Any, shown: Shown, _: None) -> None:
        if shown.values():
            last = list(memory)[-1]
            assert memory.popitem() == (last, shown.values()[last])
            shown.delete(last)

    def do_clear(self, memory: Any, shown: Shown, _: None) -> None:
        memory.clear()
        for key in [key for key in shown.values() if key in shown.near]:
            shown.delete(key)

    def do_same(self, memory: Any, shown: Shown, key: str) -> None:
        # Where a write starts the key's time anew, it is no matter whether anything else changes.
        if key in shown.values() and shown.ttl is None:
            memory[key] = copy.deepcopy(memory[key])

    def do_update(self, memory: Any, shown: Shown, keys: tuple[str, str]) -> None:
        new = {key: next(self.fresh) * 1_000_000 for key in keys if key in shown.keys}
        memory.update(new)
        for key, value in new.items():
            shown.write(key, value)

    def do_set_ttl(self, memory: Any, shown: Shown, key: str) -> None:
        # A time that a call gave a key stays when it assigns the key again, whatever the decorator says.
        if key in shown.keys and not self.fixed:
            value = next(self.fresh) * 1_000_000
            memory.set(key, value, ttl=20.0)
            shown.write(key, value, 20.0)

    def do_set_ever(self, memory: Any, shown: Shown, key: str) -> None:
        if key in shown.keys and not self.fixed:
            value = next(self.fresh) * 1_000_000
            memory.set(key, value, ttl=None)
            shown.write(key, value, None)

    def do_expire(self, memory: Any, shown: Shown, key: str) -> None:
        if self.fixed:
            return
        if key in shown.values():
            memory.expire(key, 30.0)
            shown.write(key, shown.values()[key], 30.0)
        else:
            with pytest.raises(KeyError):
                memory.expire(key, 30.0)


@pytest.fixture(params=["short", "general", "blocking", "sqlite"])
def runner(request) -> Any:
    """Makes a gantry and a model with nothing in them."""

    def make() -> Iterator[Runner]:
        clock = Clock(1_000_000.0)
        if request.param == "blocking":
            store: Any = Blocking(clock=clock)
        else:
            store = SQLiteStore(":memory:", clock=clock) if request.param == "sqlite" else MemoryStore(clock=clock)
        # A resolver of its own keeps a gantry off the short path.
        runner = Runner(store, clock, **({"resolvers": [lambda _: None]} if request.param == "general" else {}))
        yield runner
        runner.gantry.close()
        store.close()

    return make


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=_steps)
def test_calls_do_what_dicts_in_dicts_would(runner, steps):
    for made in runner():
        for what, detail in steps:
            made.step(what, detail)


# Calls at once.

#: Which log and which counters each of these tools writes to.
AT_ONCE = {"session": "s", "layers": "s", "two": "s", "fixed layers": "s", "own": "o", "own layers": "o", "other": "x"}
_act = st.sampled_from(("append", "add", "add_further"))
_several = st.sampled_from(sorted(AT_ONCE))


def _at_once(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    other = st.tuples(st.sampled_from(("inside", "beside")), inner)
    op = _act if inner.is_empty else st.one_of(_act, other)
    return st.tuples(_several, st.lists(op, max_size=4), st.booleans())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=st.lists(_at_once(_at_once(_at_once(st.nothing()))), min_size=1, max_size=3))
def test_calls_at_once_lose_nothing(runner, calls):
    for made in runner():
        gantry, tools, fresh = made.gantry, made.tools, made.fresh
        landed: list[tuple[str, str, int]] = []

        def perform(call: Any, landed: list[tuple[str, str, int]]) -> None:
            name, acts, fails = call
            done: list[tuple[str, str, int]] = []

            def body(memory: Any) -> None:
                for act in acts:
                    item = next(fresh)
                    if type(act) is tuple:
                        if act[0] == "inside":
                            perform(act[1], done)
                        else:
                            with gantry.independent():
                                perform(act[1], landed_outside)
                        continue
                    if act == "append":
                        memory.setdefault("log", []).append(item)
                    elif act == "add":
                        memory.add("n", item)
                    elif "layers" in name:
                        memory.add("further", item)
                    else:
                        continue
                    done.append((AT_ONCE[name], act, item))
                if fails:
                    raise Failure

            try:
                tools[name](body)
            except (Failure, MemoryConflictError):
                return
            landed.extend(done)

        landed_outside = landed
        with gantry.session("s1", user="ada"):
            for name in ("user", "own user"):
                tools[name](lambda memory: memory.update(log=[0], further=5))
            for call in calls:
                perform(call, landed)

            for name, where in (("session", "s"), ("own", "o"), ("other", "x")):
                seen = tools[name](dict)
                items, n, further = (
                    [i for w, a, i in landed if (w, a) == (where, act)] for act in ("append", "add", "add_further")
                )
                assert sorted(item for item in seen.get("log", []) if item) == sorted(items)
                assert seen.get("n", 0) == sum(n)
                assert seen.get("further", 5) == 5 + sum(further)
