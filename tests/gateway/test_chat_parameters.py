"""What a client asks for, and what the engine is asked for (wire contract 2, 2.1, 2.2, 2.3).

Each member reaches the engine, has the effect that the contract names, or is refused with its name. Nothing else that a
client sends reaches the engine at all.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from confide.engine.sampling import TELLS_WHICH
from gateway_app import MODEL, SPECIAL, ScriptedGateway, answering, chat, serving_scripted

pytestmark = pytest.mark.asyncio(loop_scope="module")

MINIMAL = {
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
    "return_progress": True,
    "stream_options": {"include_usage": True},
    "cache_prompt": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 40,
    "min_p": 0.05,
    "repeat_penalty": 1.1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ScriptedGateway]:
    async with serving_scripted(tmp_path_factory.mktemp("home"), answering("Hi")) as gateway:
        yield gateway


async def engine_was_asked(gateway: ScriptedGateway, **members: object) -> dict[str, Any]:
    answer = await gateway.post(**members)
    assert answer.status_code == 200, answer.text
    return gateway.asked()


async def refused(gateway: ScriptedGateway, **members: object) -> dict[str, Any]:
    """The error of a request that must be refused before the engine hears of it."""
    before = len(gateway.engine.requests)
    answer = await gateway.post(**members)
    assert answer.status_code == 400, answer.text
    assert len(gateway.engine.requests) == before
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert "CANARY" not in answer.text
    return error


async def test_a_minimal_request_asks_the_engine_for_exactly_this(gateway: ScriptedGateway) -> None:
    assert await engine_was_asked(gateway) == MINIMAL


async def test_the_engine_is_asked_at_one_place_with_its_own_key(gateway: ScriptedGateway) -> None:
    await gateway.client.post("/v1/chat/completions?x=1", json=chat(), headers={"X-Custom": "CANARY"})
    seen = gateway.engine.requests[-1]
    assert (seen.method, seen.target) == (b"POST", b"/v1/chat/completions")
    assert dict(seen.headers)[b"authorization"] == b"Bearer engine-key"
    assert {name for name, _ in seen.headers} == {b"host", b"content-length", b"content-type", b"authorization"}


REACHES: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"temperature": 0}, {"temperature": 0.0}),
    ({"temperature": 2}, {"temperature": 2.0}),
    ({"temperature": 0.7}, {"temperature": 0.7}),
    ({"top_p": 0}, {"top_p": 0.0}),
    ({"top_p": 0.9}, {"top_p": 0.9}),
    ({"max_tokens": 1}, {"max_tokens": 1}),
    ({"max_completion_tokens": 9}, {"max_tokens": 9}),
    ({"max_tokens": 5, "max_completion_tokens": 9}, {"max_tokens": 5}),
    ({"max_tokens": 9, "max_completion_tokens": 5}, {"max_tokens": 5}),
    ({"stop": "END"}, {"stop": ["END"], **TELLS_WHICH}),
    ({"stop": ["a", "b", "c", "d"]}, {"stop": ["a", "b", "c", "d"], **TELLS_WHICH}),
    ({"seed": 42}, {"seed": 42}),
    ({"seed": 0}, {"seed": 0}),
    ({"presence_penalty": -2}, {"presence_penalty": -2.0}),
    ({"presence_penalty": 0.5}, {"presence_penalty": 0.5}),
    ({"frequency_penalty": 2}, {"frequency_penalty": 2.0}),
    ({"logit_bias": {"50256": -100, "7": 1.5}}, {"logit_bias": {"50256": -100.0, "7": 1.5}}),
    ({"logprobs": True}, {"logprobs": True, "top_logprobs": 0}),
    ({"logprobs": True, "top_logprobs": 20}, {"logprobs": True, "top_logprobs": 20}),
    ({"top_k": 5}, {"top_k": 5}),
    ({"top_k": 0}, {"top_k": 0}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"min_p": 0}, {"min_p": 0.0}),
    ({"min_p": 0.2}, {"min_p": 0.2}),
    ({"repetition_penalty": 1.3}, {"repeat_penalty": 1.3}),
]


@pytest.mark.parametrize(("sent", "expected"), REACHES, ids=str)
async def test_a_parameter_reaches_the_engine(
    gateway: ScriptedGateway, sent: dict[str, object], expected: dict[str, object]
) -> None:
    assert await engine_was_asked(gateway, **sent) == {**MINIMAL, **expected}


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**32 - 1, 2**63 - 1])
async def test_any_64_bit_seed_becomes_one_that_the_engine_repeats(gateway: ScriptedGateway, seed: int) -> None:
    first, second = [(await engine_was_asked(gateway, seed=seed))["seed"] for _ in range(2)]
    assert first == second
    assert 0 <= first < 2**32 - 1  # with 2**32 - 1 it would draw its own


async def test_each_of_n_choices_is_asked_for_alone_with_a_seed_of_its_own(gateway: ScriptedGateway) -> None:
    await engine_was_asked(gateway, n=3, seed=7)
    asked = [gateway.asked(at) for at in (-3, -2, -1)]
    assert sorted(body.pop("seed") for body in asked) == [7, 8, 9]
    assert asked == [MINIMAL] * 3


IGNORED: list[dict[str, object]] = [
    {"user": "CANARY"},
    {"safety_identifier": "CANARY"},
    {"prompt_cache_key": "CANARY"},
    {"metadata": {"CANARY": "x"}},
    {"metadata": {str(i): "CANARY" for i in range(16)}},
    {"service_tier": "auto"},
    {"service_tier": "flex"},
    {"store": True},
    {"store": False},
    {"verbosity": "low"},
    {"reasoning_effort": "none"},
    {"reasoning": {"effort": "none"}},
    {"reasoning": {"enabled": False}},
    {"reasoning": {"exclude": True}},
    {"include_reasoning": True},
    {"modalities": ["text"]},
    {"priority": 5},
    {"provider": {"order": ["x"]}},
    {"n": 1},
    {"stream": False},
    {"tools": []},
    {"tool_choice": "auto"},
    {"tool_choice": "none"},
    {"parallel_tool_calls": False},
    {"response_format": {"type": "text"}},
    {"logprobs": False},
    {"logit_bias": {}},
    {"chat_template_kwargs": {}},
    {"some_future_member": {"CANARY": [1]}},
    {"extra_body": {"temperature": 0}},
    {"": 1},
]


@pytest.mark.parametrize("sent", IGNORED, ids=str)
async def test_a_member_without_effect_changes_nothing_at_the_engine(
    gateway: ScriptedGateway, sent: dict[str, object]
) -> None:
    assert await engine_was_asked(gateway, **sent) == MINIMAL
    assert "CANARY" not in gateway.log_text()


# What llama.cpp's server takes and a client must not reach: other tenants' cache, slots, grammars, files, internals.
ENGINE_MEMBERS: dict[str, object] = {
    "cache_prompt": True,
    "id_slot": 0,
    "slot_id": 0,
    "n_cache_reuse": 256,
    "grammar": 'root ::= "CANARY"',
    "grammar_lazy": True,
    "grammar_triggers": [{"type": 0, "value": "CANARY"}],
    "json_schema": {"const": "CANARY"},
    "lora": [{"id": 0, "scale": 9}],
    "n_probs": 10,
    "post_sampling_probs": True,
    "return_progress": False,
    "return_tokens": True,
    "timings_per_token": True,
    "verbose": True,
    "__verbose": True,
    "samplers": ["top_k"],
    "mirostat": 2,
    "dry_multiplier": 1,
    "xtc_probability": 1,
    "dynatemp_range": 1,
    "typical_p": 0.1,
    "n_predict": 100_000,
    "n_keep": -1,
    "n_discard": 1,
    "n_indent": 4,
    "t_max_predict_ms": 1,
    "ignore_eos": True,
    "chat_format": 1,
    "chat_parser": "CANARY",
    "add_generation_prompt": False,
    "reasoning_format": "none",
    "thinking_forced_open": True,
    "speculative.n_max": 9,
    "prompt": "CANARY",
    "input_prefix": "CANARY",
    "multimodal_data": ["CANARY"],
    "repeat_penalty": 9,
    "backend_sampling": True,
    "stop_token_ids": [1],
}


@pytest.mark.parametrize("member", ENGINE_MEMBERS)
async def test_a_member_of_the_engines_own_has_no_influence(gateway: ScriptedGateway, member: str) -> None:
    assert await engine_was_asked(gateway, **{member: ENGINE_MEMBERS[member]}) == MINIMAL


async def test_all_of_them_together_have_no_influence_either(gateway: ScriptedGateway) -> None:
    assert await engine_was_asked(gateway, **ENGINE_MEMBERS) == MINIMAL


OPTIONAL = [
    "temperature", "max_tokens", "max_completion_tokens", "stream", "tools", "tool_choice", "response_format", "top_p",
    "n", "stop", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs",
    "stream_options", "parallel_tool_calls", "user", "safety_identifier", "prompt_cache_key", "metadata",
    "service_tier", "store", "reasoning_effort", "reasoning", "include_reasoning", "verbosity", "functions",
    "function_call", "modalities", "audio", "prediction", "web_search_options", "top_k", "min_p", "repetition_penalty",
    "chat_template_kwargs", "priority", "provider",
]  # fmt: skip


@pytest.mark.parametrize("member", OPTIONAL)
async def test_null_means_absent(gateway: ScriptedGateway, member: str) -> None:
    assert await engine_was_asked(gateway, **{member: None}) == MINIMAL


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"model": None}, "model"),
    ({"model": 7}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "CANARY"}, "messages"),
    ({"messages": {"role": "user", "content": "CANARY"}}, "messages"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "CANARY"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": -1}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 2**64}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"stream": "CANARY"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 17}, "n"),
    ({"n": "2"}, "n"),
    ({"stop": ""}, "stop"),
    ({"stop": []}, "stop"),
    ({"stop": ["a", "b", "c", "d", "CANARY"]}, "stop"),
    ({"stop": 5}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "CANARY"}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"presence_penalty": -2.5}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"logit_bias": {"CANARY": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logprobs": "CANARY"}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": False, "stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": "CANARY"}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": "CANARY"}, "stream_options"),
    ({"parallel_tool_calls": "CANARY"}, "parallel_tool_calls"),
    ({"user": 7}, "user"),
    ({"metadata": {str(i): "CANARY" for i in range(17)}}, "metadata"),
    ({"metadata": {"CANARY": 1}}, "metadata"),
    ({"reasoning_effort": "CANARY"}, "reasoning_effort"),
    ({"reasoning": {"CANARY": 1}}, "reasoning"),
    ({"reasoning": {"effort": "CANARY"}}, "reasoning.effort"),
    ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning.effort"),
    ({"reasoning": {"effort": "low", "max_tokens": 5}}, "reasoning.max_tokens"),
    ({"reasoning": {"max_tokens": 0}}, "reasoning.max_tokens"),
    ({"reasoning": {"effort": "none", "enabled": True}}, "reasoning.enabled"),
    ({"reasoning": {"effort": "high", "enabled": False}}, "reasoning.enabled"),
    ({"reasoning": {"max_tokens": 5, "enabled": False}}, "reasoning.enabled"),
    ({"reasoning": {"exclude": True}, "include_reasoning": True}, "reasoning.exclude"),
    ({"reasoning": {"exclude": False}, "include_reasoning": False}, "reasoning.exclude"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),  # the model does not reason
    ({"reasoning": {"max_tokens": 10}}, "reasoning"),
    ({"verbosity": "CANARY"}, "verbosity"),
    ({"functions": [{"name": "CANARY"}]}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "CANARY"}}, "audio"),
    ({"prediction": {"type": "content", "content": "CANARY"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
    ({"provider": "CANARY"}, "provider"),
    ({"tools": "CANARY"}, "tools"),
    ({"tools": [{"type": "CANARY", "function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "CANARY!"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "C" * 65}}]}, "tools[0].function.name"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
    ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "CANARY"}}}, "tool_choice"),
    ({"tool_choice": "CANARY"}, "tool_choice"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "CANARY"}}},
        "tool_choice.function.name",
    ),
    ({"response_format": "CANARY"}, "response_format"),
    ({"response_format": {"type": "CANARY"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "CANARY!"}}},
        "response_format.json_schema.name",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": "CANARY"}}},
        "response_format.json_schema.schema",
    ),
]


@pytest.mark.parametrize(("sent", "param"), REFUSED, ids=str)
async def test_a_wrong_value_is_refused_by_the_members_name(
    gateway: ScriptedGateway, sent: dict[str, object], param: str
) -> None:
    assert (await refused(gateway, **sent))["param"] == param


@pytest.mark.parametrize("member", ["model", "messages"])
async def test_a_required_member_is_missed_by_name(gateway: ScriptedGateway, member: str) -> None:
    body = {name: value for name, value in chat().items() if name != member}
    answer = await gateway.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == member


NOT_AN_OBJECT = [
    b"",
    b"CANARY",
    b"{",
    b'{"model":"CANARY"',
    b"[]",
    b"null",
    b'"CANARY"',
    b"7",
    b"{}{}",
    b"{'model':'CANARY'}",
    b'{"model":"\xff"}',
    b'{"model":"\xed\xa0\x80"}',
    b'{"model":"CANARY","messages":[],}',
    b'{"temperature":NaN}',
    b"\xef\xbb\xbf{}",
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize("body", NOT_AN_OBJECT, ids=lambda body: repr(body[:30]))
async def test_a_body_that_is_not_one_json_object_is_refused(gateway: ScriptedGateway, body: bytes) -> None:
    before = len(gateway.engine.requests)
    answer = await gateway.client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "CANARY" not in answer.text
    assert len(gateway.engine.requests) == before


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "x"]
)
async def test_any_content_type_is_taken_if_the_body_parses(gateway: ScriptedGateway, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = await gateway.client.post("/v1/chat/completions", content=json.dumps(chat()), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("name", ["X-Upstream-Verification", "x-upstream-verification"])
async def test_the_retired_verification_header_is_refused(gateway: ScriptedGateway, name: str) -> None:
    before = len(gateway.engine.requests)
    answer = await gateway.client.post("/v1/chat/completions", json=chat(), headers={name: "CANARY"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "CANARY" not in answer.text
    assert len(gateway.engine.requests) == before


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
MESSAGES: list[tuple[dict[str, object], dict[str, object]]] = [
    ({"role": "system", "content": "s"}, {"role": "system", "content": "s"}),
    ({"role": "developer", "content": "d", "name": "n"}, {"role": "developer", "content": "d"}),
    ({"role": "user", "content": "u", "name": "n", "x": 1}, {"role": "user", "content": "u"}),
    ({"role": "user", "content": ""}, {"role": "user", "content": ""}),
    ({"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "user", "content": "a"}),
    (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "a\nb"},
    ),
    ({"role": "assistant", "content": "a", "refusal": None}, {"role": "assistant", "content": "a"}),
    ({"role": "assistant", "content": "a", "reasoning_content": "r"}, {"role": "assistant", "content": "a"}),
    ({"role": "assistant", "content": "a", "tool_calls": []}, {"role": "assistant", "content": "a"}),
    ({"role": "assistant", "tool_calls": [CALL]}, {"role": "assistant", "content": "", "tool_calls": [CALL]}),
    (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ),
    (
        {"role": "tool", "content": "4", "tool_call_id": "call_1"},
        {"role": "tool", "content": "4", "tool_call_id": "call_1"},
    ),
]


@pytest.mark.parametrize(("sent", "expected"), MESSAGES, ids=str)
async def test_a_message_reaches_the_engine_with_what_the_template_reads(
    gateway: ScriptedGateway, sent: dict[str, object], expected: dict[str, object]
) -> None:
    asked = await engine_was_asked(gateway, messages=[{"role": "user", "content": "x"}, sent])
    assert asked["messages"][1] == expected


BAD_MESSAGES: list[tuple[dict[str, object], str]] = [
    ({}, "messages[0].role"),
    ({"role": "CANARY", "content": "x"}, "messages[0].role"),
    ({"role": "user"}, "messages[0].content"),
    ({"role": "user", "content": None}, "messages[0].content"),
    ({"role": "user", "content": 7}, "messages[0].content"),
    ({"role": "user", "content": []}, "messages[0].content"),
    ({"role": "user", "content": [{"type": "CANARY"}]}, "messages[0].content[0].type"),
    ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
    ({"role": "user", "content": ["CANARY"]}, "messages[0].content[0]"),
    ({"role": "user", "content": "x", "name": 7}, "messages[0].name"),
    ({"role": "assistant"}, "messages[0].content"),
    ({"role": "assistant", "content": None, "tool_calls": []}, "messages[0].content"),
    ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages[0].tool_calls[0].type"),
    ({"role": "tool", "content": "x"}, "messages[0].tool_call_id"),
    ({"role": "tool", "content": "x", "tool_call_id": ""}, "messages[0].tool_call_id"),
    (
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "https://CANARY/"}}]},
        "messages[0].content[0]",
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,CANARY"}}]},
        "messages[0].content[0]",
    ),
    (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///CANARY"}}]},
        "messages[0].content[0].image_url.url",
    ),
    (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "CANARY", "format": "wav"}}]},
        "messages[0].content[0]",
    ),
    ({"role": "user", "content": [{"type": "file", "file": {"file_id": "CANARY"}}]}, "messages[0].content[0]"),
]


@pytest.mark.parametrize(("message", "param"), BAD_MESSAGES, ids=str)
async def test_a_wrong_message_is_refused_by_its_place(
    gateway: ScriptedGateway, message: dict[str, object], param: str
) -> None:
    assert (await refused(gateway, messages=[message]))["param"] == param


def with_image(url: str) -> list[dict[str, object]]:
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]
    return [{"role": "user", "content": parts}]


async def test_an_image_travels_in_the_request_and_is_never_fetched(tmp_path: Path) -> None:
    async with serving_scripted(tmp_path, answering("A dot."), takes_images=True) as gateway:
        data = "data:image/png;base64,iVBORw0KGgo="
        asked = await engine_was_asked(gateway, messages=with_image(data))
        assert asked["messages"][0]["content"] == [
            {"type": "text", "text": "What?"},
            {"type": "image_url", "image_url": {"url": data}},
        ]
        for remote in ("https://CANARY.test/x.png", "HTTP://127.0.0.1:1/CANARY"):
            assert (await refused(gateway, messages=with_image(remote)))["param"] == "messages[0].content[1]"


FORGED = [*SPECIAL, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>"]


def places(text: str) -> dict[str, dict[str, object]]:
    """Every place of a request where a client's text reaches the template."""
    call = {"id": text, "type": "function", "function": {"name": text, "arguments": json.dumps({text: text})}}
    parameters = {"type": "object", "description": text, "properties": {text: {"enum": [text], "title": text}}}
    function = {"name": "f", "description": text, "parameters": parameters}
    return {
        "a user's text": {"messages": [{"role": "user", "content": f"a{text}b"}]},
        "a text twice": {"messages": [{"role": "user", "content": text + text}]},
        "a text in a text": {"messages": [{"role": "user", "content": text[:3] + text + text[3:]}]},
        "a text part": {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
        "text parts that join": {
            "messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in (text[:4], text[4:])]}]
        },
        "a system text": {"messages": [{"role": "system", "content": text}]},
        "a developer text": {"messages": [{"role": "developer", "content": text}]},
        "an assistant text": {"messages": [{"role": "assistant", "content": text, "reasoning_content": text}]},
        "a name": {"messages": [{"role": "user", "content": "x", "name": text}]},
        "an earlier call": {"messages": [{"role": "assistant", "tool_calls": [call]}]},
        "a tool's answer": {"messages": [{"role": "tool", "content": text, "tool_call_id": text}]},
        "a tool's description": {"messages": chat()["messages"], "tools": [{"type": "function", "function": function}]},
    }


@pytest.mark.parametrize("text", FORGED)
@pytest.mark.parametrize("place", places(""))
async def test_a_special_token_never_reaches_the_template_intact(
    gateway: ScriptedGateway, place: str, text: str
) -> None:
    asked = await engine_was_asked(gateway, **places(text)[place])
    shown = [asked["messages"], asked.get("chat_template_kwargs")]
    assert text not in json.dumps(shown, ensure_ascii=False)


async def arguments_shown(gateway: ScriptedGateway, arguments: str) -> object:
    """What the template sees of an earlier call's arguments: the engine decodes them first."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    asked = await engine_was_asked(gateway, messages=[{"role": "assistant", "tool_calls": [call]}])
    return json.loads(asked["messages"][0]["tool_calls"][0]["function"]["arguments"])


@pytest.mark.parametrize("text", FORGED)
async def test_a_special_token_cannot_hide_behind_a_json_escape(gateway: ScriptedGateway, text: str) -> None:
    hidden = "".join(f"\\u{ord(character):04x}" for character in text)
    for arguments in (f'{{"a":"{hidden}"}}', f'{{"{hidden}":[1]}}', f'"{hidden}"', f'["x{text[0]}{hidden[6:]}"]'):
        assert text not in json.dumps(await arguments_shown(gateway, arguments), ensure_ascii=False)


@pytest.mark.parametrize("arguments", ["", "weather in Paris", '{"city":"Pa', '{"a":1}{'])
async def test_earlier_arguments_that_are_no_json_are_shown_as_text(gateway: ScriptedGateway, arguments: str) -> None:
    assert await arguments_shown(gateway, arguments) == arguments  # the engine refuses what does not parse


async def test_text_that_only_looks_special_is_left_alone(gateway: ScriptedGateway) -> None:
    text = "<|im_star|> a < b | c > im_start <tool> <toolcall> \u200b ﹤|im_start|﹥"
    asked = await engine_was_asked(gateway, messages=[{"role": "user", "content": text}])
    assert asked["messages"][0]["content"] == text


async def test_the_service_knows_its_model_by_id_and_alias_only(gateway: ScriptedGateway) -> None:
    for name in (MODEL.upper(), f" {MODEL}", f"{MODEL} ", "scripted", "", "model", "vendor/", "vendor%2Fmodel"):
        answer = await gateway.post(model=name)
        assert answer.status_code == 404
        assert answer.json()["error"]["type"] == answer.json()["error"]["code"] == "model_not_found"
        assert answer.json()["error"]["param"] == "model"
