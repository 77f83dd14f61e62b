"""What we sign is read and verifies; what was changed afterwards, anywhere, does not."""

import json
from hashlib import sha256
from typing import Any

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from aci_documents import Document, Way, keyset, receipt, receipt_bytes, receipt_document
from aci_strategies import changes, edited_bytes, json_values, texts
from confide.protocol.canonical import MAX_INTEGER, DocumentError
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED, Receipt, parse_receipt, signature_fault

hashes = st.binary(min_size=32, max_size=32)


def read(raw: bytes) -> Receipt | None:
    """None when it was refused. Any other exception fails the test."""
    try:
        return parse_receipt(raw)
    except DocumentError:
        return None


def holds(raw: bytes) -> bool:
    got = read(raw)
    return got is not None and signature_fault(got, keyset()) is None


@given(
    st.fixed_dictionaries(
        {
            "receipt_id": texts,
            "chat_id": st.none() | texts,
            "model": st.none() | texts,
            "endpoint": texts,
            "served_at": st.integers(-MAX_INTEGER, MAX_INTEGER),
            "received_sha256": hashes,
            "forwarded_sha256": st.none() | hashes,
            "returned_sha256": hashes,
            "outcome": st.sampled_from(["complete", "client_closed", "truncated", "refused", "failed"]),
        }
    )
)
def test_what_we_sign_is_canonical_is_read_back_and_verifies(members: Document) -> None:
    raw = receipt(**members)
    assert raw == rfc8785.dumps(json.loads(raw))
    got = parse_receipt(raw)
    assert signature_fault(got, keyset()) is None
    for name in ("receipt_id", "chat_id", "model", "endpoint", "served_at"):
        assert getattr(got.members, name) == members[name]
    assert got.outcome == members["outcome"]
    for event_type, name in ((RECEIVED, "received"), (FORWARDED, "forwarded"), (RETURNED, "returned")):
        expected = members[f"{name}_sha256"]
        assert got.body_hash(event_type) == (None if expected is None else f"sha256:{expected.hex()}")


@given(changes(receipt_document()))
def test_a_change_anywhere_in_the_document_breaks_it(change: tuple[Way, Document]) -> None:
    _, changed = change
    assert not holds(json.dumps(changed).encode())


@given(edited_bytes(receipt_bytes()))
def test_a_change_of_its_bytes_breaks_it_or_changes_nothing(raw: bytes) -> None:
    if holds(raw):
        assert rfc8785.dumps(json.loads(raw)) == receipt_bytes()


@given(st.integers(0, 511), st.just(receipt_document()["signature"]))
def test_a_flipped_bit_of_the_signature_breaks_it(bit: int, signature: str) -> None:
    flipped = bytearray.fromhex(signature)
    flipped[bit // 8] ^= 1 << bit % 8
    assert not holds(json.dumps({**receipt_document(), "signature": flipped.hex()}).encode())


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(raw: bytes) -> None:
    assert read(raw) is None


@given(st.dictionaries(st.sampled_from(sorted(receipt_document())), json_values, max_size=4))
def test_any_value_for_any_member_is_read_or_refused(members: dict[str, Any]) -> None:
    got = read(json.dumps({**receipt_document(), **members}).encode())
    assert got is None or len(sha256(got.signing_input).digest()) == 32
