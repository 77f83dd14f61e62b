"""From the engine's stream to ours, as pure steps: one Choice object a choice, fed with decoded engine events.

Only what the wire contract (2.6, 2.7) names leaves: text, tool calls, log probabilities, finish reason, usage. The
engine's ids, timings, paths and cache counts stop here, because the events are decoded into structs without them.
"""

import json
from collections.abc import Callable
from enum import Enum, auto

import msgspec

from confide.engine.grammar import TOOL_CALL_CLOSE, TOOL_CALL_OPEN, Adherence


class Content(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer's text."""

    text: str


class ReasoningText(msgspec.Struct, frozen=True, gc=False):
    """A piece of the model's reasoning."""

    text: str


class CallOpened(msgspec.Struct, frozen=True, gc=False):
    """The first delta of a call (wire contract 2.7, order 3). `call`: 0-based."""

    call: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """A further piece of a call's arguments."""

    call: int
    text: str


Delta = Content | ReasoningText | CallOpened | CallArguments


class EngineLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: "list[EngineLogprob] | None" = None


class EngineLogprobs(msgspec.Struct, frozen=True):
    content: list[EngineLogprob] | None = None


class EngineDelta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class EngineChoice(msgspec.Struct, frozen=True):
    delta: EngineDelta = EngineDelta()
    finish_reason: str | None = None
    logprobs: EngineLogprobs | None = None


class EngineUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class EngineError(msgspec.Struct, frozen=True):
    code: int | str | None = None
    type: str | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class EngineEvent(msgspec.Struct, frozen=True):
    """One event of the engine's stream; members that we do not name are dropped by the decoder."""

    choices: list[EngineChoice] = []
    usage: EngineUsage | None = None
    error: EngineError | None = None


class Mode(Enum):
    """What the engine's text means."""

    TEXT = auto()  # it is the content
    ARGUMENTS = auto()  # it is the arguments of one named function
    CALL = auto()  # it is one call: name and arguments
    AUTO = auto()  # it is content, with calls between markers


class LeftGrammar(Exception):
    """The engine wrote something outside the grammar that it was given."""


class Choice:
    """One choice in progress. `step` gives the deltas that one engine event is worth, oldest first."""

    def __init__(
        self,
        index: int,
        *,
        mode: Mode,
        adherence: Adherence | None,
        must_complete: bool = True,
        new_call_id: Callable[[], str],
        named: str | None = None,
        keep_reasoning: bool = True,
    ) -> None:
        self.index = index
        self.finish_reason: str | None = None
        self.usage: EngineUsage | None = None
        self._adherence = adherence
        self._must_complete = must_complete
        self._keep_reasoning = keep_reasoning
        self._reader = reader_for(mode, new_call_id, named)

    def step(self, event: EngineEvent) -> list[Delta]:
        """Raises LeftGrammar when the text is not what was asked for; the answer must then not end as complete."""
        if event.usage is not None:
            self.usage = event.usage
        if not event.choices:
            return []
        given = event.choices[0]
        deltas: list[Delta] = []
        if given.delta.reasoning_content and self._keep_reasoning:
            deltas.append(ReasoningText(given.delta.reasoning_content))
        if given.delta.content:
            if self._adherence is not None and not self._adherence.holds(given.delta.content):
                raise LeftGrammar
            deltas += self._reader.feed(given.delta.content)
        if given.finish_reason is not None:
            if given.finish_reason == "stop" and self._must_complete and not self._is_complete():
                raise LeftGrammar
            deltas += self._reader.end()
            self.finish_reason = "tool_calls" if self._reader.has_calls else given.finish_reason
            if given.finish_reason == "length":
                self.finish_reason = "length"
        return deltas

    def _is_complete(self) -> bool:
        return self._adherence is None or self._adherence.is_complete


class TextReader:
    """The text is the content."""

    has_calls = False

    def feed(self, text: str) -> list[Delta]:
        return [Content(text)]

    def end(self) -> list[Delta]:
        return []


class ArgumentsReader:
    """The text is the arguments of the function that the client named."""

    has_calls = True

    def __init__(self, name: str, call_id: str) -> None:
        self._open: Delta | None = CallOpened(0, call_id, name)

    def feed(self, text: str) -> list[Delta]:
        return [*self._opened(), CallArguments(0, text)]

    def end(self) -> list[Delta]:
        return self._opened()

    def _opened(self) -> list[Delta]:
        opening, self._open = self._open, None
        return [opening] if opening is not None else []


class CallReader:
    """The text is calls of the form `{"name":"…","arguments":…}`, each behind `opener` and before `closer`.

    Arguments leave as they come, less as many characters as might still be the end of the call. The grammar makes the
    form exact: a raw line feed cannot stand in compact JSON, so `closer` cannot occur inside the arguments.
    """

    NAME_END = ',"arguments":'

    def __init__(self, new_call_id: Callable[[], str], *, opener: str = "", closer: str = "") -> None:
        self._new_call_id = new_call_id
        self._opener = opener
        self._closer = "}" + closer
        self._buffer = ""
        self._in_arguments = False
        self._in_call = not opener
        self._count = 0

    @property
    def has_calls(self) -> bool:
        return self._count > 0

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        deltas: list[Delta] = []
        while (found := self._next()) is not None:
            deltas += found
        return deltas

    def end(self) -> list[Delta]:
        """What is left when the text ends: text that was held back, or the tail of arguments that were cut."""
        rest, self._buffer = self._buffer, ""
        if self._in_arguments:
            rest = rest.removesuffix(self._closer)
            return [CallArguments(self._count - 1, rest)] if rest else []
        if self._in_call or not rest:
            return []
        return [Content(rest)]

    def _next(self) -> list[Delta] | None:
        """The next deltas that the buffer allows, or None when it needs more text."""
        if self._in_arguments:
            return self._take_arguments()
        if self._in_call:
            return self._take_name()
        return self._take_text()

    def _take_text(self) -> list[Delta] | None:
        text, marker, rest = self._buffer.partition(self._opener)
        if marker:
            self._buffer, self._in_call = rest, True
            text = text if self._count == 0 else ""  # the line feed between two calls is not content
            return [Content(text)] if text else []
        keep = overlap(self._buffer, self._opener)
        text, self._buffer = self._buffer[: len(self._buffer) - keep], self._buffer[len(self._buffer) - keep :]
        return [Content(text)] if text and self._count == 0 else None

    def _take_name(self) -> list[Delta] | None:
        head, found, rest = self._buffer.partition(self.NAME_END)
        if not found:
            return None
        name = json.loads(head.removeprefix('{"name":'))
        self._buffer, self._in_arguments = rest, True
        self._count += 1
        return [CallOpened(self._count - 1, self._new_call_id(), name)]

    def _take_arguments(self) -> list[Delta] | None:
        if len(self._closer) == 1:  # the call ends with the text: only the last character can be its end
            ready, self._buffer = self._buffer[:-1], self._buffer[-1:]
            return [CallArguments(self._count - 1, ready)] if ready else None
        ready, found, rest = self._buffer.partition(self._closer)
        if found:
            self._buffer, self._in_arguments, self._in_call = rest, False, False
            return [CallArguments(self._count - 1, ready)] if ready else []
        keep = overlap(self._buffer, self._closer)
        ready, self._buffer = self._buffer[: len(self._buffer) - keep], self._buffer[len(self._buffer) - keep :]
        return [CallArguments(self._count - 1, ready)] if ready else None


Reader = TextReader | ArgumentsReader | CallReader


def reader_for(mode: Mode, new_call_id: Callable[[], str], named: str | None) -> Reader:
    """The reader of a mode; ARGUMENTS needs the function's name."""
    if mode is Mode.TEXT:
        return TextReader()
    if mode is Mode.ARGUMENTS:
        assert named is not None
        return ArgumentsReader(named, new_call_id())
    if mode is Mode.CALL:
        return CallReader(new_call_id)
    return CallReader(new_call_id, opener=TOOL_CALL_OPEN, closer=TOOL_CALL_CLOSE)


def overlap(text: str, marker: str) -> int:
    """How many characters at the end of `text` could be the beginning of `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if marker.startswith(text[-length:]):
            return length
    return 0


def public_logprobs(event: EngineEvent) -> list[dict[str, object]] | None:
    """The event's log probabilities in OpenAI's shape, without the engine's token ids; None when it has none."""
    given = event.choices[0].logprobs if event.choices else None
    if given is None or given.content is None:
        return None
    return [public_logprob(entry, top=True) for entry in given.content]


def public_logprob(entry: EngineLogprob, *, top: bool) -> dict[str, object]:
    """One token: its text, log probability, UTF-8 bytes, and (`top`) the likeliest others."""
    shape: dict[str, object] = {"token": entry.token, "logprob": entry.logprob, "bytes": entry.bytes}
    if top:
        shape["top_logprobs"] = [public_logprob(other, top=False) for other in entry.top_logprobs or []]
    return shape
