"""One store of each kind at once, for tests that ask whether they all do the same."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from isolation.soaks import place_of

from agent_gantry_state import Gantry
from agent_gantry_state.testing import Talk


class Place:
    """A store on which nothing of its app is yet.

    Attributes:
        name: Its kind.
        where: Its URL; of memory the store itself.
        app: What keeps it apart from others.
        gantry: One that stays open.
        reader: Another one, which sees of the first what the store tells it.
    """

    def __init__(self, name: str, where: Any, app: str) -> None:
        self.name = name
        self.where = where
        self.app = app
        self.gantry = self.another()
        self.reader = self.another()
        self.talk = Talk(self.gantry._wiring.settings.bridge)
        self.other_talk = Talk(self.reader._wiring.settings.bridge)
        #: memcached knows of no list.
        self.lists = name != "memcached"

    def another(self, **options: Any) -> Gantry:
        """A gantry on this store, of which the caller takes care."""
        return Gantry(self.where, app=self.app, **options)

    def close(self) -> None:
        self.gantry.close()
        self.reader.close()


@contextlib.contextmanager
def places(names: Sequence[str], folder: pathlib.Path) -> Iterator[list[Place]]:
    """The stores of those names."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in names:
            where, app = stack.enter_context(place_of(name, folder))
            made.append(Place(name, where, app))
            stack.callback(made[-1].close)
        yield made
