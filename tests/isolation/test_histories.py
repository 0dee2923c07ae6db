"""What many callers at once see, in processes, threads and tasks, is what each mode promises, on every store."""

from __future__ import annotations

import pytest
from isolation.calls import Job
from isolation.checker import MODES
from isolation.soaks import PLACES, place_of, shapes_for
from isolation.workers import Workers, history

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def workers():
    made = Workers(2)
    yield made
    made.close()


@pytest.mark.parametrize("mode", [*MODES, "mixed"])
@pytest.mark.parametrize("name", PLACES)
def test_no_call_sees_what_its_mode_forbids(name, mode, workers, tmp_path):
    with place_of(name, tmp_path) as (where, app):
        job = Job(mode, 7, shapes_for(name), calls=8 if mode == "exclusive" else 20)
        txns, anomalies = history(where, app, job, None if name == "memory" else workers)

    assert anomalies == []
    # It was a history: most calls have come to a good end, and none for a reason that nobody knows.
    outcomes = [txn.outcome for txn in txns]
    assert outcomes.count("ok") > len(outcomes) / 3
    assert {txn.error for txn in txns} <= {"", "MemoryConflictError"}
