"""Every exception and warning of the package, in one tree under `StateError`.

An error carries what happened as attributes and says in its message what was wrong, where, and what to do. Messages hold
key names and scopes but never an id or a value: under agent-gantry they are shown to a language model. `committed` tells
what is known of the write: False when surely nothing was written, None when that cannot be known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = [
    "AmbiguousIdentityError",
    "CallEndedError",
    "CodecError",
    "CorruptEntryError",
    "DeclarationError",
    "EvictionWarning",
    "ExclusiveTimeoutError",
    "FurtherScopeError",
    "ImportRefusedError",
    "InjectedArgumentError",
    "MemoryConflictError",
    "MemoryErasedError",
    "MemoryExistsError",
    "MemoryNotFoundError",
    "MemoryTooLargeError",
    "MemoryValidationError",
    "MissingDriverError",
    "MissingIdentityError",
    "NotAtomicError",
    "NotListableError",
    "OrphanedCallError",
    "PartialCommitError",
    "ReadOnlyMemoryError",
    "ResolverError",
    "SessionOwnerError",
    "StateError",
    "StateWarning",
    "StoreClosedError",
    "StoreError",
    "StoreTimeoutError",
    "StoreURLError",
    "StoreUnavailableError",
    "UndeclaredKeyError",
    "UnstorableValueError",
]


class StateError(Exception):
    """Base of every error that this package raises.

    Attributes:
        committed: False if surely nothing of the call was written; None if that is unknown.
        transient: True where calling again may succeed without any other change.
    """

    committed: bool | None = False
    transient: bool = False


class DeclarationError(StateError, TypeError):
    """A decorator was used in a way that cannot work; raised while the program is being set up."""


class InjectedArgumentError(StateError, TypeError):
    """A caller passed a parameter that is injected.

    Attributes:
        parameter: Name of the injected parameter.
    """

    def __init__(self, message: str, *, parameter: str) -> None:
        super().__init__(message)
        self.parameter = parameter


class MissingIdentityError(StateError):
    """A scope was asked for whose identity is not known here.

    Attributes:
        scope: The scope that was asked for.
    """

    def __init__(self, message: str, *, scope: str) -> None:
        super().__init__(message)
        self.scope = scope


class AmbiguousIdentityError(StateError):
    """A request says more than once who calls, and not the same.

    Attributes:
        source: What of the request does, for example ``header 'x-user'``.
    """

    def __init__(self, message: str, *, source: str) -> None:
        super().__init__(message)
        self.source = source


class ResolverError(StateError, TypeError):
    """A resolver failed, or answered something other than what it was asked for.

    Attributes:
        scope: The scope that it was asked for; None if it was asked who calls.
    """

    def __init__(self, message: str, *, scope: str | None) -> None:
        super().__init__(message)
        self.scope = scope


class CodecError(StateError):
    """A value could not be turned into bytes, or bytes into a value.

    Attributes:
        path: Where, for example ``memory['plan']['steps'][3]``; None if it is not known.
    """

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class UnstorableValueError(CodecError, TypeError):
    """A memory holds a value that would not come back as it went in; nothing of the call was written."""


class CorruptEntryError(CodecError):
    """A stored entry cannot be read: its bytes are damaged, or were written by a newer version of this package."""


class MemoryConflictError(StateError):
    """Keys that a call changed were changed by another call meanwhile, and nothing says how to merge them.

    Attributes:
        keys: Every top-level key in conflict, sorted.
        by_scope: The same keys for each scope.
    """

    transient = True

    def __init__(self, message: str, *, by_scope: Mapping[str, Iterable[str]]) -> None:
        super().__init__(message)
        self.by_scope = {scope: tuple(keys) for scope, keys in by_scope.items()}
        self.keys = tuple(sorted({key for keys in self.by_scope.values() for key in keys}))


class MemoryErasedError(StateError):
    """A namespace that a call had loaded was erased before the call could commit; nothing comes back from the dead.

    Attributes:
        scope: The scope of the namespace.
    """

    def __init__(self, message: str, *, scope: str) -> None:
        super().__init__(message)
        self.scope = scope


class OrphanedCallError(StateError):
    """A call came to its end after whoever made it had given up; nothing of it was written."""


class SessionOwnerError(StateError):
    """A memory that has an owner was opened by somebody else; nothing was read or written.

    Attributes:
        scope: The scope of the memory.
    """

    def __init__(self, message: str, *, scope: str) -> None:
        super().__init__(message)
        self.scope = scope


class ExclusiveTimeoutError(StateError, TimeoutError):
    """A call with ``exclusive=True`` did not get its turn in time, or could not wait for it; the tool did not run.

    Attributes:
        scope: The scope of the memory.
    """

    transient = True

    def __init__(self, message: str, *, scope: str) -> None:
        super().__init__(message)
        self.scope = scope


class UndeclaredKeyError(StateError):
    """A call wrote a key that its decorator's ``keys=`` does not name; nothing of the call was written.

    Attributes:
        key: The key.
        scope: The scope of the memory.
    """

    def __init__(self, message: str, *, key: str, scope: str) -> None:
        super().__init__(message)
        self.key = key
        self.scope = scope


class ReadOnlyMemoryError(StateError, TypeError):
    """A call wrote to a memory that its decorator says is read-only; nothing of the call was written.

    Attributes:
        key: A key that it wrote.
        scope: The scope of the memory.
    """

    def __init__(self, message: str, *, key: str, scope: str) -> None:
        super().__init__(message)
        self.key = key
        self.scope = scope


class FurtherScopeError(StateError):
    """A call deleted a key that only a further scope of its layers holds; nothing of the call was written.

    Attributes:
        key: The key.
        scope: The scope that holds it.
    """

    def __init__(self, message: str, *, key: str, scope: str) -> None:
        super().__init__(message)
        self.key = key
        self.scope = scope


class MemoryValidationError(StateError, ValueError):
    """What is in a memory does not fit the class that its parameter is annotated with; nothing of the call was written.

    Attributes:
        scope: The scope of the memory; in layers, of the one that holds the first of the fields.
        fields: The fields that do not fit; none where only the whole does not.
        problem: What is wrong with them.
    """

    def __init__(self, message: str, *, scope: str, fields: Iterable[str], problem: str) -> None:
        super().__init__(message)
        self.scope = scope
        self.fields = tuple(fields)
        self.problem = problem


class CallEndedError(StateError):
    """A context or session object was used after the call that it had been made for."""


class StoreError(StateError):
    """A store could not do what it was asked.

    Attributes:
        committed: False if surely nothing was written; None if the outcome is unknown.
    """

    def __init__(self, message: str, *, committed: bool | None = False) -> None:
        super().__init__(message)
        self.committed = committed


class StoreUnavailableError(StoreError):
    """A store could not be reached."""

    transient = True


class StoreTimeoutError(StoreError, TimeoutError):
    """A store did not answer in time."""

    transient = True


class StoreClosedError(StoreError):
    """A gantry or its store was used after it had been closed."""


class NotAtomicError(StoreError):
    """A call changed memories that its store cannot write in one step; nothing was written.

    Attributes:
        scopes: The scopes of those memories.
    """

    def __init__(self, message: str, *, scopes: Iterable[str]) -> None:
        super().__init__(message)
        self.scopes = tuple(scopes)


class NotListableError(StoreError):
    """A store was asked what is in it, and is one that cannot tell."""


class PartialCommitError(StateError):
    """A call that was committed in parts, as ``partial_commits=True`` allows, failed after some of them had been written.

    Its cause is what failed.

    Attributes:
        landed: Scopes of the memories that were written.
        missing: Scopes of those that were not, as far as is known.
        unknown: Those of them of which it is not known.
    """

    committed = None

    def __init__(self, message: str, *, landed: Iterable[str], missing: Iterable[str], unknown: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.landed = tuple(landed)
        self.missing = tuple(missing)
        self.unknown = tuple(unknown)


class MemoryTooLargeError(StateError):
    """What a call left in a memory is more than may be stored; nothing of the call was written.

    Attributes:
        key: The largest key that the call changed; of too many keys, one that is new.
        size: How many bytes, or keys, would have had to be stored.
        limit: How many may be.
        scope: The scope of the memory.
        counted: What of: "bytes" or "keys".
    """

    def __init__(self, message: str, *, key: str, size: int, limit: int, scope: str, counted: str = "bytes") -> None:
        super().__init__(message)
        self.key = key
        self.size = size
        self.limit = limit
        self.scope = scope
        self.counted = counted


class MemoryNotFoundError(StateError, LookupError):
    """`Gantry.admin` was asked about a memory, or a key of one, that is not there.

    Attributes:
        scope: The scope of the memory.
        key: The key; None if there is no such memory.
    """

    def __init__(self, message: str, *, scope: str, key: str | None = None) -> None:
        super().__init__(message)
        self.scope = scope
        self.key = key


class MemoryExistsError(StateError):
    """A memory that was to be imported or copied is there already, and is another one; it was left as it is.

    Attributes:
        scope: The scope of the memory.
        line: The line of the export, counted from 1; None for a copy.
    """

    def __init__(self, message: str, *, scope: str, line: int | None = None) -> None:
        super().__init__(message)
        self.scope = scope
        self.line = line


class ImportRefusedError(StateError, ValueError):
    """A line of an export is none that can be imported; nothing of its memory was written.

    Attributes:
        line: The line, counted from 1.
        key: The key in it; None if it is the line itself.
    """

    def __init__(self, message: str, *, line: int, key: str | None = None) -> None:
        super().__init__(message)
        self.line = line
        self.key = key


class StoreURLError(StateError, ValueError):
    """A store URL could not be understood."""


class MissingDriverError(StateError, ImportError):
    """The driver that a store needs is not installed.

    Attributes:
        extra: The extra of this package that brings it.
    """

    def __init__(self, message: str, *, extra: str) -> None:
        super().__init__(message)
        self.extra = extra


class StateWarning(UserWarning):
    """Base of this package's warnings."""


class EvictionWarning(StateWarning):
    """Live state was dropped because a bounded store was full."""
