"""The little CBOR that images carry, read strictly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbor_writer import encoded
from confide.evidence.cbor import MAX_DEPTH, CborError, Value, decode

VALUES: st.SearchStrategy[Value] = st.recursive(
    st.integers(0, 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=30),
    lambda inner: st.dictionaries(st.text(max_size=30), inner, max_size=30),
    max_leaves=20,
)


@given(VALUES)
def test_what_was_written_is_read(value: Value) -> None:
    assert decode(encoded(value)) == value


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_or_have_one_spelling(data: bytes) -> None:
    try:
        value = decode(data)
    except CborError:
        return
    assert encoded(value) == data


@given(VALUES, st.data())
def test_a_cut_item_is_refused(value: Value, data: st.DataObject) -> None:
    whole = encoded(value)
    with pytest.raises(CborError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "cut short"),
        ("0000", "1 bytes follow"),
        ("20", "major type 1"),
        ("80", "major type 4"),
        ("c000", "major type 6"),
        ("f4", "major type 7"),
        ("f93c00", "major type 7"),
        ("1c", "definite length"),
        ("5f", "definite length"),
        ("bf", "definite length"),
        ("1817", "shortest form"),
        ("1900ff", "shortest form"),
        ("1a0000ffff", "shortest form"),
        ("1b00000000ffffffff", "shortest form"),
        ("5801aa", "shortest form"),
        ("61ff", "not UTF-8"),
        ("a10000", "no text"),
        ("a2616100616101", "stands twice"),
        ("a1", "cut short"),
        ("bbffffffffffffffff", "cut short"),
        ("5bffffffffffffffff", "cut short"),
    ],
)
def test_everything_else_is_refused(data: str, reason: str) -> None:
    with pytest.raises(CborError, match=reason):
        decode(bytes.fromhex(data))


def test_nesting_is_bounded() -> None:
    def nested(depth: int) -> bytes:
        return bytes.fromhex("a16161") * depth + b"\x00"

    decode(nested(MAX_DEPTH))
    with pytest.raises(CborError, match="deeper than"):
        decode(nested(MAX_DEPTH + 1))
    with pytest.raises(CborError, match="deeper than"):
        decode(nested(100_000))
