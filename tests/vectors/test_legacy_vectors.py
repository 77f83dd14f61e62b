"""The legacy signature and report-data vectors, made from the formulas by a program that does not import confide."""

from hashlib import sha256
from typing import Any

import pytest
from coincurve import PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.attester.keys import LegacyKeys
from confide.protocol import signature, statement
from confide.protocol.signature import Algo
from shared_data import vectors

SIGNATURES = vectors("legacy-signature.json")
REPORT_DATA = vectors("legacy-report-data.json")

CASES = [pytest.param(case, id=case["name"]) for case in SIGNATURES.get("cases", [])]
LAYOUTS = [pytest.param(case, id=case["name"]) for case in REPORT_DATA.get("cases", []) if "identity_hex" in case]

pytestmark = pytest.mark.skipif(not CASES or not LAYOUTS, reason="the shared test vectors are not beside this checkout")


@pytest.fixture(scope="module")
def keys() -> LegacyKeys:
    """The keys of the vectors: published fill bytes, worthless outside a test."""
    fixed = SIGNATURES["keys"]
    return LegacyKeys(
        PrivateKey(bytes.fromhex(fixed["ecdsa"]["private_hex"])),
        Ed25519PrivateKey.from_private_bytes(bytes.fromhex(fixed["ed25519"]["private_seed_hex"])),
        b"\0" * 32,
    )


def test_the_addresses_are_those_of_the_keys(keys: LegacyKeys) -> None:
    fixed = SIGNATURES["keys"]
    assert keys.address(Algo.ECDSA) == fixed["ecdsa"]["address_lower"]
    assert "04" + keys.public_key_hex(Algo.ECDSA) == fixed["ecdsa"]["public_uncompressed_hex"]
    assert keys.address(Algo.ED25519) == keys.public_key_hex(Algo.ED25519) == fixed["ed25519"]["public_hex"]


@pytest.mark.parametrize("case", CASES)
def test_the_text_is_made_from_the_bytes_on_the_wire(case: dict[str, Any]) -> None:
    request = sha256(case["request_body_utf8"].encode())
    response = sha256(case["response_wire_utf8"].encode())
    two_part = signature.signature_text(request.digest(), response.digest())
    assert case["text"] in (two_part, f"demo-model:{two_part}")
    assert signature.split_text(case["text"]) == (request.hexdigest(), response.hexdigest())


@pytest.mark.parametrize("case", CASES)
def test_the_published_signatures_verify(case: dict[str, Any]) -> None:
    text, ecdsa, ed25519 = case["text"], case["ecdsa"], case["ed25519"]
    eip55 = SIGNATURES["keys"]["ecdsa"]["address_eip55"]
    assert signature.eip191_digest(text).hex() == ecdsa["keccak256_digest"]
    assert signature.verify_text(text, ecdsa["signature"], eip55, Algo.ECDSA) == ecdsa["signing_address_lower"]
    assert (
        signature.verify_text(text, ed25519["signature"], ed25519["signing_address"], Algo.ED25519)
        == ed25519["signing_address"]
    )


@pytest.mark.parametrize("case", CASES)
def test_our_signatures_are_those_of_the_vectors(case: dict[str, Any], keys: LegacyKeys) -> None:
    text = case["text"]
    ours = keys.sign(text, Algo.ECDSA)
    # Another correct signer may draw another nonce, so what counts is the address that the bytes recover to.
    assert signature.verify_text(text, ours, case["ecdsa"]["signing_address_lower"], Algo.ECDSA)
    assert keys.sign(text, Algo.ED25519) == case["ed25519"]["signature"]


@pytest.mark.parametrize("case", LAYOUTS)
def test_report_data_has_the_published_layout(case: dict[str, Any], keys: LegacyKeys) -> None:
    fingerprint = case.get("tls_cert_fingerprint")
    report_data = statement.legacy_report_data(
        keys.identity(Algo(case["signing_algo"])),
        bytes.fromhex(REPORT_DATA["nonce"]),
        spki_sha256=bytes.fromhex(fingerprint) if fingerprint else None,
    )
    assert report_data.hex() == case["report_data"]
