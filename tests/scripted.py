"""An HTTP/1.1 upstream that does what a script says and records what it saw: requests, and clients that left.

    async with ScriptedUpstream([sse_head(), frame(b"1"), gate, frame(b"2")]) as upstream:
        ...
        await upstream.left(1)
        assert upstream.departures[0].at - left_at < ABORT_WITHIN_S

A script is a list of steps, carried out once a request was read: bytes are written, an asyncio.Event is waited for,
CLOSE, CUT and RESET end the connection, HANG waits for the client to leave, TURN lets a client in the same loop read
what was written, REPEAT writes the step after it until the client leaves. After the last step the connection waits for
another request. The first request gets the first script, and so on; the last script serves all that follow. Where
`choose` is set, it picks the script by the request instead.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import httptools

from tls_files import TlsFiles


class Step(Enum):
    CLOSE = "close"  # a FIN, after all that was written, and with TLS after its own end
    CUT = "cut"  # a FIN alone, as somebody in between would send it
    RESET = "reset"  # a RST on TCP; on a unix socket an end like any other
    HANG = "hang"
    REPEAT = "repeat"
    TURN = "turn"


CLOSE, CUT, RESET, HANG, REPEAT, TURN = Step

ABORT_WITHIN_S = 0.5  # the budget is 0.1, and a machine that runs other tests takes longer than one that serves
Script = Sequence[bytes | asyncio.Event | Step]


@dataclass(frozen=True)
class SeenRequest:
    """One request as it came. `headers` names are in lower case; `at` is loop time."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    connection: int
    at: float


@dataclass(frozen=True)
class Departure:
    """A client that closed before the script was done. `request` indexes `ScriptedUpstream.requests`."""

    request: int
    at: float


def response(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole response with a length."""
    lines = [b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked_head(*headers: bytes, status: bytes = b"200 OK") -> bytes:
    """The head of a response in chunks."""
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n"


def sse_head() -> bytes:
    """The head of a stream of events."""
    return chunked_head(b"Content-Type: text/event-stream")


def chunk(data: bytes) -> bytes:
    """One chunk; of nothing, the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = chunk(b"")


def server_tls(files: TlsFiles) -> ssl.SSLContext:
    """What a ScriptedUpstream needs to be this key's; `load_cert_chain` makes it another's for all who come then."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    return context


class ScriptedUpstream:
    """The server. Listens on a unix socket when `path` is given, else on a TCP port of 127.0.0.1."""

    def __init__(self, *scripts: Script, path: Path | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.scripts = scripts
        self.choose: Callable[[SeenRequest], Script] | None = None
        self.requests: list[SeenRequest] = []
        self.departures: list[Departure] = []
        self.bytes_received = 0
        self.accepted = 0  # connections, ever
        self.open: set[_Connection] = set()
        self.path = path
        self.port = 0
        self.tls = tls
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.vanish()

    async def listen(self) -> None:
        """Accept connections: after `vanish`, where it did before."""
        loop = asyncio.get_running_loop()
        if self.path is not None:
            self._server = await loop.create_unix_server(lambda: _Connection(self), str(self.path), ssl=self.tls)
        else:
            self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, ssl=self.tls)
            self.port = self._server.sockets[0].getsockname()[1]

    async def vanish(self) -> None:
        """Refuse connections from now on, and drop those there are."""
        self._server.close()
        for connection in list(self.open):
            connection.transport.abort()
        await self.until_open(0)
        await self._server.wait_closed()

    def hang_up(self, connections: "set[_Connection] | None" = None) -> None:
        """Close those of these connections, or of all, on which no answer is under way."""
        for connection in list(self.open if connections is None else connections):
            if connection.task is None or connection.task.done():
                connection.transport.close()

    def script(self, index: int) -> Script:
        """What the request of this index gets."""
        if self.choose is not None:
            return self.choose(self.requests[index])
        return self.scripts[min(index, len(self.scripts) - 1)]

    async def asked(self, count: int) -> None:
        """Wait until so many requests were read."""
        await self._until(lambda: len(self.requests) >= count)

    async def left(self, count: int) -> None:
        """Wait until so many clients left before their script was done."""
        await self._until(lambda: len(self.departures) >= count)

    async def until_open(self, count: int) -> None:
        """Wait until so many connections are open."""
        await self._until(lambda: len(self.open) == count)

    def changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await self._changed.wait()


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self.loop = asyncio.get_running_loop()
        self.parser = httptools.HttpRequestParser(self)
        self.writable = asyncio.Event()
        self.writable.set()
        self.task: asyncio.Task[None] | None = None
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.upstream.accepted += 1
        self.number = self.upstream.accepted
        self.upstream.open.add(self)
        self.upstream.changed()

    def data_received(self, data: bytes) -> None:
        self.upstream.bytes_received += len(data)
        self.parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.open.discard(self)
        if self.task is not None and not self.task.done():
            self.upstream.departures.append(Departure(self.request, self.loop.time()))
            self.task.cancel()
        self.upstream.changed()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def on_message_begin(self) -> None:
        self.target = self.body = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.request = len(self.upstream.requests)
        seen = SeenRequest(
            self.parser.get_method(), self.target, self.headers, self.body, self.number, self.loop.time()
        )
        self.upstream.requests.append(seen)
        self.upstream.changed()
        self.task = self.loop.create_task(self.play(self.upstream.script(self.request)))

    async def play(self, script: Script) -> None:
        repeat = False
        for step in script:
            if isinstance(step, bytes):
                await self.write(step)
                while repeat:
                    await self.write(step)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif step is REPEAT:
                repeat = True
            elif step is TURN:
                for _ in range(3):
                    await asyncio.sleep(0)
            elif step is HANG:
                await self.loop.create_future()
            else:
                self.task = None  # the connection ends as the script says: nobody left
                self.end(step)

    def end(self, step: Step) -> None:
        if step is CLOSE:
            self.transport.close()
            return
        stream = self.transport.get_extra_info("socket")
        if stream is None:  # over TLS that is what is left when the client was first
            return
        if step is CUT:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(stream.fileno())) as same:
                same.shutdown(socket.SHUT_WR)
            return
        with contextlib.suppress(OSError):  # a unix socket has no such option
            linger = struct.pack("ii", 1, 0)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    async def write(self, data: bytes) -> None:
        await self.writable.wait()
        self.transport.write(data)
        await asyncio.sleep(0)
