"""Fuzz configfs-tsm: whatever the attributes hold, the reader gives a report or TsmError, and what the host put beside
it is left out or can be served.
"""

import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from confide.attester.own_output import snp_report_data, tdx_report_data
from confide.attester.tsm import pem, snp_certificates
from confide.attester.tsm_report import MAX_BLOB_BYTES, SNP, TDX, TsmError, TsmReader
from confide.collateral.kds import chip_of
from confide.collateral.supply import Malformed
from confide.collateral.tdx import platform_of
from confide.errors import CannotTell
from confide.evidence.quote import QuoteError, parse_quote
from confide.evidence.snp_chain import SnpChainError, load_certificate, split_certificates
from confide.evidence.snp_report import SnpReportError, parse_snp_report
from confide.simulator.configfs import SimulatedConfigfs
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from fuzz._bytes import patched

NOW = 1_800_000_000
SEED = b"\x11" * 32
REPORT_DATA = bytes(64)
CHIP = SimulatedSnpPlatform(SEED, now=NOW, serial_zero=True)
OUTBLOBS = {TDX: SimulatedTdxPlatform(SEED, now=NOW).quote(REPORT_DATA), SNP: CHIP.report(REPORT_DATA)}
TABLE = CHIP.certificate_table()
GIVEN = snp_certificates(TABLE)
ATTRIBUTES = ("provider", "generation", "outblob", "auxblob")


class ChangedConfigfs(SimulatedConfigfs):
    """The directory with one attribute changed: `choices` say where."""

    def __init__(self, provider: str, attribute: str, choices: bytes) -> None:
        super().__init__(lambda _: OUTBLOBS[provider], provider=provider, auxblob=TABLE if provider == SNP else None)
        self._attribute, self._choices = attribute, choices

    def read(self, path: Path, limit: int) -> bytes:
        content = super().read(path, limit)
        return patched(content, self._choices)[:limit] if path.name == self._attribute else content


def fuzz_one(data: bytes) -> None:
    """One input: as blobs, and as a change to the attribute that the first byte names."""
    provider, attribute = (SNP, TDX)[data[0] & 1] if data else SNP, ATTRIBUTES[data[0] // 2 % 4] if data else "provider"
    files = ChangedConfigfs(provider, attribute, data[1:])
    reader = TsmReader(files, pause=lambda _: None)
    with suppress(TsmError):
        reader.provider()
    with suppress(TsmError):
        report = reader.report(REPORT_DATA, provider=provider)
        if attribute in ATTRIBUTES[:2] and (report.provider, report.outblob) != (provider, OUTBLOBS[provider]):
            raise AssertionError("another report was read than the platform gave")
        outblob(report.outblob)
        table(report.auxblob)
    if files.reports:
        raise AssertionError("a directory was left behind")
    outblob(data[:MAX_BLOB_BYTES])
    table(data[:MAX_BLOB_BYTES])
    armoured(data)
    armoured(patched(CHIP.vcek_der, data))


def outblob(blob: bytes) -> None:
    """What asks for collateral keeps to its errors; report data are those that a verifier reads, or none."""
    with suppress(QuoteError, Malformed):
        quote = parse_quote(blob)
        if tdx_report_data(blob) != quote.report_data:
            raise AssertionError("a verifier reads other report data in the quote")
        platform_of(quote)
    with suppress(SnpReportError, CannotTell):
        report = parse_snp_report(blob)
        if snp_report_data(blob) != report.report_data:
            raise AssertionError("a verifier reads other report data in the report")
        chip_of(report, None)


def table(blob: bytes) -> None:
    """What the host gave can be written as text."""
    certificates = snp_certificates(blob)
    if (blob == TABLE) and certificates != GIVEN:
        raise AssertionError("the honest certificates were left out")
    if certificates is not None:
        msgspec.json.encode([certificates.vcek, certificates.cert_chain])


def armoured(der: bytes) -> None:
    """A certificate that can be read is the same one as text."""
    with suppress(SnpChainError):
        load_certificate(der)
        if split_certificates(pem(der).encode()) != (der,):
            raise AssertionError("a certificate is another one as text")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
