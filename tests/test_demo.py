from __future__ import annotations

import subprocess
import sys

from agent_gantry_state.__main__ import main


def test_demo_shows_that_every_claim_holds(capsys):
    status = main(["demo"])

    said = capsys.readouterr().out
    assert status == 0
    assert said.count(": yes") == 5
    assert "All of it held." in said
    assert '"memory"' not in said


def test_demo_without_agent_gantry_says_which_extra_to_install():
    code = (
        "import sys; sys.modules['agent_gantry'] = None\n"
        "from agent_gantry_state.__main__ import main\n"
        "sys.exit(main(['demo']))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "pip install 'agent-gantry-state[agent-gantry]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_import_brings_in_neither_agent_gantry_nor_pytest():
    code = (
        "import sys, agent_gantry_state\n"
        "sys.exit(any(name.split('.')[0] in ('agent_gantry', 'pytest', 'trio', 'numpy') for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
