"""Fuzz the report: any bytes are refused with DocumentError or read, and only the honest keyset binds the nonce."""

import json
import sys

from confide.protocol.canonical import DocumentError
from confide.protocol.report import SourceProvenance, aci_report, binds, parse_report
from confide.protocol.statement import aci_report_data
from fuzz._documents import KEYSET, changed, read

NONCE = "cd" * 32
HONEST = aci_report(
    keyset=KEYSET,
    nonce=NONCE,
    tee_type="tdx",
    provenance=SourceProvenance(repo_url="https://a", repo_commit="ab" * 20),
    evidence={"quote": "04ab", "quote_report_data": aci_report_data(KEYSET.digest(), NONCE).hex(), "event_log": "[]"},
)


def fuzz_one(data: bytes) -> None:
    """One input: as a report, and as changes to an honest one."""
    read(data)
    parse(data)
    parse(json.dumps(changed(HONEST, iter(data))).encode())


def parse(raw: bytes) -> None:
    """A report keeps its promises."""
    try:
        report = parse_report(raw)
    except DocumentError:
        return
    if binds(report, None) is None and binds(report, NONCE) is None:
        raise AssertionError("a report binds two nonces")
    if binds(report, NONCE) is None and report.keyset_digest != KEYSET.digest():
        expected = aci_report_data(report.keyset_digest, NONCE)[:32].hex()
        if report.report_data != expected:
            raise AssertionError("another keyset binds the nonce")
    if report.serving not in ("direct", "aggregator"):
        raise AssertionError("a report serves in a way that is not defined")
    if report.provenance is not None and not isinstance(report.provenance.is_acceptable, bool):
        raise AssertionError("provenance is neither acceptable nor not")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
