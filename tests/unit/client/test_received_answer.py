"""A question as it is sent, and an answer read while it comes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.client.answer import Question, Reading
from confide.errors import ConfigError, VerificationError

STREAM = (
    'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    ": PROCESSING\n\n"
    'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"Zwei 二"}}]}\n\n'
    'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":" 🙂"}}]}\n\n'
    'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
    "data: [DONE]\n\n"
).encode()


def read(*parts: bytes, is_stream: bool = True) -> tuple[Reading, list[str]]:
    shown: list[str] = []
    reading = Reading(shown.append)
    for part in parts:
        reading.feed(part, is_stream=is_stream)
    return reading, shown


def test_the_question_is_compact_json_with_raw_text() -> None:
    body = Question("Grüß „dich“\n", "a/model", stream=True, max_tokens=None).body()
    assert body == (
        '{"model":"a/model","messages":[{"role":"user","content":"Grüß „dich“\\n"}],"stream":true}'.encode()
    )
    assert json.loads(Question("x", "m", stream=False, max_tokens=7).body())["max_tokens"] == 7


def test_a_prompt_that_is_no_text_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError) as caught:
        Question("secret \udcff", "m", stream=True, max_tokens=None).body()
    assert "secret" not in caught.value.message
    assert caught.value.remedy


@given(at=st.integers(0, len(STREAM)))
def test_a_stream_reads_the_same_wherever_it_was_split(at: int) -> None:
    reading, shown = read(STREAM[:at], STREAM[at:])
    assert bytes(reading.received) == STREAM
    assert (reading.id, "".join(shown), reading.broken) == ("chatcmpl-1", "Zwei 二 🙂", None)


def test_the_text_is_shown_as_soon_as_its_event_is_whole() -> None:
    events = STREAM.split(b"\n\n")
    _, shown = read(b"\n\n".join(events[:3]) + b"\n\n")
    assert shown == ["Zwei 二"]


def test_a_buffered_answer_is_one_document() -> None:
    reading, _ = read(b'{"id":"chatcmpl-2","choices":[{"message":{"role":"assistant","content":"Two."}}]}')
    reading.take(bytes(reading.received))
    assert (reading.id, reading.texts) == ("chatcmpl-2", ["Two."])


def test_a_stream_that_broke_off_says_why() -> None:
    tail = b'\n\ndata: {"error":{"message":"the engine\\u001b[2K stopped","type":"upstream_error","code":502}}\n\n'
    reading, _ = read(STREAM[:200], tail)
    assert reading.broken == "the engine?[2K stopped"


@pytest.mark.parametrize(
    "data",
    [b"[DONE]", b"{", b"5", b"[[", b'{"id":5}', b'{"choices":{}}', b'{"choices":[{"delta":{"content":5}}]}', b"\xff"],
)
def test_what_cannot_be_read_is_kept_and_says_nothing(data: bytes) -> None:
    event = b"data: " + data + b"\n\n"
    reading, shown = read(event, STREAM)
    assert bytes(reading.received) == event + STREAM
    assert "".join(shown) == "Zwei 二 🙂"


def test_an_event_without_end_is_refused() -> None:
    with pytest.raises(VerificationError, match="no stream"):
        read(b"data: " + b"x" * (2 * 1024 * 1024))
