"""A call of a tool after a signal, wherever that came: what it wrote is whole or nothing, the next call stands by itself,
and a task that was begun in its body hears that it has failed, or has what it writes stored.
"""

from __future__ import annotations

import contextvars

import pytest
from interrupting import moments

from agent_gantry_state import Gantry, OrphanedCallError
from agent_gantry_state.stores.memory import MemoryStore


def drive(coroutine):
    """Run a coroutine that waits for nothing, in this very context."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


async def exhaust(items):
    async for _ in items:
        pass


class Calls:
    """A tool that writes to memories of these scopes, called in one of several ways."""

    def __init__(self):
        self.scopes = "session", "user"
        store = MemoryStore()
        self.gantry, self.stranger = (Gantry(store, session="s", user="u") for _ in range(2))
        self.inside = []

        @self.gantry.with_memory(scope="user")
        def note(text, memory):
            memory["text"] = text

        self.note = note

    def body(self, session, user):
        # What a task that is begun here would have.
        self.inside.append(contextvars.copy_context())
        session["text"] = user["text"] = "new"

    def tool(self, body):
        inner = self.gantry.with_memory(scope="user", into="user")(body)
        return self.gantry.with_memory(scope="session", into="session")(inner)

    def short(self):
        self.scopes = ("user",)
        return self.gantry.with_memory(lambda memory: self.body(memory, {}), scope="user")

    def short_coroutine(self):
        async def body(memory):
            self.body(memory, {})

        self.scopes = ("user",)
        tool = self.gantry.with_memory(body, scope="user")
        return lambda: drive(tool())

    def nesting(self):
        def body(memory):
            self.body(memory, {})
            self.note("new")

        return self.gantry.with_memory(body)

    def nesting_coroutine(self):
        async def body(memory):
            self.body(memory, {})
            self.note("new")

        tool = self.gantry.with_memory(body)
        return lambda: drive(tool())

    def plain(self):
        return self.tool(lambda session, user: self.body(session, user))

    def coroutine(self):
        async def body(session, user):
            self.body(session, user)

        tool = self.tool(body)
        return lambda: drive(tool())

    def awaitable(self):
        async def body(session, user):
            self.body(session, user)

        tool = self.tool(lambda session, user: body(session, user))
        return lambda: drive(tool())

    def generator(self):
        def body(session, user):
            yield
            self.body(session, user)
            yield

        tool = self.tool(body)
        return lambda: [*tool()]

    def async_generator(self):
        async def body(session, user):
            yield
            self.body(session, user)
            yield

        tool = self.tool(body)
        return lambda: drive(exhaust(tool()))

    def seen(self, scope="user"):
        def look():
            with self.stranger.memory(scope) as memory:
                return memory.get("text")

        return contextvars.Context().run(look)


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")  # One that was just being made.
@pytest.mark.parametrize(
    "way",
    [
        Calls.short,
        Calls.short_coroutine,
        Calls.nesting,
        Calls.nesting_coroutine,
        Calls.plain,
        Calls.coroutine,
        Calls.awaitable,
        Calls.generator,
        Calls.async_generator,
    ],
)
def test_signal_in_a_call_leaves_it_whole_or_nothing_and_no_call_around_the_next(way):
    def prepare():
        calls = Calls()

        def look(ended):
            assert {calls.seen(scope) for scope in calls.scopes} in ([{"new"}] if ended else [{None}, {"new"}])
            calls.note("next")
            assert calls.seen() == "next"
            for number, context in enumerate(calls.inside):
                try:
                    context.run(calls.note, f"inside {number}")
                except OrphanedCallError:
                    assert not ended
                else:
                    assert calls.seen() == f"inside {number}"

        return way(calls), look

    moments(prepare)
