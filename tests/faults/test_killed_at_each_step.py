"""A process that is killed at any step, and a log that is cut off anywhere, leave whole commits, and all that were told."""

from __future__ import annotations

import os
import random

import pytest
from faults import killing

pytestmark = pytest.mark.once


@pytest.fixture
def chance():
    seed = random.randrange(2**32)
    print(f"seed: {seed}")
    return random.Random(seed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forked")
@pytest.mark.parametrize(("kind", "step"), [("file", 4), ("sqlite", 2999)])
def test_process_that_is_killed_at_any_step_leaves_whole_commits(tmp_path, chance, kind, step):
    assert killing.killed(kind, tmp_path, step, chance) > 20


def test_log_of_sqlite_that_is_cut_off_anywhere_holds_whole_commits(tmp_path, chance):
    counts = killing.cut_off_logs(tmp_path, 4099, chance)

    assert counts["logs cut off"] > 50
