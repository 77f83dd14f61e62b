"""The framer gives the same events at every split point, and those of a plain reading of the WHATWG standard."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.protocol.sse import Event, Framer, SseError, error_tail


def reference_events(stream: bytes) -> list[Event]:
    """HTML standard 9.2.6, "interpreting an event stream", a sentence a line, on the whole stream at once."""
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    *lines, _unfinished = re.split(rb"\r\n|\n|\r", stream)
    events, data_buffer, event_type = [], b"", b""
    for line in lines:
        if line == b"":
            if data_buffer != b"":
                events.append(Event(data_buffer.removesuffix(b"\n"), event_type if event_type else None))
            data_buffer, event_type = b"", b""
        elif line.startswith(b":"):
            continue
        else:
            field, value = line.split(b":", 1) if b":" in line else (line, b"")
            value = value[1:] if value.startswith(b" ") else value
            if field == b"event":
                event_type = value
            elif field == b"data":
                data_buffer += value + b"\n"
    return events


def is_pending(stream: bytes) -> bool:
    stream = stream.removeprefix(b"\xef\xbb\xbf")
    return re.split(rb"\r\n|\n|\r", stream)[-2:] not in ([b""], [b"", b""])


def events_of(pieces: list[bytes], framer: Framer | None = None) -> tuple[list[Event], bool]:
    framer = framer or Framer()
    events = [event for piece in pieces for event in framer.feed(piece)]
    return events + framer.end(), framer.pending


TOKENS = [
    b"data", b"data: ", b"data:", b"event", b"event: ", b"id", b"retry: 1", b":", b" ", b": PROCESSING", b"x",
    b"\n", b"[DONE]", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"\xef", b"\x00", b"\xf0\x9f",
]  # fmt: skip
STREAMS = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=3), max_size=30).map(b"".join)


@given(stream=STREAMS, data=st.data())
def test_any_split_gives_the_events_of_the_reference(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]

    assert events_of(pieces) == (reference_events(stream), is_pending(stream))


@given(stream=STREAMS)
def test_one_byte_at_a_time_gives_the_events_of_the_reference(stream: bytes) -> None:
    assert events_of([bytes([byte]) for byte in stream]) == (reference_events(stream), is_pending(stream))


@given(stream=STREAMS, cut=st.integers(0, 200), limit=st.integers(1, 40))
def test_a_split_never_decides_whether_an_event_is_over_the_limit(stream: bytes, cut: int, limit: int) -> None:
    def outcome(pieces: list[bytes]) -> tuple[list[Event], bool] | str:
        try:
            return events_of(pieces, Framer(max_event_bytes=limit))
        except SseError as error:
            return str(error)

    assert outcome([stream[:cut], stream[cut:]]) == outcome([stream])


EXAMPLES = [
    b"\xef\xbb\xbfdata: a\n\n",
    b'data: {"a":"\xf0\x9f\x94\x92"}\n\n: PROCESSING\n\ndata: {"b":2}\n\ndata: [DONE]\n\n',
    b"data: a\r\ndata:b\r\n\r\nevent: x\r\ndata: c\r\n\r\n",
    b"data: a\rdata: b\r\rdata: c\n\r\n\r\rdata: d\n\n",
    b"\n\r\n\rdata\n\ndata:\n\n\nid: 1\nretry\n: note\ndata:  d\n\ndata: unfinished\n",
    b'data: {"half' + error_tail("The backend stopped.", "upstream_error", 502),
]


@pytest.mark.parametrize("stream", EXAMPLES)
def test_every_pair_of_split_points_of_an_example(stream: bytes) -> None:
    expected = (reference_events(stream), is_pending(stream))

    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            assert events_of([stream[:first], stream[first:second], stream[second:]]) == expected
