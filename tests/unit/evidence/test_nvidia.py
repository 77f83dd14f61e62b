"""The GPU verifier against simulated devices: the honest case, and every way in which it can be dishonest."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.evidence.gpu_payload import MAX_DEVICES, MAX_PAYLOAD_BYTES
from confide.evidence.nras import verify_nras
from confide.evidence.nvidia import verify_gpu_payload
from confide.evidence.policy import Anchors, GpuPolicy
from confide.evidence.result import Verdict
from confide.simulator.gpu import FWID, OTHER_FWID, GpuFault, SimulatedGpu, gpu_payload, raw_signature
from confide.simulator.nras import SimulatedNras
from device_chains import KEYS, chain
from gpu_builders import (
    NONCE,
    NOW,
    SEED,
    check,
    entry_of,
    failed,
    gpus,
    nras_keys,
    passed,
    payload_of,
    pinned,
    skipped,
    verified,
)

NRAS = {"nras.signature", "nras.claims"}
NEVER_HERE = NRAS | {"gpu.cpu-binding"}


def of_gpu(place: int) -> set[str]:
    return {f"gpu.{place}.{what}" for what in ("chain", "signature", "nonce", "fwid")}


def test_an_honest_gpu_verifies_under_its_pinned_root() -> None:
    result = verified()
    assert passed(result) == {"gpu.payload", "gpu.policy"} | of_gpu(0)
    assert skipped(result) == NEVER_HERE
    assert result.verdict is Verdict.VERIFIED
    assert result.simulated
    assert result.now == NOW
    assert "SIMULATED ROOT" in check(result, "gpu.0.chain").reason


def test_bytes_are_read_like_text() -> None:
    assert verified(gpu_payload(gpus(), NONCE).encode()).verdict is Verdict.VERIFIED


def test_facts_of_a_genuine_gpu() -> None:
    facts = verified().facts
    assert (facts["gpu.count"], facts["gpu.0.arch"], facts["gpu.0.ueid"]) == (1, "HOPPER", gpus()[0].ueid)
    assert (facts["gpu.0.driver_version"], facts["gpu.0.vbios_version"]) == ("570.172.08", "96.00.CF.00.02")
    assert facts["gpu.0.fwid"] == FWID.hex()
    assert json.loads(json.dumps(facts)) == facts


def test_a_gpu_that_is_not_genuine_has_no_facts() -> None:
    assert verified(anchors=Anchors.default()).facts == {"gpu.count": 0}


def test_the_result_claims_a_genuine_gpu_and_no_place() -> None:
    result = verified()
    assert check(result, "gpu.0.nonce").reason == "a genuine HOPPER device answered our nonce, wherever it may be"
    assert "same machine as the CPU TEE" in check(result, "gpu.cpu-binding").reason


def test_no_evidence_at_all_lets_the_binding_skip_too() -> None:
    for payload in (payload_of([]), payload_of([]).encode()):
        assert skipped(verified(payload)) == {"gpu.payload", "gpu.policy"} | NEVER_HERE
    nothing = verify_gpu_payload(None, nonce=NONCE, anchors=pinned(), policy=GpuPolicy(), now=NOW)
    assert skipped(nothing) == {"gpu.payload", "gpu.policy"} | NEVER_HERE
    assert nothing.verdict is Verdict.PARTIAL


def test_several_gpus_and_a_switch() -> None:
    switch = SimulatedGpu(SEED, arch="LS10")
    result = verified(gpu_payload([*gpus(2), switch], NONCE))
    assert passed(result) == {"gpu.payload", "gpu.policy"} | of_gpu(0) | of_gpu(1) | of_gpu(2) - {"gpu.2.fwid"}
    assert result.verdict is Verdict.VERIFIED
    assert result.facts["gpu.count"] == 2
    assert result.gpu_ueids == tuple(gpu.ueid for gpu in gpus(2))
    assert len(result.anchors) == 1


def test_devices_under_several_roots_show_them_all() -> None:
    other = SimulatedGpu(b"\x32" * 32)
    result = verified(gpu_payload([*gpus(), other], NONCE), anchors=pinned(other))
    assert result.verdict is Verdict.VERIFIED
    assert len(result.anchors) == 2


def test_a_blackwell_gpu() -> None:
    device = SimulatedGpu(SEED, arch="BLACKWELL")
    assert verified(gpu_payload([device], NONCE, arch="BLACKWELL")).verdict is Verdict.VERIFIED


def test_the_older_form_with_one_gpu_beside_the_nonce() -> None:
    entry = gpus()[0].entry(NONCE)
    assert verified(json.dumps({"nonce": NONCE.hex().upper()} | entry)).verdict is Verdict.VERIFIED


FAILS_AT = {
    GpuFault.FOREIGN_ROOT: "chain",
    GpuFault.EXPIRED: "chain",
    GpuFault.LEAF_AS_ISSUER: "chain",
    GpuFault.MISLABELLED: "chain",
    GpuFault.SIGNATURE: "signature",
    GpuFault.CUT: "signature",
    GpuFault.OTHER_NONCE: "nonce",
    GpuFault.FWID: "fwid",
}


@pytest.mark.parametrize("fault", FAILS_AT)
def test_each_fault_fails_one_check_and_no_other(fault: GpuFault) -> None:
    bad = SimulatedGpu(SEED, number=1, fault=fault)
    result = verified(gpu_payload([*gpus(), bad], NONCE))
    assert failed(result) == {f"gpu.1.{FAILS_AT[fault]}"}
    assert of_gpu(0) <= passed(result)
    assert result.verdict is Verdict.NOT_VERIFIED


def test_a_report_that_names_no_firmware_is_partial() -> None:
    bare = SimulatedGpu(SEED, fault=GpuFault.NO_FWID)
    result = verified(gpu_payload([bare], NONCE))
    assert skipped(result) == NEVER_HERE | {"gpu.0.fwid"}
    assert (result.verdict, result.ok) == (Verdict.PARTIAL, True)


def test_every_fault_is_accounted_for() -> None:
    assert set(FAILS_AT) | {GpuFault.NO_FWID} == set(GpuFault)


def test_a_chain_without_trust_leaves_nothing_to_pass() -> None:
    result = verified(anchors=Anchors.default())
    assert failed(result) == {"gpu.0.chain"}
    assert not of_gpu(0) & passed(result)
    assert "gpu.policy" in skipped(result)
    assert result.anchors == ()


def test_what_a_forged_report_says_is_not_believed() -> None:
    """Signed by another key: nonce and firmware are the expected ones, and neither passes."""
    forged = SimulatedGpu(SEED, fault=GpuFault.SIGNATURE)
    result = verified(gpu_payload([forged], NONCE))
    assert skipped(result) >= {"gpu.0.nonce", "gpu.0.fwid", "gpu.policy"}


def test_firmware_that_the_certificate_does_not_name() -> None:
    result = verified(gpu_payload([SimulatedGpu(SEED, fault=GpuFault.FWID)], NONCE))
    reason = check(result, "gpu.0.fwid").reason
    assert OTHER_FWID.hex() in reason
    assert FWID.hex() in reason


def test_a_certificate_that_names_no_firmware_cannot_vouch_for_any() -> None:
    """A report with a firmware identity under a leaf that has none: the report of a GPU, the chain of a bare leaf."""
    pem, anchors = chain()
    signed = gpus()[0].report(NONCE)[:-96]
    report = signed + raw_signature(KEYS["leaf"], signed)
    result = verified(payload_of([entry_of(report, pem)]), anchors=anchors)
    assert failed(result) == {"gpu.0.fwid"}
    assert "the certificate none" in check(result, "gpu.0.fwid").reason


def test_the_same_gpu_does_not_count_twice() -> None:
    (gpu,) = gpus()
    result = verified(gpu_payload([gpu, *gpus(2)[1:], gpu], NONCE))
    assert failed(result) == {"gpu.payload"}
    assert "entries 0 and 2 are the same device" in check(result, "gpu.payload").reason


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("", "it cannot be read"),
        ("[]", "it cannot be read"),
        ("null", "it cannot be read"),
        (b"\xff", "it cannot be read"),
        ('"\ud800"', "it cannot be read"),
        ("{}", "it cannot be read: Object missing required field `nonce`"),
        ('{"evidence_list": []}', "missing required field `nonce`"),
        ('{"nonce": null, "evidence_list": []}', "nonce"),
        ('{"nonce": "00", "evidence_list": null}', "evidence_list"),
        ('{"nonce": "00", "evidence_list": [{}]}', "missing required field `certificate` - at `$.evidence_list[0]`"),
        ('{"nonce": "00", "evidence_list": [{"certificate": "", "evidence": ""}]}', "missing required field `arch`"),
        ('{"nonce": "00", "certificate": "", "evidence": ""}', "missing required field `arch`"),
        ('{"nonce": "00", "evidence_list": [], "evidence": "", "certificate": ""}', "not clear which of them count"),
        ("[" * 100_000, "it cannot be read"),
        (" " * (MAX_PAYLOAD_BYTES + 1), f"expected at most {MAX_PAYLOAD_BYTES}"),
        (payload_of([entry_of(b"", b"")] * (MAX_DEVICES + 1)), f"65 devices, expected at most {MAX_DEVICES}"),
        (payload_of([], b"\x00" * 32), "got the nonce 0000"),
    ],
)
def test_a_payload_that_cannot_be_read_has_failed(payload: str | bytes, message: str) -> None:
    result = verified(payload)
    assert failed(result) == {"gpu.payload"}
    assert message in check(result, "gpu.payload").reason


@pytest.mark.parametrize(
    ("member", "value", "failing", "message"),
    [
        ("certificate", "", "chain", "not plain PEM"),
        ("certificate", "*", "chain", "not base64"),
        ("certificate", "AAA", "chain", "not base64"),
        ("certificate", "AB==", "chain", "not canonical base64"),
        ("certificate", "ä", "chain", "not base64"),
        ("evidence", "", "signature", "the report cannot be read: cut short"),
        ("evidence", "AB==", "signature", "not canonical base64"),
        ("arch", "", "chain", "got the architecture , expected one of BLACKWELL, HOPPER, LS10"),
        ("arch", "hopper", "chain", "got the architecture hopper"),
        ("arch", "BLACKWELL", "chain", "the entry says BLACKWELL, and the certificate is that of a GH100"),
    ],
)
def test_an_entry_that_is_no_evidence_fails_where_it_is_read(
    member: str, value: str, failing: str, message: str
) -> None:
    result = verified(payload_of([gpus()[0].entry(NONCE) | {member: value}]))
    assert failed(result) == {f"gpu.0.{failing}"}
    assert message in check(result, f"gpu.0.{failing}").reason


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (GpuPolicy(required_gpus=2), "got 1 GPUs, expected at least 2"),
        (
            GpuPolicy(accepted_architectures=frozenset({"BLACKWELL"})),
            "got HOPPER as device 0, expected one of BLACKWELL",
        ),
        (GpuPolicy(accepted_architectures=frozenset()), "got HOPPER as device 0, expected none at all"),
        (
            GpuPolicy(driver_versions=frozenset({"580.1"})),
            "got the driver version 570.172.08 on GPU 0, expected one of",
        ),
        (
            GpuPolicy(vbios_versions=frozenset({"1"})),
            "got the VBIOS version 96.00.CF.00.02 on GPU 0, expected one of 1",
        ),
    ],
)
def test_a_policy_that_the_devices_do_not_meet(policy: GpuPolicy, message: str) -> None:
    switch = SimulatedGpu(SEED, arch="LS10")
    result = verified(gpu_payload([*gpus(), switch], NONCE), policy=policy)
    assert failed(result) == {"gpu.policy"}
    assert message in check(result, "gpu.policy").reason


def test_a_policy_that_they_meet() -> None:
    policy = GpuPolicy(
        required_gpus=2,
        accepted_architectures=frozenset({"HOPPER", "LS10"}),
        driver_versions=frozenset({"570.172.08"}),
        vbios_versions=frozenset({"96.00.CF.00.02"}),
    )
    switch = SimulatedGpu(SEED, arch="LS10")  # reports no driver version, and is not asked for one
    assert verified(gpu_payload([*gpus(2), switch], NONCE), policy=policy).verdict is Verdict.VERIFIED


def test_a_required_gpu_that_is_not_there_has_failed() -> None:
    for payload in (payload_of([]), gpu_payload([SimulatedGpu(SEED, arch="LS10")], NONCE)):
        assert failed(verified(payload, policy=GpuPolicy(required_gpus=1))) == {"gpu.policy"}


def test_a_policy_with_a_typing_error_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown architecture Hopper; choose from BLACKWELL, HOPPER, LS10"):
        GpuPolicy(accepted_architectures=frozenset({"Hopper"}))
    with pytest.raises(ValueError, match="-1 GPUs required"):
        GpuPolicy(required_gpus=-1)


def test_where_the_remote_verdict_is_required_nothing_is_verified_without_it() -> None:
    policy = GpuPolicy(require_nras=True)
    result = verified(policy=policy)
    assert result.verdict is Verdict.PARTIAL
    service = SimulatedNras(SEED)
    answer = service.attest(gpu_payload(gpus(), NONCE), now=NOW)
    nras = verify_nras(answer, nonce=NONCE, keys=nras_keys(), gpus=1, ueids=result.gpu_ueids, now=NOW)
    whole = result.with_nras(nras)
    assert whole.verdict is Verdict.VERIFIED
    assert passed(whole) == passed(result) | NRAS
    assert len(whole.anchors) == 2
    assert whole.facts["nras.GPU-0.ueid"] == gpus()[0].ueid
    without_keys = verify_nras(answer, nonce=NONCE, keys=None, gpus=1, now=NOW)
    assert result.with_nras(without_keys).verdict is Verdict.PARTIAL


@pytest.mark.parametrize("nonce", [b"", NONCE[:31], NONCE + b"\x00"])
def test_the_caller_draws_32_bytes(nonce: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes of nonce expected"):
        verified(nonce=nonce)


@given(payload=st.one_of(st.text(max_size=256), st.binary(max_size=256)))
def test_any_text_gives_a_result(payload: str | bytes) -> None:
    assert verified(payload).verdict is not Verdict.VERIFIED


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = ("nonce", "evidence_list", "certificate", "evidence", "arch")


@given(document=st.dictionaries(st.sampled_from(MEMBERS), JSON))
@settings(max_examples=200)
def test_any_document_with_our_members_gives_a_result(document: dict[str, object]) -> None:
    assert not verified(json.dumps(document)).ok
