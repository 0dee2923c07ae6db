"""An item: a namespace as bytes, and before it the tokens of the commits that wrote it lately.

The tokens stay bytes from one commit to the next, for a namespace in heavy use has many, and none is mostly looked for.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from agent_gantry_state.errors import CorruptEntryError
from agent_gantry_state.namespace import Namespace
from agent_gantry_state.stores.protocol import Snapshot
from agent_gantry_state.stores.whole import damaged, image_of, read_image

__all__ = ["NO_TOKENS", "TOKEN_SECONDS", "dropped_until", "has_token", "read_item", "with_token", "write_item"]

#: Seconds for which a commit that landed is remembered, so that it can be sent again, and how many a namespace remembers.
TOKEN_SECONDS: Final = 60.0
_TOKENS: Final = 64

#: Layout, length of the tokens; then, in every layout, a checksum of these two and of the tokens.
_HEAD: Final = struct.Struct(">BI")
_SUM: Final = struct.Struct(">I")
_TOKENS_AT: Final = _HEAD.size + _SUM.size
_LAYOUT: Final = 1
_TIME: Final = struct.Struct(">d")
_TOKEN_BYTES: Final = 16
_ENTRY: Final = struct.Struct(">16sd")
_ENTRY_BYTES: Final = _TOKEN_BYTES + _TIME.size
_time = _TIME.unpack_from

#: The time when the last of those landed that were dropped for newer ones, then each token and until when it is kept.
NO_TOKENS: Final = _TIME.pack(float("-inf"))


def write_item(namespace: Namespace, snapshot: Snapshot, tokens: bytes) -> bytes:
    """What memcached keeps."""
    head = _HEAD.pack(_LAYOUT, len(tokens))
    checksum = _SUM.pack(zlib.crc32(tokens, zlib.crc32(head)))
    return b"".join((head, checksum, tokens, *image_of(namespace, snapshot)))


def read_item(data: bytes, namespace: Namespace) -> tuple[Snapshot, bytes]:
    """Read what `write_item` wrote: the snapshot and the tokens.

    Raises:
        CorruptEntryError: It is damaged, of a newer layout, or another namespace's.
    """
    try:
        (layout, length), (checksum,) = _HEAD.unpack_from(data), _SUM.unpack_from(data, _HEAD.size)
    except struct.error:
        raise damaged() from None
    end = _TOKENS_AT + length
    tokens = data[_TOKENS_AT:end]
    if zlib.crc32(tokens, zlib.crc32(data[: _HEAD.size])) != checksum:
        raise damaged()
    if layout > _LAYOUT:
        raise CorruptEntryError(
            f"a memory was written by a newer version of agent-gantry-state (item layout {layout}, this one knows "
            f"{_LAYOUT}): upgrade the package; nothing was changed in it"
        )
    if layout != _LAYOUT or len(tokens) != length or (length - _TIME.size) % _ENTRY_BYTES:
        raise damaged()
    return read_image(data[end:], namespace).snapshot, tokens


def has_token(tokens: bytes, token: bytes, now: float) -> bool:
    """Whether a commit with this token has landed, as far as is still remembered."""
    at = tokens.find(token, _TIME.size)
    while at >= 0:
        if (at - _TIME.size) % _ENTRY_BYTES == 0:
            return _time(tokens, at + _TOKEN_BYTES)[0] > now  # type: ignore[no-any-return]
        at = tokens.find(token, at + 1)
    return False


def with_token(tokens: bytes, token: bytes, now: float) -> bytes:
    """The tokens that a namespace remembers after a commit."""
    start, length, kept = _TIME.size, len(tokens), tokens[: _TIME.size]
    while start < length and _time(tokens, start + _TOKEN_BYTES)[0] <= now:
        start += _ENTRY_BYTES
    surplus = length - (_TOKENS - 1) * _ENTRY_BYTES
    if start < surplus:
        (dropped,) = _time(tokens)
        while start < surplus:
            # They come from processes whose clocks differ a little.
            landed = _time(tokens, start + _TOKEN_BYTES)[0] - TOKEN_SECONDS
            if landed > dropped:
                dropped = landed
            start += _ENTRY_BYTES
        kept = _TIME.pack(dropped)
    return b"".join((kept, tokens[start:], _ENTRY.pack(token, now + TOKEN_SECONDS)))


def dropped_until(tokens: bytes) -> float:
    """When the last commit landed whose token was dropped before its time."""
    return _time(tokens)[0]  # type: ignore[no-any-return]
