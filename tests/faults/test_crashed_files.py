"""The file store on a disk that loses what it may lose: a commit is whole or not there, and there if it was acknowledged."""

from __future__ import annotations

import random

import pytest
from faults import crashes

pytestmark = pytest.mark.once


@pytest.fixture
def chance():
    seed = random.randrange(2**32)
    print(f"seed: {seed}")
    return random.Random(seed)


def test_crash_at_any_moment_also_of_who_clears_up_leaves_all_of_a_commit_or_nothing(tmp_path, chance, caplog):
    counts = crashes.at_every_moment(tmp_path, chance, limit=6, share=0.05)

    print(dict(counts))
    assert counts["operations"] > 60
    assert counts["prefixes replayed"] > 150
    assert counts["crashes after a crash"] > 10


def test_what_is_acknowledged_after_another_was_killed_survives_a_power_cut(tmp_path, chance):
    counts = crashes.of_one_of_two(tmp_path, chance, limit=4, step=3, fsync=True)

    print(dict(counts))
    assert counts["kills"] > 20


def test_what_is_acknowledged_beside_one_who_waits_for_no_disk_survives_a_power_cut(tmp_path, chance):
    counts = crashes.of_one_of_two(tmp_path, chance, limit=4, step=3, fsync=False)

    print(dict(counts))
    assert counts["kills"] > 20


def test_what_is_put_aside_survives_a_power_cut(tmp_path, chance, caplog):
    counts = crashes.put_aside(tmp_path, chance, limit=50)

    assert counts["prefixes replayed"] > 4


def test_power_cut_without_fsync_leaves_a_store_that_works_and_tells_what_is_damaged(tmp_path, chance):
    counts = crashes.without_fsync(tmp_path, chance, limit=2)

    print(dict(counts))
    assert counts["damaged without fsync, and told"] > 0
