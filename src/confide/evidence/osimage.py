"""Which OS image booted? (tee-evidence 3.5, "OS image")

`os_image_hash` in `vm_config`, in `Info` and in the event log is a claim: an image that lies can claim any. What counts
are MRTD, RTMR1 and RTMR2 of a VERIFIED quote, which hold firmware, kernel, command line and initrd. They are tied to an
image in one of two ways: they stand on the caller's list, or the material that newer images bring along ("lite") leads
from the image's hash to exactly these registers, and the hash stands on the caller's list.

NOT checked: RTMR0, unless the caller's list names it. It differs with the shape of the machine.
"""

import re
from dataclasses import dataclass
from hashlib import sha256, sha384

import msgspec

from confide.evidence import cbor
from confide.evidence.policy import DstackPolicy, OsImage
from confide.evidence.quote import TdxQuote
from confide.evidence.result import Check, failed, passed, quoted, skipped
from confide.protocol.canonical import DocumentError, parse_document, typed, unbase64

OS_IMAGE = "dstack.os-image"
MEASUREMENT_FILE = "measurement.tdx.cbor"
CHECKSUM_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
REGISTER_BYTES = 48

# What the firmware measures into RTMR1 after the kernel, whatever the kernel is (EDK2, tee-evidence 3.5).
BOOT_ACTIONS = (
    b"Calling EFI Application from Boot Option",
    bytes(4),
    b"Exit Boot Services Invocation",
    b"Exit Boot Services Returned with Success",
)


class ImageError(ValueError):
    """What the evidence says of its image cannot be read, or does not lead to the registers. The text is for people."""


class Material(msgspec.Struct, frozen=True):
    """`tdx_measurement`: the list of the image's files with their checksums, and one of these files; both base64."""

    checksum_file: str
    measurement: str


class VmConfig(msgspec.Struct, frozen=True):
    """The members of `vm_config` that we read: what the host says of the launch, and nothing that proves itself."""

    os_image_hash: str | None = None
    mr_config: str | None = None
    tdx_measurement: Material | None = None


@dataclass(frozen=True)
class Measurement:
    """What an image measures to, from its `measurement.tdx.cbor`; digests of 48 bytes."""

    kernel_authenticode: bytes
    cmdline_sha384: bytes
    initrd_sha384: bytes
    mr_tds: frozenset[bytes]

    @property
    def rtmr1(self) -> bytes:
        return replayed(self.kernel_authenticode, *(sha384(action).digest() for action in BOOT_ACTIONS))

    @property
    def rtmr2(self) -> bytes:
        return replayed(self.cmdline_sha384, self.initrd_sha384)


def read_vm_config(text: str | None) -> VmConfig:
    """`vm_config` from its JSON text; absent, it says nothing. Raises ImageError."""
    if text is None:
        return VmConfig()
    try:
        document = parse_document(text.encode(errors="surrogatepass"), what="vm_config")
        return typed(document, VmConfig, what="vm_config")
    except DocumentError as error:
        raise ImageError(quoted(error)) from None


def proven_hash(quote: TdxQuote, config: VmConfig) -> bytes | None:
    """The 32 bytes of `os_image_hash` that the material in `config` ties to the quote's registers; None without such
    material. Raises ImageError when it does not lead there.
    """
    if config.tdx_measurement is None:
        return None
    try:
        checksums = unbase64(config.tdx_measurement.checksum_file, what="checksum_file")
        raw = unbase64(config.tdx_measurement.measurement, what="measurement")
    except DocumentError as error:
        raise ImageError(f"tdx_measurement: {error}") from None
    image_hash = sha256(checksums).digest()
    if config.os_image_hash != image_hash.hex():
        raise ImageError(f"got os_image_hash {quoted(config.os_image_hash)}, expected {image_hash.hex()}")
    if listed_checksum(checksums) != sha256(raw).hexdigest():
        raise ImageError(f"the checksum file lists another {MEASUREMENT_FILE} than the one shown")
    require_registers(quote, read_measurement(raw))
    return image_hash


def listed_checksum(checksums: bytes) -> str:
    """The SHA-256 that the one line of the file in question has. Raises ImageError."""
    try:
        lines = [CHECKSUM_LINE.fullmatch(line) for line in checksums.decode("ascii").split("\n") if line]
    except UnicodeDecodeError:
        raise ImageError("the checksum file is not ASCII") from None
    found = [line[1] for line in lines if line is not None and line[2] == MEASUREMENT_FILE]
    if None in lines or len(found) != 1:
        raise ImageError(f"the checksum file is no list of checksums with one line for {MEASUREMENT_FILE}")
    return found[0]


def read_measurement(raw: bytes) -> Measurement:
    """What the file says. Raises ImageError."""
    try:
        document = cbor.decode(raw)
    except cbor.CborError as error:
        raise ImageError(f"{MEASUREMENT_FILE}: {error}") from None
    image, mr_td = member(document, "image"), member(member(document, "tdvf"), "mrtd")
    if not isinstance(mr_td, dict) or not mr_td:
        raise ImageError(f"{MEASUREMENT_FILE}: mrtd is no map, or an empty one")
    return Measurement(
        kernel_authenticode=digest(image, "kernel_authenticode"),
        cmdline_sha384=digest(image, "cmdline_sha384"),
        initrd_sha384=digest(image, "initrd_sha384"),
        mr_tds=frozenset(digest(mr_td, way) for way in mr_td),
    )


def member(holder: cbor.Value, name: str) -> cbor.Value:
    if not isinstance(holder, dict) or name not in holder:
        raise ImageError(f"{MEASUREMENT_FILE}: {name} is missing")
    value: cbor.Value = holder[name]
    return value


def digest(holder: cbor.Value, name: str) -> bytes:
    value = member(holder, name)
    if not isinstance(value, bytes) or len(value) != REGISTER_BYTES:
        raise ImageError(f"{MEASUREMENT_FILE}: {quoted(name)} is no digest of {REGISTER_BYTES} bytes")
    return value


def replayed(*digests: bytes) -> bytes:
    """The register that these digests lead to, from zero."""
    register = bytes(REGISTER_BYTES)
    for each in digests:
        register = sha384(register + each).digest()
    return register


def require_registers(quote: TdxQuote, measurement: Measurement) -> None:
    """Raise ImageError unless the quote holds what this image measures to."""
    matches = {
        "MRTD": quote.mr_td in measurement.mr_tds,
        "RTMR1": quote.rtmr1 == measurement.rtmr1,
        "RTMR2": quote.rtmr2 == measurement.rtmr2,
    }
    wrong = [register for register, match in matches.items() if not match]
    if wrong:
        raise ImageError(f"the image that the evidence shows has another {', '.join(wrong)} than the quote")


def check_os_image(
    quote: TdxQuote, config: VmConfig | ImageError, event: bytes | None, policy: DstackPolicy, *, genuine: bool
) -> tuple[Check, dict[str, object]]:
    """The check and its facts. `event`: the payload of the measured `os-image-hash` event. `genuine`: the quote
    verified; otherwise nothing passes.
    """
    facts: dict[str, object] = {"dstack.os_image_hash_event": None if event is None else event.hex()}
    if isinstance(config, ImageError):
        return failed(OS_IMAGE, str(config)), facts
    facts["dstack.os_image_hash_claimed"] = config.os_image_hash
    try:
        proven = proven_hash(quote, config)
    except ImageError as error:
        return failed(OS_IMAGE, str(error)), facts
    if not genuine:
        return skipped(OS_IMAGE, "the quote did not verify, so its registers prove nothing"), facts
    facts["dstack.os_image_hash_proven"] = None if proven is None else proven.hex()
    return decide(quote, proven, event, policy), facts


def decide(quote: TdxQuote, proven: bytes | None, event: bytes | None, policy: DstackPolicy) -> Check:
    """The policy's word on registers and on a hash that was tied to them."""
    if policy.os_image_events and (event is None or event.hex() not in policy.os_image_events):
        return failed(
            OS_IMAGE,
            f"got the os-image-hash event {event.hex() if event else event}, which is not on the policy's list",
        )
    if any(is_image(quote, image) for image in policy.os_images):
        return passed(OS_IMAGE, "MRTD, RTMR1 and RTMR2 are those of an image on the policy's list")
    if proven is not None and proven.hex() in policy.os_image_hashes:
        return passed(OS_IMAGE, f"the registers are those of the image {proven.hex()}, which is on the policy's list")
    found = f"MRTD {quote.mr_td.hex()}, RTMR1 {quote.rtmr1.hex()}, RTMR2 {quote.rtmr2.hex()}"
    if proven is not None:
        found = f"the image {proven.hex()}"
    if policy.os_images or policy.os_image_hashes:
        return failed(OS_IMAGE, f"got {found}, which is not on the policy's list")
    return skipped(OS_IMAGE, f"the policy names no image to compare with {found}")


def is_image(quote: TdxQuote, image: OsImage) -> bool:
    found = (quote.mr_td.hex(), quote.rtmr1.hex(), quote.rtmr2.hex())
    return found == (image.mr_td, image.rtmr1, image.rtmr2) and image.rtmr0 in (None, quote.rtmr0.hex())
