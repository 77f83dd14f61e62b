"""`POST /v1/responses` (wire contract 3.4)."""

from confide.errors import WireError
from confide.gateway.surfaces.base import OpenAiShaped
from confide.gateway.surfaces.translated import Translated, TranslatedAnswer
from confide.protocol.responses import ResponsesTranslation, error_event, new_response_id
from confide.protocol.responses_request import RENAMED, ResponsesRequest, parse_responses
from confide.protocol.translation import Translation
from confide.upstream.base import Answering, Head, SurfaceName
from confide.upstream.kinds.relay import RelayedAnswer


class Responses(OpenAiShaped, Translated[ResponsesRequest]):
    """By way of chat, or as an engine has it that speaks it itself."""

    name: SurfaceName = "responses"
    endpoint = "/v1/responses"
    ways: frozenset[SurfaceName] = frozenset({"chat", "responses"})

    def __init__(self) -> None:
        super().__init__(parse_responses, translation, renamed=RENAMED)

    def new_id(self, random: bytes) -> str:
        """See Surface.new_id."""
        return new_response_id(random)

    def tail(self, error: WireError, answering: Answering | None, _id: str | None) -> bytes:
        """The event `error`, numbered after what came before it. There is no `[DONE]`."""
        if isinstance(answering, TranslatedAnswer):
            return answering.tail(error)
        told = answering.events if isinstance(answering, RelayedAnswer) else 0
        return error_event(error.message, error.status, sequence_number=told)


def translation(request: ResponsesRequest, head: Head) -> Translation:
    """What makes an answer of chat the answer to `request`."""
    return ResponsesTranslation(request, id=head.id, created=head.created, model=head.model)
