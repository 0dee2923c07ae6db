from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest
from faults.faulty import SERVERS, crowd

WARNINGS = ("-W", "error", "-W", "default::ResourceWarning")
PROGRAM = """
    import asyncio, sys, threading
    from agent_gantry_state import Gantry

    gantry = Gantry(sys.argv[1], app=sys.argv[2], session="s", user="u")
    entered = threading.Event()

    @gantry.with_memory
    def tool(memory):
        memory.add("n", 1)

    @gantry.with_memory(exclusive=True)
    async def atool(memory):
        memory.add("n", 1)

    @gantry.with_memory(exclusive=True)
    def in_flight(memory):
        memory["half"] = True
        entered.set()
        threading.Event().wait()

    tool()
    asyncio.run(atool())
    threading.Thread(target=in_flight, daemon=True).start()
    assert entered.wait(10)
    print("ends")
"""


def url_of(name, tmp_path):
    url = {"memory": "memory://", "file": f"file:///{tmp_path}/state", "sqlite": f"sqlite:///{tmp_path}/state.db"}.get(name)
    return url or SERVERS[name]().url


@pytest.mark.parametrize("name", ["memory", "file", "sqlite", *SERVERS])
def test_program_that_closes_nothing_ends_with_a_call_in_flight(name, tmp_path):
    program = subprocess.Popen(
        [sys.executable, *WARNINGS, "-c", textwrap.dedent(PROGRAM), url_of(name, tmp_path), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout.readline() == "ends\n", program.stderr.read()
        began = time.monotonic()
        _, said = program.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert program.returncode == 0
    assert all("ResourceWarning" in line for line in said.splitlines() if "Warning" in line or "Error" in line), said


@pytest.mark.parametrize("name", SERVERS)
def test_thousand_calls_of_a_hundred_users_through_one_connection_do_not_cross(name):
    crowd(SERVERS[name]())


FORKS = """
    import asyncio, os, sys, warnings
    from agent_gantry_state import Gantry, OrphanedCallError
    from agent_gantry_state.stores.protocol import Lease

    warnings.simplefilter("ignore", DeprecationWarning)
    url, app, leaves, is_async, exclusive = sys.argv[1:]
    gantry = Gantry(url, app=app, session="s", user="u")

    @gantry.with_memory
    def note(who, memory):
        memory.setdefault("log", []).append(who)

    def inside(memory):
        memory.add("n", 1)
        child = os.fork()
        if not child:
            note("child")
            if leaves:
                return
            os._exit(7)
        memory["status"] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # The child has not given back what its parent has to itself.
        memory["held"] = not exclusive or url == "memory://" or gantry._wiring.settings.bridge.store.lease(
            Lease(memory._namespace, b"somebody else", 1.0)
        ) > 0

    async def ainside(memory):
        inside(memory)
        await asyncio.sleep(0)

    note("before")
    decorate = gantry.with_memory(scope="user", exclusive=bool(exclusive))
    try:
        if is_async:
            asyncio.run(decorate(ainside)())
        else:
            decorate(inside)()
    except OrphanedCallError as error:
        os._exit(7 if error.committed is False and "forked" in str(error) else 8)
    note("parent")
    with gantry.memory("user") as memory:
        print(dict(memory))
    with gantry.memory() as memory:
        print(memory.get("log"))
    gantry.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")
@pytest.mark.parametrize("name", ["memory", "file", "sqlite", *SERVERS])
@pytest.mark.parametrize(
    ("leaves", "is_async", "exclusive"),
    [("leaves", "", "exclusive"), ("", "async", "exclusive"), ("leaves", "", ""), ("", "async", "")],
)
def test_call_that_is_forked_in_its_middle_is_committed_by_the_parent_alone(name, leaves, is_async, exclusive, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKS), url_of(name, tmp_path), str(tmp_path), leaves, is_async, exclusive],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stderr) == (0, "")
    # What the child calls is no part of its parent's call; its memory:// is its own.
    log = ["before", "parent"] if name == "memory" else ["before", "child", "parent"]
    assert done.stdout.splitlines() == [str({"n": 1, "status": 7, "held": True}), str(log)]


WRITERS = """
    import os, sys, threading, warnings
    from agent_gantry_state import Gantry

    warnings.simplefilter("ignore", DeprecationWarning)
    gantry = Gantry(sys.argv[1], app=sys.argv[2], session="s")

    @gantry.with_memory
    def note(who, memory):
        memory.setdefault("log", []).append(who)

    def write(who):
        n = 0
        while not stop.is_set():
            note([who, n])
            written.append([who, n])
            n += 1
            going.set()

    written, stop, going = [], threading.Event(), threading.Event()
    threads = [threading.Thread(target=write, args=(f"thread {n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    going.wait()
    for turn in range(3):
        note(["before", turn])
        pid = os.fork()
        for n in range(10):
            note([f"{'parent' if pid else 'child'} {turn}", n])
        if not pid:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        written += [["before", turn], *([f"{who} {turn}", n] for n in range(10) for who in ("parent", "child"))]
    stop.set()
    for thread in threads:
        thread.join()
    with gantry.memory() as memory:
        assert sorted(memory["log"]) == sorted(written)
    gantry.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork there")
@pytest.mark.parametrize("name", SERVERS)
def test_fork_while_other_threads_are_answered_harms_neither_side(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WRITERS), url_of(name, tmp_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
