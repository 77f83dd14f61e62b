"""The report parser: strict about length, version, flags and reserved bytes, and quiet on any bytes whatsoever."""

import itertools

import pytest

from confide.evidence.snp_report import (
    BYTES,
    INTEGERS,
    REPORT_BYTES,
    Cpuid,
    Product,
    SigningKey,
    SnpReportError,
    SnpTcb,
    has_reserved_tcb,
    parse_snp_report,
    read_tcb,
)
from snp_builders import REPORT_DATA, patched, platform

HOST_DATA = bytes(range(32))


@pytest.fixture(scope="module")
def raw() -> bytes:
    return platform().report(REPORT_DATA, HOST_DATA)


def test_the_layout_has_no_overlap() -> None:
    places = sorted([*INTEGERS.values(), *BYTES.values()])
    for (offset, length), (following, _) in itertools.pairwise(places):
        assert offset + length <= following


def test_report_data_and_host_data_are_what_was_asked_for(raw: bytes) -> None:
    report = parse_snp_report(raw)
    assert (report.report_data, report.host_data) == (REPORT_DATA, HOST_DATA)
    other = parse_snp_report(platform().report(bytes(64)))
    assert other.measurement == report.measurement
    assert other.report_data == bytes(64)


@pytest.mark.parametrize(
    ("version", "cpuid", "mitigations"),
    [(2, None, None), (3, Cpuid(0x19, 1, 1), None), (4, Cpuid(0x19, 1, 1), 0), (5, Cpuid(0x19, 1, 1), 1)],
)
def test_what_a_version_adds(version: int, cpuid: Cpuid | None, mitigations: int | None) -> None:
    report = parse_snp_report(platform(version=version).report(REPORT_DATA))
    assert (report.version, report.cpuid) == (version, cpuid)
    assert (report.launch_mitigations, report.current_mitigations) == (mitigations, mitigations)
    assert report.current_version == (1, 55, 29)


def test_flags_and_signing_key(raw: bytes) -> None:
    report = parse_snp_report(patched(raw, 0x048, b"\x07"))
    assert (report.has_author_key, report.has_masked_chip_key, report.signing_key) == (True, True, SigningKey.VLEK)
    assert parse_snp_report(patched(raw, 0x048, b"\x1c")).signing_key is SigningKey.NONE


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0x000, b"\x01", "report version 1, expected one of 2, 3, 4, 5"),
        (0x000, b"\x06", "report version 6, expected one of 2, 3, 4, 5"),
        (0x034, b"\x02", r"signature algorithm 2, expected 1 \(ECDSA P-384"),
        (0x030, b"\x04", "VMPL 4, expected 0 to 3"),
        (0x030, b"\xff\xff\xff\xff", "the host asked for this report"),
        (0x048, b"\x20", "flags 0x20, expected none beyond 0x1f"),
        (0x048, b"\x08", "signing key 2, expected 0"),
        (0x04C, b"\x01", "reserved bytes 0x04c to 0x04f are not zero"),
        (0x18B, b"\x01", "reserved bytes 0x18b to 0x19f"),
        (0x1EB, b"\x01", "reserved bytes 0x1eb to 0x1eb"),
        (0x1EF, b"\x01", "reserved bytes 0x1ef to 0x1ef"),
        (0x1F8, b"\x01", "reserved bytes 0x1f8 to 0x207"),
        (0x29F, b"\x01", "reserved bytes 0x208 to 0x29f"),
        (0x2A0 + 48, b"\x01", "reserved bytes 0x2d0 to 0x2e7"),
        (0x2E8 + 71, b"\x01", "reserved bytes 0x318 to 0x32f"),
        (0x330, b"\x01", "reserved bytes 0x330 to 0x49f"),
        (0x49F, b"\x80", "reserved bytes 0x330 to 0x49f"),
    ],
)
def test_what_is_wrong_is_named(raw: bytes, offset: int, value: bytes, message: str) -> None:
    with pytest.raises(SnpReportError, match=message):
        parse_snp_report(patched(raw, offset, value))


def test_version_2_has_no_cpuid_and_the_later_ones_have_mitigation_vectors() -> None:
    second, third = (platform(version=version).report(REPORT_DATA) for version in (2, 3))
    with pytest.raises(SnpReportError, match="0x188 to 0x18a"):
        parse_snp_report(patched(second, 0x188, b"\x19"))
    with pytest.raises(SnpReportError, match="0x1f8 to 0x207"):
        parse_snp_report(patched(second, 0x1F8, b"\x01"))
    fourth = parse_snp_report(patched(patched(third, 0, b"\x04"), 0x1F8, b"\x03"))
    assert (fourth.launch_mitigations, fourth.current_mitigations) == (3, 0)


@pytest.mark.parametrize("length", [0, 1, 4, 671, 1183, 1185, 4000])
def test_another_length_is_refused(raw: bytes, length: int) -> None:
    with pytest.raises(SnpReportError, match=f"{length} bytes, expected {REPORT_BYTES}"):
        parse_snp_report((raw * 4)[:length])


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, Product.MILAN),
        (0x19, 0x0F, Product.MILAN),
        (0x19, 0x11, Product.GENOA),
        (0x19, 0xA0, Product.GENOA),
        (0x1A, 0x02, Product.TURIN),
        (0x1A, 0x11, Product.TURIN),
        (0x1A, 0x12, None),
        (0x19, 0x20, None),
        (0x17, 0x01, None),
    ],
)
def test_the_cpu_generation_is_known_by_family_and_model(family: int, model: int, product: Product | None) -> None:
    assert Cpuid(family, model, 0).product is product


def test_turin_has_another_order_of_tcb_bytes() -> None:
    raw = bytes((1, 2, 3, 4, 0, 0, 0, 5))
    assert read_tcb(raw, Product.TURIN) == SnpTcb(fmc=1, bootloader=2, tee=3, snp=4, microcode=5)
    assert read_tcb(raw, Product.MILAN) == SnpTcb(bootloader=1, tee=2, snp=0, microcode=5)
    assert not has_reserved_tcb(raw, Product.TURIN)
    assert has_reserved_tcb(raw, Product.GENOA)


def test_a_new_microcode_does_not_hide_an_old_boot_loader() -> None:
    found = SnpTcb(bootloader=3, snp=24, microcode=255)
    assert found.below(SnpTcb(bootloader=4, snp=24, microcode=200)) == ["bootloader"]
    assert found.below(found) == []
    assert str(found) == "bootloader 3, tee 0, snp 24, microcode 255"
    assert str(SnpTcb(fmc=1)) == "fmc 1, bootloader 0, tee 0, snp 0, microcode 0"


@pytest.mark.parametrize("level", [-1, 256])
def test_a_patch_level_out_of_range_is_refused(level: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 255, got snp {level}"):
        SnpTcb(snp=level)
