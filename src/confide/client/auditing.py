"""Check a bundle again: everything is in the file, nothing is asked of any network (docs/bundle.md).

A bundle is checked as of the time that it names: its collateral and its keyset were valid then, and that is what can be
shown ten years later. Who made it may have lied about that time, and about the TLS key of the connection; nobody can
have made up the signatures under the root. `at` checks as of another time.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from confide.client.proof import required_of
from confide.client.receipts import ESTABLISHED, Exchange, verify_receipt
from confide.collateral.bundle import read_bundle as read_collateral
from confide.errors import ConfigError, VerificationError
from confide.evidence.result import Check, Verification, failed, passed, quoted, skipped
from confide.protocol.bundle import MAX_BUNDLE_BYTES, AnswerProof, Bundle, ServiceProof, parse_bundle
from confide.protocol.canonical import DocumentError, parse_document
from confide.protocol.session import session_id
from confide.verifier.appraisal import Connection, ServiceVerification, verify_report
from confide.verifier.collateral import NOTHING_HELD, HeldCollateral
from confide.verifier.policy import Policy

BUNDLE, TIME = "bundle", "bundle-time"
CLOCK_SKEW_S = 300


@dataclass(frozen=True)
class BundleVerification(Verification):
    """What was checked of a bundle; `service` and `answers` as it names them, claims but for what the checks say."""

    bundle: Bundle | None = None


def verify_bundle(
    path: str | os.PathLike[str],
    policy: Policy | None = None,
    *,
    at: int | None = None,
    now: int | None = None,
    collateral: HeldCollateral = NOTHING_HELD,
) -> BundleVerification:
    """Check every proof in the file. `at`: Unix seconds to check as of; None: the time that the bundle names.

    `now`: Unix seconds, the present by default; a bundle from the future is refused. `collateral`: files that have what
    the bundle lacks. Opens no socket. Raises
    ConfigError when the file cannot be read, VerificationError when it is no bundle.
    """
    present = int(time.time()) if now is None else now
    try:
        raw = read_bounded(Path(path))
        bundle = parse_bundle(raw)
    except DocumentError as error:
        raise VerificationError(f"{BUNDLE}: {error}", check=BUNDLE, remedy="Ask for the bundle again.") from error
    return audit(bundle, policy or Policy(), at=at, now=present, collateral=collateral)


def audit(
    bundle: Bundle, policy: Policy, *, at: int | None, now: int, collateral: HeldCollateral = NOTHING_HELD
) -> BundleVerification:
    """The same for a parsed bundle."""
    moment = bundle.service.verified_at if at is None else at
    service = verify_recorded(
        bundle.service, policy, max(0, moment), collateral
    )  # before 1970 no platform can be judged
    time_check = check_time(bundle.service, moment, now)
    services = {} if service.report is None else {service.report.keyset_digest: service}
    checks: tuple[Check, ...] = (time_check, *service.checks)
    required = service.required | {TIME}
    for answer in bundle.answers:
        checks += verify_recorded_answer(answer, services, policy)
        required |= required_of(service, policy)
    if len(bundle.answers) == 1:  # what was asked about first
        checks = (*checks[len(service.checks) + 1 :], time_check, *service.checks)
    return BundleVerification(
        moment,
        checks,
        service.anchors,
        service.facts,
        required=required,
        desired=service.desired,
        lacking=service.lacking,
        bundle=bundle,
    )


def verify_recorded(
    recorded: ServiceProof, policy: Policy, moment: int, collateral: HeldCollateral
) -> ServiceVerification:
    """The service's report, for the nonce and the connection that the bundle names. Raises VerificationError."""
    raw = recorded.report.encode()
    spki = None if recorded.spki_sha256 is None else bytes.fromhex(recorded.spki_sha256)
    return verify_report(
        raw,
        nonce=recorded.nonce,
        policy=policy,
        now=moment,
        connection=Connection(host=host_of(recorded.url), spki_sha256=spki, is_recorded=True),
        url=recorded.url,
        supplied=travelling(recorded, collateral).supply(raw, policy, moment),
    )


def travelling(recorded: ServiceProof, collateral: HeldCollateral) -> HeldCollateral:
    """What the bundle brings along, and then the files. Raises VerificationError."""
    if recorded.collateral is None:
        return collateral.beside(None)
    try:
        return collateral.beside(read_collateral(recorded.collateral.encode()))
    except ConfigError as error:
        raise VerificationError(
            f"{BUNDLE}: service.collateral: {error.message}", check=BUNDLE, remedy="Ask for the bundle again."
        ) from error


def host_of(url: str) -> str:
    """The host in a foreign URL. Raises VerificationError for what is none: TLS keys are listed for hosts."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if host is None:
        raise VerificationError(
            f"{BUNDLE}: service.url names no host", check=BUNDLE, remedy="Ask for the bundle again."
        )
    return host


def verify_recorded_answer(
    answer: AnswerProof, services: Mapping[str, ServiceVerification], policy: Policy
) -> tuple[Check, ...]:
    """The checks of one exchange."""
    exchange = Exchange(
        endpoint=answer.endpoint,
        receipt_id=answer.receipt_id,
        request_sha256=bytes.fromhex(answer.request_sha256),
        response_sha256=bytes.fromhex(answer.response_sha256),
        status=answer.status,
        sessions=sessions_by_id(answer.sessions),
    )
    checks, receipt = verify_receipt(answer.receipt.encode(), exchange, services=services, policy=policy)
    if receipt is not None and answer.chat_id != receipt.members.chat_id:
        beside = f"got the response id {quoted(answer.chat_id)} beside the receipt"
        other = failed(ESTABLISHED, f"{beside}, expected {quoted(receipt.members.chat_id)}, which it names")
        return tuple(other if check.name == ESTABLISHED else check for check in checks)
    named = None if receipt is None else services.get(receipt.members.workload_keyset_digest)
    if named is None or named.ok:
        return checks
    # The receipt is of this very service: why that is not verified, its own checks say, and nothing follows here.
    unknown = skipped(ESTABLISHED, "the service whose keyset it names is not verified")
    return tuple(unknown if check.name == ESTABLISHED else check for check in checks)


def sessions_by_id(documents: tuple[str, ...]) -> dict[str, bytes]:
    """Each document under the id that its content gives; what is no document is nobody's."""
    found = {}
    for document in documents:
        raw = document.encode()
        try:
            found[session_id(parse_document(raw, what="the session"))] = raw
        except DocumentError:
            continue
    return found


def check_time(recorded: ServiceProof, moment: int, now: int) -> Check:
    """That the checks are as of a time which has been."""
    if moment < 0:
        return failed(TIME, f"got a bundle of {moment}, expected a time after 1970 (Unix seconds)")
    if moment > now + CLOCK_SKEW_S:
        return failed(TIME, f"got a bundle of {moment}, expected one from before now, {now} (Unix seconds)")
    whose = "the time that the bundle names" if moment == recorded.verified_at else "as was asked for"
    return passed(TIME, f"checked as of {moment} (Unix seconds), {whose}")


def read_bounded(path: Path) -> bytes:
    """The file's bytes. Raises ConfigError, DocumentError past 256 MiB."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"the bundle {path} cannot be read: {error.strerror}", remedy="Name a bundle file."
        ) from error
    if len(raw) > MAX_BUNDLE_BYTES:
        raise DocumentError(f"the bundle is larger than {MAX_BUNDLE_BYTES} bytes")
    return raw
