"""Fuzz TDX quotes: any bytes are refused with QuoteError or read, and a changed quote is accepted only where it means
the same.
"""

import json
import sys

from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import QuoteError, TdxQuote, parse_quote
from confide.evidence.result import Status
from confide.evidence.tdx import verify_tdx
from confide.simulator.tdx import QuoteForm, SimulatedTdxPlatform
from fuzz._bytes import patched

NOW = 1_800_000_000
SEED = b"\x11" * 32
PLATFORMS = [SimulatedTdxPlatform(SEED, now=NOW, form=form) for form in QuoteForm]
QUOTES = [platform.quote(bytes(64)) for platform in PLATFORMS]
COLLATERAL = json.dumps(PLATFORMS[0].collateral(NOW))
ANCHORS = Anchors.of("intel").with_simulated(PLATFORMS[0].root_der)
PEM = b"-----BEGIN CERTIFICATE-----"


def fuzz_one(data: bytes) -> None:
    """One input: as a quote, and as a change to an honest quote of one of the three forms."""
    parse(data)
    honest = QUOTES[data[0] % len(QUOTES)] if data else QUOTES[0]
    changed = patched(honest, data[1:])
    parse(changed)
    verify(changed, honest)
    verify(data, honest)


def parse(raw: bytes) -> None:
    """The parser keeps to its error, and loses no byte."""
    try:
        quote = parse_quote(raw)
    except QuoteError:
        return
    if quote.trimmed + quote.tail != raw:
        raise AssertionError("bytes are neither quote nor tail")


def verify(raw: bytes, honest: bytes) -> None:
    """What verifies says what the honest quote says."""
    result = verify_tdx(
        raw, collateral=COLLATERAL, anchors=ANCHORS, policy=TdxPolicy(), now=NOW, expected_report_data=bytes(64)
    )
    if not all(check.reason.isprintable() for check in result.checks):
        raise AssertionError("a reason is not fit for a terminal")
    if raw == honest and any(check.status is not Status.PASS for check in result.checks):
        raise AssertionError("the honest quote was not accepted")
    if result.rejected:
        return
    if result.quote is None or meaning(result.quote) not in map(meaning, map(parse_quote, QUOTES)):
        raise AssertionError("another quote was accepted")


def meaning(quote: TdxQuote) -> tuple[bytes, tuple[bytes, ...]]:
    """All that stands in front of the chain, and the chain as DER."""
    return quote.trimmed[: quote.trimmed.index(PEM)], quote.chain


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
