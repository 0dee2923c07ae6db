"""Namespaces as rows of PostgreSQL and back: what its functions give as snapshots, and changes as what they take.

All that tells people apart is bytes here, exactly as it came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from agent_gantry_state.errors import CorruptEntryError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores import postgresql_wire as wire
from agent_gantry_state.stores.kept import KEY_BYTES
from agent_gantry_state.stores.protocol import EMPTY, KEEP, Change, Put, Snapshot
from agent_gantry_state.stores.rows import corrupt, owned_by, place, sealed, to_bytes, to_owner, to_text, values_of

__all__ = [
    "NOW",
    "PLACE",
    "RECORD",
    "VERSION",
    "WHERE",
    "chosen",
    "filed",
    "made",
    "starts",
    "written",
]

#: Longer keys are filed under their hash, for what is indexed has to fit a third of a page.
_LONG: Final = 1024
#: No UTF-8 begins with it.
_HASHED: Final = b"\xff"

#: For errors.
WHERE: Final = "PostgreSQL"

# Columns of the rows that tell of namespaces. The first row of each is its own; it has the head as its version, the last
# touch as `slides`, the address as its record, and when the last key expires as `expires`.
PLACE, _KEY, VERSION, _POSITION, _EXPIRES, _SLIDES, _NAME, RECORD, _BORN, _OWNER, NOW = range(11)
# Flags of a change and of a put; see commit_1.
_WHOLE, _TOUCH, _WRITES, _QUICK = 1, 2, 4, 8
_PLAIN, _FIXED, _SLIDING, _LAST, _NEW = 1, 2, 3, 4, 8


# Reading.


def starts(result: Any, count: int) -> list[int]:
    """Of each namespace the row that is its own, and behind them the number of rows.

    Raises:
        CorruptEntryError: There is not one for each.
    """
    firsts = [row for row in range(result.ntuples) if result.get_value(row, _KEY) is None]
    places = [wire.to_int(result.get_value(row, PLACE)) for row in firsts]
    if places != list(range(1, count + 1)):
        raise _mixed_up()
    return [*firsts, result.ntuples]


def _mixed_up() -> CorruptEntryError:
    return CorruptEntryError(
        "PostgreSQL answered with the memory of another namespace: the tables were changed by hand, or replies were mixed up"
    )


def chosen(result: Any, namespaces: Sequence[Namespace], whole: Sequence[bool]) -> list[Snapshot]:
    """The namespaces with those keys that the rows tell of, by which none is left out that is not expired."""
    firsts = starts(result, len(namespaces))
    snapshots = []
    for index, namespace in enumerate(namespaces):
        start, end = firsts[index], firsts[index + 1]
        if result.get_value(start, VERSION) is None:
            snapshots.append(EMPTY)
        else:
            until = None if whole[index] else wire.to_float(result.get_value(start, _EXPIRES))
            snapshots.append(made(result, start, end, namespace, until)[0])
    return snapshots


def made(result: Any, start: int, end: int, namespace: Namespace, until: float | None = None) -> tuple[Snapshot, int]:
    """The namespace of which the rows from *start* up to *end* tell, and what it takes to keep it."""
    get = result.get_value
    if get(start, RECORD) != place(namespace)[1]:
        raise _mixed_up()
    # As bytes they sort as the numbers do, which are never negative.
    rows = sorted([(get(row, _POSITION), row) for row in range(start + 1, end)])
    versions: dict[str, bytes] = {}
    names: list[str] = []
    records: list[bytes] = []
    expires: dict[str, float] = {}
    sliding: dict[str, float] = {}
    for _, row in rows:
        stored, long = get(row, _KEY), get(row, _NAME)
        name = to_text(long or stored, WHERE)
        if (long is not None or stored[:1] == _HASHED) and filed(name)[0] != stored:
            # Who writes that key would not find it, and there would be two.
            raise corrupt(name, WHERE)
        versions[name] = get(row, VERSION)
        record = get(row, RECORD)
        if record is None:
            continue
        names.append(name)
        records.append(record)
        slides, expires_at = get(row, _SLIDES), get(row, _EXPIRES)
        if slides is not None:
            sliding[name] = wire.to_float(slides)
        elif expires_at is not None:
            expires[name] = wire.to_float(expires_at)
    values, packed = values_of(names, records, WHERE)
    touched = wire.to_float(get(start, _SLIDES))
    snapshot = Snapshot(
        values,
        packed,
        versions,
        get(start, VERSION),
        to_owner(get(start, _OWNER), WHERE),
        expires,
        sliding,
        touched,
        get(start, _BORN),
        until,
    )
    size = sum([len(name) + len(record) for name, record in zip(names, records, strict=True)]) + KEY_BYTES * len(names)
    return snapshot, size


# Writing.


def written(changes: Sequence[Change]) -> list[bytes | None]:
    """What commit_1 takes of changes, which are sorted by digest."""
    due: list[float | None] = []
    slide: list[float | None] = []
    keys: list[bytes] = []
    names: list[bytes | None] = []
    records: list[bytes] = []
    terms: list[int] = []
    ttls: list[float | None] = []
    check_keys: list[bytes] = []
    check_versions: list[bytes | None] = []
    deletes: list[bytes] = []
    for change in changes:
        least: dict[int, float] = {}
        checks = change.checks
        for key, put in change.puts.items():
            name, long = filed(key)
            term, ttl = _term(put)
            if ttl is not None:
                least[term] = min(least.get(term, ttl), ttl)
            keys.append(name)
            names.append(long)
            records.append(sealed(name if long is None else long, put.record))
            terms.append(term | (_LAST if put.last else 0) | (0 if checks.get(key) is not None else _NEW))
            ttls.append(ttl)
        due.append(least.get(_FIXED))
        slide.append(least.get(_SLIDING))
        for key, version in checks.items():
            check_keys.append(filed(key)[0])
            check_versions.append(version)
        deletes += [filed(key)[0] for key in change.deletes]
    spaces = [change.namespace for change in changes]
    made_anew: tuple[bytes | None, ...] = (None, None, None)
    if None in [change.head for change in changes]:
        made_anew = (
            wire.bytes_array([to_bytes(space.app) for space in spaces]),
            wire.bytes_array([to_bytes(space.scope) for space in spaces]),
            wire.bytes_array([place(space)[1] for space in spaces]),
        )
    return [
        wire.bytes_array([place(space)[0] for space in spaces]),
        wire.bytes_array([change.head for change in changes]),
        wire.int_array(tuple([_flags(change) for change in changes])),
        wire.bytes_array([change.born for change in changes]),
        _owners([change.loaded_owner for change in changes]),
        _owners([change.owner for change in changes]),
        *made_anew,
        _floats(due),
        _floats(slide),
        wire.int_array(tuple([len(change.checks) for change in changes])),
        wire.int_array(tuple([len(change.puts) for change in changes])),
        wire.int_array(tuple([len(change.deletes) for change in changes])),
        wire.bytes_array(check_keys),
        wire.bytes_array(check_versions),
        wire.bytes_array(keys),
        _maybe(names),
        wire.bytes_array(records),
        wire.int_array(tuple(terms)),
        _floats(ttls),
        wire.bytes_array(deletes) if deletes else _NOTHING,
    ]


_NOTHING: Final = wire.bytes_array(())


def _owners(texts: Sequence[str | None]) -> bytes:
    return _maybe([None if text is None else owned_by(text) for text in texts])


def _maybe(items: Sequence[bytes | None]) -> bytes:
    """A bytea[] of what is mostly not there."""
    return wire.bytes_array(items) if any(item is not None for item in items) else wire.no_bytes(len(items))


def _floats(items: Sequence[float | None]) -> bytes:
    return wire.float_array(items) if any(item is not None for item in items) else wire.no_floats(len(items))


def _flags(change: Change) -> int:
    flags = (_WHOLE if change.whole else 0) | (_TOUCH if change.touch else 0)
    if change.puts or change.deletes or change.owner is not None:
        flags |= _WRITES
        if change.head is not None and change.owner is None:
            flags |= _QUICK
    return flags


def _term(put: Put) -> tuple[int, float | None]:
    """What happens to the expiry of a key, and its seconds."""
    ttl = put.ttl
    if ttl is KEEP:
        return 0, None
    if ttl is None:
        return _PLAIN, None
    return (_SLIDING if put.slides else _FIXED), float(ttl)  # type: ignore[arg-type]


def filed(key: str) -> tuple[bytes, bytes | None]:
    """Under what a key is filed, and its name if that is another one."""
    name = to_bytes(key)
    return (name, None) if len(name) <= _LONG else (_HASHED + hashlib.sha256(name).digest(), name)
