"""README and docs: what their blocks show is run (see pages.py), links lead somewhere, and promises are shown by tests."""

from __future__ import annotations

import logging
import re
import runpy
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("pages")

import pages  # noqa: E402 - its assertions are to say what differs

import agent_gantry_state  # noqa: E402
from agent_gantry_state import errors  # noqa: E402

pytestmark = pytest.mark.once

README = pages.ROOT / "README.md"
PAGES = [README, *sorted((pages.ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The names that headings of a page get, on GitHub and on the site."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_first_block_of_the_readme_is_the_two_commands():
    first, second = FENCE.findall(README.read_text(encoding="utf-8"))[0].splitlines()[1:-1]

    assert first.endswith("-m agent_gantry_state demo")
    assert second.endswith("-m pytest -n auto --dist worksteal")


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))


@each_page
def test_blocks_run_and_print_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    try:
        pages.run_page(page)
    except ImportError as error:
        missing = missing_framework(error)
        if missing is None or page.parent.name != "frameworks":
            raise
        pytest.skip(f"{missing} is not installed here; tests/frameworks/run.py has an environment for it")


def missing_framework(error: BaseException | None) -> str | None:
    """The module that is behind an import that failed, unless it is ours."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            return None if (error.name or "").startswith("agent_gantry_state") else error.name
        error = error.__cause__
    return None


@each_page
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(prose(page)):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"no such file: {target}"
        assert not anchor or anchor in anchors(there), f"no such heading: {target}#{anchor}"


def test_every_promise_is_linked_to_tests_that_are_there():
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| **")]
    promises = [row for row in rows if "](tests/" in row]

    assert len(promises) >= 9
    for row in promises:
        for name, path in re.findall(r"\[`([\w.]+)`\]\((tests/[\w/.]+)\)", row):
            text = (pages.ROOT / path).read_text(encoding="utf-8")
            assert path.endswith(name) or re.search(rf"^ *(async )?def {name}\(", text, re.MULTILINE), f"{path}: no {name}"


def test_our_row_of_the_comparison_is_what_its_trial_gives(capsys, monkeypatch):
    # It silences the peers' logs, and with them those of all tests that come after.
    monkeypatch.setattr(logging, "disable", lambda level: None)
    monkeypatch.setattr(sys, "argv", ["frameworks.py", "agent-gantry-state"])

    runpy.run_path(str(pages.ROOT / "benchmarks" / "frameworks.py"), run_name="__main__")

    cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")[3:]
    assert f"| **agent-gantry-state** | {' | '.join(cells)} |" in README.read_text(encoding="utf-8")


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(page.read_text(encoding="utf-8") for page in (pages.ROOT / "docs" / "reference").glob("*.md"))
    shown = {line.rpartition(".")[2] for line in re.findall(r"^::: (.+)$", reference, re.MULTILINE)}

    missing = set(agent_gantry_state.__all__) - set(errors.__all__) - shown - {"__version__"}
    assert missing == set(), "docs/reference has no `::: agent_gantry_state.NAME` for them"


def test_every_error_is_in_the_table_of_errors():
    page = (pages.ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")

    raised = {name for name in errors.__all__ if name.endswith("Error")}
    assert raised - set(re.findall(r"`(\w+Error)`", page)) == set()
