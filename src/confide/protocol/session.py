"""Attested sessions: one verified upstream channel for one period, under the hash of its content (wire contract 7.8).

A direct service has none; a relying party of an aggregator reads those that receipts cite.
"""

import base64
import binascii
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Literal

import msgspec

from confide.protocol.canonical import DocumentError, canonical, digest_of, parse_document, typed
from confide.protocol.keyset import Integer
from confide.protocol.receipt import Digest
from confide.protocol.report import API_VERSION

Status = Literal["asserted", "refuted", "unknown"]
Source = Literal["hardware_proven", "verifier_derived", "provider_asserted", "operator_asserted"]


class Claim(msgspec.Struct, frozen=True):
    """One claim about an upstream. `source` and `reason` are there unless the status is `unknown`."""

    status: Status
    source: Source | None = None
    reason: str | None = None


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
    """What the channel is bound to: a TLS key (`tls_spki_sha256`) or an encryption key (`e2ee_public_key_sha256`)."""

    type: str
    origin: str | None = None
    spki_sha256: str | None = None
    provider: str | None = None
    key_id: str | None = None
    algorithm: str | None = None
    public_key_sha256: str | None = None


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
    if not compare_digest(session_id(document).encode(), expected_id.encode()):
        raise DocumentError(f"the session is another document than the one with the id {expected_id}")
    session = typed(document, Session, what="the session")
    if session.api_version != API_VERSION:
        raise DocumentError(f"the session: api_version is not {API_VERSION}")
    if not compare_digest(digest_of(evidence_bytes(session.evidence.data)), session.evidence.digest):
        raise DocumentError("the session: evidence.data does not have the digest evidence.digest")
    return session


def evidence_bytes(data_url: str) -> bytes:
    """The bytes in `data:<type>;base64,<…>`. Raises DocumentError."""
    head, separator, encoded = data_url.partition(";base64,")
    if not separator or not head.startswith("data:"):
        raise DocumentError("the session: evidence.data is no base64 data URL")
    try:
        return base64.b64decode(encoded.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise DocumentError("the session: evidence.data is not base64") from None
