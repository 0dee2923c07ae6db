"""Who calls, for tools that run in a web application: Starlette, FastAPI, Litestar and whatever else speaks ASGI.

A pure ASGI middleware, without a dependency. It looks at no request by itself: the application gives it the function that
knows which header, which cookie or whose authentication counts.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from agent_gantry_state.errors import AmbiguousIdentityError
from agent_gantry_state.integrations.incoming import Connection, IncomingIdentity, calling, nobody
from agent_gantry_state.scopes import Identity

__all__ = ["Connection", "Identify", "IdentityMiddleware"]

#: What the application gives: from a request to who calls, None for nobody.
Identify = Callable[[Connection], "Identity | Awaitable[Identity | None] | None"]

ASGIApp = Callable[..., Awaitable[Any]]


class IdentityMiddleware:
    """Lets tools know who calls, in every request and for as long as a websocket is open.

    It states the whole identity: what *identify* leaves out is unknown, whatever the gantry was given for all calls. The
    identity ends with the request; what runs on after that needs a session of its own.

    Args:
        app: The ASGI application inside.
        identify: Says who calls, sync or async; None for nobody. What it raises goes up to the server, but for an
            `AmbiguousIdentityError`, after which the caller is nobody.

    Example:
        >>> from agent_gantry_state import Identity
        >>> def identify(connection: Connection) -> Identity:
        ...     user = connection.user
        ...     return Identity(session=connection.cookie("chat"), user=user and user.username)
    """

    def __init__(self, app: ASGIApp, identify: Identify) -> None:
        if not callable(identify):
            raise TypeError(
                f"IdentityMiddleware: identify must be a function of a connection, not {type(identify).__name__}"
            )
        self.app = app
        self.identify = identify

    async def __call__(self, scope: MutableMapping[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        with calling(await self._who(Connection(scope))):
            await self.app(scope, receive, send)

    async def _who(self, connection: Connection) -> Identity:
        try:
            answer = self.identify(connection)
            identity = await answer if inspect.isawaitable(answer) else answer
        except AmbiguousIdentityError as error:
            return nobody(str(error))
        if identity is None:
            identity = Identity()
        if not isinstance(identity, Identity):
            raise TypeError(
                f"IdentityMiddleware: identify must answer with an Identity(session=..., user=...) or None, "
                f"not {type(identity).__name__}"
            )
        return IncomingIdentity(identity, _unknown)


def _unknown(scope: str) -> str:
    return f"the function that IdentityMiddleware was given finds no {scope} in this request"
