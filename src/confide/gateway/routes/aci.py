"""The open proof of this service (wire contract 7): report, receipts, sessions, and the keysets that stood before."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from confide.attester.base import Attester
from confide.errors import InvalidRequest, NotFound
from confide.gateway import auth
from confide.gateway.keysets import CurrentKeyset, Reports
from confide.protocol.canonical import BARE_DIGEST, DIGEST, DocumentError, parse_document
from confide.protocol.report import API_VERSION
from confide.protocol.session import listed
from confide.protocol.session import session_id as id_of_session
from confide.protocol.statement import parse_aci_nonce
from confide.store.base import Proof, Store
from confide.upstream.sessions import AttestedSession

NO_STORE = {"cache-control": "no-store"}
UNKNOWN_KEYSET = "no keyset of this service has that digest, or it expired too long ago"
UNKNOWN_HOST = "this host is not one that the attested TLS keys are listed for"
UNKNOWN_SESSION = "no such session, or it ended too long ago; a service without a second hop has none"
PORT = re.compile(r":[0-9]*\Z")


def routes(
    *,
    attester: Attester,
    current: CurrentKeyset,
    reports: Reports,
    store: Store,
    sessions: Callable[[str | None, str | None], Sequence[AttestedSession]],
    now: Callable[[], int],
) -> list[Route]:
    """The routes of this surface. `sessions`: the current ones of an upstream's name and a model, or of any. `now`:
    Unix seconds.
    """

    async def attestation(request: Request) -> Response:
        nonce = single(request, "nonce")
        asked_for = parse_aci_nonce(nonce)
        host = listed_host(request.headers.get("host", ""), current().epoch.keyset.domains)
        report = await (reports.without_nonce() if asked_for is None else reports.fresh(asked_for))
        return json_response(for_host(report, host), NO_STORE if asked_for else {})

    async def keyset(request: Request) -> Response:
        digest = request.path_params["digest"]
        report = await store.report(digest, now=now()) if DIGEST.fullmatch(digest) else None
        if report is None:
            raise NotFound(UNKNOWN_KEYSET)
        return Response(report, media_type="application/json")

    async def receipt(request: Request) -> Response:
        presented = auth.credential(request.scope["headers"])
        proof = await readable_proof(store, attester, request.path_params["id"], presented, now())
        return Response(proof.receipt, media_type="application/json", headers=NO_STORE)

    async def current_sessions(request: Request) -> Response:
        name, older_name = single(request, "upstream_name"), single(request, "provider")
        found = sessions(name if name is not None else older_name, single(request, "model"))
        return JSONResponse({"api_version": API_VERSION, "sessions": [listed(dict(each.document)) for each in found]})

    async def session(request: Request) -> Response:
        wanted = request.path_params["session_id"]
        document = await store.session(wanted, now=now()) if BARE_DIGEST.fullmatch(wanted) else None
        if document is None or not is_session(document, wanted):
            raise NotFound(UNKNOWN_SESSION)
        return Response(document, media_type="application/json")

    return [
        Route("/v1/aci/attestation", attestation),
        Route("/v1/aci/keysets/{digest}", keyset),
        Route("/v1/aci/receipts/{id}", receipt),
        Route("/v1/aci/sessions", current_sessions),
        Route("/v1/aci/sessions/{session_id}", session),
    ]


async def readable_proof(store: Store, attester: Attester, lookup_id: str, presented: bytes | None, now: int) -> Proof:
    """The proof that this credential may read (wire contract 7.7). Raises CredentialRequired or NotFound.

    The seal is checked first: a row that this workload did not write does not exist.
    """
    proof = await store.proof(lookup_id, now=now)
    if proof is None or not attester.keys.check_seal(proof.sealed_bytes(), proof.seal):
        raise NotFound(auth.UNKNOWN_PROOF)
    auth.may_read(proof.credential_sha256, presented)
    return proof


def is_session(document: bytes, session_id: str) -> bool:
    """Whether it is the very document of this id: the disk belongs to the host."""
    try:
        return id_of_session(parse_document(document, what="the session")) == session_id
    except DocumentError:
        return False


def single(request: Request, name: str) -> str | None:
    """A query parameter that may stand once. Raises InvalidRequest: which of two was meant is not ours to guess."""
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise InvalidRequest(f"{name} must be given once", param=name)
    return values[0] if values else None


def listed_host(header: str, domains: frozenset[str]) -> str | None:
    """The listed host that the report was asked through, None when no TLS key is listed for one. Raises NotFound."""
    if not domains:
        return None
    host = PORT.sub("", header.strip()).rstrip(".").lower()
    if host not in domains:
        raise NotFound(UNKNOWN_HOST)
    return host


def for_host(report: dict[str, object], host: str | None) -> dict[str, object]:
    """The report with the TLS key that belongs to `host`, for verifiers that look there (wire contract 7.3)."""
    if host is None:
        return report
    attestation = members(report["attestation"])
    keys = members(attestation["workload_keyset"])["tls_public_keys"]
    binding = next(key for key in keys if key.get("domain") == host)
    evidence = {**members(attestation["evidence"]), "downstream_tls_binding": binding}
    return {**report, "attestation": {**attestation, "evidence": evidence}}


def members(value: object) -> Mapping[str, Any]:
    assert isinstance(value, Mapping)
    return value


def json_response(document: Mapping[str, object], headers: Mapping[str, str]) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json", headers=dict(headers))
