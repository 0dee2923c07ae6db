"""Who wants a memory to himself after a signal, wherever that came in the call of somebody who had it, or waited for it."""

from __future__ import annotations

import gc

import pytest
from interrupting import moments
from support import wait_at_most

from agent_gantry_state import Gantry, Namespace
from agent_gantry_state.bridge import bridge_to
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.turns import Grant, _Renewer


def drive(coroutine):
    """Run a coroutine that waits for nothing."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


def plain(gantry):
    @gantry.with_memory(exclusive=True)
    def tool(memory):
        memory["n"] = 1

    return tool


def failing(gantry):
    @gantry.with_memory(exclusive=True)
    def tool(memory):
        raise LookupError

    def act():
        try:
            tool()
        except LookupError:
            pass

    return act


def nested(gantry):
    inner = plain(gantry)

    @gantry.with_memory(scope="user")
    def tool(memory):
        inner()

    return tool


def coroutine(gantry):
    @gantry.with_memory(exclusive=True)
    async def tool(memory):
        memory["n"] = 1

    return lambda: drive(tool())


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # One that was just being made.
@pytest.mark.parametrize("way", [plain, failing, nested, coroutine])
def test_signal_leaves_nobody_waiting_for_a_turn(way, monkeypatch):
    # Nobody else has the memory to himself, so that there is nothing to wait for.
    wait_at_most(monkeypatch, 0.0)

    def prepare():
        gantry = Gantry(MemoryStore(), session="s", user="u")
        act, after = way(gantry), plain(gantry)

        def look(ended):
            # Up to Python 3.10 frames that were traced are in a ring with their errors.
            gc.collect()
            after()

        return act, look

    moments(prepare)


def test_leases_are_renewed_after_a_signal():
    bridge = bridge_to(MemoryStore())

    def prepare():
        renewer = _Renewer()
        first, second, third = (Grant(bridge, Namespace("user", name, "app"), name.encode()) for name in "abc")

        def act():
            renewer.add(first)
            renewer.add(second)

        def look(ended):
            renewer.add(third)
            thread = renewer._thread
            assert thread is not None
            assert thread.is_alive()
            for grant in (first, second, third):
                renewer.remove(grant)
            thread.join()

        return act, look

    moments(prepare)
