"""A SIMULATED dstack machine: guest agent, KMS, Intel's service and GPUs, all of one seed (tee-evidence 5).

A `fault` is one thing that is wrong with it, one of FAULTS (`simulator.fault_names`).
"""

from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType

from starlette.types import ASGIApp

from confide.simulator.fault_names import (
    GPU_FAULTS,
    GPU_SOURCE_FAULTS,
    PCCS_FAULTS,
    PLATFORM_FAULTS,
    TDX_FAULTS,
    require_known,
)
from confide.simulator.guest_agent import SimulatedGuestAgent
from confide.simulator.kms import SimulatedKms
from confide.simulator.machine import CLOCK_SKEW_S, INTEL_ROOT, gpu_source, tdx_platform
from confide.simulator.pccs import SimulatedPccs
from confide.simulator.tdx import QuoteForm

OWN_FAULTS = {
    "report-data": "quotes are over other data than was asked for",
    "custody": "another KMS than the one whose root is told released the keys",
}
FAULTS = (*PLATFORM_FAULTS, *OWN_FAULTS, *TDX_FAULTS, *PCCS_FAULTS, *GPU_FAULTS, *GPU_SOURCE_FAULTS)


class SimulatedDstack:
    """The machine. `root_pem`: what its quotes end in; `kms_root`: what its keys end in, 66 hex digits."""

    def __init__(
        self, seed: bytes, *, now: int, fault: str | None = None, form: QuoteForm = QuoteForm.V4, gpus: int = 0
    ) -> None:
        """`seed`: 32 bytes. `now`: Unix seconds, inside the root's life, else ConfigError. `form`: of its quotes.
        `gpus`: how many it has. Raises ValueError for a fault that is none of FAULTS.
        """
        require_known(fault, FAULTS)
        name = fault or ""
        platform = tdx_platform(seed, now=now, fault=name, form=form)
        kms = SimulatedKms(seed)
        releasing = SimulatedKms(sha256(seed).digest()) if fault == "custody" else kms
        devices = gpu_source(seed, gpus, name)
        self._pccs = SimulatedPccs(platform, now=now - CLOCK_SKEW_S, fault=PCCS_FAULTS.get(name))
        agent = SimulatedGuestAgent(platform, releasing, quotes_other_data=fault == "report-data")
        self.agent_app: ASGIApp = agent.app
        self.pccs_app: ASGIApp = self._pccs.app
        self.gpu_app: ASGIApp = devices.app
        self.root_pem = platform.root_pem
        self.kms_root = kms.root_public_key
        self.roots: Mapping[str, str] = MappingProxyType({INTEL_ROOT: platform.root_pem, **devices.roots})

    @property
    def guest_app(self) -> ASGIApp:
        """What the guest itself talks to."""
        return self.agent_app

    def follow(self, now: int) -> None:
        """Issue collateral as of `now` (Unix seconds) from here on."""
        self._pccs.now = now - CLOCK_SKEW_S
