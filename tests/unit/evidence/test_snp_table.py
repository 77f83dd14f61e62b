"""The certificate table beside a report: what the host put there, or a refusal in words."""

import pytest

from confide.evidence.snp_table import (
    ARK,
    ASK,
    MAX_TABLE_BYTES,
    VCEK,
    CertificateTable,
    SnpTableError,
    parse_certificate_table,
)
from snp_builders import patched, platform, verified

TABLE = platform().certificate_table()


def entry(guid: bytes, offset: int, length: int) -> bytes:
    return guid + offset.to_bytes(4, "little") + length.to_bytes(4, "little")


@pytest.mark.parametrize("knobs", [{}, {"vlek": True}], ids=str)
def test_the_table_of_a_machine_holds_its_chain(knobs: dict[str, object]) -> None:
    machine = platform(**knobs)
    table = parse_certificate_table(machine.certificate_table())
    assert (table.vcek, table.chain) == (machine.vcek_der, machine.chain_der)


def test_what_is_in_the_table_verifies_the_report() -> None:
    table = parse_certificate_table(TABLE)
    assert verified(vcek=table.vcek, chain=table.chain).ok


def test_the_guids_are_those_of_the_standard() -> None:
    assert set(parse_certificate_table(TABLE).certificates) == {VCEK, ASK, ARK}
    assert TABLE[:4].hex() == "63da758d"


@pytest.mark.parametrize("blob", [b"", bytes(24), bytes(4096)])
def test_no_certificates_is_an_answer_too(blob: bytes) -> None:
    table = parse_certificate_table(blob)
    assert (table, table.vcek, table.chain) == (CertificateTable({}), None, None)


def test_a_chain_without_its_root_is_none() -> None:
    blob = entry(ASK.bytes, 48, 3) + bytes(24) + b"ask"
    table = parse_certificate_table(blob)
    assert (table.certificates, table.chain) == ({ASK: b"ask"}, None)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (TABLE[:23], "ends at byte 23 without its closing entry"),
        (entry(ASK.bytes, 0, 1), "ends at byte 24 without its closing entry"),
        (entry(ASK.bytes, 48, 4) + bytes(24) + b"ask", f"{ASK} has 4 bytes at 48, and the table ends at 51"),
        (entry(ASK.bytes, 48, 0) + bytes(24) + b"ask", f"{ASK} has 0 bytes at 48"),
        (entry(ASK.bytes, 2**32 - 1, 2**32 - 1) + bytes(24), "the table ends at 48"),
        (entry(ASK.bytes, 72, 3) * 2 + bytes(24) + b"ask", f"{ASK} stands there twice"),
        (entry(ASK.bytes, 47, 3) + bytes(24) + b"ask", "the bytes at 47 belong to two entries"),
        (entry(ASK.bytes, 72, 2) + entry(ARK.bytes, 73, 2) + bytes(24) + b"ask", "the bytes at 73 belong to two"),
        (bytes(MAX_TABLE_BYTES + 1), f"{MAX_TABLE_BYTES + 1} bytes, expected at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(blob: bytes, message: str) -> None:
    with pytest.raises(SnpTableError, match=message):
        parse_certificate_table(blob)


def test_a_changed_table_changes_nothing_that_verifies() -> None:
    """The host fills the table in; the chain decides."""
    table = parse_certificate_table(patched(TABLE, len(TABLE) - 1, bytes((TABLE[-1] ^ 1,))))
    assert not verified(vcek=table.vcek, chain=table.chain).ok
