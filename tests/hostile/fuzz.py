"""The decoder under a coverage-guided fuzzer, and what it found: `python fuzz.py CORPUS... [options of libFuzzer]`.

An input begins with a byte that chooses what reads the rest. Whatever the rest is, a reader gives something or raises one
of the errors that it says it raises: no other one, no crash, no memory beyond what the input is worth, no hang.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import struct
import sys
import zlib
from collections.abc import Callable, Iterator

CORPUS = pathlib.Path(__file__).parent / "corpus"

if __name__ == "__main__":
    import atheris

    sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parents[2])]
    instrument = atheris.instrument_imports(include=["agent_gantry_state"])
else:
    instrument = contextlib.nullcontext()

with instrument:
    from agent_gantry_state import codec
    from agent_gantry_state.errors import CorruptEntryError, StateError, UnstorableValueError
    from agent_gantry_state.namespace import Namespace
    from agent_gantry_state.stores import (
        file_journal,
        memcached_server,
        memcached_wire,
        postgresql_wire,
        redis_layout,
        redis_wire,
        rows,
        whole,
    )
    from agent_gantry_state.stores.memcached_item import dropped_until, has_token, read_item, with_token
    from agent_gantry_state.stores.postgresql_rows import chosen as postgresql_chosen
    from agent_gantry_state.wellformed import is_wellformed

_NAMESPACE = Namespace("session", "s1", "app")
_PLACE = redis_layout.place_of(b"p:", _NAMESPACE)


def _look(snapshot: whole.Snapshot) -> None:
    """Do what a call does with what it has loaded."""
    for key in snapshot.values:
        with contextlib.suppress(CorruptEntryError):
            snapshot.value(key)
        snapshot.deadline(key)
    snapshot.live(1e9)
    snapshot.last_expiry()


def _decode(data: bytes) -> None:
    value = codec.decode(b"\x01" + data)
    try:
        packed = codec.pack(value)
    except UnstorableValueError as error:
        # Bytes can be nested more deeply than any that we write.
        if "nested too deeply" in str(error):
            return
        raise
    # What was decoded is something that can be stored, and comes back as it is.
    assert codec.pack(codec.unpack(packed)) == packed


def _unpack(data: bytes) -> None:
    codec.unpack(data)


def _wellformed(data: bytes) -> None:
    if not is_wellformed(data):
        try:
            codec.unpack(data)
        except CorruptEntryError:
            return
        raise AssertionError("what is not well-formed was decoded")


def _sealed(data: bytes) -> bytes:
    """Behind a layout and a checksum that are right."""
    return b"\x01" + zlib.crc32(b"\x01" + data).to_bytes(4, "big") + data


def _image(data: bytes) -> None:
    image = whole.read_image(_sealed(data))
    _look(image.snapshot)
    for until in image.tokens.values():
        assert until - 1e9 < math.inf or until == math.inf


def _item(data: bytes) -> None:
    size = min(data[0] * 24 + 8 if data else 0, len(data))
    tokens, body = data[1 : 1 + size], data[1 + size :]
    head = struct.pack(">BI", 1, len(tokens))
    checksum = zlib.crc32(head + tokens).to_bytes(4, "big")
    snapshot, read = read_item(head + checksum + tokens + _sealed(body), _NAMESPACE)
    _look(snapshot)
    has_token(with_token(read, b"t" * 16, 1.0), b"t" * 16, 1.0)
    dropped_until(read)


def _fields(data: bytes) -> Iterator[bytes]:
    """Strings behind their lengths, as many as there are."""
    while data:
        yield data[1 : 1 + data[0]]
        data = data[1 + data[0] :]


def _redis_rows(data: bytes) -> None:
    fields = list(_fields(data))
    if len(fields) % 2:
        fields.pop()
    with contextlib.suppress(CorruptEntryError):
        _look(redis_layout.whole(fields, _PLACE)[0])
    if fields and fields[0] == b"h":
        # As if the header were that of the namespace that was asked for.
        fields[1] += _PLACE.address
        _look(redis_layout.whole(fields, _PLACE)[0])
        _look(redis_layout.chosen(fields, _PLACE, ["a", "b"], True, 1e9))


def _redis_header(data: bytes) -> None:
    redis_layout.listed(data, b"00")


def _address(data: bytes) -> None:
    rows.namespace_of(data, "here")


def _records(data: bytes) -> None:
    names = [str(index) for index in range(len(list(_fields(data))))]
    # Behind checksums that are right, for what comes after them is to be tried.
    rows.values_of(
        names, [rows.sealed(name.encode(), each) for name, each in zip(names, _fields(data), strict=True)], "here"
    )


class _Result:
    """A result of PostgreSQL, of the columns that ours have."""

    def __init__(self, fields: list[bytes]) -> None:
        self._fields = fields
        self.ntuples = len(fields) // 11

    def get_value(self, row: int, column: int) -> bytes | None:
        # What is empty stands for a null; numbers have the sizes that the columns' types give them.
        value = self._fields[row * 11 + column]
        if column in (4, 5, 10) and value:
            return value[:8].ljust(8, b"\0")
        if column in (0, 3):
            return value[:4].ljust(4, b"\0")
        return value or None


def _postgresql_rows(data: bytes) -> None:
    fields = list(_fields(data))
    if len(fields) < 11:
        return
    # The first row is that of the namespace.
    fields[0], fields[1], fields[7] = b"\0\0\0\1", b"", rows.place(_NAMESPACE)[1]
    fields[4], fields[5] = fields[4] or b"\0", fields[5] or b"\0"
    for row in range(1, len(fields) // 11):
        fields[row * 11 + 1] = fields[row * 11 + 1] or b"k"
        fields[row * 11 + 2] = fields[row * 11 + 2] or b"v"
    _look(postgresql_chosen(_Result(fields), (_NAMESPACE,), (False,))[0])


def _journal(data: bytes) -> None:
    file_journal._moves(_sealed(data))


def _memcached_wire(data: bytes) -> None:
    kinds = (memcached_wire.STATS, memcached_wire.VALUES, memcached_wire.LINE)
    first, size, chunk = data[:1], len(data), 1 + data[-1] % 64 if data else 1
    asked, buffer = kinds[first[0] % 3 :] if first else kinds, bytearray()
    if first > b"\x7f":
        # Of a server that was never asked, the time is asked for first.
        asked = memcached_wire.get(memcached_server.Server("fuzz"), b"k", b"known").kinds[first[0] % 2 :]
    try:
        for at in range(1, size, chunk):
            if memcached_wire.read(asked, buffer, data[at : at + chunk]) is not None:
                return
        memcached_wire.read(asked, buffer, b"")
    except (memcached_wire.Garbled, memcached_wire.Refused, memcached_wire.Disconnected):
        pass


def _redis_wire(data: bytes) -> None:
    reader = redis_wire.hiredis.Reader(
        protocolError=redis_wire._Garbled, replyError=redis_wire.Refusal, notEnoughData=redis_wire._NOTHING
    )
    chunk = 1 + data[-1] % 64 if data else 1
    try:
        for at in range(0, len(data), chunk):
            reader.feed(data[at : at + chunk])
            while (reply := reader.gets()) is not redis_wire._NOTHING:
                if isinstance(reply, redis_wire.Refusal):
                    assert isinstance(redis_wire.refused(reply), StateError)
    except redis_wire._Garbled:
        pass


def _postgresql_wire(data: bytes) -> None:
    postgresql_wire.to_int(data)
    if len(data) == 8:
        postgresql_wire.to_float(data)


READERS: tuple[Callable[[bytes], None], ...] = (
    _decode,
    _unpack,
    _wellformed,
    _image,
    _item,
    _redis_rows,
    _redis_header,
    _address,
    _records,
    _postgresql_rows,
    _journal,
    _memcached_wire,
    _redis_wire,
    _postgresql_wire,
)


def one_input(data: bytes) -> None:
    """Have a reader read, which may find that it is damaged, and nothing else."""
    if not data:
        return
    with contextlib.suppress(CorruptEntryError):
        READERS[data[0] % len(READERS)](bytes(data[1:]))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
