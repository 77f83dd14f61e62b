"""Verdicts: a skip is neither yes nor no, and a simulated anchor is never hidden."""

import pytest

from confide.evidence.result import Check, Status, TrustAnchor, Verdict, Verification

REQUIRED = frozenset({"a", "b"})


def verification(*checks: tuple[str, Status], anchors: tuple[TrustAnchor, ...] = ()) -> Verification:
    return Verification(0, tuple(Check(check_id, status, "why") for check_id, status in checks), anchors, {})


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([("a", Status.PASS), ("b", Status.PASS)], Verdict.VERIFIED),
        ([("a", Status.PASS), ("b", Status.PASS), ("c", Status.SKIP)], Verdict.VERIFIED),
        ([("a", Status.PASS), ("b", Status.PASS), ("c", Status.FAIL)], Verdict.NOT_VERIFIED),
        ([("a", Status.PASS), ("b", Status.SKIP)], Verdict.PARTIAL),
        ([("a", Status.PASS)], Verdict.PARTIAL),
        ([("a", Status.PASS), ("b", Status.PASS), ("b", Status.SKIP)], Verdict.PARTIAL),
        ([("a", Status.FAIL), ("b", Status.SKIP)], Verdict.NOT_VERIFIED),
        ([], Verdict.PARTIAL),
    ],
)
def test_verdict(checks: list[tuple[str, Status]], verdict: Verdict) -> None:
    result = verification(*checks)
    assert result.requiring(REQUIRED).verdict is verdict
    assert result.rejected is (verdict is Verdict.NOT_VERIFIED)


@pytest.mark.parametrize(
    ("checks", "decisive"),
    [
        ([("a", Status.PASS), ("b", Status.PASS), ("c", Status.SKIP)], None),
        (
            [("c", Status.SKIP), ("a", Status.SKIP), ("c", Status.FAIL), ("b", Status.FAIL)],
            Check("c", Status.FAIL, "why"),
        ),
        ([("c", Status.SKIP), ("b", Status.SKIP), ("a", Status.SKIP)], Check("b", Status.SKIP, "why")),
        ([("b", Status.SKIP)], Check("b", Status.SKIP, "why")),
        ([("b", Status.PASS)], Check("a", Status.SKIP, "this check did not run")),
        ([], Check("a", Status.SKIP, "this check did not run")),
    ],
)
def test_what_failed_decides_before_what_was_skipped_and_that_before_what_is_missing(
    checks: list[tuple[str, Status]], decisive: Check | None
) -> None:
    result = verification(*checks).requiring(REQUIRED)
    assert result.decisive == decisive
    assert result.ok is (decisive is None)


def test_where_nothing_was_required_nothing_decides() -> None:
    assert verification(("a", Status.SKIP)).decisive is None


def test_requiring_nothing_proves_nothing() -> None:
    assert verification(("a", Status.PASS)).requiring(frozenset()).verdict is Verdict.PARTIAL


def test_one_simulated_anchor_makes_the_result_simulated() -> None:
    real = TrustAnchor("intel-sgx-root", "00", simulated=False)
    fake = TrustAnchor("sim:11", "11", simulated=True)
    assert not verification(anchors=(real,)).simulated
    assert verification(anchors=(real, fake)).simulated


def test_the_words_are_those_of_the_contract() -> None:
    assert [str(verdict) for verdict in Verdict] == ["VERIFIED", "PARTIAL", "NOT VERIFIED"]
    assert [str(status) for status in Status] == ["pass", "fail", "skip"]


def test_a_check_without_a_reason_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="the check a has no reason"):
        Check("a", Status.PASS, "")
