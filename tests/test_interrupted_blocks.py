"""What a `with` block has entered is left after a signal, wherever that came in entering or leaving it."""

from __future__ import annotations

import gc
import warnings

import pytest
from interrupting import moments

from agent_gantry_state import Gantry, Identity
from agent_gantry_state.nesting import CURRENT
from agent_gantry_state.scopes import ENTERED
from agent_gantry_state.stores.memory import MemoryStore

BLOCKS = {
    "session": lambda gantry: gantry.session("inside"),
    "override of the identity": lambda gantry: gantry.override(session="inside"),
    "override of the store": lambda gantry: gantry.override(store=MemoryStore()),
    "independent": lambda gantry: gantry.independent(),
    "memory": lambda gantry: gantry.memory("session"),
}


def enter(block, times=1):
    if times:
        with block:
            enter(block, times - 1)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "within itself"])
@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_left_after_a_signal(name, times):
    def prepare():
        store = MemoryStore()
        gantry = Gantry(store, session="outside")
        block = BLOCKS[name](gantry)

        def look(ended):
            nonlocal block
            assert (gantry.identity(), ENTERED.get(), CURRENT.get()) == (Identity("outside"), None, None)
            gantry.with_memory(lambda memory: memory.update(n=1))()
            with Gantry(store, session="outside").memory("session") as memory:
                assert memory["n"] == 1
            with warnings.catch_warnings():
                # One that was not entered says so.
                warnings.simplefilter("ignore")
                del block
                gc.collect()

        return lambda: enter(block, times), look

    # Python hears of one before the first line of a function, too, where nothing can be done about it.
    moments(prepare, but=("__exit__", "_exit"))
