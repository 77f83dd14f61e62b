"""Chains of devices: what makes one acceptable, each rule broken alone, under a root that the caller pinned."""

import base64
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from confide.evidence.device_chain import MAX_CHAIN_BYTES, ChainError, DeviceChain, verify_chain
from confide.evidence.policy import Anchors
from confide.simulator.gpu import FWID, FWID_EXTENSION, SimulatedGpu, derived_key, fwid_extension
from device_chains import KEYS, chain
from gpu_builders import NOW, SEED, gpus, pinned


def verified(pem: bytes, anchors: Anchors, now: int = NOW) -> DeviceChain:
    return verify_chain(pem, anchors=anchors, now=now)


def test_a_plain_chain_is_accepted() -> None:
    found = verified(*chain())
    assert (found.model, found.ueid, found.fwid) == ("GH100 leaf", "7", None)
    assert found.key.public_numbers() == KEYS["leaf"].public_key().public_numbers()
    assert found.root.anchor.simulated


def test_the_simulators_chain_names_device_and_firmware() -> None:
    (device,) = gpus()
    found = verified(device.chain_pem.encode(), pinned())
    assert found.model.startswith("GH100 Simulated")
    assert (found.ueid, found.fwid) == (device.ueid, FWID)


def test_threads_that_verify_leave_the_processs_warnings_as_they_were() -> None:
    pem, anchors = chain()
    before, interval_s = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(lambda _: verified(pem, anchors), range(400)))) == 400
    finally:
        sys.setswitchinterval(interval_s)
    assert list(warnings.filters) == before


def test_devices_are_told_apart_by_the_key_that_issued_their_leaf() -> None:
    first, second = gpus(2)
    keys = {verified(device.chain_pem.encode(), pinned()).device_key for device in (first, second, gpus()[0])}
    assert len(keys) == 2


def test_an_authority_may_limit_how_many_are_below_it() -> None:
    verified(*chain(root={"path_length": 2}, upper={"path_length": 1}, identity={"path_length": 0}))
    for name, path_length, below in [("root", 1, 2), ("upper", 0, 1)]:
        with pytest.raises(
            ChainError, match=f"allows a path of {path_length} authorities below it, and there are {below}"
        ):
            verified(*chain(**{name: {"path_length": path_length}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leaf": {"ca": True}}, r"certificate 0 \(GH100 leaf\) is an authority's, and no device"),
        ({"leaf": {"usage": True}}, "certificate 0 .* may not sign"),
        ({"identity": {"ca": False}}, "certificate 1 .* is no authority's, and issued another"),
        ({"identity": {"ca": None}}, "certificate 1 .* is no authority's"),
        ({"upper": {"usage": False}}, "certificate 2 .* is no authority's"),
        ({"leaf": {"ends": datetime(2027, 1, 1, tzinfo=UTC)}}, "certificate 0 .* valid from 2026-01-01 to 2027-01-01"),
        ({"upper": {"starts": datetime(2030, 1, 1, tzinfo=UTC)}}, "certificate 2 .* valid from 2030-01-01"),
        ({"root": {"ends": datetime(2027, 1, 1, tzinfo=UTC)}}, "certificate 3 .* valid from"),
        (
            {"identity": {"extensions": ((x509.UnrecognizedExtension(FWID_EXTENSION, b"x"), True),)}},
            "certificate 1 .* has the critical extension 2.23.133.5.4.1, which is not known",
        ),
        ({"leaf": {"issuer": "upper"}}, "a certificate cannot be used: .*Issuer"),
        ({"leaf": {"key": derived_key(SEED, "x")}, "sign_with": KEYS["upper"]}, "was not issued by certificate 1"),
        ({"algorithm": SHA256()}, "certificate 0 .* is not signed with SHA-384"),
        ({"leaf": {"key": ec.generate_private_key(ec.SECP256R1())}}, "the key of GH100 leaf is not on P-384"),
        ({"leaf": {"key": ed25519.Ed25519PrivateKey.generate()}}, "the key of GH100 leaf is not on P-384"),
        ({"identity": {"key": rsa.generate_private_key(65537, 2048)}}, "the key of GH100 identity is not on P-384"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ChainError, match=message):
        verified(*chain(**changes))


def test_usage_that_allows_what_is_done_is_fine() -> None:
    verified(*chain(leaf={"usage": False, "ca": False}, identity={"usage": True}, upper={"usage": True}))


def test_a_window_includes_both_its_ends() -> None:
    ends = datetime(2027, 1, 1, tzinfo=UTC)
    pem, anchors = chain(leaf={"ends": ends})
    verified(pem, anchors, int(ends.timestamp()))
    verified(pem, anchors, int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()))
    for now in (int(ends.timestamp()) + 1, int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) - 1):
        with pytest.raises(ChainError, match="in Unix seconds"):
            verified(pem, anchors, now)


def test_a_leaf_without_a_name_has_none() -> None:
    assert verified(*chain(leaf={"common_name": ""})).model == "without a name"


@pytest.mark.parametrize("value", [b"", b"\x04\x30" + FWID, fwid_extension(KEYS["leaf"], FWID) + b"\x00"])
def test_only_a_firmware_identity_at_the_end_of_the_extension_counts(value: bytes) -> None:
    pem, anchors = chain(leaf={"extensions": ((x509.UnrecognizedExtension(FWID_EXTENSION, value), False),)})
    assert verified(pem, anchors).fwid is None


def test_a_root_that_nobody_pinned_is_named_with_its_hash() -> None:
    pem, _ = chain()
    with pytest.raises(ChainError, match=r"the root [0-9a-f]{64} \(CN=GH100 root\) is not trusted"):
        verified(pem, Anchors.default())


def test_a_pinned_root_does_not_vouch_for_a_chain_that_it_did_not_issue() -> None:
    (device,) = gpus()
    foreign = SimulatedGpu(b"\x32" * 32)
    grafted = foreign.chain_pem.replace(foreign.root_pem, device.root_pem)
    with pytest.raises(ChainError, match=r"certificate 1 .* was not issued by certificate 2"):
        verified(grafted.encode(), pinned())


@pytest.mark.parametrize(
    ("pem", "message"),
    [
        (b"", "not plain PEM"),
        (b"x" * (MAX_CHAIN_BYTES + 1), "bytes of certificates, expected at most"),
        (gpus()[0].root_pem.encode() * 2, "2 certificates, expected 3 to 8"),
        (gpus()[0].root_pem.encode() * 9, "9 certificates, expected 3 to 8"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 3, "a certificate cannot be used"),
    ],
)
def test_something_that_is_no_chain_is_refused(pem: bytes, message: str) -> None:
    with pytest.raises(ChainError, match=message):
        verified(pem, pinned())


def with_leaf(pem: bytes, old: bytes, new: bytes) -> bytes:
    """The chain with bytes of the leaf's DER replaced, which occur there once."""
    leaf = x509.load_pem_x509_certificates(pem)[0].public_bytes(Encoding.DER)
    assert leaf.count(old) == 1
    return as_pem(leaf.replace(old, new)) + pem[pem.index(b"-----BEGIN", 1) :]


def test_what_the_library_merely_warns_of_is_refused() -> None:
    """A negative serial number, and a country of another length."""
    pem, anchors = chain()
    with pytest.raises(ChainError, match=r"cannot be used: .*negative.*CryptographyDeprecationWarning"):
        verified(with_leaf(pem, b"\x02\x01\x07", b"\x02\x01\xf9"), anchors)
    country = bytes.fromhex("0603550406")
    named = with_leaf(pem, bytes.fromhex("0603550403") + b"\x0c\x0aGH100 leaf", country + b"\x0c\x0aGH100 leaf")
    with pytest.raises(ChainError, match=r"cannot be used: .*UserWarning"):
        verified(named, anchors)


def test_the_unused_bits_of_a_signature_are_none() -> None:
    """The library accepts another count where the bits happen to be zero, and no signature covers it."""
    pem, anchors = chain()
    signature = x509.load_pem_x509_certificates(pem)[0].signature
    for spare in range(1, 8):
        with pytest.raises(ChainError, match=r"not in canonical form|cannot be used"):
            verified(with_leaf(pem, b"\x00" + signature, bytes((spare,)) + signature), anchors)


def as_pem(der: bytes) -> bytes:
    digits = base64.encodebytes(der).replace(b"\n", b"")
    lines = b"\n".join(digits[at : at + 64] for at in range(0, len(digits), 64))
    return b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n"


def test_unused_bits_before_a_signature_that_nothing_signs_are_refused() -> None:
    while True:  # the one unused bit has to be zero, as it is in every second signature
        pem, anchors = chain()
        leaf = x509.load_pem_x509_certificates(pem)[0]
        if leaf.signature[-1] % 2 == 0:
            break
    der = leaf.public_bytes(Encoding.DER)
    place = len(der) - len(leaf.signature) - 1
    assert der[place] == 0
    odd = x509.load_der_x509_certificate(der[:place] + b"\x01" + leaf.signature)
    rest = b"".join(each.public_bytes(Encoding.PEM) for each in x509.load_pem_x509_certificates(pem)[1:])
    with pytest.raises(ChainError, match="certificate 0 is not in canonical form"):
        verified(odd.public_bytes(Encoding.PEM) + rest, anchors)
