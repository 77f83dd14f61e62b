"""The relying party: what it asks a service for, and when it believes an answer. Sans-IO (RFC 9334: relying party).

Its methods that need the network are steps (`client/steps.py`), which the two transports (`client/transport.py`) carry
out, one blocking, one not, and decide nothing. A service is verified once for each keyset.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from urllib.parse import quote

from confide.client.known_service import KnownService, not_after_of
from confide.client.proof import Proof, answer_proof
from confide.client.receipts import ESTABLISHED, Exchange, verify_receipt
from confide.client.steps import Consult, Fetch, Fetched, Steps
from confide.client.verdict import NotNow, require_answer, require_service
from confide.errors import CannotTell, VerificationError
from confide.evidence.result import failed, quoted
from confide.protocol.canonical import BARE_DIGEST, DocumentError
from confide.protocol.receipt import parse_receipt
from confide.verifier.appraisal import Connection, ServiceVerification, verify_report
from confide.verifier.collateral import NOTHING, NOTHING_HELD, HeldCollateral, Supplied
from confide.verifier.policy import Policy

SESSIONS_MOST = 8  # cited by one receipt
TOO_MANY_REQUESTS = 429
RECEIPT_ID_MOST = 200


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


def cited_sessions(raw: bytes) -> tuple[str, ...]:
    """Ids of sessions in a foreign receipt, a few at most."""
    try:
        events = parse_receipt(raw).upstream
    except DocumentError:
        return ()
    ids = [event.session_id for event in events if event.session_id and BARE_DIGEST.fullmatch(event.session_id)]
    return tuple(dict.fromkeys(ids))[:SESSIONS_MOST]
