"""The address of one memory: app, scope and id, each taken literally.

Ids come from people and programs. They are never parsed, folded or joined: wherever one string has to stand for the three
parts, each part goes behind its own length, and stores file a namespace under the digest of that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from agent_gantry_state.codec import name_of

__all__ = ["Namespace", "text_of"]


#: Digests of namespaces whose id and app are no longer than this are kept.
_KEPT_LETTERS = 512


class _Namespace(NamedTuple):
    scope: str
    id: str
    app: str = ""


class Namespace(_Namespace):
    """The address of one memory.

    A tuple, for it is the key of caches on the call path and a tuple is hashed and compared in C.

    Attributes:
        scope: Name of the scope.
        id: Who or what in that scope: any str but "", of any length. It is never read as a path, a pattern or SQL.
        app: Keeps apart programs that share a store; the gantry sets its own.

    Raises:
        TypeError: A part is no str.
        ValueError: *scope* or *id* is empty.
    """

    __slots__ = ()

    def __new__(cls, scope: str, id: str, app: str = "") -> Namespace:
        if not type(scope) is type(id) is type(app) is str:
            scope, id, app = (
                text_of(part, f"Namespace: {name}") for name, part in (("scope", scope), ("id", id), ("app", app))
            )
        if not scope or not id:
            raise ValueError("Namespace: scope and id must not be empty")
        return super().__new__(cls, scope, id, app)

    @property
    def address(self) -> bytes:
        """Its parts, each behind its length, so that no two namespaces have the same bytes."""
        return _address(self)

    @property
    def digest(self) -> bytes:
        """SHA-256 of `address`: the 32 bytes under which stores keep it."""
        # Long ids are not kept: a cache of them would be without bound.
        return _kept_digest(self) if len(self.id) + len(self.app) <= _KEPT_LETTERS else _digest(self)

    def __repr__(self) -> str:
        # An id may be a person's: it is in no log and no traceback.
        return f"<Namespace of scope {self.scope!r}>"


def text_of(value: Any, what: str) -> str:
    """The text of a str; of a subclass its text alone, for what one says of itself may be anything.

    Raises:
        TypeError: *value* is none; *what* names it.
    """
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if not issubclass(kind, str):
        raise TypeError(f"{what} must be a str, not {name_of(kind)}; convert it with str()")
    return str.__str__(value)


def _address(namespace: Namespace) -> bytes:
    parts = [part.encode("utf-8", "surrogatepass") for part in (namespace.app, namespace.scope, namespace.id)]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _digest(namespace: Namespace) -> bytes:
    # A memory in this process is kept under no digest, and the import takes as long as that of several modules here.
    import hashlib

    return hashlib.sha256(_address(namespace)).digest()


_kept_digest = lru_cache(maxsize=4096)(_digest)
