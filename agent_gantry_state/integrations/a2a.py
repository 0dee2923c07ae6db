"""Who calls, for tools behind an A2A server such as agent-gantry's: the context of a task is the session.

A pure ASGI middleware. Whoever sends a task chooses its context id, so that by itself it shows nothing: it counts for a user
who is known, whom the memory is then checked to belong to.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from agent_gantry_state.errors import AmbiguousIdentityError
from agent_gantry_state.integrations.incoming import Connection, IncomingIdentity, calling, nobody
from agent_gantry_state.scopes import Identity

__all__ = ["A2AIdentity"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class A2AIdentity:
    """Lets tools know who sent a task: its ``contextId`` is the session, and *user* says who the user is.

    Args:
        app: The A2A server, an ASGI application.
        user: From a request to the id of its user, sync or async; None for nobody.
        anonymous: Whether a context counts without a user, too. Whoever knows its id is in it then.

    Raises:
        TypeError: *user* is no function.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[Any]],
        *,
        user: Callable[[Connection], str | Awaitable[str | None] | None] | None = None,
        anonymous: bool = False,
    ) -> None:
        if user is not None and not callable(user):
            raise TypeError(f"A2AIdentity: user must be a function of a Connection, not {type(user).__name__}")
        self.app = app
        self.user = user
        self.anonymous = anonymous

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = await _all(receive)
        waiting = iter(received)

        async def again() -> Message:
            return next(waiting, None) or await receive()

        body = b"".join(message.get("body", b"") for message in received)
        with calling(await self._who(Connection(scope), body)):
            await self.app(scope, again, send)

    async def _who(self, connection: Connection, body: bytes) -> Identity:
        try:
            answer = None if self.user is None else self.user(connection)
            user = (await answer if inspect.isawaitable(answer) else answer) or None
            context = _context(body)
        except AmbiguousIdentityError as error:
            return nobody(str(error))
        trusted = user is not None or self.anonymous
        return IncomingIdentity(Identity(context if trusted else None, user), _missing_context if trusted else _missing_user)


async def _all(receive: Receive) -> list[Message]:
    """All messages of a request."""
    messages = [await receive()]
    while messages[-1]["type"] == "http.request" and messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages


def _context(body: bytes) -> str | None:
    """The context of the task in the body of a request; None if there is none.

    Raises:
        AmbiguousIdentityError: Its messages are of several.
    """
    try:
        params = json.loads(body)["params"]
        messages = [params, params.get("message"), *(params.get("messages") or ())]
        ids = {message["contextId"] for message in messages if isinstance(message, dict) and message.get("contextId")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # No task: the server itself says what is wrong with it.
        return None
    if len(ids) > 1:
        raise AmbiguousIdentityError("the messages of the task have several values of contextId", source="contextId")
    return next((id for id in ids if isinstance(id, str)), None)


def _missing_context(scope: str) -> str:
    if scope == "session":
        return "it is the contextId of the task, which this one does not have"
    return (
        f"of an A2A task are known the session, its contextId, and the user whom A2AIdentity(user=...) finds, and no {scope}"
    )


def _missing_user(scope: str) -> str:
    return (
        "a contextId counts only for a user who is known. Declare how to find them, A2AIdentity(user=...), or that whoever "
        "knows a contextId is in it, A2AIdentity(anonymous=True)"
    )
