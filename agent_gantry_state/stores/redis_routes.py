"""Which server a command goes to: the one that there is, the master that a Sentinel knows, or a cluster's for a hash tag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from agent_gantry_state.errors import StateError, StoreError, StoreUnavailableError
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores.redis_layout import TAGS
from agent_gantry_state.stores.redis_wire import Command, Node, Refusal, Request, refused

__all__ = ["ClusterRoute", "Direct", "Route", "SentinelRoute", "slot_of"]

#: How often a command follows a slot that has moved.
_REDIRECTS = 5
_SLOTS = 16384


class Route(Protocol):
    """Sends commands to where they belong.

    Attributes:
        together: Whether one command may be about namespaces of any tags.
    """

    together: bool

    def send(self, commands: Sequence[tuple[int, Command]]) -> Steps[list[Any]]:
        """The replies to commands, each with the tag that it is about."""
        ...


class Direct:
    """All goes to one server; None where the link knows which.

    Args:
        node: The server.
        together: Whether that is one server for all tags.
    """

    def __init__(self, node: Node | None, together: bool = True) -> None:
        self._node, self.together = node, together

    def send(self, commands: Sequence[tuple[int, Command]]) -> Steps[list[Any]]:
        """The replies to commands."""
        return (yield Request(self._node, [command for _, command in commands]))  # type: ignore[misc, no-any-return]


class SentinelRoute:
    """All goes to the master of a service, which one of some Sentinels knows."""

    together = True

    def __init__(self, sentinels: Sequence[Node], service: str) -> None:
        self._sentinels, self._service = sentinels, service
        self._master: Node | None = None

    def send(self, commands: Sequence[tuple[int, Command]]) -> Steps[list[Any]]:
        """The replies to commands."""
        master = self._master or (yield from self._found())
        try:
            replies: list[Any] = yield Request(master, [command for _, command in commands])  # type: ignore[misc]
        except StoreError:
            self._master = None
            raise
        if any(isinstance(reply, Refusal) and "READONLY" in str(reply) for reply in replies):
            self._master = None
        return replies

    def _found(self) -> Steps[Node]:
        error: StateError | None = None
        for sentinel in self._sentinels:
            ask = Request(sentinel, [("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)])
            try:
                (reply,) = yield ask  # type: ignore[misc]
            except StoreError as failed:
                error = failed
                continue
            if isinstance(reply, list):
                host, port = reply
                self._master = Node(host.decode(), int(port))
                return self._master
            if isinstance(reply, Refusal):
                error = refused(reply)
        raise _unsent(error or StoreUnavailableError("no Sentinel knows a master of that service"))


class ClusterRoute:
    """Each tag has its slot, and each slot its server."""

    together = False

    def __init__(self, seeds: Sequence[Node]) -> None:
        self._seeds = seeds
        self._nodes: dict[int, Node] = {}

    def send(self, commands: Sequence[tuple[int, Command]]) -> Steps[list[Any]]:
        """The replies to commands."""
        replies: list[Any] = [None] * len(commands)
        left, asking = list(range(len(commands))), dict[int, Node]()
        for _ in range(_REDIRECTS):
            if not self._nodes:
                yield from self._mapped()
            by_node: dict[Node, list[int]] = {}
            for index in left:
                node = asking.get(index) or self._nodes.get(commands[index][0])
                if node is None:
                    raise StoreUnavailableError("the Redis Cluster serves not all slots", committed=False)
                by_node.setdefault(node, []).append(index)
            left, before, asking = [], asking, {}
            for node, indexes in by_node.items():
                said: list[Command] = []
                for index in indexes:
                    said += [("ASKING",)] * (index in before) + [commands[index][1]]
                try:
                    answers: list[Any] = yield Request(node, said)  # type: ignore[misc]
                except StoreError as error:
                    # It may be that another server has taken its place.
                    self._nodes = {}
                    if any(reply is not None for reply in replies):
                        error.committed = None
                    raise
                heard = iter(answers)
                for index in indexes:
                    if index in before:
                        next(heard)
                    reply = replies[index] = next(heard)
                    moved = self._moved(reply, node, commands[index][0])
                    if moved is not None:
                        left.append(index)
                        if reply.code == "ASK":
                            asking[index] = moved
            if not left:
                break
        if any(isinstance(reply, Refusal) and reply.code in ("MOVED", "CLUSTERDOWN") for reply in replies):
            self._nodes = {}
        return replies

    def _moved(self, reply: Any, node: Node, tag: int) -> Node | None:
        """Where a command has to go instead."""
        if not isinstance(reply, Refusal) or reply.code not in ("MOVED", "ASK"):
            return None
        _, _, address = str(reply).split(" ")
        host, _, port = address.rpartition(":")
        other = _node(host, int(port), node)
        if reply.code == "MOVED":
            self._nodes[tag] = other
        return other

    def _mapped(self) -> Steps[None]:
        error: StateError | None = None
        for seed in self._seeds:
            try:
                (reply,) = yield Request(seed, [("CLUSTER", "SLOTS")])  # type: ignore[misc]
            except StoreError as failed:
                error = failed
                continue
            if isinstance(reply, Refusal):
                alone = "cluster support disabled" in str(reply)
                error = StoreError("a Redis Cluster was asked for, and this server is in none") if alone else refused(reply)
                continue
            nodes = {}
            for first, last, (host, port, *_), *_ in reply:
                node = _node(host.decode() if host else "", port, seed)
                nodes.update({tag: node for tag in range(TAGS) if first <= _slots[tag] <= last})
            self._nodes = nodes
            # The seeds may go away one by one while others come.
            self._seeds = list(dict.fromkeys((*nodes.values(), *self._seeds)))
            return
        raise _unsent(error or StoreUnavailableError("no server of the Redis Cluster is known"))


def _node(host: str, port: int, asked: Node) -> Node:
    """A server that another one has named; one that does not know its name is where that was asked."""
    return Node(asked.host if host in ("", "?") else host, port)


def _unsent(error: StateError) -> StateError:
    error.committed = False
    return error


def slot_of(tag: int) -> int:
    """The slot of a cluster in which everything with a hash tag is."""
    crc = 0
    for byte in b"%02x" % tag:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc % _SLOTS


_slots = [slot_of(tag) for tag in range(TAGS)]
