"""Did a TEE's key sign exactly this question and this answer? (wire contract 9.1 and 9.2)

On entry: the caller kept the bytes that it sent and received, drew `nonce` after the answer was there, and decides
`anchors`, `policy` and `now`. Everything else came from the peer and may be anything. What must be shown, in order:

 1. request-hash         the signed text names the bytes that were sent
 2. response-hash        and the bytes that were received
 3. signature            the text is signed by the key behind its signing address
 4. signer               the report has an attestation of that very address
 5. tdx.*                the quote in it is genuine, under a root that the caller trusts (`evidence.tdx`)
 6. binding.report-data  the verified quote holds that address and OUR nonce, and the TLS key when there was one
 7. nonce                the attestation says that it answers our nonce
 8. software             the application that the report shows is the one that was measured
 9. gpu                  GPU evidence answers our nonce
10. channel              the TLS key that the connection had is the one that the report names

On exit: with 1 to 7 passed, whoever holds a key of that TEE now vouches for the exchange. NOT shown: that the quote
existed when the answer was signed, that the software is good (8 only shows what it is), and, without TLS, that
nobody read along. Documents are never believed for being well-formed: what cannot be read is a check that failed.
"""

from hashlib import sha256
from hmac import compare_digest

import msgspec

from confide.collateral.tdx import TdxCollateral
from confide.errors import CannotTell, VerificationError
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import QuoteError
from confide.evidence.result import Check, Status, Verification, failed, passed, quoted, skipped
from confide.evidence.tdx import COLLATERAL, REPORT_DATA, TDX_REQUIRED
from confide.protocol.legacy_report import pick_attestation
from confide.protocol.signature import Algo, split_text, verify_text
from confide.verifier.legacy_attestation import (
    NONCE,
    Members,
    check_channel,
    check_gpu,
    check_nonce,
    check_quote,
    quote_bytes,
    report_data_binding,
)
from confide.verifier.software import check_software

REQUEST_HASH, RESPONSE_HASH, SIGNATURE, SIGNER = "request-hash", "response-hash", "signature", "signer"

# The checks without which no answer is VERIFIED.
REQUIRED = TDX_REQUIRED | {REQUEST_HASH, RESPONSE_HASH, SIGNATURE, SIGNER, REPORT_DATA, NONCE}


class SignatureDocument(msgspec.Struct, frozen=True):
    """The members of a signature document that count (wire contract 5). Claims, until they are checked."""

    text: str
    signature: str
    signing_address: str
    signing_algo: Algo


def verify_answer(
    *,
    sent: bytes,
    received: bytes,
    signature: bytes,
    report: bytes,
    algo: Algo,
    nonce: bytes,
    anchors: Anchors,
    policy: TdxPolicy,
    now: int,
    spki_sha256: bytes | None = None,
    collateral: TdxCollateral | None = None,
) -> Verification:
    """Check one exchange against its proof. Offline; returns for any documents, never raises on bad ones.

    `sent`, `received`: the two bodies, exactly as on the wire. `signature`, `report`: the two documents as they came.
    `algo`: what was asked for. `nonce`: our 32 bytes. `now`: Unix seconds. `spki_sha256`: 32 bytes, of the leaf key on
    the connection that carried the answer; None for plain HTTP. `collateral`: what counts where the report has none.
    Use the result with `REQUIRED`, or with `require`.
    """
    document = parse_signature(signature)
    entry = attestation_of(document, report)
    members: Members = {} if isinstance(entry, Check) else entry
    tdx = check_quote(
        members,
        anchors=anchors,
        policy=policy,
        now=now,
        expected_report_data=report_data_of(document, nonce, spki_sha256),
        otherwise=None if collateral is None else collateral.members,
    )
    checks = (
        *check_hashes(document, sent, received),  # 1, 2
        check_signature(document, algo),  # 3
        check_signer(entry),  # 4
        *tdx.checks,  # 5, 6
        check_nonce(members, nonce),  # 7
        check_software(members, tdx),  # 8
        check_gpu(members, nonce),  # 9
        check_channel(members, spki_sha256, tdx),  # 10
    )
    return Verification(tdx.now, checks, tdx.anchors, tdx.facts, required=REQUIRED)


def require(result: Verification) -> None:
    """Return when `result` is VERIFIED. Raises VerificationError naming a check, CannotTell without collateral."""
    decisive = result.requiring(REQUIRED).decisive
    if decisive is None:
        return
    if not result.rejected and any(check.name == COLLATERAL and check.status is Status.SKIP for check in result.checks):
        raise CannotTell(
            "the service gave no collateral for its quote, so whether the quote is genuine cannot be told",
            remedy="Ask a service that sends `collateral` in its report, or name a file that has it.",
        )
    raise VerificationError(
        f"the answer is not verified: {decisive.name}: {decisive.reason}",
        check=decisive.name,
        remedy="Do not rely on this answer.",
    )


def bare_quote(signature: bytes, report: bytes) -> bytes | None:
    """The quote of a report that came without its collateral; None where there is none to be read. A claim only."""
    entry = attestation_of(parse_signature(signature), report)
    if isinstance(entry, Check) or entry.get("collateral") is not None:
        return None
    try:
        return quote_bytes(entry)
    except QuoteError:
        return None


def claimed_signer(signature: bytes) -> str | None:
    """The address to ask the report for; None when the signature document cannot be read. A claim only."""
    document = parse_signature(signature)
    return None if isinstance(document, Check) else document.signing_address


def parse_signature(raw: bytes) -> SignatureDocument | Check:
    """The signature document, or the failed check that says why there is none."""
    try:
        return msgspec.json.decode(raw, type=SignatureDocument)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return failed(SIGNATURE, f"the signature document cannot be read: {quoted(error)}")


def attestation_of(document: SignatureDocument | Check, report: bytes) -> Members | Check:
    """The report's attestation of the address that signed, or the check (4) that did not pass."""
    if isinstance(document, Check):
        return skipped(SIGNER, "there is no signing address to look for")
    try:
        entry = pick_attestation(msgspec.json.decode(report, type=dict[str, object]), document.signing_address)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return failed(SIGNER, f"the report cannot be read: {quoted(error)}")
    except VerificationError as error:
        return failed(SIGNER, quoted(error.message))
    if entry.get("signing_algo") != document.signing_algo.value:
        return failed(SIGNER, f"the attestation of this address is not for signing_algo {document.signing_algo}")
    return entry


def check_hashes(document: SignatureDocument | Check, sent: bytes, received: bytes) -> tuple[Check, Check]:
    """(1, 2) The last two parts of the text against what went over the wire (wire contract 9.2, step 2)."""
    if isinstance(document, Check):
        return failed(REQUEST_HASH, document.reason), failed(RESPONSE_HASH, document.reason)
    try:
        request_hex, response_hex = split_text(document.text)
    except VerificationError as error:
        return failed(REQUEST_HASH, error.message), failed(RESPONSE_HASH, error.message)
    return (
        check_hash(REQUEST_HASH, "sent", sent, request_hex),
        check_hash(RESPONSE_HASH, "received", received, response_hex),
    )


def check_hash(check_id: str, verb: str, body: bytes, signed_hex: str) -> Check:
    """`signed_hex`: 64 lower-case hex digits from the text."""
    ours = sha256(body).hexdigest()
    if not compare_digest(ours, signed_hex):
        return failed(check_id, f"got {signed_hex} in the signed text, expected {ours} of the {len(body)} bytes {verb}")
    return passed(check_id, f"the signed text names the {len(body)} bytes {verb}")


def check_signature(document: SignatureDocument | Check, algo: Algo) -> Check:
    """(3) Only the algorithm that was asked for counts (wire contract 9.2, step 3)."""
    if isinstance(document, Check):
        return document
    if document.signing_algo is not algo:
        return failed(SIGNATURE, f"got signing_algo {document.signing_algo}, expected {algo} as asked for")
    try:
        signer = verify_text(document.text, document.signature, document.signing_address, algo)
    except VerificationError as error:
        return failed(SIGNATURE, quoted(error.message))
    return passed(SIGNATURE, f"{algo} by {signer}")


def check_signer(entry: Members | Check) -> Check:
    """(4) That it claims the address; whether the TEE vouches for that claim is 6."""
    if isinstance(entry, Check):
        return entry
    return passed(SIGNER, f"the report has an attestation of {quoted(entry.get('signing_address'))}")


def report_data_of(document: SignatureDocument | Check, nonce: bytes, spki_sha256: bytes | None) -> bytes | None:
    """The 64 bytes that the quote has to hold, or None without an address that could be in them: then 3 has failed."""
    if isinstance(document, Check):
        return None
    return report_data_binding(document.signing_address, document.signing_algo, nonce, spki_sha256)
