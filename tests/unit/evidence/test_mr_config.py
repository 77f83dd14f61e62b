"""The document behind `mr_config_id` and `HOST_DATA`."""

import json
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.evidence.mr_config import MrConfigError, document_sha256, form_1, form_2, form_3, read_document
from confide.protocol.signature import keccak256

HONEST = {
    "version": 3,
    "app_id": "11" * 20,
    "compose_hash": "22" * 32,
    "gpu_policy_hash": "55" * 32,
    "key_provider": "local",
    "key_provider_id": "33" * 32,
    "instance_id": "44" * 20,
    "init_script_hashes": ["66" * 32],
}


def test_the_forms_are_a_byte_a_commitment_and_zeros() -> None:
    digest, app_id = bytes(range(32)), bytes(range(20))
    assert form_1(digest) == b"\x01" + digest + bytes(15)
    expected = keccak256(digest + app_id + b"\x02" + b"id")
    assert form_2(digest, app_id, "kms", b"id") == b"\x02" + expected + bytes(15)
    assert form_3("{}") == b"\x03" + sha256(b"dstack-mr-config-v3:\0{}").digest() + bytes(15)
    assert document_sha256("{}") == form_3("{}")[1:33]


@pytest.mark.parametrize(("name", "kind"), [("none", 0), ("local-sgx", 1), ("kms", 2), ("tpm", 3)])
def test_each_key_provider_has_a_number(name: str, kind: int) -> None:
    assert form_2(bytes(32), bytes(20), name, b"")[1:33] == keccak256(bytes(52) + bytes((kind,)))


def test_a_key_provider_without_a_number_is_refused() -> None:
    with pytest.raises(MrConfigError, match="expected one of none, local-sgx, kms, tpm"):
        form_2(bytes(32), bytes(20), "other", b"")


def test_a_document_is_read() -> None:
    document = read_document(json.dumps(HONEST))
    assert document.compose_hash == b"\x22" * 32
    assert document.app_id == b"\x11" * 20
    assert (document.key_provider, document.key_provider_id) == ("local-sgx", b"\x33" * 32)
    assert document.instance_id == b"\x44" * 20
    assert document.gpu_policy_hash == b"\x55" * 32
    assert document.init_script_hashes == (b"\x66" * 32,)


def test_most_members_are_optional() -> None:
    document = read_document(json.dumps({"compose_hash": "22" * 32, "unknown": 1}))
    assert (document.app_id, document.key_provider, document.init_script_hashes) == (b"", "", None)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        "\ud800",
        '{"compose_hash":"22"}',
        json.dumps(HONEST | {"version": 2}),
        json.dumps(HONEST | {"version": "3"}),
        json.dumps(HONEST | {"app_id": "1"}),
        json.dumps(HONEST | {"app_id": None}),
        json.dumps(HONEST | {"key_provider": 2}),
        json.dumps(HONEST | {"init_script_hashes": "66"}),
        json.dumps(HONEST)[:-1] + ',"compose_hash":"' + "22" * 32 + '"}',
        json.dumps(HONEST) + " " * 65536,
    ],
    ids=lambda document: document[:40],
)
def test_an_odd_document_is_refused(document: str) -> None:
    with pytest.raises(MrConfigError):
        read_document(document)


def test_a_text_without_bytes_has_no_hash() -> None:
    with pytest.raises(MrConfigError, match="surrogate"):
        document_sha256("\ud800")


@given(st.text(), st.text())
def test_another_text_is_another_commitment(one: str, other: str) -> None:
    assert (form_3(one) == form_3(other)) == (one == other)


@given(st.text())
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with pytest.raises(MrConfigError):
        read_document(text)
