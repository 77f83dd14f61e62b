"""A SIMULATED bare guest: the kernel's configfs-tsm, its vendors' services and GPUs, all of one seed (tee-evidence 5).

A `fault` is one thing that is wrong with it, one of TDX_GUEST_FAULTS or SNP_GUEST_FAULTS.
"""

import errno
from collections.abc import Callable, Mapping
from hashlib import sha512
from types import MappingProxyType
from typing import Any

from starlette.types import ASGIApp

from confide.simulator.configfs import SNP, TDX, ConfigfsFaults, SimulatedConfigfs
from confide.simulator.configfs_socket import SimulatedConfigfsSocket
from confide.simulator.fault_names import (
    GPU_FAULTS,
    GPU_SOURCE_FAULTS,
    KDS_FAULTS,
    PCCS_FAULTS,
    PLATFORM_FAULTS,
    TDX_FAULTS,
    require_known,
)
from confide.simulator.gpu_source import SimulatedGpuSource
from confide.simulator.machine import AMD_ROOT, CLOCK_SKEW_S, INTEL_ROOT, gpu_source, tdx_platform
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import QuoteForm

ALWAYS = 2**31

CONFIGFS_FAULTS = {
    "busy": ConfigfsFaults(busy=ALWAYS),
    "interference": ConfigfsFaults(interference=ALWAYS),
    "oversized": ConfigfsFaults(padding=64 * 1024),
    "read-only": ConfigfsFaults(refuses=errno.EROFS),
    "not-permitted": ConfigfsFaults(refuses=errno.EACCES),
    "absent": ConfigfsFaults(refuses=errno.ENOENT),
}
KERNEL_FAULTS = {
    "no-platform": "no platform is registered with the kernel",
    "report-data": "reports are over other data than was asked for",
    "malformed": "what the platform gives is no report",
    "hung": "no report ever comes",
}
# Each by the arguments of SimulatedSnpPlatform.
SNP_FAULTS: dict[str, dict[str, Any]] = {
    "debug": {"debug": True},
    "migratable": {"migratable": True},
    "vmpl": {"vmpl": 1},
    "masked": {"masked": True},
    "vlek": {"vlek": True},
    "other-chip": {"other_chip": True},
    "other-tcb": {"other_tcb": True},
    "tcb-behind": {"tcb_behind": True},
    "expired": {"expired": True},
    "revoked": {"revoked": True},
}
NO_CERTIFICATES = "no-certificates"  # the host gave none, and AMD's service has them

EVERYWHERE = (*CONFIGFS_FAULTS, *KERNEL_FAULTS, *GPU_FAULTS, *GPU_SOURCE_FAULTS)
TDX_GUEST_FAULTS = (*PLATFORM_FAULTS, *TDX_FAULTS, *PCCS_FAULTS, *EVERYWHERE)
SNP_GUEST_FAULTS = (*SNP_FAULTS, NO_CERTIFICATES, *KDS_FAULTS, *EVERYWHERE)


class SimulatedTsm:
    """The machine. `files`: its configfs-tsm; `roots`: PEM by file name, what its evidence ends in."""

    def __init__(
        self,
        files: SimulatedConfigfs,
        vendors: SimulatedPccs,
        gpus: SimulatedGpuSource,
        *,
        roots: Mapping[str, str],
        fault: str,
    ) -> None:
        """See `tdx` and `snp`, which make one."""
        self.files = files
        self.guest_app: ASGIApp = SimulatedConfigfsSocket(files, hangs=fault == "hung").app
        self.pccs_app: ASGIApp = vendors.app
        self.gpu_app: ASGIApp = gpus.app
        self.roots: Mapping[str, str] = MappingProxyType({**roots, **gpus.roots})
        self._vendors = vendors

    @classmethod
    def tdx(
        cls, seed: bytes, *, now: int, fault: str | None = None, form: QuoteForm = QuoteForm.V4, gpus: int = 0
    ) -> "SimulatedTsm":
        """A TDX guest. `seed`: 32 bytes. `now`: Unix seconds, inside the root's life, else ConfigError. `form`: of its
        quotes. `gpus`: how many it has. Raises ValueError for a fault that is none of TDX_GUEST_FAULTS.
        """
        require_known(fault, TDX_GUEST_FAULTS)
        name = fault or ""
        platform = tdx_platform(seed, now=now, fault=name, form=form)
        return cls(
            configfs(platform.quote, TDX, name),
            SimulatedPccs(platform, now=now - CLOCK_SKEW_S, fault=PCCS_FAULTS.get(name)),
            gpu_source(seed, gpus, name),
            roots={INTEL_ROOT: platform.root_pem},
            fault=name,
        )

    @classmethod
    def snp(cls, seed: bytes, *, now: int, fault: str | None = None, gpus: int = 0) -> "SimulatedTsm":
        """An SNP guest, likewise; its faults are SNP_GUEST_FAULTS. With one of AMD's service the host gave no
        certificates, so that the service has to be asked.
        """
        require_known(fault, SNP_GUEST_FAULTS)
        name = fault or ""
        platform = SimulatedSnpPlatform(seed, now=now, **SNP_FAULTS.get(name, {}))
        has_certificates = name != NO_CERTIFICATES and name not in KDS_FAULTS
        return cls(
            configfs(platform.report, SNP, name, platform.certificate_table() if has_certificates else b""),
            SimulatedPccs(snp=platform, now=now - CLOCK_SKEW_S, fault=KDS_FAULTS.get(name)),
            gpu_source(seed, gpus, name),
            roots={AMD_ROOT: platform.root_pem},
            fault=name,
        )

    def follow(self, now: int) -> None:
        """Issue collateral as of `now` (Unix seconds) from here on."""
        self._vendors.now = now - CLOCK_SKEW_S


def configfs(
    produce: Callable[[bytes], bytes], provider: str, fault: str, auxblob: bytes | None = None
) -> SimulatedConfigfs:
    """The kernel's interface before a platform. `produce`: 64 bytes of report data to its report."""

    def produced(report_data: bytes) -> bytes:
        if fault == "malformed":
            return b"SIMULATED: no report"
        return produce(sha512(report_data).digest() if fault == "report-data" else report_data)

    return SimulatedConfigfs(
        produced,
        provider=None if fault == "no-platform" else provider,
        auxblob=auxblob,
        faults=CONFIGFS_FAULTS.get(fault),
    )
