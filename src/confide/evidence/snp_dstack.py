"""SNP evidence of dstack guests: the V0 envelope around report and configuration document (tee-evidence 6.4).

Structure only. An SNP report has no runtime registers: of what dstack says about a guest, HOST_DATA alone is bound by
the report. It must be `mr_config.document_sha256` of the document, which `verify_snp` checks as dstack.host-data.
"""

from dataclasses import dataclass

from confide.evidence.snp_report import REPORT_BYTES

HOST_DATA = "dstack.host-data"

MAX_ENVELOPE_BYTES = 1024 * 1024
MAX_CERTIFICATES = 8
# Version 0, quote kind 3 (SEV-SNP), and 1184, the length of the report, as a SCALE compact integer.
HEAD = bytes.fromhex("00038112")
REPORT = slice(len(HEAD), len(HEAD) + REPORT_BYTES)


class EnvelopeError(ValueError):
    """The bytes are not a V0 envelope around an SNP report. The text is for people."""


@dataclass(frozen=True)
class Envelope:
    """`report`: 1184 bytes. `document`: the configuration, as it was hashed. `certificates`: DER or PEM, often none.

    `rest`: event log, report data and VM configuration, which nothing in the report binds.
    """

    report: bytes
    certificates: tuple[bytes, ...]
    document: str
    rest: bytes


def split_envelope(raw: bytes) -> Envelope:
    """Take a V0 envelope apart. Raises EnvelopeError; later versions are not read here."""
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise EnvelopeError(f"{len(raw)} bytes, expected at most {MAX_ENVELOPE_BYTES}")
    if not raw.startswith(HEAD):
        raise EnvelopeError(f"it starts with {raw[: len(HEAD)].hex()}, expected {HEAD.hex()} (V0 around an SNP report)")
    if len(raw) < REPORT.stop:
        raise EnvelopeError(f"cut short: {len(raw)} bytes, expected a report up to byte {REPORT.stop}")
    count, offset = compact(raw, REPORT.stop)
    if count > MAX_CERTIFICATES:
        raise EnvelopeError(f"{count} certificates, expected at most {MAX_CERTIFICATES}")
    certificates = []
    for _ in range(count):
        certificate, offset = vector(raw, offset)
        certificates.append(certificate)
    document, offset = vector(raw, offset)
    try:
        return Envelope(raw[REPORT], tuple(certificates), document.decode(), raw[offset:])
    except UnicodeDecodeError as error:
        raise EnvelopeError(f"the configuration document is not UTF-8 at its byte {error.start}") from error


def compact(raw: bytes, offset: int) -> tuple[int, int]:
    """A SCALE compact integer below 2^30 in its shortest form, and the offset behind it."""
    width = 1 << (raw[offset] & 0b11) if offset < len(raw) else 1
    encoded = raw[offset : offset + width]
    if len(encoded) < width or width > 4:
        raise EnvelopeError(f"cut short, or a length beyond 2^30, at byte {offset}")
    number = int.from_bytes(encoded, "little") >> 2
    if width > 1 and number < 1 << (4 * width - 2):
        raise EnvelopeError(f"the length at byte {offset} is not in its shortest form")
    return number, offset + width


def vector(raw: bytes, offset: int) -> tuple[bytes, int]:
    """Bytes behind their own length, and the offset behind them."""
    length, start = compact(raw, offset)
    if start + length > len(raw):
        raise EnvelopeError(f"cut short: {length} bytes expected at byte {start}, and {len(raw) - start} are left")
    return raw[start : start + length], start + length
