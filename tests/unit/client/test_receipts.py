"""Receipts: whether one proves an exchange, and the second hop where there is one (wire contract 9.5)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from aci_service import (
    CHAT_ID,
    LIFETIME_S,
    RECEIPT_ID,
    RECEIVED,
    SENT,
    AciService,
    epoch_at,
    exchange,
    named,
)
from confide.client.proof import required_of
from confide.client.receipts import REQUIRED, SESSION, Exchange, verify_receipt
from confide.evidence.result import Check, Status
from confide.protocol.canonical import digest_of
from confide.protocol.receipt import Receipt
from confide.protocol.session import session_id
from confide.verifier.policy import Policy
from proof_builders import NOW

ORDER = ["receipt-1", "receipt-2", "receipt-3", "receipt-4", "upstream-1", "upstream-2", "receipt-note"]
Checks = tuple[Check, ...]
Trusting = Callable[..., Policy]


@pytest.fixture(scope="session")
def behind() -> AciService:
    """An honest service whose inference runs behind a second hop."""
    return AciService(serving="aggregator")


class Verifier:
    """Verifies receipts of a service under a policy. Sessions are at hand unless the exchange says otherwise."""

    def __init__(self, trusting: Trusting) -> None:
        self.trusting = trusting

    def __call__(
        self, service: AciService, raw: bytes | None = None, given: Exchange | None = None, **policy: Any
    ) -> Checks:
        checks, _ = self.both(service, raw, given, **policy)
        return checks

    def both(
        self, service: AciService, raw: bytes | None = None, given: Exchange | None = None, **policy: Any
    ) -> tuple[Checks, Receipt | None]:
        asked = self.trusting(**policy)
        services = {service.digest: service.verified(self.trusting())}
        given = given or exchange(sessions=sessions(service.session()))
        checks, receipt = verify_receipt(raw or service.receipt(), given, services=services, policy=asked)
        assert [check.name for check in checks] == ORDER
        return checks, receipt


@pytest.fixture
def verify(trusting: Trusting) -> Verifier:
    return Verifier(trusting)


def sessions(*documents: dict[str, Any]) -> dict[str, bytes]:
    return {session_id(document): json.dumps(document).encode() for document in documents}


def ids(checks: Checks, status: Status) -> set[str]:
    return {check.name for check in checks if check.status is status}


def failing(checks: Checks) -> set[str]:
    return ids(checks, Status.FAIL)


def reason(checks: Checks, name: str) -> str:
    return named(checks, name).reason


def test_an_honest_receipt_of_a_direct_service_proves_the_exchange(service: AciService, verify: Verifier) -> None:
    checks, receipt = verify.both(service)
    assert ids(checks, Status.PASS) == {*ORDER} - {"upstream-2"}
    assert ids(checks, Status.SKIP) == {"upstream-2"}
    assert receipt is not None
    assert (receipt.members.receipt_id, receipt.members.chat_id) == (RECEIPT_ID, CHAT_ID)
    assert receipt.outcome == "complete"


def test_what_is_required_is_what_the_contract_asks(
    service: AciService, behind: AciService, trusting: Trusting
) -> None:
    policy = trusting()
    assert {"receipt-1", "receipt-2", "receipt-3", "receipt-4", "upstream-1"} == REQUIRED
    assert required_of(service.verified(policy), policy) == REQUIRED
    assert required_of(behind.verified(policy), policy) == REQUIRED | {SESSION}


# receipt-1


def test_a_receipt_by_another_key_is_forged(service: AciService, verify: Verifier) -> None:
    other = epoch_at(NOW + LIFETIME_S).signer
    forged = service.receipt(other, key_id=service.signer.key_id)
    assert failing(verify(service, forged)) == {"receipt-1"}
    unknown = verify(service, service.receipt(other, key_id=other.key_id))
    assert failing(unknown) == {"receipt-1"}
    assert "names no ed25519 receipt signing key" in reason(unknown, "receipt-1")


@pytest.mark.parametrize("member", ["chat_id", "model", "served_at"])
def test_a_receipt_that_was_changed_is_forged(service: AciService, verify: Verifier, member: str) -> None:
    document = json.loads(service.receipt())
    document[member] = 5 if member == "served_at" else "another"
    assert failing(verify(service, json.dumps(document).encode())) == {"receipt-1"}


def test_members_of_later_versions_are_signed_too(service: AciService, verify: Verifier) -> None:
    raw = service.receipt(note={"of": ["later", 1]})
    assert failing(verify(service, raw)) == set()
    assert failing(verify(service, raw.replace(b"later", b"LATER"))) == {"receipt-1"}


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b"[" * 100_000, b'{"a":"\\ud800"}', b"{}"])
def test_what_is_no_receipt_is_a_failed_check(service: AciService, verify: Verifier, raw: bytes) -> None:
    checks, receipt = verify.both(service, raw)
    assert receipt is None
    assert ids(checks, Status.FAIL) == {"receipt-1"}
    assert ids(checks, Status.SKIP) == {*ORDER} - {"receipt-1"}


# receipt-2


def test_a_keyset_that_was_not_verified_signs_nothing(service: AciService, trusting: Trusting) -> None:
    other = service.but(epoch=epoch_at(NOW + LIFETIME_S))
    verified, untrusted = service.verified(trusting()), service.verified(Policy())
    for services in ({}, {other.digest: verified}, {service.digest: untrusted}):
        checks, _ = verify_receipt(service.receipt(), exchange(), services=services, policy=trusting())
        assert ids(checks, Status.FAIL) == {"receipt-2"}
        assert ids(checks, Status.SKIP) >= {"receipt-1", "upstream-1", "upstream-2"}
        assert service.digest in reason(checks, "receipt-2")


def test_a_genuine_receipt_of_another_exchange_is_no_proof_of_this_one(service: AciService, verify: Verifier) -> None:
    for changes in ({"receipt_id": "rcpt-x"}, {"endpoint": "/v1/completions"}, {"method": "GET"}):
        assert failing(verify(service, service.receipt(**changes))) == {"receipt-2"}
    got = verify(service, given=exchange(endpoint="/v1/messages"))
    assert reason(got, "receipt-2") == "got a receipt of POST /v1/chat/completions, expected POST /v1/messages"


def test_a_receipt_is_from_within_the_keysets_life(service: AciService, verify: Verifier) -> None:
    not_after = service.keyset.not_after
    assert failing(verify(service, service.receipt(served_at=not_after - 1))) == set()
    late = verify(service, service.receipt(served_at=not_after))
    assert failing(late) == {"receipt-2"}
    assert f"got served_at {not_after}, expected before not_after {not_after}" in reason(late, "receipt-2")


@pytest.mark.parametrize("odd", ["\x1b[2K", "\u202e", "rcpt-\x00", "🙂" * 1000])
def test_nothing_from_the_peer_reaches_a_terminal_unchecked(service: AciService, verify: Verifier, odd: str) -> None:
    for member in ("receipt_id", "endpoint", "method", "key_id", "chat_id", "model"):
        checks = verify(service, service.receipt(**{member: odd}))
        assert all(check.reason.isprintable() for check in checks)


# receipt-3, receipt-4


def test_one_byte_more_on_the_wire_is_found(service: AciService, verify: Verifier) -> None:
    assert failing(verify(service, given=exchange(request_sha256=bytes(32)))) == {"receipt-3"}
    checks = verify(service, given=exchange(response_sha256=bytes(32)))
    assert failing(checks) == {"receipt-4"}
    assert reason(checks, "receipt-4") == (
        f"got {digest_of(RECEIVED)} in the receipt, expected sha256:{'00' * 32} of the bytes received"
    )


# receipt-note


def test_a_rewrite_is_noted_and_no_fault(service: AciService, verify: Verifier) -> None:
    events = service.receipt_document()["event_log"]
    events[1] = {"type": "request.forwarded", "body_hash": digest_of(b"another")}
    rewritten = verify(service, service.receipt(events=events))
    assert failing(rewritten) == set()
    assert "rewrote the request" in reason(rewritten, "receipt-note")
    del events[1]
    refused = verify(service, service.receipt(events=events))
    assert failing(refused) == set()
    assert "did not run" in reason(refused, "receipt-note")
    assert named(verify(service), "receipt-note").status is Status.PASS


def test_events_of_extensions_mean_nothing(service: AciService, verify: Verifier) -> None:
    first, *others = service.receipt_document()["event_log"]
    extension = {"type": "upstream.attempt", "result": 5, "body_hash": None}
    assert failing(verify(service, service.receipt(events=[first, extension, *others]))) == set()


# upstream-1, upstream-2


def test_a_second_hop_that_was_verified_is_proven_with_its_session(behind: AciService, verify: Verifier) -> None:
    checks = verify(behind)
    assert ids(checks, Status.PASS) == {*ORDER}
    assert "demo-upstream" in reason(checks, "upstream-2")


def test_a_direct_service_has_no_second_hop(service: AciService, behind: AciService, verify: Verifier) -> None:
    with_hop = service.receipt(events=behind.receipt_document()["event_log"])
    checks = verify(service, with_hop)
    assert failing(checks) == {"upstream-1"}
    assert "expected none: the report says serving direct" in reason(checks, "upstream-1")


def with_hops(behind: AciService, *hops: dict[str, Any]) -> bytes:
    first, forwarded, _, *others = behind.receipt_document()["event_log"]
    return behind.receipt(events=[first, forwarded, *hops, *others])


def failed_hop(reason: str = "no binding") -> dict[str, Any]:
    return {"type": "upstream.verified", "result": "failed", "required": True, "model_id": "m", "reason": reason}


def test_an_aggregator_without_a_verified_hop_proves_nothing(behind: AciService, verify: Verifier) -> None:
    absent = verify(behind, with_hops(behind))
    assert failing(absent) == {"upstream-1"}
    assert "got none, expected an upstream.verified event" in reason(absent, "upstream-1")
    broken = verify(behind, with_hops(behind, failed_hop("no\x1b binding")))
    assert failing(broken) == {"upstream-1"}
    assert "a failed one (no? binding)" in reason(broken, "upstream-1")


def test_earlier_attempts_may_have_failed(behind: AciService, verify: Verifier) -> None:
    assert failing(verify(behind, with_hops(behind, failed_hop(), behind.hop()))) == set()


def test_the_first_verified_hop_is_the_serving_one(behind: AciService, verify: Verifier) -> None:
    other = behind.hop(session_id="ab" * 32)
    assert failing(verify(behind, with_hops(behind, behind.hop(), other))) == set()
    assert named(verify(behind, with_hops(behind, other, behind.hop())), "upstream-2").status is Status.SKIP


def test_a_session_that_is_not_at_hand_is_not_passed(behind: AciService, verify: Verifier) -> None:
    checks = verify(behind, given=exchange())
    assert ids(checks, Status.SKIP) == {"upstream-2"}
    assert failing(checks) == set()


def test_another_document_than_the_cited_one_is_refused(behind: AciService, verify: Verifier) -> None:
    cited, other = session_id(behind.session()), behind.session(upstream_name="other")
    given = exchange(sessions={cited: json.dumps(other).encode()})
    checks = verify(behind, given=given)
    assert failing(checks) == {"upstream-2"}
    assert "another document" in reason(checks, "upstream-2")
    assert failing(verify(behind, given=exchange(sessions={cited: b"{"}))) == {"upstream-2"}


@pytest.mark.parametrize(
    ("established", "expires", "is_within"),
    [(0, 0, True), (-5, 0, True), (0, 5, True), (1, 5, False), (-5, -1, False)],
)
def test_the_answer_lies_in_the_sessions_period(
    behind: AciService, verify: Verifier, established: int, expires: int, is_within: bool
) -> None:
    session = behind.session(established_at=NOW + established, expires_at=NOW + expires)
    raw = with_hops(behind, behind.hop(session_id=session_id(session)))
    checks = verify(behind, raw, exchange(sessions=sessions(session)))
    assert failing(checks) == (set() if is_within else {"upstream-2"})


def test_sessions_that_are_pinned_are_the_only_ones_that_may_serve(behind: AciService, verify: Verifier) -> None:
    mine = session_id(behind.session())
    assert failing(verify(behind, session_ids=[mine, "ab" * 32])) == set()
    checks = verify(behind, session_ids=["ab" * 32])
    assert failing(checks) == {"upstream-2"}
    assert f"got the session {mine}" in reason(checks, "upstream-2")


def test_a_pinned_session_has_to_have_been_required(behind: AciService, verify: Verifier) -> None:
    optional = with_hops(behind, behind.hop(required=False))
    assert failing(verify(behind, optional)) == set()
    checks = verify(behind, optional, session_ids=[session_id(behind.session())])
    assert failing(checks) == {"upstream-1"}
    assert "expected required: true" in reason(checks, "upstream-1")


def test_claims_of_the_policy_are_asked_of_the_session_too(behind: AciService, verify: Verifier) -> None:
    assert failing(verify(behind, claims=["tee_attested"])) == set()
    for claim in ("gpu_attested", "tcb_up_to_date"):  # unknown, and refuted
        checks = verify(behind, claims=[claim])
        assert failing(checks) == {"upstream-2"}
        assert f"got no {claim} in the session" in reason(checks, "upstream-2")


def test_the_bodies_themselves_are_not_needed() -> None:
    assert exchange().request_sha256.hex() == digest_of(SENT).removeprefix("sha256:")
