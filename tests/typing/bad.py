"""What type checkers must refuse, on the lines that end in `# E` and on no other. Checked, never run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from agent_gantry_state import (
    AgentGantry,
    ExecutionContext,
    Gantry,
    Identity,
    Memory,
    Namespace,
    Request,
    Scope,
    Session,
    SyncExecutionContext,
    SyncSession,
    Tool,
    current_identity,
    merge,
)

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


@gantry.with_memory(isolation="none")  # E
def isolation(memory: Memory) -> None: ...


@gantry.with_memory(exclusive="yes")  # E
def exclusive(memory: Memory) -> None: ...


@gantry.with_memory(keys=5)  # E
def keys(memory: Memory) -> None: ...


gantry.with_memory("session")  # E
gantry.with_memory(5)  # E
gantry.with_memory()(5)  # E

# A memory of a class of one's own.


class Prefs(BaseModel):
    volume: int = 3


@gantry.with_memory
def of_a_model(text: str, memory: Prefs) -> str:
    memory.volume = "loud"  # E
    memory["volume"] = 3  # E
    return memory.other  # E


number_of_a_model: int = of_a_model("a")  # E
of_a_model.__wrapped__("a", {})  # E

# Generators.


@gantry.with_memory
def iterates(memory: Memory) -> Iterator[int]:
    yield 1


next(iterates()).upper()  # E
words: list[str] = list(iterates())  # E


async def iterate() -> None:
    async for _ in iterates():  # E
        pass


# A context, and a session key by key.


@gantry.with_context
async def in_context(item: str, ctx: ExecutionContext) -> int:
    ctx.memory = {}  # E
    ctx.memory.append(1)  # E
    ctx.scope("user")["x"] = 1  # E
    await ctx.scope(5)  # E
    await ctx.scope()  # E
    ctx.identity.session.upper()  # E
    ctx.tool = "mine"  # E
    ctx.session  # E
    return 1


@gantry.with_context(into=5)  # E
def in_sync_context(run: SyncExecutionContext) -> int:
    run.scope("user")["x"] = 1
    return run.scope("user")  # E


@gantry.with_context(keys=("a",))  # E
def context_of_keys(ctx: SyncExecutionContext) -> None: ...


@gantry.with_session
async def by_key(session: Session) -> str:
    session.get("a").upper()  # E
    await session.get()  # E
    await session.get(5)  # E
    await session.set("a")  # E
    await session.set("a", 1, ttl="60")  # E
    await session.set("a", 1, 60, 5)  # E
    for key in session.keys():  # E
        print(key)
    for name in await session.keys():
        name.append(1)  # E
    await session.delete("a").real  # E
    session["a"] = 1  # E
    return await session.delete("a")  # E


@gantry.with_session(merge={"n": 5})  # E
def by_key_sync(session: SyncSession) -> str:
    session.set("a", 1).real  # E
    return session.delete("a")  # E


@gantry.with_context
def in_a_context(ctx: SyncExecutionContext) -> int:
    return 1


wrong_context: str = in_a_context()  # E
wrong_session: int = by_key()  # E
gantry.with_context(5)  # E
gantry.with_session("session")  # E

# With agent-gantry.

agents = AgentGantry()


@agents.register(stateful="yes")  # E
async def stateful(session: Session) -> None: ...


@agents.register
def registered(item: str, ctx: SyncExecutionContext) -> str:
    return item


registered("a").real  # E

# Identity.

gantry.session("s1", user="ada", adopt="yes")  # E
gantry.forget()  # E
gantry.forget("user", user=5)  # E
gantry.end_session()  # E
gantry.end_session(5)  # E
gantry.independent("s1")  # E
Scope(owned="yes")  # E
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
gantry.bind(5)  # E
gantry.prompt_view(5)  # E
gantry.prompt_view(max_chars="500")  # E
gantry.prompt_view(redact=(5,))  # E
who: Identity = gantry.identity()  # E
known: Identity = current_identity()  # E
Identity(5)  # E
Identity("s1").session = "s2"  # E
Identity("s1").tenant  # E
Namespace("session")  # E
Namespace("session", 5)  # E
Scope(ttl="60")  # E
Gantry(app=5)  # E
Gantry(scopes={"session": 60})  # E
Gantry(scopes={"session": object()})  # E
Gantry(partial_commits="yes")  # E
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
