"""Calls through a faulty network, and what must be true of the store afterwards.

A caller notes what he was told of each call: that it is stored, that it is not, or that nobody knows. `Ledger.check` reads
the store past the proxy and compares the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import servers
from faults.proxy import Fault, Proxy

from agent_gantry_state import Gantry, StateError
from agent_gantry_state.stores.pool import LONGEST_PAUSE

SERVERS = {"redis": servers.redis_8, "postgresql": servers.postgresql, "memcached": servers.memcached}
LOAD, COMMIT = 0.5, 1.0
#: Short times, so that what is silent is given up soon.
SHORT = f"?load_timeout={LOAD}&commit_timeout={COMMIT}&connect_timeout={LOAD}"
#: What a call may take beside them: this machine does other things too.
GRACE = 1.5
#: Who writes to what; each has a memory of his own, one is everybody's, and two are for transfers.
PEOPLE = tuple(f"p{n}" for n in range(4))


@dataclass
class Told:
    """What a caller was told of a call.

    Attributes:
        token: What the call wrote; no other one writes it.
        who: Whose it was.
        committed: True, False, or None for unknown.
        began: When it was called, on the monotonic clock.
        error: What was raised.
    """

    token: str
    who: str
    committed: bool | None
    began: float
    error: BaseException | None = None


@dataclass
class Ledger:
    """Callers on one gantry through a proxy, and what they were told.

    Attributes:
        gantry: Theirs.
        two: Whether the store commits two memories together.
        told: By kind of call.
        wrong: What must not be: values of others, errors of other kinds, calls that took too long, bodies that ran twice.
    """

    gantry: Gantry
    two: bool
    told: dict[str, list[Told]] = field(default_factory=lambda: {"list": [], "transfer": []})
    wrong: list[str] = field(default_factory=list)
    bound: float = LOAD + COMMIT + GRACE

    def __post_init__(self) -> None:
        self.tag = uuid.uuid4().hex
        self._ran: Counter[str] = Counter()
        gantry = self.gantry

        def listed(token, who, memory):
            self._ran[token] += 1
            memory.add("n", 1)
            memory.setdefault("list", []).append(token)

        def transferred(token, who, amount, mine, theirs):
            self._ran[token] += 1
            if mine.setdefault("who", who) != who:
                self.wrong.append(f"{who} was given the memory of {mine['who']}")
            mine.add("balance", -amount)
            theirs.add("balance", amount)
            for memory in (mine, theirs):
                memory.setdefault("log", []).append(token)

        def stamped(token, who, memory):
            self._ran[token] += 1
            if memory.setdefault("who", who) != who:
                self.wrong.append(f"{who} was given the memory of {memory['who']}")
            memory.setdefault("log", []).append(token)

        async def alisted(token, who, memory):
            listed(token, who, memory)

        async def atransferred(token, who, amount, mine, theirs):
            transferred(token, who, amount, mine, theirs)

        async def astamped(token, who, memory):
            stamped(token, who, memory)

        everybodys = gantry.with_memory(scope="all")
        if self.two:
            own = gantry.with_memory(scope="user", into="mine")
            other = gantry.with_memory(scope="pot", into="theirs")
            self._calls: dict[Any, Any] = {
                ("list", False): everybodys(listed),
                ("list", True): everybodys(alisted),
                ("transfer", False): own(other(transferred)),
                ("transfer", True): own(other(atransferred)),
            }
        else:
            mine = gantry.with_memory(scope="user")
            self._calls = {
                ("list", False): everybodys(listed),
                ("list", True): everybodys(alisted),
                ("transfer", False): mine(stamped),
                ("transfer", True): mine(astamped),
            }

    def identity(self, who: str) -> dict[str, str]:
        tag = self.tag
        return {"id": f"{tag}-{who}", "user": f"{tag}-{who}", "all": f"{tag}-all", "pot": f"{tag}-pot"}

    def _begin(self, kind: str, who: str, chance: random.Random) -> tuple[Told, list[Any]]:
        told = Told(uuid.uuid4().hex, who, True, time.monotonic())
        more = [chance.randrange(1, 9)] if kind == "transfer" and self.two else []
        return told, [told.token, who, *more]

    def call(self, kind: str, who: str, chance: random.Random) -> Told:
        """A call of a thread."""
        told, arguments = self._begin(kind, who, chance)
        with self.gantry.session(**self.identity(who)), self._noting(kind, told):
            self._calls[kind, False](*arguments)
        return told

    async def acall(self, kind: str, who: str, chance: random.Random) -> Told:
        """A call of a task."""
        told, arguments = self._begin(kind, who, chance)
        with self.gantry.session(**self.identity(who)), self._noting(kind, told):
            await self._calls[kind, True](*arguments)
        return told

    @contextlib.contextmanager
    def _noting(self, kind: str, told: Told):
        try:
            yield
        except StateError as error:
            told.committed, told.error = error.committed, error
        except Exception as error:
            told.committed, told.error = None, error
            self.wrong.append(f"an error that is none of ours: {error!r}")
        took = time.monotonic() - told.began
        if took > self.bound:
            self.wrong.append(f"a call took {took:.2f} s: {told.error!r}")
        if self._ran[told.token] > 1:
            self.wrong.append("a body ran twice")
        self.told[kind].append(told)

    def check(self, direct: Gantry) -> None:
        """Compare what was told with what is there, read past the proxy."""
        assert not self.wrong, self.wrong[:5]
        with direct.memory("all", all=f"{self.tag}-all") as memory:
            there = memory.get("list", [])
            assert memory.get("n", 0) == len(there), "torn: half of a call is stored"
        _compare(there, self.told["list"])
        logs: list[str] = []
        balance = 0
        for who in PEOPLE:
            with direct.memory("user", user=f"{self.tag}-{who}") as memory:
                log = memory.get("log", [])
                assert memory.get("who", who) == who, "a value of another identity"
                balance += memory.get("balance", 0)
            assert set(log) <= {told.token for told in self.told["transfer"] if told.who == who}, "somebody else's"
            logs += log
        _compare(logs, self.told["transfer"])
        if self.two:
            with direct.memory("pot", pot=f"{self.tag}-pot") as memory:
                assert sorted(memory.get("log", [])) == sorted(logs), "torn: one of two memories was written"
                assert balance + memory.get("balance", 0) == 0, "torn: the sum has changed"


def _compare(there: list[str], told: list[Told]) -> None:
    counts = Counter(there)
    assert max(counts.values(), default=1) == 1, "applied twice"
    assert set(counts) <= {each.token for each in told}
    for each in told:
        if each.committed is True:
            assert each.token in counts, "acknowledged and lost"
        elif each.committed is False:
            assert each.token not in counts, f"said not to be there, and is: {each.error!r}"


def open_gantry(url: str, options: str = SHORT) -> Gantry:
    return Gantry(url + options, app="faulty")


# Callers all at once.


def storm(proxy: Proxy, gantry: Gantry, direct: Gantry, fault: Fault, chance: random.Random, two: bool) -> Counter[str]:
    """One round: four threads, four tasks on two loops, and loops of one call each, all call while *fault* strikes; it is
    lifted, and they go on."""
    ledger, stop = Ledger(gantry, two), threading.Event()
    done = threading.Semaphore(0)
    # After a silence it may take some time until somebody tries again, and on a busy machine until he has his answer.
    resumed = LONGEST_PAUSE + 1.0 if fault.kind in ("hole", "trickle", "delay") else 0.0
    lifted: list[float] = []
    people = itertools.cycle(PEOPLE)

    def after(told: Told) -> bool:
        # A call that began when nothing was wrong any more has to be stored.
        if told.committed is True:
            done.release()
        elif lifted and told.began > lifted[0] + resumed:
            late = told.began - lifted[0]
            ledger.wrong.append(f"a call that began {late:.2f} s after the fault failed: {told.error!r}")
        return not stop.is_set()

    def thread(who: str, seed: float) -> None:
        mine = random.Random(seed)
        while after(told := ledger.call(mine.choice(["list", "transfer"]), who, mine)):
            if told.committed is not True:
                # Calls that fail at once would keep the machine busy with nothing else.
                time.sleep(0.005)

    async def task(who: str, seed: float) -> None:
        mine = random.Random(seed)
        while after(told := await ledger.acall(mine.choice(["list", "transfer"]), who, mine)):
            if told.committed is not True:
                await asyncio.sleep(0.005)

    async def tasks(seeds: list[float]) -> None:
        await asyncio.gather(*[task(next(people), seed) for seed in seeds])

    def loops(who: str, seed: float) -> None:
        mine = random.Random(seed)
        while after(told := asyncio.run(ledger.acall(mine.choice(["list", "transfer"]), who, mine))):
            if told.committed is not True:
                time.sleep(0.005)

    callers = [
        threading.Thread(target=contextvars.Context().run, args=(thread, next(people), chance.random())) for _ in range(4)
    ]
    callers += [threading.Thread(target=asyncio.run, args=(tasks([chance.random() for _ in range(2)]),)) for _ in range(2)]
    callers.append(threading.Thread(target=contextvars.Context().run, args=(loops, next(people), chance.random())))
    for caller in callers:
        caller.start()
    try:
        _wait(done, 12)
        proxy.arm(fault)
        proxy.fired.wait(5)
        # What is silent is felt when the times are over.
        time.sleep(0.2 if fault.kind in ("cut", "refuse", "half-open") else LOAD + 0.2)
        proxy.lift()
        lifted.append(time.monotonic())
        for _ in range(200):
            if not done.acquire(blocking=False):
                break
        _wait(done, 16)
    finally:
        stop.set()
        for caller in callers:
            caller.join(30)
    assert not any(caller.is_alive() for caller in callers), "a caller hangs"
    ledger.check(direct)
    told = [each.committed for kind in ledger.told.values() for each in kind]
    return Counter(calls=len(told), stored=told.count(True), refused=told.count(False), unknown=told.count(None))


def _wait(done: threading.Semaphore, count: int) -> None:
    for _ in range(count):
        assert done.acquire(timeout=20), "calls do not come back"


def storm_faults(chance: random.Random) -> dict[str, Callable[[], Fault]]:
    """Every kind of fault, at an offset by chance."""

    def at() -> int:
        return chance.randrange(400)

    return {
        "cut before a request": lambda: Fault("cut", "request", 0, chance.choice(["fin", "rst"]), times=3),
        "cut in a request": lambda: Fault("cut", "request", at(), chance.choice(["fin", "rst"]), times=3),
        "cut before a reply": lambda: Fault("cut", "reply", 0, chance.choice(["fin", "rst"]), times=3),
        "cut in a reply": lambda: Fault("cut", "reply", at() // 4, chance.choice(["fin", "rst"]), times=3),
        "every connection cut": lambda: Fault("cut", "reply", at(), chance.choice(["fin", "rst"]), times=None),
        "black hole": lambda: Fault("hole", "request", 0, times=None),
        "black hole in a request": lambda: Fault("hole", "request", at(), times=None),
        "black hole in a reply": lambda: Fault("hole", "reply", at() // 4, times=None),
        "half-open": lambda: Fault("half-open", "request", at(), times=3),
        "trickle of requests": lambda: Fault("trickle", "request"),
        "trickle of replies": lambda: Fault("trickle", "reply"),
        "delay": lambda: Fault("delay", chance.choice(["request", "reply"]), seconds=0.1),
        "refused": lambda: Fault("refuse"),
    }


# A crowd on one connection.


def crowd(server: servers.Server) -> int:
    """A hundred users call at once, each in a thread and in a task, through one connection; how many calls were made."""
    wrong: list[tuple[str, str]] = []
    people = [uuid.uuid4().hex for _ in range(100)]
    with open_gantry(server.url, "?max_connections=1&load_timeout=30&commit_timeout=30") as gantry:

        def stamp(who, memory):
            if memory.setdefault("who", who) != who:
                wrong.append((who, memory["who"]))
            memory.add("calls", 1)

        async def astamp(who, memory):
            stamp(who, memory)
            await asyncio.sleep(0)

        tool, atool = gantry.with_memory(scope="user")(stamp), gantry.with_memory(scope="user")(astamp)

        def thread(mine: list[str]) -> None:
            for who in mine * 5:
                with gantry.session(user=who):
                    tool(who)

        async def task(who: str) -> None:
            for _ in range(5):
                with gantry.session(user=who):
                    await atool(who)

        async def tasks() -> None:
            await asyncio.gather(*[task(who) for who in people])

        threads = [threading.Thread(target=contextvars.Context().run, args=(thread, people[n::10])) for n in range(10)]
        for each in threads:
            each.start()
        asyncio.run(tasks())
        for each in threads:
            each.join()

        assert wrong == []
        for who in people:
            with gantry.memory("user", user=who) as memory:
                assert memory == {"who": who, "calls": 10}
    return 10 * len(people)


# One caller, and each byte.


@dataclass
class Bytewise:
    """Calls of one caller, whose commit or load is cut at a byte.

    Attributes:
        first: Whether a call makes its memory, and does not find it there.
        length: Bytes of the commit that was counted, by side.
        calls: How many were made.
    """

    proxy: Proxy
    gantry: Gantry
    direct: Gantry
    is_async: bool
    first: bool = True
    calls: int = 0

    def __post_init__(self) -> None:
        self.length: dict[str, int] = {}
        self._fault: Fault | None = None
        self._ran = 0
        gantry, proxy = self.gantry, self.proxy

        def body(token, memory):
            self._ran += 1
            memory.setdefault("list", []).append(token)
            memory.add("n", 1)
            if self._fault is not None:
                proxy.arm(self._fault)

        async def abody(token, memory):
            body(token, memory)

        self._call = gantry.with_memory(abody if self.is_async else body)
        self._runner = asyncio.new_event_loop()

    def close(self) -> None:
        self._runner.run_until_complete(self._runner.shutdown_asyncgens())
        self._runner.close()

    def count(self) -> None:
        """Note how long a commit is, and its reply. All that are made afterwards are of the same length."""
        for _ in range(3):
            self.commit(Fault("none"))
        self.length = dict(self.proxy.passed)

    def commit(self, fault: Fault | None, before: Fault | None = None) -> StateError | None:
        """A call whose commit meets *fault* and whose load *before*; what is stored is compared with what it was told."""
        session, token = f"s-{uuid.uuid4().hex}", uuid.uuid4().hex
        if not self.first:
            with self.direct.memory(session=session) as memory:
                memory["list"] = []
        self._fault, self._ran, error = fault, 0, None
        if before is not None:
            self.proxy.arm(before)
        began = time.monotonic()
        with self.gantry.session(session):
            try:
                if self.is_async:
                    self._runner.run_until_complete(self._call(token))
                else:
                    self._call(token)
            except StateError as raised:
                error = raised
        took = time.monotonic() - began
        if fault != Fault("none"):
            self.proxy.lift()
        self.calls += 1
        assert took < LOAD + COMMIT + GRACE, f"{took:.2f} s"
        assert self._ran <= 1, "the body ran twice"
        with self.direct.memory(session=session) as memory:
            there = dict(memory)
        landed = there == {"list": [token], "n": 1}
        assert landed or there == ({} if self.first else {"list": []}), f"torn, or written twice: {there}"
        if error is None:
            assert landed, "acknowledged and lost"
        elif error.committed is False:
            assert not landed, f"said not to be there, and is: {error!r}"
        return error
