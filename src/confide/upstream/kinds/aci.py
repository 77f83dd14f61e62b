"""An `aci/1` service as an upstream, another Confide for example: its report decides whether it is sent prompts.

What is pinned are the TLS keys that its attested keyset lists.
"""

from dataclasses import dataclass

from confide.upstream.appraising import TCB, ReportAppraiser, refuted, require
from confide.upstream.documents import Document
from confide.upstream.sessions import Shown, plain_facts
from confide.verifier.appraisal import Connection, verify_report

FACTS = (TCB, "keyset_digest", "serving")


@dataclass(frozen=True, kw_only=True)
class AciAppraiser(ReportAppraiser):
    """`host`: as it is dialled."""

    verifier_id = "confide/aci/1"
    path = "/v1/aci/attestation?nonce={nonce}"

    host: str

    def judge(self, document: Document, nonce: bytes, now: int) -> Shown:
        """See ReportAppraiser.judge."""
        verified = verify_report(
            document.body,
            nonce=nonce.hex(),
            policy=self.policy,
            now=now,
            connection=Connection(host=self.host, spki_sha256=document.spki_sha256),
            url=self.documents.root,
            supplied=self.collateral.supply(document.body, self.policy, now),
        )
        require(verified)
        assert verified.report is not None
        return Shown(
            pins=verified.report.keyset.tls_pins(self.host),
            claims=verified.claims,
            refuted=refuted(verified),
            facts=plain_facts(verified.facts, FACTS),
            evidence=document.body,
            not_after=verified.report.keyset.not_after,
            simulated=verified.simulated,
        )
