from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_gantry_state import CorruptEntryError, codec
from agent_gantry_state.testing import VALUES
from agent_gantry_state.wellformed import is_wellformed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@pytest.mark.parametrize(
    "value", [*VALUES, list(range(70_000)), {str(n): n for n in range(70_000)}, "é" * 70_000, b"x" * 300]
)
def test_what_was_packed_is_wellformed_and_no_part_of_it_is(value):
    packed = codec.pack(value)

    assert is_wellformed(packed)
    for end in {0, 1, len(packed) // 2, len(packed) - 1} - {len(packed)}:
        assert not is_wellformed(packed[:end])


@given(JSON)
def test_any_value_that_was_packed_is_wellformed(value):
    assert is_wellformed(codec.pack(value))


@settings(max_examples=1000)
@given(st.lists(st.sampled_from([0x81, 0x92, 0xA3, 0xC1, 0xC7, 0xD8, 0xDC, 0xDD, 0xDE, 0xDF, 0, 1, 7, 255]), max_size=14))
def test_what_is_not_wellformed_is_damaged(data):
    if not is_wellformed(bytes(data)):
        with pytest.raises(CorruptEntryError):
            codec.decode(codec.FORMAT + bytes(data))


TOO_LONG = (b"\xdd\xc4\xa1\xff\xc4\x07", b"\xdf\xff\xff\xff\xff\xa1a\x07", b"\x91\xdd\x7f\xff\xff\xff\x07")


@pytest.mark.parametrize("data", TOO_LONG)
def test_length_for_which_there_is_no_memory_is_an_error_and_no_crash(data):
    with pytest.raises(CorruptEntryError):
        codec.unpack(data)


# Those that have no values in them hold the bytes as they are.
@pytest.mark.parametrize("data", TOO_LONG)
@pytest.mark.parametrize("code", range(20))
def test_such_a_length_within_an_extension_takes_nothing_down(data, code):
    try:
        value = codec.unpack(b"\xc7" + bytes([len(data), code]) + data)
    except CorruptEntryError:
        return
    assert isinstance(value, (int, str))
