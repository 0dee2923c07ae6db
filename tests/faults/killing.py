"""Processes that are truly killed, each at another step of what it writes; and logs of SQLite that are cut off.

This file is also the program that forks them: `killing.py file|sqlite DIRECTORY FIRST STEP`. It prints how many were killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]

from faults.crashes import ALL, Places, Script, State, state, usable
from faults.disk import Disk

from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores.file import FileStore
from agent_gantry_state.stores.sqlite import SQLiteStore
from agent_gantry_state.testing import Clock, Talk

#: SQLite makes a file of this size before it writes anything.
_SHARED = 32_768


def main(kind: str, folder: str, first: str, step: str) -> None:
    place, kills = pathlib.Path(folder), 0
    for moment in range(int(first), 1_000_000, int(step)):
        root = place / f"root{moment}"
        if _is_killed(kind, root, moment):
            kills += 1
        else:
            break
        shutil.rmtree(root)
    print(kills)


def _is_killed(kind: str, root: pathlib.Path, moment: int) -> bool:
    """Let a child write until the moment, and see what it has left; whether there was such a moment."""
    mouth, ear = os.pipe()[::-1]
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(ear)
            _write(kind, root, moment, mouth)
            status = 0
        finally:
            os._exit(status)
    os.close(mouth)
    with os.fdopen(ear) as said:
        lines = said.read().splitlines()
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    allowed, now = json.loads(lines[-1]) if lines else ([[None] * len(ALL)], Clock().now)
    with contextlib.closing(_open(kind, root, Clock(now))) as store:
        talk = Talk(bridge_to(store))
        found = state(talk)
        assert list(found) in allowed, (moment, found, allowed)
        usable(talk)
    left = {each.name for each in (root / "state").glob("*") if len(each.name.partition(".")[0]) != 64}
    assert kind == "sqlite" or left == {"agent-gantry-state", "lock"}, left
    return os.WIFSIGNALED(status)


def _open(kind: str, root: pathlib.Path, clock: Clock) -> Any:
    return FileStore(root / "state", clock=clock) if kind == "file" else SQLiteStore(root / "state.db", "full", clock=clock)


def _write(kind: str, root: pathlib.Path, moment: int, mouth: int) -> None:
    disk = Disk(root)
    clock = Clock()
    script = Script(_open(kind, root, clock), clock)

    def tell(allowed: list[State], now: float) -> None:
        os.write(mouth, (json.dumps([allowed, now]) + "\n").encode())

    def die() -> None:
        if disk.done + 1 == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    script.tell = tell
    if kind == "file":
        disk.before = die
        with disk.watching():
            script.run()
    else:
        # The system kills whoever writes beyond it, in the middle of a page.
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_SHARED + moment, resource.RLIM_INFINITY))
        script.run()


def killed(kind: str, folder: pathlib.Path, step: int, chance: random.Random) -> int:
    """Kill a writer at each *step*-th moment; how many were killed."""
    command = [sys.executable, "-W", "error", __file__, kind, str(folder), str(chance.randint(1, step)), str(step)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600).stdout)


def cut_off_logs(folder: pathlib.Path, step: int, chance: random.Random) -> Counter[str]:
    """Cut off the log of a SQLite file at each *step*-th byte, as a power cut may, or fill the rest with noise."""
    counts, places = Counter[str](), Places(folder)
    with places.new() as root:
        root.mkdir()
        clock = Clock()
        with contextlib.closing(SQLiteStore(root / "state.db", "full", clock=clock)) as store:
            script = Script(store, clock)
            script.run()
            base, log = (root / "state.db").read_bytes(), (root / "state.db-wal").read_bytes()
        # Each by itself: zeros may be what was cut off.
        before = [-1, -1, -1]
        for size in sorted({*range(chance.randrange(step), len(log), step), len(log)}):
            for kind, rest in enumerate((b"", bytes(len(log) - size), _noise(len(log) - size, chance))):
                before[kind] = _read_cut(places, base, log[:size] + rest, script.history, before[kind])
                counts["logs cut off"] += 1
        assert before == [len(script.history) - 1] * 3, "what was acknowledged is not there"
    return counts


def _noise(size: int, chance: random.Random) -> bytes:
    # In Python 3.10 there are none of no size.
    return chance.randbytes(size) if size else b""


def _read_cut(places: Places, base: bytes, log: bytes, history: list[State], least: int) -> int:
    with places.new() as root:
        root.mkdir()
        (root / "state.db").write_bytes(base)
        (root / "state.db-wal").write_bytes(log)
        # Of a time before anything expires: so that one commit can be told from another.
        with contextlib.closing(SQLiteStore(root / "state.db", clock=Clock())) as store:
            talk = Talk(bridge_to(store))
            found = state(talk)
            # What was swept looks as if it had expired.
            index = max(at for at, each in enumerate(history) if each == found)
            assert index >= least, (found, least)
            usable(talk)
    return index


if __name__ == "__main__":
    main(*sys.argv[1:])
