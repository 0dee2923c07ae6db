"""No call leaves anything behind, however it ends. `benchmarks/leak.py` makes the same calls a million times."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

_FILE = Path(__file__).parents[1] / "benchmarks" / "leak.py"
_spec = importlib.util.spec_from_file_location("agent_gantry_state_leak", _FILE)
assert _spec is not None
assert _spec.loader is not None
leak = importlib.util.module_from_spec(_spec)
# A class is looked up in its module when its fields are read.
sys.modules[_spec.name] = leak
_spec.loader.exec_module(leak)

#: More blocks than caches that fill come and go by, and fewer than a block for each call.
_NOISE = 400


@pytest.mark.parametrize("kind", leak.KINDS)
def test_calls_leave_nothing_behind(kind):
    call = leak.kinds()[kind]

    assert leak.left_behind(call, 1000) < _NOISE
