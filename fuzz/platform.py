"""Fuzz the evidence in an ACI report: whatever a report shows of its platform gives checks, and what passes says what
the honest report says.
"""

import json
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from confide.evidence.mr_config import DOCUMENT_DOMAIN
from confide.evidence.policy import DstackPolicy, GpuPolicy
from confide.evidence.result import Status
from confide.protocol.canonical import DocumentError
from confide.protocol.report import SourceProvenance, aci_report, parse_report
from confide.protocol.statement import aci_report_data
from confide.simulator.gpu import SimulatedGpu, gpu_payload
from confide.simulator.measurements import APP_COMPOSE, APP_ID, COMPOSE_HASH
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.verifier.platform import PlatformVerification, verify_platform
from confide.verifier.policy import Policy
from fuzz._bytes import patched
from fuzz._documents import changed
from fuzz.custody import KMS, keyset_of, released_to

NOW = 1_800_000_000
SEED = b"\x11" * 32
NONCE = "cd" * 32
PLATFORM, CHIP = SimulatedTdxPlatform(SEED, now=NOW), SimulatedSnpPlatform(SEED, now=NOW, serial_zero=True)
GPU = SimulatedGpu(bytes(32))
CUSTODY = released_to(APP_ID)
KEYSET = keyset_of(CUSTODY)
REPORT_DATA = aci_report_data(KEYSET.digest(), NONCE)
HOST_DOCUMENT = json.dumps({"version": 3, "app_id": APP_ID.hex(), "compose_hash": COMPOSE_HASH.hex()})
SHARED = {
    "quote_report_data": REPORT_DATA.hex(),
    "app_compose": APP_COMPOSE,
    "nvidia_payload": gpu_payload([GPU], bytes.fromhex(NONCE)),
}


@cache
def policy() -> Policy:
    """The three simulators' roots, the KMS, the measured application, and a GPU."""
    with TemporaryDirectory() as folder:
        roots = [Path(folder) / name for name in ("tdx.pem", "snp.pem", "gpu.pem")]
        for path, pem in zip(roots, (PLATFORM.root_pem, CHIP.root_pem, GPU.root_pem), strict=True):
            path.write_text(pem)
        return Policy(
            trust_roots=roots,
            gpu=GpuPolicy(required_gpus=1),
            dstack=DstackPolicy(
                compose_hashes=frozenset({COMPOSE_HASH.hex()}), kms_roots=frozenset({KMS.root_public_key})
            ),
        )


def report(tee_type: str, **evidence: object) -> dict[str, Any]:
    return aci_report(
        keyset=KEYSET, nonce=NONCE, tee_type=tee_type, provenance=SourceProvenance(), evidence=SHARED | evidence
    )


REPORTS = (
    report(
        "tdx",
        quote=PLATFORM.quote(REPORT_DATA).hex(),
        event_log=PLATFORM.event_log,
        vm_config=PLATFORM.vm_config,
        collateral=PLATFORM.collateral(NOW),
        key_custody=CUSTODY,
    ),
    report(
        "sev_snp",
        snp_report=CHIP.report(REPORT_DATA, sha256(DOCUMENT_DOMAIN + HOST_DOCUMENT.encode()).digest()).hex(),
        vcek=CHIP.vcek_pem,
        cert_chain=CHIP.chain_pem,
        mr_config_document=HOST_DOCUMENT,
    ),
)


def verified(document: bytes) -> PlatformVerification:
    """Raises DocumentError."""
    found = verify_platform(parse_report(document), NONCE, policy(), NOW)
    checks = (found.provenance, found.custody, *found.details, *(found.cpu.checks if found.cpu else ()))
    if not all(check.reason.isprintable() for check in checks):
        raise AssertionError("a reason is not fit for a terminal")
    return found


HONEST = tuple(verified(json.dumps(each).encode()) for each in REPORTS)
for honest in HONEST:
    if not (honest.cpu and honest.cpu.ok and honest.gpu and honest.gpu.ok and honest.provenance.status is Status.PASS):
        raise AssertionError("honest evidence was not accepted")


def fuzz_one(data: bytes) -> None:
    """One input: its first byte says which report it changes, in its evidence or in its text."""
    choice = data[0] if data else 0
    document = REPORTS[choice & 1]
    if choice & 2:
        judge(patched(json.dumps(document).encode(), data[1:]))
        return
    attestation = document["attestation"]
    evidence = changed({"evidence": attestation["evidence"]}, iter(data[1:]))
    judge(json.dumps({**document, "attestation": attestation | evidence}).encode())


def judge(document: bytes) -> None:
    """A report is refused, or what is proven of its platform is what the honest one proves."""
    try:
        found = verified(document)
    except DocumentError:
        return
    if found.provenance.status is Status.PASS and found.compose_hash != COMPOSE_HASH.hex():
        raise AssertionError("another application passed for the measured one")
    proven = [(each.cpu.facts, each.slot) for each in HONEST if each.cpu]
    if found.cpu is not None and found.cpu.ok and (found.cpu.facts, found.slot) not in proven:
        raise AssertionError("another platform was accepted")
    if found.gpu is not None and found.gpu.ok and found.gpu.facts != HONEST[0].gpu.facts:  # type: ignore[union-attr]  # it was looked at above
        raise AssertionError("another GPU was accepted")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
