"""Plain functions without agent-gantry: a session's basket, a user's preferences, and calls that run at once.

Run it: python examples/plain_functions.py
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

from agent_gantry_state import Gantry, Memory

gantry = Gantry()


@gantry.with_memory(scope="user", into="preferences")
@gantry.with_memory(scope="session")
def put_in_basket(item: str, memory: Memory, preferences: dict) -> str:
    memory.setdefault("basket", []).append(item)
    count = memory.add("items", 1)
    return f"{count} {preferences.get('word', 'items')} in the basket"


@gantry.with_memory(scope="user")
def prefer(key: str, value: str, memory: dict) -> None:
    memory[key] = value


with gantry, gantry.session("s1", user="ada"):
    prefer("word", "things")
    print(put_in_basket("shoes"))

    with ThreadPoolExecutor() as pool:
        # A thread knows nothing of its maker's session, unless it is given a copy of the context.
        jobs = [pool.submit(copy_context().run, put_in_basket, f"sock {number}") for number in range(20)]
    for job in jobs:
        job.result()

    with gantry.memory() as memory:
        print(f"{memory['items']} things, {len(memory['basket'])} of them listed")
