"""The command line, but for its demo."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent_gantry_state.__main__ import main
from agent_gantry_state.stores.postgresql_schema import schema_sql


def test_schema_prints_the_sql_of_the_default_schema(capsys):
    status = main(["schema", "postgresql"])

    said = capsys.readouterr()
    assert (status, said.err) == (0, "")
    assert said.out.startswith("BEGIN;\n")
    assert said.out.endswith("COMMIT;\n")
    assert 'CREATE SCHEMA "agent_gantry_state"' in said.out


def test_schema_prints_the_sql_of_another_schema(capsys):
    assert main(["schema", "postgresql", "--schema", 'my "own"']) == 0

    said = capsys.readouterr().out
    assert 'CREATE SCHEMA "my ""own"""' in said
    assert "agent_gantry_state." not in said


@pytest.mark.parametrize("name", ["", "a$body$b", "x" * 64])
def test_schema_that_cannot_be_one_is_an_error(capsys, name):
    assert main(["schema", "postgresql", "--schema", name]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert "schema must be a name" in said.err


def test_schema_of_a_store_without_one_is_a_usage_error(capsys):
    assert main(["schema", "redis"]) == 2

    assert "postgresql" in capsys.readouterr().err


def test_schema_without_the_driver_says_which_extra_to_install():
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from agent_gantry_state.__main__ import main\n"
        "sys.exit(main(['schema', 'postgresql']))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "pip install 'agent-gantry-state[postgresql]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_schema_can_be_piped_into_a_file(tmp_path):
    with (tmp_path / "state.sql").open("w") as file:
        subprocess.run(
            [sys.executable, "-m", "agent_gantry_state", "schema", "postgresql"], stdout=file, check=True, timeout=60
        )

    assert (tmp_path / "state.sql").read_text().rstrip("\n") == schema_sql("agent_gantry_state").rstrip("\n")
