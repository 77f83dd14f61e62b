"""Is this the legacy report of a service that the policy accepts? (wire contract 6 and 9.1)

Of what `legacy.py` lists, 5 to 10, and what the policy asks besides: there is no answer yet, and its signer is whoever
the report names. Only a report of version 2 says which TLS key is the service's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from confide.errors import CannotTell
from confide.evidence.quote import QuoteError
from confide.evidence.result import Check, Status, Verification, failed, passed
from confide.evidence.tdx import REPORT_DATA, TDX_REQUIRED
from confide.protocol.legacy_report import candidates, without_instances
from confide.protocol.signature import Algo
from confide.verifier.collateral import NOTHING_HELD, HeldCollateral
from confide.verifier.legacy_attestation import (
    CHANNEL,
    NONCE,
    Members,
    check_channel,
    check_gpu,
    check_nonce,
    check_quote,
    quote_bytes,
    report_data_binding,
)
from confide.verifier.policy import Policy
from confide.verifier.software import app_compose, check_software

COMPOSE_POLICY = "policy-compose"


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
    """The 64 bytes that the quote has to hold, or None without an address that could be in them."""
    try:
        algo = Algo(str(entry.get("signing_algo", Algo.ECDSA.value)))
    except ValueError:
        return None
    return report_data_binding(str(entry.get("signing_address")), algo, nonce, spki_sha256)


def check_allowed(entry: Members, software: Check, allowed: frozenset[str]) -> Check:
    """Whether the measured application is on the policy's list."""
    if software.status is not Status.PASS:
        return failed(COMPOSE_POLICY, "got no application that was measured, expected one on the policy's list")
    compose = app_compose(entry)
    found = "" if compose is None else sha256(compose.encode()).hexdigest()
    if found not in allowed:
        return failed(COMPOSE_POLICY, f"got the compose hash {found}, expected one on the policy's list")
    return passed(COMPOSE_POLICY, f"compose hash {found} is on the policy's list")
