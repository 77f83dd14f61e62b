"""One attestation of a legacy report, against what the caller knows: the checks 5 to 10 of `legacy.py`.

On entry: which attestation counts is decided, and everything in it came from the peer. Each check says what it shows.
"""

import base64
import binascii
from collections.abc import Mapping

import msgspec

from confide.errors import VerificationError
from confide.evidence.policy import Anchors, TdxPolicy
from confide.evidence.quote import QuoteError
from confide.evidence.result import Check, Status, failed, passed, quoted, skipped
from confide.evidence.tdx import REPORT_DATA, TdxResult, unreadable, verify_tdx
from confide.protocol.signature import Algo, unhex
from confide.protocol.statement import legacy_report_data

NONCE, GPU, CHANNEL = "nonce", "gpu", "channel"

IDENTITY_BYTES = {Algo.ECDSA: 20, Algo.ED25519: 32}

Members = dict[str, object]


class GpuPayload(msgspec.Struct, frozen=True):
    """The members of `nvidia_payload` that are looked at (wire contract 6.4)."""

    nonce: str
    evidence_list: list[object]


def report_data_binding(address: str, algo: Algo, nonce: bytes, spki_sha256: bytes | None) -> bytes | None:
    """(6) The 64 bytes of wire contract 6.3, or None for what is no address, which could not be in them."""
    try:
        identity = unhex(address, IDENTITY_BYTES[algo], "address")
    except VerificationError:
        return None
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
