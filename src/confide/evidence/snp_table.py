"""The certificate table that comes with an SNP report, `auxblob` of configfs-tsm (tee-evidence 6.4, AMD 56421).

Structure only: what the certificates are worth shows in `evidence.snp`. The host fills this table in.
"""

from dataclasses import dataclass
from itertools import pairwise
from uuid import UUID

MAX_TABLE_BYTES = 64 * 1024
ENTRY_BYTES = 24  # GUID in the byte order of its text, then offset and length, 4 bytes each, little endian

ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")  # the ASVK too, beside a VLEK
VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
VLEK = UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")


class SnpTableError(ValueError):
    """The bytes are not a certificate table. The text is for people."""


@dataclass(frozen=True)
class CertificateTable:
    """The certificates by GUID, as they stand there: DER, or PEM on some clouds."""

    certificates: dict[UUID, bytes]

    @property
    def vcek(self) -> bytes | None:
        """The key that signs reports: the chip's VCEK, else the provider's VLEK."""
        return self.certificates.get(VCEK) or self.certificates.get(VLEK)

    @property
    def chain(self) -> bytes | None:
        """ASK and ARK one behind the other, for `verify_snp`; None unless both are there."""
        intermediate, root = self.certificates.get(ASK), self.certificates.get(ARK)
        return intermediate + root if intermediate and root else None


def parse_certificate_table(blob: bytes) -> CertificateTable:
    """Take a certificate table apart, strictly. Raises SnpTableError. An empty blob is an empty table.

    Entries with a GUID that is not known here are kept. What no entry points at is padding, and not looked at.
    """
    if len(blob) > MAX_TABLE_BYTES:
        raise SnpTableError(f"{len(blob)} bytes, expected at most {MAX_TABLE_BYTES}")
    certificates: dict[UUID, bytes] = {}
    places: list[tuple[int, int]] = []
    offset = 0
    while blob:
        entry = blob[offset : offset + ENTRY_BYTES]
        offset += ENTRY_BYTES
        if len(entry) < ENTRY_BYTES:
            raise SnpTableError(f"the table ends at byte {len(blob)} without its closing entry")
        if not entry.strip(b"\x00"):
            break
        guid = UUID(bytes=entry[:16])
        start, length = int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:24], "little")
        if length == 0 or start + length > len(blob):
            raise SnpTableError(f"{guid} has {length} bytes at {start}, and the table ends at {len(blob)}")
        if guid in certificates:
            raise SnpTableError(f"{guid} stands there twice")
        certificates[guid] = blob[start : start + length]
        places.append((start, start + length))
    require_apart([(0, offset), *places])
    return CertificateTable(certificates)


def require_apart(places: list[tuple[int, int]]) -> None:
    """Certificates lie behind the entries and do not share bytes."""
    ordered = sorted(places)
    for (_, stop), (start, _) in pairwise(ordered):
        if start < stop:
            raise SnpTableError(f"the bytes at {start} belong to two entries")
