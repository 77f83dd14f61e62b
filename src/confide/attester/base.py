"""What an attester is, and the evidence it gives (RFC 9334: attester, evidence)."""

from dataclasses import dataclass
from typing import Protocol

import msgspec

from confide.attester.keys import LegacyKeys, WorkloadKeys


@dataclass(frozen=True)
class Evidence:
    """What the platform gave, as it gave it, never re-encoded.

    `tee_type`: "tdx" or "sev_snp". `event_log` and `vm_config`: JSON text. `info`: dstack `Info` (wire contract 6.1).
    `report_data`: the 64 bytes, as read back out of the quote. `collateral`: DCAP collateral members, None when a
    verifier has to fetch its own. `simulated`: no hardware stands behind it.
    """

    tee_type: str
    quote: bytes
    report_data: bytes
    event_log: str
    vm_config: str
    info: dict[str, object]
    collateral: dict[str, str] | None
    simulated: bool

    def aci_members(self) -> dict[str, object]:
        """`attestation.evidence` of the ACI report (wire contract 7.3); `collateral` and `simulated` are ours."""
        members: dict[str, object] = {
            "quote": self.quote.hex(),
            "quote_report_data": self.report_data.hex(),
            "event_log": self.event_log,
            "vm_config": self.vm_config,
        }
        tcb_info = self.info.get("tcb_info")  # an object or its JSON text
        if isinstance(tcb_info, str):
            tcb_info = msgspec.json.decode(tcb_info)
        compose = tcb_info.get("app_compose") if isinstance(tcb_info, dict) else None
        if isinstance(compose, str):
            members["app_compose"] = compose
        if self.collateral is not None:
            members["collateral"] = self.collateral
        if self.simulated:
            members["simulated"] = True
        return members


class Attester(Protocol):
    """One TEE platform: it holds the signing keys and quotes report data on demand (tee-evidence 2)."""

    @property
    def kind(self) -> str:
        """The name in the configuration, for example "simulated"."""

    @property
    def tee_type(self) -> str:
        """The platform: "tdx" or "sev_snp" (wire contract 7.3)."""

    @property
    def simulated(self) -> bool:
        """True when no hardware protects the keys and the evidence. Every label of the service follows it."""

    @property
    def keys(self) -> LegacyKeys:
        """The signing keys that this attester's evidence binds."""

    @property
    def workload_keys(self) -> WorkloadKeys:
        """The keys of the workload keyset, by role (wire contract 7.1)."""

    async def attest(self, report_data: bytes) -> Evidence:
        """Fresh evidence over exactly 64 bytes.

        The attester reads the report data back out of its own quote; a difference is an InternalError. Raises
        NotReady when the platform is busy for too long.
        """
