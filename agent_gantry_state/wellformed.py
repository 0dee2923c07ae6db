"""Whether bytes are MessagePack, without making anything of them.

ormsgpack before 1.13, the last of which is all that there is for Python 3.10, makes a list as long as damaged bytes say
before it has seen an item, and takes the process down when there is no memory for it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["is_wellformed"]

#: By first byte: how many bytes of a length follow, and how many more the value has besides (an extension's type).
_SIZED: Final = {
    **{0xC4 + power: (1 << power, 0) for power in range(3)},
    **{0xC7 + power: (1 << power, 1) for power in range(3)},
    **{0xD9 + power: (1 << power, 0) for power in range(3)},
}
#: By first byte: how many bytes follow.
_FIXED: Final = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8} | {
    **{0xCC + power: 1 << power for power in range(4)},
    **{0xD0 + power: 1 << power for power in range(4)},
    **{0xD4 + power: 1 + (1 << power) for power in range(5)},
}
#: By first byte: how many bytes of a length follow, and how many values an item has.
_MANY: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def is_wellformed(data: bytes) -> bool:
    """Whether *data* begins with one whole value, and says nowhere that more follows than there is."""
    at, end, missing = 0, len(data), 1
    while missing:
        if at >= end:
            return False
        first = data[at]
        at += 1
        missing -= 1
        if first <= 0x7F or first >= 0xE0:
            continue
        if first <= 0x8F:
            missing += 2 * (first & 0x0F)
        elif first <= 0x9F:
            missing += first & 0x0F
        elif first <= 0xBF:
            at += first & 0x1F
        elif first in _FIXED:
            at += _FIXED[first]
        elif first in _SIZED:
            size, more = _SIZED[first]
            at += size + more + int.from_bytes(data[at : at + size], "big")
        elif first in _MANY:
            size, values = _MANY[first]
            missing += values * int.from_bytes(data[at : at + size], "big")
            at += size
        else:
            return False
        # Each value that is missing takes a byte at least.
        if missing > end - at:
            return False
    return at <= end
