"""The whole chain of evidence in one process: simulated platforms, the gateway, and the client that verifies it.

Quick, and closer to the parts than `test_whole_chains.py`, which runs each of them as a process of its own. Then the
single pieces of evidence that `confide simulate` writes.
"""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from confide.attester.base import Attester
from confide.attester.dstack import DstackAttester
from confide.attester.dstack_agent import Endpoint, GuestAgent
from confide.attester.own_collateral import OwnCollateral
from confide.attester.tsm import TsmAttester
from confide.attester.tsm_report import TsmReader
from confide.client.service import verify_service
from confide.config import Config, Model, Server
from confide.errors import ConfigError
from confide.evidence.policy import DstackPolicy, GpuPolicy, SnpPolicy
from confide.evidence.result import Status, Verdict
from confide.simulator.configfs import SimulatedConfigfs
from confide.simulator.dstack import SimulatedDstack
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.serving import serving, serving_tcp
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import QuoteForm, SimulatedTdxPlatform
from confide.telemetry.logs import Log
from confide.verifier.appraisal import ServiceVerification
from confide.verifier.policy import Policy
from gateway_app import MODEL, answering, serving_scripted
from running import CONFIDE

SEED = b"\x44" * 32
MONTH_S = 30 * 24 * 60 * 60
ATTESTED_TLS = Config(model=(Model(id=MODEL, upstream_model="scripted"),), server=Server(tls="attested"))


@contextlib.asynccontextmanager
async def dstack_machine(directory: Path, fault: str | None = None) -> AsyncIterator[tuple[SimulatedDstack, Attester]]:
    """A simulated machine and the attester that met it."""
    machine = SimulatedDstack(SEED, now=int(time.time()), fault=fault)
    with serving(machine.agent_app, directory / "dstack.sock") as path, serving_tcp(machine.pccs_app) as pccs:
        agent = GuestAgent(Endpoint(str(path), simulated=True))
        yield machine, await DstackAttester.open(agent, collateral=collateral(directory, pccs))


def collateral(directory: Path, url: str) -> OwnCollateral:
    return OwnCollateral(
        directory / "collateral", now=lambda: int(time.time()), log=Log(), pccs_url=url, kds_url=url, wait_s=2.0
    )


async def appraised(home: Path, attester: Attester, policy: Policy, *, at: int | None = None) -> ServiceVerification:
    """What the client finds of a gateway with this attester, over TLS that ends in it."""
    async with serving_scripted(home, answering("Hi"), config=ATTESTED_TLS, attester=attester) as gateway:
        now = int(time.time()) if at is None else at
        return await asyncio.to_thread(verify_service, gateway.url, policy, now=lambda: now)


def pinning(home: Path, *roots: str, **asked: Any) -> Policy:
    """A policy that trusts these roots, PEM."""
    paths = [home / f"root-{number}.pem" for number in range(len(roots))]
    for path, pem in zip(paths, roots, strict=True):
        path.write_text(pem)
    return Policy(trust_roots=paths, **asked)


def statuses(result: ServiceVerification) -> dict[str, Status]:
    return {check.name: check.status for check in result.checks}


async def test_the_honest_machine_is_verified(tmp_path: Path) -> None:
    async with dstack_machine(tmp_path) as (machine, attester):
        policy = pinning(tmp_path, machine.root_pem, dstack=DstackPolicy(kms_roots=frozenset({machine.kms_root})))
        result = await appraised(tmp_path, attester, policy)
    assert result.verdict is Verdict.VERIFIED, result.checks
    assert result.simulated
    assert statuses(result)["id-5"] is statuses(result)["custody.receipt"] is Status.PASS


@pytest.mark.parametrize(
    ("fault", "check", "status", "concluded"),
    [
        ("revoked", "tdx.quote", Status.FAIL, "id-1"),
        ("outdated", "tdx.tcb", Status.FAIL, "id-1"),
        ("debug", "tdx.attributes", Status.FAIL, "id-1"),
        ("sept-ve", "tdx.attributes", Status.FAIL, "id-1"),
        ("signature", "tdx.quote", Status.FAIL, "id-1"),
        ("custody", "custody.receipt", Status.FAIL, "id-5"),
        ("pccs-failing", "tdx.collateral", Status.SKIP, "id-1"),
        ("pccs-expired", "tdx.collateral", Status.SKIP, "id-1"),
        ("pccs-wrong-chain", "tdx.collateral", Status.SKIP, "id-1"),
        ("pccs-hung", "tdx.collateral", Status.SKIP, "id-1"),
    ],
)
async def test_each_fault_is_refused_by_the_check_that_it_concerns(
    tmp_path: Path, fault: str, check: str, status: Status, concluded: str
) -> None:
    async with dstack_machine(tmp_path, fault) as (machine, attester):
        policy = pinning(tmp_path, machine.root_pem, dstack=DstackPolicy(kms_roots=frozenset({machine.kms_root})))
        result = await appraised(tmp_path, attester, policy)
    assert not result.ok
    assert statuses(result)[check] is status, result.checks
    assert statuses(result)[concluded] is status


async def test_a_machine_that_quotes_other_data_opens_no_attester(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="other report data"):
        async with dstack_machine(tmp_path, "report-data"):
            pass


async def test_collateral_is_good_for_its_month_and_not_longer(tmp_path: Path) -> None:
    async with dstack_machine(tmp_path) as (machine, attester):
        policy = pinning(tmp_path, machine.root_pem)
        result = await appraised(tmp_path, attester, policy, at=int(time.time()) + MONTH_S)
    assert result.verdict is Verdict.NOT_VERIFIED
    assert statuses(result)["tdx.quote"] is Status.FAIL, result.checks


async def test_gpus_that_are_asked_for_and_not_shown_are_missed(tmp_path: Path) -> None:
    async with dstack_machine(tmp_path) as (machine, attester):
        policy = pinning(tmp_path, machine.root_pem, gpu=GpuPolicy(required_gpus=1))
        result = await appraised(tmp_path, attester, policy)
    assert result.verdict is Verdict.NOT_VERIFIED


async def tsm(files: SimulatedConfigfs, own: OwnCollateral | None = None) -> TsmAttester:
    return await TsmAttester.open(TsmReader(files, Path("/tsm"), pause=lambda _: None), collateral=own)


def pccs_of(platform: SimulatedTdxPlatform | None = None, **more: Any) -> SimulatedPccs:
    return SimulatedPccs(platform, now=int(time.time()) - 3600, **more)


@pytest.mark.parametrize("form", QuoteForm, ids=lambda form: form.name)
async def test_a_bare_tdx_guest_is_verified_in_every_form_of_its_quotes(tmp_path: Path, form: QuoteForm) -> None:
    platform = SimulatedTdxPlatform(SEED, now=int(time.time()), form=form)
    policy = pinning(tmp_path, platform.root_pem)
    with serving_tcp(pccs_of(platform).app) as url:
        attester = await tsm(SimulatedConfigfs.tdx(platform), collateral(tmp_path, url))
        result = await appraised(tmp_path, attester, policy)
    found = statuses(result)
    assert result.ok, result.checks
    assert found["id-1"] is found["id-2"] is found["id-6"] is found["tdx.tcb"] is Status.PASS
    assert found["id-4"] is found["id-5"] is Status.SKIP  # nobody logs what runs there, and the keys never left it


async def test_an_snp_guest_is_verified_with_the_certificates_of_its_host(tmp_path: Path) -> None:
    platform = SimulatedSnpPlatform(SEED, now=int(time.time()))
    result = await appraised(tmp_path, await tsm(SimulatedConfigfs.snp(platform)), pinning(tmp_path, platform.root_pem))
    assert result.ok, result.checks
    assert statuses(result)["id-1"] is statuses(result)["id-6"] is Status.PASS


async def test_where_the_host_gave_no_certificates_amd_is_asked_once(tmp_path: Path) -> None:
    platform = SimulatedSnpPlatform(SEED, now=int(time.time()))
    policy = pinning(tmp_path, platform.root_pem)
    vendors = pccs_of(snp=platform)
    files = SimulatedConfigfs.snp(platform, has_certificates=False)
    with serving_tcp(vendors.app) as url:
        for _ in range(2):  # the second start finds them in the cache
            result = await appraised(tmp_path, await tsm(files, collateral(tmp_path, url)), policy)
            assert result.ok, result.checks
            (tmp_path / "engine.sock").unlink(missing_ok=True)
    assert sorted(path.split("?")[0].rsplit("/", 1)[1][:10] for path in vendors.seen) == sorted(
        [platform.report(bytes(64))[0x1A0:0x1A5].hex(), "cert_chain", "crl"]
    )
    assert statuses(result)["snp.crl"] is Status.PASS  # the service sends along what AMD revoked, too


async def test_an_snp_guest_without_any_certificates_cannot_be_told(tmp_path: Path) -> None:
    platform = SimulatedSnpPlatform(SEED, now=int(time.time()))
    attester = await tsm(SimulatedConfigfs.snp(platform, has_certificates=False))
    result = await appraised(tmp_path, attester, pinning(tmp_path, platform.root_pem))
    assert not result.ok
    assert statuses(result)["id-1"] is Status.SKIP


@pytest.mark.parametrize(
    ("knobs", "check"),
    [({"debug": True}, "snp.policy"), ({"other_chip": True}, "snp.vcek"), ({"vmpl": 1}, "snp.policy")],
    ids=str,
)
async def test_a_faulty_snp_guest_is_refused(tmp_path: Path, knobs: dict[str, Any], check: str) -> None:
    platform = SimulatedSnpPlatform(SEED, now=int(time.time()), **knobs)
    result = await appraised(
        tmp_path, await tsm(SimulatedConfigfs.snp(platform)), pinning(tmp_path, platform.root_pem, snp=SnpPolicy())
    )
    assert result.verdict is Verdict.NOT_VERIFIED
    assert statuses(result)[check] is statuses(result)["id-1"] is Status.FAIL, result.checks


# Single pieces of evidence.


@pytest.mark.parametrize("kind", ["quote", "snp", "gpu"])
def test_a_simulated_piece_of_evidence_verifies_as_its_last_line_says(tmp_path: Path, kind: str) -> None:
    environ = {**os.environ, "CONFIDE_HOME": str(tmp_path)}
    made = subprocess.run(
        [CONFIDE, "simulate", kind, tmp_path / "out"], capture_output=True, text=True, check=True, env=environ
    )
    label, line = made.stdout.splitlines()
    assert label.startswith("SIMULATED")
    command: list[str | Path] = [CONFIDE, *line.removeprefix("verify with: confide ").split()]
    assert subprocess.run(command, capture_output=True, env=environ).returncode == 0
    unpinned = command[: command.index("--root")]
    assert subprocess.run(unpinned, capture_output=True, env=environ).returncode == 1


def test_evidence_that_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command: list[str | Path] = [CONFIDE, "simulate", "quote", tmp_path / "file", "--state", tmp_path / "state"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert f"{tmp_path / 'file'} cannot be written to" in told.stderr
