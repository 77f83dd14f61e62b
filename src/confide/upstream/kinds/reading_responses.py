"""An engine's answer of OpenAI's Responses (wire contract 3.4). Nothing but its last event says that a stream is whole:
there is no `[DONE]`.
"""

from contextlib import suppress

import msgspec

from confide.upstream.base import Tally
from confide.upstream.kinds.reading import StreamBroken, note_id


class NumberedEvent(msgspec.Struct):
    """One event of a stream of responses. `response`: JSON, where the event has it."""

    type: str
    sequence_number: int = -1
    response: msgspec.Raw = msgspec.Raw()


class TokensOf(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None


class Response(msgspec.Struct):
    """A response. Members of other types than these count as absent."""

    output: list[msgspec.Raw]
    id: msgspec.Raw = msgspec.Raw()
    usage: msgspec.Raw = msgspec.Raw()


decode_numbered = msgspec.json.Decoder(NumberedEvent).decode
decode_response = msgspec.json.Decoder(Response).decode
decode_tokens = msgspec.json.Decoder(TokensOf | None).decode
LAST_RESPONSES = frozenset({"response.completed", "response.incomplete", "response.failed"})


class ResponsesReading:
    """See reading.Reading."""

    path = b"/responses"
    last: bytes | None = None
    inside: str | None = "response"
    has_finished = False

    def __init__(self) -> None:
        self.events = 0

    def whole(self, body: bytes, tally: Tally) -> None:
        """See Reading.whole."""
        note_response(decode_response(body), tally)

    def event(self, data: bytes, tally: Tally) -> bool:
        """See Reading.event."""
        told = decode_numbered(data)
        if told.type == "error":
            raise StreamBroken("the engine says that it failed")
        is_last = told.type in LAST_RESPONSES
        if told.response and (is_last or tally.id is None):
            note_response(decode_response(told.response), tally)
        self.events = max(self.events, told.sequence_number + 1)
        return is_last


def note_response(response: Response, tally: Tally) -> None:
    """Read the id and the tokens, as far as they are there."""
    note_id(response.id, tally)
    with suppress(msgspec.DecodeError):
        usage = decode_tokens(response.usage) if response.usage else None
        if usage is not None:
            tally.prompt_tokens = usage.input_tokens or tally.prompt_tokens
            tally.completion_tokens = usage.output_tokens or tally.completion_tokens
