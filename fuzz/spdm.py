"""Fuzz reports of GPUs: any bytes are refused with SpdmError or read, and only the honest report verifies."""

import base64
import json
import sys

from confide.evidence.nvidia import verify_gpu_payload
from confide.evidence.policy import Anchors, GpuPolicy
from confide.evidence.spdm import SpdmError, parse_report
from confide.simulator.gpu import SimulatedGpu
from fuzz._bytes import patched

NOW = 1_800_000_000
NONCE = bytes(range(32))
DEVICE = SimulatedGpu(bytes(32))
REPORT, ENTRY = DEVICE.report(NONCE), DEVICE.entry(NONCE)
ANCHORS = Anchors.of().with_simulated(DEVICE.root_der)


def fuzz_one(data: bytes) -> None:
    """One input: as a report, as a change to an honest one, and as a payload."""
    parse(data)
    changed = patched(REPORT, data)
    parse(changed)
    encoded = base64.b64encode(changed).decode()
    holds(json.dumps({"nonce": NONCE.hex(), "evidence_list": [{**ENTRY, "evidence": encoded}]}), changed == REPORT)
    holds(data, False)


def parse(raw: bytes) -> None:
    """A report keeps its promises."""
    try:
        report = parse_report(raw)
    except SpdmError:
        return
    if report.signed + report.signature != raw:
        raise AssertionError("bytes of the report are neither signed nor the signature")
    json.dumps(report.fields())


def holds(payload: str | bytes, expected: bool) -> None:
    result = verify_gpu_payload(payload, nonce=NONCE, anchors=ANCHORS, policy=GpuPolicy(), now=NOW)
    if result.ok is not expected:
        raise AssertionError(f"the evidence is {result.verdict}")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
