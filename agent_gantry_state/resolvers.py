"""From a request to the address of a memory: a chain of resolvers, of which the first that answers wins.

A resolver is any callable that takes a `Request` and returns a `Namespace`, or None if the request is none of its business.
A gantry tries its own resolvers in order and then the built-in ones: `tool`, `global`, and one for every identity key.

An identity resolver answers another question: who calls, as the framework knows it in which a tool runs.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from agent_gantry_state.errors import MissingIdentityError, ResolverError, StateError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.scopes import Identity

__all__ = ["BUILT_IN_SCOPES", "IdentityResolver", "Request", "Resolver", "identify", "resolve"]

#: Scopes that need no declaration.
BUILT_IN_SCOPES = ("tool", "session", "conversation", "user", "global")

_NOBODY = Identity()


@dataclass(frozen=True, slots=True)
class Request:
    """What a resolver is asked.

    Attributes:
        scope: Name of the scope that a tool declared.
        tool: Name of the tool; None outside one.
        identity: What is known of the caller.
    """

    scope: str
    tool: str | None
    identity: Identity


Resolver = Callable[[Request], "Namespace | None"]


class IdentityResolver(Protocol):
    """Says who calls, where a framework knows it; stands among the resolvers of a gantry.

    What it says is as good as an identity that was stated with `gantry.session(...)` where the framework began its run: it
    comes before one that was entered outside of the run, and after one that was entered inside.
    """

    def identify(self) -> Identity | None:
        """Who calls here; None where the framework does not run, or does not say.

        An identity with a session is the whole of it: what it leaves out is unknown. One without a session replaces what it
        names, and leaves the rest of what is known.
        """
        ...


def identify(resolvers: Iterable[IdentityResolver]) -> Identity | None:
    """Who calls, by the first of *resolvers* that says it.

    Raises:
        ResolverError: One of them failed, or answered with something else than an identity or None.
    """
    for resolver in resolvers:
        try:
            identity = resolver.identify()
        except StateError:
            raise
        except Exception as error:
            raise _failed(resolver, "to say who calls,", error, None) from error
        if identity is None:
            continue
        if not isinstance(identity, Identity):
            raise ResolverError(
                f"resolver {_name(resolver)} must say who calls with an Identity(...) or None, not {_answer(identity)}",
                scope=None,
            )
        return identity
    return None


def _failed(resolver: object, where: str, error: Exception, scope: str | None) -> ResolverError:
    # Its own words may hold an id, and they would go to a model.
    return ResolverError(f"resolver {_name(resolver)} failed {where} with {type(error).__name__}", scope=scope)


def resolve_tool(request: Request) -> Namespace | None:
    """One memory for each tool, whoever calls it."""
    if request.scope != "tool" or request.tool is None:
        return None
    return Namespace("tool", request.tool)


def resolve_global(request: Request) -> Namespace | None:
    """One memory for everybody."""
    return Namespace("global", "global") if request.scope == "global" else None


def resolve_identity(request: Request) -> Namespace | None:
    """One memory for each value of the identity key that has the scope's name."""
    key = request.identity.get(request.scope)
    return None if key is None else Namespace(request.scope, key)


BUILT_IN: tuple[Resolver, ...] = (resolve_tool, resolve_global, resolve_identity)


def resolve(
    scope: str,
    tool: str | None,
    identity: Identity | None,
    app: str,
    resolvers: Iterable[Resolver] = (),
    declared: Iterable[str] = (),
) -> Namespace:
    """The namespace for a scope, in *app*.

    Args:
        scope: Name of the scope.
        tool: Name of the tool that asks; None outside one.
        identity: What is known of the caller; None if nothing is.
        app: The app of the gantry.
        resolvers: Tried in order, before the built-in ones.
        declared: Custom scopes that the gantry declares, for the hint in an error.

    Raises:
        MissingIdentityError: None of them has an answer; it says what is missing and how to give it.
        ResolverError: One of them failed, or answered with something else than a namespace or None.
    """
    request = Request(scope, tool, _NOBODY if identity is None else identity)
    for resolver in (*resolvers, *BUILT_IN):
        try:
            namespace = resolver(request)
        except StateError:
            raise
        except Exception as error:
            raise _failed(resolver, f"for scope {scope!r}", error, scope) from error
        if namespace is None:
            continue
        if not isinstance(namespace, Namespace):
            raise ResolverError(
                f"resolver {_name(resolver)} must answer scope {scope!r} with a Namespace(scope=, id=) or None, "
                f"not {_answer(namespace)}",
                scope=scope,
            )
        return Namespace(namespace.scope, namespace.id, app)
    raise _missing(scope, request, declared)


def _of_threads(identity: Identity) -> str:
    """What to do in a thread that was begun without the context of whoever began it; nothing where that is not so."""
    if identity.keys or threading.current_thread() is threading.main_thread():
        return ""
    return (
        " This is a thread of its own, and one that a program makes itself takes no identity along: open "
        "`with gantry.session(...):` in the thread, or have it run `contextvars.copy_context().run`, or the function that "
        "`gantry.bind(fn)` gives."
    )


def _missing(scope: str, request: Request, declared: Iterable[str]) -> MissingIdentityError:
    if scope == "tool":
        return MissingIdentityError("the tool scope has a memory only for a tool: pass tool=..., its name", scope=scope)
    if (advice := request.identity.advice(scope)) is not None:
        return MissingIdentityError(f"no {scope} is known here: {advice}", scope=scope)
    known = {*BUILT_IN_SCOPES, *declared, *request.identity.keys}
    import difflib

    near = difflib.get_close_matches(scope, known - {scope}, 1) if scope not in BUILT_IN_SCOPES else []
    hint = f"; did you mean scope={near[0]!r}? If not, give" if near and scope not in declared else ". Give"
    others = set(request.identity.keys).difference(BUILT_IN_SCOPES)
    misspelt = difflib.get_close_matches(scope, others - {scope}, 1)
    if scope == "session":
        return MissingIdentityError(
            "no session is known here. Open one around the call, `with gantry.session(...):` (or `async with`), or, in a "
            'program with a single user, say so once: AgentGantry(session="local").' + _of_threads(request.identity),
            scope=scope,
        )
    give = f'{scope}="..."' if scope.isidentifier() else f'**{{{scope!r}: "..."}}'
    once = f"AgentGantry({give})" if scope == "user" else "a resolver of your own, AgentGantry(resolvers=[...])"
    more = ""
    if misspelt and not near:
        more = f" The identity has a {misspelt[0]}: did you mean {give}?"
    elif not near and scope not in known:
        more = f" Built in are {', '.join(BUILT_IN_SCOPES)}; an id is no scope, and given by name, session=... or user=...."
    return MissingIdentityError(
        f"no {scope} is known here{hint} it with the session, `with gantry.session(..., {give}):` (or `async with`), "
        f"or with {once}.{more}{_of_threads(request.identity)}",
        scope=scope,
    )


def _answer(answer: object) -> str:
    """What a resolver gave, by its type: it may be an id."""
    if inspect.iscoroutine(answer):
        # It is not waited for, and Python need not warn of it as well.
        answer.close()
        return "a coroutine: it is asked where nothing can wait, so make it a plain function"
    return type(answer).__name__


def _name(resolver: object) -> str:
    return getattr(resolver, "__qualname__", type(resolver).__name__)
