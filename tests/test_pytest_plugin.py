"""The fixture `memory_override`, in a test file of a program that has no conftest."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

# Its tests run in the order in which they stand: each "back" test finds nothing of the one before it.
PROGRAM = """
import threading

import anyio
import pytest

from agent_gantry_state import Gantry, MissingIdentityError, Namespace, current_identity
from agent_gantry_state.stores.memory import MemoryStore

gantry = Gantry()


@gantry.with_memory
def count(memory):
    return memory.add("n", 1)


@gantry.with_memory(scope="user")
def count_user(memory):
    return memory.add("n", 1)


@gantry.with_memory
async def acount(memory):
    return memory.add("n", 1)


@gantry.with_memory(ttl=60)
def remember(memory):
    memory["x"] = 1


@gantry.with_memory
def read(memory):
    return dict(memory)


def everything_is_back():
    assert current_identity() is None
    with pytest.raises(MissingIdentityError):
        count()
    with gantry.memory(session="s1") as memory:
        assert memory == {}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


def test_fresh(memory_override):
    test = memory_override(gantry, session="s1", user="ada", tenant="acme")
    assert (count(), count(), count_user()) == (1, 2, 1)
    assert len(test.store) == 2
    assert dict(current_identity().keys) == {"session": "s1", "user": "ada", "tenant": "acme"}


def test_fresh_back(memory_override):
    everything_is_back()
    memory_override(gantry, session="s1", user="ada")
    assert count() == 1


def test_failing(memory_override):
    memory_override(gantry, session="s1")
    count()
    raise RuntimeError("on purpose")


def test_failing_back():
    everything_is_back()


def test_failing_block(memory_override):
    with memory_override(gantry, session="s1"):
        count()
        raise RuntimeError("on purpose")


def test_failing_block_back():
    everything_is_back()


def test_block(memory_override):
    with gantry.session("outer"):
        before = count()
        with memory_override(gantry, session="s1") as test:
            assert count() == 1
            with memory_override(gantry, session="s1"):
                assert count() == 1
            assert count() == 2
        assert count() == before + 1
        test.undo()
        assert count() == before + 2


def test_undo(memory_override):
    with gantry.session("outer"):
        before = count()
        test = memory_override(gantry, session="outer")
        assert count() == 1
        test.undo()
        test.undo()
        assert count() == before + 1


def test_clock(memory_override):
    test = memory_override(gantry, session="s1")
    remember()
    now = test.clock()
    test.clock.advance(59.5)
    assert test.clock() == now + 59.5
    assert read() == {"x": 1}
    test.clock.advance(0.5)
    assert read() == {}


def everybody(request):
    return Namespace("global", "one") if request.scope == "session" else None


def test_resolvers(memory_override):
    memory_override(gantry, resolvers=[everybody])
    assert (count(), count()) == (1, 2)


def test_resolvers_back():
    everything_is_back()


def test_store(memory_override):
    mine = MemoryStore()
    test = memory_override(gantry, store=mine, session="s1")
    assert test.store is mine
    assert count() == 1
    test.undo()
    with gantry.override(store=mine, session="s1"):
        assert count() == 2


def test_threads(memory_override):
    memory_override(gantry, session="s1")
    count()
    found = []

    def elsewhere():
        with gantry.session("s1"):
            found.append(count())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [2]


@pytest.mark.anyio
async def test_async(memory_override):
    memory_override(gantry, session="s1")
    assert await acount() == 1
    assert await anyio.to_thread.run_sync(count) == 2
    async with anyio.create_task_group() as group:
        group.start_soon(acount)
    async with gantry.memory() as memory:
        assert memory == {"n": 3}


@pytest.mark.anyio
async def test_async_back(memory_override):
    everything_is_back()
    with memory_override(gantry, session="s1"):
        assert await acount() == 1
    everything_is_back()
"""


def run(folder, *options):
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (folder / "test_program.py").write_text(PROGRAM)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, env=environment)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of each test of the program."""
    done = run(tmp_path_factory.mktemp("program"), "-v")
    found = re.findall(r"^test_program.py::(\S+) (\w+)", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return dict(found)


PROMISES = {
    "fresh store and identity until the test ends": ("fresh", "fresh_back"),
    "undone although the test failed": ("failing_back", "failing_block_back"),
    "undone by its block or by hand": ("block", "undo"),
    "a clock that the test moves": ("clock",),
    "resolvers": ("resolvers", "resolvers_back"),
    "a store of the test's own": ("store",),
    "store swapped in every thread": ("threads",),
    "async tests": ("async[asyncio]", "async[trio]", "async_back[asyncio]", "async_back[trio]"),
}


@pytest.mark.parametrize("promise", PROMISES)
def test_override_keeps_its_promise(outcomes, promise):
    assert {outcomes[f"test_{name}"] for name in PROMISES[promise]} == {"PASSED"}


def test_tests_that_fail_still_fail(outcomes):
    assert [name for name, outcome in outcomes.items() if outcome != "PASSED"] == ["test_failing", "test_failing_block"]


def test_fixture_comes_without_a_conftest_and_is_explained(tmp_path):
    done = run(tmp_path, "--fixtures")

    assert done.returncode == 0, done.stdout
    assert "memory_override" in done.stdout
    assert "swaps a gantry's store and clock" in done.stdout


def test_it_is_here_by_entry_point(memory_override, request):
    plugin = request.config.pluginmanager.get_plugin("agent_gantry_state")

    assert plugin.__name__ == "agent_gantry_state.pytest_plugin"
