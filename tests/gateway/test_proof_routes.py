"""The proof of an answer (wire contract 5, 6, 7.7): its signature, and the report that binds the signer to the TEE.

A client's part is played here with the bytes it has: the body it sent and the bytes it read from the socket.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from coincurve import PublicKey

from confide.protocol.signature import Algo, ethereum_address, split_text, verify_text
from gateway_app import (
    MODEL,
    ScriptedGateway,
    answering,
    bearer,
    chat,
    raw_connection,
    raw_post,
    serving_scripted,
    token,
)
from gateway_app import event as engine_event
from scripted import CLOSE, LAST_CHUNK, response, sse_head

NONCE = "AbCdEf0123456789" * 4
NOT_FOUND = {"error": {"message": "Chat id not found or expired", "type": "not_found", "code": None, "param": None}}
SPKI = hashlib.sha256(b"a public key").digest()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("Tw", "o.")) as gateway:
        yield gateway


async def spoken(gateway: ScriptedGateway, body: bytes, *headers: bytes) -> tuple[str, bytes]:
    """The chat id of the answer to `body`, and the bytes of the answer as the socket gave them."""
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(body, *headers))
        answer = await connection.answer()
    assert answer.status == 200
    line = answer.body.split(b"\n\n")[0].removeprefix(b"data: ")
    return json.loads(line)["id"], answer.body


LEGACY = {"text", "signature", "signing_address", "signing_algo", "signature_kind"}


async def signature(gateway: ScriptedGateway, chat_id: str, **query: str) -> dict[str, str]:
    """The members of the legacy signature; those of the open proof beside them are its own tests' matter."""
    answer = await gateway.client.get(f"/v1/signature/{chat_id}", params=query)
    assert answer.status_code == 200
    document = answer.json()
    assert set(document) == LEGACY | {"api_version", "receipt"}
    return {name: document[name] for name in LEGACY}


def assert_proves(document: dict[str, str], sent: bytes, received: bytes) -> None:
    """What a client checks: the two hashes, and the signature over them."""
    assert document["text"] == f"{hashlib.sha256(sent).hexdigest()}:{hashlib.sha256(received).hexdigest()}"
    verify_text(document["text"], document["signature"], document["signing_address"], Algo(document["signing_algo"]))


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
async def test_the_signature_is_over_the_bytes_on_both_sides(gateway: ScriptedGateway, algo: str, stream: bool) -> None:
    body = json.dumps(chat("Héllo 🔒", stream=stream), indent=2, ensure_ascii=False).encode() + b"\n "
    chat_id, received = await spoken(gateway, body)
    document = await signature(gateway, chat_id, signing_algo=algo, model=MODEL)
    assert (document["signing_algo"], document["signature_kind"]) == (algo, "gateway")
    assert_proves(document, body, received)


async def test_the_forms_of_both_signatures_are_the_documented_ones(gateway: ScriptedGateway) -> None:
    chat_id, _ = await spoken(gateway, json.dumps(chat()).encode())
    ecdsa, ed25519 = await signature(gateway, chat_id), await signature(gateway, chat_id, signing_algo="ed25519")
    assert ecdsa["signing_algo"] == "ecdsa"  # the default
    assert (len(ecdsa["signature"]), len(ecdsa["signing_address"])) == (132, 42)
    assert ecdsa["signature"].startswith("0x")
    assert ecdsa["signing_address"].startswith("0x")
    assert ecdsa["signature"][-2:] in ("1b", "1c")
    assert (len(ed25519["signature"]), len(ed25519["signing_address"])) == (128, 64)
    assert ecdsa["text"] == ed25519["text"]
    for document in (ecdsa, ed25519):
        assert all(part == part.lower() for part in document.values())
        split_text(document["text"])


async def test_the_signature_is_there_when_the_client_stops_at_done(gateway: ScriptedGateway) -> None:
    body = chat(stream=True)
    async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        seen = b""
        async for data in answer.aiter_raw():
            seen += data
            if seen.endswith(b"data: [DONE]\n\n"):
                chat_id = json.loads(seen.split(b"\n\n")[0].removeprefix(b"data: "))["id"]
                document = await signature(gateway, chat_id)
                break
    assert_proves(document, answer.request.content, seen)


@pytest.mark.parametrize(
    "query", [{}, {"model": MODEL}, {"model": "another/model"}, {"model": ""}, {"x": "y"}], ids=str
)
async def test_the_model_parameter_is_accepted_and_not_needed(gateway: ScriptedGateway, query: dict[str, str]) -> None:
    chat_id, _ = await spoken(gateway, json.dumps(chat()).encode())
    assert (await signature(gateway, chat_id, **query))["text"]


async def test_a_stream_that_broke_is_signed_with_its_error_tail(gateway: ScriptedGateway) -> None:
    body = json.dumps(chat(stream=True)).encode()
    for ending in ([CLOSE], [LAST_CHUNK], [engine_event({"error": {"code": 500}}), LAST_CHUNK]):
        gateway.follow([sse_head(), token("x"), *ending])
        chat_id, received = await spoken(gateway, body)
        assert b'"upstream_error"' in received
        assert_proves(await signature(gateway, chat_id), body, received)


async def test_a_request_that_broke_a_rule_leaves_no_proof(gateway: ScriptedGateway) -> None:
    for members in ({"temperature": 9}, {"model": "none"}):
        answer = await gateway.post(**members)
        assert answer.status_code >= 400
        assert "chatcmpl-" not in answer.text
        assert "x-receipt-id" not in answer.headers
        assert gateway.last_line()["receipt"] is None


async def test_a_failure_is_signed_under_its_receipt_id_alone(gateway: ScriptedGateway) -> None:
    gateway.follow([response(b"", status=b"500 X")])
    body = json.dumps(chat()).encode()
    answer = await gateway.client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 502
    assert "chatcmpl-" not in answer.text
    assert_proves(await signature(gateway, answer.headers["x-receipt-id"]), body, answer.content)
    never_told = gateway.last_line()["id"]
    assert (await gateway.client.get(f"/v1/signature/{never_told}")).status_code == 404


@pytest.mark.parametrize(
    "chat_id", ["x", "chatcmpl-" + "0" * 32, "%00", "%ff", "..%2f", "'%20OR%20'1'='1", "x" * 5000, "%"]
)
async def test_an_unknown_id_is_not_found(gateway: ScriptedGateway, chat_id: str) -> None:
    async with raw_connection(gateway.url) as connection:
        await connection.send(f"GET /v1/signature/{chat_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await connection.answer()
    assert answer.status == 404
    assert json.loads(answer.body)["error"]["type"] == "not_found"


async def test_while_a_stream_runs_its_proof_looks_like_none(gateway: ScriptedGateway) -> None:
    gate = asyncio.Event()
    gateway.follow([sse_head(), token("x"), gate, *answering("y")[1:]])
    async with gateway.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        reader = answer.aiter_raw()
        seen = await anext(reader)
        chat_id = json.loads(seen.split(b"\n\n")[0].removeprefix(b"data: "))["id"]
        running = await gateway.client.get(f"/v1/signature/{chat_id}")
        unknown = await gateway.client.get("/v1/signature/unknown")
        gate.set()
        async for data in reader:
            seen += data
    assert running.status_code == unknown.status_code == 404
    assert running.content == unknown.content
    assert running.json() == NOT_FOUND
    assert_proves(await signature(gateway, chat_id), answer.request.content, seen)


async def test_a_proof_is_shown_to_the_key_that_asked_and_to_no_other(gateway: ScriptedGateway) -> None:
    mine, other = await gateway.new_key("mine"), await gateway.new_key("other")
    body = json.dumps(chat()).encode()
    chat_id, received = await spoken(gateway, body, f"Authorization: Bearer {mine}".encode())

    async def asked_with(headers: dict[str, str], which: str = chat_id) -> tuple[int, Any]:
        answer = await gateway.client.get(f"/v1/signature/{which}", headers=headers)
        return answer.status_code, answer.json()

    for headers in (bearer(mine), {"x-api-key": mine}, {"Authorization": f"bearer   {mine}"}):
        status, document = await asked_with(headers)
        assert status == 200
        assert_proves(document, body, received)
    assert await asked_with(bearer(other)) == (404, NOT_FOUND)
    assert await asked_with(bearer("wrong")) == (404, NOT_FOUND)
    assert await asked_with(bearer(other), "unknown") == (404, NOT_FOUND)
    status, refused = await asked_with({})
    assert (status, refused["error"]["type"]) == (401, "unauthorized")
    assert (await asked_with({"Authorization": "Basic eDp5"}))[0] == 401
    assert (await asked_with({}, "unknown"))[0] == 404


async def test_a_proof_of_a_request_without_a_credential_is_open(gateway: ScriptedGateway) -> None:
    chat_id, _ = await spoken(gateway, json.dumps(chat()).encode())
    key = await gateway.new_key()
    for headers in ({}, bearer(key), bearer("anything")):
        assert (await gateway.client.get(f"/v1/signature/{chat_id}", headers=headers)).status_code == 200


async def test_on_an_open_service_a_token_that_was_sent_still_binds_the_proof(gateway: ScriptedGateway) -> None:
    chat_id, _ = await spoken(gateway, json.dumps(chat()).encode(), b"Authorization: Bearer mine")
    path = f"/v1/signature/{chat_id}"
    assert (await gateway.client.get(path, headers=bearer("mine"))).status_code == 200
    assert (await gateway.client.get(path, headers=bearer("other"))).json() == NOT_FOUND
    assert (await gateway.client.get(path)).status_code == 401


async def test_two_credentials_at_once_are_refused(gateway: ScriptedGateway) -> None:
    answer = await gateway.client.get("/v1/signature/x", headers=bearer("a") | {"x-api-key": "b"})
    assert answer.status_code == 401


@pytest.mark.parametrize("algo", ["rsa", "ecdsa-p256", "ECDSA", "", "ed25519,ecdsa", "CANARY"])
@pytest.mark.parametrize("path", ["/v1/signature/x", "/v1/attestation/report"])
async def test_another_algorithm_is_refused_by_type(gateway: ScriptedGateway, path: str, algo: str) -> None:
    answer = await gateway.client.get(path, params={"signing_algo": algo})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_signing_algo", "signing_algo")
    assert "CANARY" not in answer.text


# The report (wire contract 6).

MEMBERS = {
    "signing_address", "signing_algo", "signing_public_key", "request_nonce", "intel_quote", "quote", "report_data",
    "nvidia_payload", "event_log", "vm_config", "info", "version", "simulated", "collateral",
}  # fmt: skip


async def report(gateway: ScriptedGateway, **query: str) -> dict[str, Any]:
    answer = await gateway.client.get("/v1/attestation/report", params=query)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    return document


def quoted_report_data(entry: dict[str, Any]) -> bytes:
    """The 64 bytes at their place in the quote: header 48, then the TD report (wire contract 6.3)."""
    return bytes.fromhex(entry["intel_quote"])[568:632]


def assert_is_attestation(entry: dict[str, Any], *, algo: str, nonce: str) -> None:
    assert set(entry) >= MEMBERS
    assert entry["signing_algo"] == algo
    assert entry["request_nonce"] == nonce.lower()
    assert entry["quote"] == entry["intel_quote"] == entry["intel_quote"].lower()
    assert entry["simulated"] is True
    identity = bytes.fromhex(entry["signing_address"].removeprefix("0x"))
    assert quoted_report_data(entry) == bytes.fromhex(entry["report_data"])
    if entry["version"] == 1:
        assert quoted_report_data(entry) == identity.ljust(32, b"\0") + bytes.fromhex(nonce)
    assert json.loads(entry["nvidia_payload"]) == {"nonce": nonce.lower(), "evidence_list": [], "arch": "HOPPER"}
    json.loads(entry["event_log"])
    json.loads(entry["vm_config"])
    assert isinstance(entry["info"], dict)


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
async def test_a_report_without_a_model_is_flat_with_one_instance(gateway: ScriptedGateway, algo: str) -> None:
    document = await report(gateway, nonce=NONCE, signing_algo=algo)
    assert set(document) == MEMBERS | {"all_attestations"}
    assert_is_attestation(document, algo=algo, nonce=NONCE)
    (instance,) = document.pop("all_attestations")
    assert instance == document


async def test_a_report_with_a_model_adds_the_two_layers(gateway: ScriptedGateway) -> None:
    for name in (MODEL, "alias/model"):
        document = await report(gateway, nonce=NONCE, model=name)
        assert set(document) == MEMBERS | {"all_attestations", "gateway_attestation", "model_attestations"}
        (model,) = document["model_attestations"]
        assert model.pop("model_name") == name
        assert model == document["gateway_attestation"] == document["all_attestations"][0]
        assert_is_attestation(model, algo="ecdsa", nonce=NONCE)


@pytest.mark.parametrize("algo", ["ecdsa", "ed25519"])
async def test_the_report_binds_the_key_that_signs_answers(gateway: ScriptedGateway, algo: str) -> None:
    chat_id, _ = await spoken(gateway, json.dumps(chat()).encode())
    signed = await signature(gateway, chat_id, signing_algo=algo)
    for query in ({"signing_algo": algo}, {"signing_address": signed["signing_address"].upper().replace("0X", "0x")}):
        document = await report(gateway, nonce=NONCE, **query)
        assert document["signing_address"] == signed["signing_address"]
        assert_is_attestation(document, algo=algo, nonce=NONCE)


async def test_the_public_key_belongs_to_the_address(gateway: ScriptedGateway) -> None:
    ecdsa, ed25519 = await report(gateway), await report(gateway, signing_algo="ed25519")
    xy = bytes.fromhex(ecdsa["signing_public_key"])[-64:]
    PublicKey(b"\x04" + xy)
    assert ethereum_address(xy) == ecdsa["signing_address"]
    assert ed25519["signing_public_key"] == ed25519["signing_address"]


@pytest.mark.parametrize("query", [{}, {"nonce": ""}], ids=["absent", "empty"])
async def test_without_a_nonce_the_server_draws_a_fresh_one(gateway: ScriptedGateway, query: dict[str, str]) -> None:
    first, second = await report(gateway, **query), await report(gateway, **query)
    assert first["request_nonce"] != second["request_nonce"]
    for document in (first, second):
        assert_is_attestation(document, algo="ecdsa", nonce=document["request_nonce"])


WRONG_REPORTS: list[tuple[dict[str, str], int, str, str | None]] = [
    ({"nonce": "CANARY"}, 400, "invalid_request_error", "nonce"),
    ({"nonce": "ab" * 31}, 400, "invalid_request_error", "nonce"),
    ({"nonce": "ab" * 33}, 400, "invalid_request_error", "nonce"),
    ({"nonce": "0x" + "ab" * 31}, 400, "invalid_request_error", "nonce"),
    ({"nonce": "ab" * 32 + "\n"}, 400, "invalid_request_error", "nonce"),
    ({"nonce": "٣" * 64}, 400, "invalid_request_error", "nonce"),
    ({"version": "3"}, 400, "invalid_request_error", "version"),
    ({"version": "CANARY"}, 400, "invalid_request_error", "version"),
    ({"version": "2"}, 400, "invalid_request_error", "version"),  # there is no certificate here
    ({"include_tls_fingerprint": "true"}, 400, "invalid_request_error", "include_tls_fingerprint"),
    ({"include_tls_fingerprint": "CANARY"}, 400, "invalid_request_error", "include_tls_fingerprint"),
    ({"signing_address": "0x" + "00" * 20}, 404, "not_found", None),
    ({"signing_address": "CANARY"}, 404, "not_found", None),
    ({"model": "CANARY"}, 404, "model_not_found", "model"),
]


@pytest.mark.parametrize(("query", "status", "type", "param"), WRONG_REPORTS, ids=str)
async def test_a_report_that_cannot_be_given_is_refused(
    gateway: ScriptedGateway, query: dict[str, str], status: int, type: str, param: str | None
) -> None:
    answer = await gateway.client.get("/v1/attestation/report", params=query)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == (type, param)
    assert "CANARY" not in answer.text


async def test_an_address_of_another_server_is_told_as_such(gateway: ScriptedGateway) -> None:
    answer = await gateway.client.get("/v1/attestation/report", params={"signing_address": "0x" + "11" * 20})
    assert answer.json()["error"]["message"] == "Signing address not found on this server"


@pytest.mark.parametrize("query", [{"version": "2"}, {"include_tls_fingerprint": "true"}], ids=str)
async def test_version_2_binds_the_tls_key(tmp_path: Path, query: dict[str, str]) -> None:
    async with serving_scripted(tmp_path, answering("Hi"), tls_spki_sha256=SPKI) as gateway:
        document = await report(gateway, nonce=NONCE, **query)
        identity = bytes.fromhex(document["signing_address"].removeprefix("0x"))
        assert (document["version"], document["tls_cert_fingerprint"]) == (2, SPKI.hex())
        assert_is_attestation(document, algo="ecdsa", nonce=NONCE)
        assert quoted_report_data(document) == hashlib.sha256(identity + SPKI).digest() + bytes.fromhex(NONCE)
        assert (await report(gateway, nonce=NONCE))["version"] == 1


async def test_a_report_asks_no_engine(gateway: ScriptedGateway) -> None:
    await report(gateway, model=MODEL)
    assert gateway.engine.accepted == 0


async def test_no_aci_member_is_mixed_into_the_legacy_report(gateway: ScriptedGateway) -> None:
    document = await report(gateway, model=MODEL)
    assert document["quote"].startswith("0400")  # TDX quote version 4
    assert not {"api_version", "workload_keyset", "workload_keyset_digest", "evidence", "identity"} & set(document)
