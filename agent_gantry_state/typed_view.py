"""A view that the body sees as an instance of a class: the fields are the keys of its memory.

What the body made of the instance is written to the memory field by field, where a field's stored form is another than it
was when it was loaded; so reading writes nothing, neither defaults nor what validation made of a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

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

    __slots__ = ("_dumped", "_invalid", "_shape", "_state")

    def __init__(self, layers: Sequence[Held], terms: Terms, prefix: str, shape: Shape) -> None:
        super().__init__(layers, terms, prefix)
        self._shape = shape
        self._invalid: MemoryValidationError | None = None
        base = self.memory._base
        self._state = shape.load({key: base.value(key) for key in base.values})
        self._dumped = self._packed(shape.dump(self._state))

    @property
    def given(self) -> Any:
        return self._state

    @staticmethod
    def _packed(dumped: dict[str, Any]) -> dict[str, bytes]:
        return {key: pack_at(value, key) for key, value in dumped.items()}

    def flush(self) -> bool:
        """Bring what the body changed in the instance into the memory, and that into what is held.

        Raises:
            MemoryValidationError: What the body left in the instance does not fit its class.
        """
        dumped = self._shape.dump(self._state)
        packed, before = self._packed(dumped), self._dumped
        changed = [key for key, encoded in packed.items() if encoded != before.get(key)]
        memory = self.memory
        if changed:
            valid = self._packed(self._shape.validated(dumped))
            for key in changed:
                if key in valid:
                    memory[key] = codec.unpack(valid[key])
        for key in before:
            if key not in packed:
                memory.pop(key, None)
        self._dumped = packed
        return super().flush()

    def show(self) -> None:
        """Bring what others wrote into the instance, in place."""
        memory = self.memory
        before = self._packed(memory)
        super().show()
        after = self._packed(memory)
        moved = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if not moved and self._invalid is None:
            return
        try:
            self._shape.update(self._state, {key: codec.unpack(encoded) for key, encoded in after.items()}, moved)
        except MemoryValidationError as error:
            # That of a nested call, which has ended well; what is refused is to commit it, if it stays.
            self._invalid = error
        else:
            self._invalid = None
            self._dumped = self._packed(self._shape.dump(self._state))

    def refuse(self, stored: Iterable[str]) -> None:
        """Refuse to commit, as `View.refuse`, or if what was written beside the instance does not fit its class."""
        super().refuse(stored)
        if self._invalid is not None:
            raise self._invalid

    def unfit(self, change: Change, current: Snapshot) -> MemoryValidationError | None:
        """Why what the call wrote, merged with what others wrote, does not fit the class; None: it does."""
        values = {key: codec.unpack(encoded) for key, encoded in self._packed(self.memory).items()}
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
        below = self._below().get(key)
        if below is None:
            values.pop(key, None)
        else:
            values[key] = below.copy()
