"""Verify a TDX quote: is it genuine, on what platform, and does it say what the caller expects? (tee-evidence 3.2)

On entry: the caller decides `anchors`, `policy` and `now`. What must be shown, in this order:

1. tdx.parse            the bytes are one well-formed quote, and both parsers read the same fields
2. tdx.tail             nothing but zero padding follows it
3. tdx.root             its chain ends in a root that the caller trusts
4. tdx.quote            signatures, revocation, validity windows and TCB level hold under OUR copy of that root
5. tdx.collateral       the collateral is not older than the policy allows
6. tdx.tcb              the platform's TCB status and advisories are acceptable
7. tdx.attributes       not a debug, migratable or profiled TD; the TDX module is Intel's
8. binding.report-data  the 64 bytes in the verified quote are the expected ones

On exit: with all of them passed, the fields of the quote are what TDX hardware (or the pinned simulator) measured.
NOT shown: what the measurements mean, and that the peer on the socket is the guest. The CALLER must do both.

A check that reads the quote's fields passes only when 4 passed, since before that anybody may have written them.
"""

from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

from cryptography import x509

from confide.evidence import dcap
from confide.evidence.dcap import Claims
from confide.evidence.policy import Anchors, Root, TdxPolicy
from confide.evidence.quote import TD_REPORT_15, QuoteError, TdxQuote, parse_quote
from confide.evidence.result import Check, Status, Verification, failed, passed, quoted, skipped

PARSE, TAIL, ROOT, QUOTE = "tdx.parse", "tdx.tail", "tdx.root", "tdx.quote"
COLLATERAL, TCB, ATTRIBUTES, REPORT_DATA = "tdx.collateral", "tdx.tcb", "tdx.attributes", "binding.report-data"

# The checks without which no TDX result is VERIFIED. What the quote binds is for the caller to require on top.
TDX_REQUIRED = frozenset({PARSE, TAIL, ROOT, QUOTE, COLLATERAL, TCB, ATTRIBUTES})

# What `cryptography` raises on a certificate that it cannot read; its warnings too, where they are made errors.
UNREADABLE = (ValueError, TypeError, UserWarning, x509.InvalidVersion)

# TD attributes by bit (TDX module 1.5 ABI, ATTRIBUTES). A bit that is not in this table must be zero.
DEBUG = 1 << 0
LASS = 1 << 27
SEPT_VE_DISABLE = 1 << 28
MIGRATABLE = 1 << 29
PKS = 1 << 30
KEY_LOCKER = 1 << 31
TPA = 1 << 62
PERFMON = 1 << 63
DEFINED = DEBUG | LASS | SEPT_VE_DISABLE | MIGRATABLE | PKS | KEY_LOCKER | TPA | PERFMON


@dataclass(frozen=True)
class TdxResult(Verification):
    """A verification and the quote it was about: None when it did not parse, mere claims unless VERIFIED."""

    quote: TdxQuote | None = None


def verify_tdx(
    raw: bytes,
    *,
    collateral: str | None,
    anchors: Anchors,
    policy: TdxPolicy,
    now: int,
    expected_report_data: bytes | None = None,
) -> TdxResult:
    """Check a quote as the platform gave it; padding may follow. Offline, a few ms, never raises on bad evidence.

    `collateral`: JSON text of DCAP quote collateral; the peer's own is fine, since all of it is signed under the
    anchor. None makes the checks that need it skip. `now`: Unix seconds. `expected_report_data`: the 64 bytes that
    the quote must hold, else ValueError.
    """
    if expected_report_data is not None and len(expected_report_data) != 64:
        raise ValueError(f"64 bytes of report data expected, got {len(expected_report_data)}")
    try:
        quote = parse_quote(raw)
        dcap.require_same_reading(quote)  # 1
    except QuoteError as error:
        return unreadable(error, now)
    root = trusted_root(quote, anchors)
    opened = open_collateral(collateral)
    genuine, claims = check_quote(quote, root, opened, now)
    checks = (
        passed(PARSE, f"TDX quote version {quote.version}, {len(quote.trimmed)} bytes"),
        check_tail(quote),
        check_root(quote, root),
        genuine,
        opened if isinstance(opened, Check) else check_collateral(claims, policy),
        check_tcb(claims, policy),
        check_attributes(quote, policy, genuine),
        check_report_data(quote, expected_report_data, genuine),
    )
    return TdxResult(
        now,
        checks,
        (root.anchor,) if root else (),
        facts(quote, claims),
        required=TDX_REQUIRED if expected_report_data is None else TDX_REQUIRED | {REPORT_DATA},
        quote=quote,
    )


def unreadable(error: QuoteError, now: int) -> TdxResult:
    """(1) The result for bytes that are no TDX quote."""
    not_run = (TAIL, ROOT, QUOTE, COLLATERAL, TCB, ATTRIBUTES, REPORT_DATA)
    skips = (skipped(check_id, "there is no quote to check") for check_id in not_run)
    return TdxResult(now, (failed(PARSE, str(error)), *skips), required=TDX_REQUIRED)


def check_tail(quote: TdxQuote) -> Check:
    """(2) Platforms pad with zeros, and the library ignores what follows a quote; anything else is smuggled."""
    if quote.tail.strip(b"\x00"):
        return failed(TAIL, f"{len(quote.tail)} bytes follow the quote and are not zero padding")
    return passed(TAIL, f"{len(quote.tail)} bytes of zero padding")


def trusted_root(quote: TdxQuote, anchors: Anchors) -> Root | None:
    """(3) The caller's root that the chain (PCK, CA, root) claims to end in. The library does not look at that copy."""
    return anchors.matching(quote.chain[2], "tdx") if len(quote.chain) == 3 else None


def check_root(quote: TdxQuote, root: Root | None) -> Check:
    """(3) Names the anchor, or the root that the peer brought along."""
    if root is not None:
        return passed(ROOT, f"{root.anchor.name}{' (SIMULATED ROOT, pinned)' if root.anchor.simulated else ''}")
    if len(quote.chain) != 3:
        return failed(ROOT, f"the chain has {len(quote.chain)} certificates, expected 3: PCK, CA, root")
    found = f"the root {sha256(quote.chain[2]).hexdigest()} ({subject(quote.chain[2])}) is not trusted"
    return failed(ROOT, f"{found}; pin it only if it is the root of a simulator that you know")


def subject(certificate_der: bytes) -> str:
    """The certificate's subject as its maker wrote it: a name, no proof."""
    try:
        return quoted(x509.load_der_x509_certificate(certificate_der).subject.rfc4514_string())
    except UNREADABLE:
        return "not a certificate"


def open_collateral(collateral: str | None) -> dcap.Collateral | Check:
    """(4) The collateral, or the check that says why there is none."""
    if collateral is None:
        return skipped(COLLATERAL, "no collateral was given")
    try:
        return dcap.read_collateral(collateral)
    except ValueError as error:
        return failed(COLLATERAL, f"the collateral cannot be read: {quoted(error)}")


def check_quote(
    quote: TdxQuote, root: Root | None, collateral: dcap.Collateral | Check, now: int
) -> tuple[Check, Claims | None]:
    """(4) The library's verdict on the trimmed quote, without any policy: that is ours, in 5 to 7."""
    if root is None:
        return skipped(QUOTE, "there is no trusted root to verify under"), None
    if isinstance(collateral, Check):
        return skipped(QUOTE, f"it cannot be verified without collateral: {collateral.reason}"), None
    try:
        claims = dcap.claims_of(quote, root, collateral, now)
    except dcap.NotGenuine as error:
        return failed(QUOTE, str(error)), None
    return passed(QUOTE, f"signatures, revocation and validity hold at {now}"), claims


def check_collateral(claims: Claims | None, policy: TdxPolicy) -> Check:
    """(5) Validity windows are part of 4. This refuses collateral that is valid but from before a TCB recovery."""
    if claims is None:
        return skipped(COLLATERAL, "the quote did not verify under it")
    found, least = claims.eval_data_number, policy.min_tcb_eval_data_number
    if found < least:
        return failed(COLLATERAL, f"TCB evaluation data number {found}, expected at least {least}; fetch it anew")
    return passed(COLLATERAL, f"TCB evaluation data number {found}, good until {claims.expires_at} (Unix seconds)")


def check_tcb(claims: Claims | None, policy: TdxPolicy) -> Check:
    """(6) An out-of-date platform is no error of the library; whether it will do is the caller's decision."""
    if claims is None:
        return skipped(TCB, "the quote did not verify")
    advisories = claims.tcb.advisory_ids
    found = (
        f"{claims.tcb.status} of {claims.platform.tcb_level.tcb_date}, advisories: {', '.join(advisories) or 'none'}"
    )
    denied = policy.denied_advisories.intersection(advisories)
    if denied:
        return failed(TCB, f"{found}; the policy denies {', '.join(sorted(denied))}")
    if claims.tcb.status not in policy.accepted_tcb:
        return failed(TCB, f"{found}; the policy accepts {', '.join(sorted(policy.accepted_tcb)) or 'no status'}")
    return passed(TCB, found)


def check_attributes(quote: TdxQuote, policy: TdxPolicy, genuine: Check) -> Check:
    """(7) Our own reading, which repeats part of 4 on purpose: one library's slip must not admit a debug TD."""
    faults = attribute_faults(quote, policy)
    if faults:
        return failed(ATTRIBUTES, "; ".join(faults))
    if genuine.status is not Status.PASS:
        return skipped(ATTRIBUTES, "the quote did not verify, so its attributes prove nothing")
    return passed(ATTRIBUTES, f"TD attributes {quote.td_attributes.hex()}: no debug, no migration")


def attribute_faults(quote: TdxQuote, policy: TdxPolicy) -> list[str]:
    """What is wrong with attributes and identities of TD and TDX module, in words."""
    attributes = int.from_bytes(quote.td_attributes, "little")
    faults = {
        "the TD is in debug mode: its host can read its memory": attributes & DEBUG,
        "reserved attribute bits are set": attributes & ~DEFINED,
        "SEPT_VE_DISABLE is off": not attributes & SEPT_VE_DISABLE,
        "the TD can be migrated": attributes & MIGRATABLE or any(quote.mr_service_td),
        "performance counters are on (PERFMON)": attributes & PERFMON and not policy.allow_perfmon,
        "the TDX module is not signed by Intel": any(quote.mr_signer_seam),
    }
    return [fault for fault, present in faults.items() if present]


def check_report_data(quote: TdxQuote, expected: bytes | None, genuine: Check) -> Check:
    """(8) In constant time, from the quote that verified (tee-evidence 7)."""
    if expected is None:
        return skipped(REPORT_DATA, "no report data was expected")
    if not compare_digest(quote.report_data, expected):
        return failed(REPORT_DATA, f"got {quote.report_data.hex()}, expected {expected.hex()}")
    if genuine.status is not Status.PASS:
        return skipped(REPORT_DATA, "the quote did not verify, so its report data proves nothing")
    return passed(REPORT_DATA, "the quote holds the expected 64 bytes")


def facts(quote: TdxQuote, claims: Claims | None) -> dict[str, object]:
    """Neutral facts, JSON-ready. Byte fields: lower-case hex. Fields of the quote only once it verified."""
    known: dict[str, object] = {
        "tdx.quote_version": quote.version,
        "tdx.quote_sha256": sha256(quote.trimmed).hexdigest(),
    }
    if claims is None:
        return known
    fields = {f"tdx.{name}": getattr(quote, name).hex() for name in TD_REPORT_15 if getattr(quote, name)}
    return known | fields | platform_facts(claims)


def platform_facts(claims: Claims) -> dict[str, object]:
    flags = {"True": True, "False": False}
    pck = claims.platform.pck
    return {
        "tdx.tcb_status": claims.tcb.status,
        "tdx.advisory_ids": list(claims.tcb.advisory_ids),
        "tdx.tcb_date": claims.platform.tcb_level.tcb_date,
        "tdx.tcb_eval_data_number": claims.eval_data_number,
        "tdx.collateral_expires_at": claims.expires_at,
        "tdx.fmspc": bytes(pck.fmspc).hex(),
        "tdx.dynamic_platform": flags.get(pck.dynamic_platform or ""),
        "tdx.cached_keys": flags.get(pck.cached_keys or ""),
        "tdx.smt_enabled": flags.get(pck.smt_enabled or ""),
    }
