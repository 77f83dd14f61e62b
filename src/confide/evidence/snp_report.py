"""SEV-SNP attestation reports, versions 2 to 5: structure only, nothing is verified here (tee-evidence 6.4).

On exit: 1184 bytes whose version is known, whose signature algorithm is ECDSA P-384, and whose reserved bytes are zero,
those behind the signature too. Once the signature holds as well, no bit of the report can be flipped. Not checked here:
the signature, and whether the values will do. `evidence.snp` does these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0  # the signature stands behind them: r and s of 72 bytes each, little endian, then zeros
VERSIONS = (2, 3, 4, 5)
ECDSA_P384 = 1

# name: (offset, length) in bytes, the same in all versions. Integers are little endian.
INTEGERS = {
    "version": (0x000, 4),
    "guest_svn": (0x004, 4),
    "policy": (0x008, 8),
    "vmpl": (0x030, 4),
    "signature_algorithm": (0x034, 4),
    "platform_info": (0x040, 8),
    "flags": (0x048, 4),
}
BYTES = {
    "family_id": (0x010, 16),
    "image_id": (0x020, 16),
    "current_tcb": (0x038, 8),
    "report_data": (0x050, 64),
    "measurement": (0x090, 48),
    "host_data": (0x0C0, 32),
    "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "reported_tcb": (0x180, 8),
    "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "launch_tcb": (0x1F0, 8),
}
TCB_VERSIONS = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
CPUID = 0x188  # version 3 on: family, model, stepping, a byte each
CURRENT_VERSION, COMMITTED_VERSION = 0x1E8, 0x1EC  # build, minor, major, a byte each
LAUNCH_MITIGATIONS, CURRENT_MITIGATIONS = (0x1F8, 8), (0x200, 8)  # version 5
R, S = (0x2A0, 72), (0x2E8, 72)

# [start, stop) of what must be zero. Public parsers disagree whether version 4 has the mitigation vectors already, so
# it may: the bytes are signed either way.
RESERVED = ((0x04C, 0x050), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0))
RESERVED_SIGNATURE = ((0x2A0 + 48, 0x2E8), (0x2E8 + 48, 0x330), (0x330, REPORT_BYTES))
RESERVED_BY_VERSION = {2: ((0x188, 0x18B), (0x1F8, 0x208)), 3: ((0x1F8, 0x208),), 4: (), 5: ()}

AUTHOR_KEY, MASK_CHIP_KEY = 1 << 0, 1 << 1
SIGNING_KEY_SHIFT, SIGNING_KEY_BITS = 2, 0b111
DEFINED_FLAGS = 0b11111

MAX_VMPL = 3
ASKED_BY_THE_HOST = 0xFFFF_FFFF  # in place of a VMPL: the hypervisor asked, and chose the report data


class SnpReportError(ValueError):
    """The bytes are not an SNP report of a kind that can be verified. The text is for people."""


class SigningKey(IntEnum):
    """Which key signed. VCEK: this chip's, for its TCB. VLEK: a cloud provider's, lent by AMD. NONE: nothing signed."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class Product(StrEnum):
    """A CPU generation: each has a root and a TCB layout of its own."""

    MILAN = "milan"
    GENOA = "genoa"
    TURIN = "turin"


# (CPUID family, models, product). Genoa's second range is Bergamo and Siena.
MODELS = (
    (0x19, range(0x10), Product.MILAN),
    (0x19, range(0x10, 0x20), Product.GENOA),
    (0x19, range(0xA0, 0xB0), Product.GENOA),
    (0x1A, range(0x12), Product.TURIN),
)


@dataclass(frozen=True)
class Cpuid:
    """What the processor says it is, CPUID function 1."""

    family: int
    model: int
    stepping: int

    @property
    def product(self) -> Product | None:
        """The generation, None for one that is not known here."""
        return next((name for family, models, name in MODELS if family == self.family and self.model in models), None)


@dataclass(frozen=True, kw_only=True)
class SnpTcb:
    """Security patch levels of the firmware's parts, 0 to 255 each. `fmc` exists on Turin only, else 0.

    They are compared one by one: as one integer, a new microcode would hide an old boot loader.
    """

    fmc: int = 0
    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0

    def __post_init__(self) -> None:
        wrong = [f"{name} {level}" for name, level in self.levels.items() if not 0 <= level <= 255]
        if wrong:
            raise ValueError(f"patch levels go from 0 to 255, got {', '.join(wrong)}")

    @property
    def levels(self) -> dict[str, int]:
        """The parts by name."""
        return {
            "fmc": self.fmc,
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }

    def below(self, least: "SnpTcb") -> list[str]:
        """The parts that are older than in `least`."""
        return [name for name, level in self.levels.items() if level < least.levels[name]]

    def __str__(self) -> str:
        return ", ".join(f"{name} {level}" for name, level in self.levels.items() if name != "fmc" or level)


# Where the parts stand in the eight bytes. What is not named is reserved and zero.
TCB_BYTES: Mapping[Product, Mapping[str, int]] = MappingProxyType(
    {
        Product.MILAN: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
        Product.GENOA: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
        Product.TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
    }
)


def read_tcb(raw: bytes, product: Product) -> SnpTcb:
    """The parts in a TCB version of eight bytes, in this product's order."""
    return SnpTcb(**{name: raw[place] for name, place in TCB_BYTES[product].items()})


def has_reserved_tcb(raw: bytes, product: Product) -> bool:
    """Whether a byte is set that means nothing on this product."""
    return any(raw[place] for place in set(range(8)) - set(TCB_BYTES[product].values()))


@dataclass(frozen=True, kw_only=True)
class SnpReport:
    """A parsed report. Its fields are claims until a verifier has passed it (`evidence.snp`).

    Byte fields and TCB versions as they stand there; firmware versions are (major, minor, build). `cpuid` is None in
    version 2, the mitigation vectors before version 4. `signed`: the 672 bytes under the signature (r, s).
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform_info: int
    flags: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    chip_id: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    cpuid: Cpuid | None
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_mitigations: int | None
    current_mitigations: int | None
    signing_key: SigningKey
    r: int
    s: int
    signed: bytes

    @property
    def has_author_key(self) -> bool:
        """The guest's identity key was certified by an author key."""
        return bool(self.flags & AUTHOR_KEY)

    @property
    def has_masked_chip_key(self) -> bool:
        """The host forbade signing with the chip's key."""
        return bool(self.flags & MASK_CHIP_KEY)


def parse_snp_report(raw: bytes) -> SnpReport:
    """Take an SNP report apart, strictly. Raises SnpReportError."""
    if len(raw) != REPORT_BYTES:
        raise SnpReportError(f"{len(raw)} bytes, expected {REPORT_BYTES}: pass the report alone, as raw bytes")
    integers = {name: number(raw, place) for name, place in INTEGERS.items()}
    version = checked_version(integers)
    require_zeros(raw, (*RESERVED, *RESERVED_BY_VERSION[version], *RESERVED_SIGNATURE))
    return SnpReport(
        version=version,
        guest_svn=integers["guest_svn"],
        policy=integers["policy"],
        vmpl=checked_vmpl(integers["vmpl"]),
        platform_info=integers["platform_info"],
        flags=integers["flags"],
        signing_key=checked_signing_key(integers["flags"]),
        cpuid=Cpuid(*raw[CPUID : CPUID + 3]) if version > 2 else None,
        current_version=firmware_version(raw, CURRENT_VERSION),
        committed_version=firmware_version(raw, COMMITTED_VERSION),
        launch_mitigations=number(raw, LAUNCH_MITIGATIONS) if version > 3 else None,
        current_mitigations=number(raw, CURRENT_MITIGATIONS) if version > 3 else None,
        r=number(raw, R),
        s=number(raw, S),
        signed=raw[:SIGNED_BYTES],
        **{name: raw[offset : offset + length] for name, (offset, length) in BYTES.items()},
    )


def number(raw: bytes, place: tuple[int, int]) -> int:
    """The little-endian integer at (offset, length)."""
    offset, length = place
    return int.from_bytes(raw[offset : offset + length], "little")


def checked_version(integers: Mapping[str, int]) -> int:
    """2 to 5, once the report says that its signature is ECDSA P-384."""
    version, algorithm = integers["version"], integers["signature_algorithm"]
    if version not in VERSIONS:
        raise SnpReportError(f"report version {version}, expected one of {', '.join(map(str, VERSIONS))}")
    if algorithm != ECDSA_P384:
        raise SnpReportError(f"signature algorithm {algorithm}, expected {ECDSA_P384} (ECDSA P-384 with SHA-384)")
    return version


def require_zeros(raw: bytes, places: tuple[tuple[int, int], ...]) -> None:
    """Nothing may hide in bytes that have no meaning: behind the signature they are not even signed."""
    for start, stop in places:
        if raw[start:stop].strip(b"\x00"):
            raise SnpReportError(f"reserved bytes 0x{start:03x} to 0x{stop - 1:03x} are not zero")


def checked_vmpl(vmpl: int) -> int:
    """0 to 3, the level of the guest that asked."""
    if vmpl == ASKED_BY_THE_HOST:
        raise SnpReportError("the host asked for this report and chose its report data, expected one of the guest's")
    if vmpl > MAX_VMPL:
        raise SnpReportError(f"VMPL {vmpl}, expected 0 to {MAX_VMPL}")
    return vmpl


def checked_signing_key(flags: int) -> SigningKey:
    """The key that the flags name, once none of them is unknown."""
    if flags & ~DEFINED_FLAGS:
        raise SnpReportError(f"flags 0x{flags:x}, expected none beyond 0x{DEFINED_FLAGS:x}")
    key = flags >> SIGNING_KEY_SHIFT & SIGNING_KEY_BITS
    try:
        return SigningKey(key)
    except ValueError as error:
        raise SnpReportError(f"signing key {key}, expected 0 (VCEK), 1 (VLEK) or 7 (none)") from error


def firmware_version(raw: bytes, offset: int) -> tuple[int, int, int]:
    """(major, minor, build): the bytes stand the other way round."""
    build, minor, major = raw[offset : offset + 3]
    return major, minor, build
