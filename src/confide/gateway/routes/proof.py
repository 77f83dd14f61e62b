"""Proof of a response: its signature (wire contract 5) and the attestation report that binds the signer (6)."""

import secrets
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from confide.attester.base import TDX, Attester
from confide.attester.keys import LegacyKeys
from confide.attester.nvidia import GpuCollector
from confide.errors import InvalidRequest, NotFound
from confide.gateway import auth
from confide.gateway.models import ModelTable
from confide.gateway.routes.aci import readable_proof
from confide.protocol import legacy_report as report
from confide.protocol.report import API_VERSION
from confide.protocol.signature import Algo, parse_algo, signature_text
from confide.protocol.statement import legacy_report_data, parse_nonce
from confide.store.base import Store

UNKNOWN_SIGNER = "Signing address not found on this server"
TDX_ONLY = "this report carries TDX quotes, and this service runs on another platform; ask /v1/aci/attestation"


def routes(
    *,
    attester: Attester,
    store: Store,
    models: ModelTable,
    tls_spki_sha256: bytes | None,
    now: Callable[[], int],
    gpu: GpuCollector | None = None,
) -> list[Route]:
    """The routes of this surface. `tls_spki_sha256`: 32 bytes of the leaf's key, None without TLS. `gpu`: shows the
    GPUs, None where that was not asked for.
    """

    async def signature(request: Request) -> Response:
        algo = parse_algo(request.query_params.get("signing_algo"))
        presented = auth.credential(request.scope["headers"])
        proof = await readable_proof(store, attester, request.path_params["id"], presented, now())
        text = signature_text(proof.request_sha256, proof.response_sha256)
        document = {**signed(attester.keys, text, algo), "api_version": API_VERSION}
        document["receipt"] = msgspec.Raw(proof.receipt)
        return Response(msgspec.json.encode(document), media_type="application/json")

    async def attestation_report(request: Request) -> Response:
        query = request.query_params
        algo = parse_algo(query.get("signing_algo"))
        nonce = parse_nonce(query.get("nonce")) or secrets.token_bytes(32)
        spki = wanted_spki(query.get("version"), query.get("include_tls_fingerprint"), tls_spki_sha256)
        address = attester.keys.address(algo)
        wanted = query.get("signing_address")
        if wanted and wanted.lower() != address.lower():
            algo, address = other_signer(attester.keys, wanted)
        model = query.get("model")
        if model:
            models.find(model)
        if attester.tee_type != TDX:
            raise NotFound(TDX_ONLY)
        data = legacy_report_data(attester.keys.identity(algo), nonce, spki_sha256=spki)
        evidence = await attester.attest(data)
        entry = report.attestation(
            signing_address=address,
            signing_algo=algo,
            signing_public_key=attester.keys.public_key_hex(algo),
            nonce=nonce,
            quote=evidence.quote,
            report_data=data,
            event_log=evidence.event_log or "[]",  # its readers expect JSON text
            vm_config=evidence.vm_config or "{}",
            info=evidence.info,
            simulated=evidence.simulated,
            collateral=evidence.collateral,
            spki_sha256=spki,
            nvidia_payload=None if gpu is None else await gpu.payload(nonce),
        )
        document = report.legacy_report(entry, model_name=model or None)
        return JSONResponse(document, headers={"cache-control": "no-store"})

    return [Route("/v1/signature/{id}", signature), Route("/v1/attestation/report", attestation_report)]


def signed(keys: LegacyKeys, text: str, algo: Algo) -> dict[str, object]:
    """The signature document (wire contract 5)."""
    return {
        "text": text,
        "signature": keys.sign(text, algo),
        "signing_address": keys.address(algo),
        "signing_algo": algo.value,
        "signature_kind": "gateway",
    }


def other_signer(keys: LegacyKeys, wanted: str) -> tuple[Algo, str]:
    """The algorithm whose address was asked for; a client that names the address need not name the algorithm too."""
    for algo in Algo:
        if keys.address(algo).lower() == wanted.lower():
            return algo, keys.address(algo)
    raise NotFound(UNKNOWN_SIGNER)


def wanted_spki(version: str | None, include_tls: str | None, spki: bytes | None) -> bytes | None:
    """The TLS key to bind, or None for version 1. Raises InvalidRequest for version 2 without a certificate."""
    if version not in (None, "", "1", "2"):
        raise InvalidRequest("version must be 1 or 2", param="version")
    if include_tls not in (None, "", "true", "false"):
        raise InvalidRequest("include_tls_fingerprint must be true or false", param="include_tls_fingerprint")
    if version != "2" and include_tls != "true":
        return None
    if spki is None:
        raise InvalidRequest(
            "version 2 binds the TLS key, and this service has no certificate; ask for version 1",
            param="version" if version == "2" else "include_tls_fingerprint",
        )
    return spki
