"""Ids that are made to be taken for one another, or for a command, a path or a pattern."""

from __future__ import annotations

import unicodedata
from typing import Any

from hypothesis import strategies as st

from agent_gantry_state.testing import HOSTILE_TEXTS

#: What would do something where an id were put into a command, a query, a path, a pattern or a log.
INJECTIONS = (
    "x\r\nFLUSHALL\r\n",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "x 0 0 1\r\ny\r\nflush_all\r\n",
    "x\nset y 0 0 1\n1",
    "'; DELETE FROM entry; --",
    "$1",
    "\\x00",
    "\\",
    "E'\\\\'",
    "\"; COPY t TO PROGRAM 'id'; --",
    "../../../../tmp/x",
    "/dev/null",
    "con.txt",
    ".",
    "~root",
    "{ab}",
    "a}{b",
    "%s %n {0} {0.__class__}",
    "*?[a-z]",
    "\x1b[2J",
    "\u202eadmin",
    "\x7f",
    "\x85",
    "\u2028",
)

_PARTS = st.sampled_from([*HOSTILE_TEXTS, *INJECTIONS]) | st.text(
    st.characters(codec=None) | st.sampled_from("ab\0:/ \u0301\ud800"), min_size=1, max_size=5
)

_SHORT = _PARTS.filter(lambda text: len(text) < 1000)


def _changed(text: str) -> list[str]:
    """What a careless store would take *text* for."""
    forms = ("NFC", "NFD", "NFKC", "NFKD")
    return [
        text + " ",
        " " + text,
        text + "\0",
        text + "\n",
        text.strip(),
        text.upper(),
        text.lower(),
        text.casefold(),
        text[:-1],
        text + "\u0301",
        text.replace("a", "\u0430"),
        text.encode("utf-8", "replace").decode(),
        text.encode("utf-8", "surrogatepass").decode("latin-1"),
        *(unicodedata.normalize(form, text) for form in forms),
    ]


@st.composite
def likes(draw: Any) -> list[str]:
    """Ids that differ, but not by much: one, and what careless stores would take it for."""
    text = draw(_PARTS)
    others = draw(st.lists(st.sampled_from(_changed(text)), max_size=4))
    return list(dict.fromkeys(each for each in (text, *others) if each))


@st.composite
def addresses(draw: Any) -> list[tuple[str, str, str]]:
    """Parts (app, scope, id) that differ, among them some that are one text cut at other places."""
    made = [(draw(_SHORT), draw(_SHORT), draw(_PARTS))]
    for _ in range(draw(st.integers(1, 3))):
        one = list(draw(st.sampled_from(made)))
        how = draw(st.sampled_from(("like", "shift", "swap", "join")))
        at = draw(st.integers(0, 2))
        if how == "like":
            one[at] = draw(st.sampled_from(_changed(one[at])))
        elif how == "shift":
            one[at - 1], one[at] = one[at - 1] + one[at][:1], one[at][1:]
        elif how == "swap":
            one[at - 1], one[at] = one[at], one[at - 1]
        else:
            one[at] = draw(st.sampled_from((":", "/", "\0", " "))).join(one)
        # memcached keeps an address with what is stored there, and nothing that is larger than a megabyte.
        if all(one[1:]) and sum(map(len, one)) < 250_000:
            made.append(tuple(one))
    return list(dict.fromkeys(made))
