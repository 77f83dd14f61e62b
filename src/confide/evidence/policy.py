"""What the caller trusts: roots, and the state a platform may be in. Never taken from the peer (tee-evidence 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType

from cryptography import x509

from confide.evidence.result import TrustAnchor

INTEL_SGX_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"

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
    """A root that the caller trusts. `der`: our copy of it, or None for Intel's, which is built into dcap-qvl."""

    anchor: TrustAnchor
    der: bytes | None


INTEL_SGX_ROOT = Root(TrustAnchor("intel-sgx-root", INTEL_SGX_ROOT_SHA256, simulated=False), None)


@dataclass(frozen=True)
class Anchors:
    """The roots under which a TDX quote may verify, by SHA-256 of the DER (64 lower-case hex)."""

    roots: Mapping[str, Root] = field(
        default_factory=lambda: MappingProxyType({INTEL_SGX_ROOT.anchor.sha256: INTEL_SGX_ROOT})
    )

    @classmethod
    def default(cls) -> "Anchors":
        """Intel's SGX root and nothing else."""
        return cls()

    def with_simulated(self, root_der: bytes) -> "Anchors":
        """These and one simulated root, which is then named and marked as simulated in every result.

        Raises ValueError when the bytes are no certificate or are a hardware root, which must not be called simulated.
        """
        fingerprint = sha256(root_der).hexdigest()
        if fingerprint == INTEL_SGX_ROOT_SHA256:
            raise ValueError("this is Intel's own root, which is trusted already; pin the simulator's root instead")
        try:
            x509.load_der_x509_certificate(root_der)
        except ValueError as error:
            raise ValueError("the root to pin is not a certificate in DER form; convert PEM to DER first") from error
        root = Root(TrustAnchor(f"sim:{fingerprint}", fingerprint, simulated=True), root_der)
        return Anchors(MappingProxyType({**self.roots, fingerprint: root}))

    def matching(self, certificate_der: bytes) -> Root | None:
        """The trusted root with these very bytes. Verify with its copy, never with the peer's."""
        return self.roots.get(sha256(certificate_der).hexdigest())


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
