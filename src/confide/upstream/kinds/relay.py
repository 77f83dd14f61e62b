"""What every engine that speaks OpenAI's API has in common: the body is passed on, and the answer back, byte for byte.

Entry: a body whose `model`, `stream` and constraints were read and no more; the engine judges the rest. Exit: the bytes
of the engine's answer, but for what would name it (`kinds/unnamed.py`), with `usage` and the answer's `id` read beside
the path. Headers of the engine are not passed on.

An answer counts as whole when the engine says so: a buffered one by its length, a stream by its last event, or by a
clean end after it has finished; how that looks on each surface is in `kinds/reading*.py`. Anything else is a failure.
Until the first byte of an answer has left, it is the gateway's to ask another upstream (`Unserved`).
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress

import msgspec

from confide.config import KeyHeader
from confide.errors import NotReady, UpstreamFailed, UpstreamTimeout, WireError
from confide.protocol.chat_relayed import RelayedRequest, parse_relayed, relayed_body
from confide.protocol.messages_headers import CURRENT, Headers
from confide.protocol.sse import Cutter, Piece, SseError
from confide.upstream.base import Prompt, SurfaceName, Tally, Unserved, uncounted
from confide.upstream.channel import Channel, ChannelError, Cut, Exchange, NoneFree, NotConnected, Stalled, WrongKey
from confide.upstream.health import Health
from confide.upstream.kinds.reading import Reading, StreamBroken
from confide.upstream.kinds.reading_chat import ChatReading
from confide.upstream.kinds.reading_embeddings import EmbeddingsReading
from confide.upstream.kinds.reading_messages import CountReading, MessagesReading
from confide.upstream.kinds.reading_responses import ResponsesReading
from confide.upstream.kinds.refusals import BUSY, FAILED, REFUSAL_MOST_BYTES, TOO_SLOW, refused
from confide.upstream.kinds.unnamed import Unnamed

ANSWER_MOST_BYTES = 256 * 1024 * 1024  # of a buffered body
COUNT_MOST_BYTES = 64 * 1024  # of one that holds a number
NO_SUCH_ROUTE = frozenset({404, 405, 501})
EVENT_MOST_BYTES = 8 * 1024 * 1024
END_WITHIN_S = 0.05  # after `[DONE]`, for the end of the body: then the connection can serve again
ROOM_AFTER_S = 1  # when to ask again for one of the connections
ENDED_EARLY = "the model stopped before the end of its answer; try again"
JSON = (b"content-type", b"application/json")
READINGS: Mapping[SurfaceName, Callable[[], Reading]] = {
    "chat": lambda: ChatReading(b"/chat/completions"),
    "completions": lambda: ChatReading(b"/completions"),
    "count_tokens": CountReading,
    "embeddings": EmbeddingsReading,
    "messages": MessagesReading,
    "responses": ResponsesReading,
}


class Relay:
    """One engine over one channel. `base_path`: of its API, such as /v1. `api_key`: its own, never the client's, which
    goes in `key_header`. `is_probed_as_messages`: a probe, too, says which version of Messages it speaks. `max_counts`:
    of tokens, at a time.

    `salt_key`: 32 bytes for engines that take `cache_salt`, so that no tenant meets another's cached prompts
    (what-users-ask 23); None for others.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        health: Health,
        base_path: str = "/v1",
        api_key: str | None = None,
        key_header: KeyHeader = "authorization",
        is_probed_as_messages: bool = False,
        max_counts: int = 1,
        salt_key: bytes | None = None,
    ) -> None:
        self.channel = channel
        self.health = health
        self.base_path = base_path
        self._base_path = base_path.encode()
        credential = () if api_key is None else (credential_in(key_header, api_key),)
        self._headers: Headers = (*credential, JSON, (b"accept", b"application/json, text/event-stream"))
        self.probe_headers: Headers = (*credential, CURRENT) if is_probed_as_messages else credential
        self._salt_key = salt_key
        self.max_counts = max_counts
        self.counts = 0  # under way
        self.on_wrong_key: Callable[[], None] | None = None

    def accept(self, prompt: Prompt, model: str, *, within_s: float | None = None) -> "RelayedAnswer":
        """The answer that is to be asked for. Sends nothing. `within_s`: the longest that it may take."""
        asked = prompt.asked if isinstance(prompt.asked, RelayedRequest) else parse_relayed(prompt.body)
        body = relayed_body(
            prompt.body,
            asked,
            model=model,
            drop_constraints=prompt.constraints.stated,
            cache_salt=self._salt(prompt.tenant),
        )
        sha256 = prompt.sha256 if body is prompt.body else hashlib.sha256(body).digest()
        reading = READINGS[prompt.surface]()
        unnamed = Unnamed(asked.model if model != asked.model else None, inside=reading.inside)
        is_count = prompt.surface == "count_tokens"
        return (RelayedCount if is_count else RelayedAnswer)(
            self,
            body,
            sha256,
            reading,
            unnamed,
            health=Health(time.monotonic) if is_count else self.health,  # of a count's nobody asks
            headers=(*self._headers, *prompt.headers) if prompt.headers else self._headers,
            is_fresh=prompt.is_connection_suspect,
            within_s=within_s,
        )

    async def send(
        self, path: bytes, headers: Headers, body: bytes, *, is_fresh: bool, within_s: float | None
    ) -> Exchange:
        """`path`: of the surface, below that of the API. See Channel.send."""
        return await self.channel.send(
            b"POST", self._base_path + path, headers, body, is_fresh=is_fresh, within_s=within_s
        )

    def _salt(self, tenant: bytes) -> str | None:
        """The same for every request of a tenant, and nobody else's: from a secret, and from nothing that it sends."""
        if self._salt_key is None:
            return None
        return hmac.digest(self._salt_key, b"cache_salt" + tenant, "sha256").hex()


class RelayedAnswer:
    """One request on its way to the engine, and its answer back."""

    most_bytes = ANSWER_MOST_BYTES

    def __init__(
        self,
        relay: Relay,
        body: bytes,
        sha256: bytes,
        reading: Reading,
        unnamed: Unnamed,
        *,
        health: Health,
        headers: Headers,
        is_fresh: bool,
        within_s: float | None,
    ) -> None:
        self._headers = headers
        self._is_fresh = is_fresh
        self._within_s = within_s
        self._relay = relay
        self._health = health
        self._body = body
        self._reading = reading
        self._unnamed = unnamed
        self.forwarded_sha256 = sha256
        self.is_forwarded = False
        self.last = b"" if reading.last is None else reading.last
        self.events = 0  # numbered ones that were passed on; none where the surface does not number them
        self._is_done = False

    async def complete(self, tally: Tally) -> bytes:
        """The body of the buffered response. Raises Unserved, RefusedByUpstream."""
        exchange = await self._begin()
        try:
            body = await exchange.read_all(self.most_bytes)
            self._reading.whole(body, tally)  # of a body that is not whole this fails, however its end looked
            body = self._unnamed.body(body)
        except (
            ChannelError,
            msgspec.DecodeError,
            UnicodeDecodeError,
            ValueError,
            StreamBroken,
            RecursionError,
        ) as error:
            raise self._failure(error) from error
        finally:
            exchange.abort()
        self._health.succeeded()
        return body

    async def stream(self, tally: Tally) -> AsyncGenerator[bytes, None]:
        """Whole events as they came, without the last. Raises Unserved before the first, WireError after it."""
        exchange = await self._begin()
        cutter = Cutter(max_event_bytes=EVENT_MOST_BYTES)
        has_begun = False
        try:
            require_event_stream(exchange)
            while not self._is_done and (data := await exchange.read()):
                if out := self._passed(cutter.feed(data), tally):
                    has_begun, self.events = True, self._reading.events
                    yield out
            if self._is_done:
                await rest(exchange)
            else:
                self._require_whole(exchange, cutter.tail)
        except (ChannelError, SseError, StreamBroken, msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            failure = self._failure(error)
            if has_begun and isinstance(failure, Unserved):
                failure = failure.error
            raise failure from error
        finally:
            exchange.abort()
        self._health.succeeded()

    async def _begin(self) -> Exchange:
        """Send it, and have a response with status 200. Raises Unserved, or what the engine has against the request."""
        self.is_forwarded = True  # also while it connects: who leaves meanwhile cannot know how far that was
        try:
            exchange = await self._relay.send(
                self._reading.path, self._headers, self._body, is_fresh=self._is_fresh, within_s=self._within_s
            )
        except ChannelError as error:
            self.is_forwarded = not is_before_sending(error)
            raise self._failure(error) from error
        self._body = b""
        if exchange.status == 200:
            return exchange
        try:
            body = await exchange.read_all(REFUSAL_MOST_BYTES)
        except ChannelError:
            body = b""
        finally:
            exchange.abort()
        failure = self._refusal(exchange, body)
        if isinstance(failure, Unserved):
            self._health.refused(exchange.status, failure.error.retry_after_s)
        else:
            self._health.succeeded()  # it judged the request, which is what it is there for
        raise failure

    def _refusal(self, exchange: Exchange, body: bytes) -> Unserved | WireError:
        """What a response that is no 200 means."""
        return refused(exchange.status, exchange.headers, body, is_aliased=self._unnamed.is_aliased)

    def _passed(self, pieces: list[Piece], tally: Tally) -> bytes:
        """The bytes to write for these events, up to the last. Raises StreamBroken for an event that is an error."""
        out: list[bytes] = []
        for piece in pieces:
            raw, data = piece
            if data is None:
                out.append(raw)
            elif data == b"[DONE]" and self._reading.last is not None:
                self.last, self._is_done = raw, True
                break
            else:
                is_last = self._reading.event(data, tally)
                raw = self._unnamed.event(raw, data)
                if is_last:
                    self.last, self._is_done = raw, True
                    break
                out.append(raw)
        return b"".join(out) if len(out) != 1 else out[0]

    def _require_whole(self, exchange: Exchange, tail: bytes) -> None:
        """The body is over and no last event came. Raises StreamBroken unless its end can be told from a cut."""
        if self._reading.last is not None and tail.strip() in (b"data: [DONE]", b"data:[DONE]"):
            return
        if tail.strip() or exchange.delimited_by_close or not self._reading.has_finished:
            raise StreamBroken("the stream ended before its last event")

    def _failure(self, error: Exception) -> Unserved | WireError:
        """A failure of the channel or of what came over it, and what it says of the engine's health.

        A prompt that an engine took too long for is not given to the next one: it would take as long there.
        """
        if isinstance(error, Stalled):
            self._health.failed()
            slow = UpstreamTimeout(TOO_SLOW)
            return Unserved(slow, "no connection in time") if error.phase == "connect" else slow
        if isinstance(error, WrongKey) and self._relay.on_wrong_key is not None:
            self._relay.on_wrong_key()  # verified again at once, and asked again if that holds
            return Unserved(UpstreamFailed(FAILED), "another TLS key", is_stale=True)
        if isinstance(error, NoneFree):  # the bound is ours: the engine is no less well for it
            return none_free()
        if isinstance(error, NotConnected):
            self._health.failed()
            return Unserved(UpstreamFailed(FAILED), "no connection")
        is_stale = isinstance(error, Cut) and not error.response_started
        if not is_stale:
            self._health.failed()
        ended: WireError = UpstreamFailed(ENDED_EARLY)
        return Unserved(ended, "broke off" if isinstance(error, Cut) else "no whole answer", is_stale=is_stale)


class RelayedCount(RelayedAnswer):
    """The question how many tokens a prompt has, on its way to the engine; `complete` has the number in its tally.

    Engines limit it apart from prompts, and may lack it. So what it meets is no word on how prompts fare, and rests or
    leaves no upstream alone, but that one which counts is there. Nor are all connections theirs: a prompt finds one.
    """

    most_bytes = COUNT_MOST_BYTES

    async def complete(self, tally: Tally) -> bytes:
        """See RelayedAnswer.complete."""
        relay = self._relay
        if relay.counts >= relay.max_counts:
            raise none_free()
        relay.counts += 1
        try:
            body = await super().complete(tally)
        finally:
            relay.counts -= 1
        relay.health.succeeded()
        return body

    def _refusal(self, exchange: Exchange, body: bytes) -> Unserved | WireError:
        if exchange.status in NO_SUCH_ROUTE:  # or no such model, which comes to the same
            return Unserved(uncounted(), f"status {exchange.status}")
        return super()._refusal(exchange, body)


def credential_in(header: KeyHeader, key: str) -> tuple[bytes, bytes]:
    """The header that carries an upstream's key."""
    if header == "x-api-key":
        return b"x-api-key", key.encode()
    return b"authorization", b"Bearer " + key.encode()


def none_free() -> Unserved:
    """As many requests are under way as may be."""
    return Unserved(NotReady(BUSY, retry_after_s=ROOM_AFTER_S), "no connection free")


def is_before_sending(error: ChannelError) -> bool:
    """Whether not a byte of the request has left."""
    return isinstance(error, NotConnected) or (isinstance(error, Stalled) and error.phase == "connect")


def require_event_stream(exchange: Exchange) -> None:
    """Raises StreamBroken for a whole body where a stream was asked for: it would be passed on as one that broke."""
    kinds = [value for name, value in exchange.headers if name == b"content-type"]
    if not kinds or not kinds[0].lower().startswith(b"text/event-stream"):
        raise StreamBroken("no event stream")


async def rest(exchange: Exchange) -> None:
    """Let the body end, if it does so at once: then the connection can serve again."""
    with suppress(ChannelError, TimeoutError):
        async with asyncio.timeout(END_WITHIN_S):
            while await exchange.read():
                pass
