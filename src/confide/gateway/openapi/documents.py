"""What is answered beside inference, described: errors, health, and the documents of the proof. See `answers`."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from confide.protocol.keyset import Digest, Hex64
from confide.protocol.report import Hex128


class ErrorDetail(Struct, kw_only=True):
    """All four members, always. `param`: the member at fault, a dotted path."""

    message: str
    type: str
    code: str | None
    param: str | None


class Error(Struct, kw_only=True):
    """An error. Clients branch on the status and on `type`."""

    error: ErrorDetail


class StreamErrorDetail(Struct, kw_only=True):
    """`code`: the status that it would have been."""

    message: str
    type: str
    code: int
    param: None


class StreamError(Struct, kw_only=True):
    """The last event but `[DONE]` of a stream that broke."""

    error: StreamErrorDetail


class Root(Struct, kw_only=True):
    """The version of ACI, and the keyset that stands now."""

    api_version: Literal["aci/1"]
    workload_keyset_digest: Digest


class Health(Struct, kw_only=True):
    """It is alive, and no more is said."""

    status: Literal["ok"]


class Readiness(Struct, kw_only=True):
    """Whether it can answer."""

    status: Literal["ready", "starting", "draining", "degraded"]


class ReceiptKey(Struct, kw_only=True):
    """What signs receipts."""

    key_id: str
    algo: str
    public_key: str


class TlsKey(Struct, kw_only=True):
    """Where TLS ends. SHA-256 of the key's SubjectPublicKeyInfo; without `domain`, for every host."""

    spki_sha256: Hex64
    domain: str | UnsetType = UNSET


class WorkloadKeyset(Struct, kw_only=True):
    """The identity of this service (wire contract 7.1)."""

    subject: str | None
    not_after: int
    receipt_signing_keys: list[ReceiptKey]
    e2ee_public_keys: list[ReceiptKey]
    tls_public_keys: list[TlsKey]


class SourceProvenance(Struct, kw_only=True):
    """Which source it was built from; null where that is not known."""

    repo_url: str | None
    repo_commit: str | None
    image_digest: str | None
    image_provenance: dict[str, object] | None


class AciEvidence(Struct, kw_only=True):
    """What the platform gave: `quote` on TDX, `snp_report` on SEV-SNP, and what is needed to verify it."""

    quote_report_data: Hex128
    quote: str | UnsetType = UNSET
    event_log: str | UnsetType = UNSET
    vm_config: str | UnsetType = UNSET
    app_compose: str | UnsetType = UNSET
    collateral: dict[str, str] | UnsetType = UNSET
    simulated: bool | UnsetType = UNSET
    key_custody: dict[str, object] | UnsetType = UNSET
    downstream_tls_binding: TlsKey | UnsetType = UNSET
    snp_report: str | UnsetType = UNSET
    vcek: str | UnsetType = UNSET
    cert_chain: str | UnsetType = UNSET
    crl: str | UnsetType = UNSET
    mr_config_document: str | UnsetType = UNSET
    nvidia_payload: str | UnsetType = UNSET


class AciAttestation(Struct, kw_only=True):
    """The keyset, and the evidence that binds it."""

    tee_type: Literal["tdx", "sev_snp"]
    workload_keyset: WorkloadKeyset
    report_data: Hex64
    source_provenance: SourceProvenance
    evidence: AciEvidence


class Capabilities(Struct, kw_only=True):
    """`direct`: inference runs in this workload; `aggregator`: there is a second hop."""

    supported_e2ee_versions: list[str]
    serving: Literal["direct", "aggregator"]


class AciReport(Struct, kw_only=True):
    """The attestation report of aci/1 (wire contract 7.3). It proves nothing until its quote is verified."""

    api_version: Literal["aci/1"]
    workload_keyset_digest: Digest
    attestation: AciAttestation
    service_capabilities: Capabilities


class Event(Struct, kw_only=True):
    """One event of a receipt. Which members it has follows from its `type`."""

    type: Literal[
        "request.received",
        "request.forwarded",
        "response.returned",
        "response.outcome",
        "upstream.verified",
        "upstream.attempt",
    ]
    body_hash: Digest | UnsetType = UNSET
    outcome: str | UnsetType = UNSET
    result: Literal["verified", "failed"] | UnsetType = UNSET
    required: bool | UnsetType = UNSET
    model_id: str | UnsetType = UNSET
    session_id: Hex64 | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    upstream_name: str | UnsetType = UNSET


class Receipt(Struct, kw_only=True):
    """The signed receipt of one exchange (wire contract 7.6). `signature`: over all of it but itself, as RFC 8785."""

    api_version: Literal["aci/1"]
    receipt_id: str
    chat_id: str | None
    model: str | None
    workload_keyset_digest: Digest
    endpoint: str
    method: Literal["POST"]
    served_at: int
    event_log: list[Event]
    key_id: str
    signature: Hex128


class Signature(Struct, kw_only=True):
    """The request signature (wire contract 5). `text`: SHA-256 of the request, a colon, SHA-256 of the response."""

    text: str
    signature: str
    signing_address: str
    signing_algo: Literal["ecdsa", "ed25519"]
    signature_kind: Literal["gateway"]
    api_version: Literal["aci/1"]
    receipt: Receipt


class LegacyAttestation(Struct, kw_only=True):
    """The evidence for one signer (wire contract 6.1)."""

    signing_address: str
    signing_algo: Literal["ecdsa", "ed25519"]
    signing_public_key: str
    request_nonce: Hex64
    intel_quote: str
    quote: str
    report_data: Hex128
    nvidia_payload: str
    event_log: str
    vm_config: str
    info: dict[str, object]
    version: Literal[1, 2]
    simulated: bool
    tls_cert_fingerprint: Hex64 | UnsetType = UNSET
    collateral: dict[str, str] | UnsetType = UNSET


class ModelAttestation(LegacyAttestation, kw_only=True):
    """The same, for the model that was asked for."""

    model_name: str


class LegacyReport(LegacyAttestation, kw_only=True):
    """The report of wire contract 6.2: one signer's evidence, in every place where a verifier looks for it."""

    all_attestations: list[LegacyAttestation]
    gateway_attestation: LegacyAttestation | UnsetType = UNSET
    model_attestations: list[ModelAttestation] | UnsetType = UNSET


class Claim(Struct, kw_only=True):
    """What was found out, and by whom."""

    status: Literal["asserted", "refuted", "unknown"]
    source: str | UnsetType | None = UNSET
    reason: str | UnsetType | None = UNSET


class Claims(Struct, kw_only=True):
    """Six claims, always, and further facts."""

    tee_attested: Claim
    gpu_attested: Claim
    tcb_up_to_date: Claim
    os_known_good: Claim
    serving_software_known_good: Claim
    model_weights_provenance: Claim
    extra: dict[str, object] | UnsetType = UNSET


class Binding(Struct, kw_only=True):
    """What the channel is bound to."""

    type: str
    origin: str | UnsetType = UNSET
    spki_sha256: Hex64 | UnsetType = UNSET
    provider: str | UnsetType = UNSET
    key_id: str | UnsetType = UNSET
    algorithm: str | UnsetType = UNSET
    public_key_sha256: Hex64 | UnsetType = UNSET


class SessionEvidence(Struct, kw_only=True):
    """The bytes that the verifier consumed, as a data URL, and their digest. The list leaves `data` out."""

    digest: Digest
    data: str | UnsetType = UNSET


class Session(Struct, kw_only=True):
    """One verified channel to an upstream for one period (wire contract 7.8), under the hash of this document."""

    api_version: Literal["aci/1"]
    upstream_name: str
    endpoint: str | None
    verifier_id: str
    established_at: int
    expires_at: int
    channel_binding: list[Binding]
    claims: Claims
    evidence: SessionEvidence
    identity: dict[str, object] | UnsetType | None = UNSET
    session_id: Hex64 | UnsetType = UNSET


class Sessions(Struct, kw_only=True):
    """The sessions that prompts may be sent in now, newest first; none on a service without a second hop."""

    api_version: Literal["aci/1"]
    sessions: list[Session]
