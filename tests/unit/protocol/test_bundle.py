"""A bundle holds a whole proof as it came; nothing in it is believed because it is there."""

import json
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest

from aci_documents import RECEIVED, SENT, answer_proof, bundle, removed, replaced, service_proof
from confide.protocol.bundle import FORMAT, Bundle, parse_bundle, write_bundle
from confide.protocol.canonical import DocumentError

ANSWER = ("answers", 0)


def refused(document: object) -> str:
    with pytest.raises(DocumentError) as caught:
        parse_bundle(json.dumps(document).encode())
    return str(caught.value)


def text(body: bytes) -> str:
    return b64encode(body).decode()


def with_bodies(**changes: Any) -> Any:
    return answer_proof(**{"request_b64": text(SENT), "response_b64": text(RECEIVED)} | changes)


def test_what_we_write_is_read_back() -> None:
    service = service_proof(spki_sha256=None, nonce=None)
    answers = (answer_proof(), with_bodies(chat_id=None, sessions=('{"a": "é"}',)))
    assert parse_bundle(write_bundle(service, answers)) == Bundle(format=FORMAT, service=service, answers=answers)
    assert parse_bundle(write_bundle(service, [])) == Bundle(format=FORMAT, service=service)


def test_documents_stand_in_it_exactly_as_they_came() -> None:
    odd = '{ "a" : 1.50,\n"a":"\\u00e9\\ud83d\\ude00 é\x7f\u2028" }'
    written = write_bundle(service_proof(report=odd), [answer_proof(receipt=odd, sessions=(odd,))])
    got = parse_bundle(written)
    assert got.service.report == got.answers[0].receipt == got.answers[0].sessions[0] == odd


def test_the_file_is_for_people_too() -> None:
    written = write_bundle(service_proof(), [])
    assert written.startswith(b'{\n  "format": "confide-bundle/1",\n  "service": {\n    "url": ')
    assert written.endswith(b"}\n")


def test_bodies_are_there_only_when_asked_for() -> None:
    assert not {"request_b64", "response_b64", "sessions"} & set(bundle()["answers"][0])


@pytest.mark.parametrize("member", ["request_b64", "response_b64"])
def test_a_body_is_the_one_that_was_hashed(member: str) -> None:
    assert refused(replaced(bundle(), (*ANSWER, member), text(b"other"))) == (
        f"the bundle: {member} does not have the hash that stands beside it"
    )
    for broken in ("?", "YQ", "YR==", "é", text(SENT) + "\n"):
        assert refused(replaced(bundle(), (*ANSWER, member), broken)) == f"the bundle: {member} is not base64"


def test_bodies_are_not_exchanged() -> None:
    swapped = with_bodies(request_b64=text(RECEIVED), response_b64=text(SENT))
    with pytest.raises(DocumentError, match="request_b64 does not have the hash"):
        parse_bundle(write_bundle(service_proof(), [swapped]))


def test_an_empty_body_is_a_body() -> None:
    empty = answer_proof(request_b64="", request_sha256=sha256(b"").hexdigest())
    assert parse_bundle(write_bundle(service_proof(), [empty])).answers[0].request_b64 == ""
    assert "request_b64" in refused(replaced(bundle(), (*ANSWER, "request_b64"), ""))


@pytest.mark.parametrize("form", ["confide-bundle/2", "", "\x1b[2J" * 30])
def test_another_format_is_named_and_steers_no_terminal(form: str) -> None:
    message = refused(replaced(bundle(), ("format",), form))
    assert message.endswith("expected confide-bundle/1")
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("service",), None),
        (("answers",), {}),
        (("service", "nonce"), "AB" * 32),
        (("service", "nonce"), ""),
        (("service", "verified_at"), True),
        (("service", "verified_at"), 1750000000.0),
        (("service", "verified_at"), "1750000000"),
        (("service", "spki_sha256"), "c0" * 31),
        (("service", "report"), {}),
        (("service", "report"), "\ud800"),
        ((*ANSWER, "receipt"), {}),
        ((*ANSWER, "request_sha256"), "sha256:" + "ab" * 32),
        ((*ANSWER, "status"), True),
        ((*ANSWER, "status"), "200"),
        ((*ANSWER, "sessions"), [{}]),
    ],
)
def test_a_member_of_another_form_is_refused(way: tuple[Any, ...], value: object) -> None:
    assert refused(replaced(bundle(), way, value)).startswith("the bundle: ")


@pytest.mark.parametrize("way", [("service",), *(("service", name) for name in bundle()["service"])])
def test_a_member_that_is_not_there_is_refused(way: tuple[Any, ...]) -> None:
    assert str(way[-1]) in refused(removed(bundle(), way))


def test_what_names_no_format_is_no_bundle() -> None:
    assert "format" in refused(removed(bundle(), ("format",)))


def test_a_bundle_may_be_larger_than_other_documents() -> None:
    large = b"a" * (5 * 1024 * 1024)
    proof = answer_proof(response_b64=text(large), response_sha256=sha256(large).hexdigest())
    assert parse_bundle(write_bundle(service_proof(), [proof])).answers == (proof,)
