"""The relying party: what it asks a service for, and when it believes an answer. Sans-IO (RFC 9334: relying party).

Its methods that need the network are generators: each yields a Fetch and gets a Fetched, or a Consult and gets what was
Supplied, and returns what was verified or raises VerificationError. The two transports (`client/transport.py`) carry
these out, one blocking, one not, and decide nothing.

A service is verified once for each keyset. Verified keysets are remembered, so that a stream which began before a
rotation can be proven after it.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote

from confide.client.proof import Proof, answer_proof
from confide.client.receipts import ESTABLISHED, Exchange, verify_receipt
from confide.errors import CannotTell, ConfideError, VerificationError
from confide.evidence.result import Status, Verification, failed, quoted
from confide.evidence.snp import CHAIN as SNP_CHAIN
from confide.evidence.tdx import COLLATERAL
from confide.protocol.canonical import BARE_DIGEST, DocumentError
from confide.protocol.receipt import parse_receipt
from confide.verifier.appraisal import Connection, ServiceVerification, verify_report
from confide.verifier.collateral import NOTHING, NOTHING_HELD, HeldCollateral, Supplied
from confide.verifier.policy import Policy

REMEMBERED = 8  # keysets of one service
TAKEN_MOST = 16_384  # receipts of one service that have proven an answer
SESSIONS_MOST = 8  # cited by one receipt
EXPIRY_MARGIN_S = 300
TOO_MANY_REQUESTS = 429
RECEIPT_ID_MOST = 200

T = TypeVar("T")


@dataclass(frozen=True)
class Fetch:
    """A document to GET. `path`: under the service's own root, with its query. `is_first`: the connection may have any
    key, and the one it had is to be told. `with_credential`: as the request had it.
    """

    path: str
    is_first: bool = False
    with_credential: bool = False


@dataclass(frozen=True)
class Fetched:
    """What came. `spki_sha256`: of the key on that very connection (32 bytes), None for plain HTTP."""

    status: int
    body: bytes
    spki_sha256: bytes | None


@dataclass(frozen=True)
class Consult:
    """Something to be got from others than the service. `run` blocks and may open connections; it raises nothing."""

    run: Callable[[], Supplied]


Steps = Generator[Fetch | Consult, Any, T]


class NotVerified(VerificationError):
    """What was required did not hold. `verification`: all that was checked."""

    def __init__(self, message: str, *, check: str, remedy: str, verification: Verification) -> None:
        super().__init__(message, check=check, remedy=remedy)
        self.verification = verification


class NotNow(CannotTell):
    """The service has no report at the moment. Nothing was sent to it; it may be asked again."""


@dataclass
class KnownService:
    """One service as this relying party knows it. `root`: scheme, host, port and path before `/v1/`.

    `keysets`: what was verified, oldest first; replaced whole, never changed, as several threads read it. `taken`: the
    receipts that have proven an answer.
    """

    root: str
    host: str
    keysets: Mapping[str, ServiceVerification] = field(default_factory=dict)
    current: ServiceVerification | None = None
    renew_at: int = 0
    taken: dict[str, object] = field(default_factory=dict)

    @property
    def pins(self) -> frozenset[bytes]:
        """SPKI digests that a connection may show, from the verified keyset; none where it lists no TLS key."""
        if self.current is None or self.current.report is None:
            return frozenset()
        return self.current.report.keyset.tls_pins(self.host)

    @property
    def digest(self) -> str | None:
        """The digest of the keyset that was verified last."""
        report = None if self.current is None else self.current.report
        return None if report is None else report.keyset_digest

    def knows(self, digest: str) -> bool:
        """Whether this keyset was verified."""
        return digest in self.keysets

    def take(self, receipt_id: str) -> bool:
        """Whether this receipt proves an exchange for the first time; older ones than are remembered say when."""
        mine = object()
        is_first = self.taken.setdefault(receipt_id, mine) is mine
        if len(self.taken) > TAKEN_MOST:
            with contextlib.suppress(RuntimeError, StopIteration):  # another thread takes one just now
                self.taken.pop(next(iter(self.taken)), None)
        return is_first

    def standing(self, now: int) -> Mapping[str, ServiceVerification]:
        """The keysets that have not expired: at `not_after` a verifier stops accepting everything (7.1)."""
        return {digest: each for digest, each in self.keysets.items() if now < not_after_of(each)}

    def remember(self, verified: ServiceVerification, now: int) -> None:
        """`verified`: one that is ok. `now`: Unix seconds."""
        assert verified.report is not None
        not_after = not_after_of(verified)
        digest = verified.report.keyset_digest
        others = [(each, known) for each, known in self.keysets.items() if each != digest]
        self.keysets = dict([*others, (digest, verified)][-REMEMBERED:])
        self.current = verified
        # In good time before it expires; a keyset with a short life is not asked for all the time.
        self.renew_at = not_after - min(EXPIRY_MARGIN_S, (not_after - now) // 10)


class RelyingParty:
    """Holds the policy. `now`: Unix seconds. `draw`: random bytes, for nonces. `collateral`: where to get what reports
    lack.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        now: Callable[[], int],
        draw: Callable[[int], bytes],
        collateral: HeldCollateral = NOTHING_HELD,
    ) -> None:
        self.policy = policy
        self._now = now
        self._draw = draw
        self._collateral = collateral

    def now(self) -> int:
        """Unix seconds."""
        return self._now()

    def is_due(self, service: KnownService) -> bool:
        """Whether the service has to be verified before anything is sent to it."""
        return service.current is None or self._now() >= service.renew_at

    def still_stands(self, service: KnownService) -> bool:
        """Whether the keyset that was verified last has not expired, though it may be time to ask again."""
        return service.current is not None and self._now() < not_after_of(service.current)

    def appraise(self, service: KnownService) -> Steps[ServiceVerification]:
        """Ask for a report with a fresh nonce and check it; the result says how that ended.

        Raises CannotTell when there is no report to check, NotNow when there may be one shortly.
        """
        nonce = self._draw(32).hex()
        fetched: Fetched = yield Fetch(f"/v1/aci/attestation?nonce={nonce}", is_first=True)
        if fetched.status == TOO_MANY_REQUESTS or fetched.status >= 500:
            raise NotNow(
                f"the service answered status {fetched.status} when it was asked for its attestation report",
                remedy="Nothing was sent to it. Try again shortly.",
            )
        if fetched.status != 200:
            raise CannotTell(
                f"the service answered status {fetched.status} when it was asked for its attestation report",
                remedy="Check the address: a service that proves its answers has /v1/aci/attestation.",
            )
        return verify_report(
            fetched.body,
            nonce=nonce,
            policy=self.policy,
            now=self._now(),
            connection=Connection(host=service.host, spki_sha256=fetched.spki_sha256),
            url=service.root,
            supplied=(yield from self._supplied(fetched.body)),
        )

    def _supplied(self, report: bytes) -> Steps[Supplied]:
        """What the report lacks, if it lacks anything: most do not."""
        if not self._collateral.is_wanted(report, self.policy):
            return NOTHING
        supplied: Supplied = yield Consult(partial(self._collateral.supply, report, self.policy, self._now()))
        return supplied

    def establish(self, service: KnownService) -> Steps[ServiceVerification]:
        """The same, and remember it. Raises VerificationError unless the policy accepts the service, or NotNow."""
        try:
            verified = yield from self.appraise(service)
        except NotNow:
            raise
        except CannotTell as error:
            raise VerificationError(f"id-1: {error.message}", check="id-1", remedy=error.remedy) from error
        require_service(verified)
        service.remember(verified, self._now())
        return verified

    def prove(
        self,
        service: KnownService,
        *,
        endpoint: str,
        receipt_id: str | None,
        request_sha256: bytes,
        response_sha256: bytes,
        status: int,
        sent_at: int | None = None,
        request: bytes | None = None,
        response: bytes | None = None,
    ) -> Steps[Proof]:
        """Fetch the receipt of an exchange and check it. Raises VerificationError unless it proves the exchange.

        Digests: SHA-256, 32 bytes. `sent_at`: when the request was sent, Unix seconds. `request`, `response`: bodies
        that a bundle is to hold, or None.
        """
        if receipt_id is None or not names_receipt(receipt_id):
            raise VerificationError(
                "receipt-1: got no X-Receipt-Id that can be asked for, expected one: nothing proves the answer",
                check="receipt-1",
                remedy="Do not rely on this answer.",
            )
        fetched: Fetched = yield Fetch(f"/v1/aci/receipts/{quote(receipt_id, safe='')}", with_credential=True)
        if fetched.status != 200:
            raise VerificationError(
                f"receipt-1: got status {fetched.status} for the receipt {quoted(receipt_id)}, expected the receipt",
                check="receipt-1",
                remedy="Do not rely on this answer.",
            )
        exchange = Exchange(
            endpoint=endpoint,
            receipt_id=receipt_id,
            request_sha256=request_sha256,
            response_sha256=response_sha256,
            status=status,
            sessions=(yield from self._sessions(fetched.body)),
            sent_at=sent_at,
        )
        standing = service.standing(self._now())
        checks, receipt = verify_receipt(fetched.body, exchange, services=standing, policy=self.policy)
        digest = None if receipt is None else receipt.members.workload_keyset_digest
        shown = standing.get(digest or "", service.current)
        assert shown is not None
        proof = answer_proof(
            shown, checks, receipt, fetched.body, exchange, policy=self.policy, request=request, response=response
        )
        if proof.ok and not service.take(receipt_id):
            again = failed(ESTABLISHED, f"got the receipt {quoted(receipt_id)} a second time, expected one of its own")
            proof = replace(proof, checks=tuple(again if each.name == ESTABLISHED else each for each in proof.checks))
        require_answer(proof)
        return proof

    def _sessions(self, receipt: bytes) -> Steps[Mapping[str, bytes]]:
        """The session documents that the receipt cites, those that are there."""
        sessions: dict[str, bytes] = {}
        for session_id in cited_sessions(receipt):
            fetched: Fetched = yield Fetch(f"/v1/aci/sessions/{session_id}")
            if fetched.status == 200:
                sessions[session_id] = fetched.body
        return MappingProxyType(sessions)


def names_receipt(text: str) -> bool:
    """Whether a header's value can be the name of a receipt: it becomes one step of a path."""
    return text.isascii() and text.strip(".") != "" and len(text) <= RECEIPT_ID_MOST


def not_after_of(verified: ServiceVerification) -> int:
    """When its keyset expires, Unix seconds."""
    assert verified.report is not None
    return verified.report.keyset.not_after


def cited_sessions(raw: bytes) -> tuple[str, ...]:
    """Ids of sessions in a foreign receipt, a few at most."""
    try:
        events = parse_receipt(raw).upstream
    except DocumentError:
        return ()
    ids = [event.session_id for event in events if event.session_id and BARE_DIGEST.fullmatch(event.session_id)]
    return tuple(dict.fromkeys(ids))[:SESSIONS_MOST]


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


def reason_of(failure: VerificationError) -> str:
    """Why the check that the failure names did not hold, without the name."""
    _, is_named, reason = failure.message.partition(f"{failure.check}: ")
    return reason if is_named else failure.message


def shown(failure: VerificationError, now: int) -> Verification:
    """The failure as a result: all that was checked, or where that is not known the one check that it names.

    `now`: Unix seconds.
    """
    if isinstance(failure, NotVerified):
        return failure.verification
    return Verification(now, (failed(failure.check, reason_of(failure)),), required=frozenset({failure.check}))


def refusal(verified: Verification, what: str, remedy: str) -> NotVerified:
    """The error that names the check which decided: the first that failed, else the first required one that did not
    pass, else the required one that is not there.
    """
    wrong = [check for check in verified.checks if check.status is Status.FAIL]
    wrong += [check for check in verified.checks if check.name in verified.required and check.status is Status.SKIP]
    if wrong:
        name, reason = wrong[0].name, wrong[0].reason
    else:
        name = min(verified.required - {check.name for check in verified.checks}, default="id-1")
        reason = "this check did not run"
    return NotVerified(f"{what}: {name}: {reason}", check=name, remedy=remedy, verification=verified)


def drive(steps: Steps[T], fetch: Callable[[Fetch], Fetched]) -> T:
    """Carry out the steps, blocking."""
    try:
        wanted = next(steps)
        while True:
            try:
                fetched = wanted.run() if isinstance(wanted, Consult) else fetch(wanted)
            except ConfideError as error:
                wanted = steps.throw(error)
            else:
                wanted = steps.send(fetched)
    except StopIteration as done:
        result: T = done.value
        return result
