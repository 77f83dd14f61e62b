"""The HTTP/1.1 client towards one upstream: exact about when it is over and about what was sent (architecture 4).

An exchange is one request and its response. It holds a connection until the last byte of the response has come from the
socket; then the connection is back in the pool and `Exchange.abort` has nothing left to do. Every other exit closes the
socket: `abort`, a cancelled `send` or `read`, a failure.

A request is written once. A pooled connection that is no longer sound is passed over before a byte is written; what
fails later is the caller's to judge, as the upstream may have begun to work.

    exchange = await channel.send(b"POST", b"/v1/chat/completions", headers, body)
    try:
        while data := await exchange.read():
            ...
    finally:
        exchange.abort()
"""

import asyncio
import errno
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import replace

from confide.protocol.pins import Pins, require_pinned
from confide.upstream.address import Address, TcpAddress, TlsAddress, UnixAddress
from confide.upstream.bounds import Bounds, Timeouts
from confide.upstream.connection import Connection
from confide.upstream.errors import ChannelError, Cut, Malformed, NoneFree, NotConnected, Phase, Stalled, WrongKey
from confide.upstream.exchange import Exchange
from confide.upstream.request import RequestHeads

__all__ = [
    "Address",
    "Channel",
    "ChannelError",
    "Cut",
    "Exchange",
    "Malformed",
    "NoneFree",
    "NotConnected",
    "Stalled",
    "TcpAddress",
    "Timeouts",
    "TlsAddress",
    "UnixAddress",
    "WrongKey",
]


class Channel:
    """The connections to one upstream: at most `max_connections` carry an exchange, at most `max_idle` wait for one.

    `max_idle`: None: as many as may be live, as a wave of requests leaves as many connections as the next one needs.

    It does not queue: who may wait, and how long, is decided before a request comes here. Belongs to one event loop.

    An idle connection is closed after `idle_expiry_s`. One unused for `probe_after_s` is probed before it
    serves again, which costs a system call (`Connection.is_sound`).
    """

    def __init__(
        self,
        address: Address,
        *,
        timeouts: Timeouts,
        max_connections: int,
        max_idle: int | None = None,
        idle_expiry_s: float = 30,
        max_header_bytes: int = 32 * 1024,
        probe_after_s: float = 0.5,
    ) -> None:
        if idle_expiry_s <= 0:
            raise ValueError("idle_expiry_s must be more than 0; max_idle=0 reuses no connection")
        self._bounds = Bounds(timeouts, idle_expiry_s, max_header_bytes)
        self._probe_after_s = probe_after_s
        self._address = address
        self._heads = RequestHeads(address.authority)
        self._max_connections = max_connections
        self._max_idle = max_connections if max_idle is None else max_idle
        self._idle: list[Connection] = []  # the last one in is the first one out, so that the surplus expires
        self._live: set[Connection] = set()
        # Until the loop has closed the socket. One whose opening was cancelled never gets here: uvloop closes it and
        # does not say so.
        self._open: set[Connection] = set()
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

    async def send(
        self,
        method: bytes,
        path: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        *,
        is_fresh: bool = False,
        within_s: float | None = None,
    ) -> Exchange:
        """Send one request; returns when the response headers are complete. Raises ChannelError.

        `is_fresh`: over a new connection, as a pooled one may have been at fault. `within_s`: the longest that it may
        take in all, where that is less than the channel's own limit.

        Host and the framing headers are the channel's own: naming one, or a name, value or path that HTTP does not
        allow, is a ValueError.
        """
        loop = asyncio.get_running_loop()
        began = now = loop.time()
        head = self._heads.head(method, path, headers, len(body))
        total_s = shorter(self._bounds.timeouts.total_s, within_s)
        connection = self._pooled(now, is_fresh=is_fresh)
        if connection is None:
            connection = await self._connect(total_s)
            now = loop.time()
        self._live.add(connection)
        exchange = Exchange(connection)
        connection.start(exchange, began, now, head, body, total_s)
        await exchange.responded()
        return exchange

    def pin(self, pins: Pins) -> None:
        """From now on only these TLS keys get a request, and with none in the set, no key.

        `pins`: SHA-256 (32 bytes each) of a SubjectPublicKeyInfo. An exchange that was begun with another key comes to
        its end. Raises ValueError where the address has no pins to replace.
        """
        if not isinstance(self._address, TlsAddress) or self._address.pins is None:
            raise ValueError("pins replace pins: the address of this channel has none")
        self._address = replace(self._address, pins=pins)
        for connection in list(self._open):
            if connection.peer_spki not in pins:
                connection.retire()

    async def close(self) -> None:
        """Close every connection; exchanges that are under way end with Cut. Returns when all sockets are closed."""
        self._is_closed = True
        for connection in list(self._open):
            connection.fail("the channel was closed on this side")
        if self._open:
            self._all_closed = self._all_closed or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._all_closed)

    # For the connections.

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

    def _pooled(self, now: float, *, is_fresh: bool) -> Connection | None:
        if self._is_closed:
            raise NotConnected("the channel is closed")
        if len(self._live) >= self._max_connections:
            raise NoneFree(
                f"all {self._max_connections} connections to the upstream are in use",
                remedy="Raise max_connections, or admit fewer requests at a time.",
            )
        while self._idle and not is_fresh:
            connection = self._idle.pop()
            if connection.is_sound(now, self._probe_after_s):
                return connection
            connection.abort()
        return None

    def _require_pinned(self, connection: Connection) -> None:
        """The pins may have been replaced since the handshake. Raises WrongKey."""
        if isinstance(self._address, TlsAddress) and self._address.pins is not None:
            require_pinned(connection.peer_spki, self._address.pins, WrongKey)

    async def _connect(self, total_s: float | None) -> Connection:
        connection = Connection(self, self._bounds)
        self._live.add(connection)
        phase: Phase = "connect"
        limit_s = self._bounds.timeouts.connect_s
        if total_s is not None and total_s < limit_s:
            phase, limit_s = "total", total_s
        is_ready = False
        try:
            async with asyncio.timeout(limit_s) as limit:
                await self._address.open(lambda: connection)
            self._require_pinned(connection)
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
        self._open.add(connection)
        return connection


def shorter(first: float | None, second: float | None) -> float | None:
    """The shorter of two limits, None where there is none."""
    return min((limit for limit in (first, second) if limit is not None), default=None)


def not_connected(error: OSError) -> NotConnected:
    """`error` without its text, which may name a host."""
    return NotConnected(
        f"no connection to the upstream: {reason_of(error)}",
        remedy="See that the upstream runs and listens where it is expected.",
    )


def reason_of(error: OSError) -> str:
    """What was wrong, in names of the system's and OpenSSL's own."""
    if isinstance(error, socket.gaierror):
        return "its name was not resolved"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or type(error).__name__}"
    several = re.search(r"\[Errno (\d+)\]", str(error))  # of a name with several addresses, the first one's
    number = error.errno or (int(several[1]) if several else 0)
    return errno.errorcode.get(number, type(error).__name__)
