"""What can be wrong with a SIMULATED machine, by the names that the command line takes: one thing at a time."""

from enum import StrEnum
from typing import TypeVar

from confide.simulator.gpu import GpuFault
from confide.simulator.gpu_source import GpuSourceFault
from confide.simulator.pccs import PccsFault
from confide.simulator.tdx_fault import TdxFault

T = TypeVar("T", bound=StrEnum)


def by_name(kind: type[T], prefix: str = "") -> dict[str, T]:
    """The faults of this kind by their names in small letters, with dashes, behind the prefix."""
    return {prefix + fault.name.lower().replace("_", "-"): fault for fault in kind}


PLATFORM_FAULTS = {
    "debug": "the guest may be debugged",
    "revoked": "the platform's PCK certificate is revoked",
    "outdated": "the platform's TCB is out of date",
}
TDX_FAULTS = by_name(TdxFault)
PCCS_FAULTS = by_name(PccsFault, "pccs-")
GPU_FAULTS = by_name(GpuFault, "gpu-")  # of the last device; the others are as they should be
GPU_SOURCE_FAULTS = by_name(GpuSourceFault, "gpus-")

# What AMD's certificates have nothing of: they are not dated, and no header carries their chain.
NOT_OF_KDS = {PccsFault.EXPIRED, PccsFault.WRONG_CHAIN, PccsFault.NO_CHAIN}
KDS_FAULTS = {name: fault for name, fault in by_name(PccsFault, "kds-").items() if fault not in NOT_OF_KDS}


def require_known(fault: str | None, faults: tuple[str, ...]) -> None:
    """Raise ValueError for a fault that is none of these."""
    if fault is not None and fault not in faults:
        raise ValueError(f"unknown fault {fault[:40]!r}, expected one of {', '.join(faults)}")
