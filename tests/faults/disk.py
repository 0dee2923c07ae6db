"""A directory that is watched, and what may be left of it when a process is killed or the power fails.

While a `Disk` is watching, it follows all that is done below its root by way of `os`, counts it, and can let the process
"die" before the n-th operation: nothing is done from then on. `after_power_cut` gives the states in which a POSIX file
system may come back: the content of a file and the entries of a directory are there for certain only if they were synced; of
everything else each piece by itself may be there or not, and a file that was not synced may be empty, cut off or zeros.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any, Union

#: What is in a directory, by name: the content of a file, or another directory.
Tree = dict[str, Union[bytes, "Tree"]]


class Killed(BaseException):
    """The process is dead."""


class _File:
    def __init__(self) -> None:
        self.data = b""
        self.synced = b""


class _Folder:
    def __init__(self) -> None:
        self.names: dict[str, _File | _Folder] = {}
        self.durable: dict[str, _File | _Folder] = {}
        #: What was done since, each by itself: names, and what they lead to.
        self.pending: list[dict[str, _File | _Folder | None]] = []

    def change(self, change: dict[str, _File | _Folder | None]) -> None:
        self.pending.append(change)
        _apply(self.names, change)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.names), []


def _apply(names: dict[str, Any], change: dict[str, Any]) -> None:
    for name, node in change.items():
        names.pop(name, None)
        if node is not None:
            names[name] = node


#: Of `os`, what a disk gets to see.
_WATCHED = ("open", "close", "write", "fsync", "rename", "unlink", "mkdir")


class Disk:
    """Watches the directory *root*, which holds what *tree* says.

    Attributes:
        done: How many operations have changed something, or brought it to the disk.
        die_at: The operation before which the process dies; 0 if it lives.
        before: Called before each operation.
    """

    def __init__(self, root: pathlib.Path, tree: Tree | None = None) -> None:
        self.path = root
        self.done = 0
        self.die_at = 0
        self.before: Callable[[], None] = lambda: None
        self._dead = False
        self._fds: dict[int, _File | _Folder] = {}
        self._new: set[int] = set()
        root.mkdir()
        fill(root, tree or {})
        self.root = _read(tree or {})

    @contextlib.contextmanager
    def watching(self) -> Iterator[Disk]:
        """Follow what is done, until it is left."""
        plain = {name: getattr(os, name) for name in _WATCHED}
        try:
            for name, call in plain.items():
                setattr(os, name, getattr(self, f"_{name}")(call))
            yield self
        finally:
            for name, call in plain.items():
                setattr(os, name, call)
            self.revive()

    def revive(self) -> None:
        """Another process begins; what the dead one had open is closed."""
        self._dead, self.die_at = False, 0
        for fd in [*self._new]:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._new.clear()

    def _operation(self) -> None:
        if not self._dead:
            self.before()
            self.done += 1
            self._dead = self.done == self.die_at
        if self._dead:
            raise Killed

    def _node(self, path: Any, dir_fd: int | None) -> tuple[_Folder | None, str]:
        """The directory in which a path is, and its name there; None if it is nothing of ours."""
        if dir_fd is not None:
            folder = self._fds.get(dir_fd)
            return (folder if isinstance(folder, _Folder) else None), os.fspath(path)
        try:
            parts = pathlib.Path(path).relative_to(self.path).parts
        except (TypeError, ValueError):
            return None, ""
        folder = self.root
        for part in parts[:-1]:
            folder = folder.names[part]
            assert isinstance(folder, _Folder)
        return folder, parts[-1] if parts else "."

    def _open(self, plain: Any) -> Any:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            folder, name = self._node(path, dir_fd)
            makes = folder is not None and flags & os.O_CREAT and name not in folder.names
            if makes:
                self._operation()
            fd: int = plain(path, flags, mode, dir_fd=dir_fd)
            if folder is None:
                return fd
            if makes:
                folder.change({name: _File()})
                if flags & os.O_EXCL:
                    self._new.add(fd)
            elif name != "." and name not in folder.names:
                # Python 3.10 keeps a mkdir of its own.
                folder.change({name: _Folder()})
            self._fds[fd] = folder if name == "." else folder.names[name]
            return fd

        return call

    def _close(self, plain: Any) -> Any:
        def call(fd: int) -> None:
            plain(fd)
            self._fds.pop(fd, None)
            self._new.discard(fd)

        return call

    def _write(self, plain: Any) -> Any:
        def call(fd: int, data: Any) -> int:
            node = self._fds.get(fd)
            if not isinstance(node, _File):
                return int(plain(fd, data))
            self._operation()
            count: int = plain(fd, data)
            node.data += bytes(data[:count])
            return count

        return call

    def _fsync(self, _: Any) -> Any:
        def call(fd: int) -> None:
            node = self._fds.get(fd)
            # The disk itself need not be waited for: what it holds is known here.
            self._operation()
            if isinstance(node, _Folder):
                node.sync()
            elif node is not None:
                node.synced = node.data

        return call

    def _rename(self, plain: Any) -> Any:
        def call(old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            (source, old_name), (target, new_name) = self._node(old, src_dir_fd), self._node(new, dst_dir_fd)
            if source is None or target is None:
                return plain(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            self._operation()
            plain(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            node = source.names[old_name]
            if source is target:
                source.change({old_name: None, new_name: node})
            else:
                target.change({new_name: node})
                source.change({old_name: None})
            return None

        return call

    def _unlink(self, plain: Any) -> Any:
        def call(path: Any, *, dir_fd: int | None = None) -> None:
            folder, name = self._node(path, dir_fd)
            if folder is None:
                return plain(path, dir_fd=dir_fd)
            self._operation()
            plain(path, dir_fd=dir_fd)
            folder.change({name: None})
            return None

        return call

    def _mkdir(self, plain: Any) -> Any:
        def call(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            folder, name = self._node(path, dir_fd)
            if folder is None:
                return plain(path, mode, dir_fd=dir_fd)
            self._operation()
            plain(path, mode, dir_fd=dir_fd)
            folder.change({name: _Folder()})
            return None

        return call

    def after_kill(self) -> Tree:
        """What is there when the process dies now."""
        return _now(self.root)

    def after_power_cut(self, limit: int, chance: random.Random) -> Iterator[Tree]:
        """What may be there when the power fails now: all states, or some if those are more than *limit*."""
        turns: list[list[int]] = []
        for _ in range(limit):
            at = itertools.count()

            def in_order(count: int) -> int:
                index = next(at)
                if index == len(turns):
                    turns.append([0, count])
                return turns[index][0]

            yield _left(self.root, in_order)
            while turns and turns[-1][0] + 1 == turns[-1][1]:
                turns.pop()
            if not turns:
                return
            turns[-1][0] += 1
        for _ in range(limit):
            yield _left(self.root, chance.randrange)


def _read(tree: Tree) -> _Folder:
    folder = _Folder()
    for name, content in tree.items():
        node: _File | _Folder
        if isinstance(content, dict):
            node = _read(content)
        else:
            node = _File()
            node.data = node.synced = content
        folder.names[name] = node
    folder.sync()
    return folder


def _now(folder: _Folder) -> Tree:
    return {name: node.data if isinstance(node, _File) else _now(node) for name, node in folder.names.items()}


def _left(folder: _Folder, choose: Callable[[int], int]) -> Tree:
    names = dict(folder.durable)
    for change in folder.pending:
        if choose(2):
            _apply(names, change)
    return {name: _content(node, choose) if isinstance(node, _File) else _left(node, choose) for name, node in names.items()}


def _content(file: _File, choose: Callable[[int], int]) -> bytes:
    data, synced = file.data, file.synced
    if data == synced:
        return data
    return (synced, data, data[: len(data) // 2], bytes(len(data)))[choose(4)]


def fill(place: pathlib.Path, tree: Tree) -> None:
    """Write a tree."""
    for name, content in tree.items():
        if isinstance(content, dict):
            (place / name).mkdir(0o700)
            fill(place / name, content)
        else:
            (place / name).write_bytes(content)


def frozen(tree: Tree) -> Any:
    """What tells one tree from another."""
    return frozenset((name, frozen(each) if isinstance(each, dict) else each) for name, each in tree.items())
