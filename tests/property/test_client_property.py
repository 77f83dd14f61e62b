"""Whatever a peer sends, the client gives a result; and what it accepts says what the genuine document said."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from aci_documents import Way
from aci_service import AciService, appraised, exchange, simulated
from aci_strategies import changes, edited_bytes
from confide.client.auditing import audit
from confide.client.receipts import REQUIRED, SESSION, verify_receipt
from confide.errors import VerificationError
from confide.evidence.result import Check, Status, Verdict
from confide.protocol.bundle import AnswerProof, ServiceProof, parse_bundle, write_bundle
from confide.protocol.canonical import DocumentError
from confide.protocol.session import session_id
from confide.verifier.appraisal import ServiceVerification
from confide.verifier.policy import Policy
from proof_builders import NOW

# Members that nothing binds: labels, and what the peer says about the software and the second hop.
LABELS = {"serving"}

SERVICE, BEHIND = AciService(), AciService(serving="aggregator")
REPORT, RECEIPT = SERVICE.document(), json.loads(SERVICE.receipt())
SESSION_DOCUMENT = BEHIND.session()
CITED = session_id(SESSION_DOCUMENT)


@cache
def policy() -> Policy:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root.pem"
        root.write_text(simulated().root_pem)
        return Policy(trust_roots=(root,))


@cache
def genuine() -> ServiceVerification:
    return appraised(json.dumps(REPORT).encode(), policy())


@cache
def genuine_behind() -> ServiceVerification:
    return BEHIND.verified(policy())


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


def assert_says_the_same(result: ServiceVerification) -> None:
    """Accepted: then the keys, the platform and what was measured are those of the genuine report."""
    assert result.report is not None
    assert result.report.keyset == SERVICE.keyset
    assert result.report.keyset_digest == SERVICE.digest
    assert bound(result) == bound(genuine())


def bound(result: ServiceVerification) -> dict[str, object]:
    return {name: value for name, value in result.facts.items() if name not in LABELS}


def assert_readable(checks: tuple[Check, ...]) -> None:
    assert all(check.reason.isprintable() for check in checks)


def passes(checks: tuple[Check, ...], required: frozenset[str] = REQUIRED) -> bool:
    assert_readable(checks)
    statuses = {check.name: check.status for check in checks}
    return all(statuses[name] is Status.PASS for name in required) and Status.FAIL not in statuses.values()


def test_the_genuine_documents_are_accepted() -> None:
    assert genuine().ok
    assert passes(checked(encoded(RECEIPT)))
    assert passes(checked_behind(encoded(SESSION_DOCUMENT)), REQUIRED | {SESSION})
    assert audited(BUNDLE)


@settings(max_examples=300, deadline=None)
@given(changes(REPORT))
def test_a_changed_report_is_not_accepted_for_anything_else(changed: tuple[Way, Any]) -> None:
    _, document = changed
    result = appraised(encoded(document), policy())
    assert_readable(result.checks)
    if result.ok:
        assert_says_the_same(result)
    else:
        assert result.verdict is not Verdict.VERIFIED


@settings(max_examples=150, deadline=None)
@given(edited_bytes(encoded(REPORT)))
def test_a_report_with_other_bytes_is_not_accepted_for_anything_else(raw: bytes) -> None:
    result = appraised(raw, policy())
    assert_readable(result.checks)
    if result.ok:
        assert_says_the_same(result)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_answered_with_checks(raw: bytes) -> None:
    assert not appraised(raw, policy()).ok
    assert not passes(checked(raw))
    assert not passes(checked_behind(raw), REQUIRED | {SESSION})


def checked(raw: bytes) -> tuple[Check, ...]:
    checks, _ = verify_receipt(raw, exchange(), services={SERVICE.digest: genuine()}, policy=policy())
    return checks


@settings(max_examples=300, deadline=None)
@given(changes(RECEIPT))
def test_a_changed_receipt_proves_nothing(changed: tuple[Way, Any]) -> None:
    way, document = changed
    assert not passes(checked(encoded(document))), way


@settings(max_examples=300, deadline=None)
@given(edited_bytes(encoded(RECEIPT)))
def test_a_receipt_with_other_bytes_proves_what_the_genuine_one_does_or_nothing(raw: bytes) -> None:
    if passes(checked(raw)):
        assert json.loads(raw) == RECEIPT


def checked_behind(session: bytes) -> tuple[Check, ...]:
    known = exchange(sessions={CITED: session})
    checks, _ = verify_receipt(BEHIND.receipt(), known, services={BEHIND.digest: genuine_behind()}, policy=policy())
    return checks


@settings(max_examples=200, deadline=None)
@given(changes(SESSION_DOCUMENT))
def test_a_changed_session_is_not_the_cited_one(changed: tuple[Way, Any]) -> None:
    way, document = changed
    assert not passes(checked_behind(encoded(document)), REQUIRED | {SESSION}), way


BUNDLE = json.loads(
    write_bundle(
        ServiceProof(
            url="https://api.example.com",
            nonce="c4" * 32,
            verified_at=NOW,
            spki_sha256="aa" * 32,
            report=json.dumps(REPORT),
        ),
        [
            AnswerProof(
                endpoint="/v1/chat/completions",
                receipt=json.dumps(RECEIPT),
                request_sha256=exchange().request_sha256.hex(),
                response_sha256=exchange().response_sha256.hex(),
                receipt_id=RECEIPT["receipt_id"],
                chat_id="chatcmpl-1",
                status=200,
            )
        ],
    )
)
# What a bundle says of itself and no check is about; the time, within the life of what is in it.
UNCHECKED = {"url", "chat_id", "status", "verified_at", "sessions"}


def audited(document: object) -> bool:
    """Whether the bundle is accepted; what is no bundle is not."""
    try:
        result = audit(parse_bundle(encoded(document)), policy(), at=None, now=NOW)
    except (DocumentError, VerificationError):
        return False
    assert_readable(result.checks)
    return result.ok


@settings(max_examples=300, deadline=None)
@given(changes(BUNDLE))
def test_a_changed_bundle_is_refused_where_it_says_something_else(changed: tuple[Way, Any]) -> None:
    way, document = changed
    if audited(document):
        same = parse_bundle(encoded(document))
        original = parse_bundle(encoded(BUNDLE))
        assert set(way) & UNCHECKED or same == original or same.answers == (), way
        assert msgspec.json.decode(same.service.report) == REPORT
