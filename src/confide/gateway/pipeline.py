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

from confide.attester.keys import LegacyKeys
from confide.config import Config
from confide.errors import InternalError, SessionNotAccepted, UpstreamNotVerified, WireError
from confide.gateway.auth import Authenticator
from confide.gateway.exits import (
    NOT_ACCEPTED,
    in_our_terms,
    is_receipt_due,
    none_verified,
    outcome_of,
    told,
    why_stopped,
    write_line,
)
from confide.gateway.keysets import CurrentKeyset
from confide.gateway.lifecycle import Lifecycle, Stop
from confide.gateway.models import ModelTable, ServedModel
from confide.gateway.outgoing import NO_E2EE, Comments, Outgoing
from confide.gateway.passage import Passage, Receipts, random_parts, receipt_ids
from confide.gateway.surfaces.base import Surface
from confide.gateway.wire import (
    JSON,
    ClientGone,
    Receive,
    Scope,
    Send,
    connection_of,
    error_headers,
    read_body,
    refuse_retired_headers,
)
from confide.protocol.receipt import Outcome
from confide.protocol.serving import UNCONSTRAINED, parse_constraints
from confide.store.base import Store
from confide.telemetry.logs import Log
from confide.upstream.base import Answering, Head, Prompt, Unserved
from confide.upstream.router import Candidate

ID_BYTES = 16
NOTHING = hashlib.sha256().digest()
Write = Callable[[bytes], Awaitable[None]]


class PromptRoute:
    """One surface of the prompt path as a plain ASGI callable."""

    def __init__(
        self,
        surface: Surface,
        *,
        config: Config,
        authenticator: Authenticator,
        models: ModelTable,
        keys: LegacyKeys,
        keyset: CurrentKeyset,
        store: Store,
        lifecycle: Lifecycle,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self.endpoint = surface.endpoint
        self._surface = surface
        self._config = config
        self._authenticator = authenticator
        self._models = models
        self._keyset = keyset
        self._receipts = Receipts(
            keys=keys, store=store, endpoint=self.endpoint, ttl_s=config.store.receipt_ttl_s, now=now
        )
        self._lifecycle = lifecycle
        self._log = log
        self._now = now
        self._ids = map(surface.new_id, random_parts(ID_BYTES))
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
            write_line(self._log, self.endpoint, writer, passage, ended=self._now())

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
            failure = in_our_terms(error, self._log)
        if failure is not None:
            await self._fail(writer, passage, failure)

    async def _answer(self, scope: Scope, receive: Receive, writer: Outgoing, passage: Passage) -> None:
        try:
            prompt, served = await self._admit(scope, receive, passage)
            writer.receipt_header = passage.receipt_header
            passage.entry.watch()
            await self._serve(prompt, served, writer, passage)
        except asyncio.CancelledError:
            stopped = why_stopped(passage)
            if stopped is None:
                raise
            raise stopped from None

    async def _admit(self, scope: Scope, receive: Receive, passage: Passage) -> tuple[Prompt, ServedModel]:
        """Everything before anybody else is contacted: who asks, what is asked, who can answer.

        With the ids at its end the request counts as understood: from here on every exit leaves a receipt.
        """
        self._lifecycle.check_open()
        passage.principal = self._authenticator.principal(scope["headers"])
        refuse_retired_headers(scope)
        body = await read_body(receive, self._config.server.max_body_bytes)
        passage.request_sha256 = hashlib.sha256(body).digest()
        asked = self._surface.parse(body, self._models)
        constraints = UNCONSTRAINED if asked.provider is None else parse_constraints(asked.provider)
        served = self._models.find(asked.model, self._surface.ways)
        passage.model_id, passage.stream = served.model.id, asked.stream
        passage.head = Head(next(self._ids), int(passage.began), asked.model)
        passage.receipt_id = next(self._receipt_ids)
        prompt = Prompt(
            body,
            passage.request_sha256,
            asked,
            passage.head,
            surface=self._surface.name,
            ways=self._surface.ways,
            constraints=constraints,
            tenant=passage.principal.credential_sha256 or b"",
            tee_only=served.tee_only,
            headers=self._surface.passed(scope["headers"]),
        )
        return prompt, served

    async def _serve(self, prompt: Prompt, served: ServedModel, writer: Outgoing, passage: Passage) -> None:
        """By the first upstream that does; another is asked only as long as no byte of an answer has left."""
        failures: list[Unserved] = []
        for candidate in served.route.pick(prompt, failures):
            try:
                await self._attempt(candidate, prompt, writer, passage)
                return
            except Unserved as unserved:
                failures.append(unserved)
            prompt.is_connection_suspect = failures[-1].is_stale
            reason, is_refused = failures[-1].reason, isinstance(failures[-1].error, NOT_ACCEPTED)
            passage.not_served(candidate.shown_name, reason, is_refused=is_refused)
            self._log.write("attempt", name=candidate.name, reason=reason, model=passage.model_id)
            if writer.is_started:
                break
        if not failures and served.route.serving == "aggregator":
            passage.events.append(none_verified(prompt))
        raise told(failures, served.route)

    async def _attempt(self, candidate: Candidate, prompt: Prompt, writer: Outgoing, passage: Passage) -> None:
        """Verified, rewritten, sent, and answered. Raises Unserved, or WireError where no other could do better."""
        passage.hop = None
        passage.hop = await candidate.ready(prompt)
        passage.answering = answering = await self._surface.accept(candidate, prompt)
        if passage.stream:
            await self._stream(answering, writer, prompt, passage)
        else:
            await self._buffered(answering, writer, prompt, passage)

    async def _buffered(self, answering: Answering, writer: Outgoing, prompt: Prompt, passage: Passage) -> None:
        body = await answering.complete(passage.tally)
        prompt.let_go()
        passage.entry.is_sealed = True
        writer.add(body)
        await self._receipts.keep(passage, writer.sha256, "complete", has_id=True)
        headers = (JSON, (b"content-length", str(len(body)).encode()), NO_E2EE, *writer.receipt_header)
        await writer.start(200, headers)
        await writer.end_added(body)
        if passage.entry.is_client_gone:
            await self._try_to_keep(passage, NOTHING, "client_closed")
            passage.outcome, passage.reason = "client_closed", "left_before_the_answer"

    async def _stream(self, answering: Answering, writer: Outgoing, prompt: Prompt, passage: Passage) -> None:
        every_s = self._config.server.keepalive_comment_s
        if every_s is None:
            await self._relay(answering, writer.write, prompt, passage)
        else:
            async with Comments(writer, every_s) as comments:
                await self._relay(answering, comments.write, prompt, passage)
        await self._end_stream(writer, passage, answering.last, "complete")

    async def _relay(self, answering: Answering, write: Write, prompt: Prompt, passage: Passage) -> None:
        """Write what comes. Until the first byte a failure is an ordinary error response."""
        async with aclosing(answering.stream(passage.tally)) as frames:
            async for data in frames:
                prompt.let_go()
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
            last = self._tail(unproven, passage)
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
            await self._end_stream(writer, passage, self._tail(error, passage), "truncated")

    async def _error_response(self, writer: Outgoing, passage: Passage, error: WireError) -> None:
        """The error as a whole response, with a receipt where one is due (wire contract 7.6)."""
        body = self._surface.error(error, passage.receipt_id)
        passage.outcome = outcome_of(error, passage)
        receipt: tuple[tuple[bytes, bytes], ...] = ()
        if is_receipt_due(error, passage):
            failure = await self._try_to_keep(passage, hashlib.sha256(body).digest(), passage.outcome, has_id=False)
            if failure is None:
                receipt = passage.receipt_header
            elif isinstance(
                error, SessionNotAccepted | UpstreamNotVerified
            ):  # a refusal that cannot be receipted is a 500
                passage.outcome, error = "failed", InternalError("the refusal could not be recorded; try again")
                body = self._surface.error(error, passage.receipt_id)
        writer.add(body)
        await writer.start(error.status, error_headers(error, body, (NO_E2EE, *receipt)))
        await writer.end_added(body)
        if passage.entry.is_client_gone:
            if receipt:
                await self._try_to_keep(passage, NOTHING, "client_closed", has_id=False)
            passage.outcome = "client_closed"

    def _tail(self, error: WireError, passage: Passage) -> bytes:
        """How a stream ends that broke."""
        return self._surface.tail(error, passage.answering, passage.receipt_id)

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
            failure = in_our_terms(error, self._log)
            passage.reason = passage.reason or failure.type
            return failure
        return None
