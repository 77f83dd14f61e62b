"""A stream is passed on as it comes but for its end, however it is split into reads."""

import json
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from confide.client.withholding import LAST_EVENTS, Withholding, is_last
from confide.protocol.sse import Event, Framer

WORDS = [
    "[DONE]",
    "error",
    "message_stop",
    "response.completed",
    "Hi",
    "é 🙂",
    "\u2028",
    "data: [DONE]",
    "\\",
    '"',
    "null",
]

line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
words = st.sampled_from(WORDS)
texts = st.lists(words, max_size=3).map(" ".join)


def written(document: object, ascii_only: bool) -> str:
    return json.dumps(document, ensure_ascii=ascii_only)


chunks = st.builds(
    written,
    st.dictionaries(st.sampled_from(["choices", "content", "type", "id"]), texts, max_size=2)
    | st.builds(lambda text: {"choices": [{"delta": {"content": text, "error": text}}]}, texts),
    st.booleans(),
)
endings = st.sampled_from(
    [
        "[DONE]",
        "[DONE] more",
        '{"error":{"message":"broke"}}',
        '{"\\u0065rror":"broke"}',
        '{"type":"message_stop"}',
        '{"type": "response.completed"}',
        '{"error":null}',
    ]
)
payloads = chunks | endings | texts
fields = st.one_of(
    payloads.map(lambda text: f"data: {text}".encode()),
    payloads.map(lambda text: f"data:{text}".encode()),
    words.map(lambda word: f"event: {word}".encode()),
    words.map(lambda word: f": {word}".encode()),
    st.sampled_from([b"data", b"id: 1", b"retry: 5", b"", b" data: [DONE]", b"\xef\xbb\xbfdata: [DONE]"]),
)
lines = st.tuples(fields, line_ends).map(b"".join)
blank = st.tuples(line_ends, line_ends).map(b"".join)


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """A few lines and a blank one."""
    return b"".join(draw(st.lists(lines, max_size=3))) + draw(fields) + draw(blank)


streams = st.builds(
    lambda parts, tail: b"".join(parts) + tail, st.lists(events() | lines, max_size=6), st.just(b"") | fields
)


def passed_on(stream: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """What leaves and what is held when the stream comes in these pieces."""
    withholding = Withholding()
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    passed = b"".join(withholding.feed(stream[start:end]) for start, end in pairwise(edges))
    return passed, withholding.held


def framed(stream: bytes) -> list[Event]:
    framer = Framer()
    return [*framer.feed(stream), *framer.end()]


def ends_it(event: Event) -> bool:
    """What the SDKs take for the end, as they read it."""
    if event.data.startswith(b"[DONE]") or (event.event or b"").decode(errors="replace") in LAST_EVENTS:
        return True
    try:
        said = json.loads(event.data)
    except ValueError:
        return False
    return isinstance(said, dict) and (bool(said.get("error")) or str(said.get("type")) in LAST_EVENTS)


@settings(max_examples=300, deadline=None)
@given(streams, st.lists(st.integers(0, 500), max_size=5))
@example(b"data: 1\n\r\ndata: [DONE]\n\n", [9])
@example(b"data: 1\r\r\n\ndata: [DONE]\n\n", [9])
@example(b"data: [DONE]\r\n\r\ndata: 1\n\n", [15])
def test_nothing_is_lost_and_the_last_event_waits(stream: bytes, cuts: list[int]) -> None:
    passed, held = passed_on(stream, cuts)
    assert passed + held == stream
    assert not any(ends_it(event) for event in framed(passed))


@settings(max_examples=60, deadline=None)
@given(streams)
def test_the_split_makes_no_difference_at_any_point(stream: bytes) -> None:
    whole = passed_on(stream, [])
    for cut in range(len(stream)):
        assert passed_on(stream, [cut]) == whole
    assert passed_on(stream, list(range(len(stream)))) == whole


@settings(max_examples=200, deadline=None)
@given(streams)
def test_what_is_passed_on_are_whole_events_as_the_framer_sees_them(stream: bytes) -> None:
    passed, held = passed_on(stream, [])
    framer = Framer()
    before = framer.feed(passed)
    assert not framer.pending
    after = framer.feed(held)
    assert [*before, *after] == framed(stream)
    assert not before or not any(ends_it(event) for event in before)


@settings(max_examples=200, deadline=None)
@given(streams, events())
def test_what_could_be_passed_on_is(stream: bytes, last: bytes) -> None:
    """Nothing is held before an event that is one of the last, or that never became complete."""
    passed, held = passed_on(stream, [])
    framer = Framer()
    framer.feed(passed)
    if framer.feed(held) and not held.startswith((b"\r", b"\n")):
        ended = next(end for end in range(1, len(held) + 1) if Framer().feed(held[:end]))
        assert is_last(held[:ended])
    assert passed_on(passed + b"data: [DONE]\n\n" + last, []) == (passed, b"data: [DONE]\n\n" + last)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_any_bytes_go_through(stream: bytes, cuts: list[int]) -> None:
    passed, held = passed_on(stream, cuts)
    assert passed + held == stream
    assert (passed, held) == passed_on(stream, [])
