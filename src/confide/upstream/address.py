"""Where an upstream listens, and for TLS who must answer there."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from confide.protocol.pins import Pins
from confide.upstream.tls import TlsLink, client_context

HTTPS_PORT = 443
QUEUE_FULL_S = 0.005  # between tries to get into a listener's queue
SPKI_BYTES = 32


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A stream socket in the file system."""

    path: str

    @property
    def authority(self) -> bytes:
        """The value of the Host header."""
        return b"localhost"

    async def open(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect `factory()`; raises OSError. While the listener's queue is full it waits, as long as it is let."""
        with ExitStack() as on_failure:
            stream = on_failure.enter_context(socket.socket(socket.AF_UNIX))
            stream.setblocking(False)
            while not is_queued(stream, self.path):  # noqa: ASYNC110  no event tells of room in the queue
                await asyncio.sleep(QUEUE_FULL_S)
            on_failure.pop_all()  # the loop's from here on, also when it is cancelled
        await asyncio.get_running_loop().create_unix_connection(factory, sock=stream)


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port without TLS: whoever is in between reads and writes."""

    host: str
    port: int

    @property
    def authority(self) -> bytes:
        """The value of the Host header. Raises ValueError for a host that is no name and no address."""
        return b"%b:%d" % (encoded_host(self.host), self.port)

    async def open(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect `factory()`; raises OSError, for a name that is not resolved socket.gaierror."""
        await asyncio.get_running_loop().create_connection(factory, self.host, self.port)


@dataclass(frozen=True, slots=True)
class TlsAddress:
    """A TCP port with TLS; who the peer is has been settled before a request byte is written.

    `pins`: SHA-256 (32 bytes each) of the SubjectPublicKeyInfo of every key that may answer, and of no other; with none
    in the set, no key may. None: any key that a certificate of the web's roots gives to `server_name`. `server_name` is
    also what the peer is asked for, in TLS and in the Host header; None: `host`.
    """

    host: str
    port: int
    pins: Pins | None
    server_name: str | None = None
    _context: ssl.SSLContext = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.pins is not None and any(len(pin) != SPKI_BYTES for pin in self.pins):
            raise ValueError(f"a pin is the SHA-256 of a SubjectPublicKeyInfo, {SPKI_BYTES} bytes")
        object.__setattr__(self, "_context", client_context(self.pins))  # the web's roots take long to load

    @property
    def authority(self) -> bytes:
        """The value of the Host header. Raises ValueError for a name that is none."""
        host = encoded_host(self.server_name or self.host)
        return host if self.port == HTTPS_PORT else b"%b:%d" % (host, self.port)

    async def open(self, factory: Callable[[], asyncio.Protocol]) -> None:
        """Connect `factory()`, which is told once the peer is known.

        Raises WrongKey, or OSError, which ssl.SSLError and socket.gaierror are too.
        """
        link = TlsLink(factory(), self._context, self.server_name or self.host, self.pins)
        is_established = False
        try:
            await asyncio.get_running_loop().create_connection(lambda: link, self.host, self.port)
            await link.established()
            is_established = True
        finally:
            if not is_established:
                link.abort()


Address = UnixAddress | TcpAddress | TlsAddress


def is_queued(stream: socket.socket, path: str) -> bool:
    """Connect; false where the listener's queue is full, which asyncio takes for a connection. Raises OSError."""
    try:
        stream.connect(path)
    except BlockingIOError:
        return False
    return True


def encoded_host(host: str) -> bytes:
    """A name or an address as it stands in a URL. Raises ValueError for what cannot be one."""
    encoded = host.encode("idna")
    if not encoded:
        raise ValueError("the host of an upstream is empty")
    return b"[%b]" % encoded if b":" in encoded else encoded
