"""What type checkers must refuse, on the lines that end in `# E` and on no other. Checked, never run."""

from __future__ import annotations

from typing import Any

from agent_gantry_state import Gantry, Identity, Memory, Namespace, Request, Scope, Tool, current_identity, merge

gantry = Gantry()


@gantry.with_memory
def tool(item: str, memory: Memory) -> list[str]:
    return [item]


@gantry.with_memory(scope="user", into="notes")
async def asynchronous(item: str, notes: Memory) -> bytes:
    return item.encode()


class Shop:
    @gantry.with_memory
    def buy(self, item: str, memory: Memory) -> int:
        return 1

    @classmethod
    @gantry.with_memory
    def opened(cls, memory: Memory) -> bool:
        return True


# What a tool returns.

number: int = tool("a")  # E
text: str = tool("a")[0]
tool("a").upper()  # E
not_awaited: bytes = asynchronous("a")  # E
bought: str = Shop().buy("a")  # E
opened: str = Shop.opened()  # E


async def calls() -> None:
    awaited: str = await asynchronous("a")  # E
    await tool(awaited)  # E


# The function itself.

tool.__wrapped__("a")  # E
tool.__wrapped__(1, Memory())  # E
tool.__wrapped__("a", memory=[])  # E
tool.__wrapped__("a", Memory(), "more")  # E
wrong: Tool[[int], str] = tool  # E

# The decorator.


@gantry.with_memory(scope=1)  # E
def scope(memory: Memory) -> None: ...


@gantry.with_memory(scope=None)  # E
def no_scope(memory: Memory) -> None: ...


@gantry.with_memory(on_conflict="again")  # E
def on_conflict(memory: Memory) -> None: ...


@gantry.with_memory(ttl="60")  # E
def ttl(memory: Memory) -> None: ...


@gantry.with_memory(retries="3")  # E
def retries(memory: Memory) -> None: ...


@gantry.with_memory(merge={"n": 5})  # E
def merges(memory: Memory) -> None: ...


@gantry.with_memory(merge=merge.add)  # E
def one_merge(memory: Memory) -> None: ...


@gantry.with_memory(merge={"n": lambda ours: ours})  # E
def merge_of_one(memory: Memory) -> None: ...


@gantry.with_memory(share="session")  # E
def unknown(memory: Memory) -> None: ...


gantry.with_memory("session")  # E
gantry.with_memory(5)  # E
gantry.with_memory()(5)  # E

# Identity.

gantry.session(1)  # E
gantry.session("s1", "ada")  # E
gantry.session("s1", user=5)  # E
gantry.session("s1", tenant=5)  # E
gantry.memory(session=5)  # E
gantry.memory(scope=5)  # E
gantry.override(user=5)  # E
gantry.override(clock=5)  # E
gantry.override(clock=lambda: "now")  # E
gantry.override(resolvers=[5])  # E
known: Identity = current_identity()  # E
Identity(5)  # E
Identity("s1").session = "s2"  # E
Identity("s1").tenant  # E
Namespace("session")  # E
Namespace("session", 5)  # E
Scope(ttl="60")  # E
Gantry(app=5)  # E
Gantry(scopes={"session": 60})  # E
Gantry("memory://", "mine")  # E


def wrong_resolver(request: Request) -> str:
    return "s1"


Gantry(resolvers=[wrong_resolver])  # E

# Memory.

with gantry.memory("session", session="s1") as memory:
    memory[1] = 2  # E
    memory.add(1, 1)  # E
    memory.expire("n")  # E
    memory.set("n", 1, ttl="60")  # E
    memory.append(1)  # E
    plain: dict[str, Any] = memory

with gantry.session("s1") as identity:
    identity.session.upper()  # E

gantry.memory()["n"] = 1  # E
with gantry:
    gantry.aclose().result()  # E
