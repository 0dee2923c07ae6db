"""Every example is run and prints what it should; those that are tests themselves are collected beside these."""

from __future__ import annotations

import gc
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import servers

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.glob("*.py") if not path.name.startswith("test_"))
PRINTS = {
    "cache.py": "sunny in Rome, sunny in Oslo\nfetched: ['Oslo', 'Rome']\nfetched: ['Oslo', 'Rome', 'Rome']\n",
    "custom_store.py": "milk\nmilk and tea\n",
    "entities.py": "order A17, a kettle; order B42, a lamp\norder B42, a lamp, is cancelled\nWhich order?\n",
    "exclusive.py": "8 pages, at most 1 at once\n",
    "layers.py": """\
colour black (default), size A4 (default)
colour blue (user), size Letter (global)
colour red (session), size Letter (global)
colour black (global), size Letter (global)
""",
    "plain_functions.py": "1 things in the basket\n21 things, 21 of them listed\n",
    "preferences.py": "language is it from now on\nBuongiorno, Ada\nGood morning, Bob\n",
    "same_program.py": "sqlite: milk and tea\n",
    "server.py": (
        '{"answer":"1 in this session, 11 in all"}\n{"error":"who are you?"}\n'
        '{"answer":"Error: this session belongs to another caller, so that nothing was read or written. Use the id of a '
        "session of your own; a session that was begun before its user was known is taken over with "
        'gantry.session(..., user=..., adopt=True)"}\n'
    ),
    "stacked_scopes.py": "ordered tea and milk\n[['tea', 'milk']] {}\n",
    "typed_state.py": "1 steps, 2 hours; finished: read\n{'steps': [{'title': 'read', 'done': True}], 'hours': 2.0}\n",
    "workflow.py": "3 topics to look up. Report: Krill glow. Squids have three hearts. Whales sing.\n",
    "working_directory.py": "I have read it.\nnotes.txt: Whales sing.\n",
}


def run(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        runpy.run_path(str(path), run_name="__main__")
        gc.collect()


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_example_runs_and_prints_what_it_should(path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path)])

    run(path)

    assert capsys.readouterr().out == PRINTS[path.name]


def test_same_program_runs_on_redis(capsys, monkeypatch):
    path = EXAMPLES / "same_program.py"
    monkeypatch.setattr(sys, "argv", [str(path), servers.redis_8().url])

    run(path)

    assert capsys.readouterr().out == "redis: milk and tea\n"
