"""Whether anybody has committed to a SQLite database, told without asking SQLite.

The processes that use a database in WAL mode have the index of its log in memory that they share (the file beside it whose
name ends in -shm). It begins with two copies of a header that each commit replaces: the "WAL-Index Format" of
https://www.sqlite.org/walformat.html. SQLite itself goes by them, but asks for locks around that, since it means to read on.
To compare them takes a fiftieth of the statement that asks it, and none of its four calls of the system.

The file is never opened here: to close it again would take away every lock that this process has on it. SQLite has mapped it
already, and where that is so stands in a file of Linux's; elsewhere there is nothing to look at.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, Final

__all__ = ["Index"]

_MAPS: Final = Path("/proc/self/maps")
_COPY_BYTES: Final = 48
#: In a copy: the version of its layout, how many frames of the log are valid, and what tells one log from the next.
_fields = struct.Struct("=I12xI12x8s").unpack_from
_LAYOUT: Final = 3007000


class Index:
    """The header of a log's index, for whoever keeps a handle open that has it mapped, and lets nobody else use that.

    Args:
        header: Both copies, where SQLite has them.
    """

    __slots__ = ("_header", "_known", "_looked")

    def __init__(self, header: Any) -> None:
        self._header = header
        self._known = self._looked = b""

    @classmethod
    def of(cls, path: Path) -> Index | None:
        """The index of the log of a database to which a handle is open; None if it cannot be looked at."""
        name = b" " + os.fsencode(os.path.realpath(path)) + b"-shm"
        try:
            import ctypes

            found = [line.split() for line in _MAPS.read_bytes().splitlines() if line.endswith(name)]
        except (ImportError, OSError):
            return None
        starts = [
            int(where.split(b"-")[0], 16) for where, access, offset, *_ in found if int(offset, 16) == 0 and b"s" in access
        ]
        if len(starts) != 1:
            return None
        header = (ctypes.c_char * (2 * _COPY_BYTES)).from_address(starts[0])
        return cls(header) if _fields(header.raw)[0] == _LAYOUT else None

    def is_known(self) -> bool:
        """Whether nobody has committed since what is known."""
        return self._header.raw == self._known  # type: ignore[no-any-return]

    def look(self) -> None:
        """Look, before SQLite is asked what has changed."""
        self._looked = self._header.raw

    def know(self) -> None:
        """Know what was looked at: all up to then was told by SQLite."""
        self._known = self._looked

    def follow(self) -> None:
        """Know it with a commit that was just made by the handle, if that is all that has come since.

        It is if there is one frame more in the same log: a commit has one at least.
        """
        now, known = self._header.raw, self._known
        if known and now[:_COPY_BYTES] == now[_COPY_BYTES:]:
            _, before, log = _fields(known)
            if _fields(now) == (_LAYOUT, before + 1, log):
                self._known = now
