"""The 64 report-data bytes say who signs and repeat the caller's nonce; nothing else fits in."""

from hashlib import sha256

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidRequest
from confide.protocol.statement import (
    aci_report_data,
    aci_statement,
    legacy_report_data,
    parse_aci_nonce,
    parse_nonce,
)

identities = st.binary(min_size=20, max_size=20) | st.binary(min_size=32, max_size=32)
words = st.binary(min_size=32, max_size=32)

DIGEST, NONCE = "sha256:" + "ab" * 32, "cd" * 32


@given(identities, words)
def test_version_1_holds_the_identity_padded_and_the_nonce(identity: bytes, nonce: bytes) -> None:
    assert legacy_report_data(identity, nonce) == identity + bytes(32 - len(identity)) + nonce


@given(identities, words, words)
def test_version_2_binds_identity_and_tls_key(identity: bytes, nonce: bytes, spki_sha256: bytes) -> None:
    report_data = legacy_report_data(identity, nonce, spki_sha256=spki_sha256)
    assert report_data == sha256(identity + spki_sha256).digest() + nonce


@pytest.mark.parametrize("length", [0, 19, 21, 31, 33, 64, 65])
def test_an_identity_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"20 or 32 bytes expected, got {length}"):
        legacy_report_data(b"i" * length, b"n" * 32)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_nonce_and_fingerprint_have_32_bytes(length: int) -> None:
    with pytest.raises(ValueError, match=f"nonce of 32 bytes expected, got {length}"):
        legacy_report_data(b"i" * 20, b"n" * length)
    with pytest.raises(ValueError, match=f"SHA-256 of 32 bytes expected, got {length}"):
        legacy_report_data(b"i" * 20, b"n" * 32, spki_sha256=b"f" * length)


@given(words)
def test_a_nonce_is_read_in_either_case(nonce: bytes) -> None:
    assert parse_nonce(nonce.hex()) == parse_nonce(nonce.hex().upper()) == nonce


@pytest.mark.parametrize("text", [None, ""])
def test_without_a_nonce_the_server_draws_one(text: str | None) -> None:
    assert parse_nonce(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "ab" * 31,
        "ab" * 33,
        "0x" + "ab" * 31,
        "0x" + "ab" * 32,
        "zz" * 32,
        " " + "a" * 63,
        "a" * 64 + "\n",
        "٠" * 64,
    ],
)
def test_another_nonce_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_nonce(text)
    error = caught.value.body()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", "nonce")
    assert text == "0" or text not in caught.value.message


@given(words, words | st.none())
def test_the_aci_statement_is_canonical_json_of_its_three_members(digest: bytes, nonce: bytes | None) -> None:
    members = {
        "keyset_digest": f"sha256:{digest.hex()}",
        "nonce": None if nonce is None else nonce.hex(),
        "purpose": "aci.report_data.v1",
    }
    statement = aci_statement(f"sha256:{digest.hex()}", None if nonce is None else nonce.hex())
    assert statement == rfc8785.dumps(members)


def test_the_aci_slot_is_the_hash_of_the_statement_and_zeros() -> None:
    for nonce in (NONCE, None):
        assert aci_report_data(DIGEST, nonce) == sha256(aci_statement(DIGEST, nonce)).digest() + bytes(32)
    assert aci_report_data(DIGEST, NONCE) != aci_report_data(DIGEST, None)


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "ab" * 32,
        "sha256:" + "AB" * 32,
        "sha256:" + "ab" * 31,
        DIGEST + "\n",
        "sha256:" + "a" * 62 + '",',
        "sha256:" + "٠" * 64,
    ],
)
def test_a_digest_of_another_form_brings_no_members_of_its_own(digest: str) -> None:
    with pytest.raises(ValueError, match="keyset digest"):
        aci_statement(digest, NONCE)


@pytest.mark.parametrize("nonce", ["", "null", "AB" * 32, "ab" * 16, NONCE + "\n", "a" * 62 + '",', "٠" * 64])
def test_a_nonce_of_another_form_brings_no_members_of_its_own(nonce: str) -> None:
    with pytest.raises(ValueError, match="nonce"):
        aci_statement(DIGEST, nonce)
    with pytest.raises(InvalidRequest) as caught:
        parse_aci_nonce(nonce)
    assert caught.value.param == "nonce"
    assert nonce in ("", "null") or nonce not in caught.value.message


@pytest.mark.parametrize("nonce", [NONCE, None])
def test_an_aci_nonce_is_lower_case_or_absent(nonce: str | None) -> None:
    assert parse_aci_nonce(nonce) == nonce
