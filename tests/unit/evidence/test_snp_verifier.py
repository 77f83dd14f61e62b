"""The SNP verifier against simulated hardware: the honest report, and every way in which it can be dishonest."""

import json

import pytest

from confide.evidence.policy import Anchors, SnpPolicy
from confide.evidence.result import Status, Verdict
from confide.evidence.snp import SNP_REQUIRED
from confide.evidence.snp_report import SnpTcb
from confide.simulator.snp import SimulatedSnpPlatform, host_data
from snp_builders import (
    ALL_CHECKS,
    NOW,
    REPORT_DATA,
    failing,
    named,
    patched,
    platform,
    reason,
    statuses,
    verified,
)

DAY_S = 24 * 60 * 60
NOT_WITHOUT_THE_CHAIN = {"snp.crl", "snp.signature", "snp.vcek", "snp.policy", "snp.tcb", "binding.report-data"}


def test_an_honest_simulated_report_verifies_under_its_pinned_root() -> None:
    result = verified()
    assert [check.name for check in result.checks] == ALL_CHECKS
    assert named(result, Status.PASS) == set(ALL_CHECKS)
    assert result.verdict is Verdict.VERIFIED
    assert (result.now, result.simulated) == (NOW, True)
    assert [anchor.name for anchor in result.anchors] == [f"sim:{platform().root_sha256_hex}"]
    assert "SIMULATED" in reason(result, "snp.root")
    assert result.required == SNP_REQUIRED | {"binding.report-data"}


@pytest.mark.parametrize(
    "knobs",
    [
        {"version": 2},
        {"version": 4},
        {"version": 5},
        {"product": "genoa"},
        {"product": "turin"},
        {"product": "turin", "version": 2},
        {"product": "turin", "version": 5},
        {"serial_zero": True},
    ],
    ids=str,
)
def test_every_kind_of_honest_machine_verifies(knobs: dict[str, object]) -> None:
    result = verified(of=platform(**knobs))
    assert named(result, Status.PASS) == set(ALL_CHECKS)
    assert result.facts["snp.product"] == knobs.get("product", "milan")


@pytest.mark.parametrize(
    ("knobs", "check", "why"),
    [
        ({"debug": True}, "snp.policy", "debug mode"),
        ({"migratable": True}, "snp.policy", "can be migrated"),
        ({"vmpl": 1}, "snp.policy", "got VMPL 1, expected 0"),
        ({"masked": True}, "snp.policy", "the host masked the chip's key"),
        ({"vlek": True}, "snp.policy", "got a report signed by VLEK, expected VCEK"),
        ({"other_chip": True}, "snp.vcek", "got a key for the chip "),
        ({"other_chip": True, "product": "turin"}, "snp.vcek", "got a key for the chip "),
        ({"other_tcb": True}, "snp.vcek", "snp 23, microcode 213, expected that of the reported TCB"),
        ({"other_tcb": True, "product": "turin"}, "snp.vcek", "got a key for fmc 1, bootloader 4"),
        ({"tcb_behind": True}, "snp.tcb", "got committed TCB bootloader 4, tee 0, snp 23"),
        ({"expired": True}, "snp.chain", f"the VCEK holds from 1767225600 to {NOW - DAY_S}, got {NOW}"),
        ({"revoked": True}, "snp.crl", "is revoked"),
    ],
    ids=str,
)
def test_each_dishonest_machine_fails_in_the_one_check_that_covers_it(
    knobs: dict[str, object], check: str, why: str
) -> None:
    result = verified(of=platform(**knobs))
    assert failing(result) == {check}
    assert why in reason(result, check)
    assert result.verdict is Verdict.NOT_VERIFIED
    assert failing(verified(of=platform(**knobs), anchors=Anchors.default())) >= {"snp.root"}


def test_facts_of_a_verified_report_are_json_and_say_everything() -> None:
    facts = verified(of=platform(version=5, product="turin")).facts
    assert json.loads(json.dumps(facts)) == facts
    assert facts["snp.report_data"] == REPORT_DATA.hex()
    assert facts["snp.reported_tcb"] == {"fmc": 1, "bootloader": 4, "tee": 0, "snp": 24, "microcode": 213}
    assert (facts["snp.policy"], facts["snp.platform_info"], facts["snp.vmpl"]) == ("0x30000", "0x25", 0)
    assert (facts["snp.cpuid"], facts["snp.current_mitigations"]) == ([0x1A, 2, 0], "0x1")
    assert (facts["snp.signing_key"], facts["snp.committed_version"]) == ("VCEK", "1.55.29")
    second = verified(of=platform(version=2)).facts
    assert (second["snp.cpuid"], second["snp.launch_mitigations"]) == (None, None)


# Root and chain.


def test_a_root_that_nobody_pinned_is_named_and_refused() -> None:
    result = verified(anchors=Anchors.default())
    assert failing(result) == {"snp.root"}
    assert named(result, Status.SKIP) == {"snp.chain", *NOT_WITHOUT_THE_CHAIN}
    assert platform().root_sha256_hex in reason(result, "snp.root")
    assert "Simulated TEE (not AMD)" in reason(result, "snp.root")
    assert set(result.facts) == {"snp.report_version", "snp.report_sha256"}
    assert result.anchors == ()


def test_a_foreign_machine_that_shows_the_pinned_root_is_refused() -> None:
    attacker = SimulatedSnpPlatform(b"\x22" * 32, now=NOW)
    ask = attacker.chain_der[: -len(attacker.root_der)]
    result = verified(attacker.report(REPORT_DATA), vcek=attacker.vcek_der, chain=ask + platform().root_der, crl=None)
    assert failing(result) == {"snp.chain"}
    assert reason(result, "snp.chain") == "the signature on the ASK is not its issuer's"


def test_a_foreign_vcek_under_the_honest_chain_is_refused() -> None:
    attacker = SimulatedSnpPlatform(b"\x22" * 32, now=NOW)
    result = verified(attacker.report(REPORT_DATA), vcek=attacker.vcek_der)
    assert failing(result) == {"snp.chain"}
    assert reason(result, "snp.chain") == "the signature on the VCEK is not its issuer's"


def test_the_pinned_root_stands_in_for_what_the_peer_sent() -> None:
    assert verified(chain=platform().chain_pem.encode(), vcek=platform().vcek_pem.encode()).ok


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        (b"", "the chain has 0 certificates, expected 2: ASK, ARK"),
        (b"no certificate", "no certificate in PEM or DER form at byte 0"),
        (b"\x30\x82\x00\x01\x00" * 2, "(not a certificate) is not trusted"),
        (bytes(65 * 1024), "66560 bytes of certificates, expected at most 65536"),
        (b"-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----", "is not base64"),
        (b"-----BEGIN CERTIFICATE-----\n", "not plain PEM at byte 0"),
    ],
)
def test_a_chain_that_is_none_is_refused(chain: bytes, why: str) -> None:
    result = verified(chain=chain)
    assert failing(result) == {"snp.root"}
    assert why in reason(result, "snp.root")


@pytest.mark.parametrize(
    ("vcek", "why"),
    [
        (b"", "got 0 certificates in place of the VCEK, expected 1"),
        (b"junk", "no certificate in PEM or DER form at byte 0"),
        (b"\x30\x82\x00\x01\x00", "VCEK: it is not a version 3 certificate"),
    ],
)
def test_a_vcek_that_is_none_is_refused(vcek: bytes, why: str) -> None:
    result = verified(vcek=vcek)
    assert failing(result) == {"snp.chain"}
    assert why in reason(result, "snp.chain")


def test_without_certificates_it_is_neither_yes_nor_no() -> None:
    without_chain, without_vcek = verified(chain=None), verified(vcek=None)
    for result in (without_chain, without_vcek):
        assert failing(result) == set()
        assert result.verdict is Verdict.PARTIAL
        assert named(result, Status.SKIP) >= NOT_WITHOUT_THE_CHAIN
    assert statuses(without_chain)["snp.root"] is Status.SKIP
    assert statuses(without_vcek)["snp.root"] is Status.PASS


def test_a_report_of_an_unknown_cpu_is_refused() -> None:
    result = verified(patched(platform().report(REPORT_DATA), 0x188, b"\x1a\x50\x00"))
    assert failing(result) == {"snp.root"}
    assert "got CPUID family 0x1a, model 0x50" in reason(result, "snp.root")


# Revocation.


def test_without_a_revocation_list_the_check_is_skipped_and_a_strict_policy_is_not_content() -> None:
    result = verified(crl=None)
    assert named(result, Status.SKIP) == {"snp.crl"}
    assert result.verdict is Verdict.VERIFIED
    strict = SnpPolicy(require_crl=True)
    assert verified(crl=None, policy=strict).verdict is Verdict.PARTIAL
    assert verified(policy=strict).verdict is Verdict.VERIFIED


@pytest.mark.parametrize(("seconds", "is_good"), [(0, True), (30 * DAY_S, True), (30 * DAY_S + 1, False), (-1, False)])
def test_a_revocation_list_holds_in_its_window(seconds: int, is_good: bool) -> None:
    result = verified(now=NOW + seconds)
    assert result.ok is is_good
    assert failing(result) == (set() if is_good else {"snp.crl"})


# What the report says.


def test_one_changed_byte_is_found() -> None:
    honest = platform().report(REPORT_DATA)
    for offset, failed in [
        (0x090, {"snp.signature"}),
        (0x050, {"snp.signature", "binding.report-data"}),
        (0x186, {"snp.signature", "snp.vcek"}),
        (0x1A0, {"snp.signature", "snp.vcek"}),
        (0x1F0, {"snp.signature"}),
        (0x2A0, {"snp.signature"}),
        (0x2E8, {"snp.signature"}),
    ]:
        result = verified(patched(honest, offset, bytes((honest[offset] ^ 1,))))
        assert failing(result) == failed
        assert "snp.measurement" not in result.facts


@pytest.mark.parametrize(("r", "s"), [(0, 0), (0, 1), (1, 0), (2**384 - 1, 2**384 - 1)])
def test_a_signature_out_of_range_is_no_signature(r: int, s: int) -> None:
    signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
    assert failing(verified(patched(platform().report(REPORT_DATA), 0x2A0, signature))) == {"snp.signature"}


def test_every_other_length_is_rejected() -> None:
    for raw in (b"", platform().report(REPORT_DATA)[:-1], platform().report(REPORT_DATA) + b"\x00"):
        result = verified(raw, expected_host_data=bytes(32))
        assert failing(result) == {"snp.parse"}
        assert named(result, Status.SKIP) == {*ALL_CHECKS, "dstack.host-data"} - {"snp.parse"}
        assert (result.report, result.facts) == (None, {})


@pytest.mark.parametrize("offset_value", [(0x00A, b"\x03\x04"), (0x00A, b"\x01"), (0x00A, b"\x23")], ids=str)
def test_policy_bits_are_read_even_when_nothing_can_be_verified(offset_value: tuple[int, bytes]) -> None:
    result = verified(patched(platform().report(REPORT_DATA), *offset_value), chain=None)
    assert failing(result) == {"snp.policy"}


@pytest.mark.parametrize(
    ("policy", "check", "why"),
    [
        (SnpPolicy(allow_smt=False), "snp.policy", "the guest allows SMT"),
        (SnpPolicy(vmpl=2), "snp.policy", "got VMPL 0, expected 2"),
        (SnpPolicy(min_guest_svn=1), "snp.policy", "got guest SVN 0, expected at least 1"),
        (SnpPolicy(require_ciphertext_hiding=True), "snp.policy", "does not demand ciphertext hiding"),
        (SnpPolicy(accepted_products=frozenset({"genoa", "turin"})), "snp.policy", "got milan, expected genoa, turin"),
        (SnpPolicy(accepted_products=frozenset()), "snp.policy", "got milan, expected no product"),
        (SnpPolicy(denied_products={"milan": "too old"}), "snp.policy", "milan is denied: too old"),
        (SnpPolicy(min_tcb={"milan": SnpTcb(snp=25)}), "snp.tcb", "snp too old: got reported TCB bootloader 4"),
        (SnpPolicy(min_launch_tcb={"milan": SnpTcb(tee=1)}), "snp.tcb", "tee too old: got launch TCB bootloader 4"),
        (SnpPolicy(min_firmware=(1, 56, 0)), "snp.tcb", "got committed firmware 1.55.29, expected at least 1.56.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "policy",  # a policy holds sets, whose order differs
)
def test_a_policy_is_kept_to(policy: SnpPolicy, check: str, why: str) -> None:
    result = verified(policy=policy)
    assert failing(result) == {check}
    assert why in reason(result, check)


def test_what_a_policy_can_allow() -> None:
    assert verified(of=platform(vmpl=1), policy=SnpPolicy(vmpl=1)).ok
    assert verified(of=platform(vlek=True), policy=SnpPolicy(allow_vlek=True)).ok
    assert verified(of=platform(tcb_behind=True), policy=SnpPolicy(require_committed=False)).ok
    assert verified(policy=SnpPolicy(require_alias_check=True, min_firmware=(1, 55, 29))).ok
    assert verified(policy=SnpPolicy(min_tcb={"milan": SnpTcb(bootloader=4, snp=24), "turin": SnpTcb(fmc=9)})).ok


def test_bits_that_the_simulator_never_sets_are_judged_too() -> None:
    honest = platform().report(REPORT_DATA)
    for offset, value, policy, why in [
        (0x040, b"\x05", SnpPolicy(require_alias_check=True), "no check for memory aliases"),
        (0x048, b"\x1c", SnpPolicy(allow_vlek=True), "got a report signed by NONE, expected VCEK or VLEK"),
        (0x160, b"\x01" * 32, SnpPolicy(), "the guest can be migrated"),
        (0x00A, b"\x01", SnpPolicy(), "policy bit 17 is zero"),
        (0x00A, b"\x23", SnpPolicy(), "memory behind CXL"),
        (0x00F, b"\x80", SnpPolicy(), "reserved policy bits are set: 0x8000000000000000"),
    ]:
        assert why in reason(verified(patched(honest, offset, value), policy=policy), "snp.policy")
    allowed = verified(
        patched(honest, 0x00A, b"\x23\x01"), policy=SnpPolicy(allow_cxl=True, require_ciphertext_hiding=True)
    )
    assert failing(allowed) == {"snp.signature"}
    assert "reserved bytes of launch_tcb are set" in reason(verified(patched(honest, 0x1F2, b"\x01")), "snp.tcb")


def test_the_signing_key_must_be_of_the_kind_that_the_report_names() -> None:
    lent, own = platform(vlek=True), platform()
    as_vcek = verified(patched(lent.report(REPORT_DATA), 0x048, b"\x00"), of=lent)
    assert "got a cloud provider's key, expected a VCEK" in reason(as_vcek, "snp.vcek")
    as_vlek = verified(patched(own.report(REPORT_DATA), 0x048, b"\x04"), policy=SnpPolicy(allow_vlek=True))
    assert "got a chip's own key, expected a VLEK" in reason(as_vlek, "snp.vcek")


def test_the_vcek_must_be_of_the_cpu_that_the_report_names() -> None:
    result = verified(patched(platform().report(REPORT_DATA), 0x188, b"\x19\x11\x01"))
    assert "got a key for Milan-B1, expected genoa" in reason(result, "snp.vcek")
    turin = verified(patched(platform().report(REPORT_DATA), 0x188, b"\x1a\x02\x00"))
    assert "3704.1.3.9 is missing" in reason(turin, "snp.vcek")


# Binding.


def test_other_report_data_or_host_data_than_expected_is_refused() -> None:
    assert failing(verified(expected_report_data=bytes(64))) == {"binding.report-data"}
    result = verified(expected_host_data=b"\x01" * 32)
    assert failing(result) == {"dstack.host-data"}
    assert reason(result, "dstack.host-data") == f"got {'00' * 32}, expected {'01' * 32}"


def test_the_configuration_document_is_bound_by_host_data() -> None:
    document = b'{"version":3}'
    raw = platform().report(REPORT_DATA, host_data(document))
    result = verified(raw, expected_host_data=host_data(document))
    assert statuses(result)["dstack.host-data"] is Status.PASS
    assert result.required == SNP_REQUIRED | {"binding.report-data", "dstack.host-data"}
    assert failing(verified(raw, expected_host_data=host_data(document + b" "))) == {"dstack.host-data"}


def test_without_an_expectation_the_binding_is_not_claimed() -> None:
    result = verified(expected_report_data=None)
    assert named(result, Status.SKIP) == {"binding.report-data"}
    assert result.verdict is Verdict.VERIFIED
    assert result.requiring(SNP_REQUIRED | {"binding.report-data"}).verdict is Verdict.PARTIAL


@pytest.mark.parametrize("length", [0, 32, 63, 65])
def test_an_expectation_of_another_length_is_the_callers_mistake(length: int) -> None:
    with pytest.raises(ValueError, match=f"64 bytes of report data expected, got {length}"):
        verified(expected_report_data=bytes(length))
    with pytest.raises(ValueError, match="32 bytes of host data expected, got 64"):
        verified(expected_host_data=bytes(64))


# Policy objects.


@pytest.mark.parametrize(
    "mistaken",
    [
        {"accepted_products": frozenset({"Milan"})},
        {"denied_products": {"Milan": "why"}},
        {"min_tcb": {"Milan": SnpTcb()}},
        {"min_launch_tcb": {"Milan": SnpTcb()}},
    ],
    ids=str,
)
def test_a_misspelt_product_is_refused_with_the_known_ones(mistaken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="unknown product Milan; choose from genoa, milan, turin"):
        SnpPolicy(**mistaken)  # type: ignore[arg-type]  # one mistake at a time


@pytest.mark.parametrize("vmpl", [-1, 4])
def test_a_privilege_level_out_of_range_is_refused(vmpl: int) -> None:
    with pytest.raises(ValueError, match=f"VMPL {vmpl}, expected 0 to 3"):
        SnpPolicy(vmpl=vmpl)
