"""Type checkers accept what users write, and flag each line that is marked as bad."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

HERE = Path(__file__).parent
FILES = [HERE / "typing" / name for name in ("good.py", "bad.py")]
MARKED = re.compile(r"#\s*E\s*$")


def marked_lines():
    return {
        (path.name, number)
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MARKED.search(line)
    }


def run(*command, cwd):
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def mypy_findings(_):
    options = ["--strict", "--config-file=", "--python-version=3.10", "--no-error-summary", "--no-pretty"]
    done = run("mypy", *options, *map(str, FILES), cwd=HERE.parent)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(.+?):(\d+)(?::\d+)?: error: (.*)$", done.stdout, re.MULTILINE)
    return [(Path(path).name, int(line), message) for path, line, message in found]


def pyright_findings(tmp_path):
    # pyright takes either files or a project, so the files go into a project of their own.
    for path in FILES:
        shutil.copy(path, tmp_path)
    settings = {"pythonVersion": "3.10", "typeCheckingMode": "standard", "extraPaths": [str(HERE.parent)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(FILES)
    return [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    ]


CHECKERS = {"mypy": mypy_findings, "pyright": pyright_findings}


@pytest.mark.parametrize("checker", CHECKERS)
def test_checker_flags_the_marked_lines_and_no_other(checker, tmp_path):
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")

    findings = CHECKERS[checker](tmp_path)

    flagged = {(name, line) for name, line, _ in findings}
    marked = marked_lines()
    assert marked
    assert [finding for finding in findings if finding[:2] not in marked] == []
    assert sorted(marked - flagged) == []
