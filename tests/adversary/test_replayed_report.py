"""The attacker holds genuine reports: old ones, ones without a nonce, and those of other services under the same root.

They relay plain HTTP, and answer with such a report when a client asks for a fresh one, relabelled or not. They want a
client to trust keys that are no longer, or never were, those of the service it asks. A report is believed for the nonce
that was drawn for it alone. The twin: the same service answering for itself.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attested_service import ANSWER, AttestedService, Document, Reply, Seen, serving
from callers import EVERY, Kind, asking, assert_refused
from confide import verify_service
from confide.evidence.result import Status
from confide.protocol.keyset import ED25519, PublicKey
from confide.protocol.statement import aci_report_data

OLD = "ab" * 32


@pytest.fixture
def service(tmp_path: Path) -> Iterator[AttestedService]:
    with serving(tmp_path) as service:
        yield service


def relabelled(report: Document, nonce: str | None) -> Document:
    """The report with what stands in the clear made to fit the nonce."""
    slot = aci_report_data(report["workload_keyset_digest"], nonce)
    report["attestation"]["report_data"] = slot[:32].hex()
    report["attestation"]["evidence"]["quote_report_data"] = slot.hex()
    return report


@pytest.mark.parametrize("kind", EVERY)
def test_a_fresh_report_is_believed(service: AttestedService, kind: Kind) -> None:
    with asking(service, kind) as caller:
        assert caller.ask() == ANSWER
        assert caller.ask() == ANSWER
    nonces = [seen.nonce for seen in service.seen if seen.nonce]
    assert len(nonces) == 1
    assert nonces[0] != OLD


REPLAYS: list[tuple[str, str | None, Callable[[Document, str | None], Document], str]] = [
    ("old nonce", OLD, lambda report, _: report, "id-2"),
    ("old nonce, relabelled", OLD, relabelled, "id-1"),
    ("null nonce", None, lambda report, _: report, "id-2"),
    ("null nonce, relabelled", None, relabelled, "id-1"),
]


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(("nonce", "label", "check"), [each[1:] for each in REPLAYS], ids=[each[0] for each in REPLAYS])
def test_an_old_report_is_refused(
    service: AttestedService,
    kind: Kind,
    nonce: str | None,
    label: Callable[[Document, str | None], Document],
    check: str,
) -> None:
    recorded = service.report_now(nonce)
    service.alter["report"] = lambda reply, seen: reply.holding(label(recorded, seen.nonce))
    with asking(service, kind) as caller:
        error = assert_refused(caller, service, check, prompts=0)
    assert "got " in error.message
    assert "expected " in error.message


def test_each_verification_draws_another_nonce(service: AttestedService) -> None:
    for _ in range(5):
        assert verify_service(service.url, service.policy()).ok
    nonces = [seen.nonce for seen in service.seen]
    assert len(set(nonces)) == 5
    assert all(nonce is not None and len(nonce) == 64 for nonce in nonces)


def test_the_report_of_the_verification_before_is_refused(service: AttestedService) -> None:
    """Also when the attacker saw it pass a moment ago."""
    passed: list[Reply] = []

    def recorded(reply: Reply, _: Seen) -> Reply:
        passed.append(reply)
        return passed[0]

    service.alter["report"] = recorded
    with asking(service) as caller:
        assert caller.ask() == ANSWER
    with asking(service) as caller:
        assert_refused(caller, service, "id-2", prompts=0)


@pytest.mark.parametrize("kind", EVERY)
def test_the_report_of_another_service_under_another_root_is_refused(
    service: AttestedService, tmp_path: Path, kind: Kind
) -> None:
    with serving(tmp_path / "other") as other:
        service.alter["report"] = lambda reply, seen: reply.holding(other.report_now(seen.nonce))
        with asking(service, kind) as caller:
            error = assert_refused(caller, service, "id-1", prompts=0)
        assert "tdx.root" in error.message
        assert other.prompts == []
        with asking(other, kind) as caller:
            assert caller.ask() == ANSWER


def test_the_keyset_of_another_service_under_the_same_root_proves_only_its_own_receipts(
    service: AttestedService,
) -> None:
    """The relay asks another instance, with our nonce: genuine, fresh, of the same owner; the receipts are not its."""
    key = service.attester.workload_keys.receipt(7)
    others = service.attested_keyset(
        subject="other", receipt_signing_keys=(PublicKey("o", ED25519, key.public_key_hex),)
    )
    service.alter["report"] = lambda reply, seen: reply.holding(service.report_now(seen.nonce, others))
    with asking(service) as caller:
        error = assert_refused(caller, service, "receipt-2")
    assert service.keyset.digest() in error.message
    assert others.digest() in error.message


def test_a_report_over_tls_is_of_whoever_has_the_key(tmp_path: Path) -> None:
    """The same relayed report, where the service has to hold the TLS key of the connection: nothing is sent."""
    with serving(tmp_path / "ours", tls=True) as ours, serving(tmp_path / "other", tls=True) as other:
        policy = ours.policy(trust_roots=(ours.root, other.root))
        other.alter["report"] = lambda reply, seen: reply.holding(ours.report_now(seen.nonce))
        with asking(other, policy=policy) as caller:
            assert_refused(caller, other, "id-6", prompts=0)
        other.alter.clear()
        with asking(other, policy=policy) as caller:
            assert caller.ask() == ANSWER


@pytest.mark.parametrize(
    ("nonce", "expected"), [(OLD, {"id-2", "binding.report-data"}), (None, {"id-2", "binding.report-data"})]
)
def test_the_document_says_which_check_failed(service: AttestedService, nonce: str | None, expected: set[str]) -> None:
    recorded = service.report_now(nonce)
    service.alter["report"] = lambda reply, _: reply.holding(recorded)
    result = verify_service(service.url, service.policy())
    assert {check.name for check in result.checks if check.status is Status.FAIL} == expected
    assert result.verdict == "NOT VERIFIED"
