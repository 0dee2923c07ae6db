"""Run the tests of each framework in an environment of its own.

    python tests/frameworks/run.py [--only langgraph,agno] [--minutes 10] [--keep DIR]

A framework is a directory beside this file with a requirements.txt; its first line names the package whose version is shown.
What is installed: those requirements, pytest, sybil (for the framework's page in docs), anyio, and this package.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


@dataclass
class Outcome:
    """What became of one framework."""

    framework: str
    version: str = "-"
    result: str = ""
    seconds: float = 0.0
    ok: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="frameworks to run, with commas between them; by default all")
    parser.add_argument("--minutes", type=float, help="make no further environment after so many minutes")
    parser.add_argument("--keep", type=Path, help="where the environments stay, to be used again; by default nowhere")
    options = parser.parse_args()
    names = sorted(path.parent.name for path in HERE.glob("*/requirements.txt"))
    if options.only:
        wanted = [name.strip() for name in options.only.split(",")]
        if unknown := sorted(set(wanted) - set(names)):
            parser.error(f"no such framework: {', '.join(unknown)}; there are {', '.join(names)}")
        names = wanted
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = run_all(names, options.keep or Path(scratch), Path(scratch), options.minutes)
    print(table(outcomes))
    return 0 if all(each.ok for each in outcomes) else 1


def run_all(names: list[str], place: Path, scratch: Path, minutes: float | None) -> list[Outcome]:
    began = time.monotonic()
    outcomes = []
    for name in names:
        late = minutes is not None and time.monotonic() - began > minutes * 60
        if late and not is_made(place / name, name):
            outcomes.append(Outcome(name, result=f"not run: {minutes:g} minutes are over", ok=True))
            continue
        outcomes.append(run_one(name, place / name, scratch))
    return outcomes


def run_one(name: str, environment: Path, scratch: Path) -> Outcome:
    print(f"== {name}", flush=True)
    outcome, began = Outcome(name), time.monotonic()
    try:
        make(environment, name)
        outcome.version = version_of(environment, name)
    except subprocess.CalledProcessError as error:
        outcome.result = f"not installed: {' '.join(map(str, error.cmd[:4]))} ... ended with {error.returncode}"
        return outcome
    report = scratch / f"{name}.xml"
    command = [
        python_of(environment),
        "-m",
        "pytest",
        "-q",
        f"--junitxml={report}",
        str(HERE / name),
        str(HERE / "test_page.py"),
    ]
    # The package of this tree, whichever one the environment was made for.
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "AGENT_GANTRY_STATE_FRAMEWORK": name}
    code = subprocess.run(command, cwd=ROOT, env=variables).returncode
    outcome.seconds = time.monotonic() - began
    outcome.result = summary_of(report) if report.exists() else f"pytest ended with {code}"
    outcome.ok = code == 0
    return outcome


def python_of(environment: Path) -> str:
    return str(environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def stamp_of(name: str) -> str:
    """Changes with everything that an environment is made from."""
    parts = [(HERE / name / "requirements.txt").read_bytes(), (ROOT / "pyproject.toml").read_bytes(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def is_made(environment: Path, name: str) -> bool:
    stamp = environment / "made-for"
    return stamp.exists() and stamp.read_text() == stamp_of(name)


def make(environment: Path, name: str) -> None:
    """Make an environment, unless it is there.

    Raises:
        CalledProcessError: Something cannot be installed.
    """
    if is_made(environment, name):
        return
    if not Path(python_of(environment)).exists():
        venv.create(environment, with_pip=True)
    install = [python_of(environment), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run(
        [*install, "-r", str(HERE / name / "requirements.txt"), "pytest>=8.4", "sybil>=9", "anyio>=4.6", "-e", str(ROOT)],
        check=True,
    )
    (environment / "made-for").write_text(stamp_of(name))


def version_of(environment: Path, name: str) -> str:
    lines = (HERE / name / "requirements.txt").read_text().splitlines()
    first = next(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    package = re.match(r"[A-Za-z0-9._-]+", first.strip())
    assert package is not None, first
    ask = f"import importlib.metadata as m; print(m.version({package.group()!r}))"
    return subprocess.run([python_of(environment), "-c", ask], check=True, capture_output=True, text=True).stdout.strip()


def summary_of(report: Path) -> str:
    suites = ET.parse(report).getroot().iter("testsuite")
    counted = [{kind: int(suite.get(kind, 0)) for kind in ("tests", "failures", "errors", "skipped")} for suite in suites]
    total = {kind: sum(each[kind] for each in counted) for kind in ("tests", "failures", "errors", "skipped")}
    passed = total["tests"] - total["failures"] - total["errors"] - total["skipped"]
    rest = [f"{total[kind]} {kind}" for kind in ("failures", "errors", "skipped") if total[kind]]
    return ", ".join([f"{passed} passed", *rest])


def table(outcomes: list[Outcome]) -> str:
    rows = [("framework", "version", "result", "seconds")]
    rows += [(each.framework, each.version, each.result, f"{each.seconds:.0f}") for each in outcomes]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


if __name__ == "__main__":
    sys.exit(main())
