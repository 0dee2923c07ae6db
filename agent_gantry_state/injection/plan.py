"""What goes where in a tool: worked out once, when the tool is decorated, so that a call only reads it."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import itertools
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from agent_gantry_state.compartments import prefix_of
from agent_gantry_state.context import ExecutionContext, SyncExecutionContext
from agent_gantry_state.defaults import default_of
from agent_gantry_state.errors import DeclarationError, InjectedArgumentError, MissingIdentityError
from agent_gantry_state.holding import Want
from agent_gantry_state.injection.docstring import without_parameters
from agent_gantry_state.memory import Memory, Terms
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.nesting import unit_around
from agent_gantry_state.resolvers import resolve
from agent_gantry_state.scopes import IMPERSONAL_SCOPES, Identity
from agent_gantry_state.session import Session, SyncSession
from agent_gantry_state.unit_of_work import UnitOfWork
from agent_gantry_state.wiring import Settings, Wiring

if TYPE_CHECKING:
    from agent_gantry_state.typed import Shape

__all__ = ["Declaration", "Kind", "Opening", "Plan", "stateful_parameters", "takes_memory_itself"]

Kind = Literal["memory", "context", "session"]
#: For what is not a dict: what an async tool gets, and a sync one.
_CLASSES: dict[Kind, tuple[type[Any], type[Any]]] = {
    "context": (ExecutionContext, SyncExecutionContext),
    "session": (Session, SyncSession),
}
_KNOWN = {cls.__name__: cls for pair in _CLASSES.values() for cls in pair}

#: What an identity keeps of the calls that it makes.
_MOST_OPENINGS = 256
#: Of how many namespaces' scopes a plan notes what it wants: a resolver may answer with any number of them.
_MOST_WANTS = 64
_PACKAGE = f"{__name__.partition('.')[0]}."

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What one decorator says.

    Attributes:
        scope: Which memory.
        into: Name of the parameter that gets it.
        terms: How the memory behaves.
        name: Name of the tool, if it says one.
        retries: How often the body may run again after a conflict.
        kind: What the parameter gets: the memory itself, a context, or the keys of the memory one by one.
        further: Scopes behind that one, through which reads fall, the nearest first.
        private: Whether the memory is the tool's own compartment of it.
        default: What the memory begins with, as the decorator says it.
        default_factory: Makes that.
        shape: The class of which the parameter gets an instance, as its annotation says; None: it gets a memory.
        is_view: Whether the parameter gets something else than what is in one namespace.
        is_memory: Whether it gets just that.
    """

    scope: str
    into: str
    terms: Terms
    name: str | None = None
    retries: int = 0
    kind: Kind = "memory"
    further: tuple[str, ...] = ()
    private: bool = False
    default: Mapping[str, Any] | None = None
    default_factory: Callable[[], Mapping[str, Any]] | None = None
    shape: Shape | None = None
    is_view: bool = field(init=False, repr=False, compare=False)
    is_memory: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_view = bool(self.further or self.private or self.shape)
        object.__setattr__(self, "is_view", is_view)
        object.__setattr__(self, "is_memory", self.kind == "memory" and not is_view)

    @property
    def scopes(self) -> tuple[str, ...]:
        """All of its scopes, the nearest first."""
        return (self.scope, *self.further)

    @property
    def is_filed_by_name(self) -> bool:
        """Whether where the memory is found depends on the tool's name."""
        return self.private or "tool" in self.scopes

    @property
    def decorator(self) -> str:
        """Name of the decorator, for errors."""
        return f"with_{self.kind}"


class Opening:
    """What a call of a tool begins with, for one caller: it is the same for each of them.

    Attributes:
        wants: What is wanted of each namespace.
        given: Each declaration, with its namespaces, the nearest first; none for a context whose session is not known.
        declared: All of them in order, where some are loaded later than the rest; else none.
    """

    __slots__ = ("declared", "given", "wants")

    def __init__(
        self,
        wants: dict[Namespace, Want],
        given: tuple[tuple[Declaration, tuple[Namespace, ...]], ...],
        declared: tuple[Namespace, ...],
    ) -> None:
        self.wants = wants
        self.given = given
        self.declared = declared


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
        self.retries = max(declaration.retries for declaration in declarations)
        if self.retries:
            # The body runs again for all of its memories, whichever decorator says so.
            declarations = tuple([replace(each, terms=replace(each.terms, reruns=True)) for each in declarations])
        self.target = fn.__func__ if isinstance(fn, (classmethod, staticmethod)) else fn
        self.code = _code_owner(self.target)
        named = self.code if isinstance(self.target, functools.partial) else self.target
        self.label = getattr(named, "__qualname__", None) or type(self.target).__name__
        _refuse_unfit(self.target, self.label)
        self.is_async = inspect.iscoroutinefunction(self.code)
        self.is_generator = inspect.isgeneratorfunction(self.code)
        self.is_async_generator = inspect.isasyncgenfunction(self.code)
        self.injected = frozenset(declaration.into for declaration in declarations)
        if self.is_generator or self.is_async_generator:
            self._refuse_reruns()
        self._parameters = _signature(self.target).parameters
        for declaration in declarations:
            self._refuse_flavour(declaration)
        self.declarations = declarations = tuple(map(self._shaped, declarations))
        indexes = [self._index(declaration) for declaration in declarations]
        order = sorted(range(len(declarations)), key=lambda i: (indexes[i] is None, indexes[i] or 0))
        #: Parameter name and position (None: only by name) of each injection, and which declaration it is, in order.
        self.places = tuple((declarations[i].into, indexes[i], i) for i in order)
        self.doc = without_parameters(getattr(self.target, "__doc__", None), self.injected)
        self._signature: inspect.Signature | None = None
        self._registered: str | None = None
        self._claimed = False
        self._impersonal: dict[str, Namespace] = {}
        #: What is noted of memories that are nobody's: for the short call path where in the store the first one stands, and
        #: what calls begin with that nobody makes.
        self.is_impersonal = declarations[0].scope in IMPERSONAL_SCOPES
        self.slots: dict[Any, Any] = {}
        #: What it wants of the namespaces of views, whoever calls.
        self._wants: dict[tuple[str, str, int, str], Want] = {}
        self.key = wiring.key(declarations[0].scope)
        #: Under which an identity keeps what its calls begin with; another one once the tool has another name.
        self._opens = object()

    def _refuse_reruns(self) -> None:
        if self.retries:
            raise DeclarationError(
                f"{self.label} is a generator function, which cannot run again once it has given something out; leave out "
                'on_conflict="retry", or collect the items in a list and return that'
            )

    def _refuse_flavour(self, declaration: Declaration) -> None:
        if declaration.kind == "memory" or (parameter := self._parameters.get(declaration.into)) is None:
            return
        wanted, other = self.flavour(declaration.kind), self.flavour(declaration.kind, other=True)
        if _asked_for(parameter, self.code) is other:
            raise DeclarationError(
                f"{self.label} is {'an async' if self._awaits else 'a sync'} function: annotate its parameter "
                f"{declaration.into!r} with {wanted.__name__}, not with {other.__name__}"
            )

    def _shaped(self, declaration: Declaration) -> Declaration:
        """The declaration of a memory with the class that the parameter's annotation asks for."""
        parameter = self._parameters.get(declaration.into)
        if declaration.kind != "memory" or parameter is None or parameter.annotation is parameter.empty or declaration.shape:
            return declaration
        from agent_gantry_state.typed import shape_of

        hint, names = self._hint(parameter)
        where = f"{self.label}: {declaration.decorator}"
        given = {"default": declaration.default, "default_factory": declaration.default_factory}
        shape = shape_of(hint, where=where, scope=declaration.scope, names=names, **given)  # type: ignore[arg-type]
        if shape is None:
            return declaration
        terms = declaration.terms
        if terms.keys is not None and (missing := set(shape.fields).difference(terms.keys)):
            raise DeclarationError(
                f"{where}: keys leaves out {min(missing)!r}, which is a field of parameter {declaration.into!r}; name all "
                "of its fields, or leave out keys"
            )
        if not shape.extra:
            unknown = f"no field of {shape.name}"
            default = default_of(where, declaration.default, declaration.default_factory, shape.fields, unknown)
            terms = replace(terms, default=default)
        return replace(declaration, shape=shape, terms=replace(terms, read_only=terms.read_only or shape.frozen))

    def _hint(self, parameter: inspect.Parameter) -> tuple[Any, Mapping[str, Any]]:
        """What a parameter's annotation means, and the local names of where it stands."""
        from agent_gantry_state.state_classes import hint_in

        source = inspect.unwrap(self.code)
        around, caller = _names_outside(source)
        hint = parameter.annotation
        # What evaluating somebody's annotation raises, stays out.
        if around:
            with contextlib.suppress(Exception):
                return hint_in(hint, around, _globals(source)), around
        hint = _hints(self.code, [parameter.name])[0].get(parameter.name, hint)
        with contextlib.suppress(Exception):
            hint = hint_in(hint, caller, _globals(source))
        return hint, {**caller, **around}

    @property
    def _awaits(self) -> bool:
        return self.is_async or self.is_async_generator

    def flavour(self, kind: Kind, other: bool = False) -> type[Any]:
        """The class of a context or session for this tool; with *other*, that for the other kind of tool."""
        for_async, for_sync = _CLASSES[kind]
        return for_async if self._awaits is not other else for_sync

    def _index(self, declaration: Declaration) -> int | None:
        into, kind = declaration.into, declaration.kind
        wanted = "dict" if kind == "memory" else self.flavour(kind).__name__
        parameter = self._parameters.get(into)
        if parameter is None:
            # Only an error needs it.
            import difflib

            shown = ", ".join(self._parameters) or "none"
            near = difflib.get_close_matches(into, self._parameters, 1)
            named = repr(near[0]) if near else "..."
            raise DeclarationError(
                f"{self.label} has no parameter {into!r} for the {kind} (its parameters: {shown}); "
                f"add one, `{into}: {wanted}`, or name the one to use, with_{kind}(into={named})"
            )
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise DeclarationError(
                f"{self.label}: parameter {into!r} is positional-only and cannot be injected; move it behind the `/`"
            )
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise DeclarationError(
                f"{self.label}: {parameter} collects arguments and cannot be injected; add a parameter `{into}: {wanted}` "
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
                f"{self.label}: stacked decorators must be of one gantry, for a tool's memories are committed together; "
                "use the same gantry in all of them"
            )
        if declaration.into in self.injected:
            raise DeclarationError(
                f"{self.label}: two decorators inject parameter {declaration.into!r}; give one of them another, "
                f"{declaration.decorator}(into=...)"
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
        """The annotations without what is injected, resolved where their names can be found."""
        signature = self.signature()
        resolved = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        resolved["return"] = signature.return_annotation
        return {
            name: resolved.get(name, hint) for name, hint in _annotations(self.code).items() if name not in self.injected
        }

    def annotate(self, format: int, /) -> dict[str, Any]:
        """The annotations in a format of `annotationlib`: what Python 3.14 has `functools.wraps` copy in their place.

        Raises:
            NotImplementedError: It is none in which they could be given.
        """
        return _formatted(self.annotations(), format)

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
            self.slots.clear()
            self._opens = object()
        if any(declaration.is_filed_by_name for declaration in self.declarations):
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

    def bind(self, shift: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that do not fit, for a call whose body does not run before it is iterated.

        Raises:
            TypeError: They do not.
        """
        self.refuse_surplus(shift, args)
        self.signature().bind(*(None,) * shift, *args, **kwargs)

    def refuse_surplus(self, shift: int, args: tuple[Any, ...]) -> None:
        """Refuse more positional arguments than the tool takes: Python would count what is injected among them.

        Raises:
            TypeError: There are more.
        """
        kinds = [parameter.kind for name, parameter in self._parameters.items() if name not in self.injected]
        if inspect.Parameter.VAR_POSITIONAL in kinds:
            return
        most = sum(kind in _POSITIONAL for kind in kinds) - shift
        if len(args) > most:
            injected = " and ".join(map(repr, sorted(self.injected)))
            rest = "is injected, so leave it out" if len(self.injected) == 1 else "are injected, so leave them out"
            raise TypeError(
                f"{self.label}() takes at most {most} positional argument{'' if most == 1 else 's'} from its caller, not "
                f"{len(args)}: {injected} {rest}"
            )

    def locate(self, scope: str, settings: Settings, identity: Identity | None) -> Namespace:
        """The namespace of a scope, for one caller.

        Raises:
            MissingIdentityError: It depends on something that is not known of the caller.
        """
        wiring = self.wiring
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
        found = None if cache is None or identity is None else identity.get(scope)
        if found is not None and scope not in IMPERSONAL_SCOPES:
            # What the chain would answer: nobody else is asked.
            namespace = Namespace(scope, found, wiring.app)
        else:
            namespace = resolve(scope, self.name, identity, wiring.app, settings.resolvers, wiring.scopes)
        if cache is not None:
            cache[key] = namespace
        return namespace

    def opening(self, settings: Settings, identity: Identity | None) -> Opening:
        """What a call begins with that *identity* makes now.

        Raises:
            MissingIdentityError: Something that a memory depends on is not known of the caller.
        """
        if settings.resolvers:
            return self._opening(settings, identity)
        known = self.slots if identity is None else identity.slots
        try:
            opening: Opening = known[self._opens]
        except KeyError:
            opening = self._opening(settings, identity)
            if len(known) >= _MOST_OPENINGS:
                # It may be the identity of the whole program, and tools may come and go.
                known.clear()
            known[self._opens] = opening
        return opening

    def unit(self, opening: Opening, settings: Settings) -> UnitOfWork:
        """The unit of work of a call that begins now.

        Raises:
            OrphanedCallError: The call in whose body this one is made has failed.
        """
        unit = UnitOfWork(opening.wants, settings.bridge, unit_around())
        unit.reruns = self.retries > 0
        unit.declared = opening.declared
        unit.sole = settings.sole
        if settings.observers is not None:
            unit.watched(settings.observers, self.name)
        return unit

    def _opening(self, settings: Settings, identity: Identity | None) -> Opening:
        wants: dict[Namespace, Want] = {}
        namespaces: list[tuple[Namespace, ...]] = []
        beside: list[tuple[Namespace, Terms]] = []
        for declaration in self.declarations:
            terms, keys = declaration.terms, None
            if declaration.is_view:
                namespaces.append(self._want_layers(declaration, settings, identity, wants))
                continue
            try:
                namespace = self.locate(declaration.scope, settings, identity)
            except MissingIdentityError:
                if declaration.kind != "context":
                    raise
                namespaces.append(())
                continue
            namespaces.append((namespace,))
            terms = self.wiring.owned(terms, namespace)
            if declaration.kind == "session":
                # Nothing is loaded before it is asked for; but who wants it to itself has to wait for it.
                beside.append((namespace, terms))
                if not terms.exclusive:
                    continue
                keys = ()
            _add(wants, namespace, Want.of(terms, identity, keys))
        for namespace, terms in beside:
            if (there := wants.get(namespace)) is not None:
                wants[namespace] = there._replace(terms=replace(there.terms.joined(terms), keys=there.terms.keys))
        # What is loaded later than the rest is committed in its place all the same.
        declared = tuple(itertools.chain(*namespaces)) if beside else ()
        return Opening(wants, tuple(zip(self.declarations, namespaces, strict=True)), declared)

    def _want_layers(
        self, declaration: Declaration, settings: Settings, identity: Identity | None, wants: dict[Namespace, Want]
    ) -> tuple[Namespace, ...]:
        """Want the namespaces of a view; they are given, the nearest first, each once."""
        wiring, terms = self.wiring, declaration.terms
        namespaces = dict.fromkeys([self.locate(scope, settings, identity) for scope in declaration.scopes])
        prefix = self._prefix(declaration)
        keys = None if terms.keys is None else tuple([prefix + key for key in terms.keys])
        owner, adopts = ("", False) if identity is None else (identity.owner, identity.adopt)
        for depth, namespace in enumerate(namespaces):
            key = (declaration.into, prefix, depth, namespace.scope)
            if (known := self._wants.get(key)) is not None:
                _add(wants, namespace, known._replace(owner=owner, adopts=adopts) if known.terms.owned else known)
                continue
            own = wiring.terms(namespace.scope)
            # What is read restarts the time of a scope that slides; what is written goes by the view's own terms.
            bare = Terms(
                terms.scope if depth == 0 else own.scope,
                slides=depth > 0 and own.slides,
                keys=keys,
                serializable=terms.serializable,
                exclusive=terms.exclusive,
                owned=own.owned or (depth == 0 and terms.owned),
                reruns=terms.reruns,
                limits=own.limits,
                bare=True,
            )
            # Which keys may be written is the view's business.
            want = Want.of(bare, identity, prefix=prefix)._replace(terms=replace(bare, keys=None))
            if len(self._wants) < _MOST_WANTS:
                self._wants[key] = want._replace(owner=None, adopts=False)
            _add(wants, namespace, want)
        return tuple(namespaces)

    def _prefix(self, declaration: Declaration) -> str:
        if not declaration.private:
            return ""
        if not self._claimed:
            self._claim()
        return prefix_of(self.name)

    def given(self, unit: UnitOfWork, opening: Opening, settings: Settings, identity: Identity | None) -> Sequence[Any]:
        """What each declaration gives the function, in a call whose unit has begun."""
        given: list[Any] = []
        for declaration, namespaces in opening.given:
            if declaration.is_memory:
                given.append(unit.held[namespaces[0]].seen())
            elif declaration.is_view:
                given.append(unit.look(namespaces, declaration.terms, self._prefix(declaration), declaration.shape))
            elif declaration.kind == "context":
                namespace = namespaces[0] if namespaces else None
                locate = functools.partial(self.locate, settings=settings, identity=identity)
                context = self.flavour("context")
                given.append(context(unit, self.name, identity, namespace, locate, self._usual_terms))
            else:
                (namespace,) = namespaces
                want = Want.of(self.wiring.owned(declaration.terms, namespace), identity, ())
                given.append(self.flavour("session")(unit, namespace, want))
        return given

    def _usual_terms(self, scope: str, namespace: Namespace) -> Terms:
        return self.wiring.owned(self.wiring.terms(scope), namespace)

    def place(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Sequence[Any], shift: int) -> tuple[Any, ...]:
        """Put what is injected where the function takes it: into *kwargs*, or among the positional arguments it returns.

        *shift* is 1 for a bound method, whose arguments begin behind `self`.
        """
        for into, index, declaration in self.places:
            if index is None or len(args) <= index - shift:
                kwargs[into] = given[declaration]
            else:
                args = (*args[: index - shift], given[declaration], *args[index - shift :])
        return args


def _add(wants: dict[Namespace, Want], namespace: Namespace, want: Want) -> None:
    there = wants.get(namespace)
    if there is None:
        wants[namespace] = want
    elif there.terms.bare is want.terms.bare:
        wants[namespace] = there.joined(want)
    else:
        wants[namespace] = want.beside(there) if there.terms.bare else there.beside(want)


def stateful_parameters(fn: Any) -> dict[str, Kind]:
    """The parameters of a function that ask for a context or a session, by annotation or, for a context, as ``ctx``.

    Those of a tool that are injected already are none of its signature any more.
    """
    target = fn.__func__ if isinstance(fn, (classmethod, staticmethod)) else fn
    if not callable(target) or isinstance(target, type):
        return {}
    found: dict[str, Kind] = {}
    try:
        parameters = _signature(target).parameters
    except (TypeError, ValueError):
        # A builtin that does not tell; it asks for nothing.
        return {}
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        asked = _asked_for(parameter, _code_owner(target))
        if asked is not None:
            found[name] = "context" if asked in _CLASSES["context"] else "session"
        elif name == "ctx" and parameter.annotation is parameter.empty:
            found[name] = "context"
    return found


def takes_memory_itself(fn: Any) -> bool:
    """Whether a function has a parameter that looks like an injected memory and is none."""
    target = fn.__func__ if isinstance(fn, (classmethod, staticmethod)) else fn
    try:
        parameter = _signature(target).parameters.get("memory")
    except (TypeError, ValueError):
        return False
    if parameter is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return False
    hint = parameter.annotation
    if isinstance(hint, str):
        return hint.partition("[")[0].rpartition(".")[2] in ("dict", "Dict", "Memory")
    return hint is parameter.empty or (typing.get_origin(hint) or hint) in (dict, Memory)


def _asked_for(parameter: inspect.Parameter, fn: Any) -> type[Any] | None:
    """The context or session class that a parameter of *fn* is annotated with, if it is one.

    An annotation that cannot be resolved, for its name is imported for type checkers only, is taken by that name.
    """
    if parameter.annotation is parameter.empty:
        return None
    hint = _hints(fn, [parameter.name])[0].get(parameter.name, parameter.annotation)
    return _stateful_class(hint)


def _stateful_class(hint: Any) -> type[Any] | None:
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next((found for arg in typing.get_args(hint) if (found := _stateful_class(arg))), None)
    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        return _named(hint)
    return hint if isinstance(hint, type) and hint in _KNOWN.values() else None


def _named(hint: str) -> type[Any] | None:
    """The class that an annotation names which cannot be resolved."""
    try:
        return _class_of(ast.parse(hint, mode="eval").body)
    except SyntaxError:
        return None


def _class_of(node: ast.expr) -> type[Any] | None:
    if isinstance(node, ast.Constant):
        return _named(node.value) if isinstance(node.value, str) else None
    if isinstance(node, ast.BinOp):
        return _class_of(node.left) or _class_of(node.right)
    if isinstance(node, ast.Subscript):
        generic = ast.unparse(node.value).rpartition(".")[2]
        args = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if generic == "Annotated":
            args = args[:1]
        elif generic not in ("Optional", "Union"):
            return None
        return next((found for arg in args if (found := _class_of(arg))), None)
    if isinstance(node, (ast.Name, ast.Attribute)):
        module, _, name = ast.unparse(node).rpartition(".")
        return _KNOWN.get(name) if module.partition(".")[0] in ("", "agent_gantry_state") else None
    return None


def _code_owner(target: Any) -> Any:
    """The function whose code runs when *target* is called."""
    while isinstance(target, functools.partial):
        target = target.func
    if not inspect.isroutine(target) and not isinstance(target, type):
        target = type(target).__call__
    return target


def _refuse_unfit(target: Any, label: str) -> None:
    if not callable(target):
        what = type(target).__name__
        if isinstance(target, str) or (isinstance(target, (tuple, list)) and all(isinstance(each, str) for each in target)):
            how = "a scope is given by name, with_memory(scope=...)"
        elif isinstance(target, property):
            how = "put property above with_memory"
        elif inspect.isawaitable(target):
            how = "decorate the function, without calling it"
        else:
            how = "put with_memory above a function, and its options by name"
        raise DeclarationError(f"only a function can be given a memory, not {what}: {how}")
    if isinstance(target, type):
        raise DeclarationError(f"only a function can be given a memory; {label} is a class, so decorate one of its methods")
    if hasattr(target, "tool_spec"):
        # Strands' tools are callable and look like their function, but a model is shown what they made of it.
        raise DeclarationError(
            f"{label} is a tool of a framework already, whose schema shows the parameter to models; put the decorator of "
            "the framework above @gantry.with_memory"
        )


if sys.version_info >= (3, 14):
    import annotationlib

    def _signature(fn: Any) -> inspect.Signature:
        return inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)

    def _annotations(fn: Any) -> dict[str, Any]:
        return annotationlib.get_annotations(fn, format=annotationlib.Format.FORWARDREF)

    def _formatted(annotations: dict[str, Any], format: int) -> dict[str, Any]:
        if format == annotationlib.Format.VALUE_WITH_FAKE_GLOBALS:
            raise NotImplementedError
        if format != annotationlib.Format.STRING:
            return annotations
        names = {name: hint.__forward_arg__ for name, hint in annotations.items() if isinstance(hint, typing.ForwardRef)}
        return {**annotationlib.annotations_to_string(annotations), **names}

else:

    def _signature(fn: Any) -> inspect.Signature:
        return inspect.signature(fn)

    def _annotations(fn: Any) -> dict[str, Any]:
        return dict(getattr(fn, "__annotations__", {}))

    def _formatted(annotations: dict[str, Any], format: int) -> dict[str, Any]:
        return annotations


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


def _names_outside(fn: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The local names around *fn*, of the functions and classes in which it is being made, and those of whoever decorates
    it: the nearest caller that is no part of this package."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(_PACKAGE):
        frame = frame.f_back
    caller = {} if frame is None else {**frame.f_locals}
    names = [name for name in getattr(fn, "__qualname__", "").split(".")[:-1] if name != "<locals>"]
    around: dict[str, Any] = {}
    # Between them may stand decorators of somebody else.
    while frame is not None and names:
        if frame.f_code.co_name == names[-1] and frame.f_globals is _globals(fn):
            names.pop()
            around = {**frame.f_locals, **around}
        frame = frame.f_back
    return around, caller


def _globals(fn: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(getattr(fn, "__func__", fn), "__globals__", {})
    return found
