"""The routes that only tell: the catalogue, the proof, the service itself (wire contract 1, 3.1, 5 to 7)."""

from confide.errors import (
    CredentialRequired,
    InternalError,
    InvalidRequest,
    InvalidSigningAlgo,
    ModelNotFound,
    NotFound,
    NotReady,
)
from confide.gateway.openapi import answers, documents
from confide.gateway.openapi.operations import JSON, Access, Answer, Operation, Parameter
from confide.gateway.openapi.schemas import Either

CATALOGUE, PROOF, SERVICE = "Catalogue", "Proof", "Service"
TEXT = {"type": "string"}
NONCE_EXAMPLE = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
ALGO = Parameter(
    "signing_algo",
    {"enum": ["ecdsa", "ed25519"], "default": "ecdsa"},
    "secp256k1 as EIP-191 has it, or Ed25519.",
)
ACI_NONCE = Parameter(
    "nonce",
    {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "32 random bytes of yours as 64 lower-case hex digits: the quote is then fresh. Without it, a cached report.",
    example=NONCE_EXAMPLE,
)
LEGACY_NONCE = Parameter(
    "nonce",
    {"type": "string", "pattern": "^([0-9a-fA-F]{64})?$"},
    "32 random bytes of yours as 64 hex digits. Without it the service draws one.",
    example=NONCE_EXAMPLE,
)


def in_path(name: str, description: str, example: str, pattern: str | None = None) -> Parameter:
    schema = {"type": "string", "minLength": 1} if pattern is None else {"type": "string", "pattern": pattern}
    return Parameter(name, schema, description, "path", example)


MODELS = (
    Operation(
        "get",
        "/v1/models",
        "listModels",
        CATALOGUE,
        "The models there are",
        "Every name that `model` takes; an alias is an entry of its own. Nothing here is evidence.",
        (Answer(JSON, answers.ModelList),),
        namespace="models",
        parameters=(Parameter("provider", TEXT, "Those of this provider, or with an alias under `provider/`."),),
    ),
    Operation(
        "get",
        "/v1/models/{name}",
        "retrieveModel",
        CATALOGUE,
        "One model, or those of a provider",
        "Slashes belong to a model's name and may be sent as `%2F`. A name without a slash that is no model's is a "
        "provider's.",
        (Answer(JSON, Either(answers.Model, answers.ModelList)),),
        namespace="models",
        parameters=(in_path("name", "A model's id or alias, or a provider.", "confide/smollm2-135m"),),
        errors=(ModelNotFound, InternalError),
    ),
    Operation(
        "get",
        "/v1/models/providers/{provider}",
        "listModelsOfProvider",
        CATALOGUE,
        "The models of a provider",
        "None for an unknown one.",
        (Answer(JSON, answers.ModelList),),
        namespace="models",
        parameters=(in_path("provider", "The provider.", "confide"),),
        errors=(NotFound, InternalError),
    ),
    Operation(
        "get",
        "/v1/embeddings/models",
        "listEmbeddingModels",
        CATALOGUE,
        "The embedding models there are",
        "They are not among those of `/v1/models`.",
        (Answer(JSON, answers.ModelList),),
        namespace="models",
    ),
)
PROOFS = (
    Operation(
        "get",
        "/v1/signature/{id}",
        "getSignature",
        PROOF,
        "The request signature of an answer",
        "Over the SHA-256 of the bytes that were sent and got ([more](/docs/proof.md)).",
        (Answer(JSON, documents.Signature),),
        access=Access.BOUND,
        parameters=(
            in_path("id", "The `id` of an answer, or its `X-Receipt-Id`.", "rcpt-00112233445566778899aabb"),
            Parameter("model", TEXT, "The model that answered; not needed here."),
            ALGO,
        ),
        errors=(InvalidSigningAlgo, CredentialRequired, NotFound, InternalError),
    ),
    Operation(
        "get",
        "/v1/attestation/report",
        "getAttestationReport",
        PROOF,
        "The report that binds the signing key to the TEE",
        "A TDX quote over the signing address and your nonce ([more](/docs/proof.md)).",
        (Answer(JSON, documents.LegacyReport),),
        parameters=(
            Parameter("model", TEXT, "Adds `gateway_attestation` and `model_attestations` for this model."),
            LEGACY_NONCE,
            Parameter("signing_address", TEXT, "The report of this signer."),
            ALGO,
            Parameter("version", {"enum": ["", "1", "2"]}, "2 binds the TLS key too, where the service has one."),
            Parameter("include_tls_fingerprint", {"enum": ["", "true", "false"]}, "`true`: the same as version 2."),
        ),
        errors=(InvalidRequest, InvalidSigningAlgo, NotFound, ModelNotFound, InternalError, NotReady),
        headers=("Cache-Control",),
    ),
    Operation(
        "get",
        "/v1/aci/attestation",
        "getAttestation",
        PROOF,
        "The attestation report of aci/1",
        "The workload keyset, and a quote that binds it to your nonce ([more](/docs/verify.md)).",
        (Answer(JSON, documents.AciReport),),
        parameters=(ACI_NONCE,),
        errors=(InvalidRequest, NotFound, InternalError, NotReady),
    ),
    Operation(
        "get",
        "/v1/aci/keysets/{digest}",
        "getKeyset",
        PROOF,
        "The report of a keyset that stood before",
        "For receipts that name it; without a nonce.",
        (Answer(JSON, documents.AciReport),),
        parameters=(in_path("digest", "`sha256:` and 64 hex digits.", "sha256:" + "0" * 64),),
        errors=(NotFound, InternalError),
    ),
    Operation(
        "get",
        "/v1/aci/receipts/{id}",
        "getReceipt",
        PROOF,
        "The signed receipt of an answer",
        "What was received, forwarded and returned, as SHA-256 ([more](/docs/receipts.md)).",
        (Answer(JSON, documents.Receipt),),
        access=Access.BOUND,
        parameters=(in_path("id", "`X-Receipt-Id`, or the `id` of an answer.", "rcpt-00112233445566778899aabb"),),
        errors=(CredentialRequired, NotFound, InternalError),
        headers=("Cache-Control",),
    ),
    Operation(
        "get",
        "/v1/aci/sessions",
        "listSessions",
        PROOF,
        "The attested sessions that stand now",
        "Of a second hop, where there is one ([more](/docs/upstreams.md)).",
        (Answer(JSON, documents.Sessions),),
        parameters=(
            Parameter("upstream_name", TEXT, "Those of this upstream."),
            Parameter("provider", TEXT, "The older name of `upstream_name`."),
            Parameter("model", TEXT, "Those that may serve this model."),
        ),
        errors=(InvalidRequest, InternalError),
    ),
    Operation(
        "get",
        "/v1/aci/sessions/{session_id}",
        "getSession",
        PROOF,
        "One attested session, with its evidence",
        "Under the hash of its content.",
        (Answer(JSON, documents.Session),),
        parameters=(in_path("session_id", "64 hex digits.", "0" * 64),),
        errors=(NotFound, InternalError),
    ),
)
ABOUT = (
    Operation(
        "get", "/", "getRoot", SERVICE, "Which keyset stands now", "Not evidence.", (Answer(JSON, documents.Root),)
    ),
    Operation(
        "get",
        "/health",
        "getHealth",
        SERVICE,
        "Whether it is alive",
        "Liveness only.",
        (Answer(JSON, documents.Health),),
    ),
    Operation(
        "get",
        "/health/ready",
        "getReadiness",
        SERVICE,
        "Whether it can answer",
        "Costs no token and touches no upstream.",
        (Answer(JSON, documents.Readiness),),
        not_ready=True,
    ),
    Operation(
        "get",
        "/llms.txt",
        "getLlmsTxt",
        SERVICE,
        "What there is to read and to ask, for a model",
        "An index of the routes and of the documents.",
        (Answer("text/plain; charset=utf-8", TEXT),),
    ),
    Operation(
        "get",
        "/openapi.json",
        "getOpenApi",
        SERVICE,
        "This document",
        "OpenAPI 3.1.",
        (Answer(JSON, {"type": "object", "required": ["openapi", "info", "paths"]}),),
    ),
    Operation(
        "get",
        "/docs",
        "getReference",
        SERVICE,
        "This document as a page",
        "Without scripts.",
        (Answer("text/html; charset=utf-8", TEXT),),
    ),
    Operation(
        "get",
        "/docs/{name}",
        "getDocument",
        SERVICE,
        "One of the documents",
        "As Markdown; those that `/llms.txt` lists.",
        (Answer("text/markdown; charset=utf-8", TEXT),),
        parameters=(in_path("name", "A name that `/llms.txt` lists, such as `verify.md`.", "verify.md"),),
        errors=(NotFound, InternalError),
    ),
)
LOOKUPS = (*MODELS, *PROOFS, *ABOUT)
