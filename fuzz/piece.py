"""Fuzz evidence in whatever form it was kept: any bytes are refused with PieceError or taken for one piece, and what
verifies says what the honest piece of its kind says.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from confide.evidence.piece import Piece, PieceError, certificates_of, describe, recognise, root_der, verify_piece
from confide.evidence.policy import Anchors, GpuPolicy, SnpPolicy, TdxPolicy
from confide.evidence.result import Verdict, Verification
from confide.evidence.snp_chain import split_certificates
from confide.simulator.gpu import SimulatedGpu, gpu_payload
from confide.simulator.snp import SimulatedSnpPlatform
from confide.simulator.tdx import SimulatedTdxPlatform
from fuzz._bytes import patched
from fuzz._documents import changed

NOW = 1_800_000_000
SEED = b"\x11" * 32
DATA, NONCE = bytes(64), bytes(range(32))
PLATFORM, CHIP = SimulatedTdxPlatform(SEED, now=NOW), SimulatedSnpPlatform(SEED, now=NOW, serial_zero=True)
GPU = SimulatedGpu(bytes(32))
ANCHORS = Anchors.of().with_simulated(PLATFORM.root_der).pinning(CHIP.root_der).pinning(GPU.root_der)

QUOTE, REPORT = PLATFORM.quote(DATA), CHIP.report(DATA)
ENVELOPE = CHIP.dstack_envelope(DATA, b'{"version":3}')
CERTIFIED = CHIP.dstack_envelope(DATA, b'{"version":3}', (CHIP.vcek_der, *split_certificates(CHIP.chain_der)))
COLLATERAL = PLATFORM.collateral(NOW)
PAYLOAD = json.loads(gpu_payload([GPU], NONCE))


@dataclass(frozen=True)
class Form:
    """An honest piece as it may have been kept, with the collateral that did not come along."""

    content: bytes
    collateral: bytes | None = None


CERTIFICATES = CHIP.vcek_pem.encode() + CHIP.chain_pem.encode()
DOCUMENTS = (
    {"quote": QUOTE.hex(), "event_log": "[]", "collateral": COLLATERAL},
    {"attestation": {"evidence": {"snp_report": REPORT.hex(), "vcek": CHIP.vcek_pem, "cert_chain": CHIP.chain_pem}}},
    PAYLOAD,
    {"nonce": NONCE.hex(), **GPU.entry(NONCE)},
)
FORMS = (
    Form(QUOTE, json.dumps(COLLATERAL).encode()),
    Form(REPORT, CERTIFICATES),
    Form(REPORT.hex().encode(), CERTIFICATES),
    Form(ENVELOPE, CERTIFICATES),
    Form(CERTIFIED),
    Form(json.dumps([entry | {"nonce": NONCE.hex()} for entry in PAYLOAD["evidence_list"]]).encode()),
    *(Form(json.dumps(document).encode()) for document in DOCUMENTS),
)


def verified(piece: Piece, collateral: bytes | None) -> Verification:
    return verify_piece(
        piece,
        collateral=collateral,
        anchors=ANCHORS,
        now=NOW,
        tdx=TdxPolicy(),
        snp=SnpPolicy(),
        gpu=GpuPolicy(),
        nonce=NONCE if piece.kind == "nvidia" else None,
        report_data=DATA,
    )


HONEST = [verified(recognise(form.content), form.collateral) for form in FORMS]
FACTS = [result.facts for result in HONEST]
if any(result.verdict is not Verdict.VERIFIED for result in HONEST):
    raise AssertionError("honest evidence was not accepted")


def fuzz_one(data: bytes) -> None:
    """One input: as a piece, a root and collateral, and as a change to an honest piece or to its collateral."""
    form = FORMS[data[0] % len(FORMS)] if data else FORMS[0]
    judge(Form(data))
    judge(Form(patched(form.content, data[1:]), form.collateral))
    if form.collateral is not None:
        judge(Form(form.content, patched(form.collateral, data[1:])))
    judge(Form(json.dumps(document(iter(data))).encode()))
    for pem in (data, patched(PLATFORM.root_pem.encode(), data), patched(CHIP.root_der, data)):
        with suppress(PieceError):
            root_der(pem)
        with suppress(PieceError):
            certificates_of(pem)


def document(choices: Iterator[int]) -> dict[str, object]:
    return changed(DOCUMENTS[next(choices, 0) % len(DOCUMENTS)], choices)


def judge(form: Form) -> None:
    """Refused in words, or described and judged."""
    try:
        piece = recognise(form.content)
    except PieceError as error:
        fit(str(error))
        return
    with suppress(PieceError):
        json.dumps(describe(piece))
    try:
        result = verified(piece, form.collateral)
    except PieceError as error:
        fit(str(error))
        return
    for check in result.checks:
        fit(check.reason)
    json.dumps(result.facts)
    if result.verdict is Verdict.VERIFIED and result.facts not in FACTS:
        raise AssertionError("another piece was accepted")


def fit(reason: str) -> None:
    if not reason.isprintable():
        raise AssertionError("a reason is not fit for a terminal")


def main() -> None:
    """Run until atheris stops; its options are the command line's."""
    import atheris

    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()
