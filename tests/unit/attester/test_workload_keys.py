"""The keys of the keyset: one for each role, the same on every start, and none of them leaves its object."""

import copy
import ipaddress
import pickle
import ssl
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from confide.attester.keys import DrawnSeed, LegacyKeys, ReceiptSigner, TlsKey, WorkloadKeys
from confide.errors import ConfigError
from confide.protocol.signature import Algo
from tls_files import issued, self_signed_pem

SEED = bytes(range(32))
KEYS = WorkloadKeys.derive(SEED)
NOW = 1_790_000_000
NAMES = ("api.example.com", "127.0.0.1", "::1")


def spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate_of(key: TlsKey, names: tuple[str, ...] = NAMES) -> x509.Certificate:
    return x509.load_pem_x509_certificate(key.self_signed(names, NOW))


def test_the_same_seed_gives_the_same_keys_on_every_start() -> None:
    # Fixed values: a change here gives an installation another keyset, and its pinned clients refuse it.
    assert KEYS.receipt(0).public_key_hex == "d0bae404973ac28b320bd4d2393c71b6098909e2f021641605500cc134dc25bf"
    assert KEYS.tls.spki_sha256.hex() == "0dad021332e9363b633a9c91ab571043d55374747f369b8a9a497492f1239804"


@given(st.binary(min_size=32, max_size=32).filter(lambda seed: seed != SEED))
def test_another_seed_gives_other_keys(seed: bytes) -> None:
    other = WorkloadKeys.derive(seed)
    assert other.receipt(0).public_key_hex != KEYS.receipt(0).public_key_hex
    assert other.tls.spki_sha256 != KEYS.tls.spki_sha256


@given(st.sets(st.integers(0, 2**40), min_size=2, max_size=5))
def test_each_epoch_has_a_receipt_key_of_its_own(epochs: set[int]) -> None:
    signers = [KEYS.receipt(epoch) for epoch in epochs]
    assert len({signer.public_key_hex for signer in signers}) == len(epochs)
    assert {signer.key_id for signer in signers} == {f"receipt-{epoch}" for epoch in epochs}


def test_no_key_has_two_roles() -> None:
    """Wire contract 7.1: a receipt key is no TLS key; nor is either one of those that sign legacy texts."""
    legacy = LegacyKeys.derive(SEED)
    receipt = KEYS.receipt(0).public_key_hex
    assert receipt not in (legacy.public_key_hex(Algo.ED25519), legacy.public_key_hex(Algo.ECDSA))
    assert certificate_of(KEYS.tls).public_key().__class__ is not Ed25519PublicKey
    assert legacy.public_key_hex(Algo.ECDSA) not in spki(certificate_of(KEYS.tls)).hex()


@given(st.binary(max_size=200), st.integers(0, 2**40))
def test_a_signature_verifies_under_the_published_key(data: bytes, epoch: int) -> None:
    signer = KEYS.receipt(epoch)
    signature = signer.sign(data)
    assert len(signature) == 64
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer.public_key_hex)).verify(signature, data)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_seed_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        WorkloadKeys.derive(b"s" * length)


def test_the_tls_key_is_p_256_and_its_digest_is_over_the_whole_public_key_info() -> None:
    certificate = certificate_of(KEYS.tls)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert sha256(spki(certificate)).digest() == KEYS.tls.spki_sha256


def test_a_certificate_of_our_own_names_hosts_and_addresses_and_is_good_for_clocks_behind_ours() -> None:
    certificate = certificate_of(KEYS.tls)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [ipaddress.ip_address(name) for name in NAMES[1:]]
    assert [name.value for name in names] == [NAMES[0], *addresses]
    assert certificate.not_valid_before_utc.timestamp() == NOW - 86400
    assert certificate.not_valid_after_utc.timestamp() > NOW + 9 * 365 * 86400
    certificate.verify_directly_issued_by(certificate)


def test_a_certificate_without_names_can_be_made_too() -> None:
    assert certificate_of(KEYS.tls, ()).subject.rfc4514_string() == "CN=confide"


def test_a_chain_that_was_issued_for_our_request_is_taken() -> None:
    chain = issued(KEYS.tls.request(["api.example.com"]))
    KEYS.tls.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), chain_pem=chain.pem)


def test_a_chain_for_another_key_is_refused_by_both_digests() -> None:
    other = WorkloadKeys.derive(bytes(32)).tls
    chain = issued(other.request(["api.example.com"])).pem
    with pytest.raises(ConfigError) as caught:
        KEYS.tls.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), chain_pem=chain)
    assert other.spki_sha256.hex() in caught.value.message
    assert KEYS.tls.spki_sha256.hex() in caught.value.message
    assert "confide tls csr" in str(caught.value.remedy)


def test_a_chain_whose_leaf_is_not_first_is_refused() -> None:
    chain = issued(KEYS.tls.request(["api.example.com"]))
    with pytest.raises(ConfigError, match="attested key"):
        KEYS.tls.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), chain_pem=chain.root_pem + chain.leaf_pem)


@pytest.mark.parametrize("chain", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_chain_is_refused(chain: bytes) -> None:
    with pytest.raises(ConfigError, match="no PEM certificates"):
        KEYS.tls.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), chain_pem=chain)


def test_a_certificate_of_somebody_elses_is_refused() -> None:
    with pytest.raises(ConfigError, match="attested key"):
        KEYS.tls.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), chain_pem=self_signed_pem())


@pytest.mark.parametrize("keys", [KEYS, KEYS.tls, KEYS.receipt(0), DrawnSeed()], ids=lambda keys: type(keys).__name__)
def test_keys_cannot_be_pickled_or_copied(keys: WorkloadKeys | TlsKey | ReceiptSigner | DrawnSeed) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="private keys stay"):
            pickle.dumps(keys, protocol)
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="private keys stay"):
            duplicate(keys)


def test_a_drawn_seed_gives_the_same_keys_each_time_and_shows_nothing() -> None:
    seed, other = DrawnSeed(), DrawnSeed()
    assert seed.workload().public_identity == seed.workload().public_identity != other.workload().public_identity
    assert seed.legacy().check_seal(b"record", seed.legacy().seal_record(b"record"))
    assert not other.legacy().check_seal(b"record", seed.legacy().seal_record(b"record"))
    assert repr(seed) == "<DrawnSeed>"


def test_the_representations_show_public_values_and_nothing_else() -> None:
    receipt, tls = KEYS.receipt(7), KEYS.tls
    assert repr(receipt) == f"<ReceiptSigner receipt-7 {receipt.public_key_hex}>"
    assert repr(tls) == f"<TlsKey {tls.spki_sha256.hex()}>"
    assert SEED.hex() not in repr(KEYS)
