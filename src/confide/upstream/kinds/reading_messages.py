"""An engine's answer of Anthropic Messages (wire contract 3.5). Its last event cannot be left out: it is what makes a
stream whole.
"""

from contextlib import suppress
from typing import Annotated

import msgspec

from confide.upstream.base import Tally
from confide.upstream.kinds.reading import StreamBroken, note_id


class MessageUsage(msgspec.Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class ToldMessage(msgspec.Struct):
    """What is read of a message, or of one event of it."""

    type: str = ""
    id: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()


class TokenCount(msgspec.Struct):
    """What is read of an answer to `count_tokens`: a number that every reader of JSON holds exactly."""

    input_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


decode_count = msgspec.json.Decoder(TokenCount).decode
decode_message = msgspec.json.Decoder(ToldMessage).decode
decode_message_usage = msgspec.json.Decoder(MessageUsage | None).decode


class MessagesReading:
    """See reading.Reading."""

    path = b"/messages"
    last: bytes | None = None
    inside: str | None = "message"
    events = 0
    has_finished = False

    def whole(self, body: bytes, tally: Tally) -> None:
        """See Reading.whole."""
        told = decode_message(body)
        if told.type != "message":  # an error with status 200, for example
            raise StreamBroken("an answer that is no message")
        note_message(told, tally)

    def event(self, data: bytes, tally: Tally) -> bool:
        """See Reading.event."""
        told = decode_message(data)
        if told.type == "error":
            raise StreamBroken("the engine says that it failed")
        if told.type == "message_start":
            note_message(decode_message(told.message), tally)
        elif told.type == "message_delta":
            note_message(told, tally)
        return told.type == "message_stop"


class CountReading(MessagesReading):
    """Of an answer to `count_tokens`, which is never a stream: the one number that counts."""

    path = b"/messages/count_tokens"

    def whole(self, body: bytes, tally: Tally) -> None:
        """See Reading.whole."""
        tally.prompt_tokens = decode_count(body).input_tokens


def note_message(told: ToldMessage, tally: Tally) -> None:
    """Read the id and the tokens; those of the prompt that a cache held are counted apart in a message."""
    note_id(told.id, tally)
    with suppress(msgspec.DecodeError):
        usage = decode_message_usage(told.usage) if told.usage else None
        if usage is not None:
            cached = (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
            tally.prompt_tokens = (usage.input_tokens or 0) + cached or tally.prompt_tokens
            tally.completion_tokens = usage.output_tokens or tally.completion_tokens
