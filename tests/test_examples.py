from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTS = {
    "custom_store.py": "",
    "file_tools.py": "Summary of notes.txt: Whales sing.\n",
    "plain_functions.py": "1 things in the basket\n21 things, 21 of them listed\n",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_runs_and_prints_what_it_should(path):
    done = subprocess.run([sys.executable, "-W", "error::ResourceWarning", path], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, PRINTS[path.name]), done.stderr
