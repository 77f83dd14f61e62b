"""A service with the older attestation report as an upstream: version 2, whose quote binds the TLS key (contract 6).

Version 1 binds a signing key and no channel, so with it nobody could tell who reads a prompt: it is not accepted.
"""

import asyncio
from collections.abc import Callable

from confide.upstream.documents import Documents
from confide.upstream.kinds.aci import decisive
from confide.upstream.sessions import Shown, plain_facts
from confide.upstream.verified import DoesNotHold
from confide.verifier.appraisal import UP_TO_DATE
from confide.verifier.collateral import HeldCollateral
from confide.verifier.legacy import verify_legacy_report
from confide.verifier.policy import Policy

TCB = "tdx.tcb_status"


class LegacyAppraiser:
    """`now`: Unix seconds. `draw`: random bytes, for nonces. `collateral`: where to get what reports lack."""

    verifier_id = "confide/legacy-proxy/2"

    def __init__(
        self,
        documents: Documents,
        policy: Policy,
        *,
        now: Callable[[], int],
        draw: Callable[[int], bytes],
        collateral: HeldCollateral,
    ) -> None:
        self._documents = documents
        self._policy = policy
        self._now = now
        self._draw = draw
        self._collateral = collateral

    async def appraise(self) -> Shown:
        """See Appraiser.appraise."""
        nonce = self._draw(32)
        path = f"/v1/attestation/report?nonce={nonce.hex()}&version=2&include_tls_fingerprint=true"
        document = await self._documents.get(path)
        verified = await asyncio.to_thread(
            verify_legacy_report,
            document.body,
            nonce=nonce,
            policy=self._policy,
            now=self._now(),
            spki_sha256=document.spki_sha256,
            collateral=self._collateral,
        )
        if not verified.ok:
            raise DoesNotHold(f"{decisive(verified.checks, verified.required)} did not pass")
        tcb = verified.facts.get(TCB)
        return Shown(
            pins=frozenset({document.spki_sha256}),
            claims=verified.claims,
            refuted={} if tcb in (None, UP_TO_DATE) else {"tcb_up_to_date": f"the platform's TCB status is {tcb}"},
            facts=plain_facts(verified.facts, (TCB,)),
            identity={"signing_address": verified.signing_address},
            evidence=document.body,
            simulated=verified.simulated,
        )
