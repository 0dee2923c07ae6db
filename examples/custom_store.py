"""A store of your own, here in a dbm file of the standard library, for one process: a method for each message.

tests/stores/test_custom_store.py holds it to everything that the stores of the package promise.

Run it: python examples/custom_store.py
"""

from __future__ import annotations

import asyncio
import dbm.dumb
import json
import tempfile
import threading
from pathlib import Path
from typing import Any

from agent_gantry_state import AgentGantry, Namespace
from agent_gantry_state.errors import StoreClosedError
from agent_gantry_state.stores import protocol
from agent_gantry_state.stores.clock import Clocked
from agent_gantry_state.stores.protocol import EMPTY
from agent_gantry_state.stores.whole import Image, applied, chosen, is_moved, read_image, write_image


class DbmStore(Clocked):
    """Keeps each memory as one record of a dbm file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._open: Any = dbm.dumb.open(str(path), "c", 0o600)  # noqa: SIM115 - until `close`
        self._leases: dict[Namespace, tuple[bytes, float]] = {}
        self._tokens: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def _file(self) -> Any:
        if self._open is None:
            raise StoreClosedError("the dbm file is closed")
        return self._open

    def _read(self, namespace: Namespace) -> protocol.Snapshot:
        data = self._file().get(namespace.digest)
        return EMPTY if data is None else read_image(data, namespace).snapshot

    def load(self, message: protocol.Load, /) -> protocol.Loaded:
        with self._lock:
            now = self.now()
            snapshots = [self._read(namespace).live(now) for namespace in message.namespaces]
        pairs = zip(snapshots, message.keys or [None] * len(snapshots), strict=True)
        snapshots = [each if keys is None else chosen(each, keys, message.names) for each, keys in pairs]
        return protocol.Loaded(tuple(snapshots), now)

    def commit(self, message: protocol.Commit, /) -> protocol.Committed | protocol.Moved:
        with self._lock:
            now, changes = self.now(), message.changes
            if self._tokens.get(message.token, 0.0) > now:
                return protocol.Committed()  # its answer was lost, and it is sent again
            before = tuple([self._read(change.namespace).live(now) for change in changes])
            if any(s.head != c.head and is_moved(c, s) for c, s in zip(changes, before, strict=True)):
                return protocol.Moved(before, now)
            for change, snapshot in zip(changes, before, strict=True):
                after = applied(change, snapshot, message.version, lambda: now)
                if after.head is not None:
                    self._file()[change.namespace.digest] = write_image(Image(change.namespace, after, {}))
            self._file().sync()
            # Not in the records, for what is erased must not come back with a commit that is sent again.
            tokens = (*self._tokens.items(), (message.token, now + 60.0))
            self._tokens = {token: until for token, until in tokens if token and until > now}
        return protocol.Committed()

    def forget(self, message: protocol.Forget, /) -> None:
        with self._lock:
            for namespace in message.namespaces:
                self._file().pop(namespace.digest, None)
            self._file().sync()

    def list(self, message: protocol.List, /) -> protocol.Page:
        with self._lock:
            now, found = self.now(), []
            for digest in sorted(self._file().keys()):
                namespace, snapshot, _ = read_image(self._file()[digest])
                asked = ((message.app, namespace.app), (message.scope, namespace.scope), (message.owner, snapshot.owner))
                fits = all(want is None or want == there for want, there in asked)
                if fits and digest > (message.after or b"") and snapshot.live(now) is not EMPTY:
                    found.append(protocol.Listed(namespace, snapshot.owner))
        page = tuple(found[: message.limit])
        return protocol.Page(page, page[-1].namespace.digest if len(found) > message.limit else None)

    def lease(self, message: protocol.Lease, /) -> float:
        with self._lock:
            now = self.now()
            holder, until = self._leases.get(message.namespace, (message.holder, now))
            if holder == message.holder or until <= now:
                self._leases[message.namespace], until = (message.holder, now + message.ttl), now
        return until - now

    def release(self, message: protocol.Release, /) -> None:
        with self._lock:
            if self._leases.get(message.namespace, (b"", 0.0))[0] == message.holder:
                del self._leases[message.namespace]

    def close(self) -> None:
        with self._lock:
            if self._open is not None:
                self._open.close()
            self._open = None


# An agent whose tools remember there.

gantry = AgentGantry()


@gantry.register
@gantry.with_memory
def take_note(text: str, memory: dict) -> str:
    """Take a note."""
    memory.setdefault("notes", []).append(text)
    return " and ".join(memory["notes"])


class ScriptedModel:
    """Stands in for a language model: each turn is the tools that it calls, or its answer, where {0} is the first result."""

    def __init__(self, *turns: list[tuple[str, dict]] | str) -> None:
        self._turns = iter(turns)

    async def create(self, messages: list[dict], tools: list[dict]) -> dict:
        turn = next(self._turns)
        if isinstance(turn, str):
            results = [message["content"] for message in messages if message["role"] == "tool"]
            return {"choices": [{"message": {"role": "assistant", "content": turn.format(*results)}}]}
        calls = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for number, (name, arguments) in enumerate(turn)
        ]
        return {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": calls}}]}


async def ask(model: ScriptedModel, prompt: str) -> str:
    """An agent's loop: ask the model, run the tools that it calls, until it answers."""
    messages: list[dict] = [{"role": "user", "content": prompt}]
    tools = await gantry.retrieve_tools(prompt, limit=10)
    while True:
        response = await model.create(messages, tools)
        messages.append(response["choices"][0]["message"])
        results = await gantry.execute_tool_calls(response, retry_count=0)
        if not results:
            return messages[-1]["content"]
        messages.extend(results)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for text in ("milk", "tea"):
            # Another store object each time: what it shows the second time was in the file.
            store = DbmStore(Path(folder, "memories"))
            with gantry.override(store=store, session="s1"):
                print(await ask(ScriptedModel([("take_note", {"text": text})], "{0}"), f"Note {text}"))
            store.close()
    await gantry.close()


if __name__ == "__main__":
    asyncio.run(main())
