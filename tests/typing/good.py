"""What users write, and type checkers accept. Checked, never run."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Annotated, Any

from pydantic import BaseModel
from typing_extensions import TypedDict, assert_type

from agent_gantry_state import (
    AgentGantry,
    CallEndedError,
    ExclusiveTimeoutError,
    ExecutionContext,
    Gantry,
    Identity,
    IdentityResolver,
    InjectedArgumentError,
    Memory,
    MemoryConflictError,
    MemoryErasedError,
    MemoryValidationError,
    Namespace,
    OrphanedCallError,
    Request,
    Resolver,
    Scope,
    Session,
    SessionOwnerError,
    StateError,
    SyncExecutionContext,
    SyncSession,
    Tool,
    UndeclaredKeyError,
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


class FromFramework:
    def identify(self) -> Identity | None:
        return Identity("s1", "ada")


resolver: Resolver = by_team
framework: IdentityResolver = FromFramework()
gantry = Gantry("memory://?max_namespaces=10", app="mine", resolvers=[by_team, ByTenant(), FromFramework()])
other = Gantry(
    MemoryStore(max_namespaces=10), session="local", user="me", scopes={"team": Scope(ttl=60, sliding=True, owned=True)}
)
Gantry(scopes={"user": "sqlite:///u.db", "team": Scope(store="memory://"), "tenant": MemoryStore()}, partial_commits=True)


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


# A memory of one's own, or of some keys.


@gantry.with_memory(isolation="serializable", exclusive=True, keys=("cwd", "files"))
def alone(memory: Memory) -> str:
    return str(memory["cwd"])


@gantry.with_memory(isolation="snapshot", exclusive=False, keys=["cwd"])
def of_a_list(memory: Memory) -> str:
    return str(memory["cwd"])


assert_type(alone(), str)


# A memory of a class of one's own.


class Prefs(BaseModel):
    volume: int = 3
    names: list[str] = []


@dataclasses.dataclass
class Basket:
    items: list[str] = dataclasses.field(default_factory=list)


class Notes(TypedDict, total=False):
    last: str


@gantry.with_memory(scope="user")
def of_a_model(text: str, memory: Prefs) -> str:
    memory.volume += 1
    memory.names.append(text)
    return text


@gantry.with_memory
async def of_a_dataclass(text: str, memory: Basket) -> int:
    memory.items.append(text)
    return len(memory.items)


@gantry.with_memory(into="notes", default={"last": ""})
def of_a_typed_dict(text: str, notes: Notes) -> str:
    before = notes.get("last", "")
    notes["last"] = text
    return before


@gantry.with_memory(scope="user", into="prefs")
@gantry.with_memory
def of_several(text: str, memory: Annotated[Basket, "said"], prefs: Prefs | None = None) -> str:
    return text


assert_type(of_a_model("a"), str)
assert_type(of_a_model.__wrapped__("a", Prefs()), str)
assert_type(of_a_typed_dict("a"), str)
assert_type(of_several("a"), str)


async def call_of_a_dataclass() -> None:
    assert_type(await of_a_dataclass("a"), int)


# Generators.


@gantry.with_memory
def generates(to: int, memory: Memory) -> Generator[int, str, bytes]:
    received = yield to
    return received.encode()


@gantry.with_memory
def iterates(to: int, memory: Memory) -> Iterator[int]:
    yield to


@gantry.with_memory
async def generates_async(to: int, memory: Memory) -> AsyncGenerator[int, str]:
    received: str = yield to
    memory["received"] = received


@gantry.with_memory
async def iterates_async(to: int, memory: Memory) -> AsyncIterator[int]:
    yield to


assert_type(generates(1), Generator[int, str, bytes])
assert_type(iterates(1), Iterator[int])
assert_type(generates_async(1), AsyncGenerator[int, str])
numbers: list[int] = list(iterates(1))


async def call_generators() -> None:
    async for item in iterates_async(1):
        assert_type(item, int)
    assert_type([item async for item in generates_async(1)], list[int])


# Threads, prompts, and who calls.


def in_thread(item: str, count: int = 1) -> bool:
    return bool(item) and count > 0


async def on_loop(item: str) -> bool:
    return bool(item)


async def use_bound() -> None:
    assert_type(gantry.bind(in_thread)("a", count=2), bool)
    assert_type(await gantry.bind(on_loop)("a"), bool)
    assert_type(gantry.identity(), Identity | None)
    with gantry.session(Identity(user="ada")) as identity:
        assert_type(identity, Identity)
    assert_type(gantry.prompt_view(("session", "user"), keys=["a"], max_chars=500, redact=("x", re.compile("y"))), str)
    assert_type(await gantry.aprompt_view("user", user="ada", redact=None), str)


# A context, and a session key by key.


@gantry.with_context
async def in_context(item: str, ctx: ExecutionContext) -> int:
    ctx.memory["item"] = item
    preferences = await ctx.scope("user")
    assert_type(preferences, Memory)
    assert_type(ctx.memory, Memory)
    assert_type(ctx.identity, Identity)
    assert_type(ctx.tool, str)
    return len(preferences)


@gantry.with_context(into="run", on_conflict="retry", retries=3)
def in_sync_context(item: str, run: SyncExecutionContext) -> int:
    assert_type(run.scope("user"), Memory)
    return len(run.memory)


@gantry.with_session
async def by_key(item: str, session: Session) -> bool:
    await session.set("item", item)
    await session.set("item", item, ttl=60)
    await session.set("item", item, None)
    value: str = await session.get("item", default="")
    assert_type(await session.keys(), list[str])
    await session.add("n")
    await session.add("n", 0.5)
    assert_type(await session.delete("item"), bool)
    return bool(value)


@gantry.with_session(
    scope="user",
    into="keys",
    ttl=60,
    sliding=True,
    merge={"best": merge.max},
    on_conflict="retry",
    retries=3,
    isolation="serializable",
    exclusive=True,
)
def by_key_sync(item: str, keys: SyncSession) -> bool:
    keys.set("item", item, ttl=60)
    value: str = keys.get("item", "")
    assert_type(keys.keys(), list[str])
    keys.add("n", 2)
    return keys.delete("item") or bool(value)


async def call_them() -> None:
    assert_type(await in_context("a"), int)
    assert_type(await by_key("a"), bool)
    assert_type(await by_key.__wrapped__("a", session_object()), bool)


def session_object() -> Session:
    raise NotImplementedError


assert_type(in_sync_context("a"), int)
assert_type(by_key_sync("a"), bool)


@gantry.with_context
@gantry.with_session
@gantry.with_memory
def by_all(ctx: SyncExecutionContext, session: SyncSession, memory: Memory) -> bool:
    return ctx.memory is memory and session.get("a") is memory.get("a")


assert_type(by_all(), bool)


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

with gantry.session("s1", user="ada", adopt=True) as adopted:
    assert_type(adopted, Identity)

with gantry.independent():
    plain("a")

gantry.forget("user", user="ada")
gantry.forget("tool", tool="notes")
gantry.forget("tenant", tenant="acme")
gantry.end_session("s1")

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
    async with gantry.independent():
        pass
    await gantry.aforget("user", user="ada")
    await gantry.aend_session("s1")
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
except MemoryValidationError as invalid:
    assert_type(invalid.fields, tuple[str, ...])
except UndeclaredKeyError as undeclared:
    assert_type((undeclared.key, undeclared.scope), tuple[str, str])
except (SessionOwnerError, MemoryErasedError, ExclusiveTimeoutError) as of_a_scope:
    assert_type(of_a_scope.scope, str)
except (CallEndedError, OrphanedCallError) as ended:
    assert_type(ended.committed, bool | None)
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


@agents.register
async def reads(filename: str, ctx: ExecutionContext) -> str:
    ctx.memory["last_file"] = filename
    return str(ctx.memory.get("other", default=""))


@agents.register
def reads_sync(filename: str, ctx: SyncExecutionContext) -> str:
    return str(ctx.memory.get(filename))


@agents.register(stateful=True, tags=["a"])
async def keeps(item: str, session: Session) -> str:
    await session.set("item", item)
    return item


@agents.register(stateful=True)
@agents.with_memory
def keeps_whole(item: str, memory: Memory) -> str:
    return item


@agents.register
@agents.with_memory
async def streams(to: int, memory: Memory) -> AsyncIterator[int]:
    yield to


assert_type(reads_sync("a"), str)
assert_type(keeps_whole("a"), str)


async def use_agents() -> None:
    assert_type(await reads("a"), str)
    assert_type(await keeps("a"), str)
    async for number in streams(3):
        assert_type(number, int)
    async with agents as same, agents.session("s1"):
        assert_type(same, AgentGantry)
    await agents.close()
    await agents.aclose()
