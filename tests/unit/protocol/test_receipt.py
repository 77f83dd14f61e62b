"""A receipt holds exactly under one key over one document, and can be read in one way only (wire contract 7.6)."""

import json
from typing import Any

import pytest
import rfc8785

from aci_documents import (
    SIGNER,
    Document,
    TestKey,
    keyset,
    receipt,
    receipt_bytes,
    receipt_document,
    removed,
    replaced,
    signed,
)
from confide.protocol.canonical import DocumentError, digest_of
from confide.protocol.keyset import ED25519, PublicKey
from confide.protocol.receipt import (
    FORWARDED,
    RECEIVED,
    RETURNED,
    attempt_event,
    new_receipt_id,
    not_verified_event,
    parse_receipt,
    signature_fault,
    verified_event_of,
)

LOG = ("event_log",)
GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032 5.1: L
VERIFIED = {
    "type": "upstream.verified",
    "result": "verified",
    "required": True,
    "model_id": "m",
    "session_id": "95" * 32,
}
FAILED = {"type": "upstream.verified", "result": "failed", "required": False, "model_id": "m", "reason": "no quote"}


def refused(document: Document | bytes) -> str:
    """Why it is refused, however well it is signed."""
    with pytest.raises(DocumentError) as caught:
        parse_receipt(document if isinstance(document, bytes) else signed(document))
    return str(caught.value)


def with_event(event: object, at: int = 2) -> Document:
    document = receipt_document()
    document["event_log"].insert(at, event)
    return document


def test_our_receipt_has_the_members_of_the_contract_in_canonical_form() -> None:
    document = receipt_document()
    assert receipt_bytes() == rfc8785.dumps(document)
    hashes = {event["type"]: event.get("body_hash") for event in document.pop("event_log")}
    assert list(hashes) == [RECEIVED, FORWARDED, RETURNED, "response.outcome"]
    assert hashes[RECEIVED] == hashes[FORWARDED] == digest_of(b'{"model":"m","messages":[]}')
    assert len(document.pop("signature")) == 128
    assert document == {
        "api_version": "aci/1",
        "receipt_id": "rcpt-00112233445566778899aabb",
        "chat_id": "chatcmpl-1",
        "model": "m",
        "workload_keyset_digest": keyset().digest(),
        "endpoint": "/v1/chat/completions",
        "method": "POST",
        "served_at": 1_750_000_000,
        "key_id": "receipt-1",
    }


def test_our_receipt_verifies_and_says_how_it_ended() -> None:
    ours = parse_receipt(receipt_bytes())
    assert signature_fault(ours, keyset()) is None
    assert ours.outcome == "complete"
    assert ours.upstream == ()
    assert ours.body_hash(RETURNED) != ours.body_hash(RECEIVED) == ours.body_hash(FORWARDED)


def test_a_refusal_has_no_forwarded_event_and_may_have_no_ids() -> None:
    raw = receipt(forwarded_sha256=None, chat_id=None, model=None, outcome="refused")
    refusal = parse_receipt(raw)
    assert json.loads(raw)["chat_id"] is json.loads(raw)["model"] is None
    assert (refusal.body_hash(FORWARDED), refusal.outcome) == (None, "refused")
    assert signature_fault(refusal, keyset()) is None


@pytest.mark.parametrize(
    "model", ["é", '","signature":"', '"workload_keyset_digest":"', "\x00\x1f\x7f\u2028\\", "😀" * 99]
)
def test_no_text_of_the_caller_moves_the_signature(model: str) -> None:
    raw = receipt(model=model, chat_id=model)
    assert raw == rfc8785.dumps(json.loads(raw))
    assert parse_receipt(raw).members.model == model
    assert signature_fault(parse_receipt(raw), keyset()) is None


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:" + "ab" * 31, "sha256:" + "ab" * 33, "sha256:" + "AB" * 32, "ab" * 32, "x" * 71]
)
def test_a_receipt_names_a_keyset_or_is_not_written(digest: str) -> None:
    with pytest.raises(ValueError, match="keyset digest"):
        receipt(keyset_digest=digest)


def test_a_receipt_holds_whole_hashes_or_is_not_written() -> None:
    for name in ("received_sha256", "forwarded_sha256", "returned_sha256"):
        changes: Document = {name: b"ab"}
        with pytest.raises(ValueError, match="32 bytes expected"):
            receipt(**changes)


def test_a_receipt_id_has_12_random_bytes() -> None:
    assert new_receipt_id(bytes(range(12))) == "rcpt-000102030405060708090a0b"
    for length in (0, 11, 13):
        with pytest.raises(ValueError, match=f"got {length} random bytes"):
            new_receipt_id(bytes(length))


# The signature


def test_any_encoding_of_the_document_verifies() -> None:
    document = receipt_document()
    shuffled = dict(reversed(document.items()))
    for raw in (json.dumps(shuffled, indent=2), json.dumps(document, ensure_ascii=True), json.dumps(document) + "\n"):
        assert signature_fault(parse_receipt(raw.encode()), keyset()) is None


def test_members_that_we_do_not_know_are_signed_along() -> None:
    document = replaced(receipt_document(), ("region",), "x")
    assert signature_fault(parse_receipt(signed(document)), keyset()) is None
    unsigned_addition = json.dumps(document).encode()
    assert "is not one of the attested key" in str(signature_fault(parse_receipt(unsigned_addition), keyset()))


def test_the_key_is_the_one_that_the_attested_keyset_names() -> None:
    imposter = parse_receipt(receipt(TestKey(3)))
    assert "is not one of the attested key" in str(signature_fault(imposter, keyset()))
    unlisted = parse_receipt(receipt(TestKey(2, key_id="receipt-2")))
    assert "names no ed25519 receipt signing key" in str(signature_fault(unlisted, keyset()))


def test_a_key_of_another_role_or_algorithm_signs_no_receipts() -> None:
    sealing = PublicKey("receipt-2", ED25519, SIGNER.public_hex)
    other = PublicKey("receipt-2", "ed25519ph", SIGNER.public_hex)
    raw = parse_receipt(receipt(TestKey(2, key_id="receipt-2")))
    ours = keyset().receipt_signing_keys
    for known in (keyset(e2ee_public_keys=(sealing,)), keyset(receipt_signing_keys=(*ours, other))):
        assert "names no ed25519 receipt signing key" in str(signature_fault(raw, known))


def test_a_second_signature_cannot_be_made_from_the_first() -> None:
    document = receipt_document()
    signature = bytes.fromhex(document["signature"])
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    document["signature"] = (signature[:32] + scalar.to_bytes(32, "little")).hex()
    assert signature_fault(parse_receipt(json.dumps(document).encode()), keyset()) is not None


def test_a_public_key_that_is_no_point_of_the_curve_verifies_nothing() -> None:
    broken = keyset(receipt_signing_keys=(PublicKey("receipt-1", ED25519, "02" + "00" * 31),))
    assert signature_fault(parse_receipt(receipt_bytes()), broken) is not None


@pytest.mark.parametrize(
    "signature", [None, 7, "", "00" * 63, "00" * 65, "AB" * 64, "0x" + "00" * 63, " " * 128, "٠" * 128]
)
def test_a_signature_of_another_form_is_refused(signature: object) -> None:
    document = replaced(receipt_document(), ("signature",), signature)
    assert "signature" in refused(json.dumps(document).encode())


def test_a_receipt_with_two_signatures_or_none_is_refused() -> None:
    text = receipt_bytes().decode()
    twice = text[:-1] + f',"signature":"{"00" * 64}"}}'
    assert "stands twice" in refused(twice.encode())
    assert "stands twice" in refused(twice.replace('"signature":"0', '"\\u0073ignature":"0').encode())
    assert "signature" in refused(json.dumps(removed(receipt_document(), ("signature",))).encode())


# Its members


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("api_version",), "aci/2"),
        (("receipt_id",), None),
        (("chat_id",), 7),
        (("workload_keyset_digest",), "ab" * 32),
        (("workload_keyset_digest",), "sha256:" + "AB" * 32),
        (("served_at",), True),
        (("served_at",), "1750000000"),
        (("served_at",), None),
        (("event_log",), None),
        (("event_log",), {}),
        (("event_log",), []),
        (("event_log", 1), None),
        (("event_log", 1), "request.forwarded"),
        (("event_log", 1, "type"), None),
        (("event_log", 1, "type"), ["request.forwarded"]),
        (("event_log", 0, "body_hash"), None),
        (("event_log", 1, "body_hash"), "ab" * 32),
        (("event_log", 2, "body_hash"), "sha256:" + "AB" * 32),
        (("event_log", 3, "outcome"), 7),
    ],
)
def test_a_member_of_another_form_is_refused(way: tuple[Any, ...], value: object) -> None:
    assert refused(replaced(receipt_document(), way, value)).startswith("the receipt: ")


@pytest.mark.parametrize("value", [1750000000.0, 2**53, -(2**53)])
def test_a_time_that_cannot_be_hashed_is_refused(value: object) -> None:
    assert refused(json.dumps(replaced(receipt_document(), ("served_at",), value)).encode())


@pytest.mark.parametrize("name", sorted(set(receipt_document()) - {"signature"}))
def test_a_member_that_is_not_there_is_refused(name: str) -> None:
    assert refused(removed(receipt_document(), (name,)))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_body_event_without_its_hash_is_refused(position: int) -> None:
    assert "has no body_hash" in refused(removed(receipt_document(), (*LOG, position, "body_hash")))


def test_the_log_begins_with_the_request_and_has_the_response() -> None:
    document = receipt_document()
    assert "first event is not request.received" in refused(replaced(document, LOG, document["event_log"][1:]))
    assert "first event is not request.received" in refused(with_event({"type": "route.selected"}, at=0))
    assert "no event response.returned" in refused(replaced(document, LOG, document["event_log"][:2]))


@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_an_event_of_which_there_is_one_does_not_stand_twice(position: int) -> None:
    event = receipt_document()["event_log"][position]
    assert "stands in it twice" in refused(with_event(event, at=4))
    if position < 3:
        assert "stands in it twice" in refused(with_event({**event, "body_hash": digest_of(b"other")}, at=4))


@pytest.mark.parametrize(
    "event",
    [
        {"type": "route.selected", "target_route_id": 7},
        {"type": "x", "body_hash": 1, "reason": {"a": []}, "required": "no", "session_id": 0, "outcome": None},
        {"type": "Request.Received", "body_hash": "none"},
        {"type": ""},
    ],
)
def test_events_that_we_do_not_know_are_free_and_passed_over(event: object) -> None:
    read = parse_receipt(signed(with_event(event)))
    assert signature_fault(read, keyset()) is None
    assert read.body_hash(RECEIVED) == digest_of(b'{"model":"m","messages":[]}')


def test_what_an_extension_says_is_hashed_along() -> None:
    with pytest.raises(DocumentError, match="float cannot be hashed"):
        parse_receipt(json.dumps(with_event({"type": "timing", "seconds": 0.5})).encode())


def test_upstream_events_are_read_in_order() -> None:
    document = with_event(VERIFIED)
    document["event_log"].insert(2, FAILED)
    failed, verified = parse_receipt(signed(document)).upstream
    assert (failed.result, failed.required, failed.reason, failed.session_id) == ("failed", False, "no quote", None)
    assert (verified.result, verified.required, verified.session_id) == ("verified", True, "95" * 32)


@pytest.mark.parametrize(
    "event",
    [
        {**VERIFIED, "session_id": None},
        {**VERIFIED, "session_id": "../sessions?upstream_name="},
        {**VERIFIED, "session_id": "95" * 31},
        {**VERIFIED, "session_id": "AB" * 32},
        {**VERIFIED, "session_id": "as_" + "95" * 32},
        {**VERIFIED, "required": None},
        {**VERIFIED, "required": 1},
        {**VERIFIED, "required": "true"},
        {**VERIFIED, "result": "Verified"},
        {**VERIFIED, "result": None},
        {**VERIFIED, "model_id": 7},
        {**FAILED, "session_id": "95" * 32},
        {**FAILED, "result": None},
        {**FAILED, "required": None},
        {"type": "upstream.verified"},
    ],
)
def test_an_upstream_event_has_one_of_its_two_forms(event: object) -> None:
    assert refused(with_event(event)).startswith("the receipt: ")


def test_an_aggregators_receipt_says_which_upstreams_were_asked_and_which_served() -> None:
    upstream = (
        not_verified_event("first", "m", required=True, reason="id-2 did not pass"),
        attempt_event("no connection", "second", "cd" * 32),
        attempt_event("broke off", None, None),
        not_verified_event(None, "m", required=False, reason="this upstream offers no attestation"),
        verified_event_of("ab" * 32, "their-model", required=True),
    )
    raw = receipt(upstream=upstream)
    ours = parse_receipt(raw)
    assert signature_fault(ours, keyset()) is None
    assert [(event.result, event.session_id) for event in ours.upstream] == [
        ("failed", None),
        ("failed", None),
        ("verified", "ab" * 32),
    ]
    log = json.loads(raw)["event_log"]
    assert [event["type"] for event in log] == [
        RECEIVED,
        FORWARDED,
        "upstream.verified",
        "upstream.attempt",
        "upstream.attempt",
        "upstream.verified",
        "upstream.verified",
        RETURNED,
        "response.outcome",
    ]
    assert log[3] == {
        "type": "upstream.attempt",
        "reason": "no connection",
        "upstream_name": "second",
        "session_id": "cd" * 32,
    }
    assert log[4] == {"type": "upstream.attempt", "reason": "broke off"}
    assert "upstream_name" not in log[5]
    assert raw == rfc8785.dumps(json.loads(raw))
