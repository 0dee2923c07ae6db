"""Versions of commits, and what the short way does with containers that another call has changed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from agent_gantry_state import Gantry, MemoryConflictError
from agent_gantry_state.committing import new_version

FORK = """
import os
from agent_gantry_state.committing import new_version
new_version()
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(write, b"".join(new_version() for _ in range(300)))
    os._exit(0)
os.waitpid(pid, 0)
theirs = os.read(read, 2400)
ours = {new_version() for _ in range(300)}
print(len(ours), len(ours & {theirs[i : i + 8] for i in range(0, 2400, 8)}))
"""


def test_no_two_commits_draw_the_same_version():
    drawn = [new_version() for _ in range(1000)]

    assert len(set(drawn)) == 1000
    assert {len(version) for version in drawn} == {8}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_process_draws_other_versions_than_its_parent():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)

    assert done.stdout.split() == ["300", "0"], done.stderr


def test_lists_that_two_calls_append_to_are_merged_also_from_the_short_way():
    gantry = Gantry(session="s")
    append = gantry.with_memory(lambda item, memory: memory.setdefault("log", []).append(item))
    append("first")

    @gantry.with_memory
    def beaten(memory):
        with gantry.independent():
            append("theirs")
        memory["log"].append("ours")

    beaten()

    assert gantry.with_memory(lambda memory: memory["log"])() == ["first", "theirs", "ours"]


def test_a_container_in_place_of_text_that_another_call_changed_is_a_conflict():
    gantry = Gantry(session="s")
    put = gantry.with_memory(lambda value, memory: memory.update(k=value))
    put("base")

    @gantry.with_memory
    def beaten(memory):
        with gantry.independent():
            put("theirs")
        memory["k"] = ["ours"]

    with pytest.raises(MemoryConflictError):
        beaten()
    assert gantry.with_memory(lambda memory: memory["k"])() == "theirs"


@pytest.mark.parametrize("after", [["a"], {"a": 1}, ("a",), {"a"}, [], "text"], ids=repr)
@pytest.mark.parametrize("before", [["b"], "text before", 1], ids=repr)
def test_a_value_takes_the_place_of_another_kind(before, after):
    gantry = Gantry(session="s")
    gantry.with_memory(lambda memory: memory.update(k=before, other=["kept"]))()

    gantry.with_memory(lambda memory: memory.update(k=after))()

    found = gantry.with_memory(lambda memory: dict(memory))()
    assert found == {"k": after, "other": ["kept"]}
    assert list(found) == ["k", "other"]
    assert type(found["k"]) is type(after)


def test_a_session_that_is_entered_again_sees_what_was_forgotten_in_between():
    gantry = Gantry()
    put = gantry.with_memory(lambda memory: memory.update(k=1))
    read = gantry.with_memory(lambda memory: dict(memory))
    with gantry.session("s"):
        put()
    gantry.forget("session", session="s")

    with gantry.session("s"):
        assert read() == {}
