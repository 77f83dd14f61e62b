"""A client believes a signature only when that signer signed that text, in the one form that cannot be varied."""

import re

import pytest
from coincurve import PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidSigningAlgo, VerificationError
from confide.protocol.signature import (
    SECP256K1_ORDER,
    Algo,
    eip191_digest,
    ethereum_address,
    keccak256,
    parse_algo,
    signature_text,
    split_text,
    verify_text,
)

TEXT = f"{'a' * 64}:{'b' * 64}"
KEY = PrivateKey(b"\x04" * 32)
ADDRESS = ethereum_address(KEY.public_key.format(compressed=False)[1:])
ED25519_KEY = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
ED25519_ADDRESS = ED25519_KEY.public_key().public_bytes_raw().hex()

digests = st.binary(min_size=32, max_size=32)


def ecdsa(text: str = TEXT) -> bytes:
    """65 bytes r, s, v, made with the library alone."""
    raw = KEY.sign_recoverable(eip191_digest(text), hasher=None)
    return bytes([*raw[:64], 27 + raw[64]])


def refused(signature: str, *, text: str = TEXT, address: str = ADDRESS, algo: Algo = Algo.ECDSA) -> str:
    """The message of the refusal; fails when the signature is accepted."""
    with pytest.raises(VerificationError) as caught:
        verify_text(text, signature, address, algo)
    assert caught.value.check == "signature"
    assert "expected" in caught.value.message
    return caught.value.message


def test_algorithm_defaults_to_ecdsa_and_other_names_are_refused() -> None:
    assert parse_algo(None) is Algo.ECDSA
    assert parse_algo("ecdsa") is Algo.ECDSA
    assert parse_algo("ed25519") is Algo.ED25519
    for name in ("", "ECDSA", "ecdsa-p256", "rsa", " ed25519"):
        with pytest.raises(InvalidSigningAlgo) as caught:
            parse_algo(name)
        assert caught.value.body()["error"]["type"] == "invalid_signing_algo"
        assert caught.value.param == "signing_algo"


def test_keccak_is_the_one_from_before_sha3() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_the_eip191_prefix_counts_bytes_not_characters() -> None:
    assert eip191_digest("é") == keccak256(b"\x19Ethereum Signed Message:\n2\xc3\xa9")


@given(digests, digests)
def test_a_text_splits_into_what_it_was_made_of(request: bytes, response: bytes) -> None:
    text = signature_text(request, response)
    assert re.fullmatch("[0-9a-f]{64}:[0-9a-f]{64}", text)
    assert split_text(text) == split_text(f"a-model:{text}") == (request.hex(), response.hex())


@pytest.mark.parametrize(
    "text",
    ["", ":", "a" * 64, TEXT[:-1], TEXT + "\n", TEXT.upper(), f":{TEXT}", f"a:b:{TEXT}", f"{'é' * 64}:{'b' * 64}"],
)
def test_other_texts_do_not_split(text: str) -> None:
    with pytest.raises(VerificationError) as caught:
        split_text(text)
    assert caught.value.check == "signature"


@pytest.mark.parametrize(("request_sha256", "response_sha256"), [(b"", b"\0" * 32), (b"\0" * 32, b"\0" * 64)])
def test_a_text_is_made_of_two_digests_only(request_sha256: bytes, response_sha256: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        signature_text(request_sha256, response_sha256)


def test_an_address_is_made_of_x_and_y_only() -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        ethereum_address(KEY.public_key.format(compressed=False))


def test_an_honest_signature_verifies_whatever_the_case_and_prefix_of_its_hex() -> None:
    bare = ecdsa().hex()
    for signature in (bare, "0x" + bare, "0x" + bare.upper()):
        for address in (ADDRESS, ADDRESS[2:], "0x" + ADDRESS[2:].upper()):
            assert verify_text(TEXT, signature, address, Algo.ECDSA) == ADDRESS
    ed25519 = ED25519_KEY.sign(TEXT.encode()).hex()
    assert verify_text(TEXT, ed25519, ED25519_ADDRESS.upper(), Algo.ED25519) == ED25519_ADDRESS


def test_the_high_s_twin_of_a_good_signature_is_refused() -> None:
    signature = ecdsa()
    high = SECP256K1_ORDER - int.from_bytes(signature[32:64], "big")
    twin = signature[:32] + high.to_bytes(32, "big") + bytes([27 + 28 - signature[64]])
    # The library itself takes the twin for a signature of the same key: this is what has to be caught.
    raw = twin[:64] + bytes([twin[64] - 27])
    assert PrivateKey(b"\x04" * 32).public_key == KEY.public_key.from_signature_and_message(
        raw, eip191_digest(TEXT), hasher=None
    )
    assert "high s" in refused(twin.hex())


@pytest.mark.parametrize("v", [0, 1, 26, 29, 30, 37, 255])
def test_v_is_27_or_28(v: int) -> None:
    assert f"v = {v}" in refused((ecdsa()[:64] + bytes([v])).hex())


def test_the_other_v_is_another_signer() -> None:
    signature = ecdsa()
    refused((signature[:64] + bytes([27 + 28 - signature[64]])).hex())


def test_another_signer_is_refused_with_both_addresses() -> None:
    other = "0x" + "11" * 20
    message = refused(ecdsa().hex(), address=other)
    assert ADDRESS in message
    assert other in message
    refused(ED25519_KEY.sign(TEXT.encode()).hex(), address="22" * 32, algo=Algo.ED25519)


def test_another_text_is_refused() -> None:
    other = f"{'c' * 64}:{'b' * 64}"
    refused(ecdsa().hex(), text=other)
    refused(ED25519_KEY.sign(TEXT.encode()).hex(), text=other, address=ED25519_ADDRESS, algo=Algo.ED25519)


def test_a_signature_of_the_other_algorithm_is_refused() -> None:
    refused(ecdsa().hex(), address=ED25519_ADDRESS, algo=Algo.ED25519)
    refused(ED25519_KEY.sign(TEXT.encode()).hex(), algo=Algo.ECDSA)


@pytest.mark.parametrize(
    "rs", [b"\0" * 64, b"\xff" * 32 + b"\0" * 31 + b"\1", b"\0" * 31 + b"\5" + b"\1".rjust(32, b"\0")]
)
def test_numbers_that_no_key_can_have_made_are_refused(rs: bytes) -> None:
    refused((rs + b"\x1b").hex())


@pytest.mark.parametrize("signature", ["", "0x", "0x" + "00" * 64, "00" * 66, "zz" * 65, "é" * 130, " " * 130])
def test_what_is_not_a_signature_is_refused_and_not_repeated(signature: str) -> None:
    message = refused(signature)
    assert len(signature) < 5 or signature not in message
    refused(signature, address=ED25519_ADDRESS, algo=Algo.ED25519)


def test_a_text_without_bytes_is_refused() -> None:
    refused(ecdsa().hex(), text="\ud800")


@given(st.integers(min_value=0, max_value=65 * 8 - 1))
def test_every_flipped_bit_of_an_ecdsa_signature_is_refused(bit: int) -> None:
    flipped = bytearray(ecdsa())
    flipped[bit // 8] ^= 1 << bit % 8
    refused(flipped.hex())


@given(st.integers(min_value=0, max_value=64 * 8 - 1))
def test_every_flipped_bit_of_an_ed25519_signature_is_refused(bit: int) -> None:
    flipped = bytearray(ED25519_KEY.sign(TEXT.encode()))
    flipped[bit // 8] ^= 1 << bit % 8
    refused(flipped.hex(), address=ED25519_ADDRESS, algo=Algo.ED25519)
