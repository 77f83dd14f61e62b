"""What a policy holds against an SNP platform: pure comparisons, each in words (tee-evidence 3.3, steps 7 and 8).

Whether the report is genuine is not asked here: `evidence.snp` lets nothing pass before it is.
"""

from confide.evidence.policy import SnpPolicy
from confide.evidence.snp_report import (
    TCB_VERSIONS,
    Product,
    SigningKey,
    SnpReport,
    has_reserved_tcb,
    read_tcb,
)

# Guest policy by bit (AMD 56860, POLICY). Bits 0 to 15 are the least ABI version, bit 17 is always one.
SMT, ALWAYS_ONE, MIGRATE_MA, DEBUG = 1 << 16, 1 << 17, 1 << 18, 1 << 19
CXL, CIPHERTEXT_HIDING = 1 << 21, 1 << 24
DEFINED = (1 << 26) - 1

# Platform information by bit (AMD 56860, PLATFORM_INFO). What is not named says nothing against the platform.
ALIAS_CHECK_COMPLETE = 1 << 5

NO_MIGRATION_AGENT = (bytes(32), b"\xff" * 32)


def guest_faults(report: SnpReport, policy: SnpPolicy) -> list[str]:
    """What is wrong with the guest's own policy and level, in words."""
    bits = report.policy
    faults = {
        "the guest is in debug mode: its host can read its memory": bits & DEBUG,
        "the guest can be migrated": bits & MIGRATE_MA or report.report_id_ma not in NO_MIGRATION_AGENT,
        "policy bit 17 is zero, expected one": not bits & ALWAYS_ONE,
        f"reserved policy bits are set: 0x{bits & ~DEFINED:x}": bits & ~DEFINED,
        "the guest allows SMT: another guest may share its cores": bits & SMT and not policy.allow_smt,
        "the guest allows memory behind CXL": bits & CXL and not policy.allow_cxl,
        "the guest does not demand ciphertext hiding": policy.require_ciphertext_hiding
        and not bits & CIPHERTEXT_HIDING,
        f"got VMPL {report.vmpl}, expected {policy.vmpl}": report.vmpl != policy.vmpl,
        f"got guest SVN {report.guest_svn}, expected at least {policy.min_guest_svn}": report.guest_svn
        < policy.min_guest_svn,
    }
    return [fault for fault, present in faults.items() if present]


def platform_faults(report: SnpReport, product: Product | None, policy: SnpPolicy) -> list[str]:
    """What is wrong with CPU generation, signing key and settings of the machine, in words."""
    keys = {SigningKey.VCEK, SigningKey.VLEK} if policy.allow_vlek else {SigningKey.VCEK}
    wanted = " or ".join(key.name for key in sorted(keys))
    faults = {
        f"got a report signed by {report.signing_key.name}, expected {wanted}": report.signing_key not in keys,
        "the host masked the chip's key": report.has_masked_chip_key,
        "no check for memory aliases at boot is reported": policy.require_alias_check
        and not report.platform_info & ALIAS_CHECK_COMPLETE,
    }
    if product is not None:
        reason = policy.denied_products.get(product)
        accepted = ", ".join(sorted(policy.accepted_products)) or "no product"
        faults[f"{product} is denied: {reason}"] = reason is not None
        faults[f"got {product}, expected {accepted}"] = product not in policy.accepted_products
    return [fault for fault, present in faults.items() if present]


def tcb_faults(report: SnpReport, product: Product, policy: SnpPolicy) -> list[str]:
    """What is too old, or can still be rolled back, in words."""
    reserved = [name for name in TCB_VERSIONS if has_reserved_tcb(getattr(report, name), product)]
    faults = [f"reserved bytes of {name} are set" for name in reserved]
    for name, raw, least in (
        ("reported", report.reported_tcb, policy.min_tcb.get(product)),
        ("launch", report.launch_tcb, policy.min_launch_tcb.get(product)),
    ):
        found = read_tcb(raw, product)
        old = found.below(least) if least else []
        if old:
            faults.append(f"{', '.join(old)} too old: got {name} TCB {found}, expected at least {least}")
    if policy.require_committed and report.committed_tcb != report.current_tcb:
        current, committed = read_tcb(report.current_tcb, product), read_tcb(report.committed_tcb, product)
        faults.append(f"got committed TCB {committed}, expected the current one, {current}: it can be rolled back")
    if report.committed_version < policy.min_firmware:
        found_version, least_version = dotted(report.committed_version), dotted(policy.min_firmware)
        faults.append(f"got committed firmware {found_version}, expected at least {least_version}")
    return faults


def dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
