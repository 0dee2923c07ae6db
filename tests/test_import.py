"""What the import of the package brings in, for it is paid by every program that uses a tool of somebody else's."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Drivers, frameworks, and what only some callers need.
NOT_NEEDED = (
    "agent_gantry", "aiomcache", "anyio", "asyncpg", "difflib", "hashlib", "json", "numpy", "psycopg", "psycopg_pool",
    "pydantic", "pymemcache", "pytest", "redis", "sqlite3", "trio", "typing_extensions", "uvloop", "valkey",
)  # fmt: skip


def imported_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.fixture(scope="module")
def usual() -> set[str]:
    """What this interpreter, and what the package cannot do without, import themselves."""
    return imported_by("import cachetools, ormsgpack, wrapt")


def test_import_brings_in_no_driver_and_nothing_that_only_some_callers_need(usual):
    there = imported_by("import agent_gantry_state")

    assert "agent_gantry_state" in there
    assert sorted((there - usual).intersection(NOT_NEEDED)) == []


def test_a_sync_program_with_its_memory_in_the_process_needs_no_event_loop_library(usual):
    there = imported_by(
        "from agent_gantry_state import Gantry\n"
        "gantry = Gantry(session='s')\n"
        "gantry.with_memory(lambda memory: memory.update(k=1))()"
    )

    assert sorted((there - usual).intersection({*NOT_NEEDED} - {"typing_extensions", "hashlib"})) == []
