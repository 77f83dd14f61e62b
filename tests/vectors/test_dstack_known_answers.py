"""What real dstack guests logged, and a key chain made by another program, with their known answers.

The files lie beside the repository and are read in place.
"""

import json
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from confide.evidence.custody import check_chain, recovered, verify_custody
from confide.evidence.dstack import DSTACK_REQUIRED, DstackEvidence, DstackResult, verify_dstack
from confide.evidence.event_log import read_event_log
from confide.evidence.osimage import proven_hash, read_vm_config
from confide.evidence.policy import Anchors, DstackPolicy, KeyProvider, OsImage, TdxPolicy
from confide.evidence.quote import parse_quote
from confide.evidence.result import Status, Verdict, passed
from confide.evidence.tdx import QUOTE, TdxResult, verify_tdx
from confide.protocol.keyset import ED25519, Keyset, PublicKey
from shared_data import TEE, VECTORS

if not TEE.is_dir():
    pytest.skip("the stored TEE samples are not beside this repository", allow_module_level=True)

Document = dict[str, Any]

PROXY, PROXY_INFO = "dstack/vllm-proxy_dstack_quote.json", "dstack/vllm-proxy_dstack_info.json"
REPORT, LITE = "dstack/verifier_quote-report.json", "dstack/verifier_tdx-lite-getquote.json"
SIMULATED = "sim/dstack_getquote.json"

COMPOSE_HASH = "62dd36d22b7d704aaa4d598226801ed4e6a3bfd17dde762b2efd9876768be800"
APP_ID = "ab84a54bdaf082be00ea40e8e37bdeb5c15c58de"
LITE_IMAGE = "e6f5cfec20c02e7b97baa213d0f718020b55e040172d90ccbcb946d56c8b09db"


def stored(name: str) -> Document:
    document: Document = json.loads((TEE / name).read_text())
    return document


def tdx_of(name: str, collateral: str | None, now: int, anchors: Anchors | None = None) -> TdxResult:
    return verify_tdx(
        bytes.fromhex(stored(name)["quote"]),
        collateral=(TEE / collateral).read_text() if collateral else None,
        anchors=anchors or Anchors.default(),
        policy=TdxPolicy(),
        now=now,
    )


def as_if_verified(name: str) -> TdxResult:
    """For the sample that no stored collateral covers: its quote, taken as verified."""
    quote = parse_quote(bytes.fromhex(stored(name)["quote"]))
    return TdxResult(0, (passed(QUOTE, "taken as verified"),), quote=quote)


def statuses(result: DstackResult) -> dict[str, str]:
    return {check.name.removeprefix("dstack."): check.status.value for check in result.checks}


def reason(result: DstackResult, name: str) -> str:
    return next(check.reason for check in result.checks if check.name == f"dstack.{name}")


def entries(name: str) -> tuple[int, ...]:
    log = read_event_log(stored(name)["event_log"])
    return tuple(sum(event.register == register for event in log.events) for register in range(4))


@pytest.fixture(scope="module")
def proxy_tdx() -> TdxResult:
    return tdx_of(PROXY, "tdx/near-gas-test_collateral.json", 1758093775)


@pytest.fixture(scope="module")
def proxy_evidence() -> DstackEvidence:
    info = stored(PROXY_INFO)
    return DstackEvidence(
        event_log=stored(PROXY)["event_log"],
        app_compose=info["tcb_info"]["app_compose"],
        mr_aggregated=info["tcb_info"]["mr_aggregated"],
    )


def test_a_real_guest_is_verified_down_to_its_application(proxy_tdx: TdxResult, proxy_evidence: DstackEvidence) -> None:
    assert proxy_tdx.ok
    result = verify_dstack(proxy_tdx, proxy_evidence, DstackPolicy(compose_hashes=frozenset({COMPOSE_HASH})))
    assert result.verdict is Verdict.VERIFIED
    assert statuses(result) == {
        "replay": "pass",
        "events": "pass",
        "compose": "pass",
        "compose-policy": "pass",
        "mr-config": "pass",
        "mr-aggregated": "pass",
        "os-image": "skip",
        "key-provider": "skip",
    }
    assert "form 1" in reason(result, "mr-config")
    assert entries(PROXY) == (13, 5, 2, 9)
    assert result.boot is not None
    assert result.boot.compose_hash.hex() == COMPOSE_HASH
    assert result.boot.app_id.hex() == APP_ID != COMPOSE_HASH[:40]
    assert [anchor.name for anchor in result.anchors] == ["intel-sgx-root"]


def test_a_real_guest_may_be_pinned_by_its_app_id_its_key_provider_and_its_registers(
    proxy_tdx: TdxResult, proxy_evidence: DstackEvidence
) -> None:
    info = stored(PROXY_INFO)
    provider = json.loads(info["key_provider_info"])
    registers = info["tcb_info"]
    policy = DstackPolicy(
        app_ids=frozenset({APP_ID}),
        key_providers=frozenset({KeyProvider(provider["name"], provider["id"])}),
        os_images=frozenset({OsImage(registers["mrtd"], registers["rtmr1"], registers["rtmr2"], registers["rtmr0"])}),
        os_image_events=frozenset({info["os_image_hash"]}),
    )
    result = verify_dstack(proxy_tdx, proxy_evidence, policy)
    assert result.verdict is Verdict.VERIFIED
    assert {"dstack.compose-policy", "dstack.os-image", "dstack.key-provider"} < result.required


def test_the_log_in_a_real_guests_info_is_the_same_one(proxy_tdx: TdxResult, proxy_evidence: DstackEvidence) -> None:
    listed = stored(PROXY_INFO)["tcb_info"]["event_log"]
    assert isinstance(listed, list)
    result = verify_dstack(proxy_tdx, replace(proxy_evidence, event_log=listed), DstackPolicy())
    assert result.ok


def test_another_real_guest_without_mr_config_and_with_an_event_of_its_application() -> None:
    tdx = tdx_of(REPORT, "tdx/dcap-qvl_tdx_quote_outdated_collateral.json", 1772707803)
    assert tdx.ok
    report = stored(REPORT)
    evidence = DstackEvidence(event_log=report["event_log"], vm_config=report["vm_config"])
    result = verify_dstack(tdx, evidence, DstackPolicy())
    assert statuses(result) == {
        "replay": "pass",
        "events": "pass",
        "compose": "skip",
        "compose-policy": "skip",
        "mr-config": "skip",
        "mr-aggregated": "skip",
        "os-image": "skip",
        "key-provider": "skip",
    }
    assert result.verdict is Verdict.PARTIAL
    assert entries(REPORT) == (13, 5, 2, 8)
    assert "local-sgx" in reason(result, "key-provider")
    assert result.facts["dstack.application_events"] == 1
    assert "zero" in reason(result, "mr-config")


def test_a_real_guest_of_the_newer_kind_proves_its_image() -> None:
    sample = stored(LITE)
    tdx = as_if_verified(LITE)
    assert tdx.quote is not None
    evidence = DstackEvidence(event_log=sample["event_log"], vm_config=sample["vm_config"])
    result = verify_dstack(tdx, evidence, DstackPolicy(os_image_hashes=frozenset({LITE_IMAGE})))
    assert statuses(result)["replay"] == statuses(result)["events"] == statuses(result)["os-image"] == "pass"
    proven = proven_hash(tdx.quote, read_vm_config(sample["vm_config"]))
    assert proven is not None
    assert proven.hex() == LITE_IMAGE == result.facts["dstack.os_image_hash_proven"]
    assert str(result.facts["dstack.os_image_hash_event"]).startswith("07a2388c")
    assert any(not json_entry["digest"] for json_entry in json.loads(sample["event_log"]))


def test_no_stored_collateral_covers_the_newer_guest() -> None:
    stored_collateral = sorted(path.name for path in (TEE / "tdx").glob("*_collateral.json"))
    assert len(stored_collateral) >= 3
    for collateral in stored_collateral:
        tdx = tdx_of(LITE, f"tdx/{collateral}", 1772707803)
        assert not tdx.has_passed({QUOTE})
        sample = stored(LITE)
        result = verify_dstack(tdx, DstackEvidence(event_log=sample["event_log"]), DstackPolicy())
        assert result.boot is None
        assert result.verdict is Verdict.PARTIAL


def test_the_answer_of_a_simulated_agent_leads_to_its_application() -> None:
    anchors = Anchors.default().with_simulated((TEE / "sim/dstack_tdx_root_ca.der").read_bytes())
    tdx = tdx_of(SIMULATED, "sim/dstack_tdx_collateral.json", 1_800_000_000, anchors)
    info = json.loads(stored("sim/dstack_info.json")["tcb_info"])
    evidence = DstackEvidence(event_log=stored(SIMULATED)["event_log"], app_compose=info["app_compose"])
    result = verify_dstack(tdx, evidence, DstackPolicy())
    assert {check.name for check in result.checks if check.status is Status.PASS} >= DSTACK_REQUIRED
    assert result.verdict is Verdict.VERIFIED
    assert result.simulated


def test_the_derived_log_replays_to_its_register() -> None:
    vector = json.loads((VECTORS / "dstack-event-log.json").read_text())
    log = read_event_log(vector["event_log"])
    assert log.registers[3].hex() == vector["rtmr3"]
    assert log.payload("compose-hash").hex() == vector["app_compose_sha256"]
    assert sha256(vector["app_compose"].encode()).hexdigest() == vector["app_compose_sha256"]
    assert [event.name for event in log.boot_events][-1] == "os-image-hash"


def test_the_simulated_key_chain_leads_to_its_root() -> None:
    sample = stored("sim/dstack_key_chain.json")
    chain = sample["response"]["signature_chain"]
    app_id, root = bytes.fromhex(sample["app_id"]), sample["kms_root_public_key"]
    assert [bytes.fromhex(signature)[-1] for signature in chain] == [0, 1]
    secret = bytes.fromhex(sample["response"]["key"])
    public_key = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    assert recovered(f"{sample['purpose']}:{public_key.hex()}".encode(), chain[0]).hex() == sample["app_public_key"]
    check_chain(sample["purpose"], public_key, tuple(chain), app_id, {root})
    assert sample["app_public_key"].startswith("0303bc03")
    assert root.startswith("0308da10")


def test_a_published_entry_without_a_pinned_root_is_neither_yes_nor_no() -> None:
    sample = stored("sim/dstack_key_chain.json")
    keyset = Keyset(None, 1_900_000_000, (PublicKey("r", ED25519, "ab" * 32),), ())
    entry = {
        "role": "receipt",
        "path": sample["path"],
        "purpose": "aci.receipt.ed25519.v1",
        "algo": ED25519,
        "public_key": "ab" * 32,
        "kms_public_key": sample["app_public_key"],
        "signature_chain": sample["response"]["signature_chain"],
    }
    custody = {"provider": "dstack-kms", "keys": [entry]}
    (check,) = verify_custody(custody, keyset=keyset, app_id=bytes.fromhex(sample["app_id"]), kms_roots=frozenset())
    assert (check.name, check.status) == ("custody.receipt", Status.SKIP)
