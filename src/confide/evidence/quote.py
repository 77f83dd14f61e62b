"""TDX quotes, versions 4 and 5: structure only, nothing is verified here (tee-evidence 6.1, 6.2).

On exit: every length is exactly consistent, types are the ones of ECDSA quotes with an embedded PCK chain, and the
chain is plain PEM in canonical base64; only where its lines break is left open. Once the chain and the signatures are
verified too, no bit of the quote can be flipped. Not checked here: any signature, what the certificates say, and the
bytes after the quote (`tail`). `evidence.tdx` does these.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_QUOTE_BYTES = 32 * 1024  # the kernel's own limit for a quote, padding included

HEADER_BYTES = 48
ECDSA_P256 = 2
TEE_TDX = 0x81
QE_AUTH_DATA_BYTES = 32
PCK_CHAIN_PEM, QE_REPORT_CERTIFICATION = 5, 6  # certification data types, inner and outer

# name: (offset, length) in bytes. Header of both versions:
HEADER = {
    "version": (0, 2),
    "attestation_key_type": (2, 2),
    "tee_type": (4, 4),
    "qe_vendor_id": (12, 16),
    "user_data": (28, 20),
}

# TD report 1.0, counted from its own first byte; in the quote add 48 (version 4) or 54 (version 5).
TD_REPORT_10 = {
    "tee_tcb_svn": (0, 16),
    "mr_seam": (16, 48),
    "mr_signer_seam": (64, 48),
    "seam_attributes": (112, 8),
    "td_attributes": (120, 8),
    "xfam": (128, 8),
    "mr_td": (136, 48),
    "mr_config_id": (184, 48),
    "mr_owner": (232, 48),
    "mr_owner_config": (280, 48),
    "rtmr0": (328, 48),
    "rtmr1": (376, 48),
    "rtmr2": (424, 48),
    "rtmr3": (472, 48),
    "report_data": (520, 64),
}
TD_REPORT_15 = TD_REPORT_10 | {"tee_tcb_svn2": (584, 16), "mr_service_td": (600, 48)}

# Body type of a version 5 quote: (bytes, layout).
BODIES = {2: (584, TD_REPORT_10), 3: (648, TD_REPORT_15)}

# One certificate of the chain. Some real quotes leave out the newline behind the last one.
PEM_CERTIFICATE = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n((?:[A-Za-z0-9+/=]+\r?\n)+)-----END CERTIFICATE-----(?:\r?\n|(?=\x00?\Z))"
)


class QuoteError(ValueError):
    """The bytes are not a TDX quote of a kind that can be verified. The text is for people."""


@dataclass(frozen=True, kw_only=True)
class Authentication:
    """The signature data of a quote: 64-byte signatures r‖s, a 64-byte point x‖y, the 384-byte QE report."""

    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    chain: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class TdxQuote:
    """A parsed quote. Its fields are claims until a verifier has passed it (`evidence.tdx`).

    `version`: 4 or 5. `tee_tcb_svn2` and `mr_service_td` are empty in a report 1.0. `trimmed` is the quote itself,
    the canonical bytes to hash; `tail` what the platform padded it with.
    """

    version: int
    qe_vendor_id: bytes
    user_data: bytes
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes = b""
    mr_service_td: bytes = b""
    authentication: Authentication
    trimmed: bytes
    tail: bytes

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates that the quote carries, DER, leaf first."""
        return self.authentication.chain


def parse_quote(raw: bytes) -> TdxQuote:
    """Take a TDX quote apart, strictly. Raises QuoteError. `raw` may be padded; the caller judges `tail`."""
    if len(raw) > MAX_QUOTE_BYTES:
        raise QuoteError(f"{len(raw)} bytes, expected at most {MAX_QUOTE_BYTES}: no TDX quote is that long")
    cursor = Cursor(raw)
    header = cursor.take(HEADER_BYTES, "the header")
    version = checked_version(header)
    body, layout = read_body(cursor, version)
    authentication = cursor.take(cursor.integer(4, "the signature data's length"), "the signature data")
    return TdxQuote(
        version=version,
        qe_vendor_id=field(header, HEADER["qe_vendor_id"]),
        user_data=field(header, HEADER["user_data"]),
        **{name: field(body, place) for name, place in layout.items()},
        authentication=read_authentication(authentication),
        trimmed=raw[: cursor.offset],
        tail=raw[cursor.offset :],
    )


class Cursor:
    """Reads forward through bytes; running out of them is a `refusal` that names what was being read."""

    def __init__(self, data: bytes, refusal: type[ValueError] = QuoteError) -> None:
        self.data = data
        self.offset = 0
        self.refusal = refusal

    def take(self, length: int, what: str) -> bytes:
        """The next `length` bytes."""
        left = len(self.data) - self.offset
        if length > left:
            raise self.refusal(f"cut short: {what} needs {length} bytes at offset {self.offset}, and {left} are left")
        self.offset += length
        return self.data[self.offset - length : self.offset]

    def integer(self, length: int, what: str) -> int:
        """The next little-endian integer."""
        return int.from_bytes(self.take(length, what), "little")

    def rest(self, length: int, what: str) -> bytes:
        """All bytes that are left, which must be exactly `length`."""
        data = self.take(length, what)
        if self.offset != len(self.data):
            raise self.refusal(f"{len(self.data) - self.offset} bytes too many after {what}")
        return data


def field(data: bytes, place: tuple[int, int]) -> bytes:
    """The bytes at (offset, length)."""
    offset, length = place
    return data[offset : offset + length]


def number(data: bytes, place: tuple[int, int]) -> int:
    """The little-endian integer at (offset, length)."""
    return int.from_bytes(field(data, place), "little")


def checked_version(header: bytes) -> int:
    """4 or 5, once the header says TDX and ECDSA P-256."""
    version = number(header, HEADER["version"])
    if version not in (4, 5):
        raise QuoteError(f"quote version {version}, expected 4 or 5: pass a TDX quote, as raw bytes")
    tee_type = number(header, HEADER["tee_type"])
    if tee_type != TEE_TDX:
        raise QuoteError(f"TEE type 0x{tee_type:x}, expected 0x{TEE_TDX:x}: this is not a TDX quote")
    key_type = number(header, HEADER["attestation_key_type"])
    if key_type != ECDSA_P256:
        raise QuoteError(f"attestation key type {key_type}, expected {ECDSA_P256} (ECDSA P-256)")
    return version


def read_body(cursor: Cursor, version: int) -> tuple[bytes, Mapping[str, tuple[int, int]]]:
    """The TD report and its layout. Version 4 has report 1.0 always; version 5 says which, and how long."""
    if version == 4:
        body_bytes, layout = BODIES[2]
        return cursor.take(body_bytes, "the TD report"), layout
    body_type = cursor.integer(2, "the body type")
    stated_bytes = cursor.integer(4, "the body length")
    if body_type not in BODIES:
        raise QuoteError(f"body type {body_type}, expected 2 (TD report 1.0) or 3 (TD report 1.5)")
    body_bytes, layout = BODIES[body_type]
    if stated_bytes != body_bytes:
        raise QuoteError(f"body of {stated_bytes} bytes, expected {body_bytes} for body type {body_type}")
    return cursor.take(body_bytes, "the TD report"), layout


def read_authentication(data: bytes) -> Authentication:
    """Signature data with certification type 6 outside and 5 inside; both lengths must fill their frame exactly."""
    outer = Cursor(data)
    signature = outer.take(64, "the quote signature")
    attestation_key = outer.take(64, "the attestation key")
    inner = Cursor(read_certification(outer, QE_REPORT_CERTIFICATION, "the outer certification data"))
    qe_report = inner.take(384, "the QE report")
    qe_report_signature = inner.take(64, "the QE report signature")
    auth_data_bytes = inner.integer(2, "the QE authentication data's length")
    if auth_data_bytes != QE_AUTH_DATA_BYTES:
        raise QuoteError(f"{auth_data_bytes} bytes of QE authentication data, expected {QE_AUTH_DATA_BYTES}")
    return Authentication(
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_auth_data=inner.take(auth_data_bytes, "the QE authentication data"),
        chain=read_chain(read_certification(inner, PCK_CHAIN_PEM, "the certificate chain")),
    )


def read_certification(cursor: Cursor, expected_type: int, what: str) -> bytes:
    """The content of type, length, content, which must end its frame."""
    found_type = cursor.integer(2, f"the type of {what}")
    if found_type != expected_type:
        raise QuoteError(f"certification data type {found_type}, expected {expected_type} in {what}")
    return cursor.rest(cursor.integer(4, f"the length of {what}"), what)


def read_chain(pem: bytes) -> tuple[bytes, ...]:
    """The certificates as DER. Between, before and after them stands nothing, but for one NUL at the end."""
    chain, offset = [], 0
    while match := PEM_CERTIFICATE.match(pem, offset):
        chain.append(decoded(match[1]))
        offset = match.end()
    if not chain or pem[offset:] not in (b"", b"\x00"):
        raise QuoteError(f"the certificate chain is not plain PEM at its byte {offset}")
    return tuple(chain)


def decoded(base64_lines: bytes) -> bytes:
    """Base64 of which there is exactly one spelling: spare bits in the last digit must be zero."""
    digits = b"".join(base64_lines.split())
    try:
        der = base64.b64decode(digits, validate=True)
    except binascii.Error as error:
        raise QuoteError(f"a certificate in the chain is not base64: {error}") from error
    if base64.b64encode(der) != digits:
        raise QuoteError("a certificate in the chain is not in canonical base64")
    return der
