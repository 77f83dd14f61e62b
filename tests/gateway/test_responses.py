"""`POST /v1/responses`, as a client sees it (wire contract 3.4)."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from confide.config import Config, Model
from confide.protocol.canonical import digest_of
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED
from gateway_app import MODEL, ScriptedGateway, answering, assert_receipted, bearer, event, serving_scripted, token
from relay_app import answered, completion, delta, local, model, serving_upstreams, streamed
from responses_reading import checked_by_the_sdk, events_of, response_checked_by_the_sdk, told
from scripted import CLOSE, HANG, LAST_CHUNK, Script, ScriptedUpstream, chunk, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")
RESPONSES = "/v1/responses"
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": None}
CALL = '<tool_call>\n{"name":"get_weather","arguments":{"city":"Paris"}}\n</tool_call>'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    config = Config(model=(Model(id=MODEL, aliases=("alias/model",), upstream_model="scripted"),))
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Two."), config=config) as gateway:
        yield gateway


async def respond(gateway: ScriptedGateway, **members: object) -> httpx2.Response:
    return await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "One and one?", **members})


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    found = events_of(answer.content)
    checked_by_the_sdk(found)
    return found


async def test_a_buffered_response(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Tw", "o."))
    answer = await respond(gateway, model="alias/model", instructions="Be brief.", max_output_tokens=16)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    response = response_checked_by_the_sdk(answer.json())
    assert response.output_text == "Two."
    assert (response.model, response.status, response.instructions) == ("alias/model", "completed", "Be brief.")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (3, 2, 5)
    asked = gateway.asked()
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert asked["max_tokens"] == 16


async def test_a_stream_ends_with_what_would_have_been_the_body(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Tw", "o."))
    buffered = (await respond(gateway)).json()
    answer = await respond(gateway, stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    streaming = told(events(answer))
    assert b"[DONE]" not in answer.content
    body, streamed_body = (json.dumps(each).replace(each["id"][5:], "id") for each in (buffered, streaming))
    assert json.loads(body) | {"created_at": 0} == json.loads(streamed_body) | {"created_at": 0}


async def test_tools_and_their_results(gateway: ScriptedGateway) -> None:
    gateway.follow(answering(CALL))
    answer = await respond(gateway, tools=[WEATHER])
    [call] = answer.json()["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == (
        "function_call",
        "get_weather",
        {"city": "Paris"},
    )
    gateway.follow(answering("12 C"))
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "12"}
    said = [{"role": "user", "content": "Paris?"}, call, result]
    assert (await respond(gateway, input=said, tools=[WEATHER], stream=True)).status_code == 200
    *_, turn, tool = gateway.asked()["messages"]
    assert turn["tool_calls"][0]["id"] == tool["tool_call_id"] == call["call_id"]


async def test_a_limit_that_was_reached_makes_it_incomplete(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Tw", reason="length"))
    body = (await respond(gateway)).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert events(await respond(gateway, stream=True))[-1]["type"] == "response.incomplete"


async def test_reasoning_is_an_item_of_its_own(gateway: ScriptedGateway) -> None:
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    gateway.follow([sse_head(), thought, *answering("Two.")[1:]])
    response = told(events(await respond(gateway, stream=True)))
    assert [item["type"] for item in response["output"]] == ["reasoning", "message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_receipt_covers_what_the_client_sent_and_got(gateway: ScriptedGateway, stream: bool) -> None:
    gateway.follow(answering("Two."))
    sent = json.dumps({"model": MODEL, "input": "a", "stream": stream, "provider": {"aci_verified": True}}).encode()
    answer = await gateway.client.post(RESPONSES, content=sent)
    receipt = await assert_receipted(gateway, answer.content, "complete", sent=sent)
    assert receipt.members.endpoint == RESPONSES
    response = events(answer)[-1]["response"] if stream else answer.json()
    assert receipt.members.chat_id == response["id"] == gateway.last_line()["id"]
    assert receipt.body_hash(RECEIVED) != receipt.body_hash(FORWARDED)  # it became a request of chat
    for name in (response["id"], answer.headers["x-receipt-id"]):
        assert (await gateway.client.get(f"/v1/aci/receipts/{name}")).json()["endpoint"] == RESPONSES
    assert (await gateway.client.get(f"/v1/signature/{response['id']}")).status_code == 200


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"colour": 1}, "colour"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"provider": {"aci_session_ids": ["x"]}}, "provider.aci_session_ids"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://a"}]}]}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "no"}}}}, "text.format"),
    ],
)
async def test_what_is_refused_is_called_as_the_client_called_it(
    gateway: ScriptedGateway, members: dict[str, object], param: str
) -> None:
    asked = len(gateway.engine.requests)
    answer = await respond(gateway, **members)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"], error["param"]) == (
        400,
        "invalid_request_error",
        None,
        param,
    )
    assert len(gateway.engine.requests) == asked


async def test_an_unknown_model_is_not_found(gateway: ScriptedGateway) -> None:
    answer = await respond(gateway, model="vendor/other")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "model_not_found")


async def test_another_method_is_refused(gateway: ScriptedGateway) -> None:
    assert (await gateway.client.get(RESPONSES)).status_code == 405


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_fails_at_once_is_an_error_response(gateway: ScriptedGateway, stream: bool) -> None:
    gateway.follow([CLOSE])
    answer = await respond(gateway, stream=stream)
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")
    await assert_receipted(gateway, answer.content, "failed")


async def test_a_stream_that_breaks_ends_in_the_event_error(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), token("half an ans"), CLOSE])
    answer = await respond(gateway, stream=True)
    *before, last = events(answer)
    assert before[-1]["delta"] == "half an ans"
    assert (last["type"], last["code"], last["param"]) == ("error", "server_error", None)
    assert answer.content.endswith(
        b"\n\n\n\nevent: error\ndata: " + json.dumps(last, separators=(",", ":")).encode() + b"\n\n"
    )
    receipt = await assert_receipted(gateway, answer.content, "truncated")
    assert receipt.members.chat_id == before[0]["response"]["id"]


async def test_without_a_receipt_a_stream_does_not_look_whole(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise OSError("disk full")

    gateway.follow(answering("Two."))
    monkeypatch.setattr(gateway.store, "commit", fails)
    answer = await respond(gateway, stream=True)
    found = events_of(answer.content)
    assert found[-1]["type"] == "error"
    assert "response.completed" not in [each["type"] for each in found]


async def test_the_engine_is_stopped_when_the_client_leaves(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, [sse_head(), token("I think"), HANG]) as gateway:
        sent = {"model": MODEL, "input": "a", "stream": True}
        received = b""
        async with gateway.client.stream("POST", RESPONSES, json=sent) as answer:
            async for part in answer.aiter_raw():
                received += part
                if b"output_text.delta" in received and received.endswith(b"\n\n"):
                    break
        await gateway.engine.left(1)
        assert await gateway.outcome(1) == "client_closed"
        await assert_receipted(gateway, received, "client_closed")


async def test_keys_are_asked_for(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Two.")) as gateway:
        key = await gateway.new_key()
        assert (await respond(gateway)).status_code == 401
        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a"}, headers=bearer(key))
        assert answer.status_code == 200


# An engine inside the workload, that is asked over chat.


async def test_an_engine_that_speaks_chat_is_asked_over_chat(tmp_path: Path) -> None:
    stream = [delta("Tw"), delta("o."), delta("", finish="stop"), b"data: [DONE]\n\n"]
    async with (
        ScriptedUpstream(answered(completion("Two.")), streamed(*stream)) as engine,
        serving_upstreams(tmp_path, local(engine.port) + model('"engine"')) as gateway,
    ):
        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a", "top_p": 0.5})
        assert response_checked_by_the_sdk(answer.json()).output_text == "Two."
        assert engine.requests[0].target == b"/v1/chat/completions"
        assert json.loads(engine.requests[0].body) == {
            "model": MODEL,
            "messages": [{"role": "user", "content": "a"}],
            "top_p": 0.5,
        }
        receipt = await gateway.receipt(answer)
        assert receipt.body_hash(FORWARDED) == digest_of(engine.requests[0].body)
        assert receipt.members.chat_id == answer.json()["id"]

        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a", "stream": True})
        assert told(events(answer))["output"][0]["content"][0]["text"] == "Two."
        assert (await gateway.receipt(answer)).outcome == "complete"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engines_answer_that_is_none_is_its_failure(tmp_path: Path, stream: bool) -> None:
    odd = b'data: {"choices":[{"index":0,"delta":{"content":7}}]}\n\ndata: [DONE]\n\n'
    script = streamed(odd) if stream else answered(b'{"choices":[{"message":{"content":7}}]}')
    async with (
        ScriptedUpstream(script) as engine,
        serving_upstreams(tmp_path, local(engine.port) + model('"engine"')) as gateway,
    ):
        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a", "stream": stream})
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")


async def test_what_an_engine_refuses_is_called_as_the_client_called_it(tmp_path: Path) -> None:
    refusal = (
        b'{"error":{"message":"messages is no good","type":"invalid_request_error","code":null,"param":"messages"}}'
    )
    async with (
        ScriptedUpstream(answered(refusal, status=b"400 No")) as engine,
        serving_upstreams(tmp_path, local(engine.port) + model('"engine"')) as gateway,
    ):
        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


# An engine that speaks the surface itself: its bytes pass.

NATIVE = "resp_of_the_engine"


def native(status: str = "completed", *, name: str = MODEL, **members: object) -> dict[str, Any]:
    usage = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    return {
        "id": NATIVE,
        "object": "response",
        "status": status,
        "model": name,
        "output": [],
        "usage": usage,
        **members,
    }


def framed(type: str, number: int | None = None, **members: object) -> bytes:
    counted = {} if number is None else {"sequence_number": number}
    return f"event: {type}\ndata: {json.dumps({'type': type, **counted, **members})}\n\n".encode()


CREATED = framed("response.created", 0, response=native("in_progress"))
TEXT = framed("response.output_text.delta", 1, delta='the "provider" of a \\"model\\"')
COMPLETED = framed("response.completed", 2, response=native())
SPOKEN: dict[str, Any] = {"surfaces": ["responses", "chat"]}


async def test_an_engine_that_speaks_it_gets_and_gives_its_own_bytes(tmp_path: Path) -> None:
    odd = b' { "model" : "vendor/model", "input":"\\u00e9", "previous_response_id":"resp_x", "temperature":1.50 } '
    body = json.dumps(native()).encode()
    async with (
        ScriptedUpstream(answered(body), streamed(CREATED, TEXT, b": still\n\n", COMPLETED)) as engine,
        serving_upstreams(tmp_path, local(engine.port, **SPOKEN) + model('"engine"')) as gateway,
    ):
        answer = await gateway.client.post(RESPONSES, content=odd)
        assert answer.content == body
        assert (engine.requests[0].target, engine.requests[0].body) == (b"/v1/responses", odd)
        receipt = await gateway.receipt(answer)
        assert receipt.body_hash(RECEIVED) == receipt.body_hash(FORWARDED) == digest_of(odd)
        assert (receipt.members.chat_id, receipt.members.endpoint) == (NATIVE, RESPONSES)

        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a", "stream": True})
        assert answer.content == CREATED + TEXT + b": still\n\n" + COMPLETED
        receipt = await gateway.receipt(answer)
        assert receipt.outcome == "complete"
        assert receipt.body_hash(RETURNED) == digest_of(answer.content)
        assert receipt.members.chat_id == NATIVE
        for line in gateway.lines("request"):
            assert (line["prompt_tokens"], line["completion_tokens"]) == (7, 2)


@pytest.mark.parametrize("end", ["incomplete", "failed"])
async def test_the_other_last_events_end_it_too(tmp_path: Path, end: str) -> None:
    last = framed(f"response.{end}", 1, response=native(end))
    async with (
        ScriptedUpstream(streamed(CREATED, last, b"data: [DONE]\n\n")) as engine,
        serving_upstreams(tmp_path, local(engine.port, **SPOKEN) + model('"engine"')) as gateway,
    ):
        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a", "stream": True})
        assert answer.content == CREATED + last
        assert (await gateway.receipt(answer)).outcome == "complete"


BROKEN: dict[str, list[Any]] = {
    "cut": [CLOSE],
    "a clean end before the last event": [LAST_CHUNK],
    "an end that is another surface's": [chunk(b"data: [DONE]\n\n"), LAST_CHUNK],
    "an error": [chunk(framed("error", 2, code="x", message="at 10.0.0.7")), LAST_CHUNK],
    "no JSON": [chunk(b"data: <html>\n\n"), LAST_CHUNK],
}


@pytest.mark.parametrize("steps", list(BROKEN.values()), ids=list(BROKEN))
async def test_a_stream_that_passes_and_breaks_ends_in_the_event_error(tmp_path: Path, steps: list[Any]) -> None:
    script: Script = [sse_head(), chunk(CREATED), chunk(TEXT), *steps]
    async with (
        ScriptedUpstream(script) as engine,
        serving_upstreams(tmp_path, local(engine.port, **SPOKEN) + model('"engine"')) as gateway,
    ):
        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a", "stream": True})
        assert answer.content.startswith(CREATED)
        assert b"10.0.0.7" not in answer.content
        sent, _, error = answer.content.partition(b"\n\n\n\nevent: error\ndata: ")
        assert json.loads(error)["sequence_number"] == sent.count(b"event: ")
        assert (await gateway.receipt(answer)).outcome == "truncated"


async def test_an_alias_is_what_the_client_called_it_inside_of_events_too(tmp_path: Path) -> None:
    inner = native(name="engine/own", provider="x", system_fingerprint="fp")
    stream = framed("response.created", 0, response=inner) + TEXT + framed("response.completed", 2, response=inner)
    async with (
        ScriptedUpstream(answered(json.dumps(inner).encode()), streamed(stream)) as engine,
        serving_upstreams(
            tmp_path, local(engine.port, **SPOKEN) + model('"engine"', upstream_model="engine/own")
        ) as gateway,
    ):
        for members in ({}, {"stream": True}):
            answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a", **members})
            assert answer.status_code == 200
            assert b"engine/own" not in answer.content
            assert b'"fp"' not in answer.content
            assert b'"provider": ' not in answer.content
            assert MODEL.encode() in answer.content
        assert TEXT in answer.content
        assert [json.loads(request.body)["model"] for request in engine.requests] == ["engine/own", "engine/own"]


async def test_no_response_with_status_200_is_its_failure(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream(answered(b'{"error":{"message":"no"}}')) as engine,
        serving_upstreams(tmp_path, local(engine.port, **SPOKEN) + model('"engine"')) as gateway,
    ):
        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a"})
        assert answer.status_code == 502


async def test_where_one_engine_speaks_it_and_one_does_not_both_are_asked_in_their_way(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream(answered(b"{}", status=b"503 Busy")) as first,
        ScriptedUpstream(answered(completion("Two."))) as second,
        serving_upstreams(
            tmp_path,
            local(first.port, "first", **SPOKEN) + local(second.port, "second") + model('["first", "second"]'),
        ) as gateway,
    ):
        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a"})
        assert response_checked_by_the_sdk(answer.json()).output_text == "Two."
        assert first.requests[0].target == b"/v1/responses"
        assert second.requests[0].target == b"/v1/chat/completions"
        answer = await gateway.client.post(RESPONSES, json={"model": MODEL, "input": "a", "colour": 1})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "colour")
