"""Options of a store's URL: how each is read, and what is said to somebody who wrote something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

__all__ = ["MAX_SECONDS", "Option", "check_timeouts", "count", "flag", "number", "one_of", "seconds", "text"]

T = TypeVar("T")

#: No wait that is asked for may be longer: a day.
MAX_SECONDS: Final = 86_400.0


class Option(Generic[T]):
    """Reads the text of an option.

    Args:
        convert: Gives the value, or raises a ValueError.
        expects: What is to be written, for the error: "on or off".
    """

    def __init__(self, convert: Callable[[str], T], expects: str) -> None:
        self._convert = convert
        self.expects = expects

    def __call__(self, text: str) -> T:
        return self._convert(text)


def _seconds(text: str) -> float:
    return _checked(float(text), lambda value: 0 < value <= MAX_SECONDS)


def _at_least(least: int) -> Option[int]:
    return Option(lambda text: _checked(int(text), lambda value: value >= least), f"a whole number of at least {least}")


def _checked(value: T, fits: Callable[[T], bool]) -> T:
    if not fits(value):
        raise ValueError
    return value


_FLAGS: Final = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}


def _flag(text: str) -> bool:
    return _FLAGS[_checked(text, lambda text: text in _FLAGS)]


seconds: Final = Option(_seconds, f"a positive number of seconds, at most {MAX_SECONDS:g}")
count: Final = _at_least(1)
number: Final = _at_least(0)
flag: Final = Option(_flag, "on or off")
text: Final[Option[str]] = Option(lambda text: _checked(text, bool), "a text that is not empty")


def one_of(*known: str) -> Option[str]:
    """An option that takes one of some words."""
    return Option(lambda text: _checked(text, lambda text: text in known), f"one of {', '.join(known)}")


def check_timeouts(store: object, **timeouts: float) -> None:
    """Refuse times that are not positive, or longer than anybody waits.

    Raises:
        TypeError: One is no number.
        ValueError: One is out of bounds.
    """
    for name, value in timeouts.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{type(store).__name__}: {name} must be a number of seconds, not {type(value).__name__}")
        if not 0 < value <= MAX_SECONDS:
            raise ValueError(f"{type(store).__name__}: {name} must be a positive number of seconds, at most {MAX_SECONDS:g}")
