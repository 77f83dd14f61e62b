"""The relying party, driven by hand: what it asks for, in which order, and what it makes of the answers."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from aci_service import (
    CHAT_ID,
    ENDPOINT,
    HOST,
    LIFETIME_S,
    OTHER_SPKI,
    RECEIPT_ID,
    RECEIVED,
    SENT,
    SPKI,
    URL,
    AciService,
    epoch_at,
)
from confide.client.known_service import REMEMBERED, KnownService
from confide.client.party import SESSIONS_MOST, RelyingParty, cited_sessions
from confide.client.proof import Proof
from confide.client.steps import Fetch, Fetched, drive
from confide.client.verdict import NotNow, refusal, require, shown, told
from confide.errors import CannotTell, VerificationError
from confide.evidence.result import Check, Verdict, Verification, failed, passed, skipped
from confide.protocol.session import session_id
from confide.verifier.appraisal import Connection
from confide.verifier.policy import Policy
from proof_builders import NOW

DRAWN = bytes(range(32))
PERIOD_S = LIFETIME_S * 4 // 5
PLAIN = Connection(host=HOST, spki_sha256=None)

Trusting = Callable[..., Policy]


class Clock:
    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class Wire:
    """Answers fetches as an honest service would, and records them. `instead`: other answers, by path."""

    def __init__(self, service: AciService, **receipt: Any) -> None:
        self.service = service
        self.receipt = receipt
        self.spki: bytes | None = SPKI
        self.fetches: list[Fetch] = []
        self.instead: dict[str, Fetched] = {}

    def __call__(self, fetch: Fetch) -> Fetched:
        self.fetches.append(fetch)
        path, _, query = fetch.path.partition("?nonce=")
        if path in self.instead:
            return self.instead[path]
        if path == "/v1/aci/attestation":
            return Fetched(200, self.service.report(query), self.spki)
        if path.startswith("/v1/aci/receipts/"):
            return Fetched(200, self.service.receipt(**self.receipt), self.spki)
        document = json.dumps(self.service.session()).encode()
        return Fetched(200, document, self.spki)

    @property
    def paths(self) -> list[str]:
        return [fetch.path.partition("?")[0] for fetch in self.fetches]


class Party:
    """A relying party and what it knows of one service."""

    def __init__(self, wire: Wire, policy: Policy) -> None:
        self.wire = wire
        self.clock = Clock()
        self.party = RelyingParty(policy, now=self.clock, draw=lambda count: DRAWN[:count])
        self.known = KnownService(URL, HOST)

    def establish(self) -> None:
        drive(self.party.establish(self.known), self.wire)

    def prove(self, **changes: Any) -> Proof:
        members: dict[str, Any] = {
            "endpoint": ENDPOINT,
            "receipt_id": RECEIPT_ID,
            "request_sha256": sha256(SENT).digest(),
            "response_sha256": sha256(RECEIVED).digest(),
            "status": 200,
        }
        return drive(self.party.prove(self.known, **(members | changes)), self.wire)


@pytest.fixture
def party(service: AciService, trusting: Trusting) -> Party:
    """Before it asked anything."""
    return Party(Wire(service), trusting())


@pytest.fixture
def established(party: Party) -> Party:
    """After it verified the service."""
    party.establish()
    party.wire.fetches.clear()
    return party


def assert_refused(check: str, attempt: Callable[[], object], match: str | None = None) -> VerificationError:
    with pytest.raises(VerificationError, match=match) as caught:
        attempt()
    assert caught.value.check == check
    assert caught.value.remedy
    return caught.value


# establish


def test_the_report_is_asked_for_with_a_nonce_of_our_own_over_any_key(party: Party) -> None:
    assert party.party.is_due(party.known)
    assert (party.known.pins, party.known.digest) == (frozenset(), None)
    assert not party.party.still_stands(party.known)
    party.establish()
    assert party.wire.fetches == [Fetch(f"/v1/aci/attestation?nonce={DRAWN.hex()}", is_first=True)]
    assert not party.party.is_due(party.known)
    assert party.known.pins == {SPKI}
    assert party.known.digest == party.wire.service.digest
    assert party.known.knows(party.wire.service.digest)


def test_a_service_that_the_policy_does_not_accept_is_named_and_not_remembered(service: AciService) -> None:
    party = Party(Wire(service), Policy())
    error = assert_refused("id-1", party.establish, match="the service is not verified: id-1: ")
    assert error.remedy == "Nothing was sent to it. Do not use this service."
    assert party.party.is_due(party.known)
    assert not party.known.keysets


def test_another_key_on_the_connection_is_refused(party: Party) -> None:
    party.wire.spki = OTHER_SPKI
    assert_refused("id-6", party.establish)
    party.wire.spki = None
    assert_refused("id-6", party.establish, match="plain HTTP")


def test_a_server_that_has_no_report_proves_nothing(party: Party) -> None:
    for status in (404, 401, 301, 204):
        party.wire.instead["/v1/aci/attestation"] = Fetched(status, b"{}", SPKI)
        error = assert_refused("id-1", party.establish, match=f"status {status}")
        assert isinstance(error.__cause__, CannotTell)


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_service_that_is_busy_may_be_asked_again(party: Party, status: int) -> None:
    party.wire.instead["/v1/aci/attestation"] = Fetched(status, b"{}", SPKI)
    with pytest.raises(NotNow, match=f"status {status}") as caught:
        party.establish()
    assert caught.value.remedy == "Nothing was sent to it. Try again shortly."
    del party.wire.instead["/v1/aci/attestation"]
    party.establish()


def test_a_service_is_verified_again_in_good_time_before_its_keyset_expires(established: Party) -> None:
    not_after = established.wire.service.keyset.not_after
    established.clock.now = not_after - 301
    assert not established.party.is_due(established.known)
    established.clock.now = not_after - 300
    assert established.party.is_due(established.known)
    assert established.party.still_stands(established.known)
    established.clock.now = not_after
    assert not established.party.still_stands(established.known)


def test_a_keyset_with_a_short_life_is_not_asked_for_all_the_time(party: Party) -> None:
    not_after = party.wire.service.keyset.not_after
    party.clock.now = not_after - 100
    party.wire.service = party.wire.service.but(now=party.clock.now)
    party.establish()
    assert party.known.renew_at == not_after - 10


def test_keysets_are_remembered_through_rotations_and_the_oldest_forgotten(party: Party) -> None:
    epochs = [epoch_at(NOW + number * PERIOD_S) for number in range(REMEMBERED + 2)]
    seen = party.known.keysets
    for epoch in epochs:
        party.clock.now = max(NOW, epoch.begins_at)
        party.wire.service = AciService(epoch=epoch, now=party.clock.now)
        party.establish()
    assert list(party.known.keysets) == [epoch.digest for epoch in epochs[2:]]
    assert party.known.digest == epochs[-1].digest
    assert seen == {}  # what another thread is looking through stays as it was


def test_a_keyset_that_is_verified_again_counts_as_new(party: Party) -> None:
    first, second = epoch_at(), epoch_at(NOW + PERIOD_S)
    for epoch in (first, second, first):
        party.clock.now = max(NOW, epoch.begins_at)
        party.wire.service = AciService(epoch=epoch, now=party.clock.now)
        party.establish()
    assert list(party.known.keysets) == [second.digest, first.digest]


# prove


def test_an_answer_is_proven_by_its_receipt_asked_for_with_the_credential(established: Party) -> None:
    proof = established.prove()
    assert established.wire.fetches == [Fetch(f"/v1/aci/receipts/{RECEIPT_ID}", with_credential=True)]
    assert proof.ok
    assert proof.verdict is Verdict.VERIFIED
    assert (proof.receipt_id, proof.chat_id) == (RECEIPT_ID, CHAT_ID)
    assert proof.receipt == established.wire.service.receipt()
    assert [check.name for check in proof][:2] == ["receipt-1", "receipt-2"]
    assert len(proof) == len(proof.checks)
    assert (proof.facts["model"], proof.facts["outcome"], proof.facts["served_at"]) == ("m", "complete", NOW)


def test_bodies_are_in_the_proof_when_they_are_handed_over(established: Party) -> None:
    bare = established.prove()
    assert bare.answer is not None
    assert (bare.answer.request_b64, bare.answer.response_b64) == (None, None)
    established.wire.receipt = {"receipt_id": "rcpt-2"}
    kept = established.prove(receipt_id="rcpt-2", request=b"{}", response=b"[]", status=201)
    assert kept.answer is not None
    assert (kept.answer.request_b64, kept.answer.response_b64, kept.answer.status) == ("e30=", "W10=", 201)


@pytest.mark.parametrize("receipt_id", [None, "", "é", "x" * 201])
def test_an_answer_without_a_receipt_id_is_not_proven(established: Party, receipt_id: str | None) -> None:
    assert_refused("receipt-1", lambda: established.prove(receipt_id=receipt_id), match="no X-Receipt-Id")
    assert established.wire.fetches == []


def test_a_receipt_id_goes_into_the_path_and_nowhere_else(established: Party) -> None:
    odd = "a/../b?c=d#e f"
    assert_refused("receipt-2", lambda: established.prove(receipt_id=odd))
    assert established.wire.paths == ["/v1/aci/receipts/a%2F..%2Fb%3Fc%3Dd%23e%20f"]


@pytest.mark.parametrize("status", [401, 404, 500, 302])
def test_a_receipt_that_is_not_to_be_had_is_no_proof(established: Party, status: int) -> None:
    established.wire.instead[f"/v1/aci/receipts/{RECEIPT_ID}"] = Fetched(status, b"{}", SPKI)
    assert_refused("receipt-1", established.prove, match=f"got status {status} for the receipt")


def test_a_receipt_proves_one_answer(established: Party) -> None:
    established.prove()
    assert_refused("receipt-2", established.prove)
    assert_refused("receipt-2", established.prove)


def test_a_receipt_from_before_the_question_is_played_back(established: Party) -> None:
    assert established.prove(sent_at=NOW + 300).ok
    assert_refused("receipt-2", lambda: established.prove(sent_at=NOW + 301), match=f"got served_at {NOW}")


def test_receipts_that_were_taken_are_forgotten_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confide.client.known_service.TAKEN_MOST", 2)
    known = KnownService(URL, HOST)
    assert [known.take(each) for each in ("a", "b", "a", "c", "d")] == [True, True, False, True, True]
    assert len(known.taken) == 2
    assert known.take("a")


def test_what_is_no_receipt_is_no_proof(established: Party) -> None:
    established.wire.instead[f"/v1/aci/receipts/{RECEIPT_ID}"] = Fetched(200, b"{", SPKI)
    assert_refused("receipt-1", established.prove)


def test_the_check_that_decided_is_named(established: Party) -> None:
    assert_refused("receipt-3", lambda: established.prove(request_sha256=bytes(32)), match="of the bytes sent")
    assert_refused("receipt-4", lambda: established.prove(response_sha256=bytes(32)), match="of the bytes received")
    error = assert_refused("receipt-2", lambda: established.prove(endpoint="/v1/messages"))
    assert error.remedy == "Do not rely on this answer."


def test_an_answer_from_before_a_rotation_is_proven_after_it(party: Party) -> None:
    before, after = AciService(), AciService(epoch=epoch_at(NOW + PERIOD_S), now=NOW + PERIOD_S)
    party.establish()
    party.clock.now, party.wire.service = after.now, after
    party.establish()
    party.wire.service = before
    proof = party.prove()
    assert proof.facts["keyset_digest"] == before.digest
    assert proof.service_proof is not None
    assert before.digest in proof.service_proof.report


def test_nothing_is_accepted_under_a_keyset_that_has_expired(established: Party) -> None:
    established.clock.now = established.wire.service.keyset.not_after - 1
    established.prove()
    established.clock.now += 1
    assert_refused("receipt-2", established.prove, match="expected one that was verified: none")


def test_sessions_that_the_receipt_cites_are_fetched(trusting: Trusting) -> None:
    behind = AciService(serving="aggregator")
    party = Party(Wire(behind), trusting())
    party.establish()
    proof = party.prove()
    cited = session_id(behind.session())
    assert party.wire.fetches[1:] == [
        Fetch(f"/v1/aci/receipts/{RECEIPT_ID}", with_credential=True),
        Fetch(f"/v1/aci/sessions/{cited}"),
    ]
    assert proof.ok
    assert proof.answer is not None
    assert proof.answer.sessions == (json.dumps(behind.session()),)


def test_a_session_that_is_not_to_be_had_leaves_the_answer_unproven(trusting: Trusting) -> None:
    behind = AciService(serving="aggregator")
    party = Party(Wire(behind), trusting())
    party.establish()
    party.wire.instead[f"/v1/aci/sessions/{session_id(behind.session())}"] = Fetched(404, b"{}", SPKI)
    assert_refused("upstream-2", party.prove, match="not at hand")


def test_a_receipt_cannot_make_us_fetch_without_end(service: AciService) -> None:
    first, forwarded, *others = service.receipt_document()["event_log"]
    hops = [service.hop(session_id=f"{number:064x}") for number in range(SESSIONS_MOST + 5)]
    raw = service.receipt(events=[first, forwarded, hops[0], *hops, *others])
    assert cited_sessions(raw) == tuple(f"{number:064x}" for number in range(SESSIONS_MOST))
    assert cited_sessions(service.receipt()) == ()
    assert cited_sessions(b"{") == ()


# require, refusal, drive


def result_of(*checks: Check) -> Verification:
    return Verification(NOW, checks, required=frozenset({"a", "b"}))


def test_a_refusal_names_what_failed_then_what_was_skipped_then_what_is_missing() -> None:
    no, perhaps, yes = failed("x", "because"), skipped("a", "unknown"), passed("a", "well")
    assert refusal(result_of(perhaps, no), "not good", "Stop.").message == "not good: x: because"
    assert refusal(result_of(perhaps), "not good", "Stop.").check == "a"
    missing = refusal(result_of(yes), "not good", "Stop.")
    assert (missing.check, missing.message) == ("b", "not good: b: this check did not run")
    assert refusal(Verification(NOW, (yes,)), "not good", "Stop.").check == "id-1"


def test_without_collateral_nobody_can_tell(service: AciService, trusting: Trusting) -> None:
    require(service.verified(trusting()))
    with pytest.raises(CannotTell, match="collateral"):
        require(service.but(evidence={"collateral": ...}).verified(trusting()))
    with pytest.raises(VerificationError, match="id-6"):
        require(service.but(evidence={"collateral": ...}).verified(trusting(), nonce="d5" * 32, connection=PLAIN))


def test_the_command_line_tells_no_from_nobody_knows(service: AciService, trusting: Trusting) -> None:
    unknown, no = CannotTell("no network"), VerificationError("id-1: because", check="id-1")
    caused = VerificationError("id-1: no network", check="id-1")
    caused.__cause__ = unknown
    assert told(caused) is unknown
    assert told(no) is no
    bare = refusal(service.but(evidence={"collateral": ...}).verified(trusting()), "not verified", "Stop.")
    assert isinstance(told(bare), CannotTell)


def test_a_failure_is_shown_as_the_checks_that_were_made(service: AciService) -> None:
    result = service.verified(Policy())
    assert shown(refusal(result, "not verified", "Stop."), NOW) is result
    for message in ("not verified: id-1: because", "because"):
        alone = shown(VerificationError(message, check="id-1"), NOW)
        assert alone.checks == (failed("id-1", "because"),)
        assert alone.verdict is Verdict.NOT_VERIFIED


def test_an_error_of_a_fetch_reaches_the_steps(party: Party) -> None:
    def broken(_: Fetch) -> Fetched:
        raise CannotTell("no network", remedy="Connect.")

    error = assert_refused("id-1", lambda: drive(party.party.establish(party.known), broken))
    assert error.message == "id-1: no network"
