"""The HTTP/1.1 client towards one upstream: exact about when it is over and about what was sent (architecture 4).

ChannelError
├── NotConnected     nothing was sent: no connection, none free, or the channel is closed
├── Cut              closed or reset before the end of the response; `response_started` says how far it got
├── Stalled          a limit of Timeouts ran out; `phase` says which
└── Malformed        the response breaks HTTP/1.1, or a bound of this channel

An exchange is one request and its response. It holds a connection until the last byte of the response has come from the
socket; then the connection is back in the pool and `abort` has nothing left to do. Every other exit closes the socket:
`abort`, a cancelled `send` or `read`, a failure. Nothing runs beside the caller: there are protocol callbacks, a future
when somebody waits, and a timer a connection.

A request is written once. A pooled connection that is no longer sound is passed over before a byte is written; what
fails later is the caller's to judge, as the upstream may have begun to work.
"""

import asyncio
import errno
import functools
import re
import select
import ssl as tls
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, cast

import httptools

from confide.errors import ConfideError

Headers = list[tuple[bytes, bytes]]
Phase = Literal["connect", "first_byte", "idle", "total"]

BUFFERED_BYTES = 256 * 1024  # of one body; above it the socket is not read
ONE_WRITE_BYTES = 64 * 1024  # up to here head and body are joined, which costs less than a second write
FRAMING_BYTES = 1024  # of chunk extensions and trailers in a response ...
FRAMING_BYTES_PER_CHUNK = 16  # ... on top of two line ends and up to 12 digits a chunk
TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
TARGET = re.compile(rb"/[!-~]*")
OWN_HEADERS = {
    b"connection",
    b"content-length",
    b"expect",
    b"host",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}


class ChannelError(ConfideError):
    """The upstream gave no whole response. Raise one of its subclasses."""


class NotConnected(ChannelError):
    """Nothing was sent, so the request may go elsewhere."""


class Cut(ChannelError):
    """Closed or reset before the end. `response_started`: a byte of the response had come."""

    def __init__(self, message: str, *, response_started: bool) -> None:
        super().__init__(message, remedy="Look at what the upstream says of this request.")
        self.response_started = response_started


class Stalled(ChannelError):
    """A limit ran out. `phase` is its name in Timeouts without the unit; in "connect" nothing was sent."""

    def __init__(self, phase: Phase, limit_s: float) -> None:
        super().__init__(
            f"the upstream took longer than {phase}_s = {limit_s:g}",
            remedy=f"Look at the load of the upstream, or raise {phase}_s.",
        )
        self.phase: Phase = phase


class Malformed(ChannelError):
    """Not HTTP/1.1 as this channel accepts it. The message names the rule and holds no bytes of the response."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds, each with its own `Stalled.phase`.

    `first_byte_s` runs from the request to the first byte of the body, as engines send their headers before they think.
    `idle_s` is the longest silence after that; it stands still while the caller is slow to read. `total_s` runs from
    `send` to the end of the body.
    """

    connect_s: float = 5.0
    first_byte_s: float = 120.0
    idle_s: float = 60.0
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A stream socket in the file system."""

    path: str

    @property
    def authority(self) -> bytes:
        """The value of the Host header."""
        return b"localhost"

    async def open(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect `factory()`; raises OSError."""
        await asyncio.get_running_loop().create_unix_connection(factory, self.path)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port. With `ssl`, the handshake and every check in it are over before a request byte is written."""

    host: str
    port: int
    ssl: tls.SSLContext | None = None

    @property
    def authority(self) -> bytes:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode("ascii")

    async def open(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect `factory()`; raises OSError, which ssl.SSLError is too."""
        await asyncio.get_running_loop().create_connection(factory, self.host, self.port, ssl=self.ssl)


Address = UnixAddress | TcpAddress


class Exchange:
    """One request and its response. Whoever was given it calls `abort` when done, in a `finally`.

    `headers` keep their order, names in lower case, values as they came. `delimited_by_close`: the body has neither a
    length nor chunks, so its end cannot be told from a cut.
    """

    def __init__(self, connection: "Connection") -> None:
        self.status = 0  # until the headers are complete
        self.headers: Headers = []
        self.delimited_by_close = False
        self.buffered_bytes = 0
        self._connection: Connection | None = connection
        self._chunks: list[bytes] = []
        self._error: ChannelError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """All body bytes that have come and were not read, at least one; b"" at the clean end. Raises ChannelError."""
        chunks = self._chunks
        while not chunks:
            if self._error is not None:
                raise self._error
            if self._connection is None:
                return b""
            await self._wait()
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.buffered_bytes = 0
        if self._connection is not None:
            self._connection.resume()
        return data

    async def read_all(self, limit: int) -> bytes:
        """The rest of the body. Raises ChannelError; Malformed when that is more than `limit` bytes."""
        parts: list[bytes] = []
        while data := await self.read():
            parts.append(data)
            limit -= len(data)
            if limit < 0:
                self.abort()
                raise Malformed(
                    "the response body is over the limit", remedy="Raise the limit if such bodies are meant."
                )
        return b"".join(parts)

    def abort(self) -> None:
        """Close the socket now, unless the response is complete. May be called at any time and any number of times."""
        if self._connection is not None:
            self._chunks.clear()
            self._connection.fail("the exchange was aborted on this side")

    # For the connection.

    async def responded(self) -> None:
        """Wait for the headers. Raises ChannelError."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._wait()

    def add(self, data: bytes) -> None:
        """Bytes of the body."""
        self.buffered_bytes += len(data)
        self._chunks.append(data)

    def end(self, error: ChannelError | None = None) -> None:
        """The response is complete, or broke with `error`; the connection serves others or nobody."""
        self._connection = None
        self._error = error
        self.wake()

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("an exchange is read by one task at a time")
        woken = False
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
            woken = True
        finally:
            self._waiter = None
            if not woken:  # the caller was cancelled
                self.abort()


class Connection(asyncio.Protocol):
    """One socket: feeds the parser, judges what the parser lets pass, and carries one exchange at a time."""

    def __init__(self, channel: "Channel") -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._timer: asyncio.TimerHandle | None = None
        self._exchange: Exchange | None = None
        self._is_paused = False
        self._begin_response(0.0, 0.0)

    def _begin_response(self, began: float, now: float) -> None:
        self._began = began
        self._sent = self._last_byte_at = now
        self._head_bytes = 0
        self._head_tail = b""  # up to three bytes, as the blank line may be split between reads
        self._framing_bytes = 0  # beyond what its chunks allow
        self._is_interim = self._is_head_complete = self._has_body = self._is_complete = False
        self._is_reusable = False
        self._fault: str | None = None

    # For the channel and the exchange.

    def is_open(self) -> bool:
        """Whether the loop has not seen an end."""
        return self._transport is not None and not self._transport.is_closing()

    def is_sound(self) -> bool:
        """Whether a pooled connection may serve again: open, and neither bytes nor an end wait to be read.

        The socket is asked and not the loop, which would see an end of the last moment only after the write.
        """
        return self.is_open() and not self._poll.poll(0)

    def start(self, exchange: Exchange, began: float, head: bytes, body: bytes) -> None:
        """Write the request of `exchange`. The connection is sound and carries no other; `began` is loop time."""
        assert self._transport is not None
        self._exchange = exchange
        self._begin_response(began, self._loop.time())
        if len(body) <= ONE_WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        if self._timer is None:
            self._watch()

    def resume(self) -> None:
        """The reader has caught up."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._last_byte_at = self._loop.time()
            self._transport.resume_reading()

    def fail(self, reason: str | ChannelError) -> None:
        """Close the socket now; the exchange, if there is one, ends with the error, or as cut for this reason."""
        exchange, self._exchange = self._exchange, None
        self.abort()
        if exchange is not None:
            cut = reason if isinstance(reason, ChannelError) else Cut(reason, response_started=self._head_bytes > 0)
            exchange.end(cut)

    def abort(self) -> None:
        """Close the socket now."""
        self._channel.drop(self)
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._channel.opened(self)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # nobody asked
            self.abort()
            return
        self._last_byte_at = self._loop.time()
        try:
            if self._is_head_complete:
                self._feed_body(data)
            else:
                self._feed_head(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_reusable = False
            if not self._is_complete:
                self._fault = self._fault or str(error)
        self._conclude(exchange)

    def eof_received(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.status and exchange.delimited_by_close:
            self._finish(exchange)
        else:
            self._lost("closed")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost("closed" if exc is None else "reset")
        self._channel.closed(self)
        if self._timer is not None:
            self._timer.cancel()

    def _lost(self, how: str) -> None:
        place = "within the body" if self._is_head_complete else "before the headers were complete"
        self.fail(f"the upstream's connection was {how} {place}")

    # The parser's input. What its callbacks would raise is wrapped by it, so they note a fault, judged after the feed.

    def _feed_head(self, data: bytes) -> None:
        """Feed up to the blank line, so that the size of the head is exact; interim responses count as part of it."""
        if not self._head_bytes and data[:1] != b"H":
            self._fault = "no status line"
        while data and not self._is_head_complete and self._fault is None:
            seen = self._head_tail + data
            end = seen.find(b"\r\n\r\n")
            used = len(data) if end < 0 else end + 4 - len(self._head_tail)
            self._head_tail = seen[-3:] if end < 0 else b""
            self._head_bytes += used
            if self._head_bytes > self._channel.max_header_bytes:
                self._fault = f"headers of more than {self._channel.max_header_bytes} bytes"
                return
            self._parser.feed_data(data[:used])
            data = data[used:]
        if data and self._fault is None:
            self._feed_body(data)

    def _feed_body(self, data: bytes) -> None:
        self._framing_bytes += len(data)
        self._parser.feed_data(data)
        if self._framing_bytes > FRAMING_BYTES and not self._is_complete:
            self._fault = f"more than {FRAMING_BYTES} bytes of chunk extensions or trailers"

    def _conclude(self, exchange: Exchange) -> None:
        """What follows from the bytes that were fed."""
        if self._fault is not None:
            self.fail(Malformed(f"the response is not HTTP/1.1 as accepted here: {self._fault}"))
        elif self._is_complete:
            self._finish(exchange)
        elif self._is_head_complete:
            if exchange.buffered_bytes > BUFFERED_BYTES and not self._is_paused and self._transport is not None:
                self._is_paused = True
                self._transport.pause_reading()
            exchange.wake()

    def _finish(self, exchange: Exchange) -> None:
        assert self._transport is not None
        self._exchange = None
        self._last_byte_at = self._loop.time()
        # An answer may come before the whole request was read; what is left of it would spoil the next exchange.
        if self._is_reusable and not self._transport.get_write_buffer_size():
            self._channel.release(self)
        else:
            self.abort()
        exchange.end()

    # httptools

    def on_message_begin(self) -> None:
        if self._is_complete:  # a second response to one request
            self._is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if (
            self._exchange is not None and not self._is_head_complete
        ):  # later ones are trailers, which are not passed on
            self._exchange.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or self._is_head_complete:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._is_interim = True
            exchange.headers.clear()
            return
        self._is_head_complete = True
        self._is_reusable = self._parser.should_keep_alive()
        self._fault = head_fault(status, self._parser.get_http_version(), exchange.headers)
        if self._fault is None:
            exchange.status = status
            exchange.delimited_by_close = is_delimited_by_close(status, exchange.headers)

    def on_chunk_header(self) -> None:
        self._framing_bytes -= FRAMING_BYTES_PER_CHUNK

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None and not self._is_complete:
            self._has_body = True
            self._framing_bytes -= len(data)
            self._exchange.add(data)

    def on_message_complete(self) -> None:
        self._is_complete = not self._is_interim
        self._is_interim = False

    # Time. The timer never sleeps longer than the shortest limit, so that no limit set meanwhile ends before it wakes:
    # a request sets no timer, and a byte only notes when it came.

    def _watch(self) -> None:
        now = self._loop.time()
        deadline, error = self._next_limit()
        if now < deadline:
            self._timer = self._loop.call_at(min(deadline, now + self._channel.shortest_limit_s), self._watch)
        else:
            self.fail(error or "unused for too long")

    def _next_limit(self) -> tuple[float, Stalled | None]:
        """When the next limit ends, in loop time, and its error; a pooled connection ends without one."""
        limits = self._channel.timeouts
        if self._exchange is None:
            return self._last_byte_at + self._channel.idle_expiry_s, None
        if not self._has_body:
            deadline, error = self._sent + limits.first_byte_s, Stalled("first_byte", limits.first_byte_s)
        else:
            since = inf if self._is_paused else self._last_byte_at
            deadline, error = since + limits.idle_s, Stalled("idle", limits.idle_s)
        if limits.total_s is not None and self._began + limits.total_s < deadline:
            return self._began + limits.total_s, Stalled("total", limits.total_s)
        return deadline, error


class Channel:
    """The connections to one upstream: at most `max_connections` carry an exchange, at most `max_idle` wait for one.

    It does not queue: who may wait, and how long, is decided before a request comes here. Belongs to one event loop.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeouts: Timeouts,
        max_connections: int,
        max_idle: int = 32,
        idle_expiry_s: float = 30,
        max_header_bytes: int = 32 * 1024,
    ) -> None:
        self.timeouts = timeouts
        self.idle_expiry_s = idle_expiry_s
        self.max_header_bytes = max_header_bytes
        self.shortest_limit_s = min(timeouts.first_byte_s, timeouts.idle_s, timeouts.total_s or inf, idle_expiry_s)
        self._address = address
        self._authority = address.authority
        self._max_connections = max_connections
        self._max_idle = max_idle
        self._idle: list[Connection] = []  # the last one in is the first one out, so that the surplus expires
        self._live: set[Connection] = set()
        self._open: set[Connection] = set()  # every socket, until the loop has closed it
        self._is_closed = False
        self._all_closed: asyncio.Future[None] | None = None

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def live(self) -> int:
        """Connections that carry an exchange or are being opened for one."""
        return len(self._live)

    async def send(self, method: bytes, path: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Exchange:
        """Send one request; returns when the response headers are complete. Raises ChannelError.

        Host and the framing headers are the channel's own: naming one, or a name, value or path that HTTP does not
        allow, is a ValueError.
        """
        began = asyncio.get_running_loop().time()
        head = request_head(method, path, self._authority, headers, len(body))
        connection = self._pooled() or await self._connect()
        self._live.add(connection)
        exchange = Exchange(connection)
        connection.start(exchange, began, head, body)
        await exchange.responded()
        return exchange

    async def close(self) -> None:
        """Close every connection; exchanges that are under way end with Cut. Returns when all sockets are closed."""
        self._is_closed = True
        for connection in list(self._open):
            connection.fail("the channel was closed on this side")
        if self._open:
            self._all_closed = self._all_closed or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._all_closed)

    # For the connections.

    def opened(self, connection: Connection) -> None:
        """Its socket is open."""
        self._open.add(connection)

    def release(self, connection: Connection) -> None:
        """Its exchange is complete and another may follow."""
        self._live.discard(connection)
        if self._is_closed or len(self._idle) >= self._max_idle:
            connection.abort()
        else:
            self._idle.append(connection)

    def drop(self, connection: Connection) -> None:
        """It is not to be used any more."""
        self._live.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def closed(self, connection: Connection) -> None:
        """Its socket is closed."""
        self._open.discard(connection)
        if self._all_closed is not None and not self._open and not self._all_closed.done():
            self._all_closed.set_result(None)

    def _pooled(self) -> Connection | None:
        if self._is_closed:
            raise NotConnected("the channel is closed")
        if len(self._live) >= self._max_connections:
            raise NotConnected(
                f"all {self._max_connections} connections to the upstream are in use",
                remedy="Raise max_connections, or admit fewer requests at a time.",
            )
        while self._idle:
            connection = self._idle.pop()
            if connection.is_sound():
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        connection = Connection(self)
        self._live.add(connection)
        phase: Phase = "connect"
        limit_s = self.timeouts.connect_s
        if self.timeouts.total_s is not None and self.timeouts.total_s < limit_s:
            phase, limit_s = "total", self.timeouts.total_s
        is_ready = False
        try:
            async with asyncio.timeout(limit_s) as limit:
                await self._address.open(lambda: connection)
            is_ready = connection.is_open() and not self._is_closed
        except OSError as error:  # TimeoutError and ssl.SSLError are among them
            if limit.expired():
                raise Stalled(phase, limit_s) from None
            raise not_connected(error) from error
        finally:
            if not is_ready:
                connection.abort()
        if not is_ready:
            raise NotConnected("the connection was closed before the request was written")
        return connection


def not_connected(error: OSError) -> NotConnected:
    """`error` without its text, which may name a host."""
    reason = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return NotConnected(
        f"no connection to the upstream: {reason}",
        remedy="See that the upstream runs and listens where it is expected.",
    )


def head_fault(status: int, version: str, headers: Headers) -> str | None:
    """What the parser lets pass in a head and we do not, or None."""
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    if version not in ("1.1", "1.0"):
        return "a version other than 1.1 and 1.0"
    if not 200 <= status <= 599:
        return "a switch of protocols" if status == 101 else "a status outside 200 to 599"
    if encodings and (version == "1.0" or len(encodings) > 1 or encodings[0].lower() != b"chunked"):
        return "a transfer encoding other than chunked"
    return None


def is_delimited_by_close(status: int, headers: Headers) -> bool:
    """Whether only the end of the connection ends the body (RFC 9112 6.3)."""
    framing = (b"content-length", b"transfer-encoding")
    return status not in (204, 304) and not any(name in framing for name, _ in headers)


def request_head(
    method: bytes, path: bytes, authority: bytes, headers: Sequence[tuple[bytes, bytes]], length: int
) -> bytes:
    """Request line, headers and blank line. Raises ValueError for what would not be one request of one body."""
    lines = [request_line(method, path, authority)]
    lines += [b"%b: %b\r\n" % (field_name(name), value) for name, value in headers]
    if length or method != b"GET":
        lines.append(b"content-length: %d\r\n" % length)
    lines.append(b"\r\n")
    head = b"".join(lines)
    line_count = len(lines) + 1  # the request line brings the host line
    if head.count(b"\r") != line_count or head.count(b"\n") != line_count or b"\0" in head:
        raise ValueError("a request header value holds CR, LF or NUL")
    return head


@functools.lru_cache(maxsize=256)
def request_line(method: bytes, path: bytes, authority: bytes) -> bytes:
    """The first two lines."""
    if not TOKEN.fullmatch(method) or not TARGET.fullmatch(path):
        raise ValueError("the method or path of a request holds a character that HTTP does not allow there")
    return b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, path, authority)


@functools.lru_cache(maxsize=256)
def field_name(name: bytes) -> bytes:
    """`name`, once it is known to be one that a caller may set."""
    if not TOKEN.fullmatch(name) or name.lower() in OWN_HEADERS:
        raise ValueError("a request header name that HTTP does not allow, or that the channel sets itself")
    return name
