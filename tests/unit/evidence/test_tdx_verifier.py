"""The TDX verifier against simulated hardware: the honest quote, and every way in which it can be dishonest."""

import json
from base64 import b64encode
from collections.abc import Callable

import dcap_qvl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import TD_REPORT_10, parse_quote
from confide.evidence.result import Status, Verdict
from confide.evidence.tdx import TDX_REQUIRED, TdxResult, verify_tdx
from confide.simulator.tdx import SIMULATED_ADVISORY, SimulatedTdxPlatform

DAY_S = 24 * 60 * 60
BOUND = TDX_REQUIRED | {"binding.report-data"}
ALL_CHECKS = [
    "tdx.parse",
    "tdx.tail",
    "tdx.root",
    "tdx.quote",
    "tdx.collateral",
    "tdx.tcb",
    "tdx.attributes",
    "binding.report-data",
]

Verify = Callable[..., TdxResult]


@pytest.fixture
def verify(quote: bytes, collateral: str, anchors: Anchors, report_data: bytes, now: int) -> Verify:
    """`verify_tdx` on the honest case; arguments replace parts of it."""

    def run(raw: bytes = quote, **changes: object) -> TdxResult:
        honest: dict[str, object] = {
            "collateral": collateral,
            "anchors": anchors,
            "policy": TdxPolicy(),
            "now": now,
            "expected_report_data": report_data,
        }
        return verify_tdx(raw, **(honest | changes))  # type: ignore[arg-type]  # tests replace any of them

    return run


def statuses(result: TdxResult) -> dict[str, Status]:
    assert [check.name for check in result.checks] == ALL_CHECKS
    return {check.name: check.status for check in result.checks}


def failed(result: TdxResult) -> set[str]:
    return {check_id for check_id, status in statuses(result).items() if status is Status.FAIL}


def skipped(result: TdxResult) -> set[str]:
    return {check_id for check_id, status in statuses(result).items() if status is Status.SKIP}


def reason(result: TdxResult, check_id: str) -> str:
    return next(check.reason for check in result.checks if check.name == check_id)


def flipped(raw: bytes, offset: int, bit: int = 0) -> bytes:
    return raw[:offset] + bytes((raw[offset] ^ 1 << bit,)) + raw[offset + 1 :]


def test_an_honest_simulated_quote_verifies_under_its_pinned_root(
    verify: Verify, platform: SimulatedTdxPlatform, now: int
) -> None:
    result = verify()
    assert set(statuses(result).values()) == {Status.PASS}
    assert result.requiring(BOUND).verdict is Verdict.VERIFIED
    assert result.now == now
    assert result.simulated
    assert [anchor.name for anchor in result.anchors] == [f"sim:{platform.root_sha256_hex}"]
    assert "SIMULATED" in reason(result, "tdx.root")


def test_facts_of_a_verified_quote(verify: Verify, platform: SimulatedTdxPlatform, now: int) -> None:
    facts = verify().facts
    tcb_info = json.loads(str(platform.info["tcb_info"]))
    assert facts["tdx.mr_td"] == tcb_info["mrtd"]
    assert [facts[f"tdx.rtmr{index}"] for index in range(4)] == [tcb_info[f"rtmr{index}"] for index in range(4)]
    assert (facts["tdx.tcb_status"], facts["tdx.advisory_ids"], facts["tdx.fmspc"]) == ("UpToDate", [], "51d000000000")
    assert facts["tdx.collateral_expires_at"] == now + 30 * DAY_S
    assert (facts["tdx.dynamic_platform"], facts["tdx.smt_enabled"]) == (True, True)
    assert json.loads(json.dumps(facts)) == facts


def test_without_the_pinned_root_it_is_rejected(verify: Verify, platform: SimulatedTdxPlatform) -> None:
    result = verify(anchors=Anchors.default())
    assert failed(result) == {"tdx.root"}
    assert result.requiring(TDX_REQUIRED).verdict is Verdict.NOT_VERIFIED
    assert platform.root_sha256_hex in reason(result, "tdx.root")
    assert "Simulated TEE (not Intel)" in reason(result, "tdx.root")
    assert result.anchors == ()


def test_another_simulated_root_is_no_help(verify: Verify, now: int) -> None:
    other = SimulatedTdxPlatform(b"\x22" * 32, now=now)
    assert failed(verify(anchors=Anchors.default().with_simulated(other.root_der))) == {"tdx.root"}


def test_a_foreign_platform_that_shows_the_pinned_root_is_rejected(
    verify: Verify, platform: SimulatedTdxPlatform, report_data: bytes, now: int
) -> None:
    attacker = SimulatedTdxPlatform(b"\x22" * 32, now=now)
    quote = attacker.quote(report_data)
    their_pem, our_pem = attacker.root_pem.encode(), platform.root_pem.encode()
    grafted = with_certificate(quote, their_pem, our_pem)
    for collateral in (platform.collateral(now), attacker.collateral(now)):
        result = verify(grafted, collateral=json.dumps(collateral))
        assert statuses(result)["tdx.root"] is Status.PASS
        assert failed(result) == {"tdx.quote"}
        assert skipped(result) == {"tdx.collateral", "tdx.tcb", "tdx.attributes", "binding.report-data"}


def test_collateral_cannot_bring_another_pck_chain_than_the_quotes(
    verify: Verify, quote: bytes, collateral: str, anchors: Anchors, report_data: bytes, now: int
) -> None:
    leaf, stranger = pck_pem(quote), pck_pem(SimulatedTdxPlatform(b"\x22" * 32, now=now).quote(report_data))
    doctored = with_certificate(quote, leaf, stranger)
    true_chain = quote[quote.index(b"-----BEGIN") :].rstrip(b"\0").decode()
    with_chain = json.dumps(json.loads(collateral) | {"pck_certificate_chain": true_chain})
    (root_der,) = (root.der for root in anchors.roots.values() if root.der)
    library = dcap_qvl.verify_with_root_ca(doctored, dcap_qvl.QuoteCollateralV3.from_json(with_chain), root_der, now)
    assert library.status == "UpToDate"  # it verifies the collateral's chain and never looks at the quote's

    assert failed(verify(doctored, collateral=with_chain)) == {"tdx.quote"}
    assert verify(collateral=with_chain).requiring(BOUND).verdict is Verdict.VERIFIED


def pck_pem(quote: bytes) -> bytes:
    end_line = b"-----END CERTIFICATE-----\n"
    return quote[quote.index(b"-----BEGIN") : quote.index(end_line) + len(end_line)]


def with_certificate(quote: bytes, old_pem: bytes, new_pem: bytes) -> bytes:
    """Another certificate in place of one in the chain, with all three lengths made to fit."""
    assert quote.count(old_pem) == 1
    grown = bytearray(quote.replace(old_pem, new_pem))
    for offset in (632, 766, 770 + 384 + 64 + 2 + 32 + 2):
        length = int.from_bytes(quote[offset : offset + 4], "little") + len(new_pem) - len(old_pem)
        grown[offset : offset + 4] = length.to_bytes(4, "little")
    return bytes(grown)


def test_a_chain_without_its_root_is_rejected(verify: Verify, quote: bytes, platform: SimulatedTdxPlatform) -> None:
    result = verify(with_certificate(quote, platform.root_pem.encode(), b""))
    assert failed(result) == {"tdx.root"}
    assert "2 certificates, expected 3" in reason(result, "tdx.root")


@pytest.mark.parametrize(
    ("what", "old", "new"),
    [
        ("a version that does not exist", b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x0a"),
        ("a name of bits", b"\x0c\x15Simulated SGX Root CA", b"\x03\x15Simulated SGX Root CA"),
        ("no certificate at all", b"\x30", b"\x31"),
    ],
)
def test_a_root_that_cannot_be_read_is_rejected_in_words(
    verify: Verify, quote: bytes, platform: SimulatedTdxPlatform, what: str, old: bytes, new: bytes
) -> None:
    assert old in platform.root_der, what
    strange = platform.root_der.replace(old, new)
    pem = f"-----BEGIN CERTIFICATE-----\n{b64encode(strange).decode()}\n-----END CERTIFICATE-----\n"
    result = verify(with_certificate(quote, platform.root_pem.encode(), pem.encode()))
    assert failed(result) == {"tdx.root"}
    assert "not a certificate" in reason(result, "tdx.root")
    if what != "a name of bits":  # its name is not read to pin it
        with pytest.raises(ValueError, match="not a certificate in DER form"):
            Anchors.of().with_simulated(strange)


@pytest.mark.parametrize(
    ("where", "offset", "failing"),
    [
        ("header: user data", 30, {"tdx.quote"}),
        ("header: vendor", 12, {"tdx.quote"}),
        ("tee_tcb_svn", 48 + 2, {"tdx.quote"}),
        ("mr_td", 48 + 136, {"tdx.quote"}),
        ("rtmr3", 48 + 472, {"tdx.quote"}),
        ("report data", 48 + 520, {"tdx.quote", "binding.report-data"}),
        ("quote signature", 636, {"tdx.quote"}),
        ("attestation key", 636 + 64, {"tdx.quote"}),
        ("QE report", 770 + 64, {"tdx.quote"}),
        ("QE report signature", 770 + 384, {"tdx.quote"}),
        ("QE authentication data", 770 + 384 + 64 + 2, {"tdx.quote"}),
    ],
)
def test_one_flipped_bit_is_found(verify: Verify, quote: bytes, where: str, offset: int, failing: set[str]) -> None:
    assert failed(verify(flipped(quote, offset))) == failing, where


def test_no_bit_of_the_quote_is_free(verify: Verify, quote: bytes) -> None:
    accepted = [offset for offset in range(0, len(quote), 7) if not verify(flipped(quote, offset, offset % 8)).rejected]
    assert accepted == []


def test_a_debug_td_is_refused_twice(verify: Verify, report_data: bytes, now: int) -> None:
    platform = SimulatedTdxPlatform(b"\x11" * 32, now=now, debug=True)
    result = verify(platform.quote(report_data))
    assert failed(result) == {"tdx.quote", "tdx.attributes"}
    assert "debug mode" in reason(result, "tdx.attributes")


@pytest.mark.parametrize(
    ("byte", "bit", "fault"),
    [
        (0, 1, "reserved attribute bits"),
        (1, 0, "reserved attribute bits"),
        (3, 4, "SEPT_VE_DISABLE is off"),
        (3, 5, "can be migrated"),
        (7, 7, "PERFMON"),
    ],
)
def test_attributes_are_read_even_when_the_quote_cannot_be_verified(
    verify: Verify, quote: bytes, byte: int, bit: int, fault: str
) -> None:
    result = verify(flipped(quote, 48 + 120 + byte, bit), collateral=None)
    assert failed(result) == {"tdx.attributes"}
    assert fault in reason(result, "tdx.attributes")


def test_performance_counters_can_be_allowed(verify: Verify, quote: bytes) -> None:
    result = verify(flipped(quote, 48 + 127, 7), collateral=None, policy=TdxPolicy(allow_perfmon=True))
    assert not result.rejected


def test_a_tdx_module_that_intel_did_not_sign_is_refused(verify: Verify, quote: bytes) -> None:
    result = verify(flipped(quote, 48 + 64), collateral=None)
    assert "not signed by Intel" in reason(result, "tdx.attributes")


def test_every_shorter_quote_is_rejected(verify: Verify, quote: bytes) -> None:
    for length in range(0, len(quote), 97):
        result = verify(quote[:length])
        assert failed(result) == {"tdx.parse"}
        assert skipped(result) == BOUND - {"tdx.parse"}
        assert result.quote is None


def test_zero_padding_is_normal(verify: Verify, quote: bytes) -> None:
    result = verify(quote + bytes(70))
    assert result.requiring(BOUND).verdict is Verdict.VERIFIED
    assert result.facts == verify().facts


def test_anything_else_behind_the_quote_is_refused(verify: Verify, quote: bytes) -> None:
    assert failed(verify(quote + bytes(69) + b"\x01")) == {"tdx.tail"}


def test_an_out_of_date_platform_fails_by_policy_alone(verify: Verify, now: int) -> None:
    platform = SimulatedTdxPlatform(b"\x11" * 32, now=now, tcb_status="OutOfDate")
    outdated = json.dumps(platform.collateral(now))
    result = verify(collateral=outdated)
    assert failed(result) == {"tdx.tcb"}
    for word in ("OutOfDate", SIMULATED_ADVISORY, "2026-01-01", "accepts UpToDate"):
        assert word in reason(result, "tdx.tcb")

    lenient = frozenset({"UpToDate", "OutOfDate"})
    assert (
        verify(collateral=outdated, policy=TdxPolicy(accepted_tcb=lenient)).requiring(BOUND).verdict is Verdict.VERIFIED
    )
    denying = TdxPolicy(accepted_tcb=lenient, denied_advisories=frozenset({SIMULATED_ADVISORY}))
    assert failed(verify(collateral=outdated, policy=denying)) == {"tdx.tcb"}


@pytest.mark.parametrize("knobs", [{"revoked": True}, {"tcb_status": "Revoked"}])
def test_a_revoked_platform_is_rejected_whatever_the_policy(verify: Verify, knobs: dict[str, object], now: int) -> None:
    platform = SimulatedTdxPlatform(b"\x11" * 32, now=now, **knobs)  # type: ignore[arg-type]  # one knob at a time
    result = verify(collateral=json.dumps(platform.collateral(now)))
    assert failed(result) == {"tdx.quote"}


@pytest.mark.parametrize(
    ("seconds", "why"), [(-1, "in the future"), (30 * DAY_S, "CrlExpired"), (40 * DAY_S, "CrlExpired")]
)
def test_collateral_outside_its_window_is_refused(verify: Verify, seconds: int, why: str, now: int) -> None:
    result = verify(now=now + seconds)
    assert failed(result) == {"tdx.quote"}
    assert why in reason(result, "tdx.quote")
    assert "tdx.mr_td" not in result.facts


def test_collateral_inside_its_window_is_accepted(verify: Verify, now: int) -> None:
    assert verify(now=now + 30 * DAY_S - 1).requiring(BOUND).verdict is Verdict.VERIFIED


def test_collateral_from_before_a_tcb_recovery_is_refused(verify: Verify) -> None:
    assert failed(verify(policy=TdxPolicy(min_tcb_eval_data_number=18))) == {"tdx.collateral"}
    assert not verify(policy=TdxPolicy(min_tcb_eval_data_number=17)).rejected


def test_without_collateral_it_is_neither_yes_nor_no(verify: Verify) -> None:
    result = verify(collateral=None)
    assert failed(result) == set()
    assert skipped(result) == {"tdx.quote", "tdx.collateral", "tdx.tcb", "tdx.attributes", "binding.report-data"}
    assert result.requiring(TDX_REQUIRED).verdict is Verdict.PARTIAL
    assert result.simulated
    assert set(result.facts) == {"tdx.quote_version", "tdx.quote_sha256"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"tcb_info": 1}', "\ud800", "[" * 5000, '{"\\u001b[2J": 0}'])
def test_collateral_that_cannot_be_read_is_a_fail_in_one_plain_line(verify: Verify, text: str) -> None:
    result = verify(collateral=text)
    assert failed(result) == {"tdx.collateral"}
    assert reason(result, "tdx.collateral").isprintable()


@pytest.mark.parametrize("member", ["tcb_info", "qe_identity", "pck_crl", "root_ca_crl", "tcb_info_signature"])
def test_tampered_collateral_is_refused(verify: Verify, collateral: str, member: str) -> None:
    members = json.loads(collateral)
    middle = len(members[member]) // 2
    digit = "1" if members[member][middle] == "0" else "0"
    members[member] = members[member][:middle] + digit + members[member][middle + 1 :]
    assert failed(verify(collateral=json.dumps(members))) == {"tdx.quote"}


def test_other_report_data_than_expected_is_refused(verify: Verify, report_data: bytes) -> None:
    result = verify(expected_report_data=flipped(report_data, 63))
    assert failed(result) == {"binding.report-data"}
    assert result.requiring(TDX_REQUIRED).verdict is Verdict.NOT_VERIFIED


def test_without_an_expectation_the_binding_is_not_claimed(verify: Verify) -> None:
    result = verify(expected_report_data=None)
    assert skipped(result) == {"binding.report-data"}
    assert result.requiring(TDX_REQUIRED).verdict is Verdict.VERIFIED
    assert result.requiring(BOUND).verdict is Verdict.PARTIAL


def test_report_data_of_an_unverified_quote_never_passes(verify: Verify, quote: bytes) -> None:
    unverified = [verify(collateral=None), verify(anchors=Anchors.default()), verify(flipped(quote, 700))]
    assert {statuses(result)["binding.report-data"] for result in unverified} == {Status.SKIP}


@pytest.mark.parametrize("expected", [b"", bytes(32), bytes(65)])
def test_an_expectation_of_another_length_is_the_callers_mistake(verify: Verify, expected: bytes) -> None:
    with pytest.raises(ValueError, match="64 bytes of report data expected"):
        verify(expected_report_data=expected)


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_quote_is_rejected_or_says_the_same(data: st.DataObject, verify: Verify, quote: bytes) -> None:
    start = data.draw(st.integers(0, len(quote)))
    stop = data.draw(st.integers(start, min(start + 8, len(quote))))
    mutated = quote[:start] + data.draw(st.binary(max_size=8)) + quote[stop:]
    result = verify(mutated)
    assert all(check.reason.isprintable() for check in result.checks)
    if not result.rejected:
        assert result.quote is not None
        honest = parse_quote(quote)
        assert result.quote.chain == honest.chain
        assert all(getattr(result.quote, name) == getattr(honest, name) for name in TD_REPORT_10)


@given(raw=st.binary(max_size=1024), collateral=st.none() | st.text(max_size=200))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_give_a_rejection(raw: bytes, collateral: str | None, verify: Verify) -> None:
    assert failed(verify(raw, collateral=collateral)) == {"tdx.parse"}


@pytest.mark.parametrize(
    ("answer", "told"), [(ValueError("odd bytes"), "does not parse it: odd bytes"), (None, "disagree")]
)
def test_what_the_verifying_library_reads_another_way_is_no_quote(
    verify: Verify, monkeypatch: pytest.MonkeyPatch, answer: ValueError | None, told: str
) -> None:
    """The library decides what is verified, our parser what is shown: they must see the same fields."""

    class Other:
        report = None

    def read(_: bytes) -> type[Other]:
        if answer is not None:
            raise answer
        return Other

    monkeypatch.setattr("confide.evidence.dcap.dcap_qvl.parse_quote", read)
    result = verify()
    assert failed(result) == {"tdx.parse"}
    assert told in result.checks[0].reason


def test_a_failure_stays_one_where_the_older_call_has_no_words_for_it(
    verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confide.evidence.dcap.dcap_qvl.verify_with_root_ca", lambda *_: None)
    result = verify(now=0)
    assert "tdx.quote" in failed(result)
