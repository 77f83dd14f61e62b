"""What the prompt path asks of an API surface: how a request is read, who answers it, and how it fails.

A surface has no say in what is hashed, when a receipt is signed, or how an exit is left: that is the pipeline's.
"""

from collections.abc import Awaitable, Iterable
from typing import Protocol

from confide.errors import WireError
from confide.gateway.models import ModelTable
from confide.gateway.wire import Header, error_body
from confide.protocol.messages_headers import Headers
from confide.protocol.sse import error_tail
from confide.upstream.base import Answering, Asked, Prompt, SurfaceName
from confide.upstream.router import Candidate


class Surface(Protocol):
    """One API surface. `endpoint`: its path, which receipts name. `ways`: the surfaces that an upstream may speak to
    answer it.
    """

    @property
    def name(self) -> SurfaceName: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def ways(self) -> frozenset[SurfaceName]: ...

    def new_id(self, random: bytes) -> str:
        """The id of an answer of ours. `random`: 16 bytes."""

    def parse(self, body: bytes, models: ModelTable) -> Asked:
        """What is asked: all of it, or where an engine judges the body itself as much as it takes to find that engine.

        Raises InvalidRequest.
        """

    def passed(self, headers: Iterable[Header]) -> Headers:
        """Of the headers of a request, what an upstream that speaks this surface itself is given."""

    def accept(self, candidate: Candidate, prompt: Prompt) -> Awaitable[Answering]:
        """The answer as this surface has it. Raises what Upstream.accept raises."""

    def error(self, error: WireError, request_id: str | None) -> bytes:
        """The body of an error response. `request_id`: what the service calls this request, None while it has none."""

    def tail(self, error: WireError, answering: Answering | None, request_id: str | None) -> bytes:
        """How a stream ends that broke. `answering`: what wrote it so far, None where that was comments only."""


class OpenAiShaped:
    """What OpenAI's surfaces have in common, their errors above all (wire contract 2.7, 4)."""

    def passed(self, _: Iterable[Header]) -> Headers:
        """See Surface.passed. All that counts is in the body."""
        return ()

    def error(self, error: WireError, _: str | None) -> bytes:
        """See Surface.error."""
        return error_body(error)

    def tail(self, error: WireError, _answering: Answering | None, _id: str | None) -> bytes:
        """The error, then `[DONE]`."""
        return error_tail(error.message, error.type, error.status)


class Spoken(OpenAiShaped):
    """A surface that an upstream has to speak itself: what it answers is the answer."""

    def accept(self, candidate: Candidate, prompt: Prompt) -> Awaitable[Answering]:
        """See Surface.accept."""
        return candidate.accept(prompt)
