"""A service with the older attestation report as an upstream: version 2, whose quote binds the TLS key (contract 6).

Version 1 binds a signing key and no channel, so with it nobody could tell who reads a prompt: it is not accepted.
"""

from dataclasses import dataclass

from confide.upstream.appraising import TCB, ReportAppraiser, refuted, require
from confide.upstream.documents import Document
from confide.upstream.sessions import Shown, plain_facts
from confide.verifier.legacy_report import verify_legacy_report


@dataclass(frozen=True)
class LegacyAppraiser(ReportAppraiser):
    """What is pinned is the TLS key of the connection, which the quote has to bind."""

    verifier_id = "confide/legacy-proxy/2"
    path = "/v1/attestation/report?nonce={nonce}&version=2&include_tls_fingerprint=true"

    def judge(self, document: Document, nonce: bytes, now: int) -> Shown:
        """See ReportAppraiser.judge."""
        verified = verify_legacy_report(
            document.body,
            nonce=nonce,
            policy=self.policy,
            now=now,
            spki_sha256=document.spki_sha256,
            collateral=self.collateral,
        )
        require(verified)
        return Shown(
            pins=frozenset({document.spki_sha256}),
            claims=verified.claims,
            refuted=refuted(verified),
            facts=plain_facts(verified.facts, (TCB,)),
            identity={"signing_address": verified.signing_address},
            evidence=document.body,
            simulated=verified.simulated,
        )
