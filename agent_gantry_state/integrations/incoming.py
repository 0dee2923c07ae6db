"""What a request to a server says about who calls: common ground of the integrations with servers.

An identity that came with a request holds for that request. A server may keep a task alive that was begun by one request
and go on in it with the next, as mcp 1.x does, and the context of that task is the first caller's. So when a request ends
its identity is taken out of whatever still sees it, and what runs there is refused as nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agent_gantry_state.errors import AmbiguousIdentityError, DeclarationError
from agent_gantry_state.scopes import Entered, Identity

__all__ = ["Connection", "IncomingIdentity", "calling", "nobody"]


class Connection:
    """An HTTP request, or the handshake of a websocket, as far as it can say who calls.

    A client can write anything into a header or cookie. Which of them counts is for the program to say, which knows what
    its proxy sets or takes away.

    Attributes:
        scope: The ASGI scope.
    """

    __slots__ = ("scope",)

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self.scope = scope

    def header(self, name: str) -> str | None:
        """A header's value; None if it is not there, or empty.

        Raises:
            AmbiguousIdentityError: It is there with several values: a client has put its own beside a proxy's.
        """
        return _only(f"header {name!r}", self._headers(name))

    def cookie(self, name: str) -> str | None:
        """A cookie's value, letter by letter as it was sent; None if it is not there, or empty.

        Raises:
            AmbiguousIdentityError: It is there with several values: another site of the same domain has set its own.
        """
        parts = [part.partition("=") for header in self._headers("cookie") for part in header.split(";")]
        return _only(f"cookie {name!r}", [value.strip() for key, _, value in parts if key.strip() == name])

    @property
    def user(self) -> Any:
        """The user whom a middleware around this one has authenticated, as it has put it; None if they are not logged in.

        Raises:
            DeclarationError: Nothing around this has authenticated anybody.
        """
        if "user" not in self.scope:
            raise DeclarationError(
                "the request has not been through authentication where its user is asked for; put the middleware that "
                "asks inside the one that authenticates"
            )
        user = self.scope["user"]
        return user if getattr(user, "is_authenticated", True) else None

    def _headers(self, name: str) -> list[str]:
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for key, value in self.scope.get("headers", ()) if key.lower() == wanted]


def _only(source: str, values: list[str]) -> str | None:
    """The one value that is there.

    Raises:
        AmbiguousIdentityError: There are several.
    """
    if len(set(values)) > 1:
        raise AmbiguousIdentityError(
            f"the {source} is in the request more than once, with different values, so that nobody can say who calls",
            source=source,
        )
    return values[0] or None if values else None


class IncomingIdentity(Identity):
    """An identity that came with a request.

    Args:
        identity: What is known of the caller.
        advice: For a scope whose id is not known, how the request could have said it.
    """

    __slots__ = ("_advice",)

    def __init__(self, identity: Identity, advice: Callable[[str], str]) -> None:
        rest = {key: id for key, id in identity.keys.items() if key not in ("session", "user", "conversation")}
        super().__init__(identity.session, identity.user, identity.conversation, rest, identity.adopt)
        object.__setattr__(self, "_advice", advice)

    def advice(self, scope: str) -> str | None:
        advice: str = self._advice(scope)  # type: ignore[attr-defined]
        return advice


def nobody(reason: str) -> IncomingIdentity:
    """The identity of a caller of whom nothing is known, for *reason*."""
    return IncomingIdentity(Identity(), lambda scope: reason)


_OVER = nobody(
    "the request that brought it has ended. For what runs on after a request open a session around the call, `with "
    "gantry.session(...):`; in an MCP server declare where the identity comes from, MCPIdentity(...)"
)


@contextlib.contextmanager
def calling(identity: Identity) -> Iterator[None]:
    """Let a request be made by *identity*, until it ends and not longer."""
    entered = Entered(identity)
    entered.enter()
    try:
        yield
    finally:
        entered.leave()
        entered.identity = _OVER
        # What still sees it goes on seeing it: a session that is opened there and left again uncovers nobody else.
        entered.closed = False
