"""Which classes a memory's parameter may be annotated with, and what they declare.

A pydantic model, a dataclass or a TypedDict makes the memory typed; what a plain memory fits anyway (`dict`, `Mapping`,
`Memory`, `Any`) leaves it plain; anything else is refused while the program is set up. A memory may be empty, so that every
field needs a default; and what could not be stored and loaded again is refused here, before a user loses it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import typing_extensions

from agent_gantry_state.errors import DeclarationError
from agent_gantry_state.memory import Memory

__all__ = ["StateClass", "hint_in", "state_class"]

_PLAIN_NAMES = frozenset({"Memory", "dict", "Dict", "Mapping", "MutableMapping", "Any", "object"})
_WHAT_MAY_STAND = "a memory is annotated as dict or Memory, or as one pydantic model, dataclass or TypedDict"


@dataclasses.dataclass(frozen=True, slots=True)
class StateClass:
    """What an annotation declares.

    Attributes:
        cls: The class itself.
        hint: The class as it was annotated, for a `TypeAdapter`.
        kind: ``"model"``, ``"dataclass"`` or ``"dict"``.
        fields: Names of what is stored.
        required: Those that have no default of their own.
        frozen: Whether nothing in it may be assigned.
        extra: Whether it takes keys that it does not name.
    """

    cls: type[Any]
    hint: Any
    kind: typing.Literal["model", "dataclass", "dict"]
    fields: tuple[str, ...]
    required: frozenset[str]
    frozen: bool
    extra: bool

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.cls.__name__


def hint_in(annotation: Any, names: Mapping[str, Any], module: Mapping[str, Any]) -> Any:
    """What *annotation*, written by the programmer, means where it was written.

    Args:
        annotation: As it stands at the parameter; a str under ``from __future__ import annotations``.
        names: The local names there.
        module: The globals there.

    Raises:
        NameError: It names something that is in neither; other errors as evaluating it raises them.
    """
    holder = types.SimpleNamespace(__annotations__={"hint": annotation})
    hints = typing_extensions.get_type_hints(holder, dict(module), dict(names), include_extras=True)
    return hints["hint"]


def state_class(hint: Any, where: str) -> StateClass | None:
    """What the annotation of a memory's parameter asks for; None: a plain memory.

    Args:
        hint: The annotation, resolved if that was possible.
        where: Names the decorator, for errors.

    Raises:
        DeclarationError: It is neither, or declares what cannot be stored.
    """
    inner, extras = _unwrapped(hint)
    if _is_plain(inner):
        return None
    cls: Any = typing.get_origin(inner) or inner
    if isinstance(cls, (str, typing.ForwardRef)):
        text = cls if isinstance(cls, str) else cls.__forward_arg__
        raise DeclarationError(
            f"{where}: the annotation {text!r} names something that cannot be found here: define or import it above the tool"
        )
    if typing_extensions.is_typeddict(cls):
        return _of_typed_dict(cls, inner, extras, where)
    if not isinstance(cls, type):
        raise _refused(where, hint)
    if dataclasses.is_dataclass(cls):
        return _of_dataclass(cls, _annotated(inner, extras), where)
    if hasattr(cls, "__pydantic_fields__") or hasattr(cls, "model_fields"):
        return _of_model(cls, _annotated(inner, extras), where)
    raise _refused(where, hint)


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """*hint* without aliases, `Optional` and `Annotated`, and what was annotated."""
    extras: tuple[Any, ...] = ()
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint, extras = hint.__origin__, (*hint.__metadata__, *extras)
        elif len(some := [arg for arg in _union(hint) if arg is not types.NoneType]) == 1:
            hint = some[0]
        elif isinstance(hint, typing_extensions.TypeAliasType) or type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        else:
            return hint, extras


def _union(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()


def _annotated(hint: Any, extras: tuple[Any, ...]) -> Any:
    parts: Any = (hint, *extras)
    return typing.Annotated[parts] if extras else hint


def _is_plain(hint: Any) -> bool:
    if hint is inspect.Parameter.empty or hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if members := [arg for arg in _union(hint) if arg is not types.NoneType]:
        return all(_is_plain(_unwrapped(member)[0]) for member in members)
    if isinstance(hint, typing.ForwardRef):
        hint = hint.__forward_arg__
    if isinstance(hint, str):
        # What is imported under TYPE_CHECKING cannot be found, and needs not be.
        return _plain_name(hint)
    cls = typing.get_origin(hint) or hint
    if not isinstance(cls, type) or typing_extensions.is_typeddict(cls):
        return False
    return bool(getattr(cls, "_is_protocol", False)) or issubclass(Memory, cls)


def _plain_name(text: str) -> bool:
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return False
    while isinstance(node, ast.Subscript):
        node = node.value
    return isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node).rpartition(".")[2] in _PLAIN_NAMES


_OTHERS = {
    **dict.fromkeys(("Session", "SyncSession"), "a session is given by with_session"),
    **dict.fromkeys(("ExecutionContext", "SyncExecutionContext"), "a context is given by with_context"),
}


def _refused(where: str, hint: Any) -> DeclarationError:
    cls = _unwrapped(hint)[0]
    hints = {
        "_fields": "a NamedTuple cannot be changed: make it a dataclass or a pydantic model",
        "__attrs_attrs__": "a class of attrs is not known: make it a dataclass or a pydantic model",
        "__struct_fields__": "a Struct of msgspec is not known: make it a dataclass or a pydantic model",
        "__fields__": "a model of pydantic 1 is not known: make it one of pydantic 2",
    }
    why = next(
        (text for attribute, text in hints.items() if hasattr(cls, attribute)), _OTHERS.get(getattr(cls, "__name__", ""))
    )
    shown = cls.__name__ if isinstance(cls, type) else str(cls).replace("typing.", "")
    return DeclarationError(f"{where}: {_WHAT_MAY_STAND}, not as {shown}" + (f"; {why}" if why else ""))


# What each kind declares.


def _of_model(cls: Any, hint: Any, where: str) -> StateClass:
    from pydantic import RootModel

    if issubclass(cls, RootModel):
        raise DeclarationError(f"{where}: {cls.__name__} is a RootModel, but a memory has keys: use a BaseModel with fields")
    fields = cls.model_fields
    aliased = any(field.validation_alias or field.alias for field in fields.values())
    config = cls.model_config
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    if aliased and not by_name and getattr(cls, "__pydantic_custom_init__", False):
        raise DeclarationError(
            f"{where}: {cls.__name__} has aliases and an __init__ of its own, which would not take what is stored by "
            "the names of the fields: set populate_by_name=True in its model_config"
        )
    required = {name for name, field in fields.items() if field.is_required()}
    excluded = {name for name, field in fields.items() if field.exclude}
    _refuse_excluded(where, cls, required & excluded)
    return StateClass(
        cls,
        hint,
        "model",
        tuple(name for name in fields if name not in excluded),
        frozenset(required),
        bool(config.get("frozen")) or _all_frozen(fields),
        config.get("extra") == "allow",
    )


def _of_dataclass(cls: Any, hint: Any, where: str) -> StateClass:
    known: dict[str, Any] = getattr(cls, "__pydantic_fields__", {})
    names: list[str] = []
    required: set[str] = set()
    for name, field in cls.__dataclass_fields__.items():
        kind = field._field_type
        if kind is dataclasses._FIELD_INITVAR:  # type: ignore[attr-defined]
            raise DeclarationError(
                f"{where}: {name!r} of {cls.__name__} is an InitVar, which cannot be stored: make it a field"
            )
        if kind is not dataclasses._FIELD:  # type: ignore[attr-defined]
            continue
        if not field.init:
            raise DeclarationError(
                f"{where}: field {name!r} of {cls.__name__} has init=False, so that it cannot be loaded: make it a "
                "property, or take init=False away"
            )
        names.append(name)
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if known[name].is_required() if name in known else not has_default:
            required.add(name)
    excluded = {name for name, field in known.items() if field.exclude}
    _refuse_excluded(where, cls, required & excluded)
    stored = tuple(name for name in names if name not in excluded)
    frozen = cls.__dataclass_params__.frozen or _all_frozen(known)
    return StateClass(cls, hint, "dataclass", stored, frozenset(required), frozen, False)


def _of_typed_dict(cls: Any, hint: Any, extras: tuple[Any, ...], where: str) -> StateClass:
    try:
        hints = typing_extensions.get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise DeclarationError(
            f"{where}: {cls.__name__} names {error.name!r}, which cannot be found: define it in the module, above the tool"
        ) from None
    required: set[str] = set()
    constant: set[str] = set()
    for name, field in hints.items():
        qualifiers = set(_qualifiers(field))
        needed = name in cls.__required_keys__
        if typing_extensions.NotRequired in qualifiers or typing_extensions.Required in qualifiers:
            # Python itself overlooks them where annotations are strings.
            needed = typing_extensions.Required in qualifiers
        if needed:
            required.add(name)
        if typing_extensions.ReadOnly in qualifiers:
            constant.add(name)
    old = sys.version_info < (3, 12) and type(cls).__module__ == "typing"
    if hint is cls and (old or constant):
        hint = _for_pydantic(cls, hints, required)
    frozen = bool(hints) and constant == set(hints)
    return StateClass(cls, _annotated(hint, extras), "dict", tuple(hints), frozenset(required), frozen, False)


def _for_pydantic(cls: Any, hints: Mapping[str, Any], required: set[str]) -> Any:
    # pydantic takes no TypedDict of typing before Python 3.12, for what that one does not know of its keys: we do. And it
    # warns of ReadOnly, which it does not enforce: where all keys are, we do.
    keys = {name: _bare(hint) for name, hint in hints.items()}
    # Any: checkers want the keys of a TypedDict written down.
    make: Any = typing_extensions.TypedDict
    made = make(
        cls.__name__,
        {name: hint if name in required else typing_extensions.NotRequired[hint] for name, hint in keys.items()},
    )
    if hasattr(cls, "__pydantic_config__"):
        made.__pydantic_config__ = cls.__pydantic_config__
    return made


def _qualifiers(hint: Any) -> Iterator[Any]:
    while True:
        origin = typing_extensions.get_origin(hint)
        if origin is typing.Annotated:
            hint = hint.__origin__
        elif origin in (typing_extensions.Required, typing_extensions.NotRequired, typing_extensions.ReadOnly):
            yield origin
            hint = typing.get_args(hint)[0]
        else:
            return


def _bare(hint: Any) -> Any:
    """*hint* without qualifiers, and with what was annotated."""
    origin = typing_extensions.get_origin(hint)
    if origin is typing.Annotated:
        return _annotated(_bare(hint.__origin__), hint.__metadata__)
    if origin in (typing_extensions.Required, typing_extensions.NotRequired, typing_extensions.ReadOnly):
        return _bare(typing.get_args(hint)[0])
    return hint


def _refuse_excluded(where: str, cls: Any, names: set[str]) -> None:
    for name in sorted(names):
        raise DeclarationError(
            f"{where}: field {name!r} of {cls.__name__} has exclude=True, so that it is not stored: give it a default"
        )


def _all_frozen(fields: Mapping[str, Any]) -> bool:
    return bool(fields) and all(field.frozen for field in fields.values())
