"""The one prompt path, top to bottom (architecture 3).

    body, bounded and hashed -> who asks -> what is asked -> which upstream -> answer, hashed as it leaves
    -> proof committed to the store -> last frame

Every exit goes through `__call__`: done, refused, failed, client gone, drained. Two things hold on each: the upstream
is released before the exit is left, and exactly one log line names the outcome. A proof is stored for every answer of
which bytes reached the client, over the bytes that were handed to the server; the line says why where there is none.

    outcome         proof                     the client has
    complete        over the whole answer     all of it
    truncated       up to `[DONE]`            the error tail in place of the rest
    client_closed   over what was sent        left; none is due when nothing was sent
    refused         none                      an error response, 4xx
    failed          none                      an error response, 5xx
"""

import asyncio
import hashlib
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing

import msgspec

from confide.attester.keys import LegacyKeys
from confide.config import Config
from confide.errors import InternalError, InvalidRequest, NotReady, ServingFailed, WireError
from confide.gateway.auth import Authenticator, Principal
from confide.gateway.lifecycle import InFlight, Lifecycle, Stop, shutting_down
from confide.gateway.models import ModelTable, ServedModel
from confide.gateway.outgoing import NO_E2EE, Comments, Outgoing
from confide.gateway.wire import (
    JSON,
    ClientGone,
    Receive,
    Scope,
    Send,
    read_body,
    write_error,
)
from confide.protocol.chat import ChatRequest, new_chat_id, parse_chat
from confide.protocol.sse import DONE, error_tail
from confide.store.base import Proof, Store
from confide.telemetry.logs import Log
from confide.upstream.base import Answering, Head, Tally
from confide.upstream.images import ImageFetcher

UNSEALED = bytes(32)
ID_BYTES, IDS_DRAWN = 16, 256
Write = Callable[[bytes], Awaitable[None]]
CONSTRAINT = re.compile(r"aci_[a-z_]{1,32}")


class Passage:
    """What is known of one request on its way through; the log line is made of it."""

    __slots__ = (
        "began",
        "entry",
        "has_proof",
        "head",
        "model_id",
        "outcome",
        "principal",
        "reason",
        "request_sha256",
        "stream",
        "tally",
    )

    def __init__(self, began: float, entry: InFlight) -> None:
        self.began = began
        self.entry = entry
        self.outcome = "failed"
        self.reason: str | None = None
        self.has_proof = False
        self.head: Head | None = None
        self.model_id: str | None = None
        self.principal: Principal | None = None
        self.request_sha256 = b""
        self.stream = False
        self.tally = Tally()


class ChatCompletions:
    """`POST /v1/chat/completions` as a plain ASGI callable."""

    endpoint = "/v1/chat/completions"

    def __init__(
        self,
        *,
        config: Config,
        authenticator: Authenticator,
        models: ModelTable,
        images: ImageFetcher,
        keys: LegacyKeys,
        store: Store,
        lifecycle: Lifecycle,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._authenticator = authenticator
        self._models = models
        self._images = images
        self._keys = keys
        self._store = store
        self._lifecycle = lifecycle
        self._log = log
        self._now = now
        self._chat_ids = chat_ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What goes wrong is written to the client, or logged when it is gone; nothing is raised.

        Except a cancellation that is not ours: the server is being torn down.
        """
        passage = Passage(self._now(), self._lifecycle.enter())
        writer = Outgoing(send, passage.entry)
        try:
            await self._answer(scope, receive, writer, passage)
        except ClientGone:
            await self._leave_off(writer, passage)
            if passage.entry.reason is Stop.CLIENT_STALLED:
                scope["extensions"]["confide.abort"]["abort"]()  # closing would wait for a client that does not read
        except asyncio.CancelledError:
            passage.reason = "torn_down"
            raise
        except Exception as error:  # noqa: BLE001 - the end of the prompt path: the unknown becomes internal_error
            await self._fail(writer, passage, self._in_our_terms(error))
        finally:
            self._lifecycle.leave(passage.entry)
            self._write_log(writer, passage)

    async def _answer(self, scope: Scope, receive: Receive, writer: Outgoing, passage: Passage) -> None:
        try:
            request, served = await self._admit(scope, receive, passage)
            passage.entry.watch(receive)
            answering = await self._accept(request, served, passage.head)
            if passage.stream:
                await self._stream(answering, writer, passage)
            else:
                await self._buffered(answering, writer, passage)
        except asyncio.CancelledError:
            match passage.entry.take_back():
                case None:
                    raise
                case Stop.CLIENT_GONE:
                    raise ClientGone from None
                case Stop.CLIENT_STALLED:
                    passage.reason = "client_stalled"
                    raise ClientGone from None
                case Stop.DRAIN:
                    passage.reason = "drain"
                    raise shutting_down() from None

    async def _admit(self, scope: Scope, receive: Receive, passage: Passage) -> tuple[ChatRequest, ServedModel]:
        """Everything before anybody else is contacted: who asks, what is asked, who can answer."""
        self._lifecycle.check_open()
        passage.principal = self._authenticator.principal(scope["headers"])
        refuse_retired_headers(scope)
        body = await read_body(receive, self._config.server.max_body_bytes)
        passage.request_sha256 = hashlib.sha256(body).digest()
        request = parse_chat(body)
        if request.provider is not None:
            refuse_constraints(request.provider)
        served = self._models.find(request.model)
        passage.model_id, passage.stream = served.model.id, request.stream
        passage.head = Head(next(self._chat_ids), int(passage.began), request.model)
        return request, served

    async def _accept(self, request: ChatRequest, served: ServedModel, head: Head | None) -> Answering:
        """Images first, as fetching takes a while and the client may leave; a text model refuses them unfetched."""
        assert head is not None
        if "image" in served.model.modalities:
            request = await self._images.inline(request)
        return served.upstream.accept(request, head)

    async def _buffered(self, answering: Answering, writer: Outgoing, passage: Passage) -> None:
        body = await answering.complete(passage.tally)
        passage.entry.is_sealed = True
        writer.add(body)
        await self._prove(writer.sha256, passage, "complete")
        await writer.start(200, (JSON, (b"content-length", str(len(body)).encode()), NO_E2EE))
        await writer.end_added(body)
        if passage.entry.is_client_gone:
            passage.outcome, passage.reason = "client_closed", "left_before_the_answer"

    async def _stream(self, answering: Answering, writer: Outgoing, passage: Passage) -> None:
        every_s = self._config.server.keepalive_comment_s
        if every_s is None:
            await self._relay(answering, writer.write, passage)
        else:
            async with Comments(writer, every_s) as comments:
                await self._relay(answering, comments.write, passage)
        await self._end_stream(writer, passage, DONE, "complete")

    async def _relay(self, answering: Answering, write: Write, passage: Passage) -> None:
        """Write what comes. Until the first byte a failure is an ordinary error response."""
        async with aclosing(answering.stream(passage.tally)) as frames:
            async for data in frames:
                await write(data)

    async def _end_stream(self, writer: Outgoing, passage: Passage, last: bytes, outcome: str) -> None:
        """Commit the proof over everything including `last`, then write `last` (wire contract 5.6).

        Without a proof the stream must not look whole: then the client sees the error in place of `[DONE]`.
        """
        passage.entry.is_sealed = True
        sent_sha256 = writer.sha256
        writer.add(last)
        unproven = await self._try_to_prove(writer.sha256, passage, outcome)
        if unproven is not None:
            passage.outcome = "truncated"
            last = tail(unproven)
        if not writer.is_started:
            await writer.begin()
        await writer.end_added(last)
        if passage.entry.is_client_gone:  # it left meanwhile: `last` reached nobody, and the newest proof counts
            await self._try_to_prove(sent_sha256, passage, "client_closed")
            passage.outcome = "client_closed"

    async def _fail(self, writer: Outgoing, passage: Passage, error: WireError) -> None:
        """Tell the client: as an error response, or as the tail of a stream that has begun."""
        passage.entry.is_sealed = True
        passage.reason = passage.reason or error.type
        if not writer.is_started:
            passage.outcome = "failed" if isinstance(error, ServingFailed) else "refused"
            await write_error(writer, error, (NO_E2EE,))
        elif not writer.is_ended:
            await self._end_stream(writer, passage, tail(error), "truncated")

    async def _leave_off(self, writer: Outgoing, passage: Passage) -> None:
        """The client left: what it has is proven, for whoever holds the other end of what it read."""
        passage.entry.is_sealed = True
        passage.outcome = "client_closed"
        if writer.sent_bytes:
            await self._try_to_prove(writer.sha256, passage, "client_closed")
        else:
            passage.reason = "nothing_sent"

    async def _try_to_prove(self, response_sha256: bytes, passage: Passage, outcome: str) -> WireError | None:
        """Prove an answer of which bytes were sent; the error to end with where that fails."""
        try:
            await self._prove(response_sha256, passage, outcome)
        except Exception as error:  # noqa: BLE001 - the stream has begun: whatever failed, it still needs its end
            failure = self._in_our_terms(error)
            passage.reason = passage.reason or failure.type
            return failure
        return None

    async def _prove(self, response_sha256: bytes, passage: Passage, outcome: str) -> None:
        """Return once the proof over these bytes is durable. Raises NotReady when it cannot be kept."""
        assert passage.head is not None
        assert passage.principal is not None
        now = int(self._now())
        proof = Proof(
            chat_id=passage.head.id,
            model=passage.head.model,
            request_sha256=passage.request_sha256,
            response_sha256=response_sha256,
            outcome=outcome,
            credential_sha256=passage.principal.credential_sha256,
            created_at=now,
            expires_at=now + self._config.store.receipt_ttl_s,
            seal=UNSEALED,
        )
        seal = self._keys.seal_record(proof.sealed_bytes())
        try:
            await self._store.commit(msgspec.structs.replace(proof, seal=seal))
        except NotReady:
            passage.reason = "store"
            raise
        passage.outcome, passage.has_proof = outcome, True

    def _in_our_terms(self, error: Exception) -> WireError:
        """What the client is told of `error`. Of the unknown the log gets the type: its text may hold anything."""
        if isinstance(error, WireError):
            return error
        self._log.write("fault", error=type(error).__name__)
        return InternalError("something went wrong on our side; it was recorded")

    def _write_log(self, writer: Outgoing, passage: Passage) -> None:
        self._log.write(
            "request",
            endpoint=self.endpoint,
            outcome=passage.outcome,
            reason=passage.reason,
            proof=passage.has_proof,
            status=writer.status or None,
            id=passage.head.id if passage.head else None,
            model=passage.model_id,
            key_id=passage.principal.key_id if passage.principal else None,
            stream=passage.stream,
            ms=round((self._now() - passage.began) * 1000, 1),
            prompt_tokens=passage.tally.prompt_tokens,
            completion_tokens=passage.tally.completion_tokens,
        )


def chat_ids() -> Iterator[str]:
    """New ids without end. Randomness is drawn for many at a time: each call of the system gives up the interpreter
    lock, which under load costs 100 µs until the store's thread gives it back.
    """
    while True:
        drawn = os.urandom(IDS_DRAWN * ID_BYTES)
        for start in range(0, len(drawn), ID_BYTES):
            yield new_chat_id(drawn[start : start + ID_BYTES])


def tail(error: WireError) -> bytes:
    """How a stream ends that broke: the error, then `[DONE]`."""
    return error_tail(error.message, error.type, error.status)


def refuse_constraints(provider: Mapping[str, object]) -> None:
    """Serving constraints are never ignored (wire contract 7.4); only the one that asks for nothing can be honoured.

    A name that is none of the contract's kind is the caller's own text and is not repeated.
    """
    for member, value in provider.items():
        asks_nothing = member == "aci_verified" and (value is None or value is False)
        if not member.startswith("aci_") or asks_nothing:
            continue
        named = f"provider.{member}" if CONSTRAINT.fullmatch(member) else "provider"
        raise InvalidRequest("this build cannot honour serving constraints; leave it out", param=named)


def refuse_retired_headers(scope: Scope) -> None:
    """`X-Upstream-Verification` asked for something that is now asked in the body (wire contract 2)."""
    for name, _ in scope["headers"]:
        if name == b"x-upstream-verification":
            raise InvalidRequest(
                "the header X-Upstream-Verification is retired; use the member `provider` of the body",
                param="X-Upstream-Verification",
            )
