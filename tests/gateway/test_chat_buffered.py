"""The buffered answer of `POST /v1/chat/completions`, as a client sees it (wire contract 2.6, 4)."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from confide.upstream.channel import Timeouts
from gateway_app import MODEL, ScriptedGateway, answering, chat, event, finish, serving_scripted, token
from scripted import CLOSE, HANG, LAST_CHUNK, RESET, Script, chunk, chunked_head, response, sse_head

CHAT_ID = re.compile(r"chatcmpl-[0-9a-f]{32}")
TOO_LONG = (
    b'{"error":{"code":400,"message":"CANARY","type":"exceed_context_size_error","n_prompt_tokens":5000,"n_ctx":4096}}'
)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


async def test_the_body_is_exactly_the_documented_shape(gateway: ScriptedGateway) -> None:
    gateway.follow(answering("Tw", "o."))
    before = int(time.time())
    answer = await gateway.post()

    body = answer.json()
    assert CHAT_ID.fullmatch(body["id"])
    assert before <= body["created"] <= time.time()
    assert body == {
        "id": body["id"],
        "object": "chat.completion",
        "created": body["created"],
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Two."},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


async def test_it_is_json_of_a_known_length_and_not_compressed(gateway: ScriptedGateway) -> None:
    headers = {"Accept-Encoding": "gzip, deflate, br, zstd"}
    answer = await gateway.client.post("/v1/chat/completions", json=chat(), headers=headers)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert "content-encoding" not in answer.headers
    assert answer.headers["x-e2ee-applied"] == "false"


async def test_the_model_is_named_as_the_client_named_it(gateway: ScriptedGateway) -> None:
    assert (await gateway.post(model="alias/model")).json()["model"] == "alias/model"
    assert (await gateway.post()).json()["model"] == MODEL


async def test_every_answer_has_an_id_of_its_own(gateway: ScriptedGateway) -> None:
    assert len({(await gateway.post()).json()["id"] for _ in range(3)}) == 3


async def test_nothing_that_names_the_engine_leaves(gateway: ScriptedGateway) -> None:
    telling = {
        "id": "engine-id",
        "model": "/secret/path.gguf",
        "system_fingerprint": "b1234-engine",
        "provider": "engine",
        "timings": {"predicted_ms": 1},
        "__verbose": {"prompt": "engine"},
        "choices": [{"index": 7, "delta": {"content": "x", "engine": 1}, "engine": 1, "finish_reason": None}],
    }
    gateway.follow([sse_head(), event(telling), finish(), LAST_CHUNK])

    answer = await gateway.post()

    for word in ("engine", "secret", "gguf", "timings", "cached_tokens", "fingerprint", "provider"):
        assert word not in answer.text
        assert word not in str(answer.headers)
    assert answer.json()["choices"][0]["index"] == 0


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_the_finish_reason_is_the_engines(gateway: ScriptedGateway, reason: str) -> None:
    gateway.follow(answering("x", reason=reason))
    assert (await gateway.post()).json()["choices"][0]["finish_reason"] == reason


async def test_an_empty_answer_has_empty_content_and_not_none(gateway: ScriptedGateway) -> None:
    gateway.follow(answering())
    assert (await gateway.post()).json()["choices"][0]["message"] == {"role": "assistant", "content": ""}


async def test_any_unicode_comes_through(gateway: ScriptedGateway) -> None:
    pieces = ["é", "🔒", "\u2028", "\r\n", "\x00", '"\\/', "日本", "\U0010ffff"]
    gateway.follow(answering(*pieces))
    answer = await gateway.post()
    assert answer.content.decode()
    assert answer.json()["choices"][0]["message"]["content"] == "".join(pieces)


def reasoning(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"reasoning_content": text}, "finish_reason": None}]})


async def test_reasoning_stands_beside_the_content(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), reasoning("Let me "), reasoning("see."), token("2"), finish(), LAST_CHUNK])
    message = (await gateway.post()).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "2", "reasoning_content": "Let me see."}


@pytest.mark.parametrize("members", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
async def test_excluded_reasoning_leaves_the_text_and_not_the_count(
    gateway: ScriptedGateway, members: dict[str, object]
) -> None:
    gateway.follow([sse_head(), reasoning("hidden"), token("2"), finish(completion_tokens=9), LAST_CHUNK])
    body = (await gateway.post(**members)).json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "2"}
    assert body["usage"]["completion_tokens"] == 9


def token_with_logprobs(text: str) -> bytes:
    entry = {"id": 77, "token": text, "bytes": list(text.encode()), "logprob": -0.5}
    logprobs = {"content": [{**entry, "top_logprobs": [entry, {**entry, "token": "other"}]}]}
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, "logprobs": logprobs}]})


async def test_log_probabilities_have_openais_shape_without_token_ids(gateway: ScriptedGateway) -> None:
    gateway.follow([sse_head(), token_with_logprobs("a"), token_with_logprobs("é"), finish(), LAST_CHUNK])
    answer = await gateway.post(logprobs=True, top_logprobs=2)

    def entry(text: str, of: str) -> dict[str, object]:
        return {"token": text, "logprob": -0.5, "bytes": list(of.encode())}

    assert answer.json()["choices"][0]["logprobs"] == {
        "content": [{**entry(t, t), "top_logprobs": [entry(t, t), entry("other", t)]} for t in ("a", "é")],
        "refusal": None,
    }
    assert '"id":77' not in answer.text


async def test_n_answers_are_numbered_and_the_prompt_is_counted_once(gateway: ScriptedGateway) -> None:
    scripts = [
        [sse_head(), token(text), finish(reason, prompt_tokens=11, completion_tokens=tokens), LAST_CHUNK]
        for text, reason, tokens in (("one", "stop", 5), ("two", "length", 7), ("three", "stop", 9))
    ]
    gateway.follow(*scripts)

    body = (await gateway.post(n=3, seed=100)).json()

    # Which engine request came first is open; its seed says which choice it is for.
    wanted = {
        gateway.asked(i)["seed"] - 100: text for i, text in zip((-3, -2, -1), ("one", "two", "three"), strict=True)
    }
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["index"]: choice["message"]["content"] for choice in body["choices"]} == wanted
    assert {c["message"]["content"]: c["finish_reason"] for c in body["choices"]}["two"] == "length"
    assert body["usage"] == {"prompt_tokens": 11, "completion_tokens": 21, "total_tokens": 32}


async def test_one_choice_that_fails_fails_the_answer_and_ends_the_others(gateway: ScriptedGateway) -> None:
    departed = len(gateway.engine.departures)
    gateway.follow(
        [sse_head(), token("x"), event({"error": {"code": 500}}), LAST_CHUNK], [sse_head(), token("x"), HANG]
    )
    answer = await gateway.post(n=2)
    assert answer.status_code == 502
    await gateway.engine.left(departed + 1)
    assert gateway.slots.free == 4


def engine_says(body: bytes, status: bytes = b"200 OK") -> Script:
    return [response(body, b"Content-Type: application/json", status=status)]


FAILURES: dict[str, tuple[Script, int, str, str | None]] = {
    "an HTTP error": (engine_says(b'{"error":{"code":500,"message":"CANARY"}}', b"500 X"), 502, "upstream_error", None),
    "an HTTP error page": (engine_says(b"<html>CANARY", b"500 X"), 502, "upstream_error", None),
    "an HTTP error without a body": (engine_says(b"", b"503 X"), 502, "upstream_error", None),
    "a redirect": (engine_says(b"CANARY", b"302 X"), 502, "upstream_error", None),
    "a prompt too long": (engine_says(TOO_LONG, b"400 X"), 400, "invalid_request_error", "messages"),
    "a prompt too long, in the stream": (
        [sse_head(), chunk(b"data: " + TOO_LONG + b"\n\n"), LAST_CHUNK],
        400,
        "invalid_request_error",
        "messages",
    ),
    "another 400": (
        engine_says(b'{"error":{"code":400,"message":"CANARY"}}', b"400 X"),
        400,
        "invalid_request_error",
        "messages",
    ),
    "an error event": (
        [sse_head(), token("x"), event({"error": {"code": 500, "message": "CANARY"}}), LAST_CHUNK],
        502,
        "upstream_error",
        None,
    ),
    "an event that is no JSON": (
        [sse_head(), chunk(b"data: CANARY\n\n"), finish(), LAST_CHUNK],
        502,
        "upstream_error",
        None,
    ),
    "an event of the wrong shape": (
        [sse_head(), event({"choices": "CANARY"}), LAST_CHUNK],
        502,
        "upstream_error",
        None,
    ),
    "no event at all": (engine_says(b"CANARY"), 502, "upstream_error", None),
    "an empty stream": ([sse_head(), LAST_CHUNK], 502, "upstream_error", None),
    "no finish reason": ([sse_head(), token("CANARY"), LAST_CHUNK], 502, "upstream_error", None),
    "only the terminator": ([sse_head(), chunk(b"data: [DONE]\n\n"), LAST_CHUNK], 502, "upstream_error", None),
    "half an event": ([sse_head(), chunk(b'data: {"choices":'), LAST_CHUNK], 502, "upstream_error", None),
    "a close before the head": ([CLOSE], 502, "upstream_error", None),
    "a close within the head": ([b"HTTP/1.1 200", CLOSE], 502, "upstream_error", None),
    "a close within the stream": ([sse_head(), token("CANARY"), CLOSE], 502, "upstream_error", None),
    "a reset": ([sse_head(), token("CANARY"), RESET], 502, "upstream_error", None),
    "no HTTP": ([b"CANARY\r\n\r\n"], 502, "upstream_error", None),
    "a wrong chunk": ([chunked_head(), b"CANARY\r\n"], 502, "upstream_error", None),
}


def assert_is_error(answer: httpx2.Response, status: int, type: str, param: str | None) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (status, type, param)
    assert set(error) == {"message", "type", "code", "param"}
    assert answer.headers["content-type"] == "application/json"
    assert "CANARY" not in answer.text


@pytest.mark.parametrize("name", FAILURES)
async def test_an_engine_that_fails_is_never_taken_for_an_answer(gateway: ScriptedGateway, name: str) -> None:
    script, status, type, param = FAILURES[name]
    gateway.follow(script)
    assert_is_error(await gateway.post(), status, type, param)
    assert "CANARY" not in gateway.log_text()
    assert gateway.slots.free == 4


async def test_a_prompt_too_long_is_refused_with_both_numbers(gateway: ScriptedGateway) -> None:
    gateway.follow(engine_says(TOO_LONG, b"400 Bad Request"))
    message = (await gateway.post()).json()["error"]["message"]
    assert "5000" in message
    assert "4096" in message


async def test_an_engine_that_stays_silent_is_a_timeout(tmp_path: Path) -> None:
    timeouts = Timeouts(first_byte_s=0.05, idle_s=0.05)
    async with serving_scripted(tmp_path, [HANG], [sse_head(), token("x"), HANG], timeouts=timeouts) as gateway:
        for _ in range(2):
            assert_is_error(await gateway.post(), 504, "timeout_error", None)


async def test_the_service_goes_on_after_a_failure(gateway: ScriptedGateway) -> None:
    gateway.follow([CLOSE], answering("fine"))
    assert (await gateway.post()).status_code == 502
    assert (await gateway.post()).json()["choices"][0]["message"]["content"] == "fine"
