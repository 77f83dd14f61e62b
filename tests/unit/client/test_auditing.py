"""A bundle is checked again from the file alone, as of the time that it names or another."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import confide
from aci_documents import removed, replaced
from aci_service import LIFETIME_S, NONCE, RECEIVED, SPKI, URL, AciService, epoch_at, exchange, simulated
from confide.client import auditing
from confide.client.auditing import BundleVerification, verify_bundle
from confide.errors import ConfigError, VerificationError
from confide.evidence.result import Status, Verdict
from confide.protocol.bundle import AnswerProof, ServiceProof, write_bundle
from confide.verifier.policy import Policy
from proof_builders import NOW

DAY_S = 86_400
Document = dict[str, Any]
Trusting = Callable[..., Policy]


def service_proof(service: AciService, **changes: Any) -> ServiceProof:
    proof = ServiceProof(
        url=URL, nonce=NONCE, verified_at=NOW, spki_sha256=SPKI.hex(), report=service.report().decode()
    )
    return msgspec.structs.replace(proof, **changes)


def answer_proof(service: AciService, **changes: Any) -> AnswerProof:
    known = exchange()
    proof = AnswerProof(
        endpoint=known.endpoint,
        receipt=service.receipt().decode(),
        request_sha256=known.request_sha256.hex(),
        response_sha256=known.response_sha256.hex(),
        receipt_id=known.receipt_id,
        chat_id="chatcmpl-1",
        status=200,
    )
    return msgspec.structs.replace(proof, **changes)


class Auditor:
    """Writes bundles and checks them under a policy that trusts the simulator."""

    def __init__(self, path: Path, trusting: Trusting) -> None:
        self.path = path
        self.trusting = trusting

    def __call__(self, service: ServiceProof, *answers: AnswerProof, **arguments: Any) -> BundleVerification:
        return self.raw(write_bundle(service, answers), **arguments)

    def raw(self, raw: bytes, *, policy: Policy | None = None, **arguments: Any) -> BundleVerification:
        self.path.write_bytes(raw)
        return verify_bundle(self.path, policy or self.trusting(), **({"now": NOW} | arguments))


@pytest.fixture
def audit(tmp_path: Path, trusting: Trusting) -> Auditor:
    return Auditor(tmp_path / "bundle.json", trusting)


def failing(result: BundleVerification) -> set[str]:
    return {check.name for check in result.checks if check.status is Status.FAIL}


def reason(result: BundleVerification, name: str) -> str:
    return next(check.reason for check in result.checks if check.name == name)


def test_a_bundle_is_verified_offline(service: AciService, audit: Auditor, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_socket)
    result = audit(service_proof(service), answer_proof(service))
    assert failing(result) == set()
    assert result.ok
    assert result.verdict is Verdict.VERIFIED
    assert result.simulated
    assert result.bundle is not None
    assert result.bundle.service.url == URL
    assert result.checks[0].name == "receipt-1"
    assert "by the record of whoever connected" in reason(result, "id-6")
    assert "the time that the bundle names" in reason(result, "bundle-time")


def test_ten_years_later_it_still_holds_as_of_its_own_time(service: AciService, audit: Auditor) -> None:
    result = audit(service_proof(service), answer_proof(service), now=NOW + 3650 * DAY_S)
    assert result.ok
    assert result.now == NOW


def test_it_can_be_checked_as_of_another_time(service: AciService, audit: Auditor) -> None:
    assert audit(service_proof(service), at=NOW + DAY_S, now=NOW + DAY_S).ok
    later = audit(service_proof(service), at=NOW + 100 * DAY_S, now=NOW + 100 * DAY_S)
    assert {"id-1", "id-3"} <= failing(later)
    assert reason(later, "bundle-time") == f"checked as of {NOW + 100 * DAY_S} (Unix seconds), as was asked for"
    assert not audit(service_proof(service), at=0).ok


def test_a_bundle_from_the_future_is_refused(service: AciService, audit: Auditor) -> None:
    assert audit(service_proof(service), now=NOW - 300).ok
    early = audit(service_proof(service), now=NOW - 301)
    assert failing(early) == {"bundle-time"}
    assert not early.ok
    assert failing(audit(service_proof(service), at=NOW + 301)) == {"bundle-time"}


@pytest.mark.parametrize("moment", [-1, 1 - 2**53, 0, 2**31, 2**40, 2**53 - 1])
def test_any_time_at_all_gives_a_result(service: AciService, audit: Auditor, moment: int) -> None:
    for result in (
        audit(service_proof(service, verified_at=moment), answer_proof(service)),
        audit(service_proof(service), at=moment),
    ):
        assert not result.ok
        assert ("bundle-time" in failing(result)) is (moment < 0 or moment > NOW)


def test_the_present_is_the_clocks_unless_it_is_given(service: AciService, audit: Auditor) -> None:
    with_clock = audit(service_proof(service, verified_at=2**40), now=None)
    assert "bundle-time" in failing(with_clock)


def test_a_body_that_is_not_the_one_that_was_hashed_is_refused(service: AciService, audit: Auditor) -> None:
    with_bodies = answer_proof(
        service, request_b64="eyJtb2RlbCI6Im0iLCJtZXNzYWdlcyI6W119", response_b64=base64_of(RECEIVED)
    )
    assert audit(service_proof(service), with_bodies).ok
    for member in ("request_b64", "response_b64"):
        other = msgspec.structs.replace(with_bodies, **{member: "e30="})
        with pytest.raises(VerificationError, match=f"bundle: the bundle: {member}") as caught:
            audit(service_proof(service), other)
        assert caught.value.check == "bundle"


def base64_of(body: bytes) -> str:
    return msgspec.json.encode(body).decode().strip('"')


def test_hashes_beside_the_receipt_are_compared_with_it(service: AciService, audit: Auditor) -> None:
    assert failing(audit(service_proof(service), answer_proof(service, request_sha256="ab" * 32))) == {"receipt-3"}
    assert failing(audit(service_proof(service), answer_proof(service, response_sha256="ab" * 32))) == {"receipt-4"}
    assert failing(audit(service_proof(service), answer_proof(service, endpoint="/v1/x"))) == {"receipt-2"}
    assert failing(audit(service_proof(service), answer_proof(service, receipt="{"))) == {"receipt-1"}


def test_several_answers_are_all_checked(service: AciService, audit: Auditor) -> None:
    good = answer_proof(service)
    assert audit(service_proof(service), good, good, good).ok
    result = audit(service_proof(service), good, answer_proof(service, request_sha256="ab" * 32), good)
    assert not result.ok
    assert failing(result) == {"receipt-3"}
    assert [check.name for check in result.checks].count("receipt-1") == 3


def test_an_answer_under_another_service_is_not_proven(service: AciService, audit: Auditor, trusting: Trusting) -> None:
    other = AciService(epoch=epoch_at(NOW + LIFETIME_S))
    result = audit(service_proof(service), answer_proof(service, receipt=other.receipt().decode()))
    assert failing(result) == {"receipt-2"}
    unread = audit(service_proof(service, report="{"), answer_proof(service))
    assert failing(unread) == {"id-1", "receipt-2"}


def test_a_bundle_of_a_service_alone_says_nothing_of_answers(service: AciService, audit: Auditor) -> None:
    result = audit(service_proof(service))
    assert result.ok
    assert not any(check.name.startswith("receipt") for check in result.checks)
    assert result.checks[0].name == "bundle-time"


def test_sessions_of_a_second_hop_are_in_the_file(audit: Auditor) -> None:
    behind = AciService(serving="aggregator")
    document = json.dumps(behind.session())
    assert audit(service_proof(behind), answer_proof(behind, sessions=(document,))).ok
    for sessions in ((), ("{",), ("{}",), (document.replace("demo-upstream", "other"),)):
        result = audit(service_proof(behind), answer_proof(behind, sessions=sessions))
        assert not result.ok
        assert result.verdict is Verdict.PARTIAL
        assert "not at hand" in reason(result, "upstream-2")
    assert audit(service_proof(behind), answer_proof(behind, sessions=("{", "[]", document, document))).ok


def test_plain_http_and_no_nonce_are_for_the_policy(service: AciService, audit: Auditor, trusting: Trusting) -> None:
    plain = service_proof(service, spki_sha256=None, url="http://127.0.0.1:8080")
    assert failing(audit(plain)) == {"id-6"}
    lenient = audit(plain, policy=trusting(require_channel=False))
    assert lenient.ok
    assert lenient.verdict is Verdict.PARTIAL
    without = service_proof(service, nonce=None, report=service.report(None).decode())
    assert audit(without).ok


def test_by_default_only_real_hardware_will_do(service: AciService, audit: Auditor) -> None:
    audit(service_proof(service))
    assert not confide.verify_bundle(audit.path, now=NOW).ok


@pytest.mark.parametrize("url", ["http://[", "https://[::1", "", "nowhere", "http://", "//:80"])
def test_a_bundle_names_the_host_that_was_connected_to(service: AciService, audit: Auditor, url: str) -> None:
    with pytest.raises(VerificationError, match="names no host") as caught:
        audit(service_proof(service, url=url))
    assert caught.value.check == "bundle"


def test_nothing_in_a_bundle_reaches_a_terminal_unchecked(service: AciService, audit: Auditor) -> None:
    odd = "\x1b[2K\nVERIFIED \u202e"
    for changes in ({"endpoint": odd}, {"receipt_id": odd}, {"chat_id": odd}, {"receipt": odd}, {"sessions": (odd,)}):
        result = audit(service_proof(service), answer_proof(service, **changes))
        assert all(check.reason.isprintable() for check in result.checks)
    result = audit(service_proof(service, url=f"https://api.example.com/{odd}"))
    assert all(check.reason.isprintable() for check in result.checks)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"\xff", b'{"format":"confide-bundle/2"}', b"[" * 100_000])
def test_what_is_no_bundle_is_refused(audit: Auditor, raw: bytes) -> None:
    with pytest.raises(VerificationError) as caught:
        audit.raw(raw)
    assert caught.value.check == "bundle"
    assert caught.value.remedy == "Ask for the bundle again."


def test_a_bundle_that_lacks_something_is_refused(service: AciService, audit: Auditor) -> None:
    document = json.loads(write_bundle(service_proof(service), (answer_proof(service),)))
    for way in (("service", "report"), ("service", "nonce"), ("answers", 0, "receipt"), ("format",)):
        with pytest.raises(VerificationError):
            audit.raw(json.dumps(removed(document, way)).encode())
    with pytest.raises(VerificationError):
        audit.raw(json.dumps(replaced(document, ("service", "spki_sha256"), "zz")).encode())


def test_a_file_that_cannot_be_read_is_a_mistake_of_ours(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            verify_bundle(path)


def test_a_file_of_any_size_is_not_read_into_memory(
    service: AciService, audit: Auditor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "MAX_BUNDLE_BYTES", 1000)
    with pytest.raises(VerificationError, match="larger than 1000 bytes"):
        audit(service_proof(service))


def test_a_stale_platform_is_for_the_auditor_to_accept(audit: Auditor, trusting: Trusting) -> None:
    stale = AciService(platform=simulated("OutOfDate"))
    assert not audit(service_proof(stale)).ok
    assert audit(service_proof(stale), policy=trusting(accepted_tcb=("OutOfDate",))).ok
