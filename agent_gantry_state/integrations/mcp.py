"""Who calls, for tools behind an MCP server: agent-gantry's, FastMCP, the servers of the MCP SDK 1.x and 2.x.

The identity of a call is read from the request that brought it, as the SDK hands it over with each message, and never from
the context in which the server happens to run: with mcp 1.x one task serves all requests of a connection, and the context of
that task, with every context variable that a middleware has set, is the first caller's.

The protocol of 2026-07-28 has no session any more. So where a session comes from has to be declared, and only that counts.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from agent_gantry_state.errors import AmbiguousIdentityError, DeclarationError, ResolverError
from agent_gantry_state.integrations.incoming import Connection, IncomingIdentity, calling, nobody
from agent_gantry_state.scopes import Identity

__all__ = ["MCPIdentity", "MCPRequest", "Source", "handle", "header", "meta", "subject"]

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class MCPRequest:
    """What a source is asked about.

    Attributes:
        method: What is requested, for example ``tools/call``.
        arguments: The arguments of a tool call.
        meta: The ``_meta`` that the client has sent with it.
        connection: The HTTP request that has brought it; None over stdio and from a client in this process.
    """

    method: str
    arguments: Mapping[str, Any]
    meta: Mapping[str, Any]
    connection: Connection | None

    @property
    def token(self) -> Any:
        """The verified access token, an `AccessToken` of the MCP SDK; None if the server has verified none."""
        return None if self.connection is None else getattr(self.connection.scope.get("user"), "access_token", None)


#: From a request to an id, None if the request does not have it.
Source = Callable[[MCPRequest], "str | Awaitable[str | None] | None"]


@dataclass(frozen=True, slots=True)
class _Declared:
    """A source that can say what it looks at."""

    where: str
    read: Callable[[MCPRequest], str | None]
    #: Whether an id that it gives counts only for a user who is known.
    needs_user: bool = False

    def __call__(self, request: MCPRequest) -> str | None:
        return self.read(request)


def subject() -> Source:
    """Whom the verified access token was issued for, by ``sub`` and, if the token says so, its issuer.

    Of tokens of several issuers none is mistaken for another's: with an issuer the id is the JSON list of both.
    """

    def read(request: MCPRequest) -> str | None:
        claims = getattr(request.token, "claims", None) or {}
        # FastMCP 3 fills in the claims alone.
        sub, issuer = getattr(request.token, "subject", None) or claims.get("sub"), claims.get("iss")
        plain = not sub or (issuer is None and not sub.startswith("["))
        return sub if plain else json.dumps([issuer and str(issuer), sub])

    return _Declared("the subject of the access token", read)


def header(name: str) -> Source:
    """A header of the HTTP request. Whoever can reach the server can set it, if nothing in front of it takes it away."""

    def read(request: MCPRequest) -> str | None:
        return None if request.connection is None else request.connection.header(name)

    return _Declared(f"the header {name!r}", read)


def meta(key: str) -> Source:
    """A key of the request's ``_meta``, which the client sets and not its model."""
    return _Declared(f"{key!r} in _meta", lambda request: _text(request.meta.get(key)))


def handle(argument: str) -> Source:
    """An argument of the tool, which the model has been given and passes on with each call.

    It counts only for a user who is known, for that is whom the memory is checked to belong to.
    """
    return _Declared(f"the argument {argument!r}", lambda request: _text(request.arguments.get(argument)), needs_user=True)


class MCPIdentity:
    """Says what in a request to an MCP server tells who calls.

    Args:
        session: Where the session comes from: `subject`, `header`, `meta` or `handle`, a function of an `MCPRequest`, sync
            or async, or the id of the one session that everybody shares.
        user: Where the user comes from, likewise.
        conversation: Where the conversation comes from, likewise.
        anonymous: Whether the rest counts also in a request without a user, where *user* says where they come from. What
            comes from `handle` never does.
        keys: Where further identity keys come from.

    Raises:
        TypeError: A source is no function and no str.

    Example:
        >>> who = MCPIdentity(user=subject(), session=header("x-chat"))
    """

    def __init__(
        self,
        *,
        session: Source | str | None = None,
        user: Source | str | None = None,
        conversation: Source | str | None = None,
        anonymous: bool = False,
        **keys: Source | str | None,
    ) -> None:
        # The user first, for on them depends what else counts.
        given = {"user": user, "session": session, "conversation": conversation, **keys}
        self._sources: dict[str, Source] = {}
        self._users_only = user is not None and not anonymous
        for key, source in given.items():
            if isinstance(source, str):
                # Refuses what can be no id, and now.
                Identity(keys={key: source})
                self._sources[key] = functools.partial(_always, source)
            elif callable(source):
                self._sources[key] = source
            elif source is not None:
                raise TypeError(f"MCPIdentity: {key} must be a source, such as header(...), not {type(source).__name__}")

    def install(self, server: S) -> S:
        """Let every request to *server* be made by whom it says, once its tools are registered.

        Args:
            server: agent-gantry's `MCPServer`, a `FastMCP`, or a server of the MCP SDK, of either kind.

        Returns:
            The server.

        Raises:
            DeclarationError: It is none of them, or (mcp 1.x) runs no tools yet.
        """
        inner: Any = server
        unpack = False
        if hasattr(inner, "gantry") and hasattr(inner, "server"):
            # agent-gantry's own tool that runs tools has their arguments inside its own.
            inner, unpack = inner.server, inner.mode != "static"
        # FastMCP, and what the SDK 1.x has of it, stand on a server of the SDK. FastMCP's own middleware is not shown what
        # came in, and is also asked about tools that tools call.
        inner = getattr(inner, "_mcp_server", inner)
        read = functools.partial(_read, unpack)
        if isinstance(getattr(inner, "middleware", None), list):
            inner.middleware.append(_v2(self, read))
        elif isinstance(getattr(inner, "request_handlers", None), dict):
            _install_v1(self, inner, read)
        else:
            raise DeclarationError(
                f"MCPIdentity.install: {type(server).__name__} is no MCP server that is known here: agent-gantry's "
                "MCPServer, FastMCP, or a server of the MCP SDK 1.27 to 2.3"
            )
        return server

    async def identify(self, request: MCPRequest) -> Identity:
        """Who makes a request.

        Raises:
            ResolverError: A source failed, or gave something that is no id.
        """
        known: dict[str, str | None] = {}
        missing: dict[str, str] = {}
        for key, source in self._sources.items():
            where = (
                getattr(source, "where", None) or f"the function {getattr(source, '__qualname__', type(source).__name__)}"
            )
            try:
                answer = source(request)
                id = await answer if inspect.isawaitable(answer) else answer
            except AmbiguousIdentityError as error:
                return nobody(str(error))
            except Exception as error:
                # Its own words may hold an id, and they would go to a model.
                raise ResolverError(f"{key}: {where} failed with {type(error).__name__}", scope=key) from error
            if id is not None and not isinstance(id, str):
                raise ResolverError(f"{key}: {where} must give a str or None, not {type(id).__name__}", scope=key)
            if not id:
                missing[key] = f"this server takes it from {where}, which the request does not have"
            elif key != "user" and "user" not in known and (self._users_only or getattr(source, "needs_user", False)):
                user = missing.get("user", "declare where they come from, MCPIdentity(user=...)")
                missing[key] = f"{where} counts only for a user who is known: {user}"
            else:
                known[key] = id
        return IncomingIdentity(Identity(keys=known), lambda scope: missing.get(scope) or _undeclared(scope))


def _always(id: str, request: MCPRequest) -> str:
    return id


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _undeclared(scope: str) -> str:
    one = f' {scope}="local" is right only where everybody is the same person.' if scope in ("session", "user") else ""
    return (
        f"this MCP server does not say where it comes from. Declare it, MCPIdentity({scope}=...): from the authenticated "
        f"subject, subject(), a header, header(...), the request's _meta, meta(...), or a handle in the arguments that is "
        f"checked against the user, handle(...).{one}"
    )


def _read(unpack: bool, context: Any, method: str, params: Any) -> MCPRequest:
    """A request, from the SDK's context of it and its parameters as they came."""
    params = params if isinstance(params, Mapping) else {}
    arguments = params.get("arguments") if method == "tools/call" else None
    if unpack and params.get("name") == "execute_tool" and isinstance(arguments, Mapping):
        arguments = arguments.get("arguments")
    meta, request = params.get("_meta"), getattr(context, "request", None)
    return MCPRequest(
        method,
        arguments if isinstance(arguments, Mapping) else {},
        meta if isinstance(meta, Mapping) else {},
        None if request is None else Connection(request.scope),
    )


def _v2(who: MCPIdentity, read: Callable[..., MCPRequest]) -> Callable[..., Awaitable[Any]]:
    """A middleware for servers of the SDK 2.x."""

    async def identified(context: Any, call_next: Callable[..., Awaitable[Any]]) -> Any:
        if context.request_id is None:
            return await call_next(context)
        with calling(await who.identify(read(context, context.method, context.params))):
            return await call_next(context)

    return identified


def _install_v1(who: MCPIdentity, server: Any, read: Callable[..., MCPRequest]) -> None:
    """Put every handler of a server of the SDK 1.x behind the identity of its request."""
    if "CallToolRequest" not in {kind.__name__ for kind in server.request_handlers}:
        raise DeclarationError("MCPIdentity.install: the server runs no tools yet; install it when they are registered")

    def behind(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def identified(request: Any) -> Any:
            # The SDK asks handlers itself, too, in the middle of a request, and then has none to hand over.
            if request is None:
                return await handler(request)
            try:
                context = server.request_context
            except LookupError:
                context = None
            params = request.params and request.params.model_dump(by_alias=True)
            with calling(await who.identify(read(context, request.method, params))):
                return await handler(request)

        return identified

    for kind, handler in server.request_handlers.items():
        server.request_handlers[kind] = behind(handler)


async def serve(
    gantry: Any,
    who: MCPIdentity,
    transport: str,
    mode: str,
    name: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    path: str | None = None,
    expose: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """What agent-gantry's `serve_mcp` does, with *who* saying who calls."""
    try:
        from agent_gantry.servers.mcp_server import create_mcp_server
    except ImportError as error:
        raise ImportError("serve_mcp needs the MCP SDK: pip install 'agent-gantry-state[mcp]'") from error
    await gantry.ensure_synced()
    server = who.install(create_mcp_server(gantry, mode, name, expose=expose))
    if transport == "stdio":
        await server.run_stdio()
    elif transport == "sse":
        await server.run_sse(host, port, **({} if path is None else {"sse_path": path}), **options)
    else:
        await server.run_http(host, port, "/mcp" if path is None else path, **options)
