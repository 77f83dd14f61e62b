"""The attacker relays plain HTTP and takes the proof away, hoping that a client without one goes on as if there was.

No `X-Receipt-Id`, one that leads nowhere, or a receipt that is refused, cut off, or an error page: an answer that
cannot be proven is refused, and no error path is more permissive than that. The twin: the proof is there.
"""

import pytest

from attested_service import ANSWER, RECEIPTS, REPORT, AttestedService, Reply, Seen
from callers import BUFFERED, EVERY, SYNC, Kind, asking, assert_refused

PAGE = b"<!doctype html><title>Please sign in</title>"


@pytest.mark.parametrize("kind", EVERY)
def test_with_its_receipt_the_answer_is_proven(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("receipt_id", [None, "", " ", "x" * 201, "\xe9"], ids=["none", "empty", "space", "long", "é"])
def test_an_answer_without_a_receipt_id_is_refused(
    service: AttestedService, kind: Kind, receipt_id: str | None
) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(x_receipt_id=receipt_id)
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "receipt-1")
        assert "X-Receipt-Id" in error.message


@pytest.mark.parametrize(
    "receipt_id",
    [
        "rcpt-000000000000000000000000",
        ".",
        "..",
        "../../v1/models",
        "a?b=c#d",
        "%2e%2e/attestation",
        "a, b",
        "chatcmpl-1",
    ],
)
def test_a_receipt_id_that_leads_elsewhere_is_refused(service: AttestedService, receipt_id: str) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(x_receipt_id=receipt_id)
    with asking(service) as caller:
        assert_refused(caller, service, "receipt-1")
    asked = {seen.path for seen in service.seen if seen.method == "GET"}
    assert all(path.startswith(RECEIPTS) for path in asked - {REPORT})


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, 502, 503, 201, 204, 301])
def test_a_receipt_that_is_refused_is_no_proof(service: AttestedService, kind: Kind, status: int) -> None:
    service.alter["receipt"] = lambda reply, _: reply.but(
        *((b"",) if status == 204 else ()), status=status, content_length="0" if status == 204 else None
    )
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "receipt-1")
        assert f"got status {status}" in error.message


@pytest.mark.parametrize("kind", BUFFERED)
@pytest.mark.parametrize("body", [PAGE, b"{}", b"null", b"", b"[]", b'{"error":{"message":"no"}}'], ids=str)
def test_a_page_instead_of_the_receipt_is_no_proof(service: AttestedService, kind: Kind, body: bytes) -> None:
    service.alter["receipt"] = lambda reply, _: reply.but(body)
    with asking(service, kind) as caller:
        assert_refused(caller, service, "receipt-1")


def cut_in_the_middle(reply: Reply, _: Seen) -> Reply:
    return reply.but(reply.body[:40]).cut()


@pytest.mark.parametrize("kind", EVERY)
def test_a_receipt_that_breaks_off_is_no_proof(service: AttestedService, kind: Kind) -> None:
    """Documents are asked for again, a few times; the prompt is not."""
    tries = len([seen for seen in service.seen if seen.path.startswith(RECEIPTS)])
    service.alter["receipt"] = cut_in_the_middle
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "receipt-1")
        assert "could not be fetched" in error.message
    assert len([seen for seen in service.seen if seen.path.startswith(RECEIPTS)]) == tries + 3


@pytest.mark.parametrize("kind", EVERY)
def test_a_receipt_that_breaks_off_once_is_asked_for_again(service: AttestedService, kind: Kind) -> None:
    broken: list[Seen] = []

    def once(reply: Reply, seen: Seen) -> Reply:
        broken.append(seen)
        return cut_in_the_middle(reply, seen) if len(broken) == 1 else reply

    service.alter["receipt"] = once
    prompts = len(service.prompts)
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER
    assert len(service.prompts) == prompts + 1


@pytest.mark.parametrize("kind", EVERY)
def test_a_page_instead_of_the_answer_is_no_answer(service: AttestedService, kind: Kind) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(PAGE, content_type="text/html", x_receipt_id=None)
    with asking(service, kind) as caller:
        assert_refused(caller, service, "receipt-1")


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("status", [400, 404])
def test_an_error_that_claims_a_receipt_is_held_to_it(service: AttestedService, kind: Kind, status: int) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(b'{"error":{"message":"no"}}', status=status)
    with asking(service, kind) as caller:
        assert_refused(caller, service, "receipt-4")


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("status", [301, 404, 403, 410])
def test_a_service_without_a_report_gets_no_prompt(service: AttestedService, kind: Kind, status: int) -> None:
    service.alter["report"] = lambda reply, _: reply.but(PAGE, status=status)
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "id-1", prompts=0)
        assert f"status {status}" in error.message


@pytest.mark.parametrize("body", [PAGE, b"", b"{}", b"[]", b'{"api_version":"aci/1"}', b'"aci/1"'], ids=str)
def test_a_page_instead_of_the_report_gets_no_prompt(service: AttestedService, body: bytes) -> None:
    service.alter["report"] = lambda reply, _: reply.but(body)
    with asking(service, SYNC) as caller:
        assert_refused(caller, service, "id-1", prompts=0)


@pytest.mark.parametrize("kind", EVERY)
def test_a_report_of_the_new_keyset_that_is_kept_back_makes_the_answer_worthless(
    service: AttestedService, kind: Kind
) -> None:
    """The answer names a keyset that the client does not know, and whoever is asked about it breaks off."""
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER
        service.alter["answer"] = lambda reply, _: reply.but(x_aci_keyset_digest="sha256:" + "00" * 32)
        service.alter["report"] = cut_in_the_middle
        assert_refused(caller, service, "id-1")


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("digest", ["sha256:" + "00" * 32, "", "nonsense", "sha256:x, sha256:y"])
def test_a_keyset_header_that_lies_costs_a_look_and_proves_nothing(
    service: AttestedService, kind: Kind, digest: str
) -> None:
    service.alter["answer"] = lambda reply, _: reply.but(x_aci_keyset_digest=digest)
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER
        service.alter["answer"] = lambda reply, _: reply.replacing(b"42.", b"43.").but(x_aci_keyset_digest=digest)
        assert_refused(caller, service, "receipt-4")
