"""What several modules of tests are made with: stores that are not in this process, and somebody who is in no call."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars

from agent_gantry_state import turns, unit_of_work
from agent_gantry_state.stores.memory import MemoryStore
from agent_gantry_state.stores.protocol import Load


class Blocking:
    """A store that may have to wait, so that callers on an event loop reach it in a thread, and keeps what it was asked."""

    clock = None

    def __init__(self, **options):
        self.inner = MemoryStore(**options)
        self.messages = []

    def load(self, message, /):
        self.messages.append(message)
        return self.inner.load(message)

    def commit(self, message, /):
        self.messages.append(message)
        return self.inner.commit(message)

    def forget(self, message, /):
        return self.inner.forget(message)

    def list(self, message, /):
        return self.inner.list(message)

    def lease(self, message, /):
        return self.inner.lease(message)

    def release(self, message, /):
        return self.inner.release(message)

    def close(self):
        self.inner.close()

    def kinds(self):
        return [type(message) for message in self.messages]

    def asked(self, kind):
        return [message for message in self.messages if type(message) is kind]

    def loaded_keys(self):
        return [message.keys for message in self.asked(Load)]

    def scopes_asked(self, kind):
        if kind is Load:
            return [tuple(namespace.scope for namespace in message.namespaces) for message in self.asked(Load)]
        return [tuple(change.namespace.scope for change in message.changes) for message in self.asked(kind)]


class Coroutines:
    """A store made of coroutines, which let others run before they have *inner* answer."""

    clock = None

    def __init__(self, inner=None, **options):
        self.inner = MemoryStore(**options) if inner is None else inner

    async def load(self, message, /):
        await asyncio.sleep(0)
        return self.inner.load(message)

    async def commit(self, message, /):
        await asyncio.sleep(0)
        return self.inner.commit(message)

    async def forget(self, message, /):
        await asyncio.sleep(0)
        return self.inner.forget(message)

    async def list(self, message, /):
        await asyncio.sleep(0)
        return self.inner.list(message)

    async def lease(self, message, /):
        await asyncio.sleep(0)
        return self.inner.lease(message)

    async def release(self, message, /):
        await asyncio.sleep(0)
        return self.inner.release(message)

    async def close(self):
        await asyncio.sleep(0)
        self.inner.close()


#: One of each kind of store.
STORES = {"memory": MemoryStore, "blocking": Blocking, "coroutines": Coroutines}


def closing(gantry):
    """*gantry*, to be closed with the thread that a store of coroutines has got, though it was handed in."""
    stack = contextlib.ExitStack()
    if isinstance(gantry._wiring.settings.bridge.store, Coroutines):
        stack.callback(gantry._wiring.settings.bridge.close)
    stack.enter_context(gantry)
    return stack


def committed(gantry, scope="session", **who):
    """What is committed, as somebody sees it who is in no call."""

    def look():
        with gantry.memory(scope, **who) as memory:
            return dict(memory)

    return contextvars.Context().run(look)


def commit(gantry, scope, who, put, delete=()):
    """Commit as a stranger does, from a context that knows of no call."""

    def change():
        with gantry.memory(scope, **who) as memory:
            memory.update(put)
            for key in delete:
                del memory[key]

    contextvars.Context().run(change)


def wait_at_most(monkeypatch, seconds):
    """Have calls wait so long for their turn; a function that sets it otherwise."""

    def set_to(seconds):
        monkeypatch.setattr(turns, "EXCLUSIVE_SECONDS", seconds)
        monkeypatch.setattr(unit_of_work, "EXCLUSIVE_SECONDS", seconds)

    set_to(seconds)
    return set_to


class Watched:
    """Mixed into a store, which then does in its own way what every store does."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = []

    def load(self, message):
        self.asked.append("load")
        return super().load(message)

    def commit(self, message):
        self.asked.append("commit")
        return super().commit(message)


class Before:
    """Stands before a store."""

    def __init__(self, store):
        self.store, self.asked = store, []

    def __getattr__(self, name):
        return getattr(self.store, name)

    def load(self, message):
        self.asked.append("load")
        return self.store.load(message)

    def commit(self, message):
        self.asked.append("commit")
        return self.store.commit(message)
