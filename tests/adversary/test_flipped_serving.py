"""The attacker relays plain HTTP and flips what the report says of its mode; or a service hides its second hop.

`serving` is not under the quote: "direct" instead of "aggregator" would let a client think that nobody else sees its
prompt, and the other way round it would be asked for proofs that cannot be. What decides are the receipts, which are
signed: a second hop has to be in them exactly when there is one. The twins: each mode told as it is.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest

from aci_documents import session as session_document
from attested_service import ANSWER, AttestedService, Document, Reply, Seen
from callers import EVERY, Kind, asking, assert_refused
from confide.protocol.canonical import canonical
from confide.verifier.policy import Serving


@pytest.fixture
def service(service: AttestedService) -> Iterator[AttestedService]:
    yield service
    service.sessions = {}
    service.serving = "direct"


def saying(serving: object) -> Any:
    """A relay's change of what the report says of the mode; `...` takes it out."""

    def flip(reply: Reply, _: Seen) -> Reply:
        document = reply.document
        document["service_capabilities"]["serving"] = serving
        if serving is ...:
            del document["service_capabilities"]["serving"]
        return reply.holding(document)

    return flip


def as_aggregator(service: AttestedService, session: Document | None = None, **changes: Any) -> str:
    """Make the service an honest aggregator; its receipts cite this session. Its id."""
    now = service.now()
    session = session or session_document() | {"established_at": now - 60, "expires_at": now + 3600}
    session_id = sha256(canonical(session)).hexdigest()
    service.serving = "aggregator"
    service.sessions[session_id] = canonical(session)
    event: Document = {
        "type": "upstream.verified",
        "result": "verified",
        "required": True,
        "model_id": "upstream/model",
        "session_id": session_id,
    }
    event = {name: value for name, value in (event | changes).items() if value is not ...}

    def cited(reply: Reply, _: Seen) -> Reply:
        log = reply.document["event_log"]
        return reply.but(service.sign(reply.document | {"event_log": [*log[:2], event, *log[2:]]}))

    service.alter["receipt"] = cited
    return session_id


@pytest.mark.parametrize("kind", EVERY)
def test_each_mode_told_as_it_is_is_proven(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER
    as_aggregator(service)
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER


@pytest.mark.parametrize("kind", EVERY)
def test_an_aggregator_that_is_called_direct_is_refused(service: AttestedService, kind: Kind) -> None:
    as_aggregator(service)
    service.alter["report"] = saying("direct")
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "upstream-1")
        assert "expected none" in error.message


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("mode", ["aggregator", ..., "Direct", "direct ", ""], ids=str)
def test_a_direct_service_that_is_called_an_aggregator_is_refused(
    service: AttestedService, kind: Kind, mode: object
) -> None:
    service.alter["report"] = saying(mode)
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "upstream-1")
        assert "expected an upstream.verified event" in error.message


def test_a_policy_for_direct_services_sends_nothing_to_an_aggregator(service: AttestedService) -> None:
    as_aggregator(service)
    with asking(service, policy=service.policy(requirements=(Serving(),))) as caller:
        assert_refused(caller, service, "policy-serving", prompts=0)


@pytest.mark.parametrize("kind", EVERY)
def test_a_hop_that_is_hidden_by_taking_the_event_out_breaks_the_signature(
    service: AttestedService, kind: Kind
) -> None:
    as_aggregator(service)
    cited = service.alter["receipt"]

    def hidden(reply: Reply, seen: Seen) -> Reply:
        document = cited(reply, seen).document
        log = [event for event in document["event_log"] if event["type"] != "upstream.verified"]
        return reply.holding(document | {"event_log": log})

    service.alter |= {"receipt": hidden, "report": saying("direct")}
    with asking(service, kind) as caller:
        assert_refused(caller, service, "receipt-1")


FAILED_HOP: Document = {"result": "failed", "session_id": ..., "reason": "the quote did not verify"}


@pytest.mark.parametrize("required", [True, False])
def test_an_answer_over_a_hop_that_was_not_verified_is_refused(service: AttestedService, required: bool) -> None:
    as_aggregator(service, **FAILED_HOP, required=required)
    with asking(service) as caller:
        error = assert_refused(caller, service, "upstream-1")
        assert "the quote did not verify" in error.message


@pytest.mark.parametrize("kind", EVERY)
def test_a_session_that_is_not_pinned_is_refused(service: AttestedService, kind: Kind) -> None:
    session_id = as_aggregator(service)
    with asking(service, kind, policy=service.policy(session_ids=("ab" * 32,))) as caller:
        error = assert_refused(caller, service, "upstream-2")
        assert session_id in error.message
    with asking(service, kind, policy=service.policy(session_ids=("ab" * 32, session_id))) as caller:
        assert caller.ask() == ANSWER


def test_a_pinned_session_that_was_not_required_is_refused(service: AttestedService) -> None:
    session_id = as_aggregator(service, required=False)
    with asking(service, policy=service.policy(session_ids=(session_id,))) as caller:
        assert_refused(caller, service, "upstream-1")


@pytest.mark.parametrize("kind", EVERY)
def test_another_session_document_than_the_one_that_is_cited_is_refused(service: AttestedService, kind: Kind) -> None:
    session_id = as_aggregator(service)
    service.sessions[session_id] = service.sessions[session_id].replace(b"demo-upstream", b"evil-upstream")
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, "upstream-2")
        assert session_id in error.message


def test_a_session_that_is_not_to_be_had_is_refused(service: AttestedService) -> None:
    as_aggregator(service)
    service.sessions.clear()
    with asking(service) as caller:
        assert_refused(caller, service, "upstream-2")


@pytest.mark.parametrize(("from_s", "to_s"), [(60, 3600), (-3600, -60)], ids=["not yet", "no longer"])
def test_a_session_of_another_time_is_refused(service: AttestedService, from_s: int, to_s: int) -> None:
    now = service.now()
    as_aggregator(service, session_document() | {"established_at": now + from_s, "expires_at": now + to_s})
    with asking(service) as caller:
        error = assert_refused(caller, service, "upstream-2")
        assert "within the session's period" in error.message


def test_a_session_whose_evidence_is_another_is_refused(service: AttestedService) -> None:
    now = service.now()
    session = session_document() | {"established_at": now - 60, "expires_at": now + 60}
    session["evidence"] = session["evidence"] | {"data": "data:text/plain;base64,ZXhhbXBsZQ=="}
    as_aggregator(service, session)
    with asking(service) as caller:
        assert_refused(caller, service, "upstream-2")


def test_a_claim_that_the_session_does_not_assert_is_refused(service: AttestedService) -> None:
    as_aggregator(service)
    with asking(service, policy=service.policy(claims=("tcb_up_to_date",))) as caller:
        error = assert_refused(caller, service, "upstream-2")
        assert "tcb_up_to_date" in error.message
    with asking(service, policy=service.policy(claims=("tee_attested",))) as caller:
        assert caller.ask() == ANSWER
