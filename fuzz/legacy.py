"""Fuzz the legacy proof: any signature document and report give checks, and an answer is verified only as what the
honest proof shows.
"""

import json
import sys
from hashlib import sha256

from confide.attester.keys import LegacyKeys
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.result import Verdict, Verification
from confide.protocol.legacy_report import attestation, legacy_report
from confide.protocol.signature import Algo, signature_text
from confide.protocol.statement import legacy_report_data
from confide.simulator.measurements import COMPOSE_HASH
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.verifier.legacy import claimed_signer, verify_answer
from confide.verifier.software import SOFTWARE
from fuzz._bytes import patched
from fuzz._documents import changed

NOW = 1_800_000_000
NONCE, SPKI = bytes(range(32)), b"\xaa" * 32
SENT, RECEIVED = b'{"messages":[]}', b'{"id":"chatcmpl-1"}'
PLATFORM, KEYS = SimulatedTdxPlatform(b"\x11" * 32, now=NOW), LegacyKeys.derive(b"\x11" * 32)
ANCHORS = Anchors.of().with_simulated(PLATFORM.root_der)


def signature_document(algo: Algo) -> dict[str, object]:
    """What the service says of the exchange (wire contract 5)."""
    text = signature_text(sha256(SENT).digest(), sha256(RECEIVED).digest())
    return {
        "text": text,
        "signature": KEYS.sign(text, algo),
        "signing_address": KEYS.address(algo),
        "signing_algo": algo.value,
    }


def entry(algo: Algo) -> dict[str, object]:
    """The attestation of the key that signs in this way (wire contract 6.1)."""
    report_data = legacy_report_data(KEYS.identity(algo), NONCE, spki_sha256=SPKI)
    return attestation(
        signing_address=KEYS.address(algo),
        signing_algo=algo,
        signing_public_key=KEYS.public_key_hex(algo),
        nonce=NONCE,
        quote=PLATFORM.quote(report_data),
        report_data=report_data,
        event_log=PLATFORM.event_log,
        vm_config=PLATFORM.vm_config,
        info=PLATFORM.info,
        simulated=True,
        collateral=PLATFORM.collateral(NOW),
        spki_sha256=SPKI,
    )


ALGOS = tuple(Algo)
SIGNATURES = {algo: signature_document(algo) for algo in ALGOS}
REPORTS = {algo: legacy_report(entry(algo)) for algo in ALGOS}


def verified(algo: Algo, signature: bytes, report: bytes, *, received: bytes = RECEIVED) -> Verification:
    result = verify_answer(
        sent=SENT,
        received=received,
        signature=signature,
        report=report,
        algo=algo,
        nonce=NONCE,
        anchors=ANCHORS,
        policy=TdxPolicy(),
        now=NOW,
        spki_sha256=SPKI,
    )
    if not all(check.reason.isprintable() for check in result.checks):
        raise AssertionError("a reason is not fit for a terminal")
    return result


def written(document: object) -> bytes:
    return json.dumps(document).encode()


HONEST = {algo: verified(algo, written(SIGNATURES[algo]), written(REPORTS[algo])) for algo in ALGOS}
if any(result.verdict is not Verdict.VERIFIED for result in HONEST.values()):
    raise AssertionError("the honest proof was not accepted")


def fuzz_one(data: bytes) -> None:
    """One input: as either document, and as changes to an honest one in its text and in its members."""
    algo, is_report = (ALGOS[data[0] & 1], bool(data[0] & 2)) if data else (ALGOS[0], False)
    signature, report = written(SIGNATURES[algo]), written(REPORTS[algo])
    honest, document = (report, REPORTS[algo]) if is_report else (signature, SIGNATURES[algo])
    claimed_signer(data)
    for text in (data, patched(honest, data[1:]), written(changed(document, iter(data[1:])))):
        judge(algo, *((signature, text) if is_report else (text, report)))


def judge(algo: Algo, signature: bytes, report: bytes) -> None:
    """Whatever verifies is the honest exchange with the honest service."""
    result = verified(algo, signature, report)
    software = next(check for check in result.checks if check.name == SOFTWARE)
    if result.has_passed({SOFTWARE}) and COMPOSE_HASH.hex() not in software.reason:
        raise AssertionError("another application passed for the measured one")
    if result.verdict is not Verdict.VERIFIED:
        return
    if result.facts != HONEST[algo].facts:
        raise AssertionError("another platform was accepted")
    if verified(algo, signature, report, received=b"another answer").verdict is not Verdict.NOT_VERIFIED:
        raise AssertionError("a proof holds for two answers")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
