"""ASGI in our terms: reading a bounded body, writing and hashing an answer, writing an error.

What is hashed is what is handed to the server for the socket, in order, and nothing else (wire contract 5.2).
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

from confide.errors import InvalidRequest, RefusedByUpstream, RequestTooLarge, WireError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

CONNECTION = "confide.connection"

JSON = (b"content-type", b"application/json")
EVENT_STREAM = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
EXPOSED = "X-Receipt-Id, X-ACI-Version, X-ACI-Keyset-Digest, X-E2EE-Applied, X-E2EE-Version, X-E2EE-Algo, Retry-After"
COMMON: tuple[Header, ...] = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", EXPOSED.encode()),
    (b"x-content-type-options", b"nosniff"),
)
PREFLIGHT: tuple[Header, ...] = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"*, Authorization"),
    (b"access-control-max-age", b"86400"),
)


class Connection:
    """The client's connection, which `gateway/http.py` puts into the scope of each request."""

    __slots__ = ("_left", "_transport", "is_gone")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._left: Callable[[], None] | None = None
        self.is_gone = False  # the client closed it; the server drops what it is given from now on

    def on_leave(self, left: Callable[[], None] | None) -> None:
        """Call `left` once when the client leaves, at once where it has left; None: nobody asks any more.

        One request of a connection runs at a time, so there is one to tell. A task that waits in `receive` would cost
        each request a quarter of its time.
        """
        if left is not None and self.is_gone:
            left()
        else:
            self._left = left

    def leave(self) -> None:
        """The client closed it."""
        self.is_gone = True
        left, self._left = self._left, None
        if left is not None:
            left()

    def is_lost(self) -> bool:
        """Whether what is written now reaches nobody: before `is_gone` comes a turn of the loop in which it cannot."""
        return self.is_gone or self._transport.is_closing()

    def abort(self) -> None:
        """Close it at once. What was not sent yet is dropped."""
        self._transport.abort()


def connection_of(scope: Scope) -> Connection:
    """The connection that a request came on."""
    connection: Connection = scope["extensions"][CONNECTION]["connection"]
    return connection


class ClientGone(Exception):
    """The client closed its connection before the request was whole."""


def refuse_retired_headers(scope: Scope) -> None:
    """`X-Upstream-Verification` asked for something that is now asked in the body (wire contract 2)."""
    for name, _ in scope["headers"]:
        if name == b"x-upstream-verification":
            raise InvalidRequest(
                "the header X-Upstream-Verification is retired; use the member `provider` of the body",
                param="X-Upstream-Verification",
            )


async def read_body(receive: Receive, limit: int) -> bytes:
    """The whole body. Raises RequestTooLarge past `limit` bytes, ClientGone when the client left before its end.

    The rest of an upload that is too large is dropped by the server as it arrives; nothing of it is kept.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request" and len(body) <= limit:
        return body
    parts, size = [body], len(body)
    while message["type"] == "http.request" and message.get("more_body", False) and size <= limit:
        message = await receive()
        part: bytes = message.get("body", b"")
        parts.append(part)
        size += len(part)
    if message["type"] == "http.disconnect":
        raise ClientGone
    if size > limit:
        raise RequestTooLarge(f"the request body is larger than {limit} bytes")
    return b"".join(parts)


class Writer:
    """Writes one response and hashes its body as it goes out."""

    def __init__(self, send: Send, common: tuple[Header, ...]) -> None:
        """`common`: the headers that every response carries (`gateway/keysets.py`)."""
        self._send = send
        self._common = common
        self._hash = hashlib.sha256()
        self.is_started = False
        self.is_ended = False
        self.status = 0
        self.sent_bytes = 0

    @property
    def sha256(self) -> bytes:
        """32 bytes over the body handed to the socket so far."""
        return self._hash.digest()

    async def start(self, status: int, headers: tuple[Header, ...]) -> None:
        """Status and headers; ours that every response carries are added."""
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *self._common]})
        self.is_started = True  # not before: a send that was cancelled wrote nothing
        self.status = status

    def add(self, data: bytes) -> None:
        """Hash bytes that are about to be written by `end_added`."""
        self._hash.update(data)
        self.sent_bytes += len(data)

    async def end(self, data: bytes) -> None:
        """The last part of the body, where no proof covers it."""
        self.add(data)
        await self.end_added(data)

    async def end_added(self, data: bytes) -> None:
        """The last part of the body, hashed before by `add`: its proof is stored by now."""
        self.is_ended = True
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


async def write_error(writer: Writer, error: WireError, extra: tuple[Header, ...] = ()) -> None:
    """The error as a whole response (wire contract 4)."""
    body = error_body(error)
    await writer.start(error.status, error_headers(error, body, extra))
    await writer.end(body)


def error_body(error: WireError) -> bytes:
    """The error's envelope as it is sent."""
    if isinstance(error, RefusedByUpstream) and error.raw is not None:
        return error.raw
    return msgspec.json.encode(error.body())


def error_headers(error: WireError, body: bytes, extra: tuple[Header, ...] = ()) -> tuple[Header, ...]:
    """The headers of an error response with this body, besides those of every response."""
    headers: list[Header] = [JSON, (b"content-length", str(len(body)).encode()), *extra]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return tuple(headers)
