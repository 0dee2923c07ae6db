"""A view that the body sees as an instance of a class: the fields are the keys of its memory.

What the body made of the instance is written to the memory field by field, where a field's stored form is another than it
was when it was loaded; so reading writes nothing, neither defaults nor what validation made of a value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from agent_gantry_state import codec
from agent_gantry_state.changes import pack_at
from agent_gantry_state.errors import MemoryValidationError
from agent_gantry_state.memory import Terms
from agent_gantry_state.stores.protocol import UNSHARED, Change, Snapshot
from agent_gantry_state.typed import Shape
from agent_gantry_state.views import View

if TYPE_CHECKING:
    from agent_gantry_state.holding import Held

__all__ = ["TypedView"]

_MISSING: Final = object()


class TypedView(View):
    """A view as an instance of a class.

    Args:
        layers: As for `View`.
        terms: How the memory behaves.
        prefix: As for `View`.
        shape: The class.

    Raises:
        MemoryValidationError: What is stored does not fit.
    """

    __slots__ = ("_dumped", "_failure", "_shape", "_shown", "_state")

    def __init__(self, layers: Sequence[Held], terms: Terms, prefix: str, shape: Shape) -> None:
        super().__init__(layers, terms, prefix)
        self._shape = shape
        # Why what was written beside the instance is not in it.
        self._failure: Exception | None = None
        base = self.memory._base
        self._state = shape.load({key: base.value(key) for key in base.values}, self._holder)
        self._dumped = _contents(shape.dump(self._state))
        # What of the memory is in the instance; None: all of it.
        self._shown: dict[str, Any] | None = None

    @property
    def given(self) -> Any:
        return self._state

    def flush(self) -> bool:
        """Bring what the body changed in the instance into the memory, and that into what is held.

        Raises:
            MemoryValidationError: What the body left in the instance does not fit its class.
        """
        dumped = self._shape.dump(self._state)
        contents, before = _contents(dumped), self._dumped
        changed = [key for key, content in contents.items() if _differ(content, before.get(key, _MISSING))]
        gone = [key for key in before if key not in contents]
        if changed or gone:
            self._take(dumped, changed, gone)
            self._dumped = contents
        return super().flush()

    def _take(self, dumped: dict[str, Any], changed: list[str], gone: list[str]) -> None:
        memory = self.memory
        if self._shown is None:
            self._shown = _contents(memory)
        shown = self._shown
        if self._failure is not None:
            there = _contents(memory)
            if any(_differ(there.get(key, _MISSING), shown.get(key, _MISSING)) for key in (*changed, *gone)):
                # The body has not seen what it would write over.
                raise self._failure
        valid = self._shape.validated(dumped) if changed else {}
        for key, content in _contents({key: valid[key] for key in changed if key in valid}).items():
            memory[key] = _value(content)
            shown[key] = content
        for key in gone:
            memory.pop(key, None)
            shown.pop(key, None)

    def show(self) -> None:
        """Bring what others wrote into the instance, in place."""
        shown = _contents(self.memory) if self._shown is None else self._shown
        super().show()
        there = _contents(self.memory)
        moved = [key for key in {**shown, **there} if _differ(shown.get(key, _MISSING), there.get(key, _MISSING))]
        self._shown = shown
        if moved:
            try:
                values = {key: _value(content) for key, content in there.items()}
                self._shape.update(self._state, values, moved, self._holder)
                self._dumped = _contents(self._shape.dump(self._state))
            except Exception as error:  # noqa: BLE001 - it may be a class's own
                # Whoever wrote it has ended well; what is refused is to commit it, if it stays.
                self._failure = error
                return
        self._shown = there
        self._failure = None

    def _holder(self, key: str) -> str:
        """The scope that holds a key."""
        return (self.memory.origin(key) if key in self.memory else None) or self.terms.scope

    def refuse(self, stored: Iterable[str]) -> None:
        """Refuse to commit, as `View.refuse`, or if what was written beside the instance does not fit its class."""
        super().refuse(stored)
        if self._failure is not None:
            raise self._failure

    def watched(self, written: Collection[str]) -> Iterable[str]:
        """The keys of all fields, where one of them is written and what it may be can depend on the others."""
        if not self._shape.joint or not self._sees_any(written):
            return ()
        names = {*self._shape.fields, *(self.memory if self._shape.extra else ())}
        return [self._prefix + name for name in names]

    def _sees_any(self, stored: Iterable[str]) -> bool:
        shape = self._shape
        keys = [key for each in stored if (key := self._key(each)) is not None]
        return bool(keys) if shape.extra else not set(keys).isdisjoint(shape.fields)

    def unfit(self, change: Change, current: Snapshot) -> MemoryValidationError | None:
        """Why what the call wrote, merged with what others wrote, does not fit the class; None: it does."""
        if not self._sees_any((*change.puts, *change.deletes)):
            return None
        values = {key: _value(content) for key, content in _contents(self.memory).items()}
        for stored in change.checks:
            if (key := self._key(stored)) is not None and stored not in current.values:
                self._lose(values, key)
        for stored in current.values:
            if (key := self._key(stored)) is not None:
                values[key] = current.value(stored)
        for stored in change.deletes:
            if (key := self._key(stored)) is not None:
                self._lose(values, key)
        for stored, put in change.puts.items():
            if (key := self._key(stored)) is not None:
                values[key] = codec.unpack(put.packed) if put.value is UNSHARED else put.value
        try:
            self._shape.check(values)
        except MemoryValidationError as error:
            return error
        return None

    def _lose(self, values: dict[str, Any], key: str) -> None:
        below = self._below()
        if key in below:
            values[key] = below[key].copy()
        else:
            values.pop(key, None)


#: Those that need no encoding to be compared: what is equal and of one type has the same bytes.
_COMPARABLE: Final = frozenset({str, int, bool, type(None)})


def _contents(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the values of keys are compared by: one that cannot be changed in place itself, of another its bytes."""
    return {key: value if type(value) in _COMPARABLE else pack_at(value, key) for key, value in values.items()}


def _value(content: Any) -> Any:
    """A value by its content; a private copy if it is a container."""
    return codec.unpack(content) if type(content) is bytes else content


def _differ(one: Any, other: Any) -> bool:
    return type(one) is not type(other) or one != other
