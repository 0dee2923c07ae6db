"""Whether a history of calls is one that the documentation allows: calls append elements to lists, and read them.

All elements are different. The order of a list's versions is the order of its elements in the longest read of it; all
reads must be beginnings of that. From it follow the edges between calls: `ww` (appended next), `wr` (read what the other
appended last), `rw` (did not read what the other appended next), `rt` (had returned before the other one began). A
history is good if no call stands before itself.

Each call is a moment of reading, s, and a moment of writing, c, not before it. What a mode promises of the two:

merge (the default)
    Each call reads one snapshot, of all its namespaces, no older than the call, and commits in one step. Lists that both
    sides appended to are theirs, then ours: a block for each commit, in the order of the commits. So s and c are two
    nodes, and the graph of all s and c has no cycle. Forbidden: G0, G1a, G1b, G1c, read skew (G-single of rw and wr),
    lost and doubled appends, and each of these in real time. Allowed: write skew (G2 over two s), and the G-single of a
    merge (it appends behind what it has not seen).
conflict (`merge.conflict` on each key)
    The same, and the first committer of a key wins: what a call appends follows directly on what it has read, or else it
    is a lost update. This is strong snapshot isolation. Allowed: write skew.
serializable (`isolation="serializable"`)
    s and c are one node: nothing that was read has changed at the commit. With rt this is strict serializability. Nothing
    is allowed.
exclusive (`exclusive=True`)
    The same, and the bodies of two such calls on one namespace never run at once (overlap).

Modes may be mixed in one history: each call is held to its own. In all of them a failed call's elements are seen by
nobody (G1a), but what it has read was one snapshot, too; nobody sees a part of a call (G1b, torn), and a call whose
outcome is not known has landed whole or not at all.
"""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

MODES = ("merge", "conflict", "serializable", "exclusive")
_IN, _WW, _WR, _RW, _RT = "in", "ww", "wr", "rw", "rt"


@dataclass
class Txn:
    """One call.

    Attributes:
        name: Unlike that of any other.
        mode: One of MODES.
        outcome: "ok", "failed" (it wrote nothing) or "unknown".
        ops: What its body did, in order: ["read", list, elements], ["append", list, element],
            ["count", namespace, counted, there]: the number that the namespace says that its lists have, and that they have.
        start: When it was called, in seconds.
        end: When it returned.
        loose: Whether parts of it ran at once, so that the order of `ops` says nothing of them.
        moments: Whether it read key by key, so that only its commit makes one snapshot of what it has read.
        bodies: For a namespace that it had to itself, from when to when its body ran.
        error: The name of the error that it ended with, if that was one of ours.
    """

    name: str
    mode: str = "merge"
    outcome: str = "ok"
    ops: list[list[Any]] = field(default_factory=list)
    start: float = 0.0
    end: float = 0.0
    loose: bool = False
    moments: bool = False
    bodies: list[list[Any]] = field(default_factory=list)
    error: str = ""

    def appends(self) -> Iterator[tuple[str, str]]:
        return ((where, element) for kind, where, element, *_ in self.ops if kind == "append")

    def reads(self) -> Iterator[tuple[str, list[str]]]:
        return ((where, elements) for kind, where, elements, *_ in self.ops if kind == "read")


@dataclass(frozen=True)
class Anomaly:
    """What must not be.

    Attributes:
        name: What it is called: "G0", "G1a", "lost", "lost update" ...
        told: Whose and where.
    """

    name: str
    told: str


def check(txns: Iterable[Txn], final: dict[str, list[str]], counters: dict[str, int] | None = None) -> list[Anomaly]:
    """The anomalies of a history.

    Args:
        txns: All calls.
        final: What is in each list when they have ended.
        counters: For namespaces, how many appends the calls have counted with `Memory.add`.
    """
    return list(_History(list(txns), final, counters or {}).anomalies())


class _History:
    def __init__(self, txns: list[Txn], final: dict[str, list[str]], counters: dict[str, int]) -> None:
        self.txns = txns
        self.final = final
        self.counters = counters
        self.writer: dict[str, int] = {}
        for at, txn in enumerate(txns):
            for _, element in txn.appends():
                assert element not in self.writer, f"{element} is appended twice by the test itself"
                self.writer[element] = at
        self.orders = {where: list(elements) for where, elements in final.items()}
        for at, txn in enumerate(txns):
            for where, elements in txn.reads():
                others = [each for each in elements if self.writer.get(each) != at]
                if txn.outcome == "ok" and len(others) > len(self.orders.setdefault(where, [])):
                    self.orders[where] = others
        seen = set(itertools.chain(*self.orders.values()))
        for txn in txns:
            for _, elements in txn.reads():
                seen.update(element for element in elements if txns[self.writer.get(element, 0)] is not txn)
        #: Calls of which something is there.
        self.landed = {self.writer[element] for element in seen if element in self.writer}
        self.landed |= {at for at, txn in enumerate(txns) if txn.outcome == "ok"}
        self.landed -= {at for at, txn in enumerate(txns) if txn.outcome == "failed"}

    def anomalies(self) -> Iterator[Anomaly]:
        found = [*self._elements(), *self._reads(), *self._counts(), *self._lost_updates(), *self._overlaps()]
        yield from found
        # Without one order of versions there are no edges.
        if not {"incompatible order", "duplicate", "unknown element"} & {each.name for each in found}:
            yield from self._cycles()

    def _elements(self) -> Iterator[Anomaly]:
        for where, order in self.orders.items():
            if len(set(order)) < len(order):
                yield Anomaly("duplicate", f"{where}: {[each for each in order if order.count(each) > 1][:4]}")
            yield from self._aborted(where, order, "at the end")
        there = {where: set(order) for where, order in self.orders.items()}
        left = {where: set(elements) for where, elements in self.final.items()}
        for at, txn in enumerate(self.txns):
            if at not in self.landed:
                continue
            missing = [(where, each) for where, each in txn.appends() if each not in left.get(where, ())]
            if not missing:
                continue
            is_torn = any(each in there.get(where, ()) for where, each in txn.appends())
            yield Anomaly("torn" if is_torn else "lost", f"{txn.name}: {missing[:4]}")

    def _aborted(self, where: str, elements: Iterable[str], by: str) -> Iterator[Anomaly]:
        for each in elements:
            if each not in self.writer:
                yield Anomaly("unknown element", f"{where}: {each} {by}")
            elif self.txns[self.writer[each]].outcome == "failed":
                yield Anomaly("G1a", f"{where}: {each} {by}")

    def _reads(self) -> Iterator[Anomaly]:
        """Each read is a beginning of the order and, behind it, what the call itself has appended."""
        for at, txn in enumerate(self.txns):
            own: dict[str, list[str]] = defaultdict(list)
            first: dict[str, list[str]] = {}
            for kind, where, what, *_ in txn.ops:
                if kind == "append":
                    own[where].append(what)
                if kind != "read":
                    continue
                others = [each for each in what if self.writer.get(each) != at]
                mine = what[len(others) :]
                order = self.orders.get(where, [])
                if len(set(what)) < len(what):
                    yield Anomaly("duplicate", f"{where}, read by {txn.name}")
                if what[: len(others)] != others or (not txn.loose and mine != own[where]):
                    yield Anomaly("internal", f"{txn.name} reads {mine[:4]} of its own in {where}, after {own[where][:4]}")
                if first.setdefault(where, others) != others and not txn.loose:
                    yield Anomaly("internal", f"{txn.name} reads {where} twice, with a change between")
                yield from self._aborted(where, others, f"read by {txn.name}")
                if others != order[: len(others)]:
                    # The elements of its own that a call has lost stand in nobody's order.
                    yield Anomaly("incompatible order", f"{where}, read by {txn.name}: {others[-3:]}, not {order[-3:]}")
                elif others:
                    writer = self.txns[self.writer[others[-1]]] if others[-1] in self.writer else None
                    missing = (
                        []
                        if writer is None
                        else [each for there, each in writer.appends() if there == where and each not in others]
                    )
                    if missing:
                        yield Anomaly("G1b", f"{where}: {txn.name} reads {others[-1]} without {missing[:3]}")

    def _counts(self) -> Iterator[Anomaly]:
        """Each append was counted in the same call: in every snapshot there are as many as the namespace says."""
        for txn in self.txns:
            for kind, where, *numbers in txn.ops:
                if kind == "count" and numbers[0] != numbers[1]:
                    yield Anomaly("torn", f"{txn.name} reads {numbers[0]} as the number of {numbers[1]} elements in {where}")
        for namespace, counted in self.counters.items():
            expected = sum(
                where.partition("/")[0] == namespace for at in self.landed for where, _ in self.txns[at].appends()
            )
            if counted != expected:
                yield Anomaly("lost" if counted < expected else "duplicate", f"{namespace} counts {counted}, not {expected}")

    def _lost_updates(self) -> Iterator[Anomaly]:
        for at in self.landed:
            txn = self.txns[at]
            if txn.mode == "merge":
                continue
            written = {where for where, _ in txn.appends()}
            for where, elements in txn.reads():
                if where not in written:
                    continue
                order = self.orders[where]
                others = [each for each in elements if self.writer.get(each) != at]
                following = order[len(others)] if len(others) < len(order) else None
                if self.writer.get(following or "") != at:
                    yield Anomaly("lost update", f"{txn.name} wrote {where} as if nobody had appended {following}")
                    break

    def _overlaps(self) -> Iterator[Anomaly]:
        bodies: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
        for txn in self.txns:
            for namespace, begun, ended in txn.bodies:
                bodies[namespace].append((begun, ended, txn.name))
        for namespace, runs in bodies.items():
            runs.sort()
            for one, other in itertools.pairwise(runs):
                if other[0] < one[1] and other[2] != one[2]:
                    yield Anomaly("overlap", f"{one[2]} and {other[2]} had {namespace} to themselves at once")

    # Cycles.

    def _cycles(self) -> Iterator[Anomaly]:
        graph = self._graph()
        names: dict[Any, str] = {}
        for at, txn in enumerate(self.txns):
            names[self._reading(at)] = names[self._writing(at)] = txn.name
        for kinds, suffix in (((_WW, _WR, _RW, _IN), ""), ((_WW, _WR, _RW, _IN, _RT), "-realtime")):
            found = False
            for component in _components(_only(graph, kinds)):
                inside = {node: {to: kind for to, kind in graph[node].items() if to in component} for node in component}
                name, cycle = _classified(_only(inside, kinds), (_RT,) if suffix else ())
                path = " -> ".join(f"{names[node]} {kind}" for node, kind in cycle if node in names)
                found = True
                yield Anomaly(name + suffix, path)
            if found:
                return

    def _is_split(self, at: int) -> bool:
        txn = self.txns[at]
        return at not in self.landed or txn.mode in ("merge", "conflict")

    def _reading(self, at: int) -> Any:
        return ("s" if self._is_split(at) else "c", at)

    def _writing(self, at: int) -> Any:
        return ("c", at)

    def _graph(self) -> dict[Any, dict[Any, set[str]]]:
        graph: dict[Any, dict[Any, set[str]]] = defaultdict(lambda: defaultdict(set))
        reading, writing = self._reading, self._writing
        for at in range(len(self.txns)):
            graph[reading(at)], graph[writing(at)]
            if at in self.landed and self._is_split(at):
                graph[reading(at)][writing(at)].add(_IN)
        writer = {each: at for each, at in self.writer.items() if at in self.landed}
        for order in self.orders.values():
            for one, other in itertools.pairwise(order):
                if (first := writer.get(one)) != (then := writer.get(other)) and None not in (first, then):
                    graph[writing(first)][writing(then)].add(_WW)
        for at, txn in enumerate(self.txns):
            if txn.moments and at not in self.landed:
                continue
            for where, elements in txn.reads():
                others = [each for each in elements if self.writer.get(each) != at]
                order = self.orders.get(where, [])
                if others and (last := writer.get(others[-1])) is not None:
                    graph[writing(last)][reading(at)].add(_WR)
                if txn.mode == "conflict" and at in self.landed:
                    for one, other in itertools.pairwise(order):
                        if writer.get(other) == at and (last := writer.get(one, at)) != at:
                            # Whoever it follows on is who it has read.
                            graph[writing(last)][reading(at)].add(_WR)
                following = order[len(others)] if len(others) < len(order) else None
                if following is not None and (then := writer.get(following, at)) != at:
                    graph[reading(at)][writing(then)].add(_RW)
        self._add_real_time(graph)
        return graph

    def _add_real_time(self, graph: dict[Any, dict[Any, set[str]]]) -> None:
        # One node for each return; a call stands behind the last one before it, and so behind all before that.
        moments = [(txn.end, 1, at) for at, txn in enumerate(self.txns) if txn.outcome == "ok"]
        moments += [(txn.start, 0, at) for at, txn in enumerate(self.txns) if at in self.landed or not txn.moments]
        latest: Any = None
        for number, (_, ended, at) in enumerate(sorted(moments)):
            if ended:
                now = ("t", number)
                graph[self._writing(at)][now].add(_RT)
                graph[now]
                if latest is not None:
                    graph[latest][now].add(_RT)
                latest = now
            elif latest is not None:
                graph[latest][self._reading(at)].add(_RT)


def _only(graph: dict[Any, dict[Any, set[str]]], kinds: Iterable[str]) -> dict[Any, dict[Any, set[str]]]:
    wanted = set(kinds)
    return {node: {to: has & wanted for to, has in edges.items() if has & wanted} for node, edges in graph.items()}


def _classified(graph: dict[Any, dict[Any, set[str]]], also: tuple[str, ...]) -> tuple[str, list[tuple[Any, str]]]:
    """The name of the gravest cycle of a component, and the nodes on it, each with the kind of edge that leaves it."""
    for name, kinds in (("G0", (_WW, _IN)), ("G1c", (_WW, _WR, _IN))):
        allowed = _only(graph, (*kinds, *also))
        for component in _components(allowed):
            start = min(component)
            return name, _path(allowed, start, start)
    forward = _only(graph, (_WW, _WR, _IN, *also))
    for node, edges in graph.items():
        for to, has in edges.items():
            if _RW in has and (to == node or (back := _path(forward, to, node))):
                return "G-single", [(node, _RW), *([] if to == node else back)]
    start = min(graph)
    return "G2", _path(graph, start, start)


def _path(graph: dict[Any, dict[Any, set[str]]], start: Any, end: Any) -> list[tuple[Any, str]]:
    """A shortest way from one node to another, or round and back; [] if there is none."""
    before: dict[Any, Any] = {}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for to in graph[node]:
            if to == end:
                path = [(node, min(graph[node][to]))]
                while node != start:
                    path.append((before[node], min(graph[before[node]][node])))
                    node = before[node]
                return path[::-1]
            if to not in before and to != start:
                before[to] = node
                queue.append(to)
    return []


def _components(graph: dict[Any, dict[Any, Any]]) -> list[set[Any]]:
    """The strongly connected components that have a cycle (Tarjan, without recursion)."""
    index: dict[Any, int] = {}
    low: dict[Any, int] = {}
    stack: list[Any] = []
    on_stack: set[Any] = set()
    found = []
    for root in graph:
        if root in index:
            continue
        work = [(root, iter(graph[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, edges = work[-1]
            for to in edges:
                if to not in index:
                    index[to] = low[to] = len(index)
                    stack.append(to)
                    on_stack.add(to)
                    work.append((to, iter(graph[to])))
                    break
                if to in on_stack:
                    low[node] = min(low[node], index[to])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = set()
                    while node not in component:
                        on_stack.discard(popped := stack.pop())
                        component.add(popped)
                    if len(component) > 1 or node in graph[node]:
                        found.append(component)
    return found
