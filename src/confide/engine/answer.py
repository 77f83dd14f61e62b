"""From the engine's stream to ours, as pure steps: one Choice object a choice, fed with decoded engine events.

Only what the wire contract (2.6, 2.7) names leaves: text, tool calls, log probabilities, finish reason, usage. The
engine's ids, timings, paths and cache counts stop here, because the events are decoded into structs without them.
"""

import json
from collections.abc import Callable
from enum import Enum, auto

import msgspec

from confide.engine.grammar import TOOL_CALL_CLOSE, TOOL_CALL_OPEN, Adherence
from confide.protocol.json_object import JsonObject


class Content(msgspec.Struct, frozen=True):
    """A piece of the answer's text, with its tokens' log probabilities in OpenAI's shape where they were asked for."""

    text: str
    logprobs: list[dict[str, object]] | None = None


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
    text: str | None = None  # of a text completion, in place of a delta


class EngineUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int


class EngineError(msgspec.Struct, frozen=True):
    code: int | str | None = None
    type: str | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class EngineTold(msgspec.Struct, frozen=True):
    """`stopping_word`: the client's stop text that was met, "" for none."""

    stopping_word: str = ""


class EngineEvent(msgspec.Struct, frozen=True):
    """One event of the engine's stream; members that we do not name are dropped by the decoder."""

    choices: list[EngineChoice] = []
    usage: EngineUsage | None = None
    error: EngineError | None = None
    told: EngineTold | None = msgspec.field(default=None, name="__verbose")


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
        self.stop_text: str | None = None  # of the client's, where one ended it
        self.usage: EngineUsage | None = None
        self._adherence = adherence
        self._must_complete = must_complete
        self._keep_reasoning = keep_reasoning
        self._reader = reader_for(mode, new_call_id, named)
        self._logprobs: list[dict[str, object]] = []  # of text that the reader still holds back

    def step(self, event: EngineEvent) -> list[Delta]:
        """Raises LeftGrammar when the text is not what was asked for; the answer must then not end as complete."""
        if event.usage is not None:
            self.usage = event.usage
        if not event.choices or self.finish_reason is not None:  # what comes after the end is no part of it
            return []
        given = event.choices[0]
        deltas: list[Delta] = []
        if given.delta.reasoning_content and self._keep_reasoning:
            deltas.append(ReasoningText(given.delta.reasoning_content))
        if text := given.delta.content or given.text:
            deltas += self._read(text)
        if given.finish_reason is not None:
            deltas += self._finish(given.finish_reason)
            self.stop_text = (event.told.stopping_word or None) if event.told is not None else None
        if given.logprobs is not None:
            self._logprobs += public_logprobs(given.logprobs)
        return self._with_logprobs(deltas) if self._logprobs else deltas

    def _read(self, text: str) -> list[Delta]:
        if self._adherence is not None and not self._adherence.holds(text):
            raise LeftGrammar
        return self._reader.feed(text)

    def _finish(self, reason: str) -> list[Delta]:
        if reason == "stop" and self._must_complete and not self._is_complete():
            raise LeftGrammar
        deltas = self._reader.end()
        is_whole = reason == "stop" and self._is_complete()  # not where a stop string of the client's cut it
        self.finish_reason = "tool_calls" if self._reader.has_calls and is_whole else reason
        return deltas

    def _with_logprobs(self, deltas: list[Delta]) -> list[Delta]:
        """All that wait go out with the first text; those of a marker, which is no text, with none."""
        given: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, Content) and self._logprobs:
                given.append(Content(delta.text, self._logprobs))
                self._logprobs = []
            else:
                given.append(delta)
        if self._reader.has_calls:
            self._logprobs = []
        return given

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
    """The text is calls of the form `{"name":"…","arguments":{…}}`, each behind `opener` and before `closer`.

    Arguments leave as they come, up to the brace that ends their object. The grammar makes the rest of the form exact.
    """

    NAME_END = ',"arguments":'

    def __init__(self, new_call_id: Callable[[], str], *, opener: str = "", closer: str = "") -> None:
        self._new_call_id = new_call_id
        self._opener = opener
        self._closer = "}" + closer
        self._buffer = ""
        self._take = self._take_text if opener else self._take_name
        self._object = JsonObject()
        self._count = 0

    @property
    def has_calls(self) -> bool:
        return self._count > 0

    def feed(self, text: str) -> list[Delta]:
        self._buffer += text
        deltas: list[Delta] = []
        while (found := self._take()) is not None:
            deltas += found
        return deltas

    def end(self) -> list[Delta]:
        """What was held back as it might have been a marker; a call that was cut before its arguments is none."""
        rest, self._buffer = self._buffer, ""
        return [Content(rest)] if rest and self._take == self._take_text and not self.has_calls else []

    # Each gives the next deltas that the buffer allows, or None when it needs more text.

    def _take_text(self) -> list[Delta] | None:
        text, marker, rest = self._buffer.partition(self._opener)
        if marker:
            self._buffer, self._take = rest, self._take_name
        else:
            keep = overlap(text, self._opener)
            text, self._buffer = text[: len(text) - keep], text[len(text) - keep :]
        if text and not self.has_calls:  # the line feed between two calls is not content
            return [Content(text)]
        return [] if marker else None

    def _take_name(self) -> list[Delta] | None:
        head, found, rest = self._buffer.partition(self.NAME_END)
        if not found:
            return None
        name = json.loads(head.removeprefix('{"name":'))
        self._buffer, self._take, self._object = rest, self._take_arguments, JsonObject()
        self._count += 1
        return [CallOpened(self._count - 1, self._new_call_id(), name)]

    def _take_arguments(self) -> list[Delta] | None:
        end = self._object.end_in(self._buffer)
        text, self._buffer = self._buffer[:end], "" if end is None else self._buffer[end:]
        if end is not None:
            self._take = self._take_closer
        return [CallArguments(self._count - 1, text)] if text else None

    def _take_closer(self) -> list[Delta] | None:
        if not self._buffer.startswith(self._closer):
            return None
        self._buffer = self._buffer.removeprefix(self._closer)
        if self._opener:
            self._take = self._take_text
        return []


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


def public_logprobs(given: EngineLogprobs) -> list[dict[str, object]]:
    """The log probabilities in OpenAI's shape, without the engine's token ids."""
    return [public_logprob(entry, top=True) for entry in given.content or []]


def public_logprob(entry: EngineLogprob, *, top: bool) -> dict[str, object]:
    """One token: its text, log probability, UTF-8 bytes, and (`top`) the likeliest others."""
    shape: dict[str, object] = {"token": entry.token, "logprob": entry.logprob, "bytes": entry.bytes}
    if top:
        shape["top_logprobs"] = [public_logprob(other, top=False) for other in entry.top_logprobs or []]
    return shape
