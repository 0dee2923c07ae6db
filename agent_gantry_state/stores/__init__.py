"""Where entries live. A store is imported when its class is first asked for, and its driver with it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_gantry_state.stores.file import FileStore
    from agent_gantry_state.stores.memcached import MemcachedStore
    from agent_gantry_state.stores.memory import MemoryStore
    from agent_gantry_state.stores.postgresql import PostgreSQLStore
    from agent_gantry_state.stores.redis import RedisStore
    from agent_gantry_state.stores.sqlite import SQLiteStore

__all__ = ["FileStore", "MemcachedStore", "MemoryStore", "PostgreSQLStore", "RedisStore", "SQLiteStore"]

_MODULES = {name: f"{__name__}.{name.removesuffix('Store').lower()}" for name in __all__}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
