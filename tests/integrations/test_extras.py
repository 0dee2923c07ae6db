"""An integration is imported when it is asked for, and says what to install if its framework is not there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

MODULES = {"agno": "agno", "dspy": "dspy", "google_adk": "google-adk", "strands": "strands"}


@pytest.mark.parametrize("module", MODULES)
def test_integration_without_its_framework_names_the_extra(module, monkeypatch):
    name = f"agent_gantry_state.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    for package in ("agno", "dspy", "google.adk", "strands"):
        monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(ImportError, match=rf"pip install 'agent-gantry-state\[{MODULES[module]}\]'"):
        importlib.import_module(name)


@pytest.mark.parametrize("extra", MODULES.values())
def test_extra_is_declared(extra):
    text = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text(encoding="utf-8")

    assert f"\n{extra} = [" in text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
