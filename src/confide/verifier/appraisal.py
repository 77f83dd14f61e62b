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

from collections.abc import Mapping
from dataclasses import dataclass, field
from hmac import compare_digest

from confide.evidence.osimage import OS_IMAGE
from confide.evidence.result import Check, Status, TrustAnchor, Verification, failed, passed, quoted, skipped
from confide.evidence.tdx import COLLATERAL, REPORT_DATA
from confide.protocol.bundle import ServiceProof
from confide.protocol.canonical import DocumentError
from confide.protocol.report import Report, binds, parse_report
from confide.verifier.collateral import NOTHING, Supplied
from confide.verifier.platform import CUSTODY, PROVENANCE, SEV_SNP, TDX, PlatformVerification, verify_platform
from confide.verifier.policy import Attested, Policy

HARDWARE, BINDING, EXPIRY, CHANNEL = "id-1", "id-2", "id-3", "id-6"
KINDS = {TDX: "a TDX quote", SEV_SNP: "an SEV-SNP report"}
UP_TO_DATE = "UpToDate"

# What no policy can do without.
REQUIRED = frozenset({HARDWARE, BINDING, EXPIRY, REPORT_DATA})


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
    """What was verified of a service. `report` is None where it could not be read; `proof` is what a bundle keeps.
    `claims`: those of wire contract 7.8 that hold, each with its reason.
    """

    report: Report | None = None
    proof: ServiceProof | None = None
    claims: Mapping[str, str] = field(default_factory=dict)


def verify_report(
    raw: bytes,
    *,
    nonce: str | None,
    policy: Policy,
    now: int,
    connection: Connection,
    url: str,
    supplied: Supplied = NOTHING,
) -> ServiceVerification:
    """Check a report. Offline; returns for any bytes, never raises on bad ones.

    `raw`: the report as it came. `nonce`: our 64 lower-case hex digits; None for a report that was asked for without
    one, which shows no freshness. `now`: Unix seconds. `url`: of the service, for the record. `supplied`: what was
    found elsewhere of what the report lacks (`verifier/collateral.py`).
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
    platform = verify_platform(report, nonce, policy, now, supplied)
    cpu = platform.cpu
    required |= platform.required | (frozenset() if cpu is None else cpu.required)
    required |= {CUSTODY} if policy.dstack.kms_roots else frozenset()
    attested = attested_facts(report, platform, policy, now)
    checks = (
        check_hardware(report, platform),  # 1
        check_binding(report, nonce, platform),  # 2
        check_expiry(report, now),  # 3
        platform.provenance,  # 4
        platform.custody,  # 5
        check_channel(report, connection, policy),  # 6
        *(requirement.check(attested) for requirement in policy.appraised),
        *(() if cpu is None else cpu.checks),
        *platform.details,
    )
    proof = ServiceProof(
        url=url,
        nonce=nonce,
        verified_at=now,
        spki_sha256=None if connection.spki_sha256 is None else connection.spki_sha256.hex(),
        report=raw.decode(),
        collateral=supplied.bundle_text(created_at=now),
    )
    facts = {
        "keyset_digest": report.keyset_digest,
        "not_after": report.keyset.not_after,
        "serving": report.serving,
        **{name: value for part in platform.parts for name, value in part.facts.items()},
    }
    return ServiceVerification(
        now,
        checks,
        anchors_of(platform),
        facts,
        required=required,
        desired=desired,
        report=report,
        proof=proof,
        lacking=supplied.lacking,
        claims=attested.claims,
    )


def anchors_of(platform: PlatformVerification) -> tuple[TrustAnchor, ...]:
    """The roots that any part of the evidence ended in, each once."""
    return tuple(dict.fromkeys(anchor for part in platform.parts for anchor in part.anchors))


def check_hardware(report: Report, platform: PlatformVerification) -> Check:
    """(1) All of the quote's own checks; what it is bound to is 2."""
    cpu = platform.cpu
    if cpu is None:
        got = f"got tee_type {quoted(report.tee_type)}, expected {TDX} or {SEV_SNP}"
        return failed(HARDWARE, f"{got}: no other evidence is known here")
    own = [check for check in cpu.checks if check.name != REPORT_DATA]
    for status, conclude in ((Status.FAIL, failed), (Status.SKIP, skipped)):
        wrong = [
            check for check in own if check.status is status and (status is Status.FAIL or check.name in cpu.required)
        ]
        if wrong:
            named = next((check for check in wrong if check.name == COLLATERAL), wrong[0])
            return conclude(HARDWARE, f"{named.name}: {named.reason}")
    slot = platform.slot
    assert slot is not None
    if not compare_digest(slot.hex().encode(), (report.report_data + "00" * 32).encode()):
        return failed(HARDWARE, f"got {slot.hex()} in the quote, expected the report's report_data and 32 zero bytes")
    stated = report.evidence.quote_report_data
    if stated is not None and not compare_digest(stated.encode(), slot.hex().encode()):
        return failed(HARDWARE, "got another quote_report_data than the quote holds, expected the same 64 bytes")
    root = ", ".join(f"{anchor.name}{' (SIMULATED)' if anchor.simulated else ''}" for anchor in cpu.anchors)
    return passed(HARDWARE, f"{KINDS[report.tee_type]} that verifies to {root}")


def check_binding(report: Report, nonce: str | None, platform: PlatformVerification) -> Check:
    """(2) The report's words first, for a reason that names them; what decides is the quote."""
    fault = binds(report, nonce)
    if fault is not None:
        return failed(BINDING, fault)
    if platform.cpu is None:
        return skipped(BINDING, "there is no quote to compare with")
    slot = next(check for check in platform.cpu.checks if check.name == REPORT_DATA)
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


def attested_facts(report: Report, platform: PlatformVerification, policy: Policy, now: int) -> Attested:
    """What the requirements may look at: only what a check has passed for."""
    cpu, gpu, compose_hash = platform.cpu, platform.gpu, platform.compose_hash
    claims: dict[str, str] = {}
    if cpu is not None and cpu.ok:
        claims["tee_attested"] = "the quote verified"
        if cpu.facts.get("tdx.tcb_status", UP_TO_DATE) == UP_TO_DATE:  # SNP has a minimum in its policy instead
            claims["tcb_up_to_date"] = "the platform's firmware is what the policy asks for"
    if gpu is not None and gpu.ok:
        claims["gpu_attested"] = f"{gpu.facts['gpu.count']} genuine GPUs, wherever they may be"
    if compose_hash is not None and compose_hash in frozenset(policy.compose_hashes):
        claims["serving_software_known_good"] = f"compose hash {compose_hash} is on the policy's list"
    image = next((check for check in platform.details if check.name == OS_IMAGE), None)
    if image is not None and image.status is Status.PASS:
        claims["os_known_good"] = image.reason
    return Attested(report=report, now=now, compose_hash=compose_hash, claims=claims)
