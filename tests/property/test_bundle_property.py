"""What a bundle was made of comes out of it; what was changed in its bodies or hashes is refused."""

import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aci_documents import RECEIVED, SENT, Document, Way, answer_proof, bundle, service_proof
from aci_strategies import changes, edited_bytes, json_values, texts
from confide.protocol.bundle import FORMAT, AnswerProof, Bundle, parse_bundle, write_bundle
from confide.protocol.canonical import DocumentError

hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)


def with_bodies(sent: bytes = SENT, received: bytes = RECEIVED, **changes: Any) -> AnswerProof:
    return answer_proof(
        request_b64=b64encode(sent).decode(),
        request_sha256=sha256(sent).hexdigest(),
        response_b64=b64encode(received).decode(),
        response_sha256=sha256(received).hexdigest(),
        **changes,
    )


WHOLE = write_bundle(service_proof(), [with_bodies()])


def read(raw: bytes) -> Bundle | None:
    """None when it was refused. Any other exception fails the test."""
    try:
        return parse_bundle(raw)
    except DocumentError:
        return None


@given(st.binary(), st.binary(), texts, texts, st.none() | texts, st.lists(texts, max_size=2), st.none() | hashes)
def test_what_went_in_comes_out(
    sent: bytes, received: bytes, receipt: str, report: str, chat_id: str | None, sessions: list[str], spki: str | None
) -> None:
    service = service_proof(report=report, spki_sha256=spki)
    answers = (with_bodies(sent, received, receipt=receipt, chat_id=chat_id, sessions=tuple(sessions)), answer_proof())
    assert read(write_bundle(service, answers)) == Bundle(format=FORMAT, service=service, answers=answers)


@given(changes(json.loads(WHOLE)))
def test_a_bundle_holds_no_body_but_the_hashed_one(change: tuple[Way, Document]) -> None:
    way, changed = change
    got = read(json.dumps(changed).encode())
    if got is None:
        return
    for answer in got.answers:
        assert answer.request_b64 in (None, b64encode(SENT).decode())
        assert answer.response_b64 in (None, b64encode(RECEIVED).decode())
    if way[-1] in ("request_sha256", "response_sha256"):
        raise AssertionError("a hash was changed and the body beside it was let through")


@given(edited_bytes(WHOLE))
def test_a_bundle_with_other_bytes_is_read_or_refused(raw: bytes) -> None:
    got = read(raw)
    assert got is None or got.format == FORMAT


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(raw: bytes) -> None:
    assert read(raw) is None


@given(st.dictionaries(st.sampled_from(sorted(bundle()["answers"][0])), json_values, max_size=3))
def test_any_value_for_any_member_is_read_or_refused(members: Document) -> None:
    document = bundle()
    document["answers"][0].update(members)
    got = read(json.dumps(document).encode())
    assert got is None or len(got.answers) == 1
