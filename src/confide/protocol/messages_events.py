"""From a stream of chat to the events of an Anthropic message (wire contract 2.7, 3.5).

One content block is open at a time, while chat may mix the pieces of several calls. So what belongs to a later block
waits until the one before it is complete: text as soon as something else follows, a call where the JSON object of its
arguments ends.
"""

from collections import deque
from collections.abc import Sequence
from typing import Literal

import msgspec

from confide.protocol.chat_answer import Call, CalledFunction, Choice, Said, read_chunk
from confide.protocol.json_object import JsonObject
from confide.protocol.messages_answer import NOT_COUNTED, input_of, message_document, stop_of, usage_document
from confide.protocol.translation import Untranslatable

Kind = Literal["text", "thinking"]


class TextBlock:
    """A block of text or of thinking. `pending`: what came and was not sent yet."""

    is_complete = True  # whatever follows it

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.pending: list[str] = []
        self.delta = f"{kind}_delta"
        self.member = kind

    def start(self) -> dict[str, object]:
        """The block as it is when it is opened."""
        return {"type": self.kind, self.kind: "", **({"signature": ""} if self.kind == "thinking" else {})}

    def check(self) -> None:
        """Any text is whole."""


class CallBlock:
    """A block of one call, whose id and name may come in any order."""

    delta = "input_json_delta"
    member = "partial_json"

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.pending: list[str] = []
        self.is_complete = False
        self._arguments: list[str] = []
        self._object = JsonObject()

    def add(self, piece: Call) -> None:
        """The next piece. Raises Untranslatable for arguments that go on behind their end."""
        function = piece.function or CalledFunction()
        self.id = self.id or piece.id or ""
        self.name = self.name or function.name or ""
        text = function.arguments or ""
        if self.is_complete:
            if text.strip():
                raise Untranslatable("tool_calls[].function.arguments has more than an object")
            return
        if text:
            self.pending.append(text)
            self._arguments.append(text)
            self.is_complete = self._object.end_in(text) is not None

    def start(self) -> dict[str, object] | None:
        """The block as it is when it is opened, None while it has no id and no name."""
        if not self.id or not self.name:
            return None
        return {"type": "tool_use", "id": self.id, "name": self.name, "input": {}}

    def check(self) -> None:
        """Raises Untranslatable when the arguments are no object, as the buffered answer would."""
        if input_of("".join(self._arguments)) is None:
            raise Untranslatable("tool_calls[].function.arguments is no JSON object")


class MessageEvents:
    """The events of one message. `step` takes the data of one event of chat's stream each, `end` is called once."""

    def __init__(self, *, id: str, model: str, sequences: Sequence[str]) -> None:
        self._id = id
        self._model = model
        self._sequences = sequences
        self._usage = NOT_COUNTED
        self._is_begun = False
        self._index = 0  # of the first block that waits
        self._is_open = False  # that block
        self._waiting: deque[TextBlock | CallBlock] = deque()
        self._calls: dict[int, CallBlock] = {}
        self._is_refused = False
        self._finish_reason: str | None = None
        self._met: object = None

    def step(self, data: bytes) -> bytes:
        """What this event is worth. Raises Untranslatable."""
        chunk = read_chunk(data)
        self._usage = chunk.usage or self._usage
        out = [] if self._is_begun else [self._message_start()]
        for choice in chunk.choices or ():
            self._take(choice)
        self._send(out)
        return b"".join(out)

    def end(self) -> bytes:
        """What is left, and the end of the message. Raises Untranslatable where no choice said that it has finished."""
        stop = stop_of(
            self._finish_reason,
            self._met,
            self._sequences,
            has_calls=bool(self._calls),
            is_refused=self._is_refused,
        )
        out: list[bytes] = []
        while self._waiting:
            self._open(out)
            if not self._is_open:
                raise Untranslatable("tool_calls[] has a call without an id or a name")
            self._close(out, is_cut=stop.reason == "max_tokens")
        delta = {"stop_reason": stop.reason, "stop_sequence": stop.sequence}
        out.append(event("message_delta", {"delta": delta, "usage": usage_document(self._usage)}))
        out.append(event("message_stop", {}))
        return b"".join(out)

    def _message_start(self) -> bytes:
        """Its counts are what is known by then: mostly nothing, as an engine counts at the end."""
        self._is_begun = True
        return event("message_start", {"message": message_document(self._id, self._model, [], None, self._usage)})

    def _take(self, choice: Choice) -> None:
        delta = choice.delta or Said()
        self._add_text("thinking", delta.thought)
        self._add_text("text", delta.content)
        self._add_text("text", delta.refusal)
        self._is_refused = self._is_refused or bool(delta.refusal)
        for piece in delta.tool_calls or ():
            self._call(piece).add(piece)
        self._finish_reason = choice.finish_reason or self._finish_reason
        self._met = choice.stop_reason if choice.stop_reason is not None else self._met

    def _call(self, piece: Call) -> CallBlock:
        """The call that this is a piece of. An engine that does not count its calls means the latest, or a new one by
        an id.
        """
        index = piece.index
        if index is None:
            index = max(self._calls, default=-1) + 1 if piece.id or not self._calls else max(self._calls)
        if index not in self._calls:
            self._calls[index] = CallBlock()
            self._waiting.append(self._calls[index])
        return self._calls[index]

    def _add_text(self, kind: Kind, text: str | None) -> None:
        if not text:
            return
        last = self._waiting[-1] if self._waiting else None
        if not isinstance(last, TextBlock) or last.kind != kind:
            last = TextBlock(kind)
            self._waiting.append(last)
        last.pending.append(text)

    def _send(self, out: list[bytes]) -> None:
        """What may leave: all of the first block that waits, and of the next as soon as that one is complete."""
        while self._waiting:
            self._open(out)
            if not self._is_open or len(self._waiting) == 1 or not self._waiting[0].is_complete:
                return
            self._close(out, is_cut=False)

    def _open(self, out: list[bytes]) -> None:
        """Open the first block, if it can be, and send what came of it."""
        block = self._waiting[0]
        if not self._is_open and (start := block.start()) is not None:
            self._is_open = True
            out.append(event("content_block_start", {"index": self._index, "content_block": start}))
        if self._is_open and block.pending:
            delta = {"type": block.delta, block.member: "".join(block.pending)}
            out.append(event("content_block_delta", {"index": self._index, "delta": delta}))
            block.pending.clear()

    def _close(self, out: list[bytes], *, is_cut: bool) -> None:
        """Close the first block. `is_cut`: by the token limit, so that a call need not be whole."""
        block = self._waiting.popleft()
        if not is_cut:
            block.check()
        out.append(event("content_block_stop", {"index": self._index}))
        self._index += 1
        self._is_open = False


def event(kind: str, members: dict[str, object]) -> bytes:
    """One event as it is sent: LF only."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **members}))
