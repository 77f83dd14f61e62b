"""Who is let in where (wire contract 1, 2, 4): keys on prompts, none on the routes that verifiers read."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from confide.errors import NotReady
from gateway_app import MODEL, ScriptedGateway, answering, bearer, chat, raw_connection, raw_post, serving_scripted

OPEN_ROUTES = [
    "/", "/health", "/health/ready", "/llms.txt", "/v1/models", f"/v1/models/{MODEL}", "/v1/models/vendor",
    "/v1/embeddings/models", "/v1/attestation/report",
]  # fmt: skip


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        yield gateway


async def status_with(gateway: ScriptedGateway, headers: dict[str, str]) -> int:
    return (await gateway.client.post("/v1/chat/completions", json=chat(), headers=headers)).status_code


async def test_without_any_key_the_service_is_open(gateway: ScriptedGateway) -> None:
    assert await status_with(gateway, {}) == 200
    assert await status_with(gateway, bearer("anything")) == 200


@pytest.mark.parametrize(
    "form",
    [
        "Authorization: Bearer {key}",
        "Authorization: bearer {key}",
        "Authorization: BEARER    {key}  ",
        "authorization: Bearer\t{key}",
        "x-api-key: {key}",
        "X-API-Key:   {key} ",
    ],
)
async def test_a_key_is_taken_in_each_documented_form(gateway: ScriptedGateway, form: str) -> None:
    key = await gateway.new_key()
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(json.dumps(chat()).encode(), form.format(key=key).encode()))
        assert (await connection.answer()).status == 200
        await connection.send(raw_post(json.dumps(chat()).encode(), form.format(key="cfd_" + "A" * 43).encode()))
        assert (await connection.answer()).status == 401


async def test_the_same_key_in_both_headers_is_one_credential(gateway: ScriptedGateway) -> None:
    key = await gateway.new_key()
    assert await status_with(gateway, bearer(key) | {"x-api-key": key}) == 200
    assert await status_with(gateway, bearer(key) | {"x-api-key": "other"}) == 401


@pytest.mark.parametrize(
    "header", ["X: y", "Authorization:", "Authorization: Bearer", "Authorization: Bearer  ", "x-api-key: "]
)
async def test_an_empty_token_counts_as_absent(gateway: ScriptedGateway, header: str) -> None:
    await gateway.new_key()
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(json.dumps(chat()).encode(), header.encode()))
        answer = await connection.answer()
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["type"]) == (401, "authentication_error")
    assert error["message"].startswith("No API key was given")


async def test_a_refused_caller_reaches_no_engine_and_leaves_no_proof(gateway: ScriptedGateway) -> None:
    await gateway.new_key()
    for stream in (False, True):
        answer = await gateway.client.post("/v1/chat/completions", json=chat(stream=stream), headers=bearer("wrong"))
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/json"
    assert gateway.engine.accepted == 0


async def test_a_key_that_was_revoked_is_refused(gateway: ScriptedGateway) -> None:
    key = await gateway.new_key()
    assert await status_with(gateway, bearer(key)) == 200
    gateway.store.revoke_key(gateway.store.list_keys()[0].id)
    await gateway.authenticator.refresh()
    assert await status_with(gateway, bearer(key)) == 401
    assert await status_with(gateway, {}) == 401


async def test_the_refusal_comes_before_the_body(gateway: ScriptedGateway) -> None:
    await gateway.new_key()
    async with raw_connection(gateway.url) as connection:
        request = raw_post(b"x" * 50_000_000)
        await connection.send(request[:200])
        refused = await connection.answer()
    assert refused.status == 401
    assert json.loads(refused.body)["error"]["code"] == "invalid_api_key"


async def test_a_client_that_waits_to_be_asked_for_its_body_never_is(gateway: ScriptedGateway) -> None:
    await gateway.new_key()
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 1000"))
        assert (await connection.answer()).status == 401


async def test_a_caller_with_a_key_is_asked_for_its_body(gateway: ScriptedGateway) -> None:
    key, body = await gateway.new_key(), json.dumps(chat()).encode()
    async with raw_connection(gateway.url) as connection:
        request = raw_post(body, b"Expect: 100-continue", f"Authorization: Bearer {key}".encode())
        await connection.send(request.removesuffix(body))
        assert (await connection.answer()).status == 100
        await connection.send(body)
        assert (await connection.answer()).status == 200


async def test_after_a_refusal_the_connection_is_usable(gateway: ScriptedGateway) -> None:
    key, body = await gateway.new_key(), json.dumps(chat("x" * 200_000)).encode()
    async with raw_connection(gateway.url) as connection:
        await connection.send(raw_post(body))
        assert (await connection.answer()).status == 401
        await connection.send(raw_post(body, f"Authorization: Bearer {key}".encode()))
        assert (await connection.answer()).status == 200


async def test_a_refusal_says_nothing_of_what_was_sent(gateway: ScriptedGateway) -> None:
    await gateway.new_key()
    refusals = [
        (await gateway.client.post("/v1/chat/completions", content=content, headers=bearer("CANARY"))).content
        for content in (b"CANARY", json.dumps(chat("CANARY")).encode(), b"", json.dumps(chat(model="CANARY")).encode())
    ]
    assert len(set(refusals)) == 1
    assert b"CANARY" not in refusals[0]
    assert "CANARY" not in gateway.log_text()


@pytest.mark.parametrize("path", OPEN_ROUTES)
async def test_a_verifier_needs_no_key(gateway: ScriptedGateway, path: str) -> None:
    key = await gateway.new_key()
    for headers in ({}, bearer(key), bearer("wrong"), {"Authorization": "Basic eDp5"}, {"x-api-key": "wrong"}):
        assert (await gateway.client.get(path, headers=headers)).status_code == 200


async def test_keys_that_cannot_be_read_close_the_service(gateway: ScriptedGateway) -> None:
    key = await gateway.new_key()
    assert await status_with(gateway, bearer(key)) == 200
    await gateway.store.close()
    for _ in range(10):
        with pytest.raises(NotReady):
            await gateway.authenticator.refresh()
    for headers in ({}, bearer(key)):
        answer = await gateway.client.post("/v1/chat/completions", json=chat(), headers=headers)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
