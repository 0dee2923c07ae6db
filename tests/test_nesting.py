"""Calls inside calls: savepoints, parallel children, orphans, and what stands on its own.

The bodies here are written once, as coroutines. For a sync caller they are stepped through without any loop, where nothing
in them ever has to wait but in threads; for an async one they run on asyncio or trio.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import gc
import inspect
import itertools
import threading
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support import Blocking, Coroutines

from agent_gantry_state import (
    ExecutionContext,
    Gantry,
    Identity,
    MemoryConflictError,
    MemoryErasedError,
    MissingIdentityError,
    OrphanedCallError,
    Scope,
    Session,
    SessionOwnerError,
    StateWarning,
    StoreError,
    SyncExecutionContext,
    SyncSession,
    UnstorableValueError,
    merge,
    nesting,
)
from agent_gantry_state.memory import Memory
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.unit_of_work import NESTING, State, UnitOfWork

pytestmark = pytest.mark.once

WAIT = 10


class Boom(Exception):
    """The error of a tool's own."""


def drive(coroutine):
    """Step through a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("a sync body was suspended")


async def call(tool, *args, **kwargs):
    result = tool(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


class Gate:
    """Opened once; whoever waits for it goes on then."""

    def __init__(self, is_sync):
        self._event = threading.Event() if is_sync else anyio.Event()
        self._is_sync = is_sync

    def open(self):
        self._event.set()

    async def wait(self):
        if self._is_sync:
            assert self._event.wait(WAIT)
        else:
            with anyio.fail_after(WAIT):
                await self._event.wait()


class Outcome:
    """What became of a call that runs on its own."""

    def __init__(self, is_sync):
        self.over = Gate(is_sync)
        self.value = self.error = None

    async def note(self, function, *args):
        try:
            self.value = await call(function, *args)
        except Exception as error:
            self.error = error
        finally:
            self.over.open()

    async def result(self):
        await self.over.wait()
        if self.error is not None:
            raise self.error
        return self.value


class World:
    """A gantry, and the ways in which one kind of caller calls its tools."""

    def __init__(self, caller, way, **options):
        self.caller, self.way = caller, way
        self.is_sync = caller == "sync"
        self.now = 1000.0
        kind = {"plain": Blocking, "coroutines": Coroutines}.get(way, MemoryStore)
        self.store = kind(clock=lambda: self.now)
        if way == "general":
            # A resolver of its own keeps a gantry off the short path.
            options.setdefault("resolvers", [lambda _: None])
        self.gantry = Gantry(self.store, session="s1", user="ada", **options)
        self.bridge = self.gantry._wiring.settings.bridge
        self._threads = []

    def close(self):
        self.gantry.close()
        self.bridge.close()

    def tool(self, body: Any = None, **options: Any) -> Any:
        """*body*, a coroutine function, as a tool for this kind of caller."""
        if body is None:
            return lambda body: self.tool(body, **options)
        if self.way == "retried":
            options.setdefault("on_conflict", "retry")
            options.setdefault("retries", 0 if options["on_conflict"] == "raise" else 1)
        return self.gantry.with_memory(**options)(self.flavoured(body))

    def flavoured(self, body):
        if self.is_sync:

            def flavoured(*args, **kwargs):
                return drive(body(*args, **kwargs))
        else:

            async def flavoured(*args, **kwargs):
                await anyio.lowlevel.checkpoint()
                return await body(*args, **kwargs)

        flavoured.__signature__ = inspect.signature(body)
        return flavoured

    def run(self, main):
        if not self.is_sync:
            return anyio.run(main, backend=self.caller)
        try:
            return drive(main())
        finally:
            for thread in self._threads:
                thread.join(WAIT)
                assert not thread.is_alive()

    def gate(self):
        return Gate(self.is_sync)

    @contextlib.asynccontextmanager
    async def spawning(self):
        """Gives a function that has something run in the background, inside the call in which it is asked to."""
        if self.is_sync:

            def spawn(function, *args):
                outcome = Outcome(True)
                context = contextvars.copy_context()
                thread = threading.Thread(target=lambda: context.run(drive, outcome.note(function, *args)))
                thread.start()
                self._threads.append(thread)
                return outcome

            yield spawn
        else:
            async with anyio.create_task_group() as group:

                def spawn(function, *args):
                    outcome = Outcome(False)
                    group.start_soon(outcome.note, function, *args)
                    return outcome

                yield spawn

    async def parallel(self, *functions):
        """Call functions at the same time; what each gave or raised."""
        async with self.spawning() as spawn:
            outcomes = [spawn(function) for function in functions]
            for outcome in outcomes:
                await outcome.over.wait()
        return [outcome.error or outcome.value for outcome in outcomes]

    def meeting(self, count):
        """An async function in which *count* calls wait for each other."""
        gate, arrived, lock = self.gate(), [], threading.Lock()

        async def meet():
            with lock:
                arrived.append(None)
                full = len(arrived) == count
            if full:
                gate.open()
            await gate.wait()

        return meet

    async def remembered(self, scope="session", **who):
        if self.is_sync:
            with self.gantry.memory(scope, **who) as memory:
                return dict(memory)
        async with self.gantry.memory(scope, **who) as memory:
            return dict(memory)

    async def ttls(self, scope="session"):
        if self.is_sync:
            with self.gantry.memory(scope) as memory:
                return {key: memory.ttl(key) for key in memory}
        async with self.gantry.memory(scope) as memory:
            return {key: memory.ttl(key) for key in memory}

    async def put(self, scope="session", /, **values):
        async with self.gantry.memory(scope) if not self.is_sync else _sync(self.gantry.memory(scope)) as memory:
            memory.update(values)

    async def forget(self, scope="session"):
        if self.is_sync:
            self.gantry.forget(scope)
        else:
            await self.gantry.aforget(scope)


@contextlib.asynccontextmanager
async def _sync(block):
    with block as memory:
        yield memory


WAYS = ("short", "retried", "general", "plain", "coroutines")


@pytest.fixture(params=["sync", "asyncio", "trio"])
def caller(request):
    return request.param


@pytest.fixture(params=WAYS)
def world(request, caller):
    made = World(caller, request.param)
    yield made
    made.close()
    assert nesting.CURRENT.get() is None


@pytest.fixture(params=["short", "general"])
def inline_world(request, caller):
    made = World(caller, request.param)
    yield made
    made.close()


def committed(gantry, scope="session"):
    """What is in the store, asked from outside of every call."""
    found = []

    def ask():
        with gantry.memory(scope, session="s1", user="ada") as memory:
            found.append(dict(memory))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(WAIT)
    return found[0]


# A savepoint.


def test_child_sees_the_outers_uncommitted_writes(world):
    seen = []

    @world.tool
    async def child(memory):
        seen.append(copy.deepcopy(dict(memory)))

    @world.tool
    async def parent(memory):
        memory["a"] = 1
        memory["log"] = [1]
        memory["log"].append({"x": 2})
        del memory["old"]
        await call(child)
        seen.append(committed(world.gantry))

    async def main():
        await world.put(old=0, kept="k")
        await call(parent)

    world.run(main)

    assert seen == [{"kept": "k", "a": 1, "log": [1, {"x": 2}]}, {"old": 0, "kept": "k"}]


def test_what_a_child_wrote_is_durable_only_when_the_outermost_returns(world):
    seen = []

    @world.tool
    async def inner(memory):
        memory["inner"] = 1

    @world.tool
    async def middle(memory):
        await call(inner)
        seen.append(committed(world.gantry))
        memory["middle"] = memory["inner"] + 1

    @world.tool
    async def parent(memory):
        await call(middle)
        seen.append((committed(world.gantry), dict(memory)))

    world.run(lambda: call(parent))

    assert seen == [{}, ({}, {"inner": 1, "middle": 2})]
    assert committed(world.gantry) == {"inner": 1, "middle": 2}


def test_a_childs_failure_undoes_only_its_own(world):
    start = {"a": 1, "log": [1, {"deep": [1]}], "tags": {1}, "gone": "here", "n": 5}

    @world.tool
    async def child(memory):
        memory["a"] = 2
        memory["log"][1]["deep"].append(2)
        memory["log"].append(3)
        memory["tags"].add(2)
        del memory["gone"]
        memory["gone"] = "again"
        memory.add("n", 7)
        memory.set("new", 1, ttl=5)
        memory.expire("a", 5)
        memory.pop("mine")
        raise Boom

    @world.tool
    async def parent(memory):
        memory["mine"] = [0]
        with pytest.raises(Boom):
            await call(child)
        memory["mine"].append(1)
        return copy.deepcopy(dict(memory)), [memory.ttl(key) for key in memory]

    async def main():
        await world.put(**copy.deepcopy(start))
        return await call(parent), await world.remembered(), await world.ttls()

    (seen, ttls), after, ttls_after = world.run(main)

    assert seen == after == {**start, "mine": [0, 1]}
    assert list(seen) == list(after) == [*start, "mine"]
    assert ttls == list(ttls_after.values()) == [None] * 6


def test_a_failed_middle_takes_back_what_its_own_child_did(world):
    @world.tool
    async def inner(memory):
        memory["log"].append("inner")
        memory["inner"] = 1

    @world.tool
    async def middle(memory):
        memory["log"].append("middle")
        await call(inner)
        raise Boom

    @world.tool
    async def parent(memory):
        memory["log"] = ["parent"]
        with pytest.raises(Boom):
            await call(middle)
        await call(inner)

    world.run(lambda: call(parent))

    assert committed(world.gantry) == {"log": ["parent", "inner"], "inner": 1}


@pytest.mark.parametrize("scope", ["session", "user"])
def test_the_outers_failure_takes_all_back(world, scope):
    @world.tool(scope=scope)
    async def child(memory):
        memory["child"] = memory.get("child", 0) + 1

    @world.tool
    async def parent(memory):
        memory["parent"] = 1
        await call(child)
        await call(child)
        raise Boom

    async def main():
        await world.put("user", there=1)
        with pytest.raises(Boom):
            await call(parent)

    world.run(main)

    assert committed(world.gantry) == {}
    assert committed(world.gantry, "user") == {"there": 1}


def test_an_outer_that_cannot_be_stored_takes_its_children_back(world):
    @world.tool(scope="user")
    async def child(memory):
        memory["child"] = 1

    @world.tool
    async def parent(memory):
        await call(child)
        memory["bad"] = object()

    async def main():
        with pytest.raises(UnstorableValueError):
            await call(parent)

    world.run(main)

    assert committed(world.gantry, "user") == {}


def test_a_child_that_cannot_be_stored_fails_alone(world):
    @world.tool
    async def child(memory):
        memory["log"].append(1)
        memory["bad"] = object()

    @world.tool
    async def parent(memory):
        memory["log"] = []
        with pytest.raises(UnstorableValueError, match="bad"):
            await call(child)

    world.run(lambda: call(parent))

    assert committed(world.gantry) == {"log": []}


def test_another_namespace_is_held_only_for_the_child_and_committed_with_the_parent(world):
    seen = []

    @world.tool(scope="user")
    async def write(value, memory):
        memory["v"] = value
        memory.setdefault("log", []).append(value)

    @world.tool(scope="user")
    async def read(memory):
        return dict(memory)

    @world.tool
    async def parent(memory):
        memory["p"] = 1
        await call(write, 1)
        seen.append((await call(read), committed(world.gantry, "user"), dict(memory)))
        await call(write, 2)

    world.run(lambda: call(parent))

    assert seen == [({"v": 1, "log": [1]}, {}, {"p": 1})]
    assert committed(world.gantry) == {"p": 1}
    assert committed(world.gantry, "user") == {"v": 2, "log": [1, 2]}


def test_two_namespaces_of_children_are_committed_in_one_step(world):
    """A conflict in the namespace that only a child used stops the parent's, too."""
    begun = []

    @world.tool(scope="user", on_conflict="raise")
    async def child(memory):
        memory["v"] = "child"

    @world.tool(on_conflict="raise")
    async def parent(memory):
        memory["p"] = 1
        await call(child)
        if not begun:
            begun.append(None)
            with world.gantry.independent():
                await world.put("user", v="stranger")

    async def main():
        with pytest.raises(MemoryConflictError) as caught:
            await call(parent)
        return caught.value

    error = world.run(main)

    assert error.by_scope == {"user": ("v",)}
    assert committed(world.gantry) == {}
    assert committed(world.gantry, "user") == {"v": "stranger"}


def test_a_parent_with_two_memories_and_children_of_each(world):
    def stacked(body):
        return world.gantry.with_memory(scope="user", into="user")(world.gantry.with_memory(world.flavoured(body)))

    @stacked
    async def both(memory, user):
        memory["n"] = user["n"] = memory.get("n", 0) + 1
        raise_now = memory["n"] == 2
        if raise_now:
            raise Boom

    @world.tool(scope="user")
    async def only_user(memory):
        memory["log"] = [memory["n"]]

    @stacked
    async def parent(memory, user):
        await call(both)
        with pytest.raises(Boom):
            await call(both)
        await call(only_user)
        return dict(memory), dict(user)

    assert world.run(lambda: call(parent)) == ({"n": 1}, {"n": 1, "log": [1]})
    assert (committed(world.gantry), committed(world.gantry, "user")) == ({"n": 1}, {"n": 1, "log": [1]})


def test_a_recursive_tool_goes_down_and_comes_back(world):
    @world.tool
    async def dive(depth, memory):
        memory.setdefault("way", []).append(depth)
        if depth:
            await call(dive, depth - 1)
        memory["way"].append(depth)
        return len(memory["way"])

    assert world.run(lambda: call(dive, 25)) == 52
    assert committed(world.gantry) == {"way": [*range(25, -1, -1), *range(26)]}


def test_a_read_only_child_writes_nothing(world):
    @world.tool
    async def child(memory):
        return sorted(memory)

    @world.tool
    async def parent(memory):
        return await call(child)

    async def main():
        await world.put(a=1)
        return await call(parent), len(getattr(world.store, "inner", world.store))

    assert world.run(main) == (["a"], 1)


# Inside the parent's own containers.


def test_containers_that_the_parent_holds_stay_the_same_and_show_the_change(world):
    @world.tool
    async def child(memory):
        memory["list"].append(2)
        memory["dict"]["b"] = 2
        memory["set"].add(2)
        memory["set"].discard(1)

    @world.tool
    async def parent(memory):
        held = memory["list"], memory["dict"], memory["set"]
        await call(child)
        assert all(there is mine for there, mine in zip(memory.values(), held, strict=True))
        held[0].append(3)
        held[1]["c"] = 3
        held[2].add(3)

    async def main():
        await world.put(list=[1], dict={"a": 1}, set={1})
        await call(parent)

    world.run(main)

    assert committed(world.gantry) == {"list": [1, 2, 3], "dict": {"a": 1, "b": 2, "c": 3}, "set": {2, 3}}


def test_nested_containers_that_the_parent_holds_stay_alive(world):
    @world.tool
    async def child(memory):
        memory["tree"]["rows"][1]["cells"].append("child")
        memory["tree"]["rows"].append({"cells": []})
        memory["tree"]["new"] = [1]
        # Assigned anew, and yet the parent's own.
        memory["flat"] = [*memory["flat"], "child"]

    @world.tool
    async def parent(memory):
        memory["tree"] = {"rows": [{"cells": ["a"]}, {"cells": ["b"]}]}
        memory["flat"] = flat = ["parent"]
        tree, rows = memory["tree"], memory["tree"]["rows"]
        cells = rows[1]["cells"]
        await call(child)
        assert (memory["tree"], memory["tree"]["rows"], memory["tree"]["rows"][1]["cells"]) == (tree, rows, cells)
        assert memory["tree"] is tree
        assert tree["rows"] is rows
        assert rows[1]["cells"] is cells
        assert memory["flat"] is flat
        cells.append("parent")
        tree["new"].append(2)
        flat.append("parent again")

    world.run(lambda: call(parent))

    assert committed(world.gantry) == {
        "tree": {"rows": [{"cells": ["a"]}, {"cells": ["b", "child", "parent"]}, {"cells": []}], "new": [1, 2]},
        "flat": ["parent", "child", "parent again"],
    }


def test_no_alias_leaks_between_a_child_and_its_parent(world):
    leaked = []

    @world.tool
    async def child(memory):
        memory["new"] = [1]
        leaked.extend((memory, memory["new"], memory["old"]))
        memory["old"].append("child")
        return memory["new"]

    @world.tool
    async def parent(memory):
        memory["old"] = []
        result = await call(child)
        result.append("leak")
        leaked[0]["late"] = 1
        leaked[1].append("leak")
        leaked[2].append("leak")
        return copy.deepcopy(dict(memory))

    expected = {"old": ["child"], "new": [1]}
    assert world.run(lambda: call(parent)) == expected
    assert committed(world.gantry) == expected


def test_a_child_deletes_and_remakes_keys(world):
    @world.tool
    async def delete(memory):
        del memory["a"], memory["mine"]
        return list(memory)

    @world.tool
    async def remake(memory):
        memory["a"] = "again"
        memory["mine"] = "again"
        return list(memory)

    @world.tool
    async def both(memory):
        del memory["b"]
        memory["b"] = "again"

    @world.tool
    async def parent(memory):
        memory["mine"] = 1
        orders = [list(memory), await call(delete), list(memory), await call(remake), list(memory)]
        await call(both)
        return [*orders, list(memory)]

    async def main():
        await world.put(a=1, b=2, c=3)
        orders = await call(parent)
        return [*orders, list(await world.remembered())]

    assert world.run(main) == [
        ["a", "b", "c", "mine"],
        ["b", "c"],
        ["b", "c"],
        ["b", "c", "a", "mine"],
        ["b", "c", "a", "mine"],
        ["c", "a", "mine", "b"],
        ["c", "a", "mine", "b"],
    ]


def test_a_deletion_by_a_child_reaches_the_store(world):
    @world.tool
    async def child(memory):
        memory.pop("a")
        memory.pop("box")

    @world.tool
    async def cleared(memory):
        memory.clear()
        memory["z"] = 1

    @world.tool
    async def parent(memory):
        await call(child)
        return dict(memory)

    @world.tool
    async def clearing(memory):
        memory["y"] = 1
        await call(cleared)

    async def main():
        await world.put(a=1, box=[1], c=3)
        seen = [await call(parent), await world.remembered()]
        await call(clearing)
        return [*seen, await world.remembered()]

    assert world.run(main) == [{"c": 3}, {"c": 3}, {"z": 1}]


def test_order_of_keys_is_that_of_one_dict(world):
    @world.tool
    async def child(memory):
        memory["d"] = 4
        memory["a"] = "updated"
        memory["c"] = 3
        memory["box"] = {"z": 1, "a": 2}

    @world.tool
    async def parent(memory):
        memory["b"] = 2
        await call(child)
        memory["e"] = 5
        memory["box"]["m"] = 3

    async def main():
        await world.put(a=1)
        await call(parent)
        return await world.remembered()

    after = world.run(main)

    assert list(after) == ["a", "b", "d", "c", "box", "e"]
    assert list(after["box"]) == ["z", "a", "m"]


def test_a_child_reads_nothing_stale_after_the_parent_changed_in_place(world):
    @world.tool
    async def child(memory):
        return copy.deepcopy(dict(memory))

    @world.tool
    async def parent(memory):
        seen = [await call(child)]
        memory["log"].append(1)
        memory["box"]["x"]["y"] = 1
        seen.append(await call(child))
        memory["log"].clear()
        del memory["box"]
        memory["n"] = 3
        seen.append(await call(child))
        memory["n"] = 4
        return [*seen, await call(child)]

    async def main():
        await world.put(log=[0], box={"x": {}})
        return await call(parent)

    assert world.run(main) == [
        {"log": [0], "box": {"x": {}}},
        {"log": [0, 1], "box": {"x": {"y": 1}}},
        {"log": [], "n": 3},
        {"log": [], "n": 4},
    ]


def test_a_value_that_only_changes_its_type_is_applied(world):
    @world.tool
    async def child(memory):
        memory["a"], memory["b"], memory["c"] = True, 1.0, (1,)
        memory["d"]["k"] = True

    @world.tool
    async def parent(memory):
        memory.update(a=1, b=1, c=[1], d={"k": 1})
        await call(child)
        return [type(memory[key]) for key in "abc"] + [type(memory["d"]["k"])]

    async def main():
        return await call(parent), [type(value) for value in (await world.remembered()).values()]

    assert world.run(main) == ([bool, float, tuple, bool], [bool, float, tuple, dict])


# Children at the same time.


def test_parallel_children_merge_as_strangers_would(world):
    meet = world.meeting(3)

    @world.tool
    async def child(name, memory):
        memory["log"].append(name)
        memory.setdefault("fresh", []).append(name)
        memory.add("n", 1)
        memory["box"][name] = {"by": name}
        memory["tags"].add(name)
        memory[name] = 1
        await meet()

    @world.tool
    async def parent(memory):
        memory.update(log=["p"], n=10, box={"p": 0}, tags={"p"})
        held = memory["log"], memory["box"], memory["tags"]
        results = await world.parallel(*(lambda name=name: child(name) for name in "abc"))
        assert results == [None] * 3
        assert (memory["log"] is held[0], memory["box"] is held[1], memory["tags"] is held[2]) == (True,) * 3
        memory["log"].append("end")

    world.run(lambda: call(parent))
    after = committed(world.gantry)

    assert (after["log"][0], after["log"][-1], sorted(after["log"][1:-1])) == ("p", "end", ["a", "b", "c"])
    assert sorted(after["fresh"]) == ["a", "b", "c"]
    assert after["n"] == 13
    assert after["box"] == {"p": 0, "a": {"by": "a"}, "b": {"by": "b"}, "c": {"by": "c"}}
    assert after["tags"] == {"p", "a", "b", "c"}
    assert [after[name] for name in "abc"] == [1, 1, 1]


def test_the_same_scalar_from_two_children_conflicts_in_one_of_them_only(world):
    meet = world.meeting(2)

    @world.tool(on_conflict="raise")
    async def child(value, memory):
        memory["x"] = value
        memory["log"].append(value)
        await meet()

    @world.tool
    async def parent(memory):
        memory.update(x=0, log=[])
        results = await world.parallel(lambda: child(1), lambda: child(2))
        (error,) = [result for result in results if result is not None]
        return error, dict(memory)

    error, seen = world.run(lambda: call(parent))

    assert type(error) is MemoryConflictError
    assert error.keys == ("x",)
    assert seen in ({"x": 1, "log": [1]}, {"x": 2, "log": [2]})
    assert committed(world.gantry) == seen


def test_a_child_that_the_parent_overtook_conflicts_and_the_parents_write_stands(world):
    begun, go = world.gate(), world.gate()

    @world.tool(on_conflict="raise")
    async def child(memory):
        memory["x"] = "child"
        begun.open()
        await go.wait()

    @world.tool
    async def parent(memory):
        async with world.spawning() as spawn:
            outcome = spawn(child)
            await begun.wait()
            memory["x"] = "parent"
            go.open()
            with pytest.raises(MemoryConflictError):
                await outcome.result()

    world.run(lambda: call(parent))

    assert committed(world.gantry) == {"x": "parent"}


def test_a_declared_merge_is_used_between_children(world):
    meet = world.meeting(2)

    @world.tool(merge={"best": merge.max})
    async def child(value, memory):
        memory["best"] = value
        await meet()

    @world.tool
    async def parent(memory):
        memory["best"] = 1
        assert await world.parallel(lambda: child(7), lambda: child(5)) == [None, None]
        return memory["best"]

    assert world.run(lambda: call(parent)) == 7
    assert committed(world.gantry) == {"best": 7}


def test_a_declared_merge_of_a_child_holds_at_the_outers_commit(world):
    strangers = []

    @world.tool(merge={"best": merge.max})
    async def child(value, memory):
        memory["best"] = value

    @world.tool(on_conflict="raise")
    async def parent(memory):
        await call(child, 5)
        if not strangers:
            strangers.append(None)
            with world.gantry.independent():
                await call(child, 9)

    async def main():
        await world.put(best=1)
        await call(parent)

    world.run(main)

    assert committed(world.gantry) == {"best": 9}


def test_a_failed_childs_declared_merge_does_not_hold(world):
    strangers = []

    @world.tool(merge={"best": merge.max})
    async def child(memory):
        memory["best"] = 7
        raise Boom

    @world.tool(on_conflict="raise")
    async def parent(memory):
        memory["best"] = 5
        with contextlib.suppress(Boom):
            await call(child)
        if not strangers:
            strangers.append(None)
            with world.gantry.independent():
                await world.put(best=9)

    async def main():
        await world.put(best=1)
        with pytest.raises(MemoryConflictError):
            await call(parent)

    world.run(main)

    assert committed(world.gantry) == {"best": 9}


def test_a_child_that_retries_runs_again_on_the_parents_present_state(world):
    begun, go, runs = world.gate(), world.gate(), []

    @world.tool(on_conflict="retry", retries=3)
    async def child(memory):
        runs.append(memory["x"])
        first = len(runs) == 1
        memory["x"] = memory["x"] + "c"
        memory.setdefault("log", []).append(memory["x"])
        if first:
            begun.open()
            await go.wait()

    @world.tool
    async def parent(memory):
        memory["x"] = "p"
        async with world.spawning() as spawn:
            outcome = spawn(child)
            await begun.wait()
            memory["x"] = "q"
            go.open()
            await outcome.result()
        return dict(memory)

    assert world.run(lambda: call(parent)) == {"x": "qc", "log": ["qc"]}
    assert runs == ["p", "q"]
    assert committed(world.gantry) == {"x": "qc", "log": ["qc"]}


def test_a_parent_that_retries_takes_its_childrens_first_run_back(world):
    strangers = []

    @world.tool
    async def child(memory):
        memory.add("n", 1)
        memory.setdefault("log", []).append("child")

    @world.tool(on_conflict="retry", retries=3)
    async def parent(memory):
        memory["x"] = memory.get("x", 0) + 1
        await call(child)
        if not strangers:
            strangers.append(None)
            with world.gantry.independent():
                await world.put(x=100)

    world.run(lambda: call(parent))

    assert committed(world.gantry) == {"x": 101, "n": 1, "log": ["child"]}


def test_parallel_children_in_another_namespace(world):
    meet = world.meeting(2)

    @world.tool(scope="user")
    async def child(name, memory):
        memory.setdefault("log", []).append(name)
        await meet()

    @world.tool
    async def parent(memory):
        assert await world.parallel(lambda: child("a"), lambda: child("b")) == [None, None]
        assert committed(world.gantry, "user") == {}

    world.run(lambda: call(parent))

    assert sorted(committed(world.gantry, "user")["log"]) == ["a", "b"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sync_parent", [True, False])
def test_threads_of_asyncio_are_children(way, sync_parent):
    world = World("sync", way)
    meet = threading.Barrier(4)

    @world.tool
    async def child(name, memory):
        memory["log"].append(name)
        memory.add("n")
        meet.wait(WAIT)

    @world.gantry.with_memory
    async def parent(memory):
        memory["log"] = log = []
        await asyncio.gather(*(asyncio.to_thread(child, name) for name in "abcd"))
        assert memory["log"] is log
        assert committed(world.gantry) == {}

    def in_thread(memory):
        memory["log"] = []
        contexts = [contextvars.copy_context() for _ in "abcd"]
        threads = [threading.Thread(target=each.run, args=(child, n)) for each, n in zip(contexts, "abcd", strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)

    if sync_parent:
        world.gantry.with_memory(in_thread)()
    else:
        asyncio.run(parent())
    after = committed(world.gantry)
    world.close()

    assert sorted(after["log"]) == ["a", "b", "c", "d"]
    assert after["n"] == 4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", range(4))
def test_random_interleavings_lose_nothing(way, seed):
    """Children of children at the same time, some of which fail: what the others appended is there, in each one's order."""
    import random

    world = World("asyncio", way)
    chance = random.Random(seed)
    kept = []

    @world.tool
    async def child(name, depth, fails, memory):
        mine = [(*name, i) for i in range(3)]
        written = []
        for item in mine:
            memory["log"].append(item)
            memory.add("n")
            memory["box"][str(item)] = {"x": 1}
            written.append(item)
            for _ in range(chance.randrange(3)):
                await anyio.lowlevel.checkpoint()
        if depth:
            branches = [((*name, f"c{i}"), depth - 1, chance.random() < 0.3) for i in range(3)]
            for written_inside in await world.parallel(*(lambda each=each: child(*each) for each in branches)):
                if isinstance(written_inside, list):
                    written += written_inside
                else:
                    assert type(written_inside) is Boom
        if fails:
            raise Boom
        return written

    @world.tool
    async def parent(memory):
        memory.update(log=[], n=0, box={})
        kept.extend(await call(child, ("r",), 2, False))

    world.run(lambda: call(parent))
    after = committed(world.gantry)
    world.close()

    assert sorted(map(str, after["log"])) == sorted(map(str, kept))
    assert after["n"] == len(kept)
    assert sorted(after["box"]) == sorted(map(str, kept))
    for name in {item[:-1] for item in kept}:
        assert [item[-1] for item in after["log"] if item[:-1] == name] == [0, 1, 2]


# What travels with a child's keys.


def test_a_childs_add_still_merges_with_strangers_at_the_outermost_commit(world):
    @world.tool
    async def child(memory):
        memory.add("n", 1)
        memory.add("m", 5)

    @world.tool(on_conflict="raise")
    async def parent(memory):
        memory.add("n", 2)
        await call(child)
        memory.add("n", 4)
        with world.gantry.independent():
            await call(stranger)
        return memory["n"]

    @world.tool
    async def stranger(memory):
        memory.add("n", 100)
        memory.add("m", 100)

    async def main():
        await world.put(n=10)
        return await call(parent)

    assert world.run(main) == 17
    assert committed(world.gantry) == {"n": 117, "m": 105}


def test_a_childs_assignment_makes_the_outers_add_an_assignment(world):
    @world.tool
    async def child(memory):
        memory["n"] = 0

    @world.tool(on_conflict="raise")
    async def parent(memory):
        memory.add("n", 2)
        await call(child)
        memory.add("n", 4)
        with world.gantry.independent():
            await world.put(n=100)

    async def main():
        await world.put(n=10)
        with pytest.raises(MemoryConflictError):
            await call(parent)

    world.run(main)


def test_a_child_that_lets_a_counter_expire_leaves_it_a_counter(world):
    """`add` and then `expire` in one call stays an addition; so it does when a child is what calls `expire`."""

    @world.tool
    async def child(memory):
        memory.expire("n", 60)

    @world.tool(on_conflict="raise")
    async def parent(memory):
        memory.add("n", 2)
        await call(child)
        with world.gantry.independent():
            await call(stranger)

    @world.tool
    async def stranger(memory):
        memory.add("n", 100)

    async def main():
        await world.put(n=10)
        await call(parent)
        return await world.remembered(), await world.ttls()

    assert world.run(main) == ({"n": 112}, {"n": 60})


def test_a_failed_childs_assignment_leaves_the_outers_add_an_addition(world):
    @world.tool
    async def child(memory):
        memory["n"] = 0
        raise Boom

    @world.tool(on_conflict="raise")
    async def parent(memory):
        memory.add("n", 2)
        with contextlib.suppress(Boom):
            await call(child)
        with world.gantry.independent():
            await call(stranger)

    @world.tool
    async def stranger(memory):
        memory.add("n", 100)

    async def main():
        await world.put(n=10)
        await call(parent)

    world.run(main)

    assert committed(world.gantry) == {"n": 112}


def test_a_childs_times_to_live_arrive_in_the_store(world):
    @world.tool(ttl=30)
    async def by_default(memory):
        memory["default"] = 1
        memory.setdefault("box", []).append(1)

    @world.tool
    async def by_key(memory):
        memory.set("own", 1, ttl=20)
        memory.expire("old", 10)
        memory.set("forever", 1, ttl=None)

    @world.tool
    async def parent(memory):
        memory["plain"] = 1
        await call(by_default)
        await call(by_key)
        return {key: memory.ttl(key) for key in memory}

    expected = {"old": 10, "plain": None, "default": 30, "box": 30, "own": 20, "forever": None}

    async def main():
        await world.put(old=1)
        seen, after = await call(parent), await world.ttls()
        world.now += 25
        return seen, after, sorted(await world.remembered())

    assert world.run(main) == (expected, expected, ["box", "default", "forever", "plain"])


def test_a_childs_default_ttl_counts_in_another_namespace(world):
    @world.tool(scope="user", ttl=30)
    async def child(memory):
        memory["a"] = 1

    @world.tool
    async def parent(memory):
        await call(child)

    async def main():
        await call(parent)
        return await world.ttls("user")

    assert world.run(main) == {"a": 30}


@pytest.mark.parametrize("how", ["default", "own", "nested"])
def test_a_child_without_a_ttl_keeps_the_one_that_the_outer_gave(world, how):
    @world.tool
    async def child(memory):
        memory["k"] = 2
        memory.setdefault("box", []).append(2)
        return memory.ttl("k")

    @world.tool(ttl=100)
    async def by_default(memory):
        memory["k"] = 1
        return await call(child), memory.ttl("k")

    @world.tool(ttl=100)
    async def by_key(memory):
        memory.set("k", 1, ttl=50)
        return await call(child), memory.ttl("k")

    @world.tool
    async def nested(memory):
        return await call(by_default)

    async def main():
        ttl = 50 if how == "own" else 100
        tool = {"default": by_default, "own": by_key, "nested": nested}[how]
        return [ttl] * 3 == [*await call(tool), (await world.ttls())["k"]]

    assert world.run(main)


def test_a_childs_use_of_a_sliding_memory_restarts_its_time(world):
    @world.tool(ttl=100, sliding=True)
    async def use(memory):
        return memory.get("k")

    @world.tool(ttl=100, sliding=True)
    async def write(memory):
        memory["k"] = 1

    @world.tool
    async def parent(memory):
        return await call(use)

    async def main():
        await call(write)
        world.now += 60
        first = await call(parent), await world.ttls()
        world.now += 60
        return first, await call(parent), await world.ttls()

    assert world.run(main) == ((1, {"k": 100}), 1, {"k": 100})


def test_a_failed_childs_use_restarts_nothing(world):
    @world.tool(ttl=100, sliding=True)
    async def use(memory):
        raise Boom

    @world.tool(ttl=100, sliding=True)
    async def write(memory):
        memory["k"] = 1

    @world.tool
    async def parent(memory):
        with contextlib.suppress(Boom):
            await call(use)

    async def main():
        await call(write)
        world.now += 60
        await call(parent)
        return await world.ttls()

    assert world.run(main) == {"k": 40}


def test_a_childs_sliding_write_slides(world):
    @world.tool(ttl=100, sliding=True)
    async def child(memory):
        memory["k"] = 1

    @world.tool
    async def parent(memory):
        await call(child)

    async def main():
        await call(parent)
        world.now += 60
        await call(child)
        world.now += 60
        return await world.remembered()

    assert world.run(main) == {"k": 1}


# Orphans.


def orphans(world, scope="session", fails=False, begins_late=False, three=False):
    """A parent that ends while its child, in the background, is still running; gives main and what the child became."""
    begun, go = world.gate(), world.gate()

    @world.tool(scope=scope)
    async def child(memory):
        begun.open()
        await go.wait()
        memory.setdefault("log", []).append("child")
        memory.add("n", 1)

    async def late():
        await go.wait()
        await call(child)

    @world.tool
    async def parent(spawn, memory):
        memory["log"] = ["parent"]
        memory.add("n", 1)
        outcome = spawn(late if begins_late else child)
        if not begins_late:
            await begun.wait()
        if fails:
            outcomes.append(outcome)
            raise Boom
        return outcome

    @world.tool
    async def middle(spawn, memory):
        return await call(parent, spawn)

    outcomes = []
    return (middle if three else parent), go, outcomes


@pytest.mark.parametrize("three", [False, True])
@pytest.mark.parametrize("begins_late", [False, True])
def test_a_child_that_outlives_its_parent_goes_on_from_what_was_committed(world, begins_late, three):
    parent, go, _ = orphans(world, begins_late=begins_late, three=three)

    async def main():
        async with world.spawning() as spawn:
            outcome = await call(parent, spawn)
            before = await world.remembered()
            go.open()
            await outcome.result()
            return before, await world.remembered()

    assert world.run(main) == ({"log": ["parent"], "n": 1}, {"log": ["parent", "child"], "n": 2})


@pytest.mark.parametrize("scope", ["session", "user"])
@pytest.mark.parametrize("begins_late", [False, True])
def test_a_child_of_a_parent_that_failed_is_an_orphan(world, begins_late, scope):
    parent, go, outcomes = orphans(world, scope, fails=True, begins_late=begins_late)

    async def main():
        async with world.spawning() as spawn:
            with pytest.raises(Boom):
                await call(parent, spawn)
            go.open()
            with pytest.raises(OrphanedCallError, match="independent") as caught:
                await outcomes[0].result()
        return caught.value

    error = world.run(main)

    assert error.committed is False
    assert (committed(world.gantry), committed(world.gantry, "user")) == ({}, {})


def test_a_child_of_a_failed_middle_is_an_orphan_though_the_outermost_goes_on(world):
    parent, go, outcomes = orphans(world, fails=True)

    @world.tool
    async def outermost(spawn, memory):
        memory["outermost"] = 1
        with pytest.raises(Boom):
            await call(parent, spawn)
        go.open()
        with pytest.raises(OrphanedCallError):
            await outcomes[0].result()

    async def main():
        async with world.spawning() as spawn:
            await call(outermost, spawn)

    world.run(main)

    assert committed(world.gantry) == {"outermost": 1}


def test_a_child_that_outlives_a_middle_is_taken_up_by_the_outermost(world):
    parent, go, _ = orphans(world)

    @world.tool
    async def outermost(spawn, memory):
        outcome = await call(parent, spawn)
        go.open()
        await outcome.result()
        return dict(memory), committed(world.gantry)

    async def main():
        async with world.spawning() as spawn:
            return await call(outermost, spawn)

    after = {"log": ["parent", "child"], "n": 2}
    assert world.run(main) == (after, {})
    assert committed(world.gantry) == after


@pytest.mark.parametrize("begins_late", [False, True])
def test_a_child_of_a_parent_whose_commit_failed_is_an_orphan(world, begins_late):
    begun, go = world.gate(), world.gate()
    outcomes = []

    @world.tool
    async def child(memory):
        begun.open()
        await go.wait()
        memory["child"] = 1

    async def late():
        begun.open()
        await go.wait()
        await call(child)

    @world.tool
    async def parent(spawn, memory):
        outcomes.append(spawn(late if begins_late else child))
        await begun.wait()
        memory["bad"] = object()

    async def main():
        async with world.spawning() as spawn:
            with pytest.raises(UnstorableValueError):
                await call(parent, spawn)
            go.open()
            with pytest.raises(OrphanedCallError):
                await outcomes[0].result()

    world.run(main)

    assert committed(world.gantry) == {}


@pytest.mark.parametrize("caller", ["asyncio", "trio"])
@pytest.mark.parametrize("begins_late", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_child_of_a_cancelled_parent_is_an_orphan(caller, way, begins_late):
    world = World(caller, way)
    begun, go = world.gate(), world.gate()
    outcomes = []

    @world.tool
    async def child(memory):
        if not begins_late:
            begun.open()
            await go.wait()
        memory["child"] = 1

    async def late():
        begun.open()
        await go.wait()
        await call(child)

    @world.tool
    async def parent(spawn, memory):
        memory["parent"] = 1
        outcomes.append(spawn(late if begins_late else child))
        await anyio.sleep_forever()

    async def main():
        async with world.spawning() as spawn:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(parent, spawn)
                    await begun.wait()
                    scope.cancel()
            go.open()
            with pytest.raises(OrphanedCallError):
                await outcomes[0].result()

    world.run(main)
    after = committed(world.gantry)
    world.close()

    assert after == {}


@pytest.mark.parametrize("way", WAYS)
def test_a_thread_of_a_parent_that_timed_out_is_an_orphan(way):
    world = World("sync", way)
    begun, go, errors = threading.Event(), threading.Event(), []

    @world.tool
    async def child(memory):
        memory["child"] = 1

    def thread():
        begun.set()
        go.wait(WAIT)
        for _ in range(2):
            try:
                child()
            except OrphanedCallError as error:
                errors.append(error)

    @world.gantry.with_memory
    async def parent(memory):
        memory["parent"] = 1
        await asyncio.to_thread(thread)

    async def main():
        task = asyncio.create_task(asyncio.wait_for(parent(), 0.2))
        await asyncio.to_thread(begun.wait, WAIT)
        with pytest.raises(asyncio.TimeoutError):
            await task
        go.set()

    asyncio.run(main())
    after = committed(world.gantry)
    world.close()

    assert after == {}
    assert len(errors) == 2


def test_an_orphan_does_not_bring_an_erased_namespace_back(world):
    parent, go, _ = orphans(world)

    async def main():
        async with world.spawning() as spawn:
            outcome = await call(parent, spawn)
            await world.forget()
            go.open()
            with pytest.raises(MemoryErasedError):
                await outcome.result()
        return await world.remembered()

    assert world.run(main) == {}


def test_an_orphan_does_not_bring_back_what_was_there_before_its_parent(world):
    parent, go, _ = orphans(world)

    async def main():
        await world.put(old=1)
        async with world.spawning() as spawn:
            outcome = await call(parent, spawn)
            await world.forget()
            go.open()
            with pytest.raises(MemoryErasedError):
                await outcome.result()
        return await world.remembered()

    assert world.run(main) == {}


def test_an_orphan_is_refused_though_the_erased_namespace_was_made_anew(world):
    parent, go, _ = orphans(world)

    async def main():
        async with world.spawning() as spawn:
            outcome = await call(parent, spawn)
            await world.forget()
            await world.put(new=1)
            go.open()
            with pytest.raises(MemoryErasedError):
                await outcome.result()
        return await world.remembered()

    assert world.run(main) == {"new": 1}


def test_an_orphan_of_an_orphan_does_not_bring_an_erased_namespace_back(world):
    begun, end_child, go = world.gate(), world.gate(), world.gate()

    @world.tool
    async def grandchild(memory):
        begun.open()
        await go.wait()
        memory["grandchild"] = 1

    @world.tool
    async def child(spawn, memory):
        memory["child"] = 1
        outcome = spawn(grandchild)
        await begun.wait()
        await end_child.wait()
        return outcome

    @world.tool
    async def parent(spawn, memory):
        outcome = spawn(child, spawn)
        await begun.wait()
        return outcome

    async def main():
        async with world.spawning() as spawn:
            of_child = await call(parent, spawn)
            end_child.open()
            of_grandchild = await of_child.result()
            before = await world.remembered()
            await world.forget()
            go.open()
            with pytest.raises(MemoryErasedError):
                await of_grandchild.result()
        return before, await world.remembered()

    assert world.run(main) == ({"child": 1}, {})


def test_an_orphan_is_not_refused_because_all_that_its_parent_loaded_expired(world):
    """What expired was not erased: the parent commits in that case, and so does what outlives it."""
    begun, go = world.gate(), world.gate()

    @world.tool
    async def child(memory):
        begun.open()
        await go.wait()
        memory["child"] = 1

    @world.tool
    async def parent(spawn, memory):
        memory["parent"] = 1
        outcome = spawn(child)
        await begun.wait()
        world.now += 20
        return outcome

    @world.tool
    async def setup(memory):
        memory.set("old", 1, ttl=10)

    async def main():
        await call(setup)
        async with world.spawning() as spawn:
            outcome = await call(parent, spawn)
            go.open()
            await outcome.result()
        return await world.remembered()

    assert world.run(main) == {"parent": 1, "child": 1}


@pytest.mark.parametrize("is_erased", [False, True])
def test_an_orphan_is_refused_after_an_erasure_and_not_because_a_stranger_made_the_memory_first(world, is_erased):
    begun, go = world.gate(), world.gate()

    @world.tool(scope="user")
    async def child(memory):
        begun.open()
        await go.wait()
        memory["child"] = 1

    @world.tool(scope="user")
    async def parent(spawn, memory):
        memory["parent"] = 1
        outcome = spawn(child)
        await begun.wait()
        # Of another key, so that what this call writes is written as it is.
        with world.gantry.independent():
            await world.put("user", stranger=1)
        return outcome

    async def main():
        async with world.spawning() as spawn:
            outcome = await call(parent, spawn)
            if is_erased:
                await world.forget("user")
                await world.put("user", stranger=2)
            go.open()
            if is_erased:
                with pytest.raises(MemoryErasedError):
                    await outcome.result()
            else:
                await outcome.result()
        return await world.remembered("user")

    assert world.run(main) == ({"stranger": 2} if is_erased else {"stranger": 1, "parent": 1, "child": 1})


def test_an_orphan_is_not_refused_because_all_that_its_parent_committed_expired(world):
    begun, go = world.gate(), world.gate()

    @world.tool
    async def child(memory):
        begun.open()
        await go.wait()
        memory["child"] = 1

    @world.tool(ttl=10)
    async def parent(spawn, memory):
        memory["parent"] = 1
        outcome = spawn(child)
        await begun.wait()
        return outcome

    async def main():
        async with world.spawning() as spawn:
            outcome = await call(parent, spawn)
            world.now += 20
            go.open()
            await outcome.result()
        return await world.remembered()

    assert world.run(main) == {"child": 1}


def test_an_orphan_brings_nothing_back_that_its_parent_took_back_itself(world):
    """The parent's list was never committed: the child that saw it has to find that out, and not write it."""
    begun, go = world.gate(), world.gate()

    @world.tool(on_conflict="raise")
    async def child(memory):
        begun.open()
        await go.wait()
        memory["log"].append("child")

    @world.tool
    async def parent(spawn, memory):
        memory["log"] = ["never committed"]
        outcome = spawn(child)
        await begun.wait()
        del memory["log"]
        return outcome

    async def main():
        async with world.spawning() as spawn:
            outcome = await call(parent, spawn)
            go.open()
            with contextlib.suppress(MemoryConflictError):
                await outcome.result()
        return await world.remembered()

    assert "never committed" not in world.run(main).get("log", [])


def test_an_orphan_merges_with_what_strangers_committed_meanwhile(world):
    parent, go, _ = orphans(world)

    async def main():
        async with world.spawning() as spawn:
            outcome = await call(parent, spawn)
            async with world.gantry.memory() if not world.is_sync else _sync(world.gantry.memory()) as memory:
                memory["log"].append("stranger")
                memory.add("n", 10)
            go.open()
            await outcome.result()
        return await world.remembered()

    assert world.run(main) == {"log": ["parent", "stranger", "child"], "n": 12}


def test_an_orphan_that_only_read_raises_too(world):
    begun, go, outcomes = world.gate(), world.gate(), []

    @world.tool
    async def child(memory):
        begun.open()
        await go.wait()
        return memory.get("uncommitted")

    @world.tool
    async def parent(spawn, memory):
        memory["uncommitted"] = 1
        outcomes.append(spawn(child))
        await begun.wait()
        raise Boom

    async def main():
        async with world.spawning() as spawn:
            with pytest.raises(Boom):
                await call(parent, spawn)
            go.open()
            with pytest.raises(OrphanedCallError):
                await outcomes[0].result()

    world.run(main)


def test_a_child_of_a_first_run_is_an_orphan_of_the_second(world):
    begun, go, outcomes, strangers = world.gate(), world.gate(), [], []

    @world.tool
    async def child(memory):
        begun.open()
        await go.wait()
        memory["child"] = 1

    @world.tool(on_conflict="retry", retries=3)
    async def parent(spawn, memory):
        memory["x"] = memory.get("x", 0) + 1
        if not strangers:
            strangers.append(None)
            outcomes.append(spawn(child))
            await begun.wait()
            with world.gantry.independent():
                await world.put(x=100)
        else:
            go.open()
            with pytest.raises(OrphanedCallError):
                await outcomes[0].result()

    async def main():
        async with world.spawning() as spawn:
            await call(parent, spawn)

    world.run(main)

    assert committed(world.gantry) == {"x": 101}


def test_calls_that_each_begin_the_next_do_not_keep_each_other_alive():
    """A tool that plans its own next run goes on for days."""
    gantry = Gantry(session="s1")
    tasks, seen = set(), []

    def units():
        gc.collect()
        return sum(isinstance(each, UnitOfWork) for each in gc.get_objects())

    async def main():
        over = asyncio.Event()

        def begin(left):
            task = asyncio.ensure_future(tick(left))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        @gantry.with_memory
        async def tick(left, memory):
            memory.add("n")
            if left:
                asyncio.get_running_loop().call_soon(begin, left - 1)
                return
            seen.append(units())
            over.set()

        await tick(100)
        await over.wait()

    before = units()
    asyncio.run(main())
    gantry.close()

    assert seen[0] - before < 10


# The end of a body that was called the short way, and a child that begins at that moment.


class Ending(list):
    """The record of a call that ends just when a child has looked at it."""

    def __init__(self, state):
        super().__init__([Gantry()._wiring.settings, Identity("s1"), NESTING.process, Memory(), State.OPEN])
        self[3]._namespace = Namespace("session", "s1")
        self._state = state

    def __iter__(self):
        seen = self[:]
        self[4] = self._state
        return iter(seen)


def test_a_child_that_begins_just_when_its_parent_fails_is_an_orphan():
    ending = Ending(State.FAILED)

    for _ in range(2):
        with pytest.raises(OrphanedCallError):
            UnitOfWork({}, None, nesting.unit_of(ending)).host()


def test_a_child_that_begins_just_when_its_parent_has_landed_stands_alone():
    assert nesting.unit_of(Ending(State.LANDED)) is None


def test_a_child_of_a_parent_that_failed_over_its_generator_is_an_orphan():
    gantry, contexts = Gantry(session="s1", user="ada"), []

    @gantry.with_memory
    def child(memory):
        memory["child"] = 1

    @gantry.with_memory
    def parent(memory):
        contexts.append(contextvars.copy_context())
        return (item for item in memory)

    # Here every warning is an error.
    with pytest.raises(StateWarning):
        parent()
    with pytest.raises(OrphanedCallError):
        contexts[0].run(child)

    assert committed(gantry) == {}


class Held(MemoryStore):
    """A store in this process that is asked like any other; *meanwhile* runs once, in the middle of a commit."""

    meanwhile = None

    def __init__(self, inline=True):
        super().__init__()
        self.inline = inline

    def commit(self, message):
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().commit(message)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("isolation", ["snapshot", "serializable"])
@pytest.mark.parametrize("inline", [False, True])
def test_a_child_that_begins_while_its_parent_commits_goes_with_it(inline, isolation, fails):
    store, seen, refused = Held(inline), [], []
    gantry = Gantry(store, session="s1", user="ada")

    @gantry.with_memory
    def child(memory):
        seen.append(dict(memory))
        ran.set()
        memory["child"] = 1

    def begin(context):
        try:
            context.run(child)
        except OrphanedCallError:
            refused.append(True)

    def meanwhile():
        thread.start()
        assert ran.wait(WAIT)
        if fails:
            raise StoreError("no")

    @gantry.with_memory(isolation=isolation)
    def parent(memory):
        nonlocal thread
        memory["parent"] = 1
        thread = threading.Thread(target=begin, args=(contextvars.copy_context(),))
        store.meanwhile = meanwhile

    thread, ran = None, threading.Event()
    with pytest.raises(StoreError) if fails else contextlib.nullcontext():
        parent()
    thread.join(WAIT)

    assert seen == [{"parent": 1}]
    assert committed(gantry) == ({} if fails else {"parent": 1, "child": 1})
    assert refused == ([True] if fails else [])


class Cut(Coroutines):
    """A store made of coroutines; *landed* runs when a commit has, before it is answered."""

    landed = None

    async def commit(self, message):
        answer = await super().commit(message)
        landed, self.landed = self.landed, None
        if landed is not None:
            landed()
        return answer


class ClosedOnce:
    """Awaits a coroutine until it waits for something while *is_time*, and closes it there."""

    def __init__(self, coroutine, is_time):
        self.coroutine, self.is_time = coroutine, is_time

    def __await__(self):
        awaited = self.coroutine.send(None)
        while not self.is_time():
            yield awaited
            awaited = self.coroutine.send(None)
        awaited._asyncio_future_blocking = False
        self.coroutine.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_child_of_a_coroutine_that_was_closed_while_it_committed_waits_for_what_becomes_of_that(fails):
    store, seen = Cut(), []
    gantry = Gantry(store, session="s1", user="ada")

    def landed():
        if fails:
            raise StoreError("no")

    @gantry.with_memory
    async def child(memory):
        seen.append(dict(memory))
        memory["child"] = 1

    async def later():
        await over.wait()
        await child()

    @gantry.with_memory
    async def parent(tasks, memory):
        memory["parent"] = 1
        tasks.append(asyncio.create_task(later()))

    async def main():
        nonlocal over
        over, tasks = asyncio.Event(), []
        store.landed = landed
        await ClosedOnce(parent(tasks), lambda: tasks)
        over.set()
        await tasks[0]

    over = None
    with pytest.raises(OrphanedCallError) if fails else contextlib.nullcontext():
        asyncio.run(main())
    after = committed(gantry)
    gantry.close()

    assert seen == [{"parent": 1}]
    assert after == ({"parent": 1} if fails else {"parent": 1, "child": 1})


@pytest.mark.parametrize("isolation", ["snapshot", "serializable"])
def test_a_child_of_a_parent_that_was_cancelled_while_it_landed_goes_on_from_it(isolation):
    store, seen, cancelled = Cut(), [], threading.Event()
    gantry = Gantry(store, session="s1", user="ada")

    @gantry.with_memory
    async def child(memory):
        seen.append(dict(memory))
        memory["child"] = 1

    async def later(over):
        await over.wait()
        await child()

    @gantry.with_memory(isolation=isolation)
    async def parent(over, tasks, memory):
        memory["parent"] = 1
        tasks.append(asyncio.create_task(later(over)))

    async def main():
        over, tasks, loop = asyncio.Event(), [], asyncio.get_running_loop()

        def cancel():
            task.cancel()
            cancelled.set()

        def landed():
            loop.call_soon_threadsafe(cancel)
            assert cancelled.wait(WAIT)

        store.landed = landed
        task = asyncio.create_task(parent(over, tasks))
        with pytest.raises(asyncio.CancelledError):
            await task
        over.set()
        await tasks[0]

    asyncio.run(main())
    after = committed(gantry)
    gantry.close()

    assert seen == [{"parent": 1}]
    assert after == {"parent": 1, "child": 1}


@pytest.mark.parametrize("fails", [False, True])
def test_no_write_of_a_child_that_begins_at_its_parents_end_is_lost(fails):
    gantry = Gantry(session="s1", user="ada")
    acknowledged, refused = [], []

    @gantry.with_memory
    def child(i, memory):
        memory.setdefault("log", []).append(i)

    def begin(context, i, go, spin):
        go.wait()
        for _ in range(spin):
            pass
        try:
            context.run(child, i)
        except OrphanedCallError:
            refused.append(i)
        else:
            acknowledged.append(i)

    @gantry.with_memory
    def parent(i, memory):
        memory["last"] = i
        go = threading.Event()
        thread = threading.Thread(target=begin, args=(contextvars.copy_context(), i, go, i % 97))
        thread.start()
        threads.append(thread)
        go.set()
        for _ in range(i % 89):
            pass
        if fails:
            raise Boom

    threads = []
    for i in range(2000):
        with contextlib.suppress(Boom):
            parent(i)
        threads.pop().join(WAIT)
    after = committed(gantry)
    gantry.close()

    # A child that committed before its parent failed was a part of it, and fell with it.
    log = after.get("log", [])
    if fails:
        assert "last" not in after
        assert log == []
    else:
        assert refused == []
        assert log == acknowledged == list(range(2000))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spins", [0, 50])
def test_no_write_of_many_children_around_the_end_is_lost(way, spins):
    world = World("sync", way)

    @world.tool
    async def child(i, memory):
        memory.setdefault("log", []).append(i)
        memory.add("n")

    @world.tool
    async def parent(i, memory):
        memory["last"] = i
        contexts = [contextvars.copy_context() for _ in range(4)]
        started = threading.Barrier(5)

        def begin(context, j):
            started.wait(WAIT)
            context.run(child, 4 * i + j)

        threads.extend(threading.Thread(target=begin, args=(c, j)) for j, c in enumerate(contexts))
        for thread in threads:
            thread.start()
        started.wait(WAIT)
        for _ in range(spins * (i % 20)):
            pass

    threads = []
    for i in range(150):
        parent(i)
        while threads:
            threads.pop().join(WAIT)
    after = committed(world.gantry)
    world.close()

    assert sorted(after["log"]) == list(range(600))
    assert after["n"] == 600


def test_a_child_that_ends_while_its_parent_commits_commits_after_it():
    begun, committing, go = threading.Event(), threading.Event(), threading.Event()

    class Slow(Blocking):
        def commit(self, message, /):
            if not committing.is_set():
                committing.set()
                go.wait(WAIT)
            return super().commit(message)

    gantry = Gantry(Slow(), session="s1")

    @gantry.with_memory
    def child(memory):
        begun.set()
        committing.wait(WAIT)
        memory["log"].append("child")

    @gantry.with_memory
    def parent(memory):
        memory["log"] = ["parent"]
        thread = threading.Thread(target=contextvars.copy_context().run, args=(child,))
        thread.start()
        begun.wait(WAIT)
        return thread

    opener = threading.Timer(0.1, go.set)
    opener.start()
    parent().join(WAIT)
    with gantry.memory() as memory:
        after = dict(memory)
    gantry.close()

    assert after == {"log": ["parent", "child"]}


def test_a_child_that_ends_while_its_parents_commit_fails_is_an_orphan():
    begun, committing, go, errors = threading.Event(), threading.Event(), threading.Event(), []

    class Failing(Blocking):
        def commit(self, message, /):
            committing.set()
            go.wait(WAIT)
            raise Boom

    store = Failing()
    gantry = Gantry(store, session="s1")

    @gantry.with_memory
    def child(memory):
        begun.set()
        committing.wait(WAIT)
        memory["log"].append("child")

    def run():
        try:
            child()
        except OrphanedCallError as error:
            errors.append(error)

    @gantry.with_memory
    def parent(memory):
        memory["log"] = ["parent"]
        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
        thread.start()
        threads.append(thread)
        begun.wait(WAIT)

    threads = []
    opener = threading.Timer(0.05, go.set)
    opener.start()
    with pytest.raises(Boom):
        parent()
    threads[0].join(WAIT)
    gantry.close()

    assert len(errors) == 1
    assert len(store.inner) == 0


def test_a_sync_child_on_the_loop_does_not_block_it_while_its_parent_commits():
    """The parent's commit needs the loop to be over: whoever waits for it on the loop's own thread waits in vain."""
    committing, calling = threading.Event(), threading.Event()

    class Slow(Blocking):
        def commit(self, message, /):
            committing.set()
            calling.wait(WAIT)
            return super().commit(message)

    gantry = Gantry(Slow(), session="s1")

    @gantry.with_memory
    def child(memory):
        memory["child"] = 1

    async def background():
        while not committing.is_set():
            await asyncio.sleep(0.001)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        calling.set()
        # Whether it is refused is another question.
        with contextlib.suppress(Exception):
            child()
        return loop.time() - begin

    @gantry.with_memory
    async def parent(memory):
        memory["parent"] = 1
        return asyncio.create_task(background())

    async def main():
        return await (await parent())

    blocked = asyncio.run(main())
    gantry.close()

    assert blocked < 2


# Standing on its own.


def test_an_independent_call_commits_at_once_and_survives_the_outers_failure(world):
    seen = []

    @world.tool
    async def child(memory):
        seen.append(dict(memory))
        memory["independent"] = 1

    @world.tool
    async def parent(memory):
        memory["uncommitted"] = 1
        with world.gantry.independent():
            await call(child)
        seen.append(committed(world.gantry))
        raise Boom

    async def main():
        with pytest.raises(Boom):
            await call(parent)

    world.run(main)

    assert seen == [{}, {"independent": 1}]
    assert committed(world.gantry) == {"independent": 1}


def test_an_independent_block_ends(world):
    @world.tool
    async def child(name, memory):
        memory[name] = 1

    @world.tool
    async def parent(memory):
        memory["p"] = 1
        with world.gantry.independent():
            await call(child, "one")
            with world.gantry.independent():
                await call(child, "two")
            await call(child, "three")
        await call(child, "four")
        block = world.gantry.independent()
        async with block:
            async with block:
                pass
            await call(child, "five")
        await call(child, "six")
        with pytest.raises(Boom), world.gantry.independent():
            raise Boom
        await call(child, "seven")
        raise Boom

    async def main():
        with pytest.raises(Boom):
            await call(parent)

    world.run(main)

    assert committed(world.gantry) == {"one": 1, "two": 1, "three": 1, "five": 1}


def test_independent_calls_inside_are_savepoints_of_the_independent_one(world):
    @world.tool
    async def inner(memory):
        memory["inner"] = 1

    @world.tool
    async def child(memory):
        await call(inner)
        raise Boom

    @world.tool
    async def parent(memory):
        with world.gantry.independent(), contextlib.suppress(Boom):
            await call(child)

    world.run(lambda: call(parent))

    assert committed(world.gantry) == {}


def test_independent_outside_of_any_call_changes_nothing(world):
    @world.tool
    async def child(memory):
        memory["a"] = 1

    async def main():
        with world.gantry.independent():
            await call(child)
        await call(child)

    world.run(main)

    assert committed(world.gantry) == {"a": 1}


def test_independent_left_after_its_call_failed_orphans_nobody(inline_world):
    """An exit stack that belongs to somebody else is closed when the call is long over."""
    world = inline_world

    @world.tool
    async def child(memory):
        memory["child"] = 1

    @world.tool
    async def parent(stack, memory):
        stack.enter_context(world.gantry.independent())
        raise Boom

    async def main():
        with contextlib.ExitStack() as stack, contextlib.suppress(Boom):
            await call(parent, stack)
        await call(child)
        return nesting.CURRENT.get()

    assert contextvars.copy_context().run(world.run, main) is None
    assert committed(world.gantry) == {"child": 1}


@pytest.mark.parametrize("caller", ["asyncio", "trio"])
@pytest.mark.parametrize("way", WAYS)
def test_independent_left_in_another_task_makes_that_one_no_part_of_the_call(caller, way):
    world = World(caller, way)
    entered, left = world.gate(), world.gate()

    @world.tool
    async def child(name, memory):
        memory[name] = 1

    @world.tool
    async def parent(blocks, memory):
        block = world.gantry.independent()
        block.__enter__()
        blocks.append(block)
        entered.open()
        await left.wait()
        raise Boom

    async def main():
        blocks = []

        async def calling():
            with pytest.raises(Boom):
                await parent(blocks)

        async with anyio.create_task_group() as group:
            group.start_soon(calling)
            await entered.wait()
            blocks[0].__exit__(None, None, None)
            await child("stranger")
            left.open()
        await child("later")
        return nesting.CURRENT.get()

    assert world.run(main) is None
    after = committed(world.gantry)
    world.close()

    assert after == {"stranger": 1, "later": 1}


def test_a_call_begun_in_the_background_of_an_independent_block_stands_on_its_own(world):
    """A task that is only made in the block runs when the block is long over: it is what the block is for."""
    go, outcomes = world.gate(), []

    @world.tool
    async def audit(memory):
        memory["audit"] = len(memory)

    async def later():
        await go.wait()
        await call(audit)

    @world.tool
    async def parent(spawn, memory):
        memory["uncommitted"] = 1
        with world.gantry.independent():
            outcomes.append(spawn(later))
        raise Boom

    async def main():
        async with world.spawning() as spawn:
            with pytest.raises(Boom):
                await call(parent, spawn)
            go.open()
            await outcomes[0].result()

    world.run(main)

    assert committed(world.gantry) == {"audit": 0}


# Memory blocks.


def test_a_memory_block_inside_a_tool_is_a_savepoint(world):
    @world.tool
    async def parent(fails, memory):
        memory["log"] = log = ["parent"]
        gantry = world.gantry
        block = _sync(gantry.memory()) if world.is_sync else gantry.memory()
        async with block as inner:
            inner["log"].append("block")
            inner["n"] = 1
        assert memory["log"] is log
        with contextlib.suppress(Boom):
            block = _sync(gantry.memory("user")) if world.is_sync else gantry.memory("user")
            async with block as inner:
                inner["lost"] = 1
                raise Boom
        block = _sync(gantry.memory("user")) if world.is_sync else gantry.memory("user")
        async with block as inner:
            inner["kept"] = 1
        assert committed(gantry) == committed(gantry, "user") == {}
        if fails:
            raise Boom

    async def main():
        with contextlib.suppress(Boom):
            await call(parent, True)
        nothing = committed(world.gantry), committed(world.gantry, "user")
        await call(parent, False)
        return nothing

    assert world.run(main) == ({}, {})
    assert committed(world.gantry) == {"log": ["parent", "block"], "n": 1}
    assert committed(world.gantry, "user") == {"kept": 1}


def test_tools_inside_a_memory_block_outside_a_tool_are_calls_of_their_own(world):
    @world.tool
    async def child(memory):
        memory.setdefault("log", []).append("child")

    async def main():
        gantry = world.gantry
        with contextlib.suppress(Boom):
            block = _sync(gantry.memory()) if world.is_sync else gantry.memory()
            async with block as memory:
                memory["lost"] = 1
                await call(child)
                raise Boom
        block = _sync(gantry.memory()) if world.is_sync else gantry.memory()
        async with block as memory:
            await call(child)
            memory["log"].append("block")

    world.run(main)

    assert committed(world.gantry) == {"log": ["child", "child", "block"]}


def test_a_tool_inside_a_block_inside_a_tool_is_part_of_the_tool(world):
    @world.tool
    async def child(memory):
        memory.setdefault("log", []).append("child")

    @world.tool
    async def parent(memory):
        gantry = world.gantry
        block = _sync(gantry.memory()) if world.is_sync else gantry.memory()
        async with block as inner:
            inner.setdefault("log", []).append("block")
            await call(child)
            assert memory == {"log": ["child"]}
        return dict(memory)

    assert world.run(lambda: call(parent)) == {"log": ["child", "block"]}


# Stores, gantries, identities.


@pytest.mark.parametrize("caller", ["sync", "asyncio", "trio"])
@pytest.mark.parametrize("kind", [MemoryStore, Blocking, Coroutines])
def test_two_gantries_that_share_a_store_nest(caller, kind):
    world = World(caller, "short")
    store = kind()
    one, two = Gantry(store, session="s1"), Gantry(store, session="s1")
    seen = []

    async def child(memory):
        seen.append(dict(memory))
        memory["two"] = 2

    async def parent(memory):
        memory["one"] = 1
        await call(two.with_memory(world.flavoured(child)))
        seen.append(dict(memory))
        raise Boom

    async def main():
        with pytest.raises(Boom):
            await call(one.with_memory(world.flavoured(parent)))
        seen.append(committed(one))

    world.run(main)
    for gantry in (one, two):
        gantry._wiring.settings.bridge.close()

    assert seen[:2] == [{"one": 1}, {"one": 1, "two": 2}]
    assert seen[2] == {}


def test_a_gantry_with_another_store_does_not_nest(world):
    other = Gantry(session="s1", user="ada")
    seen = []

    async def child(memory):
        seen.append(dict(memory))
        memory["other"] = 1

    @world.tool
    async def parent(memory):
        memory["p"] = 1
        await call(other.with_memory(world.flavoured(child)))
        raise Boom

    async def main():
        with pytest.raises(Boom):
            await call(parent)

    world.run(main)

    assert seen == [{}]
    assert (committed(other), committed(world.gantry)) == ({"other": 1}, {})
    other.close()


def test_a_call_finds_the_nearest_around_it_that_uses_its_store(world):
    other = Gantry(session="s1", user="ada")

    @world.tool
    async def inner(memory):
        memory["inner"] = memory["outer"] + 1

    async def between(memory):
        memory["between"] = 1
        await call(inner)

    @world.tool
    async def outer(memory):
        memory["outer"] = 1
        await call(other.with_memory(world.flavoured(between)))
        assert committed(other) == {"between": 1}
        assert committed(world.gantry) == {}
        return dict(memory)

    assert world.run(lambda: call(outer)) == {"outer": 1, "inner": 2}
    assert committed(world.gantry) == {"outer": 1, "inner": 2}
    other.close()


def test_an_overridden_store_inside_a_body_makes_calls_of_their_own(world):
    @world.tool
    async def child(memory):
        memory["child"] = len(memory)

    @world.tool
    async def parent(memory):
        memory["p"] = 1
        store = MemoryStore()
        with world.gantry.override(store=store):
            await call(child)
            assert committed(world.gantry) == {"child": 0}
        await call(child)
        return dict(memory)

    assert world.run(lambda: call(parent)) == {"p": 1, "child": 1}
    assert committed(world.gantry) == {"p": 1, "child": 1}


def test_a_session_switched_inside_a_body_is_another_memory_of_the_same_unit(world):
    @world.tool
    async def child(memory):
        memory["by"] = "child"
        return dict(memory)

    @world.tool
    async def parent(fails, memory):
        memory["p"] = 1
        with world.gantry.session("s2", user="ada"):
            seen = await call(child)
        with world.gantry.override(session="s3", user="ada"):
            await call(child)
        assert seen == {"by": "child"}
        assert memory == {"p": 1}
        if fails:
            raise Boom

    async def main():
        with pytest.raises(Boom):
            await call(parent, True)
        first = [await world.remembered(session=s, user="ada") for s in ("s1", "s2", "s3")]
        await call(parent, False)
        return first, [await world.remembered(session=s, user="ada") for s in ("s1", "s2", "s3")]

    assert world.run(main) == ([{}] * 3, [{"p": 1}, {"by": "child"}, {"by": "child"}])


def test_a_childs_owner_binds_what_the_child_wrote(world):
    @world.tool
    async def child(memory):
        memory["by"] = "bob"

    @world.tool
    async def parent(memory):
        with world.gantry.session("s2", user="bob"):
            await call(child)
        with world.gantry.session("s2", user="eve"), pytest.raises(SessionOwnerError):
            await call(child)

    async def main():
        await call(parent)
        with pytest.raises(SessionOwnerError):
            await world.remembered(session="s2", user="eve")
        return await world.remembered(session="s2", user="bob")

    assert world.run(main) == {"by": "bob"}


def test_a_child_that_may_not_see_a_session_fails_alone(world):
    @world.tool
    async def child(memory):
        memory["by"] = "child"

    @world.tool
    async def parent(memory):
        with world.gantry.session("s2", user="eve"), pytest.raises(SessionOwnerError):
            await call(child)
        with world.gantry.session("s2", user="bob"):
            await call(child)
        memory["p"] = 1

    async def main():
        with world.gantry.session("s2", user="bob"):
            await call(child)
        await call(parent)

    world.run(main)

    assert committed(world.gantry) == {"p": 1}


def test_a_missing_identity_comes_before_an_orphans_error(world):
    outcomes, go = [], world.gate()

    @world.tool(scope="tenant")
    async def child(memory):
        memory["x"] = 1

    async def late():
        await go.wait()
        await call(child)

    @world.tool
    async def parent(spawn, memory):
        outcomes.append(spawn(late))
        raise Boom

    async def main():
        async with world.spawning() as spawn:
            with contextlib.suppress(Boom):
                await call(parent, spawn)
            go.open()
            with pytest.raises(MissingIdentityError):
                await outcomes[0].result()

    world.run(main)


def test_an_owned_scope_is_bound_by_a_child(caller):
    world = World(caller, "short", scopes={"conversation": Scope(owned=True)})

    @world.tool(scope="conversation")
    async def child(memory):
        memory["x"] = 1

    @world.tool
    async def parent(memory):
        with world.gantry.session("s1", user="ada", conversation="c"):
            await call(child)

    async def main():
        await call(parent)
        with pytest.raises(SessionOwnerError):
            await world.remembered("conversation", user="eve", conversation="c")

    world.run(main)
    world.close()


# Parts of a memory.


def test_a_session_child_sees_and_writes_key_by_key(world):
    def with_session(body):
        flavoured = world.flavoured(body)
        return world.gantry.with_session(flavoured)

    async def child(session: Session | SyncSession):
        seen = [await call(session.get, "a"), list(await call(session.get, "log")), await call(session.keys)]
        await call(session.set, "b", 2)
        await call(session.add, "n", 5)
        (await call(session.get, "log")).append("child")
        await call(session.delete, "old")
        return seen

    tool = with_session(_annotated(child, SyncSession if world.is_sync else Session))

    @world.tool
    async def parent(memory):
        memory["a"] = 1
        memory["log"] = log = ["parent"]
        seen = await call(tool)
        assert memory["log"] is log
        return seen, dict(memory)

    async def main():
        await world.put(old=1, n=1)
        return await call(parent)

    expected = {"n": 6, "a": 1, "log": ["parent", "child"], "b": 2}
    assert world.run(main) == ([1, ["parent"], ["old", "n", "a", "log"]], expected)
    assert committed(world.gantry) == expected


def _annotated(fn, kind):
    name = next(reversed(inspect.signature(fn).parameters))
    fn.__signature__ = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)])
    fn.__annotations__ = {name: kind}
    return fn


def test_a_parent_that_asks_for_keys_sees_what_its_children_did(world):
    @world.tool
    async def child(memory):
        memory["a"] = memory.get("a", 0) + 1
        memory["b"] = memory.get("b", 0) + 10
        return dict(memory)

    async def parent(session):
        await call(session.set, "a", 5)
        inner = await call(child)
        return inner, await call(session.get, "a"), await call(session.get, "b"), await call(session.keys)

    tool = world.gantry.with_session(world.flavoured(_annotated(parent, SyncSession if world.is_sync else Session)))

    async def main():
        await world.put(b=1, c=3)
        return await call(tool), await world.remembered()

    after = {"b": 11, "c": 3, "a": 6}
    assert world.run(main) == ((after, 6, 11, ["b", "c", "a"]), after)


def test_a_context_child_is_part_of_the_call(world):
    async def child(ctx):
        ctx.memory["c"] = ctx.memory["p"] + 1
        user = await call(ctx.scope, "user")
        user["seen"] = True

    kind = SyncExecutionContext if world.is_sync else ExecutionContext
    tool = world.gantry.with_context(world.flavoured(_annotated(child, kind)))

    @world.tool
    async def parent(fails, memory):
        memory["p"] = 1
        await call(tool)
        if fails:
            raise Boom
        return dict(memory)

    async def main():
        with contextlib.suppress(Boom):
            await call(parent, True)
        nothing = committed(world.gantry), committed(world.gantry, "user")
        return nothing, await call(parent, False)

    assert world.run(main) == (({}, {}), {"p": 1, "c": 2})
    assert committed(world.gantry, "user") == {"seen": True}


def test_a_memory_of_the_parents_own_keys_shows_no_others_because_of_a_child(world):
    """`keys=` loads only those, whatever the call's children load for themselves."""

    @world.tool
    async def child(memory):
        return sorted(memory)

    @world.tool(keys=("a",))
    async def parent(memory):
        memory["a"] = 2
        return await call(child), dict(memory)

    async def main():
        await world.put(a=1, b=2)
        return await call(parent), await world.remembered()

    assert world.run(main) == ((["a", "b"], {"a": 2}), {"a": 2, "b": 2})


def test_a_serializable_child_makes_the_outer_check_what_it_read(world):
    strangers = []

    @world.tool(isolation="serializable", on_conflict="raise")
    async def child(memory):
        return memory["limit"]

    @world.tool(on_conflict="raise")
    async def parent(memory):
        memory["spent"] = await call(child)
        if not strangers:
            strangers.append(None)
            with world.gantry.independent():
                await world.put(limit=0)

    async def main():
        await world.put(limit=5)
        with pytest.raises(MemoryConflictError):
            await call(parent)
        return await world.remembered()

    assert world.run(main) == {"limit": 0}


def test_a_serializable_child_conflicts_with_its_sibling(world):
    meet = world.meeting(2)

    @world.tool(isolation="serializable", on_conflict="raise")
    async def child(reads, writes, memory):
        memory[writes] = memory.get(reads, 0) + 1
        await meet()

    @world.tool
    async def parent(memory):
        memory.update(a=0, b=0)
        results = await world.parallel(lambda: child("a", "b"), lambda: child("b", "a"))
        return sorted(type(result) for result in results if result is not None), sorted(memory.values())

    assert world.run(lambda: call(parent)) == ([MemoryConflictError], [0, 1])


# Generators.


def test_a_generator_tool_is_a_parent_and_a_child(world):
    @world.tool
    async def child(memory):
        memory["n"] = memory.get("n", 0) + 1
        return memory["n"]

    if world.is_sync:

        @world.gantry.with_memory
        def numbers(memory):
            memory["begun"] = True
            yield child()
            yield child()
            memory["ended"] = True

        def collect():
            return list(numbers())
    else:

        @world.gantry.with_memory
        async def numbers(memory):
            memory["begun"] = True
            yield await child()
            yield await child()
            memory["ended"] = True

        async def collect():
            return [number async for number in numbers()]

    @world.tool
    async def parent(fails, memory):
        numbers = await call(collect)
        assert committed(world.gantry) == {}
        if fails:
            raise Boom
        return numbers, dict(memory)

    async def main():
        with contextlib.suppress(Boom):
            await call(parent, True)
        nothing = committed(world.gantry)
        return nothing, await call(parent, False)

    after = {"begun": True, "n": 2, "ended": True}
    assert world.run(main) == ({}, ([1, 2], after))
    assert committed(world.gantry) == after


def test_a_generator_is_no_parent_between_its_steps(world):
    @world.tool
    async def child(memory):
        memory.setdefault("log", []).append("child")

    async def main():
        if world.is_sync:

            @world.gantry.with_memory
            def numbers(memory):
                memory["begun"] = True
                yield 1
                raise Boom

            steps = numbers()
            next(steps)
            child()
            with pytest.raises(Boom):
                next(steps)
        else:

            @world.gantry.with_memory
            async def numbers(memory):
                memory["begun"] = True
                yield 1
                raise Boom

            steps = numbers()
            await steps.__anext__()
            await child()
            with pytest.raises(Boom):
                await steps.__anext__()

    world.run(main)

    assert committed(world.gantry) == {"log": ["child"]}


# The context variable.


@pytest.mark.parametrize("how", ["success", "failure", "unstorable", "missing"])
def test_the_context_is_as_it_was_after_a_call(world, how):
    @world.tool(scope="tenant" if how == "missing" else "session")
    async def child(memory):
        if how == "failure":
            raise Boom
        if how == "unstorable":
            memory["x"] = object()

    @world.tool
    async def parent(memory):
        here = nesting.CURRENT.get()
        with contextlib.suppress(Exception):
            await call(child)
        assert nesting.CURRENT.get() is here

    async def main():
        for tool in (child, parent):
            with contextlib.suppress(Exception):
                await call(tool)
            assert nesting.CURRENT.get() is None

    world.run(main)


@pytest.mark.parametrize("caller", ["asyncio", "trio"])
@pytest.mark.parametrize("way", WAYS)
def test_the_context_is_as_it_was_after_a_cancel(caller, way):
    world = World(caller, way)

    @world.tool
    async def child(memory):
        memory["child"] = 1
        scopes[0].cancel()
        await anyio.sleep_forever()

    @world.tool
    async def parent(memory):
        here = nesting.CURRENT.get()
        memory["p"] = 1
        with anyio.CancelScope() as scope:
            scopes[:] = [scope]
            await child()
        assert nesting.CURRENT.get() is here
        return dict(memory)

    scopes = []

    async def main():
        seen = await parent()
        with anyio.CancelScope() as scope:
            scopes[:] = [scope]
            await child()
        assert nesting.CURRENT.get() is None
        return seen

    assert world.run(main) == {"p": 1}
    after = committed(world.gantry)
    world.close()

    assert after == {"p": 1}


def test_a_memory_does_not_live_on_in_the_context_of_a_task_that_its_call_began(inline_world):
    frames = []

    @inline_world.tool
    async def parent(memory):
        frames.append(nesting.CURRENT.get())
        memory["a"] = 1

    inline_world.run(lambda: call(parent))

    if inline_world.way != "general":
        assert not any(isinstance(part, dict) for part in frames[0])
    else:
        assert not frames[0].is_open


# Against a model.

KEYS = st.sampled_from(["a", "b", "c"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["", "x"]), st.just(1.0))
SPACES = st.sampled_from(["s", "u"])
OPS = st.one_of(
    st.tuples(st.just("assign"), SPACES, KEYS, SCALARS),
    st.tuples(st.just("append"), SPACES, KEYS, SCALARS),
    st.tuples(st.just("unshift"), SPACES, KEYS, SCALARS),
    st.tuples(st.just("item"), SPACES, KEYS, KEYS, SCALARS),
    st.tuples(st.just("deep"), SPACES, KEYS, KEYS, SCALARS),
    st.tuples(st.just("less"), SPACES, KEYS, KEYS),
    st.tuples(st.just("tag"), SPACES, KEYS, st.integers(0, 3)),
    st.tuples(st.just("delete"), SPACES, KEYS),
    st.tuples(st.just("add"), SPACES, st.just("n"), st.integers(-2, 3)),
    st.tuples(st.just("assign"), SPACES, st.just("n"), st.integers(-2, 3)),
    st.tuples(st.just("clear"), SPACES, KEYS),
    st.tuples(st.just("popitem"), SPACES, KEYS),
)


def nodes(children):
    return st.tuples(
        st.just("call"), st.sampled_from(["s", "u", "su"]), st.lists(st.one_of(OPS, children), max_size=6), st.booleans()
    )


TREES = st.recursive(nodes(OPS), nodes, max_leaves=12)


class Model(dict):
    """A dict that knows what was deleted from it, at whatever time."""

    def __init__(self, *args):
        super().__init__(*args)
        self.removed = set()

    def __delitem__(self, key):
        super().__delitem__(key)
        self.removed.add(key)

    def popitem(self):
        key, value = super().popitem()
        self.removed.add(key)
        return key, value

    def clear(self):
        self.removed.update(self)
        super().clear()

    def add(self, key, n):
        self[key] = self.get(key, 0) + n


def of_kind(memory, key, kind):
    value = memory.get(key)
    if type(value) is not kind:
        memory[key] = value = kind()
    return value


def operate(memory, op):
    kind, _, key, *rest = op
    if kind == "assign":
        memory[key] = rest[0]
    elif kind == "append":
        of_kind(memory, key, list).append(rest[0])
    elif kind == "unshift":
        of_kind(memory, key, list).insert(0, [rest[0]])
    elif kind == "item":
        of_kind(memory, key, dict)[rest[0]] = rest[1]
    elif kind == "deep":
        of_kind(of_kind(memory, key, dict), rest[0], list).append({"v": rest[1]})
    elif kind == "less":
        of_kind(memory, key, dict).pop(rest[0], None)
    elif kind == "tag":
        of_kind(memory, key, set).symmetric_difference_update({rest[0]})
    elif kind == "delete":
        if key in memory:
            del memory[key]
    elif kind == "add":
        memory.add(key, rest[0])
    elif kind == "clear":
        memory.clear()
    elif memory:
        memory.popitem()


def shown(value):
    """*value* with the order of dicts and the types of scalars, for a comparison."""
    if isinstance(value, dict):
        return "dict", [(key, shown(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [shown(item) for item in value]
    return type(value).__name__, value


def held_containers(memory):
    """The containers that somebody may hold, by path, one level deep."""
    held = {(key,): value for key, value in memory.items() if type(value) in (list, dict, set)}
    for path, value in list(held.items()):
        if type(value) is dict:
            held.update({(*path, key): item for key, item in value.items() if type(item) in (list, dict, set)})
    return held


def tools_of_trees(world):
    """Tools that carry a tree of calls out and compare with the model as they go."""
    scopes = {"s": "session", "u": "user"}

    def make(spaces):
        async def body(node, model, **memories):
            _, _, ops, fails = node
            for op in ops:
                if op[0] != "call":
                    if op[1] in memories:
                        operate(memories[op[1]], op)
                        operate(model[op[1]], op)
                else:
                    await child(op, model, memories)
                for space, memory in memories.items():
                    assert shown(dict(memory)) == shown(dict(model[space]))
            if fails:
                raise Boom

        names = list(spaces)
        body.__signature__ = inspect.Signature(
            [
                *(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("node", "model")),
                *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names),
            ]
        )
        tool = world.flavoured(body)
        for name in names:
            retry = {"on_conflict": "retry", "retries": 1} if world.way == "retried" else {}
            tool = world.gantry.with_memory(scope=scopes[name], into=name, **retry)(tool)
        return tool

    async def child(node, model, memories):
        inner = {space: Model(copy.deepcopy(dict(side))) for space, side in model.items()}
        held = {space: held_containers(memory) for space, memory in memories.items()}
        try:
            await call(tools[node[1]], node, inner)
        except Boom:
            return
        for space, memory in memories.items():
            after = held_containers(memory)
            for path, container in held[space].items():
                if path[0] not in inner[space].removed and type(after.get(path)) is type(container):
                    assert after[path] is container
        for space, side in model.items():
            removed = side.removed | inner[space].removed
            dict.clear(side)
            side.update(inner[space])
            side.removed = removed

    tools = {spaces: make(spaces) for spaces in ("s", "u", "su")}
    return tools


@pytest.mark.parametrize("caller", ["sync", "asyncio"])
@pytest.mark.parametrize("way", ["short", "retried", "general", "plain"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees=st.lists(TREES, min_size=1, max_size=3))
def test_random_trees_of_calls_are_as_nested_copies_of_dicts(caller, way, trees):
    world = World(caller, way)
    tools = tools_of_trees(world)

    async def main():
        model = {"s": Model(), "u": Model()}
        for tree in trees:
            inner = {space: Model(copy.deepcopy(dict(side))) for space, side in model.items()}
            try:
                await call(tools[tree[1]], tree, inner)
            except Boom:
                pass
            else:
                model = inner
            for space, scope in (("s", "session"), ("u", "user")):
                assert shown(await world.remembered(scope)) == shown(dict(model[space]))

    try:
        world.run(main)
    finally:
        world.close()


COUNTS = st.one_of(
    st.tuples(st.just("add"), st.integers(-3, 3)),
    st.tuples(st.just("assign"), st.integers(8, 12)),
    st.tuples(st.just("remake"), st.integers(8, 12)),
    st.tuples(st.just("read"), st.just(0)),
)
COUNT_TREES = st.recursive(
    st.tuples(st.just("call"), st.lists(COUNTS, max_size=3), st.booleans()),
    lambda inner: st.tuples(st.just("call"), st.lists(st.one_of(COUNTS, inner), max_size=4), st.booleans()),
    max_leaves=8,
)


def count_model(node, value):
    """What a tree of calls makes of a counter: its value, and whether somebody assigned to it."""
    _, ops, fails = node
    start, assigned, remade = value, False, False
    for op in ops:
        if op[0] == "add":
            value += op[1]
        elif op[0] in ("assign", "remake"):
            value, assigned = op[1], True
            remade = remade or op[0] == "remake"
        elif op[0] == "call":
            inside = count_model(op, value)
            if inside is not None:
                value, assigned_inside, remade_inside = inside
                assigned, remade = assigned or assigned_inside, remade or remade_inside
    if fails:
        return None
    # What is as it was found is no change, unless it was deleted meanwhile.
    return value, assigned and (value != start or remade), remade


@pytest.mark.parametrize("way", ["short", "retried", "general"])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=COUNT_TREES)
def test_an_addition_anywhere_in_a_tree_of_calls_stays_one(way, tree):
    """A stranger adds 1000 before the outermost commit: that counts, unless a call which succeeded assigned to the key."""
    world = World("sync", way)

    @world.tool(on_conflict="raise")
    async def counting(node, memory):
        for op in node[1]:
            if op[0] == "add":
                memory.add("n", op[1])
            elif op[0] == "remake":
                del memory["n"]
                memory["n"] = op[1]
            elif op[0] == "assign":
                memory["n"] = op[1]
            elif op[0] == "call":
                with contextlib.suppress(Boom):
                    counting(op)
        if node[2]:
            raise Boom
        return memory["n"]

    @world.tool
    async def stranger(memory):
        memory.add("n", 1000)

    @world.tool(on_conflict="raise")
    async def outermost(memory):
        counting(tree)
        with world.gantry.independent():
            stranger()

    with world.gantry.memory() as memory:
        memory["n"] = 10
    expected = count_model(tree, 10)
    try:
        outermost()
        conflict = False
    except Boom:
        conflict = None
    except MemoryConflictError:
        conflict = True
    after = committed(world.gantry)
    world.close()

    if expected is None:
        assert (conflict, after) == (None, {"n": 10})
    elif not expected[1]:
        assert (conflict, after) == (False, {"n": 1000 + expected[0]})
    else:
        # An assignment of what was there is no change for the merge.
        assert (conflict, after) == ((False, {"n": 1010}) if expected[0] == 10 else (True, {"n": 1010}))


TTL_OPS = st.one_of(
    st.tuples(st.just("assign"), KEYS, st.integers(0, 5)),
    st.tuples(st.just("set"), KEYS, st.sampled_from([None, 7, 70])),
    st.tuples(st.just("expire"), KEYS, st.sampled_from([None, 8, 80])),
    st.tuples(st.just("delete"), KEYS, st.just(None)),
)
TTL_TREES = st.recursive(
    st.tuples(st.just("call"), st.sampled_from([None, 20, 30]), st.lists(TTL_OPS, max_size=3), st.booleans()),
    lambda inner: st.tuples(
        st.just("call"), st.sampled_from([None, 20, 30]), st.lists(st.one_of(TTL_OPS, inner), max_size=4), st.booleans()
    ),
    max_leaves=6,
)
_SERIAL = itertools.count()


@pytest.mark.parametrize("way", ["short", "retried", "general"])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees=st.lists(TTL_TREES, min_size=1, max_size=2))
@example(
    trees=[("call", 30, [("call", None, [("call", 20, [("assign", "a", 0)], False)], False), ("assign", "a", 0)], False)]
)
def test_times_to_live_in_a_tree_of_calls_are_those_of_one_call_after_the_other(way, trees):
    world = World("sync", way)

    def make(ttl):
        @world.tool(ttl=ttl)
        async def tool(node, model, given, memory):
            """*given* gets the keys to which this call, or one inside it, gave a time of their own, which stays then."""
            for kind, *op in node[2]:
                if kind == "call":
                    inner, given_inside = dict(model), set()
                    try:
                        tools[op[0]]((kind, *op), inner, given_inside)
                    except Boom:
                        continue
                    for gone in model.keys() - inner.keys():
                        given.discard(gone)
                    model.clear()
                    model.update(inner)
                    given.update(given_inside)
                else:
                    key, value = op
                    if kind == "assign":
                        memory[key] = next(_SERIAL)
                        if ttl is not None and key not in given:
                            model[key] = ttl
                        model.setdefault(key, None)
                    elif kind == "set":
                        memory.set(key, next(_SERIAL), ttl=value)
                        model[key] = value
                        given.add(key)
                    elif kind == "expire" and key in memory:
                        memory.expire(key, value)
                        model[key] = value
                        given.add(key)
                    elif kind == "delete" and key in memory:
                        del memory[key]
                        del model[key]
                        given.discard(key)
                assert {key: memory.ttl(key) for key in memory} == model
            if node[3]:
                raise Boom

        return tool

    tools = {ttl: make(ttl) for ttl in (None, 20, 30)}
    model = {}
    try:
        for tree in trees:
            inner = dict(model)
            try:
                tools[tree[1]](tree, inner, set())
            except Boom:
                pass
            else:
                model = inner
            with world.gantry.memory() as memory:
                assert {key: memory.ttl(key) for key in memory} == model
    finally:
        world.close()


def test_a_deleted_key_that_a_child_makes_again_has_no_time_that_it_never_had(world):
    @world.tool
    async def grandchild(memory):
        memory["c"] = 2

    @world.tool(ttl=20)
    async def child(memory):
        del memory["c"]
        await call(grandchild)
        return memory.ttl("c")

    @world.tool
    async def parent(memory):
        memory["c"] = 1
        return await call(child), memory.ttl("c")

    async def main():
        return await call(parent), await world.ttls()

    assert world.run(main) == ((None, None), {"c": None})


def test_a_temporary_key_stays_in_sight_of_a_call_of_other_keys_while_it_calls(world):
    @world.tool
    async def child(memory):
        memory["b"] = 2

    @world.tool(keys=("a",))
    async def parent(memory):
        memory["temporary"] = 1
        await call(child)
        memory["a"] = memory.pop("temporary")
        return dict(memory)

    async def main():
        return await call(parent), await world.remembered()

    assert world.run(main) == ({"a": 1}, {"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("inside", "after", "left"),
    [
        (lambda memory: memory.add("n"), lambda memory: memory.update(n=5), 50),
        (lambda memory: memory.add("n"), lambda memory: None, None),
        (lambda memory: memory.update(n=1), lambda memory: memory.update(n=5), 50),
        (lambda memory: memory.set("n", 1, ttl=7), lambda memory: memory.update(n=5), 7),
    ],
)
def test_what_a_call_writes_after_one_inside_has_the_time_of_its_own_decorator(inside, after, left):
    with Gantry(MemoryStore(clock=lambda: 1000.0), session="s") as gantry:
        plain = gantry.with_memory(lambda body, memory: body(memory))

        @gantry.with_memory(ttl=50)
        def outer(memory):
            plain(inside)
            after(memory)

        outer()

        assert plain(lambda memory: memory.ttl("n")) == left
