"""README and docs: the two commands, and links that lead somewhere. What their blocks show is run, see pages.py."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(prose(page)):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"no such file: {target}"
        assert not anchor or anchor in anchors(there), f"no such heading: {target}#{anchor}"


def test_every_page_is_run():
    assert [str(page.relative_to(pages.ROOT)) for page in PAGES if not pages.PAGES.should_parse(page)] == []
