"""What users write, and type checkers accept. Checked, never run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from typing_extensions import assert_type

from agent_gantry_state import (
    AgentGantry,
    Gantry,
    Identity,
    InjectedArgumentError,
    Memory,
    MemoryConflictError,
    Namespace,
    Request,
    Resolver,
    Scope,
    StateError,
    Tool,
    current_identity,
    merge,
)
from agent_gantry_state.stores.memory import MemoryStore

# Making a gantry.


def by_team(request: Request) -> Namespace | None:
    user = request.identity.user
    if request.scope != "team" or user is None:
        return None
    return Namespace(scope="team", id=user)


class ByTenant:
    def __call__(self, request: Request) -> Namespace | None:
        tenant = request.identity.get("tenant")
        return Namespace("tenant", tenant) if tenant is not None and request.tool else None


resolver: Resolver = by_team
gantry = Gantry("memory://?max_namespaces=10", app="mine", resolvers=[by_team, ByTenant()])
other = Gantry(MemoryStore(max_namespaces=10), session="local", user="me", scopes={"team": Scope(ttl=60, sliding=True)})


# Decorators, bare and called.


@gantry.with_memory
def plain(item: str, memory: dict[str, Any]) -> list[str]:
    memory.setdefault("items", []).append(item)
    items: list[str] = memory["items"]
    return items


@gantry.with_memory()
def called(item: str, memory: Memory) -> int:
    return len(memory.get("items", default=[]))


@gantry.with_memory(
    scope="user",
    into="notes",
    name="notes",
    ttl=60,
    sliding=True,
    merge={"best": merge.max, "plan": merge.longest, "own": lambda base, theirs, ours: ours},
    on_conflict="retry",
    retries=3,
)
def everything(notes: Memory, item: str, *rest: int, limit: float = 1.0) -> tuple[str, float]:
    notes.set("item", item, ttl=5)
    notes.expire("item", 5)
    notes.add("n", 1)
    notes.add("f", 0.5)
    return item, limit


@gantry.with_memory(ttl=None, merge=None)
async def asynchronous(item: str, memory: Memory) -> bytes:
    memory["item"] = item
    return item.encode()


assert_type(plain("a"), list[str])
assert_type(plain(item="a"), list[str])
assert_type(called("a"), int)
assert_type(everything("a", 1, 2, limit=2.0), tuple[str, float])
assert_type(plain.__name__, str)


async def call_asynchronous() -> None:
    assert_type(await asynchronous("a"), bytes)
    pending: Coroutine[Any, Any, bytes] = asynchronous("a")
    assert_type(await pending, bytes)


def pass_on(function: Callable[[str], list[str]]) -> None:
    function("a")


def pass_on_async(function: Callable[[str], Coroutine[Any, Any, bytes]]) -> None: ...


pass_on(plain)
pass_on_async(asynchronous)
pass_on(functools.partial(plain, "a"))


# The function itself keeps its exact signature.

assert_type(plain.__wrapped__("a", {}), list[str])
assert_type(plain.__wrapped__(item="a", memory={"items": []}), list[str])
assert_type(everything.__wrapped__(Memory(), "a", 1, limit=2.0), tuple[str, float])


async def call_wrapped() -> None:
    assert_type(await asynchronous.__wrapped__("a", Memory()), bytes)


# Stacked.


@gantry.with_memory(scope="user", into="preferences")
@gantry.with_memory(scope="global", into="shared")
@gantry.with_memory
def stacked(item: str, memory: Memory, preferences: Memory, shared: Memory) -> bool:
    return item in memory


assert_type(stacked("a"), bool)


# Methods, and class and static methods, with memory below or above.


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    @gantry.with_memory
    def buy(self, item: str, memory: Memory) -> int:
        return memory.add("items", 1) or len(self.name)

    @gantry.with_memory(scope="user")
    async def prefer(self, item: str, memory: Memory) -> str:
        return item

    @classmethod
    @gantry.with_memory
    def opened(cls, memory: Memory) -> bool:
        return bool(memory)

    @staticmethod
    @gantry.with_memory(scope="global")
    def visits(memory: Memory) -> float:
        return 1.0

    @gantry.with_memory
    @classmethod
    def closed(cls, memory: Memory) -> bytes:
        return b""

    @gantry.with_memory(scope="global")
    @staticmethod
    def rating(memory: Memory) -> complex:
        return 1j


class Branch(Shop):
    pass


shop = Branch("s")
assert_type(shop.buy("shoes"), int)
assert_type(Shop.buy(shop, "shoes"), int)
assert_type(Branch.opened(), bool)
assert_type(shop.opened(), bool)
assert_type(Branch.visits(), float)
assert_type(shop.visits(), float)
assert_type(Branch.closed(), bytes)
assert_type(Branch.rating(), complex)


async def call_method() -> None:
    assert_type(await shop.prefer("a"), str)


# Partials and callable objects.


class Remember:
    def __call__(self, item: str, memory: Memory) -> int:
        return len(memory)


remember = gantry.with_memory(Remember())
assert_type(remember("a"), int)


def with_prefix(prefix: str, item: str, memory: Memory) -> int:
    return len(memory)


prefixed = gantry.with_memory(functools.partial(with_prefix, "p"))
assert_type(prefixed("a"), int)

tools: list[Tool[..., Any]] = [plain, called, everything, asynchronous, stacked]


# Blocks.

with gantry.session("s1", user="ada", conversation="c", tenant="acme") as identity:
    assert_type(identity, Identity)
    session: str | None = identity.session
    tenant: str | None = identity.get("tenant")

with gantry.session() as fresh:
    assert_type(fresh, Identity)

assert_type(current_identity(), Identity | None)

with gantry.memory("session", session="s1") as memory:
    assert_type(memory, Memory)
    memory["n"] = [1]
    memory |= {"m": 1}
    remaining: float | None = memory.ttl("n")

with gantry.memory("tool", tool="notes") as of_a_tool, gantry.memory("tenant", tenant="acme") as of_a_tenant:
    assert_type(of_a_tool.copy(), Memory)
    assert_type(of_a_tenant, Memory)

with gantry.override(
    session="s1", user="ada", store="memory://", resolvers=[by_team], clock=lambda: 1.0, tenant="x"
) as test:
    store: Any = test.store

with gantry as same, Gantry() as another:
    assert_type(same, Gantry)
    another.close()


async def blocks() -> None:
    async with gantry.session("s1") as identity:
        assert_type(identity, Identity)
    async with gantry.memory(session="s1") as memory:
        assert_type(memory, Memory)
    async with gantry.override(user="ada"):
        pass
    async with Gantry() as made:
        assert_type(made, Gantry)
    await gantry.aclose()


# Errors.

try:
    plain("a")
except InjectedArgumentError as injected:
    assert_type(injected.parameter, str)
except MemoryConflictError as conflict:
    assert_type(conflict.keys, tuple[str, ...])
except StateError as error:
    assert_type(error.committed, bool | None)


# With agent-gantry.

agents = AgentGantry(store="memory://", app="mine", session="local", user="me", resolvers=[by_team])


@agents.register
@agents.with_memory
async def registered(item: str, memory: Memory) -> str:
    return item


@agents.register(name="shared", tags=["a"])
@agents.with_memory(scope="user", into="preferences")
@agents.with_memory
def registered_stacked(item: str, memory: Memory, preferences: Memory) -> str:
    return item


async def use_agents() -> None:
    async with agents as same, agents.session("s1"):
        assert_type(same, AgentGantry)
    await agents.close()
    await agents.aclose()
