"""A question as it is sent and an answer as it came, sans-IO (wire contract 2.6, 2.7).

The bytes are kept for the hashes; text and id are only read out of them. Nothing here is verified.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from confide.client.proof import Proof
from confide.errors import ConfigError, VerificationError
from confide.evidence.result import quoted
from confide.protocol.sse import Framer, SseError

OnText = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """One user message. `max_tokens` None leaves the length to the service."""

    prompt: str
    model: str
    stream: bool
    max_tokens: int | None

    def body(self) -> bytes:
        """The request, as it is sent and hashed. Raises ConfigError for a prompt that is not Unicode text."""
        members: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "stream": self.stream,
        }
        if self.max_tokens is not None:
            members["max_tokens"] = self.max_tokens
        try:
            return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            raise ConfigError("the prompt is not valid text", remedy="Pass it in the terminal's encoding.") from None


@dataclass(frozen=True)
class Answer:
    """What came back. `spki_sha256`: 32 bytes, of the TLS key that the connection had. `broken`: why it stopped.

    `proof`: of the exchange, where a verifying client took it; its connection was checked and `spki_sha256` is None.
    """

    id: str
    text: str
    sent: bytes
    received: bytes
    spki_sha256: bytes | None
    broken: str | None
    proof: Proof | None = None


class Text(msgspec.Struct, frozen=True):
    """A message or a delta."""

    content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """A buffered choice has a message, a streamed one a delta."""

    message: Text | None = None
    delta: Text | None = None


class Problem(msgspec.Struct, frozen=True):
    """The members of a wire error that are shown (wire contract 4)."""

    message: str
    type: str


class Envelope(msgspec.Struct, frozen=True):
    """An answer, a chunk of one, or an error: each in whole (wire contract 2.6, 2.7, 4)."""

    id: str = ""
    choices: tuple[Choice, ...] = ()
    error: Problem | None = None

    @property
    def text(self) -> str:
        """The text of the first choice; there is only one."""
        parts = (self.choices[0].delta, self.choices[0].message) if self.choices else ()
        return "".join(part.content for part in parts if part is not None and part.content)


class Reading:
    """Takes the text and the id out of an answer while it comes. What cannot be read is kept and says nothing."""

    def __init__(self, on_text: OnText) -> None:
        self._on_text = on_text
        self._framer = Framer()
        self.received = bytearray()
        self.texts: list[str] = []
        self.id = ""
        self.broken: str | None = None

    def feed(self, data: bytes, *, is_stream: bool) -> None:
        """Bytes as they came from the socket."""
        self.received += data
        if not is_stream:
            return
        try:
            events = self._framer.feed(data)
        except SseError as error:
            raise unproven(f"the answer is no stream that can be read: {error}") from error
        for event in events:
            self.take(event.data)

    def take(self, document: bytes) -> None:
        """One JSON document: the data of an event, or the whole body."""
        try:
            envelope = msgspec.json.decode(document, type=Envelope)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # `[DONE]`, or something that the hash will tell about
        self.id = self.id or envelope.id
        if envelope.error is not None:
            self.broken = quoted(envelope.error.message)
        if envelope.text:
            self.texts.append(envelope.text)
            self._on_text(envelope.text)


def unproven(message: str) -> VerificationError:
    """There is nothing left to verify."""
    return VerificationError(message, check="response-hash", remedy="Do not rely on this answer.")
