"""Honest ACI documents with fixed keys, as values that a test changes and as bytes that a relying party reads."""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.protocol.bundle import AnswerProof, ServiceProof, write_bundle
from confide.protocol.canonical import canonical, digest_of
from confide.protocol.keyset import ED25519, Keyset, PublicKey, TlsKey
from confide.protocol.receipt import signed_receipt
from confide.protocol.report import SourceProvenance, aci_report
from confide.protocol.statement import aci_report_data

Document = dict[str, Any]
Way = tuple[Any, ...]

NONCE = bytes(range(32)).hex()
SERVED_AT = 1_750_000_000
SENT, RECEIVED = b'{"model":"m","messages":[]}', 'data: {"id":"chatcmpl-1"}\n\ndata: é\n\n'.encode()


class TestKey:
    """A receipt key made of one fill byte, worthless outside a test."""

    __test__ = False

    def __init__(self, fill: int = 2, key_id: str = "receipt-1") -> None:
        self.key_id = key_id
        self._private = Ed25519PrivateKey.from_private_bytes(bytes([fill]) * 32)

    @property
    def public_hex(self) -> str:
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


SIGNER = TestKey()


def keyset(**changes: Any) -> Keyset:
    members: Document = {
        "subject": None,
        "not_after": 1_800_000_000,
        "receipt_signing_keys": (PublicKey(SIGNER.key_id, ED25519, SIGNER.public_hex),),
        "e2ee_public_keys": (PublicKey("e2ee-1", "x25519-aes-256-gcm-hkdf-sha256", "5d" * 32),),
        "tls_public_keys": (TlsKey("c0" * 32, "api.example.com"),),
    }
    return Keyset(**(members | changes))


def keyset_document() -> Document:
    """As JSON parsing gives it."""
    document: Document = json.loads(canonical(keyset().document()))
    return document


def report(nonce: str | None = NONCE, **changes: Any) -> Document:
    """An honest report with a made-up quote."""
    members: Document = {
        "keyset": keyset(),
        "nonce": nonce,
        "tee_type": "tdx",
        "provenance": SourceProvenance(repo_url="https://git.example.com/a", repo_commit="ab" * 20),
        "evidence": {
            "quote": "04aB",
            "quote_report_data": aci_report_data(keyset().digest(), nonce).hex(),
            "event_log": "[]",
            "simulated": True,
        },
    }
    document: Document = json.loads(json.dumps(aci_report(**(members | changes))))
    return document


@cache
def receipt_bytes() -> bytes:
    """The receipt of one answer, as it is served."""
    return receipt()


def receipt(signer: TestKey = SIGNER, **changes: Any) -> bytes:
    members: Document = {
        "receipt_id": "rcpt-00112233445566778899aabb",
        "chat_id": "chatcmpl-1",
        "model": "m",
        "keyset_digest": keyset().digest(),
        "endpoint": "/v1/chat/completions",
        "served_at": SERVED_AT,
        "received_sha256": sha256(SENT).digest(),
        "forwarded_sha256": sha256(SENT).digest(),
        "returned_sha256": sha256(RECEIVED).digest(),
        "outcome": "complete",
        "signer": signer,
    }
    return signed_receipt(**(members | changes))


def receipt_document() -> Document:
    document: Document = json.loads(receipt_bytes())
    return document


def signed(document: Document, signer: TestKey = SIGNER) -> bytes:
    """Any receipt document, signed as any other service would sign it."""
    unsigned = {name: value for name, value in document.items() if name != "signature"}
    return json.dumps({**unsigned, "signature": signer.sign(canonical(unsigned)).hex()}).encode()


def session() -> Document:
    """A session document over the evidence "example-evidence"."""
    unknown = {"status": "unknown"}
    return {
        "api_version": "aci/1",
        "upstream_name": "demo-upstream",
        "endpoint": "https://upstream.example.com",
        "verifier_id": "example/1",
        "established_at": SERVED_AT,
        "expires_at": SERVED_AT + 3600,
        "identity": {"signing_address": "0xab"},
        "channel_binding": [
            {"type": "tls_spki_sha256", "origin": "https://upstream.example.com", "spki_sha256": "d1" * 32},
            {"type": "e2ee_public_key_sha256", "algorithm": "x", "public_key_sha256": "d2" * 32},
        ],
        "claims": {
            "tee_attested": {"status": "asserted", "source": "hardware_proven", "reason": "the quote verified"},
            "gpu_attested": unknown,
            "tcb_up_to_date": {"status": "refuted", "source": "verifier_derived", "reason": "OutOfDate"},
            "os_known_good": unknown,
            "serving_software_known_good": unknown,
            "model_weights_provenance": unknown,
            "extra": {"tcb_status": "OutOfDate", "gpus": 8},
        },
        "evidence": {
            "digest": digest_of(b"example-evidence"),
            "data": "data:text/plain;base64,ZXhhbXBsZS1ldmlkZW5jZQ==",
        },
    }


def service_proof(**changes: Any) -> ServiceProof:
    members: Document = {
        "url": "https://api.example.com",
        "nonce": NONCE,
        "verified_at": SERVED_AT,
        "spki_sha256": "c0" * 32,
        "report": json.dumps(report()),
    }
    return ServiceProof(**(members | changes))


def answer_proof(**changes: Any) -> AnswerProof:
    members: Document = {
        "endpoint": "/v1/chat/completions",
        "receipt": receipt_bytes().decode(),
        "request_sha256": sha256(SENT).hexdigest(),
        "response_sha256": sha256(RECEIVED).hexdigest(),
        "receipt_id": "rcpt-00112233445566778899aabb",
        "chat_id": "chatcmpl-1",
        "status": 200,
    }
    return AnswerProof(**(members | changes))


def bundle() -> Document:
    """A bundle with the proof of one answer, without its bodies."""
    document: Document = json.loads(write_bundle(service_proof(), [answer_proof()]))
    return document


def ways(value: object, at: Way = ()) -> list[Way]:
    """The paths of all values in a document but its root."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way for key, below in entries for way in [(*at, key), *ways(below, (*at, key))]]


def edited(document: Document, way: Way, edit: Callable[[Any, Any], None]) -> Document:
    """A copy in which `edit(holder, key)` was done to the value at `way`."""
    copy = deepcopy(document)
    holder: Any = copy
    for key in way[:-1]:
        holder = holder[key]
    edit(holder, way[-1])
    return copy


def replaced(document: Document, way: Way, value: object) -> Document:
    """A copy with another value at `way`; one that is there already, or at a new name of the last object."""
    return edited(document, way, lambda holder, key: holder.__setitem__(key, value))


def removed(document: Document, way: Way) -> Document:
    return edited(document, way, lambda holder, key: holder.__delitem__(key))
