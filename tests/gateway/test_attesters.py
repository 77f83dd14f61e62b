"""What a verifier gets from the service by attester: on a bare TDX or SNP guest, and with GPUs shown."""

import hashlib
import json
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest

from confide.attester.tsm import TsmAttester
from confide.attester.tsm_report import TsmReader
from confide.config import Attester, Config, Model
from confide.evidence.nvidia import verify_gpu_payload
from confide.evidence.policy import Anchors, GpuPolicy
from confide.evidence.quote import parse_quote
from confide.evidence.result import Status
from confide.protocol.statement import aci_report_data
from confide.simulator.configfs import SimulatedConfigfs
from confide.simulator.tdx import SimulatedTdxPlatform
from gateway_app import MODEL, ScriptedGateway, answering, serving_scripted
from snp_builders import NOW, failing, platform, verified

NONCE = hashlib.sha256(b"nonce").digest()
ACI, LEGACY = "/v1/aci/attestation", "/v1/attestation/report"
MODELS = (Model(id=MODEL, upstream_model="scripted"),)


async def tsm(files: SimulatedConfigfs) -> TsmAttester:
    return await TsmAttester.open(TsmReader(files, Path("/tsm"), pause=lambda _: None))


async def report(gateway: ScriptedGateway, path: str = ACI, **query: str) -> dict[str, Any]:
    answer = await gateway.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_a_bare_tdx_guest_shows_its_quote_on_both_routes(tmp_path: Path) -> None:
    attester = await tsm(SimulatedConfigfs.tdx(SimulatedTdxPlatform(b"\x44" * 32, now=NOW)))
    async with serving_scripted(tmp_path, answering("Hi"), attester=attester) as gateway:
        aci = (await report(gateway, nonce=NONCE.hex()))["attestation"]
        assert aci["tee_type"] == "tdx"
        assert set(aci["evidence"]) == {"quote", "quote_report_data"}
        digest = gateway.app.keyset().epoch.digest
        quote = parse_quote(bytes.fromhex(aci["evidence"]["quote"]))
        assert quote.report_data == aci_report_data(digest, NONCE.hex())
        legacy = await report(gateway, LEGACY, nonce=NONCE.hex())
        assert parse_quote(bytes.fromhex(legacy["intel_quote"])).report_data[32:] == NONCE
        assert (legacy["simulated"], legacy["event_log"], legacy["vm_config"]) == (False, "[]", "{}")
        assert (await gateway.post()).status_code == 200
    assert not (tmp_path / "simulator").exists()


async def test_a_bare_snp_guest_shows_its_report_and_the_legacy_route_says_where(tmp_path: Path) -> None:
    machine = platform()
    async with serving_scripted(
        tmp_path, answering("Hi"), attester=await tsm(SimulatedConfigfs.snp(machine))
    ) as gateway:
        aci = (await report(gateway, nonce=NONCE.hex()))["attestation"]
        assert aci["tee_type"] == "sev_snp"
        result = verified(
            bytes.fromhex(aci["evidence"]["snp_report"]),
            of=machine,
            vcek=aci["evidence"]["vcek"].encode(),
            chain=aci["evidence"]["cert_chain"].encode(),
            expected_report_data=aci_report_data(gateway.app.keyset().epoch.digest, NONCE.hex()),
        )
        assert failing(result) == set()
        legacy = await gateway.client.get(LEGACY, params={"nonce": NONCE.hex()})
        assert legacy.status_code == 404
        assert "/v1/aci/attestation" in legacy.json()["error"]["message"]


async def test_a_restart_of_a_bare_guest_ends_what_its_keys_sealed_and_keeps_the_old_report(tmp_path: Path) -> None:
    """ADR 11: kept receipts verify against the old keyset's report; those not fetched in time are gone."""
    machine = SimulatedTdxPlatform(b"\x44" * 32, now=NOW)
    async with serving_scripted(
        tmp_path, answering("Hi"), attester=await tsm(SimulatedConfigfs.tdx(machine))
    ) as gateway:
        await gateway.app.archive.keep_current()
        answer = await gateway.post()
        receipt = await gateway.client.get(f"/v1/aci/receipts/{answer.json()['id']}")
        assert receipt.status_code == 200
        digest = gateway.app.keyset().epoch.digest
    (tmp_path / "engine.sock").unlink(missing_ok=True)
    async with serving_scripted(tmp_path, answering("Hi"), attester=await tsm(SimulatedConfigfs.tdx(machine))) as again:
        assert again.app.keyset().epoch.digest != digest
        assert (await again.client.get(f"/v1/aci/receipts/{answer.json()['id']}")).status_code == 404
        assert (await again.client.get(f"/v1/signature/{answer.json()['id']}")).status_code == 404
        kept = await again.client.get(f"/v1/aci/keysets/{digest}")
        assert kept.json()["workload_keyset_digest"] == digest == receipt.json()["workload_keyset_digest"]


async def test_gpus_are_shown_for_the_nonce_of_the_request(tmp_path: Path) -> None:
    settings = Config(model=MODELS, attester=Attester(gpu="simulated"))
    async with serving_scripted(tmp_path, answering("Hi"), config=settings) as gateway:
        root = ssl.PEM_cert_to_DER_cert((tmp_path / "simulator" / "gpu-root.pem").read_text())
        aci = await report(gateway, nonce=NONCE.hex())
        legacy = await report(gateway, LEGACY, nonce=NONCE.hex(), model=MODEL)
        for payload in (
            aci["attestation"]["evidence"]["nvidia_payload"],
            legacy["nvidia_payload"],
            legacy["model_attestations"][0]["nvidia_payload"],
        ):
            result = verify_gpu_payload(
                payload,
                nonce=NONCE,
                anchors=Anchors.default().with_simulated(root),
                policy=GpuPolicy(),
                now=NOW,
            )
            found = {check.name: check.status for check in result.checks}
            expected = {f"gpu.0.{check}": Status.PASS for check in ("chain", "signature", "nonce", "fwid")}
            assert expected.items() <= found.items()
        drawn = await report(gateway, LEGACY)  # without a nonce of the caller's: the one that was drawn
        assert json.loads(drawn["nvidia_payload"])["nonce"] == drawn["request_nonce"]
        assert "nvidia_payload" not in (await report(gateway))["attestation"]["evidence"]


async def test_without_the_setting_nothing_is_said_of_gpus(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        evidence = (await report(gateway, nonce=NONCE.hex()))["attestation"]["evidence"]
        assert "nvidia_payload" not in evidence
        legacy = await report(gateway, LEGACY, nonce=NONCE.hex())
        assert json.loads(legacy["nvidia_payload"]) == {"nonce": NONCE.hex(), "evidence_list": [], "arch": "HOPPER"}


@pytest.mark.parametrize("path", [ACI, LEGACY])
async def test_gpus_that_stop_answering_are_not_left_out_in_silence(tmp_path: Path, path: str) -> None:
    serving_one = (
        "import sys, os\n"
        "if os.path.exists(sys.argv[2]): sys.exit(1)\n"
        "from confide.simulator.gpu import SimulatedGpu, gpu_payload\n"
        "print(gpu_payload([SimulatedGpu(bytes(32))], bytes.fromhex(sys.argv[1])))"
    )
    command = (sys.executable, "-c", serving_one, "${nonce}", str(tmp_path / "away"))
    settings = Config(model=MODELS, attester=Attester(gpu="command", gpu_command=command))
    async with serving_scripted(tmp_path, answering("Hi"), config=settings) as gateway:
        await report(gateway, path, nonce=NONCE.hex())
        (tmp_path / "away").touch()
        answer = await gateway.client.get(path, params={"nonce": NONCE.hex()})
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "status 1" not in answer.text
