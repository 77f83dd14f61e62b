"""What must be seen of an engine's answer while its bytes are passed on: that it is one, its id, its usage, its end.

One class for each surface that engines are asked over.
"""

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol

import msgspec

from confide.errors import ConfideError
from confide.upstream.base import DONE, SurfaceName, Tally

ID_MOST = 200
FINISHED_AMONG = 8  # events from the end in which a choice says that it has finished


class StreamBroken(ConfideError):
    """The answer ended and was not whole, says itself that it failed, or is none."""


class Reading(Protocol):
    """For one answer. `path`: where it is asked for, below the path of the API. `last`: what ends a stream whose engine
    left that out, None where it must not.
    """

    path: bytes
    last: bytes | None

    def whole(self, body: bytes, tally: Tally) -> None:
        """A buffered answer. Raises StreamBroken or msgspec.DecodeError for what is none."""

    def event(self, data: bytes, tally: Tally) -> bool:
        """The data of one event, other than `[DONE]`; whether it is the last one. Raises StreamBroken for one that says
        that the engine failed, msgspec.DecodeError for what is no JSON.
        """

    @property
    def has_finished(self) -> bool:
        """Whether the latest events say that the answer is complete, the last event aside."""


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Told(msgspec.Struct):
    """What is read of an answer, or of one event of it. Members of other types than these count as absent."""

    id: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()


class Vectors(msgspec.Struct):
    """What is read of an answer of embeddings."""

    data: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


decode_told = msgspec.json.Decoder(Told).decode
decode_vectors = msgspec.json.Decoder(Vectors).decode
decode_usage = msgspec.json.Decoder(Usage | None).decode


class ChatReading:
    """Chat completions, and text completions, which look the same from here (wire contract 2.6, 2.7, 3.3)."""

    last: bytes | None = DONE

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._latest: deque[bytes] = deque(maxlen=FINISHED_AMONG)

    def whole(self, body: bytes, tally: Tally) -> None:
        """See Reading.whole."""
        told = decode_told(body)
        if not told.choices:  # an error with status 200, for example
            raise StreamBroken("an answer without choices")
        note(told, tally)

    def event(self, data: bytes, tally: Tally) -> bool:
        """See Reading.event. Most events are not decoded: nothing in them is to be known."""
        is_error = b'"error"' in data and b'"choices"' not in data
        if is_error or tally.id is None or (b'"usage"' in data and b'"usage":null' not in data):
            told = decode_told(data)
            if told.error and told.error != b"null":
                raise StreamBroken("the engine says that it failed")
            note(told, tally)
        self._latest.append(data)
        return False

    @property
    def has_finished(self) -> bool:
        return any(has_finish_reason(data) for data in self._latest)


class EmbeddingsReading:
    """Vectors, never streamed (wire contract 3.2). An id that an engine gives them is none to find a receipt by."""

    path = b"/embeddings"
    last: bytes | None = None
    has_finished = False

    def whole(self, body: bytes, tally: Tally) -> None:
        """See Reading.whole."""
        told = decode_vectors(body)
        if not told.data:  # an error with status 200, for example
            raise StreamBroken("an answer without vectors")
        note(Told(usage=told.usage), tally)

    def event(self, data: bytes, _: Tally) -> bool:
        """See Reading.event."""
        raise StreamBroken("a stream of embeddings")


READINGS: Mapping[SurfaceName, Callable[[], Reading]] = {
    "chat": lambda: ChatReading(b"/chat/completions"),
    "completions": lambda: ChatReading(b"/completions"),
    "embeddings": EmbeddingsReading,
}


def note(told: Told, tally: Tally) -> None:
    """Read the id and the tokens, as far as they are there."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        answer_id = msgspec.json.decode(told.id, type=str) if told.id and tally.id is None else None
        if answer_id is not None and len(answer_id) <= ID_MOST:
            tally.id = answer_id
    with suppress(msgspec.DecodeError):
        usage = decode_usage(told.usage) if told.usage else None
        if usage is not None:
            tally.prompt_tokens = usage.prompt_tokens or tally.prompt_tokens
            tally.completion_tokens = usage.completion_tokens or tally.completion_tokens


class FinishOf(msgspec.Struct):
    finish_reason: str | None = None


class Finish(msgspec.Struct):
    choices: list[FinishOf] = []


def has_finish_reason(data: bytes) -> bool:
    """Whether a choice says in this event that it has finished."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        return any(choice.finish_reason for choice in msgspec.json.decode(data, type=Finish).choices)
    return False
