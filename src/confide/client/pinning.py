"""TLS that is trusted because the key is attested, not because an authority signed for it.

The check sits in the handshake: with a key that is not among the pins the connection fails there, and the server has
not seen a byte of a request. Certificates, their names and dates do not matter then; nobody but the TEE has the key.
"""

import ssl

import httpx2

from confide.protocol.pins import Pins, require_pinned, spki_of


class KeyNotPinned(ssl.SSLError):
    """The peer's key is not one of the attested ones. Nothing was sent."""


def pinned_context(pins: Pins | None) -> ssl.SSLContext:
    """A context for connections to keys with these SPKI digests (32 bytes each); None: to any key, to learn which it
    has. A handshake with another key raises KeyNotPinned.
    """

    class PinnedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            check_peer(self.getpeercert(True), pins)

    class PinnedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check_peer(self.getpeercert(True), pins)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # the key is what is checked
    context.verify_mode = ssl.CERT_NONE
    context.sslsocket_class = PinnedSocket
    context.sslobject_class = PinnedObject
    return context


def check_peer(certificate_der: bytes | None, pins: Pins | None) -> None:
    """Return when the certificate is for one of the pinned keys, or any key will do. Raises KeyNotPinned."""
    if pins is not None:
        require_pinned(spki_of(certificate_der), pins, KeyNotPinned)


def seen_spki(response: httpx2.Response) -> bytes | None:
    """SPKI digest (32 bytes) of the key on the very connection of this response; None for plain HTTP, 32 zero bytes,
    which no key has, for one that cannot be read.
    """
    stream = response.extensions.get("network_stream")
    tls = None if stream is None else stream.get_extra_info("ssl_object")
    if tls is None:
        return None
    return spki_of(tls.getpeercert(True)) or bytes(32)  # by position: what some sockets put there takes no keywords


def is_not_pinned(error: BaseException) -> bool:
    """Whether a connection failed for its key: the reason lies some causes deep."""
    found: BaseException | None = error
    seen: list[BaseException] = []
    while found is not None and found not in seen:
        if isinstance(found, KeyNotPinned):
            return True
        seen.append(found)
        found = found.__cause__ or found.__context__
    return False
