"""Two reports of real SNP machines, and a simulated one made by another program, with their known answers.

The files lie beside the repository and are read in place. Times are in November 2026, inside every window.
"""

from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from confide.evidence.mr_config import document_sha256
from confide.evidence.policy import (
    AMD_ARK_GENOA_SHA256,
    AMD_ARK_MILAN_SHA256,
    AMD_ARK_TURIN_SHA256,
    Anchors,
    SnpPolicy,
)
from confide.evidence.result import Status, Verdict
from confide.evidence.snp import SnpResult, verify_snp
from confide.evidence.snp_chain import split_certificates
from confide.evidence.snp_dstack import split_envelope
from confide.evidence.snp_report import SigningKey, SnpTcb, parse_snp_report
from shared_data import TEE
from snp_builders import ALL_CHECKS, failing, named, reason, statuses

if not TEE.is_dir():
    pytest.skip("the stored TEE samples are not beside this repository", allow_module_level=True)

PRESENT = 1_795_000_000
YEAR_S = 365 * 24 * 60 * 60


def stored(name: str) -> bytes:
    return (TEE / name).read_bytes()


MILAN_CHAIN = stored("snp/go-sev-guest_ask_ark_milan.pem")
ENVELOPE = split_envelope(stored("snp/dstack_sev_snp_attestation.bin"))
DEBUGGED = (stored("snp/go-sev-guest_attestation.bin"), stored("snp/go-sev-guest_vcek.testcer"))
DSTACK = (ENVELOPE.report, stored("snp/dstack_sev_snp_vcek.pem"))


def real(evidence: tuple[bytes, bytes], policy: SnpPolicy | None = None, **changes: object) -> SnpResult:
    raw, vcek = evidence
    arguments = {
        "vcek": vcek,
        "chain": MILAN_CHAIN,
        "crl": None,
        "anchors": Anchors.of("amd"),
        "policy": policy or SnpPolicy(),
        "now": PRESENT,
    }
    return verify_snp(raw, **(arguments | changes))  # type: ignore[arg-type]  # tests replace any of them


def test_a_real_version_2_report_is_genuine_and_refused_because_its_guest_can_be_debugged() -> None:
    report_data = bytes((1, 2, 3, 4, 5)).ljust(64, b"\x00")
    result = real(DEBUGGED, expected_report_data=report_data)
    assert failing(result) == {"snp.policy"}
    assert named(result, Status.SKIP) == {"snp.crl"}
    assert reason(result, "snp.policy") == "the guest is in debug mode: its host can read its memory"
    assert result.facts["snp.policy"] == "0xb0000"
    assert result.facts["snp.reported_tcb"] == {"bootloader": 2, "tee": 0, "snp": 5, "microcode": 0x44}
    assert (result.facts["snp.report_version"], result.facts["snp.product"]) == (2, "milan")
    assert not result.simulated
    assert [anchor.name for anchor in result.anchors] == ["amd-ark-milan"]


def test_a_real_version_3_report_verifies_with_its_host_data() -> None:
    report_data = b"attest-test-fixture-2026".ljust(64, b"\x00")
    result = real(DSTACK, expected_report_data=report_data, expected_host_data=document_sha256(ENVELOPE.document))
    assert result.verdict is Verdict.VERIFIED
    assert named(result, Status.PASS) == {*ALL_CHECKS, "dstack.host-data"} - {"snp.crl"}
    assert result.facts["snp.policy"] == "0x30000"
    assert str(result.facts["snp.host_data"]).startswith("783f0057")
    assert str(result.facts["snp.measurement"]).startswith("7f51e17f72a04d54")
    assert result.facts["snp.cpuid"] == [0x19, 0x01, 0x01]


def test_the_reported_tcb_of_the_version_3_report_lags_behind_and_a_minimum_says_so() -> None:
    facts = real(DSTACK).facts
    assert facts["snp.reported_tcb_is_committed"] is False
    assert facts["snp.reported_tcb"] == {"bootloader": 4, "tee": 0, "snp": 0x17, "microcode": 0xD5}
    assert facts["snp.committed_tcb"] == {"bootloader": 4, "tee": 0, "snp": 0x18, "microcode": 0xD5}
    wanted = SnpPolicy(min_tcb={"milan": SnpTcb(bootloader=4, snp=0x18, microcode=0xD5)})
    result = real(DSTACK, wanted)
    assert failing(result) == {"snp.tcb"}
    assert "snp too old" in reason(result, "snp.tcb")
    assert real(DSTACK, SnpPolicy(min_tcb={"milan": SnpTcb(bootloader=4, snp=0x17)})).ok


def test_the_parser_reads_the_stored_fields() -> None:
    report = parse_snp_report(ENVELOPE.report)
    assert (report.version, report.vmpl, report.signing_key) == (3, 0, SigningKey.VCEK)
    assert report.report_data.rstrip(b"\x00") == b"attest-test-fixture-2026"
    assert report.report_id_ma == b"\xff" * 32
    assert report.current_version == report.committed_version == (1, 55, 29)
    assert parse_snp_report(DEBUGGED[0]).cpuid is None


@pytest.mark.parametrize("evidence", [DEBUGGED, DSTACK], ids=["version 2", "version 3"])
@pytest.mark.parametrize("years", [-30, 10, 30])
def test_outside_the_windows_the_chain_does_not_hold(evidence: tuple[bytes, bytes], years: int) -> None:
    result = real(evidence, now=PRESENT + years * YEAR_S)
    assert "snp.chain" in failing(result)
    assert statuses(result)["snp.signature"] is Status.SKIP


@pytest.mark.parametrize("evidence", [DEBUGGED, DSTACK], ids=["version 2", "version 3"])
def test_a_real_report_is_refused_where_its_product_is_not_trusted(evidence: tuple[bytes, bytes]) -> None:
    result = real(evidence, anchors=Anchors.of("amd").without(AMD_ARK_MILAN_SHA256))
    assert "snp.root" in failing(result)
    assert AMD_ARK_MILAN_SHA256 in reason(result, "snp.root")
    assert "ARK-Milan" in reason(result, "snp.root")
    denied = SnpPolicy(denied_products={"milan": "no ciphertext hiding"})
    assert "milan is denied: no ciphertext hiding" in reason(real(evidence, denied), "snp.policy")


@pytest.mark.parametrize("product", ["genoa", "turin"])
def test_another_products_chain_does_not_stand_for_a_real_milan_report(product: str) -> None:
    chain = stored(f"snp/go-sev-guest_ask_ark_{'turin_vcek' if product == 'turin' else product}.pem")
    result = real(DSTACK, chain=chain)
    assert failing(result) == {"snp.root"}
    assert reason(result, "snp.root") == f"got amd-ark-{product} for a report of milan"
    assert "snp.chain" in failing(real(DEBUGGED, chain=chain))  # version 2 names no CPU; the signature tells


def test_the_vcek_of_another_chip_does_not_do() -> None:
    result = real((DSTACK[0], DEBUGGED[1]))
    assert {"snp.signature", "snp.vcek"} <= failing(result)


def test_the_stored_ask_alone_is_no_chain() -> None:
    result = real(DSTACK, chain=stored("snp/dstack_sev_snp_ask.pem"))
    assert failing(result) == {"snp.root"}
    assert "1 certificates, expected 2" in reason(result, "snp.root")


def test_real_vceks_have_the_serial_number_zero_and_load_without_a_warning() -> None:
    for vcek in (DEBUGGED[1], DSTACK[1]):
        (encoded,) = split_certificates(vcek)
        assert encoded[13:16] == b"\x02\x01\x00"
    assert real(DSTACK).ok  # warnings are errors here


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("milan", AMD_ARK_MILAN_SHA256),
        ("genoa", AMD_ARK_GENOA_SHA256),
        ("turin_vcek", AMD_ARK_TURIN_SHA256),
    ],
)
def test_the_stored_amd_roots_are_the_ones_that_are_built_in(name: str, fingerprint: str) -> None:
    pem = stored(f"snp/go-sev-guest_ask_ark_{name}.pem")
    _, root = x509.load_pem_x509_certificates(pem)
    assert sha256(root.public_bytes(Encoding.DER)).hexdigest() == fingerprint
    assert split_certificates(pem)[1] == root.public_bytes(Encoding.DER)
    matched = Anchors.default().matching(split_certificates(pem)[1], "snp")
    assert matched is not None
    assert matched.anchor.name == f"amd-ark-{name.removesuffix('_vcek')}"


SIMULATED_CHAIN = stored("sim/snp_ask_ark.pem")


@pytest.fixture(scope="module")
def pinned() -> Anchors:
    return Anchors.default().with_simulated(split_certificates(SIMULATED_CHAIN)[1])


def test_the_stored_simulated_report_verifies_under_its_pinned_root(pinned: Anchors) -> None:
    evidence = (stored("sim/snp_report.bin"), stored("sim/snp_vcek.pem"))
    result = real(evidence, chain=SIMULATED_CHAIN, anchors=pinned)
    assert result.verdict is Verdict.VERIFIED
    assert result.simulated
    assert "SIMULATED" in reason(result, "snp.root")
    assert failing(real(evidence, chain=SIMULATED_CHAIN)) == {"snp.root"}


def test_the_stored_envelope_is_taken_apart_to_the_last_byte() -> None:
    assert (len(ENVELOPE.report), len(ENVELOPE.document), len(ENVELOPE.rest)) == (1184, 428, 2426)
    assert ENVELOPE.certificates == ()
    assert ENVELOPE.document.startswith('{"app_id":"86e59625be93207b')
    assert ENVELOPE.document.endswith('"version":3}')
