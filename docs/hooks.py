"""What mkdocs has to be told to show pages that are read in the repository as well.

README is the home page. A link out of docs/ leads to a page that shows that file: Markdown as it is, code in a block.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from posixpath import dirname, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HOME = ROOT / "README.md"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)")
LANGUAGES = {".py": "python", ".toml": "toml"}
#: The file that a page outside of docs/ shows.
_ADDED: dict[str, Path] = {}


def shown_as(path: Path) -> str:
    """The page of the site that shows a file of the repository."""
    if path == HOME:
        return "index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix().removesuffix('.md')}.md"


def on_files(files: Files, config: Any) -> Files:
    """Add README and what pages link to outside of docs/."""
    waiting = [HOME, *DOCS.rglob("*.md")]
    added = set()
    while waiting:
        path = waiting.pop()
        if path in added or not path.is_file():
            continue
        added.add(path)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            # A broken link is left to mkdocs, which says where it stands.
            waiting += [(path.parent / target).resolve() for target in LINK.findall(text)]
        if not path.is_relative_to(DOCS):
            _ADDED[shown_as(path)] = path
            files.append(File.generated(config, shown_as(path), content=_page(path, text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links as the repository has them into links of the site."""
    origin = page.file.src_uri
    source = _ADDED.get(origin, DOCS / origin)

    def moved(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        if not target.is_relative_to(ROOT) or not target.is_file():
            return match[1]
        return relpath(shown_as(target), dirname(origin) or os.curdir)

    return LINK.sub(moved, markdown)


def _page(path: Path, text: str) -> str:
    if path.suffix == ".md":
        return text
    name, language = path.relative_to(ROOT).as_posix(), LANGUAGES.get(path.suffix, "")
    return f"---\nsearch:\n  exclude: true\n---\n\n# `{name}`\n\n````{language}\n{text}\n````\n"
