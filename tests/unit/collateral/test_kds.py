"""AMD's service, simulated: a VCEK for a chip and its TCB, asked for once, and never more often than it likes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from confide.collateral.cache import FileCache, MemoryCache
from confide.collateral.fetch import Fetcher, NotKnown, Unavailable
from confide.collateral.kds import SnpCollateralSource, chip_of
from confide.errors import CannotTell
from confide.evidence.policy import Anchors, SnpPolicy
from confide.evidence.result import Verdict
from confide.evidence.snp import verify_snp
from confide.evidence.snp_report import Product, SnpReport, parse_snp_report
from confide.simulator.pccs import PccsFault
from confide.simulator.snp import SimulatedSnpPlatform
from shared_data import TEE
from vendors import NOW, SEED, Vendors

SNP = TEE / "snp"
DAY_S = 24 * 60 * 60
YEAR_S = 365 * DAY_S
Start = Callable[..., Vendors]


def report_of(chip: SimulatedSnpPlatform) -> SnpReport:
    return parse_snp_report(chip.report(bytes(64)))


def source_of(vendors: Vendors, cache: FileCache | MemoryCache | None = None) -> SnpCollateralSource:
    return SnpCollateralSource(vendors.fetcher, cache or MemoryCache(), base=vendors.url)


@pytest.mark.parametrize("product", [Product.MILAN, Product.TURIN])
def test_what_is_fetched_verifies_the_report(start: Start, product: Product) -> None:
    chip = SimulatedSnpPlatform(SEED, now=NOW, product=product, serial_zero=True)
    vendors = start(snp=chip)
    found = source_of(vendors).collateral(report_of(chip), now=NOW)
    result = verify_snp(
        chip.report(bytes(64)),
        vcek=found.vcek.encode(),
        chain=found.cert_chain.encode(),
        crl=found.crl_der,
        anchors=Anchors.of().with_simulated(chip.root_der),
        policy=SnpPolicy(require_crl=True),
        now=NOW,
    )
    assert result.verdict is Verdict.VERIFIED
    assert len(vendors.asked) == 3


def test_the_query_is_what_amd_documents(start: Start, chip: SimulatedSnpPlatform) -> None:
    vendors = start(snp=chip)
    source_of(vendors).collateral(report_of(chip), now=NOW)
    chip_id = report_of(chip).chip_id.hex()
    assert vendors.asked == [
        f"/vcek/v1/Milan/{chip_id}?blSPL=4&teeSPL=0&snpSPL=24&ucodeSPL=213",
        "/vcek/v1/Milan/cert_chain",
        "/vcek/v1/Milan/crl",
    ]


def test_a_vcek_is_asked_for_once_in_its_life_and_the_revocation_list_daily(
    start: Start, chip: SimulatedSnpPlatform, tmp_path: Path
) -> None:
    vendors = start(snp=chip)
    source_of(vendors, FileCache(tmp_path)).collateral(report_of(chip), now=NOW)
    vendors.services.now = NOW + YEAR_S
    source_of(vendors, FileCache(tmp_path)).collateral(report_of(chip), now=NOW + YEAR_S)
    assert [path.rpartition("/")[2] for path in vendors.asked[1:]] == ["cert_chain", "crl", "crl"]


def test_another_reported_tcb_has_another_vcek(start: Start, chip: SimulatedSnpPlatform) -> None:
    behind = SimulatedSnpPlatform(SEED, now=NOW, serial_zero=True, tcb_behind=True)
    vendors, cache = start(snp=chip), MemoryCache()
    source_of(vendors, cache).collateral(report_of(chip), now=NOW)
    with pytest.raises(NotKnown, match=r"the VCEK of the milan chip .* at .*snpSPL=23"):
        source_of(vendors, cache).collateral(report_of(behind), now=NOW)


def test_a_certificate_of_another_chip_is_not_kept(start: Start, chip: SimulatedSnpPlatform) -> None:
    vendors = start(snp=SimulatedSnpPlatform(SEED, now=NOW, serial_zero=True, other_chip=True))
    with pytest.raises(Unavailable, match="got a key for the chip"):
        source_of(vendors).collateral(report_of(chip), now=NOW)


def test_a_service_that_wants_to_be_left_alone_is_for_every_chip(start: Start, chip: SimulatedSnpPlatform) -> None:
    vendors = start(snp=chip, fault=PccsFault.LIMITED)
    source = source_of(vendors)
    with pytest.raises(CannotTell):
        source.collateral(report_of(chip), now=NOW)
    other = SimulatedSnpPlatform(SEED, now=NOW, serial_zero=True, tcb_behind=True)
    with pytest.raises(CannotTell, match="is asked again in 120 s"):
        source.collateral(report_of(other), now=NOW)
    assert len(vendors.asked) == 1
    vendors.services.fault = None
    vendors.clock_s += 121
    assert source.collateral(report_of(chip), now=NOW).crl


def test_without_a_revocation_list_the_policy_decides(start: Start, chip: SimulatedSnpPlatform) -> None:
    vendors = start(snp=chip)
    source = source_of(vendors)
    vcek = source.vcek(report_of(chip), chip_of(report_of(chip), None), now=NOW)
    chain = source.cert_chain(Product.MILAN, now=NOW)
    vendors.services.fault = PccsFault.EXPIRED
    found = source.collateral(report_of(chip), now=NOW)
    assert (found.vcek, found.cert_chain, found.crl, found.crl_der) == (vcek, chain, None, None)


@pytest.mark.parametrize(
    "fault", [PccsFault.MALFORMED, PccsFault.CUT, PccsFault.NOT_FOUND, PccsFault.HUNG, PccsFault.ENDLESS]
)
def test_a_service_that_is_of_no_use_is_given_up(start: Start, chip: SimulatedSnpPlatform, fault: PccsFault) -> None:
    cache = MemoryCache()
    with pytest.raises(Unavailable) as raised:
        source_of(start(snp=chip, fault=fault), cache).collateral(report_of(chip), now=NOW)
    assert raised.value.remedy
    assert cache.names == ()


@pytest.mark.usefixtures("no_sockets")
def test_offline_what_is_missing_is_named(chip: SimulatedSnpPlatform) -> None:
    source = SnpCollateralSource(None, MemoryCache(), offline=True)
    with pytest.raises(CannotTell, match="the VCEK of the milan chip"):
        source.collateral(report_of(chip), now=NOW)


def test_a_report_that_names_no_chip_cannot_be_asked_about(chip: SimulatedSnpPlatform) -> None:
    lent = report_of(SimulatedSnpPlatform(SEED, now=NOW, vlek=True))
    for report in (lent, replace(report_of(chip), chip_id=bytes(64))):
        with pytest.raises(CannotTell, match="not signed by the chip's own key, or hides the chip") as raised:
            chip_of(report, None)
        assert "auxblob" in str(raised.value.remedy)


def test_version_2_does_not_say_of_which_product_it_is() -> None:
    report = report_of(SimulatedSnpPlatform(SEED, now=NOW, version=2))
    with pytest.raises(CannotTell, match="does not say of which product"):
        chip_of(report, None)
    assert chip_of(report, Product.MILAN).product is Product.MILAN


@pytest.mark.skipif(not SNP.is_dir(), reason="the stored TEE samples are not beside this repository")
def test_a_real_vcek_is_taken_for_its_report_and_asked_for_as_public_clients_do() -> None:
    report = parse_snp_report((SNP / "dstack_sev_snp_attestation.bin").read_bytes()[4:1188])
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(str(request.url))
        name = "go-sev-guest_ask_ark_milan.pem" if "cert_chain" in str(request.url) else "dstack_sev_snp_vcek.pem"
        return httpx2.Response(404 if str(request.url).endswith("crl") else 200, content=(SNP / name).read_bytes())

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        found = SnpCollateralSource(Fetcher(http), MemoryCache()).collateral(report, now=NOW)
    assert seen[0] == (
        f"https://kdsintf.amd.com/vcek/v1/Milan/{report.chip_id.hex()}?"
        f"blSPL={report.reported_tcb[0]}&teeSPL={report.reported_tcb[1]}"
        f"&snpSPL={report.reported_tcb[6]}&ucodeSPL={report.reported_tcb[7]}"
    )
    result = verify_snp(
        (SNP / "dstack_sev_snp_attestation.bin").read_bytes()[4:1188],
        vcek=found.vcek.encode(),
        chain=found.cert_chain.encode(),
        crl=None,
        anchors=Anchors.of("amd"),
        policy=SnpPolicy(require_committed=False),
        now=NOW,
    )
    assert not result.rejected
