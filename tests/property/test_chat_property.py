"""Whatever the body, a request is parsed or refused with InvalidRequest, and nothing else happens."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from confide.errors import InvalidRequest
from confide.protocol.chat import ChatRequest, parse_chat
from confide.protocol.chat_body import ChatBody

VALID: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "https://a"}}],
        },
        {
            "role": "assistant",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "c", "tool_call_id": "c"},
    ],
    "n": 2,
    "stop": ["a"],
    "logit_bias": {"1": 1},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "reasoning": {"effort": "low"},
}
BYTES = json.dumps(VALID).encode()

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)) | st.just("function")
)
values = st.recursive(
    scalars,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3),
    max_leaves=8,
)


def outcome(body: bytes) -> ChatRequest | InvalidRequest:
    """What parsing gave. Any other exception fails the test."""
    try:
        request = parse_chat(body)
    except InvalidRequest as error:
        return error
    assert request.messages
    assert 1 <= request.n <= 128
    assert len(request.stop) <= 4
    assert request.tools or request.tool_choice == "none"
    return request


def ways(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(way for key, below in entries for way in ways(below, (*at, key)))]


@given(st.binary())
@example(b'"\\ud800"')
def test_any_bytes(body: bytes) -> None:
    outcome(body)


@given(values)
def test_any_json(value: object) -> None:
    assert isinstance(outcome(json.dumps(value).encode()), InvalidRequest)


@given(st.dictionaries(st.sampled_from(ChatBody.__struct_fields__), values, max_size=5))
def test_any_value_for_any_member(members: dict[str, object]) -> None:
    outcome(json.dumps({**VALID, **members}).encode())


@given(st.sampled_from(ways(VALID)[1:]), values)
def test_a_valid_request_with_one_value_replaced(at: tuple[Any, ...], value: object) -> None:
    whole = json.loads(BYTES)
    holder = whole
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = value
    outcome(json.dumps(whole).encode())


@given(st.integers(0, len(BYTES)), st.integers(0, 8), st.binary(max_size=4))
def test_a_valid_request_with_some_bytes_replaced(start: int, length: int, new: bytes) -> None:
    outcome(BYTES[:start] + new + BYTES[start + length :])


@given(st.integers(0, len(BYTES) - 1))
def test_a_valid_request_cut_short_is_refused(length: int) -> None:
    assert isinstance(outcome(BYTES[:length]), InvalidRequest)


@given(st.text(st.characters(codec="utf-8")))
def test_text_comes_through_unchanged(text: str) -> None:
    request = outcome(json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode())
    assert isinstance(request, ChatRequest)
    assert request.messages[0].content == text
