"""Fuzz SNP evidence: any bytes are refused with the parser's own error or read, and no change of a part verifies."""

import sys
from collections.abc import Callable
from contextlib import suppress

from confide.evidence.policy import Anchors, SnpPolicy
from confide.evidence.result import Status
from confide.evidence.snp import verify_snp
from confide.evidence.snp_chain import SnpChainError, load_certificate, split_certificates
from confide.evidence.snp_dstack import EnvelopeError, split_envelope
from confide.evidence.snp_report import SnpReportError, parse_snp_report
from confide.evidence.snp_table import SnpTableError, parse_certificate_table
from confide.simulator.snp import SimulatedSnpPlatform

NOW = 1_800_000_000
MACHINE = SimulatedSnpPlatform(b"\x11" * 32, now=NOW, serial_zero=True)
ANCHORS = Anchors.of("amd").with_simulated(MACHINE.root_der)
HONEST = {
    "raw": MACHINE.report(bytes(64)),
    "vcek": MACHINE.vcek_der,
    "chain": MACHINE.chain_der,
    "crl": MACHINE.crl(NOW),
}
PARTS = tuple(HONEST)
TABLE = MACHINE.certificate_table()
ENVELOPE = MACHINE.dstack_envelope(bytes(64), b'{"version":3}')
PARSERS: tuple[tuple[Callable[[bytes], object], type[ValueError]], ...] = (
    (parse_snp_report, SnpReportError),
    (parse_certificate_table, SnpTableError),
    (split_envelope, EnvelopeError),
    (split_certificates, SnpChainError),
    (load_certificate, SnpChainError),
)


def fuzz_one(data: bytes) -> None:
    """One input: for every parser, and as a change to one part of an honest machine's evidence."""
    for whole in (data, changed(TABLE, data), changed(ENVELOPE, data), changed(MACHINE.vcek_der, data)):
        parse(whole)
    part = PARTS[data[0] % len(PARTS)] if data else "raw"
    verify(part, data[1:])
    verify(part, changed(HONEST[part], data[1:]))


def parse(raw: bytes) -> None:
    """Each parser keeps to its error."""
    for parser, refusal in PARSERS:
        with suppress(refusal):
            parser(raw)


def changed(honest: bytes, choices: bytes) -> bytes:
    """A copy with the bytes behind the first two put in place of as many, at the offset that the first two say."""
    offset = int.from_bytes(choices[:2], "big") % (len(honest) + 1)
    return honest[:offset] + choices[2:] + honest[offset + len(choices[2:]) :]


def verify(part: str, raw: bytes) -> None:
    """Nothing but the honest evidence is accepted."""
    evidence = HONEST | {part: raw}
    result = verify_snp(
        evidence["raw"],
        vcek=evidence["vcek"],
        chain=evidence["chain"],
        crl=evidence["crl"],
        anchors=ANCHORS,
        policy=SnpPolicy(require_crl=True),
        now=NOW,
        expected_report_data=bytes(64),
    )
    if not result.rejected and raw != HONEST[part]:
        raise AssertionError(f"a changed {part} was accepted")
    if raw == HONEST[part] and any(check.status is not Status.PASS for check in result.checks):
        raise AssertionError("the honest evidence was not accepted")
    if not all(check.reason.isprintable() for check in result.checks):
        raise AssertionError("a reason is not fit for a terminal")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
