"""A call that runs again anyhow counts from nothing, too: a number is not taken for the same because both made it."""

from __future__ import annotations

import contextvars
import dataclasses

import pytest
from support import STORES, closing

from agent_gantry_state import Gantry, SyncExecutionContext, SyncSession


@pytest.fixture(params=STORES)
def gantry(request):
    with closing(gantry := Gantry(STORES[request.param](), session="s", user="ada")):
        yield gantry


def counts(between, memory):
    n = memory.get("n", 0)
    between()
    memory["n"] = n + 1
    return n + 1


def named(name, options):
    """Another name for each of two tools."""
    return f"{name} {len(options)}"


def in_a_memory(gantry, **options):
    return gantry.with_memory(scope="user", **options)(counts)


def in_a_compartment(gantry, **options):
    return gantry.with_memory(scope="user", private=True, name="t", **options)(counts)


def in_layers(gantry, **options):
    return gantry.with_memory(scope=("user", "global"), **options)(counts)


def in_chosen_keys(gantry, **options):
    return gantry.with_memory(scope="user", keys=("n",), **options)(counts)


@dataclasses.dataclass
class Counter:
    n: int = 0


def in_an_instance(gantry, **options):
    @gantry.with_memory(scope="user", **options)
    def tool(between, memory: Counter):
        between()
        memory.n += 1
        return memory.n

    return tool


def key_by_key(gantry, **options):
    @gantry.with_session(scope="user", **options)
    def tool(between, session: SyncSession):
        n = session.get("n", 0)
        between()
        session.set("n", n + 1)
        return n + 1

    return tool


def in_another_scope_of_a_context(gantry, **options):
    @gantry.with_context(**options)
    def tool(between, ctx: SyncExecutionContext):
        return counts(between, ctx.scope("user"))

    return tool


def in_a_context_beside_a_compartment(gantry, **options):
    @gantry.with_memory(scope="user", private=True, into="own", name=named("t", options), **options)
    @gantry.with_context
    def tool(between, own, ctx):
        own["x"] = 1
        return counts(between, ctx.scope("user"))

    return tool


def in_a_call_inside(gantry, **options):
    return gantry.with_memory(name="outer", **options)(lambda between, memory: in_a_memory(gantry)(between))


def in_a_call_inside_a_call_inside(gantry, **options):
    middle = gantry.with_memory(scope="global", name="middle")(lambda between, memory: in_a_memory(gantry)(between))
    return gantry.with_memory(name="outer", **options)(lambda between, memory: middle(between))


def beside_a_compartment_of_a_call_inside(gantry, **options):
    other = gantry.with_memory(scope="user", private=True, name=named("other", options))(lambda memory: memory.update(x=1))

    def body(between, memory):
        other()
        return counts(between, memory)

    return gantry.with_memory(scope="user", name="outer", **options)(body)


WAYS = [
    in_a_memory,
    in_a_compartment,
    in_layers,
    in_chosen_keys,
    in_an_instance,
    key_by_key,
    in_another_scope_of_a_context,
    in_a_context_beside_a_compartment,
    in_a_call_inside,
    in_a_call_inside_a_call_inside,
    beside_a_compartment_of_a_call_inside,
]


def alone(tool):
    """Call a tool as a stranger does, from a context that knows of no call."""
    return contextvars.Context().run(tool, lambda: None)


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_runs_again_anyhow_counts_from_nothing(gantry, way):
    stranger = way(gantry)
    quicker = [stranger]

    assert way(gantry, on_conflict="retry")(lambda: alone(quicker.pop()) if quicker else None) == 2
    assert alone(stranger) == 3
