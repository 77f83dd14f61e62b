"""What a verifier says: named checks with reasons, the trust anchors behind them, and facts (tee-evidence 3.1).

Three values, never two: a check that could not run is `skip`, with the reason, and counts as neither yes nor no. A
verifier of this room returns a result for any evidence; it does not raise on bad evidence.
"""

from collections.abc import Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from confide.errors import CannotTell


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
    """One check. `name`: "id-1", "tdx.quote" and the like (wire contract 9, tee-evidence 3.1). `reason`: for people,
    never empty.
    """

    name: str
    status: Status
    reason: str

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError(f"the check {self.name} has no reason; say why it is {self.status}")


@dataclass(frozen=True)
class TrustAnchor:
    """A root that a chain ended in. `sha256`: of its DER, 64 lower-case hex. `simulated`: no hardware behind it."""

    name: str
    sha256: str
    simulated: bool


@dataclass(frozen=True)
class Verification:
    """The result of a verifier at the time `now` (Unix seconds). `facts` are neutral and prove nothing alone.

    `required`: names of the checks without which nothing is proved. `desired`: those that VERIFIED promises besides;
    where the policy can do without one of them, the verdict is PARTIAL. `lacking`: what a check skipped for, that is
    neither in the evidence nor to be had elsewhere, and why.
    """

    now: int
    checks: tuple[Check, ...]
    anchors: tuple[TrustAnchor, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)
    required: frozenset[str] = frozenset()
    desired: frozenset[str] = frozenset()
    lacking: tuple[CannotTell, ...] = ()

    @property
    def rejected(self) -> bool:
        """A check failed. False does not mean verified."""
        return any(check.status is Status.FAIL for check in self.checks)

    @property
    def simulated(self) -> bool:
        """An anchor is simulated: whatever was verified, no hardware protects it."""
        return any(anchor.simulated for anchor in self.anchors)

    @property
    def ok(self) -> bool:
        """Nothing failed, and every required check is there and passed. With none required nothing was proved."""
        return bool(self.required) and not self.rejected and self.has_passed(self.required)

    @property
    def verdict(self) -> Verdict:
        """VERIFIED: `ok`, and what is desired besides has passed too. NOT VERIFIED: a check failed. Else PARTIAL."""
        if self.rejected:
            return Verdict.NOT_VERIFIED
        return Verdict.VERIFIED if self.ok and self.has_passed(self.desired) else Verdict.PARTIAL

    @property
    def decisive(self) -> Check | None:
        """The check for which this is not `ok`: the first that failed, else the first required one that was skipped,
        else a required one that is not there, as skipped. None where it is ok, or where nothing was required.
        """
        failing = [check for check in self.checks if check.status is Status.FAIL]
        lacking = [check for check in self.checks if check.name in self.required and check.status is Status.SKIP]
        absent = sorted(self.required - {check.name for check in self.checks})
        return next(iter([*failing, *lacking, *(skipped(name, "this check did not run") for name in absent)]), None)

    def has_passed(self, names: Set[str]) -> bool:
        """Whether all of these checks are there and passed, each time they stand there."""
        not_passed = {check.name for check in self.checks if check.status is not Status.PASS}
        return names <= {check.name for check in self.checks} - not_passed

    def requiring(self, names: Set[str]) -> Self:
        """The same result for a caller that needs other checks."""
        return replace(self, required=frozenset(names))


def passed(name: str, reason: str) -> Check:
    """A check that holds."""
    return Check(name, Status.PASS, reason)


def failed(name: str, reason: str) -> Check:
    """A check that does not hold."""
    return Check(name, Status.FAIL, reason)


def skipped(name: str, reason: str) -> Check:
    """A check that could not run."""
    return Check(name, Status.SKIP, reason)


MAX_REASON = 400  # characters of a text that is not ours: a library's, or a name from the peer's certificate


def quoted(foreign: object) -> str:
    """A text that is not ours, fit for a terminal: one line, bounded, without control characters."""
    line = " ".join(str(foreign).split())[:MAX_REASON]
    return "".join(character if character.isprintable() else "?" for character in line)
