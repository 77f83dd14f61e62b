"""The streamed answer of `POST /v1/chat/completions`, byte for byte (wire contract 2.7)."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from confide.upstream.channel import Timeouts
from gateway_app import MODEL, ScriptedGateway, answering, chat, event, finish, serving_scripted, token
from scripted import CLOSE, HANG, LAST_CHUNK, RESET, TURN, Script, chunk, response, sse_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

DONE = b"data: [DONE]\n\n"
FAILED = "the model failed while it answered; try again"
ENDED_EARLY = "the model stopped before the end of its answer; try again"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


def chunks(wire: bytes) -> list[dict[str, Any]]:
    """The JSON of every event but the last, which is `[DONE]`."""
    events = wire.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    return [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]


def stream_of(first: dict[str, Any], *choices: str, usage: str = "") -> bytes:
    """The bytes of a stream with these `choices` members, under the id and the time of `first`."""
    head = (
        f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk","created":{first["created"]},"model":"{MODEL}"'
    )
    return "".join(f'{head},"choices":[{choice}]{usage}}}\n\n' for choice in choices).encode()


ROLE = '{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}'
TW = '{"index":0,"delta":{"content":"Tw"},"finish_reason":null}'
O = '{"index":0,"delta":{"content":"o."},"finish_reason":null}'  # noqa: E741 - the second half of "Two."
STOP = '{"index":0,"delta":{},"finish_reason":"stop"}'


async def test_the_stream_is_exactly_the_documented_bytes(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Tw", "o."))
    wire = (await gateway.post(stream=True)).content
    assert wire == stream_of(chunks(wire)[0], ROLE, TW, O, STOP) + DONE


async def test_with_usage_it_is_exactly_the_documented_bytes(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Tw", "o."))
    wire = (await gateway.post(stream=True, stream_options={"include_usage": True})).content
    first = chunks(wire)[0]
    counts = ',"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}'
    texts = stream_of(first, ROLE, TW, O, STOP, usage=',"usage":null')
    assert wire == texts + stream_of(first, "", usage=counts) + DONE


async def test_the_headers_forbid_every_kind_of_buffering(gateway: ScriptedGateway) -> None:
    headers = {"Accept-Encoding": "gzip, deflate, br, zstd"}
    answer = await gateway.client.post("/v1/chat/completions", json=chat(stream=True), headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-e2ee-applied"] == "false"
    assert not {"content-encoding", "content-length"} & set(answer.headers)


@pytest.mark.parametrize(
    "options",
    [{}, {"stream_options": None}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}],
    ids=str,
)
async def test_without_usage_no_chunk_has_empty_choices_or_usage(
    gateway: ScriptedGateway, options: dict[str, object]
) -> None:
    gateway.follow(answering("a", "b"))
    received = chunks((await gateway.post(stream=True, **options)).content)
    assert len(received) >= 2
    for each in received:
        assert len(each["choices"]) == 1
        assert "usage" not in each


async def test_with_usage_only_the_last_chunk_has_no_choices(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("a", "b"))
    *others, last = chunks((await gateway.post(stream=True, stream_options={"include_usage": True, "x": 1})).content)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 5
    assert all(len(each["choices"]) == 1 and each["usage"] is None for each in others)


async def test_the_engines_progress_and_role_events_stay_inside(gateway: ScriptedGateway) -> None:
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
    progress = {**role, "prompt_progress": {"total": 9, "processed": 4}}
    empty = {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}]}
    script = [sse_head(), event(progress), event({"choices": []}), event(role), event(empty), token("x"), finish()]
    gateway.follow([*script, LAST_CHUNK])
    wire = (await gateway.post(stream=True)).content
    assert [each["choices"][0]["delta"] for each in chunks(wire)] == [
        {"role": "assistant", "content": ""},
        {"content": "x"},
        {},
    ]
    assert b"progress" not in wire


async def test_an_empty_answer_still_has_a_role_and_a_finish(gateway: ScriptedGateway) -> None:
    gateway.follow(answering())
    wire = (await gateway.post(stream=True)).content
    assert wire == stream_of(chunks(wire)[0], ROLE, STOP) + DONE


async def test_reasoning_comes_before_the_text(gateway: ScriptedGateway) -> None:
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    gateway.follow([sse_head(), thought, token("x"), finish(), LAST_CHUNK])
    deltas = [each["choices"][0]["delta"] for each in chunks((await gateway.post(stream=True)).content)]
    assert deltas == [{"role": "assistant", "content": ""}, {"reasoning_content": "hm"}, {"content": "x"}, {}]


async def test_log_probabilities_travel_with_their_text(gateway: ScriptedGateway) -> None:
    entry = {"id": 7, "token": "x", "bytes": [120], "logprob": -0.25}
    logprobs = {"content": [{**entry, "top_logprobs": [entry]}]}
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None, "logprobs": logprobs}
    gateway.follow([sse_head(), event({"choices": [choice]}), finish(), LAST_CHUNK])

    wire = (await gateway.post(stream=True, logprobs=True, top_logprobs=1)).content

    shown = '{"token":"x","logprob":-0.25,"bytes":[120]'
    text = (
        '{"index":0,"delta":{"content":"x"},"finish_reason":null,'
        f'"logprobs":{{"content":[{shown},"top_logprobs":[{shown}}}]}}],"refusal":null}}}}'
    )
    assert wire == stream_of(chunks(wire)[0], ROLE, text, STOP) + DONE


async def test_no_text_can_break_the_framing(gateway: ScriptedGateway) -> None:
    pieces = ["\r\n\r\ndata: [DONE]\r\n\r\n", "\n\n", "\r", "\u2028\u2029\x85", "\x00", "🔒é", "event: x\n"]
    gateway.follow(answering(*pieces))
    wire = (await gateway.post(stream=True)).content
    assert b"\r" not in wire
    texts = [each["choices"][0]["delta"].get("content", "") for each in chunks(wire)]
    assert "".join(texts) == "".join(pieces)


async def test_a_read_that_ends_anywhere_splits_no_character(gateway: ScriptedGateway) -> None:
    data = b"data: " + json.dumps({"choices": [{"delta": {"content": "é🔒"}}]}, ensure_ascii=False).encode() + b"\n\n"
    for cut in range(1, len(data)):
        gateway.follow([sse_head(), chunk(data[:cut]), TURN, chunk(data[cut:]), finish(), LAST_CHUNK])
        deltas = [each["choices"][0]["delta"] for each in chunks((await gateway.post(stream=True)).content)]
        assert deltas == [{"role": "assistant", "content": ""}, {"content": "é🔒"}, {}]


async def test_several_choices_keep_their_own_order_under_one_id(gateway: ScriptedGateway) -> None:
    gateway.follow(*(answering(f"{name}1", f"{name}2", f"{name}3") for name in "abc"))
    answer = await gateway.post(stream=True, n=3, seed=50, stream_options={"include_usage": True})

    *texts, usage = chunks(answer.content)
    name_of = {gateway.asked(at)["seed"] - 50: name for at, name in zip((-3, -2, -1), "abc", strict=True)}
    for index in range(3):
        of_choice = [each["choices"][0] for each in texts if each["choices"][0]["index"] == index]
        assert [choice["delta"] for choice in of_choice] == [
            {"role": "assistant", "content": ""},
            *({"content": f"{name_of[index]}{part}"} for part in (1, 2, 3)),
            {},
        ]
        assert [choice["finish_reason"] for choice in of_choice] == [None] * 4 + ["stop"]
    assert len({(each["id"], each["created"], each["model"], each["object"]) for each in [*texts, usage]}) == 1
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


async def test_a_missing_terminator_of_the_engines_is_supplied(gateway: ScriptedGateway) -> None:
    stop = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    gateway.follow([sse_head(), token("Tw"), token("o."), stop, LAST_CHUNK])
    wire = (await gateway.post(stream=True)).content
    assert wire == stream_of(chunks(wire)[0], ROLE, TW, O, STOP) + DONE


async def test_text_leaves_while_the_engine_still_writes(gateway: ScriptedGateway) -> None:
    gate = asyncio.Event()
    gateway.follow([sse_head(), token("first"), gate, token("last"), finish(), LAST_CHUNK])
    async with gateway.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as answer:
        seen = b""
        async for data in answer.aiter_raw():
            seen += data
            if b'"first"' in seen and not gate.is_set():
                assert b"last" not in seen
                gate.set()
    assert b'"last"' in seen


BEFORE_THE_FIRST_BYTE: dict[str, tuple[Script, int]] = {
    "HTTP 500": ([response(b"oops", status=b"500 X")], 502),
    "HTTP 400": ([response(b'{"error":{"code":400}}', status=b"400 X")], 400),
    "an error event first": ([sse_head(), event({"error": {"code": 500}}), LAST_CHUNK], 502),
    "garbage first": ([sse_head(), chunk(b"data: {\n\n"), LAST_CHUNK], 502),
    "nothing": ([sse_head(), LAST_CHUNK], 502),
    "a close": ([CLOSE], 502),
}


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_BYTE)
async def test_a_failure_before_the_first_byte_is_an_ordinary_error(gateway: ScriptedGateway, name: str) -> None:
    script, status = BEFORE_THE_FIRST_BYTE[name]
    gateway.follow(script)
    answer = await gateway.post(stream=True)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] is None


ERROR_EVENT = event({"error": {"code": 500, "message": "CANARY", "type": "server_error"}})
AFTER_THE_FIRST_BYTE: dict[str, tuple[Script, str]] = {
    "an error event": ([ERROR_EVENT, LAST_CHUNK], FAILED),
    "an error event, then more": ([ERROR_EVENT, token("CANARY"), finish(), LAST_CHUNK], FAILED),
    "no finish reason": ([LAST_CHUNK], ENDED_EARLY),
    "the terminator without a finish reason": ([chunk(b"data: [DONE]\n\n"), LAST_CHUNK], ENDED_EARLY),
    "garbage": ([chunk(b"data: CANARY\n\n"), finish(), LAST_CHUNK], ENDED_EARLY),
    "half an event": ([chunk(b'data: {"choi'), LAST_CHUNK], ENDED_EARLY),
    "a close": ([CLOSE], ENDED_EARLY),
    "a reset": ([RESET], ENDED_EARLY),
    "a wrong chunk": ([b"CANARY\r\n"], ENDED_EARLY),
}


@pytest.mark.parametrize("name", AFTER_THE_FIRST_BYTE)
@pytest.mark.parametrize("usage", [False, True], ids=["", "with usage"])
async def test_a_failure_after_the_first_byte_ends_in_the_error_tail(
    gateway: ScriptedGateway, name: str, usage: bool
) -> None:
    rest, message = AFTER_THE_FIRST_BYTE[name]
    gateway.follow([sse_head(), token("Tw"), *rest])

    answer = await gateway.post(stream=True, **({"stream_options": {"include_usage": True}} if usage else {}))

    first = json.loads(answer.content.split(b"\n\n")[0].removeprefix(b"data: "))
    tail = f'\n\ndata: {{"error":{{"message":"{message}","type":"upstream_error","code":502,"param":null}}}}\n\n'
    begun = stream_of(first, ROLE, TW, usage=',"usage":null' if usage else "")
    assert answer.status_code == 200
    assert answer.content == begun + tail.encode() + DONE


async def test_a_silent_engine_ends_the_stream_as_a_timeout(tmp_path: Path) -> None:
    script: Script = [sse_head(), token("x"), HANG]
    async with serving_scripted(tmp_path, script, timeouts=Timeouts(idle_s=0.05)) as gateway:
        wire = (await gateway.post(stream=True)).content
    assert wire.endswith(b'"type":"timeout_error","code":504,"param":null}}\n\ndata: [DONE]\n\n')


async def test_one_choice_that_fails_ends_the_stream_once(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), token("x"), ERROR_EVENT, LAST_CHUNK], [sse_head(), token("y"), HANG])
    wire = (await gateway.post(stream=True, n=2)).content
    assert wire.count(b'"error"') == wire.count(b"[DONE]") == 1
    assert wire.endswith(DONE)
    assert gateway.slots.free == 4


async def test_text_of_the_engine_that_is_not_utf_8_is_an_upstream_error(tmp_path: Path) -> None:
    bad = chunk(b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n')
    async with serving_scripted(tmp_path, [sse_head(), bad, finish(), LAST_CHUNK]) as gateway:
        assert (await gateway.post()).status_code == 502
        assert (await gateway.post(stream=True)).status_code == 502


async def test_what_the_engine_sends_after_its_finish_reason_is_left_out(tmp_path: Path) -> None:
    script = [sse_head(), token("a"), finish(), token("late"), finish(), LAST_CHUNK]
    async with serving_scripted(tmp_path, script) as gateway:
        text = (await gateway.post(stream=True)).text
        assert text.count('"finish_reason":"stop"') == 1
        assert "late" not in text
        assert "late" not in (await gateway.post()).text
