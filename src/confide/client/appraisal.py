"""Is this the report of a service that the policy accepts? (wire contract 9.3)

On entry: the caller drew `nonce` for this report, saw the TLS key on the connection that it came over, and decides the
policy and `now`. Everything else came from the peer. What must be shown, in order:

1. id-1  hardware      the quote verifies to a root of the policy, and its 64-byte slot is the one that the report names
2. id-2  binding       that slot is the hash of the statement over the keyset's own digest and OUR nonce
3. id-3  expiry        the keyset has not expired
4. id-4  provenance    the application that the report shows is the one that was measured
5. id-5  custody       who released the keys
6. id-6  channel       the TLS key of the connection is listed in the keyset for this host
   policy-*            what the policy asks besides

On exit: with 1 to 3 passed, whoever holds a receipt key of this keyset runs in that TEE. NOT shown: that the software
is good (4 and the policy say which it is), and, where 6 did not pass, that nobody reads along.
"""

from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

import msgspec

from confide.client.policy import Attested, Policy
from confide.client.software import check_compose
from confide.evidence.result import Check, Status, Verification, failed, passed, quoted, skipped
from confide.evidence.tdx import COLLATERAL, REPORT_DATA, TCB, TDX_REQUIRED, TdxResult, verify_tdx
from confide.protocol.bundle import ServiceProof
from confide.protocol.canonical import DocumentError
from confide.protocol.report import Report, binds, parse_report
from confide.protocol.statement import aci_report_data

HARDWARE, BINDING, EXPIRY, PROVENANCE, CUSTODY, CHANNEL = (f"id-{number}" for number in range(1, 7))
TDX = "tdx"

# What no policy can do without.
REQUIRED = TDX_REQUIRED | {HARDWARE, BINDING, EXPIRY, REPORT_DATA}


@dataclass(frozen=True, kw_only=True)
class Connection:
    """What the caller saw of the connection. `spki_sha256`: 32 bytes, None for plain HTTP. `host`: as it was dialled.

    `is_recorded`: somebody else saw it and wrote it down.
    """

    host: str
    spki_sha256: bytes | None
    is_recorded: bool = False


@dataclass(frozen=True)
class ServiceVerification(Verification):
    """What was verified of a service. `report` is None where it could not be read; `proof` is what a bundle keeps."""

    report: Report | None = None
    proof: ServiceProof | None = None


def verify_report(
    raw: bytes, *, nonce: str | None, policy: Policy, now: int, connection: Connection, url: str
) -> ServiceVerification:
    """Check a report. Offline; returns for any bytes, never raises on bad ones.

    `raw`: the report as it came. `nonce`: our 64 lower-case hex digits; None for a report that was asked for without
    one, which shows no freshness. `now`: Unix seconds. `url`: of the service, for the record.
    """
    required = REQUIRED | {requirement.name for requirement in policy.appraised}
    required |= {CHANNEL} if policy.require_channel else frozenset()
    desired = frozenset({CHANNEL})
    try:
        report = parse_report(raw)
    except DocumentError as error:
        unread = (skipped(name, "there is no report to check") for name in (BINDING, EXPIRY, PROVENANCE, CUSTODY))
        checks = (failed(HARDWARE, quoted(error)), *unread, skipped(CHANNEL, "there is no report to check"))
        return ServiceVerification(now, checks, required=required, desired=desired)
    tdx = verify_quote(report, nonce, policy, now)
    provenance = check_compose(PROVENANCE, report.evidence.app_compose, report.evidence.event_log, tdx)
    attested = attested_facts(report, tdx, provenance, policy, now)
    checks = (
        check_hardware(report, tdx),  # 1
        check_binding(report, nonce, tdx),  # 2
        check_expiry(report, now),  # 3
        provenance,  # 4
        check_custody(report),  # 5
        check_channel(report, connection, policy),  # 6
        *(requirement.check(attested) for requirement in policy.appraised),
        *tdx.checks,
    )
    proof = ServiceProof(
        url=url,
        nonce=nonce,
        verified_at=now,
        spki_sha256=None if connection.spki_sha256 is None else connection.spki_sha256.hex(),
        report=raw.decode(),
    )
    facts = {
        "keyset_digest": report.keyset_digest,
        "not_after": report.keyset.not_after,
        "serving": report.serving,
        **tdx.facts,
    }
    return ServiceVerification(
        now, checks, tdx.anchors, facts, required=required, desired=desired, report=report, proof=proof
    )


def verify_quote(report: Report, nonce: str | None, policy: Policy, now: int) -> TdxResult:
    """The quote with the collateral that came along: all of it is signed under the policy's anchors, or it fails."""
    collateral = report.evidence.collateral
    return verify_tdx(
        report.quote,
        collateral=None if collateral is None else msgspec.json.encode(collateral).decode(),
        anchors=policy.anchors,
        policy=policy.tdx,
        now=now,
        expected_report_data=aci_report_data(report.keyset_digest, nonce),
    )


def check_hardware(report: Report, tdx: TdxResult) -> Check:
    """(1) All of the quote's own checks; what it is bound to is 2."""
    if report.tee_type != TDX:
        return failed(
            HARDWARE, f"got tee_type {quoted(report.tee_type)}, expected {TDX}: no other evidence is known here"
        )
    own = [check for check in tdx.checks if check.name != REPORT_DATA]
    for status, conclude in ((Status.FAIL, failed), (Status.SKIP, skipped)):
        wrong = [check for check in own if check.status is status]
        if wrong:
            named = next((check for check in wrong if check.name == COLLATERAL), wrong[0])
            return conclude(HARDWARE, f"{named.name}: {named.reason}")
    assert tdx.quote is not None
    slot = tdx.quote.report_data
    if not compare_digest(slot.hex().encode(), (report.report_data + "00" * 32).encode()):
        return failed(HARDWARE, f"got {slot.hex()} in the quote, expected the report's report_data and 32 zero bytes")
    stated = report.evidence.quote_report_data
    if stated is not None and not compare_digest(stated.encode(), slot.hex().encode()):
        return failed(HARDWARE, "got another quote_report_data than the quote holds, expected the same 64 bytes")
    root = ", ".join(f"{anchor.name}{' (SIMULATED)' if anchor.simulated else ''}" for anchor in tdx.anchors)
    return passed(HARDWARE, f"a TDX quote that verifies to {root}")


def check_binding(report: Report, nonce: str | None, tdx: TdxResult) -> Check:
    """(2) The report's words first, for a reason that names them; what decides is the quote."""
    fault = binds(report, nonce)
    if fault is not None:
        return failed(BINDING, fault)
    slot = next(check for check in tdx.checks if check.name == REPORT_DATA)
    if slot.status is not Status.PASS:
        return Check(BINDING, slot.status, slot.reason)
    if nonce is None:
        return passed(BINDING, f"the quote binds {report.keyset_digest}; freshness is not shown, there was no nonce")
    return passed(BINDING, f"the quote binds {report.keyset_digest} for the nonce that was drawn for it")


def check_expiry(report: Report, now: int) -> Check:
    """(3) At `not_after` itself it is over."""
    not_after = report.keyset.not_after
    if now >= not_after:
        return failed(EXPIRY, f"got not_after {not_after}, expected later than {now}; ask for a fresh report")
    return passed(EXPIRY, f"the keyset stands until {not_after} (Unix seconds)")


def check_custody(report: Report) -> Check:
    """(5) Whether anybody but the TEE ever had the keys."""
    if report.evidence.key_custody is None:
        return skipped(CUSTODY, "the report has no key_custody: nothing shows who released the keys")
    return skipped(CUSTODY, "the report has a key_custody chain, which this version cannot verify")


def check_channel(report: Report, connection: Connection, policy: Policy) -> Check:
    """(6) Only keys under the digest count. Whoever saw the connection says which key it had."""
    conclude = failed if policy.require_channel else skipped
    if connection.spki_sha256 is None:
        return conclude(
            CHANNEL, "got plain HTTP, expected TLS with an attested key: anybody on the way could read along"
        )
    found = connection.spki_sha256.hex()
    if not report.keyset.tls_public_keys:
        return conclude(CHANNEL, "the keyset lists no TLS key, so the connection may end before the TEE")
    pins = report.keyset.tls_pins(connection.host)
    if connection.spki_sha256 not in pins:
        expected = " or ".join(sorted(pin.hex() for pin in pins)) or "none: no key is listed for this host"
        return failed(CHANNEL, f"got the TLS key {found} on the connection, expected {expected}")
    recorded = " by the record of whoever connected" if connection.is_recorded else ""
    return passed(CHANNEL, f"TLS ends in the attested workload{recorded}, key {found}")


def attested_facts(report: Report, tdx: TdxResult, provenance: Check, policy: Policy, now: int) -> Attested:
    """What the requirements may look at: only what a check has passed for."""
    compose, compose_hash = report.evidence.app_compose, None
    if compose is not None and provenance.status is Status.PASS:
        compose_hash = sha256(compose.encode()).hexdigest()
    claims: dict[str, str] = {}
    if tdx.ok:
        claims["tee_attested"] = "the quote verified"
    if tdx.ok and tdx.has_passed({TCB}) and tdx.facts.get("tdx.tcb_status") == "UpToDate":
        claims["tcb_up_to_date"] = "TCB status UpToDate"
    if tdx.ok and compose_hash is not None and compose_hash in frozenset(policy.compose_hashes):
        claims["serving_software_known_good"] = f"compose hash {compose_hash} is on the policy's list"
    return Attested(report=report, now=now, compose_hash=compose_hash, claims=claims)
