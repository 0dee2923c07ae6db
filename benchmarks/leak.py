"""Whether calls leave anything behind: memory blocks of the interpreter and resident bytes, over a growing number of calls.

Each kind of call is made in rounds that double. What a cache or a store fills once does not grow with them; a leak does, by
as much for each call. Nothing is asserted about time.

    python benchmarks/leak.py --calls 1000000
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from agent_gantry_state import Gantry, MemoryConflictError, SyncSession

__all__ = ["KINDS", "kinds", "left_behind"]

KINDS = (
    "sync", "async", "failing", "nested", "conflict", "retried", "generator", "layered", "private", "typed", "ttl",
    "session", "many sessions", "block", "refused", "some keys", "by key", "serializable", "exclusive", "two memories",
)  # fmt: skip

Call = Callable[[], Any]


@dataclass
class State:
    """What the typed call remembers."""

    n: int = 0
    k: str = ""
    log: list[str] = field(default_factory=list)


def kinds() -> dict[str, Call]:
    """One call of each kind, on a gantry of its own, by name."""
    gantry = Gantry(session="s", user="u", store="memory://?max_namespaces=1000")
    numbers = count()

    def write(memory: dict[str, Any]) -> None:
        memory["k"] = f"value {next(numbers)}"
        memory.setdefault("log", []).append("x")
        del memory["log"][:-5]

    async def awrite(memory: dict[str, Any]) -> None:
        write(memory)

    def fail(memory: dict[str, Any]) -> None:
        write(memory)
        raise LookupError

    def generate(memory: dict[str, Any]) -> Any:
        write(memory)
        yield 1

    def typed(memory: State) -> None:
        memory.n = next(numbers)
        memory.log = [*memory.log[-4:], "x"]

    tool = gantry.with_memory(write)
    atool, failing, generating = gantry.with_memory(awrite), gantry.with_memory(fail), gantry.with_memory(generate)

    def outer(memory: dict[str, Any]) -> None:
        memory["outer"] = next(numbers)
        tool()

    def beaten(memory: dict[str, Any]) -> None:
        memory["k"] = f"mine {next(numbers)}"
        with gantry.independent():
            tool()

    def beaten_once(memory: dict[str, Any]) -> None:
        mine = next(numbers)
        memory["k"] = f"mine {mine}"
        if mine % 2 == 0:
            with gantry.independent():
                gantry.with_memory(lambda memory: memory.update(k=f"theirs {next(numbers)}"))()
                next(numbers)

    nested, conflicting = gantry.with_memory(outer), gantry.with_memory(beaten)
    retried = gantry.with_memory(on_conflict="retry")(beaten_once)
    layered = gantry.with_memory(scope=("user", "session"))(write)
    private = gantry.with_memory(private=True)(write)
    timed = gantry.with_memory(scope="user", ttl=60, sliding=True)(write)
    some_keys = gantry.with_memory(keys=("k", "log"))(write)
    serializable = gantry.with_memory(isolation="serializable")(write)
    exclusive = gantry.with_memory(exclusive=True)(write)

    @gantry.with_memory
    @gantry.with_memory(scope="user", into="prefs")
    def both(memory: dict[str, Any], prefs: dict[str, Any]) -> None:
        write(memory)
        write(prefs)

    @gantry.with_session
    def by_key(session: SyncSession) -> None:
        session.set("k", f"value {next(numbers)}")
        session.add("n", 1)

    def expect(error: type[Exception], call: Call) -> None:
        try:
            call()
        except error:
            return
        raise AssertionError(f"no {error.__name__}")

    def in_session(id: str) -> None:
        with gantry.session(id, user="u"):
            tool()

    def in_block() -> None:
        with gantry.memory() as memory:
            write(memory)

    found: dict[str, Call] = {
        "sync": tool,
        "async": lambda: _drive(atool()),
        "failing": lambda: expect(LookupError, failing),
        "nested": nested,
        "conflict": lambda: expect(MemoryConflictError, conflicting),
        "retried": retried,
        "generator": lambda: list(generating()),
        "layered": layered,
        "private": private,
        "typed": gantry.with_memory(typed),
        "ttl": timed,
        "session": lambda: in_session("other"),
        "many sessions": lambda: in_session(f"session {next(numbers) % 500}"),
        "block": in_block,
        "refused": lambda: expect(TypeError, lambda: tool(memory={})),
        "some keys": some_keys,
        "by key": by_key,
        "serializable": serializable,
        "exclusive": exclusive,
        "two memories": both,
    }
    assert tuple(found) == KINDS
    return found


def _drive(coroutine: Any) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def left_behind(call: Call, calls: int, warm: int = 1000) -> int:
    """Blocks that the interpreter has allocated after so many calls, beyond those that it had before."""
    for _ in range(warm):
        call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(calls):
        call()
    gc.collect()
    return sys.getallocatedblocks() - before


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether calls leave anything behind.")
    parser.add_argument("--calls", type=int, default=20_000, help="how many calls of each kind (default: 20,000)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind; may be given several times")
    options = parser.parse_args()
    print(f"{'kind':14}  {'calls':>9}  {'blocks left':>11}  {'for a call':>10}  {'resident KB':>11}")
    for name, call in kinds().items():
        if options.kind and name not in options.kind:
            continue
        calls, warm = options.calls // 4, 1000
        for calls in (options.calls // 4, options.calls // 2, options.calls):
            size = resident()
            left = left_behind(call, calls, warm)
            grown = (resident() - size) // 1024
            print(f"{name:14}  {calls:9}  {left:11}  {left / calls:10.5f}  {grown:11}", flush=True)
            warm = 0


if __name__ == "__main__":
    main()
