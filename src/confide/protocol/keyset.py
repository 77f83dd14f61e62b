"""The workload keyset: the public keys of one service, and the digest that is its identity (wire contract 7.1)."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Annotated, Any

import msgspec

from confide.protocol.canonical import DocumentError, canonical, digest_of, typed

ED25519 = "ed25519"
ED25519_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: the DER of a SubjectPublicKeyInfo

Hex64 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
Integer = Annotated[int, msgspec.Meta(ge=-(2**53) + 1, le=2**53 - 1)]


class PublicKey(msgspec.Struct, frozen=True):
    """A key by its id. `public_key`: bare hex, 64 digits for Ed25519 and X25519."""

    key_id: str
    algo: str
    public_key: str


class TlsKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """A TLS key: SHA-256 of its SubjectPublicKeyInfo in DER, bare hex. Without `domain` it stands for every host."""

    spki_sha256: Hex64
    domain: str | msgspec.UnsetType = msgspec.UNSET


class Keyset(msgspec.Struct, frozen=True):
    """What a service's keys are and until when. `not_after`: Unix seconds; at that second it is over.

    A foreign service that takes nothing in clear over HTTPS may leave the TLS keys out.
    """

    subject: str | None
    not_after: Integer
    receipt_signing_keys: tuple[PublicKey, ...]
    e2ee_public_keys: tuple[PublicKey, ...]
    tls_public_keys: tuple[TlsKey, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON members."""
        members: dict[str, Any] = msgspec.to_builtins(self)
        return members

    def digest(self) -> str:
        """`workload_keyset_digest` of this keyset as we write it; of a foreign one `parse_keyset` gives it."""
        return keyset_digest(self.document())

    def receipt_key(self, key_id: str) -> bytes | None:
        """The 32-byte Ed25519 key that signs receipts under this id, None when there is none.

        Entries with other algorithms are passed over: the entry alone decides the algorithm (wire contract 7.6).
        """
        for key in self.receipt_signing_keys:
            if key.key_id == key_id and key.algo == ED25519:
                return bytes.fromhex(key.public_key)
        return None

    def tls_pins(self, host: str) -> frozenset[bytes]:
        """SPKI digests (32 bytes each) that a connection to `host` may show. Entries without a domain fit any host.

        Names are compared without regard to case and a final dot.
        """
        return frozenset(
            bytes.fromhex(key.spki_sha256)
            for key in self.tls_public_keys
            if key.domain is msgspec.UNSET or plain_host(key.domain) == plain_host(host)
        )

    @property
    def domains(self) -> frozenset[str]:
        """The hosts that TLS keys are listed for, lower case; none when every key stands for every host."""
        return frozenset(plain_host(key.domain) for key in self.tls_public_keys if key.domain is not msgspec.UNSET)


def plain_host(host: str) -> str:
    """The name in lower case, without its final dot."""
    return host.removesuffix(".").lower()


def keyset_digest(document: Mapping[str, Any]) -> str:
    """The digest string over the canonical form of the keyset *as parsed*, members unknown to us included."""
    return digest_of(canonical(document))


def parse_keyset(document: object) -> tuple[Keyset, str]:
    """A foreign keyset and its digest, recomputed. Raises DocumentError naming what is wrong.

    Refused: no Ed25519 receipt key, one id twice, and a key in two roles (wire contract 7.1).
    """
    keyset = typed(document, Keyset, what="the keyset")
    check_receipt_keys(keyset)
    assert isinstance(document, Mapping)
    return keyset, keyset_digest(document)


def check_receipt_keys(keyset: Keyset) -> None:
    """Raise DocumentError unless each id names one receipt key, and no receipt key has a second role."""
    keys = [key for key in keyset.receipt_signing_keys if key.algo == ED25519]
    if not keys:
        raise DocumentError("the keyset: no receipt signing key has the algorithm ed25519")
    if len({key.key_id for key in keyset.receipt_signing_keys}) != len(keyset.receipt_signing_keys):
        raise DocumentError("the keyset: a key_id stands twice among the receipt signing keys")
    sealing = {key.public_key.lower() for key in keyset.e2ee_public_keys}
    tls = {key.spki_sha256 for key in keyset.tls_public_keys}
    for key in keys:
        public = typed(key.public_key, Hex64, what="the keyset: the public key of a receipt signing key")
        spki = sha256(ED25519_SPKI_PREFIX + bytes.fromhex(public)).hexdigest()
        if public in sealing or spki in tls:
            raise DocumentError("the keyset: a receipt signing key has a second role")
