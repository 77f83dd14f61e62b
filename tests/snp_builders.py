"""A simulated SNP platform with any knob turned, and the verifier on its evidence with any part replaced."""

from functools import lru_cache

from confide.evidence.policy import Anchors, SnpPolicy
from confide.evidence.result import Status
from confide.evidence.snp import SnpResult, verify_snp
from confide.simulator.snp import SimulatedSnpPlatform

NOW = 1_800_000_000
SEED = b"\x11" * 32
REPORT_DATA = bytes(range(64))

ALL_CHECKS = [
    "snp.parse",
    "snp.root",
    "snp.chain",
    "snp.crl",
    "snp.signature",
    "snp.vcek",
    "snp.policy",
    "snp.tcb",
    "binding.report-data",
]


@lru_cache
def platform(**knobs: object) -> SimulatedSnpPlatform:
    return SimulatedSnpPlatform(SEED, now=NOW, **knobs)  # type: ignore[arg-type]  # tests turn any of them


def evidence(machine: SimulatedSnpPlatform) -> dict[str, object]:
    """The arguments of `verify_snp` for the whole evidence of this machine, under its pinned root."""
    return {
        "vcek": machine.vcek_der,
        "chain": machine.chain_der,
        "crl": machine.crl(NOW),
        "anchors": Anchors.default().with_simulated(machine.root_der),
        "policy": SnpPolicy(),
        "now": NOW,
        "expected_report_data": REPORT_DATA,
    }


def verified(raw: bytes | None = None, *, of: SimulatedSnpPlatform | None = None, **changes: object) -> SnpResult:
    """The verdict on this machine's report, or on `raw` in its place; `changes` replace arguments."""
    machine = of or platform()
    report = machine.report(REPORT_DATA) if raw is None else raw
    return verify_snp(report, **(evidence(machine) | changes))  # type: ignore[arg-type]  # tests replace any of them


def statuses(result: SnpResult) -> dict[str, Status]:
    return {check.name: check.status for check in result.checks}


def named(result: SnpResult, status: Status) -> set[str]:
    return {check.name for check in result.checks if check.status is status}


def failing(result: SnpResult) -> set[str]:
    return named(result, Status.FAIL)


def reason(result: SnpResult, name: str) -> str:
    return next(check.reason for check in result.checks if check.name == name)


def patched(raw: bytes, offset: int, value: bytes) -> bytes:
    return raw[:offset] + value + raw[offset + len(value) :]


def flipped(raw: bytes, bit: int) -> bytes:
    """The same bytes but for one bit, counted from the first byte's lowest."""
    offset = bit // 8
    return raw[:offset] + bytes((raw[offset] ^ 1 << bit % 8,)) + raw[offset + 1 :]
