"""An embedding model of the embedded engine as an upstream: one request of the client's becomes engine requests of one
batch each.

Between two batches of a request those of others have their turn, so a large one makes nobody wait for longer than the
batches before theirs take. However an answer ends, the exchange with the engine is aborted in `finally` and the slot
is released: what the engine then still works on is one batch.
"""

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import AsyncGenerator, Sequence

import msgspec

from confide.engine.entries import Limits, batches, prepared
from confide.engine.wordpiece import WordPiece
from confide.errors import InvalidRequest, UpstreamFailed, UpstreamTimeout, WireError
from confide.protocol.embeddings import (
    FLOAT_BYTES,
    INPUT,
    EmbeddingsRequest,
    embedding_document,
    embeddings_body,
    parse_embeddings,
)
from confide.protocol.serving import forwarded_body
from confide.protocol.text_inputs import Text
from confide.upstream.base import Claim, Head, Prompt, SurfaceName, Tally, refuse_sessions
from confide.upstream.channel import Channel, ChannelError, Stalled
from confide.upstream.kinds.embedded import ERROR_MOST_BYTES, EngineSlots, EngineState

PATH = b"/v1/embeddings"
AT_A_TIME = 2  # batches: one is worked on while the answer to another is read
THREADED = 16_384  # characters or ids: a tokenizer takes some 4 ms for as many, and others wait for it
ENTRY_MOST_BYTES = 512  # of the engine's answer, its vector aside
FAILED = "the model failed while it answered; try again"
ENDED_EARLY = "the model stopped before the end of its answer; try again"
TOO_LONG = re.compile(r"\Ainput \((\d+) tokens\) is too large")


class EngineVector(msgspec.Struct, frozen=True):
    index: int
    embedding: str


class EngineUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int


class EngineAnswer(msgspec.Struct, frozen=True):
    """The engine's answer, its vectors in base64: half the bytes of decimal digits, and the same bits."""

    data: list[EngineVector]
    usage: EngineUsage


class EngineError(msgspec.Struct, frozen=True):
    message: str = ""
    type: str = ""
    n_prompt_tokens: int | None = None


class EngineRefusal(msgspec.Struct, frozen=True):
    error: EngineError = EngineError()


EMBEDDINGS_SUPPORTED = frozenset({"encoding_format"})  # members of the wire contract that change an answer


class EmbeddedEmbeddings:
    """Serves one embedding model from a supervised engine over its private socket."""

    supported_parameters = EMBEDDINGS_SUPPORTED
    surfaces: frozenset[SurfaceName] = frozenset({"embeddings"})
    reads_body = False
    is_attested = True
    serving: Claim = "direct"

    def __init__(
        self,
        *,
        channel: Channel,
        engine: EngineState,
        slots: EngineSlots,
        api_key: str,
        tokenizer: WordPiece | None,
        context_length: int,
        vector_length: int,
        token_count: int,
        description: str,
    ) -> None:
        """`tokenizer`: of the model; None leaves texts to the engine's. `context_length`: tokens of one entry.
        `vector_length`: numbers of one vector. `token_count`: of the vocabulary.
        """
        self._channel = channel
        self._engine = engine
        self.slots = slots
        self._headers = ((b"authorization", b"Bearer " + api_key.encode()), (b"content-type", b"application/json"))
        self._tokenizer = tokenizer
        self.context_length = context_length
        self.vector_length = vector_length
        self._limits = Limits(context_length, token_count)
        self.description = description

    @property
    def is_ready(self) -> bool:
        return self._engine.is_ready

    async def ready(self, prompt: Prompt, _: str) -> None:
        """There is no second hop. Raises SessionNotAccepted."""
        refuse_sessions(prompt.constraints)

    async def accept(self, prompt: Prompt, _: str) -> "EmbeddingsAnswer":
        """Raises InvalidRequest, NotReady while the engine is down, LimitReached when the queue is full."""
        asked = prompt.asked
        request = asked if isinstance(asked, EmbeddingsRequest) else parse_embeddings(prompt.body)
        if request.dimensions not in (None, self.vector_length):
            raise InvalidRequest(
                f"dimensions must be {self.vector_length}: this model's vectors have no other length",
                param="dimensions",
            )
        self._engine.check_ready()
        self.slots.check_room(1)
        entries = await self._entries(request.texts)
        forwarded = forwarded_body(prompt.body, drop_constraints=prompt.constraints.stated, drop_empty_tool_calls=False)
        is_same = forwarded is prompt.body
        sha256 = prompt.sha256 if is_same else hashlib.sha256(forwarded).digest()
        return EmbeddingsAnswer(self, entries, request, prompt.head, sha256)

    async def _entries(self, texts: Sequence[Text]) -> Sequence[Text]:
        """What the engine is given. Raises InvalidRequest for what the model cannot take."""
        if sum(map(len, texts)) <= THREADED:
            return prepared(texts, self._tokenizer, self._limits)
        return await asyncio.to_thread(prepared, texts, self._tokenizer, self._limits)

    async def vectors(self, batch: Sequence[Text]) -> EngineAnswer:
        """The engine's answer for one batch. Raises WireError; cancelling it closes the socket at once."""
        body = msgspec.json.encode({"model": "model", "input": batch, "encoding_format": "base64"})
        most_bytes = ERROR_MOST_BYTES + len(batch) * (ENTRY_MOST_BYTES + 2 * FLOAT_BYTES * self.vector_length)
        try:
            exchange = await self._channel.send(b"POST", PATH, self._headers, body)
            try:
                answer = await exchange.read_all(most_bytes)
            finally:
                exchange.abort()
            if exchange.status == 200:
                return msgspec.json.decode(answer, type=EngineAnswer)
        except Stalled as error:
            raise UpstreamTimeout("the model did not answer in time") from error
        except (ChannelError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamFailed(ENDED_EARLY) from error
        raise refused(answer, self.context_length)

    def check_ready(self) -> None:
        """Raise NotReady while the engine is down."""
        self._engine.check_ready()


class EmbeddingsAnswer:
    """One accepted request."""

    last = b""

    def __init__(
        self,
        upstream: EmbeddedEmbeddings,
        entries: Sequence[Text],
        request: EmbeddingsRequest,
        head: Head,
        forwarded_sha256: bytes,
    ) -> None:
        self._upstream = upstream
        self._entries = entries
        self._request = request
        self._head = head
        self.forwarded_sha256 = forwarded_sha256
        self.is_forwarded = False

    async def complete(self, tally: Tally) -> bytes:
        """The body of the answer (wire contract 3.2). Raises WireError; cancelling ends the work at once."""
        slots = self._upstream.slots
        documents: list[bytes] = []
        await slots.acquire()
        has_slot = True
        try:
            for batch in batches(self._entries):
                if documents:
                    has_slot = False
                    await slots.pass_on()
                    has_slot = True
                self._upstream.check_ready()  # it may have died while this request waited
                self.is_forwarded = True
                answer = await self._upstream.vectors(batch)
                tally.prompt_tokens += answer.usage.prompt_tokens
                documents += self._documents(answer, len(batch), len(documents))
        finally:
            if has_slot:
                slots.release()
        return embeddings_body(documents, model=self._head.model, prompt_tokens=tally.prompt_tokens)

    def _documents(self, answer: EngineAnswer, count: int, begin: int) -> list[bytes]:
        """The entries of a batch as the client gets them, the first of them with the index `begin`."""
        ordered = sorted(answer.data, key=lambda each: each.index)
        if [each.index for each in ordered] != list(range(count)):
            raise UpstreamFailed(FAILED)
        return [
            embedding_document(begin + each.index, self._decoded(each.embedding), self._request.encoding)
            for each in ordered
        ]

    def _decoded(self, text: str) -> bytes:
        """A vector of the right length. Raises UpstreamFailed."""
        try:
            vector = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise UpstreamFailed(FAILED) from error
        if len(vector) != FLOAT_BYTES * self._upstream.vector_length:
            raise UpstreamFailed(FAILED)
        return vector

    async def stream(self, tally: Tally) -> AsyncGenerator[bytes, None]:
        """Embeddings are never streamed (wire contract 3.2): a whole answer in one piece."""
        yield await self.complete(tally)


def refused(body: bytes, context_length: int) -> WireError:
    """The engine's error in our terms; its own text is not passed on. Which text is too long it does not say."""
    try:
        error = msgspec.json.decode(body, type=EngineRefusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UpstreamFailed(FAILED)
    found = TOO_LONG.match(error.message)
    tokens = found[1] if found else error.n_prompt_tokens
    if tokens is None:
        return UpstreamFailed(FAILED)
    return InvalidRequest(f"{INPUT} has an entry of {tokens} tokens; this model takes {context_length}", param=INPUT)
