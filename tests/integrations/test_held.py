"""Who calls is known in each step of what a framework iterates over, and nowhere in between."""

from __future__ import annotations

import pytest

from agent_gantry_state import Gantry, current_identity
from agent_gantry_state.integrations._held import awaited, iterated, stepped

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


@pytest.mark.parametrize("end", ["exhausted", "given up", "failed"])
def test_each_step_of_a_sync_generator_knows_who_calls(end):
    gantry, seen, ended, outside = Gantry(), [], [], []

    def sync_steps():
        try:
            for number in range(3):
                seen.append(current_identity())
                yield number
                if end == "failed":
                    raise LookupError("no luck today")
        finally:
            ended.append(current_identity())

    with gantry.session("outer") as outer:
        items = stepped(gantry.session("inner"), sync_steps())
        for _ in range(3 if end == "exhausted" else 1):
            next(items)
            outside.append(current_identity())
        if end == "given up":
            items.close()
        else:
            with pytest.raises(LookupError if end == "failed" else StopIteration):
                next(items)
        assert current_identity() is outer

    assert {each.session for each in [*seen, *ended]} == {"inner"}
    assert len(ended) == 1
    assert outside == [outer] * len(outside)


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
