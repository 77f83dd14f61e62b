"""The attester of a bare TDX or SNP guest: keys of this process alone, evidence over exactly what was asked."""

import asyncio
import errno
import pickle
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from confide.attester.base import MAX_WAITING
from confide.attester.keys import DrawnSeed
from confide.attester.one_thread import OneThread
from confide.attester.tsm import TsmAttester, pem, snp_certificates
from confide.attester.tsm_report import TsmReader
from confide.errors import ConfigError, InternalError, NotReady
from confide.evidence.quote import parse_quote
from confide.evidence.result import Status
from confide.protocol.signature import Algo
from confide.simulator.configfs import ConfigfsFaults, SimulatedConfigfs
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from snp_builders import NOW, REPORT_DATA, failing, platform, statuses, verified

SEED = bytes(range(32))


@pytest.fixture(scope="module")
def tdx() -> SimulatedTdxPlatform:
    return SimulatedTdxPlatform(SEED, now=NOW)


@pytest.fixture(scope="module")
def snp() -> SimulatedSnpPlatform:
    return platform()


async def opened(
    files: SimulatedConfigfs, seed: DrawnSeed | None = None, *, max_waiting: int = MAX_WAITING
) -> TsmAttester:
    reader = TsmReader(files, Path("/tsm"), pause=lambda _: None)
    return await TsmAttester.open(reader, seed=seed, max_waiting=max_waiting)


async def test_a_tdx_guest_quotes_exactly_what_was_given(tdx: SimulatedTdxPlatform) -> None:
    attester = await opened(SimulatedConfigfs.tdx(tdx))
    assert (attester.kind, attester.tee_type, attester.simulated) == ("tsm", "tdx", False)
    evidence = await attester.attest(REPORT_DATA)
    assert parse_quote(evidence.quote).report_data == REPORT_DATA == evidence.report_data
    members = evidence.aci_members()
    assert set(members) == {"quote", "quote_report_data"}  # nobody keeps a log here, and none is made up


async def test_a_padded_quote_is_served_as_the_platform_gave_it(tdx: SimulatedTdxPlatform) -> None:
    attester = await opened(SimulatedConfigfs.tdx(tdx, ConfigfsFaults(padding=1000)))
    evidence = await attester.attest(REPORT_DATA)
    assert evidence.quote == tdx.quote(REPORT_DATA) + bytes(1000)
    assert parse_quote(evidence.quote).report_data == REPORT_DATA


async def test_an_snp_guest_reports_with_its_certificates_and_verifies(snp: SimulatedSnpPlatform) -> None:
    attester = await opened(SimulatedConfigfs.snp(snp))
    assert (attester.kind, attester.tee_type) == ("tsm", "sev_snp")
    evidence = await attester.attest(REPORT_DATA)
    members = evidence.aci_members()
    assert set(members) == {"snp_report", "quote_report_data", "vcek", "cert_chain"}
    result = verified(
        bytes.fromhex(str(members["snp_report"])),
        of=snp,
        vcek=str(members["vcek"]).encode(),
        chain=str(members["cert_chain"]).encode(),
    )
    assert (failing(result), set(statuses(result).values())) == (set(), {Status.PASS})


async def test_an_snp_guest_without_certificates_gives_its_report_alone(snp: SimulatedSnpPlatform) -> None:
    attester = await opened(SimulatedConfigfs.snp(snp, has_certificates=False))
    evidence = await attester.attest(REPORT_DATA)
    assert set(evidence.aci_members()) == {"snp_report", "quote_report_data"}


async def test_keys_are_new_at_each_start_and_stay_inside(tdx: SimulatedTdxPlatform, tmp_path: Path) -> None:
    first, second = [await opened(SimulatedConfigfs.tdx(tdx)) for _ in range(2)]
    for algo in Algo:
        assert first.keys.address(algo) != second.keys.address(algo)
    assert first.workload_keys.receipt(1).public_key_hex != second.workload_keys.receipt(1).public_key_hex
    assert first.workload_keys.tls.spki_sha256 != second.workload_keys.tls.spki_sha256
    assert not second.keys.check_seal(b"record", first.keys.seal_record(b"record"))
    for keys in (first.keys, first.workload_keys):
        with pytest.raises(TypeError):
            pickle.dumps(keys)
    assert not any(isinstance(value, bytes) for value in vars(first).values())


async def test_keys_are_the_same_in_all_processes_that_were_born_with_one_seed(tdx: SimulatedTdxPlatform) -> None:
    seed = DrawnSeed()
    first, second = [await opened(SimulatedConfigfs.tdx(tdx), seed) for _ in range(2)]
    for algo in Algo:
        assert first.keys.address(algo) == second.keys.address(algo)
    assert first.workload_keys.public_identity == second.workload_keys.public_identity
    assert second.keys.check_seal(b"record", first.keys.seal_record(b"record"))


@pytest.mark.parametrize("length", [0, 32, 63, 65])
async def test_report_data_has_64_bytes(tdx: SimulatedTdxPlatform, length: int) -> None:
    attester = await opened(SimulatedConfigfs.tdx(tdx))
    with pytest.raises(ValueError, match=f"got {length}"):
        await attester.attest(b"r" * length)


def lying(produce: Callable[[bytes], bytes], change: Callable[[bytes], bytes], provider: str) -> SimulatedConfigfs:
    """A platform that is honest about zeros, which it is asked for at the start, and about nothing else."""
    return SimulatedConfigfs(lambda data: produce(data) if not any(data) else change(data), provider=provider)


async def test_evidence_over_other_data_is_never_served(tdx: SimulatedTdxPlatform, snp: SimulatedSnpPlatform) -> None:
    changes: list[tuple[Callable[[bytes], bytes], Callable[[bytes], bytes], str]] = [
        (tdx.quote, lambda _: tdx.quote(bytes(64)), "tdx_guest"),
        (tdx.quote, lambda data: b"\x06" + tdx.quote(data)[1:], "tdx_guest"),  # another version
        (tdx.quote, lambda data: tdx.quote(data)[:600], "tdx_guest"),
        (tdx.quote, lambda _: b"\xd2\x84" + bytes(9000), "tdx_guest"),  # a token of another kind
        (snp.report, lambda _: snp.report(bytes(64)), "sev_guest"),
        (snp.report, lambda data: snp.report(data) + b"\x00", "sev_guest"),
        (snp.report, lambda _: b"", "sev_guest"),
    ]
    for produce, change, provider in changes:
        attester = await opened(lying(produce, change, provider))
        with pytest.raises(InternalError, match="other report data"):
            await attester.attest(REPORT_DATA)


async def test_a_platform_that_is_busy_or_broken_is_told_apart(tdx: SimulatedTdxPlatform) -> None:
    cases: list[tuple[int, type[Exception]]] = [(errno.EBUSY, NotReady), (errno.EFBIG, InternalError)]
    for number, expected in cases:
        files = SimulatedConfigfs.tdx(tdx)
        attester = await opened(files)
        files._busy, files._faults = 1000, ConfigfsFaults(busy_with=number)
        with pytest.raises(expected) as caught:
            await attester.attest(REPORT_DATA)
        assert "tsm" not in str(caught.value)  # paths and attributes are the operator's affair
        files._busy = 0
        assert (await attester.attest(REPORT_DATA)).quote


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (SimulatedConfigfs(bytes, provider=None), "no platform is registered"),
        (SimulatedConfigfs(bytes, provider="arm_cca_guest"), "arm_cca_guest"),
        (SimulatedConfigfs(bytes, provider="tdx_guest"), "other report data"),
        (SimulatedConfigfs(bytes, provider="tdx_guest", faults=ConfigfsFaults(refuses=errno.EROFS)), "read-only"),
        (SimulatedConfigfs(bytes, provider="tdx_guest", faults=ConfigfsFaults(busy=1000)), "EBUSY"),
    ],
)
async def test_a_start_that_cannot_work_is_refused_with_the_reason(files: SimulatedConfigfs, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        await opened(files)
    assert '[attester] kind = "tsm"' in caught.value.message
    assert caught.value.remedy


async def test_many_requests_at_once_get_each_their_own(tdx: SimulatedTdxPlatform) -> None:
    attester = await opened(SimulatedConfigfs.tdx(tdx))
    asked = [bytes([number]) * 64 for number in range(20)]
    evidence = await asyncio.gather(*(attester.attest(report_data) for report_data in asked))
    assert [each.report_data for each in evidence] == asked == [each.quote[568:632] for each in evidence]


@pytest.mark.parametrize("most", [MAX_WAITING, 2])
async def test_a_platform_that_hangs_fills_its_queue_once_and_then_refuses_at_once(
    tdx: SimulatedTdxPlatform, most: int
) -> None:
    freed = threading.Event()

    def hanging(data: bytes) -> bytes:
        if any(data):
            freed.wait(20)
        return tdx.quote(data)

    attester = await opened(SimulatedConfigfs(hanging, provider="tdx_guest"), max_waiting=most)
    attester._thread._deadline_s = 0.05
    late = await asyncio.gather(*(attester.attest(REPORT_DATA) for _ in range(most)), return_exceptions=True)
    assert all(isinstance(each, NotReady) and "within" in each.message for each in late)
    attester._thread._deadline_s = 60
    with pytest.raises(NotReady, match="too many") as caught:
        await attester.attest(REPORT_DATA)  # and not after a minute
    assert caught.value.retry_after_s
    freed.set()
    async with asyncio.timeout(5):
        while True:
            try:
                assert (await attester.attest(REPORT_DATA)).quote
                return
            except NotReady:
                await asyncio.sleep(0.01)


async def test_nothing_is_done_for_a_caller_that_left() -> None:
    thread, done, gate = OneThread("test", max_waiting=3, deadline_s=5), [], threading.Event()
    running = asyncio.create_task(thread.call(lambda: gate.wait(5), what="calls"))
    await asyncio.sleep(0.01)
    left = asyncio.create_task(thread.call(lambda: done.append("left"), what="calls"))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    gate.set()
    assert await running
    await thread.call(lambda: done.append("stayed"), what="calls")
    assert done == ["stayed"]


async def test_an_error_of_the_work_is_not_taken_for_the_deadline() -> None:
    thread = OneThread("test", max_waiting=1, deadline_s=5)

    def failing() -> None:
        raise TimeoutError("the work's own")

    with pytest.raises(TimeoutError, match="the work's own"):
        await thread.call(failing, what="calls")


def test_it_works_from_one_event_loop_after_another(tdx: SimulatedTdxPlatform) -> None:
    attester = asyncio.run(opened(SimulatedConfigfs.tdx(tdx)))
    for _ in range(2):
        assert asyncio.run(attester.attest(REPORT_DATA)).quote


def test_certificates_are_taken_as_they_come(snp: SimulatedSnpPlatform) -> None:
    table = snp.certificate_table()
    found = snp_certificates(table)
    assert found is not None
    assert found.cert_chain is not None
    assert found.vcek.count("BEGIN CERTIFICATE") == 1
    assert found.cert_chain.count("BEGIN CERTIFICATE") == 2
    assert ssl.PEM_cert_to_DER_cert(found.vcek) == snp.vcek_der
    assert pem(found.vcek.encode() + b"\x00") == found.vcek  # some clouds put PEM there


@pytest.mark.parametrize("table", [b"", b"\x00" * 24, b"\xff" * 24, b"\x01" * 23, b"\xff" * 4096])
def test_a_table_that_says_nothing_is_no_table(table: bytes) -> None:
    assert snp_certificates(table) is None


def test_a_table_is_never_read_beyond_its_end(snp: SimulatedSnpPlatform) -> None:
    table = snp.certificate_table()
    for length in range(0, len(table), 7):
        snp_certificates(table[:length])


async def test_whoever_has_an_answer_finds_room_for_the_next_question() -> None:
    thread = OneThread("test", max_waiting=1, deadline_s=5)
    for number in range(200):
        assert await thread.call(lambda number=number: number, what="calls") == number  # type: ignore[misc]
