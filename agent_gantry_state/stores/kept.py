"""What a process has read of a store, kept to be given again while it still stands there.

Nothing is given from here that the store has not just been asked about: what is kept goes with a mark of the store's.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Final, Generic, TypeVar

__all__ = ["KEPT_BYTES", "KEY_BYTES", "Kept"]

K = TypeVar("K")
T = TypeVar("T")

#: Bytes that one store keeps, roughly. One namespace may have a quarter of them.
KEPT_BYTES: Final = 16 << 20
#: What a key of a namespace takes beside its name and its record, roughly.
KEY_BYTES: Final = 150
#: What a namespace takes beside its keys, roughly.
_OVERHEAD: Final = 1024


class Kept(Generic[K, T]):
    """A bounded dict: when it is full, what was kept first goes first. Any thread may use it.

    Args:
        max_bytes: How much it keeps.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._entries: dict[K, tuple[T, int]] = {}
        self._bytes = 0
        self.renew()
        _all.add(self)

    def renew(self) -> None:
        """In a child process: a thread that is not there any more may have held the lock."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        return key in self._entries

    @property
    def bytes(self) -> int:
        """How much is kept, roughly."""
        return self._bytes

    def get(self, key: K) -> T | None:
        """What is kept for *key*."""
        found = self._entries.get(key)
        return None if found is None else found[0]

    def keep(self, key: K, value: T, size: int) -> None:
        """Keep *value*, in place of what was kept for *key*.

        Args:
            key: Of what.
            value: What.
            size: Bytes of its records and of the names of its keys, with `KEY_BYTES` for each.
        """
        size += _OVERHEAD
        with self._lock:
            self._remove(key)
            if size > self._max_bytes // 4:
                return
            self._entries[key] = value, size
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._remove(next(iter(self._entries)))

    def drop(self, key: K) -> None:
        """Keep nothing for *key*."""
        if key in self._entries:
            with self._lock:
                self._remove(key)

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _remove(self, key: K) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self._bytes -= found[1]


_all: weakref.WeakSet[Kept[Any, Any]] = weakref.WeakSet()


def _renew_all() -> None:
    for kept in [*_all]:
        kept.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
