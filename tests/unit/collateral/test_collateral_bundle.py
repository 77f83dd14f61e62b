"""The offline collateral bundle: what it carries verifies without a socket, and an anchor it cannot be."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.collateral.bundle import CollateralBundle, bundle_of, read_bundle, write_bundle
from confide.collateral.kds import SnpCollateral
from confide.collateral.tdx import TdxCollateral
from confide.errors import CannotTell, ConfigError
from confide.evidence.policy import Anchors, SnpPolicy, TdxPolicy
from confide.evidence.quote import TdxQuote, parse_quote
from confide.evidence.result import Verdict
from confide.evidence.snp import verify_snp
from confide.evidence.snp_report import Product, parse_snp_report
from confide.evidence.tdx import verify_tdx
from confide.simulator.nras import SimulatedNras
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from vendors import NOW, SEED

DAY_S = 24 * 60 * 60
RESPONSE = b'[["JWT", "a.b.c"],{"GPU-0":"d.e.f"}]'


def tdx_of(platform: SimulatedTdxPlatform, now: int = NOW) -> TdxCollateral:
    return TdxCollateral.parse(json.dumps(platform.collateral(now)))


@pytest.fixture(scope="module")
def bundle(platform: SimulatedTdxPlatform, chip: SimulatedSnpPlatform) -> CollateralBundle:
    snp = SnpCollateral(product=Product.MILAN, vcek=chip.vcek_pem, cert_chain=chip.chain_pem, crl=chip.crl(NOW).hex())
    return bundle_of(created_at=NOW, tdx=(tdx_of(platform),), snp=(snp,), nras_response=RESPONSE)


def document(bundle: CollateralBundle) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(write_bundle(bundle))
    return decoded


@pytest.mark.usefixtures("no_sockets")
def test_what_it_carries_verifies(
    bundle: CollateralBundle, platform: SimulatedTdxPlatform, quote: TdxQuote, chip: SimulatedSnpPlatform
) -> None:
    read = read_bundle(write_bundle(bundle))
    assert read == bundle
    tdx = verify_tdx(
        quote.trimmed,
        collateral=read.tdx_for(quote, now=NOW).text,
        anchors=Anchors.of().with_simulated(platform.root_der),
        policy=TdxPolicy(),
        now=NOW,
    )
    raw = chip.report(bytes(64))
    found = read.snp_for(parse_snp_report(raw))
    snp = verify_snp(
        raw,
        vcek=found.vcek.encode(),
        chain=found.cert_chain.encode(),
        crl=found.crl_der,
        anchors=Anchors.of().with_simulated(chip.root_der),
        policy=SnpPolicy(require_crl=True),
        now=NOW,
    )
    assert (tdx.verdict, snp.verdict) == (Verdict.VERIFIED, Verdict.VERIFIED)
    assert read.nras_response == RESPONSE


def test_its_shape_is_the_documented_one(bundle: CollateralBundle) -> None:
    written = document(bundle)
    assert list(written) == ["version", "created_at", "tdx", "snp", "nras"]
    assert (written["version"], written["created_at"]) == (1, NOW)
    assert len(written["tdx"][0]) == 9
    assert set(written["snp"][0]) == {"product", "vcek", "cert_chain", "crl"}
    assert written["nras"] == {"response": json.loads(RESPONSE)}


def test_of_several_the_one_that_is_good_then_is_given(platform: SimulatedTdxPlatform, quote: TdxQuote) -> None:
    other = SimulatedTdxPlatform(b"\x22" * 32, now=NOW)
    old, new, later = (tdx_of(platform, NOW + days * DAY_S) for days in (-40, 0, 40))
    bundle = bundle_of(created_at=NOW, tdx=(tdx_of(other), later, old, new))
    assert bundle.tdx_for(quote, now=NOW) == new
    assert bundle.tdx_for(quote, now=NOW - 20 * DAY_S) == old
    assert bundle.tdx_for(quote, now=NOW + 100 * DAY_S) == later
    assert bundle.tdx_for(parse_quote(other.quote(bytes(64))), now=NOW) == tdx_of(other)


def test_what_it_lacks_is_named(quote: TdxQuote, chip: SimulatedSnpPlatform) -> None:
    empty = read_bundle(b'{"version":1,"created_at":0}')
    with pytest.raises(CannotTell, match="collateral for FMSPC 51D000000000, platform CA"):
        empty.tdx_for(quote, now=NOW)
    with pytest.raises(CannotTell, match="the VCEK of the chip"):
        empty.snp_for(parse_snp_report(chip.report(bytes(64))))
    assert empty.nras_response is None


def test_a_vcek_of_another_chip_or_tcb_is_not_given(bundle: CollateralBundle) -> None:
    knobs: list[dict[str, Any]] = [{"tcb_behind": True}, {"product": "turin"}, {"version": 2, "tcb_behind": True}]
    for knob in knobs:
        other = SimulatedSnpPlatform(SEED, now=NOW, **knob)
        with pytest.raises(CannotTell):
            bundle.snp_for(parse_snp_report(other.report(bytes(64))))


def test_it_may_hold_things_that_cannot_be_read_for_others(
    bundle: CollateralBundle, platform: SimulatedTdxPlatform, quote: TdxQuote, chip: SimulatedSnpPlatform
) -> None:
    written = document(bundle)
    broken_tdx = [{**written["tdx"][0], member: "?"} for member in ("tcb_info", "pck_crl", "qe_identity_issuer_chain")]
    broken_snp = [{**written["snp"][0], "vcek": vcek} for vcek in ("", "?", chip.chain_pem)]
    written |= {"tdx": broken_tdx + written["tdx"], "snp": broken_snp + written["snp"]}
    read = read_bundle(json.dumps(written).encode())
    assert read.tdx_for(quote, now=NOW) == tdx_of(platform)
    assert read.snp_for(parse_snp_report(chip.report(bytes(64)))).vcek == chip.vcek_pem


@pytest.mark.parametrize("where", ["top", "nras"])
@pytest.mark.parametrize("name", ["jwks", "keys"])
def test_a_key_set_is_refused_and_not_read_past(bundle: CollateralBundle, where: str, name: str) -> None:
    written = document(bundle)
    part = written if where == "top" else written["nras"]
    part[name] = json.loads(SimulatedNras(SEED).jwks())
    with pytest.raises(ConfigError, match="which is a trust anchor") as refused:
        read_bundle(json.dumps(written).encode())
    assert "the key set that you fetched yourself" in str(refused.value.remedy)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"version":1}', "created_at"),
        (b'{"version":2,"created_at":0}', "has version 2, expected 1"),
        (b'{"version":1,"created_at":0,"trust_root":"x"}', "trust_root"),
        (b'{"version":1,"created_at":0,"tdx":[{}]}', "pck_crl_issuer_chain"),
        (b'{"version":1,"created_at":0,"snp":[{"product":"epyc","vcek":"","cert_chain":""}]}', "epyc"),
        (b'{"version":1,"created_at":0,"snp":[{"product":"milan","vcek":"","cert_chain":"","crl":"?"}]}', "not hex"),
        (b'{"version":1,"created_at":0,"nras":{}}', "response"),
        (b" " * (16 * 1024 * 1024 + 1), "expected at most"),
    ],
    ids=range(12),
)
def test_another_file_is_refused_in_words(data: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        read_bundle(data)
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 600


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        read_bundle(data)


def test_an_answer_that_is_no_json_cannot_be_put_in() -> None:
    with pytest.raises(ValueError, match="JSON"):
        bundle_of(created_at=NOW, nras_response=b"{")
