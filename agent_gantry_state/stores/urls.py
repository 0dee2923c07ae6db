"""Stores by URL: ``memory://?max_namespaces=1000``.

A scheme names a function that takes the parsed URL and gives a store. Third parties register theirs under the entry point
group ``agent_gantry_state.stores``; it is looked up when such a URL is first opened.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote_to_bytes, urlsplit

from agent_gantry_state.errors import StoreURLError

__all__ = ["ENTRY_POINT_GROUP", "StoreURL", "open_store"]

ENTRY_POINT_GROUP = "agent_gantry_state.stores"


@dataclass(frozen=True, slots=True)
class StoreURL:
    """A store URL, taken apart. It shows no password, for it shows nothing but the scheme."""

    parts: SplitResult
    options: Mapping[str, str]

    def __repr__(self) -> str:
        return f"<StoreURL {self.parts.scheme}://...>"

    def read(self, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """The options, each converted by its function in *known*.

        Raises:
            StoreURLError: An option is unknown, or its value does not convert.
        """
        scheme = self.parts.scheme
        result = {}
        for name, text in self.options.items():
            if name not in known:
                raise StoreURLError(f"{scheme}:// has no option {name!r}; it knows {', '.join(sorted(known)) or 'none'}")
            try:
                result[name] = known[name](text)
            except ValueError:
                raise StoreURLError(f"{scheme}://: option {name!r} is no valid {known[name].__name__}") from None
        return result


def open_store(url: str) -> Any:
    """Make the store that *url* names.

    Raises:
        StoreURLError: The scheme or an option is unknown, or something in the URL is malformed.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        # From None: the error shows the URL, and with it a password.
        raise StoreURLError("a store URL is malformed: its host cannot be read") from None
    if not parts.scheme or "://" not in url:
        raise StoreURLError("a store is named by a URL such as memory://, or given as an object; this is neither")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise StoreURLError(f"{parts.scheme}://: each option can be given once")
    return _scheme(parts.scheme)(StoreURL(parts, options))


def _scheme(scheme: str) -> Callable[[StoreURL], Any]:
    if scheme in _SCHEMES:
        return _SCHEMES[scheme]
    registered = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if scheme in registered:
        return registered[scheme].load()  # type: ignore[no-any-return]
    known = sorted({*_SCHEMES, *registered})
    near = difflib.get_close_matches(scheme, known, 1)
    hint = f"did you mean {near[0]}://? " if near else ""
    raise StoreURLError(f"no store is known for {scheme}://; {hint}Known: {', '.join(f'{name}://' for name in known)}")


def _memory(url: StoreURL) -> Any:
    from agent_gantry_state.stores.memory import MemoryStore

    if url.parts.netloc or url.parts.path:
        raise StoreURLError("memory:// takes no host and no path; each gantry has a memory of its own")
    options = url.read({"max_namespaces": int})
    try:
        return MemoryStore(**options)
    except ValueError as error:
        raise StoreURLError(str(error)) from None


def _sqlite(url: StoreURL) -> Any:
    from agent_gantry_state.stores.sqlite import SQLiteStore

    how = "write sqlite:///relative/path.db, sqlite:////absolute/path.db or sqlite:///:memory:"
    if url.parts.netloc:
        raise StoreURLError(f"sqlite:// takes no host: {how}")
    if url.parts.fragment:
        raise StoreURLError("sqlite://: write # in a path as %23, and ? as %3F")
    # What follows the third slash, so that an absolute path has a fourth.
    path = os.fsdecode(unquote_to_bytes(url.parts.path[1:]))
    if not path or path.endswith("/") or "\0" in path:
        raise StoreURLError(f"sqlite:// needs the path of a file: {how}")
    return SQLiteStore(path, **url.read({"synchronous": normal_or_full}))


def normal_or_full(text: str) -> str:
    """Read the option `synchronous`."""
    if text not in ("normal", "full"):
        raise ValueError(text)
    return text


_SCHEMES: dict[str, Callable[[StoreURL], Any]] = {"memory": _memory, "sqlite": _sqlite}
