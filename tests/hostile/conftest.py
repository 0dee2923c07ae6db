from __future__ import annotations

import pytest
from hostile.places import places
from hostile.values import touched
from isolation.soaks import PLACES


@pytest.fixture(scope="package")
def all_places(tmp_path_factory):
    """One store of each kind, open for all of these tests: each uses ids of its own."""
    with places(PLACES, tmp_path_factory.mktemp("hostile")) as made:
        yield made


@pytest.fixture
def untouched():
    """What was called of hostile objects, of which nothing may be when the test ends."""
    touched.clear()
    yield touched
    assert touched == []
