from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def example():
    """Runs an example and gives what it printed: ``example("langgraph_agent.py")``."""

    def run(name: str, *arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "examples" / "frameworks" / name), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
