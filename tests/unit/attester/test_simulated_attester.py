"""The simulated attester quotes what it was given, under a root that stays, and says that it is simulated."""

import asyncio
import hashlib
import json
import stat
from pathlib import Path

import dcap_qvl
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from confide.attester.base import MAX_WAITING
from confide.attester.seed import load_seed
from confide.attester.simulated import SimulatedAttester, require_report_data
from confide.errors import ConfigError, InternalError, NotReady
from confide.protocol.legacy_report import attestation, legacy_report, pick_attestation
from confide.protocol.signature import Algo
from confide.protocol.statement import legacy_report_data
from confide.simulator.tdx import SimulatedTdxPlatform

NOW = 1_800_000_000
DAY = 24 * 60 * 60
REPORT_DATA = bytes(range(64))


class Clock:
    """Unix seconds that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def attester(tmp_path: Path, clock: Clock) -> SimulatedAttester:
    return SimulatedAttester(tmp_path, clock)


def root_sha256(home: Path) -> str:
    certificate = x509.load_pem_x509_certificate((home / "simulator" / "root.pem").read_bytes())
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def verify(quote: bytes, collateral: dict[str, str] | None, root_pem: bytes, now: int) -> str:
    """The TCB status that an independent DCAP verifier finds, under the root that was published."""
    root = x509.load_pem_x509_certificate(root_pem).public_bytes(Encoding.DER)
    parsed = dcap_qvl.QuoteCollateralV3.from_json(json.dumps(collateral))
    report = dcap_qvl.verify_with_root_ca(quote, parsed, root, now)
    return str(report.status)


async def test_the_quote_holds_exactly_what_was_given(attester: SimulatedAttester) -> None:
    evidence = await attester.attest(REPORT_DATA)
    assert evidence.quote[48 + 520 : 48 + 584] == REPORT_DATA
    assert evidence.tee_type == "tdx"


async def test_evidence_and_attester_say_that_they_are_simulated(attester: SimulatedAttester) -> None:
    assert attester.simulated is True
    assert attester.kind == "simulated"
    assert (await attester.attest(REPORT_DATA)).simulated is True


async def test_what_travels_with_the_quote_is_json(attester: SimulatedAttester) -> None:
    evidence = await attester.attest(REPORT_DATA)
    assert isinstance(json.loads(evidence.event_log), list)
    assert isinstance(json.loads(evidence.vm_config), dict)
    assert json.loads(json.dumps(evidence.info)) == evidence.info
    assert {"app_id", "compose_hash", "tcb_info"} <= set(evidence.info)


async def test_the_evidence_verifies_under_the_published_root(attester: SimulatedAttester, tmp_path: Path) -> None:
    evidence = await attester.attest(REPORT_DATA)
    root_pem = (tmp_path / "simulator" / "root.pem").read_bytes()
    assert verify(evidence.quote, evidence.collateral, root_pem, NOW) == "UpToDate"


async def test_it_verifies_where_the_clock_runs_half_an_hour_behind(
    attester: SimulatedAttester, tmp_path: Path
) -> None:
    evidence = await attester.attest(REPORT_DATA)
    root_pem = (tmp_path / "simulator" / "root.pem").read_bytes()
    assert verify(evidence.quote, evidence.collateral, root_pem, NOW - 1800) == "UpToDate"


async def test_it_does_not_verify_under_another_root(attester: SimulatedAttester, tmp_path: Path) -> None:
    evidence = await attester.attest(REPORT_DATA)
    (tmp_path / "other").mkdir()
    SimulatedAttester(tmp_path / "other", Clock())
    other_root = (tmp_path / "other" / "simulator" / "root.pem").read_bytes()
    with pytest.raises(ValueError):
        verify(evidence.quote, evidence.collateral, other_root, NOW)


@pytest.mark.parametrize("length", [0, 32, 63, 65])
async def test_report_data_has_64_bytes(attester: SimulatedAttester, length: int) -> None:
    with pytest.raises(ValueError, match=f"got {length}"):
        await attester.attest(b"r" * length)


async def test_many_requests_at_once_get_each_their_own_quote(attester: SimulatedAttester) -> None:
    asked = [bytes([number]) * 64 for number in range(20)]
    evidence = await asyncio.gather(*(attester.attest(report_data) for report_data in asked))
    assert [each.quote[568:632] for each in evidence] == asked


@pytest.mark.parametrize(("most", "options"), [(MAX_WAITING, {}), (2, {"max_waiting": 2})])
async def test_too_many_requests_are_told_to_come_back(
    tmp_path: Path, clock: Clock, most: int, options: dict[str, int]
) -> None:
    attester = SimulatedAttester(tmp_path, clock, **options)
    asked = (attester.attest(REPORT_DATA) for _ in range(most + 3))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, NotReady)]
    assert len(refused) == 3
    assert all(each.retry_after_s for each in refused)
    assert (await attester.attest(REPORT_DATA)).quote  # and afterwards there is room again


async def test_a_caller_that_gives_up_leaves_the_attester_working(attester: SimulatedAttester) -> None:
    waiting = [asyncio.create_task(attester.attest(REPORT_DATA)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (await attester.attest(REPORT_DATA)).quote


async def test_a_platform_that_takes_too_long_is_told_apart_from_a_failure(tmp_path: Path, clock: Clock) -> None:
    attester = SimulatedAttester(tmp_path, clock, deadline_s=0)
    with pytest.raises(NotReady, match="within 0 s") as caught:
        await attester.attest(REPORT_DATA)
    assert caught.value.retry_after_s


def test_it_works_from_one_event_loop_after_another(attester: SimulatedAttester) -> None:
    for _ in range(2):
        assert asyncio.run(attester.attest(REPORT_DATA)).quote


@pytest.mark.parametrize("passed_s", [DAY, 30 * DAY, -1])
async def test_collateral_is_kept_for_a_day(attester: SimulatedAttester, clock: Clock, passed_s: int) -> None:
    first = (await attester.attest(REPORT_DATA)).collateral
    clock.now += DAY - 1
    assert (await attester.attest(REPORT_DATA)).collateral == first
    clock.now = NOW + passed_s
    assert (await attester.attest(REPORT_DATA)).collateral != first


async def test_evidence_still_verifies_after_a_month_of_running(
    attester: SimulatedAttester, clock: Clock, tmp_path: Path
) -> None:
    clock.now += 31 * DAY
    evidence = await attester.attest(REPORT_DATA)
    root_pem = (tmp_path / "simulator" / "root.pem").read_bytes()
    assert verify(evidence.quote, evidence.collateral, root_pem, clock.now) == "UpToDate"


async def test_evidence_cannot_be_changed_for_the_next_caller(attester: SimulatedAttester) -> None:
    evidence = await attester.attest(REPORT_DATA)
    assert evidence.collateral is not None
    evidence.collateral.clear()
    evidence.info.clear()
    again = await attester.attest(REPORT_DATA)
    assert again.collateral
    assert again.info


def test_keys_and_root_stay_the_same_across_restarts(tmp_path: Path, clock: Clock) -> None:
    first = SimulatedAttester(tmp_path, clock)
    root, written_at = root_sha256(tmp_path), (tmp_path / "simulator" / "root.pem").stat().st_mtime_ns
    clock.now += 40 * DAY
    second = SimulatedAttester(tmp_path, clock)
    for algo in Algo:
        assert first.keys.address(algo) == second.keys.address(algo)
    assert root_sha256(tmp_path) == root
    assert (tmp_path / "simulator" / "root.pem").stat().st_mtime_ns == written_at


def test_the_published_root_is_the_platforms(attester: SimulatedAttester, tmp_path: Path) -> None:
    platform = SimulatedTdxPlatform(load_seed(tmp_path / "simulator"), now=NOW)
    assert root_sha256(tmp_path) == platform.root_sha256_hex
    assert stat.S_IMODE((tmp_path / "simulator" / "root.pem").stat().st_mode) == 0o644


@pytest.mark.parametrize("found", [b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\n"])
def test_a_root_file_that_differs_is_put_right(tmp_path: Path, clock: Clock, found: bytes) -> None:
    SimulatedAttester(tmp_path, clock)
    root = root_sha256(tmp_path)
    (tmp_path / "simulator" / "root.pem").write_bytes(found)
    SimulatedAttester(tmp_path, clock)
    assert root_sha256(tmp_path) == root
    assert sorted(path.name for path in (tmp_path / "simulator").iterdir()) == ["root.pem", "seed"]


def test_a_root_that_cannot_be_written_is_a_clear_refusal(tmp_path: Path, clock: Clock) -> None:
    load_seed(tmp_path / "simulator")
    (tmp_path / "simulator" / "root.pem").mkdir()
    with pytest.raises(ConfigError, match=r"root\.pem"):
        SimulatedAttester(tmp_path, clock)


async def test_a_quote_over_other_data_is_never_served(attester: SimulatedAttester) -> None:
    quote = (await attester.attest(REPORT_DATA)).quote
    require_report_data(quote, REPORT_DATA)
    for wrong, asked in ((quote, bytes(64)), (quote[:600], REPORT_DATA), (b"\x05\0" + quote[2:], REPORT_DATA)):
        with pytest.raises(InternalError):
            require_report_data(wrong, asked)


@pytest.mark.parametrize("algo", Algo)
async def test_a_whole_report_comes_out_of_it(attester: SimulatedAttester, algo: Algo) -> None:
    nonce = bytes(range(32))
    report_data = legacy_report_data(attester.keys.identity(algo), nonce)
    evidence = await attester.attest(report_data)
    entry = attestation(
        signing_address=attester.keys.address(algo),
        signing_algo=algo,
        signing_public_key=attester.keys.public_key_hex(algo),
        nonce=nonce,
        quote=evidence.quote,
        report_data=report_data,
        event_log=evidence.event_log,
        vm_config=evidence.vm_config,
        info=evidence.info,
        simulated=evidence.simulated,
        collateral=evidence.collateral,
    )
    report = json.loads(json.dumps(legacy_report(entry, model_name="a/model")))
    picked = pick_attestation(report, attester.keys.address(algo))
    assert bytes.fromhex(str(picked["intel_quote"]))[568:632] == report_data
    assert picked["simulated"] is True
