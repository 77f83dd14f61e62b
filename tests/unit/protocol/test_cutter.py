"""A stream cut into whole events, with the bytes they came in."""

import pytest

from confide.protocol.sse import Cutter, Piece, SseError


def test_events_come_with_their_bytes() -> None:
    cutter = Cutter()
    assert cutter.feed(b"data: a\n\n: comment\n\ndata:b\r\n\r\n") == [
        Piece(b"data: a\n\n", b"a"),
        Piece(b": comment\n\n", None),
        Piece(b"data:b\r\n\r\n", b"b"),
    ]
    assert cutter.tail == b""


def test_half_an_event_is_held_back() -> None:
    cutter = Cutter()
    assert cutter.feed(b"data: a\ndata") == []
    assert cutter.feed(b": b") == []
    assert cutter.tail == b"data: a\ndata: b"
    assert cutter.feed(b"\n\nda") == [Piece(b"data: a\ndata: b\n\n", b"a\nb")]
    assert cutter.tail == b"da"


def test_a_blank_line_may_be_split() -> None:
    cutter = Cutter()
    assert cutter.feed(b"data: a\r") == []
    assert cutter.feed(b"\n\r") == [Piece(b"data: a\r\n\r", b"a")]
    assert cutter.feed(b"\ndata: b\n\n") == [Piece(b"\ndata: b\n\n", b"b")]


def test_a_byte_order_mark_is_passed_and_not_read() -> None:
    assert Cutter().feed(b"\xef\xbb\xbfdata: a\n\n") == [Piece(b"\xef\xbb\xbfdata: a\n\n", b"a")]


@pytest.mark.parametrize("parts", [[b"x" * 17], [b"x" * 9, b"x" * 9], [b"data: " + b"x" * 20 + b"\n\n"]])
def test_what_is_held_back_is_bounded(parts: list[bytes]) -> None:
    cutter = Cutter(max_event_bytes=16)
    *before, last = parts
    assert all(cutter.feed(part) == [] for part in before)
    with pytest.raises(SseError, match="more than 16 bytes"):
        cutter.feed(last)


def test_an_event_of_a_mebibyte_in_small_reads() -> None:
    cutter = Cutter()
    event = b"data: " + b"x" * 2**20 + b"\n\n"
    pieces = [piece for start in range(0, len(event), 1000) for piece in cutter.feed(event[start : start + 1000])]
    assert [piece.raw for piece in pieces] == [event]
