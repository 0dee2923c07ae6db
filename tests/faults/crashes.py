"""What a file store is put through on a disk that is watched, and what has to be there after a crash at any moment."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from faults.disk import Disk, Killed, Tree, fill, frozen

from agent_gantry_state import CorruptEntryError, Namespace
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores.file import FileStore
from agent_gantry_state.stores.protocol import Commit, Committed, Forget, Lease, Release
from agent_gantry_state.testing import A, B, Clock, Talk, put

C = Namespace("session", "c", "app")
ALL = (A, B, C)
#: What a file has too much.
DAMAGE = b"damaged"
#: What is left in the directory by whoever is done.
_KNOWN = re.compile(r"agent-gantry-state|lock|[0-9a-f]{64}(\.lease)?")

#: A number in each of the namespaces; None where there is none.
State = tuple[Any, ...]


class Script:
    """What is done to a store, step by step, and what has to be there afterwards.

    Attributes:
        allowed: How it may stand at this moment.
        history: What was acknowledged so far.
        tell: Called with what is allowed and the time, whenever that changes.
    """

    def __init__(self, store: Any, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.talk = Talk(bridge_to(store))
        self.allowed: list[State] = [(None, None, None)]
        #: What somebody was told was there.
        self.acknowledged: State = (None, None, None)
        self.history = [self.acknowledged]
        self.tell: Callable[[list[State], float], None] = lambda allowed, now: None

    def _do(self, after: State, act: Callable[[], Any]) -> None:
        self.allowed = [self.acknowledged, after]
        self.tell(self.allowed, self.clock.now)
        act()
        self.acknowledged, self.allowed = after, [after]
        self.history.append(after)
        self.tell(self.allowed, self.clock.now)

    def _write(self, n: int, *namespaces: Namespace, **terms: Any) -> None:
        after = tuple([n if each in namespaces else old for each, old in zip(ALL, self.acknowledged, strict=True)])
        changes = [self.talk.change(each, {"n": put(n, **terms)}) for each in namespaces]
        self._do(after, lambda: self._committed(self.talk.message(*changes)))

    def _committed(self, message: Commit) -> None:
        assert self.talk.ask(message) == Committed()

    def _forget(self, *namespaces: Namespace) -> None:
        after = tuple([None if each in namespaces else old for each, old in zip(ALL, self.acknowledged, strict=True)])
        self._do(after, lambda: self.talk.ask(Forget(namespaces)))

    def run(self) -> None:
        self._write(1, A)
        self._write(2, A, B)
        self._write(3, A, B, C)
        self._forget(A, B)
        self._write(4, A)
        self.talk.ask(Lease(A, b"holder", 30.0))
        self._write(5, B, C, ttl=100.0)
        self.talk.ask(Release(A, b"holder"))
        # What they said is gone; the next commit looks behind.
        self.clock.now += 200.0
        self.acknowledged = (4, None, None)
        self.allowed = [self.acknowledged]
        self.tell(self.allowed, self.clock.now)
        self.store._commits = 1024
        self._write(6, A)
        self._write(7, B, C)
        self._forget(C)


def state(talk: Talk) -> State:
    return tuple([talk.content(namespace).get("n") for namespace in ALL])


def usable(talk: Talk) -> None:
    """Nothing stands in the way of what comes next."""
    assert talk.send(*[talk.change(each, {"n": put(9)}) for each in ALL]) == Committed()
    assert state(talk) == (9, 9, 9)


class Places:
    """Directories to try in, each for once."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def new(self) -> Iterator[pathlib.Path]:
        place = pathlib.Path(tempfile.mkdtemp(dir=self._folder)) / "root"
        try:
            yield place
        finally:
            shutil.rmtree(place.parent)


def look(places: Places, tree: Tree, clock: Clock, allowed: list[State]) -> None:
    """Open what a crash has left: it has to be one of the states, whole, and usable, and to become tidy."""
    with places.new() as root:
        root.mkdir()
        fill(root, tree)
        with contextlib.closing(FileStore(root / "state", fsync=False, clock=clock)) as store:
            talk = Talk(bridge_to(store))
            found = state(talk)
            assert found in allowed, (found, allowed, tree)
            usable(talk)
        left = [each.name for each in (root / "state").iterdir() if not _KNOWN.fullmatch(each.name)]
        assert left == [], (left, tree)


def at_every_moment(folder: pathlib.Path, chance: random.Random, limit: int, share: float) -> Counter[str]:
    """Crash at each operation of a script, and once more while what it left is put in order.

    Args:
        folder: Where it may write.
        chance: Chooses what is tried, where that is not all.
        limit: Of a power cut, how many states are looked at.
        share: Of what is looked at, how much is put in order by somebody who crashes too.
    """
    places, counts = Places(folder), Counter[str]()
    seen: dict[Any, tuple[Tree, list[State], float]] = {}
    with places.new() as root:
        clock = Clock()
        store = FileStore(root / "state", clock=clock)
        script = Script(store, clock)
        disk = Disk(root)

        def note() -> None:
            counts["operations"] += 1
            for tree in (disk.after_kill(), *disk.after_power_cut(limit, chance)):
                key = frozen(tree), tuple(script.allowed), clock.now
                seen.setdefault(key, (tree, list(script.allowed), clock.now))

        disk.before = note
        with disk.watching(), contextlib.closing(store):
            script.run()
            note()
    for tree, allowed, now in seen.values():
        counts["prefixes replayed"] += 1
        look(places, tree, Clock(now), allowed)
        if chance.random() < share:
            _crash_again(places, tree, Clock(now), allowed, chance, limit, counts)
    return counts


def _crash_again(
    places: Places, tree: Tree, clock: Clock, allowed: list[State], chance: random.Random, limit: int, counts: Counter[str]
) -> None:
    """Let whoever finds what a crash has left crash himself, at one of his own operations."""
    seen: dict[Any, Tree] = {}
    with places.new() as root:
        disk = Disk(root, tree)

        def note() -> None:
            for each in (disk.after_kill(), *disk.after_power_cut(limit, chance)):
                seen.setdefault(frozen(each), each)

        disk.before = note
        with disk.watching(), contextlib.closing(FileStore(root / "state", clock=clock)) as store:
            state(Talk(bridge_to(store)))
    for each in seen.values():
        counts["crashes after a crash"] += 1
        look(places, each, clock, allowed)


def of_one_of_two(folder: pathlib.Path, chance: random.Random, limit: int, fsync: bool, step: int = 1) -> Counter[str]:
    """Kill a process at each *step*-th operation; another one goes on, has a commit acknowledged, and the power fails."""
    places, counts = Places(folder), Counter[str]()
    for moment in range(1 + chance.randrange(step), 10_000, step):
        with places.new() as root:
            clock = Clock()
            script = Script(FileStore(root / "state", fsync=fsync, clock=clock), clock)
            disk = Disk(root)
            disk.die_at = moment
            with disk.watching():
                try:
                    script.run()
                except Killed:
                    killed = True
                else:
                    killed = False
                allowed, script = script.allowed, None  # type: ignore[assignment]
                disk.revive()
                with contextlib.closing(FileStore(root / "state", clock=clock)) as store:
                    talk = Talk(bridge_to(store))
                    found = state(talk)
                    assert found in allowed, (moment, found, allowed)
                    talk.write(A, n=8)
                trees = {frozen(tree): tree for tree in disk.after_power_cut(limit, chance)}
        counts["kills"] += 1
        for tree in trees.values():
            counts["prefixes replayed"] += 1
            if fsync:
                look(places, tree, clock, [(8, *found[1:])])
            else:
                assert _survivors(places, tree, clock)[0] == 8, (moment, tree)
        if not killed:
            return counts
    raise AssertionError("it never came to its end")


def put_aside(folder: pathlib.Path, chance: random.Random, limit: int) -> Counter[str]:
    """Let the power fail at each operation that comes after a damaged file was said to be put aside: it stays there."""
    places, counts = Places(folder), Counter[str]()
    with places.new() as root:
        disk, trees = Disk(root), {}
        with disk.watching(), contextlib.closing(FileStore(root / "state")) as store:
            talk = Talk(bridge_to(store))
            talk.write(A, n=1)
            with contextlib.closing(FileStore(root / "state")) as again:
                name = A.digest.hex()
                fd = os.open(root / "state" / name, os.O_WRONLY | os.O_APPEND)
                os.write(fd, DAMAGE)
                os.fsync(fd)
                os.close(fd)
                damaged = (root / "state" / name).read_bytes()

                def note() -> None:
                    for tree in (disk.after_kill(), *disk.after_power_cut(limit, chance)):
                        trees[frozen(tree)] = tree

                with contextlib.suppress(CorruptEntryError):
                    Talk(bridge_to(again)).content(A)
                disk.before = note
                Talk(bridge_to(again)).write(A, n=2)
                note()
    for tree in trees.values():
        counts["prefixes replayed"] += 1
        there = tree["state"]
        assert isinstance(there, dict)
        aside = there.get("corrupt", {})
        assert isinstance(aside, dict)
        assert damaged in aside.values(), tree
    return counts


def without_fsync(folder: pathlib.Path, chance: random.Random, limit: int) -> Counter[str]:
    """Let the power fail at each operation of a script that waits for no disk: old, new, or told to be damaged."""
    places, counts = Places(folder), Counter[str]()
    seen: dict[Any, tuple[Tree, float]] = {}
    with places.new() as root:
        clock = Clock()
        store = FileStore(root / "state", fsync=False, clock=clock)
        script = Script(store, clock)
        disk = Disk(root)

        def note() -> None:
            for tree in disk.after_power_cut(limit, chance):
                seen.setdefault((frozen(tree), clock.now), (tree, clock.now))

        disk.before = note
        with disk.watching(), contextlib.closing(store):
            script.run()
            note()
    for tree, now in seen.values():
        counts["prefixes replayed"] += 1
        found = _survivors(places, tree, Clock(now))
        counts["damaged without fsync, and told"] += found.count("damaged")
        for each in found:
            assert each in (None, "damaged", 1, 2, 3, 4, 5, 6, 7), (found, tree)
    return counts


def _survivors(places: Places, tree: Tree, clock: Clock) -> State:
    """What is read where nothing was promised but that it is not torn, and that what comes next works."""
    with places.new() as root:
        root.mkdir()
        fill(root, tree)
        with contextlib.closing(FileStore(root / "state", fsync=False, clock=clock)) as store:
            talk = Talk(bridge_to(store))
            found: list[Any] = []
            for namespace in ALL:
                try:
                    found.append(talk.content(namespace).get("n"))
                except CorruptEntryError:
                    found.append("damaged")
            usable(talk)
        left = [each.name for each in (root / "state").iterdir() if not _KNOWN.fullmatch(each.name)]
        assert left in ([], ["corrupt"]), (left, tree)
        return tuple(found)
