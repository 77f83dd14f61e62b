"""Attested sessions: one verified upstream channel for one period, under the hash of its content (wire contract 7.8).

A direct service has none; a relying party of an aggregator reads those that receipts cite.
"""

from hashlib import sha256
from hmac import compare_digest
from typing import Any

import msgspec

from confide.protocol.canonical import (
    DocumentError,
    canonical,
    digest_of,
    of_known_types,
    parse_document,
    typed,
    unbase64,
)
from confide.protocol.keyset import Digest, Hex64, Integer
from confide.protocol.report import API_VERSION

UNKNOWN = "unknown"
STATED = ("asserted", "refuted")
SOURCES = ("hardware_proven", "verifier_derived", "provider_asserted", "operator_asserted")
TLS_KEY, E2EE_KEY = "tls_spki_sha256", "e2ee_public_key_sha256"


class Claim(msgspec.Struct, frozen=True):
    """One claim about an upstream: `asserted` or `refuted` with one of SOURCES, or `unknown`, bare.

    A status or a source that this version does not define is read as `unknown` (ACI specification, appendix B), and so
    is a statement without its source.
    """

    status: str
    source: str | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATED or self.source not in SOURCES:
            for name, value in (("status", UNKNOWN), ("source", None), ("reason", None)):
                msgspec.structs.force_setattr(self, name, value)


class Claims(msgspec.Struct, frozen=True):
    """The six claims, all of them always. `extra`: further facts, texts, integers and booleans."""

    tee_attested: Claim
    gpu_attested: Claim
    tcb_up_to_date: Claim
    os_known_good: Claim
    serving_software_known_good: Claim
    model_weights_provenance: Claim
    extra: dict[str, Any] = {}


class Binding(msgspec.Struct, frozen=True):
    """What the channel is bound to: a TLS key (`tls_spki_sha256`) or an encryption key (`e2ee_public_key_sha256`).

    Of another type only the type is read; it is no binding that could be enforced.
    """

    type: str
    origin: str | None = None
    spki_sha256: Hex64 | None = None
    provider: str | None = None
    key_id: str | None = None
    algorithm: str | None = None
    public_key_sha256: Hex64 | None = None


class SessionEvidence(msgspec.Struct, frozen=True):
    """The bytes that the verifier consumed, as a data URL, and their digest."""

    digest: Digest
    data: str


class Session(msgspec.Struct, frozen=True):
    """A session document's members. Times: Unix seconds."""

    api_version: str
    upstream_name: str
    endpoint: str | None
    verifier_id: str
    established_at: Integer
    expires_at: Integer
    channel_binding: tuple[Binding, ...]
    claims: Claims
    evidence: SessionEvidence
    identity: dict[str, Any] | None = None


def session_id(document: object) -> str:
    """The id of a session document: SHA-256 of its canonical form, bare hex. Raises DocumentError."""
    return sha256(canonical(document)).hexdigest()


def listed(document: dict[str, Any]) -> dict[str, Any]:
    """The document as the list shows it: with its id, without the evidence's data."""
    evidence = {name: value for name, value in document["evidence"].items() if name != "data"}
    return {**document, "session_id": session_id(document), "evidence": evidence}


def parse_session(raw: bytes, expected_id: str) -> Session:
    """The session that a receipt cites as `expected_id` (64 lower-case hex digits). Raises DocumentError (9.4).

    Checked: that it is that very document, and that the evidence in it has the digest it names. Not checked: the
    evidence itself, the claims, the period.
    """
    document = parse_document(raw, what="the session")
    if session_id(document) != expected_id:
        raise DocumentError(f"the session is another document than the one with the id {expected_id}")
    bindings = of_known_types(document.get("channel_binding"), (TLS_KEY, E2EE_KEY))
    session = typed({**document, "channel_binding": bindings}, Session, what="the session")
    if session.api_version != API_VERSION:
        raise DocumentError(f"the session: api_version is not {API_VERSION}")
    for binding in session.channel_binding:
        check_binding(binding)
    if not compare_digest(digest_of(evidence_bytes(session.evidence.data)), session.evidence.digest):
        raise DocumentError("the session: evidence.data does not have the digest evidence.digest")
    return session


def check_binding(binding: Binding) -> None:
    """Raise DocumentError for a binding of a known type without the key that it binds to."""
    if binding.type == TLS_KEY and (binding.origin is None or binding.spki_sha256 is None):
        raise DocumentError(f"the session: a {TLS_KEY} binding without its origin or its key")
    if binding.type == E2EE_KEY and binding.public_key_sha256 is None:
        raise DocumentError(f"the session: a {E2EE_KEY} binding without its key")


def evidence_bytes(data_url: str) -> bytes:
    """The bytes in `data:<type>;base64,<…>`. Raises DocumentError."""
    head, separator, encoded = data_url.partition(";base64,")
    if not separator or not head.startswith("data:"):
        raise DocumentError("the session: evidence.data is no base64 data URL")
    return unbase64(encoded, what="the session: evidence.data")
