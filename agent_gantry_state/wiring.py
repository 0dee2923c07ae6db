"""What a gantry's tools find when they are called: the store, the resolvers, the clock, and who calls by default.

`override` swaps parts of it for the whole gantry, in every thread and loop. Overrides are layers: each is taken out by its
own handle, in whatever order, and the uppermost that says something about a part holds.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from agent_gantry_state.bridge import Bridge, Closed, bridge_to
from agent_gantry_state.errors import DeclarationError, StoreURLError
from agent_gantry_state.events import Observers
from agent_gantry_state.memory import Terms
from agent_gantry_state.namespace import Namespace, text_of
from agent_gantry_state.resolvers import BUILT_IN_SCOPES, IdentityResolver, Resolver, identify
from agent_gantry_state.scopes import ENTERED, Entered, Identity, Scope
from agent_gantry_state.several import Several
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import KEEP
from agent_gantry_state.stores.urls import open_store

__all__ = ["Layer", "Settings", "StoreObject", "Wiring", "check_resolvers"]


class StoreObject(Protocol):
    """What type checkers take for a store; what it must have is said by `Store` and `AsyncStore`."""

    def load(self, message: Any, /) -> Any: ...
    def commit(self, message: Any, /) -> Any: ...
    def close(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds right now; replaced as a whole, so that a call reads it once and keeps it.

    Attributes:
        bridge: The way to the store or stores.
        resolvers: The gantry's own, which say where a memory is; the built-in ones follow.
        identity: Who calls where nothing else is known.
        direct: The store of the scopes that have none of their own, if it is a `MemoryStore` and nobody else has to be asked
            or told: what the shortest call path needs, else None.
        home: What stands for that store in its slots.
        observers: Who is told of commits and conflicts.
        elsewhere: Scopes that are not in that store.
        frameworks: Those of the gantry's own resolvers that say who calls.
        single: In place of `direct`, under the same conditions, the way to the store if there is one for all scopes.
        sole: `direct`, if all scopes are in it.
    """

    bridge: Bridge
    resolvers: tuple[Resolver, ...]
    identity: Identity | None
    direct: MemoryStore | None
    home: object
    observers: Observers | None = None
    elsewhere: frozenset[str] = frozenset()
    frameworks: tuple[IdentityResolver, ...] = ()
    single: Bridge | None = None
    sole: MemoryStore | None = None

    def said(self) -> Identity | None:
        """Who calls here, as the framework says it that runs here.

        Raises:
            ResolverError: A resolver failed.
        """
        return identify(self.frameworks) if self.frameworks else None

    def entered(self) -> Entered | None:
        """The identity that holds here: what was entered or what a framework says, whichever is nearer.

        Raises:
            ResolverError: A resolver failed.
        """
        entered = ENTERED.get()
        if not self.frameworks:
            return entered
        # Nearer is what was entered where the framework had said the same already.
        if (said := self.said()) is None or (entered is not None and self._said_around(entered) == said):
            return entered
        if said.session is None:
            around = self.identity if entered is None else entered.identity
            return Entered((around or Identity()).replace(**said.keys), said=said)
        return Entered(said, said=said)

    def _said_around(self, entered: Entered) -> Identity | None:
        """What the framework said where *entered* was entered."""
        if entered.around is None:
            return entered.said
        # A copy, for one that somebody else is looking into cannot be entered.
        return entered.around.copy().run(self.said)

    def caller(self) -> Identity | None:
        """Who calls here; None if nothing is known.

        Raises:
            ResolverError: A resolver failed.
        """
        entered = self.entered()
        return self.identity if entered is None else entered.identity


@dataclass(eq=False, slots=True)
class Layer:
    """What one override says; None for what it does not."""

    bridge: Bridge | None = None
    resolvers: tuple[Resolver | IdentityResolver, ...] | None = None
    clock: Callable[[], float] | None = None


class Wiring:
    """A gantry's store, resolvers and names; what decorated functions hold on to.

    Args:
        store: A URL or a store object. A store that was made here from a URL is closed with the gantry.
        app: Keeps this gantry's memories apart from those of other programs on the same store.
        identity: Who calls where nothing else is known.
        resolvers: Tried before the built-in ones.
        scopes: Declared scopes by name, or the stores of scopes of which nothing else is declared.
        observers: Who is told of commits and conflicts.
        partial_commits: Whether a call is committed in parts, where its stores cannot do that in one step.
    """

    def __init__(
        self,
        store: Any,
        app: str,
        identity: Identity | None,
        resolvers: tuple[Resolver | IdentityResolver, ...],
        scopes: Mapping[str, Scope | str | StoreObject],
        observers: Observers | None = None,
        partial_commits: bool = False,
    ) -> None:
        app = text_of(app, "app")
        check_resolvers(resolvers)
        if not isinstance(partial_commits, bool):
            raise TypeError(f"partial_commits must be True or False, not {type(partial_commits).__name__}")
        if not isinstance(scopes, Mapping):
            raise TypeError(
                f'scopes must map names to Scope(...), scopes={{"user": Scope(...)}}, not be of type {type(scopes).__name__}'
            )
        self.app = app
        self.scopes = {name: scope if isinstance(scope, Scope) else Scope(store=scope) for name, scope in scopes.items()}
        self._lock = threading.Lock()
        self._partial = partial_commits
        self._base = Layer(_open_all(store, self.scopes, partial_commits), resolvers, None)
        self._layers: list[Layer] = []
        self._identity = identity
        self._observers = observers
        self._trace: Callable[[Bridge], Bridge] | None = None
        self._names: dict[str, weakref.ref[Any] | Callable[[], Any]] = {}
        self._keys: dict[str, object] = {}
        self._terms: dict[str, Terms] = {}
        self.closed = False
        #: The stores on which this gantry has set a clock.
        self.clocked: Sequence[Any] = ()
        self.settings = self._settle()

    def scope(self, name: str) -> Scope:
        """What was declared for a scope."""
        return self.scopes.get(name, _PLAIN)

    def store_key(self, scope: str) -> object:
        """An object that stands for the store of a scope: the same one for scopes that are committed together."""
        bridge = self._base.bridge
        return bridge.elsewhere.get(scope, bridge.main) if isinstance(bridge, Several) else bridge

    def key(self, scope: str) -> object:
        """An object that stands for a scope of this gantry: the key of caches, for it is found by its identity."""
        with self._lock:
            return self._keys.setdefault(scope, object())

    def terms(self, scope: str) -> Terms:
        """How a memory of a scope behaves where nobody says otherwise."""
        known = self._terms.get(scope)
        if known is not None:
            return known
        declared = self.scope(scope)
        ttl = KEEP if declared.ttl is None else float(declared.ttl)
        terms = Terms(scope, ttl, declared.sliding, owned=declared.owned or scope == "session", limits=declared.limits)
        if len(self._terms) < _MOST_TERMS:
            self._terms[scope] = terms
        return terms

    def owned(self, terms: Terms, namespace: Namespace) -> Terms:
        """*terms*, with an owner and with limits as the scope of the namespace has them, whatever scope was asked for."""
        if terms.scope == namespace.scope:
            return terms
        there = self.terms(namespace.scope)
        return replace(terms, owned=terms.owned or there.owned, limits=there.limits)

    def push(self, layer: Layer) -> None:
        """Put an override on top.

        Raises:
            ValueError: It sets a clock while the store goes by its own.
        """
        with self._lock:
            bridge = layer.bridge or self.settings.bridge
            clocks = [each for each in (*self._layers, layer) if each.clock is not None]
            for store in _stores(bridge) if clocks else ():
                if getattr(store, "clock", None) is None:
                    raise ValueError(
                        f"override(clock=...): {type(store).__name__} goes by its own clock, which cannot be set; "
                        'override the store as well, for example with store="memory://"'
                    )
            self._layers.append(layer)
            self.settings = self._settle()

    def remove(self, layer: Layer) -> None:
        """Take an override out, wherever in the pile it is, if it is there."""
        with self._lock:
            self._layers = [each for each in self._layers if each is not layer]
            self.settings = self._settle()

    def trace(self, trace: Callable[[Bridge], Bridge] | None) -> None:
        """Have *trace* put something before the bridge that holds, whichever that is; None takes it away."""
        with self._lock:
            self._trace = trace
            self.settings = self._settle()

    def _settle(self) -> Settings:
        bridge, resolvers, clock = self._base.bridge, self._base.resolvers, None
        for layer in self._layers:
            bridge = layer.bridge or bridge
            resolvers = resolvers if layer.resolvers is None else layer.resolvers
            clock = layer.clock or clock
        assert bridge is not None and resolvers is not None  # noqa: S101, PT018 - the base has both
        if self.closed:
            bridge = Closed()
        elif self._partial and not isinstance(bridge, Several):
            bridge = Several(bridge, {}, self._partial)
        _set_clock(self, [each for each in _stores(bridge) if getattr(each, "clock", None) is not None], clock)
        store = bridge.store
        # The shortest path asks and tells nobody.
        alone = not resolvers and self._observers is None and self._trace is None
        if self._trace is not None and not self.closed:
            bridge = self._trace(bridge)
        direct = store if alone and type(store) is MemoryStore else None
        single = bridge if alone and direct is None and not isinstance(bridge, (Closed, Several)) else None
        home = object() if direct is None else direct.home
        elsewhere = frozenset(bridge.elsewhere) if isinstance(bridge, Several) else frozenset[str]()
        located = tuple([each for each in resolvers if callable(each)])
        frameworks: Any = tuple([each for each in resolvers if hasattr(each, "identify")])
        sole = None if isinstance(bridge, Several) else direct
        return Settings(bridge, located, self._identity, direct, home, self._observers, elsewhere, frameworks, single, sole)

    def claim(self, name: str, fn: Callable[..., Any]) -> None:
        """Note that *name* is the tool *fn*, for its memories are filed under that name.

        Raises:
            DeclarationError: Another function has it.
        """
        with self._lock:
            there = self._names.get(name, _nothing)()
            if there is not None and there is not fn and not _redefines(there, fn):
                raise DeclarationError(
                    f"two different tools of this gantry are named {name!r}, and both have a memory that is filed under "
                    "that name; give one of them another, with_memory(name=...)"
                )
            try:
                self._names[name] = weakref.ref(fn)
            except TypeError:
                self._names[name] = lambda: fn

    def release(self, name: str, fn: Callable[..., Any]) -> None:
        """Let another tool have the name that *fn* had claimed."""
        with self._lock:
            if self._names.get(name, _nothing)() is fn:
                del self._names[name]

    def check_scope(self, scope: str, where: str) -> None:
        """Refuse what cannot be the name of a scope.

        Args:
            scope: What was given.
            where: To what, for the error.

        Raises:
            DeclarationError: It is no str, or empty.
        """
        if not isinstance(scope, str):
            how = ""
            if isinstance(scope, Scope):
                how = '; a Scope is declared with the gantry, scopes={"session": Scope(...)}, and then named'
            elif isinstance(scope, (tuple, list)):
                how = "; here it is one alone, and with_memory can have several"
            raise DeclarationError(f"{where}: scope must be a str, not {type(scope).__name__}{how}")
        if not scope:
            raise DeclarationError(
                f"{where}: scope must not be empty; built in are {', '.join(BUILT_IN_SCOPES)}, and any other name "
                "is the identity key of that name"
            )

    def close(self) -> Bridge | None:
        """Let no tool use the store any more; returns its bridge, to be closed, the first time."""
        with self._lock:
            if self.closed:
                return None
            self.closed = True
            self.settings = self._settle()
        return self._base.bridge


_PLAIN = Scope()
#: Of how many scopes the terms are kept: a resolver may answer with any number of them.
_MOST_TERMS: Final = 256


def check_resolvers(resolvers: Sequence[Any]) -> None:
    """Refuse what cannot be asked.

    Raises:
        TypeError: One of *resolvers* is neither callable nor has a method ``identify``, or is a class with one.
    """
    for resolver in resolvers:
        identifies = callable(getattr(resolver, "identify", None))
        if isinstance(resolver, type) and identifies:
            raise TypeError(f"a resolver must be an object, not a class: pass {resolver.__name__}(), with parentheses")
        if not callable(resolver) and not identifies:
            raise TypeError(f"a resolver must be callable or have a method identify(), not be a {type(resolver).__name__}")


def open_bridge(store: Any) -> Bridge:
    """The bridge to a store that is given by its URL, and then owned by the bridge, or as an object.

    Raises:
        StoreURLError: The URL names no store.
        TypeError: The object is no store.
    """
    return bridge_to(open_store(store), owned=True) if isinstance(store, str) else bridge_to(store)


def _open_all(store: Any, scopes: Mapping[str, Scope], partial: bool) -> Bridge:
    """The bridge to the store of a gantry, or to all of them. The same URL, or the same object, is one store.

    Raises:
        StoreURLError: A URL names no store.
        TypeError: An object is no store.
    """
    main = open_bridge(store)
    opened: dict[object, Bridge] = {_key_of(store): main}
    elsewhere: dict[str, Bridge] = {}
    for name, scope in scopes.items():
        where = scope.store
        if where is None:
            continue
        try:
            elsewhere[name] = opened[_key_of(where)] = opened.get(_key_of(where)) or open_bridge(where)
        except BaseException as error:
            Several(main, elsewhere, partial).close()
            if isinstance(error, TypeError):
                how = "a ttl is given as Scope(ttl=...)" if isinstance(where, (int, float)) else error
                raise TypeError(f"scopes[{name!r}] must be a Scope(...), the URL of a store, or a store: {how}") from error
            if isinstance(error, StoreURLError):
                error.args = (f"scopes[{name!r}]: {error}",)
            raise
    several = Several(main, elsewhere, partial)
    return several if several.elsewhere or partial else main


def _key_of(where: Any) -> object:
    return where if isinstance(where, str) else id(where)


def _stores(bridge: Bridge) -> tuple[Any, ...]:
    return bridge.stores if isinstance(bridge, Several) else (bridge.store,)


class _StoreClocks:
    """The clocks that gantries have set on one store, and the one that it had before."""

    def __init__(self, default: Callable[[], float]) -> None:
        self.default = default
        self.set: dict[int, Callable[[], float]] = {}


_CLOCKS: weakref.WeakKeyDictionary[Any, _StoreClocks] = weakref.WeakKeyDictionary()
_CLOCKS_LOCK = threading.Lock()


def _set_clock(wiring: Wiring, stores: Sequence[Any], clock: Callable[[], float] | None) -> None:
    """Let *stores* go by *clock* for one gantry, or by none of its own; take back what it had set on others.

    The last clock that a gantry set on a store holds; when none is left the store has the one that it came with.
    """
    with _CLOCKS_LOCK:
        before, wiring.clocked = wiring.clocked, () if clock is None else stores
        for store in before:
            if not any(store is each for each in wiring.clocked):
                _CLOCKS[store].set.pop(id(wiring), None)
                _apply(store)
        for store in wiring.clocked:
            _CLOCKS.setdefault(store, _StoreClocks(store.clock)).set[id(wiring)] = clock  # type: ignore[assignment]
            _apply(store)


def _apply(store: Any) -> None:
    clocks = _CLOCKS[store]
    wanted = next(reversed(clocks.set.values()), clocks.default)
    if store.clock is not wanted:
        store.clock = wanted


def _nothing() -> None:
    return None


def _redefines(old: Any, new: Any) -> bool:
    """Whether *new* took the place of *old*, as when a notebook's cell runs again or a module is reloaded."""
    names = [(getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)) for fn in (old, new)]
    return names[0] == names[1] and None not in names[0] and "<locals>" not in str(names[0][1])
