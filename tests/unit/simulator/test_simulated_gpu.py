"""The simulated devices and service seen from outside: what they hand out, read with other tools than their own."""

import json
import subprocess
import sys

import jwt
import pytest
from cryptography import x509

from confide.simulator.gpu import CHIPS, GpuFault, SimulatedGpu, gpu_payload
from confide.simulator.nras import KEY_ID, NrasFault, SimulatedNras

NOW = 1_800_000_000
SEED = bytes(range(32))
NONCE = bytes(range(32, 64))


def test_another_process_gets_the_same_bytes_from_the_same_seed() -> None:
    program = (
        "from confide.simulator.gpu import SimulatedGpu as G, gpu_payload as p;"
        "from confide.simulator.nras import SimulatedNras as N;"
        "s, n = bytes(range(32)), bytes(range(32, 64)); e = p([G(s)], n);"
        f"print(G(s).root_der.hex(), G(s).report(n).hex(), N(s).jwks().hex(), N(s).attest(e, now={NOW}).encode().hex())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    gpu, service = SimulatedGpu(SEED), SimulatedNras(SEED)
    answer = service.attest(gpu_payload([gpu], NONCE), now=NOW)
    ours = [gpu.root_der, gpu.report(NONCE), service.jwks(), answer.encode()]
    assert done.stdout.split() == [part.hex() for part in ours]


def test_devices_of_one_seed_share_the_root_and_nothing_else() -> None:
    devices = [SimulatedGpu(SEED, number=place, arch=arch) for place, arch in enumerate(CHIPS)]
    devices += [SimulatedGpu(SEED, number=9, fault=fault) for fault in GpuFault if fault is not GpuFault.FOREIGN_ROOT]
    assert len({device.root_der for device in devices}) == 1
    assert len({device.report(NONCE)[-96:] for device in devices[:3]}) == 3
    assert SimulatedGpu(SEED, fault=GpuFault.FOREIGN_ROOT).root_der != devices[0].root_der
    assert SimulatedGpu(b"\x01" * 32).root_der != devices[0].root_der


@pytest.mark.parametrize("arch", CHIPS)
def test_every_subject_says_that_it_is_not_nvidias(arch: str) -> None:
    pem = SimulatedGpu(SEED, arch=arch).chain_pem.encode()
    (jwk,) = json.loads(SimulatedNras(SEED).jwks())["keys"]
    assert "simulated" in jwk["kid"]
    for certificate in x509.load_pem_x509_certificates(pem):
        subject = certificate.subject.rfc4514_string()
        assert "Simulated TEE (not NVIDIA)" in subject
        assert "O=NVIDIA" not in subject


def test_tokens_verify_with_a_library_that_the_service_does_not_use() -> None:
    service = SimulatedNras(SEED)
    (_, main), tokens = json.loads(service.attest(gpu_payload([SimulatedGpu(SEED)], NONCE), now=NOW))
    key = jwt.PyJWKSet.from_json(service.jwks().decode())[KEY_ID]
    for token in (main, *tokens.values()):
        claims = json.loads(jwt.PyJWS().decode(token, key, algorithms=["ES384"]))
        assert claims["eat_nonce"] == NONCE.hex()
        assert (claims["nbf"], claims["exp"]) == (NOW, NOW + 3600)


@pytest.mark.parametrize("fault", [GpuFault.SIGNATURE, GpuFault.FOREIGN_ROOT, GpuFault.OTHER_NONCE])
def test_the_service_verifies_before_it_speaks(fault: GpuFault) -> None:
    with pytest.raises(ValueError, match=r"did not sign|only devices of its own seed"):
        SimulatedNras(SEED).attest(gpu_payload([SimulatedGpu(SEED, fault=fault)], NONCE), now=NOW)


def test_faults_do_not_change_the_key_set() -> None:
    assert {SimulatedNras(SEED, fault=fault).jwks() for fault in NrasFault} == {SimulatedNras(SEED).jwks()}


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="the seed has 31 bytes, expected 32"):
        SimulatedGpu(bytes(31))
    with pytest.raises(ValueError, match="unknown architecture 'H100', expected one of HOPPER"):
        SimulatedGpu(SEED, arch="H100")
    with pytest.raises(ValueError, match="32 bytes of nonce expected, got 31"):
        SimulatedGpu(SEED).report(bytes(31))
