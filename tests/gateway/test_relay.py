"""An engine inside the workload: its bytes come through, both ways, and nothing names it."""

import json
from pathlib import Path
from typing import Any

import pytest

from confide.protocol.canonical import digest_of
from confide.protocol.receipt import FORWARDED, RECEIVED, RETURNED
from relay_app import DONE, MODEL, answered, body, completion, delta, local, model, serving_upstreams, streamed
from scripted import CLOSE, HANG, LAST_CHUNK, RESET, Script, ScriptedUpstream, chunk, sse_head

ODD = (
    b' { "model" : "vendor/model", "messages":[{"role":"user","content":"\\u00e9 1"}],"temperature":1.50, "x":[1e3] } '
)


def config(engine: ScriptedUpstream, **keys: Any) -> str:
    return local(engine.port, **keys) + model('"engine"')


async def test_a_body_and_its_answer_pass_byte_for_byte(tmp_path: Path) -> None:
    answer_bytes = completion("Hi \u00e9", custom={"n": 1.50})
    async with (
        ScriptedUpstream(answered(answer_bytes, b"Server: engine-7", b"X-Engine: 10.0.0.7")) as engine,
        serving_upstreams(tmp_path, config(engine)) as gateway,
    ):
        answer = await gateway.post(ODD)
        assert answer.status_code == 200
        assert answer.content == answer_bytes
        [seen] = engine.requests
        assert seen.body == ODD
        assert seen.target == b"/v1/chat/completions"
        receipt = await gateway.receipt(answer)
        assert receipt.body_hash(RECEIVED) == receipt.body_hash(FORWARDED) == digest_of(ODD)
        assert receipt.body_hash(RETURNED) == digest_of(answer_bytes)
        assert receipt.members.chat_id == "chatcmpl-of-the-engine"
        assert receipt.upstream == ()
        assert "engine" not in str(answer.headers).replace("chatcmpl-of-the-engine", "")
        [line] = gateway.lines("request")
        assert (line["prompt_tokens"], line["completion_tokens"], line["outcome"]) == (7, 2, "complete")


STREAMS = {
    "as usual": [delta("Hi"), delta("", finish="stop"), DONE],
    "crlf": [
        delta("Hi").replace(b"\n", b"\r\n"),
        delta("", finish="stop").replace(b"\n", b"\r\n"),
        b"data: [DONE]\r\n\r\n",
    ],
    "no space": [delta("Hi").replace(b"data: ", b"data:"), delta("", finish="stop"), b"data:[DONE]\n\n"],
    "comments": [b": thinking\n\n", delta("Hi"), b": still\n\n", delta("", finish="stop"), DONE],
    "split anywhere": [
        delta("Hi")[:9],
        delta("Hi")[9:] + delta("é")[:70],
        delta("é")[70:],
        delta("", finish="stop"),
        DONE,
    ],
    "large": [delta("x" * 2**20), delta("", finish="stop"), DONE],
    "other fields": [b"event: message\nid: 7\n" + delta("Hi"), delta("", finish="stop"), DONE],
    "together": [delta("a") + delta("b") + delta("", finish="stop") + DONE],
}


@pytest.mark.parametrize("events", list(STREAMS.values()), ids=list(STREAMS))
async def test_a_stream_passes_byte_for_byte(tmp_path: Path, events: list[bytes]) -> None:
    async with (
        ScriptedUpstream(streamed(*events)) as engine,
        serving_upstreams(tmp_path, config(engine)) as gateway,
    ):
        answer = await gateway.post(stream=True)
        assert answer.content == b"".join(events)
        receipt = await gateway.receipt(answer)
        assert receipt.outcome == "complete"
        assert receipt.body_hash(RETURNED) == digest_of(answer.content)
        assert receipt.members.chat_id == "chatcmpl-of-the-engine"


async def test_an_end_without_its_last_event_is_given_one(tmp_path: Path) -> None:
    events = [delta("Hi"), delta("", finish="stop")]
    async with (
        ScriptedUpstream(streamed(*events)) as engine,
        serving_upstreams(tmp_path, config(engine)) as gateway,
    ):
        answer = await gateway.post(stream=True)
        assert answer.content == b"".join(events) + DONE
        assert (await gateway.receipt(answer)).outcome == "complete"


BROKEN = {
    "cut": [sse_head(), chunk(delta("Hi")), CLOSE],
    "reset": [sse_head(), chunk(delta("Hi")), RESET],
    "cut inside an event": [sse_head(), chunk(delta("Hi")), chunk(delta("there")[:30]), CLOSE],
    "a clean end inside an event": [sse_head(), chunk(delta("Hi")), chunk(delta("there")[:30]), LAST_CHUNK],
    "a clean end without a finish": [sse_head(), chunk(delta("Hi")), LAST_CHUNK],
    "an error event": [
        sse_head(),
        chunk(delta("Hi")),
        chunk(b'data: {"error":{"message":"at 10.0.0.7"}}\n\n' + DONE),
        LAST_CHUNK,
    ],
}


@pytest.mark.parametrize("script", list(BROKEN.values()), ids=list(BROKEN))
async def test_a_broken_stream_never_looks_whole(tmp_path: Path, script: Script) -> None:
    async with ScriptedUpstream(script) as engine, serving_upstreams(tmp_path, config(engine)) as gateway:
        answer = await gateway.post(stream=True)
        assert answer.content.startswith(delta("Hi") + b"\n\ndata: ")
        *_, error, done = answer.content.split(b"data: ")
        assert json.loads(error)["error"]["type"] == "upstream_error"
        assert done == b"[DONE]\n\n"
        assert b"10.0.0.7" not in answer.content
        receipt = await gateway.receipt(answer)
        assert receipt.outcome == "truncated"
        assert receipt.body_hash(RETURNED) == digest_of(answer.content)


FAILING = {
    "cut": ([CLOSE], 502),
    "a body cut": ([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", CLOSE], 502),
    "no JSON": (answered(b"<html>"), 502),
    "an error with status 200": (answered(b'{"error":{"message":"no"}}'), 502),
    "500": (answered(b'{"error":{"message":"at 10.0.0.7"}}', status=b"500 Oops"), 502),
    "its key is refused": (answered(b"{}", status=b"401 No"), 502),
    "it lacks the model": (answered(b"{}", status=b"404 No"), 502),
    "503": (answered(b"{}", b"Retry-After: 7", status=b"503 Busy"), 503),
    "429": (answered(b"{}", b"Retry-After: 7", status=b"429 Busy"), 429),
    "504": (answered(b"{}", status=b"504 Slow"), 504),
}


@pytest.mark.parametrize(("script", "status"), list(FAILING.values()), ids=list(FAILING))
@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_fails_is_an_error_of_ours(
    tmp_path: Path, script: Script, status: int, stream: bool
) -> None:
    async with ScriptedUpstream(script) as engine, serving_upstreams(tmp_path, config(engine)) as gateway:
        answer = await gateway.post(stream=stream)
        assert answer.status_code == status, answer.text
        assert "10.0.0.7" not in answer.text
        if b"Retry-After: 7" in b"".join(part for part in script if isinstance(part, bytes)):
            assert answer.headers["retry-after"] == "7"
        receipt = await gateway.receipt(answer)
        assert receipt.body_hash(RETURNED) == digest_of(answer.content)
        assert receipt.body_hash(FORWARDED) is not None


async def test_a_stalled_engine_is_a_timeout(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream([HANG]) as engine,
        serving_upstreams(tmp_path, config(engine, first_byte_timeout_s=0.1)) as gateway,
    ):
        assert (await gateway.post()).status_code == 504
        await engine.left(1)
        assert len(engine.requests) == 1


REFUSAL = (
    b'{"error": {"message":"max_tokens is too large", "type":"invalid_request_error","code":null,"param":"max_tokens"}}'
)


async def test_what_the_engine_has_against_a_request_reaches_the_client_verbatim(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream(answered(REFUSAL, status=b"400 Bad")) as engine,
        serving_upstreams(tmp_path, config(engine)) as gateway,
    ):
        answer = await gateway.post()
        assert (answer.status_code, answer.content) == (400, REFUSAL)
        receipt = await gateway.receipt(answer)
        assert receipt.outcome == "refused"
        assert receipt.body_hash(RETURNED) == digest_of(REFUSAL)


@pytest.mark.parametrize(
    ("refusal", "message", "param"),
    [
        (
            b'{"error":{"message":"too long","type":"BadRequestError","code":400,"param":"messages"}}',
            "too long",
            "messages",
        ),
        (b'{"object":"error","message":"too long","type":"BadRequestError"}', "too long", None),
        (b'{"error":{"message":"see http://10.0.0.7/x","type":"t","code":null,"param":null}}', None, None),
        (b"Bad Gateway at engine-3.internal", None, None),
    ],
)
async def test_other_refusals_are_put_into_our_shape(
    tmp_path: Path, refusal: bytes, message: str | None, param: str | None
) -> None:
    async with (
        ScriptedUpstream(answered(refusal, status=b"400 Bad")) as engine,
        serving_upstreams(tmp_path, config(engine)) as gateway,
    ):
        error = (await gateway.post()).json()["error"]
        assert error.keys() == {"message", "type", "code", "param"}
        assert error["type"] == "invalid_request_error"
        assert error["message"] == (message or "the model could not take the request")
        assert error["param"] == param


async def test_an_alias_is_the_only_name_that_either_side_sees(tmp_path: Path) -> None:
    events = [delta("a", model="Qwen"), delta("b", model="Qwen"), delta("", model="Qwen", finish="stop")]
    text = local(0) + model('"engine"', upstream_model="Qwen", aliases=["short"])
    async with (
        ScriptedUpstream(answered(completion(model="Qwen")), streamed(*events, DONE)) as engine,
        serving_upstreams(tmp_path, text.replace(":0/", f":{engine.port}/")) as gateway,
    ):
        sent = body(model="short")
        answer = await gateway.post(sent)
        assert answer.content == completion(model="short")
        assert engine.requests[0].body == sent.replace(b'"short"', b'"Qwen"')
        receipt = await gateway.receipt(answer)
        assert receipt.members.model == "short"
        assert receipt.body_hash(FORWARDED) == digest_of(engine.requests[0].body) != receipt.body_hash(RECEIVED)
        streamed_answer = await gateway.post(model="short", stream=True)
        assert streamed_answer.content == b"".join(events).replace(b'"Qwen"', b'"short"') + DONE


async def test_nothing_in_an_answer_identifies_the_engine(tmp_path: Path) -> None:
    telling = {"system_fingerprint": "fp_7", "provider": "box-7"}
    events = [delta("a", **telling), delta("", finish="stop", **telling), DONE]
    async with (
        ScriptedUpstream(answered(completion(**telling)), streamed(*events)) as engine,
        serving_upstreams(tmp_path, config(engine)) as gateway,
    ):
        whole = (await gateway.post()).json()
        assert whole["system_fingerprint"] is None
        assert "provider" not in whole
        text = (await gateway.post(stream=True)).text
        assert "fp_7" not in text
        assert "box-7" not in text
        assert text.count('"system_fingerprint": null') == 2


async def test_constraints_and_priority_are_consumed_and_the_salt_is_ours(tmp_path: Path) -> None:
    sent = (
        b'{"model":"vendor/model","provider":{"aci_verified":true,"order":["x"]},"priority":9,'
        b'"cache_salt":"mine","messages":[1.0]}'
    )
    async with (
        ScriptedUpstream(answered(completion())) as engine,
        serving_upstreams(tmp_path, config(engine, cache_salt=True)) as gateway,
    ):
        salts = set()
        for token in ("one", "one", "other"):
            answer = await gateway.client.post(
                "/v1/chat/completions", content=sent, headers={"Authorization": f"Bearer {token}"}
            )
            assert answer.status_code == 200
            seen = json.loads(engine.requests[-1].body)
            salts.add(seen.pop("cache_salt"))
            assert list(seen.items()) == [("model", MODEL), ("provider", {"order": ["x"]}), ("messages", [1.0])]
            assert b"[1.0]" in engine.requests[-1].body
        assert len(salts) == 2
        assert "mine" not in salts


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b'{"messages":[]}', "model"),
        (b'{"model":7}', "model"),
        (b'{"model":"a","model":"vendor/model"}', None),
        (b'{"model":"vendor/model","stream":"yes"}', "stream"),
        (b'{"model":"vendor/model","provider":[]}', "provider"),
        (b'{"model":"vendor/model","provider":{"aci_other":1}}', "provider.aci_other"),
        (b'{"model":"vendor/model","provider":{"aci_verified":true,"aci_verified":false}}', "provider"),
    ],
)
async def test_what_nobody_could_route_is_refused_here(tmp_path: Path, content: bytes, param: str | None) -> None:
    async with ScriptedUpstream([]) as engine, serving_upstreams(tmp_path, config(engine)) as gateway:
        answer = await gateway.post(content)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert engine.requests == []


async def test_sessions_cannot_be_pinned_where_there_is_no_second_hop(tmp_path: Path) -> None:
    async with ScriptedUpstream([]) as engine, serving_upstreams(tmp_path, config(engine)) as gateway:
        answer = await gateway.post(provider={"aci_session_ids": ["95" * 32]})
        assert answer.status_code == 412
        assert [event["type"] for event in await gateway.events(answer)] == [
            "request.received",
            "response.returned",
            "response.outcome",
        ]
        assert engine.requests == []


async def test_a_unix_socket_and_a_key_of_the_upstreams_own(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("upstream-key\n")
    path = tmp_path / "engine.sock"
    text = (
        '[[upstream]]\nname = "engine"\nkind = "local"\nprobe = "none"\n'
        f'base_url = "unix:{path}"\nkey_file = "{tmp_path / "key"}"\n' + model('"engine"')
    )
    async with (
        ScriptedUpstream(answered(completion()), path=path) as engine,
        serving_upstreams(tmp_path, text) as gateway,
    ):
        answer = await gateway.client.post(
            "/v1/chat/completions", content=body(), headers={"Authorization": "Bearer of-the-client"}
        )
        assert answer.status_code == 200
        assert dict(engine.requests[0].headers)[b"authorization"] == b"Bearer upstream-key"
        assert b"of-the-client" not in str(engine.requests[0].headers).encode()


async def test_the_connection_serves_again_after_whole_answers(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream(answered(completion()), streamed(delta("a"), delta("", finish="stop"), DONE)) as engine,
        serving_upstreams(tmp_path, config(engine)) as gateway,
    ):
        for stream in (False, True, True):
            assert (await gateway.post(stream=stream)).status_code == 200
        assert {request.connection for request in engine.requests} == {1}


async def test_the_client_that_leaves_ends_the_upstreams_work(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream([sse_head(), chunk(delta("Hi")), HANG]) as engine,
        serving_upstreams(tmp_path, config(engine)) as gateway,
    ):
        async with gateway.client.stream("POST", "/v1/chat/completions", content=body(stream=True)) as answer:
            async for _ in answer.aiter_raw():
                break
        await engine.left(1)
