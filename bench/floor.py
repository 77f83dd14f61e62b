"""The floor, a process of its own: `python -m bench.floor SOCKET_OR_PORT`. The least that a Python relay can do.

It parses the request, forwards its body over a pooled connection, parses the response, and writes it on: a
buffered answer whole, each chunk of a stream as a chunk. Asyncio protocols on uvloop, httptools on both sides, as the
service has; connections are kept alive on both. It leaves out all that Confide is for: it knows no keys, looks into no
body, hashes, signs and stores nothing, has no limits and no timeouts, writes no log, and does not notice who leaves.
"""

import asyncio
import json
import sys
from typing import cast

import httptools
import uvloop

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: engine\r\nContent-Length: %d\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


class Engines:
    """Connections to the engine that wait for a request, the last used first."""

    def __init__(self, address: str, kind: "type[Upstream] | None" = None) -> None:
        self._address = address
        self._kind = kind or Upstream
        self._idle: list[Upstream] = []

    def ask(self, body: bytes, client: "Client") -> None:
        """Forward one request; the answer goes to `client`."""
        if self._idle:
            self._idle.pop().start(body, client)
        else:
            asyncio.get_running_loop().create_task(self._open(body, client))

    def release(self, upstream: "Upstream") -> None:
        self._idle.append(upstream)

    async def _open(self, body: bytes, client: "Client") -> None:
        loop, address = asyncio.get_running_loop(), self._address
        if address.isdecimal():
            _, upstream = await loop.create_connection(lambda: self._kind(self), "127.0.0.1", int(address))
        else:
            _, upstream = await loop.create_unix_connection(lambda: self._kind(self), address)
        upstream.start(body, client)


class Upstream(asyncio.Protocol):
    """One connection to the engine."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def start(self, body: bytes, client: "Client") -> None:
        self._client = client
        self._is_stream = False
        self._body = b""
        self._transport.write(HEAD % len(body) + body)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"transfer-encoding":
            self._is_stream = True

    def on_headers_complete(self) -> None:
        if self._is_stream:
            self._client.transport.write(STREAM_HEAD)

    def on_body(self, data: bytes) -> None:
        if self._is_stream:
            self._client.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._body += data

    def on_message_complete(self) -> None:
        if self._is_stream:
            self._client.transport.write(b"0\r\n\r\n")
        else:
            self._client.transport.write(WHOLE_HEAD % len(self._body) + self._body)
        self._engines.release(self)


class Client(asyncio.Protocol):
    """One connection of a client, one request at a time."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        self._engines.ask(body, self)


async def main(engines: Engines) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(lambda: Client(engines), "127.0.0.1", 0, backlog=2048)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(Engines(sys.argv[1])))
