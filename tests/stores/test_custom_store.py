"""The example of a store of one's own passes the suite that the package's own stores pass."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from agent_gantry_state.testing import StoreContract

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_store.py"


def example():
    spec = importlib.util.spec_from_file_location("custom_store", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestDbmStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return example().DbmStore(tmp_path / "memories")

    @pytest.fixture
    def resent(self):
        """Nothing is sent to it again, but it is an example for stores to which something is."""


def test_store_is_no_longer_than_the_documentation_says():
    text = EXAMPLE.read_text(encoding="utf-8")
    store = text[text.index("class DbmStore") : text.index("# An agent")]

    assert len(store.splitlines()) <= 85
