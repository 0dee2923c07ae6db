"""Whatever bytes a reader is given, it reads them or says that they are damaged; and nothing in them is executed."""

from __future__ import annotations

import struct
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path

import pytest
from hostile.fuzz import CORPUS, READERS, one_input
from hostile.soaks import inputs
from hostile.values import EDGES, LOOK_ALIKES

from agent_gantry_state import CorruptEntryError, Namespace
from agent_gantry_state.stores import redis_layout
from agent_gantry_state.stores.protocol import Snapshot
from agent_gantry_state.stores.rows import sealed
from agent_gantry_state.stores.whole import Image, write_image
from agent_gantry_state.testing import VALUES

pytestmark = pytest.mark.once

NAMES = sorted(path.name for path in CORPUS.iterdir())


def test_every_input_that_the_fuzzer_has_kept_is_read_or_damaged():
    assert len(NAMES) > 100
    assert sum((CORPUS / name).stat().st_size for name in NAMES) < 200_000
    assert {(CORPUS / name).read_bytes()[0] % len(READERS) for name in NAMES} == set(range(len(READERS)))
    for name in NAMES:
        try:
            one_input((CORPUS / name).read_bytes())
        except BaseException as error:
            raise AssertionError(f"corpus/{name}: {error!r}") from error


@pytest.mark.parametrize("what", ["image", "item", "journal"])
def test_the_fuzzer_gets_behind_the_checksums(what):
    """What it finds there is nothing if each of its inputs is refused for a checksum that is not its fault."""
    body = write_image(Image(Namespace("session", "s1", "app"), Snapshot({"x": 1}, {}, {"x": b"v"}, b"h"), {}))[5:]
    inputs = {"image": body, "item": b"\0" + bytes(8) + body, "journal": b"\x91\x93\xa1a\xa1b\xc4\x01c"}
    (reader,) = [reader for reader in READERS if reader.__name__ == f"_{what}"]
    seen = []
    sys.setprofile(lambda frame, event, argument: seen.append(frame.f_code.co_name))
    try:
        reader(inputs[what])
    finally:
        sys.setprofile(None)

    assert "unpack" in seen


def test_every_input_near_to_those_is_read_or_damaged():
    assert inputs(range(2), 2000) == 4000


def test_a_redis_hash_with_a_field_that_looks_like_a_key_of_ours_is_damaged():
    """What the fuzzer found: two fields whose names differ in the byte before the key's."""
    head = struct.pack(">B8sd8sQdddIIBI", 1, b"h" * 8, 0.0, b"b" * 8, 1, 0.0, 0.0, 0.0, 1, 0, 0, 0)
    entry = struct.pack(">8sQBd", b"v" * 8, 1, 0, 0.0) + sealed(b"b", b"\x01\x01")
    namespace = Namespace("session", "s1", "app")
    place = redis_layout.place_of(b"p:", namespace)
    fields = [b"h", head + place.address, b"kb", entry]
    assert redis_layout.whole(fields, place)[0].values == {"b": 1}

    with pytest.raises(CorruptEntryError):
        redis_layout.whole([*fields, b"jb", entry], place)


PROGRAM = """
    import sys

    from agent_gantry_state import CorruptEntryError, Gantry, codec
    from hostile.fuzz import CORPUS, one_input
    from hostile.values import EDGES, LOOK_ALIKES
    from agent_gantry_state.testing import VALUES

    where, app, who = sys.argv[1:]
    folder = "/" + where.partition("//")[2].lstrip("/")
    gantry = Gantry(where, app=app, user=who)

    def load():
        with gantry.memory("user") as memory:
            return [*memory.items()]

    # What is imported when it is first needed is none of the bytes' doing.
    load()
    inputs = [path.read_bytes() for path in CORPUS.iterdir()]
    records = [codec.encode(value) for value in (*VALUES, *EDGES, *LOOK_ALIKES)]
    repr(CorruptEntryError(""))
    events = []

    harmful = "import exec compile code pickle marshal ctypes cpython subprocess shutil os open webbrowser function".split()
    # A store opens what is its own, and looks for it.
    looks = ("os.scandir", "os.listdir", "os.chmod", "os.mkdir")

    def hook(event, arguments):
        if event.split(".")[0] not in harmful or event in looks:
            return
        if event == "open" and (not (arguments[2] or 0) & 3 or folder in str(arguments[0])):
            return
        events.append((event, str(arguments)[:80]))

    sys.addaudithook(hook)
    other = Gantry(where, app=app, user=who)
    with other.memory("user") as memory:
        found = [*memory.items()]
    load()
    for record in records:
        codec.decode(record)
        for at in range(min(len(record), 60)):
            try:
                codec.decode(record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :])
            except CorruptEntryError:
                pass
    for data in inputs:
        one_input(data)
    seen = [*events]
    import colorsys
    eval("1")
    print(len(found), seen, {event for event, _ in events} >= {"import", "compile", "exec"})
    gantry.close()
    other.close()
"""


@pytest.mark.parametrize("name", ["file", "sqlite", "redis-8", "postgresql", "memcached"])
def test_reading_executes_imports_and_writes_nothing(name, all_places):
    (place,) = [each for each in all_places if each.name == name]
    who = uuid.uuid4().hex
    values = (*VALUES, *EDGES, *LOOK_ALIKES)
    with place.gantry.memory("user", user=who) as memory:
        memory.update({f"v{index}": value for index, value in enumerate(values)})

    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), place.where, place.app, who],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": f"{Path(__file__).parents[1]}:{Path(__file__).parents[2]}", "PATH": ""},
    )

    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip() == f"{len(values)} [] True", ran.stdout[-3000:]
