"""Chat chunks and answers as bytes (wire contract 2.6, 2.7). On the prompt path: what is fixed is encoded once."""

import msgspec

from confide.engine.answer import (
    CallArguments,
    CallOpened,
    Choice,
    Content,
    Delta,
    ReasoningText,
)
from confide.upstream.base import Head, Tally

encode = msgspec.json.encode


class ChunkEncoder:
    """Turns deltas into events of one stream: same id, created and model in each."""

    def __init__(self, head: Head, *, include_usage: bool) -> None:
        fixed = encode({"id": head.id, "object": "chat.completion.chunk", "created": head.created, "model": head.model})
        self._open = b"data: " + fixed[:-1] + b',"choices":['
        self._close = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"
        self._close_text = b'},"finish_reason":null}' + self._close
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def encode(self, choice: Choice, deltas: list[Delta]) -> bytes:
        """Whole events for one step of a choice, maybe none. The role comes first, the finish reason last, once."""
        finished = choice.finish_reason is not None and choice.index not in self._ended
        if not deltas and not finished:
            return b""
        pieces: list[bytes] = []
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            pieces.append(self._chunk(choice.index, b'{"role":"assistant","content":""}'))
        open_text = b'%b{"index":%d,"delta":{"content":' % (self._open, choice.index)
        for delta in deltas:
            if type(delta) is not Content:
                pieces.append(self._chunk(choice.index, delta_json(delta)))
            elif delta.logprobs is None:
                pieces += (open_text, encode(delta.text), self._close_text)
            else:
                pieces.append(self._chunk(choice.index, delta_json(delta), delta.logprobs))
        if finished:
            self._ended.add(choice.index)
            reason = b'{},"finish_reason":' + encode(choice.finish_reason)
            if choice.stop_text is not None:
                reason += b',"stop_reason":' + encode(choice.stop_text)
            pieces.append(self._open + b'{"index":%d,"delta":%b}' % (choice.index, reason) + self._close)
        return b"".join(pieces)

    def usage(self, tally: Tally) -> bytes:
        """The chunk that `include_usage` asks for: no choices, and the counts."""
        return self._open + b'],"usage":' + encode(usage_document(tally)) + b"}\n\n"

    def _chunk(self, index: int, delta: bytes, logprobs: list[dict[str, object]] | None = None) -> bytes:
        if logprobs is not None:
            tail = b'"finish_reason":null,"logprobs":' + encode({"content": logprobs, "refusal": None})
        else:
            tail = b'"finish_reason":null'
        return b'%b{"index":%d,"delta":%b,%b}%b' % (self._open, index, delta, tail, self._close)


def delta_json(delta: Delta) -> bytes:
    """The `delta` member as compact JSON."""
    match delta:
        case Content(text, _):
            return b'{"content":' + encode(text) + b"}"
        case ReasoningText(text):
            return b'{"reasoning_content":' + encode(text) + b"}"
        case CallArguments(call, text):
            return encode({"tool_calls": [{"index": call, "function": {"arguments": text}}]})
        case CallOpened(call, call_id, name):
            function = {"name": name, "arguments": ""}
            return encode({"tool_calls": [{"index": call, "id": call_id, "type": "function", "function": function}]})


def usage_document(tally: Tally) -> dict[str, int]:
    """The three counts (wire contract 2.6). Cached counts are not shown: they would tell of other tenants."""
    return {
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
    }


class AnswerParts:
    """One choice of a buffered answer, put together from the same deltas."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[CallOpened, list[str]]] = []
        self._logprobs: list[dict[str, object]] = []

    def add(self, deltas: list[Delta]) -> None:
        """Take one step's deltas."""
        for delta in deltas:
            match delta:
                case Content(text, logprobs):
                    self._text.append(text)
                    self._logprobs += logprobs or []
                case ReasoningText(text):
                    self._reasoning.append(text)
                case CallOpened():
                    self._calls.append((delta, []))
                case CallArguments(call, text):
                    self._calls[call][1].append(text)

    def document(self, choice: Choice) -> dict[str, object]:
        """The entry of `choices`. `content` is null when the answer is calls alone. `stop_reason` is there where a stop
        text of the client's ended it.
        """
        text = "".join(self._text)
        message: dict[str, object] = {"role": "assistant", "content": text if text or not self._calls else None}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._calls:
            message["tool_calls"] = [call_document(opened, "".join(pieces)) for opened, pieces in self._calls]
        logprobs = {"content": self._logprobs, "refusal": None} if self._logprobs else None
        met = {} if choice.stop_text is None else {"stop_reason": choice.stop_text}
        return {
            "index": self._index,
            "message": message,
            "finish_reason": choice.finish_reason,
            "logprobs": logprobs,
            **met,
        }


def call_document(opened: CallOpened, arguments: str) -> dict[str, object]:
    """One tool call of a buffered answer (wire contract 2.4)."""
    return {"id": opened.id, "type": "function", "function": {"name": opened.name, "arguments": arguments}}
