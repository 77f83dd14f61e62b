"""An `aci/1` service as an upstream, another Confide for example: its report decides whether it is sent prompts.

The report is asked for with a fresh nonce over a connection whose key is noted, and judged by the same code as a client
would judge it (`verifier/appraisal.py`). What is pinned are the TLS keys that its attested keyset lists.
"""

import asyncio
from collections.abc import Callable

from confide.evidence.result import Check, Status
from confide.upstream.documents import Document, Documents
from confide.upstream.sessions import Shown, plain_facts
from confide.upstream.verified import DoesNotHold
from confide.verifier.appraisal import UP_TO_DATE, Connection, ServiceVerification, verify_report
from confide.verifier.collateral import HeldCollateral
from confide.verifier.policy import Policy

FACTS = ("tdx.tcb_status", "keyset_digest", "serving")
TCB = "tdx.tcb_status"


class AciAppraiser:
    """`host`: as it is dialled. `now`: Unix seconds. `draw`: random bytes, for nonces. `collateral`: where to get what
    reports lack.
    """

    verifier_id = "confide/aci/1"

    def __init__(
        self,
        documents: Documents,
        policy: Policy,
        *,
        host: str,
        now: Callable[[], int],
        draw: Callable[[int], bytes],
        collateral: HeldCollateral,
    ) -> None:
        self._documents = documents
        self._policy = policy
        self._host = host
        self._now = now
        self._draw = draw
        self._collateral = collateral

    async def appraise(self) -> Shown:
        """See Appraiser.appraise."""
        nonce = self._draw(32).hex()
        document = await self._documents.get(f"/v1/aci/attestation?nonce={nonce}")
        verified = await asyncio.to_thread(self._judge, document, nonce, self._now())
        if not verified.ok:
            raise DoesNotHold(f"{decisive(verified.checks, verified.required)} did not pass")
        return shown(verified, document.body, self._host)

    def _judge(self, document: Document, nonce: str, now: int) -> ServiceVerification:
        """Blocks, where the report lacks something that a vendor has."""
        return verify_report(
            document.body,
            nonce=nonce,
            policy=self._policy,
            now=now,
            connection=Connection(host=self._host, spki_sha256=document.spki_sha256),
            url=self._documents.root,
            supplied=self._collateral.supply(document.body, self._policy, now),
        )


def decisive(checks: tuple[Check, ...], required: frozenset[str]) -> str:
    """The name of the check that decided: the first that failed, or else a required one that did not pass.

    Its reason stays here: a receipt is read by others, and reasons hold keys and names of the upstream.
    """
    failed = [check.name for check in checks if check.status is Status.FAIL]
    skipped = [check.name for check in checks if check.name in required and check.status is Status.SKIP]
    absent = sorted(required - {check.name for check in checks})
    return (failed + skipped + absent + ["a check"])[0]


def shown(verified: ServiceVerification, evidence: bytes, host: str) -> Shown:
    """`verified`: one that is ok."""
    assert verified.report is not None
    tcb = verified.facts.get(TCB)
    refuted = {} if tcb in (None, UP_TO_DATE) else {"tcb_up_to_date": f"the platform's TCB status is {tcb}"}
    return Shown(
        pins=verified.report.keyset.tls_pins(host),
        claims=verified.claims,
        refuted=refuted,
        facts=plain_facts(verified.facts, FACTS),
        evidence=evidence,
        not_after=verified.report.keyset.not_after,
        simulated=verified.simulated,
    )
