"""The long forms of the tests that look for faults by chance: `python -m tests.soak --minutes 10`, from the root.

Each area has a function of *deadline* and *report*, named below, which runs until *deadline* on the monotonic clock and
reports what it has counted. It takes the seeds of its rounds from `seeds`, so that one that failed can be run again by
itself.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator

#: By name, the function of an area: its module, as seen from this directory, and its name there.
SOAKS = {
    "isolation": "isolation.soaks:histories",
    "cancels": "faults.soaks:cancels",
    "faults": "faults.soaks:faults",
    "crowds": "faults.soaks:crowds",
    "kills": "faults.soaks:kills",
    "orders": "isolation.soaks:orders",
    "crashes": "faults.losing:crashes_and_damage",
    "ids": "hostile.soaks:ids",
    "values": "hostile.soaks:contents",
    "decoder": "hostile.soaks:decoder",
}

_given: int | None = None
_current: int | None = None


def seeds(deadline: float) -> Iterator[int]:
    """A seed for each round until *deadline*; or only the one that was given, once."""
    global _current
    if _given is not None:
        _current = _given
        yield _given
        return
    while time.monotonic() < deadline:
        _current = random.SystemRandom().randrange(2**32)
        yield _current


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for; the exit status."""
    global _given, _current
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all areas together (default: 10)")
    parser.add_argument("--only", choices=SOAKS, action="append", help="this area; may be given several times")
    parser.add_argument("--seed", type=int, help="one round with this seed")
    options = parser.parse_args(arguments)
    os.environ.setdefault("AGENT_GANTRY_STATE_RANGE", "versions")
    _given = options.seed
    names = options.only or list(SOAKS)
    counts: Counter[str] = Counter()
    failed = None
    for name in names:
        module, _, function = SOAKS[name].partition(":")
        soak: Callable[..., None] = getattr(importlib.import_module(module), function)
        _current = None
        print(f"{name}: {options.minutes / len(names):.3g} minutes", flush=True)
        try:
            soak(time.monotonic() + options.minutes * 60 / len(names), lambda what, n: counts.update({what: n}))
        except Exception:
            traceback.print_exc()
            failed = name
            break
    for what, count in sorted(counts.items()):
        print(f"{count:>12,}  {what}")
    if failed is not None:
        seed = "" if _current is None else f" --seed {_current}"
        print(f"FAILED in {failed}; once more: python -m tests.soak --only {failed}{seed}")
        return 1
    return 0


def _stop_servers() -> None:
    if "servers" in sys.modules:
        sys.modules["servers"].stop_all()


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    # By the name under which the areas import it, for it is they who are given the seeds.
    import soak

    try:
        sys.exit(soak.main())
    finally:
        _stop_servers()
