"""One honest exchange with a simulated service, and its proof, without IO."""

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from confide.attester.keys import LegacyKeys
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.result import Verification
from confide.protocol.legacy_report import attestation, legacy_report
from confide.protocol.signature import Algo, signature_text
from confide.protocol.statement import legacy_report_data
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.verifier.legacy import verify_answer

NOW = 1_800_000_000
SEED = b"\x21" * 32
NONCE = bytes(range(100, 132))
SENT, RECEIVED = b'{"messages":[]}', 'data: {"id":"chatcmpl-1"}\n\ndata: é\n\n'.encode()

Document = dict[str, Any]


@dataclass(frozen=True)
class Proof:
    """What a client has in hand after it asked. The documents are values here; `verify` sends them as JSON."""

    signature: object
    report: object
    anchors: Anchors
    algo: Algo = Algo.ECDSA
    sent: bytes = SENT
    received: bytes = RECEIVED
    nonce: bytes = NONCE
    now: int = NOW
    spki_sha256: bytes | None = None

    def but(self, **changes: Any) -> "Proof":
        return replace(self, **changes)

    @property
    def entry(self) -> Document:
        """A copy of the attestation that the report is made of."""
        assert isinstance(self.report, dict)
        copy: Document = json.loads(json.dumps(self.report["all_attestations"][0]))
        return copy

    def with_entry(self, **changes: object) -> "Proof":
        """With members of the attestation set, or left out where the value is `...`."""
        entry = {name: value for name, value in (self.entry | changes).items() if value is not ...}
        return self.but(report=legacy_report(entry, model_name="a/model"))

    def verify(self) -> Verification:
        return verify_answer(
            sent=self.sent,
            received=self.received,
            signature=encoded(self.signature),
            report=encoded(self.report),
            algo=self.algo,
            nonce=self.nonce,
            anchors=self.anchors,
            policy=TdxPolicy(),
            now=self.now,
            spki_sha256=self.spki_sha256,
        )


def encoded(document: object) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def build_proof(platform: SimulatedTdxPlatform, algo: Algo = Algo.ECDSA, *, spki: bytes | None = None) -> Proof:
    """The honest proof by a simulated service; `spki` makes it version 2."""
    keys = LegacyKeys.derive(SEED)
    text = signature_text(sha256(SENT).digest(), sha256(RECEIVED).digest())
    signature = {
        "text": text,
        "signature": keys.sign(text, algo),
        "signing_address": keys.address(algo),
        "signing_algo": algo.value,
    }
    report_data = legacy_report_data(keys.identity(algo), NONCE, spki_sha256=spki)
    entry = attestation(
        signing_address=keys.address(algo),
        signing_algo=algo,
        signing_public_key=keys.public_key_hex(algo),
        nonce=NONCE,
        quote=platform.quote(report_data),
        report_data=report_data,
        event_log=platform.event_log,
        vm_config=platform.vm_config,
        info=platform.info,
        simulated=True,
        collateral=platform.collateral(NOW),
        spki_sha256=spki,
    )
    anchors = Anchors.default().with_simulated(platform.root_der)
    report = legacy_report(entry, model_name="a/model")
    return Proof(signature, report, anchors, algo=algo, spki_sha256=spki)
