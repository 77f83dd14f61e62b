"""Who may read a receipt, and when there is one (wire contract 7.6, 7.7), on its own route and within the signature."""

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from confide.config import Config, Model, Store
from confide.protocol.receipt import parse_receipt, signature_fault
from gateway_app import (
    MODEL,
    RawAnswer,
    ScriptedGateway,
    answering,
    assert_receipted,
    bearer,
    chat,
    raw_connection,
    raw_post,
    serving_scripted,
    token,
)
from scripted import sse_head

ROUTES = ("/v1/aci/receipts", "/v1/signature")


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("Tw", "o.")) as gateway:
        yield gateway


def chat_id_in(body: bytes) -> str:
    """The `id` of an answer, buffered or streamed."""
    chat_id: str = json.loads(body.split(b"\n\n")[0].removeprefix(b"data: "))["id"]
    return chat_id


async def ids_of(gateway: ScriptedGateway, headers: dict[str, str] | None = None, **members: object) -> tuple[str, str]:
    """The receipt id and the chat id of a new answer."""
    answer = await gateway.client.post("/v1/chat/completions", json=chat() | members, headers=headers or {})
    assert answer.status_code == 200
    return answer.headers["x-receipt-id"], chat_id_in(answer.content)


async def raw_get(gateway: ScriptedGateway, path: str, *headers: str) -> RawAnswer:
    """The response as bytes, so that two can be compared as an observer would."""
    async with raw_connection(gateway.url) as connection:
        await connection.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: confide", *headers, "", ""]).encode())
        answer = await connection.answer()
    answer.headers = [(name, value) for name, value in answer.headers if name != "date"]
    return answer


@pytest.mark.parametrize("stream", [False, True], ids=["buffered", "streamed"])
async def test_a_receipt_is_over_the_bytes_on_both_sides(gateway: ScriptedGateway, stream: bool) -> None:
    sent = json.dumps(chat("Héllo 🔒", stream=stream), indent=2, ensure_ascii=False).encode() + b"\n "
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(sent))
        answer = await connection.answer()
    receipt_id = answer.header("x-receipt-id")
    document = await gateway.client.get(f"/v1/aci/receipts/{receipt_id}")
    assert document.headers["content-type"] == "application/json"
    assert document.headers["cache-control"] == "no-store"
    assert document.json() == document.json() | {
        "api_version": "aci/1",
        "receipt_id": receipt_id,
        "chat_id": chat_id_in(answer.body),
        "model": MODEL,
        "endpoint": "/v1/chat/completions",
        "method": "POST",
        "workload_keyset_digest": answer.header("x-aci-keyset-digest"),
    }
    received, returned = (f"sha256:{hashlib.sha256(data).hexdigest()}" for data in (sent, answer.body))
    assert document.json()["event_log"] == [
        {"type": "request.received", "body_hash": received},
        {"type": "request.forwarded", "body_hash": received},
        {"type": "response.returned", "body_hash": returned},
        {"type": "response.outcome", "outcome": "complete"},
    ]
    fault = signature_fault(parse_receipt(document.content), gateway.app.keyset().epoch.keyset)
    assert fault is None


async def test_a_receipt_is_found_by_either_id_on_either_route(gateway: ScriptedGateway) -> None:
    receipt_id, chat_id = await ids_of(gateway)
    receipts = [await gateway.client.get(f"/v1/aci/receipts/{each}") for each in (receipt_id, chat_id)]
    signatures = [await gateway.client.get(f"/v1/signature/{each}") for each in (receipt_id, chat_id)]
    assert receipts[0].content == receipts[1].content
    assert signatures[0].json() == signatures[1].json()
    assert signatures[0].json()["api_version"] == "aci/1"
    assert signatures[0].json()["receipt"] == receipts[0].json()
    assert receipts[0].content in signatures[0].content  # the same document, byte for byte


async def test_receipt_ids_are_new_each_time_and_of_the_form_of_the_contract(gateway: ScriptedGateway) -> None:
    ids = [(await ids_of(gateway))[0] for _ in range(5)]
    assert len(set(ids)) == 5
    for each in ids:
        assert each.startswith("rcpt-")
        assert len(bytes.fromhex(each.removeprefix("rcpt-"))) == 12


@pytest.mark.parametrize("route", ROUTES)
async def test_the_key_that_asked_may_read_and_no_other_learns_that_there_is_anything(
    gateway: ScriptedGateway, route: str
) -> None:
    mine, other = await gateway.new_key("mine"), await gateway.new_key("other")
    for lookup_id in await ids_of(gateway, bearer(mine)):
        path = f"{route}/{lookup_id}"
        for headers in (bearer(mine), {"x-api-key": mine}, {"Authorization": f"bearer   {mine}"}):
            assert (await gateway.client.get(path, headers=headers)).status_code == 200
        for wrong in (other, "wrong"):
            shown = await raw_get(gateway, path, f"Authorization: Bearer {wrong}")
            unknown = await raw_get(gateway, f"{route}/unknown", f"Authorization: Bearer {wrong}")
            assert shown == unknown
            assert (shown.status, json.loads(shown.body)["error"]["type"]) == (404, "not_found")
        for nothing in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": "Bearer"}):
            answer = await gateway.client.get(path, headers=nothing)
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "unauthorized")


@pytest.mark.parametrize("route", ROUTES)
async def test_a_receipt_of_a_request_without_a_credential_is_open(gateway: ScriptedGateway, route: str) -> None:
    ids = await ids_of(gateway)
    key = await gateway.new_key()
    for lookup_id in ids:
        for headers in ({}, bearer(key), bearer("anything")):
            assert (await gateway.client.get(f"{route}/{lookup_id}", headers=headers)).status_code == 200


async def test_a_refusal_is_readable_by_the_key_that_was_refused_alone(gateway: ScriptedGateway) -> None:
    mine, other = await gateway.new_key("mine"), await gateway.new_key("other")
    gateway.switch.is_ready = False
    refused = await gateway.client.post("/v1/chat/completions", json=chat(), headers=bearer(mine))
    path = f"/v1/aci/receipts/{refused.headers['x-receipt-id']}"
    assert (await gateway.client.get(path, headers=bearer(mine))).status_code == 200
    assert (await gateway.client.get(path, headers=bearer(other))).status_code == 404
    assert (await gateway.client.get(path)).status_code == 401


@pytest.mark.parametrize("route", ROUTES)
async def test_while_a_stream_runs_its_receipt_looks_like_none(gateway: ScriptedGateway, route: str) -> None:
    gate = asyncio.Event()
    gateway.follow([sse_head(), token("x"), gate, *answering("y")[1:]])
    async with gateway.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        reader = answer.aiter_raw()
        seen = await anext(reader)
        ids = (answer.headers["x-receipt-id"], chat_id_in(seen))
        unknown = await raw_get(gateway, f"{route}/unknown")
        for lookup_id in ids:
            assert await raw_get(gateway, f"{route}/{lookup_id}") == unknown
        gate.set()
        async for data in reader:
            seen += data
    assert unknown.status == 404
    for lookup_id in ids:
        assert (await gateway.client.get(f"{route}/{lookup_id}")).status_code == 200
    await assert_receipted(gateway, seen, "complete")


async def test_a_receipt_is_there_when_the_client_stops_at_done(gateway: ScriptedGateway) -> None:
    async with gateway.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        seen = b""
        async for data in answer.aiter_raw():
            seen += data
            if seen.endswith(b"data: [DONE]\n\n"):
                document = await gateway.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")
                break
    receipt = parse_receipt(document.content)
    assert receipt.body_hash("response.returned") == f"sha256:{hashlib.sha256(seen).hexdigest()}"


async def test_an_expired_receipt_looks_like_none(tmp_path: Path) -> None:
    config = Config(model=(Model(id=MODEL, upstream_model="scripted"),), store=Store(receipt_ttl_s=60))
    now = [1_790_000_000.0]
    async with serving_scripted(tmp_path, answering("Hi"), config=config, now=lambda: now[0]) as gateway:
        ids = await ids_of(gateway)
        now[0] += 59
        assert {(await get(gateway, route, each)).status_code for route in ROUTES for each in ids} == {200}
        now[0] += 1
        for route in ROUTES:
            unknown = await raw_get(gateway, f"{route}/unknown")
            for each in ids:
                assert await raw_get(gateway, f"{route}/{each}") == unknown


async def get(gateway: ScriptedGateway, route: str, lookup_id: str) -> httpx2.Response:
    return await gateway.client.get(f"{route}/{lookup_id}")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "lookup_id",
    [
        "x",
        "rcpt-",
        "rcpt-" + "0" * 24,
        "RCPT-" + "0" * 24,
        "%00",
        "%ff",
        "rcpt-%ff",
        "'%20OR%20'1'='1",
        "x" * 5000,
        "%",
    ],
)
async def test_an_unknown_id_is_not_found(gateway: ScriptedGateway, route: str, lookup_id: str) -> None:
    await ids_of(gateway)
    answer = await raw_get(gateway, f"{route}/{lookup_id}")
    assert answer.status == 404
    assert json.loads(answer.body)["error"]["type"] == "not_found"


async def test_two_credentials_at_once_are_refused(gateway: ScriptedGateway) -> None:
    headers = bearer("a") | {"x-api-key": "b"}
    assert (await gateway.client.get("/v1/aci/receipts/x", headers=headers)).status_code == 401


async def test_a_record_that_the_host_wrote_is_no_receipt(gateway: ScriptedGateway, tmp_path: Path) -> None:
    """The disk lies outside the trust boundary: a row counts only while its seal holds."""
    receipt_id, chat_id = await ids_of(gateway)
    with closing(sqlite3.connect(tmp_path / "confide.db", isolation_level=None)) as db:
        db.execute("UPDATE proofs SET receipt = CAST(replace(receipt, 'complete', 'refused') AS BLOB)")
    for route in ROUTES:
        for each in (receipt_id, chat_id):
            assert (await get(gateway, route, each)).status_code == 404
