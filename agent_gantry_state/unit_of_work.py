"""What happens in a call: load, run, then commit or discard.

A unit of work opens the memories that a call needs from one snapshot, finds what the call changed in them, and commits all
of it in one step. Where another call was quicker it merges, always from what was loaded and what this call made of it, and
tries again. A call that is made inside another one is a savepoint of it: the memories of the outer one are the store that it
loads from and commits to. It does no I/O: it yields messages (`steps`) and is sent the answers.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from agent_gantry_state.bridge import on_event_loop
from agent_gantry_state.changes import changes_of, is_due, plain_changes
from agent_gantry_state.committing import Part, Parts, new_token, new_version
from agent_gantry_state.compartments import all_known_as, is_reserved
from agent_gantry_state.errors import (
    MemoryConflictError,
    OrphanedCallError,
    PartialCommitError,
    SessionOwnerError,
    StateError,
    StoreError,
    StoreTimeoutError,
)
from agent_gantry_state.events import Observers
from agent_gantry_state.holding import Held, Want, change_of, refuse_owner
from agent_gantry_state.limits import refuse_too_large
from agent_gantry_state.memory import Changes, Memory, Terms, open_memory, timed_by
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.rebase import conflict, erased, is_erased
from agent_gantry_state.savepoint import extend_memory, snapshot_of, was_deleted
from agent_gantry_state.scopes import Identity
from agent_gantry_state.sending import sent
from agent_gantry_state.several import Several, bridge_for, same_stores
from agent_gantry_state.steps import Pause, Steps
from agent_gantry_state.stores.protocol import Change, Commit, Committed, Load, Loaded, Moved, Snapshot
from agent_gantry_state.turns import EXCLUSIVE_SECONDS, Grant, Turn, Turns, give_back, leased, released, turns_of
from agent_gantry_state.views import View, end, flush, read_only, show

if TYPE_CHECKING:
    from agent_gantry_state.stores.memory import MemoryStore, Slot
    from agent_gantry_state.typed import Shape

__all__ = ["NESTING", "State", "Tried", "UnitOfWork", "finish_far", "finish_one", "forked", "orphan"]


class _Nesting:
    """The lock that is held while a nested call is made a part of the one around it, and while that one ends.

    Attributes:
        lock: The lock. (Used by itself, for methods written in Python would cost three times as much.)
        process: Stands for this process: calls that were begun before it was forked are its parent's.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """In a child process: a thread that is not there any more may have held it."""
        self.lock = threading.RLock()
        self.process = object()


NESTING = _Nesting()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=NESTING.renew)


class State(enum.Enum):
    """How far a unit of work is."""

    OPEN = "open"
    CLOSING = "closing"
    LANDED = "landed"
    FAILED = "failed"


_OPEN, _CLOSING, _LANDED, _FAILED = State.OPEN, State.CLOSING, State.LANDED, State.FAILED
_OVER = frozenset({_LANDED, _FAILED})


class _WhileItCommits(Pause):
    """A pause in which the call around may come to its end."""

    def wait(self) -> None:
        if on_event_loop():
            raise StoreTimeoutError(
                "nothing was written: the call around this one is just being committed, and a sync tool on an event loop's "
                "own thread cannot wait for that; make the tool async, or call it in a thread"
            )
        super().wait()


class UnitOfWork:
    """One call's memories, from load to commit.

    Args:
        wants: The namespaces to load.
        bridge: The way to the store, or to several.
        outer: The unit of the call in whose body this one is made.
    """

    __slots__ = (
        "_grants",
        "_moments",
        "_part",
        "_parts",
        "_process",
        "_turns",
        "_views",
        "_wants",
        "_watch",
        "bridge",
        "declared",
        "held",
        "inner",
        "outer",
        "reruns",
        "sole",
        "state",
    )

    #: All that it changed, and what became of that in the store or stores.
    _part: Part
    _parts: list[Part]

    def __init__(self, wants: Mapping[Namespace, Want], bridge: Any, outer: UnitOfWork | None = None) -> None:
        self._wants = wants
        self.bridge = bridge
        self.outer = outer
        self.held: dict[Namespace, Held] = {}
        self._views: list[View] = []
        #: Whether what it holds was loaded at more than one moment.
        self._moments = False
        self.state = _OPEN
        #: Queues of its nested calls.
        self.inner: Turns | None = None
        self._watch: tuple[Observers, str | None] | None = None
        self._turns: dict[Namespace, Turn] = {}
        self._grants: list[Grant] = []
        self._process = NESTING.process
        #: Namespaces in the order in which they are committed where that is not done in one step.
        self.declared: tuple[Namespace | None, ...] = ()
        #: Whether its body runs again after a conflict: this holds for all that it has, also for calls inside.
        self.reruns = False
        #: The store that all of its memories are in, if that is one of this process and nobody else has to be asked or told.
        self.sole: MemoryStore | None = None

    @classmethod
    def of(cls, memory: Memory, want: Want, bridge: Any, process: object = None) -> UnitOfWork:
        """The unit of a memory that was opened without one, in a *process* if not in this one."""
        unit = cls({}, bridge)
        if process is not None:
            unit._process = process
        assert memory._namespace is not None  # noqa: S101 - it was opened with one
        unit.held[memory._namespace] = Held(memory, want, None, unit._views)
        unit.reruns = memory._terms.reruns
        return unit

    def watched(self, observers: Observers | None, tool: str | None) -> UnitOfWork:
        """This unit, of which *observers* are told what becomes of it."""
        if observers is not None:
            self._watch = observers, tool
        return self

    # Where it stands among other calls.

    def host(self) -> UnitOfWork | None:
        """The unit that takes up what this one does: the nearest around it that is not over; None: it commits by itself.

        Raises:
            OrphanedCallError: A call around it has failed.
        """
        above = self.outer
        while above is not None:
            if above.state is _FAILED:
                raise orphan()
            if above.state is not _LANDED and (above.bridge is self.bridge or same_stores(above.bridge, self.bridge)):
                return above
            above = above.outer
        return None

    # Loading.

    def begin(self) -> Steps[tuple[Memory, ...]]:
        """`start`, and give the memories, in the order of its wants."""
        yield from self.start()
        return tuple([self.held[namespace].seen() for namespace in self._wants])

    def start(self) -> Steps[None]:
        """Wait for its turn, where it wants memories to itself, and load the memories.

        Raises:
            ExclusiveTimeoutError: Its turn did not come.
            OrphanedCallError: A call around it has failed.
            SessionOwnerError: A memory belongs to somebody else.
        """
        for want in self._wants.values():
            if want.terms.exclusive:
                return self._start_in_turn()
        # Without a generator of its own, through which everything that is asked and answered would have to go.
        return self.hold(self._wants)

    def _start_in_turn(self) -> Steps[None]:
        exclusive = [namespace for namespace, want in self._wants.items() if want.terms.exclusive]
        deadline = time.monotonic() + EXCLUSIVE_SECONDS
        # In one order for all, so that no two wait for each other.
        for namespace in sorted(exclusive, key=lambda each: each.digest):
            yield from self._take_turn(namespace, deadline)
        yield from self.hold(self._wants)

    def hold(self, wants: Mapping[Namespace, Want], nested: bool = False) -> Steps[None]:
        """Have memories of these namespaces, loading what was not loaded before from one snapshot.

        Args:
            wants: What is wanted of each.
            nested: Whether it is a call inside this one that wants them.

        Raises:
            MemoryErasedError: A namespace of which keys were loaded has been erased since.
            OrphanedCallError: A call around this one has failed.
            SessionOwnerError: One belongs to somebody else.
        """
        # Nothing is waited for as long as nothing is missing.
        return self._fetch(self._missing(wants, nested))

    def _missing(self, wants: Mapping[Namespace, Want], nested: bool) -> dict[Namespace, Want]:
        """What has to be loaded for these wants.

        Raises:
            SessionOwnerError: What has been loaded belongs to somebody else.
        """
        missing: dict[Namespace, Want] = {}
        for namespace, want in wants.items():
            held = self.held.get(namespace)
            if held is not None:
                try:
                    refuse_owner(want, held.owner)
                except SessionOwnerError as error:
                    _count_failure(self.bridge, error)
                    raise
                if not nested:
                    held.keep(want)
                    if held.want.terms.bare and not want.terms.bare:
                        held.open_to(want)
                if held.has(want.keys):
                    continue
            missing[namespace] = want.for_nested() if nested else want
        return missing

    def _fetch(self, missing: Mapping[Namespace, Want]) -> Steps[None]:
        """Load what is missing from one snapshot: from the stores, or from the call around this one."""
        if not missing:
            return
        host = None if self.outer is None else self.host()
        if host is None:
            self._moments = bool(self.held)
            if type(self.bridge) is Several:
                yield from self._load_all(missing, self.bridge)
                return
            if self.sole is None:
                loaded: Loaded = yield _load(missing, self.bridge)
                snapshots, now = loaded.snapshots, loaded.now
            else:
                snapshots, now = self.sole.snapshots([(namespace, want.keys) for namespace, want in missing.items()])
            found = dict(zip(missing, snapshots, strict=True))
            _refuse_owners(missing, found, self.bridge)
            with NESTING.lock:
                for namespace, want in missing.items():
                    self._take(namespace, want, found[namespace], now, None)
            return
        if below := host._missing(missing, nested=True):
            yield from host._fetch(below)
        with NESTING.lock:
            for namespace, want in missing.items():
                origin = host.held[namespace]
                origin.make_entire()
                origin.flush()
                snapshot = snapshot_of(origin.memory, want.keys)
                self._take(namespace, want, snapshot, origin.memory._now, origin)

    def _load_all(self, missing: Mapping[Namespace, Want], several: Several) -> Steps[None]:
        """Load from several stores; what one of them has is of one moment."""
        found: dict[Namespace, tuple[Snapshot, float]] = {}
        for bridge in several.bridges:
            wants = {namespace: want for namespace, want in missing.items() if several.of(namespace) is bridge}
            if wants:
                loaded: Loaded = yield _load(wants, bridge)
                snapshots = dict(zip(wants, loaded.snapshots, strict=True))
                _refuse_owners(wants, snapshots, bridge)
                found.update({namespace: (each, loaded.now) for namespace, each in snapshots.items()})
        with NESTING.lock:
            for namespace, want in missing.items():
                self._take(namespace, want, *found[namespace], None)

    def _take(self, namespace: Namespace, want: Want, snapshot: Snapshot, now: float, origin: Held | None) -> None:
        held = self.held.get(namespace)
        if held is None:
            if self.reruns is not want.terms.reruns:
                want = want._replace(terms=replace(want.terms, reruns=self.reruns))
            self.held[namespace] = Held(open_memory(namespace, snapshot, now, want.terms), want, origin, self._views)
        elif not held.has(want.keys):
            if held.want.terms.keys is not None and held.view is None:
                held.split()
            if is_erased(held.memory._base, snapshot, now):
                raise erased(want.terms.scope)
            assert held.keys is not None  # noqa: S101 - else it would have them all
            extend_memory(held.memory, snapshot, held.keys, want.keys)
            held.keys = None if want.keys is None else held.keys.union(want.keys)

    def look(self, namespaces: Sequence[Namespace], terms: Terms, prefix: str, shape: Shape | None) -> Any:
        """Make a view of namespaces that were loaded and that nobody has changed yet, and give what the body gets.

        Args:
            namespaces: The nearest first.
            terms: How the memory behaves.
            prefix: What the keys of its compartment begin with.
            shape: The class of which it is an instance; None: it is a memory.

        Raises:
            MemoryValidationError: What is stored does not fit that.
        """
        layers = [self.held[namespace] for namespace in namespaces]
        if layers[0].view is None and not layers[0].memory._terms.bare:
            layers[0].split()
        for held in layers[1:]:
            held.make_entire()
        view = View(layers, terms, prefix) if shape is None else _typed_view(layers, terms, prefix, shape)
        self._views.append(view)
        return view.given

    def show(self) -> None:
        """Show in the body's views what was written to what they show; they have been flushed."""
        show(self._views)

    def names(self, namespace: Namespace, want: Want) -> Steps[list[str]]:
        """The keys of a namespace, as this call sees it, without loading their values. *want* asks for no keys."""
        yield from self.hold({namespace: want})
        held = self.held[namespace]
        held.flush()
        if held.keys is None:
            return [key for key in held.memory if not is_reserved(key)]
        host = self.host()
        if host is None:
            timeout = bridge_for(self.bridge, namespace).load_timeout
            loaded: Loaded = yield Load((namespace,), ((),), timeout, names=True)
            refuse_owner(want, loaded.snapshots[0].owner)
            there = [key for key in loaded.snapshots[0].versions if not is_reserved(key)]
        else:
            there = yield from host.names(namespace, want.for_nested())
        memory, known = held.memory, held.keys
        # What was deleted and made again goes last, as in a dict.
        kept = {key: None for key in there if key not in known or (key in memory and not was_deleted(memory, key))}
        return [*kept, *(key for key in memory if key not in kept and not is_reserved(key))]

    # Taking turns.

    def _take_turn(self, namespace: Namespace, deadline: float) -> Steps[None]:
        """Wait until no other call has a namespace to itself: first among the calls inside the one around this one, then,
        for the whole of that one, further out."""
        while namespace not in self._turns and self.state not in _OVER:
            host, bridge = self.host(), bridge_for(self.bridge, namespace)
            if host is None:
                turns = turns_of(bridge.store)
            else:
                with NESTING.lock:
                    turns = host.inner = host.inner or Turns()
            turn, grant = turns.ask(namespace, deadline), None
            try:
                yield turn
                if host is not None:
                    yield from host._take_turn(namespace, deadline)
                elif not getattr(bridge.store, "inline", False):
                    grant = yield from leased(bridge, namespace, deadline)
            except BaseException:
                turn.leave()
                raise
            if self._keep_turn(turn, grant, host):
                return
            # It was waited for on behalf of a call that has ended meanwhile.
            try:
                if grant is not None:
                    yield from released(grant)
            finally:
                turn.leave()

    def _keep_turn(self, turn: Turn, grant: Grant | None, host: UnitOfWork | None) -> bool:
        with NESTING.lock:
            if self.state in _OVER or (host is not None and host.state in _OVER):
                return False
            self._turns[turn.namespace] = turn
            if grant is not None:
                self._grants.append(grant)
        return True

    def release(self) -> Steps[None]:
        """Let other calls have what this one had to itself."""
        try:
            while self._grants:
                yield from released(self._grants.pop())
        finally:
            self.drop()

    def drop(self) -> None:
        """`release` for a caller that cannot wait: leases are given back by a thread."""
        while self._grants:
            give_back(self._grants.pop())
        while self._turns:
            self._turns.popitem()[1].leave()

    # Ending.

    def finish(self, landed: Callable[[], None] | None = None) -> Steps[None]:
        """Commit what the call changed, merging where others were quicker.

        Args:
            landed: Called as soon as it has landed.

        Raises:
            MemoryConflictError: What both sides changed cannot be merged, or had to stay as it was.
            MemoryErasedError: A namespace was erased after it had been loaded.
            MemoryTooLargeError: A memory would be larger than it may be.
            NotAtomicError: What it changed cannot be written in one step.
            OrphanedCallError: A call around this one has failed, or this one is made by a parent of this process.
            PartialCommitError: It could be written in several steps, of which one failed after others.
            SessionOwnerError: A memory has come to belong to somebody else.
            StoreTimeoutError: Others were quicker for too long.
            UndeclaredKeyError: The call wrote a key that it had not declared.
            UnstorableValueError: The call left something in a memory that cannot be stored.
        """
        if not self.is_here:
            raise forked()
        with NESTING.lock:
            # A nested call that ends from now on goes on by itself, or not at all.
            self.state = _CLOSING
        parts: Parts | None = None
        try:
            if self._views:
                # The body has ended: what it sees need not be up to date, but where one view writes what another shows.
                flush(self._views, last=len(self._views) == 1)
            at_once = self.sole is not None and self.outer is None and self._assigned(self.sole)
            commit = None if at_once else self.commit()
            deadline = host = None
            while not at_once:
                host = None if self.outer is None else self.host()
                if host is None:
                    if commit is None:
                        yield from self._look_again()
                        break
                    part, refuse = self._part, None
                    if self.outer is not None:
                        refuse = self.host
                        part.sees_others = any(held.origin is not None for held, _ in part.made)
                    if type(self.bridge) is Several:
                        parts = Parts(part.by_store(self.bridge, self.declared), self.bridge.partial)
                        self._parts = parts.parts
                        yield from parts.write(refuse)
                        break
                    if part.sees_others:
                        # What it saw in the calls around it need not be what they have committed.
                        commit = yield from part.look()
                    yield from part.write(commit, refuse)
                    break
                if host.state is _CLOSING:
                    deadline = deadline or time.monotonic() + self.bridge.commit_timeout
                    yield from _wait_until(deadline)
                    continue
                if not self.held.keys() <= host.held.keys():
                    # What it was made in has ended since, and this one is taken up further out.
                    wants = {n: held.want for n, held in self.held.items() if n not in host.held}
                    yield from host.hold(wants, nested=True)
                answer = host.absorb(self, commit)
                if answer is None:
                    continue
                if not answer[0]:
                    break
                commit = self._part.settle(*answer, by_content=True)
                self._part.count_merge()
        except BaseException as error:
            self.state = _FAILED
            _count_failure(self.bridge, error)
            if self._watch is not None and isinstance(error, (MemoryConflictError, PartialCommitError)):
                yield from self._tell(error, [] if parts is None else parts.landed)
            raise
        with NESTING.lock:
            self.state = _LANDED
            if self._views:
                end(self._views)
            if host is None:
                self._let_go()
        if landed is not None:
            landed()
        if self._turns or self._grants:
            yield from self.release()
        if self._watch is not None and host is None:
            observers, tool = self._watch
            yield from observers.committed(tool, _changed(self._parts))

    def _assigned(self, store: MemoryStore) -> bool:
        """Whether there was no more to do than what a store in this process does without a message, and that is done."""
        if self._moments:
            return False
        written: list[tuple[Slot, bytes | None, dict[str, Any], dict[str, bytes], float]] = []
        kept = False
        for held in list(self.held.values()):
            memory, base = held.memory, held.memory._base
            values: dict[str, Any] = {}
            packed: dict[str, bytes] = {}
            if memory._touched or base.packed or len(memory) != len(base.values):
                if (plain := plain_changes(memory)) is None:
                    return False
                values, packed = plain
            if values or self._views:
                # It looks at the names of the keys only.
                named: Any = (values, (), {})
                held.refuse(named if values else None)
            if not values:
                if is_due(memory):
                    return False
                kept = kept or bool(held.parts or held.checked)
                continue
            slot = store.slot(memory._namespace)  # type: ignore[arg-type]
            if slot is None or base.head is None or not (base.first or base.later):
                # What a namespace begins with is written with its first key.
                return False
            if held.want.owner not in (None, base.owner):
                return False
            written.append((slot, base.head, values, packed, held.want.terms.limits.plain_bytes))
        if written and (kept or not store.assign_all(written, new_version())):
            # What had to stay as it was must be looked at in the same step.
            return False
        self._parts = []
        return True

    def _tell(self, error: MemoryConflictError | PartialCommitError, landed: list[Part]) -> Steps[None]:
        """Tell the observers what became of a call that has failed."""
        assert self._watch is not None  # noqa: S101 - nobody else is told
        observers, tool = self._watch
        cause = error if isinstance(error, MemoryConflictError) else error.__cause__
        if isinstance(cause, MemoryConflictError):
            yield from observers.conflicted(tool, cause)
        yield from observers.committed(tool, _changed(landed))

    def _look_again(self) -> Steps[None]:
        """Refuse a call that wrote nothing, of which a commit does not tell whether what it had to find unchanged is there.

        Raises:
            MemoryConflictError: It is not.
        """
        parts = self._parts
        if type(self.bridge) is Several:
            parts = [each for part in parts for each in part.by_store(self.bridge, self.declared)]
        for part in parts:
            if any(held.origin is not None for held, _ in part.made):
                # What it saw in the calls around it need not be what they have committed.
                part.sees_others = True
                yield from part.look()
            elif self._moments and (len(part.made) > 1 or any(not held.whole for held, _ in part.made)):
                # It must have read one moment: if all is now as each was loaded, it was so in between.
                yield from part.compare()

    def _let_go(self) -> None:
        """Note what has become of its namespaces, for calls inside that outlive it, and forget those around it."""
        for held in self.held.values():
            if held.origin is not None:
                held.born, held.origin = held.committed_born(), None
        for part in self._parts:
            for (held, changes), change in zip(part.made, part.pending, strict=True):
                if changes is not None:
                    held.born = change.born or part.version
        while self.outer is not None and self.outer.state is _LANDED:
            self.outer = self.outer.outer

    def fail(self) -> None:
        """Discard what the call changed, unless it has landed. What it has to itself is still to be released."""
        if self.state is not _LANDED:
            with NESTING.lock:
                self.state = _FAILED
                end(self._views)

    def end(self, state: State) -> None:
        """Note what has become of its call, unless it was this unit that has committed it."""
        with NESTING.lock:
            if self.state is _CLOSING:
                self.state = state

    @property
    def is_open(self) -> bool:
        """Whether its body may still be running."""
        return self.state is _OPEN

    @property
    def is_here(self) -> bool:
        """Whether it was begun in this process, and not in a parent from which this one was forked meanwhile."""
        return self._process is NESTING.process

    @property
    def has_to_release(self) -> bool:
        """Whether it has something to itself that others wait for."""
        return bool(self._turns or self._grants) and self.is_here

    def settle_with(self, answer: Moved, send: Callable[[Commit], Any]) -> None:
        """The rest of `finish` after others were quicker, for a store that answers at once."""
        while (commit := self._part.settle(answer.snapshots, answer.now)) is not None:
            self._part.refuse_too_large()
            if not isinstance(answer := send(commit), Moved):
                return

    def commit(self) -> Commit | None:
        """The commit of what the call changed, as far as its views are flushed; None if there is nothing to commit."""
        pending: list[Change] = []
        made: list[tuple[Held, Changes | None]] = []
        writes = False
        for held in list(self.held.values()):
            memory = held.memory
            changes = changes_of(memory)
            if changes is not None or self._views:
                held.refuse(changes)
            if changes is not None or is_due(memory):
                writes = True
            elif not (held.parts or held.checked):
                continue
            elif held.parts and memory._base.head == b"":
                # It was read at several moments, between which it has changed.
                raise conflict({held.want.terms.scope: []}, serializable=True)
            made.append((held, changes))
            checked = held.checked
            if changes is not None and self._views:
                written = {*changes[0], *changes[1]}
                checked = checked.union(*(view.watched(written) for view in self._views if view.held is held))
            pending.append(change_of(memory, changes, held.want.owner, held.whole, checked))
        if not made:
            self._parts = []
            return None
        self._part = part = Part(self.bridge, made, pending)
        self._parts = [part]
        return part.message() if writes else None

    def absorb(self, inner: UnitOfWork, commit: Commit | None) -> tuple[list[Snapshot], list[float]] | None:
        """Take up what a nested call changed; the answer is how things stand, and when, if something has moved.

        None: this unit has ended just now.
        """
        with NESTING.lock:
            if self.state is not _OPEN:
                return None
            for namespace, held in inner.held.items():
                refuse_owner(held.want, self.held[namespace].owner)
            if commit is not None:
                both = list(zip(inner._part.made, commit.changes, strict=True))
                moved = False
                for (held, _), change in both:
                    mine = self.held[change.namespace]
                    mine.expect(change)
                    moved = moved or mine.has_moved(held, change)
                if moved:
                    memories = [self.held[change.namespace].memory for change in commit.changes]
                    keys = [None if change.whole else change.checks for change in commit.changes]
                    current = [snapshot_of(memory, wanted) for memory, wanted in zip(memories, keys, strict=True)]
                    return current, [memory._now for memory in memories]
                for (held, changes), change in both:
                    self._absorb(held, changes, change)
                if self._views:
                    show(self._views)
            for namespace, held in inner.held.items():
                if held.parts or held.checked:
                    mine = self.held[namespace]
                    mine.parts, mine.checked = mine.parts | held.parts, mine.checked | held.checked
        return [], []

    def _absorb(self, held: Held, changes: Changes | None, change: Change) -> None:
        mine = self.held[change.namespace]
        mine.take_up(
            change,
            {} if changes is None else changes[2],
            timed_by(held.memory),
            held.memory._terms.merges,
            held.bases,
        )
        if (change.puts or change.deletes) and (mine.want.nested or held.want.adopts):
            mine.want = mine.want._replace(owner=held.want.owner, adopts=held.want.adopts, nested=False)


def _typed_view(layers: Sequence[Held], terms: Terms, prefix: str, shape: Shape) -> View:
    from agent_gantry_state.typed_view import TypedView

    return TypedView(layers, terms, prefix, shape)


def _wait_until(deadline: float) -> Steps[None]:
    """Wait a moment for the call around, which is being committed."""
    if time.monotonic() > deadline:
        raise StoreTimeoutError(
            "nothing was written: the call around this one is still being committed, and what comes of it is not known"
        )
    yield _WhileItCommits(0.002)


def _load(wants: Mapping[Namespace, Want], bridge: Any) -> Load:
    keys = tuple([want.keys for want in wants.values()])
    return Load(tuple(wants), None if keys.count(None) == len(keys) else keys, bridge.load_timeout)


def _refuse_owners(wants: Mapping[Namespace, Want], snapshots: Mapping[Namespace, Snapshot], bridge: Any) -> None:
    try:
        for namespace, want in wants.items():
            if want.owner is not None:
                refuse_owner(want, snapshots[namespace].owner)
    except SessionOwnerError as error:
        _count_failure(bridge, error)
        raise


def _count_failure(bridge: Any, error: BaseException) -> None:
    if bridge.counters is not None:
        bridge.counters.failed(error)


def _changed(parts: list[Part]) -> dict[str, list[str]]:
    """By scope the keys that a call wrote or deleted in these parts of its commit."""
    changed: dict[str, list[str]] = {}
    for part in parts:
        for held, changes in part.made:
            if changes is not None:
                changed.setdefault(held.want.terms.scope, []).extend((*changes[0], *changes[1]))
    return {scope: all_known_as(keys) for scope, keys in changed.items()}


def finish_one(memory: Memory, identity: Identity | None, bridge: Any, send: Callable[[Commit], Any]) -> None:
    """`UnitOfWork.finish` for one memory that was opened without a unit, from a store that *send* has answer at once.

    If it raises `WouldBlock`, nothing was written and nothing is changed.
    """
    made = _made_of(memory, identity)
    if made is None:
        return
    answer = send(Commit(b"", new_version(), (made[1],), bridge.commit_timeout))
    if isinstance(answer, Moved):
        _unit_of(memory, identity, bridge, made).settle_with(answer, send)


class Tried(NamedTuple):
    """A first try of a commit, without a message, that has not landed as far as is known.

    Attributes:
        token: That of the commit.
        deadline: When its time is over, on the monotonic clock.
        keys: What it wrote.
        ended: How: with an error, with what stands there instead, or without a word if nothing was done.
    """

    token: bytes
    deadline: float
    keys: Set[str]
    ended: StoreError | Moved | Literal[False]


def finish_far(
    memory: Memory,
    identity: Identity | None,
    bridge: Any,
    end: Callable[[State], None],
    tried: Tried | None = None,
) -> Steps[None]:
    """`finish_one` for a store whose answer can be lost. *end* is told what has become of the call as soon as it is known,
    for whoever runs this may be cancelled while it lands. *tried* is what was done of it before."""
    failed = tried.ended if tried is not None and isinstance(tried.ended, StoreError) else None
    try:
        try:
            made = _made_of(memory, identity)
            if made is None and failed is not None:
                # A thread of the body has undone it since; what was sent may have landed, or not.
                raise failed
        except StateError as error:
            if failed is not None and failed.committed is None:
                error.committed = None
            raise
        if made is not None:
            if tried is None:
                tried = Tried(new_token(), time.monotonic() + bridge.commit_timeout, frozenset(), False)
            token, deadline, keys, ended = tried
            if isinstance(ended, Moved) and keys >= made[1].checks.keys():
                answer: Committed | Moved | None = ended
            else:
                # A thread of the body may have written more since.
                message = Commit(token, token[:8], (made[1],))
                answer = yield from sent(message, deadline, again=True, counters=bridge.counters, failed=failed)
            if isinstance(answer, Moved):
                part = _unit_of(memory, identity, bridge, made)._part
                # It goes on as what was sent, of which the store may still do one more.
                part.token, part.deadline = token, deadline
                yield from part.write(part.settle(answer.snapshots, answer.now))
    except BaseException:
        end(_FAILED)
        raise
    end(_LANDED)


def _made_of(memory: Memory, identity: Identity | None) -> tuple[Changes | None, Change] | None:
    """What a call made of its one memory, and what a store is to do for that; None if nothing."""
    changes = changes_of(memory)
    if changes is None and not is_due(memory):
        return None
    if changes is not None and memory._terms.read_only:
        raise read_only(memory._terms.scope, changes)
    change = change_of(memory, changes, identity.owner if identity is not None and memory._terms.owned else None)
    refuse_too_large(memory._terms.limits, change, memory._base.entire)
    return changes, change


def _unit_of(memory: Memory, identity: Identity | None, bridge: Any, made: tuple[Changes | None, Change]) -> UnitOfWork:
    """The unit of a memory that was opened without one, where others were quicker."""
    unit = UnitOfWork.of(memory, Want.of(memory._terms, identity), bridge)
    (held,) = unit.held.values()
    unit._part = Part(bridge, [(held, made[0])], [made[1]])
    return unit


def forked() -> OrphanedCallError:
    """The error of a call that is made by the parent of this process."""
    return OrphanedCallError(
        "nothing was written: this process was forked while the call ran, and it is the parent that commits it; have the "
        "child call tools of its own, which are no part of that call, and end without leaving its body"
    )


def orphan() -> OrphanedCallError:
    """The error of a call that was made inside one that has failed."""
    return OrphanedCallError(
        "nothing was written: the call inside which this one was made has failed, was cancelled or has timed out; what is "
        "to stand on its own runs inside `with gantry.independent():`"
    )
