"""Anthropic Messages by way of chat: the answer (wire contract 3.5).

What chat does not tell is not made up: a stop text that was met is named where the engine names it, a count is zero
where nothing was counted, thinking has an empty signature, and `message_start` has the counts that are known by then.
"""

from confide.protocol.messages_answer import whole_message
from confide.protocol.messages_errors import messages_tail
from confide.protocol.messages_events import MessageEvents
from confide.protocol.messages_request import MessagesRequest
from confide.protocol.sse import Framer, SseError
from confide.protocol.translation import Untranslatable

EVENT_MOST_BYTES = 8 * 1024 * 1024


class MessagesTranslation:
    """One answer on its way from chat to a message; see `translation.Translation`. `id`: `msg_…`. `model`: as asked."""

    def __init__(self, request: MessagesRequest, *, id: str, model: str) -> None:
        self._id = id
        self._model = model
        self._sequences = request.stop_sequences
        self._events = MessageEvents(id=id, model=model, sequences=request.stop_sequences)
        self._framer = Framer(max_event_bytes=EVENT_MOST_BYTES)

    def whole(self, body: bytes) -> bytes:
        """See Translation.whole."""
        return whole_message(body, id=self._id, model=self._model, sequences=self._sequences)

    def feed(self, data: bytes) -> bytes:
        """See Translation.feed."""
        try:
            events = self._framer.feed(data)
        except SseError as error:
            raise Untranslatable(str(error)) from None
        return b"".join(self._events.step(event.data) for event in events if event.data != b"[DONE]")

    def end(self) -> bytes:
        """See Translation.end."""
        if self._framer.pending:
            raise Untranslatable("the stream stopped inside an event")
        return self._events.end()

    def tail(self, message: str, _kind: str, status: int) -> bytes:
        """See Translation.tail."""
        return messages_tail(status, message, request_id=self._id)
