"""`confide evidence`: real and simulated pieces by themselves, in a process of their own, with their verdicts."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from confide.simulator.gpu import gpu_payload
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from gpu_builders import NONCE, gpus
from shared_data import TEE
from snp_builders import NOW, REPORT_DATA, SEED, platform
from vendors import serving

CONFIDE = Path(sys.executable).parent / "confide"
VECTORS = TEE / "quote-vectors.json"
ROWS = json.loads(VECTORS.read_text())["vectors"] if VECTORS.exists() else []

needs_samples = pytest.mark.skipif(not ROWS, reason="the shared TEE samples are not beside this checkout")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is kept here."""
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [str(CONFIDE), "evidence", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def judged(*arguments: object) -> dict[str, Any]:
    """The JSON verdict; its exit status is the one that goes with it."""
    done = run("verify", *arguments, "--json")
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == {"pass": 0, "fail": 1}[document["verdict"]]
    assert "Traceback" not in done.stderr
    return document


def failed(document: dict[str, Any]) -> set[str]:
    return {check["name"] for check in document["checks"] if check["status"] == "fail"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["quote"])
def test_every_stored_quote_has_the_verdict_that_is_expected(row: dict[str, Any]) -> None:
    document = judged(TEE / row["quote"], "--collateral", TEE / row["collateral"], "--at", row["now"])
    is_expected = row["expect"] == "ok" and row["tee"] == "TDX" and row["status"] == "UpToDate"
    assert (document["verdict"] == "pass") is is_expected
    if is_expected:
        assert (document["tcb_status"], document["anchor"]) == (row["status"], "intel-sgx-root")
        assert document["facts"]["tdx.report_data"] == row["report_data"]
    else:
        assert failed(document) == {"tdx.parse" if row["tee"] == "SGX" else "tdx.quote"}


@needs_samples
def test_todays_clock_refuses_what_was_stored_years_ago() -> None:
    row = next(row for row in ROWS if row["expect"] == "ok" and row["tee"] == "TDX")
    assert failed(judged(TEE / row["quote"], "--collateral", TEE / row["collateral"])) == {"tdx.quote"}


@needs_samples
def test_real_snp_and_gpu_evidence_is_judged_too(tmp_path: Path) -> None:
    chain = (TEE / "snp" / "go-sev-guest_ask_ark_milan.pem").read_text()
    (tmp_path / "chain.pem").write_text((TEE / "snp" / "dstack_sev_snp_vcek.pem").read_text() + chain)
    envelope = TEE / "snp" / "dstack_sev_snp_attestation.bin"
    document = judged(envelope, "--collateral", tmp_path / "chain.pem", "--at", NOW)
    assert (document["verdict"], document["anchor"]) == ("pass", "amd-ark-milan")
    gpus_of_one_machine = judged(TEE / "nvidia" / "nvtrust_ppcie_gpu_evidence.json", "--at", NOW)
    assert (gpus_of_one_machine["verdict"], gpus_of_one_machine["facts"]["gpu.count"]) == ("pass", 8)


def test_a_simulated_quote_passes_under_its_pinned_root_alone_and_says_so(tmp_path: Path) -> None:
    machine = SimulatedTdxPlatform(b"\x07" * 32, now=NOW)
    (tmp_path / "quote.hex").write_text(machine.quote(REPORT_DATA).hex())
    (tmp_path / "collateral.json").write_text(json.dumps(machine.collateral(NOW)))
    (tmp_path / "root.der").write_bytes(machine.root_der)
    (tmp_path / "root.pem").write_text(machine.root_pem)
    given = (tmp_path / "quote.hex", "--collateral", tmp_path / "collateral.json", "--at", NOW)
    assert failed(judged(*given)) == {"tdx.root"}
    for root in ("root.der", "root.pem"):
        document = judged(*given, "--root", tmp_path / root, "--report-data", REPORT_DATA.hex())
        assert document["simulated"] is True
        assert document["anchor"].startswith("sim:")
    other = judged(*given, "--root", tmp_path / "root.pem", "--report-data", "00" * 64)
    assert failed(other) == {"binding.report-data"}
    shown = run("verify", *given, "--root", tmp_path / "root.pem")
    assert shown.returncode == 0
    assert shown.stdout.splitlines()[-1] == "SIMULATED TEE: no hardware protection"


def test_an_outdated_platform_is_a_matter_of_policy(tmp_path: Path) -> None:
    machine = SimulatedTdxPlatform(b"\x07" * 32, now=NOW, tcb_status="OutOfDate")
    (tmp_path / "quote").write_bytes(machine.quote(REPORT_DATA))
    (tmp_path / "collateral.json").write_text(json.dumps(machine.collateral(NOW)))
    (tmp_path / "root.pem").write_text(machine.root_pem)
    given = (
        tmp_path / "quote",
        "--collateral",
        tmp_path / "collateral.json",
        "--at",
        NOW,
        "--root",
        tmp_path / "root.pem",
    )
    refused = judged(*given)
    assert (refused["tcb_status"], failed(refused)) == ("OutOfDate", {"tdx.tcb"})
    assert judged(*given, "--accept-tcb", "OutOfDate")["verdict"] == "pass"


def test_every_field_is_printed_for_people_and_for_programs(tmp_path: Path) -> None:
    (tmp_path / "report").write_bytes(platform().report(REPORT_DATA))
    (tmp_path / "gpus.json").write_text(gpu_payload(gpus(), NONCE))
    printed = run("inspect", tmp_path / "report")
    assert printed.returncode == 0
    assert f"report_data  {REPORT_DATA.hex()}" in printed.stdout.splitlines()
    fields = json.loads(run("inspect", tmp_path / "gpus.json", "--json").stdout)
    assert fields["nonce"] == NONCE.hex()
    odd = (tmp_path / "gpus.json").read_text().replace('"HOPPER"', '"\\u001b]0;title\\u0007"')
    (tmp_path / "gpus.json").write_text(odd)
    printed = run("inspect", tmp_path / "gpus.json")
    assert printed.returncode == 0
    assert "]0;title" in printed.stdout
    assert "\x1b" not in printed.stdout


def test_what_is_no_evidence_and_what_cannot_be_read_say_what_to_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no evidence")
    for command in ("inspect", "verify"):
        refused = run(command, tmp_path / "text")
        assert refused.returncode == 1
        assert "Name a quote, a report or a GPU payload." in refused.stderr
        missing = run(command, tmp_path / "absent")
        assert missing.returncode == 2
        assert "cannot be read" in missing.stderr
    assert failed(judged(tmp_path / "text")) == {"evidence"}
    assert run("verify", tmp_path / "text", "--root", tmp_path / "text").returncode == 2
    assert run("verify", tmp_path / "text", "--nonce", "00").returncode == 2
    assert run("verify", tmp_path / "text", "--report-data", "zz" * 64).returncode == 2


@pytest.mark.parametrize("kind", ["tdx", "snp"])
def test_what_the_vendor_says_is_fetched_once_and_verifies_without_it(tmp_path: Path, kind: str) -> None:
    now = int(time.time())
    machine, chip = SimulatedTdxPlatform(SEED, now=now), SimulatedSnpPlatform(SEED, now=now)
    piece, bundle, root = (tmp_path / name for name in ("piece.bin", "bundle.json", "root.pem"))
    piece.write_bytes(machine.quote(bytes(64)) if kind == "tdx" else chip.report(bytes(64)))
    root.write_text(machine.root_pem if kind == "tdx" else chip.root_pem)
    assert judged(piece, "--root", root)["verdict"] == "fail"
    with serving(SimulatedPccs(machine, now=now - 3600, snp=chip)) as vendors:
        done = run("fetch", piece, "--out", bundle, "--pccs-url", vendors.url, "--kds-url", vendors.url)
    assert (done.returncode, done.stdout) == (0, f"wrote {bundle}\n"), done.stderr
    assert bundle.stat().st_mode & 0o777 == 0o600
    document = judged(piece, "--root", root, "--collateral", bundle)
    assert document["verdict"] == "pass"
    if kind == "snp":
        assert {"name": "snp.crl", "status": "pass"}.items() <= next(
            check.items() for check in document["checks"] if check["name"] == "snp.crl"
        )
    again = run("fetch", piece, "--out", bundle, "--pccs-url", vendors.url, "--kds-url", vendors.url)
    assert again.returncode == 0  # nobody is there any more, and it was kept
    other = tmp_path / "other.bin"
    seed = b"\x77" * 32
    one = SimulatedTdxPlatform(seed, now=now).quote(bytes(64)) if kind == "tdx" else b""
    other.write_bytes(one or SimulatedSnpPlatform(seed, now=now).report(bytes(64)))
    refused = run("verify", other, "--root", root, "--collateral", bundle)
    assert refused.returncode == 3
    assert "not kept on this machine" in refused.stderr


def test_gpu_evidence_needs_no_collateral(tmp_path: Path) -> None:
    (tmp_path / "gpus.json").write_text(gpu_payload(gpus(), NONCE))
    refused = run("fetch", tmp_path / "gpus.json", "--out", tmp_path / "bundle.json")
    assert refused.returncode == 2
    assert "certificates come along" in refused.stderr
