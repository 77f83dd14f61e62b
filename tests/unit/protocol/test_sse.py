"""The SSE framer on examples; every split point of a stream is in tests/property/test_sse_property.py."""

import json

import pytest

from confide.protocol.sse import DONE, KEEP_ALIVE, Event, Framer, SseError, error_tail, frame


def events_of(stream: bytes) -> list[Event]:
    framer = Framer()
    return framer.feed(stream) + framer.end()


def feed_all(framer: Framer, pieces: list[bytes]) -> list[Event]:
    return [event for piece in pieces for event in framer.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [Event(b"a")]),
        (b"data:a\n\n", [Event(b"a")]),
        (b"data:  a\n\n", [Event(b" a")]),
        (b"data: a\r\n\r\n", [Event(b"a")]),
        (b"data: a\r\r", [Event(b"a")]),
        (b"data: a\r\n\n", [Event(b"a")]),
        (b"data: a\n\r\n", [Event(b"a")]),
        (b"data: a\n\ndata: b\n\n", [Event(b"a"), Event(b"b")]),
        (b"data: a\n\n\n\n\ndata: b\n\n\n", [Event(b"a"), Event(b"b")]),
        (b"\n\n\ndata: a\n\n", [Event(b"a")]),
        (b"data: a\ndata: b\n\n", [Event(b"a\nb")]),
        (b"data\ndata\n\n", [Event(b"\n")]),
        (b"data:\n\n", [Event(b"")]),
        (b"data\n\n", [Event(b"")]),
        (b"event: x\n\n", []),
        (b"event: x\n\ndata: a\n\n", [Event(b"a")]),
        (b"event: x\ndata: a\n\n", [Event(b"a", b"x")]),
        (b"event: x\nevent: y\ndata: a\n\n", [Event(b"a", b"y")]),
        (b"event:\ndata: a\n\n", [Event(b"a")]),
        (b"id: 1\nretry: 5\nfoo: b\ndatax: b\n data: c\ndata: a\n\n", [Event(b"a")]),
        (b": comment\n\n", []),
        (KEEP_ALIVE + b"data: a\n\n", [Event(b"a")]),
        (b": comment\ndata: a\n: more\n\n", [Event(b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event(b"a")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [Event(b"a")]),
        (b"data: a: b:c\n\n", [Event(b"a: b:c")]),
        (b"data: \xf0\x9f\x94\x92 \xff\x00\n\n", [Event(b"\xf0\x9f\x94\x92 \xff\x00")]),
        (b"data: dat data: \n\n", [Event(b"dat data: ")]),
        (DONE, [Event(b"[DONE]")]),
        (b"", []),
    ],
)
def test_a_stream_gives_the_events_of_the_standard(stream: bytes, expected: list[Event]) -> None:
    assert events_of(stream) == expected


@pytest.mark.parametrize("stream", [b"data: a", b"data: a\n", b"data: a\r\n", b"event: x\n", b": note\n", b"\xef\xbb"])
def test_an_unfinished_event_is_not_dispatched_but_seen(stream: bytes) -> None:
    framer = Framer()

    assert framer.feed(b"data: whole\n\n" if stream[0] != 0xEF else b"") in ([Event(b"whole")], [])
    assert not framer.pending
    assert framer.feed(stream) == []
    assert framer.end() == []
    assert framer.pending


@pytest.mark.parametrize("stream", [b"", b"data: a\n\n", b"data: a\r\r", b"data: a\r\n\r\n", b"\n", b": x\n\n"])
def test_nothing_is_pending_after_a_blank_line(stream: bytes) -> None:
    framer = Framer()
    framer.feed(stream)
    framer.end()

    assert not framer.pending


def test_half_a_byte_order_mark_is_a_field_name_once_it_cannot_be_one() -> None:
    framer = Framer()

    assert framer.feed(b"\xef\xbb") == []
    assert framer.feed(b"data: a\ndata: b\n\n") == [Event(b"b")]


def test_a_linefeed_after_a_carriage_return_in_the_next_read_is_the_same_line_end() -> None:
    framer = Framer()

    assert framer.feed(b"data: a\r") == []
    assert framer.feed(b"\ndata: b\r") == []
    assert framer.feed(b"") == []
    assert framer.feed(b"\n\r") == [Event(b"a\nb")]
    assert framer.feed(b"\n\n") == []
    assert framer.feed(b"data: c\n\n") == [Event(b"c")]


def test_bytes_after_the_end_are_refused() -> None:
    framer = Framer()
    framer.end()

    with pytest.raises(SseError, match="after the end"):
        framer.feed(b"data: a\n\n")


LINE_OF_20 = b"data: " + b"x" * 13 + b"\n"


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("prefix", [b"", b": a comment\n\n", b"data: earlier\n\n"])
def test_an_event_at_the_limit_passes_and_one_byte_more_is_refused(prefix: bytes, step: int) -> None:
    stream = prefix + LINE_OF_20 * 5 + b"\n"
    pieces = [stream[start : start + step] for start in range(0, len(stream), step)]

    assert feed_all(Framer(max_event_bytes=100), pieces)[-1].data.count(b"x") == 65
    with pytest.raises(SseError, match="more than 99 bytes"):
        feed_all(Framer(max_event_bytes=99), pieces)


@pytest.mark.parametrize("endless", [b"x", b": x\n", b"data: x\n", b"id: x\r", b"event: x\r\n"])
def test_an_event_that_never_ends_is_refused_at_the_limit(endless: bytes) -> None:
    with pytest.raises(SseError, match="more than 1000 bytes"):
        feed_all(Framer(max_event_bytes=1000), [endless] * 1002)


def test_blank_lines_and_many_events_are_not_one_big_event() -> None:
    framer = Framer(max_event_bytes=32)

    assert len(framer.feed(b"data: a\n\n" * 100)) == 100
    assert framer.feed(b"\n" * 100) == []


def test_frame_writes_what_the_framer_reads() -> None:
    assert frame(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert events_of(frame(b" \xff")) == [Event(b" \xff")]


@pytest.mark.parametrize("data", [b"a\nb", b"a\rb", b"\n", b"a\r\n"])
def test_frame_refuses_a_line_end(data: bytes) -> None:
    with pytest.raises(SseError, match="line end"):
        frame(data)


def test_the_error_tail_is_the_one_of_the_wire_contract() -> None:
    assert error_tail("The backend stopped.", "upstream_error", 502) == (
        b'\n\ndata: {"error":{"message":"The backend stopped.","type":"upstream_error","code":502,"param":null}}\n\n'
        b"data: [DONE]\n\n"
    )


def test_the_error_tail_is_one_event_and_done_after_a_half_written_event() -> None:
    half, error, done = events_of(b'data: {"half' + error_tail('line\r\nend "…"', "upstream_error", 502))

    assert half.data == b'{"half'
    assert json.loads(error.data)["error"]["message"] == 'line\r\nend "…"'
    assert done.data == b"[DONE]"
