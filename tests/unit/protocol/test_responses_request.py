"""What a Responses request may say, one row a rule, and the chat request that it becomes (wire contract 3.4)."""

import json
from typing import Any

import pytest

from confide.errors import InvalidRequest
from confide.protocol.chat import parse_chat
from confide.protocol.responses_request import ResponsesRequest, parse_responses

CANARY = "canary-b7f2"
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "call_1", "output": "12 C"}
SCHEMA = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}


def parse(**members: Any) -> ResponsesRequest:
    return parse_responses(json.dumps({"model": "m", "input": "hi", **members}).encode())


def chat_of(**members: Any) -> dict[str, Any]:
    """The chat request, which is one by its own rules."""
    body = parse(**members).chat_body()
    parse_chat(body)
    chat: dict[str, Any] = json.loads(body)
    return chat


def refused(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_responses(body)
    return caught.value


def said(role: str, *parts: Any) -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


def text(kind: str, said: str = "a") -> dict[str, Any]:
    return {"type": kind, "text": said}


def image(**members: Any) -> dict[str, Any]:
    return {"type": "input_image", **members}


HI = [{"role": "user", "content": "hi"}]

BECOMES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"temperature": 2, "top_p": 0.5}, {"temperature": 2.0, "top_p": 0.5}),
    ({"max_output_tokens": 16}, {"max_tokens": 16}),
    ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {"verbosity": "low"}),
    ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
    (
        {"text": {"format": SCHEMA | {"strict": True, "description": "d"}}},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "description": "d", "schema": {"type": "object"}, "strict": True},
            }
        },
    ),
    ({"text": {}}, {}),
    ({"reasoning": {"effort": "high", "summary": "auto"}}, {"reasoning_effort": "high"}),
    ({"reasoning": {"effort": None}}, {}),
    (
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k"},
    ),
    ({"service_tier": "flex"}, {"service_tier": "flex"}),
    ({"metadata": {"a": "b"}, "store": True, "background": False, "truncation": "disabled"}, {}),
    ({"include": ["reasoning.encrypted_content"], "top_logprobs": 0}, {}),
    ({"include": [], "tools": []}, {}),
    ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    (
        {"stream": True, "stream_options": {"include_obfuscation": False}},
        {"stream": True, "stream_options": {"include_usage": True}},
    ),
    ({"stream": False}, {}),
    ({"previous_response_id": None, "conversation": None, "max_tool_calls": None, "provider": None}, {}),
    ({"provider": {"aci_verified": True, "order": [1.50]}}, {"provider": {"aci_verified": True, "order": [1.50]}}),
    ({"tool_choice": "none", "parallel_tool_calls": False}, {}),
    (
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
        {
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
    ),
    (
        {
            "tools": [{"type": "function", "name": "f", "description": "d", "parameters": None, "strict": False}],
            "tool_choice": {"type": "function", "name": "f"},
        },
        {
            "tools": [{"type": "function", "function": {"name": "f", "description": "d", "strict": False}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ),
]


@pytest.mark.parametrize(("sent", "expected"), BECOMES, ids=[json.dumps(sent) for sent, _ in BECOMES])
def test_what_a_member_is_in_chat(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    assert chat_of(**sent) == {"model": "m", "messages": HI, **expected}


def assistant(content: str | None, **members: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **members}


def called(call_id: str = "call_1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def thought(*texts: str, summary: tuple[str, ...] = ()) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "summary": [text("summary_text", s) for s in summary]}
    return item | ({"content": [text("reasoning_text", t) for t in texts]} if texts else {})


USER = {"role": "user", "content": "hi"}
TOLD = {"role": "tool", "tool_call_id": "call_1", "content": "12 C"}
SAID: dict[str, Any] = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "phase": None,
    "content": [{"type": "output_text", "text": "yes", "annotations": [], "logprobs": [], "parsed": None}],
}
FROM_THE_SDK = CALL | {"id": "fc_1", "status": "completed", "caller": None, "namespace": None, "async_": None}

CONVERSATIONS: list[tuple[Any, list[Any]]] = [
    ("", [{"role": "user", "content": ""}]),
    ([{"role": "developer", "content": "be"}, USER], [{"role": "developer", "content": "be"}, USER]),
    ([{"type": "message", **USER}, {"type": None, **USER}], [USER, USER]),
    ([said("system", text("input_text"))], [{"role": "system", "content": "a"}]),
    (
        [said("user", text("input_text"), image(image_url="https://a"), image(image_url="http://b", detail="low"))],
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a"},
                    {"type": "image_url", "image_url": {"url": "https://a"}},
                    {"type": "image_url", "image_url": {"url": "http://b", "detail": "low"}},
                ],
            }
        ],
    ),
    (
        [said("user", image(image_url="data:image/png;base64,AA", file_id=None))],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}],
    ),
    ([USER, SAID, USER], [USER, assistant("yes"), USER]),
    ([said("assistant", text("output_text", "a"), text("output_text", "b"))], [assistant("ab")]),
    ([said("assistant", {"type": "refusal", "refusal": "no"})], [assistant("", refusal="no")]),
    ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], [assistant("a"), assistant("b")]),
    ([USER, FROM_THE_SDK, RESULT], [USER, assistant(None, tool_calls=[called()]), TOLD]),
    ([SAID, CALL, CALL | {"call_id": "2"}], [assistant("yes", tool_calls=[called(), called("2")])]),
    ([CALL, SAID, RESULT], [assistant("yes", tool_calls=[called()]), TOLD]),
    ([CALL, RESULT, CALL], [assistant(None, tool_calls=[called()]), TOLD, assistant(None, tool_calls=[called()])]),
    (
        [RESULT | {"output": [text("input_text", "a"), text("input_text", "b")], "name": "weather"}],
        [TOLD | {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    ),
    ([thought("hm"), SAID], [assistant("yes", reasoning_content="hm")]),
    ([thought("a", "b", summary=("no",)), CALL], [assistant(None, reasoning_content="a\nb", tool_calls=[called()])]),
    ([thought(summary=("in short",)), SAID], [assistant("yes", reasoning_content="in short")]),
    ([thought("a"), thought("b"), SAID], [assistant("yes", reasoning_content="a\nb")]),
    ([thought(), SAID], [assistant("yes")]),
    ([thought("hm"), USER, SAID], [USER, assistant("yes")]),
    (
        [thought("a"), CALL, thought("b"), CALL],
        [
            assistant(None, reasoning_content="a", tool_calls=[called()]),
            assistant(None, reasoning_content="b", tool_calls=[called()]),
        ],
    ),
]


@pytest.mark.parametrize(("given", "messages"), CONVERSATIONS)
def test_what_a_conversation_is_in_chat(given: Any, messages: list[Any]) -> None:
    assert chat_of(input=given)["messages"] == messages


def test_instructions_come_first() -> None:
    system = {"role": "system", "content": "be brief"}
    assert chat_of(instructions="be brief")["messages"] == [system, USER]
    assert chat_of(instructions="be brief", input=[USER])["messages"] == [system, USER]


REFUSED: list[tuple[dict[str, Any], str | None]] = [
    ({"model": None}, "model"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{}] * 16_385}, "input"),
    ({"input": 3}, "input"),
    ({"input": [3]}, "input[0]"),
    ({"input": [USER, {"type": "item_reference", "id": "msg_1"}]}, "input[1].type"),
    ({"input": [{"type": 3}]}, "input[0].type"),
    ({"input": [{"role": "tool", "content": "a"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [said("user")]}, "input[0].content"),
    ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
    ({"input": [USER | {"colour": 1}]}, "input[0].colour"),
    ({"input": [USER | {"status": "new"}]}, "input[0].status"),
    ({"input": [USER | {"phase": "commentary"}]}, "input[0].phase"),
    ({"input": [said("user", {"type": "input_file", "file_id": "f"})]}, "input[0].content[0].type"),
    ({"input": [said("user", {"type": "refusal", "refusal": "no"})]}, "input[0].content[0].type"),
    ({"input": [said("assistant", image(image_url="https://a"))]}, "input[0].content[0].type"),
    ({"input": [said("system", text("input_text"), image(image_url="https://a"))]}, "input[0].content[1].type"),
    ({"input": [said("user", image(file_id="f"))]}, "input[0].content[0].file_id"),
    ({"input": [said("user", image(detail="low"))]}, "input[0].content[0].image_url"),
    ({"input": [said("user", image(image_url="ftp://a"))]}, "input[0].content[0].image_url"),
    ({"input": [said("user", image(image_url="https://a", detail="original"))]}, "input[0].content[0].detail"),
    ({"input": [CALL | {"call_id": ""}]}, "input[0].call_id"),
    ({"input": [CALL | {"arguments": {}}]}, "input[0].arguments"),
    ({"input": [CALL | {"caller": {"type": "direct"}}]}, "input[0].caller"),
    ({"input": [CALL | {"async": True}]}, "input[0].async"),
    ({"input": [RESULT | {"output": [image(image_url="https://a")]}]}, "input[0].output[0].type"),
    ({"input": [RESULT | {"output": 12}]}, "input[0].output"),
    ({"input": [thought("a") | {"encrypted_content": "x"}]}, "input[0].encrypted_content"),
    ({"input": [thought("a") | {"summary": [text("reasoning_text")]}]}, "input[0].summary[0].type"),
    ({"instructions": ["be"]}, "instructions"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"max_output_tokens": 15}, "max_output_tokens"),
    ({"max_output_tokens": 2**63}, "max_output_tokens"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "a b", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
    ({"text": {"verbosity": "lots"}}, "text.verbosity"),
    ({"text": {"colour": 1}}, "text.colour"),
    ({"reasoning": {"effort": "most"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"filters": {}, "type": "file_search"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tools": [TOOL | {"name": "a b"}]}, "tools[0].name"),
    ({"tools": [TOOL | {"parameters": {"type": "array"}}]}, "tools[0].parameters"),
    ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [TOOL | {"name": str(n)} for n in range(129)]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "weather"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"include": ["message.output_text.logprobs"]}, "include[0]"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"truncation": "auto"}, "truncation"),
    ({"background": True}, "background"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"max_tool_calls": 2}, "max_tool_calls"),
    ({"moderation": {}}, "moderation"),
    ({"provider": ["a"]}, "provider"),
    ({"seed": 1}, "seed"),
    ({"Not a member": 1}, None),
]


@pytest.mark.parametrize(("sent", "param"), REFUSED, ids=[json.dumps(sent)[:60] for sent, _ in REFUSED])
def test_a_broken_rule_names_its_member(sent: dict[str, Any], param: str | None) -> None:
    failure = refused(json.dumps({"model": "m", "input": "hi", **sent}).encode())
    assert failure.param == param
    assert "Not a member" not in failure.message


BROKEN = [
    b"",
    b"[]",
    b"{",
    b'{"model":"m","input":"\xff"}',
    b'{"model":"m","input":[{"role":"user","content":"\xff"}]}',
    b'{"model":"m","input":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"m","input":"a","provider":{"a":"\xff"}}',
    b'{"model":"m","input":"a","tools":' + b"[" * 100_000,
]


@pytest.mark.parametrize("body", BROKEN, ids=[str(body[:50]) for body in BROKEN])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert refused(body).status == 400


@pytest.mark.parametrize(
    "sent",
    [
        {"input": [{"role": CANARY, "content": "a"}]},
        {"input": [{"type": CANARY}]},
        {"tools": [{"type": CANARY}]},
        {"include": [CANARY]},
        {CANARY: CANARY},
        {"metadata": {CANARY: 1}},
    ],
)
def test_no_message_quotes_the_body(sent: dict[str, Any]) -> None:
    failure = refused(json.dumps({"model": "m", "input": "hi", **sent}).encode())
    assert CANARY not in failure.message
    assert CANARY not in (failure.param or "")
    assert failure.__context__ is None


def test_no_repr_shows_the_prompt() -> None:
    assert CANARY not in repr(parse(input=CANARY, instructions=CANARY))


def test_provider_is_handed_on_digit_by_digit() -> None:
    body = b'{"model":"m","input":"a","provider":{ "x" : 1.50, "y": 12345678901234567890123 }}'
    request = parse_responses(body)
    assert b'"provider":{"x":1.50,"y":12345678901234567890123}' in request.chat_body()
    assert request.provider == {"x": 1.5, "y": 12345678901234567890123}


def test_what_may_hold_any_json_is_bounded() -> None:
    schema = {"type": "object", "enum": ["x" * 1024] * 1024}
    failure = refused(json.dumps({"model": "m", "input": "a", "tools": [TOOL | {"parameters": schema}]}).encode())
    assert failure.param == "tools"
    assert "too large" in failure.message


def test_a_long_input_is_taken() -> None:
    assert len(parse(input="x" * 2**20, tools=[TOOL]).chat_body()) > 2**20


def test_the_same_request_is_the_same_body() -> None:
    sent = {"stream": True, "temperature": 0.1, "tools": [TOOL], "metadata": {"b": "1", "a": "2"}}
    assert parse(**sent).chat_body() == parse(**sent).chat_body()
    assert (parse(**sent).model, parse(**sent).stream, parse().stream) == ("m", True, False)
