"""agent-gantry's own class, whose tools have a memory.

agent-gantry runs a sync tool in a thread that goes on after its caller gave up, runs a tool again after any error, and
counts errors against the tool's health. So what goes into its registry is an async twin of a decorated function: it loads
and commits on the event loop and only the body runs in a thread; a memory error ends the call at once and counts against
nothing; and a call whose commit has landed gives that result when it is run again.

Everything private in agent-gantry that this package touches is used in this module and nowhere else: `_registry` (with
its `_handlers`), `_executor`, and `ArgumentReconstructionError`, the one error that its engine takes as final. Known to
work with 0.20.x.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Protocol, TypeVar, overload

from typing_extensions import ParamSpec, Self

from agent_gantry_state.errors import DeclarationError, PartialCommitError, StateError, StateWarning
from agent_gantry_state.events import Callback
from agent_gantry_state.gantry import Stateful
from agent_gantry_state.injection.plan import Kind, Plan, stateful_parameters, takes_memory_itself
from agent_gantry_state.injection.short import acaller
from agent_gantry_state.injection.tool import BoundTool, Tool
from agent_gantry_state.integrations.a2a import A2AIdentity
from agent_gantry_state.integrations.incoming import Connection
from agent_gantry_state.integrations.mcp import MCPIdentity, serve
from agent_gantry_state.resolvers import IdentityResolver, Resolver
from agent_gantry_state.scopes import ATTEMPT, Attempt, Identity, Scope
from agent_gantry_state.wiring import StoreObject

try:
    import agent_gantry as _upstream
    from agent_gantry.core.executor import ArgumentReconstructionError, ExecutionEngine
    from agent_gantry.core.registry import ToolRegistry
    from agent_gantry.schema.execution import ExecutionStatus, ToolCall, ToolResult
    from agent_gantry.schema.tool import ToolDefinition
except ImportError as error:
    raise ImportError(
        "agent_gantry_state.AgentGantry needs agent-gantry 0.20: pip install 'agent-gantry-state[agent-gantry]'. "
        "Without it, agent_gantry_state.Gantry gives memory to plain functions"
    ) from error

__all__ = ["AgentGantry", "MemoryFailure", "Registration"]

P = ParamSpec("P")
R = TypeVar("R")


class MemoryFailure(ArgumentReconstructionError):
    """A memory error inside agent-gantry's engine, which does not run a tool again after it."""


class _Record(Attempt):
    """One `ToolCall` over all the attempts of its body, and what became of them.

    It is found as the attempt around the one that a twin makes: so no tool that is called by the body takes it for its own.
    """

    __slots__ = ("error", "landed", "result")

    def __init__(self, outer: Attempt | None) -> None:
        self.abandoned = self.landed = False
        self.outer = outer
        self.error: StateError | None = None
        self.result: Any = None


def _land(result: Any) -> None:
    """Note in the record of the call whose attempt this is that everything is committed."""
    attempt = ATTEMPT.get()
    record = None if attempt is None else attempt.outer
    if type(record) is _Record:
        record.landed, record.result = True, result


#: What was made here to run a handler.
_TWINS: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()


class _Engine(ExecutionEngine):
    """Keeps a record of each call for its twin, and gives a memory error its own name in the result."""

    @classmethod
    def like(cls, engine: ExecutionEngine) -> _Engine:
        """An engine with all that *engine* was made with."""
        # One that is given another class, instead of being copied, is slower in all that it does (CPython looks up its
        # attributes and methods anew each time).
        made = cls.__new__(cls)
        for name, value in vars(engine).items():
            setattr(made, name, value)
        return made

    async def execute(self, call: ToolCall) -> ToolResult:
        record = _Record(ATTEMPT.get())
        before = ATTEMPT.set(record)
        try:
            result = await ExecutionEngine.execute(self, call)
        except BaseException:
            record.abandoned = True
            raise
        finally:
            ATTEMPT.reset(before)
        if result.status is not ExecutionStatus.SUCCESS:
            # A handler of no memory's own may have left a thread behind that goes on calling tools.
            record.abandoned = True
            if record.error is not None and result.status is ExecutionStatus.FAILURE:
                return result.model_copy(update={"error_type": type(record.error).__name__})
        return result


class _Registry(ToolRegistry):
    """Takes the async twin of each decorated function, however it gets here."""

    def register_tool(self, tool: ToolDefinition, handler: Callable[..., Any] | None = None) -> None:
        if isinstance(handler, (Tool, BoundTool)):
            handler.plan.register(f"{tool.namespace}.{tool.name}")
        super().register_tool(tool, _twin(handler) if handler is not None else None)

    def register_handler(self, key: str, handler: Callable[..., Any]) -> None:
        super().register_handler(key, _twin(handler))

    def delete_tool(self, name: str, namespace: str = "default") -> Callable[..., Any] | None:
        handler = super().delete_tool(name, namespace)
        tool = _tool_inside(handler)
        if tool is not None:
            tool.plan.wiring.release(tool.plan.name, tool.plan.target)
        return handler

    def holds(self, fn: Any) -> bool:
        """Whether *fn* was registered."""
        return any(handler is fn or getattr(handler, "__wrapped__", None) is fn for handler in self._handlers.values())


def _twin(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The async function to run for *handler*, which may come from the registry of another gantry and be one already."""
    if handler in _TWINS:
        return handler
    if not isinstance(handler, (Tool, BoundTool)):
        return handler if _tool_inside(handler) is None else _guarded(handler)
    plan = handler.plan
    call = acaller(plan, handler.__wrapped__, handler.shift, _body(plan), _land)

    async def twin(*args: Any, **kwargs: Any) -> Any:
        attempt = Attempt(around := ATTEMPT.get())
        if type(around) is _Record:
            if around.landed:
                return around.result
            if around.error is not None:
                raise MemoryFailure(str(around.error)) from around.error
        token = ATTEMPT.set(attempt)
        try:
            return await call(*args, **kwargs)
        except BaseException as error:
            _judge(error, attempt)
            raise
        finally:
            ATTEMPT.reset(token)

    return _dressed(twin, handler, plan.label)


def _body(plan: Plan) -> Callable[..., Any] | None:
    """How the body of a tool is run on an event loop; None: it is awaited."""
    if plan.is_async:
        return None
    if plan.is_async_generator:
        return _drained
    return _drained_in_thread if plan.is_generator else _in_thread


async def _drained(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
    return [item async for item in fn(*args, **kwargs)]


async def _drained_in_thread(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
    return await asyncio.to_thread(lambda: list(fn(*args, **kwargs)))


def _tool_inside(handler: Any) -> Tool[..., Any] | BoundTool[Any] | None:
    """The tool that *handler* stands for, or that is below its decorators."""
    while (handler := getattr(handler, "__wrapped__", None)) is not None:
        if isinstance(handler, (Tool, BoundTool)):
            return handler
    return None


def _guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """*handler*, which may call a tool with a memory somewhere inside, as far as possible like a twin.

    Its thread cannot be kept from running on, but what it does to memories then is refused.
    """

    run = handler if inspect.iscoroutinefunction(handler) else functools.partial(_in_thread, handler)

    async def guarded(*args: Any, **kwargs: Any) -> Any:
        attempt = Attempt(ATTEMPT.get())
        token = ATTEMPT.set(attempt)
        try:
            result = await run(*args, **kwargs)
            if isinstance(result, GeneratorType):
                return await asyncio.to_thread(list, result)
            return [item async for item in result] if isinstance(result, AsyncGeneratorType) else result
        except BaseException as error:
            _judge(error, attempt)
            raise
        finally:
            ATTEMPT.reset(token)

    return _dressed(guarded, handler, type(handler).__name__)


def _judge(error: BaseException, attempt: Attempt) -> None:
    """Fence off what the threads of an attempt do that was given up, and make a memory error final.

    Raises:
        MemoryFailure: *error* is one.
    """
    record = attempt.outer if type(attempt.outer) is _Record else None
    if isinstance(error, asyncio.CancelledError):
        attempt.abandoned = True
        # What landed of it must not be done again, though nobody was there any more to be told.
        failure = error.__context__
        if record is not None and isinstance(failure, PartialCommitError):
            record.error = failure
    elif isinstance(error, Exception) and (memory_error := _memory_error(error)) is not None:
        if record is not None:
            record.error = memory_error
        raise MemoryFailure(str(memory_error)) from error


def _memory_error(error: BaseException) -> StateError | None:
    """The memory error that *error* is, or that is the first of those that a task group has raised, and nothing else."""
    if isinstance(error, StateError):
        return error
    parts = [_memory_error(part) for part in getattr(error, "exceptions", ())]
    return parts[0] if parts and None not in parts else None


def _dressed(twin: Any, handler: Callable[..., Any], label: str) -> Callable[..., Any]:
    """*twin*, looking like the function that it stands for, annotations resolved."""
    signature = inspect.signature(handler)
    hints = {name: p.annotation for name, p in signature.parameters.items() if p.annotation is not p.empty}
    if signature.return_annotation is not signature.empty:
        hints["return"] = signature.return_annotation
    twin.__name__ = getattr(handler, "__name__", label)
    twin.__qualname__ = getattr(handler, "__qualname__", label)
    twin.__module__ = getattr(handler, "__module__", None) or __name__
    twin.__doc__ = handler.__doc__
    twin.__annotations__ = hints
    twin.__signature__ = signature
    twin.__wrapped__ = handler
    _TWINS.add(twin)
    return twin  # type: ignore[no-any-return]


async def _in_thread(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    result = await asyncio.to_thread(fn, *args, **kwargs)
    return await result if inspect.isawaitable(result) else result


class Registration(Protocol):
    """What `AgentGantry.register(...)` returns: put it above a function."""

    @overload
    def __call__(self, fn: Tool[P, R], /) -> Tool[P, R]: ...
    @overload
    def __call__(self, fn: Callable[..., R], /) -> Callable[..., R]: ...


class AgentGantry(Stateful, _upstream.AgentGantry):
    """`agent_gantry.AgentGantry`, whose tools have a memory.

    A true subclass: constructor arguments, `quick_start`, `from_config`, `from_modules`, and everything that takes a gantry
    work as they do there. `with_memory` goes below `register`:

        @gantry.register
        @gantry.with_memory
        async def read_file(filename: str, memory: dict) -> str: ...

    Args:
        args: Passed on to agent-gantry, as are all keywords that are not listed here.
        store: Where memories live: a URL (``memory://``), or a store object, which stays open when this is closed.
        app: Keeps this program's memories apart from those of others on the same store.
        session: The session of every call, in a program that has but one user.
        user: The user of every call, likewise.
        resolvers: Asked in order, before the built-in ones, which memory a request means, or who calls.
        scopes: How the memories of a scope behave, by its name; also declares custom scopes. A URL or a store object is
            where they live, and short for ``Scope(store=...)``.
        on_commit: Told, by a `MemoryEvent`, of each memory that a call has changed, when it has committed. Sync or async; if
            it raises that is logged, and changes nothing.
        on_conflict: Told of each conflict, also of one after which the call runs again. Likewise.
        partial_commits: Whether a call that changed memories which cannot be written in one step is committed in one step
            for each, in the order of its decorators. Else it is refused with a `NotAtomicError`.
        kwargs: Passed on to agent-gantry.

    Raises:
        StoreURLError: The URL names no store.
        TypeError: An argument is of the wrong type.
        ValueError: An id is empty.
    """

    def __init__(
        self,
        *args: Any,
        store: Any = "memory://",
        app: str = "default",
        session: str | None = None,
        user: str | None = None,
        resolvers: Iterable[Resolver | IdentityResolver] = (),
        scopes: Mapping[str, Scope | str | StoreObject] | None = None,
        on_commit: Callback | None = None,
        on_conflict: Callback | None = None,
        partial_commits: bool = False,
        **kwargs: Any,
    ) -> None:
        self._wire(store, app, session, user, resolvers, scopes, on_commit, on_conflict, partial_commits)
        super().__init__(*args, **kwargs)
        # agent-gantry makes its registry and engine itself. Making ours of them afterwards keeps whatever it made them
        # with, which a copy of its constructor calls would not.
        if type(self._registry) is ToolRegistry:
            self._registry.__class__ = _Registry
        if type(self._executor) is ExecutionEngine:
            self._executor = _Engine.like(self._executor)

    @overload  # type: ignore[override]
    def register(self, func: Tool[P, R], *, stateful: bool = False, **kwargs: Any) -> Tool[P, R]: ...
    @overload
    def register(self, func: Callable[..., R], *, stateful: bool = False, **kwargs: Any) -> Callable[..., R]: ...
    @overload
    def register(self, func: None = None, *, stateful: bool = False, **kwargs: Any) -> Registration: ...
    def register(self, func: Any = None, *, stateful: bool = False, **kwargs: Any) -> Any:
        """Register a function as a tool, as `agent_gantry.AgentGantry.register` does, with or without parentheses.

        A parameter that is annotated `ExecutionContext` (`SyncExecutionContext` in a sync tool), or is named ``ctx`` and
        has no annotation, gets the context of the call; one that is annotated `Session` (`SyncSession`) gets the session,
        key by key. The model sees none of them.

        Args:
            func: The function, when used without parentheses.
            stateful: Says that the tool has such a parameter, or a decorator that gives it a memory.
            kwargs: Passed on to agent-gantry.

        Returns:
            The function; as a `Tool` if it is given something.

        Raises:
            DeclarationError: Something that the function asks for cannot be given, or it is called stateful and asks for
                nothing.
        """

        def decorator(fn: Any) -> Any:
            name, inner = getattr(fn, "name", None), getattr(fn, "func", None)
            if not (isinstance(name, str) and name and callable(inner)):
                return super(AgentGantry, self).register(self._stateful(fn, stateful), **kwargs)
            # A framework's own tool object, of which agent-gantry registers the function inside.
            prepared = self._stateful(inner, stateful)
            if prepared is inner:
                return super(AgentGantry, self).register(fn, **kwargs)
            super(AgentGantry, self).register(prepared, **{"name": name, **kwargs})
            return fn

        return decorator if func is None else decorator(func)

    async def add_tool(self, tool: ToolDefinition, handler: Callable[..., Any] | None = None) -> None:
        """Add a tool definition with its handler, which may ask for a context or session as in `register`."""
        await super().add_tool(tool, None if handler is None else self._stateful(handler, False))

    def _stateful(self, fn: Any, required: bool) -> Any:
        """*fn*, as a tool that gets what its parameters ask for."""
        decorators: dict[Kind, Callable[..., Any]] = {"context": self.with_context, "session": self.with_session}
        for name, kind in stateful_parameters(fn).items():
            fn = decorators[kind](into=name)(fn)
        if required and not isinstance(fn, (Tool, BoundTool)):
            raise DeclarationError(
                f"{getattr(fn, '__qualname__', fn)} is registered with stateful=True and asks for nothing that has a state; "
                "give it a parameter `session: Session`, `ctx: ExecutionContext`, or put with_memory above it"
            )
        if takes_memory_itself(fn):
            # The model would be asked for it, and nothing be remembered.
            warnings.warn(
                f"{getattr(fn, '__qualname__', fn)} is registered without with_memory, so that a model is to give its "
                "parameter 'memory'; put with_memory below register, or call the parameter something else",
                StateWarning,
                stacklevel=4,
            )
        return fn

    async def serve_mcp(
        self,
        transport: str = "stdio",
        mode: str = "dynamic",
        name: str = "agent-gantry",
        *,
        identity: MCPIdentity | None = None,
        **options: Any,
    ) -> None:
        """Serve the tools over MCP, as `agent_gantry.AgentGantry.serve_mcp` does.

        Args:
            transport: "stdio", "streamable_http" (or "http") or "sse".
            mode: "dynamic", "static" or "hybrid".
            name: Name of the server.
            identity: What in a request says who calls. Without one a call over HTTP is nobody's, whatever was entered around
                this; but for a gantry that was made for one session or user, whose calls are all theirs, with a warning.
            options: Passed on to agent-gantry.
        """
        if transport in ("streamable_http", "http", "sse") and identity is None:
            own = self._own_identity("serve_mcp", "identity=MCPIdentity(...)")
            identity = MCPIdentity() if own is None else MCPIdentity(session=own.session, user=own.user)
        if identity is None or transport not in ("stdio", "streamable_http", "http", "sse"):
            await super().serve_mcp(transport, mode, name, **options)
        else:
            await serve(self, identity, transport, mode, name, **options)

    def serve_a2a(
        self,
        host: str = "0.0.0.0",  # noqa: S104 - agent-gantry's default
        port: int = 8080,
        *,
        user: Callable[[Connection], str | Awaitable[str | None] | None] | None = None,
        anonymous: bool = False,
    ) -> None:
        """Serve the tools over A2A, as `agent_gantry.AgentGantry.serve_a2a` does; the context of a task is its session.

        Args:
            host: Where to listen.
            port: Likewise.
            user: From a request to the id of its user, as in `A2AIdentity`.
            anonymous: Whether a context counts without a user, too. Whoever knows its id is in it then.
        """
        if user is None and not anonymous and self._own_identity("serve_a2a", "user= or anonymous=True") is not None:
            super().serve_a2a(host, port)
            return
        try:
            import uvicorn
        except ImportError as error:
            raise ImportError("serve_a2a needs FastAPI and uvicorn: pip install 'agent-gantry-state[a2a]'") from error
        from agent_gantry.servers.a2a_server import create_a2a_server

        app = create_a2a_server(self, base_url=f"http://{host}:{port}")
        uvicorn.run(A2AIdentity(app, user=user, anonymous=anonymous), host=host, port=port)

    def _own_identity(self, method: str, instead: str) -> Identity | None:
        """The identity that the gantry was made with, of which it warns, for every caller of a server would have it."""
        own = self._wiring.settings.identity
        if own is not None:
            warnings.warn(
                f"{method}: whoever can reach the server is the session and user that this gantry was made with; declare "
                f"who calls, {instead}",
                StateWarning,
                stacklevel=3,
            )
        return own

    @classmethod
    def from_config(cls, path: str, **kwargs: Any) -> Self:
        """Make a gantry from a YAML file of agent-gantry's; *kwargs* as in the constructor."""
        from agent_gantry.schema.config import AgentGantryConfig

        return cls(config=AgentGantryConfig.from_yaml(path), **kwargs)

    @classmethod
    async def from_modules(cls, modules: Sequence[str], *, attr: str = "tools", **kwargs: Any) -> Self:
        """Make a gantry of the tools in *modules*, each with a gantry named *attr*; *kwargs* as in the constructor.

        The tools keep the store of their own gantry; a session that is entered on any gantry holds for all.
        """
        gantry = cls(**kwargs)
        await gantry.collect_tools_from_modules(modules, module_attr=attr)
        return gantry

    async def __aenter__(self) -> Self:
        return self

    async def close(self) -> None:
        """Release what agent-gantry holds, and close every store that was made from a URL."""
        await super().close()
        if (bridge := self._wiring.close()) is not None:
            await bridge.aclose()

    async def aclose(self) -> None:
        """The same as `close`."""
        await self.close()

    def _refuse_decoration(self, fn: Any) -> None:
        if isinstance(self._registry, _Registry) and self._registry.holds(fn):
            raise DeclarationError(
                f"{getattr(fn, '__qualname__', fn)} is registered already, without its memory; "
                "put with_memory below register, next to the function"
            )
