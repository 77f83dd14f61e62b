"""`POST /v1/messages`, as a client sees it (wire contract 3.5, 4)."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from confide.config import Config, Limits, Model, Server
from confide.protocol.canonical import digest_of
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED
from confide.protocol.sse import KEEP_ALIVE
from gateway_app import (
    MODEL,
    ScriptedGateway,
    answering,
    assert_receipted,
    bearer,
    event,
    finish,
    serving_scripted,
    token,
)
from relay_app import answered, completion, delta, local, model, serving_upstreams, streamed
from scripted import CLOSE, HANG, LAST_CHUNK, TURN, Script, ScriptedUpstream, chunk, response, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
DONE = b"data: [DONE]\n\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


def body(**members: object) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}], **members}


async def ask(gateway: Any, headers: dict[str, str] | None = None, **members: object) -> httpx2.Response:
    answer: httpx2.Response = await gateway.client.post(MESSAGES, json=body(**members), headers=headers or {})
    return answer


def events(stream: bytes) -> list[dict[str, Any]]:
    """The events of a stream, whose names are also on their own lines."""
    found = []
    for raw in stream.replace(KEEP_ALIVE, b"").split(b"\n\n"):
        if raw:
            name, data = raw.split(b"\n")
            found.append(json.loads(data.removeprefix(b"data: ")))
            assert name == b"event: " + found[-1]["type"].encode()
    return found


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    said: dict[str, Any] = answer.json()
    assert said["type"] == "error"
    assert set(said) == {"type", "error", "request_id"}
    error: dict[str, Any] = said["error"]
    return error


async def test_a_message_is_exactly_the_documented_shape(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Hel", "lo."))
    answer = await ask(gateway, temperature=0.5, stop_sequences=["END"], system="Be brief.", metadata={"user_id": "u"})
    assert answer.status_code == 200
    said = answer.json()
    assert said["id"].startswith("msg_")
    assert said == {
        "id": said["id"],
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 2,
        },
    }
    asked = gateway.asked()
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert (asked["temperature"], asked["stop"], asked["max_tokens"]) == (0.5, ["END"], 9)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_receipt_covers_the_bytes_of_this_surface(gateway: ScriptedGateway, stream: bool) -> None:
    gateway.follow(answering("Hi"))
    sent = json.dumps(body(stream=stream)).encode()
    answer = await gateway.client.post(MESSAGES, content=sent)
    receipt = await assert_receipted(gateway, answer.content, "complete", sent=sent)
    message_id = events(answer.content)[0]["message"]["id"] if stream else answer.json()["id"]
    assert receipt.members.chat_id == message_id
    assert receipt.members.endpoint == MESSAGES
    assert receipt.body_hash(FORWARDED) != receipt.body_hash(RECEIVED)
    assert answer.headers["x-receipt-id"] == receipt.members.receipt_id
    line = gateway.last_line()
    assert (line["endpoint"], line["prompt_tokens"], line["completion_tokens"]) == (MESSAGES, 3, 2)


async def test_a_stream_has_the_documented_events(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Hel", "lo.", reason="length"))
    answer = await ask(gateway, stream=True)
    assert answer.headers["content-type"] == "text/event-stream"
    found = events(answer.content)
    assert [each["type"] for each in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert found[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert found[-2]["usage"]["input_tokens"] == 3
    assert answer.content.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_that_an_engine_shows_comes_first(gateway: ScriptedGateway, stream: bool) -> None:
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}, "finish_reason": None}]})
    gateway.follow([sse_head(), thought, token("Hi"), finish(), LAST_CHUNK])
    answer = await ask(gateway, stream=stream)
    if stream:
        starts = [each["content_block"] for each in events(answer.content) if each["type"] == "content_block_start"]
        assert [start["type"] for start in starts] == ["thinking", "text"]
    else:
        assert answer.json()["content"] == [
            {"type": "thinking", "thinking": "Hm.", "signature": ""},
            {"type": "text", "text": "Hi"},
        ]


async def test_a_stream_that_breaks_ends_in_an_error_and_is_receipted_as_cut(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), token("Hi"), CLOSE])
    answer = await ask(gateway, stream=True)
    assert answer.status_code == 200
    assert b"\n\n\n\nevent: error\n" in answer.content
    *rest, last = events(answer.content)
    assert "message_stop" not in [each["type"] for each in rest]
    assert last["error"]["type"] == "api_error"
    receipt = await assert_receipted(gateway, answer.content, "truncated")
    assert last["request_id"] == receipt.members.receipt_id


async def test_before_the_first_byte_a_failure_is_an_error_response(gateway: ScriptedGateway) -> None:
    gateway.follow([response(b"{}", status=b"500 Internal Server Error")])
    for stream in (False, True):
        answer = await ask(gateway, stream=stream)
        assert answer.status_code == 502
        assert error_of(answer)["type"] == "api_error"
        receipt = await assert_receipted(gateway, answer.content, "failed")
        assert answer.json()["request_id"] == receipt.members.receipt_id == answer.headers["x-receipt-id"]


async def test_a_client_that_leaves_stops_the_engine_and_what_it_has_is_proven(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), token("Hi"), HANG])
    count, departures = len(gateway.outcomes()), len(gateway.engine.departures)
    received = b""
    async with gateway.client.stream("POST", MESSAGES, json=body(stream=True)) as answer:
        async for part in answer.aiter_bytes():
            received += part
            if b"text_delta" in received:
                break
    assert await gateway.outcome(count + 1) == "client_closed"
    await gateway.engine.left(departures + 1)
    receipt = await assert_receipted(gateway, received, "client_closed")
    assert receipt.members.endpoint == MESSAGES


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
    ({"model": "none"}, 404, "not_found_error", "model"),
    ({"n": 2}, 400, "invalid_request_error", "n is not supported"),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}}, 400, "invalid_request_error", "thinking: this model"),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "a", "content": "x"},
                        {"type": "image", "source": {"type": "url", "url": "https://a"}},
                    ],
                }
            ]
        },
        400,
        "invalid_request_error",
        "messages: this model takes text only",
    ),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {"$ref": "#/nowhere"}}}},
        400,
        "invalid_request_error",
        "output_config.format",
    ),
]


@pytest.mark.parametrize(("members", "status", "kind", "says"), REFUSED, ids=str)
async def test_errors_have_the_surfaces_envelope_and_name_its_members(
    gateway: ScriptedGateway, members: dict[str, Any], status: int, kind: str, says: str
) -> None:
    answer = await ask(gateway, **members)
    assert answer.status_code == status
    error = error_of(answer)
    assert error["type"] == kind
    assert error["message"].startswith(says)


async def test_constraints_that_cannot_be_met_keep_acis_shape(gateway: ScriptedGateway) -> None:
    for provider, status, kind in (
        ({"aci_session_ids": ["0" * 64]}, 412, "session_not_accepted"),
        ({"aci_verified": "yes"}, 400, "invalid_request_error"),
        ([], 400, "invalid_request_error"),
    ):
        answer = await ask(gateway, provider=provider)
        assert answer.status_code == status
        assert set(answer.json()) == {"error"}
        assert answer.json()["error"]["type"] == kind
        assert answer.json()["error"]["param"].startswith("provider")


async def test_a_key_may_come_in_either_header(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("Hi")) as gateway:
        key = await gateway.new_key()
        for headers in ({"x-api-key": key, "anthropic-version": "2023-06-01"}, bearer(key)):
            assert (await ask(gateway, headers)).status_code == 200
        for headers in ({}, {"x-api-key": "wrong"}):
            for path in (MESSAGES, COUNT):
                answer = await gateway.client.post(path, json=body(), headers=headers)
                assert answer.status_code == 401
                assert error_of(answer)["type"] == "authentication_error"


async def test_a_body_that_is_too_large_has_its_own_name(tmp_path: Path) -> None:
    config = Config(model=(Model(id=MODEL, upstream_model="scripted"),), server=Server(max_body_bytes=200))
    async with serving_scripted(tmp_path, answering("Hi"), config=config) as gateway:
        for path in (MESSAGES, COUNT):
            answer = await gateway.client.post(path, json=body(system="x" * 300))
            assert answer.status_code == 413
            assert error_of(answer)["type"] == "request_too_large"


async def test_a_full_queue_says_so_in_the_surfaces_words(tmp_path: Path) -> None:
    config = Config(model=(Model(id=MODEL, upstream_model="scripted"),), limits=Limits(queue=0))
    async with serving_scripted(tmp_path, [sse_head(), token("Hi"), HANG], config=config) as gateway:
        held = [asyncio.create_task(ask(gateway, stream=True)) for _ in range(4)]
        async with asyncio.timeout(5):
            while gateway.slots.free:
                await asyncio.sleep(0.005)
        answer = await ask(gateway)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
    assert answer.status_code == 429
    assert error_of(answer)["type"] == "rate_limit_error"
    assert "retry-after" in answer.headers


async def test_other_methods_are_refused(gateway: ScriptedGateway) -> None:
    for path in (MESSAGES, COUNT):
        assert (await gateway.client.get(path)).status_code == 405


# Engines of others


async def test_an_engine_that_speaks_chat_answers_and_does_not_see_this_surface(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream(answered(completion("Hi")), streamed(delta("Hi"), delta("", finish="stop"), DONE)) as engine,
        serving_upstreams(tmp_path, local(engine.port) + model('"engine"')) as gateway,
    ):
        answer = await ask(gateway)
        assert answer.json()["content"] == [{"type": "text", "text": "Hi"}]
        assert answer.json()["id"].startswith("msg_")
        receipt = await gateway.receipt(answer)
        assert receipt.members.chat_id == answer.json()["id"]
        assert receipt.body_hash(FORWARDED) == digest_of(engine.requests[0].body)
        assert receipt.body_hash(RETURNED) == digest_of(answer.content)
        streaming = await ask(gateway, stream=True)
        assert [each["type"] for each in events(streaming.content)][-1] == "message_stop"
        assert [seen.target for seen in engine.requests] == [b"/v1/chat/completions"] * 2
        assert json.loads(engine.requests[1].body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "answer_bytes", [b'{"choices":[{"message":{"content":[]}}]}', completion("Hi").replace(b'"stop"', b'"odd"')]
)
async def test_an_answer_that_is_none_of_chats_is_the_engines_failure(tmp_path: Path, answer_bytes: bytes) -> None:
    async with (
        ScriptedUpstream(answered(answer_bytes)) as engine,
        serving_upstreams(tmp_path, local(engine.port) + model('"engine"')) as gateway,
    ):
        answer = await ask(gateway)
        assert answer.status_code == 502
        assert error_of(answer)["type"] == "api_error"


NATIVE = (
    b'{"type":"message_start","message":{"id":"msg_theirs","type":"message","role":"assistant","model":"%b",'
    b'"content":[],"stop_reason":null,"usage":{"input_tokens":5,"cache_read_input_tokens":2,"output_tokens":1}}}',
    b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}',
    b'{"type":"ping"}',
    b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}',
    b'{"type":"content_block_stop","index":0}',
    b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}',
    b'{"type":"message_stop"}',
)


def native(model_name: bytes = b"vendor/model") -> list[bytes]:
    """The stream of an engine that speaks Messages itself."""
    named = [NATIVE[0] % model_name, *NATIVE[1:]]
    return [b"event: %b\ndata: %b\n\n" % (json.loads(data)["type"].encode(), data) for data in named]


def speaking(engine: ScriptedUpstream, **keys: Any) -> str:
    return local(engine.port, surfaces=["chat", "messages"]) + model('"engine"', **keys)


async def test_an_engine_that_speaks_it_is_passed_through_byte_for_byte(tmp_path: Path) -> None:
    whole = b'{"type":"message", "id":"msg_theirs","model":"vendor/model","content":[],"usage":{"input_tokens":7}}'
    async with (
        ScriptedUpstream(answered(whole), streamed(*native())) as engine,
        serving_upstreams(tmp_path, speaking(engine)) as gateway,
    ):
        sent = json.dumps(body(odd=1.50, thinking={"type": "between_tools"})).encode()
        answer = await gateway.client.post(MESSAGES, content=sent)
        assert answer.content == whole
        assert engine.requests[0].body == sent
        assert engine.requests[0].target == b"/v1/messages"
        receipt = await gateway.receipt(answer)
        assert receipt.members.chat_id == "msg_theirs"
        assert receipt.body_hash(RECEIVED) == receipt.body_hash(FORWARDED) == digest_of(sent)
        streaming = await ask(gateway, stream=True)
        assert streaming.content == b"".join(native())
        assert (await gateway.receipt(streaming)).members.chat_id == "msg_theirs"
        first, second = gateway.lines("request")
        assert (first["prompt_tokens"], first["outcome"]) == (7, "complete")
        assert (second["prompt_tokens"], second["completion_tokens"], second["outcome"]) == (7, 4, "complete")


async def test_its_own_name_of_the_model_is_not_shown(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream(streamed(*native(b"secret/name"))) as engine,
        serving_upstreams(tmp_path, speaking(engine, upstream_model="secret/name")) as gateway,
    ):
        answer = await ask(gateway, stream=True)
        assert answer.content == b"".join(native())
        assert json.loads(engine.requests[0].body)["model"] == "secret/name"


BROKEN: dict[str, Script] = {
    "cut": [sse_head(), *map(chunk, native()[:4]), CLOSE],
    "a clean end before the last event": [sse_head(), *map(chunk, native()[:6]), LAST_CHUNK],
    "an error event": [
        sse_head(),
        *map(chunk, native()[:4]),
        TURN,
        chunk(b'event: error\ndata: {"type":"error","error":{"type":"x","message":"at 10.0.0.7"}}\n\n'),
        LAST_CHUNK,
    ],
}


@pytest.mark.parametrize("script", list(BROKEN.values()), ids=list(BROKEN))
async def test_a_broken_stream_of_theirs_never_looks_whole(tmp_path: Path, script: Script) -> None:
    async with ScriptedUpstream(script) as engine, serving_upstreams(tmp_path, speaking(engine)) as gateway:
        answer = await ask(gateway, stream=True)
        assert answer.content.startswith(b"".join(native()[:4]))
        assert b"message_stop" not in answer.content
        assert b"10.0.0.7" not in answer.content
        last = events(answer.content)[-1]
        assert last["error"]["type"] == "api_error"
        receipt = await gateway.receipt(answer)
        assert receipt.outcome == "truncated"
        assert receipt.body_hash(RETURNED) == digest_of(answer.content)


async def test_their_refusal_is_told_in_the_surfaces_words(tmp_path: Path) -> None:
    refusal = b'{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: too many"}}'
    async with (
        ScriptedUpstream([response(refusal, status=b"400 Bad Request")], answered(refusal)) as engine,
        serving_upstreams(tmp_path, speaking(engine)) as gateway,
    ):
        answer = await ask(gateway)
        assert (answer.status_code, error_of(answer)["message"]) == (400, "max_tokens: too many")
        assert (await ask(gateway)).status_code == 502


async def test_where_one_speaks_it_and_another_does_not_both_can_answer(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream([response(b"{}", status=b"500 Internal Server Error")]) as first,
        ScriptedUpstream(answered(completion("Hi"))) as second,
    ):
        config = local(first.port, "first", surfaces=["messages"]) + local(second.port, "second")
        async with serving_upstreams(tmp_path, config + model('["first", "second"]')) as gateway:
            answer = await ask(gateway)
            assert answer.json()["content"] == [{"type": "text", "text": "Hi"}]
            assert first.requests[0].target == b"/v1/messages"
            assert second.requests[0].target == b"/v1/chat/completions"
            broken = await ask(gateway, max_tokens=0)
            assert (broken.status_code, error_of(broken)["type"]) == (400, "invalid_request_error")
