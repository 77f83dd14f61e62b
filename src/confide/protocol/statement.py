"""What a quote binds: the 64 report-data bytes, and the nonces that go into them (wire contract 6.3 and 7.2)."""

import re
from hashlib import sha256

from confide.errors import InvalidRequest
from confide.protocol.canonical import BARE_DIGEST, DIGEST

NONCE = re.compile(r"[0-9a-fA-F]{64}")
PURPOSE = "aci.report_data.v1"


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


def aci_statement(keyset_digest: str, nonce: str | None) -> bytes:
    """The bytes whose SHA-256 an ACI quote holds: exactly these, in this order (wire contract 7.2).

    `keyset_digest`: a digest string. `nonce`: 64 lower-case hex digits, or None for the form without freshness. Raises
    ValueError for anything else, so that neither can bring members of its own.
    """
    if DIGEST.fullmatch(keyset_digest) is None:
        raise ValueError("the keyset digest is not sha256: and 64 lower-case hex digits")
    if nonce is not None and BARE_DIGEST.fullmatch(nonce) is None:
        raise ValueError("the nonce is not 64 lower-case hex digits")
    written = "null" if nonce is None else f'"{nonce}"'
    return f'{{"keyset_digest":"{keyset_digest}","nonce":{written},"purpose":"{PURPOSE}"}}'.encode()


def aci_report_data(keyset_digest: str, nonce: str | None) -> bytes:
    """The 64 bytes of the quote's slot: SHA-256 of the statement, then 32 zero bytes. Raises ValueError."""
    return sha256(aci_statement(keyset_digest, nonce)).digest().ljust(64, b"\0")


def parse_aci_nonce(text: str | None) -> str | None:
    """The `nonce` parameter of the ACI report: None when absent. Raises InvalidRequest.

    Exactly 64 lower-case hex digits (wire contract 7.2); an empty value is a value.
    """
    if text is not None and BARE_DIGEST.fullmatch(text) is None:
        raise InvalidRequest("nonce must be 64 lower-case hex digits, or be left out", param="nonce")
    return text
