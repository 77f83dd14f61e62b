"""What the gateway needs of an upstream, whatever its kind."""

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec

from confide.protocol.chat import ChatRequest


class Head(msgspec.Struct, frozen=True):
    """What is fixed when a request is admitted and appears in every chunk. `created`: Unix seconds."""

    id: str
    created: int
    model: str  # as the client sent it


class Tally(msgspec.Struct):
    """Tokens of one answer, filled in while it is made."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answering(Protocol):
    """One answer that was accepted and is about to be made. Closing the generator ends the generation at once."""

    @property
    def is_forwarded(self) -> bool:
        """Whether the request was handed to inference: false while it waits, and for good when it was refused then."""

    def stream(self, tally: Tally) -> AsyncGenerator[bytes, None]:
        """The bytes of the event stream, whole events, without `[DONE]`. Raises WireError where it cannot go on."""

    async def complete(self, tally: Tally) -> bytes:
        """The body of the buffered response. Raises WireError. Cancelling ends the generation at once."""


class Upstream(Protocol):
    """Serves one model."""

    @property
    def context_length(self) -> int: ...
    @property
    def description(self) -> str: ...
    @property
    def supported_parameters(self) -> frozenset[str]: ...
    @property
    def is_ready(self) -> bool: ...

    def accept(self, request: ChatRequest, head: Head) -> Answering:
        """Check what only this upstream can know. Raises InvalidRequest, NotReady or LimitReached; starts nothing."""
