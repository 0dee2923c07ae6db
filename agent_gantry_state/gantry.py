"""The facade: what programs call.

`Stateful` is everything that gives memory to functions; `Gantry` is that and nothing else, and the subclass of
agent-gantry's own class in `integrations` is the other.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar, overload

from agent_gantry_state.binding import bound
from agent_gantry_state.blocks import Independent, MemoryBlock, Override, SessionBlock
from agent_gantry_state.bridge import Bridge
from agent_gantry_state.codec import shortened
from agent_gantry_state.compartments import is_reserved
from agent_gantry_state.defaults import default_of
from agent_gantry_state.errors import DeclarationError, MissingIdentityError
from agent_gantry_state.events import Callback, observers_of
from agent_gantry_state.holding import Want
from agent_gantry_state.injection.plan import Declaration, Kind
from agent_gantry_state.memory import Memory
from agent_gantry_state.merge import Merge, newest
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.nesting import unit_around
from agent_gantry_state.resolvers import IdentityResolver, Resolver, resolve
from agent_gantry_state.scopes import Identity, Scope, check_ttl, new_id
from agent_gantry_state.sending import sent
from agent_gantry_state.several import bridge_for
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores.protocol import KEEP, Forget
from agent_gantry_state.unit_of_work import UnitOfWork
from agent_gantry_state.wiring import Layer, StoreObject, Wiring, check_resolvers, open_bridge

if TYPE_CHECKING:
    from typing_extensions import Self

    from agent_gantry_state.admin import Admin
    from agent_gantry_state.injection.tool import Tool
    from agent_gantry_state.prompt import Redaction

__all__ = ["Gantry", "MemoryDecorator", "Stateful"]

P = ParamSpec("P")
R = TypeVar("R")


class _Unset:
    """No such argument was given."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "..."


_UNSET: Final = _Unset()


class MemoryDecorator:
    """What `with_memory(...)` returns: put it above a function."""

    __slots__ = ("_declaration", "_refuse", "_wiring")

    def __init__(self, wiring: Wiring, declaration: Declaration, refuse: Callable[[Any], None]) -> None:
        self._wiring = wiring
        self._declaration = declaration
        self._refuse = refuse

    def __call__(self, fn: Callable[P, R], /) -> Tool[P, R]:
        """Make *fn* a tool that is given a memory.

        Raises:
            DeclarationError: *fn* cannot get a memory that way; the message says what to do.
        """
        # wrapt, on which tools are built, takes as long to import as all the rest: it is, with the first tool.
        from agent_gantry_state.injection.tool import decorate

        self._refuse(fn)
        return decorate(self._wiring, fn, self._declaration)


class Stateful:
    """Gives functions a memory.

    Args:
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
        partial_commits: Whether a call that changed memories which cannot be written in one step, for they are in different
            stores, or in one that cannot do it, is committed in one step for each, in the order of its decorators. Else it
            is refused with a `NotAtomicError`.

    Raises:
        StoreURLError: The URL names no store.
        TypeError: An argument is of the wrong type.
        ValueError: An id is empty.
    """

    _wiring: Wiring

    def _wire(
        self,
        store: Any = "memory://",
        app: str = "default",
        session: str | None = None,
        user: str | None = None,
        resolvers: Iterable[Resolver | IdentityResolver] = (),
        scopes: Mapping[str, Scope | str | StoreObject] | None = None,
        on_commit: Callback | None = None,
        on_conflict: Callback | None = None,
        partial_commits: bool = False,
    ) -> None:
        identity = Identity(session, user) if session is not None or user is not None else None
        observers = observers_of(on_commit, on_conflict)
        asked = _several("resolvers", resolvers)
        self._wiring = Wiring(store, app, identity, asked, {} if scopes is None else scopes, observers, partial_commits)
        self._known = lru_cache(_KNOWN_IDENTITIES)(Identity)

    @overload
    def with_memory(self, fn: Callable[P, R], /) -> Tool[P, R]: ...
    @overload
    def with_memory(
        self,
        *,
        scope: str | Sequence[str] = "session",
        into: str = "memory",
        name: str | None = None,
        ttl: float | _Unset | None = _UNSET,
        sliding: bool | _Unset = _UNSET,
        merge: Mapping[str, Merge] | None = None,
        on_conflict: Literal["raise", "retry"] = "raise",
        retries: int = 20,
        isolation: Literal["snapshot", "serializable"] = "snapshot",
        exclusive: bool = False,
        keys: Iterable[str] | None = None,
        private: bool = False,
        read_only: bool = False,
        default: Mapping[str, Any] | None = None,
        default_factory: Callable[[], Mapping[str, Any]] | None = None,
    ) -> MemoryDecorator: ...
    def with_memory(
        self,
        fn: Callable[..., Any] | None = None,
        *,
        scope: str | Sequence[str] = "session",
        into: str = "memory",
        name: str | None = None,
        ttl: float | _Unset | None = _UNSET,
        sliding: bool | _Unset = _UNSET,
        merge: Mapping[str, Merge] | None = None,
        on_conflict: Literal["raise", "retry"] = "raise",
        retries: int = 20,
        isolation: Literal["snapshot", "serializable"] = "snapshot",
        exclusive: bool = False,
        keys: Iterable[str] | None = None,
        private: bool = False,
        read_only: bool = False,
        default: Mapping[str, Any] | None = None,
        default_factory: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Any:
        """Give a function a memory, with or without parentheses. It may stand above a function several times.

        Args:
            fn: The function, when used without parentheses.
            scope: Who shares the memory: ``tool``, ``session``, ``conversation``, ``user``, ``global``, or any other name,
                which is the identity key of that name. Several of them are layers: a read falls through from the first to
                the next, a write goes to the first.
            into: Name of the parameter that gets the memory and is hidden from everybody else.
            name: Name of the tool, under which its own memory (scope ``tool``) is filed; by default the name under which
                it was registered, or its qualified name. Memories are found again only under the same name.
            ttl: Seconds that a key lives after it was written, from the commit on. By default the scope's. None: a write
                leaves a key's expiry as it is.
            sliding: Whether each use of the memory restarts that time, too. By default the scope's.
            merge: For keys that several calls may change at once, how to merge them: functions of
                `agent_gantry_state.merge` or your own, of base, theirs and ours.
            on_conflict: What to do when another call changed a key that cannot be merged: "raise" a
                `MemoryConflictError`, or "retry", which runs the body again on what is there then.
            retries: How often it may run again.
            isolation: "snapshot" checks what the call writes; "serializable" also that nothing which it read has changed
                when it commits: any key of the memory, or those in *keys*.
            exclusive: Whether calls wait until no other has the memory to itself, at most 60 seconds: within a process in
                the order of the calls, between processes by a lease in the store. Implies "serializable".
            keys: The only keys to load and to write; what else is in the memory is not seen. By default all.
            private: Whether the memory is this tool's own compartment of it, which no other tool sees. It is erased with the
                rest, and belongs to the same owner.
            read_only: Whether a write to the memory is an error, and nothing of the call is written.
            default: What the memory begins with where there is none yet. It is written with the first change of it, and
                merged with what another call makes of the same.
            default_factory: Makes that, each time anew, instead.

        Returns:
            The function as a `Tool`, or a decorator that makes one.

        Raises:
            DeclarationError: The function cannot get a memory that way; the message says what to do.
            TypeError: An argument is of the wrong type.
            ValueError: *ttl* is not positive.
        """
        return self._decorate(
            "memory",
            fn,
            scope,
            into,
            name,
            keys,
            ttl,
            sliding,
            merge,
            on_conflict,
            retries,
            isolation,
            exclusive,
            private,
            read_only,
            default,
            default_factory,
        )

    @overload
    def with_context(self, fn: Callable[P, R], /) -> Tool[P, R]: ...
    @overload
    def with_context(
        self, *, into: str = "ctx", on_conflict: Literal["raise", "retry"] = "raise", retries: int = 20
    ) -> MemoryDecorator: ...
    def with_context(
        self,
        fn: Callable[..., Any] | None = None,
        *,
        into: str = "ctx",
        on_conflict: Literal["raise", "retry"] = "raise",
        retries: int = 20,
    ) -> Any:
        """Give a function an `ExecutionContext` (a `SyncExecutionContext` if it is sync), with or without parentheses.

        A tool that is registered with `AgentGantry` gets one without this, if it has such a parameter.

        Args:
            fn: The function, when used without parentheses.
            into: Name of the parameter that gets it.
            on_conflict: As in `with_memory`.
            retries: As in `with_memory`.

        Returns:
            The function as a `Tool`, or a decorator that makes one.

        Raises:
            DeclarationError: The function cannot get a context that way; the message says what to do.
        """
        return self._decorate("context", fn, "session", into, None, None, on_conflict=on_conflict, retries=retries)

    @overload
    def with_session(self, fn: Callable[P, R], /) -> Tool[P, R]: ...
    @overload
    def with_session(
        self,
        *,
        scope: str = "session",
        into: str = "session",
        ttl: float | _Unset | None = _UNSET,
        sliding: bool | _Unset = _UNSET,
        merge: Mapping[str, Merge] | None = None,
        on_conflict: Literal["raise", "retry"] = "raise",
        retries: int = 20,
        isolation: Literal["snapshot", "serializable"] = "snapshot",
        exclusive: bool = False,
    ) -> MemoryDecorator: ...
    def with_session(
        self,
        fn: Callable[..., Any] | None = None,
        *,
        scope: str = "session",
        into: str = "session",
        ttl: float | _Unset | None = _UNSET,
        sliding: bool | _Unset = _UNSET,
        merge: Mapping[str, Merge] | None = None,
        on_conflict: Literal["raise", "retry"] = "raise",
        retries: int = 20,
        isolation: Literal["snapshot", "serializable"] = "snapshot",
        exclusive: bool = False,
    ) -> Any:
        """Give a function a `Session` (a `SyncSession` if it is sync), which loads and writes key by key.

        Args:
            fn: The function, when used without parentheses.
            scope: Whose keys; any scope, as in `with_memory`.
            into: Name of the parameter that gets it.
            ttl: As in `with_memory`, like all that follow.
            sliding: Likewise.
            merge: Likewise.
            on_conflict: Likewise.
            retries: Likewise.
            isolation: Likewise.
            exclusive: Likewise.

        Returns:
            The function as a `Tool`, or a decorator that makes one.

        Raises:
            DeclarationError: The function cannot get a session that way; the message says what to do.
        """
        return self._decorate(
            "session", fn, scope, into, None, None, ttl, sliding, merge, on_conflict, retries, isolation, exclusive
        )

    def _decorate(
        self,
        kind: Kind,
        fn: Callable[..., Any] | None,
        scope: str | Sequence[str],
        into: str,
        name: str | None,
        keys: Iterable[str] | None,
        ttl: float | _Unset | None = _UNSET,
        sliding: bool | _Unset = _UNSET,
        merge: Mapping[str, Merge] | None = None,
        on_conflict: str = "raise",
        retries: int = 20,
        isolation: str = "snapshot",
        exclusive: bool = False,
        private: bool = False,
        read_only: bool = False,
        default: Mapping[str, Any] | None = None,
        default_factory: Callable[[], Mapping[str, Any]] | None = None,
    ) -> Any:
        wiring = self._wiring
        where = f"with_{kind}"
        nearest, *further = _scopes(wiring, where, scope)
        usual = wiring.terms(nearest)
        chosen = usual.ttl if isinstance(ttl, _Unset) else KEEP if ttl is None else ttl
        if chosen is not KEEP:
            chosen = float(check_ttl(where, chosen))  # type: ignore[arg-type]
        if not isinstance(sliding, (bool, _Unset)):
            raise DeclarationError(f"{where}: sliding must be True or False, not {type(sliding).__name__}")
        slides = (usual.slides and chosen is not KEEP) if isinstance(sliding, _Unset) else sliding
        if slides and chosen is KEEP:
            raise DeclarationError(f"{where}: sliding=True needs a ttl (seconds), here or in the scope")
        if not isinstance(into, str) or not into.isidentifier():
            raise DeclarationError(f'{where}: into must be the name of a parameter, into="memory", not {_given(into)}')
        if on_conflict not in ("raise", "retry"):
            raise DeclarationError(f'{where}: on_conflict must be "raise" or "retry", not {_given(on_conflict)}')
        if isolation not in ("snapshot", "serializable"):
            raise DeclarationError(f'{where}: isolation must be "snapshot" or "serializable", not {_given(isolation)}')
        if not isinstance(exclusive, bool):
            raise DeclarationError(f"{where}: exclusive must be True or False, not {type(exclusive).__name__}")
        if not isinstance(private, bool):
            raise DeclarationError(f"{where}: private must be True or False, not {type(private).__name__}")
        if not isinstance(read_only, bool):
            raise DeclarationError(f"{where}: read_only must be True or False, not {type(read_only).__name__}")
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise DeclarationError(f"{where}: retries must be an int of at least 0, not {_given(retries)}")
        if name is not None and (not isinstance(name, str) or not name):
            raise DeclarationError(f"{where}: name must be a str that is not empty, not {type(name).__name__}")
        _check_merge(where, merge)
        named = None if keys is None else _key_names(where, keys)
        if named is not None and (unknown := set(merge or {}).difference(named)):
            raise DeclarationError(f"{where}: merge names {min(unknown)!r}, which is none of keys")
        if exclusive or isolation == "serializable":
            _refuse_apart(wiring, where, (nearest, *further))
        terms = replace(
            usual,
            ttl=chosen,
            slides=slides,
            merges=dict(merge or {}),
            keys=named,
            serializable=isolation == "serializable",
            exclusive=exclusive,
            read_only=read_only,
            default=default_of(where, default, default_factory, named),
        )
        declaration = Declaration(
            nearest,
            into,
            terms,
            name,
            retries if on_conflict == "retry" else 0,
            kind,
            tuple(further),
            private,
            default,
            default_factory,
        )
        decorator = MemoryDecorator(wiring, declaration, self._refuse_decoration)
        return decorator if fn is None else decorator(fn)

    def identity(self) -> Identity | None:
        """Who calls here, as a tool of this gantry would be told: what was entered, or a framework says, or the default.

        Returns:
            The identity; None if nothing is known.

        Raises:
            ResolverError: A resolver failed to say who calls.
        """
        return self._wiring.settings.caller()

    def session(
        self,
        id: str | Identity | None = None,
        *,
        user: str | None = None,
        conversation: str | None = None,
        adopt: bool = False,
        **keys: str | None,
    ) -> SessionBlock:
        """State who calls, inside a `with` or `async with` block: the whole of it, what is left out is unknown.

        Args:
            id: Id of the session, any str but ""; without one, a new id with 256 random bits. Or an `Identity`, to which
                nothing is added.
            user: Id of the user.
            conversation: Id of the conversation.
            adopt: Whether *user* takes over a session that was begun before its user was known: it is theirs from the next
                commit on that writes to it.
            keys: Further identity keys, each the name of a scope: ``tenant="acme"``.

        Returns:
            A block whose ``as`` gives the `Identity`. It may be left in another task than it was entered in.

        Raises:
            ResolverError: On entering, if a resolver failed to say who calls there.
            TypeError: An id is no str, or others were given beside an `Identity`.
            ValueError: An id is "", or *adopt* was asked for without a user.
        """
        if type(id) is str and (user is None or type(user) is str) and conversation is None and not keys and adopt is False:
            # The one of the last time, if that is not too long ago: it knows where its memories stand.
            return SessionBlock(self._known(id, user), self._wiring)
        if isinstance(id, Identity):
            if adopt or any(value is not None for value in (user, conversation, *keys.values())):
                raise TypeError("session: an Identity is the whole of it; put the other ids into it, identity.replace(...)")
            return SessionBlock(id, self._wiring)
        return SessionBlock(Identity(new_id() if id is None else id, user, conversation, keys, adopt), self._wiring)

    def bind(self, fn: Callable[P, R], /) -> Callable[P, R]:
        """Bind a function to the identity that is known here, for a thread or a pool of your own.

        Only the identity goes along. Called in another thread, a tool that was bound inside another tool's body is a call of
        its own: it sees what is committed, and commits when it returns. To make it a part of the call around it, give the
        thread a copy of the context, `contextvars.copy_context().run`.

        Args:
            fn: A function, sync or async, or a method; decorated, or calling tools that are.

        Returns:
            A function with the name and signature of *fn*, to be called anywhere, any number of times and at once.

        Raises:
            MissingIdentityError: No identity is known here.
            ResolverError: A resolver failed to say who calls.
            TypeError: *fn* cannot be called, or is a generator function without a memory, whose body would run outside.
        """
        identity = self.identity()
        if identity is None:
            raise MissingIdentityError(
                "bind: no identity is known here that a function could be bound to. Bind it inside of "
                "`with gantry.session(...):`, or inside of a tool",
                scope="session",
            )
        function: Callable[P, R] = bound(fn, lambda: SessionBlock(identity, self._wiring))
        return function

    def memory(
        self,
        scope: str = "session",
        *,
        session: str | None = None,
        user: str | None = None,
        conversation: str | None = None,
        tool: str | None = None,
        merge: Mapping[str, Merge] | None = None,
        **keys: str | None,
    ) -> MemoryBlock:
        """Open a memory outside a tool: ``with gantry.memory("user", user="ada") as memory:``.

        It is committed when the block ends without an error; a block that is left by one, or never left, commits nothing.

        Args:
            scope: Which memory.
            session: Id of the session. If any id is given, the ids given are all that is known; else it is the identity
                that was entered here, or the gantry's.
            user: Id of the user.
            conversation: Id of the conversation.
            tool: Name of the tool, for scope ``tool``.
            merge: For keys that calls may change at the same time, how to merge them, as in `with_memory`.
            keys: Further identity keys.

        Returns:
            A block for `with` and `async with`, whose ``as`` gives the `Memory`.

        Raises:
            DeclarationError: *scope* or *merge* is none.
            MissingIdentityError: On entering, if the scope depends on something that is not given.
        """
        wiring = self._wiring
        wiring.check_scope(scope, "gantry.memory")
        _check_merge("gantry.memory", merge)
        stated = _stated(session, user, conversation, keys)
        terms = replace(wiring.terms(scope), merges=dict(merge or {}))

        def open_unit() -> UnitOfWork:
            settings = wiring.settings
            identity = stated or settings.caller()
            namespace = resolve(scope, tool, identity, wiring.app, settings.resolvers, wiring.scopes)
            want = Want.of(wiring.owned(terms, namespace), identity)
            return UnitOfWork({namespace: want}, settings.bridge, unit_around()).watched(settings.observers, None)

        return MemoryBlock(open_unit)

    def prompt_view(
        self,
        scope: str | Sequence[str] = "session",
        *,
        keys: Iterable[str] | None = None,
        max_chars: int = 4000,
        redact: Iterable[str | re.Pattern[str]] | None = (),
        session: str | None = None,
        user: str | None = None,
        conversation: str | None = None,
        tool: str | None = None,
        **more: str | None,
    ) -> str:
        """A memory as text to put into a prompt: bounded, without secrets, marked as data.

        The text is a block of tags with one line of JSON for each key. No stored value can end the block, begin a line or
        look like a mark: `<`, `>`, ends of lines and letters that cannot be seen are escaped. The marks are ``<redacted/>``;
        ``<cut/>`` where a value goes on; ``<left-out keys="3"/>`` for the keys at the end for which there was no room. It is
        read from the store in one moment, and nothing is written: it does not restart the time to live of a memory.

        What is shown is what is stored: of typed state its fields, of several scopes what a tool with these layers reads,
        of private memories nothing. In the body of a tool it is also what that has written so far.

        Args:
            scope: Which memory; several are layers, the nearest first, as in `with_memory`.
            keys: The only keys to show. By default all.
            max_chars: How many characters the text may have, all in all; a token has about four. Long values are cut so
                that all keys get their share.
            redact: What is not to be shown, in addition to keys whose names tell of a secret (password, token, api_key):
                names of keys at any depth, in any case and with wildcards, ``"*email*"``; and compiled patterns, whose
                matches are taken out of texts, keys and numbers. None: everything is shown.
            session: Id of the session. If any id is given, the ids given are all that is known; else it is the identity
                that was entered here, or the gantry's.
            user: Id of the user.
            conversation: Id of the conversation.
            tool: Name of the tool, for scope ``tool``.
            more: Further identity keys.

        Raises:
            MissingIdentityError: A scope depends on something that is not given.
            SessionOwnerError: A memory belongs to somebody else.
            StoreError: The store failed.
            ValueError: *max_chars* is too small for an empty memory.
        """
        unit, scopes, redaction = self._looking(scope, keys, redact, tool, _stated(session, user, conversation, more))
        return _prompt(unit, unit.bridge.run(unit.begin()), scopes, max_chars, redaction)

    async def aprompt_view(
        self,
        scope: str | Sequence[str] = "session",
        *,
        keys: Iterable[str] | None = None,
        max_chars: int = 4000,
        redact: Iterable[str | re.Pattern[str]] | None = (),
        session: str | None = None,
        user: str | None = None,
        conversation: str | None = None,
        tool: str | None = None,
        **more: str | None,
    ) -> str:
        """`prompt_view`, for a caller on an event loop."""
        unit, scopes, redaction = self._looking(scope, keys, redact, tool, _stated(session, user, conversation, more))
        return _prompt(unit, await unit.bridge.arun(unit.begin()), scopes, max_chars, redaction)

    def _looking(
        self, scope: str | Sequence[str], keys: Iterable[str] | None, redact: Any, tool: str | None, stated: Identity | None
    ) -> tuple[UnitOfWork, tuple[str, ...], Redaction]:
        """A unit that loads the memories of scopes and writes nothing."""
        wiring, where = self._wiring, "prompt_view"
        # Few programs ask for it, and it needs json.
        from agent_gantry_state.prompt import Redaction

        scopes, redaction = _scopes(wiring, where, scope), Redaction(redact)
        named = None if keys is None else _key_names(where, keys)
        settings = wiring.settings
        identity = stated or settings.caller()
        wants: dict[Namespace, Want] = {}
        for name in scopes:
            namespace = resolve(name, tool, identity, wiring.app, settings.resolvers, wiring.scopes)
            terms = replace(wiring.owned(wiring.terms(name), namespace), keys=named, read_only=True, slides=False)
            wants.setdefault(namespace, Want.of(terms, identity))
        return UnitOfWork(wants, settings.bridge, unit_around()), scopes, redaction

    def independent(self) -> Independent:
        """Make calls in a `with` or `async with` block stand on their own, though they are made inside a tool.

        They see what is committed and nothing else, commit when they return, and stay committed if the tool fails.
        """
        return Independent()

    def forget(
        self,
        scope: str,
        *,
        session: str | None = None,
        user: str | None = None,
        conversation: str | None = None,
        tool: str | None = None,
        **keys: str | None,
    ) -> None:
        """Erase a memory, at once and whoever owns it; a call that had loaded it cannot bring anything of it back.

        Args:
            scope: Which memory.
            session: Id of the session. If any id is given, the ids given are all that is known; else it is the identity
                that was entered here, or the gantry's.
            user: Id of the user.
            conversation: Id of the conversation.
            tool: Name of the tool, for scope ``tool``.
            keys: Further identity keys.

        Raises:
            MissingIdentityError: The scope depends on something that is not given.
            StoreError: The store failed; `committed` says whether it is certain that nothing was erased.
        """
        bridge, steps = self._forgetting(scope, tool, _stated(session, user, conversation, keys))
        bridge.run(steps)

    async def aforget(
        self,
        scope: str,
        *,
        session: str | None = None,
        user: str | None = None,
        conversation: str | None = None,
        tool: str | None = None,
        **keys: str | None,
    ) -> None:
        """`forget`, for a caller on an event loop."""
        bridge, steps = self._forgetting(scope, tool, _stated(session, user, conversation, keys))
        await bridge.arun_uncut(steps)

    def end_session(self, id: str, *, user: str | None = None, conversation: str | None = None, **keys: str | None) -> None:
        """Erase the memory of a session: `forget` for scope ``session``. Its id may be used again, by anybody.

        Args:
            id: Id of the session.
            user: Id of the user, like the rest for resolvers of your own that look at more than the session's id.
            conversation: Id of the conversation.
            keys: Further identity keys.

        Raises:
            StoreError: The store failed.
        """
        self.forget("session", session=id, user=user, conversation=conversation, **keys)

    async def aend_session(
        self, id: str, *, user: str | None = None, conversation: str | None = None, **keys: str | None
    ) -> None:
        """`end_session`, for a caller on an event loop."""
        await self.aforget("session", session=id, user=user, conversation=conversation, **keys)

    @property
    def admin(self) -> Admin:
        """What an operator does with the memories that are stored: list, show, set, export, copy, erase, check."""
        # Only here, for no call of a tool needs it.
        from agent_gantry_state.admin import Admin

        return Admin(self._wiring, self._wiring.app)

    def _forgetting(self, scope: str, tool: str | None, stated: Identity | None) -> tuple[Bridge, Steps[None]]:
        wiring = self._wiring
        wiring.check_scope(scope, "gantry.forget")
        settings = wiring.settings
        identity = stated or settings.caller()
        namespace = resolve(scope, tool, identity, wiring.app, settings.resolvers, wiring.scopes)

        def steps() -> Steps[None]:
            timeout = bridge.commit_timeout
            deadline = time.monotonic() + timeout
            yield from sent(Forget((namespace,), timeout), deadline, again=bridge.resendable, counters=bridge.counters)

        bridge = bridge_for(settings.bridge, namespace)
        return bridge, steps()

    def override(
        self,
        *,
        session: str | None = None,
        user: str | None = None,
        conversation: str | None = None,
        store: Any = None,
        resolvers: Iterable[Resolver | IdentityResolver] | None = None,
        clock: Callable[[], float] | None = None,
        **keys: str | None,
    ) -> Override:
        """Swap parts inside a `with` or `async with` block, for a test; they come back however the block is left.

        The identity is swapped for this context, the rest for the whole gantry, in every thread and loop.

        Args:
            session: Id of the session; naming one states the whole identity.
            user: Id of the user; without *session* it changes the user only.
            conversation: Id of the conversation, likewise.
            store: A URL, which is closed after the block, or a store object, which is not; for every scope, also for those
                that have a store of their own.
            resolvers: Instead of the gantry's own; the built-in ones still follow.
            clock: Gives the time in seconds since the epoch, for stores that have no clock of their own.
            keys: Further identity keys.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: On entering, if *clock* is given and one of the stores goes by its own.
            StoreURLError: *store* is a URL that names no store.
        """
        bridge = None if store is None else open_bridge(store)
        swapped = None if resolvers is None else _several("override: resolvers", resolvers)
        check_resolvers(swapped or ())
        if clock is not None and not callable(clock):
            raise TypeError(f"override: clock must be a function that gives the time in seconds, not {type(clock).__name__}")
        layer = Layer(bridge, swapped, clock)
        given = {"user": user, "conversation": conversation, **keys}
        identity: Callable[[], Identity] | None = None
        if session is not None:
            stated = Identity(session, user, conversation, keys)
            identity = lambda: stated  # noqa: E731
        elif any(value is not None for value in given.values()):
            known = {key: value for key, value in given.items() if value is not None}
            identity = lambda: (self.identity() or Identity()).replace(**known)  # noqa: E731
        return Override(self._wiring, layer, identity)

    def _refuse_decoration(self, fn: Any) -> None:
        """Refuse a function that this gantry cannot decorate any more."""


def _several(what: str, resolvers: Any) -> tuple[Any, ...]:
    """The resolvers that somebody gives.

    Raises:
        TypeError: It is one by itself, or none.
    """
    if not isinstance(resolvers, Iterable):
        raise TypeError(f"{what} must be a list of them, [...], not {type(resolvers).__name__}")
    return tuple(resolvers)


def _given(value: Any) -> str:
    """What an option was given, for an error: a word as it stands, of anything else the type."""
    return shortened(repr(value)) if type(value) in (str, int, float, bool) else type(value).__name__


def _check_merge(where: str, merge: Any) -> None:
    """Refuse what cannot merge keys.

    Raises:
        DeclarationError: It maps no names to functions of base, theirs and ours.
    """
    if merge is not None and not isinstance(merge, Mapping):
        raise DeclarationError(
            f'{where}: merge must map str keys to functions, merge={{"count": merge.add}}, not be a {type(merge).__name__}'
        )
    for key, function in (merge or {}).items():
        if not isinstance(key, str):
            raise DeclarationError(
                f"{where}: merge must map str keys to functions; one of type {type(key).__name__} is no key"
            )
        name = shortened(repr(key))
        if not callable(function):
            raise DeclarationError(
                f"{where}: merge must map str keys to functions; {name} does not: give it one of "
                f"agent_gantry_state.merge or your own, not {type(function).__name__}"
            )
        if not _takes_three(function):
            raise DeclarationError(
                f"{where}: merge must map str keys to functions of base, theirs and ours; that of {name} does not take three"
                + (", but gives one that does: merge.newest(count)" if function is newest else "")
            )


def _takes_three(function: Any) -> bool:
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:
        # A built-in one may tell nothing of itself.
        return True
    return True


def _key_names(where: str, keys: Any) -> tuple[str, ...]:
    """The keys that a decorator names.

    Raises:
        DeclarationError: They are no names, or none.
    """
    names = tuple(keys) if isinstance(keys, Iterable) and not isinstance(keys, (str, bytes)) else ()
    if not names or not all(isinstance(key, str) for key in names):
        raise DeclarationError(f'{where}: keys must be one or more names, keys=("cwd",)')
    for key in names:
        if is_reserved(key):
            raise DeclarationError(f'{where}: keys names {key!r}, but keys that begin with "\\0" are reserved')
    return names


def _refuse_apart(wiring: Wiring, where: str, scopes: tuple[str, ...]) -> None:
    """Refuse layers that have to be of one moment and are kept in different stores.

    Raises:
        DeclarationError: They are.
    """
    nearest = wiring.store_key(scopes[0])
    for scope in scopes[1:]:
        if wiring.store_key(scope) is not nearest:
            raise DeclarationError(
                f"{where}: scopes {scopes[0]!r} and {scope!r} are kept in different stores, which cannot be looked at in "
                'one step, so that a call over both cannot be exclusive or have isolation="serializable"; keep them in one'
            )


def _scopes(wiring: Wiring, where: str, scope: Any) -> tuple[str, ...]:
    """The scopes that a decorator names, the nearest first.

    Raises:
        DeclarationError: They are no names, or none, or one is there twice.
    """
    if where in ("with_memory", "prompt_view") and isinstance(scope, (tuple, list)):
        if not scope:
            raise DeclarationError(f'{where}: scope must name at least one scope, scope=("session", "user")')
    else:
        scope = (scope,)
    for position, name in enumerate(scope):
        wiring.check_scope(name, where)
        if name in scope[:position]:
            raise DeclarationError(f"{where}: scope names {name!r} twice")
    return tuple(scope)


def _prompt(
    unit: UnitOfWork, memories: tuple[Memory, ...], scopes: Sequence[str], max_chars: int, redaction: Redaction
) -> str:
    """The text of memories that lie over each other, the nearest first."""
    from agent_gantry_state.prompt import prompt_text

    try:
        # The nearest one's keys come first, and its values hide those behind.
        merged: dict[str, Any] = {}
        for memory in memories:
            for key, value in memory.items():
                merged.setdefault(key, value)
        return prompt_text(merged, scopes, max_chars, redaction)
    finally:
        unit.fail()


def _stated(
    session: str | None, user: str | None, conversation: str | None, keys: Mapping[str, str | None]
) -> Identity | None:
    """The identity that somebody states, None if nothing of one is given."""
    given = any(value is not None for value in (session, user, conversation, *keys.values()))
    return Identity(session, user, conversation, keys) if given else None


#: How many identities a gantry keeps, for when they are entered again.
_KNOWN_IDENTITIES: Final = 256


class Gantry(Stateful):
    """Gives plain functions a memory, without agent-gantry; any framework can use the decorated functions.

    Close it when no tool is called any more, with `close` or `aclose` or as a context manager, sync or async.

    Example:
        >>> gantry = Gantry(session="local")
        >>> @gantry.with_memory
        ... def count(memory: dict) -> int:
        ...     return memory.add("n", 1)
        >>> count(), count()
        (1, 2)
        >>> gantry.close()
    """

    def __init__(
        self,
        store: Any = "memory://",
        *,
        app: str = "default",
        session: str | None = None,
        user: str | None = None,
        resolvers: Iterable[Resolver | IdentityResolver] = (),
        scopes: Mapping[str, Scope | str | StoreObject] | None = None,
        on_commit: Callback | None = None,
        on_conflict: Callback | None = None,
        partial_commits: bool = False,
    ) -> None:
        self._wire(store, app, session, user, resolvers, scopes, on_commit, on_conflict, partial_commits)

    __init__.__doc__ = Stateful.__doc__

    def close(self) -> None:
        """Close every store that was made from a URL. Tools that are called afterwards raise `StoreClosedError`."""
        if (bridge := self._wiring.close()) is not None:
            bridge.close()

    async def aclose(self) -> None:
        """`close`, for a caller on an event loop."""
        if (bridge := self._wiring.close()) is not None:
            await bridge.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()
