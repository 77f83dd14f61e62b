"""What the scripted engine says, as bytes made once: events in llama.cpp's shape, each a chunk of the HTTP response.

The prompt names the scene. Asked for a stream, the engine follows it; otherwise it gives ONE_PIECE, whatever the scene.
"""

import json

TOKENS = [f" token {number}" for number in range(50)]
SHORT_TOKENS = TOKENS[:8]

SHORT = "the short scene"  # eight tokens at once; what a buffered answer is made of
WHOLE = "the whole scene"  # fifty tokens at once
HELD = "the held scene"  # half of the fifty, the rest after a request to /release
PACED = "the paced scene"  # fifty tokens, one an interval

MODEL = "bench/model"
FIXED = {"created": 1, "id": "chatcmpl-engine", "model": "scripted", "object": "chat.completion.chunk"}
TIMINGS = {"cache_n": 0, "prompt_n": 9, "prompt_ms": 20.5, "predicted_n": 50, "predicted_ms": 410.25}


def framed(data: bytes) -> bytes:
    """One chunk of the HTTP response."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(members: dict[str, object]) -> bytes:
    """One event, framed."""
    return framed(b"data: " + json.dumps({**members, **FIXED}, separators=(",", ":")).encode() + b"\n\n")


def delta(members: dict[str, object], finish_reason: str | None = None) -> bytes:
    """An event that changes the answer."""
    return event({"choices": [{"finish_reason": finish_reason, "index": 0, "delta": members}]})


def usage(count: int) -> dict[str, int]:
    """The counts of an answer with so many tokens."""
    return {"completion_tokens": count, "prompt_tokens": 9, "total_tokens": count + 9}


def opening() -> bytes:
    """Head and first event of a stream."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + delta({"role": "assistant", "content": None})


def closing(count: int) -> bytes:
    """The finish reason, the counts, the terminator, and the last chunk."""
    counts = event({"choices": [], "usage": usage(count), "timings": TIMINGS})
    return delta({}, "stop") + counts + framed(b"data: [DONE]\n\n") + framed(b"")


def one_piece() -> bytes:
    """A buffered answer with a length."""
    message = {"role": "assistant", "content": "".join(SHORT_TOKENS)}
    document = {
        "choices": [{"finish_reason": "stop", "index": 0, "message": message}],
        **FIXED,
        "object": "chat.completion",
        "usage": usage(len(SHORT_TOKENS)),
    }
    body = json.dumps(document, separators=(",", ":")).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


PIECES = [delta({"content": text}) for text in TOKENS]
OPENING, CLOSING, ONE_PIECE = opening(), closing(len(TOKENS)), one_piece()
SHORT_STREAM = OPENING + b"".join(PIECES[: len(SHORT_TOKENS)]) + closing(len(SHORT_TOKENS))
WHOLE_STREAM = OPENING + b"".join(PIECES) + CLOSING
FIRST_HALF = OPENING + b"".join(PIECES[:25])
SECOND_HALF = b"".join(PIECES[25:]) + CLOSING


def question(scene: str, *, stream: bool) -> bytes:
    """The JSON body of a chat request that asks for a scene."""
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": f"Play {scene}."}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 64, "temperature": 0.5, "stream": stream}
    return json.dumps(body, separators=(",", ":")).encode()


def expected_text(scene: str) -> str:
    """The text of the whole answer."""
    return "".join(SHORT_TOKENS if scene == SHORT else TOKENS)
