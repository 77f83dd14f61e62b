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
    chat_id=TEXTS,
    model=TEXTS,
    request_sha256=DIGESTS,
    response_sha256=DIGESTS,
    outcome=TEXTS,
    credential_sha256=st.none() | DIGESTS,
    created_at=TIMES,
    expires_at=TIMES,
    seal=DIGESTS,
)


def unsealed(encoded: bytes, seal: bytes) -> Proof:
    """Read the canonical bytes back, from their description alone. That this works makes them injective."""
    source = BytesIO(encoded)

    def part() -> bytes:
        return source.read(int.from_bytes(source.read(4), "big"))

    assert source.read(1) == b"\x01"
    chat_id, model, request, response, outcome = part(), part(), part(), part(), part()
    credential = part() if source.read(1) == b"\x01" else None
    created_at, expires_at = (int.from_bytes(source.read(8), "big") for _ in range(2))
    assert source.read() == b""
    return Proof(
        chat_id=chat_id.decode(),
        model=model.decode(),
        request_sha256=request,
        response_sha256=response,
        outcome=outcome.decode(),
        credential_sha256=credential,
        created_at=created_at,
        expires_at=expires_at,
        seal=seal,
    )


@given(PROOFS)
def test_every_member_but_the_seal_can_be_read_back_from_the_sealed_bytes(record: Proof) -> None:
    assert unsealed(record.sealed_bytes(), record.seal) == record


def test_text_cannot_move_from_one_member_to_the_next() -> None:
    first, second = proof("ab", outcome="c"), proof("a", outcome="bc")
    assert first.sealed_bytes() != second.sealed_bytes()


def test_sealed_bytes_are_these() -> None:
    record = Proof(
        chat_id="é",
        model="m",
        request_sha256=b"\xaa" * 32,
        response_sha256=b"\xbb" * 32,
        outcome="",
        credential_sha256=None,
        created_at=1,
        expires_at=258,
        seal=b"\x00" * 32,
    )
    assert record.sealed_bytes().hex() == (
        "01" + "00000002c3a9" + "000000016d" + "00000020" + "aa" * 32 + "00000020" + "bb" * 32 + "00000000" + "00"
        "0000000000000001" + "0000000000000102"
    )


@pytest.mark.parametrize("name", ["request_sha256", "response_sha256", "credential_sha256", "seal"])
def test_a_digest_of_another_length_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        replace(proof(), **{name: b"\x01" * 31})


@pytest.mark.parametrize("at", [-1, 2**63])
def test_a_time_that_the_database_could_not_hold_is_refused(at: int) -> None:
    with pytest.raises(ValueError, match="Unix seconds"):
        proof(created_at=at)


def test_half_a_surrogate_pair_is_refused_before_it_reaches_a_batch() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        proof("\ud800")
