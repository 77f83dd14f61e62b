"""Pins of TLS keys: who may answer, by the SHA-256 of the key's SubjectPublicKeyInfo in DER (wire contract 7.1).

Given: a certificate as the handshake showed it, and the pins of an attested keyset. Not shown here: that the peer has
the private key, which is the handshake's work, and that the pins are the right ones. Certificates' names, dates and
signatures do not matter. Keys and pins are public, so comparing them may take as long as it takes.
"""

from collections.abc import Callable
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

Pins = frozenset[bytes]


def spki_sha256(key: CertificatePublicKeyTypes) -> bytes:
    """The digest of a public key, 32 bytes."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def spki_of(certificate_der: bytes | None) -> bytes | None:
    """The digest of the certificate's key, 32 bytes; None where there is no certificate or no key can be read."""
    try:
        key = x509.load_der_x509_certificate(certificate_der or b"").public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        return None
    return spki_sha256(key)


def require_pinned(spki: bytes | None, pins: Pins, refusal: Callable[[str], Exception]) -> None:
    """Return when the key with this digest is one of the pinned ones; no pins admit nobody, nor does a key that cannot
    be read. Raises what `refusal` makes of the reason.
    """
    if spki is None or spki not in pins:
        got = "a key that cannot be read" if spki is None else spki.hex()
        raise refusal(f"got the TLS key {got}, expected {' or '.join(sorted(pin.hex() for pin in pins)) or 'none'}")
