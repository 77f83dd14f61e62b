"""The keys sign as the contract says, seal what they earned, and stay where they are."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.attester.keys import LegacyKeys
from confide.protocol.signature import SECP256K1_ORDER, Algo, ethereum_address, verify_text

SEED = bytes(range(32))
KEYS = LegacyKeys.derive(SEED)


@given(st.text(max_size=300), st.sampled_from(Algo))
def test_what_we_sign_verifies_for_our_address(text: str, algo: Algo) -> None:
    assert verify_text(text, KEYS.sign(text, algo), KEYS.address(algo), algo) == KEYS.address(algo)


@given(st.text(max_size=50))
def test_ecdsa_signatures_have_the_form_of_the_contract(text: str) -> None:
    signature = KEYS.sign(text, Algo.ECDSA)
    raw = bytes.fromhex(signature.removeprefix("0x"))
    assert signature == "0x" + raw.hex()
    assert len(raw) == 65
    assert raw[64] in (27, 28)
    assert int.from_bytes(raw[32:64], "big") <= SECP256K1_ORDER // 2


def test_ed25519_signatures_are_bare_hex() -> None:
    signature = KEYS.sign("text", Algo.ED25519)
    assert signature == bytes.fromhex(signature).hex()
    assert len(signature) == 128


def test_address_identity_and_public_key_name_the_same_key() -> None:
    xy = bytes.fromhex(KEYS.public_key_hex(Algo.ECDSA))
    assert len(xy) == 64
    assert KEYS.address(Algo.ECDSA) == ethereum_address(xy) == "0x" + KEYS.identity(Algo.ECDSA).hex()
    assert len(KEYS.identity(Algo.ECDSA)) == 20
    assert KEYS.address(Algo.ED25519) == KEYS.public_key_hex(Algo.ED25519) == KEYS.identity(Algo.ED25519).hex()
    assert len(KEYS.identity(Algo.ED25519)) == 32


def test_the_same_seed_gives_the_same_keys_on_every_start() -> None:
    # Fixed values: a change here makes every stored record and pinned address of an installation worthless.
    assert KEYS.address(Algo.ECDSA) == "0x37f6f565fa4845a6244d4b75ae3332ffd8fe4561"
    assert KEYS.address(Algo.ED25519) == "96c3e3f20462590bd81c9b02527fda38d6e4987464454543a6ffc33db7db9c58"
    assert KEYS.seal_record(b"record").hex() == "7d0af2743586a6a3794b025b2eb2ee98947aac6d2c1ebd474ee20ea66fd0cff4"


@given(st.binary(min_size=32, max_size=32).filter(lambda seed: seed != SEED))
def test_another_seed_gives_other_keys_for_every_purpose(seed: bytes) -> None:
    other = LegacyKeys.derive(seed)
    assert other.address(Algo.ECDSA) != KEYS.address(Algo.ECDSA)
    assert other.address(Algo.ED25519) != KEYS.address(Algo.ED25519)
    assert not other.check_seal(b"record", KEYS.seal_record(b"record"))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        LegacyKeys.derive(b"s" * length)


@given(st.binary(max_size=300))
def test_our_own_seal_holds(record: bytes) -> None:
    seal = KEYS.seal_record(record)
    assert len(seal) == 32
    assert KEYS.check_seal(record, seal)


@given(st.binary(min_size=1, max_size=50), st.data())
def test_a_record_or_seal_changed_on_disk_does_not_hold(record: bytes, data: st.DataObject) -> None:
    seal = KEYS.seal_record(record)
    bit = data.draw(st.integers(min_value=0, max_value=len(record) * 8 - 1))
    changed = bytearray(record)
    changed[bit // 8] ^= 1 << bit % 8
    assert not KEYS.check_seal(bytes(changed), seal)
    assert not KEYS.check_seal(record + b"\0", seal)
    assert not KEYS.check_seal(record, seal[:31] + bytes([seal[31] ^ 1]))


@pytest.mark.parametrize("seal", [b"", b"\0" * 32, b"\0" * 31, b"\0" * 64])
def test_a_missing_or_short_seal_does_not_hold(seal: bytes) -> None:
    assert not KEYS.check_seal(b"record", seal)


def test_the_representation_shows_the_address_and_nothing_else() -> None:
    assert repr(KEYS) == str(KEYS) == f"<LegacyKeys {KEYS.address(Algo.ECDSA)}>"


def test_keys_cannot_be_pickled_or_copied() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="private keys stay"):
            pickle.dumps(KEYS, protocol)
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="private keys stay"):
            duplicate(KEYS)
