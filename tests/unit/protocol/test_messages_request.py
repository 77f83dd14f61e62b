"""What a Messages request may say, one row a rule, and the chat request that it becomes (wire contract 3.5)."""

import json
from typing import Any

import pytest

from confide.errors import InvalidRequest
from confide.protocol.chat import parse_chat
from confide.protocol.messages_request import (
    MessagesRequest,
    new_message_id,
    parse_count_tokens,
    parse_messages,
)

CANARY = "canary-b7f2"
USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"name": "weather", "input_schema": SCHEMA}
CHAT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
CHAT_PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
REMOTE = {"type": "image", "source": {"type": "url", "url": "https://a/b.png"}}
CHAT_REMOTE = {"type": "image_url", "image_url": {"url": "https://a/b.png"}}


def body(**members: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 5, "messages": [USER], **members}).encode()


def parse(**members: Any) -> MessagesRequest:
    return parse_messages(body(**members))


def chat(**members: Any) -> dict[str, Any]:
    """The chat request, which chat accepts."""
    made = parse(**members).chat_body()
    parse_chat(made)
    document: dict[str, Any] = json.loads(made)
    return document


def refused(sent: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_messages(sent)
    return caught.value


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def result(content: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "c1", "content": content, **more}


def call(**more: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}, **more}


CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}

# Members of the request, and those of the chat request that they become.
BECOMES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"max_tokens": 5, "stream": False}),
    ({"stream": False}, {"stream": False}),
    ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"temperature": 1}, {"temperature": 1}),
    ({"top_p": 0.5, "top_k": 0}, {"top_p": 0.5, "top_k": 0}),
    ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
    ({"stop_sequences": []}, {}),
    ({"metadata": {"user_id": "u"}}, {"user": "u"}),
    ({"metadata": {}}, {}),
    ({"service_tier": "auto"}, {"service_tier": "auto"}),
    ({"service_tier": "standard_only"}, {"service_tier": "default"}),
    ({"cache_control": {"type": "ephemeral"}}, {}),
    ({"speed": "standard"}, {}),
    ({"container": None, "mcp_servers": None, "temperature": None, "stream": None, "provider": None}, {}),
    ({"provider": {"aci_verified": True, "order": ["a"]}}, {"provider": {"aci_verified": True, "order": ["a"]}}),
    # tools
    ({"tools": []}, {}),
    ({"tools": [TOOL]}, {"tools": [CHAT_TOOL]}),
    ({"tools": [{**TOOL, "type": "custom", **CACHED}]}, {"tools": [CHAT_TOOL]}),
    ({"tools": [{**TOOL, "eager_input_streaming": True, "defer_loading": False}]}, {"tools": [CHAT_TOOL]}),
    ({"tools": [{**TOOL, "allowed_callers": ["direct"]}]}, {"tools": [CHAT_TOOL]}),
    (
        {"tools": [{**TOOL, "description": "d", "strict": True}]},
        {"tools": [{"type": "function", "function": {**CHAT_TOOL["function"], "description": "d", "strict": True}}]},  # type: ignore[dict-item]
    ),
    ({"tool_choice": {"type": "auto"}}, {}),
    ({"tools": [TOOL], "tool_choice": {"type": "auto"}}, {"tools": [CHAT_TOOL], "tool_choice": "auto"}),
    ({"tools": [TOOL], "tool_choice": {"type": "none"}}, {"tools": [CHAT_TOOL], "tool_choice": "none"}),
    (
        {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        {"tools": [CHAT_TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": False}},
        {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    ),
    # reasoning and form
    ({"thinking": {"type": "adaptive"}}, {}),
    ({"thinking": {"type": "adaptive", "display": "summarized"}}, {}),
    ({"thinking": {"type": "adaptive", "display": "omitted"}}, {"reasoning": {"exclude": True}}),
    ({"thinking": {"type": "disabled"}}, {"reasoning": {"enabled": False}}),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}}, {"reasoning": {"max_tokens": 9}}),
    ({"output_config": {"effort": "low"}}, {"reasoning": {"effort": "low"}}),
    ({"output_config": {}}, {}),
    (
        {"output_config": {"effort": "max"}, "thinking": {"type": "adaptive", "display": "omitted"}},
        {"reasoning": {"effort": "max", "exclude": True}},
    ),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "output", "strict": True, "schema": SCHEMA},
            }
        },
    ),
]

# Members of the request, and the messages of the chat request.
SAYS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"system": "s"}, [{"role": "system", "content": "s"}, USER]),
    ({"system": [text("s", **CACHED)]}, [{"role": "system", "content": "s"}, USER]),
    ({"system": [text("s"), text("t")]}, [{"role": "system", "content": [text("s"), text("t")]}, USER]),
    (
        {"messages": [USER, {"role": "system", "content": [text("s")]}]},
        [USER, {"role": "system", "content": "s"}],
    ),
    ({"messages": [user(text("a", **CACHED))]}, [{"role": "user", "content": "a"}]),
    ({"messages": [user(text("a", citations=None), text("b"))]}, [user(text("a"), text("b"))]),
    ({"messages": [user(text("a"), PNG, {**REMOTE, **CACHED})]}, [user(text("a"), CHAT_PNG, CHAT_REMOTE)]),
    ({"messages": [user(PNG)]}, [user(CHAT_PNG)]),
    # an earlier answer
    (
        {"messages": [USER, {"role": "assistant", "content": "a"}, USER]},
        [USER, {"role": "assistant", "content": "a"}, USER],
    ),
    (
        {"messages": [USER, assistant(text("a", citations=[]), text("b")), USER]},
        [USER, {"role": "assistant", "content": [text("a"), text("b")]}, USER],
    ),
    (
        {"messages": [USER, assistant(text("a"), call(caller={"type": "direct"}, **CACHED)), USER]},
        [USER, {"role": "assistant", "content": "a", "tool_calls": [CHAT_CALL]}, USER],
    ),
    (
        {"messages": [USER, assistant(call(caller=None, toolset_name=None)), USER]},
        [USER, {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]}, USER],
    ),
    (
        {
            "messages": [
                USER,
                assistant(
                    {"type": "thinking", "thinking": "t", "signature": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "thinking", "thinking": "u"},
                ),
                USER,
            ]
        },
        [USER, {"role": "assistant", "content": "", "reasoning_content": "t\nu"}, USER],
    ),
    # results
    ({"messages": [user(result("r"))]}, [{"role": "tool", "tool_call_id": "c1", "content": "r"}]),
    ({"messages": [user(result(**CACHED))]}, [{"role": "tool", "tool_call_id": "c1", "content": ""}]),
    (
        {"messages": [user(text("go"), result([text("a"), text("b")], is_error=False))]},
        [{"role": "tool", "tool_call_id": "c1", "content": [text("a"), text("b")]}, {"role": "user", "content": "go"}],
    ),
    (
        {"messages": [user(result([text("a"), text("b")], is_error=True))]},
        [{"role": "tool", "tool_call_id": "c1", "content": [text("Error: a"), text("b")]}],
    ),
    (
        {"messages": [user(result([PNG], is_error=True), text("go"))]},
        [{"role": "tool", "tool_call_id": "c1", "content": "Error"}, user(CHAT_PNG, text("go"))],
    ),
]

# Members, the `param` of the refusal, and what its message says.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"model": 3}, "model", "must be a string"),
    ({"max_tokens": 0}, "max_tokens", ">= 1"),
    ({"max_tokens": None}, "max_tokens", "must be an integer"),
    ({"messages": []}, "messages", "length >= 1"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "user, assistant or system"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "length >= 1"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is required"),
    ({"messages": [USER, {"role": "assistant", "content": "a"}]}, "messages[1].role", "must be user in the last"),
    ({"messages": [user({"type": "document"})]}, "messages[0].content[0].type", "text, image or tool_result"),
    ({"messages": [user(call())]}, "messages[0].content[0].type", "from the assistant"),
    ({"messages": [user(text("a", citations=[{}]))]}, "messages[0].content[0].citations", "not supported"),
    ({"messages": [user(text("a", odd=1))]}, "messages[0].content[0].odd", "not supported"),
    ({"messages": [user(text(3))]}, "messages[0].content[0].text", "must be a string"),  # type: ignore[arg-type]
    (
        {"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]},
        "messages[0].content[0].source.type",
        "base64 or url",
    ),
    (
        {"messages": [user({"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}})]},
        "messages[0].content[0].source.url",
        "https://",
    ),
    (
        {"messages": [user({"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": ""}})]},
        "messages[0].content[0].source.media_type",
        "image/webp",
    ),
    ({"messages": [user(result([call()]))]}, "messages[0].content[0].content[0].type", "text or image"),
    ({"messages": [user(result("", toolset_name="x"))]}, "messages[0].content[0].toolset_name", "not supported"),
    ({"messages": [user({**result("a"), "tool_use_id": ""})]}, "messages[0].content[0].tool_use_id", ">= 1"),
    ({"messages": [USER, assistant(call(input=[])), USER]}, "messages[1].content[0].input", "must be a JSON object"),
    ({"messages": [USER, assistant(call(caller={"type": "x"})), USER]}, "messages[1].content[0].caller", "direct"),
    ({"messages": [USER, assistant(PNG), USER]}, "messages[1].content[0].type", "redacted_thinking from"),
    (
        {"messages": [user(text("a", cache_control={"type": "eternal"}))]},
        "messages[0].content[0].cache_control.type",
        "must be ephemeral",
    ),
    ({"cache_control": {"type": "ephemeral", "ttl": "1d"}}, "cache_control.ttl", "5m or 1h"),
    ({"system": [{"text": "a"}]}, "system[0].type", "is required"),
    ({"system": [{"type": "image"}]}, "system[0].type", "must be text"),
    ({"temperature": 1.5}, "temperature", "<= 1"),
    ({"top_p": -1}, "top_p", ">= 0"),
    ({"top_k": -1}, "top_k", ">= 0"),
    ({"stop_sequences": list("abcde")}, "stop_sequences", "at most 4"),
    ({"stop_sequences": [""]}, "stop_sequences[0]", ">= 1"),
    ({"stop_sequences": "a"}, "stop_sequences", "an array"),
    ({"metadata": {"user": "u"}}, "metadata.user", "not supported"),
    ({"service_tier": "batch"}, "service_tier", "auto or standard_only"),
    ({"speed": "fast"}, "speed", "standard"),
    ({"provider": []}, "provider", "must be a JSON object"),
    ({"container": "c"}, "container", "no tools of its own"),
    ({"context_management": {}}, "context_management", "not supported"),
    ({"diagnostics": {}}, "diagnostics", "not supported"),
    ({"inference_geo": "eu"}, "inference_geo", "attestation"),
    ({"mcp_servers": []}, "mcp_servers", "no tools of its own"),
    ({"output_format": {}}, "output_format", "output_config.format"),
    ({"user_profile_id": "u"}, "user_profile_id", "metadata.user_id"),
    ({"seed": 1}, "seed", "not supported"),
    # tools
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type", "no tools of its own"),
    ({"tools": [{"name": "a b", "input_schema": SCHEMA}]}, "tools[0].name", "1 to 64 characters"),
    ({"tools": [{"name": "a"}]}, "tools[0].input_schema", "is required"),
    ({"tools": [{"name": "a", "input_schema": []}]}, "tools[0].input_schema", "must be a JSON object"),
    ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "tools[0].input_schema", 'of type "object"'),
    ({"tools": [TOOL, TOOL]}, "tools[1].name", "unique"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading", "shown every tool"),
    ({"tools": [{**TOOL, "allowed_callers": ["code"]}]}, "tools[0].allowed_callers[0]", "direct"),
    ({"tools": [{**TOOL, "input_examples": [{}]}]}, "tools[0].input_examples", "not supported"),
    ({"tool_choice": {"type": "any"}}, "tool_choice", "no tools"),
    ({"tool_choice": {"type": "tool", "name": "weather"}}, "tool_choice", "no tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name", "one of the tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.type", "auto, any, tool or none"),
    # reasoning and form
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "is required"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type", "enabled, adaptive or disabled"),
    ({"thinking": {"type": "adaptive", "display": "full"}}, "thinking.display", "summarized or omitted"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 9}, "output_config": {"effort": "low"}},
        "thinking.budget_tokens",
        "one of them",
    ),
    ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, "output_config.effort", "contradicts"),
    ({"output_config": {"effort": "none"}}, "output_config.effort", "low, medium"),
    ({"output_config": {"format": {"type": "text", "schema": {}}}}, "output_config.format.type", "json_schema"),
    ({"output_config": {"format": {"type": "json_schema", "schema": 1}}}, "output_config.format.schema", "JSON object"),
    ({"output_config": {"task_budget": {}}}, "output_config.task_budget", "not supported"),
]


@pytest.mark.parametrize(("members", "expected"), BECOMES, ids=str)
def test_a_request_becomes_a_request_of_chat(members: dict[str, Any], expected: dict[str, Any]) -> None:
    made = chat(**members)
    fixed = {"model": "m", "messages": [USER], "max_tokens": 5, "stream": False}
    assert made == {**fixed, **expected}


@pytest.mark.parametrize(("members", "expected"), SAYS, ids=str)
def test_its_messages_become_messages_of_chat(members: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert chat(**members)["messages"] == expected


@pytest.mark.parametrize(("members", "param", "says"), REFUSED, ids=str)
def test_what_breaks_a_rule_is_refused_with_the_member(members: dict[str, Any], param: str, says: str) -> None:
    error = refused(body(**members))
    assert error.param == param
    assert says in error.message
    assert param in error.message


@pytest.mark.parametrize("missing", ["model", "max_tokens", "messages"])
def test_what_is_missing_is_named(missing: str) -> None:
    members = json.loads(body())
    del members[missing]
    assert refused(json.dumps(members).encode()).param == missing


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"", "not valid JSON"),
        (b"[]", "must be an object"),
        (b'{"model":"\xff"}', "not UTF-8"),
        (b'{"provider":' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_request_is_refused(sent: bytes, says: str) -> None:
    assert says in refused(sent).message


@pytest.mark.parametrize(
    "members",
    [
        {"messages": [{"role": CANARY, "content": "a"}]},
        {"messages": [user({"type": CANARY})]},
        {"messages": [user(text("a", **{CANARY: 1}))]},
        {"messages": [user({"type": "image", "source": {"type": "url", "url": CANARY}})]},
        {"tools": [{"name": f"{CANARY}!", "input_schema": {}}]},
        {"tool_choice": {"type": "tool", "name": CANARY}},
        {"provider": CANARY},
        {"container": CANARY},
    ],
    ids=str,
)
def test_no_refusal_quotes_the_request(members: dict[str, Any]) -> None:
    error = refused(body(**members))
    assert CANARY not in error.message
    assert CANARY not in str(error.param)
    assert error.__context__ is None


def test_a_text_that_is_not_utf8_hides_in_no_free_form_member() -> None:
    for members in (
        {"provider": {"a": "@"}},
        {"tools": [{"name": "a", "input_schema": {"a": "@"}}]},
        {"messages": [USER, assistant(call(input={"a": "@"})), USER]},
    ):
        assert "must be a JSON object" in refused(body(**members).replace(b"@", b"\xff")).message


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"tools": [{"name": "a", "input_schema": {"a": "x" * 2**20}}]}, "tools"),
        ({"provider": {"a": "x" * 2**20}}, "provider"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"a": "x" * 2**20}}}},
            "output_config.format.schema",
        ),
    ],
)
def test_free_form_json_is_bounded(members: dict[str, Any], param: str) -> None:
    error = refused(body(**members))
    assert error.param == param
    assert "too large" in error.message


def test_the_same_request_is_the_same_chat_request_and_free_form_json_keeps_its_bytes() -> None:
    schema = '{ "type":"object", "x": 1.0e2 }'
    sent = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"\\u00e9"}],"tools":[{"name":"a",'
    sent += b'"input_schema":' + schema.encode() + b'}],"provider": {"z" :1}}'
    first, second = parse_messages(sent), parse_messages(sent)
    assert first.chat_body() == second.chat_body() == first.chat_body()
    assert schema.encode() in first.chat_body()
    assert b'"provider":{"z" :1}' in first.chat_body()


def test_what_the_gateway_asks_of_a_request() -> None:
    request = parse(stream=True, stop_sequences=["a"], provider={"aci_verified": True})
    assert (request.model, request.stream, request.stop_sequences) == ("m", True, ("a",))
    assert request.provider == {"aci_verified": True}
    assert (parse().stream, parse().stop_sequences, parse().provider) == (False, (), None)


def test_counting_takes_a_prompt_and_nothing_of_an_answer() -> None:
    prompt = {"model": "m", "messages": [USER], "system": "s", "tools": [TOOL], "provider": {"a": 1}}
    request = parse_count_tokens(json.dumps(prompt).encode())
    assert (request.model, request.stream, request.provider) == ("m", False, {"a": 1})
    assert json.loads(request.chat_body()) == {
        "model": "m",
        "messages": [{"role": "system", "content": "s"}, USER],
        "tools": [CHAT_TOOL],
        "provider": {"a": 1},
    }
    with pytest.raises(InvalidRequest) as caught:
        parse_count_tokens(body())
    assert caught.value.param == "max_tokens"


def test_a_message_id_is_made_of_16_random_bytes() -> None:
    assert new_message_id(bytes(range(16))) == "msg_000102030405060708090a0b0c0d0e0f"
    with pytest.raises(ValueError, match="expected 16"):
        new_message_id(b"short")
