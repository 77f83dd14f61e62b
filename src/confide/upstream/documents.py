"""An upstream's documents, fetched before it is trusted: any key may answer, and which one did is noted.

Each is one GET over a connection of its own, to the address that prompts go to. No proxy, no redirect, no cookie.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import httpx2

from confide.protocol.canonical import MAX_DOCUMENT_BYTES
from confide.protocol.pins import spki_of
from confide.upstream.tls import client_context
from confide.upstream.verified import CannotVerify, DoesNotHold

WITHIN_S = 30.0
CONNECT_S = 5.0


@dataclass(frozen=True)
class Document:
    """What came. `spki_sha256`: of the key on that very connection, 32 bytes; all zero, which no key has, for one that
    cannot be read.
    """

    body: bytes
    spki_sha256: bytes


class Documents:
    """Of one upstream. `root`: scheme, host, port and the path before `/v1`. No credential goes to whoever answers."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._headers = {"accept-encoding": "identity", "user-agent": "confide"}

    async def get(self, path: str) -> Document:
        """`path`: under the root, with its query; within WITHIN_S seconds in all, so that no prompt waits for longer.

        Raises CannotVerify, DoesNotHold for a document that is none.
        """
        timeout = {"connect": CONNECT_S, "read": WITHIN_S, "write": WITHIN_S, "pool": WITHIN_S}
        opened = Opened()
        extensions = {"timeout": timeout, "trace": opened.trace}
        request = httpx2.Request("GET", self.root + path, headers=self._headers, extensions=extensions)
        try:
            async with (
                asyncio.timeout(WITHIN_S),
                opened,
                httpx2.AsyncHTTPTransport(verify=any_key(), trust_env=False) as transport,
            ):
                response = await transport.handle_async_request(request)
                try:
                    return await read(response)
                finally:
                    await response.aclose()
        except (httpx2.TransportError, ssl.SSLError, OSError) as error:
            raise CannotVerify(f"its attestation could not be fetched: {type(error).__name__}") from error


class Opened:
    """Closes the connections of one request, however that ends: one whose TLS handshake is cancelled the library does
    not close, nor does it close with its transport.
    """

    def __init__(self) -> None:
        self._streams: list[AsyncClosing] = []

    async def trace(self, event: str, members: Mapping[str, Any]) -> None:
        """The library's account of itself (httpx2's extension `trace`)."""
        if event == "connection.connect_tcp.complete":
            self._streams.append(members["return_value"])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self._streams:
            await stream.aclose()


class AsyncClosing(Protocol):
    """What can be closed, once or more often."""

    async def aclose(self) -> None: ...


def any_key() -> ssl.SSLContext:
    """A context for a connection to whoever answers."""
    return client_context(frozenset())


async def read(response: httpx2.Response) -> Document:
    """Raises CannotVerify for a status that may be another in a minute, DoesNotHold for any other that is not 200."""
    status = response.status_code
    if status == 429 or status >= 500:
        raise CannotVerify(f"it answered status {status} when it was asked for its attestation")
    if status != 200:
        raise DoesNotHold(f"it answered status {status} when it was asked for its attestation")
    tls = response.extensions["network_stream"].get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(True)  # before the body: after it the socket may be closed
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_raw():
        parts.append(part)
        size += len(part)
        if size > MAX_DOCUMENT_BYTES:
            raise DoesNotHold(f"its attestation is larger than {MAX_DOCUMENT_BYTES} bytes")
    return Document(b"".join(parts), spki_of(certificate) or bytes(32))
