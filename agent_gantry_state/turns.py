"""One call after the other: queues for the calls that want a memory to themselves.

Within a process calls take turns in the order in which they asked, whatever threads and event loops they come from. Between
processes a lease on the namespace does the same; it is renewed by a thread of this module while it is held, and it lapses if
its holder dies. A lease alone proves nothing, for a holder may be stopped for longer than it lasts: what makes sure is that
the call commits as serializable.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import random
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent_gantry_state.bridge import Bridge, in_asyncio, on_event_loop
from agent_gantry_state.errors import ExclusiveTimeoutError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.notes import LOG, fields
from agent_gantry_state.steps import Pause, Steps, Wait
from agent_gantry_state.stores.protocol import Lease, Release

__all__ = ["EXCLUSIVE_SECONDS", "LEASE_SECONDS", "Grant", "Turn", "Turns", "give_back", "leased", "released", "turns_of"]

#: A call waits at most this long for its turn, in seconds.
EXCLUSIVE_SECONDS = 60.0
#: How long a lease lasts that nobody renews, in seconds; it is renewed three times as often.
LEASE_SECONDS = 10.0
#: Seconds after which a lease is given back once more that may have been granted after it had been given back.
_DOUBTFUL = 0.5
#: Seconds after which who waits for his turn looks whether somebody before him is gone without having left.
_LOOK = 1.0
#: Longest pause before a lease that somebody else holds is asked for again, in seconds.
_LONGEST_PAUSE = 0.05


class Turn(Wait):
    """A place in a queue; waiting for it says whether its turn has come in time."""

    __slots__ = ("_home", "_turns", "deadline", "granted", "namespace")

    def __init__(self, turns: Turns, namespace: Namespace, deadline: float) -> None:
        self._turns = turns
        self.namespace = namespace
        #: On the monotonic clock, in seconds.
        self.deadline = deadline
        self.granted: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._home: asyncio.AbstractEventLoop | None = None

    def wait(self) -> None:
        if self.granted.done():
            return
        refuse_on_loop(self.namespace.scope)
        while not self.granted.done():
            concurrent.futures.wait([self.granted], self._patience())

    async def await_(self) -> None:
        self._home = _home()
        if self.granted.done():
            return
        import anyio

        event = anyio.Event()
        wake = _waker()
        self.granted.add_done_callback(lambda _: wake(event.set))
        while not self.granted.done():
            with anyio.move_on_after(self._patience()):
                await event.wait()

    def _patience(self) -> float:
        """Seconds to wait for now."""
        left = self.deadline - time.monotonic()
        self._turns.move_up(self.namespace)
        if left <= 0 and not self.granted.done():
            raise too_late(self.namespace.scope)
        return min(max(left, 0.0), _LOOK)

    def is_forsaken(self) -> bool:
        """Whether whoever asked for it never goes on."""
        return _is_over(self._home)

    def leave(self) -> None:
        """Give the turn to the next in the queue, or give up waiting for it."""
        self._turns.leave(self)


class Turns:
    """Queues of calls, one for each namespace.

    A turn belongs to the call that asked for it. If that is gone, ended by a signal before it could leave, so is its place;
    and so it is if its event loop was closed over it.
    """

    def __init__(self) -> None:
        # The garbage collector may close a call, which leaves then, in the middle of any of this.
        self._lock = threading.RLock()
        self._queues: dict[Namespace, deque[weakref.ref[Turn]]] = {}

    def ask(self, namespace: Namespace, deadline: float) -> Turn:
        """Stand in the queue for a namespace, until *deadline* on the monotonic clock."""
        turn = Turn(self, namespace, deadline)
        with self._lock:
            queue = self._queues.get(namespace) or deque()
            queue.append(weakref.ref(turn))
            self._queues[namespace] = queue
        self.move_up(namespace)
        return turn

    def leave(self, turn: Turn) -> None:
        with self._lock:
            if queue := self._queues.get(turn.namespace):
                _remove(queue, weakref.ref(turn))
        self.move_up(turn.namespace)

    def move_up(self, namespace: Namespace) -> None:
        """Give the turn to whoever is first in the queue."""
        with self._lock:
            queue = self._queues.get(namespace)
            while queue:
                place = queue[0]
                if (turn := place()) is not None and not turn.is_forsaken():
                    if not turn.granted.done():
                        turn.granted.set_result(None)
                    return
                _remove(queue, place)
            self._queues.pop(namespace, None)


def _remove(queue: deque[weakref.ref[Turn]], place: weakref.ref[Turn]) -> None:
    if place in queue:
        queue.remove(place)


def _home() -> asyncio.AbstractEventLoop | None:
    return asyncio.get_running_loop() if in_asyncio() else None


def _is_over(loop: asyncio.AbstractEventLoop | None) -> bool:
    return loop is not None and loop.is_closed()


def _waker() -> Any:
    """A function that has another one called on the event loop of this thread, from whatever thread."""
    if in_asyncio():
        call_soon = asyncio.get_running_loop().call_soon_threadsafe
    else:
        call_soon = sys.modules["trio"].lowlevel.current_trio_token().run_sync_soon

    def wake(function: Any) -> None:
        # The loop may be gone, and with it whoever was waiting.
        with contextlib.suppress(Exception):
            call_soon(function)

    return wake


def refuse_on_loop(scope: str) -> None:
    """Refuse to block a thread that runs an event loop.

    Raises:
        ExclusiveTimeoutError: This thread does.
    """
    if on_event_loop():
        raise ExclusiveTimeoutError(
            f"{scope} memory: another call has it to itself, and a sync tool on an event loop's own thread cannot wait for "
            "its turn, for the other could then not go on; make the tool async, or call it in a thread",
            scope=scope,
        )


def too_late(scope: str) -> ExclusiveTimeoutError:
    """The error of a call whose turn did not come."""
    return ExclusiveTimeoutError(
        f"{scope} memory: other calls had it to themselves for {EXCLUSIVE_SECONDS:g} s, so that the tool did not run; try "
        "again later, or keep what runs with exclusive=True short",
        scope=scope,
    )


# One set of queues for each store, whatever gantries use it.

_BY_STORE: weakref.WeakKeyDictionary[Any, Turns] = weakref.WeakKeyDictionary()
#: Of stores that cannot be hashed or have no weak references; they stay until the program ends.
_BY_ID: dict[int, tuple[Any, Turns]] = {}
_LOCK = threading.RLock()


def turns_of(store: Any) -> Turns:
    """The queues of the calls that want a namespace of *store* to themselves."""
    with _LOCK:
        try:
            turns = _BY_STORE.setdefault(store, Turns())
        except TypeError:
            turns = _BY_ID.setdefault(id(store), (store, Turns()))[1]
    return turns


# Between processes.


class _Contended(Pause):
    """A pause in which somebody else's lease may end."""

    def __init__(self, seconds: float, scope: str) -> None:
        super().__init__(seconds)
        self._scope = scope

    def wait(self) -> None:
        refuse_on_loop(self._scope)
        super().wait()


@dataclass(frozen=True)
class Grant:
    """A lease that was granted. It is renewed as long as there is somebody who has it, and his event loop if he has one."""

    bridge: Bridge
    namespace: Namespace
    holder: bytes
    home: asyncio.AbstractEventLoop | None = None

    def renew(self) -> Steps[float]:
        """Ask for it once more; what is left of somebody else's, if it was lost."""
        left: float = yield Lease(self.namespace, self.holder, LEASE_SECONDS, self.bridge.load_timeout)
        return left

    def end(self) -> Steps[None]:
        """Give it back."""
        yield Release(self.namespace, self.holder, self.bridge.load_timeout)


def leased(bridge: Bridge, namespace: Namespace, deadline: float) -> Steps[Grant]:
    """Get a lease and have it renewed.

    Raises:
        ExclusiveTimeoutError: Others held it until *deadline*.
    """
    grant = Grant(bridge, namespace, os.urandom(16), _home())
    pause = 0.001
    while (left := (yield from _asked(grant))) > 0:
        if time.monotonic() >= deadline:
            raise too_late(namespace.scope)
        pause = min(pause * 2, _LONGEST_PAUSE)
        yield _Contended(min(left, random.uniform(pause / 2, pause)), namespace.scope)  # noqa: S311 - jitter
    _renewer(bridge).add(grant)
    return grant


def _asked(grant: Grant) -> Steps[float]:
    try:
        return (yield from grant.renew())
    except BaseException:
        # Whatever went wrong, it may have been granted all the same, or be yet.
        give_back(grant, doubtful=True)
        raise


def give_back(grant: Grant, doubtful: bool = False) -> None:
    """`released` for a caller that cannot wait: a thread does it.

    Args:
        grant: What was granted.
        doubtful: Whether the question for it may still be on its way, and come after what gives it back.
    """
    _renewer(grant.bridge).give_back(grant, doubtful)


def released(grant: Grant) -> Steps[None]:
    """Give a lease back. If that fails it is logged, and the lease lapses."""
    _renewer(grant.bridge).remove(grant)
    try:
        yield from grant.end()
    except Exception as error:  # noqa: BLE001 - whatever a store raises: the call has committed or failed already
        LOG.warning("a lease could not be given back and has to lapse: %s", error, extra=fields("lease_not_released"))
    except BaseException:
        give_back(grant)
        raise


class _Renewer:
    """Renews the leases of one bridge in a thread that runs while there are any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        # It is the lock itself that is entered: a signal may come when a condition has just taken it.
        self._changed = threading.Condition(self._lock)
        self._held: weakref.WeakValueDictionary[bytes, Grant] = weakref.WeakValueDictionary()
        #: What is to be done to give each back, and when on the monotonic clock.
        self._returned: list[tuple[float, Grant, Callable[[Grant], Steps[None]]]] = []
        self._thread: threading.Thread | None = None

    def add(self, grant: Grant) -> None:
        with self._lock:
            self._held[grant.holder] = grant
            self._start()

    def _start(self) -> None:
        # One that a signal has kept from being started is not alive.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="agent-gantry-state-leases", daemon=True)
            self._thread.start()

    def remove(self, grant: Grant) -> None:
        with self._lock:
            self._held.pop(grant.holder, None)
            self._changed.notify()

    def give_back(self, grant: Grant, doubtful: bool) -> None:
        """Have a lease given back by the thread."""
        now = time.monotonic()
        with self._lock:
            self._held.pop(grant.holder, None)
            self._returned.append((now, grant, released))
            if doubtful:
                self._returned.append((now + _DOUBTFUL, grant, Grant.end))
            self._start()
            self._changed.notify()

    def _run(self) -> None:
        renewal = time.monotonic() + LEASE_SECONDS / 3
        while True:
            with self._lock:
                while self._held or self._returned:
                    now = time.monotonic()
                    end = min([renewal, *(at for at, _, _ in self._returned)])
                    if end <= now:
                        break
                    self._changed.wait(end - now)
                else:
                    self._thread = None
                    return
                returned = [each for each in self._returned if each[0] <= now]
                self._returned = [each for each in self._returned if each[0] > now]
            for _, grant, give in returned:
                with contextlib.suppress(Exception):
                    grant.bridge.run(give(grant))
            if renewal <= now:
                renewal = time.monotonic() + LEASE_SECONDS / 3
                self._renew_all()

    def _renew_all(self) -> None:
        # In a function of its own, for who waits for the next renewal must not be one who has them.
        with self._lock:
            due = list(self._held.values())
        for grant in due:
            if _is_over(grant.home):
                self.give_back(grant, doubtful=False)
            else:
                self._renew(grant)

    def _renew(self, grant: Grant) -> None:
        try:
            left = grant.bridge.run(grant.renew())
        except Exception as error:  # noqa: BLE001 - whatever a store raises: the thread has others to renew
            LOG.warning("a lease could not be renewed: %s", error, extra=fields("lease_not_renewed"))
            return
        with self._lock:
            there = grant.holder in self._held
        if left > 0 and there:
            LOG.warning(
                "a lease was lost to another call; this one will not commit if that does", extra=fields("lease_lost")
            )
        elif not there:
            # Given back while it was being renewed.
            with contextlib.suppress(Exception):
                grant.bridge.run(released(grant))


#: One for each bridge: a store that hangs must not keep those of another from being renewed.
_RENEWERS: weakref.WeakKeyDictionary[Bridge, _Renewer] = weakref.WeakKeyDictionary()


def _renewer(bridge: Bridge) -> _Renewer:
    with _LOCK:
        return _RENEWERS.setdefault(bridge, _Renewer())


def _forget_all() -> None:
    """In a child process: what its parent holds is not the child's, and its locks may be held for ever."""
    global _LOCK
    _LOCK = threading.RLock()
    _BY_STORE.clear()
    _BY_ID.clear()
    _RENEWERS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
