"""The journal of a file store: how files get their names, all of them or none.

One file gets its name by a rename. Several are listed in a journal first: from the moment at which that stands, whoever
comes next finishes what its writer did not.
"""

from __future__ import annotations

import contextlib
import errno
import zlib
from collections.abc import Iterable, Sequence
from typing import Final

from agent_gantry_state import codec
from agent_gantry_state.errors import StateError, StoreError
from agent_gantry_state.notes import LOG, fields
from agent_gantry_state.stores.file_directory import (
    ABSENT,
    Directory,
    New,
    checksum_of,
    is_namespace,
    is_new,
    translated,
)

__all__ = ["close", "discard", "is_pending", "publish", "replay", "write_journal"]

_JOURNAL: Final = "journal"
#: The first byte of a journal; a greater one is of a newer version. In all of them the checksum of it and of the body
#: follows, so that a damaged one, which would be in everybody's way, is told from a newer one.
_LAYOUT: Final = b"\x01"


def is_pending(directory: Directory) -> bool:
    """Whether a commit of several namespaces is on its way, or was cut off."""
    return directory.has(_JOURNAL)


def publish(directory: Directory, moves: Sequence[tuple[New, str]], journal: New | None, fsync: bool) -> None:
    """Give new files their names, all of them or none. Needs the lock.

    Args:
        directory: Where.
        moves: Each with its name.
        journal: What `write_journal` wrote, where there are several. From when it has its name, they are needed.
        fsync: Whether what is renamed is brought to the disk, where there are several.

    Raises:
        StoreError: With `committed` None if that is unknown; else nothing was done.
    """
    if journal is None:
        ((new, name),) = moves
        _rename(directory, new.name, name)
        return
    new_name, journal.name = journal.name, _JOURNAL
    try:
        _rename(directory, new_name, _JOURNAL)
    except StoreError as error:
        if error.committed is False:
            journal.name = new_name
        raise
    try:
        if fsync:
            directory.sync()
        for new, name in moves:
            directory.rename(new.name, name)
        if fsync:
            directory.sync()
        directory.unlink(_JOURNAL)
    except OSError as error:
        raise translated(error, None) from error


def discard(directory: Directory, news: Sequence[New]) -> None:
    """Remove new files after what was tried with them has failed, unless there is a journal that needs them."""
    if any(new.name == _JOURNAL for new in news):
        with contextlib.suppress(OSError):
            close(news)
    else:
        directory.discard(news)


def write_journal(directory: Directory, moves: Sequence[tuple[New, str]]) -> New | None:
    """Write down what is to be renamed together; None where it is only one file."""
    if len(moves) < 2:
        return None
    body = codec.pack([[new.name, name, new.checksum] for new, name in moves])
    return directory.write(_LAYOUT + _checksum(_LAYOUT + body) + body)


def replay(directory: Directory) -> None:
    """Finish what a journal says. Needs the lock.

    One that was finished before does no harm: what it renames is not there any more, and no new name is given twice.
    """
    read = directory.read(_JOURNAL)
    if read is None:
        return
    moves = _moves(read[0])
    if moves is None:
        directory.put_aside(_JOURNAL)
        LOG.error(
            "the file store's journal cannot be read and was put aside in 'corrupt': of a commit that was cut off, not "
            "all may be there",
            extra=fields("journal_put_aside"),
        )
        return
    waiting = [(new, name) for new, name, _ in moves if directory.signature(new) != ABSENT]
    if len(waiting) < len(moves) and any(
        checksum_of((directory.read(name) or (b"",))[0]) != checksum
        for new, name, checksum in moves
        if (new, name) not in waiting
    ):
        # Either long done, or cut off by a crash of the machine so early that the disk does not have all of the files:
        # then nothing of it is, and those that are there go like others that were left behind.
        directory.unlink(_JOURNAL)
        return
    # Whatever its writer or we have been told about the disk: it may have been killed before it had seen to that, and
    # the journal must not go before the disk has what it says.
    directory.sync()
    for new, name in waiting:
        directory.rename(new, name)
    directory.sync()
    directory.unlink(_JOURNAL)


def _rename(directory: Directory, old: str, new: str) -> None:
    try:
        directory.rename(old, new)
    except OSError as error:
        # Of a disk that fails in the middle of it nobody knows.
        raise translated(error, None if error.errno == errno.EIO else False) from error


def close(news: Iterable[New]) -> None:
    """Close new files.

    Raises:
        OSError: One could not be closed: what was written may not be there.
    """
    try:
        for new in news:
            new.close()
    finally:
        # Those after one that could not be.
        for new in news:
            if new.fd >= 0:
                with contextlib.suppress(OSError):
                    new.close()


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def _moves(data: bytes) -> Sequence[tuple[str, str, bytes]] | None:
    """What a journal lists; None if it cannot be read."""
    layout, checksum, body = data[:1], data[1:5], data[5:]
    if _checksum(layout + body) != checksum:
        return None
    if layout != _LAYOUT:
        raise StoreError(
            f"the file store's journal was written by a newer version of agent-gantry-state (layout {data[0]}, this one "
            f"knows {_LAYOUT[0]}): upgrade the package; nothing was changed"
        )
    try:
        moves = [(new, name, sum_) for new, name, sum_ in codec.unpack(body)]
        # Nothing is made of what is of another type: bytes(number) are that many.
        sound = all(is_new(new) and is_namespace(name) and isinstance(sum_, bytes) for new, name, sum_ in moves)
    except (StateError, TypeError, ValueError):
        return None
    return moves if sound else None
