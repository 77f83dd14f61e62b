"""TLS that is trusted because the key is attested, not because an authority signed for it.

The check sits in the handshake: with a key that is not among the pins the connection fails there, and the server has
not seen a byte of a request. Certificates, their names and dates do not matter then; nobody but the TEE has the key.
"""

import ssl
from hashlib import sha256

import httpx2
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

Pins = frozenset[bytes]


class KeyNotPinned(ssl.SSLError):
    """The peer's key is not one of the attested ones. Nothing was sent."""


def pinned_context(pins: Pins | None) -> ssl.SSLContext:
    """A context for connections to keys with these SPKI digests (32 bytes each); None: to any key, to learn which it
    has. A handshake with another key raises KeyNotPinned.
    """

    class PinnedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            require_pinned(self.getpeercert(True), pins)

    class PinnedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            require_pinned(self.getpeercert(True), pins)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # the key is what is checked
    context.verify_mode = ssl.CERT_NONE
    context.sslsocket_class = PinnedSocket
    context.sslobject_class = PinnedObject
    return context


def require_pinned(certificate_der: bytes | None, pins: Pins | None) -> None:
    """Return when the certificate is for one of the pinned keys. Raises KeyNotPinned."""
    if pins is None:
        return
    found = None if certificate_der is None else spki_of(certificate_der)
    if found is None or found not in pins:
        got = "a key that cannot be read" if found is None else found.hex()
        raise KeyNotPinned(f"got the TLS key {got}, expected {' or '.join(sorted(pin.hex() for pin in pins))}")


def spki_of(certificate_der: bytes) -> bytes | None:
    """SHA-256 of the certificate's SubjectPublicKeyInfo (32 bytes), None for a key that cannot be read."""
    try:
        key = x509.load_der_x509_certificate(certificate_der).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        return None
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def seen_spki(response: httpx2.Response) -> bytes | None:
    """SPKI digest (32 bytes) of the key on the very connection of this response; None for plain HTTP, 32 zero bytes,
    which no key has, for one that cannot be read.
    """
    stream = response.extensions.get("network_stream")
    tls = None if stream is None else stream.get_extra_info("ssl_object")
    if tls is None:
        return None
    certificate = tls.getpeercert(True)  # by position: what some sockets put there takes no keywords
    return (None if certificate is None else spki_of(certificate)) or bytes(32)


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
