"""Fuzz GPU payloads and the certificates in them: nothing raises, only the honest devices verify, and what the
collector lets through answers the nonce.
"""

import base64
import json
import sys
from contextlib import suppress

from confide.attester.gpu_sources import GpuFailed
from confide.attester.gpu_sources import decoded as decoded_output
from confide.attester.nvidia import require_for
from confide.evidence.device_chain import ChainError, verify_chain
from confide.evidence.nvidia import verify_gpu_payload
from confide.evidence.policy import Anchors, GpuPolicy
from confide.evidence.quote import read_chain
from confide.evidence.result import Status
from confide.simulator.gpu import SimulatedGpu, gpu_payload
from fuzz._bytes import patched
from fuzz._documents import changed

NOW = 1_800_000_000
NONCE = bytes(range(32))
GPU, SWITCH = SimulatedGpu(bytes(32)), SimulatedGpu(bytes(32), number=1, arch="LS10")
ANCHORS = Anchors.of().with_simulated(GPU.root_der)
PEM = GPU.chain_pem.encode()
DERS = read_chain(PEM)


def listed(*devices: SimulatedGpu) -> dict[str, object]:
    """A payload as it was parsed."""
    document: dict[str, object] = json.loads(gpu_payload(devices, NONCE))
    return document


HONEST: list[dict[str, object]] = [listed(GPU), {"nonce": NONCE.hex(), **GPU.entry(NONCE)}, listed(GPU, SWITCH)]
TEXT = json.dumps(HONEST[0]).encode()


def verified_facts(payload: bytes) -> dict[str, object] | None:
    """What the devices are, None unless all that is asked for has passed."""
    result = verify_gpu_payload(payload, nonce=NONCE, anchors=ANCHORS, policy=GpuPolicy(), now=NOW)
    if not all(check.reason.isprintable() for check in result.checks):
        raise AssertionError("a reason is not fit for a terminal")
    json.dumps(result.facts)
    return result.facts if result.ok else None


# Those of the honest payloads, and of what is left of them without a device or with devices in another order.
FACTS = [verified_facts(json.dumps(each).encode()) for each in (*HONEST, listed(SWITCH), listed(SWITCH, GPU))]
if None in FACTS:
    raise AssertionError("honest evidence was not accepted")


def fuzz_one(data: bytes) -> None:
    """One input: as a chain and a payload, as changes to honest ones, and to one certificate within its chain."""
    for pem in (data, patched(PEM, data), swapped(data)):
        chain(pem)
    form = HONEST[data[0] % len(HONEST)] if data else HONEST[0]
    for payload in (data, patched(TEXT, data), json.dumps(changed(form, iter(data[1:]))).encode()):
        judge(payload)
        collected(payload)


def swapped(data: bytes) -> bytes:
    """The honest chain with changes inside the DER of the certificate that the first byte names."""
    place = data[0] % len(DERS) if data else 0
    ders = [patched(der, data[1:]) if index == place else der for index, der in enumerate(DERS)]
    return b"".join(
        b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n" for der in ders
    )


def chain(pem: bytes) -> None:
    """A chain is refused with its own error, or is the honest device's; the root is the caller's own."""
    try:
        found = verify_chain(pem, anchors=ANCHORS, now=NOW)
    except ChainError as error:
        if not str(error).isprintable():
            raise AssertionError("a reason is not fit for a terminal") from error
        return
    if read_chain(pem)[:-1] != DERS[:-1] or found.ueid != GPU.ueid:
        raise AssertionError("another chain was accepted")


def judge(payload: bytes) -> None:
    """Whatever verifies are the honest devices."""
    found = verified_facts(payload)
    if found is not None and found not in FACTS:
        raise AssertionError("other devices were accepted")


def collected(output: bytes) -> None:
    """Output of a collector is refused with GpuFailed, or a verifier finds our nonce in whatever it can read of it."""
    with suppress(GpuFailed):
        text = decoded_output(output)
        require_for(text, NONCE)
        result = verify_gpu_payload(text, nonce=NONCE, anchors=ANCHORS, policy=GpuPolicy(), now=NOW)
        wrong = [check.name for check in result.checks if check.status is Status.FAIL and check.name.endswith(".nonce")]
        if wrong:
            raise AssertionError("evidence for another nonce would have been served")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
