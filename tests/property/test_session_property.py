"""A session is cited by what it holds: a change anywhere in it makes another session."""

import json
from base64 import b64encode
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aci_documents import Document, Way, session
from aci_strategies import changes, edited_bytes, json_values
from confide.protocol.canonical import DocumentError, canonical, digest_of
from confide.protocol.session import SOURCES, Session, evidence_bytes, parse_session, session_id

ID = session_id(session())


def read(raw: bytes, expected_id: str) -> Session | None:
    """None when it was refused. Any other exception fails the test."""
    try:
        return parse_session(raw, expected_id)
    except DocumentError:
        return None


def read_as_cited(document: Document) -> Session | None:
    """Read under its own id, as when a receipt cites just that."""
    try:
        own_id = session_id(document)
    except DocumentError:
        own_id = ID
    return read(json.dumps(document).encode(), own_id)


@given(changes(session()))
def test_a_changed_session_is_another(change: tuple[Way, Document]) -> None:
    assert read(json.dumps(change[1]).encode(), ID) is None


@given(edited_bytes(json.dumps(session()).encode()))
def test_a_session_with_other_bytes_is_another_or_the_same_document(raw: bytes) -> None:
    if read(raw, ID) is not None:
        assert canonical(json.loads(raw)) == canonical(session())


@given(changes(session()))
def test_a_changed_session_that_is_cited_says_nothing_undefined(change: tuple[Way, Document]) -> None:
    got = read_as_cited(change[1])
    if got is None:
        return
    assert digest_of(evidence_bytes(got.evidence.data)) == got.evidence.digest
    claims = [getattr(got.claims, name) for name in got.claims.__struct_fields__ if name != "extra"]
    assert len(claims) == 6
    for claim in claims:
        is_stated = claim.status in ("asserted", "refuted") and claim.source in SOURCES
        assert is_stated or (claim.status, claim.source, claim.reason) == ("unknown", None, None)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(raw: bytes) -> None:
    assert read(raw, ID) is None


@given(json_values | st.dictionaries(st.sampled_from(sorted(session())), json_values))
def test_any_object_under_its_own_id_is_read_or_refused(value: Any) -> None:
    if isinstance(value, dict):
        read_as_cited({**session(), **value})


@given(st.binary(), st.sampled_from(["text/plain", "application/json", ""]))
def test_evidence_comes_out_as_it_went_in(evidence: bytes, media_type: str) -> None:
    assert evidence_bytes(f"data:{media_type};base64,{b64encode(evidence).decode()}") == evidence


@given(st.text(st.characters(codec=None)) | st.text().map("data:;base64,".__add__))
def test_a_text_is_evidence_or_refused(text: str) -> None:
    try:
        evidence_bytes(text)
    except DocumentError:
        return
    assert text.startswith("data:")
