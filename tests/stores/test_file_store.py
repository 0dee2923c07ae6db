"""The file store answers every message by the rules for all stores; and crashes, processes, forks and planted files."""

from __future__ import annotations

import errno
import fcntl
import gc
import itertools
import os
import pathlib
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import zlib
from contextlib import closing, contextmanager

import anyio
import pytest

from agent_gantry_state import (
    CorruptEntryError,
    Gantry,
    Namespace,
    Scope,
    StoreClosedError,
    StoreError,
    StoreTimeoutError,
    StoreUnavailableError,
    StoreURLError,
    codec,
)
from agent_gantry_state.bridge import Local, bridge_to
from agent_gantry_state.stores import file as file_store
from agent_gantry_state.stores import file_shared
from agent_gantry_state.stores.file import FileStore
from agent_gantry_state.stores.protocol import Change, Commit, Committed, Forget, Lease, List, Load, WouldBlock
from agent_gantry_state.stores.whole import read_image
from agent_gantry_state.testing import NOWHERE, A, B, Clock, StoreContract, Talk, put

C = Namespace("session", "c", "app")
DAMAGED = b"\x00damaged"
MARK = b"agent-gantry-state file store, layout 1\n"


class TestFiles(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return FileStore(tmp_path / "state")


class TestFilesThatDoNotWaitForTheDisk(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return FileStore(tmp_path / "state", fsync=False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def make(path):
    """Makes stores on one directory, which are closed after the test."""
    stores = []

    def make(where=path, **terms):
        stores.append(FileStore(where, **terms))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make):
    return make()


@pytest.fixture
def talk(store):
    return Talk(bridge_to(store))


def file_of(path, namespace):
    return path / namespace.digest.hex()


def names(path):
    return {each.name for each in path.iterdir()}


def several(talk, n, *namespaces):
    """A commit of one number to several namespaces."""
    return talk.message(*(talk.change(namespace, {"n": put(n)}) for namespace in namespaces))


@contextmanager
def locked(path):
    """Holds the lock, as another process would."""
    fd = os.open(path / "lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield lambda: fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


@contextmanager
def locked_for(path, seconds):
    """Another process that gives the lock back after a while."""
    with locked(path) as unlock:
        timer = threading.Timer(seconds, unlock)
        timer.start()
        yield
        timer.join()


def python(script, *arguments, **terms):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **terms,
    )


def finished(process, seconds=60):
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    assert err == ""
    return out


# URLs.


def test_relative_and_absolute_paths_in_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("file:///a%20%23b", f"file:///{tmp_path}/c?fsync=off&load_timeout=1&commit_timeout=2", "file:///d/"):
        with Gantry(url, session="local") as gantry, gantry.memory() as memory:
            memory["x"] = url

    assert names(tmp_path) == {"a #b", "c", "d"}


def test_relative_path_is_of_the_directory_in_which_the_store_was_made(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with Gantry("file:///a", session="local") as gantry:
        monkeypatch.chdir(tmp_path / "other")
        with gantry.memory() as memory:
            memory["x"] = 1

    assert names(tmp_path) == {"a", "other"}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file://", "path of a directory"),
        ("file:///", "path of a directory"),
        ("file:///a%00b", "path of a directory"),
        ("file://state", "takes no host"),
        ("file://user:s3cr3t@host/x", "takes no host"),
        ("file:///x#y", "%23"),
        ("file:///x?fsync=maybe", "fsync"),
        ("file:///x?load_timeout=-1", "load_timeout"),
        ("file:///x?sync=on", "did you mean fsync.*It knows commit_timeout, fsync, load_timeout"),
    ],
)
def test_url_that_cannot_be_meant_is_refused(url, words):
    with pytest.raises(StoreURLError, match=words) as caught:
        Gantry(url)
    assert "s3cr3t" not in str(caught.value)


def test_nothing_is_opened_or_made_before_it_is_needed(path):
    with Gantry(f"file:///{path}", session="local"):
        assert not path.exists()


def test_system_without_file_locks_is_told_at_once(path, monkeypatch):
    monkeypatch.setattr(file_shared, "fcntl", None)

    with pytest.raises(StoreUnavailableError, match="sqlite:///"):
        Gantry(f"file:///{path}")


# The directory.


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_everything_is_for_its_owner_only_whatever_the_umask(path, make, umask):
    before = os.umask(umask)
    try:
        talk = Talk(bridge_to(make()))
        assert talk.ask(several(talk, 1, A, B)) == Committed()
        talk.ask(Lease(A, b"me", 10.0))
        file_of(path, B).write_bytes(b"")
        with pytest.raises(CorruptEntryError):
            talk.load(B)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for each in path.iterdir():
        assert stat.S_IMODE(each.stat().st_mode) & 0o077 == 0
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.iterdir() if each.is_file()} == {0o600}


def test_names_tell_nothing_of_ids(path, talk):
    talk.write(Namespace("session", "../../s3cr3t", "app"), x=1)
    talk.ask(Lease(Namespace("session", "../../s3cr3t", "app"), b"me", 10.0))

    assert all("s3cr3t" not in each.name for each in path.parent.rglob("*"))
    assert names(path.parent) == {"state"}


def test_missing_parent_is_named_and_not_made(tmp_path, make):
    store = make(tmp_path / "none" / "state")

    with pytest.raises(StoreUnavailableError, match="none") as caught:
        store.load(Load((A,)))

    assert caught.value.committed is False
    assert names(tmp_path) == set()


def test_file_in_place_of_the_directory_is_an_error(path, store):
    path.write_text("theirs")

    with pytest.raises(StoreError, match="is no directory"):
        store.load(Load((A,)))

    assert path.read_text() == "theirs"


@pytest.mark.parametrize("target", ["target", "nowhere"])
def test_symbolic_link_in_place_of_the_directory_is_not_followed(tmp_path, path, store, target):
    (tmp_path / "target").mkdir(0o700)
    path.symlink_to(tmp_path / target)

    with pytest.raises(StoreError, match="symbolic link"):
        store.commit(Commit(b"", b"v" * 8, ()))

    assert names(tmp_path / "target") == set()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_directory_that_others_may_write_to_is_refused(path, store, mode):
    path.mkdir()
    path.chmod(mode)

    with pytest.raises(StoreError, match="chmod 700"):
        store.load(Load((A,)))

    assert names(path) == set()


def test_directory_of_another_user_is_refused(path, store, monkeypatch):
    path.mkdir(0o700)
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)

    with pytest.raises(StoreError, match="belongs to another user"):
        store.load(Load((A,)))

    assert names(path) == set()


@pytest.mark.parametrize("theirs", ["data.json", ".hidden", "0" * 64, "new-file", "journal", "lock.pid"])
def test_directory_of_another_program_is_refused_and_left_alone(path, store, theirs):
    path.mkdir(0o700)
    (path / theirs).write_text("theirs")

    with pytest.raises(StoreError, match="another program"):
        store.commit(Commit(b"", b"v" * 8, ()))

    assert names(path) == {theirs}
    assert (path / theirs).read_text() == "theirs"


def test_directory_that_was_never_finished_is_finished(path, talk):
    path.mkdir(0o700)
    (path / "lock").write_text("")
    (path / f"new-{'0' * 32}").write_text("a")

    talk.write(A, x=1)

    assert talk.content() == {"x": 1}
    assert names(path) == {"lock", "agent-gantry-state", A.digest.hex()}


@pytest.mark.parametrize("mark", [b"", b"something else\n", b"agent-gantry-state file store, layout one\n"])
def test_marker_that_says_something_else_is_refused(path, store, mark):
    path.mkdir(0o700)
    (path / "agent-gantry-state").write_bytes(mark)

    with pytest.raises(StoreError, match="no file store's"):
        store.commit(Commit(b"", b"v" * 8, ()))

    assert names(path) == {"agent-gantry-state"}


def test_newer_layout_is_refused_and_left_alone(path, talk, make):
    talk.write(A, x=1)
    (path / "agent-gantry-state").write_bytes(MARK.replace(b"1", b"2"))
    before = names(path)

    for ask in (lambda: make().load(Load((A,))), lambda: make().commit(Commit(b"", b"v" * 8, ()))):
        with pytest.raises(StoreError, match=r"newer version.*layout 2"):
            ask()

    assert names(path) == before


def test_layout_has_not_changed_without_its_number(path, talk):
    # Golden: a directory of this layout is read for ever. Whoever changes it has to raise LAYOUT and read both.
    talk.write(A, x=1)
    talk.ask(Lease(A, b"me", 10.0))
    digest = A.digest.hex()

    assert file_shared.LAYOUT == 1
    assert names(path) == {"agent-gantry-state", "lock", digest, f"{digest}.lease"}
    assert (path / "agent-gantry-state").read_bytes() == MARK
    image = read_image((path / digest).read_bytes())
    assert (image.namespace, image.snapshot.values) == (A, {"x": 1})


def test_directory_that_was_removed_is_made_anew(path, talk):
    talk.write(A, x=1)
    talk.load(A)
    shutil.rmtree(path)

    assert talk.content() == {}
    talk.write(A, x=2)
    shutil.rmtree(path)
    talk.write(A, x=3)

    assert talk.content() == {"x": 3}


def test_directory_that_was_put_back_is_the_one_that_is_used(path, talk):
    talk.write(A, x=1)
    shutil.copytree(path, path.with_name("backup"))
    talk.write(A, x=2)
    shutil.rmtree(path)
    path.with_name("backup").rename(path)

    assert talk.content() == {"x": 1}


def test_lock_that_was_removed_still_is_one_lock(path, make):
    one, two = (Talk(bridge_to(make())) for _ in range(2))
    one.write(A, x=1)
    (path / "lock").unlink()
    two.write(A, x=2)

    with locked(path):
        late = one.message(one.change(A, {"x": put(3)}))
        late.timeout = 0.05
        with pytest.raises(StoreTimeoutError):
            one.bridge.store.commit(late)


READ_ONLY = """
    import os, sys
    from agent_gantry_state import Gantry, StoreError
    with Gantry("file:///" + sys.argv[2], session="local") as gantry, gantry.memory() as memory:
        memory["imported"] = "all that the next user may have no right to read"
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    with Gantry("file:///" + sys.argv[1], session="local") as gantry:
        with gantry.memory() as memory:
            print(memory["x"])
        try:
            with gantry.memory() as memory:
                memory["x"] = 2
        except StoreError as error:
            print(type(error).__name__, error.committed, "read-only" in str(error))
        with gantry.memory() as memory:
            print(memory["x"])
"""


def test_directory_that_may_not_be_written_to_can_still_be_read(tmp_path):
    # Not under tmp_path, where no other user may go.
    place = pathlib.Path(tempfile.mkdtemp())
    with Gantry(f"file:///{place}/state", session="local") as gantry, gantry.memory() as memory:
        memory["x"] = 1
    (place / "state" / f"new-{'0' * 32}").write_text("left behind")
    place.chmod(0o755)
    for each in (place / "state", *(place / "state").iterdir()):
        each.chmod(0o500 if each.is_dir() else 0o400)
        if os.getuid() == 0:
            os.chown(each, 65534, 65534)
    try:
        out = finished(python(READ_ONLY, place / "state", tmp_path / "other"))
    finally:
        (place / "state").chmod(0o700)
        shutil.rmtree(place)

    assert out.splitlines() == ["1", "StoreError False True", "1"]


# Planted files.


@pytest.fixture
def target(tmp_path):
    """What symbolic links that were planted lead to."""
    target = tmp_path / "target"
    target.write_bytes(b"theirs")
    target.chmod(0o640)
    return target


def untouched(target):
    return (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"theirs", 0o640)


@pytest.mark.parametrize("name", ["agent-gantry-state", "lock", "journal"])
def test_symbolic_link_in_place_of_a_file_of_the_store_is_not_followed(path, talk, make, target, name):
    talk.write(A, x=1)
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(target)
    talk = Talk(bridge_to(make()))

    with pytest.raises(StoreError, match="symbolic link"):
        talk.write(A, x=2)

    assert untouched(target)


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "directory"])
def test_what_is_no_file_in_place_of_a_memory_is_not_followed(tmp_path, path, talk, target, kind):
    talk.write(B, x=1)
    planted = file_of(path, A)
    if kind == "pipe":
        os.mkfifo(planted)
    elif kind == "directory":
        planted.mkdir()
    else:
        planted.symlink_to(target if kind == "link" else tmp_path / "nowhere")

    for ask in (lambda: talk.load(A), lambda: talk.write(A, x=1), lambda: talk.send(Change(A, None, {"x": put(1)}, (), {}))):
        with pytest.raises(StoreError, match="symbolic link"):
            ask()

    assert talk.content(B) == {"x": 1}
    assert talk.names() == [B]
    assert untouched(target)
    assert not (tmp_path / "nowhere").exists()


def test_symbolic_link_in_place_of_a_memory_can_be_forgotten(path, talk, target):
    talk.write(B, x=1)
    file_of(path, A).symlink_to(target)

    talk.ask(Forget((A,)))

    talk.write(A, x=1)
    assert talk.content(A) == {"x": 1}
    assert untouched(target)


def test_symbolic_link_in_place_of_a_lease_is_not_followed(path, talk, target):
    talk.write(A, x=1)
    path.joinpath(f"{A.digest.hex()}.lease").symlink_to(target)

    for message in (Lease(A, b"me", 1.0), Lease(A, b"you", 1.0)):
        with pytest.raises(StoreError, match="symbolic link"):
            talk.ask(message)

    assert untouched(target)


def test_symbolic_link_in_place_of_what_is_kept_aside_is_not_followed(tmp_path, path, talk):
    talk.write(A, x=1)
    (tmp_path / "elsewhere").mkdir()
    (path / "corrupt").symlink_to(tmp_path / "elsewhere")
    file_of(path, A).write_bytes(DAMAGED)

    for _ in range(2):
        with pytest.raises(CorruptEntryError):
            talk.load(A)

    assert names(tmp_path / "elsewhere") == set()
    assert file_of(path, A).read_bytes() == DAMAGED


# Damage.


def damages(data):
    yield from (b"", b"\x00" * len(data), data[:1], data[:-1], data + b"\x00", data[: len(data) // 2], b"\x00" + data[1:])
    chance = random.Random(3)
    for index in range(1, len(data)):
        yield data[:index] + bytes([data[index] ^ 1 << chance.randrange(8)]) + data[index + 1 :]


def test_damaged_file_is_reported_once_and_kept_aside_and_harms_no_other(path, make, caplog):
    make = lambda make=make: Talk(bridge_to(make(fsync=False)))  # noqa: E731
    talk = make()
    talk.write(A, x="s3cr3t", y=[1])
    talk.write(B, x=1)
    whole = file_of(path, A).read_bytes()
    count = 0
    for count, bad in enumerate(damages(whole), 1):
        file_of(path, A).write_bytes(bad)
        caplog.clear()

        with pytest.raises(CorruptEntryError, match="'corrupt'") as caught:
            talk.load(A)

        assert caught.value.committed is False
        assert "s3cr3t" not in str(caught.value)
        assert [(record.name, record.levelname) for record in caplog.records] == [("agent_gantry_state", "ERROR")]
        assert A.digest.hex() not in caplog.text
        assert talk.load(A)[0].head is None
        assert talk.content(B) == {"x": 1}
        assert len(names(path / "corrupt")) == count
    talk.write(A, x=2)
    assert (talk.content(A), make().content(A)) == ({"x": 2}, {"x": 2})
    assert count > 100
    assert file_of(path / "corrupt", A).parent.exists()


def test_file_that_is_put_aside_is_kept_as_it_was(path, talk):
    talk.write(A, x=1)
    file_of(path, A).write_bytes(DAMAGED)

    with pytest.raises(CorruptEntryError):
        talk.load(B, A)

    (aside,) = (path / "corrupt").iterdir()
    assert aside.name.startswith(A.digest.hex())
    assert aside.read_bytes() == DAMAGED
    assert talk.names() == []


def test_commit_to_a_damaged_file_is_refused_and_the_next_finds_nothing(path, talk):
    talk.write(A, x=1)
    late = talk.message(talk.change(A, {"y": put(2)}))
    file_of(path, A).write_bytes(DAMAGED)

    with pytest.raises(CorruptEntryError) as caught:
        talk.ask(late)

    assert caught.value.committed is False
    answer = talk.ask(late)
    assert answer != Committed()
    assert answer.snapshots[0].head is None
    assert talk.content() == {}


def test_several_with_a_damaged_one_are_not_written(path, talk):
    talk.write(A, x=1)
    talk.write(B, x=1)
    message = several(talk, 1, A, B)
    file_of(path, B).write_bytes(DAMAGED)

    with pytest.raises(CorruptEntryError):
        talk.ask(message)

    assert talk.content(A) == {"x": 1}


def test_damaged_file_is_left_out_of_a_list_and_stays_for_the_next_load(path, talk):
    talk.write(A, x=1)
    talk.write(B, x=1)
    file_of(path, A).write_bytes(DAMAGED)

    assert talk.names() == [B]

    with pytest.raises(CorruptEntryError):
        talk.load(A)


def test_file_of_a_newer_version_is_refused_and_never_touched(path, talk):
    talk.write(A, x=1)
    newer = b"\x02" + zlib.crc32(b"\x02whatever").to_bytes(4, "big") + b"whatever"
    file_of(path, A).write_bytes(newer)

    for ask in (lambda: talk.load(A), lambda: talk.write(A, x=2)):
        with pytest.raises(CorruptEntryError, match="newer version"):
            ask()

    assert file_of(path, A).read_bytes() == newer


def test_memory_that_lies_under_anothers_name_is_not_given(path, talk):
    talk.write(A, x="s3cr3t")
    shutil.copy(file_of(path, A), file_of(path, B))

    assert talk.names() == [A]
    with pytest.raises(CorruptEntryError, match="another one's") as caught:
        talk.load(B)

    assert "s3cr3t" not in str(caught.value)
    assert talk.content(A) == {"x": "s3cr3t"}


def journal_of(*moves):
    body = codec.pack([list(move) for move in moves])
    return b"\x01" + zlib.crc32(b"\x01" + body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\x01damaged and long enough",
        b"\x00" * 40,
        journal_of(("new-1", "0" * 64, 2**62)),
        journal_of((1, "0" * 64, b"sum.")),
        journal_of(("new-1", [], b"sum.")),
    ],
    ids=["empty", "cut", "damaged", "zeros", "number for a checksum", "number for a name", "list for a name"],
)
def test_journal_that_cannot_be_read_is_kept_aside(path, talk, make, content, caplog):
    talk.write(A, x=1)
    (path / "journal").write_bytes(content)

    assert Talk(bridge_to(make())).content(A) == talk.content(A) == {"x": 1}

    (aside,) = (path / "corrupt").iterdir()
    assert aside.read_bytes() == content
    assert len(caplog.records) == 1


def test_journal_of_a_newer_version_is_refused_and_left(path, talk):
    talk.write(A, x=1)
    content = b"\x02" + zlib.crc32(b"\x02whatever").to_bytes(4, "big") + b"whatever"
    (path / "journal").write_bytes(content)

    with pytest.raises(StoreError, match="newer version"):
        talk.load(A)

    assert (path / "journal").read_bytes() == content


def test_journal_that_is_damaged_anywhere_stands_in_nobodys_way(path, make, monkeypatch, caplog):
    talk = Talk(bridge_to(make(fsync=False)))
    talk.ask(several(talk, 1, A, B))
    with monkeypatch.context() as patch:
        patch.setattr(
            file_store, "publish", lambda directory, moves, journal, fsync: directory.rename(journal.name, "journal")
        )
        talk.ask(several(talk, 2, A, B))
    journal = (path / "journal").read_bytes()
    files = {each.name: each.read_bytes() for each in path.iterdir()}

    for index in range(len(journal)):
        copy = path.with_name(f"copy{index}")
        copy.mkdir(0o700)
        for name, data in files.items():
            (copy / name).write_bytes(data)
        bad = bytearray(journal)
        bad[index] ^= 1 << index % 8
        (copy / "journal").write_bytes(bad)
        for damaged in (bytes(bad), journal[:index]):
            (copy / "journal").write_bytes(damaged)
            with closing(FileStore(copy, fsync=False)) as again:
                late = Talk(bridge_to(again))
                assert [late.content(each)["n"] for each in (A, B)] == [1, 1]
                assert damaged in [each.read_bytes() for each in copy.glob("corrupt/journal-*")]


@pytest.mark.parametrize("content", [b"", b"\x01", b"torn", b"\xff" * 60])
def test_lease_that_was_torn_is_nobodys(path, talk, content):
    talk.ask(Lease(A, b"you", 1000.0))
    path.joinpath(f"{A.digest.hex()}.lease").write_bytes(content)

    assert talk.ask(Lease(A, b"me", 10.0)) == 0.0
    assert talk.ask(Lease(A, b"you", 10.0)) > 0.0


# Crashes.


class Inode:
    def __init__(self, data=b"", synced=None):
        self.data = data
        self.synced = synced


class Disk:
    """Follows what is done to a directory, and says how it may look after a crash at this moment.

    What has no fsync behind it may be there or not, each by itself: the content of a file, and what was done to names.
    """

    def __init__(self, path, monkeypatch, power_fails):
        self.power_fails = power_fails
        self.names = {each.name: Inode(each.read_bytes(), each.read_bytes()) for each in path.iterdir() if each.is_file()}
        self.durable = dict(self.names)
        self.pending = []
        self.fds = {}
        self.looks = []
        self.allowed = []
        for name in ("open", "write", "fsync", "rename", "unlink"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name), getattr(self, name)))

    def wrapped(self, plain, follow):
        def call(*args, **terms):
            self.look()
            result = plain(*args, **terms)
            follow(result, *args)
            return result

        return call

    def look(self):
        allowed = tuple(self.allowed)
        self.looks.append(({name: inode.data for name, inode in self.names.items()}, allowed))
        for chosen in itertools.product((False, True), repeat=len(self.pending) if self.power_fails else 0):
            names = dict(self.durable)
            for happened, change in zip(chosen, self.pending):
                if happened:
                    change(names)
            if self.power_fails:
                self.looks.append(({name: inode.synced or b"" for name, inode in names.items()}, allowed))

    def change(self, change):
        change(self.names)
        self.pending.append(change)

    def open(self, fd, name, flags, *rest):
        if flags & os.O_CREAT and name not in self.names:
            inode = self.fds[fd] = Inode()
            self.change(lambda names: names.__setitem__(name, inode))
        else:
            self.fds.pop(fd, None)

    def write(self, count, fd, data):
        self.fds[fd].data += bytes(data[:count])

    def fsync(self, _, fd):
        if fd in self.fds:
            self.fds[fd].synced = self.fds[fd].data
        else:
            self.durable = dict(self.names)
            self.pending = []

    def rename(self, _, old, new):
        inode = self.names[old]

        def renamed(names):
            names.pop(old, None)
            names[new] = inode

        self.change(renamed)

    def unlink(self, _, name):
        self.change(lambda names: names.pop(name, None))


def contents(talk):
    return tuple(talk.content(namespace).get("n") for namespace in (A, B, C))


@pytest.mark.parametrize("fsync", [True, False])
def test_crash_at_any_moment_leaves_all_of_a_commit_or_nothing(path, make, monkeypatch, fsync):
    talk = Talk(bridge_to(make(fsync=fsync)))
    talk.ask(several(talk, 0, A, B, C))
    before = (0, 0, 0)
    steps = [
        (lambda: several(talk, 1, A, B), (1, 1, 0)),
        (lambda: several(talk, 2, A), (2, 1, 0)),
        (lambda: several(talk, 3, A, B, C), (3, 3, 3)),
        (lambda: Forget((A, B)), (None, None, 3)),
        (lambda: several(talk, 4, A), (4, None, 3)),
        (lambda: Forget((A,)), (None, None, 3)),
        (lambda: several(talk, 5, B, C), (None, 5, 5)),
    ]
    with monkeypatch.context() as patch:
        # Without fsync, only the crash of a program is survived in any case.
        disk = Disk(path, patch, power_fails=fsync)
        for step, after in steps:
            disk.allowed = [before]
            message = step()
            disk.allowed = [before, after]
            talk.ask(message)
            before = after
            disk.allowed = [after]
            disk.look()

    seen = {}
    for names_, allowed in disk.looks:
        seen.setdefault((tuple(sorted(names_.items())), allowed), names_)
    assert len(seen) > (150 if fsync else 40)
    for index, ((_, allowed), names_) in enumerate(seen.items()):
        copy = path.with_name(f"copy{index}")
        copy.mkdir(0o700)
        for name, data in names_.items():
            (copy / name).write_bytes(data)
        with closing(FileStore(copy, fsync=False)) as again:
            found = contents(Talk(bridge_to(again)))
            assert found in allowed
            late = Talk(bridge_to(again))
            assert late.ask(several(late, 9, A, B, C)) == Committed()
            assert contents(late) == (9, 9, 9)
        assert not [name for name in names(copy) if name.startswith(("new-", "journal", "corrupt"))]
        shutil.rmtree(copy)


def test_new_files_of_living_writers_are_left_alone(path, make):
    talk = Talk(bridge_to(make()))
    talk.write(A, x=1)
    directory = talk.bridge.store._files.opened(None)
    mine = directory.write(b"\x01 not ready")
    (path / f"new-{'0' * 32}").write_bytes(b"of a dead one")

    Talk(bridge_to(make())).load(A)

    assert {name for name in names(path) if name.startswith("new-")} == {mine.name}
    directory.discard([mine])


WRITER = """
    import sys
    from agent_gantry_state import Gantry
    with Gantry(sys.argv[1], session="local", user="ada") as gantry:
        @gantry.with_memory(scope="user", into="other")
        @gantry.with_memory
        def step(memory, other):
            n = memory.get("n", 0) + 1
            memory["n"] = other["n"] = n
            memory["large"] = [n] * 3000
            other[f"k{n % 5}"] = n
            return n
        while True:
            print(step(), flush=True)
"""


@pytest.mark.parametrize("options", ["", "?fsync=off"])
def test_killed_writer_leaves_nothing_torn_and_takes_nothing_back(path, options):
    url = f"file:///{path}{options}"
    chance = random.Random(7)
    acknowledged = 0
    for _ in range(2):
        # Several at once, for starting one takes longer than everything else here.
        writers = [python(WRITER, url) for _ in range(5)]
        for process in writers:
            process.stdout.readline()
        for process in writers:
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        for process in writers:
            out, _ = process.communicate(timeout=30)
            acknowledged = max([acknowledged, *(int(line) for line in out.splitlines() if line.strip().isdigit())])
        with Gantry(url, session="local", user="ada") as gantry:
            with gantry.memory() as memory, gantry.memory("user") as other:
                assert memory["n"] == other["n"] >= acknowledged
                assert memory["large"] == [memory["n"]] * 3000
                assert other[f"k{other['n'] % 5}"] == other["n"]
    assert {name for name in names(path) if len(name) != 64} == {"agent-gantry-state", "lock"}


# What the system refuses.

CALLS = ("open", "write", "utime", "fsync", "rename", "unlink")


class Failing:
    """Lets the call to the system fail whose turn it is."""

    def __init__(self, monkeypatch, code):
        self.code = code
        self.left = -1
        self.last = ""
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name, plain):
        def call(*args, **terms):
            self.left -= 1
            if self.left == 0:
                self.last = name
                raise OSError(self.code, os.strerror(self.code))
            return plain(*args, **terms)

        return call


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENAMETOOLONG])
@pytest.mark.parametrize("count", [1, 2])
def test_failure_at_any_moment_says_the_truth_and_leaves_the_store_usable(path, make, monkeypatch, code, count):
    namespaces = (A, B)[:count]
    talk = Talk(bridge_to(make()))
    talk.ask(several(talk, 0, *namespaces))
    n, outcomes = 0, set()
    failing = Failing(monkeypatch, code)
    for call in itertools.count(1):
        before, n = n, n + 1
        message = several(talk, n, *namespaces)
        failing.left = call
        try:
            talk.ask(message)
        except StoreError as error:
            outcome = error.committed
        else:
            outcome = True
        reached, failing.left = failing.left <= 0, -1

        with closing(FileStore(path)) as again:
            found = {Talk(bridge_to(again)).content(namespace)["n"] for namespace in namespaces}
        assert found in {True: [{n}], False: [{before}], None: [{before}, {n}]}[outcome]
        (n,) = found
        assert {talk.content(namespace)["n"] for namespace in namespaces} == {n}
        assert {name for name in names(path) if len(name) != 64} == {"agent-gantry-state", "lock"}
        if not reached:
            break
        # What is tidied up later may fail unseen.
        assert outcome is not True or failing.last == "unlink"
        outcomes.add(outcome)

    assert outcomes == {False, None}
    assert call > 5


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, StoreUnavailableError, "disk is full"),
        (errno.EDQUOT, StoreUnavailableError, "disk is full"),
        (errno.EFBIG, StoreUnavailableError, "disk is full"),
        (errno.EIO, StoreUnavailableError, "the disk reports an error"),
        (errno.EROFS, StoreError, "read-only"),
        (errno.EACCES, StoreError, "read-only"),
        (errno.EMFILE, StoreUnavailableError, "too many files"),
        (errno.EINVAL, StoreError, "reports: Invalid argument"),
    ],
)
def test_errors_of_the_system_are_ours_in_words_that_help(talk, monkeypatch, code, kind, words):
    talk.write(A, x=1)
    message = talk.message(talk.change(A, {"x": put(2)}))
    failing = Failing(monkeypatch, code)
    failing.left = 1

    with pytest.raises(kind, match=words) as caught:
        talk.ask(message)

    assert type(caught.value) is kind
    assert caught.value.committed is False


def test_full_disk_is_a_typed_error_and_takes_nothing(path):
    script = """
        import os, resource, sys
        from agent_gantry_state import Gantry, StoreUnavailableError
        with Gantry("file:///" + sys.argv[1], session="local") as gantry:
            with gantry.memory() as memory:
                memory["x"] = 1
            before = sorted(os.listdir(sys.argv[1]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
            for _ in range(2):
                try:
                    with gantry.memory() as memory:
                        memory["x"] = "s3cr3t" * 50_000
                except StoreUnavailableError as error:
                    print(error.committed, "disk is full" in str(error), "s3cr3t" in str(error))
            print(sorted(os.listdir(sys.argv[1])) == before)
            with gantry.memory() as memory:
                print(memory["x"])
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with gantry.memory() as memory:
                memory["x"] = "s3cr3t" * 50_000
            with gantry.memory() as memory:
                print(len(memory["x"]))
    """

    assert finished(python(script, path)).split() == ["False", "True", "False"] * 2 + ["True", "1", "300000"]


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    # Lazily: what was caught holds on to frames in which the directory is open.
    subprocess.run(["umount", "-l", place], check=True)


def test_disk_that_is_truly_full_is_a_typed_error_and_takes_nothing(small_disk, make):
    talk = Talk(bridge_to(make(small_disk / "state")))
    talk.ask(several(talk, 1, A, B))
    message = talk.message(talk.change(A, {"n": put(b"x" * 400_000)}), talk.change(B, {"n": put(b"x" * 700_000)}))

    with pytest.raises(StoreUnavailableError, match="disk is full") as caught:
        talk.ask(message)

    assert caught.value.committed is False
    assert len(names(small_disk / "state")) == 4
    assert (talk.content(A), talk.content(B)) == ({"n": 1}, {"n": 1})
    talk.write(A, n=b"x" * 300_000)
    assert talk.content(B) == {"n": 1}


# Clean-up.


def test_directory_does_not_grow_with_what_is_expired(path, make):
    clock = Clock()
    talk = Talk(bridge_to(make(fsync=False, clock=clock)))
    for index in range(200):
        namespace = Namespace("session", f"s{index}", "app")
        talk.commit(namespace, {"x": put(1, ttl=10.0), "y": put(1, ttl=5.0, slides=True)}, touch=True)
        talk.ask(Lease(namespace, b"me", 10.0))
        clock.now += 1.0
    # Of 400 files, about 20 are not expired.
    assert len(names(path)) < 100
    (path / f"new-{'0' * 32}").write_bytes(b"left behind")
    clock.now += 100.0
    for n in range(32 * 60):
        talk.write(A, x=n)
        if n % 64 == 0 and len(names(path)) == 3:
            break

    assert names(path) == {"agent-gantry-state", "lock", A.digest.hex()}
    assert talk.content(A) == {"x": n}


def test_what_lives_is_not_swept(path, make):
    clock = Clock()
    talk = Talk(bridge_to(make(fsync=False, clock=clock)))
    namespaces = [Namespace("session", f"s{index}", "app") for index in range(40)]
    for index, namespace in enumerate(namespaces):
        talk.write(namespace, x=put(1, ttl=10.0), y=put(1, ttl=1000.0) if index % 2 else 1)
    talk.ask(Lease(B, b"you", 1000.0))
    clock.now += 100

    for n in range(500):
        talk.write(A, x=n)

    assert set(talk.names()) == {A, *namespaces}
    assert talk.ask(Lease(B, b"me", 1.0)) == 900.0


def test_sweep_of_a_damaged_file_leaves_it_for_its_load(path, make):
    talk = Talk(bridge_to(make(fsync=False)))
    talk.write(B, x=1)
    file_of(path, B).write_bytes(DAMAGED)

    for n in range(200):
        talk.write(A, x=n)

    with pytest.raises(CorruptEntryError):
        talk.load(B)


# What a store keeps of what it has read.


@pytest.fixture
def reads(monkeypatch):
    """Notes the files that are read."""
    seen = []
    plain = file_store.Directory.read

    def read(self, name):
        seen.append(name)
        return plain(self, name)

    monkeypatch.setattr(file_store.Directory, "read", read)
    return seen


def test_memory_that_nobody_changed_is_not_read_again(talk, reads):
    talk.write(A, **{f"k{index}": index for index in range(100)}, box=[1])
    reads.clear()

    before, again = talk.load(A), talk.load(A)

    assert again[0] is before[0]
    talk.write(A, k1="new", box=[2])
    assert talk.content(A) == {**{f"k{index}": index for index in range(100)}, "k1": "new", "box": [2]}
    assert reads == []


def test_what_is_kept_is_what_another_store_would_read(path, make):
    clock, chance = Clock(), random.Random(5)
    one, two = (Talk(bridge_to(make(clock=clock, fsync=False))) for _ in range(2))
    fields = ("head", "owner", "versions", "packed", "expires_at", "slides", "touched", "born", "first_expiry")
    for step in range(300):
        talk = one if chance.random() < 0.7 else two
        there = list(talk.load(A)[0].values)
        keys = [chance.choice(["a", "b", "c", "d", "\ud800", ""]) for _ in range(chance.randrange(3))]
        terms = {"ttl": chance.choice([None, 3.0, 30.0]), "slides": chance.random() < 0.5} if chance.random() < 0.2 else {}
        puts = {
            key: put(chance.choice([step, [step], None, f"s{step}"]), last=chance.random() < 0.2, **terms) for key in keys
        }
        deletes = [key for key in there if key not in puts and chance.random() < 0.15]
        message = talk.message(talk.change(A, puts, deletes=deletes, touch=chance.random() < 0.2))
        message.version = os.urandom(8)
        assert talk.ask(message) == Committed()
        clock.now += chance.choice([0.0, 0.0, 0.1, 4.0])
        if chance.random() < 0.02:
            talk.ask(Forget((A,)))

        with closing(FileStore(path, clock=clock)) as fresh:
            seen = [each.load(A)[0] for each in (one, two, Talk(bridge_to(fresh)))]
        for snapshot in seen[:2]:
            assert list(snapshot.values.items()) == list(seen[2].values.items())
            assert list(snapshot.versions) == list(seen[2].versions)
            assert [getattr(snapshot, name) for name in fields] == [getattr(seen[2], name) for name in fields]


def test_file_with_the_inode_and_the_moment_of_the_one_before_is_told_from_it(path, make, monkeypatch):
    # The next file gets the inode of one that was just removed, within one tick of the clock of the disk.
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    one, two = (Talk(bridge_to(make(fsync=False))) for _ in range(2))
    one.write(A, x=0)
    reused = 0
    for n in range(1, 60):
        one.load(A)
        before = file_of(path, A).stat()
        # Its inode is free when the first of these is written, and then given to the second.
        two.write(A, x=-n)
        two.write(A, x=n)
        after = file_of(path, A).stat()
        reused += (before.st_ino, before.st_size) == (after.st_ino, after.st_size)
        assert one.content() == {"x": n}

    if not reused:
        pytest.skip("this disk gives no inode twice so soon")


def test_file_on_a_disk_that_keeps_no_nanoseconds_is_read_each_time(talk, make, monkeypatch, reads):
    plain = os.utime
    monkeypatch.setattr(os, "utime", lambda fd, ns: plain(fd, ns=tuple(each // 10**9 * 10**9 for each in ns)))
    talk.write(A, x=1)
    talk.write(A, x=2)
    assert talk.ask(several(talk, 1, A, B)) == Committed()
    reads.clear()

    assert talk.content(A) == talk.content(A) == {"x": 2, "n": 1}

    assert reads == [A.digest.hex()] * 2
    assert [list(each.values) for each in talk.load(A, B)] == [["x", "n"], ["n"]]


# Two stores, several processes.


def test_two_stores_on_one_directory_see_each_others_commits_at_once(make):
    one, two = (Talk(bridge_to(make())) for _ in range(2))
    one.write(A, x=1)
    late = two.change(A, {"x": put(2)})
    one.write(A, x=3)

    assert two.content() == {"x": 3}
    assert two.send(late) != Committed()
    two.write(A, x=4)
    assert one.content() == {"x": 4}


def test_commit_that_came_between_preparing_and_writing_is_not_lost(make, monkeypatch):
    one, two = (Talk(bridge_to(make())) for _ in range(2))
    one.write(A, x=1, y=1)
    fits, moved = one.change(A, {"x": put(2)}), one.change(A, {"y": put(2)})
    store = one.bridge.store
    plain = store._published

    def published(*args):
        two.write(A, y=9)
        return plain(*args)

    monkeypatch.setattr(store, "_published", published)

    assert one.send(fits) == Committed()
    assert two.content() == {"x": 2, "y": 9}
    assert one.send(moved) != Committed()
    assert two.content() == {"x": 2, "y": 9}
    assert one.send(one.change(NOWHERE, whole=True)) == Committed()


def test_load_of_several_is_of_one_moment_whatever_comes_between(make, monkeypatch):
    one, two = (Talk(bridge_to(make())) for _ in range(2))
    two.ask(several(two, 0, A, B))
    images = one.bridge.store._images
    plain, left = images.found, [1, 2, 3, 4, 5, 6, 7, 8]

    def found(directory, namespace):
        answer = plain(directory, namespace)
        if left and not one.bridge.store._files._turn.locked():
            two.ask(several(two, left.pop(0), A, B))
        return answer

    monkeypatch.setattr(images, "found", found)

    while left:
        a, b = one.load(A, B)
        assert a.values["n"] == b.values["n"]


HAMMER = """
    import sys
    from agent_gantry_state import Gantry
    url, me, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with Gantry(url, session="local", user="ada") as gantry:
        @gantry.with_memory(scope="user", into="other")
        @gantry.with_memory
        def note(n, memory, other):
            memory.setdefault("log", []).append([me, n])
            memory.add("count", 1)
            memory[f"of {me}"] = n
            other.add("count", 1)
        @gantry.with_memory(scope="user", into="other")
        @gantry.with_memory
        def look(memory, other):
            return memory.get("count"), other.get("count")
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(times):
            note(n)
            one, two = look()
            assert one == two, (one, two)
"""


@pytest.mark.parametrize("options", ["", "?fsync=off"])
def test_four_processes_lose_nothing_and_double_nothing(path, options):
    url = f"file:///{path}{options}"
    processes = [python(HAMMER, url, me, 50, stdin=subprocess.PIPE) for me in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        finished(process)

    with Gantry(url, session="local", user="ada") as gantry, gantry.memory() as memory, gantry.memory("user") as other:
        assert memory["count"] == other["count"] == 200
        assert sorted(memory["log"]) == [[me, n] for me in range(4) for n in range(50)]
        assert [n for me, n in memory["log"] if me == 0] == list(range(50))
        assert {key: n for key, n in memory.items() if key.startswith("of ")} == {f"of {me}": 49 for me in range(4)}


# Waiting.


def test_lock_of_another_process_past_the_timeout_is_a_typed_error(path, store, talk):
    talk.write(A, x=1)
    message = talk.message(talk.change(A, {"x": put(2)}))
    message.timeout = 0.05

    with locked(path):
        for ask in (
            lambda: store.commit(message),
            lambda: store.forget(Forget((A,), timeout=0.05)),
            lambda: store.lease(Lease(A, b"me", 1.0, timeout=0.05)),
        ):
            with pytest.raises(StoreTimeoutError, match="another process") as caught:
                ask()
            assert (caught.value.committed, caught.value.transient) == (False, True)
        assert talk.content() == {"x": 1}

    assert len(names(path)) == 3
    assert store.commit(message) == Committed()


def test_thread_past_the_timeout_is_told_who_was_at_it(store, talk):
    talk.write(A, x=1)

    with store._files._turn, pytest.raises(StoreTimeoutError, match="other calls of this program"):
        store.lease(Lease(A, b"me", 1.0, timeout=0.01))


def test_commit_waits_for_another_processs_lock_and_gets_through(path, store, talk):
    talk.write(A, x=1)
    message = talk.message(talk.change(A, {"x": put(2)}))
    with locked_for(path, 0.1):
        assert store.commit(message) == Committed()


def test_readers_do_not_wait_for_a_writer(path, store, talk):
    talk.write(A, x=1)

    with locked(path), store._files._turn:
        assert store.load(Load((A,), timeout=0.0)).snapshots[0].values == {"x": 1}
        assert store.attempt(Load((A, B))).snapshots[0].values == {"x": 1}
        assert len(store.list(List(timeout=0.0)).listed) == 1


def test_reader_waits_for_a_commit_of_several_that_is_half_visible(path, store, talk):
    talk.ask(several(talk, 1, A, B))
    (path / "journal").write_bytes(b"")

    with locked(path):
        for namespaces in ((A,), (A, B)):
            with pytest.raises(StoreTimeoutError):
                store.load(Load(namespaces, timeout=0.01))
            with pytest.raises(WouldBlock):
                store.attempt(Load(namespaces))


def test_attempt_blocks_for_nobody_and_for_no_disk(path, make, monkeypatch):
    store, quick = make(), make(fsync=False)
    for each in (store, quick):
        with pytest.raises(WouldBlock):
            each.attempt(Load((A,)))
        each.load(Load((A,)))
    talk = Talk(bridge_to(quick))
    message = talk.message(talk.change(A, {"x": put(2)}))
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("nothing may wait for the disk"))

    for late in (message, Forget((A,)), List()):
        with pytest.raises(WouldBlock):
            store.attempt(late)
    for lock in (locked(path), quick._files._turn):
        with lock, pytest.raises(WouldBlock):
            quick.attempt(message)
    assert len(names(path)) == 2

    assert quick.attempt(message) == Committed()
    assert store.attempt(Load((A,))).snapshots[0].values == {"x": 2}
    assert store.attempt(Lease(A, b"me", 1.0)) == 0.0
    assert quick.attempt(several(talk, 1, A, B)) == Committed()
    quick.attempt(Forget((A, B)))


def test_bridge_is_the_one_for_local_stores_and_their_answers_cannot_be_lost(store):
    bridge = bridge_to(store)

    assert type(bridge) is Local
    assert bridge.resendable is False


@pytest.mark.anyio
@pytest.mark.parametrize("options", ["", "?fsync=off"])
async def test_event_loop_goes_on_while_another_process_holds_the_lock(path, options):
    async with Gantry(f"file:///{path}{options}", session="local") as gantry:

        @gantry.with_memory
        async def note(n, memory):
            memory.setdefault("log", []).append(n)

        await note(0)
        gaps = []

        async def tick():
            while True:
                before = time.monotonic()
                await anyio.sleep(0.01)
                gaps.append(time.monotonic() - before)

        with locked(path) as unlock:
            async with anyio.create_task_group() as group:
                group.start_soon(tick)
                async with anyio.create_task_group() as calls:
                    for n in range(1, 4):
                        calls.start_soon(note, n)
                    await anyio.sleep(1.0)
                    unlock()
                group.cancel_scope.cancel()

        assert len(gaps) > 20
        assert max(gaps) < 0.5
        async with gantry.memory() as memory:
            assert sorted(memory["log"]) == [0, 1, 2, 3]


@pytest.mark.anyio
async def test_cancelled_caller_does_not_cut_a_commit_that_waits(path):
    async with Gantry(f"file:///{path}", session="local") as gantry:

        @gantry.with_memory
        async def note(n, memory):
            memory["n"] = n

        await note(1)
        with locked_for(path, 0.3):
            async with anyio.create_task_group() as group:
                group.start_soon(note, 2)
                await anyio.sleep(0.1)
                group.cancel_scope.cancel()

        async with gantry.memory() as memory:
            assert memory["n"] == 2


@pytest.mark.anyio
async def test_no_wait_for_the_disk_happens_on_the_loops_thread(path, monkeypatch):
    where, plain = [], os.fsync

    def noting(fd):
        where.append(threading.get_ident())
        plain(fd)

    monkeypatch.setattr(os, "fsync", noting)
    async with Gantry(f"file:///{path}", session="local") as gantry:

        @gantry.with_memory
        async def note(n, memory):
            memory["n"] = n

        for n in range(5):
            await note(n)

    assert len(where) >= 10
    assert threading.get_ident() not in where


@pytest.mark.anyio
async def test_usual_commit_without_fsync_needs_no_other_thread(path, monkeypatch):
    where, plain = [], os.rename

    def noting(*args, **terms):
        where.append(threading.get_ident())
        plain(*args, **terms)

    async with Gantry(f"file:///{path}?fsync=off", session="local") as gantry:

        @gantry.with_memory
        async def note(n, memory):
            memory["n"] = n

        await note(0)
        monkeypatch.setattr(os, "rename", noting)
        for n in range(1, 50):
            await note(n)

    assert where == [threading.get_ident()] * 49


# Closing.


def test_closed_store_refuses_everything(store, talk):
    talk.write(A, x=1)
    store.close()
    store.close()

    for message in (Load((A,)), Commit(b"", b"v" * 8, ()), Forget((A,)), List(), Lease(A, b"me", 1.0)):
        with pytest.raises(StoreClosedError):
            talk.ask(message)
        with pytest.raises(StoreClosedError):
            store.attempt(message)


def descriptors():
    return len(list(pathlib.Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def test_descriptors_are_few_and_closed_in_the_end(path):
    # Those of other tests' stores.
    gc.collect()
    before = descriptors()
    store = FileStore(path, fsync=False)
    talk = Talk(bridge_to(store))
    for n in range(100):
        talk.write(A, x=n)
        talk.ask(several(talk, n, A, B))
        talk.names()
    assert descriptors() <= before + 3
    store.close()
    gc.collect()

    assert descriptors() == before


def test_close_harms_no_call_that_runs(path, store):
    wrote, errors = threading.Barrier(5), []

    def work(number):
        talk, namespace, done = Talk(bridge_to(store)), Namespace("session", f"s{number}", "app"), 0
        try:
            while True:
                talk.write(namespace, n=done + 1)
                done += 1
                if done == 1:
                    wrote.wait()
        except StoreError as error:
            errors.append((type(error), error.committed, namespace, done))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wrote.wait()
    store.close()
    for thread in threads:
        thread.join()

    assert {(kind, committed) for kind, committed, _, _ in errors} == {(StoreClosedError, False)}
    with closing(FileStore(path)) as again:
        for _, _, namespace, done in errors:
            assert Talk(bridge_to(again)).content(namespace) == {"n": done}
    assert not [name for name in names(path) if name.startswith("new-")]


@pytest.mark.parametrize("style", ["sync", "async"])
def test_program_that_forgot_to_close_ends_well(path, style):
    script = """
        import asyncio, sys
        from agent_gantry_state import Gantry
        gantry = Gantry(sys.argv[1], session="local")
        @gantry.with_memory
        def note(memory):
            memory["x"] = 1
        @gantry.with_memory
        async def anote(memory):
            memory["x"] = 1
        note() if sys.argv[2] == "sync" else asyncio.run(anote())
        print("done")
    """

    assert finished(python(script, f"file:///{path}", style), 20) == "done\n"

    with Gantry(f"file:///{path}", session="local") as gantry, gantry.memory() as memory:
        assert memory["x"] == 1


# Forks.


def test_both_sides_of_a_fork_write_and_nothing_is_lost(path):
    script = """
        import os, sys
        from agent_gantry_state import Gantry
        gantry = Gantry(sys.argv[1], session="local")
        @gantry.with_memory
        def note(who, n, memory):
            memory.setdefault("log", []).append([who, n])
        note("both", 0)
        child = os.fork()
        who = "parent" if child else "child"
        for n in range(30):
            note(who, n)
        if child:
            assert os.waitpid(child, 0)[1] == 0
            gantry.close()
    """
    finished(python(script, f"file:///{path}"))

    with Gantry(f"file:///{path}", session="local") as gantry, gantry.memory() as memory:
        both = [["both", 0], *(["child", n] for n in range(30)), *(["parent", n] for n in range(30))]
        assert sorted(memory["log"]) == both


def test_fork_while_other_threads_write_harms_neither_side(path):
    script = """
        import os, sys, threading, warnings
        from agent_gantry_state import Gantry
        warnings.simplefilter("ignore", DeprecationWarning)
        gantry = Gantry(sys.argv[1], session="local")
        @gantry.with_memory
        def add(memory):
            memory.add("n", 1)
        add()
        stop = threading.Event()
        done = []
        def work():
            while not stop.is_set():
                add()
                done.append(1)
        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        children = []
        for _ in range(5):
            child = os.fork()
            if not child:
                for _ in range(10):
                    add()
                os._exit(0)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        print(1 + len(done) + 50)
        gantry.close()
    """
    out = finished(python(script, f"file:///{path}"))

    with Gantry(f"file:///{path}", session="local") as gantry, gantry.memory() as memory:
        assert memory["n"] == int(out)


def test_child_does_not_share_the_lock_that_its_parent_holds(path):
    script = """
        import os, sys
        from agent_gantry_state.errors import StoreTimeoutError
        from agent_gantry_state.stores.file import FileStore
        from agent_gantry_state.stores.protocol import Lease
        from agent_gantry_state.testing import A
        store = FileStore(sys.argv[1])
        store.lease(Lease(A, b"x", 1.0))
        directory = store._files.opened(None)
        store._files.acquire(directory, None)
        child = os.fork()
        if not child:
            try:
                store.lease(Lease(A, b"x", 1.0, timeout=0.05))
            except StoreTimeoutError as error:
                os._exit(7 if "another process" in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        store._files.release(directory)
        store.lease(Lease(A, b"x", 1.0))
    """
    finished(python(script, path))


# Through a gantry.


def test_clock_of_a_gantry_holds_for_its_store(path):
    clock = Clock()
    with Gantry(f"file:///{path}", scopes={"session": Scope(ttl=60)}) as gantry:

        @gantry.with_memory
        def count(memory):
            return memory.add("n", 1)

        with gantry.override(session="s1", clock=clock):
            assert (count(), count()) == (1, 2)
            clock.now += 60
            assert count() == 1


def test_nothing_of_ids_or_values_is_said_in_errors(path, make):
    store = make()
    talk = Talk(bridge_to(store))
    secret = Namespace("session", "s3cr3t-id", "app")
    talk.write(secret, x="s3cr3t-value")
    message = talk.message(talk.change(secret, {"x": put("s3cr3t-value")}))
    message.timeout = 0.0
    texts = []
    with locked(path), pytest.raises(StoreError) as caught:
        store.commit(message)
    texts.append(str(caught.value))
    store.close()
    with pytest.raises(StoreError) as caught:
        store.commit(message)
    texts.append(str(caught.value))

    assert all("s3cr3t" not in text for text in texts)
    assert "s3cr3t" not in repr(store)


@pytest.mark.anyio
async def test_async_tools_remember_in_files(path):
    for expected in (1, 2):
        async with Gantry(f"file:///{path}", session="local") as gantry:

            @gantry.with_memory
            async def count(memory):
                memory.setdefault("log", []).append("x")
                return memory.add("n", 1)

            assert await count() == expected


def test_change_of_nothing_and_of_no_namespace_is_committed(path, store):
    assert store.commit(Commit(b"", b"v" * 8, ())) == Committed()
    assert store.commit(Commit(b"", b"v" * 8, (Change(A, None, {}, (), {}),))) == Committed()
    assert names(path) == {"agent-gantry-state", "lock"}


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_path_that_names_no_directory_is_refused(path):
    with pytest.raises(ValueError, match="path must be that of a directory"):
        FileStore(path)


def test_fsync_that_is_no_bool_is_refused(tmp_path):
    with pytest.raises(TypeError, match="fsync must be True or False, not str"):
        FileStore(tmp_path / "state", fsync="off")
