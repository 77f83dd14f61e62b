"""The attacker sends documents that two readers read differently, or that are meant to exhaust the one who reads them.

A member twice, a number that is rounded, half a character, a hundred thousand brackets, gigabytes: with these they hope
for a hash over one reading and a decision over another, or for a client that falls over. Each is refused as what it is,
bounded, before a prompt is sent. The twin: the same documents laid out otherwise, which say the same.
"""

import json
from collections.abc import Callable

import pytest

from attested_service import ANSWER, AttestedService
from callers import ASYNC, EVERY, SYNC, Kind, asking, assert_refused
from confide import verify_service
from confide.evidence.result import Status
from confide.protocol.canonical import MAX_DOCUMENT_BYTES

Change = Callable[[bytes], bytes]


def another_layout(body: bytes) -> bytes:
    return json.dumps(json.loads(body), indent=3, sort_keys=True).encode()


def escaped(body: bytes) -> bytes:
    return body.replace(b'"api_version"', b'"\\u0061pi_version"').replace(b"aci/1", b"aci\\/1")


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("document", ["report", "receipt"])
@pytest.mark.parametrize("change", [another_layout, escaped, lambda body: b"\n " + body + b"\n\n"])
def test_another_layout_says_the_same(service: AttestedService, kind: Kind, document: str, change: Change) -> None:
    service.alter[document] = lambda reply, _: reply.but(change(reply.body))
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER


def twice(name: bytes) -> Change:
    """A member twice, the same value both times: whoever takes the first and whoever takes the last agree, for now."""

    def change(body: bytes) -> bytes:
        value = json.dumps(json.loads(body)[name.decode()]).encode()
        return b'{"%b":%b,%b' % (name, value, body[1:])

    return change


def nested_in(member: bytes, opening: bytes, closing: bytes, depth: int) -> Change:
    return lambda body: b'{"%b":%b1%b,%b' % (member, opening * depth, closing * depth, body[1:])


MALFORMED: list[tuple[str, Change]] = [
    ("a member twice", twice(b"api_version")),
    ("an escaped member twice", lambda body: b'{"\\u0061pi_version":"aci/1",' + body[1:]),
    ("a thousand brackets", nested_in(b"x", b"[", b"]", 1_000)),
    ("a hundred thousand brackets", nested_in(b"x", b"[", b"]", 100_000)),
    ("a hundred thousand objects", nested_in(b"x", b'{"a":', b"}", 100_000)),
    ("just brackets", lambda _: b"[" * 1_000_000),
    ("half a surrogate pair", lambda body: b'{"x":"\\ud800",' + body[1:]),
    ("not UTF-8", lambda body: b'{"x":"\xff",' + body[1:]),
    ("NaN", lambda body: b'{"x":NaN,' + body[1:]),
    ("Infinity", lambda body: b'{"x":-Infinity,' + body[1:]),
    ("a byte order mark", lambda body: b"\xef\xbb\xbf" + body),
    ("UTF-16", lambda body: body.decode().encode("utf-16")),
    ("two documents", lambda body: body + body),
    ("a comma at the end", lambda body: body[:-1] + b",}"),
    ("a comment", lambda body: b"/* */" + body),
    ("a digit too many", lambda body: b'{"x":' + b"9" * 5_000 + b"," + body[1:]),
    ("a control character", lambda body: body.replace(b"aci/1", b"aci/1\n", 1)),
    ("a NUL at the end", lambda body: body + b"\0"),
    ("an array", lambda body: b"[" + body + b"]"),
    ("a text", lambda body: json.dumps(body.decode()).encode()),
]
malformed = pytest.mark.parametrize("change", [each[1] for each in MALFORMED], ids=[each[0] for each in MALFORMED])


@malformed
def test_a_malformed_report_gets_no_prompt(service: AttestedService, change: Change) -> None:
    service.alter["report"] = lambda reply, _: reply.but(change(reply.body))
    for kind in (SYNC, ASYNC):
        with asking(service, kind) as caller:
            error = assert_refused(caller, service, "id-1", prompts=0)
            assert len(error.message) < 500
    result = verify_service(service.url, service.policy())
    assert [check.name for check in result.checks if check.status is Status.FAIL] == ["id-1"]


@malformed
def test_a_malformed_receipt_is_refused(service: AttestedService, change: Change) -> None:
    service.alter["receipt"] = lambda reply, _: reply.but(change(reply.body))
    for kind in (SYNC, ASYNC):
        with asking(service, kind) as caller:
            error = assert_refused(caller, service, "receipt-1")
            assert len(error.message) < 500


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"served_at":', b'"served_at":1.5e9,"x":'),
        (b'"method":"POST"', b'"method":["POST"]'),
        (b'"api_version":"aci/1"', b'"api_version":"ACI/1"'),
        (b'"api_version":"aci/1"', b'"api_version":"aci/1 "'),
        (b"sha256:", b"SHA256:"),
        (b'"signature":"', b'"signature":"0x'),
        (b'"event_log":[', b'"event_log":[null,'),
        (b'"event_log":[', b'"event_log":{"0":'),
    ],
)
def test_a_receipt_of_another_form_is_refused(service: AttestedService, old: bytes, new: bytes) -> None:
    service.alter["receipt"] = lambda reply, _: reply.replacing(old, new)
    with asking(service) as caller:
        assert_refused(caller, service, "receipt-1")


def test_a_number_that_could_be_rounded_is_refused_although_it_is_signed(service: AttestedService) -> None:
    """2^53 + 1 and 2^53 are one number to many readers; so are 1 and 1.0."""
    service.alter["receipt"] = lambda reply, _: reply.replacing(b'{"', b'{"x":9007199254740993,"')
    with asking(service) as caller:
        error = assert_refused(caller, service, "receipt-1")
        assert "2^53" in error.message
        caller.reset()
        service.alter["receipt"] = lambda reply, _: reply.replacing(b'{"', b'{"x":1.0,"')
        assert_refused(caller, service, "receipt-1")
        caller.reset()
        service.alter["receipt"] = lambda reply, _: reply.but(service.sign(reply.document | {"x": 2**53 - 1}))
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(("document", "check"), [("report", "id-1"), ("receipt", "receipt-1")])
def test_a_document_without_end_is_not_read_to_its_end(
    service: AttestedService, kind: Kind, document: str, check: str
) -> None:
    service.alter[document] = lambda reply, _: reply.but(
        *(b" " * 2**20 for _ in range(64)), reply.body, content_length=None, content_type="text/event-stream"
    )
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, check, prompts=int(document == "receipt"))
        assert str(MAX_DOCUMENT_BYTES) in error.message


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("document", ["report", "receipt"])
def test_a_large_document_within_the_limit_is_read(service: AttestedService, kind: Kind, document: str) -> None:
    service.alter[document] = lambda reply, _: reply.but(b" " * (MAX_DOCUMENT_BYTES - len(reply.body)) + reply.body)
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER


def test_a_report_without_end_is_a_result_too(service: AttestedService) -> None:
    service.alter["report"] = lambda reply, _: reply.but(b" " * (MAX_DOCUMENT_BYTES + 1) + reply.body)
    result = verify_service(service.url, service.policy())
    assert [check.name for check in result.checks if check.status is Status.FAIL] == ["id-1"]
