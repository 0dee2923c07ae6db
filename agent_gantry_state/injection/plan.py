"""Where memory goes in a tool: worked out once, when the tool is decorated, so that a call only reads it."""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent_gantry_state.errors import DeclarationError, InjectedArgumentError
from agent_gantry_state.injection.docstring import without_parameters
from agent_gantry_state.memory import Memory, Terms
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.resolvers import resolve
from agent_gantry_state.scopes import ENTERED, IMPERSONAL_SCOPES, Identity
from agent_gantry_state.unit_of_work import UnitOfWork
from agent_gantry_state.wiring import Settings, Wiring

__all__ = ["Declaration", "Plan"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What one `with_memory` says.

    Attributes:
        scope: Which memory.
        into: Name of the parameter that gets it.
        terms: How the memory behaves.
        name: Name of the tool, if it says one.
        retries: How often the body may run again after a conflict.
    """

    scope: str
    into: str
    terms: Terms
    name: str | None
    retries: int


class Plan:
    """Everything about a tool that does not change from call to call.

    Args:
        wiring: The gantry's.
        fn: What was decorated: a function, class or static method, partial or callable object.
        declarations: In the order in which they stand above the function.

    Raises:
        DeclarationError: *fn* cannot get a memory that way; the message says what to do.
    """

    def __init__(self, wiring: Wiring, fn: Any, declarations: tuple[Declaration, ...]) -> None:
        self.wiring = wiring
        self.declarations = declarations
        self.target = fn.__func__ if isinstance(fn, (classmethod, staticmethod)) else fn
        self.code = _code_owner(self.target)
        named = self.code if isinstance(self.target, functools.partial) else self.target
        self.label = getattr(named, "__qualname__", None) or type(self.target).__name__
        _refuse_unfit(self.target, self.label)
        self.is_async = inspect.iscoroutinefunction(self.code)
        self.injected = frozenset(declaration.into for declaration in declarations)
        self.retries = max(declaration.retries for declaration in declarations)
        self._parameters = _signature(self.target).parameters
        indexes = [self._index(declaration.into) for declaration in declarations]
        order = sorted(range(len(declarations)), key=lambda i: (indexes[i] is None, indexes[i] or 0))
        #: Parameter name and position (None: only by name) of each injection, and which declaration it is, in order.
        self.places = tuple((declarations[i].into, indexes[i], i) for i in order)
        self.doc = without_parameters(getattr(self.target, "__doc__", None), self.injected)
        self._signature: inspect.Signature | None = None
        self._registered: str | None = None
        self._claimed = False
        self._impersonal: dict[str, Namespace] = {}

    def _index(self, into: str) -> int | None:
        parameter = self._parameters.get(into)
        if parameter is None:
            shown = ", ".join(self._parameters) or "none"
            raise DeclarationError(
                f"{self.label} has no parameter {into!r} for the memory (its parameters: {shown}); "
                f"add one, `{into}: dict`, or name the one to use, with_memory(into=...)"
            )
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise DeclarationError(
                f"{self.label}: parameter {into!r} is positional-only and cannot be injected; move it behind the `/`"
            )
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise DeclarationError(
                f"{self.label}: {parameter} collects arguments and cannot be injected; add a parameter `{into}: dict` "
                "of its own"
            )
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            return None
        return [p.name for p in self._parameters.values() if p.kind in _POSITIONAL].index(into)

    def refuse_beside(self, wiring: Wiring, declaration: Declaration) -> None:
        """Refuse a further declaration that does not go with those that are there.

        Raises:
            DeclarationError: It is of another gantry, or for a parameter that is injected already.
        """
        if wiring is not self.wiring:
            raise DeclarationError(
                f"{self.label}: stacked with_memory must be of one gantry, for a tool's memories are committed together"
            )
        if declaration.into in self.injected:
            raise DeclarationError(
                f"{self.label}: two with_memory inject parameter {declaration.into!r}; give one of them another, "
                "with_memory(into=...)"
            )

    # What others see of the tool.

    def signature(self) -> inspect.Signature:
        """The signature without what is injected, annotations resolved where their names can be found."""
        if self._signature is not None:
            return self._signature
        hints, complete = _hints(self.code, [name for name in self._parameters if name not in self.injected])
        raw = _signature(self.target)
        signature = raw.replace(
            parameters=[
                parameter.replace(annotation=hints.get(name, parameter.annotation))
                for name, parameter in raw.parameters.items()
                if name not in self.injected
            ],
            return_annotation=hints.get("return", raw.return_annotation),
        )
        if complete:
            # A name that is defined further down in its module cannot be found yet: look again next time.
            self._signature = signature
        return signature

    def annotations(self) -> dict[str, Any]:
        """The annotations without what is injected."""
        return {name: hint for name, hint in _annotations(self.code).items() if name not in self.injected}

    # The name under which its own memories are filed.

    @property
    def name(self) -> str:
        """The tool's name: declared, else registered, else its qualified name."""
        declared = [declaration.name for declaration in self.declarations if declaration.name]
        return declared[0] if declared else self._registered or self.label

    def register(self, name: str) -> None:
        """Note the name under which the tool was registered; the first one stays."""
        if self._registered is None:
            self._registered = name
            self._claimed = False
            self._impersonal.clear()
        if any(declaration.scope == "tool" for declaration in self.declarations):
            self._claim()

    def _claim(self) -> None:
        self.wiring.claim(self.name, self.target)
        self._claimed = True

    # The call.

    def refuse(self, kwargs: Mapping[str, Any]) -> None:
        """Refuse a call that passes what is injected.

        Raises:
            InjectedArgumentError: It does.
        """
        for into in self.injected:
            if into in kwargs:
                raise InjectedArgumentError(
                    f"{self.label}() takes no argument {into!r} from its caller: it is injected, so leave it out",
                    parameter=into,
                )

    def locate(self, declaration: Declaration, settings: Settings, identity: Identity | None) -> Namespace:
        """The namespace of one declaration, for one caller.

        Raises:
            MissingIdentityError: It depends on something that is not known of the caller.
        """
        scope, wiring = declaration.scope, self.wiring
        cache: dict[Any, Namespace] | None = None
        key: Any = scope
        if not settings.resolvers:
            if scope in IMPERSONAL_SCOPES:
                cache = self._impersonal
            elif identity is not None:
                cache, key = identity.namespaces, (wiring.app, scope)
        if cache is not None and key in cache:
            return cache[key]
        if scope == "tool" and not self._claimed:
            self._claim()
        namespace = resolve(scope, self.name, identity, wiring.app, settings.resolvers, wiring.scopes)
        if cache is not None:
            cache[key] = namespace
        return namespace

    def open(self, settings: Settings) -> tuple[UnitOfWork, tuple[int, ...]]:
        """The unit of work of a call that begins now, and for each declaration which of its memories it gets."""
        entered = ENTERED.get()
        identity = settings.identity if entered is None else entered.identity
        needs: dict[Namespace, Terms] = {}
        which = []
        for declaration in self.declarations:
            namespace = self.locate(declaration, settings, identity)
            there = needs.get(namespace)
            needs[namespace] = declaration.terms if there is None else _joined(there, declaration.terms)
            which.append(list(needs).index(namespace))
        return UnitOfWork(needs, settings.resendable), tuple(which)

    def place(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        memories: tuple[Memory, ...],
        which: tuple[int, ...],
        shift: int,
    ) -> tuple[Any, ...]:
        """Put memories where the function takes them: into *kwargs*, or among the positional arguments it returns.

        *shift* is 1 for a bound method, whose arguments begin behind `self`.
        """
        for into, index, declaration in self.places:
            memory = memories[which[declaration]]
            if index is None or len(args) <= index - shift:
                kwargs[into] = memory
            else:
                args = (*args[: index - shift], memory, *args[index - shift :])
        return args


def _joined(one: Terms, other: Terms) -> Terms:
    """Two declarations of one memory: the upper one's terms, with the merges of both."""
    return Terms(one.scope, one.ttl, one.slides, {**other.merges, **one.merges})


def _code_owner(target: Any) -> Any:
    """The function whose code runs when *target* is called."""
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not isinstance(target, type):
        target = type(target).__call__
    return target


def _refuse_unfit(target: Any, label: str) -> None:
    if not callable(target):
        raise DeclarationError(f"with_memory decorates a function, not {type(target).__name__}")
    if isinstance(target, type):
        raise DeclarationError(f"with_memory decorates functions; {label} is a class, so decorate one of its methods")
    code = _code_owner(target)
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        raise DeclarationError(
            f"{label} is a generator function, whose body runs after the call has returned: a memory cannot be kept for "
            "it. Collect the items in a list and return that"
        )


if sys.version_info >= (3, 14):
    import annotationlib

    def _signature(fn: Any) -> inspect.Signature:
        return inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)

    def _annotations(fn: Any) -> dict[str, Any]:
        return annotationlib.get_annotations(fn, format=annotationlib.Format.FORWARDREF)

else:

    def _signature(fn: Any) -> inspect.Signature:
        return inspect.signature(fn)

    def _annotations(fn: Any) -> dict[str, Any]:
        return dict(getattr(fn, "__annotations__", {}))


def _hints(fn: Callable[..., Any], names: list[str]) -> tuple[dict[str, Any], bool]:
    """Resolved annotations of some parameters and the return, and whether all could be resolved.

    One by one, for `typing.get_type_hints` gives up on all when a single name cannot be found, and a name under
    `TYPE_CHECKING` never can.
    """
    source = inspect.unwrap(fn)
    parameters = getattr(source, "__type_params__", ())
    hints: dict[str, Any] = {}
    complete = True
    raw = _annotations(fn)
    for name in (*names, "return"):
        if name not in raw:
            continue
        holder = types.SimpleNamespace(
            __annotations__={name: raw[name]}, __globals__=_globals(source), __type_params__=parameters
        )
        try:
            hints[name] = typing.get_type_hints(holder, include_extras=True)[name]
        except Exception:  # noqa: BLE001 - whatever evaluating somebody's annotation raises
            complete = False
    return hints, complete


def _globals(fn: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(getattr(fn, "__func__", fn), "__globals__", {})
    return found
