"""A file store's directory, shared with other processes: opening it, the lock, forks.

Files are written without the lock; it is held only to see that everything is as it was found, and to rename.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
import weakref
from pathlib import Path
from typing import Final

from agent_gantry_state.errors import StateError, StoreClosedError, StoreError, StoreTimeoutError, StoreUnavailableError
from agent_gantry_state.stores.file_directory import Directory, fcntl, is_new, is_read_only, translated
from agent_gantry_state.stores.file_journal import is_pending, replay
from agent_gantry_state.stores.protocol import WouldBlock

__all__ = ["LAYOUT", "SharedDirectory"]

#: Number of the layout. A directory with a greater one is refused.
LAYOUT: Final = 1

_MARKER: Final = "agent-gantry-state"
_LOCK: Final = "lock"
_MARK = re.compile(rb"agent-gantry-state file store, layout (\d{1,9})\n\Z")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0002, 0.01


class SharedDirectory:
    """A directory with the lock on it, which is opened when it is first needed.

    Args:
        path: Where it is.
        fsync: Whether what is written is brought to the disk.

    Raises:
        StoreUnavailableError: This system cannot have one.
    """

    def __init__(self, path: Path, fsync: bool) -> None:
        if fcntl is None or not hasattr(os, "O_NOFOLLOW"):
            raise StoreUnavailableError(
                "the file store needs the file locks of a POSIX system, which this one has not: use sqlite:///path.db",
                committed=False,
            )
        self.path = path
        self.fsync = fsync
        self._directory: Directory | None = None
        self._closed = False
        self._new_locks()
        _directories.add(self)

    def _new_locks(self) -> None:
        #: The threads of this process queue here, so that only one polls the lock that is between processes.
        self._turn = threading.Lock()
        self._opening = threading.Lock()
        #: Held by whoever looks for what is expired.
        self.sweeping = threading.Lock()

    def opened(self, deadline: float | None) -> Directory:
        """The directory.

        Args:
            deadline: How long to wait, by `time.monotonic`; None not to wait at all.

        Raises:
            WouldBlock: It would have to wait and may not.
            StoreError: It cannot be used.
        """
        directory = self._directory
        if directory is not None:
            if directory.is_at(self.path):
                return directory
            self.drop(directory)
        self._refuse_closed()
        if deadline is None:
            raise WouldBlock
        if not self._opening.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise StoreTimeoutError("the file store could not be opened in time", committed=False)
        try:
            directory = self._directory
            if directory is None:
                try:
                    directory = self._open()
                    self._recover(directory, deadline)
                except StateError:
                    raise
                except OSError as error:
                    raise translated(error, False) from error
                self._directory = directory
                if self._closed:
                    self._directory = None
                    self._refuse_closed()
            return directory
        finally:
            self._opening.release()

    def drop(self, directory: Directory) -> None:
        """Open another one the next time, for this one is gone."""
        if self._directory is directory:
            self._directory = None

    def close(self) -> None:
        """Open it no more; its descriptors are closed when the last call that is at it has come to its end."""
        self._closed = True
        self._directory = None

    def start_over(self) -> None:
        """What a child does after a fork: its parent's descriptors share their lock with it."""
        directory, self._directory = self._directory, None
        self._new_locks()
        if directory is not None:
            # Closed here, for the frames of the parent's other threads hold on to it for ever.
            directory.close()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreClosedError(
                "the file store is closed: make a new gantry, or close it only when no tool is called any more",
                committed=False,
            )

    # The lock.

    def acquire(self, directory: Directory, deadline: float | None) -> None:
        """Be the only one who renames and removes; what a killed writer has begun is finished first.

        Raises:
            WouldBlock: It would have to wait and may not.
            StoreTimeoutError: Others had it all the time.
        """
        if not self._turn.acquire(False):
            if deadline is None:
                raise WouldBlock
            if not self._turn.acquire(timeout=max(deadline - time.monotonic(), 0)):
                raise _late("other calls of this program were writing to it")
        try:
            self._lock(directory, deadline)
            try:
                self._refuse_closed()
                if is_pending(directory):
                    if deadline is None:
                        raise WouldBlock  # noqa: TRY301
                    replay(directory)
            except BaseException:
                _unlock(directory)
                raise
        except BaseException:
            self._turn.release()
            raise

    def release(self, directory: Directory) -> None:
        """Let others go on."""
        _unlock(directory)
        self._turn.release()

    def _lock(self, directory: Directory, deadline: float | None) -> None:
        pause = _FIRST_PAUSE
        while True:
            if directory.lock is None:
                directory.lock = directory.open_lock(_LOCK)
            try:
                fcntl.flock(directory.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                if os.fstat(directory.lock).st_nlink:
                    return
                # Somebody removed the file, and whoever comes next would lock another one.
                lock, directory.lock = directory.lock, None
                os.close(lock)
                continue
            if deadline is None:
                raise WouldBlock
            left = deadline - time.monotonic()
            if left <= 0:
                raise _late("another process had locked it")
            time.sleep(min(pause, left))
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _recover(self, directory: Directory, deadline: float) -> None:
        """Finish and remove what killed writers left behind."""
        left = [name for name in directory.names() if is_new(name)]
        if not left and not is_pending(directory):
            return
        try:
            self.acquire(directory, deadline)
            try:
                for name in left:
                    directory.remove_left_behind(name)
            finally:
                self.release(directory)
        except OSError as error:
            # Where nobody like us can write, nobody can put anything in order, and what is there can still be read.
            if not is_read_only(error) or is_pending(directory):
                raise

    # Opening.

    def _open(self) -> Directory:
        made = False
        try:
            directory = Directory.at(self.path)
        except FileNotFoundError:
            made = self._make()
            directory = Directory.at(self.path)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            kind = "is a symbolic link" if self.path.is_symlink() else "is no directory"
            raise StoreError(
                f"the file store's directory {self.path.name!r} {kind}: give the path of a directory, or of one that is to "
                "be made"
            ) from None
        self._check(directory, made)
        if made or self.fsync:
            # Also of one that is there: who made it may have been killed before it had seen to that.
            try:
                self._sync_place()
            except OSError:
                # Who made it may have had the right to do so, and has answered for it.
                if made:
                    raise
        return directory

    def _make(self) -> bool:
        try:
            self.path.mkdir(0o700)
        except FileExistsError:
            return False
        except FileNotFoundError:
            raise StoreUnavailableError(
                f"there is no directory {self.path.parent.name!r} for the file store's own, {self.path.name!r}: make it "
                "first, or correct the URL (file:///relative/dir, from the current directory; file:////absolute/dir)",
                committed=False,
            ) from None
        return True

    def _sync_place(self) -> None:
        """Bring to the disk that there is such a directory."""
        parent = os.open(self.path.parent, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def _check(self, directory: Directory, made: bool) -> None:
        name = self.path.name
        found = os.fstat(directory.fd)
        if found.st_uid != os.geteuid():
            raise StoreError(
                f"the file store's directory {name!r} belongs to another user, who could read and change what is in it: "
                "give this program one of its own"
            )
        if made and found.st_mode & 0o777 != 0o700:
            os.fchmod(directory.fd, 0o700)
        elif found.st_mode & 0o022:
            raise StoreError(
                f"other users may write to the file store's directory {name!r}: see what they have put there, then "
                f"chmod 700 {name}"
            )
        read = directory.read(_MARKER)
        if read is None:
            if [each for each in directory.names() if each not in (_LOCK, _MARKER) and not is_new(each)]:
                raise StoreError(
                    f"there are files of another program in the directory {name!r}: nothing was changed in it; give the "
                    "file store a directory of its own"
                )
            self._mark(directory)
            read = directory.read(_MARKER)
        mark = _MARK.match(read[0]) if read is not None else None
        if mark is None:
            raise StoreError(
                f"the directory {name!r} is no file store's: its file {_MARKER!r} says something else; nothing was changed"
            )
        if int(mark[1]) > LAYOUT:
            raise StoreError(
                f"the file store's directory {name!r} was written by a newer version of agent-gantry-state (layout "
                f"{int(mark[1])}, this one knows {LAYOUT}): upgrade the package; nothing was changed in it"
            )

    def _mark(self, directory: Directory) -> None:
        """Say that a directory is ours. Two may do it at once.

        The disk is waited for in any case: without this file nothing that is in the directory can be read.
        """
        os.close(directory.open_lock(_LOCK))
        new = directory.write(b"agent-gantry-state file store, layout %d\n" % LAYOUT)
        try:
            new.sync()
            directory.rename(new.name, _MARKER)
        finally:
            directory.discard([new])
        directory.sync()


_directories: weakref.WeakSet[SharedDirectory] = weakref.WeakSet()


def _start_all_over() -> None:
    for directory in list(_directories):
        directory.start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_all_over)


def _unlock(directory: Directory) -> None:
    if directory.lock is not None:
        fcntl.flock(directory.lock, fcntl.LOCK_UN)


def _late(why: str) -> StoreTimeoutError:
    return StoreTimeoutError(
        f"the file store is busy: {why} all the time that this call may wait; nothing was written, and calling again may "
        "succeed",
        committed=False,
    )
