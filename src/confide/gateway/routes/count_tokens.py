"""`POST /v1/messages/count_tokens`: how many tokens a prompt has.

A prompt is in it, so it goes nowhere that a prompt would not: the same keys, bounds and constraints, the same upstreams
in the same order, verified first. Whoever speaks Messages itself is asked, and of its answer one number is passed on;
the embedded engine counts by the prompt that it would be given. Nothing is generated, and there is no receipt.
"""

import asyncio
from collections.abc import Callable

import msgspec

from confide.config import Config
from confide.errors import InvalidRequest, UpstreamTimeout, WireError
from confide.gateway.auth import Authenticator
from confide.gateway.exits import NOT_ACCEPTED, in_our_terms, outcome_of, told, why_stopped, write_line
from confide.gateway.keysets import CurrentKeyset
from confide.gateway.lifecycle import Lifecycle
from confide.gateway.models import ModelTable, ServedModel
from confide.gateway.outgoing import Outgoing
from confide.gateway.passage import Passage
from confide.gateway.surfaces.messages import Messages
from confide.gateway.surfaces.translated import renamed
from confide.gateway.wire import (
    JSON,
    ClientGone,
    Header,
    Receive,
    Scope,
    Send,
    connection_of,
    error_headers,
    read_body,
    refuse_retired_headers,
)
from confide.protocol.chat_relayed import RelayedRequest, parse_relayed
from confide.protocol.messages_request import RENAMED, CountTokensRequest, parse_count_tokens
from confide.protocol.serving import UNCONSTRAINED, parse_constraints
from confide.telemetry.logs import Log
from confide.upstream.base import Head, Prompt, SurfaceName, Tally, TokenCounting, Unserved, uncounted
from confide.upstream.kinds.refusals import TOO_SLOW
from confide.upstream.router import Candidate, Route

SURFACE: SurfaceName = "count_tokens"


class CountRoute:
    """The route as a plain ASGI callable. `surface`: whose requests are counted, and whose errors these are."""

    def __init__(
        self,
        surface: Messages,
        *,
        config: Config,
        authenticator: Authenticator,
        models: ModelTable,
        keyset: CurrentKeyset,
        lifecycle: Lifecycle,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self.endpoint = f"{surface.endpoint}/count_tokens"
        self._surface = surface
        self._max_body_bytes = config.server.max_body_bytes
        self._within_s = config.limits.first_byte_timeout_s
        self._authenticator = authenticator
        self._models = models
        self._keyset = keyset
        self._lifecycle = lifecycle
        self._log = log
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. What goes wrong is written to the client; only another's cancellation is raised."""
        connection = connection_of(scope)
        began, standing = self._now(), self._keyset()
        passage = Passage(began, self._lifecycle.enter(connection), standing)
        writer = Outgoing(send, passage.entry, connection, standing.headers)
        try:
            await self._to_its_end(scope, receive, writer, passage)
        except asyncio.CancelledError:
            passage.reason = "torn_down"
            raise
        finally:
            self._lifecycle.leave(passage.entry)
            write_line(self._log, self.endpoint, writer, passage, ended=self._now())

    async def _to_its_end(self, scope: Scope, receive: Receive, writer: Outgoing, passage: Passage) -> None:
        """The number, or what takes its place; outside of the handler, as on the prompt path."""
        try:
            count = await self._counted(scope, receive, passage)
        except ClientGone:
            passage.outcome, passage.reason = "client_closed", "nothing_sent"
            return
        except Exception as error:  # noqa: BLE001 - the end of this route: the unknown becomes internal_error
            failure: WireError | None = in_our_terms(error, self._log)
        else:
            failure = None
        if failure is None:
            passage.outcome = "complete"
            body = msgspec.json.encode({"input_tokens": count})
            await self._respond(writer, passage, 200, (JSON, (b"content-length", b"%d" % len(body))), body)
        else:
            passage.outcome, passage.reason = outcome_of(failure, passage), passage.reason or failure.type
            body = self._surface.error(failure, None)
            await self._respond(writer, passage, failure.status, error_headers(failure, body), body)

    async def _respond(
        self, writer: Outgoing, passage: Passage, status: int, headers: tuple[Header, ...], body: bytes
    ) -> None:
        passage.entry.is_sealed = True
        await writer.start(status, headers)
        await writer.end(body)
        if passage.entry.is_client_gone:
            passage.outcome = "client_closed"

    async def _counted(self, scope: Scope, receive: Receive, passage: Passage) -> int:
        """Raises WireError, ClientGone. Whatever ends it ends the question to the upstream at once."""
        try:
            prompt, served = await self._admit(scope, receive, passage)
            passage.entry.watch()
            async with asyncio.timeout(self._within_s):
                return await self._by_first(prompt, served.route, passage)
        except TimeoutError:
            raise UpstreamTimeout(TOO_SLOW) from None
        except asyncio.CancelledError:
            stopped = why_stopped(passage)
            if stopped is None:
                raise
            raise stopped from None

    async def _admit(self, scope: Scope, receive: Receive, passage: Passage) -> tuple[Prompt, ServedModel]:
        """Everything before anybody else is contacted, as for a prompt."""
        self._lifecycle.check_open()
        passage.principal = self._authenticator.principal(scope["headers"])
        refuse_retired_headers(scope)
        body = await read_body(receive, self._max_body_bytes)
        asked = self._parsed(body)
        constraints = UNCONSTRAINED if asked.provider is None else parse_constraints(asked.provider)
        served = self._models.find(asked.model, self._surface.ways)
        passage.model_id = served.model.id
        if SURFACE not in served.route.surfaces:
            raise uncounted()
        prompt = Prompt(
            body,
            b"",  # no receipt will name it
            asked,
            Head("", int(passage.began), asked.model),
            surface=SURFACE,
            ways=frozenset({SURFACE}),
            constraints=constraints,
            tenant=passage.principal.credential_sha256 or b"",
            tee_only=served.tee_only,
            headers=self._surface.passed(scope["headers"]),
        )
        return prompt, served

    def _parsed(self, body: bytes) -> RelayedRequest | CountTokensRequest:
        """As much as it takes to find who counts, where an upstream judges the body itself."""
        return parse_relayed(body) if self._models.is_spoken(self._surface.name) else parse_count_tokens(body)

    async def _by_first(self, prompt: Prompt, route: Route, passage: Passage) -> int:
        """By the first upstream that counts."""
        failures: list[Unserved] = []
        for candidate in route.pick(prompt, failures):
            try:
                return await self._attempt(candidate, prompt, passage)
            except Unserved as unserved:
                failures.append(unserved)
            prompt.is_connection_suspect = failures[-1].is_stale
            self._log.write("attempt", name=candidate.name, reason=failures[-1].reason, model=passage.model_id)
        failed = [each for each in failures if not isinstance(each.error, (InvalidRequest, *NOT_ACCEPTED))]
        raise told(failed or failures, route)  # that one cannot count only where none failed to

    async def _attempt(self, candidate: Candidate, prompt: Prompt, passage: Passage) -> int:
        """Verified first, then asked. Raises Unserved, or WireError where no other could do better."""
        passage.answering = None
        await candidate.ready(prompt)
        if isinstance(candidate.upstream, TokenCounting):
            return await counted_here(candidate.upstream, prompt)
        passage.answering = answering = await candidate.accept(prompt)
        tally = Tally()  # its own: tokens in the log are those of inference
        await answering.complete(tally)
        return tally.prompt_tokens


async def counted_here(upstream: TokenCounting, prompt: Prompt) -> int:
    """By the chat request that the prompt becomes. Raises WireError, which names members as the client does.

    While it waits for its turn only the bytes of it are kept: what they decode to may be ten times as much.
    """
    body = prompt.body
    prompt.let_go()
    try:
        return await upstream.count_tokens(lambda: parse_count_tokens(body).chat_body())
    except WireError as error:
        raise renamed(error, RENAMED) from None
