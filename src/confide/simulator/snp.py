"""The SIMULATED SEV-SNP platform: reports of the real format under a root of its own (tee-evidence 5.4).

A verifier accepts its reports only where somebody pinned that very root. Everything derives from one 32-byte seed, so
the root is the same bytes in every process; every subject says that it is not AMD's.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from hashlib import sha256, sha384
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from confide.simulator.certificates import VALID_UNTIL, der
from confide.simulator.snp_certificates import (
    IA5_STRING,
    authority,
    certificate,
    derived_serial,
    extension,
    integer,
    name,
    octets,
    p384_key,
    revocation_list,
)
from confide.simulator.tdx import require_alive

__all__ = ["SimulatedSnpPlatform", "host_data"]

VERSIONS = (2, 3, 4, 5)

# Guest policy and flags by bit (tee-evidence 6.4).
POLICY = 1 << 16 | 1 << 17  # SMT allowed; the other is always one
MIGRATE_MA, DEBUG = 1 << 18, 1 << 19
MASK_CHIP_KEY, SIGNED_BY_VLEK = 1 << 1, 1 << 2
PLATFORM_INFO = 1 << 0 | 1 << 2 | 1 << 5  # SMT, ECC, memory aliases checked at boot
FIRMWARE = bytes((29, 55, 1, 0))  # 1.55.29: build, minor, major, reserved
MITIGATIONS = (0b1).to_bytes(8, "little")

MEASUREMENT = sha384(b"Simulated SNP guest: initial memory").digest()

# The extensions of AMD's certificates.
ARC = "1.3.6.1.4.1.3704.1"
PROVIDER = "Simulated cloud provider"

# The certificate table: GUID, offset, length.
ASK_GUID, ARK_GUID = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782"), UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
VCEK_GUID, VLEK_GUID = UUID("63da758d-e664-4564-adc5-f4b93be8accd"), UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1")
TABLE_ENTRY_BYTES = 24


@dataclass(frozen=True)
class SimulatedProduct:
    """A CPU generation: its name in certificates, its CPUID, where TCB parts stand, and how long a chip's id is."""

    name: str
    cpuid: bytes
    tcb_bytes: dict[str, int]
    chip_bytes: int


MILAN_TCB = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
TURIN_TCB = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
PRODUCTS = {
    "milan": SimulatedProduct("Milan-B1", bytes((0x19, 0x01, 0x01)), MILAN_TCB, 64),
    "genoa": SimulatedProduct("Genoa-B1", bytes((0x19, 0x11, 0x01)), MILAN_TCB, 64),
    "turin": SimulatedProduct("Turin-B0", bytes((0x1A, 0x02, 0x00)), TURIN_TCB, 8),
}
LEVELS = {"fmc": 1, "bootloader": 4, "tee": 0, "snp": 24, "microcode": 213}
OLD_LEVELS = LEVELS | {"snp": 23}
LEVEL_ARCS = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}


def host_data(document: bytes) -> bytes:
    """What dstack puts into HOST_DATA for a configuration document, 32 bytes (tee-evidence 3.5)."""
    return sha256(b"dstack-mr-config-v3:\x00" + document).digest()


class SimulatedSnpPlatform:
    """A machine that does not exist, and the part of AMD's services that speaks for it."""

    def __init__(
        self,
        seed: bytes,
        *,
        now: int,
        version: int = 3,
        product: str = "milan",
        vmpl: int = 0,
        debug: bool = False,
        migratable: bool = False,
        masked: bool = False,
        vlek: bool = False,
        other_chip: bool = False,
        other_tcb: bool = False,
        tcb_behind: bool = False,
        serial_zero: bool = False,
        expired: bool = False,
        revoked: bool = False,
    ) -> None:
        """`seed`: 32 bytes. `now`: Unix seconds, inside the root's life (2026-01-01 to 2045-12-27), else ConfigError.

        The first platform of a seed and product costs about a quarter of a second, for two RSA keys. `version`: of the
        reports, 2 to 5. `product`: "milan", "genoa" or "turin", each with a root of its own. In every report: `vmpl`;
        `debug` and `migratable` in the guest policy; `masked`, the chip's key. `vlek`: a cloud provider's key signs.
        `other_chip`, `other_tcb`: the VCEK is another chip's, or for older firmware than reported. `tcb_behind`:
        reported and committed TCB are older than the current one. `serial_zero`: the VCEK has the serial number 0, as
        real ones do. `expired`: the VCEK ended a day before `now`. `revoked`: the ASK is on the revocation list.
        Raises ValueError for another seed length, version or product.
        """
        if len(seed) != 32:
            raise ValueError(f"the seed has {len(seed)} bytes, expected 32")
        if version not in VERSIONS:
            raise ValueError(f"report version {version}, expected one of {', '.join(map(str, VERSIONS))}")
        if product not in PRODUCTS:
            raise ValueError(f"unknown product {product!r}, expected one of {', '.join(PRODUCTS)}")
        moment = require_alive(now)
        self._seed = seed
        self._version = version
        self._product = PRODUCTS[product]
        self._vmpl = vmpl
        self._policy = POLICY | (DEBUG if debug else 0) | (MIGRATE_MA if migratable else 0)
        self._flags = (MASK_CHIP_KEY if masked else 0) | (SIGNED_BY_VLEK if vlek else 0)
        self._vlek = vlek
        self._reported = OLD_LEVELS if tcb_behind else LEVELS
        self._endorsed = OLD_LEVELS if other_tcb else self._reported
        self._endorsed_chip = octets(seed, "another chip" if other_chip else "chip", self._product.chip_bytes)
        self._serial = 0 if serial_zero else derived_serial(seed, "VCEK")
        self._leaf_until = moment - timedelta(days=1) if expired else VALID_UNTIL
        self._revoked = revoked
        line = self._product.name.partition("-")[0]
        self._ark = authority(seed, f"Simulated ARK-{line}", None)
        self._ask = authority(seed, f"Simulated SEV-VLEK-{line}" if vlek else f"Simulated SEV-{line}", self._ark)
        self._key = p384_key(seed, "VLEK" if vlek else "VCEK")

    # What a verifier gets.

    @property
    def root_der(self) -> bytes:
        """The ARK's certificate, the same bytes for the same seed and product always: what a caller pins."""
        return self._ark.der

    @property
    def root_pem(self) -> str:
        """The same certificate as PEM."""
        return pem(self._ark.der)

    @property
    def root_sha256_hex(self) -> str:
        """SHA-256 of `root_der`, 64 lower-case hex digits."""
        return sha256(self._ark.der).hexdigest()

    @property
    def chain_der(self) -> bytes:
        """ASK (ASVK beside a VLEK), then ARK, one behind the other."""
        return self._ask.der + self._ark.der

    @property
    def chain_pem(self) -> str:
        """The same two as PEM."""
        return pem(self._ask.der) + pem(self._ark.der)

    @property
    def vcek_pem(self) -> str:
        """The VCEK as PEM."""
        return pem(self.vcek_der)

    @cached_property
    def vcek_der(self) -> bytes:
        """The VCEK, or the VLEK."""
        return certificate(
            serial=self._serial,
            subject=name("Simulated SEV-VLEK" if self._vlek else "Simulated SEV-VCEK"),
            public_key=self._key.public_key(),
            issuer_name=self._ask.name,
            issuer=self._ask.key,
            extensions=self._endorsements(),
            valid_until=self._leaf_until,
        )

    def crl(self, now: int) -> bytes:
        """The ARK's revocation list in DER form, good from `now` (Unix seconds) for 30 days.

        Raises ConfigError outside the root's life.
        """
        return revocation_list(self._ark, require_alive(now), (self._ask.serial,) if self._revoked else ())

    def report(self, report_data: bytes, host_data: bytes = bytes(32)) -> bytes:
        """A report of 1184 bytes over 64 and 32 bytes, else ValueError. The same arguments give the same bytes."""
        if len(report_data) != 64:
            raise ValueError(f"64 bytes of report data expected, got {len(report_data)}")
        if len(host_data) != 32:
            raise ValueError(f"32 bytes of host data expected, got {len(host_data)}")
        signed = self._body(report_data, host_data)
        r, s = decode_dss_signature(self._key.sign(signed, ECDSA(SHA384(), deterministic_signing=True)))
        return signed + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(512 - 2 * 72)

    def certificate_table(self) -> bytes:
        """The certificates as `auxblob` of configfs-tsm carries them."""
        certificates = {VLEK_GUID if self._vlek else VCEK_GUID: self.vcek_der, ASK_GUID: self._ask.der}
        certificates[ARK_GUID] = self._ark.der
        offset, entries = TABLE_ENTRY_BYTES * (len(certificates) + 1), b""
        for guid, encoded in certificates.items():
            entries += guid.bytes + offset.to_bytes(4, "little") + len(encoded).to_bytes(4, "little")
            offset += len(encoded)
        return entries + bytes(TABLE_ENTRY_BYTES) + b"".join(certificates.values())

    def dstack_envelope(self, report_data: bytes, document: bytes, certificates: Sequence[bytes] = ()) -> bytes:
        """A report bound to a configuration document, in dstack's V0 envelope; each part has at most 16383 bytes.

        Behind the document: no events, the report data, no VM configuration.
        """
        report = self.report(report_data, host_data(document))
        listed = compact(len(certificates)) + b"".join(compact(len(each)) + each for each in certificates)
        rest = compact(0) + report_data + compact(0)
        return bytes((0, 3)) + compact(len(report)) + report + listed + compact(len(document)) + document + rest

    # What it is made of.

    def _tcb(self, levels: dict[str, int]) -> bytes:
        """The TCB version of eight bytes in this product's order."""
        version = bytearray(8)
        for part, place in self._product.tcb_bytes.items():
            version[place] = levels[part]
        return bytes(version)

    def _body(self, report_data: bytes, host_data: bytes) -> bytes:
        """The 672 bytes that are signed, in the order of their layout (tee-evidence 6.4)."""
        current, reported = self._tcb(LEVELS), self._tcb(self._reported)
        chip = octets(self._seed, "chip", self._product.chip_bytes).ljust(64, b"\x00")
        body = b"".join(
            (
                self._version.to_bytes(4, "little"),
                bytes(4),  # guest_svn
                self._policy.to_bytes(8, "little"),
                bytes(16 + 16),  # family_id, image_id
                self._vmpl.to_bytes(4, "little"),
                (1).to_bytes(4, "little"),  # ECDSA P-384 with SHA-384
                current,
                PLATFORM_INFO.to_bytes(8, "little"),
                self._flags.to_bytes(4, "little"),
                bytes(4),
                report_data,
                MEASUREMENT,
                host_data,
                bytes(48 + 48),  # id_key_digest, author_key_digest
                octets(self._seed, "report id", 32),
                b"\xff" * 32,  # report_id_ma: no migration agent
                reported,
                (self._product.cpuid if self._version > 2 else b"").ljust(24, b"\x00"),
                bytes(64) if self._vlek else chip,
                reported,  # committed_tcb
                FIRMWARE + FIRMWARE,  # current, committed
                current,  # launch_tcb
                MITIGATIONS + MITIGATIONS if self._version > 4 else b"",
            )
        )
        return body.ljust(672, b"\x00")

    def _endorsements(self) -> tuple[bytes, ...]:
        """AMD's extensions: the product, the patch levels, and the chip, or the cloud provider of a VLEK."""
        values = {"1": integer(1 if "fmc" in self._product.tcb_bytes else 0)}
        values["2"] = der(IA5_STRING, self._product.name.encode())
        values |= {LEVEL_ARCS[part]: integer(self._endorsed[part]) for part in self._product.tcb_bytes}
        if self._vlek:
            values["5"] = der(IA5_STRING, PROVIDER.encode())
        else:
            values["4"] = self._endorsed_chip
        return tuple(extension(x509.ObjectIdentifier(f"{ARC}.{arc}"), value) for arc, value in values.items())


def compact(number: int) -> bytes:
    """A SCALE compact integer below 16384."""
    return bytes((number << 2,)) if number < 64 else (number << 2 | 1).to_bytes(2, "little")


def pem(encoded: bytes) -> str:
    """By hand, since a certificate with the serial number 0 cannot always be loaded."""
    digits = b64encode(encoded).decode()
    lines = (digits[start : start + 64] for start in range(0, len(digits), 64))
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))
