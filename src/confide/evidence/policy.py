"""What the caller trusts: roots, and the state a platform may be in. Never taken from the peer (tee-evidence 3.1)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Literal

from cryptography import x509

from confide.evidence.result import TrustAnchor
from confide.evidence.snp_report import MAX_VMPL, Product, SnpTcb

Platform = Literal["tdx", "snp", "nvidia"]

# Vendor roots by SHA-256 of the DER (tee-evidence 8.2).
INTEL_SGX_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
AMD_ARK_MILAN_SHA256 = "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd"
AMD_ARK_GENOA_SHA256 = "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1"
AMD_ARK_TURIN_SHA256 = "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a"
NVIDIA_DEVICE_ROOT_SHA256 = "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"

# What the verification library can answer. A revoked TCB never gets that far and cannot be accepted.
TCB_STATUSES = frozenset(
    {
        "UpToDate",
        "SWHardeningNeeded",
        "ConfigurationNeeded",
        "ConfigurationAndSWHardeningNeeded",
        "OutOfDate",
        "OutOfDateConfigurationNeeded",
        "TDRelaunchAdvised",
        "TDRelaunchAdvisedConfigurationNeeded",
    }
)


@dataclass(frozen=True)
class Root:
    """A root that the caller trusts. `der`: our copy of it, or None for a vendor's: it is known by its hash, so the
    bytes that match it are that root. `platform`: what it may vouch for, None for a simulator's: whatever it signs.
    """

    anchor: TrustAnchor
    der: bytes | None
    platform: Platform | None = None


def vendor(name: str, sha256_hex: str, platform: Platform) -> Root:
    return Root(TrustAnchor(name, sha256_hex, simulated=False), None, platform)


INTEL_SGX_ROOT = vendor("intel-sgx-root", INTEL_SGX_ROOT_SHA256, "tdx")
AMD_ROOTS = (
    vendor("amd-ark-milan", AMD_ARK_MILAN_SHA256, "snp"),
    vendor("amd-ark-genoa", AMD_ARK_GENOA_SHA256, "snp"),
    vendor("amd-ark-turin", AMD_ARK_TURIN_SHA256, "snp"),
)
NVIDIA_DEVICE_ROOT = vendor("nvidia-device-root", NVIDIA_DEVICE_ROOT_SHA256, "nvidia")
VENDOR_ROOTS: Mapping[str, tuple[Root, ...]] = MappingProxyType(
    {"intel": (INTEL_SGX_ROOT,), "amd": AMD_ROOTS, "nvidia": (NVIDIA_DEVICE_ROOT,)}
)


def by_sha256(*roots: Root) -> Mapping[str, Root]:
    return MappingProxyType({root.anchor.sha256: root for root in roots})


def vendor_root(sha256_hex: str) -> Root | None:
    """The vendor's root with this hash of its DER, None for a root that is nobody's."""
    return next((root for roots in VENDOR_ROOTS.values() for root in roots if root.anchor.sha256 == sha256_hex), None)


@dataclass(frozen=True)
class Anchors:
    """The roots under which evidence may verify, by SHA-256 of the DER (64 lower-case hex)."""

    roots: Mapping[str, Root] = field(
        default_factory=lambda: by_sha256(*(root for roots in VENDOR_ROOTS.values() for root in roots))
    )

    @classmethod
    def default(cls) -> "Anchors":
        """The roots of the hardware vendors and nothing else."""
        return cls()

    @classmethod
    def of(cls, *vendors: str) -> "Anchors":
        """The roots of these vendors: "intel", "amd", "nvidia". Raises KeyError for another name."""
        return cls(by_sha256(*(root for name in vendors for root in VENDOR_ROOTS[name])))

    def without(self, sha256_hex: str) -> "Anchors":
        """These but for one: for a product that is no longer trusted."""
        return Anchors(by_sha256(*(root for name, root in self.roots.items() if name != sha256_hex)))

    def with_simulated(self, root_der: bytes) -> "Anchors":
        """These and one simulated root, which is then named and marked as simulated in every result.

        Raises ValueError when the bytes are no certificate or are a hardware root, which must not be called simulated.
        """
        fingerprint = sha256(root_der).hexdigest()
        known = vendor_root(fingerprint)
        if known is not None:
            raise ValueError(f"this is a vendor's own root, {known.anchor.name}; pin the simulator's root instead")
        try:
            x509.load_der_x509_certificate(root_der)
        except (ValueError, TypeError, x509.InvalidVersion) as error:
            raise ValueError("the root to pin is not a certificate in DER form; convert PEM to DER first") from error
        root = Root(TrustAnchor(f"sim:{fingerprint}", fingerprint, simulated=True), root_der)
        return Anchors(by_sha256(*self.roots.values(), root))

    def pinning(self, root_der: bytes) -> "Anchors":
        """These and the root in these bytes: a vendor's under its own name, any other as a simulated one. Raises
        ValueError when the bytes are no certificate.
        """
        known = vendor_root(sha256(root_der).hexdigest())
        return self.with_simulated(root_der) if known is None else Anchors(by_sha256(*self.roots.values(), known))

    def matching(self, certificate_der: bytes, platform: Platform) -> Root | None:
        """The trusted root with these very bytes, if it may vouch for this platform. Verify with its copy, or where it
        has none with these bytes: they have its hash. Never with another certificate of the peer's.
        """
        root = self.roots.get(sha256(certificate_der).hexdigest())
        return root if root is not None and root.platform in (platform, None) else None


@dataclass(frozen=True, kw_only=True)
class TdxPolicy:
    """The appraisal policy for TDX platforms (tee-evidence 3.2, steps 5 to 7).

    `accepted_tcb`: TCB status names. `denied_advisories`: ids such as "INTEL-SA-00999" that reject whatever the
    status. `min_tcb_eval_data_number`: refuses collateral from before that Intel TCB recovery. `allow_perfmon`: the
    TD may use performance counters, a side channel. Raises ValueError for a status name that does not exist.
    """

    accepted_tcb: frozenset[str] = frozenset({"UpToDate"})
    denied_advisories: frozenset[str] = frozenset()
    min_tcb_eval_data_number: int = 0
    allow_perfmon: bool = False

    def __post_init__(self) -> None:
        unknown = self.accepted_tcb - TCB_STATUSES
        if unknown:
            raise ValueError(
                f"unknown TCB status {', '.join(sorted(unknown))}; choose from {', '.join(sorted(TCB_STATUSES))}"
            )


SNP_PRODUCTS = frozenset(Product)


def nothing_by_product() -> Mapping[str, SnpTcb]:
    return MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class SnpPolicy:
    """The appraisal policy for SEV-SNP platforms (tee-evidence 3.3, steps 4, 7 and 8). Products: "milan", "genoa",
    "turin". A guest that may be debugged or migrated is refused whatever stands here.

    `accepted_products`, and `denied_products` with the reason to show: a CPU generation is never patched against what
    its design lacks. `min_tcb`: by product, the least of the reported TCB, the only one that the signing key is derived
    from; `min_launch_tcb`: of the TCB under which the guest was started. `require_committed`: the running firmware can
    no longer be rolled back. `min_firmware`: (major, minor, build) of the committed SNP firmware. `require_crl`:
    without AMD's revocation list the result is not VERIFIED. `allow_vlek`: a key of the cloud provider's, not of one
    chip. `vmpl`: the guest's privilege level, 0 to 3. `allow_smt`: two guests may share a core. `allow_cxl`: memory may
    sit behind a CXL link. `require_alias_check`: memory aliases were looked for at boot (BadRAM).
    `require_ciphertext_hiding`: the host cannot even read the ciphertext. `min_guest_svn`: of the guest's owner. Raises
    ValueError for a product that does not exist or a VMPL out of range.
    """

    accepted_products: frozenset[str] = SNP_PRODUCTS
    denied_products: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    min_tcb: Mapping[str, SnpTcb] = field(default_factory=nothing_by_product)
    min_launch_tcb: Mapping[str, SnpTcb] = field(default_factory=nothing_by_product)
    require_committed: bool = True
    min_firmware: tuple[int, int, int] = (0, 0, 0)
    require_crl: bool = False
    allow_vlek: bool = False
    vmpl: int = 0
    allow_smt: bool = True
    allow_cxl: bool = False
    require_alias_check: bool = False
    require_ciphertext_hiding: bool = False
    min_guest_svn: int = 0

    def __post_init__(self) -> None:
        named = self.accepted_products.union(self.denied_products, self.min_tcb, self.min_launch_tcb)
        unknown = named - SNP_PRODUCTS
        if unknown:
            raise ValueError(
                f"unknown product {', '.join(sorted(unknown))}; choose from {', '.join(sorted(SNP_PRODUCTS))}"
            )
        if not 0 <= self.vmpl <= MAX_VMPL:
            raise ValueError(f"VMPL {self.vmpl}, expected 0 to {MAX_VMPL}")


# Names of the chips' families as NVIDIA's payloads spell them: two of GPUs, one of switches.
GPU_ARCHITECTURES = frozenset({"HOPPER", "BLACKWELL"})
ARCHITECTURES = GPU_ARCHITECTURES | {"LS10"}


@dataclass(frozen=True, kw_only=True)
class GpuPolicy:
    """The appraisal policy for NVIDIA devices (tee-evidence 3.4). Switches do not count as GPUs.

    `required_gpus`: how many at least; with 0 a service without any is no failure. `accepted_architectures`: of GPUs
    and switches. `driver_versions`, `vbios_versions`: the only ones that a GPU may report, as in "570.172.08" and
    "96.00.A5.00.01"; empty accepts any. `require_nras`: nothing is VERIFIED without the verdict of NVIDIA's remote
    service (`evidence.nras`). Raises ValueError for an architecture that does not exist and for a negative count.
    """

    required_gpus: int = 0
    accepted_architectures: frozenset[str] = ARCHITECTURES
    driver_versions: frozenset[str] = frozenset()
    vbios_versions: frozenset[str] = frozenset()
    require_nras: bool = False

    def __post_init__(self) -> None:
        unknown = self.accepted_architectures - ARCHITECTURES
        if unknown:
            raise ValueError(
                f"unknown architecture {', '.join(sorted(unknown))}; choose from {', '.join(sorted(ARCHITECTURES))}"
            )
        if self.required_gpus < 0:
            raise ValueError(f"{self.required_gpus} GPUs required; give 0 or more")


HEX_DIGITS = re.compile(r"(?:[0-9a-f]{2})*")


def require_hex(what: str, values: Iterable[str], length: int | None = None) -> None:
    """Raise ValueError unless every value is lower-case hex, of `length` bytes where one is given."""
    for value in values:
        if HEX_DIGITS.fullmatch(value) is None or length not in (None, len(value) // 2):
            expected = "lower-case hex" if length is None else f"{2 * length} lower-case hex digits"
            raise ValueError(f"{what}: got {value[:140]!r}, expected {expected}, without 0x")


@dataclass(frozen=True)
class OsImage:
    """The registers of one OS image, 96 lower-case hex digits each. `rtmr0` differs with CPUs, memory and devices; pin
    it for machines of one fixed shape. Raises ValueError.
    """

    mr_td: str
    rtmr1: str
    rtmr2: str
    rtmr0: str | None = None

    def __post_init__(self) -> None:
        require_hex("an OS image", (self.mr_td, self.rtmr1, self.rtmr2, *filter(None, (self.rtmr0,))), 48)


@dataclass(frozen=True)
class KeyProvider:
    """Who gives a dstack guest its keys. `name`: "kms", "local-sgx" and the like. `id`: lower-case hex; of a KMS the
    SPKI DER of its P-256 CA key, which is another key than its root in `DstackPolicy.kms_roots`.
    """

    name: str
    id: str

    def __post_init__(self) -> None:
        require_hex("a key provider", (self.id,))


@dataclass(frozen=True, kw_only=True)
class DstackPolicy:
    """The appraisal policy for dstack guests (tee-evidence 3.5, 3.6). An empty set pins nothing: what it would decide
    is then skipped, and proves nothing. All values are lower-case hex without 0x; ValueError for others.

    `compose_hashes`: SHA-256 of `app_compose` texts. `app_ids`: 20 bytes each. `gpu_policy_hashes`: 32 bytes each.
    `os_images`: registers of images. `os_image_hashes`: images by hash, where the evidence has the material to prove
    it. `os_image_events`: what the `os-image-hash` event may say, on top; it is no proof by itself. `kms_roots`:
    compressed secp256k1 keys of 33 bytes.
    """

    compose_hashes: frozenset[str] = frozenset()
    app_ids: frozenset[str] = frozenset()
    gpu_policy_hashes: frozenset[str] = frozenset()
    key_providers: frozenset[KeyProvider] = frozenset()
    os_images: frozenset[OsImage] = frozenset()
    os_image_hashes: frozenset[str] = frozenset()
    os_image_events: frozenset[str] = frozenset()
    kms_roots: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        require_hex("a compose hash", self.compose_hashes, 32)
        require_hex("an app id", self.app_ids, 20)
        require_hex("a GPU policy hash", self.gpu_policy_hashes, 32)
        require_hex("an OS image hash", self.os_image_hashes | self.os_image_events, 32)
        require_hex("a KMS root", self.kms_roots, 33)

    @property
    def pins_application(self) -> bool:
        """Whether it says which applications will do."""
        return bool(self.compose_hashes or self.app_ids or self.gpu_policy_hashes)

    @property
    def pins_os_image(self) -> bool:
        """Whether it says which OS images will do."""
        return bool(self.os_images or self.os_image_hashes or self.os_image_events)
