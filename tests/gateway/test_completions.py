"""`POST /v1/completions`, as a client sees it (wire contract 3.3)."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from confide.config import Config
from confide.protocol.canonical import digest_of
from gateway_app import MODEL, ScriptedGateway, serving_scripted
from left_behind import soon
from relay_app import answered, local, model, serving_upstreams, streamed
from scripted import CLOSE, HANG, LAST_CHUNK, Script, ScriptedUpstream, chunk, response, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")
COMPLETIONS = "/v1/completions"


def piece(text: str, finish_reason: str | None = None, **members: object) -> bytes:
    """The engine's event: a piece of text."""
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, **members}
    return chunk(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")


def usage(prompt: int, completion: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return chunk(b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\n")


def continuing(*texts: str, prompt_tokens: int = 3) -> Script:
    """The engine goes on with these pieces."""
    last = [piece("", "length"), usage(prompt_tokens, len(texts)), chunk(b"data: [DONE]\n\n"), LAST_CHUNK]
    return [sse_head(), *(piece(text) for text in texts), *last]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), continuing(" upon")) as gateway:
        yield gateway


async def complete(gateway: ScriptedGateway, **members: object) -> httpx2.Response:
    return await gateway.client.post(COMPLETIONS, json={"model": MODEL, "prompt": "Once", **members})


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    """The events of a stream that ends as it must."""
    *found, last, rest = answer.text.split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    return [json.loads(each.removeprefix("data: ")) for each in found]


async def test_the_body_is_exactly_the_documented_shape(gateway: ScriptedGateway) -> None:
    gateway.follow(continuing(" upon", " a time"))
    body = (await complete(gateway)).json()
    assert body["id"].startswith("cmpl-")
    assert body == {
        "id": body["id"],
        "object": "text_completion",
        "created": body["created"],
        "model": MODEL,
        "choices": [{"text": " upon a time", "index": 0, "logprobs": None, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    assert gateway.engine.requests[-1].target == COMPLETIONS.encode()
    asked = gateway.asked()
    assert (asked["prompt"], asked["max_tokens"], asked["stream"], asked["cache_prompt"]) == ("Once", 16, True, False)


async def test_the_receipt_names_the_endpoint_and_covers_the_bytes(gateway: ScriptedGateway) -> None:
    gateway.follow(continuing(" upon"))
    answer = await complete(gateway)
    receipt = (await gateway.client.get(f"/v1/aci/receipts/{answer.json()['id']}")).json()
    assert receipt["endpoint"] == COMPLETIONS
    assert receipt["chat_id"] == answer.json()["id"]
    returned = next(each for each in receipt["event_log"] if each["type"] == "response.returned")
    assert returned["body_hash"] == digest_of(answer.content)


async def test_a_stream_is_the_same_object_in_fragments(gateway: ScriptedGateway) -> None:
    gateway.follow(continuing(" upon", " a"))
    answer = await complete(gateway, stream=True, stream_options={"include_usage": True})
    *pieces, counts = events(answer)
    assert "".join(each["choices"][0]["text"] for each in pieces) == " upon a"  # two may come in one
    reasons = [each["choices"][0]["finish_reason"] for each in pieces]
    assert reasons == [None] * (len(pieces) - 1) + ["length"]
    assert all(each["usage"] is None and each["object"] == "text_completion" for each in pieces)
    assert counts["choices"] == []
    assert counts["usage"]["total_tokens"] == 5


async def test_several_prompts_give_their_choices_one_prompt_after_the_other(gateway: ScriptedGateway) -> None:
    gateway.follow(
        *(continuing(text, prompt_tokens=tokens) for text, tokens in (("1", 4), ("2", 4), ("3", 6), ("4", 6)))
    )
    body = (await complete(gateway, prompt=["a", "b"], n=2)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [json.loads(request.body)["prompt"] for request in gateway.engine.requests[-4:]] == ["a", "a", "b", "b"]
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["prompt_tokens"] in (8, 10, 12)  # which script met which prompt is the engine's to decide


async def test_echo_begins_each_text_with_its_prompt(gateway: ScriptedGateway) -> None:
    gateway.follow(continuing(" upon"))
    body = (await complete(gateway, prompt=["Once", "Twice"], echo=True)).json()
    assert [choice["text"] for choice in body["choices"]] == ["Once upon", "Twice upon"]
    streaming = events(await complete(gateway, echo=True, stream=True))
    assert "".join(each["choices"][0]["text"] for each in streaming) == "Once upon"


async def test_echo_of_tokens_asks_the_engine_what_they_stand_for(gateway: ScriptedGateway) -> None:
    gateway.follow([response(b'{"content":"Once"}', b"Content-Type: application/json")], continuing(" upon"))
    body = (await complete(gateway, prompt=[1, 2], echo=True)).json()
    assert body["choices"][0]["text"] == "Once upon"
    assert gateway.engine.requests[-2].target == b"/detokenize"
    gateway.follow([response(b'{"error":{"code":500}}', status=b"500 No")])
    refused = await complete(gateway, prompt=[1, 2], echo=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


async def test_tokens_wait_for_a_slot_before_the_engine_tells_them(gateway: ScriptedGateway) -> None:
    """Many that ask at once would take the connections that the answers under way need."""
    gateway.follow([response(b'{"content":"Once"}', b"Content-Type: application/json")], continuing(" upon"))
    asked, taken = len(gateway.engine.requests), gateway.slots.free
    for _ in range(taken):
        await gateway.slots.acquire()
    asking = asyncio.create_task(complete(gateway, prompt=[1, 2], echo=True))
    await soon(lambda: gateway.slots.waiting == 1)
    assert len(gateway.engine.requests) == asked
    for _ in range(taken):
        gateway.slots.release()
    assert (await asking).json()["choices"][0]["text"] == "Once upon"


@pytest.mark.parametrize("script", [[response(b"{}")], [response(b"[")], [CLOSE]])
async def test_an_engine_that_cannot_tell_them_is_our_fault(gateway: ScriptedGateway, script: Script) -> None:
    gateway.follow(script)
    assert (await complete(gateway, prompt=[1], echo=True)).status_code == 502


async def test_log_probabilities_have_the_older_shape(gateway: ScriptedGateway) -> None:
    def probable(token: str, value: float) -> dict[str, object]:
        likeliest = [{"token": " other", "logprob": -0.1}, {"token": token, "logprob": value}]
        return {"content": [{"token": token, "logprob": value, "top_logprobs": likeliest}]}

    last = [piece("", "stop"), usage(3, 2), LAST_CHUNK]
    first = piece(" upon", logprobs=probable(" upon", -1.5))
    gateway.follow([sse_head(), first, piece(" a", logprobs=probable(" a", -2.5)), *last])
    body = (await complete(gateway, logprobs=1)).json()
    assert gateway.asked()["logprobs"] == 1
    assert body["choices"][0]["logprobs"] == {
        "tokens": [" upon", " a"],
        "token_logprobs": [-1.5, -2.5],
        "top_logprobs": [{" other": -0.1, " upon": -1.5}, {" other": -0.1, " a": -2.5}],
        "text_offset": [0, 5],
    }
    gateway.follow([sse_head(), first, *last])
    streaming = events(await complete(gateway, logprobs=0, stream=True))
    assert streaming[0]["choices"][0]["logprobs"]["top_logprobs"] == [{" upon": -1.5}]


@pytest.mark.parametrize(
    ("members", "param"),
    [({"prompt": ""}, "prompt"), ({"suffix": "x"}, "suffix"), ({"n": 99}, "n"), ({"prompt": [1] * 5000}, "prompt")],
)
async def test_what_cannot_be_done_is_named(gateway: ScriptedGateway, members: dict[str, object], param: str) -> None:
    refused = await complete(gateway, **members)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert "x-receipt-id" not in refused.headers


async def test_too_long_a_prompt_is_refused_by_the_name_it_has_here(gateway: ScriptedGateway) -> None:
    error = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 5000, "n_ctx": 4096}
    gateway.follow([response(json.dumps({"error": error}).encode(), status=b"400 No")])
    refused = await complete(gateway, prompt="a " * 5000)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")


async def test_a_stream_that_breaks_ends_in_the_error(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), piece(" upon"), CLOSE])
    answer = await complete(gateway, stream=True)
    assert '"type":"upstream_error"' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    assert gateway.outcomes()[-1] == "truncated"


async def test_who_leaves_frees_every_slot(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), piece(" upon"), HANG])
    before = len(gateway.outcomes())
    with pytest.raises(httpx2.ReadTimeout):
        await gateway.client.post(COMPLETIONS, json={"model": MODEL, "prompt": ["a", "b"]}, timeout=0.3)
    assert await gateway.outcome(before + 1) == "client_closed"
    async with asyncio.timeout(5):
        while gateway.slots.free != Config().engine.slots:
            await asyncio.sleep(0.005)
    gateway.follow(continuing(" upon"))
    assert (await complete(gateway)).status_code == 200


async def test_a_constraint_is_taken_out_before_the_engine_has_it(gateway: ScriptedGateway) -> None:
    gateway.follow(continuing(" upon"))
    answer = await complete(gateway, provider={"aci_verified": True})
    receipt = (await gateway.client.get(f"/v1/aci/receipts/{answer.json()['id']}")).json()
    hashes = {each["type"]: each.get("body_hash") for each in receipt["event_log"]}
    assert hashes["request.received"] != hashes["request.forwarded"]


async def test_an_upstream_that_speaks_it_gets_and_gives_the_bytes(tmp_path: Path) -> None:
    document = json.dumps({"id": "cmpl-theirs", "choices": [{"text": " upon", "index": 0}], "usage": None}).encode()
    sent = b'{ "model":"vendor/model", "prompt":"Once", "best_of":3, "their_own":true }'
    async with ScriptedUpstream(answered(document), streamed(b'data: {"id":"cmpl-1","choices":[]}\n\n')) as engine:
        config = local(engine.port) + model('"engine"')
        async with serving_upstreams(tmp_path, config) as gateway:
            answer = await gateway.client.post(COMPLETIONS, content=sent)
            assert answer.content == document
            assert (engine.requests[0].target, engine.requests[0].body) == (COMPLETIONS.encode(), sent)
            receipt = await gateway.receipt(answer)
            assert (receipt.members.endpoint, receipt.members.chat_id) == (COMPLETIONS, "cmpl-theirs")


async def test_a_model_whose_upstream_does_not_speak_it_says_so(tmp_path: Path) -> None:
    async with ScriptedUpstream(answered(b"{}")) as engine:
        config = local(engine.port, surfaces=["chat"]) + model('"engine"')
        async with serving_upstreams(tmp_path, config) as gateway:
            refused = await gateway.client.post(COMPLETIONS, json={"model": MODEL, "prompt": "Once"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
            assert not engine.requests
