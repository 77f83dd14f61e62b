"""Evidence of real NVIDIA GPUs and switches, answers of NVIDIA's service, and simulated ones made by another program.

The files lie beside the repository and are read in place. Each mutation says how often it tried.
"""

import base64
import json
import time
from collections.abc import Iterable
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from confide.evidence.nras import Answer, parse_answer, verify_nras
from confide.evidence.nras_keys import NrasKeys, read_key_set
from confide.evidence.nvidia import GpuResult, verify_gpu_payload
from confide.evidence.policy import NVIDIA_DEVICE_ROOT_SHA256, Anchors, GpuPolicy
from confide.evidence.result import Status, Verdict
from confide.evidence.spdm import parse_report
from confide.simulator.nras import SimulatedNras
from gpu_builders import check, entry_of, failed, flipped, passed, payload_of, skipped
from shared_data import TEE

if not TEE.is_dir():
    pytest.skip("the stored TEE samples are not beside this repository", allow_module_level=True)

PRESENT = 1_795_000_000  # November 2026; NVIDIA's certificates do not expire
HARDWARE = Anchors.default()

GPUS = json.loads((TEE / "nvidia/nvtrust_ppcie_gpu_evidence.json").read_text())
SWITCHES = json.loads((TEE / "nvidia/nvtrust_ppcie_switch_evidence.json").read_text())
DEVICES = GPUS + SWITCHES
NONCE = bytes.fromhex("4760e30534a0621357d458b1a7936551b5dc4cd1e69718adf7ed9fb0252a537e")
CANNED_NONCE = bytes.fromhex("931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb")

SIMULATED_PAYLOAD = (TEE / "sim/gpu_nvidia_payload.json").read_text()
SIMULATED_ANSWER = (TEE / "sim/nras_response.json").read_text()
SIMULATED_NONCE = sha256(b"sim gpu nonce").digest()
SIMULATED_NRAS_FROM, SIMULATED_NRAS_UNTIL = 1795378116, 1795381716


def verified(payload: str, nonce: bytes = NONCE, anchors: Anchors = HARDWARE, *, required_gpus: int = 0) -> GpuResult:
    policy = GpuPolicy(required_gpus=required_gpus)
    return verify_gpu_payload(payload, nonce=nonce, anchors=anchors, policy=policy, now=PRESENT)


def raw(device: dict[str, str]) -> tuple[bytes, bytes]:
    """Report and PEM chain of a stored device."""
    return base64.b64decode(device["evidence"]), base64.b64decode(device["certificate"])


def canned() -> dict[str, object]:
    report = bytes.fromhex((TEE / "nvidia/nvtrust_hopperAttestationReport.txt").read_text().strip())
    return entry_of(report, (TEE / "nvidia/nvtrust_hopperCertChain.txt").read_bytes())


# Devices.


def test_eight_gpus_and_four_switches_of_one_real_machine() -> None:
    result = verified(payload_of(DEVICES, NONCE), required_gpus=8)
    assert result.verdict is Verdict.VERIFIED
    assert not result.simulated
    assert [anchor.name for anchor in result.anchors] == ["nvidia-device-root"]
    assert check(result, "gpu.policy").reason == "8 GPUs, 4 switches"
    for place in range(12):
        for what in ("chain", "signature", "nonce"):
            assert check(result, f"gpu.{place}.{what}").status is Status.PASS
        assert check(result, f"gpu.{place}.fwid").status is (Status.PASS if place < 8 else Status.SKIP)


@pytest.mark.parametrize("place", range(12))
def test_each_device_verifies_alone_in_the_older_form(place: int) -> None:
    device = DEVICES[place]
    payload = json.dumps({name: device[name] for name in ("nonce", "certificate", "evidence", "arch")})
    assert verified(payload).verdict is Verdict.VERIFIED


@pytest.mark.parametrize("place", range(8))
def test_the_versions_read_are_those_that_nvidias_tools_wrote_down(place: int) -> None:
    result = verified(payload_of([GPUS[place]], NONCE))
    assert result.facts["gpu.0.driver_version"] == GPUS[place]["driver_version"] == "590.12"
    assert result.facts["gpu.0.vbios_version"] == GPUS[place]["vbios_version"] == "96.00.A5.00.01"
    assert result.facts["gpu.0.protected_pcie"] == "aa"


def test_the_layout_of_gpu_and_switch() -> None:
    gpu, switch = parse_report(raw(GPUS[0])[0]), parse_report(raw(SWITCHES[0])[0])
    assert (len(raw(GPUS[0])[0]), len(gpu.blocks)) == (4274, 64)
    assert (len(raw(SWITCHES[0])[0]), len(switch.blocks)) == (2172, 31)
    assert (switch.vbios_version, switch.driver_version, switch.fwid) == ("96.10.73.00.01", None, None)
    assert gpu.nonce == switch.nonce == NONCE
    assert len({NONCE, gpu.device_nonce, switch.device_nonce}) == 3


def test_a_switch_does_not_count_as_a_gpu() -> None:
    assert failed(verified(payload_of(SWITCHES, NONCE), required_gpus=1)) == {"gpu.policy"}
    relabelled = [switch | {"arch": "HOPPER"} for switch in SWITCHES]
    assert failed(verified(payload_of(relabelled, NONCE))) == {f"gpu.{place}.chain" for place in range(4)}


def test_one_real_gpu_listed_eight_times_is_not_eight() -> None:
    assert failed(verified(payload_of([GPUS[0]] * 8, NONCE), required_gpus=8)) == {"gpu.payload"}


def test_the_report_of_one_gpu_under_the_chain_of_another() -> None:
    mixed = entry_of(raw(GPUS[0])[0], raw(GPUS[1])[1])
    assert failed(verified(payload_of([mixed], NONCE))) == {"gpu.0.signature"}


def test_the_canned_report_answers_its_own_nonce_and_no_other() -> None:
    own = verified(payload_of([canned()], CANNED_NONCE), CANNED_NONCE)
    assert own.verdict is Verdict.VERIFIED
    assert own.facts["gpu.0.driver_version"] == "550.90.07"
    assert failed(verified(payload_of([canned()], NONCE))) == {"gpu.0.nonce"}
    for bit in range(0, 256, 5):
        fresh = flipped(CANNED_NONCE, bit)
        assert failed(verified(payload_of([canned()], fresh), fresh)) == {"gpu.0.nonce"}


def test_the_stored_root_is_the_one_that_is_built_in() -> None:
    stored = x509.load_pem_x509_certificate((TEE / "nvidia/nvtrust_verifier_device_root.pem").read_bytes())
    der = stored.public_bytes(Encoding.DER)
    assert sha256(der).hexdigest() == NVIDIA_DEVICE_ROOT_SHA256
    assert HARDWARE.matching(der, "nvidia") is not None
    rim_root = x509.load_pem_x509_certificate((TEE / "nvidia/nvtrust_verifier_RIM_root.pem").read_bytes())
    assert HARDWARE.matching(rim_root.public_bytes(Encoding.DER), "nvidia") is None


def test_without_nvidias_root_real_gpus_are_rejected() -> None:
    result = verified(payload_of(GPUS[:1], NONCE), anchors=Anchors.of("intel", "amd"))
    assert failed(result) == {"gpu.0.chain"}
    assert NVIDIA_DEVICE_ROOT_SHA256 in check(result, "gpu.0.chain").reason


def test_one_gpu_takes_milliseconds() -> None:
    payload = payload_of(GPUS[:1], NONCE)
    verified(payload)
    taken = []
    for _ in range(20):
        started = time.process_time()
        verified(payload)
        taken.append(time.process_time() - started)
    assert min(taken) < 0.050  # docs/performance.md has the figure; a machine that does other things has slower caches


# Bits.


def tries(device: dict[str, str], part: str, bits: Iterable[int]) -> int:
    """Flip each of these bits in the device's report or chain: every one must be rejected. Returns how many."""
    report, pem = raw(device)
    tried = 0
    for bit in bits:
        entry = (
            entry_of(flipped(report, bit), pem, device["arch"])
            if part == "report"
            else entry_of(report, flipped(pem, bit), device["arch"])
        )
        assert verified(payload_of([entry], NONCE)).verdict is Verdict.NOT_VERIFIED, f"{part}, bit {bit}"
        tried += 1
    return tried


def bits(device: dict[str, str], part: str, step: int, start: int = 0) -> range:
    report, pem = raw(device)
    return range(start, 8 * len(report if part == "report" else pem), step)


@pytest.mark.parametrize("part", ["report", "chain"])
def test_a_flipped_bit_in_any_real_device_is_rejected(part: str) -> None:
    tried = sum(tries(device, part, bits(device, part, 997, place)) for place, device in enumerate(DEVICES))
    assert tried > 300


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("part", "least"), [("report", 8 * 4274), ("chain", 8 * 4800)])
def test_every_bit_of_one_real_gpu_counts(part: str, least: int) -> None:
    assert tries(GPUS[0], part, bits(GPUS[0], part, 1)) >= least


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("place", range(1, 12))
def test_many_bits_of_each_real_device_count(place: int) -> None:
    for part in ("report", "chain"):
        assert tries(DEVICES[place], part, bits(DEVICES[place], part, 31, place)) > 500


# The remote service.


def stored_answer(gpus: int) -> str:
    return (TEE / f"nvidia/vllm-proxy_nras_response_{gpus}gpu.json").read_text()


def nonce_of(answer: Answer) -> bytes:
    return bytes.fromhex(str(answer.main.claims["eat_nonce"]))


def issued_at(answer: Answer) -> int:
    moment = answer.main.claims["iat"]
    assert isinstance(moment, int)
    return moment


@pytest.fixture(scope="module")
def simulated_keys() -> NrasKeys:
    return read_key_set((TEE / "sim/nras_jwks.json").read_bytes(), simulated=True)


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_real_answer_holds_together_and_proves_nothing_without_a_key_set(gpus: int) -> None:
    answer = parse_answer(stored_answer(gpus))
    result = verify_nras(stored_answer(gpus), nonce=nonce_of(answer), keys=None, gpus=gpus, now=issued_at(answer))
    assert skipped(result) == {"nras.signature", "nras.claims"}  # the claims skip: had a digest been wrong, they failed
    assert result.verdict is Verdict.PARTIAL


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_real_answer_is_about_its_own_nonce_and_number_of_gpus(gpus: int) -> None:
    answer = parse_answer(stored_answer(gpus))
    for nonce, number in [(NONCE, gpus), (nonce_of(answer), gpus + 1)]:
        result = verify_nras(stored_answer(gpus), nonce=nonce, keys=None, gpus=number, now=issued_at(answer))
        assert failed(result) == {"nras.claims"}


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_real_answer_with_a_changed_token_no_longer_fits_its_digest(gpus: int) -> None:
    answer = parse_answer(stored_answer(gpus))
    main, tokens = json.loads(stored_answer(gpus))
    tokens["GPU-0"] = tokens["GPU-0"][:-1] + ("A" if tokens["GPU-0"][-1] != "A" else "B")
    changed = json.dumps([main, tokens])
    result = verify_nras(changed, nonce=nonce_of(answer), keys=None, gpus=gpus, now=issued_at(answer))
    assert "does not name the digest" in check(result, "nras.claims").reason


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_real_answer_fails_under_any_other_key_set(gpus: int, simulated_keys: NrasKeys) -> None:
    answer = parse_answer(stored_answer(gpus))
    key_id = str(answer.main.header["kid"])
    same_id = NrasKeys(simulated_keys.anchor, {key_id: next(iter(simulated_keys.keys.values()))})
    for keys, message in [(simulated_keys, "not in the key set"), (same_id, "did not sign it")]:
        result = verify_nras(stored_answer(gpus), nonce=nonce_of(answer), keys=keys, gpus=gpus, now=issued_at(answer))
        assert failed(result) == {"nras.signature"}
        assert message in check(result, "nras.signature").reason


@pytest.mark.parametrize("gpus", [1, 8])
def test_real_answers_expired_after_an_hour(gpus: int) -> None:
    answer = parse_answer(stored_answer(gpus))
    assert {token.claims["exp"] for token in answer.tokens} == {issued_at(answer) + 3600}
    assert issued_at(answer) + 3600 < PRESENT


@pytest.mark.parametrize("with_keys", [False, True])
def test_unsigned_tokens_of_the_local_tool_are_refused(with_keys: bool, simulated_keys: NrasKeys) -> None:
    document = json.loads((TEE / "nvidia/dstack_gpu_attestation_h100.json").read_text())
    answer = json.dumps(document["detached_eat"])
    keys = simulated_keys if with_keys else None
    result = verify_nras(answer, nonce=b"\x11" * 32, keys=keys, gpus=1, now=1784207862)
    assert failed(result) == {"nras.signature"}
    assert "got the algorithm none, expected ES384" in check(result, "nras.signature").reason
    assert skipped(result) == {"nras.claims"}  # and its digest fits


# Simulated, by another program.


def simulated_anchors() -> Anchors:
    root = x509.load_pem_x509_certificate((TEE / "sim/gpu_device_root.pem").read_bytes())
    return HARDWARE.with_simulated(root.public_bytes(Encoding.DER))


def test_the_stored_simulated_gpu_verifies_under_its_pinned_root() -> None:
    result = verified(SIMULATED_PAYLOAD, SIMULATED_NONCE, simulated_anchors())
    assert passed(result) == {"gpu.payload", "gpu.0.chain", "gpu.0.signature", "gpu.0.nonce", "gpu.policy"}
    assert "gpu.0.fwid" in skipped(result)  # it has no field 20
    assert (result.ok, result.verdict, result.simulated) == (True, Verdict.PARTIAL, True)
    assert failed(verified(SIMULATED_PAYLOAD, SIMULATED_NONCE)) == {"gpu.0.chain"}


@pytest.mark.parametrize("now", [SIMULATED_NRAS_FROM, SIMULATED_NRAS_UNTIL - 1])
def test_the_stored_simulated_answer_verifies_at_its_time(now: int, simulated_keys: NrasKeys) -> None:
    result = verify_nras(SIMULATED_ANSWER, nonce=SIMULATED_NONCE, keys=simulated_keys, gpus=1, now=now)
    assert passed(result) == {"nras.signature", "nras.claims"}
    assert result.simulated


def test_the_stored_simulated_answer_expires(simulated_keys: NrasKeys) -> None:
    late = SIMULATED_NRAS_UNTIL + 60
    result = verify_nras(SIMULATED_ANSWER, nonce=SIMULATED_NONCE, keys=simulated_keys, gpus=1, now=late)
    assert failed(result) == {"nras.signature"}
    assert "expired" in check(result, "nras.signature").reason


def test_the_stored_key_set_gives_the_same_key_from_its_certificate(simulated_keys: NrasKeys) -> None:
    (jwk,) = json.loads((TEE / "sim/nras_jwks.json").read_text())["keys"]
    bare = {name: value for name, value in jwk.items() if name not in ("x", "y")}
    keys = read_key_set(json.dumps({"keys": [bare]}).encode(), simulated=True)
    (ours,), (theirs,) = keys.keys.values(), simulated_keys.keys.values()
    assert ours.public_numbers() == theirs.public_numbers()
    assert keys.anchor.sha256 != simulated_keys.anchor.sha256


def test_our_simulated_service_does_not_know_the_stored_device() -> None:
    with pytest.raises(ValueError, match="only devices of its own seed"):
        SimulatedNras(b"\x31" * 32).attest(SIMULATED_PAYLOAD, now=PRESENT)


def answer_tries(characters: Iterable[int], keys: NrasKeys) -> int:
    """Flip every bit of these characters of the stored simulated answer: it is rejected, or says the same."""
    tried, honest = 0, parse_answer(SIMULATED_ANSWER)
    for bit in (8 * place + bit for place in characters for bit in range(8)):
        changed = flipped(SIMULATED_ANSWER.encode(), bit)
        result = verify_nras(changed, nonce=SIMULATED_NONCE, keys=keys, gpus=1, now=SIMULATED_NRAS_FROM)
        tried += 1
        assert result.verdict is Verdict.NOT_VERIFIED or [each.text for each in parse_answer(changed).tokens] == [
            each.text for each in honest.tokens
        ], f"bit {bit}"
    return tried


def test_a_flipped_bit_in_an_answer_is_rejected_or_says_the_same(simulated_keys: NrasKeys) -> None:
    assert answer_tries(range(0, len(SIMULATED_ANSWER), 41), simulated_keys) > 250


@pytest.mark.long
def test_every_bit_of_an_answer_counts(simulated_keys: NrasKeys) -> None:
    assert answer_tries(range(len(SIMULATED_ANSWER)), simulated_keys) == 8 * len(SIMULATED_ANSWER)
