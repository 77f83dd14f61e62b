"""What the scripted engine says, as bytes made once, in two dialects: events of llama.cpp, and of an engine that speaks
OpenAI's API as vLLM does. Each event is a chunk of the HTTP response.

The prompt names the scene. Asked for a stream, the engine follows it; otherwise it gives one piece, whatever the scene.
"""

import json
from collections.abc import Callable

SHORT = "the short scene"  # eight tokens at once; what a buffered answer is made of
WHOLE = "the whole scene"  # fifty tokens at once
LONG = "the long scene"  # a thousand at once
HELD = "the held scene"  # half of the fifty, the rest after a request to /release
PACED = "the paced scene"  # fifty tokens, one an interval

LONG_TOKENS = [f" token {number}" for number in range(1000)]
TOKENS = LONG_TOKENS[:50]
SHORT_TOKENS = TOKENS[:8]
SPOKEN = {SHORT: SHORT_TOKENS, WHOLE: TOKENS, LONG: LONG_TOKENS, HELD: TOKENS, PACED: TOKENS}

MODEL = "bench/model"
TIMINGS = {"cache_n": 0, "prompt_n": 9, "prompt_ms": 20.5, "predicted_n": 50, "predicted_ms": 410.25}

Members = dict[str, object]
Event = Callable[[list[Members]], Members]  # an event with these choices


def of_llama(choices: list[Members]) -> Members:
    """As llama.cpp writes it; the model's name is not the one that was asked for."""
    return {
        "choices": choices,
        "created": 1,
        "id": "chatcmpl-engine",
        "model": "scripted",
        "object": "chat.completion.chunk",
    }


def of_openai(choices: list[Members]) -> Members:
    """As vLLM writes it."""
    return {
        "id": "chatcmpl-engine",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{**choice, "logprobs": None} for choice in choices],
    }


def as_json(members: Members) -> bytes:
    """Compact, as engines write it."""
    return json.dumps(members, separators=(",", ":")).encode()


def framed(data: bytes) -> bytes:
    """One chunk of the HTTP response."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def usage(count: int) -> dict[str, int]:
    """The counts of an answer with so many tokens."""
    return {"completion_tokens": count, "prompt_tokens": 9, "total_tokens": count + 9}


class Script:
    """All that is said in one dialect. `has_counts`: a stream ends with its counts, unasked."""

    def __init__(self, event: Event, *, has_counts: bool) -> None:
        self._event = event
        self._has_counts = has_counts
        self.one_piece = self._one_piece()
        self.opening, self.closing = self._opening(), self._closing(len(TOKENS))
        self.pieces = [self._delta({"content": text}) for text in TOKENS]
        self.first_half = self.opening + b"".join(self.pieces[:25])
        self.second_half = b"".join(self.pieces[25:]) + self.closing
        self._streams = {scene.encode(): self._stream(SPOKEN[scene]) for scene in (SHORT, LONG, WHOLE)}

    def stream(self, body: bytes) -> bytes:
        """The whole response to a request that asks for one of the scenes that come at once."""
        return next(stream for scene, stream in self._streams.items() if scene in body)

    def _framed(self, members: Members) -> bytes:
        return framed(b"data: " + as_json(members) + b"\n\n")

    def _delta(self, members: Members, finish_reason: str | None = None) -> bytes:
        """An event that changes the answer."""
        return self._framed(self._event([{"index": 0, "delta": members, "finish_reason": finish_reason}]))

    def _opening(self) -> bytes:
        """Head and first event of a stream."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + self._delta({"role": "assistant", "content": "" if self._event is of_openai else None})

    def _closing(self, count: int) -> bytes:
        """The finish reason, the counts, the terminator, and the last chunk."""
        counts = {**self._event([]), "usage": usage(count), "timings": TIMINGS}
        told = self._framed(counts) if self._has_counts else b""
        return self._delta({}, "stop") + told + framed(b"data: [DONE]\n\n") + framed(b"")

    def _stream(self, tokens: list[str]) -> bytes:
        pieces = b"".join(self._delta({"content": text}) for text in tokens)
        return self._opening() + pieces + self._closing(len(tokens))

    def _one_piece(self) -> bytes:
        """A buffered answer with a length."""
        message: Members = {"role": "assistant", "content": "".join(SHORT_TOKENS)}
        document = self._event([{"index": 0, "message": message, "finish_reason": "stop"}])
        body = as_json({**document, "object": "chat.completion", "usage": usage(len(SHORT_TOKENS))})
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        return head + body


LLAMA = Script(of_llama, has_counts=True)
OPENAI = Script(of_openai, has_counts=False)


def question(scene: str, *, stream: bool) -> bytes:
    """The JSON body of a chat request that asks for a scene."""
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": f"Play {scene}."}]
    return as_json({"model": MODEL, "messages": messages, "max_tokens": 64, "temperature": 0.5, "stream": stream})


def expected_text(scene: str, *, stream: bool = True) -> str:
    """The text of the whole answer."""
    return "".join(SPOKEN[scene] if stream else SHORT_TOKENS)
