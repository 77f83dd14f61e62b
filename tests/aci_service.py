"""A service of the simulated platform as the documents that a relying party sees of it: reports, receipts, sessions."""

import json
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from typing import Any, Literal

from aci_documents import session as session_document
from confide.attester.base import Evidence
from confide.attester.epochs import Epoch, KeysetEpochs
from confide.attester.keys import ReceiptSigner, WorkloadKeys
from confide.client.receipts import Exchange
from confide.evidence.result import Check
from confide.protocol.canonical import canonical, digest_of
from confide.protocol.keyset import Keyset, TlsKey
from confide.protocol.report import SourceProvenance, aci_report
from confide.protocol.session import session_id
from confide.protocol.statement import aci_report_data
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.verifier.appraisal import Connection, ServiceVerification, verify_report
from confide.verifier.policy import Policy
from proof_builders import NOW, SEED

Document = dict[str, Any]

NONCE = "c4" * 32
SPKI, OTHER_SPKI = b"\xaa" * 32, b"\xbb" * 32
HOST = "api.example.com"
URL = f"https://{HOST}"
LIFETIME_S = 30 * 24 * 60 * 60
ENDPOINT = "/v1/chat/completions"
RECEIPT_ID = "rcpt-00112233445566778899aabb"
CHAT_ID = "chatcmpl-1"
SENT, RECEIVED = b'{"model":"m","messages":[]}', 'data: {"id":"chatcmpl-1"}\n\ndata: é\n\n'.encode()
PROVENANCE = SourceProvenance(repo_url="https://git.example.com/a", repo_commit="ab" * 20)

SAME_KEY: tuple[TlsKey, ...] = (TlsKey(SPKI.hex()),)


@cache
def simulated(tcb_status: str = "UpToDate") -> SimulatedTdxPlatform:
    return SimulatedTdxPlatform(SEED, now=NOW, tcb_status=tcb_status)


@cache
def epoch_at(now: int = NOW, tls_keys: tuple[TlsKey, ...] = SAME_KEY) -> Epoch:
    epochs = KeysetEpochs(WorkloadKeys.derive(SEED), lifetime_s=LIFETIME_S, subject=None, tls_keys=tls_keys)
    return epochs.at(now)


@dataclass(frozen=True)
class AciService:
    """An honest service; `but` makes another one. `evidence`: members to set in its reports, `...` leaves one out."""

    epoch: Epoch = field(default_factory=epoch_at)
    platform: SimulatedTdxPlatform = field(default_factory=simulated)
    serving: Literal["direct", "aggregator"] = "direct"
    provenance: SourceProvenance = PROVENANCE
    tee_type: str = "tdx"
    now: int = NOW
    evidence: Document = field(default_factory=dict)

    def but(self, **changes: Any) -> "AciService":
        return replace(self, **changes)

    @property
    def keyset(self) -> Keyset:
        return self.epoch.keyset

    @property
    def digest(self) -> str:
        return self.epoch.digest

    @property
    def signer(self) -> ReceiptSigner:
        return self.epoch.signer

    def document(self, nonce: str | None = NONCE) -> Document:
        """The report for a nonce, as JSON parsing gives it."""
        report_data = aci_report_data(self.digest, nonce)
        given = Evidence(
            tee_type=self.tee_type,
            quote=self.platform.quote(report_data),
            report_data=report_data,
            event_log=self.platform.event_log,
            vm_config=self.platform.vm_config,
            info=dict(self.platform.info),
            collateral=self.platform.collateral(self.now),
            simulated=True,
        ).aci_members()
        document = aci_report(
            keyset=self.keyset,
            nonce=nonce,
            tee_type=self.tee_type,
            provenance=self.provenance,
            evidence={name: value for name, value in (given | self.evidence).items() if value is not ...},
            serving=self.serving,
        )
        copy: Document = json.loads(json.dumps(document))
        return copy

    def report(self, nonce: str | None = NONCE) -> bytes:
        return json.dumps(self.document(nonce)).encode()

    def receipt_document(self, **changes: Any) -> Document:
        """A receipt of the exchange of SENT and RECEIVED, unsigned. `events`: the whole event log."""
        sent, received = digest_of(SENT), digest_of(RECEIVED)
        events = [
            {"type": "request.received", "body_hash": sent},
            {"type": "request.forwarded", "body_hash": sent},
            *([self.hop()] if self.serving == "aggregator" else []),
            {"type": "response.returned", "body_hash": received},
            {"type": "response.outcome", "outcome": "complete"},
        ]
        members: Document = {
            "api_version": "aci/1",
            "receipt_id": RECEIPT_ID,
            "chat_id": CHAT_ID,
            "model": "m",
            "workload_keyset_digest": self.digest,
            "endpoint": ENDPOINT,
            "method": "POST",
            "served_at": self.now,
            "event_log": changes.pop("events", events),
            "key_id": self.signer.key_id,
        }
        return members | changes

    def receipt(self, *others: ReceiptSigner, **changes: Any) -> bytes:
        """The same, signed; by another than its own signer where one is given."""
        document = self.receipt_document(**changes)
        [signer] = others or (self.signer,)
        signature = signer.sign(canonical(document)).hex()
        return json.dumps({**document, "signature": signature}).encode()

    def hop(self, **changes: Any) -> Document:
        """The event of a second hop that was verified, in the session of `session`."""
        members = {
            "type": "upstream.verified",
            "result": "verified",
            "required": True,
            "model_id": "m",
            "session_id": session_id(self.session()),
        }
        return members | changes

    def session(self, **changes: Any) -> Document:
        """The document of the session with the second hop."""
        return session_document() | {"established_at": self.now - 60, "expires_at": self.now + 60} | changes

    def verified(self, policy: Policy, nonce: str | None = NONCE, **changes: Any) -> ServiceVerification:
        """What a relying party makes of the report, over TLS to SPKI unless `changes` says otherwise."""
        return appraised(self.report(nonce), policy, **({"nonce": nonce, "now": self.now} | changes))


def appraised(raw: bytes, policy: Policy, **changes: Any) -> ServiceVerification:
    arguments: Document = {
        "nonce": NONCE,
        "now": NOW,
        "connection": Connection(host=HOST, spki_sha256=SPKI),
        "url": URL,
    }
    return verify_report(raw, policy=policy, **(arguments | changes))


def exchange(**changes: Any) -> Exchange:
    """What the caller knows of the exchange of SENT and RECEIVED."""
    members: Document = {
        "endpoint": ENDPOINT,
        "receipt_id": RECEIPT_ID,
        "request_sha256": sha256(SENT).digest(),
        "response_sha256": sha256(RECEIVED).digest(),
    }
    return Exchange(**(members | changes))


def named(checks: tuple[Check, ...], name: str) -> Check:
    """The one check of this name."""
    [found] = [check for check in checks if check.name == name]
    return found
