"""Stores by URL: ``memory://?max_namespaces=1000``.

A scheme names a function that takes the parsed URL and gives a store: of our own, `from_url` of a module of this package.
Third parties register theirs under the entry point group ``agent_gantry_state.stores``; it is looked up when such a URL is
first opened.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote_to_bytes, urlsplit

from agent_gantry_state.errors import StoreURLError
from agent_gantry_state.stores.options import Option

__all__ = ["ENTRY_POINT_GROUP", "StoreURL", "open_store"]

ENTRY_POINT_GROUP = "agent_gantry_state.stores"

#: By scheme the module of this package that has its store.
_MODULES = {
    "memory": "memory",
    "file": "file",
    "sqlite": "sqlite",
    "redis": "redis",
    "rediss": "redis",
    "redis+cluster": "redis",
    "rediss+cluster": "redis",
    "redis+sentinel": "redis",
    "valkey": "redis",
    "valkeys": "redis",
    "memcached": "memcached",
    "postgresql": "postgresql",
    "postgres": "postgresql",
}


#: They refuse what stands where others have a host, whatever it is.
_WITHOUT_HOST = frozenset({"memory", "file", "sqlite"})


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
                # With an @ in it, this may be the rest of a password that holds a question mark.
                shown = "like one that is given" if "@" in self.parts.query else repr(name)
                near = [] if "@" in self.parts.query else _near(name, known)
                hint = f"did you mean {near[0]}? It" if near else "it"
                raise StoreURLError(f"{scheme}:// has no option {shown}; {hint} knows {', '.join(sorted(known)) or 'none'}")
            result[name] = _converted(known[name], text)
            if result[name] is _INVALID:
                convert = known[name]
                kind = getattr(convert, "__name__", "value")
                expects = convert.expects if isinstance(convert, Option) else f"a valid {kind}"
                raise StoreURLError(f"{scheme}://: option {name!r} must be {expects}")
        return result

    def path(self, what: str, how: str) -> str:
        """The path after the third slash, so that an absolute one has a fourth.

        Args:
            what: Of what it is the path, for the error.
            how: How such a URL is written, for the error.

        Raises:
            StoreURLError: There is a host or no path, or something in it is not written as a URL is.
        """
        scheme = self.parts.scheme
        if self.parts.netloc:
            raise StoreURLError(f"{scheme}:// takes no host: {how}")
        if self.parts.fragment:
            raise StoreURLError(f"{scheme}://: write # in a path as %23, and ? as %3F")
        path = os.fsdecode(unquote_to_bytes(self.parts.path[1:]))
        if not path or "\0" in path:
            raise StoreURLError(f"{scheme}:// needs the path of {what}: {how}")
        return path


def open_store(url: str) -> Any:
    """Make the store that *url* names.

    Raises:
        StoreURLError: The scheme or an option is unknown, or something in the URL is malformed.
    """
    parts = _converted(urlsplit, url)
    if parts is _INVALID:
        raise StoreURLError(f"a store URL is malformed: its host cannot be read; {_ESCAPES}")
    if not parts.scheme or "://" not in url:
        # Nothing of the text is shown: it may hold a password.
        scheme = url.partition(":")[0].strip().lower()
        how = (
            f"begin it with {scheme}://"
            if scheme in _MODULES
            else "such as memory://, sqlite:///state.db, redis://localhost"
        )
        raise StoreURLError(f"a store is named by a URL, or given as an object, and this is neither: {how}")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    if len(options) < len(pairs):
        raise StoreURLError(f"{parts.scheme}://: each option can be given once")
    if parts.netloc and parts.scheme in _MODULES and parts.scheme not in _WITHOUT_HOST:
        _refuse_misread(parts, options)
    return _scheme(parts.scheme)(StoreURL(parts, options))


#: Stands for what does not convert. The converter's error is not kept: it shows what it was given, which may be a password.
_INVALID = object()
_ESCAPES = "write @ in a user name, password, path or option as %40, / as %2F, ? as %3F, # as %23, [ as %5B and ] as %5D"


def _converted(convert: Callable[[str], Any], text: str) -> Any:
    try:
        return convert(text)
    except ValueError:
        return _INVALID


def _refuse_misread(parts: SplitResult, options: Mapping[str, str]) -> None:
    """Refuse a URL that cannot be meant as it reads: a part of a password would be taken for something that is shown."""
    port = _converted(lambda _: parts.port, "") if "," not in parts.netloc else None
    if port is _INVALID or parts.fragment or "@" in parts.path or any("@" in name for name in options):
        raise StoreURLError(f"a {parts.scheme}:// URL is malformed: its port is no number up to 65535, or {_ESCAPES}")


def _near(name: str, known: Iterable[str]) -> list[str]:
    """The one of *known* that was perhaps meant, if there is one."""
    # Only an error needs it.
    import difflib

    return difflib.get_close_matches(name, known, 1)


def _scheme(scheme: str) -> Callable[[StoreURL], Any]:
    if scheme in _MODULES:
        return importlib.import_module(f"agent_gantry_state.stores.{_MODULES[scheme]}").from_url  # type: ignore[no-any-return]
    # Our own stores need it not, and it takes as long to import as several modules here.
    from importlib.metadata import entry_points

    registered = {point.name.lower(): point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if scheme in registered:
        return registered[scheme].load()  # type: ignore[no-any-return]
    known = sorted({*_MODULES, *registered})
    near = _near(scheme, known)
    hint = f"did you mean {near[0]}://? Known" if near else "known"
    raise StoreURLError(f"no store is known for {scheme}://; {hint}: {', '.join(f'{name}://' for name in known)}")
