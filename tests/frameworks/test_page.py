"""What a framework's page shows runs where the framework is; the tests of the docs can only skip it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "tests"))

import pages  # noqa: E402

PAGE = ROOT / "docs" / "frameworks" / f"{os.environ.get('AGENT_GANTRY_STATE_FRAMEWORK', '')}.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="this environment is for another version of a framework, or has no name")
def test_blocks_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    pages.run_page(PAGE)
