"""Which server a command goes to: the one that there is, the master that a Sentinel knows, or a cluster's for a hash tag."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from agent_gantry_state.errors import StateError, StoreError, StoreUnavailableError
from agent_gantry_state.steps import Steps
from agent_gantry_state.stores.redis_layout import TAGS
from agent_gantry_state.stores.redis_wire import Command, Node, Refusal, Request, refused

__all__ = ["ClusterRoute", "Direct", "Route", "SentinelRoute", "slot_of"]

#: How often a command follows a slot that has moved.
_REDIRECTS = 5
_SLOTS = 16384

T = TypeVar("T")


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
        self.node, self.together = node, together

    def send(self, commands: Sequence[tuple[int, Command]]) -> Steps[list[Any]]:
        """The replies to commands."""
        return (yield Request(self.node, [command for _, command in commands]))  # type: ignore[misc, no-any-return]


class _Guides:
    """Servers any of which knows where others are. Who answered last is asked first.

    Args:
        nodes: The servers.
        within: Seconds that each of them has, for one that stands still must not take all of the time there is.
    """

    def __init__(self, nodes: Sequence[Node], within: float) -> None:
        self._given, self._within = tuple(nodes), within
        self._nodes = self._given

    def ask(self, command: Command, understood: Callable[[Any, Node], T]) -> Steps[T]:
        """What *understood* makes of the reply of the first one of which it can make anything.

        Raises:
            StateError: There is none.
        """
        nodes = self._nodes
        error: StateError | None = None
        for index, node in enumerate(nodes):
            try:
                (reply,) = yield Request(node, [command], self._within)  # type: ignore[misc]
                answer = understood(reply, node)
            except StateError as failed:
                error = failed
                continue
            self._nodes = nodes[index:] + nodes[:index]
            return answer
        # There may have been no time left for the last ones: the next time they are asked earlier.
        self._nodes = nodes[1:] + nodes[:1]
        assert error is not None, "an address names at least one server"  # noqa: S101
        error.committed = False
        raise error

    def learn(self, nodes: Sequence[Node]) -> None:
        """Those that there are now, besides the ones given at first, which may go away one by one while others come."""
        there = {*nodes, *self._given}
        self._nodes = tuple(dict.fromkeys((*(node for node in self._nodes if node in there), *nodes)))


class SentinelRoute:
    """All goes to the master of a service, which one of some Sentinels knows.

    Args:
        sentinels: The Sentinels.
        service: Name of the service.
        within: Seconds that each of the Sentinels has.
    """

    together = True

    def __init__(self, sentinels: Sequence[Node], service: str, within: float) -> None:
        self._sentinels, self._service = _Guides(sentinels, within), service
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
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        self._master = master = yield from self._sentinels.ask(command, _master_in)
        return master


def _master_in(reply: Any, asked: Node) -> Node:
    if isinstance(reply, Refusal):
        if "unknown command" in str(reply):
            raise StoreError(f"a Sentinel was asked for, and the server at {asked.host}:{asked.port} is none: see redis://")
        raise refused(reply)
    if not isinstance(reply, list):
        raise StoreUnavailableError("no Sentinel knows a master of that service")
    host, port = reply
    return Node(host.decode(), int(port))


class ClusterRoute:
    """Each tag has its slot, and each slot its server.

    Args:
        seeds: Some of its servers.
        within: Seconds that each of them has to tell of the others.
    """

    together = False

    def __init__(self, seeds: Sequence[Node], within: float) -> None:
        self._seeds = _Guides(seeds, within)
        #: By tag; empty for what has to be asked for.
        self._nodes: dict[int, Node] = {}

    def send(self, commands: Sequence[tuple[int, Command]]) -> Steps[list[Any]]:
        """The replies to commands."""
        replies: list[Any] = [None] * len(commands)
        left, asking = list(range(len(commands))), dict[int, Node]()
        for _ in range(_REDIRECTS):
            # Another caller may forget what is known at any time.
            nodes = self._nodes or (yield from self._mapped())
            by_node: dict[Node, list[int]] = {}
            for index in left:
                node = asking.get(index) or nodes.get(commands[index][0])
                if node is None:
                    self._nodes = {}
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
                    moved = self._moved(reply, node, commands[index][0], nodes)
                    if moved is not None:
                        left.append(index)
                        if reply.code == "ASK":
                            asking[index] = moved
            if not left:
                break
        for index, reply in enumerate(replies):
            if isinstance(reply, Refusal) and reply.code in ("MOVED", "ASK", "CLUSTERDOWN"):
                self._nodes = {}
                if reply.code != "CLUSTERDOWN":
                    # It was followed often enough.
                    replies[index] = Refusal("TRYAGAIN")
        return replies

    def _moved(self, reply: Any, node: Node, tag: int, nodes: dict[int, Node]) -> Node | None:
        """Where a command has to go instead."""
        if not isinstance(reply, Refusal) or reply.code not in ("MOVED", "ASK"):
            return None
        _, _, address = str(reply).split(" ")
        host, _, port = address.rpartition(":")
        other = _node(host, int(port), node)
        if reply.code == "MOVED":
            # Into what was known, which may be forgotten since: one that is known alone would hide that the others are not.
            nodes[tag] = other
        return other

    def _mapped(self) -> Steps[dict[int, Node]]:
        self._nodes = nodes = yield from self._seeds.ask(("CLUSTER", "SLOTS"), _nodes_in)
        self._seeds.learn([*nodes.values()])
        return nodes


def _nodes_in(reply: Any, asked: Node) -> dict[int, Node]:
    if isinstance(reply, Refusal):
        if "cluster support disabled" in str(reply):
            raise StoreError("a Redis Cluster was asked for, and this server is in none")
        raise refused(reply)
    nodes: dict[int, Node] = {}
    for first, last, (host, port, *_), *_ in reply:
        node = _node(host.decode() if host else "", port, asked)
        nodes.update({tag: node for tag in range(TAGS) if first <= _slots[tag] <= last})
    if not nodes:
        raise StoreUnavailableError(f"the server at {asked.host}:{asked.port} knows of no Redis Cluster")
    return nodes


def _node(host: str, port: int, asked: Node) -> Node:
    """A server that another one has named; one that does not know its name is where that was asked."""
    return Node(asked.host if host in ("", "?") else host, port)


def slot_of(tag: int) -> int:
    """The slot of a cluster in which everything with a hash tag is."""
    crc = 0
    for byte in b"%02x" % tag:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc % _SLOTS


_slots = [slot_of(tag) for tag in range(TAGS)]
