"""An engine's answer of chat completions, and of text completions, which looks the same from here (wire contract 2.6,
2.7, 3.3).
"""

from collections import deque
from contextlib import suppress

import msgspec

from confide.upstream.base import DONE, Tally
from confide.upstream.kinds.reading import StreamBroken, note_id

FINISHED_AMONG = 8  # events from the end in which a choice says that it has finished


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Told(msgspec.Struct):
    """What is read of an answer, or of one event of it. Members of other types than these count as absent."""

    id: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    choices: msgspec.Raw = msgspec.Raw()


decode_told = msgspec.json.Decoder(Told).decode
decode_usage = msgspec.json.Decoder(Usage | None).decode


class ChatReading:
    """See reading.Reading."""

    last: bytes | None = DONE
    inside: str | None = None
    events = 0

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


def note(told: Told, tally: Tally) -> None:
    """Read the id and the tokens, as far as they are there."""
    note_id(told.id, tally)
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
