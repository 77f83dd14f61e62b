"""The 64 report-data bytes of the legacy report, and the nonce that goes into them (wire contract 6.3)."""

import re
from hashlib import sha256

from confide.errors import InvalidRequest

NONCE = re.compile(r"[0-9a-fA-F]{64}")


def legacy_report_data(identity: bytes, nonce: bytes, *, spki_sha256: bytes | None = None) -> bytes:
    """The 64 bytes that a quote carries: who signs, then the nonce.

    `identity`: 20 bytes of an ECDSA address or 32 of an Ed25519 key. `nonce`: 32 bytes. `spki_sha256`: 32 bytes,
    SHA-256 of the TLS leaf's SubjectPublicKeyInfo, makes it version 2. Raises ValueError on any other length.
    """
    if len(identity) not in (20, 32):
        raise ValueError(f"an identity of 20 or 32 bytes expected, got {len(identity)}")
    if len(nonce) != 32:
        raise ValueError(f"a nonce of 32 bytes expected, got {len(nonce)}")
    if spki_sha256 is None:
        return identity.ljust(32, b"\0") + nonce
    if len(spki_sha256) != 32:
        raise ValueError(f"a SHA-256 of 32 bytes expected, got {len(spki_sha256)}")
    return sha256(identity + spki_sha256).digest() + nonce


def parse_nonce(text: str | None) -> bytes | None:
    """The 32 bytes of the legacy `nonce` parameter; None when absent or empty, and the server draws one.

    64 hex digits in either case (wire contract 6). Anything else raises InvalidRequest: hashing it instead, as some
    servers do, would bind a value that the caller never sees in the quote.
    """
    if not text:
        return None
    if NONCE.fullmatch(text) is None:
        raise InvalidRequest("nonce must be 64 hex digits, or be left out", param="nonce")
    return bytes.fromhex(text)
