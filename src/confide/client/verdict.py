"""What a verification that does not hold ends in: an error that names the check which decided, and says why."""

from confide.errors import CannotTell, ConfideError, VerificationError
from confide.evidence.result import Status, Verification, failed, skipped
from confide.evidence.snp import CHAIN as SNP_CHAIN
from confide.evidence.tdx import COLLATERAL
from confide.verifier.appraisal import ServiceVerification


class NotVerified(VerificationError):
    """What was required did not hold. `verification`: all that was checked."""

    def __init__(self, message: str, *, check: str, remedy: str, verification: Verification) -> None:
        super().__init__(message, check=check, remedy=remedy)
        self.verification = verification


class NotNow(CannotTell):
    """The service has no report at the moment. Nothing was sent to it; it may be asked again."""


def require_service(verified: ServiceVerification) -> None:
    """Return when the policy accepts the service. Raises VerificationError naming the check."""
    if verified.ok:
        return
    remedy = "Nothing was sent to it. Do not use this service."
    if verified.lacking and not verified.rejected:
        remedy = f"Nothing was sent to it. {verified.lacking[0].message}. {verified.lacking[0].remedy}"
    raise refusal(verified, "the service is not verified", remedy)


def require_answer(verified: Verification) -> None:
    """Return when the answer is proven. Raises VerificationError naming the check."""
    if not verified.ok:
        raise refusal(verified, "the answer is not proven", "Do not rely on this answer.")


def require(verified: Verification) -> None:
    """Return when `verified` holds, for the command line. Raises VerificationError, CannotTell without collateral."""
    if not verified.ok:
        raise told(refusal(verified, "not verified", "Do not rely on this service."))


def refusal(verified: Verification, what: str, remedy: str) -> NotVerified:
    """The error that names the check which decided."""
    check = verified.decisive or skipped("id-1", "this check did not run")
    message = f"{what}: {check.name}: {check.reason}"
    return NotVerified(message, check=check.name, remedy=remedy, verification=verified)


def told(failure: VerificationError) -> ConfideError:
    """What the command line ends with: the failure, or CannotTell where it is that nothing could be found out."""
    if isinstance(failure.__cause__, CannotTell):
        return failure.__cause__
    if isinstance(failure, NotVerified) and not failure.verification.rejected:
        return lacked(failure.verification) or failure
    return failure


def lacked(verified: Verification) -> CannotTell | None:
    """Why something that decides could not be checked for want of collateral, None where that is not so."""
    if verified.lacking:
        return verified.lacking[0]
    if any(check.name in (COLLATERAL, SNP_CHAIN) and check.status is Status.SKIP for check in verified.checks):
        return CannotTell(
            "the service gave no collateral for its evidence, so whether that is genuine cannot be told",
            remedy="Ask a service that sends `collateral` (TDX), or `vcek` and `cert_chain` (SEV-SNP), or name a file.",
        )
    return None


def shown(failure: VerificationError, now: int) -> Verification:
    """The failure as a result: all that was checked, or where that is not known the one check that it names.

    `now`: Unix seconds.
    """
    if isinstance(failure, NotVerified):
        return failure.verification
    return Verification(now, (failed(failure.check, reason_of(failure)),), required=frozenset({failure.check}))


def reason_of(failure: VerificationError) -> str:
    """Why the check that the failure names did not hold, without the name."""
    _, is_named, reason = failure.message.partition(f"{failure.check}: ")
    return reason if is_named else failure.message
