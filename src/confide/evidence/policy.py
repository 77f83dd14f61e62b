"""What the caller trusts: roots, and the state a platform may be in. Never taken from the peer (tee-evidence 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Literal

from cryptography import x509

from confide.evidence.result import TrustAnchor

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
        except ValueError as error:
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
