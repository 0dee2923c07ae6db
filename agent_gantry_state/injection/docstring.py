"""Takes the entry of an injected parameter out of a docstring: the whole docstring is shown to the model.

Knows Google's ``Args:``, NumPy's ``Parameters`` and Sphinx's ``:param name:``. A section that is left without an entry goes,
too; everything else stays as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["without_parameters"]

_GOOGLE = re.compile(
    r"^(?P<indent>[ \t]*)(Args|Arguments|Parameters|Params|Keyword Args|Keyword Arguments|Other Parameters):[ \t]*$"
)
_NUMPY = re.compile(r"^(?P<indent>[ \t]*)(Parameters|Other Parameters)[ \t]*$")
_HEAD = re.compile(r"^(?P<indent>\s*)(?P<about>[^:(]*)(?P<rest>.*)$", re.DOTALL)
_SPHINX = re.compile(r"^(?P<indent>[ \t]*):(?:param|parameter|arg|argument|key|keyword|type)\b(?P<what>[^:]*):")


def without_parameters(doc: str | None, names: Collection[str]) -> str | None:
    """*doc* without what it says about the parameters *names*."""
    if doc is None or not any(name in doc for name in names):
        return doc
    lines = doc.split("\n")
    kept: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        if match := _SPHINX.match(line):
            end = _block_end(lines, index, len(match["indent"]))
            if not match["what"].split() or match["what"].split()[-1].lstrip("*") not in names:
                kept.extend(lines[index:end])
            index = end
        elif match := _GOOGLE.match(line):
            # The compiler takes the entries' own indent away where a docstring begins with them.
            end = _block_end(lines, index, len(match["indent"]) if index else -1)
            kept.extend(_section(lines[index : index + 1], lines[index + 1 : end], names))
            index = end
        elif (match := _NUMPY.match(line)) and index + 1 < len(lines) and _is_rule(lines[index + 1]):
            end = _numpy_end(lines, index + 2)
            kept.extend(_section(lines[index : index + 2], lines[index + 2 : end], names))
            index = end
        else:
            kept.append(line)
            index += 1
    return "\n".join(kept)


def _section(heading: list[str], body: list[str], names: Collection[str]) -> list[str]:
    """A section without the entries *names*; nothing if no other entry is left."""
    indents = [_indent(line) for line in body if line.strip()]
    if not indents:
        return heading + body
    level = indents[0]
    entries: list[list[str]] = []
    for line in body:
        if (line.strip() and _indent(line) <= level) or not entries:
            entries.append([line])
        else:
            entries[-1].append(line)
    kept = [entry for entry in (_entry(entry, names) for entry in entries) if entry]
    if kept == entries:
        return heading + body
    if any(entry[0].strip() for entry in kept):
        blanks = _trailing_blanks(body)
        result = [line for entry in kept for line in entry]
        return heading + result[: len(result) - _trailing_blanks(result)] + body[len(body) - blanks :]
    return []


def _entry(entry: list[str], names: Collection[str]) -> list[str]:
    """An entry without the parameters *names*; nothing if it is about no other.

    Its first line begins with what it is about: ``memory: ...``, ``memory (dict): ...``, ``a, b : int``.
    """
    match = _HEAD.match(entry[0])
    if match is None:
        return entry
    about = match["about"].split(",")
    kept = [name for name in about if name.strip().strip("*`") not in names]
    if len(kept) == len(about):
        return entry
    if not kept:
        return []
    space = match["about"][len(match["about"].rstrip()) :]
    return [match["indent"] + ",".join(kept).strip() + space + match["rest"], *entry[1:]]


def _block_end(lines: list[str], start: int, indent: int) -> int:
    """The first line after *start* that is not indented deeper than *indent*; blank lines belong to what follows them."""
    end = start + 1
    for index in range(start + 1, len(lines)):
        if lines[index].strip():
            if _indent(lines[index]) <= indent:
                return end
            end = index + 1
    return end


def _numpy_end(lines: list[str], start: int) -> int:
    """The line of the next NumPy heading, or the end."""
    for index in range(start, len(lines) - 1):
        if lines[index].strip() and _is_rule(lines[index + 1]):
            return index
    return len(lines)


def _is_rule(line: str) -> bool:
    return len(line.strip()) > 2 and set(line.strip()) == {"-"}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _trailing_blanks(lines: list[str]) -> int:
    count = 0
    while count < len(lines) and not lines[-1 - count].strip():
        count += 1
    return count
