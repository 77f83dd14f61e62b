"""The attacker can change any bit of a genuine SNP report, and of the certificates beside it, but has no key.

No flip may make a report look better than it is, or even as good: the result is a rejection with fewer checks passed.
"""

from collections.abc import Iterator

import pytest

from confide.evidence.policy import Anchors, SnpPolicy
from confide.evidence.result import Status, Verdict
from confide.evidence.snp import SnpResult, verify_snp
from confide.evidence.snp_chain import split_certificates
from confide.evidence.snp_dstack import split_envelope
from shared_data import TEE
from snp_builders import NOW, REPORT_DATA, evidence, flipped, named, platform

Evidence = dict[str, object]

STRIDE = 5  # bits between two flips of a report in the short run: every bit position in some byte of every field
CERTIFICATE_STRIDE = 43
PRESENT = 1_795_000_000


def simulated(**knobs: object) -> Evidence:
    machine = platform(**knobs)
    return evidence(machine) | {"raw": machine.report(REPORT_DATA)}


def stored(name: str) -> bytes:
    if not TEE.is_dir():
        pytest.skip("the stored TEE samples are not beside this repository")
    return (TEE / name).read_bytes()


def real(raw: bytes, vcek: bytes) -> Evidence:
    return {
        "raw": raw,
        "vcek": vcek,
        "chain": stored("snp/go-sev-guest_ask_ark_milan.pem"),
        "crl": None,
        "anchors": Anchors.of("amd"),
        "policy": SnpPolicy(),
        "now": PRESENT,
        "expected_report_data": raw[0x050:0x090],
    }


def version_2() -> Evidence:
    return real(stored("snp/go-sev-guest_attestation.bin"), stored("snp/go-sev-guest_vcek.testcer"))


def version_3() -> Evidence:
    envelope = split_envelope(stored("snp/dstack_sev_snp_attestation.bin"))
    return real(envelope.report, stored("snp/dstack_sev_snp_vcek.pem"))


SUBJECTS = {"simulated": simulated, "real version 2, in debug mode": version_2, "real version 3": version_3}


def verified(subject: Evidence, **changes: object) -> SnpResult:
    arguments = subject | changes
    return verify_snp(arguments.pop("raw"), **arguments)  # type: ignore[arg-type]  # kept by name


def is_minded(honest: SnpResult, result: SnpResult) -> bool:
    """Rejected, with fewer checks passed than before and none that did not pass before."""
    return result.rejected and named(result, Status.PASS) < named(honest, Status.PASS)


def accepted(subject: Evidence, part: str, stride: int) -> Iterator[int]:
    """The bits of this part whose flip the verifier does not mind. Prints how many were tried."""
    honest, whole = verified(subject), subject[part]
    assert isinstance(whole, bytes)
    bits = range(0, 8 * len(whole), stride)
    print(f"{part}: {len(bits)} of {8 * len(whole)} bits flipped")
    return (bit for bit in bits if not is_minded(honest, verified(subject, **{part: flipped(whole, bit)})))


@pytest.mark.parametrize(
    ("subject", "verdict"),
    [
        ("simulated", Verdict.VERIFIED),
        ("real version 2, in debug mode", Verdict.NOT_VERIFIED),
        ("real version 3", Verdict.VERIFIED),
    ],
)
def test_the_unchanged_report_is_what_it_is(subject: str, verdict: Verdict) -> None:
    result = verified(SUBJECTS[subject]())
    assert result.verdict is verdict
    assert {"snp.parse", "snp.root", "snp.chain", "snp.signature", "snp.vcek", "snp.tcb"} <= named(result, Status.PASS)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_no_flipped_bit_makes_a_report_better(subject: str) -> None:
    assert list(accepted(SUBJECTS[subject](), "raw", STRIDE)) == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_not_one_bit_of_a_report_is_free(subject: str) -> None:
    assert list(accepted(SUBJECTS[subject](), "raw", 1)) == []


def in_der(subject: Evidence) -> Evidence:
    """The same with certificates in DER form, which has no free bits; PEM text has line breaks."""
    forms = {part: subject[part] for part in ("vcek", "chain")}
    return subject | {
        part: b"".join(split_certificates(form)) for part, form in forms.items() if isinstance(form, bytes)
    }


@pytest.mark.parametrize("part", ["vcek", "chain", "crl"])
def test_no_flipped_bit_of_the_certificates_is_accepted(part: str) -> None:
    assert list(accepted(simulated(serial_zero=True), part, CERTIFICATE_STRIDE)) == []


@pytest.mark.parametrize("part", ["vcek", "chain"])
@pytest.mark.parametrize("subject", ["real version 2, in debug mode", "real version 3"])
def test_no_flipped_bit_of_real_certificates_is_accepted(subject: str, part: str) -> None:
    assert list(accepted(in_der(SUBJECTS[subject]()), part, CERTIFICATE_STRIDE)) == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["vcek", "chain", "crl"])
def test_not_one_bit_of_the_certificates_is_free(part: str) -> None:
    assert list(accepted(simulated(serial_zero=True), part, 1)) == []


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", ["vcek", "chain"])
@pytest.mark.parametrize("subject", ["real version 2, in debug mode", "real version 3"])
def test_not_one_bit_of_real_certificates_is_free(subject: str, part: str) -> None:
    assert list(accepted(in_der(SUBJECTS[subject]()), part, 1)) == []


def test_a_bit_flipped_back_verifies() -> None:
    """The twin: the harness itself does not reject everything."""
    subject = simulated()
    raw = subject["raw"]
    assert isinstance(raw, bytes)
    assert verified(subject, raw=flipped(flipped(raw, 1000), 1000)).verdict is Verdict.VERIFIED
    assert verified(subject, now=NOW + 1).verdict is Verdict.VERIFIED
