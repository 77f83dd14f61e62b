"""From an answer of chat to one of the Responses surface (wire contract 3.4)."""

import msgspec

from confide.protocol.chat_answer import Usage, read_answer, read_chunk
from confide.protocol.responses_answer import ResponseObject, is_complete
from confide.protocol.responses_output import Document, Output
from confide.protocol.responses_request import ResponsesRequest
from confide.protocol.sse import Framer, SseError
from confide.protocol.translation import Untranslatable

ID_PREFIX = "resp_"
MOST_EVENT_BYTES = 16 * 1024 * 1024
DONE = b"[DONE]"
BREAKS = {429: "rate_limit_exceeded", 400: "invalid_prompt"}

encode = msgspec.json.encode


def new_response_id(random: bytes) -> str:
    """`resp_` and 32 lower-case hex digits of 16 random bytes."""
    return ID_PREFIX + random.hex()


def error_event(message: str, status: int, *, sequence_number: int) -> bytes:
    """How a stream ends that broke. The blank line closes an event that was left half-written."""
    document: Document = {
        "type": "error",
        "code": BREAKS.get(status, "server_error"),
        "message": message,
        "param": None,
        "sequence_number": sequence_number,
    }
    return b"\n\n" + framed(document)


def framed(event: Document) -> bytes:
    """One event as it is sent. Its type is said twice, as readers look in either place."""
    return b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), encode(event))


class ResponsesTranslation:
    """One answer. See Translation.

    Nothing depends on where a stream is cut: what comes before a chunk that is none is told, and that it is none with
    the next call.
    """

    def __init__(self, request: ResponsesRequest, *, id: str, created: int, model: str) -> None:
        """`id`: of the response, see `new_response_id`. `created`: Unix seconds. `model`: as it was asked for."""
        self._response = ResponseObject(request, id=id, created=created, model=model)
        self._output = Output(id.removeprefix(ID_PREFIX))
        self._framer = Framer(max_event_bytes=MOST_EVENT_BYTES)
        self._sequence_number = 0  # of the next event
        self._fed = 0  # events before the end, which may yet turn out not to be told
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._failure: Untranslatable | None = None
        self._events: list[bytes] = []  # of this call

    def whole(self, body: bytes) -> bytes:
        """See Translation.whole."""
        said, choice, usage = read_answer(body)
        reason = choice.finish_reason
        for _ in self._output.add(said):
            pass
        for _ in self._output.close("completed" if is_complete(reason) else "incomplete"):
            pass
        return encode(self._response.ended(self._output.documents, reason, usage))

    def feed(self, data: bytes) -> bytes:
        """See Translation.feed."""
        self._raise_failure()
        try:
            for event in self._framer.feed(data):
                if event.data.strip() != DONE:
                    self._take(event.data)
        except Untranslatable as failure:
            self._failure = failure
        except SseError:
            self._failure = Untranslatable("the stream: an event that is too large")
        self._fed = self._sequence_number
        return self._written()

    def end(self) -> bytes:
        """See Translation.end."""
        self._raise_failure()
        if not self._sequence_number:
            raise Untranslatable("the stream: no chunk in it")
        status = "completed" if is_complete(self._finish_reason) else "incomplete"
        for event in self._output.close("completed" if status == "completed" else "incomplete"):
            self._write(event)
        ended = self._response.ended(self._output.documents, self._finish_reason, self._usage)
        self._write({"type": f"response.{status}", "response": ended})
        return self._written()

    def tail(self, message: str, kind: str, status: int) -> bytes:
        """See Translation.tail."""
        return error_event(message, status, sequence_number=self._fed)

    def _take(self, data: bytes) -> None:
        chunk = read_chunk(data)
        if not self._sequence_number:
            self._write({"type": "response.created", "response": self._response.begun()})
            self._write({"type": "response.in_progress", "response": self._response.begun()})
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices or ():
            if choice.delta is not None:
                for event in self._output.add(choice.delta):
                    self._write(event)
            self._finish_reason = choice.finish_reason or self._finish_reason

    def _write(self, event: Document) -> None:
        self._events.append(framed({"type": event["type"], "sequence_number": self._sequence_number, **event}))
        self._sequence_number += 1

    def _written(self) -> bytes:
        written, self._events = b"".join(self._events), []
        return written

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
