"""Memories in the files of one directory, for the processes of one machine.

A namespace is a file that is named by its digest and replaced by each commit. A load takes no lock: it asks whether the file
is still the one that this process has read, and reads it only if it is not; of several it looks again whether none has
changed meanwhile. A commit prepares its files without the lock as well, brings them to the disk, and holds the lock only
while it sees that everything is as it was and renames.
"""

from __future__ import annotations

import builtins
import math
import os
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from agent_gantry_state.errors import CorruptEntryError, StateError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.notes import LOG, fields
from agent_gantry_state.stores.clock import Clocked
from agent_gantry_state.stores.file_directory import ABSENT, Directory, Gone, New, is_namespace, is_new, translated
from agent_gantry_state.stores.file_images import Found, Images, UnreadableError, name_of
from agent_gantry_state.stores.file_journal import close, discard, is_pending, publish, write_journal
from agent_gantry_state.stores.file_shared import SharedDirectory
from agent_gantry_state.stores.options import check_timeouts, flag, seconds
from agent_gantry_state.stores.protocol import (
    COMMIT_SECONDS,
    EMPTY,
    LOAD_SECONDS,
    Commit,
    Committed,
    Forget,
    Lease,
    List,
    Listed,
    Load,
    Loaded,
    Message,
    Moved,
    Page,
    Release,
    WouldBlock,
)
from agent_gantry_state.stores.urls import StoreURL
from agent_gantry_state.stores.whole import Image, applied, chosen, is_moved, write_image

__all__ = ["FileStore", "from_url"]

T = TypeVar("T")

#: Seconds for which a commit that landed is remembered, so that it can be sent again.
TOKEN_SECONDS: Final = 60.0
#: After this many commits, so many files are looked at whether they are expired.
_SWEEP_EVERY, _LOOKED_AT = 32, 16
#: As many more a commit counts that made a file, so that more are looked at than are made.
_MAKING = 7

_LEASE: Final = ".lease"
_UNTIL = struct.Struct(">d")
_COMMITTED = Committed()


class _Write(NamedTuple):
    """A file to be written: by what name, and what is in it."""

    name: str
    data: bytes
    image: Image


class FileStore(Clocked):
    """Keeps memories in the files of a directory, which the processes of one machine may share.

    Nothing is opened or made before it is first needed.

    Args:
        path: The directory, relative to the one of now. One that is not there is made, for its owner only; its parent is
            not.
        fsync: Whether a commit waits until the disk has it, so that a power failure takes nothing. Without that, it may take
            the last commits; a crash of the program takes nothing in either case.
        clock: Gives the time in seconds since the epoch, by which keys expire.
        load_timeout: Seconds that a call may wait for other processes before it reads.
        commit_timeout: Seconds that it may wait for them before it writes.

    Raises:
        ValueError: A time is not positive, or the path is empty.
        TypeError: An argument is of another type.
        StoreUnavailableError: This is not a POSIX system.
    """

    inline = False

    def __init__(
        self,
        path: str | os.PathLike[str],
        fsync: bool = True,
        clock: Callable[[], float] = time.time,
        load_timeout: float = LOAD_SECONDS,
        commit_timeout: float = COMMIT_SECONDS,
    ) -> None:
        check_timeouts(self, load_timeout=load_timeout, commit_timeout=commit_timeout)
        if not isinstance(fsync, bool):
            raise TypeError(f"FileStore: fsync must be True or False, not {type(fsync).__name__}")
        if not os.fspath(path) or "\0" in os.fspath(path):
            raise ValueError("FileStore: path must be that of a directory")
        self.load_timeout, self.commit_timeout = load_timeout, commit_timeout
        where = Path(os.path.abspath(os.fspath(path)))  # noqa: PTH100 - with its symbolic links
        self._files = SharedDirectory(where, fsync)
        super().__init__(clock)
        #: Since the last sweep.
        self._commits = 0
        self._images = Images(self._files)
        #: Names of the files that the last listing has left out.
        self._left_out: set[str] = set()
        self._answers = {
            Load: self._loaded,
            Commit: self._committed,
            Forget: self._forgotten,
            List: self._listed,
            Lease: self._leased,
            Release: self._released,
        }

    @property
    def left_out(self) -> int:
        """How many memories the last listing has left out so far, for they cannot be read."""
        return len(self._left_out)

    @property
    def path(self) -> Path:
        """The directory."""
        return self._files.path

    def __repr__(self) -> str:
        return f"<FileStore {self._files.path.name}>"

    def load(self, message: Load, /) -> Loaded:
        """Answer a `Load`."""
        return self._ask(self._loaded, message, time.monotonic() + message.timeout)

    def commit(self, message: Commit, /) -> Committed | Moved:
        """Answer a `Commit`."""
        return self._ask(self._committed, message, time.monotonic() + message.timeout)

    def forget(self, message: Forget, /) -> None:
        """Answer a `Forget`."""
        self._ask(self._forgotten, message, time.monotonic() + message.timeout)

    def list(self, message: List, /) -> Page:
        """Answer a `List`."""
        return self._ask(self._listed, message, time.monotonic() + message.timeout)

    def lease(self, message: Lease, /) -> float:
        """Answer a `Lease`."""
        return self._ask(self._leased, message, time.monotonic() + message.timeout)

    def release(self, message: Release, /) -> None:
        """Answer a `Release`."""
        self._ask(self._released, message, time.monotonic() + message.timeout)

    def attempt(self, message: Message, /) -> Any:
        """Answer a message without waiting for anybody, or for the disk to be in step.

        Raises:
            WouldBlock: It would have to wait.
        """
        return self._ask(self._answers[type(message)], message, None)

    def close(self) -> None:
        """Close the directory; a call that is at it comes to its end."""
        self._files.close()
        self._images.clear()

    def _ask(self, answer: Callable[[Directory, Any, float | None], T], message: Any, deadline: float | None) -> T:
        while True:
            directory = self._files.opened(deadline)
            try:
                try:
                    return answer(directory, message, deadline)
                except UnreadableError as unreadable:
                    self._report(directory, unreadable, deadline)
            except Gone:
                self._files.drop(directory)
            except StateError:
                # Some of ours are OSErrors as well.
                raise
            except OSError as error:
                if not directory.is_gone():
                    raise translated(error, False) from error
                # Nothing can be made in a directory that was removed; what is in its place now is opened.
                self._files.drop(directory)

    # Reading.

    def _loaded(self, directory: Directory, message: Load, deadline: float | None) -> Loaded:
        found = self._images.at_one_moment(directory, message.namespaces, deadline)
        now = self.now()
        snapshots = [image.snapshot.live(now) for _, image in found]
        if message.keys is not None:
            snapshots = [
                snapshot if keys is None else chosen(snapshot, keys, message.names)
                for snapshot, keys in zip(snapshots, message.keys, strict=True)
            ]
        return Loaded(tuple(snapshots), now)

    def _report(self, directory: Directory, unreadable: UnreadableError, deadline: float | None) -> None:
        """Put a file that cannot be read aside, and say so once; the memory begins anew."""
        if unreadable.newer:
            raise unreadable.error
        namespace = unreadable.namespace
        self._files.acquire(directory, deadline)
        try:
            self._images.found(directory, namespace)
        except UnreadableError as again:
            try:
                directory.put_aside(name_of(namespace))
            except OSError as error:
                raise again.error from error
            LOG.error(
                "the file of a %s's memory cannot be read and was put aside in the directory 'corrupt' of the file store; "
                "the memory begins anew",
                namespace.scope,
                extra=fields("file_put_aside", scope=namespace.scope),
            )
            raise CorruptEntryError(
                f"{again.error}. Its file was put aside in the directory 'corrupt' of the file store; the memory begins "
                "anew with the next call"
            ) from None
        finally:
            self._files.release(directory)

    # Writing.

    def _committed(self, directory: Directory, message: Commit, deadline: float | None) -> Committed | Moved:
        if deadline is None and self._files.fsync:
            raise WouldBlock
        namespaces = [change.namespace for change in message.changes]
        found = self._images.at_one_moment(directory, namespaces, deadline)
        answer, writes = self._planned(message, found)
        if writes:
            if not self._written(directory, writes, namespaces, found, deadline):
                # Somebody came between; nobody does while the lock is held.
                self._files.acquire(directory, deadline)
                try:
                    found = [self._images.found(directory, namespace) for namespace in namespaces]
                    answer, writes = self._planned(message, found)
                    if writes:
                        self._written(directory, writes, namespaces, None, deadline)
                finally:
                    self._files.release(directory)
            made = sum([signature == ABSENT for signature, _ in found])
            self._commits += 1 + made * _MAKING
            if self._commits >= _SWEEP_EVERY:
                self._commits = 0
                self._sweep(directory)
        return answer

    def _planned(self, message: Commit, found: Sequence[Found]) -> tuple[Committed | Moved, Sequence[_Write]]:
        """What is answered and what is to be written, where the namespaces stand as they were found."""
        now, token, changes = self.now(), message.token, message.changes
        if token and any(token in image.tokens for _, image in found):
            return _COMMITTED, []
        snapshots = [image.snapshot.live(now) for _, image in found]
        for change, snapshot in zip(changes, snapshots, strict=True):
            if snapshot.head != change.head and is_moved(change, snapshot):
                return Moved(tuple(snapshots), now), []
        writes = []
        for change, snapshot, (_, before) in zip(changes, snapshots, found, strict=True):
            if not (change.puts or change.deletes or change.touch or change.owner is not None):
                continue
            after = applied(change, snapshot, message.version, self.now)
            if after.head is None:
                continue
            tokens = {old: until for old, until in before.tokens.items() if until > now}
            if token:
                tokens[token] = now + TOKEN_SECONDS
            image = Image(change.namespace, after, tokens)
            writes.append(_Write(name_of(change.namespace), write_image(image), image))
        return _COMMITTED, writes

    def _written(
        self,
        directory: Directory,
        writes: Sequence[_Write],
        namespaces: Sequence[Namespace],
        found: Sequence[Found] | None,
        deadline: float | None,
    ) -> bool:
        """Write files, all or none, if everything stands as it was *found*; None where the lock is held anyway.

        Gives whether it did; if not, nothing was written.
        """
        files = self._files
        news: Sequence[New] = ()
        try:
            for _, data, _ in writes:
                news = (*news, directory.write(data))
            moves = [(new, name) for new, (name, _, _) in zip(news, writes, strict=True)]
            journal = write_journal(directory, moves)
            if journal is not None:
                news = (*news, journal)
            if files.fsync:
                for new in news:
                    new.sync()
            if found is None:
                publish(directory, moves, journal, files.fsync)
            elif not self._published(directory, moves, journal, namespaces, found, deadline):
                directory.discard(news)
                return False
        except BaseException:
            discard(directory, news)
            raise
        try:
            if files.fsync and journal is None:
                directory.sync()
            close(news)
        except OSError as error:
            raise translated(error, None) from error
        for (name, data, image), new in zip(writes, news, strict=False):
            self._images.keep(name, new.signature, image, len(data))
        return True

    def _published(
        self,
        directory: Directory,
        moves: Sequence[tuple[New, str]],
        journal: New | None,
        namespaces: Sequence[Namespace],
        found: Sequence[Found],
        deadline: float | None,
    ) -> bool:
        self._files.acquire(directory, deadline)
        try:
            if not self._images.stand(directory, namespaces, found):
                return False
            publish(directory, moves, journal, self._files.fsync)
        finally:
            self._files.release(directory)
        return True

    def _forgotten(self, directory: Directory, message: Forget, deadline: float | None) -> None:
        if deadline is None and self._files.fsync:
            raise WouldBlock
        self._files.acquire(directory, deadline)
        try:
            there = {
                name_of(namespace): namespace
                for namespace in message.namespaces
                if directory.signature(name_of(namespace)) != ABSENT
            }
            if len(there) > 1:
                # Files can only be removed one by one: so they are replaced together by such as have nothing in them.
                blanks = [Image(namespace, EMPTY, {}) for namespace in there.values()]
                writes = [_Write(name, write_image(blank), blank) for name, blank in zip(there, blanks, strict=True)]
                self._written(directory, writes, (), None, deadline)
            try:
                for name in there:
                    directory.unlink(name)
                    self._images.drop(name)
                if self._files.fsync:
                    directory.sync()
            except OSError as error:
                raise translated(error, None) from error
        finally:
            self._files.release(directory)

    def _listed(self, directory: Directory, message: List, deadline: float | None) -> Page:
        if deadline is None:
            # It may have to read very many files.
            raise WouldBlock
        if is_pending(directory):
            self._files.acquire(directory, deadline)
            self._files.release(directory)
        after = "" if message.after is None else message.after.hex()
        if not after:
            self._left_out.clear()
        now, more = self.now(), False
        listed: builtins.list[Listed] = []
        for name in sorted([name for name in directory.names() if name > after and is_namespace(name)]):
            image = self._images.glance(directory, name)
            if image is None:
                if directory.signature(name) != ABSENT:
                    self._left_out.add(name)
                continue
            namespace, snapshot = image.namespace, image.snapshot.live(now)
            if (
                snapshot.head is None
                or (message.app is not None and namespace.app != message.app)
                or (message.scope is not None and namespace.scope != message.scope)
                or (message.owner is not None and snapshot.owner != message.owner)
            ):
                continue
            if len(listed) == message.limit:
                more = True
                break
            listed.append(Listed(namespace, snapshot.owner))
        return Page(tuple(listed), listed[-1].namespace.digest if more else None)

    # Leases. They need not survive a crash of the machine, and are only looked at by who has the lock.

    def _leased(self, directory: Directory, message: Lease, deadline: float | None) -> float:
        self._files.acquire(directory, deadline)
        try:
            now, name = self.now(), name_of(message.namespace) + _LEASE
            holder, until = _lease(directory, name)
            if holder != message.holder and until > now:
                return until - now
            if holder == b"":
                self._commits += _MAKING
            new = directory.write(_lease_bytes(message.holder, now + message.ttl))
            try:
                directory.rename(new.name, name)
            except BaseException:
                directory.unlink(new.name)
                raise
            finally:
                new.close()
        finally:
            self._files.release(directory)
        return 0.0

    def _released(self, directory: Directory, message: Release, deadline: float | None) -> None:
        self._files.acquire(directory, deadline)
        try:
            name = name_of(message.namespace) + _LEASE
            if _lease(directory, name)[0] == message.holder:
                directory.unlink(name)
        finally:
            self._files.release(directory)

    # What is expired, and what killed writers left behind.

    def _sweep(self, directory: Directory) -> None:
        """Remove some of it, if nobody has to be waited for."""
        if not self._files.sweeping.acquire(False):
            return
        try:
            names = directory.some_names(_LOOKED_AT)
            if due := [name for name in names if self._is_rubbish(directory, name)]:
                self._files.acquire(directory, None)
                try:
                    for name in due:
                        if not is_namespace(name) and not name.endswith(_LEASE):
                            directory.remove_left_behind(name)
                        elif self._is_rubbish(directory, name):
                            directory.unlink(name)
                            self._images.drop(name)
                finally:
                    self._files.release(directory)
        except (OSError, StateError, WouldBlock, Gone):
            # The commit has landed, and what is wrong here is told by who needs it.
            pass
        finally:
            self._files.sweeping.release()

    def _is_rubbish(self, directory: Directory, name: str) -> bool:
        now = self.now()
        if is_namespace(name):
            image = self._images.glance(directory, name)
            return image is not None and image.snapshot.live(now).head is None
        if name.endswith(_LEASE):
            return _lease(directory, name)[1] <= now
        return is_new(name)


def _lease(directory: Directory, name: str) -> tuple[bytes, float]:
    """Who holds a lease, and until when."""
    read = directory.read(name)
    data = b"" if read is None else read[0]
    body = data[5:]
    if len(body) < _UNTIL.size or data[:5] != _head_of(body):
        # One that was cut off by a crash is one that nobody holds.
        return b"", -math.inf
    return body[_UNTIL.size :], _UNTIL.unpack_from(body)[0]


def _lease_bytes(holder: bytes, until: float) -> bytes:
    body = _UNTIL.pack(until) + holder
    return _head_of(body) + body


def _head_of(body: bytes) -> bytes:
    return b"\x01" + zlib.crc32(body).to_bytes(4, "big")


def from_url(url: StoreURL) -> FileStore:
    """The store that a file:// URL names."""
    path = url.path("a directory", "write file:///relative/dir or file:////absolute/dir")
    return FileStore(path, **url.read({"fsync": flag, "load_timeout": seconds, "commit_timeout": seconds}))
