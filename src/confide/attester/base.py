"""What an attester is, and the evidence it gives (RFC 9334: attester, evidence)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from confide.attester.keys import LegacyKeys, WorkloadKeys
from confide.protocol.keyset import ED25519

# How a receipt key follows from the released secret (attester/keys.py), for whoever reads the evidence.
RECEIPT_DERIVATION = "HKDF-SHA256, no salt, info confide/v1/receipt ed25519/<epoch>"

TDX, SEV_SNP = "tdx", "sev_snp"  # `tee_type`

# Requests for evidence that one service takes at a time, the one that is being answered among them.
MAX_WAITING = 64


@dataclass(frozen=True)
class KeyCustody:
    """Who released the secret behind the receipt keys (wire contract 7.3, tee-evidence 3.6).

    `path`, `purpose`: what it was asked for with. `kms_public_key`: the compressed secp256k1 key of the secret, 66 hex
    digits. `signature_chain`: two of 65 bytes, hex: the app's key signed that key, and the KMS root the app's.
    """

    path: str
    purpose: str
    kms_public_key: str
    signature_chain: tuple[str, str]

    def document(self, receipt_key: str) -> dict[str, object]:
        """`evidence.key_custody` for the receipt key of one keyset, 64 hex digits. `derivation` is ours (ADR 9)."""
        entry = {
            "role": "receipt",
            "path": self.path,
            "purpose": self.purpose,
            "algo": ED25519,
            "public_key": receipt_key,
            "kms_public_key": self.kms_public_key,
            "signature_chain": list(self.signature_chain),
            "derivation": RECEIPT_DERIVATION,
        }
        return {"provider": "dstack-kms", "keys": [entry]}


@dataclass(frozen=True)
class SnpCertificates:
    """What came beside an SNP report (tee-evidence 2.3): the VCEK or VLEK, then ASK and ARK; PEM. `cert_chain`: None
    when the host gave the first alone. `crl`: AMD's revocation list, DER in hex, None where it is not to be had.
    """

    vcek: str
    cert_chain: str | None
    crl: str | None = None


@dataclass(frozen=True)
class Evidence:
    """What the platform gave, as it gave it, never re-encoded.

    `tee_type`: "tdx" or "sev_snp". `quote`: the quote, or the SNP report. `event_log` and `vm_config`: JSON text, empty
    where nobody keeps them. `info`: dstack `Info` (wire contract 6.1), else empty. `report_data`: the 64 bytes, as read
    back out of the quote. `collateral`: DCAP collateral members, None when a verifier has to fetch its own.
    `simulated`: no hardware stands behind it. `key_custody`: who released the receipt keys, None when they never left
    the platform. `snp_certificates`: None on TDX, and when a verifier has to fetch them.
    """

    tee_type: str
    quote: bytes
    report_data: bytes
    event_log: str
    vm_config: str
    info: dict[str, object]
    collateral: dict[str, str] | None
    simulated: bool
    key_custody: KeyCustody | None = None
    snp_certificates: SnpCertificates | None = None

    def aci_members(self, receipt_key: str | None = None) -> dict[str, object]:
        """`attestation.evidence` of the ACI report (wire contract 7.3); `collateral` and `simulated` are ours.

        `receipt_key`: the Ed25519 key in the report's keyset, 64 hex digits; `key_custody` is about it, and left out
        without it.
        """
        if self.tee_type == SEV_SNP:
            return self._snp_members()
        members: dict[str, object] = {
            "quote": self.quote.hex(),
            "quote_report_data": self.report_data.hex(),
        }
        if self.event_log:
            members["event_log"] = self.event_log
        if self.vm_config:
            members["vm_config"] = self.vm_config
        compose = app_compose_of(self.info)
        if compose is not None:
            members["app_compose"] = compose
        if self.collateral is not None:
            members["collateral"] = self.collateral
        if self.simulated:
            members["simulated"] = True
        if self.key_custody is not None and receipt_key is not None:
            members["key_custody"] = self.key_custody.document(receipt_key)
        return members

    def _snp_members(self) -> dict[str, object]:
        """The same for an SNP report. The names are ours: the contract leaves them open (tee-evidence 2.3)."""
        members: dict[str, object] = {"snp_report": self.quote.hex(), "quote_report_data": self.report_data.hex()}
        if self.snp_certificates is not None:
            members["vcek"] = self.snp_certificates.vcek
            if self.snp_certificates.cert_chain is not None:
                members["cert_chain"] = self.snp_certificates.cert_chain
            if self.snp_certificates.crl is not None:
                members["crl"] = self.snp_certificates.crl
        if self.simulated:
            members["simulated"] = True
        return members


class Attester(Protocol):
    """One TEE platform: it holds the signing keys and quotes report data on demand (tee-evidence 2)."""

    @property
    def kind(self) -> str:
        """The name in the configuration, for example "simulated"."""

    @property
    def tee_type(self) -> str:
        """The platform: "tdx" or "sev_snp" (wire contract 7.3)."""

    @property
    def simulated(self) -> bool:
        """True when no hardware protects the keys and the evidence. Every label of the service follows it."""

    @property
    def app_id(self) -> str | None:
        """What the platform calls this application, None where it has no such name."""

    @property
    def keys(self) -> LegacyKeys:
        """The signing keys that this attester's evidence binds."""

    @property
    def workload_keys(self) -> WorkloadKeys:
        """The keys of the workload keyset, by role (wire contract 7.1)."""

    async def attest(self, report_data: bytes) -> Evidence:
        """Fresh evidence over exactly 64 bytes.

        The attester reads the report data back out of its own quote; a difference is an InternalError. Raises
        NotReady when the platform is busy for too long.
        """


def app_compose_of(info: Mapping[str, object]) -> str | None:
    """The text of the application's compose file in a platform's `info`, None where it names none.

    It stands in `tcb_info`: an object, or its JSON text. Raises ValueError where that text is no JSON object.
    """
    tcb_info = info.get("tcb_info")
    if isinstance(tcb_info, str) and tcb_info:
        try:
            tcb_info = msgspec.json.decode(tcb_info, type=dict[str, object])
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError("tcb_info is text, and no JSON object") from error
    compose = tcb_info.get("app_compose") if isinstance(tcb_info, dict) else None
    return compose if isinstance(compose, str) else None
