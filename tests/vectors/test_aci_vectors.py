"""The ACI vectors: the published values of `aci/1`, and those derived from its formulas with the same fixed keys.

Where a vector says how something is made, it is made; where it says how something is read, it is read; to the byte.
"""

import json
from hashlib import sha256
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from confide.errors import InvalidRequest
from confide.protocol.canonical import DocumentError, canonical, digest_of, parse_document
from confide.protocol.chat import parse_chat
from confide.protocol.keyset import Keyset, PublicKey, TlsKey, parse_keyset
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED, parse_receipt, signature_fault, signed_receipt
from confide.protocol.report import SourceProvenance, aci_report, binds, parse_report
from confide.protocol.serving import Constraints, forwarded_body, parse_constraints
from confide.protocol.session import evidence_bytes, listed, parse_session, session_id
from confide.protocol.statement import aci_report_data, aci_statement, parse_aci_nonce
from shared_data import vectors

KEYSET = vectors("aci-keyset.json")
SESSION = vectors("aci-session.json")
RECEIPT = vectors("aci-receipt.json")
EXTRA = vectors("aci-receipts-extra.json")
NONCES = vectors("aci-nonce-cases.json")
PROVIDER = vectors("aci-provider-constraints.json")
JCS = vectors("jcs-constraints.json")

STATEMENTS = [pytest.param(each, id=f"nonce {str(each['nonce'])[:4]}") for each in KEYSET.get("statements", [])]
RECEIPTS = [pytest.param(each, id=each["name"]) for each in EXTRA.get("cases", [])]
CASES = [pytest.param(each, id=json.dumps(each["provider"])[:60]) for each in PROVIDER.get("cases", [])]

pytestmark = pytest.mark.skipif(
    not all([STATEMENTS, SESSION, RECEIPT, RECEIPTS, NONCES, CASES, JCS]),
    reason="the shared test vectors are not beside this checkout",
)


class VectorKey:
    """The receipt key of the vectors: published fill bytes, worthless outside a test."""

    key_id = "receipt-1"

    def __init__(self) -> None:
        seed = bytes.fromhex(KEYSET["keys"][0]["private_seed_hex"])
        self.private = Ed25519PrivateKey.from_private_bytes(seed)

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


@pytest.fixture(scope="module")
def key() -> VectorKey:
    return VectorKey()


@pytest.fixture(scope="module")
def keyset() -> Keyset:
    parsed, _ = parse_keyset(KEYSET["keyset"])
    return parsed


def plain(value: object) -> Any:
    """As another program reads what we wrote."""
    return json.loads(json.dumps(value))


# The keyset and its statement


def test_the_public_keys_are_those_of_the_private_ones(key: VectorKey) -> None:
    receipt, e2ee = KEYSET["keys"]
    assert key.private.public_key().public_bytes_raw().hex() == receipt["public_key_hex"]
    x25519 = X25519PrivateKey.from_private_bytes(bytes.fromhex(e2ee["private_seed_hex"]))
    assert x25519.public_key().public_bytes_raw().hex() == e2ee["public_key_hex"]


def test_the_published_keyset_is_read_and_has_the_published_digest(keyset: Keyset) -> None:
    assert canonical(KEYSET["keyset"]).decode() == KEYSET["keyset_jcs"]
    assert parse_keyset(KEYSET["keyset"]) == (keyset, KEYSET["workload_keyset_digest"])
    assert parse_keyset(json.loads(KEYSET["keyset_jcs"])) == (keyset, KEYSET["workload_keyset_digest"])
    assert keyset.receipt_key("receipt-1") == bytes.fromhex(KEYSET["keys"][0]["public_key_hex"])


def test_a_keyset_that_we_build_is_the_published_one() -> None:
    receipt, e2ee = KEYSET["keys"]
    built = Keyset(
        subject="dstack-app://example-app",
        not_after=1800000000,
        receipt_signing_keys=(PublicKey("receipt-1", "ed25519", receipt["public_key_hex"]),),
        e2ee_public_keys=(PublicKey("e2ee-1", "x25519-aes-256-gcm-hkdf-sha256", e2ee["public_key_hex"]),),
        tls_public_keys=(TlsKey("c0" * 32, "api.example.com"),),
    )
    assert plain(built.document()) == KEYSET["keyset"]
    assert canonical(built.document()).decode() == KEYSET["keyset_jcs"]
    assert built.digest() == KEYSET["workload_keyset_digest"]


@pytest.mark.parametrize("case", STATEMENTS)
def test_statement_and_report_data_are_the_published_ones(case: dict[str, Any]) -> None:
    digest, nonce = KEYSET["workload_keyset_digest"], case["nonce"]
    assert aci_statement(digest, nonce).decode() == case["statement"]
    assert sha256(case["statement"].encode()).hexdigest() == case["report_data"]
    assert aci_report_data(digest, nonce).hex() == case["report_data_slot"]


@pytest.mark.parametrize("case", STATEMENTS)
def test_a_report_over_the_published_keyset_holds_the_published_report_data(
    case: dict[str, Any], keyset: Keyset
) -> None:
    document = aci_report(
        keyset=keyset,
        nonce=case["nonce"],
        tee_type="tdx",
        provenance=SourceProvenance(),
        evidence={"quote": "00", "quote_report_data": case["report_data_slot"]},
    )
    report = parse_report(json.dumps(document).encode())
    assert report.report_data == case["report_data"]
    assert report.claimed_digest == report.keyset_digest == KEYSET["workload_keyset_digest"]
    assert binds(report, case["nonce"]) is None
    others = {each["nonce"] for each in KEYSET["statements"]} - {case["nonce"]}
    assert all(binds(report, other) is not None for other in others)


def test_nonces_are_taken_and_refused_as_listed() -> None:
    for nonce in NONCES["accept"]:
        assert parse_aci_nonce(nonce) == nonce
    for nonce in NONCES["reject_400_invalid_request_error"]:
        with pytest.raises(InvalidRequest) as caught:
            parse_aci_nonce(nonce)
        assert (caught.value.status, caught.value.type, caught.value.param) == (400, "invalid_request_error", "nonce")


# Receipts


def check_receipt(document: dict[str, Any], key: VectorKey, keyset: Keyset, bodies: dict[str, str | None]) -> None:
    """The receipt is read and verifies, its hashes are those of the bodies, and its key signs it to the same bytes."""
    receipt = parse_receipt(json.dumps(document).encode())
    assert signature_fault(receipt, keyset) is None
    assert receipt.members.workload_keyset_digest == KEYSET["workload_keyset_digest"]
    for event_type, body in bodies.items():
        assert receipt.body_hash(event_type) == (None if body is None else digest_of(body.encode()))
    unsigned = {name: value for name, value in document.items() if name != "signature"}
    assert receipt.signing_input == canonical(unsigned)
    assert key.sign(canonical(unsigned)).hex() == document["signature"]


def test_the_published_receipt_is_read_and_verifies(key: VectorKey, keyset: Keyset) -> None:
    request, response = RECEIPT["request_body_utf8"], RECEIPT["response_body_utf8"]
    check_receipt(RECEIPT["document"], key, keyset, {RECEIVED: request, FORWARDED: request, RETURNED: response})
    receipt = parse_receipt(RECEIPT["document_jcs"].encode())
    assert receipt.signing_input.decode() == RECEIPT["signing_input_jcs"]
    assert sha256(receipt.signing_input).hexdigest() == RECEIPT["signing_input_sha256"]
    [upstream] = receipt.upstream
    assert (upstream.result, upstream.required, upstream.model_id) == ("verified", True, "demo-model")
    assert upstream.session_id == SESSION["session_id"]


def test_the_published_receipt_is_signed_to_the_published_bytes(key: VectorKey) -> None:
    assert digest_of(RECEIPT["request_body_utf8"].encode()) == RECEIPT["request_body_hash"]
    assert digest_of(RECEIPT["response_body_utf8"].encode()) == RECEIPT["response_body_hash"]
    signing_input = canonical(RECEIPT["unsigned_document"])
    assert signing_input.decode() == RECEIPT["signing_input_jcs"]
    signature = key.sign(signing_input).hex()
    assert signature == RECEIPT["signature"]
    assert canonical({**RECEIPT["unsigned_document"], "signature": signature}).decode() == RECEIPT["document_jcs"]


@pytest.mark.parametrize("case", RECEIPTS)
def test_the_derived_receipts_are_read_and_verify(case: dict[str, Any], key: VectorKey, keyset: Keyset) -> None:
    document = case["document"]
    processed = case.get("request_restored_utf8", case["request_wire_utf8"])
    is_forwarded = any(event["type"] == FORWARDED for event in document["event_log"])
    forwarded = case.get("forwarded_utf8", processed) if is_forwarded else None
    bodies = {RECEIVED: processed, FORWARDED: forwarded, RETURNED: case["response_wire_utf8"]}
    check_receipt(document, key, keyset, bodies)


def test_a_refusal_says_why_no_session_served(keyset: Keyset) -> None:
    [case] = [case for case in EXTRA["cases"] if case.get("http_status")]
    receipt = parse_receipt(json.dumps(case["document"]).encode())
    [upstream] = receipt.upstream
    assert (upstream.result, upstream.required, upstream.session_id) == ("failed", True, None)
    assert upstream.reason == "no verifier result"
    assert receipt.members.chat_id is None


def test_our_receipt_of_a_direct_service_is_the_derived_one_and_our_outcome(key: VectorKey) -> None:
    direct = EXTRA["cases"][0]
    document, request = direct["document"], sha256(direct["request_wire_utf8"].encode()).digest()
    ours = signed_receipt(
        receipt_id=document["receipt_id"],
        chat_id=document["chat_id"],
        model=document["model"],
        keyset_digest=document["workload_keyset_digest"],
        endpoint=document["endpoint"],
        served_at=document["served_at"],
        received_sha256=request,
        forwarded_sha256=request,
        returned_sha256=sha256(direct["response_wire_utf8"].encode()).digest(),
        outcome="complete",
        signer=key,
    )
    outcome = {"outcome": "complete", "type": "response.outcome"}
    expected = {**document, "event_log": [*document["event_log"], outcome]}
    del expected["signature"]
    expected["signature"] = key.sign(rfc8785.dumps(expected)).hex()
    assert ours == rfc8785.dumps(expected)


def test_a_constraint_is_stripped_to_the_derived_bytes() -> None:
    case = EXTRA["cases"][1]
    body = case["request_wire_utf8"].encode()
    constraints = parse_constraints(parse_chat(body).provider)
    assert constraints == Constraints(required=True, stated=True)
    stripped = forwarded_body(body, drop_constraints=constraints.stated, drop_empty_tool_calls=False)
    assert stripped.decode() == case["forwarded_utf8"]


# Sessions


def test_the_published_session_is_read_under_its_id() -> None:
    for raw in (json.dumps(SESSION["document"]).encode(), SESSION["document_jcs"].encode()):
        session = parse_session(raw, SESSION["session_id"])
        assert evidence_bytes(session.evidence.data).decode() == SESSION["evidence_bytes_utf8"]
        assert session.evidence.digest == digest_of(SESSION["evidence_bytes_utf8"].encode())
        assert session.claims.tee_attested.status == "asserted"
        assert session.claims.gpu_attested.status == "unknown"


def test_the_session_document_has_the_published_form_and_id() -> None:
    assert canonical(SESSION["document"]).decode() == SESSION["document_jcs"]
    assert session_id(SESSION["document"]) == SESSION["session_id"]
    shown = listed(SESSION["document"])
    assert shown["session_id"] == SESSION["session_id"]
    assert shown["evidence"] == {"digest": SESSION["document"]["evidence"]["digest"]}


# Serving constraints and canonical form


def constraints_in(provider: object) -> Constraints:
    """As the prompt path comes to them: out of a body."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "provider": provider}
    return parse_constraints(parse_chat(json.dumps(body).encode()).provider)


@pytest.mark.parametrize("case", CASES)
def test_provider_members_are_taken_as_listed(case: dict[str, Any]) -> None:
    provider, result = case["provider"], case["result"]
    if result == "400 invalid_request_error":
        with pytest.raises(InvalidRequest) as caught:
            constraints_in(provider)
        assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
        assert str(caught.value.param).startswith("provider")
        return
    constraints = constraints_in(provider)
    assert constraints.required == result.startswith("required")
    assert constraints.session_ids == ((SESSION["session_id"],) if "pinned" in result else ())


def test_what_has_a_canonical_form_and_what_is_refused_is_as_listed() -> None:
    for case in JCS["accept"]:
        value = parse_document(case["value_json"].encode(), what="the value")
        assert canonical(value).decode() == case["jcs"]
    for text in JCS["reject_value_json"]:
        value = parse_document(text.encode(), what="the value")
        with pytest.raises(DocumentError):
            canonical(value)


def test_an_independent_library_gives_the_same_canonical_forms() -> None:
    documents = [KEYSET["keyset"], SESSION["document"], RECEIPT["unsigned_document"], RECEIPT["document"]]
    documents += [case["document"] for case in EXTRA["cases"]]
    documents += [json.loads(case["value_json"]) for case in JCS["accept"]]
    assert all(canonical(document) == rfc8785.dumps(document) for document in documents)
