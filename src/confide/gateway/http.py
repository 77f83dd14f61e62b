"""Uvicorn's HTTP/1.1 protocol, with what a service that must notice every departure needs.

- A request pipelined behind a running one does not stop the reading of the socket: that is how a client that leaves is
  noticed. How many may wait is bounded.
- A running request is told that its client left also when another one waits behind it.
- What is not HTTP gets the error shape of wire contract 4 and no traceback.
- A request can ask its connection whether it is lost, and can close it at once: `wire.connection_of(scope)`.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from confide.errors import InvalidRequest
from confide.gateway.wire import COMMON, CONNECTION, JSON, Connection, Header

PIPELINED_MOST = 8
NOT_HTTP = msgspec.json.encode(InvalidRequest("the request is not HTTP/1.1").body())


class Protocol(HttpToolsProtocol):
    """One connection of a client. `common` gives the headers of every response; see `announcing`."""

    common: Callable[[], tuple[Header, ...]] = staticmethod(lambda: COMMON)
    _running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a wider base in stubs
        super().connection_made(transport)
        self._connection = Connection(transport)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: {"connection": self._connection}}

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED_MOST:
            self.transport.abort()
        elif self.pipeline:
            self.flow.resume_reading()

    def eof_received(self) -> None:
        """Whoever closes one direction has left: the transport closes the other as soon as it has nothing to send."""
        self._gone()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gone()

    def _gone(self) -> None:
        self._connection.leave()
        for cycle in (self._running, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        headers = (JSON, (b"content-length", b"%d" % len(NOT_HTTP)), (b"connection", b"close"), *self.common())
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n" + lines + b"\r\n" + NOT_HTTP)
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)


def announcing(common: Callable[[], tuple[Header, ...]]) -> type[Protocol]:
    """The protocol whose own responses, too, carry the headers of this service."""
    return type("Protocol", (Protocol,), {"common": staticmethod(common)})
