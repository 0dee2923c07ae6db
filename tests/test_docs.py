"""What README and the guide show is run, and prints what they say it prints."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(path: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md", "docs/recipes.md", "docs/command-line.md"])
def test_examples_run_and_print_what_the_page_says(name):
    namespace = {"__name__": "__main__"}
    printed = ""
    checked = 0
    for language, text in blocks(ROOT / name):
        if language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output), warnings.catch_warnings():
                exec(compile(text, name, "exec"), namespace)
            printed = output.getvalue()
        elif language == "text":
            assert printed == text
            checked += 1
    assert checked


def test_first_block_of_the_readme_is_the_two_commands():
    language, text = blocks(ROOT / "README.md")[0]

    first, second = text.splitlines()

    assert language == "sh"
    assert first.endswith("-m agent_gantry_state demo")
    assert second.endswith("-m pytest")


def test_links_in_readme_and_docs_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
