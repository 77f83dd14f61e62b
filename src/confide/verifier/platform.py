"""What the platform's evidence in an ACI report shows: the CPU TEE, the software it measured, custody, and GPUs.

Each part is verified by its room (`confide.evidence`); here is only which part goes to which, and what all of it means
for `id-1`, `id-4` and `id-5` (wire contract 9.3). Offline; returns for any evidence, never raises on bad evidence.
"""

from dataclasses import dataclass, replace
from hashlib import sha256

import msgspec

from confide.evidence.custody import verify_custody
from confide.evidence.dstack import COMPOSE, COMPOSE_POLICY, EVENTS, MR_CONFIG, REPLAY, DstackEvidence, verify_dstack
from confide.evidence.mr_config import MrConfigError, document_sha256, read_document
from confide.evidence.nras import verify_nras
from confide.evidence.nvidia import GpuResult, verify_gpu_payload
from confide.evidence.piece import list_of
from confide.evidence.result import Check, Status, Verification, failed, passed, quoted, skipped
from confide.evidence.snp import SnpResult, verify_snp
from confide.evidence.snp_dstack import HOST_DATA
from confide.evidence.tdx import TdxResult, verify_tdx
from confide.protocol.report import Evidence, Report
from confide.protocol.statement import aci_report_data
from confide.verifier.collateral import NOTHING, Supplied
from confide.verifier.policy import Policy
from confide.verifier.software import check_compose

TDX, SEV_SNP = "tdx", "sev_snp"
PROVENANCE, CUSTODY = "id-4", "id-5"
# What of dstack's checks speaks about the application: a failure of one is a failure of id-4.
SOFTWARE_CHECKS = (REPLAY, EVENTS, COMPOSE, COMPOSE_POLICY, MR_CONFIG)


@dataclass(frozen=True, kw_only=True)
class PlatformVerification:
    """The parts. `cpu`: of the quote or the report, None for a TEE that is not known here. `slot`: its 64 bytes of
    report data, None when it could not be read. `details`: the checks of all other parts. `required`: which of these
    the policy cannot do without. `compose_hash`: measured, 64 hex digits.
    """

    cpu: TdxResult | SnpResult | None
    provenance: Check
    custody: Check
    slot: bytes | None = None
    details: tuple[Check, ...] = ()
    gpu: GpuResult | None = None
    required: frozenset[str] = frozenset()
    compose_hash: str | None = None

    @property
    def parts(self) -> tuple[Verification, ...]:
        """The verifications that have anchors and facts."""
        return tuple(part for part in (self.cpu, self.gpu) if part is not None)


def verify_platform(
    report: Report, nonce: str | None, policy: Policy, now: int, supplied: Supplied = NOTHING
) -> PlatformVerification:
    """`nonce`: 64 lower-case hex digits that were asked with, or None. `now`: Unix seconds. `supplied`: what counts
    where the report has nothing of its own.
    """
    if report.tee_type == TDX:
        guest = verify_tdx_guest(report, nonce, policy, now, supplied)
    elif report.tee_type == SEV_SNP:
        guest = verify_snp_guest(report, nonce, policy, now, supplied)
    else:
        unknown = "there is no evidence that can be verified here"
        guest = PlatformVerification(
            cpu=None, provenance=skipped(PROVENANCE, unknown), custody=skipped(CUSTODY, unknown)
        )
    gpu = verify_gpus(report, nonce, policy, now, supplied)
    if gpu is None:
        return guest
    required = guest.required | gpu.required if asks_for_gpus(policy) else guest.required
    return replace(guest, gpu=gpu, details=(*guest.details, *gpu.checks), required=required)


def verify_tdx_guest(
    report: Report, nonce: str | None, policy: Policy, now: int, supplied: Supplied
) -> PlatformVerification:
    """The quote with the collateral that came along: all of it is signed under the policy's anchors, or it fails."""
    evidence = report.evidence
    collateral = evidence.collateral
    if collateral is None and supplied.tdx is not None:
        collateral = supplied.tdx.members
    tdx = verify_tdx(
        report.quote,
        collateral=None if collateral is None else msgspec.json.encode(collateral).decode(),
        anchors=policy.anchors,
        policy=policy.tdx,
        now=now,
        expected_report_data=aci_report_data(report.keyset_digest, nonce),
    )
    provenance = check_compose(PROVENANCE, evidence.app_compose, evidence.event_log, tdx)
    dstack = None
    if evidence.event_log is not None or policy.pins_dstack:
        shown = DstackEvidence(
            event_log=evidence.event_log,
            app_compose=evidence.app_compose,
            vm_config=evidence.vm_config,
            mr_config=evidence.mr_config_document,
        )
        dstack = verify_dstack(tdx, shown, policy.dstack)
        provenance = with_details(provenance, dstack)
    chains = verify_custody(
        evidence.key_custody,
        keyset=report.keyset,
        app_id=dstack.boot.app_id if dstack is not None and dstack.boot is not None else None,
        kms_roots=policy.dstack.kms_roots,
    )
    return PlatformVerification(
        cpu=tdx,
        slot=None if tdx.quote is None else tdx.quote.report_data,
        provenance=provenance,
        custody=concluded(CUSTODY, chains),
        details=(*(() if dstack is None else dstack.checks), *chains),
        required=dstack.required if dstack is not None and policy.pins_dstack else frozenset(),
        compose_hash=measured_compose(report, provenance),
    )


def verify_snp_guest(
    report: Report, nonce: str | None, policy: Policy, now: int, supplied: Supplied
) -> PlatformVerification:
    """The report with the certificates that came along. An SNP guest has no runtime registers: what it runs is bound
    by HOST_DATA alone, where the host committed to a document at launch (tee-evidence 3.5).
    """
    evidence = report.evidence
    document = evidence.mr_config_document
    vcek, chain, crl = endorsements_of(evidence, supplied)
    snp = verify_snp(
        report.quote,
        vcek=encoded(vcek),
        chain=encoded(chain),
        crl=crl,
        anchors=policy.anchors,
        policy=policy.snp,
        now=now,
        expected_report_data=aci_report_data(report.keyset_digest, nonce),
        expected_host_data=None if document is None else document_sha256(document),
    )
    provenance = check_host_document(report, snp)
    chains = verify_custody(evidence.key_custody, keyset=report.keyset, app_id=None, kms_roots=policy.dstack.kms_roots)
    return PlatformVerification(
        cpu=snp,
        slot=None if snp.report is None else snp.report.report_data,
        provenance=provenance,
        custody=concluded(CUSTODY, chains),
        details=chains,
        compose_hash=measured_compose(report, provenance),
    )


def endorsements_of(evidence: Evidence, supplied: Supplied) -> tuple[str | None, str | None, bytes | None]:
    """VCEK and chain (PEM), both the report's own or neither, and the revocation list (DER)."""
    vcek, chain, crl = evidence.vcek, evidence.cert_chain, list_of(evidence.crl)
    if supplied.snp is None:
        return vcek, chain, crl
    if vcek is None or chain is None:
        vcek, chain = supplied.snp.vcek, supplied.snp.cert_chain
    return vcek, chain, supplied.snp.crl_der if crl is None else crl


def asks_for_gpus(policy: Policy) -> bool:
    """Whether a service without GPU evidence is a failure."""
    return policy.gpu.required_gpus > 0 or policy.gpu.require_nras


def verify_gpus(report: Report, nonce: str | None, policy: Policy, now: int, supplied: Supplied) -> GpuResult | None:
    """GPU evidence for our nonce; None where there is none and none was asked for."""
    payload = report.evidence.nvidia_payload
    if payload is None and not asks_for_gpus(policy):
        return None
    asked = bytes(32) if nonce is None else bytes.fromhex(nonce)
    if nonce is None:  # no GPU can have answered a nonce that nobody drew
        payload = None
    gpu = verify_gpu_payload(payload, nonce=asked, anchors=policy.anchors, policy=policy.gpu, now=now)
    if payload is None or not policy.gpu.require_nras:
        return gpu
    ueids = gpu.gpu_ueids
    return gpu.with_nras(
        verify_nras(supplied.nras, nonce=asked, keys=supplied.nras_keys, gpus=len(ueids), now=now, ueids=ueids)
    )


def check_host_document(report: Report, snp: SnpResult) -> Check:
    """(id-4) The application of the document that the host committed to."""
    document, compose = report.evidence.mr_config_document, report.evidence.app_compose
    if document is None or compose is None:
        return skipped(PROVENANCE, "the report shows no app_compose and no document that the host committed to")
    if not snp.has_passed({HOST_DATA}):
        return skipped(PROVENANCE, "the SNP report does not commit to the document")
    try:
        expected = read_document(document).compose_hash
    except MrConfigError as error:
        return failed(PROVENANCE, quoted(error))
    found = sha256(compose.encode()).digest()
    if found != expected:
        return failed(PROVENANCE, f"got an app_compose of SHA-256 {found.hex()}, expected {expected.hex()}")
    return passed(PROVENANCE, f"the shown app_compose, SHA-256 {found.hex()}, is the one in HOST_DATA")


def with_details(provenance: Check, dstack: Verification) -> Check:
    """(id-4) What the single checks found wrong; a register that was read another way is no second opinion."""
    wrong = [check for check in dstack.checks if check.name in SOFTWARE_CHECKS and check.status is Status.FAIL]
    if provenance.status is Status.FAIL or not wrong:
        return provenance
    return replace(provenance, status=Status.FAIL, reason=f"{wrong[0].name}: {wrong[0].reason}")


def concluded(name: str, checks: tuple[Check, ...]) -> Check:
    """One check for several: the first that failed, else the first that could not run, else passed."""
    for status in (Status.FAIL, Status.SKIP):
        found = next((check for check in checks if check.status is status), None)
        if found is not None:
            return Check(name, status, found.reason if status is Status.SKIP else f"{found.name}: {found.reason}")
    if not checks:
        return skipped(name, "the keyset has no key whose custody could be shown")
    return passed(name, "; ".join(f"{check.name}: {check.reason}" for check in checks))


def measured_compose(report: Report, provenance: Check) -> str | None:
    """SHA-256 of the shown application, 64 hex digits, once it was shown to be the measured one."""
    compose = report.evidence.app_compose
    if compose is None or provenance.status is not Status.PASS:
        return None
    return sha256(compose.encode()).hexdigest()


def encoded(pem: str | None) -> bytes | None:
    return None if pem is None else pem.encode()
