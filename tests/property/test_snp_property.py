"""SNP evidence of any bytes whatsoever: parsers raise their own error and no other, and the verifier raises none."""

import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.evidence.result import Status
from confide.evidence.snp_chain import SnpChainError, load_certificate, split_certificates
from confide.evidence.snp_dstack import EnvelopeError, split_envelope
from confide.evidence.snp_report import REPORT_BYTES, SnpReportError, SnpTcb, parse_snp_report
from confide.evidence.snp_table import SnpTableError, parse_certificate_table
from snp_builders import NOW, REPORT_DATA, named, platform, verified

MACHINE = platform(serial_zero=True)
REPORT = MACHINE.report(REPORT_DATA)
ENVELOPE = MACHINE.dstack_envelope(REPORT_DATA, b'{"version":3}')
PARSERS: list[tuple[Callable[[bytes], object], type[ValueError], bytes]] = [
    (parse_snp_report, SnpReportError, REPORT),
    (parse_certificate_table, SnpTableError, MACHINE.certificate_table()),
    (split_envelope, EnvelopeError, ENVELOPE),
    (split_certificates, SnpChainError, MACHINE.chain_der),
    (split_certificates, SnpChainError, MACHINE.chain_pem.encode()),
    (load_certificate, SnpChainError, MACHINE.vcek_der),
]
IDS = ["report", "table", "envelope", "DER", "PEM", "certificate"]


@st.composite
def mutations(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with a stretch of up to 16 replaced, or cut off somewhere."""
    start = draw(st.integers(0, len(whole)))
    stop = draw(st.integers(start, min(start + 16, len(whole))))
    rest = whole[stop:] if draw(st.booleans()) else b""
    return whole[:start] + draw(st.binary(max_size=16)) + rest


@pytest.mark.parametrize(("parse", "refusal", "honest"), PARSERS, ids=IDS)
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_parser_reads_or_refuses_in_words_and_nothing_else(
    parse: Callable[[bytes], object], refusal: type[ValueError], honest: bytes, data: st.DataObject
) -> None:
    raw = data.draw(st.binary(max_size=2048) | mutations(honest))
    try:
        parse(raw)
    except refusal as error:
        assert str(error)  # noqa: PT017 - the change may also be harmless


@given(length=st.integers(0, 2 * REPORT_BYTES))
def test_only_a_whole_report_is_read(length: int) -> None:
    raw = (REPORT + REPORT)[:length]
    if length == REPORT_BYTES:
        assert parse_snp_report(raw).report_data == REPORT_DATA
    else:
        with pytest.raises(SnpReportError, match=f"^{length} bytes, expected 1184"):
            parse_snp_report(raw)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_verifier_answers_any_evidence_and_only_the_honest_one_with_yes(data: st.DataObject) -> None:
    honest = {"raw": REPORT, "vcek": MACHINE.vcek_der, "chain": MACHINE.chain_der, "crl": MACHINE.crl(NOW)}
    part = data.draw(st.sampled_from(sorted(honest)))
    changed = data.draw(st.binary(max_size=512) | mutations(honest[part]))
    result = verified(**(honest | {part: changed}), of=MACHINE)
    assert all(check.reason.isprintable() for check in result.checks)
    json.dumps(result.facts)
    if changed != honest[part]:
        assert result.rejected
        assert "binding.report-data" not in named(result, Status.PASS)


LEVEL = st.integers(0, 255)
TCBS = st.builds(SnpTcb, fmc=LEVEL, bootloader=LEVEL, tee=LEVEL, snp=LEVEL, microcode=LEVEL)


@given(found=TCBS, least=TCBS)
def test_a_tcb_is_enough_only_when_each_part_is(found: SnpTcb, least: SnpTcb) -> None:
    is_enough = not found.below(least)
    assert is_enough == all(level >= least.levels[name] for name, level in found.levels.items())
    assert not found.below(found)
    if is_enough and not least.below(found):
        assert found == least
