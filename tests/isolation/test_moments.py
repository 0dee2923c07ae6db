"""A serializable call that loads memories one after the other has seen one moment of them, on every store."""

from __future__ import annotations

import pytest
from isolation.soaks import PLACES, place_of

from agent_gantry_state import Gantry, MemoryConflictError


@pytest.mark.parametrize("moved", ["session", "user", "both"])
@pytest.mark.parametrize("name", [*PLACES, "redis-cluster"])
def test_serializable_call_that_only_read_has_read_one_moment(name, moved, tmp_path):
    with place_of(name, tmp_path) as (where, app), Gantry(where, app=app, session="s1", user="ada") as gantry:

        @gantry.with_memory(scope="user", into="mine", isolation="serializable", read_only=True)
        def inside(mine):
            return mine["a"]

        @gantry.with_memory(isolation="serializable", read_only=True)
        def tool(meet, memory):
            first = memory["a"]
            meet()
            return first, inside()

        def write(value, *scopes):
            for scope in scopes:
                with gantry.independent(), gantry.memory(scope) as memory:
                    memory["a"] = value

        scopes = ("session", "user") if moved == "both" else (moved,)
        write(1, "session", "user")
        assert tool(lambda: None) == (1, 1)
        if moved == "user":
            assert tool(lambda: write(2, *scopes)) == (1, 2)
        else:
            with pytest.raises(MemoryConflictError) as caught:
                tool(lambda: write(2, *scopes))
            assert caught.value.keys == ("a",)
