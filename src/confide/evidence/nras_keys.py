"""The keys of NVIDIA's remote attestation service, as the caller got them: a trust anchor (tee-evidence 3.4, 4.3).

The service changes its keys about daily, so no hash of them can be built in. Whoever calls says that a set is the
service's, because they fetched it from there or pinned it in a file. A set that the peer brought along never counts.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from confide.evidence.result import TrustAnchor, quoted

MAX_KEY_SET_BYTES = 256 * 1024
COORDINATE_BYTES = 48  # of a point on P-384
SIMULATED_PREFIX = "simulated-"  # what the id of a simulator's key begins with


class KeySetError(ValueError):
    """The bytes are no key set that could verify a token. The text is for people."""


@dataclass(frozen=True)
class NrasKeys:
    """P-384 keys by their id, and the anchor that the set is: "nras-jwks", or "sim:<sha256>" for a simulator's."""

    anchor: TrustAnchor
    keys: Mapping[str, ec.EllipticCurvePublicKey]


class Jwk(msgspec.Struct, frozen=True):
    """The members of one key that count (RFC 7517, 4; RFC 7518, 6.2). `x5c`: certificates, base64 of DER."""

    kty: str
    kid: str | None = None
    crv: str | None = None
    x: str | None = None
    y: str | None = None
    x5c: tuple[str, ...] = ()


class KeySet(msgspec.Struct, frozen=True):
    """A key set (RFC 7517, 5)."""

    keys: tuple[Jwk, ...]


def read_key_set(jwks: bytes, *, simulated: bool) -> NrasKeys:
    """The keys in JSON text that the caller vouches for. Raises KeySetError.

    `simulated`: they are a simulator's, and every result will say so; so it will where an id says it. The anchor's hash
    is over these very bytes. Keys that are not on P-384 are left out, as no token may be signed with them.
    """
    if len(jwks) > MAX_KEY_SET_BYTES:
        raise KeySetError(f"{len(jwks)} bytes of key set, expected at most {MAX_KEY_SET_BYTES}")
    try:
        key_set = msgspec.json.decode(jwks, type=KeySet)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise KeySetError(f"the key set cannot be read: {quoted(error)}") from error
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    for jwk in key_set.keys:
        key = public_key(jwk)
        if key is None or jwk.kid is None:
            continue
        if jwk.kid in keys:
            raise KeySetError(f"two keys have the id {quoted(jwk.kid)}")
        keys[jwk.kid] = key
    if not keys:
        raise KeySetError("the key set holds no key on P-384 with an id")
    digest = sha256(jwks).hexdigest()
    simulated = simulated or any(key_id.startswith(SIMULATED_PREFIX) for key_id in keys)
    name = f"sim:{digest}" if simulated else "nras-jwks"
    return NrasKeys(TrustAnchor(name, digest, simulated), MappingProxyType(keys))


def public_key(jwk: Jwk) -> ec.EllipticCurvePublicKey | None:
    """The key, from its certificate where there are no coordinates; None for one of another kind."""
    if jwk.kty != "EC" or jwk.crv not in ("P-384", None):
        return None
    try:
        key = certified(jwk.x5c) if jwk.x is None or jwk.y is None else point(jwk.x, jwk.y)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise KeySetError(f"the key {quoted(jwk.kid)} cannot be used: {quoted(error)}") from error
    return key if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1) else None


def point(x: str, y: str) -> ec.EllipticCurvePublicKey:
    """The key with these coordinates, which have their full length always (RFC 7518, 6.2.1.2). Raises ValueError."""
    raw_x, raw_y = unpadded(x), unpadded(y)
    if len(raw_x) != COORDINATE_BYTES or len(raw_y) != COORDINATE_BYTES:
        raise ValueError(f"its coordinates have {len(raw_x)} and {len(raw_y)} bytes, expected {COORDINATE_BYTES} each")
    # SEC 1, 2.3.3: 04 ‖ x ‖ y. The library refuses what is no point of the curve.
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), b"\x04" + raw_x + raw_y)


def certified(x5c: tuple[str, ...]) -> object:
    """The key in the first certificate. Raises ValueError. The certificate itself proves nothing here: the set does."""
    if not x5c:
        raise ValueError("it has neither coordinates nor a certificate")
    return x509.load_der_x509_certificate(base64.b64decode(x5c[0], validate=True)).public_key()


def unpadded(text: str) -> bytes:
    """Base64 in its URL form without padding (RFC 7515, 2). Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
