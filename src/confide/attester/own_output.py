"""Where the report data is in what a platform gave: an attester reads its own output back before it is served.

Structure and signatures are for a verifier (`evidence.quote`, `evidence.snp_report`). Here it is enough to see that the
platform quoted what it was asked for; other quote kinds (DICE, CWT) have no report data here and are refused with it.
"""

from confide.errors import InternalError

REPORT_DATA_BYTES = 64

# TDX quotes (tee-evidence 6.1): header 48 bytes; version 5 adds 6 bytes of body header. In the TD report it is at 520.
TDX_BODY_AT = {4: 48, 5: 48 + 6}
TDX_REPORT_DATA_AT = 520
ECDSA_P256, TEE_TDX = 2, 0x81

# SNP reports (tee-evidence 6.4).
SNP_REPORT_BYTES = 1184
SNP_REPORT_DATA_AT = 0x50


def tdx_report_data(quote: bytes) -> bytes | None:
    """The 64 bytes in a TDX quote of version 4 or 5; None in bytes that are none."""
    body_at = TDX_BODY_AT.get(int.from_bytes(quote[:2], "little"))
    kind, tee = int.from_bytes(quote[2:4], "little"), int.from_bytes(quote[4:8], "little")
    if body_at is None or (kind, tee) != (ECDSA_P256, TEE_TDX):
        return None
    begin = body_at + TDX_REPORT_DATA_AT
    return quote[begin : begin + REPORT_DATA_BYTES]


def snp_report_data(report: bytes) -> bytes | None:
    """The 64 bytes in an SNP report; None in bytes that are none."""
    if len(report) != SNP_REPORT_BYTES:
        return None
    return report[SNP_REPORT_DATA_AT : SNP_REPORT_DATA_AT + REPORT_DATA_BYTES]


def require_same(found: bytes | None, report_data: bytes) -> None:
    """InternalError unless exactly the bytes were quoted that were asked for: nothing is served then."""
    if found != report_data:
        raise InternalError("the platform quoted other report data than it was given")
