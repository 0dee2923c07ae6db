from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from functools import partial

import pytest
from faults.faulty import SERVERS, Bytewise, open_gantry, storm, storm_faults
from faults.proxy import Fault, Proxy

from agent_gantry_state import StoreError
from agent_gantry_state.stores.protocol import Commit, Committed, Load, Loaded
from agent_gantry_state.stores.redis import RedisStore

SEED = 7
KINDS = ("cut in a request", "cut in a reply", "every connection cut", "black hole in a reply", "half-open", "refused")


@pytest.fixture(params=SERVERS)
def name(request):
    return request.param


@pytest.fixture
def proxy(name):
    with Proxy(SERVERS[name]()) as proxy:
        yield proxy


@pytest.fixture
def direct(name):
    with open_gantry(SERVERS[name]().url, "") as gantry:
        yield gantry


@pytest.fixture
def gantry(proxy):
    with open_gantry(proxy.url) as gantry:
        yield gantry


@pytest.fixture(params=["sync", "async"])
def caller(request):
    return request.param


@pytest.fixture
def bytewise(caller, name, proxy, gantry, direct):
    # What made a memory in memcached and got no answer may have been written and evicted: there nobody can tell.
    bytewise = Bytewise(proxy, gantry, direct, caller == "async", first=name != "memcached")
    bytewise.count()
    yield bytewise
    bytewise.close()


@pytest.mark.parametrize("side", ["request", "reply"])
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_commit_that_is_cut_once_at_any_byte_is_stored_once(bytewise, side, how):
    length, chance = bytewise.length[side], random.Random(SEED)
    for at in sorted({0, 1, length - 1, length, *(chance.randrange(length) for _ in range(6))}):
        assert bytewise.commit(Fault("cut", side, at, how)) is None, f"at {at}"


@pytest.mark.parametrize(
    ("caller", "kind", "side", "part"),
    [
        ("sync", "cut", "request", 0.5),
        ("async", "cut", "reply", 0.5),
        ("async", "hole", "request", 1.0),
        ("sync", "hole", "reply", 0.0),
    ],
)
def test_commit_that_fails_each_time_says_truly_what_is_known(bytewise, kind, side, part):
    error = bytewise.commit(Fault(kind, side, int(bytewise.length[side] * part), times=None))

    assert error is not None
    assert error.transient
    assert bytewise.commit(None) is None, "the first call after the fault"


@pytest.mark.parametrize("side", ["request", "reply"])
def test_load_that_is_cut_once_is_asked_once_more(bytewise, side):
    for at in (0, 1, 10):
        assert bytewise.commit(None, before=Fault("cut", side, at)) is None
        assert bytewise.proxy.fired.is_set()


@pytest.mark.parametrize("kind", KINDS)
def test_callers_of_all_kinds_at_once_lose_nothing(name, proxy, gantry, direct, kind):
    chance = random.Random(f"{SEED} {name} {kind}")

    done = storm(proxy, gantry, direct, storm_faults(chance)[kind](), chance, name != "memcached")

    assert done["stored"] > 20
    gantry.close()
    proxy.wait_until(lambda: not proxy.pairs)


# That the ledger notices.

_commit, _load = RedisStore._commit, RedisStore._load


def says_that_it_did(self, message):
    if random.random() < 0.2:
        return Committed()
    return (yield from _commit(self, message))


def does_it_again(self, message):
    return (yield from _commit(self, replace(message, token=b"", version=os.urandom(8))))


def does_the_half(self, message):
    answer = yield from _commit(self, replace(message, changes=message.changes[:1]))
    return answer if isinstance(answer, Committed) else (yield from _commit(self, message))


def does_what_it_refuses(self, message):
    answer = yield from _commit(self, message)
    if random.random() < 0.2 and isinstance(answer, Committed):
        raise StoreError("no", committed=False)
    return answer


def raises_what_comes(self, message):
    if random.random() < 0.2:
        raise ConnectionResetError
    return (yield from _commit(self, message))


def takes_its_time(self, message):
    if not _slept:
        _slept.append(True)
        time.sleep(3.2)
    return (yield from _commit(self, message))


def answers_somebody_else(self, message):
    loaded = yield from _load(self, message)
    _last.append(loaded)
    others = [each for each in _last if len(each.snapshots) == 2 and each.snapshots[0].values]
    return random.choice(others) if others and len(message.namespaces) == 2 else loaded


_last: list[Loaded] = []
_slept: list[bool] = []
BUGS = {
    "lost": (Commit, says_that_it_did, "acknowledged and lost|torn"),
    "torn": (Commit, does_the_half, "torn"),
    "untrue": (Commit, does_what_it_refuses, "said not to be there|after the fault failed"),
    "untyped": (Commit, raises_what_comes, "an error that is none of ours"),
    "late": (Commit, takes_its_time, "a call took"),
    "crossed": (Load, answers_somebody_else, "was given the memory of"),
}


@pytest.mark.parametrize("name", ["redis"], indirect=True)
@pytest.mark.parametrize("bug", BUGS)
def test_ledger_finds_a_planted_bug(proxy, gantry, direct, bug):
    message, planted, found = BUGS[bug]
    store = gantry._wiring.settings.bridge.store
    store._logic[message] = partial(planted, store)

    with pytest.raises(AssertionError, match=found):
        storm(proxy, gantry, direct, Fault("cut", "reply", 3, times=20), random.Random(SEED), True)


@pytest.mark.parametrize(("name", "caller"), [("redis", "sync")], indirect=["name"])
def test_commit_that_is_done_twice_is_found(bytewise):
    bytewise.first = False
    store = bytewise.gantry._wiring.settings.bridge.store
    store._logic[Commit] = partial(does_it_again, store)

    with pytest.raises(AssertionError, match="written twice"):
        bytewise.commit(Fault("cut", "reply", 1))
