"""How the code blocks of README and docs are run: those of a page in turn, in a folder of its own.

A `python` block runs in the page's namespace, or, with a title (`python title="shop.py"`), is written to that file. The
lines of a `sh` block run in bash, in the page's folder; of those that install something only the names of the extras are
looked at. A `text` block is what the one before it printed. A `console` block shows lines of our own command, each with what
it prints. `sql` runs on a real PostgreSQL that has our tables, `toml` and `json` are read, `mermaid` draws. Any other
language is an error, so that no block is left out by accident. Behind `<!-- skip: next "reason" -->` a `python` block is
only compiled: one that serves until it is stopped, say.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import json
import os
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
INFO = re.compile(r'[ \t]*(?P<language>[\w-]*)(?:[ \t]+title="(?P<title>[^"\n]+)")?[^\n]*\n')
INSTALLS = re.compile(r"^(?:uv |\S*python3?(?:\.exe)? -m )?(?:pip install|venv|add|sync) ?.*$", re.MULTILINE)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
SKIP = re.compile(r'<!-- skip: next "[^"\n]+" -->\n\Z')
EXTRAS = re.compile(r"agent-gantry-state\[([\w,-]+)\]")


def compile_python(example: Example) -> None:
    """Only look whether it is Python; an excerpt of a coroutine may wait."""
    compile(example.parsed, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def run_python(example: Example) -> None:
    title = example.region.lexemes["title"]
    if title is not None:
        compile_python(example)
        Path(title).write_text(example.parsed, encoding="utf-8")
        return
    with contextlib.redirect_stdout(io.StringIO()) as output:
        PythonEvaluator()(example)
    example.namespace["printed"] = output.getvalue()


def run_commands(example: Example) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = set(project["optional-dependencies"])
    for extras in EXTRAS.findall(example.parsed):
        assert known.issuperset(extras.split(",")), f"no such extra: {extras}"
    commands = INSTALLS.sub("", example.parsed)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    example.namespace["printed"] = done.stdout


def compare_output(example: Example) -> None:
    assert "printed" in example.namespace, "no block before this one printed anything: is it the output of one?"
    assert example.namespace.pop("printed") == example.parsed


def read_toml(example: Example) -> None:
    tomllib.loads(example.parsed)


def read_json(example: Example) -> None:
    json.loads(example.parsed)


def run_sql(example: Example) -> None:
    """Run statements where our tables are, in a database of their own with the role `app_role`."""
    # Pages of frameworks are run where none of these is.
    import psycopg
    import servers

    from agent_gantry_state.stores.postgresql import SCHEMA
    from agent_gantry_state.stores.postgresql_schema import schema_sql

    url = servers.postgresql().url
    name = f"pages_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        connection.execute("DROP ROLE IF EXISTS app_role")
        connection.execute("CREATE ROLE app_role")
        try:
            with psycopg.connect(url, dbname=name, autocommit=True) as database:
                database.execute(schema_sql(SCHEMA))
                database.execute(example.parsed)
        finally:
            connection.execute(f"DROP DATABASE {name}")
            connection.execute("DROP ROLE app_role")


def run_console(example: Example) -> None:
    """Run the lines of a console that begin with $; what is between them is what each prints, on stdout or stderr."""
    # Pages of frameworks are run where this is not.
    from typer.testing import CliRunner

    from agent_gantry_state.cli import app

    environment = example.namespace.setdefault("environment", {})
    commands = COMMAND.findall(example.parsed)
    assert commands, "a line `$ ...` is a command"
    for command, want in commands:
        program, *arguments = shlex.split(command)
        if program == "export":
            name, _, value = arguments[0].partition("=")
            environment[name] = value
            continue
        assert program == "agent-gantry-state", f"a console shows export and agent-gantry-state, not {program}"
        done = CliRunner().invoke(app, arguments, env=environment)
        said = re.sub(r"[ \t]+$", "", done.output, flags=re.MULTILINE)
        assert doctest.OutputChecker().check_output(want, said, doctest.ELLIPSIS), f"{command}\n{said}"


EVALUATORS: dict[str, Callable[[Example], Any]] = {
    "python": run_python,
    "sh": run_commands,
    "text": compare_output,
    "sql": run_sql,
    "toml": read_toml,
    "json": read_json,
    "console": run_console,
    "mermaid": lambda _: None,
}


def fenced_blocks(document: Document) -> Iterable[Region]:
    for region in RawFencedCodeBlockLexer(INFO)(document):
        language = region.lexemes["language"]
        assert language in EVALUATORS, f"{document.path}: a block in {language!r}: of {', '.join(EVALUATORS)}"
        region.parsed, region.evaluator = region.lexemes["source"], EVALUATORS[language]
        if SKIP.search(document.text[: region.start]):
            assert language == "python", f"{document.path}: only python is skipped, not {language}"
            region.evaluator = compile_python
        yield region


BLOCKS = Sybil([fenced_blocks])


def run_page(path: Path) -> None:
    """Run the blocks of a page in turn, in the current folder."""
    document = BLOCKS.parse(path)
    document.namespace["__name__"] = "__main__"
    for example in document.examples():
        print(f"{path}:{example.line}")  # said where a block fails
        example.evaluate()
