"""What a verifier says: named checks with reasons, the trust anchors behind them, and facts (tee-evidence 3.1).

Three values, never two: a check that could not run is `skip`, with the reason, and counts as neither yes nor no. A
verifier of this room returns a result for any evidence; it does not raise on bad evidence.
"""

from collections.abc import Set
from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How one check ended."""

    PASS = "pass"  # noqa: S105 - a status, no password
    FAIL = "fail"
    SKIP = "skip"


class Verdict(StrEnum):
    """What all checks together allow one to say (wire contract 9)."""

    VERIFIED = "VERIFIED"
    PARTIAL = "PARTIAL"
    NOT_VERIFIED = "NOT VERIFIED"


@dataclass(frozen=True)
class Check:
    """One check. `id`: "tdx.quote" and the like, tee-evidence 3.1. `reason`: for people, never empty."""

    id: str
    status: Status
    reason: str

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError(f"the check {self.id} has no reason; say why it is {self.status}")


@dataclass(frozen=True)
class TrustAnchor:
    """A root that a chain ended in. `sha256`: of its DER, 64 lower-case hex. `simulated`: no hardware behind it."""

    name: str
    sha256: str
    simulated: bool


@dataclass(frozen=True)
class Verification:
    """The result of one verifier at the time `now` (Unix seconds). `facts` are neutral and prove nothing alone."""

    now: int
    checks: tuple[Check, ...]
    anchors: tuple[TrustAnchor, ...]
    facts: dict[str, object]

    @property
    def rejected(self) -> bool:
        """A check failed. False does not mean verified."""
        return any(check.status is Status.FAIL for check in self.checks)

    @property
    def simulated(self) -> bool:
        """An anchor is simulated: whatever was verified, no hardware protects it."""
        return any(anchor.simulated for anchor in self.anchors)

    def verdict(self, required: Set[str]) -> Verdict:
        """VERIFIED when nothing failed and every required check is there and passed.

        `required`: check ids; with none at all nothing was asked to be proved, so the most that comes out is PARTIAL.
        """
        if self.rejected:
            return Verdict.NOT_VERIFIED
        not_passed = {check.id for check in self.checks if check.status is not Status.PASS}
        passed = {check.id for check in self.checks} - not_passed
        return Verdict.VERIFIED if required and required <= passed else Verdict.PARTIAL
