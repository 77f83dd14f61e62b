"""Collateral from a simulated PCCS over real sockets: whole, exact, kept, and given up in words."""

import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dcap_qvl
import httpx2
import pytest

from confide.collateral.cache import FileCache, MemoryCache
from confide.collateral.fetch import Fetcher, Unavailable
from confide.collateral.pcs import INTEL_PCS, INTEL_ROOT_CRL, Pcs, TdxCollateralSource
from confide.collateral.supply import Malformed
from confide.collateral.tdx import TdxCollateral, platform_of
from confide.errors import CannotTell, ConfigError
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import TdxQuote, parse_quote
from confide.evidence.result import Verdict
from confide.evidence.tdx import verify_tdx
from confide.simulator.pccs import PccsFault
from confide.simulator.tdx import SimulatedTdxPlatform, TdxFault
from vendors import NOW, SEED, Vendors

DAY_S = 24 * 60 * 60
WINDOW_S = 30 * DAY_S
Start = Callable[..., Vendors]

USELESS = [
    (PccsFault.SLOW, "longer than|cannot be asked"),
    (PccsFault.HUNG, "cannot be asked"),
    (PccsFault.CUT, "cannot be used"),
    (PccsFault.MALFORMED, "cannot be used"),
    (PccsFault.ENDLESS, "more than"),
    (PccsFault.ENCODED, "encodes"),
    (PccsFault.NOT_FOUND, r"does not know the platform FMSPC 51D000000000, platform CA.*404"),
    (PccsFault.FAILING, "status 500"),
    (PccsFault.LIMITED, "status 429"),
    (PccsFault.ELSEWHERE, r"redirects to elsewhere\.invalid"),
    (PccsFault.CIRCLE, "more than 3 times"),
    (PccsFault.NO_CHAIN, "there is no header"),
    (PccsFault.EXPIRED, "expected one that is at 1800000000"),
    (PccsFault.WRONG_CHAIN, "chain to the root"),
]


def source_of(vendors: Vendors, cache: FileCache | MemoryCache | None = None) -> TdxCollateralSource:
    return TdxCollateralSource(vendors.fetcher, cache or MemoryCache(), pcs=Pcs.at(vendors.url))


def verdict(platform: SimulatedTdxPlatform, quote: TdxQuote, collateral: TdxCollateral, now: int = NOW) -> Verdict:
    return verify_tdx(
        quote.trimmed,
        collateral=collateral.text,
        anchors=Anchors.of().with_simulated(platform.root_der),
        policy=TdxPolicy(),
        now=now,
    ).verdict


@pytest.mark.parametrize("root_crl_as_der", [False, True])
def test_what_is_fetched_verifies_the_quote(
    start: Start, quote: TdxQuote, platform: SimulatedTdxPlatform, root_crl_as_der: bool
) -> None:
    vendors = start(root_crl_as_der=root_crl_as_der)
    collateral = source_of(vendors).collateral(quote, now=NOW)
    assert verdict(platform, quote, collateral) is Verdict.VERIFIED
    assert collateral.members == platform.collateral(NOW)
    assert vendors.asked == [
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/tdx/certification/v4/tcb?fmspc=51D000000000&update=standard",
        "/tdx/certification/v4/qe/identity?update=standard",
        "/sgx/certification/v4/rootcacrl",
    ]


def test_it_is_kept_and_asked_for_daily(start: Start, quote: TdxQuote, tmp_path: Path) -> None:
    vendors = start()
    cache = FileCache(tmp_path / "cache")
    first = source_of(vendors, cache).collateral(quote, now=NOW)
    assert source_of(vendors, cache).collateral(quote, now=NOW + DAY_S - 1) == first
    assert len(vendors.asked) == 4
    vendors.services.now = NOW + DAY_S
    assert source_of(vendors, cache).collateral(quote, now=NOW + DAY_S) != first
    assert len(vendors.asked) == 8
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("fault", "message"), USELESS, ids=lambda value: getattr(value, "name", ""))
def test_a_service_that_is_of_no_use_is_given_up_in_words(
    start: Start, quote: TdxQuote, fault: PccsFault, message: str
) -> None:
    vendors = start(fault=fault)
    if fault is PccsFault.SLOW:
        vendors.fetcher = Fetcher(vendors.fetcher.http, whole_s=0.3)
    cache = MemoryCache()
    with pytest.raises(Unavailable, match=message) as raised:
        source_of(vendors, cache).collateral(quote, now=NOW)
    assert raised.value.remedy
    assert raised.value.exit_status == 3
    assert raised.value.message.isprintable()
    assert cache.names == (), "what is of no use is not kept"


@pytest.mark.parametrize("fault", [fault for fault, _ in USELESS], ids=lambda fault: fault.name)
def test_meanwhile_the_old_one_is_given_until_it_really_expires(
    start: Start, quote: TdxQuote, platform: SimulatedTdxPlatform, fault: PccsFault
) -> None:
    vendors = start()
    if fault is PccsFault.SLOW:
        vendors.fetcher = Fetcher(vendors.fetcher.http, whole_s=1.0)
    source = source_of(vendors)
    old = source.collateral(quote, now=NOW)
    vendors.services.fault = fault
    vendors.services.now = last = NOW + WINDOW_S - 1
    assert source.collateral(quote, now=last) == old
    assert verdict(platform, quote, old, last) is Verdict.VERIFIED
    with pytest.raises(CannotTell):
        source.collateral(quote, now=last + 1)
    assert verdict(platform, quote, old, last + 1) is Verdict.NOT_VERIFIED


def test_after_a_failure_it_is_not_asked_again_at_once(start: Start, quote: TdxQuote) -> None:
    vendors = start(fault=PccsFault.FAILING)
    source = source_of(vendors)
    for _ in range(3):
        with pytest.raises(CannotTell):
            source.collateral(quote, now=NOW)
    assert len(vendors.asked) == 1
    vendors.services.fault = None
    vendors.clock_s += 61
    source.collateral(quote, now=NOW)
    assert len(vendors.asked) == 5


def test_it_is_left_alone_for_as_long_as_it_wants(start: Start, quote: TdxQuote) -> None:
    vendors = start(fault=PccsFault.LIMITED)
    source = source_of(vendors)
    with pytest.raises(CannotTell):
        source.collateral(quote, now=NOW)
    vendors.services.fault = None
    vendors.clock_s += 119
    with pytest.raises(CannotTell, match="asked again in 1 s"):
        source.collateral(quote, now=NOW)
    vendors.clock_s += 2
    source.collateral(quote, now=NOW)


def test_where_files_cannot_be_written_the_service_is_not_asked_every_time(
    start: Start, quote: TdxQuote, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    vendors = start()
    source = source_of(vendors, FileCache(in_the_way))
    assert source.collateral(quote, now=NOW) == source.collateral(quote, now=NOW)
    assert len(vendors.asked) == 4


def test_threads_that_have_nothing_wait_for_the_one_that_fetches(start: Start, quote: TdxQuote) -> None:
    vendors = start()
    source = source_of(vendors)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: source.collateral(quote, now=NOW), range(8)))
    assert len(set(found)) == 1
    assert len(vendors.asked) == 4


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize("with_fetcher", [True, False])
def test_offline_no_socket_is_opened_and_what_is_missing_is_named(quote: TdxQuote, with_fetcher: bool) -> None:
    with httpx2.Client(trust_env=False) as http:
        fetcher = Fetcher(http) if with_fetcher else None
        source = TdxCollateralSource(fetcher, MemoryCache(), offline=with_fetcher)
        with pytest.raises(CannotTell, match="collateral for FMSPC 51D000000000, platform CA is not kept") as raised:
            source.collateral(quote, now=NOW)
    assert raised.value.remedy is not None
    assert "collateral that was kept" in raised.value.remedy
    with pytest.raises(AssertionError, match="a socket was opened"):
        socket.socket()


def test_offline_what_is_kept_is_given_while_it_is_good(start: Start, quote: TdxQuote, tmp_path: Path) -> None:
    vendors = start()
    kept = source_of(vendors, FileCache(tmp_path)).collateral(quote, now=NOW)
    offline = TdxCollateralSource(None, FileCache(tmp_path), pcs=Pcs.at(vendors.url))
    assert offline.collateral(quote, now=NOW + WINDOW_S - 1) == kept
    with pytest.raises(CannotTell):
        offline.collateral(quote, now=NOW + WINDOW_S)
    with pytest.raises(CannotTell):
        offline.collateral(quote, now=NOW - 1)


@pytest.mark.parametrize(
    "fault", [TdxFault.FMSPC, TdxFault.TCB_SIGNER, TdxFault.EMPTY_CRL, TdxFault.ROOT_CRL_EXPIRED, TdxFault.FUTURE]
)
def test_collateral_that_cannot_be_right_is_not_taken(start: Start, quote: TdxQuote, fault: TdxFault) -> None:
    vendors = start(platform=SimulatedTdxPlatform(SEED, now=NOW, fault=fault))
    with pytest.raises(Unavailable):
        source_of(vendors).collateral(quote, now=NOW)


@pytest.mark.parametrize("fault", [TdxFault.TCB_INFO, TdxFault.QE_IDENTITY, TdxFault.PCK_CA_REVOKED])
def test_what_only_a_verifier_can_see_it_sees(
    start: Start, quote: TdxQuote, platform: SimulatedTdxPlatform, fault: TdxFault
) -> None:
    vendors = start(platform=SimulatedTdxPlatform(SEED, now=NOW, fault=fault))
    collateral = source_of(vendors).collateral(quote, now=NOW)
    assert verdict(platform, quote, collateral) is Verdict.NOT_VERIFIED


def test_a_platform_of_another_root_has_entries_of_its_own(start: Start, quote: TdxQuote) -> None:
    vendors, cache = start(), MemoryCache()
    source_of(vendors, cache).collateral(quote, now=NOW)
    other = SimulatedTdxPlatform(b"\x22" * 32, now=NOW)
    with pytest.raises(Unavailable, match="chain to the root"):
        source_of(vendors, cache).collateral(parse_quote(other.quote(bytes(64))), now=NOW)
    theirs = start(platform=other)
    source_of(theirs, cache).collateral(parse_quote(other.quote(bytes(64))), now=NOW)
    assert len(cache.names) == 2


def test_a_quote_whose_certificates_say_nothing_is_the_callers_mistake(quote: TdxQuote) -> None:
    broken = replace(quote, trimmed=quote.trimmed.replace(b"-----BEGIN CERT", b"-----BEGIN CORT"))
    with pytest.raises(Malformed, match="PCK certificate cannot be read"):
        platform_of(broken)


def test_intels_own_service_has_the_root_list_elsewhere() -> None:
    assert Pcs.at(f"{INTEL_PCS}/") == Pcs(INTEL_PCS, INTEL_ROOT_CRL)
    assert Pcs.at("https://pccs.example").root_crl == "https://pccs.example/sgx/certification/v4/rootcacrl"


@pytest.mark.parametrize(
    "url", ["http://pccs.example", "pccs.example", "", "https://", "https://u:p@x", "https://x?y", "ftp://x"]
)
def test_an_address_in_the_clear_or_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="the provisioning service"):
        Pcs.at(url)


def test_the_validity_is_the_verifiers(quote: TdxQuote, platform: SimulatedTdxPlatform) -> None:
    collateral = TdxCollateral.parse(json.dumps(platform.collateral(NOW)))
    assert collateral.validity() == (NOW, NOW + WINDOW_S)
    assert dcap_qvl.QuoteCollateralV3.from_json(collateral.text).to_json()
    result = verify_tdx(
        quote.trimmed,
        collateral=collateral.text,
        anchors=Anchors.of().with_simulated(platform.root_der),
        policy=TdxPolicy(),
        now=NOW,
    )
    assert result.facts["tdx.collateral_expires_at"] == collateral.validity()[1]
