"""Each byte of what is stored of a memory is damaged: what is read is the exact value, or an error of ours."""

from __future__ import annotations

import random

import pytest
from faults import stored

pytestmark = pytest.mark.once


@pytest.mark.parametrize("name", stored.PLACES)
def test_damaged_bytes_are_told_and_never_read_as_another_value(name, tmp_path):
    seed = random.randrange(2**32)
    print(f"seed: {seed}")
    chance = random.Random(seed)

    counts = stored.damage_everything(stored.PLACES[name](tmp_path), lambda _: iter([chance.randrange(8)]))

    print(counts)
    assert counts["told"] > 100
