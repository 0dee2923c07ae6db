"""The memory store after a signal, wherever that came: what a call has written is there, and nothing is lost."""

from __future__ import annotations

from collections.abc import MutableMapping

import cachetools
import pytest
from interrupting import moments

from agent_gantry_state import Gantry
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Forget
from agent_gantry_state.stores.slots import Slots
from agent_gantry_state.testing import Clock

pytestmark = pytest.mark.filterwarnings("ignore::agent_gantry_state.EvictionWarning")

NAMES = ("a", "b", "c")


def tools(store, **options):
    """For each name a tool that writes to a memory of that name, and one that reads it and knows nothing of the other."""
    gantry, stranger = Gantry(store), Gantry(store)

    def write(name):
        @gantry.with_memory(scope="tool", name=name, **options)
        def write(text, memory):
            memory["text"] = text

        return write

    def read(name):
        @stranger.with_memory(scope="tool", name=name)
        def read(memory):
            return memory.get("text")

        return read

    return {name: write(name) for name in NAMES}, {name: read(name) for name in NAMES}


def forgetting(store, write):
    store.forget(Forget((next(iter(store._slots)),)))


def evicting(store, write):
    write["c"]("new")


@pytest.mark.parametrize("act", [forgetting, evicting])
def test_what_is_written_after_a_signal_is_there(act):
    def prepare():
        store = MemoryStore(2)
        write, read = tools(store)
        for name in ("a", "b") * 2:
            # From the second time on they know where it stands.
            write[name]("old")

        def look(ended):
            for name in NAMES * 2:
                for text in ("first", "second"):
                    write[name](text)
                    assert read[name]() == text
            assert len(store) == 2

        return lambda: act(store, write), look

    moments(prepare)


def test_what_expires_is_given_up_after_a_signal_too():
    def prepare():
        clock = Clock()
        store = MemoryStore(clock=clock)
        short, _ = tools(store, ttl=5)
        for name in ("a", "b"):
            short[name]("old")
        clock.now += 4
        # Its time has changed since it was queued.
        short["b"]("old")
        clock.now += 2
        write, read = tools(store)

        def look(ended):
            clock.now += 4
            write["c"]("next")
            assert read["c"]() == "next"
            assert len(store) == 1

        return lambda: write["c"]("new"), look

    moments(prepare)


def test_commit_by_key_is_whole_or_nothing_wherever_a_signal_comes():
    old = {f"k{number}": number for number in range(100)}

    def prepare():
        store = MemoryStore()
        gantry, stranger = Gantry(store, session="s"), Gantry(store, session="s")

        @gantry.with_memory(keys=("k1", "k2"))
        def change(memory):
            memory["k1"] = "new"
            del memory["k2"]

        with stranger.memory("session") as memory:
            memory.update(old)

        def look(ended):
            with stranger.memory("session") as memory:
                seen = dict(memory)
            whole = {key: value for key, value in {**old, "k1": "new"}.items() if key != "k2"}
            assert seen == whole or (not ended and seen == old)

        return change, look

    moments(prepare)


def test_store_closes_whichever_way_cachetools_clears(monkeypatch):
    # As up to cachetools 7.0, by a loop that ends when nothing is left, which would never be.
    monkeypatch.setattr(cachetools.Cache, "clear", MutableMapping.clear)
    store = MemoryStore()
    write, _ = tools(store)
    write["a"]("old")
    slot = next(iter(store._slots.values()))
    monkeypatch.setattr(Slots, "popitem", dict.popitem)

    store.close()

    assert len(store) == 0
    assert slot.home is not store.home
