"""The one prompt path, top to bottom (architecture 3).

    body, bounded and hashed -> who asks -> what is asked -> which upstream -> answer, hashed as it leaves
    -> proof committed to the store -> last frame

Every exit goes through `_answer`: done, refused, failed, client gone, drained. Two things hold on each: the upstream
is released before the exit is left, and exactly one log line names the outcome. A proof is stored for every answer of
which bytes reached the client; the line says why where there is none.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import msgspec

from confide.attester.keys import LegacyKeys
from confide.config import Config
from confide.errors import InternalError, InvalidRequest, NotReady, ServingFailed, WireError
from confide.gateway.auth import Authenticator, Principal
from confide.gateway.lifecycle import InFlight, Lifecycle, Stop
from confide.gateway.models import ModelTable
from confide.gateway.wire import (
    EVENT_STREAM,
    JSON,
    ClientGone,
    Receive,
    Scope,
    Send,
    Writer,
    read_body,
    write_error,
)
from confide.protocol.chat import new_chat_id, parse_chat
from confide.protocol.sse import DONE, error_tail
from confide.store.base import Proof, Store
from confide.telemetry.logs import Log
from confide.upstream.base import Answering, Head, Tally

NO_E2EE = (b"x-e2ee-applied", b"false")
SHUTTING_DOWN = "the service is shutting down"


class Passage:
    """What is known of one request on its way through; the log line is made of it."""

    __slots__ = ("began", "head", "model_id", "outcome", "principal", "reason", "request_sha256", "stream", "tally")

    def __init__(self, began: float) -> None:
        self.began = began
        self.outcome = "failed"
        self.reason: str | None = None
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
        keys: LegacyKeys,
        store: Store,
        lifecycle: Lifecycle,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._authenticator = authenticator
        self._models = models
        self._keys = keys
        self._store = store
        self._lifecycle = lifecycle
        self._log = log
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Never raises: what goes wrong is written to the client, or logged when it is gone."""
        writer, passage = Writer(send), Passage(self._now())
        try:
            await self._answer(scope, receive, writer, passage)
        except WireError as error:
            await self._fail(writer, passage, error)
        except ClientGone:
            passage.outcome, passage.reason = "client_closed", "the client left before its request was whole"
        except Exception as error:  # noqa: BLE001 - the end of the prompt path: the unknown becomes internal_error
            self._log.write("fault", error=type(error).__name__)
            await self._fail(writer, passage, InternalError("something went wrong on our side; it was recorded"))
        finally:
            self._write_log(writer, passage)

    async def _fail(self, writer: Writer, passage: Passage, error: WireError) -> None:
        """Tell the client: as an error response, or as the tail of a stream that has begun."""
        passage.reason = error.type
        if not writer.is_started:
            passage.outcome = "failed" if isinstance(error, ServingFailed) else "refused"
            await write_error(writer, error, (NO_E2EE,))
        elif not writer.is_ended:
            passage.outcome = "truncated"
            await writer.end(error_tail(error.message, error.type, error.status))

    async def _answer(self, scope: Scope, receive: Receive, writer: Writer, passage: Passage) -> None:
        entry = self._lifecycle.enter()
        try:
            answering = await self._admit(scope, receive, passage)
            leaving = asyncio.create_task(stop_when_gone(receive, entry))
            try:
                await self._serve(answering, writer, passage, entry)
            finally:
                leaving.cancel()
        finally:
            self._lifecycle.leave(entry)

    async def _admit(self, scope: Scope, receive: Receive, passage: Passage) -> Answering:
        """Everything before the upstream is contacted: who asks, what is asked, who can answer."""
        passage.principal = self._authenticator.principal(scope["headers"])
        refuse_retired_headers(scope)
        body = await read_body(receive, self._config.server.max_body_bytes)
        passage.request_sha256 = hashlib.sha256(body).digest()
        request = parse_chat(body)
        served = self._models.find(request.model)
        passage.model_id, passage.stream = served.model.id, request.stream
        passage.head = Head(new_chat_id(os.urandom(16)), int(passage.began), request.model)
        return served.upstream.accept(request, passage.head)

    async def _serve(self, answering: Answering, writer: Writer, passage: Passage, entry: InFlight) -> None:
        try:
            if passage.stream:
                await self._stream(answering, writer, passage, entry)
            else:
                await self._buffered(answering, writer, passage, entry)
        except asyncio.CancelledError:
            if entry.reason is None:
                raise  # not ours: the server is being torn down
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            await self._stopped(entry.reason, writer, passage)

    async def _buffered(self, answering: Answering, writer: Writer, passage: Passage, entry: InFlight) -> None:
        body = await answering.complete(passage.tally)
        writer.add(body)
        entry.is_sealed = True
        await self._prove(writer, passage, "complete")
        await writer.start(200, (JSON, (b"content-length", str(len(body)).encode()), NO_E2EE))
        await writer.end_added(body)

    async def _stream(self, answering: Answering, writer: Writer, passage: Passage, entry: InFlight) -> None:
        async with aclosing(answering.stream(passage.tally)) as frames:
            first = await anext(frames)  # until here a failure is an ordinary error response
            await writer.start(200, (*EVENT_STREAM, NO_E2EE))
            await writer.write(first)
            last = await self._relay(frames, writer, passage)
        entry.is_sealed = True
        await self._end_stream(writer, passage, last)

    async def _relay(self, frames: AsyncGenerator[bytes, None], writer: Writer, passage: Passage) -> bytes:
        """Write what comes; return the last frame, which is not written yet: `[DONE]`, or the error tail."""
        try:
            async for data in frames:
                await writer.write(data)
        except WireError as error:
            passage.outcome, passage.reason = "truncated", error.type
            return error_tail(error.message, error.type, error.status)
        passage.outcome = "complete"
        return DONE

    async def _end_stream(self, writer: Writer, passage: Passage, last: bytes) -> None:
        """Commit the proof over everything including `last`, then write `last` (wire contract 5.6)."""
        writer.add(last)
        try:
            await self._prove(writer, passage, passage.outcome)
        except NotReady as error:
            # Without a proof the stream must not look whole: the client sees the error instead of `[DONE]`.
            passage.outcome, passage.reason = "truncated", "store"
            last = error_tail(error.message, error.type, error.status)
        await writer.end_added(last)

    async def _stopped(self, reason: Stop, writer: Writer, passage: Passage) -> None:
        """The answer was stopped from outside: the client left, or the drain window is over."""
        if reason is Stop.DRAIN and not writer.is_started:
            raise NotReady(SHUTTING_DOWN, retry_after_s=5)
        if reason is Stop.DRAIN:
            passage.outcome, passage.reason = "truncated", "drain"
            await self._end_stream(writer, passage, error_tail(SHUTTING_DOWN, NotReady.type, NotReady.status))
            return
        passage.outcome = "client_closed"
        if writer.sent_bytes:
            await self._prove(writer, passage, "client_closed")
        else:
            passage.reason = "no byte was sent, no proof is due"

    async def _prove(self, writer: Writer, passage: Passage, outcome: str) -> None:
        """Return once the proof over the bytes so far is durable. Raises NotReady when it cannot be kept."""
        assert passage.head is not None
        assert passage.principal is not None
        now = int(self._now())
        proof = Proof(
            chat_id=passage.head.id,
            model=passage.head.model,
            request_sha256=passage.request_sha256,
            response_sha256=writer.sha256,
            outcome=outcome,
            credential_sha256=passage.principal.credential_sha256,
            created_at=now,
            expires_at=now + self._config.store.receipt_ttl_s,
            seal=bytes(32),
        )
        seal = self._keys.seal_record(proof.sealed_bytes())
        await self._store.commit(msgspec.structs.replace(proof, seal=seal))
        passage.outcome = outcome

    def _write_log(self, writer: Writer, passage: Passage) -> None:
        self._log.write(
            "request",
            endpoint=self.endpoint,
            outcome=passage.outcome,
            reason=passage.reason,
            status=writer.status or None,
            id=passage.head.id if passage.head else None,
            model=passage.model_id,
            key_id=passage.principal.key_id if passage.principal else None,
            stream=passage.stream,
            ms=round((self._now() - passage.began) * 1000, 1),
            prompt_tokens=passage.tally.prompt_tokens,
            completion_tokens=passage.tally.completion_tokens,
        )


async def stop_when_gone(receive: Receive, entry: InFlight) -> None:
    """Wait for the client to leave; runs from before the upstream is contacted until the answer is over."""
    while (await receive())["type"] != "http.disconnect":
        pass
    entry.stop(Stop.CLIENT_GONE)


def refuse_retired_headers(scope: Scope) -> None:
    """`X-Upstream-Verification` asked for something that is now asked in the body (wire contract 2)."""
    for name, _ in scope["headers"]:
        if name == b"x-upstream-verification":
            raise InvalidRequest(
                "the header X-Upstream-Verification is retired; use the member `provider` of the body",
                param="X-Upstream-Verification",
            )
