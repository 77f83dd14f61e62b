"""The appraisal of a report: each check passing, failing and skipping, and what follows (wire contract 9.3)."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from aci_documents import removed, replaced, ways
from aci_service import (
    HOST,
    LIFETIME_S,
    NONCE,
    OTHER_SPKI,
    SPKI,
    URL,
    AciService,
    appraised,
    epoch_at,
    named,
    simulated,
)
from confide.evidence.result import Status, Verdict
from confide.protocol.keyset import TlsKey
from confide.protocol.report import SourceProvenance
from confide.simulator import measurements
from confide.simulator.tdx import SIMULATED_ADVISORY
from confide.verifier.appraisal import Connection, ServiceVerification
from confide.verifier.policy import Policy
from proof_builders import NOW

ORDER = [
    "id-1",
    "id-2",
    "id-3",
    "id-4",
    "id-5",
    "id-6",
    "policy-keyset-age",
    "tdx.parse",
    "tdx.tail",
    "tdx.root",
    "tdx.quote",
    "tdx.collateral",
    "tdx.tcb",
    "tdx.attributes",
    "binding.report-data",
]
COMPOSE_HASH = sha256(measurements.APP_COMPOSE.encode()).hexdigest()
PLAIN = Connection(host=HOST, spki_sha256=None)

Trusting = Callable[..., Policy]


def ids(result: ServiceVerification, status: Status) -> set[str]:
    """The checks of the specification that ended so."""
    assert [check.name for check in result.checks][: len(ORDER)] == ORDER
    return {check.name for check in result.checks if check.status is status and check.name.startswith("id-")}


def failing(result: ServiceVerification) -> set[str]:
    found = ids(result, Status.FAIL)
    assert not result.ok
    assert result.verdict is Verdict.NOT_VERIFIED
    return found


def reason(result: ServiceVerification, name: str) -> str:
    return named(result.checks, name).reason


def test_an_honest_service_is_verified_but_for_who_released_its_keys(service: AciService, trusting: Trusting) -> None:
    result = service.verified(trusting())
    assert ids(result, Status.PASS) == {"id-1", "id-2", "id-3", "id-4", "id-6"}
    assert ids(result, Status.SKIP) == {"id-5"}
    assert result.ok
    assert result.verdict is Verdict.VERIFIED
    assert result.simulated
    assert "(SIMULATED)" in reason(result, "id-1")
    assert result.facts["keyset_digest"] == service.digest
    assert result.facts["not_after"] == service.keyset.not_after
    assert result.facts["serving"] == "direct"


def test_all_that_a_bundle_needs_is_kept(service: AciService, trusting: Trusting) -> None:
    result = service.verified(trusting())
    assert result.proof is not None
    assert result.proof.report.encode() == service.report()
    assert (result.proof.url, result.proof.nonce, result.proof.verified_at) == (URL, NONCE, NOW)
    assert result.proof.spki_sha256 == SPKI.hex()


# id-1


def test_hardware_that_the_policy_does_not_trust_fails(service: AciService) -> None:
    result = service.verified(Policy())
    assert failing(result) == {"id-1"}
    assert "tdx.root" in reason(result, "id-1")
    assert not result.anchors
    assert not result.simulated


def test_a_platform_that_is_out_of_date_is_for_the_policy_to_accept(trusting: Trusting) -> None:
    stale = AciService(platform=simulated("OutOfDate"))
    result = stale.verified(trusting())
    assert failing(result) == {"id-1"}
    assert "tdx.tcb: OutOfDate" in reason(result, "id-1")
    assert stale.verified(trusting(accepted_tcb=("UpToDate", "OutOfDate"))).ok
    denying = trusting(accepted_tcb=("OutOfDate",), denied_advisories=(SIMULATED_ADVISORY,))
    assert SIMULATED_ADVISORY in reason(stale.verified(denying), "id-1")


def test_without_collateral_it_is_neither_yes_nor_no(service: AciService, trusting: Trusting) -> None:
    result = service.but(evidence={"collateral": ...}).verified(trusting())
    assert ids(result, Status.FAIL) == set()
    assert {"id-1", "id-2", "id-4"} <= ids(result, Status.SKIP)
    assert reason(result, "id-1").startswith("tdx.collateral: ")
    assert not result.ok
    assert result.verdict is Verdict.PARTIAL


@pytest.mark.parametrize("tee_type", ["TDX", "", "nitro"])
def test_evidence_of_another_tee_is_not_known(service: AciService, trusting: Trusting, tee_type: str) -> None:
    result = service.but(tee_type=tee_type).verified(trusting())
    assert [check.name for check in result.checks if check.status is Status.FAIL] == ["id-1"]
    assert result.verdict is Verdict.NOT_VERIFIED
    assert f"got tee_type {tee_type}" in reason(result, "id-1")


def test_a_quote_is_no_report_of_the_other_tee(service: AciService, trusting: Trusting) -> None:
    result = service.but(tee_type="sev_snp").verified(trusting())
    assert {"id-1", "snp.parse"} <= {check.name for check in result.checks if check.status is Status.FAIL}
    assert not result.ok


@pytest.mark.parametrize("quote", ["", "04aB", "00" * 700])
def test_a_quote_that_cannot_be_read_fails(service: AciService, trusting: Trusting, quote: str) -> None:
    result = service.but(evidence={"quote": quote}).verified(trusting())
    assert failing(result) == {"id-1"}
    assert "tdx.parse" in reason(result, "id-1")


def test_the_slot_is_the_reports_own_and_zeros(service: AciService, trusting: Trusting) -> None:
    report = replaced(service.document(), ("attestation", "report_data"), "ab" * 32)
    result = appraised(json.dumps(report).encode(), trusting())
    assert failing(result) == {"id-1", "id-2"}
    assert "expected the report's report_data and 32 zero bytes" in reason(result, "id-1")


def test_the_slot_may_be_stated_and_then_truly(service: AciService, trusting: Trusting) -> None:
    assert service.but(evidence={"quote_report_data": ...}).verified(trusting()).ok
    result = service.but(evidence={"quote_report_data": "ab" * 64}).verified(trusting())
    assert failing(result) == {"id-1", "id-2"}
    assert "quote_report_data" in reason(result, "id-1")


# id-2


def test_a_report_for_another_nonce_is_not_fresh(service: AciService, trusting: Trusting) -> None:
    for asked, given in ((NONCE, "d5" * 32), (NONCE, None), (None, NONCE)):
        assert failing(appraised(service.report(given), trusting(), nonce=asked)) == {"id-2"}


def test_a_report_without_a_nonce_shows_binding_and_says_that_it_is_not_fresh(
    service: AciService, trusting: Trusting
) -> None:
    result = service.verified(trusting(), nonce=None)
    assert result.ok
    assert "freshness is not shown" in reason(result, "id-2")
    assert "the nonce that was drawn for it" in reason(service.verified(trusting()), "id-2")


def test_a_quote_of_another_keyset_binds_nothing(service: AciService, trusting: Trusting) -> None:
    """The genuine quote of one keyset beside another keyset, whose words all agree with each other."""
    other = service.but(epoch=epoch_at(NOW + LIFETIME_S))
    mixed = replaced(other.document(), ("attestation", "evidence", "quote"), simulated().quote(bytes(64)).hex())
    assert failing(appraised(json.dumps(mixed).encode(), trusting())) == {"id-1", "id-2"}


def test_the_digest_that_a_report_names_is_recomputed(service: AciService, trusting: Trusting) -> None:
    report = replaced(service.document(), ("workload_keyset_digest",), "sha256:" + "ab" * 32)
    result = appraised(json.dumps(report).encode(), trusting())
    assert failing(result) == {"id-2"}
    assert "names another digest" in reason(result, "id-2")


# id-3


def test_a_keyset_ends_at_not_after_itself(service: AciService, trusting: Trusting) -> None:
    not_after = service.keyset.not_after
    fresh = service.but(now=not_after - 1)
    assert fresh.verified(trusting()).ok
    result = fresh.verified(trusting(), now=not_after)
    assert failing(result) == {"id-3"}
    assert f"got not_after {not_after}, expected later than {not_after}" in reason(result, "id-3")


def test_a_keyset_that_outlives_the_policys_patience_is_refused(service: AciService, trusting: Trusting) -> None:
    result = service.verified(trusting(max_keyset_age_s=60))
    assert not result.ok
    assert named(result.checks, "policy-keyset-age").status is Status.FAIL


# id-4


def test_another_application_than_was_measured_fails(service: AciService, trusting: Trusting) -> None:
    shown = service.but(evidence={"app_compose": measurements.APP_COMPOSE + " "})
    assert failing(shown.verified(trusting())) == {"id-4"}
    assert failing(service.but(evidence={"event_log": "[]"}).verified(trusting())) == {"id-4"}
    assert failing(service.but(evidence={"event_log": "{"}).verified(trusting())) == {"id-4"}


def test_which_application_it_is_may_be_unknown_unless_the_policy_asks(service: AciService, trusting: Trusting) -> None:
    hidden = service.but(evidence={"app_compose": ...})
    result = hidden.verified(trusting())
    assert ids(result, Status.SKIP) == {"id-4", "id-5"}
    assert result.ok
    asking = hidden.verified(trusting(compose_hashes=[COMPOSE_HASH]))
    assert not asking.ok
    assert "no compose hash that is proven" in reason(asking, "policy-compose")


def test_the_application_on_the_list_is_accepted_and_claimed(service: AciService, trusting: Trusting) -> None:
    listing = trusting(
        compose_hashes=[COMPOSE_HASH], claims=("tee_attested", "tcb_up_to_date", "serving_software_known_good")
    )
    assert service.verified(listing).ok
    assert not service.verified(trusting(compose_hashes=["11" * 32])).ok
    unlisted = service.verified(trusting(claims=("serving_software_known_good",)))
    assert "no proof of serving_software_known_good" in reason(unlisted, "policy-claims")


def test_claims_of_a_platform_that_is_accepted_though_out_of_date(trusting: Trusting) -> None:
    stale = AciService(platform=simulated("OutOfDate"))
    assert stale.verified(trusting(accepted_tcb=("OutOfDate",), claims=("tee_attested",))).ok
    asking = stale.verified(trusting(accepted_tcb=("OutOfDate",), claims=("tcb_up_to_date",)))
    assert "no proof of tcb_up_to_date" in reason(asking, "policy-claims")


def test_no_claim_holds_where_the_quote_does_not(service: AciService) -> None:
    result = service.verified(Policy(claims=("tee_attested",)))
    assert named(result.checks, "policy-claims").status is Status.FAIL


# id-5


def test_custody_is_never_passed_unverified(service: AciService, trusting: Trusting) -> None:
    for custody, told in ((None, "no key_custody"), ({"provider": "dstack-kms", "keys": []}, "no KMS root is pinned")):
        result = service.but(evidence={"key_custody": custody}).verified(trusting())
        assert named(result.checks, "id-5").status is Status.SKIP
        assert told in reason(result, "id-5")
        assert result.ok
    unreadable = service.but(evidence={"key_custody": "nobody"}).verified(trusting())
    assert named(unreadable.checks, "id-5").status is Status.FAIL
    assert not unreadable.ok


# id-6


def test_the_key_on_the_connection_is_in_the_keyset(service: AciService, trusting: Trusting) -> None:
    other = Connection(host=HOST, spki_sha256=OTHER_SPKI)
    for policy in (trusting(), trusting(require_channel=False)):
        result = service.verified(policy, connection=other)
        assert failing(result) == {"id-6"}
        assert OTHER_SPKI.hex() in reason(result, "id-6")
        assert SPKI.hex() in reason(result, "id-6")


def test_plain_http_is_refused_unless_the_policy_can_do_without_the_channel(
    service: AciService, trusting: Trusting
) -> None:
    assert failing(service.verified(trusting(), connection=PLAIN)) == {"id-6"}
    result = service.verified(trusting(require_channel=False), connection=PLAIN)
    assert ids(result, Status.SKIP) == {"id-5", "id-6"}
    assert result.ok
    assert result.verdict is Verdict.PARTIAL
    assert result.proof is not None
    assert result.proof.spki_sha256 is None


def test_a_keyset_without_tls_keys_shows_no_channel(trusting: Trusting) -> None:
    bare = AciService(epoch=epoch_at(NOW, ()))
    result = bare.verified(trusting())
    assert failing(result) == {"id-6"}
    assert "lists no TLS key" in reason(result, "id-6")
    lenient = bare.verified(trusting(require_channel=False))
    assert lenient.ok
    assert lenient.verdict is Verdict.PARTIAL


def test_a_key_listed_for_a_host_stands_for_that_host_alone(trusting: Trusting) -> None:
    listed = AciService(epoch=epoch_at(NOW, (TlsKey(SPKI.hex(), "API.example.com."), TlsKey(OTHER_SPKI.hex(), "b"))))
    for host in (HOST, "API.EXAMPLE.COM", HOST + "."):
        assert listed.verified(trusting(), connection=Connection(host=host, spki_sha256=SPKI)).ok
    elsewhere = listed.verified(trusting(), connection=Connection(host="other.example.com", spki_sha256=SPKI))
    assert failing(elsewhere) == {"id-6"}
    assert "no key is listed for this host" in reason(elsewhere, "id-6")
    swapped = listed.verified(trusting(), connection=Connection(host=HOST, spki_sha256=OTHER_SPKI))
    assert failing(swapped) == {"id-6"}


def test_a_connection_that_somebody_else_saw_is_called_so(service: AciService, trusting: Trusting) -> None:
    seen = Connection(host=HOST, spki_sha256=SPKI, is_recorded=True)
    assert "by the record of whoever connected" in reason(service.verified(trusting(), connection=seen), "id-6")


# any bytes


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a":"\\ud800"}', b'{"a":1,"a":1}', b"\xef\xbb\xbf{}"]
)
def test_what_is_no_report_is_a_failed_check(trusting: Trusting, raw: bytes) -> None:
    result = appraised(raw, trusting())
    assert {check.name: check.status for check in result.checks} == {
        "id-1": Status.FAIL,
        **dict.fromkeys(("id-2", "id-3", "id-4", "id-5", "id-6"), Status.SKIP),
    }
    assert (result.report, result.proof) == (None, None)
    assert not result.ok


# Labels and texts that nothing is compared with; the revocation list is checked under the quote's own chain.
FREE = {"vm_config", "repo_url", "repo_commit", "pck_crl_issuer_chain", "serving"}
ODD_TEXTS = ["\ud800", "\udfff x", "\x00", "\x1b[2K", "e\u0301 \u202e", "🙂", "long " * 1000]


@pytest.mark.parametrize("odd", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_odd_unicode_in_any_text_gives_a_result_fit_for_a_terminal(
    service: AciService, trusting: Trusting, odd: str
) -> None:
    document = service.document()
    texts = [way for way in ways(document) if isinstance(value_at(document, way), str)]
    assert len(texts) > 15
    for way in texts:
        result = appraised(json.dumps(replaced(document, way, odd)).encode(), trusting())
        assert all(check.reason.isprintable() for check in result.checks), way
        assert not result.ok or way[-1] in FREE, way


def value_at(document: Any, way: tuple[Any, ...]) -> object:
    for key in way:
        document = document[key]
    return document


def test_a_source_is_a_label_and_may_be_missing_unless_it_is_asked_for(service: AciService, trusting: Trusting) -> None:
    report = removed(service.document(), ("attestation", "source_provenance"))
    assert appraised(json.dumps(report).encode(), trusting()).ok
    unnamed = replace(service, provenance=SourceProvenance())
    assert unnamed.verified(trusting()).ok
