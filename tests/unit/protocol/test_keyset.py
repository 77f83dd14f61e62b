"""The keyset is the identity of a service: what is in it, what may not be, and what its digest covers (7.1)."""

import json
from hashlib import sha256
from typing import Any

import msgspec
import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aci_documents import SIGNER, TestKey, keyset, keyset_document, removed, replaced
from confide.protocol.canonical import DocumentError
from confide.protocol.keyset import ED25519, PublicKey, TlsKey, parse_keyset

RECEIPT_KEY = ("receipt_signing_keys", 0)
UNSET = msgspec.UNSET


def refused(document: object) -> str:
    with pytest.raises(DocumentError) as caught:
        parse_keyset(document)
    return str(caught.value)


def with_receipt_keys(*keys: PublicKey) -> dict[str, Any]:
    return replaced(keyset_document(), ("receipt_signing_keys",), msgspec.to_builtins(list(keys)))


def test_what_we_write_is_read_back_with_its_digest() -> None:
    assert parse_keyset(keyset_document()) == (keyset(), keyset().digest())
    assert keyset().digest() == f"sha256:{sha256(rfc8785.dumps(keyset_document())).hexdigest()}"


def test_a_subject_that_is_not_there_is_null_and_a_domain_that_is_not_there_is_left_out() -> None:
    document = json.loads(msgspec.json.encode(keyset(subject=None, tls_public_keys=(TlsKey("c0" * 32),)).document()))
    assert document["subject"] is None
    assert document["tls_public_keys"] == [{"spki_sha256": "c0" * 32}]
    assert parse_keyset(document)[0].tls_public_keys == (TlsKey("c0" * 32),)


def test_the_digest_covers_members_that_we_do_not_know() -> None:
    more = replaced(keyset_document(), ("future",), [1])
    parsed, digest = parse_keyset(more)
    assert parsed == keyset()
    assert digest == f"sha256:{sha256(rfc8785.dumps(more)).hexdigest()}" != keyset().digest()


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("not_after",), True),
        (("not_after",), "1800000000"),
        (("not_after",), 1800000000.0),
        (("not_after",), None),
        (("not_after",), 2**53),
        (("not_after",), 2**64 - 1),
        (("not_after",), "\ud800"),
        (("subject",), 7),
        ((*RECEIPT_KEY, "key_id"), None),
        ((*RECEIPT_KEY, "public_key"), "00" * 31),
        ((*RECEIPT_KEY, "public_key"), "00" * 33),
        ((*RECEIPT_KEY, "public_key"), "0x" + SIGNER.public_hex),
        ((*RECEIPT_KEY, "public_key"), SIGNER.public_hex.upper()),
        ((*RECEIPT_KEY, "public_key"), SIGNER.public_hex + "\n"),
        ((*RECEIPT_KEY, "public_key"), " " + SIGNER.public_hex[1:]),
        ((*RECEIPT_KEY, "public_key"), "٠" * 64),
        ((*RECEIPT_KEY, "public_key"), None),
        (("e2ee_public_keys",), None),
        (("e2ee_public_keys", 0, "public_key"), 7),
        (("tls_public_keys",), None),
        (("tls_public_keys", 0, "domain"), None),
        (("tls_public_keys", 0, "spki_sha256"), "C0" * 32),
        (("tls_public_keys", 0, "spki_sha256"), "sha256:" + "c0" * 32),
        (("more",), 0.5),
        (("é",), 1),
    ],
)
def test_a_member_of_another_form_is_refused(way: tuple[Any, ...], value: object) -> None:
    assert refused(replaced(keyset_document(), way, value))


@pytest.mark.parametrize("name", ["subject", "not_after", "receipt_signing_keys", "e2ee_public_keys"])
def test_a_member_that_is_not_there_is_refused(name: str) -> None:
    assert name in refused(removed(keyset_document(), (name,)))


@pytest.mark.parametrize("document", [None, [], "keyset", 7])
def test_only_an_object_is_a_keyset(document: object) -> None:
    assert refused(document).startswith("the keyset: Expected `object`")


def test_a_keyset_without_tls_keys_is_read_and_fits_no_channel() -> None:
    parsed, _ = parse_keyset(removed(keyset_document(), ("tls_public_keys",)))
    assert parsed.tls_pins("api.example.com") == frozenset()
    assert parsed.domains == frozenset()


def test_a_receipt_key_of_the_one_algorithm_is_required() -> None:
    missing = "the keyset: no receipt signing key has the algorithm ed25519"
    assert refused(with_receipt_keys()) == missing
    assert refused(with_receipt_keys(PublicKey("receipt-1", "ecdsa-secp256k1", "04" * 65))) == missing
    assert refused(with_receipt_keys(PublicKey("receipt-1", "ED25519", SIGNER.public_hex))) == missing


def test_entries_of_other_algorithms_are_passed_over() -> None:
    other = PublicKey("receipt-0", "ml-dsa-65", "no hex at all")
    parsed, _ = parse_keyset(with_receipt_keys(other, PublicKey("receipt-1", ED25519, SIGNER.public_hex)))
    assert parsed.receipt_key("receipt-1") == bytes.fromhex(SIGNER.public_hex)
    assert parsed.receipt_key("receipt-0") is None
    assert parsed.receipt_key("receipt-2") is None


@pytest.mark.parametrize("algo", [ED25519, "ecdsa-secp256k1"])
@pytest.mark.parametrize("first", [True, False])
def test_an_id_that_stands_twice_is_refused_whatever_the_algorithms(algo: str, *, first: bool) -> None:
    ours, second = (
        PublicKey("receipt-1", ED25519, SIGNER.public_hex),
        PublicKey("receipt-1", algo, TestKey(3).public_hex),
    )
    keys = (second, ours) if first else (ours, second)
    assert "stands twice" in refused(with_receipt_keys(*keys))


def test_an_id_may_stand_in_two_roles() -> None:
    document = replaced(keyset_document(), ("e2ee_public_keys", 0, "key_id"), "receipt-1")
    assert parse_keyset(document)[0].receipt_key("receipt-1") == bytes.fromhex(SIGNER.public_hex)


@pytest.mark.parametrize("public_key", [SIGNER.public_hex, SIGNER.public_hex.upper()])
def test_a_receipt_key_that_also_seals_is_refused(public_key: str) -> None:
    document = replaced(keyset_document(), ("e2ee_public_keys", 0, "public_key"), public_key)
    assert "second role" in refused(document)


def test_a_receipt_key_that_also_is_the_tls_key_is_refused() -> None:
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(SIGNER.public_hex))
    spki = sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    document = replaced(keyset_document(), ("tls_public_keys", 0, "spki_sha256"), spki)
    assert "second role" in refused(document)


@pytest.mark.parametrize("host", ["api.example.com", "API.Example.com", "api.example.com."])
@pytest.mark.parametrize("domain", ["api.example.com", "Api.Example.Com", "api.example.com."])
def test_a_host_is_found_without_regard_to_case_and_final_dot(host: str, domain: str) -> None:
    named = keyset(tls_public_keys=(TlsKey("c0" * 32, domain), TlsKey("c1" * 32, "other.example.com")))
    assert named.tls_pins(host) == {b"\xc0" * 32}
    assert named.domains == {"api.example.com", "other.example.com"}


def test_a_key_without_a_domain_stands_for_every_host() -> None:
    mixed = keyset(tls_public_keys=(TlsKey("c0" * 32), TlsKey("c1" * 32, "api.example.com")))
    assert mixed.tls_pins("api.example.com") == {b"\xc0" * 32, b"\xc1" * 32}
    assert mixed.tls_pins("example.com") == {b"\xc0" * 32}
    assert mixed.domains == {"api.example.com"}


@pytest.mark.parametrize("host", ["example.com", "x.api.example.com", "api.example.com..", "api.example.comm", ""])
def test_another_host_has_no_key(host: str) -> None:
    assert keyset().tls_pins(host) == frozenset()
