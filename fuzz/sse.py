"""Fuzz the SSE framer: the events do not depend on how the stream was split, and only SseError is ever raised."""

import sys

from confide.protocol.sse import Event, Framer, SseError

MAX_EVENT_BYTES = 64


def events_of(*pieces: bytes) -> tuple[list[Event], bool] | None:
    """The events and whether bytes were left; None when the framer refused."""
    framer = Framer(max_event_bytes=MAX_EVENT_BYTES)
    events: list[Event] = []
    try:
        for piece in pieces:
            events += framer.feed(piece)
    except SseError:
        return None
    return events + framer.end(), framer.pending


def fuzz_one(data: bytes) -> None:
    """One input: its first byte says where the rest is split."""
    cut, stream = data[0] if data else 0, data[1:]
    whole = events_of(stream)
    if events_of(stream[:cut], stream[cut:]) != whole:
        raise AssertionError(f"the split at {cut} changed the events")
    if events_of(*(bytes([byte]) for byte in stream)) != whole:
        raise AssertionError("one byte at a time changed the events")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
