"""A session is the document with that id, and the evidence in it is the evidence it names (wire contract 7.8, 9.4)."""

import json
from typing import Any

import pytest
import rfc8785

from aci_documents import Document, removed, replaced, session
from confide.protocol.canonical import DocumentError, digest_of
from confide.protocol.session import Claim, Session, evidence_bytes, listed, parse_session, session_id

DATA = ("evidence", "data")
CLAIM = ("claims", "tee_attested")
BINDING = ("channel_binding", 0)
CLAIMS = (
    "tee_attested",
    "gpu_attested",
    "tcb_up_to_date",
    "os_known_good",
    "serving_software_known_good",
    "model_weights_provenance",
)


def read(document: Document) -> Session:
    """Read under the id that the document has."""
    return parse_session(json.dumps(document).encode(), session_id(document))


def refused(document: Document) -> str:
    with pytest.raises(DocumentError) as caught:
        read(document)
    return str(caught.value)


def test_a_session_is_read_in_any_encoding() -> None:
    expected = session_id(session())
    for raw in (rfc8785.dumps(session()), json.dumps(session(), indent=1).encode()):
        got = parse_session(raw, expected)
        assert got.upstream_name == "demo-upstream"
        assert (got.established_at, got.expires_at) == (1_750_000_000, 1_750_003_600)
        assert got.claims.tee_attested == Claim("asserted", "hardware_proven", "the quote verified")
        assert got.claims.gpu_attested == Claim("unknown")
        assert got.claims.tcb_up_to_date.status == "refuted"
        assert got.claims.extra == {"tcb_status": "OutOfDate", "gpus": 8}
        assert [binding.type for binding in got.channel_binding] == ["tls_spki_sha256", "e2ee_public_key_sha256"]
        assert evidence_bytes(got.evidence.data) == b"example-evidence"


def test_what_may_be_left_out_or_null_is() -> None:
    document = removed(removed(session(), ("identity",)), ("claims", "extra"))
    got = read(replaced(document, ("endpoint",), None))
    assert (got.identity, got.claims.extra, got.endpoint) == (None, {}, None)


@pytest.mark.parametrize("expected", ["", "00" * 32, session_id(session()).upper(), "as_" + session_id(session()), "é"])
def test_another_id_is_another_document(expected: str) -> None:
    with pytest.raises(DocumentError, match="another document"):
        parse_session(json.dumps(session()).encode(), expected)


def test_an_id_inside_the_document_makes_another_document() -> None:
    named = replaced(session(), ("session_id",), session_id(session()))
    assert session_id(named) != session_id(session())


def test_evidence_is_what_its_digest_says() -> None:
    assert "does not have the digest" in refused(replaced(session(), ("evidence", "digest"), digest_of(b"")))
    other = "data:text/plain;base64,ZXhhbXBsZS1ldmlkZW5jZA=="
    assert "does not have the digest" in refused(replaced(session(), DATA, other))


@pytest.mark.parametrize(
    "data",
    [
        "ZXhhbXBsZS1ldmlkZW5jZQ==",
        "data:text/plain,example-evidence",
        "data:text/plain;base64ZXhhbXBsZS1ldmlkZW5jZQ==",
        "DATA:text/plain;base64,ZXhhbXBsZS1ldmlkZW5jZQ==",
        "https://a/;base64,ZXhhbXBsZS1ldmlkZW5jZQ==",
        "data:text/plain;base64,ZXhhbXBsZS1ldmlkZW5jZQ",
        "data:text/plain;base64,ZXhhbXBsZS1ldmlkZW5jZR==",
        "data:text/plain;base64,ZXhhbXBsZS1ldmlkZW5jZQ==\n",
        "data:text/plain;base64, ZXhhbXBsZS1ldmlkZW5jZQ==",
        "data:text/plain;base64,é",
    ],
)
def test_evidence_is_the_one_base64_text_of_its_bytes(data: str) -> None:
    assert "base64" in refused(replaced(session(), DATA, data))


def test_evidence_may_be_of_any_type() -> None:
    assert evidence_bytes("data:multipart/mixed;boundary=a;base64,YQ==") == b"a"
    assert evidence_bytes("data:;base64,") == b""


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("api_version",), "aci/2"),
        (("api_version",), 1),
        (("established_at",), True),
        (("expires_at",), "1750003600"),
        (("expires_at",), None),
        (("identity",), []),
        (("channel_binding",), None),
        (("channel_binding", 0), None),
        (("channel_binding", 0), {}),
        (("channel_binding", 0, "type"), 7),
        (("claims",), []),
        (CLAIM, "asserted"),
        ((*CLAIM, "status"), None),
        ((*CLAIM, "status"), True),
        (("claims", "extra"), []),
        (("evidence",), None),
        (("evidence", "digest"), "80" * 32),
        (("evidence", "data"), None),
    ],
)
def test_a_member_of_another_form_is_refused(way: tuple[Any, ...], value: object) -> None:
    assert refused(replaced(session(), way, value)).startswith("the session: ")


@pytest.mark.parametrize("name", sorted(set(session()) - {"identity"}))
def test_a_member_that_is_not_there_is_refused(name: str) -> None:
    assert refused(removed(session(), (name,)))


@pytest.mark.parametrize("name", CLAIMS)
def test_all_six_claims_are_there(name: str) -> None:
    assert name in refused(removed(session(), ("claims", name)))


@pytest.mark.parametrize("value", [0.5, 2**53])
def test_a_fact_that_cannot_be_hashed_is_refused(value: object) -> None:
    document = replaced(session(), ("claims", "extra", "score"), value)
    with pytest.raises(DocumentError, match="cannot be hashed"):
        parse_session(json.dumps(document).encode(), "00" * 32)


@pytest.mark.parametrize(
    "claim",
    [
        {"status": "asserted"},
        {"status": "asserted", "source": "hearsay", "reason": "r"},
        {"status": "asserted", "source": "HardwareProven"},
        {"status": "Asserted", "source": "hardware_proven"},
        {"status": "proven", "source": "hardware_proven"},
        {"status": "unknown", "source": "hardware_proven", "reason": "r"},
        {"status": ""},
    ],
)
def test_a_claim_in_other_words_claims_nothing(claim: object) -> None:
    assert read(replaced(session(), CLAIM, claim)).claims.tee_attested == Claim("unknown")


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ((*BINDING, "spki_sha256"), None),
        ((*BINDING, "spki_sha256"), "D1" * 32),
        ((*BINDING, "spki_sha256"), "d1:" * 32),
        ((*BINDING, "spki_sha256"), ""),
        ((*BINDING, "origin"), None),
        (("channel_binding", 1, "public_key_sha256"), None),
        (("channel_binding", 1, "public_key_sha256"), "d2" * 31),
    ],
)
def test_a_binding_names_its_key(way: tuple[Any, ...], value: object) -> None:
    assert refused(replaced(session(), way, value))


def test_a_binding_of_another_type_is_passed_over() -> None:
    other = {"type": "vsock", "origin": 7, "spki_sha256": "none"}
    got = read(replaced(session(), BINDING, other)).channel_binding[0]
    assert (got.type, got.origin, got.spki_sha256) == ("vsock", None, None)


def test_the_list_shows_the_id_and_leaves_the_bulk_out() -> None:
    document = session()
    shown = listed(document)
    assert shown == {
        **session(),
        "session_id": session_id(session()),
        "evidence": {"digest": session()["evidence"]["digest"]},
    }
    assert document == session()
