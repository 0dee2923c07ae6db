"""Who shares a memory: scopes, and what is known of the caller.

The identity of the caller travels in a context variable, so that it reaches a tool through tasks, `asyncio.to_thread` and
whatever a framework puts between. There is one for the whole process and none per gantry: tools may live on another gantry
than the one that was asked to run them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from agent_gantry_state.codec import name_of
from agent_gantry_state.errors import OrphanedCallError
from agent_gantry_state.limits import MAX_BYTES, Limits
from agent_gantry_state.namespace import Namespace, text_of

__all__ = [
    "ATTEMPT",
    "ENTERED",
    "IMPERSONAL_SCOPES",
    "Attempt",
    "Entered",
    "Identity",
    "Scope",
    "check_ttl",
    "current_identity",
    "new_id",
    "refuse_orphan",
]

#: Scopes that resolve to the same namespace whoever calls, and so cannot be identity keys.
IMPERSONAL_SCOPES = frozenset({"tool", "global"})


class Identity:
    """What is known of the caller. What is not known is None, which is never the same as anything.

    Args:
        session: Id of the session.
        user: Id of the user.
        conversation: Id of the conversation.
        keys: Further identity keys, each the name of a scope: ``{"tenant": "acme"}``.
        adopt: Whether the user takes over the session if it is nobody's, with the next commit that writes to it.

    Raises:
        TypeError: An id is no str.
        ValueError: An id is "", or a key is the name of a scope that is nobody's (``tool``, ``global``), or *adopt* was
            asked for without a session and a user.
    """

    __slots__ = ("_keys", "adopt", "namespaces", "owner", "slots")

    _keys: Mapping[str, str]
    adopt: bool
    owner: str
    namespaces: dict[tuple[str, str], Namespace]
    slots: dict[object, Any]

    def __init__(
        self,
        session: str | None = None,
        user: str | None = None,
        conversation: str | None = None,
        keys: Mapping[str, str | None] = MappingProxyType({}),
        adopt: bool = False,
    ) -> None:
        if adopt and (session is None or user is None):
            raise ValueError("identity: adopt=True needs a session, and the user who takes it over")
        put = functools.partial(object.__setattr__, self)
        given = {"session": session, "user": user, "conversation": conversation, **keys}
        known: dict[str, str] = {}
        for key, value in given.items():
            if key in IMPERSONAL_SCOPES:
                raise ValueError(f"identity: {key!r} is a scope of its own and cannot be an identity key")
            if value is None:
                continue
            text = text_of(value, f"identity: {key}")
            if not text:
                raise ValueError(f"identity: {key} must not be empty; leave it out if it is not known")
            known[key] = text
        put("_keys", MappingProxyType(known))
        #: Whether what is nobody's becomes the user's.
        put("adopt", adopt)
        #: Whom a memory that has an owner belongs to if this caller is the first to write to it: a user, "" for nobody.
        put("owner", self._keys.get("user", ""))
        #: Namespaces that the built-in resolvers found for it, by app and scope; a cache of the call path.
        put("namespaces", {})
        #: Where they stand in a memory store, by the wiring's key for the scope, and what its calls begin with; likewise.
        put("slots", {})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("an identity does not change; identity.replace(...) makes another one")

    @property
    def session(self) -> str | None:
        """Id of the session, None if it is not known."""
        return self._keys.get("session")

    @property
    def user(self) -> str | None:
        """Id of the user, None if it is not known."""
        return self._keys.get("user")

    @property
    def conversation(self) -> str | None:
        """Id of the conversation, None if it is not known."""
        return self._keys.get("conversation")

    @property
    def keys(self) -> Mapping[str, str]:
        """All that is known, by key."""
        return self._keys

    def get(self, key: str) -> str | None:
        """The id for *key*, None if it is not known."""
        return self._keys.get(key)

    def advice(self, scope: str) -> str | None:
        """How the id for *scope* could have been found, from whoever looked for it; None if nobody did."""
        return None

    def replace(self, **keys: str | None) -> Identity:
        """This identity with some keys changed; None takes one away. Another session or user is not to be adopted by."""
        merged: dict[str, Any] = {**self._keys, **keys}
        session, user, conversation = (merged.pop(key, None) for key in ("session", "user", "conversation"))
        adopt = self.adopt and (session, user) == (self.session, self.user)
        return Identity(session, user, conversation, merged, adopt)

    def __eq__(self, other: object) -> bool:
        return self._keys == other._keys if isinstance(other, Identity) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(self._keys.items()))

    def __reduce__(self) -> Any:
        own = ("session", "user", "conversation")
        rest = {key: value for key, value in self._keys.items() if key not in own}
        return Identity, (self.session, self.user, self.conversation, rest, self.adopt)

    def __repr__(self) -> str:
        return f"<Identity with {', '.join(self._keys) or 'nothing known'}>"


def new_id() -> str:
    """A fresh id with 256 random bits."""
    import secrets

    return secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Scope:
    """How the memories of one scope behave, unless a decorator says otherwise.

    Args:
        ttl: Seconds that a key lives after it was last written; None: for ever.
        sliding: Whether each use of the memory restarts the time, too.
        owned: Whether a memory belongs to the user who first wrote to it (or to nobody, if none was known), so that
            everybody else is refused. Sessions always are.
        store: Where they live, if not where the gantry's other memories do: a URL, or a store object, which stays open.
        max_bytes: How many bytes one memory may have, names of keys and encoded values together; None: any number.
        max_keys: How many keys one memory may have; None: any number.
        max_value_bytes: How many bytes the encoded value of one key may have; None: any number.

    Raises:
        TypeError: *ttl* is no number, or a limit is no int.
        ValueError: *ttl* is not positive or not finite, or *sliding* was asked for without one, or a limit is not positive.
    """

    ttl: float | None = None
    sliding: bool = False
    owned: bool = False
    max_bytes: int | None = MAX_BYTES
    max_keys: int | None = None
    max_value_bytes: int | None = None
    # A URL may hold a password.
    store: Any = field(default=None, repr=False, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ttl", check_ttl("Scope", self.ttl))
        _ = self.limits
        if self.sliding and self.ttl is None:
            raise ValueError("Scope: sliding=True needs a ttl (seconds)")

    @property
    def limits(self) -> Limits:
        """How large a memory may be."""
        return Limits(self.max_bytes, self.max_keys, self.max_value_bytes)


def check_ttl(where: str, ttl: float | None) -> float | None:
    """A ttl as a plain number; refuses one that is neither None nor a positive, finite number of seconds.

    Raises:
        TypeError: It is no number.
        ValueError: It is not positive or not finite.
    """
    if ttl is None:
        return None
    kind = type(ttl)
    if kind is bool or not issubclass(kind, (int, float)):
        raise TypeError(f"{where}: ttl must be a number of seconds or None, not {name_of(kind)}")
    # Of a subclass the number alone, for what one says of itself may be anything.
    seconds: float = float.__float__(ttl) if isinstance(ttl, float) else int.__int__(ttl)
    if not 0 < seconds <= sys.float_info.max:
        shown = seconds if type(seconds) is float or -1e15 < seconds < 1e15 else "an int that long"
        raise ValueError(f"{where}: ttl must be a positive, finite number of seconds, not {shown}")
    return seconds


class Entered:
    """An identity that was entered in a context, and what to go back to.

    Leaving goes by this handle and not by a token of the context variable, for it may happen in another task or thread
    than entering, or out of order.

    Args:
        identity: Who calls.
        outer: What was entered before, if that is known already.
        said: What a framework said of that where it was entered; None if no framework ran there.
        around: A copy of the context in which it was entered, for whoever enters it without a gantry, and so without
            frameworks that could be asked.
    """

    __slots__ = ("around", "closed", "identity", "outer", "said")

    def __init__(
        self,
        identity: Identity,
        outer: Entered | None = None,
        said: Identity | None = None,
        around: Context | None = None,
    ) -> None:
        self.around = around
        self.identity = identity
        self.outer = outer
        self.said = said
        self.closed = False

    def enter(self) -> None:
        self.outer = ENTERED.get()
        ENTERED.set(self)

    def leave(self) -> None:
        self.closed = True
        # Whatever is closed on top goes: it may have been left in a context whose variable this one does not see.
        top = here = ENTERED.get()
        while top is not None and top.closed:
            top = top.outer
        if top is not here:
            ENTERED.set(top)


ENTERED: ContextVar[Entered | None] = ContextVar("agent_gantry_state_identity", default=None)


class Attempt:
    """One attempt of somebody else's to have a tool run, who may give up while the tool's thread runs on."""

    __slots__ = ("abandoned", "outer")

    def __init__(self, outer: Attempt | None = None) -> None:
        self.abandoned = False
        self.outer = outer


ATTEMPT: ContextVar[Attempt | None] = ContextVar("agent_gantry_state_attempt", default=None)


def refuse_orphan() -> None:
    """Refuse to commit what is done in an attempt that was given up.

    Raises:
        OrphanedCallError: It was.
    """
    attempt = ATTEMPT.get()
    while attempt is not None and not attempt.abandoned:
        attempt = attempt.outer
    if attempt is not None:
        raise OrphanedCallError(
            "nothing was written: whoever called this tool has timed out or was cancelled before it ended, while its "
            "thread ran on"
        )


def current_identity() -> Identity | None:
    """The identity that was entered here with `session` or `override`; None if none was."""
    entered = ENTERED.get()
    return None if entered is None else entered.identity
