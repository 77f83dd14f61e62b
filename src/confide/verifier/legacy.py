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

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest

import msgspec

from confide.collateral.tdx import TdxCollateral
from confide.errors import CannotTell, VerificationError
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import QuoteError
from confide.evidence.result import Check, Status, Verdict, Verification, failed, passed, quoted, skipped
from confide.evidence.tdx import (
    COLLATERAL,
    REPORT_DATA,
    TDX_REQUIRED,
    TdxResult,
    unreadable,
    verify_tdx,
)
from confide.protocol.legacy_report import candidates, pick_attestation, without_instances
from confide.protocol.signature import Algo, split_text, unhex, verify_text
from confide.protocol.statement import legacy_report_data
from confide.verifier.collateral import NOTHING_HELD, HeldCollateral
from confide.verifier.policy import Policy
from confide.verifier.software import app_compose, check_software

REQUEST_HASH, RESPONSE_HASH, SIGNATURE, SIGNER = "request-hash", "response-hash", "signature", "signer"
NONCE, GPU, CHANNEL = "nonce", "gpu", "channel"
COMPOSE_POLICY = "policy-compose"

# The checks without which no answer is VERIFIED.
REQUIRED = TDX_REQUIRED | {REQUEST_HASH, RESPONSE_HASH, SIGNATURE, SIGNER, REPORT_DATA, NONCE}

IDENTITY_BYTES = {Algo.ECDSA: 20, Algo.ED25519: 32}

Members = dict[str, object]


class SignatureDocument(msgspec.Struct, frozen=True):
    """The members of a signature document that count (wire contract 5). Claims, until they are checked."""

    text: str
    signature: str
    signing_address: str
    signing_algo: Algo


class GpuPayload(msgspec.Struct, frozen=True):
    """The members of `nvidia_payload` that are looked at (wire contract 6.4)."""

    nonce: str
    evidence_list: list[object]


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
        expected_report_data=expected_report_data(document, nonce, spki_sha256),
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


@dataclass(frozen=True)
class LegacyVerification(Verification):
    """What was verified of a service by its legacy report. `claims`: those of wire contract 7.8 that hold."""

    signing_address: str = ""
    claims: Mapping[str, str] = field(default_factory=dict)


def verify_legacy_report(
    raw: bytes,
    *,
    nonce: bytes,
    policy: Policy,
    now: int,
    spki_sha256: bytes,
    collateral: HeldCollateral = NOTHING_HELD,
) -> LegacyVerification:
    """Check a report of version 2 by itself: the steps 5 to 10, for a service that is to be sent prompts.

    `nonce`: our 32 bytes. `spki_sha256`: 32 bytes, of the key on the connection that the report came over.
    `collateral`: where to get what the report lacks, which may block. Returns for any document, never raises on bad
    ones.
    """
    entry = entry_for_key(raw, spki_sha256)
    address = entry.get("signing_address")
    tdx = check_quote(
        entry,
        anchors=policy.anchors,
        policy=policy.tdx,
        now=now,
        expected_report_data=report_data_of(entry, nonce, spki_sha256),
        otherwise=supplied_for(entry, collateral, now),
    )
    software = check_software(entry, tdx)
    checks = (
        *tdx.checks,
        check_nonce(entry, nonce),
        software,
        check_gpu(entry, nonce),
        check_channel(entry, spki_sha256, tdx),
    )
    required = TDX_REQUIRED | {REPORT_DATA, NONCE, CHANNEL}
    claims = {"tee_attested": "the quote verified"} if tdx.has_passed(TDX_REQUIRED) else {}
    if claims and tdx.facts.get("tdx.tcb_status") == "UpToDate":
        claims["tcb_up_to_date"] = "the platform's firmware is what the policy asks for"
    if policy.compose_hashes:
        allowed = check_allowed(entry, software, frozenset(policy.compose_hashes))
        checks, required = (*checks, allowed), required | {COMPOSE_POLICY}
        if allowed.status is Status.PASS:
            claims["serving_software_known_good"] = allowed.reason
    return LegacyVerification(
        tdx.now,
        checks,
        tdx.anchors,
        tdx.facts,
        required=required,
        signing_address=address if isinstance(address, str) else "",
        claims=claims,
    )


def supplied_for(entry: Members, collateral: HeldCollateral, now: int) -> Mapping[str, str] | None:
    """Collateral for an entry that came without; None where it has some, or none is to be had."""
    if entry.get("collateral") is not None:
        return None
    try:
        return collateral.for_quote(quote_bytes(entry), now).members
    except (QuoteError, CannotTell):
        return None


def entry_for_key(raw: bytes, spki_sha256: bytes) -> Members:
    """The attestation that names our TLS key, else the first; empty for a document that cannot be read."""
    try:
        report = msgspec.json.decode(raw, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    entries = [without_instances(entry) for entry in candidates(report)]
    return next((entry for entry in entries if entry.get("tls_cert_fingerprint") == spki_sha256.hex()), entries[0])


def report_data_of(entry: Members, nonce: bytes, spki_sha256: bytes) -> bytes | None:
    """The 64 bytes of wire contract 6.3, or None without an address that could be in them."""
    try:
        algo = Algo(str(entry.get("signing_algo", Algo.ECDSA.value)))
        identity = unhex(str(entry.get("signing_address")), IDENTITY_BYTES[algo], "address")
    except (ValueError, VerificationError):
        return None
    return legacy_report_data(identity, nonce, spki_sha256=spki_sha256)


def check_allowed(entry: Members, software: Check, allowed: frozenset[str]) -> Check:
    """Whether the measured application is on the policy's list."""
    if software.status is not Status.PASS:
        return failed(COMPOSE_POLICY, "got no application that was measured, expected one on the policy's list")
    compose = app_compose(entry)
    found = "" if compose is None else sha256(compose.encode()).hexdigest()
    if found not in allowed:
        return failed(COMPOSE_POLICY, f"got the compose hash {found}, expected one on the policy's list")
    return passed(COMPOSE_POLICY, f"compose hash {found} is on the policy's list")


def require(result: Verification) -> None:
    """Return when `result` is VERIFIED. Raises VerificationError naming a check, CannotTell without collateral."""
    if result.verdict is Verdict.VERIFIED:
        return
    wrong = [check for check in result.checks if check.status is Status.FAIL]
    if not wrong and any(check.name == COLLATERAL and check.status is Status.SKIP for check in result.checks):
        raise CannotTell(
            "the service gave no collateral for its quote, so whether the quote is genuine cannot be told",
            remedy="Ask a service that sends `collateral` in its report, or name a file that has it.",
        )
    named = (wrong or [check for check in result.checks if check.status is Status.SKIP and check.name in REQUIRED])[0]
    raise VerificationError(
        f"the answer is not verified: {named.name}: {named.reason}",
        check=named.name,
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


def expected_report_data(document: SignatureDocument | Check, nonce: bytes, spki_sha256: bytes | None) -> bytes | None:
    """(6) The 64 bytes of wire contract 6.3, or None without an address that could be in them."""
    if isinstance(document, Check):
        return None
    try:
        identity = unhex(document.signing_address, IDENTITY_BYTES[document.signing_algo], "address")
    except VerificationError:
        return None  # check 3 has failed on the same address
    return legacy_report_data(identity, nonce, spki_sha256=spki_sha256)


def check_quote(
    entry: Members,
    *,
    anchors: Anchors,
    policy: TdxPolicy,
    now: int,
    expected_report_data: bytes | None,
    otherwise: Mapping[str, str] | None,
) -> TdxResult:
    """(5, 6) The quote, with the collateral that came along or `otherwise`: it is signed under the caller's anchor."""
    collateral = entry.get("collateral", otherwise)
    try:
        return verify_tdx(
            quote_bytes(entry),
            collateral=None if collateral is None else msgspec.json.encode(collateral).decode(),
            anchors=anchors,
            policy=policy,
            now=now,
            expected_report_data=expected_report_data,
        )
    except QuoteError as error:
        return unreadable(error, now)


def quote_bytes(entry: Members) -> bytes:
    """The quote from hex, or from base64 where it is not hex (wire contract 9.1, step 2). Raises QuoteError."""
    text = entry.get("intel_quote", entry.get("quote"))
    if not isinstance(text, str):
        raise QuoteError("there is no attestation with an intel_quote in it")
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass  # not hex
    try:
        return base64.b64decode(text.encode(), validate=True)
    except binascii.Error as error:
        raise QuoteError("intel_quote is neither hex nor base64") from error


def check_nonce(entry: Members, nonce: bytes) -> Check:
    """(7) What the attestation says; that the quote holds our nonce is 6."""
    claimed = entry.get("request_nonce")
    if not isinstance(claimed, str):
        return failed(NONCE, "the attestation has no request_nonce")
    if claimed.lower() != nonce.hex():
        return failed(NONCE, f"got {quoted(claimed)}, expected {nonce.hex()}: the report answers another question")
    return passed(NONCE, "the report answers the nonce that was drawn for it")


def check_gpu(entry: Members, nonce: bytes) -> Check:
    """(9) A nonce in unsigned text can refute and proves nothing, so this check never passes (wire contract 9.1, 5)."""
    text = entry.get("nvidia_payload")
    if text is None:
        return skipped(GPU, "no GPU evidence")
    if not isinstance(text, str):
        return failed(GPU, "nvidia_payload is not JSON text")
    try:
        payload = msgspec.json.decode(text, type=GpuPayload)
    except (msgspec.DecodeError, RecursionError) as error:
        return failed(GPU, f"nvidia_payload cannot be read: {quoted(error)}")
    if payload.nonce.lower() != nonce.hex():
        return failed(GPU, f"got the nonce {quoted(payload.nonce)}, expected {nonce.hex()}")
    if not payload.evidence_list:
        return skipped(GPU, "no GPU evidence")
    count = len(payload.evidence_list)
    return skipped(GPU, f"evidence of {count} GPUs for our nonce came along; its signatures were not verified")


def check_channel(entry: Members, spki_sha256: bytes | None, tdx: TdxResult) -> Check:
    """(10) The key on our own connection against the one the report names (wire contract 9.1, step 7)."""
    if spki_sha256 is None:
        return skipped(CHANNEL, "unbound channel: plain HTTP, whoever is on the way could read question and answer")
    claimed = entry.get("tls_cert_fingerprint")
    if not isinstance(claimed, str):
        return failed(CHANNEL, "the attestation names no TLS key, so the connection may have ended before the TEE")
    if claimed.lower() != spki_sha256.hex():
        return failed(CHANNEL, f"got the TLS key {quoted(claimed)}, expected {spki_sha256.hex()} of our connection")
    if not is_bound(tdx):
        return skipped(CHANNEL, "the attestation names our TLS key, and the quote does not prove it")
    return passed(CHANNEL, f"TLS ended in the attested TEE, key {spki_sha256.hex()}")


def is_bound(tdx: TdxResult) -> bool:
    """Whether the quote verified and holds the expected bytes."""
    return any(check.name == REPORT_DATA and check.status is Status.PASS for check in tdx.checks)
