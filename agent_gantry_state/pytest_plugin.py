"""A pytest fixture that gives a gantry a fresh store and a clock that the test moves.

    def test_counts(memory_override):
        with memory_override(gantry, session="s1") as test:
            count()
            test.clock.advance(3600)
            assert count() == 1

Called without `with`, it holds until the test ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

__all__ = ["Clock", "memory_override"]


class Clock:
    """A clock that stands still until it is told to move.

    Args:
        now: Where it stands first, in seconds since the epoch.
    """

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time in seconds since the epoch."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on by *seconds*."""
        self.now += seconds


class TestOverride:
    """An override of one gantry that is in force until the test ends, or until its `with` block does.

    Attributes:
        clock: The clock by which its memories expire.
        store: The fresh store.
    """

    __test__ = False

    def __init__(self, override: Any, clock: Clock) -> None:
        self._override = override
        self._active = True
        self.clock = clock
        override.__enter__()
        self.store = override.store

    def undo(self) -> None:
        """Put back what there was before; a second time does nothing."""
        if self._active:
            self._active = False
            self._override.__exit__(None, None, None)

    def __enter__(self) -> TestOverride:
        return self

    def __exit__(self, *exc: object) -> None:
        self.undo()


@pytest.fixture
def memory_override() -> Iterator[Callable[..., TestOverride]]:
    """A function that swaps a gantry's store and clock: ``memory_override(gantry, session="s1")``.

    It takes the gantry, and by name what `gantry.override` takes, but *clock*. The identity holds in the context that calls
    it, the store and the clock everywhere.
    """
    active: list[TestOverride] = []

    def swap(
        gantry: Any, *, store: Any = "memory://", resolvers: Iterable[Any] | None = None, **identity: Any
    ) -> TestOverride:
        clock = Clock()
        active.append(TestOverride(gantry.override(store=store, resolvers=resolvers, clock=clock, **identity), clock))
        return active[-1]

    yield swap
    for override in reversed(active):
        override.undo()
