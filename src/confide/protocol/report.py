"""The ACI attestation report: written by the service, read by a relying party (wire contract 7.3).

A report proves nothing by itself. Its quote does, once it verified and its report data are those of the statement over
this keyset and one's own nonce; that is the relying party's work with the evidence room, not done here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hmac import compare_digest
from typing import Annotated, Any, Literal

import msgspec

from confide.protocol.canonical import DIGEST, DocumentError, parse_document, typed
from confide.protocol.keyset import Digest, Hex64, Keyset, parse_keyset
from confide.protocol.statement import aci_report_data

API_VERSION = "aci/1"
SLOT_BYTES = 64
COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})")
HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")

Hex128 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")]


class SourceProvenance(msgspec.Struct, frozen=True):
    """Which source the service was built from: labels, until measured evidence backs them. None: not known.

    `image_provenance` is for a policy to read; a foreign service may put any value there.
    """

    repo_url: str | None = None
    repo_commit: str | None = None
    image_digest: str | None = None
    image_provenance: Any = None

    @property
    def is_acceptable(self) -> bool:
        """Whether it names something: a repository with its full commit, or an image digest."""
        has_commit = self.repo_commit is not None and COMMIT.fullmatch(self.repo_commit) is not None
        has_image = self.image_digest is not None and DIGEST.fullmatch(self.image_digest) is not None
        return (bool(self.repo_url) and has_commit) or has_image


class Evidence(msgspec.Struct, frozen=True):
    """The members of `attestation.evidence` that we read; a foreign service may send others.

    `quote`: hex. `quote_report_data`: 128 hex digits. `event_log`, `vm_config`: JSON text. The others are ours:
    `collateral`, DCAP collateral members; `simulated`, no hardware stands behind it; `snp_report` (hex) with `vcek` and
    `cert_chain` (PEM) and `crl` (DER in hex) in place of a quote; `mr_config_document`, to whose hash a guest may be
    bound; `nvidia_payload`, JSON text (wire contract 6.4).
    """

    quote: str | None = None
    quote_report_data: Hex128 | None = None
    event_log: str | None = None
    app_compose: str | None = None
    vm_config: str | None = None
    key_custody: Any = None
    downstream_tls_binding: Any = None
    collateral: dict[str, str] | None = None
    simulated: bool = False
    snp_report: str | None = None
    vcek: str | None = None
    cert_chain: str | None = None
    crl: str | None = None
    mr_config_document: str | None = None
    nvidia_payload: str | None = None


class Attestation(msgspec.Struct, frozen=True):
    """`attestation` of a report, its keyset still as parsed."""

    tee_type: str
    workload_keyset: dict[str, Any]
    report_data: Hex64
    evidence: Evidence
    source_provenance: SourceProvenance | None = None


class Capabilities(msgspec.Struct, frozen=True):
    """`service_capabilities`. An unknown or absent `serving` is read as the weaker one, "aggregator"."""

    supported_e2ee_versions: tuple[str, ...] = ()
    serving: str = "aggregator"


class Document(msgspec.Struct, frozen=True):
    """The report's members."""

    api_version: str
    workload_keyset_digest: Digest
    attestation: Attestation
    service_capabilities: Capabilities = Capabilities()


@dataclass(frozen=True)
class Report:
    """A report that could be read. Everything in it is a claim; only `keyset_digest` was recomputed, by us.

    `claimed_digest`: what the report says its keyset's digest is. `report_data`: bare hex. `quote`: the
    bytes of the quote, or of the SNP report.
    """

    claimed_digest: str
    keyset: Keyset
    keyset_digest: str
    tee_type: str
    report_data: str
    quote: bytes
    evidence: Evidence
    provenance: SourceProvenance | None
    serving: Literal["direct", "aggregator"]


def aci_report(
    *,
    keyset: Keyset,
    nonce: str | None,
    tee_type: str,
    provenance: SourceProvenance,
    evidence: Mapping[str, object],
    serving: Literal["direct", "aggregator"] = "direct",
    e2ee_versions: tuple[str, ...] = (),
) -> dict[str, object]:
    """The report document over a quote for this keyset and nonce. `evidence`: its members, `quote` in hex among them.

    `nonce`: 64 lower-case hex digits, or None. Raises ValueError as `aci_report_data` does.
    """
    digest = keyset.digest()
    return {
        "api_version": API_VERSION,
        "workload_keyset_digest": digest,
        "attestation": {
            "tee_type": tee_type,
            "workload_keyset": keyset.document(),
            "report_data": aci_report_data(digest, nonce)[:32].hex(),
            "source_provenance": msgspec.to_builtins(provenance),
            "evidence": dict(evidence),
        },
        "service_capabilities": {"supported_e2ee_versions": list(e2ee_versions), "serving": serving},
    }


def parse_report(raw: bytes) -> Report:
    """A foreign report. Raises DocumentError where it cannot be read; what it says is not judged here."""
    document = typed(parse_document(raw, what="the report"), Document, what="the report")
    if document.api_version != API_VERSION:
        raise DocumentError(f"the report: api_version is not {API_VERSION}")
    attestation = document.attestation
    keyset, digest = parse_keyset(attestation.workload_keyset)
    return Report(
        claimed_digest=document.workload_keyset_digest,
        keyset=keyset,
        keyset_digest=digest,
        tee_type=attestation.tee_type,
        report_data=attestation.report_data,
        quote=quoted_bytes(attestation.evidence),
        evidence=attestation.evidence,
        provenance=attestation.source_provenance,
        serving="direct" if document.service_capabilities.serving == "direct" else "aggregator",
    )


def quoted_bytes(evidence: Evidence) -> bytes:
    """The quote, or the SNP report where there is no quote. Raises DocumentError."""
    if evidence.quote is not None:
        return unhexed(evidence.quote, "attestation.evidence.quote")
    if evidence.snp_report is not None:
        return unhexed(evidence.snp_report, "attestation.evidence.snp_report")
    raise DocumentError("the report: attestation.evidence has neither a quote nor an snp_report")


def binds(report: Report, nonce: str | None) -> str | None:
    """Why the report's own words do not bind its keyset to `nonce` (64 lower-case hex digits or None), or None.

    What the *quote* holds is to be compared with `aci_report_data(report.keyset_digest, nonce)` besides. Raises
    ValueError for a nonce of another form.
    """
    if not compare_digest(report.claimed_digest.encode(), report.keyset_digest.encode()):
        got = f"got workload_keyset_digest {report.claimed_digest}, expected {report.keyset_digest}"
        return f"{got}: the report names another digest than that of its keyset"
    slot = aci_report_data(report.keyset_digest, nonce)
    if not compare_digest(report.report_data.encode(), slot[:32].hex().encode()):
        got = f"got report_data {report.report_data}, expected {slot[:32].hex()}"
        return f"{got}: report_data is not the hash of the statement over this keyset and this nonce"
    stated = report.evidence.quote_report_data
    if stated is not None and not compare_digest(stated.encode(), slot.hex().encode()):
        got = f"got quote_report_data {stated}, expected {slot.hex()}"
        return f"{got}: quote_report_data is not that hash followed by 32 zero bytes"
    return None


def unhexed(text: str, member: str) -> bytes:
    """The bytes of hex digits in either case, without white space. Raises DocumentError."""
    if HEX.fullmatch(text) is None:
        raise DocumentError(f"the report: {member} is not hex")
    return bytes.fromhex(text)
