"""One socket: feeds the parser, judges what the parser lets pass, and carries one exchange at a time.

Nothing runs beside the caller: there are protocol callbacks, a future when somebody waits, and one timer.
"""

import asyncio
import select
from math import inf
from typing import Protocol, cast

import httptools

from confide.upstream.bounds import Bounds
from confide.upstream.errors import ChannelError, Cut, Malformed, Stalled
from confide.upstream.exchange import Exchange

BUFFERED_BYTES = 256 * 1024  # of one body; above it the socket is not read
ONE_WRITE_BYTES = 64 * 1024  # up to here head and body are joined, which costs less than a second write
INTERIM_MOST = 16  # 1xx responses before the one that counts
BODILESS = (204, 304)
FRAMING_BYTES = 1024  # of chunk extensions and trailers in a response ...
FRAMING_BYTES_PER_CHUNK = 16  # ... on top of two line ends and up to 12 digits a chunk


class Pool(Protocol):
    """What a connection tells the channel."""

    def release(self, connection: "Connection") -> None:
        """Its exchange is complete and another may follow."""

    def drop(self, connection: "Connection") -> None:
        """It is not to be used any more."""

    def closed(self, connection: "Connection") -> None:
        """Its socket is closed."""


class Wire(Protocol):
    """What a connection asks of its transport: a loop's own, or TlsLink."""

    def write(self, data: bytes | memoryview) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def is_closing(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def get_extra_info(self, name: str, default: object = None) -> object: ...


class Connection(asyncio.Protocol):
    """One socket, from its opening to its end. After each response the counts and flags of the parser begin again."""

    def __init__(self, pool: Pool, bounds: Bounds) -> None:
        self._pool = pool
        self._bounds = bounds
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Wire | None = None
        self._poll = select.poll()
        self._timer: asyncio.TimerHandle | None = None
        self._watch_step_s = bounds.shortest_s
        self._total_s: float | None = None
        self._exchange: Exchange | None = None
        self._unsent = memoryview(b"")  # of the request's body
        self._is_paused = self._is_write_paused = self._is_retired = False
        self.peer_spki: bytes | None = None  # SHA-256 of the peer's key, where there are pins
        self._begin_response(0.0, 0.0)

    def _begin_response(self, began: float, now: float) -> None:
        self._began = began
        self._sent = self._last_byte_at = now
        self._head_bytes = 0
        self._head_tail = b""  # up to three bytes, as the blank line may be split between reads
        self._is_head_begun = False
        self._interim_count = 0
        self._framed_bytes = 0  # after the head, whatever they are
        self._framing_allowed = FRAMING_BYTES
        self._is_chunked = False
        self._chunk_tail = b""  # the last five bytes of what is framed so
        self._body_bytes = 0
        self._is_interim = self._is_head_complete = self._is_complete = self._is_reusable = False
        self._fault: str | None = None

    # For the channel and the exchange.

    def is_open(self) -> bool:
        """Whether the loop has not seen an end."""
        return self._transport is not None and not self._transport.is_closing()

    def is_sound(self, now: float, probe_after_s: float) -> bool:
        """Whether a pooled connection may serve again.

        Unused for `probe_after_s`, the socket is asked whether bytes or an end wait to be read: the loop would see what
        came just now only after the write. Asking costs a system call, and upstreams end what is unused for long.
        """
        if not self.is_open():
            return False
        return now - self._last_byte_at < probe_after_s or not self._poll.poll(0)

    def start(
        self, exchange: Exchange, began: float, now: float, head: bytes, body: bytes, total_s: float | None
    ) -> None:
        """Write the request of `exchange`. The connection is sound and carries no other; loop times. `total_s`: the
        longest that it may take in all, None for any time.
        """
        assert self._transport is not None
        self._total_s = total_s
        if total_s is not None and total_s < self._watch_step_s:  # the timer might sleep through it
            self._watch_step_s = total_s
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._exchange = exchange
        self._begin_response(began, now)
        if len(body) <= ONE_WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._unsent = memoryview(body)
            self._send_more()
        if self._timer is None:
            self._watch()

    def _send_more(self) -> None:
        """Write the body as far as the transport takes it, so that what waits in memory to be sent is bounded."""
        while self._unsent and not self._is_write_paused and self._transport is not None:
            piece, self._unsent = self._unsent[:ONE_WRITE_BYTES], self._unsent[ONE_WRITE_BYTES:]
            self._transport.write(piece)

    def retire(self) -> None:
        """Serve no further exchange: close the socket now, or when the exchange that it carries is over."""
        self._is_retired = True
        if self._exchange is None:
            self.abort()

    def resume(self) -> None:
        """Everything buffered was read."""
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
        self._unsent = memoryview(b"")
        self._pool.drop(self)
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("Wire", transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self.peer_spki = transport.get_extra_info("peer_spki")

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._send_more()

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
        if self._fault is not None:
            self.fail(Malformed(f"the response is not HTTP/1.1 as accepted here: {self._fault}"))
        elif self._is_complete:
            self._finish(exchange)
        elif self._is_head_complete:
            if exchange.buffered_bytes > BUFFERED_BYTES:
                self._pause()
            exchange.wake()

    def eof_received(self) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.status and exchange.delimited_by_close:
            self._finish(exchange)
        else:
            self._lost("closed")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost("closed" if exc is None else "reset")
        self._pool.closed(self)
        if self._timer is not None:
            self._timer.cancel()

    def _pause(self) -> None:
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def _lost(self, how: str) -> None:
        place = "within the body" if self._is_head_complete else "before the headers were complete"
        self.fail(f"the upstream's connection was {how} {place}")

    def _finish(self, exchange: Exchange) -> None:
        assert self._transport is not None
        self._exchange = None
        self.resume()
        # An answer may come before the whole request was read; what is left of it would spoil the next exchange.
        is_sent = not self._unsent and not self._transport.get_write_buffer_size()
        if self._is_reusable and is_sent and not self._is_retired:
            self._pool.release(self)
        else:
            self.abort()
        exchange.end()

    # The parser's input. What its callbacks would raise is wrapped by it, so they note a fault, judged after the feed.

    def _feed_head(self, data: bytes) -> None:
        """Feed up to the blank line, so that the size of the head is exact; interim responses count as part of it."""
        while data and not self._is_head_complete and self._fault is None:
            if not self._is_head_begun and data[:1] != b"H":  # the parser would pass over line ends
                self._fault = "no status line"
                return
            seen = self._head_tail + data
            end = seen.find(b"\r\n\r\n")
            used = len(data) if end < 0 else end + 4 - len(self._head_tail)
            self._head_tail = seen[-3:] if end < 0 else b""
            self._head_bytes += used
            self._is_head_begun = end < 0
            if self._head_bytes > self._bounds.max_header_bytes:
                self._fault = f"headers of more than {self._bounds.max_header_bytes} bytes"
                return
            self._parser.feed_data(data[:used])
            data = data[used:]
        if data and self._fault is None:
            self._feed_body(data)

    def _feed_body(self, data: bytes) -> None:
        self._framed_bytes += len(data)
        self._parser.feed_data(data)
        if self._is_chunked:
            self._chunk_tail = data[-5:] if len(data) > 4 else (self._chunk_tail + data)[-5:]
        if self._is_complete and not self._is_at_end():
            self._is_reusable = False
        if self._framed_bytes - self._body_bytes > self._framing_allowed:
            self._fault = f"more than {FRAMING_BYTES} bytes of chunk extensions, trailers or what follows the end"

    def _is_at_end(self) -> bool:
        """Whether the last byte that came is the response's last: line ends after it the parser passes over."""
        if self._is_chunked:  # the last line of chunk or trailer, and the blank one
            return self._chunk_tail[-4:] == b"\r\n\r\n" and self._chunk_tail[:1] not in b"\r\n"
        return self._framed_bytes == self._body_bytes

    # httptools

    def on_message_begin(self) -> None:
        if self._is_complete:  # a second response to one request
            self._is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head_complete:  # trailers are not passed on, and frame nothing (RFC 9110 6.5.1)
            if name.lower() == b"transfer-encoding" and not self._is_complete:
                self._fault = "a transfer encoding in the trailers"
        elif self._exchange is not None:
            self._exchange.headers.append((name.lower(), value.rstrip()))  # the parser leaves the space before the end

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        if self._is_head_complete or exchange is None:
            return
        status = self._parser.get_status_code()
        encodings, is_framed = [], False
        for name, value in exchange.headers:
            if name == b"transfer-encoding":
                encodings.append(value.lower())
            elif name == b"content-length":
                is_framed = True
        self._fault = head_fault(status, self._parser.get_http_version(), encodings)
        if 100 <= status < 200:
            self._on_interim(exchange, is_framed)
            return
        self._is_head_complete = True
        self._is_reusable = self._parser.should_keep_alive()
        self._is_chunked = bool(encodings)
        if status in BODILESS:
            self._is_reusable &= not (is_framed or encodings)  # others may think that a body follows
            is_framed = True
        if self._fault is None:
            exchange.status = status
            exchange.delimited_by_close = not (is_framed or encodings)  # RFC 9112 6.3

    def _on_interim(self, exchange: Exchange, is_framed: bool) -> None:
        self._is_interim = True
        self._interim_count += 1
        exchange.headers.clear()
        if is_framed:
            self._fault = "an interim response with a length"
        elif self._interim_count > INTERIM_MOST:
            self._fault = f"more than {INTERIM_MOST} interim responses"

    def on_chunk_header(self) -> None:
        self._framing_allowed += FRAMING_BYTES_PER_CHUNK

    def on_body(self, data: bytes) -> None:
        if not self._is_complete and self._exchange is not None:
            self._body_bytes += len(data)
            self._exchange.add(data)

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = False
        else:
            self._is_complete = True

    # Time. The timer never sleeps longer than the shortest limit, so that no limit set meanwhile ends before it wakes:
    # a request sets no timer, and a byte only notes when it came.

    def _watch(self) -> None:
        now = self._loop.time()
        deadline, error = self._next_limit()
        if now < deadline:
            self._timer = self._loop.call_at(min(deadline, now + self._watch_step_s), self._watch)
        else:
            self.fail(error or "unused for too long")

    def _next_limit(self) -> tuple[float, Stalled | None]:
        """When the next limit ends, in loop time, and its error; a pooled connection ends without one."""
        limits = self._bounds.timeouts
        if self._exchange is None:
            return self._last_byte_at + self._bounds.idle_expiry_s, None
        if not self._body_bytes:
            deadline, error = self._sent + limits.first_byte_s, Stalled("first_byte", limits.first_byte_s)
        else:
            since = inf if self._is_paused else self._last_byte_at
            deadline, error = since + limits.idle_s, Stalled("idle", limits.idle_s)
        if self._total_s is not None and self._began + self._total_s < deadline:
            return self._began + self._total_s, Stalled("total", self._total_s)
        return deadline, error


def head_fault(status: int, version: str, encodings: list[bytes]) -> str | None:
    """What the parser lets pass in a head and we do not, or None. `encodings`: Transfer-Encoding, in lower case."""
    if version not in ("1.1", "1.0"):
        return "a version other than 1.1 and 1.0"
    if not 100 <= status <= 599:
        return "a status outside 100 to 599"
    if status == 101:
        return "a switch of protocols"
    if encodings and (version == "1.0" or status < 200 or encodings != [b"chunked"]):
        return "a transfer encoding other than chunked, or where there is none"
    return None
