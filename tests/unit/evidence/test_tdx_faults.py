"""Each fault of a simulated TDX platform, in each form of quote, and the checks that it fails: these and no others."""

import json

import dcap_qvl
import pytest

from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import TD_REPORT_15, parse_quote
from confide.evidence.result import Status, Verdict
from confide.evidence.tdx import TDX_REQUIRED, TdxResult, verify_tdx
from confide.simulator.tdx import QuoteForm, SimulatedTdxPlatform, TdxFault

NOW = 1_800_000_000
SEED = b"\x11" * 32
REPORT_DATA = bytes(range(64))
POLICY = TdxPolicy(min_tcb_eval_data_number=17)

# The checks that fail. Attributes are read twice, by the library and by us.
FAILING = {
    TdxFault.SEPT_VE: {"tdx.quote", "tdx.attributes"},
    TdxFault.RESERVED_ATTRIBUTE: {"tdx.quote", "tdx.attributes"},
    TdxFault.MIGRATABLE: {"tdx.quote", "tdx.attributes"},
    TdxFault.PERFMON: {"tdx.attributes"},
    TdxFault.SERVICE_TD: {"tdx.quote", "tdx.attributes"},
    TdxFault.MODULE_SIGNER: {"tdx.quote", "tdx.attributes"},
    TdxFault.CERTIFICATION_TYPE: {"tdx.parse"},
    TdxFault.APPENDED: {"tdx.tail"},
    TdxFault.EVALUATION: {"tdx.collateral"},
}
# Where the library says why.
REASONS = {
    TdxFault.SEPT_VE: "SEPT_VE_DISABLE",
    TdxFault.VENDOR: "endor",
    TdxFault.PCK_CA_REVOKED: "CertRevoked",
    TdxFault.TCB_SIGNER_REVOKED: "CertRevoked",
    TdxFault.ROOT_CRL_EXPIRED: "CrlExpired",
    TdxFault.EXPIRED: "xpired",
    TdxFault.FUTURE: "in the future",
    TdxFault.FMSPC: "Fmspc mismatch",
    TdxFault.NO_LEVEL: "No matching TCB level found",
    TdxFault.QE_DEBUG: "ebug",
}


def verify(platform: SimulatedTdxPlatform) -> TdxResult:
    return verify_tdx(
        platform.quote(REPORT_DATA),
        collateral=json.dumps(platform.collateral(NOW)),
        anchors=Anchors.of().with_simulated(platform.root_der),
        policy=POLICY,
        now=NOW,
        expected_report_data=REPORT_DATA,
    )


def forms(fault: TdxFault) -> tuple[QuoteForm, ...]:
    return (QuoteForm.V5_REPORT_15,) if fault is TdxFault.SERVICE_TD else tuple(QuoteForm)


CASES = [(fault, form) for fault in TdxFault for form in forms(fault)]


@pytest.mark.parametrize("form", QuoteForm)
def test_without_a_fault_a_quote_of_any_form_verifies(form: QuoteForm) -> None:
    result = verify(SimulatedTdxPlatform(SEED, now=NOW, form=form))
    assert {check.status for check in result.checks} == {Status.PASS}
    assert (result.verdict, result.facts["tdx.quote_version"]) == (Verdict.VERIFIED, form.version)
    assert ("tdx.mr_service_td" in result.facts) == (form is QuoteForm.V5_REPORT_15)


@pytest.mark.parametrize(("fault", "form"), CASES, ids=lambda value: value.name)
def test_a_fault_fails_its_check_and_no_other(fault: TdxFault, form: QuoteForm) -> None:
    result = verify(SimulatedTdxPlatform(SEED, now=NOW, form=form, fault=fault))
    failing = {check.name: check.reason for check in result.checks if check.status is Status.FAIL}
    assert set(failing) == FAILING.get(fault, {"tdx.quote"})
    assert result.verdict is Verdict.NOT_VERIFIED
    if fault in REASONS:
        assert REASONS[fault] in failing["tdx.quote"]


@pytest.mark.parametrize("form", QuoteForm)
@pytest.mark.parametrize(
    ("knobs", "failing"),
    [
        ({"debug": True}, {"tdx.quote", "tdx.attributes"}),
        ({"revoked": True}, {"tdx.quote"}),
        ({"tcb_status": "Revoked"}, {"tdx.quote"}),
        ({"tcb_status": "OutOfDate"}, {"tdx.tcb"}),
    ],
    ids=["debug", "revoked", "tcb revoked", "tcb out of date"],  # a set's text has another order in each process
)
def test_the_other_knobs_in_every_form(form: QuoteForm, knobs: dict[str, object], failing: set[str]) -> None:
    platform = SimulatedTdxPlatform(SEED, now=NOW, form=form, **knobs)  # type: ignore[arg-type]  # one knob at a time
    assert {check.name for check in verify(platform).checks if check.status is Status.FAIL} == failing


@pytest.mark.parametrize("form", QuoteForm)
def test_two_parsers_read_the_same(form: QuoteForm) -> None:
    raw = SimulatedTdxPlatform(SEED, now=NOW, form=form).quote(REPORT_DATA)
    ours, theirs = parse_quote(raw), dcap_qvl.parse_quote(raw)
    for field in TD_REPORT_15:
        assert getattr(ours, field) == getattr(theirs.report, field.replace("rtmr", "rt_mr"), b""), field
    assert (ours.version, ours.trimmed) == (theirs.header.version, raw)


def test_a_fault_changes_no_root_and_an_honest_quote_has_the_same_bytes() -> None:
    honest = SimulatedTdxPlatform(SEED, now=NOW)
    for fault in (TdxFault.TCB_SIGNER, TdxFault.EXPIRED):
        faulty = SimulatedTdxPlatform(SEED, now=NOW, fault=fault)
        assert faulty.root_der == honest.root_der
        assert faulty.quote(REPORT_DATA) == honest.quote(REPORT_DATA)


def test_only_a_report_15_names_a_migration_td() -> None:
    with pytest.raises(ValueError, match=r"only a TD report 1\.5"):
        SimulatedTdxPlatform(SEED, now=NOW, fault=TdxFault.SERVICE_TD)


def test_what_a_policy_can_allow_it_allows() -> None:
    platform = SimulatedTdxPlatform(SEED, now=NOW, fault=TdxFault.PERFMON)
    result = verify_tdx(
        platform.quote(REPORT_DATA),
        collateral=json.dumps(platform.collateral(NOW)),
        anchors=Anchors.of().with_simulated(platform.root_der),
        policy=TdxPolicy(allow_perfmon=True),
        now=NOW,
    )
    assert result.requiring(TDX_REQUIRED).verdict is Verdict.VERIFIED
