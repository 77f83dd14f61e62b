"""`POST /v1/embeddings` by the embedded engine, as a client sees it (wire contract 3.2)."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from confide.config import Config, Limits, Model, Server
from confide.protocol.canonical import digest_of
from confide.upstream.channel import Timeouts
from gateway_app import MODEL, ScriptedGateway, answering, assert_receipted, bearer, chat, raw_connection, raw_post
from gateway_app import serving_scripted as serving
from scripted import ABORT_WITHIN_S, CLOSE, HANG, Script, response

pytestmark = pytest.mark.asyncio(loop_scope="module")

EMBEDDINGS = "/v1/embeddings"
VECTORS = "vendor/vectors"
MODELS = (
    Model(id=MODEL, upstream_model="scripted"),
    Model(id=VECTORS, aliases=("alias/vectors",), kind="embeddings", upstream_model="scripted"),
)
CONFIG = Config(model=MODELS)
ONE, TWO = (0.5, -0.5, 0.5, -0.5), (0.1, 0.2, 0.3, 0.4)


def answer_of(*vectors: Sequence[float], tokens: int = 3, indices: Sequence[int] | None = None) -> Script:
    """The engine's answer with these vectors."""
    data = [
        {"object": "embedding", "index": index, "embedding": base64.b64encode(packed(vector)).decode()}
        for index, vector in zip(indices or range(len(vectors)), vectors, strict=True)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return engine_says({"model": "/secret/path", "object": "list", "usage": usage, "data": data})


def engine_says(document: object, status: bytes = b"200 OK") -> Script:
    return [response(json.dumps(document).encode(), b"Content-Type: application/json", status=status)]


def packed(vector: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(vector)}f", *vector)


def rounded(vector: Sequence[float]) -> list[float]:
    """As single floats."""
    return list(struct.unpack(f"<{len(vector)}f", packed(vector)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving(tmp_path_factory.mktemp("home"), answer_of(ONE), config=CONFIG) as gateway:
        yield gateway


async def embed(gateway: ScriptedGateway, input: object = "hello", **members: object) -> httpx2.Response:
    return await gateway.client.post(EMBEDDINGS, json={"model": VECTORS, "input": input, **members})


async def test_the_answer_is_exactly_the_documented_shape(gateway: ScriptedGateway) -> None:
    gateway.follow(answer_of(ONE, TWO, tokens=7))
    answer = await embed(gateway, ["hello", "hello worlds"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": rounded(ONE)},
            {"object": "embedding", "index": 1, "embedding": rounded(TWO)},
        ],
        "model": VECTORS,
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert gateway.engine.requests[-1].target == EMBEDDINGS.encode()
    assert gateway.asked()["input"] == [[2, 5, 3], [2, 5, 6, 7, 3]]


async def test_base64_holds_the_same_bits(gateway: ScriptedGateway) -> None:
    gateway.follow(answer_of(TWO), answer_of(TWO))
    as_text = (await embed(gateway, encoding_format="base64")).json()["data"][0]["embedding"]
    assert base64.b64decode(as_text) == packed(TWO)
    as_numbers = (await embed(gateway, encoding_format="float")).json()["data"][0]["embedding"]
    assert packed(as_numbers) == packed(TWO)


@pytest.mark.parametrize(
    ("input", "given"),
    [("hello", [[2, 5, 3]]), (["hello"], [[2, 5, 3]]), ([5, 6], [[5, 6]]), ([[5]], [[5]])],
)
async def test_words_and_tokens_reach_the_engine_as_tokens(
    gateway: ScriptedGateway, input: object, given: object
) -> None:
    gateway.follow(answer_of(ONE))
    assert (await embed(gateway, input)).status_code == 200
    assert gateway.asked()["input"] == given


async def test_an_alias_is_answered_under_its_own_name(gateway: ScriptedGateway) -> None:
    gateway.follow(answer_of(ONE))
    assert (await embed(gateway, model="alias/vectors")).json()["model"] == "alias/vectors"


async def test_stream_user_and_the_model_s_own_length_change_nothing(gateway: ScriptedGateway) -> None:
    gateway.follow(answer_of(ONE), answer_of(ONE))
    plain = await embed(gateway)
    assert (await embed(gateway, stream=True, user="u", dimensions=4)).json() == plain.json()
    assert "u" not in gateway.asked().values()


async def test_the_receipt_covers_the_bytes_and_is_found_by_its_own_id_alone(gateway: ScriptedGateway) -> None:
    gateway.follow(answer_of(ONE))
    sent = json.dumps({"model": VECTORS, "input": "hello"}).encode()
    answer = await gateway.client.post(EMBEDDINGS, content=sent)
    receipt = await assert_receipted(gateway, answer.content, "complete", sent=sent)
    assert receipt.members.chat_id is None
    assert receipt.members.endpoint == EMBEDDINGS
    assert receipt.members.model == VECTORS
    assert receipt.members.receipt_id == answer.headers["x-receipt-id"]
    document = (await gateway.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")).json()
    hashes = {event["type"]: event.get("body_hash") for event in document["event_log"]}
    assert hashes["request.forwarded"] == hashes["request.received"] == digest_of(sent)


async def test_constraints_are_taken_out_before_the_engine_and_show_as_a_rewrite(gateway: ScriptedGateway) -> None:
    gateway.follow(answer_of(ONE))
    answer = await embed(gateway, provider={"aci_verified": True})
    document = (await gateway.client.get(f"/v1/aci/receipts/{answer.headers['x-receipt-id']}")).json()
    hashes = {event["type"]: event.get("body_hash") for event in document["event_log"]}
    assert hashes["request.forwarded"] != hashes["request.received"]
    pinned = await embed(gateway, provider={"aci_session_ids": ["a" * 64]})
    assert (pinned.status_code, pinned.json()["error"]["type"]) == (412, "session_not_accepted")
    assert (await embed(gateway, provider={"aci_else": 1})).json()["error"]["param"] == "provider.aci_else"


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": ["hello", ""]}, "input"),
        ({"input": "hello " * 299}, "input"),
        ({"input": [5] * 301}, "input"),
        ({"input": [99]}, "input"),
        ({"input": "x" * 200_000}, "input"),
        ({"dimensions": 3}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"colour": "red"}, "colour"),
        ({"model": MODEL}, "model"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_by_name_and_reaches_no_engine(
    gateway: ScriptedGateway, members: dict[str, Any], param: str
) -> None:
    before = len(gateway.engine.requests)
    answer = await embed(gateway, **members)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", None, param)
    assert "x-receipt-id" not in answer.headers
    assert len(gateway.engine.requests) == before


async def test_each_surface_says_which_one_serves_the_model(gateway: ScriptedGateway) -> None:
    of_chat = (await embed(gateway, model=MODEL)).json()["error"]
    assert "POST /v1/chat/completions" in of_chat["message"]
    answer = await gateway.client.post("/v1/chat/completions", json=chat() | {"model": VECTORS})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "model")
    assert "POST /v1/embeddings" in error["message"]
    assert (await embed(gateway, model="no/such")).status_code == 404


async def test_a_large_request_goes_to_the_engine_in_batches_and_comes_back_in_order(gateway: ScriptedGateway) -> None:
    vectors = [(index / 256, 0.0, 0.0, 0.0) for index in range(150)]
    parts = [vectors[:64], vectors[64:128], vectors[128:]]
    gateway.follow(*(answer_of(*part, tokens=10 * len(part)) for part in parts))
    before = len(gateway.engine.requests)
    body = (await embed(gateway, ["hello"] * 150)).json()
    assert [len(json.loads(each.body)["input"]) for each in gateway.engine.requests[before:]] == [64, 64, 22]
    assert [each["index"] for each in body["data"]] == list(range(150))
    assert [each["embedding"] for each in body["data"]] == [rounded(vector) for vector in vectors]
    assert body["usage"] == {"prompt_tokens": 1500, "total_tokens": 1500}


async def test_vectors_that_come_in_another_order_are_put_right(gateway: ScriptedGateway) -> None:
    gateway.follow(answer_of(TWO, ONE, indices=(1, 0)))
    data = (await embed(gateway, ["hello", "world"])).json()["data"]
    assert [each["embedding"] for each in data] == [rounded(ONE), rounded(TWO)]


async def test_between_the_batches_of_one_request_another_has_its_turn(tmp_path: Path) -> None:
    gate = asyncio.Event()
    [many] = answer_of(*[ONE] * 64)
    async with serving(tmp_path, [gate, many], answer_of(TWO), [many], config=CONFIG) as gateway:
        large = asyncio.create_task(embed(gateway, ["hello"] * 128))
        await gateway.engine.asked(1)
        small = asyncio.create_task(embed(gateway))
        async with asyncio.timeout(5):
            while not gateway.vector_slots.waiting:
                await asyncio.sleep(0.001)
        gate.set()
        assert (await small).json()["data"][0]["embedding"] == rounded(TWO)
        assert (await large).status_code == 200
        assert [len(json.loads(each.body)["input"]) for each in gateway.engine.requests] == [64, 1, 64]
        assert gateway.vector_slots.free == 1


async def test_a_full_queue_is_429_and_a_turn_that_does_not_come_503(tmp_path: Path) -> None:
    config = Config(model=MODELS, limits=Limits(queue=1, queue_timeout_s=0.2))
    async with serving(tmp_path, [HANG], config=config) as gateway:
        async with raw_connection(gateway.url) as holder:
            await holder.send(
                raw_post(json.dumps({"model": VECTORS, "input": "hello"}).encode(), target=b"/v1/embeddings")
            )
            await gateway.engine.asked(1)
            waiting = asyncio.create_task(embed(gateway))
            async with asyncio.timeout(5):
                while not gateway.vector_slots.waiting:
                    await asyncio.sleep(0.001)
            full = await embed(gateway)
            assert (full.status_code, full.headers["retry-after"]) == (429, "2")
            late = await waiting
            assert (late.status_code, late.json()["error"]["type"]) == (503, "service_unavailable")
        await gateway.outcome(3)
        assert gateway.vector_slots.free == 1


@pytest.mark.parametrize("batch", [0, 1])
async def test_a_client_that_leaves_releases_the_engine_at_once(tmp_path: Path, batch: int) -> None:
    script: list[Script] = [answer_of(*[ONE] * 64)] * batch
    async with serving(tmp_path, *script, [HANG], config=CONFIG) as gateway:
        body = json.dumps({"model": VECTORS, "input": ["hello"] * 128}).encode()
        async with raw_connection(gateway.url) as client:
            await client.send(raw_post(body, target=b"/v1/embeddings"))
            await gateway.engine.asked(batch + 1)
        left_at = asyncio.get_running_loop().time()
        await gateway.engine.left(1)
        assert gateway.engine.departures[0].at - left_at < ABORT_WITHIN_S
        assert await gateway.outcome(1) == "client_closed"
        assert gateway.vector_slots.free == 1
        assert gateway.channel.live == 0
        await assert_receipted(gateway, b"", "client_closed", sent=body)


async def test_who_leaves_while_waiting_never_reaches_the_engine(tmp_path: Path) -> None:
    gate = asyncio.Event()
    body = json.dumps({"model": VECTORS, "input": "hello"}).encode()
    async with serving(tmp_path, [gate, *answer_of(ONE)], config=CONFIG) as gateway:
        first = asyncio.create_task(embed(gateway))
        await gateway.engine.asked(1)
        async with raw_connection(gateway.url) as client:
            await client.send(raw_post(body, target=b"/v1/embeddings"))
            async with asyncio.timeout(5):
                while not gateway.vector_slots.waiting:
                    await asyncio.sleep(0.001)
        assert await gateway.outcome(1) == "client_closed"
        assert gateway.vector_slots.waiting == 0
        gate.set()
        assert (await first).status_code == 200
        assert len(gateway.engine.requests) == 1


WRONG_LENGTH = {"index": 0, "embedding": base64.b64encode(bytes(12)).decode()}
USAGE = {"prompt_tokens": 1}


@pytest.mark.parametrize(
    "script",
    [
        engine_says({"data": [], "usage": USAGE}),
        engine_says({"data": [WRONG_LENGTH], "usage": USAGE}),
        engine_says({"data": [{"index": 0, "embedding": "!"}], "usage": USAGE}),
        engine_says({"data": [{"index": 0, "embedding": [0.5]}], "usage": USAGE}),
        engine_says({"data": [{"index": 3, "embedding": base64.b64encode(packed(ONE)).decode()}], "usage": USAGE}),
        engine_says([]),
        engine_says({"error": {"code": 500, "message": "a hello of the client's", "type": "server_error"}}, b"500 No"),
        engine_says("secret", b"500 No"),
        [response(b"not json")],
        [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", CLOSE],
        [CLOSE],
    ],
)
async def test_an_engine_that_fails_is_502_with_a_receipt_and_without_its_words(
    gateway: ScriptedGateway, script: Script
) -> None:
    gateway.follow(script)
    answer = await embed(gateway)
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")
    assert "hello" not in answer.text
    await assert_receipted(gateway, answer.content, "failed")
    assert gateway.vector_slots.free == 1


@pytest.mark.parametrize(
    "error",
    [
        {"code": 500, "message": "input (602 tokens) is too large to process. increase …", "type": "server_error"},
        {"code": 400, "message": "…", "type": "exceed_context_size_error", "n_prompt_tokens": 602, "n_ctx": 300},
    ],
)
async def test_a_text_that_only_the_engine_finds_too_long_is_the_caller_s(
    gateway: ScriptedGateway, error: dict[str, object]
) -> None:
    gateway.follow(engine_says({"error": error}, b"500 No"))
    answer = await embed(gateway)
    found = answer.json()["error"]
    assert (answer.status_code, found["param"]) == (400, "input")
    assert "602 tokens" in found["message"]


async def test_texts_go_to_the_engine_as_they_are_where_their_vocabulary_is_not_ours(tmp_path: Path) -> None:
    async with serving(tmp_path, answer_of(ONE, TWO), config=CONFIG, tokenizer=None) as gateway:
        assert (await embed(gateway, ["Héllo", "wörld"])).status_code == 200
        assert gateway.asked()["input"] == ["Héllo", "wörld"]
        assert (await embed(gateway, "x" * 200_000)).json()["error"]["param"] == "input"


async def test_a_long_input_is_cut_without_holding_others_up(gateway: ScriptedGateway) -> None:
    gateway.follow(answer_of(*[ONE] * 10), answer_of(*[TWO] * 10), answer_of(ONE))
    answer = await embed(gateway, ["hello " + " " * 10_000] * 10)  # more than is cut in the loop itself
    assert (answer.status_code, len(answer.json()["data"])) == (200, 10)
    refused = await embed(gateway, [*["hello " * 200] * 19, "hello " * 400])
    assert "input[19] has more tokens than the 300" in refused.json()["error"]["message"]


async def test_an_engine_that_is_slow_is_504_and_one_that_is_down_503(tmp_path: Path) -> None:
    async with serving(tmp_path, [HANG], config=CONFIG, timeouts=Timeouts(first_byte_s=0.1)) as gateway:
        slow = await embed(gateway)
        assert (slow.status_code, slow.json()["error"]["type"]) == (504, "timeout_error")
        gateway.switch.is_ready = False
        down = await embed(gateway)
        assert (down.status_code, down.headers["retry-after"]) == (503, "2")
        assert gateway.vector_slots.free == 1


async def test_a_key_is_wanted_where_there_is_one_and_bodies_are_bounded(tmp_path: Path) -> None:
    config = Config(model=MODELS, server=Server(max_body_bytes=2000))
    async with serving(tmp_path, answer_of(ONE), config=config) as gateway:
        token = await gateway.new_key()
        assert (await embed(gateway)).status_code == 401
        body = {"model": VECTORS, "input": "hello"}
        assert (await gateway.client.post(EMBEDDINGS, json=body, headers=bearer(token))).status_code == 200
        body["input"] = "a" * 3000
        large = await gateway.client.post(EMBEDDINGS, json=body, headers=bearer(token))
        assert (large.status_code, large.json()["error"]["type"]) == (413, "invalid_request_error")
        assert (await gateway.client.get(EMBEDDINGS)).status_code == 405


async def test_the_log_holds_no_text_and_a_draining_service_takes_none(tmp_path: Path) -> None:
    async with serving(tmp_path, answer_of(ONE), config=CONFIG) as gateway:
        await embed(gateway, "hello canary")
        line = gateway.last_line()
        assert (line["endpoint"], line["model"], line["prompt_tokens"]) == (EMBEDDINGS, VECTORS, 3)
        assert "canary" not in gateway.log_text()
        await gateway.lifecycle.drain(0.1)
        assert (await embed(gateway)).status_code == 503


async def test_embedding_models_have_a_catalogue_of_their_own(gateway: ScriptedGateway) -> None:
    chats = (await gateway.client.get("/v1/models")).json()["data"]
    assert [each["id"] for each in chats] == [MODEL]
    assert [each["id"] for each in (await gateway.client.get("/v1/models?provider=vendor")).json()["data"]] == [MODEL]
    entries = (await gateway.client.get("/v1/embeddings/models")).json()["data"]
    assert [each["id"] for each in entries] == [VECTORS, "alias/vectors"]
    assert entries[0]["input_modalities"] == ["text"]
    assert entries[0]["output_modalities"] == entries[0]["architecture"]["output_modalities"] == ["embeddings"]
    assert (entries[0]["max_output_length"], entries[0]["context_length"]) == (4, 300)
    assert entries[0]["supported_parameters"] == ["dimensions", "encoding_format", "input", "user"]
    assert (await gateway.client.get(f"/v1/models/{VECTORS}")).json()["id"] == VECTORS


async def test_a_chat_is_served_beside_them(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Hi"))
    assert (await gateway.post()).json()["choices"][0]["message"]["content"] == "Hi"
