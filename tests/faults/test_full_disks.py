"""Disks that are full at any byte, take less than they are given, or may not be written to: typed, whole, and passing."""

from __future__ import annotations

import errno
import itertools
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from contextlib import closing, suppress

import pytest

from agent_gantry_state import StoreError, StoreTimeoutError, StoreUnavailableError
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores.file import FileStore
from agent_gantry_state.stores.protocol import Committed
from agent_gantry_state.stores.sqlite import SQLiteStore
from agent_gantry_state.testing import A, B, Talk, put

pytestmark = pytest.mark.once

KINDS = {"file": lambda place: FileStore(place / "state"), "sqlite": lambda place: SQLiteStore(place / "state.db")}


def several(talk, n):
    return talk.message(*[talk.change(each, {"n": put([n] * 300)}) for each in (A, B)])


def stands_at(talk):
    """The one number that both memories have."""
    (n,) = {talk.content(each)["n"][0] for each in (A, B)}
    return n


class Short:
    """Lets each write take a few bytes only, and lets the disk be full after some of them."""

    def __init__(self, monkeypatch):
        self.left = None
        self.cut = 0
        plain = os.write

        def write(fd, data):
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.cut += 1
            return plain(fd, data[: max(len(data) // 2, 1)])

        monkeypatch.setattr(os, "write", write)


def test_disk_that_takes_less_than_it_is_given_gets_the_rest(tmp_path, monkeypatch):
    with closing(KINDS["file"](tmp_path)) as store:
        talk = Talk(bridge_to(store))
        short = Short(monkeypatch)

        assert talk.ask(several(talk, 1)) == Committed()

        assert short.cut > 10
    with closing(KINDS["file"](tmp_path)) as store:
        assert stands_at(Talk(bridge_to(store))) == 1


def test_disk_that_is_full_after_any_part_of_a_write_leaves_nothing_behind(tmp_path, monkeypatch):
    with closing(KINDS["file"](tmp_path)) as store:
        talk = Talk(bridge_to(store))
        talk.ask(several(talk, 0))
        names = set((tmp_path / "state").iterdir())
        short = Short(monkeypatch)
        for n in itertools.count(1):
            message = several(talk, n)
            short.left = n - 1
            try:
                talk.ask(message)
            except StoreUnavailableError as error:
                full, told = True, (error.committed, "disk is full" in str(error))
            else:
                full, told = False, (False, True)
            short.left = None
            assert told == (False, True)
            assert stands_at(talk) == (0 if full else n)
            assert set((tmp_path / "state").iterdir()) == names
            if not full:
                break
        assert n > 10
        assert talk.ask(several(talk, 9)) == Committed()


FULL_AT = """
    import resource, signal, sys
    from agent_gantry_state import StoreError
    from agent_gantry_state.bridge import bridge_to
    from agent_gantry_state.stores.sqlite import SQLiteStore
    from agent_gantry_state.testing import A, B, Talk, put

    def several(talk, n):
        return talk.message(*[talk.change(each, {"n": put([n] * 30_000)}) for each in (A, B)])

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    told = n = 0
    with_room = resource.RLIM_INFINITY
    store = SQLiteStore(sys.argv[1], sys.argv[2])
    talk = Talk(bridge_to(store))
    talk.ask(several(talk, 0))
    for size in range(33_000, 120_000, int(sys.argv[3])):
        message = several(talk, n + 1)
        limit(size)
        try:
            talk.ask(message)
        except StoreError as error:
            outcome, told = error.committed, told + 1
            assert "full" in str(error) or "disk" in str(error), error
        else:
            outcome = True
        (now,) = {talk.content(each)["n"][0] for each in (A, B)}
        limit(with_room)
        assert now in {True: [n + 1], False: [n], None: [n, n + 1]}[outcome], (size, outcome, n, now)
        n = now
        talk.ask(several(talk, n + 1))
        n += 1
        assert {talk.content(each)["n"][0] for each in (A, B)} == {n}
        store.close()
        store = SQLiteStore(sys.argv[1], sys.argv[2])
        talk = Talk(bridge_to(store))
        assert {talk.content(each)["n"][0] for each in (A, B)} == {n}
    print(told)
"""


def python(script, *arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limits of files there")
@pytest.mark.parametrize("synchronous", ["normal", "full"])
def test_sqlite_that_may_write_no_further_at_any_byte_says_the_truth_and_goes_on(tmp_path, synchronous):
    assert int(python(FULL_AT, tmp_path / "state.db", synchronous, 1999)) > 5


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    # Lazily: what was caught holds on to frames in which a file is open.
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_disk_that_is_truly_full_is_told_and_everything_works_when_there_is_room(small_disk, kind):
    with closing(KINDS[kind](small_disk)) as store:
        talk = Talk(bridge_to(store))
        talk.ask(several(talk, 1))
        before = set(small_disk.rglob("*"))
        message = several(talk, 2)
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        assert shutil.disk_usage(small_disk).free == 0

        with pytest.raises(StoreUnavailableError) as caught:
            talk.ask(message)

        assert caught.value.committed is not True
        assert stands_at(talk) == 1
        with closing(KINDS[kind](small_disk)) as again:
            assert stands_at(Talk(bridge_to(again))) == 1
        assert set(small_disk.rglob("*")) == before | {ballast}
        ballast.unlink()
        assert talk.ask(several(talk, 3)) == Committed()
        assert stands_at(talk) == 3


NEW_PLACE = """
    import os, sys
    from agent_gantry_state import Gantry, StoreError
    with Gantry("sqlite:///:memory:", session="s") as gantry, gantry.memory() as memory:
        memory["imported"] = "all that the next user may have no right to read"
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        with Gantry(sys.argv[1], session="secret-id") as gantry, gantry.memory() as memory:
            memory["x"] = "s3cr3t"
    except StoreError as error:
        print(type(error).__name__, error.committed, "secret-id" in str(error), "s3cr3t" in str(error), error)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_place_where_nothing_may_be_made_is_a_typed_error_that_names_the_store(kind):
    # Not under tmp_path, where no other user may go.
    place = pathlib.Path(tempfile.mkdtemp())
    place.chmod(0o555)
    try:
        out = python(NEW_PLACE, {"file": f"file:///{place}/state", "sqlite": f"sqlite:///{place}/state.db"}[kind])
    finally:
        place.chmod(0o700)
        shutil.rmtree(place)

    name, committed, *leaks = out.split()[:4]
    assert issubclass({"StoreError": StoreError, "StoreUnavailableError": StoreUnavailableError}[name], StoreError)
    assert (committed, leaks) == ("False", ["False", "False"])
    assert {"file": "file store", "sqlite": "SQLite"}[kind] in out


def test_sqlite_that_is_busy_for_longer_than_the_bound_is_told_in_time(tmp_path):
    with closing(KINDS["sqlite"](tmp_path)) as store, closing(KINDS["sqlite"](tmp_path)) as other:
        talk = Talk(bridge_to(store))
        talk.write(A, n=1)
        Talk(bridge_to(other)).content(A)
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "state.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            holder.stdout.readline()
            change = talk.change(A, {"n": put(2)})
            store.commit_timeout = 0.3
            message = talk.message(change)
            object.__setattr__(message, "timeout", 0.3)

            with pytest.raises(StoreTimeoutError) as caught:
                store.commit(message)

            assert caught.value.committed is False
            assert talk.content(A) == {"n": 1}
        finally:
            holder.communicate()
        assert talk.send(change) == Committed()


HOLDER = """
import sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN EXCLUSIVE")
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def target(tmp_path):
    """What symbolic links that were planted lead to."""
    target = tmp_path / "target"
    target.write_bytes(b"theirs")
    target.chmod(0o640)
    return target


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are POSIX's")
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("there", [True, False])
def test_symbolic_link_in_place_of_what_sqlite_writes_beside_its_file_is_not_followed(tmp_path, target, suffix, there):
    path = tmp_path / "state.db"
    if there:
        with closing(SQLiteStore(path)) as store:
            Talk(bridge_to(store)).write(A, n=1)
    link = tmp_path / f"state.db{suffix}"
    link.symlink_to(target)

    with closing(SQLiteStore(path)) as store:
        try:
            Talk(bridge_to(store)).write(A, n=2)
        except StoreError as error:
            assert error.committed is not True  # noqa: PT017 - it may also be harmless

    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"theirs", 0o640)


def test_everything_that_stays_or_passes_by_is_for_its_owner_only_with_no_umask(tmp_path, monkeypatch):
    modes = set()

    def watched(plain):
        def call(*args, **terms):
            result = plain(*args, **terms)
            modes.update(stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "state").rglob("*"))
            return result

        return call

    before = os.umask(0)
    try:
        with closing(KINDS["file"](tmp_path)) as store, monkeypatch.context() as patch:
            for name in ("open", "write", "rename", "mkdir"):
                patch.setattr(os, name, watched(getattr(os, name)))
            talk = Talk(bridge_to(store))
            talk.ask(several(talk, 1))
            (tmp_path / "state" / A.digest.hex()).write_bytes(b"\x01damaged")
            (tmp_path / "state" / A.digest.hex()).chmod(0o600)
            with pytest.raises(Exception, match="put aside"):
                talk.content(A)
            assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert modes == {0o600, 0o700}
