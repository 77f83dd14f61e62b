"""A SIMULATED dstack machine: guest agent, KMS and Intel's provisioning service, all of one seed (tee-evidence 5).

A `fault` is one thing that is wrong with it: a `TdxFault` or `PccsFault` by its name in small letters, the latter with
`pccs-` before it, or one of `OWN_FAULTS`.
"""

from hashlib import sha256

from starlette.types import ASGIApp

from confide.simulator.guest_agent import SimulatedGuestAgent
from confide.simulator.kms import SimulatedKms
from confide.simulator.pccs import PccsFault, SimulatedPccs
from confide.simulator.tdx import QuoteForm, SimulatedTdxPlatform, TdxFault

CLOCK_SKEW_S = 60 * 60  # collateral is issued an hour back, for verifiers whose clocks run behind ours

OWN_FAULTS = {
    "debug": "the guest may be debugged",
    "revoked": "the platform's PCK certificate is revoked",
    "outdated": "the platform's TCB is out of date",
    "report-data": "quotes are over other data than was asked for",
    "custody": "another KMS than the one whose root is told released the keys",
}


TDX_FAULTS = {fault.name.lower().replace("_", "-"): fault for fault in TdxFault}
PCCS_FAULTS = {f"pccs-{fault.name.lower().replace('_', '-')}": fault for fault in PccsFault}
FAULTS = (*OWN_FAULTS, *TDX_FAULTS, *PCCS_FAULTS)


class SimulatedDstack:
    """The machine. `root_pem`: what its quotes end in; `kms_root`: what its keys end in, 66 hex digits."""

    def __init__(self, seed: bytes, *, now: int, fault: str | None = None) -> None:
        """`seed`: 32 bytes. `now`: Unix seconds, inside the root's life, else ConfigError. Raises ValueError for a
        fault that is none of FAULTS.
        """
        if fault is not None and fault not in FAULTS:
            raise ValueError(f"unknown fault {fault!r}, expected one of {', '.join(FAULTS)}")
        tdx = TDX_FAULTS.get(fault) if fault else None
        platform = SimulatedTdxPlatform(
            seed,
            now=now,
            debug=fault == "debug",
            tcb_status="OutOfDate" if fault == "outdated" else "UpToDate",
            revoked=fault == "revoked",
            form=QuoteForm.V5_REPORT_15 if tdx is TdxFault.SERVICE_TD else QuoteForm.V4,
            fault=tdx,
        )
        kms = SimulatedKms(seed)
        releasing = SimulatedKms(sha256(seed).digest()) if fault == "custody" else kms
        self._pccs = SimulatedPccs(platform, now=now - CLOCK_SKEW_S, fault=PCCS_FAULTS.get(fault) if fault else None)
        agent = SimulatedGuestAgent(platform, releasing, quotes_other_data=fault == "report-data")
        self.agent_app: ASGIApp = agent.app
        self.pccs_app: ASGIApp = self._pccs.app
        self.root_pem = platform.root_pem
        self.kms_root = kms.root_public_key

    def follow(self, now: int) -> None:
        """Issue collateral as of `now` (Unix seconds) from here on."""
        self._pccs.now = now - CLOCK_SKEW_S
