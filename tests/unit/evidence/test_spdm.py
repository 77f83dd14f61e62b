"""The parser of NVIDIA's reports: strict about every length and type, and quiet on any bytes whatsoever."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.evidence.spdm import MAX_REPORT_BYTES, OPAQUE_NAMES, SpdmError, SpdmReport, parse_report
from confide.simulator.gpu import FWID, SimulatedGpu, opaque_data
from gpu_builders import NONCE, SEED

REPORT = SimulatedGpu(SEED).report(NONCE)

# Offsets in a report (tee-evidence 6.5).
REQUEST, RESPONSE = 0, 37
BLOCKS, RECORD_LENGTH, RECORD = RESPONSE + 4, RESPONSE + 5, RESPONSE + 8
BLOCK_BYTES = 4 + 3 + 48
DEVICE_NONCE = RECORD + 64 * BLOCK_BYTES
OPAQUE_LENGTH = DEVICE_NONCE + 32
OPAQUE = OPAQUE_LENGTH + 2


def patched(offset: int, value: bytes, report: bytes = REPORT) -> bytes:
    return report[:offset] + value + report[offset + len(value) :]


def with_opaque(*fields: tuple[int, bytes]) -> SpdmReport:
    """The report with these opaque fields instead of its own."""
    opaque = opaque_data(fields)
    return parse_report(REPORT[:OPAQUE_LENGTH] + len(opaque).to_bytes(2, "little") + opaque + REPORT[-96:])


def test_every_field_is_where_the_layout_says() -> None:
    report = parse_report(REPORT)
    assert (report.nonce, report.slot) == (NONCE, 0)
    assert report.device_nonce == REPORT[DEVICE_NONCE:OPAQUE_LENGTH] != NONCE
    assert list(report.blocks) == list(range(1, 65))
    assert report.blocks[2] == REPORT[RECORD + BLOCK_BYTES + 7 : RECORD + 2 * BLOCK_BYTES]
    assert (report.signed, report.signature) == (REPORT[:-96], REPORT[-96:])
    assert report.fwid == FWID
    assert (report.driver_version, report.vbios_version) == ("570.172.08", "96.00.CF.00.02")


def test_a_switch_reports_fewer_blocks_no_driver_and_its_vbios_as_text() -> None:
    report = parse_report(SimulatedGpu(SEED, arch="LS10").report(NONCE))
    assert len(report.blocks) == 31
    assert (report.driver_version, report.vbios_version, report.fwid) == (None, "96.10.73.00.01", None)


def test_opaque_fields_are_named_and_unknown_ones_are_kept_as_hex() -> None:
    fields = parse_report(REPORT).fields()
    assert fields == {
        "driver_version": "570.172.08",
        "vbios_version": "96.00.CF.00.02",
        "fwid": FWID.hex(),
        "protected_pcie": "55",
        "opaque.1000": b"a type that no verifier knows".hex(),
    }


def test_every_known_type_has_a_name_of_its_own() -> None:
    report = with_opaque(*((kind, b"\x01\x02") for kind in OPAQUE_NAMES))
    assert set(report.fields()) == set(OPAQUE_NAMES.values())
    assert len(set(OPAQUE_NAMES.values())) == len(OPAQUE_NAMES)


def test_a_version_that_is_no_text_does_not_reach_a_terminal() -> None:
    report = with_opaque((3, b"5\x1b[2J\xff70\x00\x00"))
    assert report.driver_version == "5?[2J?70"
    assert report.vbios_version is None
    assert with_opaque((3, b""), (6, b"")).fields() == {"driver_version": "", "vbios_version": ""}


def test_a_report_may_hold_no_opaque_data() -> None:
    assert with_opaque().opaque == {}


def test_every_shorter_report_is_refused() -> None:
    for length in range(len(REPORT)):
        with pytest.raises(SpdmError, match=r"cut short|too many"):
            parse_report(REPORT[:length])


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (REQUEST, b"\x12", "SPDM version 0x12 in the request, expected 0x11"),
        (REQUEST + 1, b"\xe1", "message 0xe1 in the request, expected 0xe0"),
        (REQUEST + 2, b"\x00", "asks for no signature"),
        (RESPONSE, b"\x10", "SPDM version 0x10 in the response"),
        (RESPONSE + 1, b"\x7f", "message 0x7f in the response, expected 0x60"),
        (BLOCKS, b"\x3f", "64 measurement blocks, and the response states 63"),
        (RECORD_LENGTH, b"\xff\xff\xff", "cut short: the measurement record needs 16777215 bytes"),
        (RECORD_LENGTH, (64 * BLOCK_BYTES - 1).to_bytes(3, "little"), "cut short"),
        (RECORD, b"\x02", "two measurement blocks have the index 2"),
        (RECORD + 1, b"\x02", "block 1 follows specification 2, expected 1"),
        (RECORD + 2, b"\x34\x00", "1 bytes too many after a measurement"),
        (RECORD + 2, b"\x32\x00", "cut short: a measurement needs 48 bytes"),
        (RECORD + 2, b"\xff\xff", "cut short: a block needs 65535 bytes"),
        (RECORD + 5, b"\x20\x00", "block 1 has a value of 32 bytes, expected 48"),
        (OPAQUE_LENGTH, b"\xff\xff", "cut short: the opaque data needs 65535 bytes"),
        (OPAQUE_LENGTH, b"\x00\x00", "bytes too many after the signature"),
        (OPAQUE + 2, b"\xff\xff", "cut short: the opaque field 6 needs 65535 bytes"),
        (OPAQUE, b"\x03\x00", "two opaque fields have the type 3"),
    ],
)
def test_what_is_wrong_is_named(offset: int, value: bytes, message: str) -> None:
    with pytest.raises(SpdmError, match=message):
        parse_report(patched(offset, value))


def test_bytes_behind_the_signature_are_refused() -> None:
    with pytest.raises(SpdmError, match="1 bytes too many after the signature"):
        parse_report(REPORT + b"\x00")


def test_a_long_buffer_is_refused_before_it_is_read() -> None:
    with pytest.raises(SpdmError, match=f"expected at most {MAX_REPORT_BYTES}"):
        parse_report(REPORT.ljust(MAX_REPORT_BYTES + 1, b"\x00"))


def test_hex_text_instead_of_bytes_gets_a_hint() -> None:
    with pytest.raises(SpdmError, match="as raw bytes"):
        parse_report(REPORT.hex().encode())


@given(raw=st.binary(max_size=1024))
def test_random_bytes_are_refused_in_words(raw: bytes) -> None:
    with pytest.raises(SpdmError, match=r"\w"):
        parse_report(raw)


@given(data=st.data())
@settings(max_examples=200)
def test_a_mutated_report_parses_or_is_refused_and_nothing_else(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(REPORT)))
    stop = data.draw(st.integers(start, min(start + 16, len(REPORT))))
    mutated = REPORT[:start] + data.draw(st.binary(max_size=16)) + REPORT[stop:]
    try:
        report = parse_report(mutated)
    except SpdmError as error:
        assert str(error)  # noqa: PT017 - the mutation may also be harmless
    else:
        assert report.signed + report.signature == mutated
        assert all(isinstance(value, str) for value in report.fields().values())
