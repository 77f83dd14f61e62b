"""What a chat request may say, one row a rule (wire contract 2.1 to 2.5)."""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from confide.errors import InvalidRequest
from confide.protocol.chat import ChatRequest, new_chat_id, new_tool_call_id, parse_chat
from confide.protocol.chat_body import JsonObject, JsonSchema, NamedTool, Text
from confide.protocol.chat_messages import AssistantMessage, ImagePart, TextPart, UserMessage
from confide.protocol.chat_reasoning import Reasoning

CANARY = "canary-b7f2"
USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "weather"}}
MAX_INT64 = 2**63 - 1


def parse(**members: Any) -> ChatRequest:
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **members}).encode())


def refused(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat(body)
    return caught.value


def outcome(body: bytes) -> ChatRequest | InvalidRequest:
    try:
        return parse_chat(body)
    except InvalidRequest as error:
        return error


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def image(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def schema_format(**members: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": members}


TEXT_AND_IMAGE = [{"type": "text", "text": "a"}, image("https://a")]

TAKEN: list[tuple[dict[str, Any], str, object]] = [
    # 2.1
    ({"model": "phala/qwen3.5-27b"}, "model", "phala/qwen3.5-27b"),
    ({}, "temperature", None),
    ({"temperature": 0}, "temperature", 0.0),
    ({"temperature": 2}, "temperature", 2.0),
    ({"max_tokens": 1}, "max_tokens", 1),
    ({"max_tokens": MAX_INT64}, "max_tokens", MAX_INT64),
    ({"max_completion_tokens": 5}, "max_completion_tokens", 5),
    ({"max_tokens": 9, "max_completion_tokens": 5}, "token_limit", 5),
    ({"max_tokens": 3, "max_completion_tokens": 5}, "token_limit", 3),
    ({"max_tokens": 9}, "token_limit", 9),
    ({}, "token_limit", None),
    ({}, "stream", False),
    ({"stream": True}, "stream", True),
    # 2.2
    ({"top_p": 0}, "top_p", 0.0),
    ({"top_p": 1}, "top_p", 1.0),
    ({}, "n", 1),
    ({"n": 128}, "n", 128),
    ({}, "stop", ()),
    ({"stop": "END"}, "stop", ("END",)),
    ({"stop": ["a", "b", "c", "d"]}, "stop", ("a", "b", "c", "d")),
    ({"seed": -(2**63)}, "seed", -(2**63)),
    ({"seed": MAX_INT64}, "seed", MAX_INT64),
    ({"presence_penalty": -2}, "presence_penalty", -2.0),
    ({"frequency_penalty": 2}, "frequency_penalty", 2.0),
    ({"logit_bias": {"5": 100, "0": -100.0}}, "logit_bias", {5: 100.0, 0: -100.0}),
    ({}, "logprobs", False),
    ({"logprobs": True}, "logprobs", True),
    ({"logprobs": True, "top_logprobs": 20}, "top_logprobs", 20),
    ({"logprobs": True, "top_logprobs": 0}, "top_logprobs", 0),
    ({"stream": True, "stream_options": {"include_usage": True}}, "include_usage", True),
    ({"stream": True, "stream_options": {"include_usage": None, "later": 1}}, "include_usage", False),
    ({"stream": True, "stream_options": {}}, "include_usage", False),
    ({}, "parallel_tool_calls", True),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", False),
    ({"user": "u"}, "user", "u"),
    ({"safety_identifier": "s"}, "safety_identifier", "s"),
    ({"prompt_cache_key": "k"}, "prompt_cache_key", "k"),
    ({"metadata": {str(i): "v" for i in range(16)}}, "metadata", {str(i): "v" for i in range(16)}),
    ({"service_tier": "flex"}, "service_tier", "flex"),
    ({}, "store", False),
    ({"store": True}, "store", True),
    ({"verbosity": "low"}, "verbosity", "low"),
    ({"modalities": ["text"]}, "n", 1),
    ({"top_k": -1}, "top_k", -1),
    ({"top_k": 40}, "top_k", 40),
    ({"min_p": 0.05}, "min_p", 0.05),
    ({"repetition_penalty": 1.1}, "repetition_penalty", 1.1),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", {"enable_thinking": False}),
    ({"priority": -3}, "priority", -3),
    ({"provider": {"aci_verified": True, "order": ["a"]}}, "provider", {"aci_verified": True, "order": ["a"]}),
    ({"provider": {}}, "provider", {}),
    # 2.2, reasoning
    ({}, "reasoning", Reasoning()),
    ({"reasoning": {}}, "reasoning", Reasoning()),
    ({"reasoning_effort": "high"}, "reasoning", Reasoning(effort="high", enabled=True, asked_by="reasoning_effort")),
    ({"reasoning_effort": "none"}, "reasoning", Reasoning(effort="none", enabled=False, asked_by="reasoning_effort")),
    ({"reasoning": {"effort": "max"}, "reasoning_effort": "max"}, "reasoning", Reasoning(effort="max", enabled=True)),
    ({"reasoning": {"max_tokens": 1}}, "reasoning", Reasoning(max_tokens=1, enabled=True)),
    ({"reasoning": {"max_tokens": 1, "enabled": True}}, "reasoning", Reasoning(max_tokens=1, enabled=True)),
    ({"reasoning": {"enabled": False}}, "reasoning", Reasoning(enabled=False)),
    ({"reasoning": {"effort": "none", "enabled": False}}, "reasoning", Reasoning(effort="none", enabled=False)),
    ({"reasoning": {"exclude": True}}, "reasoning", Reasoning(exclude=True)),
    ({"include_reasoning": False}, "reasoning", Reasoning(exclude=True)),
    ({"include_reasoning": True}, "reasoning", Reasoning()),
    ({"include_reasoning": False, "reasoning": {"exclude": True}}, "reasoning", Reasoning(exclude=True)),
    # 2.4
    ({}, "tools", ()),
    ({"tools": []}, "tools", ()),
    ({}, "tool_choice", "none"),
    ({"tool_choice": "auto"}, "tool_choice", "none"),
    ({"tools": [], "tool_choice": "none"}, "tool_choice", "none"),
    ({"tools": [TOOL]}, "tool_choice", "auto"),
    ({"tools": [TOOL], "tool_choice": "none"}, "tool_choice", "none"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice", "required"),
    ({"tools": [TOOL], "tool_choice": NAMED}, "tool_choice", NamedTool(name="weather")),
    # 2.5
    ({}, "response_format", Text()),
    ({"response_format": {"type": "text"}}, "response_format", Text()),
    ({"response_format": {"type": "json_object"}}, "response_format", JsonObject()),
    ({"response_format": schema_format(name="x")}, "response_format", JsonSchema(name="x")),
    (
        {"response_format": schema_format(name="x", schema={"type": "object"}, strict=True, description="d")},
        "response_format",
        JsonSchema(name="x", schema={"type": "object"}, strict=True, description="d"),
    ),
]

# Members, the `param` of the refusal, and what its message says.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # 2.1
    ({"model": None}, "model", "must be a string"),
    ({"model": 3}, "model", "must be a string, got an integer"),
    ({"messages": None}, "messages", "must be an array"),
    ({"messages": []}, "messages", "length >= 1"),
    ({"messages": {}}, "messages", "must be an array, got an object"),
    ({"temperature": -0.1}, "temperature", ">= 0"),
    ({"temperature": 2.1}, "temperature", "must be a number <= 2"),
    ({"temperature": True}, "temperature", "got a boolean"),
    ({"temperature": "1"}, "temperature", "must be a number, got a string"),
    ({"max_tokens": 0}, "max_tokens", "must be an integer >= 1"),
    ({"max_tokens": True}, "max_tokens", "must be an integer, got a boolean"),
    ({"max_tokens": MAX_INT64 + 1}, "max_tokens", "<="),
    ({"max_completion_tokens": 0}, "max_completion_tokens", ">= 1"),
    ({"stream": 1}, "stream", "must be true or false, got an integer"),
    ({"stream": "true"}, "stream", "must be true or false"),
    # 2.2
    ({"top_p": 1.1}, "top_p", "<= 1"),
    ({"top_p": -1}, "top_p", ">= 0"),
    ({"n": 0}, "n", ">= 1"),
    ({"n": 129}, "n", "<= 128"),
    ({"stop": []}, "stop", "1 to 4 strings"),
    ({"stop": ""}, "stop", "1 to 4 strings"),
    ({"stop": list("abcde")}, "stop", "1 to 4 strings"),
    ({"stop": ["a", ""]}, "stop[1]", "length >= 1"),
    ({"stop": ["a", 1]}, "stop[1]", "must be a string"),
    ({"seed": 2**63}, "seed", "<="),
    ({"seed": -(2**63) - 1}, "seed", ">="),
    ({"seed": 1.5}, "seed", "must be an integer"),
    ({"presence_penalty": 2.1}, "presence_penalty", "<= 2"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", ">= -2"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "-100 to 100"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "decimal token ids"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "decimal token ids"),
    ({"logit_bias": {"05": 1}}, "logit_bias", "decimal token ids"),
    ({"logit_bias": []}, "logit_bias", "must be an object"),
    ({"top_logprobs": 1}, "top_logprobs", "logprobs: true"),
    ({"logprobs": False, "top_logprobs": 0}, "top_logprobs", "logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "<= 20"),
    ({"logprobs": 1}, "logprobs", "true or false"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"stream": False, "stream_options": {}}, "stream_options", "stream: true"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
    ({"stream": True, "stream_options": True}, "stream_options", "must be an object"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "true or false"),
    ({"user": 1}, "user", "must be a string"),
    ({"safety_identifier": 1}, "safety_identifier", "must be a string"),
    ({"prompt_cache_key": 1}, "prompt_cache_key", "must be a string"),
    ({"metadata": {str(i): "v" for i in range(17)}}, "metadata", "at most 16"),
    ({"metadata": {"a": 1}}, "metadata", "strings"),
    ({"service_tier": 1}, "service_tier", "must be a string"),
    ({"store": "yes"}, "store", "true or false"),
    ({"verbosity": "loud"}, "verbosity", "low, medium or high"),
    ({"functions": []}, "functions", "use tools"),
    ({"function_call": "auto"}, "function_call", "use tools"),
    ({"modalities": ["text", "audio"]}, "modalities", '["text"]'),
    ({"modalities": []}, "modalities", '["text"]'),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio", "not supported"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction", "not supported"),
    ({"web_search_options": {}}, "web_search_options", "not supported"),
    ({"top_k": -2}, "top_k", ">= -1"),
    ({"min_p": 1.1}, "min_p", "<= 1"),
    ({"repetition_penalty": 0}, "repetition_penalty", "> 0"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs", "must be an object"),
    ({"priority": 1.5}, "priority", "must be an integer"),
    ({"provider": "fast"}, "provider", "must be an object"),
    # 2.2, reasoning
    ({"reasoning_effort": "huge"}, "reasoning_effort", "none, minimal, low, medium, high, xhigh or max"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "none, minimal, low, medium, high, xhigh or max"),
    ({"reasoning": {"summary": "auto"}}, "reasoning", "no members but effort, max_tokens, enabled and exclude"),
    ({"reasoning": True}, "reasoning", "must be an object"),
    ({"reasoning": {"max_tokens": 0}}, "reasoning.max_tokens", ">= 1"),
    ({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}, "reasoning.effort", "differs"),
    ({"reasoning": {"effort": "low", "max_tokens": 5}}, "reasoning.max_tokens", "cannot be combined"),
    ({"reasoning": {"max_tokens": 5}, "reasoning_effort": "none"}, "reasoning.max_tokens", "cannot be combined"),
    ({"reasoning": {"effort": "none", "enabled": True}}, "reasoning.enabled", "contradicts"),
    ({"reasoning": {"enabled": False}, "reasoning_effort": "low"}, "reasoning.enabled", "contradicts"),
    ({"reasoning": {"max_tokens": 5, "enabled": False}}, "reasoning.enabled", "contradicts"),
    ({"reasoning": {"exclude": True}, "include_reasoning": True}, "reasoning.exclude", "contradicts"),
    ({"reasoning": {"exclude": False}, "include_reasoning": False}, "reasoning.exclude", "contradicts"),
    ({"include_reasoning": "no"}, "include_reasoning", "true or false"),
    # 2.3
    ({"messages": ["hi"]}, "messages[0]", "must be an object, got a string"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "is required"),
    (
        {"messages": [{"role": "wizard", "content": "hi"}]},
        "messages[0].role",
        "system, developer, user, assistant or tool",
    ),
    ({"messages": [{"role": "function", "content": "hi", "name": "f"}]}, "messages[0].role", "must be"),
    ({"messages": [USER, {"role": "user"}]}, "messages[1].content", "is required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "must be a string or an array"),
    ({"messages": [{"role": "system", "content": 1}]}, "messages[0].content", "must be a string or an array"),
    ({"messages": [{"role": "user", "content": "hi", "name": 1}]}, "messages[0].name", "must be a string"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "length >= 1"),
    ({"messages": user({"type": "text"})}, "messages[0].content[0].text", "is required"),
    ({"messages": user({"text": "hi"})}, "messages[0].content[0].type", "is required"),
    (
        {"messages": user({"type": "text", "text": "a"}, {"type": "video_url"})},
        "messages[0].content[1].type",
        "text, image_url, input_audio or file",
    ),
    ({"messages": user("hi")}, "messages[0].content[0]", "must be an object"),
    ({"messages": user({"type": "image_url"})}, "messages[0].content[0].image_url", "is required"),
    (
        {"messages": user(image("file:///etc/passwd"))},
        "messages[0].content[0].image_url.url",
        "must start with https://",
    ),
    ({"messages": user(image("data:text/html;base64,AA"))}, "messages[0].content[0].image_url.url", "data:image/"),
    ({"messages": user(image("data:image/png,AA"))}, "messages[0].content[0].image_url.url", "base64"),
    ({"messages": user(image("https://"))}, "messages[0].content[0].image_url.url", "must start with"),
    ({"messages": user(image(" https://a"))}, "messages[0].content[0].image_url.url", "must start with"),
    (
        {"messages": user(image("https://a", detail="x"))},
        "messages[0].content[0].image_url.detail",
        "auto, low or high",
    ),
    (
        {"messages": user({"type": "input_audio", "input_audio": {"data": "AA", "format": "ogg"}})},
        "messages[0].content[0].input_audio.format",
        "wav or mp3",
    ),
    ({"messages": user({"type": "file"})}, "messages[0].content[0].file", "is required"),
    *(
        (
            {"messages": [{"role": role, "content": TEXT_AND_IMAGE, **more}]},
            "messages[0].content[1]",
            "must be a text part",
        )
        for role, more in [("system", {}), ("developer", {}), ("assistant", {}), ("tool", {"tool_call_id": "c"})]
    ),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content", "without tool_calls"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "without tool_calls"),
    (
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
        "messages[0].content",
        "without tool_calls",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "is required"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": ""}]}, "messages[0].tool_call_id", "length >= 1"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}]},
        "messages[0].tool_calls[0].type",
        "function",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}]},
        "messages[0].tool_calls[0].function.arguments",
        "must be a string, got an object",
    ),
    # 2.4
    ({"tools": {}}, "tools", "must be an array"),
    ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools", "length <= 128"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type", "is required"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "must be function"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "is required"),
    ({"tools": [TOOL, tool("")]}, "tools[1].function.name", "1 to 64 characters"),
    ({"tools": [TOOL, tool("a" * 65)]}, "tools[1].function.name", "1 to 64 characters"),
    ({"tools": [TOOL, TOOL, tool("a b")]}, "tools[2].function.name", "A-Z a-z 0-9 _ -"),
    ({"tools": [tool("a\n")]}, "tools[0].function.name", "A-Z a-z 0-9 _ -"),
    ({"tools": [tool("é")]}, "tools[0].function.name", "A-Z a-z 0-9 _ -"),
    ({"tools": [TOOL, tool("a"), TOOL]}, "tools[2].function.name", "unique"),
    ({"tools": [tool("a", parameters=[])]}, "tools[0].function.parameters", "must be an object"),
    ({"tools": [tool("a", parameters={"type": "array"})]}, "tools[0].function.parameters", 'type "object"'),
    ({"tools": [tool("a", parameters={"type": ["object", "null"]})]}, "tools[0].function.parameters", 'type "object"'),
    ({"tools": [tool("a", strict="yes")]}, "tools[0].function.strict", "true or false"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tools": [], "tool_choice": NAMED}, "tool_choice", "no tools"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "auto, none, required or"),
    ({"tools": [TOOL], "tool_choice": 1}, "tool_choice", "auto, none, required or"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.type", "must be function"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "weather"}}, "tool_choice.function", "is required"),
    ({"tools": [TOOL], "tool_choice": NAMED["function"]}, "tool_choice.type", "is required"),
    ({"tools": [tool("a")], "tool_choice": NAMED}, "tool_choice.function.name", "one of the tools"),
    # 2.5
    ({"response_format": "json"}, "response_format", "must be an object"),
    ({"response_format": {}}, "response_format.type", "is required"),
    ({"response_format": {"type": "grammar"}}, "response_format.type", "text, json_object or json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is required"),
    ({"response_format": schema_format()}, "response_format.json_schema.name", "is required"),
    ({"response_format": schema_format(name="a b")}, "response_format.json_schema.name", "1 to 64 characters"),
    (
        {"response_format": schema_format(name="a", schema="abc")},
        "response_format.json_schema.schema",
        "must be an object",
    ),
    ({"response_format": schema_format(name="a", strict=1)}, "response_format.json_schema.strict", "true or false"),
]

# One body with every string member there is.
EVERYTHING: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s", "name": "n"},
        {"role": "developer", "content": [{"type": "text", "text": "t"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                image("https://images.example/1.png", detail="low"),
                {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                {"type": "file", "file": {"file_id": "f", "file_data": "d", "filename": "n"}},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": "r", "reasoning_content": "r"},
        {"role": "tool", "content": "c", "tool_call_id": "call_1"},
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": ["a", "b"],
    "logit_bias": {"1": 1},
    "tools": [tool("weather", description="d", parameters={"type": "object"}, strict=True)],
    "tool_choice": NAMED,
    "response_format": schema_format(name="x", description="d", schema={"type": "object"}),
    "reasoning_effort": "low",
    "reasoning": {"effort": "low"},
    "verbosity": "low",
    "modalities": ["text"],
    **dict.fromkeys(["user", "safety_identifier", "prompt_cache_key", "service_tier"], "x"),
    "metadata": {"k": "v"},
    "chat_template_kwargs": {"k": "v"},
    "provider": {"k": "v"},
}


@pytest.mark.parametrize(("members", "name", "expected"), TAKEN)
def test_a_request_is_taken(members: dict[str, Any], name: str, expected: object) -> None:
    assert getattr(parse(**members), name) == expected


@pytest.mark.parametrize(("members", "param", "says"), REFUSED)
def test_a_request_is_refused_and_told_why(members: dict[str, Any], param: str, says: str) -> None:
    error = refused(json.dumps({"model": "m", "messages": [USER], **members}).encode())
    assert (error.status, error.type, error.param) == (400, "invalid_request_error", param)
    assert error.message.startswith(f"{param} ")
    assert says in error.message


@pytest.mark.parametrize("name", [name for name in ChatRequest.__struct_fields__ if name not in ("model", "messages")])
def test_null_means_absent(name: str) -> None:
    assert getattr(parse(**{name: None}), name) == getattr(parse(), name)


@pytest.mark.parametrize(
    "name", ["functions", "function_call", "audio", "prediction", "web_search_options", "modalities"]
)
def test_null_for_an_unsupported_member_means_absent(name: str) -> None:
    assert parse(**{name: None}) == parse()


def test_null_inside_a_message_means_absent() -> None:
    request = parse(messages=[{"role": "assistant", "content": "a", "tool_calls": None, "name": None, "refusal": None}])
    assert request.messages == (AssistantMessage(content="a"),)


def test_unknown_members_are_ignored() -> None:
    assert parse(extra_body={"a": [1]}, cache_prompt=True) == parse()
    assert parse(messages=[{**USER, "extra": 1}]) == parse()


def test_the_text_of_ignored_members_is_not_looked_at() -> None:
    # Finding bad UTF-8 there would take a second pass over the body. Bad JSON there is still found.
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}],"unknown":%s}'
    assert parse_chat(body % b'"\xff"') == parse()
    assert "not valid JSON" in refused(body % b'"\\ud800"').message


@pytest.mark.parametrize("number", ["1.0", "1e0", "true", '"1"'])
def test_an_integer_is_written_as_one(number: str) -> None:
    # 1.0 too: msgspec takes no number with a fraction or an exponent for an integer.
    error = refused(b'{"model":"m","messages":[{"role":"user","content":"hi"}],"n":%s}' % number.encode())
    assert error.param == "n"
    assert error.message.startswith("n must be an integer, got ")


def test_the_last_of_duplicate_members_wins() -> None:
    request = parse_chat(b'{"model":"a","messages":[{"role":"user","content":"hi"}],"n":5,"model":"b","n":2}')
    assert (request.model, request.n) == ("b", 2)


def test_an_assistant_message_with_calls_needs_no_content() -> None:
    for content in ({}, {"content": None}, {"content": ""}):
        message = parse(messages=[{"role": "assistant", "tool_calls": [CALL], **content}]).messages[0]
        assert isinstance(message, AssistantMessage)
        assert message.tool_calls is not None
        assert [call.function.name for call in message.tool_calls] == ["weather"]


def test_empty_tool_calls_are_noticed() -> None:
    answer = {"role": "assistant", "content": "a"}
    assert parse(messages=[USER, {**answer, "tool_calls": []}]).had_empty_tool_calls
    for calls in ({}, {"tool_calls": None}, {"tool_calls": [CALL]}):
        assert not parse(messages=[USER, {**answer, **calls}]).had_empty_tool_calls


@pytest.mark.parametrize(
    ("url", "is_remote"),
    [
        ("https://a.example/x.png", True),
        ("HTTPS://a.example/x.png", True),
        ("http://a.example/x.png", True),
        ("data:image/png;base64,iVBORw0KGgo=", False),
        ("data:image/svg+xml;base64,AAAA", False),
        ("data:image/jpeg;base64,", False),
    ],
)
def test_an_image_url_says_whether_it_would_be_fetched(url: str, is_remote: bool) -> None:
    message = parse(messages=user({"type": "text", "text": "a"}, image(url, detail="high"))).messages[0]
    assert isinstance(message, UserMessage)
    assert isinstance(message.content, tuple)
    text, picture = message.content
    assert text == TextPart(text="a")
    assert isinstance(picture, ImagePart)
    assert (picture.image_url.url, picture.image_url.detail, picture.image_url.is_remote) == (url, "high", is_remote)


def test_audio_and_files_are_left_to_the_engine() -> None:
    request = parse_chat(json.dumps(EVERYTHING).encode())
    message = request.messages[2]
    assert isinstance(message, UserMessage)
    assert [type(part).__name__ for part in message.content] == ["TextPart", "ImagePart", "AudioPart", "FilePart"]


def test_every_role_is_taken_in_any_order_of_members() -> None:
    request = parse(messages=[dict(reversed(message.items())) for message in EVERYTHING["messages"]])
    kinds = [type(message).__name__ for message in request.messages]
    assert kinds == ["SystemMessage", "DeveloperMessage", "UserMessage", "AssistantMessage", "ToolMessage"]


MINIMAL = b'{"model":"m","messages":[{"role":"user","content":%s}]}'


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"prompt", "not valid JSON"),
        (b'{"model":"m"', "not valid JSON"),
        (MINIMAL % b'"a"' + b"x", "not valid JSON (byte"),
        (b"\xef\xbb\xbf" + MINIMAL % b'"a"', "not valid JSON"),
        ((MINIMAL % b'"a"').decode().encode("utf-16"), "not valid JSON"),
        (MINIMAL % b"NaN", "not valid JSON"),
        (MINIMAL % b'"a\nb"', "not valid JSON"),
        (MINIMAL % b'"\\ud800"', "not valid JSON"),
        (MINIMAL % b'"\\udc00\\ud800 and more text"', "not valid JSON"),
        (MINIMAL % b'"\xff"', "not UTF-8"),
        (MINIMAL % b'"\xed\xa0\x80"', "not UTF-8"),
        (b"[]", "must be an object, got an array"),
        (b"null", "must be an object, got null"),
        (b'"text"', "must be an object, got a string"),
        (b"{}", "model is required"),
        (b'{"model":"m"}', "messages is required"),
        (b'{"provider":{"a":' + b"[" * 100_000, "nested too deeply"),
        (b'{"provider":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested too deeply"),
        (b'{"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes, says: str) -> None:
    error = refused(body)
    assert says in error.message
    assert error.status == 400


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000])
@pytest.mark.parametrize("member", ["temperature", "max_tokens", "seed", "provider"])
def test_a_number_out_of_range_is_refused(member: str, number: str) -> None:
    value = f'{{"a":{number}}}' if member == "provider" else number
    error = refused(f'{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"{member}":{value}}}'.encode())
    assert error.param == member


def test_an_escaped_pair_of_surrogates_is_one_character() -> None:
    message = parse_chat(MINIMAL % b'"\\ud83d\\ude00"').messages[0]
    assert message.content == "😀"


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside `value`."""
    yield at
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in entries:
        yield from places(below, (*at, key))


def with_value(at: tuple[Any, ...], value: Any) -> Any:
    """EVERYTHING with one value replaced."""
    whole = deepcopy(EVERYTHING)
    if not at:
        return value
    holder = whole
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = value
    return whole


@pytest.mark.parametrize("at", list(places(EVERYTHING)), ids=str)
@pytest.mark.parametrize("value", [CANARY, [CANARY], {CANARY: CANARY}, {"type": CANARY}, {"role": CANARY}], ids=str)
def test_a_refusal_never_quotes_the_body(at: tuple[Any, ...], value: Any) -> None:
    result = outcome(json.dumps(with_value(at, value)).encode())
    if isinstance(result, InvalidRequest):
        assert CANARY not in f"{result!r} {result.param} {result.remedy} {result.body()}"
        assert "of the wrong kind" not in result.message  # the words for a member without an entry in EXPECTED
        assert (result.__cause__, result.__context__) == (None, None)
    else:
        assert CANARY not in repr(result)


def test_the_row_of_everything_is_itself_taken() -> None:
    assert parse_chat(json.dumps(EVERYTHING).encode()).tool_choice == NamedTool(name="weather")


def test_ids_are_hex_of_the_random_bytes() -> None:
    assert new_chat_id(bytes(range(16))) == "chatcmpl-000102030405060708090a0b0c0d0e0f"
    assert new_tool_call_id(b"\xff" * 16) == "chatcmpl-tool-" + "f" * 32
    for make in (new_chat_id, new_tool_call_id):
        with pytest.raises(ValueError, match="got 15 random bytes, expected 16"):
            make(bytes(15))


FREE_FORM_MEMBERS = ["provider", "tools", "response_format", "chat_template_kwargs", "functions", "modalities", "audio"]


@pytest.mark.parametrize("member", FREE_FORM_MEMBERS)
def test_a_flood_of_values_outside_the_messages_is_refused_before_it_is_decoded(member: str) -> None:
    flood = b"[" + b"[]," * 400_000 + b"[]]"
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"%b":{"x":%b}}' % (member.encode(), flood)
    with pytest.raises(InvalidRequest) as refused:
        parse_chat(body)
    assert refused.value.param == member
    assert "too large" in refused.value.message


def test_a_large_message_is_not_what_that_limit_is_about() -> None:
    text = "[" * 3_000_000
    request = parse_chat(json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode())
    assert request.messages[0].content == text
