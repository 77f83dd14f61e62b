"""A proof's canonical bytes: what the seal covers, and that nothing else has the same bytes."""

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from confide.store import Proof
from store_builders import proof

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
DIGESTS = st.binary(min_size=32, max_size=32)
TIMES = st.integers(0, 2**63 - 1)
PROOFS = st.builds(
    Proof,
    receipt_id=TEXTS.map("rcpt-{}".format),
    chat_id=st.none() | TEXTS,
    request_sha256=DIGESTS,
    response_sha256=DIGESTS,
    credential_sha256=st.none() | DIGESTS,
    expires_at=TIMES,
    receipt=st.binary(max_size=100),
    seal=DIGESTS,
)


def unsealed(encoded: bytes, seal: bytes) -> Proof:
    """Read the canonical bytes back, from their description alone. That this works makes them injective."""
    source = BytesIO(encoded)

    def part() -> bytes:
        return source.read(int.from_bytes(source.read(4), "big"))

    def part_or_none() -> bytes | None:
        return part() if source.read(1) == b"\x01" else None

    assert source.read(1) == b"\x02"
    receipt_id, chat_id, request, response, credential = part(), part_or_none(), part(), part(), part_or_none()
    expires_at, receipt = int.from_bytes(source.read(8), "big"), part()
    assert source.read() == b""
    return Proof(
        receipt_id=receipt_id.decode(),
        chat_id=None if chat_id is None else chat_id.decode(),
        request_sha256=request,
        response_sha256=response,
        credential_sha256=credential,
        expires_at=expires_at,
        receipt=receipt,
        seal=seal,
    )


@given(PROOFS)
def test_every_member_but_the_seal_can_be_read_back_from_the_sealed_bytes(record: Proof) -> None:
    assert unsealed(record.sealed_bytes(), record.seal) == record


def test_text_cannot_move_from_one_member_to_the_next() -> None:
    first, second = proof("c", receipt_id="rcpt-ab"), proof("bc", receipt_id="rcpt-a")
    assert first.sealed_bytes() != second.sealed_bytes()


def test_no_chat_id_is_not_an_empty_one() -> None:
    assert proof(None, receipt_id="rcpt-a").sealed_bytes() != proof("", receipt_id="rcpt-a").sealed_bytes()


def test_sealed_bytes_are_these() -> None:
    record = Proof(
        receipt_id="rcpt-é",
        chat_id="c",
        request_sha256=b"\xaa" * 32,
        response_sha256=b"\xbb" * 32,
        credential_sha256=None,
        expires_at=258,
        receipt=b"{}",
        seal=b"\x00" * 32,
    )
    assert record.sealed_bytes().hex() == (
        "02" + "00000007726370742dc3a9" + "010000000163" + "00000020" + "aa" * 32 + "00000020" + "bb" * 32 + "00"
        "0000000000000102" + "000000027b7d"
    )


@pytest.mark.parametrize("name", ["request_sha256", "response_sha256", "credential_sha256", "seal"])
def test_a_digest_of_another_length_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        replace(proof(), **{name: b"\x01" * 31})


@pytest.mark.parametrize("at", [-1, 2**63])
def test_a_time_that_the_database_could_not_hold_is_refused(at: int) -> None:
    with pytest.raises(ValueError, match="Unix seconds"):
        replace(proof(), expires_at=at)


def test_half_a_surrogate_pair_is_refused_before_it_reaches_a_batch() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        proof("\ud800")
    with pytest.raises(ValueError, match="surrogates"):
        proof(receipt_id="rcpt-\ud800")


@pytest.mark.parametrize("receipt_id", ["", "rcpt", "RCPT-1", "chatcmpl-1", " rcpt-1"])
def test_a_receipt_id_by_which_nobody_would_find_it_is_refused(receipt_id: str) -> None:
    with pytest.raises(ValueError, match="begins with rcpt-"):
        replace(proof(), receipt_id=receipt_id)
