"""One report serves every family of verifiers, and a client picks the attestation of its signer, or none."""

import json
from typing import Any

import pytest

from confide.errors import VerificationError
from confide.protocol.legacy_report import attestation, empty_gpu_payload, legacy_report, pick_attestation
from confide.protocol.signature import Algo
from confide.protocol.statement import legacy_report_data

ADDRESS = "0x" + "ab" * 20
ED25519 = "cd" * 32
NONCE = bytes(range(32))
SPKI = b"\xaa" * 32

# Wire contract 6.1, version 1, and the honest label.
MEMBERS = {
    "signing_address",
    "signing_algo",
    "signing_public_key",
    "request_nonce",
    "intel_quote",
    "quote",
    "report_data",
    "nvidia_payload",
    "event_log",
    "vm_config",
    "info",
    "version",
    "simulated",
}


def build(address: str = ADDRESS, **changes: Any) -> dict[str, object]:
    """An honest attestation with made-up evidence."""
    identity = bytes.fromhex(address.removeprefix("0x"))
    members: dict[str, Any] = {
        "signing_address": address,
        "signing_algo": Algo.ECDSA if address.startswith("0x") else Algo.ED25519,
        "signing_public_key": "ef" * 64,
        "nonce": NONCE,
        "quote": b"quote",
        "report_data": legacy_report_data(identity, NONCE, spki_sha256=changes.get("spki_sha256")),
        "event_log": "[]",
        "vm_config": "{}",
        "info": {"app_id": "a"},
        "simulated": True,
    }
    return attestation(**(members | changes))


def test_version_1_has_every_member_of_the_contract_and_no_other() -> None:
    entry = build()
    assert set(entry) == MEMBERS
    assert entry["version"] == 1
    assert entry["request_nonce"] == NONCE.hex()
    assert entry["intel_quote"] == entry["quote"] == b"quote".hex()
    assert entry["report_data"] == "ab" * 20 + "00" * 12 + NONCE.hex()
    assert entry["signing_algo"] == "ecdsa"
    assert entry["simulated"] is True
    assert json.loads(json.dumps(entry)) == entry


def test_version_2_names_the_tls_key() -> None:
    entry = build(ED25519, spki_sha256=SPKI)
    assert set(entry) == MEMBERS | {"tls_cert_fingerprint"}
    assert (entry["version"], entry["tls_cert_fingerprint"]) == (2, SPKI.hex())
    assert entry["signing_algo"] == "ed25519"


def test_collateral_travels_along_when_there_is_some() -> None:
    assert "collateral" not in build(collateral=None)
    assert build(collateral={"tcb_info": "{}"})["collateral"] == {"tcb_info": "{}"}


@pytest.mark.parametrize(
    "changes",
    [
        {"report_data": bytes(64)},
        {"report_data": b""},
        {"nonce": bytes(32)},
        {"signing_address": "0x" + "ac" * 20},
        {"spki_sha256": SPKI, "report_data": legacy_report_data(b"\xab" * 20, NONCE)},
    ],
)
def test_an_attestation_that_accuses_its_own_quote_cannot_be_built(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="report data"):
        build(**changes)


def test_without_gpu_evidence_the_payload_is_the_empty_form() -> None:
    payload = empty_gpu_payload(NONCE)
    assert json.loads(payload) == {"nonce": NONCE.hex(), "evidence_list": [], "arch": "HOPPER"}
    assert build()["nvidia_payload"] == payload
    assert build(nvidia_payload="{}")["nvidia_payload"] == "{}"


def test_without_a_model_the_report_is_flat_with_all_instances() -> None:
    mine, other = build(), build(ED25519)
    report = legacy_report(mine, others=[other])
    assert report == {**mine, "all_attestations": [mine, other]}


def test_with_a_model_the_same_evidence_is_shown_as_gateway_and_model() -> None:
    mine = build()
    report = legacy_report(mine, model_name="a/model")
    assert report["gateway_attestation"] == mine
    assert report["model_attestations"] == [{**mine, "model_name": "a/model"}]
    assert report["all_attestations"] == [mine]
    assert mine.items() <= report.items()


def test_entries_never_hold_all_attestations() -> None:
    report: dict[str, Any] = legacy_report(
        legacy_report(build()), others=[legacy_report(build(ED25519))], model_name="m"
    )
    entries = [*report["all_attestations"], *report["model_attestations"], report["gateway_attestation"]]
    assert len(entries) == 4
    assert not any("all_attestations" in entry for entry in entries)


def signer(address: str, where: str) -> dict[str, object]:
    return {"signing_address": address, "where": where}


def test_places_are_searched_in_the_order_of_the_contract() -> None:
    report = {
        **signer("0xAB", "top"),
        "model_attestations": [signer("0xAA", "first model"), signer("0xab", "model")],
        "all_attestations": [signer("0xab", "instance")],
        "gateway_attestation": signer("0xab", "gateway"),
    }
    places = []
    for removed in ("", "model_attestations", "all_attestations", "gateway_attestation"):
        report.pop(removed, None)
        places.append(pick_attestation(report, "0xAb")["where"])
    assert places == ["model", "instance", "gateway", "top"]


def test_without_an_address_the_first_is_taken() -> None:
    report = {"all_attestations": [signer("0xaa", "first"), signer("0xab", "second")], **signer("0xac", "top")}
    assert pick_attestation(report)["where"] == "first"


def test_a_report_of_other_signers_is_refused() -> None:
    report = legacy_report(build(), model_name="m")
    with pytest.raises(VerificationError, match="0x11") as caught:
        pick_attestation(report, "0x11")
    assert caught.value.check == "report"
    assert caught.value.remedy


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"all_attestations": None, "model_attestations": {"signing_address": ADDRESS}},
        {"all_attestations": [None, "x", {"signing_address": 7}], "gateway_attestation": [ADDRESS]},
    ],
)
def test_a_misshapen_report_is_a_refusal_and_not_a_crash(report: dict[str, object]) -> None:
    with pytest.raises(VerificationError):
        pick_attestation(report, ADDRESS)


def test_every_report_we_build_is_one_we_can_read() -> None:
    mine, other = build(), build(ED25519)
    report = legacy_report(mine, others=[other], model_name="m")
    assert pick_attestation(report, ADDRESS.upper().replace("0X", "0x")) == {**mine, "model_name": "m"}
    assert pick_attestation(report, ED25519) == other
    flat = legacy_report(mine)
    del flat["all_attestations"]
    assert pick_attestation(flat, ADDRESS) == mine
