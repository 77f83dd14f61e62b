"""The one prompt path, top to bottom (architecture 3).

    body, bounded and hashed -> who asks -> what is asked -> which upstream -> answer, hashed as it leaves
    -> receipt committed to the store -> last frame

Every exit goes through `__call__`: done, refused, failed, client gone, drained. Three things hold on each: the upstream
is released before the exit is left, there is one receipt or one stated reason why there is none, and exactly one log
line names the outcome. A receipt covers the bytes that were handed to the server, no more and no less.

    outcome         receipt                                        the client has
    complete        over the whole answer                          all of it
    truncated       over the stream with its error tail            the error tail in place of the rest
    client_closed   over what was sent; none before inference ran  left
    refused         over the error, where the request was          an error response: 4xx, or a 503 before
                    understood and could have been served          inference ran
    failed          over the error                                 an error response, 5xx

No receipt is due for what is not a request that could be served: no valid key, a body that breaks a rule before
inference had it, a service that is shutting down (docs/receipts.md has the whole table).
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import msgspec

from confide.attester.keys import LegacyKeys
from confide.config import Config
from confide.errors import (
    InternalError,
    InvalidRequest,
    LimitReached,
    NotReady,
    RequestRefused,
    SessionNotAccepted,
    WireError,
)
from confide.gateway.auth import Authenticator
from confide.gateway.keysets import CurrentKeyset
from confide.gateway.lifecycle import Lifecycle, Stop, shutting_down
from confide.gateway.models import ModelTable, ServedModel
from confide.gateway.outgoing import NO_E2EE, Comments, Outgoing
from confide.gateway.passage import Passage, Receipts, random_parts, receipt_ids
from confide.gateway.wire import (
    JSON,
    ClientGone,
    Receive,
    Scope,
    Send,
    connection_of,
    error_body,
    error_headers,
    read_body,
)
from confide.protocol.chat import ChatRequest, new_chat_id, parse_chat
from confide.protocol.receipt import Outcome
from confide.protocol.serving import UNCONSTRAINED, Constraints, forwarded_body, parse_constraints
from confide.protocol.sse import DONE, error_tail
from confide.store.base import Store
from confide.telemetry.logs import Log
from confide.upstream.base import Answering, Head
from confide.upstream.images import ImageFetcher

ID_BYTES = 16
NOTHING = hashlib.sha256().digest()
Write = Callable[[bytes], Awaitable[None]]


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
        keyset: CurrentKeyset,
        store: Store,
        lifecycle: Lifecycle,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._authenticator = authenticator
        self._models = models
        self._images = images
        self._keyset = keyset
        self._receipts = Receipts(
            keys=keys, store=store, endpoint=self.endpoint, ttl_s=config.store.receipt_ttl_s, now=now
        )
        self._lifecycle = lifecycle
        self._log = log
        self._now = now
        self._chat_ids = map(new_chat_id, random_parts(ID_BYTES))
        self._receipt_ids = receipt_ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What goes wrong is written to the client, or logged when it is gone; nothing is raised.

        Except a cancellation that is not ours: the server is being torn down.
        """
        connection = connection_of(scope)
        began, standing = self._now(), self._keyset()
        passage = Passage(began, self._lifecycle.enter(connection), standing)  # entered last: from here it leaves
        writer = Outgoing(send, passage.entry, connection, passage.standing.headers)
        try:
            await self._to_its_end(scope, receive, writer, passage)
        except asyncio.CancelledError:
            passage.reason = "torn_down"
            raise
        finally:
            self._lifecycle.leave(passage.entry)
            self._write_log(writer, passage)

    async def _to_its_end(self, scope: Scope, receive: Receive, writer: Outgoing, passage: Passage) -> None:
        """The answer, or what takes its place.

        The client is told outside of the handler: a cancellation that meets us there would carry the error along as its
        context, text and all, into the server's log.
        """
        failure: WireError | None = None
        try:
            await self._answer(scope, receive, writer, passage)
        except ClientGone:
            await self._leave_off(writer, passage)
            if passage.entry.reason is Stop.CLIENT_STALLED:
                connection_of(scope).abort()  # closing would wait for a client that does not read
        except Exception as error:  # noqa: BLE001 - the end of the prompt path: the unknown becomes internal_error
            failure = self._in_our_terms(error)
        if failure is not None:
            await self._fail(writer, passage, failure)

    async def _answer(self, scope: Scope, receive: Receive, writer: Outgoing, passage: Passage) -> None:
        try:
            body, request, served, constraints = await self._admit(scope, receive, passage)
            writer.receipt_header = passage.receipt_header
            refuse_sessions(constraints)
            passage.entry.watch()
            request = await self._handed_over(body, request, served, constraints, passage)
            del body  # megabytes, perhaps, for as long as the answer takes
            assert passage.head is not None
            passage.answering = answering = served.upstream.accept(request, passage.head)
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

    async def _admit(
        self, scope: Scope, receive: Receive, passage: Passage
    ) -> tuple[bytes, ChatRequest, ServedModel, Constraints]:
        """Everything before anybody else is contacted: who asks, what is asked, who can answer.

        With the ids at its end the request counts as understood: from here on every exit leaves a receipt.
        """
        self._lifecycle.check_open()
        passage.principal = self._authenticator.principal(scope["headers"])
        refuse_retired_headers(scope)
        body = await read_body(receive, self._config.server.max_body_bytes)
        passage.request_sha256 = hashlib.sha256(body).digest()
        request = parse_chat(body)
        constraints = UNCONSTRAINED if request.provider is None else parse_constraints(request.provider)
        served = self._models.find(request.model)
        passage.model_id, passage.stream = served.model.id, request.stream
        passage.head = Head(next(self._chat_ids), int(passage.began), request.model)
        passage.receipt_id = next(self._receipt_ids)
        return body, request, served, constraints

    async def _handed_over(
        self, body: bytes, request: ChatRequest, served: ServedModel, constraints: Constraints, passage: Passage
    ) -> ChatRequest:
        """The request as inference gets it, and its hash. Fetching images takes a while and the client may leave; a
        text model refuses them unfetched.
        """
        messages = None
        if "image" in served.model.modalities:
            inlined = await self._images.inline(request)
            if inlined is not request and inlined.messages != request.messages:
                messages = msgspec.json.encode(inlined.messages)
            request = inlined
        forwarded = forwarded_body(
            body,
            drop_constraints=constraints.stated,
            drop_empty_tool_calls=request.had_empty_tool_calls,
            messages=messages,
        )
        is_same = forwarded is body
        passage.forwarded_sha256 = passage.request_sha256 if is_same else hashlib.sha256(forwarded).digest()
        return request

    async def _buffered(self, answering: Answering, writer: Outgoing, passage: Passage) -> None:
        body = await answering.complete(passage.tally)
        passage.entry.is_sealed = True
        writer.add(body)
        await self._receipts.keep(passage, writer.sha256, "complete", has_id=True)
        headers = (JSON, (b"content-length", str(len(body)).encode()), NO_E2EE, *writer.receipt_header)
        await writer.start(200, headers)
        await writer.end_added(body)
        if passage.entry.is_client_gone:
            await self._try_to_keep(passage, NOTHING, "client_closed")
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

    async def _end_stream(self, writer: Outgoing, passage: Passage, last: bytes, outcome: Outcome) -> None:
        """Commit the receipt over everything including `last`, then write `last` (wire contract 5.6).

        Without a receipt the stream must not look whole: then the client sees the error in place of `[DONE]`.
        """
        passage.entry.is_sealed = True
        sent_sha256 = writer.sha256
        writer.add(last)
        unproven = await self._try_to_keep(passage, writer.sha256, outcome)
        if unproven is not None:
            passage.outcome = "truncated"
            last = tail(unproven)
        if not writer.is_started:
            await writer.begin()
        await writer.end_added(last)
        if passage.entry.is_client_gone:  # it left meanwhile: `last` reached nobody, and the newest receipt counts
            await self._try_to_keep(passage, sent_sha256, "client_closed")
            passage.outcome = "client_closed"
            if passage.entry.is_dropped:
                passage.reason = passage.reason or "client_stalled"

    async def _fail(self, writer: Outgoing, passage: Passage, error: WireError) -> None:
        """Tell the client: as an error response, or as the tail of a stream that has begun."""
        passage.entry.is_sealed = True
        passage.reason = passage.reason or error.type
        if not writer.is_started:
            await self._error_response(writer, passage, error)
        elif not writer.is_ended:
            await self._end_stream(writer, passage, tail(error), "truncated")

    async def _error_response(self, writer: Outgoing, passage: Passage, error: WireError) -> None:
        """The error as a whole response, with a receipt where one is due (wire contract 7.6)."""
        body = error_body(error)
        passage.outcome = outcome_of(error, passage)
        receipt: tuple[tuple[bytes, bytes], ...] = ()
        if is_receipt_due(error, passage):
            failure = await self._try_to_keep(passage, hashlib.sha256(body).digest(), passage.outcome, has_id=False)
            if failure is None:
                receipt = passage.receipt_header
            elif isinstance(error, SessionNotAccepted):  # a refusal that cannot be receipted is a 500
                passage.outcome, error = "failed", InternalError("the refusal could not be recorded; try again")
                body = error_body(error)
        writer.add(body)
        await writer.start(error.status, error_headers(error, body, (NO_E2EE, *receipt)))
        await writer.end_added(body)
        if passage.entry.is_client_gone:
            if receipt:
                await self._try_to_keep(passage, NOTHING, "client_closed", has_id=False)
            passage.outcome = "client_closed"

    async def _leave_off(self, writer: Outgoing, passage: Passage) -> None:
        """The client left: what it has is proven, for whoever holds the other end of what it read.

        Also when that is nothing, as long as inference was given the prompt (wire contract 2.7) or the client was given
        the id of the receipt.
        """
        passage.entry.is_sealed = True
        passage.outcome = "client_closed"
        if writer.is_started or passage.is_forwarded:
            await self._try_to_keep(passage, writer.sha256, "client_closed", has_id=bool(writer.sent_bytes))
        else:
            passage.reason = passage.reason or "nothing_sent"

    async def _try_to_keep(
        self, passage: Passage, response_sha256: bytes, outcome: Outcome, *, has_id: bool = True
    ) -> WireError | None:
        """Keep the receipt of an exit; the error to end with where that fails."""
        try:
            await self._receipts.keep(passage, response_sha256, outcome, has_id=has_id)
        except Exception as error:  # noqa: BLE001 - this is the way out: whatever failed, the client still needs its end
            failure = self._in_our_terms(error)
            passage.reason = passage.reason or failure.type
            return failure
        return None

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
            receipt=passage.receipt_id if passage.has_proof else None,
            status=writer.status or None,
            id=passage.head.id if passage.head else None,
            model=passage.model_id,
            key_id=passage.principal.key_id if passage.principal else None,
            stream=passage.stream,
            ms=round((self._now() - passage.began) * 1000, 1),
            prompt_tokens=passage.tally.prompt_tokens,
            completion_tokens=passage.tally.completion_tokens,
        )


def tail(error: WireError) -> bytes:
    """How a stream ends that broke: the error, then `[DONE]`."""
    return error_tail(error.message, error.type, error.status)


def outcome_of(error: WireError, passage: Passage) -> Outcome:
    """A request that was turned away is refused; one that inference was to answer, or that we broke, failed."""
    turned_away = isinstance(error, RequestRefused) or (isinstance(error, NotReady) and not passage.is_forwarded)
    return "refused" if turned_away else "failed"


def is_receipt_due(error: WireError, passage: Passage) -> bool:
    """Not for a request that broke a rule, nor for one that was never understood. Once inference had it, always: that a
    prompt is too long for the model shows only there (wire contract 7.6, backend errors).
    """
    is_rule_broken = isinstance(error, RequestRefused) and not isinstance(error, SessionNotAccepted | LimitReached)
    is_served = passage.is_forwarded or not is_rule_broken
    return passage.receipt_id is not None and is_served and passage.reason != "store"


def refuse_sessions(constraints: Constraints) -> None:
    """A direct service serves inside the workload itself: every answer is verified, and no session is (7.4)."""
    if constraints.session_ids:
        raise SessionNotAccepted(
            "this service answers itself and has no attested sessions; leave aci_session_ids out",
            param="provider.aci_session_ids",
        )


def refuse_retired_headers(scope: Scope) -> None:
    """`X-Upstream-Verification` asked for something that is now asked in the body (wire contract 2)."""
    for name, _ in scope["headers"]:
        if name == b"x-upstream-verification":
            raise InvalidRequest(
                "the header X-Upstream-Verification is retired; use the member `provider` of the body",
                param="X-Upstream-Verification",
            )
