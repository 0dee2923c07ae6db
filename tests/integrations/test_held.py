"""Who calls is known in each step of what a framework iterates over, and nowhere in between."""

from __future__ import annotations

import pytest

from agent_gantry_state import Gantry, current_identity
from agent_gantry_state.integrations._held import awaited, iterated

pytestmark = pytest.mark.anyio


async def steps(seen, ended):
    try:
        for number in range(3):
            seen.append(current_identity())
            yield number
    finally:
        ended.append(current_identity())


async def test_each_step_knows_who_calls_and_whoever_iterates_stays_himself():
    gantry, seen, ended, outside = Gantry(), [], [], []

    with gantry.session("outer") as outer:
        async for _ in iterated(gantry.session("inner"), steps(seen, ended)):
            outside.append(current_identity())

    assert [each.session for each in seen] == ["inner"] * 3
    assert [each.session for each in ended] == ["inner"]
    assert outside == [outer] * 3


async def test_an_iteration_that_is_given_up_ends_in_the_name_of_who_called():
    gantry, seen, ended = Gantry(), [], []
    items = iterated(gantry.session("inner"), steps(seen, ended))

    assert await items.__anext__() == 0
    await items.aclose()

    assert [each.session for each in ended] == ["inner"]
    assert current_identity() is None


async def test_an_error_in_a_step_leaves_nobody_behind():
    async def failing():
        yield 1
        raise LookupError("no luck today")

    items = iterated(Gantry().session("inner"), failing())
    await items.__anext__()

    with pytest.raises(LookupError):
        await items.__anext__()
    assert current_identity() is None


async def test_what_is_awaited_knows_who_calls():
    async def answer():
        return current_identity()

    assert (await awaited(Gantry().session("inner"), answer())).session == "inner"
    assert current_identity() is None
