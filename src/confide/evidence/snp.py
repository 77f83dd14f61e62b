"""Verify an SEV-SNP report: is it genuine, on what platform, and does it say what is expected? (tee-evidence 3.3)

On entry: the caller decides `anchors`, `policy` and `now`. What must be shown, in this order:

1. snp.parse            the bytes are one well-formed report
2. snp.root             its chain ends in a root that the caller trusts, for the CPU generation that the report names
3. snp.chain            signatures, names, windows, CA bits and keys hold from the VCEK (or VLEK) up to that root
4. snp.crl              AMD's revocation list, signed by that root and current, names no CA of the chain
5. snp.signature        the VCEK signed the report
6. snp.vcek             the VCEK is the one of the chip and of the TCB that the report names
7. snp.policy           no debugging, no migration, the right privilege level; product and settings are acceptable
8. snp.tcb              the firmware is not older than the policy allows
9. binding.report-data  the 64 bytes in the verified report are the expected ones; dstack.host-data likewise, when asked

On exit: with all of them passed, the fields of the report are what SNP hardware (or the pinned simulator) measured.
NOT shown: what `measurement` means, and that the peer on the socket is the guest. The CALLER must do both.

A check that reads the report's fields passes only when 3 and 5 passed and 4 did not fail, since before that anybody may
have written them. Of the four TCB versions only the reported one is more than firmware's word: the key depends on it.
"""

from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from confide.evidence.policy import (
    AMD_ARK_GENOA_SHA256,
    AMD_ARK_MILAN_SHA256,
    AMD_ARK_TURIN_SHA256,
    Anchors,
    Root,
    SnpPolicy,
)
from confide.evidence.result import Check, Status, Verification, failed, passed, quoted, skipped
from confide.evidence.snp_appraisal import dotted, guest_faults, platform_faults, tcb_faults
from confide.evidence.snp_chain import (
    Chain,
    SnpChainError,
    load_certificate,
    split_certificates,
    verify_chain,
    verify_crl,
)
from confide.evidence.snp_dstack import HOST_DATA
from confide.evidence.snp_report import (
    BYTES,
    TCB_BYTES,
    TCB_VERSIONS,
    Product,
    SnpReport,
    SnpReportError,
    parse_snp_report,
    read_tcb,
)
from confide.evidence.snp_vcek import endorsement_faults, named_product, read_endorsement

PARSE, ROOT, CHAIN, CRL, SIGNATURE = "snp.parse", "snp.root", "snp.chain", "snp.crl", "snp.signature"
VCEK, POLICY, TCB, REPORT_DATA = "snp.vcek", "snp.policy", "snp.tcb", "binding.report-data"

# The checks without which no SNP result is VERIFIED; `SnpPolicy.require_crl` adds snp.crl. What the report binds is for
# the caller to require on top.
SNP_REQUIRED = frozenset({PARSE, ROOT, CHAIN, SIGNATURE, VCEK, POLICY, TCB})

PRODUCT_OF_ROOT = {
    AMD_ARK_MILAN_SHA256: Product.MILAN,
    AMD_ARK_GENOA_SHA256: Product.GENOA,
    AMD_ARK_TURIN_SHA256: Product.TURIN,
}


@dataclass(frozen=True)
class SnpResult(Verification):
    """A verification and the report it was about: None when it did not parse, mere claims unless VERIFIED."""

    report: SnpReport | None = None


def verify_snp(
    raw: bytes,
    *,
    vcek: bytes | None,
    chain: bytes | None,
    crl: bytes | None,
    anchors: Anchors,
    policy: SnpPolicy,
    now: int,
    expected_report_data: bytes | None = None,
    expected_host_data: bytes | None = None,
) -> SnpResult:
    """Check a report of exactly 1184 bytes. Offline, 1 to 2 ms, never raises on bad evidence.

    `vcek`: the VCEK or VLEK. `chain`: ASK (or ASVK), then ARK. Both PEM, or DER one behind the other; the peer's own
    are fine, since all of it ends in the anchor. `crl`: AMD's list for this product, DER. None makes the checks that
    need it skip. `now`: Unix seconds. `expected_report_data`: the 64 bytes that the report must hold;
    `expected_host_data`: the 32 bytes that the host must have given at launch, which adds the check dstack.host-data.
    ValueError for an expectation of another length.
    """
    expectations = by_check(expected_report_data, expected_host_data)
    required = SNP_REQUIRED | expectations.keys() | ({CRL} if policy.require_crl else set())
    try:
        report = parse_snp_report(raw)
    except SnpReportError as error:
        return unreadable(error, now, required)
    authorities = present(chain)
    root = anchors.matching(authorities[-1], "snp") if isinstance(authorities, tuple) else None
    rooted = check_root(report, authorities, root)
    chained = check_chain(vcek, authorities, root, rooted, now)
    holding = chained if isinstance(chained, Chain) else None
    unrevoked = check_crl(crl, holding, now)
    signed = check_signature(report, holding)
    genuine = signed.status is Status.PASS and unrevoked.status is not Status.FAIL
    product = product_of(report, root, holding)
    checks = [
        passed(PARSE, f"SNP report version {report.version}"),
        rooted,
        passed(CHAIN, f"signatures and validity hold at {now}") if isinstance(chained, Chain) else chained,
        unrevoked,
        signed,
        check_vcek(report, holding, product, genuine),
        check_policy(report, product, policy, genuine),
        check_tcb(report, product, policy, genuine),
        check_bound(REPORT_DATA, report.report_data, expectations.get(REPORT_DATA), genuine),
    ]
    if HOST_DATA in expectations:
        checks.append(check_bound(HOST_DATA, report.host_data, expectations[HOST_DATA], genuine))
    known = facts(raw, report) | (field_facts(report, product) if genuine and product else {})
    return SnpResult(now, tuple(checks), (root.anchor,) if root else (), known, required=required, report=report)


def by_check(report_data: bytes | None, host_data: bytes | None) -> dict[str, bytes]:
    """The expectations by the check that they make. ValueError for one of another length."""
    given = ((REPORT_DATA, "report data", report_data, 64), (HOST_DATA, "host data", host_data, 32))
    for _, name, data, length in given:
        if data is not None and len(data) != length:
            raise ValueError(f"{length} bytes of {name} expected, got {len(data)}")
    return {check_id: data for check_id, _, data, _ in given if data is not None}


def unreadable(error: SnpReportError, now: int, required: frozenset[str]) -> SnpResult:
    """(1) The result for bytes that are no SNP report."""
    not_run = [ROOT, CHAIN, CRL, SIGNATURE, VCEK, POLICY, TCB, REPORT_DATA, *({HOST_DATA} & required)]
    skips = (skipped(check_id, "there is no report to check") for check_id in not_run)
    return SnpResult(now, (failed(PARSE, str(error)), *skips), required=required)


def present(chain: bytes | None) -> tuple[bytes, bytes] | Check:
    """(2) ASK and ARK as DER, or the check that says why there are none."""
    if chain is None:
        return skipped(ROOT, "no certificate chain was given")
    try:
        certificates = split_certificates(chain)
    except SnpChainError as error:
        return failed(ROOT, str(error))
    if len(certificates) != 2:
        return failed(ROOT, f"the chain has {len(certificates)} certificates, expected 2: ASK, ARK")
    return certificates[0], certificates[1]


def check_root(report: SnpReport, authorities: tuple[bytes, bytes] | Check, root: Root | None) -> Check:
    """(2) Names the anchor, or the root that the peer brought along. AMD's roots stand for one CPU generation each."""
    if isinstance(authorities, Check):
        return authorities
    if root is None:
        found = f"the root {sha256(authorities[1]).hexdigest()} ({subject(authorities[1])}) is not trusted"
        return failed(ROOT, f"{found}; pin it only if it is the root of a simulator that you know")
    cpu, its_product = report.cpuid, PRODUCT_OF_ROOT.get(root.anchor.sha256)
    if cpu is not None and cpu.product is None:
        return failed(ROOT, f"got CPUID family 0x{cpu.family:x}, model 0x{cpu.model:x}, expected Milan, Genoa or Turin")
    if cpu is not None and its_product not in (None, cpu.product):
        return failed(ROOT, f"got {root.anchor.name} for a report of {cpu.product}")
    return passed(ROOT, f"{root.anchor.name}{' (SIMULATED ROOT, pinned)' if root.anchor.simulated else ''}")


def subject(certificate_der: bytes) -> str:
    """The certificate's subject as its maker wrote it: a name, no proof."""
    try:
        return quoted(load_certificate(certificate_der).subject.rfc4514_string())
    except SnpChainError:
        return "not a certificate"


def check_chain(
    vcek: bytes | None, authorities: tuple[bytes, bytes] | Check, root: Root | None, rooted: Check, now: int
) -> Chain | Check:
    """(3) The chain under OUR copy of the root, or the check that says why there is none."""
    if isinstance(authorities, Check) or root is None or rooted.status is not Status.PASS:
        return skipped(CHAIN, "there is no trusted root to verify under")
    if vcek is None:
        return skipped(CHAIN, "no VCEK was given")
    try:
        leaves = split_certificates(vcek)
        if len(leaves) != 1:
            return failed(CHAIN, f"got {len(leaves)} certificates in place of the VCEK, expected 1")
        return verify_chain(leaves[0], authorities[0], root.der or authorities[1], now)
    except SnpChainError as error:
        return failed(CHAIN, str(error))


def check_crl(crl: bytes | None, chain: Chain | None, now: int) -> Check:
    """(4) Chip keys are not on AMD's list; a chip's loss shows in the TCB alone."""
    if crl is None:
        return skipped(CRL, "no revocation list was given")
    if chain is None:
        return skipped(CRL, "the chain did not verify")
    try:
        next_update = verify_crl(crl, chain, now)
    except SnpChainError as error:
        return failed(CRL, str(error))
    return passed(CRL, f"ASK and ARK are not on the list, which is good until {next_update} (Unix seconds)")


def check_signature(report: SnpReport, chain: Chain | None) -> Check:
    """(5) ECDSA P-384 with SHA-384 over the first 672 bytes as they came."""
    if chain is None:
        return skipped(SIGNATURE, "the chain did not verify, so nobody stands for the key")
    try:
        chain.leaf_key.verify(encode_dss_signature(report.r, report.s), report.signed, ECDSA(SHA384()))
    except InvalidSignature:
        return failed(SIGNATURE, "the signature is not that of the key in the VCEK")
    return passed(SIGNATURE, "the key in the VCEK signed the report")


def product_of(report: SnpReport, root: Root | None, chain: Chain | None) -> Product | None:
    """The CPU generation: what the report says, else what the root is for, else what the VCEK says."""
    if report.cpuid is not None:
        return report.cpuid.product
    its_product = PRODUCT_OF_ROOT.get(root.anchor.sha256) if root else None
    return its_product or (named_product(chain.leaf) if chain else None)


def check_vcek(report: SnpReport, chain: Chain | None, product: Product | None, genuine: bool) -> Check:
    """(6) The key is derived from chip and TCB: a report that names others was not signed by that firmware."""
    if chain is None:
        return skipped(VCEK, "the chain did not verify")
    if product is None:
        return failed(VCEK, "got a VCEK that names no known product, expected Milan, Genoa or Turin")
    try:
        faults = endorsement_faults(read_endorsement(chain.leaf, product), report, product)
    except SnpChainError as error:
        faults = [str(error)]
    return judged(VCEK, faults, genuine, f"{report.signing_key.name} of this {product} and of the reported TCB")


def check_policy(report: SnpReport, product: Product | None, policy: SnpPolicy, genuine: bool) -> Check:
    """(7) What the guest's owner allowed the host, and what the caller allows."""
    faults = [*guest_faults(report, policy), *platform_faults(report, product, policy)]
    return judged(
        POLICY, faults, genuine, f"guest policy 0x{report.policy:x}, VMPL {report.vmpl}: no debug, no migration"
    )


def check_tcb(report: SnpReport, product: Product | None, policy: SnpPolicy, genuine: bool) -> Check:
    """(8) Part by part, in this product's order of bytes."""
    if product is None:
        return skipped(TCB, "the CPU generation is not known, nor its order of TCB bytes")
    faults = tcb_faults(report, product, policy)
    return judged(TCB, faults, genuine, f"reported TCB {read_tcb(report.reported_tcb, product)}")


def check_bound(name: str, found: bytes, expected: bytes | None, genuine: bool) -> Check:
    """(9) In constant time, from the report that verified (tee-evidence 7)."""
    if expected is None:
        return skipped(name, "nothing was expected in the report")
    if not compare_digest(found, expected):
        return failed(name, f"got {found.hex()}, expected {expected.hex()}")
    return judged(name, [], genuine, f"the report holds the expected {len(expected)} bytes")


def judged(name: str, faults: list[str], genuine: bool, holds: str) -> Check:
    """Faults fail whoever wrote them; without any the check passes for a genuine report only."""
    if faults:
        return failed(name, "; ".join(faults))
    return passed(name, holds) if genuine else skipped(name, "the report did not verify, so its fields prove nothing")


def facts(raw: bytes, report: SnpReport) -> dict[str, object]:
    """Neutral facts, JSON-ready, of any report that parsed."""
    return {"snp.report_version": report.version, "snp.report_sha256": sha256(raw).hexdigest()}


def field_facts(report: SnpReport, product: Product) -> dict[str, object]:
    """Every field of a report that verified. Bytes: lower-case hex. Bit fields and vectors: hex with 0x."""
    fields = {f"snp.{name}": getattr(report, name).hex() for name in BYTES if name not in TCB_VERSIONS}
    tcb = {f"snp.{name}": levels(getattr(report, name), product) for name in TCB_VERSIONS}
    cpu, launched, running = report.cpuid, report.launch_mitigations, report.current_mitigations
    return (
        fields
        | tcb
        | {
            "snp.product": str(product),
            "snp.cpuid": None if cpu is None else [cpu.family, cpu.model, cpu.stepping],
            "snp.guest_svn": report.guest_svn,
            "snp.policy": hex(report.policy),
            "snp.vmpl": report.vmpl,
            "snp.platform_info": hex(report.platform_info),
            "snp.signing_key": report.signing_key.name,
            "snp.has_author_key": report.has_author_key,
            "snp.current_version": dotted(report.current_version),
            "snp.committed_version": dotted(report.committed_version),
            "snp.launch_mitigations": None if launched is None else hex(launched),
            "snp.current_mitigations": None if running is None else hex(running),
            "snp.reported_tcb_is_committed": report.reported_tcb == report.committed_tcb,
        }
    )


def levels(raw: bytes, product: Product) -> dict[str, int]:
    """The patch levels that this product has."""
    tcb = read_tcb(raw, product).levels
    return {name: tcb[name] for name in TCB_BYTES[product]}
