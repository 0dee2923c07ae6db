"""The classes of the stores stand in one place, and nothing is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent_gantry_state import stores

DRIVERS = ("redis", "hiredis", "psycopg", "pymemcache", "emcache", "agent_gantry")


@pytest.mark.parametrize("name", stores.__all__)
def test_each_class_is_found_by_its_name(name):
    assert getattr(stores, name).__name__ == name
    assert name in dir(stores)


def test_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="MongoStore"):
        stores.MongoStore


def test_import_of_the_package_brings_no_driver():
    code = f"import sys, agent_gantry_state, agent_gantry_state.stores; print([n for n in {DRIVERS} if n in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
