"""TLS towards one upstream: who the peer must be, settled inside the handshake, and then records to bytes and back.

With pins the attested key is what is trusted: certificates, their names and dates do not matter, for nobody but the TEE
has the key. Without, a certificate must lead to one of the web's roots and bear the server's name. A peer that is not
the one meant sees the end of the connection instead of the end of the handshake.

The loops' own TLS is not used, for what it hides. An end that the peer announced and one that somebody cut in look the
same on asyncio, so that a body without a length would look whole; on uvloop, what a slow reader has left unread is lost
when the peer closes; and both hold 256 KiB a connection.
"""

import asyncio
import errno
import ssl
from typing import cast

from confide.protocol.pins import Pins, require_pinned, spki_of
from confide.upstream.errors import WrongKey

RECORD_BYTES = 16 * 1024  # the most that one record holds (RFC 8446 5.1), and so one read of it gives


def client_context(pins: Pins | None) -> ssl.SSLContext:
    """A context for connections whose peer is judged by its key, or None: that the web's roots judge."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # the key that was judged stays the key
    context.set_alpn_protocols(["http/1.1"])
    if pins is None:
        context.load_default_certs()  # ssl.create_default_context would write secrets where the environment says
    else:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class TlsLink(asyncio.Protocol):
    """The protocol of a socket and the transport of what is above it. Both ends are called as the loop would call them,
    except that `eof_received` means an end which the peer announced, and any other end is `connection_lost` alone.

    `above` is told of the connection once the peer is known.
    """

    def __init__(self, above: asyncio.Protocol, context: ssl.SSLContext, server_name: str, pins: Pins | None) -> None:
        self._above = above
        self._pins = pins
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._raw: asyncio.Transport | None = None
        self._peer_spki: bytes | None = None
        self._is_established = False
        self._failure: Exception | None = None
        self._settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def established(self) -> None:
        """Wait until the peer is known. Raises WrongKey or OSError, which ssl.SSLError is too."""
        await self._settled
        if not self._is_established:
            raise self._failure or ConnectionResetError(errno.ECONNRESET, "the peer left within the handshake")

    # The transport of what is above.

    def write(self, data: bytes | memoryview) -> None:
        """Encrypt and send. What is above minds `pause_writing`."""
        try:
            sent = self._session.write(data)
            while sent < len(data):
                sent += self._session.write(memoryview(data)[sent:])
            self._flush()
        except ssl.SSLError as error:
            self._break(error)

    def get_write_buffer_size(self) -> int:
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    def is_closing(self) -> bool:
        return self._raw is None or self._raw.is_closing()

    def pause_reading(self) -> None:
        assert self._raw is not None
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        assert self._raw is not None
        self._raw.resume_reading()

    def abort(self) -> None:
        if self._raw is not None:
            self._raw.abort()

    def get_extra_info(self, name: str, default: object = None) -> object:
        """`peer_spki` is the digest of the peer's key where there are pins; the rest is the socket's."""
        if name == "peer_spki":
            return self._peer_spki
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    # The protocol of the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast("asyncio.Transport", transport)
        self._shake()

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if not self._is_established:
            self._shake()
        if self._is_established:
            self._read()

    def pause_writing(self) -> None:
        if self._is_established:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self._is_established:
            self._above.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._failure = self._failure or exc
        if self._is_established:
            self._above.connection_lost(self._failure)
        self._settle()

    def _shake(self) -> None:
        try:
            self._session.do_handshake()
            if self._pins is not None:
                self._peer_spki = spki_of(self._session.getpeercert(True))
                require_pinned(self._peer_spki, self._pins, WrongKey)
        except ssl.SSLWantReadError:
            self._flush()
        except (ssl.SSLError, WrongKey) as error:
            self._break(error)
        else:
            self._flush()
            self._is_established = True
            self._above.connection_made(cast("asyncio.Transport", self))
            self._settle()

    def _read(self) -> None:
        parts: list[bytes] = []
        failure: ssl.SSLError | None = None
        is_over = False
        try:  # asking what is pending costs less than the exception that says there is nothing
            while not is_over and (self._incoming.pending or self._session.pending()):
                part = self._session.read(RECORD_BYTES)
                parts.append(part)
                is_over = not part  # the peer announced the end
        except ssl.SSLWantReadError:
            pass  # a part of a record
        except ssl.SSLError as error:
            failure = error
        if self._outgoing.pending:
            self._flush()
        if data := parts[0] if len(parts) == 1 else b"".join(parts):
            self._above.data_received(data)
        if failure is not None:
            self._break(failure)
        elif is_over:
            self._above.eof_received()
            self.abort()

    def _flush(self) -> None:
        assert self._raw is not None
        self._raw.write(self._outgoing.read())

    def _settle(self) -> None:
        if not self._settled.done():
            self._settled.set_result(None)

    def _break(self, error: Exception) -> None:
        """End the connection for `error`; the peer is told where TLS has an alert for it."""
        self._failure = self._failure or error
        if self._outgoing.pending and not isinstance(error, WrongKey):
            self._flush()
        self.abort()
