"""A verified service as an endpoint of this machine, for tools that cannot verify (an ASGI application).

    confide proxy https://inference.example.com --port 8081      OPENAI_BASE_URL=http://127.0.0.1:8081/v1 tool

Every request goes out through a `confide.AsyncClient`, which verifies the service before it sends and each answer
before it counts; what it refuses becomes something that no tool takes for an answer:

    a buffered answer     502 with the error of wire contract 4, `x-should-retry: false`
    a stream              an error event (2.7, 3.5) in place of its end, no `[DONE]`, and the connection is cut

After the first failure nothing is sent any more until the proxy is restarted. What is no prompt, and a refusal by the
service, is passed on and proves nothing. A redirect is not passed on: the tool would follow it past the proxy.

The tool speaks plain HTTP, and the user's key may be added to what it sends. So a proxy on a loopback address answers
this machine only: not a web page that a browser shows, neither by its origin nor by a name that leads here (DNS
rebinding).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import httpx2
import msgspec

from confide.client.asking import is_loopback
from confide.client.http import AsyncClient
from confide.client.proof import Proof
from confide.client.sending import CREDENTIALS, Destination, is_event_stream
from confide.client.verdict import reason_of
from confide.errors import NotFound, RequestTooLarge, UpstreamFailed, VerificationError, WireError
from confide.evidence.result import Verification
from confide.protocol.messages_errors import messages_error, messages_tail
from confide.telemetry.logs import Log

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

MAX_BODY_BYTES = 32 * 1024 * 1024
TIMEOUTS_S = httpx2.Timeout(connect=10, read=600, write=60, pool=60)  # reading waits for a model to begin

# Of one connection, not of the message (RFC 9110, 7.6.1).
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
NOT_ASKED_ON = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
NOT_ANSWERED_ON = HOP_BY_HOP | {b"alt-svc"}  # it would lead around the proxy
OURS = b"x-confide-"  # only this proxy says such a thing
VERDICT = OURS + b"verdict"
MESSAGES = "/v1/messages"  # and what is below: its SDK reads no errors but those of its own form

# What a log line may name; any other path is the tool's own text.
ENDPOINTS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/responses",
    }
)


class Forbidden(WireError):
    """403: whoever asks is not a tool of this machine."""

    status, type = 403, "permission_error"


class Unproven(UpstreamFailed):
    """502: the service, or its answer, is not verified. `check`: the one that did not hold."""

    def __init__(self, failure: VerificationError) -> None:
        earlier = failure.__cause__ if isinstance(failure.__cause__, VerificationError) else None
        named = earlier or failure
        message = f"{named.check}: {reason_of(named)}"
        if earlier is not None:
            message += " (an earlier failure: this proxy sends nothing more until it is restarted)"
        super().__init__(message)
        self.check = named.check


class ClientLeft(Exception):
    """There is nobody to answer."""


@dataclass
class Record:
    """What a log line says of a request."""

    endpoint: str
    status: int | None = None
    outcome: str = "cancelled"
    check: str | None = None
    receipt_id: str | None = None


class Reply:
    """The response to the tool, with errors in the form of the surface that it asked."""

    def __init__(self, send: Send, record: Record) -> None:
        self._send = send
        self._record = record
        self._is_messages = record.endpoint.startswith(MESSAGES)

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        self._record.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def data(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """A response that is not ended is cut: the server closes the connection."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, error: WireError) -> None:
        """The error as a whole response (wire contract 4)."""
        body = messages_error(error.status, error.message) if self._is_messages else msgspec.json.encode(error.body())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if isinstance(error, Unproven):
            headers.append((b"x-should-retry", b"false"))
        self._note(error)
        await self.start(error.status, headers)
        await self.data(body)
        await self.end()

    async def break_off(self, error: WireError, *, is_stream: bool) -> None:
        """Nothing more comes of a response that has begun; a stream says why (wire contract 2.7, 3.5)."""
        self._note(error)
        if is_stream and self._is_messages:
            await self.data(messages_tail(error.status, error.message))
        elif is_stream:
            told = {"error": {**error.body()["error"], "code": error.status}}
            await self.data(b"data: " + msgspec.json.encode(told) + b"\n\n")

    def passed_on(self, proof: Proof | None) -> None:
        """All of it came; `proof`: of what has to be proven."""
        self._record.outcome = "passed on" if proof is None else proof.verdict.value
        self._record.receipt_id = None if proof is None else proof.receipt_id

    def _note(self, error: WireError) -> None:
        self._record.outcome = "not verified" if isinstance(error, Unproven) else error.type
        self._record.check = error.check if isinstance(error, Unproven) else None


class Proxy:
    """See the module. `root`: of the service, without `/v1`. `api_key`: for tools that send no credential, or None.

    `is_exposed`: it listens where others reach it, and asks nobody where they come from. `log`: a line a request, which
    holds no content.
    """

    def __init__(
        self, client: AsyncClient, root: httpx2.URL, *, api_key: str | None, is_exposed: bool, log: Log
    ) -> None:
        self._client = client
        self._root = str(root).rstrip("/")
        self._api_key = api_key
        self._is_exposed = is_exposed
        self._log = log

    async def verify(self) -> Verification:
        """The service, verified anew. Raises VerificationError, and httpx2.TransportError where it is not reached."""
        return await self._client.verify(f"{self._root}/v1/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.monotonic()
        record = Record(scope["path"] if scope["path"] in ENDPOINTS else "other")
        reply = Reply(send, record)
        try:
            if not self._is_exposed:
                require_local(scope)
            request = self._request(scope, await read_body(receive))
            await while_listening(receive, self._relay(request, reply))
        except WireError as error:
            await reply.refuse(error)
        except ClientLeft:
            record.outcome = "client_left"
        finally:
            self._log.write(
                "request",
                endpoint=record.endpoint,
                status=record.status,
                outcome=record.outcome,
                error=record.check,
                receipt=record.receipt_id,
                ms=round((time.monotonic() - began) * 1000),
            )

    def _request(self, scope: Scope, body: bytes) -> httpx2.Request:
        """What goes to the service. Raises NotFound for what is not under its root: it was not verified."""
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        try:
            url = httpx2.URL(self._root + target.decode("ascii"))
        except (httpx2.InvalidURL, UnicodeDecodeError) as error:
            raise NotFound("the path cannot be read") from error
        if Destination(url).root != self._root:
            raise NotFound("there is nothing of the service at this path; its API is under /v1/")
        headers = kept(scope["headers"], NOT_ASKED_ON)
        if self._api_key is not None and not any(name.lower().decode("latin-1") in CREDENTIALS for name, _ in headers):
            headers.append((b"authorization", f"Bearer {self._api_key}".encode()))
        content = body if body or scope["method"] in ("POST", "PUT", "PATCH") else None
        return httpx2.Request(
            scope["method"], url, headers=headers, content=content, extensions={"timeout": TIMEOUTS_S.as_dict()}
        )

    async def _relay(self, request: httpx2.Request, reply: Reply) -> None:
        """Send it on, and pass on what comes of it."""
        try:
            response = await self._client.send(request, stream=True)
        except VerificationError as failure:
            raise Unproven(failure) from failure
        except (httpx2.TransportError, OSError) as error:
            raise unreachable(error) from error
        except ValueError as error:  # httpx2 reads where a redirect points even where it is not to follow it
            raise redirected() from error
        try:
            await self._pass_on(response, reply)
        finally:
            await response.aclose()

    async def _pass_on(self, response: httpx2.Response, reply: Reply) -> None:
        """The answer as it comes; one that was buffered is proven by now."""
        if response.has_redirect_location:
            raise redirected()
        proof = response.extensions.get("confide.proof")
        await reply.start(response.status_code, answer_headers(response, proof))
        is_stream = is_event_stream(response)
        try:
            async for data in response.aiter_raw():
                await reply.data(data)
        except VerificationError as failure:
            await reply.break_off(Unproven(failure), is_stream=is_stream)
        except httpx2.TransportError as error:
            await reply.break_off(unreachable(error), is_stream=is_stream)
        else:
            reply.passed_on(response.extensions.get("confide.proof"))
            await reply.end()


def require_local(scope: Scope) -> None:
    """Return for a tool of this machine. Raises Forbidden for what a browser brings from elsewhere."""
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if not names_this_machine("http://" + headers.get(b"host", "")):
        raise Forbidden("this proxy answers to a loopback address only; use 127.0.0.1 or localhost")
    if b"origin" in headers and not names_this_machine(headers[b"origin"]):
        raise Forbidden("this proxy answers to tools of this machine only, not to a web page")


def names_this_machine(url: str) -> bool:
    """Whether the host of this URL is a loopback address."""
    try:
        return is_loopback(httpx2.URL(url))
    except httpx2.InvalidURL:
        return False


async def read_body(receive: Receive) -> bytes:
    """The whole body. Raises RequestTooLarge past 32 MiB, ClientLeft when it does not come to its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise RequestTooLarge(f"the request body is larger than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


async def while_listening(receive: Receive, serving: Awaitable[None]) -> None:
    """Carry it out, but for a client that leaves: then it is cancelled, and the service with it. Raises ClientLeft."""
    relaying = asyncio.ensure_future(serving)
    leaving = asyncio.ensure_future(departure(receive))
    try:
        await asyncio.wait({relaying, leaving}, return_when=asyncio.FIRST_COMPLETED)
        has_left = not relaying.done()
    finally:
        relaying.cancel()
        leaving.cancel()
        await asyncio.gather(relaying, leaving, return_exceptions=True)
    if has_left:
        raise ClientLeft
    relaying.result()


async def departure(receive: Receive) -> None:
    """Wait until the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def kept(headers: Iterable[Header], dropped: frozenset[bytes]) -> list[Header]:
    """The headers that are not of this connection, neither by what they are nor because `connection` names them."""
    listed = list(headers)
    named = {
        option.strip().lower()
        for name, value in listed
        if name.lower() == b"connection"
        for option in value.split(b",")
    }
    return [(name, value) for name, value in listed if name.lower() not in dropped | named]


def answer_headers(response: httpx2.Response, proof: Proof | None) -> list[Header]:
    """As the service sent them, and the verdict where the answer is proven."""
    headers = [
        (name.lower(), value)
        for name, value in kept(response.headers.raw, NOT_ANSWERED_ON)
        if not name.lower().startswith(OURS)
    ]
    if proof is not None:
        headers.append((VERDICT, proof.verdict.value.encode()))
        if proof.simulated:
            headers.append((OURS + b"simulated", b"no hardware protection"))
    return headers


def unreachable(error: Exception) -> UpstreamFailed:
    """The service said nothing, or not all; the next request may find it again."""
    return UpstreamFailed(f"the service cannot be reached, or broke off: {type(error).__name__}")


def redirected() -> UpstreamFailed:
    return UpstreamFailed("the service answered with a redirect, which would lead around this proxy")
