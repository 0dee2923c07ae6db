"""Typed state: a memory as an instance of a pydantic model, a dataclass or a TypedDict.

A `Shape` is made once, when a tool is decorated. It turns what is stored (one top-level key for each field, by the field's
name) into a validated instance, and an instance back into values that the codec can store. Keys that the class does not
know are never touched. No message holds a value, and no error has one of pydantic behind it, for those do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from agent_gantry_state import codec
from agent_gantry_state.codec import shortened
from agent_gantry_state.errors import (
    DeclarationError,
    MemoryValidationError,
    UndeclaredKeyError,
    UnstorableValueError,
)
from agent_gantry_state.state_classes import StateClass, state_class
from agent_gantry_state.state_values import covers, grafted, plain, set_fields

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["Shape", "shape_of"]

_Default = Callable[[], Mapping[str, Any]]
_Origin = Callable[[str], str]

#: Errors of pydantic whose message is made of what the class declares, and of nothing that was validated.
_SPEAKING = frozenset(
    {
        "bool_parsing", "bool_type", "bytes_too_long", "bytes_too_short", "bytes_type", "dataclass_type",
        "date_from_datetime_inexact", "date_future", "date_past", "date_type", "datetime_future", "datetime_past",
        "datetime_type", "decimal_max_digits", "decimal_max_places", "decimal_parsing", "decimal_type",
        "decimal_whole_digits", "dict_type", "enum", "extra_forbidden", "finite_number", "float_parsing", "float_type",
        "frozen_set_type", "greater_than", "greater_than_equal", "int_from_float", "int_parsing", "int_parsing_size",
        "int_type", "is_instance_of", "iterable_type", "less_than", "less_than_equal", "list_type", "literal_error",
        "mapping_type", "missing", "model_type", "multiple_of", "none_required", "path_type", "set_type",
        "string_pattern_mismatch", "string_too_long", "string_too_short", "string_type", "time_delta_type", "time_type",
        "timezone_aware", "timezone_naive", "too_long", "too_short", "tuple_type", "union_tag_not_found", "url_type",
        "uuid_type",
    }
)  # fmt: skip
_SHOWN_PROBLEMS = 3
_STORED = "what is stored"
#: In a schema of pydantic's: what stands for a class or its fields, and what is beside the validation.
_CLASSES = frozenset({"dataclass", "dataclass-args", "definition-ref", "model", "model-fields", "typed-dict"})
_NO_VALIDATION = frozenset({"config", "default", "metadata", "serialization"})


def shape_of(
    hint: Any,
    *,
    where: str,
    scope: str,
    default: Mapping[str, Any] | None = None,
    default_factory: _Default | None = None,
    names: Mapping[str, Any] | None = None,
) -> Shape | None:
    """What the annotation of a memory's parameter asks for; None: a plain memory.

    Args:
        hint: The annotation, resolved if that was possible.
        where: Names the decorator, for errors.
        scope: Names the memory, for errors.
        default: What the memory begins with: gives defaults to fields that have none.
        default_factory: Makes it.
        names: Local names where the class was made, for what its fields refer to.

    Raises:
        DeclarationError: No memory can be such a thing, or a field has no default.
    """
    declared = state_class(hint, where)
    if declared is None:
        return None
    for name in sorted(declared.required):
        if default_factory is None and (default is None or name not in default):
            raise _no_default(declared, name, where)
    adapter = _adapter(declared, where, names)
    make = default_factory if default is None else _copies(default, declared.required)
    shape = Shape(declared, adapter, scope, make)
    if default is not None and declared.required.issubset(default):
        try:
            shape.load(default)
        except MemoryValidationError as error:
            raise DeclarationError(f"{where}: default does not fit {declared.name}: {error.problem}") from None
    return shape


def _no_default(declared: StateClass, name: str, where: str) -> DeclarationError:
    given = f"with_memory(default={{{name!r}: ...}})"
    if declared.kind == "dict":
        what, how = f"key {name!r} of {declared.name} is required", "mark it NotRequired, or give it a default, " + given
    else:
        what, how = f"field {name!r} of {declared.name} has no default", f"give it a default, {name} = ..., or {given}"
    return DeclarationError(f"{where}: {what}, but a memory may be empty: {how}")


def _copies(default: Mapping[str, Any], names: Iterable[str]) -> _Default:
    packed = {name: codec.pack(default[name]) for name in names if name in default}
    return lambda: {name: codec.unpack(each) for name, each in packed.items()}


def _adapter(declared: StateClass, where: str, names: Mapping[str, Any] | None) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        adapter: TypeAdapter[Any] = TypeAdapter(declared.hint)
        if not adapter.pydantic_complete:
            adapter.rebuild(force=True, raise_errors=True, _types_namespace=dict(names or {}))
    except (PydanticUserError, NameError, TypeError) as error:
        told = getattr(error, "message", None) or str(error)
        raise DeclarationError(f"{where}: {declared.name} cannot be validated: {str(told).splitlines()[0]}") from error
    return adapter


def _is_joint(schema: Any) -> bool:
    """Whether a validation may look at several fields at once: one of the class, or one that is told of the others."""
    if isinstance(schema, list):
        return any(map(_is_joint, schema))
    if not isinstance(schema, dict):
        return False
    if schema.get("post_init") or schema.get("custom_init"):
        return True
    kind = schema.get("type")
    if isinstance(kind, str) and kind.startswith("function-"):
        inner = schema.get("schema")
        if schema["function"]["type"] != "no-info" or (isinstance(inner, dict) and inner.get("type") in _CLASSES):
            return True
    return any(_is_joint(part) for name, part in schema.items() if name not in _NO_VALIDATION)


class Shape:
    """How a typed memory is loaded, checked and dumped.

    Args:
        declared: What the annotation says.
        adapter: pydantic's, for it.
        scope: Names the memory, for errors.
        default: Gives the fields that have no default of their own.

    Attributes:
        name: The name of the class.
        fields: Names of what is stored.
        frozen: Whether the memory is read-only.
        extra: Whether keys that the class does not name are a part of the instance.
        joint: Whether what one field may be can depend on another.
    """

    __slots__ = ("_adapter", "_declared", "_default", "extra", "fields", "frozen", "joint", "name", "scope")

    def __init__(self, declared: StateClass, adapter: TypeAdapter[Any], scope: str, default: _Default | None = None) -> None:
        self._declared = declared
        self._adapter = adapter
        self._default = default if declared.required else None
        self.scope = scope
        self.name = declared.name
        self.fields = declared.fields
        self.frozen = declared.frozen
        self.extra = declared.extra
        self.joint = _is_joint(adapter.core_schema)

    def __repr__(self) -> str:
        return f"Shape({self.name})"

    def load(self, values: Mapping[str, Any], origin: _Origin | None = None) -> Any:
        """The instance that stored values mean. A part that is typed `Any` is the stored value itself, and no copy.

        Args:
            values: By key; what is missing gets its default, and what the class does not know is left out.
            origin: Names the scope that a key's value comes from, for errors; None: they are all of one.

        Raises:
            MemoryValidationError: They do not fit.
        """
        return self._validate(values, _STORED, origin)

    def check(self, values: Mapping[str, Any]) -> None:
        """Refuse values that would not load: what several calls wrote, merged.

        Raises:
            MemoryValidationError: They do not fit.
        """
        self._validate(values, "what this call and another one wrote, merged,")

    def validated(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What `dump` gave, as it is stored: validated, for a body can leave anything in an instance.

        Raises:
            MemoryValidationError: They do not fit.
            UnstorableValueError: What came of it has no stored form.
        """
        return self.dump(self._validate(values, "what this call left"))

    def dump(self, state: Any) -> dict[str, Any]:
        """The values of *state* by the names of its fields, made of what the codec can store; not validated.

        What the codec does not know is left in, for the codec to refuse it with its path.

        Raises:
            MemoryValidationError: A serializer failed.
            UndeclaredKeyError: A TypedDict has a key that it does not declare.
            UnstorableValueError: The class's own serializer gives no dict of its fields, or a container contains itself.
        """
        name = self.name
        if self._declared.kind == "dict":
            self._refuse_unknown(state)
        dumped, failed = self._dumped(state, None)
        if failed:
            names = [field for field in self.fields if self._dumped(state, {field})[1]]
            raise self._invalid("what this call left", [(field, f"field {field!r}: it cannot be dumped") for field in names])
        if not isinstance(dumped, dict):
            raise UnstorableValueError(
                f"{self.scope} memory: the serializer of {name} must give a dict of its fields, "
                f"not a {type(dumped).__name__}"
            )
        if not self._declared.extra:
            for key in dumped:
                if key not in self.fields:
                    raise UnstorableValueError(
                        f"{self.scope} memory: the serializer of {name} gives {_key(key)}, which is none of its fields"
                    )
        stored: dict[str, Any] = {}
        for key, value in dumped.items():
            try:
                stored[key] = plain(value)
            except RecursionError:
                path = f"memory[{key!r}]"
                raise UnstorableValueError(
                    f"{shortened(path)} holds a container that contains itself, or is nested too deeply; store it flatter",
                    path=path,
                ) from None
        return stored

    def update(
        self,
        state: Any,
        values: Mapping[str, Any],
        names: Iterable[str] | None = None,
        origin: _Origin | None = None,
    ) -> None:
        """Bring what others wrote into an instance that a body holds, in place, down to its parts.

        Args:
            state: The instance.
            values: All that is stored now, as for `load`.
            names: The keys to bring over; None: all.
            origin: As for `load`.

        Raises:
            MemoryValidationError: The values do not fit.
        """
        fresh = self._validate(values, "what was written elsewhere in this call", origin)
        seen: set[int] = set()
        chosen = None if names is None else frozenset(names)
        if self._declared.kind == "dict":
            for name in self.fields:
                if chosen is not None and name not in chosen:
                    continue
                if name in fresh:
                    state[name] = grafted(state[name], fresh[name], seen) if name in state else fresh[name]
                else:
                    state.pop(name, None)
        else:
            set_fields(state, fresh, self.fields, chosen, seen)

    def _refuse_unknown(self, state: Mapping[Any, Any]) -> None:
        for key in state:
            if type(key) is not str or key not in self.fields:
                raise UndeclaredKeyError(
                    f"{self.scope} memory: key {_key(key)} was written, but {self.name} does not declare it, "
                    "so that nothing was written; add it there, or leave it out",
                    key=shortened(key if type(key) is str else codec.shown(key)),
                    scope=self.scope,
                )

    def _dumped(self, state: Any, include: set[str] | None) -> tuple[Any, bool]:
        try:
            return self._adapter.dump_python(
                state,
                include=include,
                by_alias=False,
                round_trip=True,  # without computed fields, and such that it validates
                warnings=False,
            ), False
        except Exception:  # noqa: BLE001 - whatever somebody's serializer raises; its message may hold values
            return None, True

    def _known(self, values: Mapping[str, Any]) -> dict[str, Any]:
        names: Iterable[str] = values if self._declared.extra else self.fields
        known = {name: values[name] for name in names if name in values}
        if self._default is not None and not self._declared.required.issubset(known):
            for name, value in self._default().items():
                if name in self._declared.required:
                    known.setdefault(name, value)
        return known

    def _validate(self, values: Mapping[str, Any], what: str, origin: _Origin | None = None) -> Any:
        known = self._known(values)
        state, problems = self._tried(known, None)
        if problems is None:
            return state
        # An enum, a deque, an URL ... is stored as something simpler, which a strict class does not take. Strict means that
        # nothing is converted: and nothing was, if it is stored again as it was.
        state, others = self._tried(known, False)
        if others is None:
            dumped, failed = self._dumped(state, None)
            if not failed and covers(plain(dumped), known):
                return state
        raise self._invalid(what, problems, origin)

    def _tried(self, known: dict[str, Any], strict: bool | None) -> tuple[Any, list[tuple[str, str]] | None]:
        from pydantic import ValidationError

        try:
            return self._adapter.validate_python(known, strict=strict, by_alias=False, by_name=True), None
        except ValidationError as error:
            # Without what was validated; raised outside, so that this error, which holds it, is nowhere behind ours.
            found = error.errors(include_url=False, include_context=False, include_input=False)
            return None, [self._problem(each) for each in found]
        except RecursionError:
            return None, [("", "it is nested too deeply")]
        except Exception as error:
            problem = f"a validator of {self.name} failed with {type(error).__name__}"
            raise MemoryValidationError(
                f"{self.scope} memory: {problem}; nothing was written", scope=self.scope, fields=(), problem=problem
            ) from error

    def _problem(self, error: Mapping[str, Any]) -> tuple[str, str]:
        kind = error["type"]
        told = f"{error['msg']} ({kind})" if kind in _SPEAKING else kind
        field, *path = error["loc"] or ("",)
        if not isinstance(field, str) or field not in self.fields:
            return "", f"as a whole: {told}"
        at = "".join(shortened(f"[{step!r}]") for step in path[:6])
        return field, f"field {field!r}{' at ' if at else ''}{at}: {told}"

    def _invalid(self, what: str, problems: list[tuple[str, str]], origin: _Origin | None = None) -> MemoryValidationError:
        scope, told = self.scope, problems
        if origin is not None and (scopes := {field: origin(field) for field, _ in problems if field}):
            # The memory to be corrected is the one that holds it.
            scope = next(iter(scopes.values()))
            told = [
                (field, text if scopes.get(field, scope) == scope else f"{text}, in the {scopes[field]} memory")
                for field, text in problems
            ]
        shown = list(dict.fromkeys(text for _, text in told))
        more = len(shown) - _SHOWN_PROBLEMS
        problem = "; ".join(shown[:_SHOWN_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
        how = ""
        if what == _STORED:
            how = f". Let {self.name} take it, or correct what is stored, with gantry.memory(...)"
        return MemoryValidationError(
            f"{scope} memory: {what} does not fit {self.name}: {problem}; nothing was written{how}",
            scope=scope,
            fields=dict.fromkeys(field for field, _ in problems if field),
            problem=problem,
        )


def _key(key: Any) -> str:
    return shortened(codec.shown(key)) if type(key) in codec.IMMUTABLE else f"of type {codec.name_of(type(key))}"
