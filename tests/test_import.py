"""What the import of the package brings in, for it is paid by every program that uses a tool of somebody else's."""

from __future__ import annotations

import subprocess
import sys

#: Drivers, frameworks, and what only some callers need.
NOT_NEEDED = (
    "agent_gantry", "aiomcache", "anyio", "asyncpg", "difflib", "hashlib", "importlib.metadata", "json", "numpy", "psycopg",
    "psycopg_pool", "pydantic", "pymemcache", "pytest", "redis", "sqlite3", "trio", "typing_extensions", "uvloop", "valkey",
    "wrapt",
)  # fmt: skip


def imported_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


def usual(dependencies: str) -> set[str]:
    """What this interpreter, and what the package cannot do without, import themselves."""
    return imported_by(f"import {dependencies}")


def test_import_brings_in_no_driver_and_nothing_that_only_some_callers_need():
    there = imported_by("from agent_gantry_state import Gantry; Gantry()")

    assert "agent_gantry_state" in there
    assert sorted((there - usual("cachetools, ormsgpack")).intersection(NOT_NEEDED)) == []


def test_a_sync_program_with_its_memory_in_the_process_needs_no_event_loop_library():
    there = imported_by(
        "from agent_gantry_state import Gantry\n"
        "gantry = Gantry(session='s')\n"
        "gantry.with_memory(lambda memory: memory.update(k=1))()"
    )

    needed = usual("cachetools, ormsgpack, wrapt") | {"hashlib", "typing_extensions"}
    assert sorted((there - needed).intersection(NOT_NEEDED)) == []
