"""What of a response may be passed on before it is proven."""

from hashlib import sha256

import pytest

from confide.client import withholding
from confide.client.withholding import Body, Withholding, is_last
from confide.errors import VerificationError

TOKEN = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def fed(*parts: bytes) -> tuple[bytes, bytes]:
    """What was passed on, and what is held."""
    stream = Withholding()
    return b"".join(stream.feed(part) for part in parts), stream.held


def test_events_are_passed_on_as_they_come_and_the_last_one_is_held() -> None:
    stream = Withholding()
    assert stream.feed(TOKEN) == TOKEN
    assert stream.feed(TOKEN[:10]) == b""
    assert stream.feed(TOKEN[10:] + TOKEN) == TOKEN + TOKEN
    assert stream.feed(DONE) == b""
    assert stream.feed(TOKEN) == b""  # whatever follows has no meaning before the proof
    assert stream.held == DONE + TOKEN


def test_half_an_event_is_held() -> None:
    assert fed(TOKEN, b"data: half") == (TOKEN, b"data: half")
    assert fed(b"data: [DONE]\n") == (b"", b"data: [DONE]\n")
    assert fed() == (b"", b"")


def test_no_bytes_change_nothing() -> None:
    assert fed(b"", TOKEN, b"", DONE, b"") == (TOKEN, DONE)
    assert fed(b"data: 1\r\r", b"", b"\ndata: [DONE]\n\n") == (b"data: 1\r\r\n", DONE)


@pytest.mark.parametrize(
    "event",
    [
        b"data: [DONE]\n\n",
        b"data:[DONE]\r\n\r\n",
        b"data:   [DONE]\r\r",
        b"data: [DONE] and more\n\n",
        b": comment\nid: 5\ndata: [DONE]\n\n",
        b"\xef\xbb\xbfdata: [DONE]\n\n",
        b"\n\ndata: [DONE]\n\n",
        b"data\ndata: [DONE]\n\n",
        b"event: message_stop\ndata: {}\n\n",
        b'data: {"type":"message_stop"}\n\n',
        b'data: {"type": "response.completed", "response": {}}\n\n',
        b'data: {"type":"response.incomplete"}\n\n',
        b"event: response.failed\ndata: {}\n\n",
        b'event: error\ndata: {"type":"error"}\n\n',
        b'data: {"error":{"message":"broke","code":502}}\n\n',
        b'data: {"error":false}\n\n',
        b'data: {"type":5,"error":{}}\n\n',
        b'data: {"error":null,"error":"broke"}\n\n',
        b'data: {"error":\ndata: "broke"}\n\n',
        b'data: {"\\u0065rror":"broke"}\n\n',
        b'data: {"type":"response.\\u0063ompleted"}\n\n',
        b'data: {"type":"message\\u005Fstop"}\n\n',
        b'data: {"error":NaN}\n\n',
        b'data: {"error":"\\ud800"}\n\n',
        b'data: {"error":"\xff"}\n\n',
        b'data: {"error":\n\n',
        b"data: error\n\n",
        b'data: {"error":' + b"[" * 100_000 + b"\n\n",
        b'data: {"error":' + b"1" * 5000 + b"}\n\n",
    ],
)
def test_what_tells_a_reader_that_the_answer_is_over_is_a_last_event(event: bytes) -> None:
    assert is_last(event)
    assert fed(TOKEN, event, TOKEN) == (TOKEN, event + TOKEN) or event.startswith(b"\n\n")


@pytest.mark.parametrize(
    "event",
    [
        TOKEN,
        b": PROCESSING\n\n",
        b": [DONE] error message_stop\n\n",
        b"\n\n",
        b"id: [DONE]\n\n",
        b'data: {"content":"[DONE]"}\n\n',
        b'data: {"content":"an error, message_stop, response.completed"}\n\n',
        b'data: {"error":null,"content":"x"}\n\n',
        b'data: {"content":"\\u00e9 \\ud83d\\ude00"}\n\n',
        b'data: {"type":["message_stop"],"content":"x"}\n\n',
        b'data: {"choice":{"error":"x"}}\n\n',
        b'data: ["error"]\n\n',
        b'data: "error"\n\n',
        b"data:\ndata: 1\n\n",
        b"data: not JSON\n\n",
        b'event: message_delta\ndata: {"type":"message_delta"}\n\n',
        b"event: errors\ndata: 1\n\n",
        b"Data: [DONE]\n\n",
    ],
)
def test_what_merely_contains_the_words_is_passed_on(event: bytes) -> None:
    assert not is_last(event)
    assert fed(event, DONE) == (event, DONE)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(withholding, "MAX_EVENT_BYTES", 100)
    monkeypatch.setattr(withholding, "MAX_BODY_BYTES", 200)
    stream = Withholding()
    assert stream.feed(b"data: " + b"x" * 94) == b""
    with pytest.raises(VerificationError, match="more than 100 bytes") as caught:
        stream.feed(b"x")
    assert (caught.value.check, caught.value.remedy is not None) == ("receipt-4", True)
    ended = Withholding()
    ended.feed(DONE)
    ended.feed(b"x" * (200 - len(DONE)))
    with pytest.raises(VerificationError, match="more than 200 bytes"):
        ended.feed(b"x")
    with pytest.raises(VerificationError, match="end of the stream"):
        Withholding().feed(DONE + b"x" * 200)


def test_whole_events_may_come_at_once_however_many() -> None:
    assert fed(TOKEN * 400_000 + DONE) == (TOKEN * 400_000, DONE)


def test_a_body_is_hashed_as_it_comes_and_kept_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, hashed = Body(keep=True), Body(keep=False)
    for body in (kept, hashed):
        body.add(b"ab")
        body.add(b"c")
        assert body.sha256 == sha256(b"abc").digest()
    assert (kept.kept, hashed.kept) == (b"abc", None)
    monkeypatch.setattr(withholding, "MAX_BODY_BYTES", 3)
    hashed.add(b"d")
    with pytest.raises(VerificationError, match="receipt-4: got a response of more than 3 bytes"):
        kept.add(b"d")
