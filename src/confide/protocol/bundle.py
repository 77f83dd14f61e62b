"""One file that holds a whole proof, to be checked again without any network (docs/bundle.md).

    {"format": "confide-bundle/1",
     "service": {"url", "nonce", "verified_at", "spki_sha256", "report", "collateral"?},
     "answers": [{"endpoint", "receipt", "request_sha256", "response_sha256", "receipt_id", "chat_id", "status",
                  "request_b64"?, "response_b64"?, "sessions"?}]}

`report`, `receipt` and `sessions` are the documents as texts, exactly as they came: what was hashed and signed is their
content, and nobody has to trust that it was laid out again in the same way.
"""

from collections.abc import Sequence
from hashlib import sha256

import msgspec

from confide.protocol.canonical import DocumentError, parse_document, typed, unbase64
from confide.protocol.keyset import Hex64, Integer

FORMAT = "confide-bundle/1"
MAX_BUNDLE_BYTES = 256 * 1024 * 1024


class ServiceProof(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was shown of the service. `nonce`: the verifier's, 64 hex digits; None for a report that has none.

    `verified_at`: Unix seconds. `spki_sha256`: of the TLS key that the connection had, bare hex, None for plain HTTP.
    `collateral`: what verified the report besides what is in it: a collateral bundle, as text.
    """

    url: str
    nonce: Hex64 | None
    verified_at: Integer
    spki_sha256: Hex64 | None
    report: str
    collateral: str | None = None


class AnswerProof(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One exchange. Hashes: bare hex, over the bytes as sent and as received. Bodies only when asked for."""

    endpoint: str
    receipt: str
    request_sha256: Hex64
    response_sha256: Hex64
    receipt_id: str
    chat_id: str | None
    status: int
    request_b64: str | None = None
    response_b64: str | None = None
    sessions: tuple[str, ...] = ()


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """A service's proof and the proofs of answers under it."""

    format: str
    service: ServiceProof
    answers: tuple[AnswerProof, ...] = ()


def write_bundle(service: ServiceProof, answers: Sequence[AnswerProof]) -> bytes:
    """The file: indented JSON, for people too."""
    encoded = msgspec.json.encode(Bundle(format=FORMAT, service=service, answers=tuple(answers)))
    return msgspec.json.format(encoded, indent=2) + b"\n"


def parse_bundle(raw: bytes) -> Bundle:
    """A bundle from anyone. Raises DocumentError naming what is wrong.

    Where it holds bodies, they are those that its hashes name. Nothing else in it is believed.
    """
    bundle = typed(parse_document(raw, what="the bundle", most_bytes=MAX_BUNDLE_BYTES), Bundle, what="the bundle")
    if bundle.format != FORMAT:
        raise DocumentError(f"the bundle: got the format {bundle.format[:40]!r}, expected {FORMAT}")
    for answer in bundle.answers:
        check_body(answer.request_b64, answer.request_sha256, "request_b64")
        check_body(answer.response_b64, answer.response_sha256, "response_b64")
    return bundle


def check_body(encoded: str | None, expected_sha256: str, member: str) -> None:
    """Raise DocumentError when a body is there and is not the one that was hashed."""
    if encoded is None:
        return
    if sha256(unbase64(encoded, what=f"the bundle: {member}")).hexdigest() != expected_sha256:
        raise DocumentError(f"the bundle: {member} does not have the hash that stands beside it")
