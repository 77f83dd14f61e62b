"""Embeddings that an engine behind the gateway makes: both bodies byte for byte, and a receipt (wire contract 3.2)."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from confide.protocol.canonical import digest_of
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED
from relay_app import MODEL, RelayGateway, answered, body, completion, local, model, serving_upstreams, upstream
from scripted import CLOSE, Script, ScriptedUpstream

EMBEDDINGS = "/v1/embeddings"
VECTORS = "vendor/vectors"


def vectors(**members: Any) -> bytes:
    """The body of an engine's answer, with spaces and an id of its own."""
    document = {
        "id": "embd-of-the-engine",
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -1e-3]}],
        "model": VECTORS,
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
        **members,
    }
    return json.dumps(document, indent=1).encode()


@asynccontextmanager
async def relaying(home: Path, *scripts: Script, **keys: Any) -> AsyncIterator[tuple[RelayGateway, ScriptedUpstream]]:
    async with ScriptedUpstream(*scripts) as engine:
        text = (
            local(engine.port) + model('"engine"') + model('"engine"', **{"id": VECTORS, "kind": "embeddings", **keys})
        )
        async with serving_upstreams(home, text) as gateway:
            yield gateway, engine


async def test_both_bodies_pass_byte_for_byte_and_have_a_receipt(tmp_path: Path) -> None:
    sent = b'{ "input" : ["h\\u00e9llo", "w\xc3\xb6rld"],\n "model":"vendor/vectors", "stream": true, "truncate":1 }'
    async with relaying(tmp_path, answered(vectors())) as (gateway, engine):
        answer = await gateway.client.post(EMBEDDINGS, content=sent)
        assert (answer.status_code, answer.content) == (200, vectors())
        assert answer.headers["content-type"] == "application/json"
        assert (engine.requests[0].target, engine.requests[0].body) == (EMBEDDINGS.encode(), sent)
        receipt = await gateway.receipt(answer)
        assert receipt.body_hash(RECEIVED) == receipt.body_hash(FORWARDED) == digest_of(sent)
        assert receipt.body_hash(RETURNED) == digest_of(vectors())
        assert (receipt.members.chat_id, receipt.members.endpoint) == (None, EMBEDDINGS)
        [line] = gateway.lines("request")
        assert (line["prompt_tokens"], line["model"], line["outcome"]) == (5, VECTORS, "complete")


async def test_the_engine_s_own_name_of_the_model_stays_inside(tmp_path: Path) -> None:
    engine_names_it = vectors(model="inner/name")
    async with relaying(tmp_path, answered(engine_names_it), upstream_model="inner/name") as (gateway, engine):
        answer = await gateway.client.post(EMBEDDINGS, json={"model": VECTORS, "input": "hello"})
        assert answer.json() == json.loads(vectors())
        assert json.loads(engine.requests[0].body)["model"] == "inner/name"


@pytest.mark.parametrize(
    "script",
    [answered(b'{"error":{"message":"no"}}'), answered(completion()), answered(b"[1]"), answered(b"{"), [CLOSE]],
)
async def test_what_is_no_answer_of_vectors_is_not_passed_on(tmp_path: Path, script: Script) -> None:
    async with relaying(tmp_path, script) as (gateway, _):
        answer = await gateway.client.post(EMBEDDINGS, json={"model": VECTORS, "input": "hello"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")
        assert (await gateway.receipt(answer)).outcome == "failed"


async def test_what_the_engine_has_against_the_request_is_told(tmp_path: Path) -> None:
    refusal = b'{"error":{"message":"input is too long","type":"invalid_request_error","code":null,"param":"input"}}'
    async with relaying(tmp_path, answered(refusal, status=b"400 Bad Request")) as (gateway, _):
        answer = await gateway.client.post(EMBEDDINGS, json={"model": VECTORS, "input": "hello"})
        assert (answer.status_code, answer.content) == (400, refusal)


async def test_each_kind_of_model_is_served_on_its_own_surface(tmp_path: Path) -> None:
    async with relaying(tmp_path, answered(vectors()), vector_length=2) as (gateway, engine):
        wrong = await gateway.client.post(EMBEDDINGS, json={"model": MODEL, "input": "hello"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "model")
        assert (await gateway.post(body(model=VECTORS))).status_code == 400
        assert engine.requests == []
        [entry] = (await gateway.client.get("/v1/embeddings/models")).json()["data"]
        assert (entry["id"], entry["max_output_length"]) == (VECTORS, 2)
        assert [each["id"] for each in (await gateway.client.get("/v1/models")).json()["data"]] == [MODEL]


async def test_a_provider_that_proves_nothing_says_so_in_the_receipt(tmp_path: Path) -> None:
    async with ScriptedUpstream(answered(vectors())) as engine:
        address = f"http://127.0.0.1:{engine.port}/v1"
        text = upstream("far", "openai", address, allow_unverified=True, probe="none")
        async with serving_upstreams(tmp_path, text + model('"far"', id=VECTORS, kind="embeddings")) as gateway:
            answer = await gateway.client.post(EMBEDDINGS, json={"model": VECTORS, "input": "hello"})
            assert answer.content == vectors()
            [event] = [each for each in await gateway.events(answer) if each["type"] == "upstream.verified"]
            assert event["result"] == "failed"
