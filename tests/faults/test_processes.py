from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from faults.faulty import SERVERS, open_gantry

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


@pytest.mark.parametrize("name", ["memory", "file", "sqlite", *SERVERS])
def test_program_that_closes_nothing_ends_with_a_call_in_flight(name, tmp_path):
    url = {"memory": "memory://", "file": f"file:///{tmp_path}/state", "sqlite": f"sqlite:///{tmp_path}/state.db"}.get(name)
    url = url or SERVERS[name]().url
    program = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "default::ResourceWarning",
            "-c",
            textwrap.dedent(PROGRAM),
            url,
            str(tmp_path),
        ],
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
    wrong = []
    with open_gantry(SERVERS[name]().url, "?max_connections=1&load_timeout=20&commit_timeout=20") as gantry:

        def stamp(who, memory):
            if memory.setdefault("who", who) != who:
                wrong.append((who, memory["who"]))
            memory.add("calls", 1)

        async def astamp(who, memory):
            stamp(who, memory)
            await asyncio.sleep(0)

        tool, atool = gantry.with_memory(scope="user")(stamp), gantry.with_memory(scope="user")(astamp)
        people = [f"{name}-{time.time_ns()}-{n}" for n in range(100)]

        def thread(mine):
            for who in mine * 5:
                with gantry.session(user=who):
                    tool(who)

        async def task(who):
            for _ in range(5):
                with gantry.session(user=who):
                    await atool(who)

        async def tasks():
            await asyncio.gather(*[task(who) for who in people])

        threads = [threading.Thread(target=contextvars.Context().run, args=(thread, people[n::10])) for n in range(10)]
        for each in threads:
            each.start()
        asyncio.run(tasks())
        for each in threads:
            each.join()

        assert wrong == []
        for who in people:
            with gantry.memory("user", user=who) as memory:
                assert memory == {"who": who, "calls": 10}
