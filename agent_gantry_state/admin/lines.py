"""An export as text: one line for what it is, one for each memory, and one that says that this was all.

Each line is JSON. What may stand in it is said in docs/command-line.md and never means anything else; what does not fit is
refused by number of line and key, and so is an export that ends early.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final, NoReturn

from agent_gantry_state import codec
from agent_gantry_state.admin.memories import StoredKey, StoredMemory
from agent_gantry_state.admin.portable import NotPortableError, dumps, from_json, loads, to_json
from agent_gantry_state.codec import shortened
from agent_gantry_state.compartments import is_reserved
from agent_gantry_state.errors import ImportRefusedError, UnstorableValueError
from agent_gantry_state.namespace import Namespace

__all__ = ["VERSION", "first_line", "last_line", "line_of", "memories_in"]

#: Of the format; a reader refuses a greater one.
VERSION: Final = 1
_NAME: Final = "agent_gantry_state"
_KIND: Final = "export"
_MEMORY: Final = ("app", "scope", "id", "owner", "keys")
_ENTRY: Final = frozenset({"key", "value", "expires_at", "slides"})


def first_line() -> str:
    """What an export begins with."""
    return dumps({_NAME: _KIND, "version": VERSION})


def last_line(count: int) -> str:
    """What an export of *count* memories ends with."""
    return dumps({"end": count})


def line_of(memory: StoredMemory) -> str:
    """The line of a memory."""
    app, scope, id = (to_json(text) for text in (memory.namespace.app, memory.namespace.scope, memory.namespace.id))
    keys = [_entry(each) for each in memory.keys]
    owner = None if memory.owner is None else to_json(memory.owner)
    return dumps({"app": app, "scope": scope, "id": id, "owner": owner, "keys": keys})


def _entry(each: StoredKey) -> dict[str, Any]:
    value = codec.unpack(each.packed)
    tree = to_json(value)
    entry: dict[str, Any] = {"key": to_json(each.key), "value": tree}
    if each.expires_at is not None:
        entry["expires_at"] = each.expires_at
    if each.slides is not None:
        entry["slides"] = each.slides
    return entry


def memories_in(lines: Iterable[str | bytes]) -> Iterator[tuple[int, StoredMemory]]:
    """The memories of an export, each with the number of its line.

    Raises:
        ImportRefusedError: A line is not what an export has there, or the export ends early.
    """
    begun = ended = False
    count = number = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        tree = _read(line, number)
        if ended:
            _refuse(number, "something follows on the line with which the export ends")
        if not begun:
            _check_first(tree, number)
            begun = True
        elif "end" in tree:
            if tree != {"end": count}:
                _refuse(number, f"the export is not whole: it has {count} memories, and ends as one of another number")
            ended = True
        else:
            count += 1
            yield number, _memory(tree, number)
    if not ended:
        _refuse(number + 1, "the export is cut off: the line with which one ends is missing" if begun else "it is empty")


def _refuse(number: int, problem: str, key: str | None = None) -> NoReturn:
    where = f"line {number}" if key is None else f"line {number}, key {shortened(repr(key))}"
    raise ImportRefusedError(f"{where}: {problem}; nothing of this line was imported", line=number, key=key)


def _read(line: str | bytes, number: int) -> dict[str, Any]:
    try:
        tree = loads(line)
    except NotPortableError as error:
        problem = str(error)
    else:
        if type(tree) is dict:
            return tree
        problem = "it is no JSON object"
    _refuse(number, problem)


def _check_first(tree: dict[str, Any], number: int) -> None:
    version = tree.get("version")
    if tree.get(_NAME) != _KIND or type(version) is not int:
        _refuse(number, f"this is no export, which begins with {first_line()}")
    if version > VERSION:
        _refuse(
            number,
            f"the export is of a newer version of agent-gantry-state (format {version}, this one knows {VERSION}): upgrade "
            "the package",
        )
    if len(tree) > 2 or version < 1:
        _refuse(number, f"an export begins with {first_line()}")


def _memory(tree: dict[str, Any], number: int) -> StoredMemory:
    if tree.keys() != set(_MEMORY):
        _refuse(number, f"a memory has {', '.join(_MEMORY)}, and nothing else")
    app, scope, id = (_text(tree[name], name, number) for name in ("app", "scope", "id"))
    owner = None if tree["owner"] is None else _text(tree["owner"], "owner", number)
    if not scope or not id:
        _refuse(number, "scope and id must not be empty")
    if type(tree["keys"]) is not list:
        _refuse(number, "keys must be a list")
    keys: dict[str, StoredKey] = {}
    for index, entry in enumerate(tree["keys"]):
        each = _stored_key(entry, index, number)
        if each.key in keys:
            _refuse(number, "it is there twice", each.key)
        keys[each.key] = each
    return StoredMemory(Namespace(scope, id, app), owner, tuple(keys.values()))


def _text(tree: Any, name: str, number: int) -> str:
    try:
        text = from_json(tree)
    except NotPortableError:
        text = None
    if type(text) is not str:
        _refuse(number, f"{name} must be a text")
    return text


def _stored_key(entry: Any, index: int, number: int) -> StoredKey:
    if type(entry) is not dict or not {"key", "value"} <= entry.keys() <= _ENTRY:
        _refuse(number, f"keys[{index}] must be an object with key and value, and expires_at and slides if it expires")
    key = _text(entry["key"], f"keys[{index}].key", number)
    each = StoredKey(
        key,
        _packed(entry["value"], key, number),
        expires_at=_seconds(entry, "expires_at", key, number),
        slides=_seconds(entry, "slides", key, number),
    )
    if is_reserved(key) and each.tool is None:
        _refuse(number, 'a key that begins with "\\0" is one of a tool\'s own, and this is none', key)
    if each.slides is not None and (each.expires_at is None or each.slides <= 0):
        _refuse(number, "slides must be positive, and go with expires_at", key)
    return each


def _packed(tree: Any, key: str, number: int) -> bytes:
    try:
        return codec.pack(from_json(tree))
    except (NotPortableError, UnstorableValueError) as error:
        problem = str(error)
    _refuse(number, f"its value is refused: {problem}", key)


def _seconds(entry: dict[str, Any], name: str, key: str, number: int) -> float | None:
    if name not in entry:
        return None
    value = entry[name]
    if type(value) not in (int, float) or not math.isfinite(value):
        _refuse(number, f"{name} must be a number of seconds", key)
    return float(value)
