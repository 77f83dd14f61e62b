"""dstack's V0 envelope around an SNP report: taken apart to the last byte, or refused in words."""

import pytest

from confide.evidence.mr_config import document_sha256
from confide.evidence.result import Status
from confide.evidence.snp_dstack import MAX_ENVELOPE_BYTES, EnvelopeError, split_envelope
from snp_builders import REPORT_DATA, platform, statuses, verified

DOCUMENT = '{"version":3,"app_name":"é"}'
ENVELOPE = platform().dstack_envelope(REPORT_DATA, DOCUMENT.encode())
CERTIFICATES = 4 + 1184  # where their count stands


def test_an_envelope_holds_a_report_that_is_bound_to_its_document() -> None:
    envelope = split_envelope(ENVELOPE)
    assert (envelope.document, envelope.certificates) == (DOCUMENT, ())
    assert envelope.rest == b"\x00" + REPORT_DATA + b"\x00"
    result = verified(envelope.report, expected_host_data=document_sha256(envelope.document))
    assert statuses(result)["dstack.host-data"] is Status.PASS
    assert result.ok


def test_certificates_in_the_envelope_are_kept() -> None:
    with_two = ENVELOPE[:CERTIFICATES] + b"\x08" + b"\x0cask" + b"\x0cark" + ENVELOPE[CERTIFICATES + 1 :]
    assert split_envelope(with_two).certificates == (b"ask", b"ark")


@pytest.mark.parametrize("length", [0, 63, 64, 16383])
def test_documents_of_any_length_come_out_as_they_went_in(length: int) -> None:
    document = "x" * length
    assert split_envelope(platform().dstack_envelope(REPORT_DATA, document.encode())).document == document


def test_a_long_document_has_a_length_of_four_bytes() -> None:
    document = b"x" * 16384
    raw = ENVELOPE[: CERTIFICATES + 1] + (16384 << 2 | 2).to_bytes(4, "little") + document
    assert split_envelope(raw).document == document.decode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "it starts with , expected 00038112"),
        (b"\x01" + ENVELOPE[1:], "it starts with 01038112, expected 00038112"),
        (b"\x00\x00" + ENVELOPE[2:], "it starts with 00008112"),
        (ENVELOPE[:1187], "cut short: 1187 bytes, expected a report up to byte 1188"),
        (ENVELOPE[:1188], "cut short, or a length beyond 2\\^30, at byte 1188"),
        (ENVELOPE[:1188] + b"\x24", "9 certificates, expected at most 8"),
        (ENVELOPE[:1189] + b"\x14abc", "cut short: 5 bytes expected at byte 1190, and 3 are left"),
        (ENVELOPE[:1189] + b"\x03\x00\x00\x00\x40", "beyond 2\\^30, at byte 1189"),
        (ENVELOPE[:1189] + b"\x01", "cut short, or a length beyond"),
        (ENVELOPE[:1189] + b"\x05\x00a", "the length at byte 1189 is not in its shortest form"),
        (ENVELOPE[:1189] + b"\x06\x00\x00\x00a", "not in its shortest form"),
        (ENVELOPE[:1189] + b"\x04\xff", "not UTF-8 at its byte 0"),
        (ENVELOPE.ljust(MAX_ENVELOPE_BYTES + 1), f"{MAX_ENVELOPE_BYTES + 1} bytes, expected at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_named(raw: bytes, message: str) -> None:
    with pytest.raises(EnvelopeError, match=message):
        split_envelope(raw)
