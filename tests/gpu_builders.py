"""Evidence of simulated GPUs, the honest case, and how a test reads the verdict on it."""

import base64
import json
from collections.abc import Iterable, Mapping

from confide.evidence.nras_keys import NrasKeys, read_key_set
from confide.evidence.nvidia import GpuResult, verify_gpu_payload
from confide.evidence.policy import Anchors, GpuPolicy
from confide.evidence.result import Check, Status, Verification
from confide.simulator.gpu import SimulatedGpu, gpu_payload
from confide.simulator.nras import SimulatedNras

SEED = b"\x31" * 32
NOW = 1_800_000_000
NONCE = bytes(range(32))


def gpus(number: int = 1) -> list[SimulatedGpu]:
    """Honest ones under one root."""
    return [SimulatedGpu(SEED, number=place) for place in range(number)]


def pinned(*more: SimulatedGpu) -> Anchors:
    """The vendors' roots and that of SEED, and those of other devices."""
    anchors = Anchors.default()
    for device in (*gpus(), *more):
        anchors = anchors.with_simulated(device.root_der)
    return anchors


def nras_keys(service: SimulatedNras | None = None) -> NrasKeys:
    return read_key_set((service or SimulatedNras(SEED)).jwks(), simulated=True)


def verified(payload: str | bytes | None = None, **changes: object) -> GpuResult:
    """`verify_gpu_payload` on one honest GPU; arguments replace parts of it."""
    honest: dict[str, object] = {"nonce": NONCE, "anchors": pinned(), "policy": GpuPolicy(), "now": NOW}
    text = gpu_payload(gpus(), NONCE) if payload is None else payload
    return verify_gpu_payload(text, **(honest | changes))  # type: ignore[arg-type]  # tests replace any of them


def payload_of(entries: Iterable[Mapping[str, object]], nonce: bytes = NONCE) -> str:
    return json.dumps({"nonce": nonce.hex(), "evidence_list": list(entries), "arch": "HOPPER"})


def entry_of(report: bytes, chain_pem: bytes, arch: str = "HOPPER") -> dict[str, object]:
    return {
        "certificate": base64.b64encode(chain_pem).decode(),
        "evidence": base64.b64encode(report).decode(),
        "arch": arch,
    }


def named(result: Verification, status: Status) -> set[str]:
    return {check.name for check in result.checks if check.status is status}


def failed(result: Verification) -> set[str]:
    return named(result, Status.FAIL)


def skipped(result: Verification) -> set[str]:
    return named(result, Status.SKIP)


def passed(result: Verification) -> set[str]:
    return named(result, Status.PASS)


def check(result: Verification, name: str) -> Check:
    (found,) = (each for each in result.checks if each.name == name)
    return found


def flipped(raw: bytes, bit: int) -> bytes:
    """The same bytes but for one bit, counted from the first byte's lowest."""
    place = bit // 8
    return raw[:place] + bytes((raw[place] ^ 1 << bit % 8,)) + raw[place + 1 :]
