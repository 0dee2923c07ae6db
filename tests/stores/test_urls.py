"""Stores by URL: what is understood, what is refused, and that no error shows a password."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import traceback

import pytest

from agent_gantry_state import Gantry, MissingDriverError, StoreURLError
from agent_gantry_state.stores import urls
from agent_gantry_state.stores.network import TIMEOUTS, driver
from agent_gantry_state.stores.options import check_timeouts, seconds
from agent_gantry_state.stores.sqlite import SQLiteStore
from agent_gantry_state.stores.urls import StoreURL, open_store

#: For each scheme a URL that needs no server to be opened.
EXAMPLES = {
    "memory": "memory://",
    "file": "file:///{tmp}/state",
    "sqlite": "sqlite:///{tmp}/state.db",
    "redis": "redis://localhost",
    "rediss": "rediss://localhost",
    "redis+cluster": "redis+cluster://localhost",
    "rediss+cluster": "rediss+cluster://localhost",
    "redis+sentinel": "redis+sentinel://localhost/primary",
    "valkey": "valkey://localhost",
    "valkeys": "valkeys://localhost",
    "memcached": "memcached://localhost",
    "postgresql": "postgresql://localhost/state",
    "postgres": "postgres://localhost/state",
}
#: Where the password stands whole, and such as were not written as a URL wants it.
SECRET = "s3cr3t"
WITH_PASSWORDS = [
    "://user:s3cr3t@localhost:bad",
    "://user:s3cr3t@localhost:99999999",
    "://user:s3cr3t@localhost?unknown=1",
    "://user:s3cr3t@localhost?load_timeout=s3cr3t",
    "://user:s3cr3t@localhost?load_timeout=1&load_timeout=2",
    "://user:s3cr3t@[localhost",
    "://user:[s3cr3t@localhost",
    "://user:s3cr3t]@localhost",
    "://user:s3cr3t\uff03@localhost",
    "://user:12#s3cr3t@localhost",
    "://user:#s3cr3t@localhost",
    "://user:s3cr3t#s3cr3t@localhost",
    "://user:12?s3cr3t@localhost",
    "://user:?s3cr3t@localhost",
    "://user:s3cr3t?s3cr3t=1&s3cr3t@localhost",
    "://user:12/s3cr3t@localhost",
    "://user:s3cr3t/s3cr3t@localhost",
    ":/user:s3cr3t@localhost",
    ":user:s3cr3t@localhost",
]


def known(scheme):
    if importlib.util.find_spec(f"agent_gantry_state.stores.{urls._MODULES[scheme]}") is None:
        pytest.skip("this store is not there yet")


def shown(error):
    """Everything that a log could show of an error and of those behind it."""
    texts, errors = [], [error]
    while errors:
        each = errors.pop()
        texts += [str(each), repr(each), str(each.args), "".join(traceback.format_exception(each))]
        errors += [other for other in (each.__cause__, each.__context__) if other is not None]
    return "\n".join(texts)


def test_every_scheme_has_an_example():
    assert EXAMPLES.keys() == urls._MODULES.keys()


@pytest.mark.parametrize("scheme", EXAMPLES)
def test_every_scheme_opens_a_store_without_connecting(scheme, tmp_path):
    known(scheme)

    store = open_store(EXAMPLES[scheme].format(tmp=tmp_path))

    assert callable(store.load)
    store.close()


@pytest.mark.parametrize("scheme", EXAMPLES)
def test_unknown_option_is_refused_with_those_known(scheme, tmp_path):
    known(scheme)
    url = EXAMPLES[scheme].format(tmp=tmp_path)

    with pytest.raises(StoreURLError, match=r"'nonsense'.*; it knows .*(load_timeout|max_namespaces)"):
        open_store(f"{url}?nonsense=1")


@pytest.mark.parametrize("scheme", EXAMPLES)
def test_option_given_twice_is_refused(scheme, tmp_path):
    known(scheme)
    url = EXAMPLES[scheme].format(tmp=tmp_path)

    with pytest.raises(StoreURLError, match="once"):
        open_store(f"{url}?load_timeout=1&load_timeout=2")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "", "soon", "1e999"])
@pytest.mark.parametrize("scheme", [scheme for scheme in EXAMPLES if scheme not in ("memory", "file", "sqlite")])
def test_time_that_is_none_is_refused(scheme, text, tmp_path):
    known(scheme)
    url = EXAMPLES[scheme].format(tmp=tmp_path)

    for option in TIMEOUTS:
        with pytest.raises(StoreURLError, match=f"'{option}'"):
            open_store(f"{url}?{option}={text}")


@pytest.mark.parametrize("rest", WITH_PASSWORDS)
@pytest.mark.parametrize("scheme", [*EXAMPLES, "unheard-of", ""])
def test_no_error_shows_a_password(scheme, rest):
    if scheme in EXAMPLES:
        known(scheme)

    error, store = None, contextlib.nullcontext()
    try:
        store = open_store(scheme + rest)
    except StoreURLError as raised:
        error = raised
    else:
        store.close()

    assert SECRET not in f"{store!r} {store}"
    assert error is None or SECRET not in shown(error)


@pytest.mark.parametrize("rest", WITH_PASSWORDS)
@pytest.mark.parametrize("scheme", ["redis", "postgresql", "memcached"])
def test_malformed_url_is_refused(scheme, rest):
    known(scheme)

    with pytest.raises(StoreURLError):
        open_store(scheme + rest)


def test_parsed_url_shows_nothing_but_its_scheme():
    url = StoreURL(urls.urlsplit(f"redis://user:{SECRET}@localhost?x={SECRET}"), {"x": SECRET})

    assert SECRET not in f"{[url]} {url}"


@pytest.mark.parametrize("url", ["", "memory", "memory:", "://", "state.db", "/var/state.db", "C:\\state.db"])
def test_text_that_is_no_url_is_refused(url):
    with pytest.raises(StoreURLError, match="URL"):
        open_store(url)


def test_scheme_may_be_written_large():
    open_store("MEMORY://").close()


def test_misspelt_scheme_is_put_right():
    with pytest.raises(StoreURLError, match=r"did you mean postgresql://\?.*Known:.*memory://"):
        open_store("postgresl://localhost")


def test_converter_without_a_name_can_be_used():
    url = StoreURL(urls.urlsplit("x://?n=zz"), {"n": "zz"})

    with pytest.raises(StoreURLError, match="option 'n'"):
        url.read({"n": functools.partial(int, base=2)})


@pytest.mark.parametrize("value", [0, 0.0, -1, float("nan"), float("inf"), -float("inf")])
def test_times_have_to_be_positive_and_finite(value):
    with pytest.raises(ValueError, match="SQLiteStore: commit_timeout"):
        check_timeouts(SQLiteStore.__new__(SQLiteStore), load_timeout=1.0, commit_timeout=value)
    with pytest.raises(ValueError, match=r"^$"):
        seconds(str(value))


def test_times_that_are_fine_are_taken():
    check_timeouts(object(), load_timeout=1, commit_timeout=1e-9)

    assert seconds("0.5") == 0.5


# Drivers.

DRIVERS = {"redis": "redis hiredis", "postgresql": "psycopg psycopg_pool"}


@pytest.mark.parametrize("scheme", DRIVERS)
def test_missing_driver_is_named_with_its_extra(scheme, monkeypatch):
    known(scheme)
    for name in [name for name in sys.modules if name.startswith(f"agent_gantry_state.stores.{scheme}")]:
        monkeypatch.delitem(sys.modules, name)
    for name in DRIVERS[scheme].split():
        for loaded in [each for each in sys.modules if each.split(".")[0] == name]:
            monkeypatch.setitem(sys.modules, loaded, None)
        monkeypatch.setitem(sys.modules, name, None)

    url = EXAMPLES[scheme].replace("localhost", f"user:{SECRET}@localhost")
    with pytest.raises(MissingDriverError, match=rf"pip install 'agent-gantry-state\[{scheme}\]'") as caught:
        open_store(url)

    assert caught.value.extra == scheme
    assert isinstance(caught.value, ImportError)
    assert SECRET not in shown(caught.value)


def test_driver_block_lets_other_errors_be():
    with pytest.raises(KeyError), driver("redis"):
        raise KeyError


# Third parties.


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a distribution of a third party with the lines of its entry points and the text of its module."""

    def install(points, code):
        info = tmp_path / "shelf_store-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shelf-store\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{urls.ENTRY_POINT_GROUP}]\n{points}\n")
        (tmp_path / "shelf_store_of_a_test.py").write_text(code)

    monkeypatch.syspath_prepend(tmp_path)
    yield install
    sys.modules.pop("shelf_store_of_a_test", None)


STORE = """
from agent_gantry_state.stores.memory import MemoryStore

def open(url):
    options = url.read({"size": int})
    store = MemoryStore(options["size"])
    store.host = url.parts.hostname
    return store
"""


def test_third_partys_scheme_is_found(installed):
    installed("shelf = shelf_store_of_a_test:open", STORE)

    store = open_store("shelf://somewhere?size=7")

    assert (store.host, store._slots.maxsize) == ("somewhere", 7)
    with Gantry("shelf://somewhere?size=7", session="local") as gantry, gantry.memory() as memory:
        memory["x"] = 1
    with pytest.raises(StoreURLError, match="'nonsense'; it knows size"):
        open_store("shelf://somewhere?nonsense=1")


def test_third_partys_scheme_is_among_those_known(installed):
    installed("shelf = shelf_store_of_a_test:open", STORE)

    with pytest.raises(StoreURLError, match=r"did you mean shelf://\?"):
        open_store("shelff://somewhere")


def test_third_party_cannot_take_a_scheme_of_ours(installed):
    installed("memory = shelf_store_of_a_test:open", "def open(url):\n    raise SystemExit\n")

    open_store("memory://").close()


def test_third_partys_scheme_may_be_registered_in_large_letters(installed):
    installed("Shelf = shelf_store_of_a_test:open", STORE)

    open_store("Shelf://somewhere?size=7").close()
