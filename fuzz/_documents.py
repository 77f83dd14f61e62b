"""Honest ACI documents and choices that change them: what the fuzz targets of the protocol room start from."""

import json
from collections.abc import Iterator
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.protocol.canonical import MAX_DEPTH, DocumentError, canonical, digest_of, parse_document
from confide.protocol.keyset import ED25519, Keyset, PublicKey, TlsKey
from fuzz.chat import spell

WORDS = """
type body_hash result required model_id session_id reason outcome status source key_id algo public_key spki_sha256
domain extra digest data quote signature api_version event_log claims évidence
"""
NAMES = WORDS.split()
VALUES: list[object] = [
    "aci/1",
    "ed25519",
    "direct",
    "aggregator",
    "verified",
    "failed",
    "request.received",
    "response.returned",
    "upstream.verified",
    "response.outcome",
    "tls_spki_sha256",
    "asserted",
    "hardware_proven",
    "ab" * 32,
    "AB" * 32,
    "sha256:" + "ab" * 32,
    "data:;base64,YQ==",
    "data:;base64,YR==",
    "\ud800",
    "é" * 64,
    "٠" * 64,
    " " * 64,
    1750000000.0,
    2**53,
    -(2**53),
]


class FixedKey:
    """A receipt key made of one fill byte."""

    key_id = "receipt-1"

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
        self.public_hex = self._private.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


KEY = FixedKey()
KEYSET = Keyset(
    subject=None,
    not_after=1_800_000_000,
    receipt_signing_keys=(PublicKey(KEY.key_id, ED25519, KEY.public_hex),),
    e2ee_public_keys=(PublicKey("e2ee-1", "x25519-aes-256-gcm-hkdf-sha256", "5d" * 32),),
    tls_public_keys=(TlsKey("c0" * 32, "api.example.com"),),
)
SESSION: dict[str, Any] = {
    "api_version": "aci/1",
    "upstream_name": "u",
    "endpoint": None,
    "verifier_id": "example/1",
    "established_at": 1,
    "expires_at": 2,
    "channel_binding": [{"type": "tls_spki_sha256", "origin": "https://a", "spki_sha256": "d1" * 32}],
    "claims": {
        "tee_attested": {"status": "asserted", "source": "hardware_proven", "reason": "r"},
        "gpu_attested": {"status": "unknown"},
        "tcb_up_to_date": {"status": "unknown"},
        "os_known_good": {"status": "unknown"},
        "serving_software_known_good": {"status": "unknown"},
        "model_weights_provenance": {"status": "unknown"},
    },
    "evidence": {"digest": digest_of(b"evidence"), "data": "data:;base64,ZXZpZGVuY2U="},
}


def changed(document: dict[str, Any], choices: Iterator[int]) -> dict[str, Any]:
    """A copy with up to four changes, each at a place that the choices lead to."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    for _ in range(next(choices, 0) % 5):
        change(copy, choices)
    return copy


def change(holder: Any, choices: Iterator[int]) -> None:
    """One change somewhere below: a value taken away, replaced, added, or doubled."""
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = keys[next(choices, 0) % len(keys)]
        if not isinstance(holder[key], dict | list) or next(choices, 0) % 4 == 0:
            break
        holder = holder[key]
    act = next(choices, 0) % 6
    if act == 0:
        del holder[key]
    elif act == 1 and isinstance(holder, list):
        holder.insert(key, holder[next(choices, 0) % len(holder)])
    elif act == 2 and isinstance(holder, dict):
        holder[NAMES[next(choices, 0) % len(NAMES)]] = value(choices)
    elif act == 3 and isinstance(holder[key], str):
        at = next(choices, 0) % (len(holder[key]) + 1)
        holder[key] = holder[key][:at] + chr(next(choices, 0)) + holder[key][at + 1 :]
    else:
        holder[key] = value(choices)


def value(choices: Iterator[int]) -> object:
    """One of VALUES, or a value spelled out."""
    choice = next(choices, 0)
    return VALUES[choice % len(VALUES)] if choice < 128 else spell(choices, NAMES, depth=1)


def read(raw: bytes) -> dict[str, Any] | None:
    """The document, as `parse_document` keeps its promises; None when it refused."""
    try:
        document = parse_document(raw, what="it")
    except DocumentError:
        return None
    if document != json.loads(raw):
        raise AssertionError("another document was read")
    json.dumps(document, ensure_ascii=False, allow_nan=False).encode()  # neither half a surrogate pair nor infinity
    if deepest(document) > MAX_DEPTH:
        raise AssertionError("nesting beyond the limit was let through")
    try:
        form = canonical(document)
    except DocumentError:
        return document
    if canonical(json.loads(form)) != form:
        raise AssertionError("the canonical form is not stable")
    return document


def deepest(document: object, depth: int = 0) -> int:
    """How deep the innermost object or array lies; the root is at 0."""
    below = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    return max([depth, *(deepest(each, depth + 1) for each in below if isinstance(each, dict | list))])
