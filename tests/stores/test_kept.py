from __future__ import annotations

import os
import threading

import pytest

from agent_gantry_state.stores.kept import Kept


def test_what_was_kept_first_goes_first_when_it_is_full():
    kept = Kept(max_bytes=100_000)
    for index in range(30):
        kept.keep(index, f"value {index}", 9_000)
        assert kept.bytes <= 100_000
        assert kept.get(index) == f"value {index}"

    assert 0 not in kept
    assert len(kept) == 9


def test_what_is_kept_anew_takes_the_place_of_what_was_there():
    kept = Kept()
    kept.keep("a", 1, 1000)
    size = kept.bytes

    kept.keep("a", 2, 1000)

    assert (kept.get("a"), len(kept), kept.bytes) == (2, 1, size)


def test_what_would_take_the_place_of_everything_else_is_not_kept():
    kept = Kept(max_bytes=100_000)
    kept.keep("a", "small", 10)

    kept.keep("a", "large", 50_000)

    assert (kept.get("a"), len(kept), kept.bytes) == (None, 0, 0)


def test_dropped_and_cleared_leave_nothing():
    kept = Kept()
    for key in "abc":
        kept.keep(key, key, 10)
    kept.drop("a")
    kept.drop("never")
    assert (kept.get("a"), len(kept)) == (None, 2)

    kept.clear()

    assert (len(kept), kept.bytes) == (0, 0)


def test_threads_do_not_lose_count():
    kept = Kept(max_bytes=200_000)

    def work(first):
        for index in range(first, first + 2000):
            kept.keep(index % 97, index, index % 700)
            kept.drop((index * 7) % 97)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in range(97):
        kept.drop(key)

    assert (len(kept), kept.bytes) == (0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_that_was_forked_while_the_lock_was_held_goes_on():
    kept = Kept()
    kept.keep("a", 1, 10)
    with kept._lock:
        child = os.fork()
        if not child:
            kept.keep("b", 2, 10)
            os._exit(len(kept))
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 2
