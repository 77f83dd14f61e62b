"""The attacker serves without the GPU that is asked for: with none, with a borrowed one, or with a recorded one.

It controls every byte of `nvidia_payload` and of the remote service's answer, and owns genuine devices elsewhere. It
hopes for a nonce compared as a prefix or only if present, for an empty list that counts as no complaint, for a token
that nobody checks the signature of. The twin: the same evidence untouched. What no evidence can show, that the GPU is
in this machine, is a check that never passes.
"""

import base64
import json
from hmac import digest

import pytest

from confide.evidence.nras import verify_nras
from confide.evidence.policy import Anchors, GpuPolicy
from confide.evidence.result import Verdict, Verification
from confide.simulator.gpu import GpuFault, SimulatedGpu, gpu_payload
from confide.simulator.nras import NrasFault, SimulatedNras, b64url
from gpu_builders import (
    NONCE,
    NOW,
    SEED,
    check,
    failed,
    gpus,
    nras_keys,
    passed,
    payload_of,
    pinned,
    skipped,
    verified,
)

OTHER_NONCE = bytes(reversed(NONCE))
HONEST_ANSWER = SimulatedNras(SEED).attest(gpu_payload(gpus(), NONCE), now=NOW)


def judged(answer: str, **changes: object) -> Verification:
    honest: dict[str, object] = {"nonce": NONCE, "keys": nras_keys(), "gpus": 1, "now": NOW}
    return verify_nras(answer, **(honest | changes))  # type: ignore[arg-type]  # tests replace any of them


def test_the_honest_gpu_passes_and_its_place_stays_open() -> None:
    """The twin of all that follows."""
    whole = verified(policy=GpuPolicy(required_gpus=1, require_nras=True)).with_nras(judged(HONEST_ANSWER))
    assert whole.verdict is Verdict.VERIFIED
    assert skipped(whole) == {"gpu.cpu-binding"}


@pytest.mark.parametrize("claimed", ["", NONCE.hex()[:2], NONCE.hex()[:32], NONCE.hex()[:-1], NONCE.hex() + "00"])
def test_a_nonce_that_is_the_beginning_of_ours_is_not_ours(claimed: str) -> None:
    payload = json.loads(gpu_payload(gpus(), NONCE)) | {"nonce": claimed}
    assert failed(verified(json.dumps(payload))) == {"gpu.payload"}


def test_a_nonce_that_is_not_there_is_not_ours() -> None:
    payload = json.loads(gpu_payload(gpus(), NONCE))
    del payload["nonce"]
    assert failed(verified(json.dumps(payload))) == {"gpu.payload"}
    assert failed(verified(json.dumps(payload | {"nonce": None}))) == {"gpu.payload"}


def test_our_nonce_around_evidence_for_another() -> None:
    """A report that answered somebody else, with the payload's own nonce put right."""
    assert failed(verified(payload_of([gpus()[0].entry(OTHER_NONCE)]))) == {"gpu.0.nonce"}
    recorded = SimulatedGpu(SEED, fault=GpuFault.OTHER_NONCE)
    assert failed(verified(gpu_payload([recorded], NONCE))) == {"gpu.0.nonce"}


def test_our_nonce_written_over_that_of_a_recorded_report() -> None:
    report = gpus()[0].report(OTHER_NONCE)
    entry = gpus()[0].entry(OTHER_NONCE) | {
        "evidence": base64.b64encode(report[:4] + NONCE + report[36:]).decode(),
    }
    assert failed(verified(payload_of([entry]))) == {"gpu.0.signature"}


def test_our_nonce_in_the_place_of_the_devices_own() -> None:
    """The other nonce of a report is the device's; a verifier that looked there could be fed."""
    report = gpus()[0].report(OTHER_NONCE)
    at = 37 + 8 + 64 * 55
    entry = gpus()[0].entry(OTHER_NONCE) | {
        "evidence": base64.b64encode(report[:at] + NONCE + report[at + 32 :]).decode(),
    }
    assert failed(verified(payload_of([entry]))) == {"gpu.0.signature", "gpu.0.nonce"}


def test_an_empty_list_is_never_a_pass() -> None:
    result = verified(payload_of([]))
    assert not passed(result)
    assert result.verdict is Verdict.PARTIAL
    assert failed(verified(payload_of([]), policy=GpuPolicy(required_gpus=1))) == {"gpu.policy"}


def test_one_gpu_posing_as_eight() -> None:
    payload = gpu_payload(gpus() * 8, NONCE)
    assert failed(verified(payload, policy=GpuPolicy(required_gpus=8))) == {"gpu.payload"}
    honest = gpu_payload(gpus(8), NONCE)
    assert verified(honest, policy=GpuPolicy(required_gpus=8)).verdict is Verdict.VERIFIED


def test_a_genuine_switch_posing_as_a_gpu() -> None:
    switch = SimulatedGpu(SEED, arch="LS10", fault=GpuFault.MISLABELLED)
    result = verified(gpu_payload([switch], NONCE), policy=GpuPolicy(required_gpus=1))
    assert failed(result) == {"gpu.0.chain"}


def test_a_gpu_of_the_attackers_own_making() -> None:
    own = SimulatedGpu(b"\x66" * 32)
    assert failed(verified(gpu_payload([own], NONCE))) == {"gpu.0.chain"}
    grafted = own.entry(NONCE) | {
        "certificate": base64.b64encode(own.chain_pem.replace(own.root_pem, gpus()[0].root_pem).encode()).decode()
    }
    assert failed(verified(payload_of([grafted]))) == {"gpu.0.chain"}


def test_a_certificate_that_the_leaf_of_a_genuine_gpu_issued() -> None:
    own = SimulatedGpu(SEED, fault=GpuFault.LEAF_AS_ISSUER)
    assert failed(verified(gpu_payload([own], NONCE))) == {"gpu.0.chain"}


def test_the_root_of_another_vendor_does_not_vouch_for_gpus() -> None:
    assert failed(verified(anchors=Anchors.of("intel", "amd"))) == {"gpu.0.chain"}


def test_the_evidence_of_another_gpu_is_that_of_a_genuine_one_and_nothing_says_where_it_is() -> None:
    """A relay cannot be told from the machine's own GPU; so nothing here may claim that it was."""
    elsewhere = SimulatedGpu(SEED, number=7)
    result = verified(gpu_payload([elsewhere], NONCE))
    assert result.verdict is Verdict.VERIFIED
    assert "gpu.cpu-binding" in skipped(result)
    assert not any("this machine" in each.reason or "bound" in each.reason for each in result.checks)


def test_tokens_about_a_better_gpu_than_the_one_in_evidence() -> None:
    """The service looked at GPU 7, and the evidence is that of GPU 0; both answer our nonce."""
    better = SimulatedNras(SEED).attest(gpu_payload([SimulatedGpu(SEED, number=7)], NONCE), now=NOW)
    assert failed(judged(better, ueids=verified().gpu_ueids)) == {"nras.claims"}
    assert judged(HONEST_ANSWER, ueids=verified().gpu_ueids).verdict is Verdict.VERIFIED


@pytest.mark.parametrize("fault", [NrasFault.UNSIGNED, NrasFault.ONE_UNSIGNED])
def test_an_unsigned_token_is_no_evidence(fault: NrasFault) -> None:
    answer = SimulatedNras(SEED, fault=fault).attest(gpu_payload(gpus(), NONCE), now=NOW)
    assert failed(judged(answer)) == {"nras.signature"}
    assert failed(judged(answer, keys=None)) == {"nras.signature"}


def test_a_signature_taken_off() -> None:
    (kind, main), tokens = json.loads(HONEST_ANSWER)
    stripped = json.dumps([[kind, main.rsplit(".", 1)[0] + "."], tokens])
    assert failed(judged(stripped)) == {"nras.signature"}


def test_a_symmetric_key_made_of_the_public_one() -> None:
    """alg: HS256 with the published key as the secret, which libraries have fallen for."""
    (kind, main), tokens = json.loads(HONEST_ANSWER)
    text = f"{b64url(json.dumps({'alg': 'HS256', 'kid': 'simulated-nras-key'}).encode())}.{main.split('.')[1]}"
    forged = f"{text}.{b64url(digest(SimulatedNras(SEED).jwks(), text.encode(), 'sha256'))}"
    assert failed(judged(json.dumps([[kind, forged], tokens]))) == {"nras.signature"}


def test_a_key_set_of_the_attackers_own() -> None:
    """It signs flawlessly, under the same key id; only the caller's key set counts."""
    service = SimulatedNras(b"\x66" * 32)
    answer = service.attest(gpu_payload([SimulatedGpu(b"\x66" * 32)], NONCE), now=NOW)
    assert failed(judged(answer)) == {"nras.signature"}
    assert judged(answer, keys=nras_keys(service)).verdict is Verdict.VERIFIED  # the caller would have to give it


def test_a_recorded_answer() -> None:
    answer = SimulatedNras(SEED).attest(gpu_payload(gpus(), OTHER_NONCE), now=NOW)
    assert failed(judged(answer)) == {"nras.claims"}
    assert failed(judged(HONEST_ANSWER, now=NOW + 2 * 60 * 60)) == {"nras.signature"}


def test_a_good_token_moved_into_an_answer_about_a_bad_gpu() -> None:
    bad = SimulatedNras(SEED, fault=NrasFault.MEASUREMENTS).attest(gpu_payload(gpus(), NONCE), now=NOW)
    main, _ = json.loads(bad)
    _, tokens = json.loads(HONEST_ANSWER)
    result = judged(json.dumps([main, tokens]))
    assert failed(result) == {"nras.claims"}
    assert "digest" in check(result, "nras.claims").reason


def test_the_token_of_a_device_posing_as_the_main_one() -> None:
    _, tokens = json.loads(HONEST_ANSWER)
    assert failed(judged(json.dumps([["JWT", tokens["GPU-0"]], tokens]))) == {"nras.claims"}


def test_pinning_one_simulator_does_not_pin_another() -> None:
    assert failed(verified(gpu_payload([SimulatedGpu(b"\x66" * 32)], NONCE), anchors=pinned())) == {"gpu.0.chain"}
