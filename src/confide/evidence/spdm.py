"""Attestation reports of NVIDIA devices, SPDM 1.1: structure only, nothing is verified here (tee-evidence 6.5).

    request 37   0x11 0xE0 p1 p2 | nonce[32] | slot
    response     0x11 0x60 p1 p2 | u8 blocks | u24 record_len | record | nonce[32] | u16 opaque_len | opaque | sig[96]
    block        u8 index | u8 specification = 1 | u16 size | { u8 type | u16 len = 48 | value[48] }
    opaque       u16 type | u16 len | value, repeated

On exit: every length is exactly consistent, nothing is left over, and no index and no opaque type occurs twice. All
bytes but the signature are signed, so once it is verified no bit of the report can be flipped. Not checked here: the
signature, whose key it is, and what the measurements should be. `evidence.nvidia` does the first two; the last is
the business of NVIDIA's remote service (`evidence.nras`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from confide.evidence.quote import Cursor
from confide.evidence.result import quoted

MAX_REPORT_BYTES = 16 * 1024  # those seen have 4274 (H100) and 2172 (NVSwitch)

SPDM_1_1, GET_MEASUREMENTS, MEASUREMENTS = 0x11, 0xE0, 0x60
SIGNATURE_REQUESTED = 0x01  # bit of the request's first parameter; without it a request has neither nonce nor slot
DMTF_MEASUREMENT = 0x01
REQUEST_BYTES, NONCE_BYTES, VALUE_BYTES, SIGNATURE_BYTES = 37, 32, 48, 96

DRIVER_VERSION, VBIOS_VERSION, FWID, PROTECTED_PCIE = 3, 6, 20, 21
OPAQUE_NAMES: Final[Mapping[int, str]] = {
    DRIVER_VERSION: "driver_version",
    VBIOS_VERSION: "vbios_version",
    FWID: "fwid",
    PROTECTED_PCIE: "protected_pcie",
    22: "device_ids",
    23: "disabled_ports",
    24: "position",
    25: "lock_status",
    26: "gpu_ids",
    36: "feature_flag",
}
VBIOS_BYTE_ORDER = (3, 2, 1, 0, 4)  # of a GPU's 8 bytes, as NVIDIA prints them


class SpdmError(ValueError):
    """The bytes are not an attestation report of the known layout. The text is for people."""


@dataclass(frozen=True, kw_only=True)
class SpdmReport:
    """A parsed report: claims, until its signature was verified.

    `nonce`: 32 bytes that the device was asked with. `device_nonce`: 32 of its own, different by design. `blocks`:
    measurements of 48 bytes (SHA-384) by index. `opaque`: other fields by type. `signature`: r‖s, 96 bytes big endian,
    over `signed`.
    """

    nonce: bytes
    slot: int
    blocks: Mapping[int, bytes]
    device_nonce: bytes
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes

    @property
    def driver_version(self) -> str | None:
        """As in "570.172.08"; None where the device reports none (NVSwitch)."""
        value = self.opaque.get(DRIVER_VERSION)
        return None if value is None else text(value)

    @property
    def vbios_version(self) -> str | None:
        """As in "96.00.A5.00.01"."""
        value = self.opaque.get(VBIOS_VERSION)
        if value is None or len(value) != 8:
            return None if value is None else text(value)
        return ".".join(f"{value[place]:02X}" for place in VBIOS_BYTE_ORDER)

    @property
    def fwid(self) -> bytes | None:
        """The identity of the firmware that the device booted."""
        return self.opaque.get(FWID)

    def fields(self) -> dict[str, str]:
        """The opaque fields, JSON-ready: versions as text, the others and unknown types ("opaque.36") as hex."""
        known = {OPAQUE_NAMES.get(kind, f"opaque.{kind}"): value.hex() for kind, value in self.opaque.items()}
        versions = {"driver_version": self.driver_version, "vbios_version": self.vbios_version}
        return known | {name: version for name, version in versions.items() if version is not None}


def text(value: bytes) -> str:
    """ASCII that a NUL may end; other characters come out as question marks."""
    return quoted(value.rstrip(b"\x00").decode("ascii", "replace").replace("\ufffd", "?"))


def parse_report(raw: bytes) -> SpdmReport:
    """Take request and response apart, strictly. Raises SpdmError."""
    if len(raw) > MAX_REPORT_BYTES:
        raise SpdmError(f"{len(raw)} bytes, expected at most {MAX_REPORT_BYTES}: no device reports that much")
    cursor = Cursor(raw, SpdmError)
    asked_with, _ = read_header(cursor, GET_MEASUREMENTS, "the request")
    if not asked_with & SIGNATURE_REQUESTED:
        raise SpdmError("the request asks for no signature, so nothing in the response is signed")
    nonce = cursor.take(NONCE_BYTES, "the request's nonce")
    slot = cursor.integer(1, "the slot")
    read_header(cursor, MEASUREMENTS, "the response")
    stated_blocks = cursor.integer(1, "the number of blocks")
    record = cursor.take(cursor.integer(3, "the record's length"), "the measurement record")
    device_nonce = cursor.take(NONCE_BYTES, "the device's nonce")
    opaque = cursor.take(cursor.integer(2, "the opaque data's length"), "the opaque data")
    signature = cursor.rest(SIGNATURE_BYTES, "the signature")
    return SpdmReport(
        nonce=nonce,
        slot=slot,
        blocks=read_blocks(record, stated_blocks),
        device_nonce=device_nonce,
        opaque=read_opaque(opaque),
        signed=raw[:-SIGNATURE_BYTES],
        signature=signature,
    )


def read_header(cursor: Cursor, expected_code: int, what: str) -> bytes:
    """The two parameters of a message, once version and code are right."""
    version, code, *parameters = cursor.take(4, f"the header of {what}")
    if version != SPDM_1_1:
        raise SpdmError(
            f"SPDM version 0x{version:02x} in {what}, expected 0x{SPDM_1_1:02x}: pass the report as raw bytes"
        )
    if code != expected_code:
        raise SpdmError(f"message 0x{code:02x} in {what}, expected 0x{expected_code:02x}")
    return bytes(parameters)


def read_blocks(record: bytes, stated_blocks: int) -> dict[int, bytes]:
    """The measurement values by index."""
    cursor, blocks = Cursor(record, SpdmError), dict[int, bytes]()
    while cursor.offset < len(record):
        index = cursor.integer(1, "a block's index")
        if index in blocks:
            raise SpdmError(f"two measurement blocks have the index {index}")
        specification = cursor.integer(1, "a block's specification")
        if specification != DMTF_MEASUREMENT:
            raise SpdmError(f"block {index} follows specification {specification}, expected {DMTF_MEASUREMENT} (DMTF)")
        blocks[index] = read_value(cursor.take(cursor.integer(2, "a block's size"), "a block"), index)
    if len(blocks) != stated_blocks:
        raise SpdmError(f"{len(blocks)} measurement blocks, and the response states {stated_blocks}")
    return blocks


def read_value(measurement: bytes, index: int) -> bytes:
    """The value of one block, whose length must fill the block exactly."""
    cursor = Cursor(measurement, SpdmError)
    cursor.integer(1, "a measurement's type")
    length = cursor.integer(2, "a measurement's length")
    if length != VALUE_BYTES:
        raise SpdmError(f"block {index} has a value of {length} bytes, expected {VALUE_BYTES} (SHA-384)")
    return cursor.rest(length, "a measurement")


def read_opaque(data: bytes) -> dict[int, bytes]:
    """The opaque fields by type, unknown ones too."""
    cursor, fields = Cursor(data, SpdmError), dict[int, bytes]()
    while cursor.offset < len(data):
        kind = cursor.integer(2, "an opaque field's type")
        if kind in fields:
            raise SpdmError(f"two opaque fields have the type {kind}")
        fields[kind] = cursor.take(cursor.integer(2, "an opaque field's length"), f"the opaque field {kind}")
    return fields
