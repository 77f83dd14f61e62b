"""Does this receipt prove this exchange? (wire contract 9.5)

On entry: the caller hashed what it sent and what it received, and verified the services whose keysets it hands over.
What must be shown, in order:

1. receipt-1   signed by a receipt key of an attested keyset
2. receipt-2   it is an aci/1 receipt under that very keyset, of this exchange, from within the keyset's life, and not
               from before the question
3. receipt-3   its request.received is the hash of what was sent
4. receipt-4   its response.returned is the hash of what was received
5. upstream-1  where there is a second hop: it was verified before it served
6. upstream-2  the session it served in is the one that is cited, and the policy accepts it
7. receipt-note  whether the request was rewritten on its way to inference; a note, no verdict

On exit: with 1 to 5 passed, the attested workload took exactly this request and gave exactly this response. NOT shown:
that the answer is true, or that inference ran on what was received (7 tells when it was something else).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hmac import compare_digest

from confide.evidence.result import Check, failed, passed, quoted, skipped
from confide.protocol.canonical import DocumentError, digest_text
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED, Event, Receipt, parse_receipt, signature_fault
from confide.protocol.session import Session, parse_session
from confide.verifier.appraisal import ServiceVerification
from confide.verifier.policy import Policy

SIGNED, ESTABLISHED, REQUEST, RESPONSE = (f"receipt-{number}" for number in range(1, 5))
UPSTREAM, SESSION, NOTE = "upstream-1", "upstream-2", "receipt-note"

REQUIRED = frozenset({SIGNED, ESTABLISHED, REQUEST, RESPONSE, UPSTREAM})

VERIFIED = "verified"

CLOCK_SKEW_S = 300  # by which the service's clock may be behind the caller's


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What the caller knows of a request and its response. Digests: SHA-256, 32 bytes, over bodies as on the wire.

    `endpoint`: the path under the service's own root. `receipt_id`: from `X-Receipt-Id`. `sessions`: documents as they
    came, by the id that the receipt cites. `sent_at`: by the caller's clock, Unix seconds; None where nobody knows.
    """

    endpoint: str
    receipt_id: str
    request_sha256: bytes
    response_sha256: bytes
    status: int = 200
    sessions: Mapping[str, bytes] = field(default_factory=dict)
    sent_at: int | None = None


def verify_receipt(
    raw: bytes, exchange: Exchange, *, services: Mapping[str, ServiceVerification], policy: Policy
) -> tuple[tuple[Check, ...], Receipt | None]:
    """The checks, and the receipt where it could be read. Offline; returns for any bytes, never raises on bad ones.

    `services`: what was verified, by keyset digest; only those that are `ok` count.
    """
    try:
        receipt = parse_receipt(raw)
    except DocumentError as error:
        names = (ESTABLISHED, REQUEST, RESPONSE, UPSTREAM, SESSION, NOTE)
        return (failed(SIGNED, quoted(error)), *(skipped(name, "there is no receipt to check") for name in names)), None
    digest = receipt.members.workload_keyset_digest
    service = services.get(digest)
    if service is None or service.report is None or not service.ok:
        service = None  # nothing that it says is believed
        known = " or ".join(sorted(name for name, each in services.items() if each.ok)) or "none"
        reason = f"got a receipt under the keyset {digest}, expected one that was verified: {known}"
        signed, established = skipped(SIGNED, "the keyset that it names was not verified"), failed(ESTABLISHED, reason)
    else:
        signed, established = check_signature(receipt, service), check_established(receipt, service, exchange)
    checks = (
        signed,  # 1
        established,  # 2
        check_hash(REQUEST, receipt.body_hash(RECEIVED), exchange.request_sha256, "sent"),  # 3
        check_hash(RESPONSE, receipt.body_hash(RETURNED), exchange.response_sha256, "received"),  # 4
        *check_upstream(receipt, service, exchange, policy),  # 5, 6
        check_rewrite(receipt),  # 7
    )
    return checks, receipt


def check_signature(receipt: Receipt, service: ServiceVerification) -> Check:
    """(1) The keyset's entry alone decides the algorithm."""
    assert service.report is not None
    fault = signature_fault(receipt, service.report.keyset)
    if fault is not None:
        return failed(SIGNED, fault)
    return passed(SIGNED, f"signed by the attested key {quoted(receipt.members.key_id)}")


def check_established(receipt: Receipt, service: ServiceVerification, exchange: Exchange) -> Check:
    """(2) A genuine receipt of another exchange, or from after the keyset's end, is no proof of this one."""
    assert service.report is not None
    members = receipt.members
    if not compare_digest(members.receipt_id.encode(errors="replace"), exchange.receipt_id.encode(errors="replace")):
        return failed(
            ESTABLISHED, f"got the receipt {quoted(members.receipt_id)}, expected {quoted(exchange.receipt_id)}"
        )
    if (members.method, members.endpoint) != ("POST", exchange.endpoint):
        got = f"{quoted(members.method)} {quoted(members.endpoint)}"
        return failed(ESTABLISHED, f"got a receipt of {got}, expected POST {quoted(exchange.endpoint)}")
    not_after = service.report.keyset.not_after
    if members.served_at >= not_after:
        return failed(ESTABLISHED, f"got served_at {members.served_at}, expected before not_after {not_after}")
    if exchange.sent_at is not None and members.served_at < exchange.sent_at - CLOCK_SKEW_S:
        got = f"got served_at {members.served_at}, expected about {exchange.sent_at}"
        return failed(ESTABLISHED, f"{got}: it is the receipt of an earlier exchange, or a clock is wrong")
    return passed(ESTABLISHED, f"aci/1, under the verified keyset {members.workload_keyset_digest}")


def check_hash(name: str, stated: str | None, ours: bytes, verb: str) -> Check:
    """(3, 4) The digest string in the receipt against our own hash."""
    expected = digest_text(ours)
    if stated is None or not compare_digest(stated.encode(), expected.encode()):
        return failed(name, f"got {stated} in the receipt, expected {expected} of the bytes {verb}")
    return passed(name, f"the receipt has {expected} of the bytes {verb}")


def check_upstream(
    receipt: Receipt, service: ServiceVerification | None, exchange: Exchange, policy: Policy
) -> tuple[Check, Check]:
    """(5, 6) A service that answers itself has no such event; one that does not has to have it."""
    if service is None or service.report is None:
        return skipped(UPSTREAM, "the service was not verified"), skipped(SESSION, "the service was not verified")
    events = receipt.upstream
    if service.report.serving == "direct":
        if events:
            return (
                failed(UPSTREAM, "got an upstream.verified event, expected none: the report says serving direct"),
                skipped(SESSION, "there should be no second hop"),
            )
        return passed(UPSTREAM, "served by the attested workload itself"), skipped(SESSION, "there is no second hop")
    served = next((event for event in events if event.result == VERIFIED), None)
    if served is None or served.session_id is None:
        reason = next((event.reason for event in events if event.reason), None)
        got = f"a failed one ({quoted(reason)})" if reason else "none"
        return (
            failed(UPSTREAM, f"got {got}, expected an upstream.verified event: the service is an aggregator"),
            skipped(SESSION, "there is no verified second hop"),
        )
    if policy.session_ids and served.required is not True:
        return (
            failed(UPSTREAM, "got a hop that was not required to be verified, expected required: true"),
            check_session(served, receipt, exchange, policy),
        )
    return passed(UPSTREAM, f"the second hop was verified: session {served.session_id}"), check_session(
        served, receipt, exchange, policy
    )


def check_session(served: Event, receipt: Receipt, exchange: Exchange, policy: Policy) -> Check:
    """(6) The very document that is cited, from a period that the answer lies in, accepted by the policy."""
    assert served.session_id is not None
    pinned = frozenset(policy.session_ids)
    if pinned and served.session_id not in pinned:
        return failed(SESSION, f"got the session {quoted(served.session_id)}, expected one of the pinned ones")
    raw = exchange.sessions.get(served.session_id)
    if raw is None:
        return skipped(SESSION, "the session's document is not at hand")
    try:
        session = parse_session(raw, served.session_id)
    except DocumentError as error:
        return failed(SESSION, quoted(error))
    at = receipt.members.served_at
    if not session.established_at <= at <= session.expires_at:
        window = f"{session.established_at} to {session.expires_at}"
        return failed(SESSION, f"got an answer of {at}, expected one within the session's period {window}")
    missing = sorted(name for name in frozenset(policy.claims) if not is_asserted(session, str(name)))
    if missing:
        return failed(SESSION, f"got no {', '.join(map(str, missing))} in the session, expected it asserted")
    return passed(SESSION, f"the session {served.session_id} of {quoted(session.upstream_name)}")


def is_asserted(session: Session, name: str) -> bool:
    claim = getattr(session.claims, name)
    return bool(claim.status == "asserted")


def check_rewrite(receipt: Receipt) -> Check:
    """(7) A rewrite is nothing wrong: consumed members are taken out, for example."""
    received, forwarded = receipt.body_hash(RECEIVED), receipt.body_hash(FORWARDED)
    if forwarded is None:
        return skipped(NOTE, "inference did not run")
    if forwarded != received:
        return skipped(NOTE, "the service rewrote the request before inference: request.forwarded differs")
    return passed(NOTE, "inference was given the request as it was received")
