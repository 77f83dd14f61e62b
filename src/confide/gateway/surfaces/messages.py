"""`POST /v1/messages` (wire contract 3.5, 4): by way of chat, or passed through where an upstream speaks it itself."""

from collections.abc import Iterable

from confide.errors import SessionNotAccepted, UpstreamNotVerified, WireError
from confide.gateway.surfaces.translated import Translated
from confide.gateway.wire import Header, error_body
from confide.protocol.messages_errors import messages_error, messages_tail
from confide.protocol.messages_headers import Headers, messages_headers
from confide.protocol.messages_request import RENAMED, MessagesRequest, new_message_id, parse_messages
from confide.protocol.messages_translation import MessagesTranslation
from confide.upstream.base import Answering, SurfaceName


class Messages(Translated[MessagesRequest]):
    """Anthropic Messages."""

    name: SurfaceName = "messages"
    endpoint = "/v1/messages"
    ways: frozenset[SurfaceName] = frozenset({"chat", "messages"})

    def __init__(self) -> None:
        super().__init__(
            parse_messages,
            lambda request, head: MessagesTranslation(request, id=head.id, model=head.model),
            renamed=RENAMED,
        )

    def new_id(self, random: bytes) -> str:
        """See Surface.new_id."""
        return new_message_id(random)

    def passed(self, headers: Iterable[Header]) -> Headers:
        """See Surface.passed."""
        return messages_headers(headers)

    def error(self, error: WireError, request_id: str | None) -> bytes:
        """See Surface.error."""
        if is_about_constraints(error):
            return error_body(error)
        return messages_error(error.status, error.message, param=error.param, request_id=request_id)

    def tail(self, error: WireError, _: Answering | None, request_id: str | None) -> bytes:
        """See Surface.tail."""
        return messages_tail(error.status, error.message, request_id=request_id)


def is_about_constraints(error: WireError) -> bool:
    """Whether it is one of ACI's, before dispatch: those are the same on every surface, for clients branch on them."""
    is_of_provider = error.param is not None and error.param.partition(".")[0] == "provider"
    return is_of_provider or isinstance(error, SessionNotAccepted | UpstreamNotVerified)
