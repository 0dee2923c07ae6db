"""Everything of one user erased, and the receipt of it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from agent_gantry_state.admin.asking import Asks
from agent_gantry_state.admin.listing import Listing, Places, Wanted
from agent_gantry_state.admin.memories import erased, read
from agent_gantry_state.bridge import Bridge
from agent_gantry_state.errors import CorruptEntryError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.protocol import Listed

__all__ = ["Erased", "Receipt", "erase"]

#: How often is looked again for what was made meanwhile.
_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class Erased:
    """One memory that was erased.

    Attributes:
        namespace: Its address.
        owner: Whom it belonged to.
        keys: How many keys it had; None if it was damaged.
        size: Bytes of their names and encoded values; None if it was damaged.
    """

    namespace: Namespace
    owner: str | None
    keys: int | None
    size: int | None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was erased of a user.

    Attributes:
        user: Who.
        erased: Which memories; would be, after a dry run.
        complete: Whether a last look found nothing any more. After a dry run it is False.
        dry_run: Whether nothing was erased.
        at: When it was done, in UTC.
    """

    user: str
    erased: tuple[Erased, ...]
    complete: bool
    dry_run: bool
    at: dt.datetime

    def __repr__(self) -> str:
        # An id may be a person's: it is in no log and no traceback.
        return f"<Receipt of {len(self.erased)} memories>"


def erase(places: Places, wanted: Wanted, dry_run: bool) -> Asks[Receipt]:
    """Erase what is *wanted*, all of one user's."""
    assert wanted.user is not None  # noqa: S101 - whoever asks has checked it
    done: dict[tuple[Bridge, Namespace], Erased] = {}
    complete = False
    for _ in range(1 if dry_run else _ROUNDS):
        # All are found before the first is erased: a store that cannot list is to have lost nothing.
        listing = Listing(places, wanted, everywhere=True)
        found: list[tuple[Bridge, Listed]] = []
        while batch := (yield from listing.more()):
            found += batch
        if not found:
            complete = not dry_run
            break
        for bridge, each in found:
            entry = yield from _described(bridge, each.namespace, each.owner)
            if not dry_run:
                yield from erased(bridge, (each.namespace,))
            done.setdefault((bridge, each.namespace), entry)
    now = dt.datetime.now(dt.timezone.utc)
    return Receipt(wanted.user, tuple(done.values()), complete, dry_run, now)


def _described(bridge: Bridge, namespace: Namespace, owner: str | None) -> Asks[Erased]:
    try:
        memory = yield from read(bridge, namespace)
    except CorruptEntryError:
        return Erased(namespace, owner, None, None)
    if memory is None:
        return Erased(namespace, owner, 0, 0)
    return Erased(namespace, memory.owner, len(memory.keys), memory.size)
