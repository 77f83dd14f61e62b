"""The legacy request signature: its text, its two encodings, and how a client checks it (wire contract 5).

On success `verify_text` has proved that the holder of the key behind `address` signed exactly this text. It does not
prove that the text names the bytes the client saw (`split_text`, then compare), nor that the key lives in a TEE
(the attestation report does, wire contract 6).
"""

import re
from enum import StrEnum

from coincurve import PublicKey
from Crypto.Hash import keccak
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from confide.errors import InvalidSigningAlgo, VerificationError

# Order of the secp256k1 group (SEC 2, 2.4.1). For each signature (r, s) the pair (r, ORDER - s) verifies as well.
SECP256K1_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
V_OFFSET = 27

TEXT = re.compile(r"(?:[^:]+:)?([0-9a-f]{64}):([0-9a-f]{64})")
HEX = re.compile(r"(?:0x)?([0-9a-fA-F]*)")


class Algo(StrEnum):
    """The values of `signing_algo`."""

    ECDSA = "ecdsa"
    ED25519 = "ed25519"


def parse_algo(text: str | None) -> Algo:
    """The algorithm that `signing_algo` names; None (absent) means ECDSA. Raises InvalidSigningAlgo."""
    if text is None:
        return Algo.ECDSA
    try:
        return Algo(text)
    except ValueError as error:
        raise InvalidSigningAlgo("signing_algo must be ecdsa or ed25519", param="signing_algo") from error


def signature_text(request_sha256: bytes, response_sha256: bytes) -> str:
    """The two-part text over two digests of 32 bytes: bare hex, `:`, bare hex (wire contract 5.1)."""
    if len(request_sha256) != 32 or len(response_sha256) != 32:
        raise ValueError(f"two digests of 32 bytes expected, got {len(request_sha256)} and {len(response_sha256)}")
    return f"{request_sha256.hex()}:{response_sha256.hex()}"


def split_text(text: str) -> tuple[str, str]:
    """Request and response SHA-256 of a two- or three-part text, as 64 lower-case hex digits each.

    A model name with `:` must not be signed in the three-part form (wire contract 5.1), so four parts are refused.
    Raises VerificationError.
    """
    match = TEXT.fullmatch(text)
    if match is None:
        raise VerificationError(
            f"signature: got a text of {text.count(':') + 1} parts and {len(text)} characters, "
            "expected [model:]request:response with two SHA-256 digests in lower-case hex",
            check="signature",
        )
    return match[1], match[2]


def keccak256(message: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it: 32 bytes, with the padding from before SHA-3."""
    return keccak.new(digest_bits=256, data=message).digest()


def eip191_digest(text: str) -> bytes:
    """The 32 bytes that ECDSA signs: EIP-191 `personal_sign` over the UTF-8 bytes of `text` (wire contract 5.4)."""
    message = text.encode()
    return keccak256(b"\x19Ethereum Signed Message:\n%d%b" % (len(message), message))


def ethereum_address(public_key_xy: bytes) -> str:
    """The address of a secp256k1 key given as X and Y (64 bytes): `0x` and 40 lower-case hex digits."""
    if len(public_key_xy) != 64:
        raise ValueError(f"64 bytes X and Y expected, got {len(public_key_xy)}")
    return "0x" + keccak256(public_key_xy)[-20:].hex()


def verify_text(text: str, signature: str, address: str, algo: Algo) -> str:
    """Return the signer's address, as wire contract 5.4 and 5.5 write it, once its signature over `text` verified.

    Hex is read in either case, with or without `0x`, since servers differ in that. Refused with VerificationError
    (check "signature"): another signer or text, the high-s twin of an ECDSA signature, `v` outside 27 and 28.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refusal("a text with lone surrogates", "text that has UTF-8 bytes") from error
    if algo is Algo.ECDSA:
        return verify_ecdsa(text, unhex(signature, 65, "signature"), unhex(address, 20, "address"))
    return verify_ed25519(text, unhex(signature, 64, "signature"), unhex(address, 32, "address"))


def verify_ecdsa(text: str, signature: bytes, address: bytes) -> str:
    """`signature`: 65 bytes r, s, v. `address`: 20 bytes. Returns the address; raises VerificationError."""
    s, v = int.from_bytes(signature[32:64], "big"), signature[64]
    if v not in (V_OFFSET, V_OFFSET + 1):
        raise refusal(f"v = {v}", "27 or 28")
    if s > SECP256K1_ORDER // 2:  # else anyone could turn a signature into a second valid one
        raise refusal("a high s", "s in the lower half of the group order")
    recoverable = signature[:64] + bytes([v - V_OFFSET])
    try:
        key = PublicKey.from_signature_and_message(recoverable, eip191_digest(text), hasher=None)
    except ValueError as error:
        raise refusal("r and s that no key can have made", f"signer 0x{address.hex()}") from error
    signer = ethereum_address(key.format(compressed=False)[1:])
    if signer != "0x" + address.hex():
        raise refusal(f"signer {signer}", f"0x{address.hex()}")
    return signer


def verify_ed25519(text: str, signature: bytes, public_key: bytes) -> str:
    """`signature`: 64 bytes. `public_key`: 32 bytes. Returns the key as hex; raises VerificationError."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, text.encode())
    except InvalidSignature as error:
        raise refusal("a signature of another key or text", f"one by {public_key.hex()}") from error
    return public_key.hex()


def unhex(digits: str, length: int, name: str) -> bytes:
    """`length` bytes from hex with or without `0x`; VerificationError that does not echo what was sent."""
    match = HEX.fullmatch(digits)
    if match is None or len(match[1]) != 2 * length:
        raise refusal(f"{name} of {len(digits)} characters", f"{2 * length} hex digits")
    return bytes.fromhex(match[1])


def refusal(got: str, expected: str) -> VerificationError:
    """The one failure of this module: the check is always "signature"."""
    return VerificationError(f"signature: got {got}, expected {expected}", check="signature")
