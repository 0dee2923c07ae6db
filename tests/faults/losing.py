"""The long form: crashes at every operation, kills at every step, and every bit of what is stored."""

from __future__ import annotations

import logging
import pathlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator

from faults import crashes, killing, stored
from soak import seeds


def crashes_and_damage(deadline: float, report: Callable[[str, int], None]) -> None:
    """Crash and damage all that can be crashed and damaged, round by round."""
    logging.getLogger("agent_gantry_state").addFilter(_expected)
    try:
        for seed in seeds(deadline):
            for each in _round(random.Random(seed)):
                with tempfile.TemporaryDirectory() as folder:
                    for what, count in each(pathlib.Path(folder)).items():
                        report(f"crashes: {what}", count)
                if time.monotonic() > deadline:
                    return
    finally:
        logging.getLogger("agent_gantry_state").removeFilter(_expected)


def _expected(record: logging.LogRecord) -> bool:
    """That something was put aside is told each time, as it should be."""
    return "put aside" not in record.getMessage()


def _round(chance: random.Random) -> Iterator[Callable[[pathlib.Path], Counter[str]]]:
    yield lambda folder: crashes.at_every_moment(folder, chance, limit=20, share=0.1)
    yield lambda folder: crashes.of_one_of_two(folder, chance, limit=10, fsync=True)
    yield lambda folder: crashes.of_one_of_two(folder, chance, limit=10, fsync=False)
    yield lambda folder: crashes.put_aside(folder, chance, limit=50)
    yield lambda folder: crashes.without_fsync(folder, chance, limit=10)
    yield lambda folder: Counter({"processes killed": killing.killed("file", folder, 1, chance)})
    yield lambda folder: Counter({"processes killed": killing.killed("sqlite", folder, 97, chance)})
    yield lambda folder: killing.cut_off_logs(folder, 101, chance)
    for make in (*stored.PLACES.values(), *stored.MORE_PLACES.values()):
        yield lambda folder, make=make: _damaged(make, folder)  # type: ignore[misc]


def _damaged(make: Callable[[pathlib.Path], stored.Stored], folder: pathlib.Path) -> Counter[str]:
    counts = stored.damage_everything(make(folder), lambda _: iter(range(8)), cuts=1000)
    return Counter({"bits flipped, records cut off": sum(counts.values()), "of which told": counts["told"]})
