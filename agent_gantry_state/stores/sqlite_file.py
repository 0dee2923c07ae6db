"""The open handles of one SQLite database: how they are opened, shared between threads, kept out of a fork, and closed.

One handle writes, guarded by a lock, so that the threads of a process take turns at once instead of by SQLite's polling.
The others read when it is at work; in WAL mode they wait for nobody. No handle has a busy timeout: what finds the database
locked by another process says so, and either waits here, up to its deadline, or goes to a thread where it may wait
(`WouldBlock`).
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from agent_gantry_state.errors import StateError, StoreClosedError, StoreError, StoreTimeoutError, StoreUnavailableError
from agent_gantry_state.stores.protocol import WouldBlock

__all__ = ["APPLICATION_ID", "Execute", "SQLiteFile"]

T = TypeVar("T")
Execute = Callable[..., sqlite3.Cursor]

#: "AGST": tells our databases from those of other programs.
APPLICATION_ID: Final = 0x41475354
#: At most this many handles read at once; further readers wait for one.
MAX_READERS: Final = 8
#: Pages (of 4 KiB) that may be in the write-ahead log before they are brought home.
LOG_PAGES: Final = 640
#: The oldest SQLite that is supported.
OLDEST: Final = (3, 35, 0)
#: Seconds that a fork waits for what other threads are doing with a database.
FORK_SECONDS = 2.0
_LOOK_AGAIN: Final = 0.02
#: What a lock is acquired with by whoever does not wait for it.
_NOT_WAITING: Final = (False,)
#: What is popped from a list of handles.
_LAST: Final = (-1,)
_FROZEN: Final = "mode=ro&immutable=1"

_BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 8, 10, 11, 13, 14, 26
# Python 3.10 tells no error codes, only SQLite's fixed words.
_CODES = {
    "database is locked": _BUSY,
    "database table is locked": _LOCKED,
    "database schema is locked": _LOCKED,
    "attempt to write a readonly database": _READONLY,
    "disk I/O error": _IOERR,
    "database disk image is malformed": _CORRUPT,
    "database or disk is full": _FULL,
    "unable to open database file": _CANTOPEN,
    "file is not a database": _NOTADB,
}


class _Handle:
    """A connection and the one cursor that is used on it."""

    __slots__ = ("connection", "execute", "seen")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        #: Of the handle that writes, what tells when another one has written.
        self.seen: int | None = None
        self.execute: Execute = connection.cursor().execute

    def rollback(self) -> None:
        if self.connection.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        self.connection.close()


class _Handles:
    """Every open handle; what is left of them when the store is forgotten is closed here, without a warning."""

    def __init__(self) -> None:
        #: Held by whoever uses the writer.
        self.lock = threading.Lock()
        self.writer: _Handle | None = None
        self.readers: set[_Handle] = set()
        self.idle: list[_Handle] = []

    def close_idle(self) -> None:
        while True:
            try:
                handle = self.idle.pop()
            except IndexError:
                return
            self.readers.discard(handle)
            handle.close()

    def close_at_end(self) -> None:
        """`close` for a store that was forgotten, or at the end of the program; nobody gets at the writer afterwards."""
        if self.lock.acquire(timeout=1.0):
            self.close()
        else:
            # A daemon thread is at it, and would crash if it were closed.
            _keep_for_ever(self.writer)

    def close(self) -> None:
        self.close_idle()
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()


class SQLiteFile:
    """A database and its handles, which are opened when they are first needed.

    Args:
        path: Where it is; None for one in memory, which has one handle for everything.
        full: Whether each commit waits until the disk has it.
        layout: The number of the layout that `schema` makes; a database with a greater one is refused.
        schema: The statements that make a new database.
        helpers: The statements that make what the handle that writes has for itself, in no file.

    Raises:
        StoreUnavailableError: Python's SQLite is too old.
    """

    def __init__(
        self, path: Path | None, full: bool, layout: int, schema: tuple[str, ...], helpers: tuple[str, ...] = ()
    ) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise StoreUnavailableError(
                f"the SQLite store needs SQLite {'.'.join(map(str, OLDEST))} or newer, and the sqlite3 module of this "
                f"Python has {sqlite3.sqlite_version}: use a Python that was built with a newer one, or another store",
                committed=False,
            )
        self.path = path
        self.full = full and path is not None
        self._layout = layout
        self._schema = schema
        self._helpers = helpers
        self._handles = _Handles()
        self._idle = self._handles.idle
        self._known = False
        self._frozen = False
        self._closed = False
        self._torn = False
        #: Goes up when the database may have changed in a way that nobody was told of. Only for whoever has the lock of the
        #: handle that writes.
        self.era = 0
        #: Pages written to the log since it was last brought home, and how many there may be.
        self._logged = 0
        self._log_bound: float = LOG_PAGES if path is not None else math.inf
        self._new_locks()
        _files.add(self)
        weakref.finalize(self, _Handles.close_at_end, self._handles)

    def _new_locks(self) -> None:
        #: Held by whoever uses the handle that writes, also while another process keeps him from writing.
        self._lock = self._handles.lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._returned = threading.Condition(self._read_lock)
        #: How many readers wait for a handle, and how many open one.
        self._waiting = self._opening = 0
        self._suspended = False
        self._held: list[threading.Lock] = []

    def glance(self, work: Callable[..., T], message: Any, deadline: float | None, look: bool) -> T:
        """`read`, for what is done in a moment: with the handle that writes, if it is free.

        Every other handle has to fetch anew what that one has just written. And only this one can tell at once whether
        somebody else has written. For who wants to *look*, *work* gets the `era` as well: what was read in the same one
        still stands there.
        """
        got: list[bool] = []
        try:
            got.extend(map(self._lock.acquire, _NOT_WAITING))
            handle = self._handles.writer if got[0] else None
            if handle is not None:
                if not look:
                    return work(handle.execute, message)
                seen = handle.execute("PRAGMA data_version").fetchone()[0]
                if seen != handle.seen:
                    handle.seen = seen
                    self.era += 1
                return work(handle.execute, message, self.era)
        except sqlite3.Error as error:
            self._drop_writer()
            if not _is_busy(error):
                raise self._translated(error, False) from error
        except BaseException:
            if True in got:
                self._drop_writer()
            raise
        finally:
            if True in got:
                self._lock.release()
        return self.read(work, message, deadline)

    def read(self, work: Callable[[Execute, Any], T], message: Any, deadline: float | None) -> T:
        """Do *work*, which reads, with a handle that is at no other's disposal meanwhile.

        Args:
            work: Gets the function that executes SQL, and *message*. It may be called again.
            message: Passed on.
            deadline: How long to wait, by `time.monotonic`; None not to wait at all.

        Raises:
            WouldBlock: It would have to wait and may not.
            StoreError: The database cannot be read.
        """
        if self.path is None:
            return self._alone(work, message, deadline)
        pause, mine = 0.0005, list[_Handle]()
        while True:
            try:
                try:
                    # In one step, here and where it is given back: a signal in between must not leave it to nobody.
                    mine.extend(map(self._idle.pop, _LAST))
                except IndexError:
                    self._take(mine, deadline)
                answer = work(mine[0].execute, message)
                self._give(mine)
            except sqlite3.Error as error:
                # A handle on which anything went wrong is not used again.
                self._discard(mine)
                if not _is_busy(error):
                    raise self._translated(error, False) from error
                pause = _wait(pause, deadline, error)
            except BaseException:
                self._discard(mine)
                raise
            else:
                return answer

    def write(
        self,
        work: Callable[[Execute, Any], tuple[T, int]],
        message: Any,
        deadline: float | None,
        landed: Callable[[Any, T], bool] | None = None,
    ) -> T:
        """Do *work* in a transaction of its own, while nobody else writes.

        Args:
            work: As in `read`. Gives the answer and how many pages it wrote; if none, the transaction is taken back.
            message: As in `read`.
            deadline: As in `read`.
            landed: Gets *message* and the answer once that is committed, before anybody looks. Says whether whoever goes by
                the `era` knows all that was written; else a new one begins.

        Raises:
            WouldBlock: It would have to wait and may not.
            StoreError: The database cannot be written to. `committed` is None if the commit itself failed.
        """
        got: list[bool] = []
        try:
            self._take_lock(got, deadline)
            handle = self._handles.writer
            if handle is None:
                handle = self._open_writer(deadline)
            if deadline is None and self.full:
                raise WouldBlock
            if self._logged >= self._log_bound:
                if deadline is None:
                    raise WouldBlock
                self._bring_home(handle)
            return self._transaction(handle, work, message, deadline, landed)
        finally:
            if True in got:
                self._lock.release()

    def attempt(
        self, statement: str, parameters: Sequence[Any], pages: int, landed: Callable[[Any], bool], message: Any
    ) -> bool:
        """Execute a statement that is a transaction by itself, waiting for nobody.

        Args:
            statement: Raises an `IntegrityError` if it is not to be done.
            parameters: Its.
            pages: How many it writes, roughly.
            landed: As in `write`, with *message* alone.
            message: Passed on.

        Returns:
            Whether it landed; if not, nothing was done.

        Raises:
            StoreError: What became of it is not known.
        """
        got: list[bool] = []
        try:
            got.extend(map(self._lock.acquire, _NOT_WAITING))
            handle = self._handles.writer if got[0] else None
            if handle is None or self.full or self._logged >= self._log_bound:
                return False
            handle.execute(statement, parameters)
            self._logged += pages
            if not landed(message):
                self.era += 1
        except sqlite3.IntegrityError:
            return False
        except sqlite3.Error as error:
            if _code(error) in _NOTHING_WRITTEN:
                return False
            self._drop_writer()
            raise self._translated(error, None) from error
        except BaseException:
            if True in got:
                self._drop_writer()
            raise
        else:
            return True
        finally:
            if True in got:
                self._lock.release()

    def _transaction(
        self,
        handle: _Handle,
        work: Callable[[Execute, Any], tuple[T, int]],
        message: Any,
        deadline: float | None,
        landed: Callable[[Any, T], bool] | None,
    ) -> T:
        """Needs the lock."""
        execute = handle.execute
        committed: bool | None = False
        try:
            try:
                execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                if not _is_busy(error):
                    raise
                self._begin(execute, deadline, error)
            answer, pages = work(execute, message)
            if pages:
                committed = None
                execute("COMMIT")
                self._logged += pages
                if landed is None or not landed(message, answer):
                    self.era += 1
            else:
                execute("ROLLBACK")
        except sqlite3.Error as error:
            self._drop_writer()
            raise self._translated(error, committed) from error
        except (StateError, WouldBlock):
            self.era += 1
            handle.rollback()
            raise
        except BaseException:
            self._drop_writer()
            raise
        return answer

    def _begin(self, execute: Execute, deadline: float | None, error: sqlite3.Error) -> None:
        """Begin to write as soon as another process lets us."""
        pause = 0.0005
        while True:
            pause = _wait(pause, deadline, error)
            if self._closed:
                raise _closed()
            try:
                execute("BEGIN IMMEDIATE")
            except sqlite3.Error as again:
                if not _is_busy(again):
                    raise
            else:
                return

    def _alone(self, work: Callable[[Execute, Any], T], message: Any, deadline: float | None) -> T:
        got: list[bool] = []
        try:
            self._take_lock(got, deadline)
            handle = self._handles.writer or self._open_writer(deadline)
            try:
                return work(handle.execute, message)
            except BaseException:
                handle.rollback()
                raise
        except sqlite3.Error as error:
            raise self._translated(error, False) from error
        finally:
            if True in got:
                self._lock.release()

    def _take_lock(self, got: list[bool], deadline: float | None) -> None:
        """Acquire the lock, and note that in *got*."""
        # In one step, like everywhere here: a signal that comes between the two must not leave it to nobody.
        got.extend(map(self._lock.acquire, _NOT_WAITING))
        if got[0]:
            return
        if deadline is None:
            raise WouldBlock
        got.extend(map(self._lock.acquire, (True,), (max(deadline - time.monotonic(), 0),)))
        if not got[1]:
            raise StoreTimeoutError(
                "the SQLite database is busy: other calls of this program were writing to it all the time that this one "
                "may wait; nothing was written, and calling again may succeed",
                committed=False,
            )

    def _open_writer(self, deadline: float | None) -> _Handle:
        """Needs the lock."""
        if self._closed:
            raise _closed()
        if deadline is None and self.path is not None:
            raise WouldBlock
        self._handles.writer = handle = self._open(deadline or time.monotonic() + 1.0, self._helpers)
        return handle

    def _drop_writer(self) -> None:
        """Needs the lock. One that is closed in a transaction takes it back."""
        self.era += 1
        handle = self._handles.writer
        if handle is None:
            return
        if self.path is None:
            # It is the database.
            handle.rollback()
        else:
            self._handles.writer = None
            handle.close()

    def _take(self, mine: list[_Handle], deadline: float | None) -> None:
        """Put a handle to read with into *mine*, where none is at hand."""
        if self._closed:
            raise _closed()
        if deadline is None:
            raise WouldBlock
        with self._returned:
            while self._suspended or len(self._handles.readers) + self._opening >= MAX_READERS:
                try:
                    mine.extend(map(self._idle.pop, _LAST))
                except IndexError:
                    pass
                else:
                    return
                self._waiting += 1
                in_time = self._returned.wait(max(deadline - time.monotonic(), 0))
                self._waiting -= 1
                if self._closed:
                    raise _closed()
                if not in_time:
                    raise StoreTimeoutError(
                        "the SQLite database is busy: other calls of this program were reading from it all the time that "
                        "this one may wait; calling again may succeed",
                        committed=False,
                    )
            self._opening += 1
        try:
            mine.append(self._open(deadline))
        finally:
            with self._returned:
                self._opening -= 1
                self._handles.readers.update(mine)
                self._returned.notify()

    def _give(self, mine: list[_Handle]) -> None:
        self._idle.extend(map(mine.pop, _LAST))
        if self._closed:
            self._handles.close_idle()
        elif self._waiting:
            with self._returned:
                self._returned.notify()

    def _discard(self, mine: list[_Handle]) -> None:
        for handle in mine:
            handle.close()
        self._handles.readers.difference_update(mine)
        mine.clear()
        if self._waiting:
            with self._returned:
                self._returned.notify()

    def _bring_home(self, handle: _Handle) -> None:
        """Copy the log into the database, so that the next commit begins it anew. Needs the lock.

        What other processes still read or write keeps a log from being emptied; then the next try comes later, and at a
        log that has grown large keeps new writers out for as long as it takes.
        """
        much = self._log_bound > 4 * LOG_PAGES
        try:
            busy, logged, copied = handle.execute(
                "PRAGMA wal_checkpoint(TRUNCATE)" if much else "PRAGMA wal_checkpoint(PASSIVE)"
            ).fetchone()
        except sqlite3.Error as error:
            if not _is_busy(error):
                self._drop_writer()
                raise self._translated(error, False) from error
            busy, logged, copied = 1, self._logged, 0
        if busy or copied < logged:
            self._log_bound = self._logged + LOG_PAGES // 4
        else:
            self._logged, self._log_bound = 0, LOG_PAGES

    def close(self) -> None:
        """Close every handle; one that is in use closes when it is given back."""
        self._closed = True
        with self._returned:
            self._returned.notify_all()
        with self._lock:
            self._handles.close()

    # Opening.

    def _open(self, deadline: float, helpers: tuple[str, ...] = ()) -> _Handle:
        if self._torn:
            raise StoreError(
                "this process was forked while another thread of its parent waited for the SQLite database, and cannot use "
                "it safely: open a new gantry in the child, or fork when no tool runs"
            )
        got: list[bool] = []
        pause = 0.0005
        try:
            got.extend(map(_opening.acquire, (True,), (max(deadline - time.monotonic(), 0),)))
            if not got[0]:
                raise StoreTimeoutError("the SQLite database could not be opened in time", committed=False)
            while True:
                try:
                    return self._connect(helpers)
                except sqlite3.Error as error:
                    if not _is_busy(error):
                        raise self._translated(error, False) from error
                    pause = _wait(pause, deadline, error)
        finally:
            if True in got:
                _opening.release()

    def _connect(self, helpers: tuple[str, ...]) -> _Handle:
        if self.path is not None and not self._known:
            self._find(self.path)
        where = ":memory:" if self.path is None else self._uri(_FROZEN if self._frozen else "mode=rw")
        handle = _Handle(_connection(where))
        try:
            if self.path is None:
                self._make(handle)
            else:
                self._set_up(handle)
            for statement in helpers:
                handle.execute(statement)
        except BaseException:
            handle.close()
            raise
        self._known = True
        return handle

    def _uri(self, query: str) -> str:
        assert self.path is not None  # noqa: S101 - a database in memory has no URI
        return f"{self.path.as_uri()}?{query}"

    def _find(self, path: Path) -> None:
        """See to it that there is a file which may be opened, without writing to one that is not ours."""
        try:
            # Made here, for SQLite would let the umask decide who may read it. Its log gets the mode of the file.
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileExistsError:
            if path.is_dir():
                raise StoreError(
                    f"there is a directory {path.name!r} where the SQLite database should be: give the path of a file, or "
                    "of one that is to be made"
                ) from None
        except FileNotFoundError as error:
            raise StoreUnavailableError(
                f"there is no directory {path.parent.name!r} for the SQLite database {path.name!r}: make it first, or "
                "correct the URL (sqlite:///relative/path, from the current directory; sqlite:////absolute/path)"
            ) from error
        except OSError as error:
            raise StoreUnavailableError(
                f"the SQLite database {path.name!r} could not be made: {os.strerror(error.errno or 0)}"
            ) from error
        else:
            if hasattr(os, "fchmod"):
                os.fchmod(file, 0o600)
            os.close(file)
        for last in (False, False, True):
            try:
                # Where there is no log, looking must not make one beside a file that may be another program's.
                self._examine("mode=ro" if _log_of(path).exists() else _FROZEN)
                break
            except (StoreError, sqlite3.Error):
                # A look without a lock may have met a process that was writing: what is seen again is true.
                if last:
                    raise
                time.sleep(_LOOK_AGAIN)
        # Where there can be none, nobody else can be writing.
        self._frozen = _is_frozen(path)

    def _examine(self, query: str) -> None:
        handle = _Handle(_connection(self._uri(query)))
        try:
            handle.execute("BEGIN")
            application, layout, tables = _marks(handle)
        finally:
            handle.close()
        name = self.path.name if self.path else ""
        if application != APPLICATION_ID and (application or layout or tables):
            raise StoreError(
                f"the SQLite database {name!r} belongs to another program: nothing was changed in it; give this one a file "
                "of its own"
            )
        if layout > self._layout:
            raise StoreError(
                f"the SQLite database {name!r} was written by a newer version of agent-gantry-state (layout {layout}, this "
                f"one knows {self._layout}): upgrade the package; nothing was changed in it"
            )

    def _set_up(self, handle: _Handle) -> None:
        execute = handle.execute
        execute("PRAGMA synchronous=FULL" if self.full else "PRAGMA synchronous=NORMAL")
        if self.full:
            # macOS: what FULL says there is not enough to get it onto the disk.
            execute("PRAGMA fullfsync=ON")
        execute("PRAGMA wal_autocheckpoint=0")
        if self._known or self._frozen:
            return
        if execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            # In a transaction of SQLite's own; on a disk that cannot have it, the mode stays.
            mode = execute("PRAGMA journal_mode=WAL").fetchone()[0]
            if mode != "wal":
                raise StoreError(
                    f"the SQLite database cannot have a write-ahead log here (journal mode {mode}): put it on a local disk"
                )
        if _marks(handle)[1] != self._layout:
            self._make(handle)

    def _make(self, handle: _Handle) -> None:
        """Make the tables, unless another process just did."""
        execute = handle.execute
        execute("BEGIN IMMEDIATE")
        if _marks(handle) == (0, 0, 0):
            for statement in self._schema:
                execute(statement)
            # Pragmas take no parameters.
            execute("PRAGMA application_id=" + str(APPLICATION_ID))
            execute("PRAGMA user_version=" + str(self._layout))
        execute("COMMIT")

    # Forks. SQLite notes in a process's memory which locks that process holds on which file, and a child would take its
    # parent's notes for its own: its handles would lock nothing, and the parent would delete the log that the child writes
    # to. So no handle may be open at a fork; each side opens new ones when it needs them.

    def suspend(self) -> None:
        """Close what is open, and let nobody open anything until `resume`."""
        end = time.monotonic() + FORK_SECONDS
        locks = (self._lock, self._read_lock)
        self._held = [lock for lock in locks if lock.acquire(timeout=max(end - time.monotonic(), 0))]
        if self.path is None:
            # One in memory has no locks and no log; a child goes on with a copy.
            return
        if self._lock in self._held and self._handles.writer is not None:
            self._handles.writer.close()
            self._handles.writer = None
        if self._read_lock in self._held:
            self._suspended = True
            while True:
                self._handles.close_idle()
                if not (self._handles.readers or self._opening) or time.monotonic() > end:
                    break
                # Lets in whoever comes back with a handle.
                self._returned.wait(0.0005)

    def resume(self) -> None:
        self._suspended = False
        if self._read_lock in self._held:
            self._returned.notify_all()
        for lock in self._held:
            lock.release()

    def start_over(self) -> None:
        """What a child does after a fork."""
        handles = self._handles
        self._torn = len(self._held) < 2 or bool(handles.readers or self._opening)
        if self._torn:
            # Some are in use. They are never used here and never closed, so that the parent is left in peace.
            _keep_for_ever([handles.writer, *handles.readers])
            handles.writer = None
            handles.readers.clear()
            handles.idle.clear()
        self._new_locks()

    def _translated(self, error: sqlite3.Error, committed: bool | None) -> StoreError:
        return _closed(committed) if self._closed else _translated(error, committed)


_files: weakref.WeakSet[SQLiteFile] = weakref.WeakSet()
#: One file at a time is opened: closing a file that a thread has just made takes away the locks that SQLite has on it.
_opening = threading.Lock()


def _suspend_all() -> None:
    for file in list(_files):
        file.suspend()


def _resume_all() -> None:
    for file in list(_files):
        file.resume()


def _start_all_over() -> None:
    global _opening
    _opening = threading.Lock()
    for file in list(_files):
        file.start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_suspend_all, after_in_parent=_resume_all, after_in_child=_start_all_over)


def _keep_for_ever(something: Any) -> None:
    import ctypes

    # Nothing else outlives the interpreter, which closes connections on its way out.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(something))


def _connection(target: str) -> sqlite3.Connection:
    return sqlite3.connect(
        target,
        timeout=0,
        # We begin and commit; the module's own ways differ between versions of Python.
        isolation_level=None,
        # A handle is one thread's at a time.
        check_same_thread=False,
        uri=target.startswith("file:"),
    )


def _marks(handle: _Handle) -> tuple[int, int, int]:
    """A database's application, its layout, and whether there is anything in it."""
    application = handle.execute("PRAGMA application_id").fetchone()[0]
    layout = handle.execute("PRAGMA user_version").fetchone()[0]
    return application, layout, handle.execute("SELECT EXISTS (SELECT 1 FROM sqlite_master)").fetchone()[0]


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _is_frozen(path: Path) -> bool:
    """Whether nobody like us can write to a file, and nobody is writing to it."""
    return not os.access(path, os.W_OK) and not os.access(path.parent, os.W_OK) and not _log_of(path).exists()


def _wait(pause: float, deadline: float | None, error: sqlite3.Error) -> float:
    """Wait a little for another process; gives how long to wait the next time."""
    if deadline is None:
        raise WouldBlock from None
    left = deadline - time.monotonic()
    if left <= 0:
        raise StoreTimeoutError(
            "the SQLite database is locked by another process, and was all the time that this call may wait; nothing was "
            "written, and calling again may succeed",
            committed=False,
        ) from error
    time.sleep(min(pause, left))
    return min(pause * 2, 0.01)


def _code(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return _CODES.get(str(error), 0) if code is None else code & 0xFF


#: With these a statement ends before anything of it is written.
_NOTHING_WRITTEN: Final = (_BUSY, _LOCKED, _READONLY, _CORRUPT, _CANTOPEN, _NOTADB)


def _is_busy(error: sqlite3.Error) -> bool:
    return _code(error) in (_BUSY, _LOCKED)


_WORDS: dict[int, tuple[type[StoreError], str]] = {
    _READONLY: (StoreError, "is read-only for this program: give it the right to write to the file and its directory"),
    _IOERR: (StoreUnavailableError, "could not be read or written: the disk reports an error; see the log of the system"),
    _CORRUPT: (StoreError, "is damaged: put a backup in its place, or see what `sqlite3 FILE .recover` can save"),
    _FULL: (StoreUnavailableError, "could not be written to, for the disk is full: make room"),
    _CANTOPEN: (
        StoreUnavailableError,
        "could not be opened: see that its directory is there, and that this program may read and write in it",
    ),
    _NOTADB: (StoreError, "is no database: its file holds something else, and was left as it is; name another file"),
}


def _translated(error: sqlite3.Error, committed: bool | None) -> StoreError:
    """Our error for SQLite's, whose words are not repeated."""
    kind, words = _WORDS.get(_code(error), (StoreError, f"reports {type(error).__name__}"))
    return kind(f"the SQLite database {words}", committed=committed)


def _closed(committed: bool | None = False) -> StoreClosedError:
    return StoreClosedError(
        "the SQLite store is closed: make a new gantry, or close it only when no tool is called any more",
        committed=committed,
    )
