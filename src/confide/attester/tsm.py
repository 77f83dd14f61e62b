"""The attester of a bare confidential guest: TDX or SEV-SNP through configfs-tsm (tee-evidence 2.2, 2.3; ADR 11).

There is no key management service here. The keys are drawn when the attester opens, live in the memory of this guest
alone, and end with the process: a restart makes a new keyset.
"""

import asyncio
import base64
from dataclasses import replace
from typing import Self

from confide.attester.base import MAX_WAITING, Evidence, SnpCertificates
from confide.attester.keys import DrawnSeed
from confide.attester.one_thread import OneThread
from confide.attester.own_collateral import OwnCollateral
from confide.attester.own_output import REPORT_DATA_BYTES, require_same, snp_report_data, tdx_report_data
from confide.attester.simulated_tsm import ENDPOINT_VARIABLE
from confide.attester.tsm_report import SNP, TDX, TsmBusy, TsmError, TsmReader, TsmReport
from confide.errors import ConfigError, InternalError, NotReady
from confide.evidence.snp_table import ARK, ASK, SnpTableError, parse_certificate_table

DEADLINE_S = 60.0  # for a report and those waiting before it
RETRY_AFTER_S = 10
TEE_TYPES = {TDX: "tdx", SNP: "sev_snp"}
REPORT_DATA = {TDX: tdx_report_data, SNP: snp_report_data}
START_REMEDY = (
    "It needs Linux 6.7 or newer with CONFIG_TSM_REPORTS, the module tdx_guest or sev-guest, configfs mounted at "
    "/sys/kernel/config, and a directory /sys/kernel/config/tsm/report that this user may write (root, or chown)."
)
SIMULATOR_REMEDY = f"See that `confide simulate tsm` runs, and that {ENDPOINT_VARIABLE} names its socket."


class TsmAttester:
    """Reports one after the other; those who come meanwhile wait in a bounded queue. Made by `open`."""

    kind = "tsm"
    app_id = None

    def __init__(
        self,
        reader: TsmReader,
        provider: str,
        *,
        collateral: OwnCollateral | None = None,
        deadline_s: float = DEADLINE_S,
        simulated: bool = False,
        seed: DrawnSeed | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """`provider`: "tdx_guest" or "sev_guest". The others: see `open`."""
        self.simulated = simulated
        drawn = seed or DrawnSeed()
        self.keys = drawn.legacy()
        self.workload_keys = drawn.workload()
        self.tee_type = TEE_TYPES[provider]
        self._provider = provider
        self._reader = reader
        self._collateral = collateral
        self._thread = OneThread("tsm-attester", max_waiting=max_waiting, deadline_s=deadline_s)

    @classmethod
    async def open(
        cls,
        reader: TsmReader,
        *,
        collateral: OwnCollateral | None = None,
        deadline_s: float = DEADLINE_S,
        simulated: bool = False,
        seed: DrawnSeed | None = None,
        max_waiting: int = MAX_WAITING,
    ) -> Self:
        """Ask who answers, and for one report, to see that this platform is one whose evidence can be served.

        `collateral`: what travels with quotes, and with reports where the host gave no certificates; None leaves it to
        verifiers. `deadline_s`: for each report, waiting included. `simulated`: the reader's files are no kernel's.
        `seed`: what the keys follow from, where several processes have the same; None draws one.
        `max_waiting`: reports asked for at a time.

        Raises ConfigError, which says what is missing.
        """
        thread = OneThread("tsm-attester-start", max_waiting=1, deadline_s=deadline_s)
        try:
            provider = await thread.call(reader.provider, what="calls")
            if provider not in TEE_TYPES:
                raise ConfigError(
                    f'[attester] kind = "tsm": the provider is {provider[:40]!r}, expected {TDX} or {SNP}',
                    remedy="Other platforms are not supported by this version.",
                )
            attester = cls(
                reader,
                provider,
                collateral=collateral,
                deadline_s=deadline_s,
                simulated=simulated,
                seed=seed,
                max_waiting=max_waiting,
            )
            await attester.attest(bytes(REPORT_DATA_BYTES))
        except (TsmError, NotReady, InternalError) as error:
            reason = error.message if isinstance(error, NotReady | InternalError) else str(error)
            cause = f": {error.__cause__}" if isinstance(error.__cause__, TsmError) else ""
            raise ConfigError(
                f'[attester] kind = "tsm": {reason}{cause}', remedy=SIMULATOR_REMEDY if simulated else START_REMEDY
            ) from error
        return attester

    async def attest(self, report_data: bytes) -> Evidence:
        """Fresh evidence over exactly 64 bytes, else ValueError.

        Raises NotReady when `max_waiting` requests wait already, after the deadline and while the platform is busy,
        InternalError when it fails or its report holds other data.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"{REPORT_DATA_BYTES} bytes of report data expected, got {len(report_data)}")
        try:
            report = await self._thread.call(lambda: self._report(report_data), what="attestation requests")
        except TsmBusy as error:
            raise NotReady("the platform gives no evidence at present", retry_after_s=RETRY_AFTER_S) from error
        except TsmError as error:
            raise InternalError("the platform gave no evidence") from error
        require_same(REPORT_DATA[self._provider](report.outblob), report_data)
        return Evidence(
            tee_type=self.tee_type,
            quote=report.outblob,
            report_data=report_data,  # the same bytes as in the report, as was just required
            event_log="",  # nobody logs here what was measured
            vm_config="",
            info={},
            collateral=await self._quote_collateral(report),
            simulated=self.simulated,
            snp_certificates=await self._certificates(report),
        )

    async def _quote_collateral(self, report: TsmReport) -> dict[str, str] | None:
        if self._provider != TDX or self._collateral is None:
            return None
        return await self._collateral.for_quote(report.outblob)

    async def _certificates(self, report: TsmReport) -> SnpCertificates | None:
        """Those that the host gave, AMD's where it gave none, and what AMD revoked."""
        if self._provider != SNP:
            return None
        given = snp_certificates(report.auxblob)
        if self._collateral is None:
            return given
        found, crl = await asyncio.gather(
            given_or(given, self._collateral, report.outblob), self._collateral.revoked_for(report.outblob)
        )
        return None if found is None else replace(found, crl=crl)

    def _report(self, report_data: bytes) -> TsmReport:
        return self._reader.report(report_data, provider=self._provider)


async def given_or(given: SnpCertificates | None, amd: OwnCollateral, report: bytes) -> SnpCertificates | None:
    """The host's certificates, or those that AMD has for the chip that made the report."""
    return given or await amd.for_report(report)


def snp_certificates(table: bytes) -> SnpCertificates | None:
    """The certificates that the host put beside the report; None where there are none, or none that can be read.

    The host fills the table in. What is wrong with it costs verifiers a fetch from AMD, and no more: each of them
    checks the chain up to a root that is its own.
    """
    try:
        found = parse_certificate_table(table)
    except SnpTableError:
        return None
    if found.vcek is None:
        return None
    between, root = found.certificates.get(ASK), found.certificates.get(ARK)
    return SnpCertificates(vcek=pem(found.vcek), cert_chain=pem(between) + pem(root) if between and root else None)


def pem(certificate: bytes) -> str:
    """The certificate as PEM text, whichever of the two it was. By hand: real ones have the serial number 0."""
    if certificate.startswith(b"-----BEGIN "):
        return certificate.decode("ascii", "replace").rstrip("\x00").rstrip() + "\n"
    digits = base64.b64encode(certificate).decode()
    lines = (digits[start : start + 64] for start in range(0, len(digits), 64))
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))
