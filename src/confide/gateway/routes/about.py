"""What the service is and whether it can answer: `/`, `/health`, `/health/ready`, `/llms.txt`."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from confide.gateway.keysets import CurrentKeyset
from confide.protocol.report import API_VERSION

LLMS_TXT = """# Confide

> An OpenAI-compatible inference service that proves what it did.

- POST /v1/chat/completions: chat, buffered or streamed (OpenAI shape)
- POST /v1/completions: text that goes on where a prompt ends, buffered or streamed (OpenAI shape)
- POST /v1/responses: the same models in OpenAI's Responses format, buffered or streamed; nothing is stored
- POST /v1/messages: chat, buffered or streamed (Anthropic Messages shape)
- POST /v1/messages/count_tokens: the tokens of a prompt, where the model's upstream can count them
- POST /v1/embeddings: vectors of texts (OpenAI shape)
- GET /v1/models: the models to chat with
- GET /v1/embeddings/models: the models that make vectors
- GET /v1/signature/{id}?signing_algo=ecdsa|ed25519: the signature over the SHA-256 of a request and of its response,
  found by the response `id`
- GET /v1/aci/attestation?nonce=<64 lower-case hex digits>: the attestation report that binds the workload keyset
- GET /v1/aci/receipts/{id}: the signed receipt of a response, by its X-Receipt-Id or its `id`
- GET /v1/aci/keysets/{digest}: the report of a keyset that stood before, for receipts that name it
- GET /v1/aci/sessions: attested sessions of a second hop, where there is one
- GET /v1/attestation/report?nonce=<64 hex digits>: the quote that binds the signing key to the TEE, for your nonce
- GET /health, GET /health/ready: liveness and readiness
"""


def routes(readiness: Callable[[], str], keyset: CurrentKeyset) -> list[Route]:
    """The routes of this surface; `readiness` gives ready, starting, draining or degraded."""

    async def root(_: Request) -> Response:
        return JSONResponse({"api_version": API_VERSION, "workload_keyset_digest": keyset().epoch.digest})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        status = readiness()
        return JSONResponse({"status": status}, status_code=200 if status == "ready" else 503)

    async def llms(_: Request) -> Response:
        return PlainTextResponse(LLMS_TXT)

    return [
        Route("/", root),
        Route("/health", health),
        Route("/health/ready", ready),
        Route("/llms.txt", llms),
    ]
