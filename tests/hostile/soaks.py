"""The long forms: ids and values by chance on all stores, and the decoder under a fuzzer, until the time is over."""

from __future__ import annotations

import importlib.util
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hostile.fuzz import CORPUS, one_input
from hostile.ids import addresses, likes
from hostile.places import Place, places
from hostile.values import values
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from isolation.soaks import ALL_PLACES
from soak import seeds

from agent_gantry_state import MemoryTooLargeError, Namespace, SessionOwnerError, codec
from agent_gantry_state.stores.protocol import Forget, List, Put

__all__ = ["check_addresses", "check_people", "check_round_trip", "contents", "decoder", "ids", "inputs"]


def check_round_trip(all_places: Sequence[Place], content: dict[str, Any]) -> None:
    """Write *content* on each store and read it with another gantry, whole and in order."""
    packed = {key: codec.pack(value) for key, value in content.items()}
    for place in all_places:
        who = uuid.uuid4().hex
        try:
            with place.gantry.memory("user", user=who) as memory:
                memory.update(content)
        except MemoryTooLargeError:
            assert sum(map(len, packed.values())) > 800_000
            continue
        with place.reader.memory("user", user=who) as memory:
            found = [(key, type(value), codec.pack(value)) for key, value in memory.items()]
        assert found == [(key, type(content[key]), packed[key]) for key in content], place.name


def check_people(all_places: Sequence[Place], names: Sequence[str]) -> None:
    """Each of *names* has memory and a session of its own on each store: written, read, owned, erased."""
    for place in all_places:
        gantry, reader = place.gantry, place.reader
        for name in names:
            with gantry.memory("user", user=name) as memory:
                assert memory == {}, place.name
                memory["name"] = name
            with gantry.memory("session", session=name, user=name) as memory:
                assert memory == {}, place.name
                memory[name.lstrip("\0") or "-"] = name
        for index, name in enumerate(names):
            with reader.memory("user", user=name) as memory:
                assert memory == {"name": name}, place.name
            other = names[index - 1]
            if other != name:
                try:
                    with reader.memory("session", session=name, user=other) as memory:
                        raise AssertionError(f"{place.name}: the session of another was opened")
                except SessionOwnerError as error:
                    told = str(error)
                assert len(name) < 4 or name not in told
        # Erasing one leaves the others.
        for index, name in enumerate(names):
            gantry.forget("user", user=name)
            gantry.forget("session", session=name)
            for at, each in enumerate(names):
                if at % 5 == index % 5 or len(names) < 6:
                    with reader.memory("user", user=each) as memory:
                        assert memory == ({} if at <= index else {"name": each}), place.name


def check_addresses(all_places: Sequence[Place], parts: Sequence[tuple[str, str, str]]) -> None:
    """Each address has a memory of its own on each store, is listed as it is, and is erased alone."""
    namespaces = [Namespace(scope, id, app) for app, scope, id in parts]
    for place in all_places:
        talk, other = place.talk, place.other_talk
        for index, namespace in enumerate(namespaces):
            assert talk.content(namespace) == {}, place.name
            talk.commit(namespace, {"x": Put(index)}, owner=namespace.id)
        assert [other.content(namespace) for namespace in namespaces] == [{"x": n} for n in range(len(namespaces))]
        if place.lists:
            for namespace in namespaces:
                page = other.ask(List(app=namespace.app, scope=namespace.scope, owner=namespace.id))
                mine = [
                    each
                    for each in namespaces
                    if (each.app, each.scope, each.id) == (namespace.app, namespace.scope, namespace.id)
                ]
                assert [(each.namespace, each.owner) for each in page.listed] == [(each, each.id) for each in mine], (
                    place.name
                )
        for index, namespace in enumerate(namespaces):
            talk.ask(Forget((namespace,)))
            left = [{} if at <= index else {"x": at} for at in range(len(namespaces))]
            assert [other.content(each) for each in namespaces] == left, place.name


def inputs(numbers: Iterable[int], each: int) -> int:
    """Give the readers inputs that are made of those of the corpus by chance; how many."""
    kept = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    count = 0
    for number in numbers:
        rng = random.Random(number)
        for _ in range(each):
            data = bytearray(rng.choice(kept))
            other = rng.choice(kept)
            for _ in range(rng.randint(1, 4)):
                at = rng.randint(1, max(len(data), 1))
                how = rng.randrange(5)
                if how == 0:
                    data[at : at + 1] = bytes([rng.randrange(256)])
                elif how == 1:
                    del data[at : at + rng.randint(1, 9)]
                elif how == 2:
                    data[at:at] = other[rng.randint(0, len(other)) :][:40]
                elif how == 3:
                    data[at : at + 4] = rng.choice(
                        (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xf8\x00\x00", b"\xc7\xff\x01")
                    )
                else:
                    data += other[1:]
            try:
                one_input(bytes(data))
            except BaseException as error:
                raise AssertionError(f"seed {number}: {bytes(data).hex()}: {error!r}") from error
            count += 1
    return count


def ids(deadline: float, report: Callable[[str, int], None]) -> None:
    """Ids and addresses by chance on all stores."""
    _on_all(
        deadline,
        report,
        ("lists of ids tried on every store", likes(), check_people),
        ("lists of addresses tried on every store", addresses(), check_addresses),
    )


def contents(deadline: float, report: Callable[[str, int], None]) -> None:
    """Values by chance on all stores."""
    keys = st.text(st.characters(codec=None), max_size=20).map(lambda key: "k" + key)
    _on_all(
        deadline,
        report,
        (
            "memories of any values written and read on every store",
            st.dictionaries(keys, values, max_size=6),
            check_round_trip,
        ),
    )


def _on_all(
    deadline: float, report: Callable[[str, int], None], *checks: tuple[str, Any, Callable[[Sequence[Place], Any], None]]
) -> None:
    with tempfile.TemporaryDirectory() as folder, places(ALL_PLACES, pathlib.Path(folder)) as made:
        for number in seeds(deadline):
            for what, strategy, check in checks:

                @seed(number)
                @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
                @given(strategy)
                def once(drawn: Any) -> None:
                    # Called before the loop goes on.
                    check(made, drawn)
                    report(what, 1)

                once()


def decoder(deadline: float, report: Callable[[str, int], None]) -> None:
    """The decoder and all readers under atheris if it is there, and else under changes by chance."""
    if importlib.util.find_spec("atheris") is None:
        for number in seeds(deadline):
            report("inputs made by chance that were read", inputs([number], 5000))
        return
    with tempfile.TemporaryDirectory() as folder:
        seconds = max(int(deadline - time.monotonic()), 1)
        limits = ["-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=10", "-max_len=4096"]
        command = [sys.executable, str(CORPUS.parent / "fuzz.py"), folder, str(CORPUS), f"-max_total_time={seconds}"]
        options = [*limits, "-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={folder}/"]
        ran = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    executed = re.search(r"number_of_executed_units: (\d+)", ran.stderr)
    report("inputs that atheris made", int(executed[1]) if executed else 0)
    if ran.returncode:
        raise AssertionError(ran.stderr[-4000:] + ran.stdout[-4000:])
