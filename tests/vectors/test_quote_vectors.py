"""Every row of the stored quote vectors, and every bit of every real quote, with the network out of reach.

A flipped bit never helps: the verdict is no better than the quote's own, and where a flip is still VERIFIED the quote
means the same: header, body, keys, QE report and the DER of its certificates are unchanged (tee-evidence 8.1, 5). For
the two quotes without stored collateral nothing is verified, so a flip is never VERIFIED, whatever else it is.

The files lie beside the repository and are read in place.
"""

import json
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import dcap_qvl
import pytest

from confide.collateral.bundle import bundle_of, read_bundle, write_bundle
from confide.collateral.tdx import TdxCollateral, platform_of
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import TD_REPORT_15, TdxQuote, parse_quote
from confide.evidence.result import Status, Verdict
from confide.evidence.tdx import TDX_REQUIRED, TdxResult, verify_tdx
from shared_data import TEE

if not TEE.is_dir():
    pytest.skip("the stored TEE samples are not beside this repository", allow_module_level=True)

VECTORS: list[dict[str, object]] = json.loads((TEE / "quote-vectors.json").read_text())["vectors"]
TDX_VECTORS = [vector for vector in VECTORS if vector["tee"] == "TDX"]
PRESENT = 1_795_000_000  # November 2026: after every stored Intel collateral
RANKS = {Verdict.NOT_VERIFIED: 0, Verdict.PARTIAL: 1, Verdict.VERIFIED: 2}


@dataclass(frozen=True)
class Case:
    """A real quote, the collateral that is stored for it, if any, and a time at which that was valid."""

    name: str
    collateral: str | None
    now: int

    @classmethod
    def of(cls, vector: Mapping[str, object]) -> "Case":
        now = vector["now"]
        assert isinstance(now, int)
        return cls(str(vector["quote"]), str(vector["collateral"]), now)

    @property
    def quote(self) -> bytes:
        """The stored bytes: raw, hex, or in a guest agent's answer."""
        data = (TEE / self.name).read_bytes()
        if self.name.endswith(".hex"):
            return bytes.fromhex(data.decode().strip().removeprefix("0x"))
        if self.name.endswith(".json"):
            return bytes.fromhex(json.loads(data)["quote"])
        return data


REAL = [
    *map(Case.of, TDX_VECTORS),
    Case("tdx/go-tdx-guest_tdx_prod_quote_SPR_E4.dat", None, PRESENT),
    Case("tdx/go-tdx-guest_cos-113-tdx-quote.dat", None, PRESENT),
]
SIMULATED = [Case(f"sim/{name}", None, PRESENT) for name in ("tdx_quote_v4.bin", "tdx_quote_v5.bin")]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a socket fails the test."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a verifier opened a socket")

    monkeypatch.setattr(socket, "socket", refused)


def name_of(case: Case | Mapping[str, object]) -> str:
    return case.name if isinstance(case, Case) else str(case["quote"])


def check(case: Case, raw: bytes, collateral: str | None) -> TdxResult:
    return verify_tdx(raw, collateral=collateral, anchors=Anchors.default(), policy=TdxPolicy(), now=case.now)


def collateral_of(case: Case) -> str | None:
    return (TEE / case.collateral).read_text() if case.collateral else None


# The rows.


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_every_row_has_its_verdict(vector: Mapping[str, object]) -> None:
    case = Case.of(vector)
    result = check(case, case.quote, collateral_of(case))
    assert result.required == TDX_REQUIRED
    assert all(check.reason.isprintable() for check in result.checks)
    failing = {check.name: check.reason for check in result.checks if check.status is Status.FAIL}
    if vector["tee"] != "TDX":
        assert (result.verdict, set(failing)) == (Verdict.NOT_VERIFIED, {"tdx.parse"})
    elif vector["expect"] == "error":
        assert (result.verdict, set(failing)) == (Verdict.NOT_VERIFIED, {"tdx.quote"})
        assert str(vector["error_contains"]) in failing["tdx.quote"]
    else:
        assert (result.verdict, failing) == (Verdict.VERIFIED, {})
        assert (result.facts["tdx.tcb_status"], result.facts["tdx.advisory_ids"]) == (
            vector["status"],
            vector["advisory_ids"],
        )


def test_no_row_is_left_out() -> None:
    expected = Counter((str(vector["tee"]), str(vector["expect"])) for vector in VECTORS)
    assert expected == {("TDX", "ok"): 5, ("TDX", "error"): 4, ("SGX", "ok"): 1}


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_no_row_verifies_now(vector: Mapping[str, object]) -> None:
    case = replace(Case.of(vector), now=PRESENT)
    assert check(case, case.quote, collateral_of(case)).verdict is Verdict.NOT_VERIFIED


@pytest.mark.parametrize("vector", [v for v in TDX_VECTORS if v["expect"] == "ok"], ids=name_of)
def test_the_stored_window_is_the_one_in_which_a_quote_verifies(vector: Mapping[str, object]) -> None:
    case = Case.of(vector)
    first, last = (unix_s(str(moment)) for moment in vector["window"])  # type: ignore[attr-defined]  # a list
    verdicts = {
        now: check(replace(case, now=now), case.quote, collateral_of(case)).verdict
        for now in (first - 1, first, last - 1, last + 1)
    }
    assert list(verdicts.values()) == [
        Verdict.NOT_VERIFIED,
        Verdict.VERIFIED,
        Verdict.VERIFIED,
        Verdict.NOT_VERIFIED,
    ], verdicts


@pytest.mark.parametrize("vector", [v for v in TDX_VECTORS if v["expect"] == "ok"], ids=name_of)
def test_stored_collateral_says_for_which_platform_it_is_and_when_it_is_good(vector: Mapping[str, object]) -> None:
    case = Case.of(vector)
    collateral = TdxCollateral.parse(collateral_of(case) or "")
    assert collateral.platform() == platform_of(parse_quote(case.quote))
    assert collateral.platform().fmspc == vector["fmspc"]
    assert collateral.validity() == tuple(unix_s(str(moment)) for moment in vector["window"])  # type: ignore[attr-defined]  # a list


def test_one_bundle_of_all_stored_collateral_gives_every_row_its_own() -> None:
    names = sorted({str(vector["collateral"]) for vector in TDX_VECTORS})
    collateral = tuple(TdxCollateral.parse((TEE / name).read_text()) for name in names)
    bundle = read_bundle(write_bundle(bundle_of(created_at=PRESENT, tdx=collateral)))
    for case, vector in zip(map(Case.of, TDX_VECTORS), TDX_VECTORS, strict=True):
        given = bundle.tdx_for(parse_quote(case.quote), now=case.now)
        verdict = check(case, case.quote, given.text).verdict
        assert (verdict is Verdict.VERIFIED) == (vector["expect"] == "ok"), case.name


def unix_s(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp())


@pytest.mark.parametrize("case", [*REAL, *SIMULATED], ids=name_of)
def test_two_parsers_read_the_same(case: Case) -> None:
    ours, theirs = parse_quote(case.quote), dcap_qvl.parse_quote(case.quote)
    for field in TD_REPORT_15:
        assert getattr(ours, field) == getattr(theirs.report, field.replace("rtmr", "rt_mr"), b""), field
    assert (ours.version, ours.qe_vendor_id, ours.user_data) == (
        theirs.header.version,
        theirs.header.qe_vendor_id,
        theirs.header.user_data,
    )


# One flipped bit. `make test` takes a sample of the bits, the long tests take them all.


def meaning(quote: TdxQuote) -> tuple[bytes, tuple[bytes, ...]]:
    """All bytes in front of the PEM text (header, body, signatures, keys, QE report, lengths), and the chain as DER."""
    return quote.trimmed[: quote.trimmed.index(b"-----BEGIN CERTIFICATE-----")], quote.chain


def flips(quote: bytes, bits: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    for bit in bits:
        offset = bit // 8
        yield bit, quote[:offset] + bytes((quote[offset] ^ 1 << bit % 8,)) + quote[offset + 1 :]


def count_verdicts(case: Case, bits: range) -> Counter[str]:
    """Flip each of these bits of the canonical quote; fails where one helps. How many ended how."""
    honest = parse_quote(case.quote)
    collateral = collateral_of(case)
    best = RANKS[check(case, honest.trimmed, collateral).verdict if collateral else Verdict.PARTIAL]
    counted: Counter[str] = Counter()
    for bit, flipped in flips(honest.trimmed, bits):
        result = check(case, flipped, collateral)
        assert RANKS[result.verdict] <= best, f"bit {bit} of {case.name} helps"
        if result.verdict is Verdict.VERIFIED:
            assert result.quote is not None
            assert meaning(result.quote) == meaning(honest), f"bit {bit} of {case.name} means something else"
        first = next((check.name for check in result.checks if check.status is Status.FAIL), str(result.verdict))
        counted[first] += 1
    return counted


@pytest.mark.parametrize("case", REAL, ids=name_of)
def test_a_flipped_bit_never_helps(case: Case) -> None:
    bits = range(0, 8 * len(parse_quote(case.quote).trimmed), 61)  # a prime: every bit of a byte has its turn
    counted = count_verdicts(case, bits)
    print(f"{case.name}: {counted.total()} flips, {dict(counted.most_common())}")
    assert counted.total() == len(bits)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", REAL, ids=name_of)
def test_no_bit_whatever_helps(case: Case) -> None:
    bits = range(8 * len(parse_quote(case.quote).trimmed))
    counted = count_verdicts(case, bits)
    print(f"{case.name}: {counted.total()} flips, {dict(counted.most_common())}")
    assert counted.total() == len(bits)
    assert counted[Verdict.VERIFIED] == 0  # not even a line break of the PEM text can be flipped
