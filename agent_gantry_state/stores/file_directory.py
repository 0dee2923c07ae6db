"""The files of a file store's directory: written whole under a name of their own, renamed, and never changed afterwards.

A reader without a lock so sees one whole file or the other. Everything goes through one descriptor of the directory, and no
symbolic link in it is followed. What the system's errors mean to a caller is said here too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from agent_gantry_state.errors import StoreError, StoreUnavailableError

_fcntl: Any
try:
    import fcntl as _fcntl
except ImportError:  # Windows
    _fcntl = None

__all__ = [
    "ABSENT",
    "Directory",
    "Gone",
    "New",
    "Signature",
    "checksum_of",
    "fcntl",
    "is_namespace",
    "is_new",
    "is_read_only",
    "translated",
]

#: None where there is no such module.
fcntl: Any = _fcntl
#: Tells one file from another of the same name: its inode, its time of change, which holds its checksum, and its size.
#: None for one that cannot be told by that, for the disk keeps no nanoseconds.
Signature = tuple[int, ...] | None

#: The signature of a file that is not there.
ABSENT: Final = ()

_CORRUPT: Final = "corrupt"
_NEW: Final = "new-"
_NEW_NAME = re.compile(_NEW + r"[0-9a-f]{32}\Z")
_NAMESPACE_NAME = re.compile(r"[0-9a-f]{64}\Z")

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
#: O_NONBLOCK: a pipe in place of a file must not be waited for.
_READ = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_NONBLOCK", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW
_DIRECTORY = os.O_RDONLY | _NOFOLLOW | getattr(os, "O_DIRECTORY", 0)
#: macOS: what fsync says there is not enough to get something onto the disk.
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)
_BILLION: Final = 1_000_000_000


class Gone(Exception):
    """The directory was removed since it was opened."""


class New:
    """A file that was written and has no name yet by which anybody looks for it.

    It is locked as long as it is open, so that what a killed writer left behind can be told from it.
    """

    __slots__ = ("checksum", "fd", "name", "signature")

    def __init__(self, name: str, fd: int, signature: Signature = None, checksum: bytes = b"") -> None:
        self.name = name
        self.fd = fd
        self.signature = signature
        self.checksum = checksum

    def sync(self) -> None:
        """Wait until the disk has it."""
        if _FULL_SYNC is None:
            os.fsync(self.fd)
        else:
            fcntl.fcntl(self.fd, _FULL_SYNC)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Directory:
    """An open directory. Its descriptors are closed when nobody uses it any more, for their numbers are given out again."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        found = os.fstat(fd)
        self._place = found.st_dev, found.st_ino
        self.lock: int | None = None
        #: Where the search for what is expired has come to.
        self.listing: Iterator[os.DirEntry[str]] | None = None

    def close(self) -> None:
        fds, self.fd, self.lock = (self.fd, self.lock), -1, None
        self.end_listing()
        for fd in fds:
            if fd is not None and fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        self.close()

    def is_at(self, path: Path) -> bool:
        """Whether it still has that name, or nobody can say.

        Raises:
            StoreUnavailableError: It was moved, and nothing is in its place.
        """
        try:
            found = os.lstat(path)
        except FileNotFoundError as error:
            if self.is_gone():
                return False
            # Nothing is made in a place that is being changed.
            raise translated(error, False) from None
        except OSError:
            return True
        return (found.st_dev, found.st_ino) == self._place

    def is_gone(self) -> bool:
        return os.fstat(self.fd).st_nlink == 0

    @classmethod
    def at(cls, path: Path) -> Directory:
        """Open one, if the last part of its path is no symbolic link."""
        return cls(os.open(path, _DIRECTORY))

    def has(self, name: str) -> bool:
        return os.access(name, os.F_OK, dir_fd=self.fd)

    def signature(self, name: str) -> Signature:
        try:
            found = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return ABSENT
        return found.st_ino, found.st_mtime_ns, found.st_size

    def open_lock(self, name: str) -> int:
        """A descriptor of a file that is only there to be locked."""
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | _NOFOLLOW, 0o600, dir_fd=self.fd)
        except OSError as error:
            if not is_read_only(error):
                raise
            return os.open(name, os.O_RDONLY | _NOFOLLOW, dir_fd=self.fd)
        if os.fstat(fd).st_mode & 0o777 != 0o600:
            os.fchmod(fd, 0o600)
        return fd

    def read(self, name: str) -> tuple[bytes, Signature] | None:
        """A file's content and its signature; None if there is no such file.

        Raises:
            Gone: There is no such directory either.
            OSError: It cannot be read, or is no file.
        """
        try:
            fd = os.open(name, _READ, dir_fd=self.fd)
        except FileNotFoundError:
            if self.is_gone():
                raise Gone from None
            return None
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.ELOOP, "no file")
            size = found.st_size
            # One byte more, so that the end is seen.
            data = os.read(fd, size + 1)
            while len(data) < size and (more := os.read(fd, size - len(data))):
                data += more
        finally:
            os.close(fd)
        return data, _told_by(found, data)

    def write(self, data: bytes) -> New:
        """Write a new file, which is not brought to the disk yet.

        Raises:
            OSError: It cannot be written; nothing of it is left.
        """
        while True:
            name = _NEW + os.urandom(16).hex()
            fd = os.open(name, _CREATE, 0o600, dir_fd=self.fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left = memoryview(data)
                while left:
                    left = left[os.write(fd, left) :]
                # By its time alone a file could be taken for the one before it, which may have had the same inode.
                moment = int(time.time()) * _BILLION + _tag(data)
                os.utime(fd, ns=(moment, moment))
                found = os.fstat(fd)
                if found.st_mode & 0o777 != 0o600:
                    os.fchmod(fd, 0o600)
                if found.st_nlink:
                    return New(name, fd, _told_by(found, data), checksum_of(data))
            except BlockingIOError:
                # Somebody who looks for what killed writers left has come between.
                pass
            except BaseException:
                self.discard([New(name, fd)])
                raise
            self.discard([New(name, fd)])

    def discard(self, news: Iterable[New]) -> None:
        """Remove files that are not to get a name; what cannot be removed now is found later."""
        for new in news:
            with contextlib.suppress(OSError):
                self.unlink(new.name)
            with contextlib.suppress(OSError):
                new.close()

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.fd)

    def sync(self) -> None:
        os.fsync(self.fd)

    def names(self) -> list[str]:
        """What is in the directory."""
        # A descriptor of its own: two that go through one would share where they have come to.
        fd = os.open(".", _DIRECTORY, dir_fd=self.fd)
        try:
            return os.listdir(fd)  # noqa: PTH208 - pathlib takes no descriptor
        finally:
            os.close(fd)

    def some_names(self, count: int) -> list[str]:
        """The next few names; none at the end, after which it begins anew."""
        if self.listing is None:
            fd = os.open(".", _DIRECTORY, dir_fd=self.fd)
            try:
                # It goes on with a copy of the descriptor, and is read a block at a time.
                self.listing = os.scandir(fd)
            finally:
                os.close(fd)
        names = [entry.name for entry in itertools.islice(self.listing, count)]
        if not names:
            self.end_listing()
        return names

    def end_listing(self) -> None:
        listing, self.listing = self.listing, None
        if listing is not None:
            listing.close()  # type: ignore[attr-defined]

    def put_aside(self, name: str) -> None:
        """Move a file to where nobody looks for it, and keep it. Needs the lock."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(_CORRUPT, 0o700, dir_fd=self.fd)
        aside = os.open(_CORRUPT, _DIRECTORY, dir_fd=self.fd)
        try:
            os.rename(name, f"{name}-{os.urandom(8).hex()}", src_dir_fd=self.fd, dst_dir_fd=aside)
            # Before anybody is told that it is kept there.
            os.fsync(aside)
            self.sync()
        finally:
            os.close(aside)

    def remove_left_behind(self, name: str) -> None:
        """Remove a new file whose writer is dead. Needs the lock, and that there is no journal."""
        try:
            fd = os.open(name, _READ, dir_fd=self.fd)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.unlink(name)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


def is_namespace(name: str) -> bool:
    """Whether a file of this name has a namespace in it."""
    return _NAMESPACE_NAME.match(name) is not None


def is_new(name: str) -> bool:
    """Whether a file of this name has not got the name by which it is looked for."""
    return _NEW_NAME.match(name) is not None


def checksum_of(data: bytes) -> bytes:
    """The checksum of a file's content, which stands in it behind the layout's byte."""
    return data[1:5]


def _tag(data: bytes) -> int:
    """What the time of a file has in place of nanoseconds."""
    return int.from_bytes(checksum_of(data), "big") % _BILLION


def _told_by(found: os.stat_result, data: bytes) -> Signature:
    if found.st_mtime_ns % _BILLION != _tag(data):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


_FULL = (StoreUnavailableError, "could not be written to, for the disk is full")
_READ_ONLY = (StoreError, "is read-only for this program: give it the right to write to the directory and what is in it")
_GONE = (StoreUnavailableError, "is not there any more: its directory was moved or removed")
_MANY = (StoreUnavailableError, "could not be opened, for too many files are open: raise the limit (ulimit -n)")
_WORDS: dict[int, tuple[type[StoreError], str]] = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
    errno.EIO: (StoreUnavailableError, "could not be read or written: the disk reports an error"),
    errno.ENOENT: _GONE,
    errno.ESTALE: _GONE,
    errno.EMFILE: _MANY,
    errno.ENFILE: _MANY,
    errno.ELOOP: (
        StoreError,
        "has a symbolic link, or something else that is no file, in place of a file: it was not followed",
    ),
    errno.ENOLCK: (StoreError, "cannot be locked where it is: put it on a local disk"),
}


def translated(error: OSError, committed: bool | None) -> StoreError:
    """Our error for the system's."""
    code = error.errno or 0
    kind, words = _WORDS.get(code, (StoreError, f"reports: {os.strerror(code)}"))
    return kind(f"the file store {words}", committed=committed)


def is_read_only(error: OSError) -> bool:
    """Whether an error says that this program may not write."""
    return _WORDS.get(error.errno or 0) is _READ_ONLY
