"""What must be seen of an engine's answer while its bytes are passed on: that it is one, its id, its usage, its end.

One file for each shape that engines answer in: `reading_chat`, `reading_embeddings`, `reading_responses`,
`reading_messages`.
"""

from contextlib import suppress
from typing import Protocol

import msgspec

from confide.errors import ConfideError
from confide.upstream.base import Tally

ID_MOST = 200


class StreamBroken(ConfideError):
    """The answer ended and was not whole, says itself that it failed, or is none."""


class Reading(Protocol):
    """For one answer. `path`: where it is asked for, below the path of the API. `last`: what ends a stream whose engine
    left that out, None where it must not. `inside`: the member of an event that holds the answer, None where the event
    is the answer's own. `events`: so many so far that have a number; a break is given the next.
    """

    path: bytes
    last: bytes | None
    inside: str | None
    events: int

    def whole(self, body: bytes, tally: Tally) -> None:
        """A buffered answer. Raises StreamBroken or msgspec.DecodeError for what is none."""

    def event(self, data: bytes, tally: Tally) -> bool:
        """The data of one event, other than `[DONE]`; whether it is the last one. Raises StreamBroken for one that says
        that the engine failed, msgspec.DecodeError for what is no JSON.
        """

    @property
    def has_finished(self) -> bool:
        """Whether the latest events say that the answer is complete, the last event aside."""


def note_id(given: msgspec.Raw, tally: Tally) -> None:
    """The first id counts."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        answer_id = msgspec.json.decode(given, type=str) if given and tally.id is None else None
        if answer_id is not None and len(answer_id) <= ID_MOST:
            tally.id = answer_id
