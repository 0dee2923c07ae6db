"""Which memories there are: of a gantry's stores, by scope, by owner, or all of one user's."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from agent_gantry_state.admin.asking import Asks, Found, Stream, asked
from agent_gantry_state.admin.memories import loaded
from agent_gantry_state.bridge import Bridge
from agent_gantry_state.errors import CorruptEntryError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.several import Several
from agent_gantry_state.stores.protocol import List, Listed, Page

__all__ = ["Listing", "Places", "Wanted", "listed"]

#: Memories that a store is asked for at once.
_PAGE: Final = 500


class Places:
    """The stores of a gantry, each by its own bridge."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self.bridges: tuple[Bridge, ...] = bridge.bridges if isinstance(bridge, Several) else (bridge,)

    def of(self, namespace: Namespace) -> Bridge:
        """Where a namespace is."""
        return self._bridge.of(namespace) if isinstance(self._bridge, Several) else self._bridge


class Wanted(NamedTuple):
    """Which memories are asked for.

    Attributes:
        app: Only of this app; None: of any.
        scope: Only of this scope.
        owner: Only with this owner.
        user: Only of this user: what is in the scope ``user`` under that id, and whatever that user owns.
        known: Memories of that user that need not be looked for.
    """

    app: str | None
    scope: str | None = None
    owner: str | None = None
    user: str | None = None
    known: tuple[Namespace, ...] = ()


class Listing:
    """The memories of some stores, some at a time and each once.

    Args:
        places: The stores.
        wanted: Which memories.
        everywhere: Whether also those that the gantry would look for in another one of its stores.
    """

    def __init__(self, places: Places, wanted: Wanted, everywhere: bool = False) -> None:
        self._places = places
        self._wanted = wanted
        self._everywhere = everywhere
        app, scope, owner, user, known = wanted
        self._known = [each for each in known if scope in (None, each.scope)]
        self._queries: list[tuple[Bridge, List]] = []
        self._seen: set[tuple[Bridge, Namespace]] = set()
        for bridge in places.bridges:
            query = List(app, scope, owner if user is None else user, None, _PAGE, bridge.load_timeout)
            self._queries.append((bridge, query))
            if user is not None and app is None and scope in (None, "user"):
                # Of which apps it is has to be looked for.
                self._queries.append((bridge, List(None, "user", owner, None, _PAGE, bridge.load_timeout)))

    def more(self) -> Asks[list[tuple[Bridge, Listed]]]:
        """Some more of them, and where each is; none when that was all."""
        batch = []
        while self._known:
            batch += yield from self._look(self._known.pop())
        while self._queries and not batch:
            bridge, query = self._queries[0]
            page: Page = yield asked(bridge, query)
            if page.after is None:
                del self._queries[0]
            else:
                self._queries[0] = bridge, replace(query, after=page.after)
            batch = [(bridge, each) for each in page.listed if self._is_wanted(bridge, each)]
        return batch

    def _look(self, namespace: Namespace) -> Asks[list[tuple[Bridge, Listed]]]:
        batch = []
        for bridge in self._places.bridges:
            try:
                snapshot, _ = yield from loaded(bridge, namespace, ())
                there, owner = snapshot.head is not None, snapshot.owner
            except CorruptEntryError:
                there, owner = True, None
            if there and self._is_wanted(bridge, each := Listed(namespace, owner)):
                batch.append((bridge, each))
        return batch

    def _is_wanted(self, bridge: Bridge, listed: Listed) -> bool:
        namespace, user = listed.namespace, self._wanted.user
        if not self._everywhere and self._places.of(namespace) is not bridge:
            return False
        if user is None:
            return True
        own = namespace.scope == "user" and namespace.id == user
        if not (own or listed.owner == user or namespace in self._wanted.known) or (bridge, namespace) in self._seen:
            return False
        self._seen.add((bridge, namespace))
        return True


def listed(places: Places, wanted: Wanted) -> Stream[Listed]:
    """Each of the memories."""
    listing = Listing(places, wanted)
    while batch := (yield from listing.more()):
        for _, each in batch:
            yield Found(each)
