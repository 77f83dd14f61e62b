"""What each part of a platform's evidence means for id-1, id-4 and id-5, and what a policy may ask of it."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from coincurve import PrivateKey

from aci_service import HOST, NONCE, AciService, appraised, named
from confide.client.verdict import require
from confide.errors import CannotTell, VerificationError
from confide.evidence.custody import ROLES
from confide.evidence.policy import DstackPolicy, GpuPolicy, SnpPolicy
from confide.evidence.result import Status, Verdict
from confide.protocol.statement import aci_report_data
from confide.simulator import measurements
from confide.simulator.gpu import gpu_payload
from confide.simulator.kms import SimulatedKms
from confide.verifier.appraisal import Connection, ServiceVerification
from confide.verifier.platform import concluded
from confide.verifier.policy import Policy
from gpu_builders import gpus
from snp_builders import platform as snp_platform

Trusting = Callable[..., Policy]
KMS = SimulatedKms(b"\x21" * 32)
COMPOSE = '{"name": "an application"}'
DOCUMENT = json.dumps(
    {"version": 3, "app_id": "ab" * 20, "compose_hash": sha256(COMPOSE.encode()).hexdigest(), "instance_id": ""}
)


def failing(result: ServiceVerification) -> set[str]:
    return {check.name for check in result.checks if check.status is Status.FAIL}


def status(result: ServiceVerification, name: str) -> Status:
    return named(result.checks, name).status


# SEV-SNP


def snp_service(service: AciService, document: str | None = None, **members: Any) -> AciService:
    """The same keyset in a simulated SNP guest. `document`: what its host committed to."""
    data = aci_report_data(service.digest, NONCE)
    host_data = bytes(32) if document is None else sha256(b"dstack-mr-config-v3:\0" + document.encode()).digest()
    machine = snp_platform()
    evidence = {
        "snp_report": machine.report(data, host_data).hex(),
        "vcek": machine.vcek_pem,
        "cert_chain": machine.chain_pem,
        "simulated": True,
    }
    if document is not None:
        evidence["mr_config_document"] = document
    return service.but(tee_type="sev_snp", evidence={"quote": ..., **evidence, **members})


@pytest.fixture
def trusting_snp(tmp_path_factory: pytest.TempPathFactory) -> Trusting:
    root = tmp_path_factory.mktemp("snp") / "root.pem"
    root.write_text(snp_platform().root_pem)
    return lambda **asked: Policy(trust_roots=(root,), **asked)


def test_an_snp_guest_is_verified_like_a_tdx_one(service: AciService, trusting_snp: Trusting) -> None:
    result = snp_service(service).verified(trusting_snp())
    assert (failing(result), result.ok, result.verdict, result.simulated) == (set(), True, Verdict.VERIFIED, True)
    assert "an SEV-SNP report that verifies to sim:" in named(result.checks, "id-1").reason
    assert status(result, "id-2") is Status.PASS
    assert status(result, "id-4") is Status.SKIP
    assert {"snp.signature", "snp.vcek", "binding.report-data"} <= result.required


def test_an_snp_report_for_another_nonce_is_no_binding(service: AciService, trusting_snp: Trusting) -> None:
    result = appraised(snp_service(service).report(NONCE), trusting_snp(), nonce="d5" * 32)
    assert {"id-2", "binding.report-data"} <= failing(result)
    assert not result.ok


def test_without_its_certificates_an_snp_report_is_neither_yes_nor_no(
    service: AciService, trusting_snp: Trusting
) -> None:
    result = snp_service(service, vcek=..., cert_chain=...).verified(trusting_snp())
    assert status(result, "id-1") is Status.SKIP
    assert not result.ok
    with pytest.raises(CannotTell, match="gave no collateral") as caught:
        require(result)
    assert "`vcek` and `cert_chain`" in str(caught.value.remedy)
    plain = Connection(host=HOST, spki_sha256=None)
    with pytest.raises(VerificationError, match="id-6"):
        require(snp_service(service, vcek=..., cert_chain=...).verified(trusting_snp(), connection=plain))


def test_an_snp_policy_is_asked_too(service: AciService, trusting_snp: Trusting) -> None:
    denied = SnpPolicy(denied_products={"milan": "its design was broken"})
    result = snp_service(service).verified(trusting_snp(snp=denied))
    assert failing(result) == {"id-1", "snp.policy"}
    assert "its design was broken" in named(result.checks, "id-1").reason


def test_the_document_in_host_data_says_what_runs(service: AciService, trusting_snp: Trusting) -> None:
    honest = snp_service(service, DOCUMENT, app_compose=COMPOSE).verified(
        trusting_snp(compose_hashes=[sha256(COMPOSE.encode()).hexdigest()])
    )
    assert status(honest, "id-4") is Status.PASS
    assert honest.ok
    other = snp_service(service, DOCUMENT, app_compose="another").verified(trusting_snp())
    assert failing(other) == {"id-4"}
    odd = snp_service(service, "{", app_compose=COMPOSE).verified(trusting_snp())
    assert failing(odd) == {"id-4"}
    swapped = snp_service(service, DOCUMENT, app_compose=COMPOSE, mr_config_document="{}").verified(trusting_snp())
    assert "dstack.host-data" in failing(swapped)
    assert status(swapped, "id-4") is Status.SKIP


def test_a_report_without_any_quote_is_no_report(service: AciService, trusting: Trusting) -> None:
    result = service.but(evidence={"quote": ...}).verified(trusting())
    assert failing(result) == {"id-1"}
    assert "neither a quote nor an snp_report" in named(result.checks, "id-1").reason


# GPUs


def with_gpus(service: AciService, count: int, nonce: str = NONCE) -> AciService:
    return service.but(evidence={"nvidia_payload": gpu_payload(gpus(count), bytes.fromhex(nonce))})


@pytest.fixture
def trusting_gpus(root: Path, tmp_path: Path) -> Trusting:
    """The TDX root, and that of the devices."""
    (tmp_path / "gpu.pem").write_text(gpus()[0].root_pem)
    return lambda **asked: Policy(trust_roots=(root, tmp_path / "gpu.pem"), **asked)


def test_gpus_that_answered_our_nonce_are_shown_and_may_be_required(
    service: AciService, trusting_gpus: Trusting
) -> None:
    result = with_gpus(service, 2).verified(trusting_gpus(gpu=GpuPolicy(required_gpus=2), claims=["gpu_attested"]))
    assert (failing(result), result.ok) == (set(), True)
    assert result.facts["gpu.count"] == 2
    assert status(result, "gpu.cpu-binding") is Status.SKIP
    assert len(result.anchors) == 2


@pytest.mark.parametrize("payload", [..., json.dumps({"nonce": NONCE, "evidence_list": [], "arch": "HOPPER"})])
def test_gpus_that_are_required_and_not_there_are_missed(
    service: AciService, trusting_gpus: Trusting, payload: object
) -> None:
    bare = service.but(evidence={"nvidia_payload": payload})
    assert bare.verified(trusting_gpus()).ok
    missed = bare.verified(trusting_gpus(gpu=GpuPolicy(required_gpus=1)))
    assert not missed.ok
    assert not bare.verified(trusting_gpus(claims=["gpu_attested"])).ok


def test_gpu_evidence_for_another_nonce_fails_also_where_none_was_required(
    service: AciService, trusting_gpus: Trusting
) -> None:
    replayed = with_gpus(service, 1, nonce="d5" * 32).verified(trusting_gpus())
    assert "gpu.payload" in failing(replayed)
    assert not replayed.ok


def test_without_a_nonce_of_ours_no_gpu_has_answered(service: AciService, trusting_gpus: Trusting) -> None:
    result = with_gpus(service, 1).verified(trusting_gpus(), nonce=None)
    assert status(result, "gpu.payload") is Status.SKIP


# dstack


def custody(service: AciService, kms: SimulatedKms = KMS, **changes: object) -> dict[str, object]:
    """Who released the receipt key of this service, as its report shows it."""
    role = ROLES[0]
    released: Any = kms.app_keys(measurements.APP_ID).release("aci/receipt-ed25519/v1", role.purpose)
    [key] = service.keyset.receipt_signing_keys
    public = PrivateKey(bytes.fromhex(released["key"])).public_key.format(compressed=True).hex()
    entry = {
        "role": role.name,
        "path": "aci/receipt-ed25519/v1",
        "purpose": role.purpose,
        "algo": key.algo,
        "public_key": key.public_key,
        "kms_public_key": public,
        "signature_chain": released["signature_chain"],
    }
    return {"key_custody": {"provider": "dstack-kms", "keys": [entry | changes]}}


def pinned(**asked: object) -> DstackPolicy:
    return DstackPolicy(kms_roots=frozenset({KMS.root_public_key}), **asked)  # type: ignore[arg-type]  # tests ask for any


def test_custody_is_shown_up_to_a_kms_root_that_the_policy_pins(service: AciService, trusting: Trusting) -> None:
    shown = service.but(evidence=custody(service))
    assert status(shown.verified(trusting(dstack=pinned())), "id-5") is Status.PASS
    assert shown.verified(trusting(dstack=pinned())).ok
    unpinned = shown.verified(trusting())
    assert status(unpinned, "id-5") is Status.SKIP
    assert unpinned.ok


@pytest.mark.parametrize("evidence", [{}, {"key_custody": None}])
def test_custody_that_is_asked_for_and_not_shown_is_missed(
    service: AciService, trusting: Trusting, evidence: dict[str, object]
) -> None:
    assert not service.but(evidence=evidence).verified(trusting(dstack=pinned())).ok


def test_a_chain_of_another_kms_fails(service: AciService, trusting: Trusting) -> None:
    other = service.but(evidence=custody(service, SimulatedKms(b"\x22" * 32)))
    result = other.verified(trusting(dstack=pinned()))
    assert failing(result) == {"id-5", "custody.receipt"}


def test_an_application_that_the_policy_pins_is_required_to_be_measured(
    service: AciService, trusting: Trusting
) -> None:
    right = DstackPolicy(compose_hashes=frozenset({measurements.COMPOSE_HASH.hex()}))
    wrong = DstackPolicy(compose_hashes=frozenset({"ab" * 32}))
    assert service.verified(trusting(dstack=right)).ok
    assert failing(service.verified(trusting(dstack=wrong))) == {"id-4", "dstack.compose-policy"}
    silent = service.but(evidence={"event_log": ...}).verified(trusting(dstack=right))
    assert not silent.ok


def test_a_log_that_is_not_the_quotes_fails_id_4_by_name(service: AciService, trusting: Trusting) -> None:
    log = json.loads(service.platform.event_log)
    log[0]["digest"] = "ab" * 48  # RTMR0, which the older check never looked at
    result = service.but(evidence={"event_log": json.dumps(log)}).verified(trusting())
    assert {"id-4", "dstack.replay"} <= failing(result)
    assert named(result.checks, "id-4").reason.startswith("dstack.replay: ")


def test_nothing_to_conclude_from_is_a_skip() -> None:
    assert concluded("id-5", ()).status is Status.SKIP
