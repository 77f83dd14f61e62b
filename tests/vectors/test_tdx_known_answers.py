"""Quotes of real TDX machines, and simulated ones made by another program, with their known answers.

Each vector has the time at which its collateral was valid. The files lie beside the repository and are read in place.
"""

import json
from collections.abc import Mapping

import dcap_qvl
import pytest

from confide.evidence.policy import INTEL_SGX_ROOT_SHA256, Anchors, TdxPolicy
from confide.evidence.quote import TD_REPORT_15, parse_quote
from confide.evidence.result import Status, Verdict
from confide.evidence.tdx import TDX_REQUIRED, TdxResult, verify_tdx
from shared_data import TEE

if not TEE.is_dir():
    pytest.skip("the stored TEE samples are not beside this repository", allow_module_level=True)

VECTORS: list[dict[str, object]] = json.loads((TEE / "quote-vectors.json").read_text())["vectors"]
TDX_VECTORS = [vector for vector in VECTORS if vector["tee"] == "TDX"]
SIMULATED_QUOTES = ["sim/tdx_quote_v4.bin", "sim/tdx_quote_v5.bin", "sim/dstack_getquote.json"]
PARSE_ONLY = ["tdx/go-tdx-guest_tdx_prod_quote_SPR_E4.dat", "tdx/go-tdx-guest_cos-113-tdx-quote.dat"]
STORED_QUOTES = [*(str(vector["quote"]) for vector in TDX_VECTORS), *SIMULATED_QUOTES, *PARSE_ONLY]

SIMULATED_NOW = 1_800_000_000
PRESENT = 1_795_000_000  # November 2026: after every stored Intel collateral


def stored_quote(name: str) -> bytes:
    """A stored quote in whatever form its origin had: raw, hex, or in a guest agent's answer."""
    data = (TEE / name).read_bytes()
    if name.endswith(".hex"):
        return bytes.fromhex(data.decode().strip().removeprefix("0x"))
    if name.endswith(".json"):
        return bytes.fromhex(json.loads(data)["quote"])
    return data


def verified(name: str, collateral: str | None, now: int, anchors: Anchors | None = None) -> TdxResult:
    text = (TEE / collateral).read_text() if collateral else None
    return verify_tdx(
        stored_quote(name), collateral=text, anchors=anchors or Anchors.default(), policy=TdxPolicy(), now=now
    )


def status(result: TdxResult, check_id: str) -> Status:
    return next(check.status for check in result.checks if check.name == check_id)


def reason(result: TdxResult, check_id: str) -> str:
    return next(check.reason for check in result.checks if check.name == check_id)


def failed(result: TdxResult) -> set[str]:
    return {check.name for check in result.checks if check.status is Status.FAIL}


def from_vector(vector: Mapping[str, object], now: object = None) -> TdxResult:
    moment = vector["now"] if now is None else now
    assert isinstance(moment, int)
    return verified(str(vector["quote"]), str(vector["collateral"]), moment)


def name_of(vector: Mapping[str, object]) -> str:
    return str(vector["quote"])


def test_all_ten_vectors_are_covered() -> None:
    assert (len(VECTORS), len(TDX_VECTORS)) == (10, 9)


@pytest.mark.parametrize("vector", [v for v in TDX_VECTORS if v["expect"] == "ok"], ids=name_of)
def test_a_real_quote_verifies_at_its_time(vector: Mapping[str, object]) -> None:
    result = from_vector(vector)
    assert result.requiring(TDX_REQUIRED).verdict is Verdict.VERIFIED
    assert not result.simulated
    assert [anchor.name for anchor in result.anchors] == ["intel-sgx-root"]
    assert result.facts["tdx.tcb_status"] == vector["status"]
    assert result.facts["tdx.advisory_ids"] == vector["advisory_ids"]
    assert str(result.facts["tdx.fmspc"]).upper() == vector["fmspc"]


@pytest.mark.parametrize("vector", [v for v in TDX_VECTORS if v["expect"] == "error"], ids=name_of)
def test_a_real_quote_that_its_collateral_does_not_cover_is_rejected(vector: Mapping[str, object]) -> None:
    result = from_vector(vector)
    assert failed(result) == {"tdx.quote"}
    assert str(vector["error_contains"]) in reason(result, "tdx.quote")


@pytest.mark.parametrize("vector", TDX_VECTORS, ids=name_of)
def test_the_parser_reads_the_stored_fields(vector: Mapping[str, object]) -> None:
    quote = parse_quote(stored_quote(name_of(vector)))
    assert quote.version == vector["quote_version"]
    for name in ("report_data", "mr_td", "mr_config_id", "td_attributes", "tee_tcb_svn"):
        assert getattr(quote, name).hex() == vector[name]
    assert [quote.rtmr0.hex(), quote.rtmr1.hex(), quote.rtmr2.hex(), quote.rtmr3.hex()] == [
        vector[f"rt_mr{index}"] for index in range(4)
    ]


def test_an_sgx_quote_is_not_a_tdx_quote() -> None:
    (vector,) = (vector for vector in VECTORS if vector["tee"] == "SGX")
    assert failed(from_vector(vector)) == {"tdx.parse"}


@pytest.mark.parametrize("vector", TDX_VECTORS, ids=name_of)
def test_all_stored_intel_collateral_has_expired_by_now(vector: Mapping[str, object]) -> None:
    assert failed(from_vector(vector, now=PRESENT)) == {"tdx.quote"}


@pytest.mark.parametrize("name", STORED_QUOTES)
def test_both_parsers_read_the_same_fields(name: str) -> None:
    quote = parse_quote(stored_quote(name))
    theirs = dcap_qvl.parse_quote(stored_quote(name))
    assert (quote.version, quote.qe_vendor_id) == (theirs.header.version, theirs.header.qe_vendor_id)
    assert quote.user_data == theirs.header.user_data
    for field in TD_REPORT_15:
        assert getattr(quote, field) == getattr(theirs.report, field.replace("rtmr", "rt_mr"), b""), field
    pem = theirs.cert_chain_pem_bytes()
    assert pem is not None
    assert len(quote.chain) == pem.count(b"-----BEGIN CERTIFICATE-----") == 3


@pytest.mark.parametrize(
    ("name", "trimmed_bytes", "tail_bytes"),
    [
        ("tdx/dcap-qvl_tdx_quote", 4936, 70),
        ("tdx/go-tdx-guest_quote_v5_sample.dat", 5006, 0),
        ("tdx/go-tdx-guest_cos-113-tdx-quote.dat", 4935, 3065),
        ("tdx/go-tdx-guest_tdx_prod_quote_SPR_E4.dat", 4935, 39),
    ],
)
def test_the_quote_ends_where_its_lengths_say(name: str, trimmed_bytes: int, tail_bytes: int) -> None:
    quote = parse_quote(stored_quote(name))
    assert (len(quote.trimmed), len(quote.tail)) == (trimmed_bytes, tail_bytes)


def test_text_appended_to_a_real_quote_is_refused() -> None:
    result = verified("tdx/go-tdx-guest_tdx_prod_quote_SPR_E4.dat", None, PRESENT)
    assert status(result, "tdx.tail") is Status.FAIL
    assert status(result, "tdx.quote") is Status.SKIP


def test_a_real_quote_without_collateral_is_neither_yes_nor_no() -> None:
    result = verified("tdx/go-tdx-guest_cos-113-tdx-quote.dat", None, PRESENT)
    assert failed(result) == set()
    assert status(result, "tdx.quote") is Status.SKIP
    assert result.requiring(TDX_REQUIRED).verdict is Verdict.PARTIAL


def test_the_stored_intel_root_is_the_one_that_is_built_in() -> None:
    root_der = (TEE / "tdx/intel_sgx_root_ca.der").read_bytes()
    root = Anchors.default().matching(root_der, "tdx")
    assert root is not None
    assert root.anchor.sha256 == INTEL_SGX_ROOT_SHA256
    with pytest.raises(ValueError, match="vendor's own root, intel-sgx-root"):
        Anchors.default().with_simulated(root_der)


@pytest.fixture(scope="module")
def simulated() -> Anchors:
    return Anchors.default().with_simulated((TEE / "sim/tdx_root_ca.der").read_bytes())


@pytest.mark.parametrize("name", ["sim/tdx_quote_v4.bin", "sim/tdx_quote_v5.bin"])
def test_a_stored_simulated_quote_verifies_under_its_pinned_root(name: str, simulated: Anchors) -> None:
    result = verified(name, "sim/tdx_collateral.json", SIMULATED_NOW, simulated)
    assert result.requiring(TDX_REQUIRED).verdict is Verdict.VERIFIED
    assert result.simulated
    assert result.anchors[0].sha256 == "22981face58dc1a8a13955128857e81b2d474022926064f484cda7b7733d6ca9"


@pytest.mark.parametrize("name", ["sim/tdx_quote_v4.bin", "sim/tdx_quote_v5.bin"])
def test_a_stored_simulated_quote_is_rejected_when_nobody_pinned_its_root(name: str) -> None:
    assert failed(verified(name, "sim/tdx_collateral.json", SIMULATED_NOW)) == {"tdx.root"}


@pytest.mark.parametrize("name", ["sim/tdx_quote_v4.bin", "sim/tdx_quote_v5.bin"])
def test_a_stored_simulated_quote_on_an_outdated_platform(name: str, simulated: Anchors) -> None:
    result = verified(name, "sim/tdx_collateral_outofdate.json", SIMULATED_NOW, simulated)
    assert failed(result) == {"tdx.tcb"}
    assert result.facts["tdx.tcb_status"] == "OutOfDate"
    assert result.facts["tdx.advisory_ids"] == ["INTEL-SA-00999"]


@pytest.mark.parametrize("name", ["sim/tdx_quote_v4.bin", "sim/tdx_quote_v5.bin"])
def test_a_stored_simulated_quote_of_a_revoked_platform(name: str, simulated: Anchors) -> None:
    result = verified(name, "sim/tdx_collateral_pck_revoked.json", SIMULATED_NOW, simulated)
    assert failed(result) == {"tdx.quote"}
    assert "CertRevoked" in reason(result, "tdx.quote")


def test_the_answer_of_a_simulated_guest_agent_verifies() -> None:
    anchors = Anchors.default().with_simulated((TEE / "sim/dstack_tdx_root_ca.der").read_bytes())
    result = verified("sim/dstack_getquote.json", "sim/dstack_tdx_collateral.json", SIMULATED_NOW, anchors)
    assert result.requiring(TDX_REQUIRED).verdict is Verdict.VERIFIED
